//! Reading segments, in whatever form they are stored, and walking the chain through them.

// What comes from outside never ends the program: no read beyond the end, no number that loses bits or overflows.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unwrap_used
    )
)]

use std::io::{self, Read};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::{Archive, ArchiveError, MAX_HISTORY};
use crate::codec::{self, Codec, DecodeError};
use crate::cursor::fill;
use crate::disk::{Access, AlignedBuf, DiskError, File, Synced, Trouble};
use crate::wal::{Broken, Chain, History, HistoryFile, Lsn, Record, Segment, TimelineId};

/// How much is read at a time.
const CHUNK: usize = 256 << 10;

/// What a segment's file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Form {
    /// How its bytes are stored.
    pub codec: Codec,
    /// Whether its name ends in `.partial`.
    pub partial: bool,
}

/// A segment's bytes from its beginning on.
pub struct SegmentReader {
    segment: Segment,
    form: Form,
    path: PathBuf,
    source: Source,
    buffer: AlignedBuf,
    filled: Range<usize>,
    /// Offset of the next byte to be read into the buffer.
    next: u64,
    halt: Option<CancellationToken>,
}

enum Source {
    Plain(Box<dyn File>),
    Decoded {
        decoder: Box<dyn Read + Send>,
        file: Shared,
    },
    /// A partial that does not decode any further.
    Cut(Shared),
}

/// Why a walk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// It came to where it was to go.
    Reached,
    /// There is no file for this segment.
    Missing(Segment),
    /// The file ends before the segment does.
    Short {
        /// Which segment.
        segment: Segment,
        /// What the file is.
        form: Form,
        /// How many bytes of the segment it holds.
        bytes: u64,
    },
    /// The chain does not go on: damage, or in a partial the end of what was received.
    Invalid {
        /// Which segment.
        segment: Segment,
        /// What the file is.
        form: Form,
        /// Where and why.
        broken: Broken,
    },
}

impl SegmentReader {
    /// Which segment it is.
    pub const fn segment(&self) -> Segment {
        self.segment
    }

    /// What the file is.
    pub const fn form(&self) -> Form {
        self.form
    }

    /// The file.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Whether it is read past the page cache.
    pub(super) fn is_direct(&self) -> bool {
        matches!(&self.source, Source::Plain(file) if file.alignment() > 1)
    }

    /// Makes the file durable, through the handle that has been read: its name may change or go
    /// meanwhile.
    ///
    /// # Errors
    /// When the sync fails.
    pub(super) fn sync(self) -> Result<Synced, ArchiveError> {
        let file = match self.source {
            Source::Plain(file) => file,
            Source::Decoded { file, .. } | Source::Cut(file) => {
                file.take().ok_or_else(|| DiskError::new("sync", &self.path, io::ErrorKind::NotFound.into()))?
            }
        };
        Ok(file.sync()?.1)
    }

    /// The bytes that have been read ahead, or more if there are none; empty at the file's end.
    ///
    /// # Errors
    /// When the file cannot be read or does not decode.
    pub fn fill(&mut self) -> Result<&[u8], ArchiveError> {
        if self.filled.is_empty() {
            if self.halt.as_ref().is_some_and(CancellationToken::is_cancelled) {
                return Err(ArchiveError::Halted);
            }
            let read = match &mut self.source {
                // A read that did not fill its last block met the end; direct I/O takes no offset there.
                Source::Plain(file) if !self.next.is_multiple_of(file.alignment() as u64) => 0,
                Source::Plain(file) => file.read_at(self.next, &mut self.buffer)?,
                Source::Cut(_) => 0,
                Source::Decoded { decoder, file } => match read_full(decoder, &mut self.buffer) {
                    (read, None) => read,
                    // A partial's last frame may lack its end: what decodes before that counts.
                    (read, Some(source)) if self.form.partial && is_about_data(&source) => {
                        let file = file.clone();
                        let at = self.next.saturating_add(read as u64);
                        let more = up_to_the_fault(self.form.codec, &file, at);
                        let more = more.map_err(|source| ArchiveError::Decode { path: self.path.clone(), source })?;
                        let n = fill(&mut self.buffer, read, &more);
                        self.source = Source::Cut(file);
                        read.saturating_add(n)
                    }
                    (_, Some(source)) => return Err(ArchiveError::Decode { path: self.path.clone(), source }),
                },
            };
            self.next = self.next.saturating_add(read as u64);
            self.filled = 0..read;
        }
        Ok(self.buffer.get(self.filled.clone()).unwrap_or_default())
    }

    /// A compressed file that holds a whole segment must also end where that does: its checksum comes
    /// last, and stock programs refuse one with something behind it.
    fn check_end(&mut self) -> Result<(), ArchiveError> {
        if self.form.partial || !matches!(self.source, Source::Decoded { .. }) || self.fill()?.is_empty() {
            return Ok(());
        }
        let source = io::Error::other(format!("it holds more than {} bytes", self.segment.size().bytes()));
        Err(ArchiveError::Decode { path: self.path.clone(), source })
    }

    /// Passes over the first `n` of the bytes that [`SegmentReader::fill`] gave.
    pub fn consume(&mut self, n: usize) {
        self.filled.start = self.filled.start.saturating_add(n).min(self.filled.end);
    }

    /// Passes over bytes up to `offset` from the segment's beginning; stops at the file's end.
    ///
    /// # Errors
    /// As [`SegmentReader::fill`].
    pub fn skip_to(&mut self, offset: u64) -> Result<(), ArchiveError> {
        if let Source::Plain(file) = &self.source
            && self.filled.is_empty()
            && self.next == 0
        {
            let unit = file.alignment() as u64;
            self.next = offset.checked_rem(unit).map_or(0, |over| offset.saturating_sub(over));
        }
        while self.offset() < offset {
            let ahead = usize::try_from(offset.saturating_sub(self.offset())).unwrap_or(usize::MAX);
            let n = self.fill()?.len().min(ahead);
            if n == 0 {
                return Ok(());
            }
            self.consume(n);
        }
        Ok(())
    }

    /// Offset of the next byte that [`SegmentReader::fill`] gives.
    pub const fn offset(&self) -> u64 {
        self.next.saturating_sub(self.filled.end.saturating_sub(self.filled.start) as u64)
    }
}

/// Reads until the buffer is full or the stream ends, or fails.
fn read_full(from: &mut impl Read, into: &mut [u8]) -> (usize, Option<io::Error>) {
    let mut done = 0;
    while let Some(room) = into.get_mut(done..).filter(|room| !room.is_empty()) {
        match from.read(room) {
            Ok(0) => break,
            Ok(n) => done = done.saturating_add(n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return (done, Some(e)),
        }
    }
    (done, None)
}

/// What decodes before a fault, from `offset` on. A decoder that meets a fault does not say what it has
/// decoded in the same call; one that is given single bytes has given out all that came before.
fn up_to_the_fault(codec: Codec, file: &Shared, offset: u64) -> io::Result<Vec<u8>> {
    // The fault lies in what was given last.
    let crawl = file.lock().given.saturating_sub(CHUNK as u64);
    let mut more = Vec::new();
    let decoded = codec::reader(codec, Sequential::new(file.clone(), crawl)).and_then(|mut decoder| {
        io::copy(&mut Read::by_ref(&mut decoder).take(offset), &mut io::sink())?;
        // All that is behind it fitted into a buffer.
        decoder.take(CHUNK as u64).read_to_end(&mut more)
    });
    match decoded {
        Err(e) if !is_about_data(&e) => Err(e),
        _ => Ok(more),
    }
}

/// Whether the file could be read, and it is its content that is wrong.
pub(super) fn is_about_data(e: &io::Error) -> bool {
    e.get_ref().is_some_and(|inner| inner.is::<DecodeError>())
}

/// A file that a decoder reads, and that is synced when that is done.
#[derive(Clone)]
struct Shared(Arc<Mutex<Held>>);

struct Held {
    file: Option<Box<dyn File>>,
    /// Bytes that the decoder has been given.
    given: u64,
}

impl Shared {
    fn new(file: Box<dyn File>) -> Self {
        Self(Arc::new(Mutex::new(Held { file: Some(file), given: 0 })))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Box<dyn File>> {
        self.lock().file.take()
    }
}

/// A file as a stream, for the decoders.
struct Sequential {
    file: Shared,
    at: u64,
    /// Aligned, for a file that may be read past the page cache.
    buffer: AlignedBuf,
    filled: Range<usize>,
    given: u64,
    /// From here on single bytes are given.
    crawl: u64,
}

impl Sequential {
    fn new(file: Shared, crawl: u64) -> Self {
        Self { file, at: 0, buffer: AlignedBuf::zeroed(CHUNK), filled: 0..0, given: 0, crawl }
    }

    fn refill(&mut self) -> io::Result<()> {
        let held = self.file.lock();
        let file = held.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let at_end = !self.at.is_multiple_of(file.alignment() as u64);
        let read = if at_end { 0 } else { file.read_at(self.at, &mut self.buffer).map_err(io::Error::other)? };
        self.at = self.at.saturating_add(read as u64);
        self.filled = 0..read;
        Ok(())
    }
}

impl Read for Sequential {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.filled.is_empty() {
            self.refill()?;
        }
        let most = usize::try_from(self.crawl.saturating_sub(self.given)).unwrap_or(usize::MAX).max(1);
        let most = most.min(into.len());
        let into = into.get_mut(..most).unwrap_or_default();
        let n = self.buffer.get(self.filled.clone()).unwrap_or_default().read(into)?;
        self.filled.start = self.filled.start.saturating_add(n);
        self.given = self.given.saturating_add(n as u64);
        self.file.lock().given = self.given;
        Ok(n)
    }
}

/// Decodes a whole file.
pub(super) fn decoder(codec: Codec, file: Box<dyn File>) -> io::Result<Box<dyn Read + Send>> {
    codec::reader(codec, Sequential::new(Shared::new(file), u64::MAX))
}

impl Archive {
    /// Opens a segment in the first of its forms: the complete plain file, a complete compressed
    /// one, a partial. `None` if there is none, which was asked twice, for a file may be renamed or
    /// compressed between two looks.
    ///
    /// # Errors
    /// When whether it is there cannot be found out, or it cannot be opened.
    pub fn open_segment(&self, segment: Segment, access: Access) -> Result<Option<SegmentReader>, ArchiveError> {
        for _look in 0..2 {
            for partial in [false, true] {
                for codec in Codec::ALL {
                    if let Some(reader) = self.open_form(segment, Form { codec, partial }, access)? {
                        return Ok(Some(reader));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Opens a segment's file in one form; `None` if there is none. A partial of which nothing decodes
    /// is one without bytes.
    ///
    /// # Errors
    /// As [`Archive::open_segment`].
    pub(super) fn open_form(
        &self,
        segment: Segment,
        form: Form,
        access: Access,
    ) -> Result<Option<SegmentReader>, ArchiveError> {
        let path = self.path_of(segment, form);
        let file = match self.disk.open(&path, access) {
            Ok(file) => file,
            Err(e) if e.trouble() == Trouble::Missing => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let source = if form.codec == Codec::Plain {
            Source::Plain(file)
        } else {
            let file = Shared::new(file);
            match codec::reader(form.codec, Sequential::new(file.clone(), u64::MAX)) {
                Ok(decoder) => Source::Decoded { decoder, file },
                Err(e) if form.partial && is_about_data(&e) => Source::Cut(file),
                Err(source) => return Err(ArchiveError::Decode { path, source }),
            }
        };
        let buffer = AlignedBuf::zeroed(CHUNK);
        Ok(Some(SegmentReader { segment, form, path, source, buffer, filled: 0..0, next: 0, halt: self.halt.clone() }))
    }

    pub(super) fn path_of(&self, segment: Segment, form: Form) -> PathBuf {
        let suffix = if form.partial { ".partial" } else { "" };
        self.dir.join(format!("{segment}{}{suffix}", form.codec.suffix()))
    }

    /// Feeds the chain from where it stands up to `until` (exclusive), from the files that hold
    /// the WAL of `route`, past the page cache where they can be read so.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn walk(
        &self,
        route: &History,
        chain: &mut Chain,
        until: Lsn,
        seen: &mut impl FnMut(&Record<'_>),
    ) -> Result<Stopped, ArchiveError> {
        while chain.at() < until {
            let segment = route.segment_at(chain.at(), self.size);
            let Some(mut reader) = self.open_segment(segment, Access::ReadDirect)? else {
                return Ok(Stopped::Missing(segment));
            };
            let stopped = walk_segment(&mut reader, chain, until, seen)?;
            if stopped != Stopped::Reached {
                return Ok(stopped);
            }
        }
        Ok(Stopped::Reached)
    }

    pub(super) fn read_history(&self, tli: TimelineId) -> Result<Option<(PathBuf, Vec<u8>)>, ArchiveError> {
        for codec in Codec::ALL {
            let path = self.dir.join(format!("{}{}", HistoryFile(tli).name(), codec.suffix()));
            let file = match self.disk.open(&path, Access::Read) {
                Ok(file) => file,
                Err(e) if e.trouble() == Trouble::Missing => continue,
                Err(e) => return Err(e.into()),
            };
            let mut content = Vec::new();
            let read = decoder(codec, file).and_then(|decoder| decoder.take(MAX_HISTORY + 1).read_to_end(&mut content));
            read.map_err(|source| ArchiveError::Decode { path: path.clone(), source })?;
            return Ok(Some((path, content)));
        }
        Ok(None)
    }
}

/// Feeds the chain from one segment's file, up to the segment's end or `until`.
pub(super) fn walk_segment(
    reader: &mut SegmentReader,
    chain: &mut Chain,
    until: Lsn,
    seen: &mut impl FnMut(&Record<'_>),
) -> Result<Stopped, ArchiveError> {
    let (segment, form) = (reader.segment, reader.form);
    let end = segment.end().min(until);
    reader.skip_to(chain.at().saturating_sub(segment.start()))?;
    while chain.at() < end {
        let ahead = usize::try_from(end.saturating_sub(chain.at())).unwrap_or(usize::MAX);
        let bytes = reader.fill()?;
        let n = bytes.len().min(ahead);
        if n == 0 {
            return Ok(Stopped::Short { segment, form, bytes: reader.offset() });
        }
        if let Err(broken) = chain.feed(bytes.get(..n).unwrap_or_default(), seen) {
            return Ok(Stopped::Invalid { segment, form, broken });
        }
        reader.consume(n);
    }
    if end == segment.end() {
        reader.check_end()?;
    }
    Ok(Stopped::Reached)
}
