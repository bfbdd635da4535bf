//! Where a recovery is to stop, by the server's own rules. Pure.

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Serialize, Serializer};

use crate::repository::Time;
use crate::wal::{Lsn, Record, ServerTime, TimelineId, TransactionEnd};

/// So many restore points are kept for a message.
const MOST_POINTS: usize = 8;

/// A point that a recovery may stop at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// The last transaction that ended by then (`recovery_target_time`).
    Time(Timestamp),
    /// The record at this address, or the first one behind it (`recovery_target_lsn`).
    Lsn(Lsn),
    /// The end of this transaction, of whichever kind (`recovery_target_xid`).
    Xid(u32),
    /// The first restore point of this name (`recovery_target_name`).
    Name(String),
    /// As soon as the data is consistent (`recovery_target = 'immediate'`).
    Immediate,
}

/// What the server does when it has come there (`recovery_target_action`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It takes writes, on a new timeline.
    #[default]
    Promote,
    /// It answers queries, and waits to be told to go on.
    Pause,
    /// It ends.
    Shutdown,
}

/// Where recovery is to stop, and what then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Aim {
    /// The point.
    pub target: Target,
    /// Whether what lies exactly there is replayed (`recovery_target_inclusive`); of no meaning for
    /// names, and for [`Target::Immediate`].
    pub inclusive: bool,
    /// What then.
    pub action: Action,
}

/// Which timeline recovery goes along (`recovery_target_timeline`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Along {
    /// The newest that can be reached without a hole.
    #[default]
    Latest,
    /// That on which the backup was made.
    Current,
    /// This one.
    Timeline(TimelineId),
}

impl Target {
    /// The setting, and its value as the server reads it wherever it runs.
    pub(super) fn setting(&self) -> (&'static str, String) {
        match self {
            Self::Time(time) => ("recovery_target_time", utc(*time)),
            Self::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string()),
            Self::Xid(xid) => ("recovery_target_xid", xid.to_string()),
            Self::Name(name) => ("recovery_target_name", name.clone()),
            Self::Immediate => ("recovery_target", "immediate".to_owned()),
        }
    }

    /// In words, with a moment as this machine's clock shows it too.
    pub(super) fn in_full(&self) -> String {
        match self {
            Self::Time(time) => {
                let here = time.to_zoned(TimeZone::system());
                format!("time {}, which is {} here", utc(*time), here.strftime("%Y-%m-%d %H:%M:%S%.6f%:z"))
            }
            other => other.to_string(),
        }
    }
}

fn utc(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => write!(f, "time {}", utc(*time)),
            Self::Lsn(lsn) => write!(f, "position {lsn}"),
            Self::Xid(xid) => write!(f, "transaction {xid}"),
            Self::Name(name) => write!(f, "restore point \"{}\"", name.escape_debug()),
            Self::Immediate => f.write_str("the first consistent state"),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// A transaction that ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Transaction {
    /// Which; `None` where its record is too long to tell.
    pub xid: Option<u32>,
    /// When, by the server's clock.
    pub time: Option<Time>,
    /// Exclusive end of the record that ended it.
    pub end: Lsn,
    /// False if it was rolled back.
    pub committed: bool,
}

impl Transaction {
    fn of(ended: TransactionEnd, end: Lsn) -> Self {
        Self { xid: ended.xid, time: ended.time.timestamp().map(Time), end, committed: ended.committed }
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.committed { "commit" } else { "rollback" })?;
        if let Some(xid) = self.xid {
            write!(f, " of transaction {xid}")?;
        }
        match self.time {
            Some(time) => write!(f, " at {time}"),
            None => Ok(()),
        }
    }
}

/// A restore point.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedPoint {
    /// Its name, as far as it is UTF-8.
    pub name: String,
    /// When it was made, by the server's clock.
    pub time: Option<Time>,
    /// Exclusive end of its record.
    pub end: Lsn,
}

/// A tablespace that replay makes, at the place where it lay on the server that was copied.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct MadeTablespace {
    /// Where.
    #[serde(serialize_with = "shown")]
    pub location: PathBuf,
    /// The record.
    pub at: Lsn,
}

fn shown<S: Serializer>(path: &std::path::Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

/// Where recovery stops, and why there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Stop {
    /// Exclusive end of what is replayed.
    pub(super) at: Lsn,
    /// In words.
    pub(super) because: String,
}

/// What lies around a target that was not found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Near {
    /// Of the transactions before the one that is looked for, the last, and of those behind it the
    /// first; by their numbers.
    pub(super) lower: Option<Transaction>,
    pub(super) higher: Option<Transaction>,
    /// The last restore points.
    pub(super) points: VecDeque<NamedPoint>,
}

/// Follows a recovery, record by record, and says where it stops.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    aim: Option<&'a Aim>,
    /// The first record that is replayed begins here.
    from: Lsn,
    consistent_at: Lsn,
    /// When the copy had ended, by walhold's clock.
    copied: Timestamp,
    /// When the checkpoint began from which it recovers.
    began: Option<ServerTime>,
    near: &'a mut Near,
    /// Exclusive end of the last record that was shown.
    seen: Lsn,
    /// Exclusive end of the last record that is replayed.
    pub(super) end: Lsn,
    /// The last transaction that ended in what is replayed, and the last that was committed.
    pub(super) last: Option<Transaction>,
    pub(super) last_commit: Option<Transaction>,
    /// Where the server stops.
    pub(super) stop: Option<Stop>,
    /// When the latest transaction ended among those that are replayed before the data is consistent.
    pub(super) floor: Option<ServerTime>,
    /// Tablespaces that are made at places outside the data directory.
    pub(super) made: Vec<MadeTablespace>,
}

impl<'a> Watch<'a> {
    /// A recovery that begins at `from`, a backup's redo position, and comes to consistent data at
    /// `consistent_at`; by walhold's clock it had been copied at `copied`.
    pub(super) fn new(
        aim: Option<&'a Aim>,
        from: Lsn,
        consistent_at: Lsn,
        copied: Timestamp,
        near: &'a mut Near,
    ) -> Self {
        Self {
            aim,
            from,
            consistent_at,
            copied,
            began: None,
            near,
            seen: from,
            end: from,
            last: None,
            last_commit: None,
            stop: None,
            floor: None,
            made: Vec::new(),
        }
    }

    /// Whether the data is consistent at the end of what is replayed. A server that is to stop before
    /// that ends with an error instead.
    pub(super) fn is_consistent(&self) -> bool {
        self.end >= self.consistent_at
    }

    /// Whether nothing more has to be shown.
    pub(super) fn is_over(&self) -> bool {
        self.stop.is_some() && self.seen >= self.consistent_at
    }

    /// The next record.
    pub(super) fn see(&mut self, record: &Record<'_>) {
        if record.start < self.from {
            return;
        }
        self.seen = record.end;
        let ended = record.transaction_end();
        if let Some(ended) = ended.filter(|_| record.start < self.consistent_at) {
            self.floor = self.floor.max(Some(ended.time));
        }
        if self.stop.is_some() {
            return;
        }
        self.note_near(record, ended);
        let because = self.is_too_late(record).or_else(|| self.stops_before(record, ended));
        if because.is_none() {
            self.replay(record, ended);
        }
        let because = because.or_else(|| self.stops_after(record, ended));
        self.stop = because.map(|because| Stop { at: self.end, because });
    }

    fn replay(&mut self, record: &Record<'_>, ended: Option<TransactionEnd>) {
        use std::os::unix::ffi::OsStrExt;
        self.end = record.end;
        if let Some(ended) = ended {
            let transaction = Transaction::of(ended, record.end);
            self.last = Some(transaction);
            self.last_commit = Some(transaction).filter(|last| last.committed).or(self.last_commit);
        }
        if let Some(location) = record.tablespace_made().filter(|location| !location.is_empty()) {
            let location = PathBuf::from(std::ffi::OsStr::from_bytes(location));
            if !self.made.iter().any(|made| made.location == location) {
                self.made.push(MadeTablespace { location, at: record.start });
            }
        }
    }

    /// Whether the data holds what ended behind the target though no record tells of it: a server would not see
    /// that. The checkpoint's time tells it to the second; within that, walhold's clock decides.
    fn is_too_late(&mut self, record: &Record<'_>) -> Option<String> {
        const SECOND: i64 = 1_000_000;
        let Target::Time(target) = &self.aim?.target else { return None };
        if self.began.is_some() || record.start >= self.consistent_at {
            return None;
        }
        let began = record.checkpoint_time()?;
        self.began = Some(began);
        let by = ServerTime::of(*target).0;
        let late = by < began.0 || (by < began.0.saturating_add(SECOND) && *target < self.copied);
        late.then(|| "before the backup's own checkpoint".to_owned())
    }

    /// `recoveryStopsBefore` of `xlogrecovery.c` (13 and 14: `xlog.c`). Of transactions, the top one alone
    /// is compared. Their times need not rise: the first that is too late counts.
    fn stops_before(&self, record: &Record<'_>, ended: Option<TransactionEnd>) -> Option<String> {
        let aim = self.aim?;
        let stops = match (&aim.target, ended) {
            // What is replayed already may be consistent when the first record comes.
            (Target::Immediate, _) if self.is_consistent() => {
                return Some("where the data is consistent".to_owned());
            }
            (Target::Lsn(lsn), _) if !aim.inclusive && record.start >= *lsn => {
                return Some(format!("before the record at {}", record.start));
            }
            (Target::Xid(xid), Some(ended)) => !aim.inclusive && ended.xid == Some(*xid),
            (Target::Time(time), Some(ended)) => {
                let target = ServerTime::of(*time);
                if aim.inclusive { ended.time > target } else { ended.time >= target }
            }
            _ => false,
        };
        let ended = ended.filter(|_| stops)?;
        Some(format!("before the {}", Transaction::of(ended, record.end)))
    }

    /// `recoveryStopsAfter`, of a record that has been replayed.
    fn stops_after(&self, record: &Record<'_>, ended: Option<TransactionEnd>) -> Option<String> {
        let aim = self.aim?;
        match (&aim.target, ended) {
            (Target::Name(name), _) => {
                let point = record.restore_point().filter(|point| point.name == name.as_bytes())?;
                let time = point.time.timestamp().map(|time| format!(", made at {time}"));
                Some(format!("at restore point \"{}\"{}", name.escape_debug(), time.unwrap_or_default()))
            }
            (Target::Lsn(lsn), _) if aim.inclusive && record.start >= *lsn => {
                Some(format!("after the record at {}", record.start))
            }
            (Target::Xid(xid), Some(ended)) if aim.inclusive && ended.xid == Some(*xid) => {
                Some(format!("after the {}", Transaction::of(ended, record.end)))
            }
            (Target::Immediate, _) if self.is_consistent() => Some("where the data is consistent".to_owned()),
            _ => None,
        }
    }

    fn note_near(&mut self, record: &Record<'_>, ended: Option<TransactionEnd>) {
        match self.aim.map(|aim| &aim.target) {
            Some(Target::Xid(wanted)) => {
                let Some((ended, xid)) = ended.and_then(|ended| Some((ended, ended.xid?))) else { return };
                let distance = |other: &Option<Transaction>| {
                    other.and_then(|other| other.xid).map_or(u32::MAX, |xid| ahead(*wanted, xid).unsigned_abs())
                };
                let near = match ahead(*wanted, xid) {
                    ..0 => &mut self.near.lower,
                    0 => return,
                    1.. => &mut self.near.higher,
                };
                if ahead(*wanted, xid).unsigned_abs() < distance(near) {
                    *near = Some(Transaction::of(ended, record.end));
                }
            }
            Some(Target::Name(_)) => {
                let Some(point) = record.restore_point() else { return };
                if self.near.points.len() == MOST_POINTS {
                    self.near.points.pop_front();
                }
                let name = String::from_utf8_lossy(point.name).into_owned();
                let time = point.time.timestamp().map(Time);
                self.near.points.push_back(NamedPoint { name, time, end: record.end });
            }
            _ => {}
        }
    }
}

/// How far a transaction is behind another, in a circle, as `TransactionIdPrecedes` has it.
fn ahead(of: u32, xid: u32) -> i32 {
    xid.wrapping_sub(of).cast_signed()
}

#[cfg(test)]
mod tests;
