//! Every record of every segment of the archive.

use super::{Problem, ProblemKind, StretchReport, VerifyError, VerifyEvent, WalReport};
use crate::archive::{Archive, ArchiveError, Listing};
use crate::disk::Access;
use crate::wal::{Chain, History, HistoryFile, Lsn, Pos, Seed, Segment, TimelineId};

/// Where each backup begins that captured its own WAL is `islands`.
pub(super) fn verify_wal(
    archive: &Archive,
    islands: &[Pos],
    tell: &mut impl FnMut(VerifyEvent),
) -> Result<WalReport, VerifyError> {
    let mut report = walk_all(archive, tell)?;
    let (stretches, mut problems) = (&report.stretches, std::mem::take(&mut report.problems));
    for problem in problems.iter_mut().filter(|problem| problem.kind == ProblemKind::Hole) {
        let hole = problem.segment.as_deref().and_then(|name| Segment::parse(name, archive.size()));
        let Some(hole) = hole else { continue };
        let behind = stretches.iter().find(|s| s.timeline == hole.tli() && s.from > hole.start());
        let begins =
            |island: &Pos| behind.is_some_and(|s| s.timeline == island.tli() && (s.from..s.to).contains(&island.lsn()));
        if islands.iter().any(begins) {
            problem.kind = ProblemKind::BetweenBackups;
        }
    }
    report.problems = problems;
    Ok(report)
}

fn walk_all(archive: &Archive, tell: &mut impl FnMut(VerifyEvent)) -> Result<WalReport, VerifyError> {
    let listing = archive.list()?;
    let mut report = WalReport::default();
    for tli in listing.timelines() {
        let history = match archive.history(tli) {
            Ok(history) => history,
            Err(e) => {
                report.no_history(tli, &e);
                History::alone(tli)
            }
        };
        junction(&listing, &history, archive, &mut report);
        Walk { archive, history, listing: &listing, report: &mut report, chain: None }.timeline(tli, tell);
    }
    for tli in listing.histories().iter().filter(|tli| listing.last_of(**tli).is_none()) {
        if let Err(e) = archive.history(*tli) {
            report.no_history(*tli, &e);
        }
    }
    Ok(report)
}

/// Whether the WAL of the ancestors and that of a timeline meet.
fn junction(listing: &Listing, history: &History, archive: &Archive, report: &mut WalReport) {
    let tli = history.tli();
    let (Some(fork), Some((first, _))) = (history.switches().last(), listing.of_timeline(tli).next()) else { return };
    let Some((parents_last, stored)) = listing.last_of(fork.from) else { return };
    let forks_in = Segment::containing(Pos::new(tli, fork.at), archive.size());
    let parents_end = if stored.complete { parents_last.next() } else { parents_last };
    let consequence = || format!("backups of timeline {} cannot be recovered along timeline {tli}", fork.from);
    if parents_end.no() < forks_in.no() {
        let last = forks_in.previous().unwrap_or(forks_in).on(fork.from);
        report.hole(tli, parents_end, missing(parents_end, last), consequence());
    }
    if first.no() > forks_in.no() {
        let last = first.previous().unwrap_or(first);
        report.hole(tli, forks_in, missing(forks_in, last), consequence());
    }
}

fn missing(first: Segment, last: Segment) -> String {
    if first == last {
        format!("segment {first} is missing")
    } else {
        format!("segments {first} to {last} are missing")
    }
}

impl WalReport {
    fn no_history(&mut self, timeline: TimelineId, e: &ArchiveError) {
        let what = match e {
            ArchiveError::NoHistory(_) => format!("{} is missing", HistoryFile(timeline).name()),
            other => other.to_string(),
        };
        let consequence = "recovery cannot go along this timeline".to_owned();
        self.problems.push(Problem { timeline, segment: None, kind: ProblemKind::History, what, consequence });
    }

    fn hole(&mut self, timeline: TimelineId, first: Segment, what: String, consequence: String) {
        let segment = Some(first.name());
        self.problems.push(Problem { timeline, segment, kind: ProblemKind::Hole, what, consequence });
    }

    /// Recovery on the segment's timeline ends where the last stretch did.
    fn end_at(&mut self, segment: Segment, kind: ProblemKind, what: String) {
        let timeline = segment.tli();
        let ended = self.stretches.last().filter(|stretch| stretch.timeline == timeline);
        let to = ended.map_or_else(|| segment.start(), |stretch| stretch.to);
        let consequence = format!("recovery from a backup that starts before it ends at {to}");
        self.problems.push(Problem { timeline, segment: Some(segment.name()), kind, what, consequence });
    }
}

/// One timeline.
struct Walk<'a> {
    archive: &'a Archive,
    history: History,
    listing: &'a Listing,
    report: &'a mut WalReport,
    /// The stretch that is being walked, from the first segment of it that is of this timeline.
    chain: Option<(Lsn, Chain)>,
}

impl Walk<'_> {
    fn timeline(&mut self, tli: TimelineId, tell: &mut impl FnMut(VerifyEvent)) {
        let mut before: Option<Segment> = None;
        for (segment, stored) in self.listing.of_timeline(tli) {
            if let Some(before) = before.filter(|before| before.next() != segment) {
                self.end_stretch();
                let last = segment.previous().unwrap_or(segment);
                self.report.end_at(before.next(), ProblemKind::Hole, missing(before.next(), last));
            }
            tell(VerifyEvent::Segment(segment));
            self.report.segments += 1;
            let is_last = self.listing.last_of(tli).is_some_and(|(last, _)| last == segment);
            if !stored.complete && !is_last {
                self.segment(segment, false);
                self.end_stretch();
                self.report.end_at(segment, ProblemKind::Hole, format!("segment {segment} is incomplete"));
            } else {
                self.segment(segment, stored.complete);
            }
            before = Some(segment);
        }
        self.end_stretch();
    }

    fn segment(&mut self, segment: Segment, complete: bool) {
        let (from, mut chain) = match self.chain.take() {
            Some(begun) => begun,
            None => (segment.start(), self.chain_at(segment)),
        };
        // A partial ends where its last record does; its fault is that end.
        let fault = match self.read(segment, &mut chain) {
            Ok(fault) => fault.filter(|_| complete),
            Err(e) => Some(e.to_string()),
        };
        self.chain = Some((from, chain));
        if let Some(fault) = fault {
            self.end_stretch();
            self.report.end_at(segment, ProblemKind::Damage, format!("segment {segment} is damaged: {fault}"));
        }
    }

    /// The chain as it comes out of what is held before, of this timeline or its ancestors.
    fn chain_at(&self, segment: Segment) -> Chain {
        let (start, size, system_id) = (segment.start(), self.archive.size(), self.archive.system_id());
        let fresh = || Chain::new(Seed { start, size, system_id, newest_tli: segment.tli() });
        // What is wrong before it has been or will be reported there.
        let first_of_timeline =
            self.listing.of_timeline(segment.tli()).next().is_some_and(|(first, _)| first == segment);
        if !first_of_timeline {
            return fresh();
        }
        self.archive.chain_before(&self.history, segment).unwrap_or_else(|_| fresh())
    }

    /// Reads a segment to its end; what is wrong with it.
    fn read(&self, segment: Segment, chain: &mut Chain) -> Result<Option<String>, ArchiveError> {
        let Some(mut reader) = self.archive.open_segment(segment, Access::Read)? else {
            return Ok(Some("it was there and cannot be found now".to_owned()));
        };
        let size = segment.size().bytes();
        while chain.at() < segment.end() {
            let ahead = usize::try_from(segment.end() - chain.at()).unwrap_or(usize::MAX);
            let bytes = reader.fill()?;
            let n = bytes.len().min(ahead);
            if n == 0 {
                return Ok(Some(format!("it has {} bytes and must have {size}", reader.offset())));
            }
            if let Err(broken) = chain.feed(bytes.get(..n).unwrap_or(bytes), &mut |_| {}) {
                return Ok(Some(broken.to_string()));
            }
            reader.consume(n);
        }
        Ok((!reader.fill()?.is_empty()).then(|| format!("it has more than {size} bytes")))
    }

    fn end_stretch(&mut self) {
        let Some((from, chain)) = self.chain.take() else { return };
        let (checked_from, to) = (chain.checked_from().max(from), chain.whole());
        if to > from {
            let timeline = self.history.tli();
            self.report.stretches.push(StretchReport { timeline, from, checked_from, to });
        }
    }
}
