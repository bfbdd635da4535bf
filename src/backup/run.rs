//! The backup, step by step.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::copy::{Copied, Copying, Piece};
use super::wal::{NotCome, Wal};
use super::{BackupError, Event, Options};
use crate::archive::{Archive, Durable, NotProven, Proof, Stored};
use crate::connection::{BackupStarted, Error as SessionError, Purpose, Session, SlotAnswer};
use crate::disk::Lock;
use crate::image::agreement;
use crate::protocol::{BackupEvent, BaseBackup, ManifestAsked, Retention, SlotKind, SlotName, SlotState};
use crate::receive::Upstream;
use crate::repository::{
    BackupFolder, BackupId, CapturedBy, ConfigFiles, Durations, Kind, Method, NeededWal, PathStep, Pending, Repository,
    RepositoryError, Seal, Sealed, SealedHistory, SealedManifest, SealedTablespace, ServerVersion, Sha256Sum, Time,
};
use crate::wal::{Lsn, Pos, Segment, TimelineId};

/// How long a receiver may take to have what the server had when the backup began.
const SECURING: Duration = Duration::from_secs(30);
/// After the copy, how long nothing may come before the backup is left to wait by itself.
const PATIENCE: Duration = Duration::from_secs(60);
/// While a server sends nothing, how often the thread that writes is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a server may send nothing in the middle of the copy. Its own disk may stall.
const SILENCE: Duration = Duration::from_secs(600);
/// Between two attempts to begin while an expire removes what is old.
const CLAIM_PAUSE: Duration = Duration::from_millis(100);

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
    let mut run = Run {
        repository,
        archive: repository.archive(),
        options,
        system_id: upstream.system_id,
        session: upstream.session,
        stop,
        start_time: Time(Timestamp::now()),
        durations: Durations::default(),
    };
    run.backup(tell).await
}

struct Run<'a> {
    repository: &'a Repository,
    archive: Archive,
    options: &'a Options,
    system_id: u64,
    session: Session,
    stop: &'a CancellationToken,
    start_time: Time,
    durations: Durations,
}

/// All that a seal needs.
struct Ready {
    seal: Seal,
    proof: Proof,
    durable: Durable,
}

impl<'a> Run<'a> {
    async fn backup(&mut self, tell: &mut impl FnMut(Event)) -> Result<Sealed, BackupError> {
        // An error on this connection would remove the slot, so what may fail comes first.
        let config_files = self.config_files().await;
        let slot = self.make_slot().await?;
        let mut wal = self.secure(&slot, tell).await?;
        let sealed = self.copy_and_seal(&mut wal, slot, config_files, tell).await;
        wal.close().await;
        sealed
    }

    /// Where the configuration is, as far as the role may know.
    async fn config_files(&mut self) -> ConfigFiles {
        let mut shown = Vec::new();
        for setting in ["data_directory", "config_file", "hba_file", "ident_file"] {
            let value = self.session.show(setting).await;
            shown.push(value.inspect_err(|e| debug!("{setting}: {e}")).ok());
        }
        let mut shown = shown.into_iter();
        let mut next = || shown.next().flatten();
        ConfigFiles { data_directory: next(), config_file: next(), hba_file: next(), ident_file: next() }
    }

    /// A slot that keeps all WAL from now on, for as long as this connection lives.
    async fn make_slot(&mut self) -> Result<SlotName, BackupError> {
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_micros();
        let name: SlotName = format!("walhold_backup_{}_{micros}", std::process::id()).parse()?;
        self.session.create_slot(&name, SlotKind::Temporary, Retention::Reserved).await?;
        Ok(name)
    }

    /// Has what the server has now on its way into the repository, and durable there.
    async fn secure(&mut self, slot: &SlotName, tell: &mut impl FnMut(Event)) -> Result<Wal<'a>, BackupError> {
        let now = self.session.identify_system().await?.position;
        let kept_from = match self.session.read_slot(slot).await? {
            SlotAnswer::Known(SlotState::Physical { restart: Some(restart) }) => restart,
            // Before 15 only SQL tells. What it has in any case is all from here on.
            _ => self.query_slot(slot).await.map_or(now, |restart| now.at(restart)),
        };
        let mut wal = Wal::begin(self.repository, self.options, now, kept_from, tell).await?;
        self.held(&mut wal, now, tell).await?;
        Ok(wal)
    }

    async fn query_slot(&self, slot: &SlotName) -> Option<Lsn> {
        let options = self.options;
        let conninfo = options.conninfo.at(&self.session);
        let session = Session::connect(&conninfo, Purpose::Sql, &options.application_name).await;
        let sql = format!("select restart_lsn from pg_replication_slots where slot_name = '{slot}'");
        let rows = session.ok()?.look_up(&sql).await.ok()?;
        rows.first()?.first()?.as_ref()?.parse().ok()
    }

    /// Waits until all WAL up to `upto` is durable, as it must be before the copy is worth anything.
    async fn held(&self, wal: &mut Wal<'a>, upto: Pos, tell: &mut impl FnMut(Event)) -> Result<(), BackupError> {
        match self.unless_stopped(wal.durable(upto, SECURING, tell)).await? {
            Ok(_) => Ok(()),
            Err(NotCome::Failed(e)) => Err(e),
            Err(NotCome::Stalled { whole, own: None }) => {
                Err(BackupError::ReceiverBehind { whole, wanted: upto.lsn(), waited: SECURING })
            }
            Err(NotCome::Stalled { own: Some(reason), .. }) => {
                Err(BackupError::StreamBehind { wanted: upto.lsn(), waited: SECURING, reason })
            }
        }
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
            ..BaseBackup::new(self.options.label.clone())
        };
        let stop = self.stop.clone();
        let started = unless_stopped(&stop, self.session.base_backup(&command)).await??;
        self.durations.checkpoint = milliseconds(asked);
        wal.rewind(started.start)?;
        self.held(wal, started.start, tell).await?;
        let claim = self.claim().await?;
        let first = Segment::containing(started.start, self.archive.size());
        if self.archive.list()?.stored(first) == Stored::default() {
            return Err(BackupError::StartNotHeld { start: started.start, segment: first });
        }
        let folder = self.repository.begin_backup(self.start_time.0)?;
        match self.fill(&folder, claim, wal, started, slot, config_files, tell).await {
            Ok(Ready { seal, proof, durable }) => Ok(folder.seal(seal, &proof, &durable)?),
            Err(e @ BackupError::Waiting { .. }) => Err(e),
            Err(e) => {
                folder.discard()?;
                Err(e)
            }
        }
    }

    /// Keeps an expire from removing the WAL that is needed before the pending document claims it.
    async fn claim(&self) -> Result<Lock, BackupError> {
        loop {
            match self.repository.claim() {
                Err(RepositoryError::Locked(e)) => debug!("waiting: {e}"),
                claim => return Ok(claim?),
            }
            self.unless_stopped(tokio::time::sleep(CLAIM_PAUSE)).await?;
        }
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
        let mut pending = self.pending(folder.id(), started.start);
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
        seal.wal.captured_by = wal.captured_by();
        pending.stop = Some(stop);
        pending.ready = Some(Box::new(seal.clone()));
        folder.write_pending(&pending)?;
        let copied_at = Instant::now();
        let durable = match self.unless_stopped(wal.durable(stop, PATIENCE, tell)).await? {
            Ok(durable) => durable,
            Err(NotCome::Failed(e)) => return Err(e),
            Err(NotCome::Stalled { whole, .. }) => {
                return Err(BackupError::Waiting { id: folder.id(), stop, whole, waited: PATIENCE });
            }
        };
        seal.wal.captured_by = wal.captured_by();
        seal.durations_ms.wal = milliseconds(copied_at);
        tell(Event::Proving);
        let proving = Instant::now();
        let proof = self.prove(&seal).await?;
        seal.durations_ms.proof = milliseconds(proving);
        Ok(Ready { seal, proof, durable })
    }

    /// The one pass over the data.
    async fn copy(
        &mut self,
        folder: &BackupFolder,
        tell: &mut impl FnMut(Event),
    ) -> Result<(Pos, Copied), BackupError> {
        let copying = Copying::new(
            self.repository.disk().clone(),
            folder.dir().to_owned(),
            self.repository.modes().file(),
            self.options.compression,
            self.options.manifest_checksums,
        )?;
        let pumped = self.pump(&copying, tell).await;
        // The thread must have ended before anybody removes what it writes.
        let copied = copying.finish().await;
        match pumped? {
            Some(stop) => Ok((stop, copied?)),
            None => Err(copied.err().unwrap_or(BackupError::Lacks("stop position"))),
        }
    }

    /// From the server to the thread. `None` if the thread has failed.
    async fn pump(&mut self, copying: &Copying, tell: &mut impl FnMut(Event)) -> Result<Option<Pos>, BackupError> {
        let stop_token = self.stop.clone();
        let mut stop = None;
        let mut taken = 0;
        let mut heard = Instant::now();
        loop {
            let next = timeout(LOOK, self.session.next_backup_event());
            let Ok(event) = unless_stopped(&stop_token, next).await? else {
                if copying.has_ended() {
                    return Ok(None);
                }
                if heard.elapsed() > SILENCE {
                    return Err(SessionError::TimedOut { during: "the base backup", limit: SILENCE }.into());
                }
                continue;
            };
            heard = Instant::now();
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
        agreement(self.system_id, start, stop, label, control, Some(manifest)).map_err(BackupError::Contradiction)
    }

    async fn prove(&self, seal: &Seal) -> Result<Proof, BackupError> {
        let (archive, start, stop, end) = (self.archive.clone(), seal.start.lsn(), seal.stop, seal.end());
        let proof: Result<Proof, NotProven> = match spawn_blocking(move || archive.prove(start, stop, end)).await {
            Ok(proof) => proof,
            Err(e) => return Err(BackupError::Thread(std::io::Error::other(e))),
        };
        Ok(proof?)
    }

    fn server_version(&self) -> ServerVersion {
        let version = self.session.server_version();
        let text = self.session.parameter("server_version").unwrap_or_default().to_owned();
        ServerVersion { number: version.num(), text }
    }

    fn pending(&self, id: BackupId, start: Pos) -> Pending {
        Pending {
            id,
            label: self.options.label.clone(),
            system_identifier: self.system_id,
            server_version: self.server_version(),
            method: Method::Streamed,
            start,
            stop: None,
            ready: None,
        }
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
            id,
            label: self.options.label.clone(),
            kind: Kind::Full,
            parent: None,
            system_identifier: self.system_id,
            server_version: self.server_version(),
            segment_size: self.archive.size().bytes(),
            method: Method::Streamed,
            start: started.start,
            stop,
            start_time: self.start_time,
            stop_time: Time(Timestamp::now()),
            min_recovery_point,
            wal: self.needed_wal(stop.tli())?,
            tablespaces,
            files: copied.files,
            manifest: SealedManifest { algorithm, files: copied.compared.files, bytes: copied.compared.bytes },
            compression: self.options.compression.to_string(),
            config_files,
            slot: Some(slot.as_str().to_owned()),
            durations_ms: self.durations,
            program: format!("walhold {}", env!("CARGO_PKG_VERSION")),
            checked: vec![
                format!("every data file against the server's manifest, {against}"),
                "every WAL record from start to stop, by checksum and by its link to the one before".to_owned(),
                "that this WAL, these files and their names are durable".to_owned(),
            ],
            not_checked: vec!["that a server starts from it".to_owned()],
        })
    }

    fn needed_wal(&self, tli: TimelineId) -> Result<NeededWal, BackupError> {
        let route = self.archive.history(tli)?;
        let mut history_files = Vec::new();
        let ancestors = route.switches().iter().map(|switch| switch.from);
        for timeline in ancestors.chain([tli]).filter(|tli| *tli != TimelineId::FIRST) {
            if let Some(content) = self.archive.history_content(timeline)? {
                let (size, sha256) = (content.len() as u64, Sha256Sum::of(&content));
                history_files.push(SealedHistory { timeline, size, sha256 });
            }
        }
        Ok(NeededWal {
            captured_by: CapturedBy::Receiver,
            timeline_path: PathStep::all(&route),
            segments: Vec::new(),
            history_files,
        })
    }

    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, BackupError> {
        unless_stopped(self.stop, work).await
    }
}

async fn unless_stopped<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Result<T, BackupError> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(BackupError::Stopped),
        done = work => Ok(done),
    }
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
