//! Every corner of the answer, on hand-made archives.

#![allow(clippy::disallowed_methods, reason = "the folders are set up and damaged from outside")]

mod busy;
mod crash;

use std::fs;
use std::path::Path;

use super::*;
use crate::disk::Real;
use crate::repository::tests::{SIZE, START, SYSTEM, log_with_backup, now};
use crate::wal::SegmentSize;
use crate::wal::chain::built::Log;

/// A repository, and the data directory of the server that asks.
struct Scene {
    top: tempfile::TempDir,
}

/// Whom the answer is for.
const TO_POINT: Option<&str> = Some("recovery.signal");
const STANDBY: Option<&str> = Some("standby.signal");
const OTHER: Option<&str> = None;

impl Scene {
    fn new(signal: Option<&str>) -> Self {
        let top = tempfile::tempdir().unwrap();
        let size = SegmentSize::new(SIZE).unwrap();
        Repository::create(&top.path().join("repo"), Arc::new(Real::new()), SYSTEM, size, false, now()).unwrap();
        fs::create_dir_all(top.path().join("data/pg_wal")).unwrap();
        if let Some(signal) = signal {
            fs::write(top.path().join("data").join(signal), "").unwrap();
        }
        Self { top }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.top.path().join(below)
    }

    fn put(&self, name: &str, content: &[u8]) -> &Self {
        fs::write(self.path("repo/wal").join(name), content).unwrap();
        self
    }

    fn remove(&self, name: &str) -> &Self {
        fs::remove_file(self.path("repo/wal").join(name)).unwrap();
        self
    }

    fn request(&self, name: &str) -> Request {
        Request {
            repository: self.path("repo"),
            name: name.to_owned(),
            destination: "pg_wal/RECOVERYXLOG".into(),
            timeline: None,
            end_at_gap: None,
            partial: false,
            patience: Some(Duration::ZERO),
            data_directory: self.path("data"),
        }
    }

    fn ask(&self, name: &str) -> Outcome {
        self.ask_with(name, |_| {})
    }

    fn ask_pinned(&self, name: &str, tli: u32) -> Outcome {
        self.ask_with(name, |request| request.timeline = TimelineId::new(tli))
    }

    /// Whatever was not found leaves nothing behind.
    fn ask_with(&self, name: &str, change: impl FnOnce(&mut Request)) -> Outcome {
        let _ = fs::remove_file(self.path("data/pg_wal/RECOVERYXLOG"));
        let mut request = self.request(name);
        change(&mut request);
        let outcome = wal_get(&request);
        assert_eq!(outcome == Outcome::Found, self.path("data/pg_wal/RECOVERYXLOG").exists(), "{outcome:?}");
        assert_eq!(fs::read_dir(self.path("data/pg_wal")).unwrap().count(), usize::from(outcome == Outcome::Found));
        outcome
    }

    fn got(&self) -> Vec<u8> {
        fs::read(self.path("data/pg_wal/RECOVERYXLOG")).unwrap()
    }
}

fn unknown(outcome: &Outcome, about: &str) {
    assert!(matches!(outcome, Outcome::Unknown(why) if why.contains(about)), "{outcome:?} is not about \"{about}\"");
}

fn name(tli: u32, no: u64) -> String {
    format!("{tli:08X}{:08X}{no:08X}", 0)
}

/// The bytes of segment `no`, padded.
fn part(log: &Log, no: u64) -> Vec<u8> {
    let from = (no * SIZE - log.start) as usize;
    let to = (from + SIZE as usize).min(log.bytes.len());
    let mut bytes = log.bytes[from..to].to_vec();
    bytes.resize(SIZE as usize, 0);
    bytes
}

/// Segments 3 to 5 complete and 6 begun.
fn scene(signal: Option<&str>) -> (Scene, Log) {
    let (log, _, _) = log_with_backup();
    let scene = Scene::new(signal);
    let last = log.at() / SIZE;
    assert_eq!((log.start / SIZE, last), (3, 6), "the log has grown");
    for no in 3..last {
        scene.put(&name(1, no), &part(&log, no));
    }
    scene.put(&format!("{}.partial", name(1, last)), &part(&log, last));
    (scene, log)
}

#[test]
fn what_is_there_is_given_whole() {
    for signal in [TO_POINT, STANDBY, OTHER] {
        let (scene, log) = scene(signal);
        for no in 3..6 {
            assert_eq!(scene.ask(&name(1, no)), Outcome::Found);
            assert!(scene.got() == part(&log, no));
        }
    }
}

#[test]
fn compressed_segments_are_decoded() {
    let (scene, log) = scene(STANDBY);
    let plain = part(&log, 4);
    scene.remove(&name(1, 4)).put(&format!("{}.zst", name(1, 4)), &zstd::encode_all(&plain[..], 1).unwrap());
    assert_eq!(scene.ask(&name(1, 4)), Outcome::Found);
    assert!(scene.got() == plain);
    let packed = zstd::encode_all(&plain[..], 1).unwrap();
    scene.put(&format!("{}.zst", name(1, 4)), &packed[..packed.len() - 3]);
    unknown(&scene.ask(&name(1, 4)), "cannot read");
    scene.put(&format!("{}.zst", name(1, 4)), &zstd::encode_all(&plain[8192..], 1).unwrap());
    unknown(&scene.ask(&name(1, 4)), "damaged");
    scene.put(&format!("{}.zst", name(1, 4)), &zstd::encode_all(&plain[..plain.len() - 8192], 1).unwrap());
    unknown(&scene.ask(&name(1, 4)), "must have");
}

/// P8: the one case in which there is no more WAL.
#[test]
fn p8_absent_is_said_past_the_end_only() {
    for signal in [TO_POINT, STANDBY, OTHER] {
        let (scene, _) = scene(signal);
        for no in [7, 8, 200] {
            assert_eq!(scene.ask(&name(1, no)), Outcome::Absent);
            assert_eq!(scene.ask_pinned(&name(1, no), 1), Outcome::Absent);
        }
        unknown(&scene.ask(&name(1, 2)), "missing");
        assert_eq!(scene.ask("00000002.history"), Outcome::Absent);
        scene.remove(&name(1, 4));
        unknown(&scene.ask(&name(1, 4)), "is missing from the archive, and the archive goes on to");
        unknown(&scene.ask_pinned(&name(1, 4), 1), "missing");
    }
}

#[test]
fn p8_an_archive_that_is_not_itself_says_nothing() {
    for signal in [TO_POINT, STANDBY] {
        let (past, history) = (name(1, 7), "00000002.history");
        let all = |damage: &dyn Fn(&Scene), about: &str| {
            let (scene, _) = scene(signal);
            damage(&scene);
            unknown(&scene.ask(&past), about);
            unknown(&scene.ask(history), about);
        };
        let identity = "repo/repository.json";
        all(&|scene| fs::remove_dir_all(scene.path("repo")).unwrap(), "no repository");
        all(&|scene| fs::remove_file(scene.path(identity)).unwrap(), "repository.json");
        all(&|scene| fs::write(scene.path(identity), "{}").unwrap(), "checksum");
        all(&|scene| fs::remove_dir_all(scene.path("repo/wal")).unwrap(), "list");
        // An empty mount point.
        all(
            &|scene| {
                fs::remove_dir_all(scene.path("repo/wal")).unwrap();
                fs::create_dir(scene.path("repo/wal")).unwrap();
            },
            "no WAL at all",
        );
        all(
            &|scene| {
                fs::create_dir(scene.path("data/global")).unwrap();
                fs::write(scene.path("data/global/pg_control"), [1; 8192]).unwrap();
            },
            "this server's",
        );
        // The one that is ours does no harm.
        let (scene, _) = scene(signal);
        fs::create_dir(scene.path("data/global")).unwrap();
        fs::write(scene.path("data/global/pg_control"), SYSTEM.to_ne_bytes()).unwrap();
        assert_eq!(scene.ask(&past), Outcome::Absent);
    }
}

#[test]
fn p8_names_that_nobody_asks_for_are_not_denied() {
    let (scene, _) = scene(TO_POINT);
    for name in ["", "x", "000000010000000000000007.00000028.backup", "00000001000000000000000g", "../x", "lock"] {
        unknown(&scene.ask(name), "not the name");
    }
}

/// P8: damage would look like the end of WAL to the server.
#[test]
fn p8_a_damaged_segment_is_not_given() {
    let (scene, log) = scene(TO_POINT);
    let mut bytes = part(&log, 4);
    bytes[500_000] ^= 1;
    scene.put(&name(1, 4), &bytes);
    unknown(&scene.ask(&name(1, 4)), "damaged");
    for len in [0, 1, SIZE as usize - 8192, SIZE as usize - 1] {
        scene.put(&name(1, 4), &part(&log, 4)[..len]);
        unknown(&scene.ask(&name(1, 4)), "must have");
    }
    let mut long = part(&log, 4);
    long.push(0);
    scene.put(&name(1, 4), &long);
    unknown(&scene.ask(&name(1, 4)), "must have");
    // A segment of another cluster, and one under another's name.
    let mut other = Log::new(4 * SIZE, SIZE, 1, SYSTEM + 1);
    (0..300).for_each(|_| other.record(10, 0, &[1; 4000]));
    scene.put(&name(1, 4), &part(&other, 4));
    unknown(&scene.ask(&name(1, 4)), "cluster");
    scene.put(&name(1, 4), &part(&log, 5));
    unknown(&scene.ask(&name(1, 4)), "damaged");
}

#[test]
fn p8_what_cannot_be_written_is_not_found() {
    let (scene, _) = scene(TO_POINT);
    let mut request = scene.request(&name(1, 4));
    request.destination = "none/RECOVERYXLOG".into();
    unknown(&wal_get(&request), "create");
    request.name = "00000002.history".to_owned();
    scene.put("00000002.history", b"1\t0/500000\tx\n");
    unknown(&wal_get(&request), "create");
}

#[test]
fn a_partial_is_given_to_a_recovery_up_to_its_last_record() {
    let (scene, log) = scene(TO_POINT);
    let partial = format!("{}.partial", name(1, 6));
    assert_eq!(scene.ask(&name(1, 6)), Outcome::Found);
    assert!(scene.got() == part(&log, 6));
    // Cut in the middle of a record, and with what an older use of the file left behind it.
    let cut = (log.at() - 6 * SIZE) as usize - 1000;
    let whole = log.starts.iter().rev().find(|start| **start < 6 * SIZE + cut as u64).unwrap();
    let whole = (whole - 6 * SIZE) as usize;
    let mut torn = part(&log, 6);
    torn[cut..].fill(0xEE);
    let mut expected = part(&log, 6);
    expected[whole..].fill(0);
    for content in [&torn[..], &torn[..cut]] {
        scene.put(&partial, content);
        assert_eq!(scene.ask(&name(1, 6)), Outcome::Found);
        assert!(scene.got() == expected);
    }
    scene.remove(&partial).put(&format!("{}.zst.partial", name(1, 6)), &zstd::encode_all(&torn[..cut], 1).unwrap());
    assert_eq!(scene.ask(&name(1, 6)), Outcome::Found);
    assert!(scene.got() == expected);
}

#[test]
fn a_partial_without_a_whole_record_is_the_end() {
    let (scene, log) = scene(TO_POINT);
    let partial = format!("{}.partial", name(1, 6));
    for content in [vec![], vec![0; SIZE as usize], vec![7; 100]] {
        scene.put(&partial, &content);
        assert_eq!(scene.ask(&name(1, 6)), Outcome::Absent);
    }
    // Less than the rest of a record that was begun before.
    let mut log_6 = part(&log, 6);
    let first = log.starts.iter().find(|start| **start >= 6 * SIZE).unwrap() - 6 * SIZE;
    if first > 200 {
        log_6[100..].fill(0);
        scene.put(&partial, &log_6);
        assert_eq!(scene.ask(&name(1, 6)), Outcome::Absent);
    }
}

#[test]
fn partials_are_for_those_who_recover_to_a_point() {
    for (signal, flag, expected) in [
        (TO_POINT, false, Outcome::Found),
        (TO_POINT, true, Outcome::Found),
        (STANDBY, false, Outcome::Absent),
        (STANDBY, true, Outcome::Absent),
        (OTHER, false, Outcome::Absent),
        (OTHER, true, Outcome::Found),
    ] {
        let (scene, _) = scene(signal);
        assert_eq!(scene.ask_with(&name(1, 6), |request| request.partial = flag), expected, "{signal:?} {flag}");
        assert_eq!(scene.ask(&name(1, 7)), Outcome::Absent);
    }
    // With both signals the server is a standby.
    let (scene, _) = scene(TO_POINT);
    fs::write(scene.path("data/standby.signal"), "").unwrap();
    assert_eq!(scene.ask(&name(1, 6)), Outcome::Absent);
}

/// P8: the end of one stretch is not the end of the archive, unless the operator was told so.
#[test]
fn p8_a_gap_ends_a_recovery_only_where_it_was_planned() {
    let (scene, log) = scene(TO_POINT);
    scene.put(&name(1, 9), &part(&log, 5));
    unknown(&scene.ask(&name(1, 6)), "is missing");
    unknown(&scene.ask(&name(1, 7)), "is missing");
    let at = |no: u64, gap: u64| scene.ask_with(&name(1, no), |request| request.end_at_gap = Some(name(1, gap)));
    // Planned after the partial's last record.
    assert_eq!(at(6, 6), Outcome::Found);
    assert_eq!(at(7, 6), Outcome::Absent);
    assert_eq!(at(5, 6), Outcome::Found);
    // In a damaged segment: what is whole before the damage.
    let mut bytes = part(&log, 4);
    bytes[500_000] ^= 1;
    scene.put(&name(1, 4), &bytes);
    unknown(&at(4, 5), "--end-at-gap");
    assert_eq!(at(4, 4), Outcome::Found);
    let whole = log.starts.iter().rev().find(|start| **start <= 4 * SIZE + 500_000).unwrap() - 4 * SIZE;
    assert!(scene.got()[..whole as usize] == bytes[..whole as usize]);
    assert!(scene.got()[whole as usize..].iter().all(|byte| *byte == 0) && scene.got().len() == bytes.len());
    scene.remove(&name(1, 5));
    unknown(&at(5, 6), "is missing");
    unknown(&scene.ask_with(&name(1, 7), |request| request.end_at_gap = Some("x".into())), "not the name");
    // A hole that has been filled since is no hole.
    scene.put(&name(1, 7), &{
        let mut next = Log::new(7 * SIZE, SIZE, 1, SYSTEM);
        (0..300).for_each(|_| next.record(10, 0, &[1; 4000]));
        part(&next, 7)
    });
    assert_eq!(at(7, 6), Outcome::Found);
}

#[test]
fn history_files_are_given_in_any_form() {
    let (scene, _) = scene(STANDBY);
    let content = b"1\t0/680000\tno recovery target specified\n";
    scene.put("00000002.history", content);
    assert_eq!(scene.ask("00000002.history"), Outcome::Found);
    assert_eq!(scene.got(), content);
    scene.remove("00000002.history").put("00000002.history.zst", &zstd::encode_all(&content[..], 1).unwrap());
    assert_eq!(scene.ask("00000002.history"), Outcome::Found);
    assert_eq!(scene.got(), content);
    assert_eq!(scene.ask("00000003.history"), Outcome::Absent);
    scene.put("00000002.history.zst", b"rubbish");
    unknown(&scene.ask("00000002.history"), "cannot read");
    unknown(&scene.ask(&name(1, 7)), "cannot read");
}

/// Timeline 1 with segments 3 to 5 and a tail in 6; timeline 2 forks in segment 5 and has 5 and 6.
fn forked(signal: Option<&str>) -> (Scene, Log, Log) {
    let (scene, old) = scene(signal);
    let fork = 5 * SIZE + 300_000;
    let mut new = Log::new(START, SIZE, 1, SYSTEM);
    let mut n = 0_usize;
    while new.at() < fork {
        new.record(10, 0, &vec![n as u8 | 1; 3000]);
        n += 1;
    }
    let switch = new.at();
    new.tli = 2;
    while new.at() < 7 * SIZE {
        new.record(10, 0, &[9; 3000]);
    }
    for no in 3..5 {
        scene.put(&name(1, no), &part(&new, no));
    }
    scene.put(&name(2, 5), &part(&new, 5)).put(&name(2, 6), &part(&new, 6));
    scene.put("00000002.history", format!("1\t0/{switch:X}\tx\n").as_bytes());
    (scene, old, new)
}

#[test]
fn an_old_timelines_files_behind_a_fork_are_for_those_who_stay_on_it() {
    let (scene, old, new) = forked(TO_POINT);
    // On the way to the new timeline.
    for pin in [None, Some(2)] {
        let ask = |name: &str| match pin {
            Some(pin) => scene.ask_pinned(name, pin),
            None => scene.ask(name),
        };
        assert_eq!(ask(&name(1, 4)), Outcome::Found);
        assert_eq!(ask(&name(2, 5)), Outcome::Found);
        assert!(scene.got() == part(&new, 5));
        unknown(&ask(&name(1, 5)), "--timeline 1");
        unknown(&ask(&name(1, 6)), "--timeline 1");
        // Past the end of both, asked in this order: recovery ends there.
        assert_eq!(ask(&name(2, 7)), Outcome::Absent);
        assert_eq!(ask(&name(1, 7)), Outcome::Absent);
        // The new timeline has no such file, and never had.
        assert_eq!(ask(&name(2, 4)), Outcome::Absent);
    }
    assert_eq!(scene.ask_pinned(&name(1, 5), 1), Outcome::Found);
    assert!(scene.got() == part(&old, 5));
    assert_eq!(scene.ask_pinned(&name(1, 6), 1), Outcome::Found);
    assert_eq!(scene.ask_pinned(&name(1, 7), 1), Outcome::Absent);
}

#[test]
fn a_standby_is_never_fed_the_tail_of_an_old_timeline() {
    let (scene, _, _) = forked(STANDBY);
    assert_eq!(scene.ask(&name(1, 4)), Outcome::Found);
    assert_eq!(scene.ask(&name(1, 5)), Outcome::Absent);
    assert_eq!(scene.ask(&name(1, 6)), Outcome::Absent);
    assert_eq!(scene.ask(&name(2, 5)), Outcome::Found);
    // Before a byte of the new timeline has come.
    scene.remove(&name(2, 5)).remove(&name(2, 6));
    assert_eq!(scene.ask(&name(2, 5)), Outcome::Absent);
    assert_eq!(scene.ask(&name(1, 5)), Outcome::Absent);
    assert_eq!(scene.ask(&name(1, 4)), Outcome::Found);
}

/// P8: a hole before the fork, or at the beginning of the new timeline, is a hole.
#[test]
fn p8_a_hole_on_the_way_to_a_timeline_is_no_end() {
    for pin in [None, Some(2)] {
        let ask = |scene: &Scene, name: &str| match pin {
            Some(pin) => scene.ask_pinned(name, pin),
            None => scene.ask(name),
        };
        let (scene, _, new) = forked(TO_POINT);
        scene.remove(&name(2, 5));
        unknown(&ask(&scene, &name(2, 5)), "is missing");
        // The server looks for the old timeline's next.
        unknown(&ask(&scene, &name(1, 5)), "is missing");
        let (scene, ..) = forked(TO_POINT);
        scene.remove(&name(1, 4)).remove(&name(1, 5)).remove(&format!("{}.partial", name(1, 6)));
        unknown(&ask(&scene, &name(1, 4)), "is missing");
        scene.put(&format!("{}.partial", name(1, 4)), &part(&new, 4));
        unknown(&ask(&scene, &name(1, 4)), "is missing");
    }
    let (scene, ..) = forked(TO_POINT);
    scene.remove("00000002.history");
    unknown(&scene.ask_pinned(&name(1, 4), 2), "history file of timeline 2");
}

#[test]
fn sibling_timelines_do_not_stand_in_each_others_way() {
    let (scene, _, _) = forked(TO_POINT);
    // A third one forks from the first later than the second.
    scene.put("00000003.history", format!("1\t0/{:X}\tx\n", 6 * SIZE + 8192).as_bytes());
    assert_eq!(scene.ask_pinned(&name(1, 5), 3), Outcome::Found);
    assert_eq!(scene.ask_pinned(&name(2, 5), 2), Outcome::Found);
    unknown(&scene.ask_pinned(&name(1, 5), 2), "--timeline 1");
    // Nothing of it has come, though a plan saw it: that is not the end of it.
    unknown(&scene.ask_pinned(&name(3, 6), 3), "no WAL of timeline 3");
}

#[test]
fn timelines_that_the_archive_does_not_know() {
    let (scene, _, _) = forked(STANDBY);
    assert_eq!(scene.ask(&name(7, 6)), Outcome::Absent);
    unknown(&scene.ask_pinned(&name(7, 6), 7), "no WAL of timeline 7");
    scene.put("00000009.history", format!("1\t0/{:X}\tx\n", 6 * SIZE + 8192).as_bytes());
    unknown(&scene.ask(&name(7, 6)), "no WAL of timeline 7");
}

#[test]
fn what_comes_while_it_is_asked_again_is_given() {
    let (scene, log) = scene(STANDBY);
    scene.remove(&name(1, 4));
    let mut request = scene.request(&name(1, 4));
    request.patience = Some(Duration::from_secs(30));
    let (path, bytes) = (scene.path("repo/wal").join(name(1, 4)), part(&log, 4));
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(700));
        fs::write(path.with_extension("tmp"), bytes).unwrap();
        fs::rename(path.with_extension("tmp"), path).unwrap();
    });
    assert_eq!(wal_get(&request), Outcome::Found);
    late.join().unwrap();
}

fn parse(args: &[&str]) -> Result<Request, String> {
    Request::parse(args.iter().map(OsString::from))
}

#[test]
fn arguments() {
    let all = ["--repo", "/r", "--timeline=3", "--unknown-timeout", "5min", "--partial", "--end-at-gap=G", "f", "p"];
    let request = parse(&all).unwrap();
    assert_eq!(
        request,
        Request {
            repository: "/r".into(),
            name: "f".to_owned(),
            destination: "p".into(),
            timeline: TimelineId::new(3),
            end_at_gap: Some("G".to_owned()),
            partial: true,
            patience: Some(Duration::from_secs(300)),
            data_directory: ".".into(),
        }
    );
    assert_eq!(parse(&["--repo=/r", "--", "--f", "p"]).unwrap().name, "--f");
    assert_eq!(
        parse(&["f", "p", "--repo", "/r", "--unknown-timeout=7"]).unwrap().patience,
        Some(Duration::from_secs(7))
    );
    for wrong in [
        &["f", "p"][..],
        &["--repo", "/r", "f"],
        &["--repo", "/r", "f", "p", "q"],
        &["--repo"],
        &["--repo=", "f", "p"],
        &["--repo", "/r", "--timeline", "0", "f", "p"],
        &["--repo", "/r", "--timeline", "x", "f", "p"],
        &["--repo", "/r", "--unknown-timeout", "-1s", "f", "p"],
        &["--repo", "/r", "--partial=no", "f", "p"],
        &["--repo", "/r", "--help", "f", "p"],
    ] {
        assert!(parse(wrong).is_err(), "{wrong:?}");
    }
}

/// P8: 1 means "no more WAL", 2 to 125 mean the same to the server.
#[test]
fn p8_only_three_exit_codes_whatever_happens() {
    assert_eq!(run([].into_iter()), 255);
    assert_eq!(run(["--help".into()].into_iter()), 255);
    assert_eq!(
        run(["--repo".into(), "/none".into(), "--unknown-timeout=0".into(), "f".into(), "p".into()].into_iter()),
        255
    );
    assert_eq!(guarded(|| panic!("a mistake of ours")), 255);
    let codes = [Outcome::Found, Outcome::Absent, Outcome::Unknown(String::new())].map(|outcome| outcome.code());
    assert_eq!(codes, [0, 1, 255]);
}

#[test]
fn the_destination_may_be_absolute_and_is_replaced() {
    let (scene, log) = scene(TO_POINT);
    let path = scene.path("elsewhere");
    fs::write(&path, "old").unwrap();
    let mut request = scene.request(&name(1, 3));
    request.destination = path.clone();
    assert_eq!(wal_get(&request), Outcome::Found);
    assert!(fs::read(Path::new(&path)).unwrap() == part(&log, 3));
}
