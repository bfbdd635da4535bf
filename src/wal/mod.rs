//! Write-ahead log as bytes and names: positions, timelines, segments, history files, and the
//! verifier that follows records from page to page. Pure: no file, socket or clock.

// What comes from outside never ends the program: no read beyond the end, no number that loses bits or overflows.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unwrap_used
    )
)]

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
