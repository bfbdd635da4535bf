//! When to connect again, and which of the failed tries are worth a line in a log.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use crate::wal::Lsn;

/// A trouble that goes on is told again after this time.
const REMIND: Duration = Duration::from_secs(300);
/// A stream that lasted for so long was a good one: the next wait is short again.
const GOOD: Duration = Duration::from_secs(10);

/// How long to wait before connecting again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retry {
    /// The first wait, which doubles with each failed try.
    pub first: Duration,
    /// The longest wait.
    pub limit: Duration,
}

impl Default for Retry {
    /// From 100 ms to 5 s: commits may wait for this receiver, and a try every few seconds costs a
    /// server nothing.
    fn default() -> Self {
        Self { first: Duration::from_millis(100), limit: Duration::from_secs(5) }
    }
}

impl Retry {
    /// The wait after so many failed tries: between half of what it has grown to and all of it, as
    /// `random` says, so that receivers that lost a server together do not come back together.
    pub fn wait(&self, failures: u32, random: u32) -> Duration {
        let whole = self.first.saturating_mul(1 << failures.min(24)).min(self.limit);
        whole.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
    }
}

/// A number that differs from process to process and call to call; it protects nothing.
pub(super) fn random() -> u32 {
    let number = RandomState::new().hash_one(());
    u32::try_from(number >> 32).unwrap_or(0)
}

/// The time without a stream, from what ended one to what begins the next.
#[derive(Debug, Default)]
pub(super) struct Outage {
    since: Option<Instant>,
    /// When the last stream began.
    streaming: Option<Instant>,
    failures: u32,
    told: Option<(Instant, String)>,
    /// Exclusive end of what the last stream brought; 0 before the first.
    received: Lsn,
}

/// What to tell of a failed try, and how many there were before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Setback {
    pub(super) failures: u32,
    pub(super) away: Duration,
    pub(super) news: bool,
}

impl Outage {
    /// A stream has ended, or a try to have one again has failed. A reason that `lasts` is told when
    /// it is not the one that was told last; one that passes by itself only if it began the outage.
    pub(super) fn failed(&mut self, now: Instant, reason: &str, lasts: bool) -> Setback {
        if self.streaming.take().is_some_and(|began| now.saturating_duration_since(began) > GOOD) {
            self.failures = 0;
        }
        let since = *self.since.get_or_insert(now);
        let news = match &self.told {
            None => true,
            Some((at, told)) => lasts && told != reason || now.saturating_duration_since(*at) >= REMIND,
        };
        if news {
            self.told = Some((now, reason.to_owned()));
        }
        let setback = Setback { failures: self.failures, away: now.saturating_duration_since(since), news };
        self.failures = self.failures.saturating_add(1);
        setback
    }

    /// A stream begins, on a server whose log ends at `server`. If there was none before: for how long,
    /// and how many bytes of WAL there are to catch up.
    pub(super) fn streams(&mut self, now: Instant, server: Lsn) -> Option<(Duration, u64)> {
        self.streaming = Some(now);
        self.told = None;
        let since = self.since.take()?;
        let from = if self.received == Lsn::ZERO { server } else { self.received };
        Some((now.saturating_duration_since(since), server.saturating_sub(from)))
    }

    /// How far the stream that has just ended came.
    pub(super) fn received(&mut self, upto: Lsn) {
        self.received = upto;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_double_up_to_the_limit_and_are_spread_over_their_upper_half() {
        let retry = Retry { first: 100 * MS, limit: 5 * SECOND };
        let longest: Vec<_> = (0..8).map(|failures| retry.wait(failures, u32::MAX).as_millis()).collect();
        assert_eq!(longest, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        for failures in [0, 3, 40, u32::MAX] {
            let (least, most) = (retry.wait(failures, 0), retry.wait(failures, u32::MAX));
            assert_eq!(least * 2, most);
            assert!((least..=most).contains(&retry.wait(failures, random())));
        }
        assert!((0..100).any(|_| random() != random()));
    }

    #[test]
    fn an_outage_is_one_line_unless_somebody_must_act_or_it_goes_on() {
        let mut outage = Outage::default();
        let begun = Instant::now();
        let at = |seconds: u32| begun + seconds * SECOND;
        assert_eq!(outage.streams(begun, Lsn::new(500)), None);
        outage.received(Lsn::new(1000));
        let news = |outage: &mut Outage, seconds, reason, lasts| outage.failed(at(seconds), reason, lasts).news;
        assert!(news(&mut outage, 20, "lost", false));
        assert!(!news(&mut outage, 21, "connection refused", false));
        assert!(news(&mut outage, 22, "wrong password", true));
        assert!(!news(&mut outage, 23, "wrong password", true));
        assert!(news(&mut outage, 24, "no such slot", true));
        assert!(!news(&mut outage, 323, "no such slot", true));
        assert!(news(&mut outage, 324, "no such slot", true), "a reminder");
        assert_eq!(
            outage.failed(at(330), "starting up", false),
            Setback { failures: 7, away: 310 * SECOND, news: false }
        );
        assert_eq!(outage.streams(at(340), Lsn::new(1700)), Some((320 * SECOND, 700)));
        // Another server may be behind what was received.
        assert!(news(&mut outage, 341, "lost", false));
        assert_eq!(outage.streams(at(342), Lsn::new(900)), Some((SECOND, 0)));
    }

    #[test]
    fn only_a_stream_that_lasts_makes_the_next_wait_short_again() {
        let mut outage = Outage::default();
        let begun = Instant::now();
        for failures in 0..4 {
            outage.streams(begun, Lsn::ZERO);
            assert_eq!(outage.failed(begun + SECOND, "lost", false).failures, failures);
        }
        outage.streams(begun, Lsn::ZERO);
        assert_eq!(outage.failed(begun + 11 * SECOND, "lost", false).failures, 0);
    }
}
