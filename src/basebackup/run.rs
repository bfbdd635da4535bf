//! A base backup, step by step.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::fetched::Fetched;
use super::place::{Ours, Output, Place, Plain, Recovery, TarFiles};
use super::store::{Piece, Stored, Storing, Task};
use super::wal::Wal;
use super::{BaseBackupError as Error, Destination, Done, Event, Options, Progress, StreamSlot, Sync, WalMethod};
use crate::archive::EndOfBackup;
use crate::connection::{BackupStarted, Error as SessionError, Purpose, Session, SlotAnswer};
use crate::datadir::{DataDir, Places, SyncMethod, TablespacePlace, overlap};
use crate::disk::{Access, Disk, DiskError, EntryKind, Trouble};
use crate::image::{BackupSource, agreement};
use crate::protocol::{
    BackupEvent, BaseBackup, Condition, Retention, ServerCompression, SlotKind, SlotName, SlotState, TablespaceRow,
};
use crate::receive::Upstream;
use crate::spill::{Scratch, Spool};
use crate::wal::{Pos, SegmentSize};

/// How often it is told how far the copy is.
const TELL: Duration = Duration::from_millis(200);

/// While a server sends nothing, how often the thread that writes is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a server may send nothing in the middle of the copy. Its own disk may stall.
const SILENCE: Duration = Duration::from_secs(600);
/// An older backup's manifest that is larger is not one; it has about 150 bytes for each file.
const MAX_OLD_MANIFEST: u64 = 1 << 30;
/// Bytes of it that are read at a time.
const OLD_PIECE: usize = 1 << 20;
/// How long dropping a slot may take when the backup has failed.
const DROP_LIMIT: Duration = Duration::from_secs(5);

/// Makes a base backup on `disk`.
///
/// # Errors
/// When it is not complete. What was made is removed then, unless `options` say otherwise or the server has
/// only found damaged pages.
pub async fn basebackup(
    disk: Arc<dyn Disk>,
    upstream: Upstream,
    options: &Options,
    stop: &CancellationToken,
    tell: &mut impl FnMut(Event),
) -> Result<Done, Error> {
    let mut run = Run {
        options,
        stop,
        disk,
        file_mode: upstream.file_mode,
        system_id: upstream.system_id,
        segment_size: upstream.segment_size,
        standby: upstream.standby == Some(true),
        session: upstream.session,
        found: Vec::new(),
        slot: None,
        place: None,
        wal: None,
    };
    let outcome = run.backup(tell).await;
    let Err(error) = outcome else { return outcome };
    if let Some(wal) = run.wal.take() {
        wal.close().await;
    }
    if !options.clean {
        return Err(error);
    }
    run.drop_slot(tell).await;
    if error.is_about_checksums() { Err(error) } else { Err(run.remove(error, tell)) }
}

struct Run<'a> {
    options: &'a Options,
    stop: &'a CancellationToken,
    disk: Arc<dyn Disk>,
    file_mode: u32,
    system_id: u64,
    segment_size: SegmentSize,
    standby: bool,
    session: Session,
    /// The directories that are named, and whether they were there.
    found: Vec<(PathBuf, bool)>,
    /// One that was made to stay.
    slot: Option<SlotName>,
    /// Unless it is with the thread that fills it.
    place: Option<Place>,
    wal: Option<Wal>,
}

impl Run<'_> {
    async fn backup(&mut self, tell: &mut impl FnMut(Event)) -> Result<Done, Error> {
        self.check()?;
        self.upload_manifest().await?;
        // Before the checkpoint: no WAL from the backup's start on can be removed unread.
        self.make_slot(tell).await?;
        tell(Event::WaitingForCheckpoint);
        let command = self.command();
        let BackupStarted { start, tablespaces } =
            unless_stopped(self.stop, self.session.base_backup(&command)).await??;
        let estimate = tablespaces.iter().try_fold(0_u64, |sum, row| Some(sum.saturating_add(row.size_kb?)));
        let estimate = estimate.map(|kb| kb.saturating_mul(1024));
        tell(Event::Started { start, archives: tablespaces.len(), estimate });
        let Some(place) = self.make_place(&tablespaces)? else {
            let stop = self.pump(None, tell).await?.ok_or(Error::Lacks("stop position"))?;
            tell(Event::Stop(stop));
            return Ok(Done { start, stop, compared: None, wal: false });
        };
        let place = self.place.insert(place);
        if let WalMethod::Stream(_) = self.options.wal {
            let (dir, disk) = (place.wal_dir()?, self.disk.clone());
            let conninfo = self.options.conninfo.at(&self.session);
            let wal = Wal::start(dir, disk, conninfo, self.options, self.system_id, start);
            self.wal = Some(unless_stopped(self.stop, wal).await??);
            tell(Event::Streaming);
        }
        let (stop, stored) = self.copy(start, tell).await?;
        tell(Event::Stop(stop));
        self.complete(start, stop, stored, tell).await
    }

    /// All has been copied.
    async fn complete(
        &mut self,
        start: Pos,
        stop: Pos,
        stored: Stored,
        tell: &mut impl FnMut(Event),
    ) -> Result<Done, Error> {
        if stop.tli() != start.tli() {
            return Err(Error::Promoted { from: start, to: stop });
        }
        let mut standby = self.standby;
        if let Some((label, control)) = &stored.inside {
            agreement(self.system_id, start, stop, label, control, stored.manifest.as_ref())
                .map_err(Error::Contradiction)?;
            standby = label.source == BackupSource::Standby;
        }
        let end = if standby { EndOfBackup::Position } else { EndOfBackup::Record };
        if let Some(fetched) = &stored.fetched {
            fetched.check(stop, end)?;
        }
        if let Some(wal) = self.wal.take() {
            tell(Event::WaitingForWal);
            let received = unless_stopped(self.stop, wal.complete(start, stop, end)).await??;
            self.with_place(move |place| place.take_wal(&received)).await?;
        }
        if self.options.sync != Sync::None {
            tell(Event::Syncing);
        }
        let method = if self.options.sync == Sync::Syncfs { SyncMethod::Syncfs } else { SyncMethod::Fsync };
        self.with_place(move |place| place.finish(method)).await?;
        if stored.manifest.is_some() {
            tell(Event::NamingManifest);
            self.with_place(Place::name_manifest).await?;
        }
        Ok(Done { start, stop, compared: stored.compared, wal: self.options.wal != WalMethod::None })
    }

    /// Does what may take a while in a thread.
    async fn with_place(
        &mut self,
        work: impl FnOnce(&mut Place) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let Some(mut place) = self.place.take() else { return Err(Error::Conflict("there is no place")) };
        let worked = spawn_blocking(move || {
            let worked = work(&mut place);
            (place, worked)
        });
        let (place, worked) = worked.await.map_err(|e| Error::Thread(io::Error::other(e)))?;
        self.place = Some(place);
        worked
    }

    /// What would fail later is found before the server makes its checkpoint.
    fn check(&mut self) -> Result<(), Error> {
        match &self.options.destination {
            Destination::Plain { directory, wal_directory, .. } => {
                check_apart([Some(&*absolute(directory)?), wal_directory.as_deref()].into_iter().flatten())?;
                for directory in [Some(directory), wal_directory.as_ref()].into_iter().flatten() {
                    let found = self.is_there(directory)?;
                    self.found.push((directory.clone(), found));
                }
                Ok(())
            }
            Destination::Tar { directory, .. } => {
                let found = self.is_there(directory)?;
                self.found.push((directory.clone(), found));
                Ok(())
            }
            Destination::StandardOutput { .. } | Destination::Server(_) => match self.options.wal {
                WalMethod::Stream(_) => Err(Error::Conflict("WAL cannot be streamed to where this backup goes")),
                WalMethod::None | WalMethod::Fetch => Ok(()),
            },
        }
    }

    /// Whether an empty directory is there.
    fn is_there(&self, directory: &Path) -> Result<bool, Error> {
        match self.disk.metadata(directory)? {
            None => Ok(false),
            Some(meta) if meta.kind == EntryKind::Directory && self.disk.list(directory)?.is_empty() => Ok(true),
            Some(_) => Err(Error::NotEmpty(directory.to_owned())),
        }
    }

    async fn upload_manifest(&mut self) -> Result<(), Error> {
        let Some(path) = &self.options.incremental else { return Ok(()) };
        let (disk, path) = (self.disk.clone(), path.clone());
        let read = spawn_blocking(move || old_manifest(&*disk, &path));
        let manifest = read.await.map_err(|e| Error::Thread(io::Error::other(e)))??;
        unless_stopped(self.stop, self.session.upload_manifest(&mut manifest.reader())).await??;
        Ok(())
    }

    async fn make_slot(&mut self, tell: &mut impl FnMut(Event)) -> Result<(), Error> {
        let WalMethod::Stream(slot) = &self.options.wal else { return Ok(()) };
        let (name, kind) = match slot {
            StreamSlot::None => return Ok(()),
            StreamSlot::Named { name, create: false } => {
                // Before 15 it is asked for when the stream begins.
                let answer = self.session.read_slot(name).await?;
                let missing = answer == SlotAnswer::Known(SlotState::Missing);
                return if missing { Err(Error::NoSlot(name.clone())) } else { Ok(()) };
            }
            StreamSlot::Named { name, create: true } => (name.clone(), SlotKind::Permanent),
            StreamSlot::Temporary => {
                let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_micros();
                (format!("pg_basebackup_{}_{micros}", std::process::id()).parse()?, SlotKind::Temporary)
            }
        };
        self.session.create_slot(&name, kind, Retention::Reserved).await?;
        let temporary = kind == SlotKind::Temporary;
        if !temporary {
            self.slot = Some(name.clone());
        }
        tell(Event::SlotMade { name, temporary });
        Ok(())
    }

    /// A slot that nobody uses would keep WAL for ever.
    async fn drop_slot(&self, tell: &mut impl FnMut(Event)) {
        let Some(name) = &self.slot else { return };
        tell(Event::DroppingSlot(name.clone()));
        let conninfo = self.options.conninfo.at(&self.session);
        let dropping = async {
            let session = Session::connect(&conninfo, Purpose::Replication, &self.options.application_name).await;
            let Ok(mut session) = session else { return false };
            loop {
                match session.drop_slot(name).await {
                    Ok(()) => return true,
                    // The server has yet to notice that our stream is gone.
                    Err(e) if e.condition() == Some(Condition::InUse) => tokio::time::sleep(TELL).await,
                    Err(_) => return false,
                }
            }
        };
        if !timeout(DROP_LIMIT, dropping).await.unwrap_or(false) {
            tell(Event::SlotLeft(name.clone()));
        }
    }

    fn command(&self) -> BaseBackup {
        let options = self.options;
        let target = match &options.destination {
            Destination::Server(target) => Some(target.clone()),
            _ => None,
        };
        BaseBackup {
            incremental: options.incremental.is_some(),
            checkpoint: options.checkpoint,
            max_rate: options.max_rate,
            manifest: options.manifest,
            estimate_size: options.estimate_size,
            tablespace_map: !matches!(options.destination, Destination::Plain { .. }),
            wal: options.wal == WalMethod::Fetch,
            // Who gets the WAL from the archive has no backup before it is there.
            wait_for_archive: options.wal == WalMethod::None,
            verify_checksums: options.verify_checksums,
            compression: options.server_compression.clone(),
            target,
            ..BaseBackup::new(options.label.clone())
        }
    }

    /// Where it goes; `None` if it is not sent.
    fn make_place(&self, tablespaces: &[TablespaceRow]) -> Result<Option<Place>, Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let ours = Ours { mode: self.file_mode, mtime: now };
        let (disk, recovery) = (self.disk.clone(), self.recovery());
        Ok(match &self.options.destination {
            Destination::Plain { directory, mappings, wal_directory } => {
                let places = places(directory, wal_directory.as_deref(), mappings, tablespaces)?;
                let (data, directory) = (DataDir::make(disk, places)?, directory.clone());
                Some(Place::Plain(Box::new(Plain { data, directory, recovery })))
            }
            Destination::Tar { directory, compression } => {
                let (directory, compression) = (directory.clone(), *compression);
                let tar = TarFiles { disk, directory, compression, recovery, ours, made: false };
                Some(Place::Tar(tar.make()?))
            }
            Destination::StandardOutput { compression } => {
                if tablespaces.len() > 1 {
                    return Err(Error::Tablespaces(tablespaces.len() - 1));
                }
                let (compression, manifest) = (*compression, self.options.manifest.is_some());
                Some(Place::Output(Output { compression, recovery, ours, manifest, open: None }))
            }
            Destination::Server(_) => None,
        })
    }

    fn recovery(&self) -> Option<Recovery> {
        let slot = match &self.options.wal {
            WalMethod::Stream(StreamSlot::Named { name, .. }) => Some(name),
            _ => None,
        };
        let conninfo = self.options.conninfo.for_a_standby(&self.session);
        self.options.recovery.then(|| Recovery::new(&conninfo, slot))
    }

    /// The one pass over the data. If the WAL fails meanwhile, so does the backup.
    async fn copy(&mut self, start: Pos, tell: &mut impl FnMut(Event)) -> Result<(Pos, Stored), Error> {
        let Some(place) = self.place.take() else { return Err(Error::Conflict("there is no place")) };
        let manifest = self.options.manifest;
        let mut storing = Storing::new(Task {
            place,
            packed: self.options.server_compression.as_ref().and_then(ServerCompression::method),
            algorithm: manifest.map(|asked| asked.algorithm).filter(|_| self.options.verify),
            manifest: manifest.is_some(),
            fetched: (self.options.wal == WalMethod::Fetch)
                .then(|| Fetched::new(start, self.segment_size, self.system_id)),
        })?;
        let mut wal = self.wal.take();
        let pumped = {
            let pump = self.pump(Some(&mut storing), tell);
            match &mut wal {
                None => pump.await,
                Some(wal) => tokio::select! {
                    pumped = pump => pumped,
                    error = wal.failed() => Err(error),
                },
            }
        };
        self.wal = wal;
        // The thread must have ended before anybody removes what it writes.
        let (place, stored) = storing.finish().await;
        self.place = place;
        match pumped? {
            Some(stop) => Ok((stop, stored?)),
            None => Err(stored.err().unwrap_or(Error::Lacks("stop position"))),
        }
    }

    /// Takes the server's stream to its end; `None` if the thread that stores it has failed.
    async fn pump(
        &mut self,
        mut storing: Option<&mut Storing>,
        tell: &mut impl FnMut(Event),
    ) -> Result<Option<Pos>, Error> {
        let mut stop = None;
        let mut progress = Progress { done: 0, archives: 0, file: None };
        let mut told = Instant::now();
        let (limit, mut heard) = (self.longest_silence(), tokio::time::Instant::now());
        // From 15 on the server says what it has read; before, it is counted here.
        let mut counted = true;
        loop {
            let next = timeout(LOOK, self.session.next_backup_event());
            let Ok(event) = unless_stopped(self.stop, next).await? else {
                if let Some(storing) = &mut storing
                    && !storing.hand_over().await
                {
                    return Ok(None);
                }
                if let Some(limit) = limit.filter(|limit| heard.elapsed() > *limit) {
                    return Err(SessionError::TimedOut { during: "the base backup", limit }.into());
                }
                continue;
            };
            heard = tokio::time::Instant::now();
            let piece = match event? {
                BackupEvent::Archive(row) => Some(Piece::Archive(row.oid)),
                BackupEvent::Data(bytes) => {
                    progress.done += if counted { bytes.len() as u64 } else { 0 };
                    Some(Piece::Data(bytes))
                }
                BackupEvent::ArchiveEnd => {
                    progress.archives += 1;
                    Some(Piece::ArchiveEnd)
                }
                BackupEvent::Manifest => Some(Piece::Manifest),
                BackupEvent::ManifestData(bytes) => Some(Piece::ManifestData(bytes)),
                BackupEvent::ManifestEnd => Some(Piece::ManifestEnd),
                BackupEvent::Progress(done) => {
                    counted = false;
                    progress.done = done;
                    None
                }
                BackupEvent::Notice(notice) => {
                    tell(Event::Notice(notice));
                    None
                }
                BackupEvent::Stop(pos) => {
                    stop = Some(pos);
                    None
                }
                BackupEvent::Complete => {
                    tell(Event::Progress(Progress { file: None, ..progress }));
                    return Ok(stop);
                }
            };
            if told.elapsed() >= TELL {
                told = Instant::now();
                progress.file = storing.as_ref().and_then(|storing| storing.shown.get());
                tell(Event::Progress(progress.clone()));
            }
            if let (Some(piece), Some(storing)) = (piece, &mut storing)
                && !storing.put(piece).await
            {
                return Ok(None);
            }
        }
    }

    /// How long the server may send nothing; `None` where nobody can say.
    fn longest_silence(&self) -> Option<Duration> {
        // It waits at the end until all the WAL is archived.
        let waits = self.options.wal == WalMethod::None;
        // What it reads slowly may be packed into very little.
        let slow = self.options.max_rate.is_some() && self.options.server_compression.is_some();
        (!waits && !slow).then_some(SILENCE)
    }

    /// Removes what was made. The error is why.
    fn remove(&mut self, error: Error, tell: &mut impl FnMut(Event)) -> Error {
        let Some(place) = self.place.take() else { return error };
        for (directory, found) in std::mem::take(&mut self.found) {
            tell(if found { Event::Emptying(directory) } else { Event::Removing(directory) });
        }
        match place.discard() {
            Ok(()) => error,
            Err(left) => Error::LeftBehind { source: Box::new(error), left },
        }
    }
}

/// The manifest of an older backup, as it is now.
fn old_manifest(disk: &dyn Disk, path: &Path) -> Result<Spool, Error> {
    let file = disk.open(path, Access::Read).map_err(|e| match e.trouble() {
        Trouble::Missing => Error::NoOldManifest(path.to_owned()),
        _ => e.into(),
    })?;
    let size = file.size()?;
    if size > MAX_OLD_MANIFEST {
        return Err(Error::OldManifestTooLarge { path: path.to_owned(), size });
    }
    let (mut manifest, mut buffer) = (Spool::new(Scratch::temporary()), vec![0; OLD_PIECE]);
    while manifest.size() < size {
        let count = file.read_at(manifest.size(), &mut buffer)?;
        match buffer.get(..count) {
            Some(piece) if !piece.is_empty() => manifest.put(piece)?,
            _ => break,
        }
    }
    Ok(manifest)
}

/// Where the data directory and the tablespaces go.
fn places(
    directory: &Path,
    wal: Option<&Path>,
    mappings: &[(PathBuf, PathBuf)],
    tablespaces: &[TablespaceRow],
) -> Result<Places, Error> {
    let data = absolute(directory)?;
    let mut all = Vec::new();
    for row in tablespaces {
        let (Some(oid), Some(location)) = (row.oid, row.location.as_deref()) else { continue };
        let location = Path::new(location);
        // One that is not absolute lies in the data directory (`allow_in_place_tablespaces`).
        let mapped = mappings.iter().find(|(old, _)| old.components().eq(location.components()));
        let path = mapped.map_or(location, |(_, new)| new);
        all.push(TablespacePlace { oid, path: location.is_absolute().then(|| path.to_owned()) });
    }
    let places = Places { data, wal: wal.map(Path::to_owned), tablespaces: all, owner: None };
    check_apart(places.all())?;
    Ok(places)
}

/// What is in one place could be taken for what is in another.
fn check_apart<'a>(places: impl Iterator<Item = &'a Path>) -> Result<(), Error> {
    match overlap(places)? {
        Some((one, other)) => Err(Error::Overlap(one.to_owned(), other.to_owned())),
        None => Ok(()),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, DiskError> {
    std::path::absolute(path).map_err(|e| DiskError::new("find", path, e))
}

async fn unless_stopped<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Result<T, Error> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(Error::Stopped),
        done = work => Ok(done),
    }
}
