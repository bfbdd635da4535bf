//! A server that is shut down waits for its receiver, and the receiver lets it go.

use std::time::Duration;

use crate::cluster::{Cluster, Lsn, Stop};
use crate::load::Load;
use crate::program::receive;
use crate::room::{Outcome, Room};
use crate::stock::plain_copy;

/// The shutdown checkpoint arrives, the server ends at once, and streaming goes on when it is back.
pub(crate) fn orderly(room: &Room) -> Outcome {
    for synchronous in [true, false] {
        round(room, synchronous)?;
    }
    Ok(())
}

fn round(room: &Room, synchronous: bool) -> Outcome {
    let name = if synchronous { "synchronous" } else { "lazy" };
    let mut primary = Cluster::new(room, name);
    Load::prepare(&primary);
    let repo = room.path(&format!("{name}-repo"));
    let more: &[&str] = if synchronous { &["--synchronous"] } else { &[] };
    let receiver = receive(room, &repo, &primary.conninfo(), more);
    receiver.wait_until_it_streams(&primary);
    if synchronous {
        primary.require_standby("walhold");
    }
    let load = Load::start(&primary, 2);
    load.wait_for_more(100);
    let taken = primary.stop(Stop::Fast);
    assert!(taken < Duration::from_secs(10), "the shutdown took {taken:?}\n{}", receiver.err());
    assert!(receiver.runs(), "{}", receiver.err());
    let end = shutdown_end(&primary);
    primary.start();
    receiver.wait_until_it_streams(&primary);
    // The server writes a slot's position down before the receiver's last word, and hears it again.
    primary.wait_for_slot("walhold", end);
    load.wait_for_more(50);
    load.finish();
    let end = primary.flushed();
    primary.wait_for_slot("walhold", end);
    receiver.terminate().expect(0);
    crate::stock::waldump(room, &plain_copy(room, &repo.join("wal"), &format!("{name}-plain")), end)
}

/// The end of the shutdown checkpoint's record, as the data directory remembers it.
fn shutdown_end(stopped: &Cluster<'_>) -> Lsn {
    // pg_control: identifier, versions, state, time, then the checkpoint's position.
    let control = std::fs::read(stopped.data().join("global/pg_control")).unwrap();
    assert_eq!(control[16], 1, "shut down in an orderly way");
    let start = u64::from_le_bytes(control[32..40].try_into().unwrap());
    Lsn(start)
}
