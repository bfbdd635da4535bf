//! What was cut off since the parent of an incremental backup: read in the WAL, for nothing else tells it
//! ([`Cuts`]).

use tokio::task::spawn_blocking;

use super::BackupError;
use super::steps::{Run, unless_stopped};
use crate::archive::{Archive, NotProven, Stored};
use crate::image::{Cuts, TooManyCuts};
use crate::repository::Seal;
use crate::wal::{Lsn, OddTruncation, Pos, Record};

impl Run<'_> {
    /// Looks, before anything is copied, whether the archive has a name for all WAL since the parent started. It must
    /// be held up to where the server is now.
    pub(super) async fn changes_are_held(&mut self) -> Result<(), BackupError> {
        let now = self.session.identify_system().await?.position;
        let Some(parent) = &self.parent else { return Ok(()) };
        let (id, start) = (parent.seal.id, parent.seal.start.lsn());
        let listing = self.archive.list()?;
        let segments = self.archive.segments_between(start, now)?;
        // The server goes on meanwhile: the last two may just be received.
        let settled = segments.len().saturating_sub(2);
        for (index, segment) in segments.into_iter().enumerate() {
            let stored = listing.stored(segment);
            if stored == Stored::default() || (index < settled && !stored.complete) {
                return Err(BackupError::ChangesNotHeld { parent: id, segment });
            }
        }
        Ok(())
    }

    /// Reads what was cut off from the parent's start to `start`, up to where the WAL must be durable.
    pub(super) async fn cuts(&self, start: Pos) -> Result<Cuts, BackupError> {
        let Some(parent) = &self.parent else { return Ok(Cuts::default()) };
        let halt = self.stop.child_token();
        let _ends = halt.clone().drop_guard();
        let (archive, since) = (self.archive.until(&halt), parent.seal.start.lsn());
        let reading = spawn_blocking(move || read(&archive, since, start));
        match unless_stopped(self.stop, reading).await? {
            Ok(read) => read.map_err(|source| unread(&parent.seal, source)),
            Err(e) => Err(BackupError::Thread(std::io::Error::other(e))),
        }
    }
}

/// The cuts could not be read.
enum Unread {
    NotProven(NotProven),
    Odd(OddTruncation),
    TooMany(TooManyCuts),
}

fn unread(parent: &Seal, source: Unread) -> BackupError {
    let parent = parent.id;
    match source {
        Unread::NotProven(source) => BackupError::ChangesNotRead { parent, source },
        Unread::Odd(source) => BackupError::OddTruncation { parent, source },
        Unread::TooMany(source) => BackupError::TooManyCuts { parent, source },
    }
}

fn read(archive: &Archive, since: Lsn, start: Pos) -> Result<Cuts, Unread> {
    if since == start.lsn() {
        return Ok(Cuts::default());
    }
    let (mut cuts, mut noted) = (Cuts::default(), Ok(()));
    let all = archive.read_records(since, start, &mut |record| {
        if record.start >= since && noted.is_ok() {
            noted = note(&mut cuts, record);
        }
    });
    all.map_err(Unread::NotProven)?;
    noted.map(|()| cuts)
}

fn note(cuts: &mut Cuts, record: &Record<'_>) -> Result<(), Unread> {
    match record.truncation().map_err(Unread::Odd)? {
        Some(cut) => cuts.note(&cut).map_err(Unread::TooMany),
        None => Ok(()),
    }
}
