//! Incremental backups: what changed is copied, a chain is kept as one, and what is restored from it is what
//! PostgreSQL's own tool makes of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use walhold::image::Manifest;

use crate::backup::{backup, restore, verify};
use crate::cluster::{Cluster, Setup};
use crate::drill::drill;
use crate::load::{Load, compare};
use crate::program::{Ended, receive, run, walhold};
use crate::room::{Outcome, Room, SOON, Skip, wait_until};
use crate::stock::{amcheck, names, plain_copy, verify_backup};

/// The first that knows of them.
const FIRST: u32 = 17;

const SUMMARIZING: Setup<'static> =
    Setup { segment_mb: 1, settings: &["summarize_wal = on", "autovacuum = off"], hba: &[], own_identity: false };

fn supported(room: &Room) -> Outcome {
    let major = room.server.major;
    if major < FIRST { Err(Skip(format!("PostgreSQL {major} has no incremental backups"))) } else { Ok(()) }
}

#[track_caller]
fn incremental(room: &Room, repo: &Path, server: &Cluster<'_>) -> Ended {
    run(walhold(room, "backup").arg("--incremental").arg("--repo").arg(repo).args(["-d", &server.conninfo()]))
}

/// Names of the backups, in order.
fn ids(repo: &Path) -> Vec<String> {
    names(&repo.join("backups"))
}

/// How many rows a table has, and a digest of them.
fn digest(server: &Cluster<'_>, table: &str) -> String {
    server.sql(&format!("select count(*) || ' ' || md5(string_agg(t::text, ',' order by t::text)) from {table} t"))
}

fn digests(server: &Cluster<'_>) -> Vec<String> {
    let tables = ["account", "ledger", "shrunk", "rewritten", "grown", "far", "late"];
    let exists = |table: &&str| server.sql(&format!("select to_regclass('{table}') is not null")) == "t";
    tables.into_iter().filter(exists).map(|table| format!("{table}: {}", digest(server, table))).collect()
}

/// A full backup, two incremental ones with everything that changes files in between, the last under load.
pub(crate) fn chain_under_load(room: &Room) -> Outcome {
    supported(room)?;
    let primary = Cluster::with(room, "primary", &SUMMARIZING);
    let (old, new) = (room.path("old-space"), room.path("new-space"));
    room.make_dir(&old);
    Load::prepare(&primary);
    primary.rows(&format!("create tablespace elsewhere location '{}'", old.display()));
    primary.rows(
        "create table shrunk as select i, repeat(md5(i::text), 20) as x from generate_series(1, 5000) i;
         create table rewritten as select i, repeat('x', 200) as x from generate_series(1, 5000) i;
         create table dropped as select i from generate_series(1, 5000) i;
         create table far tablespace elsewhere as select i, repeat('y', 300) as x from generate_series(1, 5000) i",
    );
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    incremental(room, &repo, &primary).refused(1, &["no complete backup"]);
    backup(room, &repo, &primary).expect(0);

    primary.rows(
        "delete from shrunk where i > 1000; delete from rewritten where i % 2 = 0; drop table dropped;
         update far set x = 'changed' where i % 50 = 0;
         create table grown as select i, repeat('z', 500) as x from generate_series(1, 2000) i",
    );
    primary.rows("vacuum (truncate) shrunk");
    primary.rows("vacuum full rewritten");
    primary.rows("create database second");
    incremental(room, &repo, &primary).expect(0);

    let load = Load::start(&primary, 3);
    load.wait_for_more(200);
    primary.rows("insert into shrunk select i, 'again' from generate_series(5001, 9000) i");
    primary.rows("delete from grown where i > 500");
    primary.rows("vacuum (truncate) grown");
    primary.rows("create table late tablespace elsewhere as select i from generate_series(1, 500) i");
    incremental(room, &repo, &primary).expect(0);
    load.wait_for_more(200);
    let acknowledged = load.finish();
    let at_source = digests(&primary);
    primary.wait_for_slot("walhold", primary.flushed());
    receiver.terminate().expect(0);
    verify(room, &repo).expect(0).says("USABLE");
    let stored = |id: &str| fs::metadata(repo.join("backups").join(id).join("base.tar.zst")).unwrap().len();
    let ids = ids(&repo);
    assert!(stored(&ids[1]) * 2 < stored(&ids[0]), "an incremental one is much smaller");

    let map = format!("{}={}", old.display(), new.display());
    let data = room.path("restored-data");
    let plan = restore(room, &repo, &data, &["-T", &map, "--plan"]).expect(0);
    assert!(plan.out.contains(&format!("based on    {} (incremental)\nbased on    {} (full)", ids[1], ids[0])));
    restore(room, &repo, &data, &["-T", &map]).expect(0);
    as_combined(room, &repo, &ids, &data)?;
    let mut server = Cluster::restored(room, "restored", data);
    server.start();
    server.wait_for_promotion();
    compare(&acknowledged, &server);
    assert_eq!(digests(&server), at_source);
    amcheck(room, &server);
    assert_eq!(server.sql("select count(*) from pg_database where datname = 'second'"), "1");
    Ok(())
}

/// A file that was cut off and has grown again: what was behind the cut does not come back.
pub(crate) fn cut_off_and_grown(room: &Room) -> Outcome {
    supported(room)?;
    let primary = Cluster::with(room, "primary", &SUMMARIZING);
    primary.rows(
        "create table shrunk (i int, x text); alter table shrunk alter x set storage plain;
         insert into shrunk select i, repeat('x', 900) from generate_series(1, 3200) i",
    );
    primary.rows("vacuum shrunk");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    primary.rows("delete from shrunk where i > 80");
    primary.rows("vacuum (truncate) shrunk");
    incremental(room, &repo, &primary).expect(0);
    // COPY makes a file longer by more than it needs, and logs nothing of the rest.
    let rows = room.path("rows");
    let copy = "select i, repeat('y', 900) from generate_series(10001, 11000) i";
    primary.rows(&format!("copy ({copy}) to '{}'", rows.display()));
    primary.rows(&format!("copy shrunk from '{}'", rows.display()));
    incremental(room, &repo, &primary).expect(0);
    let at_source = digests(&primary);
    primary.wait_for_slot("walhold", primary.flushed());
    receiver.terminate().expect(0);
    let data = room.path("restored-data");
    restore(room, &repo, &data, &[]).expect(0);
    as_combined(room, &repo, &ids(&repo), &data)?;
    let plain = plain_copy(room, &repo.join("wal"), "plain");
    verify_backup(room, &data, &plain)?;
    let mut server = Cluster::restored(room, "restored", data);
    server.start();
    server.wait_for_promotion();
    assert_eq!(digests(&server), at_source);
    Ok(())
}

/// The same between two backups: the server's list of changes does not tell where the file was cut off, and the WAL
/// does. What is behind the cut is in no later backup, and must not come from the older one.
pub(crate) fn cut_off_and_grown_at_once(room: &Room) -> Outcome {
    supported(room)?;
    let primary = Cluster::with(room, "primary", &SUMMARIZING);
    let (old, new) = (room.path("old-space"), room.path("new-space"));
    room.make_dir(&old);
    primary.rows(&format!("create tablespace elsewhere location '{}'", old.display()));
    let tables = ["shrunk", "far"];
    for (table, place) in tables.into_iter().zip(["", "tablespace elsewhere"]) {
        primary.rows(&format!(
            "create table {table} (i int, x text) {place}; alter table {table} alter x set storage plain;
             insert into {table} select i, repeat('x', 900) from generate_series(1, 3200) i"
        ));
        primary.rows(&format!("vacuum {table}"));
    }
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    let rows = room.path("rows");
    let copy = "select i, repeat('y', 900) from generate_series(10001, 11000) i";
    primary.rows(&format!("copy ({copy}) to '{}'", rows.display()));
    for table in tables {
        primary.rows(&format!("delete from {table} where i > 80"));
        primary.rows(&format!("vacuum (truncate) {table}"));
        primary.rows(&format!("copy {table} from '{}'", rows.display()));
    }
    incremental(room, &repo, &primary).expect(0);
    let (at_source, file) = (digests(&primary), primary.sql("select pg_relation_filepath('shrunk')"));
    primary.wait_for_slot("walhold", primary.flushed());
    receiver.terminate().expect(0);
    verify(room, &repo).expect(0).says("USABLE");

    let data = room.path("restored-data");
    restore(room, &repo, &data, &["-T", &format!("{}={}", old.display(), new.display())]).expect(0);
    let restored = fs::read(data.join(&file)).unwrap();
    let mut server = Cluster::restored(room, "restored", data);
    server.start();
    server.wait_for_promotion();
    assert_eq!(digests(&server), at_source);
    amcheck(room, &server);

    // PostgreSQL's tool brings the deleted rows back: else the case would not be this one.
    let (chain, combined) = (ids(&repo), room.path("combined"));
    let parts: Vec<PathBuf> = chain.iter().map(|id| unpack(room, &repo, id)).collect();
    let mut command = room.command(&room.tool("pg_combinebackup")?);
    command.args(&parts).arg("-o").arg(&combined);
    for oid in names(&parts[1].join("pg_tblspc")) {
        let there = fs::read_link(parts[1].join("pg_tblspc").join(&oid)).unwrap();
        command.arg("-T").arg(format!("{}={}", there.display(), room.path("combined-space").display()));
    }
    room.must(&mut command);
    let deleted = |content: &[u8]| content.split(|byte| *byte != b'x').filter(|run| run.len() >= 900).count();
    let theirs = fs::read(combined.join(&file)).unwrap();
    assert!(deleted(&theirs) > 80 && deleted(&restored) <= 80, "{} {}", deleted(&theirs), deleted(&restored));
    Ok(())
}

/// All WAL since the parent must be held, for it alone tells where files were cut off.
pub(crate) fn needs_the_wal_between(room: &Room) -> Outcome {
    supported(room)?;
    let primary = Cluster::with(room, "primary", &SUMMARIZING);
    primary.rows("create table t as select i from generate_series(1, 10000) i");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    for _segment in 0..4 {
        primary.rows("update t set i = i + 1 where i % 100 = 0");
        primary.switch_segment();
    }
    primary.wait_for_slot("walhold", primary.flushed());
    // None is being compressed, so that the one that is moved away is all there is of it.
    let segments = || {
        let complete = |name: &String| !name.contains(".partial") && !name.contains("history");
        names(&repo.join("wal")).into_iter().filter(complete).collect::<Vec<_>>()
    };
    wait_until("the segments to be compressed", SOON, || segments().iter().all(|name| name.ends_with(".zst")));
    let segments = segments();
    let lost = &segments[segments.len() - 2];
    let (there, away) = (repo.join("wal").join(lost), room.path("away"));
    fs::rename(&there, &away).unwrap();
    let before = ids(&repo);
    let segment = lost.split('.').next().unwrap();
    incremental(room, &repo, &primary).refused(1, &[segment, &before[0]]);
    assert_eq!(ids(&repo), before);
    fs::rename(&away, &there).unwrap();
    incremental(room, &repo, &primary).expect(0);
    receiver.terminate().expect(0);
    verify(room, &repo).expect(0).says("USABLE");
    Ok(())
}

/// What pg_combinebackup makes of the chain, each with the one before, must be what was restored, file by file.
fn as_combined(room: &Room, repo: &Path, ids: &[String], restored: &Path) -> Outcome {
    let tool = room.tool("pg_combinebackup")?;
    let mut combined = unpack(room, repo, &ids[0]);
    for id in &ids[1..] {
        let (next, out) = (unpack(room, repo, id), room.path(&format!("combined-{id}")));
        let mut command = room.command(&tool);
        command.arg(&combined).arg(&next).arg("-o").arg(&out);
        for oid in names(&next.join("pg_tblspc")) {
            let there = fs::read_link(next.join("pg_tblspc").join(&oid)).unwrap();
            command.arg("-T").arg(format!(
                "{}={}",
                there.display(),
                room.path(&format!("combined-{id}.{oid}")).display()
            ));
        }
        room.must(&mut command);
        combined = out;
    }
    let (mut ours, mut theirs) = (files(restored), files(&combined));
    for oid in names(&combined.join("pg_tblspc")) {
        let below = |data: &Path| files(&fs::read_link(data.join("pg_tblspc").join(&oid)).unwrap());
        same(&below(restored), &below(&combined));
    }
    let list = |all: &mut BTreeMap<String, Vec<u8>>| {
        let manifest = Manifest::parse(&all.remove("backup_manifest").unwrap()).unwrap();
        let files = manifest.files().iter().filter(|file| file.path.as_bytes() != b"tablespace_map");
        (manifest.system_identifier(), files.cloned().collect::<Vec<_>>(), manifest.wal_ranges().to_vec())
    };
    assert_eq!(list(&mut ours), list(&mut theirs));
    // It tells the server how to recover.
    for name in ["recovery.signal", "tablespace_map"] {
        ours.remove(name);
    }
    let auto = "postgresql.auto.conf";
    assert!(ours.remove(auto).unwrap().starts_with(&theirs.remove(auto).unwrap()));
    same(&ours, &theirs);
    Ok(())
}

#[track_caller]
fn same(ours: &BTreeMap<String, Vec<u8>>, theirs: &BTreeMap<String, Vec<u8>>) {
    let names = |all: &BTreeMap<String, Vec<u8>>| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(ours), names(theirs));
    for (name, content) in ours {
        assert!(*content == theirs[name], "{name} differs: {} and {} bytes", content.len(), theirs[name].len());
    }
}

/// The steps of the README: tar, zstd, and a link for each tablespace.
fn unpack(room: &Room, repo: &Path, id: &str) -> PathBuf {
    let (from, to) = (repo.join("backups").join(id), room.path(id));
    let script = format!(
        "set -e
         mkdir -m 700 {to}
         zstd -dc {from}/base.tar.zst | tar -x -C {to}
         cp {from}/backup_manifest {to}/
         for tar in {from}/[0-9]*.tar.zst; do
             [ -e \"$tar\" ] || continue
             oid=$(basename \"$tar\" .tar.zst)
             mkdir -m 700 {to}.$oid
             zstd -dc \"$tar\" | tar -x -C {to}.$oid
             ln -s {to}.$oid {to}/pg_tblspc/$oid
         done
         rm -f {to}/tablespace_map",
        from = from.display(),
        to = to.display()
    );
    room.must(room.command("sh").args(["-c", &script]));
    to
}

/// All plain files below a directory, links not followed.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut all, mut dirs) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let entry = entry.unwrap();
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() {
                dirs.push(path);
            } else if kind.is_file() {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                all.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    all
}

/// What an incremental backup needs, each told with what to do.
pub(crate) fn refusals(room: &Room) -> Outcome {
    let repo = room.path("repo");
    if room.server.major < FIRST {
        let primary = Cluster::new(room, "primary");
        incremental(room, &repo, &primary).refused(1, &["17 or later"]);
        assert!(!repo.exists(), "nothing was made");
        return Ok(());
    }
    let primary = Cluster::new(room, "primary");
    backup(room, &repo, &primary).expect(0);
    incremental(room, &repo, &primary).refused(1, &["summarize_wal is off"]);
    // Nothing was summarized while the backup was made.
    primary.configure(&["summarize_wal = on"]);
    primary.rows("select pg_reload_conf()");
    primary.rows("create table t as select i from generate_series(1, 10000) i");
    primary.rows("checkpoint");
    let took = incremental(room, &repo, &primary);
    if took.status.success() {
        // The server still had the WAL, and has caught up.
        verify(room, &repo).expect(0).says("USABLE");
    } else {
        took.refused(1, &["cannot send what has changed"]);
    }
    let before = ids(&repo).len();
    primary.configure(&["summarize_wal = off"]);
    primary.rows("select pg_reload_conf()");
    incremental(room, &repo, &primary).refused(1, &["summarize_wal is off"]);
    assert_eq!(ids(&repo).len(), before, "nothing is left of one that was refused");
    Ok(())
}

/// A chain is verified, kept, drilled and expired as one.
pub(crate) fn chains_stay_whole(room: &Room) -> Outcome {
    supported(room)?;
    let primary = Cluster::with(room, "primary", &SUMMARIZING);
    primary.rows("create table t as select i from generate_series(1, 10000) i");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    for n in 0..2 {
        primary.rows(&format!("update t set i = i + 1 where i % 7 = {n}"));
        incremental(room, &repo, &primary).expect(0);
    }
    let chain = ids(&repo);
    let list = run(walhold(room, "list").arg("--repo").arg(&repo)).expect(0);
    assert_eq!((list.out.matches(" incr ").count(), list.out.matches(" full ").count()), (2, 1), "{}", list.out);
    let expire = || run(walhold(room, "expire").arg("--repo").arg(&repo).args(["--keep-last", "1"])).expect(0);
    assert!(expire().out.contains(&format!("backup {} is based on it", chain[2])));
    assert_eq!(ids(&repo), chain);
    drill(room, &repo, &[]).expect(0);

    // A parent that was damaged makes its children unusable.
    let manifest = repo.join("backups").join(&chain[0]).join("base.tar.zst");
    let whole = fs::read(&manifest).unwrap();
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    room.write(&manifest, &damaged);
    let verdicts = verify(room, &repo).expect(4);
    assert_eq!(verdicts.out.matches("NOT USABLE").count(), 3, "{}", verdicts.out);
    assert!(verdicts.out.contains(&format!("it is based on backup {}", chain[0])), "{}", verdicts.out);
    let one = run(walhold(room, "verify").arg("--repo").arg(&repo).arg(&chain[2])).expect(4);
    assert!(one.out.contains("NOT USABLE"), "{}", one.out);
    let data = room.path("restored-data");
    restore(room, &repo, &data, &[]).expect(4);
    assert!(!data.exists(), "nothing that looks whole is left");
    room.write(&manifest, &whole);
    verify(room, &repo).expect(0);

    // One that is gone, too.
    let (there, away) = (repo.join("backups").join(&chain[1]), room.path("away"));
    fs::rename(&there, &away).unwrap();
    verify(room, &repo).expect(4).says("not there");
    restore(room, &repo, &data, &[]).refused(4, &[&chain[1]]);
    let list = run(walhold(room, "list").arg("--repo").arg(&repo)).expect(0);
    assert!(list.out.contains("base missing"), "{}", list.out);
    fs::rename(&away, &there).unwrap();

    // A new full one lets the chain go, all of it.
    backup(room, &repo, &primary).expect(0);
    expire();
    assert_eq!(ids(&repo).len(), 1);
    receiver.terminate().expect(0);
    verify(room, &repo).expect(0);
    Ok(())
}
