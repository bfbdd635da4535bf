//! Receiving WAL: the state machine that decides, the thread that writes, and the task that
//! connects them to a server and goes on after whatever ends a connection.

mod doubts;
mod error;
mod guard;
mod machine;
mod pipe;
mod retry;
mod run;
mod session;
mod setup;
mod stall;
mod stream;

use std::time::Duration;

use crate::archive::Durable;
use crate::connection::Conninfo;
use crate::protocol::SlotName;
use crate::wal::{Lsn, Pos, Segment, TimelineId};

pub use error::{Gap, ReceiveError};
pub use guard::{drop_slot, kept_by_slot};
pub use machine::{Action, Ending, Input, Receiver, Settings, Status, Violation};
pub use retry::Retry;
pub use run::receive;
pub use setup::Upstream;

/// Which slot keeps the WAL that we have not made durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Slot {
    /// None: the server may remove WAL that we have not received.
    None,
    /// One that exists.
    Existing(SlotName),
    /// One that is made, with reserved WAL, if it is missing.
    Ensured(SlotName),
}

impl Slot {
    /// Its name.
    pub const fn name(&self) -> Option<&SlotName> {
        match self {
            Self::None => None,
            Self::Existing(name) | Self::Ensured(name) => Some(name),
        }
    }
}

/// What to receive, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server.
    pub conninfo: Conninfo,
    /// What the server knows us by; `synchronous_standby_names` may name it.
    pub application_name: String,
    /// The slot.
    pub slot: Slot,
    /// Sync, and report, whenever nothing more has arrived.
    pub synchronous: bool,
    /// Longest time that received bytes wait for a sync.
    pub sync_interval: Duration,
    /// Longest time between two statuses.
    pub status_interval: Option<Duration>,
    /// Stop when more than up to here has been received.
    pub end: Option<Lsn>,
    /// How to connect again when the connection ends; `None`: not at all.
    pub retry: Option<Retry>,
    /// A timeline that is followed wherever it forked off, because the operator says that it is the
    /// one to go on with. Others must fork off near the end of what is held.
    pub follow: Option<TimelineId>,
    /// The end of what is held, if the operator accepts that WAL is missing from there on: receiving
    /// then begins anew where the slot stands, or the server.
    pub accept_gap: Option<Lsn>,
    /// Where an archive that does not reach up to here begins anew: the start of a backup's island.
    /// Elsewhere a receiver never begins behind the end of what is held.
    pub island: Option<Pos>,
    /// Whether an empty archive may begin at the server's position where it cannot be found out what
    /// the slot keeps from before that: before 15, for a role that may not use SQL.
    pub may_pass_over: bool,
}

/// What a receiver tells while it works.
#[derive(Debug)]
pub enum Event {
    /// The way to the server that is connected, and to no other that the operator may have named.
    Connected(Box<Conninfo>),
    /// A connected server is about to be asked for WAL from this position on.
    Begins(Pos),
    /// Streaming begins at this position.
    Streaming(Pos),
    /// A segment is complete and durable.
    Complete(Segment),
    /// More is durable.
    Durable(Durable),
    /// The stream goes on in another timeline, which forked off here.
    Switched(Pos),
    /// More is held of the old timeline than the new one goes on from: what lies between is no part of the
    /// server's past.
    ForkPassed {
        /// Exclusive end of what is held of the old timeline.
        held: Pos,
        /// Where the new one forked off.
        fork: Pos,
    },
    /// What is held of the old timeline's last segment stays under this name.
    TailKept(Segment),
    /// What is held lies in more than one stretch; receiving goes on at the end of the last.
    AfterHole(Pos),
    /// What the slot keeps from before this position is not received, because where it begins is not told.
    PassedOver {
        /// The slot.
        slot: SlotName,
        /// The server's position.
        before: Pos,
        /// Why it is not told.
        reason: String,
    },
    /// Commits wait until a standby has replayed them, which an archive never does.
    RemoteApply,
    /// The server does not have the WAL between these any more, and the operator has accepted it:
    /// receiving begins anew at the second.
    GapAccepted {
        /// Exclusive end of what is held.
        held: Pos,
        /// The first byte that is held behind the gap.
        from: Pos,
    },
    /// What the slot still keeps of a hole is received first.
    Filling(Pos),
    /// The slot kept nothing any more: the server has removed the WAL that it was made to keep. It was
    /// dropped, to be made anew.
    SlotLost(SlotName),
    /// The slot was made.
    SlotMade(SlotName),
    /// Nothing is held, and yet the slot was there already that is made where it is missing.
    SlotOlder {
        /// The slot.
        slot: SlotName,
        /// The oldest WAL that it keeps: receiving begins there.
        from: Pos,
    },
    /// It was made on another server than the one before, where the slot of this name stays.
    SlotLeft {
        /// The slot.
        slot: SlotName,
        /// The server before.
        target: String,
    },
    /// The storage has not answered for so long. Nothing is reported as durable until it does.
    HeldUp(Duration),
    /// It answers again, after so long.
    GotOn(Duration),
    /// There is still no room for a segment, minutes after the last word of it.
    StillFull,
    /// The stream has ended, or a try to have it again has failed. The next try comes after a while.
    Disconnected {
        /// Why.
        error: ReceiveError,
        /// It will not pass by itself: the operator must do something.
        lasts: bool,
        /// Worth a line in a log: it begins an outage, or is another reason that lasts, or the last
        /// line was minutes ago.
        news: bool,
        /// For how long there has been no stream.
        away: Duration,
        /// How long until the next try.
        wait: Duration,
        /// The server that does not fit what is held, if the next try is for another of the list.
        passed_over: Option<String>,
    },
    /// A stream begins again.
    Reconnected {
        /// For how long there was none.
        away: Duration,
        /// Bytes of WAL that the server has and that have not been received.
        behind: u64,
    },
    /// A record did not verify; it is asked for once more.
    Again {
        /// Where and why.
        broken: crate::wal::Broken,
        /// Where receiving begins again.
        from: Segment,
    },
}

/// Why a receiver ended in good order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finished {
    /// It was told to stop.
    Stopped,
    /// It passed the end position.
    EndPosition,
}
