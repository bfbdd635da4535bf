//! From a fresh connection to a stream: who the server is, the slot, where to begin.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;

use super::{Event, Gap, Options, ReceiveError, Slot};
use crate::archive::{Archive, ArchiveError, Resumption};
use crate::connection::{Conninfo, Error as SessionError, Purpose, Session, SlotAnswer};
use crate::protocol::{Condition, NextTimeline, Retention, SlotKind, SlotName, SlotState};
use crate::wal::{History, Lsn, Pos, Segment, SegmentSize, TimelineId};

/// Bytes of all history files of a server; each is a few lines.
const MAX_HISTORIES: usize = 4 << 20;

/// A fork so little below the end of what is held is that of a standby which was promoted, even
/// where segments are smaller.
const NEAR: u64 = 16 << 20;

/// A connected server, and what it says of itself.
pub struct Upstream {
    /// The replication session.
    pub session: Session,
    /// The cluster.
    pub system_id: u64,
    /// Where its log ends: flushed on a primary, received or replayed on a standby.
    pub position: Pos,
    /// Its segment size.
    pub segment_size: SegmentSize,
    /// What new files get, as the server has it for its own: 0600, or 0640 with group access.
    pub file_mode: u32,
    /// After how much silence it gives us up.
    pub sender_timeout: Option<Duration>,
    /// Whether it is a standby; servers before 14 do not say.
    pub standby: Option<bool>,
    /// Held by the thread that works on the archive, also when nobody waits for it any more.
    busy: Arc<Mutex<()>>,
}

/// Where the slot stands.
#[derive(Clone, Debug)]
pub(super) enum Standing {
    /// There is none, or it keeps nothing yet.
    Nowhere,
    /// The oldest WAL that it keeps.
    At(Pos),
    /// It was made a moment ago, and keeps what the server's position needs; from here on, if that is told.
    Made(Option<Pos>),
    /// We are not told, for this reason; nor whether it is there.
    Untold(String),
}

impl Standing {
    /// The oldest WAL that it keeps, if that is known.
    pub(super) const fn position(&self) -> Option<Pos> {
        match self {
            Self::At(pos) | Self::Made(Some(pos)) => Some(*pos),
            Self::Nowhere | Self::Made(None) | Self::Untold(_) => None,
        }
    }
}

impl From<Option<Pos>> for Standing {
    fn from(restart: Option<Pos>) -> Self {
        restart.map_or(Self::Nowhere, Self::At)
    }
}

impl Upstream {
    /// Connects and asks.
    ///
    /// # Errors
    /// When the server cannot be reached, does not let us in, or does not answer as one does.
    pub async fn connect(conninfo: &Conninfo, application_name: &str) -> Result<Self, ReceiveError> {
        let mut session = Session::connect(conninfo, Purpose::Replication, application_name).await?;
        let identity = session.identify_system().await?;
        let segment_size = session.segment_size().await?;
        let sender_timeout = session.wal_sender_timeout().await?;
        let group = session.data_directory_mode().await? & 0o040;
        let standby = session.parameter("in_hot_standby").map(|on| on == "on");
        Ok(Self {
            session,
            system_id: identity.system_id,
            position: identity.position,
            segment_size,
            file_mode: 0o600 | group,
            sender_timeout,
            standby,
            busy: Arc::default(),
        })
    }

    /// Holds the server against the archive.
    ///
    /// # Errors
    /// When it is another cluster, or one with other segments.
    pub fn check(&self, archive: &Archive) -> Result<(), ReceiveError> {
        if let Some(held) = archive.system_id()
            && held != self.system_id
        {
            return Err(ReceiveError::OtherCluster { held, server: self.system_id });
        }
        if archive.size() != self.segment_size {
            let (held, server) = (archive.size().bytes(), self.segment_size.bytes());
            return Err(ReceiveError::OtherSegmentSize { held, server });
        }
        Ok(())
    }

    /// Where the slot stands. Makes the slot if it is missing and may be made. One that is ours and keeps
    /// nothing is made anew: it was made with reserved WAL, so it has lost that (`max_slot_wal_keep_size`),
    /// as `lost` says where the server told otherwise; since 16 such a slot never keeps anything again.
    pub(super) async fn prepare_slot(
        &mut self,
        options: &Options,
        lost: bool,
        tell: &mut impl FnMut(Event),
    ) -> Result<Standing, ReceiveError> {
        let (name, may_make) = match &options.slot {
            Slot::None => return Ok(Standing::Nowhere),
            Slot::Existing(name) => (name, false),
            Slot::Ensured(name) => (name, true),
        };
        let found = self.find_slot(&options.conninfo, &options.application_name, name).await?;
        match &found {
            None if !may_make => return Err(ReceiveError::NoSlot(name.clone())),
            Some(standing) if !may_make => return Ok(standing.clone()),
            Some(Standing::At(restart)) if !lost => return Ok(Standing::At(*restart)),
            Some(Standing::At(_) | Standing::Nowhere) => {
                self.session.drop_slot(name).await?;
                tell(Event::SlotLost(name.clone()));
            }
            // Whether it is there shows when it is made.
            None | Some(Standing::Made(_) | Standing::Untold(_)) => {}
        }
        let made = match self.session.create_slot(name, SlotKind::Permanent, Retention::Reserved).await {
            Ok(()) => true,
            // There already, or made by somebody else between the two commands.
            Err(e) if e.condition() == Some(Condition::Exists) => false,
            Err(e) => return Err(e.into()),
        };
        if made {
            tell(Event::SlotMade(name.clone()));
        }
        let found = match found {
            Some(untold @ Standing::Untold(_)) => untold,
            _ => self.find_slot(&options.conninfo, &options.application_name, name).await?.unwrap_or(Standing::Nowhere),
        };
        Ok(if made { Standing::Made(found.position()) } else { found })
    }

    /// Whether the server refuses to stream because it has invalidated the slot, as servers do since 18.
    pub(super) fn is_invalidated(&self, refusal: &SessionError) -> bool {
        let new = self.session.server_version().major() >= 18;
        new && refusal.condition() == Some(Condition::NotReady) && !refusal.is_transient()
    }

    /// Whether the slot, which keeps nothing, has lost its WAL for good. Only SQL tells it; before 16
    /// such a slot keeps WAL again after the next report.
    pub(super) async fn is_slot_lost(&self, options: &Options) -> bool {
        let Some(name) = options.slot.name().filter(|_| self.session.server_version().major() >= 16) else {
            return false;
        };
        let sql = format!("select wal_status from pg_replication_slots where slot_name = '{}'", name.as_str());
        // Another host of the list has a slot of the same name, with a fate of its own.
        let conninfo = options.conninfo.at(&self.session);
        let session = Session::connect(&conninfo, Purpose::Sql, &options.application_name);
        let Ok(mut session) = session.await else { return false };
        let rows = session.look_up(&sql).await.unwrap_or_default();
        rows.first().and_then(|row| row.first()?.as_deref()) == Some("lost")
    }

    /// `None` if there is no such slot.
    pub(super) async fn find_slot(
        &mut self,
        conninfo: &Conninfo,
        application_name: &str,
        name: &SlotName,
    ) -> Result<Option<Standing>, ReceiveError> {
        match self.session.read_slot(name).await? {
            SlotAnswer::Known(SlotState::Missing) => Ok(None),
            SlotAnswer::Known(SlotState::Physical { restart }) => Ok(Some(restart.into())),
            SlotAnswer::CannotBeAsked => self.query_slot(conninfo, application_name, name).await,
        }
    }

    /// Before 15 only SQL tells where a slot stands, a replication connection has no SQL, and a role
    /// that replicates need not be let into any database.
    async fn query_slot(
        &mut self,
        conninfo: &Conninfo,
        application_name: &str,
        name: &SlotName,
    ) -> Result<Option<Standing>, ReceiveError> {
        // A logical one must not be taken for one of ours that keeps nothing, and be dropped: the server
        // refuses to make, or to use, a slot of its name.
        let physical = format!("slot_name = '{}' and slot_type = 'physical'", name.as_str());
        let sql = format!("select restart_lsn from pg_replication_slots where {physical}");
        let conninfo = conninfo.at(&self.session);
        let session = Session::connect(&conninfo, Purpose::Sql, application_name);
        let rows = match session.await {
            Ok(mut session) => session.look_up(&sql).await,
            Err(e) if e.is_transient() => return Err(e.into()),
            Err(e) => return Ok(Some(Standing::Untold(e.to_string()))),
        };
        let rows = match rows {
            Ok(rows) => rows,
            Err(e) if e.is_transient() => return Err(e.into()),
            Err(e) => return Ok(Some(Standing::Untold(e.to_string()))),
        };
        let Some(row) = rows.first() else { return Ok(None) };
        let restart = row.first().and_then(Option::as_ref).map(|text| text.parse::<Lsn>());
        Ok(Some(match restart.transpose() {
            // The slot's timeline is not told; a slot that is used stands on the server's own.
            Ok(restart) => restart.map(|lsn| self.position.at(lsn)).into(),
            Err(e) => Standing::Untold(e.to_string()),
        }))
    }

    /// Opens the archive where it ends, or at a hole that the slot still keeps the WAL of; an empty
    /// one where the slot stands, or the server. `anew` begins a stretch of its own there, for the
    /// server does not have what comes next any more.
    pub(super) async fn open(
        &mut self,
        archive: &Archive,
        options: &Options,
        slot: &Standing,
        anew: Option<Pos>,
        tell: &mut impl FnMut(Event),
    ) -> Result<Resumption, ReceiveError> {
        let kept_from = match slot {
            // It may keep any of it: the server is asked, and says what it has no more.
            Standing::Untold(_) => Some(Lsn::ZERO),
            told => told.position().map(Pos::lsn),
        };
        let held = {
            let archive = archive.clone();
            self.blocking(move || archive.resume(kept_from)).await?
        };
        if let Some(resumption) = held {
            let reaches =
                |start: Segment| resumption.start.tli() == start.tli() && resumption.start.lsn() >= start.start();
            let anew = anew.map(|start| Segment::containing(start, self.segment_size));
            let goes_on = anew.is_none_or(reaches);
            let joined = self.join(archive, options, resumption, tell).await?;
            if goes_on {
                return Ok(joined);
            }
        }
        let start = match anew.or(options.island) {
            Some(start) => start,
            None => self.first_start(options, slot, tell)?,
        };
        let route = self.fetch_histories(archive, start.tli()).await?;
        self.begin(archive, route, start).await
    }

    /// Where an empty archive begins. A slot whose position is not told may keep WAL from before the
    /// server's, and our first report would have the server remove that, unread. A slot that is there
    /// while its repository is empty is that of a repository that was lost, or of a start long ago: what
    /// it keeps is the only copy of what a restore would lack, so the repository does not begin behind
    /// it unless somebody drops the slot. A plain folder begins there, as with pg_receivewal, and says so.
    fn first_start(
        &self,
        options: &Options,
        slot: &Standing,
        tell: &mut impl FnMut(Event),
    ) -> Result<Pos, ReceiveError> {
        if let (Standing::Untold(reason), Some(name)) = (slot, options.slot.name()) {
            let (slot, reason) = (name.clone(), reason.clone());
            if !options.may_pass_over {
                return Err(ReceiveError::SlotPosition { slot, reason });
            }
            tell(Event::PassedOver { slot, before: self.position, reason });
        }
        // One that we would have made.
        if let (Standing::At(from), Slot::Ensured(name)) = (slot, &options.slot) {
            tell(Event::SlotOlder { slot: name.clone(), from: *from });
        }
        Ok(slot.position().unwrap_or(self.position))
    }

    /// Checks that the server goes on with what is held. A server on a later timeline is followed
    /// from the timeline that is held, unless that has ended before the segment we would ask for.
    async fn join(
        &mut self,
        archive: &Archive,
        options: &Options,
        resumption: Resumption,
        tell: &mut impl FnMut(Event),
    ) -> Result<Resumption, ReceiveError> {
        let held = resumption.start.tli();
        if held == self.position.tli() {
            let end = resumption.old.map_or(Lsn::ZERO, |old| old.valid.max(resumption.start.lsn()));
            if end > self.position.lsn() {
                let (held, server, standby) = (self.position.at(end), self.position, self.is_standby(options).await);
                return Err(ReceiveError::Ahead { held, server, standby });
            }
            // Another receiver, whose folder this was, may not have kept it.
            let history = {
                let archive = archive.clone();
                self.blocking(move || archive.history(held)).await
            };
            match history {
                Err(ArchiveError::NoHistory(_)) => drop(self.fetch_histories(archive, held).await?),
                other => drop(other?),
            }
            return Ok(resumption);
        }
        if held > self.position.tli() {
            return Err(ReceiveError::OtherHistory { held, server: self.position.tli() });
        }
        let histories = self.ask_histories(self.position.tli()).await?;
        let Some(switch) = histories.route.switch_from(held) else {
            return Err(ReceiveError::OtherHistory { held, server: self.position.tli() });
        };
        if resumption.start.lsn() < switch.at {
            self.store(archive, histories).await?;
            return Ok(resumption);
        }
        let next = NextTimeline { tli: histories.route.after(held), at: switch.at };
        let end = resumption.old.map(|old| old.valid);
        drop(resumption);
        self.go_over(archive, options, (held, end), (next, histories), tell).await
    }

    /// Whether the server is in recovery; servers before 14 tell it by SQL, and one that does not tell
    /// counts as a primary.
    async fn is_standby(&self, options: &Options) -> bool {
        if let Some(standby) = self.standby {
            return standby;
        }
        let conninfo = options.conninfo.at(&self.session);
        let session = Session::connect(&conninfo, Purpose::Sql, &options.application_name);
        let Ok(mut session) = session.await else { return false };
        let rows = session.look_up("select pg_is_in_recovery()").await.unwrap_or_default();
        rows.first().and_then(|row| row.first()?.as_deref()) == Some("t")
    }

    /// Opens the archive on the timeline that follows the one held.
    pub(super) async fn follow(
        &mut self,
        archive: &Archive,
        options: &Options,
        held: (TimelineId, Option<Lsn>),
        next: NextTimeline,
        tell: &mut impl FnMut(Event),
    ) -> Result<Resumption, ReceiveError> {
        let histories = self.ask_histories(next.tli).await?;
        self.go_over(archive, options, held, (next, histories), tell).await
    }

    /// Nothing is written before all that the server says has been found to fit.
    async fn go_over(
        &mut self,
        archive: &Archive,
        options: &Options,
        (from, held): (TimelineId, Option<Lsn>),
        (next, histories): (NextTimeline, Histories),
        tell: &mut impl FnMut(Event),
    ) -> Result<Resumption, ReceiveError> {
        if histories.route.switch_from(from).is_none_or(|switch| switch.at != next.at) {
            return Err(ReceiveError::NextTimeline(next.tli));
        }
        // A standby is promoted a little behind its primary; much further behind it is another past,
        // or a standby that had fallen behind: the operator knows.
        let wanted = options.follow.is_some_and(|tli| tli == self.position.tli() || tli == next.tli);
        let passed = held.filter(|held| *held > next.at);
        if let Some(held) = passed
            && held.saturating_sub(next.at) > self.segment_size.bytes().max(NEAR)
            && !wanted
        {
            return Err(ReceiveError::ForkedBefore { from, to: next.tli, at: next.at, held });
        }
        let route = self.store(archive, histories).await?;
        if let Some(held) = passed {
            tell(Event::ForkPassed { held: Pos::new(from, held), fork: Pos::new(next.tli, next.at) });
        }
        self.begin(archive, route, Pos::new(next.tli, next.at)).await
    }

    /// Has the history of `tli`, and those of all its ancestors, in the archive before the first
    /// byte of it.
    pub(super) async fn fetch_histories(
        &mut self,
        archive: &Archive,
        tli: TimelineId,
    ) -> Result<History, ReceiveError> {
        let histories = self.ask_histories(tli).await?;
        self.store(archive, histories).await
    }

    /// All of them together are bounded: a server may name what it likes.
    async fn ask_histories(&mut self, tli: TimelineId) -> Result<Histories, ReceiveError> {
        if tli == TimelineId::FIRST {
            return Ok(Histories { route: History::first(), files: Vec::new() });
        }
        let content = self.session.timeline_history(tli).await?;
        let parse = |tli, content: &Bytes| History::parse(tli, content).map_err(|_| ReceiveError::NextTimeline(tli));
        let route = parse(tli, &content)?;
        let mut files = Vec::new();
        let mut bytes = content.len();
        for ancestor in route.switches().iter().map(|switch| switch.from) {
            if ancestor != TimelineId::FIRST {
                match self.session.timeline_history(ancestor).await {
                    Ok(content) => {
                        bytes += content.len();
                        if bytes > MAX_HISTORIES {
                            return Err(ReceiveError::NextTimeline(tli));
                        }
                        files.push((parse(ancestor, &content)?, content));
                    }
                    // Servers remove nothing here, but a restored one may lack those of long ago.
                    Err(e) if e.condition() == Some(Condition::WalRemoved) => {
                        tracing::warn!("the server has no history file of timeline {ancestor}");
                    }
                    Err(e) => return Err(e.into()),
                }
            }
        }
        files.push((route.clone(), content));
        Ok(Histories { route, files })
    }

    /// What is missing, once the server has said that it does not have it.
    pub(super) async fn gap(&mut self, options: &Options, held: Pos) -> ReceiveError {
        let kept = match options.slot.name() {
            Some(name) => self.find_slot(&options.conninfo, &options.application_name, name).await.ok().flatten(),
            None => None,
        };
        let kept_from = kept.and_then(|standing| standing.position()).map(Pos::lsn);
        ReceiveError::Gap(Box::new(Gap { held, server: self.position, kept_from }))
    }
}

/// A timeline's history, and the files that tell it: those of its ancestors, and its own last.
struct Histories {
    route: History,
    files: Vec<(History, Bytes)>,
}

impl Upstream {
    /// Opens the archive at the start of the segment that holds `at`.
    pub(super) async fn begin(&self, archive: &Archive, route: History, at: Pos) -> Result<Resumption, ReceiveError> {
        let segment = Segment::containing(at, archive.size());
        let archive = archive.clone();
        Ok(self.blocking(move || archive.begin(&route, segment)).await?)
    }

    /// Keeps history files. A timeline of which WAL is held has one past and no other.
    async fn store(&self, archive: &Archive, histories: Histories) -> Result<History, ReceiveError> {
        let archive = archive.clone();
        let Histories { route, files } = histories;
        self.blocking(move || {
            let held = archive.list()?.timelines();
            for (history, _) in files.iter().filter(|(history, _)| held.contains(&history.tli())) {
                match archive.history(history.tli()) {
                    Ok(ours) if ours != *history => {
                        return Err(ReceiveError::OtherHistory { held: ours.tli(), server: route.tli() });
                    }
                    Ok(_) | Err(ArchiveError::NoHistory(_)) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            for (history, content) in files {
                archive.store_history(history.tli(), &content)?;
            }
            Ok(route)
        })
        .await
    }

    /// Runs what waits for the disk off the task. A panic in it goes on here. Whoever drops this before
    /// its end must wait for [`Upstream::at_rest`] before the archive's lock is let go.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let busy = Arc::clone(&self.busy).lock_owned().await;
        let work = move || {
            let _busy = busy;
            work()
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        }
    }

    /// Waits until nothing works on the archive.
    pub(super) async fn at_rest(&self) {
        drop(self.busy.lock().await);
    }
}
