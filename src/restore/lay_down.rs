//! Laying a backup down: one pass over its archives, every file compared with the manifest, all of
//! it durable before the file without which no server starts gets its name.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::configure::Copied;
use super::{Goal, Plan, PlannedTablespace, RestoreError};
use crate::datadir::{DataDir, Places, SyncMethod, TablespacePlace};
use crate::image::{Compared, Tablespace, TablespaceMap, TarEvent};
use crate::repository::{ReadError, Repository};

const AUTO_CONF: &str = "postgresql.auto.conf";
const CONF: &str = "postgresql.conf";
const MAP: &str = "tablespace_map";
const MANIFEST: &str = "backup_manifest";

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
    let mut data = DataDir::make(Arc::clone(repository.disk()), places(plan))?;
    match go(repository, plan, &mut data, tell) {
        Ok(restored) => Ok(restored),
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
    data: &mut DataDir,
    tell: &mut impl FnMut(RestoreEvent) -> ControlFlow<()>,
) -> Result<Restored, RestoreError> {
    let backup = &plan.backup;
    let wrong = |source| RestoreError::Content { id: backup.id, source };
    let contents = repository.contents(backup).map_err(wrong)?;
    let total = contents.manifest().files().iter().map(|file| file.size).sum();
    let read = contents.read(&mut |tablespace, event| {
        let done = data.take(tablespace, event)?;
        match event {
            TarEvent::Data(_) if tell(RestoreEvent::Progress { done, total }).is_break() => Err(RestoreError::Stopped),
            _ => Ok(()),
        }
    });
    let read = read.map_err(|e| match e {
        ReadError::Content(source) => wrong(source),
        ReadError::Seen(e) => e,
    })?;
    data.put(MANIFEST, contents.manifest_bytes())?;
    data.link_tablespaces()?;
    if let Some(map) = read.map.filter(|_| plan.tablespaces.iter().any(|tablespace| tablespace.moves())) {
        data.replace(MAP, &moved(map, plan).to_bytes()?)?;
    }
    let notes = configure(data, plan)?;
    if tell(RestoreEvent::Syncing).is_break() {
        return Err(RestoreError::Stopped);
    }
    data.finish(SyncMethod::Syncfs)?;
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
fn configure(data: &mut DataDir, plan: &Plan) -> Result<Vec<String>, RestoreError> {
    let mut copied = Copied::default();
    copied.read(&data.content(CONF)?);
    copied.read(&data.content(AUTO_CONF)?);
    data.append(AUTO_CONF, &plan.source().lines(&plan.goal, &copied.targets()))?;
    let (signal, other) = match plan.goal {
        Goal::EndOfWal => ("recovery.signal", "standby.signal"),
        Goal::Standby { .. } => ("standby.signal", "recovery.signal"),
    };
    // A standby's own is among the files that were copied from it.
    data.remove(other)?;
    data.replace(signal, b"")?;
    Ok(copied.advice(&plan.goal))
}
