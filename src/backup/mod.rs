//! A base backup and the WAL it needs, captured in one session and proven before it is sealed.
//!
//! The order is the promise (P3): the WAL is secured first, then the files are copied in one pass
//! that hashes, compresses and compares them, then every record from the backup's start to its end
//! is read back, and only then is the seal written.

mod copy;
mod cuts;
mod error;
mod low_level;
mod parent;
mod run;
mod steps;
mod wal;

use std::time::Duration;

use tokio::sync::oneshot;

use crate::codec::Compression;
use crate::connection::Conninfo;
use crate::image::ManifestAlgorithm;
use crate::protocol::{Checkpoint, MaxRate};
use crate::repository::{BackupId, Holder};
use crate::wal::Pos;

pub use error::BackupError;
pub use low_level::{CommandError, CopyError, LowLevel};
pub use run::backup;

/// What to back up, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server, for the connection that streams WAL where no receiver does.
    pub conninfo: Conninfo,
    /// What the server knows that connection by. It must not be the receiver's name: a synchronous
    /// standby that goes away with the backup would hang every commit.
    pub application_name: String,
    /// What the operator calls the backup.
    pub label: String,
    /// Whether the server's checkpoint may take its time.
    pub checkpoint: Checkpoint,
    /// Bound on the speed of the copy.
    pub max_rate: Option<MaxRate>,
    /// The checksums that the server computes over each file.
    pub manifest_checksums: ManifestAlgorithm,
    /// How the archives are stored.
    pub compression: Compression,
    /// Whether it holds only what has changed since the newest backup in the repository.
    pub incremental: bool,
    /// How the files are copied, if the server is not to send them.
    pub low_level: Option<LowLevel>,
    /// Shown to whoever finds the repository locked while WAL is streamed for this backup.
    pub who: Holder,
}

/// What a backup tells while it works.
#[derive(Debug)]
pub enum Event {
    /// The WAL is followed that a receiver writes.
    Following,
    /// No receiver runs, or it has stalled: the WAL is streamed here.
    Streaming,
    /// It will hold what has changed since this backup.
    BasedOn(BackupId),
    /// The server was asked for its checkpoint.
    WaitingForCheckpoint,
    /// The copy has begun.
    Copying {
        /// The backup's name.
        id: BackupId,
        /// Where its WAL begins.
        start: Pos,
        /// Bytes that the server expects to send.
        estimate: Option<u64>,
    },
    /// So many bytes of archives have been taken in.
    Progress(u64),
    /// The copy has ended; the WAL must reach this position.
    Copied {
        /// Exclusive end of the WAL it needs.
        stop: Pos,
        /// Bytes of archives, uncompressed.
        bytes: u64,
        /// How long it took.
        took: Duration,
    },
    /// The server's backup has begun, and this is who copies the files: `copied` is to be told when
    /// that is done, and dropped if it will not be.
    CopyNow {
        /// The backup's name.
        id: BackupId,
        /// Takes the word that the copy is made.
        copied: oneshot::Sender<()>,
    },
    /// The server's backup has ended.
    Ended {
        /// Exclusive end of the WAL it needs.
        stop: Pos,
    },
    /// What was copied is hashed and synced.
    Hashing,
    /// These were removed from the copy: no server would have sent them.
    LeftOut(Vec<String>),
    /// The WAL since the parent of an incremental backup is read for what was cut off.
    ReadingChanges,
    /// The WAL is durable; it is read back.
    Proving,
    /// The server has something to say.
    Notice(String),
}
