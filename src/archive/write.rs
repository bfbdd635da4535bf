//! The writer of the open segment: compares, verifies, writes, syncs, and gives segments their
//! final names.
//!
//! Bytes gather in one aligned buffer and go out in large direct writes. A sync first writes the
//! blocks that are not full, padded with what the file holds after them, and keeps the last of
//! them in the buffer, to be written again when it has grown.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::{Archive, ArchiveError, Durable, Form, SegmentReader, Written};
use crate::codec::Codec;
use crate::disk::{Access, AlignedBuf, BLOCK, DiskError, File, Fill, Synced, Trouble};
use crate::wal::{Broken, Chain, Lsn, Pos, Segment, TimelineId};

/// How much gathers before it is written, in segments that are as large. Fewer, larger direct writes
/// keep the device busier: 4 MiB are written about half as fast again as four times 1 MiB.
const BUFFER: u64 = 4 << 20;
/// A segment that has been open for this long is not part of a bulk transfer: there is time to
/// write out zeros for the next one, which makes each later sync cheaper.
const SLOW_SEGMENT: Duration = Duration::from_millis(500);

/// The next segment while it is being filled with zeros. No scan counts the name.
const SPARE: &str = "walhold-next-segment.tmp";
/// Ends the name of a file that takes the place of a partial that cannot be written in place.
const BESIDE: &str = ".partial.tmp";

/// Whether a name is one that a writer uses and removes.
pub(super) fn is_temporary(name: &str) -> bool {
    name == SPARE || name.ends_with(BESIDE) || name.ends_with(".history.tmp")
}

/// Bytes from the start of the first segment on that are there already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// Exclusive end of what must be the same.
    pub(super) upto: Lsn,
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
    #[error(transparent)]
    Broken(#[from] Broken),
    /// What arrives is not what is held, or does not follow from it. Nothing of it was written.
    #[error("the server sends other WAL at {0} than what follows from the archive's")]
    Diverged(Pos),
}

impl From<DiskError> for WriteError {
    fn from(e: DiskError) -> Self {
        Self::Archive(e.into())
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
    tail: Tail,
    spare: Spare,
    /// End of the last whole record that was held when this writer began: the first record after it
    /// must link back to it.
    junction: Lsn,
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

/// Bytes that have not been written, behind those of the same block that have.
#[derive(Debug)]
struct Tail {
    buffer: AlignedBuf,
    start: Lsn,
    len: usize,
    /// Exclusive end of what the kernel has.
    written: Lsn,
    flusher: Option<Flusher>,
    /// The other buffer, when it is here.
    other: Option<AlignedBuf>,
}

/// Writes full buffers, so that the next bytes are checked and gathered meanwhile. It has one at a
/// time, and the file with it: nothing else can happen to the file until both are back.
#[derive(Debug)]
struct Flusher {
    jobs: SyncSender<Job>,
    done: Receiver<(Job, Result<(), DiskError>)>,
}

#[derive(Debug)]
struct Job {
    file: Box<dyn File>,
    buffer: AlignedBuf,
    offset: u64,
    end: Lsn,
}

impl Flusher {
    fn start() -> io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(1);
        let (tell, done) = sync_channel(1);
        std::thread::Builder::new().name("flusher".into()).spawn(move || {
            while let Ok(mut job) = queue.recv() {
                let written = job.file.write_at(job.offset, &job.buffer);
                if tell.send((job, written)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs, done })
    }
}

/// The next segment's file, made ready in the background.
#[derive(Debug, Default)]
struct Spare {
    filling: Option<JoinHandle<Result<Box<dyn File>, DiskError>>>,
}

impl std::fmt::Debug for SegmentReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentReader").field("path", &self.path()).finish_non_exhaustive()
    }
}

impl Writer {
    pub(super) fn new(archive: Archive, segment: Segment, chain: Chain, held: Option<Held>) -> Self {
        Self {
            archive,
            tli: segment.tli(),
            junction: chain.whole(),
            chain,
            held,
            reader: None,
            open: None,
            tail: Tail::new(segment),
            spare: Spare::default(),
        }
    }

    /// The next byte to be appended.
    pub const fn at(&self) -> Pos {
        Pos::new(self.tli, self.chain.at())
    }

    /// Exclusive end of the last whole record.
    pub fn whole(&self) -> Pos {
        Pos::new(self.tli, self.chain.whole())
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

    /// Makes all that was appended durable. `None` while less has come than was held before, or
    /// when nothing is open because the last segment was completed.
    ///
    /// # Errors
    /// After any error the writer must be dropped. A failed sync is final.
    pub fn settle(&mut self) -> Result<Option<Durable>, WriteError> {
        let may_count = self.held.is_none() && self.open.as_ref().is_some_and(|open| open.named);
        let Some(mut open) = self.open.take_if(|_| may_count) else { return Ok(None) };
        self.tail.write_out(&mut open)?;
        let (file, data) = open.take_file()?.sync()?;
        let entry = match open.entry {
            Some(entry) => entry,
            None => self.archive.disk.sync_dir(&self.archive.dir)?,
        };
        let durable = Durable::new(self.at(), &data, &entry);
        if open.since.elapsed() > SLOW_SEGMENT {
            self.spare.fill(&self.archive);
        }
        self.open = Some(Open { file: Some(file), entry: Some(entry), ..open });
        Ok(Some(durable))
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
            let _kept = self.settle()?;
            return Err(broken.into());
        }
        if self.held.as_ref().is_some_and(|held| self.chain.at() >= held.upto) {
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
        if self.reader.is_none() {
            self.reader = self.archive.open_segment(segment, Access::ReadDirect)?;
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
        self.open_file(segment, at.saturating_add(skip as u64))?;
        let Some(open) = &mut self.open else { return Ok(()) };
        let before = self.tail.written;
        self.tail.push(bytes, open)?;
        if self.tail.written > before {
            told(Wrote::Written(Written::new(Pos::new(self.tli, self.tail.written))));
        }
        Ok(())
    }

    fn open_file(&mut self, segment: Segment, at: Lsn) -> Result<(), WriteError> {
        if self.open.is_some() {
            return Ok(());
        }
        let beside = self.held.is_some_and(|held| held.place == Place::Beside);
        let partial = Form { codec: Codec::Plain, partial: true };
        let path = if beside { self.archive.beside(segment) } else { self.archive.path_of(segment, partial) };
        let there = self.archive.disk.metadata(&path)?.map(|meta| meta.len);
        self.open = Some(if there == Some(self.archive.size.bytes()) && !beside {
            self.reopen(segment, path, at)?
        } else {
            if there.is_some() {
                self.archive.remove_if_there(&path)?;
            }
            self.create(segment, path, !beside)?
        });
        Ok(())
    }

    /// Goes on in a partial of full size.
    fn reopen(&mut self, segment: Segment, path: PathBuf, at: Lsn) -> Result<Open, WriteError> {
        let file = self.archive.disk.open(&path, Access::WriteDirect)?;
        self.tail.load(&*file, segment, at)?;
        // What an earlier process wrote and did not sync must not be lost by our writing on.
        let (file, _data) = file.sync()?;
        let entry = Some(self.archive.disk.sync_dir(&self.archive.dir)?);
        Ok(Open { segment, file: Some(file), path, entry, resumed: true, named: true, since: Instant::now() })
    }

    fn create(&mut self, segment: Segment, path: PathBuf, named: bool) -> Result<Open, WriteError> {
        let archive = &self.archive;
        let file = match self.spare.take(archive, &path)? {
            Some(file) => file,
            None => archive.disk.create_zeroed(&path, archive.size.bytes(), Fill::Reserve, archive.file_mode)?,
        };
        Ok(Open { segment, file: Some(file), path, entry: None, resumed: false, named, since: Instant::now() })
    }

    /// All that was held has come again: from here on bytes are new. A file received beside an old
    /// partial takes its place; one beside a complete segment does when it is full.
    fn end_comparison(&mut self, segment: Segment) -> Result<(), WriteError> {
        self.open_file(segment, self.chain.at())?;
        let place = self.held.take().map(|held| held.place);
        let old = self.reader.take().map(|reader| (reader.path().to_owned(), reader.form().partial));
        let (Some((old, true)), Some(Place::Beside)) = (old, place) else { return Ok(()) };
        let Some(mut open) = self.open.take() else { return Ok(()) };
        self.tail.write_out(&mut open)?;
        let (file, _data) = open.take_file()?.sync()?;
        let path = self.archive.path_of(segment, Form { codec: Codec::Plain, partial: true });
        self.archive.disk.rename(&open.path, &path)?;
        let entry = self.archive.disk.sync_dir(&self.archive.dir)?;
        if old != path {
            self.archive.remove_if_there(&old)?;
        }
        self.open = Some(Open { file: Some(file), path, entry: Some(entry), named: true, ..open });
        Ok(())
    }

    /// The segment is full and every record that ends in it is checked: sync the data, then the
    /// name, then the directory.
    fn complete(&mut self, segment: Segment, told: &mut impl FnMut(Wrote)) -> Result<(), WriteError> {
        if let Some(mut open) = self.open.take() {
            self.tail.write_out(&mut open)?;
            let (file, data) = open.take_file()?.sync()?;
            drop(file);
            let path = self.archive.path_of(segment, Form { codec: Codec::Plain, partial: false });
            self.archive.disk.rename(&open.path, &path)?;
            let entry = self.archive.disk.sync_dir(&self.archive.dir)?;
            if open.resumed {
                self.archive.remove_compressed_partials(segment)?;
            }
            told(Wrote::Complete(segment, Durable::new(segment.end_pos(), &data, &entry)));
        }
        self.reader = None;
        self.tail.start = segment.end();
        self.tail.len = 0;
        Ok(())
    }
}

impl Archive {
    /// Where the file is written that takes the place of a partial.
    pub(super) fn beside(&self, segment: Segment) -> PathBuf {
        self.dir.join(format!("{segment}{BESIDE}"))
    }
}

impl Tail {
    fn new(segment: Segment) -> Self {
        // A segment has 1 MiB at least and 1 GiB at most.
        let room = usize::try_from(segment.size().bytes().min(BUFFER)).unwrap_or(BLOCK);
        let start = segment.start();
        Self { buffer: AlignedBuf::zeroed(room), start, len: 0, written: start, flusher: None, other: None }
    }

    /// Gathers bytes, and has each full buffer written while the next one fills.
    fn push(&mut self, mut bytes: &[u8], open: &mut Open) -> Result<(), DiskError> {
        while !bytes.is_empty() {
            let n = bytes.len().min(self.buffer.len() - self.len);
            self.buffer[self.len..self.len + n].copy_from_slice(&bytes[..n]);
            self.len += n;
            bytes = &bytes[n..];
            if self.len == self.buffer.len() {
                self.hand_over(open)?;
            }
        }
        Ok(())
    }

    fn hand_over(&mut self, open: &mut Open) -> Result<(), DiskError> {
        self.take_back(open)?;
        let flusher = match self.flusher.take() {
            Some(flusher) => flusher,
            None => Flusher::start().map_err(|e| DiskError::new("write", &open.path, e))?,
        };
        let other = self.other.take().unwrap_or_else(|| AlignedBuf::zeroed(self.buffer.len()));
        let buffer = std::mem::replace(&mut self.buffer, other);
        let offset = self.start - open.segment.start();
        self.start = self.start.saturating_add(self.len as u64);
        self.len = 0;
        let job = Job { file: open.take_file()?, buffer, offset, end: self.start };
        flusher.jobs.send(job).map_err(|_| gone(&open.path))?;
        self.flusher = Some(flusher);
        Ok(())
    }

    /// Waits until the file and the buffer that are with the flusher are back.
    fn take_back(&mut self, open: &mut Open) -> Result<(), DiskError> {
        let (None, Some(flusher)) = (&open.file, &self.flusher) else { return Ok(()) };
        let (job, written) = flusher.done.recv().map_err(|_| gone(&open.path))?;
        open.file = Some(job.file);
        self.other = Some(job.buffer);
        written?;
        self.written = job.end;
        Ok(())
    }

    /// Writes all that has gathered and keeps the block that is not full.
    fn write_out(&mut self, open: &mut Open) -> Result<(), DiskError> {
        self.take_back(open)?;
        let mut file = open.take_file()?;
        let end = self.len.next_multiple_of(file.alignment());
        if end > self.len {
            self.pad(end, &*file, open)?;
        }
        if end > 0 {
            file.write_at(self.start - open.segment.start(), &self.buffer[..end])?;
        }
        open.file = Some(file);
        let full = self.len / BLOCK * BLOCK;
        self.written = self.start.saturating_add(self.len as u64);
        self.buffer.copy_within(full..self.len, 0);
        self.start = self.start.saturating_add(full as u64);
        self.len -= full;
        Ok(())
    }

    /// Fills the buffer up to `end` with zeros, or with what a resumed file holds there.
    fn pad(&mut self, end: usize, file: &dyn File, open: &Open) -> Result<(), DiskError> {
        self.buffer[self.len..end].fill(0);
        if open.resumed {
            let mut block = AlignedBuf::zeroed(BLOCK);
            let offset = self.start - open.segment.start() + (end - BLOCK) as u64;
            let read = file.read_at(offset, &mut block)?;
            let kept = self.len - (end - BLOCK);
            if read > kept {
                self.buffer[self.len..end - BLOCK + read].copy_from_slice(&block[kept..read]);
            }
        }
        Ok(())
    }

    /// Begins at `at` with what the file holds before it in its block.
    fn load(&mut self, file: &dyn File, segment: Segment, at: Lsn) -> Result<(), DiskError> {
        let offset = at - segment.start();
        let first = offset / BLOCK as u64 * BLOCK as u64;
        self.start = segment.start().saturating_add(first);
        self.len = usize::try_from(offset - first).unwrap_or(0);
        if self.len > 0 {
            let mut block = AlignedBuf::zeroed(BLOCK);
            let _read = file.read_at(first, &mut block)?;
            self.buffer[..self.len].copy_from_slice(&block[..self.len]);
        }
        Ok(())
    }
}

impl Spare {
    /// Begins to make the next file ready, unless that has been done.
    fn fill(&mut self, archive: &Archive) {
        if self.filling.is_some() {
            return;
        }
        let archive = archive.clone();
        let fill = move || {
            let path = archive.dir.join(SPARE);
            match archive.disk.remove(&path) {
                Err(e) if e.trouble() != Trouble::Missing => return Err(e),
                _ => {}
            }
            let file = archive.disk.create_zeroed(&path, archive.size.bytes(), Fill::Zeros, archive.file_mode)?;
            Ok(file.sync()?.0)
        };
        self.filling = std::thread::Builder::new().name("next segment".into()).spawn(fill).ok();
    }

    /// Gives the file the name `path`, if it is ready. One that is not is left for later, and one
    /// that could not be made is forgotten: what is wrong will show when a file is made here.
    fn take(&mut self, archive: &Archive, path: &Path) -> Result<Option<Box<dyn File>>, DiskError> {
        match self.filling.take_if(|filling| filling.is_finished()).map(JoinHandle::join) {
            Some(Ok(Ok(file))) => {
                archive.disk.rename(&archive.dir.join(SPARE), path)?;
                Ok(Some(file))
            }
            _ => Ok(None),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(open) = &mut self.open {
            // Whoever opens the file next must find it at rest. An error was or will be told there.
            let _ = self.tail.take_back(open);
        }
        if let Some(filling) = self.spare.filling.take() {
            let _ = filling.join();
            // It holds nothing; the next start removes it too.
            let _ = self.archive.disk.remove(&self.archive.dir.join(SPARE));
        }
    }
}
