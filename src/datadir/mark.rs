//! Whose a data directory is, and whether a server runs on it.

use std::fmt;
use std::path::Path;

use super::{CONTROL, DataDir, DataDirError, MARK, UNFINISHED};
use crate::disk::{Access, Disk, DiskError, EntryKind, Trouble, read_bounded};
use crate::image::{ControlError, ControlFile};

/// What the mark says before the number.
const SAYS: &str = "data of the cluster with system identifier ";
/// Longer than any file that is looked into here.
const MAX_BYTES: u64 = 64 << 10;

/// What lies at a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Nothing, or an empty directory.
    Nothing,
    /// A data directory, finished or not, of the cluster with this system identifier.
    Cluster(u64),
    /// Something else.
    Other,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("empty"),
            Self::Cluster(id) => write!(f, "that of the cluster with system identifier {id}"),
            Self::Other => f.write_str("something else: it has no valid control file"),
        }
    }
}

/// Whose data directory lies there: as its control file says, or the mark of a restore that was cut
/// off.
///
/// # Errors
/// When that cannot be read.
pub fn cluster_at(disk: &dyn Disk, data: &Path) -> Result<Found, DiskError> {
    match disk.metadata(data)? {
        None => return Ok(Found::Nothing),
        Some(meta) if meta.kind != EntryKind::Directory => return Ok(Found::Other),
        Some(_) if disk.list(data)?.is_empty() => return Ok(Found::Nothing),
        Some(_) => {}
    }
    if let Some(id) = content(disk, &data.join(MARK))?.and_then(|content| marked(&content)) {
        return Ok(Found::Cluster(id));
    }
    for name in [CONTROL, UNFINISHED] {
        let id = content(disk, &data.join(name))?.and_then(|content| match ControlFile::parse(&content) {
            Ok(control) => Some(control.system_identifier),
            Err(ControlError::Unknown { system_identifier, .. }) => Some(system_identifier),
            Err(_) => None,
        });
        if let Some(id) = id
            && disk.metadata(&data.join("PG_VERSION"))?.is_some()
        {
            return Ok(Found::Cluster(id));
        }
    }
    Ok(Found::Other)
}

fn marked(content: &[u8]) -> Option<u64> {
    std::str::from_utf8(content).ok()?.strip_prefix(SAYS)?.strip_suffix('\n')?.parse().ok()
}

/// The process of the server that runs there, as its `postmaster.pid` says (`CreateLockFile`): one
/// that was left behind by a crash names a process that is no more. A server on another machine, or
/// in another container, cannot be seen.
///
/// # Errors
/// When that cannot be read.
pub fn server_at(disk: &dyn Disk, data: &Path) -> Result<Option<i32>, DiskError> {
    let Some(content) = content(disk, &data.join("postmaster.pid"))? else { return Ok(None) };
    let first = content.split(|b| *b == b'\n').next().unwrap_or_default();
    let number = std::str::from_utf8(first).ok().and_then(|text| text.trim().parse::<i32>().ok());
    // A server without a postmaster writes it negative.
    Ok(number.and_then(i32::checked_abs).filter(|pid| runs(*pid)))
}

fn runs(pid: i32) -> bool {
    let Some(pid) = rustix::process::Pid::from_raw(pid).filter(|pid| *pid != rustix::process::getpid()) else {
        return false;
    };
    // Other errors: it runs, and is not ours.
    rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

fn content(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<u8>>, DiskError> {
    match read_bounded(disk, path, MAX_BYTES) {
        Ok(found) => Ok(found.and_then(Result::ok)),
        // Of another kind, or below a file.
        Err(e) if matches!(e.trouble(), Trouble::Other) && disk.metadata(path).is_ok() => Ok(None),
        Err(e) => Err(e),
    }
}

impl DataDir {
    /// Notes durably whose data this will be, so that [`DataDir::reuse`] can go on if it is cut off.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn mark(&mut self, cluster: u64) -> Result<(), DataDirError> {
        let path = self.places.data.join(MARK);
        self.marked = true;
        let there = content(&*self.disk, &path)?;
        if there.as_deref().and_then(marked) == Some(cluster) {
            // There may be nothing else that tells it: it is not written anew.
            let (_file, _data) = self.disk.open(&path, Access::Read)?.sync()?;
            let _name = self.disk.sync_parent(&path)?;
            return Ok(());
        }
        if there.is_some() {
            self.disk.remove(&path)?;
        }
        let mut file = self.disk.create(&path, 0o600)?;
        file.write_at(0, format!("{SAYS}{cluster}\n").as_bytes())?;
        let (_file, _data) = file.sync()?;
        let _name = self.disk.sync_parent(&path)?;
        Ok(())
    }

    /// From here on the control file, which is still without its name, tells the cluster.
    pub(super) fn remove_mark(&mut self) -> Result<(), DataDirError> {
        if std::mem::take(&mut self.marked) {
            let path = self.places.data.join(MARK);
            self.disk.remove(&path)?;
            let _gone = self.disk.sync_parent(&path)?;
        }
        Ok(())
    }
}
