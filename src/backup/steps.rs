//! The steps that every backup takes, however its data is copied: the WAL secured before, a folder that
//! claims it, and in the end the proof and the seal.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::parent::Parent;
use super::wal::{NotCome, Wal};
use super::{BackupError, Event, Options};
use crate::archive::{Archive, Durable, NotProven, Proof, Stored};
use crate::connection::{Purpose, Session, SlotAnswer};
use crate::disk::Lock;
use crate::image::{Cuts, ManifestAlgorithm};
use crate::protocol::{Retention, SlotKind, SlotName, SlotState};
use crate::receive::Upstream;
use crate::repository::{
    BackupFolder, BackupId, CapturedBy, ConfigFiles, Durations, Kind, Method, NeededWal, PathStep, Pending, Repository,
    RepositoryError, Seal, Sealed, SealedHistory, SealedManifest, ServerVersion, Sha256Sum, Time,
};
use crate::wal::{Lsn, Pos, Segment, TimelineId};

/// How long a receiver may take to have what the server had when the backup began.
const SECURING: Duration = Duration::from_secs(30);
/// After the copy, how long nothing may come before the backup is left to wait by itself.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts to begin while an expire removes what is old.
const CLAIM_PAUSE: Duration = Duration::from_millis(100);

/// What was checked of the WAL of every backup.
pub(super) const WAL_CHECKED: [&str; 2] = [
    "every WAL record from start to stop, by checksum and by its link to the one before",
    "that this WAL, these files and their names are durable",
];

/// One backup that is being made.
pub(super) struct Run<'a> {
    pub(super) repository: &'a Repository,
    pub(super) archive: Archive,
    pub(super) options: &'a Options,
    pub(super) system_id: u64,
    pub(super) session: Session,
    pub(super) stop: &'a CancellationToken,
    pub(super) start_time: Time,
    /// What it is based on, if it is incremental.
    pub(super) parent: Option<Parent>,
    pub(super) durations: Durations,
}

/// All that a seal needs.
pub(super) struct Ready {
    seal: Seal,
    proof: Proof,
    durable: Durable,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        repository: &'a Repository,
        upstream: Upstream,
        options: &'a Options,
        stop: &'a CancellationToken,
    ) -> Self {
        Self {
            repository,
            archive: repository.archive(),
            options,
            system_id: upstream.system_id,
            session: upstream.session,
            stop,
            start_time: Time(Timestamp::now()),
            parent: None,
            durations: Durations::default(),
        }
    }

    /// Where the configuration is, as far as the role may know.
    pub(super) async fn config_files(&mut self) -> ConfigFiles {
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
    pub(super) async fn make_slot(&mut self) -> Result<SlotName, BackupError> {
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_micros();
        let name: SlotName = format!("walhold_backup_{}_{micros}", std::process::id()).parse()?;
        self.session.create_slot(&name, SlotKind::Temporary, Retention::Reserved).await?;
        Ok(name)
    }

    /// Has what the server has now on its way into the repository, and durable there.
    pub(super) async fn secure(
        &mut self,
        slot: &SlotName,
        tell: &mut impl FnMut(Event),
    ) -> Result<Wal<'a>, BackupError> {
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

    pub(super) fn pending(&self, id: BackupId, method: Method, start: Pos) -> Pending {
        Pending {
            id,
            label: self.options.label.clone(),
            system_identifier: self.system_id,
            server_version: self.server_version(),
            method,
            start,
            stop: None,
            ready: None,
        }
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

    /// Makes the folder of a backup that starts at `start`, whose WAL must be held. It is claimed once
    /// the pending document is there; until then the lock that is given keeps it.
    pub(super) async fn begin(
        &self,
        wal: &mut Wal<'a>,
        start: Pos,
        tell: &mut impl FnMut(Event),
    ) -> Result<(BackupFolder, Lock), BackupError> {
        wal.rewind(start)?;
        self.held(wal, start, tell).await?;
        let claim = self.claim().await?;
        let segment = Segment::containing(start, self.archive.size());
        if self.archive.list()?.stored(segment) == Stored::default() {
            return Err(BackupError::StartNotHeld { start, segment });
        }
        Ok((self.repository.begin_backup(self.start_time.0)?, claim))
    }

    /// From a copy that has been checked to all that its seal needs.
    pub(super) async fn complete(
        &self,
        folder: &BackupFolder,
        mut pending: Pending,
        mut seal: Seal,
        wal: &mut Wal<'a>,
        tell: &mut impl FnMut(Event),
    ) -> Result<Ready, BackupError> {
        let stop = seal.stop;
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

    /// Seals the backup, or removes it unless it waits.
    pub(super) fn end(&self, folder: BackupFolder, done: Result<Ready, BackupError>) -> Result<Sealed, BackupError> {
        match done {
            Ok(Ready { seal, proof, durable }) => Ok(folder.seal(seal, &proof, &durable)?),
            Err(e @ BackupError::Waiting { .. }) => Err(e),
            Err(e) => {
                folder.discard()?;
                Err(e)
            }
        }
    }

    /// A seal that says nothing of data yet.
    pub(super) fn blank_seal(&self, id: BackupId, method: Method, start: Pos, stop: Pos) -> Result<Seal, BackupError> {
        Ok(Seal {
            id,
            label: self.options.label.clone(),
            kind: Kind::Full,
            parent: None,
            cuts: Cuts::default(),
            system_identifier: self.system_id,
            server_version: self.server_version(),
            segment_size: self.archive.size().bytes(),
            method,
            place: None,
            start,
            stop,
            start_time: self.start_time,
            stop_time: Time(Timestamp::now()),
            min_recovery_point: None,
            wal: self.needed_wal(stop.tli())?,
            tablespaces: Vec::new(),
            files: Vec::new(),
            manifest: SealedManifest { algorithm: ManifestAlgorithm::None, files: 0, bytes: 0 },
            compression: "none".to_owned(),
            config_files: ConfigFiles::default(),
            slot: None,
            durations_ms: self.durations,
            program: format!("walhold {}", env!("CARGO_PKG_VERSION")),
            checked: Vec::new(),
            not_checked: Vec::new(),
        })
    }

    pub(super) async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, BackupError> {
        unless_stopped(self.stop, work).await
    }
}

pub(super) async fn unless_stopped<T>(
    stop: &CancellationToken,
    work: impl Future<Output = T>,
) -> Result<T, BackupError> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(BackupError::Stopped),
        done = work => Ok(done),
    }
}

pub(super) fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
