//! Decoding ahead of whoever reads: one thread reads the file, several decode zstd frames, which
//! decode alone (`frames.rs`), and what they hold is given out in its order.
//!
//! A frame that does not say how long it is, or is longer than we make them, and every other codec,
//! is decoded by the thread that reads, piece by piece.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use zstd::bulk::Decompressor;

use super::read::{begins, wrong};
use super::source::Source;
use super::{Codec, Fault, ZSTD_FRAME, reader};
use crate::cursor::Cursor;

/// Frames that hold more are decoded piece by piece.
const MAX_FRAME: usize = 2 * ZSTD_FRAME.get();
/// Bytes of a piece of what is not decoded frame by frame.
const PIECE: usize = 1 << 20;
/// Threads that decode. Each holds one frame as it was read and one decoded.
const MAX_THREADS: usize = 4;

/// Magic, descriptor, window, dictionary and content size at their longest.
const MAX_HEADER: usize = 18;
const BLOCK_HEADER: usize = 3;
/// No block holds or is more (`ZSTD_BLOCKSIZE_MAX`).
const MAX_BLOCK: usize = 128 << 10;

/// A file that is read and decoded ahead.
#[derive(Debug)]
pub struct Ahead<R> {
    threads: Vec<Decoder>,
    /// Pieces taken so far.
    taken: usize,
    spares: Spares,
    feeder: Option<JoinHandle<(R, io::Result<()>)>>,
    from: Option<R>,
    failed: bool,
}

/// A thread that decodes what it is given; it ends when there is no more.
#[derive(Debug)]
struct Decoder {
    done: Receiver<io::Result<Vec<u8>>>,
    thread: JoinHandle<()>,
}

/// Memory that is used again. It is taken when it is filled, and not before, so that there is no more of it than
/// pieces that are being decoded, or wait, or are in use.
#[derive(Clone, Debug, Default)]
struct Spares(Arc<Mutex<Vec<Vec<u8>>>>);

impl Spares {
    /// Empty, with room for so much.
    fn take(&self, room: usize) -> Vec<u8> {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        memory.clear();
        memory.reserve_exact(room);
        memory
    }

    fn put(&self, memory: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
    }
}

enum Job {
    /// A frame, and how much it holds.
    Frame(Vec<u8>, usize),
    /// What needs no decoding.
    Ready(Vec<u8>),
}

impl<R: Read + Send + 'static> Ahead<R> {
    /// Begins to read a whole file of one or more frames, or of plain bytes.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(codec: Codec, from: R) -> io::Result<Self> {
        let spares = Spares::default();
        let (mut threads, mut queues) = (Vec::new(), Vec::new());
        for _ in 0..thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS) {
            let (jobs, queue) = sync_channel(0);
            threads.push(Decoder::start(codec, queue, spares.clone())?);
            queues.push(jobs);
        }
        let feeder = Feeder { codec, queues, given: 0, spares: spares.clone() };
        let feeder = thread::Builder::new().name("read".to_owned()).spawn(move || feeder.run(from))?;
        Ok(Self { threads, taken: 0, spares, feeder: Some(feeder), from: None, failed: false })
    }

    /// The next bytes; `None` after the last. An error that carries a [`super::DecodeError`] is about
    /// the data, any other one is an error of the file.
    ///
    /// # Errors
    /// When they cannot be read or decoded. What was given before is right, and nothing follows.
    pub fn piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        if std::mem::replace(&mut self.failed, true) {
            return Err(io::Error::other("reading failed before"));
        }
        let turn = self.taken.checked_rem(self.threads.len());
        let received = turn.and_then(|turn| self.threads.get(turn)).and_then(|next| next.done.recv().ok());
        let piece = match received {
            Some(piece) => Some(piece?),
            // The first that has no more, in their order, is where the file ends.
            None => self.end_of_file().map(|()| None)?,
        };
        self.taken = self.taken.saturating_add(1);
        self.failed = false;
        Ok(piece)
    }

    fn end_of_file(&mut self) -> io::Result<()> {
        match self.feeder.take().map(JoinHandle::join) {
            Some(Ok((from, read))) => read.map(|()| self.from = Some(from)),
            Some(Err(_)) => Err(io::Error::other("a thread that reads stopped")),
            // Said before.
            None => Ok(()),
        }
    }

    /// Gives the memory of a piece back.
    pub fn recycle(&self, piece: Vec<u8>) {
        self.spares.put(piece);
    }

    /// What was read from, if it has been read to its end.
    pub fn finish(mut self) -> Option<R> {
        self.from.take()
    }
}

impl<R> Drop for Ahead<R> {
    fn drop(&mut self) {
        // All of them let go first, for one waits for another by way of the feeder.
        let threads: Vec<_> = self.threads.drain(..).map(|decoder| decoder.thread).collect();
        // They have told what went wrong.
        for thread in threads {
            let _ = thread.join();
        }
        let _ = self.feeder.take().map(JoinHandle::join);
    }
}

impl Decoder {
    fn start(codec: Codec, queue: Receiver<Job>, spares: Spares) -> io::Result<Self> {
        let (results, done) = sync_channel(0);
        let thread = thread::Builder::new().name("decode".to_owned()).spawn(move || {
            for job in queue {
                let piece = match job {
                    Job::Ready(piece) => Ok(piece),
                    Job::Frame(frame, len) => decode(codec, &frame, len, spares.take(len)),
                };
                let failed = piece.is_err();
                if results.send(piece).is_err() || failed {
                    break;
                }
            }
        })?;
        Ok(Self { done, thread })
    }
}

fn decode(codec: Codec, frame: &[u8], len: usize, mut memory: Vec<u8>) -> io::Result<Vec<u8>> {
    let damaged = |why: String| wrong(codec, Fault::Damaged(why));
    let written = Decompressor::new()?.decompress_to_buffer(frame, &mut memory);
    match written {
        Ok(written) if written == len => Ok(memory),
        Ok(written) => Err(damaged(format!("{written} bytes in a frame of {len}"))),
        Err(e) => Err(damaged(e.to_string())),
    }
}

/// Reads the file, and hands out what is to be decoded in turn.
struct Feeder {
    codec: Codec,
    queues: Vec<SyncSender<Job>>,
    given: usize,
    spares: Spares,
}

/// Nobody takes what is read.
struct Unwanted;

impl Feeder {
    fn run<R: Read + Send>(mut self, mut from: R) -> (R, io::Result<()>) {
        let read = self.feed(&mut from);
        (from, read.unwrap_or_else(|Unwanted| Err(io::Error::other("reading was broken off"))))
    }

    fn feed<R: Read + Send>(&mut self, from: &mut R) -> Result<io::Result<()>, Unwanted> {
        if self.codec != Codec::Zstd {
            return self.stream(reader(self.codec, from));
        }
        let mut source = Source::new(from);
        match begins(self.codec, &mut source, Fault::Foreign) {
            Ok(true) => {}
            Ok(false) => return Ok(Err(wrong(self.codec, Fault::Truncated))),
            Err(e) => return Ok(Err(e)),
        }
        loop {
            match next_frame(&mut source) {
                Ok(Next::Frame(frame, len)) => self.give(Job::Frame(frame, len))?,
                Ok(Next::Other) => return self.stream(reader(self.codec, source)),
                Err(e) => return Ok(Err(e)),
            }
            match begins(self.codec, &mut source, Fault::Trailing) {
                Ok(true) => {}
                Ok(false) => return Ok(Ok(())),
                Err(e) => return Ok(Err(e)),
            }
        }
    }

    /// Decodes the rest here.
    fn stream(&mut self, from: io::Result<Box<dyn Read + Send + '_>>) -> Result<io::Result<()>, Unwanted> {
        let mut from = match from {
            Ok(from) => from,
            Err(e) => return Ok(Err(e)),
        };
        loop {
            let mut piece = self.spares.take(PIECE);
            match from.by_ref().take(PIECE as u64).read_to_end(&mut piece) {
                Ok(0) => return Ok(Ok(())),
                Ok(_) => self.give(Job::Ready(piece))?,
                Err(e) => {
                    // What came before it is right.
                    self.give(Job::Ready(piece))?;
                    return Ok(Err(e));
                }
            }
        }
    }

    fn give(&mut self, job: Job) -> Result<(), Unwanted> {
        let turn = self.given.checked_rem(self.queues.len());
        let queue = turn.and_then(|turn| self.queues.get(turn)).ok_or(Unwanted)?;
        self.given = self.given.saturating_add(1);
        queue.send(job).map_err(|_| Unwanted)
    }
}

enum Next {
    /// A whole frame, and how much it holds.
    Frame(Vec<u8>, usize),
    /// One that is to be decoded piece by piece. Nothing of it has been consumed.
    Other,
}

/// Takes a frame off, which begins here, without decoding it (RFC 8878, 3.1.1).
fn next_frame<R: Read>(source: &mut Source<R>) -> io::Result<Next> {
    let Some((header, len, checksum)) = frame_header(source.peek(MAX_HEADER)?) else { return Ok(Next::Other) };
    let mut frame = Vec::with_capacity(len / 2);
    take(source, header, &mut frame)?;
    let most = len.saturating_add(len / 2).saturating_add(MAX_BLOCK);
    loop {
        let Some(&[a, b, c]) = Cursor::new(source.peek(BLOCK_HEADER)?).array() else { return Err(truncated()) };
        let block = u32::from_le_bytes([a, b, c, 0]);
        let (last, kind, size) = (block & 1 == 1, block >> 1 & 3, (block >> 3) as usize);
        // A run of one byte is one byte here.
        let size = if kind == 1 { 1 } else { size };
        if kind == 3 || size > MAX_BLOCK || frame.len() > most {
            return Err(wrong(Codec::Zstd, Fault::Damaged("a block is too long".to_owned())));
        }
        take(source, BLOCK_HEADER.saturating_add(size), &mut frame)?;
        if last {
            break;
        }
    }
    take(source, if checksum { 4 } else { 0 }, &mut frame)?;
    Ok(Next::Frame(frame, len))
}

/// Bytes of the header, what the frame holds, and whether it ends in a checksum; `None` unless it
/// is one that is decoded whole.
fn frame_header(bytes: &[u8]) -> Option<(usize, usize, bool)> {
    let mut cursor = Cursor::new(bytes);
    let is_frame = cursor.array()? == &[0x28, 0xB5, 0x2F, 0xFD];
    let descriptor = cursor.u8()?;
    let (single, dictionary) = (descriptor & 0x20 != 0, descriptor & 3 != 0);
    if !is_frame || dictionary {
        return None;
    }
    if !single {
        // How far back the frame refers; it is decoded into memory for all of it.
        cursor.u8()?;
    }
    let size = match descriptor >> 6 {
        0 if single => u64::from(cursor.u8()?),
        0 => return None,
        1 => u64::from(cursor.u16_le()?).checked_add(256)?,
        2 => u64::from(cursor.u32_le()?),
        _ => cursor.u64_le()?,
    };
    let size = usize::try_from(size).ok().filter(|size| *size <= MAX_FRAME)?;
    let header = bytes.len().checked_sub(cursor.rest().len())?;
    Some((header, size, descriptor & 4 != 0))
}

fn take<R: Read>(source: &mut Source<R>, count: usize, into: &mut Vec<u8>) -> io::Result<()> {
    let mut left = count;
    while left > 0 {
        let ready = source.fill_buf()?;
        let ready = ready.get(..left.min(ready.len())).unwrap_or_default();
        if ready.is_empty() {
            return Err(truncated());
        }
        into.extend_from_slice(ready);
        let used = ready.len();
        source.consume(used);
        left = left.saturating_sub(used);
    }
    Ok(())
}

fn truncated() -> io::Error {
    wrong(Codec::Zstd, Fault::Truncated)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::num::NonZeroUsize;

    use proptest::prelude::*;

    use super::super::{DecodeError, Frames, Packing};
    use super::*;

    fn packed(data: &[u8], frame: usize) -> Vec<u8> {
        let mut frames = Frames::new(Vec::new(), Packing::FAST, 0, NonZeroUsize::new(frame).unwrap()).unwrap();
        frames.write_all(data).unwrap();
        frames.finish().unwrap()
    }

    /// What comes, and the first error, of a frame or of the file.
    fn ahead(codec: Codec, bytes: Vec<u8>) -> (Vec<u8>, io::Result<()>) {
        let mut ahead = Ahead::new(codec, io::Cursor::new(bytes)).unwrap();
        let mut all = Vec::new();
        loop {
            match ahead.piece() {
                Ok(Some(piece)) => {
                    all.extend_from_slice(&piece);
                    ahead.recycle(piece);
                }
                Ok(None) => return (all, ahead.finish().map(drop).ok_or_else(|| io::Error::other("no end"))),
                Err(e) => return (all, Err(e)),
            }
        }
    }

    /// The same by the reader that is not ahead of anything.
    fn plainly(codec: Codec, bytes: &[u8]) -> (Vec<u8>, io::Result<()>) {
        let mut all = Vec::new();
        let read = reader(codec, bytes).and_then(|mut reader| reader.read_to_end(&mut all));
        (all, read.map(drop))
    }

    fn is_about_data(result: &io::Result<()>) -> bool {
        let inner = result.as_ref().err().and_then(|error| error.get_ref());
        inner.is_some_and(|inner| inner.is::<DecodeError>())
    }

    fn data(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * at % 251) as u8).collect()
    }

    #[test]
    fn frames_come_in_their_order() {
        for len in [0, 1, 4999, 5000, 5001, 100_000] {
            let data = data(len);
            let bytes = packed(&data, 5000);
            let mut first = Source::new(&bytes[..]);
            assert!(matches!(next_frame(&mut first), Ok(Next::Frame(_, held)) if held == len.min(5000)));
            let (all, read) = ahead(Codec::Zstd, bytes);
            read.unwrap();
            assert!(all == data, "{len}");
        }
    }

    #[test]
    fn what_others_write_is_read_too() {
        let data = data(3 << 20);
        // Of a stream the length is not known beforehand.
        let stream = zstd::encode_all(&data[..], 1).unwrap();
        assert!(matches!(next_frame(&mut Source::new(&stream[..])), Ok(Next::Other)));
        let skippable = [&[0x50, 0x2A, 0x4D, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &packed(&data, 1 << 20)].concat();
        for bytes in [stream.clone(), skippable, [packed(&data, 1 << 20), stream].concat()] {
            let (expected, read) = plainly(Codec::Zstd, &bytes);
            read.unwrap();
            let (all, read) = ahead(Codec::Zstd, bytes);
            read.unwrap();
            assert!(all == expected);
        }
        let (all, read) = ahead(Codec::Plain, data.clone());
        read.unwrap();
        assert!(all == data);
    }

    /// A frame that claims to be huge takes no memory.
    #[test]
    fn p6_a_claim_is_checked_before_memory_is_taken() {
        let mut header = vec![0x28, 0xB5, 0x2F, 0xFD, 0xE4];
        header.extend_from_slice(&u64::MAX.to_le_bytes());
        header.resize(64, 0);
        assert_eq!(frame_header(&header), None);
        header[5..13].copy_from_slice(&(MAX_FRAME as u64 + 1).to_le_bytes());
        assert_eq!(frame_header(&header), None);
        header[5..13].copy_from_slice(&(MAX_FRAME as u64).to_le_bytes());
        assert_eq!(frame_header(&header), Some((13, MAX_FRAME, true)));
        assert!(ahead(Codec::Zstd, header).1.is_err());
        // Blocks without end, of a frame that holds little.
        let mut endless = vec![0x28, 0xB5, 0x2F, 0xFD, 0x20, 1];
        let block = (MAX_BLOCK as u32) << 3;
        for _ in 0..9 {
            endless.extend_from_slice(&block.to_le_bytes()[..3]);
            endless.resize(endless.len() + MAX_BLOCK, 0);
        }
        let error = next_frame(&mut Source::new(&endless[..])).err().unwrap();
        assert!(error.to_string().contains("too long"), "{error}");
    }

    /// Dropped in the middle, it waits for no one.
    #[test]
    fn it_can_be_left() {
        let bytes = packed(&data(100_000), 1000);
        for taken in [0, 1, 10] {
            let mut ahead = Ahead::new(Codec::Zstd, io::Cursor::new(bytes.clone())).unwrap();
            (0..taken).for_each(|_| drop(ahead.piece().unwrap().unwrap()));
            drop(ahead);
        }
    }

    #[test]
    fn an_error_of_the_file_is_none_of_the_data() {
        struct Fails(usize);
        impl Read for Fails {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(1).ok_or_else(|| io::Error::other("the disk"))?;
                let bytes = packed(&[7; 1000], 1000);
                into[..bytes.len()].copy_from_slice(&bytes);
                Ok(bytes.len())
            }
        }
        let mut ahead = Ahead::new(Codec::Zstd, Fails(3)).unwrap();
        let errors: Vec<_> = (0..6).filter_map(|_| ahead.piece().err()).map(|error| error.to_string()).collect();
        assert_eq!(errors, ["the disk", "reading failed before", "reading failed before"]);
        assert!(ahead.finish().is_none());
    }

    proptest! {
        #[test]
        fn p6_damage_is_seen_as_it_is_by_a_reader(len in 0usize..20_000, at: prop::sample::Index, flip: u8, cut: bool) {
            let mut bytes = packed(&data(len), 3000);
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= flip }
            let (expected, wanted) = plainly(Codec::Zstd, &bytes);
            let (all, read) = ahead(Codec::Zstd, bytes);
            prop_assert_eq!(read.is_ok(), wanted.is_ok());
            prop_assert_eq!(is_about_data(&read), is_about_data(&wanted));
            if read.is_ok() {
                prop_assert!(all == expected);
            }
        }
    }
}
