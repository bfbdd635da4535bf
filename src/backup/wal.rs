//! Where a backup's WAL comes from: a receiver that fills the repository, whose files are followed
//! and synced here, or a stream of our own.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{BackupError, Event, Options};
use crate::archive::{Archive, Durable, Follower};
use crate::receive::{Event as ReceiveEvent, Finished, Options as ReceiveOptions, ReceiveError, Slot, Upstream, receive};
use crate::repository::{CapturedBy, Repository, RepositoryError};
use crate::wal::{Lsn, Pos};

/// How often a receiver's files are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// When nothing has come for so long and the repository's lock is free, the receiver has died.
const DEAD: Duration = Duration::from_secs(5);
/// Received WAL of our own stream waits no longer for a sync.
const SYNC: Duration = Duration::from_millis(50);
const STATUS: Duration = Duration::from_secs(10);

/// The WAL of one backup.
pub(super) struct Wal<'a> {
    repository: &'a Repository,
    archive: Archive,
    options: &'a Options,
    /// Where a stream of our own begins, if it must: the server keeps WAL from here on.
    kept_from: Pos,
    way: Way,
}

enum Way {
    Followed(Follower),
    Own(Own),
}

/// A stream of our own. It holds the repository's lock.
struct Own {
    stop: CancellationToken,
    durable: watch::Receiver<Option<Durable>>,
    task: JoinHandle<Result<Finished, ReceiveError>>,
}

/// What was waited for did not come.
pub(super) enum NotCome {
    /// Nothing came for the time that was given.
    Stalled {
        /// Exclusive end of what is held.
        whole: Lsn,
    },
    Failed(BackupError),
}

impl<E: Into<BackupError>> From<E> for NotCome {
    fn from(e: E) -> Self {
        Self::Failed(e.into())
    }
}

impl<'a> Wal<'a> {
    /// Begins to follow a receiver's files if one holds the repository, else to stream. `now` is
    /// the server's position, and `kept_from` the oldest WAL that the backup's slot keeps.
    pub(super) async fn begin(
        repository: &'a Repository,
        options: &'a Options,
        now: Pos,
        kept_from: Pos,
        tell: &mut impl FnMut(Event),
    ) -> Result<Self, BackupError> {
        let archive = repository.archive();
        let way = match repository.lock(&options.who) {
            Ok(lock) => {
                tell(Event::Streaming);
                Way::Own(Own::start(archive.clone(), options, kept_from, lock).await?)
            }
            Err(RepositoryError::Locked(_)) => {
                tell(Event::Following);
                Way::Followed(Follower::new(archive.clone(), archive.history(now.tli())?, now.lsn()))
            }
            Err(e) => return Err(e.into()),
        };
        Ok(Self { repository, archive, options, kept_from, way })
    }

    /// Follows the files again from `start` on, which may lie before the position that was secured.
    pub(super) fn rewind(&mut self, start: Pos) -> Result<(), BackupError> {
        if let Way::Followed(follower) = &mut self.way {
            *follower = Follower::new(self.archive.clone(), self.archive.history(start.tli())?, start.lsn());
        }
        Ok(())
    }

    /// Who brings it.
    pub(super) const fn captured_by(&self) -> CapturedBy {
        match self.way {
            Way::Followed(_) => CapturedBy::Receiver,
            Way::Own(_) => CapturedBy::Backup,
        }
    }

    /// Waits until all WAL up to `upto` is durable, as long as something comes at least once in
    /// `patience`.
    pub(super) async fn durable(
        &mut self,
        upto: Pos,
        patience: Duration,
        tell: &mut impl FnMut(Event),
    ) -> Result<Durable, NotCome> {
        let mut whole = Lsn::ZERO;
        let mut since = Instant::now();
        loop {
            let reached = match &mut self.way {
                Way::Own(own) => {
                    if let Some(durable) = own.durable_at(upto) {
                        return Ok(durable);
                    }
                    own.check().await?;
                    own.durable.borrow().map_or(Lsn::ZERO, |durable| durable.pos().lsn())
                }
                Way::Followed(follower) => {
                    let reached = tokio::task::block_in_place_or_here(|| follower.advance())?.whole;
                    if reached >= upto.lsn() {
                        return Ok(follower.settle()?);
                    }
                    reached
                }
            };
            if reached > whole {
                (whole, since) = (reached, Instant::now());
            }
            if since.elapsed() > DEAD {
                self.take_over(tell).await?;
            }
            if since.elapsed() > patience {
                return Err(NotCome::Stalled { whole });
            }
            self.wait().await;
        }
    }
}
