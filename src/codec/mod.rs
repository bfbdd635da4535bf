//! Compression, told by a file's suffix: `.zst`, `.lz4`, `.gz`. What is written can be read with
//! the stock programs of these names, and what they write can be read here.

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

mod ahead;
mod frames;
mod packing;
mod read;
mod source;
mod stream;

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

pub use ahead::Ahead;
pub use frames::{Frames, ZSTD_FRAME};
pub use packing::{Method, Packer, Packing, ParsePackingError};
#[cfg(test)]
pub(crate) use read::tests::stock;
pub use read::{DecodeError, Fault, reader};
pub use stream::{ClientCompression, Encoder};

/// How a file is compressed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Codec {
    /// Not at all.
    Plain,
    /// Zstandard frames, one or more.
    Zstd,
    /// LZ4 frames, one or more; not the legacy format of before 2014.
    Lz4,
    /// Gzip members, one or more.
    Gzip,
}

impl Codec {
    /// All of them, in the order in which a file is looked for: the plain one wins.
    pub const ALL: [Self; 4] = [Self::Plain, Self::Zstd, Self::Lz4, Self::Gzip];

    /// What a name of such a file ends in.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Zstd => ".zst",
            Self::Lz4 => ".lz4",
            Self::Gzip => ".gz",
        }
    }

    /// The name without its suffix, and what the suffix stands for. Any other ending is plain.
    pub fn split(name: &str) -> (&str, Self) {
        let compressed = [Self::Zstd, Self::Lz4, Self::Gzip];
        let found = compressed.into_iter().find_map(|codec| Some((name.strip_suffix(codec.suffix())?, codec)));
        found.unwrap_or((name, Self::Plain))
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Gzip => "gzip",
        })
    }
}

/// How hard zstd works: 1 (fast) to 22 (small).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ZstdLevel(u8);

impl ZstdLevel {
    /// About as fast as a disk, and already most of what can be saved on database files.
    pub const FAST: Self = Self(1);

    /// What zstd itself and pg_basebackup take when no level is named: 3.
    pub const DEFAULT: Self = Self(3);

    /// `None` unless it is from 1 to 22.
    pub const fn new(level: u8) -> Option<Self> {
        if level >= 1 && level <= 22 { Some(Self(level)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for ZstdLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What is done to data on its way to a repository (`-Z`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// It is kept as it is.
    None,
    /// It is compressed with zstd.
    Zstd {
        /// How hard.
        level: ZstdLevel,
        /// Threads that compress; with 0 the thread that writes does it itself.
        workers: u8,
    },
}

impl Compression {
    /// Threads that may compress one file. Each holds up to four frames.
    pub const MAX_WORKERS: u8 = 64;

    /// The suffix for files that are written so.
    pub const fn codec(self) -> Codec {
        match self {
            Self::None => Codec::Plain,
            Self::Zstd { .. } => Codec::Zstd,
        }
    }
}

impl Default for Compression {
    /// `zstd:1` with one worker, so that compression and what feeds it run side by side.
    fn default() -> Self {
        Self::Zstd { level: ZstdLevel::FAST, workers: 1 }
    }
}

/// The text is not a compression that is known here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseCompressionError {
    /// Another method.
    #[error("unknown compression \"{0}\" (none, zstd, or zstd:LEVEL with a level from 1 to 22)")]
    Method(String),
    /// `none` takes no detail.
    #[error("compression \"none\" takes no level")]
    NoneWithDetail,
    /// Not a number from 1 to 22.
    #[error("invalid zstd level \"{0}\" (1 to 22)")]
    Level(String),
    /// Not a number from 0 to the limit.
    #[error("invalid number of zstd workers \"{0}\" (0 to {max})", max = Compression::MAX_WORKERS)]
    Workers(String),
    /// Neither `level` nor `workers`.
    #[error("unknown zstd setting \"{0}\" (level or workers)")]
    Setting(String),
    /// One setting twice.
    #[error("zstd setting \"{0}\" is given twice")]
    Twice(&'static str),
}

impl FromStr for Compression {
    type Err = ParseCompressionError;

    /// `none`, `zstd`, `zstd:LEVEL`, or `zstd:level=LEVEL,workers=COUNT`; the words as PostgreSQL
    /// has them (`compression.c`).
    fn from_str(text: &str) -> Result<Self, ParseCompressionError> {
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            None if text == "zstd" => Ok(Self::Zstd { level: ZstdLevel::DEFAULT, workers: 1 }),
            Some(("zstd", detail)) => zstd(detail),
            Some(("none", _)) => Err(ParseCompressionError::NoneWithDetail),
            _ => Err(ParseCompressionError::Method(text.to_owned())),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Zstd { level, workers: 1 } => write!(f, "zstd:{level}"),
            Self::Zstd { level, workers } => write!(f, "zstd:level={level},workers={workers}"),
        }
    }
}

fn zstd(detail: &str) -> Result<Compression, ParseCompressionError> {
    if !detail.contains('=') {
        return Ok(Compression::Zstd { level: parse_level(detail)?, workers: 1 });
    }
    let (mut level, mut workers) = (None, None);
    for setting in detail.split(',') {
        match setting.split_once('=') {
            Some(("level", _)) if level.is_some() => return Err(ParseCompressionError::Twice("level")),
            Some(("level", value)) => level = Some(parse_level(value)?),
            Some(("workers", _)) if workers.is_some() => return Err(ParseCompressionError::Twice("workers")),
            Some(("workers", value)) => workers = Some(parse_workers(value)?),
            _ => return Err(ParseCompressionError::Setting(setting.to_owned())),
        }
    }
    Ok(Compression::Zstd { level: level.unwrap_or(ZstdLevel::DEFAULT), workers: workers.unwrap_or(1) })
}

fn parse_level(text: &str) -> Result<ZstdLevel, ParseCompressionError> {
    digits(text).and_then(ZstdLevel::new).ok_or_else(|| ParseCompressionError::Level(text.to_owned()))
}

fn parse_workers(text: &str) -> Result<u8, ParseCompressionError> {
    let workers = digits(text).filter(|count| *count <= Compression::MAX_WORKERS);
    workers.ok_or_else(|| ParseCompressionError::Workers(text.to_owned()))
}

/// Decimal digits alone; no sign.
fn digits(text: &str) -> Option<u8> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(level: u8) -> ZstdLevel {
        ZstdLevel::new(level).unwrap()
    }

    #[test]
    fn the_suffix_tells() {
        for (name, expected) in [
            ("base.tar.zst", ("base.tar", Codec::Zstd)),
            ("base.tar", ("base.tar", Codec::Plain)),
            ("000000010000000000000007.lz4", ("000000010000000000000007", Codec::Lz4)),
            ("000000010000000000000007.gz.partial", ("000000010000000000000007.gz.partial", Codec::Plain)),
            ("x.gz.zst", ("x.gz", Codec::Zstd)),
            ("zst", ("zst", Codec::Plain)),
        ] {
            assert_eq!(Codec::split(name), expected);
            assert_eq!(format!("{}{}", expected.0, expected.1.suffix()), name);
        }
    }

    #[test]
    fn compressions_that_can_be_asked_for() {
        for (text, expected, shown) in [
            ("none", Compression::None, "none"),
            ("zstd", Compression::Zstd { level: level(3), workers: 1 }, "zstd:3"),
            ("zstd:22", Compression::Zstd { level: level(22), workers: 1 }, "zstd:22"),
            ("zstd:level=5", Compression::Zstd { level: level(5), workers: 1 }, "zstd:5"),
            ("zstd:workers=0", Compression::Zstd { level: level(3), workers: 0 }, "zstd:level=3,workers=0"),
            ("zstd:workers=64,level=9", Compression::Zstd { level: level(9), workers: 64 }, "zstd:level=9,workers=64"),
        ] {
            assert_eq!(text.parse(), Ok(expected));
            assert_eq!(expected.to_string(), shown);
            assert_eq!(shown.parse(), Ok(expected));
        }
        assert_eq!("zstd:1".parse(), Ok(Compression::default()));
    }

    #[test]
    fn compressions_that_cannot() {
        use ParseCompressionError as E;
        for (text, error) in [
            ("", E::Method("".into())),
            ("gzip", E::Method("gzip".into())),
            ("ZSTD", E::Method("ZSTD".into())),
            ("lz4:1", E::Method("lz4:1".into())),
            ("none:", E::NoneWithDetail),
            ("zstd:", E::Level("".into())),
            ("zstd:0", E::Level("0".into())),
            ("zstd:23", E::Level("23".into())),
            ("zstd:-1", E::Level("-1".into())),
            ("zstd:+1", E::Level("+1".into())),
            ("zstd:level=256", E::Level("256".into())),
            ("zstd:level=1,level=1", E::Twice("level")),
            ("zstd:workers=65", E::Workers("65".into())),
            ("zstd:workers=", E::Workers("".into())),
            ("zstd:workers=1,workers=1", E::Twice("workers")),
            ("zstd:level=1,long", E::Setting("long".into())),
            ("zstd:level=1,", E::Setting("".into())),
        ] {
            assert_eq!(text.parse::<Compression>(), Err(error), "{text}");
        }
    }
}
