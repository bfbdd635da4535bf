//! A data directory that is filled from what the archives of a base backup hold, so that a server can
//! be started on it, and not before all of it is durable: `global/pg_control`, without which no
//! server starts, gets its name last.
//!
//! Nothing is written through or over what is there: every file is made anew, in directories that
//! were made here or were found empty, and a name that leads elsewhere is refused.

mod keep;
mod mark;
mod places;
mod scattered;
mod sync;
mod writers;

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

pub use keep::Kept;
pub use mark::{Found, cluster_at, server_at};
pub use places::{Owner, Places, TablespacePlace};
pub(crate) use places::{existing, overlap, resolved};
pub use sync::SyncMethod;

use crate::disk::{Disk, DiskError, Lock, Trouble, read_bounded};
use crate::image::{BadPath, Member, MemberKind, MemberPath, TarEvent};
use places::Made;
use writers::{NewFile, Writers};

/// Without it no server starts (`ReadControlFile`).
const CONTROL: &str = "global/pg_control";
/// What it is called until all else is durable.
const UNFINISHED: &str = "global/pg_control.unfinished";
/// Tells whose a directory is to be that is not finished.
const MARK: &str = "restore.unfinished";
const VERSION: &[u8] = b"PG_VERSION";
const WAL: &str = "pg_wal";
const TABLESPACES: &str = "pg_tblspc";

/// Bytes of a list that are passed on at a time.
const PIECE: usize = 64 << 10;
/// Bytes of names of directories; a database has one, and a path is short.
const MAX_DIRECTORIES: usize = 32 << 20;
/// More than a directory takes in memory besides its name.
const DIRECTORY: usize = 128;
/// Longer than any file that is read back here.
const MAX_CONTENT: u64 = 16 << 20;

/// A data directory could not be laid down.
#[derive(Debug, Error)]
pub enum DataDirError {
    /// There is something at a place that must be free.
    #[error("{} exists and is not an empty directory", .0.display())]
    NotEmpty(PathBuf),
    /// A link that is none of a tablespace.
    #[error("the backup holds a symbolic link named \"{0}\", which is none of a tablespace")]
    Link(String),
    /// A name that is ours while the directory is unfinished.
    #[error("the backup holds a file named \"{0}\", which no server makes")]
    Reserved(MemberPath),
    /// An archive of a tablespace that has no place.
    #[error("the backup holds tablespace {0}, which it did not announce")]
    Tablespace(u32),
    /// A limit of ours.
    #[error("the backup holds more directories than any cluster has")]
    TooManyDirectories,
    /// A file was laid down before under this name.
    #[error("the backup holds two files named \"{0}\"")]
    Twice(MemberPath),
    /// A name is too long.
    #[error(transparent)]
    Name(#[from] BadPath),
    /// A file is longer than any that a server writes under its name.
    #[error("{} is too long to be a configuration file", .0.display())]
    TooLong(PathBuf),
    /// What is to be rewritten is of another cluster.
    #[error("{} is not the data directory of this cluster, but {found}", path.display())]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// What it is.
        found: Found,
    },
    /// A server may run on it.
    #[error("{} is in use: its postmaster.pid names process {pid}, which runs", path.display())]
    Running {
        /// The directory.
        path: PathBuf,
        /// Its server's process.
        pid: i32,
    },
    /// It was told to.
    #[error("stopped")]
    Stopped,
    /// Without it there is no data directory.
    #[error("the backup has no \"{CONTROL}\"")]
    NoControl,
    /// It was used on after an error.
    #[error("the data directory was given up before")]
    GivenUp,
    /// A thread that writes cannot be started, or was lost.
    #[error("a thread that writes files: {0}")]
    Thread(io::Error),
    /// The file system did not do what it was asked.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// A data directory that is being filled. Until [`DataDir::finish`] has returned no server starts on
/// it. It stays where it is when this is dropped; [`DataDir::discard`] removes it.
#[derive(Debug)]
pub struct DataDir {
    disk: Arc<dyn Disk>,
    places: Places,
    made: Made,
    /// Directories that are there.
    dirs: HashMap<PathBuf, Dir>,
    /// About what those that the backup has take in memory.
    dirs_size: usize,
    /// Files that are there and as they are to be.
    kept: HashSet<PathBuf>,
    /// Held where something was there: nobody else is to rewrite it.
    lock: Option<Lock>,
    marked: bool,
    /// Files of archives, and ours.
    writers: Writers,
    done: u64,
    group: bool,
    control: bool,
}

/// A directory that is there.
#[derive(Clone, Copy, Debug, Default)]
struct Dir {
    /// The mode it is to get, where a member of the backup says so.
    mode: Option<u32>,
    /// Whether the backup has it.
    wanted: bool,
}

impl DataDir {
    /// Makes the places, or makes sure that they are empty. If that fails, what was made is removed.
    ///
    /// # Errors
    /// When a place is in use or cannot be made.
    pub fn make(disk: Arc<dyn Disk>, places: Places) -> Result<Self, DataDirError> {
        let made = Made::make(&*disk, &places)?;
        if let Some(wal) = &places.wal
            && let Err(e) = disk.symlink(wal, &places.data.join(WAL))
        {
            let _ = made.remove(&*disk);
            return Err(e.into());
        }
        Ok(Self::new(disk, places, made))
    }

    fn new(disk: Arc<dyn Disk>, places: Places, made: Made) -> Self {
        let wanted = Dir { mode: None, wanted: true };
        let dirs = places.all().map(|place| (place.to_owned(), wanted)).collect();
        let kept = HashSet::new();
        let writers = Writers::new(Arc::clone(&disk));
        let (done, group, control, marked) = (0, false, false, false);
        Self { disk, places, made, dirs, dirs_size: 0, kept, lock: None, marked, writers, done, group, control }
    }

    /// Takes the next of an archive: of a tablespace, or of the data directory. Bytes of files so far, which
    /// are being written; what goes wrong with that is told later, by [`DataDir::finish`] at the latest.
    ///
    /// # Errors
    /// When it, or something before it, cannot be laid down. The directory is to be discarded then.
    pub fn take(&mut self, tablespace: Option<u32>, event: &TarEvent<'_>) -> Result<u64, DataDirError> {
        match event {
            TarEvent::Member(member) => self.begin(tablespace, member)?,
            TarEvent::Data(data) => {
                self.writers.put(data)?;
                self.done += data.len() as u64;
            }
            TarEvent::MemberEnd => self.writers.end()?,
        }
        Ok(self.done)
    }

    fn begin(&mut self, tablespace: Option<u32>, member: &Member) -> Result<(), DataDirError> {
        let path = self.path_of(tablespace, &member.path)?;
        let mode = member.mode & 0o777;
        match &member.kind {
            MemberKind::Directory => self.directory(&path, Some(mode)),
            MemberKind::File { .. } => {
                if tablespace.is_none() && member.path.as_bytes() == VERSION {
                    // The data directory itself is no member; its files tell whether the group may read.
                    self.group = mode & 0o040 != 0;
                }
                if let Some(parent) = path.parent() {
                    self.directory(parent, None)?;
                }
                if self.dirs.get(&path).is_some_and(|dir| !dir.wanted) {
                    // A directory was there where the backup has a file.
                    self.disk.remove_tree(&path)?;
                    self.dirs.retain(|dir, _| !dir.starts_with(&path));
                }
                if self.kept.contains(&path) {
                    return Ok(self.disk.set_access(&path, mode, self.owner())?);
                }
                let member = Some(member.path.clone());
                self.writers.begin(NewFile { path, mode, owner: self.owner(), member })
            }
            // Servers send these instead of a tablespace_map if they are not asked for one.
            MemberKind::Symlink { .. } if tablespace.is_none() && self.is_tablespace_link(&member.path) => Ok(()),
            MemberKind::Symlink { .. } => Err(DataDirError::Link(member.path.to_string())),
        }
    }

    fn path_of(&mut self, tablespace: Option<u32>, path: &MemberPath) -> Result<PathBuf, DataDirError> {
        let data = &self.places.data;
        let Some(oid) = tablespace else {
            return match (path.as_str(), &self.places.wal) {
                (Some(UNFINISHED), _) => Err(DataDirError::Reserved(path.clone())),
                (Some(CONTROL), _) => {
                    self.control = true;
                    Ok(data.join(UNFINISHED))
                }
                (Some(MARK), _) => Err(DataDirError::Reserved(path.clone())),
                (_, Some(wal)) if path.as_path().starts_with(WAL) => {
                    let below = path.as_path().strip_prefix(WAL).unwrap_or(path.as_path());
                    Ok(if below.as_os_str().is_empty() { wal.clone() } else { wal.join(below) })
                }
                _ => Ok(data.join(path.as_path())),
            };
        };
        match &self.places.tablespace(oid).ok_or(DataDirError::Tablespace(oid))?.path {
            Some(place) => Ok(place.join(path.as_path())),
            None => Ok(data.join(path.in_tablespace(oid)?.as_path())),
        }
    }

    fn is_tablespace_link(&self, path: &MemberPath) -> bool {
        let named = |oid: u32| path.as_bytes() == format!("{TABLESPACES}/{oid}").as_bytes();
        self.places.tablespaces.iter().any(|tablespace| named(tablespace.oid))
    }

    /// Makes a directory, and those above it that are missing.
    fn directory(&mut self, path: &Path, mode: Option<u32>) -> Result<(), DataDirError> {
        let known = self.dirs.get_mut(path).map(|known| {
            let wanted = std::mem::replace(&mut known.wanted, true);
            known.mode = mode.or(known.mode);
            wanted
        });
        if known == Some(true) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent, None)?;
        }
        if known.is_none() {
            self.dirs_size += path.as_os_str().len() + DIRECTORY;
            if self.dirs_size > MAX_DIRECTORIES {
                return Err(DataDirError::TooManyDirectories);
            }
            // Durable with all else: a sync here would wait for what has been written so far.
            self.disk.add_dir(path, 0o700)?;
            self.dirs.insert(path.to_owned(), Dir { mode, wanted: true });
        }
        Ok(())
    }

    /// The directory of the WAL, made if it is not there yet, for whoever writes WAL while the
    /// archives come. What is put there must be durable, and have its owner, by itself.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn wal_dir(&mut self) -> Result<PathBuf, DataDirError> {
        let dir = self.places.wal.clone().unwrap_or_else(|| self.places.data.join(WAL));
        self.directory(&dir, None)?;
        Ok(dir)
    }

    /// Makes a file of the data directory with a content of ours.
    ///
    /// # Errors
    /// When there is one of that name, or it cannot be made.
    pub fn put(&mut self, name: &str, content: &[u8]) -> Result<(), DataDirError> {
        self.write(self.places.data.join(name), content)
    }

    /// The same of a content that may not fit in memory. Errors of the reader have a [`DiskError`] inside.
    ///
    /// # Errors
    /// As [`DataDir::put`], and when it cannot be read.
    pub fn put_all(&mut self, name: &str, content: &mut dyn Read) -> Result<(), DataDirError> {
        let path = self.places.data.join(name);
        let unread = |e: io::Error| e.downcast().unwrap_or_else(|e| DiskError::new("read what becomes", &path, e));
        let (mode, mut buffer) = (self.own_mode(), vec![0; PIECE]);
        self.writers.begin(NewFile { path: path.clone(), mode, owner: self.owner(), member: None })?;
        loop {
            let count = content.read(&mut buffer).map_err(unread)?;
            let piece = buffer.get(..count).unwrap_or_default();
            if piece.is_empty() {
                break;
            }
            self.writers.put(piece)?;
        }
        self.writers.end()?;
        self.writers.settle()
    }

    /// The same in a directory of it, which is made if it is missing.
    ///
    /// # Errors
    /// As [`DataDir::put`].
    pub fn put_in(&mut self, dir: &Path, name: &str, content: &[u8]) -> Result<(), DataDirError> {
        let inside = MemberPath::new(dir.as_os_str().as_encoded_bytes())?;
        let dir = self.path_of(None, &inside)?;
        self.directory(&dir, None)?;
        self.write(dir.join(name), content)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.places.data
    }

    /// What it lies on.
    pub fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    fn write(&mut self, path: PathBuf, content: &[u8]) -> Result<(), DataDirError> {
        let mode = self.own_mode();
        self.writers.begin(NewFile { path, mode, owner: self.owner(), member: None })?;
        self.writers.put(content)?;
        self.writers.end()?;
        self.writers.settle()
    }

    /// Of files that walhold makes itself.
    const fn own_mode(&self) -> u32 {
        if self.group { 0o640 } else { 0o600 }
    }

    /// The same in the place of one that may be there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn replace(&mut self, name: &str, content: &[u8]) -> Result<(), DataDirError> {
        self.remove(name)?;
        self.put(name, content)
    }

    /// Writes a file of the data directory anew with more at its end.
    ///
    /// # Errors
    /// When it is too long, or cannot be made.
    pub fn append(&mut self, name: &str, more: &[u8]) -> Result<(), DataDirError> {
        let mut content = self.content(name)?;
        content.extend_from_slice(more);
        self.replace(name, &content)
    }

    /// Removes a file of the data directory, if it is there.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&mut self, name: &str) -> Result<(), DataDirError> {
        self.writers.settle()?;
        match self.disk.remove(&self.places.data.join(name)) {
            Err(e) if e.trouble() != Trouble::Missing => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// A file of the data directory that has been laid down; nothing if it was not in the backup.
    ///
    /// # Errors
    /// When it is longer than a configuration can be, or cannot be read.
    pub fn content(&mut self, name: &str) -> Result<Vec<u8>, DataDirError> {
        self.writers.settle()?;
        let path = self.places.data.join(name);
        match read_bounded(&*self.disk, &path, MAX_CONTENT)? {
            None => Ok(Vec::new()),
            Some(Ok(content)) => Ok(content),
            Some(Err(_)) => Err(DataDirError::TooLong(path)),
        }
    }

    /// Makes the links in `pg_tblspc` to the tablespaces that lie outside, durable on return.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn link_tablespaces(&mut self) -> Result<(), DataDirError> {
        let links = self.places.data.join(TABLESPACES);
        let tablespaces = self.places.tablespaces.clone();
        let outside: Vec<_> = tablespaces.into_iter().filter_map(|t| Some((t.oid, t.path?))).collect();
        if outside.is_empty() {
            return Ok(());
        }
        self.directory(&links, None)?;
        for (oid, path) in outside {
            self.link(&path, &links.join(oid.to_string()))?;
        }
        let _names = self.disk.sync_dir(&links)?;
        let _above = self.disk.sync_parent(&links)?;
        Ok(())
    }

    /// One that leads elsewhere is replaced, so that at no moment there is none.
    fn link(&self, to: &Path, at: &Path) -> Result<(), DataDirError> {
        match self.disk.read_link(at)? {
            Some(found) if found == to => Ok(()),
            Some(_) => {
                let new = at.with_extension("new");
                self.disk.symlink(to, &new)?;
                Ok(self.disk.rename(&new, at)?)
            }
            None => Ok(self.disk.symlink(to, at)?),
        }
    }

    /// Gives everything its owner and mode, makes all of it durable, and then `pg_control` its name. A
    /// server can be started when this has returned, and not before.
    ///
    /// # Errors
    /// When any of it cannot be done. The directory is to be discarded then.
    pub fn finish(&mut self, method: SyncMethod) -> Result<(), DataDirError> {
        if !self.control {
            return Err(DataDirError::NoControl);
        }
        self.writers.settle()?;
        self.remove_unwanted()?;
        self.give_access()?;
        for place in self.places.all() {
            method.sync(&*self.disk, place)?;
        }
        self.remove_mark()?;
        let (from, to) = (self.places.data.join(UNFINISHED), self.places.data.join(CONTROL));
        self.disk.rename(&from, &to)?;
        let _last = self.disk.sync_parent(&to)?;
        Ok(())
    }

    /// Directories that were there and are not in the backup. All files in them are gone.
    fn remove_unwanted(&mut self) -> Result<(), DataDirError> {
        let mut unwanted: Vec<_> = self.dirs.extract_if(|_, dir| !dir.wanted).map(|(path, _)| path).collect();
        // Those below first.
        unwanted.sort_unstable_by(|a, b| b.cmp(a));
        for path in unwanted {
            self.disk.remove_tree(&path)?;
        }
        Ok(())
    }

    /// Modes and owners of directories come last: one that may not be written to could not be filled.
    fn give_access(&self) -> Result<(), DataDirError> {
        let usual = if self.group { 0o750 } else { 0o700 };
        let mut dirs: Vec<_> = self.dirs.iter().collect();
        // Those below first, for the same reason.
        dirs.sort_unstable_by(|a, b| b.0.cmp(a.0));
        for (path, dir) in dirs {
            self.disk.set_access(path, dir.mode.unwrap_or(usual), self.owner())?;
        }
        Ok(())
    }

    /// Removes what was made, and empties what was found empty; what was taken over stays as it is.
    ///
    /// # Errors
    /// When part of it is left. No server starts on that.
    pub fn discard(self) -> Result<(), DiskError> {
        // Nobody makes files any more while they are removed.
        drop(self.writers);
        // A power cut may bring back some of the names: not this one.
        let control = self.places.data.join(CONTROL);
        if self.disk.metadata(&control)?.is_some() {
            self.disk.remove(&control)?;
            let _gone = self.disk.sync_parent(&control)?;
        }
        self.made.remove(&*self.disk)
    }

    fn owner(&self) -> Option<(u32, u32)> {
        self.places.owner.map(|owner| (owner.user, owner.group))
    }
}

#[cfg(test)]
mod tests;
