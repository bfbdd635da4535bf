//! Getting the data back: the plan, the laying down, and what the server asks for while it
//! recovers.
//!
//! A plan is made before anything is written, and it is refused if the data could not become
//! consistent: the proof of the backup's WAL is repeated. What is laid down cannot be started
//! before all of it is durable, for `global/pg_control` gets its name last.

mod configure;
mod lay_down;
mod plan;
mod wal_get;

use std::path::PathBuf;

use thiserror::Error;

pub(crate) use configure::line as setting_line;
pub use lay_down::{RestoreEvent, Restored, lay_down};
pub(crate) use plan::barrier;
pub use plan::{Place, Plan, PlannedTablespace, PlannedWal, Space, plan};
pub use wal_get::{Outcome, Request, run as run_wal_get, wal_get};

use crate::archive::{ArchiveError, NotProven};
use crate::datadir::DataDirError;
pub use crate::datadir::Owner;
use crate::disk::DiskError;
use crate::image::TablespaceMapError;
use crate::repository::{BackupId, ContentError, NotUsable, RepositoryError, Which};

/// What the restored server is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Goal {
    /// Recover to the end of the WAL that the archive holds, and take writes.
    EndOfWal,
    /// Follow a primary.
    Standby {
        /// How the primary is reached; without it the archive alone is followed.
        primary_conninfo: Option<String>,
    },
}

/// Another place for a tablespace (`-T OLD=NEW`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// Where it lay on the server that was copied.
    pub old: PathBuf,
    /// Where it is to lie, absolute.
    pub new: PathBuf,
}

/// What to restore, where to, and to what end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The backup.
    pub which: Which,
    /// The data directory: it must not exist, or be empty.
    pub target: PathBuf,
    /// Tablespaces that are to lie elsewhere than they did.
    pub mappings: Vec<Mapping>,
    /// Whose the files are to be; needed by root, for a server does not run as root.
    pub owner: Option<Owner>,
    /// What the server is to do.
    pub goal: Goal,
    /// This program, which the server calls for WAL.
    pub program: PathBuf,
}

/// A restore is not possible, or did not succeed.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The backup may not be restored.
    #[error(transparent)]
    NotUsable(#[from] NotUsable),
    /// It holds only what changed since another backup.
    #[error("backup {0} is incremental, and this program restores full ones only")]
    Incremental(BackupId),
    /// Its WAL is not all there, or not valid.
    #[error("backup {id} cannot be restored: {source}")]
    NotProven {
        /// Which.
        id: BackupId,
        /// What is wrong.
        source: NotProven,
    },
    /// Its files are not what the seal says.
    #[error("backup {id} cannot be restored: {source}")]
    Content {
        /// Which.
        id: BackupId,
        /// What is wrong.
        source: ContentError,
    },
    /// A path cannot be made absolute, or does not exist where it must.
    #[error("cannot use {}: {source}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// There is something at a place that must be free.
    #[error("{} exists and is not an empty directory", .0.display())]
    NotEmpty(PathBuf),
    /// A place lies in the repository.
    #[error("{} lies inside the repository", .0.display())]
    InRepository(PathBuf),
    /// Two places lie in each other.
    #[error("{} and {} are the same directory, or one lies inside the other", .0.display(), .1.display())]
    Overlap(PathBuf, PathBuf),
    /// A tablespace's place must not depend on a working directory.
    #[error("the place of a tablespace must be an absolute path, not {}", .0.display())]
    NotAbsolute(PathBuf),
    /// The backup has no tablespace there.
    #[error("no tablespace of backup {id} lies at {}", old.display())]
    NoSuchTablespace {
        /// Which backup.
        id: BackupId,
        /// What was asked to be moved.
        old: PathBuf,
    },
    /// A tablespace is mapped twice.
    #[error("there are two new places for the tablespace at {}", .0.display())]
    MappedTwice(PathBuf),
    /// There is not enough room.
    #[error("{} needs {needed} bytes, and {available} are free", path.display())]
    NoRoom {
        /// A place on the file system.
        path: PathBuf,
        /// Bytes of all that would be written to it.
        needed: u64,
        /// Bytes that are free.
        available: u64,
    },
    /// Root would own the files.
    #[error("a PostgreSQL server does not run as root, and root would own the files")]
    OwnerNeeded,
    /// Only root can give files away.
    #[error("only root can give the files to user {0}")]
    CannotGiveAway(u32),
    /// The restored server could not get its WAL.
    #[error("user {user} cannot {verb} {}", path.display())]
    OwnerLocked {
        /// Who is to own the files.
        user: u32,
        /// "run" or "read".
        verb: &'static str,
        /// The path at which it fails.
        path: PathBuf,
    },
    /// The files cannot be laid down.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The map for the new places cannot be written.
    #[error("cannot write tablespace_map: {0}")]
    Map(#[from] TablespaceMapError),
    /// It was told to.
    #[error("stopped")]
    Stopped,
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The file system did not do what it was asked.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It failed, and what it had made could not all be removed.
    #[error("{source}; what was laid down could not all be removed: {left}")]
    LeftBehind {
        /// Why it failed.
        source: Box<Self>,
        /// Why it could not be removed.
        left: DiskError,
    },
}

#[cfg(test)]
mod tests;
