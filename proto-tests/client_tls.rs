//! Our own certificate, TLS without asking, and revoked certificates.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};
use walhold::connection::{ConnectError, LoginError, Purpose, Session, TlsError};

use super::login::accept_tls;
use super::server::{Peer, Server, conninfo};

type Authority = CertifiedIssuer<'static, KeyPair>;

/// An authority, a server's certificate for this machine and a client's, all in a home directory.
struct World {
    home: tempfile::TempDir,
    authority: Authority,
    server: (CertificateDer<'static>, KeyPair),
}

const SERVER_SERIAL: u64 = 7;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

#[allow(clippy::disallowed_methods, reason = "a test's own file")]
fn write(path: &Path, text: &str, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

impl World {
    fn new() -> Self {
        let authority = authority("ours");
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(SERVER_SERIAL));
        let certificate = params.signed_by(&key, &authority).unwrap().der().clone();
        let home = tempfile::tempdir().unwrap();
        write(&home.path().join("ca.crt"), &authority.pem(), 0o644);
        Self { home, authority, server: (certificate, key) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Puts a certificate and key for the client where they are looked for.
    fn give_client(&self, signer: &Authority) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "tester");
        let certificate = params.signed_by(&key, signer).unwrap();
        write(&self.path(".postgresql/postgresql.crt"), &certificate.pem(), 0o644);
        write(&self.path(".postgresql/postgresql.key"), &key.serialize_pem(), 0o600);
    }

    /// A server's side of TLS; with `asks`, it wants a certificate that the authority has signed.
    fn acceptor(&self, asks: bool, alpn: bool) -> TlsAcceptor {
        TlsAcceptor::from(self.config(asks, alpn))
    }

    fn config(&self, asks: bool, alpn: bool) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let verifier = match asks {
            true => WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build().unwrap(),
            false => WebPkiClientVerifier::no_client_auth(),
        };
        let (certificate, key) = &self.server;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        if alpn {
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Arc::new(config)
    }

    async fn connect(&self, server: &Server, more: &str) -> Result<Session, ConnectError> {
        let text = format!("{} user=tester sslmode=require {more}", server.address);
        let conninfo = conninfo(&text, Some(self.home.path().to_owned()));
        Session::connect(&conninfo, Purpose::Replication, "walhold").await
    }

    /// The error of a login to a server that gives up when TLS does not come about.
    async fn refusal(&self, asks: bool, more: &str) -> ConnectError {
        let acceptor = self.acceptor(asks, true);
        let server = Server::start(move |peer: Peer| async move {
            if let Some(mut peer) = accept_tls(peer, &acceptor).await
                && peer.next_startup().await
            {
                peer.send(super::server::accepted("17.2")).await;
            }
        })
        .await;
        let Err(error) = self.connect(&server, more).await else { panic!("{more}: it let us in") };
        server.finish().await;
        error
    }
}

fn tls_error(error: ConnectError) -> TlsError {
    match error {
        ConnectError::Tls { source, .. } => source,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn our_certificate_is_shown_to_who_asks() {
    let world = World::new();
    world.give_client(&world.authority);
    for more in ["", "sslcertmode=require", "ssl_max_protocol_version=TLSv1.2 sslcertmode=require"] {
        let acceptor = world.acceptor(true, true);
        let server = Server::start(move |peer: Peer| async move {
            accept_tls(peer, &acceptor).await.unwrap().log_in("17.2").await;
        })
        .await;
        world.connect(&server, more).await.unwrap();
        server.finish().await;
    }
}

#[tokio::test]
async fn a_certificate_that_is_missing_or_not_liked_is_the_reason() {
    let world = World::new();
    for max in ["TLSv1.2", "TLSv1.3"] {
        let max = format!("ssl_max_protocol_version={max}");
        let error = world.refusal(true, &max).await;
        assert!(error.hint().unwrap().contains("sslcert"), "{error}");
        assert!(matches!(tls_error(error), TlsError::ClientRefused { sent: false, .. }), "{max}");
    }
    world.give_client(&world.authority);
    let error = world.refusal(true, "sslcertmode=disable").await;
    assert!(matches!(tls_error(error), TlsError::ClientRefused { sent: false, .. }));
    // One that is not known, and one that only says that it is.
    for name in ["another", "ours"] {
        world.give_client(&authority(name));
        let error = world.refusal(true, "").await;
        assert!(matches!(tls_error(error), TlsError::ClientRefused { sent: true, .. }), "{name}");
    }
}

#[tokio::test]
async fn a_certificate_that_must_be_used_is_not_passed_over() {
    let world = World::new();
    world.give_client(&world.authority);
    let not_used = |error| match error {
        ConnectError::Login { source: LoginError::CertificateNotUsed(what), .. } => what,
        other => panic!("{other}"),
    };
    let error = world.refusal(false, "sslcertmode=require").await;
    assert_eq!(not_used(error), "did not ask for a certificate");
    let server = Server::start(async |mut peer: Peer| {
        peer.log_in("17.2").await;
        peer.expect_close().await;
    })
    .await;
    let Err(error) = world.connect(&server, "sslmode=disable sslcertmode=require").await else { panic!() };
    assert_eq!(not_used(error), "did not ask for a certificate");
    server.finish().await;
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let world = World::new();
    world.give_client(&world.authority);
    let (key, other) = (world.path(".postgresql/postgresql.key"), world.path("other.key"));
    write(&other, &KeyPair::generate().unwrap().serialize_pem(), 0o600);
    let open = world.path("open.key");
    write(&open, &std::fs::read_to_string(&key).unwrap(), 0o644);
    for (more, path, reason) in [
        ("sslcert=/nonexistent/c".to_owned(), PathBuf::from("/nonexistent/c"), "No such file"),
        ("sslkey=/nonexistent/k".to_owned(), PathBuf::from("/nonexistent/k"), "No such file"),
        (format!("sslkey={}", other.display()), other, "does not go with"),
        (format!("sslkey={}", open.display()), open, "others may use this key"),
        (format!("sslcert={}", key.display()), key, "no certificate"),
    ] {
        match tls_error(world.refusal(true, &more).await) {
            TlsError::Client { path: named, reason: said, .. } => {
                assert!(named == path && said.contains(reason), "{more}: {} {said}", named.display());
            }
            other => panic!("{more}: {other}"),
        }
    }
}

#[tokio::test]
async fn direct_tls_begins_at_once_and_wants_to_be_meant() {
    let world = World::new();
    for (alpn, right) in [(true, true), (false, false)] {
        let acceptor = world.acceptor(false, alpn);
        let server = Server::start(move |peer: Peer| async move {
            let mut peer = Peer::over(acceptor.accept(peer.into_tcp()).await.unwrap());
            match right {
                true => peer.log_in("17.2").await,
                false => peer.expect_close().await,
            }
        })
        .await;
        match world.connect(&server, "sslnegotiation=direct").await {
            Ok(_) => assert!(right),
            Err(error) => assert!(!right && matches!(tls_error(error), TlsError::NoAlpn)),
        }
        server.finish().await;
    }
    // A server before 17 takes the handshake for a start-up message, and hangs up.
    let old = Server::start(async |peer: Peer| drop(peer)).await;
    let Err(error) = world.connect(&old, "sslnegotiation=direct").await else { panic!() };
    assert!(matches!(error, ConnectError::Lost { .. }) && error.to_string().contains("before 17"), "{error}");
    old.finish().await;
}

#[tokio::test]
async fn the_hosts_name_is_sent_only_if_it_may_be() {
    let world = World::new();
    for (more, name) in [("sslsni=1", Some("localhost")), ("sslsni=0", None), ("", Some("localhost"))] {
        let config = world.config(false, true);
        let server = Server::start(move |peer: Peer| async move {
            let tcp = peer.into_tls_request_answered().await;
            let started = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp).await.unwrap();
            assert_eq!(started.client_hello().server_name(), name);
            Peer::over(started.into_stream(config).await.unwrap()).log_in("17.2").await;
        })
        .await;
        world.connect(&server, &format!("host=localhost hostaddr=127.0.0.1 {more}")).await.unwrap();
        server.finish().await;
    }
}

#[tokio::test]
async fn a_revoked_server_is_refused() {
    let world = World::new();
    let list = |serial: u64| {
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(2099, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: rcgen::date_time_ymd(2021, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&world.authority).unwrap().pem().unwrap()
    };
    let (good, bad, usual) =
        (world.path("good.crl"), world.path("crls/0a1b2c3d.r0"), world.path(".postgresql/root.crl"));
    write(&good, &list(SERVER_SERIAL + 1), 0o644);
    write(&bad, &list(SERVER_SERIAL), 0o644);
    write(&usual, &list(SERVER_SERIAL), 0o644);
    let root = format!("sslmode=verify-full sslrootcert={}", world.path("ca.crt").display());
    let acceptor = world.acceptor(false, true);
    let server = Server::start(move |peer: Peer| async move {
        accept_tls(peer, &acceptor).await.unwrap().log_in("17.2").await;
    })
    .await;
    world.connect(&server, &format!("{root} sslcrl={}", good.display())).await.unwrap();
    server.finish().await;
    let folder = format!("{root} sslcrldir={}", world.path("crls").display());
    for more in [format!("{root} sslcrl={}", bad.display()), folder, root.clone()] {
        match tls_error(world.refusal(false, &more).await) {
            TlsError::Certificate(reason) => assert_eq!(reason, "it is revoked", "{more}"),
            other => panic!("{more}: {other}"),
        }
    }
    let missing = world.refusal(false, &format!("{root} sslcrl=/nonexistent/x")).await;
    assert!(matches!(tls_error(missing), TlsError::Revocation { .. }));
    let unverified = world.refusal(false, &format!("sslcrl={}", good.display())).await;
    assert!(matches!(tls_error(unverified), TlsError::RevocationWithoutRoots));
}
