//! What is on the disk and in the page cache, and how an operation changes it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::io::Errno;

use super::content::Content;
use super::{EntryKind, Meta};

/// Names a file, directory or link for ever, whatever it is called.
pub(super) type Id = usize;

const ROOT: Id = 0;

/// A change of the disk, or of what on it is durable.
#[derive(Clone)]
pub(super) enum Operation {
    Make {
        dir: Id,
        name: OsString,
        made: Made,
    },
    Resize {
        file: Id,
        len: u64,
    },
    Write {
        file: Id,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    Sync {
        file: Id,
    },
    /// A sync that failed.
    Lose {
        file: Id,
    },
    Rename {
        dir: Id,
        from: OsString,
        to: OsString,
    },
    Remove {
        dir: Id,
        name: OsString,
    },
    SyncDir {
        dir: Id,
    },
    SyncAll,
    /// A sync of all that failed.
    LoseAll,
}

#[derive(Clone, Debug)]
pub(super) enum Made {
    File,
    Directory,
    Link(PathBuf),
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Make { name, made, .. } => write!(f, "make {name:?} ({made:?})"),
            Self::Resize { file, len } => write!(f, "resize #{file} to {len}"),
            Self::Write { file, offset, bytes } => write!(f, "write {} bytes at {offset} of #{file}", bytes.len()),
            Self::Sync { file } => write!(f, "sync #{file}"),
            Self::Lose { file } => write!(f, "failed sync of #{file}"),
            Self::Rename { from, to, .. } => write!(f, "rename {from:?} to {to:?}"),
            Self::Remove { name, .. } => write!(f, "remove {name:?}"),
            Self::SyncDir { dir } => write!(f, "sync directory #{dir}"),
            Self::SyncAll => write!(f, "sync the file system"),
            Self::LoseAll => write!(f, "failed sync of the file system"),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    File(FileNode),
    Dir(DirNode),
    Link(PathBuf),
}

#[derive(Clone, Debug, Default)]
pub(super) struct FileNode {
    /// What a read through the page cache gives.
    pub(super) cache: Content,
    /// What a direct read gives: the same, except what a failed sync has lost.
    pub(super) device: Content,
    /// What surely survives a power cut.
    pub(super) durable: Content,
    /// What leads from `durable` to `device`.
    pub(super) writes: Vec<(u64, Arc<[u8]>)>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct DirNode {
    names: BTreeMap<OsString, Id>,
    pub(super) durable: BTreeMap<OsString, Id>,
    /// What leads from `durable` to `names`.
    pub(super) changes: Vec<Change>,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Add(OsString, Id),
    Remove(OsString, Id),
    Rename(OsString, OsString, Id),
}

impl FileNode {
    /// A file that has been at rest.
    pub(super) fn at_rest(content: Content) -> Self {
        Self { cache: content.clone(), device: content.clone(), durable: content, writes: Vec::new() }
    }

    /// Whether a power cut could change it.
    pub(super) fn is_unsynced(&self) -> bool {
        !self.writes.is_empty() || self.durable.len() != self.device.len()
    }

    fn resize(&mut self, len: u64) {
        self.cache.set_len(len);
        self.device.set_len(len);
    }

    fn write(&mut self, offset: u64, bytes: &Arc<[u8]>) {
        self.cache.write(offset, bytes);
        self.device.write(offset, bytes);
        self.writes.push((offset, Arc::clone(bytes)));
    }

    fn sync(&mut self) {
        self.durable = self.device.clone();
        self.writes.clear();
    }

    /// The kernel takes the pages for clean that it could not write. The size stands in the
    /// journal, and may yet become durable.
    fn lose(&mut self) {
        let len = self.device.len();
        self.device = self.durable.clone();
        self.device.set_len(len);
        self.writes.clear();
    }
}

impl DirNode {
    /// A directory that has been at rest.
    pub(super) fn at_rest(names: BTreeMap<OsString, Id>) -> Self {
        Self { durable: names.clone(), names, changes: Vec::new() }
    }

    pub(super) const fn names(&self) -> &BTreeMap<OsString, Id> {
        &self.names
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }

    fn sync(&mut self) {
        self.durable = self.names.clone();
        self.changes.clear();
    }
}

impl Change {
    /// Does to the names what was done, if what it was done to is there.
    pub(super) fn apply(&self, names: &mut BTreeMap<OsString, Id>) {
        match self {
            Self::Add(name, id) => drop(names.insert(name.clone(), *id)),
            Self::Remove(name, id) => {
                if names.get(name) == Some(id) {
                    names.remove(name);
                }
            }
            Self::Rename(from, to, id) => {
                if names.get(from) == Some(id) {
                    names.remove(from);
                }
                names.insert(to.clone(), *id);
            }
        }
    }
}

/// All files and directories that ever were, by number.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) nodes: Vec<Node>,
}

impl State {
    pub(super) fn new() -> Self {
        Self { nodes: vec![Node::Dir(DirNode::default())] }
    }

    /// What the next [`Operation::Make`] makes.
    pub(super) const fn next_id(&self) -> Id {
        self.nodes.len()
    }

    pub(super) fn file(&self, id: Id) -> Option<&FileNode> {
        match self.nodes.get(id) {
            Some(Node::File(file)) => Some(file),
            _ => None,
        }
    }

    pub(super) fn dir(&self, id: Id) -> Option<&DirNode> {
        match self.nodes.get(id) {
            Some(Node::Dir(dir)) => Some(dir),
            _ => None,
        }
    }

    pub(super) fn name(&self, dir: Id, name: &OsStr) -> Option<Id> {
        self.dir(dir)?.names.get(name).copied()
    }

    pub(super) fn kind(&self, id: Id) -> EntryKind {
        match self.nodes.get(id) {
            Some(Node::File(_)) => EntryKind::File,
            Some(Node::Dir(_)) => EntryKind::Directory,
            _ => EntryKind::Other,
        }
    }

    pub(super) fn link(&self, id: Id) -> Option<PathBuf> {
        match self.nodes.get(id) {
            Some(Node::Link(target)) => Some(target.clone()),
            _ => None,
        }
    }

    pub(super) fn meta(&self, id: Id) -> Meta {
        let (len, modified) = (self.file(id).map_or(0, |file| file.cache.len()), SystemTime::UNIX_EPOCH);
        Meta { len, kind: self.kind(id), mode: 0o600, links: 1, modified }
    }

    /// Bytes in all files that have a name.
    pub(super) fn used(&self) -> u64 {
        let named = self.nodes.iter().filter_map(|node| match node {
            Node::Dir(dir) => Some(dir.names.values()),
            _ => None,
        });
        named.flatten().map(|id| self.meta(*id).len).sum()
    }

    /// What a path leads to, over at most `links` links.
    pub(super) fn resolve(&self, path: &Path, links: usize) -> Result<Id, Errno> {
        let mut way = vec![ROOT];
        for component in path.components() {
            match component {
                Component::RootDir => way.truncate(1),
                Component::ParentDir => way.truncate(way.len().saturating_sub(1).max(1)),
                Component::CurDir | Component::Prefix(_) => {}
                Component::Normal(name) => {
                    let dir = self.dir(*way.last().unwrap_or(&ROOT)).ok_or(Errno::NOTDIR)?;
                    let mut id = *dir.names.get(name).ok_or(Errno::NOENT)?;
                    if let Some(Node::Link(target)) = self.nodes.get(id) {
                        let links = links.checked_sub(1).ok_or(Errno::LOOP)?;
                        id = self.resolve(target, links)?;
                    }
                    way.push(id);
                }
            }
        }
        Ok(*way.last().unwrap_or(&ROOT))
    }

    pub(super) fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Make { dir, name, made } => {
                let id = self.next_id();
                self.nodes.push(match made {
                    Made::File => Node::File(FileNode::default()),
                    Made::Directory => Node::Dir(DirNode::default()),
                    Made::Link(target) => Node::Link(target.clone()),
                });
                self.change(*dir, Some(Change::Add(name.clone(), id)));
            }
            Operation::Rename { dir, from, to } => {
                let id = self.name(*dir, from);
                self.change(*dir, id.map(|id| Change::Rename(from.clone(), to.clone(), id)));
            }
            Operation::Remove { dir, name } => {
                let id = self.name(*dir, name);
                self.change(*dir, id.map(|id| Change::Remove(name.clone(), id)));
            }
            Operation::Resize { file, len } => self.with_file(*file, |file| file.resize(*len)),
            Operation::Write { file, offset, bytes } => self.with_file(*file, |file| file.write(*offset, bytes)),
            Operation::Sync { file } => self.with_file(*file, FileNode::sync),
            Operation::Lose { file } => self.with_file(*file, FileNode::lose),
            Operation::SyncDir { dir } => {
                if let Some(Node::Dir(dir)) = self.nodes.get_mut(*dir) {
                    dir.sync();
                }
            }
            Operation::SyncAll => self.nodes.iter_mut().for_each(|node| match node {
                Node::File(file) => file.sync(),
                Node::Dir(dir) => dir.sync(),
                Node::Link(_) => {}
            }),
            Operation::LoseAll => self.nodes.iter_mut().for_each(|node| match node {
                Node::File(file) => file.lose(),
                Node::Dir(_) | Node::Link(_) => {}
            }),
        }
    }

    fn change(&mut self, dir: Id, change: Option<Change>) {
        if let (Some(Node::Dir(dir)), Some(change)) = (self.nodes.get_mut(dir), change) {
            dir.change(change);
        }
    }

    fn with_file(&mut self, id: Id, work: impl FnOnce(&mut FileNode)) {
        if let Some(Node::File(file)) = self.nodes.get_mut(id) {
            work(file);
        }
    }
}
