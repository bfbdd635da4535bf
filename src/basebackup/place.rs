//! Where a base backup is stored.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::BaseBackupError as Error;
use super::store::Shown;
use super::wal::ReceivedWal;
use crate::codec::{ClientCompression, Codec, Encoder, Method};
use crate::datadir::{DataDir, SyncMethod};
use crate::disk::{Access, Disk, DiskError, EntryKind, File, Trouble};
use crate::image::{Added, TarEdit, TarEnd, TarEvent};
use crate::protocol::SlotName;
use crate::spill::{Scratch, Spool};

/// How much gathers before it is written.
const WRITE: usize = 1 << 20;
/// What closes a tar: servers up to 14 leave it to the client.
const TAR_END: [u8; 1024] = [0; 1024];

const MANIFEST: &str = "backup_manifest";
const UNFINISHED_MANIFEST: &str = "backup_manifest.tmp";
const AUTO_CONF: &str = "postgresql.auto.conf";
const STANDBY: &str = "standby.signal";
/// Where WAL is received before it is packed.
const UNFINISHED_WAL: &str = "pg_wal.unfinished";

/// Where an archive goes that is stored as one.
pub(super) type Sink = Encoder<Box<dyn Write + Send>>;

/// Where the archives go.
#[derive(Debug)]
pub(super) enum Place {
    Plain(Box<Plain>),
    Tar(TarFiles),
    Output(Output),
}

/// An archive begins: where it goes if it is stored as one, and what is changed in it.
#[derive(Default)]
pub(super) struct Opened {
    pub(super) sink: Option<Sink>,
    pub(super) edit: Option<TarEdit>,
}

/// What makes a standby of the copy.
#[derive(Clone, Debug)]
pub(super) struct Recovery {
    /// Lines for `postgresql.auto.conf`.
    pub(super) lines: Vec<u8>,
}

/// Files that we add to an archive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ours {
    /// Permission bits.
    pub(super) mode: u32,
    /// Seconds since 1970.
    pub(super) mtime: u64,
}

impl Ours {
    const fn file<'a>(self, name: &'a str, content: &'a [u8]) -> Added<'a> {
        Added { name, content, mode: self.mode, mtime: self.mtime }
    }
}

/// A data directory.
#[derive(Debug)]
pub(super) struct Plain {
    pub(super) data: DataDir,
    /// As it was named, for whoever shows it.
    pub(super) directory: PathBuf,
    pub(super) recovery: Option<Recovery>,
}

/// One tar file for each archive.
#[derive(Debug)]
pub(super) struct TarFiles {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) directory: PathBuf,
    pub(super) compression: Option<ClientCompression>,
    pub(super) recovery: Option<Recovery>,
    pub(super) ours: Ours,
    /// Whether the directory was not there.
    pub(super) made: bool,
}

/// One tar to standard output.
pub(super) struct Output {
    pub(super) compression: Option<ClientCompression>,
    pub(super) recovery: Option<Recovery>,
    pub(super) ours: Ours,
    /// Whether the manifest goes with it.
    pub(super) manifest: bool,
    /// Open until the manifest is there.
    pub(super) open: Option<Box<(Sink, TarEdit)>>,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").finish_non_exhaustive()
    }
}

impl Place {
    /// An archive begins, which the server may have compressed.
    pub(super) fn open(&mut self, oid: Option<u32>, packed: Option<Method>, shown: &Shown) -> Result<Opened, Error> {
        match self {
            Self::Plain(_) => Ok(Opened::default()),
            Self::Tar(tar) => tar.open(oid, packed, shown),
            Self::Output(output) => output.open(packed),
        }
    }

    /// What is in it.
    pub(super) fn take(&mut self, oid: Option<u32>, event: &TarEvent<'_>, shown: &Shown) -> Result<(), Error> {
        let Self::Plain(plain) = self else { return Ok(()) };
        if let TarEvent::Member(member) = event {
            shown.set(plain.directory.join(member.path.as_path()));
        }
        plain.data.take(oid, event)?;
        Ok(())
    }

    /// An archive has ended.
    pub(super) fn end(&mut self, sink: Option<Sink>, edit: Option<TarEdit>, end: TarEnd) -> Result<(), Error> {
        let Some(mut sink) = sink else { return Ok(()) };
        match (self, edit) {
            (Self::Output(output), Some(edit)) => {
                output.open = Some(Box::new((sink, edit)));
                Ok(())
            }
            (Self::Tar(TarFiles { ours, .. }), Some(edit)) => {
                finish_edit(edit, &mut sink, &[ours.file(STANDBY, b"")])?;
                finish(sink)
            }
            _ => {
                if end == TarEnd::Open {
                    sink.write_all(&TAR_END).map_err(cannot_write)?;
                }
                finish(sink)
            }
        }
    }

    /// Where lists go that do not fit in memory.
    pub(super) fn scratch(&self) -> Scratch {
        match self {
            Self::Plain(plain) => Scratch::new(plain.data.path()),
            Self::Tar(tar) => Scratch::new(&tar.directory),
            Self::Output(_) => Scratch::temporary(),
        }
    }

    /// All archives have ended, and are as the manifest says.
    pub(super) fn close(&mut self, manifest: Option<&Spool>) -> Result<(), Error> {
        match self {
            Self::Plain(plain) => plain.close(manifest),
            Self::Tar(tar) => tar.close(manifest),
            Self::Output(output) => output.close(manifest),
        }
    }

    /// A directory for the WAL that comes meanwhile.
    pub(super) fn wal_dir(&mut self) -> Result<PathBuf, Error> {
        match self {
            Self::Plain(plain) => Ok(plain.data.wal_dir()?),
            Self::Tar(tar) => tar.wal_dir(),
            Self::Output(_) => Err(Error::Conflict("WAL cannot be streamed to standard output")),
        }
    }

    /// The WAL has come, and is whole: gives it the form that it is to have.
    pub(super) fn take_wal(&mut self, wal: &ReceivedWal) -> Result<(), Error> {
        match self {
            Self::Plain(plain) => plain.take_wal(wal),
            Self::Tar(tar) => tar.pack_wal(wal),
            Self::Output(_) => Ok(()),
        }
    }

    /// Removes what was made, and empties what was found empty.
    pub(super) fn discard(self) -> Result<(), DiskError> {
        match self {
            Self::Plain(plain) => plain.data.discard(),
            Self::Output(_) => Ok(()),
            Self::Tar(tar) if tar.made => tar.disk.remove_tree(&tar.directory),
            Self::Tar(tar) => {
                for entry in tar.disk.list(&tar.directory)? {
                    let inside = tar.directory.join(&entry.name);
                    match entry.kind {
                        EntryKind::Directory => tar.disk.remove_tree(&inside)?,
                        EntryKind::File | EntryKind::Other => tar.disk.remove(&inside)?,
                    }
                }
                Ok(())
            }
        }
    }

    /// Makes all of it durable.
    pub(super) fn finish(&mut self, sync: SyncMethod) -> Result<(), Error> {
        match self {
            Self::Output(_) => Ok(()),
            Self::Plain(plain) => Ok(plain.data.finish(sync)?),
            Self::Tar(tar) => Ok(sync.sync(&*tar.disk, &tar.directory)?),
        }
    }

    /// Gives the manifest its name, when all else is durable; durable on return.
    pub(super) fn name_manifest(&mut self) -> Result<(), Error> {
        let (disk, directory) = match self {
            Self::Output(_) => return Ok(()),
            Self::Plain(plain) => (plain.data.disk(), plain.data.path()),
            Self::Tar(tar) => (&*tar.disk, tar.directory.as_path()),
        };
        let name = directory.join(MANIFEST);
        disk.rename(&directory.join(UNFINISHED_MANIFEST), &name)?;
        let _named = disk.sync_parent(&name)?;
        Ok(())
    }
}

impl Plain {
    fn close(&mut self, manifest: Option<&Spool>) -> Result<(), Error> {
        self.data.link_tablespaces()?;
        if let Some(recovery) = &self.recovery {
            self.data.append(AUTO_CONF, &recovery.lines)?;
            self.data.replace(STANDBY, b"")?;
        }
        if let Some(content) = manifest {
            self.data.put_all(UNFINISHED_MANIFEST, &mut content.reader())?;
        }
        Ok(())
    }

    /// Segments under their final names; complete ones, and histories, are marked as archived: a server that
    /// is started here would archive them again (`mark_file_as_archived` in `receivelog.c`).
    fn take_wal(&mut self, wal: &ReceivedWal) -> Result<(), Error> {
        let disk = self.data.disk();
        if let Some(open) = &wal.open {
            let name = wal.dir.join(open);
            disk.rename(&wal.dir.join(format!("{open}.partial")), &name)?;
        }
        for name in wal.complete.iter().chain(&wal.histories) {
            self.data.put_in(Path::new("pg_wal/archive_status"), &format!("{name}.done"), b"")?;
        }
        Ok(())
    }
}

impl TarFiles {
    /// Makes the directory, or makes sure that it is empty still.
    pub(super) fn make(mut self) -> Result<Self, Error> {
        if let Some(parent) = self.directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            let _above = self.disk.make_dirs(parent, 0o755)?;
        }
        match self.disk.make_dir(&self.directory, 0o700 | self.ours.mode & 0o040 | (self.ours.mode & 0o040) >> 2) {
            Ok(_made) => self.made = true,
            Err(e) if e.trouble() == Trouble::Exists => {
                let meta = self.disk.metadata(&self.directory)?;
                let directory = meta.is_some_and(|meta| meta.kind == EntryKind::Directory);
                if !directory || !self.disk.list(&self.directory)?.is_empty() {
                    return Err(Error::NotEmpty(self.directory));
                }
            }
            Err(e) => return Err(e.into()),
        }
        Ok(self)
    }

    fn open(&self, oid: Option<u32>, packed: Option<Method>, shown: &Shown) -> Result<Opened, Error> {
        let recovery = self.recovery.as_ref().filter(|_| oid.is_none());
        // What is changed in an archive that the server has compressed must be compressed anew.
        let anew = packed.filter(|_| recovery.is_some()).map(ClientCompression::from);
        let compression = self.compression.or(anew);
        let codec = match (packed, compression) {
            (Some(method), _) => method.codec(),
            (None, Some(compression)) => compression.codec(),
            (None, None) => Codec::Plain,
        };
        let stem = oid.map_or_else(|| "base".to_owned(), |oid| oid.to_string());
        let path = self.directory.join(format!("{stem}.tar{}", codec.suffix()));
        let sink = self.create(&path, compression)?;
        shown.set(path);
        Ok(Opened { sink: Some(sink), edit: recovery.map(Recovery::edit) })
    }

    fn wal_dir(&self) -> Result<PathBuf, Error> {
        let dir = self.directory.join(UNFINISHED_WAL);
        let _made = self.disk.make_dir(&dir, 0o700)?;
        Ok(dir)
    }

    /// Packs the WAL, and removes each file when it is in.
    fn pack_wal(&self, wal: &ReceivedWal) -> Result<(), Error> {
        // As pg_basebackup does it: gzip alone is used for the WAL, too.
        let compression = self.compression.filter(|compression| compression.codec() == Codec::Gzip);
        let suffix = compression.map_or("", |compression| compression.codec().suffix());
        let mut sink = self.create(&self.directory.join(format!("pg_wal.tar{suffix}")), compression)?;
        let mut tar = TarEdit::new();
        let mut pack = |name: &str, kept: &str| {
            let path = wal.dir.join(kept);
            let file = self.disk.open(&path, Access::Read)?;
            let mut out = |part: &[u8]| sink.write_all(part).map_err(cannot_write);
            let size = file.size()?;
            tar.add(name, size, self.ours.mode, self.ours.mtime, &mut out).map_err(Error::edited)?;
            let mut buffer = vec![0; WRITE];
            let mut at = 0;
            while at < size {
                let count = file.read_at(at, &mut buffer)?;
                out(buffer.get(..count).filter(|read| !read.is_empty()).ok_or(Error::Lacks("WAL"))?)?;
                at += count as u64;
            }
            tar.pad(size, &mut out)?;
            drop(file);
            self.disk.remove(&path)?;
            Ok::<_, Error>(())
        };
        for name in wal.complete.iter().chain(&wal.histories) {
            pack(name, name)?;
        }
        if let Some(open) = &wal.open {
            pack(open, &format!("{open}.partial"))?;
        }
        finish_edit(tar, &mut sink, &[])?;
        finish(sink)?;
        Ok(self.disk.remove_tree(&wal.dir)?)
    }

    fn create(&self, path: &Path, compression: Option<ClientCompression>) -> Result<Sink, Error> {
        let file: Box<dyn Write + Send> = Box::new(Gathering::new(self.disk.create(path, self.ours.mode)?));
        Encoder::new(file, compression).map_err(cannot_write)
    }

    fn close(&self, manifest: Option<&Spool>) -> Result<(), Error> {
        if let Some(content) = manifest {
            let mut file = Gathering::new(self.disk.create(&self.directory.join(UNFINISHED_MANIFEST), self.ours.mode)?);
            io::copy(&mut content.reader(), &mut file).and_then(|_| file.flush()).map_err(cannot_write)?;
        }
        Ok(())
    }
}

impl Recovery {
    /// Follows the server that `conninfo` leads to, by this slot if there is one.
    pub(super) fn new(conninfo: &str, slot: Option<&SlotName>) -> Self {
        // In the configuration file's quotes.
        let quoted = conninfo.replace('\\', "\\\\").replace('\'', "''");
        let mut lines = format!("primary_conninfo = '{quoted}'\n");
        if let Some(slot) = slot {
            lines += &format!("primary_slot_name = '{slot}'\n");
        }
        Self { lines: lines.into_bytes() }
    }

    fn edit(&self) -> TarEdit {
        TarEdit::new().append(AUTO_CONF, self.lines.clone()).omit(STANDBY)
    }
}

impl Output {
    fn open(&self, packed: Option<Method>) -> Result<Opened, Error> {
        let out = io::stdout().as_fd().try_clone_to_owned().map_err(Error::Output)?;
        let out: Box<dyn Write + Send> = Box::new(Labelled(io::BufWriter::with_capacity(WRITE, fs::File::from(out))));
        let edit = match &self.recovery {
            Some(recovery) => Some(recovery.edit()),
            None => self.manifest.then(TarEdit::new),
        };
        let anew = packed.filter(|_| edit.is_some()).map(ClientCompression::from);
        let sink = Encoder::new(out, self.compression.or(anew)).map_err(cannot_write)?;
        Ok(Opened { sink: Some(sink), edit })
    }

    fn close(&mut self, manifest: Option<&Spool>) -> Result<(), Error> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let (mut sink, mut edit) = *open;
        if let Some(content) = manifest {
            self.add_manifest(content, &mut edit, &mut sink)?;
        }
        let signal = self.recovery.as_ref().map(|_| self.ours.file(STANDBY, b""));
        finish_edit(edit, &mut sink, signal.as_slice())?;
        finish(sink)
    }

    fn add_manifest(&self, content: &Spool, edit: &mut TarEdit, sink: &mut Sink) -> Result<(), Error> {
        let mut out = |part: &[u8]| sink.write_all(part).map_err(cannot_write);
        edit.add(MANIFEST, content.size(), self.ours.mode, self.ours.mtime, &mut out).map_err(Error::edited)?;
        let (mut reader, mut buffer) = (content.reader(), vec![0; WRITE]);
        loop {
            let count = reader.read(&mut buffer).map_err(cannot_write)?;
            match buffer.get(..count) {
                Some(part) if !part.is_empty() => out(part)?,
                _ => return edit.pad(content.size(), &mut out),
            }
        }
    }
}

fn finish_edit(edit: TarEdit, sink: &mut Sink, added: &[Added<'_>]) -> Result<(), Error> {
    edit.finish(added, &mut |part| sink.write_all(part).map_err(cannot_write)).map_err(Error::edited)
}

fn finish(sink: Sink) -> Result<(), Error> {
    sink.finish().and_then(|mut out| out.flush()).map_err(cannot_write)
}

/// A new file that is written in large pieces.
struct Gathering {
    file: Box<dyn File>,
    at: u64,
    gathered: Vec<u8>,
}

impl Gathering {
    fn new(file: Box<dyn File>) -> Self {
        Self { file, at: 0, gathered: Vec::with_capacity(WRITE) }
    }
}

impl Write for Gathering {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(WRITE - self.gathered.len());
        self.gathered.extend_from_slice(bytes.get(..count).unwrap_or_default());
        if self.gathered.len() == WRITE {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(self.at, &self.gathered).map_err(io::Error::other)?;
        self.at += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }
}

/// Standard output, whose errors say so.
struct Labelled<W>(W);

impl<W: Write> Write for Labelled<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(|e| io::Error::other(Error::Output(e)))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(|e| io::Error::other(Error::Output(e)))
    }
}

/// The error of what was written to is inside the one that [`Write`] has.
pub(super) fn cannot_write(e: io::Error) -> Error {
    match e.downcast::<DiskError>() {
        Ok(e) => e.into(),
        Err(e) => e.downcast::<Error>().unwrap_or_else(Error::Compress),
    }
}
