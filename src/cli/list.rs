//! `walhold list`

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;

use super::Failure;
use crate::disk::Real;
use crate::repository::{BackupEntry, BackupState, Pending, Repository, Seal};

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
    let backups = repository.backups()?;
    if arguments.json {
        let backups = backups.iter().map(Row::of).collect();
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
        "{:<17} {:<9} {:<4} {:>4} {:>14} {:>14} {:>10} {:>10}  LABEL\n",
        "BACKUP", "STATE", "KEEP", "TLI", "START", "STOP", "DATA", "STORED"
    );
    super::say(&backups.iter().fold(head, |table, entry| table + &line(entry) + "\n"))
}

fn line(entry: &BackupEntry) -> String {
    let lsn = |pos: Option<crate::wal::Pos>| pos.map_or_else(|| "-".to_owned(), |pos| pos.lsn().to_string());
    let tli = entry.start().map_or_else(|| "-".to_owned(), |pos| pos.tli().to_string());
    let (stop, data, stored, label) = match &entry.state {
        BackupState::Sealed(seal) => {
            let stored: u64 = seal.files.iter().map(|file| file.size).sum();
            (
                Some(seal.stop),
                HumanBytes(seal.manifest.bytes).to_string(),
                HumanBytes(stored).to_string(),
                seal.label.as_str(),
            )
        }
        BackupState::Pending(pending) => (pending.stop, "-".into(), "-".into(), pending.label.as_str()),
        BackupState::Unfinished => (None, "-".into(), "-".into(), ""),
        BackupState::Damaged(why) => (None, "-".into(), "-".into(), why.as_str()),
    };
    let (id, state, start, stop) = (entry.id, state(entry), lsn(entry.start()), lsn(stop));
    let keep = if entry.kept { "yes" } else { "" };
    format!("{id:<17} {state:<9} {keep:<4} {tli:>4} {start:>14} {stop:>14} {data:>10} {stored:>10}  {label}")
}

/// Only a backup that is `complete` is ever offered for restore.
fn state(entry: &BackupEntry) -> &'static str {
    match &entry.state {
        BackupState::Sealed(_) => "complete",
        _ if entry.running => "running",
        BackupState::Pending(pending) if pending.ready.is_some() => "pending",
        BackupState::Pending(_) | BackupState::Unfinished => "unfinished",
        BackupState::Damaged(_) => "damaged",
    }
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
    /// Whether it is marked so that it never expires.
    kept: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<&'a Seal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<&'a Pending>,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<&'a str>,
}

impl<'a> Row<'a> {
    fn of(entry: &'a BackupEntry) -> Self {
        let (id, kept) = (entry.id.to_string(), entry.kept);
        let row = Self { id, state: state(entry), kept, backup: None, pending: None, damage: None };
        match &entry.state {
            BackupState::Sealed(seal) => Row { backup: Some(seal), ..row },
            BackupState::Pending(pending) => Row { pending: Some(pending), ..row },
            BackupState::Unfinished => row,
            BackupState::Damaged(why) => Row { damage: Some(why), ..row },
        }
    }
}
