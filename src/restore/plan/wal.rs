//! What the restored server will read, and where it will stop.

use serde::Serialize;

use super::super::target::{Action, Along, MadeTablespace, Near, Target, Transaction, Watch};
use super::super::unreachable::{Beside, Point, Unreachable};
use super::super::wal_get::{Holdings, Reach};
use super::super::{Goal, RestoreError};
use crate::archive::{Archive, ArchiveError, Stopped};
use crate::repository::Seal;
use crate::wal::{Chain, History, Lsn, Seed, Segment, ServerTime, TimelineId};

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
    /// Where recovery is to stop; `None` for the end of what is held.
    pub target: Option<PlannedTarget>,
    /// Where it will end; `None` for a standby.
    pub end: Option<PlannedEnd>,
    /// Tablespaces that it makes where they lay on the server that was copied; of a standby, those of
    /// which the backup's own WAL tells.
    pub makes_tablespaces: Vec<MadeTablespace>,
}

/// A target, as it is told to the server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PlannedTarget {
    /// The point.
    #[serde(flatten)]
    pub target: TargetSetting,
    /// Whether what lies exactly there is replayed.
    pub inclusive: bool,
    /// What the server does then.
    pub action: Action,
}

/// One line of its configuration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TargetSetting {
    setting: &'static str,
    value: String,
}

/// The end of a recovery, read from the WAL.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PlannedEnd {
    /// Exclusive end of the last record that is replayed.
    pub at: Lsn,
    /// The last transaction that ended in it, whichever way.
    pub last_transaction: Option<Transaction>,
    /// The last one that was committed.
    pub last_commit: Option<Transaction>,
    /// Why it ends there, in words; `None` where it is for lack of WAL.
    pub because: Option<String>,
}

/// What is asked of the WAL of one backup.
pub(super) struct Ask<'a> {
    pub(super) goal: &'a Goal,
    pub(super) along: Along,
    /// What lies behind this has been looked at already, in vain.
    pub(super) until: Option<Lsn>,
    /// The backups that can be restored, for what is said of a hole.
    pub(super) others: &'a [Seal],
}

/// Plans the recovery of a backup whose WAL is proven, and reads what it will meet.
pub(super) fn plan_wal(
    archive: &Archive,
    backup: &Seal,
    ask: &Ask<'_>,
    near: &mut Near,
    notes: &mut Vec<String>,
) -> Result<(PlannedWal, Option<Segment>), RestoreError> {
    let holdings = Holdings::new(archive, archive.list()?)?;
    let (way, reach) = choose(archive, &holdings, backup, ask, notes)?;
    let (from, stop) = (backup.start.lsn(), backup.stop.lsn());
    let standby = matches!(ask.goal, Goal::Standby { .. });
    let last_needed = way.segment_at(before(stop), archive.size());
    // A standby goes on for ever: the segment that holds the backup's end is read whole, no more.
    let until = if standby { last_needed.end() } else { ask.until.unwrap_or(Lsn::new(u64::MAX)) };
    let mut watch = Watch::new(ask.goal.aim(), from, stop, backup.stop_time.0, near);
    let damage = walk(archive, &way, until, &mut watch)?;
    if let (Some(aim), false) = (ask.goal.aim(), watch.stop.is_some() && watch.is_consistent()) {
        let hole = damage.as_ref().map(|damage| damage.segment).or_else(|| reach.gap.map(|(gap, _)| gap));
        return Err(RestoreError::Unreachable(Box::new(unreachable(&aim.target, backup, &watch, hole, ask.others))));
    }
    let stops = watch.stop.is_some();
    match (&reach.gap, ask.goal) {
        (Some((gap, later)), Goal::EndOfWal) => notes.push(format!(
            "recovery ends before segment {gap}, which is missing; the archive goes on to {later}, \
             and a later backup reaches further"
        )),
        (Some((gap, _)), Goal::Standby { .. }) => {
            notes.push(format!("segment {gap} is missing; the standby needs it from its primary"));
        }
        _ => {}
    }
    if let Some(Damage { segment, what, last }) = &damage {
        let then = match last {
            _ if stops => "recovery stops before that".to_owned(),
            Some(last) if *segment != last_needed => format!(
                "the server ends there with an error, unless the segment is put right; --target-lsn {last} is before it"
            ),
            _ => "recovery ends there".to_owned(),
        };
        notes.push(format!("segment {segment} is damaged behind the backup's end ({what}): {then}"));
    }
    // No damage that the server may meet must keep a recovery from coming to its target, or a whole backup
    // from starting. The way up to it is that of the timeline that the damaged segment is of.
    let end = damage.map(|damage| damage.segment).filter(|segment| stops || *segment == last_needed);
    let tli = end.map_or_else(|| way.tli(), Segment::tli);
    let gap = end.or_else(|| reach.gap.map(|(gap, _)| gap)).filter(|_| !standby);
    let target = ask.goal.aim().map(|aim| {
        let (setting, value) = aim.target.setting();
        let target = TargetSetting { setting, value };
        PlannedTarget { target, inclusive: aim.inclusive, action: aim.action }
    });
    let end = PlannedEnd {
        at: watch.end,
        last_transaction: watch.last,
        last_commit: watch.last_commit,
        because: watch.stop.map(|stop| stop.because),
    };
    let wal = PlannedWal {
        from,
        consistent_at: stop,
        timeline: (!standby).then_some(tli),
        last_segment: reach.last.name(),
        ends_at_gap: gap.map(Segment::name),
        target,
        end: (!standby).then_some(end),
        makes_tablespaces: watch.made,
    };
    Ok((wal, gap))
}

fn before(lsn: Lsn) -> Lsn {
    Lsn::new(lsn.get().saturating_sub(1))
}

/// The way of the recovery, and how far it leads.
fn choose(
    archive: &Archive,
    holdings: &Holdings,
    backup: &Seal,
    ask: &Ask<'_>,
    notes: &mut Vec<String>,
) -> Result<(History, Reach), RestoreError> {
    let stop = backup.stop;
    let reach = |way: &History| holdings.reach(way, way.segment_at(before(stop.lsn()), archive.size()));
    let own = || {
        let way = holdings.route(stop.tli());
        let reach = reach(&way);
        Ok((way, reach))
    };
    match ask.along {
        Along::Current => own(),
        Along::Latest => match newest(archive, holdings, backup, notes, reach)? {
            Some(chosen) => Ok(chosen),
            None => own(),
        },
        Along::Timeline(tli) if tli == stop.tli() => own(),
        Along::Timeline(tli) => {
            let way = archive.history(tli)?;
            if !leads_on(&way, backup) {
                return Err(RestoreError::NotOnTimeline { id: backup.id, stop: stop.lsn(), timeline: tli });
            }
            let reach = reach(&way);
            match reach.gap {
                // Up to the hole a target may be found all the same.
                Some((gap, _)) if gap.tli() != tli && ask.goal.aim().is_none() => {
                    Err(RestoreError::TimelineCutOff { timeline: tli, segment: gap })
                }
                _ => Ok((way, reach)),
            }
        }
    }
}

/// Whether a timeline comes from where the backup ends.
pub(super) fn leads_on(way: &History, backup: &Seal) -> bool {
    let stop = backup.stop;
    way.tli() == stop.tli() || way.switch_from(stop.tli()).is_some_and(|switch| switch.at >= stop.lsn())
}

/// The newest timeline that can be reached without a hole; `None` for the backup's own.
fn newest(
    archive: &Archive,
    holdings: &Holdings,
    backup: &Seal,
    notes: &mut Vec<String>,
    reach: impl Fn(&History) -> Reach,
) -> Result<Option<(History, Reach)>, RestoreError> {
    let mut candidates: Vec<TimelineId> = holdings.listing().timelines();
    candidates.retain(|tli| *tli > backup.stop.tli());
    candidates.reverse();
    for tli in candidates {
        let way = match archive.history(tli) {
            Ok(way) => way,
            Err(ArchiveError::NoHistory(_)) => {
                notes.push(format!("timeline {tli} is not gone along, for its history file is not in the archive"));
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        if !leads_on(&way, backup) {
            continue;
        }
        let reach = reach(&way);
        match reach.gap {
            Some((gap, _)) if gap.tli() != tli || reach.last.tli() != tli => {
                notes.push(format!("timeline {tli} is not gone along, for segment {gap} on the way to it is missing"));
            }
            _ => return Ok(Some((way, reach))),
        }
    }
    Ok(None)
}

/// What a server cannot read past.
struct Damage {
    segment: Segment,
    what: String,
    /// Where the last whole record before it begins.
    last: Option<Lsn>,
}

/// Shows the recovery's records from its first on, up to `until`, to the end of what is held, or until it
/// stops; and what is damaged on the way. A server reads ahead of what it replays: so is the rest of the
/// segment read in which it stops, and the next one.
fn walk(archive: &Archive, way: &History, until: Lsn, watch: &mut Watch<'_>) -> Result<Option<Damage>, ArchiveError> {
    let size = archive.size();
    let start = way.segment_at(watch.end, size).start();
    let seed = Seed { start, size, system_id: archive.system_id(), newest_tli: way.tli() };
    let mut chain = Chain::new(seed).along(way);
    let mut until = until;
    while chain.at() < until {
        let segment = way.segment_at(chain.at(), size);
        let walked = archive.walk(way, &mut chain, segment.end().min(until), &mut |record| watch.see(record));
        let last = chain.last_record();
        let damage = |what| Ok(Some(Damage { segment, what, last }));
        match walked {
            Ok(Stopped::Reached) => {}
            Ok(Stopped::Invalid { form, broken, .. }) if !form.partial => return damage(broken.to_string()),
            Ok(Stopped::Short { form, bytes, .. }) if !form.partial => {
                return damage(format!("it has {bytes} bytes and must have {}", size.bytes()));
            }
            Ok(_) => return Ok(None),
            Err(e) if e.is_of_content() => return damage(e.to_string()),
            Err(e) => return Err(e),
        }
        if watch.is_over() {
            until = until.min(segment.end().saturating_add(size.bytes()));
        }
    }
    Ok(None)
}

/// Why a target cannot be reached, with what can be instead.
fn unreachable(
    target: &Target,
    backup: &Seal,
    watch: &Watch<'_>,
    hole: Option<Segment>,
    others: &[Seal],
) -> Unreachable {
    let target = target.clone();
    if watch.stop.is_some() {
        let floor = watch.floor.and_then(ServerTime::timestamp).map(crate::repository::Time);
        return Unreachable::BeforeBackup { target, consistent: Beside::of(backup), floor };
    }
    let end = Point { at: watch.end, commit: watch.last_commit.and_then(|last| last.time) };
    let Some(hole) = hole else { return Unreachable::PastEnd { target, end } };
    let behind = others.iter().filter(|other| other.start.lsn() >= hole.start() && other.start.tli() >= hole.tli());
    let after = behind.min_by_key(|other| other.stop.lsn()).map(Beside::of);
    Unreachable::InGap { target, before: end, hole, after }
}
