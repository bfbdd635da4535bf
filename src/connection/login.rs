//! From a connection to a server until it waits for commands: start-up, authentication, settings.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::frontend;
use secrecy::{ExposeSecret, SecretString};
use tracing::{debug, warn};

use super::client_cert::Shown;
use super::conninfo::Conninfo;
use super::encryption::CertMode;
use super::hosts::Host;
use super::method::{ChannelBinding, Method};
use super::wire::Wire;
use super::{ConnectError, LoginError, passfile, tls};
use crate::protocol::{Authentication, Frame, Phase, ProtocolError, Reply, ServerError};

/// Settings that a server reports at login: about fifteen.
const MAX_PARAMETERS: usize = 256;

/// What a session is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Physical replication: streams, slots and base backups, no SQL.
    Replication,
    /// SQL in the database that the connection string names, else in `postgres`.
    Sql,
}

/// What login depends on.
pub(super) struct Login<'a> {
    pub(super) conninfo: &'a Conninfo,
    pub(super) purpose: Purpose,
    pub(super) application_name: &'a str,
    pub(super) host: &'a Host,
    /// The host in messages.
    pub(super) target: &'a str,
}

/// A login that failed.
pub(super) struct Failure {
    pub(super) error: ConnectError,
    /// The server had asked for proof of who we are; it will not be told again over another
    /// connection that is less safe.
    pub(super) asked: bool,
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self { error, asked: false }
    }
}

/// What a server reports about itself.
pub(super) type Parameters = BTreeMap<String, String>;

impl Login<'_> {
    /// Logs in over a connection that nothing has been said on yet.
    pub(super) async fn log_in(&self, wire: Wire, cover: Cover) -> Result<(Wire, Parameters), Failure> {
        let mut exchange = Exchange { login: self, wire, cover, asked: false, passfile: None };
        match exchange.run().await {
            Ok(parameters) => Ok((exchange.wire, parameters)),
            Err(error) => Err(Failure { error, asked: exchange.asked }),
        }
    }

    fn database(&self) -> &str {
        match self.purpose {
            // A physical walsender has no database; the name is what pg_hba.conf and .pgpass use.
            Purpose::Replication => "replication",
            Purpose::Sql => self.conninfo.database().unwrap_or("postgres"),
        }
    }

    /// The password that was given, or the password file's, with that file's name.
    fn password(&self) -> Option<(SecretString, Option<PathBuf>)> {
        let conninfo = self.conninfo;
        if let Some(given) = conninfo.password.clone().filter(|password| !password.expose_secret().is_empty()) {
            return Some((given, None));
        }
        let path = conninfo.passfile.as_ref()?;
        let (host, port) = (self.host.passfile_name(), self.host.port);
        let key = passfile::Key { host, port, database: self.database(), user: conninfo.user() };
        passfile::password(path, key).map(|password| (password, Some(path.clone())))
    }
}

/// How the connection is encrypted.
pub(super) enum Cover {
    None,
    Tls {
        /// What channel binding binds to, where that is defined.
        end_point: Option<Vec<u8>>,
        /// What the server has seen of our certificate.
        shown: Shown,
    },
}

/// The dialogue from the start-up message until the server waits for commands.
struct Exchange<'a> {
    login: &'a Login<'a>,
    wire: Wire,
    cover: Cover,
    /// The server has asked for proof of who we are.
    asked: bool,
    passfile: Option<PathBuf>,
}

const DURING: &str = "logging in";

impl Exchange<'_> {
    async fn run(&mut self) -> Result<Parameters, ConnectError> {
        self.start_up().await?;
        self.authenticate().await?;
        self.certificate_used()?;
        self.parameters().await
    }

    async fn start_up(&mut self) -> Result<(), ConnectError> {
        let login = self.login;
        let mut parameters = vec![
            ("user", login.conninfo.user()),
            ("database", login.database()),
            ("application_name", login.application_name),
        ];
        match login.purpose {
            Purpose::Replication => parameters.push(("replication", "true")),
            Purpose::Sql => parameters.push(("client_encoding", "UTF8")),
        }
        parameters.extend(login.conninfo.options.as_deref().map(|options| ("options", options)));
        let written = frontend::startup_message(parameters, self.wire.outbox());
        self.send(written).await
    }

    /// Sends what a function of `frontend` has put into the outbox.
    async fn send(&mut self, written: io::Result<()>) -> Result<(), ConnectError> {
        written.map_err(|source| self.lost(source))?;
        self.wire.flush().await.map_err(|source| self.lost(source))
    }

    async fn frame(&mut self) -> Result<Frame, ConnectError> {
        loop {
            match self.wire.buffered() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => self.wire.fill().await.map_err(|source| self.lost(source))?,
                Err(error) => return Err(self.protocol(error.into())),
            }
        }
    }

    /// The next message of authentication; an error of the server ends it.
    async fn message(&mut self) -> Result<Authentication, ConnectError> {
        loop {
            let frame = self.frame().await?;
            match (frame.tag(), frame.into_body()) {
                (b'R', body) => return Authentication::decode(&body).ok_or_else(|| self.unexpected(b'R')),
                (b'E', body) => {
                    let error = ServerError::decode(&body).map_err(|error| self.protocol(error))?;
                    return Err(self.refused(error));
                }
                (b'N', _) => {}
                (tag, _) => return Err(self.unexpected(tag)),
            }
        }
    }

    async fn authenticate(&mut self) -> Result<(), ConnectError> {
        match self.message().await? {
            Authentication::Done => return self.accepted_without_proof(),
            Authentication::ClearText => self.clear_text().await?,
            Authentication::Md5(salt) => self.md5(salt).await?,
            Authentication::Sasl(mechanisms) => self.scram(&mechanisms).await?,
            Authentication::Other(method) => return Err(self.failed(LoginError::UnknownMethod(method))),
            Authentication::SaslContinue(_) | Authentication::SaslFinal(_) => return Err(self.unexpected(b'R')),
        }
        match self.message().await? {
            Authentication::Done => Ok(()),
            _ => Err(self.unexpected(b'R')),
        }
    }

    /// `trust`, `peer` and the like, or a server that does not want to know who we are.
    fn accepted_without_proof(&self) -> Result<(), ConnectError> {
        let conninfo = self.login.conninfo;
        if !conninfo.require_auth.allows(Method::None) {
            return Err(self.failed(LoginError::NoneNotAllowed));
        }
        self.unbound("let us in without authentication")
    }

    /// Holds the server to `sslcertmode=require`.
    fn certificate_used(&self) -> Result<(), ConnectError> {
        let shown = match self.cover {
            Cover::None => Shown::NotAsked,
            Cover::Tls { shown, .. } => shown,
        };
        match (self.login.conninfo.encryption.client.mode, shown) {
            (CertMode::Disable | CertMode::Allow, _) | (CertMode::Require, Shown::Sent) => Ok(()),
            (CertMode::Require, Shown::NotAsked) => {
                Err(self.failed(LoginError::CertificateNotUsed("did not ask for a certificate")))
            }
            (CertMode::Require, Shown::NotSent) => {
                Err(self.failed(LoginError::CertificateNotUsed("let us in without one")))
            }
        }
    }

    /// Refuses to go on without channel binding if it is required.
    fn unbound(&self, what: &'static str) -> Result<(), ConnectError> {
        match self.login.conninfo.channel_binding {
            ChannelBinding::Require => Err(self.failed(LoginError::ChannelBinding(what))),
            ChannelBinding::Disable | ChannelBinding::Prefer => Ok(()),
        }
    }

    fn method(&mut self, method: Method, name: &'static str) -> Result<(), ConnectError> {
        self.asked = true;
        if self.login.conninfo.require_auth.allows(method) {
            Ok(())
        } else {
            Err(self.failed(LoginError::NotAllowed(name)))
        }
    }

    fn password(&mut self) -> Result<SecretString, ConnectError> {
        let missing = || LoginError::PasswordMissing { user: self.login.conninfo.user.clone() };
        let (password, passfile) = self.login.password().ok_or_else(|| self.failed(missing()))?;
        self.passfile = passfile;
        Ok(password)
    }

    async fn clear_text(&mut self) -> Result<(), ConnectError> {
        self.method(Method::Password, "a password in clear text")?;
        self.unbound("asks for a password in clear text")?;
        if matches!(self.cover, Cover::None) {
            warn!("the server asks for the password in clear text over a connection without TLS");
        }
        let password = self.password()?;
        let written = frontend::password_message(password.expose_secret().as_bytes(), self.wire.outbox());
        self.send(written).await
    }

    async fn md5(&mut self, salt: [u8; 4]) -> Result<(), ConnectError> {
        self.method(Method::Md5, "an MD5 password")?;
        self.unbound("asks for an MD5 password")?;
        let password = self.password()?;
        let user = self.login.conninfo.user().as_bytes();
        let hash = md5_hash(user, password.expose_secret().as_bytes(), salt);
        let written = frontend::password_message(hash.as_bytes(), self.wire.outbox());
        self.send(written).await
    }

    async fn scram(&mut self, offered: &[String]) -> Result<(), ConnectError> {
        self.method(Method::Scram, "SCRAM-SHA-256")?;
        let (mechanism, binding) = self.choose_mechanism(offered)?;
        let password = self.password()?;
        let mut scram = ScramSha256::new(password.expose_secret().as_bytes(), binding);
        let written = frontend::sasl_initial_response(mechanism, scram.message(), self.wire.outbox());
        self.send(written).await?;

        let Authentication::SaslContinue(challenge) = self.message().await? else { return Err(self.not_finished()) };
        // Thousands of hash rounds: not on a thread that others wait for.
        let worked = tokio::task::spawn_blocking(move || scram.update(&challenge).map(|()| scram)).await;
        let mut scram = worked.map_err(io::Error::other).and_then(|worked| worked).map_err(|e| self.not_proved(&e))?;
        let written = frontend::sasl_response(scram.message(), self.wire.outbox());
        self.send(written).await?;

        let Authentication::SaslFinal(proof) = self.message().await? else { return Err(self.not_finished()) };
        scram.finish(&proof).map_err(|error| self.not_proved(&error))
    }

    /// With channel binding if both sides can. Where only the server seems to lack it, it is told
    /// that we would have it: a server that was made to look as if it lacked it then refuses.
    fn choose_mechanism(&self, offered: &[String]) -> Result<(&'static str, sasl::ChannelBinding), ConnectError> {
        let offers = |wanted: &str| offered.iter().any(|name| name == wanted);
        let plus = offers(SCRAM_SHA_256_PLUS);
        let wanted = self.login.conninfo.channel_binding != ChannelBinding::Disable;
        match &self.cover {
            Cover::None if plus => return Err(self.failed(LoginError::PlusWithoutTls)),
            Cover::Tls { end_point: Some(hash), .. } if plus && wanted => {
                return Ok((SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash.clone())));
            }
            _ => self.unbound("does not offer it for this connection and certificate")?,
        }
        if !offers(SCRAM_SHA_256) {
            return Err(self.failed(LoginError::UnknownMechanisms(offered.join(", "))));
        }
        let could = wanted && matches!(self.cover, Cover::Tls { end_point: Some(_), .. });
        let binding = if could { sasl::ChannelBinding::unrequested() } else { sasl::ChannelBinding::unsupported() };
        Ok((SCRAM_SHA_256, binding))
    }

    /// What the server reports about itself, until it waits for commands.
    async fn parameters(&mut self) -> Result<Parameters, ConnectError> {
        let mut parameters = BTreeMap::new();
        loop {
            let reply = Reply::decode(self.frame().await?).map_err(|error| self.protocol(error))?;
            match reply {
                Reply::Ready => {
                    self.wire.enter(Phase::Command);
                    return Ok(parameters);
                }
                Reply::Parameter { name, value } if parameters.len() < MAX_PARAMETERS => {
                    parameters.insert(name, value);
                }
                Reply::Notice(notice) => debug!("the server says: {notice}"),
                Reply::Ignored => {}
                Reply::Error(error) => return Err(self.refused(error)),
                other => return Err(self.protocol(other.unexpected(DURING))),
            }
        }
    }

    /// The end of the connection, or, with TLS 1.3, the server's no to our certificate.
    fn lost(&self, source: io::Error) -> ConnectError {
        let target = self.login.target.to_owned();
        let refused = match self.cover {
            Cover::Tls { shown, .. } => tls::refusal_of_client(&source, shown),
            Cover::None => None,
        };
        match refused {
            Some(source) => ConnectError::Tls { target, source },
            None => ConnectError::Lost { target, source },
        }
    }

    fn protocol(&self, source: ProtocolError) -> ConnectError {
        ConnectError::Protocol { target: self.login.target.to_owned(), source }
    }

    fn unexpected(&self, tag: u8) -> ConnectError {
        self.protocol(ProtocolError::Unexpected { tag, during: DURING })
    }

    fn failed(&self, source: LoginError) -> ConnectError {
        ConnectError::Login { target: self.login.target.to_owned(), source }
    }

    fn not_finished(&self) -> ConnectError {
        self.failed(LoginError::NotFinished)
    }

    fn not_proved(&self, error: &io::Error) -> ConnectError {
        self.failed(LoginError::ServerNotProved(error.to_string()))
    }

    fn refused(&self, error: ServerError) -> ConnectError {
        let passfile = self.passfile.clone();
        ConnectError::Refused { target: self.login.target.to_owned(), error: Box::new(error), passfile }
    }
}
