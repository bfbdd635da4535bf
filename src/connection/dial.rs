//! From a host's name to a connection that its server has accepted.

use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tracing::debug;

use super::conninfo::Conninfo;
use super::encryption::SslMode;
use super::hosts::{Endpoint, Host};
use super::login::{Cover, Failure, Login, Parameters, Purpose};
use super::tls::{Encrypted, Tls};
use super::wire::Wire;
use super::{ConnectError, TlsError, end_point, surroundings};
use crate::protocol::Condition;

/// More addresses than this behind one name are not tried.
const MAX_ADDRESSES: usize = 16;

/// Who calls, and what for.
pub(super) struct Caller<'a> {
    pub(super) conninfo: &'a Conninfo,
    pub(super) purpose: Purpose,
    pub(super) application_name: &'a str,
}

/// A connection that a server has accepted.
pub(super) struct Accepted {
    pub(super) wire: Wire,
    pub(super) parameters: Parameters,
    /// The host as it was reached: at one address, or in one directory.
    pub(super) host: Host,
    /// The host in messages.
    pub(super) target: String,
}

/// Whether to use TLS in an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TlsUse {
    Never,
    IfOffered,
    Always,
}

/// Connects and logs in at the first address of this host that somebody answers at. The failures
/// are one for each address tried, the last of them that which ended it.
pub(super) async fn dial(caller: &Caller<'_>, host: &Host) -> Result<Accepted, Vec<ConnectError>> {
    let places = places(caller, host).await.map_err(|error| vec![error])?;
    let mut failures = Vec::new();
    for place in places {
        match place.connect().await {
            Ok(accepted) => return Ok(accepted),
            Err(error) => {
                let silent = matches!(error, ConnectError::Unreachable { .. } | ConnectError::TimedOut { .. });
                failures.push(error);
                if !silent {
                    break;
                }
            }
        }
    }
    Err(failures)
}

/// The addresses of a host, or its socket; one at least.
async fn places<'a>(caller: &'a Caller<'a>, host: &Host) -> Result<Vec<Place<'a>>, ConnectError> {
    let target = host.target();
    let name = match &host.endpoint {
        Endpoint::Tcp { host: name, address: None } => name,
        Endpoint::Tcp { .. } | Endpoint::Unix(_) => return Ok(vec![Place { caller, host: host.clone(), target }]),
    };
    let mut addresses = within(caller.conninfo, &target, resolve(name, host.port)).await?;
    if caller.conninfo.shuffle {
        shuffle(&mut addresses);
    }
    let one = addresses.len() == 1;
    let place = |address: SocketAddr| {
        let target = if one { target.clone() } else { format!("{target} ({})", address.ip()) };
        Place { caller, host: host.at(address), target }
    };
    Ok(addresses.into_iter().map(place).collect())
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
    let failed = |source| ConnectError::Resolve { host: host.to_owned(), source };
    let found = tokio::net::lookup_host((host, port)).await.map_err(failed)?;
    let addresses: Vec<_> = found.take(MAX_ADDRESSES).collect();
    if addresses.is_empty() { Err(failed(io::ErrorKind::NotFound.into())) } else { Ok(addresses) }
}

/// Puts these in any order.
pub(super) fn shuffle<T>(items: &mut [T]) {
    for count in (2..=items.len()).rev() {
        // Its keys are random; no more is needed here.
        let random = RandomState::new().build_hasher().finish();
        let other = usize::try_from(random).unwrap_or_default().checked_rem(count).unwrap_or_default();
        items.swap(count.saturating_sub(1), other);
    }
}

/// Each address gets the whole time limit, as in libpq.
async fn within<T, E: From<ConnectError>>(
    conninfo: &Conninfo,
    target: &str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let Some(limit) = conninfo.timeout else { return work.await };
    let late = |_| ConnectError::TimedOut { target: target.to_owned(), limit };
    timeout(limit, work).await.map_err(late)?
}

/// A server at one address.
struct Place<'a> {
    caller: &'a Caller<'a>,
    host: Host,
    /// The host in messages.
    target: String,
}

type LoggedIn = (Wire, Parameters);

impl Place<'_> {
    /// Connects with TLS or without, as `sslmode` says and `pg_hba.conf` allows.
    async fn connect(self) -> Result<Accepted, ConnectError> {
        match &self.host.endpoint {
            // Nobody can listen in on a Unix socket, and servers have no TLS there.
            Endpoint::Unix(directories) => {
                let (socket, directory) = self.limited(self.open(directories)).await.map_err(|e| e.error)?;
                let host = Host { endpoint: Endpoint::Unix(vec![directory]), port: self.host.port };
                let logged_in = self.limited(self.over_unix(socket)).await.map_err(|e| e.error)?;
                Ok(self.accepted(logged_in, Some(host)))
            }
            Endpoint::Tcp { host, address } => {
                let Some(ip) = *address else { return Err(self.unreachable(io::ErrorKind::NotFound.into())) };
                let logged_in = self.over_tcp(host, SocketAddr::new(ip, self.host.port)).await?;
                Ok(self.accepted(logged_in, None))
            }
        }
    }

    fn accepted(self, (wire, parameters): LoggedIn, host: Option<Host>) -> Accepted {
        Accepted { wire, parameters, host: host.unwrap_or(self.host), target: self.target }
    }

    async fn limited<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        within(self.caller.conninfo, &self.target, work).await
    }

    fn unreachable(&self, source: io::Error) -> ConnectError {
        ConnectError::Unreachable { target: self.target.clone(), source }
    }

    fn lost(&self, source: io::Error) -> ConnectError {
        ConnectError::Lost { target: self.target.clone(), source }
    }

    /// The socket in the first directory that has one, and that directory.
    async fn open(&self, directories: &[String]) -> Result<(UnixStream, String), Failure> {
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for (path, directory) in self.host.sockets().iter().zip(directories) {
            match UnixStream::connect(abstract_or_file(path)).await {
                Ok(socket) => return Ok((socket, directory.clone())),
                // A server that is there but says no is the one that was meant.
                Err(error) if failure.kind() == io::ErrorKind::NotFound => failure = error,
                Err(_) => {}
            }
        }
        Err(self.unreachable(failure).into())
    }

    async fn over_unix(&self, socket: UnixStream) -> Result<LoggedIn, Failure> {
        if let Some(wanted) = &self.caller.conninfo.require_peer {
            let uid = socket.peer_cred().map_err(|source| self.unreachable(source))?.uid();
            let actual = surroundings::user_name(uid).unwrap_or_else(|| format!("user number {uid}"));
            if actual != *wanted {
                let (target, wanted) = (self.target.clone(), wanted.clone());
                return Err(ConnectError::Peer { target, wanted, actual }.into());
            }
        }
        self.login().log_in(Wire::new(Box::new(socket)), Cover::None).await
    }

    async fn over_tcp(&self, host: &str, address: SocketAddr) -> Result<LoggedIn, ConnectError> {
        let (first, second) = match self.caller.conninfo.encryption.mode {
            SslMode::Disable => (TlsUse::Never, None),
            SslMode::Allow => (TlsUse::Never, Some(TlsUse::Always)),
            SslMode::Prefer => (TlsUse::IfOffered, Some(TlsUse::Never)),
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => (TlsUse::Always, None),
        };
        let failure = match self.limited(self.attempt(host, address, first)).await {
            Ok(logged_in) => return Ok(logged_in),
            Err(failure) => failure,
        };
        let Some(second) = second.filter(|_| failure.may_be_the_encryption()) else {
            return Err(self.hung_up(failure.error));
        };
        debug!("{}; trying again with TLS {second:?}", failure.error);
        match self.limited(self.attempt(host, address, second)).await {
            Ok(logged_in) => Ok(logged_in),
            Err(_) if matches!(failure.error, ConnectError::Tls { .. }) => Err(self.hung_up(failure.error)),
            Err(later) => Err(self.hung_up(later.error)),
        }
    }

    /// A connection that ends in the middle of the handshake has ended, whatever else it may mean.
    fn hung_up(&self, error: ConnectError) -> ConnectError {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match error {
            ConnectError::Tls { source: TlsError::Handshake(source), .. }
                if matches!(source.kind(), UnexpectedEof | ConnectionReset | BrokenPipe) =>
            {
                let old = "; PostgreSQL before 17 does so when TLS begins without being asked for";
                let direct = if self.caller.conninfo.encryption.direct { old } else { "" };
                self.lost(io::Error::new(source.kind(), format!("{source}{direct}")))
            }
            other => other,
        }
    }

    async fn attempt(&self, host: &str, address: SocketAddr, tls: TlsUse) -> Result<LoggedIn, Failure> {
        let mut socket = TcpStream::connect(address).await.map_err(|source| self.unreachable(source))?;
        self.tune(&socket).map_err(|source| self.unreachable(source))?;
        let encryption = &self.caller.conninfo.encryption;
        let offered = match tls {
            TlsUse::Never => false,
            TlsUse::Always if encryption.direct => true,
            TlsUse::IfOffered | TlsUse::Always => self.ask_for_tls(&mut socket).await?,
        };
        let failed = |source| ConnectError::Tls { target: self.target.clone(), source };
        match (offered, tls) {
            (true, _) => {
                let prepared = Tls::prepare(encryption, host, address.ip()).map_err(failed)?;
                let Encrypted { stream, shown } = prepared.handshake(socket).await.map_err(failed)?;
                let end_point = end_point::end_point(&stream);
                self.login().log_in(Wire::new(Box::new(stream)), Cover::Tls { end_point, shown }).await
            }
            (false, TlsUse::Always) => Err(failed(TlsError::NotOffered).into()),
            (false, _) => self.login().log_in(Wire::new(Box::new(socket)), Cover::None).await,
        }
    }

    fn login(&self) -> Login<'_> {
        let Caller { conninfo, purpose, application_name } = *self.caller;
        Login { conninfo, purpose, application_name, host: &self.host, target: &self.target }
    }

    fn tune(&self, socket: &TcpStream) -> io::Result<()> {
        let settings = &self.caller.conninfo.tcp;
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
        let failed = |source| Err(ConnectError::Tls { target: self.target.clone(), source }.into());
        match (read, answer) {
            (0, _) => Err(self.lost(io::ErrorKind::UnexpectedEof.into()).into()),
            (1, [b'S', _]) => Ok(true),
            (1, [b'N', _]) => Ok(false),
            (_, [b'S' | b'N', _]) => failed(TlsError::Injected),
            (_, [other, _]) => failed(TlsError::Answer(other)),
        }
    }
}

/// A name that begins with `@` is one in the abstract namespace, which is written with a NUL there.
fn abstract_or_file(path: &Path) -> PathBuf {
    match path.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) => OsString::from_vec([b"\0", name].concat()).into(),
        None => path.to_owned(),
    }
}

impl Failure {
    /// Whether `sslmode=allow` and `prefer` try the other way: TLS failed, or `pg_hba.conf` has no
    /// line for this one.
    fn may_be_the_encryption(&self) -> bool {
        match &self.error {
            ConnectError::Tls { source, .. } => {
                matches!(
                    source,
                    TlsError::NotOffered
                        | TlsError::Handshake(_)
                        | TlsError::Certificate(_)
                        | TlsError::ClientRefused { .. }
                )
            }
            ConnectError::Refused { error, .. } => !self.asked && error.condition() == Condition::NotAdmitted,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_comes_up() {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            let mut items = [1, 2, 3];
            shuffle(&mut items);
            seen.insert(items);
        }
        assert_eq!(seen.len(), 6);
    }
}
