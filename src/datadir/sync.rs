//! Making all of a tree durable.

use std::path::Path;

use crate::disk::{Access, Disk, DiskError, EntryKind};

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
    for entry in disk.list(dir)? {
        let path = dir.join(&entry.name);
        match entry.kind {
            EntryKind::File => drop(disk.open(&path, Access::Read)?.sync()?),
            EntryKind::Directory => sync_tree(disk, &path)?,
            // A link is durable with the directory it is in.
            EntryKind::Other => {}
        }
    }
    disk.sync_dir(dir).map(drop)
}
