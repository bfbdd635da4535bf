//! Reading what a sealed backup holds, once, from its first byte to its last: every file against
//! the seal, every data file against the server's manifest, and the few files that say what the
//! backup is against the seal.

mod elsewhere;
mod folder;

pub use elsewhere::Said;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::copied::{TreeError, tablespace_of};
use super::{BackupId, Kind, Method, Repository, Seal, SealedFile, Sha256Sum};
use crate::archive::ArchiveError;
use crate::codec::{Ahead, Codec};
use crate::disk::{Access, AlignedBuf, DiskError, File, Trouble, read_bounded};
use crate::image::{
    BackupLabel, BadPath, Compared, Comparison, ControlError, ControlFile, Difference, FeedError, Hasher, LabelError,
    Listed, ListedError, Manifest, ManifestAlgorithm, ManifestError, ManifestFile, ManifestHead, ManifestReadError,
    MemberKind, MemberPath, NameClash, Names, NamesError, TablespaceMap, TablespaceMapError, TarError, TarEvent,
    TarReader, Unequal, read_manifest,
};
use crate::spill::{Scratch, Spool};
use crate::wal::{Pos, TimelineId};

/// How much is read at a time.
const CHUNK: usize = 1 << 20;
/// Bytes of a manifest that are passed on at a time.
const PIECE: usize = 64 << 10;

/// The files that are kept while they pass; larger ones are none that a server writes.
const MAX_KEPT: usize = 1 << 20;

const LABEL: &[u8] = b"backup_label";
const MAP: &[u8] = b"tablespace_map";
const CONTROL: &[u8] = b"global/pg_control";

/// A tar archive of a backup's folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupArchive {
    /// What the seal says of the file.
    pub file: SealedFile,
    /// The tablespace it holds; `None` for the data directory.
    pub tablespace: Option<u32>,
    /// How it is compressed.
    pub codec: Codec,
}

/// A sealed backup whose manifest has been read and whose files are there with their sizes. What a command
/// has copied has no archives.
#[derive(Debug)]
pub struct Contents<'a> {
    repository: &'a Repository,
    seal: &'a Seal,
    dir: PathBuf,
    archives: Vec<BackupArchive>,
    /// What the seal says of the manifest.
    listed: SealedFile,
    manifest: ManifestHead,
    /// Of what a command has copied: bytes by tablespace.
    copied: BTreeMap<Option<u32>, u64>,
}

/// What was found right by reading everything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContentsRead {
    /// Data files that are as the manifest lists them.
    pub compared: Compared,
    /// The `tablespace_map` of the backup, if it has one.
    pub map: Option<TablespaceMap>,
    /// Of an incremental one: the start of the backup that it holds the changes since.
    pub changes_since: Option<Pos>,
    /// How relations are cut into files; `None` of a server that is newer than we know.
    pub layout: Option<Layout>,
}

/// How relations are cut into files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks of a file, at most.
    pub file_blocks: u32,
}

/// What a backup holds is not what its seal says.
#[derive(Debug, Error)]
pub enum ContentError {
    /// A file of the folder is not there.
    #[error("\"{0}\" is missing")]
    Missing(String),
    /// A file of the folder has another length.
    #[error("\"{name}\" has {found} bytes; the seal says {sealed}")]
    Size {
        /// Its name.
        name: String,
        /// Bytes it has.
        found: u64,
        /// Bytes it had.
        sealed: u64,
    },
    /// A file of the folder has changed since it was sealed.
    #[error("\"{name}\" has SHA-256 {found}; the seal says {sealed}")]
    Sum {
        /// Its name.
        name: String,
        /// Of its bytes.
        found: Sha256Sum,
        /// Of the bytes it had.
        sealed: Sha256Sum,
    },
    /// An archive does not decompress.
    #[error("\"{name}\" cannot be read: {source}")]
    Decode {
        /// Its name.
        name: String,
        /// What the decoder says.
        source: io::Error,
    },
    /// An archive is not one that a server wrote.
    #[error("\"{name}\": {source}")]
    Tar {
        /// Its name.
        name: String,
        /// What is wrong with it.
        source: TarError,
    },
    /// Two members of an archive cannot both be laid down.
    #[error("\"{name}\": {source}")]
    Clash {
        /// Its name.
        name: String,
        /// Which.
        source: NameClash,
    },
    /// Something that no backup has lies among the copied files.
    #[error("\"{0}\" in the copy is neither a file nor a directory")]
    Odd(String),
    /// The data lies elsewhere.
    #[error("its data is not in the repository; it lies at {0}")]
    Elsewhere(String),
    /// A name in a tablespace is too long.
    #[error(transparent)]
    Path(#[from] BadPath),
    /// The seal lists files that do not make up a backup.
    #[error("the seal lists no {0}")]
    NotListed(String),
    /// The seal lists a file that belongs to no backup.
    #[error("the seal lists \"{0}\", which is no part of a backup")]
    Unexpected(String),
    /// The server's manifest is not as the server wrote it.
    #[error("\"backup_manifest\": {0}")]
    Manifest(#[from] ManifestError),
    /// The manifest is of another cluster.
    #[error("the manifest is of the cluster with system identifier {0}")]
    ManifestCluster(u64),
    /// The manifest says that the backup needs other WAL than the seal.
    #[error("the manifest says that the backup needs {from} to {to}, and the seal says {start} to {stop}", from = shown(*from), to = shown(*to))]
    Ranges {
        /// Where the manifest's ranges begin.
        from: Option<Pos>,
        /// Where they end.
        to: Option<Pos>,
        /// Where the backup's WAL begins.
        start: Pos,
        /// Exclusive end of the backup's WAL.
        stop: Pos,
    },
    /// Data files are not as the manifest lists them: the first, and how many.
    #[error("{first}{}", match others { 0 => String::new(), n => format!(" (and {n} more)") })]
    Files {
        /// In the order of their paths.
        first: Difference,
        /// How many besides.
        others: u64,
    },
    /// A file without which a server does not know that it recovers from a backup.
    #[error("the backup has no \"{0}\"")]
    NoSuchMember(String),
    /// It cannot be read.
    #[error("\"backup_label\": {0}")]
    Label(#[from] LabelError),
    /// It is of another backup.
    #[error("\"backup_label\" says that the backup starts at {0}")]
    LabelStart(Pos),
    /// It is of a full backup and the seal of an incremental one, or the other way round.
    #[error("\"backup_label\" and the seal differ about what the backup is based on")]
    LabelKind,
    /// It is based on another backup than the seal says, though of that name.
    #[error("\"backup_label\" says that the backup holds the changes since {found}, and backup {parent} starts at {start}", found = shown(*found))]
    ChangesSince {
        /// In the label.
        found: Option<Pos>,
        /// What the seal names.
        parent: BackupId,
        /// Where that starts.
        start: Pos,
    },
    /// It cannot be read.
    #[error("\"tablespace_map\": {0}")]
    Map(#[from] TablespaceMapError),
    /// It and the seal differ.
    #[error("\"tablespace_map\" and the seal differ about tablespace {0}")]
    MapEntry(u32),
    /// It cannot be read.
    #[error("\"global/pg_control\": {0}")]
    Control(#[from] ControlError),
    /// It is of another cluster.
    #[error("\"global/pg_control\" is of the cluster with system identifier {0}")]
    ControlCluster(u64),
    /// The copied files are consistent only after the WAL of the backup ends.
    #[error("\"global/pg_control\" needs WAL up to {found}, and the backup's ends at {stop}")]
    ControlEnd {
        /// Its minimum recovery point.
        found: Pos,
        /// Exclusive end of the backup's WAL.
        stop: Pos,
    },
    /// A history file that the seal names is missing or has changed.
    #[error("the history file of timeline {timeline} {fault}")]
    History {
        /// Whose history.
        timeline: TimelineId,
        /// "is missing" or "has changed".
        fault: &'static str,
    },
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The copied files cannot be listed.
    #[error("the copied files cannot be listed: {0}")]
    Tree(#[from] TreeError),
    /// A file cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Why reading stopped.
#[derive(Debug, Error)]
pub enum ReadError<E> {
    /// The backup is not what its seal says.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// What the caller did with it failed.
    #[error("{0}")]
    Seen(E),
}

fn shown(pos: Option<Pos>) -> String {
    pos.map_or_else(|| "nothing".to_owned(), |pos| pos.to_string())
}

impl Seal {
    /// The archives among the files, that of the data directory first.
    ///
    /// # Errors
    /// When one is missing, or a file is neither an archive of a listed tablespace nor the manifest.
    pub fn archives(&self) -> Result<Vec<BackupArchive>, ContentError> {
        let mut archives = Vec::new();
        for file in self.files.iter().filter(|file| file.name != Self::MANIFEST) {
            let tablespace = |oid: u32| self.tablespaces.iter().any(|listed| listed.oid == oid).then_some(Some(oid));
            let (stem, codec) = Codec::split(&file.name);
            let held = match stem.strip_suffix(".tar") {
                Some("base") => Some(None),
                Some(digits) => digits.parse().ok().filter(|oid: &u32| oid.to_string() == digits).and_then(tablespace),
                None => None,
            };
            let tablespace = held.ok_or_else(|| ContentError::Unexpected(file.name.clone()))?;
            archives.push(BackupArchive { file: file.clone(), tablespace, codec });
        }
        archives.sort_by_key(|archive| archive.tablespace);
        let holds = |wanted: Option<u32>| archives.iter().filter(|archive| archive.tablespace == wanted).count();
        for wanted in [None].into_iter().chain(self.tablespaces.iter().map(|listed| Some(listed.oid))) {
            match (holds(wanted), wanted) {
                (1, _) => {}
                (0, None) => return Err(ContentError::NotListed("archive of the data directory".to_owned())),
                (0, Some(oid)) => return Err(ContentError::NotListed(format!("archive of tablespace {oid}"))),
                (_, None) => return Err(ContentError::Unexpected("base.tar, twice".to_owned())),
                (_, Some(oid)) => return Err(ContentError::Unexpected(format!("{oid}.tar, twice"))),
            }
        }
        Ok(archives)
    }
}

impl Repository {
    /// Opens a sealed backup to be read: its manifest is read, and its files are there.
    ///
    /// # Errors
    /// With the first thing that is not as the seal says.
    pub fn contents<'a>(&'a self, seal: &'a Seal) -> Result<Contents<'a>, ContentError> {
        let dir = self.backup_dir(seal.id);
        let archives = match seal.method {
            Method::Streamed => seal.archives()?,
            Method::Copied => Vec::new(),
            Method::External | Method::AtomicSnapshot => {
                return Err(ContentError::Elsewhere(seal.place.clone().unwrap_or_default()));
            }
        };
        self.check_sizes(seal)?;
        let listed = seal.file(Seal::MANIFEST).ok_or_else(|| ContentError::NotListed("manifest".to_owned()))?.clone();
        let spaces = seal.tablespaces.iter().map(|space| (Some(space.oid), 0));
        let mut copied: BTreeMap<_, u64> = [(None, 0)].into_iter().chain(spaces).collect();
        let manifest = self.read_manifest(&dir, &listed, &mut |file| {
            if seal.method == Method::Copied {
                let sum = copied.entry(tablespace_of(seal, &file.path)).or_default();
                *sum = sum.saturating_add(file.size);
            }
            Ok::<_, Infallible>(())
        });
        let manifest = manifest.map_err(|e| match e {
            ReadError::Content(e) => e,
            ReadError::Seen(never) => match never {},
        })?;
        check_manifest(&manifest, seal)?;
        Ok(Contents { repository: self, seal, dir, archives, listed, manifest, copied })
    }

    /// Reads a manifest, and holds it against the seal.
    fn read_manifest<E>(
        &self,
        dir: &Path,
        listed: &SealedFile,
        seen: &mut dyn FnMut(ManifestFile) -> Result<(), E>,
    ) -> Result<ManifestHead, ReadError<E>> {
        let mut hashed = Hashed::new(self.open_listed(dir, listed, Access::Read)?);
        let read = match read_manifest(&mut hashed, listed.size, seen) {
            Err(ManifestReadError::Seen(e)) => return Err(ReadError::Seen(e)),
            Err(ManifestReadError::Io(e)) => return Err(ContentError::Disk(cannot_read(dir, e)).into()),
            Err(ManifestReadError::Manifest(e)) => Err(e),
            Ok(head) => Ok(head),
        };
        hashed.matches(listed)?;
        Ok(read.map_err(ContentError::Manifest)?)
    }

    fn open_listed(&self, dir: &Path, listed: &SealedFile, access: Access) -> Result<Box<dyn File>, ContentError> {
        match self.disk.open(&dir.join(&listed.name), access) {
            Err(e) if e.trouble() == Trouble::Missing => Err(ContentError::Missing(listed.name.clone())),
            file => Ok(file?),
        }
    }

    /// Compares the history files on a backup's way with those of the archive; how many there are.
    ///
    /// # Errors
    /// With the first that is missing or has changed.
    pub fn check_histories(&self, seal: &Seal) -> Result<u64, ContentError> {
        let archive = self.archive();
        let mut compared = 0;
        for sealed in &seal.wal.history_files {
            let wrong = |fault| ContentError::History { timeline: sealed.timeline, fault };
            let content = archive.history_content(sealed.timeline)?.ok_or_else(|| wrong("is missing"))?;
            if content.len() as u64 != sealed.size || Sha256Sum::of(&content) != sealed.sha256 {
                return Err(wrong("has changed"));
            }
            compared += 1;
        }
        Ok(compared)
    }

    fn check_sizes(&self, seal: &Seal) -> Result<(), ContentError> {
        let dir = self.backup_dir(seal.id);
        for file in &seal.files {
            let found = self.disk.metadata(&dir.join(&file.name))?;
            let found = found.ok_or_else(|| ContentError::Missing(file.name.clone()))?.len;
            if found != file.size {
                return Err(ContentError::Size { name: file.name.clone(), found, sealed: file.size });
            }
        }
        Ok(())
    }

    fn read_kept(&self, dir: &Path, listed: &SealedFile, max: u64) -> Result<Vec<u8>, ContentError> {
        let name = || listed.name.clone();
        let bytes = match read_bounded(&*self.disk, &dir.join(&listed.name), max)? {
            Some(Ok(bytes)) => bytes,
            Some(Err(found)) => return Err(ContentError::Size { name: name(), found, sealed: listed.size }),
            None => return Err(ContentError::Missing(name())),
        };
        let found = Sha256Sum::of(&bytes);
        if found != listed.sha256 {
            return Err(ContentError::Sum { name: name(), found, sealed: listed.sha256 });
        }
        Ok(bytes)
    }
}

/// The file system's error, which is inside.
fn cannot_read(dir: &Path, e: io::Error) -> DiskError {
    e.downcast().unwrap_or_else(|e| DiskError::new("read", dir, e))
}

fn check_manifest(manifest: &ManifestHead, seal: &Seal) -> Result<(), ContentError> {
    if let Some(id) = manifest.system_identifier.filter(|id| *id != seal.system_identifier) {
        return Err(ContentError::ManifestCluster(id));
    }
    // Newest first.
    let from = manifest.wal_ranges.last().map(|range| Pos::new(range.tli, range.start));
    let to = manifest.wal_ranges.first().map(|range| Pos::new(range.tli, range.end));
    if (from, to) != (Some(seal.start), Some(seal.stop)) {
        return Err(ContentError::Ranges { from, to, start: seal.start, stop: seal.stop });
    }
    Ok(())
}

/// Whether the changes in a backup, which are those since the position in its label, are those since the backup that
/// its seal names.
///
/// # Errors
/// When they are not.
pub fn check_base(changes_since: Option<Pos>, parent: &Seal) -> Result<(), ContentError> {
    let (found, start) = (changes_since, parent.start);
    if found == Some(start) { Ok(()) } else { Err(ContentError::ChangesSince { found, parent: parent.id, start }) }
}

impl Contents<'_> {
    /// The archives, that of the data directory first.
    pub fn archives(&self) -> &[BackupArchive] {
        &self.archives
    }

    /// What the server's manifest says besides its files.
    pub const fn manifest(&self) -> &ManifestHead {
        &self.manifest
    }

    /// All of the manifest, in memory, to look files up in it.
    ///
    /// # Errors
    /// When it is not as the seal says any more.
    pub fn all_files(&self) -> Result<Manifest, ContentError> {
        let mut files = Vec::new();
        let head = self.each_file(&mut |file| {
            files.push(file);
            Ok(())
        })?;
        Ok(Manifest::of(head, files)?)
    }

    /// The manifest's own bytes, given to `put` in pieces.
    ///
    /// # Errors
    /// When they are not as the seal says any more, or `put` fails.
    pub fn manifest_bytes<E>(&self, put: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), ReadError<E>> {
        let mut hashed = Hashed::new(self.repository.open_listed(&self.dir, &self.listed, Access::Read)?);
        let mut piece = vec![0; PIECE];
        loop {
            let count = hashed.read(&mut piece).map_err(|e| ContentError::Disk(cannot_read(&self.dir, e)))?;
            match piece.get(..count) {
                Some(bytes) if !bytes.is_empty() => put(bytes).map_err(ReadError::Seen)?,
                _ => return Ok(hashed.matches(&self.listed)?),
            }
        }
    }

    /// The same, to be read more than once. What does not fit in memory goes to `scratch`.
    ///
    /// # Errors
    /// When they are not as the seal says any more, or have no place on disk.
    pub fn manifest_spooled(&self, scratch: Scratch) -> Result<Spool, ContentError> {
        let mut spool = Spool::new(scratch);
        self.manifest_bytes(&mut |bytes| spool.put(bytes)).map_err(|e| match e {
            ReadError::Content(e) => e,
            ReadError::Seen(e) => e.into(),
        })?;
        Ok(spool)
    }

    /// The files that the manifest lists, in its own order.
    fn each_file(
        &self,
        seen: &mut dyn FnMut(ManifestFile) -> Result<(), ContentError>,
    ) -> Result<ManifestHead, ContentError> {
        self.repository.read_manifest(&self.dir, &self.listed, seen).map_err(|e| match e {
            ReadError::Content(e) | ReadError::Seen(e) => e,
        })
    }

    /// Bytes that are laid down of the data directory and of each tablespace that has a place of its own.
    pub fn sizes(&self) -> Vec<(Option<u32>, u64)> {
        if self.seal.method == Method::Copied {
            return self.copied.iter().map(|(tablespace, size)| (*tablespace, *size)).collect();
        }
        let size = |archive: &BackupArchive| archive.file.unpacked.unwrap_or(archive.file.size);
        self.archives.iter().map(|archive| (archive.tablespace, size(archive))).collect()
    }

    /// Reads every archive, or every copied file, and shows what it holds, with the tablespace it is of. Everything is
    /// compared; what was shown is right only once this has returned.
    ///
    /// # Errors
    /// With the first thing that is not right, or what `seen` says.
    pub fn read<E>(
        &self,
        seen: &mut impl FnMut(Option<u32>, &TarEvent<'_>) -> Result<(), E>,
    ) -> Result<ContentsRead, ReadError<E>> {
        self.read_needed(&|_| true, seen)
    }

    /// The same without the archives of tablespaces of which nothing is `needed`: whoever says so has
    /// found all files of them to be as the manifest lists them.
    ///
    /// # Errors
    /// As [`Contents::read`].
    pub fn read_needed<E>(
        &self,
        needed: &dyn Fn(u32) -> bool,
        seen: &mut impl FnMut(Option<u32>, &TarEvent<'_>) -> Result<(), E>,
    ) -> Result<ContentsRead, ReadError<E>> {
        let (scratch, algorithm) = (Scratch::temporary(), self.manifest.algorithm);
        let comparison = Comparison::new(scratch.clone());
        let mut pass = Pass { algorithm, comparison, scratch: scratch.clone(), kept: Kept::default() };
        if self.seal.method == Method::Copied {
            self.read_copy(&mut pass, seen)?;
        }
        for archive in &self.archives {
            match archive.tablespace.filter(|oid| !needed(*oid)) {
                Some(oid) => self.take_as_listed(oid, &mut pass)?,
                None => self.read_archive(archive, &mut pass, seen)?,
            }
        }
        let Pass { comparison, kept, .. } = pass;
        let compared = self.compare(comparison, scratch)?;
        kept.check(self.seal, compared).map_err(ReadError::Content)
    }

    fn compare(&self, comparison: Comparison, scratch: Scratch) -> Result<Compared, ContentError> {
        let mut hashed = Hashed::new(self.repository.open_listed(&self.dir, &self.listed, Access::Read)?);
        let listed = Listed::read(&mut hashed, self.listed.size, scratch);
        let listed = listed.map_err(|e| match e {
            ListedError::Manifest(e) => ContentError::Manifest(e),
            ListedError::Disk(e) => ContentError::Disk(e),
        });
        hashed.matches(&self.listed)?;
        comparison.check(listed?).map_err(|unequal| match unequal {
            Unequal::Files { first, others } => ContentError::Files { first, others },
            Unequal::Manifest(e) => ContentError::Manifest(e),
            Unequal::Disk(e) => ContentError::Disk(e),
        })
    }

    fn take_as_listed(&self, oid: u32, pass: &mut Pass) -> Result<(), ContentError> {
        let above = format!("pg_tblspc/{oid}/");
        let all = self.each_file(&mut |file| {
            if file.path.as_bytes().starts_with(above.as_bytes()) {
                pass.comparison.add(file.path, file.size, file.checksum);
            }
            Ok(())
        });
        all.map(drop)
    }

    fn read_archive<E>(
        &self,
        archive: &BackupArchive,
        pass: &mut Pass,
        seen: &mut impl FnMut(Option<u32>, &TarEvent<'_>) -> Result<(), E>,
    ) -> Result<(), ReadError<E>> {
        let name = || archive.file.name.clone();
        let file = self.repository.open_listed(&self.dir, &archive.file, Access::ReadDirect)?;
        let decode = |source| ReadError::Content(ContentError::Decode { name: name(), source });
        let mut ahead = Ahead::new(archive.codec, Hashed::new(file)).map_err(decode)?;
        let unpacked = walk(archive, &mut ahead, pass, seen)?;
        let raw = ahead.finish().ok_or_else(|| decode(io::Error::other("it was not read to its end")))?;
        raw.matches(&archive.file)?;
        match archive.file.unpacked.filter(|sealed| *sealed != unpacked) {
            Some(sealed) => Err(ContentError::Size { name: name(), found: unpacked, sealed }.into()),
            None => Ok(()),
        }
    }
}

/// Reads one archive to its end; its uncompressed length.
fn walk<E>(
    archive: &BackupArchive,
    ahead: &mut Ahead<Hashed>,
    pass: &mut Pass,
    seen: &mut impl FnMut(Option<u32>, &TarEvent<'_>) -> Result<(), E>,
) -> Result<u64, ReadError<E>> {
    let name = || archive.file.name.clone();
    let mut tar = TarReader::new();
    let mut members = Members::new(&archive.file.name, archive.tablespace, pass.scratch.clone());
    let mut unpacked = 0;
    while let Some(piece) =
        ahead.piece().map_err(|source| ReadError::Content(ContentError::Decode { name: name(), source }))?
    {
        unpacked += piece.len() as u64;
        let mut event = |event: TarEvent<'_>| {
            members.take(&event, pass)?;
            seen(archive.tablespace, &event).map_err(ReadError::Seen)
        };
        for part in piece.chunks(CHUNK) {
            tar.feed(part, &mut event).map_err(|e| match e {
                FeedError::Tar(source) => ContentError::Tar { name: name(), source }.into(),
                FeedError::Seen(e) => e,
            })?;
        }
        ahead.recycle(piece);
    }
    tar.finish().map_err(|source| ContentError::Tar { name: name(), source })?;
    members.finish()?;
    Ok(unpacked)
}

/// A file that is read from its beginning, past the page cache where it can be, and digested as it lies
/// on disk.
struct Hashed {
    file: Box<dyn File>,
    hasher: Sha256,
    buffer: AlignedBuf,
    filled: std::ops::Range<usize>,
    /// Offset of the next byte to be read into the buffer.
    next: u64,
}

impl Hashed {
    fn new(file: Box<dyn File>) -> Self {
        Self { file, hasher: Sha256::new(), buffer: AlignedBuf::zeroed(CHUNK), filled: 0..0, next: 0 }
    }

    /// Bytes that have been given out.
    fn at(&self) -> u64 {
        self.next - self.filled.len() as u64
    }

    /// Whether all of it has been read, and is what the seal says.
    fn matches(self, sealed: &SealedFile) -> Result<(), ContentError> {
        let name = || sealed.name.clone();
        if self.at() != sealed.size {
            return Err(ContentError::Size { name: name(), found: self.at(), sealed: sealed.size });
        }
        let found = Sha256Sum::finish(self.hasher);
        if found != sealed.sha256 {
            return Err(ContentError::Sum { name: name(), found, sealed: sealed.sha256 });
        }
        Ok(())
    }

    fn fill(&mut self) -> io::Result<()> {
        // A read that did not fill its last block met the end; direct I/O takes no offset there.
        if self.filled.is_empty() && self.next.is_multiple_of(self.file.alignment() as u64) {
            let n = self.file.read_at(self.next, &mut self.buffer).map_err(io::Error::other)?;
            self.hasher.update(self.buffer.get(..n).unwrap_or_default());
            (self.next, self.filled) = (self.next + n as u64, 0..n);
        }
        Ok(())
    }
}

impl Read for Hashed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.fill()?;
        let ready = self.buffer.get(self.filled.clone()).unwrap_or_default();
        let n = ready.len().min(into.len());
        if let (Some(to), Some(from)) = (into.get_mut(..n), ready.get(..n)) {
            to.copy_from_slice(from);
        }
        self.filled.start += n;
        Ok(n)
    }
}

/// What is gathered from all archives.
struct Pass {
    /// What files are digested with: the manifest's algorithm.
    algorithm: ManifestAlgorithm,
    comparison: Comparison,
    /// For what does not fit in memory.
    scratch: Scratch,
    kept: Kept,
}

/// The members of one archive.
struct Members<'a> {
    name: &'a str,
    tablespace: Option<u32>,
    names: Names,
    open: Option<OpenFile>,
}

struct OpenFile {
    path: MemberPath,
    size: u64,
    hasher: Hasher,
    keep: bool,
}

impl<'a> Members<'a> {
    fn new(name: &'a str, tablespace: Option<u32>, scratch: Scratch) -> Self {
        Self { name, tablespace, names: Names::new(scratch), open: None }
    }

    /// All have come.
    fn finish(self) -> Result<(), ContentError> {
        let name = self.name.to_owned();
        self.names.finish().map_err(|e| match e {
            NamesError::Clash(source) => ContentError::Clash { name, source },
            NamesError::Disk(e) => e.into(),
        })
    }

    fn take(&mut self, event: &TarEvent<'_>, pass: &mut Pass) -> Result<(), ContentError> {
        match (event, &mut self.open) {
            (TarEvent::Member(member), _) => {
                let clash = |source| ContentError::Clash { name: self.name.to_owned(), source };
                self.names.take(member).map_err(clash)?;
                if let MemberKind::File { size } = member.kind {
                    let path = match self.tablespace {
                        Some(oid) => member.path.in_tablespace(oid)?,
                        None => member.path.clone(),
                    };
                    let keep = pass.kept.begin(&path);
                    self.open = Some(OpenFile { path, size, hasher: Hasher::new(pass.algorithm), keep });
                }
            }
            (TarEvent::Data(data), Some(open)) => {
                open.hasher.update(data);
                if open.keep {
                    pass.kept.add(&open.path, data);
                }
            }
            (TarEvent::MemberEnd, Some(_)) => {
                if let Some(open) = self.open.take() {
                    pass.comparison.add(open.path, open.size, open.hasher.finish());
                }
            }
            (TarEvent::Data(_) | TarEvent::MemberEnd, None) => {}
        }
        Ok(())
    }
}

/// The files that say what the backup is.
#[derive(Default)]
struct Kept {
    label: Option<Vec<u8>>,
    map: Option<Vec<u8>>,
    control: Option<Vec<u8>>,
}

impl Kept {
    fn slot(&mut self, path: &MemberPath) -> Option<&mut Option<Vec<u8>>> {
        match path.as_bytes() {
            LABEL => Some(&mut self.label),
            MAP => Some(&mut self.map),
            CONTROL => Some(&mut self.control),
            _ => None,
        }
    }

    fn begin(&mut self, path: &MemberPath) -> bool {
        self.slot(path).map(|slot| *slot = Some(Vec::new())).is_some()
    }

    fn add(&mut self, path: &MemberPath, data: &[u8]) {
        if let Some(Some(content)) = self.slot(path) {
            // One byte more than may be kept is enough to be refused as too long.
            let room = (MAX_KEPT + 1).saturating_sub(content.len());
            content.extend_from_slice(data.get(..room).unwrap_or(data));
        }
    }

    fn check(self, seal: &Seal, compared: Compared) -> Result<ContentsRead, ContentError> {
        let named = |name: &[u8]| ContentError::NoSuchMember(String::from_utf8_lossy(name).into_owned());
        let label = BackupLabel::parse(&self.label.ok_or_else(|| named(LABEL))?)?;
        if label.start != seal.start {
            return Err(ContentError::LabelStart(label.start));
        }
        if label.incremental_from.is_some() != (seal.kind == Kind::Incremental) {
            return Err(ContentError::LabelKind);
        }
        let layout = check_control(&self.control.ok_or_else(|| named(CONTROL))?, seal)?;
        let map = self.map.map(|content| TablespaceMap::parse(&content)).transpose()?;
        if let Some(map) = &map {
            check_map(map, seal)?;
        }
        Ok(ContentsRead { compared, map, changes_since: label.incremental_from, layout })
    }
}

fn check_control(content: &[u8], seal: &Seal) -> Result<Option<Layout>, ContentError> {
    let (id, min_recovery, layout) = match ControlFile::parse(content) {
        Ok(control) => {
            let layout = Layout { block_size: control.block_size, file_blocks: control.relation_segment };
            (control.system_identifier, control.min_recovery, Some(layout))
        }
        // A server newer than we know: what has never moved is compared.
        Err(ControlError::Unknown { system_identifier, .. }) => (system_identifier, None, None),
        Err(e) => return Err(e.into()),
    };
    if id != seal.system_identifier {
        return Err(ContentError::ControlCluster(id));
    }
    match min_recovery {
        Some(found) if found.lsn() > seal.stop.lsn() => Err(ContentError::ControlEnd { found, stop: seal.stop }),
        _ => Ok(layout),
    }
}

fn check_map(map: &TablespaceMap, seal: &Seal) -> Result<(), ContentError> {
    let same = |oid: u32, location: &Path| {
        seal.tablespaces.iter().any(|listed| listed.oid == oid && location == Path::new(&listed.location))
    };
    match map.0.iter().find(|entry| !same(entry.oid, &entry.location)) {
        Some(entry) => Err(ContentError::MapEntry(entry.oid)),
        None => Ok(()),
    }
}
