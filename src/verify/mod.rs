//! The proof, repeated from the bytes on disk: one verdict a backup, and the whole archive walked.
//!
//! Nothing is written. What a verdict rests on is what was read for it, not what a seal says was
//! read once.

mod report;
mod wal;

use thiserror::Error;

pub use report::{BackupReport, Checked, Problem, ProblemKind, Report, StretchReport, Verdict, WalReport};

use crate::archive::ArchiveError;
use crate::image::TarEvent;
use crate::repository::{BackupEntry, BackupId, BackupState, CapturedBy, NotUsable, ReadError, Repository, Seal};
use crate::wal::{Pos, Segment};

/// What is being read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VerifyEvent {
    /// A backup is begun.
    Backup(BackupId),
    /// Its data files have been read so far.
    Files {
        /// Bytes read, uncompressed.
        done: u64,
        /// Bytes in all, as the manifest lists them.
        total: u64,
    },
    /// A backup's verdict.
    Verdict(BackupId),
    /// A segment of the archive is about to be read.
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
    let entries = match which {
        Some(id) => vec![repository.backup(id)?.ok_or(VerifyError::NotFound(id))?],
        None => repository.backups()?,
    };
    let mut backups = Vec::new();
    for entry in &entries {
        // So that it does not expire while it is read. One that has since it was listed is none any more.
        let held = entry.seal().map(|seal| repository.hold(seal.id));
        if which.is_some() || !matches!(held, Some(Err(NotUsable::NotFound(_)))) {
            backups.push(verify_backup(repository, entry, tell));
        }
    }
    let wal = match which {
        Some(_) => None,
        None => Some(wal::verify_wal(&repository.archive(), &islands(&entries), tell)?),
    };
    Ok(Report::new(repository, backups, wal))
}

/// Where those backups begin that captured their own WAL.
fn islands(entries: &[BackupEntry]) -> Vec<Pos> {
    let island = |entry: &BackupEntry| match &entry.state {
        BackupState::Sealed(seal) if seal.wal.captured_by == CapturedBy::Backup => Some(seal.start),
        _ => None,
    };
    entries.iter().filter_map(island).collect()
}

fn verify_backup(repository: &Repository, entry: &BackupEntry, tell: &mut impl FnMut(VerifyEvent)) -> BackupReport {
    tell(VerifyEvent::Backup(entry.id));
    let id = entry.id;
    let not_sealed = |waiting_for| {
        let error = NotUsable::NotSealed { id, waiting_for, running: entry.running };
        Verdict::NotSealed { reason: error.to_string(), waiting_for, running: entry.running }
    };
    let verdict = match &entry.state {
        BackupState::Sealed(seal) => match verify_sealed(repository, seal, tell) {
            Ok(checked) => Verdict::Usable { checked },
            Err(reason) => Verdict::NotUsable { reason },
        },
        BackupState::Pending(pending) => not_sealed(pending.stop),
        BackupState::Unfinished => not_sealed(None),
        BackupState::Damaged(why) => Verdict::NotUsable { reason: why.clone() },
    };
    tell(VerifyEvent::Verdict(id));
    BackupReport::new(entry, verdict)
}

/// Everything that a restore rests on; the first thing that is wrong as text.
fn verify_sealed(repository: &Repository, seal: &Seal, tell: &mut impl FnMut(VerifyEvent)) -> Result<Checked, String> {
    let archive = repository.archive();
    let history_files = repository.check_histories(seal).map_err(|e| e.to_string())?;
    let proof = archive.prove(seal.start.lsn(), seal.stop, seal.end()).map_err(|e| e.to_string())?;
    let contents = repository.contents(seal).map_err(|e| e.to_string())?;
    let total = contents.manifest().files().iter().map(|file| file.size).sum();
    let mut done = 0;
    let read = contents.read(&mut |_, event: &TarEvent<'_>| {
        if let TarEvent::Data(data) = event {
            done += data.len() as u64;
            tell(VerifyEvent::Files { done, total });
        }
        Ok::<_, std::convert::Infallible>(())
    });
    let read = read.map_err(|e| match e {
        ReadError::Content(e) => e.to_string(),
        ReadError::Seen(never) => match never {},
    })?;
    let mut not_checked = Vec::new();
    if read.compared.by_checksum < read.compared.files {
        let without = read.compared.files - read.compared.by_checksum;
        not_checked.push(format!("the content of {without} files, for which the manifest has no checksum"));
    }
    Ok(Checked {
        files: read.compared.files,
        bytes: read.compared.bytes,
        by_checksum: read.compared.by_checksum,
        folder_files: seal.files.len() as u64,
        folder_bytes: seal.files.iter().map(|file| file.size).sum(),
        segments: proof.segments().len() as u64,
        history_files,
        not_checked,
    })
}

#[cfg(test)]
mod tests;
