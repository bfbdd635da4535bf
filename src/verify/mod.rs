//! The proof, repeated from the bytes on disk: one verdict a backup, and the whole archive walked.
//!
//! Nothing is written, unless [`seal_waiting`] is asked to. What a verdict rests on is what was read
//! for it, not what a seal says was read once. Backups' files, their WAL and pieces of the archive
//! are read at the same time; what is found is the same as if it had been one after the other.

mod backup;
mod jobs;
mod report;
mod seal;
mod tail;
mod wal;
mod walk;

use std::time::Duration;

use thiserror::Error;

pub use report::{BackupReport, Checked, Problem, ProblemKind, Report, StretchReport, Times, Verdict, WalReport};
pub use seal::{Healed, seal_waiting};

use crate::archive::ArchiveError;
use crate::repository::{
    BackupEntry, BackupId, BackupState, BrokenChain, CapturedBy, NotUsable, Repository, Seal, chain,
};
use crate::wal::Segment;
use jobs::Outcomes;
use wal::{Needed, Plan};

/// A receiver's writes take a fraction of this.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// What is being read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VerifyEvent {
    /// Reading begins.
    Begun {
        /// Sealed backups that will be read.
        backups: u64,
        /// Segments of the archive that will be read.
        segments: u64,
        /// Bytes that will be read: data files, uncompressed, and WAL.
        bytes: u64,
    },
    /// So many more bytes have been read.
    Read(u64),
    /// A segment of the archive has been read.
    Segment(Segment),
}

/// The repository could not be verified at all.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// There is no such backup.
    #[error("there is no backup {0}")]
    NotFound(BackupId),
    /// The folders cannot be listed.
    #[error(transparent)]
    Repository(#[from] crate::repository::RepositoryError),
    /// The archive cannot be listed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// No thread can be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// How the work is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    threads: usize,
    /// Segments in one piece; `None` for as many as give each thread several pieces.
    piece: Option<usize>,
    /// How long to wait before a partial is read again that seems to be wrong; then twice as long, and so on.
    patience: Duration,
}

/// Verifies one backup, or all of them and the whole archive.
///
/// # Errors
/// When nothing can be said. What is wrong with a backup or a segment is in the report.
pub fn verify(
    repository: &Repository,
    which: Option<BackupId>,
    tell: &mut impl FnMut(VerifyEvent),
) -> Result<Report, VerifyError> {
    verify_cut(repository, which, Cut { threads: jobs::THREADS, piece: None, patience: BETWEEN_LOOKS }, tell)
}

fn verify_cut(
    repository: &Repository,
    which: Option<BackupId>,
    cut: Cut,
    tell: &mut impl FnMut(VerifyEvent),
) -> Result<Report, VerifyError> {
    let mut entries = match which {
        Some(id) => vec![repository.backup(id)?.ok_or(VerifyError::NotFound(id))?],
        None => repository.backups()?,
    };
    // So that none expires while it is read. One that has since it was listed is none any more.
    let mut held = Vec::new();
    entries.retain(|entry| match entry.seal().map(|seal| repository.hold(seal.id)) {
        Some(Err(NotUsable::NotFound(_))) => which.is_some(),
        lock => {
            held.extend(lock.and_then(Result::ok).map(|(seal, lock)| (seal.id, lock)));
            true
        }
    });
    let per_piece = |segments: usize| cut.piece.unwrap_or_else(|| segments.div_ceil(8 * cut.threads.max(1)));
    let plan = match which {
        Some(_) => None,
        None => Some(Plan::new(repository.archive(), per_piece, cut.patience)?),
    };
    let all = repository.backups()?;
    let own: Vec<&Seal> = entries.iter().filter_map(sealed).collect();
    let chains: Vec<_> = own.iter().map(|seal| chain(&all, seal)).collect();
    // What one is based on is read, too, where that alone was not asked for.
    let mut seals = own.clone();
    for older in chains.iter().flatten().flat_map(|chain| chain.iter().skip(1)) {
        if seals.iter().all(|seal| seal.id != older.id) {
            held.extend(repository.hold(older.id).map(|(_, lock)| (older.id, lock)).ok());
            seals.push(older);
        }
    }
    let segments = plan.as_ref().map_or(0, Plan::segments);
    let of_backups: u64 = seals.iter().map(|seal| backup::bytes(seal)).sum();
    let bytes = of_backups.saturating_add(segments.saturating_mul(repository.segment_size().bytes()));
    tell(VerifyEvent::Begun { backups: seals.len() as u64, segments, bytes });
    let mut outcomes = jobs::run(repository, (&seals, own.len()), plan.as_ref(), cut.threads, tell)?;
    let needed: Vec<Needed> = own.iter().map(|seal| needed(seal)).collect();
    let wal = plan.map(|plan| plan.join(outcomes.pieces(&plan), &needed));
    let mut chains = chains.into_iter().enumerate();
    let backups = entries.iter().map(|entry| {
        let verdict = match &entry.state {
            BackupState::Sealed(_) => chains.next().map_or_else(Verdict::unread, |(number, chain)| {
                of_sealed(&seals, number, chain, &mut outcomes, entry.untested)
                    .unwrap_or_else(|reason| Verdict::NotUsable { reason })
            }),
            BackupState::Pending(pending) => seal::not_sealed(repository, entry, Some(pending)),
            BackupState::Unfinished => seal::not_sealed(repository, entry, None),
            BackupState::Damaged(why) => Verdict::NotUsable { reason: why.clone() },
        };
        BackupReport::new(entry, verdict)
    });
    Ok(Report::new(repository, backups.collect(), wal))
}

const fn sealed(entry: &BackupEntry) -> Option<&Seal> {
    match &entry.state {
        BackupState::Sealed(seal) => Some(seal),
        _ => None,
    }
}

fn needed(seal: &Seal) -> Needed {
    let island = seal.wal.captured_by == CapturedBy::Backup;
    Needed { id: seal.id, start: seal.start, stop: seal.stop, island }
}

/// A backup needs its own WAL, and the files of all that it is based on.
fn of_sealed(
    seals: &[&Seal],
    number: usize,
    chain: Result<Vec<&Seal>, BrokenChain>,
    outcomes: &mut Outcomes,
    untested: bool,
) -> Result<Verdict, String> {
    let chain = chain.map_err(|e| e.to_string())?;
    let wal = outcomes.wal(number)?;
    let number_of = |wanted: &Seal| seals.iter().position(|seal| seal.id == wanted.id);
    for pair in chain.windows(2) {
        let [child, parent] = *pair else { continue };
        outcomes.files(number_of(child))?.is_based_on(parent)?;
        let based = |why: String| format!("it is based on backup {}: {why}", parent.id);
        let _files = outcomes.files(number_of(parent)).map_err(based)?;
    }
    let files = outcomes.files(Some(number))?;
    let seal = chain.first().ok_or(jobs::NOT_READ)?;
    let checked = backup::checked(seal, &wal, files);
    Ok(if untested { Verdict::Untested { checked } } else { Verdict::Usable { checked } })
}

#[cfg(test)]
mod tests;
