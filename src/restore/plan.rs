//! What a restore would do, and whether it can succeed; nothing is written.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::configure::Source;
use super::wal_get::Holdings;
use super::{Filling, Goal, Mapping, Options, Owner, RestoreError, in_place};
use crate::archive::{Archive, ArchiveError, Stopped};
use crate::disk::{Disk, EntryKind};
use crate::repository::{BackupState, Kind, Repository, Seal, Which};
use crate::wal::{Broken, Chain, History, Lsn, Seed, Segment, TimelineId};

/// A directory that is to be filled.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Place {
    /// Absolute.
    #[serde(serialize_with = "shown")]
    pub path: PathBuf,
    /// Whether it is there, and empty.
    pub exists: bool,
}

/// Where a tablespace will lie.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PlannedTablespace {
    /// Its object id.
    pub oid: u32,
    /// Where it lay on the server that was copied.
    #[serde(serialize_with = "shown")]
    pub old: PathBuf,
    /// Where it is to lie; `None` for one inside the data directory (`allow_in_place_tablespaces`).
    pub new: Option<Place>,
}

impl PlannedTablespace {
    /// Whether it is to lie elsewhere than it did.
    pub fn moves(&self) -> bool {
        self.new.as_ref().is_some_and(|place| place.path != self.old)
    }
}

/// Room on one file system.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Space {
    /// The first of the places on it.
    #[serde(serialize_with = "shown")]
    pub path: PathBuf,
    /// Bytes that will be laid down on it.
    pub needed: u64,
    /// Bytes that are free.
    pub available: u64,
}

/// The WAL that the restored server will read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PlannedWal {
    /// From here it recovers.
    pub from: Lsn,
    /// Here the data is consistent; proven from the WAL's bytes.
    pub consistent_at: Lsn,
    /// The timeline along which it recovers; `None` for a standby, which follows its primary.
    pub timeline: Option<TimelineId>,
    /// Name of the last segment that is held without a hole before it; it may be a partial.
    pub last_segment: String,
    /// Name of the first segment of the hole at which the recovery ends though the archive goes on.
    pub ends_at_gap: Option<String>,
}

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

fn shown<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

/// Plans a restore.
///
/// # Errors
/// When it could not succeed. Nothing has been written then, nor when it could.
pub fn plan(repository: &Repository, options: &Options) -> Result<Plan, RestoreError> {
    let (backup, _held) = repository.hold(repository.find(options.which)?.id)?;
    check_filling(repository, &backup, options.filling)?;
    prove(repository, &backup)?;
    let (repo, program) = (absolute(repository.dir())?, absolute(&options.program)?);
    let disk = &**repository.disk();
    let filled = options.filling != Filling::Restore;
    let (target, tablespaces) = if filled {
        let target = in_place::filled(disk, absolute(&options.target)?, &backup)?;
        (target, in_place::tablespaces(disk, &backup, &options.mappings)?)
    } else {
        (place(disk, &options.target)?, place_tablespaces(disk, &backup, &options.mappings)?)
    };
    check_apart(&repo, &target, &tablespaces)?;
    check_owner(options.owner, &program, &repo)?;
    let space = if filled {
        in_place::check(repository, &backup, &target.path, &tablespaces, options.owner)?;
        Vec::new()
    } else {
        measure(repository, &backup, &target, &tablespaces)?
    };
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
    if backup.kind != Kind::Full {
        return Err(RestoreError::Incremental(id));
    }
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

fn absolute(path: &Path) -> Result<PathBuf, RestoreError> {
    std::path::absolute(path).map_err(|source| RestoreError::Path { path: path.to_owned(), source })
}

fn place(disk: &dyn Disk, path: &Path) -> Result<Place, RestoreError> {
    let path = absolute(path)?;
    let exists = match disk.metadata(&path)? {
        None => match std::fs::symlink_metadata(&path) {
            // A link that leads nowhere.
            Ok(_) => return Err(RestoreError::NotEmpty(path)),
            Err(_) => false,
        },
        Some(found) if found.kind == EntryKind::Directory && disk.list(&path)?.is_empty() => true,
        Some(_) => return Err(RestoreError::NotEmpty(path)),
    };
    Ok(Place { path, exists })
}

fn place_tablespaces(
    disk: &dyn Disk,
    backup: &Seal,
    mappings: &[Mapping],
) -> Result<Vec<PlannedTablespace>, RestoreError> {
    check_mappings(backup, mappings)?;
    let mut planned = Vec::new();
    for tablespace in &backup.tablespaces {
        let old = PathBuf::from(&tablespace.location);
        let mapped = mappings.iter().find(|mapping| mapping.old == old);
        let in_place = old == Path::new(&format!("pg_tblspc/{}", tablespace.oid));
        let new = match mapped.map_or(&old, |mapping| &mapping.new) {
            _ if in_place && mapped.is_none() => None,
            path if !path.is_absolute() => return Err(RestoreError::NotAbsolute(path.clone())),
            path => Some(place(disk, path)?),
        };
        planned.push(PlannedTablespace { oid: tablespace.oid, old, new });
    }
    Ok(planned)
}

/// Each must be of a tablespace of the backup, and of another than those before.
pub(super) fn check_mappings(backup: &Seal, mappings: &[Mapping]) -> Result<(), RestoreError> {
    for (index, mapping) in mappings.iter().enumerate() {
        if mappings.iter().take(index).any(|before| before.old == mapping.old) {
            return Err(RestoreError::MappedTwice(mapping.old.clone()));
        }
        if !backup.tablespaces.iter().any(|tablespace| Path::new(&tablespace.location) == mapping.old) {
            return Err(RestoreError::NoSuchTablespace { id: backup.id, old: mapping.old.clone() });
        }
    }
    Ok(())
}

/// No two places may lie in each other, and none in the repository.
fn check_apart(repo: &Path, target: &Place, tablespaces: &[PlannedTablespace]) -> Result<(), RestoreError> {
    let repo = resolved(repo)?;
    let all = [target].into_iter().chain(tablespaces.iter().filter_map(|tablespace| tablespace.new.as_ref()));
    let mut before: Vec<(PathBuf, &Path)> = Vec::new();
    for place in all {
        let real = resolved(&place.path)?;
        if real.starts_with(&repo) {
            return Err(RestoreError::InRepository(place.path.clone()));
        }
        if let Some((_, other)) = before.iter().find(|(other, _)| real.starts_with(other) || other.starts_with(&real)) {
            return Err(RestoreError::Overlap((*other).to_owned(), place.path.clone()));
        }
        before.push((real, &place.path));
    }
    Ok(())
}

/// The path with the links in the part of it that exists followed.
fn resolved(path: &Path) -> Result<PathBuf, RestoreError> {
    let there = existing(path);
    let wrong = |source| RestoreError::Path { path: there.to_owned(), source };
    let real = there.canonicalize().map_err(wrong)?;
    Ok(path.strip_prefix(there).map_or_else(|_| real.clone(), |rest| real.join(rest)))
}

/// The deepest part of the path that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|part| part.exists()).unwrap_or_else(|| Path::new("/"))
}

fn measure(
    repository: &Repository,
    backup: &Seal,
    target: &Place,
    tablespaces: &[PlannedTablespace],
) -> Result<Vec<Space>, RestoreError> {
    let contents = repository.contents(backup).map_err(|source| RestoreError::Content { id: backup.id, source })?;
    // By the device's number.
    let mut needed: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    for (tablespace, size) in contents.sizes() {
        let planned = tablespaces.iter().find(|planned| Some(planned.oid) == tablespace);
        let path = planned.and_then(|planned| planned.new.as_ref()).map_or(&target.path, |place| &place.path);
        let there = existing(path);
        let meta = std::fs::metadata(there).map_err(|source| RestoreError::Path { path: there.to_owned(), source })?;
        let (_, sum) = needed.entry(meta.dev()).or_insert_with(|| (path.clone(), 0));
        *sum = sum.saturating_add(size);
    }
    let mut all = Vec::new();
    for (path, needed) in needed.into_values() {
        let available = repository.disk().available(existing(&path))?;
        if available < needed {
            return Err(RestoreError::NoRoom { path, needed, available });
        }
        all.push(Space { path, needed, available });
    }
    Ok(all)
}

/// The server must be able to own the files, run the program and read the repository.
fn check_owner(owner: Option<Owner>, program: &Path, repo: &Path) -> Result<(), RestoreError> {
    let we = rustix::process::geteuid();
    let Some(owner) = owner else {
        return if we.is_root() { Err(RestoreError::OwnerNeeded) } else { Ok(()) };
    };
    if !we.is_root() && owner.user != we.as_raw() {
        return Err(RestoreError::CannotGiveAway(owner.user));
    }
    if owner.user == 0 {
        return Err(RestoreError::OwnerNeeded);
    }
    let archive = repo.join("wal");
    for (verb, path, bits) in
        [("run", program, 0o5), ("read", &repo.join("repository.json"), 0o4), ("read", &archive, 0o5)]
    {
        if let Some(path) = barrier(owner, path, bits) {
            return Err(RestoreError::OwnerLocked { user: owner.user, verb, path });
        }
    }
    Ok(())
}

/// The first part of the path at which the owner is certainly kept out: by the modes, of which
/// those for another group are taken as open, for the owner may be a member of it.
pub(crate) fn barrier(owner: Owner, path: &Path, bits: u32) -> Option<PathBuf> {
    let closed = |part: &Path, bits: u32| {
        let Ok(meta) = std::fs::metadata(part) else { return false };
        let mode = meta.permissions().mode();
        let granted = if meta.uid() == owner.user {
            mode >> 6
        } else if meta.gid() == owner.group {
            mode >> 3
        } else {
            mode | mode >> 3
        };
        granted & bits != bits
    };
    let mut ways: Vec<&Path> = path.ancestors().skip(1).filter(|part| !part.as_os_str().is_empty()).collect();
    ways.reverse();
    let way = ways.into_iter().find(|part| closed(part, 0o1));
    way.or_else(|| closed(path, bits).then_some(path)).map(Path::to_owned)
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

fn plan_wal(
    archive: &Archive,
    backup: &Seal,
    goal: &Goal,
    notes: &mut Vec<String>,
) -> Result<(PlannedWal, Option<Segment>), RestoreError> {
    let listing = archive.list()?;
    let holdings = Holdings::new(archive, listing)?;
    let stop = backup.stop;
    // The newest timeline that can be reached without a hole; at last the backup's own.
    let mut candidates: Vec<TimelineId> = holdings.listing().timelines();
    candidates.retain(|tli| *tli > stop.tli());
    candidates.reverse();
    let from = Lsn::new(stop.lsn().get().saturating_sub(1));
    let mut chosen = None;
    for tli in candidates {
        let way = match archive.history(tli) {
            Ok(way) => way,
            Err(ArchiveError::NoHistory(_)) => {
                notes.push(format!("timeline {tli} is not gone along, for its history file is not in the archive"));
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        if way.switch_from(stop.tli()).is_none_or(|switch| switch.at < stop.lsn()) {
            continue;
        }
        let reach = holdings.reach(&way, way.segment_at(from, archive.size()));
        match reach.gap {
            Some((gap, _)) if gap.tli() != tli || reach.last.tli() != tli => {
                notes.push(format!("timeline {tli} is not gone along, for segment {gap} on the way to it is missing"));
            }
            _ => {
                chosen = Some((tli, reach));
                break;
            }
        }
    }
    let (tli, reach) = match chosen {
        Some(chosen) => chosen,
        None => {
            let way = holdings.route(stop.tli());
            (stop.tli(), holdings.reach(&way, way.segment_at(from, archive.size())))
        }
    };
    if let Some((gap, later)) = reach.gap {
        notes.push(match goal {
            Goal::EndOfWal => format!(
                "recovery ends before segment {gap}, which is missing; the archive goes on to {later}, \
                 and a later backup reaches further"
            ),
            Goal::Standby { .. } => format!("segment {gap} is missing; the standby needs it from its primary"),
        });
    }
    let standby = matches!(goal, Goal::Standby { .. });
    let damage = damage_behind(archive, &holdings.route(stop.tli()), from)?;
    if let Some((segment, broken)) = &damage {
        notes.push(format!(
            "segment {segment} is damaged at {}, behind the backup's end: recovery ends there",
            broken.at
        ));
    }
    let damage = damage.map(|(segment, _)| segment);
    let tli = if damage.is_some() { stop.tli() } else { tli };
    let gap = damage.or_else(|| reach.gap.map(|(gap, _)| gap)).filter(|_| !standby);
    let wal = PlannedWal {
        from: backup.start.lsn(),
        consistent_at: stop.lsn(),
        timeline: (!standby).then_some(tli),
        last_segment: reach.last.name(),
        ends_at_gap: gap.map(Segment::name),
    };
    Ok((wal, gap))
}

/// Damage in the segment that holds the backup's end, which the server reads whole. What lies before
/// the end has been proven.
fn damage_behind(archive: &Archive, way: &History, end: Lsn) -> Result<Option<(Segment, Broken)>, RestoreError> {
    let last = way.segment_at(end, archive.size());
    let (start, size, system_id) = (last.start(), archive.size(), archive.system_id());
    let mut chain = Chain::new(Seed { start, size, system_id, newest_tli: last.tli() });
    Ok(match archive.walk(way, &mut chain, last.end(), &mut |_| {})? {
        Stopped::Invalid { segment, form, broken } if !form.partial => Some((segment, broken)),
        _ => None,
    })
}

/// For an operator to read before it is done.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backup = &self.backup;
        writeln!(f, "backup      {} of PostgreSQL {}", backup.id, backup.server_version.text)?;
        if !backup.label.is_empty() {
            writeln!(f, "label       {}", backup.label.escape_debug())?;
        }
        let state = |place: &Place| match (place.exists, &backup.place) {
            (true, None) => "empty",
            (true, Some(_)) => "filled",
            (false, _) => "new",
        };
        if let Some(data) = &backup.place {
            writeln!(f, "data        not checked, from {}", data.escape_debug())?;
        }
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
