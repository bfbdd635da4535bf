//! A connection that the server has accepted: each command as a call, a WAL stream, a base backup.

use std::future::ready;
use std::io::{self, Read};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use postgres_protocol::message::frontend::{self, CopyData};
use tokio::select;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::dial;
use super::hosts::Host;
use super::login::Parameters;
use super::wire::Wire;
use super::{ConnectError, Error, LoginError};
use crate::protocol::{
    BackupEvent, BackupStream, BaseBackup, Condition, NextTimeline, Phase, ProtocolError, Reply, Retention, Row,
    ServerError, ServerVersion, SlotKind, SlotName, SlotState, StandbyStatus, StreamMessage, SystemIdentity,
    TablespaceRow, backup_position, command, duration_setting, mode_setting,
};
use crate::wal::{Pos, SegmentSize, TimelineId};

/// How long the server may take to answer a command that needs no work.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Bytes of a manifest that are sent at once.
const UPLOAD: usize = 64 << 10;

/// How long a base backup's stream may gather before it is read. Servers send 32 KiB at a time: whoever waits for each is
/// woken 50,000 times for 1.6 GB, which takes both sides as long as the copying.
const GATHER: Duration = Duration::from_micros(20);
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long it is listened for why a connection cannot be written to any more.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Rows of one answer, and the bytes in them.
const MAX_ROWS: usize = 20_000;
const MAX_ANSWER: usize = 16 << 20;

/// A timeline's history is a few lines; more than this is not one.
const MAX_HISTORY: usize = 1 << 20;

/// Notices that are logged; a server has reason for a few.
const MAX_NOTICES: u32 = 1000;

/// What the server says about a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotAnswer {
    /// It told.
    Known(SlotState),
    /// It cannot be asked (before 15): ask `pg_replication_slots` in an SQL session.
    CannotBeAsked,
}

/// How a stream began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Started {
    /// It runs. Its first message may still be an error.
    Streaming,
    /// There is nothing to stream: the timeline ended at or before the requested position.
    TimelineEnded(NextTimeline),
}

/// What came in a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Streamed {
    /// WAL or a sign of life.
    Message(StreamMessage),
    /// The server has sent the whole timeline: answer with [`Session::end_stream`].
    CopyDone,
    /// The server stops, and has sent all there is; it closes the connection now.
    ServerShutdown,
}

/// How a stream ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamEnd {
    /// We ended it. The session takes commands again, unless the server is stopping.
    Ended,
    /// The timeline goes on in another one.
    NextTimeline(NextTimeline),
}

/// A base backup has begun.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupStarted {
    /// WAL is needed from here on: the redo point of the backup's checkpoint.
    pub start: Pos,
    /// What will be copied; the data directory last.
    pub tablespaces: Vec<TablespaceRow>,
}

/// What the connection is doing.
#[derive(Debug)]
enum Mode {
    /// The server waits for a command.
    Idle,
    /// A command runs, or was given up; the connection serves nothing else any more.
    Busy,
    /// A command failed and the server is about to wait for the next.
    Failed,
    Streaming {
        /// The server has sent its CopyDone.
        done: bool,
    },
    Copying(Box<BackupStream>),
    /// The server has closed, or will.
    Over,
}

/// A session with a server. One command at a time; a call that is cancelled, except those that say
/// otherwise, leaves the session unusable.
pub struct Session {
    wire: Wire,
    parameters: Parameters,
    host: Host,
    target: String,
    version: ServerVersion,
    mode: Mode,
    notices_left: u32,
}

/// The rows of an answer.
#[derive(Default)]
struct Answer {
    rows: Vec<Row>,
    bytes: usize,
}

impl Answer {
    fn add(&mut self, row: Row) -> Result<(), ProtocolError> {
        self.bytes = self.bytes.saturating_add(row.size());
        if self.rows.len() == MAX_ROWS {
            return Err(ProtocolError::TooMany { what: "rows", limit: MAX_ROWS });
        }
        if self.bytes > MAX_ANSWER {
            return Err(ProtocolError::TooMany { what: "bytes in an answer", limit: MAX_ANSWER });
        }
        self.rows.push(row);
        Ok(())
    }
}

impl Session {
    /// Takes over a connection, of a server that walhold works with.
    pub(super) fn new(accepted: dial::Accepted) -> Result<Self, ConnectError> {
        let dial::Accepted { wire, parameters, host, target } = accepted;
        let wrong = |name, wanted| {
            let value = parameters.get(name).cloned().unwrap_or_default();
            let source = LoginError::Parameter { name, value, wanted };
            ConnectError::Login { target: target.clone(), source }
        };
        let version = parameters.get("server_version").and_then(|text| ServerVersion::parse(text));
        let version = version.ok_or_else(|| wrong("server_version", "a version"))?;
        if version.major() < ServerVersion::OLDEST_MAJOR {
            return Err(ConnectError::TooOld { target, version });
        }
        if version.major() > ServerVersion::NEWEST_MAJOR {
            static ONCE: std::sync::Once = std::sync::Once::new();
            ONCE.call_once(|| warn!("{target} is PostgreSQL {version}, newer than any that walhold knows"));
        }
        if parameters.get("integer_datetimes").map(String::as_str) != Some("on") {
            return Err(wrong("integer_datetimes", "on"));
        }
        Ok(Self { wire, parameters, host, target, version, mode: Mode::Idle, notices_left: MAX_NOTICES })
    }

    /// The host and port, or the socket, of this server, for messages.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The host as it was reached.
    pub(super) const fn host(&self) -> &Host {
        &self.host
    }

    /// The server's version.
    pub const fn server_version(&self) -> ServerVersion {
        self.version
    }

    /// A setting that the server reports by itself, such as `server_version` or `is_superuser`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Who the server is and where its log ends.
    ///
    /// # Errors
    /// When the server refuses or the connection fails.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, Error> {
        let rows = self.ask(command::IDENTIFY_SYSTEM, "IDENTIFY_SYSTEM").await?;
        Ok(SystemIdentity::from_rows(&rows)?)
    }

    /// A setting's value as text.
    ///
    /// # Errors
    /// When the server has no such setting, or the connection fails.
    pub async fn show(&mut self, setting: &str) -> Result<String, Error> {
        let rows = self.ask(&command::show(setting), "SHOW").await?;
        match rows.as_slice() {
            [row] => match row.values() {
                [Some(value)] => Ok(String::from_utf8_lossy(value).into_owned()),
                _ => Err(ProtocolError::Shape("SHOW").into()),
            },
            _ => Err(ProtocolError::Shape("SHOW").into()),
        }
    }

    /// The size of the cluster's WAL segments.
    ///
    /// # Errors
    /// When the connection fails or the size is none that PostgreSQL has.
    pub async fn segment_size(&mut self) -> Result<SegmentSize, Error> {
        let text = self.show("wal_segment_size").await?;
        SegmentSize::from_show(&text).map_err(|_| value_error("wal_segment_size", text))
    }

    /// The mode of the server's data directory (0o700 or 0o750), which says whether a group may
    /// read its copy.
    ///
    /// # Errors
    /// When the connection fails or it is no mode.
    pub async fn data_directory_mode(&mut self) -> Result<u32, Error> {
        let text = self.show("data_directory_mode").await?;
        mode_setting(&text).ok_or_else(|| value_error("data_directory_mode", text))
    }

    /// After how long a silence the server gives up on us; `None` if never.
    ///
    /// # Errors
    /// When the connection fails or it is no time.
    pub async fn wal_sender_timeout(&mut self) -> Result<Option<Duration>, Error> {
        let text = self.show("wal_sender_timeout").await?;
        let time = duration_setting(&text).ok_or_else(|| value_error("wal_sender_timeout", text))?;
        Ok(Some(time).filter(|time| !time.is_zero()))
    }

    /// What the server knows of a slot.
    ///
    /// # Errors
    /// When it is a logical slot, or the connection fails.
    pub async fn read_slot(&mut self, slot: &SlotName) -> Result<SlotAnswer, Error> {
        if !self.version.is_15_or_later() {
            return Ok(SlotAnswer::CannotBeAsked);
        }
        let rows = self.ask(&command::read_slot(slot), "READ_REPLICATION_SLOT").await?;
        Ok(SlotAnswer::Known(SlotState::from_rows(&rows)?))
    }

    /// Makes a physical slot. A temporary one is gone with the next error that the server reports
    /// in this session.
    ///
    /// # Errors
    /// When there is one of that name, none is free, or the connection fails.
    pub async fn create_slot(&mut self, slot: &SlotName, kind: SlotKind, retention: Retention) -> Result<(), Error> {
        let command = command::create_slot(self.version, slot, kind, retention);
        self.ask(&command, "CREATE_REPLICATION_SLOT").await.map(drop)
    }

    /// Removes a slot.
    ///
    /// # Errors
    /// When there is none, it is in use, or the connection fails.
    pub async fn drop_slot(&mut self, slot: &SlotName) -> Result<(), Error> {
        self.ask(&command::drop_slot(slot), "DROP_REPLICATION_SLOT").await.map(drop)
    }

    /// The content of a timeline's history file, byte for byte, at most 1 MiB.
    ///
    /// # Errors
    /// When the server does not have it, or the connection fails.
    pub async fn timeline_history(&mut self, tli: TimelineId) -> Result<Bytes, Error> {
        let rows = self.ask(&command::timeline_history(tli), "TIMELINE_HISTORY").await?;
        let content = match rows.as_slice() {
            [row] => match row.values() {
                [Some(_name), Some(content)] => content.clone(),
                _ => return Err(ProtocolError::Shape("TIMELINE_HISTORY").into()),
            },
            _ => return Err(ProtocolError::Shape("TIMELINE_HISTORY").into()),
        };
        if content.len() > MAX_HISTORY {
            return Err(ProtocolError::TooMany { what: "bytes of timeline history", limit: MAX_HISTORY }.into());
        }
        Ok(content)
    }

    /// The rows of an SQL command, as text. There is no time limit: a query may work for long.
    ///
    /// # Errors
    /// When the server refuses it, the answer is larger than 16 MiB, or the connection fails.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, Error> {
        let rows = self.exchange(sql, "a query").await?;
        Ok(texts(&rows)?)
    }

    /// As [`Session::query`], for a question that needs no work: under the time limit of the other
    /// commands.
    ///
    /// # Errors
    /// As [`Session::query`], and when the server is silent.
    pub async fn look_up(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, Error> {
        let rows = self.ask(sql, "a query").await?;
        Ok(texts(&rows)?)
    }

    /// Begins to stream from exactly `start`. Servers 13 and 14 insist on
    /// [`Session::identify_system`] before it.
    ///
    /// # Errors
    /// When the server refuses: no such slot, slot in use, timeline not in its history. What it
    /// finds out later, such as WAL that is gone, comes from [`Session::next_stream`].
    pub async fn start_replication(&mut self, slot: Option<&SlotName>, start: Pos) -> Result<Started, Error> {
        const DURING: &str = "START_REPLICATION";
        let command = command::start_replication(slot, start);
        self.limited(DURING, async |session: &mut Self| {
            session.send_command(&command, DURING).await?;
            let mut answer = Answer::default();
            loop {
                match session.reply().await? {
                    Reply::CopyBoth if answer.rows.is_empty() => {
                        session.wire.enter(Phase::Streaming);
                        session.mode = Mode::Streaming { done: false };
                        return Ok(Started::Streaming);
                    }
                    // No copy at all: the timeline is historic and has nothing at or after `start`.
                    Reply::RowDescription(_) | Reply::Complete(_) => {}
                    Reply::Row(row) => answer.add(row)?,
                    Reply::Error(error) => return session.fail(error),
                    Reply::Ready => {
                        session.mode = Mode::Idle;
                        let next = NextTimeline::from_rows(&answer.rows)?;
                        return next.map(Started::TimelineEnded).ok_or_else(|| ProtocolError::Shape(DURING).into());
                    }
                    other => return Err(other.unexpected("starting to stream").into()),
                }
            }
        })
        .await
    }

    /// Waits for the next message of the stream. May be cancelled.
    ///
    /// # Errors
    /// What the server reports ([`ServerError::is_wal_removed`] among it), or a lost connection.
    pub async fn next_stream(&mut self) -> Result<Streamed, Error> {
        loop {
            if let Some(streamed) = self.try_next_stream()? {
                return Ok(streamed);
            }
            self.wire.fill().await.map_err(Error::Lost)?;
        }
    }

    /// The next message of the stream if it has been read already.
    ///
    /// # Errors
    /// As [`Session::next_stream`].
    pub fn try_next_stream(&mut self) -> Result<Option<Streamed>, Error> {
        let Mode::Streaming { done: false } = self.mode else { return Err(Error::NotFree("reading a stream")) };
        while let Some(frame) = self.wire.buffered()? {
            let Some(reply) = self.pass_over(Reply::decode(frame)?) else { continue };
            let streamed = match reply {
                Reply::CopyData(body) => Streamed::Message(StreamMessage::decode(&body)?),
                Reply::CopyDone => {
                    self.mode = Mode::Streaming { done: true };
                    Streamed::CopyDone
                }
                // The orderly shutdown: a completed command without the end of the copy.
                Reply::Complete(_) => {
                    self.mode = Mode::Over;
                    Streamed::ServerShutdown
                }
                Reply::Error(error) => return self.fail(error),
                other => return Err(other.unexpected("streaming WAL").into()),
            };
            return Ok(Some(streamed));
        }
        Ok(None)
    }

    /// Tells the server how far we are. May be cancelled: the rest goes out before the next.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn send_status(&mut self, status: &StandbyStatus) -> Result<(), Error> {
        let Mode::Streaming { .. } = self.mode else { return Err(Error::NotFree("reporting progress")) };
        status.encode(self.wire.outbox());
        match self.wire.flush().await {
            Ok(()) => Ok(()),
            Err(lost) => Err(self.last_words().await.unwrap_or(Error::Lost(lost))),
        }
    }

    /// What a server said before it closed the connection, if it did: it says why, and a failed write does not.
    async fn last_words(&mut self) -> Option<Error> {
        let listening = async {
            loop {
                match self.try_next_stream() {
                    Ok(Some(_)) => {}
                    Ok(None) => self.wire.fill().await.ok()?,
                    Err(said @ Error::Server(_)) => return Some(said),
                    Err(_) => return None,
                }
            }
        };
        timeout(LAST_WORDS, listening).await.ok().flatten()
    }

    /// Ends the stream: what is still in flight is dropped. Also the answer to
    /// [`Streamed::CopyDone`].
    ///
    /// # Errors
    /// What the server reports, or a lost connection.
    pub async fn end_stream(&mut self) -> Result<StreamEnd, Error> {
        let Mode::Streaming { mut done } = self.mode else { return Err(Error::NotFree("ending a stream")) };
        self.limited("the end of the stream", async |session: &mut Self| {
            frontend::copy_done(session.wire.outbox());
            session.wire.flush().await.map_err(Error::Lost)?;
            let mut answer = Answer::default();
            loop {
                match session.reply().await? {
                    Reply::CopyData(_) if !done => {}
                    Reply::CopyDone if !done => {
                        done = true;
                        session.wire.enter(Phase::Command);
                    }
                    Reply::Complete(_) if !done => {
                        session.mode = Mode::Over;
                        return Ok(StreamEnd::Ended);
                    }
                    Reply::RowDescription(_) | Reply::Complete(_) if done => {}
                    Reply::Row(row) if done => answer.add(row)?,
                    Reply::Error(error) => return session.fail(error),
                    Reply::Ready if done => {
                        session.mode = Mode::Idle;
                        let next = NextTimeline::from_rows(&answer.rows)?;
                        return Ok(next.map_or(StreamEnd::Ended, StreamEnd::NextTimeline));
                    }
                    other => return Err(other.unexpected("ending a stream").into()),
                }
            }
        })
        .await
    }

    /// Gives the server the manifest of an earlier backup, on which the next base backup of this session
    /// may build. Servers take it from 17 on.
    ///
    /// # Errors
    /// When the server finds the manifest damaged or of another cluster, or the connection fails or
    /// stands still, or the manifest cannot be read.
    pub async fn upload_manifest(&mut self, manifest: &mut (dyn Read + Send)) -> Result<(), Error> {
        const DURING: &str = "UPLOAD_MANIFEST";
        self.limited(DURING, async |session: &mut Self| {
            session.send_command(command::UPLOAD_MANIFEST, DURING).await?;
            match session.reply().await? {
                Reply::CopyIn => Ok(()),
                Reply::Error(error) => session.fail(error),
                other => Err(other.unexpected("uploading a manifest").into()),
            }
        })
        .await?;
        let mut buffer = vec![0; UPLOAD];
        loop {
            let count = manifest.read(&mut buffer).map_err(Error::Upload)?;
            let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else { break };
            let data = CopyData::new(piece).map_err(|_| ProtocolError::Malformed("piece of a manifest"))?;
            self.limited(DURING, async |session: &mut Self| {
                data.write(session.wire.outbox());
                session.wire.flush().await.map_err(Error::Lost)
            })
            .await?;
        }
        // An error that the server had before this is the answer, too: it passes over the rest.
        self.limited(DURING, async |session: &mut Self| {
            frontend::copy_done(session.wire.outbox());
            session.wire.flush().await.map_err(Error::Lost)?;
            loop {
                match session.reply().await? {
                    Reply::Complete(_) => {}
                    Reply::Error(error) => return session.fail(error),
                    Reply::Ready => {
                        session.mode = Mode::Idle;
                        return Ok(());
                    }
                    other => return Err(other.unexpected("uploading a manifest").into()),
                }
            }
        })
        .await
    }

    /// Begins a base backup. There is no time limit: a spread checkpoint takes minutes.
    ///
    /// # Errors
    /// When the server refuses it, or the connection fails.
    pub async fn base_backup(&mut self, backup: &BaseBackup) -> Result<BackupStarted, Error> {
        const DURING: &str = "BASE_BACKUP";
        self.send_command(&command::base_backup(self.version, backup), DURING).await?;
        let start = backup_position(&self.result_set().await?)?;
        let tablespaces = TablespaceRow::from_rows(&self.result_set().await?)?;
        self.wire.enter(Phase::Copying);
        self.mode = Mode::Copying(Box::new(BackupStream::new(self.version, &tablespaces, backup)));
        Ok(BackupStarted { start, tablespaces })
    }

    /// Waits for the next thing that happens in the base backup, until [`BackupEvent::Complete`].
    /// May be cancelled.
    ///
    /// # Errors
    /// What the server reports, damaged pages as [`Error::Checksums`]; or a lost connection.
    pub async fn next_backup_event(&mut self) -> Result<BackupEvent, Error> {
        loop {
            let Mode::Copying(stream) = &mut self.mode else { return Err(Error::NotFree("reading a base backup")) };
            if let Some(event) = stream.next_event() {
                if event == BackupEvent::Complete {
                    self.wire.enter(Phase::Command);
                    self.mode = Mode::Idle;
                }
                return Ok(event);
            }
            match self.wire.buffered()? {
                Some(frame) => self.feed_backup(Reply::decode(frame)?)?,
                None => self.gather().await.map_err(Error::Lost)?,
            }
        }
    }

    /// Takes leave of the server, which then need not find out that we are gone.
    pub async fn close(mut self) {
        frontend::terminate(self.wire.outbox());
        // The server may be gone already, or not be listening: nothing depends on it.
        let _ = timeout(FAREWELL, self.wire.flush()).await;
    }

    /// Reads what is there; where nothing is, more than the first of what comes.
    async fn gather(&mut self) -> io::Result<()> {
        select! {
            biased;
            filled = self.wire.fill() => return filled,
            () = ready(()) => {}
        }
        thread::sleep(GATHER);
        self.wire.fill().await
    }

    fn feed_backup(&mut self, reply: Reply) -> Result<(), Error> {
        let Mode::Copying(stream) = &mut self.mode else { return Err(Error::NotFree("reading a base backup")) };
        match reply {
            Reply::Parameter { .. } | Reply::Ignored => {}
            Reply::Error(error) => {
                // After the stop position only the checksums are still judged.
                let checksums = stream.is_stopped() && error.condition() == Condition::DataCorrupted;
                return self.fail(error).map_err(|error| match error {
                    Error::Server(error) if checksums => Error::Checksums(error),
                    other => other,
                });
            }
            reply => stream.feed(reply)?,
        }
        Ok(())
    }

    /// One command that needs no work, and its rows.
    async fn ask(&mut self, command: &str, during: &'static str) -> Result<Vec<Row>, Error> {
        self.limited(during, async |session: &mut Self| session.exchange(command, during).await).await
    }

    /// Runs `work` under the time limit. When it is late, the session is of no more use.
    async fn limited<T>(
        &mut self,
        during: &'static str,
        work: impl AsyncFnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match timeout(COMMAND_LIMIT, work(self)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.mode = Mode::Busy;
                Err(Error::TimedOut { during, limit: COMMAND_LIMIT })
            }
        }
    }

    async fn exchange(&mut self, command: &str, during: &'static str) -> Result<Vec<Row>, Error> {
        self.send_command(command, during).await?;
        let mut answer = Answer::default();
        loop {
            match self.reply().await? {
                Reply::RowDescription(_) | Reply::Complete(_) | Reply::Empty => {}
                Reply::Row(row) => answer.add(row)?,
                Reply::Error(error) => return self.fail(error),
                Reply::Ready => {
                    self.mode = Mode::Idle;
                    return Ok(answer.rows);
                }
                other => return Err(other.unexpected("answering a command").into()),
            }
        }
    }

    /// The rows of one result set of several.
    async fn result_set(&mut self) -> Result<Vec<Row>, Error> {
        let mut answer = Answer::default();
        loop {
            match self.reply().await? {
                Reply::RowDescription(_) => {}
                Reply::Row(row) => answer.add(row)?,
                Reply::Complete(_) => return Ok(answer.rows),
                Reply::Error(error) => return self.fail(error),
                other => return Err(other.unexpected("answering a command").into()),
            }
        }
    }

    /// Waits until the server takes a command, if it is about to.
    async fn free(&mut self, during: &'static str) -> Result<(), Error> {
        if matches!(self.mode, Mode::Failed) {
            while self.reply().await? != Reply::Ready {}
            self.mode = Mode::Idle;
        }
        match self.mode {
            Mode::Idle => Ok(()),
            _ => Err(Error::NotFree(during)),
        }
    }

    async fn send_command(&mut self, command: &str, during: &'static str) -> Result<(), Error> {
        self.free(during).await?;
        self.mode = Mode::Busy;
        frontend::query(command, self.wire.outbox()).map_err(|_| Error::Nul)?;
        self.wire.flush().await.map_err(Error::Lost)
    }

    /// After an error the server waits for the next command, unless it was fatal.
    fn fail<T>(&mut self, error: ServerError) -> Result<T, Error> {
        self.wire.enter(Phase::Command);
        self.mode = if error.is_fatal() { Mode::Over } else { Mode::Failed };
        Err(Error::Server(Box::new(error)))
    }

    /// The next message that is more than a remark.
    async fn reply(&mut self) -> Result<Reply, Error> {
        loop {
            match self.wire.buffered()? {
                Some(frame) => {
                    if let Some(reply) = self.pass_over(Reply::decode(frame)?) {
                        return Ok(reply);
                    }
                }
                None => self.wire.fill().await.map_err(Error::Lost)?,
            }
        }
    }

    /// Takes note of what may come at any time.
    fn pass_over(&mut self, reply: Reply) -> Option<Reply> {
        match reply {
            Reply::Notice(notice) => self.note(&notice),
            Reply::Parameter { name, value } => {
                if let Some(known) = self.parameters.get_mut(&name) {
                    *known = value;
                }
            }
            Reply::Ignored => {}
            other => return Some(other),
        }
        None
    }

    fn note(&mut self, notice: &ServerError) {
        match self.notices_left {
            0 => return,
            1 => warn!("the server sends too many notices; further ones are not shown"),
            _ if notice.severity == "WARNING" => warn!("the server warns: {notice}"),
            _ => debug!("the server says: {notice}"),
        }
        self.notices_left = self.notices_left.saturating_sub(1);
    }
}

fn texts(rows: &[Row]) -> Result<Vec<Vec<Option<String>>>, ProtocolError> {
    let text = |value: &Bytes| {
        String::from_utf8(value.to_vec()).map_err(|_| ProtocolError::Malformed("text (it is not UTF-8)"))
    };
    rows.iter().map(|row| row.values().iter().map(|value| value.as_ref().map(text).transpose()).collect()).collect()
}

fn value_error(what: &'static str, value: String) -> Error {
    Error::Protocol(ProtocolError::Value { what, value })
}

#[cfg(test)]
mod tests {
    use super::super::{Conninfo, Purpose};
    use super::*;

    #[test]
    fn a_session_can_be_driven_by_a_task() {
        fn spawnable<T: Send + 'static>(_: T) {}
        async fn all(conninfo: Conninfo, backup: BaseBackup, status: StandbyStatus) -> Result<(), Error> {
            let Ok(mut session) = Session::connect(&conninfo, Purpose::Replication, "test").await else {
                return Ok(());
            };
            let start = session.identify_system().await?.position;
            session.start_replication(None, start).await?;
            session.next_stream().await?;
            session.send_status(&status).await?;
            session.end_stream().await?;
            session.base_backup(&backup).await?;
            session.next_backup_event().await.map(drop)
        }
        let _ = |conninfo, backup, status| spawnable(all(conninfo, backup, status));
    }
}
