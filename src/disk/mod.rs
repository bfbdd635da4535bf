//! The only module that creates, syncs, renames, removes and locks.
//!
//! Everything walhold promises about durability rests on the order of these calls, so they stand
//! in one place, behind one port, and a simulated disk can take the place of the real one and be
//! cut off after every call. `clippy.toml` keeps the rest of the program from going round it.

mod buffer;
mod error;
mod real;
pub mod simulated;
mod unnamed;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub use buffer::AlignedBuf;
pub use error::{DiskError, Trouble};
pub use real::Real;
pub use simulated::Simulated;
pub use unnamed::Unnamed;

/// What direct I/O aligns memory, offsets and lengths to. Every file system that has direct I/O
/// accepts 4 KiB.
pub const BLOCK: usize = 4096;

/// Proof that a sync returned without an error: what had been written to that file, or entered in
/// that directory, before the call survives a power cut. Only this module can make one.
#[derive(Debug)]
#[must_use = "a sync is made for what it proves"]
pub struct Synced(());

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// To read, through the page cache.
    Read,
    /// To read what the device holds rather than what the page cache remembers, where the file
    /// system can. After a failed sync the two may differ.
    ReadDirect,
    /// To read and write in place, through the page cache.
    Write,
    /// To read and write in place, direct where the file system can.
    WriteDirect,
}

/// The kind of a directory entry; links are not followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A plain file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, socket, pipe or device.
    Other,
}

/// A name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The name alone, without the directory.
    pub name: OsString,
    /// What it is.
    pub kind: EntryKind,
}

/// What is known of a file by its path, links followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta {
    /// Size in bytes.
    pub len: u64,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Names that lead to it.
    pub links: u64,
    /// When its content last changed.
    pub modified: SystemTime,
}

/// An open file. Errors carry the path.
pub trait File: Send + fmt::Debug {
    /// What memory, offset and length of a transfer must be a multiple of: [`BLOCK`] for direct
    /// I/O, else 1.
    fn alignment(&self) -> usize;

    /// Reads until `into` is full or the file ends; the number of bytes read.
    ///
    /// # Errors
    /// When the device or the file system says so.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize, DiskError>;

    /// Hands all of `bytes` to the kernel. Nothing is durable before [`File::sync`].
    ///
    /// # Errors
    /// When it cannot; part of the bytes may have been written.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError>;

    /// Size in bytes.
    ///
    /// # Errors
    /// When the file system says so.
    fn size(&self) -> Result<u64, DiskError>;

    /// Makes data and size durable. A failed sync is final, for the kernel may then drop what it
    /// could not write and report success the next time: the file is consumed.
    ///
    /// # Errors
    /// When any of what was written may be lost.
    fn sync(self: Box<Self>) -> Result<(Box<dyn File>, Synced), DiskError>;
}

/// A directory tree in which things are made durable.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Makes a new, empty, buffered file. It fails if the name is taken. The entry is not durable
    /// until the directory is synced, by [`Disk::publish`] or [`Disk::sync_dir`].
    ///
    /// # Errors
    /// When the name exists or the file cannot be made.
    fn create(&self, path: &Path, mode: u32) -> Result<Box<dyn File>, DiskError>;

    /// Makes a new file of `len` bytes that read as zeros, open as [`Access::WriteDirect`]. It fails if
    /// the name is taken. Room is reserved, which is no delay. Neither size nor entry are durable before
    /// the first sync of each.
    ///
    /// # Errors
    /// When the name exists or there is no room.
    fn create_zeroed(&self, path: &Path, len: u64, mode: u32) -> Result<Box<dyn File>, DiskError>;

    /// Opens a file that exists.
    ///
    /// # Errors
    /// When it does not, or may not be opened so.
    fn open(&self, path: &Path, access: Access) -> Result<Box<dyn File>, DiskError>;

    /// Gives a file its final name in the same directory, replacing what bears it: syncs the file,
    /// renames it, syncs the directory.
    ///
    /// # Errors
    /// When any of the three fails; the new name may or may not be there then.
    fn publish(&self, file: Box<dyn File>, from: &Path, to: &Path) -> Result<Synced, DiskError> {
        let (_file, _data) = file.sync()?;
        self.rename(from, to)?;
        self.sync_parent(to)
    }

    /// Renames within a directory, replacing what bears the name; not durable until
    /// [`Disk::sync_dir`].
    ///
    /// # Errors
    /// When it cannot.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError>;

    /// Removes a file's name. Not durable until [`Disk::sync_dir`].
    ///
    /// # Errors
    /// When it cannot, also when there is no such file.
    fn remove(&self, path: &Path) -> Result<(), DiskError>;

    /// Removes a directory and all in it, following no link.
    ///
    /// # Errors
    /// When it cannot; part of it may be gone.
    fn remove_tree(&self, path: &Path) -> Result<(), DiskError>;

    /// Makes one directory. It fails if the name is taken. Not durable until [`Disk::sync_dir`] of the
    /// one it is in.
    ///
    /// # Errors
    /// When the name exists or the parent does not.
    fn add_dir(&self, path: &Path, mode: u32) -> Result<(), DiskError>;

    /// The same, durable on return.
    ///
    /// # Errors
    /// When the name exists or the parent does not, or it may be lost.
    fn make_dir(&self, path: &Path, mode: u32) -> Result<Synced, DiskError> {
        self.add_dir(path, mode)?;
        self.sync_parent(path)
    }

    /// Makes a directory and those above it that are missing, all durable on return.
    ///
    /// # Errors
    /// When one of them cannot be made or synced.
    fn make_dirs(&self, path: &Path, mode: u32) -> Result<Synced, DiskError> {
        match self.metadata(path)? {
            Some(Meta { kind: EntryKind::Directory, .. }) => {
                // Whoever made it may have been killed before its name was durable. That was not us
                // where we may not even open the directory above.
                return match self.sync_parent(path) {
                    Err(e) if e.trouble() != Trouble::Failed => Ok(Synced(())),
                    synced => synced,
                };
            }
            Some(_) => return Err(DiskError::new("make directory", path, io::ErrorKind::NotADirectory.into())),
            None => {}
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            let _above: Synced = self.make_dirs(parent, mode)?;
        }
        match self.make_dir(path, mode) {
            // Made by another process meanwhile.
            Err(e) if e.trouble() == Trouble::Exists => self.sync_parent(path),
            made => made,
        }
    }

    /// Makes a symbolic link at `path`; durable with its directory.
    ///
    /// # Errors
    /// When the name exists or links cannot be made here.
    fn symlink(&self, target: &Path, path: &Path) -> Result<(), DiskError>;

    /// Where a symbolic link leads, as it was made; `None` where there is none.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn read_link(&self, path: &Path) -> Result<Option<PathBuf>, DiskError>;

    /// Sets the permission bits, and the owner where one is given (user and group number).
    ///
    /// # Errors
    /// When we may not.
    fn set_access(&self, path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<(), DiskError>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// When any of them may be lost.
    fn sync_dir(&self, path: &Path) -> Result<Synced, DiskError>;

    /// Makes the name at the end of `path` durable, or its absence.
    ///
    /// # Errors
    /// As [`Disk::sync_dir`].
    fn sync_parent(&self, path: &Path) -> Result<Synced, DiskError> {
        match path.parent() {
            Some(dir) if dir.as_os_str().is_empty() => self.sync_dir(Path::new(".")),
            Some(dir) => self.sync_dir(dir),
            None => Ok(Synced(())),
        }
    }

    /// Makes all that was written on the file system of `path` durable, names included.
    ///
    /// # Errors
    /// When any of it may be lost.
    fn sync_filesystem(&self, path: &Path) -> Result<Synced, DiskError>;

    /// The names in a directory, in no order.
    ///
    /// # Errors
    /// When any part of the listing fails: a short list is never given for a whole one.
    fn list(&self, path: &Path) -> Result<Vec<Entry>, DiskError>;

    /// What is known of a file; `None` if nothing bears the name.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn metadata(&self, path: &Path) -> Result<Option<Meta>, DiskError>;

    /// Bytes an unprivileged user can still write to the file system of `path`.
    ///
    /// # Errors
    /// When the file system does not say.
    fn available(&self, path: &Path) -> Result<u64, DiskError>;

    /// Takes the exclusive advisory lock on a file, which is made if it is missing, and writes
    /// `note` into it for whoever finds it taken.
    ///
    /// # Errors
    /// [`Trouble::Locked`] with the holder's note if it is taken.
    fn lock(&self, path: &Path, note: &str) -> Result<Lock, DiskError>;

    /// Takes the lock on a file that exists for as long as it is only read: any number of readers,
    /// or one that took [`Disk::lock`]. Needs no right to write.
    ///
    /// # Errors
    /// [`Trouble::Locked`] with the holder's note if it is taken for writing.
    fn lock_shared(&self, path: &Path) -> Result<Lock, DiskError>;

    /// Takes the exclusive advisory lock on a directory itself, which is opened to be read only:
    /// nothing is made in it.
    ///
    /// # Errors
    /// [`Trouble::Locked`] if it is taken.
    fn lock_dir(&self, path: &Path) -> Result<Lock, DiskError>;

    /// Takes the same lock for as long as the directory is only read: any number of readers, or one
    /// that took [`Disk::lock_dir`].
    ///
    /// # Errors
    /// [`Trouble::Locked`] if one has taken that.
    fn lock_dir_shared(&self, path: &Path) -> Result<Lock, DiskError>;

    /// How many threads there are to be that do nothing but write and wait for the device. With none, which
    /// is for tests, calls come in the same order each time.
    fn writers(&self) -> usize {
        0
    }
}

/// A whole file; `None` if there is none, its length instead if that is above `max`.
pub(crate) fn read_bounded(disk: &dyn Disk, path: &Path, max: u64) -> Result<Option<Result<Vec<u8>, u64>>, DiskError> {
    let file = match disk.open(path, Access::Read) {
        Ok(file) => file,
        Err(e) if e.trouble() == Trouble::Missing => return Ok(None),
        Err(e) => return Err(e),
    };
    let len = file.size()?;
    let Some(size) = usize::try_from(len).ok().filter(|_| len <= max) else {
        return Ok(Some(Err(len)));
    };
    let mut bytes = vec![0; size];
    let read = file.read_at(0, &mut bytes)?;
    bytes.truncate(read);
    Ok(Some(Ok(bytes)))
}

/// An advisory lock, let go when dropped or when the process ends in any way.
#[derive(Debug)]
pub struct Lock {
    // Held for what is let go with it: an open file description, to which the lock belongs.
    #[allow(dead_code, reason = "the lock lives as long as the handle")]
    handle: Handle,
}

#[derive(Debug)]
#[allow(dead_code, reason = "the lock lives as long as the handle")]
enum Handle {
    File(std::fs::File),
    Simulated(simulated::HeldLock),
}

impl Lock {
    const fn of(file: std::fs::File) -> Self {
        Self { handle: Handle::File(file) }
    }

    const fn simulated(held: simulated::HeldLock) -> Self {
        Self { handle: Handle::Simulated(held) }
    }
}
