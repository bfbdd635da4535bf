//! Why there is no connection, or no longer one, and what the user can do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use super::TlsError;
use crate::protocol::{Condition, FramingError, ProtocolError, ServerError, ServerVersion};

/// No session came about.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The host's name has no address.
    #[error("cannot find the address of host \"{host}\": {source}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("cannot connect to {target}: {source}")]
    Unreachable {
        /// Host and port, or socket.
        target: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// It took too long, somewhere between the first packet and the end of login.
    #[error("{target} did not complete the login within {} s", limit.as_secs())]
    TimedOut {
        /// Host and port, or socket.
        target: String,
        /// How long it may take.
        limit: Duration,
    },
    /// The server, or something before it, hung up.
    #[error("{target} closed the connection during login: {source}")]
    Lost {
        /// Host and port, or socket.
        target: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// No encryption to be had as it was asked for.
    #[error("{target}: {source}")]
    Tls {
        /// Host and port.
        target: String,
        /// What failed.
        source: TlsError,
    },
    /// The server said no.
    #[error("{target} refused the connection: {error}")]
    Refused {
        /// Host and port, or socket.
        target: String,
        /// What it said.
        error: Box<ServerError>,
        /// The password file that the password came from.
        passfile: Option<PathBuf>,
    },
    /// We say no to how the server wants to log us in, or it failed to prove itself.
    #[error("{target}: {source}")]
    Login {
        /// Host and port, or socket.
        target: String,
        /// What is wrong.
        source: LoginError,
    },
    /// It does not speak the protocol.
    #[error("{target}: {source}")]
    Protocol {
        /// Host and port, or socket.
        target: String,
        /// How it broke it.
        source: ProtocolError,
    },
    /// A server from before base backups had manifests.
    #[error("{target} is PostgreSQL {version}; walhold needs {} or later", ServerVersion::OLDEST_MAJOR)]
    TooOld {
        /// Host and port, or socket.
        target: String,
        /// Its version.
        version: ServerVersion,
    },
}

/// Login went a way that we do not go.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LoginError {
    /// The server wants a password and we have none.
    #[error("the server asks for a password for user \"{user}\" and none was given")]
    PasswordMissing {
        /// The user.
        user: String,
    },
    /// A method that we do not have, such as Kerberos.
    #[error("the server asks for {0} authentication, which walhold does not have")]
    UnknownMethod(&'static str),
    /// SASL, but no mechanism that we have.
    #[error("the server offers only SASL mechanisms that walhold does not have ({0})")]
    UnknownMechanisms(String),
    /// `require_auth` does not allow it.
    #[error("the server asks for {0}, which require_auth does not allow")]
    NotAllowed(&'static str),
    /// `require_auth` does not allow to be let in without proof.
    #[error("the server let us in without authentication, which require_auth does not allow")]
    NoneNotAllowed,
    /// `channel_binding=require` and the server does not offer, or skipped, it.
    #[error("channel binding is required, and the server {0}")]
    ChannelBinding(&'static str),
    /// `SCRAM-SHA-256-PLUS` on a connection without TLS: somebody is between us and the server.
    #[error("the server offers channel binding over a connection without TLS")]
    PlusWithoutTls,
    /// The server's part of SCRAM is wrong: it does not know the password's verifier, or is not
    /// who it seems.
    #[error("the server failed to prove that it knows the password: {0}")]
    ServerNotProved(String),
    /// Login was declared complete before the server had proved itself.
    #[error("the server ended authentication before it proved that it knows the password")]
    NotFinished,
    /// A setting that walhold relies on.
    #[error("the server reports {name} = \"{value}\", where walhold needs {wanted}")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// Its value, or nothing.
        value: String,
        /// What it should be.
        wanted: &'static str,
    },
}

impl ConnectError {
    /// What the server said, if it was the server that said no.
    pub const fn server_error(&self) -> Option<&ServerError> {
        match self {
            Self::Refused { error, .. } => Some(error),
            _ => None,
        }
    }

    /// Whether a password would help: ask for one, if there is anybody to ask.
    pub const fn is_password_missing(&self) -> bool {
        matches!(self, Self::Login { source: LoginError::PasswordMissing { .. }, .. })
    }

    /// Whether the same attempt may succeed later: the server is down, starting, stopping or full.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Resolve { .. } | Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Lost { .. } => true,
            Self::Refused { error, .. } => {
                error.is_server_going_or_coming() || error.condition() == Condition::TooManyConnections
            }
            _ => false,
        }
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Resolve { .. } => Some("check the host name (-h, host=, PGHOST)".into()),
            Self::Unreachable { source, .. } => unreachable_hint(source.kind()),
            Self::TimedOut { .. } => Some("check host and port; connect_timeout= sets how long to wait".into()),
            Self::Lost { .. } => Some("the server's log may say why; is it a PostgreSQL server?".into()),
            Self::Tls { source, .. } => source.hint(),
            Self::Refused { error, passfile, .. } => refusal_hint(error, passfile.as_ref()),
            Self::Login { source, .. } => source.hint(),
            Self::Protocol { .. } => Some("is it a PostgreSQL server? A pooler cannot pass on replication".into()),
            Self::TooOld { .. } => Some("back this server up with its own pg_basebackup, and upgrade it".into()),
        }
    }
}

fn unreachable_hint(kind: io::ErrorKind) -> Option<String> {
    match kind {
        io::ErrorKind::PermissionDenied => Some("this user may not use the server's socket".into()),
        io::ErrorKind::NotFound => {
            Some("there is no such socket: is the server running, and is this its unix_socket_directories?".into())
        }
        _ => Some("is the server running, and does it listen there (listen_addresses, port)?".into()),
    }
}

fn refusal_hint(error: &ServerError, passfile: Option<&PathBuf>) -> Option<String> {
    let own = match error.condition() {
        Condition::NotAdmitted if error.message.contains("pg_hba.conf") => {
            "add a line to pg_hba.conf such as: host replication <user> <address>/32 scram-sha-256 \
             (the database \"all\" does not cover replication), then reload the server; if there is one \
             that says hostssl, use sslmode=require"
        }
        Condition::NotAdmitted => "the role must exist and be allowed to log in: CREATE ROLE ... LOGIN REPLICATION",
        Condition::WrongPassword => {
            return Some(match passfile {
                Some(path) => format!("the password came from {}", path.display()),
                None => "check the password (PGPASSWORD, ~/.pgpass)".into(),
            });
        }
        Condition::NotAllowed => "the role needs the REPLICATION attribute: ALTER ROLE ... REPLICATION",
        Condition::TooManyConnections => {
            "every WAL sender or connection is taken: raise max_wal_senders (or max_connections), or end others"
        }
        Condition::CannotConnectNow => "the server is starting, stopping or recovering: try again later",
        Condition::MissingDatabase => "name an existing database with dbname=",
        _ => {
            let pooler = "is it a PostgreSQL server, and not a pooler in front of one? Its log may say more";
            return error.hint.clone().or_else(|| Some(pooler.into()));
        }
    };
    Some(own.to_owned())
}

impl LoginError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::PasswordMissing { .. } => "put it into ~/.pgpass (database field: replication) or PGPASSWORD",
            Self::UnknownMethod(_) | Self::UnknownMechanisms(_) => {
                "give this role trust, md5, password or scram-sha-256 in pg_hba.conf"
            }
            Self::NotAllowed(_) | Self::NoneNotAllowed => "change require_auth, or the method in pg_hba.conf",
            Self::ChannelBinding(_) => {
                "channel binding needs TLS, scram-sha-256 in pg_hba.conf and a password stored as SCRAM"
            }
            Self::PlusWithoutTls | Self::ServerNotProved(_) | Self::NotFinished => {
                "somebody may be posing as the server; use sslmode=verify-full"
            }
            Self::Parameter { .. } => return None,
        };
        Some(text.to_owned())
    }
}

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
