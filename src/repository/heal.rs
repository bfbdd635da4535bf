//! Sealing what waits: a backup whose copy is complete and checked, and whose WAL has come since.

use thiserror::Error;

use super::{
    BackupFolder, BackupId, BackupState, NotUsable, Pending, Repository, RepositoryError, Seal, SealError, Sealed,
};
use crate::archive::{ArchiveError, Followed, Follower, NotProven, Stopped};
use crate::wal::{Lsn, Pos, Segment};

/// What has become of a backup that waited for WAL.
#[derive(Debug)]
pub enum Healing {
    /// Its WAL is all there: it is sealed.
    Sealed(Box<Sealed>),
    /// Its WAL ends too early so far.
    Waiting {
        /// Exclusive end of the WAL it needs.
        stop: Pos,
        /// Exclusive end of what is held of it.
        held: Lsn,
    },
    /// It cannot be sealed as things are.
    Failed(HealError),
}

/// A backup that waited cannot be sealed, although it waits for nothing that may still come.
#[derive(Debug, Error)]
pub enum HealError {
    /// The receiver has gone on behind WAL that the backup needs.
    #[error(
        "segment {missing} is missing, and the archive goes on behind it: its WAL up to {stop} will not come by itself"
    )]
    PassedOver {
        /// The first segment that is not there.
        missing: Segment,
        /// Exclusive end of the WAL it needs.
        stop: Pos,
    },
    /// Its WAL is there and is not whole.
    #[error("its WAL is not whole: {0}")]
    NotProven(#[from] NotProven),
    /// Its WAL cannot be read.
    #[error("its WAL cannot be read: {0}")]
    Archive(#[from] ArchiveError),
    /// What it is based on is not there any more.
    #[error(transparent)]
    Chain(#[from] NotUsable),
    /// Its files are not there any more, or the seal cannot be written.
    #[error("it cannot be sealed: {0}")]
    Seal(#[from] SealError),
}

impl Repository {
    /// The backups whose copy is complete and that lack nothing but WAL, with its exclusive end. One
    /// that a process is still writing is not among them.
    ///
    /// # Errors
    /// As [`Repository::backups`].
    pub fn waiting(&self) -> Result<Vec<(BackupId, Pos)>, RepositoryError> {
        let waits = |entry: super::BackupEntry| match entry.state {
            BackupState::Pending(pending) if !entry.running => Some((entry.id, pending.ready?.stop)),
            _ => None,
        };
        Ok(self.backups()?.into_iter().filter_map(waits).collect())
    }

    /// Seals one backup that waits, if its WAL has come: synced by this process, and every record
    /// of it read, as when it is sealed at once. `None` if it does not wait, or if another process has it.
    ///
    /// # Errors
    /// When its folder cannot be read or locked.
    pub fn heal(&self, id: BackupId) -> Result<Option<Healing>, RepositoryError> {
        let folder = match self.reopen_backup(id) {
            Ok(folder) => folder,
            Err(RepositoryError::Locked(_)) => return Ok(None),
            Err(e) => return Err(e),
        };
        // What it was before it was locked counts for nothing.
        let Some(Pending { ready: Some(seal), .. }) = self.pending(id)? else { return Ok(None) };
        Ok(Some(self.seal_if_held(folder, *seal).unwrap_or_else(Healing::Failed)))
    }

    fn pending(&self, id: BackupId) -> Result<Option<Pending>, RepositoryError> {
        Ok(match self.backup(id)?.map(|entry| entry.state) {
            Some(BackupState::Pending(pending)) => Some(*pending),
            _ => None,
        })
    }

    /// Exclusive end of what is held, without a hole, of the WAL that a backup waits for, at most a
    /// little beyond what it needs. Writes nothing.
    ///
    /// # Errors
    /// When what is missing will not come by itself, or what is there is not whole.
    pub fn held_for(&self, seal: &Seal) -> Result<Lsn, HealError> {
        Ok(self.follow(seal)?.0)
    }

    fn follow(&self, seal: &Seal) -> Result<(Lsn, Follower), HealError> {
        let (archive, start, stop, end) = (self.archive(), seal.start.lsn(), seal.stop, seal.end());
        let mut follower = Follower::new(archive.clone(), archive.history(stop.tli())?, start);
        let Followed { whole: held, stopped } = follower.advance()?;
        if held < stop.lsn() {
            if let Stopped::Invalid { form, .. } | Stopped::Short { form, .. } = stopped
                && !form.partial
            {
                // Nothing more comes into a complete segment; the proof says what is wrong with it.
                archive.prove(start, stop, end)?;
            }
            if let Some(missing) = self.passed_over(held, stop)? {
                return Err(HealError::PassedOver { missing, stop });
            }
        }
        Ok((held, follower))
    }

    fn seal_if_held(&self, folder: BackupFolder, seal: Seal) -> Result<Healing, HealError> {
        let stop = seal.stop;
        self.chain(&seal)?;
        let (held, mut follower) = self.follow(&seal)?;
        if held < stop.lsn() {
            return Ok(Healing::Waiting { stop, held });
        }
        let durable = follower.settle()?;
        let proof = self.archive().prove(seal.start.lsn(), stop, seal.end())?;
        Ok(Healing::Sealed(Box::new(folder.seal(seal, &proof, &durable)?)))
    }

    /// The segment that is needed next and is not there, although later ones of its timeline are.
    fn passed_over(&self, held: Lsn, stop: Pos) -> Result<Option<Segment>, ArchiveError> {
        let archive = self.archive();
        let next = archive.history(stop.tli())?.segment_at(held, self.size);
        let listing = archive.list()?;
        let stored = listing.stored(next);
        let behind = listing.last_of(next.tli()).is_some_and(|(last, _)| last.no() > next.no());
        Ok((behind && !stored.complete).then_some(next))
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the folders are set up and damaged from outside")]
mod tests {
    use std::fs;

    use super::super::made::Parts;
    use super::super::tests::{START, now, pending_of, with_wal};
    use super::*;
    use crate::wal::chain::built::Log;

    /// A backup that waits, in a repository which holds `held` bytes of its log.
    fn waiting(dir: &std::path::Path, held: u64) -> (Repository, BackupId, Log) {
        let parts = Parts::new();
        let mut log = parts.log.clone();
        log.bytes.truncate(held as usize);
        let repository = with_wal(dir, &log);
        let folder = repository.begin_backup(now()).unwrap();
        let seal = parts.fill(&folder);
        let mut pending = pending_of(folder.id(), parts.start, Some(parts.stop));
        pending.ready = Some(Box::new(seal));
        folder.write_pending(&pending).unwrap();
        let id = folder.id();
        drop(folder);
        (repository, id, parts.log)
    }

    fn receive_rest(repository: &Repository, log: &Log) {
        let resumption = repository.archive().resume(None).unwrap().unwrap();
        let mut writer = resumption.writer;
        let from = (resumption.start.lsn().get() - log.start) as usize;
        writer.append(&log.bytes[from..], &mut |_| {}).unwrap();
        let _ = writer.settle().unwrap();
    }

    #[test]
    fn a_backup_is_sealed_once_its_wal_has_come() {
        let dir = tempfile::tempdir().unwrap();
        let stop = Parts::new().stop;
        let (repository, id, log) = waiting(&dir.path().join("r"), stop.lsn().get() - START - 16);
        assert_eq!(repository.waiting().unwrap(), [(id, stop)]);
        let Some(Healing::Waiting { held, .. }) = repository.heal(id).unwrap() else { panic!("sealed too early") };
        assert!(held < stop.lsn());
        assert!(matches!(repository.backup(id).unwrap().unwrap().state, BackupState::Pending(_)));
        receive_rest(&repository, &log);
        let Some(Healing::Sealed(sealed)) = repository.heal(id).unwrap() else { panic!("not sealed") };
        assert_eq!(repository.latest_sealed().unwrap().as_ref(), Some(sealed.seal()));
        assert!(repository.waiting().unwrap().is_empty());
        assert!(repository.heal(id).unwrap().is_none(), "nothing waits any more");
    }

    #[test]
    fn one_that_is_being_written_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (repository, id, _) = waiting(&dir.path().join("r"), Parts::new().log.bytes.len() as u64);
        let writing = repository.reopen_backup(id).unwrap();
        assert!(repository.waiting().unwrap().is_empty());
        assert!(repository.heal(id).unwrap().is_none());
        drop(writing);
        assert!(matches!(repository.heal(id).unwrap(), Some(Healing::Sealed(_))));
    }

    #[test]
    fn p3_wal_that_is_missing_or_broken_seals_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (repository, id, _) = waiting(&dir.path().join("r"), Parts::new().log.bytes.len() as u64);
        let second = repository.archive().dir().join("000000010000000000000004");
        let whole = fs::read(&second).unwrap();

        let mut broken = whole.clone();
        broken[300_000] ^= 1;
        fs::write(&second, &broken).unwrap();
        let healing = repository.heal(id).unwrap().unwrap();
        assert!(matches!(healing, Healing::Failed(HealError::NotProven(_))), "{healing:?}");

        fs::remove_file(&second).unwrap();
        let healing = repository.heal(id).unwrap().unwrap();
        assert!(matches!(healing, Healing::Failed(HealError::PassedOver { .. })), "{healing:?}");
        assert!(matches!(repository.backup(id).unwrap().unwrap().state, BackupState::Pending(_)));

        fs::write(&second, &whole).unwrap();
        fs::remove_file(repository.backup_dir(id).join(Seal::MANIFEST)).unwrap();
        let healing = repository.heal(id).unwrap().unwrap();
        assert!(matches!(healing, Healing::Failed(HealError::Seal(SealError::File { .. }))), "{healing:?}");
    }
}
