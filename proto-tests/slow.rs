//! A disk on which whatever waits for the device takes long.

use std::path::{Path, PathBuf};
use std::time::Duration;

use walhold::disk::{Access, Disk, DiskError, Entry, File, Lock, Meta, Real, Synced};

/// The real disk, after a delay.
#[derive(Debug)]
pub(crate) struct Slow {
    pub(crate) disk: Real,
    pub(crate) delay: Duration,
}

#[derive(Debug)]
struct SlowFile {
    file: Box<dyn File>,
    delay: Duration,
}

impl Slow {
    fn wait(&self) -> &Real {
        std::thread::sleep(self.delay);
        &self.disk
    }

    fn file(&self, file: Result<Box<dyn File>, DiskError>) -> Result<Box<dyn File>, DiskError> {
        Ok(Box::new(SlowFile { file: file?, delay: self.delay }))
    }
}

impl File for SlowFile {
    fn alignment(&self) -> usize {
        self.file.alignment()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize, DiskError> {
        if offset == 0 {
            std::thread::sleep(self.delay);
        }
        self.file.read_at(offset, into)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.file.write_at(offset, bytes)
    }

    fn size(&self) -> Result<u64, DiskError> {
        self.file.size()
    }

    fn sync(self: Box<Self>) -> Result<(Box<dyn File>, Synced), DiskError> {
        std::thread::sleep(self.delay);
        let (file, synced) = self.file.sync()?;
        Ok((Box::new(Self { file, delay: self.delay }), synced))
    }
}

impl Disk for Slow {
    fn create(&self, path: &Path, mode: u32) -> Result<Box<dyn File>, DiskError> {
        self.file(self.wait().create(path, mode))
    }

    fn create_zeroed(&self, path: &Path, len: u64, mode: u32) -> Result<Box<dyn File>, DiskError> {
        self.file(self.wait().create_zeroed(path, len, mode))
    }

    fn open(&self, path: &Path, access: Access) -> Result<Box<dyn File>, DiskError> {
        self.file(self.disk.open(path, access))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        self.wait().rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<(), DiskError> {
        self.disk.remove(path)
    }

    fn remove_tree(&self, path: &Path) -> Result<(), DiskError> {
        self.disk.remove_tree(path)
    }

    fn add_dir(&self, path: &Path, mode: u32) -> Result<(), DiskError> {
        self.disk.add_dir(path, mode)
    }

    fn make_dir(&self, path: &Path, mode: u32) -> Result<Synced, DiskError> {
        self.disk.make_dir(path, mode)
    }

    fn read_link(&self, path: &Path) -> Result<Option<PathBuf>, DiskError> {
        self.disk.read_link(path)
    }

    fn symlink(&self, target: &Path, path: &Path) -> Result<(), DiskError> {
        self.disk.symlink(target, path)
    }

    fn set_access(&self, path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<(), DiskError> {
        self.disk.set_access(path, mode, owner)
    }

    fn sync_dir(&self, path: &Path) -> Result<Synced, DiskError> {
        self.wait().sync_dir(path)
    }

    fn sync_filesystem(&self, path: &Path) -> Result<Synced, DiskError> {
        self.wait().sync_filesystem(path)
    }

    fn list(&self, path: &Path) -> Result<Vec<Entry>, DiskError> {
        self.disk.list(path)
    }

    fn metadata(&self, path: &Path) -> Result<Option<Meta>, DiskError> {
        self.disk.metadata(path)
    }

    fn available(&self, path: &Path) -> Result<u64, DiskError> {
        self.disk.available(path)
    }

    fn lock(&self, path: &Path, note: &str) -> Result<Lock, DiskError> {
        self.disk.lock(path, note)
    }

    fn lock_shared(&self, path: &Path) -> Result<Lock, DiskError> {
        self.disk.lock_shared(path)
    }

    fn lock_dir(&self, path: &Path) -> Result<Lock, DiskError> {
        self.disk.lock_dir(path)
    }

    fn lock_dir_shared(&self, path: &Path) -> Result<Lock, DiskError> {
        self.disk.lock_dir_shared(path)
    }
}
