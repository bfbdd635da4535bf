//! The next plain segment's file.

use std::path::Path;
use std::thread::JoinHandle;

use super::{Archive, SPARE};
use crate::disk::{DiskError, File, Fill, Trouble};

/// The next segment's file, made ready in the background.
#[derive(Debug, Default)]
pub(super) struct Spare {
    filling: Option<JoinHandle<Result<Box<dyn File>, DiskError>>>,
}

impl Spare {
    /// Begins to make the next file ready, unless that has been done.
    pub(super) fn fill(&mut self, archive: &Archive) {
        if self.filling.is_some() {
            return;
        }
        let archive = archive.clone();
        let fill = move || {
            let path = archive.dir.join(SPARE);
            match archive.disk.remove(&path) {
                Err(e) if e.trouble() != Trouble::Missing => return Err(e),
                _ => {}
            }
            let file = archive.disk.create_zeroed(&path, archive.size.bytes(), Fill::Zeros, archive.file_mode)?;
            Ok(file.sync()?.0)
        };
        self.filling = std::thread::Builder::new().name("next segment".into()).spawn(fill).ok();
    }

    /// Gives the file the name `path`, if it is ready. One that is not is left for later, and one
    /// that could not be made is forgotten: what is wrong will show when a file is made here.
    pub(super) fn take(&mut self, archive: &Archive, path: &Path) -> Result<Option<Box<dyn File>>, DiskError> {
        match self.filling.take_if(|filling| filling.is_finished()).map(JoinHandle::join) {
            Some(Ok(Ok(file))) => {
                archive.disk.rename(&archive.dir.join(SPARE), path)?;
                Ok(Some(file))
            }
            _ => Ok(None),
        }
    }

    /// Waits for it, and removes it.
    pub(super) fn discard(&mut self, archive: &Archive) {
        if let Some(filling) = self.filling.take() {
            let _ = filling.join();
            // It holds nothing; the next start removes it too.
            let _ = archive.disk.remove(&archive.dir.join(SPARE));
        }
    }
}
