//! A backup's folder while it is written, and the one way to complete it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use thiserror::Error;

use super::catalogue::{PENDING, SEAL};
use super::{
    BackupId, ContentError, Method, Pending, Repository, RepositoryError, Seal, SegmentRange, publish, remove_if_there,
};
use crate::archive::{Durable, Proof};
use crate::disk::{Access, DiskError, Lock, Trouble, read_bounded};
use crate::image::Manifest;
use crate::wal::{Lsn, Pos};

/// Seconds in a row whose names are tried: as many backups may have been begun at once.
const NAMES: u32 = 60;

/// Whoever asks whether a folder is in use holds its lock for an instant; it is waited for so often.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The folder of a backup that is not complete, locked for as long as this lives.
#[derive(Debug)]
pub struct BackupFolder {
    repository: Repository,
    id: BackupId,
    dir: PathBuf,
    _lock: Lock,
}

/// A backup that is complete, durably.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sealed {
    seal: Seal,
}

impl Sealed {
    /// What its seal says.
    pub const fn seal(&self) -> &Seal {
        &self.seal
    }
}

/// A backup cannot be sealed. It stays as it is.
#[derive(Debug, Error)]
pub enum SealError {
    /// The seal is of another backup or cluster than the folder.
    #[error("the seal of backup {seal} does not belong into the folder of backup {folder}")]
    OtherBackup {
        /// The folder's name.
        folder: BackupId,
        /// In the seal.
        seal: BackupId,
    },
    /// The seal names another cluster or segment size than the repository.
    #[error("the seal is not of this repository's cluster")]
    OtherCluster,
    /// The proof is of another stretch of WAL.
    #[error("the WAL was proven from {proven_from} to {proven_to}; the backup needs {start} to {stop}")]
    NotProven {
        /// Where the proof begins.
        proven_from: Lsn,
        /// Exclusive end of the proof.
        proven_to: Pos,
        /// Where the backup's WAL begins.
        start: Lsn,
        /// Exclusive end of the backup's WAL.
        stop: Pos,
    },
    /// Not all of its WAL would survive a power cut.
    #[error("WAL is durable up to {durable}; the backup needs it up to {stop}")]
    NotDurable {
        /// Exclusive end of what is durable.
        durable: Pos,
        /// Exclusive end of the backup's WAL.
        stop: Pos,
    },
    /// A file that the seal lists is not there, or not of the size it says.
    #[error("\"{name}\" in the backup's folder {}", match found {
        Some(found) => format!("has {found} bytes and must have {expected}"),
        None => "is missing".to_owned(),
    })]
    File {
        /// Its name.
        name: String,
        /// Its size, if it is there.
        found: Option<u64>,
        /// What the seal says.
        expected: u64,
    },
    /// A copied file is not there as the manifest lists it, or cannot be made durable.
    #[error(transparent)]
    Copy(Box<ContentError>),
    /// It cannot be written.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

impl From<DiskError> for SealError {
    fn from(e: DiskError) -> Self {
        Self::Repository(e.into())
    }
}

impl Repository {
    /// Makes and locks the folder of a new backup, which bears the second of `now`, or the next
    /// one that is free.
    ///
    /// # Errors
    /// When it cannot be made, or all names of a minute are taken.
    pub fn begin_backup(&self, now: Timestamp) -> Result<BackupFolder, RepositoryError> {
        let mut id = BackupId::new(now);
        let mut tries = 1;
        loop {
            let dir = self.backups_dir().join(id.to_string());
            match self.disk.make_dir(&dir, self.modes.dir()) {
                Ok(_made) => return self.lock_folder(id, dir),
                Err(e) if e.trouble() == Trouble::Exists && tries < NAMES => id = id.next(),
                Err(e) => return Err(e.into()),
            }
            tries += 1;
        }
    }

    /// Locks the folder of a backup that was left without a seal, to seal or to discard it.
    ///
    /// # Errors
    /// [`RepositoryError::Locked`] while it is being written; and when it does not exist.
    pub fn reopen_backup(&self, id: BackupId) -> Result<BackupFolder, RepositoryError> {
        self.lock_folder(id, self.backups_dir().join(id.to_string()))
    }

    fn lock_folder(&self, id: BackupId, dir: PathBuf) -> Result<BackupFolder, RepositoryError> {
        let mut tries = 1;
        loop {
            match self.disk.lock_dir(&dir) {
                Ok(lock) => return Ok(BackupFolder { repository: self.clone(), id, dir, _lock: lock }),
                Err(e) if e.trouble() == Trouble::Locked && tries < LOCK_TRIES => std::thread::sleep(LOCK_PAUSE),
                Err(e) if e.trouble() == Trouble::Locked => return Err(RepositoryError::Locked(e)),
                Err(e) => return Err(e.into()),
            }
            tries += 1;
        }
    }
}

impl BackupFolder {
    /// The backup's name.
    pub const fn id(&self) -> BackupId {
        self.id
    }

    /// The folder, for the backup's files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Says what is being made, and claims its WAL; durable on return. Replaces what was said. One
    /// that is ready to be sealed says so only of files that are durable.
    ///
    /// # Errors
    /// When it cannot be written, or a file that is to be sealed cannot be synced.
    pub fn write_pending(&self, pending: &Pending) -> Result<(), RepositoryError> {
        let disk = &*self.repository.disk;
        for listed in pending.ready.iter().flat_map(|seal| &seal.files) {
            // Whoever seals it later sees sizes, and not whether the bytes came back.
            let (_file, _data) = disk.open(&self.dir.join(&listed.name), Access::Read)?.sync()?;
        }
        let _names = disk.sync_dir(&self.dir)?;
        publish(disk, &self.dir, PENDING, pending, self.repository.modes.file())
    }

    /// Completes the backup (promise P3): everything it consists of is durable before the seal is
    /// written, and the seal is durable on return. The seal's list of segments is filled in from
    /// the proof.
    ///
    /// # Errors
    /// When the seal, the proof and what is durable do not belong together, when a file is missing,
    /// or when something cannot be made durable. The backup is not sealed then.
    pub fn seal(self, mut seal: Seal, wal: &Proof, durable: &Durable) -> Result<Sealed, SealError> {
        self.check(&seal, wal, durable)?;
        self.sync_files(&seal)?;
        seal.wal.segments = SegmentRange::all(wal.segments());
        let disk = &*self.repository.disk;
        publish(disk, &self.dir, SEAL, &seal, self.repository.modes.file())?;
        // From here on the backup is complete; with both documents there, the seal wins.
        remove_if_there(disk, &self.dir.join(PENDING))?;
        let _names = disk.sync_dir(&self.dir)?;
        Ok(Sealed { seal })
    }

    /// Removes the backup, which was given up.
    ///
    /// # Errors
    /// When part of it cannot be removed.
    pub fn discard(self) -> Result<(), RepositoryError> {
        let disk = &self.repository.disk;
        disk.remove_tree(&self.dir)?;
        let _names = disk.sync_dir(&self.repository.backups_dir())?;
        Ok(())
    }

    fn check(&self, seal: &Seal, wal: &Proof, durable: &Durable) -> Result<(), SealError> {
        if seal.id != self.id {
            return Err(SealError::OtherBackup { folder: self.id, seal: seal.id });
        }
        let size = self.repository.size.bytes();
        if seal.system_identifier != self.repository.system_id || seal.segment_size != size {
            return Err(SealError::OtherCluster);
        }
        if wal.start() != seal.start.lsn() || wal.stop() != seal.stop {
            let (proven_from, proven_to) = (wal.start(), wal.stop());
            return Err(SealError::NotProven { proven_from, proven_to, start: seal.start.lsn(), stop: seal.stop });
        }
        let durable = durable.pos();
        if durable.tli() != seal.stop.tli() || durable.lsn() < seal.stop.lsn() {
            return Err(SealError::NotDurable { durable, stop: seal.stop });
        }
        Ok(())
    }

    fn sync_files(&self, seal: &Seal) -> Result<(), SealError> {
        let disk = &self.repository.disk;
        for listed in &seal.files {
            let wrong = |found| SealError::File { name: listed.name.clone(), found, expected: listed.size };
            let path = self.dir.join(&listed.name);
            if disk.metadata(&path)?.is_none() {
                return Err(wrong(None));
            }
            let (file, _data) = disk.open(&path, Access::Read)?.sync()?;
            let found = file.size()?;
            if found != listed.size {
                return Err(wrong(Some(found)));
            }
        }
        if seal.method == Method::Copied {
            self.sync_copy(seal)?;
        }
        let _names = disk.sync_dir(&self.dir)?;
        Ok(())
    }

    /// The copied files are listed in the manifest, which the seal lists.
    fn sync_copy(&self, seal: &Seal) -> Result<(), SealError> {
        let disk = &*self.repository.disk;
        let path = self.dir.join(Seal::MANIFEST);
        let copy = |source: ContentError| SealError::Copy(Box::new(source));
        let bytes = read_bounded(disk, &path, Manifest::MAX_BYTES as u64)?.and_then(Result::ok);
        let bytes = bytes.ok_or_else(|| copy(ContentError::Missing(Seal::MANIFEST.to_owned())))?;
        let manifest = Manifest::parse(&bytes).map_err(|e| copy(e.into()))?;
        super::copied::sync(disk, &self.dir, seal, &manifest).map_err(copy)
    }
}
