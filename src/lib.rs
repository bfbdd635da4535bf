//! walhold: a PostgreSQL backup that can be proved.

pub mod archive;
pub mod backup;
pub mod cli;
pub mod codec;
pub mod connection;
pub mod disk;
pub mod image;
pub mod protocol;
pub mod receive;
pub mod repository;
pub mod restore;
pub mod verify;
pub mod wal;
