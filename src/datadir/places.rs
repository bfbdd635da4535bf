//! The directories that are filled.

use std::path::{Path, PathBuf};

use super::DataDirError;
use crate::disk::{Disk, DiskError, EntryKind, Trouble};

/// Where a data directory is to lie. No place may lie in another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Places {
    /// The data directory, absolute.
    pub data: PathBuf,
    /// Another directory for its `pg_wal`, absolute; `pg_wal` becomes a link to it.
    pub wal: Option<PathBuf>,
    /// Every tablespace of the backup.
    pub tablespaces: Vec<TablespacePlace>,
    /// Whose it is to be, where that is not whoever lays it down.
    pub owner: Option<Owner>,
}

/// Where a tablespace is to lie.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TablespacePlace {
    /// Its object id.
    pub oid: u32,
    /// Absolute; `None` for one inside the data directory (`allow_in_place_tablespaces`).
    pub path: Option<PathBuf>,
}

/// Who is to own the files, by number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// The user that the server will run as.
    pub user: u32,
    /// Its group.
    pub group: u32,
}

impl Places {
    /// All that are directories of their own, the data directory first.
    pub fn all(&self) -> impl Iterator<Item = &Path> {
        let tablespaces = self.tablespaces.iter().filter_map(|tablespace| tablespace.path.as_deref());
        [self.data.as_path()].into_iter().chain(self.wal.as_deref()).chain(tablespaces)
    }

    pub(super) fn tablespace(&self, oid: u32) -> Option<&TablespacePlace> {
        self.tablespaces.iter().find(|tablespace| tablespace.oid == oid)
    }
}

/// What is to be removed if it fails.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// Directories, and whether they were there.
    places: Vec<(PathBuf, bool)>,
}

impl Made {
    /// Makes the places, or makes sure that they are empty still; all or none.
    pub(super) fn make(disk: &dyn Disk, places: &Places) -> Result<Self, DataDirError> {
        let mut made = Self::default();
        for place in places.all() {
            if let Err(e) = made.add(disk, place) {
                // Why it failed matters more than an empty directory that is left.
                let _ = made.remove(disk);
                return Err(e);
            }
        }
        Ok(made)
    }

    fn add(&mut self, disk: &dyn Disk, path: &Path) -> Result<(), DataDirError> {
        if let Some(parent) = path.parent() {
            let _above = disk.make_dirs(parent, 0o755)?;
        }
        let Some(found) = disk.metadata(path)? else { return self.add_new(disk, path) };
        if found.kind != EntryKind::Directory || !disk.list(path)?.is_empty() {
            return Err(DataDirError::NotEmpty(path.to_owned()));
        }
        self.places.push((path.to_owned(), true));
        Ok(())
    }

    fn add_new(&mut self, disk: &dyn Disk, path: &Path) -> Result<(), DataDirError> {
        // It may be there even if making it durable fails.
        self.places.push((path.to_owned(), false));
        match disk.make_dir(path, 0o700) {
            Ok(_made) => Ok(()),
            // A link that leads nowhere, or somebody was faster.
            Err(e) if e.trouble() == Trouble::Exists => {
                self.places.pop();
                Err(DataDirError::NotEmpty(path.to_owned()))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Removes what was made, and empties what was found empty.
    pub(super) fn remove(self, disk: &dyn Disk) -> Result<(), DiskError> {
        for (path, was_there) in self.places.into_iter().rev() {
            if !was_there {
                match disk.remove_tree(&path) {
                    Err(e) if e.trouble() != Trouble::Missing => return Err(e),
                    _ => continue,
                }
            }
            for entry in disk.list(&path)? {
                let inside = path.join(&entry.name);
                match entry.kind {
                    EntryKind::Directory => disk.remove_tree(&inside)?,
                    EntryKind::File | EntryKind::Other => disk.remove(&inside)?,
                }
            }
        }
        Ok(())
    }
}
