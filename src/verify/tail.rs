//! What lies behind the last whole record of a partial: nothing yet, a record that has not come
//! whole, or what should not be there.

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

use crate::archive::{ArchiveError, SegmentReader};
use crate::cursor::Cursor;
use crate::wal::{Broken, Fault, Lsn, PAGE, Segment};

/// The least that a disk writes at once: what a write that was cut short leaves ends at a multiple.
const SECTOR: u64 = 512;
/// Compared with in one go.
const ZEROS: [u8; 512] = [0; 512];
const RECORD_HEADER: u64 = 24;
/// Where a page says how much of the record is still to come.
const REST_AT: u64 = 16;
const SHORT_PAGE_HEADER: u64 = 24;
const LONG_PAGE_HEADER: u64 = 40;

/// Behind the last whole record of a partial.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tail {
    /// Zeros, or the beginning of a record: a server sends WAL up to the end of a record or a page.
    Sound,
    /// What was not written before the machine stopped lies between what was. Nothing of it was
    /// reported as flushed, and a receiver receives it again.
    Torn,
    /// What is there has all been written and is not right.
    Damaged,
}

/// The bytes behind an address.
#[derive(Default)]
struct Seen {
    first: Vec<u8>,
    /// Exclusive end of the last byte that is not zero.
    end: Option<Lsn>,
    /// The first sector of zeros that has other bytes behind it.
    hole: Option<Lsn>,
}

impl Tail {
    /// Looks at the bytes from `whole`, the end of the last whole record, on.
    pub(super) fn of(reader: &mut SegmentReader, whole: Lsn, broken: Option<Broken>) -> Result<Self, ArchiveError> {
        let segment = reader.segment();
        // A record that begins before it goes on in its first page.
        let continues = whole < segment.start();
        let from = whole.max(segment.start());
        let seen = look(reader, from)?;
        let Some(end) = seen.end else { return Ok(Self::Sound) };
        let needs = record_end(segment, from, &seen.first, continues);
        let unfinished = broken.is_none_or(|broken| matches!(broken.fault, Fault::PageMagic(0) | Fault::Checksum));
        if unfinished && needs.is_some_and(|needs| needs > sector_end(end)) {
            return Ok(Self::Sound);
        }
        let near = needs.unwrap_or(from).saturating_add(PAGE);
        Ok(if seen.hole.is_some_and(|hole| hole < near) { Self::Torn } else { Self::Damaged })
    }
}

fn sector_end(at: Lsn) -> Lsn {
    Lsn::new(at.get().checked_next_multiple_of(SECTOR).unwrap_or(u64::MAX))
}

fn look(reader: &mut SegmentReader, from: Lsn) -> Result<Seen, ArchiveError> {
    let segment = reader.segment();
    reader.skip_to(from.saturating_sub(segment.start()))?;
    let mut seen = Seen::default();
    let mut zeros_from = from;
    loop {
        let at = segment.start().saturating_add(reader.offset());
        // Sector by sector, for what lies in one piece of memory may end anywhere.
        let upto = sector_end(at.saturating_add(1)).saturating_sub(at);
        let bytes = reader.fill()?;
        let n = bytes.len().min(usize::try_from(upto).unwrap_or(usize::MAX));
        let Some(bytes) = bytes.get(..n).filter(|bytes| !bytes.is_empty()) else { return Ok(seen) };
        if (seen.first.len() as u64) < LONG_PAGE_HEADER + RECORD_HEADER {
            seen.first.extend_from_slice(bytes);
        }
        let all_zero = ZEROS.get(..n) == Some(bytes);
        let last = if all_zero { None } else { bytes.iter().rposition(|byte| *byte != 0) };
        if let Some(last) = last {
            // Only a hole with something behind it is one.
            let hole = sector_end(zeros_from);
            if at.saturating_sub(hole) >= SECTOR {
                seen.hole = seen.hole.or(Some(hole));
            }
            zeros_from = at.saturating_add((last as u64).saturating_add(1));
            seen.end = Some(zeros_from);
        }
        reader.consume(n);
    }
}

/// Exclusive end of the record that begins, or goes on, at `at`, as its length or the page says;
/// `None` if there can be none.
fn record_end(segment: Segment, at: Lsn, bytes: &[u8], continues: bool) -> Option<Lsn> {
    let header =
        |page: u64| if page.is_multiple_of(segment.size().bytes()) { LONG_PAGE_HEADER } else { SHORT_PAGE_HEADER };
    let skipped = if at.get().is_multiple_of(PAGE) { header(at.get()) } else { 0 };
    let length_at = if continues { REST_AT } else { skipped };
    let mut cursor = Cursor::new(bytes);
    cursor.take(usize::try_from(length_at).ok()?)?;
    let mut left = u64::from(cursor.u32_le()?);
    let least = if continues { 1 } else { RECORD_HEADER };
    if !(least..=1 << 30).contains(&left) {
        return None;
    }
    let mut at = at.get().checked_add(skipped)?;
    loop {
        let room = PAGE.saturating_sub(at % PAGE);
        if left <= room {
            return at.checked_add(left).map(Lsn::new);
        }
        left = left.saturating_sub(room);
        at = at.checked_add(room)?;
        at = at.checked_add(header(at))?;
    }
}
