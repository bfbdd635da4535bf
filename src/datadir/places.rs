//! The directories that are filled.

use std::path::{Component, Path, PathBuf};

use super::{DataDirError, TABLESPACES};
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

    /// Whether the link of a tablespace leads to its place already, and to a directory.
    ///
    /// # Errors
    /// When the link cannot be read.
    pub fn is_linked(&self, disk: &dyn Disk, oid: u32) -> Result<bool, DiskError> {
        let Some(place) = self.tablespace(oid).and_then(|tablespace| tablespace.path.as_ref()) else {
            return Ok(false);
        };
        let link = self.data.join(TABLESPACES).join(oid.to_string());
        // Below what is no directory there is no link.
        if disk.metadata(&self.data.join(TABLESPACES))?.is_none_or(|meta| meta.kind != EntryKind::Directory) {
            return Ok(false);
        }
        let linked = disk.read_link(&link)?.as_ref() == Some(place);
        Ok(linked && disk.metadata(place)?.is_some_and(|meta| meta.kind == EntryKind::Directory))
    }

    pub(super) fn tablespace(&self, oid: u32) -> Option<&TablespacePlace> {
        self.tablespaces.iter().find(|tablespace| tablespace.oid == oid)
    }
}

/// Two places that are the same directory, or of which one lies in the other, with links followed.
///
/// # Errors
/// When one cannot be looked at.
pub(crate) fn overlap<'a>(places: impl Iterator<Item = &'a Path>) -> Result<Option<(&'a Path, &'a Path)>, DiskError> {
    let mut before: Vec<(PathBuf, &Path)> = Vec::new();
    for place in places {
        let real = resolved(place)?;
        if let Some((_, other)) = before.iter().find(|(other, _)| real.starts_with(other) || other.starts_with(&real)) {
            return Ok(Some((other, place)));
        }
        before.push((real, place));
    }
    Ok(None)
}

/// An absolute path with the links in the part of it that exists followed. Where nothing is there are no links, so
/// `..` leads back from it by name.
///
/// # Errors
/// When it cannot be looked at.
pub(crate) fn resolved(path: &Path) -> Result<PathBuf, DiskError> {
    let there = existing(path);
    let mut real = there.canonicalize().map_err(|e| DiskError::new("find", there, e))?;
    for part in path.strip_prefix(there).unwrap_or_else(|_| Path::new("")).components() {
        match part {
            Component::ParentDir => {
                real.pop();
            }
            part => real.push(part),
        }
    }
    Ok(real)
}

/// The deepest part of the path that exists.
pub(crate) fn existing(path: &Path) -> &Path {
    path.ancestors().find(|part| part.exists()).unwrap_or_else(|| Path::new("/"))
}

/// Whether the data directory has the place by a link already.
fn is_linked(disk: &dyn Disk, places: &Places, place: &Path) -> Result<bool, DataDirError> {
    for TablespacePlace { oid, .. } in places.tablespaces.iter().filter(|t| t.path.as_deref() == Some(place)) {
        if places.is_linked(disk, *oid)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether an empty directory is there.
fn is_there(disk: &dyn Disk, path: &Path) -> Result<bool, DataDirError> {
    match disk.metadata(path)? {
        None => Ok(false),
        Some(found) if found.kind == EntryKind::Directory && disk.list(path)?.is_empty() => Ok(true),
        Some(_) => Err(DataDirError::NotEmpty(path.to_owned())),
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
        Self::make_all(disk, &places.all().collect::<Vec<_>>())
    }

    /// The same for those that a data directory which is there does not have yet.
    pub(super) fn make_others(disk: &dyn Disk, places: &Places) -> Result<Self, DataDirError> {
        let mut others = Vec::new();
        for place in places.all().filter(|place| *place != places.data) {
            if !is_linked(disk, places, place)? {
                others.push(place);
            }
        }
        Self::make_all(disk, &others)
    }

    /// Nothing is touched before all are known to be free.
    fn make_all(disk: &dyn Disk, places: &[&Path]) -> Result<Self, DataDirError> {
        for place in places {
            is_there(disk, place)?;
        }
        let mut made = Self::default();
        for place in places {
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
        if !is_there(disk, path)? {
            return self.add_new(disk, path);
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
