//! A piece of the archive, walked by itself, and how pieces are joined into what one walk from the
//! beginning would have said.

use std::time::Duration;

use super::VerifyEvent;
use super::report::{ProblemKind, StretchReport, Times};
use super::tail::Tail;
use crate::archive::{Archive, ArchiveError, SegmentReader};
use crate::codec::Codec;
use crate::disk::Access;
use crate::wal::{Broken, Chain, History, Lsn, Record, Seed, Segment, TimelineId};

/// How often a partial is read again that seems to be wrong, each time after twice as long: a write that is
/// under way on a slow disk may show its later sectors first.
const LOOKS: u32 = 5;

/// Segments of one timeline that follow each other.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// Each with whether it is complete.
    pub(super) segments: Vec<(Segment, bool)>,
    /// Whether the segment before the first is not there: nothing has to be joined.
    pub(super) begins: bool,
}

/// How the segments of one timeline are walked.
pub(super) struct Walker<'a> {
    pub(super) archive: &'a Archive,
    /// How long to wait before a partial is read again for the first time.
    pub(super) patience: Duration,
    pub(super) history: &'a History,
    /// Whether the history is the timeline's, or stands in for one that cannot be read.
    pub(super) history_known: bool,
    pub(super) first: Segment,
    pub(super) last: Segment,
}

/// What was found, in the order of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Found {
    Stretch(StretchReport),
    Fault { segment: Segment, kind: ProblemKind, what: String },
}

/// A stretch whose end has not come yet.
#[derive(Clone, Debug)]
pub(super) struct Begun {
    timeline: TimelineId,
    from: Lsn,
    /// Where that is not the chain's own.
    checked_from: Option<Lsn>,
    chain: Chain,
    times: Times,
}

/// One piece.
#[derive(Default, Debug)]
pub(super) struct Walked {
    pub(super) found: Vec<Found>,
    /// The stretch that reaches the piece's end.
    open: Option<Begun>,
    /// The chain soon after its first record, if its first stretch came so far, and the times up to
    /// there, which are not among those of the stretch.
    mark: Option<(Chain, Times)>,
    /// Whether the mark is still to be set.
    marking: bool,
}

impl Begun {
    fn stretch(&self) -> Option<StretchReport> {
        let (timeline, from, to, times) = (self.timeline, self.from, self.chain.whole(), self.times);
        (to > from).then(|| StretchReport { timeline, from, checked_from: self.checked_from(), to, times })
    }

    fn checked_from(&self) -> Lsn {
        self.checked_from.unwrap_or_else(|| self.chain.checked_from()).max(self.from)
    }
}

impl Walked {
    pub(super) fn end_stretch(&mut self) {
        self.marking = false;
        let ended = self.open.take().and_then(|begun| begun.stretch());
        self.found.extend(ended.map(Found::Stretch));
    }

    /// Goes on with what `next` found behind a stretch that has been caught up with.
    fn go_on(&mut self, caught_up: &Begun, mut next: Self) {
        let from = caught_up.from;
        let checked_from = caught_up.checked_from();
        match (next.found.first_mut(), &mut next.open) {
            (Some(Found::Stretch(stretch)), _) => (stretch.from, stretch.checked_from) = (from, checked_from),
            (None, Some(open)) => (open.from, open.checked_from) = (from, Some(checked_from)),
            // A marked stretch is found or open.
            (Some(Found::Fault { .. }) | None, _) => {}
        }
        self.follow(next, caught_up.times);
    }

    /// Adds what comes behind; `times` are those of its first stretch up to its mark.
    fn follow(&mut self, mut next: Self, times: Times) {
        match (next.found.first_mut(), &mut next.open) {
            (Some(Found::Stretch(stretch)), _) => stretch.times = times.then(stretch.times),
            (None, Some(open)) => open.times = times.then(open.times),
            (Some(Found::Fault { .. }) | None, _) => {}
        }
        self.found.extend(next.found);
        self.open = next.open;
    }
}

impl Walker<'_> {
    /// Walks one piece by itself.
    pub(super) fn walk(&self, piece: &Piece, tell: &dyn Fn(VerifyEvent)) -> Walked {
        let mut walked = Walked { marking: !piece.begins, ..Walked::default() };
        self.walk_on(&mut walked, piece, tell);
        walked
    }

    /// Adds a piece to those before it. If these came to its start with an open stretch, that is
    /// followed to where the piece's own walk began to check: where both are in the same state they
    /// say the same of all that follows, and where not, the piece is walked again from there.
    pub(super) fn join(&self, before: &mut Walked, piece: &Piece, walked: Walked) {
        let Some(begun) = before.open.take() else {
            let times = walked.mark.as_ref().map_or_else(Times::default, |(_, times)| *times);
            return before.follow(walked, times);
        };
        match self.catch_up(&begun, piece, walked.mark.as_ref().map(|(chain, _)| chain)) {
            Some(caught_up) => before.go_on(&caught_up, walked),
            None => {
                before.open = Some(begun);
                self.walk_on(before, piece, &|_| {});
            }
        }
    }

    fn catch_up(&self, begun: &Begun, piece: &Piece, mark: Option<&Chain>) -> Option<Begun> {
        let mark = mark?;
        let (mut chain, mut times) = (begun.chain.clone(), begun.times);
        for (segment, _) in &piece.segments {
            if chain.at() >= mark.at() {
                break;
            }
            let until = segment.end().min(mark.at());
            let mut reader = self.open(*segment).ok()??;
            feed(&mut reader, &mut chain, until, &mut |record| times.see(record), &mut |_, _| {}).ok()?.ok()?;
        }
        chain.goes_on_like(mark).then_some(Begun { chain, times, ..*begun })
    }

    fn walk_on(&self, walked: &mut Walked, piece: &Piece, tell: &dyn Fn(VerifyEvent)) {
        for (segment, complete) in &piece.segments {
            self.segment(walked, *segment, *complete, tell);
            if !complete && *segment != self.last {
                walked.end_stretch();
                let what = format!("segment {segment} is incomplete");
                walked.found.push(Found::Fault { segment: *segment, kind: ProblemKind::Hole, what });
            }
            tell(VerifyEvent::Segment(*segment));
        }
    }

    fn segment(&self, walked: &mut Walked, segment: Segment, complete: bool, tell: &dyn Fn(VerifyEvent)) {
        let mut begun = walked.open.take().unwrap_or_else(|| Begun {
            timeline: segment.tli(),
            from: segment.start(),
            checked_from: None,
            chain: self.chain_at(segment),
            times: Times::default(),
        });
        let fault = if complete {
            let read = self.read(segment, &mut begun, walked, tell).map(|read| read.err().map(|(fault, _)| fault));
            read.unwrap_or_else(|e| Some(e.to_string())).map(|fault| (ProblemKind::Damage, fault))
        } else {
            self.partial(segment, &mut begun, walked, tell)
        };
        walked.open = Some(begun);
        if let Some((kind, fault)) = fault {
            walked.end_stretch();
            let what = format!("segment {segment} is damaged: {fault}");
            walked.found.push(Found::Fault { segment, kind, what });
        }
    }

    /// A partial ends where its last record does: it is wrong only if something lies behind that
    /// cannot be. What a receiver is just writing may look so for a moment, and while it writes without a
    /// pause at every look anew. But what was durable when it was first read does not change: if that were
    /// wrong, no look would ever come past it.
    fn partial(
        &self,
        segment: Segment,
        begun: &mut Begun,
        walked: &mut Walked,
        tell: &dyn Fn(VerifyEvent),
    ) -> Option<(ProblemKind, String)> {
        let before = (begun.clone(), walked.marking, walked.mark.clone());
        let mut stuck_at = None;
        for look in 0.. {
            let (fault, broken) = match self.read(segment, begun, walked, tell) {
                Ok(Ok(())) => return None,
                Ok(Err(fault)) => fault,
                Err(e) => return Some((ProblemKind::Damage, e.to_string())),
            };
            let whole = broken.map_or_else(|| begun.chain.whole(), |broken| broken.whole);
            if whole > *stuck_at.get_or_insert(whole) {
                return None;
            }
            let tail = match self
                .open(segment)
                .and_then(|reader| reader.map(|mut r| Tail::of(&mut r, whole, broken)).transpose())
            {
                Ok(tail) => tail.unwrap_or(Tail::Sound),
                Err(e) => return Some((ProblemKind::Damage, e.to_string())),
            };
            match tail {
                Tail::Sound => return None,
                Tail::Torn if look == LOOKS => return Some((ProblemKind::Torn, fault)),
                Tail::Damaged if look == LOOKS => return Some((ProblemKind::Damage, fault)),
                Tail::Torn | Tail::Damaged => std::thread::sleep(self.patience.saturating_mul(1 << look)),
            }
            (*begun, walked.marking, walked.mark) = before.clone();
        }
        None
    }

    /// Reads a segment to its end; what is wrong with it.
    fn read(
        &self,
        segment: Segment,
        begun: &mut Begun,
        walked: &mut Walked,
        tell: &dyn Fn(VerifyEvent),
    ) -> Result<Result<(), (String, Option<Broken>)>, ArchiveError> {
        let Some(mut reader) = self.open(segment)? else {
            return Ok(Err(("it was there and cannot be found now".to_owned(), None)));
        };
        let times = std::cell::Cell::new(begun.times);
        let mut see = |record: &Record<'_>| {
            let mut seen = times.get();
            seen.see(record);
            times.set(seen);
        };
        let mut fed = |chain: &Chain, bytes: usize| {
            if walked.marking && chain.last_record().is_some() {
                (walked.marking, walked.mark) = (false, Some((chain.clone(), times.take())));
            }
            tell(VerifyEvent::Read(bytes as u64));
        };
        let fed = feed(&mut reader, &mut begun.chain, segment.end(), &mut see, &mut fed)?;
        begun.times = times.get();
        if fed.is_err() || reader.fill()?.is_empty() {
            return Ok(fed);
        }
        Ok(Err((format!("it has more than {} bytes", segment.size().bytes()), None)))
    }

    fn open(&self, segment: Segment) -> Result<Option<SegmentReader>, ArchiveError> {
        self.archive.open_segment(segment, Access::ReadDirect)
    }

    /// The chain as it comes out of what is held before, of this timeline or its ancestors.
    fn chain_at(&self, segment: Segment) -> Chain {
        let (start, size, system_id) = (segment.start(), self.archive.size(), self.archive.system_id());
        let fresh = || Chain::new(Seed { start, size, system_id, newest_tli: segment.tli() });
        // What is wrong before it has been or will be reported there.
        let chain = if segment == self.first {
            self.archive.chain_before(self.history, segment).unwrap_or_else(|_| fresh())
        } else {
            fresh()
        };
        if self.history_known { chain.along(self.history) } else { chain }
    }
}

/// Feeds the chain up to `until`, at most the segment's end; what is wrong with the segment.
fn feed(
    reader: &mut SegmentReader,
    chain: &mut Chain,
    until: Lsn,
    see: &mut impl FnMut(&Record<'_>),
    fed: &mut impl FnMut(&Chain, usize),
) -> Result<Result<(), (String, Option<Broken>)>, ArchiveError> {
    let segment = reader.segment();
    while chain.at() < until {
        let ahead = usize::try_from(until - chain.at()).unwrap_or(usize::MAX);
        let bytes = reader.fill()?;
        let n = bytes.len().min(ahead);
        if n == 0 {
            let (held, size) = (reader.offset(), segment.size().bytes());
            return Ok(Err((format!("it has {held} bytes and must have {size}"), None)));
        }
        if let Err(broken) = chain.feed(bytes.get(..n).unwrap_or(bytes), see) {
            return Ok(Err((described(&broken, reader), Some(broken))));
        }
        reader.consume(n);
        fed(chain, n);
    }
    Ok(Ok(()))
}

/// What is wrong, with where in the file; a record that begins before it is not in it.
fn described(broken: &Broken, reader: &SegmentReader) -> String {
    let segment = reader.segment();
    if !segment.contains(broken.at) {
        return broken.to_string();
    }
    let unpacked = if reader.form().codec == Codec::Plain { "" } else { ", uncompressed" };
    let file = reader.path().file_name().unwrap_or_default().to_string_lossy();
    format!("{broken} (byte {} of {file}{unpacked})", broken.at - segment.start())
}
