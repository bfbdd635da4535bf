//! Whether the storage holds the writer up, and what to tell of it.

use std::time::{Duration, Instant};

/// So long the writer may do nothing before it is told: other commits wait for it.
const LONG: Duration = Duration::from_secs(10);
/// How often it is told that it goes on.
const REMIND: Duration = Duration::from_secs(300);

/// The time since the writer, who is to make something durable, has last done anything.
#[derive(Debug, Default)]
pub(super) struct Stall {
    since: Option<Instant>,
    told: Option<Instant>,
}

impl Stall {
    /// The writer was asked to make durable what it has.
    pub(super) fn asked(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// The writer has got on, and has `done` what it was asked for or not yet. If it was told that it
    /// did not: for how long.
    pub(super) fn got_on(&mut self, now: Instant, done: bool) -> Option<Duration> {
        let since = self.since?;
        self.since = Some(now).filter(|_| !done);
        self.told.take().map(|_| now.saturating_duration_since(since))
    }

    /// When there will be something to tell unless the writer gets on.
    pub(super) fn due(&self) -> Option<Instant> {
        let since = self.since?;
        Some(self.told.map_or(since + LONG, |told| told + REMIND))
    }

    /// For how long the writer has done nothing, if that is to be told now.
    pub(super) fn held_up(&mut self, now: Instant) -> Option<Duration> {
        let since = self.since.filter(|_| self.due().is_some_and(|due| now >= due))?;
        self.told = Some(now);
        Some(now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_writer_that_does_nothing_is_told_of_once_in_a_while_and_when_it_gets_on() {
        let mut stall = Stall::default();
        let begun = Instant::now();
        let at = |seconds: u32| begun + seconds * SECOND;
        assert_eq!((stall.due(), stall.held_up(at(100)), stall.got_on(at(100), true)), (None, None, None));
        stall.asked(at(100));
        stall.asked(at(105));
        assert_eq!(stall.due(), Some(at(110)));
        assert_eq!(stall.held_up(at(109)), None);
        assert_eq!(stall.held_up(at(110)), Some(10 * SECOND));
        assert_eq!((stall.due(), stall.held_up(at(409))), (Some(at(410)), None));
        assert_eq!(stall.held_up(at(410)), Some(310 * SECOND));
        assert_eq!(stall.got_on(at(420), true), Some(320 * SECOND));
        assert_eq!(stall.due(), None);
    }

    #[test]
    fn a_writer_that_is_slow_is_not_held_up() {
        let mut stall = Stall::default();
        let begun = Instant::now();
        stall.asked(begun);
        for seconds in [9, 18, 27] {
            let now = begun + seconds * SECOND;
            assert_eq!((stall.held_up(now), stall.got_on(now, false)), (None, None));
        }
        assert_eq!(stall.due(), Some(begun + 37 * SECOND));
    }
}
