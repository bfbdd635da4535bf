//! What `verify` reads: the records that pg_waldump reads, and each damage named.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use walhold::archive::{Archive, Stopped};
use walhold::disk::Real;
use walhold::repository::{Pending, Seal};
use walhold::wal::{Chain, History, Lsn, Seed, SegmentSize, TimelineId, TransactionEnd};

use crate::backup::{backup, restore, restored, verify};
use crate::cluster::{Cluster, Setup, lsn};
use crate::program::{receive, run, walhold};
use crate::room::{Outcome, Room};
use crate::stock::{first_byte, names, plain_copy, segments};

/// As pg_waldump calls them, by their numbers (`rmgrlist.h`).
const MANAGERS: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

/// A record as both tell it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Told {
    manager: String,
    length: u32,
    xid: u32,
    start: u64,
    prev: u64,
}

/// Record by record the same, and the same end.
pub(crate) fn agrees_with_waldump(room: &Room) -> Outcome {
    let tool = room.tool("pg_waldump")?;
    let settings =
        ["wal_level = logical", "max_prepared_transactions = 10", "wal_log_hints = on", "track_commit_timestamp = on"];
    let primary = Cluster::with(room, "primary", &Setup { settings: &settings, ..Setup::default() });
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    mixed_load(&primary);
    let end = primary.flushed();
    primary.wait_for_slot("walhold", end);
    receiver.terminate().expect(0);

    let plain = plain_copy(room, &repo.join("wal"), "plain");
    let first = first_byte(&segments(&plain)[0], 1 << 20);
    let mut command = room.command(tool);
    let output = command.arg("-p").arg(&plain).args(["-t", "1", "-s", &first.to_string()]).output().unwrap();
    let (lines, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let lines: Vec<&str> = lines.lines().filter(|line| line.starts_with("rmgr:")).collect();
    let (records, last, whole) = ours(&repo.join("wal"), Lsn::new(first.0));
    assert!(lines.len() > 1000, "{} records: {said}", lines.len());
    for (line, (told, ended)) in lines.iter().zip(&records) {
        assert_eq!(&theirs(line), told, "{line}");
        let time = ended.map(|ended| ended.time.timestamp().unwrap().strftime("%Y-%m-%d %H:%M:%S%.6f UTC").to_string());
        let word = line.split_once("desc: ").unwrap().1;
        let ends = told.manager == "Transaction" && (word.starts_with("COMMIT") || word.starts_with("ABORT"));
        assert_eq!(ends, time.is_some(), "{line}");
        assert_eq!(ended.is_some_and(|ended| ended.committed), ends && word.starts_with("COMMIT"), "{line}");
        assert!(time.is_none_or(|time| word.contains(&time)), "{line}: {ended:?}");
    }
    assert_eq!(lines.len(), records.len(), "{said}");
    // The last record, and the first byte that is none.
    assert!(said.contains("error in WAL record at "), "{said}");
    assert_eq!(lsn(after(&said, "error in WAL record at ")).0, last, "{said}");
    if said.contains("invalid record length at ") {
        assert_eq!(lsn(after(&said, "invalid record length at ")).0, whole, "{said}");
    }
    assert!(whole >= end.0, "{end} was flushed");
    for kind in
        ["COMMIT_PREPARED", "ABORT_PREPARED", "TRUNCATE", "Sequence", "FPI_FOR_HINT", "SWITCH", "LogicalMessage"]
    {
        assert!(lines.iter().any(|line| line.contains(kind)), "the load made no {kind}");
    }
    Ok(())
}

fn mixed_load(primary: &Cluster<'_>) {
    let mut session = primary.session().unwrap();
    let mut run = |statements: &str| {
        for statement in statements.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()) {
            session.run(statement).unwrap_or_else(|e| panic!("{statement}: {e}"));
        }
    };
    run("create table t (id serial primary key, v text, n int);
         create index on t using hash (n);
         create index on t using gin (string_to_array(v, ' '));
         create index on t using brin (n);
         insert into t (v, n) select repeat('w ' || i, 20), i from generate_series(1, 3000) i;
         checkpoint;
         update t set n = n + 1 where id % 3 = 0;
         select sum(n) from t;
         delete from t where id % 7 = 0;
         checkpoint;
         select sum(n) from t;
         vacuum t;
         begin;
         insert into t (v) values ('one');
         prepare transaction 'one';
         begin;
         insert into t (v) values ('two');
         prepare transaction 'two';
         checkpoint;
         commit prepared 'one';
         rollback prepared 'two';
         select lo_from_bytea(0, decode(repeat('ab', 300000), 'hex'));
         select lo_unlink(oid) from pg_largeobject_metadata limit 1;
         create sequence s cache 5;
         select nextval('s') from generate_series(1, 500);
         select setval('s', 10);
         create table u as select * from t;
         truncate u;
         begin;
         truncate t restart identity;
         rollback;
         begin;
         savepoint a;
         insert into t (v) values ('three');
         rollback to a;
         insert into t (v) values ('four');
         savepoint b;
         insert into t (v) values ('five');
         commit;
         drop table u;
         select pg_replication_origin_create('origin');
         select pg_replication_origin_session_setup('origin');
         begin;
         insert into t (v) values ('six');
         select pg_replication_origin_xact_setup('0/1000', now());
         commit;
         select pg_replication_origin_session_reset();
         select pg_logical_emit_message(false, 'm', repeat('x', 2500000));
         select pg_logical_emit_message(true, 'm', 'y');
         select pg_switch_wal();
         insert into t (v) select repeat('z', 50) from generate_series(1, 500) i;
         select pg_switch_wal();
         create database other;
         drop database other;
         select id from t limit 1 for share;
         alter table t add column w int default 5;
         vacuum full t;
         reindex table t;
         checkpoint;
         insert into t (v) values ('last')");
}

/// Each record of a folder, the start of the last, and where it ends.
fn ours(wal: &Path, first: Lsn) -> (Vec<(Told, Option<TransactionEnd>)>, u64, u64) {
    let size = SegmentSize::new(1 << 20).unwrap();
    let archive = Archive::new(wal.to_owned(), Arc::new(Real::new()), size, None, 0o600);
    let mut chain = Chain::new(Seed { start: first, size, system_id: None, newest_tli: TimelineId::FIRST });
    let mut records = Vec::new();
    let stopped = archive.walk(&History::first(), &mut chain, Lsn::new(1 << 40), &mut |record| {
        let manager = MANAGERS[usize::from(record.rmid)].to_owned();
        let (start, prev) = (record.start.get(), record.prev.get());
        records.push((Told { manager, length: record.length, xid: record.xid, start, prev }, record.transaction_end()));
    });
    let whole = match stopped.unwrap() {
        Stopped::Invalid { broken, .. } => broken.whole.get(),
        other => panic!("{other:?}"),
    };
    (records, chain.last_record().unwrap().get(), whole)
}

/// `rmgr: Heap len (rec/tot): 54/ 54, tx: 738, lsn: 0/014F5C88, prev 0/014F5C58, desc: ...`
fn theirs(line: &str) -> Told {
    let length = after(line, "len (rec/tot):").split_once('/').unwrap().1;
    Told {
        manager: after(line, "rmgr:").split_whitespace().next().unwrap().to_owned(),
        length: length.trim_start().split(',').next().unwrap().parse().unwrap(),
        xid: after(line, "tx:").trim_start().split(',').next().unwrap().parse().unwrap(),
        start: lsn(after(line, "lsn: ").split(',').next().unwrap()).0,
        prev: lsn(after(line, "prev ").split(',').next().unwrap()).0,
    }
}

/// What follows a word, up to the next colon if it has an address before it.
fn after<'a>(text: &'a str, word: &str) -> &'a str {
    let rest = text.split_once(word).unwrap_or_else(|| panic!("no {word:?} in {text}")).1;
    if word.ends_with(" at ") { rest.split(':').next().unwrap().trim() } else { rest }
}

/// Without any one of the segments it needs a backup is not usable, that segment is named, and a
/// restore writes nothing.
pub(crate) fn each_needed_segment(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    primary.rows("create table t as select i, repeat('x', 200) from generate_series(1, 5000) i");
    backup(room, &repo, &primary).expect(0);
    for _ in 0..2 {
        primary.switch_segment();
    }
    primary.wait_for_slot("walhold", primary.flushed());
    receiver.terminate().expect(0);
    verify(room, &repo).expect(0).says("USABLE");
    let hidden = room.path("hidden");
    for needed in needed(&repo) {
        let name = names(&repo.join("wal")).into_iter().find(|name| name.starts_with(&needed)).unwrap();
        fs::rename(repo.join("wal").join(&name), &hidden).unwrap();
        verify(room, &repo).expect(4).says(&format!("NOT USABLE  segment {needed} is missing"));
        let data = room.path("data");
        restore(room, &repo, &data, &[]).refused(4, &[&needed]);
        assert!(!data.exists(), "without {needed} a refused restore wrote {:?}", names(&data));
        fs::rename(&hidden, repo.join("wal").join(&name)).unwrap();
    }
    verify(room, &repo).expect(0);
    Ok(())
}

/// The segments that the seal of the only backup names.
fn needed(repo: &Path) -> Vec<String> {
    let seal = seals(repo).remove(0);
    let document: serde_json::Value = serde_json::from_slice(&fs::read(seal).unwrap()).unwrap();
    let ranges = document["wal"]["segments"].as_array().unwrap().clone();
    let names = ranges.iter().flat_map(|range| {
        let number = |key: &str| u64::from_str_radix(&range[key].as_str().unwrap()[8..], 16).unwrap();
        (number("first")..=number("last")).map(|number| format!("00000001{number:016X}")).collect::<Vec<_>>()
    });
    let names: Vec<_> = names.collect();
    assert!(!names.is_empty(), "{document}");
    names
}

fn seals(repo: &Path) -> Vec<PathBuf> {
    let backups = repo.join("backups");
    names(&backups).iter().map(|name| backups.join(name).join("backup.json")).filter(|path| path.exists()).collect()
}

/// A backup that waits for WAL: `verify` tells how far it has come and changes nothing, and seals it
/// when it is asked to and all is there.
pub(crate) fn seals_what_waited(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let repo = room.path("repo");
    backup(room, &repo, &primary).expect(0);
    let last = needed(&repo).pop().unwrap();
    unseal(room, &seals(&repo)[0]);
    let wal = repo.join("wal");
    let name = names(&wal).into_iter().find(|name| name.starts_with(&last)).unwrap();
    let (there, hidden) = (wal.join(&name), room.path("hidden"));
    fs::rename(&there, &hidden).unwrap();
    for more in [&[][..], &["--seal"]] {
        let verify = run(walhold(room, "verify").arg("--repo").arg(&repo).args(more)).expect(0);
        verify.says("it waits for WAL up to ").says("(the archive holds up to ").says("NOT SEALED");
    }
    fs::rename(&hidden, &there).unwrap();
    verify(room, &repo).expect(0).says("NOT SEALED").says("which the archive holds");
    assert!(seals(&repo).is_empty(), "verify has sealed without being asked");
    run(walhold(room, "verify").arg("--seal").arg("--repo").arg(&repo)).expect(0).says("SEALED ").says("USABLE");
    assert_eq!(seals(&repo).len(), 1);
    restored(room, &repo, "restored");
    Ok(())
}

/// Makes a sealed backup one that waits, as it would be had it been killed before its seal.
fn unseal(room: &Room, path: &Path) {
    let seal: Seal = walhold::repository::read(&fs::read(path).unwrap()).unwrap();
    let pending = Pending {
        id: seal.id,
        label: seal.label.clone(),
        system_identifier: seal.system_identifier,
        server_version: seal.server_version.clone(),
        method: seal.method,
        start: seal.start,
        stop: Some(seal.stop),
        ready: Some(Box::new(seal)),
    };
    let bytes = walhold::repository::write(&pending).unwrap();
    room.write(&path.with_file_name("backup.pending.json"), bytes);
    fs::remove_file(path).unwrap();
}
