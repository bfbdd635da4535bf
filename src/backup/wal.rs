//! Where a backup's WAL comes from: a receiver that fills the repository, whose files are followed
//! and synced here, or a stream of our own.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{BackupError, Event, Options};
use crate::archive::{Archive, Durable, Follower};
use crate::disk::Lock;
use crate::receive::{
    Event as ReceiveEvent, Finished, Options as ReceiveOptions, ReceiveError, Retry, Slot, Upstream, receive,
};
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
    Followed(Box<Follower>),
    Own(Own),
}

/// A stream of our own. It holds the repository's lock.
struct Own {
    stop: CancellationToken,
    durable: watch::Receiver<Option<Durable>>,
    /// Why it was last disconnected.
    trouble: watch::Receiver<String>,
    task: JoinHandle<Result<Finished, ReceiveError>>,
}

/// What was waited for did not come.
pub(super) enum NotCome {
    /// Nothing came for the time that was given.
    Stalled {
        /// Exclusive end of what is held.
        whole: Lsn,
        /// Why a stream of our own was last disconnected; `None` where a receiver is followed.
        own: Option<String>,
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
                Way::Followed(Box::new(Follower::new(archive.clone(), archive.history(now.tli())?, now.lsn())))
            }
            Err(e) => return Err(e.into()),
        };
        Ok(Self { repository, archive, options, kept_from, way })
    }

    /// Follows the files again from `start` on, which may lie before the position that was secured.
    pub(super) fn rewind(&mut self, start: Pos) -> Result<(), BackupError> {
        if let Way::Followed(follower) = &mut self.way {
            **follower = Follower::new(self.archive.clone(), self.archive.history(start.tli())?, start.lsn());
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
                Way::Own(own) => match own.reached(upto).await? {
                    Reached::All(durable) => return Ok(durable),
                    Reached::Upto(Lsn::ZERO) => {
                        // Nothing new may come: what is wanted may have been held before.
                        let route = self.archive.history(upto.tli());
                        let Ok(route) = route else { continue };
                        let mut look = Follower::new(self.archive.clone(), route, upto.lsn());
                        let reached = look.advance()?.whole;
                        if reached >= upto.lsn() {
                            return Ok(look.settle()?);
                        }
                        reached
                    }
                    Reached::Upto(lsn) => lsn,
                },
                // Nothing else runs meanwhile: while a receiver is followed, no stream is ours.
                Way::Followed(follower) => {
                    let reached = follower.advance()?.whole;
                    if reached >= upto.lsn() {
                        return Ok(follower.settle()?);
                    }
                    tokio::time::sleep(LOOK).await;
                    reached
                }
            };
            if reached > whole {
                (whole, since) = (reached, Instant::now());
            }
            if since.elapsed() > patience {
                let own = match &self.way {
                    Way::Own(own) => Some(own.trouble.borrow().clone()),
                    Way::Followed(_) => None,
                };
                return Err(NotCome::Stalled { whole, own });
            }
            if since.elapsed() > DEAD {
                self.take_over(tell).await?;
            }
        }
    }

    /// Streams from where the files end, if the receiver that filled them is gone.
    async fn take_over(&mut self, tell: &mut impl FnMut(Event)) -> Result<(), BackupError> {
        if matches!(self.way, Way::Own(_)) {
            return Ok(());
        }
        match self.repository.lock(&self.options.who) {
            Ok(lock) => {
                tell(Event::Streaming);
                self.way = Way::Own(Own::start(self.archive.clone(), self.options, self.kept_from, lock).await?);
                Ok(())
            }
            Err(RepositoryError::Locked(_)) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Ends a stream of our own and lets the repository go.
    pub(super) async fn close(self) {
        if let Way::Own(mut own) = self.way {
            own.stop.cancel();
            // What it made durable was told; how it ends changes nothing any more, and may have been asked already.
            if !own.task.is_finished() {
                let _ = (&mut own.task).await;
            }
        }
    }
}

/// How far a stream of our own has come.
enum Reached {
    All(Durable),
    Upto(Lsn),
}

impl Own {
    async fn start(archive: Archive, options: &Options, from: Pos, lock: Lock) -> Result<Self, BackupError> {
        let upstream = Upstream::connect(&options.conninfo, &options.application_name).await?;
        let receive_options = ReceiveOptions {
            conninfo: options.conninfo.clone(),
            application_name: options.application_name.clone(),
            slot: Slot::None,
            synchronous: false,
            sync_interval: SYNC,
            status_interval: Some(STATUS),
            end: None,
            retry: Some(Retry::default()),
            follow: None,
            accept_gap: None,
            island: Some(from),
            may_pass_over: false,
        };
        let stop = CancellationToken::new();
        let (tell, durable) = watch::channel(None);
        let (explain, trouble) = watch::channel("nothing came from the server".to_owned());
        let token = stop.clone();
        let task = tokio::spawn(async move {
            let _lock = lock;
            let mut told = |event| match event {
                ReceiveEvent::Durable(durable) => drop(tell.send_replace(Some(durable))),
                ReceiveEvent::Disconnected { error, .. } => drop(explain.send_replace(error.to_string())),
                _ => {}
            };
            receive(upstream, &archive, &receive_options, &token, &mut told).await
        });
        Ok(Self { stop, durable, trouble, task })
    }

    /// Waits a little for more to become durable.
    async fn reached(&mut self, upto: Pos) -> Result<Reached, BackupError> {
        let so_far = |durable: &Option<Durable>| durable.map(Durable::pos).filter(|pos| pos.tli() == upto.tli());
        let now = *self.durable.borrow_and_update();
        match (now, so_far(&now)) {
            (Some(durable), Some(pos)) if pos.lsn() >= upto.lsn() => return Ok(Reached::All(durable)),
            _ => {}
        }
        if tokio::time::timeout(LOOK, self.durable.changed()).await.is_ok_and(|changed| changed.is_err()) {
            // The stream has ended, which it does by itself only when it cannot go on.
            return match (&mut self.task).await {
                Ok(Err(e)) => Err(e.into()),
                Ok(Ok(_)) => Err(ReceiveError::Ended.into()),
                Err(e) => Err(BackupError::Thread(std::io::Error::other(e))),
            };
        }
        Ok(Reached::Upto(so_far(&now).map_or(Lsn::ZERO, Pos::lsn)))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
