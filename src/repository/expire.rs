//! Carrying a retention plan out, and what keeps it from taking what somebody is about to need.
//!
//! Order: a backup stops being one, durably (its folder gets a name that is none of a backup), then
//! its files go, and only when all of them are gone does WAL, oldest first, then history files. So
//! wherever it is cut off, each backup that is listed has its WAL, and the next `expire` finishes.
//!
//! Locks, all of them on directories, so that whoever only reads needs no right to write:
//!
//! - `backups/` exclusively: one `expire` or `keep` at a time. What is planned stays true, for a mark
//!   cannot come in between.
//! - `backups/` shared: a backup, from before it looks whether its WAL is held until it has said which
//!   that is. It either finds the WAL gone, and fails, or is in the plan with its claim. Without this a
//!   backup of a standby, whose start may lie far back, could lose it in between.
//! - A backup's folder exclusively: whoever makes it, or removes it. All that are to go are locked before
//!   the first goes; those that are taken stay, and the plan is made again.
//! - A backup's folder shared: a restore, which needs its files, and the WAL that stays with it.
//!
//! A receiver holds another lock, `lock`, and need not stop: it writes at the end of the newest timeline,
//! and WAL from the last needed position up to that end stays. A segment may be renamed or compressed
//! meanwhile; what goes is told by segments, not by files. The server that a restore has laid down fetches
//! its WAL with `wal-get`, one process a file, which can hold no lock: its backup has to stay until it
//! has recovered.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use thiserror::Error;

use super::catalogue::KEEP;
use super::retention::{Plan, Policy, Undecided, plan};
use super::{BackupId, NotUsable, Repository, RepositoryError, Seal, Which, locked, remove_if_there};
use crate::archive::{ArchiveError, WalName};
use crate::disk::{DiskError, EntryKind, Lock, Trouble};
use crate::wal::{Segment, TimelineId};

/// The end of a folder's name when it is no backup any more.
const EXPIRED: &str = ".expired";

/// How often the plan is made again because backups have changed meanwhile.
const TURNS: u32 = 20;

/// Locks that are held for an instant, or for as long as a document takes to be written, are waited
/// for so often.
const LOCK_TRIES: u32 = 500;
/// Whoever lists the backups looks at each lock for an instant.
const LOOK_TRIES: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Nothing, or not all, has expired.
#[derive(Debug, Error)]
pub enum ExpireError {
    /// What is needed cannot be known.
    #[error(transparent)]
    Undecided(#[from] Undecided),
    /// It may be a backup under another name.
    #[error("{} is not a backup of this repository, and may need WAL", .0.display())]
    Stranger(PathBuf),
    /// Another process plans, marks a backup or begins one.
    #[error("another process is changing the backups: {0}")]
    Busy(DiskError),
    /// Backups are sealed or restored faster than a plan can be made.
    #[error("the backups change faster than they can be looked at")]
    Unsettled,
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The repository cannot be read or written.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

impl From<DiskError> for ExpireError {
    fn from(e: DiskError) -> Self {
        Self::Repository(e.into())
    }
}

impl Repository {
    /// What [`Repository::expire`] would do now. Writes nothing.
    ///
    /// # Errors
    /// As [`Repository::expire`].
    pub fn plan_expire(&self, policy: &Policy, now: Timestamp) -> Result<Plan, ExpireError> {
        self.settle(policy, now).map(|(plan, _locks)| plan)
    }

    /// Removes the backups and the WAL that the policy does not ask for and nothing needs (promise P4);
    /// what it did. Finishes what an interrupted one has left.
    ///
    /// # Errors
    /// When what is needed cannot be known: nothing is removed then. And when something cannot be removed:
    /// the next one goes on.
    pub fn expire(&self, policy: &Policy, now: Timestamp) -> Result<Plan, ExpireError> {
        let _alone = self.lock_backups()?;
        let (plan, _locks) = self.settle(policy, now)?;
        // What we no longer see may come back after a power cut, if whoever removed it was killed.
        let _gone = self.disk.sync_dir(&self.backups_dir())?;
        for id in plan.removed().rev() {
            self.retire(id)?;
        }
        self.remove_retired()?;
        self.remove_wal(&plan)?;
        self.remove_histories(&plan)?;
        Ok(plan)
    }

    /// Marks a complete backup so that it never expires, or takes the mark away; durable on return.
    /// False if that was so already.
    ///
    /// # Errors
    /// When it is not complete, or the mark cannot be written.
    pub fn mark(&self, which: Which, keep: bool) -> Result<(BackupId, bool), MarkError> {
        let _alone = self.lock_backups()?;
        let id = self.find(which)?.id;
        let dir = self.backup_dir(id);
        let path = dir.join(KEEP);
        let changes = self.disk.metadata(&path)?.is_some() != keep;
        if changes && keep {
            let (_file, _data) = self.disk.create(&path, self.modes.file())?.sync()?;
        } else if changes {
            self.disk.remove(&path)?;
        }
        let _names = self.disk.sync_dir(&dir)?;
        Ok((id, changes))
    }

    /// Keeps `expire` away for as long as the lock lives: from before a backup looks whether its WAL is held
    /// until it has said which that is.
    ///
    /// # Errors
    /// [`RepositoryError::Locked`] while one is under way.
    pub fn claim(&self) -> Result<Lock, RepositoryError> {
        self.disk.lock_dir_shared(&self.backups_dir()).map_err(locked)
    }

    /// Keeps a complete backup, and the WAL from its start on, from being removed for as long as the lock
    /// lives.
    ///
    /// # Errors
    /// When it is not there any more, or is being removed.
    pub fn hold(&self, id: BackupId) -> Result<(Seal, Lock), NotUsable> {
        let dir = self.backup_dir(id);
        let lock = match patiently(LOCK_TRIES, || self.disk.lock_dir_shared(&dir)) {
            Ok(lock) => lock,
            Err(e) if e.trouble() == Trouble::Missing => return Err(NotUsable::NotFound(id)),
            Err(e) if e.trouble() == Trouble::Locked => return Err(NotUsable::InUse(id)),
            Err(e) => return Err(RepositoryError::from(e).into()),
        };
        // As it is now that nobody can remove it.
        Ok((self.find(Which::Named(id))?, lock))
    }

    fn lock_backups(&self) -> Result<Lock, DiskOrBusy> {
        patiently(LOCK_TRIES, || self.disk.lock_dir(&self.backups_dir())).map_err(|e| match e.trouble() {
            Trouble::Locked => DiskOrBusy::Busy(e),
            _ => DiskOrBusy::Disk(e),
        })
    }

    /// The plan, with the locks of all that goes.
    fn settle(&self, policy: &Policy, now: Timestamp) -> Result<(Plan, Vec<Lock>), ExpireError> {
        let mut in_use = BTreeSet::new();
        for _turn in 0..TURNS {
            self.check_names()?;
            let backups = self.backups()?;
            let coverage = self.coverage(&backups)?;
            let plan = plan(&coverage, &backups, &in_use, policy, now)?;
            let mut locks = Vec::new();
            let mut changed = false;
            for entry in plan.removed().filter_map(|id| backups.iter().find(|entry| entry.id == id)) {
                match patiently(LOOK_TRIES, || self.disk.lock_dir(&self.backup_dir(entry.id))) {
                    Ok(lock) => locks.push(lock),
                    Err(e) if e.trouble() == Trouble::Locked => changed |= in_use.insert(entry.id),
                    Err(e) => return Err(e.into()),
                }
                // One that waited for its WAL may have been sealed before we had the lock.
                changed |= self.backup(entry.id)?.is_none_or(|again| again.state != entry.state);
            }
            if !changed {
                return Ok((plan, locks));
            }
        }
        Err(ExpireError::Unsettled)
    }

    /// What bears another name than a backup's must be certain to be none.
    fn check_names(&self) -> Result<(), ExpireError> {
        for entry in self.disk.list(&self.backups_dir())? {
            let path = self.backups_dir().join(&entry.name);
            let name = entry.name.to_str().unwrap_or_default();
            let ours = name.strip_suffix(EXPIRED).unwrap_or(name).parse::<BackupId>().is_ok();
            let nothing = match entry.kind {
                EntryKind::Directory => ours || name == "lost+found" || self.disk.list(&path)?.is_empty(),
                EntryKind::File => true,
                EntryKind::Other => false,
            };
            if !nothing {
                return Err(ExpireError::Stranger(path));
            }
        }
        Ok(())
    }

    /// From here on it is no backup. A backup that is based on another goes before it, and durably.
    fn retire(&self, id: BackupId) -> Result<(), ExpireError> {
        let retired = self.backups_dir().join(format!("{id}{EXPIRED}"));
        // Of an earlier backup that bore the same second.
        if self.disk.metadata(&retired)?.is_some() {
            self.disk.remove_tree(&retired)?;
        }
        self.disk.rename(&self.backup_dir(id), &retired)?;
        let _gone = self.disk.sync_dir(&self.backups_dir())?;
        Ok(())
    }

    fn remove_retired(&self) -> Result<(), ExpireError> {
        for entry in self.disk.list(&self.backups_dir())? {
            let id = entry.name.to_str().and_then(|name| name.strip_suffix(EXPIRED)).map(str::parse::<BackupId>);
            if matches!(id, Some(Ok(_))) && entry.kind == EntryKind::Directory {
                self.disk.remove_tree(&self.backups_dir().join(&entry.name))?;
            }
        }
        let _gone = self.disk.sync_dir(&self.backups_dir())?;
        Ok(())
    }

    fn remove_wal(&self, plan: &Plan) -> Result<(), ExpireError> {
        let archive = self.archive();
        // A receiver may compress one of them between the list and its turn.
        for _turn in 0..TURNS {
            let names = self.names_taken(plan)?;
            if names.is_empty() {
                break;
            }
            for name in &names {
                remove_if_there(&*self.disk, &archive.dir().join(name))?;
            }
        }
        self.remove_gap_notes()?;
        let _gone = self.disk.sync_dir(archive.dir())?;
        Ok(())
    }

    /// The files of all segments that go, oldest first. While a receiver runs, what is begun stays: it may
    /// be what is being written, in a hole that is filled. It goes another time. The end of a timeline that was
    /// left goes: alone, it would look like what is before a gap.
    fn names_taken(&self, plan: &Plan) -> Result<Vec<OsString>, ExpireError> {
        let receives = self.writer()?.is_some();
        let mut names = Vec::new();
        let mut complete: HashMap<u64, TimelineId> = HashMap::new();
        for entry in self.disk.list(self.archive().dir())? {
            let name = entry.name.to_str().and_then(|name| WalName::parse(name, self.size));
            let Some(WalName::Segment { segment, partial, .. }) = name else { continue };
            if !partial {
                let newest = complete.entry(segment.no()).or_insert(TimelineId::FIRST);
                *newest = segment.tli().max(*newest);
            }
            if plan.takes(segment) {
                names.push(((segment.tli(), segment.no()), partial, entry.name));
            }
        }
        let was_left = |(tli, no)| complete.get(&no).is_some_and(|newest| *newest > tli);
        names.retain(|(segment, partial, _)| !(*partial && receives) || was_left(*segment));
        names.sort();
        Ok(names.into_iter().map(|(_, _, name)| name).collect())
    }

    /// A gap that nothing is held before is none any more.
    fn remove_gap_notes(&self) -> Result<(), ExpireError> {
        let archive = self.archive();
        let listing = archive.list()?;
        let nothing_before = |segment: Segment| {
            listing.of_timeline(segment.tli()).next().is_none_or(|(first, _)| first.no() > segment.no())
        };
        for entry in self.disk.list(archive.dir())? {
            let name = entry.name.to_str().and_then(|name| WalName::parse(name, self.size));
            if let Some(WalName::Gap(segment)) = name
                && nothing_before(segment)
            {
                remove_if_there(&*self.disk, &archive.dir().join(&entry.name))?;
            }
        }
        Ok(())
    }

    fn remove_histories(&self, plan: &Plan) -> Result<(), ExpireError> {
        if plan.histories.is_empty() {
            return Ok(());
        }
        let archive = self.archive();
        for entry in self.disk.list(archive.dir())? {
            let name = entry.name.to_str().and_then(|name| WalName::parse(name, self.size));
            if let Some(WalName::History(file, _)) = name
                && plan.histories.contains(&file.0)
            {
                remove_if_there(&*self.disk, &archive.dir().join(&entry.name))?;
            }
        }
        let _gone = self.disk.sync_dir(archive.dir())?;
        Ok(())
    }
}

impl Plan {
    /// Whether a segment goes.
    fn takes(&self, segment: Segment) -> bool {
        let order = |segment: Segment| (segment.tli(), segment.no());
        let behind = self.wal.partition_point(|wal| order(wal.first) <= order(segment));
        behind.checked_sub(1).and_then(|index| self.wal.get(index)).is_some_and(|wal| wal.contains(segment))
    }
}

/// A mark cannot be set.
#[derive(Debug, Error)]
pub enum MarkError {
    /// It is not complete.
    #[error(transparent)]
    NotUsable(#[from] NotUsable),
    /// An expire is under way.
    #[error("another process is changing the backups: {0}")]
    Busy(DiskError),
    /// It cannot be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Why the lock on all backups was not had.
enum DiskOrBusy {
    Busy(DiskError),
    Disk(DiskError),
}

impl From<DiskOrBusy> for ExpireError {
    fn from(e: DiskOrBusy) -> Self {
        match e {
            DiskOrBusy::Busy(e) => Self::Busy(e),
            DiskOrBusy::Disk(e) => e.into(),
        }
    }
}

impl From<DiskOrBusy> for MarkError {
    fn from(e: DiskOrBusy) -> Self {
        match e {
            DiskOrBusy::Busy(e) => Self::Busy(e),
            DiskOrBusy::Disk(e) => Self::Disk(e),
        }
    }
}

fn patiently(tries: u32, mut lock: impl FnMut() -> Result<Lock, DiskError>) -> Result<Lock, DiskError> {
    for _try in 1..tries {
        match lock() {
            Err(e) if e.trouble() == Trouble::Locked => std::thread::sleep(LOCK_PAUSE),
            other => return other,
        }
    }
    lock()
}
