//! Receiving as a whole: real sockets and a real folder, against a server that follows a script and
//! sends WAL made by hand.

#![allow(clippy::disallowed_methods, reason = "the folder is set up and looked at from outside")]

mod broken;
mod gaps;
mod hostile_program;
mod our_end;
mod slot_in_use;
mod start;
mod their_end;
mod timelines;

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
