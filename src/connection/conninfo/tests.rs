use secrecy::ExposeSecret;

use super::super::encryption::{CertFile, CertMode, RootCert, SslMode, TlsVersion};
use super::super::hosts::Endpoint;
use super::super::method::Method;
use super::*;

fn surroundings(variables: &'static [(&'static str, &'static str)]) -> Surroundings {
    let value = move |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    Surroundings { variable: Box::new(value), user: Some("me".into()), home: Some("/home/me".into()) }
}

fn flags(conninfo: &str) -> Flags {
    Flags { conninfo: Some(conninfo.to_owned()), ..Flags::default() }
}

fn conninfo(text: &str) -> Result<Conninfo, ConninfoError> {
    Conninfo::new(&flags(text), &surroundings(&[]))
}

fn tcp(host: &str, port: u16) -> Host {
    Host { endpoint: Endpoint::Tcp { host: host.into(), address: None }, port }
}

fn sockets(directories: &[&str], port: u16) -> Host {
    Host { endpoint: Endpoint::Unix(directories.iter().map(|name| (*name).to_owned()).collect()), port }
}

#[test]
fn flags_come_before_string_before_environment_before_defaults() {
    let environment = surroundings(&[("PGHOST", "env"), ("PGPORT", "1"), ("PGUSER", "envuser"), ("PGAPPNAME", "app")]);
    let all = Flags { host: Some("flag".into()), ..flags("host=string port=2") };
    let made = Conninfo::new(&all, &environment).unwrap();
    assert_eq!(made.hosts, [tcp("flag", 2)]);
    assert_eq!((made.user(), made.application_name()), ("envuser", Some("app")));

    let made = conninfo("").unwrap();
    assert_eq!(made.hosts, [sockets(&["/var/run/postgresql", "/tmp"], 5432)]);
    assert_eq!((made.user(), made.hosts[0].passfile_name()), ("me", "localhost"));
    assert_eq!(made.passfile, Some("/home/me/.pgpass".into()));
    assert_eq!(made.timeout, Some(CONNECT_TIMEOUT));
    assert_eq!((made.encryption.mode, made.channel_binding), (SslMode::Prefer, ChannelBinding::Prefer));
    assert_eq!(made.encryption.roots, RootCert::Default(Some("/home/me/.postgresql/root.crt".into())));
}

#[test]
fn an_empty_value_is_the_default() {
    let environment = surroundings(&[("PGHOST", "env"), ("PGPASSWORD", "")]);
    let made = Conninfo::new(&flags("host='' user=''"), &environment).unwrap();
    assert!(matches!(made.hosts[0].endpoint, Endpoint::Unix(_)));
    assert!(made.password.is_none());
    assert_eq!(made.user(), "me");
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
        ("ssl_max_protocol_version=TLSv1.1", "ssl_max_protocol_version"),
        ("sslnegotiation=fast", "sslnegotiation"),
        ("sslcertmode=always", "sslcertmode"),
        ("sslsni=yes", "sslsni"),
        ("target_session_attrs=master", "target_session_attrs"),
        ("load_balance_hosts=on", "load_balance_hosts"),
        ("host=a,b port=1,x", "port"),
        ("hostaddr=127.0.0.1,b", "hostaddr"),
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
    assert_eq!((made.encryption.mode, made.encryption.roots), (SslMode::VerifyFull, RootCert::System));
    assert_eq!(conninfo("sslrootcert=system sslmode=verify-ca").unwrap_err(), ConninfoError::WeakSystemRoots);
    assert_eq!(conninfo("sslrootcert=/x sslmode=require").unwrap().encryption.roots, RootCert::File("/x".into()));
    let made = Conninfo::new(&flags(""), &surroundings(&[("PGREQUIRESSL", "1")])).unwrap();
    assert_eq!(made.encryption.mode, SslMode::Require);
}

#[test]
fn a_password_is_not_shown() {
    for text in ["password=correct horse=battery", "password=correct horse battery"] {
        let error = conninfo(text).unwrap_err().to_string();
        assert!(!error.contains("horse") && !error.contains("battery"), "{error}");
    }
    let made = conninfo("postgresql://u:hush@h").unwrap();
    assert_eq!(made.password.as_ref().unwrap().expose_secret(), "hush");
    assert!(!format!("{made:?}").contains("hush"));
}

#[test]
fn hosts_addresses_and_sockets() {
    let address = "10.0.0.1".parse().ok();
    let at = |host: &str| Host { endpoint: Endpoint::Tcp { host: host.into(), address }, port: 5432 };
    for (text, host, target, passfile_name) in [
        ("host=db", tcp("db", 5432), "db:5432", "db"),
        ("host=::1 port=6000", tcp("::1", 6000), "[::1]:6000", "::1"),
        ("host=/run/pg port=7", sockets(&["/run/pg"], 7), "/run/pg/.s.PGSQL.7", "/run/pg"),
        ("host=/tmp", sockets(&["/tmp"], 5432), "/tmp/.s.PGSQL.5432", "localhost"),
        ("host=@pg", sockets(&["@pg"], 5432), "@pg/.s.PGSQL.5432", "@pg"),
        ("host=db hostaddr=10.0.0.1", at("db"), "db:5432", "db"),
        ("hostaddr=10.0.0.1", at("10.0.0.1"), "10.0.0.1:5432", "10.0.0.1"),
    ] {
        let made = conninfo(text).unwrap();
        assert_eq!(made.hosts, [host], "{text}");
        assert_eq!((made.target().as_str(), made.hosts[0].passfile_name()), (target, passfile_name), "{text}");
    }
}

#[test]
fn lists_of_hosts_and_ports_are_paired() {
    for (text, targets) in [
        ("host=a,b", "a:5432, b:5432"),
        ("host=a,b port=7", "a:7, b:7"),
        ("host=a,b,c port=1,,3", "a:1, b:5432, c:3"),
        ("host=a,b hostaddr=10.0.0.1,", "a:5432, b:5432"),
        ("hostaddr=10.0.0.1,::1 port=1,2", "10.0.0.1:1, [::1]:2"),
        ("host=a,,/run port=1", "a:1, /var/run/postgresql/.s.PGSQL.1 or /tmp/.s.PGSQL.1, /run/.s.PGSQL.1"),
        ("postgresql://a:1,b:2,[::1]/db", "a:1, b:2, [::1]:5432"),
        ("postgresql://a,b:2", "a:5432, b:2"),
        ("postgresql://a,b?port=9", "a:9, b:9"),
    ] {
        assert_eq!(conninfo(text).unwrap().target(), targets, "{text}");
    }
    for (text, what) in [
        ("host=a,b,c port=1,2", "port"),
        ("port=1,2", "port"),
        ("host=a hostaddr=10.0.0.1,10.0.0.2", "host"),
        ("host=a,b hostaddr=10.0.0.1", "host"),
    ] {
        let Err(ConninfoError::Unpaired { what: named, .. }) = conninfo(text) else { panic!("{text}") };
        assert_eq!(named, what, "{text}");
    }
}

#[test]
fn what_cannot_be_honoured_is_named() {
    for (text, keyword) in [
        ("gssencmode=require", "gssencmode"),
        ("gssdelegation=1", "gssdelegation"),
        ("krbsrvname=x", "krbsrvname"),
        ("replication=database", "replication"),
        ("client_encoding=LATIN1", "client_encoding"),
        ("sslcompression=1", "sslcompression"),
        ("min_protocol_version=3.2", "min_protocol_version"),
        ("scram_client_key=x", "scram_client_key"),
        ("oauth_issuer=x", "oauth_issuer"),
        ("sslkeylogfile=x", "sslkeylogfile"),
    ] {
        let Err(ConninfoError::NotHonoured { keyword: named, .. }) = conninfo(text) else { panic!("{text}") };
        assert_eq!(named, keyword);
    }
    for text in ["gssencmode=prefer replication=true target_session_attrs=any client_encoding=UTF8", "dbname=x"] {
        assert!(conninfo(text).is_ok(), "{text}");
    }
    assert_eq!(conninfo("sslmod=require").unwrap_err(), ConninfoError::UnknownKeyword("sslmod".into()));
    let error = Conninfo::new(&flags(""), &surroundings(&[("PGGSSENCMODE", "require")])).unwrap_err();
    assert_eq!(error.to_string(), "walhold cannot honour gssencmode (PGGSSENCMODE) (it takes: disable, prefer)");
    assert!(Conninfo::new(&flags(""), &surroundings(&[("PGKRBSRVNAME", "x")])).is_ok());
}

#[test]
fn tls_settings_are_read() {
    let made = conninfo("").unwrap().encryption;
    assert!(!made.direct && made.sni && made.client.password.is_none());
    assert_eq!((made.min, made.max, made.client.mode), (TlsVersion::V12, TlsVersion::V13, CertMode::Allow));
    assert_eq!(made.client.key, CertFile::Usual(Some("/home/me/.postgresql/postgresql.key".into())));
    assert_eq!(made.revocation.file, CertFile::Usual(Some("/home/me/.postgresql/root.crl".into())));
    let made = conninfo(
        "sslmode=require sslnegotiation=direct sslsni=0 sslcert=/c sslkey=/k sslpassword=hush sslcertmode=require \
         sslcrldir=/d ssl_max_protocol_version=TLSv1.2",
    );
    let made = made.unwrap().encryption;
    assert!(made.direct && !made.sni && !format!("{made:?}").contains("hush"));
    assert_eq!((made.max, made.client.mode), (TlsVersion::V12, CertMode::Require));
    assert_eq!(
        (made.client.certificate, made.client.key),
        (CertFile::Named("/c".into()), CertFile::Named("/k".into()))
    );
    assert_eq!((made.revocation.file, made.revocation.directory), (CertFile::Usual(None), Some("/d".into())));
    assert_eq!(conninfo("sslnegotiation=direct").unwrap_err(), ConninfoError::WeakDirect);
    let error = conninfo("ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2").unwrap_err();
    assert_eq!(error, ConninfoError::NoTlsVersion);
    assert_eq!(conninfo("requiressl=1").unwrap().encryption.mode, SslMode::Require);
}

#[allow(clippy::disallowed_methods, reason = "a test's own files")]
#[test]
fn a_service_stands_between_string_and_environment() {
    let folder = tempfile::tempdir().unwrap();
    let (own, system) = (folder.path().join("own.conf"), folder.path().join("pg_service.conf"));
    std::fs::write(&own, "[prod]\nhost=a,b\nport=1\nuser=service\npassword=hush\n[odd]\nsslmod=x\nhush\n").unwrap();
    std::fs::write(&system, "[prod]\nhost=not-this\n[late]\nhost=system\nport=bad\n").unwrap();
    let surroundings = |more: &[(&str, &str)]| {
        let mut variables: Vec<(String, String)> = vec![
            ("PGSERVICEFILE".into(), own.display().to_string()),
            ("PGSYSCONFDIR".into(), folder.path().display().to_string()),
            ("PGUSER".into(), "env".into()),
            ("PGAPPNAME".into(), "env".into()),
        ];
        variables.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let variable = move |name: &str| variables.iter().rev().find(|(key, _)| key == name).map(|(_, v)| v.clone());
        Surroundings { variable: Box::new(variable), user: None, home: None }
    };
    let made = Conninfo::new(&flags("service=prod port=2"), &surroundings(&[])).unwrap();
    assert_eq!((made.target().as_str(), made.user(), made.application_name()), ("a:2, b:2", "service", Some("env")));
    assert_eq!(made.password.unwrap().expose_secret(), "hush");
    // An empty value in the string is the default, not the service's or the environment's.
    let made = Conninfo::new(&flags("user=u port='' host=h"), &surroundings(&[("PGSERVICE", "prod")])).unwrap();
    assert_eq!((made.target().as_str(), made.user()), ("h:5432", "u"));
    let made = Conninfo::new(&flags("service='' host=h"), &surroundings(&[("PGSERVICE", "prod")])).unwrap();
    assert_eq!((made.target().as_str(), made.user()), ("h:5432", "env"));

    let refused = |text: &str, more: &[(&str, &str)]| Conninfo::new(&flags(text), &surroundings(more)).unwrap_err();
    assert_eq!(refused("service=none", &[]), ConninfoError::NoService("none".into()));
    let error = refused("service=odd", &[]).to_string();
    assert!(error.contains("own.conf: line 8 has no") && !error.contains("hush"), "{error}");
    let error = refused("service=late", &[]).to_string();
    assert!(error.starts_with("port \"bad\"") && error.contains("pg_service.conf, line 5"), "{error}");
    let error = refused("service=late", &[("PGSERVICEFILE", "/nonexistent/file")]).to_string();
    assert!(error.starts_with("service file /nonexistent/file"), "{error}");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,60}", scheme in proptest::bool::ANY) {
        let text = if scheme { format!("postgresql://{text}") } else { text };
        let _ = conninfo(&text);
    }

    #[test]
    fn no_nearly_right_text_makes_it_panic(text in r"(host|hostaddr|port|user|service|[a-z@:/?&=%,' \\\[\]0-9.]){0,30}") {
        for text in [text.clone(), format!("postgres://{text}"), format!("host={text}"), format!("port='{text}")] {
            let _ = conninfo(&text).map(|made| made.target());
        }
    }

    #[test]
    fn what_was_quoted_comes_back(host in "[a-z0-9 '\\\\=]{1,20}", password in "\\PC{1,20}") {
        let quoted = |text: &str| text.replace('\\', r"\\").replace('\'', r"\'");
        let made = conninfo(&format!("user='{}' password='{}'", quoted(&host), quoted(&password))).unwrap();
        proptest::prop_assert_eq!(made.user(), host.as_str());
        let found = made.password.unwrap();
        proptest::prop_assert_eq!(found.expose_secret(), password.as_str());
    }
}

#[test]
fn servers_that_do_not_fit_are_left_out() {
    let all = conninfo("host=a,b,/run port=1,2,3").unwrap();
    let left = |targets: &[&str]| {
        let targets: Vec<_> = targets.iter().map(|&target| target.to_owned()).collect();
        all.without(&targets).map(|left| left.hosts)
    };
    assert_eq!(left(&["a:1"]), Some(vec![tcp("b", 2), sockets(&["/run"], 3)]));
    assert_eq!(left(&["b:2 (10.0.0.1)", "/run/.s.PGSQL.3"]), Some(vec![tcp("a", 1)]));
    assert_eq!(left(&["a:11"]).map(|hosts| hosts.len()), Some(3));
    assert_eq!(left(&["a:1", "b:2", "/run/.s.PGSQL.3"]), None);
}
