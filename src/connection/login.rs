//! From an open socket to a server that waits for commands.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use rustix::net::sockopt;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::conninfo::{ChannelBinding, Conninfo, Endpoint, Method, SslMode};
use super::session::Purpose;
use super::tls::{self, Tls};
use super::wire::Wire;
use super::{ConnectError, LoginError, TlsError, passfile};
use crate::protocol::{Condition, Frame, Phase, ProtocolError, Reply, ServerError};

/// More addresses than this behind one name are not tried.
const MAX_ADDRESSES: usize = 16;

/// Settings that a server reports at login: about fifteen.
const MAX_PARAMETERS: usize = 256;

/// A connection that the server has accepted.
pub(super) struct Accepted {
    pub(super) wire: Wire,
    pub(super) parameters: BTreeMap<String, String>,
}

/// Whether to use TLS in an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TlsUse {
    Never,
    IfOffered,
    Always,
}

/// What login depends on.
pub(super) struct Login<'a> {
    pub(super) conninfo: &'a Conninfo,
    pub(super) purpose: Purpose,
    pub(super) application_name: &'a str,
}

/// An attempt that failed.
struct Failure {
    error: ConnectError,
    /// The server had asked for proof of who we are; it will not be told again over another
    /// connection that is less safe.
    asked: bool,
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self { error, asked: false }
    }
}

impl Failure {
    /// Whether `sslmode=allow` and `prefer` try the other way: TLS failed, or `pg_hba.conf` has no
    /// line for this one.
    fn may_be_the_encryption(&self) -> bool {
        match &self.error {
            ConnectError::Tls { source, .. } => {
                matches!(source, TlsError::NotOffered | TlsError::Handshake(_) | TlsError::Certificate(_))
            }
            ConnectError::Refused { error, .. } => !self.asked && error.condition() == Condition::NotAdmitted,
            _ => false,
        }
    }
}

/// Connects and logs in.
pub(super) async fn connect(login: &Login<'_>) -> Result<Accepted, ConnectError> {
    let unix = matches!(login.conninfo.endpoint, Endpoint::Unix(_));
    let (first, second) = match login.conninfo.ssl_mode {
        // Nobody can listen in on a Unix socket, and servers have no TLS there.
        _ if unix => (TlsUse::Never, None),
        SslMode::Disable => (TlsUse::Never, None),
        SslMode::Allow => (TlsUse::Never, Some(TlsUse::Always)),
        SslMode::Prefer => (TlsUse::IfOffered, Some(TlsUse::Never)),
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => (TlsUse::Always, None),
    };
    let failure = match login.attempt(first).await {
        Ok(accepted) => return Ok(accepted),
        Err(failure) => failure,
    };
    let Some(second) = second.filter(|_| failure.may_be_the_encryption()) else { return Err(failure.error) };
    debug!("{}; trying again with TLS {second:?}", failure.error);
    match login.attempt(second).await {
        Ok(accepted) => Ok(accepted),
        Err(_) if matches!(failure.error, ConnectError::Tls { .. }) => Err(failure.error),
        Err(later) => Err(later.error),
    }
}

impl Login<'_> {
    fn target(&self) -> String {
        self.conninfo.target()
    }

    async fn attempt(&self, tls: TlsUse) -> Result<Accepted, Failure> {
        match &self.conninfo.endpoint {
            Endpoint::Unix(sockets) => self.within_limit(self.over_unix(sockets)).await,
            Endpoint::Tcp { host, address, port } => {
                let addresses = match address {
                    Some(address) => vec![SocketAddr::new(*address, *port)],
                    None => self.within_limit(self.resolve(host, *port)).await?,
                };
                self.over_tcp(host, &addresses, tls).await
            }
        }
    }

    /// Each address gets the whole time limit, as in libpq.
    async fn within_limit<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let Some(limit) = self.conninfo.timeout else { return work.await };
        let late = |_| ConnectError::TimedOut { target: self.target(), limit };
        timeout(limit, work).await.map_err(late)?
    }

    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        let failed = |source| ConnectError::Resolve { host: host.to_owned(), source };
        let found = tokio::net::lookup_host((host, port)).await.map_err(failed)?;
        let addresses: Vec<_> = found.take(MAX_ADDRESSES).collect();
        if addresses.is_empty() {
            return Err(failed(io::ErrorKind::NotFound.into()).into());
        }
        Ok(addresses)
    }

    async fn over_unix(&self, sockets: &[PathBuf]) -> Result<Accepted, Failure> {
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for path in sockets {
            match UnixStream::connect(path).await {
                Ok(socket) => return self.log_in(Wire::new(Box::new(socket)), Encryption::None).await,
                // A server that is there but says no is the one that was meant.
                Err(error) if failure.kind() == io::ErrorKind::NotFound => failure = error,
                Err(_) => {}
            }
        }
        Err(ConnectError::Unreachable { target: self.target(), source: failure }.into())
    }

    /// The first address that somebody answers at decides.
    async fn over_tcp(&self, host: &str, addresses: &[SocketAddr], tls: TlsUse) -> Result<Accepted, Failure> {
        let mut failure = None;
        for address in addresses {
            let outcome = self.within_limit(self.at_address(host, *address, tls)).await;
            match outcome {
                Err(Failure {
                    error: error @ (ConnectError::Unreachable { .. } | ConnectError::TimedOut { .. }),
                    ..
                }) => {
                    failure = Some(error);
                }
                outcome => return outcome,
            }
        }
        let nobody = || ConnectError::Unreachable { target: self.target(), source: io::ErrorKind::NotFound.into() };
        Err(failure.unwrap_or_else(nobody).into())
    }

    async fn at_address(&self, host: &str, address: SocketAddr, tls: TlsUse) -> Result<Accepted, Failure> {
        let unreachable = |source| ConnectError::Unreachable { target: self.target(), source };
        let mut socket = TcpStream::connect(address).await.map_err(unreachable)?;
        self.tune(&socket).map_err(unreachable)?;
        let failed = |source| ConnectError::Tls { target: self.target(), source };
        if tls == TlsUse::Never {
            return self.log_in(Wire::new(Box::new(socket)), Encryption::None).await;
        }
        let offered = self.ask_for_tls(&mut socket).await?;
        match (offered, tls) {
            (true, _) => {
                let prepared = Tls::prepare(self.conninfo, host, address.ip()).map_err(failed)?;
                let stream = prepared.handshake(socket).await.map_err(failed)?;
                let end_point = tls::end_point(&stream);
                self.log_in(Wire::new(Box::new(stream)), Encryption::Tls { end_point }).await
            }
            (false, TlsUse::Always) => Err(failed(TlsError::NotOffered).into()),
            (false, _) => self.log_in(Wire::new(Box::new(socket)), Encryption::None).await,
        }
    }

    fn tune(&self, socket: &TcpStream) -> io::Result<()> {
        let settings = &self.conninfo.tcp;
        socket.set_nodelay(true)?;
        sockopt::set_socket_keepalive(socket, settings.keepalives)?;
        if settings.keepalives {
            settings.idle.map(|idle| sockopt::set_tcp_keepidle(socket, idle)).transpose()?;
            settings.interval.map(|interval| sockopt::set_tcp_keepintvl(socket, interval)).transpose()?;
            settings.count.map(|count| sockopt::set_tcp_keepcnt(socket, count)).transpose()?;
        }
        settings.user_timeout.map(|timeout| sockopt::set_tcp_user_timeout(socket, timeout)).transpose()?;
        Ok(())
    }

    /// The answer is one byte; the server then waits for us. Room for two shows when more comes.
    async fn ask_for_tls(&self, socket: &mut TcpStream) -> Result<bool, Failure> {
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        let mut answer = [0; 2];
        let exchange = async {
            socket.write_all(&request).await?;
            socket.read(&mut answer).await
        };
        let read = exchange.await.map_err(|source| self.lost(source))?;
        let failed = |source| Err(ConnectError::Tls { target: self.target(), source }.into());
        match (read, answer) {
            (0, _) => Err(self.lost(io::ErrorKind::UnexpectedEof.into()).into()),
            (1, [b'S', _]) => Ok(true),
            (1, [b'N', _]) => Ok(false),
            (_, [b'S' | b'N', _]) => failed(TlsError::Injected),
            (_, [other, _]) => failed(TlsError::Answer(other)),
        }
    }

    fn lost(&self, source: io::Error) -> ConnectError {
        ConnectError::Lost { target: self.target(), source }
    }

    async fn log_in(&self, wire: Wire, encryption: Encryption) -> Result<Accepted, Failure> {
        let mut exchange = Exchange { login: self, wire, encryption, asked: false, passfile: None };
        let parameters = match exchange.run().await {
            Ok(parameters) => parameters,
            Err(error) => return Err(Failure { error, asked: exchange.asked }),
        };
        Ok(Accepted { wire: exchange.wire, parameters })
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
        let host = conninfo.passfile_host();
        let key = passfile::Key { host: &host, port: conninfo.port, database: self.database(), user: conninfo.user() };
        passfile::password(path, key).map(|password| (password, Some(path.clone())))
    }
}

/// How the connection is encrypted.
enum Encryption {
    None,
    Tls {
        /// What channel binding binds to, where that is defined.
        end_point: Option<Vec<u8>>,
    },
}

/// The dialogue from the start-up message until the server waits for commands.
struct Exchange<'a> {
    login: &'a Login<'a>,
    wire: Wire,
    encryption: Encryption,
    /// The server has asked for proof of who we are.
    asked: bool,
    passfile: Option<PathBuf>,
}

const DURING: &str = "logging in";

impl Exchange<'_> {
    async fn run(&mut self) -> Result<BTreeMap<String, String>, ConnectError> {
        self.start_up().await?;
        self.authenticate().await?;
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
        written.map_err(|source| self.login.lost(source))?;
        self.wire.flush().await.map_err(|source| self.login.lost(source))
    }

    async fn frame(&mut self) -> Result<Frame, ConnectError> {
        loop {
            match self.wire.buffered() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => self.wire.fill().await.map_err(|source| self.login.lost(source))?,
                Err(error) => return Err(self.protocol(error.into())),
            }
        }
    }

    /// The next message of authentication; an error of the server ends it.
    async fn message(&mut self) -> Result<Message, ConnectError> {
        loop {
            let frame = self.frame().await?;
            let tag = frame.tag();
            match frame.decode() {
                Some(Message::ErrorResponse(body)) => {
                    let error = ServerError::collect(body.fields()).map_err(|error| self.protocol(error))?;
                    return Err(self.refused(error));
                }
                Some(Message::NoticeResponse(_)) => {}
                Some(message) => return Ok(message),
                None => return Err(self.unexpected(tag)),
            }
        }
    }

    async fn authenticate(&mut self) -> Result<(), ConnectError> {
        match self.message().await? {
            Message::AuthenticationOk => return self.accepted_without_proof(),
            Message::AuthenticationCleartextPassword => self.clear_text().await?,
            Message::AuthenticationMd5Password(body) => self.md5(body.salt()).await?,
            Message::AuthenticationSasl(body) => self.scram(&body).await?,
            Message::AuthenticationGss | Message::AuthenticationGssContinue(_) => {
                return Err(self.failed(LoginError::UnknownMethod("GSSAPI")));
            }
            Message::AuthenticationSspi => return Err(self.failed(LoginError::UnknownMethod("SSPI"))),
            Message::AuthenticationKerberosV5 => return Err(self.failed(LoginError::UnknownMethod("Kerberos"))),
            _ => return Err(self.unexpected(b'R')),
        }
        match self.message().await? {
            Message::AuthenticationOk => Ok(()),
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
        if matches!(self.encryption, Encryption::None) {
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

    async fn scram(&mut self, offer: &AuthenticationSaslBody) -> Result<(), ConnectError> {
        self.method(Method::Scram, "SCRAM-SHA-256")?;
        let (mechanism, binding) = self.choose_mechanism(offer)?;
        let password = self.password()?;
        let mut scram = ScramSha256::new(password.expose_secret().as_bytes(), binding);
        let written = frontend::sasl_initial_response(mechanism, scram.message(), self.wire.outbox());
        self.send(written).await?;

        let Message::AuthenticationSaslContinue(body) = self.message().await? else { return Err(self.not_finished()) };
        let challenge = body.data().to_vec();
        // Thousands of hash rounds: not on a thread that others wait for.
        let worked = tokio::task::spawn_blocking(move || scram.update(&challenge).map(|()| scram)).await;
        let mut scram = worked.map_err(io::Error::other).and_then(|worked| worked).map_err(|e| self.not_proved(&e))?;
        let written = frontend::sasl_response(scram.message(), self.wire.outbox());
        self.send(written).await?;

        let Message::AuthenticationSaslFinal(body) = self.message().await? else { return Err(self.not_finished()) };
        scram.finish(body.data()).map_err(|error| self.not_proved(&error))
    }

    /// With channel binding if both sides can. Where only the server seems to lack it, it is told
    /// that we would have it: a server that was made to look as if it lacked it then refuses.
    fn choose_mechanism(
        &self,
        offer: &AuthenticationSaslBody,
    ) -> Result<(&'static str, sasl::ChannelBinding), ConnectError> {
        let offered: Vec<&str> = offer.mechanisms().collect().map_err(|_| self.unexpected(b'R'))?;
        let plus = offered.contains(&SCRAM_SHA_256_PLUS);
        let wanted = self.login.conninfo.channel_binding != ChannelBinding::Disable;
        match &self.encryption {
            Encryption::None if plus => return Err(self.failed(LoginError::PlusWithoutTls)),
            Encryption::Tls { end_point: Some(hash) } if plus && wanted => {
                return Ok((SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash.clone())));
            }
            _ => self.unbound("does not offer it for this connection and certificate")?,
        }
        if !offered.contains(&SCRAM_SHA_256) {
            return Err(self.failed(LoginError::UnknownMechanisms(offered.join(", "))));
        }
        let could = wanted && matches!(self.encryption, Encryption::Tls { end_point: Some(_) });
        let binding = if could { sasl::ChannelBinding::unrequested() } else { sasl::ChannelBinding::unsupported() };
        Ok((SCRAM_SHA_256, binding))
    }

    /// What the server reports about itself, until it waits for commands.
    async fn parameters(&mut self) -> Result<BTreeMap<String, String>, ConnectError> {
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

    fn protocol(&self, source: ProtocolError) -> ConnectError {
        ConnectError::Protocol { target: self.login.target(), source }
    }

    fn unexpected(&self, tag: u8) -> ConnectError {
        self.protocol(ProtocolError::Unexpected { tag, during: DURING })
    }

    fn failed(&self, source: LoginError) -> ConnectError {
        ConnectError::Login { target: self.login.target(), source }
    }

    fn not_finished(&self) -> ConnectError {
        self.failed(LoginError::NotFinished)
    }

    fn not_proved(&self, error: &io::Error) -> ConnectError {
        self.failed(LoginError::ServerNotProved(error.to_string()))
    }

    fn refused(&self, error: ServerError) -> ConnectError {
        let passfile = self.passfile.clone();
        ConnectError::Refused { target: self.login.target(), error: Box::new(error), passfile }
    }
}
