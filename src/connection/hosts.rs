//! The servers of a connection string: lists of hosts, addresses and ports, paired as in libpq
//! (`fe-connect.c`).

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::ConninfoError;
use super::setting::Settings;

/// Where servers put their socket: Debian and Red Hat, then PostgreSQL's own default.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

const PORT: u16 = 5432;

/// A server, as it was named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Host {
    pub(super) endpoint: Endpoint,
    pub(super) port: u16,
}

/// What leads to a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Endpoint {
    /// The socket in the first of these directories that has one. A name that begins with `@` is
    /// in the abstract namespace.
    Unix(Vec<String>),
    Tcp {
        /// A name or an address; what a certificate must be for.
        host: String,
        /// The address to use in place of looking up the name.
        address: Option<IpAddr>,
    },
}

impl Host {
    /// Where the sockets of a Unix endpoint are; nowhere for another.
    pub(super) fn sockets(&self) -> Vec<PathBuf> {
        let Endpoint::Unix(directories) = &self.endpoint else { return Vec::new() };
        directories.iter().map(|directory| Path::new(directory).join(format!(".s.PGSQL.{}", self.port))).collect()
    }

    /// Host and port, or the socket, for messages.
    pub(super) fn target(&self) -> String {
        match &self.endpoint {
            Endpoint::Tcp { host, .. } if host.contains(':') => format!("[{host}]:{}", self.port),
            Endpoint::Tcp { host, .. } => format!("{host}:{}", self.port),
            Endpoint::Unix(_) => {
                let names: Vec<_> = self.sockets().iter().map(|path| path.display().to_string()).collect();
                names.join(" or ")
            }
        }
    }

    /// The host as a password file names it.
    pub(super) fn passfile_name(&self) -> &str {
        match &self.endpoint {
            Endpoint::Tcp { host, .. } => host,
            Endpoint::Unix(directories) => match directories.first() {
                Some(directory) if !SOCKET_DIRECTORIES.contains(&directory.as_str()) => directory,
                _ => "localhost",
            },
        }
    }

    /// The same at this address.
    pub(super) fn at(&self, address: SocketAddr) -> Self {
        let endpoint = match &self.endpoint {
            Endpoint::Tcp { host, .. } => Endpoint::Tcp { host: host.clone(), address: Some(address.ip()) },
            unix @ Endpoint::Unix(_) => unix.clone(),
        };
        Self { endpoint, port: address.port() }
    }

    fn new(name: &str, address: Option<IpAddr>, port: u16) -> Self {
        let endpoint = match (name, address) {
            ("", None) => Endpoint::Unix(SOCKET_DIRECTORIES.map(str::to_owned).to_vec()),
            ("", Some(address)) => Endpoint::Tcp { host: address.to_string(), address: Some(address) },
            (directory, None) if directory.starts_with(['/', '@']) => Endpoint::Unix(vec![directory.to_owned()]),
            (name, address) => Endpoint::Tcp { host: name.to_owned(), address },
        };
        Self { endpoint, port }
    }
}

/// The hosts in the order in which they were named; one at least.
pub(super) fn hosts(settings: &Settings) -> Result<Vec<Host>, ConninfoError> {
    let names: Option<Vec<&str>> = settings.get("host").map(|list| list.split(',').collect());
    let addresses = settings.read("hostaddr", "an IP address, or several with commas between", |list| {
        list.split(',').map(optional_address).collect::<Option<Vec<_>>>()
    })?;
    let ports = settings.read("port", "a port between 1 and 65535, or several with commas between", |list| {
        list.split(',').map(port).collect::<Option<Vec<_>>>()
    })?;
    let count = addresses.as_ref().map(Vec::len).or_else(|| names.as_ref().map(Vec::len)).unwrap_or(1);
    let names = names.unwrap_or_else(|| vec![""; count]);
    if names.len() != count {
        return Err(ConninfoError::Unpaired { what: "host", given: names.len(), hosts: count });
    }
    let addresses = addresses.unwrap_or_else(|| vec![None; count]);
    let ports = match ports.as_deref() {
        None => vec![PORT; count],
        Some([port]) => vec![*port; count],
        Some(ports) if ports.len() == count => ports.to_vec(),
        Some(ports) => return Err(ConninfoError::Unpaired { what: "port", given: ports.len(), hosts: count }),
    };
    Ok(names
        .into_iter()
        .zip(addresses)
        .zip(ports)
        .map(|((name, address), port)| Host::new(name, address, port))
        .collect())
}

/// Nothing is no address; what is none is not read.
fn optional_address(text: &str) -> Option<Option<IpAddr>> {
    if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }
}

fn port(text: &str) -> Option<u16> {
    match text.trim() {
        "" => Some(PORT),
        text => text.parse().ok().filter(|port| *port > 0),
    }
}
