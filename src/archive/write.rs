//! The writer of the open segment: compares, verifies, writes, syncs, and gives segments their
//! final names.

mod packed;
mod spare;
mod tail;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::read::walk_segment;
use super::{Archive, ArchiveError, Durable, Form, SegmentReader, Stopped, Stored, Written};
use crate::codec::Codec;
use crate::disk::{Access, DiskError, File, Synced, Trouble};
use crate::wal::{Broken, Chain, HistoryFile, Lsn, Pos, Segment, SegmentSize, TimelineId};
use packed::{Completing, Packed, Shape};
use spare::Spare;
use tail::{Last, Tail};

/// A segment that has been open for this long is not part of a bulk transfer: there is time to
/// write out zeros for the next one, which makes each later sync cheaper.
const SLOW_SEGMENT: Duration = Duration::from_millis(500);

/// The next segment while it is being filled with zeros. No scan counts the name.
const SPARE: &str = "walhold-next-segment.tmp";
/// Ends the name of a file that takes the place of a partial that cannot be written in place.
const BESIDE: &str = ".partial.tmp";

/// Whether a name is one that a writer uses and removes. Others in the folder may be somebody's.
pub(super) fn is_temporary(name: &str, size: SegmentSize) -> bool {
    let beside = name.strip_suffix(BESIDE).and_then(|stem| Segment::parse(stem, size));
    let history = name.strip_suffix(".tmp").and_then(HistoryFile::parse);
    name == SPARE || beside.is_some() || history.is_some()
}

/// Bytes from the start of the first segment on that are there already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// Exclusive end of what must be the same.
    pub(super) upto: Lsn,
    /// Exclusive end of what may have been acknowledged: nothing takes its place that has less.
    pub(super) until: Lsn,
    /// What it is that is there.
    pub(super) form: Form,
    /// Where the segment is written.
    pub(super) place: Place,
}

/// Where a segment is written of which something is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// In the partial, which is plain and of full size, from the end of what is held on.
    InPlace,
    /// From its beginning in a file beside the old one, which it replaces: a partial as soon as
    /// all that was held has come again, a complete segment when it is full.
    Beside,
}

/// Received WAL cannot be kept.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The folder cannot be written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A record does not verify. The bytes were kept, and nothing past the last whole record is
    /// called durable.
    #[error("{broken}")]
    Broken {
        /// The timeline it came on.
        tli: TimelineId,
        /// Where and why.
        broken: Broken,
    },
    /// What arrives is not what is held, or does not follow from it. Nothing of it was written.
    #[error("the server sends other WAL at {0} than what follows from the archive's")]
    Diverged(Pos),
    /// No more is wanted here: a hole is filled, and what is held behind it follows from what came. All
    /// that came before it is durable.
    #[error("the hole is filled up to {0}")]
    Filled(Pos),
}

impl From<DiskError> for WriteError {
    fn from(e: DiskError) -> Self {
        Self::Archive(e.of_what_was_there().into())
    }
}

/// What an append has brought about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrote {
    /// All before this has been handed to the kernel.
    Written(Written),
    /// This segment has its final name, and all of it is durable.
    Complete(Segment, Durable),
}

/// Owns the open segment of one timeline.
#[derive(Debug)]
pub struct Writer {
    archive: Archive,
    tli: TimelineId,
    chain: Chain,
    held: Option<Held>,
    /// Reads what is held, while arriving bytes are compared.
    reader: Option<SegmentReader>,
    open: Option<Open>,
    body: Body,
    spare: Spare,
    /// End of the last whole record that was held when this writer began: the first record after it
    /// must link back to it.
    junction: Lsn,
    /// It fills a hole, and ends where that does: what is held behind it is not written again.
    filling: bool,
    /// How far the server's log went when it last said so.
    server_end: Lsn,
    /// Bytes have been taken in for which no file has been opened yet: the segment before comes first.
    ahead: bool,
    /// That segment, if it is compressed. One that is not is with the [`Tail`].
    behind: Option<Completing>,
}

/// What has been taken in, on its way to the file.
#[derive(Debug)]
enum Body {
    Plain(Tail),
    Packed(Packed),
}

impl Body {
    fn new(archive: &Archive, segment: Segment) -> Self {
        match archive.live() {
            Some(packing) => Self::Packed(Packed::new(packing, Shape::Frame, segment.start())),
            None => Self::Plain(Tail::new(segment)),
        }
    }

    const fn codec(&self) -> Codec {
        match self {
            Self::Plain(_) => Codec::Plain,
            Self::Packed(packed) => packed.packing().codec(),
        }
    }

    /// The next segment begins at `start`.
    fn begin(&mut self, start: Lsn) {
        match self {
            Self::Plain(tail) => tail.begin(start),
            Self::Packed(packed) => packed.begin(start),
        }
    }

    fn push(&mut self, bytes: &[u8], open: &mut Open) -> Result<(), DiskError> {
        match self {
            Self::Plain(tail) => tail.push(bytes, open),
            Self::Packed(packed) => packed.push(bytes, open),
        }
    }

    /// Hands all that was taken in to the kernel. It can be read back when that has been synced.
    fn write_out(&mut self, open: &mut Open) -> Result<(), DiskError> {
        match self {
            Self::Plain(tail) => tail.write_out(open),
            Self::Packed(packed) => packed.write_out(open),
        }
    }

    /// The same, and no more will come into this file.
    fn end(&mut self, open: &mut Open) -> Result<(), DiskError> {
        match self {
            Self::Plain(tail) => tail.write_out(open),
            Self::Packed(packed) => packed.end(open),
        }
    }

    /// Exclusive end of what the kernel has.
    const fn written(&self) -> Lsn {
        match self {
            Self::Plain(tail) => tail.written,
            Self::Packed(packed) => packed.written,
        }
    }
}

/// The file that is being written.
#[derive(Debug)]
struct Open {
    segment: Segment,
    /// `None` while a full buffer is being written to it.
    file: Option<Box<dyn File>>,
    path: PathBuf,
    /// Proof that the name it has now is durable.
    entry: Option<Synced>,
    /// It may hold bytes beyond those that have been received in this session.
    resumed: bool,
    /// It bears the name that a restart finds; until then nothing in it counts.
    named: bool,
    since: Instant,
}

impl Open {
    /// The file, which must not be with the thread that writes.
    fn take_file(&mut self) -> Result<Box<dyn File>, DiskError> {
        self.file.take().ok_or_else(|| gone(&self.path))
    }
}

fn gone(path: &Path) -> DiskError {
    DiskError::of(Trouble::Failed, "write", path, io::Error::other("the thread that writes has ended"))
}

impl std::fmt::Debug for SegmentReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentReader").field("path", &self.path()).finish_non_exhaustive()
    }
}

impl Writer {
    pub(super) fn new(archive: Archive, segment: Segment, chain: Chain, held: Option<Held>) -> Self {
        Self {
            tli: segment.tli(),
            junction: chain.whole(),
            chain,
            held,
            reader: None,
            open: None,
            body: Body::new(&archive, segment),
            archive,
            spare: Spare::default(),
            filling: false,
            server_end: Lsn::ZERO,
            ahead: false,
            behind: None,
        }
    }

    /// Ends with [`WriteError::Filled`] at the first segment that is held already.
    pub(super) fn fill(&mut self) {
        self.filling = true;
    }

    /// How far the server's log goes. Where complete segments are compressed, one that the server has
    /// whole already is compressed as it comes.
    pub fn expect(&mut self, server_end: Lsn) {
        self.server_end = server_end;
    }

    /// The next byte to be appended.
    pub const fn at(&self) -> Pos {
        Pos::new(self.tli, self.chain.at())
    }

    /// Exclusive end of the last whole record.
    pub fn whole(&self) -> Pos {
        Pos::new(self.tli, self.chain.whole())
    }

    /// Nothing behind `end` can have been acknowledged, whatever is held there: the server does not
    /// have it.
    pub fn bound(&mut self, end: Lsn) {
        if let Some(held) = &mut self.held {
            held.until = held.until.min(end).max(held.upto);
        }
    }

    /// Takes the bytes at [`Writer::at`], and tells what became of them and of those before.
    ///
    /// # Errors
    /// After any error the writer must be dropped and the archive be opened again.
    pub fn append(&mut self, mut bytes: &[u8], told: &mut impl FnMut(Wrote)) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let segment = Segment::containing(self.at(), self.archive.size);
            let room = usize::try_from(segment.end() - self.chain.at()).unwrap_or(usize::MAX);
            let (part, after) = bytes.split_at(bytes.len().min(room));
            self.append_in(segment, part, told)?;
            bytes = after;
        }
        Ok(())
    }

    /// Waits for a segment that is being completed while the next one gathers, and tells of it. To be called
    /// before [`Writer::settle`] by whoever wants to be told.
    ///
    /// # Errors
    /// After any error the writer must be dropped. A failed sync is final.
    pub fn complete_behind(&mut self, told: &mut impl FnMut(Wrote)) -> Result<(), WriteError> {
        if let Some(behind) = &mut self.behind {
            // Where that failed it stays, and fails again.
            let (segment, durable) = behind.wait()?;
            self.behind = None;
            told(Wrote::Complete(segment, durable));
        } else if let Body::Plain(tail) = &mut self.body
            && let Some((segment, durable)) = tail.completed()?
        {
            told(Wrote::Complete(segment, durable));
            self.archive.hand_on(segment);
        }
        Ok(())
    }

    /// Makes all that was appended durable. `None` while less has come than was held before, or
    /// when nothing is open because the last segment was completed.
    ///
    /// # Errors
    /// After any error the writer must be dropped. A failed sync is final.
    pub fn settle(&mut self) -> Result<Option<Durable>, WriteError> {
        self.complete_behind(&mut |_| {})?;
        self.open_ahead()?;
        let may_count = self.held.is_none() && self.open.as_ref().is_some_and(|open| open.named);
        let Some(mut open) = self.open.take_if(|_| may_count) else { return Ok(None) };
        self.body.write_out(&mut open)?;
        let (file, data) = open.take_file()?.sync()?;
        let entry = match open.entry {
            Some(entry) => entry,
            None => self.archive.sync_names()?,
        };
        let durable = Durable::new(self.at(), &data, &entry);
        if open.since.elapsed() > SLOW_SEGMENT && self.archive.live().is_none() {
            self.spare.fill(&self.archive);
        }
        self.open = Some(Open { file: Some(file), entry: Some(entry), ..open });
        Ok(Some(durable))
    }

    /// As [`Writer::settle`], and leaves files that are whole for what they hold: a compressed one gets
    /// its end.
    ///
    /// # Errors
    /// As [`Writer::settle`].
    pub fn close(mut self) -> Result<Option<Durable>, WriteError> {
        self.complete_behind(&mut |_| {})?;
        self.open_ahead()?;
        if let (Body::Packed(packed), Some(open)) = (&mut self.body, &mut self.open) {
            packed.end(open)?;
        }
        self.settle()
    }

    fn append_in(&mut self, segment: Segment, bytes: &[u8], told: &mut impl FnMut(Wrote)) -> Result<(), WriteError> {
        let at = self.chain.at();
        let known = self.compare(segment, at, bytes)?;
        let checked = self.chain.feed(bytes, &mut |_| {});
        if let Err(broken) = checked
            && broken.whole == self.junction
            && broken.fault.is_of_another_past()
        {
            return Err(WriteError::Diverged(Pos::new(self.tli, broken.at)));
        }
        self.store(segment, at, bytes, known, told)?;
        if let Err(broken) = checked {
            // The bytes are kept for whoever looks into it; they are not called durable. A disk that
            // does not take them is the worse trouble: nobody may go on after a failed sync.
            self.complete_behind(told)?;
            let _kept = self.settle()?;
            return Err(WriteError::Broken { tli: self.tli, broken });
        }
        if self.held.as_ref().is_some_and(|held| self.chain.at() >= held.until) {
            self.end_comparison(segment)?;
        }
        if self.chain.at() == segment.end() {
            self.complete(segment, told)?;
        }
        Ok(())
    }

    /// Holds arriving bytes against those that are there; how many of them are.
    fn compare(&mut self, segment: Segment, at: Lsn, bytes: &[u8]) -> Result<usize, WriteError> {
        let Some(held) = &self.held else { return Ok(0) };
        let known = bytes.len().min(usize::try_from(held.upto.saturating_sub(at)).unwrap_or(usize::MAX));
        if self.reader.is_none() && known > 0 {
            // A complete one may be compressed meanwhile.
            self.reader = match held.form.partial {
                true => self.archive.open_form(segment, held.form, Access::ReadDirect)?,
                false => self.archive.open_segment(segment, Access::ReadDirect)?,
            };
        }
        let mut left = &bytes[..known];
        while !left.is_empty() {
            let there = match &mut self.reader {
                Some(reader) => reader.fill()?,
                None => &[],
            };
            let n = left.len().min(there.len());
            if n == 0 || left[..n] != there[..n] {
                let same = left.iter().zip(there).take_while(|(a, b)| a == b).count();
                let differs = at.saturating_add((known - left.len() + same) as u64);
                return Err(WriteError::Diverged(Pos::new(self.tli, differs)));
            }
            if let Some(reader) = &mut self.reader {
                reader.consume(n);
            }
            left = &left[n..];
        }
        Ok(known)
    }

    /// Writes what is not known yet. Where a partial is gone on with in place, the first block of it
    /// is read back, so that what stands in it before and after stays.
    fn store(
        &mut self,
        segment: Segment,
        at: Lsn,
        bytes: &[u8],
        known: usize,
        told: &mut impl FnMut(Wrote),
    ) -> Result<(), WriteError> {
        let skip = match self.held {
            Some(Held { place: Place::InPlace, .. }) => known,
            _ => 0,
        };
        let bytes = &bytes[skip..];
        if bytes.is_empty() {
            return Ok(());
        }
        let at = at.saturating_add(skip as u64);
        if self.open.is_none() && !self.ahead {
            self.choose_body(segment, at);
        }
        let gathered = match &mut self.body {
            Body::Plain(tail) => tail.is_completing() && tail.gather(bytes),
            Body::Packed(packed) => self.behind.is_some() && packed.gather(bytes)?,
        };
        if gathered {
            self.ahead = true;
            return Ok(());
        }
        self.complete_behind(told)?;
        self.open_file(segment, at)?;
        let Some(open) = &mut self.open else { return Ok(()) };
        let before = self.body.written();
        self.body.push(bytes, open)?;
        let written = self.body.written();
        if written > before {
            told(Wrote::Written(Written::new(Pos::new(self.tli, written))));
        }
        Ok(())
    }

    /// Opens the file of what has been taken in ahead, if there is such.
    fn open_ahead(&mut self) -> Result<(), WriteError> {
        if !self.ahead {
            return Ok(());
        }
        let start = match &self.body {
            Body::Plain(tail) => tail.start,
            Body::Packed(packed) => packed.written,
        };
        let segment = Segment::containing(Pos::new(self.tli, start), self.archive.size);
        self.open_file(segment, segment.start())
    }

    fn open_file(&mut self, segment: Segment, at: Lsn) -> Result<(), WriteError> {
        self.ahead = false;
        if self.open.is_some() {
            return Ok(());
        }
        let beside = self.held.is_some_and(|held| held.place == Place::Beside);
        let path = if beside { self.archive.beside(segment) } else { self.archive.path_of(segment, self.form(true)) };
        let there = self.archive.disk.metadata(&path)?.map(|meta| meta.len);
        let usable = matches!(self.body, Body::Plain(_)) && there == Some(self.archive.size.bytes()) && !beside;
        self.open = Some(if usable {
            self.reopen(segment, path, at)?
        } else {
            if there.is_some() {
                self.archive.remove_if_there(&path)?;
            }
            self.create(segment, path, !beside)?
        });
        Ok(())
    }

    /// What the open file is.
    fn form(&self, partial: bool) -> Form {
        Form { codec: self.body.codec(), partial }
    }

    /// A segment of which nothing is held, and which the server has whole, is compressed as it comes: it will be
    /// full at once, and need not be written twice. One that commits wait for is plain.
    fn choose_body(&mut self, segment: Segment, at: Lsn) {
        let Some(packing) = self.archive.light() else { return };
        let whole = self.held.is_none() && at == segment.start() && self.server_end >= segment.end();
        match (&self.body, whole) {
            (Body::Plain(_), true) => self.body = Body::Packed(Packed::new(packing, Shape::Pieces, at)),
            (Body::Packed(_), false) => self.body = Body::Plain(Tail::new(segment)),
            _ => {}
        }
    }

    /// Goes on in a partial of full size.
    fn reopen(&mut self, segment: Segment, path: PathBuf, at: Lsn) -> Result<Open, WriteError> {
        let file = self.archive.disk.open(&path, Access::WriteDirect)?;
        if let Body::Plain(tail) = &mut self.body {
            tail.load(&*file, segment, at)?;
        }
        // What an earlier process wrote and did not sync must not be lost by our writing on.
        let (file, _data) = file.sync()?;
        let entry = Some(self.archive.sync_names()?);
        Ok(Open { segment, file: Some(file), path, entry, resumed: true, named: true, since: Instant::now() })
    }

    fn create(&mut self, segment: Segment, path: PathBuf, named: bool) -> Result<Open, WriteError> {
        let archive = &self.archive;
        let file = match &self.body {
            Body::Packed(_) => archive.disk.create(&path, archive.file_mode)?,
            Body::Plain(_) => match self.spare.take(archive, &path)? {
                Some(file) => file,
                None => archive.disk.create_zeroed(&path, archive.size.bytes(), archive.file_mode)?,
            },
        };
        Ok(Open { segment, file: Some(file), path, entry: None, resumed: false, named, since: Instant::now() })
    }

    /// All that was held has come again: from here on bytes are new. A file received beside an old
    /// partial takes its place; one beside a complete segment does when it is full.
    fn end_comparison(&mut self, segment: Segment) -> Result<(), WriteError> {
        self.open_file(segment, self.chain.at())?;
        self.reader = None;
        let Some(Held { place: Place::Beside, form: Form { partial: true, .. }, .. }) = self.held.take() else {
            return Ok(());
        };
        let Some(mut open) = self.open.take() else { return Ok(()) };
        self.body.write_out(&mut open)?;
        let (file, _data) = open.take_file()?.sync()?;
        let form = self.form(true);
        let path = self.archive.path_of(segment, form);
        self.archive.disk.rename(&open.path, &path)?;
        let mut entry = self.archive.sync_names()?;
        if self.archive.remove_others(segment, form)? {
            // One that came back would hide what is acknowledged in this one.
            entry = self.archive.sync_names()?;
        }
        self.open = Some(Open { file: Some(file), path, entry: Some(entry), named: true, ..open });
        Ok(())
    }

    /// The segment is full and every record that ends in it is checked: sync the data, then the
    /// name, then the directory.
    fn complete(&mut self, segment: Segment, told: &mut impl FnMut(Wrote)) -> Result<(), WriteError> {
        if self.ahead {
            self.complete_behind(told)?;
            self.open_ahead()?;
        }
        // Where no more comes for now, nobody would ask when it is done.
        let more = self.server_end > segment.end() && !self.filling;
        let behind = more
            && match &self.body {
                Body::Plain(_) => self.archive.light().is_none(),
                Body::Packed(packed) => packed.in_pieces(),
            };
        let form = self.form(false);
        if let Some(open) = self.open.take_if(|open| behind && open.named && !open.resumed) {
            let (from, to) = (open.path.clone(), self.archive.path_of(segment, form));
            let last = Last { archive: self.archive.clone(), segment, from, to };
            match &mut self.body {
                Body::Plain(tail) => tail.complete(open, last)?,
                Body::Packed(packed) => self.behind = Some(packed.complete(open, last)?),
            }
        } else if let Some(mut open) = self.open.take() {
            self.body.end(&mut open)?;
            let (file, data) = open.take_file()?.sync()?;
            drop(file);
            let archive = &self.archive;
            let path = archive.path_of(segment, form);
            let mut entry = archive.give_final_name(segment, &open.path, &path)?;
            if open.resumed {
                archive.remove_others(segment, self.form(true))?;
            }
            if !open.named && archive.remove_others(segment, form)? {
                entry = archive.sync_names()?;
            }
            told(Wrote::Complete(segment, Durable::new(segment.end_pos(), &data, &entry)));
            if form.codec == Codec::Plain {
                archive.hand_on(segment);
            }
        }
        self.reader = None;
        self.body.begin(segment.end());
        if self.filling && self.archive.list()?.stored(segment.next()) != Stored::default() {
            self.join(segment.next())?;
            return Err(WriteError::Filled(segment.end_pos()));
        }
        Ok(())
    }

    /// What is held behind a hole must go on with the record that the hole ends in, or link back to it.
    fn join(&self, segment: Segment) -> Result<(), WriteError> {
        let mut reader = match self.archive.open_segment(segment, Access::ReadDirect) {
            Ok(Some(reader)) => reader,
            // Whoever goes on there finds out what is wrong with it.
            Ok(None) | Err(ArchiveError::Decode { .. }) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let partial = reader.form().partial;
        let mut through = self.chain.clone();
        match walk_segment(&mut reader, &mut through, segment.end(), &mut |_| {}) {
            Ok(Stopped::Invalid { broken, .. })
                if broken.whole == self.chain.whole() && (!partial || broken.fault.is_of_another_past()) =>
            {
                Err(WriteError::Diverged(Pos::new(self.tli, broken.at)))
            }
            Ok(_) | Err(ArchiveError::Decode { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl Archive {
    /// Where the file is written that takes the place of a partial.
    pub(super) fn beside(&self, segment: Segment) -> PathBuf {
        self.dir.join(format!("{segment}{BESIDE}"))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(behind) = &mut self.behind {
            let _ = behind.wait();
        }
        match (&mut self.body, &mut self.open) {
            // Whoever opens the file next must find it at rest. An error was or will be told there.
            (Body::Plain(tail), Some(open)) => _ = tail.take_back(open),
            (Body::Plain(tail), None) => _ = tail.completed(),
            // It was not closed, because something is wrong; what it holds can still be made a whole file.
            (Body::Packed(packed), Some(open)) => _ = packed.end(open),
            _ => {}
        }
        if let Some(Open { named: false, path, .. }) = &self.open {
            // It has not reached what it was to take the place of. The next start removes it too.
            let _ = self.archive.disk.remove(path);
        }
        self.spare.discard(&self.archive);
    }
}

#[cfg(test)]
mod tests;
