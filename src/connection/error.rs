//! Why there is no longer a connection, and what the user can do about it.

use std::io;
use std::time::Duration;

use thiserror::Error;

use crate::protocol::{Condition, FramingError, ProtocolError, ServerError};

/// A session's call failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The server said no. Unless it is fatal the session goes on.
    #[error("the server reports: {0}")]
    Server(Box<ServerError>),
    /// The server copied everything, and then said that pages did not match their checksums.
    #[error("the server found damaged data pages: {0}")]
    Checksums(Box<ServerError>),
    /// The connection is gone: connect again.
    #[error("the connection to the server is lost: {0}")]
    Lost(io::Error),
    /// The server is silent.
    #[error("the server did not answer {during} within {} s", limit.as_secs())]
    TimedOut {
        /// What was asked.
        during: &'static str,
        /// How long it may take.
        limit: Duration,
    },
    /// The server broke the protocol.
    #[error(transparent)]
    Protocol(ProtocolError),
    /// The session is in the middle of something else, or at its end.
    #[error("the connection is not free for {0}")]
    NotFree(&'static str),
    /// What the server is to get cannot be read here.
    #[error("the manifest cannot be read: {0}")]
    Upload(io::Error),
    /// What we would send cannot be said in the protocol.
    #[error("a NUL byte cannot be sent to the server")]
    Nul,
}

impl From<ProtocolError> for Error {
    fn from(error: ProtocolError) -> Self {
        match error {
            ProtocolError::Framing(FramingError::CutOff) => Self::Lost(io::ErrorKind::UnexpectedEof.into()),
            other => Self::Protocol(other),
        }
    }
}

impl From<FramingError> for Error {
    fn from(error: FramingError) -> Self {
        ProtocolError::Framing(error).into()
    }
}

impl Error {
    /// What the server said, if it said something.
    pub const fn server_error(&self) -> Option<&ServerError> {
        match self {
            Self::Server(error) | Self::Checksums(error) => Some(error),
            _ => None,
        }
    }

    fn is_about(&self, words: &str) -> bool {
        self.server_error().is_some_and(|error| error.message.contains(words))
    }

    /// The reason, if it was the server that gave one.
    pub fn condition(&self) -> Option<Condition> {
        self.server_error().map(ServerError::condition)
    }

    /// Whether to connect again and go on: the connection was lost, timed out, or was ended by a
    /// server that stops or crashed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Lost(_) | Self::TimedOut { .. } => true,
            Self::Server(error) => error.is_server_going_or_coming(),
            _ => false,
        }
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        let Some(condition) = self.condition() else {
            return Some("the server's log may say why; try again when it is reachable".into());
        };
        let own = match condition {
            Condition::WalRemoved => {
                "the server no longer has this file: a slot would have kept the WAL; a new backup begins anew"
            }
            Condition::Missing => "it was dropped: make it again (walhold receive --ensure-slot)",
            Condition::Exists => "drop it first, or choose another name",
            Condition::InUse => "another receiver uses this slot: one slot, one receiver",
            Condition::TooManySlots => "raise max_replication_slots, or drop a slot that nobody uses",
            Condition::NotAllowed => "the role needs the REPLICATION attribute: ALTER ROLE ... REPLICATION",
            Condition::Syntax => {
                "this is not a physical replication connection: connect to the server, not to a pooler"
            }
            Condition::NotSupported | Condition::NotReady if self.is_about("logical replication slot") => {
                "the slot is a logical one: name a physical one, or another that is then made (--ensure-slot)"
            }
            Condition::DataCorrupted => {
                "check the server's storage and log; pg_checksums or pg_amcheck show what is hit"
            }
            Condition::NotSupported => "is it a physical slot, and a physical replication connection?",
            _ => {
                let theirs = self.server_error().and_then(|error| error.hint.clone());
                return theirs.or_else(|| Some("the server's log may say more".into()));
            }
        };
        Some(own.to_owned())
    }
}
