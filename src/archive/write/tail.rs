//! A plain segment on its way to the disk.
//!
//! Bytes gather in one aligned buffer and go out in large direct writes. A sync first writes the
//! blocks that are not full, padded with what the file holds after them, and keeps the last of
//! them in the buffer, to be written again when it has grown.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::{Open, gone};
use crate::disk::{AlignedBuf, BLOCK, DiskError, File};
use crate::wal::{Lsn, Segment};

/// How much gathers before it is written, in segments that are as large. Fewer, larger direct writes
/// keep the device busier: 4 MiB are written about half as fast again as four times 1 MiB.
const BUFFER: u64 = 4 << 20;

/// Bytes that have not been written, behind those of the same block that have.
#[derive(Debug)]
pub(super) struct Tail {
    buffer: AlignedBuf,
    start: Lsn,
    len: usize,
    /// Exclusive end of what the kernel has.
    pub(super) written: Lsn,
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

impl Tail {
    pub(super) fn new(segment: Segment) -> Self {
        // A segment has 1 MiB at least and 1 GiB at most.
        let room = usize::try_from(segment.size().bytes().min(BUFFER)).unwrap_or(BLOCK);
        let start = segment.start();
        Self { buffer: AlignedBuf::zeroed(room), start, len: 0, written: start, flusher: None, other: None }
    }

    /// Gathers bytes, and has each full buffer written while the next one fills.
    pub(super) fn push(&mut self, mut bytes: &[u8], open: &mut Open) -> Result<(), DiskError> {
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

    /// The next segment begins at `start`.
    pub(super) fn begin(&mut self, start: Lsn) {
        self.start = start;
        self.len = 0;
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
    pub(super) fn take_back(&mut self, open: &mut Open) -> Result<(), DiskError> {
        let (None, Some(flusher)) = (&open.file, &self.flusher) else { return Ok(()) };
        let (job, written) = flusher.done.recv().map_err(|_| gone(&open.path))?;
        open.file = Some(job.file);
        self.other = Some(job.buffer);
        written?;
        self.written = job.end;
        Ok(())
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
