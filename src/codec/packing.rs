//! Writing one compressed file of one frame: a WAL segment, whole or as it grows.

use std::fmt;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use flate2::Compression as GzipLevel;
use flate2::write::GzEncoder;
use lz4::liblz4::BlockChecksum;
use lz4::{ContentChecksum, Encoder as Lz4Encoder, EncoderBuilder as Lz4Builder};
use thiserror::Error;
use zstd::stream::raw::CParameter;
use zstd::stream::write::Encoder as ZstdEncoder;

use super::Codec;

/// zstd's window as a power of two: 2 MiB. The tables of the highest levels are as large as the window
/// lets them be, and take some 36 MiB with this one.
const ZSTD_WINDOW_LOG: u32 = 21;

/// What compresses a WAL segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// Levels 1 to 9.
    Gzip,
    /// Levels 1 to 12; those from 3 on are liblz4's HC.
    Lz4,
    /// Levels 1 to 22.
    Zstd,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Gzip, Self::Lz4, Self::Zstd];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// The levels there are.
    pub const fn levels(self) -> RangeInclusive<u8> {
        match self {
            Self::Gzip => 1..=9,
            Self::Lz4 => 1..=12,
            Self::Zstd => 1..=22,
        }
    }

    /// What its own program takes when no level is named.
    pub const fn default_level(self) -> u8 {
        match self {
            Self::Gzip => 6,
            Self::Lz4 => 1,
            Self::Zstd => 3,
        }
    }

    /// What its files are.
    pub const fn codec(self) -> Codec {
        match self {
            Self::Gzip => Codec::Gzip,
            Self::Lz4 => Codec::Lz4,
            Self::Zstd => Codec::Zstd,
        }
    }
}

/// How WAL segments are compressed: a method, and a level that it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packing {
    method: Method,
    level: u8,
}

impl Packing {
    /// What a repository does when nothing else is asked for: `zstd:1`.
    pub const FAST: Self = Self { method: Method::Zstd, level: 1 };

    /// `None` if the method has no such level.
    pub fn new(method: Method, level: u8) -> Option<Self> {
        method.levels().contains(&level).then_some(Self { method, level })
    }

    /// The method.
    pub const fn method(self) -> Method {
        self.method
    }

    /// The level.
    pub const fn level(self) -> u8 {
        self.level
    }

    /// What files that are written so are.
    pub const fn codec(self) -> Codec {
        self.method.codec()
    }

    /// Whether compressing takes hardly longer than writing the bytes as they are would.
    pub const fn is_light(self) -> bool {
        match self.method {
            Method::Gzip => self.level == 1,
            Method::Lz4 => self.level < 3,
            Method::Zstd => self.level <= 3,
        }
    }
}

impl From<super::ZstdLevel> for Packing {
    fn from(level: super::ZstdLevel) -> Self {
        Self { method: Method::Zstd, level: level.get() }
    }
}

impl From<Method> for Packing {
    fn from(method: Method) -> Self {
        Self { method, level: method.default_level() }
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.method.name(), self.level)
    }
}

/// The text does not say how to compress.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParsePackingError {
    /// No method that is known.
    #[error("unknown compression \"{0}\" (none, gzip, lz4 or zstd, with a level as in zstd:3)")]
    Method(String),
    /// The method has no such level.
    #[error("invalid {name} level \"{level}\" ({} to {})", method.levels().start(), method.levels().end(), name = method.name())]
    Level {
        /// Which has not.
        method: Method,
        /// What was given.
        level: String,
    },
}

impl FromStr for Packing {
    type Err = ParsePackingError;

    /// `METHOD` or `METHOD:LEVEL`.
    fn from_str(text: &str) -> Result<Self, ParsePackingError> {
        let (name, level) = text.split_once(':').map_or((text, None), |(name, level)| (name, Some(level)));
        let method = Method::ALL.into_iter().find(|method| method.name() == name);
        let method = method.ok_or_else(|| ParsePackingError::Method(text.to_owned()))?;
        let Some(level) = level else { return Ok(method.into()) };
        let wrong = || ParsePackingError::Level { method, level: level.to_owned() };
        super::digits(level).and_then(|level| Self::new(method, level)).ok_or_else(wrong)
    }
}

/// Compresses what it is given into one frame (zstd, lz4) or member (gzip). Nothing of it is written
/// anywhere: [`Packer::take`] hands out what is ready.
///
/// After an error it must be dropped.
pub struct Packer {
    ready: Ready,
    engine: Engine,
}

enum Engine {
    Gzip(GzEncoder<Ready>),
    Lz4(Lz4Encoder<Ready>),
    Zstd(ZstdEncoder<'static, Ready>),
}

/// Compressed bytes that have not been taken. An encoder owns where it writes to, and liblz4's does
/// not give it out, so they are held by both.
#[derive(Clone, Default)]
struct Ready(Arc<Mutex<Vec<u8>>>);

impl Packer {
    /// For data of exactly `size` bytes: with a checksum, and in zstd the size.
    ///
    /// # Errors
    /// When the encoder cannot be made.
    pub fn whole(packing: Packing, size: u64) -> io::Result<Self> {
        Self::new(packing, Some(size))
    }

    /// For data of which it is not known how much will come, as `pg_receivewal` compresses it
    /// (`walmethods.c`): an lz4 frame with liblz4's preferences, which have no checksum.
    ///
    /// # Errors
    /// When the encoder cannot be made.
    pub fn growing(packing: Packing) -> io::Result<Self> {
        Self::new(packing, None)
    }

    fn new(packing: Packing, size: Option<u64>) -> io::Result<Self> {
        let ready = Ready::default();
        let engine = match packing.method {
            Method::Gzip => Engine::Gzip(GzEncoder::new(ready.clone(), GzipLevel::new(packing.level.into()))),
            Method::Lz4 => {
                let checksum = match size {
                    Some(_) => ContentChecksum::ChecksumEnabled,
                    None => ContentChecksum::NoChecksum,
                };
                let mut builder = Lz4Builder::new();
                builder.level(packing.level.into()).checksum(checksum);
                Engine::Lz4(builder.block_checksum(BlockChecksum::NoBlockChecksum).build(ready.clone())?)
            }
            Method::Zstd => {
                let mut encoder = ZstdEncoder::new(ready.clone(), packing.level.into())?;
                encoder.set_parameter(CParameter::WindowLog(ZSTD_WINDOW_LOG))?;
                encoder.include_checksum(true)?;
                encoder.set_pledged_src_size(size)?;
                Engine::Zstd(encoder)
            }
        };
        Ok(Self { ready, engine })
    }

    /// Takes in all of `bytes`.
    ///
    /// # Errors
    /// When they cannot be compressed.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.engine().write_all(bytes)
    }

    /// Makes all ready that was taken in: it decodes from what [`Packer::take`] gives then, although
    /// the frame has not ended.
    ///
    /// # Errors
    /// When it cannot be compressed.
    pub fn flush(&mut self) -> io::Result<()> {
        self.engine().flush()
    }

    /// The compressed bytes that are ready and have not been taken before, behind those in `into`.
    pub fn take(&self, into: &mut Vec<u8>) {
        into.append(&mut self.ready.held());
    }

    /// Ends the frame. Gives what has not been taken.
    ///
    /// # Errors
    /// When it cannot be compressed, or there was less or more than the given size.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        match self.engine {
            Engine::Gzip(encoder) => drop(encoder.finish()?),
            Engine::Lz4(encoder) => encoder.finish().1?,
            Engine::Zstd(encoder) => drop(encoder.finish()?),
        }
        Ok(std::mem::take(&mut *self.ready.held()))
    }

    fn engine(&mut self) -> &mut dyn Write {
        match &mut self.engine {
            Engine::Gzip(encoder) => encoder,
            Engine::Lz4(encoder) => encoder,
            Engine::Zstd(encoder) => encoder,
        }
    }
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl Ready {
    fn held(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        // Bytes are appended whole, or the process is out of memory.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Ready {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.held().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::super::read::tests::stock;
    use super::super::reader;
    use super::*;

    fn text() -> Vec<u8> {
        (0..40_000_u32).flat_map(|n| format!("{:x} line {n}\n", n.wrapping_mul(2_654_435_761)).into_bytes()).collect()
    }

    fn unpacked(packing: Packing, bytes: &[u8]) -> Vec<u8> {
        let mut data = Vec::new();
        reader(packing.codec(), bytes).unwrap().read_to_end(&mut data).unwrap();
        data
    }

    /// As much as decodes of a frame that has not ended.
    fn begun(packing: Packing, bytes: &[u8]) -> Vec<u8> {
        let mut decoder = reader(packing.codec(), bytes).unwrap();
        let (mut data, mut byte) = (Vec::new(), [0]);
        while decoder.read(&mut byte).is_ok_and(|n| n > 0) {
            data.push(byte[0]);
        }
        data
    }

    fn all() -> impl Iterator<Item = Packing> {
        let levels = |method: Method| method.levels().map(move |level| Packing::new(method, level).unwrap());
        Method::ALL.into_iter().flat_map(levels)
    }

    fn packed(mut packer: Packer, data: &[u8]) -> Vec<u8> {
        packer.write(data).unwrap();
        packer.finish().unwrap()
    }

    #[test]
    fn every_level_is_real() {
        let data = text();
        for method in Method::ALL {
            let sizes: Vec<_> = all().filter(|packing| packing.method == method).collect();
            let sizes = sizes.into_iter().map(|packing| {
                let bytes = packed(Packer::whole(packing, data.len() as u64).unwrap(), &data);
                assert!(unpacked(packing, &bytes) == data, "{packing}");
                bytes.len()
            });
            let sizes: Vec<_> = sizes.collect();
            assert!(sizes.last() < sizes.first(), "{}: {sizes:?}", method.name());
        }
    }

    #[test]
    fn p7_stock_programs_read_it() {
        let data = text();
        for packing in all() {
            for packer in [Packer::whole(packing, data.len() as u64), Packer::growing(packing)] {
                let bytes = packed(packer.unwrap(), &data);
                if packing.method == Method::Gzip {
                    // What pg_receivewal looks at: the size of a file that is one member.
                    assert_eq!(bytes.last_chunk(), Some(&(data.len() as u32).to_le_bytes()));
                }
                if let Some(read) = stock(packing.method.name(), &["-dc"], bytes) {
                    assert!(read == data, "{packing}");
                }
            }
        }
    }

    /// P1: what was flushed decodes from what was taken, and nothing more need follow.
    #[test]
    fn p1_what_is_flushed_decodes() {
        let data = text();
        for packing in all().filter(|packing| [1, 5, 9].contains(&packing.level)) {
            let mut packer = Packer::growing(packing).unwrap();
            let mut bytes = Vec::new();
            packer.flush().unwrap();
            let mut end = 0;
            for step in [1, 10, 100_000, 70_000, 1, 200_000] {
                packer.write(&data[end..end + step]).unwrap();
                packer.flush().unwrap();
                packer.take(&mut bytes);
                end += step;
                assert!(begun(packing, &bytes) == data[..end], "{packing} at {end}");
            }
            bytes.extend(packer.finish().unwrap());
            assert!(unpacked(packing, &bytes) == data[..end], "{packing}");
        }
    }

    #[test]
    fn a_size_that_is_not_kept_is_an_error() {
        let mut packer = Packer::whole(Packing::FAST, 10).unwrap();
        packer.write(b"few").unwrap();
        assert!(packer.finish().is_err());
    }

    #[test]
    fn packings_that_can_be_asked_for() {
        for (text, method, level) in [
            ("gzip", Method::Gzip, 6),
            ("gzip:9", Method::Gzip, 9),
            ("lz4", Method::Lz4, 1),
            ("lz4:12", Method::Lz4, 12),
            ("zstd", Method::Zstd, 3),
            ("zstd:1", Method::Zstd, 1),
            ("zstd:22", Method::Zstd, 22),
        ] {
            let packing: Packing = text.parse().unwrap();
            assert_eq!((packing.method(), packing.level()), (method, level));
            assert_eq!(packing.to_string().parse(), Ok(packing));
        }
    }

    #[test]
    fn packings_that_cannot() {
        for text in ["", "none", "zip", "GZIP", ":1", "1"] {
            assert_eq!(text.parse::<Packing>(), Err(ParsePackingError::Method(text.into())));
        }
        for (text, said) in [
            ("gzip:0", "invalid gzip level \"0\" (1 to 9)"),
            ("gzip:10", "invalid gzip level \"10\" (1 to 9)"),
            ("lz4:13", "invalid lz4 level \"13\" (1 to 12)"),
            ("lz4:", "invalid lz4 level \"\" (1 to 12)"),
            ("zstd:23", "invalid zstd level \"23\" (1 to 22)"),
            ("zstd:+1", "invalid zstd level \"+1\" (1 to 22)"),
            ("zstd:1:2", "invalid zstd level \"1:2\" (1 to 22)"),
            ("zstd:256", "invalid zstd level \"256\" (1 to 22)"),
        ] {
            assert_eq!(text.parse::<Packing>().unwrap_err().to_string(), said);
        }
    }
}
