//! Sets of segments.

use std::collections::BTreeMap;

use super::RemovedWal;
use crate::wal::{Segment, TimelineId};

/// Segments that are needed, as numbers from and to, both included.
#[derive(Default)]
pub(super) struct Spans(BTreeMap<TimelineId, Vec<(u64, u64)>>);

impl Spans {
    pub(super) fn add(&mut self, segments: Option<(Segment, Segment)>) {
        if let Some((first, last)) = segments.filter(|(first, last)| first.tli() == last.tli()) {
            self.0.entry(first.tli()).or_default().push((first.no(), last.no()));
        }
    }

    pub(super) fn meets(&self, (first, last): (Segment, Segment)) -> bool {
        let spans = self.0.get(&first.tli());
        spans.is_some_and(|spans| spans.iter().any(|(from, to)| *from <= last.no() && first.no() <= *to))
    }

    pub(super) fn merge(&mut self) {
        for spans in self.0.values_mut() {
            spans.sort_unstable();
            let mut merged: Vec<(u64, u64)> = Vec::new();
            for (from, to) in spans.drain(..) {
                match merged.last_mut().filter(|last| from <= last.1.saturating_add(1)) {
                    Some(last) => last.1 = last.1.max(to),
                    None => merged.push((from, to)),
                }
            }
            *spans = merged;
        }
    }

    pub(super) fn timelines(&self) -> impl Iterator<Item = TimelineId> {
        self.0.keys().copied()
    }

    /// The parts of a range that are not needed. The spans are merged.
    pub(super) fn outside(&self, (first, last): (Segment, Segment)) -> Vec<RemovedWal> {
        let spans = self.0.get(&first.tli()).map_or(&[][..], Vec::as_slice);
        let segment = |no: u64| Segment::at(first.tli(), no, first.size());
        let mut parts = Vec::new();
        let mut part = |from: u64, to: u64| parts.push(RemovedWal { first: segment(from), last: segment(to) });
        let mut next = first.no();
        let begin = spans.partition_point(|(_, to)| *to < next);
        for (from, to) in spans.iter().skip(begin).take_while(|(from, _)| *from <= last.no()) {
            if *from > next {
                part(next, from - 1);
            }
            next = to.saturating_add(1);
        }
        if next <= last.no() {
            part(next, last.no());
        }
        parts
    }
}
