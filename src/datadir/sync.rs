//! Making all of a tree durable.

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::disk::{Access, Disk, DiskError, EntryKind, File};

/// How what was laid down is made durable. On a disk without syncs both do nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SyncMethod {
    /// Each file and each directory by itself.
    #[default]
    Fsync,
    /// All of the file system at once, what others have written to it included.
    Syncfs,
}

impl SyncMethod {
    /// Makes a directory and all in it durable; links are not followed.
    ///
    /// # Errors
    /// When any of it may be lost.
    pub fn sync(self, disk: &dyn Disk, place: &Path) -> Result<(), DiskError> {
        match self {
            Self::Syncfs => disk.sync_filesystem(place).map(drop),
            Self::Fsync => sync_tree(disk, place),
        }
    }
}

fn sync_tree(disk: &dyn Disk, dir: &Path) -> Result<(), DiskError> {
    let mut files = Vec::new();
    for entry in disk.list(dir)? {
        let path = dir.join(&entry.name);
        match entry.kind {
            EntryKind::File => files.push(path),
            EntryKind::Directory => sync_tree(disk, &path)?,
            // A link is durable with the directory it is in.
            EntryKind::Other => {}
        }
    }
    sync_files(disk, &files)?;
    disk.sync_dir(dir).map(drop)
}

/// Several at a time, for each waits for the device, and what waits together the file system saves together.
fn sync_files(disk: &dyn Disk, files: &[PathBuf]) -> Result<(), DiskError> {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let synced = disk.open(path, Access::Read).and_then(File::sync);
            // The others need not go on.
            let _synced = synced.inspect_err(|_| next.store(files.len(), Ordering::Relaxed))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..disk.writers().min(files.len())).map(|_| scope.spawn(work)).collect();
        let here = work();
        let joined = others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        let there: Vec<_> = joined.collect();
        there.into_iter().fold(here, Result::and)
    })
}
