//! Why receiving cannot go on.

use std::io;

use thiserror::Error;

use super::Violation;
use crate::archive::{ArchiveError, ResumeError, WriteError};
use crate::connection::{ConnectError, Error as SessionError};
use crate::disk::DiskError;
use crate::protocol::SlotName;
use crate::wal::{Broken, HistoryFile, Lsn, Pos, TimelineId};

/// WAL that is needed and that the server has no more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gap {
    /// Exclusive end of what is held: the first byte that is missing.
    pub held: Pos,
    /// Where the server's log ends now.
    pub server: Pos,
    /// The oldest WAL that the slot keeps, if it told.
    pub kept_from: Option<Lsn>,
}

/// Why receiving cannot go on. What was made durable before stays so.
#[derive(Debug, Error)]
pub enum ReceiveError {
    /// The server cannot be reached, or does not let us in.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server refused a command, or broke the protocol.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The server broke the rules of the stream.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The server is not the one whose WAL is held.
    #[error("the archive belongs to the cluster with system identifier {held}, and the server's is {server}")]
    OtherCluster {
        /// Of the archive.
        held: u64,
        /// Of the server.
        server: u64,
    },
    /// Same cluster, other segment size: it was changed with `pg_resetwal`.
    #[error("the archive's segments have {held} bytes, and the server's have {server}")]
    OtherSegmentSize {
        /// Of the archive.
        held: u64,
        /// Of the server.
        server: u64,
    },
    /// The server was shut down, or ended the stream, and we are not to connect again.
    #[error("the server ended the stream")]
    Ended,
    /// The slot must exist and does not.
    #[error("replication slot \"{}\" does not exist", .0.as_str())]
    NoSlot(SlotName),
    /// Where an old server's slot stands cannot be found out.
    #[error("cannot find out where replication slot \"{}\" stands: {reason}", slot.as_str())]
    SlotPosition {
        /// The slot.
        slot: SlotName,
        /// What the SQL session said.
        reason: String,
    },
    /// The slot exists, and the server does not keep WAL for it any more.
    #[error(
        "replication slot \"{}\" has lost its WAL: the archive ends at {held}, and the server is at {server}",
        slot.as_str()
    )]
    SlotLost {
        /// Which.
        slot: SlotName,
        /// Exclusive end of what is held.
        held: Pos,
        /// The server's position.
        server: Pos,
    },
    /// WAL is missing between what is held and what the server still has.
    #[error("the server no longer has the WAL that comes next: the archive ends at {}, and the server is at {}", .0.held, .0.server)]
    Gap(Box<Gap>),
    /// The archive holds more than the server ever wrote.
    #[error("the archive is ahead of the server: it holds WAL up to {held}, and the server is at {server}")]
    Ahead {
        /// Exclusive end of what is held.
        held: Pos,
        /// The server's position.
        server: Pos,
        /// It is a standby, which may yet receive what we hold.
        standby: bool,
    },
    /// The server sends other bytes than are held.
    #[error("the server's WAL differs from the archive's at {0}")]
    Diverged(Pos),
    /// The server's history left ours before the end of what is held.
    #[error("timeline {to} forked off at {at}, and the archive holds timeline {from} up to {held}")]
    ForkedBefore {
        /// The timeline that is held.
        from: TimelineId,
        /// The one that the server goes on with.
        to: TimelineId,
        /// Where it forked off.
        at: Lsn,
        /// Exclusive end of what is held.
        held: Lsn,
    },
    /// The server's history does not hold the archive's timeline at all.
    #[error("the server is on timeline {server}, whose history does not contain timeline {held} of the archive")]
    OtherHistory {
        /// The timeline that is held.
        held: TimelineId,
        /// The server's.
        server: TimelineId,
    },
    /// The server's account of its timelines contradicts itself.
    #[error("the server says that timeline {0} follows, and its history file ({file}) says otherwise", file = HistoryFile(*.0).name())]
    NextTimeline(TimelineId),
    /// The same record did not verify when it was sent again.
    #[error("{broken}, and it was the same when it was sent again")]
    NotValid {
        /// The timeline that was received.
        tli: TimelineId,
        /// Where and why.
        broken: Broken,
    },
    /// The archive cannot be gone on with.
    #[error(transparent)]
    Resume(ResumeError),
    /// The archive cannot be read or written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The writer's thread cannot be started, or has died.
    #[error("the thread that writes WAL has failed: {0}")]
    Thread(io::Error),
}

impl From<DiskError> for ReceiveError {
    fn from(e: DiskError) -> Self {
        Self::Archive(e.into())
    }
}

impl From<ResumeError> for ReceiveError {
    fn from(e: ResumeError) -> Self {
        match e {
            ResumeError::Archive(e) => Self::Archive(e),
            ResumeError::OtherCluster { held, server } => Self::OtherCluster { held, server },
            other => Self::Resume(other),
        }
    }
}

impl From<WriteError> for ReceiveError {
    fn from(e: WriteError) -> Self {
        match e {
            WriteError::Archive(e) => Self::Archive(e),
            WriteError::Broken { tli, broken } => Self::NotValid { tli, broken },
            WriteError::Diverged(at) => Self::Diverged(at),
            // The pipe knows it for what it is.
            WriteError::Filled(_) => Self::Ended,
        }
    }
}

impl ReceiveError {
    /// Whether only the connection to the server is at fault, so that what was received is as durable
    /// as it was to be.
    pub fn is_of_connection(&self) -> bool {
        matches!(self, Self::Ended | Self::Connect(_) | Self::Session(_) | Self::Violation(Violation::Silent(_)))
    }

    /// The storage's trouble, if that is what it is.
    pub fn disk(&self) -> Option<&DiskError> {
        match self {
            Self::Archive(ArchiveError::Disk(e)) => Some(e),
            Self::Resume(ResumeError::Archive(ArchiveError::Disk(e))) => Some(e),
            _ => None,
        }
    }
}
