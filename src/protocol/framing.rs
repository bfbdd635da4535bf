//! Where one message ends and the next begins, with every length bounded before memory is taken.

use std::collections::VecDeque;
use std::io;

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;
use tokio_util::codec::Decoder;

use crate::cursor::Cursor;

/// Tag and length word.
const HEADER: usize = 5;

/// What one read from the socket may bring in. Wide, so that a drain is a few calls a megabyte.
const WIDE_READ: usize = 512 << 10;

/// When less than this is free behind what is buffered, new memory is taken for the next read.
const NARROW_READ: usize = 128 << 10;

/// Buffers that are kept for when all that was cut from them is gone. Fresh memory costs more than what is read
/// into it: the kernel must clear each page. A writer's queue holds 4 MiB at most, which eight of them are.
const SPARES: usize = 12;

/// What the two sides are doing, which decides how long a message may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Before the server has accepted us: anyone may be at the other end.
    Login,
    /// A command and its answer.
    Command,
    /// WAL is streaming. Servers send at most 128 KiB of it in a message.
    Streaming,
    /// A base backup is being copied. Servers send 32 KiB of it in a message.
    Copying,
}

impl Phase {
    /// The greatest number of bytes that the body of a message with this tag may have.
    pub const fn limit(self, tag: u8) -> u32 {
        match (self, tag) {
            (Self::Login, _) => 64 << 10,
            // A row, an error, a notice.
            (_, b'D' | b'E' | b'N') => 16 << 20,
            _ => 1 << 20,
        }
    }
}

/// The server broke the framing of messages.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FramingError {
    /// More than the phase allows: damage, or not a PostgreSQL server.
    #[error("the server sent a message of {len} bytes where at most {limit} are expected (tag {:?})", char::from(*tag))]
    TooLong {
        /// The message's type.
        tag: u8,
        /// Bytes of the body, as announced.
        len: u32,
        /// Bytes that are allowed.
        limit: u32,
    },
    /// A length that does not even cover itself.
    #[error("the server sent a message with an impossible length (tag {:?})", char::from(*tag))]
    Length {
        /// The message's type.
        tag: u8,
    },
    /// The stream ended inside a message.
    #[error("the connection ended in the middle of a message")]
    CutOff,
    /// A read failed; only code that drives [`Framer`] through `tokio_util` meets it.
    #[error("cannot read from the server: {0}")]
    Read(io::ErrorKind),
}

impl From<io::Error> for FramingError {
    fn from(error: io::Error) -> Self {
        Self::Read(error.kind())
    }
}

/// One whole message, still as it came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    tag: u8,
    whole: BytesMut,
}

impl Frame {
    /// The message's type.
    pub const fn tag(&self) -> u8 {
        self.tag
    }

    /// What follows tag and length, without copying.
    pub fn into_body(mut self) -> Bytes {
        self.whole.advance(HEADER);
        self.whole.freeze()
    }
}

/// Cuts what was read into [`Frame`]s.
#[derive(Debug)]
pub struct Framer {
    phase: Phase,
    /// Buffers that are full; parts of them are still in use.
    spares: VecDeque<BytesMut>,
}

impl Framer {
    /// A framer for a connection on which nobody has been accepted yet.
    pub const fn new() -> Self {
        Self { phase: Phase::Login, spares: VecDeque::new() }
    }

    /// Applies the limits of `phase` to every message not yet cut.
    pub const fn enter(&mut self, phase: Phase) {
        self.phase = phase;
    }

    /// Bytes of the whole next message, when its header is there and acceptable.
    fn next_len(&self, buffered: &[u8]) -> Result<Option<usize>, FramingError> {
        let mut cursor = Cursor::new(buffered);
        let (Some(tag), Some(word)) = (cursor.u8(), cursor.u32_be()) else { return Ok(None) };
        // The length word counts itself, and is signed.
        let len = word.checked_sub(4).filter(|_| word <= i32::MAX.unsigned_abs());
        let len = len.ok_or(FramingError::Length { tag })?;
        let limit = self.phase.limit(tag);
        if len > limit {
            return Err(FramingError::TooLong { tag, len, limit });
        }
        let whole = usize::try_from(len).ok().and_then(|len| len.checked_add(HEADER));
        whole.ok_or(FramingError::Length { tag }).map(Some)
    }
}

impl Default for Framer {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder for Framer {
    type Item = Frame;
    type Error = FramingError;

    /// The next message if all of it is there; otherwise room is made in `src` for a wide read.
    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Frame>, FramingError> {
        let wanted = self.next_len(src)?;
        if let Some(whole) = wanted.filter(|whole| *whole <= src.len()) {
            let tag = src.first().copied().unwrap_or_default();
            return Ok(Some(Frame { tag, whole: src.split_to(whole) }));
        }
        let missing = wanted.unwrap_or(HEADER).saturating_sub(src.len());
        let free = src.capacity().saturating_sub(src.len());
        if free < missing.max(self.least_read()) {
            self.make_room(src, missing.max(self.wide_read()));
        }
        Ok(None)
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<Frame>, FramingError> {
        match self.decode(src)? {
            None if !src.is_empty() => Err(FramingError::CutOff),
            frame => Ok(frame),
        }
    }
}

impl Framer {
    /// Makes room for `more` bytes behind those in `src`, in memory that has been used before if there is any.
    fn make_room(&mut self, src: &mut BytesMut, more: usize) {
        if !matches!(self.phase, Phase::Streaming | Phase::Copying) {
            return src.reserve(more);
        }
        if src.try_reclaim(more) {
            return;
        }
        let needed = src.len().saturating_add(more);
        // The oldest is free first.
        let mut next = BytesMut::new();
        if let Some(mut oldest) = self.spares.pop_front() {
            if oldest.try_reclaim(needed) {
                next = oldest;
            } else if self.spares.len().saturating_add(1) < SPARES {
                self.spares.push_front(oldest);
            }
        }
        next.reserve(needed);
        next.extend_from_slice(src);
        let mut full = std::mem::replace(src, next);
        // Those of longer messages than servers send are not worth keeping.
        if needed <= 2 * WIDE_READ {
            full.clear();
            self.spares.push_back(full);
        }
    }

    /// How much room a read is given. A copy stream is worth much, a command's answer little.
    const fn wide_read(&self) -> usize {
        match self.phase {
            Phase::Login | Phase::Command => 16 << 10,
            Phase::Streaming | Phase::Copying => WIDE_READ,
        }
    }

    /// Below this much room a read is not worth a call.
    const fn least_read(&self) -> usize {
        match self.phase {
            Phase::Login | Phase::Command => 4 << 10,
            Phase::Streaming | Phase::Copying => NARROW_READ,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(body.len() + 4).unwrap();
        [&[tag][..], &len.to_be_bytes(), body].concat()
    }

    #[test]
    fn messages_are_cut_wherever_the_reads_end() {
        let wire = [message(b'd', b"one"), message(b'c', b""), message(b'd', &[7; 3000])].concat();
        for step in [1, 2, 5, 7, 4096] {
            let (mut framer, mut buffer, mut seen) = (Framer::new(), BytesMut::new(), Vec::new());
            for piece in wire.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = framer.decode(&mut buffer).unwrap() {
                    seen.push((frame.tag(), frame.into_body()));
                }
            }
            let expected = [(b'd', Bytes::from_static(b"one")), (b'c', Bytes::new()), (b'd', vec![7; 3000].into())];
            assert_eq!(seen, expected, "reads of {step} bytes");
            assert_eq!(framer.decode_eof(&mut buffer), Ok(None));
        }
    }

    #[test]
    fn a_length_is_judged_before_memory_is_taken() {
        for (phase, tag, limit) in [
            (Phase::Login, b'R', 64_u32 << 10),
            (Phase::Login, b'D', 64 << 10),
            (Phase::Command, b'D', 16 << 20),
            (Phase::Command, b'd', 1 << 20),
            (Phase::Streaming, b'd', 1 << 20),
            (Phase::Copying, b'd', 1 << 20),
            (Phase::Streaming, b'N', 16 << 20),
            (Phase::Copying, b'?', 1 << 20),
        ] {
            let mut framer = Framer::new();
            framer.enter(phase);
            for len in [limit + 1, 0x7FFF_FFF0] {
                let mut wire = BytesMut::from(&[tag][..]);
                wire.extend_from_slice(&(len + 4).to_be_bytes());
                assert_eq!(framer.decode(&mut wire), Err(FramingError::TooLong { tag, len, limit }));
                assert!(wire.capacity() < 1024, "{phase:?} took {} bytes", wire.capacity());
            }
            let mut wire = BytesMut::from(&[tag][..]);
            wire.extend_from_slice(&(limit + 4).to_be_bytes());
            assert_eq!(framer.decode(&mut wire), Ok(None), "{phase:?} allows {limit}");
        }
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for len in [0_u32, 3, 0x8000_0000, u32::MAX] {
            let mut wire = BytesMut::from(&b"Z"[..]);
            wire.extend_from_slice(&len.to_be_bytes());
            assert_eq!(Framer::new().decode(&mut wire), Err(FramingError::Length { tag: b'Z' }), "{len}");
        }
    }

    #[test]
    fn an_end_inside_a_message_is_an_error() {
        let mut wire = BytesMut::from(&message(b'Z', b"I")[..5]);
        assert_eq!(Framer::new().decode_eof(&mut wire), Err(FramingError::CutOff));
    }

    /// The memory is used again when its messages are gone, and not before.
    #[test]
    fn buffers_are_used_again() {
        let mut framer = Framer::new();
        framer.enter(Phase::Streaming);
        let mut buffer = BytesMut::new();
        let (mut in_use, mut seen) = (VecDeque::new(), std::collections::BTreeSet::new());
        for turn in 0_u32..400 {
            // Three and a half in a buffer, so that a part of each fourth moves to the next.
            let body = vec![turn as u8; 150_000];
            for piece in message(b'd', &body).chunks(70_000) {
                buffer.extend_from_slice(piece);
                let room = buffer.capacity();
                while let Some(frame) = framer.decode(&mut buffer).unwrap() {
                    in_use.push_back((turn, frame.into_body()));
                }
                assert!(room <= 2 * WIDE_READ);
                seen.insert(buffer.as_ptr().addr() / WIDE_READ);
            }
            while in_use.len() > 10 {
                let (turn, body) = in_use.pop_front().unwrap();
                assert!(body.iter().all(|byte| *byte == turn as u8));
            }
            assert!(framer.spares.len() <= SPARES);
        }
        assert!(seen.len() < 4 * SPARES, "{} places", seen.len());
    }

    #[test]
    fn a_copied_body_is_the_memory_it_was_read_into() {
        let mut wire = BytesMut::from(&message(b'd', &[1; 1000])[..]);
        let address = wire.as_ptr().addr();
        let body = Framer::new().decode(&mut wire).unwrap().unwrap().into_body();
        assert_eq!(body.as_ptr().addr(), address + HEADER);
    }

    #[test]
    fn the_error_names_what_was_sent() {
        let error = FramingError::TooLong { tag: b'd', len: 9, limit: 8 };
        assert_eq!(error.to_string(), "the server sent a message of 9 bytes where at most 8 are expected (tag 'd')");
    }
}
