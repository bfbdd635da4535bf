//! Where WAL ends to the record, and when the last transaction before that ended.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::archive::{Archive, ArchiveError, Stopped};
use crate::repository::Time;
use crate::wal::{Chain, History, Lsn, PAGE, Record, Seed, ServerTime, TimelineId};

/// How many segments are read to find the end of a transaction.
const FAR: u32 = 8;

/// How many are read in all: the newest places come first, and the page is to appear at once.
const BUDGET: u32 = 64;

/// A record that ends a transaction is small: this much of the next segment holds the rest of it.
const OVER: u64 = 4 * PAGE;

/// A commit time. Where none was found within reach, the latest that is known to lie before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Moment {
    /// By the server's clock.
    pub time: Time,
    /// False if it may be later.
    pub exact: bool,
}

/// What the last segments before a position hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tail {
    /// Exclusive end of the last whole record; the begin of what was read if there is none.
    pub(super) whole: Lsn,
    /// When the last transaction ended in what was read.
    pub(super) last: Option<Time>,
}

/// Reads no more than a bounded number of segments in its life.
pub(super) struct Times {
    archive: Archive,
    left: u32,
    tails: BTreeMap<(TimelineId, Lsn, Lsn), Tail>,
    problems: Vec<String>,
}

impl Times {
    pub(super) const fn new(archive: Archive) -> Self {
        Self { archive, left: BUDGET, tails: BTreeMap::new(), problems: Vec::new() }
    }

    /// What could not be read, each in a line.
    pub(super) fn into_problems(self) -> Vec<String> {
        self.problems
    }

    /// What is held before `limit`, the end of a segment, along `way`; nothing before `floor`, the
    /// start of one, is read.
    pub(super) fn tail(&mut self, way: &History, floor: Lsn, limit: Lsn) -> Tail {
        // The same files, whichever path leads there.
        let key = (self.segment(way, limit), floor, limit);
        if let Some(tail) = self.tails.get(&key) {
            return *tail;
        }
        let tail = self.read_tail(way, floor, limit);
        self.tails.insert(key, tail);
        tail
    }

    fn segment(&self, way: &History, limit: Lsn) -> TimelineId {
        way.segment_at(Lsn::new(limit.get().saturating_sub(1)), self.archive.size()).tli()
    }

    fn read_tail(&mut self, way: &History, floor: Lsn, limit: Lsn) -> Tail {
        let size = self.archive.size().bytes();
        let mut tail = Tail { whole: floor.max(Lsn::new(limit.get().saturating_sub(size))), last: None };
        let (mut from, mut ended) = (limit, false);
        for _ in 0..FAR {
            if from <= floor || !self.spend() {
                break;
            }
            from = Lsn::new(from.get().saturating_sub(size)).max(floor);
            // Until the end is found the walk goes to it: a record may be longer than a segment.
            let until = if ended { limit.min(from.saturating_add(size + OVER)) } else { limit };
            let Some(walked) = self.walk(way, from, until) else { break };
            if !ended {
                tail.whole = walked.whole;
                ended = walked.records;
            }
            tail.last = walked.last;
            if ended && tail.last.is_some() {
                break;
            }
        }
        tail
    }

    /// When the first transaction ended in what is held from `from`, the start of a segment, to `limit`.
    pub(super) fn first(&mut self, way: &History, from: Lsn, limit: Lsn) -> Option<Time> {
        let size = self.archive.size().bytes();
        let mut begin = from;
        for _ in 0..FAR {
            if begin >= limit || !self.spend() {
                break;
            }
            let end = begin.saturating_add(size).min(limit);
            let walked = self.walk(way, begin, end.saturating_add(OVER).min(limit))?;
            if walked.first.is_some() {
                return walked.first;
            }
            begin = end;
        }
        None
    }

    fn spend(&mut self) -> bool {
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }

    fn walk(&mut self, way: &History, from: Lsn, until: Lsn) -> Option<Walked> {
        match walk(&self.archive, way, from, until) {
            Ok(walked) => Some(walked),
            Err(e) => {
                self.problems.push(e.to_string());
                None
            }
        }
    }
}

/// What one walk met.
struct Walked {
    whole: Lsn,
    /// Whether any record was whole.
    records: bool,
    first: Option<Time>,
    last: Option<Time>,
}

fn walk(archive: &Archive, way: &History, from: Lsn, until: Lsn) -> Result<Walked, ArchiveError> {
    let seed = Seed { start: from, size: archive.size(), system_id: archive.system_id(), newest_tli: way.tli() };
    let mut chain = Chain::new(seed);
    let (mut first, mut last): (Option<ServerTime>, Option<ServerTime>) = (None, None);
    let mut seen = |record: &Record<'_>| {
        if let Some(end) = record.transaction_end() {
            first = first.or(Some(end.time));
            last = Some(end.time);
        }
    };
    let whole = match archive.walk(way, &mut chain, until, &mut seen)? {
        Stopped::Invalid { broken, .. } => broken.whole,
        _ => chain.whole(),
    };
    let time = |time: Option<ServerTime>| time.and_then(ServerTime::timestamp).map(Time);
    Ok(Walked { whole, records: chain.last_record().is_some(), first: time(first), last: time(last) })
}

impl Moment {
    /// The time that was read, or what is known otherwise.
    pub(super) fn of(read: Option<Time>, known: Option<Time>) -> Option<Self> {
        let read = read.map(|time| Self { time, exact: true });
        read.or_else(|| known.map(|time| Self { time, exact: false }))
    }

    /// As the usual clock has it.
    pub const fn timestamp(self) -> Timestamp {
        self.time.0
    }
}
