//! P2 and P5: what may be appended to what is held.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::backup::{backup, restored, verify};
use crate::cluster::{Cluster, Lsn, Setup, Stop};
use crate::load::Load;
use crate::program::{Ended, Running, receive, run, walhold};
use crate::room::{Outcome, Room, SOON, wait_until};
use crate::stock::{assert_contiguous, plain_copy, waldump};

/// A clean end, WAL in the meantime, and on.
pub(crate) fn after_sigterm(room: &Room) -> Outcome {
    resumes(room, |receiver| drop(receiver.terminate().expect(0)))
}

/// A sudden end, WAL in the meantime, and on.
pub(crate) fn after_kill(room: &Room) -> Outcome {
    resumes(room, |receiver| drop(receiver.kill()))
}

fn resumes(room: &Room, end: impl Fn(Running)) -> Outcome {
    let primary = Cluster::new(room, "primary");
    Load::prepare(&primary);
    let repo = room.path("repo");
    let load = Load::start(&primary, 2);
    for _ in 0..4 {
        let receiver = receive(room, &repo, &primary.conninfo(), &[]);
        receiver.wait_until_it_streams(&primary);
        load.wait_for_more(100);
        let before = primary.slot_position("walhold");
        end(receiver);
        primary.wait_for_no_receiver();
        assert!(primary.slot_position("walhold") >= before, "the slot went back");
        load.wait_for_more(50);
    }
    load.finish();
    let held = primary.slot_position("walhold").unwrap();
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    let target = primary.flushed();
    primary.wait_for_slot("walhold", target);
    assert!(primary.slot_position("walhold").unwrap() >= held);
    receiver.terminate().expect(0);
    assert_contiguous(&repo.join("wal"));
    waldump(room, &plain_copy(room, &repo.join("wal"), "plain"), target)
}

/// The server has thrown away what comes next: refused, naming what is held and what there is.
pub(crate) fn gap(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let repo = room.path("repo");
    let held = receive_some(room, &primary, &repo);
    primary.rows("select pg_drop_replication_slot('walhold')");
    recycle(&primary, held);
    let before = contents(&repo.join("wal"));
    let said = receive_as_it_is(room, &primary, &repo);
    said.refused(3, &[&held.to_string()]).says("walhold backup");
    assert_eq!(contents(&repo.join("wal")), before, "a refused receiver wrote");
    Ok(())
}

/// The operator accepts a gap by its position, and by no other: receiving begins anew, nothing before it
/// claims to reach what is behind it, and the next backup makes all well again.
pub(crate) fn gap_accepted(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let repo = room.path("repo");
    backup(room, &repo, &primary).expect(0);
    let held = receive_some(room, &primary, &repo);
    primary.rows("select pg_drop_replication_slot('walhold')");
    recycle(&primary, held);
    let refused = run(walhold(room, "receive").arg("--repo").arg(&repo).args(["-d", &primary.conninfo()]));
    let words = format!("--accept-gap {held}");
    refused.refused(3, &[&held.to_string()]).says(&words);
    let wrong = ["-d", &primary.conninfo(), "--accept-gap", "0/1000000"];
    run(walhold(room, "receive").arg("--repo").arg(&repo).args(wrong)).refused(3, &[&held.to_string()]).says(&words);

    let receiver = receive(room, &repo, &primary.conninfo(), &["--accept-gap", &held.to_string()]);
    receiver.wait_for("accepted a gap");
    receiver.wait_until_it_streams(&primary);
    primary.rows("create table late as select 42 as answer");
    primary.wait_for_slot("walhold", primary.flushed());
    receiver.terminate().expect(0);
    verify(room, &repo).expect(0).says("accepted gap");
    assert_eq!(restored(room, &repo, "before").sql("select to_regclass('late') is null"), "t");

    // What comes next goes on at the end, with the flag or without it.
    let receiver = receive(room, &repo, &primary.conninfo(), &["--accept-gap", &held.to_string()]);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    receiver.terminate().expect(0);
    assert_eq!(verify(room, &repo).expect(0).out.matches(" USABLE").count(), 2);
    assert_eq!(restored(room, &repo, "behind").sql("select answer from late"), "42");
    let status = run(walhold(room, "status").arg("--repo").arg(&repo)).expect(0);
    status.says(&held.to_string()).says("missing, accepted");
    Ok(())
}

/// After the WAL behind a backup is gone, a new backup lets receiving go on, as the refusal says.
pub(crate) fn after_island(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let repo = room.path("repo");
    backup(room, &repo, &primary).expect(0);
    recycle(&primary, primary.flushed());
    let said = run(walhold(room, "receive").arg("--repo").arg(&repo).args(["-d", &primary.conninfo()]));
    said.refused(3, &[]).says("walhold backup");
    backup(room, &repo, &primary).expect(0);
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    primary.rows("create table late as select 42 as answer");
    let end = primary.flushed();
    primary.wait_for_slot("walhold", end);
    receiver.terminate().expect(0);
    assert_eq!(verify(room, &repo).out.matches(" USABLE").count(), 2);
    assert_eq!(restored(room, &repo, "restored").sql("select answer from late"), "42");
    Ok(())
}

/// A cluster with another system identifier.
pub(crate) fn other_cluster(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let other = Cluster::with(room, "other", &Setup { own_identity: true, ..Setup::default() });
    let repo = room.path("repo");
    receive_some(room, &primary, &repo);
    backup(room, &repo, &primary).expect(0);
    let before = contents(&repo);
    let identifier = other.sql("select system_identifier from pg_control_system()");
    for command in ["receive", "backup"] {
        let said = run(walhold(room, command).arg("--repo").arg(&repo).args(["-d", &other.conninfo()]));
        said.refused(3, &[&identifier]);
    }
    assert_eq!(contents(&repo), before, "a refused command wrote");
    // A plain folder has nothing but its files to tell whose it is; here only one, that is not complete.
    let folder = room.path("folder");
    room.make_dir(&folder);
    let into_folder = |server: &Cluster<'_>, more: &[&str]| {
        let mut command = walhold(room, "receive");
        command.arg("-D").arg(&folder).args(["-d", &server.conninfo()]).args(more);
        command
    };
    let end = primary.flushed().to_string();
    primary.rows("select pg_logical_emit_message(true, 'test', 'beyond')");
    run(&mut into_folder(&primary, &["-n", "-E", &end])).expect(0);
    let before = contents(&folder);
    assert_eq!(before.len(), 1, "{:?}", before.keys());
    let held = primary.sql("select system_identifier from pg_control_system()");
    run(&mut into_folder(&other, &[])).refused(3, &[&held, &identifier]);
    assert_eq!(contents(&folder), before, "a refused command wrote");
    assert_eq!(other.sql("select count(*) from pg_replication_slots"), "0", "a slot was left behind");
    Ok(())
}

/// The largest segments there are. A stop does not wait for the next one's gigabyte of zeros.
pub(crate) fn gigabytes(room: &Room) -> Outcome {
    let primary = Cluster::with(room, "primary", &Setup { segment_mb: 1024, ..Setup::default() });
    let repo = room.path("repo");
    let spare = repo.join("wal/walhold-next-segment.tmp");
    let end = |receiver: Running| {
        let begun = Instant::now();
        receiver.terminate().expect(0);
        let taken = begun.elapsed();
        assert!(taken < Duration::from_secs(3), "the stop took {taken:?}");
        assert!(!spare.exists(), "the next segment's file was left");
        primary.wait_for_no_receiver();
    };
    let message = || {
        primary.rows("select pg_logical_emit_message(true, 'test', 'more')");
        primary.flushed()
    };
    let mut receiver = receive(room, &repo, &primary.conninfo(), &["--synchronous"]);
    receiver.wait_until_it_streams(&primary);
    wait_until("the next segment to be made ready", SOON, || {
        primary.wait_for_slot("walhold", message());
        spare.exists()
    });
    end(receiver);
    message();
    receiver = receive(room, &repo, &primary.conninfo(), &["--synchronous"]);
    primary.wait_for_slot("walhold", message());
    primary.switch_segment();
    primary.wait_for_slot("walhold", message());
    end(receiver);
    assert_contiguous(&repo.join("wal"));
    Ok(())
}

/// Two copies of one cluster bear the same identifier and timeline; only the records tell them apart.
pub(crate) fn diverged_clone(room: &Room) -> Outcome {
    let mut primary = Cluster::new(room, "primary");
    primary.stop(Stop::Fast);
    let copy = room.path("clone-data");
    room.copy_tree(primary.data(), &copy);
    let mut clone = Cluster::restored(room, "clone", copy);
    primary.start();
    clone.start();
    let repo = room.path("repo");
    let held = receive_some(room, &primary, &repo);
    clone.rows("select pg_create_physical_replication_slot('walhold', true)");
    clone.rows("create table mine as select i from generate_series(1, 5000) i");
    // Ahead of what is held, so that nothing but the records can be wrong.
    while clone.flushed() <= held {
        clone.rows("insert into mine select i from generate_series(1, 1000) i");
    }
    let before = contents(&repo.join("wal"));
    let said = receive_as_it_is(room, &clone, &repo);
    said.refused(3, &[]);
    assert_eq!(contents(&repo.join("wal")), before, "a refused receiver wrote");
    Ok(())
}

/// A primary that never wrote what is held: restored from an older copy, or the wrong one.
pub(crate) fn primary_behind(room: &Room) -> Outcome {
    let mut primary = Cluster::new(room, "primary");
    primary.stop(Stop::Fast);
    let copy = room.path("old-data");
    room.copy_tree(primary.data(), &copy);
    primary.start();
    let repo = room.path("repo");
    let held = receive_some(room, &primary, &repo);
    primary.stop(Stop::Fast);
    let mut old = Cluster::restored(room, "old", copy);
    old.start();
    assert!(old.flushed() < held);
    old.rows("select pg_create_physical_replication_slot('walhold', true)");
    let before = contents(&repo.join("wal"));
    let said = receive_as_it_is(room, &old, &repo);
    said.refused(3, &[&held.to_string()]);
    assert_eq!(contents(&repo.join("wal")), before, "a refused receiver wrote");
    Ok(())
}

/// A standby that has not yet got what is held is waited for.
pub(crate) fn standby_behind(room: &Room) -> Outcome {
    let mut primary = Cluster::new(room, "primary");
    let mut standby = primary.standby("standby");
    standby.stop(Stop::Fast);
    let repo = room.path("repo");
    let held = receive_some(room, &primary, &repo);
    primary.stop(Stop::Fast);
    standby.start();
    standby.rows("select pg_create_physical_replication_slot('walhold', true)");
    let receiver = receive(room, &repo, &standby.conninfo(), &[]);
    receiver.wait_for(&held.to_string());
    primary.start();
    primary.rows("create table more as select i from generate_series(1, 1000) i");
    let end = primary.flushed();
    standby.wait_for_slot("walhold", end);
    receiver.terminate().expect(0);
    assert_contiguous(&repo.join("wal"));
    waldump(room, &plain_copy(room, &repo.join("wal"), "plain"), end)
}

/// Receives and leaves plain what a receiver before has not yet compressed.
fn receive_as_it_is(room: &Room, server: &Cluster<'_>, repo: &Path) -> Ended {
    run(walhold(room, "receive").arg("--repo").arg(repo).args(["-d", &server.conninfo(), "-Z", "none"]))
}

/// Streams a little of a server, and stops; up to where.
#[track_caller]
fn receive_some(room: &Room, primary: &Cluster<'_>, repo: &Path) -> Lsn {
    let receiver = receive(room, repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(primary);
    primary.switch_segment();
    primary.rows("create table little as select i from generate_series(1, 1000) i");
    let end = primary.flushed();
    primary.wait_for_slot("walhold", end);
    receiver.terminate().expect(0);
    end
}

/// Writes and checkpoints until the segment that holds `position` is gone.
#[track_caller]
pub(crate) fn recycle(primary: &Cluster<'_>, position: Lsn) {
    // Of a boundary the function names the segment before.
    let name = primary.sql(&format!("select pg_walfile_name('{}')", Lsn(position.0 + 1)));
    for _ in 0..100 {
        primary.switch_segment();
        primary.rows("checkpoint");
        if !primary.data().join("pg_wal").join(&name).exists() {
            return;
        }
    }
    panic!("{name} is never recycled");
}

/// All files below a folder with what is in them.
pub(crate) fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if path.file_name().is_some_and(|name| name != "lock") {
            found.insert(path.display().to_string(), fs::read(&path).unwrap());
        }
    }
    found
}
