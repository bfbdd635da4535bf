//! P3: a backup is sealed with its WAL, and what is sealed restores.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cluster::{Cluster, Setup, Stop};
use crate::load::{Load, compare};
use crate::program::{Ended, receive, run, start, walhold};
use crate::room::{Outcome, Room, SOON, wait_until};
use crate::seeding::IMPATIENT;
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

/// The receiver hangs while the files are copied, and the backup is killed while it waits for WAL. It
/// is sealed by the receiver as soon as that has gone on.
pub(crate) fn sealed_later(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    let mut command = walhold(room, "backup");
    command.arg("--repo").arg(&repo).args(["--max-rate", "10M", "-d", &primary.conninfo()]);
    let running = start(&mut command);
    running.wait_for("starts at");
    receiver.signal(Signal::STOP);
    let pending =
        || names(&repo.join("backups")).pop().map(|id| repo.join("backups").join(id).join("backup.pending.json"));
    wait_until("the copy to end", SOON, || {
        pending().is_some_and(|path| fs::read_to_string(path).is_ok_and(|text| text.contains("\"stop_time\"")))
    });
    assert!(running.kill().killed());
    let data = room.path("too-early");
    restore(room, &repo, &data, &[]).refused(4, &["no complete backup"]);
    let id = names(&repo.join("backups")).remove(0);
    restore(room, &repo, &data, &[&id]).refused(4, &[&id, "waits for WAL up to"]);

    receiver.signal(Signal::CONT);
    primary.rows("create table after_it as select 1");
    primary.switch_segment();
    wait_until("the receiver to seal it", SOON, || !pending().is_some_and(|path| path.exists()));
    receiver.terminate().expect(0).says("its WAL has come");
    verify(room, &repo).expect(0).says("USABLE");
    restored(room, &repo, "restored");
    Ok(())
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

/// A standby fed from the repository goes on while the archive grows. While the storage is away it waits or
/// ends, as it was told, and never promotes itself.
pub(crate) fn standby(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    primary.rows("create table news (n int)");
    let (repo, away) = (room.path("repo"), room.path("away"));
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    let data = room.path("standby-data");
    restore(room, &repo, &data, &["--standby"]).expect(0);
    assert!(data.join("standby.signal").exists());
    let mut standby = Cluster::restored(room, "standby", data);
    standby.configure(&[IMPATIENT]);
    standby.start();
    let news = |standby: &Cluster<'_>, n: usize| {
        primary.rows(&format!("insert into news values ({n})"));
        primary.switch_segment();
        wait_until("the news to arrive", SOON, || standby.sql("select count(*) from news") == n.to_string());
    };
    news(&standby, 1);
    news(&standby, 2);
    receiver.terminate().expect(0);

    // The mount point without what is mounted there.
    fs::rename(&repo, &away).unwrap();
    room.make_dir(&repo);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(standby.sql("select count(*) from news"), "2", "{}", standby.log());
    assert_eq!(standby.sql("select pg_is_in_recovery()"), "t", "a standby must not promote itself\n{}", standby.log());
    fs::remove_dir(&repo).unwrap();
    fs::rename(&away, &repo).unwrap();
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    news(&standby, 3);
    receiver.terminate().expect(0);

    standby.stop(Stop::Fast);
    give_up_after(room, &standby, "300ms");
    standby.start();
    fs::set_permissions(repo.join("wal"), fs::Permissions::from_mode(0o000)).unwrap();
    standby.wait_for_end(SOON);
    assert!(!standby.log().contains("selected new timeline"), "{}", standby.log());
    fs::set_permissions(repo.join("wal"), fs::Permissions::from_mode(0o700)).unwrap();
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    standby.start();
    news(&standby, 4);
    assert_eq!(standby.sql("select pg_is_in_recovery()"), "t", "{}", standby.log());
    receiver.terminate().expect(0);
    Ok(())
}

/// Sets how long a restored server's `wal-get` goes on asking what is unknown.
pub(crate) fn give_up_after(room: &Room, server: &Cluster<'_>, time: &str) {
    let path = server.data().join("postgresql.auto.conf");
    let text = fs::read_to_string(&path).unwrap();
    let (before, after) = text.rsplit_once(" %f ").expect("a restore_command");
    room.write(&path, format!("{before} --unknown-timeout {time} %f {after}"));
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
