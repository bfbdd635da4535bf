//! A server that is restarted, promoted or replaced underneath a receiver and a backup.

use crate::cluster::Stop;
use crate::fault::stage::{Plan, Strike, rounds_of};
use crate::room::{Outcome, Room};

/// Receiving goes on by itself; a backup that was under way is never sealed without its files or its WAL.
pub(crate) fn restarted(room: &Room) -> Outcome {
    rounds_of(
        room,
        &Plan {
            fault: "the server is restarted",
            how: "fast or immediate shutdown, with or without a backup under way",
            strikes: &[
                Strike::Stop(Stop::Fast),
                Strike::Stop(Stop::Immediate),
                Strike::StopInBackup(Stop::Fast),
                Strike::StopInBackup(Stop::Immediate),
            ],
            few: 4,
            words: &["disconnected: ", "connected again after"],
        },
    )
}
