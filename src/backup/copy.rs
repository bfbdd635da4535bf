//! The one pass over a base backup's data: tar parsed, each file digested, archives compressed,
//! hashed and written. Nothing is read twice.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::BackupError;
use crate::codec::{Compression, Frames, ZSTD_FRAME};
use crate::disk::{Disk, DiskError, File};
use crate::feed::{Fed, Feed, feed};
use crate::image::{
    ArchivePass, BackupLabel, BadPath, Compared, Comparison, ControlFile, IncrementReader, IncrementalError, Listed,
    ManifestAlgorithm, ManifestHead, Member, MemberKind, MemberPath, PassError, TarEnd, TarEvent, stands_for,
};
use crate::repository::{Seal, SealedFile, Sha256Sum};
use crate::spill::{Scratch, Spool};

/// How much of a compressed archive gathers before it is written.
const WRITE: usize = 1 << 20;
/// The files of the copy that are looked into are no larger.
const MAX_KEPT: usize = 64 << 10;
/// What closes a tar: servers up to 14 leave it to the client.
const TAR_END: [u8; 1024] = [0; 1024];

/// A piece of the stream for the thread.
#[derive(Debug)]
pub(super) enum Piece {
    /// An archive begins: of a tablespace, or of the data directory.
    Archive(Option<u32>),
    Data(Bytes),
    ArchiveEnd,
    ManifestData(Bytes),
    ManifestEnd,
}

/// Where the pieces go.
#[derive(Debug)]
pub(super) struct Copying {
    pieces: Feed<Piece>,
    thread: JoinHandle<Result<Copied, BackupError>>,
}

/// All was copied, and every file is as the server's manifest lists it.
#[derive(Debug)]
pub(super) struct Copied {
    /// The archives and the manifest.
    pub(super) files: Vec<SealedFile>,
    pub(super) manifest: ManifestHead,
    pub(super) compared: Compared,
    pub(super) label: BackupLabel,
    pub(super) control: ControlFile,
}

impl Copying {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        mode: u32,
        compression: Compression,
        algorithm: ManifestAlgorithm,
        incremental: bool,
    ) -> Result<Self, BackupError> {
        let (pieces, mut queue) = feed();
        let work = move || Copy::new(disk, dir, mode, compression, algorithm, incremental).work(&mut queue);
        let thread = std::thread::Builder::new().name("copy".into()).spawn(work).map_err(BackupError::Thread)?;
        Ok(Self { pieces, thread })
    }

    /// Hands over a piece; `false` if the thread has failed, and [`Copying::finish`] says why.
    pub(super) async fn put(&mut self, piece: Piece) -> bool {
        let bytes = match &piece {
            Piece::Data(bytes) | Piece::ManifestData(bytes) => bytes.len(),
            Piece::Archive(_) | Piece::ArchiveEnd | Piece::ManifestEnd => 0,
        };
        self.pieces.put(piece, bytes).await
    }

    /// Lets the thread have what has come so far; `false` if it has failed, also when nothing has.
    pub(super) async fn hand_over(&mut self) -> bool {
        self.pieces.hand_over().await
    }

    /// Waits until all is written and compared.
    pub(super) async fn finish(mut self) -> Result<Copied, BackupError> {
        let _ended = self.pieces.hand_over().await;
        drop(self.pieces);
        let thread = self.thread;
        match tokio::task::spawn_blocking(move || thread.join()).await {
            Ok(Ok(copied)) => copied,
            _ => Err(BackupError::Thread(io::Error::other("it ended unexpectedly"))),
        }
    }
}

/// The state of the pass.
struct Copy {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    mode: u32,
    compression: Compression,
    algorithm: ManifestAlgorithm,
    incremental: bool,
    files: Vec<SealedFile>,
    comparison: Comparison,
    label: Option<Vec<u8>>,
    control: Option<Vec<u8>>,
    manifest: Spool,
    manifest_ended: bool,
    archive: Option<ArchiveCopy>,
    scratch: Scratch,
}

/// One archive on its way to its file.
struct ArchiveCopy {
    oid: Option<u32>,
    name: String,
    pass: ArchivePass,
    kept: Option<Kept>,
    changes: Option<Changes>,
    sink: Sink,
    unpacked: u64,
}

/// A file in it that is looked into.
struct Kept {
    /// `pg_control`, or else `backup_label`.
    control: bool,
    content: Vec<u8>,
}

enum Sink {
    Plain(HashedFile),
    Zstd(Box<Frames<HashedFile>>),
}

impl Copy {
    fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        mode: u32,
        compression: Compression,
        algorithm: ManifestAlgorithm,
        incremental: bool,
    ) -> Self {
        let scratch = Scratch::new(&dir);
        Self {
            disk,
            dir,
            mode,
            compression,
            algorithm,
            incremental,
            files: Vec::new(),
            comparison: Comparison::new(scratch.clone()),
            label: None,
            control: None,
            manifest: Spool::new(scratch.clone()),
            manifest_ended: false,
            archive: None,
            scratch,
        }
    }

    fn work(mut self, queue: &mut Fed<Piece>) -> Result<Copied, BackupError> {
        while let Some(piece) = queue.next() {
            match piece {
                Piece::Archive(oid) => self.begin(oid)?,
                Piece::Data(bytes) => self.take(&bytes)?,
                Piece::ArchiveEnd => self.end()?,
                Piece::ManifestData(bytes) => {
                    if self.manifest.size() + bytes.len() as u64 > self.comparison.longest_manifest() as u64 {
                        return Err(BackupError::Contradiction("its manifest has no end".into()));
                    }
                    self.manifest.put(&bytes)?;
                }
                Piece::ManifestEnd => self.manifest_ended = true,
            }
        }
        self.finish()
    }

    fn begin(&mut self, oid: Option<u32>) -> Result<(), BackupError> {
        let stem = oid.map_or_else(|| "base".to_owned(), |oid| oid.to_string());
        let name = format!("{stem}.tar{}", self.compression.codec().suffix());
        let file = HashedFile::create(&*self.disk, &self.dir.join(&name), self.mode)?;
        let sink = match self.compression {
            Compression::None => Sink::Plain(file),
            Compression::Zstd { level, workers } => Sink::Zstd(Box::new(
                Frames::new(file, level.into(), workers, ZSTD_FRAME).map_err(BackupError::Compress)?,
            )),
        };
        let pass = ArchivePass::new(oid, self.algorithm, self.scratch.clone());
        self.archive = Some(ArchiveCopy { oid, name, pass, kept: None, changes: None, sink, unpacked: 0 });
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        let Some(archive) = &mut self.archive else { return Err(BackupError::Lacks("archive for its data")) };
        let (oid, kept, changes, incremental) =
            (archive.oid, &mut archive.kept, &mut archive.changes, self.incremental);
        let (label, control) = (&mut self.label, &mut self.control);
        let fed = archive.pass.feed(bytes, &mut self.comparison, &mut |event| {
            match event {
                TarEvent::Member(member) => {
                    *kept = Kept::of(oid, member);
                    *changes = if incremental { Changes::of(oid, member)? } else { None };
                }
                TarEvent::Data(data) => {
                    if let Some(kept) = kept {
                        kept.take(data);
                    }
                    if let Some(changes) = changes {
                        changes.take(data)?;
                    }
                }
                TarEvent::MemberEnd => {
                    match kept.take() {
                        Some(Kept { control: true, content }) => *control = Some(content),
                        Some(Kept { control: false, content }) => *label = Some(content),
                        None => {}
                    }
                    changes.take().map_or(Ok(()), Changes::finish)?;
                }
            }
            Ok(())
        });
        fed?;
        archive.put(bytes)
    }

    fn end(&mut self) -> Result<(), BackupError> {
        let Some(ArchiveCopy { name, pass, mut sink, mut unpacked, .. }) = self.archive.take() else {
            return Err(BackupError::Lacks("archive to end"));
        };
        if pass.finish::<BackupError>()? == TarEnd::Open {
            sink.put(&TAR_END)?;
            unpacked += TAR_END.len() as u64;
        }
        let file = match sink {
            Sink::Plain(file) => file,
            Sink::Zstd(frames) => frames.finish().map_err(cannot_write)?,
        };
        self.files.push(file.finish(name, Some(unpacked))?);
        Ok(())
    }

    fn finish(mut self) -> Result<Copied, BackupError> {
        if !self.manifest_ended {
            return Err(BackupError::Lacks("manifest"));
        }
        let listed = Listed::read(&mut self.manifest.reader(), self.manifest.size(), self.scratch)?;
        let manifest = listed.head().clone();
        let compared = self.comparison.check(listed)?;
        let mut file = HashedFile::create(&*self.disk, &self.dir.join(Seal::MANIFEST), self.mode)?;
        io::copy(&mut self.manifest.reader(), &mut file).map_err(cannot_write)?;
        self.files.push(file.finish(Seal::MANIFEST.to_owned(), None)?);
        Ok(Copied {
            files: self.files,
            manifest,
            compared,
            label: BackupLabel::parse(&self.label.ok_or(BackupError::Lacks("backup_label"))?)?,
            control: ControlFile::parse(&self.control.ok_or(BackupError::Lacks("pg_control"))?)?,
        })
    }
}

const LABEL: &[u8] = b"backup_label";
const CONTROL: &[u8] = b"global/pg_control";

impl Kept {
    fn of(oid: Option<u32>, member: &Member) -> Option<Self> {
        let name = member.path.as_bytes();
        let looked_into = oid.is_none() && (name == LABEL || name == CONTROL);
        (looked_into && matches!(member.kind, MemberKind::File { .. }))
            .then(|| Self { control: name == CONTROL, content: Vec::new() })
    }

    fn take(&mut self, data: &[u8]) {
        let room = MAX_KEPT.saturating_sub(self.content.len());
        self.content.extend_from_slice(data.get(..room).unwrap_or(data));
    }
}

/// A file that holds changes only, on its way: it is seen whether they can be told apart.
struct Changes {
    path: MemberPath,
    reader: IncrementReader,
}

impl Changes {
    fn of(oid: Option<u32>, member: &Member) -> Result<Option<Self>, BackupError> {
        let MemberKind::File { size } = member.kind else { return Ok(None) };
        let below = |e: BadPath| BackupError::Contradiction(e.to_string());
        let path = match oid {
            Some(oid) => member.path.in_tablespace(oid).map_err(below)?,
            None => member.path.clone(),
        };
        let Some(stands_for) = stands_for(&path) else { return Ok(None) };
        let _name = stands_for.map_err(below)?;
        Ok(Some(Self { path, reader: IncrementReader::new(size) }))
    }

    fn take(&mut self, data: &[u8]) -> Result<(), BackupError> {
        let read = self.reader.feed(data, &mut |_, _| Ok::<_, IncrementalError>(()));
        read.map_err(|source| BackupError::Increment { path: self.path.clone(), source })
    }

    fn finish(self) -> Result<(), BackupError> {
        let Self { path, reader } = self;
        reader.finish().map(drop).map_err(|source| BackupError::Increment { path, source })
    }
}

impl ArchiveCopy {
    fn put(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        self.unpacked += bytes.len() as u64;
        self.sink.put(bytes)
    }
}

impl Sink {
    fn put(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        match self {
            Self::Plain(file) => file.write_all(bytes),
            Self::Zstd(frames) => frames.write_all(bytes),
        }
        .map_err(cannot_write)
    }
}

impl From<PassError<Self>> for BackupError {
    fn from(e: PassError<Self>) -> Self {
        match e {
            PassError::Tar(e) => Self::Tar(e),
            PassError::Names(e) => Self::Names(e),
            PassError::Name(e) => Self::Contradiction(e.to_string()),
            PassError::Disk(e) => e.into(),
            PassError::Seen(e) => e,
        }
    }
}

/// A new file of the backup's folder, with the hash of what it holds.
struct HashedFile {
    file: Box<dyn File>,
    gathered: Vec<u8>,
    size: u64,
    hash: Sha256,
}

impl HashedFile {
    fn create(disk: &dyn Disk, path: &Path, mode: u32) -> Result<Self, DiskError> {
        let file = disk.create(path, mode)?;
        Ok(Self { file, gathered: Vec::with_capacity(WRITE), size: 0, hash: Sha256::new() })
    }

    fn finish(mut self, name: String, unpacked: Option<u64>) -> Result<SealedFile, BackupError> {
        self.flush().map_err(cannot_write)?;
        let (_file, _data) = self.file.sync()?;
        Ok(SealedFile { name, size: self.size, sha256: Sha256Sum::finish(self.hash), unpacked })
    }
}

impl Write for HashedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(WRITE - self.gathered.len());
        self.gathered.extend_from_slice(&bytes[..n]);
        if self.gathered.len() == WRITE {
            self.flush()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hash.update(&self.gathered);
        self.file.write_at(self.size, &self.gathered).map_err(io::Error::other)?;
        self.size += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }
}

/// The file system's error is inside the one that [`Write`] has.
fn cannot_write(e: io::Error) -> BackupError {
    match e.downcast::<DiskError>() {
        Ok(e) => e.into(),
        Err(e) => BackupError::Compress(e),
    }
}
