//! What an incremental backup is based on, down to the full one.

use thiserror::Error;

use super::{BackupEntry, BackupId, BackupState, Kind, Method, NotUsable, Repository, Seal};
use crate::disk::Lock;
use crate::wal::{History, Pos};

/// An incremental backup cannot be restored, for what it is based on is not there.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BrokenChain {
    /// The seal says so of itself, and names none.
    #[error("backup {0} is incremental, and its seal does not say what it is based on")]
    Unnamed(BackupId),
    /// There is no folder of that name.
    #[error("backup {child} is based on backup {parent}, which is not there")]
    Missing {
        /// Which.
        child: BackupId,
        /// What it is based on.
        parent: BackupId,
    },
    /// There is, and it is not complete.
    #[error("backup {child} is based on backup {parent}, which is not complete")]
    NotSealed {
        /// Which.
        child: BackupId,
        /// What it is based on.
        parent: BackupId,
    },
    /// Its document cannot be read.
    #[error("backup {child} is based on backup {parent}, which is damaged: {why}")]
    Damaged {
        /// Which.
        child: BackupId,
        /// What it is based on.
        parent: BackupId,
        /// What is wrong.
        why: String,
    },
    /// It is not an earlier one, so it cannot be what the server was given.
    #[error("backup {child} is based on backup {parent}, which does not come before it")]
    NotBefore {
        /// Which.
        child: BackupId,
        /// What it is based on.
        parent: BackupId,
    },
}

/// What is needed to restore a backup: itself, and what it is based on, down to the full one.
///
/// # Errors
/// When one of them is missing or not complete.
pub fn chain<'a>(backups: &'a [BackupEntry], seal: &'a Seal) -> Result<Vec<&'a Seal>, BrokenChain> {
    let mut chain = vec![seal];
    let mut child = seal;
    // Each comes before the last, so this ends.
    while child.kind == Kind::Incremental {
        let parent = child.parent.ok_or(BrokenChain::Unnamed(child.id))?;
        let (child_id, entry) = (child.id, backups.iter().find(|entry| entry.id == parent));
        let found = match entry.map(|entry| &entry.state) {
            None => return Err(BrokenChain::Missing { child: child_id, parent }),
            Some(BackupState::Sealed(seal)) => &**seal,
            Some(BackupState::Pending(_) | BackupState::Unfinished) => {
                return Err(BrokenChain::NotSealed { child: child_id, parent });
            }
            Some(BackupState::Damaged(why)) => {
                return Err(BrokenChain::Damaged { child: child_id, parent, why: why.clone() });
            }
        };
        let order = |pos: Pos| (pos.tli(), pos.lsn());
        if order(found.start) >= order(child.start) {
            return Err(BrokenChain::NotBefore { child: child_id, parent });
        }
        chain.push(found);
        child = found;
    }
    Ok(chain)
}

/// What a new incremental backup is to be based on: the newest backup that can be restored, of those which the server
/// copied and whose WAL is on the `way` to its timeline.
pub fn newest_base<'a>(backups: &'a [BackupEntry], way: &History) -> Option<&'a Seal> {
    let carries = |pos: Pos| {
        let switch = || way.switch_from(pos.tli());
        way.tli() == pos.tli() || switch().is_some_and(|switch| pos.lsn() <= switch.at)
    };
    let fits = |seal: &&Seal| seal.method == Method::Streamed && carries(seal.stop) && chain(backups, seal).is_ok();
    backups.iter().rev().filter_map(BackupEntry::seal).find(fits)
}

impl Repository {
    /// What is needed to restore a backup: itself, and what it is based on, down to the full one.
    ///
    /// # Errors
    /// When one of them is missing or not complete, or the repository cannot be read.
    pub fn chain(&self, seal: &Seal) -> Result<Vec<Seal>, NotUsable> {
        if seal.kind == Kind::Full {
            return Ok(vec![seal.clone()]);
        }
        Ok(chain(&self.backups()?, seal)?.into_iter().cloned().collect())
    }

    /// As [`Repository::hold`], with all that the backup is based on; itself first.
    ///
    /// # Errors
    /// When one of them is missing, not complete, or being removed.
    pub fn hold_chain(&self, id: BackupId) -> Result<(Vec<Seal>, Vec<Lock>), NotUsable> {
        // Whoever plans what goes meets this lock, and then leaves the others, too.
        let (seal, lock) = self.hold(id)?;
        let (mut chain, mut locks) = (vec![seal.clone()], vec![lock]);
        for older in self.chain(&seal)?.iter().skip(1) {
            let (seal, lock) = self.hold(older.id)?;
            chain.push(seal);
            locks.push(lock);
        }
        Ok((chain, locks))
    }
}

#[cfg(test)]
mod tests;
