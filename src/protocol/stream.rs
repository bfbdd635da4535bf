//! What flows inside a WAL stream, both ways.

use bytes::{BufMut, Bytes, BytesMut};

use super::ProtocolError;
use crate::cursor::Cursor;
use crate::wal::Lsn;

/// A message from the server while it streams. Times are microseconds since 2000-01-01 00:00 UTC
/// on the server's clock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StreamMessage {
    /// A piece of the log: at most 128 KiB; it may cross a segment's end, and need not end with a
    /// whole record.
    Wal {
        /// The address of the first byte.
        start: Lsn,
        /// How far the server could send at that moment; exclusive.
        server_end: Lsn,
        /// When it was sent.
        sent_at: i64,
        /// The bytes, in the memory they were read into.
        data: Bytes,
    },
    /// A sign of life.
    Keepalive {
        /// How far the server has sent; exclusive.
        server_end: Lsn,
        /// When it was sent.
        sent_at: i64,
        /// Whether the server wants a status at once: it will give up on us soon, or is stopping.
        reply_requested: bool,
    },
}

impl StreamMessage {
    /// Decodes the content of a CopyData message.
    ///
    /// # Errors
    /// When it is neither kind, is cut short, or its data would end beyond the log's last address.
    pub fn decode(body: &Bytes) -> Result<Self, ProtocolError> {
        let mut cursor = Cursor::new(body);
        match cursor.u8().ok_or(ProtocolError::Malformed("stream message"))? {
            b'w' => Self::wal(body, cursor).ok_or(ProtocolError::Malformed("WAL message")),
            b'k' => Self::keepalive(cursor).ok_or(ProtocolError::Malformed("keepalive")),
            tag => Err(ProtocolError::Unexpected { tag, during: "streaming WAL" }),
        }
    }

    fn wal(body: &Bytes, mut cursor: Cursor<'_>) -> Option<Self> {
        let (start, server_end) = (Lsn::new(cursor.u64_be()?), Lsn::new(cursor.u64_be()?));
        let sent_at = cursor.i64_be()?;
        let data = body.slice_ref(cursor.rest());
        start.checked_add(u64::try_from(data.len()).ok()?)?;
        Some(Self::Wal { start, server_end, sent_at, data })
    }

    fn keepalive(mut cursor: Cursor<'_>) -> Option<Self> {
        let (server_end, sent_at) = (Lsn::new(cursor.u64_be()?), cursor.i64_be()?);
        let reply_requested = cursor.u8()? != 0;
        cursor.end()?;
        Some(Self::Keepalive { server_end, sent_at, reply_requested })
    }
}

/// What we tell the server about our progress. Positions are exclusive ends; 0 says nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StandbyStatus {
    /// Up to here it was handed to our operating system.
    pub write: Lsn,
    /// Up to here it would survive a power cut. A slot is moved here (backwards too), and a
    /// synchronous commit waits for it.
    pub flush: Lsn,
    /// Up to here it was replayed: 0 for an archive.
    pub apply: Lsn,
    /// Our clock, in microseconds since 2000-01-01 00:00 UTC.
    pub sent_at: i64,
    /// Whether the server shall answer at once.
    pub reply_requested: bool,
}

impl StandbyStatus {
    /// Appends the whole message, with its CopyData frame (39 bytes).
    pub fn encode(&self, out: &mut BytesMut) {
        out.reserve(39);
        out.put_u8(b'd');
        out.put_u32(4 + 34);
        out.put_u8(b'r');
        out.put_u64(self.write.get());
        out.put_u64(self.flush.get());
        out.put_u64(self.apply.get());
        out.put_i64(self.sent_at);
        out.put_u8(u8::from(self.reply_requested));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wal(start: u64, data: &[u8]) -> Bytes {
        [&b"w"[..], &start.to_be_bytes(), &0x500_u64.to_be_bytes(), &7_i64.to_be_bytes(), data].concat().into()
    }

    #[test]
    fn wal_and_keepalives_are_decoded() {
        let expected = StreamMessage::Wal {
            start: Lsn::new(0x400),
            server_end: Lsn::new(0x500),
            sent_at: 7,
            data: Bytes::from_static(b"abc"),
        };
        assert_eq!(StreamMessage::decode(&wal(0x400, b"abc")), Ok(expected));
        let body = [&b"k"[..], &0x500_u64.to_be_bytes(), &(-1_i64).to_be_bytes(), &[1]].concat();
        let expected = StreamMessage::Keepalive { server_end: Lsn::new(0x500), sent_at: -1, reply_requested: true };
        assert_eq!(StreamMessage::decode(&body.into()), Ok(expected));
    }

    #[test]
    fn what_is_short_long_or_unknown_is_refused() {
        for (body, error) in [
            (Bytes::new(), ProtocolError::Malformed("stream message")),
            (Bytes::from_static(b"x123"), ProtocolError::Unexpected { tag: b'x', during: "streaming WAL" }),
            (wal(1, b"").slice(..24), ProtocolError::Malformed("WAL message")),
            (wal(u64::MAX - 1, b"abc"), ProtocolError::Malformed("WAL message")),
            (Bytes::from_static(&[b'k'; 17]), ProtocolError::Malformed("keepalive")),
            (Bytes::from_static(&[b'k'; 19]), ProtocolError::Malformed("keepalive")),
        ] {
            assert_eq!(StreamMessage::decode(&body), Err(error));
        }
    }

    #[test]
    fn a_status_is_39_bytes() {
        let (write, flush, apply) = (Lsn::new(0x0102_0304_0506_0708), Lsn::new(2), Lsn::ZERO);
        let mut out = BytesMut::new();
        StandbyStatus { write, flush, apply, sent_at: -2, reply_requested: true }.encode(&mut out);
        let expected = [
            &[b'd', 0, 0, 0, 38, b'r', 1, 2, 3, 4, 5, 6, 7, 8][..],
            &2_u64.to_be_bytes(),
            &[0; 8],
            &(-2_i64).to_be_bytes(),
            &[1],
        ]
        .concat();
        assert_eq!((out.len(), &out[..]), (39, &expected[..]));
    }
}
