use super::*;
use crate::repository::tests::{SIZE, seal_of};

fn size() -> SegmentSize {
    SegmentSize::new(SIZE).unwrap()
}

fn tli(id: u32) -> TimelineId {
    TimelineId::new(id).unwrap()
}

/// A position in tenths of a segment: `at(1, 35)` is the middle of the fourth.
pub(in crate::repository) fn at(id: u32, tenths: u64) -> Pos {
    Pos::new(tli(id), Lsn::new(tenths * SIZE / 10))
}

/// Names such as `1:3-7`, `1:8p` (begun) and `2h` (history).
pub(in crate::repository) fn names(text: &str) -> Listing {
    let mut names = Vec::new();
    for word in text.split_whitespace() {
        if let Some(id) = word.strip_suffix('h') {
            names.push(format!("{:08X}.history", id.parse::<u32>().unwrap()));
            continue;
        }
        let (id, numbers) = word.split_once(':').unwrap();
        let (numbers, suffix) = numbers.strip_suffix('p').map_or((numbers, ""), |numbers| (numbers, ".partial"));
        let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
        for no in first.parse::<u64>().unwrap()..=last.parse().unwrap() {
            let segment = Segment::containing(Pos::new(tli(id.parse().unwrap()), Lsn::new(no * SIZE)), size());
            names.push(format!("{segment}{suffix}"));
        }
    }
    Listing::of(names.iter().map(String::as_str), size())
}

/// Each timeline with its ancestors' ends: `(3, [(1, 45), (2, 60)])`.
pub(in crate::repository) fn history(id: u32, switches: &[(u32, u64)]) -> History {
    let lines: String = switches.iter().map(|(from, at_)| format!("{from}\t{}\tx\n", at(1, *at_).lsn())).collect();
    History::parse(tli(id), lines.as_bytes()).unwrap()
}

pub(in crate::repository) fn id(n: u32) -> BackupId {
    format!("20261122T00{:02}{:02}Z", n / 60, n % 60).parse().unwrap()
}

pub(in crate::repository) fn backup(n: u32, start: Pos, stop: Pos) -> BackupEntry {
    let seal = seal_of(id(n), start, stop, Vec::new());
    BackupEntry { id: id(n), state: BackupState::Sealed(Box::new(seal)), running: false, kept: false, untested: false }
}

fn coverage(text: &str, histories: Vec<History>, backups: &[BackupEntry]) -> Coverage {
    Coverage::new(&names(text), histories, size(), backups)
}

fn shown_ranges(coverage: &Coverage) -> Vec<(u32, u64, u64, Option<u64>)> {
    let tenths = |lsn: Lsn| (lsn.get() * 10).div_ceil(SIZE);
    coverage
        .ranges()
        .map(|r| (r.from.tli().get(), tenths(r.from.lsn()), tenths(r.to), r.tail.map(Segment::no)))
        .collect()
}

/// Path, first stop, end (tenths), backups, what ends it.
fn shown(coverage: &Coverage) -> Vec<(u32, u64, u64, Vec<BackupId>, String)> {
    let tenths = |pos: Pos| (pos.lsn().get() * 10).div_ceil(SIZE);
    let end = |end| match end {
        WindowEnd::Gap(gap) => {
            format!("gap {}@{}-{}@{}", tenths(gap.from), gap.from.tli(), tenths(gap.to), gap.to.tli())
        }
        WindowEnd::Left(tli) => format!("left for {tli}"),
        WindowEnd::Archive => "archive".to_owned(),
    };
    let all = coverage.windows().iter();
    all.map(|w| (w.timeline.get(), tenths(w.from), tenths(w.to), w.backups.clone(), end(w.end))).collect()
}

#[test]
fn ranges_end_at_what_is_missing_or_begun() {
    let found = coverage("1:3-5 1:7 1:8p 1:9-10 1:20p 2:1", vec![], &[]);
    assert_eq!(
        shown_ranges(&found),
        [(1, 30, 60, None), (1, 70, 80, Some(8)), (1, 90, 110, None), (1, 200, 200, Some(20)), (2, 10, 20, None)]
    );
    assert_eq!(found.gaps().len(), 3);
    assert!(!found.paths().nth(1).unwrap().is_known());
    let empty = coverage("", vec![], &[backup(1, at(1, 1), at(1, 2))]);
    assert_eq!((empty.windows().len(), empty.newest_path(), empty.unheld()), (0, None, &[id(1)][..]));
}

#[test]
fn a_window_goes_from_the_first_stop_to_the_gap() {
    let backups = [
        backup(1, at(1, 32), at(1, 35)),
        backup(2, at(1, 41), at(1, 44)),
        backup(3, at(1, 71), at(1, 88)),
        backup(4, at(1, 58), at(1, 72)),
        backup(5, at(1, 12), at(1, 15)),
    ];
    let found = coverage("1:3-5 1:7 1:8p", vec![], &backups);
    assert_eq!(
        shown(&found),
        [(1, 35, 60, vec![id(1), id(2)], "gap 60@1-70@1".to_owned()), (1, 88, 88, vec![id(3)], "archive".to_owned())]
    );
    let gap = found.gaps()[0];
    assert_eq!((found.ended_by(gap).count(), gap.bytes()), (1, SIZE));
    assert_eq!(found.unheld(), [id(5), id(4)], "one begins before the archive, and one lies across the gap");
    assert!(found.may_hold(at(1, 30).lsn(), at(1, 60)) && !found.may_hold(at(1, 30).lsn(), at(1, 61)));
}

/// Timeline 2 forks off in the middle of segment 5 and begins with a copy of it.
#[test]
fn a_child_goes_on_from_its_parent() {
    let fork = || vec![history(2, &[(1, 55)])];
    let backups = [backup(1, at(1, 32), at(1, 35)), backup(2, at(2, 61), at(2, 62))];
    let found = coverage("1:3-4 1:5p 2:5-6 2:7p 2h", fork(), &backups);
    assert_eq!(shown(&found), [(2, 35, 70, vec![id(1), id(2)], "archive".to_owned())]);
    assert!(found.gaps().is_empty());
    assert!(!found.paths().next().unwrap().is_own() && found.paths().nth(1).unwrap().is_own());

    // Timeline 1 went on: both have windows, and a backup behind the fork is on timeline 1's alone.
    let backups = [backup(1, at(1, 32), at(1, 35)), backup(2, at(1, 61), at(1, 62))];
    let found = coverage("1:3-6 2:5 2h", fork(), &backups);
    assert_eq!(
        shown(&found),
        [(1, 35, 70, vec![id(1), id(2)], "left for 2".to_owned()), (2, 35, 60, vec![id(1)], "archive".to_owned())]
    );
    // The parent does not reach the fork, the child does not begin at it, or neither.
    for (text, gap) in
        [("1:3 2:5 2h", "gap 40@1-50@2"), ("1:3-5 2:6 2h", "gap 50@1-60@2"), ("1:3 1:4p 2:6 2h", "gap 40@1-60@2")]
    {
        let found = coverage(text, fork(), &backups[..1]);
        let own = shown(&found).into_iter().find(|window| window.0 == 2).unwrap();
        assert_eq!(own.4, gap, "{text}");
        assert_eq!(found.gaps().len(), 1);
    }
    // Without the history file nobody knows that they belong together.
    let found = coverage("1:3-4 2:5", vec![], &backups[..1]);
    assert_eq!(shown(&found), [(1, 35, 50, vec![id(1)], "archive".to_owned())]);
}

/// Two forks in one segment, and a grandchild whose parent has nothing of its own.
#[test]
fn timelines_that_live_for_less_than_a_segment() {
    let histories = vec![history(2, &[(1, 52)]), history(3, &[(1, 52), (2, 57)])];
    let backups = [backup(1, at(1, 32), at(1, 35)), backup(2, at(3, 62), at(3, 63))];
    let found = coverage("1:3-4 1:5p 2:5p 3:5-6", histories.clone(), &backups);
    assert_eq!(shown(&found), [(3, 35, 70, vec![id(1), id(2)], "archive".to_owned())]);
    let found = coverage("1:3-4 3:5-6 2h 3h", histories, &backups);
    assert_eq!(shown(&found), [(3, 35, 70, vec![id(1), id(2)], "archive".to_owned())]);
}

#[test]
fn an_island_ends_with_its_backup() {
    let alone = |n, start, stop| {
        let mut entry = backup(n, start, stop);
        let BackupState::Sealed(seal) = &mut entry.state else { unreachable!() };
        seal.wal.captured_by = CapturedBy::Backup;
        entry
    };
    let backups = [
        alone(1, at(1, 32), at(1, 35)),
        alone(2, at(1, 62), at(1, 75)),
        alone(3, at(1, 95), at(1, 97)),
        backup(4, at(1, 205), at(1, 206)),
    ];
    let found = coverage("1:3p 1:6 1:7p 1:9-12 1:20p", vec![], &backups);
    let islands: Vec<_> = found.islands().iter().map(|island| island.backups().to_vec()).collect();
    assert_eq!(islands, [[id(1)], [id(2)]], "the third was gone on with, the fourth has a receiver");
    assert_eq!(found.islands()[1].range().tail().map(Segment::no), Some(7));
}

#[test]
fn what_can_be_reached_ends_at_gaps_and_follows_forks() {
    let histories = vec![history(2, &[(1, 55)])];
    let found = coverage("1:3-6 1:8-9 2:5-6 2:9 2h", histories, &[]);
    let reach = |pos| {
        let all = found.reachable(pos);
        all.iter().map(|r| (r.from.tli().get(), r.from.lsn().get() / SIZE, r.limit().get() / SIZE)).collect::<Vec<_>>()
    };
    assert_eq!(reach(at(1, 41)), [(1, 4, 7), (1, 4, 5), (2, 5, 7)]);
    assert_eq!(reach(at(1, 61)), [(1, 6, 7)]);
    assert_eq!(reach(at(2, 61)), [(2, 6, 7)]);
    assert_eq!(reach(at(1, 72)), [(1, 8, 10)], "not held: all that is behind");
    assert_eq!(reach(at(2, 0)).len(), 3);
}

/// A directory of years.
#[test]
fn many_names_take_no_time() {
    let listing = names("1:1-200000");
    let backups: Vec<_> =
        (0..100).map(|n| backup(n, at(1, 20_000 * u64::from(n) + 12), at(1, 20_000 * u64::from(n) + 15))).collect();
    let begun = std::time::Instant::now();
    let found = Coverage::new(&listing, Vec::new(), size(), &backups);
    assert_eq!(found.windows()[0].backups().len(), 100);
    assert!(begun.elapsed().as_millis() < 1000, "{:?}", begun.elapsed());
}
