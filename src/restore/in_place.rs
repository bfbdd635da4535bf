//! A data directory that the operator has filled from a copy which lies elsewhere: looked at before anything
//! is changed, then made ready, so that a server recovers from it as it would from any other backup.
//!
//! It can be repeated after whatever has interrupted it. `global/pg_control`, without which no server starts,
//! bears another name until all else is done and durable.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::configure::{ADDED, Copied};
use super::lay_down::{moved, signals};
use super::plan::{Place, PlannedTablespace};
use super::{Mapping, Owner, Plan, RestoreError, Restored};
use crate::datadir::DataDirError;
use crate::disk::{Disk, EntryKind, Trouble, read_bounded};
use crate::image::{BackupLabel, Compared, ControlError, ControlFile, Misfit, TablespaceMap, emptied};
use crate::repository::{Method, Repository, Said, Seal};
use crate::wal::Segment;

const CONTROL: &str = "global/pg_control";
/// What it is called until all else is durable.
const UNFINISHED: &str = "global/pg_control.unfinished";
const AUTO_CONF: &str = "postgresql.auto.conf";
const CONF: &str = "postgresql.conf";
const PID: &str = "postmaster.pid";
const SLOTS: &str = "pg_replslot";
const WAL: &str = "pg_wal";
const LINKS: &str = "pg_tblspc";

/// What belonged to the server that was copied, or to another backup.
const STALE: [&str; 8] = [
    PID,
    "postmaster.opts",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "recovery.signal",
    "standby.signal",
    "postgresql.auto.conf.tmp",
];

/// Longer than any file that is read here.
const MAX_CONTENT: u64 = 16 << 20;

/// What the operator has filled cannot be used.
#[derive(Debug, Error)]
pub enum FillError {
    /// There is none.
    #[error("{} is no directory, and must have been filled from {place}", path.display())]
    NotThere {
        /// The directory.
        path: PathBuf,
        /// Where the data lies.
        place: String,
    },
    /// A file that every data directory has.
    #[error("{} is missing: is this a data directory?", .0.display())]
    Missing(PathBuf),
    /// It is of another server.
    #[error("{} is of PostgreSQL {found}, and the backup is of {wanted}", path.display())]
    Version {
        /// The directory.
        path: PathBuf,
        /// In `PG_VERSION`.
        found: String,
        /// The backup's major version.
        wanted: u32,
    },
    /// A server runs on it.
    #[error("a server runs on {} (process {process})", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The server.
        process: u32,
    },
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Control {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ControlError,
    },
    /// It is not of this backup.
    #[error("{} does not hold this backup: {source}", path.display())]
    Misfit {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: Misfit,
    },
    /// A snapshot holds the WAL of its own instant.
    #[error("{} is not there: a snapshot of one instant holds the WAL that it recovers from first", .0.display())]
    NoWal(PathBuf),
    /// The snapshot's WAL would be that of a server that runs.
    #[error("{} is a link: what it leads to must be a part of the snapshot, and lie in its place", .0.display())]
    WalIsLink(PathBuf),
    /// On the host that was copied, the old place is in use.
    #[error("the tablespace that lay at {} needs a place: say where the operator has put it, even if that is the same", .0.display())]
    NoPlace(PathBuf),
    /// It was filled from something else.
    #[error("{} does not hold a tablespace of PostgreSQL {major}", path.display())]
    NoTablespace {
        /// Its place.
        path: PathBuf,
        /// The backup's major version.
        major: u32,
    },
    /// A directory bears the name of a link.
    #[error("{} is a directory: the tablespace must lie outside, and a link lead to it", .0.display())]
    LinkIsDir(PathBuf),
    /// The server would refuse it.
    #[error("{} belongs to user {found}, and the server will run as user {wanted}", path.display())]
    NotOwned {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: u32,
        /// Who was named.
        wanted: u32,
    },
}

/// The directory, which must be there.
pub(super) fn filled(disk: &dyn Disk, path: PathBuf, backup: &Seal) -> Result<Place, RestoreError> {
    match disk.metadata(&path)? {
        Some(meta) if meta.kind == EntryKind::Directory => Ok(Place { path, exists: true, filled: true }),
        _ => Err(FillError::NotThere { path, place: backup.place.clone().unwrap_or_default() }.into()),
    }
}

/// Where the operator has put the tablespaces. Nothing is guessed: at their old places may be those of the
/// server that was copied.
pub(super) fn tablespaces(
    disk: &dyn Disk,
    backup: &Seal,
    mappings: &[Mapping],
) -> Result<Vec<PlannedTablespace>, RestoreError> {
    super::plan::check_mappings(backup, mappings)?;
    let mut planned = Vec::new();
    for tablespace in &backup.tablespaces {
        let old = PathBuf::from(&tablespace.location);
        if !old.is_absolute() {
            planned.push(PlannedTablespace { oid: tablespace.oid, old, new: None });
            continue;
        }
        let mapped = mappings.iter().find(|mapping| mapping.old == old);
        let path = mapped.ok_or_else(|| FillError::NoPlace(old.clone()))?.new.clone();
        if !path.is_absolute() {
            return Err(RestoreError::NotAbsolute(path));
        }
        let major = backup.server_version.major();
        let beginning = format!("PG_{major}_");
        let there = match disk.list(&path) {
            Err(e) if e.trouble() == Trouble::Missing => false,
            entries => entries?.iter().any(|entry| entry.name.to_string_lossy().starts_with(&beginning)),
        };
        if !there {
            return Err(FillError::NoTablespace { path, major }.into());
        }
        planned.push(PlannedTablespace {
            oid: tablespace.oid,
            old,
            new: Some(Place { path, exists: true, filled: true }),
        });
    }
    Ok(planned)
}

/// Whether the directory holds what the backup is of, and nobody uses it. Writes nothing.
pub(super) fn check(
    repository: &Repository,
    backup: &Seal,
    data: &Path,
    tablespaces: &[PlannedTablespace],
    owner: Option<Owner>,
) -> Result<(), RestoreError> {
    let disk = &**repository.disk();
    let said = repository.said(backup).map_err(|source| RestoreError::Content { id: backup.id, source })?;
    let version =
        content(disk, &data.join("PG_VERSION"))?.ok_or_else(|| FillError::Missing(data.join("PG_VERSION")))?;
    let found = String::from_utf8_lossy(&version).trim().to_owned();
    let wanted = backup.server_version.major();
    if found != wanted.to_string() {
        return Err(FillError::Version { path: data.to_owned(), found, wanted }.into());
    }
    if let Some(process) = user(disk, data)? {
        return Err(FillError::InUse { path: data.to_owned(), process }.into());
    }
    check_control(repository, backup, &said, data)?;
    for planned in tablespaces.iter().filter(|planned| planned.new.is_some()) {
        let link = data.join(LINKS).join(planned.oid.to_string());
        if kind(disk, &link)? == Some(EntryKind::Directory) {
            return Err(FillError::LinkIsDir(link).into());
        }
    }
    let places = tablespaces.iter().filter_map(|planned| planned.new.as_ref()).map(|place| place.path.as_path());
    for path in [data].into_iter().chain(places) {
        let meta = std::fs::metadata(path).map_err(|source| RestoreError::Path { path: path.to_owned(), source })?;
        let wanted = owner.map_or_else(|| rustix::process::geteuid().as_raw(), |owner| owner.user);
        if meta.uid() != wanted {
            return Err(FillError::NotOwned { path: path.to_owned(), found: meta.uid(), wanted }.into());
        }
    }
    Ok(())
}

fn check_control(repository: &Repository, backup: &Seal, said: &Said, data: &Path) -> Result<(), RestoreError> {
    let disk = &**repository.disk();
    let path = data.join(CONTROL);
    let bytes = match content(disk, &path)? {
        Some(bytes) => bytes,
        // An earlier preparation was interrupted.
        None => content(disk, &data.join(UNFINISHED))?.ok_or_else(|| FillError::Missing(path.clone()))?,
    };
    let parse =
        |bytes: &[u8]| ControlFile::parse(bytes).map_err(|source| FillError::Control { path: path.clone(), source });
    let control = parse(&bytes)?;
    let misfit = |source| RestoreError::Fill(FillError::Misfit { path: data.to_owned(), source });
    let system_id = backup.system_identifier;
    let Some(label) = &said.label else {
        control.fits_snapshot(system_id, backup.start, backup.stop).map_err(misfit)?;
        return check_own_wal(repository, &control, data);
    };
    let label = BackupLabel::parse(label).map_err(|e| RestoreError::Content { id: backup.id, source: e.into() })?;
    if control.system_identifier != system_id {
        return Err(misfit(Misfit::Cluster { found: control.system_identifier, wanted: system_id }));
    }
    // Of a standby, the one that was read last takes its place.
    let last = said.control.as_deref().map(parse).transpose()?;
    last.unwrap_or(control).fits(&label, system_id, backup.stop).map_err(misfit)
}

/// The segment from which the snapshot recovers must be in it.
fn check_own_wal(repository: &Repository, control: &ControlFile, data: &Path) -> Result<(), RestoreError> {
    let disk = &**repository.disk();
    let wal = data.join(WAL);
    match kind(disk, &wal)? {
        Some(EntryKind::Directory) => {}
        Some(_) => return Err(FillError::WalIsLink(wal).into()),
        None => return Err(FillError::NoWal(wal).into()),
    }
    let first = wal.join(Segment::containing(control.redo, repository.segment_size()).name());
    match disk.metadata(&first)? {
        Some(meta) if meta.len == repository.segment_size().bytes() => Ok(()),
        _ => Err(FillError::NoWal(first).into()),
    }
}

/// The server that runs on the directory, if one does.
fn user(disk: &dyn Disk, data: &Path) -> Result<Option<u32>, RestoreError> {
    let Some(content) = content(disk, &data.join(PID))? else { return Ok(None) };
    let text = String::from_utf8_lossy(&content);
    let mut lines = text.lines();
    let Some(process) = lines.next().and_then(|line| line.trim().parse::<i32>().ok()).map(i32::unsigned_abs) else {
        return Ok(None);
    };
    let said = lines.next().is_some_and(|line| Path::new(line.trim()) == data);
    let proc = PathBuf::from(format!("/proc/{process}"));
    if !proc.exists() {
        return Ok(None);
    }
    // A server's working directory is its data directory. Another process may have the number by now.
    let here = match std::fs::read_link(proc.join("cwd")) {
        Ok(cwd) => data.canonicalize().is_ok_and(|data| data == cwd),
        Err(_) => said,
    };
    Ok(here.then_some(process))
}

fn content(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<u8>>, RestoreError> {
    match read_bounded(disk, path, MAX_CONTENT)? {
        None => Ok(None),
        Some(Ok(content)) => Ok(Some(content)),
        Some(Err(_)) => Err(DataDirError::TooLong(path.to_owned()).into()),
    }
}

/// What a name stands for, links not followed.
fn kind(disk: &dyn Disk, path: &Path) -> Result<Option<EntryKind>, RestoreError> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    match disk.list(above) {
        Err(e) if e.trouble() == Trouble::Missing => Ok(None),
        entries => Ok(entries?.into_iter().find(|entry| entry.name == name).map(|entry| entry.kind)),
    }
}

/// Makes the directory of a plan ready. If it fails, no server starts on it, and it can be repeated.
///
/// # Errors
/// When the directory has changed since it was planned, or a file cannot be written.
pub fn prepare(repository: &Repository, plan: &Plan) -> Result<Restored, RestoreError> {
    let (backup, _held) = repository.hold(plan.backup.id)?;
    let said = repository.said(&backup).map_err(|source| RestoreError::Content { id: backup.id, source })?;
    let folder = Folder { disk: &**repository.disk(), data: &plan.target.path, plan };
    check(repository, &backup, folder.data, &plan.tablespaces, plan.owner)?;
    folder.put_away(&said)?;
    folder.clear(backup.method)?;
    folder.link_tablespaces()?;
    if let Some(label) = &said.label {
        folder.replace("backup_label", label)?;
    }
    if let Some(map) = &said.map {
        let map = TablespaceMap::parse(map).map_err(|e| RestoreError::Content { id: backup.id, source: e.into() })?;
        folder.replace("tablespace_map", &moved(map, plan).to_bytes()?)?;
    }
    let notes = folder.configure()?;
    folder.finish()?;
    Ok(Restored { compared: Compared::default(), kept: None, notes })
}

/// The directory while it is made ready.
struct Folder<'a> {
    disk: &'a dyn Disk,
    data: &'a Path,
    plan: &'a Plan,
}

impl Folder<'_> {
    /// Takes `pg_control` out of the way, and the place of a standby's for the one that was read last.
    fn put_away(&self, said: &Said) -> Result<(), RestoreError> {
        let (control, unfinished) = (self.data.join(CONTROL), self.data.join(UNFINISHED));
        if self.disk.metadata(&control)?.is_some() {
            self.disk.rename(&control, &unfinished)?;
        }
        if let Some(last) = &said.control {
            self.replace(UNFINISHED, last)?;
        }
        let _names = self.disk.sync_parent(&control)?;
        Ok(())
    }

    /// Removes what belonged to the server that was copied. A snapshot recovers from its own WAL first.
    fn clear(&self, method: Method) -> Result<(), RestoreError> {
        for name in STALE {
            self.remove(&self.data.join(name))?;
        }
        for name in emptied().filter(|name| method != Method::AtomicSnapshot || *name == SLOTS) {
            let path = self.data.join(name);
            // A link would lead to what is in use elsewhere.
            if !self.remove(&path)? {
                let mode = self.data_mode()?;
                let _made = self.disk.make_dir(&path, mode)?;
                self.give(&path, mode)?;
            }
        }
        Ok(())
    }

    /// Empties a directory, or removes what bears its name; whether a directory is there.
    fn remove(&self, path: &Path) -> Result<bool, RestoreError> {
        match kind(self.disk, path)? {
            Some(EntryKind::Directory) => {
                for entry in self.disk.list(path)? {
                    let inside = path.join(&entry.name);
                    match entry.kind {
                        EntryKind::Directory => self.disk.remove_tree(&inside)?,
                        EntryKind::File | EntryKind::Other => self.disk.remove(&inside)?,
                    }
                }
                Ok(true)
            }
            Some(_) => self.disk.remove(path).map(|()| false).map_err(Into::into),
            None => Ok(false),
        }
    }

    fn link_tablespaces(&self) -> Result<(), RestoreError> {
        let links = self.data.join(LINKS);
        let ours = self.plan.tablespaces.iter().filter_map(|planned| Some((planned.oid, planned.new.as_ref()?)));
        for (oid, place) in ours {
            if kind(self.disk, &links)?.is_none() {
                let mode = self.data_mode()?;
                let _made = self.disk.make_dir(&links, mode)?;
                self.give(&links, mode)?;
            }
            let link = links.join(oid.to_string());
            if kind(self.disk, &link)?.is_some() {
                self.disk.remove(&link)?;
            }
            self.disk.symlink(&place.path, &link)?;
        }
        Ok(())
    }

    /// What was copied, and `postgresql.auto.conf` as it is to be.
    fn configured(&self, conf: &[u8], auto: &[u8]) -> (Copied, Vec<u8>) {
        let mut copied = Copied::default();
        copied.read(conf);
        copied.read(auto);
        let lines = self.plan.source().lines(&self.plan.goal, &copied.overruled(&self.plan.goal));
        (copied, [auto, &lines].concat())
    }

    /// Tells the server where its WAL is, and that it is to recover. What an interrupted preparation has added is not
    /// taken for what was copied.
    fn configure(&self) -> Result<Vec<String>, RestoreError> {
        let conf = content(self.disk, &self.data.join(CONF))?.unwrap_or_default();
        let auto = content(self.disk, &self.data.join(AUTO_CONF))?.unwrap_or_default();
        let before = auto.windows(ADDED.len()).rposition(|window| window == ADDED).and_then(|at| auto.get(..at));
        let done = before.map(|before| self.configured(&conf, before)).filter(|(_, done)| *done == auto);
        let (copied, auto) = done.unwrap_or_else(|| self.configured(&conf, &auto));
        self.replace(AUTO_CONF, &auto)?;
        let (signal, _other) = signals(&self.plan.goal);
        self.replace(signal, b"")?;
        Ok(copied.advice(&self.plan.goal))
    }

    fn finish(&self) -> Result<(), RestoreError> {
        let _data = self.disk.sync_filesystem(self.data)?;
        for place in self.plan.tablespaces.iter().filter_map(|planned| planned.new.as_ref()) {
            let _data = self.disk.sync_filesystem(&place.path)?;
        }
        let control = self.data.join(CONTROL);
        self.disk.rename(&self.data.join(UNFINISHED), &control)?;
        let _last = self.disk.sync_parent(&control)?;
        Ok(())
    }

    /// Puts a file of ours in the place of whatever is there, whole or not at all.
    fn replace(&self, name: &str, content: &[u8]) -> Result<(), RestoreError> {
        let path = self.data.join(name);
        let next = self.data.join(format!("{name}.walhold"));
        self.remove(&next)?;
        let mut file = self.disk.create(&next, 0o600)?;
        file.write_at(0, content)?;
        self.give(&next, self.data_mode()? & 0o666)?;
        let _published = self.disk.publish(file, &next, &path)?;
        Ok(())
    }

    fn give(&self, path: &Path, mode: u32) -> Result<(), RestoreError> {
        Ok(self.disk.set_access(path, mode, self.plan.owner.map(|owner| (owner.user, owner.group)))?)
    }

    /// Whether the group may read is told by the directory itself.
    fn data_mode(&self) -> Result<u32, RestoreError> {
        let group = self.disk.metadata(self.data)?.is_some_and(|meta| meta.mode & 0o040 != 0);
        Ok(if group { 0o750 } else { 0o700 })
    }
}
