//! What to connect to and how: flags, connection string or URI, service file, environment,
//! defaults, in this order of precedence. The environment is asked through a function.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use thiserror::Error;

use super::encryption::Encryption;
use super::hosts::{self, Host};
use super::method::{ChannelBinding, RequireAuth};
use super::setting::{Origin, Settings};
use super::{Surroundings, pairs, service};

/// How long connecting and login may take when nothing else is said. libpq waits for ever; an
/// unattended backup must not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connection flags of the command line.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// A connection string or URI (`-d`).
    pub conninfo: Option<String>,
    /// `-h`
    pub host: Option<String>,
    /// `-p`
    pub port: Option<String>,
    /// `-U`
    pub user: Option<String>,
    /// A password that somebody typed.
    pub password: Option<SecretString>,
}

/// A connection string, service file, variable or flag cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConninfoError {
    /// A word with nothing after it.
    #[error("missing \"=\" after \"{0}\" in the connection string")]
    MissingEquals(String),
    /// A quote that is not closed.
    #[error("unterminated quoted value in the connection string")]
    Unterminated,
    /// Not a URI as PostgreSQL writes them.
    #[error("the connection URI has {0}")]
    Uri(&'static str),
    /// A keyword that PostgreSQL does not have.
    #[error("unknown connection keyword \"{0}\"")]
    UnknownKeyword(String),
    /// A keyword, or a value of it, that walhold cannot honour.
    #[error("walhold cannot honour {keyword} ({origin}){}", possible.as_ref().map(|values| format!(" (it takes: {values})")).unwrap_or_default())]
    NotHonoured {
        /// The keyword.
        keyword: &'static str,
        /// Where it was set.
        origin: String,
        /// The values it may have.
        possible: Option<String>,
    },
    /// A value that makes no sense.
    #[error("{keyword} \"{value}\" ({origin}) is not {wanted}")]
    Value {
        /// The keyword.
        keyword: &'static str,
        /// The value.
        value: String,
        /// Where it was set.
        origin: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// Lists that do not fit together.
    #[error("{given} values of {what} do not go with {hosts} host{}", if *hosts == 1 { "" } else { "s" })]
    Unpaired {
        /// The keyword.
        what: &'static str,
        /// How many values it has.
        given: usize,
        /// How many hosts there are.
        hosts: usize,
    },
    /// No service file has this service.
    #[error("no service file defines the service \"{0}\"")]
    NoService(String),
    /// A service file cannot be used.
    #[error("service file {path}: {reason}")]
    ServiceFile {
        /// Its path.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// No user was given, and the operating system has no name for ours.
    #[error("no user is given, and this process has no user name")]
    NoUser,
    /// `sslrootcert=system` with a mode that does not check the host's name.
    #[error("sslrootcert=system needs sslmode=verify-full")]
    WeakSystemRoots,
    /// `sslnegotiation=direct` with a mode that would do without TLS.
    #[error("sslnegotiation=direct needs sslmode=require, verify-ca or verify-full")]
    WeakDirect,
    /// Nothing is left to speak.
    #[error("ssl_min_protocol_version is above ssl_max_protocol_version")]
    NoTlsVersion,
}

/// TCP settings; `None` leaves the operating system's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TcpSettings {
    pub(super) keepalives: bool,
    pub(super) idle: Option<Duration>,
    pub(super) interval: Option<Duration>,
    pub(super) count: Option<u32>,
    /// Milliseconds.
    pub(super) user_timeout: Option<u32>,
}

/// `target_session_attrs`: which servers will do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

impl Target {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "any" => Self::Any,
            "read-write" => Self::ReadWrite,
            "read-only" => Self::ReadOnly,
            "primary" => Self::Primary,
            "standby" => Self::Standby,
            "prefer-standby" => Self::PreferStandby,
            _ => return None,
        })
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::PreferStandby => "prefer-standby",
        }
    }
}

/// Everything that is needed to connect. Made once; a receiver that reconnects uses it again.
#[derive(Clone, Debug)]
pub struct Conninfo {
    /// In the order in which they are tried; never empty.
    pub(super) hosts: Vec<Host>,
    pub(super) target: Target,
    /// `load_balance_hosts=random`: try hosts and addresses in any order.
    pub(super) shuffle: bool,
    pub(super) user: String,
    pub(super) database: Option<String>,
    pub(super) password: Option<SecretString>,
    pub(super) passfile: Option<PathBuf>,
    pub(super) application_name: Option<String>,
    pub(super) options: Option<String>,
    /// For each address; `None` waits for ever.
    pub(super) timeout: Option<Duration>,
    pub(super) tcp: TcpSettings,
    /// The user that a server at a Unix socket must run as.
    pub(super) require_peer: Option<String>,
    pub(super) encryption: Encryption,
    pub(super) channel_binding: ChannelBinding,
    pub(super) require_auth: RequireAuth,
    /// What flags, string, service and environment said, but for the password, in libpq's order.
    pub(super) said: Vec<(&'static str, String)>,
}

impl Conninfo {
    /// Puts together flags, connection string, service file, environment and defaults.
    ///
    /// # Errors
    /// When one of them cannot be read, is not known, or asks for what walhold does not have.
    pub fn new(flags: &Flags, surroundings: &Surroundings) -> Result<Self, ConninfoError> {
        let mut string = Settings::default();
        let mut after_password = false;
        for (keyword, value) in flags.conninfo.as_deref().map(pairs::pairs).transpose()?.unwrap_or_default() {
            // It may be part of a password that was not quoted.
            let hidden = |error| if after_password { ConninfoError::UnknownKeyword("...".to_owned()) } else { error };
            string.set(&keyword, value, Origin::Conninfo).map_err(hidden)?;
            after_password = keyword.contains("password");
        }
        let mut settings = Settings::from_environment(&*surroundings.variable);
        let source = |name| if string.is_set(name) { &string } else { &settings };
        let named = |name| source(name).get(name).map(str::to_owned);
        if let (Some(service), file) = (named("service"), named("servicefile")) {
            service::apply(&mut settings, &service, file.as_deref(), surroundings)?;
        }
        settings.put_over(string);
        for (keyword, value) in [("host", &flags.host), ("port", &flags.port), ("user", &flags.user)] {
            // An empty flag says nothing, as in PostgreSQL's own programs.
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                settings.set(keyword, value.clone(), Origin::Flag)?;
            }
        }
        settings.check()?;
        let mut conninfo = Self::from_settings(&settings, surroundings)?;
        conninfo.password = flags.password.clone().or(conninfo.password);
        Ok(conninfo)
    }

    fn from_settings(settings: &Settings, surroundings: &Surroundings) -> Result<Self, ConninfoError> {
        let in_home = |file: &str| surroundings.home.as_ref().map(|home| home.join(file));
        let owned = |name| settings.get(name).map(str::to_owned);
        Ok(Self {
            hosts: hosts::hosts(settings)?,
            target: settings
                .read(
                    "target_session_attrs",
                    "any, read-write, read-only, primary, standby or prefer-standby",
                    Target::parse,
                )?
                .unwrap_or(Target::Any),
            shuffle: settings.read("load_balance_hosts", "disable or random", shuffle)?.unwrap_or(false),
            user: owned("user").or_else(|| surroundings.user.clone()).ok_or(ConninfoError::NoUser)?,
            database: owned("dbname"),
            password: settings.get("password").map(SecretString::from),
            passfile: settings.get("passfile").map(PathBuf::from).or_else(|| in_home(".pgpass")),
            application_name: owned("application_name").or_else(|| owned("fallback_application_name")),
            options: owned("options"),
            timeout: timeout(settings)?,
            tcp: tcp(settings)?,
            require_peer: owned("requirepeer"),
            encryption: Encryption::from_settings(settings, in_home)?,
            channel_binding: settings
                .read("channel_binding", "disable, prefer or require", ChannelBinding::parse)?
                .unwrap_or(ChannelBinding::Prefer),
            require_auth: settings
                .read("require_auth", "a list of methods, all or none of them with \"!\"", RequireAuth::parse)?
                .unwrap_or(RequireAuth::Any),
            said: settings.all().filter(|(name, _)| !matches!(*name, "password" | "sslpassword")).collect(),
        })
    }

    /// The hosts and ports, or sockets, for messages.
    pub fn target(&self) -> String {
        let targets: Vec<_> = self.hosts.iter().map(Host::target).collect();
        targets.join(", ")
    }

    /// Who logs in.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database named, which a replication connection does not use.
    pub fn database(&self) -> Option<&str> {
        self.database.as_deref()
    }

    /// The application name that the user set; it decides who is a synchronous standby.
    pub fn application_name(&self) -> Option<&str> {
        self.application_name.as_deref()
    }

    /// The same with a password that was asked for.
    #[must_use]
    pub fn with_password(self, password: SecretString) -> Self {
        Self { password: Some(password), ..self }
    }
}

fn shuffle(text: &str) -> Option<bool> {
    match text {
        "disable" => Some(false),
        "random" => Some(true),
        _ => None,
    }
}

fn timeout(settings: &Settings) -> Result<Option<Duration>, ConninfoError> {
    let seconds = settings.read("connect_timeout", "a number of seconds", |text| text.trim().parse::<i32>().ok())?;
    Ok(match seconds.map(u64::try_from) {
        None => Some(CONNECT_TIMEOUT),
        // Zero or less waits for ever, and 1 is taken as 2, as in libpq.
        Some(Ok(0) | Err(_)) => None,
        Some(Ok(seconds)) => Some(Duration::from_secs(seconds.max(2))),
    })
}

fn tcp(settings: &Settings) -> Result<TcpSettings, ConninfoError> {
    let number = |name| {
        let value = settings.read(name, "a number", |text| text.trim().parse::<i32>().ok())?;
        Ok(value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0))
    };
    let seconds = |name| number(name).map(|value| value.map(|seconds| Duration::from_secs(seconds.into())));
    let keepalives = settings.read("keepalives", "0 or 1", |text| text.trim().parse::<i32>().ok())?;
    Ok(TcpSettings {
        keepalives: keepalives != Some(0),
        idle: seconds("keepalives_idle")?,
        interval: seconds("keepalives_interval")?,
        count: number("keepalives_count")?,
        user_timeout: number("tcp_user_timeout")?,
    })
}

#[cfg(test)]
mod tests;
