//! The drill: a backup is restored into a scratch folder, and a real server is started on it, recovers,
//! and is asked whether all is well. Nothing is written to the repository but the result.
//!
//! The server is isolated from the one that was copied, which may run on the same host: it has a
//! configuration of the drill's own, no network, no archive, tablespaces in the scratch folder, and a
//! drill is refused if its recovery would write anywhere else.

mod checks;
mod config;
mod process;
mod run;
mod scratch;
mod server;
mod sql;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::archive::ArchiveError;
use crate::connection::ConnectError;
use crate::disk::DiskError;
use crate::repository::{BackupId, DrillRecord, NotUsable, RepositoryError, Which};
use crate::restore::{Mapping, Owner, RestoreError, RestoreEvent};
use crate::wal::Lsn;

pub use run::drill;

/// What to drill, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The backup.
    pub which: Which,
    /// A data directory that the operator has filled, of a backup whose data lies elsewhere. It is changed.
    pub data: Option<PathBuf>,
    /// Where the operator has put the tablespaces of that.
    pub mappings: Vec<Mapping>,
    /// Where the scratch folder is made.
    pub scratch: PathBuf,
    /// Whether it stays.
    pub keep: bool,
    /// Where the server's programs lie; else they are looked for.
    pub bin: Option<PathBuf>,
    /// Who runs the server; needed by root.
    pub run_as: Option<Owner>,
    /// Superusers of the server that was copied; the first that is let in is taken.
    pub users: Vec<String>,
    /// Where recovery is to stop; else at the end of the archive's WAL.
    pub target_time: Option<Timestamp>,
    /// How long recovery and checks may take.
    pub timeout: Option<Duration>,
    /// Whether tables and indexes are checked.
    pub amcheck: bool,
    /// Statements that must succeed.
    pub sql: Option<PathBuf>,
    /// This program, which the server calls for WAL.
    pub program: PathBuf,
}

/// How a drill is told to end before its time.
#[derive(Clone, Debug)]
pub struct Stop {
    /// In good order.
    pub soon: CancellationToken,
    /// The server need not shut down in good order.
    pub at_once: CancellationToken,
}

/// What a drill tells while it works.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DrillEvent {
    /// The files are about to be laid down.
    Planned {
        /// The backup.
        id: BackupId,
        /// The scratch folder.
        scratch: PathBuf,
        /// What an operator might want to know.
        notes: Vec<String>,
    },
    /// They are being laid down.
    Restore(RestoreEvent),
    /// The server was started.
    Started {
        /// As it says itself.
        version: String,
    },
    /// A segment is being replayed.
    Recovering {
        /// Its first byte.
        at: Lsn,
        /// Where recovery began.
        from: Lsn,
        /// Where the archive ends.
        to: Lsn,
    },
    /// The data is consistent.
    Consistent(Lsn),
    /// Recovery has ended.
    Recovered {
        /// Exclusive end of what was replayed.
        at: Lsn,
        /// Commit time of the last transaction in it.
        time: Option<Timestamp>,
    },
    /// A check begins.
    Checking(&'static str),
    /// It has come to this database.
    CheckingDatabase(String),
    /// A line from the end of the log of a server that ended too early.
    ServerLog(String),
}

/// A drill that came to a verdict.
#[derive(Debug)]
pub struct Drilled {
    /// The verdict, and what it rests on.
    pub record: DrillRecord,
    /// Whether that was written beside the backup's seal.
    pub recorded: Result<(), RepositoryError>,
    /// The scratch folder, if it was to be kept; or why it could not be removed.
    pub scratch: Result<Option<PathBuf>, DiskError>,
}

/// A drill that came to no verdict: the backup may be good or not.
#[derive(Debug, Error)]
pub enum DrillError {
    /// There is no such backup, or it is not complete.
    #[error(transparent)]
    NotUsable(#[from] NotUsable),
    /// It cannot be restored here.
    #[error(transparent)]
    Restore(RestoreError),
    /// Root cannot run the server.
    #[error("a PostgreSQL server does not run as root, and no other user is named")]
    RunAs,
    /// Only root can give a server to another user.
    #[error("only root can run the server as user {0}")]
    CannotRunAs(u32),
    /// There is no server that can read the backup.
    #[error("there is no PostgreSQL {major} {}{}", match given {
        Some(dir) => format!("in {}", dir.display()),
        None => "at the usual places".to_owned(),
    }, if others.is_empty() { String::new() } else { format!("; found {}", others.join(", ")) })]
    NoServer {
        /// Its major version.
        major: u32,
        /// Where it was looked for, if that was said.
        given: Option<PathBuf>,
        /// What was found instead.
        others: Vec<String>,
    },
    /// There is a file of SQL, and nothing to run it.
    #[error("psql, which runs the SQL file, is neither beside the server nor on the path")]
    NoPsql,
    /// A socket could not have such a path.
    #[error("the path of the server's socket would be too long: {}", .0.display())]
    LongPath(PathBuf),
    /// The server's user does not get there.
    #[error("the user who is to run the server cannot enter {}", .0.display())]
    Barrier(PathBuf),
    /// A file or directory cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Replaying the WAL writes outside the scratch folder.
    #[error(
        "the WAL makes a tablespace at {} (record at {at}): a recovery would write there, and not into the scratch folder",
        location.display()
    )]
    MakesTablespace {
        /// Where the tablespace lies.
        location: PathBuf,
        /// The record.
        at: Lsn,
    },
    /// The server has recovered and lets nobody in.
    #[error("the restored server let nobody in: {0}")]
    Connect(ConnectError),
    /// Somebody was let in who cannot check anything.
    #[error("role \"{0}\" of the restored server is no superuser")]
    NoSuperuser(String),
    /// It was told to end.
    #[error("stopped")]
    Stopped,
    /// It came to no verdict, and left something.
    #[error("{0}; the scratch folder could not be removed: {1}")]
    LeftBehind(Box<Self>, String),
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The file system did not do what it was asked.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Why a step is the last.
enum Ended {
    /// The backup is not usable.
    Failed(String),
    /// Nothing is known of it.
    Error(DrillError),
}

impl<E: Into<DrillError>> From<E> for Ended {
    fn from(e: E) -> Self {
        Self::Error(e.into())
    }
}

/// When to give up.
struct Limits<'a> {
    stop: &'a Stop,
    end: Option<(Instant, Duration)>,
}

impl Limits<'_> {
    fn check(&self) -> Result<(), Ended> {
        if self.stop.soon.is_cancelled() {
            return Err(Ended::Error(DrillError::Stopped));
        }
        match self.end {
            Some((end, limit)) if Instant::now() > end => {
                Err(Ended::Failed(format!("recovery and checks were not done within {} s", limit.as_secs_f64())))
            }
            _ => Ok(()),
        }
    }
}
