//! The next plain segment's file.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::{Archive, SPARE};
use crate::disk::{AlignedBuf, DiskError, File, Trouble};

/// How much is written at once, and between two syncs: whoever waits for the end of the thread waits
/// for no more than that.
const CHUNK: usize = 1 << 20;
const CHUNKS_PER_SYNC: u64 = 16;

/// The next segment's file, made ready in the background.
#[derive(Debug, Default)]
pub(super) struct Spare {
    filling: Option<Filling>,
}

#[derive(Debug)]
struct Filling {
    thread: JoinHandle<Result<Option<Box<dyn File>>, DiskError>>,
    unwanted: Arc<AtomicBool>,
}

impl Spare {
    /// Begins to make the next file ready, unless that has been done.
    pub(super) fn fill(&mut self, archive: &Archive) {
        if self.filling.is_some() {
            return;
        }
        let archive = archive.clone();
        let unwanted = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&unwanted);
        let fill = move || {
            let path = archive.dir.join(SPARE);
            match archive.disk.remove(&path) {
                Err(e) if e.trouble() != Trouble::Missing => return Err(e),
                _ => {}
            }
            let len = archive.size.bytes();
            write_zeros(archive.disk.create_zeroed(&path, len, archive.file_mode)?, len, &told)
        };
        let thread = std::thread::Builder::new().name("next segment".into()).spawn(fill);
        self.filling = thread.ok().map(|thread| Filling { thread, unwanted });
    }

    /// Gives the file the name `path`, if it is ready. One that is not is left for later, and one
    /// that could not be made is forgotten: what is wrong will show when a file is made here.
    pub(super) fn take(&mut self, archive: &Archive, path: &Path) -> Result<Option<Box<dyn File>>, DiskError> {
        match self.filling.take_if(|filling| filling.thread.is_finished()).map(|filling| filling.thread.join()) {
            Some(Ok(Ok(Some(file)))) => {
                archive.disk.rename(&archive.dir.join(SPARE), path)?;
                Ok(Some(file))
            }
            _ => Ok(None),
        }
    }

    /// Stops the filling, and removes the file.
    pub(super) fn discard(&mut self, archive: &Archive) {
        if let Some(Filling { thread, unwanted }) = self.filling.take() {
            unwanted.store(true, Ordering::Relaxed);
            let _ = thread.join();
            // It holds nothing; the next start removes it too.
            let _ = archive.disk.remove(&archive.dir.join(SPARE));
        }
    }
}

/// Writes the zeros out that the file reads as, so that its later syncs move data alone and need not
/// record which blocks are in use. `None` if that was no longer wanted.
fn write_zeros(mut file: Box<dyn File>, len: u64, unwanted: &AtomicBool) -> Result<Option<Box<dyn File>>, DiskError> {
    let zeros = AlignedBuf::zeroed(CHUNK);
    for chunk in 0..len / CHUNK as u64 {
        if unwanted.load(Ordering::Relaxed) {
            return Ok(None);
        }
        file.write_at(chunk * CHUNK as u64, &zeros)?;
        if (chunk + 1).is_multiple_of(CHUNKS_PER_SYNC) {
            file = file.sync()?.0;
        }
    }
    Ok(Some(file.sync()?.0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "the folder is looked at from outside")]

    use std::fs;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::disk::{Disk, Real, Synced};
    use crate::wal::SegmentSize;

    /// A file that is no longer wanted when so much has been written.
    #[derive(Debug)]
    struct Counted {
        written: u64,
        enough: u64,
        unwanted: Arc<AtomicBool>,
    }

    impl File for Counted {
        fn alignment(&self) -> usize {
            1
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<usize, DiskError> {
            Ok(0)
        }

        fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
            assert!(offset == self.written && !self.unwanted.load(Ordering::Relaxed));
            self.written += bytes.len() as u64;
            self.unwanted.store(self.written == self.enough, Ordering::Relaxed);
            Ok(())
        }

        fn size(&self) -> Result<u64, DiskError> {
            Ok(self.written)
        }

        fn sync(self: Box<Self>) -> Result<(Box<dyn File>, Synced), DiskError> {
            panic!("a sync of what is not wanted")
        }
    }

    #[test]
    fn filling_stops_when_it_is_unwanted() {
        let unwanted = Arc::new(AtomicBool::new(false));
        let file = Counted { written: 0, enough: 3 << 20, unwanted: Arc::clone(&unwanted) };
        assert!(write_zeros(Box::new(file), 1 << 30, &unwanted).unwrap().is_none());
    }

    #[test]
    fn a_spare_is_whole_or_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let archive = |mb: u64| {
            let size = SegmentSize::new(mb << 20).unwrap();
            Archive::new(folder.path().to_owned(), Arc::new(Real::new()), size, None, 0o600)
        };
        let mut spare = Spare::default();
        spare.fill(&archive(1024));
        let end = Instant::now() + Duration::from_secs(60);
        while !folder.path().join(SPARE).exists() {
            assert!(Instant::now() < end, "nothing is made ready");
        }
        assert!(spare.take(&archive(1024), &folder.path().join("early")).unwrap().is_none());
        spare.discard(&archive(1024));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

        spare.fill(&archive(2));
        let segment = folder.path().join("segment");
        while spare.take(&archive(2), &segment).unwrap().is_none() {
            assert!(Instant::now() < end && spare.filling.is_some(), "it is not made ready");
        }
        assert!(fs::read(&segment).unwrap() == vec![0; 2 << 20]);
        assert_eq!(Real::new().list(folder.path()).unwrap().len(), 1);
    }
}
