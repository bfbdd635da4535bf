//! The verifier: follows the chain of records through pages and segments, and stops at the first
//! byte that does not belong.
//!
//! The formats are those of `src/include/access/xlog_internal.h` and `xlogrecord.h`; the order of
//! the checks follows `xlogreader.c`. Bytes may be fed in slices of any length. Nothing is
//! allocated for a record, and a record that lies whole in a slice is checked where it lies.

use thiserror::Error;

use super::{Lsn, PAGE, Record, RecordKind, SegmentSize, TimelineId};

const SHORT_HEADER: usize = 24;
const LONG_HEADER: usize = 40;
const RECORD_HEADER: usize = 24;
/// The checksum field is the last of the header and not part of what it sums.
const RECORD_CRC_AT: usize = 20;
/// Larger than any server writes (`XLogRecordMaxSize` is 1020 MiB); a length beyond it is damage.
const MAX_RECORD: u32 = 1 << 30;

const FIRST_IS_CONTINUATION: u16 = 1;
const LONG: u16 = 2;
const FIRST_IS_OVERWRITE: u16 = 8;
const ALL_FLAGS: u16 = 15;

/// The newest page magic whose built-in resource managers we know (PostgreSQL 18).
const NEWEST_KNOWN_MAGIC: u16 = 0xD118;
/// The first with which extensions may have resource managers of their own (PostgreSQL 15).
const FIRST_CUSTOM_MAGIC: u16 = 0xD110;
/// The numbers of the built-in ones end before this, and those of extensions begin with the other.
const BUILT_IN_END: u8 = 22;
const CUSTOM_BEGIN: u8 = 128;

/// What the pages must say of themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seed {
    /// First address that will be fed: the start of a segment.
    pub start: Lsn,
    /// The cluster's segment size.
    pub size: SegmentSize,
    /// The cluster's identifier; `None` takes the first segment's word for it.
    pub system_id: Option<u64>,
    /// Pages may bear this timeline or an older one, and never go back.
    pub newest_tli: TimelineId,
}

/// The chain does not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("WAL is not valid at {at}: {fault}")]
pub struct Broken {
    /// The page, record or byte that is wrong.
    pub at: Lsn,
    /// Exclusive end of the last whole record before it: where the record that cannot be read
    /// begins.
    pub whole: Lsn,
    /// What is wrong with it.
    pub fault: Fault,
}

/// Why the chain does not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Fault {
    /// Not a WAL page of this server's version; a page that was never written reads as 0.
    #[error("the page has magic number {0:04X}")]
    PageMagic(u16),
    /// Unknown flags, or the long header on the wrong page.
    #[error("the page has flags {0:04X}")]
    PageFlags(u16),
    /// The page belongs elsewhere: a recycled file, or a segment under another's name.
    #[error("the page says that it belongs at {0}")]
    PageAddress(Lsn),
    /// A page of a timeline that cannot come here.
    #[error("the page is of timeline {found}, after one of timeline {before}")]
    PageTimeline {
        /// What the page says.
        found: u32,
        /// What the page before said, or the newest there may be.
        before: u32,
    },
    /// The page is of one timeline where the history says another: a segment under another's name.
    #[error("the page is of timeline {found}, and the WAL here is of timeline {expected}")]
    OtherTimeline {
        /// What the page says.
        found: u32,
        /// What the history says.
        expected: u32,
    },
    /// The segment is of another cluster.
    #[error("the segment is of the cluster with system identifier {0}")]
    SystemIdentifier(u64),
    /// The segment was cut to another size.
    #[error("the segment says that segments have {0} bytes")]
    SegmentSize(u32),
    /// The server was built with pages of another size.
    #[error("the segment says that pages have {0} bytes")]
    PageSize(u32),
    /// A record is open and the page does not go on with it.
    #[error("the record begun at {0} does not go on in this page")]
    NoContinuation(Lsn),
    /// The page goes on with a record that was not begun.
    #[error("the page goes on with a record that did not begin before it")]
    StrayContinuation,
    /// The page goes on with so many bytes of the open record, which lacks another number.
    #[error("the page goes on with {found} bytes of a record that lacks {expected}")]
    ContinuationLength {
        /// What the page says.
        found: u32,
        /// What is missing of the record.
        expected: u32,
    },
    /// No record can have this length; 0 where nothing has been written yet.
    #[error("the record has length {0}")]
    RecordLength(u32),
    /// The record does not follow from the one before it.
    #[error("the record says that the one before it is at {found}, and it is at {expected}")]
    PrevLink {
        /// What the record says.
        found: Lsn,
        /// Where the record before it starts.
        expected: Lsn,
    },
    /// No server of this version has such a resource manager.
    #[error("the record is of the unknown resource manager {0}")]
    ResourceManager(u8),
    /// The bytes are not those that the server summed.
    #[error("the record's checksum is wrong")]
    Checksum,
    /// What must be zero is not: between records, or in the rest of a switched segment.
    #[error("a byte that must be zero is not")]
    Padding,
    /// A page gives up an open record, and its first record does not name it.
    #[error("the page gives up the record at {dropped}, and its first record does not say so")]
    Overwrite {
        /// The record that was open.
        dropped: Lsn,
    },
}

impl Fault {
    /// Whether sound WAL looks so where it follows other WAL than it was written after.
    pub const fn is_of_another_past(self) -> bool {
        matches!(
            self,
            Self::PrevLink { .. }
                | Self::NoContinuation(_)
                | Self::StrayContinuation
                | Self::ContinuationLength { .. }
                | Self::Overwrite { .. }
        )
    }
}

/// What the next byte is part of.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Rest of a record that began before the first segment; it cannot be checked.
    Head { left: u32 },
    /// Zeros up to the next multiple of 8.
    Padding,
    /// A record begins here, or nothing has been written here yet.
    Start,
    /// The record's header, of which `got` bytes are in `Open::header`.
    Header { got: usize },
    /// The record's data.
    Data { left: u32 },
    /// Zeros up to the segment's end.
    Rest,
}

/// The record that is being read when it does not lie whole in one slice.
#[derive(Clone, Debug)]
struct Open {
    start: Lsn,
    total: u32,
    crc: u32,
    header: [u8; RECORD_HEADER],
    prefix: Vec<u8>,
}

/// Follows records from the start of a segment.
#[derive(Clone, Debug)]
pub struct Chain {
    size: SegmentSize,
    system_id: Option<u64>,
    newest_tli: u32,
    /// Where each timeline ends, exclusive, and the one after the last; empty where that is not known.
    route: Vec<(Lsn, u32)>,
    page_tli: u32,
    magic: Option<u16>,
    at: Lsn,
    /// Exclusive end of the last whole record, or of the unchecked head.
    whole: Lsn,
    /// First byte that is checked.
    checked_from: Lsn,
    /// Start of the last whole record.
    prev: Option<Lsn>,
    /// Set by a page that gives up an open record, until its first record has confirmed it.
    dropped: Option<Lsn>,
    /// True until the first page has told whether a record reaches into it.
    at_head: bool,
    state: State,
    open: Open,
    page_header: [u8; LONG_HEADER],
    page_header_got: usize,
    page_left: u64,
}

impl Chain {
    /// A chain that begins with whatever the first segment begins with: if that is the rest of a
    /// record, it is passed over unchecked.
    ///
    /// # Panics
    /// When the start is not that of a segment.
    pub fn new(seed: Seed) -> Self {
        assert!(seed.start.get().is_multiple_of(seed.size.bytes()), "{} is not the start of a segment", seed.start);
        Self {
            size: seed.size,
            system_id: seed.system_id,
            newest_tli: seed.newest_tli.get(),
            route: Vec::new(),
            page_tli: 0,
            magic: None,
            at: seed.start,
            whole: seed.start,
            checked_from: seed.start,
            prev: None,
            dropped: None,
            at_head: true,
            state: State::Start,
            open: Open { start: seed.start, total: 0, crc: 0, header: [0; RECORD_HEADER], prefix: Vec::new() },
            page_header: [0; LONG_HEADER],
            page_header_got: 0,
            page_left: 0,
        }
    }

    /// The next byte to be fed.
    pub const fn at(&self) -> Lsn {
        self.at
    }

    /// Exclusive end of the last whole record fed, never beyond [`Chain::at`].
    pub fn whole(&self) -> Lsn {
        self.whole.min(self.at)
    }

    /// The first byte that is checked; what lies before it is the rest of a record that began
    /// before the chain did.
    pub const fn checked_from(&self) -> Lsn {
        self.checked_from
    }

    /// Start of the last whole record, to which the next one links back; `None` before the first.
    pub const fn last_record(&self) -> Option<Lsn> {
        self.prev
    }

    /// The cluster's identifier, once a segment's first page has told it.
    pub const fn system_id(&self) -> Option<u64> {
        self.system_id
    }

    /// Lets pages bear a newer timeline from here on.
    pub fn follow(&mut self, tli: TimelineId) {
        self.newest_tli = self.newest_tli.max(tli.get());
    }

    /// Checks the next bytes, which lie at [`Chain::at`], and shows each record that they complete.
    ///
    /// # Errors
    /// [`Broken`] at the first byte that does not belong. The chain must not be fed after that.
    pub fn feed(&mut self, mut bytes: &[u8], seen: &mut impl FnMut(&Record<'_>)) -> Result<(), Broken> {
        while !bytes.is_empty() {
            let used = if matches!(self.state, State::Rest) {
                self.rest(bytes)?
            } else if self.page_left == 0 {
                self.page_header(bytes)?
            } else {
                let in_page = usize::try_from(self.page_left).unwrap_or(usize::MAX).min(bytes.len());
                self.content(&bytes[..in_page], seen)?
            };
            bytes = &bytes[used..];
        }
        Ok(())
    }

    /// Reads records of one page until the bytes end or a switch ends the segment.
    fn content(&mut self, bytes: &[u8], seen: &mut impl FnMut(&Record<'_>)) -> Result<usize, Broken> {
        let mut used = 0;
        while used < bytes.len() {
            let left = &bytes[used..];
            used += match self.state {
                State::Start => match whole_record(left) {
                    Some(record) => self.record_in_place(record, left, seen)?,
                    None => {
                        self.begin();
                        self.record_header(0, left, seen)?
                    }
                },
                State::Header { got } => self.record_header(got, left, seen)?,
                State::Data { left: missing } => self.record_data(missing, left, seen)?,
                State::Padding => self.padding(left)?,
                State::Head { left: missing } => self.head(missing, left),
                State::Rest => break,
            };
        }
        Ok(used)
    }

    fn record_in_place(
        &mut self,
        record: &[u8],
        left: &[u8],
        seen: &mut impl FnMut(&Record<'_>),
    ) -> Result<usize, Broken> {
        let (start, total) = (self.at, record.len());
        let (header, data) = record.split_at(RECORD_HEADER);
        self.check_header(start, header)?;
        self.check_sum(start, crc32c::crc32c(data), header)?;
        self.advance(total);
        self.complete(start, header, data, seen)?;
        // Most records are followed by their padding in the same slice.
        let gap = total.next_multiple_of(8) - total;
        match (self.state, left.get(total..total + gap)) {
            (State::Padding, Some(zeros)) => Ok(total + self.padding(zeros)?),
            _ => Ok(total),
        }
    }

    fn begin(&mut self) {
        self.open.start = self.at;
        self.open.crc = 0;
        self.open.prefix.clear();
    }

    fn record_header(&mut self, got: usize, bytes: &[u8], seen: &mut impl FnMut(&Record<'_>)) -> Result<usize, Broken> {
        let n = bytes.len().min(RECORD_HEADER - got);
        self.open.header[got..got + n].copy_from_slice(&bytes[..n]);
        self.advance(n);
        let got = got + n;
        self.state = State::Header { got };
        if got >= 4 {
            self.open.total = u32_at(&self.open.header, 0);
            self.check_length(self.open.start, self.open.total)?;
        }
        if got == RECORD_HEADER {
            let header = self.open.header;
            self.check_header(self.open.start, &header)?;
            self.state = State::Data { left: self.open.total - RECORD_HEADER as u32 };
            if self.open.total == RECORD_HEADER as u32 {
                self.close(seen)?;
            }
        }
        Ok(n)
    }

    fn record_data(&mut self, missing: u32, bytes: &[u8], seen: &mut impl FnMut(&Record<'_>)) -> Result<usize, Broken> {
        let n = bytes.len().min(missing as usize);
        let bytes = &bytes[..n];
        self.open.crc = crc32c::crc32c_append(self.open.crc, bytes);
        let room = Record::kept(self.open.header[17], self.open.header[16]).saturating_sub(self.open.prefix.len());
        self.open.prefix.extend_from_slice(&bytes[..n.min(room)]);
        self.advance(n);
        let missing = missing - n as u32;
        self.state = State::Data { left: missing };
        if missing == 0 {
            self.close(seen)?;
        }
        Ok(n)
    }

    /// The open record is whole.
    fn close(&mut self, seen: &mut impl FnMut(&Record<'_>)) -> Result<(), Broken> {
        let header = self.open.header;
        self.check_sum(self.open.start, self.open.crc, &header)?;
        let prefix = std::mem::take(&mut self.open.prefix);
        let done = self.complete(self.open.start, &header, &prefix, seen);
        self.open.prefix = prefix;
        done
    }

    fn complete(
        &mut self,
        start: Lsn,
        header: &[u8],
        data: &[u8],
        seen: &mut impl FnMut(&Record<'_>),
    ) -> Result<(), Broken> {
        let (xid, info, rmid) = (u32_at(header, 4), header[16], header[17]);
        let (length, prev) = (u32_at(header, 0), Lsn::new(u64_at(header, 8)));
        let magic = self.magic.unwrap_or_default();
        let mut record = Record { start, end: aligned(self.at), prev, length, rmid, info, xid, magic, data };
        let kind = record.kind();
        if let Some(dropped) = self.dropped.take()
            && kind != RecordKind::OverwriteContinuation(dropped)
        {
            return Err(self.broken(start, Fault::Overwrite { dropped }));
        }
        self.state = State::Padding;
        if self.at.get().is_multiple_of(8) {
            self.state = State::Start;
        }
        if kind == RecordKind::Switch {
            // The segment in which it ends, which may be the next one.
            record.end = self.segment_end(Lsn::new(self.at.get() - 1));
            if self.at < record.end {
                self.state = State::Rest;
            }
        }
        self.prev = Some(start);
        self.whole = record.end;
        seen(&record);
        Ok(())
    }

    fn padding(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        let n = bytes.len().min((aligned(self.at) - self.at) as usize);
        self.check_zero(&bytes[..n])?;
        self.advance(n);
        if self.at.get().is_multiple_of(8) {
            self.state = State::Start;
        }
        Ok(n)
    }

    fn head(&mut self, missing: u32, bytes: &[u8]) -> usize {
        let n = bytes.len().min(missing as usize);
        self.advance(n);
        let left = missing - n as u32;
        self.state = State::Head { left };
        if left == 0 {
            self.end_head();
            self.state = if self.at.get().is_multiple_of(8) { State::Start } else { State::Padding };
        }
        n
    }

    fn end_head(&mut self) {
        self.whole = aligned(self.at);
        self.checked_from = self.whole;
    }

    /// The zeros after a switch, which have no page headers.
    fn rest(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        let n = bytes.len().min(usize::try_from(self.whole - self.at).unwrap_or(usize::MAX));
        self.check_zero(&bytes[..n])?;
        self.at = self.at.saturating_add(n as u64);
        if self.at == self.whole {
            self.page_left = 0;
            self.state = State::Start;
        }
        Ok(n)
    }

    fn page_header(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        let got = self.page_header_got;
        let start = Lsn::new(self.at.get() - got as u64);
        let length = if start.get().is_multiple_of(self.size.bytes()) { LONG_HEADER } else { SHORT_HEADER };
        let n = bytes.len().min(length - got);
        self.page_header[got..got + n].copy_from_slice(&bytes[..n]);
        self.page_header_got = got + n;
        self.at = self.at.saturating_add(n as u64);
        if self.page_header_got == length {
            self.page_header_got = 0;
            self.page_left = PAGE - length as u64;
            self.check_page(start, length == LONG_HEADER)?;
        }
        Ok(n)
    }

    fn check_page(&mut self, start: Lsn, long: bool) -> Result<(), Broken> {
        let header = self.page_header;
        let wrong = |fault| Err(self.broken(start, fault));
        let (magic, flags) = (u16_at(&header, 0), u16_at(&header, 2));
        let plausible = self.magic.map_or(magic >> 8 == 0xD1, |before| magic == before);
        if !plausible {
            return wrong(Fault::PageMagic(magic));
        }
        let (continues, overwrites) = (flags & FIRST_IS_CONTINUATION != 0, flags & FIRST_IS_OVERWRITE != 0);
        if flags & !ALL_FLAGS != 0 || (flags & LONG != 0) != long || continues && overwrites {
            return wrong(Fault::PageFlags(flags));
        }
        let address = Lsn::new(u64_at(&header, 8));
        if address != start {
            return wrong(Fault::PageAddress(address));
        }
        let tli = u32_at(&header, 4);
        if tli > self.newest_tli {
            return wrong(Fault::PageTimeline { found: tli, before: self.newest_tli });
        }
        if tli < self.page_tli || tli == 0 {
            return wrong(Fault::PageTimeline { found: tli, before: self.page_tli });
        }
        if let Some(expected) = self.timeline_at(start).filter(|expected| *expected != tli) {
            return wrong(Fault::OtherTimeline { found: tli, expected });
        }
        if header[20..SHORT_HEADER] != [0; 4] {
            return wrong(Fault::Padding);
        }
        if long {
            self.check_long_header(start, &header)?;
        }
        self.magic = Some(magic);
        self.page_tli = tli;
        self.go_on(start, continues, overwrites, u32_at(&header, 16))
    }

    fn check_long_header(&mut self, start: Lsn, header: &[u8]) -> Result<(), Broken> {
        let (system_id, segment, page) = (u64_at(header, 24), u32_at(header, 32), u32_at(header, 36));
        if self.system_id.is_some_and(|ours| ours != system_id) {
            return Err(self.broken(start, Fault::SystemIdentifier(system_id)));
        }
        if u64::from(segment) != self.size.bytes() {
            return Err(self.broken(start, Fault::SegmentSize(segment)));
        }
        if u64::from(page) != PAGE {
            return Err(self.broken(start, Fault::PageSize(page)));
        }
        self.system_id = Some(system_id);
        Ok(())
    }

    /// Holds what a page says of the record that reaches into it against the record that is open.
    fn go_on(&mut self, page: Lsn, continues: bool, overwrites: bool, found: u32) -> Result<(), Broken> {
        let at_head = std::mem::replace(&mut self.at_head, false);
        let (missing, in_head) = match self.state {
            State::Header { got } => (self.open.total - got as u32, false),
            State::Data { left } => (left, false),
            State::Head { left } => (left, true),
            State::Start | State::Padding | State::Rest => (0, false),
        };
        if overwrites {
            if missing == 0 && !at_head {
                return Err(self.broken(page, Fault::StrayContinuation));
            }
            if in_head || at_head {
                self.end_head();
            } else {
                self.dropped = Some(self.open.start);
            }
            self.state = State::Start;
            return Ok(());
        }
        if continues && at_head && found > 0 {
            self.state = State::Head { left: found };
            return Ok(());
        }
        match (continues, missing) {
            (true, 0) => Err(self.broken(page, Fault::StrayContinuation)),
            (false, 1..) => {
                Err(self.broken(page, Fault::NoContinuation(if in_head { self.whole } else { self.open.start })))
            }
            _ if found != missing => Err(self.broken(page, Fault::ContinuationLength { found, expected: missing })),
            (false, 0) => {
                if at_head {
                    self.end_head();
                }
                self.state = State::Start;
                Ok(())
            }
            (true, 1..) => Ok(()),
        }
    }

    fn check_length(&self, start: Lsn, total: u32) -> Result<(), Broken> {
        if total < RECORD_HEADER as u32 || total > MAX_RECORD {
            return Err(self.broken(start, Fault::RecordLength(total)));
        }
        Ok(())
    }

    fn check_header(&self, start: Lsn, header: &[u8]) -> Result<(), Broken> {
        self.check_length(start, u32_at(header, 0))?;
        let found = Lsn::new(u64_at(header, 8));
        match self.prev {
            Some(expected) if found != expected => {
                return Err(self.broken(start, Fault::PrevLink { found, expected }));
            }
            None if found >= start => {
                return Err(self.broken(start, Fault::PrevLink { found, expected: start }));
            }
            _ => {}
        }
        let rmid = header[17];
        if !self.magic.is_none_or(|magic| is_manager(rmid, magic)) {
            return Err(self.broken(start, Fault::ResourceManager(rmid)));
        }
        Ok(())
    }

    fn check_sum(&self, start: Lsn, of_data: u32, header: &[u8]) -> Result<(), Broken> {
        if crc32c::crc32c_append(of_data, &header[..RECORD_CRC_AT]) == u32_at(header, RECORD_CRC_AT) {
            return Ok(());
        }
        Err(self.broken(start, Fault::Checksum))
    }

    fn check_zero(&self, bytes: &[u8]) -> Result<(), Broken> {
        if bytes.iter().fold(0, |all, byte| all | byte) == 0 {
            return Ok(());
        }
        let first = bytes.iter().take_while(|byte| **byte == 0).count();
        Err(self.broken(self.at.saturating_add(first as u64), Fault::Padding))
    }

    fn broken(&self, at: Lsn, fault: Fault) -> Broken {
        Broken { at, whole: self.whole.min(at), fault }
    }

    /// Passes over bytes of a page's content.
    fn advance(&mut self, n: usize) {
        self.at = self.at.saturating_add(n as u64);
        self.page_left -= n as u64;
    }

    fn segment_end(&self, lsn: Lsn) -> Lsn {
        Lsn::new((lsn.get() / self.size.bytes() + 1).saturating_mul(self.size.bytes()))
    }
}

/// Whether servers whose pages bear this magic number may have that resource manager. Those that are
/// newer than we know may have any.
const fn is_manager(rmid: u8, magic: u16) -> bool {
    rmid < BUILT_IN_END || magic > NEWEST_KNOWN_MAGIC || (rmid >= CUSTOM_BEGIN && magic >= FIRST_CUSTOM_MAGIC)
}

/// The record at the beginning of `bytes` if it lies there whole, with a length it may have.
fn whole_record(bytes: &[u8]) -> Option<&[u8]> {
    let total = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    if total < RECORD_HEADER { None } else { bytes.get(..total) }
}

fn aligned(lsn: Lsn) -> Lsn {
    Lsn::new(lsn.get().checked_next_multiple_of(8).unwrap_or(u64::MAX))
}

/// Little-endian reads in headers whose length the caller has made sure of.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

mod same;

/// The bytes of a log, made by hand.
#[cfg(test)]
#[path = "../../proto-tests/wal.rs"]
#[allow(unreachable_pub, reason = "shared with the test programs")]
pub(crate) mod built;

#[cfg(test)]
mod tests;
