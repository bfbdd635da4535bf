//! Whether a copied `pg_control` is of the backup that it is said to be of.

use thiserror::Error;

use super::{BackupLabel, BackupSource, ClusterState, ControlFile};
use crate::wal::{Lsn, Pos};

/// It is not.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Misfit {
    /// Of another cluster.
    #[error("its pg_control is of the cluster with system identifier {found}, and the server's is {wanted}")]
    Cluster {
        /// In the file.
        found: u64,
        /// The server's.
        wanted: u64,
    },
    /// Of a moment before the backup, or after it.
    #[error("its pg_control is of the checkpoint at {found}, and the backup is from {from} to {to}")]
    Time {
        /// Where its last checkpoint is.
        found: Lsn,
        /// The first that it could be.
        from: Lsn,
        /// Exclusive end of the backup's WAL.
        to: Lsn,
    },
    /// Not of a server that was running then.
    #[error("its pg_control is not that of a server that was running")]
    State,
    /// Of a standby that went further than the backup.
    #[error("its pg_control needs WAL up to {found}, and the backup ends at {stop}")]
    End {
        /// Its minimum recovery point.
        found: Pos,
        /// Exclusive end of the backup's WAL.
        stop: Pos,
    },
}

impl ControlFile {
    /// Holds the file of a copy that was made between the server's calls against the label that the server
    /// gave at the end, `stop` (exclusive). The server's checkpoint is in it before the start returns.
    ///
    /// # Errors
    /// When it cannot have been copied then.
    pub fn fits(&self, label: &BackupLabel, system_identifier: u64, stop: Pos) -> Result<(), Misfit> {
        self.is_of(system_identifier)?;
        let (found, from, to) = (self.checkpoint, label.checkpoint, stop.lsn());
        if found < from || found >= to || self.redo.lsn() < label.start.lsn() {
            return Err(Misfit::Time { found, from, to });
        }
        let state = match label.source {
            BackupSource::Primary => ClusterState::InProduction,
            BackupSource::Standby => ClusterState::InArchiveRecovery,
        };
        if self.state != state {
            return Err(Misfit::State);
        }
        match self.min_recovery.filter(|_| label.source == BackupSource::Standby) {
            Some(found) if found.lsn() > to => Err(Misfit::End { found, stop }),
            _ => Ok(()),
        }
    }

    /// Holds the file of a snapshot that was taken at one instant against the position from which the server
    /// would have recovered before that, `start`, and one behind it.
    ///
    /// # Errors
    /// When it cannot be of an instant in between.
    pub fn fits_snapshot(&self, system_identifier: u64, start: Pos, stop: Pos) -> Result<(), Misfit> {
        self.is_of(system_identifier)?;
        let (found, from, to) = (self.checkpoint, start.lsn(), stop.lsn());
        if self.redo.lsn() < from || found < from || found >= to || self.redo.tli() != start.tli() {
            return Err(Misfit::Time { found, from, to });
        }
        if self.state == ClusterState::InProduction { Ok(()) } else { Err(Misfit::State) }
    }

    fn is_of(&self, wanted: u64) -> Result<(), Misfit> {
        let found = self.system_identifier;
        if found == wanted { Ok(()) } else { Err(Misfit::Cluster { found, wanted }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::TimelineId;

    const RUNNING: &[u8] = include_bytes!("../../proto-tests/captured/pg_control-15-standby");

    fn pos(lsn: u64) -> Pos {
        Pos::new(TimelineId::FIRST, Lsn::new(lsn))
    }

    fn label(source: &str, start: u64, checkpoint: u64) -> BackupLabel {
        let (start, checkpoint) = (Lsn::new(start), Lsn::new(checkpoint));
        let text = format!(
            "START WAL LOCATION: {start} (file 000000010000000000000008)\nCHECKPOINT LOCATION: {checkpoint}\n\
             BACKUP METHOD: streamed\nBACKUP FROM: {source}\nSTART TIME: x\nLABEL: x\nSTART TIMELINE: 1\n"
        );
        BackupLabel::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_file_of_the_time_between_start_and_stop_fits() {
        // Of a standby: checkpoint 0/8005748, redo 0/8005710, minimum recovery point 0/80057C0.
        let control = ControlFile::parse(RUNNING).unwrap();
        let ours = control.system_identifier;
        let began = label("standby", 0x800_5710, 0x800_5748);
        assert_eq!(control.fits(&began, ours, pos(0x800_57C0)), Ok(()));
        assert!(matches!(control.fits(&began, ours + 1, pos(0x800_57C0)), Err(Misfit::Cluster { .. })));
        assert!(matches!(control.fits(&began, ours, pos(0x800_57B8)), Err(Misfit::End { .. })));
        assert!(matches!(control.fits(&began, ours, pos(0x800_5748)), Err(Misfit::Time { .. })));
        let later = label("standby", 0x800_5750, 0x800_5788);
        assert!(matches!(control.fits(&later, ours, pos(0x800_57C0)), Err(Misfit::Time { .. })));
        let primary = label("primary", 0x800_5710, 0x800_5748);
        assert_eq!(control.fits(&primary, ours, pos(0x800_57C0)), Err(Misfit::State));
    }

    #[test]
    fn a_snapshots_file_is_of_an_instant_in_between() {
        let control = ControlFile { state: ClusterState::InProduction, ..ControlFile::parse(RUNNING).unwrap() };
        let ours = control.system_identifier;
        assert_eq!(control.fits_snapshot(ours, pos(0x800_5710), pos(0x800_5800)), Ok(()));
        assert!(control.fits_snapshot(ours, pos(0x800_5718), pos(0x800_5800)).is_err());
        assert!(control.fits_snapshot(ours, pos(0x800_5710), pos(0x800_5748)).is_err());
        let standby = ControlFile::parse(RUNNING).unwrap();
        assert_eq!(standby.fits_snapshot(ours, pos(0x800_5710), pos(0x800_5800)), Err(Misfit::State));
    }
}
