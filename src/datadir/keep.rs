//! What of a data directory that is there can stay: files whose size and checksum are those of the
//! manifest. All else is removed before anything is written, so nothing is ever written into a file,
//! or through a link, that was there.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use super::places::Made;
use super::{CONTROL, DataDir, DataDirError, Dir, Found, MARK, Places, TABLESPACES, UNFINISHED, cluster_at, server_at};
use crate::disk::{Access, AlignedBuf, Disk, DiskError, EntryKind, Trouble};
use crate::image::{Checksum, Hasher, Manifest, MemberPath};

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;
/// Threads that compare, at most.
const MAX_THREADS: usize = 8;

/// What was found in a data directory that was there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kept {
    /// Files that are as they are to be, and stay.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that were removed, because they differ or are not in the backup.
    pub removed: u64,
    /// Links that were removed, and where they led. What lies there is as it was.
    pub links: Vec<(PathBuf, PathBuf)>,
}

/// A file that may stay.
struct Candidate {
    path: PathBuf,
    size: u64,
    checksum: Checksum,
}

/// Names below a place, as a manifest has them.
struct Walk<'a> {
    manifest: &'a Manifest,
    candidates: Vec<Candidate>,
    removed: u64,
    links: Vec<(PathBuf, PathBuf)>,
}

impl DataDir {
    /// Takes over what lies at the places. From when this has begun no server starts on it, until
    /// [`DataDir::finish`] has returned; cut off at any moment, it can be taken over again.
    ///
    /// The data directory must be that of the cluster, without a running server. Of the others, those
    /// that its links lead to may be filled.
    ///
    /// # Errors
    /// When a place is in use, or of something else; then nothing has been changed.
    pub fn reuse(disk: Arc<dyn Disk>, places: Places, cluster: u64) -> Result<Self, DataDirError> {
        let data = &places.data;
        match cluster_at(&*disk, data)? {
            Found::Cluster(id) if id == cluster => {}
            found => return Err(DataDirError::OtherCluster { path: data.clone(), found }),
        }
        if let Some(pid) = server_at(&*disk, data)? {
            return Err(DataDirError::Running { path: data.clone(), pid });
        }
        let lock = disk.lock_dir(data)?;
        let made = Made::make_others(&*disk, &places)?;
        let mut this = Self::new(disk, places, made);
        this.lock = Some(lock);
        match this.mark(cluster).and_then(|()| this.take_control_away()) {
            Ok(()) => Ok(this),
            Err(e) => {
                // What was there stays: `pg_control` is not ours to remove as long as no mark says whose the rest is.
                let _ = this.made.remove(&*this.disk);
                Err(e)
            }
        }
    }

    fn take_control_away(&self) -> Result<(), DataDirError> {
        let control = self.places.data.join(CONTROL);
        match self.disk.remove(&control) {
            Ok(()) => {
                let _gone = self.disk.sync_parent(&control)?;
                Ok(())
            }
            Err(e) if e.trouble() == Trouble::Missing => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Compares what is there with a manifest, and removes what differs or is not listed. Files that
    /// the manifest has no checksum for, and those with a second name, are removed.
    ///
    /// `tell` hears how many bytes have been compared, of how many.
    ///
    /// # Errors
    /// When something cannot be read or removed, or `tell` breaks it off.
    pub fn keep(
        &mut self,
        manifest: &Manifest,
        tell: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Kept, DataDirError> {
        let mut walk = Walk { manifest, candidates: Vec::new(), removed: 0, links: Vec::new() };
        let outside =
            self.places.tablespaces.iter().filter_map(|t| Some((t.path.clone()?, format!("{TABLESPACES}/{}/", t.oid))));
        let roots: Vec<_> = [(self.places.data.clone(), String::new())].into_iter().chain(outside).collect();
        for (root, prefix) in roots {
            self.walk(&mut walk, &root, prefix.as_bytes())?;
        }
        let Walk { candidates, mut removed, links, .. } = walk;
        let equal = compare(&*self.disk, &candidates, tell)?;
        let mut kept = Kept { links, ..Kept::default() };
        for (candidate, equal) in candidates.into_iter().zip(equal) {
            if equal {
                kept.files += 1;
                kept.bytes += candidate.size;
                self.kept.insert(candidate.path);
            } else {
                self.disk.remove(&candidate.path)?;
                removed += 1;
            }
        }
        Ok(Kept { removed, ..kept })
    }

    /// What lies in a directory; `prefix` stands before its names in the manifest.
    fn walk(&mut self, walk: &mut Walk<'_>, dir: &Path, prefix: &[u8]) -> Result<(), DataDirError> {
        let is_place = self.places.all().any(|place| place == dir);
        for entry in self.disk.list(dir)? {
            let path = dir.join(&entry.name);
            let mut name = prefix.to_vec();
            name.extend_from_slice(entry.name.as_encoded_bytes());
            match entry.kind {
                // It belongs to the file system.
                EntryKind::Directory if is_place && entry.name == "lost+found" => {}
                EntryKind::Directory if self.lies_outside(&path) => self.disk.remove_tree(&path)?,
                EntryKind::Directory => {
                    self.dirs.insert(path.clone(), Dir::default());
                    name.push(b'/');
                    self.walk(walk, &path, &name)?;
                }
                EntryKind::File if path == self.places.data.join(MARK) => {}
                EntryKind::File => match walk.candidate(&*self.disk, &path, &name)? {
                    Some(candidate) => walk.candidates.push(candidate),
                    None => {
                        self.disk.remove(&path)?;
                        walk.removed += 1;
                    }
                },
                // It is needed to take this over again, until it is replaced.
                EntryKind::Other if self.lies_outside(&path) && self.disk.read_link(&path)?.is_some() => {}
                EntryKind::Other => {
                    walk.links.extend(self.disk.read_link(&path)?.map(|to| (path.clone(), to)));
                    self.disk.remove(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Whether it is the name of a tablespace that lies outside the data directory.
    fn lies_outside(&self, path: &Path) -> bool {
        let links = self.places.data.join(TABLESPACES);
        self.places.tablespaces.iter().any(|t| t.path.is_some() && path == links.join(t.oid.to_string()))
    }

    /// Whether every file of a tablespace is there and stays, so that nothing of its archive is needed.
    pub fn has_all(&self, oid: u32, manifest: &Manifest) -> bool {
        let Some(place) = self.places.tablespace(oid).and_then(|tablespace| tablespace.path.as_ref()) else {
            return false;
        };
        let above = PathBuf::from(format!("{TABLESPACES}/{oid}"));
        let below = |path: &MemberPath| path.as_path().strip_prefix(&above).ok().map(Path::to_owned);
        let mut of_it = manifest.files().iter().filter_map(|file| below(&file.path)).peekable();
        of_it.peek().is_some() && of_it.all(|below| self.kept.contains(&place.join(below)))
    }

    /// Leaves a tablespace as it is; it has all that is needed.
    ///
    /// # Errors
    /// When a file cannot be given to its owner.
    pub fn leave(&mut self, oid: u32) -> Result<(), DataDirError> {
        let Some(place) = self.places.tablespace(oid).and_then(|tablespace| tablespace.path.clone()) else {
            return Ok(());
        };
        self.dirs.iter_mut().filter(|(path, _)| path.starts_with(&place)).for_each(|(_, dir)| dir.wanted = true);
        let mode = if self.group { 0o640 } else { 0o600 };
        for path in self.kept.iter().filter(|path| path.starts_with(&place)) {
            self.disk.set_access(path, mode, self.owner())?;
        }
        Ok(())
    }
}

impl Walk<'_> {
    fn candidate(&self, disk: &dyn Disk, path: &Path, name: &[u8]) -> Result<Option<Candidate>, DiskError> {
        let Ok(name) = MemberPath::new(name) else { return Ok(None) };
        // Its name is another one until all is done.
        if name.as_bytes() == CONTROL.as_bytes() || name.as_bytes() == UNFINISHED.as_bytes() {
            return Ok(None);
        }
        let Some(listed) = self.manifest.file(&name) else { return Ok(None) };
        let Some(checksum) = &listed.checksum else { return Ok(None) };
        let found = disk.metadata(path)?;
        // Whoever has the other name would see what the server writes.
        let same = found.is_some_and(|found| found.len == listed.size && found.links == 1);
        Ok(same.then(|| Candidate { path: path.to_owned(), size: listed.size, checksum: checksum.clone() }))
    }
}

/// Which of the files have the checksums that they should have.
fn compare(
    disk: &dyn Disk,
    candidates: &[Candidate],
    tell: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Vec<bool>, DataDirError> {
    let total = candidates.iter().map(|candidate| candidate.size).sum();
    let mut equal = vec![false; candidates.len()];
    let (next, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let mut done = 0;
    thread::scope(|scope| {
        let (results, compared) = channel();
        for _ in 0..threads.min(candidates.len()) {
            let (results, next, stopped) = (results.clone(), &next, &stopped);
            scope.spawn(move || work(disk, candidates, next, stopped, &results));
        }
        drop(results);
        for (at, size, result) in compared {
            // The others end with the file that they are at.
            let told = result.map_err(DataDirError::from).and_then(|same| {
                if let Some(slot) = equal.get_mut(at) {
                    *slot = same;
                }
                done += size;
                if tell(done, total).is_break() { Err(DataDirError::Stopped) } else { Ok(()) }
            });
            if told.is_err() {
                stopped.store(true, Ordering::Relaxed);
                return told;
            }
        }
        Ok(())
    })?;
    Ok(equal)
}

fn work(
    disk: &dyn Disk,
    candidates: &[Candidate],
    next: &AtomicUsize,
    stopped: &AtomicBool,
    results: &Sender<(usize, u64, Result<bool, DiskError>)>,
) {
    let mut buffer = AlignedBuf::zeroed(CHUNK);
    while !stopped.load(Ordering::Relaxed) {
        let at = next.fetch_add(1, Ordering::Relaxed);
        let Some(candidate) = candidates.get(at) else { break };
        let same = is_same(disk, candidate, &mut buffer);
        if results.send((at, candidate.size, same)).is_err() {
            break;
        }
    }
}

/// Reads what the device holds.
fn is_same(disk: &dyn Disk, candidate: &Candidate, buffer: &mut AlignedBuf) -> Result<bool, DiskError> {
    let file = disk.open(&candidate.path, Access::ReadDirect)?;
    let mut hasher = Hasher::new(candidate.checksum.algorithm());
    let mut at = 0;
    loop {
        let n = file.read_at(at, buffer)?;
        hasher.update(buffer.get(..n).unwrap_or_default());
        at += n as u64;
        if n < buffer.len() {
            break;
        }
    }
    Ok(at == candidate.size && hasher.finish().as_ref() == Some(&candidate.checksum))
}
