//! Reading what a sealed backup holds, once, from its first byte to its last: every file against
//! the seal, every data file against the server's manifest, and the few files that say what the
//! backup is against the seal.

use std::io::{self, Read};
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::{Repository, Seal, SealedFile, Sha256Sum};
use crate::archive::ArchiveError;
use crate::codec::{self, Codec};
use crate::disk::{Access, AlignedBuf, DiskError, File, Trouble, read_bounded};
use crate::image::{
    BackupLabel, BadPath, Compared, Comparison, ControlError, ControlFile, Difference, FeedError, Hasher, LabelError,
    Manifest, ManifestAlgorithm, ManifestError, MemberKind, MemberPath, NameClash, Names, TablespaceMap,
    TablespaceMapError, TarError, TarEvent, TarReader,
};
use crate::wal::{Pos, TimelineId};

/// How much is read at a time.
const CHUNK: usize = 256 << 10;

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

/// A sealed backup whose manifest has been read and whose files are there with their sizes.
#[derive(Debug)]
pub struct Contents<'a> {
    repository: &'a Repository,
    seal: &'a Seal,
    dir: PathBuf,
    archives: Vec<BackupArchive>,
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
}

/// What was found right by reading everything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContentsRead {
    /// Data files that are as the manifest lists them.
    pub compared: Compared,
    /// The `tablespace_map` of the backup, if it has one.
    pub map: Option<TablespaceMap>,
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
        others: usize,
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
        let archives = seal.archives()?;
        let listed = seal.file(Seal::MANIFEST).ok_or_else(|| ContentError::NotListed("manifest".to_owned()))?;
        for file in &seal.files {
            let found = self.disk.metadata(&dir.join(&file.name))?;
            let found = found.ok_or_else(|| ContentError::Missing(file.name.clone()))?.len;
            if found != file.size {
                return Err(ContentError::Size { name: file.name.clone(), found, sealed: file.size });
            }
        }
        let manifest_bytes = self.read_manifest(&dir, listed)?;
        let manifest = Manifest::parse(&manifest_bytes)?;
        check_manifest(&manifest, seal)?;
        Ok(Contents { repository: self, seal, dir, archives, manifest, manifest_bytes })
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

    fn read_manifest(&self, dir: &std::path::Path, listed: &SealedFile) -> Result<Vec<u8>, ContentError> {
        let name = || listed.name.clone();
        let max = Manifest::MAX_BYTES as u64;
        let bytes = match read_bounded(&*self.disk, &dir.join(&listed.name), max)? {
            Some(Ok(bytes)) => bytes,
            Some(Err(len)) => return Err(ManifestError::TooLong(usize::try_from(len).unwrap_or(usize::MAX)).into()),
            None => return Err(ContentError::Missing(name())),
        };
        let found = Sha256Sum::of(&bytes);
        if found != listed.sha256 {
            return Err(ContentError::Sum { name: name(), found, sealed: listed.sha256 });
        }
        Ok(bytes)
    }
}

fn check_manifest(manifest: &Manifest, seal: &Seal) -> Result<(), ContentError> {
    if let Some(id) = manifest.system_identifier().filter(|id| *id != seal.system_identifier) {
        return Err(ContentError::ManifestCluster(id));
    }
    // Newest first.
    let from = manifest.wal_ranges().last().map(|range| Pos::new(range.tli, range.start));
    let to = manifest.wal_ranges().first().map(|range| Pos::new(range.tli, range.end));
    if (from, to) != (Some(seal.start), Some(seal.stop)) {
        return Err(ContentError::Ranges { from, to, start: seal.start, stop: seal.stop });
    }
    Ok(())
}

impl Contents<'_> {
    /// The archives, that of the data directory first.
    pub fn archives(&self) -> &[BackupArchive] {
        &self.archives
    }

    /// The server's manifest.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest's own bytes.
    pub fn manifest_bytes(&self) -> &[u8] {
        &self.manifest_bytes
    }

    /// Reads every archive and shows what it holds, with the tablespace it is of. Everything is
    /// compared; what was shown is right only once this has returned.
    ///
    /// # Errors
    /// With the first thing that is not right, or what `seen` says.
    pub fn read<E>(
        &self,
        seen: &mut impl FnMut(Option<u32>, &TarEvent<'_>) -> Result<(), E>,
    ) -> Result<ContentsRead, ReadError<E>> {
        let mut pass = Pass { manifest: &self.manifest, comparison: Comparison::new(), kept: Kept::default() };
        for archive in &self.archives {
            self.read_archive(archive, &mut pass, seen)?;
        }
        let compared = pass.comparison.check(&self.manifest).map_err(|differences| {
            let others = differences.len().saturating_sub(1);
            let first = differences.into_iter().next();
            match first {
                Some(first) => ContentError::Files { first, others },
                None => ContentError::NotListed("data files".to_owned()),
            }
        })?;
        let map = pass.kept.check(self.seal)?;
        Ok(ContentsRead { compared, map })
    }

    fn read_archive<E>(
        &self,
        archive: &BackupArchive,
        pass: &mut Pass<'_>,
        seen: &mut impl FnMut(Option<u32>, &TarEvent<'_>) -> Result<(), E>,
    ) -> Result<(), ReadError<E>> {
        let name = || archive.file.name.clone();
        let file = match self.repository.disk.open(&self.dir.join(&archive.file.name), Access::ReadDirect) {
            Ok(file) => file,
            Err(e) if e.trouble() == Trouble::Missing => return Err(ContentError::Missing(name()).into()),
            Err(e) => return Err(ContentError::Disk(e).into()),
        };
        let mut raw = Hashed::new(file);
        let unpacked = walk(archive, &mut raw, pass, seen)?;
        if raw.at() != archive.file.size {
            return Err(ContentError::Size { name: name(), found: raw.at(), sealed: archive.file.size }.into());
        }
        let found = Sha256Sum::finish(raw.hasher);
        if found != archive.file.sha256 {
            return Err(ContentError::Sum { name: name(), found, sealed: archive.file.sha256 }.into());
        }
        match archive.file.unpacked.filter(|sealed| *sealed != unpacked) {
            Some(sealed) => Err(ContentError::Size { name: name(), found: unpacked, sealed }.into()),
            None => Ok(()),
        }
    }
}

/// Reads one archive to its end; its uncompressed length.
fn walk<E>(
    archive: &BackupArchive,
    raw: &mut Hashed,
    pass: &mut Pass<'_>,
    seen: &mut impl FnMut(Option<u32>, &TarEvent<'_>) -> Result<(), E>,
) -> Result<u64, ReadError<E>> {
    let name = || archive.file.name.clone();
    let decode = |source| ReadError::Content(ContentError::Decode { name: name(), source });
    let mut tar = TarReader::new();
    let mut members = Members { archive, names: Names::new(), open: None };
    let mut unpacked = 0;
    let mut decoder = codec::reader(archive.codec, raw).map_err(decode)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = match decoder.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(decode(e)),
        };
        unpacked += n as u64;
        let mut event = |event: TarEvent<'_>| {
            members.take(&event, pass)?;
            seen(archive.tablespace, &event).map_err(ReadError::Seen)
        };
        tar.feed(buffer.get(..n).unwrap_or_default(), &mut event).map_err(|e| match e {
            FeedError::Tar(source) => ContentError::Tar { name: name(), source }.into(),
            FeedError::Seen(e) => e,
        })?;
    }
    tar.finish().map_err(|source| ContentError::Tar { name: name(), source })?;
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
struct Pass<'a> {
    manifest: &'a Manifest,
    comparison: Comparison,
    kept: Kept,
}

/// The members of one archive.
struct Members<'a> {
    archive: &'a BackupArchive,
    names: Names,
    open: Option<OpenFile>,
}

struct OpenFile {
    path: MemberPath,
    size: u64,
    hasher: Hasher,
    keep: bool,
}

impl Members<'_> {
    fn take(&mut self, event: &TarEvent<'_>, pass: &mut Pass<'_>) -> Result<(), ContentError> {
        match (event, &mut self.open) {
            (TarEvent::Member(member), _) => {
                let clash = |source| ContentError::Clash { name: self.archive.file.name.clone(), source };
                self.names.take(member).map_err(clash)?;
                if let MemberKind::File { size } = member.kind {
                    let path = match self.archive.tablespace {
                        Some(oid) => member.path.in_tablespace(oid)?,
                        None => member.path.clone(),
                    };
                    let listed = pass.manifest.file(&path).and_then(|listed| listed.checksum.as_ref());
                    let algorithm = listed.map_or(ManifestAlgorithm::None, |checksum| checksum.algorithm());
                    let keep = pass.kept.begin(&path);
                    self.open = Some(OpenFile { path, size, hasher: Hasher::new(algorithm), keep });
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

    fn check(self, seal: &Seal) -> Result<Option<TablespaceMap>, ContentError> {
        let named = |name: &[u8]| ContentError::NoSuchMember(String::from_utf8_lossy(name).into_owned());
        let label = BackupLabel::parse(&self.label.ok_or_else(|| named(LABEL))?)?;
        if label.start != seal.start {
            return Err(ContentError::LabelStart(label.start));
        }
        check_control(&self.control.ok_or_else(|| named(CONTROL))?, seal)?;
        let map = self.map.map(|content| TablespaceMap::parse(&content)).transpose()?;
        if let Some(map) = &map {
            check_map(map, seal)?;
        }
        Ok(map)
    }
}

fn check_control(content: &[u8], seal: &Seal) -> Result<(), ContentError> {
    let (id, min_recovery) = match ControlFile::parse(content) {
        Ok(control) => (control.system_identifier, control.min_recovery),
        // A server newer than we know: what has never moved is compared.
        Err(ControlError::Unknown { system_identifier, .. }) => (system_identifier, None),
        Err(e) => return Err(e.into()),
    };
    if id != seal.system_identifier {
        return Err(ContentError::ControlCluster(id));
    }
    match min_recovery {
        Some(found) if found.lsn() > seal.stop.lsn() => Err(ContentError::ControlEnd { found, stop: seal.stop }),
        _ => Ok(()),
    }
}

fn check_map(map: &TablespaceMap, seal: &Seal) -> Result<(), ContentError> {
    let same = |oid: u32, location: &std::path::Path| {
        seal.tablespaces.iter().any(|listed| listed.oid == oid && location == std::path::Path::new(&listed.location))
    };
    match map.0.iter().find(|entry| !same(entry.oid, &entry.location)) {
        Some(entry) => Err(ContentError::MapEntry(entry.oid)),
        None => Ok(()),
    }
}
