//! What may grow with a cluster's files, in memory that does not: the first of it is kept, the rest goes to a scratch
//! file without a name, of which nothing is left when the process ends in any way.
//!
//! A server says how many files it sends, how long their names are, and lists them once more in its manifest. All of
//! that can be put in order and compared in the memory that a few thousand files take.

mod sorter;
mod spool;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub use sorter::{Merge, Record, Sorter};
pub use spool::{Spool, SpoolReader};

use crate::disk::{DiskError, Real, Unnamed};

/// Where scratch files are made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    /// In this directory, once one is needed.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// In the directory for temporary files (`TMPDIR`), for whoever only reads.
    pub fn temporary() -> Self {
        Self { dir: std::env::temp_dir() }
    }

    fn file(&self) -> Result<Unnamed, DiskError> {
        // Where the file system has no files without a name, several at a time need different ones.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Real::create_unnamed(&self.dir.join(format!("walhold.scratch.{number}")), 0o600)
    }
}
