//! The files of a manifest in the order of their paths, in memory that does not grow with them.

use std::io::{self, Read};
use std::path::Path;

use thiserror::Error;

use super::{Checksum, ManifestAlgorithm, ManifestError, ManifestFile, ManifestHead, ManifestReadError, read_manifest};
use crate::disk::DiskError;
use crate::image::MemberPath;
use crate::spill::{Merge, Record, Scratch, Sorter};

/// A manifest that was read once, whose files are to be held against others.
#[derive(Debug)]
pub struct Listed {
    head: ManifestHead,
    files: Sorter,
}

/// A manifest cannot be used.
#[derive(Debug, Error)]
pub enum ListedError {
    /// It is not one that a server wrote.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// It cannot be read, or its files have no place on disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Listed {
    /// Reads one of `len` bytes. What does not fit in memory goes to `scratch`.
    ///
    /// # Errors
    /// When it is damaged, of an unknown version, or above a limit.
    pub fn read(from: &mut dyn Read, len: u64, scratch: Scratch) -> Result<Self, ListedError> {
        let mut files = Files::new(scratch);
        let head = read_manifest(from, len, &mut |file| files.put(&file)).map_err(|e| match e {
            ManifestReadError::Manifest(e) => e.into(),
            ManifestReadError::Io(e) => ListedError::Disk(cannot_read(e)),
            ManifestReadError::Seen(e) => ListedError::Disk(e),
        })?;
        Ok(Self { head, files: files.0 })
    }

    /// What it says besides its files.
    pub const fn head(&self) -> &ManifestHead {
        &self.head
    }

    pub(super) fn sorted(self) -> Result<InOrder, DiskError> {
        Files(self.files).sorted()
    }
}

/// The file system's error, which is inside.
pub(super) fn cannot_read(e: io::Error) -> DiskError {
    e.downcast().unwrap_or_else(|e| DiskError::new("read", Path::new("backup_manifest"), e))
}

/// Files to be put in the order of their paths.
#[derive(Debug)]
pub(super) struct Files(Sorter);

impl Files {
    pub(super) const fn new(scratch: Scratch) -> Self {
        Self(Sorter::new(scratch))
    }

    pub(super) fn put(&mut self, file: &ManifestFile) -> Result<(), DiskError> {
        let mut value = file.size.to_le_bytes().to_vec();
        if let Some(checksum) = &file.checksum {
            value.push(checksum.algorithm().code());
            value.extend_from_slice(checksum.bytes());
        }
        self.0.put(file.path.as_bytes(), &value)
    }

    pub(super) fn sorted(self) -> Result<InOrder, DiskError> {
        let mut merge = self.0.sorted()?;
        let next = next(&mut merge)?;
        Ok(InOrder { merge, next })
    }
}

/// Files in the order of their paths.
#[derive(Debug)]
pub(super) struct InOrder {
    merge: Merge,
    next: Option<ManifestFile>,
}

impl InOrder {
    /// The next file, which stays the next.
    pub(super) const fn peek(&self) -> Option<&ManifestFile> {
        self.next.as_ref()
    }

    pub(super) fn next(&mut self) -> Result<Option<ManifestFile>, DiskError> {
        Ok(std::mem::replace(&mut self.next, next(&mut self.merge)?))
    }
}

fn next(merge: &mut Merge) -> Result<Option<ManifestFile>, DiskError> {
    let Some(record) = merge.next()? else { return Ok(None) };
    let changed = || {
        let kind = io::ErrorKind::InvalidData.into();
        DiskError::new("read back the list of files,", Path::new("a scratch file"), kind)
    };
    file_of(&record).ok_or_else(changed).map(Some)
}

fn file_of(Record { key, value }: &Record) -> Option<ManifestFile> {
    let (size, rest) = value.split_first_chunk()?;
    let checksum = match rest.split_first() {
        Some((code, sum)) => Some(Checksum::new(ManifestAlgorithm::from_code(*code)?, sum.into())?),
        None => None,
    };
    Some(ManifestFile { path: MemberPath::new(key).ok()?, size: u64::from_le_bytes(*size), checksum })
}
