//! P6 with certificates of our own, revoked ones, and TLS from the first byte.

use std::path::{Path, PathBuf};

use rcgen::{
    CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, KeyIdMethod, KeyPair,
    RevokedCertParams, SerialNumber,
};

use crate::cluster::{Cluster, Setup, Stop};
use crate::program::{receive, run, walhold};
use crate::room::{Outcome, Room, skip};
use crate::tls::authority;

const SERVER_SERIAL: u64 = 77;

/// A server that knows its clients by certificates, and who signs them.
struct Certified<'a> {
    room: &'a Room,
    primary: Cluster<'a>,
    issuer: CertifiedIssuer<'static, KeyPair>,
    port: u16,
}

fn certified(room: &Room) -> Certified<'_> {
    let issuer = authority("test authority");
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.serial_number = Some(SerialNumber::from(SERVER_SERIAL));
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let [cert_file, key_file, ca_file] = ["server.crt", "server.key", "ca.crt"].map(|name| room.path(name));
    room.write(&cert_file, certificate.pem());
    room.write(&key_file, key.serialize_pem());
    room.write(&ca_file, issuer.pem());
    let settings = [
        "ssl = on".to_owned(),
        format!("ssl_cert_file = '{}'", cert_file.display()),
        format!("ssl_key_file = '{}'", key_file.display()),
        format!("ssl_ca_file = '{}'", ca_file.display()),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let hba = [
        "hostssl all,replication known,other 127.0.0.1/32 cert",
        "hostssl all,replication trusted 127.0.0.1/32 trust clientcert=verify-ca",
        "hostssl all,replication anyone 127.0.0.1/32 trust",
    ];
    let mut primary = Cluster::with(room, "primary", &Setup { settings: &settings, hba: &hba, ..Setup::default() });
    for role in ["known", "other", "trusted", "anyone"] {
        primary.rows(&format!("create role {role} login replication"));
    }
    primary.stop(Stop::Fast);
    let port = primary.listen();
    primary.start();
    Certified { room, primary, issuer, port }
}

impl Certified<'_> {
    fn conninfo(&self, user: &str, more: &str) -> String {
        let root = self.room.path("ca.crt");
        let address = format!("host=localhost hostaddr=127.0.0.1 port={} user={user}", self.port);
        format!("{address} sslmode=verify-full sslrootcert={} {more}", root.display())
    }

    #[track_caller]
    fn streams(&self, repo: &str, user: &str, more: &str) {
        let receiver = receive(self.room, &self.room.path(repo), &self.conninfo(user, more), &[]);
        receiver.wait_until_it_streams(&self.primary);
        receiver.terminate().expect(0);
        self.primary.wait_for_no_receiver();
    }

    #[track_caller]
    fn refused(&self, user: &str, more: &str, words: &[&str]) {
        let mut command = walhold(self.room, "receive");
        command.arg("--repo").arg(self.room.path("never")).args(["-d", &self.conninfo(user, more)]);
        run(&mut command).refused(1, words);
    }

    /// Certificate and key for this role.
    fn issue(&self, signer: &CertifiedIssuer<'static, KeyPair>, role: &str, certificate: &Path, key: &Path) {
        let pair = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, role);
        self.room.write(certificate, params.signed_by(&pair, signer).unwrap().pem());
        self.room.write(key, pair.serialize_pem());
    }

    fn list(&self, name: &str, serial: u64) -> PathBuf {
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
        let path = self.room.path(name);
        self.room.write(&path, params.signed_by(&self.issuer).unwrap().pem().unwrap());
        path
    }

    fn has_tls(&self) -> bool {
        self.primary.sql("show ssl") == "on"
    }
}

/// A certificate is who one is, or a second proof of it; without one there is no way in.
pub(crate) fn of_client(room: &Room) -> Outcome {
    let server = certified(room);
    if !server.has_tls() {
        skip!("this PostgreSQL {} has no TLS", room.server.major);
    }
    let (certificate, key) = (room.path("known.crt"), room.path("known.key"));
    server.issue(&server.issuer, "known", &certificate, &key);
    let ours = format!("sslcert={} sslkey={}", certificate.display(), key.display());
    server.streams("known", "known", &format!("{ours} sslcertmode=require require_auth=none"));
    server.streams("older", "known", &format!("{ours} ssl_max_protocol_version=TLSv1.2"));
    server.streams("trusted", "trusted", &ours);
    server.streams("anyone", "anyone", "");
    server.refused("other", &ours, &["ertificate authentication failed for user"]);
    server.refused("known", "", &["valid client certificate"]);
    server.refused("trusted", &format!("{ours} sslcertmode=disable"), &["valid client certificate"]);
    server.refused("anyone", "sslcertmode=require", &["let us in without one"]);
    server.refused("known", &format!("{ours} require_auth=scram-sha-256"), &["without authentication"]);

    let (strange, strange_key) = (room.path("strange.crt"), room.path("strange.key"));
    server.issue(&authority("another authority"), "known", &strange, &strange_key);
    let strangers = format!("sslcert={} sslkey={}", strange.display(), strange_key.display());
    server.refused("known", &strangers, &["does not accept our certificate"]);

    // Where libpq looks for them too.
    room.make_dir(&room.path(".postgresql"));
    let [certificate, key] = ["crt", "key"].map(|end| room.path(&format!(".postgresql/postgresql.{end}")));
    server.issue(&server.issuer, "known", &certificate, &key);
    server.streams("usual", "known", "");
    Ok(())
}

/// A server whose certificate its authority took back.
pub(crate) fn revoked(room: &Room) -> Outcome {
    let server = certified(room);
    if !server.has_tls() {
        skip!("this PostgreSQL {} has no TLS", room.server.major);
    }
    let good = server.list("good.crl", SERVER_SERIAL + 1);
    let bad = server.list("bad.crl", SERVER_SERIAL);
    server.streams("good", "anyone", &format!("sslcrl={}", good.display()));
    server.refused("anyone", &format!("sslcrl={}", bad.display()), &["it is revoked"]);
    server.refused("anyone", &format!("sslmode=verify-ca sslcrl={}", bad.display()), &["it is revoked"]);
    server.refused("anyone", "sslcrl=/no/such/list", &["/no/such/list"]);
    Ok(())
}

/// From 17 on a server takes TLS without being asked for it.
pub(crate) fn direct(room: &Room) -> Outcome {
    let server = certified(room);
    if !server.has_tls() {
        skip!("this PostgreSQL {} has no TLS", room.server.major);
    }
    match room.server.major {
        17.. => server.streams("direct", "anyone", "sslnegotiation=direct"),
        _ => server.refused("anyone", "sslnegotiation=direct", &["PostgreSQL before 17"]),
    }
    let mut command = walhold(room, "receive");
    command.arg("--repo").arg(room.path("never")).args(["-d", "host=localhost sslnegotiation=direct"]);
    run(&mut command).refused(2, &["sslnegotiation=direct needs sslmode=require"]);
    Ok(())
}
