//! The thread that takes the archives in: names checked, files digested and compared with the manifest,
//! and all of it stored.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::{Buf, Bytes};

use super::BaseBackupError as Error;
use super::fetched::Fetched;
use super::place::{Opened, Place, Sink, cannot_write};
use crate::codec::{Method, reader};
use crate::feed::{Fed, Feed, feed};
use crate::image::{
    ArchivePass, BackupLabel, Compared, Comparison, ControlFile, Listed, Manifest, ManifestAlgorithm, ManifestHead,
    MemberKind, MemberPath, TarEdit, TarEnd, TarEvent,
};
use crate::spill::{Scratch, Spool};

/// Decoded bytes that are looked at together.
const DECODED: usize = 256 << 10;
/// The files of the copy that are looked into are no larger.
const MAX_KEPT: usize = 64 << 10;

const LABEL: &[u8] = b"backup_label";
const CONTROL: &[u8] = b"global/pg_control";

/// A piece of the stream for the thread.
#[derive(Debug)]
pub(super) enum Piece {
    /// An archive begins: of a tablespace, or of the data directory.
    Archive(Option<u32>),
    Data(Bytes),
    ArchiveEnd,
    Manifest,
    ManifestData(Bytes),
    ManifestEnd,
}

/// What is asked of the thread.
pub(super) struct Task {
    pub(super) place: Place,
    /// What the server compresses with.
    pub(super) packed: Option<Method>,
    /// The checksums to compare by; `None` if nothing is to be compared.
    pub(super) algorithm: Option<ManifestAlgorithm>,
    /// Whether a manifest comes.
    pub(super) manifest: bool,
    /// Checks the WAL, if it comes with the data directory.
    pub(super) fetched: Option<Fetched>,
}

/// The file that is being written, for whoever shows it.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown(Arc<Mutex<Option<PathBuf>>>);

impl Shown {
    pub(super) fn set(&self, path: PathBuf) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(path);
    }

    pub(super) fn get(&self) -> Option<PathBuf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The thread, and the way to it.
pub(super) struct Storing {
    pieces: Feed<Piece>,
    thread: JoinHandle<(Place, Result<Stored, Error>)>,
    pub(super) shown: Shown,
}

/// All was stored, and what could be compared was found equal.
pub(super) struct Stored {
    /// What it says besides the files.
    pub(super) manifest: Option<ManifestHead>,
    pub(super) compared: Option<Compared>,
    /// Unless nothing was looked into.
    pub(super) inside: Option<(BackupLabel, ControlFile)>,
    /// The WAL that came with it, unless nothing was looked into.
    pub(super) fetched: Option<Fetched>,
}

impl Storing {
    pub(super) fn new(task: Task) -> Result<Self, Error> {
        let (pieces, mut queue) = feed();
        let shown = Shown::default();
        let show = shown.clone();
        let work = move || {
            let Task { mut place, packed, algorithm, manifest, fetched } = task;
            let scratch = place.scratch();
            let work = Work {
                packed,
                algorithm,
                manifest_comes: manifest,
                shown: show,
                comparison: Comparison::new(scratch.clone()),
                kept: Kept::default(),
                fetched,
                looked: false,
                skipped: false,
                manifest: None,
                scratch,
            };
            let stored = work.run(&mut queue, &mut place);
            (place, stored)
        };
        let thread = std::thread::Builder::new().name("store".into()).spawn(work).map_err(Error::Thread)?;
        Ok(Self { pieces, thread, shown })
    }

    /// Hands over a piece; `false` if the thread has failed, and [`Storing::finish`] says why.
    pub(super) async fn put(&mut self, piece: Piece) -> bool {
        let bytes = match &piece {
            Piece::Data(bytes) | Piece::ManifestData(bytes) => bytes.len(),
            Piece::Archive(_) | Piece::ArchiveEnd | Piece::Manifest | Piece::ManifestEnd => 0,
        };
        self.pieces.put(piece, bytes).await
    }

    /// Lets the thread have what has come so far; `false` if it has failed, also when nothing has.
    pub(super) async fn hand_over(&mut self) -> bool {
        self.pieces.hand_over().await
    }

    /// Waits until all that was handed over is stored. Gives back the place in any case but that of a panic.
    pub(super) async fn finish(mut self) -> (Option<Place>, Result<Stored, Error>) {
        let _ended = self.pieces.hand_over().await;
        drop(self.pieces);
        let thread = self.thread;
        match tokio::task::spawn_blocking(move || thread.join()).await {
            Ok(Ok((place, stored))) => (Some(place), stored),
            _ => (None, Err(Error::Thread(io::Error::other("it ended unexpectedly")))),
        }
    }
}

/// The state of the pass.
struct Work {
    packed: Option<Method>,
    algorithm: Option<ManifestAlgorithm>,
    manifest_comes: bool,
    shown: Shown,
    comparison: Comparison,
    kept: Kept,
    fetched: Option<Fetched>,
    /// Whether archives were looked into.
    looked: bool,
    /// Whether some were not.
    skipped: bool,
    /// As the server sent it.
    manifest: Option<Spool>,
    scratch: Scratch,
}

/// Files of the data directory that are looked into.
#[derive(Default)]
struct Kept {
    label: Option<Vec<u8>>,
    control: Option<Vec<u8>>,
    /// One that is coming; whether it is `pg_control`.
    open: Option<(bool, Vec<u8>)>,
}

impl Kept {
    fn take(&mut self, event: &TarEvent<'_>) {
        match event {
            TarEvent::Member(member) => {
                let name = member.path.as_bytes();
                let wanted = matches!(member.kind, MemberKind::File { .. }) && (name == LABEL || name == CONTROL);
                self.open = wanted.then(|| (name == CONTROL, Vec::new()));
            }
            TarEvent::Data(data) => {
                if let Some((_, content)) = &mut self.open {
                    let room = MAX_KEPT.saturating_sub(content.len());
                    content.extend_from_slice(data.get(..room).unwrap_or(data));
                }
            }
            TarEvent::MemberEnd => match self.open.take() {
                Some((true, content)) => self.control = Some(content),
                Some((false, content)) => self.label = Some(content),
                None => {}
            },
        }
    }
}

/// One archive, decoded.
struct Looking<'a> {
    pass: ArchivePass,
    oid: Option<u32>,
    comparison: &'a mut Comparison,
    kept: &'a mut Kept,
    fetched: &'a mut Option<Fetched>,
    shown: &'a Shown,
    /// Where it goes, if not as it came.
    edited: Option<(&'a mut TarEdit, &'a mut Sink)>,
}

impl Looking<'_> {
    fn take(&mut self, bytes: &[u8], place: &mut Place) -> Result<(), Error> {
        let (oid, kept, shown, fetched) = (self.oid, &mut *self.kept, self.shown, &mut *self.fetched);
        self.pass.feed(bytes, self.comparison, &mut |event| {
            if oid.is_none() {
                kept.take(event);
                match (fetched.as_mut(), event) {
                    (Some(fetched), _) => fetched.take(event),
                    (None, TarEvent::Member(member)) => refuse_unasked(&member.path)?,
                    (None, _) => {}
                }
            }
            place.take(oid, event, shown)
        })?;
        match &mut self.edited {
            Some((edit, sink)) => edit_into(edit, sink, bytes),
            None => Ok(()),
        }
    }
}

/// WAL that was not asked for is in no manifest, and would be taken for what belongs to the backup.
fn refuse_unasked(path: &MemberPath) -> Result<(), Error> {
    let segment = path.as_bytes().strip_prefix(b"pg_wal/").filter(|name| name.len() == 24 && !name.contains(&b'/'));
    match segment {
        Some(_) => Err(Error::Contradiction(format!("it sent \"{path}\" without being asked for WAL"))),
        None => Ok(()),
    }
}

fn edit_into(edit: &mut TarEdit, sink: &mut Sink, bytes: &[u8]) -> Result<(), Error> {
    edit.feed(bytes, &mut |part| sink.write_all(part).map_err(cannot_write)).map_err(Error::edited)
}

impl Work {
    fn run(mut self, queue: &mut Fed<Piece>, place: &mut Place) -> Result<Stored, Error> {
        while let Some(piece) = queue.next() {
            match piece {
                Piece::Archive(oid) => self.archive(queue, place, oid)?,
                Piece::Manifest => self.manifest = Some(self.manifest(queue)?),
                _ => return Err(Error::Lacks("archive for its data")),
            }
        }
        self.finish(place)
    }

    fn archive(&mut self, queue: &mut Fed<Piece>, place: &mut Place, oid: Option<u32>) -> Result<(), Error> {
        let Opened { mut sink, mut edit } = place.open(oid, self.packed, &self.shown)?;
        let only_stored = self.packed.is_some() && self.algorithm.is_none() && sink.is_some() && edit.is_none();
        let (raw, edited) = match (&mut sink, &mut edit) {
            (Some(sink), Some(edit)) => (None, Some((edit, sink))),
            (raw, _) => (raw.as_mut(), None),
        };
        let mut pieces = Pieces { queue, current: Bytes::new(), raw };
        if only_stored {
            self.skipped = true;
            while pieces.next()?.is_some() {}
            return place.end(sink, edit, TarEnd::Terminated);
        }
        let mut looking = Looking {
            pass: ArchivePass::new(oid, self.algorithm.unwrap_or(ManifestAlgorithm::None), self.scratch.clone()),
            oid,
            comparison: &mut self.comparison,
            kept: &mut self.kept,
            fetched: &mut self.fetched,
            shown: &self.shown,
            edited,
        };
        match self.packed {
            None => {
                while let Some(bytes) = pieces.next()? {
                    looking.take(&bytes, place)?;
                }
            }
            Some(method) => {
                let mut buffer = vec![0; DECODED];
                let mut decoder = reader(method.codec(), pieces).map_err(cannot_decode)?;
                while let Some(bytes) = filled(&mut decoder, &mut buffer)? {
                    looking.take(bytes, place)?;
                }
            }
        }
        let end = looking.pass.finish::<Error>()?;
        self.looked = true;
        place.end(sink, edit, end)
    }

    /// The manifest whole, if it is not too long.
    fn manifest(&self, queue: &mut Fed<Piece>) -> Result<Spool, Error> {
        let (mut content, longest) = (Spool::new(self.scratch.clone()), self.longest_manifest() as u64);
        loop {
            match queue.next() {
                Some(Piece::ManifestData(bytes)) if content.size() + bytes.len() as u64 <= longest => {
                    content.put(&bytes)?;
                }
                Some(Piece::ManifestData(_)) => return Err(Error::Contradiction("its manifest has no end".into())),
                Some(Piece::ManifestEnd) => return Ok(content),
                _ => return Err(Error::Lacks("end of the manifest")),
            }
        }
    }

    /// What was not looked into cannot tell.
    fn longest_manifest(&self) -> usize {
        if self.skipped { Manifest::MAX_BYTES } else { self.comparison.longest_manifest() }
    }

    fn finish(self, place: &mut Place) -> Result<Stored, Error> {
        if self.manifest.is_none() && self.manifest_comes {
            return Err(Error::Lacks("manifest"));
        }
        let (mut compared, mut head) = (None, None);
        if let Some(manifest) = &self.manifest {
            let listed = Listed::read(&mut manifest.reader(), manifest.size(), self.scratch)?;
            head = Some(listed.head().clone());
            if self.algorithm.is_some() {
                compared = Some(self.comparison.check(listed)?);
            }
        }
        let inside = if self.looked {
            let label = BackupLabel::parse(&self.kept.label.ok_or(Error::Lacks("backup_label"))?)?;
            Some((label, ControlFile::parse(&self.kept.control.ok_or(Error::Lacks("pg_control"))?)?))
        } else {
            None
        };
        place.close(self.manifest.as_ref())?;
        let fetched = self.fetched.filter(|_| self.looked);
        Ok(Stored { manifest: head, compared, inside, fetched })
    }
}

/// The bytes of one archive as they come, which may be stored on the way.
struct Pieces<'a> {
    queue: &'a mut Fed<Piece>,
    current: Bytes,
    raw: Option<&'a mut Sink>,
}

impl Pieces<'_> {
    /// The next piece, never empty; `None` at the archive's end.
    fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.queue.next() {
                Some(Piece::Data(bytes)) if bytes.is_empty() => {}
                Some(Piece::Data(bytes)) => {
                    if let Some(sink) = &mut self.raw {
                        sink.write_all(&bytes).map_err(cannot_write)?;
                    }
                    return Ok(Some(bytes));
                }
                Some(Piece::ArchiveEnd) => return Ok(None),
                _ => return Err(Error::Lacks("end of an archive")),
            }
        }
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() {
            match self.next().map_err(io::Error::other)? {
                Some(bytes) => self.current = bytes,
                None => return Ok(0),
            }
        }
        let count = into.len().min(self.current.len());
        self.current.split_to(count).copy_to_slice(into.get_mut(..count).unwrap_or_default());
        Ok(count)
    }
}

/// What was decoded next; `None` at the end.
fn filled<'b>(decoder: &mut impl Read, buffer: &'b mut [u8]) -> Result<Option<&'b [u8]>, Error> {
    let count = decoder.read(buffer).map_err(cannot_decode)?;
    Ok(buffer.get(..count).filter(|bytes| !bytes.is_empty()))
}

/// An error of ours is inside the one that [`Read`] has.
fn cannot_decode(e: io::Error) -> Error {
    e.downcast::<Error>().unwrap_or_else(Error::Decode)
}
