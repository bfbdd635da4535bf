//! P2 through a promotion.

use std::fs;

use crate::backup::{backup, restored, verify};
use crate::cluster::{Cluster, Stop};
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

/// The receiver holds timeline 1 and finds the server on timeline 4.
pub(crate) fn several_while_away(room: &Room) -> Outcome {
    let mut server = Cluster::new(room, "server");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &server.conninfo(), &[]);
    receiver.wait_until_it_streams(&server);
    backup(room, &repo, &server).expect(0);
    server.rows("create table t1 as select i from generate_series(1, 30000) i");
    server.wait_for_slot("walhold", server.flushed());
    receiver.terminate().expect(0);
    for tli in 2..=4 {
        server.stop(Stop::Fast);
        server.start_on_next_timeline();
        server.rows(&format!("create table t{tli} as select i from generate_series(1, 30000) i"));
    }
    let receiver = receive(room, &repo, &server.conninfo(), &[]);
    receiver.wait_for("goes on with timeline 4");
    server.wait_for_slot("walhold", server.flushed());
    receiver.terminate().expect(0);
    let held = names(&repo.join("wal"));
    for tli in 2..=4 {
        assert!(held.contains(&format!("{tli:08X}.history")), "{held:?}");
    }
    server.destroy();
    verify(room, &repo).expect(0);
    let restored = restored(room, &repo, "restored");
    assert_eq!(restored.sql("select count(*) from t1, lateral (select 1 from t2, t3, t4 limit 1) x"), "30000");
    Ok(())
}

/// A timeline may end where a segment ends: nothing of the next segment is on it.
pub(crate) fn at_boundary(room: &Room) -> Outcome {
    let mut server = Cluster::new(room, "server");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &server.conninfo(), &["--synchronous"]);
    receiver.wait_until_it_streams(&server);
    backup(room, &repo, &server).expect(0);
    let mut switch = crate::cluster::Lsn(1);
    // The server may write something of its own between the two; then it is tried on the next timeline.
    for tli in 2..8 {
        server.rows(&format!("create table t{tli} as select i from generate_series(1, 1000) i"));
        server.rows("select pg_switch_wal()");
        server.stop(Stop::Immediate);
        server.start_on_next_timeline();
        server.rows(&format!("create table after{tli} as select i from generate_series(1, 1000) i"));
        server.wait_for_slot("walhold", server.flushed());
        let history = fs::read_to_string(repo.join("wal").join(format!("{tli:08X}.history"))).unwrap();
        switch = crate::cluster::lsn(history.lines().last().unwrap().split_whitespace().nth(1).unwrap());
        if switch.0.is_multiple_of(SEGMENT) {
            break;
        }
    }
    assert_eq!(switch.0 % SEGMENT, 0, "no timeline ended with a segment");
    receiver.terminate().expect(0);
    server.destroy();
    verify(room, &repo).expect(0);
    assert_eq!(restored(room, &repo, "restored").sql("select count(*) from t2, after2"), "1000000");
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
