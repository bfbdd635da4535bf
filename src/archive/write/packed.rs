//! A segment that is compressed as it comes.

use std::path::Path;

use super::Open;
use crate::codec::{Packer, Packing};
use crate::disk::DiskError;
use crate::wal::Lsn;

/// Compressed bytes that gather before they are written.
const GATHERED: usize = 256 << 10;

/// The compressor of one file after the other, and what of the file has not been written.
#[derive(Debug)]
pub(super) struct Packed {
    packing: Packing,
    /// `None` at the beginning of a file.
    packer: Option<Packer>,
    ready: Vec<u8>,
    /// Where in the file `ready` belongs.
    offset: u64,
    /// Exclusive end of what was taken in.
    at: Lsn,
    /// Exclusive end of what decodes from what the kernel has.
    pub(super) written: Lsn,
}

impl Packed {
    pub(super) const fn new(packing: Packing, start: Lsn) -> Self {
        Self { packing, packer: None, ready: Vec::new(), offset: 0, at: start, written: start }
    }

    /// The next segment begins at `start`, in another file.
    pub(super) fn begin(&mut self, start: Lsn) {
        *self = Self::new(self.packing, start);
    }

    /// Takes bytes in, and writes what has gathered when that is much.
    pub(super) fn push(&mut self, bytes: &[u8], open: &mut Open) -> Result<(), DiskError> {
        let packing = self.packing;
        let wrong = wrong(&open.path);
        let packer = match &mut self.packer {
            Some(packer) => packer,
            none => none.insert(Packer::growing(packing).map_err(wrong)?),
        };
        packer.write(bytes).map_err(wrong)?;
        packer.take(&mut self.ready);
        self.at = self.at.saturating_add(bytes.len() as u64);
        if self.ready.len() >= GATHERED { self.write(open) } else { Ok(()) }
    }

    /// Writes all that was taken in, so that it decodes.
    pub(super) fn write_out(&mut self, open: &mut Open) -> Result<(), DiskError> {
        if let Some(packer) = self.packer.as_mut().filter(|_| self.at > self.written) {
            packer.flush().map_err(wrong(&open.path))?;
            packer.take(&mut self.ready);
            self.write(open)?;
        }
        self.written = self.at;
        Ok(())
    }

    /// Ends the frame: the file is a whole one.
    pub(super) fn end(&mut self, open: &mut Open) -> Result<(), DiskError> {
        if let Some(packer) = self.packer.take() {
            self.ready.append(&mut packer.finish().map_err(wrong(&open.path))?);
            self.write(open)?;
        }
        self.written = self.at;
        Ok(())
    }

    fn write(&mut self, open: &mut Open) -> Result<(), DiskError> {
        let mut file = open.take_file()?;
        file.write_at(self.offset, &self.ready)?;
        open.file = Some(file);
        self.offset += self.ready.len() as u64;
        self.ready.clear();
        Ok(())
    }
}

fn wrong(path: &Path) -> impl Fn(std::io::Error) -> DiskError + Copy + '_ {
    move |e| DiskError::new("compress", path, e)
}
