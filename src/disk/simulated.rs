//! A disk in memory that can be cut off after every call, for tests.
//!
//! Every change is kept in a log. The disk as it stood after any of them can be had again, and from
//! it the states that a power cut could have left: what was synced is there, what was not is there,
//! or not, or torn, names and data each for themselves.
//!
//! It is meaner than most devices: unsynced sectors reach the platter in any order, unsynced names
//! independently of each other and of the data they lead to, and a sync that fails loses what it
//! was to save while the page cache goes on showing it.

mod content;
mod cut;
mod state;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::{Access, BLOCK, Disk, DiskError, Entry, EntryKind, File, Lock, Meta, Synced, Trouble};
use cut::Fate;
use state::{Id, Made, Operation, State};

/// Links that are followed on the way to a file.
const MAX_LINKS: usize = 8;

/// The unit in which a device takes writes: a sector is written whole or not at all.
pub const SECTOR: usize = 512;

/// Files and directories in memory, and what of them would survive a power cut. Clones are the same
/// disk. The root directory is there from the start; permission bits and owners are not kept.
#[derive(Clone)]
pub struct Simulated {
    world: Arc<Mutex<World>>,
    /// Of files opened for direct I/O.
    alignment: usize,
    writers: usize,
}

struct World {
    /// Where it comes from, for messages.
    origin: String,
    start: State,
    state: State,
    log: Vec<Operation>,
    locks: BTreeMap<Id, Held>,
    calls: BTreeMap<Call, usize>,
    faults: Vec<(Call, usize, Fault)>,
    capacity: Option<u64>,
}

/// The kinds of calls that can be made to fail, and are counted for that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Call {
    /// A new file, directory or link.
    Create,
    /// An open of a file that exists.
    Open,
    /// A read of a file.
    Read,
    /// A write to a file, or the making of its size.
    Write,
    /// A sync of a file.
    Sync,
    /// A sync of a directory.
    SyncDir,
    /// A sync of all there is.
    SyncFilesystem,
    /// A rename.
    Rename,
    /// A removal of a name.
    Remove,
    /// The listing of a directory.
    List,
    /// A look at what is known of a file by its path or by a handle, or at where a link leads.
    Look,
    /// A question for the room that is left.
    Room,
    /// The setting of mode and owner.
    SetAccess,
    /// The taking of a lock.
    Lock,
}

impl Call {
    /// Each of them.
    pub const ALL: [Self; 14] = [
        Self::Create,
        Self::Open,
        Self::Read,
        Self::Write,
        Self::Sync,
        Self::SyncDir,
        Self::SyncFilesystem,
        Self::Rename,
        Self::Remove,
        Self::List,
        Self::Look,
        Self::Room,
        Self::SetAccess,
        Self::Lock,
    ];
}

/// How a call fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// EIO. A write has put down its first half; a sync of data has lost all that was unsynced.
    Io,
    /// ENOSPC. A write has put down its first half.
    Full,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Held {
    Exclusive,
    Shared(usize),
}

/// A simulated lock, let go when dropped.
pub(super) struct HeldLock {
    world: Arc<Mutex<World>>,
    id: Id,
}

impl Simulated {
    /// An empty disk on which direct I/O must be aligned to `alignment`: [`BLOCK`], where a transfer
    /// that is not is an error; or 1, as where there is no direct I/O and the page cache is read.
    ///
    /// # Panics
    /// For any other alignment.
    pub fn new(alignment: usize) -> Self {
        assert!(alignment == 1 || alignment == BLOCK, "an alignment is 1 or {BLOCK}");
        Self::of(State::new(), alignment, "an empty disk".to_owned())
    }

    fn of(state: State, alignment: usize, origin: String) -> Self {
        let world = World {
            origin,
            start: state.clone(),
            state,
            log: Vec::new(),
            locks: BTreeMap::new(),
            calls: BTreeMap::new(),
            faults: Vec::new(),
            capacity: None,
        };
        Self { world: Arc::new(Mutex::new(world)), alignment, writers: 0 }
    }

    /// The same disk for a program that writes with so many threads: calls come in another order each time.
    #[must_use]
    pub fn with_writers(mut self, threads: usize) -> Self {
        self.writers = threads;
        self
    }

    /// How many changes and syncs have been made since this disk came to be.
    pub fn operations(&self) -> usize {
        self.world().log.len()
    }

    /// The disks after 0, 1, 2 and so on to all of the operations so far, as a process that is
    /// killed leaves them: what was not synced is still in the page cache, locks are let go.
    pub fn prefixes(&self) -> impl Iterator<Item = Self> + use<> {
        let world = self.world();
        let (mut state, log, alignment, before) =
            (world.start.clone(), world.log.clone(), self.alignment, world.origin.clone());
        drop(world);
        (0..=log.len()).map(move |k| {
            let last = k.checked_sub(1).and_then(|last| log.get(last));
            if let Some(operation) = last {
                state.apply(operation);
            }
            let last = last.map(|operation| format!(", {operation:?}")).unwrap_or_default();
            Self::of(state.clone(), alignment, format!("{before}\n  after operation {k}{last}"))
        })
    }

    /// The disk after the first `operations`: see [`Simulated::prefixes`].
    ///
    /// # Panics
    /// When there were not as many.
    pub fn after(&self, operations: usize) -> Self {
        let Some(disk) = self.prefixes().nth(operations) else { panic!("there were not {operations} operations") };
        disk
    }

    /// What a power cut now could leave: with all or nothing of the unsynced data and all or nothing
    /// of the unsynced names, and `mixes` more between these, as `seed` decides.
    pub fn crash_images(&self, seed: u64, mixes: u64) -> impl Iterator<Item = Self> + use<> {
        let world = self.world();
        let (state, origin, alignment) = (world.state.clone(), world.origin.clone(), self.alignment);
        drop(world);
        Fate::all(&state, seed, mixes).into_iter().map(move |fate| {
            let after = state.cut(&fate);
            Self::of(after, alignment, format!("{origin}\n  power cut: {fate}"))
        })
    }

    /// Lets the `nth` call of a kind fail, counted from the making of this disk; the first is 1.
    pub fn fail(&self, call: Call, nth: usize, fault: Fault) {
        self.world().faults.push((call, nth, fault));
    }

    /// How many calls of a kind there were.
    pub fn calls(&self, call: Call) -> usize {
        self.world().calls.get(&call).copied().unwrap_or(0)
    }

    /// Sets how many bytes fit in all files together; `None` is no limit. Names take no room.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.world().capacity = bytes;
    }

    fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    fn file(&self, id: Id, path: &Path, direct: bool) -> Box<dyn File> {
        let alignment = if direct { self.alignment } else { 1 };
        Box::new(SimulatedFile { world: Arc::clone(&self.world), id, path: path.to_owned(), alignment })
    }

    fn lock_directory(&self, path: &Path, shared: bool) -> Result<Lock, DiskError> {
        let mut world = self.world();
        let id = world.find("open", path)?;
        if world.state.dir(id).is_none() {
            return Err(refused("open", path, Errno::NOTDIR));
        }
        self.take_lock(&mut world, id, path, shared)
    }

    fn take_lock(&self, world: &mut World, id: Id, path: &Path, shared: bool) -> Result<Lock, DiskError> {
        world.call(Call::Lock, "lock", path)?;
        let held = match (world.locks.get(&id), shared) {
            (None, false) => Held::Exclusive,
            (None, true) => Held::Shared(1),
            (Some(Held::Shared(n)), true) => Held::Shared(n + 1),
            _ => {
                let note = world.state.file(id).map(|file| file.cache.text()).unwrap_or_default();
                return Err(DiskError::locked(path, &note));
            }
        };
        world.locks.insert(id, held);
        Ok(Lock::simulated(HeldLock { world: Arc::clone(&self.world), id }))
    }
}

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.world().origin)
    }
}

fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    // A test that fails while it holds the lock has said why.
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        let mut world = lock(&self.world);
        match world.locks.get_mut(&self.id) {
            Some(Held::Shared(n)) if *n > 1 => *n -= 1,
            _ => drop(world.locks.remove(&self.id)),
        }
    }
}

impl fmt::Debug for HeldLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldLock").field("id", &self.id).finish_non_exhaustive()
    }
}

fn refused(verb: &'static str, path: &Path, error: Errno) -> DiskError {
    DiskError::new(verb, path, error.into())
}

impl World {
    fn perform(&mut self, operation: Operation) {
        self.state.apply(&operation);
        self.log.push(operation);
    }

    /// Counts a call; the fault it is to meet.
    fn count(&mut self, call: Call) -> Option<Fault> {
        let count = self.calls.entry(call).or_default();
        *count += 1;
        let count = *count;
        self.faults.iter().find(|(kind, nth, _)| *kind == call && *nth == count).map(|(_, _, fault)| *fault)
    }

    fn call(&mut self, call: Call, verb: &'static str, path: &Path) -> Result<(), DiskError> {
        match self.count(call) {
            None => Ok(()),
            Some(fault) => Err(refused(verb, path, fault.errno())),
        }
    }

    /// What the path leads to, links followed.
    fn find(&self, verb: &'static str, path: &Path) -> Result<Id, DiskError> {
        self.state.resolve(path, MAX_LINKS).map_err(|e| refused(verb, path, e))
    }

    /// The directory that holds the last name of the path, and that name.
    fn place(&self, verb: &'static str, path: &Path) -> Result<(Id, OsString), DiskError> {
        let wrong = |e| refused(verb, path, e);
        let name = path.file_name().ok_or_else(|| wrong(Errno::INVAL))?.to_owned();
        let parent = path.parent().unwrap_or_else(|| Path::new(""));
        let dir = self.state.resolve(parent, MAX_LINKS).map_err(wrong)?;
        self.state.dir(dir).ok_or_else(|| wrong(Errno::NOTDIR))?;
        Ok((dir, name))
    }

    fn make(&mut self, verb: &'static str, path: &Path, made: Made) -> Result<Id, DiskError> {
        self.call(Call::Create, verb, path)?;
        let (dir, name) = self.place(verb, path)?;
        if self.state.name(dir, &name).is_some() {
            return Err(refused(verb, path, Errno::EXIST));
        }
        let id = self.state.next_id();
        self.perform(Operation::Make { dir, name, made });
        Ok(id)
    }

    /// Room for `more` bytes.
    fn room(&self) -> u64 {
        self.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(self.state.used()))
    }

    fn set_size(&mut self, verb: &'static str, path: &Path, id: Id, len: u64) -> Result<(), DiskError> {
        self.call(Call::Write, verb, path)?;
        let now = self.state.file(id).map_or(0, |file| file.cache.len());
        if len.saturating_sub(now) > self.room() {
            return Err(refused(verb, path, Errno::NOSPC));
        }
        self.perform(Operation::Resize { file: id, len });
        Ok(())
    }

    fn write(&mut self, path: &Path, id: Id, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let mut failed = self.count(Call::Write).map(Fault::errno);
        let now = self.state.file(id).map_or(0, |file| file.cache.len());
        let mut n = if failed.is_some() { bytes.len() / 2 / SECTOR * SECTOR } else { bytes.len() };
        let room = now.saturating_add(self.room()).saturating_sub(offset);
        if n as u64 > room {
            n = usize::try_from(room).unwrap_or(n);
            failed = failed.or(Some(Errno::NOSPC));
        }
        if n > 0 {
            self.perform(Operation::Write { file: id, offset, bytes: Arc::from(&bytes[..n]) });
        }
        failed.map_or(Ok(()), |e| Err(refused("write", path, e)))
    }

    fn remove_below(&mut self, dir: Id) {
        let names: Vec<_> = self.state.dir(dir).map(|d| d.names().clone()).unwrap_or_default().into_iter().collect();
        for (name, id) in names {
            self.remove_below(id);
            self.perform(Operation::Remove { dir, name });
        }
    }
}

impl Fault {
    const fn errno(self) -> Errno {
        match self {
            Self::Io => Errno::IO,
            Self::Full => Errno::NOSPC,
        }
    }
}

/// An open file. Its name may change or go while it is open.
struct SimulatedFile {
    world: Arc<Mutex<World>>,
    id: Id,
    path: PathBuf,
    alignment: usize,
}

impl SimulatedFile {
    fn check(&self, verb: &'static str, offset: u64, memory: &[u8]) -> Result<(), DiskError> {
        let unit = self.alignment;
        let fits = offset.is_multiple_of(unit as u64)
            && memory.len().is_multiple_of(unit)
            && memory.as_ptr().addr().is_multiple_of(unit);
        if fits { Ok(()) } else { Err(refused(verb, &self.path, Errno::INVAL)) }
    }
}

impl fmt::Debug for SimulatedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl File for SimulatedFile {
    fn alignment(&self) -> usize {
        self.alignment
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize, DiskError> {
        self.check("read", offset, into)?;
        let mut world = lock(&self.world);
        world.call(Call::Read, "read", &self.path)?;
        let Some(file) = world.state.file(self.id) else { return Ok(0) };
        // Past the page cache only where there is direct I/O.
        let content = if self.alignment > 1 { &file.device } else { &file.cache };
        Ok(content.read(offset, into))
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.check("write", offset, bytes)?;
        lock(&self.world).write(&self.path, self.id, offset, bytes)
    }

    fn size(&self) -> Result<u64, DiskError> {
        let mut world = lock(&self.world);
        world.call(Call::Look, "examine", &self.path)?;
        Ok(world.state.file(self.id).map_or(0, |file| file.cache.len()))
    }

    fn sync(self: Box<Self>) -> Result<(Box<dyn File>, Synced), DiskError> {
        let mut world = lock(&self.world);
        if let Some(fault) = world.count(Call::Sync) {
            world.perform(Operation::Lose { file: self.id });
            return Err(DiskError::of(Trouble::Failed, "sync", &self.path, fault.errno().into()));
        }
        world.perform(Operation::Sync { file: self.id });
        drop(world);
        Ok((self, Synced(())))
    }
}

impl Disk for Simulated {
    fn create(&self, path: &Path, _mode: u32) -> Result<Box<dyn File>, DiskError> {
        let id = self.world().make("create", path, Made::File)?;
        Ok(self.file(id, path, false))
    }

    fn create_zeroed(&self, path: &Path, len: u64, _mode: u32) -> Result<Box<dyn File>, DiskError> {
        let mut world = self.world();
        let id = world.make("create", path, Made::File)?;
        if let Err(e) = world.set_size("reserve room for", path, id, len) {
            let (dir, name) = world.place("remove", path)?;
            world.perform(Operation::Remove { dir, name });
            return Err(e);
        }
        drop(world);
        Ok(self.file(id, path, true))
    }

    fn open(&self, path: &Path, access: Access) -> Result<Box<dyn File>, DiskError> {
        let mut world = self.world();
        world.call(Call::Open, "open", path)?;
        let id = world.find("open", path)?;
        if world.state.file(id).is_none() {
            return Err(refused("open", path, Errno::ISDIR));
        }
        drop(world);
        Ok(self.file(id, path, !matches!(access, Access::Read | Access::Write)))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        let mut world = self.world();
        world.call(Call::Rename, "rename", from)?;
        let (dir, old) = world.place("rename", from)?;
        let (to_dir, new) = world.place("rename", to)?;
        if world.state.name(dir, &old).is_none() {
            return Err(refused("rename", from, Errno::NOENT));
        }
        if dir != to_dir {
            return Err(refused("rename", from, Errno::XDEV));
        }
        world.perform(Operation::Rename { dir, from: old, to: new });
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), DiskError> {
        let mut world = self.world();
        world.call(Call::Remove, "remove", path)?;
        let (dir, name) = world.place("remove", path)?;
        match world.state.name(dir, &name).map(|id| world.state.dir(id).is_some()) {
            None => Err(refused("remove", path, Errno::NOENT)),
            Some(true) => Err(refused("remove", path, Errno::ISDIR)),
            Some(false) => {
                world.perform(Operation::Remove { dir, name });
                Ok(())
            }
        }
    }

    fn remove_tree(&self, path: &Path) -> Result<(), DiskError> {
        let mut world = self.world();
        world.call(Call::Remove, "remove", path)?;
        let (dir, name) = world.place("remove", path)?;
        let Some(id) = world.state.name(dir, &name) else { return Err(refused("remove", path, Errno::NOENT)) };
        world.remove_below(id);
        world.perform(Operation::Remove { dir, name });
        Ok(())
    }

    fn add_dir(&self, path: &Path, _mode: u32) -> Result<(), DiskError> {
        self.world().make("make directory", path, Made::Directory).map(drop)
    }

    fn symlink(&self, target: &Path, path: &Path) -> Result<(), DiskError> {
        self.world().make("make link", path, Made::Link(target.to_owned()))?;
        Ok(())
    }

    fn read_link(&self, path: &Path) -> Result<Option<PathBuf>, DiskError> {
        let mut world = self.world();
        world.call(Call::Look, "read the link", path)?;
        let (dir, name) = world.place("read the link", path)?;
        Ok(world.state.name(dir, &name).and_then(|id| world.state.link(id)))
    }

    fn set_access(&self, path: &Path, _mode: u32, _owner: Option<(u32, u32)>) -> Result<(), DiskError> {
        let mut world = self.world();
        world.call(Call::SetAccess, "set the mode of", path)?;
        world.find("set the mode of", path).map(drop)
    }

    fn sync_dir(&self, path: &Path) -> Result<Synced, DiskError> {
        let mut world = self.world();
        let dir = world.find("open", path)?;
        // Names are kept in a journal: those that a failed sync did not save, a later one may.
        let fault = world.count(Call::SyncDir);
        if let Some(fault) = fault {
            return Err(DiskError::of(Trouble::Failed, "sync", path, fault.errno().into()));
        }
        world.perform(Operation::SyncDir { dir });
        Ok(Synced(()))
    }

    fn sync_filesystem(&self, path: &Path) -> Result<Synced, DiskError> {
        let mut world = self.world();
        world.find("open", path)?;
        if let Some(fault) = world.count(Call::SyncFilesystem) {
            world.perform(Operation::LoseAll);
            let source = fault.errno().into();
            return Err(DiskError::of(Trouble::Failed, "sync the file system of", path, source));
        }
        world.perform(Operation::SyncAll);
        Ok(Synced(()))
    }

    fn list(&self, path: &Path) -> Result<Vec<Entry>, DiskError> {
        let mut world = self.world();
        world.call(Call::List, "list", path)?;
        let id = world.find("list", path)?;
        let dir = world.state.dir(id).ok_or_else(|| refused("list", path, Errno::NOTDIR))?;
        let entry = |(name, id): (&OsString, &Id)| Entry { name: name.clone(), kind: world.state.kind(*id) };
        Ok(dir.names().iter().map(entry).collect())
    }

    fn metadata(&self, path: &Path) -> Result<Option<Meta>, DiskError> {
        let mut world = self.world();
        world.call(Call::Look, "examine", path)?;
        match world.find("examine", path) {
            Ok(id) => Ok(Some(world.state.meta(id))),
            Err(e) if e.trouble() == Trouble::Missing => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn available(&self, path: &Path) -> Result<u64, DiskError> {
        let mut world = self.world();
        world.call(Call::Room, "measure the room at", path)?;
        world.find("measure the room at", path)?;
        Ok(world.room())
    }

    fn lock(&self, path: &Path, note: &str) -> Result<Lock, DiskError> {
        let mut world = self.world();
        let found = world.find("open", path);
        let id = match found {
            Err(e) if e.trouble() == Trouble::Missing => world.make("open", path, Made::File)?,
            other => other?,
        };
        let lock = self.take_lock(&mut world, id, path, false);
        if lock.is_ok() {
            // As on a real disk nothing rests on the note.
            let _ = world.set_size("write", path, id, 0).and_then(|()| world.write(path, id, 0, note.as_bytes()));
        }
        lock
    }

    fn lock_shared(&self, path: &Path) -> Result<Lock, DiskError> {
        let mut world = self.world();
        let id = world.find("open", path)?;
        self.take_lock(&mut world, id, path, true)
    }

    fn lock_dir(&self, path: &Path) -> Result<Lock, DiskError> {
        self.lock_directory(path, false)
    }

    fn lock_dir_shared(&self, path: &Path) -> Result<Lock, DiskError> {
        self.lock_directory(path, true)
    }

    fn writers(&self) -> usize {
        self.writers
    }
}

#[cfg(test)]
mod tests;
