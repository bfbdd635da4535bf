//! What may go, told from seals and names (promise P4).
//!
//! Everything starts from the backups that stay. Their WAL is all that recovery can go through from
//! their start on, along every path, up to a gap; nothing of that goes, whatever the policy says.
//! Where the rules leave a doubt, more stays.

mod spans;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use thiserror::Error;

use super::chain::chain;
use super::{BackupEntry, BackupId, BackupState, Coverage, Pending, Seal, Time};
use crate::wal::{Pos, Segment, TimelineId};
use spans::Spans;

/// How long a backup that was not sealed is left alone, if nothing else is said: one day.
pub const PENDING_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Which backups an operator wants to keep; the larger set stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    last: Option<NonZeroU32>,
    window: Option<Duration>,
    pending_limit: Duration,
}

impl Policy {
    /// The `last` backups, and all that are needed to go back to any moment of `window` before now.
    /// Backups that were given up go when they are older than `pending_limit`. `None` without either.
    pub const fn new(last: Option<NonZeroU32>, window: Option<Duration>, pending_limit: Duration) -> Option<Self> {
        if last.is_none() && window.is_none() { None } else { Some(Self { last, window, pending_limit }) }
    }
}

/// Why a backup stays.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// It is the newest one that is sealed, or the newest of those that can be restored.
    Newest,
    /// It is one of the last ones that are to be kept.
    Last,
    /// It was taken in the window.
    InWindow,
    /// It was taken before the window, and the window's first moments are reached from it.
    ReachesWindow,
    /// The operator has marked it.
    Marked,
    /// This backup, which stays, is based on it.
    ParentOf(BackupId),
    /// A restore reads it.
    InUse,
    /// It is being made.
    Running,
    /// It is not sealed, and its WAL is here or may still come.
    MayBeSealed,
    /// It is not sealed, and was begun not long ago.
    Young,
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Newest => "the newest complete backup",
            Self::Last => "one of the last",
            Self::InWindow => "taken in the window",
            Self::ReachesWindow => "the window's beginning is reached from it",
            Self::Marked => "marked with walhold keep",
            Self::ParentOf(child) => return write!(f, "backup {child} is based on it"),
            Self::InUse => "a restore is reading it",
            Self::Running => "it is being made",
            Self::MayBeSealed => "not complete; its WAL may still come",
            Self::Young => "not complete, and begun not long ago",
        })
    }
}

/// Why a backup goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remove {
    /// The policy does not ask for it.
    Older,
    /// Its copy was given up before its end.
    GivenUp,
    /// Its copy has ended, and its WAL cannot come any more.
    WalLost,
}

impl fmt::Display for Remove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Older => "older than what is to be kept",
            Self::GivenUp => "given up before its end",
            Self::WalLost => "not complete, and its WAL cannot come any more",
        })
    }
}

/// What is to happen to a backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It stays, for at least one reason.
    Keep(Vec<Keep>),
    /// It goes.
    Remove(Remove),
}

/// A backup, and what is to happen to it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Decision {
    /// Which.
    #[serde(serialize_with = "as_text")]
    pub id: BackupId,
    /// What is to happen.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Of its files, as its seal has them; `None` if it is not sealed.
    pub bytes: Option<u64>,
}

impl Decision {
    /// Whether it goes.
    pub const fn removes(&self) -> bool {
        matches!(self.verdict, Verdict::Remove(_))
    }
}

/// Segments of one timeline that follow each other, in whatever form they are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct RemovedWal {
    /// The first.
    #[serde(serialize_with = "as_text")]
    pub first: Segment,
    /// The last, included.
    #[serde(serialize_with = "as_text")]
    pub last: Segment,
}

impl RemovedWal {
    /// How many.
    pub const fn segments(&self) -> u64 {
        self.last.no().saturating_sub(self.first.no()).saturating_add(1)
    }

    /// Bytes of WAL in them; compressed, they take less on the disk.
    pub const fn bytes(&self) -> u64 {
        self.segments().saturating_mul(self.first.size().bytes())
    }

    /// Whether a segment is one of them.
    pub fn contains(&self, segment: Segment) -> bool {
        segment.tli() == self.first.tli() && (self.first.no()..=self.last.no()).contains(&segment.no())
    }
}

/// Something that made more stay than the policy asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Note {
    /// No backup is sealed: no WAL goes.
    NoCompleteBackup,
    /// This backup has not said yet where its WAL begins: no WAL goes.
    StartUnknown(BackupId),
    /// This backup says that it ended after now.
    FromTheFuture(BackupId, Time),
    /// This backup says that it ended before one that comes before it; the later time counts.
    ClockWentBack(BackupId, Time),
    /// This backup lacks WAL: it does not count as one of the last.
    LacksWal(BackupId),
    /// What this backup is based on is not there: it does not count as one of the last.
    LacksParent(BackupId),
    /// No drill of this snapshot has passed: it does not count as one of the last.
    Untested(BackupId),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCompleteBackup => f.write_str("there is no complete backup, so all WAL stays"),
            Self::StartUnknown(id) => {
                write!(f, "backup {id} has not told yet where its WAL begins, so all WAL stays")
            }
            Self::FromTheFuture(id, time) => {
                write!(
                    f,
                    "backup {id} says that it ended at {time}, which is still to come: more stays than is asked for"
                )
            }
            Self::ClockWentBack(id, time) => write!(
                f,
                "backup {id} says that it ended at {time}, before an older one: the older one's time counts, \
                 and more stays than is asked for"
            ),
            Self::Untested(id) => {
                write!(f, "snapshot {id} does not count as one of the last, for no drill of it has passed")
            }
            Self::LacksWal(id) => {
                write!(
                    f,
                    "backup {id} cannot be restored, for WAL of it is missing: it does not count as one of the last"
                )
            }
            Self::LacksParent(id) => write!(
                f,
                "backup {id} cannot be restored, for a backup that it is based on is missing: it does not count as \
                 one of the last"
            ),
        }
    }
}

/// What stays and what goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Plan {
    /// Every backup, in the order of timeline and start.
    pub backups: Vec<Decision>,
    /// WAL that goes, in the order of timeline and position.
    pub wal: Vec<RemovedWal>,
    /// Timelines whose history files go.
    pub histories: Vec<TimelineId>,
    /// What the operator should know.
    pub notes: Vec<Note>,
}

impl Plan {
    /// The backups that go, in the order of timeline and start.
    pub fn removed(&self) -> impl DoubleEndedIterator<Item = BackupId> {
        self.backups.iter().filter(|decision| decision.removes()).map(|decision| decision.id)
    }

    /// Segments that go, and bytes of WAL in them.
    pub fn removed_wal(&self) -> (u64, u64) {
        self.wal.iter().fold((0, 0), |(n, bytes), wal| (n + wal.segments(), bytes.saturating_add(wal.bytes())))
    }
}

/// Nobody can tell what is needed, so nothing goes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Undecided {
    /// Its start, and what it is based on, are not known.
    #[error("backup {id} is damaged, so what it needs is not known: {why}")]
    Damaged {
        /// Which.
        id: BackupId,
        /// What is wrong.
        why: String,
    },
    /// Which backups lead to it is not known.
    #[error("the history file of timeline {0} is not in the archive, so what is needed to reach it is not known")]
    NoHistory(TimelineId),
}

/// Decides. `in_use` are the backups that restores hold; `now` is the time that the window ends at.
///
/// # Errors
/// When what is needed cannot be known.
pub fn plan(
    coverage: &Coverage,
    backups: &[BackupEntry],
    in_use: &BTreeSet<BackupId>,
    policy: &Policy,
    now: Timestamp,
) -> Result<Plan, Undecided> {
    for entry in backups {
        if let BackupState::Damaged(why) = &entry.state {
            return Err(Undecided::Damaged { id: entry.id, why: why.clone() });
        }
    }
    if let Some(path) = coverage.paths().find(|path| !path.is_known()) {
        return Err(Undecided::NoHistory(path.way().tli()));
    }
    let mut deciding = Deciding::new(coverage, backups, policy, now);
    deciding.keep_whatever_the_policy(in_use);
    deciding.keep_last();
    deciding.keep_window();
    deciding.keep_unsealed();
    deciding.keep_parents();
    Ok(deciding.decide())
}

/// A sealed backup.
struct Held<'a> {
    seal: &'a Seal,
    marked: bool,
    /// What is missing of it, as far as names tell: its WAL, what it is based on, or a drill.
    lacks: Option<Note>,
    /// When it ended, or one before it in the order if that says it ended later: whichever clock was
    /// wrong, it counts as newer rather than older.
    ended: Timestamp,
}

impl Held<'_> {
    const fn is_usable(&self) -> bool {
        self.lacks.is_none()
    }
}

struct Deciding<'a> {
    coverage: &'a Coverage,
    backups: &'a [BackupEntry],
    policy: &'a Policy,
    now: Timestamp,
    /// In the order of timeline and start.
    sealed: Vec<Held<'a>>,
    kept: BTreeMap<BackupId, BTreeSet<Keep>>,
    notes: Vec<Note>,
}

impl<'a> Deciding<'a> {
    fn new(coverage: &'a Coverage, backups: &'a [BackupEntry], policy: &'a Policy, now: Timestamp) -> Self {
        let mut sealed: Vec<_> = backups.iter().filter_map(|entry| Some((entry, entry.seal()?))).collect();
        sealed.sort_by_key(|(_, seal)| (seal.start.tli(), seal.start.lsn(), seal.id));
        let mut latest = Timestamp::MIN;
        let mut notes = Vec::new();
        let held = sealed.into_iter().map(|(entry, seal)| {
            let stop_time = seal.stop_time.0;
            if stop_time < latest {
                notes.push(Note::ClockWentBack(seal.id, seal.stop_time));
            }
            if stop_time > now {
                notes.push(Note::FromTheFuture(seal.id, seal.stop_time));
            }
            latest = latest.max(stop_time);
            let lacks = if !coverage.may_hold(seal.start.lsn(), seal.stop) {
                Some(Note::LacksWal(seal.id))
            } else if entry.untested {
                Some(Note::Untested(seal.id))
            } else {
                chain(backups, seal).is_err().then_some(Note::LacksParent(seal.id))
            };
            Held { seal, marked: entry.kept, lacks, ended: latest }
        });
        let sealed: Vec<_> = held.collect();
        if policy.window.is_none() {
            notes.clear();
        }
        notes.extend(sealed.iter().filter_map(|held| held.lacks));
        Self { coverage, backups, policy, now, sealed, kept: BTreeMap::new(), notes }
    }

    fn keep(&mut self, ids: impl IntoIterator<Item = BackupId>, why: Keep) {
        for id in ids {
            self.kept.entry(id).or_default().insert(why);
        }
    }

    fn keep_whatever_the_policy(&mut self, in_use: &BTreeSet<BackupId>) {
        let newest = self.sealed.last().map(|held| held.seal.id);
        let usable = self.sealed.iter().rfind(|held| held.is_usable()).map(|held| held.seal.id);
        self.keep(newest.into_iter().chain(usable), Keep::Newest);
        let marked: Vec<_> = self.sealed.iter().filter(|held| held.marked).map(|held| held.seal.id).collect();
        self.keep(marked, Keep::Marked);
        self.keep(in_use.iter().copied(), Keep::InUse);
    }

    /// The last ones on the way to the newest timeline; if there are fewer, those of timelines that
    /// were left fill up. One that lacks WAL does not count.
    fn keep_last(&mut self) {
        let Some(last) = self.policy.last else { return };
        let newest = self.coverage.newest_path();
        let on_path = |held: &&Held<'_>| newest.is_some_and(|path| path.carries(held.seal.stop));
        let (path, others): (Vec<_>, Vec<_>) = self.sealed.iter().rev().partition(on_path);
        let mut missing = last.get();
        let mut ids = Vec::new();
        for held in path.into_iter().chain(others) {
            if missing == 0 {
                break;
            }
            ids.push(held.seal.id);
            missing -= u32::from(held.is_usable());
        }
        self.keep(ids, Keep::Last);
    }

    /// All that were taken in the window; and on each path the last one before it, for it takes one to
    /// reach the window's first moments.
    fn keep_window(&mut self) {
        let Some(window) = self.policy.window else { return };
        let begin = self.now.checked_sub(window).unwrap_or(Timestamp::MIN);
        let inside: Vec<_> = self.sealed.iter().filter(|held| held.ended >= begin).map(|held| held.seal.id).collect();
        self.keep(inside, Keep::InWindow);
        let mut before = Vec::new();
        for path in self.coverage.paths() {
            // All WAL of a timeline came before the first backup of a newer one.
            let left = self.sealed.iter().any(|held| held.seal.start.tli() > path.way().tli() && held.ended < begin);
            let usable = |held: &&Held<'_>| held.ended < begin && held.is_usable() && path.carries(held.seal.stop);
            // Before a gap it is the last one of an older path, too, or there is a later one on that.
            let reaches = |held: &&Held<'_>| !left && path.is_reached_from(held.seal.start.lsn());
            before.extend(self.sealed.iter().rfind(usable).filter(reaches).map(|held| held.seal.id));
        }
        self.keep(before, Keep::ReachesWindow);
    }

    fn keep_unsealed(&mut self) {
        for entry in self.backups {
            let why = match &entry.state {
                BackupState::Sealed(_) | BackupState::Damaged(_) => continue,
                _ if entry.running => Keep::Running,
                BackupState::Pending(pending) if self.may_be_sealed(pending) => Keep::MayBeSealed,
                _ if entry.kept => Keep::Marked,
                _ if self.is_young(entry) => Keep::Young,
                _ => continue,
            };
            self.keep([entry.id], why);
        }
    }

    /// Whether the copy is whole, and the WAL up to its end is here or may still come: nothing is held
    /// behind the place where it is missing. Before there is a newer backup, it is not given up at all.
    fn may_be_sealed(&self, pending: &Pending) -> bool {
        let (Some(stop), Some(_)) = (pending.stop, &pending.ready) else { return false };
        let order = |pos: Pos| (pos.tli(), pos.lsn());
        let newer = |held: &Held<'_>| held.is_usable() && order(held.seal.start) > order(pending.start);
        self.coverage.may_come(pending.start.lsn(), stop) || !self.sealed.iter().any(newer)
    }

    fn is_young(&self, entry: &BackupEntry) -> bool {
        let begun = entry.id.time();
        let ended = match &entry.state {
            BackupState::Pending(pending) => pending.ready.as_ref().map_or(begun, |seal| seal.stop_time.0),
            _ => begun,
        };
        let limit = self.now.checked_sub(self.policy.pending_limit).unwrap_or(Timestamp::MIN);
        begun.max(ended) > limit
    }

    /// An incremental backup is nothing without those it is based on.
    fn keep_parents(&mut self) {
        let parents: BTreeMap<_, _> =
            self.backups.iter().filter_map(|entry| Some((entry.id, entry.parent()?))).collect();
        let mut unseen: Vec<_> = self.kept.keys().copied().collect();
        while let Some(child) = unseen.pop() {
            if let Some(parent) = parents.get(&child) {
                if !self.kept.contains_key(parent) {
                    unseen.push(*parent);
                }
                self.keep([*parent], Keep::ParentOf(child));
            }
        }
    }

    fn decide(mut self) -> Plan {
        let (wal, needed) = self.removable_wal();
        let histories = self.removable_histories(&needed);
        let decision = |entry: &BackupEntry| {
            let verdict = match (self.kept.get(&entry.id), &entry.state) {
                (Some(reasons), _) => Verdict::Keep(reasons.iter().copied().collect()),
                (None, BackupState::Sealed(_)) => Verdict::Remove(Remove::Older),
                (None, BackupState::Pending(pending)) if pending.ready.is_some() => Verdict::Remove(Remove::WalLost),
                (None, _) => Verdict::Remove(Remove::GivenUp),
            };
            let bytes = entry.seal().map(Seal::stored_bytes);
            Decision { id: entry.id, verdict, bytes }
        };
        let backups = self.backups.iter().map(decision).collect();
        Plan { backups, wal, histories, notes: self.notes }
    }

    fn kept_entries(&self) -> impl Iterator<Item = &'a BackupEntry> {
        self.backups.iter().filter(|entry| self.kept.contains_key(&entry.id))
    }

    /// The WAL that nothing needs, and the rest.
    fn removable_wal(&mut self) -> (Vec<RemovedWal>, Spans) {
        let mut needed = Spans::default();
        let unknown = self.kept_entries().find(|entry| entry.start().is_none());
        let all_stays = match unknown {
            Some(entry) => Some(Note::StartUnknown(entry.id)),
            None => self.sealed.is_empty().then_some(Note::NoCompleteBackup),
        };
        if let Some(note) = all_stays {
            self.notes.push(note);
            self.coverage.ranges().for_each(|range| needed.add(range.segments()));
            return (Vec::new(), needed);
        }
        for entry in self.kept_entries() {
            let reachable = entry.start().map(|start| self.coverage.reachable(start)).unwrap_or_default();
            reachable.iter().for_each(|range| needed.add(range.segments()));
            // As its proof found them.
            for range in entry.seal().iter().flat_map(|seal| &seal.wal.segments) {
                let segment = |name: &str| Segment::parse(name, self.coverage.segment_size());
                needed.add(segment(&range.first).zip(segment(&range.last)));
            }
        }
        // What a receiver goes on with, behind a gap that no backup has been taken after.
        let live = self.coverage.newest_path().and_then(|path| self.coverage.ranges_of(path.way().tli()).last());
        let live = live.and_then(|range| range.segments());
        needed.add(live.filter(|live| !needed.meets(*live)));
        needed.merge();
        let ranges = self.coverage.ranges().filter_map(|range| range.segments());
        (ranges.flat_map(|range| needed.outside(range)).collect(), needed)
    }

    /// A history file stays as long as WAL or a backup of its timeline or of a descendant does; that of
    /// the newest timeline, and newer ones, in any case.
    fn removable_histories(&self, needed: &Spans) -> Vec<TimelineId> {
        let mut used: BTreeSet<TimelineId> = needed.timelines().collect();
        for entry in self.kept_entries() {
            used.extend(entry.start().into_iter().chain(entry.stop()).map(Pos::tli));
            used.extend(entry.seal().iter().flat_map(|seal| &seal.wal.history_files).map(|file| file.timeline));
        }
        let newest = self.coverage.newest_path().map(|path| path.way().tli());
        let mut removable = Vec::new();
        for history in self.coverage.histories().rev() {
            let tli = history.tli();
            if used.contains(&tli) || newest.is_none_or(|newest| tli >= newest) {
                used.extend(history.switches().iter().map(|switch| switch.from));
            } else {
                removable.push(tli);
            }
        }
        removable.reverse();
        removable
    }
}

fn as_text<T: fmt::Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

#[cfg(test)]
mod tests;
