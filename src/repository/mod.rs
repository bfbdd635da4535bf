//! One cluster's archive and backups in one directory, which is its own catalogue: what it holds
//! is what its names and documents say, and there is nothing else to keep in step.
//!
//! A backup's folder is made exclusively and locked while it is written. It is complete from the
//! moment `backup.json` is there, and only [`BackupFolder::seal`] can put it there: it takes the
//! archive's proof and its word that the WAL is durable (promise P3).

// What comes from outside never ends the program: no read beyond the end, no number that loses bits.
#![cfg_attr(
    not(test),
    deny(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unwrap_used
    )
)]

mod catalogue;
mod chain;
mod contents;
mod copied;
mod coverage;
mod documents;
mod drills;
mod expire;
mod folder;
mod heal;
mod holder;
mod retention;
mod sealed;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use thiserror::Error;

pub use catalogue::{BackupEntry, BackupState, NotUsable, Which};
pub use chain::{BrokenChain, chain, newest_base};
pub use contents::{BackupArchive, ContentError, Contents, ContentsRead, Layout, ReadError, Said, check_base};
pub use copied::TreeError;
pub(crate) use copied::{Found, is_real_dir, list_tree, roots};
pub use coverage::{Coverage, Gap, Island, Path as WalPath, Range, Stretch, Window, WindowEnd};
pub use documents::{
    BackupId, CapturedBy, ConfigFiles, Durations, Kind, Method, NeededWal, ParseBackupIdError, PathStep, Pending, Seal,
    SealedFile, SealedHistory, SealedManifest, SealedTablespace, SegmentRange, ServerVersion, Time,
};
pub use drills::{DrillDurations, DrillRecord};
pub use expire::{ExpireError, MarkError};
pub use folder::{BackupFolder, SealError, Sealed};
pub use heal::{HealError, Healing};
pub use holder::{Holder, Task};
pub use retention::{
    Decision, Keep, Note, PENDING_LIMIT, Plan as RetentionPlan, Policy, Remove, RemovedWal, Undecided, Verdict,
    plan as plan_retention,
};
pub use sealed::{Document, DocumentError, Sha256Sum, read, write};

use crate::archive::Archive;
use crate::disk::{Disk, DiskError, Lock, Trouble, read_bounded};
use crate::wal::SegmentSize;
use documents::Identity;

const IDENTITY: &str = "repository.json";
const LOCK: &str = "lock";
const WAL: &str = "wal";
const BACKUPS: &str = "backups";

/// Whoever asks who writes holds the lock for an instant; it is waited for so often.
const LOCK_TRIES: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// What a lock's holder says of itself is a line.
const MAX_NOTE: u64 = 4096;

/// A directory that holds one cluster's WAL and backups.
#[derive(Clone)]
pub struct Repository {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    system_id: u64,
    size: SegmentSize,
    modes: Modes,
}

/// Permission bits for what is made in a repository.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Modes {
    group: bool,
}

impl Modes {
    /// For the owner alone, or readable by the group too, as the server's `data_directory_mode`.
    pub const fn new(group: bool) -> Self {
        Self { group }
    }

    /// Of files.
    pub const fn file(self) -> u32 {
        if self.group { 0o640 } else { 0o600 }
    }

    /// Of directories.
    pub const fn dir(self) -> u32 {
        if self.group { 0o750 } else { 0o700 }
    }
}

/// A repository cannot be made, opened or used.
#[derive(Debug, Error)]
pub enum RepositoryError {
    /// There is nothing at that path.
    #[error("there is no repository at {}", .0.display())]
    NoSuchDirectory(PathBuf),
    /// The directory exists, and is no repository.
    #[error("{} is not a repository: it has no {IDENTITY}", .0.display())]
    NotARepository(PathBuf),
    /// It was one, or was about to be: its identity is missing and its parts are there.
    #[error("{} has lost its {IDENTITY}: it has a {part} folder that is in use", dir.display())]
    IdentityLost {
        /// The directory.
        dir: PathBuf,
        /// Which of its parts is not empty.
        part: &'static str,
    },
    /// It is to be made in a directory that holds something else.
    #[error("cannot make a repository in {}: it holds \"{found}\"", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// What was found in it.
        found: String,
    },
    /// It is to be made where there is one.
    #[error("{} is a repository already", .0.display())]
    Exists(PathBuf),
    /// It is another cluster's.
    #[error("{} is the repository of the cluster with system identifier {held}, and the server's is {server}", dir.display())]
    OtherCluster {
        /// The directory.
        dir: PathBuf,
        /// Its cluster.
        held: u64,
        /// The one it was to be.
        server: u64,
    },
    /// The cluster was made anew with other segments.
    #[error("{} is for WAL segments of {held} bytes, and the server's have {server}", dir.display())]
    OtherSegmentSize {
        /// The directory.
        dir: PathBuf,
        /// Bytes, as the repository was made.
        held: u64,
        /// Bytes, as the server says.
        server: u64,
    },
    /// Another process writes to it.
    #[error("another process is writing to the repository: {0}")]
    Locked(DiskError),
    /// A document in it is damaged, or newer than this program.
    #[error("{}: {source}", path.display())]
    Document {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: DocumentError,
    },
    /// The file system did not do what it was asked.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Repository {
    /// Makes a repository for a cluster, in a directory that is empty or does not exist; durable on
    /// return. With `group` the group may read it.
    ///
    /// # Errors
    /// When there is one, when the directory holds anything else, or when it cannot be written.
    pub fn create(
        dir: &Path,
        disk: Arc<dyn Disk>,
        system_id: u64,
        size: SegmentSize,
        group: bool,
        now: Timestamp,
    ) -> Result<Self, RepositoryError> {
        let modes = Modes::new(group);
        let taken = || disk.metadata(&dir.join(IDENTITY)).map(|found| found.is_some());
        if disk.metadata(dir)?.is_some() && !taken()? {
            // Not even a lock is left in a directory that is somebody else's.
            must_be_unused(dir, &*disk)?;
        }
        let _made = disk.make_dirs(dir, modes.dir())?;
        let _alone = disk.lock(&dir.join(LOCK), "the making of the repository").map_err(locked)?;
        if taken()? {
            return Err(RepositoryError::Exists(dir.to_owned()));
        }
        must_be_unused(dir, &*disk)?;
        let _wal = disk.make_dirs(&dir.join(WAL), modes.dir())?;
        let _backups = disk.make_dirs(&dir.join(BACKUPS), modes.dir())?;
        let created = Time(now);
        let segment_size = size.bytes();
        let identity = Identity { system_identifier: system_id, segment_size, group_readable: group, created };
        publish(&*disk, dir, IDENTITY, &identity, modes.file())?;
        Ok(Self { dir: dir.to_owned(), disk, system_id, size, modes })
    }

    /// Opens a repository, to read or to write; writes nothing.
    ///
    /// # Errors
    /// When it is none, is damaged or newer than this program, or cannot be read.
    pub fn open(dir: &Path, disk: Arc<dyn Disk>) -> Result<Self, RepositoryError> {
        let path = dir.join(IDENTITY);
        let Some(identity) = read_document::<Identity>(&*disk, &path)? else {
            return Err(why_not(dir, &*disk)?);
        };
        let wrong = || DocumentError::Content("the segment size is none that PostgreSQL has".to_owned());
        let size = SegmentSize::new(identity.segment_size).ok_or_else(wrong);
        let size = size.map_err(|source| RepositoryError::Document { path, source })?;
        let modes = Modes::new(identity.group_readable);
        Ok(Self { dir: dir.to_owned(), disk, system_id: identity.system_identifier, size, modes })
    }

    /// Opens the repository of that cluster, or makes it.
    ///
    /// # Errors
    /// As [`Repository::open`] and [`Repository::create`], and when it is of another cluster or
    /// segment size.
    pub fn open_or_create(
        dir: &Path,
        disk: Arc<dyn Disk>,
        system_id: u64,
        size: SegmentSize,
        group: bool,
        now: Timestamp,
    ) -> Result<Self, RepositoryError> {
        match Self::open(dir, Arc::clone(&disk)) {
            Ok(repository) => {
                repository.check(system_id, size)?;
                // Whoever made it may have been killed before its identity was durable.
                let _names = repository.disk.sync_dir(dir)?;
                Ok(repository)
            }
            Err(RepositoryError::NoSuchDirectory(_) | RepositoryError::NotARepository(_)) => {
                Self::create(dir, disk, system_id, size, group, now)
            }
            Err(e) => Err(e),
        }
    }

    /// Holds a server against the repository (promise P5).
    ///
    /// # Errors
    /// When it is another cluster, or one with other segments.
    pub fn check(&self, system_id: u64, size: SegmentSize) -> Result<(), RepositoryError> {
        let dir = || self.dir.clone();
        if self.system_id != system_id {
            return Err(RepositoryError::OtherCluster { dir: dir(), held: self.system_id, server: system_id });
        }
        if self.size != size {
            let (held, server) = (self.size.bytes(), size.bytes());
            return Err(RepositoryError::OtherSegmentSize { dir: dir(), held, server });
        }
        Ok(())
    }

    /// Removes a repository into which nothing has come yet, so that a command that was refused leaves
    /// nothing behind. One that holds anything is left as it is. The caller holds the lock, if anybody.
    ///
    /// # Errors
    /// When part of it cannot be removed.
    pub fn remove_if_unused(&self) -> Result<(), RepositoryError> {
        if part_in_use(&self.dir, &*self.disk)?.is_some() {
            return Ok(());
        }
        for name in [IDENTITY, LOCK] {
            remove_if_there(&*self.disk, &self.dir.join(name))?;
        }
        for part in [WAL, BACKUPS] {
            self.disk.remove_tree(&self.dir.join(part))?;
        }
        Ok(())
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where its files are.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// The cluster.
    pub const fn system_id(&self) -> u64 {
        self.system_id
    }

    /// The size of the cluster's segments.
    pub const fn segment_size(&self) -> SegmentSize {
        self.size
    }

    /// Permission bits for what is made in it.
    pub const fn modes(&self) -> Modes {
        self.modes
    }

    /// Its WAL.
    pub fn archive(&self) -> Archive {
        let disk = Arc::clone(&self.disk);
        Archive::new(self.dir.join(WAL), disk, self.size, Some(self.system_id), self.modes.file())
    }

    /// Keeps every other writer of WAL out for as long as the lock lives (promise P5). `who` is
    /// shown to those.
    ///
    /// # Errors
    /// [`RepositoryError::Locked`] with what the holder said of itself.
    pub fn lock(&self, who: &Holder) -> Result<Lock, RepositoryError> {
        let path = self.dir.join(LOCK);
        let mut tries = 1;
        loop {
            match self.disk.lock(&path, &who.to_string()) {
                Err(e) if e.trouble() == Trouble::Locked && tries < LOCK_TRIES => std::thread::sleep(LOCK_PAUSE),
                taken => return taken.map_err(locked),
            }
            tries += 1;
        }
    }

    /// What the process that writes WAL here says of itself; `None` if there is none. Writes nothing.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub fn writer(&self) -> Result<Option<String>, RepositoryError> {
        let path = self.dir.join(LOCK);
        match self.disk.lock_shared(&path) {
            Ok(_free) => return Ok(None),
            Err(e) if e.trouble() == Trouble::Missing => return Ok(None),
            Err(e) if e.trouble() != Trouble::Locked => return Err(e.into()),
            Err(_) => {}
        }
        let note = read_bounded(&*self.disk, &path, MAX_NOTE)?.and_then(Result::ok).unwrap_or_default();
        let note = String::from_utf8_lossy(&note).trim().to_owned();
        Ok(Some(if note.is_empty() { "another process".to_owned() } else { note }))
    }

    fn backups_dir(&self) -> PathBuf {
        self.dir.join(BACKUPS)
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository").field("dir", &self.dir).field("system_id", &self.system_id).finish_non_exhaustive()
    }
}

fn locked(e: DiskError) -> RepositoryError {
    if e.trouble() == Trouble::Locked { RepositoryError::Locked(e) } else { RepositoryError::Disk(e) }
}

/// An interrupted [`Repository::create`] may be gone on with; anything else is in the way.
fn must_be_unused(dir: &Path, disk: &dyn Disk) -> Result<(), RepositoryError> {
    let temporary = format!("{IDENTITY}.tmp");
    for entry in disk.list(dir)? {
        let name = entry.name.to_string_lossy().into_owned();
        match name.as_str() {
            WAL | BACKUPS => {}
            // The last is at the top of every freshly made file system.
            _ if name == LOCK || name == temporary || name == "lost+found" => {}
            _ => return Err(RepositoryError::NotEmpty { dir: dir.to_owned(), found: name }),
        }
    }
    match part_in_use(dir, disk)? {
        Some(part) => Err(RepositoryError::IdentityLost { dir: dir.to_owned(), part }),
        None => Ok(()),
    }
}

fn part_in_use(dir: &Path, disk: &dyn Disk) -> Result<Option<&'static str>, RepositoryError> {
    for part in [WAL, BACKUPS] {
        let path = dir.join(part);
        if disk.metadata(&path)?.is_some() && !disk.list(&path)?.is_empty() {
            return Ok(Some(part));
        }
    }
    Ok(None)
}

/// Why a directory without an identity is no repository.
fn why_not(dir: &Path, disk: &dyn Disk) -> Result<RepositoryError, RepositoryError> {
    if disk.metadata(dir)?.is_none() {
        return Ok(RepositoryError::NoSuchDirectory(dir.to_owned()));
    }
    let dir = dir.to_owned();
    Ok(match part_in_use(&dir, disk)? {
        Some(part) => RepositoryError::IdentityLost { dir, part },
        None => RepositoryError::NotARepository(dir),
    })
}

/// Puts a document into `dir` under its name, durable on return.
fn publish<T: Document>(
    disk: &dyn Disk,
    dir: &Path,
    name: &str,
    document: &T,
    mode: u32,
) -> Result<(), RepositoryError> {
    let (path, temporary) = (dir.join(name), dir.join(format!("{name}.tmp")));
    let bytes = write(document).map_err(|source| RepositoryError::Document { path: path.clone(), source })?;
    remove_if_there(disk, &temporary)?;
    let mut file = disk.create(&temporary, mode)?;
    file.write_at(0, &bytes)?;
    let _published = disk.publish(file, &temporary, &path)?;
    Ok(())
}

fn remove_if_there(disk: &dyn Disk, path: &Path) -> Result<(), DiskError> {
    match disk.remove(path) {
        Err(e) if e.trouble() != Trouble::Missing => Err(e),
        _ => Ok(()),
    }
}

/// `None` if there is no such file.
fn read_document<T: Document>(disk: &dyn Disk, path: &Path) -> Result<Option<T>, RepositoryError> {
    let wrong = |source| RepositoryError::Document { path: path.to_owned(), source };
    match read_bounded(disk, path, sealed::MAX_BYTES as u64)? {
        None => Ok(None),
        Some(Err(len)) => Err(wrong(DocumentError::TooLong(usize::try_from(len).unwrap_or(usize::MAX)))),
        Some(Ok(bytes)) => read(&bytes).map(Some).map_err(wrong),
    }
}

#[cfg(test)]
pub(crate) mod made;
#[cfg(test)]
pub(crate) mod tests;
