//! What was found, as one document.

use std::fmt;

use serde::Serialize;

use crate::repository::{BackupEntry, BackupId, Repository, Time};
use crate::wal::{Lsn, Pos, Record, TimelineId};

/// All verdicts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    version: u32,
    /// The directory.
    pub repository: String,
    /// The cluster, as text, for it has more digits than many readers keep of a number.
    pub system_identifier: String,
    /// In the order of timeline and start.
    pub backups: Vec<BackupReport>,
    /// The whole archive, unless one backup was asked for.
    pub wal: Option<WalReport>,
}

/// One backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct BackupReport {
    /// Its name.
    pub id: BackupId,
    /// Where its WAL begins, if that is known.
    pub start: Option<Pos>,
    /// Exclusive end of the WAL it needs, if that is known.
    pub stop: Option<Pos>,
    /// Whether it can be restored.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Whether a backup can be restored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// It can; this was checked.
    Usable {
        /// What was read.
        checked: Checked,
    },
    /// All that was checked is right, and it counts for nothing before a drill of it has passed.
    Untested {
        /// What was read.
        checked: Checked,
    },
    /// It cannot.
    NotUsable {
        /// The first thing that is wrong.
        reason: String,
    },
    /// It is not complete.
    NotSealed {
        /// Why not.
        reason: String,
        /// Exclusive end of the WAL it waits for.
        waiting_for: Option<Pos>,
        /// Exclusive end of what is held of it; `None` while it is being made, and when it is lost.
        held: Option<Lsn>,
        /// Whether a process is writing it.
        running: bool,
    },
}

impl Verdict {
    pub(super) fn unread() -> Self {
        Self::NotUsable { reason: super::jobs::NOT_READ.to_owned() }
    }
}

/// What a verdict rests on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Checked {
    /// Data files that are as the server's manifest lists them.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of them were compared by checksum.
    pub by_checksum: u64,
    /// Files of the folder whose size and SHA-256 are as the seal says.
    pub folder_files: u64,
    /// Their bytes.
    pub folder_bytes: u64,
    /// Segments in which every record from start to stop was read.
    pub segments: u64,
    /// History files that are as the seal says.
    pub history_files: u64,
    /// Where its data lies, unchecked, if it is not in the repository.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// What could not be checked.
    pub not_checked: Vec<String>,
}

/// The archive, walked from end to end.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct WalReport {
    /// Segments read, partials included.
    pub segments: u64,
    /// WAL without a hole or damage in it, oldest timeline first.
    pub stretches: Vec<StretchReport>,
    /// All that is wrong, in the order of the log.
    pub problems: Vec<Problem>,
    /// Names in the folder that are not those of WAL; nothing reads these files.
    pub ignored: Vec<String>,
}

/// WAL in which every record follows from the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct StretchReport {
    /// The timeline of its files.
    pub timeline: TimelineId,
    /// The first byte held.
    pub from: Lsn,
    /// The first byte checked; the rest of a record that began before the stretch cannot be.
    pub checked_from: Lsn,
    /// Exclusive end of the last whole record.
    pub to: Lsn,
    /// When transactions were committed in it.
    #[serde(flatten)]
    pub times: Times,
}

/// When transactions were committed, by the server's clock, which may go backwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Times {
    /// Of the first, in the order of the log.
    pub first_commit: Option<Time>,
    /// Of the last, in the order of the log.
    pub last_commit: Option<Time>,
    /// The highest.
    pub latest_commit: Option<Time>,
}

impl Times {
    pub(super) fn see(&mut self, record: &Record<'_>) {
        let end = record.transaction_end().filter(|end| end.committed);
        if let Some(time) = end.and_then(|end| end.time.timestamp()).map(Time) {
            let this = Self { first_commit: Some(time), last_commit: Some(time), latest_commit: Some(time) };
            *self = self.then(this);
        }
    }

    /// Those of two parts of the log that follow each other.
    pub(super) fn then(self, next: Self) -> Self {
        Self {
            first_commit: self.first_commit.or(next.first_commit),
            last_commit: next.last_commit.or(self.last_commit),
            latest_commit: self.latest_commit.max(next.latest_commit),
        }
    }
}

/// Something that recovery cannot pass.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    /// Whose WAL it is about.
    pub timeline: TimelineId,
    /// The segment, or the first of those that are missing; `None` where it is about a history file.
    pub segment: Option<String>,
    /// Of what kind it is.
    pub kind: ProblemKind,
    /// Where recovery along the timeline ends because of it, exclusive, if that is known.
    pub ends_at: Option<Lsn>,
    /// What is wrong.
    pub what: String,
    /// What follows from that.
    pub consequence: String,
}

/// How bad a problem is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// A backup that captured its own WAL begins behind the hole: between such backups nothing was
    /// received, and nothing was promised.
    BetweenBackups,
    /// An operator has accepted that WAL is missing there (`walhold receive --accept-gap`).
    AcceptedGap,
    /// A partial in which a power cut has left later WAL without earlier; none of that was reported
    /// as flushed, and a receiver receives it again.
    Torn,
    /// Segments are missing or were never completed, and the archive goes on behind them.
    Hole,
    /// A file is not what it was.
    Damage,
    /// A history file is missing or cannot be read.
    History,
}

impl Report {
    pub(super) fn new(repository: &Repository, backups: Vec<BackupReport>, wal: Option<WalReport>) -> Self {
        let system_identifier = repository.system_id().to_string();
        let repository = repository.dir().display().to_string();
        Self { version: 1, repository, system_identifier, backups, wal }
    }

    /// Whether every sealed backup can be restored and the archive has no problem but holes between
    /// backups that captured their own WAL, gaps that were accepted, and torn ends. Backups that are not complete do not count against it.
    pub fn is_good(&self) -> bool {
        let usable = |backup: &BackupReport| !matches!(backup.verdict, Verdict::NotUsable { .. });
        let known = |problem: &Problem| {
            matches!(problem.kind, ProblemKind::BetweenBackups | ProblemKind::AcceptedGap | ProblemKind::Torn)
        };
        self.backups.iter().all(usable) && self.wal.as_ref().is_none_or(|wal| wal.problems.iter().all(known))
    }
}

impl BackupReport {
    pub(super) fn new(entry: &BackupEntry, verdict: Verdict) -> Self {
        Self { id: entry.id, start: entry.start(), stop: entry.stop(), verdict }
    }
}

impl fmt::Display for BackupReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.verdict {
            Verdict::Usable { checked } => {
                let word = if checked.place.is_some() { "USABLE (data unchecked)" } else { "USABLE     " };
                write!(f, "{}  {word} {checked}", self.id)?;
                checked.not_checked.iter().try_for_each(|what| write!(f, "; not checked: {what}"))
            }
            Verdict::Untested { checked } => {
                write!(f, "{}  UNTESTED    {checked}; usable once a drill of it has passed", self.id)
            }
            Verdict::NotUsable { reason } => write!(f, "{}  NOT USABLE  {reason}", self.id),
            Verdict::NotSealed { reason, .. } => write!(f, "{}  NOT SEALED  {reason}", self.id),
        }
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            return write!(f, "{} WAL segments; data at {}", self.segments, place.escape_debug());
        }
        write!(f, "{} files with {} bytes, {} WAL segments", self.files, self.bytes, self.segments)
    }
}

impl fmt::Display for StretchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "timeline {}  {} to {}", self.timeline, self.from, self.to)?;
        match self.times.last_commit {
            Some(Time(time)) => write!(f, ", last commit {}", time.strftime("%Y-%m-%d %H:%M:%S UTC")),
            None => f.write_str(", no commit"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "timeline {}: {}: {}", self.timeline, self.what, self.consequence)
    }
}
