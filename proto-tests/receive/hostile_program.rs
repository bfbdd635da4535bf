//! The program itself against servers that break the rules: it ends in time, says who broke what, writes nothing outside
//! its folder, and takes little memory.
//!
//! | what a server does | test |
//! |---|---|
//! | wrong lengths and counts, answers and rows out of shape, more of an answer than fits | `p6_answers_out_of_shape` |
//! | notices without end | `p6_notices_without_end`, in a copy `backups::p6_notices_in_a_copy_without_end` |
//! | WAL at wrong positions, other timelines, messages out of place | `p6_streams_that_break_the_rules` |
//! | WAL that is none; more of it, and faster, than can be kept | `p6_wal_that_is_none`, `p6_a_flood_of_good_wal_takes_no_memory` |
//! | SCRAM with a million iterations, a wrong signature, none, logins without end | `p6_logins_that_are_none` |
//! | plain text where TLS was asked for and promised | `p6_logins_that_are_none` |
//! | malformed archives, names that lead elsewhere, files in each other's way | `backups::p6_archives_that_are_none`, `backups::p6_a_copy_goes_only_where_it_may` |
//! | malformed manifests, and such as lie or have no end | `backups::p6_manifests_that_are_none`, `backups::p6_a_manifest_without_end` |
//! | files, names, directories and labels without end | `backups::p6_a_label_without_end`, `datadir/tests.rs` `p6_*` |
//! | as many files as it likes, and clashes among them | `large::*` |
//!
//! `login.rs`, `client_tls.rs`, `session.rs` and `basebackup.rs` have more of each, against the modules.

mod backups;
mod large;

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::*;
use crate::scram::Scram;
use crate::server::{accepted, copy_data, message, notice};

/// More than walhold may ever have in memory under such a server: 64 MiB.
const MEMORY: u64 = 64 << 10;
/// A program that takes longer hangs.
const END: Duration = Duration::from_secs(100);

/// How the program ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    said: String,
    /// The most memory that it had, in KiB.
    peak: u64,
    took: Duration,
}

/// Runs the program in a folder, and looks at its memory as long as it runs.
fn run(arguments: &[&str], folder: &Path) -> Ended {
    run_for(END, arguments, folder)
}

fn run_for(limit: Duration, arguments: &[&str], folder: &Path) -> Ended {
    let mut child = Command::new(env!("CARGO_BIN_EXE_walhold"))
        .args(arguments)
        .env_clear()
        .env("HOME", folder)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut said = String::new();
        let _ = stderr.read_to_string(&mut said);
        said
    });
    let status = format!("/proc/{}/status", child.id());
    let (begun, mut peak) = (Instant::now(), 0);
    let code = loop {
        let high = fs::read_to_string(&status).unwrap_or_default();
        let high =
            high.lines().find_map(|line| line.strip_prefix("VmHWM:")).and_then(|rest| rest.split(' ').rev().nth(1));
        peak = peak.max(high.and_then(|kb| kb.trim().parse().ok()).unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if begun.elapsed() > limit {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Ended { code, said: reader.join().unwrap(), peak, took: begun.elapsed() }
}

/// Runs a command against a server; it must fail with this code and these words.
async fn refuses<F: Future<Output = ()> + Send>(
    arguments: &[&str],
    connection: &str,
    expected: (i32, &str),
    script: impl FnOnce(Door) -> F + Send + 'static,
) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("in")).unwrap();
    // What must stay as it is.
    fs::create_dir(folder.path().join("outside")).unwrap();
    let canaries = ["canary", "outside/canary", "in/canary"].map(|name| folder.path().join(name));
    canaries.iter().for_each(|canary| fs::write(canary, "alive").unwrap());
    let server = Server::serve(script).await;
    let conninfo = format!("host=127.0.0.1 port={} user=tester {connection}", server.port());
    let mut all: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
    all.extend(["-w", "-d", &conninfo].map(str::to_owned));
    let home = folder.path().join("in");
    let ended = tokio::task::spawn_blocking(move || {
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        run(&all, &home)
    });
    let ended = ended.await.unwrap();
    server.finish_within(Duration::from_millis(200)).await;
    let (code, words) = expected;
    eprintln!("{words}: {} KiB, {:?}", ended.peak, ended.took);
    assert!(ended.said.contains(words), "{words:?} is not in what it said:\n{}", ended.said);
    assert_eq!(ended.code, Some(code), "{ended:?}");
    // One that ends at once has hardly been looked at.
    let seen = ended.peak > 1000 || ended.took < Duration::from_millis(500);
    assert!(seen && ended.peak < MEMORY, "{} KiB of memory: {}", ended.peak, ended.said);
    let count = |dir: &Path| fs::read_dir(dir).unwrap().count();
    let around = (count(folder.path()), count(&folder.path().join("outside")));
    assert_eq!(around, (3, 1), "something was written outside: {}", ended.said);
    assert!(canaries.iter().all(|canary| fs::read(canary).unwrap() == b"alive"));
    ended
}

const RECEIVE: [&str; 5] = ["receive", "--repo", "repo", "--no-slot", "-n"];
const PLAIN: &str = "sslmode=disable";

/// A server to which the client has said hello, asked who it is, and has been told this.
async fn identity(answer: Vec<u8>, expected: &'static str) {
    refuses(&RECEIVE, PLAIN, (1, expected), async move |mut door| {
        let mut peer = door.next().await;
        peer.log_in("17.2").await;
        peer.expect_query("IDENTIFY_SYSTEM").await;
        peer.try_send(&answer).await;
        peer.drain().await;
    })
    .await;
}

/// A server that lets us stream and then sends this.
async fn stream(code: i32, sent: Vec<Vec<u8>>, expected: &'static str) {
    refuses(&RECEIVE, PLAIN, (code, expected), async move |mut door| {
        let mut peer = door.next().await;
        peer.introduce(&NODE).await;
        peer.stream(false, START, 1).await;
        for message in sent {
            peer.try_send(&message).await;
        }
        peer.drain().await;
    })
    .await;
}

impl Peer {
    /// Takes what the client still says until it hangs up.
    async fn drain(mut self) {
        while self.next().await.is_some() {}
    }
}

#[tokio::test]
async fn p6_answers_out_of_shape() {
    let long = |tag: u8| [&[tag][..], &0x7FFF_FFFF_u32.to_be_bytes()].concat();
    identity(long(b'D'), "a message of 2147483643 bytes where at most").await;
    identity(vec![b'T', 0, 0, 0, 3], "impossible length").await;
    identity(single_row(&[Some("77")]), "answer to IDENTIFY_SYSTEM does not have").await;
    identity(single_row(&[None, None, None, None]), "as its system identifier").await;
    identity(single_row(&[Some("x"), Some("1"), Some("0/0"), None]), "\"x\"").await;
    // A count of columns that nobody sent.
    identity(message(b'D', &[0x7F, 0xFF, 0, 0]), "a malformed row").await;
    let rows = row(&[Some(&"7".repeat(100_000)), Some("1"), Some("0/0"), None]);
    identity([columns(4), rows.repeat(400)].concat(), "more than 16777216 bytes in an answer").await;
}

#[tokio::test]
async fn p6_notices_without_end() {
    let flood = notice(&"n".repeat(8000)).repeat(4000);
    refuses(&RECEIVE, PLAIN, (1, "closed the connection"), async move |mut door| {
        let mut peer = door.next().await;
        peer.log_in("17.2").await;
        peer.expect_query("IDENTIFY_SYSTEM").await;
        for _ in 0..6 {
            peer.try_send(&flood).await;
        }
    })
    .await;
}

#[tokio::test]
async fn p6_streams_that_break_the_rules() {
    let log = log_to(START + 3 * SIZE);
    let good = |from: usize, to: usize| wal(START + from as u64, &log.bytes[from..to]);
    stream(1, vec![good(0, 8192), wal(START + 9 * SIZE, &[7; 100])], "where 0/302000 comes next").await;
    stream(1, vec![copy_data(b"w\0\0")], "a malformed WAL message").await;
    stream(1, vec![copy_data(b"?")], "unexpected message (tag '?')").await;
    stream(1, vec![wal(u64::MAX - 50, &[7; 40])], "where 0/300000 comes next").await;
    stream(1, vec![[&b"d"[..], &0x7FFF_FFFF_u32.to_be_bytes()].concat()], "a message of 2147483643 bytes where").await;
    stream(1, vec![row(&[Some("x")])], "unexpected message (tag 'D')").await;
    // A timeline that goes back, and one that contradicts its history.
    for next in [0, 1] {
        stream(1, vec![copy_done(), next_timeline(next, START)], "timeline").await;
    }
}

/// WAL that is no WAL: kept for whoever looks into it, never acknowledged, asked for once more.
#[tokio::test]
async fn p6_wal_that_is_none() {
    refuses(&RECEIVE[..4], PLAIN, (4, "the same when it was sent again"), async move |mut door| {
        for _ in 0..2 {
            let mut peer = door.next().await;
            peer.introduce(&NODE).await;
            peer.stream(false, START, 1).await;
            for n in 0..64 {
                peer.try_send(&wal(START + n * 131_072, &[7; 131_072])).await;
            }
            peer.drain().await;
        }
    })
    .await;
}

/// As fast as it can be sent, and more than may be kept in memory.
#[tokio::test]
async fn p6_a_flood_of_good_wal_takes_no_memory() {
    let log = log_to(START + 90 * SIZE);
    refuses(&RECEIVE, PLAIN, (1, "closed the connection"), async move |mut door| {
        let mut peer = door.next().await;
        peer.introduce(&NODE).await;
        peer.stream(false, START, 1).await;
        for (n, piece) in log.bytes.chunks(PIECE).enumerate() {
            peer.try_send(&wal(START + (n * PIECE) as u64, piece)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn p6_logins_that_are_none() {
    let login = "sslmode=disable password=secret";
    let dear = || Scram { iterations: Some(1_000_000), ..Scram::default() };
    let ended = refuses(&RECEIVE, login, (1, "iteration count exceeds"), async move |mut door| {
        let mut peer = door.next().await;
        peer.expect_startup().await;
        dear().only_challenge(&mut peer, "secret").await;
        peer.drain().await;
    })
    .await;
    assert!(ended.took < Duration::from_secs(20), "it has worked for {:?}", ended.took);
    refuses(&RECEIVE, login, (1, "the server failed to prove that it knows the password"), async move |mut door| {
        let mut peer = door.next().await;
        peer.expect_startup().await;
        // It knows another password, and so signs wrongly; or it would, if it could check our proof.
        Scram::default().only_challenge(&mut peer, "another").await;
        peer.expect(b'p').await;
        peer.send(authentication(12, b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")).await;
        peer.drain().await;
    })
    .await;
    let flood = accepted("17.2").repeat(20_000);
    refuses(&RECEIVE, login, (1, "unexpected message (tag 'R')"), async move |mut door| {
        let mut peer = door.next().await;
        peer.expect_startup().await;
        peer.try_send(&flood).await;
        peer.drain().await;
    })
    .await;
    // Plain text where TLS was asked for, and promised.
    for (sent, words) in [
        ([b"S".to_vec(), accepted("17.2")].concat(), "unencrypted data came after"),
        (b"N".to_vec(), "does not have TLS, and sslmode demands it"),
        (error("FATAL", "28000", "no entry"), "answered the TLS request with 'E'"),
        (vec![b'X'; 100], "answered the TLS request with 'X'"),
    ] {
        refuses(&RECEIVE, "sslmode=require", (1, words), async move |mut door| {
            let mut peer = door.next().await;
            peer.expect_ssl_request().await;
            peer.try_send(&sent).await;
            while peer.try_read().await {}
        })
        .await;
    }
}
