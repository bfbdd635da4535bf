//! `walhold list`

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;

use super::Failure;
use crate::disk::Real;
use crate::repository::{BackupEntry, BackupState, DrillRecord, Kind, Pending, Repository, Seal};
use crate::status::{BackupStatus, End, Listed, Stage, Waiting, backups};
use crate::wal::{Lsn, Pos};

/// List the backups of a repository; writes nothing
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Repository
    #[arg(long, value_name = "DIR", env = "WALHOLD_REPO")]
    repo: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let repository = Repository::open(&arguments.repo, Arc::new(Real::new()))?;
    let Listed { entries, backups, problems } = backups(&repository)?;
    for problem in problems {
        tracing::warn!("{problem}");
    }
    if arguments.json {
        let backups = entries.iter().zip(&backups).map(|(entry, backup)| Row::of(entry, backup)).collect();
        return super::print_json(&Report {
            version: 1,
            system_identifier: repository.system_id().to_string(),
            segment_size: repository.segment_size().bytes(),
            backups,
        });
    }
    if backups.is_empty() {
        return super::say(&"no backups\n");
    }
    let head = format!(
        "{:<17} {:<9} {:<4} {:<4} {:>4} {:>14} {:>14} {:>14} {:>10} {:>10} {:<17}  LABEL\n",
        "BACKUP", "STATE", "KIND", "KEEP", "TLI", "START", "STOP", "WINDOW END", "DATA", "STORED", "DRILL"
    );
    super::say(&backups.iter().fold(head, |table, backup| table + &line(backup) + "\n"))
}

fn line(backup: &BackupStatus) -> String {
    let dash = || "-".to_owned();
    let lsn = |lsn: Option<Lsn>| lsn.map_or_else(dash, |lsn| lsn.to_string());
    let size = |bytes: Option<u64>| bytes.map_or_else(dash, |bytes| HumanBytes(bytes).to_string());
    let (id, state) = (backup.id, backup.stage.word());
    let tli = backup.start.map_or_else(dash, |pos| pos.tli().to_string());
    let (start, stop) = (lsn(backup.start.map(Pos::lsn)), lsn(backup.stop.map(Pos::lsn)));
    let end = match (backup.window_end, backup.stage) {
        (Some(end), _) => end.pos.lsn().to_string(),
        (None, Stage::Complete) if backup.damage.is_some() => "base missing".to_owned(),
        (None, Stage::Complete) => "WAL missing".to_owned(),
        (None, _) => dash(),
    };
    let (data, stored) = (size(backup.data_bytes), size(backup.stored_bytes));
    let kind = match backup.kind {
        Some(Kind::Full) => "full",
        Some(Kind::Incremental) => "incr",
        None => "-",
    };
    let keep = if backup.kept { "yes" } else { "" };
    let drill = backup.drill.as_ref().map_or_else(dash, verdict);
    let said = super::status::plain(&said(backup));
    format!(
        "{id:<17} {state:<9} {kind:<4} {keep:<4} {tli:>4} {start:>14} {stop:>14} {end:>14} {data:>10} {stored:>10} {drill:<17}  {said}"
    )
    .trim_end()
    .to_owned()
}

/// Its label, or what is wrong with it.
fn said(backup: &BackupStatus) -> String {
    if let Some(why) = &backup.damage {
        return why.clone();
    }
    let place = backup.place.as_ref().map_or_else(String::new, |place| format!("  (data unchecked, at {place})"));
    let label = backup.label.clone().unwrap_or_default() + &place;
    match backup.waiting {
        Some(Waiting { needs, held: Some(held) }) => {
            format!("waiting for WAL up to {} (held up to {held})  {label}", needs.lsn())
        }
        Some(Waiting { needs, held: None }) => format!("waiting for WAL up to {}  {label}", needs.lsn()),
        None => label,
    }
}

/// The verdict, and the day of it in UTC.
fn verdict(drill: &DrillRecord) -> String {
    let word = if drill.passed() { "passed" } else { "FAILED" };
    format!("{word} {}", drill.finished.0.strftime("%Y-%m-%d"))
}

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    system_identifier: String,
    segment_size: u64,
    backups: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct Row<'a> {
    id: String,
    state: &'static str,
    /// Whether retention leaves it alone.
    kept: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<&'a Seal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<&'a Pending>,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<&'a str>,
    /// How far recovery from it can go; missing if it cannot be restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    window_end: Option<End>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<Waiting>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drill: Option<&'a DrillRecord>,
}

impl<'a> Row<'a> {
    fn of(entry: &'a BackupEntry, backup: &'a BackupStatus) -> Self {
        let row = Self {
            id: entry.id.to_string(),
            state: backup.stage.word(),
            kept: entry.kept,
            backup: None,
            pending: None,
            damage: None,
            window_end: backup.window_end,
            waiting: backup.waiting,
            drill: backup.drill.as_ref(),
        };
        match &entry.state {
            BackupState::Sealed(seal) => Row { backup: Some(seal), ..row },
            BackupState::Pending(pending) => Row { pending: Some(pending), ..row },
            BackupState::Unfinished => row,
            BackupState::Damaged(why) => Row { damage: Some(why), ..row },
        }
    }
}
