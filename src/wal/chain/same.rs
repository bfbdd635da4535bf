//! What two chains over the same bytes have in common, and which timeline a page must be of.

use super::{Chain, State};
use crate::wal::{History, Lsn};

impl Chain {
    /// From here on each page must be of the timeline that the history has at its first byte: the
    /// page in which one timeline gives way to another was begun by the older one.
    #[must_use]
    pub fn along(mut self, history: &History) -> Self {
        let ends = history.switches().iter().map(|switch| (switch.at, switch.from.get()));
        self.route = ends.chain([(Lsn::new(u64::MAX), history.tli().get())]).collect();
        self
    }

    pub(super) fn timeline_at(&self, page: Lsn) -> Option<u32> {
        self.route.iter().find(|(end, _)| page < *end).map(|(_, tli)| *tli)
    }

    /// Whether both say the same of whatever bytes come next, and of where the last record ended.
    /// Where they began may differ.
    pub fn goes_on_like(&self, other: &Self) -> bool {
        let position = |chain: &Self| (chain.at, chain.whole, chain.page_left, chain.page_header_got, chain.at_head);
        let rules = |chain: &Self| (chain.size, chain.system_id, chain.newest_tli, chain.page_tli, chain.magic);
        let links = |chain: &Self| (chain.prev, chain.dropped);
        position(self) == position(other)
            && rules(self) == rules(other)
            && links(self) == links(other)
            && self.route == other.route
            && self.page_header.get(..self.page_header_got) == other.page_header.get(..other.page_header_got)
            && self.open_like(other)
    }

    /// Whether both are in the midst of the same record, or of none.
    fn open_like(&self, other: &Self) -> bool {
        let begun = || self.open.start == other.open.start;
        let read = || {
            (self.open.total, self.open.crc, &self.open.prefix)
                == (other.open.total, other.open.crc, &other.open.prefix)
        };
        match (self.state, other.state) {
            (State::Head { left: a }, State::Head { left: b }) => a == b,
            (State::Header { got: a }, State::Header { got: b }) => {
                a == b && begun() && self.open.header.get(..a) == other.open.header.get(..b)
            }
            (State::Data { left: a }, State::Data { left: b }) => {
                a == b && begun() && read() && self.open.header == other.open.header
            }
            (State::Padding, State::Padding) | (State::Start, State::Start) | (State::Rest, State::Rest) => true,
            _ => false,
        }
    }
}
