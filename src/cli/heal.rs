//! Sealing what waits, beside other work: `walhold backup` does it before its own backup, and
//! `walhold receive` whenever the WAL has come that one waits for.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tracing::{debug, info, warn};

use crate::repository::{BackupId, Healing, Repository, RepositoryError};
use crate::wal::Pos;

/// How often a receiver looks for backups that wait, besides at each segment's end.
const LOOK: Duration = Duration::from_secs(60);
/// How long the end of the program waits for a proof that is under way.
const FAREWELL: Duration = Duration::from_secs(5);

/// Seals all that waits for nothing any more, and says what became of each.
pub(super) fn heal_all(repository: &Repository) -> Result<(), RepositoryError> {
    for (id, _) in repository.waiting()? {
        heal(repository, id)?;
    }
    Ok(())
}

/// What a receiver has done.
pub(super) enum News {
    /// WAL up to here is durable.
    Durable(Pos),
    /// A segment that ends here is complete, and durable.
    Segment(Pos),
}

/// A thread that seals backups as the WAL comes in that they wait for. What goes wrong there is
/// logged, and never hinders receiving.
pub(super) struct Healer {
    news: Option<Sender<News>>,
    /// Closed when the thread has ended.
    ended: Receiver<()>,
}

impl Healer {
    pub(super) fn start(repository: Repository) -> std::io::Result<Self> {
        let (news, inbox) = channel();
        let (lives, ended) = channel();
        let watch = move || {
            Watch { repository, held: None, told: HashSet::new() }.run(&inbox);
            drop::<Sender<()>>(lives);
        };
        std::thread::Builder::new().name("seal".to_owned()).spawn(watch)?;
        Ok(Self { news: Some(news), ended })
    }

    pub(super) fn tell(&self, news: News) {
        if let Some(to) = &self.news {
            // Should the thread have died, backups wait for the next program that seals them.
            let _ = to.send(news);
        }
    }
}

impl Drop for Healer {
    fn drop(&mut self) {
        drop(self.news.take());
        // What it cannot end in this time is as if it had been killed: the backup waits on.
        let _ = self.ended.recv_timeout(FAREWELL);
    }
}

struct Watch {
    repository: Repository,
    /// Exclusive end of what is durable.
    held: Option<Pos>,
    /// Those of which it has been said why they cannot be sealed.
    told: HashSet<BackupId>,
}

impl Watch {
    fn run(mut self, inbox: &Receiver<News>) {
        let mut waiting = self.look();
        // Their WAL may have come before.
        waiting.retain(|(id, _)| self.still_waits(*id));
        loop {
            let first = match inbox.recv_timeout(LOOK) {
                Ok(news) => Some(news),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut look = first.is_none();
            for news in first.into_iter().chain(inbox.try_iter()) {
                match news {
                    News::Durable(pos) => self.held = Some(pos),
                    News::Segment(end) => (self.held, look) = (Some(end), true),
                }
            }
            if look {
                waiting = self.look();
            }
            waiting.retain(|(id, stop)| !self.has_come(*stop) || self.still_waits(*id));
        }
    }

    fn look(&self) -> Vec<(BackupId, Pos)> {
        let mut waiting = self.repository.waiting().unwrap_or_else(|e| {
            debug!("cannot look for backups that wait: {e}");
            Vec::new()
        });
        waiting.retain(|(id, _)| !self.told.contains(id));
        waiting
    }

    /// Whether it is worth reading the WAL: what is held has passed the place, or is on another timeline.
    fn has_come(&self, stop: Pos) -> bool {
        self.held.is_some_and(|held| held.tli() != stop.tli() || held.lsn() >= stop.lsn())
    }

    fn still_waits(&mut self, id: BackupId) -> bool {
        match heal(&self.repository, id) {
            Ok(Some(Healing::Waiting { .. })) => true,
            Ok(Some(Healing::Failed(_))) => {
                self.told.insert(id);
                false
            }
            Ok(_) => false,
            Err(e) => {
                debug!("cannot look at backup {id}: {e}");
                true
            }
        }
    }
}

fn heal(repository: &Repository, id: BackupId) -> Result<Option<Healing>, RepositoryError> {
    let healing = repository.heal(id)?;
    match &healing {
        Some(Healing::Sealed(_)) => info!("backup {id} is complete: its WAL has come, and is proven"),
        Some(Healing::Waiting { stop, held }) => {
            info!("backup {id} still waits for WAL up to {stop}; the archive holds it up to {held}");
        }
        Some(Healing::Failed(e)) => warn!("backup {id} cannot be sealed: {e}"),
        None => {}
    }
    Ok(healing)
}
