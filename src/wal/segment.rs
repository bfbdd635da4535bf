//! The files that the log is cut into, and their names.

use std::fmt;

use thiserror::Error;

use super::{Lsn, Pos, TimelineId};

/// Bytes in one segment file: a power of two from 1 MiB to 1 GiB (`wal_segment_size`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SegmentSize(u64);

impl SegmentSize {
    /// What a server is built with unless `initdb --wal-segsize` says otherwise: 16 MiB.
    pub const DEFAULT: Self = Self(16 << 20);

    /// The least that `initdb` allows: all names of segments are names of such ones.
    pub const SMALLEST: Self = Self(1 << 20);

    /// `None` unless `bytes` is a power of two from 1 MiB to 1 GiB.
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 1 << 20 && bytes <= 1 << 30 { Some(Self(bytes)) } else { None }
    }

    /// Reads what `SHOW wal_segment_size` answers: a number and `MB` or `GB`, such as `16MB`.
    ///
    /// # Errors
    /// For any other text, and for a size that PostgreSQL does not allow.
    pub fn from_show(text: &str) -> Result<Self, ParseSegmentSizeError> {
        let wrong = || ParseSegmentSizeError(text.to_owned());
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match text.get(digits.len()..).unwrap_or_default() {
            "MB" => 1 << 20,
            "GB" => 1 << 30,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number.checked_mul(unit).and_then(Self::new).ok_or_else(wrong)
    }

    /// Bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Segments in the 4 GiB that the middle part of a file name counts.
    #[expect(clippy::arithmetic_side_effects, reason = "no size is 0")]
    const fn per_name(self) -> u64 {
        (1 << 32) / self.0
    }
}

/// The server told a segment size that PostgreSQL does not have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the server's wal_segment_size \"{0}\" is not a power of two between 1MB and 1GB")]
pub struct ParseSegmentSizeError(pub String);

/// One segment of one timeline.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Segment {
    tli: TimelineId,
    no: u64,
    size: SegmentSize,
}

impl Segment {
    /// The segment that holds the byte at `pos`.
    #[expect(clippy::arithmetic_side_effects, reason = "no size is 0")]
    pub const fn containing(pos: Pos, size: SegmentSize) -> Self {
        Self { tli: pos.tli(), no: pos.lsn().get() / size.bytes(), size }
    }

    /// The one with that number since the beginning of the log.
    pub const fn at(tli: TimelineId, no: u64, size: SegmentSize) -> Self {
        Self { tli, no, size }
    }

    /// Reads a file name of exactly 24 upper-case hexadecimal digits (`XLogFileName`). `None` for
    /// any other text, for timeline 0, and for a number that segments of `size` cannot bear.
    pub fn parse(name: &str, size: SegmentSize) -> Option<Self> {
        let bytes = name.as_bytes();
        if bytes.len() != 24 || !bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')) {
            return None;
        }
        let part = |range| u32::from_str_radix(name.get(range)?, 16).ok();
        let (tli, high, low) = (TimelineId::new(part(0..8)?)?, part(8..16)?, part(16..24)?);
        let low = u64::from(low);
        let no = u64::from(high).checked_mul(size.per_name())?.checked_add(low)?;
        (low < size.per_name()).then_some(Self { tli, no, size })
    }

    /// The timeline in the file's name. Pages before a switch point in it may bear older ones.
    pub const fn tli(self) -> TimelineId {
        self.tli
    }

    /// The number since the beginning of the log.
    pub const fn no(self) -> u64 {
        self.no
    }

    /// The size all segments of this cluster have.
    pub const fn size(self) -> SegmentSize {
        self.size
    }

    /// The first address in it.
    pub const fn start(self) -> Lsn {
        Lsn::new(self.no.saturating_mul(self.size.bytes()))
    }

    /// The first address after it.
    pub const fn end(self) -> Lsn {
        self.start().saturating_add(self.size.bytes())
    }

    /// [`Segment::start`] with the timeline.
    pub const fn start_pos(self) -> Pos {
        Pos::new(self.tli, self.start())
    }

    /// [`Segment::end`] with the timeline.
    pub const fn end_pos(self) -> Pos {
        Pos::new(self.tli, self.end())
    }

    /// The one after it on the same timeline.
    #[must_use]
    pub const fn next(self) -> Self {
        Self { no: self.no.saturating_add(1), ..self }
    }

    /// The one before it on the same timeline; `None` before the first.
    pub const fn previous(self) -> Option<Self> {
        match self.no.checked_sub(1) {
            Some(no) => Some(Self { no, ..self }),
            None => None,
        }
    }

    /// The segment of the same number on another timeline.
    #[must_use]
    pub const fn on(self, tli: TimelineId) -> Self {
        Self { tli, ..self }
    }

    /// Whether the byte at `lsn` lies in it.
    pub fn contains(self, lsn: Lsn) -> bool {
        self.start() <= lsn && lsn < self.end()
    }

    /// The file name, 24 hexadecimal digits.
    pub fn name(self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Segment {
    #[expect(clippy::arithmetic_side_effects, reason = "no size is more than what a name counts")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = self.size.per_name();
        write!(f, "{:08X}{:08X}{:08X}", self.tli.get(), self.no / per, self.no % per)
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tli(id: u32) -> TimelineId {
        TimelineId::new(id).unwrap()
    }

    #[test]
    fn names_follow_the_segment_size() {
        let lsn = Lsn::new(0x2_FF00_0000);
        for (mib, name) in [
            (1, "0000000300000002 00000FF0"),
            (16, "0000000300000002 000000FF"),
            (64, "0000000300000002 0000003F"),
            (1024, "0000000300000002 00000003"),
        ] {
            let size = SegmentSize::new(mib << 20).unwrap();
            let name = name.replace(' ', "");
            let segment = Segment::containing(Pos::new(tli(3), lsn), size);
            assert_eq!(segment.name(), name);
            assert_eq!(Segment::parse(&name, size), Some(segment));
            assert!(segment.contains(lsn));
            assert_eq!(segment.next().start(), segment.end());
        }
    }

    #[test]
    fn names_that_are_almost_right_are_refused() {
        for name in [
            "00000001000000000000001",
            "0000000100000000000000011",
            "00000001000000000000000g",
            "00000001000000000000000a",
            "000000010000000000000100",
            "000000000000000000000001",
            "000000010000000000000001.partial",
        ] {
            assert_eq!(Segment::parse(name, SegmentSize::DEFAULT), None, "{name}");
        }
    }

    #[test]
    fn sizes_that_no_server_has_are_refused() {
        assert_eq!(SegmentSize::from_show("16MB"), Ok(SegmentSize::DEFAULT));
        assert_eq!(SegmentSize::from_show("1GB").unwrap().bytes(), 1 << 30);
        for text in ["", "MB", "16", "16kB", "3MB", "2GB", "0MB", "-16MB", "99999999999999999999GB", "16 MB"] {
            assert_eq!(SegmentSize::from_show(text), Err(ParseSegmentSizeError(text.to_owned())), "{text:?}");
        }
    }
}
