//! A base backup outside of a repository, in the manner of pg_basebackup: into a data directory, into tar files, to
//! standard output, or left on the server.
//!
//! The files are compared with the server's manifest as they arrive, so that no second pass is needed. The WAL
//! comes with them, or from a second connection; whoever asks for neither has no backup yet.

use std::path::PathBuf;
use std::time::Duration;

use crate::connection::Conninfo;
use crate::image::ManifestAlgorithm;
use crate::protocol::{Checkpoint, MaxRate, SlotName};

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
    /// Longest silence towards the server while WAL is streamed; `None`: it is told only when there is a reason.
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
    Server {
        /// The target's name, as given.
        target: String,
        /// What follows its colon.
        detail: Option<String>,
    },
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

/// The server's compression, passed on as it was given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerCompression {
    /// `gzip`, `lz4` or `zstd`.
    pub method: String,
    /// Level or options.
    pub detail: Option<String>,
}

/// Our own compression of tar files; each can be read by the program of its method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientCompression {
    /// Levels 1 to 9; `None` is the library's default.
    Gzip {
        /// Level.
        level: Option<u8>,
    },
    /// Levels 1 to 12.
    Lz4 {
        /// Level.
        level: Option<u8>,
    },
    /// Levels -131072 to 22.
    Zstd {
        /// Level.
        level: Option<i32>,
        /// Threads.
        workers: u32,
        /// Long-distance matching.
        long: bool,
    },
}

/// A manifest to be sent by the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ManifestAsked {
    /// The checksums in it.
    pub algorithm: ManifestAlgorithm,
    /// Whether all names are written in hexadecimal.
    pub force_encode: bool,
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
