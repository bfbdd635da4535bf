//! walhold: a PostgreSQL backup that can be proved.

pub mod connection;
pub mod disk;
pub mod protocol;
pub mod wal;
