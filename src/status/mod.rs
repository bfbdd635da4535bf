//! What can be restored, until when, and what endangers it: told from names, seals, a few segments
//! and, if one is asked, the server. Writes nothing.

mod archive;
mod backups;
mod check;
mod server;
mod times;

use jiff::Timestamp;
use serde::Serialize;
use thiserror::Error;

pub use archive::{Cause, End, GapStatus, IslandStatus, RangeStatus, TimelineStatus, WindowStatus};
pub use backups::{BackupStatus, Stage, Waiting};
pub use check::{Limits, MaxLag, Reason, span};
pub use server::{Lag, Server, ServerError, SlotStatus, ask};
pub use times::Moment;

use crate::archive::ArchiveError;
use crate::protocol::SlotName;
use crate::repository::{BackupEntry, DrillRecord, Repository, RepositoryError};
use times::Times;

/// What a repository holds, and how it fares.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Status {
    /// The directory.
    pub repository: String,
    /// The cluster, as text, for it has more digits than many readers keep of a number.
    pub system_identifier: String,
    /// Bytes.
    pub segment_size: u64,
    /// Who writes WAL into it.
    pub writer: Option<WriterStatus>,
    /// Where WAL ends on the newest timeline; `None` if there is none.
    pub held: Option<End>,
    /// What can be restored; that of the newest timeline last.
    pub windows: Vec<WindowStatus>,
    /// What is missing, and what it cost. Each is told for as long as WAL before it is held.
    pub gaps: Vec<GapStatus>,
    /// WAL that a backup brought itself and that nothing has gone on with.
    pub islands: Vec<IslandStatus>,
    /// The timelines that WAL is held of, oldest first.
    pub timelines: Vec<TimelineStatus>,
    /// In the order of timeline and start.
    pub backups: Vec<BackupStatus>,
    /// What the server says, if one was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerAnswer>,
    /// What could not be read.
    pub problems: Vec<String>,
}

/// Who writes WAL.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct WriterStatus {
    /// What it says of itself.
    pub who: String,
    /// Whether it is a receiver, rather than a backup that brings its own WAL.
    pub receives: bool,
}

/// What came of asking the server, and the slot that is ours there.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// What it told.
    pub server: &'a Result<Server, ServerError>,
    /// The slot.
    pub slot: &'a SlotName,
}

impl Asked<'_> {
    fn answer(self, repository: &Repository, held: Option<End>) -> ServerAnswer {
        match self.server {
            Err(e) => ServerAnswer::Failed { reason: e.to_string() },
            Ok(server) if server.system_identifier != repository.system_id().to_string() => ServerAnswer::Failed {
                reason: format!("it is the cluster with system identifier {}", server.system_identifier),
            },
            Ok(server) => ServerAnswer::Told {
                server: Box::new(server.clone()),
                slot_name: self.slot.to_string(),
                slot: server.slots.iter().find(|slot| slot.name == self.slot.as_str()).cloned(),
                lag: server.lag(held),
            },
        }
    }
}

/// What came of asking the server.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerAnswer {
    /// It told.
    Told {
        /// What.
        #[serde(flatten)]
        server: Box<Server>,
        /// The slot that was asked for.
        slot_name: String,
        /// What it says of that; `None` if there is none of that name.
        slot: Option<SlotStatus>,
        /// How far the archive is behind it.
        lag: Lag,
    },
    /// It could not be asked, and this is why.
    Failed {
        /// In a line.
        reason: String,
    },
}

/// The repository cannot be read.
#[derive(Debug, Error)]
pub enum StatusError {
    /// Its documents or folders.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// Its WAL.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// Tells how a repository fares. Ask the server first ([`ask`]): what the archive holds a moment later
/// is then held against it.
///
/// # Errors
/// When its folders, documents or history files cannot be read. What cannot be read of a segment is
/// in [`Status::problems`].
pub fn status(repository: &Repository, server: Option<Asked<'_>>) -> Result<Status, StatusError> {
    let entries = repository.backups()?;
    let coverage = repository.coverage(&entries)?;
    let mut reader = archive::Reader::new(&coverage, &entries, Times::new(repository.archive()));
    let held = reader.held();
    let (windows, gaps) = (reader.windows(), reader.gaps());
    let islands = reader.islands();
    let timelines = reader.timelines();
    let (backups, mut problems) = backups::all(repository, &entries, &windows, &mut reader);
    problems.extend(reader.into_problems());
    let server = server.map(|asked| asked.answer(repository, held));
    Ok(Status {
        repository: repository.dir().display().to_string(),
        system_identifier: repository.system_id().to_string(),
        segment_size: repository.segment_size().bytes(),
        writer: repository.writer()?.map(WriterStatus::new),
        held,
        windows,
        gaps,
        islands,
        timelines,
        backups,
        server,
        problems,
    })
}

/// The backups of a repository, each as it was found and as it fares.
#[derive(Clone, PartialEq, Debug)]
pub struct Listed {
    /// In the order of timeline and start.
    pub entries: Vec<BackupEntry>,
    /// In the same order.
    pub backups: Vec<BackupStatus>,
    /// What could not be read.
    pub problems: Vec<String>,
}

/// Tells how the backups of a repository fare, and no more.
///
/// # Errors
/// As [`status`].
pub fn backups(repository: &Repository) -> Result<Listed, StatusError> {
    let entries = repository.backups()?;
    let coverage = repository.coverage(&entries)?;
    let mut reader = archive::Reader::new(&coverage, &entries, Times::new(repository.archive()));
    let windows = reader.windows();
    let (backups, mut problems) = backups::all(repository, &entries, &windows, &mut reader);
    problems.extend(reader.into_problems());
    Ok(Listed { entries, backups, problems })
}

impl WriterStatus {
    fn new(who: String) -> Self {
        let receives = who.starts_with("walhold receive");
        Self { who, receives }
    }
}

impl Status {
    /// The newest backup that can be restored: complete, with its WAL and what it is based on.
    pub fn newest_usable(&self) -> Option<&BackupStatus> {
        self.backups.iter().rev().find(|backup| backup.is_usable())
    }

    /// The last drill of any backup.
    pub fn last_drill(&self) -> Option<&DrillRecord> {
        self.backups.iter().filter_map(|backup| backup.drill.as_ref()).max_by_key(|drill| drill.finished)
    }

    /// Why an operator should look, each in a few words; nothing if all is well.
    pub fn reasons(&self, limits: Limits, now: Timestamp) -> Vec<Reason> {
        check::reasons(self, limits, now)
    }
}

#[cfg(test)]
pub(crate) mod tests;
