//! P7: what is written can be used without walhold.

use std::fs;
use std::process::Command;

use crate::cluster::{Cluster, Lsn, Setup};
use crate::load::Load;
use crate::program::{receive, run, walhold};
use crate::room::{Outcome, Room};
use crate::stock::{self, assert_contiguous, partial, plain_copy, segment_at, segments};

pub(crate) fn of_1_mb(room: &Room) -> Outcome {
    drain(room, 1)
}

pub(crate) fn of_16_mb(room: &Room) -> Outcome {
    drain(room, 16)
}

pub(crate) fn of_64_mb(room: &Room) -> Outcome {
    drain(room, 64)
}

/// Both receive the same WAL; the files must be the same bytes.
fn drain(room: &Room, segment_mb: u32) -> Outcome {
    let pg_receivewal = room.client("pg_receivewal")?;
    let segment = u64::from(segment_mb) << 20;
    let primary = Cluster::with(room, "primary", &Setup { segment_mb, ..Setup::default() });
    for slot in ["ours", "theirs"] {
        primary.rows(&format!("select pg_create_physical_replication_slot('{slot}', true)"));
    }
    let (ours, theirs) = (room.path("ours"), room.path("theirs"));
    room.make_dir(&theirs);
    room.make_dir(&ours);
    let until = |program: &mut Command, slot: &str, end: Lsn| {
        program.args(["-n", "-S", slot, "-E", &end.to_string(), "-d", &primary.conninfo()]);
    };
    if room.server.major < 15 {
        // There it does not begin where its slot stands, but goes on where its folder ends.
        let mut command = room.command(&pg_receivewal);
        primary.switch_segment(); // so that it begins in the segment in which it is to end
        primary.rows("create table first (i int)");
        until(command.arg("-D").arg(&theirs), "theirs", primary.flushed());
        primary.rows("insert into first values (1)");
        room.must(&mut command);
    }
    Load::prepare(&primary);
    primary.rows("create table bulk as select i, repeat(md5(i::text), 5) from generate_series(1, 150000) i");
    primary.switch_segment(); // all zeros up to the segment's end
    primary.rows("create index on bulk (i); update account set balance = 1");
    let end = primary.flushed();
    primary.rows("update account set balance = 2"); // pg_receivewal stops after a position, not at it
    let mut command = room.command(&pg_receivewal);
    until(command.arg("-D").arg(&theirs), "theirs", end);
    room.must(&mut command);
    let mut command = walhold(room, "receive");
    until(command.arg("-D").arg(&ours), "ours", end);
    run(&mut command).expect(0);

    let last = segment_at(1, end, segment);
    let first = segments(&theirs).into_iter().next().expect("a segment of pg_receivewal's");
    let complete = |folder| segments(folder).into_iter().filter(|s| (&first..&last).contains(&s)).collect::<Vec<_>>();
    assert_eq!(complete(&ours), complete(&theirs));
    assert!(!complete(&ours).is_empty());
    for segment in complete(&ours) {
        assert!(
            fs::read(ours.join(&segment)).unwrap() == fs::read(theirs.join(&segment)).unwrap(),
            "{segment} differs"
        );
    }
    let upto = usize::try_from(end.0 % segment).unwrap();
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
