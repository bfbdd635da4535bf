//! The one pass over an archive of a base backup.

use thiserror::Error;

use super::{
    BadPath, Comparison, FeedError, Hasher, ManifestAlgorithm, MemberKind, MemberPath, NameClash, Names, NamesError,
    TarEnd, TarError, TarEvent, TarReader,
};
use crate::disk::DiskError;
use crate::spill::Scratch;

/// Reads an archive as it comes: its names are checked, and every file in it is digested and noted for the
/// comparison with the manifest.
#[derive(Debug)]
pub struct ArchivePass {
    tablespace: Option<u32>,
    algorithm: ManifestAlgorithm,
    reader: TarReader,
    names: Names,
    file: Option<Digesting>,
}

#[derive(Debug)]
struct Digesting {
    /// Below the data directory.
    path: MemberPath,
    size: u64,
    hasher: Hasher,
}

/// Why an archive is not read on.
#[derive(Debug, Error)]
pub enum PassError<E> {
    /// It is not what a server writes.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The same name twice, or one below a file.
    #[error(transparent)]
    Names(#[from] NameClash),
    /// A name in a tablespace is too long.
    #[error(transparent)]
    Name(#[from] BadPath),
    /// Its names, which do not fit in memory, have no place on disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// What the caller did with an event failed.
    #[error("{0}")]
    Seen(E),
}

impl ArchivePass {
    /// At the beginning of the archive of a tablespace, or of the data directory. The checksums are for a
    /// manifest of this algorithm. Names that do not fit in memory go to `scratch`.
    pub fn new(tablespace: Option<u32>, algorithm: ManifestAlgorithm, scratch: Scratch) -> Self {
        Self { tablespace, algorithm, reader: TarReader::new(), names: Names::new(scratch), file: None }
    }

    /// Reads on, adds each file that has come whole to `comparison`, and shows what it meets to `seen`.
    ///
    /// # Errors
    /// When the bytes are not what a server writes, a name clashes, or `seen` fails.
    pub fn feed<E>(
        &mut self,
        bytes: &[u8],
        comparison: &mut Comparison,
        seen: &mut impl FnMut(&TarEvent<'_>) -> Result<(), E>,
    ) -> Result<(), PassError<E>> {
        let (names, file, algorithm, tablespace) = (&mut self.names, &mut self.file, self.algorithm, self.tablespace);
        let fed = self.reader.feed(bytes, &mut |event| {
            match &event {
                TarEvent::Member(member) => {
                    names.take(member)?;
                    *file = match member.kind {
                        MemberKind::File { size } => {
                            let path = match tablespace {
                                Some(oid) => member.path.in_tablespace(oid)?,
                                None => member.path.clone(),
                            };
                            Some(Digesting { path, size, hasher: Hasher::new(algorithm) })
                        }
                        MemberKind::Directory | MemberKind::Symlink { .. } => None,
                    };
                }
                TarEvent::Data(data) => {
                    if let Some(file) = file {
                        file.hasher.update(data);
                    }
                }
                TarEvent::MemberEnd => {
                    if let Some(Digesting { path, size, hasher }) = file.take() {
                        comparison.add(path, size, hasher.finish());
                    }
                }
            }
            seen(&event).map_err(PassError::Seen)
        });
        fed.map_err(|e| match e {
            FeedError::Tar(e) => e.into(),
            FeedError::Seen(e) => e,
        })
    }

    /// Says how it ended.
    ///
    /// # Errors
    /// When it did not end after a whole member, or two of its names clash.
    pub fn finish<E>(self) -> Result<TarEnd, PassError<E>> {
        let end = self.reader.finish()?;
        self.names.finish().map_err(|e| match e {
            NamesError::Clash(e) => PassError::Names(e),
            NamesError::Disk(e) => PassError::Disk(e),
        })?;
        Ok(end)
    }
}
