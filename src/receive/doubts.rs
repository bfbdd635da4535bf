//! What has gone wrong while receiving, and what is to be expected after the next error.

use std::time::{Duration, Instant};

use super::retry::Outage;
use super::{Event, ReceiveError, Upstream, Violation};
use crate::archive::Archive;
use crate::connection::{Conninfo, Error as SessionError};
use crate::disk::Trouble;
use crate::protocol::Condition;
use crate::wal::{Lsn, Pos, Segment};

/// A slot that our own dead connection holds is free after the server's timeout and a little more; a
/// server that has none keeps it until its network gives up, and is waited for so long.
const RELEASE: Duration = Duration::from_secs(2);
const NO_TIMEOUT: Duration = Duration::from_secs(60);
/// How many places that did not verify are asked for again without any progress.
const MOST_BROKEN: usize = 5;

/// What has gone wrong before, and is final if it goes wrong again.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// A stream has run. What the server refuses from now on is worth another try: an operator who
    /// mends it finds the receiver at work.
    streamed: bool,
    /// Since when the slot has been in use.
    in_use: Option<Instant>,
    /// After how much silence the server gives up a connection.
    pub(super) sender_timeout: Option<Duration>,
    /// The server did not have the WAL that comes next.
    pub(super) removed: bool,
    /// Nor does it have the WAL of a hole, although the slot should have kept it.
    pub(super) unfillable: bool,
    /// Where receiving begins anew behind a gap that the operator has accepted.
    pub(super) accepted: Option<Pos>,
    /// The slot cannot be used any more.
    pub(super) slot_lost: bool,
    pub(super) slot_remade: bool,
    /// Records that did not verify.
    broken: AskedFor,
    /// Where to begin again because of it.
    pub(super) from: Option<Segment>,
    /// How far streams have come, and how far they had when last something came that made no sense.
    reached: Lsn,
    nonsense: Option<Lsn>,
    /// The last stream brought what a hole lacks.
    pub(super) filling: bool,
    pub(super) outage: Outage,
    /// Servers that do not fit what is held, one after the other since a stream ran or all were tried.
    pub(super) passed_over: Vec<String>,
    /// One of them may yet catch up.
    one_is_behind: bool,
    /// The server that streamed last.
    pub(super) target: Option<String>,
}

/// What comes of a server that does not fit what is held.
pub(super) struct Unfit {
    /// Where to connect next, if not to any of the list.
    pub(super) elsewhere: Option<Conninfo>,
    /// One of the list may do, now or later.
    pub(super) passes: bool,
}

/// What is to be expected after an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outlook {
    /// It may pass by itself.
    Passes,
    /// Somebody must do something, which a later try will find done.
    Lasts,
    /// Trying again is of no use, or would be wrong.
    Final,
}

impl Doubts {
    /// Whether the server has said for the first time what would be final, and is asked once more.
    pub(super) fn may_ask_again(
        &mut self,
        error: &ReceiveError,
        archive: &Archive,
        tell: &mut impl FnMut(Event),
    ) -> bool {
        match error {
            ReceiveError::Session(e) if e.condition() == Some(Condition::WalRemoved) => {
                !std::mem::replace(&mut self.removed, true)
            }
            // It is made anew.
            ReceiveError::Session(_) if self.slot_lost => true,
            ReceiveError::NotValid { tli, broken } if self.broken.once_more(broken.whole) => {
                let from = Segment::containing(Pos::new(*tli, broken.whole), archive.size());
                self.from = Some(from);
                tell(Event::Again { broken: *broken, from });
                true
            }
            // Another past differs each time; what a network has changed does not.
            ReceiveError::Diverged(_) if !self.filling => self.made_sense_before(),
            _ => false,
        }
    }

    /// Where to connect next, if it is this server that does not fit and another of the list may: a
    /// standby that is behind, a server of another cluster or another history. When none is left, all are tried
    /// again.
    pub(super) fn pass_over(&mut self, error: &ReceiveError, target: Option<String>, conninfo: &Conninfo) -> Unfit {
        let unfit = is_unfit(error);
        self.passed_over.extend(target.filter(|_| unfit));
        self.one_is_behind |= matches!(error, ReceiveError::Ahead { standby: true, .. });
        let elsewhere = if unfit { conninfo.without(&self.passed_over) } else { None };
        let mut passes = elsewhere.is_some();
        if elsewhere.is_none() {
            self.passed_over.clear();
            passes = std::mem::take(&mut self.one_is_behind) && unfit;
        }
        Unfit { elsewhere, passes }
    }

    pub(super) fn outlook(&mut self, now: Instant, error: &ReceiveError) -> Outlook {
        let in_use = matches!(error, ReceiveError::Session(e) if e.condition() == Some(Condition::InUse));
        if in_use {
            let since = *self.in_use.get_or_insert(now);
            let limit = self.sender_timeout.unwrap_or(NO_TIMEOUT) + RELEASE;
            if now.saturating_duration_since(since) < limit {
                return Outlook::Passes;
            }
        }
        let passes = match error {
            ReceiveError::Ended | ReceiveError::Violation(Violation::Silent(_)) => true,
            // A network without TLS may have changed a byte.
            ReceiveError::Violation(_) | ReceiveError::Session(SessionError::Protocol(_)) => {
                self.streamed && self.made_sense_before()
            }
            ReceiveError::Connect(e) => e.is_transient(),
            ReceiveError::Session(e) => e.is_transient(),
            ReceiveError::Ahead { standby, .. } => *standby,
            other => is_full(other),
        };
        let refused = match error {
            ReceiveError::Connect(_) | ReceiveError::NoSlot(_) | ReceiveError::SlotPosition { .. } => true,
            ReceiveError::Session(e) => e.condition().is_some_and(|condition| condition != Condition::WalRemoved),
            _ => false,
        };
        match (passes, refused && self.streamed) {
            (true, _) => Outlook::Passes,
            (false, true) => Outlook::Lasts,
            (false, false) => Outlook::Final,
        }
    }

    /// Whether a stream has come further since last something came that made no sense.
    fn made_sense_before(&mut self) -> bool {
        let before = self.nonsense.replace(self.reached);
        before.is_none_or(|before| before < self.reached)
    }

    /// A stream begins.
    pub(super) fn streams(&mut self, upstream: &Upstream, tell: &mut impl FnMut(Event)) {
        (self.streamed, self.in_use, self.slot_remade) = (true, None, false);
        self.passed_over.clear();
        self.one_is_behind = false;
        self.target = Some(upstream.session.target().to_owned());
        if let Some((away, behind)) = self.outage.streams(Instant::now(), upstream.position.lsn()) {
            tell(Event::Reconnected { away, behind });
        }
    }

    /// The writer has kept all before `received`.
    pub(super) fn passed(&mut self, received: Lsn) {
        self.outage.received(received);
        self.reached = self.reached.max(received);
        if self.from.is_some_and(|from| received >= from.end()) {
            self.from = None;
        }
    }
}

/// Places that were asked for again, since one further on than all before was found broken.
#[derive(Debug, Default)]
struct AskedFor(Vec<Lsn>);

impl AskedFor {
    /// Whether to ask for the record at `at` again: not for one that has come twice since there was
    /// progress, and not for one after the other for ever.
    fn once_more(&mut self, at: Lsn) -> bool {
        if self.0.iter().all(|before| *before < at) {
            self.0.clear();
        }
        let again = !self.0.contains(&at) && self.0.len() < MOST_BROKEN;
        if again {
            self.0.push(at);
        }
        again
    }
}

/// Whether it is this server that does not fit what is held.
fn is_unfit(error: &ReceiveError) -> bool {
    matches!(
        error,
        ReceiveError::Ahead { standby: true, .. }
            | ReceiveError::OtherCluster { .. }
            | ReceiveError::OtherHistory { .. }
    )
}

/// Whether there is no room, which passes.
pub(super) fn is_full(error: &ReceiveError) -> bool {
    error.disk().is_some_and(|e| e.trouble() == Trouble::Full)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of these places are asked for again, in this order.
    fn asked(places: &[u64]) -> Vec<bool> {
        let mut asked_for = AskedFor::default();
        places.iter().map(|at| asked_for.once_more(Lsn::new(*at))).collect()
    }

    #[test]
    fn a_broken_record_is_asked_for_once_and_progress_counts_anew() {
        assert_eq!(asked(&[10, 10]), [true, false]);
        assert_eq!(asked(&[10, 20, 30, 40, 50, 60, 70, 80]), [true; 8]);
        assert_eq!(asked(&[10, 20, 10, 20]), [true, true, true, false]);
        assert_eq!(asked(&[90, 80, 70, 60, 50, 40, 30]), [true, true, true, true, true, false, false]);
        assert_eq!(asked(&[90, 80, 70, 60, 50, 95, 90]), [true; 7]);
    }
}
