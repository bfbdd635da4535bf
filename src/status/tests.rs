//! Repositories made by hand.

#![allow(clippy::disallowed_methods, reason = "the folders are set up and damaged from outside")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::repository::made::{Parts, write_seal};
use crate::repository::tests::{SIZE, START, SYSTEM, now, pending_of, with_wal};
use crate::repository::{BackupId, CapturedBy, Seal, Time};
use crate::repository::{Holder, Task};
use crate::wal::chain::built::Log;
use crate::wal::{Lsn, Pos, TimelineId};

/// So many seconds after the backup had ended.
pub(crate) fn after(seconds: i64) -> Time {
    Time(Timestamp::from_second(now().as_second() + seconds).unwrap())
}

/// A transaction that ends then.
fn commit(log: &mut Log, seconds: i64) {
    let time = after(seconds).0.as_microsecond() - 946_684_800_000_000;
    log.record(1, 0x00, &[&[255, 8][..], &time.to_le_bytes()].concat());
}

fn fill_up_to(log: &mut Log, segment: u64) {
    while log.at() < segment * SIZE {
        log.record(10, 0, &[7; 4000]);
    }
}

fn segment(dir: &Path, name: &str) -> std::path::PathBuf {
    dir.join("wal").join(name)
}

/// A backup, and commits in segments 6 (60 s after it), 8 (120 s) and 10 (180 s), where WAL ends.
pub(crate) fn long(dir: &Path) -> (Repository, Seal, Log) {
    let mut parts = Parts::new();
    for (number, seconds) in [(6, 60), (8, 120), (10, 180)] {
        fill_up_to(&mut parts.log, number);
        commit(&mut parts.log, seconds);
    }
    let log = parts.log.clone();
    let (repository, seal) = parts.make(dir);
    (repository, seal, log)
}

fn shown(repository: &Repository) -> Status {
    let found = status(repository, None).unwrap();
    assert!(found.problems.is_empty(), "{:?}", found.problems);
    found
}

fn exactly(seconds: i64) -> Option<Moment> {
    Some(Moment { time: after(seconds), exact: true })
}

fn words(status: &Status, limits: Limits) -> Vec<String> {
    status.reasons(limits, after(3600).0).iter().map(ToString::to_string).collect()
}

#[test]
fn a_window_goes_from_the_stop_to_the_last_record() {
    let dir = tempfile::tempdir().unwrap();
    let (repository, seal, log) = long(&dir.path().join("r"));
    let found = shown(&repository);
    let [window] = &found.windows[..] else { panic!("{:?}", found.windows) };
    assert_eq!((window.from, window.from_time, window.ended_by), (seal.stop, after(0), Cause::Archive));
    assert_eq!(window.to.pos, seal.stop.at(Lsn::new(log.at())));
    assert_eq!(window.to.last_commit, exactly(180));
    assert_eq!(found.held, Some(window.to));
    assert_eq!(found.newest_usable().unwrap().window_end, Some(window.to));
    assert_eq!(words(&found, Limits::default()), ["nothing receives WAL"]);
    let _lock = repository.lock(&holder(Task::Receive, "h")).unwrap();
    assert_eq!(words(&shown(&repository), Limits::default()), [""; 0]);
}

#[test]
fn a_commit_too_far_back_is_at_or_after_what_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let mut parts = Parts::new();
    fill_up_to(&mut parts.log, 7);
    commit(&mut parts.log, 60);
    let mut near = Parts::new();
    near.log = parts.log.clone();
    fill_up_to(&mut near.log, 14);
    fill_up_to(&mut parts.log, 16);
    let (repository, _) = near.make(&dir.path().join("near"));
    assert_eq!(shown(&repository).held.unwrap().last_commit, exactly(60));
    let (repository, _) = parts.make(&dir.path().join("far"));
    let found = shown(&repository).held.unwrap().last_commit;
    assert_eq!(found, Some(Moment { time: after(0), exact: false }));
}

#[test]
fn a_commit_across_two_segments_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut parts = Parts::new();
    fill_up_to(&mut parts.log, 6);
    // Its header just fits, and its time lies in the next segment.
    let left = 7 * SIZE - parts.log.next_record();
    let mut filled = 0;
    while left - filled > 9000 {
        let before = parts.log.at();
        parts.log.record(10, 0, &[7; 4000]);
        filled += parts.log.at() - before;
    }
    while 7 * SIZE - parts.log.next_record() > 64 {
        parts.log.record(10, 0, &[7; 8]);
    }
    while 7 * SIZE - parts.log.next_record() > 24 {
        parts.log.record(10, 0, &[]);
    }
    commit(&mut parts.log, 60);
    assert!(parts.log.at() > 7 * SIZE, "it lies before the boundary");
    fill_up_to(&mut parts.log, 9);
    let (repository, _) = parts.make(&dir.path().join("r"));
    assert_eq!(shown(&repository).held.unwrap().last_commit, exactly(60));
}

#[test]
fn a_gap_is_told_with_what_it_cost() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("r");
    let (repository, seal, _) = long(&dir);
    fs::remove_file(segment(&dir, "000000010000000000000007")).unwrap();
    let found = shown(&repository);
    let [gap] = &found.gaps[..] else { panic!("{:?}", found.gaps) };
    // The last record of segment 6 goes on in what is missing.
    assert!(gap.from.lsn().get() < 7 * SIZE && gap.from.lsn().get() > 7 * SIZE - 5000, "{gap:?}");
    assert_eq!((gap.to, gap.bytes), (seal.stop.at(Lsn::new(8 * SIZE)), 8 * SIZE - gap.from.lsn().get()));
    assert_eq!((gap.last_commit_before, gap.first_commit_after), (exactly(60), Some(after(120))));
    assert_eq!((&gap.ends[..], &gap.breaks[..]), (&[seal.id][..], &[][..]));
    assert_eq!((found.windows[0].ended_by, found.windows[0].to.pos), (Cause::Gap, gap.from));
    assert_eq!(found.held.unwrap().last_commit, exactly(180));
    let reasons = words(&found, Limits::default());
    assert_eq!(reasons[0], format!("the newest backup leads to a gap in the WAL at {}", gap.from));

    fs::remove_file(segment(&dir, "000000010000000000000004")).unwrap();
    let found = shown(&repository);
    assert_eq!((&found.gaps[0].ends[..], &found.gaps[0].breaks[..]), (&[][..], &[seal.id][..]));
    assert_eq!((found.gaps.len(), found.windows.len(), found.newest_usable()), (2, 0, None));
    let reasons = words(&found, Limits::default());
    assert_eq!(reasons[..2], ["no complete backup can be restored".to_owned(), Reason::NotHeld(seal.id).to_string()]);
}

#[test]
fn an_island_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut parts = Parts::new();
    let end = parts.stop.lsn().get().next_multiple_of(SIZE) - START;
    parts.log.bytes.truncate(end as usize);
    let (repository, mut seal) = parts.make(dir.path());
    seal.wal.captured_by = CapturedBy::Backup;
    write_seal(&repository, &seal);
    let found = shown(&repository);
    assert_eq!(found.islands[0].backups, [seal.id]);
    assert_eq!(found.islands[0].from.lsn().get(), START);
    assert_eq!(found.windows.len(), 1);
}

#[test]
fn a_fork_leaves_both_windows() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("r");
    let (repository, _, log) = long(&dir);
    let fork = Lsn::new(6 * SIZE + SIZE / 2);
    fs::write(segment(&dir, "00000002.history"), format!("1\t{fork}\tno recovery target specified\n")).unwrap();
    let (from, to) = ("000000010000000000000006", "000000020000000000000006");
    fs::copy(segment(&dir, from), segment(&dir, to)).unwrap();
    let found = shown(&repository);
    let second = TimelineId::new(2).unwrap();
    let ends: Vec<_> = found.windows.iter().map(|w| (w.timeline, w.to.pos.tli(), w.ended_by)).collect();
    let first = TimelineId::FIRST;
    assert_eq!(ends, [(first, first, Cause::Fork(second)), (second, second, Cause::Archive)]);
    assert_eq!(found.windows[0].to.pos.lsn().get(), log.at());
    assert_eq!(found.held.unwrap().last_commit, exactly(60));
    assert_eq!(found.timelines[1].forked_from, Some(Pos::new(first, fork)));
    assert_eq!(words(&found, Limits::default()), ["nothing receives WAL"]);

    // Without its history nobody knows where it came from.
    fs::remove_file(segment(&dir, "00000002.history")).unwrap();
    let found = shown(&repository);
    assert!(!found.timelines[1].history_held);
    assert_eq!(words(&found, Limits::default())[0], "the history file of timeline 2 is missing");

    // Not until segment 9: the backup's way does not lead there.
    fs::write(segment(&dir, "00000002.history"), format!("1\t{}\tx\n", Lsn::new(4 * SIZE))).unwrap();
    let found = shown(&repository);
    assert_eq!(words(&found, Limits::default())[0], "the newest backup does not lead to timeline 2, which is received");
}

#[test]
fn a_backup_that_waits_says_for_what() {
    let dir = tempfile::tempdir().unwrap();
    let parts = Parts::new();
    let mut log = parts.log.clone();
    log.bytes.truncate((parts.stop.lsn().get() - START - 16) as usize);
    let repository = with_wal(&dir.path().join("r"), &log);
    let folder = repository.begin_backup(now()).unwrap();
    let seal = parts.fill(&folder);
    let mut pending = pending_of(folder.id(), parts.start, Some(parts.stop));
    pending.ready = Some(Box::new(seal));
    folder.write_pending(&pending).unwrap();
    assert_eq!(shown(&repository).backups[0].stage, Stage::Running);
    assert_eq!(words(&shown(&repository), Limits::default())[0], "no complete backup can be restored");
    let id = folder.id();
    drop(folder);
    let found = shown(&repository);
    let waiting = found.backups[0].waiting.unwrap();
    assert_eq!((found.backups[0].stage, waiting.needs), (Stage::Pending, parts.stop));
    let held = waiting.held.unwrap();
    assert!(held < parts.stop.lsn() && held > parts.start.lsn(), "{held}");
    let said = format!("backup {id} waits for WAL up to {} (held up to {held})", parts.stop.lsn());
    assert_eq!(words(&found, Limits::default())[1], said);
}

#[test]
fn what_is_damaged_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (repository, seal, _) = long(&dir.path().join("r"));
    fs::write(repository.backup_dir(seal.id).join("backup.json"), "{}").unwrap();
    let found = shown(&repository);
    let reasons = words(&found, Limits::default());
    assert!(reasons[1].starts_with(&format!("backup {} is damaged: backup.json", seal.id)), "{reasons:?}");
    // A compressed segment at the end that does not decode.
    fs::write(segment(&dir.path().join("r"), "00000001000000000000000B.gz"), "no").unwrap();
    let found = status(&repository, None).unwrap();
    assert!(!found.problems.is_empty());
    assert!(words(&found, Limits::default()).last().unwrap().contains("00000001000000000000000B.gz"));
}

#[test]
fn nothing_is_told_of_nothing_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let size = crate::wal::SegmentSize::new(SIZE).unwrap();
    let disk = std::sync::Arc::new(crate::disk::Real::new());
    let repository = Repository::create(&dir.path().join("r"), disk, SYSTEM, size, false, now()).unwrap();
    fs::remove_file(dir.path().join("r/lock")).unwrap();
    let found = shown(&repository);
    assert_eq!((found.held, found.windows.len(), found.writer.clone()), (None, 0, None));
    let reasons = words(&found, Limits::default());
    assert_eq!(reasons, ["no complete backup can be restored", "no WAL is held", "nothing receives WAL"]);
    assert!(!dir.path().join("r/lock").exists(), "a reader made a lock");
    let with_wal = with_wal(&dir.path().join("w"), &Parts::new().log);
    assert_eq!(shown(&with_wal).windows.len(), 0);
    assert!(shown(&with_wal).held.is_some());
}

/// A server of that cluster, 16 bytes and a minute further.
pub(crate) fn server(held: End) -> Server {
    Server {
        system_identifier: SYSTEM.to_string(),
        version: "17.2".to_owned(),
        standby: false,
        timeline: Some(TimelineId::FIRST),
        position: held.pos.lsn().saturating_add(16),
        clock: Time(Timestamp::from_second(held.last_commit.unwrap().timestamp().as_second() + 60).unwrap()),
        max_slot_wal_keep_size: None,
        slots: vec![SlotStatus {
            name: "walhold".to_owned(),
            kind: "physical".to_owned(),
            active: true,
            used_by: None,
            restart_lsn: Some(held.pos.lsn()),
            wal_status: Some("reserved".to_owned()),
            safe_wal_size: None,
            retained_bytes: Some(16),
        }],
    }
}

pub(crate) fn asking(repository: &Repository, server: &Result<Server, ServerError>) -> Status {
    let slot = "walhold".parse().unwrap();
    status(repository, Some(Asked { server, slot: &slot })).unwrap()
}

#[test]
fn limits_are_held_against_age_and_lag() {
    let dir = tempfile::tempdir().unwrap();
    let (repository, seal, _) = long(&dir.path().join("r"));
    let _lock = repository.lock(&holder(Task::Receive, "h")).unwrap();
    let told = |server: Server| asking(&repository, &Ok(server));
    let there = server(shown(&repository).held.unwrap());
    let of = |max_age, max_lag| Limits { max_age, max_lag };
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let found = told(there.clone());
    assert_eq!(words(&found, of(seconds(3600), Some(MaxLag::Bytes(16)))), [""; 0]);
    assert_eq!(words(&found, of(seconds(3599), None)), [format!("the newest backup ({}) ended 60 min ago", seal.id)]);
    assert_eq!(words(&found, of(None, Some(MaxLag::Time(Duration::from_secs(60))))), [""; 0]);
    let late = ["16 bytes and 60 s behind the server"];
    assert_eq!(words(&found, of(None, Some(MaxLag::Time(Duration::from_secs(59))))), late);
    assert_eq!(words(&found, of(None, Some(MaxLag::Bytes(15)))), late);
    let nothing = told(Server { position: found.held.unwrap().pos.lsn(), ..there.clone() });
    assert_eq!(words(&nothing, of(None, Some(MaxLag::Time(Duration::ZERO)))), [""; 0], "nothing is missing");

    let other = told(Server { system_identifier: "1".to_owned(), ..there.clone() });
    let said = "the server could not be asked: it is the cluster with system identifier 1";
    assert_eq!(words(&other, Limits::default()), [said]);
    let silent = asking(&repository, &Err(ServerError::Silent));
    assert!(words(&silent, Limits::default())[0].contains("did not answer"));
    let ahead = told(Server { timeline: TimelineId::new(2), ..there.clone() });
    let said = "the server is on timeline 2, and WAL is held up to timeline 1";
    assert_eq!(words(&ahead, Limits::default()), [said]);
    let mut lost = there;
    lost.slots[0].wal_status = Some("lost".to_owned());
    assert!(words(&told(lost), Limits::default())[0].starts_with("slot \"walhold\" does not keep"));
}

#[test]
fn a_backup_that_brings_its_own_wal_is_no_receiver() {
    let dir = tempfile::tempdir().unwrap();
    let (repository, ..) = long(&dir.path().join("r"));
    let _lock = repository.lock(&holder(Task::Backup, "h")).unwrap();
    let found = shown(&repository);
    assert!(found.writer.as_ref().is_some_and(|writer| !writer.receives));
    assert_eq!(words(&found, Limits::default()), ["nothing receives WAL"]);
}

#[test]
fn times_are_told_in_one_unit() {
    for (seconds, text) in
        [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (172_800, "2 d")]
    {
        assert_eq!(span(Duration::from_secs(seconds)), text);
    }
}

#[test]
fn the_document_has_positions_as_text() {
    let dir = tempfile::tempdir().unwrap();
    let (repository, seal, _) = long(&dir.path().join("r"));
    let there = server(shown(&repository).held.unwrap());
    let found = asking(&repository, &Ok(there));
    let document = serde_json::to_value(&found).unwrap();
    assert_eq!(document["system_identifier"], SYSTEM.to_string());
    assert_eq!(document["windows"][0]["from"]["lsn"], seal.stop.lsn().to_string());
    assert_eq!(document["windows"][0]["to"]["timeline"], 1);
    assert_eq!(document["held"]["last_commit"]["exact"], true);
    assert_eq!(document["backups"][0]["id"], seal.id.to_string());
    assert_eq!(document["server"]["told"]["slot"]["active"], true);
    assert_eq!(document["server"]["told"]["lag"]["bytes"], 16);
    let _: BackupId = serde_json::from_value(document["backups"][0]["id"].clone()).unwrap();
}

#[test]
fn the_last_drill_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (repository, seal, _) = long(&dir.path().join("r"));
    let _lock = repository.lock(&holder(Task::Receive, "h")).unwrap();
    let passed = DrillRecord {
        backup: seal.id,
        started: after(60),
        finished: after(120),
        failure: None,
        server: None,
        target_time: None,
        timeline: None,
        reached: None,
        reached_time: None,
        archive_end: None,
        durations_ms: Default::default(),
        checked: Vec::new(),
        not_checked: Vec::new(),
        program: "walhold test".to_owned(),
    };
    repository.record_drill(&passed).unwrap();
    let found = shown(&repository);
    assert_eq!((found.last_drill(), words(&found, Limits::default())), (Some(&passed), vec![]));
    let failed = DrillRecord { failure: Some("pg_amcheck found damage".to_owned()), ..passed };
    repository.record_drill(&failed).unwrap();
    let said = format!("the last drill, of backup {}, failed: pg_amcheck found damage", seal.id);
    assert_eq!(words(&shown(&repository), Limits::default()), [said]);
    fs::write(repository.backup_dir(seal.id).join("drill.json"), "{}").unwrap();
    let found = status(&repository, None).unwrap();
    assert!(words(&found, Limits::default())[0].starts_with("the last drill of backup"), "{:?}", found.problems);
}

fn holder(task: Task, host: &str) -> Holder {
    Holder { task, process: 1, host: host.to_owned() }
}
