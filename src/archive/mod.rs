//! A folder of WAL: what it holds, where to go on, and the proof that a stretch of it is whole.
//!
//! The folder is what `pg_receivewal` would write; the names in it are the only catalogue. Nothing
//! outside this room can say that WAL is durable: [`Durable`] is made here, from the receipts of
//! `disk` and the verifier's position.

mod durable;
mod follow;
mod listing;
mod prove;
mod read;
mod resume;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

pub use durable::{Durable, Written};
pub use follow::{Followed, Follower};
pub use listing::{Listing, Run, Stored, WalName};
pub use prove::{EndOfBackup, NotProven, Proof};
pub use read::{Form, SegmentReader, Stopped};
pub use resume::{OldEnd, ResumeError, Resumption};
pub use write::{WriteError, Writer, Wrote};

use crate::disk::{Disk, DiskError};
use crate::wal::{History, HistoryError, HistoryFile, Segment, SegmentSize, TimelineId};

/// A history file of a server is a few lines.
const MAX_HISTORY: u64 = 1 << 20;

/// One folder of WAL of one cluster.
#[derive(Clone, Debug)]
pub struct Archive {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    size: SegmentSize,
    system_id: Option<u64>,
    file_mode: u32,
}

/// A folder of WAL cannot be read or written as it should.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// The file system did not do what it was asked.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A compressed segment does not decode.
    #[error("cannot read {}: {source}", path.display())]
    Decode {
        /// The compressed file.
        path: PathBuf,
        /// What the decoder says.
        source: std::io::Error,
    },
    /// A segment was there, and is no more.
    #[error("segment {0} was removed from the archive while it was read")]
    Gone(Segment),
    /// A history file is needed and is not there.
    #[error("the history file of timeline {0} ({file}) is not in the archive", file = HistoryFile(*.0).name())]
    NoHistory(TimelineId),
    /// A history file cannot be understood.
    #[error("cannot read {}: {source}", path.display())]
    History {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: HistoryError,
    },
}

impl Archive {
    /// The folder `dir`, which must exist, for segments of `size`. Without a `system_id` the first
    /// segment that is read tells whose WAL it is. New files get `file_mode`.
    pub fn new(dir: PathBuf, disk: Arc<dyn Disk>, size: SegmentSize, system_id: Option<u64>, file_mode: u32) -> Self {
        Self { dir, disk, size, system_id, file_mode }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The size all segments have.
    pub const fn size(&self) -> SegmentSize {
        self.size
    }

    /// The identifier of the cluster whose WAL this must be.
    pub const fn system_id(&self) -> Option<u64> {
        self.system_id
    }

    /// All names in the folder that are WAL's.
    ///
    /// # Errors
    /// When the folder cannot be listed to its end.
    pub fn list(&self) -> Result<Listing, ArchiveError> {
        let entries = self.disk.list(&self.dir)?;
        Ok(Listing::of(entries.iter().filter_map(|entry| entry.name.to_str()), self.size))
    }

    /// The history of a timeline: its own file, read; timeline 1 has none.
    ///
    /// # Errors
    /// When the file is missing, unreadable or not the history of that timeline.
    pub fn history(&self, tli: TimelineId) -> Result<History, ArchiveError> {
        if tli == TimelineId::FIRST {
            return Ok(History::first());
        }
        let (path, content) = self.read_history(tli)?.ok_or(ArchiveError::NoHistory(tli))?;
        History::parse(tli, &content).map_err(|source| ArchiveError::History { path, source })
    }

    /// The bytes of a timeline's history file; `None` if it is not there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn history_content(&self, tli: TimelineId) -> Result<Option<Vec<u8>>, ArchiveError> {
        Ok(self.read_history(tli)?.map(|(_, content)| content))
    }

    /// Puts a timeline's history file into the folder, durable on return. One that is there already
    /// and says the same is left alone.
    ///
    /// # Errors
    /// When the bytes are no history of that timeline, or the file cannot be written.
    pub fn store_history(&self, tli: TimelineId, content: &[u8]) -> Result<History, ArchiveError> {
        let path = self.dir.join(HistoryFile(tli).name());
        let history =
            History::parse(tli, content).map_err(|source| ArchiveError::History { path: path.clone(), source })?;
        if self.read_history(tli)?.is_some_and(|(_, held)| held == content) {
            let _names = self.disk.sync_dir(&self.dir)?;
            return Ok(history);
        }
        let temporary = self.dir.join(format!("{}.tmp", HistoryFile(tli).name()));
        self.remove_if_there(&temporary)?;
        let mut file = self.disk.create(&temporary, self.file_mode)?;
        file.write_at(0, content)?;
        let _published = self.disk.publish(file, &temporary, &path)?;
        Ok(history)
    }

    /// Bytes that can still be written to the folder's file system.
    ///
    /// # Errors
    /// When the file system does not say.
    pub fn room(&self) -> Result<u64, ArchiveError> {
        Ok(self.disk.available(&self.dir)?)
    }

    fn remove_if_there(&self, path: &Path) -> Result<(), ArchiveError> {
        match self.disk.remove(path) {
            Err(e) if e.trouble() != crate::disk::Trouble::Missing => Err(e.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
