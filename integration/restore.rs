//! Laying backups down: over what is there, broken off, and without room.

use std::fs;
use std::path::Path;

use rustix::process::Signal;

use crate::backup::{backup, restore};
use crate::cluster::{Cluster, Stop};
use crate::disk_full::Mount;
use crate::load::Load;
use crate::program::{Running, receive, start, walhold};
use crate::room::{Outcome, Room, SOON, skip};
use crate::stock::{amcheck, names};

const TABLE: &str = "select md5(string_agg(t::text, ',' order by i)) from bulk t";

/// What a server has changed is as it was in the backup again, and what it has not is not written.
pub(crate) fn delta(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let (old, new) = (room.path("old-space"), room.path("new-space"));
    room.make_dir(&old);
    primary.rows(&format!("create tablespace elsewhere location '{}'", old.display()));
    primary.rows("create table bulk as select i, repeat(md5(i::text), 10) as x from generate_series(1, 20000) i");
    primary.rows("create table far tablespace elsewhere as select i from generate_series(1, 1000) i");
    let (repo, data) = (room.path("repo"), room.path("restored-data"));
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    primary.rows("insert into bulk values (0, 'after the backup')");
    let expected = primary.sql(TABLE);
    primary.switch_segment();
    primary.wait_for_slot("walhold", primary.flushed());
    receiver.terminate().expect(0);

    let map = format!("{}={}", old.display(), new.display());
    restore(room, &repo, &data, &["-T", &map, "--delta"]).expect(0).says("start the server with: pg_ctl -D");
    let mut server = Cluster::restored(room, "restored", data.clone());
    server.start();
    server.wait_for_promotion();
    assert_eq!(server.sql(TABLE), expected);
    server.rows("update bulk set x = 'changed' where i < 100");
    server.rows("create table more as select i from generate_series(1, 1000) i");
    server.rows("create table more_far tablespace elsewhere as select 1");
    // It runs; then it was killed, and its file was left.
    restore(room, &repo, &data, &["-T", &map, "--delta"]).refused(1, &["postmaster.pid names process"]);
    server.stop(Stop::Immediate);
    room.write(&data.join("postmaster.pid"), "4194304\n");
    restore(room, &repo, &data, &["-T", &map]).refused(1, &["is not an empty directory"]);
    // Killed, it can be gone on with, and not be started.
    let killed = deltaing(room, &repo, &data, &map);
    killed.wait_for("restoring backup");
    assert!(killed.kill().killed());
    restore(room, &repo, &data, &["-T", &map, "--delta"]).expect(0).says("kept").says("the server will read WAL from");
    // The map says where the tablespace is now.
    room.must(room.command(room.tool("pg_verifybackup")?).args(["-n", "-i", "tablespace_map"]).arg(&data));
    server.start();
    server.wait_for_promotion();
    assert_eq!(server.sql(TABLE), expected);
    assert_eq!(server.sql("select count(*) from far"), "1000");
    assert_eq!(server.sql("select count(*) from pg_class where relname like 'more%'"), "0");
    amcheck(room, &server);
    Ok(())
}

fn deltaing(room: &Room, repo: &Path, data: &Path, map: &str) -> Running {
    start(walhold(room, "restore").arg("--repo").arg(repo).arg("-D").arg(data).args(["--delta", "-T", map]))
}

/// Told to stop, it removes what it has made.
pub(crate) fn stopped(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    // Enough for a moment in the middle of it.
    primary.rows("create table bulk as select i, repeat(md5(i::text), 30) as x from generate_series(1, 60000) i");
    let repo = room.path("repo");
    backup(room, &repo, &primary).expect(0);
    for signal in [Signal::INT, Signal::TERM] {
        let data = room.path("restored-data");
        let running = start(walhold(room, "restore").arg("--repo").arg(&repo).arg("-D").arg(&data));
        running.wait_for("restoring backup");
        running.signal(signal);
        running.wait(SOON).refused(1, &["stopped"]);
        assert!(!data.exists(), "{:?} was left", names(&data));
    }
    Ok(())
}

/// No server can be started on what found no room, for nothing of it is left.
pub(crate) fn disk_full(room: &Room) -> Outcome {
    // There is room for the bytes, so it is seen only when the files are made.
    let Some(disk) = Mount::with(room, &room.path("disk"), "size=500m,nr_inodes=200") else {
        skip!("a small file system can be mounted only by root, where the machine allows it");
    };
    let primary = Cluster::new(room, "primary");
    Load::prepare(&primary);
    let repo = room.path("repo");
    backup(room, &repo, &primary).expect(0);
    restore(room, &repo, &disk.0, &[]).refused(5, &["No space left"]);
    assert_eq!(names(&disk.0), Vec::<String>::new());
    restore(room, &repo, &disk.0.join("data"), &[]).refused(5, &["No space left"]);
    assert_eq!(names(&disk.0), Vec::<String>::new());
    assert!(fs::metadata(&disk.0).is_ok());
    Ok(())
}
