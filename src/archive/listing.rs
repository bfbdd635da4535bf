//! What the names in a folder of WAL say.

// What comes from outside never ends the program: no read beyond the end, no number that loses bits or overflows.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unwrap_used
    )
)]

use std::collections::BTreeMap;

use super::gap::GAP;
use crate::codec::Codec;
use crate::wal::{HistoryFile, Segment, SegmentSize, TimelineId};

/// A name that belongs to WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalName {
    /// `NAME[.zst|.lz4|.gz][.partial]`
    Segment {
        /// Which.
        segment: Segment,
        /// How its bytes are stored.
        codec: Codec,
        /// Whether it is still being received, or the tail of a timeline.
        partial: bool,
    },
    /// `NNNNNNNN.history[.zst|.lz4|.gz]`
    History(HistoryFile, Codec),
    /// `NAME.gap`: from this segment on WAL is missing, which an operator has accepted.
    Gap(Segment),
}

impl WalName {
    /// `None` for any other name; those are left alone.
    pub fn parse(name: &str, size: SegmentSize) -> Option<Self> {
        if let Some(stem) = name.strip_suffix(GAP) {
            return Segment::parse(stem, size).map(Self::Gap);
        }
        let (stem, partial) = name.strip_suffix(".partial").map_or((name, false), |stem| (stem, true));
        let (stem, codec) = Codec::split(stem);
        if let Some(segment) = Segment::parse(stem, size) {
            return Some(Self::Segment { segment, codec, partial });
        }
        HistoryFile::parse(stem).filter(|_| !partial).map(|file| Self::History(file, codec))
    }
}

/// In which forms one segment is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stored {
    /// Under its final name.
    pub complete: bool,
    /// Under a name that ends in `.partial`.
    pub partial: bool,
}

/// Complete segments of one timeline that follow each other without a hole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first.
    pub first: Segment,
    /// The last, included.
    pub last: Segment,
}

/// The segments and history files that a folder has names for.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    segments: BTreeMap<(TimelineId, u64), (Segment, Stored)>,
    histories: Vec<TimelineId>,
    gaps: Vec<Segment>,
    others: Vec<String>,
}

impl Listing {
    /// Sorts names.
    pub fn of<'a>(names: impl Iterator<Item = &'a str>, size: SegmentSize) -> Self {
        let mut listing = Self::default();
        for name in names {
            match WalName::parse(name, size) {
                Some(WalName::Segment { segment, partial, .. }) => {
                    let key = (segment.tli(), segment.no());
                    let (_, stored) = listing.segments.entry(key).or_insert_with(|| (segment, Stored::default()));
                    stored.complete |= !partial;
                    stored.partial |= partial;
                }
                Some(WalName::History(file, _)) => listing.histories.push(file.0),
                Some(WalName::Gap(segment)) => listing.gaps.push(segment),
                None => listing.others.push(name.to_owned()),
            }
        }
        listing.others.sort_unstable();
        listing.histories.sort_unstable();
        listing.histories.dedup();
        listing
    }

    /// Whether there is no segment, complete or partial.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// In which forms a segment is there.
    pub fn stored(&self, segment: Segment) -> Stored {
        self.segments.get(&(segment.tli(), segment.no())).map_or_else(Stored::default, |(_, stored)| *stored)
    }

    /// The newest timeline that a segment is there of.
    pub fn newest_timeline(&self) -> Option<TimelineId> {
        self.segments.last_key_value().map(|((tli, _), _)| *tli)
    }

    /// The timelines that a segment is there of, oldest first.
    pub fn timelines(&self) -> Vec<TimelineId> {
        let mut all: Vec<_> = self.segments.keys().map(|(tli, _)| *tli).collect();
        all.dedup();
        all
    }

    /// The timelines that a history file is there of, oldest first.
    pub fn histories(&self) -> &[TimelineId] {
        &self.histories
    }

    /// The segments from which on WAL is missing, as an operator has accepted.
    pub fn accepted_gaps(&self) -> &[Segment] {
        &self.gaps
    }

    /// The names that are not WAL's, in order.
    pub fn others(&self) -> &[String] {
        &self.others
    }

    /// The segments of one timeline in order, in whatever form.
    pub fn of_timeline(&self, tli: TimelineId) -> impl DoubleEndedIterator<Item = (Segment, Stored)> {
        self.segments.range((tli, 0)..=(tli, u64::MAX)).map(|(_, found)| *found)
    }

    /// The complete segments of one timeline as unbroken runs, in order.
    pub fn runs(&self, tli: TimelineId) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (segment, _) in self.of_timeline(tli).filter(|(_, stored)| stored.complete) {
            match runs.last_mut() {
                Some(run) if run.last.next() == segment => run.last = segment,
                _ => runs.push(Run { first: segment, last: segment }),
            }
        }
        runs
    }

    /// The holes in one timeline, in order: the first segment that is missing or only begun, and the
    /// next one that is held behind it.
    pub fn holes(&self, tli: TimelineId) -> Vec<(Segment, Segment)> {
        let mut holes = Vec::new();
        let mut expected: Option<Segment> = None;
        for (segment, stored) in self.of_timeline(tli) {
            holes.extend(expected.filter(|expected| *expected != segment).map(|first| (first, segment)));
            expected = Some(if stored.complete { segment.next() } else { segment });
        }
        holes
    }

    /// The highest segment of one timeline in any form.
    pub fn last_of(&self, tli: TimelineId) -> Option<(Segment, Stored)> {
        self.of_timeline(tli).next_back()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_into_runs() {
        let names = [
            "000000010000000000000003",
            "000000010000000000000001.gz",
            "000000010000000000000002.zst",
            "000000010000000000000005",
            "000000010000000000000006.partial",
            "000000010000000000000004.gap",
            "000000010000000000000006.tmp",
            "00000001000000000000000x",
            "00000002.history",
            "00000002.history.tmp",
            "lock",
        ];
        let listing = Listing::of(names.into_iter(), SegmentSize::DEFAULT);
        let first = TimelineId::FIRST;
        let runs: Vec<_> = listing.runs(first).iter().map(|r| (r.first.no(), r.last.no())).collect();
        assert_eq!(runs, [(1, 3), (5, 5)]);
        let holes: Vec<_> = listing.holes(first).iter().map(|(a, b)| (a.no(), b.no())).collect();
        assert_eq!(holes, [(4, 5)]);
        assert_eq!(listing.accepted_gaps().iter().map(|segment| segment.no()).collect::<Vec<_>>(), [4]);
        let begun =
            ["000000010000000000000003", "000000010000000000000004.partial", "000000010000000000000007.partial"];
        let holes = Listing::of(begun.into_iter(), SegmentSize::DEFAULT).holes(first);
        assert_eq!(holes.iter().map(|(a, b)| (a.no(), b.no())).collect::<Vec<_>>(), [(4, 7)]);
        assert_eq!(listing.last_of(first).map(|(s, f)| (s.no(), f.complete, f.partial)), Some((6, false, true)));
        assert_eq!(listing.histories(), [TimelineId::new(2).unwrap()]);
        assert_eq!(listing.timelines(), [first]);
        let others = ["000000010000000000000006.tmp", "00000001000000000000000x", "00000002.history.tmp", "lock"];
        assert_eq!(listing.others(), others);
    }
}
