//! The low-level way: the files are copied by somebody else, between the server's calls that start and
//! stop a backup, or all at one instant. Their WAL is secured, proven and sealed as ever.
//!
//! The calls belong to one session, which is held for the whole time: if it ends, so does the backup.

mod command;
mod copy;
mod server;

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::steps::{Ready, Run, WAL_CHECKED, milliseconds, unless_stopped};
use super::wal::Wal;
use super::{BackupError, Event};
use crate::disk::{Lock, read_bounded};
use crate::image::{BackupLabel, BackupSource, ControlFile, TablespaceMap};
use crate::protocol::SlotName;
use crate::repository::{BackupFolder, BackupId, ConfigFiles, Method, Seal, Sealed, SealedManifest, SealedTablespace};
use crate::wal::Pos;
use command::Running;
use copy::{Copy, Known, Taken};
use server::{Server, Stopped};

pub use command::CommandError;
pub use copy::CopyError;

/// How often the sessions are looked at, which also keeps the server from ending them for being idle.
const LOOK: Duration = Duration::from_secs(2);

/// Larger than any `pg_control`.
const MAX_CONTROL: u64 = 64 << 10;

/// How the files are copied where the server does not send them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LowLevel {
    /// A command copies them into the backup's folder.
    Copy {
        /// For `sh -c`.
        command: String,
    },
    /// They are copied to somewhere else: by a command, or by whoever is told to
    /// ([`Event::CopyNow`]).
    External {
        /// Where to, in the operator's words.
        place: String,
        /// For `sh -c`.
        command: Option<String>,
    },
    /// A command takes a snapshot of data, tablespaces and WAL at one instant.
    AtomicSnapshot {
        /// Where it lies, in the operator's words.
        place: String,
        /// For `sh -c`.
        command: String,
    },
}

impl LowLevel {
    const fn method(&self) -> Method {
        match self {
            Self::Copy { .. } => Method::Copied,
            Self::External { .. } => Method::External,
            Self::AtomicSnapshot { .. } => Method::AtomicSnapshot,
        }
    }

    fn place(&self) -> Option<String> {
        match self {
            Self::Copy { .. } => None,
            Self::External { place, .. } | Self::AtomicSnapshot { place, .. } => Some(place.clone()),
        }
    }

    fn command(&self) -> Option<&str> {
        match self {
            Self::Copy { command } | Self::AtomicSnapshot { command, .. } => Some(command),
            Self::External { command, .. } => command.as_deref(),
        }
    }
}

/// What was found out before anything began.
struct Facts {
    slot: SlotName,
    config_files: ConfigFiles,
}

/// The server's word on a backup that has ended.
struct Said {
    stop: Pos,
    label: BackupLabel,
    label_bytes: Vec<u8>,
    map: TablespaceMap,
    map_bytes: Vec<u8>,
    /// Of a standby.
    control: Option<Vec<u8>>,
    min_recovery: Option<Pos>,
}

impl<'a> Run<'a> {
    pub(super) async fn low_level(
        &mut self,
        way: &LowLevel,
        tell: &mut impl FnMut(Event),
    ) -> Result<Sealed, BackupError> {
        // An error on the first connection would remove the slot, so what may fail comes first.
        let config_files = self.config_files().await;
        let conninfo = self.options.conninfo.at(&self.session);
        let mut server = Server::connect(&conninfo, &self.options.application_name).await?;
        let slot = self.make_slot().await?;
        let mut wal = self.secure(&slot, tell).await?;
        let sealed = self.copied_elsewhere(way, &mut server, &mut wal, Facts { slot, config_files }, tell).await;
        server.close().await;
        wal.close().await;
        sealed
    }

    async fn copied_elsewhere(
        &mut self,
        way: &LowLevel,
        server: &mut Server,
        wal: &mut Wal<'a>,
        facts: Facts,
        tell: &mut impl FnMut(Event),
    ) -> Result<Sealed, BackupError> {
        let stop = self.stop.clone();
        tell(Event::WaitingForCheckpoint);
        let asked = Instant::now();
        let start = if way.method() == Method::AtomicSnapshot {
            if server.in_recovery().await? {
                return Err(BackupError::SnapshotOfStandby);
            }
            unless_stopped(&stop, server.redo()).await??
        } else {
            let starting = server.start(&self.options.label, self.options.checkpoint);
            let start = unless_stopped(&stop, starting).await??;
            self.session.identify_system().await?.position.at(start)
        };
        self.durations.checkpoint = milliseconds(asked);
        let (folder, claim) = self.begin(wal, start, tell).await?;
        let done = self.filled(way, server, &folder, claim, start, wal, facts, tell).await;
        self.end(folder, done)
    }

    /// Everything between the start position and the seal.
    #[allow(clippy::too_many_arguments, reason = "each is used up here")]
    async fn filled(
        &mut self,
        way: &LowLevel,
        server: &mut Server,
        folder: &BackupFolder,
        claim: Lock,
        start: Pos,
        wal: &mut Wal<'a>,
        facts: Facts,
        tell: &mut impl FnMut(Event),
    ) -> Result<Ready, BackupError> {
        let method = way.method();
        let pending = self.pending(folder.id(), method, start);
        folder.write_pending(&pending)?;
        drop(claim);
        tell(Event::Copying { id: folder.id(), start, estimate: None });
        let began = Instant::now();
        let spaces = server.tablespaces().await?;
        if method == Method::Copied {
            let oids: Vec<u32> = spaces.iter().map(|(oid, _)| *oid).collect();
            copy::make_places(&**self.repository.disk(), folder.dir(), &oids, self.repository.modes().dir())?;
        }
        let pgdata = facts.config_files.data_directory.clone();
        match way.command() {
            Some(command) => {
                let environment = self.environment(folder, method, start, pgdata.as_deref(), &spaces)?;
                self.run_command(server, command, &environment).await?;
            }
            None => self.copied_by_hand(server, folder.id(), tell).await?,
        }
        let mut seal = if method == Method::AtomicSnapshot {
            self.snapshot(server, folder.id(), start, &spaces).await?
        } else {
            let said = self.stop_backup(server, start, pgdata.as_deref()).await?;
            tell(Event::Ended { stop: said.stop });
            self.described(way, server, folder, start, said, tell).await?
        };
        self.durations.copy = milliseconds(began);
        seal.durations_ms.copy = self.durations.copy;
        seal.place = way.place();
        seal.slot = Some(facts.slot.as_str().to_owned());
        seal.config_files = facts.config_files;
        self.complete(folder, pending, seal, wal, tell).await
    }

    /// What the command is told.
    fn environment(
        &self,
        folder: &BackupFolder,
        method: Method,
        start: Pos,
        pgdata: Option<&str>,
        spaces: &[(u32, PathBuf)],
    ) -> Result<Vec<(&'static str, OsString)>, BackupError> {
        let mut lines = Vec::new();
        for (oid, location) in spaces {
            if location.as_os_str().as_bytes().contains(&b'\n') {
                return Err(BackupError::LineEnd(location.clone()));
            }
            lines.extend(format!("{oid} ").into_bytes());
            lines.extend(location.as_os_str().as_bytes());
            lines.push(b'\n');
        }
        let mut environment = vec![
            ("WALHOLD_BACKUP", folder.id().to_string().into()),
            ("WALHOLD_LABEL", self.options.label.clone().into()),
            ("WALHOLD_START_LSN", start.lsn().to_string().into()),
            ("WALHOLD_TABLESPACES", OsString::from_vec(lines)),
            ("WALHOLD_PGDATA", pgdata.unwrap_or_default().into()),
        ];
        if method == Method::Copied {
            let wrong = |e| BackupError::Thread(e);
            let dir = std::path::absolute(folder.dir()).map_err(wrong)?;
            environment.push(("WALHOLD_TARGET", dir.join(Seal::DATA).into()));
            environment.push(("WALHOLD_TABLESPACE_TARGET", dir.join(Seal::TABLESPACES).into()));
        }
        Ok(environment)
    }

    async fn run_command(
        &mut self,
        server: &mut Server,
        command: &str,
        environment: &[(&str, OsString)],
    ) -> Result<(), BackupError> {
        let mut running = Running::start(command, environment)?;
        match self.while_held(server, running.wait(), &mut || {}).await {
            Ok(ended) => Ok(ended?),
            Err(e) => {
                running.end().await;
                Err(e)
            }
        }
    }

    async fn copied_by_hand(
        &mut self,
        server: &mut Server,
        id: BackupId,
        tell: &mut impl FnMut(Event),
    ) -> Result<(), BackupError> {
        let (copied, done) = oneshot::channel();
        tell(Event::CopyNow { id, copied });
        self.while_held(server, done, &mut || {}).await?.map_err(|_| BackupError::NotCopied)
    }

    /// Waits for somebody else, as long as both sessions live.
    async fn while_held<T>(
        &mut self,
        server: &mut Server,
        work: impl Future<Output = T>,
        look: &mut impl FnMut(),
    ) -> Result<T, BackupError> {
        let mut work = std::pin::pin!(work);
        let stop = self.stop.clone();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(BackupError::Stopped),
                done = &mut work => return Ok(done),
                () = tokio::time::sleep(LOOK) => {}
            }
            server.must_live().await?;
            self.session.identify_system().await?;
            look();
        }
    }

    /// Ends the backup on the server. Of a standby, `pg_control` is read before that: what was copied of it
    /// may be older than the rest.
    async fn stop_backup(
        &mut self,
        server: &mut Server,
        start: Pos,
        pgdata: Option<&str>,
    ) -> Result<Said, BackupError> {
        let control = match server.in_recovery().await? {
            true => Some(self.control_of_standby(server, pgdata).await?),
            false => None,
        };
        let stop = self.stop.clone();
        let Stopped { stop, label: label_bytes, map: map_bytes } = unless_stopped(&stop, server.stop()).await??;
        let (label, map) = (BackupLabel::parse(&label_bytes)?, TablespaceMap::parse(&map_bytes)?);
        if label.start != start {
            let said = label.start;
            return Err(BackupError::Contradiction(format!(
                "the backup starts at {start}, and backup_label says {said}"
            )));
        }
        let min_recovery = match (label.source, &control) {
            (BackupSource::Primary, _) => None,
            (BackupSource::Standby, Some(control)) => {
                let point = ControlFile::parse(control)?.min_recovery;
                Some(point.ok_or(BackupError::Lacks("minimum recovery point of a standby"))?)
            }
            (BackupSource::Standby, None) => return Err(BackupError::Lacks("pg_control of a standby")),
        };
        let end = start.at(stop);
        match min_recovery {
            Some(point) if point.tli() != start.tli() => Err(BackupError::Promoted { from: start, to: point }),
            Some(point) if point.lsn() > stop => Err(BackupError::Contradiction(format!(
                "its pg_control needs WAL up to {point}, and the backup ends at {stop}"
            ))),
            _ => Ok(Said { stop: end, label, label_bytes, map, map_bytes, control, min_recovery }),
        }
    }

    async fn control_of_standby(&mut self, server: &mut Server, pgdata: Option<&str>) -> Result<Vec<u8>, BackupError> {
        let refused = match server.control().await {
            Ok(content) => return Ok(content),
            Err(e) => e,
        };
        // The role may not; the server's files may lie here.
        let path = Path::new(pgdata.unwrap_or_default()).join("global/pg_control");
        let content = read_bounded(&**self.repository.disk(), &path, MAX_CONTROL).ok().flatten().and_then(Result::ok);
        let ours = |content: &Vec<u8>| {
            ControlFile::parse(content).is_ok_and(|control| control.system_identifier == self.system_id)
        };
        content.filter(ours).ok_or_else(|| BackupError::ControlOfStandby(Box::new(refused)))
    }

    /// The seal of what was copied, with all of it durable.
    async fn described(
        &mut self,
        way: &LowLevel,
        server: &mut Server,
        folder: &BackupFolder,
        start: Pos,
        said: Said,
        tell: &mut impl FnMut(Event),
    ) -> Result<Seal, BackupError> {
        let seal = self.blank_seal(folder.id(), way.method(), start, said.stop)?;
        let seal = Seal {
            min_recovery_point: said.min_recovery,
            tablespaces: sealed_tablespaces(said.map.0.iter().map(|space| (space.oid, &space.location)))?,
            ..seal
        };
        match way {
            LowLevel::Copy { .. } => {
                let taken = self.take(server, folder, said, tell).await?;
                Ok(of_copy(seal, taken, self.options.manifest_checksums))
            }
            LowLevel::External { .. } | LowLevel::AtomicSnapshot { .. } => self.of_external(seal, folder, &said),
        }
    }

    async fn take(
        &mut self,
        server: &mut Server,
        folder: &BackupFolder,
        said: Said,
        tell: &mut impl FnMut(Event),
    ) -> Result<Taken, BackupError> {
        tell(Event::Hashing);
        let stop = self.stop.child_token();
        let hashed = Arc::new(AtomicU64::new(0));
        let copy = Copy {
            disk: self.repository.disk().clone(),
            dir: folder.dir().to_owned(),
            modes: self.repository.modes(),
            algorithm: self.options.manifest_checksums,
            stop: stop.clone(),
            hashed: hashed.clone(),
        };
        let known = Known {
            system_id: self.system_id,
            major: self.session.server_version().major(),
            start: said.label.start,
            stop: said.stop,
            label: said.label,
            label_bytes: said.label_bytes,
            map: said.map,
            map_bytes: said.map_bytes,
            control: said.control,
        };
        let (began, end) = (Instant::now(), said.stop);
        let mut work = spawn_blocking(move || copy.take(&known));
        let mut look = || tell(Event::Progress(hashed.load(Ordering::Relaxed)));
        let held = self.while_held(server, &mut work, &mut look).await;
        if held.is_err() {
            // Nobody may remove what is being written.
            stop.cancel();
            let _ = work.await;
        }
        let taken = held?.map_err(|e| BackupError::Thread(std::io::Error::other(e)))?;
        let taken = taken.map_err(|e| match e {
            CopyError::Stopped => BackupError::Stopped,
            e => BackupError::Copy(e),
        })?;
        if !taken.removed.is_empty() {
            tell(Event::LeftOut(taken.removed.clone()));
        }
        tell(Event::Copied { stop: end, bytes: taken.bytes, took: began.elapsed() });
        Ok(taken)
    }

    fn of_external(&self, seal: Seal, folder: &BackupFolder, said: &Said) -> Result<Seal, BackupError> {
        let mode = self.repository.modes().file();
        let named = [(Seal::LABEL, Some(&said.label_bytes)), (Seal::TABLESPACE_MAP, Some(&said.map_bytes))];
        let mut files = Vec::new();
        for (name, content) in named.into_iter().chain([(Seal::CONTROL, said.control.as_ref())]) {
            if let Some(content) = content {
                files.push(copy::store(&**self.repository.disk(), folder.dir(), name, content, mode)?);
            }
        }
        Ok(Seal { files, checked: WAL_CHECKED.map(str::to_owned).to_vec(), not_checked: unchecked(), ..seal })
    }

    /// The seal of a snapshot that was taken since `start`.
    async fn snapshot(
        &mut self,
        server: &mut Server,
        id: BackupId,
        start: Pos,
        spaces: &[(u32, PathBuf)],
    ) -> Result<Seal, BackupError> {
        let stop = start.at(server.mark(id).await?);
        let now = self.session.identify_system().await?.position;
        if now.tli() != start.tli() {
            return Err(BackupError::Promoted { from: start, to: now });
        }
        let mut not_checked = unchecked();
        not_checked.push("that the snapshot is of one instant: only a drill shows it".to_owned());
        Ok(Seal {
            tablespaces: sealed_tablespaces(spaces.iter().map(|(oid, location)| (*oid, location)))?,
            checked: WAL_CHECKED.map(str::to_owned).to_vec(),
            not_checked,
            ..self.blank_seal(id, Method::AtomicSnapshot, start, stop)?
        })
    }
}

fn unchecked() -> Vec<String> {
    vec!["the data, which does not lie in the repository".to_owned(), "that a server starts from it".to_owned()]
}

fn of_copy(seal: Seal, taken: Taken, algorithm: crate::image::ManifestAlgorithm) -> Seal {
    let [wal, durable] = WAL_CHECKED.map(str::to_owned);
    Seal {
        files: vec![taken.manifest],
        manifest: SealedManifest { algorithm, files: taken.files, bytes: taken.bytes },
        checked: vec![wal, durable],
        not_checked: vec![
            "that the command copied every file: the manifest lists what it copied".to_owned(),
            "that a server starts from it".to_owned(),
        ],
        ..seal
    }
}

fn sealed_tablespaces<'p>(
    spaces: impl Iterator<Item = (u32, &'p PathBuf)>,
) -> Result<Vec<SealedTablespace>, BackupError> {
    let mut sealed = Vec::new();
    for (oid, location) in spaces {
        let text = location.to_str().ok_or_else(|| BackupError::NotText(location.clone()))?;
        sealed.push(SealedTablespace { oid, location: text.to_owned() });
    }
    sealed.sort_unstable_by_key(|space| space.oid);
    Ok(sealed)
}
