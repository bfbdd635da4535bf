//! One sealed backup: its WAL and its files, each read by itself.

use super::{Checked, VerifyEvent};
use crate::image::{Compared, TarEvent};
use crate::repository::{ReadError, Repository, Seal, check_base};
use crate::wal::Pos;

/// The WAL of a backup was whole.
pub(super) struct WalProven {
    segments: u64,
    history_files: u64,
}

/// The files of a backup were as its seal and manifest say; of data that lies elsewhere none was read.
#[derive(Default)]
pub(super) struct FilesRead {
    compared: Compared,
    /// Of an incremental backup: the start of the one that it holds the changes since.
    changes_since: Option<Pos>,
}

/// Bytes that will be read for a backup.
pub(super) fn bytes(seal: &Seal) -> u64 {
    seal.manifest.bytes + wal_bytes(seal)
}

fn wal_bytes(seal: &Seal) -> u64 {
    seal.stop.lsn().saturating_sub(seal.start.lsn())
}

/// Reads the WAL of a backup; the first thing that is wrong as text.
pub(super) fn wal(repository: &Repository, seal: &Seal, tell: &dyn Fn(VerifyEvent)) -> Result<WalProven, String> {
    let history_files = repository.check_histories(seal).map_err(|e| e.to_string())?;
    let proof = repository.archive().prove(seal.start.lsn(), seal.stop, seal.end()).map_err(|e| e.to_string())?;
    tell(VerifyEvent::Read(wal_bytes(seal)));
    Ok(WalProven { segments: proof.segments().len() as u64, history_files })
}

/// Reads the files of a backup; the first thing that is wrong as text.
pub(super) fn files(repository: &Repository, seal: &Seal, tell: &dyn Fn(VerifyEvent)) -> Result<FilesRead, String> {
    if !seal.method.holds_data() {
        return repository.said(seal).map(|_| FilesRead::default()).map_err(|e| e.to_string());
    }
    let contents = repository.contents(seal).map_err(|e| e.to_string())?;
    let read = contents.read(&mut |_, event: &TarEvent<'_>| {
        if let TarEvent::Data(data) = event {
            tell(VerifyEvent::Read(data.len() as u64));
        }
        Ok::<_, std::convert::Infallible>(())
    });
    read.map(|read| FilesRead { compared: read.compared, changes_since: read.changes_since }).map_err(|e| match e {
        ReadError::Content(e) => e.to_string(),
        ReadError::Seen(never) => match never {},
    })
}

impl FilesRead {
    /// Whether the changes that it holds are those since `parent`.
    pub(super) fn is_based_on(&self, parent: &Seal) -> Result<(), String> {
        check_base(self.changes_since, parent).map_err(|e| e.to_string())
    }
}

/// What a verdict rests on.
pub(super) fn checked(seal: &Seal, wal: &WalProven, files: &FilesRead) -> Checked {
    let compared = &files.compared;
    let mut not_checked = Vec::new();
    if !seal.method.holds_data() {
        not_checked.push("the data, which does not lie in the repository".to_owned());
    }
    if compared.by_checksum < compared.files {
        let without = compared.files - compared.by_checksum;
        not_checked.push(format!("the content of {without} files, for which the manifest has no checksum"));
    }
    Checked {
        files: compared.files,
        bytes: compared.bytes,
        by_checksum: compared.by_checksum,
        folder_files: seal.files.len() as u64,
        folder_bytes: seal.files.iter().map(|file| file.size).sum(),
        segments: wal.segments,
        history_files: wal.history_files,
        place: seal.place.clone(),
        not_checked,
    }
}
