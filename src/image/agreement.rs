//! Whether a backup's parts are of one backup.

use super::{BackupLabel, BackupSource, ControlFile, ManifestHead, WalRange};
use crate::wal::Pos;

/// Holds what the server said in several places against each other. For a backup from a standby, the position
/// at which the files are consistent.
///
/// # Errors
/// What does not fit, in words.
pub fn agreement(
    system_id: u64,
    start: Pos,
    stop: Pos,
    label: &BackupLabel,
    control: &ControlFile,
    manifest: Option<&ManifestHead>,
) -> Result<Option<Pos>, String> {
    if label.start != start {
        return Err(format!("the backup starts at {start}, and backup_label says {}", label.start));
    }
    let listed_id = manifest.and_then(|manifest| manifest.system_identifier);
    if control.system_identifier != system_id || listed_id.is_some_and(|id| id != system_id) {
        return Err(format!("the files are of another cluster than {system_id}"));
    }
    let whole = |range: &WalRange| range.tli == stop.tli() && range.start == start.lsn() && range.end == stop.lsn();
    if manifest.is_some_and(|manifest| !matches!(&*manifest.wal_ranges, [range] if whole(range))) {
        return Err(format!("the backup needs WAL from {start} to {stop}, and the manifest lists other WAL"));
    }
    match (label.source, control.min_recovery) {
        (BackupSource::Primary, _) => Ok(None),
        (BackupSource::Standby, Some(point)) if point.lsn() <= stop.lsn() => Ok(Some(point)),
        (BackupSource::Standby, Some(point)) => {
            Err(format!("the copied pg_control needs WAL up to {point}, and the backup ends at {stop}"))
        }
        (BackupSource::Standby, None) => Err("the copied pg_control of a standby has no minimum recovery point".into()),
    }
}
