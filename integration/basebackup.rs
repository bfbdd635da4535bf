//! Base backups outside of a repository, by the flags of pg_basebackup.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::cluster::{Cluster, Setup};
use crate::load::{Load, compare};
use crate::program::{run, start, walhold};
use crate::room::{Outcome, Room, SOON, wait_until};
use crate::stock::{amcheck, is_segment, names, verify_backup};

/// `walhold basebackup` of a server, with more arguments.
fn basebackup(room: &Room, server: &Cluster<'_>, more: &[&str]) -> Command {
    let mut command = walhold(room, "basebackup");
    command.args(["-d", &server.conninfo(), "-c", "fast"]).args(more);
    command
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A server with two tablespaces, and a table in each.
fn with_tablespaces(room: &Room) -> (Cluster<'_>, [PathBuf; 2]) {
    let primary = Cluster::with(room, "primary", &Setup { segment_mb: 16, ..Setup::default() });
    let places = ["one", "two"].map(|name| room.path(name));
    for (place, name) in places.iter().zip(["one", "two"]) {
        room.make_dir(place);
        primary.rows(&format!("create tablespace {name} location '{}'", place.display()));
        primary.rows(&format!("create table in_{name} tablespace {name} as select generate_series(1, 5000) i"));
    }
    Load::prepare(&primary);
    (primary, places)
}

/// What `-T` takes to put the tablespaces elsewhere, and where that is.
fn elsewhere(room: &Room, places: &[PathBuf; 2], prefix: &str) -> ([String; 2], [PathBuf; 2]) {
    let new = ["one", "two"].map(|name| room.path(&format!("{prefix}-{name}")));
    let mapping = |at: usize| format!("-T{}={}", places[at].display(), new[at].display());
    ([mapping(0), mapping(1)], new)
}

/// Starts what was copied; recovery has ended, and all is there.
fn started<'a>(room: &'a Room, name: &str, data: PathBuf, acknowledged: &[i64]) -> Cluster<'a> {
    let mut server = Cluster::restored(room, name, data);
    server.start();
    server.wait_for_promotion();
    compare(acknowledged, &server);
    amcheck(room, &server);
    server
}

/// A data directory, its WAL and its tablespaces, each in a place of its own, while commits go on.
pub(crate) fn plain(room: &Room) -> Outcome {
    let (primary, places) = with_tablespaces(room);
    let load = Load::start(&primary, 2);
    load.wait_for_more(200);
    let acknowledged = load.so_far();
    let (data, wal) = (room.path("copy"), room.path("copy-wal"));
    let ([one, two], moved) = elsewhere(room, &places, "copy");
    run(&mut basebackup(room, &primary, &["-D", text(&data), "--waldir", text(&wal), &one, &two])).expect(0);
    load.finish();
    assert_eq!(fs::read_link(data.join("pg_wal")).unwrap(), wal);
    for place in &moved {
        assert!(!names(place).is_empty());
    }
    assert!(
        names(&wal).iter().all(|name| is_segment(name) || ["archive_status", "summaries"].contains(&name.as_str()))
    );
    let judged = verify_backup(room, &data, &wal);
    let server = started(room, "started", data, &acknowledged);
    assert_eq!(server.sql("select sum(i) from in_one"), "12502500");
    judged
}

/// One tar for each archive, in every compression, unpacked with the programs of their names.
pub(crate) fn tar(room: &Room) -> Outcome {
    let (primary, places) = with_tablespaces(room);
    let load = Load::start(&primary, 2);
    let mut kinds = vec![
        (vec![], "tar", "cat"),
        (vec!["-z"], "tar.gz", "gzip -dc"),
        (vec!["-Z", "lz4:5"], "tar.lz4", "lz4 -dc"),
        (vec!["-Z", "zstd:level=2,workers=2,long"], "tar.zst", "zstd -dc"),
    ];
    if room.server.major >= 15 {
        kinds.push((vec!["-Z", "server-gzip:1"], "tar.gz", "gzip -dc"));
        kinds.push((vec!["-Z", "server-lz4"], "tar.lz4", "lz4 -dc"));
        kinds.push((vec!["-Z", "server-zstd:3", "-X", "fetch"], "tar.zst", "zstd -dc"));
    }
    let mut judged = Ok(());
    for (at, (arguments, suffix, decode)) in kinds.iter().enumerate() {
        load.wait_for_more(50);
        let acknowledged = load.so_far();
        let dir = room.path(&format!("tars{at}"));
        let ended = run(basebackup(room, &primary, &["-D", text(&dir), "-Ft"]).args(arguments));
        if ended.err.contains("this build does not support compression") {
            continue;
        }
        ended.expect(0);
        let data = room.path(&format!("data{at}"));
        let unpack = |archive: &str, decode: &str, into: &Path| {
            if !into.exists() {
                room.make_dir(into);
            }
            let script = format!("{decode} '{}' | tar xf - -C '{}'", dir.join(archive).display(), into.display());
            room.must(room.command("bash").args(["-o", "pipefail", "-c", &script]));
        };
        unpack(&format!("base.{suffix}"), decode, &data);
        let gzip = dir.join("pg_wal.tar.gz").exists();
        assert_eq!(gzip, arguments == &["-z"]);
        if gzip {
            unpack("pg_wal.tar.gz", "gzip -dc", &data.join("pg_wal"));
        } else if dir.join("pg_wal.tar").exists() {
            unpack("pg_wal.tar", "cat", &data.join("pg_wal"));
        } else {
            assert!(arguments.contains(&"fetch"));
        }
        room.write(&data.join("backup_manifest"), fs::read(dir.join("backup_manifest")).unwrap());
        // By hand, as an operator would: the tablespaces beside it, and the map that says where.
        let map = fs::read_to_string(data.join("tablespace_map")).unwrap();
        let mut moved = String::new();
        for line in map.lines() {
            let (oid, place) = line.split_once(' ').unwrap();
            let new = room.path(&format!("data{at}-{oid}"));
            assert!(places.iter().any(|known| text(known) == place));
            unpack(&format!("{oid}.{suffix}"), decode, &new);
            moved += &format!("{oid} {}\n", new.display());
            std::os::unix::fs::symlink(&new, data.join("pg_tblspc").join(oid)).unwrap();
        }
        let found = verify_backup(room, &data, &data.join("pg_wal"));
        judged = judged.and(found);
        room.write(&data.join("tablespace_map"), moved);
        for oid in names(&data.join("pg_tblspc")) {
            fs::remove_file(data.join("pg_tblspc").join(oid)).unwrap();
        }
        drop(started(room, &format!("started{at}"), data.clone(), &acknowledged));
        fs::remove_dir_all(&data).unwrap();
    }
    load.finish();
    judged
}

/// One tar, through a pipe.
pub(crate) fn standard_output(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    Load::prepare(&primary);
    let data = room.path("data");
    room.make_dir(&data);
    let mut command = basebackup(room, &primary, &["-D", "-", "-Ft", "-X", "fetch", "-R"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    room.must(room.command("tar").arg("xf").arg("-").arg("-C").arg(&data).stdin(child.stdout.take().unwrap()));
    assert!(child.wait().unwrap().success());
    let conf = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
    assert!(conf.contains("primary_conninfo = 'user=postgres"), "{conf}");
    fs::remove_file(data.join("standby.signal")).unwrap();
    let judged = verify_backup(room, &data, &data.join("pg_wal"));
    started(room, "started", data, &[]);
    judged
}

/// Of a standby, while its primary commits.
pub(crate) fn of_standby(room: &Room) -> Outcome {
    let mut primary = Cluster::new(room, "primary");
    Load::prepare(&primary);
    let standby = primary.standby("standby");
    let load = Load::start(&primary, 2);
    load.wait_for_more(200);
    let mut judged = Ok(());
    for (name, method) in [("streamed", "stream"), ("fetched", "fetch")] {
        load.wait_for_more(50);
        let data = room.path(name);
        run(&mut basebackup(room, &standby, &["-D", text(&data), "-X", method])).expect(0);
        let found = verify_backup(room, &data, &data.join("pg_wal"));
        judged = judged.and(found);
        // It is a standby's copy: without its signal it ends recovery where its WAL ends.
        fs::remove_file(data.join("standby.signal")).unwrap();
        started(room, &format!("{name}-started"), data, &[]);
    }
    load.finish();
    judged
}

/// What changed since an earlier one, put together by PostgreSQL's own program.
pub(crate) fn incremental(room: &Room) -> Outcome {
    let primary = Cluster::with(room, "primary", &Setup { segment_mb: 1, ..Setup::default() });
    let (full, data) = (room.path("full"), room.path("data"));
    let manifest = full.join("backup_manifest");
    if room.server.major < 17 {
        room.write(&room.path("manifest"), "x");
        let mut command = basebackup(room, &primary, &["-D", text(&data), "-i", "manifest"]);
        assert!(run(&mut command).expect(1).err.contains("server does not support incremental backup"));
        assert!(!data.exists());
        return Ok(());
    }
    primary.rows("alter system set summarize_wal = on");
    primary.rows("select pg_reload_conf()");
    Load::prepare(&primary);
    let load = Load::start(&primary, 2);
    load.wait_for_more(100);
    run(&mut basebackup(room, &primary, &["-D", text(&full)])).expect(0);
    load.wait_for_more(100);
    let acknowledged = load.so_far();
    let increment = room.path("increment");
    run(&mut basebackup(room, &primary, &["-D", text(&increment), "-i", text(&manifest)])).expect(0);
    load.finish();
    let combine = room.tool("pg_combinebackup")?;
    room.must(room.command(combine).arg(&full).arg(&increment).arg("-o").arg(&data));
    let judged = verify_backup(room, &data, &data.join("pg_wal"));
    started(room, "started", data, &acknowledged);
    judged
}

/// A standby with nothing done by hand.
pub(crate) fn seeds_a_standby(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    Load::prepare(&primary);
    let load = Load::start(&primary, 2);
    load.wait_for_more(100);
    let data = room.path("data");
    run(&mut basebackup(room, &primary, &["-D", text(&data), "-R", "-C", "-S", "seeded"])).expect(0);
    load.wait_for_more(100);
    let mut standby = Cluster::restored(room, "standby", data);
    standby.start();
    let streams = "select count(*) from pg_stat_replication where state = 'streaming'";
    wait_until("the standby to stream", SOON, || primary.sql(streams) == "1");
    assert_eq!(primary.sql("select active from pg_replication_slots where slot_name = 'seeded'"), "t");
    load.wait_for_more(100);
    let acknowledged = load.finish();
    let end = primary.flushed();
    let replayed = format!("select pg_last_wal_replay_lsn() >= '{end}'");
    wait_until("the standby to replay", SOON, || standby.sql(&replayed) == "t");
    compare(&acknowledged, &standby);
    Ok(())
}

/// A signal in the middle leaves nothing.
pub(crate) fn interrupted(room: &Room) -> Outcome {
    let (primary, places) = with_tablespaces(room);
    primary.rows(
        "create table bulk tablespace one as select i, repeat(md5(i::text), 30) as x from generate_series(1, 20000) i",
    );
    for (at, (signal, format)) in [(Signal::INT, "-Fp"), (Signal::TERM, "-Fp"), (Signal::INT, "-Ft")].iter().enumerate()
    {
        let (data, wal) = (room.path(&format!("copy{at}")), room.path(&format!("wal{at}")));
        let ([one, two], moved) = elsewhere(room, &places, &format!("copy{at}"));
        // One that was there stays, and is empty again.
        room.make_dir(&moved[0]);
        let mut command =
            basebackup(room, &primary, &["-D", text(&data), format, "--max-rate", "4M", "-v", "-C", "-S", "gone"]);
        if *format == "-Fp" {
            command.args(["--waldir", text(&wal), &one, &two]);
        }
        let running = start(&mut command);
        running.wait_for("starting background WAL receiver");
        wait_until("files", SOON, || fs::read_dir(&data).is_ok_and(|dir| dir.count() > 0));
        std::thread::sleep(Duration::from_millis(300));
        running.signal(*signal);
        running.wait(SOON).expect(1);
        assert!(!data.exists() && !wal.exists() && !moved[1].exists(), "something is left");
        assert_eq!(names(&moved[0]), [""; 0]);
        assert_eq!(primary.sql("select count(*) from pg_replication_slots"), "0");
    }
    Ok(())
}
