//! What goes wrong with storage, and how bad it is.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use thiserror::Error;

/// The device failed or went away, or the file system was taken back to read-only because it did.
const GONE: [Errno; 5] = [Errno::IO, Errno::ROFS, Errno::NODEV, Errno::NXIO, Errno::STALE];

/// What a caller can do about an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// No room, or a quota is used up: it may pass.
    Full,
    /// The device failed, or a sync did. What was written is not to be trusted, by anyone in this
    /// process, until it has been read again.
    Failed,
    /// There is no such file.
    Missing,
    /// The name is taken.
    Exists,
    /// Another process holds the lock.
    Locked,
    /// Anything else: rights, kinds of files, limits.
    Other,
}

/// A call to the file system that did not succeed.
#[derive(Debug, Error)]
#[error("cannot {verb} {}: {source}", path.display())]
pub struct DiskError {
    verb: &'static str,
    path: PathBuf,
    trouble: Trouble,
    source: io::Error,
}

#[derive(Debug, Error)]
#[error("it is in use by {}", if note.is_empty() { "another process" } else { note })]
struct InUse {
    note: String,
}

impl DiskError {
    /// An error of the call that `verb` names ("open", "write") on `path`.
    pub fn new(verb: &'static str, path: &Path, source: io::Error) -> Self {
        let trouble = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Trouble::Full,
            io::ErrorKind::NotFound => Trouble::Missing,
            io::ErrorKind::AlreadyExists => Trouble::Exists,
            _ if GONE.iter().any(|errno| source.raw_os_error() == Some(errno.raw_os_error())) => Trouble::Failed,
            _ => Trouble::Other,
        };
        Self { verb, path: path.to_owned(), trouble, source }
    }

    /// The same with the class of trouble given: a sync that failed for want of room has failed.
    pub fn of(trouble: Trouble, verb: &'static str, path: &Path, source: io::Error) -> Self {
        Self { verb, path: path.to_owned(), trouble, source }
    }

    /// The same of a name that was there when this process began to use it: if it is missing now, the
    /// file system is gone.
    #[must_use]
    pub fn of_what_was_there(self) -> Self {
        match self.trouble {
            Trouble::Missing => Self { trouble: Trouble::Failed, ..self },
            _ => self,
        }
    }

    /// What can be done about it.
    pub const fn trouble(&self) -> Trouble {
        self.trouble
    }

    /// The file or directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A lock is taken, by one who has left this `note` in the file, or none.
    pub(super) fn locked(path: &Path, note: &str) -> Self {
        Self::of(Trouble::Locked, "lock", path, io::Error::other(InUse { note: note.trim().to_owned() }))
    }

    /// What the holder of a lock has left in its file.
    pub fn holder(&self) -> Option<&str> {
        let in_use: &InUse = self.source.get_ref()?.downcast_ref()?;
        Some(in_use.note.as_str()).filter(|note| !note.is_empty())
    }

    /// What the operating system said.
    pub const fn io(&self) -> &io::Error {
        &self.source
    }
}
