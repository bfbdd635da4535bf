//! What a restore would do, and whether it can succeed; nothing is written.

mod places;
mod wal;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::configure::Source;
use super::{Goal, Options, Owner, RestoreError};
use crate::repository::{BackupState, Kind, Repository, Seal, Which};
use crate::wal::Segment;
pub(crate) use places::barrier;
pub use places::{Place, PlannedTablespace, Space};
use places::{absolute, check_apart, check_owner, measure, place, place_tablespaces, shown};
pub use wal::PlannedWal;
use wal::plan_wal;

/// A restore that can succeed, as far as that can be known without reading the data files.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    version: u32,
    /// The backup.
    pub backup: Seal,
    /// The data directory.
    pub target: Place,
    /// In the order of their object ids.
    pub tablespaces: Vec<PlannedTablespace>,
    /// What the server will read.
    pub wal: PlannedWal,
    /// Per file system.
    pub space: Vec<Space>,
    /// What the operator must know.
    pub notes: Vec<String>,
    #[serde(skip)]
    pub(super) goal: Goal,
    #[serde(skip)]
    pub(super) owner: Option<Owner>,
    #[serde(skip)]
    gap: Option<Segment>,
    #[serde(serialize_with = "shown")]
    repository: PathBuf,
    #[serde(serialize_with = "shown")]
    program: PathBuf,
}

/// Plans a restore.
///
/// # Errors
/// When it could not succeed. Nothing has been written then, nor when it could.
pub fn plan(repository: &Repository, options: &Options) -> Result<Plan, RestoreError> {
    let (backup, _held) = repository.hold(repository.find(options.which)?.id)?;
    prove(repository, &backup)?;
    let (repo, program) = (absolute(repository.dir())?, absolute(&options.program)?);
    let target = place(&**repository.disk(), &options.target)?;
    let tablespaces = place_tablespaces(&**repository.disk(), &backup, &options.mappings)?;
    check_apart(&repo, &target, &tablespaces)?;
    let space = measure(repository, &backup, &target, &tablespaces)?;
    check_owner(options.owner, &program, &repo)?;
    let mut notes = notes(repository, &backup, options)?;
    let (wal, gap) = plan_wal(&repository.archive(), &backup, &options.goal, &mut notes)?;
    let (goal, owner) = (options.goal.clone(), options.owner);
    let repository = repo;
    Ok(Plan { version: 1, backup, target, tablespaces, wal, space, notes, goal, owner, gap, repository, program })
}

impl Plan {
    /// Lines of a configuration file that let a server recover as planned.
    pub(crate) fn recovery_settings(&self) -> Vec<u8> {
        self.source().lines(&self.goal, &[])
    }

    /// How the server gets its WAL.
    pub(super) fn source(&self) -> Source<'_> {
        Source { program: &self.program, repository: &self.repository, pin: self.wal.timeline, gap: self.gap }
    }
}

/// The proof of the backup's WAL, again, and what else can be seen without reading the data files.
fn prove(repository: &Repository, backup: &Seal) -> Result<(), RestoreError> {
    let id = backup.id;
    if backup.kind != Kind::Full {
        return Err(RestoreError::Incremental(id));
    }
    let content = |source| RestoreError::Content { id, source };
    let _histories = repository.check_histories(backup).map_err(content)?;
    let archive = repository.archive();
    let proof = archive.prove(backup.start.lsn(), backup.stop, backup.end());
    let _proof = proof.map_err(|source| RestoreError::NotProven { id, source })?;
    let _files = repository.contents(backup).map_err(content)?;
    Ok(())
}

fn notes(repository: &Repository, backup: &Seal, options: &Options) -> Result<Vec<String>, RestoreError> {
    let mut notes = vec![format!("the server must be of PostgreSQL {}", backup.server_version.major())];
    if options.which == Which::Latest {
        for entry in repository.backups()? {
            if let BackupState::Damaged(why) = entry.state {
                notes.push(format!("backup {} is passed over, for its seal cannot be read: {why}", entry.id));
            }
        }
    }
    let files = &backup.config_files;
    for (name, path) in
        [("config_file", &files.config_file), ("hba_file", &files.hba_file), ("ident_file", &files.ident_file)]
    {
        let Some(path) = path else { continue };
        match &files.data_directory {
            Some(data) if Path::new(path).starts_with(data) => {}
            Some(_) => notes.push(format!("{name} was {path}, outside the data directory: it is not in the backup")),
            None => {
                notes.push(format!("{name} was {path}; if that is outside the data directory, it is not in the backup"))
            }
        }
    }
    Ok(notes)
}

/// For an operator to read before it is done.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backup = &self.backup;
        writeln!(f, "backup      {} of PostgreSQL {}", backup.id, backup.server_version.text)?;
        if !backup.label.is_empty() {
            writeln!(f, "label       {}", backup.label.escape_debug())?;
        }
        let state = |place: &Place| if place.exists { "empty" } else { "new" };
        writeln!(f, "to          {} ({})", self.target.path.display(), state(&self.target))?;
        for tablespace in &self.tablespaces {
            let (oid, old) = (tablespace.oid, tablespace.old.display());
            match &tablespace.new {
                None => writeln!(f, "tablespace  {oid} inside the data directory")?,
                Some(place) if tablespace.moves() => {
                    writeln!(f, "tablespace  {oid} to {} ({}) from {old}", place.path.display(), state(place))?;
                }
                Some(place) => writeln!(f, "tablespace  {oid} to {} ({})", place.path.display(), state(place))?,
            }
        }
        let wal = &self.wal;
        writeln!(f, "WAL         {} to {}, proven", wal.from, wal.consistent_at)?;
        match (wal.timeline, &wal.ends_at_gap) {
            (Some(tli), None) => {
                writeln!(f, "recovery    along timeline {tli} to the end, segment {}", wal.last_segment)?
            }
            (Some(tli), Some(gap)) => writeln!(f, "recovery    along timeline {tli} to the gap at segment {gap}")?,
            (None, _) => writeln!(f, "recovery    as a standby, along its primary's timeline")?,
        }
        for space in &self.space {
            writeln!(f, "room        {} of {} bytes at {}", space.needed, space.available, space.path.display())?;
        }
        for note in &self.notes {
            writeln!(f, "note        {note}")?;
        }
        Ok(())
    }
}
