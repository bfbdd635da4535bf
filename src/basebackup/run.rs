//! A base backup, step by step.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use super::place::{Ours, Output, Place, TarFiles};
use super::store::{Piece, Stored, Storing, Task};
use super::{BaseBackupError as Error, Destination, Done, Event, Options, Progress, Sync, WalMethod};
use crate::connection::{BackupStarted, Session};
use crate::disk::{Disk, EntryKind, Real};
use crate::image::agreement;
use crate::protocol::{BackupEvent, BaseBackup, TablespaceRow};
use crate::receive::Upstream;
use crate::wal::Pos;

/// How often it is told how far the copy is.
const TELL: Duration = Duration::from_millis(200);

/// Makes a base backup.
///
/// # Errors
/// When it is not complete. What was made is removed then, unless `options` say otherwise or the server has
/// only found damaged pages.
pub async fn basebackup(
    upstream: Upstream,
    options: &Options,
    stop: &CancellationToken,
    tell: &mut impl FnMut(Event),
) -> Result<Done, Error> {
    let disk: Arc<dyn Disk> = match options.sync {
        Sync::None => Arc::new(Real::without_syncs()),
        Sync::Fsync | Sync::Syncfs => Arc::new(Real::new()),
    };
    let mut run = Run {
        options,
        stop,
        disk,
        file_mode: upstream.file_mode,
        system_id: upstream.system_id,
        session: upstream.session,
        place: None,
    };
    match run.backup(tell).await {
        Err(error) if options.clean && !error.is_about_checksums() => Err(run.remove(error, tell)),
        outcome => outcome,
    }
}

struct Run<'a> {
    options: &'a Options,
    stop: &'a CancellationToken,
    disk: Arc<dyn Disk>,
    file_mode: u32,
    system_id: u64,
    session: Session,
    /// Unless it is with the thread that fills it.
    place: Option<Place>,
}

impl Run<'_> {
    async fn backup(&mut self, tell: &mut impl FnMut(Event)) -> Result<Done, Error> {
        self.check()?;
        tell(Event::WaitingForCheckpoint);
        let command = self.command();
        let started = unless_stopped(self.stop, self.session.base_backup(&command)).await??;
        let BackupStarted { start, tablespaces } = &started;
        let estimate = tablespaces.iter().try_fold(0_u64, |sum, row| Some(sum.saturating_add(row.size_kb?)));
        let estimate = estimate.map(|kb| kb.saturating_mul(1024));
        tell(Event::Started { start: *start, archives: tablespaces.len(), estimate });
        let Some(place) = self.make_place(tablespaces)? else {
            let stop = self.pump(None, tell).await?.ok_or(Error::Lacks("stop position"))?;
            return Ok(Done { start: *start, stop, compared: None, wal: false });
        };
        let (stop, stored) = self.copy(place, tell).await?;
        tell(Event::Stop(stop));
        if stop.tli() != start.tli() {
            return Err(Error::Promoted { from: *start, to: stop });
        }
        if let Some((label, control)) = &stored.inside {
            let manifest = stored.manifest.as_ref().map(|(_, parsed)| parsed);
            agreement(self.system_id, *start, stop, label, control, manifest).map_err(Error::Contradiction)?;
        }
        tell(Event::Syncing);
        let manifest = stored.manifest.is_some();
        if let Some(place) = &mut self.place {
            place.finish(self.options.sync, manifest, &mut || tell(Event::NamingManifest))?;
        }
        Ok(Done { start: *start, stop, compared: stored.compared, wal: false })
    }

    /// What would fail later is found before the server makes its checkpoint.
    fn check(&self) -> Result<(), Error> {
        match &self.options.destination {
            Destination::Plain { directory, wal_directory, .. } => {
                self.check_free(directory)?;
                wal_directory.as_ref().map_or(Ok(()), |directory| self.check_free(directory))
            }
            Destination::Tar { directory, .. } => self.check_free(directory),
            Destination::StandardOutput { .. } | Destination::Server(_) => match self.options.wal {
                WalMethod::Stream(_) => Err(Error::Conflict("WAL cannot be streamed to where this backup goes")),
                WalMethod::None | WalMethod::Fetch => Ok(()),
            },
        }
    }

    fn check_free(&self, directory: &Path) -> Result<(), Error> {
        match self.disk.metadata(directory)? {
            None => Ok(()),
            Some(meta) if meta.kind == EntryKind::Directory && self.disk.list(directory)?.is_empty() => Ok(()),
            Some(_) => Err(Error::NotEmpty(directory.to_owned())),
        }
    }

    fn command(&self) -> BaseBackup {
        let options = self.options;
        let target = match &options.destination {
            Destination::Server(target) => Some(target.clone()),
            _ => None,
        };
        BaseBackup {
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
        let disk = self.disk.clone();
        Ok(match &self.options.destination {
            Destination::Plain { .. } => return Err(Error::Conflict("not yet")),
            Destination::Tar { directory, compression } => {
                let (directory, compression) = (directory.clone(), *compression);
                let tar = TarFiles { disk, directory, compression, recovery: None, ours, made: false };
                Some(Place::Tar(tar.make()?))
            }
            Destination::StandardOutput { compression } => {
                if tablespaces.len() > 1 {
                    return Err(Error::Tablespaces(tablespaces.len() - 1));
                }
                let (compression, manifest) = (*compression, self.options.manifest.is_some());
                Some(Place::Output(Output { compression, recovery: None, ours, manifest, open: None }))
            }
            Destination::Server(_) => None,
        })
    }

    /// The one pass over the data.
    async fn copy(&mut self, place: Place, tell: &mut impl FnMut(Event)) -> Result<(Pos, Stored), Error> {
        let manifest = self.options.manifest;
        let algorithm = manifest.map(|asked| asked.algorithm).filter(|_| self.options.verify);
        let packed = self.options.server_compression.as_ref().map(|compression| compression.method);
        let storing = Storing::new(Task { place, packed, algorithm, manifest: manifest.is_some() })?;
        let pumped = self.pump(Some(&storing), tell).await;
        // The thread must have ended before anybody removes what it writes.
        let (place, stored) = storing.finish().await;
        self.place = place;
        match pumped? {
            Some(stop) => Ok((stop, stored?)),
            None => Err(stored.err().unwrap_or(Error::Lacks("stop position"))),
        }
    }

    /// Takes the server's stream to its end; `None` if the thread that stores it has failed.
    async fn pump(&mut self, storing: Option<&Storing>, tell: &mut impl FnMut(Event)) -> Result<Option<Pos>, Error> {
        let mut stop = None;
        let mut progress = Progress { done: 0, archives: 0, file: None };
        let mut told = Instant::now();
        // From 15 on the server says what it has read; before, it is counted here.
        let mut counted = true;
        loop {
            let event = unless_stopped(self.stop, self.session.next_backup_event()).await??;
            let piece = match event {
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
                progress.file = storing.and_then(|storing| storing.shown.get());
                tell(Event::Progress(progress.clone()));
            }
            if let (Some(piece), Some(storing)) = (piece, storing)
                && !storing.put(piece).await
            {
                return Ok(None);
            }
        }
    }

    /// Removes what was made. The error is why.
    fn remove(&mut self, error: Error, tell: &mut impl FnMut(Event)) -> Error {
        match self.place.take().map_or(Ok(()), |place| place.discard(tell)) {
            Ok(()) => error,
            Err(left) => Error::LeftBehind { source: Box::new(error), left },
        }
    }
}

async fn unless_stopped<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Result<T, Error> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(Error::Stopped),
        done = work => Ok(done),
    }
}
