//! What a receiver decides: pure, with the time as an argument. It owns no socket and no file; its
//! driver feeds it what happens and does what it says.

use std::time::{Duration, Instant};

use bytes::Bytes;
use thiserror::Error;

use crate::archive::{Durable, Written};
use crate::protocol::StreamMessage;
use crate::wal::{Lsn, TimelineId};

/// How long a status that was asked for waits for a sync that is under way. A server that stops
/// asks again at once, however short of its position the answer is.
const PATIENCE: Duration = Duration::from_millis(100);

/// How a receiver behaves.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Sync whenever nothing more has arrived, rather than at intervals.
    pub synchronous: bool,
    /// Longest time that received bytes wait for a sync.
    pub sync_interval: Duration,
    /// Longest time between two statuses; `None` sends none unless there is a reason.
    pub status_interval: Option<Duration>,
    /// The server drops a receiver that it has not heard of for this long; `None` never.
    pub sender_timeout: Option<Duration>,
    /// Report what is durable. Without a slot or `--synchronous` it stays unsaid, for a receiver
    /// that reports it may be chosen as a synchronous standby.
    pub report_flush: bool,
    /// Stop when more than up to here has been received.
    pub end: Option<Lsn>,
}

/// What has happened.
#[derive(Debug)]
pub enum Input {
    /// The server sent this.
    Message(StreamMessage),
    /// The server has sent all of this timeline (CopyDone).
    TimelineEnds,
    /// The writer has handed bytes to the kernel.
    Written(Written),
    /// The writer has made bytes durable without being asked: a segment is complete.
    Durable(Durable),
    /// The writer has done what [`Action::Settle`] asked. `None` if that proves nothing new.
    Settled(Option<Durable>),
    /// The time that [`Receiver::deadline`] named has come.
    Tick,
    /// The operator wants an end.
    Stop,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Append these bytes, which follow those of the last append.
    Append(Bytes),
    /// Make all that was appended durable, and say so with [`Input::Settled`].
    Settle,
    /// Tell the server.
    Reply(Status),
    /// End the stream. All that was received is as durable as it will get.
    End(Ending),
}

/// Why a stream ends in good order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// The operator wanted it.
    Stopped,
    /// The end position was passed.
    EndPosition,
    /// The timeline has no more.
    Timeline,
}

/// What the server is told. All ends are exclusive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// Handed to the kernel.
    pub written: Lsn,
    /// Durable; `None` is reported as 0, which moves nothing.
    pub flushed: Option<Durable>,
    /// Ask for a sign of life: nothing has come for long.
    pub ask: bool,
}

/// The server broke the rules of the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Violation {
    /// Bytes that do not follow the last ones.
    #[error("the server sent WAL at {found} where {expected} comes next")]
    Misplaced {
        /// What comes next.
        expected: Lsn,
        /// What came.
        found: Lsn,
    },
    /// Neither WAL nor an answer for as long as the server itself would wait for us.
    #[error("the server has been silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// Something after it had said that the timeline ends.
    #[error("the server sent WAL after the end of the timeline")]
    AfterEnd,
}

/// One stream on one timeline.
#[derive(Debug)]
pub struct Receiver {
    settings: Settings,
    tli: TimelineId,
    received: Lsn,
    written: Lsn,
    durable: Option<Durable>,
    /// Not to be reported before this is durable: an earlier session may have reported as much,
    /// and a slot must not be moved back.
    report_from: Lsn,
    /// Where the server's log ended when it last said so.
    server_end: Lsn,
    /// When the first byte came that no sync has covered.
    unsynced_since: Option<Instant>,
    /// What had been received when the settle that is under way was asked for.
    settling: Option<Lsn>,
    last_status: Instant,
    last_heard: Instant,
    /// A status was asked for; it goes out when all that was received is durable, or then.
    asked: Option<Instant>,
    ending: Option<Ending>,
    ended: bool,
}

impl Receiver {
    /// A stream of `tli` that begins at `start`. Nothing is reported as durable before it has
    /// passed `report_from`.
    pub fn new(now: Instant, settings: Settings, tli: TimelineId, start: Lsn, report_from: Lsn) -> Self {
        Self {
            settings,
            tli,
            received: start,
            written: start,
            durable: None,
            report_from,
            server_end: start,
            unsynced_since: None,
            settling: None,
            last_status: now,
            last_heard: now,
            asked: None,
            ending: None,
            ended: false,
        }
    }

    /// The timeline that streams.
    pub const fn tli(&self) -> TimelineId {
        self.tli
    }

    /// Exclusive end of what has been received.
    pub const fn received(&self) -> Lsn {
        self.received
    }

    /// How far the server could send when it last said so.
    pub const fn server_end(&self) -> Lsn {
        self.server_end
    }

    /// The first status, which tells the server at once that we are there.
    pub fn greeting(&self) -> Status {
        self.status()
    }

    /// When [`Input::Tick`] is due; `None` if nothing is waiting for time to pass.
    pub fn deadline(&self) -> Option<Instant> {
        if self.ended {
            return None;
        }
        let silent = self.settings.sender_timeout.map(|limit| self.last_heard + limit);
        [self.sync_due(), self.status_due(), self.asked, silent].into_iter().flatten().min()
    }

    /// Takes in what has happened and says what is to be done, in that order.
    ///
    /// # Errors
    /// When the server breaks the rules; the stream is of no use then.
    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Action>) -> Result<(), Violation> {
        if matches!(input, Input::Message(_) | Input::TimelineEnds) {
            self.last_heard = now;
        }
        match input {
            Input::Message(StreamMessage::Wal { start, server_end, data, .. }) => {
                self.server_end = self.server_end.max(server_end);
                self.receive(now, start, data, out)?;
            }
            Input::Message(StreamMessage::Keepalive { server_end, reply_requested, .. }) => {
                self.server_end = self.server_end.max(server_end);
                if reply_requested {
                    self.asked = self.asked.or(Some(now + PATIENCE));
                }
            }
            Input::TimelineEnds => self.end(Ending::Timeline, out),
            Input::Stop => self.end(Ending::Stopped, out),
            Input::Written(written) => self.written = self.written.max(written.pos().lsn()),
            Input::Durable(durable) => {
                if self.advance(now, durable) {
                    self.reply(now, out);
                }
            }
            Input::Settled(durable) => self.settled(now, durable, out),
            Input::Tick => {}
        }
        self.act_on_time(now, out)
    }

    /// The driver reads again after it could not for a while: what the server said meanwhile has
    /// waited in the socket.
    pub fn heard(&mut self, now: Instant) {
        self.last_heard = now;
    }

    fn receive(&mut self, now: Instant, start: Lsn, data: Bytes, out: &mut Vec<Action>) -> Result<(), Violation> {
        match self.ending {
            Some(Ending::Timeline) => return Err(Violation::AfterEnd),
            // In flight when we said that it is enough.
            Some(_) => return Ok(()),
            None => {}
        }
        if start != self.received {
            return Err(Violation::Misplaced { expected: self.received, found: start });
        }
        self.received = self.received.saturating_add(data.len() as u64);
        self.unsynced_since = self.unsynced_since.or(Some(now));
        out.push(Action::Append(data));
        if self.settings.end.is_some_and(|end| self.received > end) {
            self.end(Ending::EndPosition, out);
        } else if self.settings.synchronous {
            self.settle(out);
        }
        Ok(())
    }

    fn end(&mut self, ending: Ending, out: &mut Vec<Action>) {
        if self.ending.is_none() {
            self.ending = Some(ending);
            // Even with nothing new: the answer is what the end waits for.
            self.settle(out);
        }
    }

    fn settle(&mut self, out: &mut Vec<Action>) {
        if self.settling.is_none() {
            self.settling = Some(self.received);
            out.push(Action::Settle);
        }
    }

    /// Takes in what is durable; whether that is news for the server.
    fn advance(&mut self, now: Instant, durable: Durable) -> bool {
        let news = self.durable.is_none_or(|before| before.pos().lsn() < durable.pos().lsn());
        if news {
            self.durable = Some(durable);
            self.written = self.written.max(durable.pos().lsn());
        }
        self.unsynced_since = if self.is_durable() { None } else { self.unsynced_since.map(|_| now) };
        news && self.reportable().is_some()
    }

    fn settled(&mut self, now: Instant, durable: Option<Durable>, out: &mut Vec<Action>) {
        let asked_at = self.settling.take();
        let news = durable.is_some_and(|durable| self.advance(now, durable));
        // Bytes that came after the settle was asked for need another one.
        let all = self.is_durable() || asked_at.is_none_or(|upto| upto >= self.received);
        if durable.is_none() {
            // What was held comes again, or a segment has just been completed. The interval begins
            // anew, and unless there is more no better answer comes.
            self.unsynced_since = self.unsynced_since.map(|_| now);
            self.asked = self.asked.map(|patience| if all { now } else { patience });
        }
        let ending = self.ending.filter(|_| all && !self.ended);
        if news || ending.is_some() {
            self.reply(now, out);
        }
        if let Some(ending) = ending {
            self.ended = true;
            out.push(Action::End(ending));
        } else if !all && (self.settings.synchronous || self.ending.is_some()) {
            self.settle(out);
        }
    }

    fn act_on_time(&mut self, now: Instant, out: &mut Vec<Action>) -> Result<(), Violation> {
        if self.ended {
            return Ok(());
        }
        if let Some(limit) = self.settings.sender_timeout.filter(|limit| now >= self.last_heard + *limit) {
            return Err(Violation::Silent(limit));
        }
        if let Some(patience) = self.asked {
            if self.is_durable() || now >= patience {
                self.reply(now, out);
            } else {
                self.settle(out);
            }
        }
        if self.sync_due().is_some_and(|due| now >= due) {
            self.settle(out);
        }
        if self.status_due().is_some_and(|due| now >= due) {
            // Also when the timeline has ended: the server goes on to count the silence while the disk
            // holds up our CopyDone.
            self.send(now, out);
        }
        Ok(())
    }

    /// When a sync must begin; `None` while one is under way.
    fn sync_due(&self) -> Option<Instant> {
        self.unsynced_since.filter(|_| self.settling.is_none()).map(|since| since + self.settings.sync_interval)
    }

    fn status_due(&self) -> Option<Instant> {
        let third = self.settings.sender_timeout.map(|timeout| timeout / 3);
        let interval = [self.settings.status_interval, third].into_iter().flatten().min();
        interval.map(|interval| self.last_status + interval)
    }

    fn reply(&mut self, now: Instant, out: &mut Vec<Action>) {
        // A server that has ended the timeline waits for our CopyDone and no other news.
        if self.ending == Some(Ending::Timeline) {
            self.asked = None;
        } else {
            self.send(now, out);
        }
    }

    fn send(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.last_status = now;
        self.asked = None;
        let half = self.settings.sender_timeout.map(|timeout| timeout / 2);
        let ask = half.is_some_and(|half| now >= self.last_heard + half);
        out.push(Action::Reply(Status { ask, ..self.status() }));
    }

    fn status(&self) -> Status {
        Status { written: self.written, flushed: self.reportable(), ask: false }
    }

    fn reportable(&self) -> Option<Durable> {
        self.durable.filter(|durable| self.settings.report_flush && durable.pos().lsn() >= self.report_from)
    }

    /// Whether all that was received is durable.
    fn is_durable(&self) -> bool {
        match self.durable {
            Some(durable) => durable.pos().lsn() >= self.received,
            None => self.unsynced_since.is_none(),
        }
    }
}

#[cfg(test)]
mod tests;
