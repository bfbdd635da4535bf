//! `walhold receive`

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory};
use indicatif::{HumanBytes, HumanDuration};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::guard::{Action, Guard};
use super::heal::{Healer, News};
use super::values::{WalCompression, duration, size, some_time, timeline, who};
use super::{Failure, connect, signals};
use crate::archive::{Archive, Compressed, Compressor};
use crate::codec::Packing;
use crate::connection::Conninfo;
use crate::disk::{Disk, Lock, Real};
use crate::protocol::SlotName;
use crate::receive::{Event, Finished, Options, Retry, Slot, Upstream, receive};
use crate::repository::Task;
use crate::wal::{Lsn, TimelineId};

/// The slot that `--repo` uses, and the name under which the server sees the receiver.
const NAME: &str = "walhold";

/// How often it is looked whether the last segments are compressed, and whether a backup has ended.
const LOOK_FOR_SEGMENTS: Duration = Duration::from_millis(20);
const LOOK_FOR_BACKUP: Duration = Duration::from_secs(1);
/// How long receiving may take to end in good order before its slot is dropped.
const FAREWELL: Duration = Duration::from_secs(10);

/// Stream WAL from a server into a repository, or into a plain folder
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Repository; it is made if it is missing
    #[arg(long, value_name = "DIR", env = "WALHOLD_REPO", required_unless_present = "directory")]
    repo: Option<PathBuf>,
    /// Plain folder, as pg_receivewal writes it
    #[arg(short = 'D', long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Replication slot, which must exist [default: with --repo "walhold", made if it is missing]
    #[arg(short = 'S', long, value_name = "NAME", env = "WALHOLD_SLOT")]
    slot: Option<SlotName>,
    /// Use no slot: the server may then remove WAL before it has been received
    #[arg(long, conflicts_with = "ensure_slot")]
    no_slot: bool,
    /// Make the slot named by --slot, with reserved WAL, if it is missing
    #[arg(long, requires = "slot")]
    ensure_slot: bool,
    /// Sync, and report it, whenever nothing more has arrived: for synchronous replication
    #[arg(long, env = "WALHOLD_SYNCHRONOUS", value_parser = clap::builder::FalseyValueParser::new())]
    synchronous: bool,
    /// Longest time that received WAL waits for a sync
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = some_time, env = "WALHOLD_SYNC_INTERVAL")]
    sync_interval: Duration,
    /// Longest time between two statuses to the server (0: only when there is a reason)
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = duration, env = "WALHOLD_STATUS_INTERVAL")]
    status_interval: Duration,
    /// Stop when WAL beyond this position has been received
    #[arg(short = 'E', long, value_name = "LSN")]
    endpos: Option<Lsn>,
    /// Do not connect again when the connection ends
    #[arg(short = 'n', long)]
    no_loop: bool,
    /// Go on with this timeline of the server, wherever it forked off from what is held
    #[arg(long, value_name = "N", value_parser = timeline)]
    follow_timeline: Option<TimelineId>,
    /// Watch how much WAL the slot keeps on the server, for a receiver that cannot keep up may fill its disk
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "no_slot", env = "WALHOLD_MAX_SLOT_LAG")]
    max_slot_lag: Option<u64>,
    /// What to do when it keeps more
    #[arg(long, value_enum, default_value_t = Action::Warn, requires = "max_slot_lag", env = "WALHOLD_ON_SLOT_LAG")]
    on_slot_lag: Action,
    /// Accept that WAL is missing from here on, where the archive ends and the server cannot go on: receiving begins anew
    #[arg(long, value_name = "LSN")]
    accept_gap: Option<Lsn>,
    /// Do not wait for the storage: a power cut may then lose anything (only with -D)
    #[arg(long, requires = "directory", conflicts_with = "synchronous")]
    no_sync: bool,
    /// Compress complete segments: none, gzip, lz4 or zstd, with a level as in zstd:3 [default: with --repo zstd:1, with
    /// -D none]
    #[arg(short = 'Z', long, value_name = "METHOD", env = "WALHOLD_WAL_COMPRESS")]
    compress: Option<WalCompression>,
    #[command(flatten)]
    connection: connect::ConnectionFlags,
}

/// Where the WAL goes; locked while it lives.
struct Target {
    archive: Archive,
    /// Ends before the lock is let go.
    compressor: Option<Compressor>,
    opened: Option<connect::Opened>,
    _lock: Lock,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let runtime = super::runtime()?;
    let done = runtime.block_on(receive_until_told(arguments));
    // A disk that hangs must not keep a program that has said its last word.
    runtime.shutdown_background();
    done
}

async fn receive_until_told(arguments: &Arguments) -> Result<(), Failure> {
    let (conninfo, upstream, application_name) = arguments.connection.connect(NAME).await?;
    if arguments.max_slot_lag.is_some() && arguments.slot()? == Slot::None {
        return Err(Failure::usage("--max-slot-lag watches a slot, and there is none").hint("name one with --slot"));
    }
    // From here on there is something to end in good order.
    let stop = signals::stop()?;
    let options = arguments.options(conninfo, application_name)?;
    let Some((target, upstream)) = arguments.wait_for_target(upstream, &options, &stop).await? else {
        return Ok(());
    };
    match receive_guarded(arguments, upstream, &target, &options, &stop).await? {
        Finished::Stopped if arguments.no_sync => {
            info!("stopped; when all that was received is durable is left to the system");
        }
        Finished::Stopped => info!("stopped; all that was received is durable"),
        Finished::EndPosition => {
            info!("received WAL beyond the end position");
            target.compress_the_rest(&stop).await;
        }
    }
    Ok(())
}

/// Receives, with what goes on beside it: healing, compression, and the guard for the server's disk.
async fn receive_guarded(
    arguments: &Arguments,
    upstream: Upstream,
    target: &Target,
    options: &Options,
    stop: &CancellationToken,
) -> Result<Finished, Failure> {
    let healer = target.opened.as_ref().map(|opened| Healer::start(opened.repository.clone()));
    let healer = healer.transpose().map_err(|e| Failure::error(format!("cannot start a thread: {e}")))?;
    let guard = arguments.guard(options);
    let mut tell = |event| {
        if let (Some(guard), Event::Connected(conninfo)) = (&guard, &event) {
            guard.look_at(conninfo);
        }
        match (&healer, &event) {
            (Some(healer), Event::Durable(durable)) => healer.tell(News::Durable(durable.pos())),
            (Some(healer), Event::Complete(segment)) => healer.tell(News::Segment(segment.end_pos())),
            _ => {}
        }
        if let (Event::Streaming(_), Some(compressor)) = (&event, &target.compressor) {
            // Not before: a receiver that is refused changes nothing.
            compressor.look();
        }
        log(event);
    };
    let exceeded = async {
        match &guard {
            Some(guard) => (guard, guard.exceeded().await),
            None => std::future::pending().await,
        }
    };
    let mut receiving = Box::pin(receive(upstream, &target.archive, options, stop, &mut tell));
    let finished = tokio::select! {
        finished = &mut receiving => finished,
        (guard, bytes) = exceeded => {
            stop.cancel();
            // If the disk hangs, its thread is left alone; the connection goes with the rest.
            let _ = tokio::time::timeout(FAREWELL, &mut receiving).await;
            drop(receiving);
            return Err(guard.act(bytes).await);
        }
    };
    drop(receiving);
    if let (Err(_), Some(opened)) = (&finished, &target.opened) {
        opened.clean_up();
    }
    Ok(finished?)
}

impl Target {
    fn new(
        archive: Archive,
        opened: Option<connect::Opened>,
        lock: Lock,
        packing: Option<Packing>,
    ) -> Result<Self, Failure> {
        let cannot = |e: std::io::Error| Failure::error(format!("cannot start the thread that compresses: {e}"));
        let compressor = packing.map(|packing| Compressor::start(&archive, packing, compressed)).transpose();
        let compressor = compressor.map_err(cannot)?;
        let archive = match &compressor {
            Some(compressor) => archive.compressed_by(compressor),
            None => archive,
        };
        Ok(Self { archive, compressor, opened, _lock: lock })
    }

    /// Waits for what is still to be compressed, unless told to stop.
    async fn compress_the_rest(&self, stop: &CancellationToken) {
        let Some(compressor) = &self.compressor else { return };
        compressor.finish();
        while !compressor.has_ended() && stop.run_until_cancelled(tokio::time::sleep(LOOK_FOR_SEGMENTS)).await.is_some()
        {
        }
    }
}

fn compressed(what: Compressed) {
    match what {
        Compressed::Done { segment, bytes } => debug!("segment {segment} is compressed to {bytes} bytes"),
        Compressed::Kept { segment, why } => warn!("segment {segment} stays as it is, not compressed: {why}"),
        Compressed::NotListed(e) => warn!("complete segments are not compressed: {e}"),
    }
}

impl Arguments {
    /// A flag wins over a variable; two flags that contradict each other are an error.
    pub(super) fn settle(&mut self, given: &ArgMatches) -> Result<(), clap::Error> {
        let typed = |id| given.value_source(id) == Some(ValueSource::CommandLine);
        let conflict = |one: &str, other: &str| {
            let message = format!("the argument '{one}' cannot be used with '{other}'\n");
            Err(super::Arguments::command().error(ErrorKind::ArgumentConflict, message))
        };
        if self.directory.is_some() {
            if typed("repo") {
                return conflict("--repo", "--directory");
            }
            self.repo = None;
        }
        if self.no_sync {
            // Nothing would be reported as durable, and the slot would keep WAL for ever.
            if typed("slot") {
                return conflict("--slot", "--no-sync");
            }
            self.slot = None;
        }
        if self.no_slot {
            if typed("slot") {
                return conflict("--slot", "--no-slot");
            }
            self.slot = None;
        }
        Ok(())
    }

    fn options(&self, conninfo: Conninfo, application_name: String) -> Result<Options, Failure> {
        Ok(Options {
            conninfo,
            application_name,
            slot: self.slot()?,
            synchronous: self.synchronous,
            sync_interval: self.sync_interval,
            status_interval: Some(self.status_interval).filter(|interval| !interval.is_zero()),
            end: self.endpos,
            retry: (!self.no_loop).then(Retry::default),
            follow: self.follow_timeline,
            accept_gap: self.accept_gap,
            island: None,
            // A repository promises that its WAL begins where its slot does.
            may_pass_over: self.repo.is_none(),
        })
    }

    /// Where the WAL goes, once no backup holds it any more; `None` if told to stop meanwhile.
    async fn wait_for_target(
        &self,
        mut upstream: Upstream,
        options: &Options,
        stop: &CancellationToken,
    ) -> Result<Option<(Target, Upstream)>, Failure> {
        let mut waited = false;
        let target = loop {
            if let Some(target) = self.target(&upstream)? {
                break target;
            }
            if !std::mem::replace(&mut waited, true) {
                info!("a backup holds the repository while it streams its own WAL; receiving begins when it has ended");
            }
            if stop.run_until_cancelled(tokio::time::sleep(LOOK_FOR_BACKUP)).await.is_none() {
                return Ok(None);
            }
        };
        if waited {
            // What the server said of itself has grown old.
            let connecting = Upstream::connect(&options.conninfo, &options.application_name);
            let Some(again) = stop.run_until_cancelled(connecting).await else { return Ok(None) };
            upstream = again?;
        }
        Ok(Some((target, upstream)))
    }

    fn guard(&self, options: &Options) -> Option<Guard> {
        let limit = self.max_slot_lag.filter(|_| options.slot != Slot::None)?;
        Some(Guard::new(options.conninfo.clone(), options.slot.clone(), limit, self.on_slot_lag))
    }

    fn slot(&self) -> Result<Slot, Failure> {
        let default = || NAME.parse().map(Slot::Ensured).map_err(|e| Failure::error(format!("{e}")));
        match &self.slot {
            _ if self.no_slot => Ok(Slot::None),
            Some(name) if self.ensure_slot => Ok(Slot::Ensured(name.clone())),
            Some(name) => Ok(Slot::Existing(name.clone())),
            None if self.repo.is_some() => default(),
            None => Ok(Slot::None),
        }
    }

    /// `None` while a backup holds the repository: that ends by itself, and a service waits for it.
    fn target(&self, upstream: &Upstream) -> Result<Option<Target>, Failure> {
        match (&self.repo, &self.directory) {
            (Some(repo), _) => {
                let opened = connect::repository(upstream, repo)?;
                let lock = match opened.repository.lock(&who(Task::Receive)) {
                    Err(e) if !self.no_loop && e.holder().is_some_and(|holder| holder.task == Task::Backup) => {
                        return Ok(None);
                    }
                    lock => lock?,
                };
                let packing = self.compress.map_or(Some(Packing::FAST), |WalCompression(packing)| packing);
                Target::new(opened.repository.archive(), Some(opened), lock, packing).map(Some)
            }
            (None, Some(directory)) => self.folder(directory, upstream).map(Some),
            (None, None) => Err(Failure::usage("name a repository (--repo) or a folder (-D)")),
        }
    }

    fn folder(&self, directory: &Path, upstream: &Upstream) -> Result<Target, Failure> {
        let disk: Arc<dyn Disk> = Arc::new(if self.no_sync { Real::without_syncs() } else { Real::new() });
        if disk.metadata(directory)?.is_none() {
            return Err(Failure::error(format!("folder {} does not exist", directory.display()))
                .hint("make it first: a mistyped name must not begin a second archive"));
        }
        let lock = disk.lock_dir(directory)?;
        let mode = upstream.file_mode;
        let (size, system_id) = (upstream.segment_size, Some(upstream.system_id));
        let archive = Archive::new(directory.to_owned(), disk, size, system_id, mode);
        Target::new(archive, None, lock, self.compress.and_then(|WalCompression(packing)| packing))
    }
}

fn log(event: Event) {
    match event {
        Event::Connected(_) => {}
        Event::Begins(at) => debug!("asking for WAL from {at} on"),
        Event::Streaming(at) => info!("streaming from {at}"),
        Event::Complete(segment) => debug!("segment {segment} is complete and durable"),
        Event::Durable(durable) => tracing::trace!("durable up to {}", durable.pos()),
        Event::Switched(at) => info!("the server goes on with timeline {}, which forked off at {}", at.tli(), at.lsn()),
        Event::ForkPassed { held, fork } => warn!(
            "timeline {} forked off at {}, {} before the end of what is held of timeline {}: commits between are none of \
             the server's; after a failover, those that had not reached the standby. If none was meant, this is a copy of the \
             server: stop, and give it a repository of its own",
            fork.tli(),
            fork.lsn(),
            HumanBytes(held.lsn().saturating_sub(fork.lsn())),
            held.tli()
        ),
        Event::TailKept(segment) => info!("the end of the old timeline stays in {segment}.partial"),
        Event::AfterHole(at) => {
            warn!("the archive has a hole before the stretch that ends at {at}; walhold verify shows it");
        }
        Event::GapAccepted { held, from } => warn!(
            "accepted a gap of {} from {held} to {from}: no backup before it can be recovered past it, so take a new one",
            HumanBytes(from.lsn().saturating_sub(held.lsn()))
        ),
        Event::Filling(at) => {
            info!("the archive has a hole from {at} on, and the slot still keeps its WAL: filling it")
        }
        Event::PassedOver { slot, before, reason } => warn!(
            "cannot find out where replication slot \"{slot}\" stands ({reason}): receiving begins with the server's \
             segment at {before}, and WAL that the slot keeps from before it is not received"
        ),
        Event::SlotMade(name) => info!("made replication slot \"{name}\", with reserved WAL"),
        Event::SlotOlder { slot, from } => warn!(
            "nothing is held yet, but replication slot \"{slot}\" is there already: receiving begins where it stands, at \
             {from}. If there should be an archive here, stop, and look whether its disk is mounted"
        ),
        Event::SlotLeft { slot, target } => warn!(
            "replication slot \"{slot}\" stays on {target}, and keeps WAL there until that server's disk is full: drop \
             it there (walhold slot drop) unless the receiver goes back to it"
        ),
        Event::HeldUp(time) => {
            warn!("the storage has not answered for {}: nothing more is acknowledged until it does", span(time))
        }
        Event::GotOn(time) => info!("the storage answers again, after {}", span(time)),
        Event::StillFull => warn!("there is still no room for a segment: receiving waits for it"),
        Event::SlotLost(name) => {
            warn!("replication slot \"{name}\" has lost its WAL and keeps nothing any more: dropped it")
        }
        Event::RemoteApply => warn!(
            "synchronous_commit is remote_apply: commits that wait for this receiver would wait for ever; \
             use on or remote_write"
        ),
        Event::Disconnected { error, news: false, wait, .. } => {
            debug!("still not connected: {error}; next try in {wait:?}");
        }
        Event::Disconnected { error, lasts, away, passed_over, .. } => {
            let next = passed_over
                .map_or_else(|| "trying again".into(), |host| format!("this was {host}; trying another host"));
            if away.is_zero() {
                warn!("disconnected: {error}; {next}");
            } else {
                warn!("not connected for {}: {error}; {next}", span(away));
            }
            let failure = Failure::from(error);
            if let Some(hint) = failure.advice().filter(|_| lasts) {
                warn!("hint: {hint}");
            }
        }
        Event::Reconnected { away, behind } => {
            info!("connected again after {}, with {} of WAL to catch up", span(away), HumanBytes(behind));
        }
        Event::Again { broken, from } => warn!("{broken}; asking for it once more, from segment {from}"),
    }
}

/// A time as a person reads it.
fn span(time: Duration) -> String {
    if time < Duration::from_secs(60) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        HumanDuration(time).to_string()
    }
}
