//! A plain segment on its way to the disk.
//!
//! Bytes gather in one aligned buffer and go out in large direct writes. A sync first writes the
//! blocks that are not full, padded with what the file holds after them, and keeps the last of
//! them in the buffer, to be written again when it has grown. What ends a segment, writing, syncs and the
//! new name, is done while the first bytes of the next one gather.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::{Archive, Durable, Open, gone};
use crate::disk::{AlignedBuf, BLOCK, DiskError, File};
use crate::wal::{Lsn, Segment};

/// How much gathers before it is written, in segments that are as large. Fewer, larger direct writes
/// keep the device busier: 4 MiB are written about half as fast again as four times 1 MiB.
const BUFFER: u64 = 4 << 20;

/// Bytes that have not been written, behind those of the same block that have.
#[derive(Debug)]
pub(super) struct Tail {
    buffer: AlignedBuf,
    pub(super) start: Lsn,
    len: usize,
    /// Exclusive end of what the kernel has.
    pub(super) written: Lsn,
    flusher: Option<Flusher>,
    /// What the flusher has, up to where.
    busy: Option<Busy>,
    /// The other buffer, when it is here.
    other: Option<AlignedBuf>,
}

#[derive(Clone, Copy, Debug)]
enum Busy {
    /// A part of the open segment that ends here.
    Writing(Lsn),
    /// It completes the segment before. None is open until that is done, so that there is one partial at a time.
    Completing,
    /// It could not. Nothing more is durable.
    Failed,
}

/// Writes full buffers, so that the next bytes are checked and gathered meanwhile. It has one at a
/// time, and the file with it: nothing else can happen to the file until both are back.
#[derive(Debug)]
struct Flusher {
    jobs: SyncSender<Job>,
    done: Receiver<Done>,
}

#[derive(Debug)]
struct Job {
    file: Box<dyn File>,
    buffer: AlignedBuf,
    /// How much of the buffer is to be written.
    len: usize,
    offset: u64,
    /// The segment is full with this.
    last: Option<Last>,
}

/// What gives a segment that is full its final name.
#[derive(Debug)]
pub(super) struct Last {
    pub(super) archive: Archive,
    pub(super) segment: Segment,
    /// The partial.
    pub(super) from: PathBuf,
    /// The final name.
    pub(super) to: PathBuf,
}

#[derive(Debug)]
struct Done {
    buffer: AlignedBuf,
    result: Result<Outcome, DiskError>,
}

#[derive(Debug)]
enum Outcome {
    Written(Box<dyn File>),
    Complete(Segment, Durable),
}

impl Job {
    fn run(mut self) -> Done {
        let bytes = self.buffer.get(..self.len).unwrap_or_default();
        let written = self.file.write_at(self.offset, bytes);
        let result = written.and_then(|()| match self.last {
            None => Ok(Outcome::Written(self.file)),
            Some(last) => last.complete(self.file).map(|(segment, durable)| Outcome::Complete(segment, durable)),
        });
        Done { buffer: self.buffer, result }
    }
}

impl Last {
    /// Syncs the data, then the name, then the directory.
    pub(super) fn complete(self, file: Box<dyn File>) -> Result<(Segment, Durable), DiskError> {
        let (file, data) = file.sync()?;
        drop(file);
        let entry = self.archive.give_final_name(self.segment, &self.from, &self.to)?;
        Ok((self.segment, Durable::new(self.segment.end_pos(), &data, &entry)))
    }
}

impl Flusher {
    fn start() -> io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(1);
        let (tell, done) = sync_channel(1);
        std::thread::Builder::new().name("flusher".into()).spawn(move || {
            while let Ok(job) = queue.recv() {
                if tell.send(job.run()).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs, done })
    }
}

impl Tail {
    pub(super) fn new(segment: Segment) -> Self {
        // A segment has 1 MiB at least and 1 GiB at most.
        let room = usize::try_from(segment.size().bytes().min(BUFFER)).unwrap_or(BLOCK);
        let start = segment.start();
        Self { buffer: AlignedBuf::zeroed(room), start, len: 0, written: start, flusher: None, busy: None, other: None }
    }

    /// Gathers bytes, and has each full buffer written while the next one fills.
    pub(super) fn push(&mut self, mut bytes: &[u8], open: &mut Open) -> Result<(), DiskError> {
        while !bytes.is_empty() {
            let n = bytes.len().min(self.buffer.len() - self.len);
            self.buffer[self.len..self.len + n].copy_from_slice(&bytes[..n]);
            self.len += n;
            bytes = &bytes[n..];
            // The segment's end goes with its last bytes.
            if self.len == self.buffer.len() && self.end() < open.segment.end() {
                self.hand_over(open)?;
            }
        }
        Ok(())
    }

    /// Gathers bytes of a segment that is not open yet; false if the buffer would be full with them.
    pub(super) fn gather(&mut self, bytes: &[u8]) -> bool {
        let end = self.len + bytes.len();
        let room = end < self.buffer.len();
        if room {
            self.buffer[self.len..end].copy_from_slice(bytes);
            self.len = end;
        }
        room
    }

    /// Exclusive end of what has been gathered.
    fn end(&self) -> Lsn {
        self.start.saturating_add(self.len as u64)
    }

    /// The next segment begins at `start`.
    pub(super) fn begin(&mut self, start: Lsn) {
        self.start = start;
        self.len = 0;
    }

    fn hand_over(&mut self, open: &mut Open) -> Result<(), DiskError> {
        self.take_back(open)?;
        let (file, offset) = (open.take_file()?, self.start - open.segment.start());
        self.start = self.end();
        self.busy = Some(Busy::Writing(self.start));
        self.send(file, offset, None, &open.path)
    }

    /// Lets the rest of a segment that is full be written, and the segment completed, while the first bytes of the
    /// next one gather.
    pub(super) fn complete(&mut self, mut open: Open, last: Last) -> Result<(), DiskError> {
        self.take_back(&mut open)?;
        let (file, offset) = (open.take_file()?, self.start - open.segment.start());
        self.busy = Some(Busy::Completing);
        self.send(file, offset, Some(last), &open.path)
    }

    fn send(&mut self, file: Box<dyn File>, offset: u64, last: Option<Last>, path: &Path) -> Result<(), DiskError> {
        let flusher = match self.flusher.take() {
            Some(flusher) => flusher,
            None => Flusher::start().map_err(|e| DiskError::new("write", path, e))?,
        };
        let other = self.other.take().unwrap_or_else(|| AlignedBuf::zeroed(self.buffer.len()));
        let buffer = std::mem::replace(&mut self.buffer, other);
        let len = std::mem::take(&mut self.len);
        flusher.jobs.send(Job { file, buffer, len, offset, last }).map_err(|_| gone(path))?;
        self.flusher = Some(flusher);
        Ok(())
    }

    /// Waits until the file and the buffer that are with the flusher are back.
    pub(super) fn take_back(&mut self, open: &mut Open) -> Result<(), DiskError> {
        let Some(Busy::Writing(end)) = self.busy else { return Ok(()) };
        if let Outcome::Written(file) = self.wait(&open.path)? {
            open.file = Some(file);
            self.written = end;
        }
        Ok(())
    }

    /// Whether a segment is being completed, and no file is open.
    pub(super) const fn is_completing(&self) -> bool {
        matches!(self.busy, Some(Busy::Completing | Busy::Failed))
    }

    /// Waits for the segment that is being completed, if there is one.
    pub(super) fn completed(&mut self) -> Result<Option<(Segment, Durable)>, DiskError> {
        let path = Path::new("the segment before");
        match self.busy {
            Some(Busy::Completing) => match self.wait(path)? {
                Outcome::Complete(segment, durable) => {
                    self.written = self.written.max(segment.end());
                    Ok(Some((segment, durable)))
                }
                Outcome::Written(_) => Ok(None),
            },
            Some(Busy::Failed) => Err(gone(path)),
            Some(Busy::Writing(_)) | None => Ok(None),
        }
    }

    fn wait(&mut self, path: &Path) -> Result<Outcome, DiskError> {
        self.busy = Some(Busy::Failed);
        let flusher = self.flusher.as_ref().ok_or_else(|| gone(path))?;
        let done = flusher.done.recv().map_err(|_| gone(path))?;
        let outcome = done.result?;
        self.other = Some(done.buffer);
        self.busy = None;
        Ok(outcome)
    }

    /// Writes all that has gathered and keeps the block that is not full.
    pub(super) fn write_out(&mut self, open: &mut Open) -> Result<(), DiskError> {
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
    pub(super) fn load(&mut self, file: &dyn File, segment: Segment, at: Lsn) -> Result<(), DiskError> {
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
