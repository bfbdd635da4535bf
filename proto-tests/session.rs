//! Commands, WAL streams and base backups against a scripted server.

use std::time::Duration;

use bytes::Bytes;
use walhold::connection::{BackupStarted, Error, Session, SlotAnswer, Started, StreamEnd, Streamed};
use walhold::image::ManifestAlgorithm;
use walhold::protocol::{
    BackupEvent, BaseBackup, Checkpoint, Condition, FramingError, ManifestAsked, NextTimeline, ProtocolError,
    Retention, SlotKind, SlotName, SlotState, StandbyStatus, StreamMessage, TablespaceRow,
};
use walhold::wal::{Lsn, Pos, SegmentSize, TimelineId};

use super::server::{
    Peer, Server, columns, complete, copy_both, copy_data, copy_done, copy_out, error, keepalive, message, notice,
    parameter, ready, row, single_row, wal,
};

const START: &str = "START_REPLICATION PHYSICAL 0/3000000 TIMELINE 1";

fn slot() -> SlotName {
    "walhold".parse().unwrap()
}

fn tli(id: u32) -> TimelineId {
    TimelineId::new(id).unwrap()
}

fn pos(lsn: u64) -> Pos {
    Pos::new(tli(1), Lsn::new(lsn))
}

fn status(lsn: u64) -> StandbyStatus {
    StandbyStatus { write: Lsn::new(lsn), flush: Lsn::new(lsn), apply: Lsn::ZERO, sent_at: 5, reply_requested: false }
}

/// A server of a version that answers one command after another.
async fn answering(version: &'static str, dialogue: Vec<(&'static str, Vec<u8>)>) -> (Server, Session) {
    let server = Server::start(move |mut peer: Peer| async move {
        peer.log_in(version).await;
        for (command, answer) in dialogue {
            peer.expect_query(command).await;
            peer.send(answer).await;
        }
        peer.expect_close().await;
    })
    .await;
    let session = server.session().await;
    (server, session)
}

/// A stream that has begun, and what the server does then.
async fn streaming<F: Future<Output = ()> + Send>(
    script: impl FnOnce(Peer) -> F + Send + 'static,
) -> (Server, Session) {
    let server = Server::start(move |mut peer: Peer| async move {
        peer.log_in("17.2").await;
        peer.expect_query(START).await;
        peer.send(copy_both()).await;
        script(peer).await;
    })
    .await;
    let mut session = server.session().await;
    assert_eq!(session.start_replication(None, pos(0x300_0000)).await.unwrap(), Started::Streaming);
    (server, session)
}

fn data(streamed: Streamed) -> (u64, Bytes) {
    match streamed {
        Streamed::Message(StreamMessage::Wal { start, data, .. }) => (start.get(), data),
        other => panic!("{other:?}"),
    }
}

fn protocol_error(error: Error) -> ProtocolError {
    match error {
        Error::Protocol(error) => error,
        other => panic!("{other}"),
    }
}

async fn done(session: Session, server: Server) {
    drop(session);
    server.finish().await;
}

#[tokio::test]
async fn each_command_and_its_answer() {
    let identity = single_row(&[Some("73"), Some("1"), Some("0/3000060"), None]);
    let created = single_row(&[Some("walhold"), Some("0/0"), None, None]);
    let history = [columns(2), row(&[Some("00000002.history"), Some("1\t0/30\tx\n")]), complete("X"), ready()].concat();
    let (server, mut session) = answering(
        "17.2",
        vec![
            ("IDENTIFY_SYSTEM", [notice("hello"), parameter("in_hot_standby", "on"), identity].concat()),
            ("SHOW \"wal_segment_size\"", single_row(&[Some("64MB")])),
            ("SHOW \"data_directory_mode\"", single_row(&[Some("0750")])),
            ("SHOW \"wal_sender_timeout\"", single_row(&[Some("1min")])),
            ("SHOW \"wal_sender_timeout\"", single_row(&[Some("0")])),
            ("CREATE_REPLICATION_SLOT \"walhold\" TEMPORARY PHYSICAL (RESERVE_WAL)", created),
            ("READ_REPLICATION_SLOT \"walhold\"", single_row(&[Some("physical"), Some("0/2000028"), Some("1")])),
            ("READ_REPLICATION_SLOT \"walhold\"", single_row(&[None, None, None])),
            ("DROP_REPLICATION_SLOT \"walhold\"", [complete("DROP_REPLICATION_SLOT"), ready()].concat()),
            ("TIMELINE_HISTORY 2", history),
            ("select 1, null", [columns(2), row(&[Some("1"), None]), complete("SELECT 1"), ready()].concat()),
        ],
    )
    .await;
    let identity = session.identify_system().await.unwrap();
    assert_eq!((identity.system_id, identity.position, identity.database), (73, pos(0x300_0060), None));
    assert_eq!(session.segment_size().await.unwrap(), SegmentSize::new(64 << 20).unwrap());
    assert_eq!(session.data_directory_mode().await.unwrap(), 0o750);
    assert_eq!(session.wal_sender_timeout().await.unwrap(), Some(Duration::from_secs(60)));
    assert_eq!(session.wal_sender_timeout().await.unwrap(), None);
    session.create_slot(&slot(), SlotKind::Temporary, Retention::Reserved).await.unwrap();
    let known = SlotAnswer::Known(SlotState::Physical { restart: Some(pos(0x200_0028)) });
    assert_eq!(session.read_slot(&slot()).await.unwrap(), known);
    assert_eq!(session.read_slot(&slot()).await.unwrap(), SlotAnswer::Known(SlotState::Missing));
    session.drop_slot(&slot()).await.unwrap();
    assert_eq!(session.timeline_history(tli(2)).await.unwrap(), "1\t0/30\tx\n");
    assert_eq!(session.query("select 1, null").await.unwrap(), [[Some("1".to_owned()), None]]);
    done(session, server).await;
}

#[tokio::test]
async fn before_15_slots_are_made_with_words_and_cannot_be_read() {
    let created = single_row(&[Some("walhold"), Some("0/0"), None, None]);
    let (server, mut session) =
        answering("14.24", vec![("CREATE_REPLICATION_SLOT \"walhold\" PHYSICAL RESERVE_WAL", created)]).await;
    session.create_slot(&slot(), SlotKind::Permanent, Retention::Reserved).await.unwrap();
    assert_eq!(session.read_slot(&slot()).await.unwrap(), SlotAnswer::CannotBeAsked);
    done(session, server).await;
}

#[tokio::test]
async fn an_error_leaves_the_session_usable() {
    let refused = |sqlstate, text| [error("ERROR", sqlstate, text), ready()].concat();
    // TIMELINE_HISTORY describes its row before it finds that there is none.
    let no_history = [columns(2), error("ERROR", "58P01", "could not open file"), ready()].concat();
    let (server, mut session) = answering(
        "17.2",
        vec![
            ("DROP_REPLICATION_SLOT \"walhold\"", refused("42704", "does not exist")),
            ("CREATE_REPLICATION_SLOT \"walhold\" PHYSICAL", refused("42710", "already exists")),
            ("TIMELINE_HISTORY 9", no_history),
            (
                "START_REPLICATION SLOT \"walhold\" PHYSICAL 0/3000000 TIMELINE 1",
                refused("55006", "is active for PID 1"),
            ),
            ("SHOW \"port\"", single_row(&[Some("5432")])),
        ],
    )
    .await;
    let error = session.drop_slot(&slot()).await.unwrap_err();
    assert_eq!(error.condition(), Some(Condition::Missing));
    let error = session.create_slot(&slot(), SlotKind::Permanent, Retention::FromFirstReport).await.unwrap_err();
    assert_eq!(error.condition(), Some(Condition::Exists));
    assert!(error.hint().is_some() && !error.is_transient());
    let error = session.timeline_history(tli(9)).await.unwrap_err();
    assert!(error.server_error().unwrap().is_wal_removed());
    let error = session.start_replication(Some(&slot()), pos(0x300_0000)).await.unwrap_err();
    assert_eq!(error.condition(), Some(Condition::InUse));
    assert_eq!(session.show("port").await.unwrap(), "5432");
    done(session, server).await;
}

#[tokio::test]
async fn answers_that_make_no_sense_are_refused() {
    let number_of_rows = ProtocolError::Shape("SHOW");
    let value = |what, value: &str| ProtocolError::Value { what, value: value.to_owned() };
    let unexpected = |tag| ProtocolError::Unexpected { tag, during: "answering a command" };
    for (answer, expected) in [
        ([columns(1), complete("SHOW"), ready()].concat(), number_of_rows.clone()),
        (single_row(&[None]), number_of_rows),
        (single_row(&[Some("15MB")]), value("wal_segment_size", "15MB")),
        (message(b'?', b"x"), unexpected(b'?')),
        (copy_both(), unexpected(b'W')),
        (copy_data(b"x"), unexpected(b'd')),
        (message(b'G', &[0, 0, 0]), unexpected(b'G')),
        (message(b'd', &vec![0; (1 << 20) + 1])[..5].to_vec(), {
            FramingError::TooLong { tag: b'd', len: (1 << 20) + 1, limit: 1 << 20 }.into()
        }),
    ] {
        let (server, mut session) = answering("17.2", vec![("SHOW \"wal_segment_size\"", answer)]).await;
        assert_eq!(protocol_error(session.segment_size().await.unwrap_err()), expected);
        done(session, server).await;
    }
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let flood = Server::start(async |mut peer: Peer| {
        peer.log_in("17.2").await;
        peer.expect_query("select 1").await;
        let rows = row(&[Some("x")]).repeat(30_000);
        peer.send([columns(1), rows].concat()).await;
        peer.expect_close().await;
    })
    .await;
    let mut session = flood.session().await;
    let limit = ProtocolError::TooMany { what: "rows", limit: 20_000 };
    assert_eq!(protocol_error(session.query("select 1").await.unwrap_err()), limit);
    // What is left of the answer must not be taken for the next one's.
    assert!(matches!(session.show("port").await, Err(Error::NotFree(_))));
    done(session, flood).await;
}

#[tokio::test]
async fn a_flood_of_notices_is_passed_over() {
    let flood = notice("again").repeat(20_000);
    let (server, mut session) =
        answering("17.2", vec![("SHOW \"port\"", [flood, single_row(&[Some("5432")])].concat())]).await;
    assert_eq!(session.show("port").await.unwrap(), "5432");
    done(session, server).await;
}

#[tokio::test]
async fn a_silent_server_does_not_hold_a_command_for_ever() {
    let server = Server::start(async |mut peer: Peer| {
        peer.log_in("17.2").await;
        peer.expect_query("IDENTIFY_SYSTEM").await;
        // From here on time runs as fast as nobody has anything to do.
        tokio::time::pause();
        peer.expect_close().await;
    })
    .await;
    let mut session = server.session().await;
    let error = session.identify_system().await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { during: "IDENTIFY_SYSTEM", .. }) && error.is_transient(), "{error}");
    assert!(matches!(session.show("port").await, Err(Error::NotFree(_))));
    done(session, server).await;
}

#[tokio::test]
async fn a_lost_connection_is_told_apart() {
    for bytes in [&b""[..], b"T\0\0"] {
        let server = Server::start(move |mut peer: Peer| async move {
            peer.log_in("17.2").await;
            peer.expect_query("IDENTIFY_SYSTEM").await;
            peer.send(bytes).await;
        })
        .await;
        let mut session = server.session().await;
        let error = session.identify_system().await.unwrap_err();
        assert!(matches!(error, Error::Lost(_)) && error.is_transient(), "{error}");
        done(session, server).await;
    }
}

#[tokio::test]
async fn a_fatal_error_says_why_the_connection_ends() {
    for (sqlstate, condition) in [
        ("57P01", Condition::AdminShutdown),
        ("57P02", Condition::CrashShutdown),
        ("57P03", Condition::CannotConnectNow),
    ] {
        let (server, mut session) = streaming(move |mut peer| async move {
            peer.send(error("FATAL", sqlstate, "terminating connection")).await;
        })
        .await;
        let error = session.next_stream().await.unwrap_err();
        assert_eq!(error.condition(), Some(condition));
        assert!(error.is_transient());
        assert!(matches!(session.next_stream().await, Err(Error::NotFree(_))));
        done(session, server).await;
    }
}

#[tokio::test]
async fn wal_and_keepalives_stream_in_and_statuses_out() {
    let (server, mut session) = streaming(async |mut peer| {
        peer.send_all([
            wal(0x300_0000, b"first"),
            keepalive(0x300_0005, true),
            notice("x"),
            wal(0x300_0005, b"second"),
        ])
        .await;
        for lsn in [0x300_0005_u64, 0x300_000B] {
            let body = peer.expect(b'd').await;
            let expected =
                [&b"r"[..], &lsn.to_be_bytes(), &lsn.to_be_bytes(), &[0; 8], &5_i64.to_be_bytes(), &[0]].concat();
            assert_eq!(body, expected);
        }
        peer.expect_close().await;
    })
    .await;
    assert_eq!(data(session.next_stream().await.unwrap()), (0x300_0000, Bytes::from_static(b"first")));
    let keepalive = StreamMessage::Keepalive { server_end: Lsn::new(0x300_0005), sent_at: 1, reply_requested: true };
    assert_eq!(session.next_stream().await.unwrap(), Streamed::Message(keepalive));
    session.send_status(&status(0x300_0005)).await.unwrap();
    assert_eq!(data(session.next_stream().await.unwrap()), (0x300_0005, Bytes::from_static(b"second")));
    session.send_status(&status(0x300_000B)).await.unwrap();
    done(session, server).await;
}

#[tokio::test]
async fn what_has_been_read_is_there_without_waiting() {
    let (server, mut session) = streaming(async |mut peer| {
        peer.send_all([wal(0, b"one"), wal(3, b"two"), wal(6, b"three")]).await;
        peer.expect_close().await;
    })
    .await;
    assert_eq!(data(session.next_stream().await.unwrap()).0, 0);
    assert_eq!(data(session.try_next_stream().unwrap().unwrap()).0, 3);
    assert_eq!(data(session.try_next_stream().unwrap().unwrap()).0, 6);
    assert_eq!(session.try_next_stream().unwrap(), None);
    done(session, server).await;
}

#[tokio::test]
async fn waiting_for_the_stream_can_be_cancelled_anywhere() {
    let (server, mut session) = streaming(async |mut peer| {
        let wire: Vec<u8> = (0..20).flat_map(|at| wal(at * 100, &[7; 100])).collect();
        for piece in wire.chunks(13) {
            peer.send(piece).await;
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        peer.expect_close().await;
    })
    .await;
    let (mut expected, mut cancelled) = (0, 0);
    while expected < 2000 {
        tokio::select! {
            biased;
            streamed = session.next_stream() => {
                assert_eq!(data(streamed.unwrap()), (expected, Bytes::from_static(&[7; 100])));
                expected += 100;
            }
            () = tokio::task::yield_now() => cancelled += 1,
        }
    }
    assert!(cancelled > 0);
    done(session, server).await;
}

#[tokio::test]
async fn a_stream_is_read_in_the_memory_it_arrived_in() {
    const PIECE: usize = 128 << 10;
    let (server, mut session) = streaming(async |mut peer| {
        for at in 0..64_u64 {
            let fill = u8::try_from(at).unwrap();
            peer.send(wal(at * PIECE as u64, &vec![fill; PIECE])).await;
        }
        peer.expect_close().await;
    })
    .await;
    // Held all the while, so that memory which is used again too early shows.
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(data(session.next_stream().await.unwrap()));
    }
    for (at, (start, data)) in (0_u8..).zip(held) {
        assert_eq!(start, u64::from(at) * PIECE as u64);
        assert!(data.len() == PIECE && data.iter().all(|byte| *byte == at));
    }
    done(session, server).await;
}

#[tokio::test]
async fn removed_wal_is_reported_after_the_stream_has_begun() {
    let (server, mut session) = streaming(async |mut peer| {
        let text = "requested WAL segment 000000010000000000000003 has already been removed";
        peer.send_all([error("ERROR", "58P01", text), ready()]).await;
        peer.expect_query("SHOW \"port\"").await;
        peer.send(single_row(&[Some("5432")])).await;
        peer.expect_close().await;
    })
    .await;
    let error = session.next_stream().await.unwrap_err();
    assert!(error.server_error().unwrap().is_wal_removed() && !error.is_transient());
    assert_eq!(session.show("port").await.unwrap(), "5432");
    done(session, server).await;
}

#[tokio::test]
async fn what_has_no_place_in_a_stream_is_refused() {
    let during = "streaming WAL";
    let unexpected = |tag| ProtocolError::Unexpected { tag, during };
    let huge = [&b"d"[..], &0x7FFF_FFFF_u32.to_be_bytes()].concat();
    for (bytes, expected) in [
        (copy_data(b"q"), unexpected(b'q')),
        (copy_data(b"w123"), ProtocolError::Malformed("WAL message")),
        (ready(), unexpected(b'Z')),
        (row(&[None]), unexpected(b'D')),
        (message(b'?', b""), ProtocolError::Unexpected { tag: b'?', during: "answering a command" }),
        (huge, FramingError::TooLong { tag: b'd', len: 0x7FFF_FFFB, limit: 1 << 20 }.into()),
    ] {
        let (server, mut session) = streaming(async |mut peer| {
            peer.send(bytes).await;
            peer.expect_close().await;
        })
        .await;
        assert_eq!(protocol_error(session.next_stream().await.unwrap_err()), expected);
        done(session, server).await;
    }
}

fn next_timeline() -> Vec<u8> {
    [
        columns(2),
        row(&[Some("2"), Some("0/3000500")]),
        complete("START_STREAMING"),
        complete("START_REPLICATION"),
        ready(),
    ]
    .concat()
}

const NEXT: NextTimeline = NextTimeline { tli: TimelineId::new(2).unwrap(), at: Lsn::new(0x300_0500) };

#[tokio::test]
async fn a_timeline_ends_and_the_next_is_named() {
    let (server, mut session) = streaming(async |mut peer| {
        peer.send_all([wal(0x300_0000, b"last"), copy_done()]).await;
        assert_eq!(peer.expect(b'c').await, b"");
        peer.send(next_timeline()).await;
        peer.expect_query("START_REPLICATION PHYSICAL 0/3000000 TIMELINE 2").await;
        peer.send_all([copy_both(), keepalive(1, false)]).await;
        peer.expect_close().await;
    })
    .await;
    session.next_stream().await.unwrap();
    assert_eq!(session.next_stream().await.unwrap(), Streamed::CopyDone);
    assert!(matches!(session.next_stream().await, Err(Error::NotFree(_))));
    assert_eq!(session.end_stream().await.unwrap(), StreamEnd::NextTimeline(NEXT));
    let start = Pos::new(tli(2), Lsn::new(0x300_0000));
    assert_eq!(session.start_replication(None, start).await.unwrap(), Started::Streaming);
    assert!(matches!(session.next_stream().await.unwrap(), Streamed::Message(StreamMessage::Keepalive { .. })));
    done(session, server).await;
}

#[tokio::test]
async fn a_timeline_with_nothing_left_begins_no_stream() {
    let (server, mut session) =
        answering("17.2", vec![(START, next_timeline()), ("SHOW \"port\"", single_row(&[Some("1")]))]).await;
    assert_eq!(session.start_replication(None, pos(0x300_0000)).await.unwrap(), Started::TimelineEnded(NEXT));
    assert!(matches!(session.next_stream().await, Err(Error::NotFree(_))));
    assert_eq!(session.show("port").await.unwrap(), "1");
    done(session, server).await;
}

#[tokio::test]
async fn neither_stream_nor_next_timeline_is_no_answer() {
    let nothing = [complete("START_STREAMING"), complete("START_REPLICATION"), ready()].concat();
    let (server, mut session) = answering("17.2", vec![(START, nothing)]).await;
    let error = session.start_replication(None, pos(0x300_0000)).await.unwrap_err();
    assert_eq!(protocol_error(error), ProtocolError::Shape("START_REPLICATION"));
    done(session, server).await;
}

#[tokio::test]
async fn we_end_a_stream_and_drop_what_is_in_flight() {
    let (server, mut session) = streaming(async |mut peer| {
        peer.expect(b'd').await;
        peer.expect(b'c').await;
        peer.send_all([wal(0x300_0000, &[1; 100_000]), keepalive(1, true), copy_done()]).await;
        peer.send_all([complete("START_STREAMING"), complete("START_REPLICATION"), ready()]).await;
        peer.expect_query("SHOW \"port\"").await;
        peer.send(single_row(&[Some("1")])).await;
    })
    .await;
    session.send_status(&status(1)).await.unwrap();
    assert_eq!(session.end_stream().await.unwrap(), StreamEnd::Ended);
    assert_eq!(session.show("port").await.unwrap(), "1");
    done(session, server).await;
}

#[tokio::test]
async fn an_orderly_shutdown_is_no_end_of_the_copy() {
    let (server, mut session) = streaming(async |mut peer| {
        peer.send_all([wal(0x300_0000, b"checkpoint"), keepalive(0x300_000A, true)]).await;
        peer.expect(b'd').await;
        peer.send(complete("COPY 0")).await;
    })
    .await;
    session.next_stream().await.unwrap();
    session.next_stream().await.unwrap();
    session.send_status(&status(0x300_000A)).await.unwrap();
    assert_eq!(session.next_stream().await.unwrap(), Streamed::ServerShutdown);
    assert!(matches!(session.send_status(&status(1)).await, Err(Error::NotFree(_))));
    done(session, server).await;

    // The same while we were about to leave.
    let (server, mut session) = streaming(async |mut peer| {
        peer.expect(b'c').await;
        peer.send_all([keepalive(1, true), complete("COPY 0")]).await;
    })
    .await;
    assert_eq!(session.end_stream().await.unwrap(), StreamEnd::Ended);
    assert!(matches!(session.show("port").await, Err(Error::NotFree(_))));
    done(session, server).await;
}

#[tokio::test]
async fn a_stream_that_breaks_is_lost() {
    let (server, mut session) = streaming(async |mut peer| {
        let whole = wal(0x300_0000, b"half of this");
        peer.send(&whole[..20]).await;
    })
    .await;
    let error = session.next_stream().await.unwrap_err();
    assert!(matches!(error, Error::Lost(_)), "{error}");
    done(session, server).await;
}

fn backup() -> BaseBackup {
    BaseBackup {
        checkpoint: Checkpoint::Fast,
        max_rate: None,
        manifest: Some(ManifestAsked { algorithm: ManifestAlgorithm::Crc32c, force_encode: false }),
        estimate_size: false,
        tablespace_map: true,
        ..BaseBackup::new("label".into())
    }
}

const NEW_BACKUP: &str = "BASE_BACKUP (LABEL 'label', CHECKPOINT 'fast', WAIT 0, TABLESPACE_MAP, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')";
const OLD_BACKUP: &str =
    "BASE_BACKUP LABEL 'label' FAST NOWAIT TABLESPACE_MAP MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'";

/// What comes before the copies.
fn backup_begins() -> Vec<u8> {
    [
        columns(2),
        row(&[Some("0/4000028"), Some("1")]),
        complete("SELECT"),
        columns(3),
        row(&[Some("16385"), Some("/ts/one"), None]),
        row(&[None, None, None]),
        complete("SELECT"),
    ]
    .concat()
}

fn backup_stops() -> Vec<u8> {
    [columns(2), row(&[Some("0/4000138"), Some("1")]), complete("SELECT")].concat()
}

fn new_copy() -> Vec<u8> {
    [
        copy_out(),
        copy_data(b"n16385.tar\0/ts/one\0"),
        copy_data(b"dtar one"),
        copy_data(b"p\0\0\0\0\0\0\0\x08"),
        notice("still waiting"),
        copy_data(b"nbase.tar\0\0"),
        copy_data(b"dtar two"),
        copy_data(b"m"),
        copy_data(b"d{}"),
        copy_done(),
    ]
    .concat()
}

fn old_copies() -> Vec<u8> {
    let copy = |bytes: &[u8]| [copy_out(), copy_data(bytes), copy_done()].concat();
    [copy(b"tar one"), notice("still waiting"), copy(b"tar two"), copy(b"{}")].concat()
}

async fn events(session: &mut Session) -> Result<Vec<BackupEvent>, Error> {
    let mut events = Vec::new();
    while events.last() != Some(&BackupEvent::Complete) {
        events.push(session.next_backup_event().await?);
    }
    Ok(events)
}

#[tokio::test]
async fn a_base_backup_is_the_same_in_both_dialects() {
    for (version, command, copies) in [("14.24", OLD_BACKUP, old_copies()), ("17.2", NEW_BACKUP, new_copy())] {
        let end = [complete("BASE_BACKUP"), ready()].concat();
        let whole = [backup_begins(), copies, backup_stops(), end].concat();
        let (server, mut session) =
            answering(version, vec![(command, whole), ("SHOW \"port\"", single_row(&[Some("1")]))]).await;
        let started = session.base_backup(&backup()).await.unwrap();
        let one = TablespaceRow { oid: Some(16385), location: Some("/ts/one".into()), size_kb: None };
        let main = TablespaceRow { oid: None, location: None, size_kb: None };
        let expected = BackupStarted { start: pos(0x400_0028), tablespaces: vec![one.clone(), main.clone()] };
        assert_eq!(started, expected);
        let mut events = events(&mut session).await.unwrap();
        events.retain(|event| !matches!(event, BackupEvent::Progress(8) | BackupEvent::Notice(_)));
        let bytes = Bytes::from_static;
        assert_eq!(
            events,
            [
                BackupEvent::Archive(one),
                BackupEvent::Data(bytes(b"tar one")),
                BackupEvent::ArchiveEnd,
                BackupEvent::Archive(main),
                BackupEvent::Data(bytes(b"tar two")),
                BackupEvent::ArchiveEnd,
                BackupEvent::Manifest,
                BackupEvent::ManifestData(bytes(b"{}")),
                BackupEvent::ManifestEnd,
                BackupEvent::Stop(pos(0x400_0138)),
                BackupEvent::Complete,
            ]
        );
        assert_eq!(session.show("port").await.unwrap(), "1");
        done(session, server).await;
    }
}

#[tokio::test]
async fn damaged_pages_are_told_after_the_stop_position() {
    let verdict = [error("ERROR", "XX001", "checksum verification failure during base backup"), ready()].concat();
    let whole = [backup_begins(), new_copy(), backup_stops(), verdict].concat();
    let (server, mut session) =
        answering("17.2", vec![(NEW_BACKUP, whole), ("SHOW \"port\"", single_row(&[Some("1")]))]).await;
    session.base_backup(&backup()).await.unwrap();
    let error = loop {
        match session.next_backup_event().await {
            Ok(BackupEvent::Complete) => panic!("complete"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Checksums(_)), "{error}");
    assert_eq!(session.show("port").await.unwrap(), "1");
    done(session, server).await;
}

#[tokio::test]
async fn a_base_backup_can_fail_at_any_point() {
    let failure = || [error("ERROR", "XX001", "could not read block"), ready()].concat();
    for answer in [
        failure(),
        [columns(2), row(&[Some("0/4000028"), Some("1")]), complete("SELECT"), failure()].concat(),
        [backup_begins(), failure()].concat(),
        [backup_begins(), copy_out(), copy_data(b"nbase.tar\0\0"), failure()].concat(),
    ] {
        let (server, mut session) =
            answering("17.2", vec![(NEW_BACKUP, answer), ("SHOW \"port\"", single_row(&[Some("1")]))]).await;
        let error = match session.base_backup(&backup()).await {
            Ok(_) => events(&mut session).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error, Error::Server(_)), "{error}");
        assert_eq!(session.show("port").await.unwrap(), "1");
        done(session, server).await;
    }
}

#[tokio::test]
async fn what_has_no_place_in_a_base_backup_is_refused() {
    let during = "copying a base backup";
    let huge = [&b"d"[..], &0x7FFF_FFFF_u32.to_be_bytes()].concat();
    for (bytes, expected) in [
        (copy_data(b"nother.tar\0\0"), ProtocolError::Value { what: "archive name", value: "other.tar".into() }),
        (copy_both(), ProtocolError::Unexpected { tag: b'W', during }),
        (huge, FramingError::TooLong { tag: b'd', len: 0x7FFF_FFFB, limit: 1 << 20 }.into()),
    ] {
        let (server, mut session) =
            answering("17.2", vec![(NEW_BACKUP, [backup_begins(), copy_out(), bytes].concat())]).await;
        session.base_backup(&backup()).await.unwrap();
        assert_eq!(protocol_error(session.next_backup_event().await.unwrap_err()), expected);
        done(session, server).await;
    }
}

fn copy_in() -> Vec<u8> {
    message(b'G', &[0, 0, 0])
}

/// What comes until the end of the copy.
async fn uploaded(peer: &mut Peer) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        match peer.next().await {
            Some((b'd', piece)) => all.extend(piece),
            Some((b'c', _)) => return all,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_manifest_is_uploaded_in_pieces() {
    let manifest: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let expected = manifest.clone();
    let server = Server::start(move |mut peer: Peer| async move {
        peer.log_in("17.2").await;
        peer.expect_query("UPLOAD_MANIFEST").await;
        peer.send(copy_in()).await;
        assert!(uploaded(&mut peer).await == expected);
        peer.send_all([complete("UPLOAD_MANIFEST"), ready()]).await;
        peer.expect_query("SHOW \"port\"").await;
        peer.send(single_row(&[Some("1")])).await;
        peer.expect_close().await;
    })
    .await;
    let mut session = server.session().await;
    session.upload_manifest(&mut &*manifest).await.unwrap();
    assert_eq!(session.show("port").await.unwrap(), "1");
    done(session, server).await;
}

#[tokio::test]
async fn a_manifest_can_be_refused_at_once_or_in_the_middle() {
    for at_once in [true, false] {
        let refusal = || [error("ERROR", "55000", "system identifier in backup manifest is ..."), ready()].concat();
        let server = Server::start(move |mut peer: Peer| async move {
            peer.log_in("17.2").await;
            peer.expect_query("UPLOAD_MANIFEST").await;
            if at_once {
                peer.send(refusal()).await;
            } else {
                peer.send(copy_in()).await;
                peer.expect(b'd').await;
                peer.send(refusal()).await;
                uploaded(&mut peer).await;
            }
            peer.expect_query("SHOW \"port\"").await;
            peer.send(single_row(&[Some("1")])).await;
            peer.expect_close().await;
        })
        .await;
        let mut session = server.session().await;
        let error = session.upload_manifest(&mut &[b' '; 100_000][..]).await.unwrap_err();
        assert!(matches!(error, Error::Server(_)), "{error}");
        assert_eq!(session.show("port").await.unwrap(), "1");
        done(session, server).await;
    }
}

#[tokio::test]
async fn what_has_no_place_in_an_upload_is_refused() {
    let unexpected = |tag| ProtocolError::Unexpected { tag, during: "uploading a manifest" };
    for (answer, tag) in [(copy_out(), b'H'), (ready(), b'Z'), (copy_both(), b'W')] {
        let (server, mut session) = answering("17.2", vec![("UPLOAD_MANIFEST", answer)]).await;
        assert_eq!(protocol_error(session.upload_manifest(&mut &b"{}"[..]).await.unwrap_err()), unexpected(tag));
        assert!(matches!(session.show("port").await, Err(Error::NotFree(_))));
        done(session, server).await;
    }
}
