//! The operating system's file systems, and the same without syncs.

#![allow(clippy::disallowed_methods, reason = "the one place for them")]

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags};

use super::{Access, BLOCK, Disk, DiskError, Entry, EntryKind, File, Lock, Meta, Synced, Trouble};

/// A device is busy with two large writes at a time, and a file is made and given away while another one is written.
const WRITERS: usize = 2;

/// Files and directories of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Real {
    syncs: Syncs,
}

impl Real {
    /// Every sync waits for the device.
    pub const fn new() -> Self {
        Self { syncs: Syncs::Kept }
    }

    /// No call waits for the device, and a power cut may lose anything. Only for a plain folder,
    /// when the operator says `--no-sync`, and for what is thrown away again; a repository is never
    /// written with it.
    pub const fn without_syncs() -> Self {
        Self { syncs: Syncs::Skipped }
    }

    /// A new file for a child process to write its output to.
    ///
    /// # Errors
    /// When the name exists or the file cannot be made.
    pub fn create_output(path: &Path) -> Result<fs::File, DiskError> {
        let mut options = OpenOptions::new();
        options.append(true).create_new(true).mode(0o600).open(path).map_err(wrong("create", path))
    }
}

impl Default for Real {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Syncs {
    Kept,
    Skipped,
}

#[derive(Debug)]
struct RealFile {
    file: fs::File,
    path: PathBuf,
    direct: bool,
    syncs: Syncs,
}

impl File for RealFile {
    fn alignment(&self) -> usize {
        if self.direct { BLOCK } else { 1 }
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize, DiskError> {
        let mut done = 0;
        while done < into.len() {
            match self.file.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                // A direct read that ends off a block boundary has met the end of the file.
                Ok(n) if self.direct && !n.is_multiple_of(BLOCK) => return Ok(done + n),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(DiskError::new("read", &self.path, e)),
            }
        }
        Ok(done)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.file.write_all_at(bytes, offset).map_err(|e| DiskError::new("write", &self.path, e))
    }

    fn size(&self) -> Result<u64, DiskError> {
        self.file.metadata().map(|m| m.len()).map_err(|e| DiskError::new("examine", &self.path, e))
    }

    fn sync(self: Box<Self>) -> Result<(Box<dyn File>, Synced), DiskError> {
        if self.syncs == Syncs::Kept {
            self.file.sync_data().map_err(|e| failed("sync", &self.path, e))?;
        }
        Ok((self, Synced(())))
    }
}

fn failed(verb: &'static str, path: &Path, source: io::Error) -> DiskError {
    DiskError::of(Trouble::Failed, verb, path, source)
}

fn wrong(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    move |e| DiskError::new(verb, path, e)
}

fn kind_of(file_type: fs::FileType) -> EntryKind {
    if file_type.is_file() {
        EntryKind::File
    } else if file_type.is_dir() {
        EntryKind::Directory
    } else {
        EntryKind::Other
    }
}

/// Opens with direct I/O, or without where the file system refuses it (tmpfs, some network ones).
fn open_direct(options: &mut OpenOptions, path: &Path) -> io::Result<(fs::File, bool)> {
    let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
    match options.clone().custom_flags(direct).open(path) {
        Ok(file) => Ok((file, true)),
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
            tracing::debug!(path = %path.display(), "no direct I/O on this file system; using the page cache");
            // A refusal may come after O_CREAT has made the file.
            options.create_new(false).open(path).map(|file| (file, false))
        }
        Err(e) => Err(e),
    }
}

/// Gives a new file the bits of its mode that this process's umask has taken away: who may read it is
/// for the caller to say. Where a file system has no such bits the file is what it is.
fn widen(file: &fs::File, mode: u32) {
    if file.metadata().is_ok_and(|meta| mode & !meta.permissions().mode() != 0) {
        let _ = file.set_permissions(fs::Permissions::from_mode(mode));
    }
}

fn reserve(file: &fs::File, len: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
        Ok(()) => Ok(()),
        // The file is sparse then, and a full disk shows when a block is written.
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(len),
        Err(e) => Err(e.into()),
    }
}

fn lock_file(path: &Path, options: &OpenOptions, shared: bool) -> Result<fs::File, DiskError> {
    let file = options.open(path).map_err(wrong("open", path))?;
    // In full, for std has methods of the same names.
    let taken = if shared { fs2::FileExt::try_lock_shared(&file) } else { fs2::FileExt::try_lock_exclusive(&file) };
    match taken {
        Ok(()) => Ok(file),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            let mut note = String::new();
            let _ = Read::take(&file, 200).read_to_string(&mut note);
            Err(DiskError::locked(path, &note))
        }
        Err(e) => Err(DiskError::new("lock", path, e)),
    }
}

fn lock_directory(path: &Path, shared: bool) -> Result<Lock, DiskError> {
    let directory = i32::try_from(OFlags::DIRECTORY.bits()).unwrap_or(0);
    lock_file(path, OpenOptions::new().read(true).custom_flags(directory), shared).map(Lock::of)
}

impl Syncs {
    fn sync(self, file: &fs::File, path: &Path) -> Result<Synced, DiskError> {
        if self == Self::Kept {
            file.sync_all().map_err(|e| failed("sync", path, e))?;
        }
        Ok(Synced(()))
    }

    fn sync_dir(self, path: &Path) -> Result<Synced, DiskError> {
        let dir = fs::File::open(path).map_err(wrong("open", path))?;
        self.sync(&dir, path)
    }

    fn create_zeroed(self, path: &Path, len: u64, mode: u32) -> Result<Box<dyn File>, DiskError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(mode);
        let (file, direct) = open_direct(&mut options, path).map_err(wrong("create", path))?;
        widen(&file, mode);
        if let Err(e) = reserve(&file, len) {
            // A file of the wrong size is worse than none: the next start would find it.
            let _ = fs::remove_file(path);
            return Err(DiskError::new("reserve room for", path, e));
        }
        Ok(Box::new(RealFile { file, path: path.to_owned(), direct, syncs: self }))
    }

    fn open(self, path: &Path, access: Access) -> Result<Box<dyn File>, DiskError> {
        let mut options = OpenOptions::new();
        options.read(true).write(matches!(access, Access::Write | Access::WriteDirect));
        let (file, direct) = match access {
            Access::Read | Access::Write => options.open(path).map(|file| (file, false)),
            Access::ReadDirect | Access::WriteDirect => open_direct(&mut options, path),
        }
        .map_err(wrong("open", path))?;
        Ok(Box::new(RealFile { file, path: path.to_owned(), direct, syncs: self }))
    }
}

impl Disk for Real {
    fn create(&self, path: &Path, mode: u32) -> Result<Box<dyn File>, DiskError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)
            .map_err(wrong("create", path))?;
        widen(&file, mode);
        Ok(Box::new(RealFile { file, path: path.to_owned(), direct: false, syncs: self.syncs }))
    }

    fn create_zeroed(&self, path: &Path, len: u64, mode: u32) -> Result<Box<dyn File>, DiskError> {
        self.syncs.create_zeroed(path, len, mode)
    }

    fn open(&self, path: &Path, access: Access) -> Result<Box<dyn File>, DiskError> {
        self.syncs.open(path, access)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        fs::rename(from, to).map_err(wrong("rename", from))
    }

    fn remove(&self, path: &Path) -> Result<(), DiskError> {
        fs::remove_file(path).map_err(wrong("remove", path))
    }

    fn remove_tree(&self, path: &Path) -> Result<(), DiskError> {
        fs::remove_dir_all(path).map_err(wrong("remove", path))
    }

    fn add_dir(&self, path: &Path, mode: u32) -> Result<(), DiskError> {
        fs::DirBuilder::new().mode(mode).create(path).map_err(wrong("make directory", path))
    }

    fn symlink(&self, target: &Path, path: &Path) -> Result<(), DiskError> {
        std::os::unix::fs::symlink(target, path).map_err(wrong("make link", path))
    }

    fn read_link(&self, path: &Path) -> Result<Option<PathBuf>, DiskError> {
        match fs::read_link(path) {
            Ok(target) => Ok(Some(target)),
            // EINVAL: it is no link.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => Ok(None),
            Err(e) => Err(DiskError::new("read the link", path, e)),
        }
    }

    fn set_access(&self, path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<(), DiskError> {
        if let Some((user, group)) = owner {
            std::os::unix::fs::lchown(path, Some(user), Some(group)).map_err(wrong("give away", path))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(wrong("set the mode of", path))
    }

    fn sync_dir(&self, path: &Path) -> Result<Synced, DiskError> {
        self.syncs.sync_dir(path)
    }

    fn sync_filesystem(&self, path: &Path) -> Result<Synced, DiskError> {
        if self.syncs == Syncs::Kept {
            let dir = fs::File::open(path).map_err(wrong("open", path))?;
            rustix::fs::syncfs(dir).map_err(|e| failed("sync the file system of", path, e.into()))?;
        }
        Ok(Synced(()))
    }

    fn list(&self, path: &Path) -> Result<Vec<Entry>, DiskError> {
        let entry = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            Ok(Entry { kind: kind_of(entry.file_type()?), name: entry.file_name() })
        };
        fs::read_dir(path).and_then(|entries| entries.map(entry).collect()).map_err(wrong("list", path))
    }

    fn metadata(&self, path: &Path) -> Result<Option<Meta>, DiskError> {
        match fs::metadata(path) {
            Ok(meta) => {
                let mode = meta.permissions().mode() & 0o7777;
                let modified = meta.modified().map_err(wrong("examine", path))?;
                let (len, kind, links) = (meta.len(), kind_of(meta.file_type()), meta.nlink());
                Ok(Some(Meta { len, kind, mode, links, modified }))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(DiskError::new("examine", path, e)),
        }
    }

    fn available(&self, path: &Path) -> Result<u64, DiskError> {
        fs2::available_space(path).map_err(wrong("measure the room at", path))
    }

    fn lock(&self, path: &Path, note: &str) -> Result<Lock, DiskError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o666);
        let mut file = lock_file(path, &options, false)?;
        // For whoever finds the lock taken; nothing rests on it.
        let _ = file.set_len(0).and_then(|()| file.write_all(note.as_bytes()));
        Ok(Lock::of(file))
    }

    fn lock_shared(&self, path: &Path) -> Result<Lock, DiskError> {
        let file = lock_file(path, OpenOptions::new().read(true), true)?;
        Ok(Lock::of(file))
    }

    fn lock_dir(&self, path: &Path) -> Result<Lock, DiskError> {
        lock_directory(path, false)
    }

    fn lock_dir_shared(&self, path: &Path) -> Result<Lock, DiskError> {
        lock_directory(path, true)
    }

    fn writers(&self) -> usize {
        WRITERS
    }
}

#[cfg(test)]
mod tests {
    use super::super::AlignedBuf;
    use super::*;

    #[test]
    fn a_new_file_has_its_mode_whatever_the_umask() {
        let dir = tempfile::tempdir().unwrap();
        // No umask that is in use leaves all of these.
        for mode in [0o666, 0o640, 0o600] {
            let (one, other) = (dir.path().join(format!("a{mode:o}")), dir.path().join(format!("b{mode:o}")));
            let _file = Real::new().create(&one, mode).unwrap();
            let _file = Real::new().create_zeroed(&other, 4096, mode).unwrap();
            for path in [one, other] {
                assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
            }
        }
    }

    #[test]
    fn a_zeroed_file_has_its_size_and_takes_direct_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut file = Real::new().create_zeroed(&path, 3 << 20, 0o600).unwrap();
        let mut block = AlignedBuf::zeroed(BLOCK);
        block.fill(7);
        file.write_at(BLOCK as u64, &block).unwrap();
        let _ = file.sync().unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 3 << 20);
        assert!(bytes[..BLOCK].iter().all(|b| *b == 0));
        assert!(bytes[BLOCK..2 * BLOCK].iter().all(|b| *b == 7));
        assert_eq!(Real::new().create_zeroed(&path, 1, 0o600).unwrap_err().trouble(), Trouble::Exists);
    }

    #[test]
    fn parents_are_made_and_a_file_in_the_way_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        let _ = Real::new().make_dirs(&deep, 0o700).unwrap();
        assert!(deep.is_dir());
        let _ = Real::new().make_dirs(&deep, 0o700).unwrap();
        let _ = Real::new().create(&deep.join("f"), 0o600).unwrap();
        assert_eq!(Real::new().make_dirs(&deep.join("f/g"), 0o700).unwrap_err().trouble(), Trouble::Other);
    }

    #[test]
    fn a_lock_keeps_a_second_one_out_and_names_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Real::new().lock(&path, "pid 1").unwrap();
        let refused = Real::new().lock(&path, "pid 2").unwrap_err();
        assert_eq!(refused.trouble(), Trouble::Locked);
        assert!(refused.to_string().contains("pid 1"), "{refused}");
        assert_eq!(Real::new().lock_shared(&path).unwrap_err().trouble(), Trouble::Locked);
        drop(held);
        let (_one, _two) = (Real::new().lock_shared(&path).unwrap(), Real::new().lock_shared(&path).unwrap());
        assert_eq!(Real::new().lock(&path, "pid 3").unwrap_err().trouble(), Trouble::Locked);
    }

    #[test]
    fn a_directory_is_locked_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let held = Real::new().lock_dir(dir.path()).unwrap();
        assert_eq!(Real::new().lock_dir(dir.path()).unwrap_err().trouble(), Trouble::Locked);
        assert_eq!(Real::new().list(dir.path()).unwrap(), []);
        assert_eq!(Real::new().lock_dir_shared(dir.path()).unwrap_err().trouble(), Trouble::Locked);
        drop(held);
        let shared = [(); 2].map(|()| Real::new().lock_dir_shared(dir.path()).unwrap());
        assert_eq!(Real::new().lock_dir(dir.path()).unwrap_err().trouble(), Trouble::Locked);
        drop(shared);
        let _again = Real::new().lock_dir(dir.path()).unwrap();
        let file = dir.path().join("file");
        let _ = Real::new().create(&file, 0o600).unwrap();
        assert!(Real::new().lock_dir(&file).is_err());
    }

    #[test]
    fn publishing_moves_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("x.tmp"), dir.path().join("x"));
        let mut file = Real::new().create(&from, 0o600).unwrap();
        file.write_at(0, b"whole").unwrap();
        let _ = Real::new().publish(file, &from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"whole");
        assert_eq!(Real::new().metadata(&from).unwrap(), None);
    }
}
