//! P7: what is written can be used without walhold.

use std::fs;

use crate::cluster::{Cluster, Setup};
use crate::load::Load;
use crate::program::{receive, run, walhold};
use crate::room::{Outcome, Room, skip};
use crate::stock::{self, assert_contiguous, partial, plain_copy, segment_at, segments};

const SEGMENT: u64 = 16 << 20;

/// Both drain the same stretch of WAL from a slot of their own; the files must be the same bytes.
pub(crate) fn drain(room: &Room) -> Outcome {
    let pg_receivewal = room.tool("pg_receivewal")?;
    if room.server.major < 15 {
        skip!("pg_receivewal {} does not start where its slot does", room.server.major);
    }
    let primary = Cluster::with(room, "primary", &Setup { segment_mb: 16, ..Setup::default() });
    for slot in ["ours", "theirs"] {
        primary.rows(&format!("select pg_create_physical_replication_slot('{slot}', true)"));
    }
    Load::prepare(&primary);
    primary.rows("create table bulk as select i, repeat(md5(i::text), 5) from generate_series(1, 150000) i");
    primary.switch_segment(); // all zeros up to the segment's end
    primary.rows("create index on bulk (i); update account set balance = 1");
    let end = primary.flushed();
    primary.rows("update account set balance = 2"); // pg_receivewal stops after a position, not at it
    let end_text = end.to_string();
    let (ours, theirs) = (room.path("ours"), room.path("theirs"));
    room.make_dir(&theirs);
    room.make_dir(&ours);
    let mut command = room.command(pg_receivewal);
    command.arg("-D").arg(&theirs).args(["-S", "theirs", "-n", "-E", &end_text, "-d", &primary.conninfo()]);
    room.must(&mut command);
    let mut command = walhold(room, "receive");
    command.arg("-D").arg(&ours).args(["--slot", "ours", "-n", "-E", &end_text, "-d", &primary.conninfo()]);
    run(&mut command).expect(0);

    let last = segment_at(1, end, SEGMENT);
    let complete = |folder| segments(folder).into_iter().filter(|s| **s < *last).collect::<Vec<_>>();
    assert_eq!(complete(&ours), complete(&theirs));
    assert!(complete(&ours).len() >= 3, "{:?}", complete(&ours));
    for segment in complete(&ours) {
        assert!(
            fs::read(ours.join(&segment)).unwrap() == fs::read(theirs.join(&segment)).unwrap(),
            "{segment} differs"
        );
    }
    let upto = usize::try_from(end.0 % SEGMENT).unwrap();
    let tails = [&ours, &theirs].map(|folder| fs::read(partial(folder)).unwrap());
    assert_eq!(tails[0].len(), tails[1].len());
    assert!(tails[0][..upto] == tails[1][..upto], "{last} differs below {end}");
    Ok(())
}

/// A repository's archive, filled by many small records, large ones, and segments ended early.
pub(crate) fn waldump(room: &Room) -> Outcome {
    room.tool("pg_waldump")?;
    let primary = Cluster::new(room, "primary");
    Load::prepare(&primary);
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    let load = Load::start(&primary, 3);
    load.wait_for_more(300);
    primary.switch_segment();
    primary.rows("select pg_logical_emit_message(false, 'large', repeat('x', 2500000))"); // over three segments
    load.wait_for_more(300);
    load.finish();
    primary.rows("checkpoint");
    let end = primary.flushed();
    primary.wait_for_slot("walhold", end);
    receiver.terminate().expect(0);
    assert_contiguous(&repo.join("wal"));
    stock::waldump(room, &plain_copy(room, &repo.join("wal"), "plain"), end)
}
