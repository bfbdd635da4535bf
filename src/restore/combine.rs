//! An incremental backup and all that it is based on, laid down as the full backup that they amount to: what
//! `pg_combinebackup` makes of them (`reconstruct.c`), without the copies in between.
//!
//! The newest comes first. It says which files there are, and brings the blocks that changed last. Then come the older
//! ones, and of each only those blocks are written that are still missing, until the full backup has brought the rest.
//! Blocks that nobody brings are zeros: the server had made the file longer and logged nothing of it yet. So are, unlike
//! what that tool makes of them, blocks behind where the file was cut off since the older backup, as the seal says.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use thiserror::Error;

use super::lay_down::RestoreEvent;
use super::{RestoreError, content};
use crate::datadir::DataDir;
use crate::disk::{Access, Disk, DiskError, File};
use crate::image::{
    BadPath, Checksum, Compared, Hasher, Increment, IncrementReader, IncrementalError, Manifest, ManifestAlgorithm,
    ManifestFile, ManifestWriter, Member, MemberKind, MemberPath, Sought, TablespaceMap, TarEvent, combined_label,
    stands_for,
};
use crate::repository::{BackupId, ContentsRead, Kind, Layout, Repository, Seal};
use crate::spill::{Scratch, Spool};

const LABEL: &str = "backup_label";

/// Bytes read back at a time.
const CHUNK: usize = 1 << 20;

/// An incremental backup does not fit what it is based on.
#[derive(Debug, Error)]
pub enum CombineError {
    /// A file of changes cannot be read.
    #[error("\"{path}\" of backup {id}: {source}")]
    Increment {
        /// Which backup.
        id: BackupId,
        /// Its file.
        path: MemberPath,
        /// What is wrong with it.
        source: IncrementalError,
    },
    /// Blocks of it are nowhere.
    #[error("backup {id} has no \"{path}\", which a later backup holds only the changes of")]
    Absent {
        /// Which backup.
        id: BackupId,
        /// The file.
        path: MemberPath,
    },
    /// A file and its changes in one backup.
    #[error("backup {id} holds \"{path}\" twice: whole, and as changes")]
    Twice {
        /// Which backup.
        id: BackupId,
        /// The file.
        path: MemberPath,
    },
    /// It is not what `pg_control` says.
    #[error("\"{path}\" of backup {id} has other blocks than its cluster, or more than a file has")]
    Layout {
        /// Which backup.
        id: BackupId,
        /// The file.
        path: MemberPath,
    },
    /// A name is none, or too long.
    #[error(transparent)]
    Name(#[from] BadPath),
    /// Of a server newer than we know.
    #[error("how the files of backup {0} are cut into blocks is not known here")]
    UnknownLayout(BackupId),
}

impl From<BadPath> for RestoreError {
    fn from(e: BadPath) -> Self {
        CombineError::Name(e).into()
    }
}

/// What has been laid down.
pub(super) struct Combined {
    pub(super) compared: Compared,
    pub(super) map: Option<TablespaceMap>,
    /// The manifest that is to lie beside it.
    pub(super) manifest: Spool,
}

/// Lays down `chain`, the newest first and the full one last.
pub(super) fn combine(
    repository: &Repository,
    chain: &[Seal],
    data: &mut DataDir,
    tell: &mut impl FnMut(RestoreEvent) -> ControlFlow<()>,
) -> Result<Combined, RestoreError> {
    let disk = &**repository.disk();
    let total = chain.iter().map(|seal| seal.manifest.bytes).sum();
    let mut combine = Combine { disk, files: HashMap::new(), whole: HashMap::new(), open: None, done: 0, total };
    let mut chain = chain.iter().peekable();
    let Some(newest) = chain.next() else { return Err(RestoreError::Stopped) };
    let (read, listed) = combine.pass(repository, newest, Pass::Newest(data), tell)?;
    let layout = read.layout.ok_or(CombineError::UnknownLayout(newest.id))?;
    combine.lengthen(newest.id, layout)?;
    combine.cut(newest, layout);
    let mut child = (newest, read.changes_since);
    for older in chain {
        check_base(child, older)?;
        let (read, _) = combine.pass(repository, older, Pass::Older(layout), tell)?;
        combine.next(older.id)?;
        combine.cut(older, layout);
        child = (older, read.changes_since);
    }
    if let Some(path) = combine.files.keys().next() {
        return Err(CombineError::Absent { id: child.0.id, path: path.clone() }.into());
    }
    let files = combine.finish(data, newest, &listed, layout, tell)?;
    let mut manifest = ManifestWriter::new(newest.server_version.major(), newest.system_identifier);
    files.iter().for_each(|file| manifest.add(file, newest.stop_time.0));
    let mut spool = Spool::new(Scratch::new(data.path()));
    spool.put(&manifest.finish(listed.wal_ranges()))?;
    let by_checksum = files.iter().filter(|file| file.checksum.is_some()).count() as u64;
    let bytes = files.iter().map(|file| file.size).sum();
    Ok(Combined {
        compared: Compared { files: files.len() as u64, bytes, by_checksum },
        map: read.map,
        manifest: spool,
    })
}

/// The changes in a backup must be those since the one that is combined with it next.
fn check_base((child, since): (&Seal, Option<crate::wal::Pos>), older: &Seal) -> Result<(), RestoreError> {
    let found = crate::repository::check_base(since, older);
    found.map_err(|source| RestoreError::Content { id: child.id, source })
}

/// Bytes that the result will have in the data directory and in each tablespace, about: of a file that changed, as many
/// as it had in the backup that holds it whole.
pub(super) fn sizes(repository: &Repository, chain: &[Seal]) -> Result<HashMap<Option<u32>, u64>, RestoreError> {
    let mut sizes: HashMap<Option<u32>, u64> = HashMap::new();
    let mut add = |path: &MemberPath, size: u64| {
        let all = sizes.entry(tablespace_of(path)).or_default();
        *all = all.saturating_add(size);
    };
    let mut changed: Vec<MemberPath> = Vec::new();
    for (index, seal) in chain.iter().enumerate() {
        let wrong = |source| RestoreError::Content { id: seal.id, source };
        let manifest = repository.contents(seal).and_then(|contents| contents.all_files()).map_err(wrong)?;
        if index > 0 {
            changed.retain(|path| manifest.file(path).inspect(|file| add(path, file.size)).is_none());
            continue;
        }
        for file in manifest.files() {
            match stands_for(&file.path).filter(|_| seal.kind == Kind::Incremental).transpose()? {
                Some(path) => changed.push(path),
                None => add(&file.path, file.size),
            }
        }
    }
    Ok(sizes)
}

/// Whose archive holds it.
fn tablespace_of(path: &MemberPath) -> Option<u32> {
    path.as_str()?.strip_prefix("pg_tblspc/")?.split('/').next()?.parse().ok()
}

struct Combine<'a> {
    disk: &'a dyn Disk,
    /// Files of which blocks are still sought, by the names they get below the data directory.
    files: HashMap<MemberPath, Part>,
    /// Those of which all is found.
    whole: HashMap<MemberPath, Part>,
    open: Option<Open>,
    done: u64,
    /// Bytes in all, about.
    total: u64,
}

/// A file that is put together.
struct Part {
    path: PathBuf,
    mode: u32,
    sought: Sought,
    block_size: Option<u32>,
    /// Whether the backup that is read has it.
    met: bool,
    /// Of a file that is, byte for byte, that of an older backup.
    same: Option<Checksum>,
}

/// What a backup is read for.
enum Pass<'a> {
    /// For its files; and of changes, for what they bring.
    Newest(&'a mut DataDir),
    /// For what is sought.
    Older(Layout),
}

/// A member that is being read.
struct Open {
    name: MemberPath,
    /// As the backup calls it.
    path: MemberPath,
    file: Box<dyn File>,
    source: Source,
}

enum Source {
    /// Of the newest backup: all of it is written. With the file's place and mode.
    New(IncrementReader, PathBuf, u32),
    /// What of it is sought.
    Changes(IncrementReader),
    /// What of it is sought; bytes so far, and in all.
    Whole { at: u64, size: u64 },
}

/// Feeding an incremental file failed.
#[derive(Debug, Error)]
enum Feeding {
    #[error(transparent)]
    Increment(#[from] IncrementalError),
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Combine<'_> {
    /// Reads one backup; every file is compared with its own manifest, which is given back.
    fn pass(
        &mut self,
        repository: &Repository,
        seal: &Seal,
        mut pass: Pass<'_>,
        tell: &mut impl FnMut(RestoreEvent) -> ControlFlow<()>,
    ) -> Result<(ContentsRead, Manifest), RestoreError> {
        let wrong = |source| RestoreError::Content { id: seal.id, source };
        let contents = repository.contents(seal).map_err(wrong)?;
        let manifest = contents.all_files().map_err(wrong)?;
        let read = contents.read(&mut |tablespace, event| {
            match &mut pass {
                Pass::Newest(data) => self.newest(seal, data, tablespace, event)?,
                Pass::Older(layout) => self.older(seal, *layout, &manifest, tablespace, event)?,
            }
            match event {
                TarEvent::Data(bytes) => self.progress(bytes.len(), tell),
                _ => Ok(()),
            }
        });
        let read = read.map_err(|e| content(seal.id, e))?;
        Ok((read, manifest))
    }

    fn progress(
        &mut self,
        bytes: usize,
        tell: &mut impl FnMut(RestoreEvent) -> ControlFlow<()>,
    ) -> Result<(), RestoreError> {
        self.done += bytes as u64;
        let total = self.total.max(self.done);
        let stopped = tell(RestoreEvent::Progress { done: self.done, total }).is_break();
        if stopped { Err(RestoreError::Stopped) } else { Ok(()) }
    }

    /// Of the newest backup: a file of changes becomes the file that it stands for, and all else is laid down.
    fn newest(
        &mut self,
        seal: &Seal,
        data: &mut DataDir,
        tablespace: Option<u32>,
        event: &TarEvent<'_>,
    ) -> Result<(), RestoreError> {
        if let TarEvent::Member(member) = event {
            self.open = self.changes(data, tablespace, member)?;
        }
        let Some(open) = &mut self.open else {
            data.take(tablespace, event)?;
            return Ok(());
        };
        let Open { path, file, source: Source::New(reader, ..), .. } = open else { return Ok(()) };
        if let TarEvent::Data(bytes) = event {
            let fed = reader.feed(bytes, &mut |at, bytes| Ok::<_, Feeding>(file.write_at(at, bytes)?));
            fed.map_err(|e| feeding(seal.id, path, e))?;
        }
        if *event == TarEvent::MemberEnd
            && let Some(Open { name, path, source: Source::New(reader, place, mode), .. }) = self.open.take()
        {
            let increment = reader.finish().map_err(|source| CombineError::Increment { id: seal.id, path, source })?;
            let (sought, block_size) = (Sought::new(&increment), increment.block_size);
            self.files.insert(name, Part { path: place, mode, sought, block_size, met: true, same: None });
        }
        Ok(())
    }

    /// Begins a file of changes of the newest backup; `None` for any other member.
    fn changes(
        &self,
        data: &mut DataDir,
        tablespace: Option<u32>,
        member: &Member,
    ) -> Result<Option<Open>, RestoreError> {
        let MemberKind::File { size } = member.kind else { return Ok(None) };
        let path = below(tablespace, &member.path)?;
        let Some(name) = stands_for(&path).transpose()? else { return Ok(None) };
        let inside = match tablespace {
            Some(oid) => {
                let above = format!("pg_tblspc/{oid}/");
                MemberPath::new(name.as_bytes().strip_prefix(above.as_bytes()).unwrap_or(name.as_bytes()))?
            }
            None => name.clone(),
        };
        let (place, file) = data.scattered(tablespace, &inside)?;
        let source = Source::New(IncrementReader::new(size), place, member.mode & 0o777);
        Ok(Some(Open { name, path, file, source }))
    }

    /// The files get their lengths; what is not found of them is zeros.
    fn lengthen(&mut self, id: BackupId, layout: Layout) -> Result<(), RestoreError> {
        for (name, part) in &mut self.files {
            let other = part.block_size.is_some_and(|size| size != layout.block_size);
            if other || part.sought.length() > layout.file_blocks {
                return Err(CombineError::Layout { id, path: name.clone() }.into());
            }
            let wanted = length(part, layout);
            let mut file = self.disk.open(&part.path, Access::Write)?;
            if let Some(last) = wanted.checked_sub(1)
                && file.size()? <= last
            {
                file.write_at(last, &[0])?;
            }
            part.met = false;
        }
        Ok(())
    }

    /// Nothing older than this backup counts where the WAL before it cut a file off.
    fn cut(&mut self, seal: &Seal, layout: Layout) {
        for (name, part) in self.files.iter_mut().filter(|_| !seal.cuts.is_empty()) {
            if let Some(limit) = seal.cuts.limit(name, layout.block_size, layout.file_blocks) {
                part.sought.cut(limit);
            }
        }
    }

    /// Of an older backup: what is still sought.
    fn older(
        &mut self,
        seal: &Seal,
        layout: Layout,
        manifest: &Manifest,
        tablespace: Option<u32>,
        event: &TarEvent<'_>,
    ) -> Result<(), RestoreError> {
        match event {
            TarEvent::Member(member) => self.open = self.sought(seal, tablespace, member)?,
            TarEvent::Data(bytes) => {
                let Some(open) = &mut self.open else { return Ok(()) };
                let Some(part) = self.files.get(&open.name) else { return Ok(()) };
                open.take(bytes, &part.sought, layout).map_err(|e| feeding(seal.id, &open.path, e))?;
            }
            TarEvent::MemberEnd => {
                let Some(Open { name, path, source, .. }) = self.open.take() else { return Ok(()) };
                match source {
                    Source::Changes(reader) => {
                        let wrong = |source| CombineError::Increment { id: seal.id, path: path.clone(), source };
                        let increment = reader.finish().map_err(wrong)?;
                        self.pass_over(seal.id, &name, &increment, layout)?;
                    }
                    Source::Whole { size, .. } => self.found(name, size, manifest, layout),
                    Source::New(..) => {}
                }
            }
        }
        Ok(())
    }

    /// Opens the file that a member of an older backup may bring blocks of.
    fn sought(&mut self, seal: &Seal, tablespace: Option<u32>, member: &Member) -> Result<Option<Open>, RestoreError> {
        let MemberKind::File { size } = member.kind else { return Ok(None) };
        let path = below(tablespace, &member.path)?;
        let changes = if seal.kind == Kind::Incremental { stands_for(&path).transpose()? } else { None };
        let source = match changes {
            Some(_) => Source::Changes(IncrementReader::new(size)),
            None => Source::Whole { at: 0, size },
        };
        let name = changes.unwrap_or_else(|| path.clone());
        if self.whole.get(&name).is_some_and(|part| part.met) {
            return Err(CombineError::Twice { id: seal.id, path: name }.into());
        }
        let Some(part) = self.files.get_mut(&name) else { return Ok(None) };
        if std::mem::replace(&mut part.met, true) {
            return Err(CombineError::Twice { id: seal.id, path: name }.into());
        }
        let file = self.disk.open(&part.path, Access::Write)?;
        Ok(Some(Open { name, path, file, source }))
    }

    fn pass_over(
        &mut self,
        id: BackupId,
        name: &MemberPath,
        increment: &Increment,
        layout: Layout,
    ) -> Result<(), RestoreError> {
        if increment.block_size.is_some_and(|size| size != layout.block_size) || increment.length() > layout.file_blocks
        {
            return Err(CombineError::Layout { id, path: name.clone() }.into());
        }
        if let Some(part) = self.files.get_mut(name) {
            part.sought.pass(increment);
        }
        Ok(())
    }

    /// A whole file ends the search.
    fn found(&mut self, name: MemberPath, size: u64, manifest: &Manifest, layout: Layout) {
        if let Some(mut part) = self.files.remove(&name) {
            if part.sought.is_untouched() && size == length(&part, layout) {
                part.same = manifest.file(&name).and_then(|file| file.checksum.clone());
            }
            self.whole.insert(name, part);
        }
    }

    /// Every backup has all files that a later one has changes of.
    fn next(&mut self, id: BackupId) -> Result<(), RestoreError> {
        if let Some((path, _)) = self.files.iter().find(|(_, part)| !part.met) {
            return Err(CombineError::Absent { id, path: path.clone() }.into());
        }
        self.files.values_mut().chain(self.whole.values_mut()).for_each(|part| part.met = false);
        Ok(())
    }

    /// Digests what was put together, and gives it away; all files of the result.
    fn finish(
        &mut self,
        data: &mut DataDir,
        newest: &Seal,
        listed: &Manifest,
        layout: Layout,
        tell: &mut impl FnMut(RestoreEvent) -> ControlFlow<()>,
    ) -> Result<Vec<ManifestFile>, RestoreError> {
        let algorithm = newest.manifest.algorithm;
        let label = combined_label(&data.content(LABEL)?);
        data.replace(LABEL, &label)?;
        let mut files = Vec::with_capacity(listed.files().len());
        for file in listed.files() {
            files.push(match stands_for(&file.path).transpose()? {
                _ if file.path.as_bytes() == LABEL.as_bytes() => {
                    let mut hasher = Hasher::new(algorithm);
                    hasher.update(&label);
                    ManifestFile { path: file.path.clone(), size: label.len() as u64, checksum: hasher.finish() }
                }
                Some(path) => {
                    let absent = || CombineError::Absent { id: newest.id, path: path.clone() };
                    let part = self.whole.remove(&path).ok_or_else(absent)?;
                    let checksum = match &part.same {
                        Some(sum) if sum.algorithm() == algorithm => Some(sum.clone()),
                        _ => self.digest(&part, algorithm, tell)?,
                    };
                    data.hand_over(&part.path, part.mode)?;
                    ManifestFile { path, size: length(&part, layout), checksum }
                }
                None => file.clone(),
            });
        }
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// Reads a file back.
    fn digest(
        &mut self,
        part: &Part,
        algorithm: ManifestAlgorithm,
        tell: &mut impl FnMut(RestoreEvent) -> ControlFlow<()>,
    ) -> Result<Option<Checksum>, RestoreError> {
        if algorithm == ManifestAlgorithm::None {
            return Ok(None);
        }
        let mut hasher = Hasher::new(algorithm);
        let (file, mut buffer, mut at) = (self.disk.open(&part.path, Access::Read)?, vec![0; CHUNK], 0);
        loop {
            let n = file.read_at(at, &mut buffer)?;
            if n == 0 {
                return Ok(hasher.finish());
            }
            hasher.update(buffer.get(..n).unwrap_or_default());
            at += n as u64;
            self.progress(n, tell)?;
        }
    }
}

impl Open {
    /// Writes what is sought of the next bytes of an older file.
    fn take(&mut self, bytes: &[u8], sought: &Sought, layout: Layout) -> Result<(), Feeding> {
        let file = &mut self.file;
        let block_size = u64::from(layout.block_size);
        match &mut self.source {
            Source::Changes(reader) => {
                reader.feed(bytes, &mut |at, bytes| write_sought(&mut **file, sought, block_size, at, bytes))
            }
            Source::Whole { at, size } => {
                // A block that is not whole is none.
                let end = *size - *size % block_size;
                let within = usize::try_from(end.saturating_sub(*at)).unwrap_or(usize::MAX).min(bytes.len());
                let from = *at;
                *at += bytes.len() as u64;
                write_sought(&mut **file, sought, block_size, from, bytes.get(..within).unwrap_or_default())
            }
            Source::New(..) => Ok(()),
        }
    }
}

/// Writes those of the bytes, which lie at `at` in the file, that are in blocks which are sought.
fn write_sought(file: &mut dyn File, sought: &Sought, block_size: u64, at: u64, bytes: &[u8]) -> Result<(), Feeding> {
    let end = at + bytes.len() as u64;
    let block = |at: u64| u32::try_from(at / block_size).unwrap_or(u32::MAX);
    for run in sought.wanted(block(at)..block(end.next_multiple_of(block_size))) {
        let from = (u64::from(run.start) * block_size).max(at);
        let to = (u64::from(run.end) * block_size).min(end);
        let inside = |place: u64| usize::try_from(place - at).unwrap_or(usize::MAX);
        if let Some(bytes) = bytes.get(inside(from)..inside(to)) {
            file.write_at(from, bytes)?;
        }
    }
    Ok(())
}

/// Of the whole file, in bytes.
fn length(part: &Part, layout: Layout) -> u64 {
    u64::from(part.sought.length()) * u64::from(layout.block_size)
}

fn below(tablespace: Option<u32>, path: &MemberPath) -> Result<MemberPath, RestoreError> {
    Ok(match tablespace {
        Some(oid) => path.in_tablespace(oid)?,
        None => path.clone(),
    })
}

fn feeding(id: BackupId, path: &MemberPath, e: Feeding) -> RestoreError {
    match e {
        Feeding::Increment(source) => CombineError::Increment { id, path: path.clone(), source }.into(),
        Feeding::Disk(e) => e.into(),
    }
}

#[cfg(test)]
mod tests;
