//! Whole backups, as the program takes them, on a disk that can be cut off: the WAL of a receiver followed, or
//! streamed; all of the data, or what has changed; sent by the server, copied by a command, or to elsewhere.

#![allow(clippy::disallowed_methods, reason = "the command is told from outside that the copy is made")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use walhold::backup::{BackupError, Event, LowLevel, Options, backup};
use walhold::codec::{Compression, ZstdLevel};
use walhold::disk::simulated::{Call, Fault};
use walhold::disk::{BLOCK, Disk, Simulated};
use walhold::image::ManifestAlgorithm;
use walhold::protocol::Checkpoint;
use walhold::receive::Upstream;
use walhold::repository::{BackupEntry, BackupState, Healing, Holder, Repository, Sealed, Task};
use walhold::verify::{Verdict, verify};
use walhold::wal::{History, Lsn, Pos, Segment};

use super::primary::{FIRST, Primary, TLI};
use super::repository::{now, path};
use super::world::{Found, again, cut_off, images, seed, size, some_of};
use crate::basebackup::system_id;

/// Faults of each kind of call that are made in one way to back up.
const MOST_CALLS: usize = 3;

/// How a backup is taken.
#[derive(Clone, Copy)]
struct Way {
    /// A receiver has the WAL; else it is streamed.
    followed: bool,
    incremental: bool,
    copy: Copying,
}

/// Who copies the files.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copying {
    Server,
    Command,
    Elsewhere,
}

impl Way {
    /// The command waits in `folder` for the word that all is copied.
    fn low_level(self, folder: &Path) -> Option<LowLevel> {
        let said = folder.join("done");
        let said = said.display();
        match self.copy {
            Copying::Server => None,
            Copying::Command => {
                let command = format!("while [ ! -s {said} ]; do sleep 0.01; done; grep -q done {said}");
                Some(LowLevel::Copy { command })
            }
            Copying::Elsewhere => Some(LowLevel::External { place: "there".to_owned(), command: None }),
        }
    }
}

fn open(disk: &Simulated) -> Repository {
    Repository::open(&path(), Arc::new(disk.clone())).unwrap()
}

fn holder(task: Task) -> Holder {
    Holder { task, process: 7, host: "here".to_owned() }
}

fn new_repository() -> (Simulated, Repository) {
    let disk = Simulated::new(BLOCK);
    let repository = Repository::create(&path(), Arc::new(disk.clone()), system_id(), size(), false, now()).unwrap();
    (disk, repository)
}

/// A process of its own finds it.
fn at_rest(disk: &Simulated) -> Simulated {
    disk.after(disk.operations())
}

/// A repository with all of a log, the last of it written and not synced, as a receiver has it that is still at work.
fn with_wal(primary: &Primary) -> Simulated {
    let (disk, repository) = new_repository();
    let first = Segment::containing(Pos::new(TLI, Lsn::new(FIRST)), size());
    let mut writer = repository.archive().begin(&History::first(), first).unwrap().writer;
    for piece in primary.log.bytes.chunks(400_000) {
        writer.append(piece, &mut |_| {}).unwrap();
        let _ = writer.settle().unwrap();
    }
    disk.after(disk.operations() - 1)
}

struct Scene {
    way: Way,
    primary: Arc<Primary>,
    /// As it is before the backup.
    before: Simulated,
    runtime: tokio::runtime::Runtime,
}

impl Scene {
    fn new(way: Way) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut primary = Arc::new(Primary::new());
        let mut before = if way.followed { with_wal(&primary) } else { at_rest(&new_repository().0) };
        if way.incremental {
            let parent = Self { way: ways()[0], primary: Arc::clone(&primary), before: with_wal(&primary), runtime };
            let disk = parent.before.after(0);
            parent.back_up(&disk).unwrap();
            let next = Arc::new(primary.incremental());
            let repository = open(&disk);
            let resumption = repository.archive().resume(None).unwrap().unwrap();
            let (from, mut writer) = (resumption.start.lsn().get() - FIRST, resumption.writer);
            writer.append(&next.log.bytes[from as usize..], &mut |_| {}).unwrap();
            let _ = writer.settle().unwrap();
            before = disk.after(disk.operations() - 1);
            primary = next;
            return Self { way, primary, before, runtime: parent.runtime };
        }
        Self { way, primary, before, runtime }
    }

    fn back_up(&self, disk: &Simulated) -> Result<Sealed, BackupError> {
        let repository = Repository::open(&path(), Arc::new(disk.clone()))?;
        let _receiver = self.way.followed.then(|| repository.lock(&holder(Task::Receive)));
        self.runtime.block_on(async {
            let server = self.primary.serve().await;
            let conninfo = server.conninfo("sslmode=disable");
            let upstream = Upstream::connect(&conninfo, "test").await.unwrap();
            let copied = tempfile::tempdir().unwrap();
            let options = Options {
                conninfo,
                application_name: "test".to_owned(),
                label: "x".to_owned(),
                checkpoint: Checkpoint::Fast,
                max_rate: None,
                manifest_checksums: ManifestAlgorithm::Crc32c,
                compression: Compression::Zstd { level: ZstdLevel::new(1).unwrap(), workers: 0 },
                incremental: self.way.incremental,
                low_level: self.way.low_level(copied.path()),
                who: holder(Task::Backup),
            };
            let mut copying = None;
            let mut tell = |event| match event {
                Event::Copying { id, .. } if self.way.copy == Copying::Command => {
                    let data = repository.backup_dir(id).join("data");
                    let (primary, disk) = (Arc::clone(&self.primary), disk.clone());
                    let said = copied.path().join("done");
                    copying = Some(std::thread::spawn(move || copy(&primary, &disk, &data, &said)));
                }
                Event::CopyNow { copied, .. } => drop(copied.send(())),
                _ => {}
            };
            let never = CancellationToken::new();
            let sealed = backup(&repository, upstream, &options, &never, &mut tell).await;
            copying.into_iter().for_each(|thread| thread.join().unwrap());
            server.end().await;
            sealed
        })
    }

    /// What is sealed is whole, what waits is sealed as soon as its WAL is there, and a backup that was said to be
    /// sealed is so.
    fn check(&self, found: &Simulated, sealed: usize) -> Found {
        let repository = Repository::open(&path(), Arc::new(found.clone()))?;
        for (id, _) in repository.waiting()? {
            if let Some(Healing::Failed(why)) = repository.heal(id)? {
                return Err(format!("backup {id} waits, and cannot be sealed: {why}").into());
            }
        }
        let backups = repository.backups()?;
        let whole = backups.iter().filter(|entry| matches!(entry.state, BackupState::Sealed(_)));
        let whole: Vec<_> = whole.map(|entry| entry.id).collect();
        if whole.len() < sealed {
            return Err(format!("{sealed} were sealed: {backups:?}").into());
        }
        for id in whole {
            let report = verify(&repository, Some(id), &mut |_| {})?;
            if !report.backups.iter().all(|backup| matches!(backup.verdict, Verdict::Usable { .. })) {
                return Err(format!("it is sealed, and is {:?}", report.backups).into());
            }
        }
        match backups.iter().find(|entry| matches!(entry.state, BackupState::Damaged(_))) {
            Some(damaged) => Err(format!("{damaged:?}").into()),
            None => Ok(()),
        }
    }

    fn parents(&self) -> usize {
        usize::from(self.way.incremental)
    }

    fn is_cut_off_anywhere(&self) {
        let disk = self.before.after(0);
        self.back_up(&disk).unwrap();
        let made = disk.operations();
        self.check(&disk, self.parents() + 1).unwrap();
        cut_off(&disk, 0, 2, &mut |k, found| self.check(found, self.parents() + usize::from(k >= made)));
    }

    /// Whatever call fails: what is sealed is whole, and the next backup is taken as ever.
    fn holds_whatever_call_fails(&self) {
        let good = self.before.after(0);
        self.back_up(&good).unwrap();
        let mut failures = 0;
        for (call, calls) in Call::ALL.map(|call| (call, good.calls(call))) {
            for nth in some_of(calls, MOST_CALLS) {
                let fault = if nth % 3 == 0 { Fault::Full } else { Fault::Io };
                let disk = self.before.after(0);
                disk.fail(call, nth, fault);
                let done = self.back_up(&disk);
                failures += usize::from(done.is_err());
                let sealed = self.parents() + usize::from(done.is_ok());
                let context = || format!("{call:?} {nth} of {calls} fails with {fault:?}: {:?}", done.as_ref().err());
                let next = disk.after(disk.operations());
                for found in disk.crash_images(seed() ^ nth as u64, images(1)) {
                    let origin = format!("{found:?}");
                    let held = self.check(&found, sealed);
                    held.unwrap_or_else(|e| {
                        panic!("{}, and {e}\n  {origin}\n  again: {}", context(), again(seed(), None))
                    });
                }
                let on_it = |entry: &BackupEntry| matches!(entry.state, BackupState::Sealed(_));
                let there = open(&next).backups().unwrap().iter().filter(|entry| on_it(entry)).count();
                if self.way.incremental && there > self.parents() {
                    // The next one would be based on it, and the server is not asked that.
                    continue;
                }
                self.back_up(&next).unwrap_or_else(|e| panic!("{}, and the next one: {e}", context()));
                self.check(&next, self.parents() + 1).unwrap_or_else(|e| panic!("{}, and then {e}", context()));
            }
        }
        assert!(failures > 10, "{failures}");
    }
}

/// What a command does: it copies the files to where it is told to, syncs nothing, and says that it is done.
fn copy(primary: &Primary, disk: &Simulated, data: &Path, said: &Path) {
    let begun = Instant::now();
    while disk.metadata(data).ok().flatten().is_none() {
        if begun.elapsed() > Duration::from_secs(5) {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let copied = primary.files().try_for_each(|(name, content)| {
        let path = data.join(name);
        let mut above = data.to_owned();
        for part in Path::new(name).parent().into_iter().flat_map(Path::components) {
            above.push(part);
            if disk.metadata(&above)?.is_none() {
                disk.add_dir(&above, 0o700)?;
            }
        }
        disk.create(&path, 0o600)?.write_at(0, content)
    });
    let word = if copied.is_ok() { "done" } else { "failed" };
    std::fs::write(said, word).unwrap();
}

fn ways() -> [Way; 5] {
    let full = Way { followed: true, incremental: false, copy: Copying::Server };
    [
        full,
        Way { followed: false, ..full },
        Way { incremental: true, ..full },
        Way { copy: Copying::Command, ..full },
        Way { copy: Copying::Elsewhere, followed: false, ..full },
    ]
}

#[test]
fn p3_a_backup_that_follows_a_receiver_is_cut_off_anywhere() {
    Scene::new(ways()[0]).is_cut_off_anywhere();
}

#[test]
fn p3_a_backup_that_streams_its_wal_is_cut_off_anywhere() {
    Scene::new(ways()[1]).is_cut_off_anywhere();
}

#[test]
fn p3_an_incremental_backup_is_cut_off_anywhere() {
    Scene::new(ways()[2]).is_cut_off_anywhere();
}

#[test]
fn p3_a_backup_that_a_command_copies_is_cut_off_anywhere() {
    Scene::new(ways()[3]).is_cut_off_anywhere();
}

#[test]
fn p3_a_backup_that_is_copied_to_elsewhere_is_cut_off_anywhere() {
    Scene::new(ways()[4]).is_cut_off_anywhere();
}

#[test]
fn p3_whatever_call_of_a_backup_fails_what_is_sealed_is_whole() {
    for way in ways() {
        Scene::new(way).holds_whatever_call_fails();
    }
}
