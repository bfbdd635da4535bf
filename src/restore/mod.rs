//! Getting the data back: the plan, the laying down, and what the server asks for while it
//! recovers.

mod wal_get;

pub use wal_get::{Outcome, Request, run as run_wal_get, wal_get};
