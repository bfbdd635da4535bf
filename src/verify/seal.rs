//! Backups that wait for WAL: how far it has come, and their sealing once it is there.

use serde::Serialize;

use super::{Verdict, VerifyError};
use crate::repository::{BackupEntry, BackupId, Healing, NotUsable, Pending, Repository};
use crate::wal::{Lsn, Pos};

/// What has become of a backup that waited.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Healed {
    /// It is sealed now.
    Sealed {
        /// Which.
        id: BackupId,
    },
    /// Its WAL ends too early so far.
    Waiting {
        /// Which.
        id: BackupId,
        /// Exclusive end of the WAL it needs.
        stop: Pos,
        /// Exclusive end of what is held of it.
        held: Lsn,
    },
    /// It cannot be sealed as things are.
    Failed {
        /// Which.
        id: BackupId,
        /// Why not.
        reason: String,
    },
}

/// Seals the backups, or the one, whose WAL has come since they were made.
///
/// # Errors
/// When the backups cannot be listed.
pub fn seal_waiting(repository: &Repository, which: Option<BackupId>) -> Result<Vec<Healed>, VerifyError> {
    let mut healed = Vec::new();
    for (id, _) in repository.waiting()?.into_iter().filter(|(id, _)| which.is_none_or(|which| which == *id)) {
        healed.extend(repository.heal(id)?.map(|healing| match healing {
            Healing::Sealed(_) => Healed::Sealed { id },
            Healing::Waiting { stop, held } => Healed::Waiting { id, stop, held },
            Healing::Failed(e) => Healed::Failed { id, reason: e.to_string() },
        }));
    }
    Ok(healed)
}

/// What is said of a backup without a seal.
pub(super) fn not_sealed(repository: &Repository, entry: &BackupEntry, pending: Option<&Pending>) -> Verdict {
    let (id, running) = (entry.id, entry.running);
    let waiting_for = pending.and_then(|pending| pending.stop);
    let reason = NotUsable::NotSealed { id, waiting_for, running }.to_string();
    let ready = pending.and_then(|pending| pending.ready.as_deref()).filter(|_| !running);
    let (held, more) = match ready.map(|seal| (seal.stop, repository.held_for(seal))) {
        None => (None, String::new()),
        Some((_, Err(e))) => (None, format!("; {e}")),
        Some((stop, Ok(held))) if held < stop.lsn() => (Some(held), format!(" (the archive holds up to {held})")),
        Some((_, Ok(held))) => (Some(held), ", which the archive holds: walhold verify --seal seals it".to_owned()),
    };
    Verdict::NotSealed { reason: reason + &more, waiting_for, held, running }
}
