//! What to connect to and how: flags, connection string or URI, environment, defaults, in this
//! order of precedence. Pure: the environment is asked through a function.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use thiserror::Error;

use super::setting::{Origin, Settings};

/// Where servers put their socket: Debian and Red Hat, then PostgreSQL's own default.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

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

/// Looks up an environment variable.
pub type Variable = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What a connection may take from the process it is made in.
pub struct Surroundings {
    /// An environment variable's value.
    pub variable: Variable,
    /// The operating system's name for the user.
    pub user: Option<String>,
    /// The user's home directory.
    pub home: Option<PathBuf>,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        let account = Account::of_this_user();
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        Self {
            // What is not UTF-8 is made an odd value, to be refused, rather than none.
            variable: Box::new(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())),
            user: account.as_ref().map(|account| account.name.clone()),
            home: home.or_else(|| account.map(|account| account.home)),
        }
    }
}

/// A line of `/etc/passwd`.
struct Account {
    name: String,
    home: PathBuf,
}

impl Account {
    fn of_this_user() -> Option<Self> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let accounts = std::fs::read_to_string("/etc/passwd").ok()?;
        accounts.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            let home = (fields.nth(1)? == uid).then(|| fields.nth(2)).flatten()?;
            Some(Self { name, home: home.into() })
        })
    }
}

/// A connection string, variable or flag cannot be used.
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
    /// More than one host.
    #[error("walhold connects to one host; several are named: {0}")]
    SeveralHosts(String),
    /// No user was given, and the operating system has no name for ours.
    #[error("no user is given, and this process has no user name")]
    NoUser,
    /// `sslrootcert=system` with a mode that does not check the host's name.
    #[error("sslrootcert=system needs sslmode=verify-full")]
    WeakSystemRoots,
}

/// Where the server is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Endpoint {
    /// The first of these sockets that exists.
    Unix(Vec<PathBuf>),
    Tcp {
        /// A name or an address; what a certificate must be for.
        host: String,
        /// The address to use in place of looking up the name.
        address: Option<IpAddr>,
        port: u16,
    },
}

/// `sslmode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// `sslrootcert`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum RootCert {
    /// This file if it exists.
    Default(Option<PathBuf>),
    /// This file.
    File(PathBuf),
    /// What the operating system trusts.
    System,
}

/// `ssl_min_protocol_version`, as far as we can tell versions apart: we have 1.2 and 1.3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MinTls {
    V12,
    V13,
}

/// `channel_binding`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

/// A way to prove who one is, as `require_auth` names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Method {
    None,
    Password,
    Md5,
    Scram,
    /// One that we do not have.
    Other(&'static str),
}

impl Method {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "none" => Self::None,
            "password" => Self::Password,
            "md5" => Self::Md5,
            "scram-sha-256" => Self::Scram,
            "gss" => Self::Other("gss"),
            "sspi" => Self::Other("sspi"),
            "oauth" => Self::Other("oauth"),
            _ => return None,
        })
    }
}

/// `require_auth`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum RequireAuth {
    Any,
    Only(Vec<Method>),
    AllBut(Vec<Method>),
}

impl RequireAuth {
    fn parse(text: &str) -> Option<Self> {
        let items: Vec<_> = text.split(',').map(str::trim).collect();
        let negated = items.iter().all(|item| item.starts_with('!'));
        let methods = items.iter().map(|item| Method::parse(if negated { item.get(1..)? } else { item }));
        let methods: Vec<_> = methods.collect::<Option<_>>()?;
        let twice = methods.iter().enumerate().any(|(at, method)| methods.iter().skip(at + 1).any(|m| m == method));
        (!twice).then_some(if negated { Self::AllBut(methods) } else { Self::Only(methods) })
    }

    pub(super) fn allows(&self, method: Method) -> bool {
        match self {
            Self::Any => true,
            Self::Only(methods) => methods.contains(&method),
            Self::AllBut(methods) => !methods.contains(&method),
        }
    }
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

/// Everything that is needed to connect. Made once; a receiver that reconnects uses it again.
#[derive(Clone, Debug)]
pub struct Conninfo {
    pub(super) endpoint: Endpoint,
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) database: Option<String>,
    pub(super) password: Option<SecretString>,
    pub(super) passfile: Option<PathBuf>,
    pub(super) application_name: Option<String>,
    pub(super) options: Option<String>,
    /// `None` waits for ever.
    pub(super) timeout: Option<Duration>,
    pub(super) tcp: TcpSettings,
    pub(super) ssl_mode: SslMode,
    pub(super) root_cert: RootCert,
    pub(super) min_tls: MinTls,
    pub(super) channel_binding: ChannelBinding,
    pub(super) require_auth: RequireAuth,
}

impl Conninfo {
    /// Puts together flags, connection string, environment and defaults.
    ///
    /// # Errors
    /// When one of them cannot be read, is not known, or asks for what walhold does not have.
    pub fn new(flags: &Flags, surroundings: &Surroundings) -> Result<Self, ConninfoError> {
        let mut settings = Settings::from_environment(&*surroundings.variable);
        for (keyword, value) in flags.conninfo.as_deref().map(pairs).transpose()?.unwrap_or_default() {
            settings.set(&keyword, value, Origin::Conninfo)?;
        }
        for (keyword, value) in [("host", &flags.host), ("port", &flags.port), ("user", &flags.user)] {
            if let Some(value) = value {
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
        let port =
            settings.read("port", "a port between 1 and 65535", |text| text.parse().ok().filter(|port| *port > 0))?;
        let port = port.unwrap_or(5432);
        let owned = |name| settings.get(name).map(str::to_owned);
        let (ssl_mode, root_cert) = tls(settings, in_home(".postgresql/root.crt"))?;
        Ok(Self {
            endpoint: endpoint(settings, port)?,
            port,
            user: owned("user").or_else(|| surroundings.user.clone()).ok_or(ConninfoError::NoUser)?,
            database: owned("dbname"),
            password: settings.get("password").map(SecretString::from),
            passfile: settings.get("passfile").map(PathBuf::from).or_else(|| in_home(".pgpass")),
            application_name: owned("application_name").or_else(|| owned("fallback_application_name")),
            options: owned("options"),
            timeout: timeout(settings)?,
            tcp: tcp(settings)?,
            ssl_mode,
            root_cert,
            min_tls: settings.read("ssl_min_protocol_version", "TLSv1.2 or TLSv1.3", min_tls)?.unwrap_or(MinTls::V12),
            channel_binding: settings
                .read("channel_binding", "disable, prefer or require", channel_binding)?
                .unwrap_or(ChannelBinding::Prefer),
            require_auth: settings
                .read("require_auth", "a list of methods, all or none of them with \"!\"", RequireAuth::parse)?
                .unwrap_or(RequireAuth::Any),
        })
    }

    /// The host and port, or the socket, for messages.
    pub fn target(&self) -> String {
        match &self.endpoint {
            Endpoint::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Endpoint::Tcp { host, port, .. } => format!("{host}:{port}"),
            Endpoint::Unix(sockets) => {
                let names: Vec<_> = sockets.iter().map(|path| path.display().to_string()).collect();
                names.join(" or ")
            }
        }
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

    /// The host as a password file names it.
    pub(super) fn passfile_host(&self) -> String {
        match &self.endpoint {
            Endpoint::Tcp { host, .. } => host.clone(),
            Endpoint::Unix(sockets) => {
                let directory = sockets.first().and_then(|path| path.parent());
                let directory = directory.map(|path| path.display().to_string()).unwrap_or_default();
                let usual = SOCKET_DIRECTORIES.contains(&directory.as_str());
                if usual { "localhost".to_owned() } else { directory }
            }
        }
    }
}

fn endpoint(settings: &Settings, port: u16) -> Result<Endpoint, ConninfoError> {
    for name in ["host", "hostaddr"] {
        if let Some(value) = settings.get(name).filter(|value| value.contains(',')) {
            return Err(ConninfoError::SeveralHosts(value.to_owned()));
        }
    }
    let address: Option<IpAddr> = settings.read("hostaddr", "an IP address", |text| text.parse().ok())?;
    let socket = |directory: &str| Path::new(directory).join(format!(".s.PGSQL.{port}"));
    match (settings.get("host"), address) {
        (Some(host), None) if host.starts_with('/') => Ok(Endpoint::Unix(vec![socket(host)])),
        (Some(host), None) if host.starts_with('@') => {
            Err(ConninfoError::NotHonoured { keyword: "host", origin: "abstract socket name".into(), possible: None })
        }
        (Some(host), address) => Ok(Endpoint::Tcp { host: host.to_owned(), address, port }),
        (None, Some(address)) => Ok(Endpoint::Tcp { host: address.to_string(), address: Some(address), port }),
        (None, None) => Ok(Endpoint::Unix(SOCKET_DIRECTORIES.map(socket).to_vec())),
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

/// `sslmode` and `sslrootcert`, which depend on each other (`fe-connect.c`).
fn tls(settings: &Settings, default_root: Option<PathBuf>) -> Result<(SslMode, RootCert), ConninfoError> {
    let root = match settings.get("sslrootcert") {
        None => RootCert::Default(default_root),
        Some("system") => RootCert::System,
        Some(path) => RootCert::File(path.into()),
    };
    let wanted = "disable, allow, prefer, require, verify-ca or verify-full";
    let mode = settings.read("sslmode", wanted, |text| {
        Some(match text {
            "disable" => SslMode::Disable,
            "allow" => SslMode::Allow,
            "prefer" => SslMode::Prefer,
            "require" => SslMode::Require,
            "verify-ca" => SslMode::VerifyCa,
            "verify-full" => SslMode::VerifyFull,
            _ => return None,
        })
    })?;
    match (mode, &root) {
        (None, RootCert::System) => Ok((SslMode::VerifyFull, root)),
        (Some(mode), RootCert::System) if mode != SslMode::VerifyFull => Err(ConninfoError::WeakSystemRoots),
        (mode, _) => Ok((mode.unwrap_or(SslMode::Prefer), root)),
    }
}

fn min_tls(text: &str) -> Option<MinTls> {
    match text {
        // Older versions would be accepted, but we never speak them.
        "TLSv1" | "TLSv1.1" | "TLSv1.2" => Some(MinTls::V12),
        "TLSv1.3" => Some(MinTls::V13),
        _ => None,
    }
}

fn channel_binding(text: &str) -> Option<ChannelBinding> {
    match text {
        "disable" => Some(ChannelBinding::Disable),
        "prefer" => Some(ChannelBinding::Prefer),
        "require" => Some(ChannelBinding::Require),
        _ => None,
    }
}

/// Keywords and values of a connection string in either form, in order.
fn pairs(text: &str) -> Result<Vec<(String, String)>, ConninfoError> {
    let after_scheme = ["postgresql://", "postgres://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    match after_scheme {
        Some(rest) => uri_pairs(rest),
        None => keyword_pairs(text),
    }
}

/// `key=value key = 'it\'s quoted'`: blanks around the sign are allowed, a backslash takes the
/// meaning from the character after it, in quotes and outside.
fn keyword_pairs(text: &str) -> Result<Vec<(String, String)>, ConninfoError> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace()).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let missing = || ConninfoError::MissingEquals(name.to_owned());
        let after = after.trim_start().strip_prefix('=').ok_or_else(missing)?;
        let (value, after) = value(after.trim_start())?;
        pairs.push((name.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(pairs)
}

/// The value at the beginning of `text`, and what comes after it.
fn value(text: &str) -> Result<(String, &str), ConninfoError> {
    let (quoted, body) = match text.strip_prefix('\'') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut out = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => out.extend(chars.next().map(|(_, c)| c)),
            '\'' if quoted => return Ok((out, body.get(at + 1..).unwrap_or_default())),
            c if !quoted && c.is_ascii_whitespace() => return Ok((out, body.get(at..).unwrap_or_default())),
            c => out.push(c),
        }
    }
    if quoted { Err(ConninfoError::Unterminated) } else { Ok((out, "")) }
}

/// `[user[:password]@][host][:port][/dbname][?keyword=value&...]`, each part percent-encoded.
fn uri_pairs(text: &str) -> Result<Vec<(String, String)>, ConninfoError> {
    let (rest, query) = split_at_first(text, '?');
    let authority_end = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    let mut pairs = Vec::new();
    let mut put = |keyword: &str, encoded: &str| {
        if !encoded.is_empty() {
            pairs.push((keyword.to_owned(), decoded(encoded)?));
        }
        Ok(())
    };
    let host_port = match authority.rsplit_once('@') {
        Some((login, host_port)) => {
            let (user, password) = split_at_first(login, ':');
            put("user", user)?;
            put("password", password)?;
            host_port
        }
        None => authority,
    };
    let (host, port) = host_and_port(host_port)?;
    put("host", host)?;
    put("port", port)?;
    put("dbname", path.strip_prefix('/').unwrap_or_default())?;
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        pairs.push(uri_parameter(parameter)?);
    }
    Ok(pairs)
}

fn uri_parameter(parameter: &str) -> Result<(String, String), ConninfoError> {
    let (keyword, value) = parameter.split_once('=').ok_or(ConninfoError::Uri("a parameter without \"=\""))?;
    if value.contains('=') {
        return Err(ConninfoError::Uri("a parameter with more than one \"=\""));
    }
    match (decoded(keyword)?.as_str(), decoded(value)?) {
        // As JDBC writes it.
        ("ssl", value) if value == "true" => Ok(("sslmode".to_owned(), "require".to_owned())),
        (keyword, value) => Ok((keyword.to_owned(), value)),
    }
}

/// Host and port, the host without the brackets of an IPv6 address.
fn host_and_port(text: &str) -> Result<(&str, &str), ConninfoError> {
    if text.contains(',') {
        return Err(ConninfoError::SeveralHosts(text.to_owned()));
    }
    let Some(bracketed) = text.strip_prefix('[') else { return Ok(split_at_first(text, ':')) };
    let unclosed = ConninfoError::Uri("an IPv6 address without its closing bracket");
    let (host, after) = bracketed.split_once(']').ok_or(unclosed)?;
    match after.strip_prefix(':') {
        Some(port) if !host.is_empty() => Ok((host, port)),
        None if !host.is_empty() && after.is_empty() => Ok((host, "")),
        _ => Err(ConninfoError::Uri("an IPv6 address that is empty or followed by something else than a port")),
    }
}

fn split_at_first(text: &str, separator: char) -> (&str, &str) {
    text.split_once(separator).unwrap_or((text, ""))
}

fn decoded(text: &str) -> Result<String, ConninfoError> {
    let wrong = ConninfoError::Uri("a percent sign without two hexadecimal digits, or %00");
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
        let value = digit().zip(digit()).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        out.push(value.filter(|value| *value != 0).ok_or_else(|| wrong.clone())?);
    }
    String::from_utf8(out).map_err(|_| ConninfoError::Uri("text that is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn surroundings(variables: &'static [(&'static str, &'static str)]) -> Surroundings {
        let value =
            move |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Surroundings { variable: Box::new(value), user: Some("me".into()), home: Some("/home/me".into()) }
    }

    fn flags(conninfo: &str) -> Flags {
        Flags { conninfo: Some(conninfo.to_owned()), ..Flags::default() }
    }

    fn conninfo(text: &str) -> Result<Conninfo, ConninfoError> {
        Conninfo::new(&flags(text), &surroundings(&[]))
    }

    fn tcp_endpoint(host: &str, port: u16) -> Endpoint {
        Endpoint::Tcp { host: host.into(), address: None, port }
    }

    #[test]
    fn strings_are_read_by_libpqs_quoting_rules() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        for (text, expected) in [
            ("", vec![]),
            ("  ", vec![]),
            ("host=a port=1", vec![pair("host", "a"), pair("port", "1")]),
            ("host = a\tport\n=\n1", vec![pair("host", "a"), pair("port", "1")]),
            ("host=", vec![pair("host", "")]),
            ("host='' user='a b'", vec![pair("host", ""), pair("user", "a b")]),
            (r"password='it\'s \\ =' user=x\ y", vec![pair("password", r"it's \ ="), pair("user", "x y")]),
            ("user=a'b", vec![pair("user", "a'b")]),
            ("user='a'port=1", vec![pair("user", "a"), pair("port", "1")]),
            (r"user=a\", vec![pair("user", "a")]),
        ] {
            assert_eq!(pairs(text).unwrap(), expected, "{text:?}");
        }
        for text in ["user='a", r"user='a\'", "user='"] {
            assert_eq!(pairs(text), Err(ConninfoError::Unterminated), "{text:?}");
        }
        for (text, word) in [("mydb", "mydb"), ("host a", "host"), ("host=a port", "port")] {
            assert_eq!(pairs(text), Err(ConninfoError::MissingEquals(word.into())), "{text:?}");
        }
    }

    #[test]
    fn uris_are_taken_apart() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        for (text, expected) in [
            ("postgresql://", vec![]),
            ("postgres://h", vec![pair("host", "h")]),
            ("postgresql://h:1/db", vec![pair("host", "h"), pair("port", "1"), pair("dbname", "db")]),
            ("postgresql://u@h", vec![pair("user", "u"), pair("host", "h")]),
            ("postgresql://u:p%40%3A@h", vec![pair("user", "u"), pair("password", "p@:"), pair("host", "h")]),
            ("postgresql://u:p@w@h", vec![pair("user", "u"), pair("password", "p@w"), pair("host", "h")]),
            ("postgresql://[::1]:2/", vec![pair("host", "::1"), pair("port", "2")]),
            ("postgresql://[fe80::1]", vec![pair("host", "fe80::1")]),
            ("postgresql://%2Frun%2Fpg", vec![pair("host", "/run/pg")]),
            (
                "postgresql:///db?host=/run&sslmode=require",
                vec![pair("dbname", "db"), pair("host", "/run"), pair("sslmode", "require")],
            ),
            (
                "postgresql://h?ssl=true&user=%C3%A4",
                vec![pair("host", "h"), pair("sslmode", "require"), pair("user", "ä")],
            ),
        ] {
            assert_eq!(pairs(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn uris_that_are_nearly_right_are_refused() {
        for text in [
            "postgresql://[::1",
            "postgresql://[]:1",
            "postgresql://[::1]x",
            "postgresql://h%2",
            "postgresql://h%zz",
            "postgresql://h%+1",
            "postgresql://h%00",
            "postgresql://%FF",
            "postgresql://h?user",
            "postgresql://h?user=a=b",
        ] {
            assert!(matches!(pairs(text), Err(ConninfoError::Uri(_))), "{text}: {:?}", pairs(text));
        }
    }

    #[test]
    fn several_hosts_are_refused() {
        for text in ["postgresql://a,b", "postgresql://a:1,b:2/db", "host=a,b", "hostaddr=1.2.3.4,5.6.7.8"] {
            assert!(matches!(conninfo(text), Err(ConninfoError::SeveralHosts(_))), "{text}");
        }
    }

    #[test]
    fn flags_come_before_string_before_environment_before_defaults() {
        let environment =
            surroundings(&[("PGHOST", "env"), ("PGPORT", "1"), ("PGUSER", "envuser"), ("PGAPPNAME", "app")]);
        let all = Flags { host: Some("flag".into()), ..flags("host=string port=2") };
        let made = Conninfo::new(&all, &environment).unwrap();
        assert_eq!(made.endpoint, tcp_endpoint("flag", 2));
        assert_eq!((made.user(), made.application_name()), ("envuser", Some("app")));

        let made = conninfo("").unwrap();
        let sockets = ["/var/run/postgresql/.s.PGSQL.5432", "/tmp/.s.PGSQL.5432"].map(PathBuf::from);
        assert_eq!(made.endpoint, Endpoint::Unix(sockets.to_vec()));
        assert_eq!((made.user(), made.passfile_host().as_str()), ("me", "localhost"));
        assert_eq!(made.passfile, Some("/home/me/.pgpass".into()));
        assert_eq!(made.timeout, Some(CONNECT_TIMEOUT));
        assert_eq!((made.ssl_mode, made.channel_binding), (SslMode::Prefer, ChannelBinding::Prefer));
        assert_eq!(made.root_cert, RootCert::Default(Some("/home/me/.postgresql/root.crt".into())));
    }

    #[test]
    fn an_empty_value_is_the_default() {
        let environment = surroundings(&[("PGHOST", "env"), ("PGPASSWORD", "")]);
        let made = Conninfo::new(&flags("host='' user=''"), &environment).unwrap();
        assert!(matches!(made.endpoint, Endpoint::Unix(_)));
        assert!(made.password.is_none());
        assert_eq!(made.user(), "me");
    }

    #[test]
    fn hosts_addresses_and_sockets() {
        let address = "10.0.0.1".parse().unwrap();
        for (text, endpoint, target, passfile_host) in [
            ("host=db", tcp_endpoint("db", 5432), "db:5432", "db"),
            ("host=::1 port=6000", tcp_endpoint("::1", 6000), "[::1]:6000", "::1"),
            ("host=/run/pg port=7", Endpoint::Unix(vec!["/run/pg/.s.PGSQL.7".into()]), "/run/pg/.s.PGSQL.7", "/run/pg"),
            ("host=/tmp", Endpoint::Unix(vec!["/tmp/.s.PGSQL.5432".into()]), "/tmp/.s.PGSQL.5432", "localhost"),
            (
                "host=db hostaddr=10.0.0.1",
                Endpoint::Tcp { host: "db".into(), address: Some(address), port: 5432 },
                "db:5432",
                "db",
            ),
            (
                "hostaddr=10.0.0.1",
                Endpoint::Tcp { host: "10.0.0.1".into(), address: Some(address), port: 5432 },
                "10.0.0.1:5432",
                "10.0.0.1",
            ),
        ] {
            let made = conninfo(text).unwrap();
            assert_eq!(made.endpoint, endpoint, "{text}");
            assert_eq!((made.target().as_str(), made.passfile_host().as_str()), (target, passfile_host), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        for (text, keyword) in [
            ("service=prod", "service"),
            ("sslcert=x", "sslcert"),
            ("gssencmode=require", "gssencmode"),
            ("target_session_attrs=read-write", "target_session_attrs"),
            ("replication=database", "replication"),
            ("client_encoding=LATIN1", "client_encoding"),
            ("requirepeer=postgres", "requirepeer"),
            ("host=@abstract", "host"),
        ] {
            let Err(ConninfoError::NotHonoured { keyword: named, .. }) = conninfo(text) else { panic!("{text}") };
            assert_eq!(named, keyword);
        }
        for text in ["gssencmode=prefer replication=true target_session_attrs=any client_encoding=UTF8", "dbname=x"] {
            assert!(conninfo(text).is_ok(), "{text}");
        }
        assert_eq!(conninfo("sslmod=require").unwrap_err(), ConninfoError::UnknownKeyword("sslmod".into()));
        let error = Conninfo::new(&flags(""), &surroundings(&[("PGSERVICE", "prod")])).unwrap_err();
        assert_eq!(error.to_string(), "walhold cannot honour service (PGSERVICE)");
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        for (text, keyword) in [
            ("port=0", "port"),
            ("port=65536", "port"),
            ("port=-1", "port"),
            ("hostaddr=localhost", "hostaddr"),
            ("sslmode=verify", "sslmode"),
            ("channel_binding=on", "channel_binding"),
            ("connect_timeout=10s", "connect_timeout"),
            ("keepalives_idle=x", "keepalives_idle"),
            ("keepalives=yes", "keepalives"),
            ("require_auth=scram", "require_auth"),
            ("require_auth=md5,!none", "require_auth"),
            ("require_auth=md5,md5", "require_auth"),
            ("ssl_min_protocol_version=SSLv3", "ssl_min_protocol_version"),
        ] {
            let Err(ConninfoError::Value { keyword: named, .. }) = conninfo(text) else { panic!("{text}") };
            assert_eq!(named, keyword, "{text}");
        }
    }

    #[test]
    fn time_limits_are_libpqs() {
        for (text, seconds) in [("1", Some(2)), ("30", Some(30)), ("0", None), ("-1", None)] {
            let made = conninfo(&format!("connect_timeout={text}")).unwrap();
            assert_eq!(made.timeout, seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn require_auth_allows_what_it_lists() {
        for (text, allowed, refused) in [
            ("scram-sha-256", vec![Method::Scram], vec![Method::None, Method::Md5, Method::Password]),
            ("!password, !md5", vec![Method::Scram, Method::None], vec![Method::Password, Method::Md5]),
            ("none,gss", vec![Method::None, Method::Other("gss")], vec![Method::Scram]),
        ] {
            let made = conninfo(&format!("require_auth='{text}'")).unwrap();
            assert!(allowed.iter().all(|method| made.require_auth.allows(*method)), "{text}");
            assert!(refused.iter().all(|method| !made.require_auth.allows(*method)), "{text}");
        }
    }

    #[test]
    fn system_roots_verify_the_host() {
        let made = conninfo("sslrootcert=system").unwrap();
        assert_eq!((made.ssl_mode, made.root_cert), (SslMode::VerifyFull, RootCert::System));
        assert_eq!(conninfo("sslrootcert=system sslmode=verify-ca").unwrap_err(), ConninfoError::WeakSystemRoots);
        assert_eq!(conninfo("sslrootcert=/x sslmode=require").unwrap().root_cert, RootCert::File("/x".into()));
        let made = Conninfo::new(&flags(""), &surroundings(&[("PGREQUIRESSL", "1")])).unwrap();
        assert_eq!(made.ssl_mode, SslMode::Require);
    }

    #[test]
    fn a_password_is_not_shown() {
        let made = conninfo("postgresql://u:hush@h").unwrap();
        assert_eq!(made.password.as_ref().unwrap().expose_secret(), "hush");
        assert!(!format!("{made:?}").contains("hush"));
    }
}
