//! Timeline history files: which timeline each one forked from, and where
//! (`src/backend/access/transam/timeline.c`).

use thiserror::Error;

use super::{Lsn, ParseLsnError, Pos, Segment, SegmentSize, TimelineId};

/// A server's history files are a few lines; more than this is not one.
const MAX_BYTES: usize = 1 << 20;

/// The name `NNNNNNNN.history`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HistoryFile(pub TimelineId);

impl HistoryFile {
    /// `None` unless `name` is eight upper-case hexadecimal digits, not all zero, and `.history`.
    pub fn parse(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(".history")?;
        let plain = digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
        plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten().and_then(TimelineId::new).map(Self)
    }

    /// The file name.
    pub fn name(self) -> String {
        format!("{:08X}.history", self.0.get())
    }
}

/// The end of one timeline: its first byte that the next one does not share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Switch {
    /// The timeline that ends.
    pub from: TimelineId,
    /// Exclusive end of what `from` contributes.
    pub at: Lsn,
}

/// The ancestors of a timeline, oldest first, and itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct History {
    tli: TimelineId,
    switches: Vec<Switch>,
}

/// The bytes are not the history of that timeline.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HistoryError {
    /// Larger than any server writes.
    #[error("it is {0} bytes long")]
    TooLong(usize),
    /// A line is not `timeline<TAB>position<TAB>reason`.
    #[error("line {0} is not a timeline and a position")]
    Line(usize),
    /// A position does not parse.
    #[error("line {0}: {1}")]
    Position(usize, ParseLsnError),
    /// Ancestors must have growing numbers and positions that do not go back.
    #[error("line {0} does not follow from the line before")]
    Order(usize),
    /// No ancestor is named, or one that is not older than the timeline itself.
    #[error("it does not name the parents of timeline {0}")]
    Parents(TimelineId),
}

impl History {
    /// Timeline 1, which has no file and no ancestor.
    pub const fn first() -> Self {
        Self { tli: TimelineId::FIRST, switches: Vec::new() }
    }

    /// A timeline whose ancestors are not known, or do not matter.
    pub const fn alone(tli: TimelineId) -> Self {
        Self { tli, switches: Vec::new() }
    }

    /// Reads the file of timeline `tli`.
    ///
    /// # Errors
    /// When a line cannot be read, the order is wrong, or it names no older timeline.
    pub fn parse(tli: TimelineId, content: &[u8]) -> Result<Self, HistoryError> {
        if content.len() > MAX_BYTES {
            return Err(HistoryError::TooLong(content.len()));
        }
        let mut switches: Vec<Switch> = Vec::new();
        for (number, line) in (1..).zip(content.split(|b| *b == b'\n')) {
            // The reason may hold any bytes (a restore point's name); the rest is ASCII.
            let line = String::from_utf8_lossy(line);
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut fields = line.split_ascii_whitespace();
            let from = fields.next().and_then(|id| id.parse().ok()).and_then(TimelineId::new);
            let (Some(from), Some(at)) = (from, fields.next()) else {
                return Err(HistoryError::Line(number));
            };
            let at: Lsn = at.parse().map_err(|e| HistoryError::Position(number, e))?;
            if switches.last().is_some_and(|last| last.from >= from || last.at > at) {
                return Err(HistoryError::Order(number));
            }
            switches.push(Switch { from, at });
        }
        match switches.last() {
            Some(last) if last.from < tli => Ok(Self { tli, switches }),
            _ => Err(HistoryError::Parents(tli)),
        }
    }

    /// The timeline this is the history of.
    pub const fn tli(&self) -> TimelineId {
        self.tli
    }

    /// Each ancestor's end, oldest first.
    pub fn switches(&self) -> &[Switch] {
        &self.switches
    }

    /// Where `ancestor` ended on the way to this timeline; `None` if it is no ancestor.
    pub fn switch_from(&self, ancestor: TimelineId) -> Option<Switch> {
        self.switches.iter().copied().find(|s| s.from == ancestor)
    }

    /// The timeline that came after `ancestor` on the way to this one; this one after the last.
    pub fn after(&self, ancestor: TimelineId) -> TimelineId {
        self.switches.iter().map(|s| s.from).find(|from| *from > ancestor).unwrap_or(self.tli)
    }

    /// The timeline that the byte at `lsn` belongs to on this history.
    pub fn owner(&self, lsn: Lsn) -> TimelineId {
        self.switches.iter().find(|s| lsn < s.at).map_or(self.tli, |s| s.from)
    }

    /// The segment whose file holds the byte at `lsn` on this history. The file in which a
    /// timeline ends belongs to its successor, which begins with a copy of it (`tliOfPointInHistory`
    /// of the segment's last byte).
    pub fn segment_at(&self, lsn: Lsn, size: SegmentSize) -> Segment {
        let any = Segment::containing(Pos::new(self.tli, lsn), size);
        any.on(self.owner(Lsn::new(any.end().get().saturating_sub(1))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tli(id: u32) -> TimelineId {
        TimelineId::new(id).unwrap()
    }

    #[test]
    fn a_servers_file_is_read() {
        let text = b"1\t0/3000158\tno recovery target specified\n\n# note\n2\t0/50000A0\tbefore 2026-11-22 \xff\n";
        let history = History::parse(tli(5), text).unwrap();
        assert_eq!(history.switches().len(), 2);
        assert_eq!(history.owner(Lsn::new(0x300_0157)), tli(1));
        assert_eq!(history.owner(Lsn::new(0x300_0158)), tli(2));
        assert_eq!(history.owner(Lsn::new(0x500_00A0)), tli(5));
        let size = SegmentSize::DEFAULT;
        assert_eq!(history.segment_at(Lsn::new(0x2FF_FFFF), size).name(), "000000010000000000000002");
        assert_eq!(history.segment_at(Lsn::new(0x300_0000), size).name(), "000000020000000000000003");
        assert_eq!(history.segment_at(Lsn::new(0x500_0000), size).name(), "000000050000000000000005");
    }

    #[test]
    fn a_file_that_lies_is_refused() {
        for (text, error) in [
            ("", HistoryError::Parents(tli(2))),
            ("2\t0/1\tx\n", HistoryError::Parents(tli(2))),
            ("1\n", HistoryError::Line(1)),
            ("x\t0/1\n", HistoryError::Line(1)),
            ("0\t0/1\n", HistoryError::Line(1)),
            ("1\t0/5\n1\t0/6\n", HistoryError::Order(2)),
            ("1\tzero\n", HistoryError::Position(1, ParseLsnError("zero".into()))),
        ] {
            assert_eq!(History::parse(tli(2), text.as_bytes()), Err(error), "{text:?}");
        }
        assert!(matches!(History::parse(tli(2), &vec![b'\n'; MAX_BYTES + 1]), Err(HistoryError::TooLong(_))));
    }

    #[test]
    fn names() {
        assert_eq!(HistoryFile::parse("0000000A.history"), Some(HistoryFile(tli(10))));
        assert_eq!(HistoryFile(tli(10)).name(), "0000000A.history");
        for name in ["00000000.history", "0000000a.history", "A.history", "0000000A.history.tmp"] {
            assert_eq!(HistoryFile::parse(name), None, "{name}");
        }
    }
}
