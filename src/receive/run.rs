//! Receiving for as long as it is wanted: connect, go on where the archive ends, stream, and after
//! whatever ends a connection decide whether to go on.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::pipe::{Closed, Pipe};
use super::retry::{Outage, Setback, random};
use super::setup::{Standing, Upstream};
use super::stream::{Ended, stream};
use super::{Ending, Event, Finished, Options, ReceiveError, Receiver, Settings, Slot, Violation};
use crate::archive::{Archive, OldEnd, Resumption};
use crate::connection::{Conninfo, Error as SessionError, Started, StreamEnd};
use crate::disk::Trouble;
use crate::protocol::{Condition, NextTimeline, SlotName};
use crate::wal::{Lsn, Pos, Segment};

/// How often a full disk is looked at.
const ROOM_AGAIN: Duration = Duration::from_secs(5);
/// How often it is told that it is still full.
const STILL_FULL: Duration = Duration::from_secs(300);
/// A slot that our own dead connection holds is free after the server's timeout and a little more; a
/// server that has none keeps it until its network gives up, and is waited for so long.
const RELEASE: Duration = Duration::from_secs(2);
const NO_TIMEOUT: Duration = Duration::from_secs(60);
/// How many places that did not verify are asked for again without any progress.
const MOST_BROKEN: usize = 5;
/// How long the server may take to answer our end of the stream.
const FAREWELL: Duration = Duration::from_secs(5);

/// Receives until the end that `options` names, until `stop`, or until it cannot go on. The archive
/// must be locked by the caller.
///
/// # Errors
/// When going on needs the operator. Everything that was reported as durable is so.
pub async fn receive(
    first: Upstream,
    archive: &Archive,
    options: &Options,
    stop: &CancellationToken,
    tell: &mut impl FnMut(Event),
) -> Result<Finished, ReceiveError> {
    archive.sweep()?;
    let retry = options.retry.unwrap_or_default();
    let mut doubts = Doubts::default();
    let mut upstream = Some(first);
    let mut conninfo = options.conninfo.clone();
    loop {
        let mut target = None;
        let round = async {
            let mut upstream = match upstream.take() {
                Some(first) => first,
                None => {
                    let connecting = Upstream::connect(&conninfo, &options.application_name);
                    let Some(again) = stop.run_until_cancelled(connecting).await else {
                        return Ok(Some(Finished::Stopped));
                    };
                    again?
                }
            };
            target = Some(upstream.session.target().to_owned());
            Box::pin(session(&mut upstream, archive, options, &mut doubts, stop, tell)).await
        };
        let error = match round.await {
            Ok(Some(finished)) => return Ok(finished),
            Ok(None) => ReceiveError::Ended,
            Err(error) => error,
        };
        if stop.is_cancelled() && error.is_of_connection() {
            return Ok(Finished::Stopped);
        }
        let now = Instant::now();
        let asked_again = doubts.may_ask_again(&error, archive, tell);
        let unfit = doubts.pass_over(&error, target, &options.conninfo);
        let outlook = if unfit.passes { Outlook::Passes } else { doubts.outlook(now, &error) };
        let elsewhere = unfit.elsewhere;
        let passed_over = elsewhere.is_some().then(|| doubts.passed_over.last().cloned()).flatten();
        conninfo = elsewhere.unwrap_or_else(|| options.conninfo.clone());
        if !asked_again && (options.retry.is_none() || outlook == Outlook::Final) {
            return Err(error);
        }
        let lasts = outlook == Outlook::Lasts;
        let Setback { failures, away, news } = doubts.outage.failed(now, &error.to_string(), lasts);
        let wait = retry.wait(failures, random());
        let full = is_full(&error);
        tell(Event::Disconnected { error, lasts, news, away, wait, passed_over });
        if !rest(wait, stop).await || full && !room(archive, stop, tell).await {
            return Ok(Finished::Stopped);
        }
    }
}

/// What has gone wrong before, and is final if it goes wrong again.
#[derive(Debug, Default)]
struct Doubts {
    /// A stream has run. What the server refuses from now on is worth another try: an operator who
    /// mends it finds the receiver at work.
    streamed: bool,
    /// Since when the slot has been in use.
    in_use: Option<Instant>,
    /// After how much silence the server gives up a connection.
    sender_timeout: Option<Duration>,
    /// The server did not have the WAL that comes next.
    removed: bool,
    /// Nor does it have the WAL of a hole, although the slot should have kept it.
    unfillable: bool,
    /// Where receiving begins anew behind a gap that the operator has accepted.
    accepted: Option<Pos>,
    /// The slot cannot be used any more.
    slot_lost: bool,
    slot_remade: bool,
    /// Records that did not verify.
    broken: AskedFor,
    /// Where to begin again because of it.
    from: Option<Segment>,
    outage: Outage,
    /// Servers that do not fit what is held, one after the other since a stream ran or all were tried.
    passed_over: Vec<String>,
    /// One of them may yet catch up.
    one_is_behind: bool,
    /// The server that streamed last.
    target: Option<String>,
}

/// What comes of a server that does not fit what is held.
struct Unfit {
    /// Where to connect next, if not to any of the list.
    elsewhere: Option<Conninfo>,
    /// One of the list may do, now or later.
    passes: bool,
}

/// What is to be expected after an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outlook {
    /// It may pass by itself.
    Passes,
    /// Somebody must do something, which a later try will find done.
    Lasts,
    /// Trying again is of no use, or would be wrong.
    Final,
}

impl Doubts {
    /// Whether the server has said for the first time what would be final, and is asked once more.
    fn may_ask_again(&mut self, error: &ReceiveError, archive: &Archive, tell: &mut impl FnMut(Event)) -> bool {
        match error {
            ReceiveError::Session(e) if e.condition() == Some(Condition::WalRemoved) => {
                !std::mem::replace(&mut self.removed, true)
            }
            // It is made anew.
            ReceiveError::Session(_) if self.slot_lost => true,
            ReceiveError::NotValid { tli, broken } if self.broken.once_more(broken.whole) => {
                let from = Segment::containing(Pos::new(*tli, broken.whole), archive.size());
                self.from = Some(from);
                tell(Event::Again { broken: *broken, from });
                true
            }
            _ => false,
        }
    }

    /// Where to connect next, if it is this server that does not fit and another of the list may: a
    /// standby that is behind, a primary of the past, another cluster. When none is left, all are tried
    /// again.
    fn pass_over(&mut self, error: &ReceiveError, target: Option<String>, conninfo: &Conninfo) -> Unfit {
        let unfit = is_unfit(error);
        self.passed_over.extend(target.filter(|_| unfit));
        self.one_is_behind |= matches!(error, ReceiveError::Ahead { standby: true, .. });
        let elsewhere = if unfit { conninfo.without(&self.passed_over) } else { None };
        let mut passes = elsewhere.is_some();
        if elsewhere.is_none() {
            self.passed_over.clear();
            passes = std::mem::take(&mut self.one_is_behind) && unfit;
        }
        Unfit { elsewhere, passes }
    }

    fn outlook(&mut self, now: Instant, error: &ReceiveError) -> Outlook {
        let in_use = matches!(error, ReceiveError::Session(e) if e.condition() == Some(Condition::InUse));
        if in_use {
            let since = *self.in_use.get_or_insert(now);
            let limit = self.sender_timeout.unwrap_or(NO_TIMEOUT) + RELEASE;
            if now.saturating_duration_since(since) < limit {
                return Outlook::Passes;
            }
        }
        let passes = match error {
            ReceiveError::Ended | ReceiveError::Violation(Violation::Silent(_)) => true,
            ReceiveError::Connect(e) => e.is_transient(),
            ReceiveError::Session(e) => e.is_transient(),
            ReceiveError::Ahead { standby, .. } => *standby,
            other => is_full(other),
        };
        let refused = match error {
            ReceiveError::Connect(_) | ReceiveError::NoSlot(_) | ReceiveError::SlotPosition { .. } => true,
            ReceiveError::Session(e) => e.condition().is_some_and(|condition| condition != Condition::WalRemoved),
            _ => false,
        };
        match (passes, refused && self.streamed) {
            (true, _) => Outlook::Passes,
            (false, true) => Outlook::Lasts,
            (false, false) => Outlook::Final,
        }
    }

    /// A stream begins.
    fn streams(&mut self, upstream: &Upstream, tell: &mut impl FnMut(Event)) {
        (self.streamed, self.in_use, self.slot_remade) = (true, None, false);
        self.passed_over.clear();
        self.one_is_behind = false;
        self.target = Some(upstream.session.target().to_owned());
        if let Some((away, behind)) = self.outage.streams(Instant::now(), upstream.position.lsn()) {
            tell(Event::Reconnected { away, behind });
        }
    }

    /// The writer has kept all before `received`.
    fn passed(&mut self, received: Lsn) {
        self.outage.received(received);
        if self.from.is_some_and(|from| received >= from.end()) {
            self.from = None;
        }
    }
}

/// Places that were asked for again, since one further on than all before was found broken.
#[derive(Debug, Default)]
struct AskedFor(Vec<Lsn>);

impl AskedFor {
    /// Whether to ask for the record at `at` again: not for one that has come twice since there was
    /// progress, and not for one after the other for ever.
    fn once_more(&mut self, at: Lsn) -> bool {
        if self.0.iter().all(|before| *before < at) {
            self.0.clear();
        }
        let again = !self.0.contains(&at) && self.0.len() < MOST_BROKEN;
        if again {
            self.0.push(at);
        }
        again
    }
}

/// What one connection begins with.
struct Prepared {
    slot: Standing,
    /// What comes before it has been acknowledged.
    kept_from: Lsn,
    resumption: Resumption,
}

/// The slot, and the archive opened where it is to be gone on with. It may be dropped before its end, but
/// see [`stopped`].
async fn prepare(
    upstream: &mut Upstream,
    archive: &Archive,
    options: &Options,
    doubts: &mut Doubts,
    stop: &CancellationToken,
    tell: &mut impl FnMut(Event),
) -> Result<Prepared, ReceiveError> {
    doubts.sender_timeout = upstream.sender_timeout;
    upstream.check(archive)?;
    let archive = &archive.until(stop);
    if options.synchronous && upstream.session.show("synchronous_commit").await? == "remote_apply" {
        tell(Event::RemoteApply);
    }
    let mut made = false;
    let mut told = |event: Event| {
        made |= matches!(event, Event::SlotMade(_));
        tell(event);
    };
    let slot = upstream.prepare_slot(options, std::mem::take(&mut doubts.slot_lost), &mut told).await?;
    if let (true, Some(name), Some(before)) = (made, options.slot.name(), &doubts.target)
        && before != upstream.session.target()
    {
        tell(Event::SlotLeft { slot: name.clone(), target: before.clone() });
    }
    let kept_from = slot.position().map_or(Lsn::ZERO, |slot| slot.lsn().min(upstream.position.lsn()));
    let resumption = match doubts.from {
        Some(from) => {
            let route = upstream.fetch_histories(archive, from.tli()).await?;
            upstream.begin(archive, route, from.start_pos()).await?
        }
        None => {
            // What the server still has is gone on with; an island is for when it has not.
            let anew = doubts.accepted.or_else(|| options.island.filter(|_| doubts.removed));
            let slot = if doubts.unfillable { &Standing::Nowhere } else { &slot };
            upstream.open(archive, options, slot, anew, tell).await?
        }
    };
    Ok(Prepared { slot, kept_from, resumption })
}

/// What `work` comes to, unless told to stop meanwhile.
async fn unless_stopped<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    // In a box: one future holds all that come after one another in it, and a thread's stack is small.
    stop.run_until_cancelled(Box::pin(work)).await.filter(|_| !stop.is_cancelled())
}

fn announce(resumption: &Resumption, tell: &mut impl FnMut(Event)) {
    tell(Event::Begins(resumption.start));
    if resumption.filling {
        tell(Event::Filling(resumption.start));
    } else if resumption.after_hole {
        tell(Event::AfterHole(resumption.start));
    }
}

/// The end of a session that was told to stop before its stream began.
async fn stopped(upstream: &Upstream) -> Result<Option<Finished>, ReceiveError> {
    upstream.at_rest().await;
    Ok(Some(Finished::Stopped))
}

/// One connection, over as many timelines as it shows. `None` if the server ended it.
async fn session(
    upstream: &mut Upstream,
    archive: &Archive,
    options: &Options,
    doubts: &mut Doubts,
    stop: &CancellationToken,
    tell: &mut impl FnMut(Event),
) -> Result<Option<Finished>, ReceiveError> {
    tell(Event::Connected(Box::new(options.conninfo.at(&upstream.session))));
    let preparing = prepare(upstream, archive, options, doubts, stop, tell);
    let prepared = unless_stopped(stop, preparing).await;
    let Some(prepared) = prepared else { return stopped(upstream).await };
    let Prepared { slot, mut kept_from, mut resumption } = prepared?;
    announce(&resumption, tell);
    let mut filling = resumption.filling;
    loop {
        let start = resumption.start;
        let held = resumption.old.map_or(start, |old| start.at(old.valid));
        let server = upstream.position;
        let lost = |slot: &SlotName| ReceiveError::SlotLost { slot: slot.clone(), held, server };
        if let (Slot::Existing(name), None) = (&options.slot, slot.position()) {
            match unless_stopped(stop, upstream.is_slot_lost(options)).await {
                None => return Ok(Some(Finished::Stopped)),
                Some(true) => return Err(lost(name)),
                Some(false) => {}
            }
        }
        if options.end.is_some_and(|end| start.lsn() > end) {
            return Ok(Some(Finished::EndPosition));
        }
        let streamed = one_stream(upstream, resumption, kept_from, options, doubts, stop, tell).await;
        let (next, old) = match streamed {
            Ok(OneStream::Finished(finished)) => return Ok(Some(finished)),
            Ok(OneStream::ServerShutdown) => return Ok(None),
            Ok(OneStream::Filled) => {
                upstream.position = upstream.session.identify_system().await?.position;
                let opened = archive.until(stop);
                let opening = upstream.open(&opened, options, &slot, None, tell);
                let Some(next) = unless_stopped(stop, opening).await else { return stopped(upstream).await };
                resumption = next?;
                announce(&resumption, tell);
                filling = resumption.filling;
                continue;
            }
            Ok(OneStream::Next(next, old)) => (next, old),
            Err(ReceiveError::Session(e)) if is_removed(&e) && doubts.removed && filling => {
                // The hole stays, and is told; what comes after it must not be lost too.
                (doubts.unfillable, doubts.removed) = (true, false);
                return Err(e.into());
            }
            Err(ReceiveError::Session(e)) if is_removed(&e) && doubts.removed => {
                if options.accept_gap != Some(held.lsn()) || doubts.accepted.is_some() {
                    let gap = unless_stopped(stop, upstream.gap(options, held)).await;
                    return gap.map_or(Ok(Some(Finished::Stopped)), Err);
                }
                // It stays the same place until it is reached: one that moved on would lose more unseen.
                let kept = slot.position().filter(|slot| slot.lsn() > held.lsn()).unwrap_or(upstream.position);
                let from = Segment::containing(kept, archive.size()).start_pos();
                archive.note_gap(held, from, Timestamp::now())?;
                (doubts.accepted, doubts.removed) = (Some(from), false);
                tell(Event::GapAccepted { held, from });
                return Err(e.into());
            }
            Err(ReceiveError::Session(e)) if upstream.is_invalidated(&e) => {
                let ours = matches!(options.slot, Slot::Ensured(_));
                doubts.slot_lost = ours && !std::mem::replace(&mut doubts.slot_remade, true);
                return Err(match &options.slot {
                    Slot::Existing(name) => lost(name),
                    _ => e.into(),
                });
            }
            Err(e) => return Err(e),
        };
        let tail = Segment::containing(start.at(next.at), archive.size());
        if archive.list()?.stored(tail).partial {
            tell(Event::TailKept(tail));
        }
        let opened = archive.until(stop);
        let followed = unless_stopped(stop, upstream.follow(&opened, options, (start.tli(), old), next)).await;
        let Some(followed) = followed else { return stopped(upstream).await };
        resumption = followed?;
        tell(Event::Switched(Pos::new(next.tli, next.at)));
        kept_from = next.at;
    }
}

fn is_removed(e: &SessionError) -> bool {
    e.condition() == Some(Condition::WalRemoved)
}

/// How one timeline's stream ended.
enum OneStream {
    Finished(Finished),
    ServerShutdown,
    /// What a hole lacked has come: what is held goes on behind it.
    Filled,
    /// The timeline that follows, and what is held of the one that ended.
    Next(NextTimeline, Option<OldEnd>),
}

async fn one_stream(
    upstream: &mut Upstream,
    resumption: Resumption,
    kept_from: Lsn,
    options: &Options,
    doubts: &mut Doubts,
    stop: &CancellationToken,
    tell: &mut impl FnMut(Event),
) -> Result<OneStream, ReceiveError> {
    let Resumption { start, old, mut writer, .. } = resumption;
    writer.bound(upstream.position.lsn());
    let starting = unless_stopped(stop, upstream.session.start_replication(options.slot.name(), start));
    let Some(started) = starting.await else { return Ok(OneStream::Finished(Finished::Stopped)) };
    match started {
        Ok(Started::Streaming) => {}
        Ok(Started::TimelineEnded(next)) => return Ok(OneStream::Next(next, old)),
        Err(e) => {
            return Err(match options.slot.name() {
                Some(name) if e.condition() == Some(Condition::Missing) => ReceiveError::NoSlot(name.clone()),
                _ => e.into(),
            });
        }
    }
    doubts.streams(upstream, tell);
    tell(Event::Streaming(start));
    let mut receiver = receiver(upstream, options, start, old, kept_from);
    let mut pipe = Pipe::new(writer)?;
    let streamed = stream(&mut upstream.session, &mut receiver, &mut pipe, stop, tell).await;
    if receiver.received() > start.lsn() {
        (doubts.removed, doubts.accepted) = (false, None);
    }
    // All is durable and reported, and the server counts the seconds until it has our word; what the
    // writer does at its end may take some.
    let end = match &streamed {
        Ok(Ended::By(Ending::Timeline)) => Some(upstream.session.end_stream().await),
        // A server that does not answer changes nothing.
        Ok(Ended::By(_)) => timeout(FAREWELL, upstream.session.end_stream()).await.ok(),
        _ => None,
    };
    // What the writer has to say goes before a lost connection: it may be the reason.
    let filled = pipe.close().await? == Closed::Filled;
    doubts.passed(receiver.received());
    let received = OldEnd { valid: receiver.received(), touched: receiver.received() };
    match streamed? {
        Ended::ServerShutdown => Ok(OneStream::ServerShutdown),
        Ended::WriterGone if filled => match unless_stopped(stop, upstream.session.end_stream()).await {
            None => Ok(OneStream::Finished(Finished::Stopped)),
            Some(ended) => ended.map(|_| OneStream::Filled).map_err(Into::into),
        },
        Ended::WriterGone => Err(ReceiveError::Ended),
        Ended::By(Ending::Timeline) => match end.transpose()? {
            Some(StreamEnd::NextTimeline(next)) => Ok(OneStream::Next(next, Some(received))),
            Some(StreamEnd::Ended) | None => Ok(OneStream::ServerShutdown),
        },
        Ended::By(ending) => {
            let stopped = ending == Ending::Stopped;
            Ok(OneStream::Finished(if stopped { Finished::Stopped } else { Finished::EndPosition }))
        }
    }
}

/// A stream's machine. `kept_from` is where the slot stands, or the timeline forked off: what comes
/// before it has been acknowledged, and comes again because segments are received from their start.
fn receiver(upstream: &Upstream, options: &Options, start: Pos, old: Option<OldEnd>, kept_from: Lsn) -> Receiver {
    let settings = Settings {
        synchronous: options.synchronous,
        sync_interval: options.sync_interval,
        status_interval: options.status_interval,
        sender_timeout: upstream.sender_timeout,
        report_flush: options.synchronous || options.slot.name().is_some(),
        end: options.end,
    };
    // No session can have reported more than the server has.
    let held = old.map_or(Lsn::ZERO, |old| old.touched.min(upstream.position.lsn()));
    Receiver::new(Instant::now(), settings, start.tli(), start.lsn(), held.max(kept_from))
}

/// Waits; false if told to stop meanwhile.
async fn rest(wait: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(wait) => true,
    }
}

/// After the disk was full, waits until a segment fits again, unless told to stop. A disk that does
/// not say how much room it has is tried again after a while.
async fn room(archive: &Archive, stop: &CancellationToken, tell: &mut impl FnMut(Event)) -> bool {
    let mut told = Instant::now();
    while archive.room().is_ok_and(|room| room < archive.size().bytes()) {
        if told.elapsed() >= STILL_FULL {
            told = Instant::now();
            tell(Event::StillFull);
        }
        if !rest(ROOM_AGAIN, stop).await {
            return false;
        }
    }
    true
}

/// Whether it is this server that does not fit what is held.
fn is_unfit(error: &ReceiveError) -> bool {
    matches!(
        error,
        ReceiveError::Ahead { standby: true, .. }
            | ReceiveError::OtherCluster { .. }
            | ReceiveError::OtherHistory { .. }
    )
}

fn is_full(error: &ReceiveError) -> bool {
    error.disk().is_some_and(|e| e.trouble() == Trouble::Full)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of these places are asked for again, in this order.
    fn asked(places: &[u64]) -> Vec<bool> {
        let mut asked_for = AskedFor::default();
        places.iter().map(|at| asked_for.once_more(Lsn::new(*at))).collect()
    }

    #[test]
    fn a_broken_record_is_asked_for_once_and_progress_counts_anew() {
        assert_eq!(asked(&[10, 10]), [true, false]);
        assert_eq!(asked(&[10, 20, 30, 40, 50, 60, 70, 80]), [true; 8]);
        assert_eq!(asked(&[10, 20, 10, 20]), [true, true, true, false]);
        assert_eq!(asked(&[90, 80, 70, 60, 50, 40, 30]), [true, true, true, true, true, false, false]);
        assert_eq!(asked(&[90, 80, 70, 60, 50, 95, 90]), [true; 7]);
    }
}
