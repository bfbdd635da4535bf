//! walhold: a PostgreSQL backup that can be proved.
//!
//! Files copied from a running server are a database only together with every WAL record written
//! while they were copied. This crate streams that WAL, copies the files, and calls a backup complete
//! only when it has read back every record from its start to its end.
//!
//! The map, from the command line down; nothing below uses anything above:
//!
//! * [`cli`]: one file a command; here alone is anything printed, and an exit code chosen.
//! * [`backup`], [`basebackup`], [`receive`], [`verify`], [`restore`], [`drill`], [`status`]: the engines. They emit events and
//!   return values.
//! * [`repository`]: one cluster's archive and backups in a directory; names, locks, seals.
//! * [`datadir`]: a data directory that is filled from the archives of a base backup.
//! * [`archive`]: a folder of WAL; the only place that can say that WAL is durable, or a backup's whole.
//! * [`connection`]: from a connection string to a session with a server.
//! * [`protocol`], [`wal`], [`image`]: the wire, the log, and what a base backup is made of; pure.
//! * [`codec`]: compression by suffix.
//! * `cursor`: how bytes from outside are taken apart; no read of it panics.
//! * [`spill`]: what may grow with a cluster's files, in memory that does not.
//! * [`disk`]: the only module that creates, syncs, renames, removes and locks.
//!
//! `ARCHITECTURE.md` says why it is so, and which tests hold which promise.

pub mod archive;
pub mod backup;
pub mod basebackup;
pub mod cli;
pub mod codec;
pub mod connection;
mod cursor;
pub mod datadir;
pub mod disk;
pub mod drill;
mod feed;
pub mod image;
pub mod protocol;
pub mod receive;
pub mod repository;
pub mod restore;
pub mod spill;
pub mod status;
pub mod verify;
pub mod wal;
