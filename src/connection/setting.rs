//! The keywords of a connection string, and where each value came from.
//!
//! A keyword that we do not know, or whose value we could not honour, is an error that names it:
//! a security setting that is passed over in silence is worse than none.

use std::collections::BTreeMap;
use std::fmt;

use super::ConninfoError;

/// What we do with a keyword.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Support {
    /// Its value is used.
    Used,
    /// These values mean what we do anyway.
    Only(&'static [&'static str]),
    /// We have nothing that would honour it.
    Refused,
}

/// A keyword of libpq.
struct Keyword {
    name: &'static str,
    variable: Option<&'static str>,
    support: Support,
}

const fn keyword(name: &'static str, variable: Option<&'static str>, support: Support) -> Keyword {
    Keyword { name, variable, support }
}

/// libpq's keywords up to 18 with their environment variables (`fe-connect.c`).
const KEYWORDS: &[Keyword] = {
    use Support::{Only, Refused, Used};
    &[
        keyword("host", Some("PGHOST"), Used),
        keyword("hostaddr", Some("PGHOSTADDR"), Used),
        keyword("port", Some("PGPORT"), Used),
        keyword("user", Some("PGUSER"), Used),
        keyword("password", Some("PGPASSWORD"), Used),
        keyword("passfile", Some("PGPASSFILE"), Used),
        keyword("dbname", Some("PGDATABASE"), Used),
        keyword("application_name", Some("PGAPPNAME"), Used),
        keyword("fallback_application_name", None, Used),
        keyword("options", Some("PGOPTIONS"), Used),
        keyword("connect_timeout", Some("PGCONNECT_TIMEOUT"), Used),
        keyword("keepalives", None, Used),
        keyword("keepalives_idle", None, Used),
        keyword("keepalives_interval", None, Used),
        keyword("keepalives_count", None, Used),
        keyword("tcp_user_timeout", None, Used),
        keyword("sslmode", Some("PGSSLMODE"), Used),
        keyword("sslrootcert", Some("PGSSLROOTCERT"), Used),
        keyword("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION"), Used),
        keyword("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION"), Used),
        keyword("sslnegotiation", Some("PGSSLNEGOTIATION"), Used),
        keyword("sslsni", Some("PGSSLSNI"), Used),
        keyword("sslcert", Some("PGSSLCERT"), Used),
        keyword("sslkey", Some("PGSSLKEY"), Used),
        keyword("sslpassword", None, Used),
        keyword("sslcertmode", Some("PGSSLCERTMODE"), Used),
        keyword("sslcrl", Some("PGSSLCRL"), Used),
        keyword("sslcrldir", Some("PGSSLCRLDIR"), Used),
        keyword("requirepeer", Some("PGREQUIREPEER"), Used),
        keyword("target_session_attrs", Some("PGTARGETSESSIONATTRS"), Used),
        keyword("load_balance_hosts", Some("PGLOADBALANCEHOSTS"), Used),
        keyword("service", Some("PGSERVICE"), Used),
        keyword("servicefile", Some("PGSERVICEFILE"), Used),
        keyword("channel_binding", Some("PGCHANNELBINDING"), Used),
        keyword("require_auth", Some("PGREQUIREAUTH"), Used),
        // A session is always one for replication, and text always UTF-8 where the server converts.
        keyword("replication", None, Only(&["true", "on", "yes", "1"])),
        keyword("client_encoding", Some("PGCLIENTENCODING"), Only(&["UTF8", "utf8", "UTF-8", "utf-8", "auto"])),
        // No GSSAPI, no compression, protocol 3.0.
        keyword("gssencmode", Some("PGGSSENCMODE"), Only(&["disable", "prefer"])),
        keyword("gssdelegation", Some("PGGSSDELEGATION"), Only(&["0"])),
        keyword("sslcompression", Some("PGSSLCOMPRESSION"), Only(&["0"])),
        keyword("min_protocol_version", Some("PGMINPROTOCOLVERSION"), Only(&["3.0"])),
        keyword("max_protocol_version", Some("PGMAXPROTOCOLVERSION"), Only(&["3.0", "3.2", "latest"])),
        keyword("sslkeylogfile", None, Refused),
        // In the environment these two only say how GSSAPI would be used by programs that have it.
        keyword("krbsrvname", None, Refused),
        keyword("gsslib", None, Refused),
        keyword("scram_client_key", None, Refused),
        keyword("scram_server_key", None, Refused),
        keyword("oauth_issuer", None, Refused),
        keyword("oauth_client_id", None, Refused),
        keyword("oauth_client_secret", None, Refused),
        keyword("oauth_scope", None, Refused),
    ]
};

/// Where a value came from, for the message that refuses it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// A flag on the command line.
    Flag,
    /// The connection string.
    Conninfo,
    /// This environment variable.
    Variable(&'static str),
    /// This line of this service file.
    Service {
        path: String,
        /// From 1.
        line: usize,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("command line"),
            Self::Conninfo => f.write_str("connection string"),
            Self::Variable(name) => f.write_str(name),
            Self::Service { path, line } => write!(f, "{path}, line {line}"),
        }
    }
}

/// What was set. An empty value is the default again, whatever was set before, as in libpq.
#[derive(Default)]
pub(super) struct Settings(BTreeMap<&'static str, (String, Origin)>);

impl Settings {
    /// What the environment says.
    pub(super) fn from_environment(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut settings = Self::default();
        for keyword in KEYWORDS {
            if let Some((name, value)) = keyword.variable.and_then(|name| Some((name, variable(name)?))) {
                settings.put(keyword, value, Origin::Variable(name));
            }
        }
        // What libpq had before sslmode, and still obeys.
        let old = "PGREQUIRESSL";
        if settings.get("sslmode").is_none() && variable(old).is_some_and(|value| value.starts_with('1')) {
            settings.0.insert("sslmode", ("require".to_owned(), Origin::Variable(old)));
        }
        settings
    }

    /// Sets a keyword, over what has been set before.
    pub(super) fn set(&mut self, name: &str, value: String, origin: Origin) -> Result<(), ConninfoError> {
        // What libpq had before sslmode.
        let (name, value) = match name {
            "requiressl" => ("sslmode", if value.starts_with('1') { "require" } else { "prefer" }.to_owned()),
            name => (name, value),
        };
        let keyword = KEYWORDS.iter().find(|keyword| keyword.name == name);
        let keyword = keyword.ok_or_else(|| ConninfoError::UnknownKeyword(name.to_owned()))?;
        self.put(keyword, value, origin);
        Ok(())
    }

    fn put(&mut self, keyword: &Keyword, value: String, origin: Origin) {
        self.0.insert(keyword.name, (value, origin));
    }

    /// Sets all that another has, over what has been set before.
    pub(super) fn put_over(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Fails for the first setting that we could not honour.
    pub(super) fn check(&self) -> Result<(), ConninfoError> {
        for keyword in KEYWORDS {
            let Some((value, origin)) = self.found(keyword.name) else { continue };
            let ok = match keyword.support {
                Support::Used => true,
                Support::Only(values) => values.contains(&value),
                Support::Refused => false,
            };
            if !ok {
                let possible = match keyword.support {
                    Support::Only(values) => Some(values.join(", ")),
                    _ => None,
                };
                let (keyword, origin) = (keyword.name, origin.to_string());
                return Err(ConninfoError::NotHonoured { keyword, origin, possible });
            }
        }
        Ok(())
    }

    /// All that have a value, in the order of the keywords.
    pub(super) fn all(&self) -> impl Iterator<Item = (&'static str, String)> {
        KEYWORDS.iter().filter_map(|keyword| Some((keyword.name, self.get(keyword.name)?.to_owned())))
    }

    /// Whether a keyword was set, be it to nothing.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A keyword's value.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.found(name).map(|(value, _)| value)
    }

    fn found(&self, name: &str) -> Option<(&str, &Origin)> {
        let (value, origin) = self.0.get(name)?;
        (!value.is_empty()).then_some((value.as_str(), origin))
    }

    /// A keyword's value as `read` understands it; `wanted` says what it should have been.
    pub(super) fn read<T>(
        &self,
        name: &'static str,
        wanted: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ConninfoError> {
        let Some((value, origin)) = self.found(name) else { return Ok(None) };
        let wrong =
            || ConninfoError::Value { keyword: name, value: value.to_owned(), origin: origin.to_string(), wanted };
        read(value).map(Some).ok_or_else(wrong)
    }
}
