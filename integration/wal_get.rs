//! P8: `restore_command` answers found, proven absent, or unknown. Unknown never ends a recovery.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::backup::{backup, give_up_after, restore};
use crate::cluster::{Cluster, Lsn};
use crate::disk_full::Mount;
use crate::load::{Load, compare};
use crate::program::{Ended, receive, run, start, walhold};
use crate::room::{Outcome, Room, SOON, skip, wait_until};
use crate::stock::{first_byte, names, segment_at, segments};

const SEGMENT: u64 = 1 << 20;

#[track_caller]
fn wal_get(room: &Room, repo: &Path, file: &str) -> Ended {
    let target = room.path("fetched");
    let _ = fs::remove_file(&target);
    run(walhold(room, "wal-get").arg("--repo").arg(repo).args(["--unknown-timeout", "100ms"]).arg(file).arg(&target))
}

/// 0 with the file, 1 where it is certain that there is none, 255 for all else.
pub(crate) fn contract(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let (repo, wal) = (room.path("repo"), room.path("repo").join("wal"));
    let receiver = receive(room, &repo, &primary.conninfo(), &["-Z", "none"]);
    receiver.wait_until_it_streams(&primary);
    let first = primary.sql("select pg_walfile_name(pg_current_wal_flush_lsn())");
    for _ in 0..5 {
        primary.switch_segment();
    }
    let end = primary.flushed();
    primary.wait_for_slot("walhold", end);
    receiver.terminate().expect(0);

    wal_get(room, &repo, &first).expect(0);
    let served = fs::read(primary.data().join("pg_wal").join(&first)).unwrap();
    assert!(fs::read(room.path("fetched")).unwrap() == served, "{first} is not the server's");

    // Past the end, and histories of timelines that nobody has seen.
    for absent in [&segment_at(1, Lsn(end.0 + 3 * SEGMENT), SEGMENT), "00000002.history"] {
        wal_get(room, &repo, absent).expect(1);
        assert!(!room.path("fetched").exists());
    }

    // A hole with later WAL behind it.
    let hole = segments_of_any_kind(&wal)[2].clone();
    let hidden = room.path("hidden");
    fs::rename(wal.join(&hole), &hidden).unwrap();
    unknown(room, &repo, hole.split('.').next().unwrap());
    fs::rename(&hidden, wal.join(&hole)).unwrap();

    // Damage.
    let whole = fs::read(wal.join(&hole)).unwrap();
    room.write(&wal.join(&hole), &whole[..whole.len() / 2]);
    unknown(room, &repo, hole.split('.').next().unwrap());
    room.write(&wal.join(&hole), &whole);

    // An empty mount point in place of the repository, or of its archive; and nothing at all.
    let empty = room.path("empty");
    room.make_dir(&empty);
    unknown(room, &empty, &first);
    unknown(room, &room.path("nowhere"), &first);
    let aside = room.path("aside");
    fs::rename(&wal, &aside).unwrap();
    unknown(room, &repo, &first);
    unknown(room, &repo, "00000002.history");
    fs::rename(&aside, &wal).unwrap();

    // A folder that may not be read.
    fs::set_permissions(&wal, fs::Permissions::from_mode(0o000)).unwrap();
    unknown(room, &repo, &first);
    unknown(room, &repo, "00000002.history");
    fs::set_permissions(&wal, fs::Permissions::from_mode(0o700)).unwrap();

    // A repository.json that is not what was written.
    let identity = repo.join("repository.json");
    let text = fs::read_to_string(&identity).unwrap();
    room.write(&identity, text.replacen('1', "2", 1));
    unknown(room, &repo, "00000002.history");
    room.write(&identity, text);

    // Arguments that are none; a target that cannot be written.
    assert_eq!(run(&mut walhold(room, "wal-get")).status.code(), Some(255));
    assert_eq!(run(walhold(room, "wal-get").args(["--nonsense", "x"])).status.code(), Some(255));
    unknown(room, &repo, "../../etc/passwd");
    unknown(room, &repo, "");
    let nowhere = room.path("no/such/folder");
    run(walhold(room, "wal-get").arg("--repo").arg(&repo).arg(&first).arg(&nowhere)).expect(255);
    wal_get(room, &repo, &first).expect(0);
    interrupted(room, &repo, &first);
    orphaned(room, &repo, &hole);
    without_room(room, &repo, &first)
}

/// Ended at any moment, by a signal that it does not catch, it leaves the whole file or nothing.
fn interrupted(room: &Room, repo: &Path, file: &str) {
    let folder = room.path("interrupted");
    room.make_dir(&folder);
    let mut whole = 0;
    for step in 0..60 {
        let target = folder.join("RECOVERYXLOG");
        let running = start(walhold(room, "wal-get").arg("--repo").arg(repo).arg(file).arg(&target));
        std::thread::sleep(Duration::from_micros(step * 300));
        let ended = running.end_by(if step % 2 == 0 { Signal::TERM } else { Signal::KILL });
        assert!(ended.killed() || ended.status.code() == Some(0), "{ended}");
        match fs::metadata(&target) {
            Ok(meta) => assert_eq!(meta.len(), SEGMENT, "half a file was left"),
            Err(_) => assert!(ended.killed(), "{ended}"),
        }
        whole += names(&folder).len();
        assert!(names(&folder).iter().all(|name| name == "RECOVERYXLOG"), "{:?}", names(&folder));
        let _ = fs::remove_file(&target);
    }
    assert!(whole < 60, "none was interrupted");
}

/// One that still asks when its server has gone must not give the next server a file that that one has not
/// asked for.
fn orphaned(room: &Room, repo: &Path, file: &str) {
    let (held, hidden, target) = (repo.join("wal").join(file), room.path("hidden"), room.path("orphaned"));
    fs::rename(&held, &hidden).unwrap();
    let line = format!(
        "{} wal-get --repo {} --unknown-timeout 30s {} {} & sleep 0.5",
        room.program().display(),
        repo.display(),
        file.split('.').next().unwrap(),
        target.display()
    );
    run(room.command("/bin/sh").args(["-c", &line])).expect(0).says("whoever asked has gone");
    fs::rename(&hidden, &held).unwrap();
    assert!(!target.exists());
}

/// A disk that is full is not the end of WAL, which `cp` would say.
fn without_room(room: &Room, repo: &Path, file: &str) -> Outcome {
    let Some(_disk) = Mount::new(room, &room.path("small"), 1) else {
        skip!("a small file system can be mounted only by root, where the machine allows it");
    };
    let target = room.path("small").join("RECOVERYXLOG");
    room.write(&room.path("small").join("other"), [7; 100_000]);
    let ask = |file: &str| {
        let flags = ["--unknown-timeout", "100ms", file];
        run(walhold(room, "wal-get").arg("--repo").arg(repo).args(flags).arg(&target))
    };
    ask(file).expect(255).says("No space left");
    assert_eq!(names(&room.path("small")), ["other"]);
    fs::remove_file(room.path("small").join("other")).unwrap();
    ask(file).expect(0);
    Ok(())
}

/// A server whose repository is away, or has lost a file, waits and then stops. It never takes that
/// for the end of its WAL.
pub(crate) fn recovery(room: &Room) -> Outcome {
    let mut primary = Cluster::new(room, "primary");
    Load::prepare(&primary);
    let (repo, away) = (room.path("repo"), room.path("away"));
    let receiver = receive(room, &repo, &primary.conninfo(), &["--synchronous"]);
    receiver.wait_until_it_streams(&primary);
    primary.require_standby("walhold");
    backup(room, &repo, &primary).expect(0);
    let load = Load::start(&primary, 2);
    load.wait_for_more(200);
    let middle = primary.flushed();
    for _ in 0..3 {
        primary.switch_segment();
        load.wait_for_more(50);
    }
    primary.destroy();
    let acknowledged = load.finish();
    receiver.terminate().expect(0);
    let data = room.path("restored-data");
    restore(room, &repo, &data, &[]).expect(0);
    let mut server = Cluster::restored(room, "restored", data);
    give_up_after(room, &server, "300ms");

    fs::rename(&repo, &away).unwrap();
    server.start_in_vain();
    fs::rename(&away, &repo).unwrap();

    // In the middle: one file is lost, or may not be read; or all of it is away.
    let segment = segment_at(1, middle, SEGMENT);
    let lost = names(&repo.join("wal")).into_iter().find(|name| name.starts_with(&segment)).expect("a segment");
    let lost = repo.join("wal").join(lost);
    let hidden = room.path("hidden");
    fs::rename(&lost, &hidden).unwrap();
    server.start_in_vain();
    fs::rename(&hidden, &lost).unwrap();
    let may = |mode| fs::set_permissions(&lost, fs::Permissions::from_mode(mode)).unwrap();
    may(0o000);
    server.start_in_vain();

    give_up_after(room, &server, "60s");
    let come = |server: &Cluster<'_>| server.whole_log().matches(&before(&segment)).count();
    let times = come(&server);
    server.launch();
    wait_until("recovery to come to it", SOON, || come(&server) > times);
    fs::rename(&repo, &away).unwrap();
    room.make_dir(&repo);
    let lost = away.join("wal").join(lost.file_name().unwrap());
    fs::set_permissions(&lost, fs::Permissions::from_mode(0o600)).unwrap();
    std::thread::sleep(Duration::from_millis(1000));
    assert!(!server.whole_log().contains("redo done"), "{}", server.log());
    fs::remove_dir(&repo).unwrap();
    fs::rename(&away, &repo).unwrap();
    server.wait_for_answer();
    server.wait_for_promotion();
    compare(&acknowledged, &server);
    Ok(())
}

/// What the server says when it has got the segment before this one.
fn before(segment: &str) -> String {
    let Lsn(start) = first_byte(segment, SEGMENT);
    format!("restored log file \"{}\" from archive", segment_at(1, Lsn(start - 1), SEGMENT))
}

#[track_caller]
fn unknown(room: &Room, repo: &Path, file: &str) {
    wal_get(room, repo, file).expect(255);
    assert!(!room.path("fetched").exists(), "half a file was left");
}

fn segments_of_any_kind(wal: &Path) -> Vec<String> {
    let plain = segments(wal);
    if plain.len() > 3 { plain } else { names(wal).into_iter().filter(|n| n.len() >= 24).collect() }
}
