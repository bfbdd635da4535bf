//! A folder of WAL: what it holds, where to go on, and the proof that a stretch of it is whole.
//!
//! The folder is what `pg_receivewal` would write; the names in it are the only catalogue. Nothing
//! outside this room can say that WAL is durable: [`Durable`] is made here, from the receipts of
//! `disk` and the verifier's position.

// What a server or a disk says never ends the program, nor loses bits on the way to a file's name or length.
#![cfg_attr(
    not(test),
    deny(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::expect_used,
        clippy::panic,
        clippy::string_slice,
        clippy::unwrap_used
    )
)]

mod compress;
mod durable;
mod follow;
mod gap;
mod listing;
mod prove;
mod read;
mod resume;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tokio_util::sync::CancellationToken;

pub use compress::{CompressError, Compressed, Compressor};
pub use durable::{Durable, Written};
pub use follow::{Followed, Follower};
pub use listing::{Listing, Run, Stored, WalName};
pub use prove::{EndOfBackup, NotProven, Proof};
pub use read::{Form, SegmentReader, Stopped};
pub use resume::{OldEnd, ResumeError, Resumption};
pub use write::{WriteError, Writer, Wrote};

use crate::codec::Packing;
use crate::disk::{Disk, DiskError, Synced};
use crate::wal::{History, HistoryError, HistoryFile, Segment, SegmentSize, TimelineId};

/// A history file of a server is a few lines.
const MAX_HISTORY: u64 = 1 << 20;

/// So many names the kernel gives in one call with every C library, and nothing in the folder changes
/// during one.
const ONE_CALL: usize = 30;

/// One folder of WAL of one cluster.
#[derive(Clone, Debug)]
pub struct Archive {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    size: SegmentSize,
    system_id: Option<u64>,
    file_mode: u32,
    stored: StoredAs,
    /// Ends reading.
    halt: Option<CancellationToken>,
}

/// How the archive's writers store segments.
#[derive(Clone, Debug)]
enum StoredAs {
    /// As they come.
    Plain,
    /// Compressed as they come.
    Live(Packing),
    /// As they come; complete ones are compressed in the background.
    Queued(Arc<compress::Queue>),
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
    /// It was not to be read any more.
    #[error("reading the archive was stopped")]
    Halted,
    /// A segment was there, and is no more.
    #[error("segment {0} was removed from the archive while it was read")]
    Gone(Segment),
    /// A segment's file was replaced by one that does not hold the same.
    #[error("segment {0} was replaced by something else while it was read")]
    Changed(Segment),
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

impl ArchiveError {
    /// Whether a file could be read, and its content is what is wrong.
    pub fn is_of_content(&self) -> bool {
        matches!(self, Self::Decode { source, .. } if read::is_about_data(source))
    }
}

impl Archive {
    /// The folder `dir`, which must exist, for segments of `size`. Without a `system_id` the first
    /// segment that is read tells whose WAL it is. New files get `file_mode`.
    pub fn new(dir: PathBuf, disk: Arc<dyn Disk>, size: SegmentSize, system_id: Option<u64>, file_mode: u32) -> Self {
        Self { dir, disk, size, system_id, file_mode, stored: StoredAs::Plain, halt: None }
    }

    /// The same folder, in which segments are written compressed, as `pg_receivewal --compress` does:
    /// what is received goes to `NAME.gz.partial`, a sync makes all of it decodable, and a complete
    /// segment is `NAME.gz`. History files stay plain.
    pub fn compressed_live(mut self, packing: Packing) -> Self {
        self.stored = StoredAs::Live(packing);
        self
    }

    /// The same folder, in which complete segments are handed to a compressor that was started for it.
    pub fn compressed_by(self, compressor: &Compressor) -> Self {
        self.with_queue(compressor.queue())
    }

    /// The same folder, of which reading fails with [`ArchiveError::Halted`] when `halt` is cancelled: to
    /// open it may take the reading of a segment. A writer that is made from it writes to its end.
    pub fn until(&self, halt: &CancellationToken) -> Self {
        Self { halt: Some(halt.clone()), ..self.clone() }
    }

    fn with_queue(mut self, queue: Arc<compress::Queue>) -> Self {
        self.stored = StoredAs::Queued(queue);
        self
    }

    fn queue(&self) -> Option<&Arc<compress::Queue>> {
        match &self.stored {
            StoredAs::Queued(queue) => Some(queue),
            StoredAs::Plain | StoredAs::Live(_) => None,
        }
    }

    fn live(&self) -> Option<Packing> {
        match self.stored {
            StoredAs::Live(packing) => Some(packing),
            StoredAs::Plain | StoredAs::Queued(_) => None,
        }
    }

    /// How a segment is compressed as it comes, if it is whole on the server and that takes hardly longer than
    /// writing it as it is.
    fn light(&self) -> Option<Packing> {
        self.queue().map(|queue| queue.packing()).filter(|packing| packing.is_light())
    }

    /// A segment is complete and durable.
    fn hand_on(&self, segment: Segment) {
        if let Some(queue) = self.queue() {
            queue.add(segment);
        }
    }

    /// Makes the names in the folder durable.
    fn sync_names(&self) -> Result<Synced, DiskError> {
        match self.queue() {
            Some(queue) => queue.names().sync(self),
            None => self.disk.sync_dir(&self.dir),
        }
    }

    /// Gives a file that is synced the final name of a segment, durable on return.
    fn give_final_name(&self, segment: Segment, from: &Path, to: &Path) -> Result<Synced, DiskError> {
        let Some(queue) = self.queue() else {
            self.disk.rename(from, to)?;
            return self.disk.sync_dir(&self.dir);
        };
        let mut names = queue.names();
        names.replace(segment);
        self.disk.rename(from, to)?;
        names.sync(self)
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

    /// All names in the folder that are WAL's. What is renamed or compressed meanwhile is there.
    ///
    /// # Errors
    /// When the folder cannot be listed to its end.
    pub fn list(&self) -> Result<Listing, ArchiveError> {
        let mut entries = self.disk.list(&self.dir)?;
        if entries.len() > ONE_CALL {
            // The new name may have come where the kernel had looked, and the old one gone where it had not.
            entries.extend(self.disk.list(&self.dir)?);
        }
        Ok(Listing::of(entries.iter().filter_map(|entry| entry.name.to_str()), self.size))
    }

    /// The timelines that there is a history file of, oldest first. Their names do not change, so one look
    /// is enough.
    ///
    /// # Errors
    /// When the folder cannot be listed to its end.
    pub fn history_names(&self) -> Result<Vec<TimelineId>, ArchiveError> {
        let entries = self.disk.list(&self.dir)?;
        let names = entries.iter().filter_map(|entry| entry.name.to_str()).filter(|name| name.contains(".history"));
        Ok(Listing::of(names, self.size).histories().to_owned())
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
