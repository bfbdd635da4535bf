//! Getting the data back: the plan, the laying down, and what the server asks for while it
//! recovers.
//!
//! A plan is made before anything is written, and it is refused if the data could not become
//! consistent: the proof of the backup's WAL is repeated. What is laid down cannot be started
//! before all of it is durable, for `global/pg_control` gets its name last.

mod combine;
mod configure;
mod in_place;
mod lay_down;
mod plan;
mod target;
mod unreachable;
mod wal_get;

use std::path::PathBuf;

use thiserror::Error;

pub use combine::CombineError;
pub(crate) use configure::line as setting_line;
pub use in_place::{FillError, prepare};
pub use lay_down::{RestoreEvent, Restored, lay_down};
pub(crate) use plan::barrier;
pub use plan::{
    Estimate, Place, Plan, PlannedEnd, PlannedTablespace, PlannedTarget, PlannedWal, Space, TargetSetting, plan,
};
pub use target::{Action, Aim, Along, MadeTablespace, NamedPoint, Target, Transaction};
pub use unreachable::{Beside, Point, Unreachable};
pub use wal_get::{Outcome, Request, run as run_wal_get, wal_get};

use crate::archive::{ArchiveError, NotProven};
use crate::datadir::DataDirError;
pub use crate::datadir::Owner;
use crate::disk::DiskError;
use crate::image::TablespaceMapError;
use crate::protocol::SlotName;
use crate::repository::{BackupId, ContentError, NotUsable, ReadError, RepositoryError, Which};
use crate::wal::{Lsn, Segment, TimelineId};

/// What the restored server is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Goal {
    /// Recover to the end of the WAL that the archive holds, and take writes.
    EndOfWal,
    /// Recover to a point.
    Point(Aim),
    /// Follow a primary.
    Standby {
        /// How the primary is reached; without it the archive alone is followed.
        primary_conninfo: Option<String>,
        /// The slot with which the primary keeps WAL for it.
        primary_slot: Option<SlotName>,
    },
}

impl Goal {
    /// The point, if there is one.
    pub const fn aim(&self) -> Option<&Aim> {
        match self {
            Self::Point(aim) => Some(aim),
            Self::EndOfWal | Self::Standby { .. } => None,
        }
    }
}

/// Another place for a tablespace (`-T OLD=NEW`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// Where it lay on the server that was copied.
    pub old: PathBuf,
    /// Where it is to lie, absolute.
    pub new: PathBuf,
}

/// Who fills the data directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filling {
    /// The restore, from the repository.
    Restore,
    /// The operator has, from where the data lies: it is made ready in place.
    Operator,
    /// The same for a drill, which may use what is not tested.
    OperatorForDrill,
}

/// What to restore, where to, and to what end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The backup.
    pub which: Which,
    /// The data directory: it must not exist, or be empty, unless there is something to keep or the operator has filled it.
    pub target: PathBuf,
    /// Tablespaces that are to lie elsewhere than they did.
    pub mappings: Vec<Mapping>,
    /// Whether a data directory of the same cluster may be there, of which what equals the backup is
    /// kept, and the rest removed.
    pub delta: bool,
    /// Whose the files are to be; needed by root, for a server does not run as root.
    pub owner: Option<Owner>,
    /// What the server is to do.
    pub goal: Goal,
    /// Which timeline it goes along; of no meaning for a standby.
    pub along: Along,
    /// Who fills the data directory.
    pub filling: Filling,
    /// This program, which the server calls for WAL.
    pub program: PathBuf,
}

/// A restore is not possible, or did not succeed.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The backup may not be restored.
    #[error(transparent)]
    NotUsable(#[from] NotUsable),
    /// It does not fit what it is based on.
    #[error("the backup cannot be combined with what it is based on: {0}")]
    Combine(#[from] CombineError),
    /// Its data is not in the repository.
    #[error("the data of backup {id} is not in the repository; it lies at {place}")]
    Elsewhere {
        /// Which.
        id: BackupId,
        /// Where the data lies, in the operator's words.
        place: String,
    },
    /// Its data is in the repository.
    #[error("the data of backup {0} is in the repository: it is laid down in an empty directory")]
    NotElsewhere(BackupId),
    /// Nothing has shown yet that a server starts from it.
    #[error("backup {0} is a snapshot of which no drill has passed")]
    Untested(BackupId),
    /// What the operator has filled cannot be used.
    #[error(transparent)]
    Fill(#[from] FillError),
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
    /// A link leads there, but perhaps to what another server uses.
    #[error(
        "{} has a link to the tablespace at {}, but is not where the backup's server had its data: if it is a copy, \
         the tablespace is that of the server it was copied from", target.display(), path.display()
    )]
    WhoseTablespace {
        /// The tablespace's directory.
        path: PathBuf,
        /// The data directory.
        target: PathBuf,
    },
    /// A tablespace is mapped twice.
    #[error("there are two new places for the tablespace at {}", .0.display())]
    MappedTwice(PathBuf),
    /// Replay would empty a directory that is in use.
    #[error(
        "the WAL makes a tablespace at {} (record at {at}), and its replay would empty what is there",
        location.display()
    )]
    TablespaceInUse {
        /// Where.
        location: PathBuf,
        /// The record.
        at: Lsn,
    },
    /// Recovery cannot stop at the target.
    #[error(transparent)]
    Unreachable(Box<Unreachable>),
    /// The timeline does not come from where the backup ends.
    #[error("timeline {timeline} does not come from backup {id}, which ends at {stop}")]
    NotOnTimeline {
        /// The backup.
        id: BackupId,
        /// Where it ends.
        stop: Lsn,
        /// What was asked for.
        timeline: TimelineId,
    },
    /// WAL is missing on the way to the timeline.
    #[error("timeline {timeline} cannot be reached, for segment {segment} on the way to it is missing")]
    TimelineCutOff {
        /// What was asked for.
        timeline: TimelineId,
        /// The first that is missing.
        segment: Segment,
    },
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
    /// It failed in a directory of which files were to be kept.
    #[error("{source}; {} is unfinished now, and no server starts on it", target.display())]
    Unfinished {
        /// Why it failed.
        source: Box<Self>,
        /// The data directory.
        target: PathBuf,
    },
    /// It failed, and what it had made could not all be removed.
    #[error("{source}; what was laid down could not all be removed: {left}")]
    LeftBehind {
        /// Why it failed.
        source: Box<Self>,
        /// Why it could not be removed.
        left: DiskError,
    },
}

fn content(id: BackupId, e: ReadError<RestoreError>) -> RestoreError {
    match e {
        ReadError::Content(source) => RestoreError::Content { id, source },
        ReadError::Seen(e) => e,
    }
}

#[cfg(test)]
mod tests;
