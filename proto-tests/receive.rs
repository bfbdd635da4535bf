//! Receiving as a whole: real sockets and a real folder, against a server that follows a script and
//! sends WAL made by hand.

#![allow(clippy::disallowed_methods, reason = "the folder is set up and looked at from outside")]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use walhold::archive::{Archive, ResumeError};
use walhold::disk::{Disk, Real};
use walhold::protocol::{Condition, SlotName};
use walhold::receive::{Event, Finished, Options, ReceiveError, Retry, Slot, Upstream, Violation, receive};
use walhold::wal::{Lsn, Pos, SegmentSize, TimelineId};

use super::server::{
    Door, Peer, Server, authentication, columns, complete, conninfo, copy_both, copy_done, error, keepalive, parameter,
    ready, row, single_row, wal,
};
use super::slow::Slow;
use super::wal::Log;

const SIZE: u64 = 1 << 20;
const START: u64 = 3 * SIZE;
const SYSTEM: u64 = 77;
/// No test takes so long unless something hangs.
const LIMIT: Duration = Duration::from_secs(40);
/// How long a script may take when the client has ended.
const SCRIPT_LIMIT: Duration = Duration::from_secs(5);
/// The server's messages are as large as this at most.
const PIECE: usize = 128 << 10;

fn tli(id: u32) -> TimelineId {
    TimelineId::new(id).unwrap()
}

fn pos(lsn: u64) -> Pos {
    Pos::new(tli(1), Lsn::new(lsn))
}

fn slot() -> SlotName {
    "walhold".parse().unwrap()
}

/// A log with records of up to 3,000 bytes that ends behind `upto`.
fn log_to(upto: u64) -> Log {
    let mut log = Log::new(START, SIZE, 1, SYSTEM);
    extend(&mut log, upto, 1);
    log
}

fn extend(log: &mut Log, upto: u64, seed: usize) {
    let mut n = seed;
    while log.at() < upto {
        log.record(10, 0, &vec![n as u8 | 1; n * 7 % 3000 + 1]);
        n += 1;
    }
}

/// Flips a bit in the record that begins at `start`.
fn flipped(log: &Log, start: u64, offset: u64) -> Log {
    let mut bad = log.clone();
    bad.bytes[(start + offset - log.start) as usize] ^= 4;
    bad
}

/// What the server says of itself.
#[derive(Clone, Copy)]
struct Node {
    version: &'static str,
    system: u64,
    tli: u32,
    at: u64,
    segment: &'static str,
    timeout: &'static str,
    standby: bool,
}

const NODE: Node =
    Node { version: "17.2", system: SYSTEM, tli: 1, at: START, segment: "1MB", timeout: "1min", standby: false };

impl Node {
    /// Whose log ends where `log` does.
    fn with(log: &Log) -> Self {
        Self { at: log.at(), ..NODE }
    }
}

fn text(lsn: u64) -> String {
    Lsn::new(lsn).to_string()
}

/// A status from the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Told {
    write: u64,
    flush: u64,
    ask: bool,
}

impl Told {
    fn read(body: &[u8]) -> Self {
        assert_eq!((body.len(), body[0]), (34, b'r'));
        let number = |at| u64::from_be_bytes(body[at..at + 8].try_into().unwrap());
        assert_eq!(number(17), 0, "apply");
        Self { write: number(1), flush: number(9), ask: body[33] != 0 }
    }
}

impl Peer {
    /// Lets the client in and answers what every session begins with.
    async fn introduce(&mut self, node: &Node) {
        self.expect_startup().await;
        let admitted = [
            authentication(0, b""),
            parameter("server_version", node.version),
            parameter("integer_datetimes", "on"),
            parameter("in_hot_standby", if node.standby { "on" } else { "off" }),
            ready(),
        ];
        self.send_all(admitted).await;
        let (system, id, at) = (node.system.to_string(), node.tli.to_string(), text(node.at));
        self.answer("IDENTIFY_SYSTEM", single_row(&[Some(&system), Some(&id), Some(&at), None])).await;
        self.answer("SHOW \"wal_segment_size\"", single_row(&[Some(node.segment)])).await;
        self.answer("SHOW \"wal_sender_timeout\"", single_row(&[Some(node.timeout)])).await;
        self.answer("SHOW \"data_directory_mode\"", single_row(&[Some("0700")])).await;
    }

    /// Takes this command, and answers what a synchronous receiver asks before it.
    async fn expect_command(&mut self, command: &str) {
        let mut query = self.expect(b'Q').await;
        if query == SHOW_COMMIT {
            self.send(single_row(&[Some("on")])).await;
            query = self.expect(b'Q').await;
        }
        assert_eq!(String::from_utf8_lossy(&query), format!("{command}\0"));
    }

    async fn answer(&mut self, command: &str, answer: Vec<u8>) {
        self.expect_command(command).await;
        self.send(answer).await;
    }

    /// Waits until the client hangs up, perhaps after it has asked what a synchronous one asks.
    async fn expect_end(mut self) {
        while let Some((tag, body)) = self.next().await {
            assert_eq!((tag, &body[..]), (b'Q', SHOW_COMMIT), "{:?}", String::from_utf8_lossy(&body));
            self.send(single_row(&[Some("on")])).await;
        }
    }

    /// Answers an SQL session's question where the slot is.
    async fn answer_slot_query(mut self, version: &str, answer: Vec<u8>) {
        self.log_in(version).await;
        let physical = "slot_name = 'walhold' and slot_type = 'physical'";
        self.answer(&format!("select restart_lsn from pg_replication_slots where {physical}"), answer).await;
        self.expect_close().await;
    }

    /// Begins a stream, and takes the greeting.
    async fn stream(&mut self, slot: bool, at: u64, tli: u32) {
        self.expect_command(&start_command(slot, at, tli)).await;
        self.send(copy_both()).await;
        assert_eq!(self.status().await, Told { write: at, flush: 0, ask: false });
    }

    async fn send_log(&mut self, log: &Log, from: u64, to: u64) {
        let mut at = from;
        for piece in log.bytes[(from - log.start) as usize..(to - log.start) as usize].chunks(PIECE) {
            self.send(wal(at, piece)).await;
            at += piece.len() as u64;
        }
    }

    async fn status(&mut self) -> Told {
        Told::read(&self.expect(b'd').await)
    }

    /// Takes statuses until one reports `flush`, and sees that none reports more, or less than one
    /// before it.
    async fn flushed(&mut self, flush: u64) -> Vec<Told> {
        let mut all = vec![self.status().await];
        while all[all.len() - 1].flush != flush {
            all.push(self.status().await);
        }
        assert!(all.is_sorted_by_key(|told| told.flush) && all.is_sorted_by_key(|told| told.write), "{all:?}");
        assert!(all.iter().all(|told| told.flush <= told.write));
        all
    }

    /// Takes statuses until one reports `flush`; each must come before the server would give up.
    async fn flushed_in_time(&mut self, limit: Duration, flush: u64) {
        loop {
            let told = timeout(limit, self.status()).await.expect("a status in time");
            if told.flush >= flush {
                return;
            }
            if told.ask {
                self.send(keepalive(flush, false)).await;
            }
        }
    }

    /// Takes statuses until the client is gone; none may report more than `most` as durable.
    async fn flushes_until_close(mut self, most: u64) {
        while let Some((tag, body)) = self.next().await {
            assert_eq!(tag, b'd');
            let told = Told::read(&body);
            assert!(told.flush <= most, "{told:?} reports more than {most}");
        }
    }

    /// Takes statuses until the client's CopyDone.
    async fn expect_copy_done(&mut self) {
        loop {
            match self.next().await {
                Some((b'c', _)) => return,
                Some((b'd', _)) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The client is asked and reports nothing as durable.
    async fn expect_no_flush(&mut self) {
        self.send(keepalive(START, true)).await;
        assert_eq!(self.status().await.flush, 0);
    }

    /// The client ends the stream, and the server agrees.
    async fn end_by_client(mut self) {
        self.expect_copy_done().await;
        self.send_all([copy_done(), complete("START_STREAMING"), complete("START_REPLICATION"), ready()]).await;
        self.expect_close().await;
    }

    /// The server ends the timeline, which goes on in `next`.
    async fn end_timeline(&mut self, next: u32, at: u64) {
        self.send(copy_done()).await;
        self.expect_copy_done().await;
        self.send(next_timeline(next, at)).await;
    }
}

fn start_command(slot: bool, at: u64, tli: u32) -> String {
    let slot = if slot { "SLOT \"walhold\" " } else { "" };
    format!("START_REPLICATION {slot}PHYSICAL {} TIMELINE {tli}", text(at))
}

fn next_timeline(next: u32, at: u64) -> Vec<u8> {
    let values = [Some(next.to_string()), Some(text(at))];
    let values: Vec<_> = values.iter().map(Option::as_deref).collect();
    let ends = [complete("START_STREAMING"), complete("START_REPLICATION"), ready()].concat();
    [columns(2), row(&values), ends].concat()
}

fn history(content: &str) -> Vec<u8> {
    [columns(2), row(&[Some("x"), Some(content)]), complete("TIMELINE_HISTORY"), ready()].concat()
}

fn refused(sqlstate: &str, text: &str) -> Vec<u8> {
    [error("ERROR", sqlstate, text), ready()].concat()
}

fn in_use() -> Vec<u8> {
    refused("55006", "replication slot is active")
}

fn removed() -> Vec<u8> {
    refused("58P01", "requested WAL segment has already been removed")
}

fn slot_at(restart: u64) -> Vec<u8> {
    single_row(&[Some("physical"), Some(&text(restart)), Some("1")])
}

const SHOW_COMMIT: &[u8] = b"SHOW \"synchronous_commit\"\0";
const READ_SLOT: &str = "READ_REPLICATION_SLOT \"walhold\"";

/// A folder, and a receiver that writes into it.
struct Client {
    folder: tempfile::TempDir,
    system: Option<u64>,
    options: Options,
    stop: CancellationToken,
    disk: Arc<dyn Disk>,
}

/// How receiving ended, and what it told.
struct Ran {
    result: Result<Finished, ReceiveError>,
    events: Vec<Event>,
}

impl Ran {
    fn error(self) -> ReceiveError {
        match self.result {
            Err(error) => error,
            Ok(finished) => panic!("{finished:?} after {:?}", self.events),
        }
    }

    #[track_caller]
    fn stopped(&self) {
        assert!(matches!(self.result, Ok(Finished::Stopped)), "{:?}", self.result);
    }

    fn disconnections(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::Disconnected { .. })).count()
    }

    /// The disconnections that are worth a line.
    fn told(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::Disconnected { news: true, .. })).count()
    }

    fn asked_again(&self) -> Option<String> {
        self.events.iter().find_map(|event| match event {
            Event::Again { from, .. } => Some(from.name()),
            _ => None,
        })
    }
}

impl Client {
    fn new() -> Self {
        let options = Options {
            conninfo: conninfo("host=nowhere user=tester", None),
            application_name: "walhold".into(),
            slot: Slot::None,
            synchronous: true,
            sync_interval: Duration::from_millis(20),
            status_interval: None,
            end: None,
            retry: Some(Retry::default()),
            follow: None,
            accept_gap: None,
            island: None,
            may_pass_over: false,
        };
        let folder = tempfile::tempdir().unwrap();
        Self { folder, system: Some(SYSTEM), options, stop: CancellationToken::new(), disk: Arc::new(Real::new()) }
    }

    fn with_slot() -> Self {
        let mut client = Self::new();
        client.options.slot = Slot::Existing(slot());
        client
    }

    /// One whose folder holds the log up to `upto`.
    fn holding(self, log: &Log, upto: u64) -> Self {
        self.holding_on(1, log, upto)
    }

    fn holding_on(self, id: u32, log: &Log, upto: u64) -> Self {
        let mut at = log.start;
        while at < upto {
            let bytes = &log.bytes[(at - log.start) as usize..(upto.min(at + SIZE) - log.start) as usize];
            let partial = if upto < at + SIZE { ".partial" } else { "" };
            let mut content = bytes.to_vec();
            content.resize(SIZE as usize, 0);
            fs::write(self.path(&format!("{id:08X}{:016X}{partial}", at / SIZE)), content).unwrap();
            at += SIZE;
        }
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Names and contents, in order.
    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let names = fs::read_dir(self.folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut files: Vec<_> = names.map(|name| (name.clone(), self.read(&name))).collect();
        files.sort();
        files
    }

    fn names(&self) -> Vec<String> {
        self.files().into_iter().map(|(name, _)| name).collect()
    }

    /// What is held of a timeline is `log`, up to `end`.
    #[track_caller]
    fn assert_holds(&self, id: u32, log: &Log, from: u64, end: u64) {
        let mut at = from;
        while at < end {
            let partial = if end < at + SIZE { ".partial" } else { "" };
            let name = format!("{id:08X}{:016X}{partial}", at / SIZE);
            let bytes = self.read(&name);
            assert_eq!(bytes.len() as u64, SIZE);
            let n = (end - at).min(SIZE) as usize;
            let offset = (at - log.start) as usize;
            assert!(bytes[..n] == log.bytes[offset..offset + n], "{name} differs");
            at += SIZE;
        }
    }

    async fn run(&mut self, server: Server) -> Ran {
        self.run_with(server, "").await
    }

    /// With more settings.
    async fn run_with(&mut self, server: Server, more: &str) -> Ran {
        self.options.conninfo = server.conninfo(&format!("sslmode=disable {more}"));
        let size = SegmentSize::new(SIZE).unwrap();
        let archive = Archive::new(self.folder.path().to_owned(), Arc::clone(&self.disk), size, self.system, 0o600);
        let mut events = Vec::new();
        let receiving = async {
            let upstream = Upstream::connect(&self.options.conninfo, "walhold").await.unwrap();
            let mut tell = |event| match event {
                // Before each session; there is but one server.
                Event::Connected(_) => {}
                other => events.push(other),
            };
            receive(upstream, &archive, &self.options, &self.stop, &mut tell).await
        };
        let mut script = Box::pin(server.finish());
        // A script that fails ends the test at once.
        let ended = async {
            tokio::pin!(receiving);
            tokio::select! {
                result = &mut receiving => {
                    let left = timeout(SCRIPT_LIMIT, &mut script).await;
                    left.unwrap_or_else(|_| panic!("the script waits for more after {result:?}"));
                    result
                }
                () = &mut script => receiving.await,
            }
        };
        let result = timeout(LIMIT, ended).await.expect("the client goes on for ever");
        Ran { result, events }
    }

    /// Runs against a script that may stop the client.
    async fn against<F: Future<Output = ()> + Send>(
        &mut self,
        script: impl FnOnce(Door, CancellationToken) -> F + Send + 'static,
    ) -> Ran {
        let stop = self.stop.clone();
        let server = Server::serve(move |door| script(door, stop)).await;
        self.run(server).await
    }
}

// Where to start.

#[tokio::test]
async fn a_missing_slot_is_made_with_reserved_wal_and_begun_at() {
    let log = log_to(START + 200_000);
    let mut client = Client::new();
    client.options.slot = Slot::Ensured(slot());
    let (sent, node) = (log.clone(), Node { at: START + 3 * SIZE, ..NODE });
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, single_row(&[None, None, None])).await;
            let made = single_row(&[Some("walhold"), Some("0/0"), None, None]);
            peer.answer("CREATE_REPLICATION_SLOT \"walhold\" PHYSICAL (RESERVE_WAL)", made).await;
            peer.answer(READ_SLOT, slot_at(START + 5000)).await;
            peer.stream(true, START, 1).await;
            // A slot is not moved back.
            peer.send_log(&sent, START, START + 4999).await;
            peer.expect_no_flush().await;
            peer.send_log(&sent, START + 4999, sent.at()).await;
            peer.flushed(sent.at()).await;
            stop.cancel();
            peer.flushed(sent.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    assert!(matches!(
        &ran.events[..3],
        [Event::SlotMade(_), Event::Begins(from), Event::Streaming(at)] if from == at && *at == pos(START)
    ));
    client.assert_holds(1, &log, START, log.at());
}

#[tokio::test]
async fn before_15_the_slot_is_asked_for_in_an_sql_session() {
    let log = log_to(START + 200_000);
    let mut client = Client::new();
    client.options.slot = Slot::Ensured(slot());
    let (sent, node) = (log.clone(), Node { version: "14.24", at: START + 3 * SIZE, ..NODE });
    client.options.synchronous = false;
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            let none = [columns(1), complete("SELECT 0"), ready()].concat();
            door.next().await.answer_slot_query("14.24", none).await;
            let made = single_row(&[Some("walhold"), Some("0/0"), None, None]);
            peer.answer("CREATE_REPLICATION_SLOT \"walhold\" PHYSICAL RESERVE_WAL", made).await;
            door.next().await.answer_slot_query("14.24", single_row(&[Some(&text(START + 5000))])).await;
            peer.stream(true, START, 1).await;
            peer.send_log(&sent, START, sent.at()).await;
            peer.flushed(sent.at()).await;
            stop.cancel();
            peer.flushed(sent.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    client.assert_holds(1, &log, START, log.at());
}

#[tokio::test]
async fn a_slot_that_must_exist_and_does_not_is_an_error() {
    for version in ["17.2", "13.16"] {
        let mut client = Client::with_slot();
        client.options.synchronous = false;
        let ran = client
            .against(async move |mut door, _| {
                let mut peer = door.next().await;
                peer.introduce(&Node { version, ..NODE }).await;
                if version == "17.2" {
                    peer.answer(READ_SLOT, single_row(&[None, None, None])).await;
                } else {
                    let none = [columns(1), complete("SELECT 0"), ready()].concat();
                    door.next().await.answer_slot_query(version, none).await;
                }
                peer.expect_end().await;
            })
            .await;
        assert!(matches!(ran.error(), ReceiveError::NoSlot(name) if name == slot()));
        assert_eq!(client.names(), [""; 0]);
    }
}

/// A server before 15 whose role may replicate and nothing else.
async fn untold(door: &mut Door, at: u64) -> Peer {
    let mut peer = door.next().await;
    peer.introduce(&Node { version: "13.16", at, ..NODE }).await;
    let mut sql = door.next().await;
    sql.expect_startup().await;
    sql.send(error("FATAL", "28000", "no pg_hba.conf entry")).await;
    peer
}

const CREATE_SLOT: &str = "CREATE_REPLICATION_SLOT \"walhold\" PHYSICAL RESERVE_WAL";

/// Another host of the list may have a slot of the same name, which is none of ours.
#[tokio::test]
async fn what_became_of_a_slot_is_asked_at_the_host_that_has_it() {
    const STATUS: &str = "select wal_status from pg_replication_slots where slot_name = 'walhold'";
    let log = log_to(START + 200_000);
    // Away at first, and back when the second connection is made.
    let other = Server::serve(async |mut door: Door| {
        drop(door.next().await);
        let mut peer = door.next().await;
        peer.log_in("17.2").await;
        peer.answer(STATUS, single_row(&[Some("lost")])).await;
    })
    .await;
    let mut client = Client::with_slot();
    let (sent, stop) = (log.clone(), client.stop.clone());
    let ours = Server::serve(async move |mut door: Door| {
        let mut peer = door.next().await;
        peer.introduce(&NODE).await;
        peer.answer(READ_SLOT, single_row(&[Some("physical"), None, None])).await;
        let mut second = door.next().await;
        second.log_in("17.2").await;
        second.answer(STATUS, single_row(&[Some("reserved")])).await;
        peer.stream(true, START, 1).await;
        peer.send_log(&sent, START, sent.at()).await;
        peer.flushed(sent.at()).await;
        stop.cancel();
        peer.flushed(sent.at()).await;
        peer.end_by_client().await;
    })
    .await;
    let both = format!("host=127.0.0.1,127.0.0.1 port={},{}", other.port(), ours.port());
    client.run_with(ours, &both).await.stopped();
    client.assert_holds(1, &log, START, log.at());
}

#[tokio::test]
async fn an_empty_repository_does_not_begin_behind_what_a_slot_may_keep() {
    for slot in [Slot::Existing(slot()), Slot::Ensured(slot())] {
        let mut client = Client::new();
        client.options.synchronous = false;
        client.options.slot = slot.clone();
        let ran = client
            .against(async move |mut door, _| {
                let mut peer = untold(&mut door, START).await;
                if let Slot::Ensured(_) = slot {
                    peer.answer(CREATE_SLOT, refused("42710", "it exists")).await;
                }
                peer.expect_end().await;
            })
            .await;
        assert!(!ran.events.iter().any(|event| matches!(event, Event::SlotMade(_))));
        assert!(matches!(ran.error(), ReceiveError::SlotPosition { .. }));
    }
}

#[tokio::test]
async fn without_sql_an_empty_folder_begins_at_the_server_and_a_slot_made_now_keeps_nothing_else() {
    for (made, may_pass_over) in [(true, false), (true, true), (false, true)] {
        let mut client = Client::new();
        client.options.synchronous = false;
        client.options.slot = Slot::Ensured(slot());
        client.options.may_pass_over = may_pass_over;
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = untold(&mut door, START + SIZE + 5).await;
                let created = single_row(&[Some("walhold"), Some("0/0"), None, None]);
                let answer = if made { created } else { refused("42710", "it exists") };
                peer.answer(CREATE_SLOT, answer).await;
                peer.stream(true, START + SIZE, 1).await;
                stop.cancel();
                peer.end_by_client().await;
            })
            .await;
        ran.stopped();
        let told = |found: fn(&Event) -> bool| ran.events.iter().any(found);
        assert_eq!(told(|event| matches!(event, Event::SlotMade(_))), made);
        assert_eq!(told(|event| matches!(event, Event::PassedOver { .. })), !made);
    }
}

#[tokio::test]
async fn without_sql_what_is_held_is_gone_on_with_and_the_stream_tells_of_a_missing_slot() {
    let log = log_to(START + 2 * SIZE + 300_000);
    for missing in [false, true] {
        let mut client = Client::with_slot().holding(&log, START + SIZE + 300_000);
        client.options.synchronous = false;
        let sent = log.clone();
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = untold(&mut door, sent.at()).await;
                if missing {
                    let none = refused("42704", "replication slot \"walhold\" does not exist");
                    peer.answer(&start_command(true, START + SIZE, 1), none).await;
                    return peer.expect_end().await;
                }
                peer.stream(true, START + SIZE, 1).await;
                peer.send_log(&sent, START + SIZE, sent.at()).await;
                peer.flushed(sent.at()).await;
                stop.cancel();
                peer.end_by_client().await;
            })
            .await;
        if missing {
            assert!(matches!(ran.error(), ReceiveError::NoSlot(name) if name == slot()));
        } else {
            ran.stopped();
            client.assert_holds(1, &log, START, log.at());
        }
    }
}

/// The slot may keep the WAL of a hole, so that is asked for first.
#[tokio::test]
async fn without_sql_a_hole_is_asked_for_before_what_comes_after_it() {
    let log = log_to(START + 3 * SIZE + 300_000);
    let mut client = Client::with_slot().holding(&log, log.at());
    client.options.synchronous = false;
    fs::remove_file(client.path("000000010000000000000004")).unwrap();
    let sent = log.clone();
    let ran = client
        .against(async move |mut door, stop| {
            for _ in 0..2 {
                let mut peer = untold(&mut door, sent.at()).await;
                peer.answer(&start_command(true, START + SIZE, 1), removed()).await;
                peer.expect_end().await;
            }
            let mut peer = untold(&mut door, sent.at()).await;
            peer.stream(true, START + 3 * SIZE, 1).await;
            stop.cancel();
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    assert!(matches!(ran.events[..2], [Event::Begins(_), Event::Filling(_)]), "{:?}", ran.events);
}

#[tokio::test]
async fn an_empty_archive_without_slot_begins_in_the_servers_segment() {
    for client in [Client::new(), Client::with_slot()] {
        let mut client = client;
        let has_slot = client.options.slot != Slot::None;
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&Node { at: START + 100_000, ..NODE }).await;
                if has_slot {
                    // It keeps nothing yet.
                    peer.answer(READ_SLOT, single_row(&[Some("physical"), None, None])).await;
                }
                peer.stream(has_slot, START, 1).await;
                stop.cancel();
                peer.status().await;
                peer.end_by_client().await;
            })
            .await;
        ran.stopped();
    }
}

/// Neither the slot nor the server's position counts when WAL is held.
#[tokio::test]
async fn an_archive_that_holds_wal_goes_on_at_its_own_end() {
    let log = log_to(START + 2 * SIZE + 500_000);
    let mut client = Client::with_slot().holding(&log, START + SIZE + 300_000);
    let (sent, node) = (log.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, slot_at(START + 2 * SIZE)).await;
            peer.stream(true, START + SIZE, 1).await;
            peer.send_log(&sent, START + SIZE, sent.at()).await;
            peer.flushed(sent.at()).await;
            stop.cancel();
            peer.flushed(sent.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    client.assert_holds(1, &log, START, log.at());
}

#[tokio::test]
async fn an_island_begins_where_it_must_and_is_gone_on_with() {
    let log = log_to(START + 6 * SIZE + 100_000);
    let mut client = Client::new().holding(&log, START + SIZE + 300_000);
    let island = START + 4 * SIZE;
    client.options.island = Some(pos(island + 5000));
    let (sent, node) = (log.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, stop| {
            // What comes next is asked for first; only when it is gone the island begins.
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, START + SIZE, 1).await;
            peer.send(removed()).await;
            peer.expect_end().await;
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, island, 1).await;
            peer.send_log(&sent, island, island + SIZE + 200_000).await;
            peer.flushed(island + SIZE + 200_000).await;
            drop(peer);
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, island + SIZE, 1).await;
            peer.send_log(&sent, island + SIZE, sent.at()).await;
            peer.flushed(sent.at()).await;
            stop.cancel();
            peer.flushed(sent.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    assert!(ran.events.iter().any(|event| matches!(event, Event::AfterHole(_))));
    client.assert_holds(1, &log, START, START + SIZE + 300_000);
    client.assert_holds(1, &log, island, log.at());
}

/// P2: a backup that brought its own WAL must not make a receiver pass over what its slot still keeps.
#[tokio::test]
async fn a_hole_that_the_slot_keeps_the_wal_of_is_filled() {
    let log = log_to(START + 5 * SIZE + 100_000);
    let mut client = Client::with_slot().holding(&log, START + SIZE + 300_000);
    for n in 3..5 {
        let bytes = &log.bytes[(n * SIZE) as usize..((n + 1) * SIZE) as usize];
        fs::write(client.path(&format!("00000001{:016X}", START / SIZE + n)), bytes).unwrap();
    }
    let (sent, node) = (log.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, slot_at(START + SIZE + 200_000)).await;
            peer.stream(true, START + SIZE, 1).await;
            peer.send_log(&sent, START + SIZE, START + 3 * SIZE + 10_000).await;
            // What is held behind the hole is not received again.
            peer.flushed(START + 3 * SIZE).await;
            peer.expect_copy_done().await;
            peer.send_all([copy_done(), complete("START_STREAMING"), complete("START_REPLICATION"), ready()]).await;
            let (system, at) = (node.system.to_string(), text(node.at));
            peer.answer("IDENTIFY_SYSTEM", single_row(&[Some(&system), Some("1"), Some(&at), None])).await;
            peer.stream(true, START + 5 * SIZE, 1).await;
            peer.send_log(&sent, START + 5 * SIZE, sent.at()).await;
            peer.flushed(sent.at()).await;
            stop.cancel();
            peer.flushed(sent.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    assert!(ran.events.iter().any(|event| matches!(event, Event::Filling(_))));
    client.assert_holds(1, &log, START, log.at());
}

/// What is held behind a hole, and does not follow from what fills it, is another past.
#[tokio::test]
async fn a_hole_is_not_joined_to_what_does_not_follow() {
    let log = log_to(START + 5 * SIZE + 100_000);
    let mut client = Client::with_slot().holding(&log, START + SIZE + 300_000);
    let mut bytes = log.bytes[(3 * SIZE) as usize..(4 * SIZE) as usize].to_vec();
    // Behind the page's header.
    bytes[40] ^= 1;
    fs::write(client.path(&format!("00000001{:016X}", START / SIZE + 3)), &bytes).unwrap();
    let (sent, node) = (log.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, slot_at(START + SIZE + 200_000)).await;
            peer.stream(true, START + SIZE, 1).await;
            peer.send_log(&sent, START + SIZE, START + 3 * SIZE).await;
            peer.flushes_until_close(START + 3 * SIZE).await;
        })
        .await;
    let error = ran.error();
    assert!(matches!(error, ReceiveError::Diverged(_)), "{error:?}");
    assert!(fs::read(client.path(&format!("00000001{:016X}", START / SIZE + 3))).unwrap() == bytes);
}

/// A server that says nothing does not hold up a stop before the stream begins.
#[tokio::test]
async fn a_stop_is_seen_before_the_stream() {
    for streams in [false, true] {
        let mut client = Client::with_slot();
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&NODE).await;
                if streams {
                    peer.answer(READ_SLOT, slot_at(START)).await;
                    peer.expect_command(&start_command(true, START, 1)).await;
                } else {
                    peer.expect_command(READ_SLOT).await;
                }
                stop.cancel();
                timeout(Duration::from_secs(10), peer.expect_close()).await.expect("a prompt end");
            })
            .await;
        ran.stopped();
        assert_eq!(ran.disconnections(), 0);
    }
}

/// An archive that reaches the island's start goes on at its own end.
#[tokio::test]
async fn an_island_that_the_archive_reaches_is_none() {
    let log = log_to(START + 2 * SIZE);
    let mut client = Client::new().holding(&log, START + SIZE + 300_000);
    client.options.island = Some(pos(START + SIZE + 8));
    let node = Node::with(&log);
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, START + SIZE, 1).await;
            stop.cancel();
            peer.status().await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
}

// The slot is taken.

#[tokio::test]
async fn without_retry_a_slot_that_is_in_use_is_an_error() {
    let mut client = Client::with_slot();
    client.options.retry = None;
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&NODE).await;
            peer.answer(READ_SLOT, slot_at(START)).await;
            peer.answer(&start_command(true, START, 1), in_use()).await;
            peer.expect_end().await;
        })
        .await;
    let ReceiveError::Session(error) = ran.error() else { panic!("another error") };
    assert_eq!(error.condition(), Some(Condition::InUse));
}

/// A receiver that was cut off finds its slot held by its last connection, until the server gives
/// that up. One line tells it; whoever holds it longer is somebody else.
#[tokio::test]
async fn a_slot_in_use_is_waited_for_as_long_as_the_server_would_wait() {
    let mut client = Client::with_slot();
    client.options.retry = Some(Retry { first: Duration::from_millis(100), limit: Duration::from_millis(500) });
    let ran = client
        .against(async move |mut door, _| {
            let begun = std::time::Instant::now();
            // 2 s more than the server's own limit.
            while begun.elapsed() < Duration::from_millis(2800) {
                let mut peer = door.next().await;
                peer.introduce(&Node { timeout: "1s", ..NODE }).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.answer(&start_command(true, START, 1), in_use()).await;
                peer.expect_end().await;
            }
            // Perhaps once more.
            while let Ok(mut peer) = timeout(Duration::from_secs(1), door.next()).await {
                peer.introduce(&Node { timeout: "1s", ..NODE }).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.answer(&start_command(true, START, 1), in_use()).await;
                peer.expect_end().await;
            }
        })
        .await;
    assert_eq!(ran.told(), 1);
    let ReceiveError::Session(error) = ran.error() else { panic!("another error") };
    assert_eq!(error.condition(), Some(Condition::InUse));
}

/// The server may not have noticed yet that our last connection is gone, whether or not anything
/// came over it.
#[tokio::test]
async fn a_slot_that_our_lost_connection_holds_is_waited_for() {
    let log = log_to(START + 200_000);
    for sent in [0, 100_000] {
        let mut client = Client::with_slot();
        let (log, node) = (log.clone(), Node::with(&log));
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.stream(true, START, 1).await;
                peer.send_log(&log, START, START + sent).await;
                drop(peer);
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.answer(&start_command(true, START, 1), in_use()).await;
                peer.expect_end().await;
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.stream(true, START, 1).await;
                stop.cancel();
                peer.status().await;
                peer.end_by_client().await;
            })
            .await;
        ran.stopped();
        assert_eq!(ran.disconnections(), 2);
    }
}

// Gaps and divergence.

#[tokio::test]
async fn wal_that_is_gone_twice_is_a_gap() {
    let log = log_to(START + SIZE + 300_000);
    for retry in [Some(Retry::default()), None] {
        let mut client = Client::with_slot().holding(&log, START + 500_000);
        client.options.retry = retry;
        let before = client.files();
        let at = START + 9 * SIZE + 1000;
        let ran = client
            .against(async move |mut door, _| {
                for last in [false, true] {
                    let mut peer = door.next().await;
                    peer.introduce(&Node { at, ..NODE }).await;
                    peer.answer(READ_SLOT, slot_at(START + 7 * SIZE)).await;
                    peer.stream(true, START, 1).await;
                    peer.send(removed()).await;
                    if last {
                        peer.answer(READ_SLOT, slot_at(START + 8 * SIZE)).await;
                    }
                    peer.expect_end().await;
                }
            })
            .await;
        let ReceiveError::Gap(gap) = ran.error() else { panic!("no gap") };
        assert_eq!((gap.server, gap.kept_from), (pos(at), Some(Lsn::new(START + 8 * SIZE))));
        // The first byte that is missing, not where its segment begins.
        let end = log.starts.iter().rfind(|start| **start <= START + 500_000).unwrap();
        assert_eq!(gap.held, pos(*end));
        assert_eq!(client.files(), before);
    }
}

#[tokio::test]
async fn wal_that_is_there_when_it_is_asked_for_again_is_no_gap() {
    let log = log_to(START + 200_000);
    let mut client = Client::new();
    let (sent, node) = (log.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, START, 1).await;
            peer.send(removed()).await;
            peer.expect_end().await;
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, START, 1).await;
            peer.send_log(&sent, START, sent.at()).await;
            peer.flushed(sent.at()).await;
            stop.cancel();
            peer.flushed(sent.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    client.assert_holds(1, &log, START, log.at());
}

/// A server that refuses before anything is written, and what is said of it.
async fn refused_by(client: &mut Client, node: Node) -> ReceiveError {
    let before = client.files();
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.expect_end().await;
        })
        .await;
    assert!(client.files() == before, "something was written");
    ran.error()
}

#[tokio::test]
async fn an_archive_ahead_of_a_primary_is_divergence() {
    let log = log_to(START + SIZE + 300_000);
    for (held, server) in [(SIZE + 300_000, SIZE + 200_000), (SIZE, SIZE - 1000), (300_000, 0)] {
        let mut client = Client::new().holding(&log, START + held);
        let error = refused_by(&mut client, Node { at: START + server, ..NODE }).await;
        let ReceiveError::Ahead { server: at, standby: false, .. } = error else { panic!("{error}") };
        assert_eq!(at, pos(START + server));
    }
}

#[tokio::test]
async fn a_standby_behind_the_archive_is_waited_for() {
    let log = log_to(START + 300_000);
    let mut client = Client::new().holding(&log, START + 200_000);
    let (sent, node) = (log.clone(), Node { standby: true, ..Node::with(&log) });
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&Node { at: START + 100_000, ..node }).await;
            peer.expect_end().await;
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, START, 1).await;
            peer.send_log(&sent, START, sent.at()).await;
            peer.flushed(sent.at()).await;
            stop.cancel();
            peer.flushed(sent.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    assert_eq!(ran.disconnections(), 1);
    client.assert_holds(1, &log, START, log.at());
}

#[tokio::test]
async fn another_cluster_is_refused() {
    let log = log_to(START + SIZE + 300_000);
    let other = Node { system: 78, ..Node::with(&log) };
    let mut client = Client::new();
    let error = refused_by(&mut client, other).await;
    assert!(matches!(error, ReceiveError::OtherCluster { held: SYSTEM, server: 78 }), "{error}");
    // A plain folder has nothing but its segments to tell whose it is.
    for upto in [SIZE + 300_000, SIZE, 300_000] {
        let mut client = Client::new().holding(&log, START + upto);
        client.system = Some(78);
        let error = refused_by(&mut client, other).await;
        assert!(matches!(error, ReceiveError::OtherCluster { held: SYSTEM, server: 78 }), "{error}");
    }
}

#[tokio::test]
async fn another_segment_size_is_refused() {
    let mut client = Client::new();
    let error = refused_by(&mut client, Node { segment: "2MB", ..NODE }).await;
    assert!(matches!(error, ReceiveError::OtherSegmentSize { held: 0x10_0000, server: 0x20_0000 }), "{error}");
}

#[tokio::test]
async fn damage_in_what_is_held_is_not_built_upon() {
    let log = log_to(START + 2 * SIZE + 300_000);
    let bad = flipped(&log, log.starts[20], 40);
    let mut client = Client::new().holding(&bad, START + SIZE + 300_000);
    let error = refused_by(&mut client, Node::with(&log)).await;
    assert!(matches!(error, ReceiveError::Resume(ResumeError::Damaged { .. })), "{error}");
}

/// Of a copy that was cut short, what is there must be the same, and the rest comes again.
#[tokio::test]
async fn a_segment_that_has_lost_its_end_is_received_again() {
    let log = log_to(START + 2 * SIZE + 300_000);
    for (left, partial) in [(500_001, true), (0, true), (8192, false)] {
        let end = START + 2 * SIZE + if partial { 200_000 } else { 0 };
        let mut client = Client::with_slot().holding(&log, end);
        let short = client.path("000000010000000000000004");
        fs::OpenOptions::new().write(true).open(&short).unwrap().set_len(left).unwrap();
        let (sent, node) = (log.clone(), Node::with(&log));
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START + SIZE)).await;
                peer.stream(true, START + SIZE, 1).await;
                peer.send_log(&sent, START + SIZE, sent.at()).await;
                peer.flushed(sent.at()).await;
                stop.cancel();
                peer.flushed(sent.at()).await;
                peer.end_by_client().await;
            })
            .await;
        ran.stopped();
        client.assert_holds(1, &log, START, log.at());
        let size = |name: &str| fs::metadata(client.path(name)).unwrap().len();
        assert!(client.names().iter().all(|name| size(name) == SIZE), "{:?}", client.names());
    }
}

#[tokio::test]
async fn bytes_that_differ_from_what_is_held_are_divergence() {
    let log = log_to(START + 700_000);
    let mut other = Log::new(START, SIZE, 1, SYSTEM);
    extend(&mut other, START + 300_000, 1);
    let fork = other.at();
    extend(&mut other, START + 700_000, 5);
    let mut client = Client::with_slot().holding(&log, START + 500_000);
    let before = client.files();
    let (sent, node) = (other.clone(), Node::with(&other));
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, slot_at(START)).await;
            peer.stream(true, START, 1).await;
            peer.send_log(&sent, START, sent.at()).await;
            // Nothing is reported as durable meanwhile.
            peer.flushes_until_close(0).await;
        })
        .await;
    let ReceiveError::Diverged(at) = ran.error() else { panic!("not divergence") };
    let same = log.bytes.iter().zip(&other.bytes).take_while(|(a, b)| a == b).count() as u64;
    assert_eq!(at, pos(START + same));
    assert!(at.lsn().get() >= fork);
    assert!(client.files() == before);
}

/// P5: a clone of the cluster bears its identifier.
#[tokio::test]
async fn a_junction_that_does_not_fit_is_divergence() {
    let log = log_to(START + SIZE + 300_000);
    let mut other = Log::new(START, SIZE, 1, SYSTEM);
    extend(&mut other, START + SIZE + 300_000, 5);
    let mut client = Client::new().holding(&log, START + SIZE);
    let before = client.files();
    let node = Node::with(&other);
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, START + SIZE, 1).await;
            peer.send_log(&other, START + SIZE, other.at()).await;
            peer.flushes_until_close(0).await;
        })
        .await;
    assert!(matches!(ran.error(), ReceiveError::Diverged(_)));
    assert!(client.files() == before);
}

// A record that does not verify.

#[tokio::test]
async fn a_broken_record_that_comes_right_the_second_time_is_healed() {
    let log = log_to(START + 2 * SIZE + 300_000);
    let record = *log.starts.iter().rfind(|start| **start < START + SIZE + 200_000).unwrap();
    let bad = flipped(&log, record, 30);
    let mut client = Client::with_slot();
    let (good, node) = (log.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, slot_at(START)).await;
            peer.stream(true, START, 1).await;
            peer.send_log(&bad, START, bad.at()).await;
            peer.flushes_until_close(record).await;
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, slot_at(START + SIZE)).await;
            peer.stream(true, START + SIZE, 1).await;
            peer.send_log(&good, START + SIZE, good.at()).await;
            peer.flushed(good.at()).await;
            stop.cancel();
            peer.flushed(good.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    assert_eq!(ran.asked_again().as_deref(), Some("000000010000000000000004"));
    client.assert_holds(1, &log, START, log.at());
}

/// A log whose third segment begins inside a record that began in the second.
fn spanning() -> (Log, u64) {
    let mut log = log_to(START + 2 * SIZE - 60_000);
    let record = log.next_record();
    log.record(10, 0, &vec![9; 200_000]);
    extend(&mut log, START + 3 * SIZE + 300_000, 3);
    (log, record)
}

#[tokio::test]
async fn a_broken_record_that_began_in_a_complete_segment_is_healed() {
    let (log, record) = spanning();
    let bad = flipped(&log, record, 5000);
    for lost in [false, true] {
        let mut client = Client::with_slot();
        let (bad, good, node) = (bad.clone(), log.clone(), Node::with(&log));
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.stream(true, START, 1).await;
                peer.send_log(&bad, START, bad.at()).await;
                peer.flushes_until_close(record + 200_000).await;
                if lost {
                    // The second sending is cut short: it has proved nothing.
                    let mut peer = door.next().await;
                    peer.introduce(&node).await;
                    peer.answer(READ_SLOT, slot_at(START + SIZE)).await;
                    peer.stream(true, START + SIZE, 1).await;
                    peer.send_log(&good, START + SIZE, START + SIZE + 300_000).await;
                }
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START + SIZE)).await;
                peer.stream(true, START + SIZE, 1).await;
                peer.send_log(&good, START + SIZE, good.at()).await;
                peer.flushed(good.at()).await;
                stop.cancel();
                peer.flushed(good.at()).await;
                peer.end_by_client().await;
            })
            .await;
        ran.stopped();
        assert_eq!(ran.asked_again().as_deref(), Some("000000010000000000000004"));
        client.assert_holds(1, &log, START, log.at());
    }
}

#[tokio::test]
async fn a_broken_record_that_is_repeated_is_final_and_never_acknowledged() {
    let log = log_to(START + SIZE + 300_000);
    let record = *log.starts.iter().rfind(|start| **start < START + 200_000).unwrap();
    let bad = flipped(&log, record, 30);
    for retry in [Some(Retry::default()), None] {
        let mut client = Client::with_slot();
        client.options.retry = retry;
        let (bad, node) = (bad.clone(), Node::with(&log));
        let ran = client
            .against(async move |mut door, _| {
                for _ in 0..2 {
                    let mut peer = door.next().await;
                    peer.introduce(&node).await;
                    peer.answer(READ_SLOT, slot_at(START)).await;
                    peer.stream(true, START, 1).await;
                    peer.send_log(&bad, START, bad.at()).await;
                    peer.flushes_until_close(record).await;
                }
            })
            .await;
        assert_eq!(ran.asked_again().as_deref(), Some("000000010000000000000003"));
        let ReceiveError::NotValid { broken, .. } = ran.error() else { panic!("valid") };
        assert_eq!(broken.whole.get(), record);
    }
}

/// What verified is held, and must come again as it was: places cannot take turns.
#[tokio::test]
async fn records_that_break_in_turns_end_it() {
    let log = log_to(START + SIZE + 300_000);
    let record = |below: u64| *log.starts.iter().rfind(|start| **start < START + below).unwrap();
    let (a, b) = (record(200_000), record(600_000));
    let mut client = Client::with_slot();
    let logs = [a, b, a].map(|record| flipped(&log, record, 30));
    let node = Node::with(&log);
    let ran = client
        .against(async move |mut door, _| {
            for bad in &logs {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.stream(true, START, 1).await;
                peer.send_log(bad, START, bad.at()).await;
                peer.flushes_until_close(b).await;
            }
        })
        .await;
    let places: Vec<_> = ran
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Again { broken, .. } => Some(broken.whole.get()),
            _ => None,
        })
        .collect();
    assert_eq!(places, [a, b]);
    assert!(matches!(ran.error(), ReceiveError::Diverged(at) if (a..b).contains(&at.lsn().get())));
}

/// Of a version that is not known, all is checked that all versions share.
#[tokio::test]
async fn a_newer_server_is_streamed_from_and_verified() {
    let mut log = Log::new(START, SIZE, 1, SYSTEM);
    log.magic = 0xD142;
    for n in 0..900 {
        log.record(if n % 7 == 0 { 60 } else { 10 }, 0, &vec![n as u8 | 1; n * 7 % 3000 + 1]);
    }
    assert!(log.at() > START + SIZE);
    let node = Node { version: "19.1", ..Node::with(&log) };
    let mut client = Client::with_slot();
    let sent = log.clone();
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, slot_at(START)).await;
            peer.stream(true, START, 1).await;
            peer.send_log(&sent, START, sent.at()).await;
            peer.flushed(sent.at()).await;
            stop.cancel();
            peer.flushed(sent.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    client.assert_holds(1, &log, START, log.at());
    // A record that does not verify is not acknowledged here either.
    let record = *log.starts.iter().rfind(|start| **start < START + 200_000).unwrap();
    let bad = flipped(&log, record, 30);
    let mut client = Client::with_slot();
    client.options.retry = None;
    let ran = client
        .against(async move |mut door, _| {
            for _ in 0..2 {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.stream(true, START, 1).await;
                peer.send_log(&bad, START, bad.at()).await;
                peer.flushes_until_close(record).await;
            }
        })
        .await;
    assert!(matches!(ran.error(), ReceiveError::NotValid { .. }));
}

// A disk that takes its time.

/// The server counts the silence as a walsender does, and drops whoever exceeds its timeout: while a
/// partial is read and compared, a segment is made, synced and renamed, and at a timeline's end.
#[tokio::test]
async fn a_disk_that_hangs_never_costs_the_connection() {
    const TIMEOUT: Duration = Duration::from_millis(400);
    let log = log_to(START + 2 * SIZE);
    let (fork, switch) = forked(&log, START + SIZE + 300_000, 2);
    let mut client = Client::with_slot().holding(&log, START + 300_000);
    client.disk = Arc::new(Slow { disk: Real::new(), delay: TIMEOUT * 5 / 4 });
    let (old, node) = (log.clone(), Node { timeout: "400ms", ..Node::with(&log) });
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, slot_at(START)).await;
            peer.stream(true, START, 1).await;
            peer.send_log(&old, START, switch).await;
            peer.flushed_in_time(TIMEOUT, switch).await;
            peer.send_log(&old, switch, switch + 50_000).await;
            peer.send(copy_done()).await;
            loop {
                match timeout(TIMEOUT, peer.next()).await.expect("a status in time") {
                    Some((b'c', _)) => break,
                    Some((b'd', _)) => {}
                    other => panic!("{other:?}"),
                }
            }
            peer.send(next_timeline(2, switch)).await;
            peer.answer("TIMELINE_HISTORY 2", history(&format!("1\t{}\tx\n", text(switch)))).await;
            peer.stream(true, START + SIZE, 2).await;
            peer.send_log(&fork, START + SIZE, fork.at()).await;
            peer.flushed_in_time(TIMEOUT, fork.at()).await;
            stop.cancel();
            peer.flushes_until_close(fork.at()).await;
        })
        .await;
    ran.stopped();
    assert_eq!(ran.disconnections(), 0);
}

// The ends of a connection.

#[tokio::test]
async fn an_orderly_shutdown_gets_exactly_what_was_sent_and_is_followed_by_another_try() {
    let log = log_to(START + SIZE + 300_000);
    for synchronous in [true, false] {
        let mut client = Client::with_slot();
        client.options.synchronous = synchronous;
        client.options.sync_interval = Duration::from_secs(3600);
        let (sent, node) = (log.clone(), Node::with(&log));
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.stream(true, START, 1).await;
                let shutdown = START + SIZE + 100_001;
                peer.send_log(&sent, START, shutdown).await;
                peer.send(keepalive(shutdown, true)).await;
                let told = peer.flushed(shutdown).await;
                assert_eq!(told.last().unwrap().write, shutdown);
                peer.send(complete("COPY 0")).await;
                drop(peer);
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(shutdown)).await;
                peer.stream(true, START + SIZE, 1).await;
                stop.cancel();
                peer.status().await;
                peer.end_by_client().await;
            })
            .await;
        ran.stopped();
        assert!(matches!(
            &ran.events[..],
            [.., Event::Disconnected { .. }, Event::Begins(_), Event::Reconnected { .. }, Event::Streaming(_)]
        ));
    }
}

#[tokio::test]
async fn without_reconnecting_the_servers_end_is_ours() {
    let mut client = Client::new();
    client.options.retry = None;
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&NODE).await;
            peer.stream(false, START, 1).await;
            peer.send(complete("COPY 0")).await;
        })
        .await;
    assert!(matches!(ran.error(), ReceiveError::Ended));
}

#[tokio::test]
async fn a_lost_connection_is_resumed_and_flush_stays_0_until_past_the_old_end() {
    let log = log_to(START + SIZE + 800_000);
    let mut client = Client::with_slot();
    let (sent, node) = (log.clone(), Node::with(&log));
    let old = START + SIZE + 400_003;
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, slot_at(START)).await;
            peer.stream(true, START, 1).await;
            peer.send_log(&sent, START, old).await;
            peer.flushed(old).await;
            drop(peer);
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            // What a slot says may be older than what was reported: it is written at checkpoints.
            peer.answer(READ_SLOT, slot_at(START)).await;
            peer.stream(true, START + SIZE, 1).await;
            for (from, to) in [(0, 100_000), (100_000, 390_000), (390_000, 400_002)] {
                peer.send_log(&sent, START + SIZE + from, START + SIZE + to).await;
                peer.expect_no_flush().await;
            }
            peer.send_log(&sent, old - 1, sent.at()).await;
            let told = peer.flushed(sent.at()).await;
            assert!(told.iter().all(|told| told.flush == 0 || told.flush >= old), "{told:?}");
            stop.cancel();
            peer.flushed(sent.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    client.assert_holds(1, &log, START, log.at());
    assert_eq!(client.names(), ["000000010000000000000003", "000000010000000000000004.partial"]);
}

#[tokio::test]
async fn a_server_that_is_silent_for_its_own_timeout_is_given_up() {
    let mut client = Client::new();
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&Node { timeout: "600ms", ..NODE }).await;
            peer.stream(false, START, 1).await;
            assert!(!peer.status().await.ask);
            assert!(peer.status().await.ask);
            peer.expect_end().await;
            let mut peer = door.next().await;
            peer.introduce(&NODE).await;
            peer.stream(false, START, 1).await;
            stop.cancel();
            peer.status().await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    assert_eq!(ran.disconnections(), 1);
}

#[tokio::test]
async fn wal_at_the_wrong_position_is_a_violation() {
    let log = log_to(START + 300_000);
    let mut client = Client::with_slot();
    let (sent, node) = (log.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, slot_at(START)).await;
            peer.stream(true, START, 1).await;
            peer.send_log(&sent, START, START + 100_000).await;
            peer.send_log(&sent, START + 100_008, START + 200_000).await;
            peer.flushes_until_close(START + 100_000).await;
        })
        .await;
    let expected = Violation::Misplaced { expected: Lsn::new(START + 100_000), found: Lsn::new(START + 100_008) };
    assert!(matches!(ran.error(), ReceiveError::Violation(violation) if violation == expected));
    client.assert_holds(1, &log, START, START + 100_000);
}

// Our own end.

#[tokio::test]
async fn a_stop_reports_all_that_came_and_says_goodbye() {
    let log = log_to(START + 300_000);
    for synchronous in [true, false] {
        let mut client = Client::with_slot();
        client.options.synchronous = synchronous;
        client.options.sync_interval = Duration::from_secs(3600);
        let (sent, node) = (log.clone(), Node::with(&log));
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.stream(true, START, 1).await;
                peer.send_log(&sent, START, sent.at()).await;
                // It has read what came before this.
                peer.send(keepalive(sent.at(), true)).await;
                peer.flushed(sent.at()).await;
                stop.cancel();
                assert_eq!(peer.status().await.flush, sent.at());
                peer.end_by_client().await;
            })
            .await;
        ran.stopped();
        client.assert_holds(1, &log, START, log.at());
    }
}

#[tokio::test]
async fn the_end_position_must_be_passed() {
    let log = log_to(START + 300_000);
    let mut client = Client::new();
    client.options.end = Some(Lsn::new(START + 100_000));
    let (sent, node) = (log.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, START, 1).await;
            peer.send_log(&sent, START, START + 100_000).await;
            peer.flushed(START + 100_000).await;
            peer.send_log(&sent, START + 100_000, START + 100_100).await;
            peer.flushed(START + 100_100).await;
            peer.end_by_client().await;
        })
        .await;
    assert!(matches!(ran.result, Ok(Finished::EndPosition)), "{:?}", ran.result);
    client.assert_holds(1, &log, START, START + 100_100);
}

#[tokio::test]
async fn an_archive_past_the_end_position_is_done() {
    let log = log_to(START + 2 * SIZE);
    let mut client = Client::new().holding(&log, START + 2 * SIZE);
    client.options.end = Some(Lsn::new(START + SIZE));
    let node = Node::with(&log);
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.expect_end().await;
        })
        .await;
    assert!(matches!(ran.result, Ok(Finished::EndPosition)), "{:?}", ran.result);
}

/// P1: "stopped" means that all is durable.
#[tokio::test]
async fn a_stop_whose_sync_fails_is_an_error() {
    let log = log_to(START + 300_000);
    let mut client = Client::new();
    client.options.synchronous = false;
    client.options.sync_interval = Duration::from_secs(3600);
    let (folder, moved) = (client.folder.path().to_owned(), client.folder.path().with_extension("moved"));
    let (sent, node, away) = (log.clone(), Node::with(&log), moved.clone());
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, START, 1).await;
            peer.send_log(&sent, START, sent.at()).await;
            let partial = folder.join("000000010000000000000003.partial");
            while !partial.exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // Nothing has been synced: the directory, which is gone now, must be.
            fs::rename(&folder, &away).unwrap();
            stop.cancel();
            peer.flushes_until_close(0).await;
        })
        .await;
    fs::remove_dir_all(moved).unwrap();
    assert!(matches!(ran.error(), ReceiveError::Archive(_)));
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_server_that_does_not_answer() {
    let mut client = Client::new();
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&NODE).await;
            peer.stream(false, START, 1).await;
            drop(peer);
            let mut peer = door.next().await;
            peer.expect_startup().await;
            stop.cancel();
            peer.expect_end().await;
        })
        .await;
    ran.stopped();
}

#[tokio::test]
async fn remote_apply_is_warned_of() {
    for (value, warned) in [("remote_apply", true), ("on", false)] {
        let mut client = Client::new();
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&NODE).await;
                peer.expect_query("SHOW \"synchronous_commit\"").await;
                peer.send(single_row(&[Some(value)])).await;
                peer.stream(false, START, 1).await;
                stop.cancel();
                peer.end_by_client().await;
            })
            .await;
        ran.stopped();
        assert_eq!(ran.events.iter().any(|event| matches!(event, Event::RemoteApply)), warned);
    }
}

/// Each waits for the report of the one before; no interval comes to help.
#[tokio::test]
async fn a_synchronous_commit_is_reported_at_once() {
    let log = log_to(START + SIZE + 30_000);
    let mut client = Client::new();
    client.options.sync_interval = Duration::from_secs(3600);
    let sent = log.clone();
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&NODE).await;
            peer.stream(false, START, 1).await;
            let mut at = START;
            // Over the segment's end, too.
            for end in sent.starts.iter().skip(1).copied().filter(|end| end % 16 == 0) {
                peer.send_log(&sent, at, end).await;
                peer.flushed(end).await;
                at = end;
            }
            stop.cancel();
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
}

#[tokio::test]
async fn without_slot_and_synchronous_flush_stays_0() {
    let log = log_to(START + 300_000);
    let mut client = Client::new();
    client.options.synchronous = false;
    let (sent, node) = (log.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, START, 1).await;
            peer.send_log(&sent, START, sent.at()).await;
            peer.send(keepalive(sent.at(), true)).await;
            assert_eq!(peer.status().await, Told { write: sent.at(), flush: 0, ask: false });
            stop.cancel();
            assert_eq!(peer.status().await, Told { write: sent.at(), flush: 0, ask: false });
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    client.assert_holds(1, &log, START, log.at());
}

// Timelines.

/// A log that goes on as timeline `id` from the record at or before `at`; and where that is.
fn forked(log: &Log, at: u64, id: u32) -> (Log, u64) {
    let mut fork = Log::new(START, SIZE, 1, SYSTEM);
    extend(&mut fork, at, 1);
    let switch = fork.at();
    assert!(fork.bytes == log.bytes[..fork.bytes.len()]);
    fork.tli = id;
    extend(&mut fork, at + 900_000, 11);
    (fork, switch)
}

#[tokio::test]
async fn a_timelines_end_is_followed_with_the_histories_first() {
    let log = log_to(START + SIZE + 400_000);
    let (fork, switch) = forked(&log, START + SIZE + 300_000, 3);
    let mut client = Client::with_slot();
    let histories = [format!("1\t{}\tx\n", text(SIZE)), format!("1\t{}\tx\n2\t{}\ty\n", text(SIZE), text(switch))];
    let (folder, told) = (client.folder.path().to_owned(), histories.clone());
    let (old, new, node) = (log.clone(), fork.clone(), Node { tli: 2, ..Node::with(&log) });
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            let at = single_row(&[Some("physical"), Some(&text(START)), Some("2")]);
            peer.answer(READ_SLOT, at).await;
            peer.answer("TIMELINE_HISTORY 2", history(&told[0])).await;
            peer.expect_command(&start_command(true, START, 2)).await;
            assert_eq!(fs::read_to_string(folder.join("00000002.history")).unwrap(), told[0]);
            peer.send(copy_both()).await;
            peer.status().await;
            // The server had sent more than the new timeline shares.
            peer.send_log(&old, START, old.at()).await;
            peer.flushed(old.at()).await;
            fs::remove_file(folder.join("00000002.history")).unwrap();
            peer.end_timeline(3, switch).await;
            peer.answer("TIMELINE_HISTORY 3", history(&told[1])).await;
            peer.answer("TIMELINE_HISTORY 2", history(&told[0])).await;
            peer.expect_command(&start_command(true, START + SIZE, 3)).await;
            // Before the first byte of the new timeline.
            assert_eq!(fs::read_to_string(folder.join("00000002.history")).unwrap(), told[0]);
            assert_eq!(fs::read_to_string(folder.join("00000003.history")).unwrap(), told[1]);
            peer.send(copy_both()).await;
            peer.status().await;
            // A slot is not moved back by what is sent a second time.
            peer.send_log(&new, START + SIZE, switch - 1).await;
            peer.expect_no_flush().await;
            peer.send_log(&new, switch - 1, new.at()).await;
            peer.flushed(new.at()).await;
            stop.cancel();
            peer.flushed(new.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    let fork_at = Pos::new(tli(3), Lsn::new(switch));
    let told: Vec<_> = ran.events.iter().filter(|e| matches!(e, Event::TailKept(_) | Event::Switched(_))).collect();
    assert!(matches!(told[..], [Event::TailKept(tail), Event::Switched(at)]
        if tail.name() == "000000020000000000000004" && *at == fork_at));
    client.assert_holds(2, &log, START, log.at());
    client.assert_holds(3, &fork, START + SIZE, fork.at());
    assert_eq!(
        client.names(),
        [
            "00000002.history",
            "000000020000000000000003",
            "000000020000000000000004.partial",
            "00000003.history",
            "000000030000000000000004",
            "000000030000000000000005.partial",
        ]
    );
}

/// The server was promoted after it had said where it stands.
#[tokio::test]
async fn a_timeline_that_has_ended_already_is_followed_without_a_copy() {
    let log = log_to(START + 300_000);
    let (fork, switch) = forked(&log, START + 250_000, 2);
    let mut client = Client::new().holding(&log, START + 200_000);
    let (new, node) = (fork.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(&start_command(false, START, 1), next_timeline(2, switch)).await;
            peer.answer("TIMELINE_HISTORY 2", history(&format!("1\t{}\tx\n", text(switch)))).await;
            peer.stream(false, START, 2).await;
            peer.send_log(&new, START, new.at()).await;
            peer.flushed(new.at()).await;
            stop.cancel();
            peer.flushed(new.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    client.assert_holds(1, &log, START, START + 200_000);
    client.assert_holds(2, &fork, START, fork.at());
}

/// The server was promoted while we were away, behind or before what is held.
#[tokio::test]
async fn a_server_on_a_later_timeline_is_followed() {
    let log = log_to(START + SIZE + 400_000);
    let (fork, switch) = forked(&log, START + SIZE + 300_000, 2);
    for held in [200_000, SIZE + 200_000, SIZE + 400_000] {
        let mut client = Client::new().holding(&log, START + held);
        let (old, new, node) = (log.clone(), fork.clone(), Node { tli: 2, ..Node::with(&fork) });
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                let content = history(&format!("1\t{}\tx\n", text(switch)));
                peer.answer("TIMELINE_HISTORY 2", content.clone()).await;
                let from = START + held / SIZE * SIZE;
                peer.stream(false, from, 1).await;
                peer.send_log(&old, from, switch).await;
                peer.end_timeline(2, switch).await;
                peer.answer("TIMELINE_HISTORY 2", content).await;
                peer.stream(false, START + SIZE, 2).await;
                peer.send_log(&new, START + SIZE, new.at()).await;
                peer.flushed(new.at()).await;
                stop.cancel();
                peer.flushed(new.at()).await;
                peer.end_by_client().await;
            })
            .await;
        ran.stopped();
        client.assert_holds(1, &log, START, switch.max(START + held));
        client.assert_holds(2, &fork, START + SIZE, fork.at());
    }
}

/// Unless the operator says that it is the timeline to go on with.
#[tokio::test]
async fn a_fork_far_below_what_is_held_is_divergence() {
    let end = START + 18 * SIZE + 400_000;
    let log = log_to(end + SIZE);
    let (fork, switch) = forked(&log, START + SIZE + 300_000, 2);
    let content = history(&format!("1\t{}\tx\n", text(switch)));
    let node = Node { tli: 2, ..Node::with(&fork) };
    for (follow, followed) in [(None, false), (Some(tli(3)), false), (Some(tli(2)), true)] {
        let mut client = Client::new().holding(&log, end);
        client.options.follow = follow;
        let before = client.names();
        let (content, new) = (content.clone(), fork.clone());
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer("TIMELINE_HISTORY 2", content).await;
                if followed {
                    peer.stream(false, START + SIZE, 2).await;
                    peer.send_log(&new, START + SIZE, new.at()).await;
                    peer.flushed(new.at()).await;
                    stop.cancel();
                    peer.flushed(new.at()).await;
                    peer.end_by_client().await;
                } else {
                    peer.expect_end().await;
                }
            })
            .await;
        if followed {
            ran.stopped();
            client.assert_holds(2, &fork, START + SIZE, fork.at());
            assert!(before.iter().all(|name| client.path(name).exists()));
            continue;
        }
        let error = ran.error();
        let ReceiveError::ForkedBefore { from, to, at, held } = error else { panic!("{error}") };
        assert_eq!((from, to, at.get()), (tli(1), tli(2), switch));
        assert!(held.get() > switch + 16 * SIZE);
        assert_eq!(client.names(), before);
    }
}

#[tokio::test]
async fn another_past_is_divergence() {
    let log = log_to(START + 400_000);
    // The server is on a timeline that the archive has left, or on one that never was on ours.
    let mut client = Client::new().holding(&log, START + 200_000);
    let before = client.names();
    let node = Node { tli: 3, ..Node::with(&log) };
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer("TIMELINE_HISTORY 3", history(&format!("2\t{}\tx\n", text(START)))).await;
            peer.answer("TIMELINE_HISTORY 2", history(&format!("1\t{}\tx\n", text(START)))).await;
        })
        .await;
    let error = ran.error();
    assert!(
        matches!(error, ReceiveError::OtherHistory { held, server } if (held, server) == (tli(1), tli(3))),
        "{error}"
    );
    assert_eq!(client.names(), before);
}

#[tokio::test]
async fn a_history_that_cannot_be_read_or_contradicts_the_server_is_refused() {
    let log = log_to(START + 400_000);
    let (_, switch) = forked(&log, START + 300_000, 2);
    for content in ["", "1\tnowhere\tx\n", "1\t0/10\tx\n", "2\t0/10\tx\n"] {
        let mut client = Client::new();
        let (old, node) = (log.clone(), Node::with(&log));
        let ran = client
            .against(async move |mut door, _| {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.stream(false, START, 1).await;
                peer.send_log(&old, START, switch).await;
                peer.flushed(switch).await;
                peer.end_timeline(2, switch).await;
                peer.answer("TIMELINE_HISTORY 2", history(content)).await;
                peer.expect_end().await;
            })
            .await;
        let error = ran.error();
        assert!(matches!(error, ReceiveError::NextTimeline(next) if next == tli(2)), "{error}");
        assert_eq!(client.names(), ["000000010000000000000003.partial"], "{content:?}");
    }
}

/// Two servers that were promoted from the same one both number their timeline 2.
#[tokio::test]
async fn another_past_of_a_timeline_that_is_held_is_divergence() {
    let log = log_to(START + SIZE + 300_000);
    let mut client = Client::new().holding_on(2, &log, START + 200_000);
    fs::write(client.path("00000002.history"), format!("1\t{}\tours\n", text(START - 1000))).unwrap();
    let before = client.files();
    let node = Node { tli: 3, ..Node::with(&log) };
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            let (theirs, at) = (format!("1\t{}\ttheirs\n", text(START - 2000)), text(START + SIZE));
            peer.answer("TIMELINE_HISTORY 3", history(&format!("{theirs}2\t{at}\tx\n"))).await;
            peer.answer("TIMELINE_HISTORY 2", history(&theirs)).await;
            peer.expect_end().await;
        })
        .await;
    let error = ran.error();
    assert!(
        matches!(error, ReceiveError::OtherHistory { held, server } if (held, server) == (tli(2), tli(3))),
        "{error}"
    );
    assert!(client.files() == before);
}

/// The folder of a receiver that did not keep history files.
#[tokio::test]
async fn a_history_that_the_folder_lacks_is_fetched_before_more_wal() {
    let log = log_to(START + 300_000);
    let mut client = Client::new().holding_on(2, &log, START + 200_000);
    let (folder, node) = (client.folder.path().to_owned(), Node { tli: 2, ..Node::with(&log) });
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            let content = format!("1\t{}\tx\n", text(START - 1000));
            peer.answer("TIMELINE_HISTORY 2", history(&content)).await;
            peer.expect_command(&start_command(false, START, 2)).await;
            assert_eq!(fs::read_to_string(folder.join("00000002.history")).unwrap(), content);
            peer.send(copy_both()).await;
            peer.status().await;
            stop.cancel();
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
}
