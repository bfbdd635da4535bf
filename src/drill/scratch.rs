//! The folder of one drill, and what the server finds in it.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::DrillError;
use super::config::PORT;
use crate::disk::{Disk, DiskError, Real, Trouble};
use crate::restore::{Owner, barrier};

/// `sun_path` of `struct sockaddr_un` has 108 bytes, one of them for its end.
const MAX_SOCKET: usize = 107;

/// Names that are tried: drills that were killed may have left theirs.
const NAMES: u32 = 100;

/// How often removing it is tried again, and after how long.
const REMOVALS: u32 = 5;
const AGAIN: Duration = Duration::from_millis(300);

/// A folder of our own. Dropped, it is removed unless it is to be kept.
pub(super) struct Scratch {
    dir: PathBuf,
    data: PathBuf,
    owner: Option<Owner>,
    keep: bool,
    removed: bool,
}

impl Scratch {
    /// Makes the folder in `parent`, open to nobody but the server's user. The data directory lies in it, unless
    /// the operator has filled one elsewhere.
    pub(super) fn new(
        parent: &Path,
        data: Option<&Path>,
        owner: Option<Owner>,
        keep: bool,
    ) -> Result<Self, DrillError> {
        let wrong = |source| DrillError::Path { path: parent.to_owned(), source };
        let parent = parent.canonicalize().map_err(wrong)?;
        for n in 0..NAMES {
            let suffix = if n == 0 { String::new() } else { format!("-{n}") };
            let dir = parent.join(format!("walhold-drill-{}{suffix}", std::process::id()));
            let socket = dir.join(format!("s/.s.PGSQL.{PORT}"));
            if socket.as_os_str().as_bytes().len() > MAX_SOCKET {
                return Err(DrillError::LongPath(socket));
            }
            match DISK.make_dir(&dir, 0o700) {
                Ok(_made) => {
                    let data = data.map_or_else(|| dir.join("data"), Path::to_owned);
                    let scratch = Self { dir, data, owner, keep, removed: false };
                    scratch.give(&scratch.dir, 0o700)?;
                    DISK.make_dir(&scratch.sockets(), 0o700).map(drop)?;
                    scratch.give(&scratch.sockets(), 0o700)?;
                    let barrier = owner.and_then(|owner| barrier(owner, &scratch.sockets(), 0o7));
                    return barrier.map_or(Ok(scratch), |path| Err(DrillError::Barrier(path)));
                }
                Err(e) if e.trouble() == Trouble::Exists => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(DrillError::Path { path: parent, source: std::io::ErrorKind::AlreadyExists.into() })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn data(&self) -> PathBuf {
        self.data.clone()
    }

    pub(super) fn sockets(&self) -> PathBuf {
        self.dir.join("s")
    }

    pub(super) fn tablespace(&self, oid: u32) -> PathBuf {
        self.dir.join(format!("tablespace-{oid}"))
    }

    /// A file that the server reads; one of that name is replaced.
    pub(super) fn write(&self, path: &Path, content: &[u8]) -> Result<(), DiskError> {
        match DISK.remove(path) {
            Err(e) if e.trouble() != Trouble::Missing => return Err(e),
            _ => {}
        }
        let mut file = DISK.create(path, 0o600)?;
        file.write_at(0, content)?;
        drop(file);
        self.give(path, 0o600)
    }

    fn give(&self, path: &Path, mode: u32) -> Result<(), DiskError> {
        DISK.set_access(path, mode, self.owner.map(|owner| (owner.user, owner.group)))
    }

    /// Removes it, if it is not to be kept; where it was left if so.
    pub(super) fn end(mut self) -> Result<Option<PathBuf>, DiskError> {
        self.removed = true;
        if self.keep {
            return Ok(Some(self.dir.clone()));
        }
        remove(&self.dir).map(|()| None)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.removed && !self.keep {
            // What went wrong before is what is told.
            let _ = remove(&self.dir);
        }
    }
}

/// A `restore_command` of a server that was ended may live for a moment longer, and write.
fn remove(dir: &Path) -> Result<(), DiskError> {
    for _ in 0..REMOVALS {
        match DISK.remove_tree(dir) {
            Err(e) if e.trouble() != Trouble::Missing => std::thread::sleep(AGAIN),
            _ => return Ok(()),
        }
    }
    DISK.remove_tree(dir)
}

/// What is thrown away again need not survive a power cut.
const DISK: Real = Real::without_syncs();
