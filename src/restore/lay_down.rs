//! Laying a backup down: one pass over its archives, every file compared with the manifest, all of
//! it durable before the file without which no server starts gets its name.

use std::convert::Infallible;
use std::io::{self, BufReader};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::combine::{Combined, combine};
use super::configure::Copied;
use super::{Goal, Plan, PlannedTablespace, RestoreError, content};
use crate::datadir::{DataDir, DataDirError, Kept, Places, SyncMethod, TablespacePlace};
use crate::disk::DiskError;
use crate::image::{
    Compared, Hasher, Manifest, ManifestReadError, Tablespace, TablespaceMap, TarEvent, read_manifest, relisted,
};
use crate::repository::{Contents, Repository, Seal};
use crate::spill::{Scratch, Spool};

const AUTO_CONF: &str = "postgresql.auto.conf";
const CONF: &str = "postgresql.conf";
const MAP: &str = "tablespace_map";
const MANIFEST: &str = "backup_manifest";

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RestoreEvent {
    /// What is there is compared with the backup.
    Comparing {
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
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
    /// How much of it was there already; `None` where nothing was to be kept.
    pub kept: Option<Kept>,
    /// What the operator must know of the copied configuration.
    pub notes: Vec<String>,
}

/// Does what was planned, unless `tell` breaks it off. If it fails, what it has made is removed, and
/// what was empty is empty; a directory of which files were to be kept is left unfinished.
///
/// # Errors
/// When the backup turns out to be damaged, or a file cannot be written.
pub fn lay_down(
    repository: &Repository,
    plan: &Plan,
    tell: &mut impl FnMut(RestoreEvent) -> ControlFlow<()>,
) -> Result<Restored, RestoreError> {
    // It may have expired since it was planned; from here on it cannot.
    let (chain, _held) = repository.hold_chain(plan.backup.id)?;
    let (disk, cluster) = (Arc::clone(repository.disk()), plan.backup.system_identifier);
    let mut data = match plan.delta {
        true => DataDir::reuse(disk, places(plan), cluster)?,
        false => DataDir::make(disk, places(plan))?,
    };
    match go(repository, plan, &chain, &mut data, tell) {
        Ok(restored) => Ok(restored),
        // What it had before is of use when it is tried again.
        Err(source) if plan.delta => {
            Err(RestoreError::Unfinished { source: Box::new(source), target: plan.target.path.clone() })
        }
        Err(source) => match data.discard() {
            Ok(()) => Err(source),
            Err(left) => Err(RestoreError::LeftBehind { source: Box::new(source), left }),
        },
    }
}

fn places(plan: &Plan) -> Places {
    let path = |planned: &PlannedTablespace| planned.new.as_ref().map(|place| place.path.clone());
    let place = |planned: &PlannedTablespace| TablespacePlace { oid: planned.oid, path: path(planned) };
    let tablespaces = plan.tablespaces.iter().map(place).collect();
    Places { data: plan.target.path.clone(), wal: None, tablespaces, owner: plan.owner }
}

fn go(
    repository: &Repository,
    plan: &Plan,
    chain: &[Seal],
    data: &mut DataDir,
    tell: &mut impl FnMut(RestoreEvent) -> ControlFlow<()>,
) -> Result<Restored, RestoreError> {
    let backup = &plan.backup;
    let contents = repository.contents(backup).map_err(|source| RestoreError::Content { id: backup.id, source })?;
    // Of a file that an incremental backup has changes of nothing stays: what it is to be is not known beforehand.
    let listed = match plan.delta {
        true => Some(contents.all_files().map_err(|source| RestoreError::Content { id: backup.id, source })?),
        false => None,
    };
    let kept = match &listed {
        Some(listed) => Some(keep(data, listed, tell)?),
        None => {
            data.mark(backup.system_identifier)?;
            None
        }
    };
    data.link_tablespaces()?;
    let Combined { compared, map, mut manifest } = match chain {
        [full] => whole(&contents, full, listed.as_ref(), plan, data, tell)?,
        chain => combine(repository, chain, data, tell)?,
    };
    if let Some(map) = map.filter(|_| plan.tablespaces.iter().any(|tablespace| tablespace.moves())) {
        let map = moved(map, plan).to_bytes()?;
        if let Some(listed) = with_map(&manifest, &map, Scratch::new(data.path()))? {
            manifest = listed;
        }
        data.replace(MAP, &map)?;
    }
    data.put_all(MANIFEST, &mut manifest.reader())?;
    drop(manifest);
    let notes = configure(data, plan)?;
    if tell(RestoreEvent::Syncing).is_break() {
        return Err(RestoreError::Stopped);
    }
    data.finish(SyncMethod::Syncfs)?;
    Ok(Restored { compared, kept, notes })
}

/// A backup that stands alone, with the server's own manifest.
fn whole(
    contents: &Contents<'_>,
    backup: &Seal,
    listed: Option<&Manifest>,
    plan: &Plan,
    data: &mut DataDir,
    tell: &mut impl FnMut(RestoreEvent) -> ControlFlow<()>,
) -> Result<Combined, RestoreError> {
    let has_all = |oid: &u32| listed.is_some_and(|listed| data.has_all(*oid, listed));
    let left: Vec<u32> = plan.tablespaces.iter().map(|t| t.oid).filter(has_all).collect();
    let total = contents.manifest().bytes;
    let read = contents.read_needed(&|oid| !left.contains(&oid), &mut |tablespace, event| {
        let done = data.take(tablespace, event)?;
        match event {
            TarEvent::Data(_) if tell(RestoreEvent::Progress { done, total }).is_break() => Err(RestoreError::Stopped),
            _ => Ok(()),
        }
    });
    let read = read.map_err(|e| content(backup.id, e))?;
    for oid in left {
        data.leave(oid)?;
    }
    let manifest = contents.manifest_spooled(Scratch::new(data.path()));
    let manifest = manifest.map_err(|source| RestoreError::Content { id: backup.id, source })?;
    Ok(Combined { compared: read.compared, map: read.map, manifest })
}

/// The manifest with another map of tablespaces; `None` where it does not list it in the form in which servers do.
fn with_map(manifest: &Spool, map: &[u8], scratch: Scratch) -> Result<Option<Spool>, DiskError> {
    let mut changed = Spool::new(scratch);
    let mut from = BufReader::new(manifest.reader());
    let listed = relisted(&mut from, MAP, map, &mut |part| changed.put(part).map_err(io::Error::other));
    let unread = |e: io::Error| e.downcast().unwrap_or_else(|e| DiskError::new("read", Path::new(MANIFEST), e));
    if !listed.map_err(unread)? {
        return Ok(None);
    }
    // What was changed by its looks is held against what it now says.
    let (mut is_listed, len) = (false, changed.size());
    let read = read_manifest(&mut changed.reader(), len, &mut |file| {
        if file.path.as_bytes() == MAP.as_bytes() {
            let digested = file.checksum.as_ref().is_none_or(|checksum| {
                let mut hasher = Hasher::new(checksum.algorithm());
                hasher.update(map);
                hasher.finish().as_ref() == Some(checksum)
            });
            is_listed = digested && file.size == map.len() as u64;
        }
        Ok::<_, Infallible>(())
    });
    match read {
        Ok(_) => Ok(Some(changed).filter(|_| is_listed)),
        Err(ManifestReadError::Io(e)) => Err(unread(e)),
        Err(ManifestReadError::Manifest(_)) => Ok(None),
        Err(ManifestReadError::Seen(never)) => match never {},
    }
}

fn keep(
    data: &mut DataDir,
    manifest: &Manifest,
    tell: &mut impl FnMut(RestoreEvent) -> ControlFlow<()>,
) -> Result<Kept, RestoreError> {
    let kept = data.keep(manifest, &mut |done, total| tell(RestoreEvent::Comparing { done, total }));
    kept.map_err(|e| match e {
        DataDirError::Stopped => RestoreError::Stopped,
        e => e.into(),
    })
}

/// The map with the new places.
pub(super) fn moved(map: TablespaceMap, plan: &Plan) -> TablespaceMap {
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
fn configure(data: &mut DataDir, plan: &Plan) -> Result<Vec<String>, RestoreError> {
    let mut copied = Copied::default();
    copied.read(&data.content(CONF)?);
    copied.read(&data.content(AUTO_CONF)?);
    data.append(AUTO_CONF, &plan.source().lines(&plan.goal, &copied.overruled(&plan.goal)))?;
    let (signal, other) = signals(&plan.goal);
    // A standby's own is among the files that were copied from it.
    data.remove(other)?;
    data.replace(signal, b"")?;
    Ok(copied.advice(&plan.goal))
}

/// The file that says what the server is to do, and the one that would say something else.
pub(super) const fn signals(goal: &Goal) -> (&'static str, &'static str) {
    match goal {
        Goal::EndOfWal | Goal::Point(_) => ("recovery.signal", "standby.signal"),
        Goal::Standby { .. } => ("standby.signal", "recovery.signal"),
    }
}
