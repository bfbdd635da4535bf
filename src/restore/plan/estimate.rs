//! How long a restore may take.

use serde::Serialize;

use super::PlannedWal;
use crate::repository::{BackupId, BackupState, Kind, Repository, RepositoryError};

/// What a drill tells of less than this is mostly the time that a server takes to start.
const ENOUGH: u64 = 64 << 20;

/// Bytes a second, where no drill has measured it: of data files laid down on one plain disk, and of
/// WAL replayed by one process.
const LAY_DOWN: u64 = 200 << 20;
const REPLAY: u64 = 40 << 20;

/// A guess from what drills took, or from usual speeds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Estimate {
    /// Milliseconds until the files are there.
    pub lay_down_ms: u64,
    /// Milliseconds that the server may take to recover; `None` for a standby.
    pub recovery_ms: Option<u64>,
    /// Bytes of data files.
    pub data_bytes: u64,
    /// Bytes of WAL that are replayed, of what is held now; `None` for a standby.
    pub wal_bytes: Option<u64>,
    /// The backup whose drill told the speed of the replay.
    pub as_drilled: Option<BackupId>,
}

impl Estimate {
    pub(super) fn of(repository: &Repository, data_bytes: u64, wal: &PlannedWal) -> Result<Self, RepositoryError> {
        let measured = Speeds::of(repository)?;
        let wal_bytes = wal.end.as_ref().map(|end| end.at.saturating_sub(wal.from));
        let (replay, as_drilled) = measured.replay.map_or((REPLAY, None), |(speed, id)| (speed, Some(id)));
        Ok(Self {
            lay_down_ms: milliseconds(data_bytes, measured.lay_down.unwrap_or(LAY_DOWN)),
            recovery_ms: wal_bytes.map(|bytes| milliseconds(bytes, replay)),
            data_bytes,
            wal_bytes,
            as_drilled,
        })
    }
}

/// Bytes a second, of the newest backups whose drills moved enough.
#[derive(Default)]
struct Speeds {
    lay_down: Option<u64>,
    replay: Option<(u64, BackupId)>,
}

impl Speeds {
    fn of(repository: &Repository) -> Result<Self, RepositoryError> {
        let mut speeds = Self::default();
        for entry in repository.backups()?.into_iter().rev() {
            let BackupState::Sealed(seal) = entry.state else { continue };
            // A record that cannot be read tells nothing.
            let Ok(Some(drill)) = repository.last_drill(seal.id) else { continue };
            let took = drill.durations_ms;
            let replayed = drill.reached.map_or(0, |reached| reached.saturating_sub(seal.start.lsn()));
            // An incremental one lists what has changed, and more than that is laid down.
            let laid_down = if seal.kind == Kind::Full { seal.manifest.bytes } else { 0 };
            speeds.lay_down = speeds.lay_down.or_else(|| speed(laid_down, took.restore));
            speeds.replay = speeds.replay.or_else(|| Some((speed(replayed, took.recovery)?, seal.id)));
        }
        Ok(speeds)
    }
}

fn speed(bytes: u64, milliseconds: u64) -> Option<u64> {
    let speed = bytes.checked_mul(1000)?.checked_div(milliseconds)?;
    Some(speed).filter(|speed| bytes >= ENOUGH && *speed > 0)
}

fn milliseconds(bytes: u64, speed: u64) -> u64 {
    bytes.saturating_mul(1000).checked_div(speed).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_of_what_moved_enough() {
        assert_eq!(speed(128 << 20, 2000), Some(64 << 20));
        assert_eq!(speed(ENOUGH - 1, 1), None, "mostly the start of the server");
        assert_eq!((speed(ENOUGH, 0), speed(u64::MAX, 1), speed(ENOUGH, u64::MAX)), (None, None, None));
        assert_eq!((milliseconds(400 << 20, LAY_DOWN), milliseconds(1, 0)), (2000, u64::MAX));
    }
}
