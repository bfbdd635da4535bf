//! The backup, step by step.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::copy::{Copied, Copying, Piece};
use super::parent::Parent;
use super::steps::{Ready, Run, WAL_CHECKED, milliseconds, unless_stopped};
use super::wal::Wal;
use super::{BackupError, Event, Options};
use crate::connection::{BackupStarted, Error as SessionError};
use crate::disk::Lock;
use crate::image::agreement;
use crate::protocol::{BackupEvent, BaseBackup, ManifestAsked, SlotName};
use crate::receive::Upstream;
use crate::repository::{
    BackupFolder, BackupId, ConfigFiles, Kind, Method, Repository, Seal, Sealed, SealedManifest, SealedTablespace,
};
use crate::wal::Pos;

/// While a server sends nothing, how often the thread that writes is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a server may send nothing in the middle of the copy. Its own disk may stall.
const SILENCE: Duration = Duration::from_secs(600);

/// Takes a backup and seals it.
///
/// # Errors
/// When it is not sealed. What was copied is removed then, except after [`BackupError::Waiting`].
pub async fn backup(
    repository: &Repository,
    upstream: Upstream,
    options: &Options,
    stop: &CancellationToken,
    tell: &mut impl FnMut(Event),
) -> Result<Sealed, BackupError> {
    upstream.check(&repository.archive())?;
    let mut run = Run::new(repository, upstream, options, stop);
    match &options.low_level {
        None => run.streamed(tell).await,
        Some(way) => run.low_level(way, tell).await,
    }
}

impl<'a> Run<'a> {
    async fn streamed(&mut self, tell: &mut impl FnMut(Event)) -> Result<Sealed, BackupError> {
        // An error on this connection would remove the slot, so what may fail comes first.
        let config_files = self.config_files().await;
        if self.options.incremental {
            let stop = self.stop.clone();
            let parent = unless_stopped(&stop, Parent::find(self.repository, &mut self.session)).await??;
            tell(Event::BasedOn(parent.seal.id));
            self.parent = Some(parent);
        }
        let slot = self.make_slot().await?;
        let mut wal = self.secure(&slot, tell).await?;
        let sealed = match self.changes_are_held().await {
            Ok(()) => self.copy_and_seal(&mut wal, slot, config_files, tell).await,
            Err(e) => Err(e),
        };
        wal.close().await;
        sealed
    }

    async fn copy_and_seal(
        &mut self,
        wal: &mut Wal<'a>,
        slot: SlotName,
        config_files: ConfigFiles,
        tell: &mut impl FnMut(Event),
    ) -> Result<Sealed, BackupError> {
        tell(Event::WaitingForCheckpoint);
        let asked = Instant::now();
        let command = BaseBackup {
            checkpoint: self.options.checkpoint,
            max_rate: self.options.max_rate,
            manifest: Some(ManifestAsked { algorithm: self.options.manifest_checksums, force_encode: false }),
            estimate_size: true,
            tablespace_map: true,
            incremental: self.parent.is_some(),
            ..BaseBackup::new(self.options.label.clone())
        };
        let stop = self.stop.clone();
        let started = unless_stopped(&stop, self.session.base_backup(&command)).await?;
        let started = started.map_err(|e| match &self.parent {
            Some(parent) => parent.cannot(e),
            None => e.into(),
        })?;
        self.durations.checkpoint = milliseconds(asked);
        let (folder, claim) = self.begin(wal, started.start, tell).await?;
        let done = self.fill(&folder, claim, wal, started, slot, config_files, tell).await;
        self.end(folder, done)
    }

    /// Everything between the start position and the seal.
    #[allow(clippy::too_many_arguments, reason = "each is used up here")]
    async fn fill(
        &mut self,
        folder: &BackupFolder,
        claim: Lock,
        wal: &mut Wal<'a>,
        started: BackupStarted,
        slot: SlotName,
        config_files: ConfigFiles,
        tell: &mut impl FnMut(Event),
    ) -> Result<Ready, BackupError> {
        let pending = self.pending(folder.id(), Method::Streamed, started.start);
        folder.write_pending(&pending)?;
        drop(claim);
        let estimate = started.tablespaces.iter().try_fold(0_u64, |sum, row| Some(sum.saturating_add(row.size_kb?)));
        let estimate = estimate.map(|kb| kb.saturating_mul(1024));
        tell(Event::Copying { id: folder.id(), start: started.start, estimate });
        let copy_began = Instant::now();
        let (stop, copied) = self.copy(folder, tell).await?;
        self.durations.copy = milliseconds(copy_began);
        let bytes = copied.files.iter().filter_map(|file| file.unpacked).sum();
        tell(Event::Copied { stop, bytes, took: copy_began.elapsed() });
        if stop.tli() != started.start.tli() {
            return Err(BackupError::Promoted { from: started.start, to: stop });
        }
        let min_recovery = self.agreed(&copied, started.start, stop)?;
        let mut seal = self.seal(folder.id(), &started, stop, copied, min_recovery, slot, config_files)?;
        if self.parent.is_some() {
            tell(Event::ReadingChanges);
            seal.cuts = self.cuts(started.start).await?;
        }
        self.complete(folder, pending, seal, wal, tell).await
    }

    /// The one pass over the data.
    async fn copy(
        &mut self,
        folder: &BackupFolder,
        tell: &mut impl FnMut(Event),
    ) -> Result<(Pos, Copied), BackupError> {
        let mut copying = Copying::new(
            self.repository.disk().clone(),
            folder.dir().to_owned(),
            self.repository.modes().file(),
            self.options.compression,
            self.options.manifest_checksums,
            self.parent.is_some(),
        )?;
        let pumped = self.pump(&mut copying, tell).await;
        // The thread must have ended before anybody removes what it writes.
        let copied = copying.finish().await;
        match pumped? {
            Some(stop) => Ok((stop, copied?)),
            None => Err(copied.err().unwrap_or(BackupError::Lacks("stop position"))),
        }
    }

    /// From the server to the thread. `None` if the thread has failed.
    async fn pump(&mut self, copying: &mut Copying, tell: &mut impl FnMut(Event)) -> Result<Option<Pos>, BackupError> {
        let stop_token = self.stop.clone();
        let mut stop = None;
        let mut taken = 0;
        let mut heard = tokio::time::Instant::now();
        loop {
            let next = timeout(LOOK, self.session.next_backup_event());
            let Ok(event) = unless_stopped(&stop_token, next).await? else {
                if !copying.hand_over().await {
                    return Ok(None);
                }
                if heard.elapsed() > SILENCE {
                    return Err(SessionError::TimedOut { during: "the base backup", limit: SILENCE }.into());
                }
                continue;
            };
            heard = tokio::time::Instant::now();
            let piece = match event? {
                BackupEvent::Archive(row) => Piece::Archive(row.oid),
                BackupEvent::Data(bytes) => {
                    taken += bytes.len() as u64;
                    tell(Event::Progress(taken));
                    Piece::Data(bytes)
                }
                BackupEvent::ArchiveEnd => Piece::ArchiveEnd,
                BackupEvent::ManifestData(bytes) => Piece::ManifestData(bytes),
                BackupEvent::ManifestEnd => Piece::ManifestEnd,
                BackupEvent::Manifest | BackupEvent::Progress(_) => continue,
                BackupEvent::Notice(notice) => {
                    tell(Event::Notice(notice.to_string()));
                    continue;
                }
                BackupEvent::Stop(position) => {
                    stop = Some(position);
                    continue;
                }
                BackupEvent::Complete => return Ok(stop),
            };
            if !copying.put(piece).await {
                return Ok(None);
            }
        }
    }

    /// Holds what the server said in several places against each other. For a backup from a
    /// standby, the position at which the files are consistent.
    fn agreed(&self, copied: &Copied, start: Pos, stop: Pos) -> Result<Option<Pos>, BackupError> {
        let Copied { label, control, manifest, .. } = copied;
        let based_on = self.parent.as_ref().map(|parent| parent.seal.start);
        if label.incremental_from != based_on {
            let shown = |from: Option<Pos>| from.map_or_else(|| "the first byte".to_owned(), |from| from.to_string());
            let (asked, told) = (shown(based_on), shown(label.incremental_from));
            let what = format!("changes since {asked} were asked for, and backup_label says since {told}");
            return Err(BackupError::Contradiction(what));
        }
        agreement(self.system_id, start, stop, label, control, Some(manifest)).map_err(BackupError::Contradiction)
    }

    #[allow(clippy::too_many_arguments, reason = "it puts together what all the steps have found")]
    fn seal(
        &self,
        id: BackupId,
        started: &BackupStarted,
        stop: Pos,
        copied: Copied,
        min_recovery_point: Option<Pos>,
        slot: SlotName,
        config_files: ConfigFiles,
    ) -> Result<Seal, BackupError> {
        let mut tablespaces: Vec<_> = started
            .tablespaces
            .iter()
            .filter_map(|row| Some(SealedTablespace { oid: row.oid?, location: row.location.clone()? }))
            .collect();
        tablespaces.sort_unstable_by_key(|tablespace| tablespace.oid);
        let algorithm = self.options.manifest_checksums;
        let by_sum = copied.compared.by_checksum == copied.compared.files;
        let against = if by_sum { format!("by {algorithm}") } else { "by size".to_owned() };
        Ok(Seal {
            kind: if self.parent.is_some() { Kind::Incremental } else { Kind::Full },
            parent: self.parent.as_ref().map(|parent| parent.seal.id),
            min_recovery_point,
            tablespaces,
            files: copied.files,
            manifest: SealedManifest { algorithm, files: copied.compared.files, bytes: copied.compared.bytes },
            compression: self.options.compression.to_string(),
            config_files,
            slot: Some(slot.as_str().to_owned()),
            checked: self.checked(against),
            not_checked: vec!["that a server starts from it".to_owned()],
            ..self.blank_seal(id, Method::Streamed, started.start, stop)?
        })
    }

    fn checked(&self, against: String) -> Vec<String> {
        let files = format!("every data file against the server's manifest, {against}");
        let changes = [
            "which blocks the files of changes hold",
            "every WAL record since the parent's start, for what was cut off",
        ];
        let changes = changes.into_iter().filter(|_| self.parent.is_some()).map(str::to_owned);
        [files].into_iter().chain(changes).chain(WAL_CHECKED.map(str::to_owned)).collect()
    }
}
