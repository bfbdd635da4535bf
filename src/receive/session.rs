//! One connection: the slot, the archive opened where it goes on, and a stream for each timeline that the
//! server shows.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::doubts::Doubts;
use super::pipe::{Closed, Pipe};
use super::setup::{Standing, Upstream};
use super::stream::{Ended, stream};
use super::{Ending, Event, Finished, Options, ReceiveError, Receiver, Settings, Slot};
use crate::archive::{Archive, OldEnd, Resumption};
use crate::connection::{Error as SessionError, Started, StreamEnd};
use crate::protocol::{Condition, NextTimeline};
use crate::wal::{Lsn, Pos, Segment};

/// How long the server may take to answer our end of the stream.
const FAREWELL: Duration = Duration::from_secs(5);

/// A connection, and what is received on it.
pub(super) struct Connected<'a, T> {
    pub(super) upstream: &'a mut Upstream,
    pub(super) archive: &'a Archive,
    pub(super) options: &'a Options,
    pub(super) doubts: &'a mut Doubts,
    pub(super) stop: &'a CancellationToken,
    pub(super) tell: &'a mut T,
}

/// Why a step is not followed by the next one.
enum Halt {
    /// It was told to stop.
    Stopped,
    Failed(ReceiveError),
}

impl<E: Into<ReceiveError>> From<E> for Halt {
    fn from(e: E) -> Self {
        Self::Failed(e.into())
    }
}

/// What one connection begins with.
struct Prepared {
    slot: Standing,
    /// What comes before it has been acknowledged.
    kept_from: Lsn,
    resumption: Resumption,
}

/// What a stream begins with.
struct Begun {
    start: Pos,
    /// Exclusive end of what is held on its timeline.
    held: Pos,
    /// It brings what a hole lacks.
    filling: bool,
}

/// How one timeline's stream ended.
enum OneStream {
    Finished(Finished),
    ServerShutdown,
    /// What a hole lacked has come: what is held goes on behind it.
    Filled,
    /// The timeline that follows, and the exclusive end of what is held of the one that ended.
    Next(NextTimeline, Option<Lsn>),
}

impl<T: FnMut(Event)> Connected<'_, T> {
    /// Receives over as many timelines as it shows. `None` if the server ended it.
    pub(super) async fn receive(mut self) -> Result<Option<Finished>, ReceiveError> {
        match self.streams().await {
            Ok(finished) => Ok(finished),
            Err(Halt::Failed(e)) => Err(e),
            Err(Halt::Stopped) => {
                self.upstream.at_rest().await;
                Ok(Some(Finished::Stopped))
            }
        }
    }

    async fn streams(&mut self) -> Result<Option<Finished>, Halt> {
        (self.tell)(Event::Connected(Box::new(self.options.conninfo.at(&self.upstream.session))));
        let stop = self.stop;
        let Prepared { slot, mut kept_from, mut resumption } = unless_stopped(stop, self.prepare()).await??;
        self.announce(&resumption);
        let mut filling = resumption.filling;
        loop {
            let begun = Begun::of(&resumption, filling);
            self.doubts.filling = filling;
            self.check_slot(&slot, begun.held).await?;
            if self.options.end.is_some_and(|end| begun.start.lsn() > end) {
                return Ok(Some(Finished::EndPosition));
            }
            resumption = match self.one_stream(resumption, kept_from).await {
                Ok(OneStream::Finished(finished)) => return Ok(Some(finished)),
                Ok(OneStream::ServerShutdown) => return Ok(None),
                Ok(OneStream::Filled) => {
                    let behind = self.go_on_behind(&slot).await?;
                    self.announce(&behind);
                    filling = behind.filling;
                    behind
                }
                Ok(OneStream::Next(next, held)) => {
                    kept_from = next.at;
                    self.follow(begun.start, next, held).await?
                }
                Err(Halt::Failed(ReceiveError::Session(e))) => return Err(self.refused(e, &slot, &begun).await),
                Err(halt) => return Err(halt),
            };
        }
    }

    /// The slot, and the archive opened where it is to be gone on with. It may be dropped before its end, but
    /// the archive must then be at rest before it is let go.
    async fn prepare(&mut self) -> Result<Prepared, ReceiveError> {
        let Self { upstream, archive, options, doubts, stop, tell } = self;
        doubts.sender_timeout = upstream.sender_timeout;
        upstream.check(archive)?;
        let archive = &archive.until(stop);
        if options.synchronous && upstream.session.show("synchronous_commit").await? == "remote_apply" {
            tell(Event::RemoteApply);
        }
        let slot = upstream.prepare_slot(options, std::mem::take(&mut doubts.slot_lost), tell).await?;
        if let (Standing::Made(_), Some(name), Some(before)) = (&slot, options.slot.name(), &doubts.target)
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

    fn announce(&mut self, resumption: &Resumption) {
        (self.tell)(Event::Begins(resumption.start));
        if resumption.filling {
            (self.tell)(Event::Filling(resumption.start));
        } else if resumption.after_hole {
            (self.tell)(Event::AfterHole(resumption.start));
        }
    }

    /// A slot of the operator's that stands nowhere may be one that has lost its WAL.
    async fn check_slot(&mut self, slot: &Standing, held: Pos) -> Result<(), Halt> {
        let (Slot::Existing(name), None) = (&self.options.slot, slot.position()) else { return Ok(()) };
        match unless_stopped(self.stop, self.upstream.is_slot_lost(self.options)).await? {
            true => Err(ReceiveError::SlotLost { slot: name.clone(), held, server: self.upstream.position }.into()),
            false => Ok(()),
        }
    }

    /// A hole has been filled: the archive is opened where it goes on now.
    async fn go_on_behind(&mut self, slot: &Standing) -> Result<Resumption, Halt> {
        self.upstream.position = self.upstream.session.identify_system().await?.position;
        let archive = self.archive.until(self.stop);
        let opening = self.upstream.open(&archive, self.options, slot, None, self.tell);
        Ok(unless_stopped(self.stop, opening).await??)
    }

    /// The timeline of `start` has ended; the archive is opened for the next one.
    async fn follow(&mut self, start: Pos, next: NextTimeline, held: Option<Lsn>) -> Result<Resumption, Halt> {
        let tail = Segment::containing(start.at(next.at), self.archive.size());
        if self.archive.list()?.stored(tail).partial {
            (self.tell)(Event::TailKept(tail));
        }
        let switched = Pos::new(next.tli, next.at);
        let archive = self.archive.until(self.stop);
        let following = self.upstream.follow(&archive, self.options, (start.tli(), held), next, self.tell);
        let resumption = unless_stopped(self.stop, following).await??;
        (self.tell)(Event::Switched(switched));
        Ok(resumption)
    }

    /// What becomes of a stream that the server refused, or broke off.
    async fn refused(&mut self, e: SessionError, slot: &Standing, begun: &Begun) -> Halt {
        if e.condition() == Some(Condition::WalRemoved) && self.doubts.removed {
            return self.wal_is_gone(e, slot, begun).await;
        }
        if self.upstream.is_invalidated(&e) {
            let ours = matches!(self.options.slot, Slot::Ensured(_));
            self.doubts.slot_lost = ours && !std::mem::replace(&mut self.doubts.slot_remade, true);
            if let Slot::Existing(name) = &self.options.slot {
                let (slot, held, server) = (name.clone(), begun.held, self.upstream.position);
                return ReceiveError::SlotLost { slot, held, server }.into();
            }
        }
        e.into()
    }

    /// The server has said twice that it does not have what comes next.
    async fn wal_is_gone(&mut self, e: SessionError, slot: &Standing, begun: &Begun) -> Halt {
        let held = begun.held;
        if begun.filling {
            // The hole stays, and is told; what comes after it must not be lost too.
            (self.doubts.unfillable, self.doubts.removed) = (true, false);
            return e.into();
        }
        if self.options.accept_gap != Some(held.lsn()) || self.doubts.accepted.is_some() {
            let gap = unless_stopped(self.stop, self.upstream.gap(self.options, held)).await;
            return gap.map_or_else(|halt| halt, Halt::Failed);
        }
        // It stays the same place until it is reached: one that moved on would lose more unseen.
        let kept = slot.position().filter(|slot| slot.lsn() > held.lsn()).unwrap_or(self.upstream.position);
        let from = Segment::containing(kept, self.archive.size()).start_pos();
        if let Err(e) = self.archive.note_gap(held, from, Timestamp::now()) {
            return e.into();
        }
        (self.doubts.accepted, self.doubts.removed) = (Some(from), false);
        (self.tell)(Event::GapAccepted { held, from });
        e.into()
    }

    async fn one_stream(&mut self, resumption: Resumption, kept_from: Lsn) -> Result<OneStream, Halt> {
        let Self { upstream, options, doubts, stop, tell, .. } = self;
        let Resumption { start, old, mut writer, .. } = resumption;
        writer.bound(upstream.position.lsn());
        let starting = upstream.session.start_replication(options.slot.name(), start);
        match unless_stopped(stop, starting).await? {
            Ok(Started::Streaming) => {}
            Ok(Started::TimelineEnded(next)) => return Ok(OneStream::Next(next, old.map(|old| old.valid))),
            Err(e) => {
                return Err(match options.slot.name() {
                    Some(name) if e.condition() == Some(Condition::Missing) => {
                        ReceiveError::NoSlot(name.clone()).into()
                    }
                    _ => e.into(),
                });
            }
        }
        doubts.streams(upstream, *tell);
        tell(Event::Streaming(start));
        let mut receiver = receiver(upstream, options, start, old, kept_from);
        let mut pipe = Pipe::new(writer)?;
        let streamed = stream(&mut upstream.session, &mut receiver, &mut pipe, stop, *tell).await;
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
        // What was held before may reach further than where the timeline has ended.
        let held = receiver.received().max(old.map_or(Lsn::ZERO, |old| old.valid));
        match streamed? {
            Ended::ServerShutdown => Ok(OneStream::ServerShutdown),
            Ended::WriterGone if filled => {
                unless_stopped(stop, upstream.session.end_stream()).await??;
                Ok(OneStream::Filled)
            }
            Ended::WriterGone => Err(ReceiveError::Ended.into()),
            Ended::By(Ending::Timeline) => match end.transpose()? {
                Some(StreamEnd::NextTimeline(next)) => Ok(OneStream::Next(next, Some(held))),
                Some(StreamEnd::Ended) | None => Ok(OneStream::ServerShutdown),
            },
            Ended::By(Ending::Stopped) => Ok(OneStream::Finished(Finished::Stopped)),
            Ended::By(_) => Ok(OneStream::Finished(Finished::EndPosition)),
        }
    }
}

impl Begun {
    fn of(resumption: &Resumption, filling: bool) -> Self {
        let start = resumption.start;
        let held = resumption.old.map_or(start, |old| start.at(old.valid));
        Self { start, held, filling }
    }
}

/// What `work` comes to, unless told to stop meanwhile.
async fn unless_stopped<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Result<T, Halt> {
    // In a box: one future holds all that come after one another in it, and a thread's stack is small.
    let done = stop.run_until_cancelled(Box::pin(work)).await.filter(|_| !stop.is_cancelled());
    done.ok_or(Halt::Stopped)
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
