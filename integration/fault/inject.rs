//! Calls to the kernel that fail, one at a time: syncs, and all that changes or opens a file. `strace` makes them fail.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::matrix::Row;
use super::power::ended_by_the_disk;
use crate::backup::{backup, restored, verify};
use crate::cluster::Cluster;
use crate::crash::{Moments, a_tenth, only_sealed_are_offered};
use crate::durable::judge;
use crate::load::{Load, compare};
use crate::program::{Ended, Running, receive, run, start, walhold};
use crate::room::{Outcome, Room, SOON, skip, wait_until};
use crate::trace::{Change, Event, Fate, events, strace};

const SYNCS: &str = "fsync,fdatasync,syncfs";
/// Without `write`, which is used for sockets and wakers: files are written with `pwrite64`.
const CHANGES: &str = "openat,pwrite64,fallocate,ftruncate,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,\
                       mkdirat,symlink,symlinkat";
/// Of these, what may find no room.
const NEED_ROOM: [&str; 8] = ["openat", "pwrite64", "fallocate", "rename", "renameat", "renameat2", "mkdir", "linkat"];

/// What is struck.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Work {
    Receive,
    Backup,
    Expire,
    Restore,
}

const WORKS: [Work; 4] = [Work::Receive, Work::Backup, Work::Expire, Work::Restore];

/// A failed sync is final: nothing is reported as durable after it that is not, the program ends, and the next start
/// goes on.
pub(crate) fn a_sync_fails(room: &Room) -> Outcome {
    let how = "strace -e inject=fsync,fdatasync,syncfs:error=EIO at a random call of receive --synchronous, backup, expire \
               and restore; of the receiver every status is held against what was durable";
    struck(room, "a sync fails", how, SYNCS, &[])
}

/// A call that fails, for want of room or not, ends the program or is overcome.
pub(crate) fn writing_fails(room: &Room) -> Outcome {
    let how = "strace -e inject=...:error=EIO or ENOSPC at a random openat, pwrite64, fallocate, rename, link, unlink or \
               mkdir of receive --synchronous, backup, expire and restore";
    struck(room, "writing fails", how, CHANGES, &NEED_ROOM)
}

fn struck(room: &Room, fault: &'static str, how: &str, names: &'static str, need_room: &[&str]) -> Outcome {
    if room.command("strace").arg("-V").output().is_err() {
        skip!("no strace on this machine");
    }
    let mut primary = Cluster::new(room, "primary");
    Load::prepare(&primary);
    let site = Site { room, primary: &primary, repo: room.path("repo"), names };
    let mut receiver = site.receive();
    backup(room, &site.repo, &primary).expect(0);
    primary.require_standby("walhold");
    let load = Load::start(&primary, 2);
    load.wait_for_more(20);
    receiver.terminate().expect(0);
    let mut calls: HashMap<Work, Vec<Call>> = HashMap::new();
    calls.insert(Work::Receive, site.calls(Work::Receive));
    receiver = site.receive();
    for work in &WORKS[1..] {
        calls.insert(*work, site.calls(*work));
    }
    let mut moments = Moments::new();
    let (rounds, mut strikes, mut longest, mut said) = (a_tenth(4), 0, Duration::ZERO, String::new());
    for round in 0..rounds {
        let work = WORKS[round % WORKS.len()];
        let call = random(&calls[&work], &mut moments);
        let error = if need_room.contains(&&*call.name) && moments.coin() { "ENOSPC" } else { "EIO" };
        // A device that fails mostly goes on failing, and a retry that succeeds must not be made.
        let again = if names == SYNCS && moments.coin() { "+" } else { "" };
        let strike = format!("{}:error={error}:when={}{again}", call.name, call.nth);
        let ended = if work == Work::Receive {
            receiver.terminate().expect(0);
            let ended = site.struck_receiver(&strike);
            let begun = Instant::now();
            receiver = site.receive();
            load.wait_for_more(1);
            longest = longest.max(begun.elapsed());
            ended
        } else {
            site.struck(work, &strike)
        };
        let hit = if site.hit() { "hit" } else { "not reached" };
        eprintln!("round {round}: {work:?} {strike}: {hit}, {}", ended.status);
        if ended.status.code() != Some(0) {
            strikes += 1;
            said = ended_by_the_disk(room, ended);
        }
        only_sealed_are_offered(room, &site.repo);
        verify(room, &site.repo).expect(0);
    }
    assert!(strikes > 0, "no strike hit");
    backup(room, &site.repo, &primary).expect(0);
    load.wait_for_more(50);
    let repo = site.repo;
    primary.destroy();
    let acknowledged = load.finish();
    receiver.terminate().expect(0);
    verify(room, &repo).expect(0);
    compare(&acknowledged, &restored(room, &repo, "restored"));
    room.record(Row {
        fault,
        how: how.to_owned(),
        rounds,
        acknowledged: acknowledged.len(),
        lost: 0,
        resumed: Some(longest),
        told: said,
    });
    Ok(())
}

/// One of the calls; every other time each name is as likely as the others, however often it is called.
fn random(calls: &[Call], moments: &mut Moments) -> Call {
    if moments.coin() {
        return calls[moments.below(calls.len())].clone();
    }
    let names: BTreeSet<&str> = calls.iter().map(|call| &*call.name).collect();
    let name = names.iter().nth(moments.below(names.len())).unwrap();
    let of_name: Vec<&Call> = calls.iter().filter(|call| call.name == *name).collect();
    of_name[moments.below(of_name.len())].clone()
}

/// A call to the kernel: the n-th of its name in its thread, from 1, as strace counts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Call {
    name: String,
    nth: usize,
}

/// A server and its repository.
struct Site<'a> {
    room: &'a Room,
    primary: &'a Cluster<'a>,
    repo: PathBuf,
    /// The calls that are made to fail.
    names: &'static str,
}

impl Site<'_> {
    #[track_caller]
    fn receive(&self) -> Running {
        let more = ["--synchronous", "-Z", "none"];
        let receiver = receive(self.room, &self.repo, &self.primary.conninfo(), &more);
        receiver.wait_until_it_streams(self.primary);
        receiver
    }

    /// What is done, and where a restore puts it.
    fn command(&self, work: Work, data: &Path) -> Command {
        let name = match work {
            Work::Receive => "receive",
            Work::Backup => "backup",
            Work::Expire => "expire",
            Work::Restore => "restore",
        };
        let mut command = walhold(self.room, name);
        command.arg("--repo").arg(&self.repo);
        match work {
            Work::Receive => command.args(["--synchronous", "-Z", "none", "-d", &self.primary.conninfo()]),
            Work::Backup => command.args(["-d", &self.primary.conninfo()]),
            Work::Expire => command.args(["--keep-last", "1"]),
            Work::Restore => command.arg("-D").arg(data),
        };
        command
    }

    /// All calls of these names that it makes to files of ours when nothing fails.
    #[track_caller]
    fn calls(&self, work: Work) -> Vec<Call> {
        let (trace, data) = (self.room.path(&format!("calls-of-{work:?}")), self.room.path("unstruck"));
        self.prepare(work);
        let mut command = self.plain_strace(&trace);
        let running = start(follow(&mut command, &self.command(work, &data)));
        if work == Work::Receive {
            self.let_it_work(&running, Duration::from_secs(3));
            running.terminate().expect(0);
        } else {
            running.wait(SOON).expect(0);
        }
        let text = ended_trace(&trace);
        let found = calls_to(&text, &format!("{}/", self.room.path("").display()).replace("//", "/"));
        assert!(!found.is_empty(), "{text}");
        found
    }

    /// Writes the calls that can be made to fail into a file, without the bytes.
    fn plain_strace(&self, trace: &Path) -> Command {
        let mut command = self.room.command("strace");
        command.args(["-D", "-f", "-y", "-s", "0", "-e", &format!("trace={}", self.names), "-o"]).arg(trace);
        command
    }

    /// Whether the last strike was a hit.
    fn hit(&self) -> bool {
        ended_trace(&self.room.path("struck")).contains("(INJECTED)")
    }

    /// Makes what there is to be done.
    fn prepare(&self, work: Work) {
        if work == Work::Expire {
            backup(self.room, &self.repo, self.primary).expect(0);
        }
    }

    /// Runs it, with a call that fails, and looks at what it has left.
    #[track_caller]
    fn struck(&self, work: Work, strike: &str) -> Ended {
        self.prepare(work);
        let data = self.room.path("struck-data");
        let trace = self.room.path("struck");
        let mut command = self.plain_strace(&trace);
        command.args(["-e", &format!("inject={strike}")]);
        let ended = run(follow(&mut command, &self.command(work, &data)));
        synced_once(&ended_trace(&trace));
        if work == Work::Restore {
            let startable = data.join("global/pg_control").exists();
            assert_eq!(startable, ended.status.code() == Some(0), "{ended}");
            if let (true, Ok(tool)) = (startable, self.room.tool("pg_verifybackup")) {
                self.room.must(self.room.command(tool).arg("-n").arg(&data));
            }
            let _ = fs::remove_dir_all(&data);
        }
        ended
    }

    /// A receiver with a call that fails. Every status that it sends is judged.
    #[track_caller]
    fn struck_receiver(&self, strike: &str) -> Ended {
        let (wal, trace) = (self.repo.join("wal"), self.room.path("struck"));
        let before = Fate::holding(&wal);
        let mut command = strace(self.room, &trace);
        command.args(["-e", &format!("inject={strike}")]);
        let running = start(follow(&mut command, &self.command(Work::Receive, Path::new(""))));
        self.let_it_work(&running, Duration::from_secs(5));
        // One that has found no room waits for it, and one that never made this call works.
        let ended = if running.runs() { running.terminate() } else { running.wait(SOON) };
        let events = events(&ended_trace(&trace));
        judge(&events, &wal, before, |_| true).unwrap_or_else(|e| panic!("{e}\n{ended}"));
        never_synced_again(&events);
        ended
    }

    /// Lets it receive several segments, or until it ends.
    fn let_it_work(&self, running: &Running, limit: Duration) {
        let end = Instant::now() + limit;
        while running.runs() && Instant::now() < end {
            self.primary.switch_segment();
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// What strace wrote, when it has written all.
#[track_caller]
fn ended_trace(trace: &Path) -> String {
    let text = || fs::read_to_string(trace).unwrap();
    // The program's own thread ends last.
    let ended = |text: &str| text.lines().next_back().is_some_and(|line| line.contains("+++ exited with"));
    wait_until("the end of the trace", SOON, || ended(&text()));
    text()
}

/// The same as [`never_synced_again`], of a trace without bytes: the data of a file whose sync has failed.
fn synced_once(trace: &str) {
    let mut failed = BTreeSet::new();
    for line in trace.lines() {
        let Some((_, call)) = line.split_once("fdatasync(") else { continue };
        let Some((file, result)) = call.split_once('>') else { continue };
        let path = file.split_once('<').map_or("", |(_, path)| path);
        assert!(!failed.contains(path), "{path} is synced again:\n{trace}");
        if result.contains("= -1 ") {
            failed.insert(path);
        }
    }
}

/// What a program did not get to the disk it must not try again: the kernel may say that it is there.
fn never_synced_again(events: &[Event]) {
    let mut failed = BTreeSet::new();
    for event in events {
        match event {
            Event::Done(Change::SyncFailed(path)) => drop(failed.insert(path)),
            Event::Done(Change::Created(path)) => drop(failed.remove(path)),
            Event::Done(Change::SyncBegun(path)) => assert!(!failed.contains(path), "{path} is synced again"),
            _ => {}
        }
    }
}

/// `command` after the words of another.
fn follow<'a>(before: &'a mut Command, command: &Command) -> &'a mut Command {
    before.arg(command.get_program()).args(command.get_args())
}

/// Which calls of a trace touch files below a folder, where the same call of every other thread does too: strace counts for
/// each thread, and makes it fail in all.
fn calls_to(trace: &str, folder: &str) -> Vec<Call> {
    let mut counts: HashMap<(&str, &str), usize> = HashMap::new();
    let (mut ours, mut others) = (BTreeSet::new(), BTreeSet::new());
    for line in trace.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((name, arguments)) = rest.trim_start().split_once('(') else { continue };
        if !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
            continue; // the second half of a call, or the end of a thread
        }
        let nth = counts.entry((thread, name)).or_default();
        *nth += 1;
        let call = Call { name: name.to_owned(), nth: *nth };
        if arguments.contains(folder) {
            ours.insert(call)
        } else {
            others.insert(call)
        };
    }
    ours.difference(&others).cloned().collect()
}
