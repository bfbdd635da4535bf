//! The verifier: follows the chain of records through pages and segments, and stops at the first
//! byte that does not belong.
//!
//! The formats are those of `src/include/access/xlog_internal.h` and `xlogrecord.h`; the order of
//! the checks follows `xlogreader.c`. Bytes may be fed in slices of any length. Nothing is
//! allocated for a record, and a record that lies whole in a slice is checked where it lies.

use thiserror::Error;

use super::{Lsn, PAGE, Record, RecordKind, SegmentSize, TimelineId};
use crate::cursor::{Cursor, fill};

const SHORT_HEADER: usize = 24;
const LONG_HEADER: usize = 40;
const RECORD_HEADER: usize = 24;
/// The same as a record's length says it.
const SHORTEST_RECORD: u32 = 24;
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
                self.content(first(bytes, self.page_left), seen)?
            };
            bytes = bytes.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    /// Reads records of one page until the bytes end or a switch ends the segment.
    fn content(&mut self, bytes: &[u8], seen: &mut impl FnMut(&Record<'_>)) -> Result<usize, Broken> {
        let mut left = bytes;
        while !left.is_empty() {
            let used = match self.state {
                State::Start => match Whole::at(left) {
                    Some(record) => self.record_in_place(&record, seen)?,
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
            left = left.get(used..).unwrap_or_default();
        }
        Ok(bytes.len().saturating_sub(left.len()))
    }

    fn record_in_place(&mut self, record: &Whole<'_>, seen: &mut impl FnMut(&Record<'_>)) -> Result<usize, Broken> {
        let start = self.at;
        let total = RECORD_HEADER.saturating_add(record.data.len());
        self.check_header(start, &record.header)?;
        self.check_sum(start, crc32c::crc32c(record.data), record.raw)?;
        self.advance(total);
        self.complete(start, &record.header, record.data, seen)?;
        // Most records are followed by their padding in the same slice.
        if let State::Padding = self.state {
            return Ok(total.saturating_add(self.padding(record.behind)?));
        }
        Ok(total)
    }

    fn begin(&mut self) {
        self.open.start = self.at;
        self.open.crc = 0;
        self.open.prefix.clear();
    }

    fn record_header(&mut self, got: usize, bytes: &[u8], seen: &mut impl FnMut(&Record<'_>)) -> Result<usize, Broken> {
        let n = fill(&mut self.open.header, got, bytes);
        self.advance(n);
        let got = got.saturating_add(n);
        self.state = State::Header { got };
        let header = Header::read(&self.open.header);
        if got >= 4 {
            self.open.total = header.total;
            self.check_length(self.open.start, self.open.total)?;
        }
        if got == RECORD_HEADER {
            self.check_header(self.open.start, &header)?;
            let left = self.open.total.saturating_sub(SHORTEST_RECORD);
            self.state = State::Data { left };
            if left == 0 {
                self.close(seen)?;
            }
        }
        Ok(n)
    }

    fn record_data(&mut self, missing: u32, bytes: &[u8], seen: &mut impl FnMut(&Record<'_>)) -> Result<usize, Broken> {
        let bytes = first(bytes, missing.into());
        self.open.crc = crc32c::crc32c_append(self.open.crc, bytes);
        let header = Header::read(&self.open.header);
        let room = Record::kept(header.rmid, header.info).saturating_sub(self.open.prefix.len());
        self.open.prefix.extend_from_slice(first(bytes, room as u64));
        self.advance(bytes.len());
        let left = less(missing, bytes.len());
        self.state = State::Data { left };
        if left == 0 {
            self.close(seen)?;
        }
        Ok(bytes.len())
    }

    /// The open record is whole.
    fn close(&mut self, seen: &mut impl FnMut(&Record<'_>)) -> Result<(), Broken> {
        let header = self.open.header;
        self.check_sum(self.open.start, self.open.crc, &header)?;
        let prefix = std::mem::take(&mut self.open.prefix);
        let done = self.complete(self.open.start, &Header::read(&header), &prefix, seen);
        self.open.prefix = prefix;
        done
    }

    fn complete(
        &mut self,
        start: Lsn,
        header: &Header,
        data: &[u8],
        seen: &mut impl FnMut(&Record<'_>),
    ) -> Result<(), Broken> {
        let Header { total: length, xid, prev, info, rmid, .. } = *header;
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
            record.end = self.segment_end(self.at);
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
        let zeros = first(bytes, aligned(self.at).saturating_sub(self.at));
        self.check_zero(zeros)?;
        self.advance(zeros.len());
        if self.at.get().is_multiple_of(8) {
            self.state = State::Start;
        }
        Ok(zeros.len())
    }

    fn head(&mut self, missing: u32, bytes: &[u8]) -> usize {
        let bytes = first(bytes, missing.into());
        self.advance(bytes.len());
        let left = less(missing, bytes.len());
        self.state = State::Head { left };
        if left == 0 {
            self.end_head();
            self.state = if self.at.get().is_multiple_of(8) { State::Start } else { State::Padding };
        }
        bytes.len()
    }

    fn end_head(&mut self) {
        self.whole = aligned(self.at);
        self.checked_from = self.whole;
    }

    /// The zeros after a switch, which have no page headers.
    fn rest(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        let zeros = first(bytes, self.whole.saturating_sub(self.at));
        self.check_zero(zeros)?;
        self.at = self.at.saturating_add(zeros.len() as u64);
        if self.at == self.whole {
            self.page_left = 0;
            self.state = State::Start;
        }
        Ok(zeros.len())
    }

    fn page_header(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        let got = self.page_header_got;
        let start = Lsn::new(self.at.get().saturating_sub(got as u64));
        let length = if start.get().is_multiple_of(self.size.bytes()) { LONG_HEADER } else { SHORT_HEADER };
        let n = fill(self.page_header.get_mut(..length).unwrap_or_default(), got, bytes);
        self.page_header_got = got.saturating_add(n);
        self.at = self.at.saturating_add(n as u64);
        if self.page_header_got == length {
            self.page_header_got = 0;
            self.page_left = PAGE.saturating_sub(length as u64);
            let page = PageHeader::read(&self.page_header);
            self.check_page(start, &page, length == LONG_HEADER)?;
        }
        Ok(n)
    }

    fn check_page(&mut self, start: Lsn, page: &PageHeader, long: bool) -> Result<(), Broken> {
        let wrong = |fault| Err(self.broken(start, fault));
        let PageHeader { magic, flags, tli, address, continued, padding, .. } = *page;
        let plausible = self.magic.map_or(magic >> 8 == 0xD1, |before| magic == before);
        if !plausible {
            return wrong(Fault::PageMagic(magic));
        }
        let (continues, overwrites) = (flags & FIRST_IS_CONTINUATION != 0, flags & FIRST_IS_OVERWRITE != 0);
        if flags & !ALL_FLAGS != 0 || (flags & LONG != 0) != long || continues && overwrites {
            return wrong(Fault::PageFlags(flags));
        }
        if address != start {
            return wrong(Fault::PageAddress(address));
        }
        if tli > self.newest_tli {
            return wrong(Fault::PageTimeline { found: tli, before: self.newest_tli });
        }
        if tli < self.page_tli || tli == 0 {
            return wrong(Fault::PageTimeline { found: tli, before: self.page_tli });
        }
        if let Some(expected) = self.timeline_at(start).filter(|expected| *expected != tli) {
            return wrong(Fault::OtherTimeline { found: tli, expected });
        }
        if padding != 0 {
            return wrong(Fault::Padding);
        }
        if long {
            self.check_long_header(start, page)?;
        }
        self.magic = Some(magic);
        self.page_tli = tli;
        self.go_on(start, continues, overwrites, continued)
    }

    fn check_long_header(&mut self, start: Lsn, page: &PageHeader) -> Result<(), Broken> {
        let PageHeader { system_id, segment_size, page_size, .. } = *page;
        if self.system_id.is_some_and(|ours| ours != system_id) {
            return Err(self.broken(start, Fault::SystemIdentifier(system_id)));
        }
        if u64::from(segment_size) != self.size.bytes() {
            return Err(self.broken(start, Fault::SegmentSize(segment_size)));
        }
        if u64::from(page_size) != PAGE {
            return Err(self.broken(start, Fault::PageSize(page_size)));
        }
        self.system_id = Some(system_id);
        Ok(())
    }

    /// Holds what a page says of the record that reaches into it against the record that is open.
    fn go_on(&mut self, page: Lsn, continues: bool, overwrites: bool, found: u32) -> Result<(), Broken> {
        let at_head = std::mem::replace(&mut self.at_head, false);
        let (missing, in_head) = match self.state {
            State::Header { got } => (less(self.open.total, got), false),
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
        if !(SHORTEST_RECORD..=MAX_RECORD).contains(&total) {
            return Err(self.broken(start, Fault::RecordLength(total)));
        }
        Ok(())
    }

    fn check_header(&self, start: Lsn, header: &Header) -> Result<(), Broken> {
        let Header { total, prev: found, rmid, .. } = *header;
        self.check_length(start, total)?;
        match self.prev {
            Some(expected) if found != expected => {
                return Err(self.broken(start, Fault::PrevLink { found, expected }));
            }
            None if found >= start => {
                return Err(self.broken(start, Fault::PrevLink { found, expected: start }));
            }
            _ => {}
        }
        if !self.magic.is_none_or(|magic| is_manager(rmid, magic)) {
            return Err(self.broken(start, Fault::ResourceManager(rmid)));
        }
        Ok(())
    }

    fn check_sum(&self, start: Lsn, of_data: u32, header: &[u8; RECORD_HEADER]) -> Result<(), Broken> {
        let mut cursor = Cursor::new(header);
        let (summed, sum) = (cursor.take(RECORD_CRC_AT).unwrap_or_default(), cursor.u32_le());
        if sum == Some(crc32c::crc32c_append(of_data, summed)) {
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
        self.page_left = self.page_left.saturating_sub(n as u64);
    }

    /// The end of the segment that ends here, or else of the one that this lies in.
    fn segment_end(&self, lsn: Lsn) -> Lsn {
        Lsn::new(lsn.get().checked_next_multiple_of(self.size.bytes()).unwrap_or(u64::MAX))
    }
}

/// Whether servers whose pages bear this magic number may have that resource manager. Those that are
/// newer than we know may have any.
const fn is_manager(rmid: u8, magic: u16) -> bool {
    rmid < BUILT_IN_END || magic > NEWEST_KNOWN_MAGIC || (rmid >= CUSTOM_BEGIN && magic >= FIRST_CUSTOM_MAGIC)
}

/// A record that lies whole in a slice.
struct Whole<'a> {
    raw: &'a [u8; RECORD_HEADER],
    header: Header,
    data: &'a [u8],
    /// What follows it in the slice.
    behind: &'a [u8],
}

impl<'a> Whole<'a> {
    /// The one at the beginning of `bytes`, with a length it may have.
    fn at(bytes: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        let raw = cursor.array()?;
        let header = Header::read(raw);
        let data = cursor.take(usize::try_from(header.total.checked_sub(SHORTEST_RECORD)?).ok()?)?;
        Some(Self { raw, header, data, behind: cursor.rest() })
    }
}

/// What stands before a record's data (`XLogRecord`), but for its checksum.
#[derive(Clone, Copy, Default)]
struct Header {
    /// Bytes, with these.
    total: u32,
    xid: u32,
    prev: Lsn,
    info: u8,
    rmid: u8,
}

impl Header {
    #[inline]
    fn read(bytes: &[u8; RECORD_HEADER]) -> Self {
        let mut cursor = Cursor::new(bytes);
        let mut read = || {
            let (total, xid, prev) = (cursor.u32_le()?, cursor.u32_le()?, Lsn::new(cursor.u64_le()?));
            Some(Self { total, xid, prev, info: cursor.u8()?, rmid: cursor.u8()? })
        };
        // All of it is there.
        read().unwrap_or_default()
    }
}

/// What a page begins with: `XLogPageHeaderData`, and the first of a segment `XLogLongPageHeaderData`.
#[derive(Clone, Copy, Default)]
struct PageHeader {
    magic: u16,
    flags: u16,
    tli: u32,
    address: Lsn,
    /// Bytes of the record that reaches into it that were not in the pages before.
    continued: u32,
    padding: u32,
    system_id: u64,
    segment_size: u32,
    page_size: u32,
}

impl PageHeader {
    fn read(bytes: &[u8; LONG_HEADER]) -> Self {
        let mut cursor = Cursor::new(bytes);
        let mut read = || {
            Some(Self {
                magic: cursor.u16_le()?,
                flags: cursor.u16_le()?,
                tli: cursor.u32_le()?,
                address: Lsn::new(cursor.u64_le()?),
                continued: cursor.u32_le()?,
                padding: cursor.u32_le()?,
                system_id: cursor.u64_le()?,
                segment_size: cursor.u32_le()?,
                page_size: cursor.u32_le()?,
            })
        };
        // All of it is there.
        read().unwrap_or_default()
    }
}

/// The first of `bytes`, `most` of them at most.
fn first(bytes: &[u8], most: u64) -> &[u8] {
    usize::try_from(most).ok().and_then(|most| bytes.get(..most)).unwrap_or(bytes)
}

/// What is missing after so many more bytes, of which there are not more than are missing.
fn less(missing: u32, bytes: usize) -> u32 {
    missing.saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX))
}

fn aligned(lsn: Lsn) -> Lsn {
    Lsn::new(lsn.get().checked_next_multiple_of(8).unwrap_or(u64::MAX))
}

mod same;

/// The bytes of a log, made by hand.
#[cfg(test)]
#[path = "../../proto-tests/wal.rs"]
#[allow(unreachable_pub, reason = "shared with the test programs")]
pub(crate) mod built;

#[cfg(test)]
mod tests;
