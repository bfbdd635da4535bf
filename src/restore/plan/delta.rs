//! Places that are there, and of which what equals the backup is to stay.

use std::path::{Path, PathBuf};

use super::super::RestoreError;
use super::places::{Place, absolute, place};
use crate::datadir::{DataDirError, Found, Places, TablespacePlace, cluster_at, server_at};
use crate::disk::{Disk, DiskError, EntryKind};
use crate::repository::Seal;

/// The data directory: one of the cluster, on which no server runs; or a place that is free.
pub(super) fn target(disk: &dyn Disk, path: &Path, cluster: u64) -> Result<Place, RestoreError> {
    let path = absolute(path)?;
    match cluster_at(disk, &path)? {
        Found::Nothing => return place(disk, &path),
        Found::Cluster(id) if id == cluster => {}
        found => return Err(DataDirError::OtherCluster { path, found }.into()),
    }
    match server_at(disk, &path)? {
        Some(pid) => Err(DataDirError::Running { path, pid }.into()),
        None => Ok(Place { path, exists: true, filled: true }),
    }
}

/// A tablespace: one that the data directory's own link leads to; or a place that is free. The links of a copy
/// of a data directory lead to the tablespaces of what was copied: they count where the data directory is the
/// backup's own, or if the operator has `named` the place.
pub(super) fn tablespace(
    disk: &dyn Disk,
    backup: &Seal,
    target: &Place,
    oid: u32,
    path: &Path,
    named: bool,
) -> Result<Place, RestoreError> {
    let tablespaces = vec![TablespacePlace { oid, path: Some(path.to_owned()) }];
    let places = Places { data: target.path.clone(), wal: None, tablespaces, owner: None };
    if target.filled && places.is_linked(disk, oid)? {
        if !named && !is_own(backup, &target.path) {
            return Err(RestoreError::WhoseTablespace { path: path.to_owned(), target: target.path.clone() });
        }
        check_unused(disk, backup, target, places)?;
        return Ok(Place { path: path.to_owned(), exists: true, filled: true });
    }
    place(disk, path)
}

/// The server that was copied, if it runs here, must not have the same tablespace.
fn check_unused(disk: &dyn Disk, backup: &Seal, target: &Place, mut places: Places) -> Result<(), RestoreError> {
    let Some(path) = backup.config_files.data_directory.as_ref().map(PathBuf::from) else { return Ok(()) };
    if is_own(backup, &target.path) {
        return Ok(());
    }
    places.data.clone_from(&path);
    // What may not be looked at is of another user, whose tablespaces are locked as well.
    let linked = places.tablespaces.iter().any(|t| places.is_linked(disk, t.oid).unwrap_or_default());
    match server_at(disk, &path).ok().flatten().filter(|_| linked) {
        Some(pid) => Err(DataDirError::Running { path, pid }.into()),
        None => Ok(()),
    }
}

/// Whether it is where the server that was copied had its data.
fn is_own(backup: &Seal, data: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    let Some(own) = backup.config_files.data_directory.as_ref().map(Path::new) else { return false };
    own == data || real(own).is_some_and(|own| real(data) == Some(own))
}

/// Bytes of the files in a directory.
pub(super) fn held(disk: &dyn Disk, dir: &Path) -> Result<u64, DiskError> {
    let mut sum: u64 = 0;
    for entry in disk.list(dir)? {
        let path = dir.join(&entry.name);
        sum = sum.saturating_add(match entry.kind {
            EntryKind::Directory => held(disk, &path)?,
            EntryKind::File => disk.metadata(&path)?.map_or(0, |meta| meta.len),
            EntryKind::Other => 0,
        });
    }
    Ok(sum)
}
