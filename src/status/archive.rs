//! The archive's windows, gaps and islands, with exact ends and commit times.

use serde::Serialize;

use super::times::{Moment, Tail, Times};
use crate::repository::{
    BackupEntry, BackupId, BackupState, Coverage, Gap, Seal, Stretch, Time, WalPath, Window, WindowEnd,
};
use crate::wal::{History, Lsn, Pos, Segment, TimelineId};

/// Where WAL ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct End {
    /// Exclusive end of the last whole record.
    #[serde(flatten)]
    pub pos: Pos,
    /// When the last transaction before it ended.
    pub last_commit: Option<Moment>,
}

/// What ends a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// WAL is missing.
    Gap,
    /// This timeline forked off before, and is gone on with.
    Fork(TimelineId),
    /// Nothing: it goes on as WAL arrives.
    Archive,
}

/// The moments that can be restored on one path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct WindowStatus {
    /// The timeline that it leads to.
    pub timeline: TimelineId,
    /// The stop of its first backup.
    pub from: Pos,
    /// When that backup had ended.
    pub from_time: Time,
    /// Its end.
    pub to: End,
    /// What ends it.
    pub ended_by: Cause,
    /// The complete backups that open it, in their order.
    pub backups: Vec<BackupId>,
}

/// Missing WAL, and what it cost.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct GapStatus {
    /// Where it begins: the end of the last whole record before it.
    pub from: Pos,
    /// Exclusive end.
    pub to: Pos,
    /// How much is missing.
    pub bytes: u64,
    /// Whether an operator has accepted it (`walhold receive --accept-gap`).
    pub accepted: bool,
    /// When the last transaction before it ended.
    pub last_commit_before: Option<Moment>,
    /// When the first transaction behind it ended, if that was found.
    pub first_commit_after: Option<Time>,
    /// Complete backups from which nothing behind it can be reached.
    pub ends: Vec<BackupId>,
    /// Complete backups whose own WAL it is, so that they cannot be restored.
    pub breaks: Vec<BackupId>,
}

/// WAL that a backup brought itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct IslandStatus {
    /// Its first byte.
    pub from: Pos,
    /// Exclusive end of its last whole record.
    pub to: Lsn,
    /// The backups in it.
    pub backups: Vec<BackupId>,
}

/// A timeline that WAL is held of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TimelineStatus {
    /// Which.
    pub timeline: TimelineId,
    /// Where it forked off, and off which; `None` for the first, and where that is not known.
    pub forked_from: Option<Pos>,
    /// False if its history file is missing.
    pub history_held: bool,
    /// What is held of it, in order.
    pub ranges: Vec<RangeStatus>,
}

/// WAL of one timeline without a gap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct RangeStatus {
    /// Its first byte.
    pub from: Lsn,
    /// Exclusive end of its last whole record.
    pub to: Lsn,
    /// When the first transaction in it ended, if that was found.
    pub first_commit: Option<Time>,
    /// When the last one did.
    pub last_commit: Option<Time>,
}

/// Reads what names don't tell.
pub(super) struct Reader<'a> {
    coverage: &'a Coverage,
    seals: Vec<&'a Seal>,
    times: Times,
}

impl<'a> Reader<'a> {
    pub(super) fn new(coverage: &'a Coverage, entries: &'a [BackupEntry], times: Times) -> Self {
        let seal = |entry: &'a BackupEntry| match &entry.state {
            BackupState::Sealed(seal) => Some(&**seal),
            _ => None,
        };
        Self { coverage, seals: entries.iter().filter_map(seal).collect(), times }
    }

    pub(super) fn into_problems(self) -> Vec<String> {
        self.times.into_problems()
    }

    /// Where receiving goes on.
    pub(super) fn held(&mut self) -> Option<End> {
        let path = self.coverage.newest_path()?;
        let last = path.stretches().last()?;
        let known = self.last_stop(path, last);
        Some(self.end(path.way(), last, known))
    }

    /// The newest are read first, for reading is bounded.
    pub(super) fn windows(&mut self) -> Vec<WindowStatus> {
        let mut windows: Vec<_> = self.coverage.windows().iter().rev().filter_map(|w| self.window(w)).collect();
        windows.reverse();
        windows
    }

    fn window(&mut self, window: &Window) -> Option<WindowStatus> {
        let path = self.path(window.timeline())?;
        let stretch = at(path, window.from().lsn())?;
        let opens = |seal: &&&Seal| window.backups().contains(&seal.id);
        let known = self.seals.iter().filter(opens).map(|seal| seal.stop_time).max();
        let from_time = self.seals.iter().find(|seal| window.backups().first() == Some(&seal.id))?.stop_time;
        let mut to = self.end(path.way(), stretch, known);
        if to.pos.lsn() < window.from().lsn() {
            to.pos = window.from();
        }
        Some(WindowStatus {
            timeline: window.timeline(),
            from: window.from(),
            from_time,
            to,
            ended_by: match window.end() {
                WindowEnd::Gap(_) => Cause::Gap,
                WindowEnd::Left(child) => Cause::Fork(child),
                WindowEnd::Archive => Cause::Archive,
            },
            backups: window.backups().to_vec(),
        })
    }

    pub(super) fn gaps(&mut self) -> Vec<GapStatus> {
        let mut gaps: Vec<_> = self.coverage.gaps().iter().rev().filter_map(|gap| self.gap(*gap)).collect();
        gaps.reverse();
        gaps
    }

    fn gap(&mut self, gap: Gap) -> Option<GapStatus> {
        let sides = |path: &'a WalPath| {
            let sides = path.stretches().windows(2).filter_map(|pair| <&[Stretch; 2]>::try_from(pair).ok());
            let mut sides = sides.filter(|[before, behind]| before.to() == gap.from() && behind.from() == gap.to());
            sides.next().map(|[before, behind]| (path, before, behind))
        };
        let (path, before, behind) = self.coverage.paths().find_map(sides)?;
        let known = self.last_stop(path, before);
        let End { pos: from, last_commit } = self.end(path.way(), before, known);
        let first_commit_after = self.times.first(path.way(), behind.from().lsn(), limit(behind));
        let mut ends: Vec<_> = self.coverage.ended_by(gap).flat_map(Window::backups).copied().collect();
        ends.dedup();
        let crosses = |seal: &&&Seal| {
            self.coverage.unheld().contains(&seal.id)
                && path.carries(seal.stop)
                && seal.start.lsn() < gap.to().lsn()
                && seal.stop.lsn() > from.lsn()
        };
        let breaks = self.seals.iter().filter(crosses).map(|seal| seal.id).collect();
        let bytes = gap.to().lsn().saturating_sub(from.lsn());
        let accepted = self.coverage.is_accepted(gap);
        let last_commit_before = last_commit;
        Some(GapStatus { from, to: gap.to(), bytes, accepted, last_commit_before, first_commit_after, ends, breaks })
    }

    pub(super) fn islands(&mut self) -> Vec<IslandStatus> {
        let mut islands = Vec::new();
        for island in self.coverage.islands() {
            let range = island.range();
            let Some(path) = self.path(range.from().tli()) else { continue };
            let tail = self.times.tail(path.way(), range.from().lsn(), range.limit());
            islands.push(IslandStatus { from: range.from(), to: tail.whole, backups: island.backups().to_vec() });
        }
        islands
    }

    pub(super) fn timelines(&mut self) -> Vec<TimelineStatus> {
        let mut timelines = Vec::new();
        // The newest first, as with windows.
        for path in self.coverage.paths().rev() {
            let (timeline, way) = (path.way().tli(), path.way());
            let forked_from = way.switches().last().map(|switch| Pos::new(switch.from, switch.at));
            // Of its own name alone, whatever precedes it on its path.
            let alone = History::alone(timeline);
            let mut ranges = Vec::new();
            for range in self.coverage.ranges().filter(|range| range.from().tli() == timeline) {
                let Tail { whole, last } = self.times.tail(&alone, range.from().lsn(), range.limit());
                let first_commit = self.times.first(&alone, range.from().lsn(), range.limit());
                ranges.push(RangeStatus { from: range.from().lsn(), to: whole, first_commit, last_commit: last });
            }
            timelines.push(TimelineStatus { timeline, forked_from, history_held: path.is_known(), ranges });
        }
        timelines.reverse();
        timelines
    }

    /// How far WAL is held without a gap from `start` on, on the way to `tli`.
    pub(super) fn held_from(&mut self, start: Lsn, tli: TimelineId) -> Option<Lsn> {
        let path = self.path(tli)?;
        let stretch = at(path, start)?;
        let end = self.end(path.way(), stretch, None).pos.lsn();
        (end > start).then_some(end)
    }

    /// Whether a complete backup lacks WAL.
    pub(super) fn lacks_wal(&self, id: BackupId) -> bool {
        self.coverage.unheld().contains(&id)
    }

    fn path(&self, tli: TimelineId) -> Option<&'a WalPath> {
        self.coverage.paths().find(|path| path.way().tli() == tli)
    }

    fn end(&mut self, way: &History, stretch: &Stretch, known: Option<Time>) -> End {
        let limit = limit(stretch);
        let Tail { whole, last } = self.times.tail(way, stretch.from().lsn(), limit);
        let last_commit = Moment::of(last, known);
        let before = Segment::containing(Pos::new(way.tli(), whole), self.coverage.segment_size()).start();
        let before = if before == whole { Lsn::new(whole.get().saturating_sub(1)) } else { whole };
        let tli = way.segment_at(before, self.coverage.segment_size()).tli();
        End { pos: Pos::new(tli, whole), last_commit }
    }

    /// When the last backup had ended that did so on a stretch.
    fn last_stop(&self, path: &WalPath, stretch: &Stretch) -> Option<Time> {
        let on = |seal: &&&Seal| path.carries(seal.stop) && stretch.may_hold(seal.start.lsn(), seal.stop.lsn());
        self.seals.iter().filter(on).map(|seal| seal.stop_time).max()
    }
}

/// Exclusive end of what a stretch may hold.
fn limit(stretch: &Stretch) -> Lsn {
    stretch.tail().map_or_else(|| stretch.to().lsn(), Segment::end)
}

/// The stretch that `lsn` lies in, or that ends before it.
fn at(path: &WalPath, lsn: Lsn) -> Option<&Stretch> {
    path.stretches().iter().rev().find(|stretch| stretch.from().lsn() <= lsn)
}
