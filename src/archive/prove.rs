//! The proof that a backup's WAL is all there: every record from its start to its end, in order,
//! each with a right checksum, and the end that makes the copied files consistent.

use thiserror::Error;

use super::{Archive, ArchiveError, Stopped};
use crate::wal::{Broken, Chain, Lsn, Pos, Record, RecordKind, Seed, Segment};

/// What must be reached for the copied files to be one state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndOfBackup {
    /// The end-of-backup record that names the backup's start, ending at its stop position: a
    /// backup from a primary.
    Record,
    /// The stop position itself, which is the minRecoveryPoint of the `pg_control` that was copied
    /// last: a backup from a standby, which writes no such record.
    Position,
}

/// All WAL of a backup was there and valid when this was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proof {
    start: Lsn,
    stop: Pos,
    segments: Vec<Segment>,
}

/// The WAL of a backup is not all there, or not valid.
#[derive(Debug, Error)]
pub enum NotProven {
    /// A segment is missing.
    #[error("segment {segment} is missing; the backup needs {start} to {stop}")]
    Missing {
        /// Which.
        segment: Segment,
        /// Where the backup's WAL begins.
        start: Lsn,
        /// Exclusive end of the backup's WAL.
        stop: Lsn,
    },
    /// A segment's file ends too early.
    #[error("segment {segment} ends after {bytes} bytes; the backup needs {start} to {stop}")]
    Short {
        /// Which.
        segment: Segment,
        /// What it holds.
        bytes: u64,
        /// Where the backup's WAL begins.
        start: Lsn,
        /// Exclusive end of the backup's WAL.
        stop: Lsn,
    },
    /// A segment is damaged, or its WAL ends too early.
    #[error("segment {segment}: {broken}; the backup needs {start} to {stop}")]
    Invalid {
        /// Which.
        segment: Segment,
        /// Where and why.
        broken: Broken,
        /// Where the backup's WAL begins.
        start: Lsn,
        /// Exclusive end of the backup's WAL.
        stop: Lsn,
    },
    /// The backup's start is not the start of a record.
    #[error("no record begins at {0}, where the backup starts")]
    NoRecordAtStart(Lsn),
    /// The record that ends the backup did not come.
    #[error("no end-of-backup record for the backup started at {start} ends at {stop}")]
    NoEndRecord {
        /// Where the backup's WAL begins.
        start: Lsn,
        /// Exclusive end of the backup's WAL.
        stop: Lsn,
    },
    /// The range is empty or runs backwards, or its timeline does not reach it.
    #[error("the backup's WAL cannot begin at {start} and end at {stop}")]
    NoSuchRange {
        /// Where the backup's WAL begins.
        start: Lsn,
        /// Exclusive end of the backup's WAL.
        stop: Lsn,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

impl Proof {
    /// Where the backup's WAL begins: its redo position.
    pub const fn start(&self) -> Lsn {
        self.start
    }

    /// Exclusive end of the backup's WAL.
    pub const fn stop(&self) -> Pos {
        self.stop
    }

    /// The segments that hold it, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }
}

impl Archive {
    /// The segments that hold the WAL from `start` to `stop` on the way to `stop`'s timeline.
    ///
    /// # Errors
    /// When the timeline's history cannot be read.
    pub fn segments_between(&self, start: Lsn, stop: Pos) -> Result<Vec<Segment>, ArchiveError> {
        let route = self.history(stop.tli())?;
        let mut segments = Vec::new();
        let mut at = start;
        while at < stop.lsn() {
            let segment = route.segment_at(at, self.size);
            at = segment.end();
            segments.push(segment);
        }
        Ok(segments)
    }

    /// Reads every record from `start`, a backup's redo position, to `stop`, its exclusive end.
    ///
    /// # Errors
    /// [`NotProven`] with the first thing that is wrong.
    pub fn prove(&self, start: Lsn, stop: Pos, end: EndOfBackup) -> Result<Proof, NotProven> {
        let upto = stop.lsn();
        let mut ends = false;
        let whole = self.read_records(start, stop, &mut |record| {
            ends |= record.kind() == RecordKind::BackupEnd(start) && record.end.min(upto) == upto;
        })?;
        if (end == EndOfBackup::Record && !ends) || whole < upto {
            return Err(NotProven::NoEndRecord { start, stop: upto });
        }
        Ok(Proof { start, stop, segments: self.segments_between(start, stop)? })
    }

    /// Shows every record from the one at `start`, the redo position of a backup, to `stop` (exclusive), on the way to
    /// the timeline of `stop`, and perhaps some before. The end of the last one is given back.
    ///
    /// # Errors
    /// As [`Archive::prove`].
    pub fn read_records(&self, start: Lsn, stop: Pos, seen: &mut impl FnMut(&Record<'_>)) -> Result<Lsn, NotProven> {
        let upto = stop.lsn();
        if start >= upto {
            return Err(NotProven::NoSuchRange { start, stop: upto });
        }
        let route = self.history(stop.tli())?;
        let first = Segment::containing(stop.at(start), self.size);
        let seed = Seed { start: first.start(), size: self.size, system_id: self.system_id, newest_tli: stop.tli() };
        let mut chain = Chain::new(seed).along(&route);
        let mut starts = false;
        let stopped = self.walk(&route, &mut chain, upto, &mut |record| {
            starts |= record.start == start;
            seen(record);
        })?;
        match stopped {
            Stopped::Reached => {}
            Stopped::Missing(segment) => return Err(NotProven::Missing { segment, start, stop: upto }),
            Stopped::Short { segment, bytes, .. } => {
                return Err(NotProven::Short { segment, bytes, start, stop: upto });
            }
            Stopped::Invalid { segment, broken, .. } => {
                return Err(NotProven::Invalid { segment, broken, start, stop: upto });
            }
        }
        if starts { Ok(chain.whole()) } else { Err(NotProven::NoRecordAtStart(start)) }
    }
}
