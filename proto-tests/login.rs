//! Start-up, TLS and authentication against a server that behaves, and against others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;
use walhold::connection::{ConnectError, LoginError, Purpose, Session, TlsError};
use walhold::protocol::{FramingError, ProtocolError};

use super::scram::Scram;
use super::server::{Peer, Server, accepted, authentication, conninfo, error, message, notice, parameter, ready};

const PLAIN: &str = "sslmode=disable password=secret";

fn login_error(error: ConnectError) -> LoginError {
    match error {
        ConnectError::Login { source, .. } => source,
        other => panic!("{other}"),
    }
}

fn tls_error(error: ConnectError) -> TlsError {
    match error {
        ConnectError::Tls { source, .. } => source,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_walsender_is_asked_for_by_its_names() {
    let server = Server::start(async |mut peer: Peer| {
        let settings = peer.expect_startup().await;
        let expected = [
            ("user", "tester"),
            ("database", "replication"),
            ("application_name", "walhold"),
            ("replication", "true"),
            ("options", "-c wal_sender_timeout=5s"),
        ];
        assert_eq!(settings, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        peer.send_all([notice("hello"), accepted("15.18 (Debian 15.18-0+deb12u1)")]).await;
        peer.expect_close().await;
    })
    .await;
    let conninfo = server.conninfo("sslmode=disable dbname=ignored options='-c wal_sender_timeout=5s'");
    let session = Session::connect(&conninfo, Purpose::Replication, "walhold").await.unwrap();
    assert_eq!((session.server_version().num(), session.parameter("integer_datetimes")), (150_018, Some("on")));
    session.close().await;
    server.finish().await;
}

#[tokio::test]
async fn an_sql_session_names_its_database_and_encoding() {
    for (more, database) in [("dbname=app", "app"), ("", "postgres")] {
        let server = Server::start(move |mut peer: Peer| async move {
            let settings = peer.expect_startup().await;
            let expected = [
                ("user", "tester"),
                ("database", database),
                ("application_name", "walhold"),
                ("client_encoding", "UTF8"),
            ];
            assert_eq!(settings, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
            peer.send(accepted("13.23")).await;
        })
        .await;
        let conninfo = server.conninfo(&format!("sslmode=disable {more}"));
        Session::connect(&conninfo, Purpose::Sql, "walhold").await.unwrap();
        server.finish().await;
    }
}

#[tokio::test]
async fn passwords_are_sent_as_asked() {
    for (request, expected) in [
        (authentication(3, b""), "secret\0".to_owned()),
        // md5(md5("secret" "tester") salt)
        (authentication(5, &[1, 2, 3, 4]), "md536b4107baf9501c7af04101729003031\0".to_owned()),
    ] {
        let server = Server::start(move |mut peer: Peer| async move {
            peer.expect_startup().await;
            peer.send(request).await;
            assert_eq!(String::from_utf8(peer.expect(b'p').await).unwrap(), expected);
            peer.send(accepted("17.2")).await;
        })
        .await;
        Session::connect(&server.conninfo(PLAIN), Purpose::Replication, "w").await.unwrap();
        server.finish().await;
    }
}

#[tokio::test]
async fn scram_lets_in_who_both_know_the_password() {
    let server = Server::start(async |mut peer: Peer| {
        peer.expect_startup().await;
        Scram::default().run(&mut peer, "secret").await;
        peer.send(accepted("17.2")).await;
    })
    .await;
    Session::connect(&server.conninfo(PLAIN), Purpose::Replication, "w").await.unwrap();
    server.finish().await;
}

#[tokio::test]
async fn a_server_that_does_not_know_the_password_is_refused() {
    let wrong = |text: &str| LoginError::ServerNotProved(text.to_owned());
    for (scram, expected) in [
        (Scram { sign: false, ..Scram::default() }, wrong("SCRAM verification error")),
        (Scram { extend_nonce: false, ..Scram::default() }, wrong("invalid nonce")),
        (
            Scram { iterations: Some(10_000_000), ..Scram::default() },
            wrong("SCRAM iteration count exceeds the maximum allowed"),
        ),
    ] {
        let server = Server::start(move |mut peer: Peer| async move {
            peer.expect_startup().await;
            if scram.sign {
                scram.only_challenge(&mut peer, "secret").await;
            } else {
                scram.run(&mut peer, "secret").await;
                peer.send(accepted("17.2")).await;
            }
            peer.expect_close().await;
        })
        .await;
        let begun = Instant::now();
        assert_eq!(login_error(server.refusal(PLAIN).await), expected);
        assert!(begun.elapsed() < Duration::from_secs(5));
        server.finish().await;
    }
}

#[tokio::test]
async fn a_server_that_skips_its_proof_is_refused() {
    for challenged in [false, true] {
        let server = Server::start(move |mut peer: Peer| async move {
            peer.expect_startup().await;
            if challenged {
                Scram::default().only_challenge(&mut peer, "secret").await;
            } else {
                Scram::default().offer(&mut peer).await;
            }
            peer.expect(b'p').await;
            peer.send(accepted("17.2")).await;
            peer.expect_close().await;
        })
        .await;
        assert_eq!(login_error(server.refusal(PLAIN).await), LoginError::NotFinished);
        server.finish().await;
    }
}

#[tokio::test]
async fn what_we_cannot_or_may_not_do_is_refused_by_name() {
    let sasl = |names: &str| authentication(10, names.as_bytes());
    let user = || "tester".to_owned();
    for (request, more, expected) in [
        (authentication(3, b""), "", LoginError::PasswordMissing { user: user() }),
        (authentication(5, &[0; 4]), "", LoginError::PasswordMissing { user: user() }),
        (sasl("SCRAM-SHA-256\0\0"), "", LoginError::PasswordMissing { user: user() }),
        (authentication(7, b""), "", LoginError::UnknownMethod("GSSAPI")),
        (sasl("OAUTHBEARER\0\0"), "", LoginError::UnknownMechanisms("OAUTHBEARER".into())),
        (sasl("SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"), "password=x", LoginError::PlusWithoutTls),
        (
            authentication(3, b""),
            "password=x require_auth=scram-sha-256",
            LoginError::NotAllowed("a password in clear text"),
        ),
        (authentication(5, &[0; 4]), "password=x require_auth=!md5", LoginError::NotAllowed("an MD5 password")),
        (sasl("SCRAM-SHA-256\0\0"), "password=x require_auth=none", LoginError::NotAllowed("SCRAM-SHA-256")),
        (accepted("17.2"), "require_auth=scram-sha-256", LoginError::NoneNotAllowed),
        (accepted("17.2"), "channel_binding=require", LoginError::ChannelBinding("let us in without authentication")),
        (
            authentication(3, b""),
            "password=x channel_binding=require",
            LoginError::ChannelBinding("asks for a password in clear text"),
        ),
        (
            authentication(5, &[0; 4]),
            "password=x channel_binding=require",
            LoginError::ChannelBinding("asks for an MD5 password"),
        ),
        (
            sasl("SCRAM-SHA-256\0\0"),
            "password=x channel_binding=require",
            LoginError::ChannelBinding("does not offer it for this connection and certificate"),
        ),
    ] {
        let server = Server::start(move |mut peer: Peer| async move {
            peer.expect_startup().await;
            peer.send(request).await;
            peer.expect_close().await;
        })
        .await;
        let refusal = server.refusal(&format!("sslmode=disable {more}")).await;
        assert!(refusal.hint().is_some(), "{refusal}");
        assert_eq!(login_error(refusal), expected, "{more}");
        server.finish().await;
    }
}

#[tokio::test]
async fn a_refusal_comes_with_a_hint() {
    for (sqlstate, text, hint, transient) in [
        ("28000", "no pg_hba.conf entry for replication connection", "host replication", false),
        ("28000", "role \"tester\" does not exist", "CREATE ROLE", false),
        ("28P01", "password authentication failed", "PGPASSWORD", false),
        ("42501", "must be superuser or replication role", "REPLICATION", false),
        ("53300", "number of requested standby connections exceeds", "max_wal_senders", true),
        ("57P03", "the database system is starting up", "again later", true),
        ("3D000", "database \"x\" does not exist", "dbname=", false),
    ] {
        let server = Server::start(move |mut peer: Peer| async move {
            peer.expect_startup().await;
            peer.send(error("FATAL", sqlstate, text)).await;
        })
        .await;
        let refusal = server.refusal("sslmode=disable").await;
        assert_eq!(refusal.server_error().unwrap().message, text);
        assert!(refusal.to_string().contains(text));
        assert!(refusal.hint().unwrap().contains(hint), "{:?}", refusal.hint());
        assert_eq!(refusal.is_transient(), transient, "{text}");
        server.finish().await;
    }
}

#[tokio::test]
async fn a_missing_right_that_is_found_after_authentication_is_a_refusal() {
    let server = Server::start(async |mut peer: Peer| {
        peer.expect_startup().await;
        peer.send_all([authentication(0, b""), error("FATAL", "42501", "must be replication role")]).await;
    })
    .await;
    assert!(matches!(server.refusal("sslmode=disable").await, ConnectError::Refused { .. }));
    server.finish().await;
}

#[tokio::test]
async fn servers_that_walhold_does_not_work_with_are_refused() {
    let reporting = |version: &str, datetimes: &str| {
        [
            authentication(0, b""),
            parameter("server_version", version),
            parameter("integer_datetimes", datetimes),
            ready(),
        ]
        .concat()
    };
    for (version, datetimes, text) in [
        ("12.22", "on", "is PostgreSQL 12.22; walhold needs 13 or later"),
        ("9.6.24", "on", "is PostgreSQL 9.6.24"),
        ("15.3", "off", "integer_datetimes = \"off\""),
        ("odd", "on", "server_version = \"odd\""),
    ] {
        let answer = reporting(version, datetimes);
        let server = Server::start(async |mut peer: Peer| {
            peer.expect_startup().await;
            peer.send(answer).await;
        })
        .await;
        let refusal = server.refusal("sslmode=disable").await.to_string();
        assert!(refusal.contains(text), "{refusal}");
        server.finish().await;
    }
    let server = Server::start(async |mut peer: Peer| peer.log_in("23devel").await).await;
    assert_eq!(server.session().await.server_version().major(), 23);
    server.finish().await;
}

#[tokio::test]
async fn what_is_no_login_is_refused_before_memory_is_taken() {
    let mut huge = vec![b'R'];
    huge.extend(0x7FFF_FFFF_u32.to_be_bytes());
    let too_long = FramingError::TooLong { tag: b'R', len: 0x7FFF_FFFB, limit: 65536 };
    let unexpected = |tag| ProtocolError::Unexpected { tag, during: "logging in" };
    for (answer, expected) in [
        (huge, too_long.into()),
        (message(b'Z', b"I"), unexpected(b'Z')),
        (message(b'v', &[0; 8]), unexpected(b'v')),
        (message(b'R', &[0, 0, 0, 99]), unexpected(b'R')),
        ([authentication(0, b""), message(b'd', b"x"), ready()].concat(), unexpected(b'd')),
        (b"HTTP/1.1 400 Bad Request\r\n".to_vec(), {
            FramingError::TooLong { tag: b'H', len: u32::from_be_bytes(*b"TTP/") - 4, limit: 65536 }.into()
        }),
    ] {
        let server = Server::start(async |mut peer: Peer| {
            peer.expect_startup().await;
            peer.send(answer).await;
            peer.expect_close().await;
        })
        .await;
        match server.refusal("sslmode=disable").await {
            ConnectError::Protocol { source, .. } => assert_eq!(source, expected),
            other => panic!("{other}"),
        }
        server.finish().await;
    }
}

#[tokio::test]
async fn a_server_that_reports_settings_for_ever_is_left() {
    let server = Server::start(async |mut peer: Peer| {
        peer.expect_startup().await;
        peer.send(authentication(0, b"")).await;
        let many: Vec<u8> = (0..1000).flat_map(|at| parameter(&format!("p{at}"), "x")).collect();
        peer.send(many).await;
        peer.expect_close().await;
    })
    .await;
    assert!(matches!(server.refusal("sslmode=disable").await, ConnectError::Protocol { .. }));
    server.finish().await;
}

#[tokio::test]
async fn silence_and_hanging_up_end_a_login() {
    let silent = Server::start(async |mut peer: Peer| {
        peer.expect_startup().await;
        peer.expect_close().await;
    })
    .await;
    let begun = Instant::now();
    let refusal = silent.refusal("sslmode=disable connect_timeout=2").await;
    assert!(matches!(refusal, ConnectError::TimedOut { .. }) && refusal.is_transient(), "{refusal}");
    assert!(begun.elapsed() < Duration::from_secs(4));
    silent.finish().await;

    let silent_about_tls = Server::start(async |mut peer: Peer| {
        peer.expect_ssl_request().await;
        peer.expect_close().await;
    })
    .await;
    let refusal = silent_about_tls.refusal("sslmode=require connect_timeout=2").await;
    assert!(matches!(refusal, ConnectError::TimedOut { .. }), "{refusal}");
    silent_about_tls.finish().await;

    let gone = Server::start(async |mut peer: Peer| drop(peer.expect_startup().await)).await;
    let refusal = gone.refusal("sslmode=disable").await;
    assert!(matches!(refusal, ConnectError::Lost { .. }) && refusal.is_transient(), "{refusal}");
    gone.finish().await;
}

#[tokio::test]
async fn nobody_there_is_said_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = conninfo(&format!("host={} user=u", folder.path().display()), None);
    let Err(refusal) = Session::connect(&nowhere, Purpose::Replication, "w").await else { panic!() };
    assert!(matches!(refusal, ConnectError::Unreachable { .. }) && refusal.is_transient());
    assert!(refusal.hint().unwrap().contains("no such socket"));
}

#[tokio::test]
async fn a_unix_socket_and_a_password_file_do() {
    let folder = tempfile::tempdir().unwrap();
    let host = folder.path().display().to_string();
    password_file(folder.path(), &format!("{host}:5432:replication:tester:from file\n"));
    let server = Server::start_unix(folder.path(), async |mut peer: Peer| {
        peer.expect_startup().await;
        peer.send(authentication(3, b"")).await;
        assert_eq!(peer.expect(b'p').await, b"from file\0");
        peer.send(error("FATAL", "28P01", "password authentication failed")).await;
    });
    let conninfo = conninfo(&format!("host={host} user=tester sslmode=require"), Some(folder.path().to_owned()));
    let Err(refusal) = Session::connect(&conninfo, Purpose::Replication, "w").await else { panic!() };
    let file = folder.path().join(".pgpass");
    assert_eq!(refusal.hint().unwrap(), format!("the password came from {}", file.display()));
    server.finish().await;
}

#[allow(clippy::disallowed_methods, reason = "a test's own file")]
pub(crate) fn password_file(home: &std::path::Path, content: &str) {
    use std::os::unix::fs::PermissionsExt;
    let path = home.join(".pgpass");
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A server's key and certificate, and a file with the root that signed it.
struct Identity {
    folder: tempfile::TempDir,
    certificate: CertificateDer<'static>,
    acceptor: TlsAcceptor,
}

impl Identity {
    #[allow(clippy::disallowed_methods, reason = "a test's own file")]
    fn of(host: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, &root).unwrap();
        let certificate = certificate.der().clone();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("root.crt"), root.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        Self { folder, certificate, acceptor: TlsAcceptor::from(Arc::new(config)) }
    }

    fn root(&self) -> String {
        self.folder.path().join("root.crt").display().to_string()
    }

    /// What SCRAM-SHA-256-PLUS must be bound to: the certificate is signed with ECDSA and SHA-256.
    fn end_point(&self) -> Vec<u8> {
        Sha256::digest(&self.certificate).to_vec()
    }
}

/// Agrees to TLS; `None` when the client then does not like the certificate.
pub(crate) async fn accept_tls(peer: Peer, acceptor: &TlsAcceptor) -> Option<Peer> {
    let tcp = peer.into_tls_request_answered().await;
    acceptor.accept(tcp).await.ok().map(Peer::over)
}

const BOTH: &[&str] = &["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"];

#[tokio::test]
async fn scram_over_tls_is_bound_to_the_certificate() {
    let ours = Identity::of("127.0.0.1");
    let (acceptor, end_point) = (ours.acceptor.clone(), ours.end_point());
    let bound = move || Scram {
        mechanisms: BOTH,
        gs2: "p=tls-server-end-point,,",
        end_point: end_point.clone(),
        ..Scram::default()
    };
    for binding in ["prefer", "require"] {
        let (acceptor, scram) = (acceptor.clone(), bound());
        let server = Server::start(move |peer: Peer| async move {
            let mut peer = accept_tls(peer, &acceptor).await.unwrap();
            peer.expect_startup().await;
            assert_eq!(scram.run(&mut peer, "secret").await, "SCRAM-SHA-256-PLUS");
            peer.send(accepted("17.2")).await;
        })
        .await;
        let more = format!("sslmode=verify-full sslrootcert={} channel_binding={binding} password=secret", ours.root());
        Session::connect(&server.conninfo(&more), Purpose::Replication, "w").await.unwrap();
        server.finish().await;
    }
}

#[tokio::test]
async fn a_server_without_binding_is_told_that_we_have_it() {
    let ours = Identity::of("127.0.0.1");
    for (mechanisms, binding, gs2) in
        [(&BOTH[1..], "prefer", "y,,"), (&BOTH[1..], "disable", "n,,"), (BOTH, "disable", "n,,")]
    {
        let acceptor = ours.acceptor.clone();
        let server = Server::start(move |peer: Peer| async move {
            let mut peer = accept_tls(peer, &acceptor).await.unwrap();
            peer.expect_startup().await;
            let chosen = Scram { mechanisms, gs2, ..Scram::default() }.run(&mut peer, "secret").await;
            assert_eq!(chosen, "SCRAM-SHA-256");
            peer.send(accepted("17.2")).await;
        })
        .await;
        let more = format!("sslmode=require channel_binding={binding} password=secret");
        Session::connect(&server.conninfo(&more), Purpose::Replication, "w").await.unwrap();
        server.finish().await;
    }
}

#[tokio::test]
async fn required_binding_is_not_given_up() {
    let ours = Identity::of("127.0.0.1");
    for request in
        [accepted("17.2"), authentication(3, b""), authentication(5, &[0; 4]), authentication(10, b"SCRAM-SHA-256\0\0")]
    {
        let acceptor = ours.acceptor.clone();
        let server = Server::start(move |peer: Peer| async move {
            let mut peer = accept_tls(peer, &acceptor).await.unwrap();
            peer.expect_startup().await;
            peer.send(request).await;
            peer.expect_close().await;
        })
        .await;
        let refusal = server.refusal("sslmode=require channel_binding=require password=secret").await;
        assert!(matches!(login_error(refusal), LoginError::ChannelBinding(_)));
        server.finish().await;
    }
}

#[tokio::test]
async fn certificates_are_verified_as_sslmode_says() {
    let (ours, other) = (Identity::of("127.0.0.1"), Identity::of("db.example"));
    for (server, root, mode, accepted_by_us) in [
        (&ours, &ours, "verify-full", true),
        (&ours, &ours, "verify-ca", true),
        (&ours, &other, "verify-full", false),
        (&ours, &other, "verify-ca", false),
        (&ours, &other, "require", false),
        (&other, &other, "verify-full", false),
        (&other, &other, "verify-ca", true),
        (&other, &other, "require", true),
    ] {
        let acceptor = server.acceptor.clone();
        let server = Server::start(move |peer: Peer| async move {
            if let Some(mut peer) = accept_tls(peer, &acceptor).await
                && accepted_by_us
            {
                peer.log_in("17.2").await;
            }
        })
        .await;
        let conninfo = server.conninfo(&format!("sslmode={mode} sslrootcert={}", root.root()));
        match Session::connect(&conninfo, Purpose::Replication, "w").await {
            Ok(_) => assert!(accepted_by_us, "{mode}"),
            Err(error) => {
                assert!(!accepted_by_us, "{mode}: {error}");
                assert!(matches!(tls_error(error), TlsError::Certificate(_)), "{mode}");
            }
        }
        server.finish().await;
    }
}

#[tokio::test]
async fn a_root_that_is_missing_is_an_error_where_it_matters() {
    let ours = Identity::of("127.0.0.1");
    for (more, refused) in [
        ("sslmode=verify-full", true),
        ("sslmode=verify-ca", true),
        ("sslmode=require sslrootcert=/nonexistent/root.crt", true),
        ("sslmode=require", false),
    ] {
        let acceptor = ours.acceptor.clone();
        let server = Server::start(move |peer: Peer| async move {
            if let Some(mut peer) = accept_tls(peer, &acceptor).await
                && !refused
            {
                peer.log_in("17.2").await;
            }
        })
        .await;
        match Session::connect(&server.conninfo(more), Purpose::Replication, "w").await {
            Ok(_) => assert!(!refused, "{more}"),
            Err(error) => assert!(refused && matches!(tls_error(error), TlsError::NoRoots(_)), "{more}"),
        }
        server.finish().await;
    }
}

#[tokio::test]
async fn answers_to_the_tls_request() {
    for (mode, answer, expected) in [
        ("require", &b"N"[..], "the server does not have TLS, and sslmode demands it"),
        ("verify-full", b"N", "the server does not have TLS, and sslmode demands it"),
        ("prefer", b"SR\0\0\0\x08\0\0\0\0", "unencrypted data came after the server's answer to the TLS request"),
        ("require", b"SR", "unencrypted data came after the server's answer to the TLS request"),
        ("require", b"NR", "unencrypted data came after the server's answer to the TLS request"),
        ("require", b"E", "the server answered the TLS request with 'E'"),
    ] {
        let server = Server::start(move |mut peer: Peer| async move {
            peer.expect_ssl_request().await;
            peer.send(answer).await;
            peer.expect_close().await;
        })
        .await;
        let refusal = server.refusal(&format!("sslmode={mode}")).await;
        assert!(refusal.hint().is_some());
        assert_eq!(tls_error(refusal).to_string(), expected);
        server.finish().await;
    }
    let server = Server::start(async |mut peer: Peer| {
        peer.expect_ssl_request().await;
        peer.send(b"N").await;
        peer.log_in("17.2").await;
    })
    .await;
    Session::connect(&server.conninfo("sslmode=prefer"), Purpose::Replication, "w").await.unwrap();
    server.finish().await;
}

#[tokio::test]
async fn prefer_and_allow_try_the_other_way_when_pg_hba_says_no() {
    let no_entry = || error("FATAL", "28000", "no pg_hba.conf entry");
    let ours = Identity::of("127.0.0.1");
    let acceptor = ours.acceptor.clone();
    let server = Server::start_two(
        move |peer: Peer| async move {
            let mut peer = accept_tls(peer, &acceptor).await.unwrap();
            peer.expect_startup().await;
            peer.send(no_entry()).await;
        },
        async |mut peer: Peer| peer.log_in("17.2").await,
    )
    .await;
    Session::connect(&server.conninfo("sslmode=prefer"), Purpose::Replication, "w").await.unwrap();
    server.finish().await;

    let acceptor = ours.acceptor.clone();
    let server = Server::start_two(
        move |mut peer: Peer| async move {
            peer.expect_startup().await;
            peer.send(no_entry()).await;
        },
        move |peer: Peer| async move { accept_tls(peer, &acceptor).await.unwrap().log_in("17.2").await },
    )
    .await;
    Session::connect(&server.conninfo("sslmode=allow"), Purpose::Replication, "w").await.unwrap();
    server.finish().await;
}

#[tokio::test]
async fn a_password_refused_over_tls_is_not_sent_again_without() {
    let ours = Identity::of("127.0.0.1");
    let acceptor = ours.acceptor.clone();
    let server = Server::start(move |peer: Peer| async move {
        let mut peer = accept_tls(peer, &acceptor).await.unwrap();
        peer.expect_startup().await;
        peer.send(authentication(3, b"")).await;
        peer.expect(b'p').await;
        peer.send(error("FATAL", "28000", "not you")).await;
    })
    .await;
    // The listener is gone with its script: a second attempt would be an Unreachable.
    let refusal = server.refusal("sslmode=prefer password=secret").await;
    assert!(matches!(refusal, ConnectError::Refused { .. }), "{refusal}");
    server.finish().await;
}
