//! A segment that is compressed as it comes.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::thread::{self, JoinHandle, available_parallelism};

use super::tail::Last;
use super::{Durable, Open, gone};
use crate::codec::{Frames, Packer, Packing};
use crate::disk::DiskError;
use crate::wal::{Lsn, Segment};

/// Compressed bytes that gather before they are written.
const GATHERED: usize = 256 << 10;
/// Compressed bytes of a segment that is not open yet.
const AHEAD: usize = 1 << 20;
/// What one thread compresses at a time, where several do.
const PIECE: NonZeroUsize = NonZeroUsize::new(1 << 20).unwrap();
/// Threads that compress, at most. Each holds up to four pieces.
const THREADS: usize = 4;

/// How the files are made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// As `pg_receivewal` makes them: one frame, which grows.
    Frame,
    /// On several threads.
    Pieces,
}

/// The compressor of one file after the other, and what of the file has not been written.
#[derive(Debug)]
pub(super) struct Packed {
    packing: Packing,
    shape: Shape,
    /// `None` at the beginning of a file.
    engine: Option<Engine>,
    /// What the next file can be made with.
    idle: Option<Box<Frames<Vec<u8>>>>,
    ready: Vec<u8>,
    /// Where in the file `ready` belongs.
    offset: u64,
    /// Exclusive end of what was taken in.
    at: Lsn,
    /// Exclusive end of what decodes from what the kernel has.
    pub(super) written: Lsn,
}

#[derive(Debug)]
enum Engine {
    Frame(Box<Packer>),
    Pieces(Box<Frames<Vec<u8>>>),
}

impl Engine {
    fn start(packing: Packing, shape: Shape) -> io::Result<Self> {
        Ok(match shape {
            Shape::Frame => Self::Frame(Box::new(Packer::growing(packing)?)),
            Shape::Pieces => {
                let threads = available_parallelism().map_or(1, NonZeroUsize::get).min(THREADS);
                let threads = u8::try_from(threads).unwrap_or(1);
                Self::Pieces(Box::new(Frames::new(Vec::new(), packing, threads, PIECE)?))
            }
        })
    }

    fn write(&mut self, bytes: &[u8], ready: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Frame(packer) => {
                packer.write(bytes)?;
                packer.take(ready);
            }
            Self::Pieces(frames) => {
                frames.write_all(bytes)?;
                ready.append(frames.out());
            }
        }
        Ok(())
    }

    /// Makes all ready that was taken in.
    fn flush(&mut self, ready: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Frame(packer) => {
                packer.flush()?;
                packer.take(ready);
            }
            Self::Pieces(frames) => {
                frames.flush()?;
                ready.append(frames.out());
            }
        }
        Ok(())
    }

    /// Makes the rest ready. What is left can make another file.
    fn end(self, ready: &mut Vec<u8>) -> io::Result<Option<Box<Frames<Vec<u8>>>>> {
        match self {
            Self::Frame(packer) => {
                ready.append(&mut packer.finish()?);
                Ok(None)
            }
            Self::Pieces(mut frames) => {
                frames.end()?;
                ready.append(frames.out());
                Ok(Some(frames))
            }
        }
    }
}

impl Packed {
    pub(super) const fn new(packing: Packing, shape: Shape, start: Lsn) -> Self {
        Self { packing, shape, engine: None, idle: None, ready: Vec::new(), offset: 0, at: start, written: start }
    }

    pub(super) const fn packing(&self) -> Packing {
        self.packing
    }

    /// The next segment begins at `start`, in another file.
    pub(super) fn begin(&mut self, start: Lsn) {
        *self = Self { idle: self.idle.take(), ..Self::new(self.packing, self.shape, start) };
    }

    /// Takes bytes in, and writes what has gathered when that is much.
    pub(super) fn push(&mut self, bytes: &[u8], open: &mut Open) -> Result<(), DiskError> {
        self.take(bytes, &open.path)?;
        if self.ready.len() >= GATHERED { self.write(open) } else { Ok(()) }
    }

    /// Takes bytes in of a segment that is not open yet; false if there are too many already.
    pub(super) fn gather(&mut self, bytes: &[u8]) -> Result<bool, DiskError> {
        let room = self.ready.len() < AHEAD;
        if room {
            self.take(bytes, Path::new("the segment that comes next"))?;
        }
        Ok(room)
    }

    fn take(&mut self, bytes: &[u8], path: &Path) -> Result<(), DiskError> {
        let wrong = wrong(path);
        let engine = match &mut self.engine {
            Some(engine) => engine,
            none => none.insert(match self.idle.take() {
                Some(frames) => Engine::Pieces(frames),
                None => Engine::start(self.packing, self.shape).map_err(wrong)?,
            }),
        };
        engine.write(bytes, &mut self.ready).map_err(wrong)?;
        self.at = self.at.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// Writes all that was taken in, so that it decodes.
    pub(super) fn write_out(&mut self, open: &mut Open) -> Result<(), DiskError> {
        if let Some(engine) = self.engine.as_mut().filter(|_| self.at > self.written) {
            engine.flush(&mut self.ready).map_err(wrong(&open.path))?;
            self.write(open)?;
        }
        self.written = self.at;
        Ok(())
    }

    /// Ends the file: it is a whole one.
    pub(super) fn end(&mut self, open: &mut Open) -> Result<(), DiskError> {
        if let Some(engine) = self.engine.take() {
            self.idle = engine.end(&mut self.ready).map_err(wrong(&open.path))?;
            self.write(open)?;
        }
        self.written = self.at;
        Ok(())
    }

    /// Ends the file, and lets it be written and the segment be completed while the next one is taken in.
    pub(super) fn complete(&mut self, mut open: Open, last: Last) -> Result<Completing, DiskError> {
        if let Some(engine) = self.engine.take() {
            self.idle = engine.end(&mut self.ready).map_err(wrong(&open.path))?;
        }
        let (mut file, offset, ready) = (open.take_file()?, self.offset, std::mem::take(&mut self.ready));
        let work = move || {
            file.write_at(offset, &ready)?;
            last.complete(file)
        };
        let thread = thread::Builder::new().name("complete".into()).spawn(work);
        thread.map(|thread| Completing(Some(thread))).map_err(|e| DiskError::new("complete", &open.path, e))
    }

    /// Whether it is made on several threads, and the last of them need not be waited for.
    pub(super) const fn in_pieces(&self) -> bool {
        matches!(self.shape, Shape::Pieces)
    }

    fn write(&mut self, open: &mut Open) -> Result<(), DiskError> {
        let mut file = open.take_file()?;
        file.write_at(self.offset, &self.ready)?;
        open.file = Some(file);
        self.offset += self.ready.len() as u64;
        self.ready.clear();
        Ok(())
    }
}

/// A segment that is being completed. No other is open until that is done, so that there is one partial at a time.
#[derive(Debug)]
pub(super) struct Completing(Option<JoinHandle<Result<(Segment, Durable), DiskError>>>);

impl Completing {
    /// Waits until it is; to be asked once more only where it could not be.
    pub(super) fn wait(&mut self) -> Result<(Segment, Durable), DiskError> {
        let done = self.0.take().and_then(|thread| thread.join().ok());
        done.unwrap_or_else(|| Err(gone(Path::new("the segment before"))))
    }
}

fn wrong(path: &Path) -> impl Fn(io::Error) -> DiskError + Copy + '_ {
    move |e| DiskError::new("compress", path, e)
}
