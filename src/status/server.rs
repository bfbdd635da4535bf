//! What the server says: its position and clock, and what the slot keeps there.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use thiserror::Error;
use tokio::time::timeout;

use super::End;
use crate::connection::{Error as SessionError, Session};
use crate::repository::Time;
use crate::wal::{Lsn, TimelineId};

/// The queries need no work.
const LIMIT: Duration = Duration::from_secs(30);

/// A server, as it told itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Server {
    /// As text.
    pub system_identifier: String,
    /// Its version, as it says it.
    pub version: String,
    /// Whether it is in recovery.
    pub standby: bool,
    /// Its timeline; a standby does not say.
    pub timeline: Option<TimelineId>,
    /// Exclusive end of what is flushed there; on a standby, of what it has received or replayed.
    pub position: Lsn,
    /// Its clock.
    pub clock: Time,
    /// `max_slot_wal_keep_size` in bytes; `None` if there is no limit.
    pub max_slot_wal_keep_size: Option<u64>,
    /// Its slots, by name.
    #[serde(skip)]
    pub slots: Vec<SlotStatus>,
}

/// A replication slot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct SlotStatus {
    /// Its name.
    pub name: String,
    /// `physical` or `logical`.
    pub kind: String,
    /// Whether somebody streams with it.
    pub active: bool,
    /// The application that does, if we may see that.
    pub used_by: Option<String>,
    /// The server keeps WAL from here on.
    pub restart_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Bytes that can be written before the slot may lose WAL; `None` if there is no limit.
    pub safe_wal_size: Option<i64>,
    /// Bytes that it keeps on the server.
    pub retained_bytes: Option<u64>,
}

/// How far the archive is behind a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Lag {
    /// WAL that the server had, and the archive has not; `None` if the archive holds nothing.
    pub bytes: Option<u64>,
    /// Seconds from the last commit that is held to the server's clock; 0 if nothing is missing.
    pub seconds: Option<u64>,
    /// True if commit times were not found near the end, so that it may be less.
    pub at_most: bool,
}

/// The server was not asked, or gave no answer that counts.
#[derive(Debug, Error)]
pub enum ServerError {
    /// It cannot be reached, or does not let us in.
    #[error("{0}")]
    Unreachable(String),
    /// The connection failed, or it refused.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// It did not answer in time.
    #[error("the server did not answer within {} s", LIMIT.as_secs())]
    Silent,
    /// It said what no server says.
    #[error("the server's answer makes no sense: {0}")]
    Answer(&'static str),
}

const SELF: &str = "select (select system_identifier from pg_control_system()), pg_is_in_recovery(), \
    case when pg_is_in_recovery() then greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
         else pg_current_wal_flush_lsn() end, \
    case when pg_is_in_recovery() then null else left(pg_walfile_name(pg_current_wal_flush_lsn()), 8) end, \
    (extract(epoch from clock_timestamp()) * 1000000)::bigint, \
    (select setting from pg_settings where name = 'max_slot_wal_keep_size')";

const SLOTS: &str = "select s.slot_name, s.slot_type, s.active, \
    (select application_name from pg_stat_activity where pid = s.active_pid), \
    s.restart_lsn, s.wal_status, s.safe_wal_size from pg_replication_slots s order by s.slot_name";

/// Asks a server, in an SQL session, about itself and its slots.
///
/// # Errors
/// When it refuses, is silent, or makes no sense.
pub async fn ask(session: &mut Session) -> Result<Server, ServerError> {
    timeout(LIMIT, ask_all(session)).await.unwrap_or(Err(ServerError::Silent))
}

async fn ask_all(session: &mut Session) -> Result<Server, ServerError> {
    let version = session.parameter("server_version").unwrap_or_default().to_owned();
    let rows = session.look_up(SELF).await?;
    let columns = rows.into_iter().next().ok_or(ServerError::Answer("it says nothing of itself"))?;
    let mut columns = columns.into_iter();
    let mut next = || columns.next().flatten();
    let system_identifier = next().ok_or(ServerError::Answer("it has no system identifier"))?;
    let standby = next().as_deref() == Some("t");
    let position = next().and_then(|text| text.parse().ok()).ok_or(ServerError::Answer("it has no position"))?;
    let timeline = next().and_then(|digits| u32::from_str_radix(&digits, 16).ok()).and_then(TimelineId::new);
    let clock = next().and_then(|text| text.parse().ok()).and_then(|us| Timestamp::from_microsecond(us).ok());
    let clock = Time(clock.ok_or(ServerError::Answer("it has no clock"))?);
    // In MiB; -1 for no limit.
    let limit: i64 =
        next().and_then(|text| text.parse().ok()).ok_or(ServerError::Answer("it has no max_slot_wal_keep_size"))?;
    let max_slot_wal_keep_size = u64::try_from(limit).ok().map(|mib| mib.saturating_mul(1 << 20));
    let rows = session.look_up(SLOTS).await?;
    let slots = rows.into_iter().map(|row| SlotStatus::from_row(row, position)).collect();
    Ok(Server { system_identifier, version, standby, timeline, position, clock, max_slot_wal_keep_size, slots })
}

impl SlotStatus {
    fn from_row(row: Vec<Option<String>>, position: Lsn) -> Self {
        let mut columns = row.into_iter();
        let mut next = || columns.next().flatten();
        let (name, kind) = (next().unwrap_or_default(), next().unwrap_or_default());
        let (active, used_by) = (next().as_deref() == Some("t"), next());
        let restart_lsn: Option<Lsn> = next().and_then(|text| text.parse().ok());
        let (wal_status, safe_wal_size) = (next(), next().and_then(|text| text.parse().ok()));
        let retained_bytes = restart_lsn.map(|restart| position.saturating_sub(restart));
        Self { name, kind, active, used_by, restart_lsn, wal_status, safe_wal_size, retained_bytes }
    }

    /// Whether the server has removed WAL that it was to keep, or may at any moment.
    pub fn loses_wal(&self) -> bool {
        matches!(self.wal_status.as_deref(), Some("lost" | "unreserved"))
    }
}

impl Server {
    /// How far what is `held` is behind it.
    pub(super) fn lag(&self, held: Option<End>) -> Lag {
        let Some(held) = held else { return Lag { bytes: None, seconds: None, at_most: false } };
        let bytes = self.position.saturating_sub(held.pos.lsn());
        if bytes == 0 {
            return Lag { bytes: Some(0), seconds: Some(0), at_most: false };
        }
        let since = held.last_commit.map(|last| self.clock.0.duration_since(last.timestamp()).as_secs());
        Lag {
            bytes: Some(bytes),
            seconds: since.map(|seconds| u64::try_from(seconds).unwrap_or(0)),
            at_most: held.last_commit.is_some_and(|last| !last.exact),
        }
    }
}
