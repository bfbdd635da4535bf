//! Every record of every segment of the archive.

use std::time::Duration;

use super::report::{Problem, ProblemKind, WalReport};
use super::walk::{Found, Piece, Walked, Walker};
use super::{VerifyError, VerifyEvent};
use crate::archive::{Archive, ArchiveError, Listing, Stored};
use crate::repository::BackupId;
use crate::wal::{Chain, History, HistoryFile, Lsn, PAGE, Pos, Seed, Segment, SegmentSize, TimelineId};

/// The resource manager of the records with which recovery ends, from `rmgrlist.h`.
const RM_XLOG: u8 = 0;

/// A sealed backup, for what its WAL has to do with what is found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needed {
    pub(super) id: BackupId,
    pub(super) start: Pos,
    pub(super) stop: Pos,
    /// Whether it brought its WAL itself: what follows it was not promised.
    pub(super) island: bool,
}

/// What is to be read, in pieces that can be walked at the same time.
#[derive(Debug)]
pub(super) struct Plan {
    archive: Archive,
    patience: Duration,
    timelines: Vec<Timeline>,
    histories: Vec<Problem>,
    ignored: Vec<String>,
    /// Where holes begin that an operator has accepted.
    accepted: Vec<Segment>,
}

#[derive(Debug)]
struct Timeline {
    history: History,
    history_known: bool,
    first: Segment,
    last: Segment,
    /// What its names alone tell.
    problems: Vec<Problem>,
    pieces: Vec<Piece>,
}

impl Plan {
    /// Reads the names and histories. A piece has at most so many segments.
    pub(super) fn new(
        archive: Archive,
        per_piece: impl Fn(usize) -> usize,
        patience: Duration,
    ) -> Result<Self, VerifyError> {
        let listing = archive.list()?;
        let (ignored, accepted) = (listing.others().to_vec(), listing.accepted_gaps().to_vec());
        let timelines = listing.timelines();
        let per_piece = per_piece(timelines.iter().map(|tli| listing.of_timeline(*tli).count()).sum()).max(1);
        let timelines = timelines.into_iter().filter_map(|tli| timeline(&archive, &listing, tli, per_piece)).collect();
        let alone = listing.histories().iter().filter(|tli| listing.last_of(**tli).is_none());
        let histories = alone.filter_map(|tli| Some(no_history(*tli, &archive.history(*tli).err()?))).collect();
        Ok(Self { archive, patience, timelines, histories, ignored, accepted })
    }

    /// Each piece by its number in its timeline, and that by its own.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (usize, usize)> {
        let numbers = |(number, timeline): (usize, &Timeline)| (0..timeline.pieces.len()).map(move |n| (number, n));
        self.timelines.iter().enumerate().flat_map(numbers)
    }

    /// Segments that will be read.
    pub(super) fn segments(&self) -> u64 {
        let pieces = self.timelines.iter().flat_map(|timeline| &timeline.pieces);
        pieces.map(|piece| piece.segments.len() as u64).sum()
    }

    /// Walks one piece. It may be done in any order, by any thread.
    pub(super) fn walk(&self, (timeline, piece): (usize, usize), tell: &dyn Fn(VerifyEvent)) -> Walked {
        match self.timelines.get(timeline).and_then(|t| Some((t, t.pieces.get(piece)?))) {
            Some((timeline, piece)) => timeline.walker(self).walk(piece, tell),
            None => Walked::default(),
        }
    }

    /// What one walk from the beginning would have found; `walked` has all pieces, in order.
    pub(super) fn join(&self, walked: Vec<Walked>, backups: &[Needed]) -> WalReport {
        let mut report = WalReport { segments: self.segments(), ..WalReport::default() };
        let mut walked = walked.into_iter();
        for timeline in &self.timelines {
            report.problems.extend(timeline.problems.iter().cloned());
            let pieces = timeline.pieces.iter().zip(&mut walked);
            let mut joined = Walked::default();
            let walker = timeline.walker(self);
            let mut before: Option<Segment> = None;
            for (piece, walked) in pieces {
                if piece.begins {
                    joined.end_stretch();
                    joined
                        .found
                        .extend(before.zip(piece.segments.first()).map(|(before, (next, _))| hole(before, *next)));
                }
                before = piece.segments.last().map(|(segment, _)| *segment);
                walker.join(&mut joined, piece, walked);
            }
            joined.end_stretch();
            joined.found.into_iter().for_each(|found| report.take(found, backups));
        }
        report.problems.extend(self.histories.iter().cloned());
        report.known_holes(backups, &self.archive, &self.accepted);
        report.ignored.clone_from(&self.ignored);
        report
    }
}

impl Timeline {
    fn walker<'a>(&'a self, plan: &'a Plan) -> Walker<'a> {
        let (archive, patience) = (&plan.archive, plan.patience);
        let (history, history_known, first, last) = (&self.history, self.history_known, self.first, self.last);
        Walker { archive, patience, history, history_known, first, last }
    }
}

fn timeline(archive: &Archive, listing: &Listing, tli: TimelineId, per_piece: usize) -> Option<Timeline> {
    let (mut problems, mut history_known) = (Vec::new(), true);
    let history = archive.history(tli).unwrap_or_else(|e| {
        problems.push(no_history(tli, &e));
        history_known = false;
        History::alone(tli)
    });
    problems.extend(junction(listing, &history, archive));
    problems.extend(fork(listing, &history, archive));
    let segments: Vec<_> = listing.of_timeline(tli).map(|(segment, stored)| (segment, stored.complete)).collect();
    let ((first, _), (last, _)) = (*segments.first()?, *segments.last()?);
    let runs = segments.chunk_by(|(a, _), (b, _)| a.next() == *b);
    let cut = |run: &[(Segment, bool)]| -> Vec<Piece> {
        let chunks = run.chunks(per_piece).enumerate();
        chunks.map(|(number, segments)| Piece { segments: segments.to_vec(), begins: number == 0 }).collect()
    };
    let pieces = runs.flat_map(cut).collect();
    Some(Timeline { history, history_known, first, last, problems, pieces })
}

/// Whether the WAL of the ancestors and that of a timeline meet.
fn junction(listing: &Listing, history: &History, archive: &Archive) -> Vec<Problem> {
    let timeline = history.tli();
    let (Some(fork), Some((first, _))) = (history.switches().last(), listing.of_timeline(timeline).next()) else {
        return Vec::new();
    };
    let Some((parents_last, stored)) = listing.last_of(fork.from) else { return Vec::new() };
    let forks_in = Segment::containing(Pos::new(timeline, fork.at), archive.size());
    let parents_end = if stored.complete { parents_last.next() } else { parents_last };
    let consequence = format!("backups of timeline {} cannot be recovered along timeline {timeline}", fork.from);
    let hole = |begin: Segment, what| {
        let (segment, consequence) = (Some(begin.name()), consequence.clone());
        Problem { timeline, segment, kind: ProblemKind::Hole, ends_at: None, what, consequence }
    };
    let mut problems = Vec::new();
    if parents_end.no() < forks_in.no() {
        let last = forks_in.previous().unwrap_or(forks_in).on(fork.from);
        problems.push(hole(parents_end, missing(parents_end, last)));
    }
    if first.no() > forks_in.no() {
        let last = first.previous().unwrap_or(first);
        problems.push(hole(forks_in, missing(forks_in, last)));
    }
    problems
}

/// Where the record begins that is written at an address: behind the page's header, if it is a page's.
fn first_record(at: Lsn, size: SegmentSize) -> Lsn {
    at.saturating_add(match at.get() {
        bytes if bytes.is_multiple_of(size.bytes()) => 40,
        bytes if bytes.is_multiple_of(PAGE) => 24,
        _ => 0,
    })
}

/// A history has no checksum; but where it says that its timeline begins, a server has written the
/// record with which recovery ended, and its timeline's pages begin.
fn fork(listing: &Listing, history: &History, archive: &Archive) -> Option<Problem> {
    let (timeline, fork) = (history.tli(), history.switches().last()?.at);
    let segment = Segment::containing(Pos::new(timeline, fork), archive.size());
    if listing.stored(segment) == Stored::default() {
        return None;
    }
    let seed =
        Seed { start: segment.start(), size: segment.size(), system_id: archive.system_id(), newest_tli: timeline };
    let mut chain = Chain::new(seed);
    let mut begins = None;
    // Whatever stops it is told where the segment is walked; that it has no record there, too.
    let _ = archive.walk(history, &mut chain, segment.end(), &mut |record| {
        if record.start >= fork {
            begins.get_or_insert((record.start, record.rmid));
        }
    });
    let (start, manager) = begins?;
    if start == first_record(fork, archive.size()) && manager == RM_XLOG {
        return None;
    }
    let what =
        format!("{} says that the timeline begins at {fork}, and its WAL does not", HistoryFile(timeline).name());
    let consequence = "recovery cannot go along this timeline".to_owned();
    let segment = Some(segment.name());
    Some(Problem { timeline, segment, kind: ProblemKind::History, ends_at: None, what, consequence })
}

fn hole(before: Segment, next: Segment) -> Found {
    let (first, last) = (before.next(), next.previous().unwrap_or(next));
    Found::Fault { segment: first, kind: ProblemKind::Hole, what: missing(first, last) }
}

fn missing(first: Segment, last: Segment) -> String {
    if first == last {
        format!("segment {first} is missing")
    } else {
        format!("segments {first} to {last} are missing")
    }
}

fn no_history(timeline: TimelineId, e: &ArchiveError) -> Problem {
    let what = match e {
        ArchiveError::NoHistory(_) => format!("{} is missing", HistoryFile(timeline).name()),
        other => other.to_string(),
    };
    let consequence = "recovery cannot go along this timeline".to_owned();
    Problem { timeline, segment: None, kind: ProblemKind::History, ends_at: None, what, consequence }
}

impl WalReport {
    fn take(&mut self, found: Found, backups: &[Needed]) {
        match found {
            Found::Stretch(stretch) => self.stretches.push(stretch),
            Found::Fault { segment, kind, what } => self.end_at(segment, kind, what, backups),
        }
    }

    /// Recovery on the segment's timeline ends where the last stretch did.
    fn end_at(&mut self, segment: Segment, kind: ProblemKind, what: String, backups: &[Needed]) {
        let timeline = segment.tli();
        let ended = self.stretches.last().filter(|stretch| stretch.timeline == timeline);
        let (from, to) = ended.map_or_else(|| (segment.start(), segment.start()), |stretch| (stretch.from, stretch.to));
        let consequence = consequence(timeline, from, to, segment.end(), backups);
        let segment = Some(segment.name());
        self.problems.push(Problem { timeline, segment, kind, ends_at: Some(to), what, consequence });
    }

    /// What is missing before a backup that brought its own WAL was never promised; and what an operator
    /// has accepted is no news.
    fn known_holes(&mut self, backups: &[Needed], archive: &Archive, accepted: &[Segment]) {
        for problem in self.problems.iter_mut().filter(|problem| problem.kind == ProblemKind::Hole) {
            let hole = problem.segment.as_deref().and_then(|name| Segment::parse(name, archive.size()));
            let Some(hole) = hole else { continue };
            if is_accepted(hole, accepted, archive) {
                problem.kind = ProblemKind::AcceptedGap;
                continue;
            }
            let mut stretches = self.stretches.iter();
            let behind = stretches.find(|s| s.timeline == hole.tli() && s.from > hole.start());
            let begins =
                |start: Pos| behind.is_some_and(|s| s.timeline == start.tli() && (s.from..s.to).contains(&start.lsn()));
            if backups.iter().any(|backup| backup.island && begins(backup.start)) {
                problem.kind = ProblemKind::BetweenBackups;
            }
        }
    }
}

/// Whether a hole begins in a gap that was accepted. The note bears the name of the first segment that is
/// not whole; where that was begun, or a timeline ends in the gap, names tell more than one hole.
fn is_accepted(hole: Segment, accepted: &[Segment], archive: &Archive) -> bool {
    let Some(first) = accepted.iter().map(|note| note.no()).min() else { return false };
    let Ok(listing) = archive.list() else { return false };
    let history = archive.history(hole.tli()).unwrap_or_else(|_| History::alone(hole.tli()));
    let mut segment = hole;
    while !accepted.contains(&segment) {
        let Some(before) = segment.previous().filter(|before| before.no() >= first) else { return false };
        segment = history.segment_at(before.start(), archive.size());
        let begun = listing.stored(segment).partial && !accepted.contains(&segment);
        if listing.stored(segment).complete || begun {
            return false;
        }
    }
    true
}

/// What it means that WAL that is whole from `from` to `to` does not go on in a segment that ends at
/// `until`.
fn consequence(timeline: TimelineId, from: Lsn, to: Lsn, until: Lsn, backups: &[Needed]) -> String {
    let here = |backup: &&Needed| backup.stop.tli() == timeline;
    let lost: Vec<_> = backups.iter().filter(here).filter(|b| b.start.lsn() < until && b.stop.lsn() > to).collect();
    let cut: Vec<_> = backups.iter().filter(here).filter(|b| b.start.lsn() >= from && b.stop.lsn() <= to).collect();
    let mut consequences = Vec::new();
    if !lost.is_empty() {
        consequences.push(format!("{} not usable", named(&lost, "is", "are")));
    }
    if cut.is_empty() {
        consequences.push(format!("recovery from a backup that starts before it ends at {to}"));
    } else {
        consequences.push(format!("recovery from {} at {to}", named(&cut, "ends", "ends")));
    }
    consequences.join("; ")
}

/// The backups in words, with the verb that follows.
fn named(backups: &[&Needed], one: &str, more: &str) -> String {
    match backups {
        [only] => format!("backup {} {one}", only.id),
        [first, rest @ ..] => format!("backup {} and {} more {more}", first.id, rest.len()),
        [] => String::new(),
    }
}
