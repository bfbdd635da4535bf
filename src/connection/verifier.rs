//! What of a server's certificate is verified under which `sslmode`.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::TlsError;
use super::encryption::{CertFile, Encryption, RootCert, SslMode};

/// What is verified follows from the mode, and from whether there is a root certificate: with one,
/// libpq verifies the chain in every mode that uses TLS at all.
pub(super) fn verifier(
    encryption: &Encryption,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let algorithms = provider.signature_verification_algorithms;
    let must_verify = encryption.mode >= SslMode::VerifyCa;
    let roots = match &encryption.roots {
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
    let Some(roots) = roots else {
        return match encryption.revocation.is_named() {
            true => Err(TlsError::RevocationWithoutRoots),
            false => Ok(Arc::new(Unverified(algorithms))),
        };
    };
    let store = store(&roots)?;
    let lists = revocation_lists(encryption)?;
    let revocation = (!lists.is_empty()).then(|| checker(&store, lists, provider)).transpose()?;
    let name = encryption.mode == SslMode::VerifyFull;
    Ok(Arc::new(Verified { store, roots, algorithms, revocation, name }))
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

/// The lists of revoked certificates. One that was named must be there, and be one.
fn revocation_lists(encryption: &Encryption) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let revocation = &encryption.revocation;
    let mut lists = match &revocation.file {
        CertFile::Named(path) => file_lists(path)?,
        // It goes with the usual root certificate, not with the operating system's.
        CertFile::Usual(Some(path)) if path.exists() && encryption.roots != RootCert::System => file_lists(path)?,
        CertFile::Usual(_) => Vec::new(),
    };
    if let Some(directory) = &revocation.directory {
        lists.extend(directory_lists(directory)?);
    }
    Ok(lists)
}

fn file_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let wrong = |reason: String| TlsError::Revocation { place: path.to_owned(), reason };
    let pem = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(error.to_string()))?;
    if lists.is_empty() { Err(wrong("it holds no revocation list in PEM form".to_owned())) } else { Ok(lists) }
}

/// Every list in the folder. OpenSSL finds them by names that are hashes of their issuers; here the
/// names say nothing.
fn directory_lists(directory: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let wrong = |reason: String| TlsError::Revocation { place: directory.to_owned(), reason };
    let mut lists = Vec::new();
    for entry in fs::read_dir(directory).map_err(|error| wrong(error.to_string()))? {
        let path = entry.map_err(|error| wrong(error.to_string()))?.path();
        if path.is_file() {
            lists.extend(file_lists(&path)?);
        }
    }
    if lists.is_empty() { Err(wrong("it holds no revocation list".to_owned())) } else { Ok(lists) }
}

/// Verifies a chain of which each certificate must be on the list of its issuer, or rather not on
/// it; a list that is out of date counts for none.
fn checker(
    store: &RootCertStore,
    lists: Vec<CertificateRevocationListDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(store.clone()), Arc::clone(provider))
        .with_crls(lists)
        .enforce_revocation_expiration()
        .build()
        .map_err(|error| TlsError::Setup(rustls::Error::General(error.to_string())))
}

/// `verify-ca`: a trusted root signed the certificate; whose it is does not matter. `verify-full`: and it is for the
/// host we asked for.
#[derive(Debug)]
struct Verified {
    roots: Vec<CertificateDer<'static>>,
    store: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
    revocation: Option<Arc<WebPkiServerVerifier>>,
    /// Whether the host's name must be in the certificate.
    name: bool,
}

/// `require` and weaker without a root certificate: encrypted, but with whom is not known. Against
/// eavesdropping only.
#[derive(Debug)]
struct Unverified(WebPkiSupportedAlgorithms);

impl Verified {
    fn verify_chain(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        if let Some(checker) = &self.revocation {
            let outcome = checker.verify_server_cert(end_entity, intermediates, server_name, &[], now);
            return outcome.map(drop).or_else(unless_only_the_name);
        }
        // A server's own self-signed certificate given as the root. OpenSSL marks such ones as
        // authorities, which an authority's certificate in a server's hand must not be otherwise.
        if self.roots.iter().any(|root| root.as_ref() == end_entity.as_ref()) {
            return verify_validity(end_entity, now);
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.store, intermediates, now, self.algorithms.all)
    }
}

/// The name is the last that is looked at, so a chain that fails by it is otherwise good.
fn unless_only_the_name(error: rustls::Error) -> Result<(), rustls::Error> {
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Ok(()),
        other => Err(other),
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

impl ServerCertVerifier for Verified {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify_chain(end_entity, intermediates, server_name, now)?;
        if self.name {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    handshake_signatures!(|this| &this.algorithms);
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

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa, KeyIdMethod,
        KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
    };
    use rustls::crypto::aws_lc_rs;

    use super::super::tls::certificate_reason;
    use super::*;

    fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn server(host: &str, signer: &CertifiedIssuer<'static, KeyPair>) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, signer).unwrap().into()
    }

    fn named(chain: Verified) -> Verified {
        Verified { name: true, ..chain }
    }

    fn chain_to(root: &CertificateDer<'static>) -> Verified {
        let roots = vec![root.clone()];
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        Verified { store: store(&roots).unwrap(), roots, algorithms, revocation: None, name: false }
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
        let full = named(chain_to(ours.der()));
        assert_eq!(verdict(&full, &certificate, "db.example"), Ok(()));
        assert_eq!(verdict(&full, &certificate, "evil.example"), Err("it is for another host".into()));
        let stranger = named(chain_to(other.der()));
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
        assert_eq!(verdict(&named(chain_to(&certificate)), &certificate, "db.example"), Ok(()));
        assert!(verdict(&named(chain_to(&certificate)), &certificate, "evil.example").is_err());
        assert!(verdict(&chain_to(&own(params.clone())), &certificate, "db.example").is_err());
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let expired = own(params);
        assert_eq!(verdict(&chain_to(&expired), &expired, "db.example"), Err("it has expired".into()));
    }

    /// A list of revoked serial numbers that is good until this year.
    fn list(
        signer: &CertifiedIssuer<'static, KeyPair>,
        revoked: &[u64],
        until: i32,
    ) -> CertificateRevocationListDer<'static> {
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: rcgen::date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(signer).unwrap().into()
    }

    #[test]
    fn revoked_certificates_are_refused_whatever_their_name() {
        let (ours, other) = (authority("ours"), authority("other"));
        let numbered = |serial: u64| -> CertificateDer<'static> {
            let mut params = CertificateParams::new(vec!["db.example".to_owned()]).unwrap();
            params.serial_number = Some(SerialNumber::from(serial));
            params.signed_by(&KeyPair::generate().unwrap(), &ours).unwrap().into()
        };
        let (good, bad) = (numbered(7), numbered(8));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = |list: CertificateRevocationListDer<'static>| {
            let plain = chain_to(ours.der());
            Verified { revocation: Some(checker(&plain.store, vec![list], &provider).unwrap()), ..plain }
        };
        let checked = || chain(list(&ours, &[8], 2099));
        for host in ["db.example", "evil.example"] {
            assert_eq!(verdict(&checked(), &good, host), Ok(()));
            assert_eq!(verdict(&checked(), &bad, host), Err("it is revoked".into()));
        }
        let full = named(checked());
        assert_eq!(verdict(&full, &good, "db.example"), Ok(()));
        assert_eq!(verdict(&full, &good, "evil.example"), Err("it is for another host".into()));
        assert_eq!(verdict(&full, &bad, "db.example"), Err("it is revoked".into()));
        let stale = verdict(&chain(list(&ours, &[8], 2021)), &good, "db.example");
        assert_eq!(stale, Err("its issuer's revocation list is out of date".into()));
        let unknown = verdict(&chain(list(&other, &[8], 2099)), &good, "db.example");
        assert_eq!(unknown, Err("no revocation list of its issuer is there".into()));
    }
}
