//! What the bytes of a server's stream are: types, lengths and bodies of messages, and the WAL in them.

use super::proxy::Spot;

/// Type and length.
const HEADER: usize = 5;
/// What comes before the WAL in a body: `w`, start, the server's end, the time.
const HEAD: usize = 25;

/// Follows a server's stream through pieces of any length.
#[derive(Debug, Default)]
pub(super) struct Frames {
    header: Vec<u8>,
    /// The first bytes of the body.
    head: Vec<u8>,
    /// Bytes of the body that have passed, and those that are to come.
    passed: usize,
    rest: usize,
}

/// Bytes of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Part {
    spot: Spot,
    pub(super) len: usize,
    /// The position of its first byte, if it is WAL.
    lsn: Option<u64>,
}

impl Part {
    /// The first byte from `skipped` on that is of this kind.
    pub(super) fn find(&self, spot: Spot, skipped: usize) -> Option<usize> {
        let at = match spot {
            Spot::Any => skipped,
            Spot::At(wanted) => usize::try_from(wanted.checked_sub(self.lsn?)?).ok()?.max(skipped),
            spot if spot == self.spot => skipped,
            _ => return None,
        };
        (at < self.len).then_some(at)
    }
}

impl Frames {
    /// The first bytes of what comes next, as far as they are of one kind. It must not be empty.
    pub(super) fn next(&mut self, bytes: &[u8]) -> Part {
        match self.header.len() {
            0 => self.take_header(Spot::Tag, &bytes[..1]),
            have @ 1..HEADER => self.take_header(Spot::Length, &bytes[..bytes.len().min(HEADER - have)]),
            _ => self.take_body(bytes),
        }
    }

    fn take_header(&mut self, spot: Spot, bytes: &[u8]) -> Part {
        self.header.extend(bytes);
        if let [_, length @ ..] = &self.header[..]
            && let Ok(length) = <[u8; 4]>::try_from(length)
        {
            self.rest = (u32::from_be_bytes(length) as usize).saturating_sub(4);
            self.end_if_whole();
        }
        Part { spot, len: bytes.len(), lsn: None }
    }

    fn take_body(&mut self, bytes: &[u8]) -> Part {
        let bytes = &bytes[..bytes.len().min(self.rest)];
        let part = if self.passed < HEAD {
            let bytes = &bytes[..bytes.len().min(HEAD - self.passed)];
            self.head.extend(bytes);
            Part { spot: Spot::Head, len: bytes.len(), lsn: None }
        } else {
            let start = self.head.get(1..9).and_then(|start| start.try_into().ok()).map(u64::from_be_bytes);
            let start = start.filter(|_| self.header[0] == b'd' && self.head[0] == b'w');
            let spot = if start.is_some() { Spot::Wal } else { Spot::Any };
            Part { spot, len: bytes.len(), lsn: start.map(|start| start + (self.passed - HEAD) as u64) }
        };
        self.passed += part.len;
        self.rest -= part.len;
        self.end_if_whole();
        part
    }

    fn end_if_whole(&mut self) {
        if self.rest == 0 {
            *self = Self::default();
        }
    }
}
