//! Messages from the server as values.

use bytes::Bytes;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{BACKEND_KEY_DATA_TAG, COPY_DATA_TAG, DataRowBody, Message};

use super::error::readable;
use super::{Frame, ProtocolError, ServerError};

/// CopyBothResponse, which `postgres_protocol` does not know.
const COPY_BOTH_TAG: u8 = b'W';

/// PostgreSQL's own limit for a result (`MaxTupleAttributeNumber`).
const MAX_COLUMNS: usize = 1664;

/// A message after login, as far as replication uses them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Rows of so many columns follow.
    RowDescription(usize),
    /// One row.
    Row(Row),
    /// A command is done; the text names it (`SELECT`, `COPY 0`, `START_REPLICATION`).
    Complete(String),
    /// The command string was empty.
    Empty,
    /// The server begins to copy to us.
    CopyOut,
    /// The server waits for a copy from us.
    CopyIn,
    /// The server begins to stream, and listens while it does.
    CopyBoth,
    /// A piece of the copy.
    CopyData(Bytes),
    /// The copy is complete.
    CopyDone,
    /// The command failed.
    Error(ServerError),
    /// Something worth knowing; may come between any two other messages.
    Notice(ServerError),
    /// A setting has (now) this value.
    Parameter {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// The server waits for a command.
    Ready,
    /// A message that has no meaning for us: the key for cancelling, a notification.
    Ignored,
}

impl Reply {
    /// Decodes a message.
    ///
    /// # Errors
    /// When it is malformed, or of a kind that no server sends after login.
    pub fn decode(frame: Frame) -> Result<Self, ProtocolError> {
        let tag = frame.tag();
        match tag {
            COPY_DATA_TAG => return Ok(Self::CopyData(frame.into_body())),
            COPY_BOTH_TAG => return Self::copy_both(&frame.into_body()),
            // Of any length since protocol 3.2; we never cancel.
            BACKEND_KEY_DATA_TAG => return Ok(Self::Ignored),
            _ => {}
        }
        match frame.decode().ok_or(ProtocolError::Unexpected { tag, during: "answering a command" })? {
            Message::RowDescription(body) => Ok(Self::RowDescription(
                body.fields().count().map_err(|_| ProtocolError::Malformed("row description"))?,
            )),
            Message::DataRow(body) => Row::decode(&body).map(Self::Row),
            Message::CommandComplete(body) => Ok(Self::Complete(readable(
                body.tag().map_err(|_| ProtocolError::Malformed("command tag"))?.as_bytes(),
            ))),
            Message::EmptyQueryResponse => Ok(Self::Empty),
            Message::CopyOutResponse(_) => Ok(Self::CopyOut),
            Message::CopyInResponse(_) => Ok(Self::CopyIn),
            Message::CopyDone => Ok(Self::CopyDone),
            Message::ErrorResponse(body) => ServerError::collect(body.fields()).map(Self::Error),
            Message::NoticeResponse(body) => ServerError::collect(body.fields()).map(Self::Notice),
            Message::ParameterStatus(body) => match (body.name(), body.value()) {
                (Ok(name), Ok(value)) => Ok(Self::Parameter { name: name.to_owned(), value: value.to_owned() }),
                // A role's name, say, in the encoding of some database; none that we read.
                _ => Ok(Self::Ignored),
            },
            Message::ReadyForQuery(_) => Ok(Self::Ready),
            Message::NotificationResponse(_) => Ok(Self::Ignored),
            _ => Err(ProtocolError::Unexpected { tag, during: "answering a command" }),
        }
    }

    /// Format byte, number of columns, and a format for each; a walsender announces none.
    fn copy_both(body: &[u8]) -> Result<Self, ProtocolError> {
        match body {
            [_, high, low, formats @ ..] if formats.len() == 2 * usize::from(u16::from_be_bytes([*high, *low])) => {
                Ok(Self::CopyBoth)
            }
            _ => Err(ProtocolError::Malformed("copy response")),
        }
    }

    /// The message's type, for an error that says it came at the wrong time.
    pub const fn tag(&self) -> u8 {
        match self {
            Self::RowDescription(_) => b'T',
            Self::Row(_) => b'D',
            Self::Complete(_) => b'C',
            Self::Empty => b'I',
            Self::CopyOut => b'H',
            Self::CopyIn => b'G',
            Self::CopyBoth => b'W',
            Self::CopyData(_) => b'd',
            Self::CopyDone => b'c',
            Self::Error(_) => b'E',
            Self::Notice(_) => b'N',
            Self::Parameter { .. } => b'S',
            Self::Ready => b'Z',
            Self::Ignored => b'A',
        }
    }

    /// That this message has no place where it came.
    pub const fn unexpected(&self, during: &'static str) -> ProtocolError {
        ProtocolError::Unexpected { tag: self.tag(), during }
    }
}

/// One row of an answer, in text form; `None` is NULL.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Row(Vec<Option<Bytes>>);

impl Row {
    /// A row of these values.
    pub const fn new(values: Vec<Option<Bytes>>) -> Self {
        Self(values)
    }

    fn decode(body: &DataRowBody) -> Result<Self, ProtocolError> {
        let malformed = |_| ProtocolError::Malformed("row");
        let mut ranges = body.ranges();
        let mut values = Vec::new();
        while let Some(range) = ranges.next().map_err(malformed)? {
            if values.len() == MAX_COLUMNS {
                return Err(ProtocolError::TooMany { what: "columns", limit: MAX_COLUMNS });
            }
            values.push(range.map(|range| body.buffer_bytes().slice(range)));
        }
        Ok(Self(values))
    }

    /// The values.
    pub fn values(&self) -> &[Option<Bytes>] {
        &self.0
    }

    /// Bytes of all values.
    pub fn size(&self) -> usize {
        self.0.iter().flatten().map(Bytes::len).sum()
    }

    /// The values of a row that must have exactly `N`.
    pub(super) fn exactly<const N: usize>(&self, command: &'static str) -> Result<&[Option<Bytes>; N], ProtocolError> {
        self.0.as_slice().try_into().map_err(|_| ProtocolError::Shape(command))
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tokio_util::codec::Decoder;

    use super::super::{Condition, Framer};
    use super::*;

    fn decode(tag: u8, body: &[u8]) -> Result<Reply, ProtocolError> {
        let mut wire = BytesMut::from(&[tag][..]);
        wire.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        wire.extend_from_slice(body);
        Reply::decode(Framer::new().decode(&mut wire).unwrap().unwrap())
    }

    #[test]
    fn the_answer_to_start_replication_is_understood() {
        assert_eq!(decode(b'W', &[0, 0, 0]), Ok(Reply::CopyBoth));
        assert_eq!(decode(b'W', &[0, 0, 1, 0, 0]), Ok(Reply::CopyBoth));
        for body in [&[][..], &[0], &[0, 0, 1], &[0, 0, 0, 0], &[0, 255, 255]] {
            assert_eq!(decode(b'W', body), Err(ProtocolError::Malformed("copy response")), "{body:?}");
        }
    }

    #[test]
    fn a_row_has_values_and_nulls() {
        let row = [&[0, 2, 0, 0, 0, 3][..], b"0/1", &[255, 255, 255, 255]].concat();
        assert_eq!(decode(b'D', &row), Ok(Reply::Row(Row(vec![Some(Bytes::from_static(b"0/1")), None]))));
        for body in [&[][..], &[0, 1], &[0, 1, 0, 0, 0, 9, 1], &[0, 0, 1]] {
            assert!(matches!(decode(b'D', body), Err(ProtocolError::Malformed(_) | ProtocolError::Unexpected { .. })));
        }
    }

    #[test]
    fn an_error_is_kept_readable_and_short() {
        let long = "x".repeat(20_000);
        let body = format!("SFEHLER\0VERROR\0C58P01\0Mweg\x1b[31m {long}\0Dgr\0HLook\0X\0\0");
        let mut body = body.into_bytes();
        let at = body.iter().position(|b| *b == b'D').unwrap() + 2;
        body.insert(at, 0xE4);
        let Reply::Error(error) = decode(b'E', &body).unwrap() else { panic!("not an error") };
        assert_eq!((error.severity.as_str(), error.condition()), ("ERROR", Condition::WalRemoved));
        assert!(error.message.starts_with("weg [31m x") && error.message.len() <= 8192);
        assert_eq!(error.detail.as_deref(), Some("g\u{FFFD}r"));
        assert_eq!(error.hint.as_deref(), Some("Look"));
        assert!(!error.is_fatal() && error.is_wal_removed());
    }

    #[test]
    fn an_error_that_is_cut_off_is_malformed() {
        for body in [&b""[..], b"S", b"SERROR", b"SERROR\0", b"\0more"] {
            assert_eq!(decode(b'E', body), Err(ProtocolError::Malformed("error message")), "{body:?}");
        }
    }

    #[test]
    fn what_no_server_sends_is_refused() {
        for (tag, body) in [(b'?', &b""[..]), (b'R', &[0, 0, 0, 0]), (b'G', &[0, 0, 0]), (b'v', &[0; 8]), (b'Z', b"")] {
            assert_eq!(decode(tag, body), Err(ProtocolError::Unexpected { tag, during: "answering a command" }));
        }
    }

    #[test]
    fn a_key_of_any_length_is_passed_over() {
        assert_eq!(decode(b'K', &[0; 8]), Ok(Reply::Ignored));
        assert_eq!(decode(b'K', &[0; 36]), Ok(Reply::Ignored));
    }
}
