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

/// The first major version whose libpq knows the keyword, for those without which a standby connects no less safely.
/// What makes a connection safer, such as `require_auth`, stays: better no standby than one that does without.
const SINCE: [(&str, u32); 6] = [
    ("sslsni", 14),
    ("load_balance_hosts", 16),
    ("gssdelegation", 16),
    ("sslnegotiation", 17),
    ("min_protocol_version", 18),
    ("max_protocol_version", 18),
];

impl Conninfo {
    /// A connection string for `primary_conninfo`: who and where, and all that was said by flag, string, service
    /// or environment, the password included. What stands at its default is left out unless every server
    /// knows the keyword, for a server does not start a walreceiver with one that it does not know.
    ///
    /// A database is named only if one was: synchronising logical slots needs it (from 17 on).
    pub fn for_a_standby(&self, session: &Session) -> String {
        self.string_for_a_standby(session.host(), session.server_version().major())
    }

    fn string_for_a_standby(&self, host: &Host, major: u32) -> String {
        let said = |name: &str| self.said.iter().any(|(said, _)| *said == name);
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
        let unknown = |name: &str| SINCE.iter().any(|(since, first)| *since == name && major < *first);
        let said = self.said.iter().filter(|(name, _)| !LEFT_OUT.contains(name) && !unknown(name));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::{Flags, Surroundings};

    fn written(string: &str, variables: &[(&str, &str)]) -> String {
        written_for(18, string, variables)
    }

    fn written_for(major: u32, string: &str, variables: &[(&str, &str)]) -> String {
        let variables: Vec<_> = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let variable =
            move |name: &str| variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let surroundings =
            Surroundings { variable: Box::new(variable), user: Some("me".into()), home: Some("/home/me".into()) };
        let conninfo = Conninfo::new(&Flags { conninfo: Some(string.into()), ..Flags::default() }, &surroundings);
        let conninfo = conninfo.unwrap();
        conninfo.string_for_a_standby(&conninfo.hosts[0], major)
    }

    #[test]
    fn who_and_where_and_what_was_said() {
        assert_eq!(
            written("host=db.example port=5433", &[]),
            "user=me passfile='/home/me/.pgpass' channel_binding=prefer port=5433 sslmode=prefer host=db.example"
        );
        // Lists stay: a standby tries them, too.
        assert_eq!(
            written(
                "postgresql://u:p'w\\@a:1,b:2/d?sslmode=require&application_name=s1",
                &[("PGCHANNELBINDING", "require")]
            ),
            "user=u password='p\\'w\\\\' passfile='/home/me/.pgpass' port='1,2' host='a,b' application_name=s1 \
             sslmode=require channel_binding=require dbname=d"
        );
        // What a walreceiver sets itself, and what has been looked up, is left out.
        assert_eq!(
            written("host=h replication=true fallback_application_name=x sslpassword=s", &[("PGPASSFILE", "/p")]),
            "user=me passfile='/p' channel_binding=prefer port=5432 sslmode=prefer host=h sslpassword=s"
        );
    }

    #[test]
    fn a_standby_is_told_only_what_its_version_knows() {
        let string = "host=h sslsni=0 load_balance_hosts=random sslmode=require sslnegotiation=direct require_auth=scram-sha-256";
        let written = |major| {
            let written = written_for(major, string, &[]);
            ["sslsni", "load_balance_hosts", "sslnegotiation", "require_auth"].map(|name| written.contains(name))
        };
        assert_eq!(written(13), [false, false, false, true]);
        assert_eq!(written(14), [true, false, false, true]);
        assert_eq!(written(16), [true, true, false, true]);
        assert_eq!(written(17), [true; 4]);
    }

    #[test]
    fn an_empty_value_and_one_with_a_blank_are_quoted() {
        assert_eq!(["", "a b", "a_b.9", "it's"].map(quoted), ["''", "'a b'", "a_b.9", "'it\\'s'"]);
    }
}
