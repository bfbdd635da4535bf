//! Why there is no base backup.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::archive::{ArchiveError, NotProven};
use crate::connection::Error as SessionError;
use crate::datadir::DataDirError;
use crate::disk::DiskError;
use crate::image::{
    ControlError, Difference, FeedError, LabelError, ListedError, ManifestError, NameClash, PassError, TarError,
    Unequal,
};
use crate::protocol::{SlotName, SlotNameError};
use crate::receive::ReceiveError;
use crate::wal::{Lsn, Pos};

/// Why there is no base backup. What was made is removed, unless it was to be kept.
#[derive(Debug, Error)]
pub enum BaseBackupError {
    /// The server refused a command, or the connection was lost.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The WAL did not come over the second connection.
    #[error("the WAL cannot be streamed: {0}")]
    Wal(#[from] ReceiveError),
    /// There is no slot of the name.
    #[error("replication slot \"{0}\" does not exist")]
    NoSlot(SlotName),
    /// Our name for the slot is none.
    #[error(transparent)]
    SlotName(#[from] SlotNameError),
    /// There is something at a place that must be free.
    #[error("directory \"{}\" exists but is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// A data directory could not be laid down.
    #[error(transparent)]
    DataDir(DataDirError),
    /// Two places for the backup lie in each other.
    #[error("{} and {} are the same directory, or one lies inside the other", .0.display(), .1.display())]
    Overlap(PathBuf, PathBuf),
    /// The WAL did not come after the copy.
    #[error("the WAL up to {wanted} did not come within {} s; it came up to {reached}", waited.as_secs())]
    WalBehind {
        /// What is needed.
        wanted: Lsn,
        /// Exclusive end of what came.
        reached: Lsn,
        /// How long nothing came.
        waited: Duration,
    },
    /// The WAL that came with the files ends too early, or is damaged.
    #[error("the WAL that came with the backup is not whole: {0}")]
    Fetched(String),
    /// There is no manifest to base an incremental backup on.
    #[error("could not open file \"{}\": No such file or directory", .0.display())]
    NoOldManifest(PathBuf),
    /// A manifest to base an incremental backup on is none, so large is it.
    #[error("file \"{}\" has {size} bytes, which no backup manifest has", .path.display())]
    OldManifestTooLarge {
        /// What was named.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// Standard output takes one archive.
    #[error("only a data directory without tablespaces can be written to standard output; there are {0} tablespaces")]
    Tablespaces(usize),
    /// What is asked for does not go together.
    #[error("{0}")]
    Conflict(&'static str),
    /// A file cannot be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    /// Compressing failed.
    #[error("cannot compress: {0}")]
    Compress(io::Error),
    /// What the server has compressed does not decode.
    #[error("the server sent an archive that cannot be decoded: {0}")]
    Decode(io::Error),
    /// What the server sent is not a base backup.
    #[error("the server sent a damaged archive: {0}")]
    Tar(#[from] TarError),
    /// The same name twice, or one below a file.
    #[error("the server sent a contradictory archive: {0}")]
    Names(#[from] NameClash),
    /// The manifest cannot be used.
    #[error("the server's manifest cannot be used: {0}")]
    Manifest(#[from] ManifestError),
    /// A file is not as the manifest lists it.
    #[error("{first}{}", if *more > 0 { format!(" (and {more} more files differ)") } else { String::new() })]
    Differs {
        /// The first difference.
        first: Difference,
        /// How many there are besides.
        more: u64,
    },
    /// The label in the copy cannot be read.
    #[error("the copied backup_label cannot be used: {0}")]
    Label(#[from] LabelError),
    /// The control file in the copy cannot be read.
    #[error("the copied pg_control cannot be used: {0}")]
    Control(#[from] ControlError),
    /// Something that every backup has did not come.
    #[error("the server sent no {0}")]
    Lacks(&'static str),
    /// Two things that the server said do not fit.
    #[error("the server contradicts itself: {0}")]
    Contradiction(String),
    /// The server changed its timeline meanwhile.
    #[error("the server went from timeline {} to {} during the backup", from.tli(), to.tli())]
    Promoted {
        /// At the start.
        from: Pos,
        /// At the end.
        to: Pos,
    },
    /// The folder of its WAL cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The WAL of the backup is not whole.
    #[error("the WAL of the backup is not whole: {0}")]
    NotProven(#[from] NotProven),
    /// The thread that writes the files has died.
    #[error("the thread that writes the backup has failed: {0}")]
    Thread(io::Error),
    /// The operator stopped it.
    #[error("stopped before the backup was complete")]
    Stopped,
    /// What was made could not be removed.
    #[error("{source}; and what was made is left: {left}")]
    LeftBehind {
        /// Why there is no backup.
        source: Box<Self>,
        /// Why it was not removed.
        left: DiskError,
    },
}

impl BaseBackupError {
    /// The storage's trouble, if that is what it is.
    pub fn disk(&self) -> Option<&DiskError> {
        match self {
            Self::Disk(e) | Self::Archive(ArchiveError::Disk(e)) => Some(e),
            Self::NotProven(NotProven::Archive(ArchiveError::Disk(e))) => Some(e),
            Self::Wal(e) => e.disk(),
            Self::LeftBehind { source, .. } => source.disk(),
            _ => None,
        }
    }

    pub(super) fn edited(e: FeedError<Self>) -> Self {
        match e {
            FeedError::Tar(e) => e.into(),
            FeedError::Seen(e) => e,
        }
    }

    /// Whether all was copied, and only the checksums of pages did not match: what was copied is kept then,
    /// to be looked into.
    pub const fn is_about_checksums(&self) -> bool {
        matches!(self, Self::Session(SessionError::Checksums(_)))
    }
}

impl From<DataDirError> for BaseBackupError {
    fn from(e: DataDirError) -> Self {
        match e {
            DataDirError::NotEmpty(path) => Self::NotEmpty(path),
            DataDirError::Disk(e) => Self::Disk(e),
            other => Self::DataDir(other),
        }
    }
}

impl From<PassError<Self>> for BaseBackupError {
    fn from(e: PassError<Self>) -> Self {
        match e {
            PassError::Tar(e) => e.into(),
            PassError::Names(e) => e.into(),
            PassError::Name(e) => Self::Contradiction(e.to_string()),
            PassError::Disk(e) => e.into(),
            PassError::Seen(e) => e,
        }
    }
}

impl From<ListedError> for BaseBackupError {
    fn from(e: ListedError) -> Self {
        match e {
            ListedError::Manifest(e) => e.into(),
            ListedError::Disk(e) => e.into(),
        }
    }
}

impl From<Unequal> for BaseBackupError {
    fn from(e: Unequal) -> Self {
        match e {
            Unequal::Files { first, others } => Self::Differs { first, more: others },
            Unequal::Manifest(e) => e.into(),
            Unequal::Disk(e) => e.into(),
        }
    }
}
