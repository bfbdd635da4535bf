//! What the restored server will read.

use serde::Serialize;

use super::super::wal_get::Holdings;
use super::super::{Goal, RestoreError};
use crate::archive::{Archive, ArchiveError, Stopped};
use crate::repository::Seal;
use crate::wal::{Broken, Chain, History, Lsn, Seed, Segment, TimelineId};

/// The WAL that the restored server will read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PlannedWal {
    /// From here it recovers.
    pub from: Lsn,
    /// Here the data is consistent; proven from the WAL's bytes.
    pub consistent_at: Lsn,
    /// The timeline along which it recovers; `None` for a standby, which follows its primary.
    pub timeline: Option<TimelineId>,
    /// Name of the last segment that is held without a hole before it; it may be a partial.
    pub last_segment: String,
    /// Name of the first segment of the hole at which the recovery ends though the archive goes on.
    pub ends_at_gap: Option<String>,
}

pub(super) fn plan_wal(
    archive: &Archive,
    backup: &Seal,
    goal: &Goal,
    notes: &mut Vec<String>,
) -> Result<(PlannedWal, Option<Segment>), RestoreError> {
    let listing = archive.list()?;
    let holdings = Holdings::new(archive, listing)?;
    let stop = backup.stop;
    // The newest timeline that can be reached without a hole; at last the backup's own.
    let mut candidates: Vec<TimelineId> = holdings.listing().timelines();
    candidates.retain(|tli| *tli > stop.tli());
    candidates.reverse();
    let from = Lsn::new(stop.lsn().get().saturating_sub(1));
    let mut chosen = None;
    for tli in candidates {
        let way = match archive.history(tli) {
            Ok(way) => way,
            Err(ArchiveError::NoHistory(_)) => {
                notes.push(format!("timeline {tli} is not gone along, for its history file is not in the archive"));
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        if way.switch_from(stop.tli()).is_none_or(|switch| switch.at < stop.lsn()) {
            continue;
        }
        let reach = holdings.reach(&way, way.segment_at(from, archive.size()));
        match reach.gap {
            Some((gap, _)) if gap.tli() != tli || reach.last.tli() != tli => {
                notes.push(format!("timeline {tli} is not gone along, for segment {gap} on the way to it is missing"));
            }
            _ => {
                chosen = Some((tli, reach));
                break;
            }
        }
    }
    let (tli, reach) = match chosen {
        Some(chosen) => chosen,
        None => {
            let way = holdings.route(stop.tli());
            (stop.tli(), holdings.reach(&way, way.segment_at(from, archive.size())))
        }
    };
    if let Some((gap, later)) = reach.gap {
        notes.push(match goal {
            Goal::EndOfWal => format!(
                "recovery ends before segment {gap}, which is missing; the archive goes on to {later}, \
                 and a later backup reaches further"
            ),
            Goal::Standby { .. } => format!("segment {gap} is missing; the standby needs it from its primary"),
        });
    }
    let standby = matches!(goal, Goal::Standby { .. });
    let damage = damage_behind(archive, &holdings.route(stop.tli()), from)?;
    if let Some((segment, broken)) = &damage {
        notes.push(format!(
            "segment {segment} is damaged at {}, behind the backup's end: recovery ends there",
            broken.at
        ));
    }
    let damage = damage.map(|(segment, _)| segment);
    let tli = if damage.is_some() { stop.tli() } else { tli };
    let gap = damage.or_else(|| reach.gap.map(|(gap, _)| gap)).filter(|_| !standby);
    let wal = PlannedWal {
        from: backup.start.lsn(),
        consistent_at: stop.lsn(),
        timeline: (!standby).then_some(tli),
        last_segment: reach.last.name(),
        ends_at_gap: gap.map(Segment::name),
    };
    Ok((wal, gap))
}

/// Damage in the segment that holds the backup's end, which the server reads whole. What lies before
/// the end has been proven.
fn damage_behind(archive: &Archive, way: &History, end: Lsn) -> Result<Option<(Segment, Broken)>, RestoreError> {
    let last = way.segment_at(end, archive.size());
    let (start, size, system_id) = (last.start(), archive.size(), archive.system_id());
    let mut chain = Chain::new(Seed { start, size, system_id, newest_tli: last.tli() });
    Ok(match archive.walk(way, &mut chain, last.end(), &mut |_| {})? {
        Stopped::Invalid { segment, form, broken } if !form.partial => Some((segment, broken)),
        _ => None,
    })
}
