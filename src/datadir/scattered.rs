//! Files whose bytes do not come in their order, from one archive.

use std::path::{Path, PathBuf};

use super::{DataDir, DataDirError};
use crate::disk::File;
use crate::image::MemberPath;

impl DataDir {
    /// Makes an empty file, of a tablespace's archive or the data directory's, for whoever puts it together from
    /// several. Durable with all else, and given away by [`DataDir::hand_over`].
    ///
    /// # Errors
    /// When there is one of that name, or it cannot be made.
    pub fn scattered(
        &mut self,
        tablespace: Option<u32>,
        path: &MemberPath,
    ) -> Result<(PathBuf, Box<dyn File>), DataDirError> {
        let path = self.path_of(tablespace, path)?;
        if let Some(parent) = path.parent() {
            self.directory(parent, None)?;
        }
        let file = self.disk.create(&path, 0o600)?;
        Ok((path, file))
    }

    /// Gives a file its mode and owner.
    ///
    /// # Errors
    /// When it cannot.
    pub fn hand_over(&self, path: &Path, mode: u32) -> Result<(), DataDirError> {
        Ok(self.disk.set_access(path, mode, self.owner())?)
    }
}
