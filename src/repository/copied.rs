//! The files of a backup that a command of the operator's copied: plain, as they lay on the server, in
//! `data` and `tablespaces/OID`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{ContentError, Seal};
use crate::disk::{Access, Disk, DiskError, EntryKind, Trouble};
use crate::image::{BadPath, Manifest, MemberPath};

/// A file or directory of the copy, by its path below the data directory or the tablespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    pub(crate) path: MemberPath,
    pub(crate) kind: EntryKind,
}

/// A tree cannot be listed.
#[derive(Debug, Error)]
pub enum TreeError {
    /// A name in it is too long.
    #[error(transparent)]
    Path(#[from] BadPath),
    /// Above our limit.
    #[error("there are more than {max} files in it", max = Manifest::MAX_FILES)]
    TooMany,
    /// A directory cannot be listed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// All below `root`, which is not among them: no link is followed, and a directory comes before what lies
/// in it.
///
/// # Errors
/// When it cannot be listed whole.
pub(crate) fn list_tree(disk: &dyn Disk, root: &Path) -> Result<Vec<Found>, TreeError> {
    let mut all = Vec::new();
    let mut open = vec![None];
    while let Some(dir) = open.pop() {
        let (path, above) = match &dir {
            Some(dir) => (root.join(MemberPath::as_path(dir)), [dir.as_bytes(), b"/"].concat()),
            None => (root.to_owned(), Vec::new()),
        };
        let mut entries = disk.list(&path)?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in entries {
            let path = MemberPath::new(&[&above, entry.name.as_encoded_bytes()].concat())?;
            if all.len() == Manifest::MAX_FILES {
                return Err(TreeError::TooMany);
            }
            if entry.kind == EntryKind::Directory {
                open.push(Some(path.clone()));
            }
            all.push(Found { path, kind: entry.kind });
        }
    }
    Ok(all)
}

/// The directories of the copy, that of the data directory first, each with its tablespace.
pub(crate) fn roots(dir: &Path, tablespaces: impl Iterator<Item = u32>) -> Vec<(Option<u32>, PathBuf)> {
    let spaces = tablespaces.map(|oid| (Some(oid), dir.join(Seal::TABLESPACES).join(oid.to_string())));
    [(None, dir.join(Seal::DATA))].into_iter().chain(spaces).collect()
}

/// Whether something is a directory itself, and no link to one.
///
/// # Errors
/// When the directory above cannot be listed.
pub(crate) fn is_real_dir(disk: &dyn Disk, path: &Path) -> Result<bool, DiskError> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok(false) };
    let entries = match disk.list(above) {
        Err(e) if e.trouble() == Trouble::Missing => return Ok(false),
        entries => entries?,
    };
    Ok(entries.iter().any(|entry| entry.name == name && entry.kind == EntryKind::Directory))
}

/// Makes every file that the manifest lists durable, with the directories that lead to it.
///
/// # Errors
/// When one is missing or has another size, or a sync fails.
pub(super) fn sync(disk: &dyn Disk, dir: &Path, seal: &Seal, manifest: &Manifest) -> Result<(), ContentError> {
    let mut dirs = BTreeSet::new();
    for listed in manifest.files() {
        let path = path_of(dir, seal, &listed.path);
        let name = || listed.path.to_string();
        let file = match disk.open(&path, Access::Read) {
            Err(e) if e.trouble() == Trouble::Missing => return Err(ContentError::Missing(name())),
            file => file?,
        };
        let (file, _data) = file.sync()?;
        let (found, sealed) = (file.size()?, listed.size);
        if found != sealed {
            return Err(ContentError::Size { name: name(), found, sealed });
        }
        dirs.extend(path.ancestors().skip(1).take_while(|above| *above != dir).map(Path::to_owned));
    }
    for above in dirs.iter().rev() {
        let _names = disk.sync_dir(above)?;
    }
    Ok(())
}

/// Where a file lies that the manifest calls so.
fn path_of(dir: &Path, seal: &Seal, listed: &MemberPath) -> PathBuf {
    match tablespace_of(seal, listed) {
        Some(oid) => {
            let inside: PathBuf = listed.as_path().components().skip(2).collect();
            dir.join(Seal::TABLESPACES).join(oid.to_string()).join(inside)
        }
        None => dir.join(Seal::DATA).join(listed.as_path()),
    }
}

/// The tablespace with a folder of its own in which a listed file lies; `None` for one of the data
/// directory, in which tablespaces may lie too.
pub(super) fn tablespace_of(seal: &Seal, listed: &MemberPath) -> Option<u32> {
    let mut parts = listed.as_bytes().split(|byte| *byte == b'/');
    let oid = parts.next().filter(|first| *first == b"pg_tblspc").and_then(|_| parts.next())?;
    seal.tablespaces.iter().map(|listed| listed.oid).find(|known| known.to_string().as_bytes() == oid)
}
