//! Whether an operator should look, and why.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use super::{BackupStatus, Cause, ServerAnswer, Stage, Status, Waiting};
use crate::repository::BackupId;
use crate::wal::{Lsn, Pos, TimelineId};

/// What is too much.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Time since the newest complete backup ended.
    pub max_age: Option<Duration>,
    /// How far the archive may be behind the server.
    pub max_lag: Option<MaxLag>,
}

/// A lag, in one measure or the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MaxLag {
    /// From the last commit held to the server's clock.
    Time(Duration),
    /// WAL that the server has and the archive has not.
    Bytes(u64),
}

/// Why an operator should look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// No WAL is held.
    NoWal,
    /// No complete backup has its WAL.
    NoBackup,
    /// The newest complete backup ended too long ago.
    Old {
        /// Which.
        id: BackupId,
        /// Since its end.
        age: Duration,
    },
    /// A complete backup lacks WAL.
    NotHeld(BackupId),
    /// What a complete backup is based on is not there.
    NotUsable {
        /// Which.
        id: BackupId,
        /// Why.
        why: String,
    },
    /// The newest backup leads to a gap, and no further.
    Gap {
        /// Where recovery ends.
        at: Pos,
    },
    /// The newest backup does not lead to the timeline that is received.
    Fork {
        /// Which is.
        received: TimelineId,
    },
    /// A backup's WAL has not all come.
    Waiting(BackupId, Waiting),
    /// A backup's document cannot be read.
    Damaged {
        /// Which.
        id: BackupId,
        /// What is wrong with it.
        why: String,
    },
    /// The last drill failed.
    Drill {
        /// Of which backup.
        id: BackupId,
        /// Why.
        why: String,
    },
    /// A history file is missing.
    NoHistory(TimelineId),
    /// No receiver runs.
    NothingReceives,
    /// The server could not be asked.
    Server(String),
    /// The archive is too far behind the server.
    Lag {
        /// In bytes.
        bytes: u64,
        /// In seconds, if that is known.
        seconds: Option<u64>,
    },
    /// How far cannot be told.
    LagUnknown,
    /// The server follows another timeline than the archive.
    OtherTimeline {
        /// Its position.
        server: TimelineId,
        /// The newest that is held.
        held: TimelineId,
    },
    /// The slot has lost WAL, or may at any moment.
    SlotLoses {
        /// Which.
        slot: String,
        /// Where it kept from.
        from: Option<Lsn>,
    },
    /// Something could not be read.
    Unread(String),
}

pub(super) fn reasons(status: &Status, limits: Limits, now: Timestamp) -> Vec<Reason> {
    let mut reasons = Vec::new();
    backups(status, limits.max_age, now, &mut reasons);
    archive(status, &mut reasons);
    server(status, limits.max_lag, &mut reasons);
    reasons.extend(status.problems.iter().cloned().map(Reason::Unread));
    reasons
}

fn backups(status: &Status, max_age: Option<Duration>, now: Timestamp, reasons: &mut Vec<Reason>) {
    match status.newest_usable() {
        None => reasons.push(Reason::NoBackup),
        Some(newest) => {
            reasons.extend(old(newest, max_age, now));
            reasons.extend(cut_off(status, newest));
        }
    }
    for backup in &status.backups {
        let id = backup.id;
        match (backup.stage, &backup.damage, backup.waiting) {
            (Stage::Complete, ..) if !backup.held => reasons.push(Reason::NotHeld(id)),
            (Stage::Complete, Some(why), _) => reasons.push(Reason::NotUsable { id, why: why.clone() }),
            (Stage::Damaged, Some(why), _) => reasons.push(Reason::Damaged { id, why: why.clone() }),
            (Stage::Pending, _, Some(waiting)) => reasons.push(Reason::Waiting(id, waiting)),
            _ => {}
        }
    }
    if let Some(drill) = status.last_drill()
        && let Some(why) = &drill.failure
    {
        reasons.push(Reason::Drill { id: drill.backup, why: why.clone() });
    }
}

fn old(newest: &BackupStatus, max_age: Option<Duration>, now: Timestamp) -> Option<Reason> {
    let age = newest.age(now)?;
    max_age.filter(|limit| age > *limit).map(|_| Reason::Old { id: newest.id, age })
}

/// Whether the newest backup does not lead to where WAL arrives.
fn cut_off(status: &Status, newest: &BackupStatus) -> Option<Reason> {
    let mut windows = status.windows.iter().rev().filter(|window| window.backups.contains(&newest.id)).peekable();
    let last = windows.peek().copied()?;
    if windows.any(|window| window.ended_by == Cause::Archive) {
        return None;
    }
    Some(match last.ended_by {
        Cause::Fork(received) => Reason::Fork { received },
        Cause::Gap | Cause::Archive => Reason::Gap { at: last.to.pos },
    })
}

fn archive(status: &Status, reasons: &mut Vec<Reason>) {
    if status.held.is_none() {
        reasons.push(Reason::NoWal);
    }
    let unknown = status.timelines.iter().filter(|timeline| !timeline.history_held);
    reasons.extend(unknown.map(|timeline| Reason::NoHistory(timeline.timeline)));
    if !status.writer.as_ref().is_some_and(|writer| writer.receives) {
        reasons.push(Reason::NothingReceives);
    }
}

fn server(status: &Status, max_lag: Option<MaxLag>, reasons: &mut Vec<Reason>) {
    let (server, slot, lag) = match &status.server {
        None => return,
        Some(ServerAnswer::Failed { reason }) => return reasons.push(Reason::Server(reason.clone())),
        Some(ServerAnswer::Told { server, slot, lag, .. }) => (server, slot, lag),
    };
    if let (Some(server), Some(held)) = (server.timeline, status.held.map(|held| held.pos.tli()))
        && server != held
    {
        reasons.push(Reason::OtherTimeline { server, held });
    }
    if let Some(slot) = slot.as_ref().filter(|slot| slot.loses_wal()) {
        reasons.push(Reason::SlotLoses { slot: slot.name.clone(), from: slot.restart_lsn });
    }
    let seconds = lag.seconds.map(Duration::from_secs);
    match (max_lag, lag.bytes) {
        (None, _) => {}
        (Some(MaxLag::Bytes(limit)), Some(bytes)) if bytes <= limit => {}
        (Some(MaxLag::Time(limit)), Some(_)) if seconds.is_some_and(|lag| lag <= limit) => {}
        (Some(MaxLag::Time(_)), Some(_)) if seconds.is_none() => reasons.push(Reason::LagUnknown),
        (Some(_), Some(bytes)) => reasons.push(Reason::Lag { bytes, seconds: lag.seconds }),
        (Some(_), None) => reasons.push(Reason::LagUnknown),
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoWal => f.write_str("no WAL is held"),
            Self::NoBackup => f.write_str("no complete backup can be restored"),
            Self::Old { id, age } => write!(f, "the newest backup ({id}) ended {} ago", span(*age)),
            Self::NotHeld(id) => write!(f, "backup {id} cannot be restored: its WAL is not all held"),
            Self::NotUsable { id, why } => write!(f, "backup {id} cannot be restored: {why}"),
            Self::Gap { at } => write!(f, "the newest backup leads to a gap in the WAL at {at}"),
            Self::Fork { received } => {
                write!(f, "the newest backup does not lead to timeline {received}, which is received")
            }
            Self::Waiting(id, Waiting { needs, held }) => {
                write!(f, "backup {id} waits for WAL up to {}", needs.lsn())?;
                held.map_or(Ok(()), |held| write!(f, " (held up to {held})"))
            }
            Self::Damaged { id, why } => write!(f, "backup {id} is damaged: {why}"),
            Self::Drill { id, why } => write!(f, "the last drill, of backup {id}, failed: {why}"),
            Self::NoHistory(tli) => write!(f, "the history file of timeline {tli} is missing"),
            Self::NothingReceives => f.write_str("nothing receives WAL"),
            Self::Server(why) => write!(f, "the server could not be asked: {why}"),
            Self::Lag { bytes, seconds: Some(seconds) } => {
                write!(f, "{bytes} bytes and {} behind the server", span(Duration::from_secs(*seconds)))
            }
            Self::Lag { bytes, seconds: None } => write!(f, "{bytes} bytes behind the server"),
            Self::LagUnknown => f.write_str("how far it is behind the server is not known"),
            Self::OtherTimeline { server, held } => {
                write!(f, "the server is on timeline {server}, and WAL is held up to timeline {held}")
            }
            Self::SlotLoses { slot, from: Some(from) } => {
                write!(f, "slot \"{slot}\" does not keep the WAL from {from} on any more")
            }
            Self::SlotLoses { slot, from: None } => write!(f, "slot \"{slot}\" has lost WAL"),
            Self::Unread(what) => f.write_str(what),
        }
    }
}

/// A time in its largest unit, or the two largest where the first is small: `5 s`, `3 min`, `26 h`, `4 d`.
pub fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
