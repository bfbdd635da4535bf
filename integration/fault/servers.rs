//! A server that is restarted, promoted or replaced underneath a receiver and a backup.

use std::time::Duration;

use crate::backup::restored;
use crate::cluster::{Cluster, Setup, Stop};
use crate::crash::{a_tenth, only_sealed_are_offered};
use crate::fault::matrix::{Row, told};
use crate::fault::stage::{Plan, Stage, Strike, empty_row, rounds_of};
use crate::program::{run, start, walhold};
use crate::resume::contents;
use crate::room::{Outcome, Room, SOON};

/// Receiving goes on by itself; a backup that was under way is never sealed without its files or its WAL.
pub(crate) fn restarted(room: &Room) -> Outcome {
    rounds_of(
        room,
        &Plan {
            fault: "the server is restarted",
            how: "fast or immediate shutdown, with or without a backup under way",
            strikes: &[
                Strike::Stop(Stop::Fast),
                Strike::Stop(Stop::Immediate),
                Strike::StopInBackup(Stop::Fast),
                Strike::StopInBackup(Stop::Immediate),
            ],
            few: 4,
            words: &["disconnected: ", "connected again after", "error: "],
        },
    )
}

/// A standby is promoted while WAL is received from it, and a restored server takes the place of a lost one;
/// whichever server acknowledged a commit, a restore has it.
pub(crate) fn promoted(room: &Room) -> Outcome {
    let mut stage = Stage::new(room, &[]);
    let mut rows = [
        empty_row(
            "a standby is promoted",
            "its primary is lost, while WAL is received from the standby, with or without a backup of it under way",
        ),
        empty_row(
            "a restored server takes the place of a lost one",
            "restored to the end of what is held, under the receiver",
        ),
    ];
    let mut acknowledged = 0;
    for round in 0..a_tenth(1) {
        for (row, succeed) in rows.iter_mut().zip([promote, restore_in_place]) {
            stage.load.wait_for_more(20);
            stage.log.clear();
            succeed(room, &mut stage, round);
            let resumed = stage.go_on();
            stage.load.wait_for_more(20);
            count(row, &mut acknowledged, stage.judge(false), resumed);
            stage.kill_receiver();
            row.told =
                stage.told(&["made replication slot", "the server goes on with", "connected again after", "error: "]);
            stage.go_on();
            stage.renew();
        }
    }
    stage.load.finish();
    rows.into_iter().for_each(|row| room.record(row));
    Ok(())
}

/// Adds a round to a row. Each commit counts once, though all of them are compared each time.
fn count(row: &mut Row, before: &mut usize, (all, lost): (usize, usize), resumed: Duration) {
    row.acknowledged += all - std::mem::replace(before, all);
    (row.rounds, row.lost) = (row.rounds + 1, row.lost + lost);
    row.resumed = row.resumed.max(Some(resumed));
}

fn promote<'a>(room: &'a Room, stage: &mut Stage<'a>, round: usize) {
    let name = format!("standby{round}");
    stage.primary.rows("select pg_create_physical_replication_slot('standby', true)");
    let standby = stage.primary.standby_with(&name, &["primary_slot_name = 'standby'"]);
    stage.kill_receiver();
    stage.address.goes_to(&standby);
    stage.stream_again();
    stage.receiver.as_ref().unwrap().wait_until_it_streams(&standby);
    stage.primary.require_standby(&name);
    stage.load.wait_for_more(20);
    let backup = stage.moments.coin().then(|| stage.half_a_backup());
    stage.moments.sleep(Duration::from_millis(300));
    stage.primary.destroy();
    standby.promote();
    standby.require_standby("walhold");
    stage.succeeded_by(standby);
    if let Some(running) = backup {
        let ended = running.wait(SOON * 2);
        assert!(matches!(ended.status.code(), Some(0 | 1)), "{ended}");
        stage.log += &ended.err;
        only_sealed_are_offered(room, &stage.repo);
    }
}

fn restore_in_place<'a>(room: &'a Room, stage: &mut Stage<'a>, round: usize) {
    stage.moments.sleep(Duration::from_millis(300));
    stage.primary.destroy();
    let mut server = restored(room, &stage.repo, &format!("again{round}"));
    server.heed_settings();
    server.stop(Stop::Fast);
    server.start();
    // A standby that is made of it would stay on the timeline that it was restored along.
    server.rows("alter system reset recovery_target_timeline");
    stage.succeeded_by(server);
}

/// A server that is put in the place of the right one.
struct Impostor<'a> {
    server: Cluster<'a>,
    row: Row,
    /// Words of the refusal.
    words: &'static [&'static str],
    /// It must have written more than is held, so that only the records tell.
    ahead: bool,
}

/// Whatever is put in the server's place is refused without a byte being written, and when the right one is
/// back all goes on.
pub(crate) fn replaced(room: &Room) -> Outcome {
    // Compressing goes on whatever the server is.
    let mut stage = Stage::new(room, &["-Z", "none"]);
    let mut impostors = impostors(room, &mut stage);
    let mut acknowledged = 0;
    for _ in 0..a_tenth(1) {
        for impostor in &mut impostors {
            let resumed = put_in_place(room, &mut stage, impostor);
            count(&mut impostor.row, &mut acknowledged, stage.judge(false), resumed);
        }
    }
    stage.load.finish();
    impostors.into_iter().for_each(|impostor| room.record(impostor.row));
    Ok(())
}

fn impostors<'a>(room: &'a Room, stage: &mut Stage<'a>) -> Vec<Impostor<'a>> {
    stage.load.wait_for_more(50);
    stage.primary.stop(Stop::Fast);
    let copy = |name: &str| {
        let data = room.path(&format!("{name}-data"));
        room.copy_tree(stage.primary.data(), &data);
        Cluster::restored(room, name, data)
    };
    let (older, clone) = (copy("older"), copy("clone"));
    stage.go_on();
    let mut other = Cluster::with(room, "other", &Setup { own_identity: true, ..Setup::default() });
    let mut fork = restored(room, &stage.repo, "fork");
    other.stop(Stop::Fast);
    fork.stop(Stop::Fast);
    // What forked off within the last 16 MB could have been promoted.
    stage.primary.rows("create table bulk as select i, repeat(md5(i::text), 10) from generate_series(1, 50000) i");
    stage.primary.rows("drop table bulk");
    stage.renew();
    let impostor = |server, fault, how, words, ahead| Impostor { server, row: empty_row(fault, how), words, ahead };
    vec![
        impostor(
            other,
            "another cluster is put in the server's place",
            "one with another system identifier answers at the same address, to a receiver and to a backup",
            &["the archive belongs to the cluster with system identifier"],
            false,
        ),
        impostor(
            older,
            "an older copy is put in the server's place",
            "a copy of the data directory from before answers at the same address",
            &["the archive is ahead of the server"],
            false,
        ),
        impostor(
            clone,
            "a clone is put in the server's place",
            "a copy that has written on for itself, on the same timeline, answers at the same address",
            &["the server's WAL differs from the archive's at"],
            true,
        ),
        impostor(
            fork,
            "a copy restored to an earlier moment is put in the server's place",
            "its timeline forked off more than 16 MB before the end of what is held",
            &["timeline 2 forked off at"],
            false,
        ),
    ]
}

/// Under the receiver, and under a backup that streams its own WAL. How long it took until commits went on.
fn put_in_place(room: &Room, stage: &mut Stage<'_>, impostor: &mut Impostor<'_>) -> Duration {
    impostor.server.start();
    if impostor.ahead {
        write_beyond(&impostor.server, stage);
    }
    stage.load.wait_for_more(20);
    stage.primary.stop(if stage.moments.coin() { Stop::Fast } else { Stop::Immediate });
    let receiver = stage.receiver.take().expect("a receiver");
    receiver.wait_for("disconnected: ");
    let before = contents(&stage.repo);
    stage.address.goes_to(&impostor.server);
    let refused = receiver.wait(SOON).refused(3, impostor.words);
    impostor.row.told = told(room, &refused.err, "error: ");
    let mut command = walhold(room, "backup");
    let ended = run(command.arg("--repo").arg(&stage.repo).args(["-d", &stage.address.conninfo()]));
    ended.refused(3, &[]);
    assert_eq!(contents(&stage.repo), before, "a refused program wrote");
    stage.address.goes_to(&stage.primary);
    let resumed = stage.go_on();

    stage.kill_receiver();
    if impostor.row.rounds.is_multiple_of(2) {
        stream_is_replaced(room, stage, impostor);
    } else {
        let running = stage.half_a_backup();
        stage.address.goes_to(&impostor.server);
        stage.primary.stop(Stop::Immediate);
        let ended = running.wait(SOON * 2);
        assert!(matches!(ended.status.code(), Some(0 | 1 | 3)), "{ended}");
    }
    only_sealed_are_offered(room, &stage.repo);
    impostor.server.stop(Stop::Fast);
    stage.address.goes_to(&stage.primary);
    resumed.max(stage.go_on())
}

/// Of a backup that streams its own WAL only that connection is lost, and finds the impostor; the copy comes
/// to its end on the other.
fn stream_is_replaced(room: &Room, stage: &Stage<'_>, impostor: &Impostor<'_>) {
    let conninfo = stage.address.conninfo();
    let args = ["-d", &conninfo, "--max-rate", "15M"];
    let running = start(walhold(room, "backup").arg("--repo").arg(&stage.repo).args(args));
    running.wait_for("starts at");
    stage.address.goes_to(&impostor.server);
    let streams = "select count(pg_terminate_backend(pid)) from pg_stat_replication where state = 'streaming'";
    assert_eq!(stage.primary.sql(streams), "1");
    running.wait(SOON * 2).refused(3, impostor.words);
}

/// Lets a clone write more than the server has, and more than it will have soon.
fn write_beyond(clone: &Cluster<'_>, stage: &Stage<'_>) {
    clone.rows("create table if not exists mine (i int, t text)");
    while clone.flushed().0 < stage.primary.flushed().0 + (8 << 20) {
        clone.rows("insert into mine select i, repeat(md5(i::text), 10) from generate_series(1, 5000) i");
    }
}
