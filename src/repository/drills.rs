//! What the last drill of a backup found, beside its seal.

use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

use super::{BackupId, Document, DocumentError, Repository, RepositoryError, Time, publish, read_document};
use crate::wal::{Lsn, TimelineId};

const DRILL: &str = "drill.json";

/// Milliseconds that parts of a drill took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DrillDurations {
    /// The proof of the backup's WAL, and reading what recovery will meet.
    pub plan: u64,
    /// Laying the files down.
    pub restore: u64,
    /// From the server's start to the end of its recovery.
    pub recovery: u64,
    /// All checks on the running server.
    pub checks: u64,
}

/// `drill.json`: a backup was restored and a server started on it. The newest replaces those before.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DrillRecord {
    /// The backup.
    pub backup: BackupId,
    /// When it began.
    pub started: Time,
    /// When the verdict was known.
    pub finished: Time,
    /// Why the backup is not usable; `None` if it passed.
    pub failure: Option<String>,
    /// The server that was started, as it says itself.
    pub server: Option<String>,
    /// The moment to which it was to recover; `None` for the end of the archive's WAL.
    pub target_time: Option<Time>,
    /// The timeline along which it recovered.
    pub timeline: Option<TimelineId>,
    /// Exclusive end of the last record that the server replayed.
    pub reached: Option<Lsn>,
    /// Commit time of the last transaction that it replayed.
    pub reached_time: Option<Time>,
    /// Exclusive end of the last whole record that the archive held on that timeline; `None` if it was not
    /// to recover so far.
    pub archive_end: Option<Lsn>,
    /// How long it took.
    pub durations_ms: DrillDurations,
    /// What was checked, each in a few words.
    pub checked: Vec<String>,
    /// What was not, and why.
    pub not_checked: Vec<String>,
    /// Name and version of the program.
    pub program: String,
}

impl DrillRecord {
    /// Whether the backup turned out to be usable.
    pub const fn passed(&self) -> bool {
        self.failure.is_none()
    }
}

impl Document for DrillRecord {
    const KIND: &'static str = "drill";
    const VERSION: u32 = 1;
}

impl Repository {
    /// What the last drill of a backup found; `None` if there was none.
    ///
    /// # Errors
    /// When the document is damaged, of another backup, or cannot be read.
    pub fn last_drill(&self, id: BackupId) -> Result<Option<DrillRecord>, RepositoryError> {
        let path = self.backup_dir(id).join(DRILL);
        let record = read_document::<DrillRecord>(&*self.disk, &path)?;
        if record.as_ref().is_some_and(|record| record.backup != id) {
            let source = DocumentError::Content("it belongs to another backup".to_owned());
            return Err(RepositoryError::Document { path, source });
        }
        Ok(record)
    }

    /// Puts a drill's result beside the backup's seal, durable on return.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn record_drill(&self, record: &DrillRecord) -> Result<(), RepositoryError> {
        let dir = self.backup_dir(record.backup);
        publish(&*self.disk, &dir, DRILL, record, self.modes.file())?;
        if rustix::process::geteuid().is_root()
            && let Ok(meta) = std::fs::metadata(&dir)
        {
            // Root drills the backups of others, who must be able to read and replace it.
            self.disk.set_access(&dir.join(DRILL), self.modes.file(), Some((meta.uid(), meta.gid())))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::NotUsable;
    use crate::repository::made::Parts;

    fn record(backup: BackupId) -> DrillRecord {
        let time = |text: &str| Time(text.parse().unwrap());
        DrillRecord {
            backup,
            started: time("2026-11-22T05:15:00Z"),
            finished: time("2026-11-22T05:16:00Z"),
            failure: None,
            server: Some("17.2".to_owned()),
            target_time: None,
            timeline: Some(TimelineId::FIRST),
            reached: Some(Lsn::new(0x1_0000_0028)),
            reached_time: Some(time("2026-11-22T05:14:59.123456Z")),
            archive_end: Some(Lsn::new(0x1_0000_0028)),
            durations_ms: DrillDurations { plan: 1, restore: 2, recovery: 3, checks: 4 },
            checked: vec!["x".to_owned()],
            not_checked: Vec::new(),
            program: "walhold test".to_owned(),
        }
    }

    #[test]
    fn the_newest_drill_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (repository, seal) = Parts::new().make(dir.path());
        assert_eq!(repository.last_drill(seal.id).unwrap(), None);
        let passed = record(seal.id);
        repository.record_drill(&passed).unwrap();
        assert_eq!(repository.last_drill(seal.id).unwrap(), Some(passed.clone()));
        let failed = DrillRecord { failure: Some("why".to_owned()), reached: None, ..passed };
        repository.record_drill(&failed).unwrap();
        assert_eq!(repository.last_drill(seal.id).unwrap(), Some(failed.clone()));
        assert!(!failed.passed());
        // The backup is as good as before.
        assert_eq!(repository.find(super::super::Which::Latest).unwrap().id, seal.id);
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "it is damaged from outside")]
    fn a_record_that_is_damaged_or_of_another_backup_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let (repository, seal) = Parts::new().make(dir.path());
        repository.record_drill(&record(seal.id)).unwrap();
        let path = repository.backup_dir(seal.id).join(DRILL);
        let bytes = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, bytes.replace("17.2", "17.3")).unwrap();
        assert!(matches!(repository.last_drill(seal.id), Err(RepositoryError::Document { .. })));
        let other = crate::repository::write(&record(BackupId::new(jiff::Timestamp::UNIX_EPOCH))).unwrap();
        std::fs::write(&path, other).unwrap();
        assert!(matches!(repository.last_drill(seal.id), Err(RepositoryError::Document { .. })));
    }

    #[test]
    fn a_backup_is_held_by_any_number_of_readers() {
        let dir = tempfile::tempdir().unwrap();
        let (repository, seal) = Parts::new().make(dir.path());
        let one = repository.hold(seal.id).unwrap();
        let two = repository.hold(seal.id).unwrap();
        assert!(matches!(repository.reopen_backup(seal.id), Err(RepositoryError::Locked(_))));
        drop((one, two));
        let writer = repository.reopen_backup(seal.id).unwrap();
        assert!(matches!(repository.hold(seal.id), Err(NotUsable::InUse(_))));
        drop(writer);
        assert!(repository.hold(seal.id).is_ok());
    }
}
