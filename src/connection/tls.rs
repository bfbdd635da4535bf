//! TLS to a server: what is verified under which `sslmode`, and what a login is bound to.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_cert::Certificate;
use x509_cert::der::asn1::{AnyRef, ContextSpecific};
use x509_cert::der::{Decode, Encode, Reader, SliceReader, TagNumber};
use x509_cert::spki::{AlgorithmIdentifierOwned, AlgorithmIdentifierRef, ObjectIdentifier};

use super::conninfo::{Conninfo, MinTls, RootCert, SslMode};

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
    /// The certificate is not signed by a root that we trust, or is for another host.
    #[error("the server's certificate is not accepted: {0}")]
    Certificate(String),
    /// The handshake failed otherwise.
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
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
        Some(match self {
            Self::NotOffered => "set ssl=on on the server, or use another sslmode".to_owned(),
            Self::Injected => "if it is a PostgreSQL server, somebody is tampering with the connection".to_owned(),
            Self::Answer(_) => "is it a PostgreSQL server?".to_owned(),
            Self::Certificate(_) => "check sslrootcert, and that the certificate names the host in its \
                                     subjectAltName (its common name does not count)"
                .to_owned(),
            Self::NoRoots(_) => "provide the file, use the system's roots with sslrootcert=system, or use an sslmode \
                                 that does not verify the certificate"
                .to_owned(),
            Self::HostName(_) => "use sslmode=verify-ca, or give the host as the certificate names it".to_owned(),
            Self::Handshake(_) | Self::Roots { .. } | Self::Setup(_) => return None,
        })
    }
}

/// What TLS needs to know before the handshake.
pub(super) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    /// Prepares for a server at `host`, reading root certificates.
    pub(super) fn prepare(conninfo: &Conninfo, host: &str, address: IpAddr) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = verifier(conninfo, &provider)?;
        let versions: &[_] = match conninfo.min_tls {
            MinTls::V12 => &[&TLS13, &TLS12],
            MinTls::V13 => &[&TLS13],
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        // From 17 on the server checks that it is meant; older ones do not look.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        let name = match ServerName::try_from(host.to_owned()) {
            Ok(name) => name,
            Err(_) if conninfo.ssl_mode == SslMode::VerifyFull => return Err(TlsError::HostName(host.to_owned())),
            Err(_) => ServerName::from(address),
        };
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    /// Encrypts a connection on which the server has agreed to it.
    pub(super) async fn handshake(self, socket: TcpStream) -> Result<TlsStream<TcpStream>, TlsError> {
        self.connector.connect(self.name, socket).await.map_err(handshake_error)
    }
}

fn handshake_error(error: io::Error) -> TlsError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(reason)) => TlsError::Certificate(certificate_reason(reason)),
        _ => TlsError::Handshake(error),
    }
}

fn certificate_reason(reason: &CertificateError) -> String {
    match reason {
        CertificateError::UnknownIssuer => "it is signed by no root certificate that is trusted here".to_owned(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "it is not valid yet".to_owned(),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is for another host".to_owned()
        }
        other => other.to_string(),
    }
}

/// What is verified follows from the mode, and from whether there is a root certificate: with one,
/// libpq verifies the chain in every mode that uses TLS at all.
fn verifier(conninfo: &Conninfo, provider: &CryptoProvider) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let algorithms = provider.signature_verification_algorithms;
    let must_verify = matches!(conninfo.ssl_mode, SslMode::VerifyCa | SslMode::VerifyFull);
    let roots = match &conninfo.root_cert {
        RootCert::System => Some(system_roots()?),
        RootCert::File(path) if path.exists() => Some(file_roots(path)?),
        RootCert::Default(Some(path)) if path.exists() => Some(file_roots(path)?),
        RootCert::File(path) => return Err(TlsError::NoRoots(path.clone())),
        RootCert::Default(path) if must_verify => {
            let path = path.clone().unwrap_or_else(|| "~/.postgresql/root.crt".into());
            return Err(TlsError::NoRoots(path));
        }
        RootCert::Default(_) => None,
    };
    let Some(roots) = roots else { return Ok(Arc::new(Unverified(algorithms))) };
    let chain = ChainOnly { store: store(&roots)?, roots, algorithms };
    Ok(match conninfo.ssl_mode {
        SslMode::VerifyFull => Arc::new(ChainAndName(chain)),
        _ => Arc::new(chain),
    })
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let reason = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
        return Err(TlsError::Roots { place: "the operating system".to_owned(), reason });
    }
    Ok(found.certs)
}

fn file_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |reason: String| TlsError::Roots { place: path.display().to_string(), reason };
    let pem = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let roots: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|error| wrong(error.to_string()))?;
    if roots.is_empty() { Err(wrong("it holds no certificate in PEM form".to_owned())) } else { Ok(roots) }
}

fn store(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    // The operating system's store may hold some that cannot be anchors; they anchor nothing.
    let (_, _unusable) = store.add_parsable_certificates(roots.iter().cloned());
    Ok(store)
}

/// `verify-ca`: a trusted root signed the certificate. Whose it is does not matter.
#[derive(Debug)]
struct ChainOnly {
    roots: Vec<CertificateDer<'static>>,
    store: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
}

/// `verify-full`: a trusted root signed the certificate, and it is for the host we asked for.
#[derive(Debug)]
struct ChainAndName(ChainOnly);

/// `require` and weaker without a root certificate: encrypted, but with whom is not known. Against
/// eavesdropping only.
#[derive(Debug)]
struct Unverified(WebPkiSupportedAlgorithms);

impl ChainOnly {
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        // A server's own self-signed certificate given as the root. OpenSSL marks such ones as
        // authorities, which an authority's certificate in a server's hand must not be otherwise.
        if self.roots.iter().any(|root| root.as_ref() == end_entity.as_ref()) {
            return verify_validity(end_entity, now);
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.store, intermediates, now, self.algorithms.all)
    }
}

fn verify_validity(certificate: &[u8], now: UnixTime) -> Result<(), rustls::Error> {
    let parsed = Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let validity = parsed.tbs_certificate().validity();
    if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// The part that all three verify alike: that the peer holds the certificate's key.
macro_rules! handshake_signatures {
    (|$this:ident| $algorithms:expr) => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let $this = self;
            verify_tls12_signature(message, cert, dss, $algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let $this = self;
            verify_tls13_signature(message, cert, dss, $algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            let $this = self;
            $algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    handshake_signatures!(|this| &this.algorithms);
}

impl ServerCertVerifier for ChainAndName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.verify(end_entity, intermediates, now)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    handshake_signatures!(|this| &this.0.algorithms);
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    handshake_signatures!(|this| &this.0);
}

/// What `tls-server-end-point` binds a login to (RFC 5929): the certificate's hash under the hash
/// function of its own signature, SHA-256 in place of MD5 and SHA-1. `None` where that is not
/// defined (Ed25519) or not known.
pub(super) fn end_point(stream: &TlsStream<TcpStream>) -> Option<Vec<u8>> {
    let (_, session) = stream.get_ref();
    certificate_hash(session.peer_certificates()?.first()?)
}

fn certificate_hash(der: &[u8]) -> Option<Vec<u8>> {
    let certificate = Certificate::from_der(der).ok()?;
    Some(match SignatureHash::of(certificate.signature_algorithm())? {
        SignatureHash::Sha224 => Sha224::digest(der).to_vec(),
        SignatureHash::Sha256 => Sha256::digest(der).to_vec(),
        SignatureHash::Sha384 => Sha384::digest(der).to_vec(),
        SignatureHash::Sha512 => Sha512::digest(der).to_vec(),
    })
}

/// The hash function to bind with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SignatureHash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

const RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

impl SignatureHash {
    fn of(algorithm: &AlgorithmIdentifierOwned) -> Option<Self> {
        if algorithm.oid == RSASSA_PSS {
            let parameters = algorithm.parameters.as_ref()?.to_der().ok()?;
            return Self::of_pss(&parameters);
        }
        Self::of_signature(algorithm.oid)
    }

    /// The hash that is part of a signature algorithm's name.
    fn of_signature(oid: ObjectIdentifier) -> Option<Self> {
        Some(match oid.to_string().as_str() {
            // RSA with MD5, SHA-1 and SHA-256; ECDSA and DSA likewise.
            "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.113549.1.1.11" => Self::Sha256,
            "1.2.840.10045.4.1" | "1.2.840.10045.4.3.2" => Self::Sha256,
            "1.2.840.10040.4.3" | "2.16.840.1.101.3.4.3.2" => Self::Sha256,
            "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" | "2.16.840.1.101.3.4.3.1" => Self::Sha224,
            "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.3.3" => Self::Sha384,
            "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.3.4" => Self::Sha512,
            _ => return None,
        })
    }

    /// RSASSA-PSS names its hash in the first of its parameters; SHA-1 when it is left out.
    fn of_pss(parameters: &[u8]) -> Option<Self> {
        let mut reader = SliceReader::new(parameters).ok()?;
        let hash = reader
            .sequence(|inner: &mut SliceReader<'_>| {
                let hash = ContextSpecific::<AlgorithmIdentifierRef<'_>>::decode_explicit(inner, TagNumber(0))?;
                while !inner.is_finished() {
                    AnyRef::decode(inner)?;
                }
                Ok::<_, x509_cert::der::Error>(hash)
            })
            .ok()?;
        let Some(hash) = hash else { return Some(Self::Sha256) };
        Some(match hash.value.oid.to_string().as_str() {
            "1.2.840.113549.2.5" | "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => Self::Sha256,
            "2.16.840.1.101.3.4.2.4" => Self::Sha224,
            "2.16.840.1.101.3.4.2.2" => Self::Sha384,
            "2.16.840.1.101.3.4.2.3" => Self::Sha512,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256,
        PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, SignatureAlgorithm,
    };

    use super::*;

    fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn server(host: &str, signer: &CertifiedIssuer<'static, KeyPair>) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, signer).unwrap().into()
    }

    fn chain_to(root: &CertificateDer<'static>) -> ChainOnly {
        let roots = vec![root.clone()];
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        ChainOnly { store: store(&roots).unwrap(), roots, algorithms }
    }

    fn verdict(verifier: &dyn ServerCertVerifier, certificate: &CertificateDer<'_>, host: &str) -> Result<(), String> {
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let outcome = verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::now());
        outcome.map(drop).map_err(|error| match error {
            rustls::Error::InvalidCertificate(reason) => certificate_reason(&reason),
            other => panic!("{other}"),
        })
    }

    #[test]
    fn verify_full_checks_chain_and_name() {
        let (ours, other) = (authority("ours"), authority("other"));
        let certificate = server("db.example", &ours);
        let full = ChainAndName(chain_to(ours.der()));
        assert_eq!(verdict(&full, &certificate, "db.example"), Ok(()));
        assert_eq!(verdict(&full, &certificate, "evil.example"), Err("it is for another host".into()));
        let stranger = ChainAndName(chain_to(other.der()));
        let unknown = "it is signed by no root certificate that is trusted here";
        assert_eq!(verdict(&stranger, &certificate, "db.example"), Err(unknown.into()));
    }

    #[test]
    fn verify_ca_checks_the_chain_and_not_the_name() {
        let (ours, other) = (authority("ours"), authority("other"));
        let certificate = server("db.example", &ours);
        assert_eq!(verdict(&chain_to(ours.der()), &certificate, "evil.example"), Ok(()));
        assert!(verdict(&chain_to(other.der()), &certificate, "db.example").is_err());
    }

    #[test]
    fn without_roots_nothing_is_verified() {
        let certificate = server("db.example", &authority("any"));
        let unverified = Unverified(aws_lc_rs::default_provider().signature_verification_algorithms);
        assert_eq!(verdict(&unverified, &certificate, "evil.example"), Ok(()));
    }

    #[test]
    fn a_servers_own_certificate_can_be_the_root() {
        let mut params = CertificateParams::new(vec!["db.example".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let own = |params: CertificateParams| params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone();
        let certificate = own(params.clone());
        assert_eq!(verdict(&ChainAndName(chain_to(&certificate)), &certificate, "db.example"), Ok(()));
        assert!(verdict(&ChainAndName(chain_to(&certificate)), &certificate, "evil.example").is_err());
        assert!(verdict(&chain_to(&own(params.clone())), &certificate, "db.example").is_err());
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let expired = own(params);
        assert_eq!(verdict(&chain_to(&expired), &expired, "db.example"), Err("it has expired".into()));
    }

    #[test]
    fn a_login_is_bound_with_the_hash_of_the_signature() {
        let signed_with = |algorithm: &'static SignatureAlgorithm| {
            let key = KeyPair::generate_for(algorithm).unwrap();
            CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap().der().to_vec()
        };
        let (p256, p384) = (signed_with(&PKCS_ECDSA_P256_SHA256), signed_with(&PKCS_ECDSA_P384_SHA384));
        assert_eq!(certificate_hash(&p256), Some(Sha256::digest(&p256).to_vec()));
        assert_eq!(certificate_hash(&p384), Some(Sha384::digest(&p384).to_vec()));
        let rsa = signed_with(&PKCS_RSA_SHA256);
        assert_eq!(certificate_hash(&rsa), Some(Sha256::digest(&rsa).to_vec()));
        assert_eq!(certificate_hash(&signed_with(&PKCS_ED25519)), None);
        assert_eq!(certificate_hash(b"no certificate"), None);
    }

    #[test]
    fn old_hashes_are_replaced_and_unknown_ones_refused() {
        for (oid, hash) in [
            ("1.2.840.113549.1.1.4", Some(SignatureHash::Sha256)),
            ("1.2.840.113549.1.1.5", Some(SignatureHash::Sha256)),
            ("1.2.840.113549.1.1.14", Some(SignatureHash::Sha224)),
            ("1.2.840.113549.1.1.13", Some(SignatureHash::Sha512)),
            ("1.2.840.10045.4.3.4", Some(SignatureHash::Sha512)),
            ("1.3.101.112", None),
        ] {
            assert_eq!(SignatureHash::of_signature(oid.parse().unwrap()), hash, "{oid}");
        }
    }

    #[test]
    fn pss_names_its_hash_in_its_parameters() {
        // SEQUENCE { [0] { SEQUENCE { OID 2.16.840.1.101.3.4.2.n, NULL } }, [2] { INTEGER 32 } }
        let parameters = |last: u8| {
            let mut der = vec![0x30, 0x16, 0xA0, 0x0F, 0x30, 0x0D, 0x06, 0x09];
            der.extend([
                0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, last, 0x05, 0x00, 0xA2, 0x03, 0x02, 0x01, 0x20,
            ]);
            der
        };
        assert_eq!(SignatureHash::of_pss(&parameters(1)), Some(SignatureHash::Sha256));
        assert_eq!(SignatureHash::of_pss(&parameters(2)), Some(SignatureHash::Sha384));
        assert_eq!(SignatureHash::of_pss(&parameters(3)), Some(SignatureHash::Sha512));
        assert_eq!(SignatureHash::of_pss(&parameters(9)), None);
        assert_eq!(SignatureHash::of_pss(&[0x30, 0x00]), Some(SignatureHash::Sha256), "SHA-1 is the default");
        assert_eq!(SignatureHash::of_pss(&[0x30, 0x05, 0xA0]), None);
    }
}
