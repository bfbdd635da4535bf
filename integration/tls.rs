//! P6 over TLS: what was asked for is what is had, or there is no connection.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

use crate::cluster::{Cluster, Setup, Stop};
use crate::program::{receive, run, walhold};
use crate::room::{Outcome, Room, skip};

/// A server with a certificate for `localhost`, and the authority that signed it.
pub(crate) struct Secured<'a> {
    pub(crate) primary: Cluster<'a>,
    pub(crate) authority: PathBuf,
    pub(crate) port: u16,
}

pub(crate) fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

pub(crate) fn secured(room: &Room) -> Secured<'_> {
    let issuer = authority("test authority");
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "localhost");
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let [cert_file, key_file, ca_file] = ["server.crt", "server.key", "ca.crt"].map(|name| room.path(name));
    room.write(&cert_file, certificate.pem());
    room.write(&key_file, key.serialize_pem());
    room.write(&ca_file, issuer.pem());
    let settings = [
        "password_encryption = 'scram-sha-256'".to_owned(),
        "ssl = on".to_owned(),
        format!("ssl_cert_file = '{}'", cert_file.display()),
        format!("ssl_key_file = '{}'", key_file.display()),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let hba = [
        "hostssl all,replication secure 127.0.0.1/32 scram-sha-256",
        "hostssl all,replication secure ::1/128 scram-sha-256",
        "hostnossl all,replication open 127.0.0.1/32 scram-sha-256",
        "host all,replication secure,open all reject",
    ];
    let mut primary = Cluster::with(room, "primary", &Setup { settings: &settings, hba: &hba, ..Setup::default() });
    primary.rows("create role secure login replication password 'right'");
    primary.rows("create role open login replication password 'right'");
    primary.stop(Stop::Fast);
    let port = primary.listen();
    primary.start();
    Secured { primary, authority: ca_file, port }
}

/// verify-full with SCRAM bound to the channel, and what PostgreSQL knows of it.
pub(crate) fn verified(room: &Room) -> Outcome {
    let server = secured(room);
    if server.primary.sql("show ssl") != "on" {
        skip!("this PostgreSQL {} has no TLS", room.server.major);
    }
    for (n, more) in ["channel_binding=require", "channel_binding=prefer", "channel_binding=disable"].iter().enumerate()
    {
        let conninfo = format!(
            "host=localhost hostaddr=127.0.0.1 port={} user=secure password=right sslmode=verify-full sslrootcert={} {more}",
            server.port,
            server.authority.display()
        );
        let receiver =
            receive(room, &room.path(&format!("repo-{n}")), &conninfo, &["--slot", &format!("s{n}"), "--ensure-slot"]);
        receiver.wait_until_it_streams(&server.primary);
        let sql = "select s.ssl::text || ' ' || s.version from pg_stat_ssl s join pg_stat_replication r using (pid)";
        assert_eq!(server.primary.sql(sql), "true TLSv1.3", "{more}");
        receiver.terminate().expect(0);
        server.primary.wait_for_no_receiver();
    }
    Ok(())
}

/// Every way in which the connection would be less than what was asked for.
pub(crate) fn refused(room: &Room) -> Outcome {
    let server = secured(room);
    let other = room.path("other.crt");
    room.write(&other, authority("another authority").pem());
    let (ours, other, repo) = (server.authority.display(), other.display(), room.path("repo"));
    let cases = [
        ("secure", "sslmode=disable".to_owned(), "pg_hba.conf"),
        ("open", "sslmode=require".to_owned(), "pg_hba.conf"),
        ("open", "sslmode=disable channel_binding=require".to_owned(), "channel binding"),
        ("secure", format!("sslmode=verify-full sslrootcert={other}"), "certificate"),
        ("secure", format!("sslmode=verify-ca sslrootcert={other}"), "certificate"),
        ("secure", "sslmode=verify-full sslrootcert=/no/such/file".to_owned(), "/no/such/file"),
        ("secure", format!("sslmode=verify-full sslrootcert={ours} host=127.0.0.1"), "certificate"),
    ];
    for (user, more, words) in cases {
        let conninfo =
            format!("host=localhost hostaddr=127.0.0.1 port={} user={user} password=right {more}", server.port);
        let said = run(walhold(room, "receive").arg("--repo").arg(&repo).args(["-d", &conninfo]));
        said.refused(1, &[words]);
    }
    // verify-ca does not look at the name.
    let conninfo =
        format!("host=127.0.0.1 port={} user=secure password=right sslmode=verify-ca sslrootcert={ours}", server.port);
    let receiver = receive(room, &room.path("named"), &conninfo, &[]);
    receiver.wait_until_it_streams(&server.primary);
    receiver.terminate().expect(0);
    // A server without TLS.
    let mut plain = Cluster::new(room, "plain");
    plain.stop(Stop::Fast);
    let port = plain.listen();
    plain.start();
    let conninfo = format!("host=127.0.0.1 port={port} user=postgres sslmode=require");
    run(walhold(room, "receive").arg("--repo").arg(&repo).args(["-d", &conninfo])).refused(1, &["TLS"]);
    assert!(!repo.exists());
    Ok(())
}
