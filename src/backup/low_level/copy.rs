//! What a command has copied: tidied as the server would have sent it, hashed and synced once, and listed
//! in a manifest of our own.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use jiff::Timestamp;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::disk::{Access, AlignedBuf, Disk, DiskError, EntryKind, Trouble, read_bounded};
use crate::image::{
    BackupLabel, BadPath, ControlError, ControlFile, Hasher, Manifest, ManifestAlgorithm, ManifestFile, ManifestWriter,
    MemberPath, Misfit, TablespaceMap, WalRange, emptied, holds_data, is_left_out, is_of_database, relations_left_out,
};
use crate::repository::{Found, Modes, Seal, SealedFile, Sha256Sum, TreeError, is_real_dir, list_tree, roots};
use crate::wal::Pos;

/// How much is read at a time.
const CHUNK: usize = 1 << 20;

const LABEL: &str = "backup_label";
const MAP: &str = "tablespace_map";
const CONTROL: &str = "global/pg_control";
const VERSION: &str = "PG_VERSION";
const LINKS: &[u8] = b"pg_tblspc/";

/// Files of the copy that are looked into are no larger.
const MAX_KEPT: u64 = 64 << 10;

/// What the command has copied is no backup.
#[derive(Debug, Error)]
pub enum CopyError {
    /// The folder that was to be filled is none, or a link.
    #[error("\"{0}\" is no directory any more: the command must copy into it, and not put something in its place")]
    NoDirectory(String),
    /// A tablespace is missing.
    #[error("nothing was copied of tablespace {oid} at {}, into \"tablespaces/{oid}\"", location.display())]
    NoTablespace {
        /// Its object id.
        oid: u32,
        /// Where it lies on the server.
        location: PathBuf,
    },
    /// A file that every server has is missing.
    #[error("\"{0}\" was not copied")]
    Missing(&'static str),
    /// A link or special file where data must be.
    #[error("\"{0}\" is a link or special file: the copy must hold what it leads to")]
    Odd(MemberPath),
    /// A link's name was made a directory.
    #[error("\"{0}\" must not hold the tablespace, which belongs into \"tablespaces\"")]
    Doubled(MemberPath),
    /// It is of another server.
    #[error("the copy is of PostgreSQL {found}, and the server is {server}")]
    Version {
        /// In `PG_VERSION`.
        found: String,
        /// Its major version.
        server: u32,
    },
    /// It cannot be read.
    #[error("the copied pg_control cannot be used: {0}")]
    Control(#[from] ControlError),
    /// It is of another cluster or another time.
    #[error("the copy is not of this backup: {0}")]
    Misfit(#[from] Misfit),
    /// Something still writes into it.
    #[error("\"{0}\" has changed after the command had ended")]
    Changing(MemberPath),
    /// Above our limit.
    #[error("the copy has more files than a manifest can list")]
    TooMany,
    /// Without checksums nothing would say what was copied.
    #[error("a copy that no server made needs checksums in its manifest")]
    NoChecksums,
    /// A name is too long.
    #[error(transparent)]
    Path(#[from] BadPath),
    /// The copy cannot be listed.
    #[error("the copy cannot be listed: {0}")]
    Tree(TreeError),
    /// The copy cannot be read or synced.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The operator stopped it.
    #[error("stopped before the backup was complete")]
    Stopped,
}

impl From<TreeError> for CopyError {
    fn from(e: TreeError) -> Self {
        match e {
            TreeError::Disk(e) => Self::Disk(e),
            e => Self::Tree(e),
        }
    }
}

/// What is known of the backup besides its files.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) system_id: u64,
    pub(super) major: u32,
    pub(super) start: Pos,
    pub(super) stop: Pos,
    pub(super) label: BackupLabel,
    /// The label's bytes, as the server gave them.
    pub(super) label_bytes: Vec<u8>,
    pub(super) map: TablespaceMap,
    /// The map's bytes, as the server gave them.
    pub(super) map_bytes: Vec<u8>,
    /// The `pg_control` that counts; `None` for the copied one.
    pub(super) control: Option<Vec<u8>>,
}

/// The copy, in the folder of its backup.
pub(super) struct Copy {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) modes: Modes,
    pub(super) algorithm: ManifestAlgorithm,
    pub(super) stop: CancellationToken,
    /// Bytes that have been hashed, for whoever watches.
    pub(super) hashed: Arc<AtomicU64>,
}

/// It is a backup now.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) manifest: SealedFile,
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// What was removed and is not always, for the operator to know.
    pub(super) removed: Vec<String>,
}

/// Directories to be filled, empty: of the data directory, and of each tablespace.
pub(super) fn make_places(disk: &dyn Disk, dir: &Path, oids: &[u32], mode: u32) -> Result<(), DiskError> {
    let _made = disk.make_dir(&dir.join(Seal::DATA), mode)?;
    let spaces = dir.join(Seal::TABLESPACES);
    let _made = disk.make_dir(&spaces, mode)?;
    for oid in oids {
        let _made = disk.make_dir(&spaces.join(oid.to_string()), mode)?;
    }
    Ok(())
}

impl Copy {
    /// Makes a backup of it. Everything is durable on return.
    pub(super) fn take(&self, known: &Known) -> Result<Taken, CopyError> {
        if self.algorithm == ManifestAlgorithm::None {
            return Err(CopyError::NoChecksums);
        }
        let mut removed = Vec::new();
        self.keep_listed(known, &mut removed)?;
        let roots = roots(&self.dir, known.map.0.iter().map(|space| space.oid));
        for (tablespace, root) in &roots {
            self.tidy(*tablespace, root, known, &mut removed)?;
        }
        self.complete(known)?;
        let listed = self.list(&roots)?;
        let (manifest, seen) = self.hash(known, &listed)?;
        self.sync_dirs(&roots, &listed)?;
        // Whatever the command has left behind may still be at work.
        self.must_be_unchanged(&seen)?;
        self.must_be_the_same(&listed, &self.list(&roots)?)?;
        let (files, bytes) = manifest.listed();
        let manifest =
            manifest.finish(&[WalRange { tli: known.stop.tli(), start: known.start.lsn(), end: known.stop.lsn() }]);
        let manifest = store(&*self.disk, &self.dir, Seal::MANIFEST, &manifest, self.modes.file())?;
        Ok(Taken { manifest, files, bytes, removed })
    }

    /// Every tablespace that the map names must be there; others were made after the backup had begun, and
    /// recovery makes them.
    fn keep_listed(&self, known: &Known, removed: &mut Vec<String>) -> Result<(), CopyError> {
        let spaces = self.dir.join(Seal::TABLESPACES);
        if !is_real_dir(&*self.disk, &spaces)? {
            return Err(CopyError::NoDirectory(Seal::TABLESPACES.to_owned()));
        }
        for (tablespace, root) in roots(&self.dir, known.map.0.iter().map(|space| space.oid)) {
            if !is_real_dir(&*self.disk, &root)? {
                let name = root.strip_prefix(&self.dir).unwrap_or(&root).display().to_string();
                let entry = known.map.0.iter().find(|entry| Some(entry.oid) == tablespace);
                return Err(match entry {
                    Some(entry) if self.disk.metadata(&root)?.is_none() => {
                        CopyError::NoTablespace { oid: entry.oid, location: entry.location.clone() }
                    }
                    _ => CopyError::NoDirectory(name),
                });
            }
        }
        for entry in self.disk.list(&spaces)? {
            let listed = known.map.0.iter().any(|space| entry.name == OsStr::new(&space.oid.to_string()));
            if !listed {
                self.remove(&spaces.join(&entry.name), entry.kind)?;
                removed.push(format!("{}/{}", Seal::TABLESPACES, entry.name.display()));
            }
        }
        Ok(())
    }

    /// Removes what a server leaves out.
    fn tidy(
        &self,
        tablespace: Option<u32>,
        root: &Path,
        known: &Known,
        removed: &mut Vec<String>,
    ) -> Result<(), CopyError> {
        let found = list_tree(&*self.disk, root)?;
        let relations = relations(&found, tablespace.is_some());
        let mut gone: HashSet<&[u8]> = HashSet::new();
        for Found { path, kind } in &found {
            if path.ancestors().any(|above| gone.contains(above)) {
                continue;
            }
            let at = root.join(path.as_path());
            let empty = tablespace.is_none() && emptied().any(|name| name.as_bytes() == path.as_bytes());
            let link = tablespace.is_none() && link_of(path, known);
            if link && *kind == EntryKind::Directory {
                return Err(CopyError::Doubled(path.clone()));
            }
            let odd = *kind == EntryKind::Other;
            if odd && !empty && !link {
                if tablespace.is_some() || holds_data(path) || path.as_bytes() == VERSION.as_bytes() {
                    return Err(CopyError::Odd(path.clone()));
                }
                removed.push(path.to_string());
            }
            if empty || odd || is_left_out(path) || relations.contains(path) {
                self.remove(&at, *kind)?;
                gone.insert(path.as_bytes());
            }
        }
        if let Some(oid) = tablespace
            && !found.iter().any(|found| found.path.as_bytes().starts_with(b"PG_"))
        {
            let location = known.map.location(oid).cloned().unwrap_or_default();
            return Err(CopyError::NoTablespace { oid, location });
        }
        Ok(())
    }

    fn remove(&self, path: &Path, kind: EntryKind) -> Result<(), DiskError> {
        match kind {
            EntryKind::Directory => self.disk.remove_tree(path),
            EntryKind::File | EntryKind::Other => self.disk.remove(path),
        }
    }

    /// Puts in what the server said, which counts more than what was copied, and looks whether the rest is
    /// of this backup.
    fn complete(&self, known: &Known) -> Result<(), CopyError> {
        let data = self.dir.join(Seal::DATA);
        for name in emptied() {
            let _made = self.disk.make_dir(&data.join(name), self.modes.dir())?;
        }
        let (label, map) = (data.join(LABEL), data.join(MAP));
        create(&*self.disk, &label, &known.label_bytes, self.modes.file())?;
        create(&*self.disk, &map, &known.map_bytes, self.modes.file())?;
        let version = self.content(VERSION)?;
        let found = String::from_utf8_lossy(&version).trim().to_owned();
        if found != known.major.to_string() {
            return Err(CopyError::Version { found, server: known.major });
        }
        let copied = ControlFile::parse(&self.content(CONTROL)?)?;
        if copied.system_identifier != known.system_id {
            return Err(Misfit::Cluster { found: copied.system_identifier, wanted: known.system_id }.into());
        }
        let control = match &known.control {
            None => copied,
            Some(last) => {
                // Anew: the copied one may be a link to a file of an earlier copy.
                let path = data.join(CONTROL);
                self.disk.remove(&path)?;
                create(&*self.disk, &path, last, self.modes.file())?;
                ControlFile::parse(last)?
            }
        };
        control.fits(&known.label, known.system_id, known.stop)?;
        Ok(())
    }

    fn content(&self, name: &'static str) -> Result<Vec<u8>, CopyError> {
        let read = read_bounded(&*self.disk, &self.dir.join(Seal::DATA).join(name), MAX_KEPT)?;
        read.and_then(Result::ok).ok_or(CopyError::Missing(name))
    }

    /// All there is now, by the name that a manifest has for it.
    fn list(&self, roots: &[(Option<u32>, PathBuf)]) -> Result<BTreeMap<MemberPath, (PathBuf, EntryKind)>, CopyError> {
        let mut all = BTreeMap::new();
        for (tablespace, root) in roots {
            for Found { path, kind } in list_tree(&*self.disk, root)? {
                let at = root.join(path.as_path());
                let path = tablespace.map_or_else(|| Ok(path.clone()), |oid| path.in_tablespace(oid))?;
                all.insert(path, (at, kind));
            }
        }
        Ok(all)
    }

    /// Syncs and reads every file. With the manifest, what each looked like before it was read.
    #[allow(clippy::type_complexity, reason = "used twice, both here")]
    fn hash<'a>(
        &self,
        known: &Known,
        listed: &'a BTreeMap<MemberPath, (PathBuf, EntryKind)>,
    ) -> Result<(ManifestWriter, Vec<(&'a MemberPath, &'a Path, (u64, SystemTime))>), CopyError> {
        let mut manifest = ManifestWriter::new(known.major, known.system_id);
        let mut seen = Vec::new();
        let mut buffer = AlignedBuf::zeroed(CHUNK);
        for (path, (at, kind)) in listed.iter().filter(|(_, (_, kind))| *kind != EntryKind::Directory) {
            if *kind == EntryKind::Other {
                return Err(CopyError::Changing(path.clone()));
            }
            let before = self.looks(path, at)?;
            // What was lost on its way to the disk is told to whoever syncs next.
            let (_file, _data) = self.disk.open(at, Access::Read)?.sync()?;
            let mut hasher = Hasher::new(self.algorithm);
            let size = self.read(at, &mut buffer, &mut hasher)?;
            if size != before.0 {
                return Err(CopyError::Changing(path.clone()));
            }
            if manifest.size() > Manifest::MAX_BYTES / 2 {
                return Err(CopyError::TooMany);
            }
            let time = Timestamp::try_from(before.1).unwrap_or(Timestamp::UNIX_EPOCH);
            manifest.add(&ManifestFile { path: path.clone(), size, checksum: hasher.finish() }, time);
            seen.push((path, at.as_path(), before));
        }
        Ok((manifest, seen))
    }

    fn read(&self, at: &Path, buffer: &mut AlignedBuf, hasher: &mut Hasher) -> Result<u64, CopyError> {
        let file = self.disk.open(at, Access::ReadDirect)?;
        let mut size = 0;
        loop {
            if self.stop.is_cancelled() {
                return Err(CopyError::Stopped);
            }
            let n = file.read_at(size, buffer)?;
            hasher.update(buffer.get(..n).unwrap_or_default());
            size += n as u64;
            self.hashed.fetch_add(n as u64, Ordering::Relaxed);
            // A read that did not fill the buffer met the end; direct I/O takes no offset there.
            if n < CHUNK {
                return Ok(size);
            }
        }
    }

    fn looks(&self, path: &MemberPath, at: &Path) -> Result<(u64, SystemTime), CopyError> {
        let meta = self.disk.metadata(at)?.ok_or_else(|| CopyError::Changing(path.clone()))?;
        Ok((meta.len, meta.modified))
    }

    fn sync_dirs(
        &self,
        roots: &[(Option<u32>, PathBuf)],
        listed: &BTreeMap<MemberPath, (PathBuf, EntryKind)>,
    ) -> Result<(), CopyError> {
        let dirs = listed.values().filter(|(_, kind)| *kind == EntryKind::Directory).map(|(at, _)| at);
        let spaces = self.dir.join(Seal::TABLESPACES);
        for dir in dirs.chain(roots.iter().map(|(_, root)| root)).chain([&spaces, &self.dir]) {
            let _names = self.disk.sync_dir(dir)?;
        }
        Ok(())
    }

    fn must_be_unchanged(&self, seen: &[(&MemberPath, &Path, (u64, SystemTime))]) -> Result<(), CopyError> {
        for (path, at, before) in seen {
            if self.looks(path, at)? != *before {
                return Err(CopyError::Changing((*path).clone()));
            }
        }
        Ok(())
    }

    fn must_be_the_same(
        &self,
        before: &BTreeMap<MemberPath, (PathBuf, EntryKind)>,
        after: &BTreeMap<MemberPath, (PathBuf, EntryKind)>,
    ) -> Result<(), CopyError> {
        let other = before.iter().find(|(path, found)| after.get(*path) != Some(*found));
        let other = other.or_else(|| after.iter().find(|(path, _)| !before.contains_key(*path)));
        other.map_or(Ok(()), |(path, _)| Err(CopyError::Changing(path.clone())))
    }
}

/// Whether a path of the data directory is that of the link to a tablespace with a folder of its own.
fn link_of(path: &MemberPath, known: &Known) -> bool {
    let oid = path.as_bytes().strip_prefix(LINKS);
    oid.is_some_and(|oid| known.map.0.iter().any(|space| space.oid.to_string().as_bytes() == oid))
}

/// The files of temporary and unlogged relations.
fn relations(found: &[Found], in_tablespace: bool) -> HashSet<MemberPath> {
    let mut out = HashSet::new();
    let mut databases: BTreeMap<MemberPath, Vec<&MemberPath>> = BTreeMap::new();
    for Found { path, kind } in found {
        let dir = path.ancestors().last().and_then(|dir| MemberPath::new(dir).ok());
        if let Some(dir) = dir.filter(|dir| *kind == EntryKind::File && is_of_database(dir, in_tablespace)) {
            databases.entry(dir).or_default().push(path);
        }
    }
    for files in databases.into_values() {
        let names: Vec<&[u8]> = files.iter().map(|path| path.file_name()).collect();
        let gone = relations_left_out(&names);
        out.extend(files.into_iter().filter(|path| gone.contains(path.file_name())).cloned());
    }
    out
}

/// Makes a file, durable but for its name.
fn create(disk: &dyn Disk, path: &Path, content: &[u8], mode: u32) -> Result<(), DiskError> {
    let mut file = match disk.create(path, mode) {
        Err(e) if e.trouble() == Trouble::Exists => {
            disk.remove(path)?;
            disk.create(path, mode)?
        }
        file => file?,
    };
    file.write_at(0, content)?;
    let (_file, _data) = file.sync()?;
    Ok(())
}

/// Makes a file of the backup's folder, durable but for its name.
pub(super) fn store(
    disk: &dyn Disk,
    dir: &Path,
    name: &str,
    content: &[u8],
    mode: u32,
) -> Result<SealedFile, DiskError> {
    create(disk, &dir.join(name), content, mode)?;
    let (size, sha256) = (content.len() as u64, Sha256Sum::of(content));
    Ok(SealedFile { name: name.to_owned(), size, sha256, unpacked: None })
}

#[cfg(test)]
mod tests;
