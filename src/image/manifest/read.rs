//! Reading a manifest file by file, in memory that does not grow with it.

use std::fmt;
use std::io::{self, Read};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use sha2::{Digest as _, Sha256};

use super::{
    CHECKSUM_KEY, CLOSING, Manifest, ManifestAlgorithm, ManifestError, ManifestFile, ManifestHead, WalRange, algorithm,
};

/// Bytes read at a time.
const BUFFER: usize = 64 << 10;
/// Servers write each file on a line of its own, and a path has at most 1023 bytes.
const MAX_LINE: usize = 64 << 10;
/// Of WAL; there is one for each timeline that a backup went through.
const MAX_RANGES: usize = 10_000;
/// Digits of the manifest's own checksum.
const DIGITS: usize = 64;

/// Bytes at the end that the checksum is not of. The key begins with the newline before it, which is covered.
const TAIL: usize = CHECKSUM_KEY.len() - 1 + DIGITS + CLOSING.len();

/// Why a manifest is not read on.
#[derive(Debug)]
pub enum ManifestReadError<E> {
    /// It is not one that a server wrote.
    Manifest(ManifestError),
    /// Its bytes cannot be had.
    Io(io::Error),
    /// What the caller did with a file failed.
    Seen(E),
}

/// Reads a manifest of `len` bytes, and shows each file in the order in which they are listed. That it matches its own
/// checksum is known only when this has returned.
///
/// # Errors
/// When it is damaged, of an unknown version, or above a limit; or what `seen` says.
pub fn read_manifest<E>(
    from: &mut dyn Read,
    len: u64,
    seen: &mut dyn FnMut(ManifestFile) -> Result<(), E>,
) -> Result<ManifestHead, ManifestReadError<E>> {
    let bytes = usize::try_from(len).unwrap_or(usize::MAX);
    if bytes > Manifest::MAX_BYTES {
        return Err(ManifestReadError::Manifest(ManifestError::TooLong(bytes)));
    }
    let mut checked = Checked::new(from, bytes.saturating_sub(TAIL));
    let mut found = Found::default();
    let parsed = parse(&mut checked, &mut found, seen);
    if let Some(e) = found.failed {
        return Err(ManifestReadError::Seen(e));
    }
    // Whatever looks wrong in a manifest that is not what the server wrote, that is what is wrong with it.
    let own = checked.finish(bytes).map_err(ManifestReadError::Io)?;
    let head = own.and_then(|()| match (parsed, found.version) {
        (_, Some(version)) if !matches!(version, 1 | 2) => Err(ManifestError::Version(version)),
        (Err(error), _) => Err(ManifestError::Content(error.to_string())),
        (Ok(()), _) => found.head.finish(),
    });
    head.map_err(ManifestReadError::Manifest)
}

fn parse<E>(
    from: &mut Checked<'_>,
    found: &mut Found<E>,
    seen: &mut dyn FnMut(ManifestFile) -> Result<(), E>,
) -> Result<(), serde_json::Error> {
    let mut json = serde_json::Deserializer::from_reader(from);
    json.deserialize_map(Top { found, seen })?;
    json.end()
}

/// The bytes of a manifest on their way to whoever reads them, digested.
struct Checked<'a> {
    from: &'a mut dyn Read,
    buffer: Box<[u8]>,
    filled: std::ops::Range<usize>,
    /// Bytes that its checksum covers, and that have come.
    covered: usize,
    taken: usize,
    hash: Sha256,
    /// The last byte that is covered, and what comes behind.
    tail: Vec<u8>,
    /// Bytes since the last end of a line.
    line: usize,
    failed: Option<io::Error>,
}

impl<'a> Checked<'a> {
    fn new(from: &'a mut dyn Read, covered: usize) -> Self {
        let (buffer, hash) = (vec![0; BUFFER].into(), Sha256::new());
        Self { from, buffer, filled: 0..0, covered, taken: 0, hash, tail: Vec::new(), line: 0, failed: None }
    }

    /// Reads on; whether there was anything.
    fn fill(&mut self) -> io::Result<bool> {
        let count = loop {
            match self.from.read(&mut self.buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        let bytes = self.buffer.get(..count).unwrap_or_default();
        let (body, rest) = bytes.split_at(self.covered.saturating_sub(self.taken).min(count));
        self.hash.update(body);
        if let Some(last) = body.last() {
            self.tail = vec![*last];
        }
        let room = (DIGITS + BUFFER).saturating_sub(self.tail.len());
        self.tail.extend_from_slice(rest.get(..room).unwrap_or(rest));
        self.line = match (bytes.iter().position(|b| *b == b'\n'), bytes.iter().rposition(|b| *b == b'\n')) {
            (Some(first), Some(_)) if self.line.saturating_add(first) > MAX_LINE => MAX_LINE + 1,
            (_, Some(last)) => count.saturating_sub(last).saturating_sub(1),
            _ => self.line.saturating_add(count),
        };
        self.taken = self.taken.saturating_add(count);
        self.filled = 0..count;
        Ok(count > 0)
    }

    /// Reads what is left, and says whether all of it, `len` bytes, is what its checksum is of.
    fn finish(mut self, len: usize) -> io::Result<Result<(), ManifestError>> {
        while self.failed.is_none() && self.fill()? {}
        if let Some(e) = self.failed {
            return Err(e);
        }
        let told = self.tail.strip_prefix(CHECKSUM_KEY).and_then(|rest| rest.strip_suffix(CLOSING));
        let told = told.filter(|digits| digits.len() == DIGITS && self.taken == len).and_then(algorithm::unhex);
        Ok(match told {
            None => Err(ManifestError::NoChecksum),
            Some(told) if self.hash.finalize().as_slice() == told.as_ref() => Ok(()),
            Some(_) => Err(ManifestError::Checksum),
        })
    }
}

impl Read for Checked<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.filled.is_empty() {
            if let Err(e) = self.fill() {
                self.failed = Some(e);
                return Err(io::Error::other("it cannot be read"));
            }
            if self.line > MAX_LINE {
                return Err(io::Error::other("a line of it is far too long"));
            }
        }
        let ready = self.buffer.get(self.filled.clone()).unwrap_or_default();
        let count = ready.len().min(into.len());
        if let (Some(to), Some(from)) = (into.get_mut(..count), ready.get(..count)) {
            to.copy_from_slice(from);
        }
        self.filled.start = self.filled.start.saturating_add(count);
        Ok(count)
    }
}

/// What has been read so far.
struct Found<E> {
    /// As it is written, whatever it is.
    version: Option<u64>,
    head: Head,
    failed: Option<E>,
}

impl<E> Default for Found<E> {
    fn default() -> Self {
        Self { version: None, head: Head::default(), failed: None }
    }
}

#[derive(Default)]
struct Head {
    version: Option<u32>,
    system_identifier: Option<u64>,
    files: Option<Totals>,
    wal_ranges: Option<Vec<WalRange>>,
    checksum: bool,
}

#[derive(Default)]
struct Totals {
    files: u64,
    bytes: u64,
    algorithm: ManifestAlgorithm,
}

impl Head {
    fn finish(self) -> Result<ManifestHead, ManifestError> {
        let lacks = || ManifestError::Content("it is not whole".to_owned());
        let (version, listed) = (self.version.ok_or_else(lacks)?, self.files.ok_or_else(lacks)?);
        let system_identifier = self.system_identifier;
        if (version == 1) != system_identifier.is_none() {
            return Err(ManifestError::SystemIdentifier);
        }
        let wal_ranges = self.wal_ranges.ok_or_else(lacks)?;
        let Totals { files, bytes, algorithm } = listed;
        Ok(ManifestHead { version, system_identifier, files, bytes, algorithm, wal_ranges })
    }
}

#[derive(Deserialize)]
#[serde(field_identifier)]
enum Key {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    Version,
    #[serde(rename = "System-Identifier")]
    SystemIdentifier,
    Files,
    #[serde(rename = "WAL-Ranges")]
    WalRanges,
    #[serde(rename = "Manifest-Checksum")]
    Checksum,
}

struct Top<'a, E> {
    found: &'a mut Found<E>,
    seen: &'a mut dyn FnMut(ManifestFile) -> Result<(), E>,
}

impl<'de, E> Visitor<'de> for Top<'_, E> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { found, seen } = self;
        let twice = |name| Err(A::Error::duplicate_field(name));
        while let Some(key) = map.next_key()? {
            match key {
                Key::Version if found.version.is_some() => return twice("PostgreSQL-Backup-Manifest-Version"),
                Key::SystemIdentifier if found.head.system_identifier.is_some() => return twice("System-Identifier"),
                Key::Files if found.head.files.is_some() => return twice("Files"),
                Key::WalRanges if found.head.wal_ranges.is_some() => return twice("WAL-Ranges"),
                Key::Checksum if found.head.checksum => return twice("Manifest-Checksum"),
                Key::Version => {
                    let version = map.next_value()?;
                    found.version = Some(version);
                    // All else may look wrong because of it.
                    let known = u32::try_from(version).ok().filter(|version| matches!(version, 1 | 2));
                    found.head.version = Some(known.ok_or_else(|| A::Error::custom("unknown version"))?);
                }
                Key::SystemIdentifier => found.head.system_identifier = Some(map.next_value()?),
                Key::Files => {
                    let files = Files { failed: &mut found.failed, seen };
                    found.head.files = Some(map.next_value_seed(files)?);
                }
                Key::WalRanges => found.head.wal_ranges = Some(map.next_value_seed(Ranges)?),
                Key::Checksum => {
                    let _checked = map.next_value::<IgnoredAny>()?;
                    found.head.checksum = true;
                }
            }
        }
        let Head { version, files, wal_ranges, checksum, .. } = &found.head;
        let there = [
            (version.is_some(), "PostgreSQL-Backup-Manifest-Version"),
            (files.is_some(), "Files"),
            (wal_ranges.is_some(), "WAL-Ranges"),
            (*checksum, "Manifest-Checksum"),
        ];
        match there.into_iter().find(|(there, _)| !there) {
            Some((_, name)) => Err(A::Error::missing_field(name)),
            None => Ok(()),
        }
    }
}

struct Files<'a, E> {
    failed: &'a mut Option<E>,
    seen: &'a mut dyn FnMut(ManifestFile) -> Result<(), E>,
}

impl<'de, E> DeserializeSeed<'de> for Files<'_, E> {
    type Value = Totals;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Totals, D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de, E> Visitor<'de> for Files<'_, E> {
    type Value = Totals;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Totals, A::Error> {
        let mut listed = Totals { algorithm: ManifestAlgorithm::None, ..Totals::default() };
        while let Some(file) = list.next_element::<ManifestFile>()? {
            if listed.files >= Manifest::MAX_FILES as u64 {
                return Err(A::Error::custom("it lists too many files"));
            }
            listed.files = listed.files.saturating_add(1);
            listed.bytes = listed.bytes.saturating_add(file.size);
            if let (ManifestAlgorithm::None, Some(checksum)) = (listed.algorithm, &file.checksum) {
                listed.algorithm = checksum.algorithm();
            }
            if let Err(e) = (self.seen)(file) {
                *self.failed = Some(e);
                return Err(A::Error::custom("it is not read on"));
            }
        }
        Ok(listed)
    }
}

struct Ranges;

impl<'de> DeserializeSeed<'de> for Ranges {
    type Value = Vec<WalRange>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Ranges {
    type Value = Vec<WalRange>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of ranges of WAL")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut ranges = Vec::new();
        while let Some(range) = list.next_element()? {
            if ranges.len() == MAX_RANGES {
                return Err(A::Error::custom("it lists too many ranges of WAL"));
            }
            ranges.push(range);
        }
        Ok(ranges)
    }
}
