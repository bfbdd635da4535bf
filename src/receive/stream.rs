//! One stream: the task that joins the server, the state machine and the writer's thread. All
//! waiting is in one place; all deciding is in [`Receiver::step`].

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::pipe::{Command, Notice, Pipe};
use super::stall::Stall;
use super::{Action, Ending, Event, Input, ReceiveError, Receiver, Status};
use crate::archive::Wrote;
use crate::connection::{Error as SessionError, Session, Streamed};
use crate::protocol::StandbyStatus;
use crate::wal::Lsn;

/// Messages that have been read already and are taken before anything else is looked at.
const BURST: usize = 16;
/// A status is 39 bytes; a connection that cannot take them for so long is dead.
const SEND_LIMIT: Duration = Duration::from_secs(60);
/// Seconds from 1970 to 2000, where PostgreSQL's clock begins.
const EPOCH_2000: u64 = 946_684_800;

/// How a stream came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    /// In good order, and the server waits for our CopyDone.
    By(Ending),
    /// The server stops, and has had our last word.
    ServerShutdown,
    /// The writer's thread is gone; closing the pipe tells why.
    WriterGone,
}

/// Streams until one of the ends comes.
pub(super) async fn stream(
    session: &mut Session,
    receiver: &mut Receiver,
    pipe: &mut Pipe,
    stop: &CancellationToken,
    tell: &mut impl FnMut(Event),
) -> Result<Ended, ReceiveError> {
    let (waiting, actions, stall) = (VecDeque::new(), Vec::new(), Stall::default());
    let mut task = Task { session, receiver, pipe, waiting, actions, stall, done: false };
    let greeting = task.receiver.greeting();
    task.reply(greeting).await?;
    let mut stopping = false;
    loop {
        let deadline = [task.receiver.deadline(), task.stall.due()].into_iter().flatten().min();
        let due = sleep_until(deadline.unwrap_or_else(Instant::now).into());
        let may_read = task.may_read();
        let step = tokio::select! {
            biased;
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                Step::Input(Input::Stop)
            }
            notice = task.pipe.notices.recv() => match notice {
                Some(notice) => Step::Notice(notice),
                None => return Ok(Ended::WriterGone),
            },
            room = task.pipe.commands.reserve(), if !task.waiting.is_empty() => {
                let (Ok(room), Some(command)) = (room, task.waiting.pop_front()) else {
                    return Ok(Ended::WriterGone);
                };
                room.send(command);
                Step::Room
            }
            streamed = task.session.next_stream(), if may_read => Step::Streamed(streamed?),
            () = due, if deadline.is_some() => Step::Input(Input::Tick),
        };
        if let Some(ended) = task.take(step, tell).await? {
            return Ok(ended);
        }
        if let Some(time) = task.stall.held_up(Instant::now()) {
            tell(Event::HeldUp(time));
        }
    }
}

enum Step {
    Input(Input),
    Notice(Notice),
    Streamed(Streamed),
    Room,
}

struct Task<'a> {
    session: &'a mut Session,
    receiver: &'a mut Receiver,
    pipe: &'a mut Pipe,
    /// Commands for which the queue had no room. While there are any, nothing is read.
    waiting: VecDeque<Command>,
    actions: Vec<Action>,
    stall: Stall,
    /// The server has sent all of the timeline: only the writer is waited for.
    done: bool,
}

impl Task<'_> {
    async fn take(&mut self, step: Step, tell: &mut impl FnMut(Event)) -> Result<Option<Ended>, ReceiveError> {
        match step {
            Step::Input(input) => self.step(input)?,
            Step::Notice(notice) => self.noticed(notice, tell)?,
            Step::Room => {}
            Step::Streamed(first) => {
                let mut next = Some(first);
                let mut taken = 0;
                while let Some(streamed) = next.take() {
                    match streamed {
                        Streamed::Message(message) => self.step(Input::Message(message))?,
                        Streamed::CopyDone => {
                            self.done = true;
                            self.step(Input::TimelineEnds)?;
                        }
                        Streamed::ServerShutdown => return Ok(Some(Ended::ServerShutdown)),
                    }
                    taken += 1;
                    self.hand_over();
                    if taken < BURST && self.may_read() {
                        next = self.session.try_next_stream()?;
                    }
                }
            }
        }
        self.act().await
    }

    /// Whether the server may have more, and the writer has room for it.
    fn may_read(&self) -> bool {
        self.waiting.is_empty() && !self.done
    }

    fn step(&mut self, input: Input) -> Result<(), ReceiveError> {
        let now = Instant::now();
        if !self.may_read() {
            // A server is not silent while it is we who do not listen.
            self.receiver.heard(now);
        }
        Ok(self.receiver.step(now, input, &mut self.actions)?)
    }

    fn noticed(&mut self, notice: Notice, tell: &mut impl FnMut(Event)) -> Result<(), ReceiveError> {
        if let Some(time) = self.stall.got_on(Instant::now(), matches!(notice, Notice::Settled(_))) {
            tell(Event::GotOn(time));
        }
        match notice {
            Notice::Wrote(Wrote::Written(written)) => self.step(Input::Written(written)),
            Notice::Wrote(Wrote::Complete(segment, durable)) => {
                tell(Event::Complete(segment));
                tell(Event::Durable(durable));
                self.step(Input::Durable(durable))
            }
            Notice::Settled(durable) => {
                if let Some(durable) = durable {
                    tell(Event::Durable(durable));
                }
                self.step(Input::Settled(durable))
            }
        }
    }

    /// Does what the machine said, in its order.
    async fn act(&mut self) -> Result<Option<Ended>, ReceiveError> {
        self.hand_over();
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Reply(status) => self.reply(status).await?,
                Action::End(ending) => return Ok(Some(Ended::By(ending))),
                Action::Append(_) | Action::Settle => {}
            }
        }
        Ok(None)
    }

    /// Passes on what the writer is to do, in order, as far as its queue has room.
    fn hand_over(&mut self) {
        let commands = self.actions.extract_if(.., |a| matches!(a, Action::Append(_) | Action::Settle));
        for action in commands {
            let command = match action {
                Action::Append(bytes) => Command::Append(bytes, self.receiver.server_end()),
                _ => {
                    self.stall.asked(Instant::now());
                    Command::Settle
                }
            };
            if !self.waiting.is_empty() {
                self.waiting.push_back(command);
                continue;
            }
            match self.pipe.commands.try_send(command) {
                Ok(()) => {}
                // If the thread is gone, its notices end, and that is noticed.
                Err(TrySendError::Full(command) | TrySendError::Closed(command)) => self.waiting.push_back(command),
            }
        }
    }

    async fn reply(&mut self, status: Status) -> Result<(), ReceiveError> {
        let flush = status.flushed.map_or(Lsn::ZERO, |durable| durable.pos().lsn());
        let status = StandbyStatus {
            write: status.written,
            flush,
            apply: Lsn::ZERO,
            sent_at: now_since_2000(),
            reply_requested: status.ask,
        };
        match timeout(SEND_LIMIT, self.session.send_status(&status)).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(SessionError::TimedOut { during: "a status message", limit: SEND_LIMIT }.into()),
        }
    }
}

/// Microseconds since 2000-01-01 00:00 UTC, as the protocol counts; for the server's information.
fn now_since_2000() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since_2000 = since_1970.saturating_sub(Duration::from_secs(EPOCH_2000));
    i64::try_from(since_2000.as_micros()).unwrap_or(i64::MAX)
}
