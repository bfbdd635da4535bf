//! A server under load whose commits wait for a receiver, what strikes them, and the judge.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::backup::{backup, restored, verify};
use crate::cluster::{Cluster, Stop};
use crate::crash::{Moments, only_sealed_are_offered, rounds};
use crate::failover::Address;
use crate::fault::matrix::{Row, told};
use crate::load::{Load, lost};
use crate::program::{Running, receive, run, start, walhold};
use crate::room::{Outcome, Room, SOON, wait_until};
use crate::stock::amcheck;

/// After so many rounds there is a new backup, and all but the last two go.
const BACKUP_EVERY: usize = 10;

/// What is struck.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Strike {
    /// `kill -9` of the receiver.
    Receiver,
    /// `kill -9` of a backup.
    Backup,
    /// `kill -9` of the server and of all of its processes.
    Server,
    /// `kill -9` of one session of the server.
    Session,
    /// `kill -9` of the process of the server that sends to the receiver.
    Sender,
    /// The server is stopped.
    Stop(Stop),
    /// The server is stopped while a backup runs.
    StopInBackup(Stop),
    /// `kill -9` of all of them at once, with a backup under way.
    All,
}

/// What the rows of these scenarios are made of.
pub(crate) struct Plan<'a> {
    /// As in [`Row`].
    pub(crate) fault: &'static str,
    /// As in [`Row`].
    pub(crate) how: &'a str,
    /// One of these strikes in each round.
    pub(crate) strikes: &'a [Strike],
    /// Rounds in an ordinary run.
    pub(crate) few: usize,
    /// Words of the lines that are the operator's.
    pub(crate) words: &'a [&'static str],
}

/// Strikes again and again at random moments. Each round ends with a restore of the newest backup and of all
/// WAL, which must have what was acknowledged until then.
#[track_caller]
pub(crate) fn rounds_of(room: &Room, plan: &Plan<'_>) -> Outcome {
    let mut stage = Stage::new(room, &[]);
    let mut row = empty_row(plan.fault, plan.how);
    for round in 1..=rounds(plan.few) {
        stage.load.wait_for_more(10);
        stage.moments.sleep(Duration::from_millis(300));
        let strike = plan.strikes[stage.moments.below(plan.strikes.len())];
        stage.strike(strike);
        row.rounds += 1;
        let mut resumed = None;
        // What is left by a program that is dead, or what one that runs again has made of it. A server that
        // recovers by itself does not wait for us.
        if stage.over.is_some() || stage.moments.coin() {
            resumed = Some(stage.go_on());
        }
        (row.acknowledged, row.lost) = stage.judge(false);
        if row.lost > 0 {
            break;
        }
        row.resumed = row.resumed.max(Some(resumed.unwrap_or_else(|| stage.go_on())));
        if round % BACKUP_EVERY == 0 {
            stage.renew();
        }
    }
    if row.lost == 0 {
        stage.load.wait_for_more(50);
        stage.strike(Strike::All);
        row.told = stage.told(plan.words);
        (row.acknowledged, row.lost) = stage.judge(true);
    }
    stage.load.finish();
    room.record(row);
    Ok(())
}

/// A row of a fault that has not been made yet.
pub(crate) fn empty_row(fault: &'static str, how: &str) -> Row {
    let (how, told) = (how.to_owned(), String::new());
    Row { fault, how, rounds: 0, acknowledged: 0, lost: 0, resumed: None, told }
}

/// A server under load whose commits wait for a receiver.
pub(crate) struct Stage<'a> {
    room: &'a Room,
    pub(crate) repo: PathBuf,
    /// Where receiver and backups find the server.
    pub(crate) address: Address<'a>,
    pub(crate) primary: Cluster<'a>,
    pub(crate) receiver: Option<Running>,
    /// Arguments of the receiver.
    more: &'static [&'static str],
    pub(crate) load: Load,
    /// What servers that are gone have acknowledged.
    earlier: Vec<i64>,
    /// How many servers have had writers.
    servers: usize,
    pub(crate) moments: Moments,
    /// What all programs but the receiver that runs have said.
    pub(crate) log: String,
    /// How long a backup takes when nothing happens to it.
    whole_backup: Duration,
    /// When the fault was over, if that is not when things are started again.
    over: Option<Instant>,
}

impl<'a> Stage<'a> {
    /// With more arguments for the receiver.
    pub(crate) fn new(room: &'a Room, more: &'static [&'static str]) -> Self {
        let primary = Cluster::new(room, "primary");
        Load::prepare(&primary);
        let (repo, address) = (room.path("repo"), Address::of(room, &primary));
        let receiver = receive(room, &repo, &address.conninfo(), &[&["--synchronous"], more].concat());
        receiver.wait_until_it_streams(&primary);
        primary.require_standby("walhold");
        let load = Load::start(&primary, 3);
        let begun = Instant::now();
        let log = backup(room, &repo, &primary).expect(0).err;
        Self {
            room,
            repo,
            address,
            primary,
            receiver: Some(receiver),
            more,
            load,
            earlier: Vec::new(),
            servers: 1,
            moments: Moments::new(),
            log,
            whole_backup: begun.elapsed(),
            over: None,
        }
    }

    fn strike(&mut self, strike: Strike) {
        match strike {
            Strike::Receiver => self.kill_receiver(),
            Strike::Backup => self.kill_backup(),
            Strike::Server => self.primary.kill_all(),
            Strike::Session => self.crash("select pid from pg_stat_activity where application_name = 'test' and pid <> pg_backend_pid() order by random()"),
            Strike::Sender => self.crash("select pid from pg_stat_replication where application_name = 'walhold'"),
            Strike::Stop(how) => drop(self.primary.stop(how)),
            Strike::StopInBackup(how) => self.stop_in_backup(how),
            Strike::All => self.kill_everything(),
        }
    }

    pub(crate) fn kill_receiver(&mut self) {
        let ended = self.receiver.take().expect("a receiver").kill();
        assert!(ended.killed(), "it ended by itself\n{ended}");
        self.log += &ended.err;
    }

    /// A backup that is under way for some part of the time that it would take.
    pub(crate) fn half_a_backup(&mut self) -> Running {
        let conninfo = self.address.conninfo();
        let running = start(walhold(self.room, "backup").arg("--repo").arg(&self.repo).args(["-d", &conninfo]));
        self.moments.sleep(self.whole_backup.mul_f64(0.9));
        running
    }

    fn kill_backup(&mut self) {
        // One that was faster this time is sealed, and does not count.
        while !self.half_a_backup().kill().killed() {}
        only_sealed_are_offered(self.room, &self.repo);
        self.log += &run(walhold(self.room, "status").arg("--repo").arg(&self.repo)).expect(0).out;
    }

    fn stop_in_backup(&mut self, how: Stop) {
        let running = self.half_a_backup();
        self.primary.stop(how);
        let ended = running.wait(SOON * 2);
        assert!(matches!(ended.status.code(), Some(0 | 1)), "{ended}");
        self.log += &ended.err;
        only_sealed_are_offered(self.room, &self.repo);
    }

    fn kill_everything(&mut self) {
        let running = if self.moments.coin() { Some(self.half_a_backup()) } else { None };
        // The server first or the receiver: what was under way between them differs.
        let server_first = self.moments.coin();
        if server_first {
            self.primary.kill_all();
        }
        self.kill_receiver();
        if !server_first {
            self.primary.kill_all();
        }
        drop(running);
        only_sealed_are_offered(self.room, &self.repo);
    }

    /// Kills one process of the server, and waits until that has ended all others.
    fn crash(&mut self, which: &str) {
        let before = self.outages();
        self.primary.kill_one(which);
        self.over = Some(Instant::now());
        wait_until("the server to end its sessions", SOON, || self.outages() > before);
    }

    fn outages(&self) -> usize {
        self.receiver.as_ref().map_or(0, |receiver| receiver.err().matches("disconnected: ").count())
    }

    /// Starts what does not run. How long it took from then, or from the fault's own end, until commits went on.
    pub(crate) fn go_on(&mut self) -> Duration {
        let receiver_first = self.moments.coin();
        let mut over = self.over.take();
        if receiver_first {
            self.stream_again();
        }
        if !self.primary.is_started() {
            self.primary.start();
            over = None;
        }
        let over = over.unwrap_or_else(Instant::now);
        self.stream_again();
        let before = self.load.count();
        wait_until("commits to go on", SOON, || {
            self.stream_as_a_service();
            self.load.count() > before
        });
        over.elapsed()
    }

    /// A receiver that finds no server when it is started ends, and is started again.
    fn stream_as_a_service(&mut self) {
        if let Some(ended) = self.receiver.take_if(|receiver| !receiver.runs()) {
            let ended = ended.wait(SOON).expect(1);
            let away = ["cannot connect", "the database system is"].iter().any(|words| ended.err.contains(words));
            assert!(away, "{ended}");
            self.log += &ended.err;
            self.stream_again();
        }
    }

    /// The server is lost for good, and another one takes its place.
    pub(crate) fn succeeded_by(&mut self, server: Cluster<'a>) {
        let load = Load::start_at(&server, 3, 10 * self.servers);
        self.earlier.extend(std::mem::replace(&mut self.load, load).finish());
        (self.primary, self.servers) = (server, self.servers + 1);
        self.address.goes_to(&self.primary);
    }

    pub(crate) fn stream_again(&mut self) {
        if self.receiver.is_none() {
            let more = [&["--synchronous"], self.more].concat();
            self.receiver = Some(receive(self.room, &self.repo, &self.address.conninfo(), &more));
        }
    }

    /// The lines that have these words; a program that is killed in the right moment leaves none.
    pub(crate) fn told(&self, words: &[&str]) -> String {
        let said = words.iter().filter(|word| self.log.contains(**word));
        let lines: Vec<String> = said.map(|word| told(self.room, &self.log, word)).collect();
        if lines.is_empty() { "nothing: started again, it goes on".to_owned() } else { lines.join("\n") }
    }

    /// How many commits have been acknowledged, and how many of them a restore of what the repository holds lacks.
    pub(crate) fn judge(&mut self, indexes: bool) -> (usize, usize) {
        let acknowledged = [self.earlier.clone(), self.load.so_far()].concat();
        verify(self.room, &self.repo).expect(0);
        let server = restored(self.room, &self.repo, "restored");
        let lost = lost(&acknowledged, &server);
        if indexes {
            amcheck(self.room, &server);
        }
        server.discard();
        (acknowledged.len(), lost)
    }

    /// A new backup in the place of the oldest, and of those that were given up.
    pub(crate) fn renew(&mut self) {
        backup(self.room, &self.repo, &self.primary).expect(0);
        let limits = ["--keep-last", "2", "--pending-older-than", "1s"];
        run(walhold(self.room, "expire").arg("--repo").arg(&self.repo).args(limits)).expect(0);
        // Nothing of what has gone may look like a loss.
        verify(self.room, &self.repo).expect(0);
    }
}
