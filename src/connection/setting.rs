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
        keyword("channel_binding", Some("PGCHANNELBINDING"), Used),
        keyword("require_auth", Some("PGREQUIREAUTH"), Used),
        // A session is always one for replication, and text always UTF-8 where the server converts.
        keyword("replication", None, Only(&["true", "on", "yes", "1"])),
        keyword("client_encoding", Some("PGCLIENTENCODING"), Only(&["UTF8", "utf8", "UTF-8", "utf-8", "auto"])),
        // There is one host, and any server that can be backed up will do.
        keyword("target_session_attrs", Some("PGTARGETSESSIONATTRS"), Only(&["any"])),
        keyword("load_balance_hosts", Some("PGLOADBALANCEHOSTS"), Only(&["disable"])),
        // No GSSAPI, no client certificate, no compression, protocol 3.0.
        keyword("gssencmode", Some("PGGSSENCMODE"), Only(&["disable", "prefer"])),
        keyword("gssdelegation", Some("PGGSSDELEGATION"), Only(&["0"])),
        keyword("sslcertmode", Some("PGSSLCERTMODE"), Only(&["disable", "allow"])),
        keyword("sslcompression", Some("PGSSLCOMPRESSION"), Only(&["0"])),
        keyword("sslnegotiation", Some("PGSSLNEGOTIATION"), Only(&["postgres"])),
        keyword("sslsni", Some("PGSSLSNI"), Only(&["1"])),
        keyword("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION"), Only(&["TLSv1.3"])),
        keyword("min_protocol_version", Some("PGMINPROTOCOLVERSION"), Only(&["3.0"])),
        keyword("max_protocol_version", Some("PGMAXPROTOCOLVERSION"), Only(&["3.0", "latest"])),
        keyword("service", Some("PGSERVICE"), Refused),
        keyword("servicefile", None, Refused),
        keyword("sslcert", Some("PGSSLCERT"), Refused),
        keyword("sslkey", Some("PGSSLKEY"), Refused),
        keyword("sslpassword", None, Refused),
        keyword("sslcrl", Some("PGSSLCRL"), Refused),
        keyword("sslcrldir", Some("PGSSLCRLDIR"), Refused),
        keyword("sslkeylogfile", None, Refused),
        keyword("requirepeer", Some("PGREQUIREPEER"), Refused),
        keyword("krbsrvname", Some("PGKRBSRVNAME"), Refused),
        keyword("gsslib", Some("PGGSSLIB"), Refused),
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
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("command line"),
            Self::Conninfo => f.write_str("connection string"),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

/// The settings that have a value. An empty value is no value, as in libpq.
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
        if !settings.has("sslmode") && variable(old).is_some_and(|value| value.starts_with('1')) {
            settings.0.insert("sslmode", ("require".to_owned(), Origin::Variable(old)));
        }
        settings
    }

    /// Sets a keyword, over what has been set before.
    pub(super) fn set(&mut self, name: &str, value: String, origin: Origin) -> Result<(), ConninfoError> {
        let keyword = KEYWORDS.iter().find(|keyword| keyword.name == name);
        let keyword = keyword.ok_or_else(|| ConninfoError::UnknownKeyword(name.to_owned()))?;
        self.put(keyword, value, origin);
        Ok(())
    }

    fn put(&mut self, keyword: &Keyword, value: String, origin: Origin) {
        if value.is_empty() {
            // What is set to nothing explicitly is the default again, whatever the environment says.
            self.0.remove(keyword.name);
        } else {
            self.0.insert(keyword.name, (value, origin));
        }
    }

    /// Fails for the first setting that we could not honour.
    pub(super) fn check(&self) -> Result<(), ConninfoError> {
        for keyword in KEYWORDS {
            let Some((value, origin)) = self.0.get(keyword.name) else { continue };
            let ok = match keyword.support {
                Support::Used => true,
                Support::Only(values) => values.contains(&value.as_str()),
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

    /// Whether a keyword has a value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A keyword's value.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|(value, _)| value.as_str())
    }

    /// A keyword's value as `read` understands it; `wanted` says what it should have been.
    pub(super) fn read<T>(
        &self,
        name: &'static str,
        wanted: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ConninfoError> {
        let Some((value, origin)) = self.0.get(name) else { return Ok(None) };
        let wrong = || ConninfoError::Value { keyword: name, value: value.clone(), origin: origin.to_string(), wanted };
        read(value).map(Some).ok_or_else(wrong)
    }
}
