//! Laying a backup down: one pass over its archives, every file compared with the manifest, all of
//! it durable before the file without which no server starts gets its name.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::configure::Copied;
use super::{Goal, Plan, RestoreError};
use crate::disk::{Disk, DiskError, EntryKind, File, Trouble};
use crate::image::{Compared, Member, MemberKind, MemberPath, Tablespace, TablespaceMap, TarEvent};
use crate::repository::{ReadError, Repository, read_bounded};

/// Without it no server starts (`ReadControlFile`).
const CONTROL: &str = "global/pg_control";
/// What it is called until all else is durable.
const UNFINISHED: &str = "global/pg_control.unfinished";
const AUTO_CONF: &str = "postgresql.auto.conf";
const CONF: &str = "postgresql.conf";
const MAP: &str = "tablespace_map";
const MANIFEST: &str = "backup_manifest";

/// Longer than any configuration that a server takes.
const MAX_CONF: u64 = 16 << 20;

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RestoreEvent {
    /// Data files are being laid down.
    Progress {
        /// Bytes so far.
        done: u64,
        /// Bytes in all, as the manifest lists them.
        total: u64,
    },
    /// All are there; they are being made durable.
    Syncing,
}

/// What has been laid down; a server can be started on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restored {
    /// Files, each as the server's manifest lists it.
    pub compared: Compared,
    /// What the operator must know of the copied configuration.
    pub notes: Vec<String>,
}

/// Does what was planned, unless `tell` breaks it off. If it fails, what it has made is removed, and
/// what was empty is empty.
///
/// # Errors
/// When the backup turns out to be damaged, or a file cannot be written.
pub fn lay_down(
    repository: &Repository,
    plan: &Plan,
    tell: &mut impl FnMut(RestoreEvent) -> ControlFlow<()>,
) -> Result<Restored, RestoreError> {
    // It may have expired since it was planned; from here on it cannot.
    let (_seal, _held) = repository.hold(plan.backup.id)?;
    let mut made = Made { disk: &**repository.disk(), places: Vec::new() };
    match go(repository, plan, &mut made, tell) {
        Ok(restored) => Ok(restored),
        Err(source) => match made.remove() {
            Ok(()) => Err(source),
            Err(left) => Err(RestoreError::LeftBehind { source: Box::new(source), left }),
        },
    }
}

fn go(
    repository: &Repository,
    plan: &Plan,
    made: &mut Made<'_>,
    tell: &mut impl FnMut(RestoreEvent) -> ControlFlow<()>,
) -> Result<Restored, RestoreError> {
    let disk = &**repository.disk();
    let target = &plan.target.path;
    for place in [&plan.target].into_iter().chain(plan.tablespaces.iter().filter_map(|t| t.new.as_ref())) {
        made.make(&place.path)?;
    }
    let backup = &plan.backup;
    let wrong = |source| RestoreError::Content { id: backup.id, source };
    let contents = repository.contents(backup).map_err(wrong)?;
    let mut layer = Layer::new(disk, plan);
    let total = contents.manifest().files().iter().map(|file| file.size).sum();
    let read = contents.read(&mut |tablespace, event| {
        let done = layer.take(tablespace, event)?;
        match event {
            TarEvent::Data(_) if tell(RestoreEvent::Progress { done, total }).is_break() => Err(RestoreError::Stopped),
            _ => Ok(()),
        }
    });
    let read = read.map_err(|e| match e {
        ReadError::Content(source) => wrong(source),
        ReadError::Seen(e) => e,
    })?;
    layer.put(MANIFEST, contents.manifest_bytes())?;
    layer.link_tablespaces()?;
    if let Some(map) = read.map.filter(|_| plan.tablespaces.iter().any(|tablespace| tablespace.moves())) {
        layer.replace(MAP, &moved(map, plan).to_bytes()?)?;
    }
    let notes = configure(&mut layer, plan)?;
    layer.give_access()?;
    if tell(RestoreEvent::Syncing).is_break() {
        return Err(RestoreError::Stopped);
    }
    let _data = disk.sync_filesystem(target)?;
    for place in plan.tablespaces.iter().filter_map(|tablespace| tablespace.new.as_ref()) {
        let _data = disk.sync_filesystem(&place.path)?;
    }
    disk.rename(&target.join(UNFINISHED), &target.join(CONTROL))?;
    let _last = disk.sync_dir(&target.join("global"))?;
    Ok(Restored { compared: read.compared, notes })
}

/// The map with the new places.
fn moved(map: TablespaceMap, plan: &Plan) -> TablespaceMap {
    let place = |entry: Tablespace| {
        let planned = plan.tablespaces.iter().find(|planned| planned.oid == entry.oid);
        match planned.and_then(|planned| planned.new.as_ref()) {
            Some(place) => Tablespace { location: place.path.clone(), ..entry },
            None => entry,
        }
    };
    TablespaceMap(map.0.into_iter().map(place).collect())
}

/// Tells the server where its WAL is, and that it is to recover.
fn configure(layer: &mut Layer<'_>, plan: &Plan) -> Result<Vec<String>, RestoreError> {
    let mut copied = Copied::default();
    copied.read(&layer.content(CONF)?);
    let mut auto = layer.content(AUTO_CONF)?;
    copied.read(&auto);
    auto.extend(plan.source().lines(&plan.goal, &copied.targets()));
    layer.replace(AUTO_CONF, &auto)?;
    let (signal, other) = match plan.goal {
        Goal::EndOfWal => ("recovery.signal", "standby.signal"),
        Goal::Standby { .. } => ("standby.signal", "recovery.signal"),
    };
    // A standby's own is among the files that were copied from it.
    layer.remove(other)?;
    layer.replace(signal, b"")?;
    Ok(copied.advice(&plan.goal))
}

/// What is to be removed if it fails.
struct Made<'a> {
    disk: &'a dyn Disk,
    /// Directories, and whether they were there.
    places: Vec<(PathBuf, bool)>,
}

impl Made<'_> {
    /// Makes a place, or makes sure that it is still empty.
    fn make(&mut self, path: &Path) -> Result<(), RestoreError> {
        if let Some(parent) = path.parent() {
            let _above = self.disk.make_dirs(parent, 0o755)?;
        }
        match self.disk.make_dir(path, 0o700) {
            Ok(_made) => self.places.push((path.to_owned(), false)),
            Err(e) if e.trouble() == Trouble::Exists => {
                let meta = self.disk.metadata(path)?;
                if meta.is_none_or(|meta| meta.kind != EntryKind::Directory) || !self.disk.list(path)?.is_empty() {
                    return Err(RestoreError::NotEmpty(path.to_owned()));
                }
                self.places.push((path.to_owned(), true));
            }
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    fn remove(self) -> Result<(), DiskError> {
        // A power cut may bring back any of the names, and a server must not start on some of them.
        if let Some((target, _)) = self.places.first()
            && self.disk.metadata(&target.join(CONTROL))?.is_some()
        {
            self.disk.remove(&target.join(CONTROL))?;
            let _gone = self.disk.sync_parent(&target.join(CONTROL))?;
        }
        for (path, was_there) in self.places.into_iter().rev() {
            if !was_there {
                self.disk.remove_tree(&path)?;
                continue;
            }
            for entry in self.disk.list(&path)? {
                let inside = path.join(&entry.name);
                match entry.kind {
                    EntryKind::Directory => self.disk.remove_tree(&inside)?,
                    EntryKind::File | EntryKind::Other => self.disk.remove(&inside)?,
                }
            }
        }
        Ok(())
    }
}

/// Writes files below the target and the tablespaces. Names have been checked: they lead nowhere
/// else, and no two are the same; and what is made is made anew, so that nothing is written through
/// or over what is there.
struct Layer<'a> {
    disk: &'a dyn Disk,
    plan: &'a Plan,
    owner: Option<(u32, u32)>,
    /// Directories that have been made, with the mode they are to get.
    dirs: Vec<(PathBuf, Option<u32>)>,
    known: HashSet<PathBuf>,
    open: Option<Open>,
    done: u64,
    group: bool,
}

struct Open {
    file: Box<dyn File>,
    path: PathBuf,
    mode: u32,
    at: u64,
}

impl<'a> Layer<'a> {
    fn new(disk: &'a dyn Disk, plan: &'a Plan) -> Self {
        let owner = plan.owner.map(|owner| (owner.user, owner.group));
        let places = [&plan.target].into_iter().chain(plan.tablespaces.iter().filter_map(|t| t.new.as_ref()));
        let dirs: Vec<_> = places.map(|place| (place.path.clone(), None)).collect();
        let known = dirs.iter().map(|(path, _)| path.clone()).collect();
        Self { disk, plan, owner, dirs, known, open: None, done: 0, group: false }
    }

    /// The next of an archive; bytes laid down so far.
    fn take(&mut self, tablespace: Option<u32>, event: &TarEvent<'_>) -> Result<u64, RestoreError> {
        match event {
            TarEvent::Member(member) => self.begin(tablespace, member)?,
            TarEvent::Data(data) => {
                if let Some(open) = &mut self.open {
                    open.file.write_at(open.at, data)?;
                    open.at += data.len() as u64;
                    self.done += data.len() as u64;
                }
            }
            TarEvent::MemberEnd => {
                if let Some(open) = self.open.take() {
                    drop(open.file);
                    self.disk.set_access(&open.path, open.mode, self.owner)?;
                }
            }
        }
        Ok(self.done)
    }

    fn begin(&mut self, tablespace: Option<u32>, member: &Member) -> Result<(), RestoreError> {
        let path = self.path_of(tablespace, &member.path)?;
        let mode = member.mode & 0o777;
        match &member.kind {
            MemberKind::Directory => self.directory(&path, Some(mode)),
            MemberKind::File { .. } => {
                if tablespace.is_none() && member.path.as_bytes() == b"PG_VERSION" {
                    // The data directory itself is no member; its files tell whether the group may read.
                    self.group = mode & 0o040 != 0;
                }
                if let Some(parent) = path.parent() {
                    self.directory(parent, None)?;
                }
                let file = self.disk.create(&path, 0o600)?;
                self.open = Some(Open { file, path, mode, at: 0 });
                Ok(())
            }
            // Servers send these instead of a tablespace_map if they are not asked for one.
            MemberKind::Symlink { .. } if tablespace.is_none() && self.is_tablespace_link(&member.path) => Ok(()),
            MemberKind::Symlink { .. } => Err(RestoreError::Link(member.path.to_string())),
        }
    }

    fn path_of(&self, tablespace: Option<u32>, path: &MemberPath) -> Result<PathBuf, RestoreError> {
        let target = &self.plan.target.path;
        let Some(oid) = tablespace else {
            let control = path.as_bytes() == CONTROL.as_bytes();
            return Ok(if control { target.join(UNFINISHED) } else { target.join(path.as_path()) });
        };
        let planned = self.plan.tablespaces.iter().find(|planned| planned.oid == oid);
        match planned.and_then(|planned| planned.new.as_ref()) {
            Some(place) => Ok(place.path.join(path.as_path())),
            None => Ok(target.join(path.in_tablespace(oid)?.as_path())),
        }
    }

    fn is_tablespace_link(&self, path: &MemberPath) -> bool {
        let named = |oid: u32| path.as_bytes() == format!("pg_tblspc/{oid}").as_bytes();
        self.plan.tablespaces.iter().any(|planned| named(planned.oid))
    }

    /// Makes a directory, and those above it that are missing.
    fn directory(&mut self, path: &Path, mode: Option<u32>) -> Result<(), RestoreError> {
        if self.known.contains(path) {
            if mode.is_some()
                && let Some((_, known)) = self.dirs.iter_mut().find(|(known, _)| known == path)
            {
                *known = mode;
            }
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent, None)?;
        }
        let _made = self.disk.make_dir(path, 0o700)?;
        self.known.insert(path.to_owned());
        self.dirs.push((path.to_owned(), mode));
        Ok(())
    }

    /// A file of the target with a content of ours.
    fn put(&mut self, name: &str, content: &[u8]) -> Result<(), RestoreError> {
        let path = self.plan.target.path.join(name);
        let mut file = self.disk.create(&path, 0o600)?;
        file.write_at(0, content)?;
        drop(file);
        self.disk.set_access(&path, if self.group { 0o640 } else { 0o600 }, self.owner)?;
        Ok(())
    }

    fn replace(&mut self, name: &str, content: &[u8]) -> Result<(), RestoreError> {
        self.remove(name)?;
        self.put(name, content)
    }

    fn remove(&self, name: &str) -> Result<(), RestoreError> {
        match self.disk.remove(&self.plan.target.path.join(name)) {
            Err(e) if e.trouble() != Trouble::Missing => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// A file of the target that has been laid down; nothing if it was not in the backup.
    fn content(&self, name: &str) -> Result<Vec<u8>, RestoreError> {
        let path = self.plan.target.path.join(name);
        match read_bounded(self.disk, &path, MAX_CONF)? {
            None => Ok(Vec::new()),
            Some(Ok(content)) => Ok(content),
            Some(Err(_)) => Err(RestoreError::Configuration(path)),
        }
    }

    fn link_tablespaces(&mut self) -> Result<(), RestoreError> {
        let links = self.plan.target.path.join("pg_tblspc");
        for planned in &self.plan.tablespaces {
            if let Some(place) = &planned.new {
                self.directory(&links, None)?;
                self.disk.symlink(&place.path, &links.join(planned.oid.to_string()))?;
            }
        }
        Ok(())
    }

    /// Modes and owners of directories come last: one that may not be written to could not be filled.
    fn give_access(&mut self) -> Result<(), RestoreError> {
        let usual = if self.group { 0o750 } else { 0o700 };
        for (path, mode) in self.dirs.iter().rev() {
            self.disk.set_access(path, mode.unwrap_or(usual), self.owner)?;
        }
        Ok(())
    }
}
