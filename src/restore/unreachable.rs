//! Why a target cannot be reached, with the nearest points that can.

use std::fmt;

use thiserror::Error;

use super::target::{NamedPoint, Near, Target, Transaction};
use crate::repository::{BackupId, Seal, Time};
use crate::wal::{Lsn, Segment};

/// A point that recovery can come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Point {
    /// Exclusive end of the last record before it.
    pub at: Lsn,
    /// When the last transaction was committed before it.
    pub commit: Option<Time>,
}

/// Where a backup becomes consistent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Beside {
    /// The backup.
    pub id: BackupId,
    /// Where.
    pub at: Lsn,
    /// When its copy had ended.
    pub ended: Time,
}

/// Recovery cannot stop at the target.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Unreachable {
    /// The data is not consistent there.
    #[error(
        "{target} lies before backup {} is consistent; the nearest point behind it is {consistent}{}",
        consistent.id, latest(*floor)
    )]
    BeforeBackup {
        /// What was asked for.
        target: Target,
        /// The earliest point.
        consistent: Beside,
        /// The latest commit before that.
        floor: Option<Time>,
    },
    /// All backups end behind it.
    #[error("no complete backup ended before {target}; the nearest point behind it is {first}")]
    BeforeAll {
        /// What was asked for.
        target: Target,
        /// The earliest point.
        first: Beside,
    },
    /// Nothing that is held lies behind it: the server would end with an error.
    #[error("{target} lies past the end of what is held; the nearest point before it is {end}, the end")]
    PastEnd {
        /// What was asked for.
        target: Target,
        /// Where it ends.
        end: Point,
    },
    /// WAL is missing or damaged before it.
    #[error(
        "{target} is not reached before segment {hole}, which is missing or damaged; the nearest point before it is \
         {before}{}", behind(*after)
    )]
    InGap {
        /// What was asked for.
        target: Target,
        /// The end of what is whole.
        before: Point,
        /// The first segment that is not.
        hole: Segment,
        /// The first backup behind it.
        after: Option<Beside>,
    },
    /// The transaction did not end in what is held.
    #[error("no end of transaction {xid} is in the WAL that can be replayed, up to {end}{}", transactions(*lower, *higher))]
    NoTransaction {
        /// Which.
        xid: u32,
        /// Where what is held ends, or is not whole any more.
        end: Point,
        /// The nearest one with a lower number.
        lower: Option<Transaction>,
        /// The nearest one with a higher number.
        higher: Option<Transaction>,
    },
    /// There is no such restore point in what is held.
    #[error("no restore point \"{}\" is in the WAL that can be replayed, up to {end}{}", name.escape_debug(), listed(points))]
    NoRestorePoint {
        /// Its name.
        name: String,
        /// Where what is held ends, or is not whole any more.
        end: Point,
        /// The last ones that are there.
        points: Vec<NamedPoint>,
    },
}

impl Beside {
    pub(super) const fn of(backup: &Seal) -> Self {
        Self { id: backup.id, at: backup.stop.lsn(), ended: backup.stop_time }
    }
}

impl Unreachable {
    /// Whether an earlier backup may reach it.
    pub(super) const fn is_before(&self) -> bool {
        matches!(self, Self::BeforeBackup { .. })
    }

    /// Where what could be replayed ends, if the target was not found up to there.
    pub(super) const fn searched(&self) -> Option<Point> {
        match self {
            Self::PastEnd { end, .. } | Self::InGap { before: end, .. } => Some(*end),
            _ => None,
        }
    }

    /// What was not found, with what lies beside it.
    pub(super) fn with(self, near: Near) -> Self {
        let (Self::PastEnd { target, end } | Self::InGap { target, before: end, .. }) = &self else { return self };
        match target {
            Target::Xid(xid) => Self::NoTransaction { xid: *xid, end: *end, lower: near.lower, higher: near.higher },
            Target::Name(name) => {
                let mut points = Vec::from(near.points);
                points.sort_by_key(|point| point.end);
                Self::NoRestorePoint { name: name.clone(), end: *end, points }
            }
            _ => self,
        }
    }

    /// What the operator can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::BeforeBackup { .. } => {
                "name an earlier backup, or none: then the newest is taken that reaches the target"
            }
            Self::BeforeAll { .. } => "walhold list shows the backups; nothing before the first one can be restored",
            Self::PastEnd { .. } => {
                "without a target recovery goes to that end; walhold status shows whether more is being received"
            }
            Self::InGap { .. } => "walhold status shows the gaps, and what can be restored on either side",
            Self::NoTransaction { .. } => {
                "only a transaction's end is written down; it may be on another timeline (--target-timeline)"
            }
            Self::NoRestorePoint { .. } => {
                "names are compared letter by letter; it may be on another timeline (--target-timeline)"
            }
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.commit {
            Some(time) => write!(f, "{} (last commit {time})", self.at),
            None => write!(f, "{} (no commit before it)", self.at),
        }
    }
}

impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (backup {}, which ended at {})", self.at, self.id, self.ended)
    }
}

fn latest(floor: Option<Time>) -> String {
    floor.map_or_else(String::new, |time| format!(", with the commits up to {time}"))
}

fn behind(after: Option<Beside>) -> String {
    after.map_or_else(|| ", and no backup was made behind it".to_owned(), |after| format!(", and behind it {after}"))
}

fn transactions(lower: Option<Transaction>, higher: Option<Transaction>) -> String {
    let beside: Vec<String> =
        [lower, higher].into_iter().flatten().map(|near| format!("{near} ({})", near.end)).collect();
    if beside.is_empty() { String::new() } else { format!("; the nearest by number: {}", beside.join(" and ")) }
}

fn listed(points: &[NamedPoint]) -> String {
    if points.is_empty() {
        return "; there is none at all".to_owned();
    }
    let named = points.iter().map(|point| {
        let time = point.time.map_or_else(String::new, |time| format!(" of {time}"));
        format!("\"{}\"{time} ({})", point.name.escape_debug(), point.end)
    });
    format!("; the last ones: {}", named.collect::<Vec<_>>().join(", "))
}
