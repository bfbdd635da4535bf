//! Where the files are to lie, whether there is room, and who is to own them.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::super::{Mapping, Owner, RestoreError};
use super::{PlannedWal, delta};
use crate::datadir::{existing, overlap, resolved};
use crate::disk::{Disk, EntryKind};
use crate::repository::{Kind, Repository, Seal};

/// A directory that is to be filled.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Place {
    /// Absolute.
    #[serde(serialize_with = "shown")]
    pub path: PathBuf,
    /// Whether it is there. It is empty, then, unless it is `filled`.
    pub exists: bool,
    /// Whether files are in it of which some may stay.
    pub filled: bool,
}

/// Where a tablespace will lie.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PlannedTablespace {
    /// Its object id.
    pub oid: u32,
    /// Where it lay on the server that was copied.
    #[serde(serialize_with = "shown")]
    pub old: PathBuf,
    /// Where it is to lie; `None` for one inside the data directory (`allow_in_place_tablespaces`).
    pub new: Option<Place>,
}

impl PlannedTablespace {
    /// Whether it is to lie elsewhere than it did.
    pub fn moves(&self) -> bool {
        self.new.as_ref().is_some_and(|place| place.path != self.old)
    }
}

/// Room on one file system.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Space {
    /// The first of the places on it.
    #[serde(serialize_with = "shown")]
    pub path: PathBuf,
    /// Bytes that will be laid down on it, at most, less what is there and stays or is removed.
    pub needed: u64,
    /// Bytes that are free.
    pub available: u64,
}

pub(super) fn shown<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf, RestoreError> {
    std::path::absolute(path).map_err(|source| RestoreError::Path { path: path.to_owned(), source })
}

pub(super) fn place(disk: &dyn Disk, path: &Path) -> Result<Place, RestoreError> {
    let path = absolute(path)?;
    let exists = match disk.metadata(&path)? {
        None => match std::fs::symlink_metadata(&path) {
            // A link that leads nowhere.
            Ok(_) => return Err(RestoreError::NotEmpty(path)),
            Err(_) => false,
        },
        Some(found) if found.kind == EntryKind::Directory && disk.list(&path)?.is_empty() => true,
        Some(_) => return Err(RestoreError::NotEmpty(path)),
    };
    Ok(Place { path, exists, filled: false })
}

pub(super) fn place_tablespaces(
    disk: &dyn Disk,
    backup: &Seal,
    target: &Place,
    mappings: &[Mapping],
) -> Result<Vec<PlannedTablespace>, RestoreError> {
    check_mappings(backup, mappings)?;
    let mut planned = Vec::new();
    for tablespace in &backup.tablespaces {
        let old = PathBuf::from(&tablespace.location);
        let mapped = mappings.iter().find(|mapping| mapping.old == old);
        let in_place = old == Path::new(&format!("pg_tblspc/{}", tablespace.oid));
        let new = match mapped.map_or(&old, |mapping| &mapping.new) {
            _ if in_place && mapped.is_none() => None,
            path if !path.is_absolute() => return Err(RestoreError::NotAbsolute(path.clone())),
            path => Some(delta::tablespace(disk, backup, target, tablespace.oid, path, mapped.is_some())?),
        };
        planned.push(PlannedTablespace { oid: tablespace.oid, old, new });
    }
    Ok(planned)
}

/// Each must be of a tablespace of the backup, and of another than those before.
pub(in crate::restore) fn check_mappings(backup: &Seal, mappings: &[Mapping]) -> Result<(), RestoreError> {
    for (index, mapping) in mappings.iter().enumerate() {
        if mappings.iter().take(index).any(|before| before.old == mapping.old) {
            return Err(RestoreError::MappedTwice(mapping.old.clone()));
        }
        if !backup.tablespaces.iter().any(|tablespace| Path::new(&tablespace.location) == mapping.old) {
            return Err(RestoreError::NoSuchTablespace { id: backup.id, old: mapping.old.clone() });
        }
    }
    Ok(())
}

/// No two places may lie in each other, and none in the repository.
pub(super) fn check_apart(repo: &Path, target: &Place, tablespaces: &[PlannedTablespace]) -> Result<(), RestoreError> {
    let repo = resolved(repo)?;
    let all = [target].into_iter().chain(tablespaces.iter().filter_map(|tablespace| tablespace.new.as_ref()));
    for place in all.clone() {
        let real = resolved(&place.path)?;
        if real.starts_with(&repo) {
            return Err(RestoreError::InRepository(place.path.clone()));
        }
        // What is in a filled place is removed.
        if repo.starts_with(&real) {
            return Err(RestoreError::Overlap(repo, place.path.clone()));
        }
    }
    match overlap(all.map(|place| place.path.as_path()))? {
        Some((one, other)) => Err(RestoreError::Overlap(one.to_owned(), other.to_owned())),
        None => Ok(()),
    }
}

pub(super) fn measure(
    repository: &Repository,
    backup: &Seal,
    sizes: &HashMap<Option<u32>, u64>,
    target: &Place,
    tablespaces: &[PlannedTablespace],
) -> Result<Vec<Space>, RestoreError> {
    let contents = repository.contents(backup).map_err(|source| RestoreError::Content { id: backup.id, source })?;
    // By the device's number.
    let mut needed: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    for (tablespace, size) in contents.sizes() {
        let planned = tablespaces.iter().find(|planned| Some(planned.oid) == tablespace);
        let path = planned.and_then(|planned| planned.new.as_ref()).map_or(&target.path, |place| &place.path);
        let there = existing(path);
        let meta = std::fs::metadata(there).map_err(|source| RestoreError::Path { path: there.to_owned(), source })?;
        let (_, sum) = needed.entry(meta.dev()).or_insert_with(|| (path.clone(), 0));
        *sum = sum.saturating_add(match backup.kind {
            Kind::Full => size,
            Kind::Incremental => sizes.get(&tablespace).copied().unwrap_or_default(),
        });
    }
    let places = [target].into_iter().chain(tablespaces.iter().filter_map(|tablespace| tablespace.new.as_ref()));
    for place in places.filter(|place| place.filled) {
        let there = &place.path;
        let meta = std::fs::metadata(there).map_err(|source| RestoreError::Path { path: there.clone(), source })?;
        if let Some((_, sum)) = needed.get_mut(&meta.dev()) {
            // It stays or makes room.
            *sum = sum.saturating_sub(delta::held(&**repository.disk(), there)?);
        }
    }
    let mut all = Vec::new();
    for (path, needed) in needed.into_values() {
        let available = repository.disk().available(existing(&path))?;
        if available < needed {
            return Err(RestoreError::NoRoom { path, needed, available });
        }
        all.push(Space { path, needed, available });
    }
    Ok(all)
}

/// Replay makes a tablespace where it lay, whatever `-T` says, and empties what is there
/// (`create_tablespace_directories` in `tablespace.c`).
pub(super) fn check_made(
    disk: &dyn Disk,
    wal: &PlannedWal,
    tablespaces: &[PlannedTablespace],
    notes: &mut Vec<String>,
) -> Result<(), RestoreError> {
    let ours = |location: &Path| {
        tablespaces.iter().any(|planned| planned.new.as_ref().is_some_and(|place| place.path == location))
    };
    for made in &wal.makes_tablespaces {
        let (location, at) = (&made.location, made.at);
        let there = disk.metadata(location)?;
        let empty = match &there {
            None => true,
            Some(there) => there.kind == EntryKind::Directory && disk.list(location)?.is_empty(),
        };
        if !empty && wal.timeline.is_some() {
            return Err(RestoreError::TablespaceInUse { location: location.clone(), at });
        }
        let made = format!("the WAL makes a tablespace at {} (record at {at})", location.display());
        notes.push(match there {
            _ if !empty => format!("{made}: its replay empties what is there"),
            None if !ours(location) => {
                format!("{made}: make that directory for the server's user before you start the server")
            }
            _ => made,
        });
    }
    if wal.timeline.is_none() {
        notes.push("tablespaces that the primary makes later are made here at the same paths".to_owned());
    }
    Ok(())
}

/// The server must be able to own the files, run the program and read the repository.
pub(super) fn check_owner(owner: Option<Owner>, program: &Path, repo: &Path) -> Result<(), RestoreError> {
    let we = rustix::process::geteuid();
    let Some(owner) = owner else {
        return if we.is_root() { Err(RestoreError::OwnerNeeded) } else { Ok(()) };
    };
    if !we.is_root() && owner.user != we.as_raw() {
        return Err(RestoreError::CannotGiveAway(owner.user));
    }
    if owner.user == 0 {
        return Err(RestoreError::OwnerNeeded);
    }
    let archive = repo.join("wal");
    for (verb, path, bits) in
        [("run", program, 0o5), ("read", &repo.join("repository.json"), 0o4), ("read", &archive, 0o5)]
    {
        if let Some(path) = barrier(owner, path, bits) {
            return Err(RestoreError::OwnerLocked { user: owner.user, verb, path });
        }
    }
    Ok(())
}

/// The first part of the path at which the owner is certainly kept out: by the modes, of which
/// those for another group are taken as open, for the owner may be a member of it.
pub(crate) fn barrier(owner: Owner, path: &Path, bits: u32) -> Option<PathBuf> {
    let closed = |part: &Path, bits: u32| {
        let Ok(meta) = std::fs::metadata(part) else { return false };
        let mode = meta.permissions().mode();
        let granted = if meta.uid() == owner.user {
            mode >> 6
        } else if meta.gid() == owner.group {
            mode >> 3
        } else {
            mode | mode >> 3
        };
        granted & bits != bits
    };
    let mut ways: Vec<&Path> = path.ancestors().skip(1).filter(|part| !part.as_os_str().is_empty()).collect();
    ways.reverse();
    let way = ways.into_iter().find(|part| closed(part, 0o1));
    way.or_else(|| closed(path, bits).then_some(path)).map(Path::to_owned)
}
