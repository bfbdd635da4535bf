//! Writing one compressed file of any length, with all that its method can be asked for.

use std::fmt;
use std::io::{self, Write};

use flate2::write::GzEncoder;
use lz4::{BlockSize, ContentChecksum, Encoder as Lz4Encoder, EncoderBuilder as Lz4Builder};
use zstd::stream::write::Encoder as ZstdEncoder;

use super::{Codec, Method};

/// Compression of a file that is written once; it can be read by the program of its method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientCompression {
    /// Levels 1 to 9; `None` is the library's default.
    Gzip {
        /// Level.
        level: Option<u8>,
    },
    /// Levels 1 to 12.
    Lz4 {
        /// Level.
        level: Option<u8>,
    },
    /// Levels -131072 to 22.
    Zstd {
        /// Level.
        level: Option<i32>,
        /// Threads; with 0 the one that writes compresses.
        workers: u32,
        /// Long-distance matching.
        long: bool,
    },
}

impl ClientCompression {
    /// What its files are.
    pub const fn codec(self) -> Codec {
        match self {
            Self::Gzip { .. } => Codec::Gzip,
            Self::Lz4 { .. } => Codec::Lz4,
            Self::Zstd { .. } => Codec::Zstd,
        }
    }
}

impl From<Method> for ClientCompression {
    /// With the level that the method's own program takes.
    fn from(method: Method) -> Self {
        match method {
            Method::Gzip => Self::Gzip { level: None },
            Method::Lz4 => Self::Lz4 { level: None },
            Method::Zstd => Self::Zstd { level: None, workers: 0, long: false },
        }
    }
}

/// Compresses what is written to it, or passes it on as it is. Nothing is complete before
/// [`Encoder::finish`].
pub enum Encoder<W: Write> {
    /// Passes it on.
    Plain(W),
    /// One member.
    Gzip(GzEncoder<W>),
    /// One frame, with a checksum.
    Lz4(Lz4Encoder<W>),
    /// One frame, with a checksum.
    Zstd(ZstdEncoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// Writes to `out`.
    ///
    /// # Errors
    /// When the library refuses the level, or `out` the header.
    pub fn new(out: W, compression: Option<ClientCompression>) -> io::Result<Self> {
        Ok(match compression {
            None => Self::Plain(out),
            Some(ClientCompression::Gzip { level }) => Self::Gzip(GzEncoder::new(
                out,
                level.map_or_else(Default::default, |level| flate2::Compression::new(level.into())),
            )),
            Some(ClientCompression::Lz4 { level }) => {
                let mut builder = Lz4Builder::new();
                builder.level(level.map_or(0, Into::into)).block_size(BlockSize::Max256KB);
                Self::Lz4(builder.checksum(ContentChecksum::ChecksumEnabled).build(out)?)
            }
            Some(ClientCompression::Zstd { level, workers, long }) => {
                let mut encoder = ZstdEncoder::new(out, level.unwrap_or(0))?;
                encoder.include_checksum(true)?;
                if workers > 0 {
                    encoder.multithread(workers)?;
                }
                encoder.long_distance_matching(long)?;
                Self::Zstd(encoder)
            }
        })
    }

    /// Ends the file, and gives back where it went.
    ///
    /// # Errors
    /// When writing failed.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(out) => Ok(out),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Lz4(encoder) => {
                let (out, ended) = encoder.finish();
                ended.map(|()| out)
            }
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Lz4(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Lz4(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

impl<W: Write> fmt::Debug for Encoder<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Encoder::Plain",
            Self::Gzip(_) => "Encoder::Gzip",
            Self::Lz4(_) => "Encoder::Lz4",
            Self::Zstd(_) => "Encoder::Zstd",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::read::tests::stock;
    use super::*;

    #[test]
    fn p7_stock_programs_read_every_level() {
        let line = |number| format!("line {}\n", number % 1000);
        let text = (0..100_000).map(line).collect::<String>().into_bytes();
        let zstd = |level, workers, long| ClientCompression::Zstd { level, workers, long };
        for (compression, program) in [
            (ClientCompression::Gzip { level: None }, "gzip"),
            (ClientCompression::Gzip { level: Some(9) }, "gzip"),
            (ClientCompression::Lz4 { level: None }, "lz4"),
            (ClientCompression::Lz4 { level: Some(12) }, "lz4"),
            (zstd(None, 0, false), "zstd"),
            (zstd(Some(-131_072), 0, false), "zstd"),
            (zstd(Some(1), 3, true), "zstd"),
            (zstd(Some(22), 0, false), "zstd"),
        ] {
            for data in [&text[..], b""] {
                let mut encoder = Encoder::new(Vec::new(), Some(compression)).unwrap();
                for piece in data.chunks(30_000) {
                    encoder.write_all(piece).unwrap();
                }
                let packed = encoder.finish().unwrap();
                let fast = compression == zstd(Some(-131_072), 0, false);
                assert!(fast || packed.len() < data.len() / 2 + 100, "{compression:?}: {}", packed.len());
                if let Some(read) = stock(program, &["-dc"], packed) {
                    assert!(read == data, "{compression:?}");
                }
            }
        }
    }
}
