//! Each backup, as it fares.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::archive::{End, Reader, WindowStatus};
use crate::repository::{BackupEntry, BackupId, BackupState, DrillRecord, Kind, Repository, Seal, Time, chain};
use crate::wal::{Lsn, Pos};

/// How far a backup has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// It is sealed. Only such a one is ever offered for restore.
    Complete,
    /// It is sealed, and a snapshot: it is offered once a drill of it has passed.
    Untested,
    /// A process is making it.
    Running,
    /// Its copy is complete, and its WAL has not all come.
    Pending,
    /// It was given up before its end.
    Unfinished,
    /// Its document cannot be read.
    Damaged,
}

/// What a backup waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Waiting {
    /// Exclusive end of the WAL it needs.
    pub needs: Pos,
    /// Exclusive end of what is held of it; `None` if there is nothing.
    pub held: Option<Lsn>,
}

/// A backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct BackupStatus {
    /// Its name.
    pub id: BackupId,
    /// How far it has come.
    pub stage: Stage,
    /// What the operator called it.
    pub label: Option<String>,
    /// Whether it stands alone, once that is known.
    pub kind: Option<Kind>,
    /// The backup that it is based on.
    pub parent: Option<BackupId>,
    /// Where its WAL begins, once that is known.
    pub start: Option<Pos>,
    /// Exclusive end of the WAL it needs, once that is known.
    pub stop: Option<Pos>,
    /// When it was begun and had ended, of a complete one.
    pub times: Option<[Time; 2]>,
    /// Where its data lies, unchecked, if it is not in the repository.
    pub place: Option<String>,
    /// Bytes of data that it holds, as the manifest lists them.
    pub data_bytes: Option<u64>,
    /// Bytes of its files.
    pub stored_bytes: Option<u64>,
    /// Whether there are names for all WAL that it needs; of a complete one.
    pub held: bool,
    /// How far recovery from it can go: to the end of its window that ends last.
    pub window_end: Option<End>,
    /// What it waits for.
    pub waiting: Option<Waiting>,
    /// What is wrong with it, or, of a complete one, with what it is based on.
    pub damage: Option<String>,
    /// Whether the operator has marked it, so that it never expires.
    pub kept: bool,
    /// What its last drill found.
    pub drill: Option<DrillRecord>,
}

impl BackupStatus {
    /// Whether it can be restored, as far as names and documents tell.
    pub const fn is_usable(&self) -> bool {
        matches!(self.stage, Stage::Complete) && self.held && self.damage.is_none()
    }

    /// Time since a complete one ended; 0 if that lies ahead.
    pub fn age(&self, now: Timestamp) -> Option<Duration> {
        let [_, stopped] = self.times?;
        Some(Duration::try_from(now.duration_since(stopped.0)).unwrap_or_default())
    }
}

/// With what could not be read.
pub(super) fn all(
    repository: &Repository,
    entries: &[BackupEntry],
    windows: &[WindowStatus],
    reader: &mut Reader<'_>,
) -> (Vec<BackupStatus>, Vec<String>) {
    let mut problems = Vec::new();
    let mut drill = |entry: &BackupEntry| match repository.last_drill(entry.id) {
        Ok(drill) => drill.filter(|_| entry.seal().is_some()),
        Err(e) => {
            problems.push(format!("the last drill of backup {} cannot be read: {e}", entry.id));
            None
        }
    };
    let backup = |entry| BackupStatus { drill: drill(entry), ..one(entry, entries, windows, reader) };
    (entries.iter().map(backup).collect(), problems)
}

fn one(
    entry: &BackupEntry,
    entries: &[BackupEntry],
    windows: &[WindowStatus],
    reader: &mut Reader<'_>,
) -> BackupStatus {
    let backup = BackupStatus {
        id: entry.id,
        stage: stage(entry),
        label: None,
        kind: None,
        parent: entry.parent(),
        start: entry.start(),
        stop: entry.stop(),
        times: None,
        place: None,
        data_bytes: None,
        stored_bytes: None,
        held: false,
        window_end: None,
        waiting: None,
        damage: None,
        kept: entry.kept,
        drill: None,
    };
    match &entry.state {
        BackupState::Sealed(seal) => {
            let damage = chain(entries, seal).err().map(|e| e.to_string());
            complete(BackupStatus { damage, ..backup }, seal, windows, reader)
        }
        BackupState::Pending(pending) => {
            let needs = pending.stop.filter(|_| backup.stage == Stage::Pending);
            let mut waiting = |needs: Pos| Waiting { needs, held: reader.held_from(pending.start.lsn(), needs.tli()) };
            let kind = pending.ready.as_ref().map(|seal| seal.kind);
            BackupStatus { label: Some(pending.label.clone()), kind, waiting: needs.map(&mut waiting), ..backup }
        }
        BackupState::Unfinished => backup,
        BackupState::Damaged(why) => BackupStatus { damage: Some(why.clone()), ..backup },
    }
}

fn complete(backup: BackupStatus, seal: &Seal, windows: &[WindowStatus], reader: &Reader<'_>) -> BackupStatus {
    let ends = windows.iter().filter(|window| window.backups.contains(&seal.id)).map(|window| window.to);
    BackupStatus {
        label: Some(seal.label.clone()),
        kind: Some(seal.kind),
        times: Some([seal.start_time, seal.stop_time]),
        place: seal.place.clone(),
        data_bytes: seal.data_bytes(),
        stored_bytes: Some(seal.stored_bytes()),
        held: !reader.lacks_wal(seal.id),
        window_end: ends.max_by_key(|end| (end.pos.tli(), end.pos.lsn())),
        ..backup
    }
}

fn stage(entry: &BackupEntry) -> Stage {
    match &entry.state {
        BackupState::Sealed(_) if entry.untested => Stage::Untested,
        BackupState::Sealed(_) => Stage::Complete,
        _ if entry.running => Stage::Running,
        BackupState::Pending(pending) if pending.ready.is_some() => Stage::Pending,
        BackupState::Pending(_) | BackupState::Unfinished => Stage::Unfinished,
        BackupState::Damaged(_) => Stage::Damaged,
    }
}

impl Stage {
    /// As `list` and JSON have it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Untested => "untested",
            Self::Running => "running",
            Self::Pending => "pending",
            Self::Unfinished => "unfinished",
            Self::Damaged => "damaged",
        }
    }
}
