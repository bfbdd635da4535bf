//! Why a backup is not sealed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use super::low_level::{CommandError, CopyError};
use crate::archive::{ArchiveError, NotProven};
use crate::connection::{ConnectError, Error as SessionError};
use crate::disk::DiskError;
use crate::image::{
    ControlError, Difference, IncrementalError, LabelError, ListedError, ManifestError, MemberPath, NameClash,
    TablespaceMapError, TarError, TooManyCuts, Unequal,
};
use crate::protocol::{ServerVersion, SlotNameError};
use crate::receive::ReceiveError;
use crate::repository::{BackupId, ContentError, NotUsable, RepositoryError, SealError};
use crate::wal::{Lsn, OddTruncation, Pos, Segment, TimelineId};

/// Why a backup is not sealed. What was copied is removed, unless the error says that it waits.
#[derive(Debug, Error)]
pub enum BackupError {
    /// The server cannot be reached, or the WAL cannot be received.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// The server refused a command, or the connection was lost.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The repository cannot be written.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The WAL in it cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A receiver holds the repository, and the WAL does not come.
    #[error("the receiver that holds the repository has WAL durable up to {whole} only, {} s after the server was at {wanted}", waited.as_secs())]
    ReceiverBehind {
        /// Exclusive end of the last whole record that is held.
        whole: Lsn,
        /// What is needed.
        wanted: Lsn,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Our own stream does not bring the WAL.
    #[error("the WAL up to {wanted} did not come within {} s: {reason}", waited.as_secs())]
    StreamBehind {
        /// What is needed.
        wanted: Lsn,
        /// How long it was waited for.
        waited: Duration,
        /// Why the stream was last disconnected.
        reason: String,
    },
    /// The backup begins before the WAL that is held.
    #[error("the backup starts at {start}, and segment {segment} is not in the archive")]
    StartNotHeld {
        /// Where it starts.
        start: Pos,
        /// What it needs first.
        segment: Segment,
    },
    /// The copy is complete, and its WAL has not come. The backup stays, pending.
    #[error("backup {id} is copied and waits for WAL up to {stop}: the archive ends at {whole} and has not grown for {} s", waited.as_secs())]
    Waiting {
        /// Which backup.
        id: BackupId,
        /// Exclusive end of the WAL it needs.
        stop: Pos,
        /// Exclusive end of the last whole record that is held.
        whole: Lsn,
        /// For how long nothing came.
        waited: Duration,
    },
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
    /// The server's map of tablespaces cannot be read.
    #[error("the server's tablespace_map cannot be used: {0}")]
    Map(#[from] TablespaceMapError),
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
    /// The WAL of the backup is not whole.
    #[error("the WAL of the backup is not whole: {0}")]
    NotProven(#[from] NotProven),
    /// The seal cannot be written.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The archive's file cannot be written.
    #[error("cannot compress the backup: {0}")]
    Compress(io::Error),
    /// The thread that writes the files has died.
    #[error("the thread that writes the backup has failed: {0}")]
    Thread(io::Error),
    /// The server is too old to know what has changed.
    #[error("the server is PostgreSQL {0}; incremental backups need 17 or later")]
    NoIncrements(ServerVersion),
    /// The server does not take note of what changes.
    #[error("the server does not summarize its WAL (summarize_wal is off), so it cannot tell what has changed")]
    NoSummaries,
    /// There is nothing to build on.
    #[error(
        "the repository holds no complete backup on the way to timeline {0} that an incremental one could be based on"
    )]
    NoParent(TimelineId),
    /// What it is to be based on cannot be had.
    #[error(transparent)]
    Chain(#[from] NotUsable),
    /// What it is to be based on is damaged.
    #[error("backup {id}, on which this one would be based, is damaged: {source}")]
    Parent {
        /// Which.
        id: BackupId,
        /// What is wrong with it.
        source: ContentError,
    },
    /// The server cannot tell what has changed since.
    #[error("the server cannot send what has changed since backup {parent}: {source}")]
    Increments {
        /// What it was to be based on.
        parent: BackupId,
        /// What the server says.
        source: SessionError,
    },
    /// The WAL since the parent is not all there, and it alone tells what was cut off.
    #[error(
        "segment {segment} is missing: without all WAL since backup {parent} nothing tells what was cut off since then"
    )]
    ChangesNotHeld {
        /// What it was to be based on.
        parent: BackupId,
        /// The first that is not whole.
        segment: Segment,
    },
    /// The same, found when it was read.
    #[error("the WAL since backup {parent}, which tells what was cut off since then, is not whole: {source}")]
    ChangesNotRead {
        /// What it was to be based on.
        parent: BackupId,
        /// What is wrong with it.
        source: NotProven,
    },
    /// The server is newer than what is known here.
    #[error("the WAL since backup {parent} does not tell what was cut off since then: {source}")]
    OddTruncation {
        /// What it was to be based on.
        parent: BackupId,
        /// Which record.
        source: OddTruncation,
    },
    /// A seal could not hold it.
    #[error("{source} since backup {parent}")]
    TooManyCuts {
        /// What it was to be based on.
        parent: BackupId,
        /// How many may be.
        source: TooManyCuts,
    },
    /// A file that holds changes cannot be read.
    #[error("the server sent \"{path}\", and {source}")]
    Increment {
        /// Which.
        path: MemberPath,
        /// What is wrong with it.
        source: IncrementalError,
    },
    /// Our name for the slot is none.
    #[error(transparent)]
    SlotName(#[from] SlotNameError),
    /// The session that calls the server's functions cannot be had.
    #[error(transparent)]
    Sql(Box<ConnectError>),
    /// The operator's command did not do what it was to do.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Whoever was told to copy the files gave up.
    #[error("nobody said that the copy is made")]
    NotCopied,
    /// What was copied is no backup.
    #[error("what was copied cannot be used: {0}")]
    Copy(#[source] CopyError),
    /// Without it nothing says when a copy of a standby is consistent.
    #[error("the pg_control of the standby cannot be read as it is after the copy: {0}")]
    ControlOfStandby(Box<Self>),
    /// A standby cannot mark its WAL.
    #[error("an atomic snapshot is recorded by a server that takes writes, and this is a standby")]
    SnapshotOfStandby,
    /// A command could not tell where it ends.
    #[error("the path of a tablespace has a line end in it: {0:?}")]
    LineEnd(PathBuf),
    /// A document could not hold it.
    #[error("the path of a tablespace is not UTF-8: {0:?}")]
    NotText(PathBuf),
    /// The operator stopped it.
    #[error("stopped before the backup was complete")]
    Stopped,
}

impl From<ListedError> for BackupError {
    fn from(e: ListedError) -> Self {
        match e {
            ListedError::Manifest(e) => e.into(),
            ListedError::Disk(e) => e.into(),
        }
    }
}

impl From<Unequal> for BackupError {
    fn from(e: Unequal) -> Self {
        match e {
            Unequal::Files { first, others } => Self::Differs { first, more: others },
            Unequal::Manifest(e) => e.into(),
            Unequal::Disk(e) => e.into(),
        }
    }
}

impl From<DiskError> for BackupError {
    fn from(e: DiskError) -> Self {
        Self::Repository(e.into())
    }
}

impl BackupError {
    /// The storage's trouble, if that is what it is.
    pub fn disk(&self) -> Option<&DiskError> {
        match self {
            Self::Repository(RepositoryError::Disk(e)) | Self::Archive(ArchiveError::Disk(e)) => Some(e),
            Self::Seal(SealError::Repository(RepositoryError::Disk(e))) => Some(e),
            Self::NotProven(NotProven::Archive(ArchiveError::Disk(e)))
            | Self::ChangesNotRead { source: NotProven::Archive(ArchiveError::Disk(e)), .. } => Some(e),
            Self::Copy(CopyError::Disk(e)) => Some(e),
            Self::Receive(e) => e.disk(),
            _ => None,
        }
    }
}
