//! Write-ahead log as bytes and names: positions, timelines, segments, history files, and the
//! verifier that follows records from page to page. Pure: no file, socket or clock.

pub(crate) mod chain;
mod history;
mod position;
mod record;
mod segment;

pub use chain::{Broken, Chain, Fault, Seed};
pub use history::{History, HistoryError, HistoryFile, Switch};
pub use position::{Lsn, ParseLsnError, Pos, TimelineId};
pub use record::{OddTruncation, Record, RecordKind, RestorePoint, ServerTime, TransactionEnd, Truncation};
pub use segment::{ParseSegmentSizeError, Segment, SegmentSize};

/// Size in bytes of a WAL page (`XLOG_BLCKSZ`; every packaged server uses this value, and the
/// long page header repeats it).
pub const PAGE: u64 = 8192;
