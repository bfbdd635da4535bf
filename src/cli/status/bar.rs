//! A picture of what is held: WAL, gaps and backups over time, or over positions where times are not known.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::status::{BackupStatus, RangeStatus, Stage, Status, TimelineStatus};
use crate::wal::{Lsn, TimelineId};

/// How the picture is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pens {
    held: char,
    missing: char,
}

pub(super) const ASCII: Pens = Pens { held: '=', missing: '.' };
pub(super) const UNICODE: Pens = Pens { held: '█', missing: '░' };

/// What a place on the axis stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Axis {
    /// Microseconds of the Unix clock.
    Time,
    /// Bytes from the beginning of the log.
    Position,
}

/// Times that are known of a timeline's positions.
type Known = BTreeMap<Lsn, i64>;

/// Lines of a picture `width` columns wide, with `label` columns for names on the left; none if there is
/// no WAL.
pub(super) fn bar(status: &Status, label: usize, width: usize, pens: Pens) -> Vec<String> {
    let known: BTreeMap<_, _> =
        status.timelines.iter().map(|timeline| (timeline.timeline, known(status, timeline))).collect();
    let drawn: Vec<_> = status.timelines.iter().filter(|timeline| !timeline.ranges.is_empty()).collect();
    let timed = drawn.iter().all(|timeline| known.get(&timeline.timeline).is_some_and(|known| !known.is_empty()));
    let by_time = Scale::new(Axis::Time, &drawn, &known, width.saturating_sub(label)).filter(|_| timed);
    let scale = by_time.or_else(|| Scale::new(Axis::Position, &drawn, &known, width.saturating_sub(label)));
    let Some(scale) = scale else { return Vec::new() };
    let mut lines = Vec::new();
    for timeline in &drawn {
        let name = if drawn.len() == 1 { "WAL".to_owned() } else { format!("timeline {}", timeline.timeline) };
        lines.push(line(label, &name, &scale.wal(timeline, pens)));
    }
    if !status.backups.is_empty() {
        lines.push(line(label, "backups", &scale.backups(&status.backups)));
    }
    lines.push(line(label, "", &scale.ends()));
    lines
}

fn line(label: usize, name: &str, drawn: &str) -> String {
    format!("{name:<label$}{drawn}").trim_end().to_owned()
}

/// The times that are known of positions on a timeline; they never go back.
fn known(status: &Status, timeline: &TimelineStatus) -> Known {
    let mut all = BTreeMap::new();
    for range in &timeline.ranges {
        all.extend(range.first_commit.map(|time| (range.from, time)));
        all.extend(range.last_commit.map(|time| (range.to, time)));
    }
    let ended = status.backups.iter().filter_map(|backup| Some((backup.start?, backup.stop?, backup.times?)));
    for (start, stop, [started, stopped]) in ended {
        let on = |pos: crate::wal::Pos| pos.tli() == timeline.timeline;
        all.extend(on(start).then_some((start.lsn(), started)));
        all.extend(on(stop).then_some((stop.lsn(), stopped)));
    }
    // The first commit found may lie far behind the begin of its range: what comes later bounds it.
    let mut known = Known::new();
    let mut latest = i64::MAX;
    for (lsn, time) in all.into_iter().rev() {
        latest = latest.min(time.0.as_microsecond());
        known.insert(lsn, latest);
    }
    known
}

struct Scale<'a> {
    axis: Axis,
    known: &'a BTreeMap<TimelineId, Known>,
    from: i64,
    to: i64,
    columns: usize,
}

impl<'a> Scale<'a> {
    /// `None` if there is nothing between two ends.
    fn new(
        axis: Axis,
        drawn: &[&TimelineStatus],
        known: &'a BTreeMap<TimelineId, Known>,
        columns: usize,
    ) -> Option<Self> {
        let mut scale = Self { axis, known, from: 0, to: 0, columns };
        let ends = drawn.iter().flat_map(|timeline| {
            let ranges = timeline.ranges.iter().flat_map(|range| [range.from, range.to]);
            ranges.map(|lsn| scale.value(timeline.timeline, lsn)).collect::<Vec<_>>()
        });
        let ends: Vec<_> = ends.collect();
        (scale.from, scale.to) = (*ends.iter().min()?, *ends.iter().max()?);
        (scale.from < scale.to && columns > 0).then_some(scale)
    }

    fn value(&self, tli: TimelineId, lsn: Lsn) -> i64 {
        let position = || i64::try_from(lsn.get()).unwrap_or(i64::MAX);
        match self.axis {
            Axis::Position => position(),
            Axis::Time => self.known.get(&tli).and_then(|known| between(known, lsn)).unwrap_or(0),
        }
    }

    /// The column in which a value lies; one past the last for the end of the axis.
    fn column(&self, value: i64) -> usize {
        let whole = i128::from(self.to) - i128::from(self.from);
        let part = i128::from(value.clamp(self.from, self.to)) - i128::from(self.from);
        let columns = i128::try_from(self.columns).unwrap_or(0);
        usize::try_from(part * columns / whole.max(1)).unwrap_or(0)
    }

    /// At least one column, whatever lies between.
    fn columns(&self, tli: TimelineId, from: Lsn, to: Lsn) -> std::ops::Range<usize> {
        let first = self.column(self.value(tli, from)).min(self.columns.saturating_sub(1));
        first..self.column(self.value(tli, to)).max(first + 1)
    }

    fn wal(&self, timeline: &TimelineStatus, pens: Pens) -> String {
        let mut cells = vec![' '; self.columns];
        let mut paint = |from, to, pen| {
            if let Some(cells) = cells.get_mut(self.columns(timeline.timeline, from, to)) {
                cells.fill(pen);
            }
        };
        for range in &timeline.ranges {
            paint(range.from, range.to, pens.held);
        }
        // Last, so that no gap is too short to be seen.
        for pair in timeline.ranges.windows(2) {
            if let [RangeStatus { to, .. }, RangeStatus { from, .. }] = pair {
                paint(*to, *from, pens.missing);
            }
        }
        cells.into_iter().collect()
    }

    /// Where each backup ends; the one that needs a look wins.
    fn backups(&self, backups: &[BackupStatus]) -> String {
        let mut cells = vec![' '; self.columns];
        for wanted in [Stage::Complete, Stage::Running, Stage::Unfinished, Stage::Pending] {
            for backup in backups.iter().filter(|backup| backup.stage == wanted) {
                let Some(pos) = backup.stop.or(backup.start) else { continue };
                let column = self.columns(pos.tli(), pos.lsn(), pos.lsn()).start;
                if let Some(cell) = cells.get_mut(column) {
                    *cell = mark(backup);
                }
            }
        }
        cells.into_iter().collect()
    }

    fn ends(&self) -> String {
        let (from, to) = (self.name(self.from), self.name(self.to));
        let between = self.columns.saturating_sub(from.chars().count());
        if between <= to.chars().count() { from } else { format!("{from}{to:>between$}") }
    }

    fn name(&self, value: i64) -> String {
        match self.axis {
            Axis::Position => Lsn::new(u64::try_from(value).unwrap_or(0)).to_string(),
            Axis::Time => Timestamp::from_microsecond(value)
                .map_or_else(|_| String::new(), |time| time.strftime("%Y-%m-%d %H:%M").to_string()),
        }
    }
}

pub(super) const fn mark(backup: &BackupStatus) -> char {
    match backup.stage {
        Stage::Complete if backup.is_usable() => 'B',
        Stage::Complete | Stage::Damaged | Stage::Unfinished => 'x',
        Stage::Running => 'r',
        Stage::Untested | Stage::Pending => 'w',
    }
}

/// The time at a position, between the times next to it; at either end, the one next to it.
fn between(known: &Known, lsn: Lsn) -> Option<i64> {
    let before = known.range(..=lsn).next_back();
    let behind = known.range(lsn..).next();
    match (before, behind) {
        (Some((a, from)), Some((b, to))) if a < b => {
            let (part, whole) = (i128::from(lsn.saturating_sub(*a)), i128::from(b.saturating_sub(*a)));
            let time = i128::from(*from) + (i128::from(*to) - i128::from(*from)) * part / whole;
            i64::try_from(time).ok()
        }
        (Some((_, time)), _) | (None, Some((_, time))) => Some(*time),
        (None, None) => None,
    }
}
