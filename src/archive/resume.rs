//! Where the archive ends, and a writer that goes on from there.

use thiserror::Error;

use super::read::walk_segment;
use super::write::{Held, Place};
use super::{Archive, ArchiveError, Form, Listing, SegmentReader, Stopped, Stored, WalName, Writer};
use crate::codec::Codec;
use crate::disk::{Access, DiskError, Trouble};
use crate::wal::{Broken, Chain, Fault, History, Lsn, Pos, Seed, Segment, SegmentSize, TimelineId};

/// What the archive held when it was opened to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OldEnd {
    /// Exclusive end of the last whole record.
    pub valid: Lsn,
    /// Exclusive end of all bytes that may have been acknowledged: of an open record, too.
    pub touched: Lsn,
}

/// A writer, and where the server must begin to send.
#[derive(Debug)]
pub struct Resumption {
    /// The first byte of the first segment that is not complete.
    pub start: Pos,
    /// What was held on that timeline; `None` if nothing that leads up to `start` is held.
    pub old: Option<OldEnd>,
    /// True if other WAL of the timeline lies before a hole before `start`'s run: an island.
    pub after_hole: bool,
    /// True if WAL of the timeline lies behind a hole that begins at `start` and can be filled.
    pub filling: bool,
    /// Takes the bytes from `start` on.
    pub writer: Writer,
}

/// The archive cannot be gone on with.
#[derive(Debug, Error)]
pub enum ResumeError {
    /// It cannot be read or written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A segment that was complete is not valid any more.
    #[error("segment {segment} in the archive is damaged: {broken}")]
    Damaged {
        /// Which.
        segment: Segment,
        /// Where and why.
        broken: Broken,
    },
    /// A segment that was complete has lost its end.
    #[error("segment {segment} in the archive holds {bytes} bytes and must hold {}", segment.size().bytes())]
    Truncated {
        /// Which.
        segment: Segment,
        /// How many bytes there are.
        bytes: u64,
    },
    /// The archive holds another cluster's WAL.
    #[error("the archive holds WAL of the cluster with system identifier {held}, and the server's is {server}")]
    OtherCluster {
        /// In the segments.
        held: u64,
        /// What the server says.
        server: u64,
    },
    /// The folder's segments are not of the server's size, so it is another cluster's, or was before
    /// its size was changed.
    #[error("{name} in the archive is no segment of this server, whose segments have {server} bytes")]
    OtherSegmentSize {
        /// The first such name.
        name: String,
        /// The size that the server's segments have.
        server: u64,
    },
    /// A position that no segment can begin at: a server or operator said it.
    #[error("WAL cannot begin at {0}")]
    NoSuchStart(Lsn),
}

impl From<DiskError> for ResumeError {
    fn from(e: DiskError) -> Self {
        Self::Archive(e.into())
    }
}

/// What a partial holds.
#[derive(Clone, Copy)]
struct Partial {
    form: Form,
    /// Exclusive end of the last whole record.
    valid: Lsn,
    /// Exclusive end of all that may have been acknowledged.
    touched: Lsn,
    /// It is plain and can be written in place.
    full_size: bool,
    /// It can be given its final name.
    whole: bool,
}

impl Archive {
    /// Opens the archive at its end; `None` if it holds no segment. The newest timeline is gone on
    /// with, at the end of its last unbroken run; but if the server keeps WAL for us from `kept_from`
    /// on, a hole that ends beyond that is gone on with first: a backup that brought its own WAL must
    /// not make a receiver pass over what it still owes.
    ///
    /// A partial that turns out to be whole is given its final name. Where one of the last complete
    /// segments has lost its end, receiving begins with it.
    ///
    /// # Errors
    /// When what is held is damaged, another cluster's, or cannot be read.
    pub fn resume(&self, kept_from: Option<Lsn>) -> Result<Option<Resumption>, ResumeError> {
        let listing = self.list()?;
        let Some((last, tli)) = listing.newest_timeline().and_then(|tli| Some((listing.last_of(tli)?, tli))) else {
            return self.is_empty(&listing).map(|()| None);
        };
        let (segment, stored) = last;
        self.settle_names(segment, stored)?;
        let holes = listing.holes(tli);
        let owed = kept_from.and_then(|kept| holes.iter().find(|(_, behind)| behind.start() > kept));
        let end = if stored.complete { segment.next() } else { segment };
        let mut resumption = self.begin(&self.route(tli)?, owed.map_or(end, |(first, _)| *first))?;
        if owed.is_some() {
            resumption.writer.fill();
        }
        Ok(Some(Resumption { after_hole: !holes.is_empty(), filling: owed.is_some(), ..resumption }))
    }

    /// A folder without a segment of this size must not have one of another: what it holds would be
    /// passed over without a word.
    fn is_empty(&self, listing: &Listing) -> Result<(), ResumeError> {
        let of_other_size =
            |name: &&String| matches!(WalName::parse(name, SegmentSize::SMALLEST), Some(WalName::Segment { .. }));
        match listing.others().iter().find(of_other_size) {
            Some(name) => Err(ResumeError::OtherSegmentSize { name: name.clone(), server: self.size.bytes() }),
            None => Ok(()),
        }
    }

    /// The segment that has lost its end, if that is what is wrong.
    fn cut(&self, e: &ResumeError) -> Option<Segment> {
        match e {
            ResumeError::Truncated { segment, .. } => Some(*segment),
            ResumeError::Archive(ArchiveError::Decode { path, .. }) => {
                match WalName::parse(path.file_name()?.to_str()?, self.size)? {
                    WalName::Segment { segment, .. } => Some(segment),
                    WalName::History(..) | WalName::Gap(_) => None,
                }
            }
            _ => None,
        }
    }

    /// Makes durable what an earlier process may have left unsynced before it could report it: the
    /// last segment it completed, and names. (A partial is synced when it is gone on with.)
    fn settle_names(&self, last: Segment, stored: Stored) -> Result<(), ArchiveError> {
        let complete = if stored.complete { Some(last) } else { last.previous() };
        match complete.map(|segment| self.open_segment(segment, Access::Read)) {
            Some(Ok(Some(reader))) => drop(reader.sync()?),
            // One that cannot be read is received again.
            None | Some(Ok(None) | Err(ArchiveError::Decode { .. })) => {}
            Some(Err(e)) => return Err(e),
        }
        let _names = self.disk.sync_dir(&self.dir)?;
        Ok(())
    }

    /// The history of `tli`. A folder written by another receiver may lack the file; its segments
    /// are then gone on with as if the timeline had no ancestors, until the server has told.
    fn route(&self, tli: TimelineId) -> Result<History, ArchiveError> {
        match self.history(tli) {
            Err(ArchiveError::NoHistory(_)) => Ok(History::alone(tli)),
            other => other,
        }
    }

    /// Opens the archive to be written from the start of `segment` on, which is on `route`'s
    /// timeline. What the archive holds of it is kept and compared with what comes.
    ///
    /// # Errors
    /// As [`Archive::resume`].
    pub fn begin(&self, route: &History, segment: Segment) -> Result<Resumption, ResumeError> {
        let mut segment = segment;
        // Bounded: each turn has completed a segment that was there, or goes back to one that is complete
        // by its name, where it ends.
        loop {
            if segment.no() == 0 || segment.end().checked_add(segment.size().bytes()).is_none() {
                return Err(ResumeError::NoSuchStart(segment.start()));
            }
            let chain = match self.chain_before(route, segment) {
                Err(e) => match self.cut(&e).filter(|cut| cut.start() < segment.start()) {
                    Some(cut) => {
                        tracing::warn!("{e}: asking for it again");
                        segment = cut;
                        continue;
                    }
                    None => return Err(e),
                },
                Ok(chain) => chain,
            };
            if self.list()?.stored(segment).complete {
                return self.go_over(segment, chain);
            }
            match self.go_on(segment, chain)? {
                Some(resumption) => return Ok(resumption),
                None => segment = segment.next(),
            }
        }
    }

    /// The chain as it stands at the start of `segment`, seeded by what is held before it: one
    /// segment, or as many as the record that reaches into it covers.
    ///
    /// # Errors
    /// When what is held before it is damaged or cannot be read.
    pub fn chain_before(&self, route: &History, segment: Segment) -> Result<Chain, ResumeError> {
        let seed = |start| Seed { start, size: self.size, system_id: self.system_id, newest_tli: route.tli() };
        let mut chain = Chain::new(seed(segment.start()));
        let mut first = segment;
        while let Some(before) = first.previous().filter(|before| before.no() > 0) {
            let before = route.segment_at(before.start(), self.size);
            if !self.list()?.stored(before).complete {
                break;
            }
            first = before;
            chain = Chain::new(seed(first.start()));
            let stopped = self.walk(route, &mut chain, segment.start(), &mut |_| {})?;
            match stopped {
                Stopped::Reached if chain.last_record().is_some() => break,
                Stopped::Reached => {}
                Stopped::Invalid { segment, broken, .. } => return Err(self.damaged(segment, broken)),
                Stopped::Short { segment, bytes, .. } => return Err(ResumeError::Truncated { segment, bytes }),
                // Removed between two looks: what is left begins later.
                Stopped::Missing(_) => return Ok(Chain::new(seed(segment.start()))),
            }
        }
        Ok(chain)
    }

    fn damaged(&self, segment: Segment, broken: Broken) -> ResumeError {
        match (broken.fault, self.system_id) {
            (Fault::SystemIdentifier(held), Some(server)) => ResumeError::OtherCluster { held, server },
            _ => ResumeError::Damaged { segment, broken },
        }
    }

    /// A complete segment is sent once more, because a record that begins in it did not verify
    /// where it ends, or because its own end is lost. It is received anew beside the old one and takes its place when it is full;
    /// up to the record in question it must be the same.
    fn go_over(&self, segment: Segment, chain: Chain) -> Result<Resumption, ResumeError> {
        let mut through = chain.clone();
        let plain = Form { codec: Codec::Plain, partial: false };
        let (upto, form) = match self.open_segment(segment, Access::ReadDirect) {
            Ok(Some(mut reader)) => match walk_segment(&mut reader, &mut through, segment.end(), &mut |_| {}) {
                Ok(Stopped::Invalid { broken, .. }) => (broken.whole, reader.form()),
                Ok(_) | Err(ArchiveError::Decode { .. }) => (through.whole(), reader.form()),
                Err(e) => return Err(e.into()),
            },
            // Nothing of it can be read.
            Ok(None) | Err(ArchiveError::Decode { .. }) => (segment.start(), plain),
            Err(e) => return Err(e.into()),
        };
        let upto = upto.max(segment.start());
        let held = Held { upto, until: upto, form, place: Place::Beside };
        Ok(self.resumption(segment, chain, Some(held), None))
    }

    /// Goes on with the partial that holds the most, if there is one; `None` if it was whole and is
    /// complete now.
    fn go_on(&self, segment: Segment, chain: Chain) -> Result<Option<Resumption>, ResumeError> {
        let mut best: Option<Partial> = None;
        for codec in Codec::ALL {
            let Some(found) = self.survey(segment, &chain, Form { codec, partial: true })? else { continue };
            if found.whole {
                let path = self.path_of(segment, found.form);
                let file = self.disk.open(&path, Access::WriteDirect)?;
                let complete = Form { partial: false, ..found.form };
                let _published = self.disk.publish(file, &path, &self.path_of(segment, complete))?;
                self.remove_others(segment, found.form)?;
                self.hand_on(segment);
                return Ok(None);
            }
            if best.is_none_or(|best| (best.valid, best.touched) < (found.valid, found.touched)) {
                best = Some(found);
            }
        }
        let Some(Partial { form, valid, touched, full_size, .. }) = best else {
            return Ok(Some(self.resumption(segment, chain, None, None)));
        };
        let in_place = full_size && self.live().is_none();
        if touched == segment.start() && !in_place {
            // Nothing in it can be used: a crash came before its first byte was written.
            self.remove_others(segment, Form { codec: Codec::Plain, partial: true })?;
            self.remove_if_there(&self.path_of(segment, Form { codec: Codec::Plain, partial: true }))?;
            return Ok(Some(self.resumption(segment, chain, None, None)));
        }
        let (place, until) = if in_place { (Place::InPlace, valid) } else { (Place::Beside, touched) };
        let held = Held { upto: valid, until, form, place };
        Ok(Some(self.resumption(segment, chain, Some(held), Some(OldEnd { valid, touched }))))
    }

    /// How much a partial holds; `None` if there is none in this form.
    fn survey(&self, segment: Segment, chain: &Chain, form: Form) -> Result<Option<Partial>, ResumeError> {
        let Some(mut reader) = self.open_form(segment, form, Access::ReadDirect)? else { return Ok(None) };
        let plain = form.codec == Codec::Plain;
        let full_size = plain && self.disk.metadata(reader.path())?.is_some_and(|meta| meta.len == self.size.bytes());
        if full_size && !reader.is_direct() {
            reader = self.rewrite(segment, reader)?;
        }
        let mut through = chain.clone();
        let stopped = walk_segment(&mut reader, &mut through, segment.end(), &mut |_| {})?;
        let (valid, whole) = match stopped {
            // Where a record is open at the end, zeros that were never written may pass for its data.
            Stopped::Reached => (through.whole(), full_size && through.whole() == segment.end()),
            Stopped::Invalid { broken, .. } => {
                if let Fault::SystemIdentifier(_) = broken.fault {
                    return Err(self.damaged(segment, broken));
                }
                (broken.whole, false)
            }
            _ => (through.whole(), false),
        };
        let valid = valid.max(segment.start());
        let touched = self.last_byte(segment, form, valid)?;
        Ok(Some(Partial { form, valid, touched, full_size, whole }))
    }

    fn resumption(&self, segment: Segment, chain: Chain, held: Option<Held>, old: Option<OldEnd>) -> Resumption {
        // What was held up to the segment's start is the end if nothing of the segment itself is.
        let before = chain.last_record().map(|_| OldEnd { valid: chain.whole(), touched: segment.start() });
        let writer = Writer::new(Self { halt: None, ..self.clone() }, segment, chain, held);
        Resumption { start: segment.start_pos(), old: old.or(before), after_hole: false, filling: false, writer }
    }

    /// Writes a partial of full size anew and lets that take its place. Where the page cache cannot
    /// be read past, it may show what a failed sync has lost; a sync of what we have read and
    /// written ourselves proves that it is there.
    fn rewrite(&self, segment: Segment, mut reader: SegmentReader) -> Result<SegmentReader, ArchiveError> {
        let temporary = self.beside(segment);
        self.remove_if_there(&temporary)?;
        let mut file = self.disk.create_zeroed(&temporary, self.size.bytes(), self.file_mode)?;
        loop {
            let offset = reader.offset();
            let bytes = reader.fill()?;
            let n = bytes.len();
            if n == 0 {
                break;
            }
            file.write_at(offset, bytes)?;
            reader.consume(n);
        }
        let _published = self.disk.publish(file, &temporary, reader.path())?;
        let gone = || DiskError::new("open", reader.path(), std::io::ErrorKind::NotFound.into());
        let form = Form { codec: Codec::Plain, partial: true };
        Ok(self.open_form(segment, form, Access::ReadDirect)?.ok_or_else(gone)?)
    }

    /// Removes what `form` has taken the place of: the segment's other files, partial or complete as
    /// it is. It must be durable itself. Whether there was anything.
    pub(super) fn remove_others(&self, segment: Segment, form: Form) -> Result<bool, ArchiveError> {
        let mut any = false;
        for codec in Codec::ALL.into_iter().filter(|codec| *codec != form.codec) {
            match self.disk.remove(&self.path_of(segment, Form { codec, ..form })) {
                Ok(()) => any = true,
                Err(e) if e.trouble() == Trouble::Missing => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(any)
    }

    /// Exclusive end of what may have been acknowledged in a partial, `valid` or behind it: of its last
    /// byte that is not zero, or if it is compressed of all that decodes. It is read again, for the walk
    /// takes zeros where a record goes on for data, and so may have passed by what there is of that
    /// record.
    fn last_byte(&self, segment: Segment, form: Form, valid: Lsn) -> Result<Lsn, ArchiveError> {
        let mut end = valid;
        let Some(mut reader) = self.open_form(segment, form, Access::ReadDirect)? else { return Ok(end) };
        reader.skip_to(valid - segment.start())?;
        while reader.offset() < segment.size().bytes() {
            let from = reader.offset();
            let bytes = reader.fill()?;
            if bytes.is_empty() {
                break;
            }
            let n = bytes.len();
            let last = bytes.iter().rposition(|byte| *byte != 0 || form.codec != Codec::Plain);
            if let Some(last) = last {
                end = segment.start().saturating_add(from + last as u64 + 1).min(segment.end());
            }
            reader.consume(n);
        }
        Ok(end)
    }

    /// Removes what a writer that ended without cleaning up has left: names that no scan counts.
    ///
    /// # Errors
    /// When one of them cannot be removed.
    pub fn sweep(&self) -> Result<(), ArchiveError> {
        if self.queue().is_none() {
            self.sweep_copies()?;
        }
        for entry in self.disk.list(&self.dir)? {
            if entry.name.to_str().is_some_and(|name| super::write::is_temporary(name, self.size)) {
                match self.disk.remove(&self.dir.join(&entry.name)) {
                    Err(e) if e.trouble() != Trouble::Missing => return Err(e.into()),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
