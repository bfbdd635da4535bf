//! What the server reports, and what it gets wrong.

use std::fmt;

use thiserror::Error;

use super::FramingError;
use crate::cursor::Cursor;

/// A field of an error is cut after this many bytes: enough for any that a server means.
const MAX_FIELD: usize = 8 << 10;

/// An error or a notice as the server worded it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `PANIC`, or of a notice `WARNING`, `NOTICE`, `INFO` and such; never translated.
    pub severity: String,
    /// Five characters that name the condition, whatever the language of the message.
    pub sqlstate: String,
    /// The message, in the server's language.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What the server suggests.
    pub hint: Option<String>,
}

/// The server's reasons that a caller acts on, by `SQLSTATE` (`errcodes.txt`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// 58P01: a file is gone. While streaming, the requested WAL was removed.
    WalRemoved,
    /// 57P01: an administrator ended the connection, or the server is being stopped.
    AdminShutdown,
    /// 57P02: another server process crashed.
    CrashShutdown,
    /// 57P03: the server is starting, stopping or recovering.
    CannotConnectNow,
    /// 42704: no such slot.
    Missing,
    /// 42710: the slot exists.
    Exists,
    /// 55006: the slot is in use.
    InUse,
    /// 55000: not in a state for that, such as a slot without reserved WAL.
    NotReady,
    /// 0A000: the server does not know the command, or not on this kind of connection.
    NotSupported,
    /// 42601: the server could not parse the command.
    Syntax,
    /// 42501: a right is missing.
    NotAllowed,
    /// 28000: not admitted, usually by `pg_hba.conf`.
    NotAdmitted,
    /// 28P01: wrong password.
    WrongPassword,
    /// 53300: no connection or WAL sender is free.
    TooManyConnections,
    /// 53400: no slot is free.
    TooManySlots,
    /// 3D000: no such database.
    MissingDatabase,
    /// XX001: data pages did not match their checksums.
    DataCorrupted,
    /// Anything else.
    Other,
}

impl ServerError {
    /// Reads the body of an error or notice. Text that is not UTF-8 is made readable, control
    /// characters are taken out (a terminal may show this), and each field is bounded.
    ///
    /// # Errors
    /// When the message cannot be decoded.
    pub fn decode(body: &[u8]) -> Result<Self, ProtocolError> {
        Self::fields(Cursor::new(body)).ok_or(ProtocolError::Malformed("error message"))
    }

    /// Each field is a byte that says which, and a text; a NUL ends them.
    fn fields(mut body: Cursor<'_>) -> Option<Self> {
        let mut error =
            Self { severity: String::new(), sqlstate: String::new(), message: String::new(), detail: None, hint: None };
        loop {
            let kind = body.u8()?;
            if kind == 0 {
                return body.end().map(|()| error);
            }
            let value = readable(body.text()?);
            match kind {
                // V is S untranslated; every supported server sends both, S first.
                b'S' if error.severity.is_empty() => error.severity = value,
                b'V' => error.severity = value,
                b'C' => error.sqlstate = value,
                b'M' => error.message = value,
                b'D' => error.detail = Some(value),
                b'H' => error.hint = Some(value),
                _ => {}
            }
        }
    }

    /// The reason, where it is one that a caller acts on.
    pub fn condition(&self) -> Condition {
        match self.sqlstate.as_str() {
            "58P01" => Condition::WalRemoved,
            "57P01" => Condition::AdminShutdown,
            "57P02" => Condition::CrashShutdown,
            "57P03" => Condition::CannotConnectNow,
            "42704" => Condition::Missing,
            "42710" => Condition::Exists,
            "55006" => Condition::InUse,
            "55000" => Condition::NotReady,
            "0A000" => Condition::NotSupported,
            "42601" => Condition::Syntax,
            "42501" => Condition::NotAllowed,
            "28000" => Condition::NotAdmitted,
            "28P01" => Condition::WrongPassword,
            "53300" => Condition::TooManyConnections,
            "53400" => Condition::TooManySlots,
            "3D000" => Condition::MissingDatabase,
            "XX001" => Condition::DataCorrupted,
            _ => Condition::Other,
        }
    }

    /// Whether the connection ends with it.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }

    /// Whether the WAL that was asked for is no longer on the server (58P01).
    pub fn is_wal_removed(&self) -> bool {
        self.condition() == Condition::WalRemoved
    }

    /// Whether the server, rather than the request, is the reason: it stops, crashed, or is not
    /// yet up. Worth another try later.
    pub fn is_server_going_or_coming(&self) -> bool {
        // A walsender that is told to stop refuses further commands with a code that has other uses too.
        let stopping = self.condition() == Condition::NotReady && self.message.contains("stopping mode");
        let going = [Condition::AdminShutdown, Condition::CrashShutdown, Condition::CannotConnectNow];
        stopping || going.contains(&self.condition())
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

/// Text from the server as it may be shown: UTF-8, one line, at most [`MAX_FIELD`] bytes or so.
pub(super) fn readable(bytes: &[u8]) -> String {
    let cut = bytes.get(..MAX_FIELD).unwrap_or(bytes);
    String::from_utf8_lossy(cut).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The server sent what the protocol does not allow at that point. It is damaged, or not a
/// PostgreSQL server; nothing more can be read from the connection.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// The framing is broken.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// A message of a kind that has no place there.
    #[error("the server sent an unexpected message (tag {:?}) while {during}", char::from(*tag))]
    Unexpected {
        /// The message's type.
        tag: u8,
        /// What was going on.
        during: &'static str,
    },
    /// A message that cannot be taken apart.
    #[error("the server sent a malformed {0}")]
    Malformed(&'static str),
    /// An answer with the wrong number of rows or columns.
    #[error("the server's answer to {0} does not have the expected rows and columns")]
    Shape(&'static str),
    /// A value that is not what it should be.
    #[error("the server's answer has \"{value}\" as its {what}")]
    Value {
        /// What the value stands for.
        what: &'static str,
        /// The value as it came, shortened and made readable.
        value: String,
    },
    /// More than any server has reason to send.
    #[error("the server sent more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
}

impl ProtocolError {
    /// A [`ProtocolError::Value`] of bytes from the server.
    pub(super) fn value(what: &'static str, value: &[u8]) -> Self {
        let value = readable(value.get(..80).unwrap_or(value));
        Self::Value { what, value }
    }
}
