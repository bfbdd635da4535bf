//! `walhold receive --max-slot-lag`: what the slot keeps on the server is watched, beside receiving.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::HumanBytes;
use tracing::{debug, warn};

use super::{Exit, Failure};
use crate::connection::Conninfo;
use crate::receive::{Slot, drop_slot, kept_by_slot};

/// How often the server is asked.
const LOOK: Duration = Duration::from_secs(10);
/// How often it is said again that the slot keeps too much.
const REMIND: Duration = Duration::from_secs(300);
/// How often, and how often in all, the slot is tried to be dropped that a dead connection still holds.
const DROP_AGAIN: Duration = Duration::from_secs(1);
const DROP_TRIES: u32 = 90;

/// What to do when the slot keeps too much.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Action {
    /// Say so, and go on
    Warn,
    /// End; the slot stays, and keeps all that is missing
    Stop,
    /// End and drop the slot: the server is saved, and what it then removes is missing from the archive
    Drop,
}

/// Watches one slot.
pub(super) struct Guard {
    /// Of several servers the one that is received from: another may have a slot of that name, too.
    conninfo: Mutex<Conninfo>,
    slot: Slot,
    /// Bytes.
    limit: u64,
    action: Action,
}

impl Guard {
    pub(super) const fn new(conninfo: Conninfo, slot: Slot, limit: u64, action: Action) -> Self {
        Self { conninfo: Mutex::new(conninfo), slot, limit, action }
    }

    /// From now on WAL is received from this server.
    pub(super) fn look_at(&self, conninfo: &Conninfo) {
        conninfo.clone_into(&mut self.conninfo.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn server(&self) -> Conninfo {
        self.conninfo.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the number of bytes once the slot keeps so much that receiving must end: more than the
    /// limit, and no less than when it was last looked. A receiver that catches up is left alone.
    pub(super) async fn exceeded(&self) -> u64 {
        let mut told: Option<Instant> = None;
        let mut before = u64::MAX;
        loop {
            match kept_by_slot(&self.server(), &self.slot).await {
                Ok(Some(bytes)) if bytes > self.limit && bytes >= std::mem::replace(&mut before, bytes) => {
                    if self.action != Action::Warn {
                        return bytes;
                    }
                    if told.is_none_or(|told| told.elapsed() >= REMIND) {
                        warn!("{}", self.words(bytes));
                        told = Some(Instant::now());
                    }
                }
                Ok(Some(bytes)) if bytes > self.limit => {}
                Ok(_) => (told, before) = (None, u64::MAX),
                Err(e) => debug!("cannot ask what the slot keeps: {e}"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What is to be done after receiving has ended for it, and told.
    pub(super) async fn act(&self, bytes: u64) -> Failure {
        let words = self.words(bytes);
        if self.action != Action::Drop {
            return Failure::error(format!("{words}: stopped")).hint(
                "the slot stays and goes on keeping WAL: start receive again once it can keep up, \
                 or drop the slot (walhold slot drop) before the server's disk is full",
            );
        }
        match self.drop_slot().await {
            Ok(()) => Failure::error(format!("{words}: stopped, and dropped the slot")).exit(Exit::Gap).hint(
                "the next walhold receive makes the slot anew and goes on if the server still has the WAL; \
                 if not, it says what is missing",
            ),
            Err(e) => Failure::error(format!("{words}: stopped, but cannot drop the slot: {e}"))
                .hint("drop it by hand (walhold slot drop) before the server's disk is full"),
        }
    }

    async fn drop_slot(&self) -> Result<(), crate::receive::ReceiveError> {
        let mut tries = 1;
        loop {
            match drop_slot(&self.server(), &self.slot).await {
                // Our own connection may not have been noticed to be gone.
                Err(e) if tries < DROP_TRIES => debug!("cannot drop the slot yet: {e}"),
                done => return done,
            }
            tries += 1;
            tokio::time::sleep(DROP_AGAIN).await;
        }
    }

    fn words(&self, bytes: u64) -> String {
        let name = self.slot.name().map(ToString::to_string).unwrap_or_default();
        let (bytes, limit) = (HumanBytes(bytes), HumanBytes(self.limit));
        format!("the server keeps {bytes} of WAL for replication slot \"{name}\", more than {limit}")
    }
}
