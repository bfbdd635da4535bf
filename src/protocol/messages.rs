//! Messages from the server as values.

use bytes::Bytes;

use super::error::readable;
use super::{Frame, ProtocolError, ServerError};
use crate::cursor::Cursor;

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
    /// The server begins to take a copy from us.
    CopyIn,
    /// The server begins to copy to us.
    CopyOut,
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
        let (tag, body) = (frame.tag(), frame.into_body());
        let whole = |read: Option<Self>, what| read.ok_or(ProtocolError::Malformed(what));
        match tag {
            b'd' => Ok(Self::CopyData(body)),
            b'D' => Row::decode(&body).map(Self::Row),
            b'T' => whole(columns(&body).map(Self::RowDescription), "row description"),
            b'C' => whole(text(&body).map(|text| Self::Complete(readable(text))), "command tag"),
            b'I' => whole(empty(&body).map(|()| Self::Empty), "answer to an empty command"),
            b'G' => whole(formats(&body).map(|()| Self::CopyIn), "copy response"),
            b'H' => whole(formats(&body).map(|()| Self::CopyOut), "copy response"),
            b'W' => whole(formats(&body).map(|()| Self::CopyBoth), "copy response"),
            b'c' => whole(empty(&body).map(|()| Self::CopyDone), "end of a copy"),
            b'E' => ServerError::decode(&body).map(Self::Error),
            b'N' => ServerError::decode(&body).map(Self::Notice),
            b'S' => whole(parameter(&body), "setting"),
            b'Z' => whole(state(&body).map(|()| Self::Ready), "sign that it waits for a command"),
            // The key is of any length since protocol 3.2; we never cancel, and asked for no notification.
            b'K' | b'A' => Ok(Self::Ignored),
            _ => Err(ProtocolError::Unexpected { tag, during: "answering a command" }),
        }
    }

    /// The message's type, for an error that says it came at the wrong time.
    pub const fn tag(&self) -> u8 {
        match self {
            Self::RowDescription(_) => b'T',
            Self::Row(_) => b'D',
            Self::Complete(_) => b'C',
            Self::Empty => b'I',
            Self::CopyIn => b'G',
            Self::CopyOut => b'H',
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

    fn decode(body: &Bytes) -> Result<Self, ProtocolError> {
        let mut cursor = Cursor::new(body);
        let malformed = ProtocolError::Malformed("row");
        let Some(count) = cursor.u16_be() else { return Err(malformed) };
        let mut values = Vec::new();
        for _ in 0..count {
            let Some(value) = value(&mut cursor, body) else { return Err(malformed) };
            if values.len() == MAX_COLUMNS {
                return Err(ProtocolError::TooMany { what: "columns", limit: MAX_COLUMNS });
            }
            values.push(value);
        }
        cursor.end().map(|()| Self(values)).ok_or(malformed)
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

/// A value of a row, in the memory it came in; `Some(None)` is NULL.
fn value(row: &mut Cursor<'_>, body: &Bytes) -> Option<Option<Bytes>> {
    const NULL: u32 = u32::MAX;
    match row.u32_be()? {
        NULL => Some(None),
        len => row.take(usize::try_from(len).ok()?).map(|value| Some(body.slice_ref(value))),
    }
}

/// How many columns there are. Of each come its name, and then the table and the number in it, the type with its
/// size and modifier, and the format.
fn columns(body: &[u8]) -> Option<usize> {
    const BEHIND_NAME: usize = 4 + 2 + 4 + 2 + 4 + 2;
    let mut cursor = Cursor::new(body);
    let count = cursor.u16_be()?;
    for _ in 0..count {
        cursor.text()?;
        cursor.take(BEHIND_NAME)?;
    }
    cursor.end().map(|()| count.into())
}

/// Format byte, number of columns, and a format for each; a walsender announces none where it streams.
fn formats(body: &[u8]) -> Option<()> {
    let mut cursor = Cursor::new(body);
    cursor.u8()?;
    for _ in 0..cursor.u16_be()? {
        cursor.u16_be()?;
    }
    cursor.end()
}

fn text(body: &[u8]) -> Option<&[u8]> {
    let mut cursor = Cursor::new(body);
    let text = cursor.text()?;
    cursor.end().map(|()| text)
}

fn parameter(body: &[u8]) -> Option<Reply> {
    let mut cursor = Cursor::new(body);
    let (name, value) = (cursor.text()?, cursor.text()?);
    cursor.end()?;
    Some(match (std::str::from_utf8(name), std::str::from_utf8(value)) {
        (Ok(name), Ok(value)) => Reply::Parameter { name: name.to_owned(), value: value.to_owned() },
        // A role's name, say, in the encoding of some database; none that we read.
        _ => Reply::Ignored,
    })
}

/// Whether a transaction is open, which it never is here.
fn state(body: &[u8]) -> Option<()> {
    let mut cursor = Cursor::new(body);
    cursor.u8()?;
    cursor.end()
}

fn empty(body: &[u8]) -> Option<()> {
    Cursor::new(body).end()
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
        assert_eq!((decode(b'G', &[0, 0, 0]), decode(b'H', &[0, 0, 0])), (Ok(Reply::CopyIn), Ok(Reply::CopyOut)));
        for body in [&[][..], &[0], &[0, 0, 1], &[0, 0, 0, 0], &[0, 255, 255]] {
            assert_eq!(decode(b'W', body), Err(ProtocolError::Malformed("copy response")), "{body:?}");
        }
    }

    #[test]
    fn a_row_has_values_and_nulls() {
        let row = [&[0, 2, 0, 0, 0, 3][..], b"0/1", &[255, 255, 255, 255]].concat();
        assert_eq!(decode(b'D', &row), Ok(Reply::Row(Row(vec![Some(Bytes::from_static(b"0/1")), None]))));
        for body in [&[][..], &[0, 1], &[0, 1, 0, 0, 0, 9, 1], &[0, 0, 1], &[0, 1, 255, 255, 255, 254]] {
            assert_eq!(decode(b'D', body), Err(ProtocolError::Malformed("row")), "{body:?}");
        }
        let wide = [&1665_u16.to_be_bytes()[..], &[255; 4 * 1665]].concat();
        assert_eq!(decode(b'D', &wide), Err(ProtocolError::TooMany { what: "columns", limit: MAX_COLUMNS }));
    }

    #[test]
    fn messages_that_are_cut_off_or_go_on_are_malformed() {
        let column = [&b"name\0"[..], &[7; 18]].concat();
        assert_eq!(decode(b'T', &[&[0, 1][..], &column].concat()), Ok(Reply::RowDescription(1)));
        assert_eq!(decode(b'C', b"SELECT 1\0"), Ok(Reply::Complete("SELECT 1".into())));
        assert_eq!(decode(b'S', b"a\0b\0"), Ok(Reply::Parameter { name: "a".into(), value: "b".into() }));
        assert_eq!(decode(b'S', b"a\0\xFF\0"), Ok(Reply::Ignored));
        for (tag, what, bodies) in [
            (b'T', "row description", [&[0, 2][..], &[0, 0, 9], &column]),
            (b'C', "command tag", [b"", b"SELECT", b"A\0B"]),
            (b'S', "setting", [b"a", b"a\0b", b"a\0b\0c"]),
            (b'Z', "sign that it waits for a command", [b"", b"II", b"III"]),
            (b'c', "end of a copy", [b"x", b"xx", b"xxx"]),
            (b'I', "answer to an empty command", [b"x", b"xx", b"xxx"]),
        ] {
            for body in bodies {
                assert_eq!(decode(tag, body), Err(ProtocolError::Malformed(what)), "{tag} {body:?}");
            }
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
        for (tag, body) in [(b'?', &b""[..]), (b'R', &[0, 0, 0, 0]), (b'v', &[0; 8])] {
            assert_eq!(decode(tag, body), Err(ProtocolError::Unexpected { tag, during: "answering a command" }));
        }
    }

    #[test]
    fn a_key_of_any_length_is_passed_over() {
        assert_eq!(decode(b'K', &[0; 8]), Ok(Reply::Ignored));
        assert_eq!(decode(b'K', &[0; 36]), Ok(Reply::Ignored));
    }
}
