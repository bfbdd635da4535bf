//! What an incremental backup is based on.

use super::BackupError;
use crate::archive::{Archive, ArchiveError};
use crate::connection::{Error as SessionError, Session};
use crate::disk::Lock;
use crate::protocol::Condition;
use crate::repository::{Repository, Seal, newest_base};
use crate::spill::Scratch;
use crate::wal::{History, TimelineId};

/// Older servers cannot tell what has changed.
const FIRST_MAJOR: u32 = 17;

/// The backup that a new one is based on; it cannot expire as long as this lives.
pub(super) struct Parent {
    pub(super) seal: Seal,
    _locks: Vec<Lock>,
}

impl Parent {
    /// The newest that can be restored on the server's way. The server is given its manifest.
    pub(super) async fn find(repository: &Repository, session: &mut Session) -> Result<Self, BackupError> {
        let version = session.server_version();
        if version.major() < FIRST_MAJOR {
            return Err(BackupError::NoIncrements(version));
        }
        if session.show("summarize_wal").await? != "on" {
            return Err(BackupError::NoSummaries);
        }
        let tli = session.identify_system().await?.position.tli();
        let way = way(&repository.archive(), session, tli).await?;
        let backups = repository.backups()?;
        let id = newest_base(&backups, &way).ok_or(BackupError::NoParent(tli))?.id;
        let (mut chain, locks) = repository.hold_chain(id)?;
        let seal = chain.swap_remove(0);
        let contents = repository.contents(&seal);
        let manifest = contents.and_then(|contents| contents.manifest_spooled(Scratch::temporary()));
        let manifest = manifest.map_err(|source| BackupError::Parent { id, source })?;
        session.upload_manifest(&mut manifest.reader()).await.map_err(|source| cannot(&seal, source))?;
        drop(manifest);
        Ok(Self { seal, _locks: locks })
    }

    /// Why the server does not send what has changed since.
    pub(super) fn cannot(&self, source: SessionError) -> BackupError {
        cannot(&self.seal, source)
    }
}

fn cannot(seal: &Seal, source: SessionError) -> BackupError {
    match source.condition() {
        Some(Condition::NotReady) => BackupError::Increments { parent: seal.id, source },
        _ => source.into(),
    }
}

/// The timelines that lead to the server's. A receiver may not have brought the file yet.
async fn way(archive: &Archive, session: &mut Session, tli: TimelineId) -> Result<History, BackupError> {
    match archive.history(tli) {
        Err(ArchiveError::NoHistory(_)) => {
            let content = session.timeline_history(tli).await?;
            History::parse(tli, &content).map_err(|e| BackupError::Contradiction(e.to_string()))
        }
        held => Ok(held?),
    }
}
