use jiff::ToSpan;

use super::*;
use crate::repository::coverage::tests::{at, backup, history, id, names};
use crate::repository::tests::{SIZE, now, seal_of};
use crate::repository::{Coverage, Kind, SegmentRange, Time};
use crate::wal::{History, SegmentSize};

/// What a repository holds; backups by number.
struct Scene {
    names: String,
    histories: Vec<History>,
    backups: Vec<BackupEntry>,
    in_use: Vec<u32>,
}

impl Scene {
    fn new(names: &str, histories: Vec<History>, backups: Vec<BackupEntry>) -> Self {
        let mut backups = backups;
        backups
            .sort_by_key(|entry| (entry.start().is_none(), entry.start().map(|pos| (pos.tli(), pos.lsn())), entry.id));
        Self { names: names.to_owned(), histories, backups, in_use: Vec::new() }
    }

    fn coverage(&self) -> Coverage {
        let size = SegmentSize::new(SIZE).unwrap();
        Coverage::new(&names(&self.names), self.histories.clone(), size, &self.backups)
    }

    fn try_plan(&self, policy: &Policy) -> Result<Plan, Undecided> {
        let in_use = self.in_use.iter().map(|n| id(*n)).collect();
        plan(&self.coverage(), &self.backups, &in_use, policy, now())
    }

    /// The numbers of those that go, and the WAL that goes.
    fn goes(&self, policy: &Policy) -> (Vec<u32>, String) {
        let plan = self.try_plan(policy).unwrap();
        let numbers = (0..3600).filter(|n| plan.removed().any(|removed| removed == id(*n))).collect();
        let wal = plan.wal.iter().map(|wal| format!("{}:{}-{}", wal.first.tli(), wal.first.no(), wal.last.no()));
        let wal = wal.chain(plan.histories.iter().map(|tli| format!("{tli}h"))).collect::<Vec<_>>();
        (numbers, wal.join(" "))
    }

    fn reasons(&self, policy: &Policy, n: u32) -> Vec<Keep> {
        let plan = self.try_plan(policy).unwrap();
        match &plan.backups.iter().find(|decision| decision.id == id(n)).unwrap().verdict {
            Verdict::Keep(reasons) => reasons.clone(),
            Verdict::Remove(_) => Vec::new(),
        }
    }

    fn seal(&mut self, n: u32) -> &mut Seal {
        let entry = self.entry(n);
        let BackupState::Sealed(seal) = &mut entry.state else { unreachable!() };
        seal
    }

    fn entry(&mut self, n: u32) -> &mut BackupEntry {
        self.backups.iter_mut().find(|entry| entry.id == id(n)).unwrap()
    }
}

const DAY: Duration = Duration::from_secs(86_400);

fn last(n: u32) -> Policy {
    Policy::new(NonZeroU32::new(n), None, DAY).unwrap()
}

fn window(days: u32) -> Policy {
    Policy::new(None, Some(DAY * days), DAY).unwrap()
}

/// Ended so many days before now.
fn days_ago(days: i64) -> Time {
    Time(now().checked_sub((24 * days).hours()).unwrap())
}

/// Backups on one timeline, each in a segment of its own: number 1 starts in segment 10, 2 in 20.
fn daily(count: u32) -> Vec<BackupEntry> {
    let day = |n: u32| {
        let start = u64::from(n) * 100;
        let mut entry = backup(n, at(1, start + 5), at(1, start + 25));
        let BackupState::Sealed(seal) = &mut entry.state else { unreachable!() };
        seal.stop_time = days_ago(i64::from(count - n));
        entry
    };
    (1..=count).map(day).collect()
}

fn pending(n: u32, start: Pos, stop: Option<Pos>, ready: bool) -> BackupEntry {
    let seal = seal_of(id(n), start, stop.unwrap_or(start), Vec::new());
    let Seal { label, system_identifier, server_version, method, .. } = seal.clone();
    let ready = ready.then(|| Box::new(Seal { stop_time: days_ago(3), ..seal }));
    let state = Pending { id: id(n), label, system_identifier, server_version, method, start, stop, ready };
    BackupEntry {
        id: id(n),
        state: BackupState::Pending(Box::new(state)),
        running: false,
        kept: false,
        untested: false,
    }
}

/// Long ago, by its name.
fn old(mut entry: BackupEntry, to: &str) -> BackupEntry {
    entry.id = to.parse().unwrap();
    entry
}

#[test]
fn the_last_ones_stay_with_all_wal_from_their_start() {
    let scene = Scene::new("1:5-45 1:46p", vec![], daily(4));
    assert_eq!(scene.goes(&last(2)), (vec![1, 2], "1:5-29".to_owned()));
    assert_eq!(scene.goes(&last(1)), (vec![1, 2, 3], "1:5-39".to_owned()));
    assert_eq!(scene.goes(&last(9)), (vec![], "1:5-9".to_owned()));
    assert_eq!(scene.reasons(&last(1), 4), [Keep::Newest, Keep::Last]);
    assert_eq!(Policy::new(None, None, DAY), None);
}

/// A snapshot of which nobody knows whether a server starts from it replaces no backup.
#[test]
fn p4_a_snapshot_without_a_drill_does_not_count() {
    let mut scene = Scene::new("1:5-45 1:46p", vec![], daily(4));
    scene.entry(4).untested = true;
    assert_eq!(scene.goes(&last(1)), (vec![1, 2], "1:5-29".to_owned()));
    assert_eq!(scene.reasons(&last(1), 3), [Keep::Newest, Keep::Last]);
    assert_eq!(scene.reasons(&last(1), 4), [Keep::Newest, Keep::Last]);
    assert_eq!(scene.try_plan(&last(1)).unwrap().notes, [Note::Untested(id(4))]);
    let coverage = scene.coverage();
    let windows: Vec<BackupId> = coverage.windows().iter().flat_map(|window| window.backups().to_vec()).collect();
    assert!(windows.contains(&id(3)) && !windows.contains(&id(4)), "{windows:?}");
}

#[test]
fn the_window_can_be_entered_at_its_first_moment() {
    let scene = Scene::new("1:5-85 1:86p", vec![], daily(8));
    // Number 8 is of now, 6 of two days ago: that is in the window, and 5 reaches its beginning.
    assert_eq!(scene.goes(&window(2)), (vec![1, 2, 3, 4], "1:5-49".to_owned()));
    assert_eq!(scene.reasons(&window(2), 5), [Keep::ReachesWindow]);
    assert_eq!(scene.goes(&window(30)), (vec![], "1:5-9".to_owned()));
    // The larger set stays.
    let both = |last, days| Policy::new(NonZeroU32::new(last), Some(DAY * days), DAY).unwrap();
    assert_eq!(scene.goes(&both(6, 2)).0, [1, 2]);
    assert_eq!(scene.goes(&both(1, 2)).0, [1, 2, 3, 4]);
}

#[test]
fn marks_restores_and_parents_keep_a_backup() {
    let mut scene = Scene::new("1:5-85", vec![], daily(8));
    scene.entry(5).kept = true;
    assert_eq!(scene.goes(&last(1)), (vec![1, 2, 3, 4, 6, 7], "1:5-49".to_owned()));
    scene.in_use = vec![3];
    assert_eq!(scene.goes(&last(1)), (vec![1, 2, 4, 6, 7], "1:5-29".to_owned()));
    scene.seal(3).parent = Some(id(2));
    scene.seal(2).parent = Some(id(1));
    assert_eq!(scene.goes(&last(1)), (vec![4, 6, 7], "1:5-9".to_owned()));
    assert_eq!(scene.reasons(&last(1), 1), [Keep::ParentOf(id(2))]);
}

/// Whichever clock was wrong, more stays.
#[test]
fn clocks_that_went_wrong_keep_more() {
    let mut scene = Scene::new("1:5-85", vec![], daily(8));
    scene.seal(7).stop_time = days_ago(100);
    assert_eq!(scene.goes(&window(2)).0, [1, 2, 3, 4]);
    let notes = scene.try_plan(&window(2)).unwrap().notes;
    assert_eq!(notes, [Note::ClockWentBack(id(7), days_ago(100))]);
    assert_eq!(scene.try_plan(&last(2)).unwrap().notes, [], "time is not asked for");
    scene.seal(3).stop_time = days_ago(-100);
    assert_eq!(scene.goes(&window(2)).0, [1]);
    assert!(scene.try_plan(&window(2)).unwrap().notes.contains(&Note::FromTheFuture(id(3), days_ago(-100))));
    // A clock that is years ahead now makes all of them old: the newest stays.
    let coverage = scene.coverage();
    let later = now().checked_add((24 * 1000).hours()).unwrap();
    let plan = plan(&coverage, &scene.backups, &BTreeSet::new(), &window(2), later).unwrap();
    assert_eq!(plan.removed().count(), 7);
}

#[test]
fn what_lacks_wal_does_not_count_and_the_newest_that_does_not_stays() {
    let scene = Scene::new("1:5-35 1:43-45", vec![], daily(4));
    // Number 4 starts in segment 40.
    assert_eq!(scene.goes(&last(1)), (vec![1, 2], "1:5-29".to_owned()));
    assert_eq!(scene.reasons(&last(1), 3), [Keep::Newest, Keep::Last]);
    assert_eq!(scene.try_plan(&last(1)).unwrap().notes, [Note::LacksWal(id(4))]);
}

/// A chain is one: from the newest that is wanted down to the full one, and what comes after it goes alone.
#[test]
fn p4_a_chain_stays_as_a_whole() {
    let mut scene = Scene::new("1:5-85", vec![], daily(8));
    for n in [2, 3, 4, 6, 7] {
        scene.seal(n).parent = Some(id(n - 1));
        scene.seal(n).kind = Kind::Incremental;
    }
    assert_eq!(scene.goes(&last(1)), (vec![1, 2, 3, 4, 5, 6, 7], "1:5-79".to_owned()));
    assert_eq!(scene.goes(&last(2)), (vec![1, 2, 3, 4], "1:5-49".to_owned()));
    assert_eq!(scene.reasons(&last(2), 5), [Keep::ParentOf(id(6))]);
    scene.entry(3).kept = true;
    assert_eq!(scene.goes(&last(1)), (vec![4, 5, 6, 7], "1:5-9".to_owned()));
    assert_eq!(scene.reasons(&last(1), 2), [Keep::ParentOf(id(3))]);
    // One that waits for its WAL, too, needs what it is based on.
    let mut waiting = pending(9, at(1, 855), Some(at(1, 865)), true);
    let BackupState::Pending(document) = &mut waiting.state else { unreachable!() };
    let ready = document.ready.as_mut().unwrap();
    (ready.kind, ready.parent) = (Kind::Incremental, Some(id(7)));
    scene.backups.push(waiting);
    assert_eq!(scene.goes(&last(1)).0, [4]);
}

#[test]
fn what_lacks_its_base_does_not_count() {
    let mut scene = Scene::new("1:5-45", vec![], daily(4));
    scene.seal(4).parent = Some(id(77));
    scene.seal(4).kind = Kind::Incremental;
    assert_eq!(scene.goes(&last(1)), (vec![1, 2], "1:5-29".to_owned()));
    assert_eq!(scene.reasons(&last(1), 3), [Keep::Newest, Keep::Last]);
    assert_eq!(scene.try_plan(&last(1)).unwrap().notes, [Note::LacksParent(id(4))]);
    assert!(!scene.coverage().windows().iter().any(|window| window.backups().contains(&id(4))));
}

#[test]
fn behind_a_gap_only_what_its_backups_need_stays() {
    let mut scene = Scene::new("1:9-15 1:19-24 1:27-45", vec![], daily(4));
    assert_eq!(scene.goes(&last(2)), (vec![1, 2], "1:9-15 1:19-24 1:27-29".to_owned()));
    // Kept before the gap: its own stretch stays whole, the island in between goes with its backup.
    scene.entry(1).kept = true;
    assert_eq!(scene.goes(&last(1)), (vec![2, 3], "1:9-9 1:19-24 1:27-39".to_owned()));
    // What a receiver goes on with stays although no backup has been taken on it.
    let scene = Scene::new("1:9-15 1:18-20 1:27-29 1:30p", vec![], daily(1));
    assert_eq!(scene.goes(&last(1)), (vec![], "1:9-9 1:18-20".to_owned()));
}

#[test]
fn forks_stay_reachable() {
    let fork = || vec![history(2, &[(1, 355)])];
    // Timeline 1 was left in segment 35, before number 4, which is on its rest.
    let mut scene = Scene::new("1:5-45 1:46p 2:35-50 2:51p 2h", fork(), daily(4));
    // On the way to timeline 2 number 3 is the last one; number 4 is the newest of all.
    assert_eq!(scene.goes(&last(1)), (vec![1, 2], "1:5-29".to_owned()));
    assert_eq!(scene.goes(&last(2)), (vec![1], "1:5-19".to_owned()));
    // A backup on timeline 2: timeline 1 is needed no more, but timeline 2's history is.
    scene.backups.push(backup(9, at(2, 405), at(2, 425)));
    assert_eq!(scene.goes(&last(1)), (vec![1, 2, 3, 4], "1:5-46 2:35-39".to_owned()));
    // In time: both branches can be reached while they are in the window.
    scene.seal(9).stop_time = days_ago(0);
    assert_eq!(scene.goes(&window(1)).0, [1]);
    // Number 4 was the last of timeline 1 and is before the window, as is the first of timeline 2.
    for n in 1..=4 {
        scene.seal(n).stop_time = days_ago(20 - i64::from(n));
    }
    scene.seal(9).stop_time = days_ago(10);
    assert_eq!(scene.goes(&window(2)), (vec![1, 2, 3, 4], "1:5-46 2:35-39".to_owned()));
    assert_eq!(scene.goes(&window(12)).0, [1, 2], "timeline 2 from number 3, the rest of 1 from 4");
}

#[test]
fn histories_stay_for_their_descendants() {
    let histories = vec![history(2, &[(1, 355)]), history(3, &[(1, 205)]), history(4, &[(1, 355), (2, 405)])];
    let backups = vec![backup(1, at(4, 425), at(4, 426))];
    let scene = Scene::new("1:30-35 2:35-40 3:20-22 4:40-50 2h 3h 4h", histories, backups);
    assert_eq!(scene.goes(&last(1)), (vec![], "1:30-35 2:35-40 3:20-22 4:40-41 3h".to_owned()));
}

#[test]
fn pending_backups_are_cleared_when_nothing_can_come_of_them() {
    let cleared = |entry: BackupEntry| {
        let scene = Scene::new("1:5-30 1:33-45", vec![], daily(4).into_iter().chain([entry]).collect());
        let plan = scene.try_plan(&last(1)).unwrap();
        let other = plan.backups.iter().find(|decision| (1..5).all(|n| decision.id != id(n))).unwrap();
        let gone = plan.wal.iter().map(|wal| wal.segments()).sum::<u64>();
        (other.verdict.clone(), gone)
    };
    let long_ago = "20261119T000000Z";
    let of = |start, stop, ready| pending(60, at(1, start), stop, ready);
    // The copy was never whole.
    let given_up = (Verdict::Remove(Remove::GivenUp), 33);
    assert_eq!(cleared(old(of(205, None, false), long_ago)), given_up);
    assert_eq!(cleared(of(205, None, false)), (Verdict::Keep(vec![Keep::Young]), 22), "segments 20 to 30 stay");
    let future = old(of(205, None, false), "20271119T000000Z");
    assert_eq!(cleared(future).0, Verdict::Keep(vec![Keep::Young]));
    let running = BackupEntry { running: true, ..old(of(205, None, false), long_ago) };
    assert_eq!(cleared(running).0, Verdict::Keep(vec![Keep::Running]));
    // It was, and its WAL is here, is still coming, or has a hole.
    let may = Verdict::Keep(vec![Keep::MayBeSealed]);
    assert_eq!(cleared(old(of(205, Some(at(1, 225)), true), long_ago)).0, may);
    assert_eq!(cleared(old(of(445, Some(at(1, 999)), true), long_ago)).0, may);
    assert_eq!(cleared(old(of(205, Some(at(1, 999)), true), long_ago)).0, Verdict::Remove(Remove::WalLost));
    // Nothing at all is known of one that is being begun: no WAL goes.
    let mut beginning = old(of(205, None, false), long_ago);
    (beginning.state, beginning.running) = (BackupState::Unfinished, true);
    assert_eq!(cleared(beginning.clone()), (Verdict::Keep(vec![Keep::Running]), 0));
    beginning.running = false;
    assert_eq!(cleared(beginning), given_up);
}

#[test]
fn nothing_goes_where_nobody_can_tell() {
    let mut scene = Scene::new("1:5-45", vec![], daily(4));
    scene.entry(1).state = BackupState::Damaged("bits".to_owned());
    assert!(matches!(scene.try_plan(&last(1)), Err(Undecided::Damaged { .. })));
    let scene = Scene::new("1:5-45 2:45-50", vec![], daily(4));
    assert_eq!(scene.try_plan(&last(1)), Err(Undecided::NoHistory(TimelineId::new(2).unwrap())));
    let scene = Scene::new("1:5-45", vec![], vec![pending(1, at(1, 205), None, false)]);
    assert_eq!(scene.goes(&last(1)), (vec![], String::new()));
    assert_eq!(scene.try_plan(&last(1)).unwrap().notes, [Note::NoCompleteBackup]);
}

/// The same numbers for the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

/// Timelines that fork, holes in them, backups anywhere at any time.
fn random(dice: &mut Dice) -> Scene {
    let timelines = 1 + dice.below(4) as u32;
    let mut histories: Vec<History> = Vec::new();
    let mut words = Vec::new();
    let mut ends = vec![(0, 5 + dice.below(30))];
    for tli in 1..=timelines {
        let begin = if tli == 1 {
            0
        } else {
            let parent = 1 + dice.below(u64::from(tli) - 1) as u32;
            let (from, to) = ends[parent as usize - 1];
            let fork = from * 10 + dice.below((to - from) * 10 + 1);
            let mut switches: Vec<(u32, u64)> = match histories.iter().find(|history| history.tli().get() == parent) {
                Some(history) => {
                    history.switches().iter().map(|s| (s.from.get(), (s.at.get() * 10).div_ceil(SIZE))).collect()
                }
                None => Vec::new(),
            };
            let fork = fork.max(switches.last().map_or(0, |switch| switch.1));
            switches.push((parent, fork));
            histories.push(history(tli, &switches));
            words.push(format!("{tli}h"));
            ends.push((fork / 10, fork / 10 + 1 + dice.below(30)));
            fork / 10
        };
        let end = ends[tli as usize - 1].1;
        for no in begin..end {
            match dice.below(25) {
                0 => {}
                1 => words.push(format!("{tli}:{no}p")),
                _ => words.push(format!("{tli}:{no}")),
            }
        }
    }
    let mut backups = Vec::new();
    for n in 0..dice.below(9) as u32 {
        let tli = 1 + dice.below(u64::from(timelines)) as usize;
        let (from, to) = ends[tli - 1];
        let start = from * 10 + dice.below((to - from) * 10);
        let (start, stop) = (at(tli as u32, start), at(tli as u32, start + 1 + dice.below(20)));
        let mut entry = match dice.below(6) {
            0 => pending(n, start, Some(stop), dice.below(2) == 0),
            _ => backup(n, start, stop),
        };
        if let BackupState::Sealed(seal) = &mut entry.state {
            seal.stop_time = days_ago(dice.below(20) as i64 - 2);
            seal.parent = (n > 0 && dice.below(4) == 0).then(|| id(dice.below(u64::from(n)) as u32));
            seal.kind = if seal.parent.is_some() { Kind::Incremental } else { Kind::Full };
        }
        entry.kept = dice.below(8) == 0;
        backups.push(entry);
    }
    let in_use = if dice.below(3) == 0 { vec![0] } else { vec![] };
    let mut scene = Scene::new(&words.join(" "), histories, backups);
    scene.in_use = in_use.into_iter().filter(|n| scene.backups.iter().any(|entry| entry.id == id(*n))).collect();
    scene
}

/// What is left when a plan has been carried out.
fn carried_out(scene: &Scene, plan: &Plan) -> Scene {
    let gone: BTreeSet<_> = plan.removed().collect();
    let backups = scene.backups.iter().filter(|entry| !gone.contains(&entry.id)).cloned().collect();
    let words = scene.names.split_whitespace().filter(|word| match word.split_once(':') {
        Some((tli, no)) => {
            let tli = TimelineId::new(tli.parse().unwrap()).unwrap();
            let no = no.trim_end_matches('p').parse().unwrap();
            let segment = Segment::at(tli, no, SegmentSize::new(SIZE).unwrap());
            !plan.wal.iter().any(|wal| wal.contains(segment))
        }
        None => !plan.histories.iter().any(|tli| format!("{tli}h") == **word),
    });
    let names = words.collect::<Vec<_>>().join(" ");
    let histories =
        scene.histories.iter().filter(|history| !plan.histories.contains(&history.tli())).cloned().collect();
    Scene { names, histories, backups, in_use: scene.in_use.clone() }
}

/// P4: whatever the archive and the policy, what stays can do what it could; asking for more keeps
/// more; and the second time there is nothing left to do.
#[test]
fn p4_what_stays_can_be_restored_as_before() {
    let mut removed = (0, 0);
    for seed in 0..800 {
        let mut dice = Dice(seed);
        let scene = random(&mut dice);
        let policies: Vec<_> = (1..4).map(last).chain([1, 5, 12].map(window)).collect();
        let mut before: Option<(usize, BTreeSet<BackupId>, BTreeSet<String>)> = None;
        for (index, policy) in policies.iter().enumerate() {
            let plan = scene.try_plan(policy).unwrap();
            let left = carried_out(&scene, &plan);
            let context = format!("seed {seed}, {policy:?}\n{}\n{plan:?}", scene.names);
            let (was, is) = (scene.coverage(), left.coverage());
            let gone: BTreeSet<_> = plan.removed().collect();
            for entry in left.backups.iter() {
                let Some(start) = entry.start() else { continue };
                // Segment by segment, for a path that is behind a gap may go.
                let reach = |coverage: &Coverage| {
                    let ranges = coverage.reachable(start).into_iter().filter_map(|range| range.segments());
                    let all =
                        ranges.flat_map(|(first, last)| (first.no()..=last.no()).map(move |no| (first.tli(), no)));
                    all.collect::<BTreeSet<_>>()
                };
                assert!(reach(&was).is_subset(&reach(&is)), "{} loses WAL: {context}", entry.id);
                if let Some(seal) = entry.seal() {
                    assert_eq!(was.may_hold(start.lsn(), seal.stop), is.may_hold(start.lsn(), seal.stop), "{context}");
                    assert!(seal.parent.is_none_or(|parent| !gone.contains(&parent)), "{context}");
                    let is_whole = |backups: &[BackupEntry]| chain(backups, seal).is_ok();
                    assert_eq!(is_whole(&scene.backups), is_whole(&left.backups), "{context}");
                }
            }
            for entry in scene.backups.iter().filter(|entry| gone.contains(&entry.id)) {
                assert!(!(entry.kept && entry.seal().is_some()), "{context}");
            }
            let newest = scene.backups.iter().rfind(|entry| entry.seal().is_some());
            assert!(newest.is_none_or(|entry| !gone.contains(&entry.id)), "{context}");
            let again = left.try_plan(policy).unwrap();
            assert_eq!((again.removed().count(), &again.wal[..]), (0, &[][..]), "again {again:?}: {context}");
            removed = (removed.0 + gone.len(), removed.1 + plan.wal.len());
            let wal: BTreeSet<_> = left.names.split_whitespace().map(str::to_owned).collect();
            let kept: BTreeSet<_> = left.backups.iter().map(|entry| entry.id).collect();
            if let Some((at, fewer, less)) = &before
                && index % 3 == at + 1
            {
                assert!(fewer.is_subset(&kept) && less.is_subset(&wal), "asking for more keeps less: {context}");
            }
            before = Some((index % 3, kept, wal));
        }
    }
    assert!(removed.0 > 2_000 && removed.1 > 2_000, "{removed:?}");
}

#[test]
fn a_directory_of_years_is_planned_at_once() {
    let backups = (0..100).map(|n| backup(n, at(1, 20_000 * u64::from(n) + 12), at(1, 20_000 * u64::from(n) + 15)));
    let scene = Scene::new("1:1-200000", vec![], backups.collect());
    let coverage = scene.coverage();
    let begun = std::time::Instant::now();
    let plan = plan(&coverage, &scene.backups, &BTreeSet::new(), &last(7), now()).unwrap();
    assert_eq!(plan.removed_wal().0, 93 * 2000);
    assert!(begun.elapsed().as_millis() < 500, "{:?}", begun.elapsed());
}

/// As its proof found them, even where the path would not lead there.
#[test]
fn segments_that_a_seal_names_stay() {
    let mut scene = Scene::new("1:5-45", vec![], daily(4));
    let named = |no| Segment::at(TimelineId::FIRST, no, SegmentSize::new(SIZE).unwrap());
    scene.seal(4).wal.segments = SegmentRange::all(&[named(20), named(21), named(22)]);
    assert_eq!(scene.goes(&last(1)).1, "1:5-19 1:23-39");
}
