//! What the connection string says of TLS.

use std::path::PathBuf;

use secrecy::SecretString;

use super::ConninfoError;
use super::setting::Settings;

/// `sslmode`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => Self::Disable,
            "allow" => Self::Allow,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }
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

/// A file that was named, or one that is used if it is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum CertFile {
    Usual(Option<PathBuf>),
    Named(PathBuf),
}

/// `sslcrl` and `sslcrldir`: who must not be trusted any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Revocation {
    pub(super) file: CertFile,
    pub(super) directory: Option<PathBuf>,
}

impl Revocation {
    /// Whether somebody asked for it.
    pub(super) const fn is_named(&self) -> bool {
        matches!(self.file, CertFile::Named(_)) || self.directory.is_some()
    }
}

/// `sslcertmode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CertMode {
    Disable,
    Allow,
    /// The server must have asked for one and got it.
    Require,
}

/// Our own certificate.
#[derive(Clone, Debug)]
pub(super) struct ClientCert {
    pub(super) mode: CertMode,
    pub(super) certificate: CertFile,
    pub(super) key: CertFile,
    /// What opens an encrypted key.
    pub(super) password: Option<SecretString>,
}

/// The versions that we have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum TlsVersion {
    V12,
    V13,
}

/// Everything about TLS.
#[derive(Clone, Debug)]
pub(super) struct Encryption {
    pub(super) mode: SslMode,
    /// `sslnegotiation=direct`: no asking, TLS from the first byte.
    pub(super) direct: bool,
    pub(super) roots: RootCert,
    pub(super) revocation: Revocation,
    pub(super) client: ClientCert,
    pub(super) min: TlsVersion,
    pub(super) max: TlsVersion,
    /// Whether the host's name is sent in the clear, for proxies that need it.
    pub(super) sni: bool,
}

impl Encryption {
    pub(super) fn from_settings(
        settings: &Settings,
        in_home: impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<Self, ConninfoError> {
        let usual = |file: &str| in_home(&format!(".postgresql/{file}"));
        let place = |name, file: &str| match settings.get(name) {
            Some(path) => CertFile::Named(path.into()),
            None => CertFile::Usual(usual(file)),
        };
        let (mode, roots) = mode_and_roots(settings, usual("root.crt"))?;
        let (min, max) = versions(settings)?;
        let directory = settings.get("sslcrldir").map(PathBuf::from);
        let file = match (place("sslcrl", "root.crl"), &directory) {
            (CertFile::Usual(_), Some(_)) => CertFile::Usual(None),
            (file, _) => file,
        };
        Ok(Self {
            mode,
            direct: direct(settings, mode)?,
            roots,
            revocation: Revocation { file, directory },
            client: ClientCert {
                mode: settings.read("sslcertmode", "disable, allow or require", cert_mode)?.unwrap_or(CertMode::Allow),
                certificate: place("sslcert", "postgresql.crt"),
                key: place("sslkey", "postgresql.key"),
                password: settings.get("sslpassword").map(SecretString::from),
            },
            min,
            max,
            sni: settings.read("sslsni", "0 or 1", flag)?.unwrap_or(true),
        })
    }
}

/// `sslmode` and `sslrootcert`, which depend on each other (`fe-connect.c`).
fn mode_and_roots(settings: &Settings, usual: Option<PathBuf>) -> Result<(SslMode, RootCert), ConninfoError> {
    let root = match settings.get("sslrootcert") {
        None => RootCert::Default(usual),
        Some("system") => RootCert::System,
        Some(path) => RootCert::File(path.into()),
    };
    let wanted = "disable, allow, prefer, require, verify-ca or verify-full";
    match (settings.read("sslmode", wanted, SslMode::parse)?, &root) {
        (None, RootCert::System) => Ok((SslMode::VerifyFull, root)),
        (Some(mode), RootCert::System) if mode != SslMode::VerifyFull => Err(ConninfoError::WeakSystemRoots),
        (mode, _) => Ok((mode.unwrap_or(SslMode::Prefer), root)),
    }
}

/// Who does not ask cannot be told that there is no TLS, so it must not be a matter of choice.
fn direct(settings: &Settings, mode: SslMode) -> Result<bool, ConninfoError> {
    let direct = settings.read("sslnegotiation", "postgres or direct", |text| match text {
        "postgres" => Some(false),
        "direct" => Some(true),
        _ => None,
    })?;
    match direct {
        Some(true) if mode < SslMode::Require => Err(ConninfoError::WeakDirect),
        direct => Ok(direct.unwrap_or(false)),
    }
}

fn versions(settings: &Settings) -> Result<(TlsVersion, TlsVersion), ConninfoError> {
    let min = settings.read("ssl_min_protocol_version", "TLSv1.2 or TLSv1.3", |text| match text {
        // Older versions would be accepted, but we never speak them.
        "TLSv1" | "TLSv1.1" | "TLSv1.2" => Some(TlsVersion::V12),
        "TLSv1.3" => Some(TlsVersion::V13),
        _ => None,
    })?;
    let max = settings.read("ssl_max_protocol_version", "TLSv1.2 or TLSv1.3", |text| match text {
        "TLSv1.2" => Some(TlsVersion::V12),
        "TLSv1.3" => Some(TlsVersion::V13),
        _ => None,
    })?;
    let (min, max) = (min.unwrap_or(TlsVersion::V12), max.unwrap_or(TlsVersion::V13));
    if min > max { Err(ConninfoError::NoTlsVersion) } else { Ok((min, max)) }
}

fn cert_mode(text: &str) -> Option<CertMode> {
    Some(match text {
        "disable" => CertMode::Disable,
        "allow" => CertMode::Allow,
        "require" => CertMode::Require,
        _ => return None,
    })
}

fn flag(text: &str) -> Option<bool> {
    match text {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}
