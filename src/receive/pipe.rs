//! The thread that owns the open segment, and the queues to and from it.
//!
//! WAL keeps arriving while a sync is under way, and one sync covers all that came: a request to
//! settle first takes what is already queued.

use std::io;
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::ReceiveError;
use crate::archive::{Durable, WriteError, Writer, Wrote};
use crate::wal::Lsn;

/// Messages that may wait. A server sends at most 128 KiB in one, so this is 4 MiB at most.
const QUEUE: usize = 32;
/// How many bytes a settle takes along at most before it syncs.
const ALONG: usize = 4 << 20;

#[derive(Debug)]
pub(super) enum Command {
    /// Bytes, and how far the server's log goes.
    Append(Bytes, Lsn),
    Settle,
}

#[derive(Debug)]
pub(super) enum Notice {
    Wrote(Wrote),
    Settled(Option<Durable>),
}

/// The ends of the queues that the receiver's task holds.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) notices: mpsc::UnboundedReceiver<Notice>,
    thread: JoinHandle<Result<Closed, WriteError>>,
}

/// How the writer has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Closed {
    /// No more was to come.
    Told,
    /// It has filled the hole that it was to fill.
    Filled,
}

impl Pipe {
    pub(super) fn new(writer: Writer) -> Result<Self, ReceiveError> {
        let (commands, queue) = mpsc::channel(QUEUE);
        let (tell, notices) = mpsc::unbounded_channel();
        let thread =
            std::thread::Builder::new().name("writer".into()).spawn(move || match work(writer, queue, &tell) {
                Ok(()) => Ok(Closed::Told),
                Err(WriteError::Filled(_)) => Ok(Closed::Filled),
                Err(e) => Err(e),
            });
        Ok(Self { commands, notices, thread: thread.map_err(ReceiveError::Thread)? })
    }

    /// Lets the thread write and sync what is queued, and waits for it. If it has failed, this says
    /// why.
    pub(super) async fn close(self) -> Result<Closed, ReceiveError> {
        drop(self.commands);
        drop(self.notices);
        let thread = self.thread;
        match tokio::task::spawn_blocking(move || thread.join()).await {
            Ok(Ok(ended)) => Ok(ended?),
            // It has printed what it panicked about.
            _ => Err(ReceiveError::Thread(io::Error::other("it ended unexpectedly"))),
        }
    }
}

fn work(
    mut writer: Writer,
    mut queue: mpsc::Receiver<Command>,
    tell: &mpsc::UnboundedSender<Notice>,
) -> Result<(), WriteError> {
    while let Some(command) = queue.blocking_recv() {
        match command {
            Command::Append(bytes, server_end) => append(&mut writer, &bytes, server_end, tell)?,
            Command::Settle => {
                let mut along = 0;
                while along < ALONG
                    && let Ok(Command::Append(bytes, server_end)) = queue.try_recv()
                {
                    along += bytes.len();
                    append(&mut writer, &bytes, server_end, tell)?;
                }
                complete_behind(&mut writer, tell)?;
                let _ = tell.send(Notice::Settled(writer.settle()?));
            }
        }
    }
    // What came before the connection was lost is kept as well as if it had been asked for.
    complete_behind(&mut writer, tell)?;
    writer.close()?;
    Ok(())
}

fn complete_behind(writer: &mut Writer, tell: &mpsc::UnboundedSender<Notice>) -> Result<(), WriteError> {
    writer.complete_behind(&mut |wrote| _ = tell.send(Notice::Wrote(wrote)))
}

fn append(
    writer: &mut Writer,
    bytes: &[u8],
    server_end: Lsn,
    tell: &mpsc::UnboundedSender<Notice>,
) -> Result<(), WriteError> {
    writer.expect(server_end);
    writer.append(bytes, &mut |wrote| _ = tell.send(Notice::Wrote(wrote)))
}
