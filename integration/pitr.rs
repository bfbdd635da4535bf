//! Points in time: a load that keeps a history of itself, and recoveries that must come out at exactly the
//! point that was asked for.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::backup::{backup, restore};
use crate::cluster::{Cluster, Door, Lsn, Setup, Stop, lsn};
use crate::crash::Moments;
use crate::program::receive;
use crate::room::{Outcome, Room, SOON, wait_until};
use crate::sql::Session;
use crate::stock::names;

/// What a transaction did, or who made a restore point; positions are those of the server before and after.
#[derive(Clone, Debug)]
struct Entry {
    /// The row that it inserted.
    row: i64,
    xid: u32,
    kind: Kind,
    /// Its end, and nothing else of its own, was written between these.
    before: Lsn,
    after: Lsn,
    /// Microseconds: its commit by the server's word; of others, a moment not before its end.
    time: i64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Kind {
    Committed,
    RolledBack,
    /// Its name; the end of its record is `after`.
    Point(String),
}

const SETTINGS: [&str; 4] =
    ["max_prepared_transactions = 20", "track_commit_timestamp = on", "checkpoint_timeout = 1h", "max_wal_size = 1GB"];

/// Random targets of every kind, each restored, started, and compared with the history.
pub(crate) fn lands_exactly(room: &Room) -> Outcome {
    let mut dice = Moments::new();
    let (repo, history) = recorded(room);
    let targets = std::env::var("WALHOLD_PITR_TARGETS").map_or(4, |text| text.parse().expect("a number of targets"));
    let offset = dice.below(4);
    for n in 0..targets {
        let wanted = Wanted::random(&mut dice, (n + offset) % 4, &history);
        eprintln!("{}: target {n}: {:?}", room.server.major, wanted.arguments);
        land(room, &repo, &history, &wanted, n % 5 == 4);
    }
    Ok(())
}

/// Two backups and the load around them, all of it received; the server is gone.
#[track_caller]
fn recorded(room: &Room) -> (PathBuf, Vec<Entry>) {
    let mut primary = Cluster::with(room, "primary", &Setup { settings: &SETTINGS, ..Setup::default() });
    primary.rows("create table history (row bigint not null)");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    let load = HistoryLoad::start(&primary);
    for _ in 0..4 {
        load.wait_for_more(40);
        primary.switch_segment();
    }
    load.wait_for_more(40);
    backup(room, &repo, &primary).expect(0);
    load.wait_for_more(240);
    let history = load.finish(&primary);
    primary.switch_segment();
    primary.wait_for_slot("walhold", primary.flushed());
    receiver.terminate().expect(0);
    primary.destroy();
    (repo, history)
}

/// One target, as it is asked for, and what that means.
#[derive(Debug)]
struct Wanted {
    arguments: Vec<String>,
    point: At,
    inclusive: bool,
}

#[derive(Debug)]
enum At {
    Time(i64),
    Lsn(Lsn),
    End(Entry),
    Name(Lsn),
}

impl Wanted {
    fn random(dice: &mut Moments, kind: usize, history: &[Entry]) -> Self {
        // What lies before the first backup's end cannot be reached, and the last transactions prove that
        // what is asked for was passed.
        let some = &history[..history.len() - 20];
        let inclusive = dice.below(2) == 0;
        let pick = |dice: &mut Moments, wanted: &dyn Fn(&&Entry) -> bool| {
            let all: Vec<&Entry> = some.iter().filter(wanted).collect();
            all[dice.below(all.len())].clone()
        };
        let is_point = |entry: &&Entry| matches!(entry.kind, Kind::Point(_));
        let (mut arguments, point) = match kind {
            0 => {
                let entry = pick(dice, &|entry| entry.kind == Kind::Committed);
                // Exactly then, or soon after.
                let time = entry.time + [0, 0, 1, 700][dice.below(4)];
                (vec!["--target-time".to_owned(), text_of(time)], At::Time(time))
            }
            1 => {
                let entry = pick(dice, &|entry| !is_point(entry));
                let at = if dice.below(2) == 0 { entry.before } else { entry.after };
                (vec!["--target-lsn".to_owned(), at.to_string()], At::Lsn(at))
            }
            2 => {
                let entry = pick(dice, &|entry| !is_point(entry));
                (vec!["--target-xid".to_owned(), entry.xid.to_string()], At::End(entry))
            }
            _ => {
                let entry = pick(dice, &is_point);
                let Kind::Point(name) = entry.kind else { unreachable!() };
                return Self {
                    arguments: vec!["--target-name".to_owned(), name],
                    point: At::Name(entry.after),
                    inclusive: true,
                };
            }
        };
        if !inclusive || dice.below(2) == 0 {
            arguments.push(format!("--target-inclusive={inclusive}"));
        }
        Self { arguments, point, inclusive }
    }
}

/// `2026-11-22 05:15:00.123456+00`
fn text_of(microseconds: i64) -> String {
    let time = jiff::Timestamp::from_microsecond(microseconds).unwrap();
    time.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
}

#[track_caller]
fn land(room: &Room, repo: &Path, history: &[Entry], wanted: &Wanted, promote: bool) {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let name = format!("r{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let data = room.path(&format!("{name}-data"));
    let mut arguments: Vec<&str> = wanted.arguments.iter().map(String::as_str).collect();
    arguments.extend(["--target-action", if promote { "promote" } else { "pause" }]);
    let plan = restore(room, repo, &data, &[&arguments[..], &["--plan", "--json"]].concat()).expect(0).out;
    assert!(!data.exists(), "a plan wrote something");
    let plan: Value = serde_json::from_str(&plan).unwrap();
    restore(room, repo, &data, &arguments).expect(0).says("recovery stops at ");
    let mut server = Cluster::restored(room, &name, data.clone());
    server.start();
    if promote {
        server.wait_for_promotion();
    } else {
        wait_until("the pause", SOON, || server.sql("select pg_is_wal_replay_paused()") == "t");
    }
    let end = &plan["wal"]["end"];
    let reached = lsn(&server.sql("select pg_last_wal_replay_lsn()"));
    assert_eq!(end["at"].as_str().unwrap(), reached.to_string(), "the plan says otherwise: {plan:#}");
    let planned = end["last_transaction"]["time"].as_str().map(|text| text.parse::<jiff::Timestamp>().unwrap());
    let last = server.sql("select (extract(epoch from pg_last_xact_replay_timestamp()) * 1000000)::bigint");
    // Where it stops after a position the server replays a commit, and does not note its time.
    let silent = matches!(wanted.point, At::Lsn(_)) && wanted.inclusive && end["at"] == end["last_transaction"]["end"];
    let planned = planned.map(|time| time.as_microsecond().to_string()).unwrap_or_default();
    assert!(planned == last || silent, "planned {planned}, reached {last}: {plan:#}");
    let rows = server.rows("select row from history");
    let rows: HashSet<i64> = rows.iter().map(|row| row[0].as_deref().unwrap().parse().unwrap()).collect();
    check(wanted, history, reached, &rows);
    if promote {
        assert!(server.sql("select pg_walfile_name(pg_current_wal_lsn())").starts_with("00000002"));
    }
    server.stop(Stop::Immediate);
    drop(server);
    fs::remove_dir_all(data).unwrap();
}

/// Holds what came out against the history.
#[track_caller]
fn check(wanted: &Wanted, history: &[Entry], reached: Lsn, rows: &HashSet<i64>) {
    let context = || format!("{wanted:?}, reached {reached}");
    for entry in history {
        let (there, committed) = (rows.contains(&entry.row), entry.kind == Kind::Committed);
        assert!(committed || !there, "{entry:?} was never committed: {}", context());
        if committed {
            assert!(there || entry.after > reached, "{entry:?} is missing: {}", context());
            assert!(!there || entry.before < reached, "{entry:?} is too much: {}", context());
        }
    }
    match &wanted.point {
        At::Name(end) => assert_eq!(*end, reached, "{}", context()),
        At::Lsn(at) if wanted.inclusive => assert!(reached > *at, "{}", context()),
        // The header of a page may lie between the end of one record and the begin of the next.
        At::Lsn(at) => assert!(reached <= *at && at.0 - reached.0 <= 40, "{}", context()),
        At::End(entry) => {
            let there = rows.contains(&entry.row);
            assert_eq!(there, wanted.inclusive && entry.kind == Kind::Committed, "{}", context());
            let (before, after) = (entry.before.0 - 40, entry.after);
            assert!((before..=after.0).contains(&reached.0), "{}", context());
        }
        At::Time(time) => {
            let late = |entry: &&Entry| if wanted.inclusive { entry.time > *time } else { entry.time >= *time };
            let late: Vec<&Entry> = history.iter().filter(late).collect();
            for entry in &late {
                assert!(!rows.contains(&entry.row), "{entry:?} is too late: {}", context());
            }
            // None of those before the first that can be late may be missing, whatever their time.
            let first = late.iter().filter(|entry| !matches!(entry.kind, Kind::Point(_))).map(|e| e.before).min();
            let first = first.expect("something later");
            let committed = history.iter().filter(|entry| entry.kind == Kind::Committed && entry.after <= first);
            for entry in committed {
                assert!(rows.contains(&entry.row), "{entry:?} is missing: {}", context());
            }
        }
    }
}

/// Sessions that commit, roll back, prepare, and name points.
struct HistoryLoad {
    stop: Arc<std::sync::atomic::AtomicBool>,
    entries: Arc<Mutex<Vec<Entry>>>,
    writers: Vec<std::thread::JoinHandle<()>>,
}

impl HistoryLoad {
    fn start(cluster: &Cluster<'_>) -> Self {
        let (stop, entries, next) = (Arc::default(), Arc::default(), Arc::new(AtomicI64::new(1)));
        let writers = (0..3).map(|_| {
            let writer = Writer { door: cluster.door(), entries: Arc::clone(&entries), next: Arc::clone(&next) };
            let stop: Arc<std::sync::atomic::AtomicBool> = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut session = writer.door.open().unwrap();
                while !stop.load(Ordering::Relaxed) {
                    writer.turn(&mut session);
                }
            })
        });
        let writers = writers.collect();
        Self { stop, entries, writers }
    }

    fn wait_for_more(&self, more: usize) {
        let count = || self.entries.lock().unwrap().len();
        let target = count() + more;
        wait_until("more history", SOON, || count() >= target);
    }

    /// The history in the order of its positions.
    fn finish(self, primary: &Cluster<'_>) -> Vec<Entry> {
        self.stop.store(true, Ordering::Relaxed);
        self.writers.into_iter().for_each(|writer| writer.join().unwrap());
        let mut history = std::mem::take(&mut *self.entries.lock().unwrap());
        history.sort_by_key(|entry| entry.after);
        let times = primary
            .rows("select row, (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint from history");
        let word = |row: &Vec<Option<String>>, n: usize| row[n].as_deref().unwrap().parse::<i64>().unwrap();
        let times: HashMap<i64, i64> = times.iter().map(|row| (word(row, 0), word(row, 1))).collect();
        for entry in history.iter_mut().filter(|entry| entry.kind == Kind::Committed) {
            entry.time = times[&entry.row];
        }
        history
    }
}

struct Writer {
    door: Door,
    entries: Arc<Mutex<Vec<Entry>>>,
    next: Arc<AtomicI64>,
}

impl Writer {
    fn turn(&self, session: &mut Session) {
        let row = self.next.fetch_add(1, Ordering::Relaxed);
        let begin = format!("begin; insert into history values ({row})");
        let (xid, end) = match row % 8 {
            0 => {
                session.run("begin").unwrap();
                let made = one(session, &format!("select pg_create_restore_point('point {row}')"));
                session.run("commit").unwrap();
                let (after, time) = (lsn(&made), now(session));
                return self.note(Entry {
                    row,
                    xid: 0,
                    kind: Kind::Point(format!("point {row}")),
                    before: after,
                    after,
                    time,
                });
            }
            1 => (xid_of(session, &begin), "rollback".to_owned()),
            // The row is written by a subtransaction, and others are given up.
            2 | 3 => {
                session.run("begin; savepoint a; create temp table t (i int) on commit drop; rollback to a").unwrap();
                let xid =
                    xid_of(session, &format!("insert into history values ({row}); savepoint b; select txid_current()"));
                session.run(&format!("insert into history values (-{row}); rollback to b")).unwrap();
                (xid, "commit".to_owned())
            }
            4 | 5 => {
                let xid = xid_of(session, &format!("{begin}; create table t{row} (i int)"));
                session.run(&format!("prepare transaction 'p{row}'")).unwrap();
                std::thread::sleep(Duration::from_millis(3));
                (xid, format!("{} prepared 'p{row}'", if row % 8 == 4 { "commit" } else { "rollback" }))
            }
            _ => (xid_of(session, &begin), "commit".to_owned()),
        };
        let before = lsn(&one(session, "select pg_current_wal_insert_lsn()"));
        session.run(&end).unwrap();
        let after = lsn(&one(session, "select pg_current_wal_insert_lsn()"));
        let kind = if end.starts_with("commit") { Kind::Committed } else { Kind::RolledBack };
        let time = now(session);
        self.note(Entry { row, xid, kind, before, after, time });
    }

    fn note(&self, entry: Entry) {
        self.entries.lock().unwrap().push(entry);
    }
}

fn one(session: &mut Session, sql: &str) -> String {
    let rows = session.run(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    rows.last().and_then(|row| row[0].clone()).unwrap_or_else(|| panic!("no row: {sql}"))
}

/// Begins, and gives the number of the top transaction.
fn xid_of(session: &mut Session, begin: &str) -> u32 {
    session.run(begin).unwrap_or_else(|e| panic!("{begin}: {e}"));
    one(session, "select txid_current()").parse().unwrap()
}

fn now(session: &mut Session) -> i64 {
    one(session, "select (extract(epoch from clock_timestamp()) * 1000000)::bigint").parse().unwrap()
}

/// What cannot be reached is refused before anything is written, with what can be.
pub(crate) fn refused(room: &Room) -> Outcome {
    let (repo, history) = recorded(room);
    let data = room.path("data");
    let refuse = |target: &[&str], words: &[&str]| {
        let ended = restore(room, &repo, &data, target).refused(4, words);
        assert!(!data.exists(), "something was written\n{ended}");
    };
    let ids = names(&repo.join("backups"));
    let last = history.iter().rfind(|entry| entry.kind == Kind::Committed).unwrap();
    // Past the end: there is a last commit, and nothing that is later.
    let far = text_of(last.time + 3_600_000_000);
    refuse(&["--target-time", &far], &[&far, "past the end of what is held", "last commit"]);
    refuse(&["--target-lsn", "7F/0"], &["7F/0", "past the end"]);
    // Never ended.
    refuse(&["--target-xid", "4000000"], &["transaction 4000000", "the nearest by number", "of transaction"]);
    refuse(&["--target-name", "no such point"], &["\"no such point\"", "the last ones", "\"point "]);
    // Before there was a backup.
    let early = text_of(history[0].time - 3_600_000_000);
    refuse(&["--target-time", &early], &[&early, "no complete backup ended before", &ids[0]]);
    refuse(&["--target-lsn", "0/200028"], &["0/200028", &ids[0]]);
    // Not from this backup, but from the one before.
    let old = history.iter().find(|entry| entry.kind == Kind::Committed).unwrap();
    let (time, at, xid) = (text_of(old.time), old.before.to_string(), old.xid.to_string());
    for target in [["--target-time", &time], ["--target-lsn", &at]] {
        refuse(&[&[ids[1].as_str()], &target[..]].concat(), &["before backup", &ids[1], "is consistent"]);
        restore(room, &repo, &data, &[&target[..], &["--plan"]].concat()).expect(0).says(&ids[0]);
    }
    refuse(&[&ids[1], "--target-xid", &xid], &[&format!("no end of transaction {xid}")]);
    restore(room, &repo, &data, &["--target-xid", &xid, "--plan"]).expect(0).says(&ids[0]);
    restore(room, &repo, &data, &["--target", "immediate", "--plan"]).expect(0).says(&ids[1]);
    refuse(&["--target-timeline", "2"], &["timeline 2"]);
    restore(room, &repo, &data, &["--target-timeline", "current", "--plan"]).expect(0).says("along timeline 1");
    for wrong in [
        &["--standby", "--target-lsn", "0/1"][..],
        &["--target-lsn", "0/1", "--target-xid", "5"],
        &["--target-name", "x", "--target-inclusive", "false"],
        &["--target-action", "pause"],
        &["--target-time", "yesterday"],
    ] {
        restore(room, &repo, &data, wrong).expect(2);
    }
    gap(room, &repo, &data, &history, &ids);
    Ok(())
}

/// A segment between the two backups is gone.
fn gap(room: &Room, repo: &Path, data: &Path, history: &[Entry], ids: &[String]) {
    let seal = |id: &String| -> Value {
        serde_json::from_str(&fs::read_to_string(repo.join("backups").join(id).join("backup.json")).unwrap()).unwrap()
    };
    let stop = lsn(seal(&ids[0])["stop"]["lsn"].as_str().unwrap());
    let start = lsn(seal(&ids[1])["start"]["lsn"].as_str().unwrap());
    let segment = |at: Lsn| at.0 >> 20;
    let lost = segment(stop) + 2;
    assert!((segment(stop) + 1..segment(start)).contains(&lost), "too little was written: {stop} to {start}");
    let name = format!("00000001{:08X}{:08X}", lost >> 12, lost & 0xFFF);
    for file in names(&repo.join("wal")).iter().filter(|file| file.starts_with(&name)) {
        fs::remove_file(repo.join("wal").join(file)).unwrap();
    }
    let inside = history.iter().find(|e| e.kind == Kind::Committed && segment(e.before) > lost && e.after < start);
    let inside = inside.expect("a commit behind the gap");
    let (at, time) = (inside.before.to_string(), text_of(inside.time));
    for target in [["--target-lsn", &at], ["--target-time", &time]] {
        restore(room, repo, data, &target).refused(4, &[&name, "the nearest point before it is", "behind it", &ids[1]]);
        assert!(!data.exists());
    }
    let before = history.iter().rfind(|e| e.kind == Kind::Committed && segment(e.after) < lost).unwrap();
    let arguments = vec!["--target-xid".to_owned(), before.xid.to_string()];
    land(room, repo, history, &Wanted { arguments, point: At::End(before.clone()), inclusive: true }, false);
}

/// A tablespace that the WAL makes is told of, and not made over one that is in use.
pub(crate) fn tablespaces(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    primary.rows("create table early as select 1");
    primary.rows("select pg_create_restore_point('before the tablespace')");
    let space = room.path("space");
    room.make_dir(&space);
    primary.rows(&format!("create tablespace later location '{}'", space.display()));
    primary.rows("create table late tablespace later as select 2");
    primary.wait_for_slot("walhold", primary.flushed());
    receiver.terminate().expect(0);
    let (data, place) = (room.path("data"), space.display().to_string());
    restore(room, &repo, &data, &[]).refused(4, &[&place, "makes a tablespace"]);
    assert!(!data.exists());
    let before = ["--target-name", "before the tablespace"];
    restore(room, &repo, &data, &[&before[..], &["--plan"]].concat()).expect(0);
    drop(primary);
    // As on another host.
    fs::rename(&space, room.path("elsewhere")).unwrap();
    restore(room, &repo, &data, &[]).expect(0).says("make that directory").says(&place);
    room.make_dir(&space);
    let mut server = Cluster::restored(room, "restored", data);
    server.start();
    server.wait_for_promotion();
    assert_eq!(server.sql("select count(*) from early, late"), "1");
    Ok(())
}
