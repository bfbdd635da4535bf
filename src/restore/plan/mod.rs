//! What a restore would do, and whether it can succeed; nothing is written.

mod delta;
mod estimate;
mod places;
mod show;
mod wal;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::combine::sizes;
use super::configure::Source;
use super::target::{Aim, Along, Near, Target};
use super::unreachable::{Beside, Unreachable};
use super::{Filling, Goal, Options, Owner, RestoreError, in_place};
use crate::image::ManifestAlgorithm;
use crate::repository::{BackupEntry, BackupId, BackupState, Kind, NotUsable, Repository, Seal, Which};
use crate::wal::Segment;
pub use estimate::Estimate;
pub(crate) use places::barrier;
pub(super) use places::check_mappings;
pub use places::{Place, PlannedTablespace, Space};
use places::{absolute, check_apart, check_made, check_owner, measure, place, place_tablespaces, shown};
use wal::{Ask, leads_on, plan_wal};
pub use wal::{PlannedEnd, PlannedTarget, PlannedWal, TargetSetting};

/// A restore that can succeed, as far as that can be known without reading the data files.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    version: u32,
    /// The backup.
    pub backup: Seal,
    /// What it is based on, the newest first and the full one last; nothing if it stands alone.
    pub based_on: Vec<BackupId>,
    /// The data directory.
    pub target: Place,
    /// In the order of their object ids.
    pub tablespaces: Vec<PlannedTablespace>,
    /// What the server will read.
    pub wal: PlannedWal,
    /// Per file system.
    pub space: Vec<Space>,
    /// How long it may take.
    pub time: Estimate,
    /// What the operator must know.
    pub notes: Vec<String>,
    /// Whether the data directory is there, and what equals the backup stays.
    pub delta: bool,
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

/// Plans a restore. Without a backup's name the newest is taken that recovers to the target.
///
/// # Errors
/// When it could not succeed. Nothing has been written then, nor when it could.
pub fn plan(repository: &Repository, options: &Options) -> Result<Plan, RestoreError> {
    let Some(Aim { target, .. }) = options.goal.aim() else {
        let backup = repository.find(options.which)?.id;
        return plan_of(repository, options, backup, &ask(options, &[]), &mut Near::default());
    };
    let sealed = sealed(repository)?;
    let (ended, later) = candidates(repository, options, target, &sealed)?;
    let mut near = Near::default();
    let (mut ask, mut refused) = (ask(options, &sealed), None);
    for backup in ended {
        let unreachable = match plan_of(repository, options, backup.id, &ask, &mut near) {
            Err(RestoreError::Unreachable(unreachable)) => unreachable,
            planned => return planned,
        };
        // By its number or name alone nobody knows where a transaction or restore point is.
        let anywhere = matches!(target, Target::Xid(_) | Target::Name(_));
        let older_may = unreachable.is_before() || anywhere;
        ask.until = unreachable.searched().map(|_| backup.start.lsn());
        let told = refused.get_or_insert_with(|| unreachable.clone());
        if unreachable.is_before() {
            *told = unreachable;
        }
        if !older_may {
            break;
        }
    }
    ask.until = None;
    for backup in later {
        let unreachable = match plan_of(repository, options, backup.id, &ask, &mut near) {
            Err(RestoreError::Unreachable(unreachable)) => unreachable,
            Err(_) if refused.is_some() => break,
            planned => return planned,
        };
        let next_may = matches!(*unreachable, Unreachable::InGap { .. });
        refused.get_or_insert_with(|| match unreachable.is_before() {
            true => Box::new(Unreachable::BeforeAll { target: target.clone(), first: Beside::of(&backup) }),
            false => unreachable,
        });
        if !next_may {
            break;
        }
    }
    Err(match refused {
        Some(unreachable) => RestoreError::Unreachable(Box::new(unreachable.with(near))),
        None => NotUsable::None.into(),
    })
}

const fn ask<'a>(options: &'a Options, others: &'a [Seal]) -> Ask<'a> {
    Ask { goal: &options.goal, along: options.along, until: None, others }
}

/// The complete backups, the newest first.
fn sealed(repository: &Repository) -> Result<Vec<Seal>, RestoreError> {
    let seal = |entry: BackupEntry| match entry.state {
        BackupState::Sealed(seal) => Some(*seal),
        _ => None,
    };
    Ok(repository.backups()?.into_iter().rev().filter_map(seal).collect())
}

/// The backups from which a target may be reached, the newest first; and those, the oldest first, that may if
/// walhold's clock was ahead of the server's.
fn candidates(
    repository: &Repository,
    options: &Options,
    target: &Target,
    sealed: &[Seal],
) -> Result<(Vec<Seal>, Vec<Seal>), RestoreError> {
    if let Which::Named(_) = options.which {
        return Ok((vec![repository.find(options.which)?], Vec::new()));
    }
    let way = match options.along {
        Along::Timeline(tli) => Some(repository.archive().history(tli)?),
        Along::Latest | Along::Current => None,
    };
    let on_way = |seal: &&Seal| way.as_ref().is_none_or(|way| leads_on(way, seal));
    let on_way: Vec<&Seal> = sealed.iter().filter(on_way).collect();
    let Some(first) = on_way.last() else {
        let newest = repository.find(Which::Latest)?;
        let timeline = way.map_or_else(|| newest.stop.tli(), |way| way.tli());
        return Err(RestoreError::NotOnTimeline { id: newest.id, stop: newest.stop.lsn(), timeline });
    };
    let ended = |seal: &Seal| match target {
        Target::Time(time) => seal.stop_time.0 <= *time,
        Target::Lsn(lsn) => seal.stop.lsn() <= *lsn,
        Target::Xid(_) | Target::Name(_) | Target::Immediate => true,
    };
    let (before, mut later): (Vec<&Seal>, Vec<&Seal>) = on_way.iter().copied().partition(|seal| ended(seal));
    later.reverse();
    if !matches!(target, Target::Time(_)) {
        later.clear();
        if before.is_empty() {
            let unreachable = Unreachable::BeforeAll { target: target.clone(), first: Beside::of(first) };
            return Err(RestoreError::Unreachable(Box::new(unreachable)));
        }
    }
    Ok((before.into_iter().cloned().collect(), later.into_iter().cloned().collect()))
}

/// Plans the restore of one backup.
fn plan_of(
    repository: &Repository,
    options: &Options,
    backup: BackupId,
    ask: &Ask<'_>,
    near: &mut Near,
) -> Result<Plan, RestoreError> {
    let (mut chain, _held) = repository.hold_chain(backup)?;
    let sizes = if chain.len() > 1 { sizes(repository, &chain)? } else { HashMap::new() };
    let based_on = chain.drain(1..).map(|seal| seal.id).collect();
    let backup = chain.swap_remove(0);
    check_filling(repository, &backup, options.filling)?;
    prove(repository, &backup)?;
    let (repo, program) = (absolute(repository.dir())?, absolute(&options.program)?);
    let disk = &**repository.disk();
    let filled = options.filling != Filling::Restore;
    let target = match options.delta {
        _ if filled => in_place::filled(disk, absolute(&options.target)?, &backup)?,
        true => delta::target(disk, &options.target, backup.system_identifier)?,
        false => place(disk, &options.target)?,
    };
    let tablespaces = match filled {
        true => in_place::tablespaces(disk, &backup, &options.mappings)?,
        false => place_tablespaces(disk, &backup, &target, &options.mappings)?,
    };
    check_apart(&repo, &target, &tablespaces)?;
    check_owner(options.owner, &program, &repo)?;
    let space = if filled {
        in_place::check(repository, &backup, &target.path, &tablespaces, options.owner)?;
        Vec::new()
    } else {
        measure(repository, &backup, &sizes, &target, &tablespaces)?
    };
    let mut notes = notes(repository, &backup, options)?;
    let (wal, gap) = plan_wal(&repository.archive(), &backup, ask, near, &mut notes)?;
    check_made(disk, &wal, &tablespaces, &mut notes)?;
    if options.delta && target.filled && backup.manifest.algorithm == ManifestAlgorithm::None {
        notes.push(
            "the backup's manifest has no checksums: of what is there nothing stays, all is rewritten".to_owned(),
        );
    }
    let data_bytes = match backup.kind {
        Kind::Full => backup.manifest.bytes,
        Kind::Incremental => sizes.values().copied().fold(0, u64::saturating_add),
    };
    let time = Estimate::of(repository, data_bytes, &wal)?;
    let (goal, owner, delta) = (options.goal.clone(), options.owner, target.filled);
    let repository = repo;
    Ok(Plan {
        version: 1,
        backup,
        based_on,
        target,
        tablespaces,
        wal,
        space,
        time,
        notes,
        delta,
        goal,
        owner,
        gap,
        repository,
        program,
    })
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

/// Whether the data is where it is to come from.
fn check_filling(repository: &Repository, backup: &Seal, filling: Filling) -> Result<(), RestoreError> {
    match (backup.method.holds_data(), filling) {
        (true, Filling::Restore) => Ok(()),
        (true, Filling::Operator | Filling::OperatorForDrill) => Err(RestoreError::NotElsewhere(backup.id)),
        (false, Filling::Restore) => {
            Err(RestoreError::Elsewhere { id: backup.id, place: backup.place.clone().unwrap_or_default() })
        }
        (false, Filling::Operator) if repository.is_untested(backup) => Err(RestoreError::Untested(backup.id)),
        (false, Filling::Operator | Filling::OperatorForDrill) => Ok(()),
    }
}

/// The proof of the backup's WAL, again, and what else can be seen without reading the data files.
fn prove(repository: &Repository, backup: &Seal) -> Result<(), RestoreError> {
    let id = backup.id;
    let content = |source| RestoreError::Content { id, source };
    let _histories = repository.check_histories(backup).map_err(content)?;
    let archive = repository.archive();
    let proof = archive.prove(backup.start.lsn(), backup.stop, backup.end());
    let _proof = proof.map_err(|source| RestoreError::NotProven { id, source })?;
    if backup.method.holds_data() {
        let _files = repository.contents(backup).map_err(content)?;
    } else {
        let _said = repository.said(backup).map_err(content)?;
    }
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
