//! Backups into a repository, from a server that fails in the middle of the copy.

#![allow(clippy::disallowed_methods, reason = "a test makes its own files")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use walhold::backup::{BackupError, Event, Options, backup};
use walhold::codec::Compression;
use walhold::disk::Real;
use walhold::image::ManifestAlgorithm;
use walhold::protocol::Checkpoint;
use walhold::receive::Upstream;
use walhold::repository::{Holder, Repository, Task};
use walhold::wal::SegmentSize;

use crate::server::{Peer, Server, columns, complete, copy_data, copy_out, row, single_row};
use crate::wal::Log;

const SYSTEM: u64 = 7_000_000_000_000_000_001;
const SIZE: u64 = 1 << 20;
const START: u64 = 0x200_0000;

/// A repository that a receiver holds, with all the WAL that a backup needs at its start.
fn repository(dir: &Path) -> Repository {
    let size = SegmentSize::new(SIZE).unwrap();
    let repository = Repository::create(dir, Arc::new(Real::new()), SYSTEM, size, false, Timestamp::now()).unwrap();
    let mut log = Log::new(START, SIZE, 1, SYSTEM);
    log.record(10, 0, &[1; 1000]);
    log.bytes.resize(usize::try_from(SIZE).unwrap(), 0);
    fs::write(dir.join(format!("wal/00000001{:016X}.partial", START / SIZE)), &log.bytes).unwrap();
    repository
}

/// Answers as a server does, and begins a base backup.
async fn up_to_the_copy(peer: &mut Peer) {
    peer.log_in("17.2").await;
    while let Some((b'Q', command)) = peer.next().await {
        let command = String::from_utf8_lossy(&command).into_owned();
        let answer = match command.trim_end_matches('\0') {
            "IDENTIFY_SYSTEM" => single_row(&[Some(&SYSTEM.to_string()), Some("1"), Some("0/2000000"), None]),
            "SHOW \"wal_segment_size\"" => single_row(&[Some("1MB")]),
            "SHOW \"wal_sender_timeout\"" => single_row(&[Some("1min")]),
            "SHOW \"data_directory_mode\"" => single_row(&[Some("0700")]),
            show if show.starts_with("SHOW") => single_row(&[Some("/data")]),
            slot if slot.starts_with("CREATE") => single_row(&[Some("s"), Some("0/2000000"), None, None]),
            slot if slot.starts_with("READ") => single_row(&[Some("physical"), Some("0/2000000"), Some("1")]),
            _ => break,
        };
        peer.send(answer).await;
    }
    let start = [columns(2), row(&[Some("0/2000028"), Some("1")]), complete("SELECT")].concat();
    let spaces = [columns(3), row(&[None, None, None]), complete("SELECT")].concat();
    peer.send([start, spaces, copy_out(), copy_data(b"nbase.tar\0\0"), copy_data(&[b'd'; 512])].concat()).await;
}

#[tokio::test]
async fn a_server_that_falls_silent_in_the_copy_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("repo");
    let repository = repository(&dir);
    let who = Holder { task: Task::Receive, process: 1, host: "here".into() };
    let _receiver = repository.lock(&who).unwrap();
    let server = Server::start(async |mut peer: Peer| {
        up_to_the_copy(&mut peer).await;
        assert!(peer.next().await.is_none(), "it talks to a server that is silent");
    })
    .await;
    let conninfo = server.conninfo("sslmode=disable");
    let upstream = Upstream::connect(&conninfo, "test").await.unwrap();
    let options = Options {
        conninfo,
        application_name: "test".into(),
        label: "x".into(),
        checkpoint: Checkpoint::Fast,
        max_rate: None,
        manifest_checksums: ManifestAlgorithm::Crc32c,
        compression: Compression::None,
        incremental: false,
        low_level: None,
        who,
    };
    // From then on the clock leaps over every wait.
    let mut tell = |event| {
        if matches!(event, Event::Copying { .. }) {
            tokio::time::pause();
        }
    };
    let never = CancellationToken::new();
    let work = backup(&repository, upstream, &options, &never, &mut tell);
    let done = tokio::time::timeout(Duration::from_secs(3600), work).await;
    tokio::time::resume();
    let error = done.expect("it hangs").unwrap_err();
    assert!(matches!(&error, BackupError::Session(e) if e.to_string().contains("within 600 s")), "{error}");
    assert_eq!(fs::read_dir(dir.join("backups")).unwrap().count(), 0, "something was left");
    server.finish().await;
}
