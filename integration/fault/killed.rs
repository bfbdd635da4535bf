//! `kill -9`, while writers commit and their commits wait for the receiver.

use crate::cluster::Stop;
use crate::fault::stage::{Plan, Strike, rounds_of};
use crate::room::{Outcome, Room};

/// Whatever a receiver that is killed leaves behind has all that it reported, and the next one goes on there.
pub(crate) fn receiver(room: &Room) -> Outcome {
    rounds_of(
        room,
        &Plan {
            fault: "the receiver is killed",
            how: "`kill -9` at a random moment",
            strikes: &[Strike::Receiver],
            few: 3,
            words: &["streaming from"],
        },
    )
}

/// A backup that is killed is never offered, and the one before it stays what it was.
pub(crate) fn backup(room: &Room) -> Outcome {
    rounds_of(
        room,
        &Plan {
            fault: "a backup is killed",
            how: "`kill -9` at a random moment of it",
            strikes: &[Strike::Backup],
            few: 3,
            words: &["given up"],
        },
    )
}

/// The server is killed whole, or crashes because one of its processes was.
pub(crate) fn server(room: &Room) -> Outcome {
    rounds_of(
        room,
        &Plan {
            fault: "the server is killed",
            how: "`kill -9` of the server with all its processes, of one session, or of the process that sends to the \
                  receiver; or an immediate shutdown",
            strikes: &[Strike::Server, Strike::Session, Strike::Sender, Strike::Stop(Stop::Immediate)],
            few: 4,
            words: &["disconnected: ", "connected again after"],
        },
    )
}

/// One of the three at random.
pub(crate) fn any(room: &Room) -> Outcome {
    rounds_of(
        room,
        &Plan {
            fault: "receiver, backup or server is killed",
            how: "`kill -9` of one of the three, at random",
            strikes: &[Strike::Receiver, Strike::Backup, Strike::Server, Strike::Session],
            few: 4,
            words: &["disconnected: ", "streaming from", "given up"],
        },
    )
}

/// What a power cut of a machine with all of them on it looks like, as far as killing shows it.
pub(crate) fn all(room: &Room) -> Outcome {
    rounds_of(
        room,
        &Plan {
            fault: "receiver, backup and server are killed at once",
            how: "`kill -9` of all processes of all three, and then started in either order",
            strikes: &[Strike::All],
            few: 3,
            words: &["streaming from"],
        },
    )
}
