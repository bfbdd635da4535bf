//! Following WAL that another process writes, and making it durable ourselves: nobody's word is
//! taken for it.

use super::read::walk_segment;
use super::{Archive, ArchiveError, Durable, SegmentReader, Stopped, Stored};
use crate::codec::Codec;
use crate::disk::Access;
use crate::wal::{Chain, History, Lsn, Pos, Seed, Segment};

/// Walks the files of a folder as they grow.
#[derive(Debug)]
pub struct Follower {
    archive: Archive,
    route: History,
    chain: Chain,
    /// The first segment that has not been synced whole.
    unsynced: Segment,
    /// What has been walked from there on.
    walked: Vec<Walked>,
}

/// A segment that has been walked, at least in part, and may get another form before it is synced.
#[derive(Debug)]
struct Walked {
    segment: Segment,
    /// The chain at its beginning.
    before: Chain,
    /// It was read in its plain form, under either name.
    plain: bool,
}

/// How far the files reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Followed {
    /// Exclusive end of the last whole record.
    pub whole: Lsn,
    /// What the walk met there: usually the end of what the partial holds.
    pub stopped: Stopped,
}

impl Follower {
    /// Begins at the start of the segment that holds the byte before `from`, on `route`'s timeline:
    /// at a segment's end the next one may not be there yet.
    pub fn new(archive: Archive, route: History, from: Lsn) -> Self {
        let before = route.segment_at(Lsn::new(from.get().saturating_sub(1)), archive.size);
        // A receiver that began just there holds nothing before it.
        let held = archive.list().is_ok_and(|listing| listing.stored(before) != Stored::default());
        let first = if held { before } else { route.segment_at(from, archive.size) };
        let seed =
            Seed { start: first.start(), size: archive.size, system_id: archive.system_id, newest_tli: route.tli() };
        Self { archive, chain: Chain::new(seed), route, unsynced: first, walked: Vec::new() }
    }

    /// Walks on as far as the files go.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn advance(&mut self) -> Result<Followed, ArchiveError> {
        loop {
            let segment = self.route.segment_at(self.chain.at(), self.archive.size);
            let Some(mut reader) = self.archive.open_segment(segment, Access::ReadDirect)? else {
                return Ok(self.followed(Stopped::Missing(segment)));
            };
            self.note(&reader);
            let mut further = self.chain.clone();
            let stopped = walk_segment(&mut reader, &mut further, segment.end(), &mut |_| {})?;
            let whole = match stopped {
                // In a partial, zeros that are yet to be written may pass for data of an open record.
                Stopped::Reached if !reader.form().partial || further.whole() == segment.end() => {
                    self.chain = further;
                    continue;
                }
                Stopped::Invalid { broken, .. } => broken.whole,
                _ => further.whole(),
            };
            // A chain that has met what does not belong cannot go on: walk again up to there.
            if whole > self.chain.at()
                && let Some(mut reader) = self.archive.open_segment(segment, Access::ReadDirect)?
            {
                let mut further = self.chain.clone();
                if walk_segment(&mut reader, &mut further, whole, &mut |_| {})? == Stopped::Reached {
                    self.chain = further;
                }
            }
            return Ok(self.followed(stopped));
        }
    }

    /// Syncs the files and the folder, so that what [`Follower::advance`] walked is durable.
    ///
    /// # Errors
    /// When a sync fails, or a file has gone.
    pub fn settle(&mut self) -> Result<Durable, ArchiveError> {
        let end = Pos::new(self.route.tli(), self.chain.whole());
        let last = Lsn::new(end.lsn().get().saturating_sub(1));
        if end.lsn() <= self.unsynced.start() {
            // Nothing comes before it but what is not ours to keep.
            let names = self.archive.disk.sync_dir(&self.archive.dir)?;
            return Ok(Durable::new(end, &names, &names));
        }
        let mut segment = self.unsynced;
        loop {
            let Some(reader) = self.archive.open_segment(segment, Access::ReadDirect)? else {
                return Err(ArchiveError::Gone(segment));
            };
            let data = self.walked_again(reader)?.sync()?;
            let entry = self.archive.disk.sync_dir(&self.archive.dir)?;
            self.unsynced = segment;
            if segment.contains(last) {
                self.walked.retain(|walked| walked.segment == segment);
                return Ok(Durable::new(end, &data, &entry));
            }
            segment = self.route.segment_at(segment.end(), self.archive.size);
        }
    }

    fn note(&mut self, reader: &SegmentReader) {
        let segment = reader.segment();
        if self.walked.last().is_none_or(|walked| walked.segment != segment) {
            let plain = reader.form().codec == Codec::Plain;
            self.walked.push(Walked { segment, before: self.chain.clone(), plain });
        }
    }

    /// The same reader if it has the file that was walked. A plain one is; one that was compressed
    /// meanwhile is another, and holds what its writer says only when it has been read.
    fn walked_again(&self, mut reader: SegmentReader) -> Result<SegmentReader, ArchiveError> {
        let segment = reader.segment();
        let walked = self.walked.iter().find(|walked| walked.segment == segment);
        let walked = walked.ok_or(ArchiveError::Gone(segment))?;
        if walked.plain && reader.form().codec == Codec::Plain {
            return Ok(reader);
        }
        let upto = segment.end().min(self.chain.whole());
        match walk_segment(&mut reader, &mut walked.before.clone(), upto, &mut |_| {})? {
            Stopped::Reached => Ok(reader),
            _ => Err(ArchiveError::Changed(segment)),
        }
    }

    fn followed(&self, stopped: Stopped) -> Followed {
        Followed { whole: self.chain.whole(), stopped }
    }
}
