//! What servers send as a copy: archives and manifests.

use std::sync::Mutex;

use sha2::{Digest, Sha256};

use super::*;
use crate::server::copy_out;

const BACKUP: [&str; 3] = ["backup", "--repo", "repo"];
const BASEBACKUP: [&str; 6] = ["basebackup", "-D", "plain", "-X", "none", "--no-sync"];

/// A member of an archive, as a server writes it.
pub(super) fn member(name: &str, kind: u8, size: u64, data: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000600\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{size:011o} ").as_bytes());
    header[136..148].copy_from_slice(b"00000000000 ");
    header[148..156].copy_from_slice(b"        ");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.extend(data);
    header.resize(header.len().next_multiple_of(512), 0);
    header
}

/// What comes in answer to BASE_BACKUP, piece by piece; after an empty one the connection is closed.
pub(super) type Pieces = Arc<Mutex<dyn Iterator<Item = Vec<u8>> + Send>>;

pub(super) fn pieces(all: impl Iterator<Item = Vec<u8>> + Send + 'static) -> Pieces {
    Arc::new(Mutex::new(all))
}

/// Answers whatever a backup asks before it copies, on as many connections as it likes, streams the log, and
/// answers BASE_BACKUP with these pieces.
pub(super) async fn oblige(mut peer: Peer, log: Arc<Log>, copy: Pieces) {
    peer.expect_startup().await;
    peer.send(accepted("17.2")).await;
    let at = text(log.at());
    while let Some((tag, body)) = peer.next().await {
        let query = String::from_utf8_lossy(&body).into_owned();
        if tag != b'Q' {
            continue;
        }
        let answer = match query.split([' ', '\0']).next().unwrap() {
            "IDENTIFY_SYSTEM" => single_row(&[Some("77"), Some("1"), Some(&at), None]),
            "SHOW" if query.contains("wal_segment_size") => single_row(&[Some("1MB")]),
            "SHOW" if query.contains("wal_sender_timeout") => single_row(&[Some("1min")]),
            "SHOW" if query.contains("data_directory_mode") => single_row(&[Some("0700")]),
            "SHOW" => single_row(&[Some("x")]),
            "CREATE_REPLICATION_SLOT" => single_row(&[Some("s"), Some("0/0"), None, None]),
            "READ_REPLICATION_SLOT" => slot_at(START),
            "START_REPLICATION" => {
                peer.send(copy_both()).await;
                peer.send_log(&log, START, log.at()).await;
                while let Some((tag, _)) = peer.next().await {
                    if tag == b'c' {
                        break;
                    }
                }
                [copy_done(), complete("START_REPLICATION"), ready()].concat()
            }
            "BASE_BACKUP" => {
                loop {
                    let piece = copy.lock().unwrap().next();
                    let Some(piece) = piece else { break };
                    if piece.is_empty() || !peer.try_send(&piece).await {
                        return;
                    }
                }
                Vec::new()
            }
            _ => refused("42601", "syntax error"),
        };
        peer.try_send(&answer).await;
    }
}

async fn backup(pieces: Vec<Vec<u8>>, expected: &'static str) {
    backup_of(pieces.into_iter(), expected).await;
}

pub(super) async fn backup_of(more: impl Iterator<Item = Vec<u8>> + Send + 'static, expected: &'static str) {
    let log = Arc::new(log_to(START + 300_000));
    let copy = pieces(begun(log.starts[20]).chain(more));
    refuses(&BACKUP, PLAIN, (1, expected), async move |mut door| {
        let mut serving = tokio::task::JoinSet::new();
        loop {
            let peer = door.next().await;
            serving.spawn(oblige(peer, Arc::clone(&log), Arc::clone(&copy)));
        }
    })
    .await;
}

/// What every copy begins with.
pub(super) fn begun(start: u64) -> impl Iterator<Item = Vec<u8>> + Send {
    let begins = [
        columns(2),
        row(&[Some(&text(start)), Some("1")]),
        complete("SELECT"),
        columns(3),
        row(&[None, None, None]),
        complete("SELECT"),
        copy_out(),
        copy_data(b"nbase.tar\0\0"),
    ];
    [begins.concat()].into_iter()
}

pub(super) fn data(bytes: &[u8]) -> Vec<u8> {
    copy_data(&[b"d", bytes].concat())
}

#[tokio::test]
async fn p6_archives_that_are_none() {
    backup(vec![data(&[7; 4096])], "has no valid checksum").await;
    backup(vec![data(&member("../../x", b'0', 3, b"abc"))], "\"../../x\" leads upwards").await;
    backup(vec![data(&member("/etc/x", b'0', 3, b"abc"))], "\"/etc/x\" is absolute").await;
    backup(vec![data(&member("x", b'3', 0, b""))], "which no server sends").await;
    backup(vec![data(&member("x", b'0', 3, b"abc")), data(&member("x", b'0', 3, b"abc"))], "two members named \"x\"")
        .await;
    let stop = [columns(2), row(&[Some("0/340000"), Some("1")]), complete("SELECT"), complete("BASE_BACKUP"), ready()];
    let ends = [copy_data(b"m"), copy_data(b"d{}"), copy_done(), stop.concat()].concat();
    backup(vec![data(&member("x", b'0', 3, b"abc")), ends], "the manifest does not end in its own checksum").await;
    backup(vec![copy_data(b"n../x.tar\0\0")], "../x.tar").await;
}

/// What does not belong to what came is refused when there is more of it than there can be.
#[tokio::test]
async fn p6_a_manifest_without_end() {
    let piece = data(&[b' '; (1 << 20) - 1]);
    backup(
        [vec![data(&member("x", b'0', 3, b"abc")), copy_data(b"m")], vec![piece; 200]].concat(),
        "its manifest has no end",
    )
    .await;
}

/// A manifest of this body, in its own checksum, after one file.
fn with_manifest(body: &str) -> Vec<Vec<u8>> {
    let sum: String = Sha256::digest(body).iter().map(|b| format!("{b:02x}")).collect();
    let manifest = format!("{body}\"Manifest-Checksum\": \"{sum}\"}}\n");
    let stop = [columns(2), row(&[Some("0/340000"), Some("1")]), complete("SELECT"), complete("BASE_BACKUP"), ready()];
    let archive = data(&[member("x", b'0', 3, b"abc"), vec![0; 1024]].concat());
    let pieces = manifest.as_bytes().chunks(1 << 19).map(data);
    [archive, copy_data(b"m")].into_iter().chain(pieces).chain([copy_done(), stop.concat()]).collect()
}

#[tokio::test]
async fn p6_manifests_that_are_none() {
    let whole = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 77,\n\"Files\": [\n\
                 { \"Path\": \"x\", \"Size\": 3, \"Last-Modified\": \"x\" }\n],\n\"WAL-Ranges\": [\n\
                 { \"Timeline\": 1, \"Start-LSN\": \"0/300028\", \"End-LSN\": \"0/340000\" }\n],\n";
    for (old, new, words) in [
        ("\"x\", \"Size\"", "\"../../x\", \"Size\"", "\"../../x\" leads upwards"),
        ("\"x\", \"Size\"", "\"/x\", \"Size\"", "\"/x\" is absolute"),
        ("Version\": 2", "Version\": 9", "version 9, which is not known"),
        ("\"Size\": 3", "\"Size\": 4", "\"x\" has 3 bytes; the manifest says 4"),
        ("\"Size\": 3", "\"Size\": -3", "the server's manifest cannot be used"),
        ("\"Path\": \"x\"", "\"Path\": \"y\"", "and not in the"),
        ("\"Size\": 3", &format!("\"Size\": 3{}", " ".repeat(900_000)), "a line of it is far too long"),
        ("\"Last-Modified\": \"x\"", &format!("\"Last-Modified\": {}", "[".repeat(900_000)), "cannot be used"),
        // The copied label is looked for when all files are as the manifest says.
        ("", "", "sent no backup_label"),
    ] {
        backup(with_manifest(&whole.replacen(old, new, 1)), words).await;
    }
}

#[tokio::test]
async fn p6_notices_in_a_copy_without_end() {
    let flood = notice(&"n".repeat(8000)).repeat(100);
    let pieces = [data(&member("x", b'0', 3, b"abc"))].into_iter().chain(std::iter::repeat_n(flood, 60));
    backup_of(pieces.chain([data(&[7; 4096])]), "has no valid checksum").await;
}

/// Into a data directory, where a name would be followed.
#[tokio::test]
async fn p6_a_copy_goes_only_where_it_may() {
    let tablespace = |location: &str| {
        let begins = [
            columns(2),
            row(&[Some(&text(START)), Some("1")]),
            complete("SELECT"),
            columns(3),
            row(&[Some("16400"), Some(location), None]),
            row(&[None, None, None]),
            complete("SELECT"),
            copy_out(),
        ];
        begins.concat()
    };
    let link = |name: &str, to: &str| {
        let mut header = member(name, b'2', 0, b"");
        header[157..157 + to.len()].copy_from_slice(to.as_bytes());
        resealed(header)
    };
    let base = |members: &[Vec<u8>]| vec![begun(START).collect::<Vec<_>>().concat(), data(&members.concat())];
    let escape = member("base/1/outside", b'0', 1, b"x");
    let scripts = [
        (base(&[member("../outside/x", b'0', 1, b"x")]), "leads upwards"),
        (base(&[link("base/1", "../../../outside"), escape]), "symbolic link"),
        (base(&[link("pg_tblspc/16400", "../outside")]), "symbolic link"),
        (base(&[member("PG_VERSION", b'0', 1, b"x"), member("PG_VERSION/x", b'0', 1, b"x")]), "below a file"),
        ([base(&[member("x", b'0', 1 << 32, b"")]), vec![Vec::new()]].concat(), "the connection to the server is lost"),
        (
            vec![tablespace("../outside"), copy_data(b"n16400.tar\0../outside\0"), Vec::new()],
            "the connection to the server is lost",
        ),
    ];
    for (script, words) in scripts {
        let log = Arc::new(log_to(START + 300_000));
        refuses(&BASEBACKUP, PLAIN, (1, words), async move |mut door| {
            oblige(door.next().await, log, pieces(script.into_iter())).await;
        })
        .await;
    }
}

/// A header with the checksum of what is in it now.
fn resealed(mut header: Vec<u8>) -> Vec<u8> {
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().take(512).map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[tokio::test]
async fn p6_a_label_without_end() {
    let size = 120 << 20;
    let header = member("backup_label", b'0', size, b"");
    backup(
        [vec![data(&header)], vec![data(&[b'x'; (1 << 20) - 1]); 121], vec![data(&[7; 600])]].concat(),
        "has no valid checksum",
    )
    .await;
}
