//! P3: a backup is sealed with its WAL, and what is sealed restores.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Setup};
use crate::load::{Load, compare};
use crate::program::{Ended, receive, run, start, walhold};
use crate::room::{Outcome, Room, SOON, wait_until};
use crate::stock::{amcheck, names, plain_copy, segment_at, verify_backup};

/// `walhold backup --repo REPO` of a server.
#[track_caller]
pub(crate) fn backup(room: &Room, repo: &Path, server: &Cluster<'_>) -> Ended {
    run(walhold(room, "backup").arg("--repo").arg(repo).args(["-d", &server.conninfo()]))
}

/// `walhold verify --repo REPO`.
#[track_caller]
pub(crate) fn verify(room: &Room, repo: &Path) -> Ended {
    run(walhold(room, "verify").arg("--repo").arg(repo))
}

/// `walhold restore --repo REPO -D DATA`, with more arguments.
#[track_caller]
pub(crate) fn restore(room: &Room, repo: &Path, data: &Path, more: &[&str]) -> Ended {
    run(walhold(room, "restore").arg("--repo").arg(repo).arg("-D").arg(data).args(more))
}

/// Restores the latest backup and starts it; recovery has ended.
#[track_caller]
pub(crate) fn restored<'a>(room: &'a Room, repo: &Path, name: &str) -> Cluster<'a> {
    let data = room.path(&format!("{name}-data"));
    restore(room, repo, &data, &[]).expect(0);
    let mut server = Cluster::restored(room, name, data);
    server.start();
    server.wait_for_promotion();
    server
}

/// A receiver that is started while a backup streams its own WAL waits for the end of it.
pub(crate) fn then_a_receiver(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    primary.rows("create table bulk as select i, repeat(md5(i::text), 30) as x from generate_series(1, 20000) i");
    let (repo, conninfo) = (room.path("repo"), primary.conninfo());
    let args = ["-d", &conninfo, "--max-rate", "15M"];
    let running = start(walhold(room, "backup").arg("--repo").arg(&repo).args(args));
    wait_until("the backup to hold the repository", SOON, || names_in(&repo.join("wal")) > 0);
    let receiver = receive(room, &repo, &conninfo, &[]);
    receiver.wait_for("a backup holds the repository");
    run(walhold(room, "receive").arg("--repo").arg(&repo).args(["-d", &conninfo, "-n"]))
        .refused(1, &["walhold backup"]);
    running.wait(SOON).expect(0);
    receiver.wait_until_it_streams(&primary);
    primary.switch_segment();
    primary.wait_for_slot("walhold", primary.flushed());
    receiver.terminate().expect(0);
    verify(room, &repo).expect(0);
    Ok(())
}

fn names_in(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

/// The main job, with PostgreSQL's own tools as judges.
pub(crate) fn under_load(room: &Room) -> Outcome {
    let mut primary = Cluster::with(room, "primary", &Setup { segment_mb: 16, ..Setup::default() });
    Load::prepare(&primary);
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &["--synchronous"]);
    receiver.wait_until_it_streams(&primary);
    primary.require_standby("walhold");
    let load = Load::start(&primary, 3);
    load.wait_for_more(100);
    backup(room, &repo, &primary).expect(0);
    load.wait_for_more(500);
    primary.destroy();
    let acknowledged = load.finish();
    receiver.terminate().expect(0);
    verify(room, &repo).expect(0).says("USABLE");

    let data = room.path("restored-data");
    restore(room, &repo, &data, &[]).expect(0);
    let plain = plain_copy(room, &repo.join("wal"), "plain");
    let judged = verify_backup(room, &data, &plain);
    let mut server = Cluster::restored(room, "restored", data);
    server.start();
    server.wait_for_promotion();
    compare(&acknowledged, &server);
    amcheck(room, &server);
    judged
}

/// No write comes, no segment ends, and the backup is whole all the same.
pub(crate) fn idle_beside_receiver(room: &Room) -> Outcome {
    let primary = Cluster::with(room, "primary", &Setup { segment_mb: 16, ..Setup::default() });
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    sealed_at_once(room, &repo, &primary);
    receiver.terminate().expect(0);
    restored(room, &repo, "restored");
    Ok(())
}

/// Nobody streams: the backup's session does, as far as the backup needs it.
pub(crate) fn idle_alone(room: &Room) -> Outcome {
    let primary = Cluster::with(room, "primary", &Setup { segment_mb: 16, ..Setup::default() });
    primary.rows("create table kept as select 42 as answer");
    let repo = room.path("repo");
    sealed_at_once(room, &repo, &primary);
    assert_eq!(primary.sql("select count(*) from pg_replication_slots"), "0", "a slot was left behind");
    // Once more, with WAL in between that no one captured.
    for _ in 0..3 {
        primary.switch_segment();
    }
    sealed_at_once(room, &repo, &primary);
    assert_eq!(verify(room, &repo).expect(0).out.matches("USABLE").count(), 2);
    assert_eq!(restored(room, &repo, "restored").sql("select answer from kept"), "42");
    Ok(())
}

#[track_caller]
fn sealed_at_once(room: &Room, repo: &Path, server: &Cluster<'_>) {
    let begun = Instant::now();
    backup(room, repo, server).expect(0);
    let taken = begun.elapsed();
    // A segment ends by itself after archive_timeout or never; a copy of this size takes two seconds.
    assert!(taken < Duration::from_secs(20), "the backup of an idle server took {taken:?}");
}

/// A tablespace comes back where it is told to.
pub(crate) fn tablespaces(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let (old, new) = (room.path("old-space"), room.path("new-space"));
    room.make_dir(&old);
    primary.rows(&format!("create tablespace elsewhere location '{}'", old.display()));
    primary.rows("create table far tablespace elsewhere as select i from generate_series(1, 1000) i");
    let repo = room.path("repo");
    backup(room, &repo, &primary).expect(0);
    let map = format!("{}={}", old.display(), new.display());
    let data = room.path("restored-data");
    // Its old place is still in use.
    restore(room, &repo, &data, &[]).refused(1, &[old.to_str().unwrap()]);
    assert!(!data.exists(), "a refused restore wrote {:?}", names(&data));
    restore(room, &repo, &data, &["-T", &map]).expect(0);
    let mut server = Cluster::restored(room, "restored", data);
    server.start();
    server.wait_for_promotion();
    assert_eq!(server.sql("select count(*) from far"), "1000");
    assert_eq!(
        server.sql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'elsewhere'"),
        new.to_str().unwrap()
    );
    Ok(())
}

/// A standby ends no segment and writes no end-of-backup record.
pub(crate) fn of_standby(room: &Room) -> Outcome {
    let mut primary = Cluster::new(room, "primary");
    let standby = primary.standby("standby");
    Load::prepare(&primary);
    let load = Load::start(&primary, 2);
    load.wait_for_more(200);
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &standby.conninfo(), &[]);
    receiver.wait_until_it_streams(&standby);
    backup(room, &repo, &standby).expect(0);
    load.wait_for_more(200);
    let acknowledged = load.finish();
    let end = primary.flushed();
    standby.wait_for_slot("walhold", end);
    receiver.terminate().expect(0);
    verify(room, &repo).expect(0);
    let server = restored(room, &repo, "restored");
    compare(&acknowledged, &server);
    amcheck(room, &server);
    Ok(())
}

/// A standby fed from the repository goes on while the archive grows.
pub(crate) fn standby(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    primary.rows("create table news (n int)");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    let data = room.path("standby-data");
    restore(room, &repo, &data, &["--standby"]).expect(0);
    assert!(data.join("standby.signal").exists());
    let mut standby = Cluster::restored(room, "standby", data);
    standby.start();
    for n in 1..=2 {
        primary.rows(&format!("insert into news values ({n})"));
        primary.switch_segment();
        wait_until("the news to arrive", SOON, || standby.sql("select count(*) from news") == n.to_string());
    }
    assert_eq!(standby.sql("select pg_is_in_recovery()"), "t", "a standby must not promote itself\n{}", standby.log());
    receiver.terminate().expect(0);
    Ok(())
}

/// A repository with one usable backup, of which one WAL file is then lost.
pub(crate) fn missing_segment(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    Load::prepare(&primary);
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    let load = Load::start(&primary, 2);
    backup(room, &repo, &primary).expect(0);
    load.finish();
    receiver.terminate().expect(0);
    let data = room.path("good-data");
    restore(room, &repo, &data, &[]).expect(0);
    let label = fs::read_to_string(data.join("backup_label")).unwrap();
    let start = label.lines().next().unwrap().split_whitespace().nth(3).unwrap();
    let segment = segment_at(1, crate::cluster::lsn(start), 1 << 20);
    for name in names(&repo.join("wal")).into_iter().filter(|n| n.starts_with(&segment)) {
        fs::remove_file(repo.join("wal").join(name)).unwrap();
    }
    not_usable(room, &repo, &segment);
    Ok(())
}

/// One byte of the copied files changes.
pub(crate) fn damaged_file(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let repo = room.path("repo");
    backup(room, &repo, &primary).expect(0);
    let backups = repo.join("backups");
    let folder = backups.join(&names(&backups)[0]);
    let file = names(&folder).into_iter().find(|n| n.starts_with("base.tar")).expect("the main archive");
    let mut bytes = fs::read(folder.join(&file)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    room.write(&folder.join(&file), bytes);
    not_usable(room, &repo, &file);
    Ok(())
}

#[track_caller]
fn not_usable(room: &Room, repo: &Path, culprit: &str) {
    verify(room, repo).expect(4).says("NOT USABLE").says(culprit);
    let data = room.path("refused-data");
    restore(room, repo, &data, &[]).refused(4, &[culprit]);
    assert!(!data.exists(), "a refused restore wrote {:?}", names(&data));
}
