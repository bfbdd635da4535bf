//! The checksums that a manifest can hold (`checksum_helper.c`).

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};
use thiserror::Error;

/// What BASE_BACKUP's `MANIFEST_CHECKSUMS` can ask for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum ManifestAlgorithm {
    /// No checksums: files are compared by size alone.
    None,
    /// The default of servers and clients: finds damage, not forgery.
    #[default]
    Crc32c,
    /// SHA-2, 28 bytes.
    Sha224,
    /// SHA-2, 32 bytes.
    Sha256,
    /// SHA-2, 48 bytes.
    Sha384,
    /// SHA-2, 64 bytes.
    Sha512,
}

impl ManifestAlgorithm {
    const ALL: [Self; 6] = [Self::None, Self::Crc32c, Self::Sha224, Self::Sha256, Self::Sha384, Self::Sha512];

    /// PostgreSQL's name for it, as commands and manifests have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Crc32c => "CRC32C",
            Self::Sha224 => "SHA224",
            Self::Sha256 => "SHA256",
            Self::Sha384 => "SHA384",
            Self::Sha512 => "SHA512",
        }
    }

    /// A byte for it, on a scratch file.
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Crc32c => 1,
            Self::Sha224 => 2,
            Self::Sha256 => 3,
            Self::Sha384 => 4,
            Self::Sha512 => 5,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.code() == code)
    }

    /// Bytes of a checksum.
    const fn len(self) -> usize {
        match self {
            Self::None => 0,
            Self::Crc32c => 4,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

impl fmt::Display for ManifestAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no such checksum algorithm.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown algorithm \"{0}\" (NONE, CRC32C, SHA224, SHA256, SHA384 or SHA512)")]
pub struct UnknownAlgorithm(pub String);

impl FromStr for ManifestAlgorithm {
    type Err = UnknownAlgorithm;

    /// In upper or lower case, as PostgreSQL takes it.
    fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
        let found = Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| UnknownAlgorithm(name.to_owned()))
    }
}

/// The checksum of one file.
#[derive(Clone, PartialEq, Eq)]
pub struct Checksum {
    algorithm: ManifestAlgorithm,
    bytes: Box<[u8]>,
}

impl Checksum {
    /// `None` unless `bytes` has the length of the algorithm's checksums, which is never 0.
    pub fn new(algorithm: ManifestAlgorithm, bytes: Box<[u8]>) -> Option<Self> {
        (algorithm != ManifestAlgorithm::None && bytes.len() == algorithm.len()).then_some(Self { algorithm, bytes })
    }

    /// What it is a checksum of, so to speak; never [`ManifestAlgorithm::None`].
    pub const fn algorithm(&self) -> ManifestAlgorithm {
        self.algorithm
    }

    /// As manifests have it in hexadecimal: a CRC in little-endian order.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Hexadecimal, as in a manifest.
impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {self}", self.algorithm)
    }
}

/// Computes the checksum of one file.
#[derive(Clone, Debug)]
pub struct Hasher(State);

#[derive(Clone, Debug)]
enum State {
    None,
    Crc32c(u32),
    Sha224(Sha224),
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Hasher {
    /// One that has seen nothing.
    pub fn new(algorithm: ManifestAlgorithm) -> Self {
        Self(match algorithm {
            ManifestAlgorithm::None => State::None,
            ManifestAlgorithm::Crc32c => State::Crc32c(0),
            ManifestAlgorithm::Sha224 => State::Sha224(Sha224::new()),
            ManifestAlgorithm::Sha256 => State::Sha256(Sha256::new()),
            ManifestAlgorithm::Sha384 => State::Sha384(Sha384::new()),
            ManifestAlgorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// The next bytes of the file.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::None => {}
            State::Crc32c(crc) => *crc = crc32c::crc32c_append(*crc, bytes),
            State::Sha224(sha) => sha.update(bytes),
            State::Sha256(sha) => sha.update(bytes),
            State::Sha384(sha) => sha.update(bytes),
            State::Sha512(sha) => sha.update(bytes),
        }
    }

    /// The checksum; `None` for [`ManifestAlgorithm::None`].
    pub fn finish(self) -> Option<Checksum> {
        let (algorithm, bytes): (_, Box<[u8]>) = match self.0 {
            State::None => return None,
            // The server writes the number's bytes as they lie in its memory.
            State::Crc32c(crc) => (ManifestAlgorithm::Crc32c, crc.to_le_bytes().into()),
            State::Sha224(sha) => (ManifestAlgorithm::Sha224, sha.finalize().as_slice().into()),
            State::Sha256(sha) => (ManifestAlgorithm::Sha256, sha.finalize().as_slice().into()),
            State::Sha384(sha) => (ManifestAlgorithm::Sha384, sha.finalize().as_slice().into()),
            State::Sha512(sha) => (ManifestAlgorithm::Sha512, sha.finalize().as_slice().into()),
        };
        Some(Checksum { algorithm, bytes })
    }
}

/// Bytes from pairs of hexadecimal digits of either case.
pub(super) fn unhex(digits: &[u8]) -> Option<Box<[u8]>> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_known_text() {
        for (name, hex) in [
            // The check value of CRC-32C is E3069283.
            ("CRC32C", "839206e3"),
            ("sha224", "9b3e61bf29f17c75572fae2e86e17809a4513d07c8a18152acf34521"),
            ("SHA256", "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
        ] {
            let algorithm: ManifestAlgorithm = name.parse().unwrap();
            let mut hasher = Hasher::new(algorithm);
            hasher.update(b"1234");
            hasher.update(b"");
            hasher.update(b"56789");
            let checksum = hasher.finish().unwrap();
            assert_eq!(checksum.to_string(), hex);
            assert_eq!(checksum, Checksum::new(algorithm, unhex(hex.as_bytes()).unwrap()).unwrap());
        }
        assert_eq!(Hasher::new(ManifestAlgorithm::None).finish(), None);
    }

    #[test]
    fn each_algorithm_has_a_name_and_a_length() {
        for algorithm in ManifestAlgorithm::ALL {
            assert_eq!(algorithm.name().parse(), Ok(algorithm));
            let length = Hasher::new(algorithm).finish().map_or(0, |sum| sum.bytes().len());
            assert_eq!(length, algorithm.len());
            assert_eq!(Checksum::new(algorithm, vec![0; length + 1].into()), None);
        }
        assert_eq!("MD5".parse::<ManifestAlgorithm>(), Err(UnknownAlgorithm("MD5".into())));
    }

    #[test]
    fn hexadecimal_text() {
        assert_eq!(unhex(b"00fFa0").as_deref(), Some(&[0, 255, 160][..]));
        assert_eq!(unhex(b"").as_deref(), Some(&[][..]));
        assert!([&b"0"[..], b"0g", b"+1", b" 1"].iter().all(|text| unhex(text).is_none()));
    }
}
