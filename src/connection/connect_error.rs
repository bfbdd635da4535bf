//! Why no session came about, and what the user can do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use super::TlsError;
use crate::protocol::{Condition, ProtocolError, ServerError, ServerVersion};

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
    /// The server at the socket runs as somebody else than `requirepeer` says.
    #[error("{target} is run by {actual}, and requirepeer={wanted}")]
    Peer {
        /// The socket.
        target: String,
        /// Who it must be.
        wanted: String,
        /// Who it is.
        actual: String,
    },
    /// A server that `target_session_attrs` does not want.
    #[error("{target} is {what}, and target_session_attrs={wanted}")]
    Unsuited {
        /// Host and port, or socket.
        target: String,
        /// What it is.
        what: &'static str,
        /// What was asked for.
        wanted: &'static str,
    },
    /// It did not tell whether it is one that `target_session_attrs` wants.
    #[error("{target} does not say whether it is a standby: {source}")]
    Unasked {
        /// Host and port, or socket.
        target: String,
        /// What failed.
        source: super::Error,
    },
    /// Several hosts or addresses were tried, one after the other.
    #[error("no server of {} tried can be used: {}", .0.len(), .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Tried(Vec<Self>),
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
    /// `sslcertmode=require`, and the server did not see our certificate.
    #[error("sslcertmode=require, and the server {0}")]
    CertificateNotUsed(&'static str),
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
    /// One error for all that was tried.
    pub(super) fn of(mut tried: Vec<Self>) -> Self {
        match tried.pop() {
            Some(only) if tried.is_empty() => only,
            Some(last) => {
                tried.push(last);
                Self::Tried(tried)
            }
            None => Self::Tried(tried),
        }
    }

    /// The error that ended the search: with the others, another host might have done.
    fn decisive(&self) -> &Self {
        match self {
            Self::Tried(tried) => tried.last().unwrap_or(self),
            one => one,
        }
    }

    /// Whether another host may do where this one failed: it is away, coming, going, or not the one
    /// that is looked for. Who is told no must not ask elsewhere (`PQconnectPoll` in `fe-connect.c`;
    /// to a host that hangs up, as a proxy does for a server that is away, libpq holds on).
    pub(super) fn may_be_better_elsewhere(&self) -> bool {
        match self {
            Self::Resolve { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Lost { .. }
            | Self::Unsuited { .. }
            | Self::Unasked { .. } => true,
            Self::Refused { error, .. } => error.is_server_going_or_coming(),
            _ => false,
        }
    }

    /// What the server said, if it was the server that said no.
    pub fn server_error(&self) -> Option<&ServerError> {
        match self.decisive() {
            Self::Refused { error, .. } => Some(error),
            _ => None,
        }
    }

    /// Whether a password would help: ask for one, if there is anybody to ask.
    pub fn is_password_missing(&self) -> bool {
        matches!(self.decisive(), Self::Login { source: LoginError::PasswordMissing { .. }, .. })
    }

    /// Whether the same attempt may succeed later: the server is down, starting, stopping or full.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Resolve { .. } | Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Lost { .. } => true,
            // A promotion makes another of it.
            Self::Unsuited { .. } => true,
            Self::Unasked { source, .. } => source.is_transient(),
            Self::Tried(tried) => tried.last().is_some_and(Self::is_transient),
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
            Self::Peer { .. } => Some("somebody else may be posing as the server: who made that socket?".into()),
            Self::Unsuited { .. } => {
                Some("name a host that is one, or another target_session_attrs; walhold works with any server".into())
            }
            Self::Unasked { source, .. } => source.hint(),
            Self::Tried(tried) => tried.last().and_then(Self::hint),
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
        Condition::NotAdmitted if error.message.contains("valid client certificate") => {
            "pg_hba.conf wants a certificate that the server's ssl_ca_file has signed: sslcert and sslkey, \
             or ~/.postgresql/postgresql.crt and .key"
        }
        Condition::NotAdmitted if error.message.contains("ertificate authentication failed") => {
            "the certificate's common name must be the role's, or be mapped to it in pg_ident.conf"
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
            Self::CertificateNotUsed(_) => {
                "the server needs TLS and ssl_ca_file to ask for a certificate; sslcert and sslkey name ours"
            }
            Self::PlusWithoutTls | Self::ServerNotProved(_) | Self::NotFinished => {
                "somebody may be posing as the server; use sslmode=verify-full"
            }
            Self::Parameter { .. } => return None,
        };
        Some(text.to_owned())
    }
}
