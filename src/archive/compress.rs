//! Compressing complete segments, behind the durable point.
//!
//! The plain file stays until its compressed copy is durable, has been read back and is the same;
//! while both are there the plain one counts. So whatever happens to the copy, the segment is there.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;

use super::read::decoder;
use super::{Archive, ArchiveError, Form, WalName};
use crate::codec::{Codec, Packer, Packing};
use crate::disk::{Access, AlignedBuf, DiskError, File, Synced, Trouble};
use crate::wal::Segment;

/// How much is read at a time.
const CHUNK: usize = 1 << 20;
/// Names that wait; when there are more the folder is looked through again.
const WAITING: usize = 64;
/// After the disk was full.
const PAUSE: Duration = Duration::from_secs(60);
/// Segments' worth of room below which nothing is compressed: the copy needs room before it gives
/// some back, and received WAL goes first.
const ROOM: u64 = 3;
/// What is asked of the scheduler for the thread (`nice`): receiving goes first.
const NICE: i32 = 10;

/// What became of a segment.
#[derive(Debug)]
pub enum Compressed {
    /// It is compressed, and the plain file is gone.
    Done {
        /// Which.
        segment: Segment,
        /// What it takes now, in bytes.
        bytes: u64,
    },
    /// It stays plain, until the next start or until there is room.
    Kept {
        /// Which.
        segment: Segment,
        /// Why.
        why: CompressError,
    },
    /// Which segments are to be compressed cannot be found out.
    NotListed(ArchiveError),
}

/// A segment cannot be compressed; the plain file is there as before.
#[derive(Debug, Error)]
pub enum CompressError {
    /// The file system did not do what it was asked.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The encoder failed.
    #[error("cannot compress {}: {source}", path.display())]
    Encode {
        /// The compressed file.
        path: PathBuf,
        /// What the encoder says.
        source: io::Error,
    },
    /// What was written does not decode.
    #[error("cannot read back {}: {source}", path.display())]
    Decode {
        /// The compressed file.
        path: PathBuf,
        /// What the decoder says.
        source: io::Error,
    },
    /// What was read back is not what was written.
    #[error("{} does not hold the segment when it is read back", .0.display())]
    Differs(PathBuf),
    /// There is hardly any room.
    #[error("there is room for fewer than {ROOM} segments in {}", .0.display())]
    Full(PathBuf),
}

impl CompressError {
    fn is_full(&self) -> bool {
        match self {
            Self::Full(_) => true,
            Self::Disk(e) => e.trouble() == Trouble::Full,
            _ => false,
        }
    }
}

/// The thread that compresses, and the queue to it. Dropping it abandons what is under way.
#[derive(Debug)]
pub struct Compressor {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Compressor {
    /// For `archive`, which must be locked by the caller. Nothing is done before
    /// [`Compressor::look`], or before a writer of [`Archive::compressed_by`] completes a segment.
    /// `report` is called in the thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        archive: &Archive,
        packing: Packing,
        report: impl FnMut(Compressed) + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Arc::new(Queue::new(packing));
        let archive = archive.clone().with_queue(Arc::clone(&queue));
        let work = Work { archive, queue: Arc::clone(&queue), given_up: BTreeSet::new(), report };
        let thread = std::thread::Builder::new().name("compressor".into()).spawn(move || work.run())?;
        Ok(Self { queue, thread: Some(thread) })
    }

    /// Lets it compress all complete segments that are plain: what an earlier process has left.
    pub fn look(&self) {
        self.queue.look();
    }

    /// Lets it end when all that is known has been compressed.
    pub fn finish(&self) {
        self.queue.end(Ending::Finish);
    }

    /// Lets it end at once; the segment under way stays plain.
    pub fn abandon(&self) {
        self.queue.end(Ending::Abandon);
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    pub(super) fn queue(&self) -> Arc<Queue> {
        Arc::clone(&self.queue)
    }
}

impl Drop for Compressor {
    fn drop(&mut self) {
        self.abandon();
        if let Some(thread) = self.thread.take() {
            // A panic has had its own message, and all segments are there.
            let _ = thread.join();
        }
    }
}

/// What the receiver and the compressor have in common.
#[derive(Debug)]
pub(super) struct Queue {
    packing: Packing,
    orders: Mutex<Orders>,
    changed: Condvar,
    /// Held by whoever gives complete segments their names, or makes names durable.
    names: Mutex<Names>,
}

#[derive(Debug, Default)]
struct Orders {
    waiting: VecDeque<Segment>,
    /// More came than could wait.
    missed: bool,
    ending: Option<Ending>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    Finish,
    Abandon,
}

/// What is known of the folder's names.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// A sync of the folder has failed here, and the kernel may tell nobody else.
    lost: bool,
    /// The segment that is being compressed, unless its file has been replaced meanwhile.
    at_work: Option<Segment>,
}

enum Order {
    One(Segment),
    Folder,
    End,
}

impl Queue {
    fn new(packing: Packing) -> Self {
        Self { packing, orders: Mutex::default(), changed: Condvar::new(), names: Mutex::default() }
    }

    /// How segments are compressed.
    pub(super) const fn packing(&self) -> Packing {
        self.packing
    }

    /// Never waits for the disk.
    pub(super) fn add(&self, segment: Segment) {
        let mut orders = lock(&self.orders);
        if orders.waiting.len() < WAITING {
            orders.waiting.push_back(segment);
        } else {
            orders.missed = true;
        }
        self.changed.notify_all();
    }

    fn look(&self) {
        lock(&self.orders).missed = true;
        self.changed.notify_all();
    }

    pub(super) fn names(&self) -> MutexGuard<'_, Names> {
        lock(&self.names)
    }

    fn end(&self, ending: Ending) {
        lock(&self.orders).ending = Some(ending);
        self.changed.notify_all();
    }

    fn is_abandoned(&self) -> bool {
        lock(&self.orders).ending == Some(Ending::Abandon)
    }

    fn next(&self) -> Order {
        let mut orders = lock(&self.orders);
        loop {
            if orders.ending == Some(Ending::Abandon) {
                return Order::End;
            }
            if std::mem::take(&mut orders.missed) {
                // Those that wait are found there, too.
                orders.waiting.clear();
                return Order::Folder;
            }
            if let Some(segment) = orders.waiting.pop_front() {
                return Order::One(segment);
            }
            if orders.ending.is_some() {
                return Order::End;
            }
            orders = self.changed.wait(orders).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until there may be room again, and looks through the folder then. Nothing more is tried
    /// if it is to end.
    fn pause(&self) {
        let orders = lock(&self.orders);
        let waiting = |orders: &mut Orders| orders.ending.is_none();
        let waited = self.changed.wait_timeout_while(orders, PAUSE, waiting);
        let (mut orders, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match orders.ending {
            Some(_) => orders.ending = Some(Ending::Abandon),
            None => orders.missed = true,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in them is consistent at every point where a panic is possible.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Names {
    /// Makes the folder's names durable.
    pub(super) fn sync(&mut self, archive: &Archive) -> Result<Synced, DiskError> {
        if self.lost {
            let source = io::Error::other("a sync of it has failed before");
            return Err(DiskError::of(Trouble::Failed, "sync", &archive.dir, source));
        }
        let synced = archive.disk.sync_dir(&archive.dir);
        self.lost = synced.is_err();
        synced
    }

    /// The segment is about to have another file.
    pub(super) fn replace(&mut self, segment: Segment) {
        self.at_work.take_if(|at_work| *at_work == segment);
    }
}

/// What the thread does.
struct Work<R> {
    archive: Archive,
    queue: Arc<Queue>,
    /// What is not tried again: something is wrong with these.
    given_up: BTreeSet<String>,
    report: R,
}

impl<R: FnMut(Compressed)> Work<R> {
    fn run(mut self) {
        // This thread alone, on Linux. Without it, it merely competes.
        let _ = rustix::process::setpriority_process(None, NICE);
        loop {
            let all_fit = match self.queue.next() {
                Order::End => return,
                Order::One(segment) => self.compress(segment),
                Order::Folder => self.folder(),
            };
            if !all_fit {
                self.queue.pause();
            }
        }
    }

    /// Compresses all that is complete and plain. Whether there was room.
    fn folder(&mut self) -> bool {
        if let Err(e) = self.archive.sweep_copies() {
            (self.report)(Compressed::NotListed(e));
        }
        match self.archive.plain_segments() {
            Ok(segments) => segments.into_iter().all(|segment| self.queue.is_abandoned() || self.compress(segment)),
            Err(e) => {
                (self.report)(Compressed::NotListed(e));
                false
            }
        }
    }

    /// Whether there was room.
    fn compress(&mut self, segment: Segment) -> bool {
        if self.given_up.contains(&segment.name()) {
            return true;
        }
        match self.archive.compress(segment, self.queue.packing()) {
            Ok(None) => true,
            Ok(Some(bytes)) => {
                (self.report)(Compressed::Done { segment, bytes });
                true
            }
            Err(why) => {
                let full = why.is_full();
                if !full {
                    self.given_up.insert(segment.name());
                }
                (self.report)(Compressed::Kept { segment, why });
                !full
            }
        }
    }
}

/// Ends the name of a copy that is not finished.
const COPY: &str = ".tmp";

/// Whether a name is that of a copy that was not finished.
fn is_copy(name: &str, archive: &Archive) -> bool {
    let parsed = name.strip_suffix(COPY).and_then(|name| WalName::parse(name, archive.size));
    matches!(parsed, Some(WalName::Segment { codec, partial: false, .. }) if codec != Codec::Plain)
}

impl Archive {
    /// Compresses a segment that is complete and plain, and removes the plain file when the copy is
    /// durable and holds the same. `None` if there is no such file, or it is to be left.
    ///
    /// # Errors
    /// When it cannot be done; then nothing has changed.
    pub fn compress(&self, segment: Segment, packing: Packing) -> Result<Option<u64>, CompressError> {
        let plain = self.path_of(segment, Form { codec: Codec::Plain, partial: false });
        let Some(meta) = self.disk.metadata(&plain)?.filter(|meta| meta.len == self.size.bytes()) else {
            return Ok(None);
        };
        if self.disk.available(&self.dir)? < self.size.bytes().saturating_mul(ROOM) {
            return Err(CompressError::Full(self.dir.clone()));
        }
        self.at_work(Some(segment));
        let form = Form { codec: packing.codec(), partial: false };
        let path = self.path_of(segment, form);
        let mut copy = path.clone().into_os_string();
        copy.push(COPY);
        let copy = PathBuf::from(copy);
        let made = self.copy(&plain, &copy, meta.mode, packing);
        let done = match made {
            Ok(Some(bytes)) => self.replace_plain(segment, form, &copy).map(|done| done.then_some(bytes)),
            Ok(None) => Ok(None),
            Err(e) => Err(e),
        };
        if !matches!(done, Ok(Some(_))) {
            // It bears a name that nobody looks at; the next start removes it too.
            let _ = self.disk.remove(&copy);
        }
        self.at_work(None);
        done
    }

    /// Makes a durable copy and reads it back; its size, or `None` if it was abandoned.
    fn copy(&self, plain: &Path, copy: &Path, mode: u32, packing: Packing) -> Result<Option<u64>, CompressError> {
        match self.disk.remove(copy) {
            Err(e) if e.trouble() != Trouble::Missing => return Err(e.into()),
            _ => {}
        }
        let wrong = |source| CompressError::Encode { path: copy.to_owned(), source };
        let from = self.disk.open(plain, Access::ReadDirect)?;
        let mut to = self.disk.create(copy, mode)?;
        self.disk.set_access(copy, mode, None)?;
        let mut packer = Packer::whole(packing, self.size.bytes()).map_err(wrong)?;
        let (mut buffer, mut ready) = (AlignedBuf::zeroed(CHUNK), Vec::new());
        let (mut at, mut bytes) = (0, 0);
        while at < self.size.bytes() {
            if self.is_abandoned() {
                return Ok(None);
            }
            let read = from.read_at(at, &mut buffer)?;
            if read == 0 {
                return Ok(None);
            }
            at += read as u64;
            packer.write(buffer.get(..read).unwrap_or_default()).map_err(wrong)?;
            packer.take(&mut ready);
            bytes = append(&mut *to, bytes, &mut ready)?;
        }
        ready.append(&mut packer.finish().map_err(wrong)?);
        bytes = append(&mut *to, bytes, &mut ready)?;
        let (_file, _data) = to.sync()?;
        Ok(self.is_same(&*from, copy, packing.codec(), &mut buffer)?.then_some(bytes))
    }

    /// Whether the copy has been read back; an error if it is not the same.
    fn is_same(
        &self,
        plain: &dyn File,
        copy: &Path,
        codec: Codec,
        buffer: &mut AlignedBuf,
    ) -> Result<bool, CompressError> {
        let wrong = |source| CompressError::Decode { path: copy.to_owned(), source };
        let mut decoder = decoder(codec, self.disk.open(copy, Access::ReadDirect)?).map_err(wrong)?;
        let mut decoded = vec![0; CHUNK];
        let mut at = 0;
        while at < self.size.bytes() {
            if self.is_abandoned() {
                return Ok(false);
            }
            let read = plain.read_at(at, buffer)?;
            let (there, here) = (buffer.get(..read).unwrap_or_default(), decoded.get_mut(..read).unwrap_or_default());
            decoder.read_exact(here).map_err(wrong)?;
            if read == 0 || here != there {
                return Err(CompressError::Differs(copy.to_owned()));
            }
            at += read as u64;
        }
        match decoder.read(&mut decoded).map_err(wrong)? {
            0 => Ok(true),
            _ => Err(CompressError::Differs(copy.to_owned())),
        }
    }

    /// Gives the durable copy its name, makes that durable, and only then removes the plain file, and
    /// before it what else might count for the segment. `false` if the plain file is another by now.
    fn replace_plain(&self, segment: Segment, form: Form, copy: &Path) -> Result<bool, CompressError> {
        let mut own = Names { at_work: Some(segment), ..Names::default() };
        let mut shared = self.queue().map(|queue| queue.names());
        let names = shared.as_deref_mut().unwrap_or(&mut own);
        if names.at_work != Some(segment) {
            return Ok(false);
        }
        // What retention has removed meanwhile must not come back.
        if self.disk.metadata(&self.path_of(segment, Form { codec: Codec::Plain, ..form }))?.is_none() {
            return Ok(false);
        }
        self.disk.rename(copy, &self.path_of(segment, form))?;
        let _named = names.sync(self)?;
        let mut others = false;
        for codec in Codec::ALL.into_iter().filter(|codec| *codec != Codec::Plain && *codec != form.codec) {
            others |= self.removed(&self.path_of(segment, Form { codec, ..form }))?;
        }
        if others {
            let _gone = names.sync(self)?;
        }
        self.removed(&self.path_of(segment, Form { codec: Codec::Plain, ..form }))?;
        Ok(true)
    }

    fn removed(&self, path: &Path) -> Result<bool, DiskError> {
        match self.disk.remove(path) {
            Ok(()) => Ok(true),
            Err(e) if e.trouble() == Trouble::Missing => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn at_work(&self, segment: Option<Segment>) {
        if let Some(queue) = self.queue() {
            queue.names().at_work = segment;
        }
    }

    fn is_abandoned(&self) -> bool {
        self.queue().is_some_and(|queue| queue.is_abandoned())
    }

    /// The complete segments that are there plain, in the order of their names.
    ///
    /// # Errors
    /// When the folder cannot be listed to its end.
    pub fn plain_segments(&self) -> Result<Vec<Segment>, ArchiveError> {
        let entries = self.disk.list(&self.dir)?;
        let plain = |name: &str| match WalName::parse(name, self.size) {
            Some(WalName::Segment { segment, codec: Codec::Plain, partial: false }) => Some(segment),
            _ => None,
        };
        let mut segments: Vec<_> = entries.iter().filter_map(|entry| plain(entry.name.to_str()?)).collect();
        segments.sort_by_key(|segment| (segment.tli(), segment.no()));
        Ok(segments)
    }

    /// Removes copies that a process that ended had not finished.
    ///
    /// # Errors
    /// When one of them cannot be removed.
    pub(super) fn sweep_copies(&self) -> Result<(), ArchiveError> {
        for entry in self.disk.list(&self.dir)? {
            if entry.name.to_str().is_some_and(|name| is_copy(name, self)) {
                self.removed(&self.dir.join(&entry.name))?;
            }
        }
        Ok(())
    }
}

/// Writes `ready` at `at` and empties it; where the next byte goes.
fn append(file: &mut dyn File, at: u64, ready: &mut Vec<u8>) -> Result<u64, DiskError> {
    file.write_at(at, ready)?;
    let end = at + ready.len() as u64;
    ready.clear();
    Ok(end)
}

#[cfg(test)]
mod tests;
