//! A base backup outside of a repository, in the manner of pg_basebackup: into a data directory, into tar files, to
//! standard output, or left on the server.
//!
//! The files are compared with the server's manifest as they arrive, so that no second pass is needed. The WAL
//! comes with them, or from a second connection; whoever asks for neither has no backup yet.

mod error;
mod fetched;
mod place;
mod run;
mod store;
mod wal;

use std::path::PathBuf;
use std::time::Duration;

use crate::connection::Conninfo;
use crate::image::Compared;
use crate::protocol::{BackupTarget, Checkpoint, ManifestAsked, MaxRate, ServerCompression, ServerError, SlotName};
use crate::wal::Pos;

pub use crate::codec::ClientCompression;
pub use error::BaseBackupError;
pub use run::basebackup;

/// What to copy, how, and where to.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server, for the connection that streams WAL.
    pub conninfo: Conninfo,
    /// What the server knows that connection by.
    pub application_name: String,
    /// What `backup_label` will say.
    pub label: String,
    /// How the server's checkpoint is made.
    pub checkpoint: Checkpoint,
    /// Bound on the speed of the copy.
    pub max_rate: Option<MaxRate>,
    /// Where it goes.
    pub destination: Destination,
    /// The WAL that it needs.
    pub wal: WalMethod,
    /// Longest time between two statuses that are sent to the server while WAL is streamed; `None`: only
    /// when it asks.
    pub status_interval: Option<Duration>,
    /// What the server compresses with, in its own words.
    pub server_compression: Option<ServerCompression>,
    /// The manifest to ask for; without one nothing can be compared.
    pub manifest: Option<ManifestAsked>,
    /// The manifest of the backup that this one is to be based on (from 17 on).
    pub incremental: Option<PathBuf>,
    /// Whether the server checks the checksums of the pages that it sends.
    pub verify_checksums: bool,
    /// Whether the files are compared with the manifest.
    pub verify: bool,
    /// Whether the server estimates sizes first.
    pub estimate_size: bool,
    /// Settings for a standby of this server, and the signal file (`-R`); the slot among them is that of
    /// [`WalMethod::Stream`], if it is permanent.
    pub recovery: bool,
    /// How what was written is made durable.
    pub sync: Sync,
    /// Whether what was made is removed on failure.
    pub clean: bool,
}

/// Where a base backup goes.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A data directory that can be started.
    Plain {
        /// It must not exist, or be empty.
        directory: PathBuf,
        /// Tablespaces that are to lie elsewhere: from, to; both absolute.
        mappings: Vec<(PathBuf, PathBuf)>,
        /// Where `pg_wal` is to lie, absolute; it becomes a link.
        wal_directory: Option<PathBuf>,
    },
    /// One tar file for each archive, and the manifest beside them.
    Tar {
        /// It must not exist, or be empty.
        directory: PathBuf,
        /// By us; what the server has compressed is stored as it comes.
        compression: Option<ClientCompression>,
    },
    /// One tar, to standard output.
    StandardOutput {
        /// By us.
        compression: Option<ClientCompression>,
    },
    /// Not sent: the server stores it (`server:PATH`) or throws it away (`blackhole`).
    Server(BackupTarget),
}

/// How the WAL from start to stop is had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WalMethod {
    /// Not at all: an archive must have it.
    None,
    /// The server puts it into the base archive at the end.
    Fetch,
    /// From a second connection, meanwhile.
    Stream(StreamSlot),
}

/// What keeps the WAL that is streamed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StreamSlot {
    /// A slot that goes with the connection.
    Temporary,
    /// Nothing (`--no-slot`).
    None,
    /// A slot of this name, which is made first if asked for.
    Named {
        /// Its name.
        name: SlotName,
        /// Whether it is made.
        create: bool,
    },
}

/// What a base backup tells while it is made.
#[derive(Debug)]
pub enum Event {
    /// The server has something to say, such as a page whose checksum is wrong.
    Notice(ServerError),
    /// A slot was made.
    SlotMade {
        /// Its name.
        name: SlotName,
        /// It goes with the connection.
        temporary: bool,
    },
    /// The server was asked for its checkpoint.
    WaitingForCheckpoint,
    /// The checkpoint is made; the copy begins.
    Started {
        /// Where its WAL begins.
        start: Pos,
        /// Archives that will come: one of the data directory, and one of each tablespace.
        archives: usize,
        /// Bytes that the server expects to read, if it was asked for an estimate.
        estimate: Option<u64>,
    },
    /// The second connection streams WAL.
    Streaming,
    /// How far it is: some times a second, and once more at the end.
    Progress(Progress),
    /// All is copied; WAL is needed up to here (exclusive).
    Stop(Pos),
    /// The rest of the WAL is awaited.
    WaitingForWal,
    /// What was written is made durable.
    Syncing,
    /// The manifest gets its name, which says that the backup is whole.
    NamingManifest,
    /// It has failed, and the slot that was made for it is dropped.
    DroppingSlot(SlotName),
    /// The slot could not be dropped, and keeps WAL.
    SlotLeft(SlotName),
    /// It has failed, and this directory is removed.
    Removing(PathBuf),
    /// It has failed, and this directory, which was there, is emptied.
    Emptying(PathBuf),
}

/// How far a copy is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Bytes of the data directory and the tablespaces so far.
    pub done: u64,
    /// Archives that have come whole.
    pub archives: usize,
    /// The file that is being written, if one is.
    pub file: Option<PathBuf>,
}

/// A base backup that is complete, and durable if that was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Done {
    /// Where its WAL begins.
    pub start: Pos,
    /// Exclusive end of the WAL that it needs.
    pub stop: Pos,
    /// Files that were found to be as the manifest lists them; `None` if they were not compared.
    pub compared: Option<Compared>,
    /// Whether its WAL is with it, and was found whole.
    pub wal: bool,
}

/// How written files are made durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sync {
    /// Not at all (`--no-sync`).
    None,
    /// File by file.
    Fsync,
    /// By file system.
    Syncfs,
}
