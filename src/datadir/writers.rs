//! Files that are written while the next bytes come.
//!
//! What is whole blocks goes past the page cache: filling fresh pages of it costs more than the disk does, and what
//! others have in it stays. A direct write says itself if it failed; what little goes through the cache is synced by
//! whoever wrote it, for only that handle is sure to hear that the kernel could not write it: a sync of the file system
//! hears nothing of it on Linux before 5.8, and later not if somebody else has been told before. So all that is left
//! to [`super::SyncMethod`] is names, sizes, modes, and what the device still holds in its own cache.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};

use super::DataDirError;
use crate::disk::{Access, AlignedBuf, BLOCK, Disk, DiskError, File, Trouble};
use crate::image::MemberPath;

/// Bytes that are written at a time.
pub(super) const PIECE: usize = 2 << 20;
/// Pieces in all: those that are being filled, wait, or are being written.
const PIECES: usize = 6;
/// Small files that may wait for a thread, each in a piece of its own or empty.
const QUEUE: usize = 64;

/// A file that is to be made.
#[derive(Debug)]
pub(super) struct NewFile {
    pub(super) path: PathBuf,
    pub(super) mode: u32,
    pub(super) owner: Option<(u32, u32)>,
    /// What it is in an archive, where there may be two of a name.
    pub(super) member: Option<MemberPath>,
}

/// Makes files one after the other. Nothing is known to be written, and no name to be there, before
/// [`Writers::settle`].
#[derive(Debug)]
pub(super) struct Writers {
    disk: Arc<dyn Disk>,
    team: Team,
    spares: Vec<AlignedBuf>,
    /// Pieces that there are.
    pieces: usize,
    open: Option<Filling>,
    /// An error has been told of.
    given_up: bool,
}

/// Who does the work.
#[derive(Debug)]
enum Team {
    /// Nobody has been asked yet.
    None,
    /// Whoever brings the bytes.
    Here(Writer),
    Threads {
        threads: Vec<Thread>,
        emptied: Receiver<AlignedBuf>,
        /// One of them has failed, and tells about it when asked.
        failed: Arc<AtomicBool>,
    },
}

#[derive(Debug)]
struct Thread {
    /// Nothing when it is to end.
    orders: Option<SyncSender<Order>>,
    /// Orders that it has not done yet.
    waiting: Arc<AtomicUsize>,
    handle: Option<JoinHandle<()>>,
}

/// The file whose bytes are coming.
#[derive(Debug)]
struct Filling {
    /// Until it has been handed over.
    new: Option<NewFile>,
    /// Whose it is.
    thread: usize,
    piece: Option<AlignedBuf>,
    filled: usize,
}

#[derive(Debug)]
enum Order {
    Write(Part),
    /// Say how it went so far.
    Report(Sender<Result<(), DataDirError>>),
}

/// The next of a file.
#[derive(Debug)]
struct Part {
    /// It is the first.
    new: Option<NewFile>,
    piece: Option<AlignedBuf>,
    filled: usize,
    last: bool,
}

impl Writers {
    pub(super) const fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, team: Team::None, spares: Vec::new(), pieces: 0, open: None, given_up: false }
    }

    /// The bytes that follow are those of this file, up to [`Writers::end`].
    pub(super) fn begin(&mut self, new: NewFile) -> Result<(), DataDirError> {
        self.check()?;
        if matches!(self.team, Team::None) {
            self.team = Team::new(&self.disk).map_err(DataDirError::Thread)?;
        }
        let thread = self.team.least_busy();
        self.open = Some(Filling { new: Some(new), thread, piece: None, filled: 0 });
        Ok(())
    }

    /// Takes the next bytes of the file; of no file, if none was begun.
    pub(super) fn put(&mut self, mut bytes: &[u8]) -> Result<(), DataDirError> {
        while !bytes.is_empty() {
            let Some(mut open) = self.open.take() else { return Ok(()) };
            let mut piece = match open.piece.take() {
                Some(piece) => piece,
                None => self.empty()?,
            };
            let count = bytes.len().min(piece.len() - open.filled);
            let (now, rest) = bytes.split_at(count);
            if let Some(room) = piece.get_mut(open.filled..open.filled + count) {
                room.copy_from_slice(now);
            }
            open.filled += count;
            open.piece = Some(piece);
            bytes = rest;
            if open.filled == PIECE {
                let (new, piece) = (open.new.take(), open.piece.take());
                self.give(open.thread, Part { new, piece, filled: std::mem::take(&mut open.filled), last: false })?;
            }
            self.open = Some(open);
        }
        Ok(())
    }

    /// The file is whole, if one was begun.
    pub(super) fn end(&mut self) -> Result<(), DataDirError> {
        let Some(Filling { new, thread, piece, filled }) = self.open.take() else { return Ok(()) };
        self.give(thread, Part { new, piece, filled, last: true })
    }

    /// Waits until all files that were ended are written.
    pub(super) fn settle(&mut self) -> Result<(), DataDirError> {
        self.check()?;
        let settled = self.team.settle();
        self.given_up = settled.is_err();
        settled
    }

    /// Whether it is to be gone on: a file after one that failed would be written for nothing.
    fn check(&mut self) -> Result<(), DataDirError> {
        if self.given_up {
            return Err(DataDirError::GivenUp);
        }
        if self.team.has_failed() {
            self.given_up = true;
            self.team.settle()?;
        }
        Ok(())
    }

    fn empty(&mut self) -> Result<AlignedBuf, DataDirError> {
        if let Some(spare) = self.spares.pop() {
            return Ok(spare);
        }
        match &self.team {
            Team::Threads { emptied, .. } => match emptied.try_recv() {
                Ok(emptied) => Ok(emptied),
                Err(_) if self.pieces < PIECES => Ok(self.one_more()),
                Err(_) => emptied.recv().map_err(|_| stopped()),
            },
            Team::None | Team::Here(_) => Ok(self.one_more()),
        }
    }

    fn one_more(&mut self) -> AlignedBuf {
        self.pieces += 1;
        AlignedBuf::zeroed(PIECE)
    }

    fn give(&mut self, thread: usize, part: Part) -> Result<(), DataDirError> {
        self.check()?;
        match &mut self.team {
            Team::None => Err(stopped()),
            Team::Threads { threads, .. } => threads.get(thread).ok_or_else(stopped)?.order(Order::Write(part)),
            Team::Here(writer) => {
                let (emptied, written) = writer.write(part);
                self.spares.extend(emptied);
                self.given_up = written.is_err();
                written
            }
        }
    }
}

impl Team {
    fn new(disk: &Arc<dyn Disk>) -> io::Result<Self> {
        let writer = || Writer { disk: Arc::clone(disk), open: None };
        let (returned, emptied) = channel();
        let failed = Arc::new(AtomicBool::new(false));
        let thread = |_| Thread::start(writer(), returned.clone(), Arc::clone(&failed));
        let threads = (0..disk.writers()).map(thread).collect::<io::Result<Vec<_>>>()?;
        Ok(if threads.is_empty() { Self::Here(writer()) } else { Self::Threads { threads, emptied, failed } })
    }

    /// Files are shared out whole: two writes at once to one file would wait for each other.
    fn least_busy(&self) -> usize {
        let Self::Threads { threads, .. } = self else { return 0 };
        let waiting = |thread: &Thread| thread.waiting.load(Ordering::Relaxed);
        threads.iter().enumerate().min_by_key(|(_, thread)| waiting(thread)).map_or(0, |(at, _)| at)
    }

    fn has_failed(&self) -> bool {
        matches!(self, Self::Threads { failed, .. } if failed.load(Ordering::Relaxed))
    }

    fn settle(&self) -> Result<(), DataDirError> {
        let Self::Threads { threads, .. } = self else { return Ok(()) };
        let mut reports = Vec::new();
        for thread in threads {
            let (report, reported) = channel();
            thread.order(Order::Report(report))?;
            reports.push(reported);
        }
        // All of them, for whoever is told that one has failed may remove what the others write.
        let reports: Vec<_> = reports.iter().map(|reported| reported.recv().map_err(|_| stopped())).collect();
        reports.into_iter().try_for_each(|report| report?)
    }
}

impl Thread {
    fn start(mut writer: Writer, emptied: Sender<AlignedBuf>, failed: Arc<AtomicBool>) -> io::Result<Self> {
        let (orders, queue) = sync_channel(QUEUE);
        let waiting = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&waiting);
        let work = move || {
            let mut failure = None;
            for order in queue {
                match order {
                    // Nobody has to know, if nobody is there any more.
                    Order::Report(report) => _ = report.send(failure.take().map_or(Ok(()), Err)),
                    Order::Write(part) => {
                        let (piece, written) =
                            if failed.load(Ordering::Relaxed) { (part.piece, Ok(())) } else { writer.write(part) };
                        if let Err(e) = written {
                            failure = Some(e);
                            failed.store(true, Ordering::Relaxed);
                        }
                        piece.map(|piece| emptied.send(piece));
                    }
                }
                left.fetch_sub(1, Ordering::Relaxed);
            }
        };
        let handle = thread::Builder::new().name("write".to_owned()).spawn(work)?;
        Ok(Self { orders: Some(orders), waiting, handle: Some(handle) })
    }

    fn order(&self, order: Order) -> Result<(), DataDirError> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.orders.as_ref().and_then(|orders| orders.send(order).ok()).ok_or_else(stopped)
    }
}

impl Drop for Thread {
    /// Nothing is written any more when this has returned.
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.handle.take().map(JoinHandle::join);
    }
}

fn stopped() -> DataDirError {
    DataDirError::Thread(io::Error::other("it ended unexpectedly"))
}

/// Writes files one after the other.
#[derive(Debug)]
struct Writer {
    disk: Arc<dyn Disk>,
    open: Option<Open>,
}

/// A file that is being written.
#[derive(Debug)]
struct Open {
    new: NewFile,
    /// Through the page cache.
    file: Box<dyn File>,
    /// Past it, of one that has whole blocks.
    direct: Option<Box<dyn File>>,
    /// Bytes so far.
    at: u64,
    /// Some of them went through the page cache.
    cached: bool,
}

impl Writer {
    /// Writes a part, and gives the memory back.
    fn write(&mut self, part: Part) -> (Option<AlignedBuf>, Result<(), DataDirError>) {
        let Part { new, piece, filled, last } = part;
        let bytes = piece.as_ref().and_then(|piece| piece.get(..filled)).unwrap_or_default();
        let written = self.write_bytes(new, bytes, last);
        (piece, written)
    }

    fn write_bytes(&mut self, new: Option<NewFile>, bytes: &[u8], last: bool) -> Result<(), DataDirError> {
        if let Some(new) = new {
            self.open = Some(Open::create(&*self.disk, new, bytes.len())?);
        }
        if let Some(open) = &mut self.open {
            open.write(bytes)?;
        }
        match self.open.take_if(|_| last) {
            Some(open) => Ok(open.finish(&*self.disk)?),
            None => Ok(()),
        }
    }
}

impl Open {
    fn create(disk: &dyn Disk, new: NewFile, first: usize) -> Result<Self, DataDirError> {
        let file = disk.create(&new.path, 0o600).map_err(|e| match (&new.member, e.trouble()) {
            (Some(member), Trouble::Exists) => DataDirError::Twice(member.clone()),
            _ => e.into(),
        })?;
        let direct = if first < BLOCK { None } else { past_the_cache(disk, &new.path)? };
        Ok(Self { new, file, direct, at: 0, cached: false })
    }

    /// All pieces but the last are whole blocks.
    fn write(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        let blocks = if self.direct.is_some() { bytes.len() - bytes.len() % BLOCK } else { 0 };
        let (blocks, rest) = bytes.split_at(blocks);
        if let (Some(direct), false) = (&mut self.direct, blocks.is_empty()) {
            direct.write_at(self.at, blocks)?;
            self.at += blocks.len() as u64;
        }
        if !rest.is_empty() {
            self.file.write_at(self.at, rest)?;
            self.at += rest.len() as u64;
            self.cached = true;
        }
        Ok(())
    }

    fn finish(self, disk: &dyn Disk) -> Result<(), DiskError> {
        disk.set_access(&self.new.path, self.new.mode, self.new.owner)?;
        if self.cached {
            let _synced = self.file.sync()?;
        }
        Ok(())
    }
}

/// The file for direct writes; `None` where the file system has none.
fn past_the_cache(disk: &dyn Disk, path: &Path) -> Result<Option<Box<dyn File>>, DiskError> {
    let file = disk.open(path, Access::WriteDirect)?;
    Ok(Some(file).filter(|file| file.alignment() > 1))
}
