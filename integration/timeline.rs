//! P2 through a promotion.

use std::fs;

use crate::backup::{backup, restored, verify};
use crate::cluster::Cluster;
use crate::load::{Load, compare};
use crate::program::receive;
use crate::room::{Outcome, Room, SOON, wait_until};
use crate::stock::{amcheck, names, plain_copy};

const SEGMENT: u64 = 1 << 20;

/// A standby is promoted while its WAL is received: timeline 2 is followed, the tail of timeline 1 stays partial.
pub(crate) fn promotion(room: &Room) -> Outcome {
    let mut primary = Cluster::new(room, "primary");
    let standby = primary.standby("standby");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &standby.conninfo(), &[]);
    receiver.wait_until_it_streams(&standby);
    primary.rows("create table before as select i from generate_series(1, 30000) i");
    primary.rows("checkpoint");
    let sent = primary.flushed();
    standby.wait_for_slot("walhold", sent);
    standby.promote();
    standby.rows("create table after as select i from generate_series(1, 30000) i");
    standby.rows("checkpoint");
    let end = standby.flushed();
    standby.wait_for_slot("walhold", end);
    receiver.terminate().expect(0);

    let wal = repo.join("wal");
    let history = fs::read_to_string(wal.join("00000002.history")).unwrap();
    let switch = crate::cluster::lsn(history.split_whitespace().nth(1).unwrap());
    let old = crate::stock::segment_at(1, switch, SEGMENT);
    let held = names(&wal);
    assert!(held.contains(&format!("{old}.partial")) && !held.contains(&old), "{old} in {held:?}");
    let new = crate::stock::segment_at(2, switch, SEGMENT);
    assert!(held.iter().any(|n| n.starts_with(&new)), "{new} in {held:?}");

    // A standby that was there before the fork follows through it, from the repository alone.
    wait_until("the archive to be whole", SOON, || names(&wal).iter().any(|n| n.starts_with(&new)));
    let plain = plain_copy(room, &wal, "plain");
    fs::remove_file(plain.join(&old)).unwrap();
    let Ok(tool) = room.tool("pg_waldump") else { return Ok(()) };
    let mut command = room.command(tool);
    command.arg("-p").arg(&plain).args(["-z", "-t", "2", "-s", &switch.to_string(), "-e", &end.to_string()]);
    let said = room.must(&mut command);
    assert!(said.contains("Total"), "{said}");
    Ok(())
}

/// After a disaster the restored server's new timeline goes into the same repository, as does a
/// backup of it; and that is lost, too.
pub(crate) fn after_restore(room: &Room) -> Outcome {
    let mut first = Cluster::new(room, "first");
    Load::prepare(&first);
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &first.conninfo(), &["--synchronous"]);
    receiver.wait_until_it_streams(&first);
    first.require_standby("walhold");
    backup(room, &repo, &first).expect(0);
    let load = Load::start(&first, 2);
    load.wait_for_more(200);
    first.destroy();
    let mut acknowledged = load.finish();
    receiver.terminate().expect(0);

    let mut second = restored(room, &repo, "second");
    let receiver = receive(room, &repo, &second.conninfo(), &["--synchronous"]);
    receiver.wait_until_it_streams(&second);
    backup(room, &repo, &second).expect(0);
    let load = Load::start_at(&second, 2, 100);
    load.wait_for_more(200);
    second.wait_for_slot("walhold", second.flushed());
    acknowledged.extend(load.finish());
    second.wait_for_slot("walhold", second.flushed());
    second.destroy();
    receiver.terminate().expect(0);

    verify(room, &repo).expect(0);
    let third = restored(room, &repo, "third");
    compare(&acknowledged, &third);
    amcheck(room, &third);
    Ok(())
}
