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
use crate::repository::{BackupEntry, BackupId, BackupState, CapturedBy, NotUsable, Repository, Seal};
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
    /// How long to wait before a partial is read again that seems to be wrong.
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
    verify_cut(repository, which, Cut { threads: jobs::threads(), piece: None, patience: BETWEEN_LOOKS }, tell)
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
            held.extend(lock.and_then(Result::ok));
            true
        }
    });
    let per_piece = |segments: usize| cut.piece.unwrap_or_else(|| segments.div_ceil(8 * cut.threads.max(1)));
    let plan = match which {
        Some(_) => None,
        None => Some(Plan::new(repository.archive(), per_piece, cut.patience)?),
    };
    let seals: Vec<&Seal> = entries.iter().filter_map(sealed).collect();
    let segments = plan.as_ref().map_or(0, Plan::segments);
    let of_backups: u64 = seals.iter().map(|seal| backup::bytes(seal)).sum();
    let bytes = of_backups.saturating_add(segments.saturating_mul(repository.segment_size().bytes()));
    tell(VerifyEvent::Begun { backups: seals.len() as u64, segments, bytes });
    let mut outcomes = jobs::run(repository, &seals, plan.as_ref(), cut.threads, tell)?;
    let needed: Vec<Needed> = seals.iter().map(|seal| needed(seal)).collect();
    let wal = plan.map(|plan| plan.join(outcomes.pieces(&plan), &needed));
    let mut number = 0..;
    let backups = entries.iter().map(|entry| {
        let verdict = verdict(repository, entry, || number.next().unwrap_or_default(), &mut outcomes);
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

fn verdict(
    repository: &Repository,
    entry: &BackupEntry,
    number: impl FnOnce() -> usize,
    outcomes: &mut Outcomes,
) -> Verdict {
    match &entry.state {
        BackupState::Sealed(seal) => match outcomes.backup(number()) {
            Ok((wal, files)) if entry.untested => Verdict::Untested { checked: backup::checked(seal, &wal, &files) },
            Ok((wal, files)) => Verdict::Usable { checked: backup::checked(seal, &wal, &files) },
            Err(reason) => Verdict::NotUsable { reason },
        },
        BackupState::Pending(pending) => seal::not_sealed(repository, entry, Some(pending)),
        BackupState::Unfinished => seal::not_sealed(repository, entry, None),
        BackupState::Damaged(why) => Verdict::NotUsable { reason: why.clone() },
    }
}

#[cfg(test)]
mod tests;
