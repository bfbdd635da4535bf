//! Several hosts: which one it is in the end, and why not another.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use walhold::connection::{ConnectError, Conninfo, Purpose, Session};

use super::login::password_file;
use super::server::{
    Door, Peer, Server, accepted, authentication, conninfo, error, message, parameter, ready, single_row,
};

/// A port at which nobody answers.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port().to_string()
}

/// These ports of this machine, in this order.
fn at(ports: &[&str], more: &str) -> Conninfo {
    let hosts = vec!["127.0.0.1"; ports.len()].join(",");
    conninfo(&format!("host={hosts} port={} user=tester sslmode=disable {more}", ports.join(",")), None)
}

async fn connect(conninfo: &Conninfo) -> Result<Session, ConnectError> {
    Session::connect(conninfo, Purpose::Replication, "walhold").await
}

async fn refusal(conninfo: &Conninfo) -> ConnectError {
    match connect(conninfo).await {
        Err(error) => error,
        Ok(session) => panic!("{} let us in", session.target()),
    }
}

/// What a server from 14 on says at the end of a login.
fn reporting(standby: bool, read_only: bool) -> Vec<u8> {
    let on = |value: bool| if value { "on" } else { "off" };
    [
        authentication(0, b""),
        parameter("server_version", "17.2"),
        parameter("integer_datetimes", "on"),
        parameter("in_hot_standby", on(standby)),
        parameter("default_transaction_read_only", on(read_only)),
        message(b'K', &[0; 8]),
        ready(),
    ]
    .concat()
}

/// A server in this state, that is left again if it is not the one that is looked for.
async fn in_state(standby: bool, read_only: bool) -> Server {
    Server::start(move |mut peer: Peer| async move {
        peer.expect_startup().await;
        peer.send(reporting(standby, read_only)).await;
        peer.expect_close().await;
    })
    .await
}

#[tokio::test]
async fn hosts_that_are_away_or_starting_are_passed_over() {
    let starting = Server::start(async |mut peer: Peer| {
        peer.expect_startup().await;
        peer.send(error("FATAL", "57P03", "the database system is starting up")).await;
    })
    .await;
    let hangs_up = Server::start(async |peer: Peer| drop(peer)).await;
    let good = Server::start(async |mut peer: Peer| peer.log_in("17.2").await).await;
    let conninfo = at(&[&nobody().await, starting.port(), hangs_up.port(), good.port()], "");
    let session = connect(&conninfo).await.unwrap();
    assert_eq!(session.target(), format!("127.0.0.1:{}", good.port()));
    for server in [starting, hangs_up, good] {
        server.finish().await;
    }
}

#[tokio::test]
async fn a_silent_host_costs_its_own_time_limit_and_no_more() {
    let silent = Server::start(async |mut peer: Peer| {
        peer.expect_startup().await;
        peer.expect_close().await;
    })
    .await;
    let good = Server::start(async |mut peer: Peer| peer.log_in("17.2").await).await;
    let begun = Instant::now();
    connect(&at(&[silent.port(), good.port()], "connect_timeout=2")).await.unwrap();
    assert!((Duration::from_secs(2)..Duration::from_secs(4)).contains(&begun.elapsed()));
    silent.finish().await;
    good.finish().await;
}

#[tokio::test]
async fn who_is_told_no_does_not_ask_elsewhere() {
    for (sqlstate, text) in [
        ("28P01", "password authentication failed"),
        ("28000", "no pg_hba.conf entry"),
        ("53300", "too many connections"),
    ] {
        let refusing = Server::start(move |mut peer: Peer| async move {
            peer.expect_startup().await;
            peer.send(error("FATAL", sqlstate, text)).await;
        })
        .await;
        // Nobody must come here; if somebody did, the error would name it.
        let unasked = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let unasked_port = unasked.local_addr().unwrap().port().to_string();
        let away = nobody().await;
        let refused = refusal(&at(&[&away, refusing.port(), &unasked_port], "connect_timeout=2")).await;
        let said = refused.to_string();
        assert!(said.contains(&format!("127.0.0.1:{away}")) && said.contains(text), "{said}");
        assert!(!said.contains(&unasked_port) && !said.contains('\n'), "{said}");
        assert_eq!(refused.server_error().unwrap().message, text);
        assert_eq!(refused.is_transient(), sqlstate == "53300");
        refusing.finish().await;
    }
}

#[tokio::test]
async fn a_missing_password_is_seen_behind_the_hosts_before() {
    let asking = Server::start(async |mut peer: Peer| {
        peer.expect_startup().await;
        peer.send(authentication(3, b"")).await;
        peer.expect_close().await;
    })
    .await;
    let refused = refusal(&at(&[&nobody().await, asking.port()], "")).await;
    assert!(refused.is_password_missing(), "{refused}");
    assert!(refused.hint().unwrap().contains(".pgpass"));
    asking.finish().await;
}

#[tokio::test]
async fn each_host_has_its_own_password() {
    let folder = tempfile::tempdir().unwrap();
    let asking = Server::start(async |mut peer: Peer| {
        peer.expect_startup().await;
        peer.send(authentication(3, b"")).await;
        assert_eq!(peer.expect(b'p').await, b"the second\0");
        peer.send(accepted("17.2")).await;
    })
    .await;
    let away = nobody().await;
    let lines = format!("127.0.0.1:{away}:*:*:the first\n127.0.0.1:{}:*:*:the second\n", asking.port());
    password_file(folder.path(), &lines);
    let text = format!("host=127.0.0.1,127.0.0.1 port={away},{} user=tester sslmode=disable", asking.port());
    connect(&conninfo(&text, Some(folder.path().to_owned()))).await.unwrap();
    asking.finish().await;
}

#[tokio::test]
async fn the_server_that_is_looked_for_is_found() {
    // Standby and read-only by default, for each server; and which of them it is.
    const STANDBY: (bool, bool) = (true, false);
    const PRIMARY: (bool, bool) = (false, false);
    const CLOSED: (bool, bool) = (false, true);
    for (attrs, first, second, found) in [
        ("any", STANDBY, PRIMARY, 0),
        ("primary", STANDBY, CLOSED, 1),
        ("standby", CLOSED, STANDBY, 1),
        ("read-write", STANDBY, PRIMARY, 1),
        ("read-write", CLOSED, PRIMARY, 1),
        ("read-only", PRIMARY, CLOSED, 1),
        ("read-only", PRIMARY, STANDBY, 1),
        ("prefer-standby", PRIMARY, STANDBY, 1),
        ("prefer-standby", PRIMARY, CLOSED, 0),
    ] {
        let servers = [in_state(first.0, first.1).await, in_state(second.0, second.1).await];
        let ports = [servers[0].port(), servers[1].port()];
        let session = connect(&at(&ports, &format!("target_session_attrs={attrs}"))).await.unwrap();
        assert_eq!(session.target(), format!("127.0.0.1:{}", ports[found]), "{attrs}");
        session.close().await;
    }
}

#[tokio::test]
async fn servers_that_will_not_do_are_named_with_the_reason() {
    for (attrs, standby, read_only, what) in [
        ("primary", true, false, "is a standby, and target_session_attrs=primary"),
        ("standby", false, false, "is a primary, and target_session_attrs=standby"),
        ("read-write", false, true, "is read-only, and target_session_attrs=read-write"),
        ("read-only", false, false, "is not read-only, and target_session_attrs=read-only"),
    ] {
        let server = in_state(standby, read_only).await;
        let away = nobody().await;
        let port = server.port().to_owned();
        let refused = refusal(&at(&[&port, &away], &format!("target_session_attrs={attrs}"))).await;
        let said = refused.to_string();
        assert!(said.contains(&format!("127.0.0.1:{port} {what}")) && said.contains(&away), "{said}");
        // A promotion may change it, so it is worth another try.
        assert!(refused.is_transient() && refused.hint().is_some(), "{said}");
        server.finish().await;
    }
}

#[tokio::test]
async fn servers_before_14_are_asked_without_sql() {
    let answers = |read_only: &'static str, by_default: Option<&'static str>| {
        Server::start(move |mut peer: Peer| async move {
            peer.log_in("13.23").await;
            peer.expect_query("SHOW \"transaction_read_only\"").await;
            peer.send(single_row(&[Some(read_only)])).await;
            if let Some(value) = by_default {
                peer.expect_query("SHOW \"default_transaction_read_only\"").await;
                peer.send(single_row(&[Some(value)])).await;
            }
            peer.expect_close().await;
        })
    };
    for (attrs, read_only, by_default, suits) in [
        ("primary", "off", None, true),
        ("read-write", "off", None, true),
        ("standby", "on", Some("off"), true),
        ("primary", "on", Some("off"), false),
        ("read-only", "on", Some("on"), true),
        // It may be either.
        ("primary", "on", Some("on"), false),
        ("standby", "on", Some("on"), false),
        ("prefer-standby", "on", Some("on"), true),
    ] {
        let server = answers(read_only, by_default).await;
        let outcome = connect(&at(&[server.port()], &format!("target_session_attrs={attrs}"))).await;
        match outcome {
            Ok(session) => {
                assert!(suits, "{attrs}");
                session.close().await;
            }
            Err(error) => assert!(!suits && matches!(error, ConnectError::Unsuited { .. }), "{attrs}: {error}"),
        }
        server.finish().await;
    }
}

#[tokio::test]
async fn a_second_connection_leads_to_the_same_server() {
    // Away at first, and back before the second connection is made.
    let first = Server::serve(async |mut door: Door| {
        drop(door.next().await);
        door.next().await.log_in("17.2").await;
    })
    .await;
    let second = Server::start_two(
        async |mut peer: Peer| {
            peer.expect_startup().await;
            peer.send(reporting(false, false)).await;
        },
        async |mut peer: Peer| {
            let settings = peer.expect_startup().await;
            assert_eq!(settings[1], ("database".to_owned(), "postgres".to_owned()));
            // It has changed since, which must not matter.
            peer.send(reporting(true, false)).await;
        },
    )
    .await;
    let conninfo = at(&[first.port(), second.port()], "target_session_attrs=primary");
    let session = connect(&conninfo).await.unwrap();
    let again = Session::connect(&conninfo.at(&session), Purpose::Sql, "walhold").await.unwrap();
    assert_eq!(again.target(), session.target());
    second.finish().await;
}

#[tokio::test]
async fn the_user_behind_a_socket_is_checked() {
    let us = std::fs::read_to_string("/etc/passwd").unwrap();
    let uid = rustix::process::geteuid().as_raw().to_string();
    let us = us.lines().find(|line| line.split(':').nth(2) == Some(&uid)).unwrap().split(':').next().unwrap();
    for (wanted, right) in [(us, true), ("somebody-else", false)] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start_unix(folder.path(), move |mut peer: Peer| async move {
            match right {
                true => peer.log_in("17.2").await,
                false => peer.expect_close().await,
            }
        });
        match connect(&conninfo(&format!("{} user=u requirepeer={wanted}", server.address), None)).await {
            Ok(_) => assert!(right),
            Err(error) => assert!(!right && matches!(error, ConnectError::Peer { .. }), "{error}"),
        }
        server.finish().await;
    }
}

#[tokio::test]
async fn a_socket_may_have_an_abstract_name() {
    let name = format!("walhold-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(format!("{name}/.s.PGSQL.5432")).unwrap();
    let listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::UnixListener::from_std(listener).unwrap();
    let server = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        Peer::over(socket).log_in("17.2").await;
    });
    let session = connect(&conninfo(&format!("host=@{name} user=u"), None)).await.unwrap();
    assert_eq!(session.target(), format!("@{name}/.s.PGSQL.5432"));
    server.await.unwrap();
}
