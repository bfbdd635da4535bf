//! What a standby needs to follow the server of a session: the connection as a connection string.

use secrecy::ExposeSecret;

use super::hosts::{Endpoint, Host};
use super::{Conninfo, Session};

/// Of what was said, these are not for a standby: what leads to the values rather than being one, what a walreceiver
/// sets itself (`libpqrcv_connect`), and what is written from the connection.
const LEFT_OUT: [&str; 11] = [
    "service",
    "servicefile",
    "replication",
    "fallback_application_name",
    "client_encoding",
    "user",
    "passfile",
    "dbname",
    "password",
    "sslpassword",
    "port",
];

impl Conninfo {
    /// A connection string for `primary_conninfo`: who and where, and all that was said by flag, string, service
    /// or environment, the password included. What stands at its default is left out unless every server
    /// knows the keyword, for a server does not start a walreceiver with one that it does not know.
    ///
    /// A database is named only if one was: synchronising logical slots needs it (from 17 on).
    pub fn for_a_standby(&self, session: &Session) -> String {
        let said = |name: &str| self.said.iter().any(|(said, _)| *said == name);
        let host = session.host();
        let mut pairs: Vec<(&str, String)> = vec![("user", self.user.clone())];
        let secret = |name, secret: &Option<secrecy::SecretString>| {
            secret.as_ref().map(|secret| (name, secret.expose_secret().to_owned()))
        };
        pairs.extend(secret("password", &self.password));
        pairs.extend(self.passfile.as_ref().map(|path| ("passfile", path.to_string_lossy().into_owned())));
        if !said("channel_binding") {
            pairs.push(("channel_binding", "prefer".to_owned()));
        }
        if !said("host") && !said("hostaddr") {
            pairs.push(("host", host_name(host)));
        }
        let port = self.said.iter().find(|(name, _)| *name == "port");
        pairs.push(("port", port.map_or_else(|| host.port.to_string(), |(_, port)| port.clone())));
        if !said("sslmode") {
            pairs.push(("sslmode", "prefer".to_owned()));
        }
        let said = self.said.iter().filter(|(name, _)| !LEFT_OUT.contains(name));
        pairs.extend(said.map(|(name, value)| (*name, value.clone())));
        pairs.extend(secret("sslpassword", &self.encryption.client.password));
        pairs.extend(self.database.as_ref().map(|database| ("dbname", database.clone())));
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={}", quoted(value))).collect();
        pairs.join(" ")
    }
}

fn host_name(host: &Host) -> String {
    match &host.endpoint {
        Endpoint::Tcp { host, .. } => host.clone(),
        Endpoint::Unix(directories) => {
            // The one that has the socket; for the default there are two.
            let with_sockets = directories.iter().zip(host.sockets());
            let found = with_sockets.into_iter().find(|(_, socket)| socket.exists()).map(|(directory, _)| directory);
            found.or_else(|| directories.first()).cloned().unwrap_or_default()
        }
    }
}

/// By the rules of connection strings: quoted unless it is plain.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}
