//! TLS to a server.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, CertificateError, ClientConfig, SupportedProtocolVersion};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client_cert::{Identity, Shown};
use super::encryption::{Encryption, SslMode, TlsVersion};
use super::verifier::verifier;

/// No connection with TLS as it was asked for.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The server has no TLS.
    #[error("the server does not have TLS, and sslmode demands it")]
    NotOffered,
    /// Something between us and the server added bytes before encryption began, hoping that they
    /// would be taken as encrypted (CVE-2021-23222 in libpq).
    #[error("unencrypted data came after the server's answer to the TLS request")]
    Injected,
    /// Neither yes nor no.
    #[error("the server answered the TLS request with {:?}", char::from(*.0))]
    Answer(u8),
    /// Who answered without being asked for TLS did not agree to speak PostgreSQL.
    #[error("the server did not confirm that it speaks PostgreSQL (ALPN), which sslnegotiation=direct needs")]
    NoAlpn,
    /// The certificate is not signed by a root that we trust, or is for another host.
    #[error("the server's certificate is not accepted: {0}")]
    Certificate(String),
    /// The handshake failed otherwise.
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
    /// The server wants a certificate of ours, or another one.
    #[error("the server does not accept {}: {alert}", if *.sent { "our certificate" } else { "a client without a certificate" })]
    ClientRefused {
        /// Whether we showed one.
        sent: bool,
        /// What it said.
        alert: String,
    },
    /// Our certificate or its key cannot be used.
    #[error("{}: {reason}", .path.display())]
    Client {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// There is nothing to verify the certificate with.
    #[error("root certificate file {} does not exist", .0.display())]
    NoRoots(PathBuf),
    /// The root certificates cannot be used.
    #[error("cannot read root certificates from {place}: {reason}")]
    Roots {
        /// The file, or the operating system's store.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The lists of revoked certificates cannot be used.
    #[error("cannot read revocation lists from {}: {reason}", .place.display())]
    Revocation {
        /// The file or folder.
        place: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Nothing is verified, so nothing can be found revoked.
    #[error("sslcrl and sslcrldir need a root certificate to verify the server's with")]
    RevocationWithoutRoots,
    /// The host cannot be the name in a certificate.
    #[error("host \"{0}\" cannot be verified: it is neither a DNS name nor an IP address")]
    HostName(String),
    /// The cryptographic library refuses the settings.
    #[error("cannot set up TLS: {0}")]
    Setup(#[from] rustls::Error),
}

impl TlsError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NotOffered => "set ssl=on on the server, or use another sslmode",
            Self::Injected => "if it is a PostgreSQL server, somebody is tampering with the connection",
            Self::Answer(_) => "is it a PostgreSQL server?",
            Self::NoAlpn => "PostgreSQL has direct TLS from version 17 on; leave sslnegotiation out for older ones",
            Self::Certificate(_) => {
                "check sslrootcert, and that the certificate names the host in its \
                 subjectAltName (its common name does not count)"
            }
            Self::ClientRefused { .. } => {
                "give a certificate that the server's ssl_ca_file has signed: sslcert and sslkey, \
                 or ~/.postgresql/postgresql.crt and .key"
            }
            Self::Client { hint, .. } => hint,
            Self::NoRoots(_) => {
                "provide the file, use the system's roots with sslrootcert=system, or use an sslmode \
                 that does not verify the certificate"
            }
            Self::RevocationWithoutRoots => "give sslrootcert too, or leave them out",
            Self::HostName(_) => "use sslmode=verify-ca, or give the host as the certificate names it",
            Self::Roots { .. } => "check sslrootcert: certificates in PEM form, that this user may read",
            Self::Revocation { .. } => {
                "check sslcrl, sslcrldir and ~/.postgresql/root.crl: revocation lists in PEM form, that this user may read"
            }
            Self::Handshake(_) | Self::Setup(_) => {
                "the server's log may say more; ssl_min_protocol_version and ssl_max_protocol_version limit what is spoken"
            }
        };
        Some(text.to_owned())
    }
}

/// What TLS needs to know before the handshake.
pub(super) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
    identity: Arc<Identity>,
    direct: bool,
}

/// An encrypted connection, and how we came to it.
pub(super) struct Encrypted {
    pub(super) stream: TlsStream<TcpStream>,
    /// Whether the server has seen a certificate of ours.
    pub(super) shown: Shown,
}

/// The protocol's name. From 17 on the server checks that it is meant; older ones do not look.
const ALPN: &[u8] = b"postgresql";

impl Tls {
    /// Prepares for a server at `host`, reading certificates.
    pub(super) fn prepare(encryption: &Encryption, host: &str, address: IpAddr) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let identity = Arc::new(Identity::load(&encryption.client, &provider)?);
        let verifier = verifier(encryption, &provider)?;
        let resolver: Arc<Identity> = Arc::clone(&identity);
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions(encryption))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(resolver);
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = encryption.sni;
        let name = match ServerName::try_from(host.to_owned()) {
            Ok(name) => name,
            Err(_) if encryption.mode == SslMode::VerifyFull => return Err(TlsError::HostName(host.to_owned())),
            Err(_) => ServerName::from(address),
        };
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name, identity, direct: encryption.direct })
    }

    /// Encrypts a connection on which the server has agreed to it, or is not asked.
    pub(super) async fn handshake(self, socket: TcpStream) -> Result<Encrypted, TlsError> {
        let stream = self.connector.connect(self.name, socket).await;
        let stream = stream.map_err(|error| handshake_error(error, self.identity.shown()))?;
        let confirmed = stream.get_ref().1.alpn_protocol() == Some(ALPN);
        if self.direct && !confirmed {
            return Err(TlsError::NoAlpn);
        }
        Ok(Encrypted { stream, shown: self.identity.shown() })
    }
}

fn versions(encryption: &Encryption) -> Vec<&'static SupportedProtocolVersion> {
    let all = [(TlsVersion::V13, &TLS13), (TlsVersion::V12, &TLS12)];
    let wanted = |version: &TlsVersion| (encryption.min..=encryption.max).contains(version);
    all.into_iter().filter(|(version, _)| wanted(version)).map(|(_, version)| version).collect()
}

fn handshake_error(error: io::Error, shown: Shown) -> TlsError {
    if let Some(refused) = refusal_of_client(&error, shown) {
        return refused;
    }
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(reason)) => TlsError::Certificate(certificate_reason(reason)),
        _ => TlsError::Handshake(error),
    }
}

/// The alert by which a server says that it does not like our certificate, or the lack of one. With
/// TLS 1.3 it comes after the handshake.
pub(super) fn refusal_of_client(error: &io::Error, shown: Shown) -> Option<TlsError> {
    let inner = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::AlertReceived(alert) = inner else { return None };
    let about_us = matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
    );
    about_us.then(|| TlsError::ClientRefused { sent: shown == Shown::Sent, alert: format!("{alert:?}") })
}

pub(super) fn certificate_reason(reason: &CertificateError) -> String {
    let text = match reason {
        CertificateError::UnknownIssuer => "it is signed by no root certificate that is trusted here",
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "it is not valid yet",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => "it is for another host",
        CertificateError::Revoked => "it is revoked",
        CertificateError::UnknownRevocationStatus => "no revocation list of its issuer is there",
        CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. } => {
            "its issuer's revocation list is out of date"
        }
        other => return other.to_string(),
    };
    text.to_owned()
}
