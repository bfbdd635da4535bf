//! What can be read at the same time, and the threads that do it.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::mpsc;

use super::backup::{self, FilesRead, WalProven};
use super::wal::Plan;
use super::walk::Walked;
use super::{VerifyError, VerifyEvent};
use crate::repository::{Repository, Seal};

/// Threads that read, whatever the number of cores: each waits for the disk between two reads, and it takes so many
/// to keep a disk busy.
pub(super) const THREADS: usize = 8;

/// The thread panicked that was to do it, and that has been passed on.
pub(super) const NOT_READ: &str = "it was not read";

/// One thing to read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Job {
    /// The files of a backup, by its number.
    Files(usize),
    /// The WAL of a backup.
    Wal(usize),
    /// A piece of the archive.
    Piece(usize, usize),
}

enum Outcome {
    Files(Result<FilesRead, String>),
    Wal(Result<WalProven, String>),
    Piece(Box<Walked>),
}

/// All that was read.
#[derive(Default)]
pub(super) struct Outcomes {
    of: HashMap<Job, Outcome>,
}

impl Outcomes {
    /// The WAL of the backup of that number, or the first thing that is wrong with it.
    pub(super) fn wal(&mut self, number: usize) -> Result<WalProven, String> {
        match self.of.remove(&Job::Wal(number)) {
            Some(Outcome::Wal(wal)) => wal,
            _ => Err(NOT_READ.to_owned()),
        }
    }

    /// Its files, or the first thing that is wrong with them.
    pub(super) fn files(&self, number: Option<usize>) -> Result<&FilesRead, String> {
        match number.and_then(|number| self.of.get(&Job::Files(number))) {
            Some(Outcome::Files(files)) => files.as_ref().map_err(Clone::clone),
            _ => Err(NOT_READ.to_owned()),
        }
    }

    /// The pieces of the archive, in order.
    pub(super) fn pieces(&mut self, plan: &Plan) -> Vec<Walked> {
        let piece = |(timeline, piece)| match self.of.remove(&Job::Piece(timeline, piece)) {
            Some(Outcome::Piece(walked)) => *walked,
            _ => Walked::default(),
        };
        plan.pieces().map(piece).collect()
    }
}

/// Reads the sealed backups and the pieces of the archive, with so many threads. Of backups the files are read, and
/// of the first so many the WAL. Memory does not grow with what is read: each thread has its buffers. Those of a
/// backup's files are large, and they are decoded by threads of their own: of these as many are read at the same time
/// as there are cores.
pub(super) fn run(
    repository: &Repository,
    (seals, with_wal): (&[&Seal], usize),
    plan: Option<&Plan>,
    threads: usize,
    tell: &mut impl FnMut(VerifyEvent),
) -> Result<Outcomes, VerifyError> {
    // The files first, for one of them may take longer than all the rest.
    let of_files = (0..seals.len()).map(Job::Files);
    let pieces = plan.into_iter().flat_map(Plan::pieces).map(|(timeline, piece)| Job::Piece(timeline, piece));
    let of_wal: Vec<Job> = (0..with_wal).map(Job::Wal).chain(pieces).collect();
    let count = seals.len().saturating_add(of_wal.len());
    let (of_files, of_wal) = (Mutex::new(of_files), Mutex::new(of_wal.into_iter()));
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let files = |seal: &Seal, tell: &dyn Fn(VerifyEvent)| Outcome::Files(backup::files(repository, seal, tell));
    let (sender, said) = mpsc::sync_channel(1024);
    let work = |number: usize, sender: mpsc::SyncSender<Said>| {
        // Nobody listens any more only when the listener panics.
        let tell = |event| _ = sender.send(Said::Event(event));
        let next_files = || if number < cores { of_files.lock().ok()?.next() } else { None };
        while let Some(job) = next_files().or_else(|| of_wal.lock().ok()?.next()) {
            let seal = |number: usize| seals.get(number).copied();
            let outcome = match job {
                Job::Files(number) => seal(number).map(|seal| files(seal, &tell)),
                Job::Wal(number) => seal(number).map(|seal| Outcome::Wal(backup::wal(repository, seal, &tell))),
                Job::Piece(timeline, piece) => {
                    plan.map(|plan| Outcome::Piece(Box::new(plan.walk((timeline, piece), &tell))))
                }
            };
            if let Some(outcome) = outcome {
                let _ = sender.send(Said::Done(job, outcome));
            }
        }
    };
    std::thread::scope(|scope| {
        for number in 0..threads.min(count) {
            let (work, sender) = (&work, sender.clone());
            let thread = std::thread::Builder::new().name(format!("verify {number}"));
            thread.spawn_scoped(scope, move || work(number, sender)).map_err(VerifyError::Thread)?;
        }
        drop(sender);
        let mut outcomes = Outcomes::default();
        for said in said {
            match said {
                Said::Event(event) => tell(event),
                Said::Done(job, outcome) => _ = outcomes.of.insert(job, outcome),
            }
        }
        Ok(outcomes)
    })
}

enum Said {
    Event(VerifyEvent),
    Done(Job, Outcome),
}
