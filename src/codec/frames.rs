//! Compressing on several threads: in frames that do not need each other.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use flate2::{Compress, Compression as GzipLevel, Crc, FlushCompress, Status};
use lz4::liblz4::BlockChecksum;
use lz4::{ContentChecksum, EncoderBuilder as Lz4Builder};
use zstd::bulk::Compressor;
use zstd::stream::raw::CParameter;

use super::{Method, Packing};

/// Uncompressed bytes of a frame that serve both ends: large enough to compress well, small enough
/// to share a file among many threads.
pub const ZSTD_FRAME: NonZeroUsize = NonZeroUsize::new(8 << 20).unwrap();

/// Frames a worker may hold besides the one it works on.
const QUEUE: usize = 1;

/// What a gzip file begins with: deflate, no name, no time, an unknown system.
const GZIP_HEADER: [u8; 10] = [0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 0xFF];
/// The empty block that ends a deflate stream.
const DEFLATE_END: [u8; 2] = [3, 0];

/// Compresses what is written in pieces of equal length, which do not need each other, so that several threads
/// can work on one file.
///
/// In zstd and lz4 a piece is a frame, which decodes alone, and in zstd says its length and ends in a checksum. One
/// after the other they are a file that the stock programs read. In gzip all pieces are one member, for its last bytes
/// tell its length to programs that ask for it; what was flushed decodes.
///
/// Nothing is complete before [`Frames::finish`]; dropping it leaves a cut file behind.
#[derive(Debug)]
pub struct Frames<W> {
    out: W,
    /// Uncompressed bytes of the frame being gathered, fewer than `frame`.
    gathered: Vec<u8>,
    frame: usize,
    engine: Engine,
    /// Of the whole file, in gzip.
    sum: Option<Crc>,
    /// Whether any frame was made: a file without one would be no file of its kind.
    begun: bool,
    /// A failed write leaves a hole, so none may follow.
    failed: bool,
}

impl<W: Write> Frames<W> {
    /// Compresses into `out` in frames of `frame` uncompressed bytes, the last one shorter.
    ///
    /// With `workers` threads up to four frames each are held in memory, half of them compressed;
    /// with none `write` itself compresses.
    ///
    /// # Errors
    /// When the encoder cannot be set up, or a thread cannot be started.
    pub fn new(out: W, packing: Packing, workers: u8, frame: NonZeroUsize) -> io::Result<Self> {
        let engine = match workers {
            0 => Engine::Inline(Press::new(packing)?),
            _ => Engine::Pool(Pool::new(packing, workers)?),
        };
        let sum = (packing.method() == Method::Gzip).then(Crc::new);
        Ok(Self { out, gathered: Vec::new(), frame: frame.get(), engine, sum, begun: false, failed: false })
    }

    /// Where it is written to.
    pub const fn out(&mut self) -> &mut W {
        &mut self.out
    }

    /// Ends the last frame, waits for all threads, flushes `out` and gives it back.
    ///
    /// # Errors
    /// When writing failed, now or before.
    pub fn finish(mut self) -> io::Result<W> {
        self.end()?;
        Ok(self.out)
    }

    /// The same, and what is written next begins another file, with the same threads and memory.
    ///
    /// # Errors
    /// When writing failed, now or before.
    pub fn end(&mut self) -> io::Result<()> {
        self.guarded(|frames| {
            if !frames.begun && frames.gathered.is_empty() {
                frames.end_frame()?;
            }
            frames.drain()?;
            if let Some(sum) = &mut frames.sum {
                frames.out.write_all(&DEFLATE_END)?;
                frames.out.write_all(&sum.sum().to_le_bytes())?;
                frames.out.write_all(&sum.amount().to_le_bytes())?;
                frames.out.flush()?;
                *sum = Crc::new();
            }
            frames.begun = false;
            Ok(())
        })
    }

    fn guarded<T>(&mut self, act: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        if self.failed {
            return Err(io::Error::other("writing compressed data failed before"));
        }
        self.failed = true;
        let done = act(self)?;
        self.failed = false;
        Ok(done)
    }

    fn gather(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.frame.saturating_sub(self.gathered.len()));
        if self.gathered.capacity() == 0 {
            self.gathered.reserve_exact(self.frame);
        }
        self.gathered.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        if self.gathered.len() == self.frame {
            self.end_frame()?;
        }
        Ok(taken)
    }

    fn end_frame(&mut self) -> io::Result<()> {
        if self.sum.is_some() && !self.begun {
            self.out.write_all(&GZIP_HEADER)?;
        }
        self.begun = true;
        let data = std::mem::take(&mut self.gathered);
        let done = match &mut self.engine {
            Engine::Inline(press) => Some(press.compress(data)?),
            Engine::Pool(pool) => pool.exchange(data)?,
        };
        match done {
            Some(done) => self.take_back(done),
            None => Ok(()),
        }
    }

    fn take_back(&mut self, done: Done) -> io::Result<()> {
        self.out.write_all(&done.frame)?;
        if let (Some(sum), Some(piece)) = (&mut self.sum, &done.sum) {
            sum.combine(piece);
        }
        if self.gathered.capacity() == 0 {
            self.gathered = done.spare;
        }
        Ok(())
    }

    fn drain(&mut self) -> io::Result<()> {
        if !self.gathered.is_empty() {
            self.end_frame()?;
        }
        while let Engine::Pool(pool) = &mut self.engine
            && let Some(done) = pool.oldest()?
        {
            self.take_back(done)?;
        }
        self.out.flush()
    }
}

impl<W: Write> Write for Frames<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.guarded(|frames| frames.gather(bytes))
    }

    /// Ends the frame here, so that all that was written reaches `out`. The file grows by it.
    fn flush(&mut self) -> io::Result<()> {
        self.guarded(Self::drain)
    }
}

enum Engine {
    Inline(Press),
    Pool(Pool),
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(_) => f.write_str("Inline"),
            Self::Pool(pool) => write!(f, "Pool of {}", pool.workers.len()),
        }
    }
}

/// A compressed frame, and the emptied memory of what went into it.
struct Done {
    frame: Vec<u8>,
    spare: Vec<u8>,
    /// Of what went into it, in gzip.
    sum: Option<Crc>,
}

/// What makes frames.
enum Press {
    Zstd(Compressor<'static>),
    Lz4(u32),
    Gzip(Compress),
}

impl Press {
    fn new(packing: Packing) -> io::Result<Self> {
        let level = packing.level();
        Ok(match packing.method() {
            Method::Zstd => {
                let mut compressor = Compressor::new(i32::from(level))?;
                compressor.set_parameter(CParameter::ChecksumFlag(true))?;
                compressor.set_parameter(CParameter::ContentSizeFlag(true))?;
                Self::Zstd(compressor)
            }
            Method::Lz4 => Self::Lz4(level.into()),
            Method::Gzip => Self::Gzip(Compress::new(GzipLevel::new(level.into()), false)),
        })
    }

    fn compress(&mut self, mut data: Vec<u8>) -> io::Result<Done> {
        let mut sum = None;
        let frame = match self {
            Self::Zstd(compressor) => compressor.compress(&data)?,
            Self::Lz4(level) => {
                let mut builder = Lz4Builder::new();
                // A checksum would take longer than the compression. Each WAL record has one of its own.
                builder
                    .level(*level)
                    .checksum(ContentChecksum::NoChecksum)
                    .block_checksum(BlockChecksum::NoBlockChecksum);
                let mut encoder = builder.build(Vec::with_capacity(data.len() / 4))?;
                encoder.write_all(&data)?;
                let (frame, ended) = encoder.finish();
                ended?;
                frame
            }
            Self::Gzip(deflate) => {
                sum.insert(Crc::new()).update(&data);
                blocks(deflate, &data)?
            }
        };
        data.clear();
        Ok(Done { frame, spare: data, sum })
    }
}

/// Deflate blocks that need nothing before them and end at a byte.
fn blocks(deflate: &mut Compress, data: &[u8]) -> io::Result<Vec<u8>> {
    deflate.reset();
    let mut blocks = Vec::with_capacity((data.len() / 4).saturating_add(1024));
    loop {
        let done = usize::try_from(deflate.total_in()).unwrap_or(usize::MAX);
        let left = data.get(done..).unwrap_or_default();
        let status = deflate.compress_vec(left, &mut blocks, FlushCompress::Sync).map_err(io::Error::other)?;
        // All is out when there was room for more of it.
        if deflate.total_in() == data.len() as u64 && blocks.len() < blocks.capacity() || status == Status::StreamEnd {
            return Ok(blocks);
        }
        blocks.reserve((data.len() / 4).saturating_add(1024));
    }
}

/// Threads that take frames in turn, so that the oldest is always known.
struct Pool {
    workers: Vec<Worker>,
    /// Frames handed out and taken back so far.
    given: usize,
    taken: usize,
}

struct Worker {
    jobs: SyncSender<Vec<u8>>,
    done: Receiver<io::Result<Done>>,
}

impl Pool {
    fn new(packing: Packing, workers: u8) -> io::Result<Self> {
        let workers = (0..workers).map(|_| Worker::start(packing)).collect::<io::Result<_>>()?;
        Ok(Self { workers, given: 0, taken: 0 })
    }

    /// Hands out a frame. When each worker has its share, it waits for the oldest and gives that.
    fn exchange(&mut self, data: Vec<u8>) -> io::Result<Option<Done>> {
        let full = self.given.saturating_sub(self.taken) >= self.workers.len().saturating_mul(QUEUE + 1);
        let done = if full { self.oldest()? } else { None };
        self.worker(self.given)?.jobs.send(data).map_err(|_| stopped())?;
        self.given = self.given.saturating_add(1);
        Ok(done)
    }

    /// Waits for the oldest frame; `None` if there is none.
    fn oldest(&mut self) -> io::Result<Option<Done>> {
        if self.taken == self.given {
            return Ok(None);
        }
        let done = self.worker(self.taken)?.done.recv().map_err(|_| stopped())??;
        self.taken = self.taken.saturating_add(1);
        Ok(Some(done))
    }

    fn worker(&self, turn: usize) -> io::Result<&Worker> {
        let turn = turn.checked_rem(self.workers.len());
        turn.and_then(|turn| self.workers.get(turn)).ok_or_else(stopped)
    }
}

impl Worker {
    /// A thread that ends when its queue is dropped.
    fn start(packing: Packing) -> io::Result<Self> {
        let mut press = Press::new(packing)?;
        let (jobs, queue) = sync_channel::<Vec<u8>>(QUEUE);
        let (results, done) = sync_channel(QUEUE + 1);
        thread::Builder::new().name("compress".to_owned()).spawn(move || {
            for data in queue {
                if results.send(press.compress(data)).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { jobs, done })
    }
}

fn stopped() -> io::Error {
    io::Error::other("a compression thread stopped")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;
    use zstd::zstd_safe::{find_frame_compressed_size, get_frame_content_size};

    use super::super::{Codec, reader};
    use super::*;

    fn frames(workers: u8, frame: usize) -> Frames<Vec<u8>> {
        frames_of(Packing::FAST, workers, frame)
    }

    fn frames_of(packing: Packing, workers: u8, frame: usize) -> Frames<Vec<u8>> {
        Frames::new(Vec::new(), packing, workers, NonZeroUsize::new(frame).unwrap()).unwrap()
    }

    fn packed(data: &[u8], workers: u8, frame: usize) -> Vec<u8> {
        let mut frames = frames(workers, frame);
        frames.write_all(data).unwrap();
        frames.finish().unwrap()
    }

    fn unpacked(bytes: &[u8]) -> Vec<u8> {
        let mut data = Vec::new();
        reader(Codec::Zstd, bytes).unwrap().read_to_end(&mut data).unwrap();
        data
    }

    /// Decodes each frame alone; each must tell its length and have a checksum.
    fn apart(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let (frame, rest) = bytes.split_at(find_frame_compressed_size(bytes).unwrap());
            let size = get_frame_content_size(frame).unwrap().unwrap();
            assert_eq!(frame[4] & 0x04, 0x04, "no checksum");
            all.push(zstd::bulk::decompress(frame, usize::try_from(size).unwrap()).unwrap());
            assert_eq!(all.last().unwrap().len() as u64, size);
            bytes = rest;
        }
        all
    }

    fn data(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn each_frame_decodes_alone() {
        for workers in [0, 1, 3] {
            for len in [0, 1, 99, 100, 101, 200, 1234] {
                let data = data(len);
                let bytes = packed(&data, workers, 100);
                let expected: Vec<&[u8]> = if len == 0 { vec![&[]] } else { data.chunks(100).collect() };
                assert_eq!(apart(&bytes), expected, "{workers} workers, {len} bytes");
                assert_eq!(unpacked(&bytes), data);
                // The same file, however many worked on it.
                assert_eq!(bytes, packed(&data, 0, 100));
            }
        }
    }

    #[test]
    fn flush_ends_a_frame_and_not_the_file() {
        for workers in [0, 2] {
            let mut frames = frames(workers, 100);
            frames.flush().unwrap();
            frames.write_all(&[1; 130]).unwrap();
            frames.flush().unwrap();
            assert_eq!(apart(&frames.out), [vec![1; 100], vec![1; 30]]);
            frames.write_all(&[2; 10]).unwrap();
            assert_eq!(apart(&frames.finish().unwrap()), [vec![1; 100], vec![1; 30], vec![2; 10]]);
        }
    }

    #[test]
    fn every_level_is_accepted() {
        for level in 1..=22 {
            let mut frames = frames_of(Packing::new(Method::Zstd, level).unwrap(), 0, 4096);
            frames.write_all(&data(5000)).unwrap();
            assert_eq!(unpacked(&frames.finish().unwrap()), data(5000));
        }
    }

    /// A disk with room for so many bytes.
    struct Small(usize);

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn after_a_failed_write_nothing_follows_the_hole() {
        for workers in [0, 1, 3] {
            let mut frames = Frames::new(Small(50), Packing::FAST, workers, NonZeroUsize::new(10).unwrap()).unwrap();
            let error = (0..100).find_map(|_| frames.write_all(&[7; 10]).err()).unwrap();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            frames.out.0 = 1000;
            for error in [frames.write(b"x").unwrap_err(), frames.flush().unwrap_err()] {
                assert_eq!(error.to_string(), "writing compressed data failed before");
            }
            assert!(frames.finish().is_err());
        }
    }

    /// Bytes that do not compress to nothing.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if state >> 30 == 0 { b'a' } else { (state >> 24) as u8 }
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn p7_stock_programs_read_it() {
        for data in [Vec::new(), data(1 << 20), noise(1 << 20)] {
            for method in Method::ALL {
                for level in method.levels().step_by(4) {
                    for workers in [0, 2] {
                        let packing = Packing::new(method, level).unwrap();
                        let mut frames = frames_of(packing, workers, 300_000);
                        frames.write_all(&data).unwrap();
                        let bytes = frames.finish().unwrap();
                        if method == Method::Gzip {
                            // One member: its last bytes are the length of all.
                            assert_eq!(bytes.last_chunk(), Some(&(data.len() as u32).to_le_bytes()));
                        }
                        let mut read = Vec::new();
                        reader(packing.codec(), &bytes[..]).unwrap().read_to_end(&mut read).unwrap();
                        assert!(read == data, "{packing}");
                        if let Some(read) = super::super::read::tests::stock(method.name(), &["-dc"], bytes) {
                            assert!(read == data, "{packing}");
                        }
                    }
                }
            }
        }
    }

    /// P1: what was flushed decodes, and nothing more need follow.
    #[test]
    fn p1_what_is_flushed_decodes() {
        let data = noise(1 << 20);
        for method in Method::ALL {
            let mut frames = frames_of(method.into(), 2, 100_000);
            let mut end = 0;
            for step in [1, 10, 99_989, 70_000, 1, 200_000] {
                frames.write_all(&data[end..end + step]).unwrap();
                frames.flush().unwrap();
                end += step;
                let mut decoder = reader(method.codec(), &frames.out()[..]).unwrap();
                let (mut read, mut byte) = (Vec::new(), [0]);
                while decoder.read(&mut byte).is_ok_and(|n| n > 0) {
                    read.push(byte[0]);
                }
                assert!(read == data[..end], "{method:?} at {end}: {}", read.len());
            }
        }
    }

    proptest! {
        #[test]
        fn any_writes_give_the_same_file(pieces: Vec<Vec<u8>>, workers in 0u8..3, frame in 1usize..200) {
            let data = pieces.concat();
            let mut frames = frames(workers, frame);
            for piece in &pieces {
                frames.write_all(piece).unwrap();
            }
            let bytes = frames.finish().unwrap();
            prop_assert_eq!(&unpacked(&bytes), &data);
            prop_assert_eq!(bytes, packed(&data, 0, frame));
        }
    }
}
