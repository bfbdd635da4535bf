//! What may be given, and when it is known that there is nothing.

use std::collections::BTreeMap;

use super::{Outcome, Recovery};
use crate::archive::{Archive, ArchiveError, Listing, Stored};
use crate::wal::{History, Segment, TimelineId};

/// A segment that is asked for, and what is known of the server that asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Asked {
    pub(super) segment: Segment,
    /// The timeline that the recovery is pinned to.
    pub(super) pin: Option<TimelineId>,
    /// The first segment of the hole at which the recovery is meant to end.
    pub(super) gap: Option<Segment>,
    pub(super) recovery: Recovery,
    /// Whether partials were asked for.
    pub(super) partial: bool,
}

impl Asked {
    /// A standby that was fed the tail of an old timeline would run past the fork.
    fn takes_partials(&self) -> bool {
        match self.recovery {
            Recovery::ToPoint => true,
            Recovery::Standby => false,
            Recovery::Other => self.partial,
        }
    }

    fn ends_before(&self, segment: Segment) -> bool {
        self.gap.is_some_and(|gap| gap.tli() == segment.tli() && segment.no() >= gap.no())
    }
}

/// What is to be done.
pub(super) enum Verdict {
    /// It is given if it is there; a partial too, if so.
    Give {
        /// Whether a partial will do.
        partial: bool,
    },
    /// Nothing is to be looked for.
    Answer(Result<Outcome, String>),
}

/// Why a segment is not there.
pub(super) enum Missed {
    /// It has never been there.
    Absent,
    /// It may have been, or should be.
    Unknown(String),
}

/// How far recovery can go.
pub(in crate::restore) struct Reach {
    /// The last segment that is held without a hole before it.
    pub(in crate::restore) last: Segment,
    /// The first segment that is missing or only begun, and one that is held behind it.
    pub(in crate::restore) gap: Option<(Segment, Segment)>,
}

/// The history files of an archive, or those that matter.
pub(super) struct Histories(BTreeMap<TimelineId, History>);

impl Histories {
    /// Reads those of `timelines` that are there.
    pub(super) fn read(archive: &Archive, timelines: &[TimelineId]) -> Result<Self, ArchiveError> {
        let mut histories = BTreeMap::new();
        for tli in timelines {
            match archive.history(*tli) {
                Ok(history) => histories.insert(*tli, history),
                // Removed since it was listed.
                Err(ArchiveError::NoHistory(_)) => None,
                Err(e) => return Err(e),
            };
        }
        Ok(Self(histories))
    }

    /// The way to a timeline, as far as it is known.
    fn route(&self, tli: TimelineId) -> History {
        self.0.get(&tli).cloned().unwrap_or_else(|| History::alone(tli))
    }

    /// The timelines that the recovery goes along: to the one it is pinned to, else to the newest
    /// that comes from the one that is asked for.
    pub(super) fn way(&self, asked: &Asked) -> Result<Way, String> {
        let tli = asked.segment.tli();
        match asked.pin {
            Some(pin) if pin != tli && pin != TimelineId::FIRST && !self.0.contains_key(&pin) => {
                Err(format!("the history file of timeline {pin} is not in the archive"))
            }
            Some(pin) => Ok(Way(self.route(pin))),
            None => {
                let newest = self.0.values().rev().find(|history| history.switch_from(tli).is_some());
                Ok(Way(newest.cloned().unwrap_or_else(|| self.route(tli))))
            }
        }
    }
}

/// The timelines that a recovery goes along.
pub(super) struct Way(History);

impl Way {
    /// Whether its part of the log is read from this file. Another holds it if the timeline was left before.
    pub(super) fn has(&self, segment: Segment) -> bool {
        self.0.tli() == segment.tli() || self.owner(segment) == segment
    }

    fn owner(&self, segment: Segment) -> Segment {
        self.0.segment_at(segment.start(), segment.size())
    }
}

/// What the archive's names and history files say.
pub(in crate::restore) struct Holdings {
    listing: Listing,
    histories: Histories,
    nothing: String,
}

pub(super) fn nothing_held(archive: &Archive) -> String {
    format!("{} holds no WAL at all; is it the right directory, and mounted?", archive.dir().display())
}

impl Holdings {
    pub(in crate::restore) fn new(archive: &Archive, listing: Listing) -> Result<Self, ArchiveError> {
        let histories = Histories::read(archive, listing.histories())?;
        Ok(Self { listing, histories, nothing: nothing_held(archive) })
    }

    /// The names.
    pub(in crate::restore) const fn listing(&self) -> &Listing {
        &self.listing
    }

    /// How far the archive goes on along `way` from `segment`, which it holds.
    pub(in crate::restore) fn reach(&self, way: &History, segment: Segment) -> Reach {
        let mut last = segment;
        while self.listing.stored(last).complete {
            let next = way.segment_at(last.end(), last.size());
            if self.listing.stored(next) == Stored::default() {
                return Reach { last, gap: self.later(way, next).map(|later| (next, later)) };
            }
            last = next;
        }
        Reach { last, gap: self.later(way, last).map(|later| (last, later)) }
    }

    /// The way to a timeline, as far as it is known.
    pub(in crate::restore) fn route(&self, tli: TimelineId) -> History {
        self.histories.route(tli)
    }

    pub(super) fn decide(&self, asked: &Asked) -> Verdict {
        let segment = asked.segment;
        if self.listing.is_empty() {
            return Verdict::Answer(Err(self.nothing.clone()));
        }
        let way = match self.histories.way(asked) {
            Ok(way) => way,
            Err(why) => return Verdict::Answer(Err(why)),
        };
        if !way.has(segment) {
            return Verdict::Answer(self.instead_of(segment, way.owner(segment), asked));
        }
        let end = asked.ends_before(segment) || self.later(&way.0, segment).is_none();
        Verdict::Give { partial: asked.takes_partials() && end }
    }

    /// WAL that is held on the way behind a segment: of its own timeline or of a later one.
    fn later(&self, way: &History, segment: Segment) -> Option<Segment> {
        let own = self.listing.last_of(segment.tli()).map(|(last, _)| last).filter(|last| last.no() > segment.no());
        let on_way = way.switches().iter().map(|switch| switch.from).chain([way.tli()]);
        let mut newer = on_way.filter(|tli| *tli > segment.tli()).filter_map(|tli| self.listing.last_of(tli));
        own.or_else(|| newer.find_map(|(last, _)| (last.no() >= segment.no()).then_some(last)))
    }

    /// The server looks for a file of an older timeline when the newer one's is not there
    /// (`XLogFileReadAnyTLI`): the answer for that one is the answer for this one.
    fn instead_of(&self, segment: Segment, owner: Segment, asked: &Asked) -> Result<Outcome, String> {
        if self.listing.stored(owner) == Stored::default() {
            return match self.miss(&Asked { segment: owner, ..*asked }) {
                Missed::Absent => Ok(Outcome::Absent),
                Missed::Unknown(why) => Err(why),
            };
        }
        match asked.recovery {
            Recovery::Standby => Ok(Outcome::Absent),
            _ => Err(format!(
                "{segment} is not given, because the archive's timeline goes on in {owner}; \
                 a recovery that is to stay on timeline {tli} must say so with --timeline {tli}",
                tli = segment.tli()
            )),
        }
    }

    /// Why a segment was not found that these names do not show as complete.
    pub(super) fn miss(&self, asked: &Asked) -> Missed {
        let segment = asked.segment;
        if self.listing.is_empty() {
            return Missed::Unknown(self.nothing.clone());
        }
        if self.listing.stored(segment).complete {
            return Missed::Unknown(format!("segment {segment} was there and cannot be found now"));
        }
        if asked.ends_before(segment) || self.begins_later(segment) {
            return Missed::Absent;
        }
        match self.histories.way(asked).map(|way| self.later(&way.0, segment)) {
            Err(why) => Missed::Unknown(why),
            Ok(Some(later)) => Missed::Unknown(format!(
                "segment {segment} is missing from the archive, and the archive goes on to {later}"
            )),
            Ok(None) if self.listing.last_of(segment.tli()).is_some() => Missed::Absent,
            Ok(None) => self.miss_of_timeline(asked),
        }
    }

    /// Whether its timeline was forked off only after this segment.
    fn begins_later(&self, segment: Segment) -> bool {
        let history = self.histories.0.get(&segment.tli());
        history.is_some_and(|history| history.segment_at(segment.start(), segment.size()) != segment)
    }

    /// No segment of the timeline is held.
    fn miss_of_timeline(&self, asked: &Asked) -> Missed {
        let tli = asked.segment.tli();
        let newest = self.listing.newest_timeline().max(self.histories.0.keys().next_back().copied());
        let expected = asked.pin == Some(tli);
        // The history is held before the first byte: what follows it has not come yet. The same goes
        // for a timeline that is newer than all that is held.
        if !expected && (self.histories.0.contains_key(&tli) || newest.is_some_and(|newest| tli > newest)) {
            return Missed::Absent;
        }
        Missed::Unknown(format!("the archive holds no WAL of timeline {tli}"))
    }
}
