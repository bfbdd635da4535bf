//! What real servers said, replayed: a tour through every command, recorded once a major version.
//!
//! `captured/*.bin` holds both directions after the start-up message: `F` (client) or `B` (server)
//! before each message. Copied files are cut short. `captured/*.txt` is what the tour made of it. To
//! record anew, with a server that has a tablespace and has just switched WAL (the second tour: one
//! that was promoted to timeline 2 since):
//!
//! ```text
//! WALHOLD_CAPTURE="127.0.0.1:5432 17 commands" cargo test --test proto -- --ignored record_the_tour
//! ```

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use walhold::connection::{Error, Purpose, Session, SlotAnswer, Started, StreamEnd, Streamed};
use walhold::image::ManifestAlgorithm;
use walhold::protocol::{
    BackupEvent, BaseBackup, Checkpoint, ManifestAsked, Retention, SlotKind, SlotName, SlotState, StandbyStatus,
    StreamMessage,
};
use walhold::wal::{Lsn, Pos, Segment, TimelineId};

use super::server::{Peer, Server, conninfo};

const VERSIONS: [&str; 4] = ["13", "14", "15", "17"];

/// Files in `captured/` for a version and a tour.
fn file(version: &str, tour: &str, suffix: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "proto-tests", "captured", &format!("{version}-{tour}.{suffix}")].iter().collect()
}

/// Every command once, but for following a timeline. Returns what came of it.
async fn commands(session: &mut Session) -> Result<String, Error> {
    let mut out = String::new();
    let mut note = |line: String| writeln!(out, "{line}").unwrap();
    let identity = session.identify_system().await?;
    let size = session.segment_size().await?;
    note(format!("version {:?}", session.server_version()));
    note(format!("system {} at {}, segments of {}", identity.system_id, identity.position, size.bytes()));
    note(format!("mode {:o}", session.data_directory_mode().await?));
    note(format!("timeout {:?}", session.wal_sender_timeout().await?));

    let slot: SlotName = "tour".parse().unwrap();
    session.create_slot(&slot, SlotKind::Permanent, Retention::FromFirstReport).await?;
    note(format!("slot {:?}", session.read_slot(&slot).await?));
    note(format!("again: {}", session.create_slot(&slot, SlotKind::Permanent, Retention::Reserved).await.unwrap_err()));
    session.drop_slot(&slot).await?;
    note(format!("gone: {:?}", session.read_slot(&slot).await?));
    note(format!("again: {}", session.drop_slot(&slot).await.unwrap_err()));
    let no_timeline = TimelineId::new(99).unwrap();
    note(format!("history: {}", session.timeline_history(no_timeline).await.unwrap_err()));
    // After the errors: a temporary slot goes with the next one.
    session.create_slot(&slot, SlotKind::Temporary, Retention::Reserved).await?;
    let reserved =
        matches!(session.read_slot(&slot).await?, SlotAnswer::Known(SlotState::Physical { restart: Some(_) }));
    note(format!("reserved {reserved}"));

    let start = Segment::containing(identity.position, size).start_pos();
    note(format!("{:?}", session.start_replication(Some(&slot), start).await?));
    let reached = read_wal(session, identity.position.lsn()).await?;
    note(format!("streamed {} to {reached}", start.lsn()));
    let status = StandbyStatus { write: reached, flush: reached, apply: Lsn::ZERO, sent_at: 0, reply_requested: false };
    session.send_status(&status).await?;
    note(format!("{:?}", session.end_stream().await?));
    let ahead = Pos::new(start.tli(), Lsn::new(0xFFFF_0000_0000));
    session.start_replication(None, ahead).await?;
    note(format!("ahead: {}", session.next_stream().await.unwrap_err()));
    base_backup(session, &mut note).await?;
    Ok(out)
}

/// Reads WAL, which must be contiguous, until `end` has come.
async fn read_wal(session: &mut Session, end: Lsn) -> Result<Lsn, Error> {
    let mut reached = None;
    while reached.is_none_or(|reached| reached < end) {
        if let Streamed::Message(StreamMessage::Wal { start, data, .. }) = session.next_stream().await? {
            assert_eq!(start, reached.unwrap_or(start));
            reached = Some(start.saturating_add(data.len() as u64));
        }
    }
    Ok(reached.unwrap())
}

async fn base_backup(session: &mut Session, note: &mut impl FnMut(String)) -> Result<(), Error> {
    let backup = BaseBackup {
        checkpoint: Checkpoint::Fast,
        max_rate: None,
        manifest: Some(ManifestAsked { algorithm: ManifestAlgorithm::Sha256, force_encode: false }),
        estimate_size: true,
        tablespace_map: true,
        ..BaseBackup::new("the tour's \"backup\"".into())
    };
    let started = session.base_backup(&backup).await?;
    note(format!("backup from {}", started.start));
    note(format!("{:?}", started.tablespaces));
    let mut first = false;
    loop {
        match session.next_backup_event().await? {
            BackupEvent::Data(data) | BackupEvent::ManifestData(data) if first => {
                note(format!("  {:?}", String::from_utf8_lossy(&data[..16])));
                first = false;
            }
            BackupEvent::Data(_) | BackupEvent::ManifestData(_) | BackupEvent::Progress(_) => {}
            event => {
                note(format!("{event:?}"));
                first = matches!(event, BackupEvent::Archive(_) | BackupEvent::Manifest);
                if event == BackupEvent::Complete {
                    return Ok(());
                }
            }
        }
    }
}

/// From timeline 1 to timeline 2.
async fn timelines(session: &mut Session) -> Result<String, Error> {
    let mut out = String::new();
    let mut note = |line: String| writeln!(out, "{line}").unwrap();
    let identity = session.identify_system().await?;
    let size = session.segment_size().await?;
    let first = Pos::new(TimelineId::FIRST, identity.position.lsn());
    let history = session.timeline_history(identity.position.tli()).await?;
    note(format!("history {:?}", String::from_utf8_lossy(&history)));
    let start = Segment::containing(first, size).start_pos();
    note(format!("{:?}", session.start_replication(None, start).await?));
    while session.next_stream().await? != Streamed::CopyDone {}
    let StreamEnd::NextTimeline(next) = session.end_stream().await? else { panic!("the timeline did not end") };
    note(format!("{next:?}"));
    let at_end = session.start_replication(None, Pos::new(TimelineId::FIRST, next.at)).await?;
    assert_eq!(at_end, Started::TimelineEnded(next));
    let start = Segment::containing(Pos::new(next.tli, next.at), size).start_pos();
    note(format!("{:?}", session.start_replication(None, start).await?));
    read_wal(session, identity.position.lsn()).await?;
    note(format!("{:?}", session.end_stream().await?));
    Ok(out)
}

/// Both directions of a conversation, in order.
#[derive(Clone, Default)]
struct Recording(Vec<(u8, Vec<u8>)>);

impl Recording {
    fn load(mut bytes: &[u8]) -> Self {
        let mut frames = Vec::new();
        while let [side, _, a, b, c, d, ..] = *bytes {
            let whole = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap() + 1;
            frames.push((side, bytes[1..=whole].to_vec()));
            bytes = &bytes[1 + whole..];
        }
        assert!(bytes.is_empty());
        Self(frames)
    }

    fn save(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(side, frame)| [&[*side][..], frame].concat()).collect()
    }

    /// Says what the server said, and expects what the client said.
    async fn play(self, mut peer: Peer) {
        peer.expect_startup().await;
        for (side, frame) in self.0 {
            match side {
                b'B' => peer.send(frame).await,
                _ => assert_eq!(peer.expect(frame[0]).await, frame[5..]),
            }
        }
    }
}

#[tokio::test]
async fn every_command_of_every_version() {
    for version in VERSIONS {
        let recording = Recording::load(&std::fs::read(file(version, "commands", "bin")).unwrap());
        let server = Server::start(move |peer| recording.play(peer)).await;
        let mut session = server.session().await;
        let told = commands(&mut session).await.unwrap();
        assert_eq!(told, std::fs::read_to_string(file(version, "commands", "txt")).unwrap());
        session.close().await;
        server.finish().await;
    }
}

#[tokio::test]
async fn the_end_of_a_timeline_of_every_version() {
    for version in VERSIONS {
        let recording = Recording::load(&std::fs::read(file(version, "timelines", "bin")).unwrap());
        let server = Server::start(move |peer| recording.play(peer)).await;
        let mut session = server.session().await;
        let told = timelines(&mut session).await.unwrap();
        assert_eq!(told, std::fs::read_to_string(file(version, "timelines", "txt")).unwrap());
        session.close().await;
        server.finish().await;
    }
}

/// Passes messages on and keeps what is said.
struct Relay {
    side: u8,
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    kept: Arc<Mutex<Recording>>,
}

impl Relay {
    async fn run(mut self) -> std::io::Result<()> {
        let (mut copying, mut pieces) = (false, 0);
        loop {
            let mut frame = vec![0; 5];
            self.from.read_exact(&mut frame).await?;
            let len = u32::from_be_bytes([frame[1], frame[2], frame[3], frame[4]]);
            frame.resize(usize::try_from(len).unwrap() + 1, 0);
            self.from.read_exact(&mut frame[5..]).await?;
            self.to.write_all(&frame).await?;
            match frame[..] {
                [b'H', ..] => (copying, pieces) = (true, 0),
                [b'c', ..] => copying = false,
                // Names and progress are short, pieces of tar never.
                [b'd', _, _, _, _, b'n' | b'm' | b'p', ..] if frame.len() < 100 => pieces = 0,
                [b'd', ..] if copying => {
                    pieces += 1;
                    frame.truncate(600);
                    let len = u32::try_from(frame.len() - 1).unwrap();
                    frame[1..5].copy_from_slice(&len.to_be_bytes());
                }
                _ => {}
            }
            if !copying || pieces <= 3 {
                self.kept.lock().unwrap().0.push((self.side, frame));
            }
        }
    }
}

/// A port that leads to the server at `target`, and what is said through it.
async fn relay(target: &str) -> (u16, Arc<Mutex<Recording>>) {
    let kept = Arc::new(Mutex::new(Recording::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut server = TcpStream::connect(target).await.unwrap();
    let recording = kept.clone();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let len = client.read_u32().await.unwrap();
        let mut start_up = vec![0; usize::try_from(len).unwrap() - 4];
        client.read_exact(&mut start_up).await.unwrap();
        server.write_all(&[&len.to_be_bytes()[..], &start_up].concat()).await.unwrap();
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::spawn(Relay { side: b'F', from: from_client, to: to_server, kept: recording.clone() }.run());
        tokio::spawn(Relay { side: b'B', from: from_server, to: to_client, kept: recording }.run());
    });
    (port, kept)
}

#[tokio::test]
#[ignore = "needs a server, and replaces files in captured/"]
#[allow(clippy::disallowed_methods, reason = "files of the tests")]
async fn record_the_tour() {
    let wanted = std::env::var("WALHOLD_CAPTURE").unwrap();
    let [target, version, tour] = wanted.split(' ').collect::<Vec<_>>()[..] else { panic!("{wanted}") };
    let (port, kept) = relay(target).await;
    let conninfo = conninfo(&format!("host=127.0.0.1 port={port} user=postgres sslmode=disable"), None);
    let mut session = Session::connect(&conninfo, Purpose::Replication, "walhold").await.unwrap();
    let told = match tour {
        "commands" => commands(&mut session).await,
        _ => timelines(&mut session).await,
    };
    std::fs::write(file(version, tour, "txt"), told.unwrap()).unwrap();
    let recording = kept.lock().unwrap().clone();
    std::fs::write(file(version, tour, "bin"), recording.save()).unwrap();
}
