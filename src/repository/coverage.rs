//! What an archive holds, told from names alone: unbroken ranges, the paths that recovery can take
//! through them, the gaps on the way, and the windows that the backups open.
//!
//! A path is one timeline and what it has in common with its ancestors. A name tells that a segment
//! is complete, not that it is sound, and of a begun one not how far it goes; `verify` reads them.

use std::collections::{BTreeMap, BTreeSet};

use super::chain::chain;
use super::{BackupEntry, BackupId, BackupState, CapturedBy, Repository, Seal};
use crate::archive::{ArchiveError, Listing, Stored};
use crate::wal::{History, Lsn, Pos, Segment, SegmentSize, TimelineId};

/// Segments of one timeline without a hole: complete ones, and behind them perhaps one that is begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    from: Pos,
    to: Lsn,
    tail: Option<Segment>,
    size: SegmentSize,
}

impl Range {
    /// Its first byte.
    pub const fn from(&self) -> Pos {
        self.from
    }

    /// Exclusive end of its complete segments; [`Range::from`] if there is none.
    pub const fn to(&self) -> Pos {
        self.from.at(self.to)
    }

    /// The begun segment behind those, which holds an unknown part of its WAL.
    pub const fn tail(&self) -> Option<Segment> {
        self.tail
    }

    /// Exclusive end of what it may hold: as [`Range::to`], or the end of the begun segment.
    pub fn limit(&self) -> Lsn {
        self.tail.map_or(self.to, Segment::end)
    }

    /// Its first and last segment, the begun one included.
    pub fn segments(&self) -> Option<(Segment, Segment)> {
        let size = self.size;
        let first = Segment::containing(self.from, size);
        let last = self.tail.or_else(|| Segment::containing(self.to(), size).previous())?;
        Some((first, last))
    }

    /// The part from `from` to `until`, both at the ends of segments; `None` if that is empty.
    fn clip(&self, from: Lsn, until: Lsn) -> Option<Self> {
        let tail = self.tail.filter(|tail| tail.start() < until && tail.start() >= from);
        let (from, to) = (self.from.lsn().max(from), self.to.min(until));
        (from < to || tail.is_some()).then(|| Self { from: self.from.at(from), to: to.max(from), tail, ..*self })
    }
}

/// WAL that recovery can go through without a hole: ranges of one timeline or of several that take
/// over from each other. There is at least one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stretch {
    first: Range,
    more: Vec<Range>,
}

impl Stretch {
    /// Its first byte.
    pub const fn from(&self) -> Pos {
        self.first.from()
    }

    /// Exclusive end of its complete segments.
    pub fn to(&self) -> Pos {
        self.last().to()
    }

    /// The begun segment at its end, which holds an unknown part of its WAL.
    pub fn tail(&self) -> Option<Segment> {
        self.last().tail()
    }

    /// The parts of it that each timeline contributes, oldest first.
    pub fn ranges(&self) -> impl Iterator<Item = &Range> {
        [&self.first].into_iter().chain(&self.more)
    }

    /// Whether it may hold all from `from` to `to` (exclusive): the begun segment at its end counts
    /// as full.
    pub fn may_hold(&self, from: Lsn, to: Lsn) -> bool {
        self.from().lsn() <= from && from < self.last().limit() && to <= self.last().limit()
    }

    fn last(&self) -> &Range {
        self.more.last().unwrap_or(&self.first)
    }

    /// Takes what follows without a hole; gives back what does not.
    fn extend(&mut self, next: Range) -> Option<Range> {
        let last = self.last();
        if last.tail.is_some() || last.to != next.from.lsn() {
            return Some(next);
        }
        self.more.push(next);
        None
    }
}

/// WAL that is not held although later WAL of the same path is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    from: Pos,
    to: Pos,
}

impl Gap {
    /// Where it begins: the end of the complete segments before it. A begun segment there may hold a
    /// little of it.
    pub const fn from(&self) -> Pos {
        self.from
    }

    /// Exclusive end: the first byte that is held behind it, perhaps on a later timeline.
    pub const fn to(&self) -> Pos {
        self.to
    }

    /// How much is missing at most.
    pub const fn bytes(&self) -> u64 {
        self.to.lsn().saturating_sub(self.from.lsn())
    }
}

/// The WAL of one timeline and what it has in common with its ancestors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Path {
    way: History,
    known: bool,
    own: bool,
    stretches: Vec<Stretch>,
}

impl Path {
    /// Its timeline and the ancestors of that.
    pub const fn way(&self) -> &History {
        &self.way
    }

    /// Whether the ancestors are known: false if the archive lacks the history file.
    pub const fn is_known(&self) -> bool {
        self.known
    }

    /// Whether it leads to WAL that is on no other path. What a timeline holds in the segment in
    /// which a later one forked off does not count.
    pub const fn is_own(&self) -> bool {
        self.own
    }

    /// What is held on it, oldest first; between each two there is a gap.
    pub fn stretches(&self) -> &[Stretch] {
        &self.stretches
    }

    /// Whether WAL that ends at `pos` (exclusive) is on it.
    pub fn carries(&self, pos: Pos) -> bool {
        let switch = || self.way.switch_from(pos.tli());
        self.way.tli() == pos.tli() || switch().is_some_and(|switch| pos.lsn() <= switch.at)
    }

    /// Whether recovery that passes `lsn` comes to its timeline without meeting a gap before.
    pub fn is_reached_from(&self, lsn: Lsn) -> bool {
        self.find(lsn).is_some_and(|(stretch, _)| stretch.last().from.tli() == self.way.tli())
    }

    /// The stretch that may hold the byte at `lsn`, and the gap behind that.
    fn find(&self, lsn: Lsn) -> Option<(&Stretch, Option<Gap>)> {
        let index = self.stretches.partition_point(|stretch| stretch.from().lsn() <= lsn).checked_sub(1)?;
        let stretch = self.stretches.get(index).filter(|stretch| lsn < stretch.last().limit())?;
        let gap = self.stretches.get(index + 1).map(|next| Gap { from: stretch.to(), to: next.from() });
        Some((stretch, gap))
    }

    fn gaps(&self) -> impl Iterator<Item = Gap> {
        self.stretches.windows(2).filter_map(|pair| match pair {
            [before, behind] => Some(Gap { from: before.to(), to: behind.from() }),
            _ => None,
        })
    }
}

/// What ends a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WindowEnd {
    /// WAL is missing.
    Gap(Gap),
    /// The timeline was left for this one, which forked off it before.
    Left(TimelineId),
    /// Nothing: it goes on as WAL arrives.
    Archive,
}

/// The moments that can be restored on one path from backups on one stretch of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Window {
    timeline: TimelineId,
    from: Pos,
    to: Pos,
    tail: Option<Segment>,
    backups: Vec<BackupId>,
    end: WindowEnd,
}

impl Window {
    /// The timeline that its path leads to.
    pub const fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The stop of its first backup.
    pub const fn from(&self) -> Pos {
        self.from
    }

    /// Exclusive end of the complete segments; [`Window::from`] if the backup ends behind that.
    pub const fn to(&self) -> Pos {
        self.to
    }

    /// The begun segment at its end: the window ends somewhere in it.
    pub const fn tail(&self) -> Option<Segment> {
        self.tail
    }

    /// The sealed backups that open it, in their order; at least one.
    pub fn backups(&self) -> &[BackupId] {
        &self.backups
    }

    /// What ends it.
    pub const fn end(&self) -> WindowEnd {
        self.end
    }
}

/// A range that a backup brought itself and that nothing has gone on with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Island {
    range: Range,
    backups: Vec<BackupId>,
}

impl Island {
    /// Its WAL.
    pub const fn range(&self) -> &Range {
        &self.range
    }

    /// The sealed backups that start in it; at least one.
    pub fn backups(&self) -> &[BackupId] {
        &self.backups
    }
}

/// What is held, in ranges, paths, gaps, islands and windows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Coverage {
    size: SegmentSize,
    histories: BTreeMap<TimelineId, History>,
    ranges: BTreeMap<TimelineId, Vec<Range>>,
    paths: BTreeMap<TimelineId, Path>,
    gaps: Vec<Gap>,
    islands: Vec<Island>,
    windows: Vec<Window>,
    unheld: Vec<BackupId>,
    /// The first segments of what is missing and was accepted.
    accepted: Vec<Segment>,
}

impl Repository {
    /// What the archive holds for these backups. Reads names and history files.
    ///
    /// # Errors
    /// When the folder cannot be listed, or a history file cannot be read or understood.
    pub fn coverage(&self, backups: &[BackupEntry]) -> Result<Coverage, ArchiveError> {
        let archive = self.archive();
        let listing = archive.list()?;
        let mut histories = Vec::new();
        for tli in listing.histories() {
            match archive.history(*tli) {
                Ok(history) => histories.push(history),
                // Removed since it was listed.
                Err(ArchiveError::NoHistory(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Coverage::new(&listing, histories, self.segment_size(), backups))
    }
}

impl Coverage {
    /// From the names, the histories that are held, and the backups in any state; pure. Of backups,
    /// the sealed ones count; one that is based on a backup which is not there opens no window.
    pub fn new(listing: &Listing, histories: Vec<History>, size: SegmentSize, backups: &[BackupEntry]) -> Self {
        let ranges = ranges(listing);
        let histories = histories.into_iter().map(|history| (history.tli(), history)).collect();
        let paths = paths(&ranges, &histories, size);
        let mut seals: Vec<&Seal> = backups.iter().filter_map(sealed).collect();
        seals.sort_by_key(|seal| (seal.start.tli(), seal.start.lsn(), seal.id));
        let mut coverage = Self {
            size,
            histories,
            ranges,
            paths,
            gaps: Vec::new(),
            islands: Vec::new(),
            windows: Vec::new(),
            unheld: Vec::new(),
            accepted: listing.accepted_gaps().to_vec(),
        };
        coverage.gaps = coverage.find_gaps();
        coverage.islands = coverage.find_islands(&seals);
        let untested = |seal: &Seal| backups.iter().any(|entry| entry.id == seal.id && entry.untested);
        let counts = |seal: &&Seal| chain(backups, seal).is_ok() && !untested(seal);
        let whole: Vec<&Seal> = seals.iter().copied().filter(counts).collect();
        coverage.windows = coverage.find_windows(&whole);
        let held = |seal: &&&Seal| !coverage.may_hold(seal.start.lsn(), seal.stop);
        coverage.unheld = seals.iter().filter(held).map(|seal| seal.id).collect();
        coverage
    }

    /// The size of the segments.
    pub const fn segment_size(&self) -> SegmentSize {
        self.size
    }

    /// The unbroken ranges of each timeline, in the order of timeline and position.
    pub fn ranges(&self) -> impl Iterator<Item = &Range> {
        self.ranges.values().flatten()
    }

    /// The unbroken ranges of one timeline, in order.
    pub fn ranges_of(&self, tli: TimelineId) -> &[Range] {
        self.ranges.get(&tli).map_or(&[], Vec::as_slice)
    }

    /// The history files that are held, also of timelines without a segment, oldest first.
    pub fn histories(&self) -> impl DoubleEndedIterator<Item = &History> {
        self.histories.values()
    }

    /// A path to each timeline that a segment is held of, oldest first.
    pub fn paths(&self) -> impl DoubleEndedIterator<Item = &Path> {
        self.paths.values()
    }

    /// The path to the newest timeline, on which receiving goes on; `None` if there is no WAL.
    pub fn newest_path(&self) -> Option<&Path> {
        self.paths.values().next_back()
    }

    /// What is missing, in the order of what lies behind it.
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// Whether an operator has accepted it.
    pub fn is_accepted(&self, gap: Gap) -> bool {
        self.accepted.contains(&Segment::containing(gap.from, self.size))
    }

    /// The ranges of backups that nothing has gone on with.
    pub fn islands(&self) -> &[Island] {
        &self.islands
    }

    /// What can be restored; those of the newest timeline last. A backup is in one for each path that
    /// goes on from it.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// The windows that a gap ends.
    pub fn ended_by(&self, gap: Gap) -> impl Iterator<Item = &Window> {
        self.windows.iter().filter(move |window| window.end == WindowEnd::Gap(gap))
    }

    /// Sealed backups that lack WAL, so that they cannot be restored.
    pub fn unheld(&self) -> &[BackupId] {
        &self.unheld
    }

    /// Whether all WAL from `from` to `to` (exclusive) may be held, along the timeline of `to`.
    pub fn may_hold(&self, from: Lsn, to: Pos) -> bool {
        let held = |path: &Path| {
            path.carries(to) && path.find(from).is_some_and(|(stretch, _)| stretch.may_hold(from, to.lsn()))
        };
        // Nearly always the timeline's own path answers.
        self.paths.get(&to.tli()).is_some_and(held) || self.paths.values().any(held)
    }

    /// Whether all WAL from `from` to `to` (exclusive) may be held, or what is missing may still be
    /// received: it is all at the end of a path that has not been left for another.
    pub fn may_come(&self, from: Lsn, to: Pos) -> bool {
        let left = self.left();
        let at_end = |path: &Path| {
            let open = !left.contains_key(&path.way.tli());
            open && path.carries(to) && path.find(from).is_some_and(|(_, gap)| gap.is_none())
        };
        self.may_hold(from, to) || self.paths.values().any(at_end)
    }

    /// All ranges that recovery from `from` on can go through, on every path, from the segment that
    /// holds it; each is given once a path. Where that segment is not held, all that is held behind it.
    pub(super) fn reachable(&self, from: Pos) -> Vec<Range> {
        let mut all = Vec::new();
        for path in self.paths.values().filter(|path| path.carries(from)) {
            let first = Segment::containing(from, self.size).start();
            let stretches = match path.find(first) {
                Some((stretch, _)) => std::slice::from_ref(stretch),
                None => &path.stretches,
            };
            let ranges = stretches.iter().flat_map(Stretch::ranges);
            all.extend(ranges.filter_map(|range| range.clip(first, Lsn::new(u64::MAX))));
        }
        all
    }

    fn find_gaps(&self) -> Vec<Gap> {
        let key = |gap: Gap| [gap.to, gap.from].map(|pos| (pos.tli(), pos.lsn()));
        let all: BTreeMap<_, _> = self.paths.values().flat_map(Path::gaps).map(|gap| (key(gap), gap)).collect();
        all.into_values().collect()
    }

    fn find_islands(&self, seals: &[&Seal]) -> Vec<Island> {
        let mut islands = Vec::new();
        for range in self.ranges() {
            let tli = range.from.tli();
            let first = seals.partition_point(|s| (s.start.tli(), s.start.lsn()) < (tli, range.from.lsn()));
            let behind = seals.partition_point(|s| (s.start.tli(), s.start.lsn()) < (tli, range.limit()));
            let inside = seals.get(first..behind).unwrap_or_default();
            let Some(last) = inside.iter().max_by_key(|seal| seal.stop.lsn()) else { continue };
            // The backup's own session receives the segment that it ends in, and no more.
            let ends_with_it = range.limit() <= Segment::containing(last.stop, self.size).end();
            if last.wal.captured_by == CapturedBy::Backup && ends_with_it {
                islands.push(Island { range: *range, backups: inside.iter().map(|seal| seal.id).collect() });
            }
        }
        islands
    }

    fn find_windows(&self, seals: &[&Seal]) -> Vec<Window> {
        let (mut windows, mut seen): (Vec<Window>, BTreeSet<_>) = (Vec::new(), BTreeSet::new());
        let left = self.left();
        for path in self.paths.values().filter(|path| path.own) {
            let mut open: Vec<(&Stretch, Window)> = Vec::new();
            for seal in seals.iter().filter(|seal| path.carries(seal.stop)) {
                let Some((stretch, gap)) = path.find(seal.start.lsn()) else { continue };
                if !stretch.may_hold(seal.start.lsn(), seal.stop.lsn()) {
                    continue;
                }
                if let Some((_, window)) = open.last_mut().filter(|(opened, _)| std::ptr::eq(*opened, stretch)) {
                    window.backups.push(seal.id);
                    continue;
                }
                let end = match (gap, left.get(&path.way.tli())) {
                    (Some(gap), _) => WindowEnd::Gap(gap),
                    (None, Some(child)) => WindowEnd::Left(*child),
                    (None, None) => WindowEnd::Archive,
                };
                open.push((stretch, Window::new(path, seal, stretch, end)));
            }
            let open = open.into_iter().map(|(_, window)| window);
            // What ends before a fork is on the paths of both.
            let key = |w: &Window| [w.from, w.to].map(|pos| (pos.tli(), pos.lsn()));
            windows.extend(open.filter(|w| !matches!(w.end, WindowEnd::Gap(_)) || seen.insert(key(w))));
        }
        windows
    }

    /// The timelines that a later one forked off of, with the newest such.
    fn left(&self) -> BTreeMap<TimelineId, TimelineId> {
        let forks = |path: &'_ Path| {
            let tli = path.way.tli();
            path.way.switches().iter().map(move |switch| (switch.from, tli)).collect::<Vec<_>>()
        };
        self.paths.values().flat_map(forks).collect()
    }
}

impl Window {
    fn new(path: &Path, seal: &Seal, stretch: &Stretch, end: WindowEnd) -> Self {
        let (to, tail) = (stretch.to(), stretch.tail());
        let to = if to.lsn() < seal.stop.lsn() { seal.stop } else { to };
        Self { timeline: path.way.tli(), from: seal.stop, to, tail, backups: vec![seal.id], end }
    }
}

fn sealed(entry: &BackupEntry) -> Option<&Seal> {
    match &entry.state {
        BackupState::Sealed(seal) => Some(seal),
        _ => None,
    }
}

/// One pass over the names.
fn ranges(listing: &Listing) -> BTreeMap<TimelineId, Vec<Range>> {
    let mut all = BTreeMap::new();
    for tli in listing.timelines() {
        let mut ranges: Vec<Range> = Vec::new();
        for (segment, Stored { complete, .. }) in listing.of_timeline(tli) {
            let tail = (!complete).then_some(segment);
            let to = if complete { segment.end() } else { segment.start() };
            match ranges.last_mut().filter(|range| range.tail.is_none() && range.to == segment.start()) {
                Some(range) => (range.to, range.tail) = (to, tail),
                None => ranges.push(Range { from: segment.start_pos(), to, tail, size: segment.size() }),
            }
        }
        all.insert(tli, ranges);
    }
    all
}

fn paths(
    ranges: &BTreeMap<TimelineId, Vec<Range>>,
    histories: &BTreeMap<TimelineId, History>,
    size: SegmentSize,
) -> BTreeMap<TimelineId, Path> {
    let mut paths = BTreeMap::new();
    for tli in ranges.keys() {
        let known = *tli == TimelineId::FIRST || histories.contains_key(tli);
        let way = histories.get(tli).cloned().unwrap_or_else(|| History::alone(*tli));
        let stretches = stretches(&way, ranges, size);
        paths.insert(*tli, Path { way, known, own: true, stretches });
    }
    let mut forks: BTreeMap<TimelineId, Lsn> = BTreeMap::new();
    for switch in paths.values().flat_map(|path| path.way.switches()) {
        let last = forks.entry(switch.from).or_insert(switch.at);
        *last = switch.at.max(*last);
    }
    for (tli, fork) in forks {
        let shared = Segment::containing(Pos::new(tli, fork), size);
        let last = ranges.get(&tli).and_then(|ranges| ranges.last());
        if let (Some(path), Some(last)) = (paths.get_mut(&tli), last) {
            path.own = last.to > shared.start() || last.limit() > shared.end();
        }
    }
    paths
}

/// What is held on the way. The file in which a timeline ends belongs to its successor, which begins
/// with a copy of it (as [`History::segment_at`] has it).
fn stretches(way: &History, ranges: &BTreeMap<TimelineId, Vec<Range>>, size: SegmentSize) -> Vec<Stretch> {
    let ends = way
        .switches()
        .iter()
        .map(|switch| (switch.from, Segment::containing(Pos::new(switch.from, switch.at), size).start()));
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut begin = Lsn::ZERO;
    for (tli, end) in ends.chain([(way.tli(), Lsn::new(u64::MAX))]) {
        let held = ranges.get(&tli).map_or(&[][..], Vec::as_slice);
        let first = held.partition_point(|range| range.limit() <= begin);
        let held = held.get(first..).unwrap_or_default().iter().take_while(|range| range.from.lsn() < end);
        for range in held.filter_map(|range| range.clip(begin, end)) {
            let apart = match stretches.last_mut() {
                Some(stretch) => stretch.extend(range),
                None => Some(range),
            };
            stretches.extend(apart.map(|first| Stretch { first, more: Vec::new() }));
        }
        begin = end;
    }
    stretches
}

#[cfg(test)]
pub(super) mod tests;
