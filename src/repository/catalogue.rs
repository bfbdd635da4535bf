//! Which backups there are, and which of them may be restored.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::{
    BackupId, BrokenChain, Method, ParseBackupIdError, Pending, Repository, RepositoryError, Seal, read_document,
};
use crate::disk::{EntryKind, Trouble};
use crate::wal::Pos;

pub(super) const SEAL: &str = "backup.json";
/// The operator's mark. That it is there is all it says.
pub(super) const KEEP: &str = "keep";
pub(super) const PENDING: &str = "backup.pending.json";

/// A folder in `backups/`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupEntry {
    /// Its name.
    pub id: BackupId,
    /// What it holds.
    pub state: BackupState,
    /// Whether a process is writing it now; never true of a sealed one.
    pub running: bool,
    /// Whether the operator has marked it, so that it never expires.
    pub kept: bool,
    /// Whether it is a complete one that counts for nothing before a drill of it has passed: an atomic
    /// snapshot.
    pub untested: bool,
}

/// How far a backup has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BackupState {
    /// It is complete. All else is not, and is never offered for restore.
    Sealed(Box<Seal>),
    /// It is being made, waits for its WAL, or was given up.
    Pending(Box<Pending>),
    /// No document is there yet: it was given up before its start position was known, unless it is
    /// running.
    Unfinished,
    /// Its document cannot be read, and this is why.
    Damaged(String),
}

impl BackupEntry {
    /// Its seal, if it is complete.
    pub fn seal(&self) -> Option<&Seal> {
        match &self.state {
            BackupState::Sealed(seal) => Some(seal),
            _ => None,
        }
    }

    /// The backup that it is based on, if it is incremental.
    pub fn parent(&self) -> Option<BackupId> {
        match &self.state {
            BackupState::Sealed(seal) => seal.parent,
            BackupState::Pending(pending) => pending.ready.as_ref().and_then(|seal| seal.parent),
            BackupState::Unfinished | BackupState::Damaged(_) => None,
        }
    }

    /// Where its WAL begins, once that is known.
    pub fn start(&self) -> Option<Pos> {
        match &self.state {
            BackupState::Sealed(seal) => Some(seal.start),
            BackupState::Pending(pending) => Some(pending.start),
            BackupState::Unfinished | BackupState::Damaged(_) => None,
        }
    }

    /// Exclusive end of the WAL it needs, once that is known.
    pub fn stop(&self) -> Option<Pos> {
        match &self.state {
            BackupState::Sealed(seal) => Some(seal.stop),
            BackupState::Pending(pending) => pending.stop,
            BackupState::Unfinished | BackupState::Damaged(_) => None,
        }
    }
}

/// Which backup an operator means.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Which {
    /// The sealed one with the highest timeline and start.
    #[default]
    Latest,
    /// The one of that name.
    Named(BackupId),
}

impl FromStr for Which {
    type Err = ParseBackupIdError;

    fn from_str(text: &str) -> Result<Self, ParseBackupIdError> {
        if text == "latest" { Ok(Self::Latest) } else { text.parse().map(Self::Named) }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Named(id) => id.fmt(f),
        }
    }
}

/// The backup that was asked for may not be restored.
#[derive(Debug, Error)]
pub enum NotUsable {
    /// None is sealed.
    #[error("the repository holds no complete backup")]
    None,
    /// There is no folder of that name.
    #[error("there is no backup {0}")]
    NotFound(BackupId),
    /// It is not complete.
    #[error("backup {id} is not complete: {}", match waiting_for {
        Some(stop) => format!("it waits for WAL up to {stop}"),
        None if *running => "it is being made".to_owned(),
        None => "it was given up before its end".to_owned(),
    })]
    NotSealed {
        /// Which.
        id: BackupId,
        /// Exclusive end of the WAL it waits for.
        waiting_for: Option<Pos>,
        /// Whether a process is writing it.
        running: bool,
    },
    /// Its document cannot be read.
    #[error("backup {id} is damaged: {why}")]
    Damaged {
        /// Which.
        id: BackupId,
        /// What is wrong.
        why: String,
    },
    /// It is incremental, and what it is based on is not there.
    #[error(transparent)]
    Chain(#[from] BrokenChain),
    /// Its folder is locked.
    #[error("backup {0} is being written or removed by another process")]
    InUse(BackupId),
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

impl Repository {
    /// All backups, in the order of timeline and start; those whose start is not known come last.
    /// Other names in the folder are passed over.
    ///
    /// # Errors
    /// When the folder cannot be listed, or a document cannot be read for a reason that is not its
    /// content.
    pub fn backups(&self) -> Result<Vec<BackupEntry>, RepositoryError> {
        let mut entries = Vec::new();
        for entry in self.disk.list(&self.backups_dir())? {
            let id = entry.name.to_str().and_then(|name| name.parse().ok());
            if let Some(id) = id.filter(|_| entry.kind == EntryKind::Directory) {
                entries.extend(self.backup(id)?);
            }
        }
        let order = |pos: Pos| (pos.tli(), pos.lsn());
        entries.sort_by_key(|entry| (entry.start().is_none(), entry.start().map(order), entry.id));
        Ok(entries)
    }

    /// One backup; `None` if there is none of that name.
    ///
    /// # Errors
    /// As [`Repository::backups`].
    pub fn backup(&self, id: BackupId) -> Result<Option<BackupEntry>, RepositoryError> {
        let dir = self.backups_dir().join(id.to_string());
        if self.disk.metadata(&dir)?.is_none() {
            return Ok(None);
        }
        // The running state first: one that is sealed between two looks is then sealed, not given up.
        let running = self.is_running(id)?;
        let state = self.state(id)?;
        let running = running && !matches!(state, BackupState::Sealed(_));
        let kept = self.disk.metadata(&dir.join(KEEP))?.is_some();
        let untested = matches!(&state, BackupState::Sealed(seal) if self.is_untested(seal));
        Ok(Some(BackupEntry { id, state, running, kept, untested }))
    }

    /// Whether nothing has shown yet that a server starts from a snapshot, which had no say of the server's.
    pub fn is_untested(&self, seal: &Seal) -> bool {
        let passed = || self.last_drill(seal.id).ok().flatten().is_some_and(|drill| drill.passed());
        seal.method == Method::AtomicSnapshot && !passed()
    }

    /// The newest complete backup by timeline and start, of those that are not damaged, and tested if they
    /// must be.
    ///
    /// # Errors
    /// As [`Repository::backups`].
    pub fn latest_sealed(&self) -> Result<Option<Seal>, RepositoryError> {
        Ok(self.backups()?.into_iter().rev().find_map(|entry| match entry.state {
            BackupState::Sealed(seal) if !entry.untested => Some(*seal),
            _ => None,
        }))
    }

    /// The seal of the backup that is meant.
    ///
    /// # Errors
    /// [`NotUsable`] when there is none, or it is not complete, or its seal is damaged.
    pub fn find(&self, which: Which) -> Result<Seal, NotUsable> {
        let id = match which {
            Which::Latest => return self.latest_sealed()?.ok_or(NotUsable::None),
            Which::Named(id) => id,
        };
        let entry = self.backup(id)?.ok_or(NotUsable::NotFound(id))?;
        match entry.state {
            BackupState::Sealed(seal) => Ok(*seal),
            BackupState::Pending(pending) => {
                Err(NotUsable::NotSealed { id, waiting_for: pending.stop, running: entry.running })
            }
            BackupState::Unfinished => Err(NotUsable::NotSealed { id, waiting_for: None, running: entry.running }),
            BackupState::Damaged(why) => Err(NotUsable::Damaged { id, why }),
        }
    }

    /// The folder of a backup.
    pub fn backup_dir(&self, id: BackupId) -> std::path::PathBuf {
        self.backups_dir().join(id.to_string())
    }

    fn state(&self, id: BackupId) -> Result<BackupState, RepositoryError> {
        // Sealed between the looks for the two documents: the pending one has just gone.
        let state = match self.documents(id) {
            Ok(BackupState::Unfinished) => self.documents(id),
            other => other,
        };
        match state {
            Err(RepositoryError::Document { path, source }) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                Ok(BackupState::Damaged(format!("{name}: {source}")))
            }
            other => other,
        }
    }

    fn documents(&self, id: BackupId) -> Result<BackupState, RepositoryError> {
        let dir = self.backup_dir(id);
        if let Some(seal) = read_document::<Seal>(&*self.disk, &dir.join(SEAL))? {
            return Ok(match self.fault(&seal, id) {
                None => BackupState::Sealed(Box::new(seal)),
                Some(why) => BackupState::Damaged(why.to_owned()),
            });
        }
        Ok(match read_document::<Pending>(&*self.disk, &dir.join(PENDING))? {
            None => BackupState::Unfinished,
            Some(pending) if pending.id != id || pending.system_identifier != self.system_id => {
                BackupState::Damaged(format!("its {PENDING} belongs to another backup"))
            }
            Some(pending) => BackupState::Pending(Box::new(pending)),
        })
    }

    /// A whole seal at a place where it does not belong.
    fn fault(&self, seal: &Seal, id: BackupId) -> Option<&'static str> {
        if seal.id != id {
            return Some("its seal belongs to another backup");
        }
        if seal.system_identifier != self.system_id || seal.segment_size != self.size.bytes() {
            return Some("its seal belongs to another cluster");
        }
        let plain = |name: &str| !name.is_empty() && !name.contains('/') && name != "." && name != "..";
        if !seal.files.iter().all(|file| plain(&file.name)) {
            return Some("its seal names a file outside its folder");
        }
        None
    }

    fn is_running(&self, id: BackupId) -> Result<bool, RepositoryError> {
        // Shared, for others may look at the same time, and restores hold it so.
        match self.disk.lock_dir_shared(&self.backup_dir(id)) {
            Ok(_lock) => Ok(false),
            Err(e) if e.trouble() == Trouble::Locked => Ok(true),
            // Removed between two looks.
            Err(e) if e.trouble() == Trouble::Missing => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}
