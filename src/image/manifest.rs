//! `backup_manifest`: the server's own list of what it sent, and the comparison with what was laid
//! out (`backup_manifest.c`, `parse_manifest.c`).

mod algorithm;
mod comparison;
mod listed;
mod read;
mod write;

pub use algorithm::{Checksum, Hasher, ManifestAlgorithm, UnknownAlgorithm};
pub use comparison::{Compared, Comparison, Difference, Unequal};
pub use listed::{Listed, ListedError};
pub use read::{ManifestReadError, read_manifest};
pub use write::{ManifestWriter, relisted};

use std::convert::Infallible;

use serde::Deserialize;
use thiserror::Error;

use super::MemberPath;
use crate::wal::{Lsn, TimelineId};

/// What the server writes before its checksum of the manifest.
const CHECKSUM_KEY: &[u8] = b"\n\"Manifest-Checksum\": \"";

/// What the server writes behind it.
const CLOSING: &[u8] = b"\"}\n";

/// What a server lists of one backup, in memory: for small ones, and where files are looked up by their paths.
/// [`read_manifest`] and [`Listed`] do without.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    head: ManifestHead,
    /// In the order of their paths, no path twice.
    files: Vec<ManifestFile>,
}

/// What a manifest says besides its files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ManifestHead {
    /// The version of the format: 1 from servers up to 16, 2 from 17 on.
    pub version: u32,
    /// The cluster that was copied; version 1 does not name it.
    pub system_identifier: Option<u64>,
    /// How many files it lists.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of the first checksum in it; a server uses one algorithm for all.
    pub algorithm: ManifestAlgorithm,
    /// The WAL that the backup needs, newest timeline first.
    pub wal_ranges: Vec<WalRange>,
}

/// A file of the backup.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "RawFile")]
pub struct ManifestFile {
    /// Below the data directory; that of a file in a tablespace begins `pg_tblspc/<oid>/`.
    pub path: MemberPath,
    /// Bytes.
    pub size: u64,
    /// `None` where the manifest was asked for without checksums.
    pub checksum: Option<Checksum>,
}

/// A stretch of WAL that the backup needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "RawRange")]
pub struct WalRange {
    /// The timeline it is on.
    pub tli: TimelineId,
    /// The first byte.
    pub start: Lsn,
    /// Exclusive end.
    pub end: Lsn,
}

/// The bytes are not a manifest that a server wrote.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ManifestError {
    /// Above our limit.
    #[error("the manifest is {0} bytes long, more than {max}", max = Manifest::MAX_BYTES)]
    TooLong(usize),
    /// It does not end in its own checksum: cut short, or no manifest.
    #[error("the manifest does not end in its own checksum")]
    NoChecksum,
    /// It is not what the server wrote.
    #[error("the manifest does not match its own checksum")]
    Checksum,
    /// A version that is not known here.
    #[error("the manifest has version {0}, which is not known here")]
    Version(u64),
    /// It is not JSON of the form that servers write, or a value in it is out of range.
    #[error("the manifest cannot be read: {0}")]
    Content(String),
    /// Version 1 never has one, version 2 always.
    #[error("the manifest's version does not go with its system identifier")]
    SystemIdentifier,
    /// One path twice.
    #[error("the manifest lists \"{0}\" twice")]
    Twice(MemberPath),
}

impl Manifest {
    /// Bytes that a manifest may have; some ten million files fit.
    pub const MAX_BYTES: usize = 1 << 30;

    /// Files that a manifest may list.
    pub const MAX_FILES: usize = 10_000_000;

    /// Reads a manifest, and checks it against its own checksum. Keep the bytes: what is
    /// stored and restored is what the server wrote.
    ///
    /// # Errors
    /// When it is damaged, of an unknown version, or above a limit.
    pub fn parse(content: &[u8]) -> Result<Self, ManifestError> {
        let mut files = Vec::new();
        let head = read_manifest(&mut &*content, content.len() as u64, &mut |file| {
            files.push(file);
            Ok::<_, Infallible>(())
        });
        let head = head.map_err(|e| match e {
            ManifestReadError::Manifest(e) => e,
            ManifestReadError::Io(e) => ManifestError::Content(e.to_string()),
            ManifestReadError::Seen(never) => match never {},
        })?;
        Self::of(head, files)
    }

    /// What was read of one.
    ///
    /// # Errors
    /// When it lists a path twice.
    pub fn of(head: ManifestHead, mut files: Vec<ManifestFile>) -> Result<Self, ManifestError> {
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        match files.array_windows().find(|[a, b]| a.path == b.path) {
            Some([first, _]) => Err(ManifestError::Twice(first.path.clone())),
            None => Ok(Self { head, files }),
        }
    }

    /// The version of the format: 1 from servers up to 16, 2 from 17 on.
    pub const fn version(&self) -> u32 {
        self.head.version
    }

    /// The cluster that was copied; version 1 does not name it.
    pub const fn system_identifier(&self) -> Option<u64> {
        self.head.system_identifier
    }

    /// The files, in the order of their paths' bytes, each once.
    pub fn files(&self) -> &[ManifestFile] {
        &self.files
    }

    /// The WAL that the backup needs, newest timeline first.
    pub fn wal_ranges(&self) -> &[WalRange] {
        &self.head.wal_ranges
    }

    /// The entry of one file.
    pub fn file(&self, path: &MemberPath) -> Option<&ManifestFile> {
        let at = self.files.binary_search_by(|file| file.path.cmp(path)).ok()?;
        self.files.get(at)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(rename = "Path")]
    path: Option<String>,
    /// Hexadecimal, where the name is not UTF-8 or the client asked for it.
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Last-Modified")]
    _modified: serde::de::IgnoredAny,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

impl TryFrom<RawFile> for ManifestFile {
    type Error = String;

    fn try_from(raw: RawFile) -> Result<Self, String> {
        let name = match (raw.path, raw.encoded_path) {
            (Some(path), None) => path.into_bytes(),
            (None, Some(hex)) => algorithm::unhex(hex.as_bytes()).ok_or("a path is not hexadecimal")?.into(),
            _ => return Err("a file has no path, or two".to_owned()),
        };
        let path = MemberPath::new(&name).map_err(|error| error.to_string())?;
        // Servers spell paths in one way here; another spelling of a listed file is another file.
        if path.as_bytes() != name {
            return Err(format!("the path of \"{path}\" begins with \"./\""));
        }
        let checksum = match (raw.algorithm, raw.checksum) {
            (None, None) => None,
            (Some(name), Some(hex)) => Some(checksum(&name, &hex).map_err(|why| format!("\"{path}\" {why}"))?),
            _ => return Err(format!("\"{path}\" has a checksum or its algorithm, not both")),
        };
        Ok(Self { path, size: raw.size, checksum })
    }
}

fn checksum(name: &str, hex: &str) -> Result<Checksum, String> {
    let algorithm: ManifestAlgorithm = name.parse().map_err(|error| format!("has a checksum of {error}"))?;
    let bytes = algorithm::unhex(hex.as_bytes()).ok_or("has a checksum that is not hexadecimal")?;
    Checksum::new(algorithm, bytes).ok_or_else(|| format!("has a checksum of the wrong length for {algorithm}"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRange {
    #[serde(rename = "Timeline")]
    tli: u32,
    #[serde(rename = "Start-LSN")]
    start: String,
    #[serde(rename = "End-LSN")]
    end: String,
}

impl TryFrom<RawRange> for WalRange {
    type Error = String;

    fn try_from(raw: RawRange) -> Result<Self, String> {
        let tli = TimelineId::new(raw.tli).ok_or("a WAL range is on timeline 0")?;
        let lsn = |text: &str| text.parse::<Lsn>().map_err(|error| error.to_string());
        let (start, end) = (lsn(&raw.start)?, lsn(&raw.end)?);
        if end < start {
            return Err(format!("the WAL range on timeline {tli} ends before it starts"));
        }
        Ok(Self { tli, start, end })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;
    use sha2::{Digest as _, Sha256};

    use super::*;

    /// A manifest with its own checksum, as a server would end it.
    pub(in crate::image) fn sealed(body: &str) -> Vec<u8> {
        let sum = Sha256::digest(body.as_bytes());
        let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{body}\"Manifest-Checksum\": \"{hex}\"}}\n").into_bytes()
    }

    const FILE: &str = r#"{ "Path": "base/1/1247", "Size": 3, "Last-Modified": "2026-11-22 11:57:49 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "f35ce964" }"#;
    const RANGE: &str = r#"{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000100" }"#;

    pub(in crate::image) fn version_1(files: &str, ranges: &str) -> String {
        format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{files}\n],\n\"WAL-Ranges\": [\n{ranges}\n],\n"
        )
    }

    fn parse(body: &str) -> Result<Manifest, ManifestError> {
        Manifest::parse(&sealed(body))
    }

    fn path(name: &[u8]) -> MemberPath {
        MemberPath::new(name).unwrap()
    }

    #[test]
    fn what_a_server_lists_is_read() {
        let encoded = r#"{ "Encoded-Path": "6f6464e96e", "Size": 0, "Last-Modified": "x" }"#;
        let manifest = parse(&version_1(&format!("{FILE},\n{encoded}"), RANGE)).unwrap();
        let checksum = Checksum::new(ManifestAlgorithm::Crc32c, vec![0xF3, 0x5C, 0xE9, 0x64].into());
        let expected = [
            ManifestFile { path: path(b"base/1/1247"), size: 3, checksum },
            ManifestFile { path: path(b"odd\xe9n"), size: 0, checksum: None },
        ];
        assert_eq!(manifest.files(), expected);
        assert_eq!(manifest.file(&expected[1].path), Some(&expected[1]));
        assert_eq!(manifest.file(&path(b"base/1/1248")), None);
        assert_eq!((manifest.version(), manifest.system_identifier()), (1, None));
        let (start, end) = (Lsn::new(0x200_0028), Lsn::new(0x200_0100));
        assert_eq!(manifest.wal_ranges(), [WalRange { tli: TimelineId::FIRST, start, end }]);
        assert_eq!(parse(&version_1("", "")).unwrap().files(), []);
    }

    #[test]
    fn version_2_names_the_cluster() {
        let of = |head: &str| parse(&version_1("", "").replace("Version\": 1,", head));
        let manifest = of("Version\": 2,\n\"System-Identifier\": 18446744073709551615,").unwrap();
        assert_eq!((manifest.version(), manifest.system_identifier()), (2, Some(u64::MAX)));
        assert_eq!(of("Version\": 2,"), Err(ManifestError::SystemIdentifier));
        assert_eq!(of("Version\": 1,\n\"System-Identifier\": 1,"), Err(ManifestError::SystemIdentifier));
        assert_eq!(of("Version\": 0,"), Err(ManifestError::Version(0)));
        assert_eq!(of("Version\": 3,\n\"New\": [],"), Err(ManifestError::Version(3)));
        assert_eq!(of("Version\": 5000000000,"), Err(ManifestError::Version(5_000_000_000)));
    }

    #[test]
    fn its_own_checksum_covers_all_before_it() {
        let whole = sealed(&version_1(FILE, RANGE));
        assert!(Manifest::parse(&whole).is_ok());
        for cut in 0..whole.len() {
            assert_eq!(Manifest::parse(&whole[..cut]), Err(ManifestError::NoChecksum), "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut content = whole.clone();
            content[at] ^= 1;
            let error = Manifest::parse(&content).unwrap_err();
            assert!(matches!(error, ManifestError::Checksum | ManifestError::NoChecksum), "byte {at}: {error}");
        }
        let longer = [&whole[..], b"\n"].concat();
        assert_eq!(Manifest::parse(&longer), Err(ManifestError::NoChecksum));
    }

    #[test]
    fn what_no_server_lists_is_refused() {
        let told = |files: &str, ranges: &str| match parse(&version_1(files, ranges)) {
            Err(ManifestError::Content(told)) => told.split(" at line ").next().unwrap().to_owned(),
            other => panic!("{files}: {other:?}"),
        };
        for (old, new, error) in [
            ("base/1", "../1", "the name \"../1/1247\" leads upwards"),
            ("base/1", "/base/1", "the name \"/base/1/1247\" is absolute"),
            ("base/1", "./base/1", "the path of \"base/1/1247\" begins with \"./\""),
            ("base/1", "b\\u0000", "the name \"b\\u{0}/1247\" contains a zero byte"),
            ("\"Path\"", "\"Encoded-Path\"", "a path is not hexadecimal"),
            ("\"Path\"", "\"Encoded-Path\": \"61\", \"Path\"", "a file has no path, or two"),
            ("\"Path\": \"base/1/1247\", ", "", "a file has no path, or two"),
            ("Size\": 3", "Size\": -3", "invalid value: integer `-3`, expected u64"),
            ("\"Size\": 3, ", "", "missing field `Size`"),
            ("\"Size\": 3, ", "\"Size\": 3, \"Size\": 3, ", "duplicate field `Size`"),
            (
                "CRC32C",
                "MD5",
                "\"base/1/1247\" has a checksum of unknown algorithm \"MD5\" (NONE, CRC32C, SHA224, SHA256, SHA384 or SHA512)",
            ),
            ("CRC32C", "NONE", "\"base/1/1247\" has a checksum of the wrong length for NONE"),
            ("CRC32C", "SHA256", "\"base/1/1247\" has a checksum of the wrong length for SHA256"),
            ("f35ce964", "f35ce96g", "\"base/1/1247\" has a checksum that is not hexadecimal"),
            (", \"Checksum\": \"f35ce964\"", "", "\"base/1/1247\" has a checksum or its algorithm, not both"),
        ] {
            assert_eq!(told(&FILE.replacen(old, new, 1), RANGE), error);
        }
        for (old, new, error) in [
            ("Timeline\": 1", "Timeline\": 0", "a WAL range is on timeline 0"),
            ("0/2000100", "0/2000027", "the WAL range on timeline 1 ends before it starts"),
        ] {
            assert_eq!(told(FILE, &RANGE.replacen(old, new, 1)), error);
        }
        assert!(told(FILE, &RANGE.replace("0/2000028", "2000028")).contains("not a WAL position"));
        assert!(told(&FILE.replace("\"Size\"", "\"Extra\": 1, \"Size\""), RANGE).starts_with("unknown field `Extra`"));
        let twice = version_1(&format!("{FILE},{FILE}"), RANGE);
        assert_eq!(parse(&twice), Err(ManifestError::Twice(path(b"base/1/1247"))));
    }

    /// Of what is not a file's line nothing is kept, however long it is.
    #[test]
    fn p6_lines_are_bounded() {
        for long in [FILE.replace("1247", &"7".repeat(1 << 20)), FILE.replace("GMT", &"x".repeat(1 << 20))] {
            for files in [&*long, &format!("{FILE},\n{long},\n{FILE}")] {
                let told = parse(&version_1(files, RANGE)).unwrap_err().to_string();
                assert!(told.contains("a line of it is far too long"), "{told}");
            }
        }
        let ranges = [RANGE; 10_001].join(",\n");
        let told = parse(&version_1(FILE, &ranges)).unwrap_err().to_string();
        assert!(told.contains("too many ranges"), "{told}");
    }

    #[test]
    fn what_is_missing_or_twice_is_told() {
        let whole = version_1(FILE, RANGE);
        let files = &whole[whole.find("\"Files\"").unwrap()..whole.find("\"WAL-Ranges\"").unwrap()];
        let ranges = &whole[whole.find("\"WAL-Ranges\"").unwrap()..];
        let content = |body: String| match parse(&body) {
            Err(ManifestError::Content(told)) => told,
            other => panic!("{body}: {other:?}"),
        };
        for (part, name) in [(files, "Files"), (ranges, "WAL-Ranges")] {
            assert!(content(whole.replace(part, "")).starts_with(&format!("missing field `{name}`")));
            assert!(content(format!("{whole}{part}")).starts_with(&format!("duplicate field `{name}`")));
        }
        assert!(content(format!("{whole}\"More\": 1,\n")).starts_with("unknown field `More`"));
    }

    #[test]
    fn depth_is_bounded() {
        let deep = FILE.replace("\"2026-11-22 11:57:49 GMT\"", &"[".repeat(1 << 20));
        assert!(matches!(parse(&version_1(&deep, RANGE)), Err(ManifestError::Content(_))));
    }

    proptest! {
        #[test]
        fn p6_no_content_does_harm(junk: Vec<u8>, changes: Vec<(Index, u8)>) {
            let _ = Manifest::parse(&junk);
            let mut body = version_1(FILE, RANGE).into_bytes();
            for (at, byte) in changes {
                let at = at.index(body.len());
                body[at] = byte;
            }
            if let Ok(body) = std::str::from_utf8(&body) {
                let _ = parse(body);
            }
            let _ = Manifest::parse(&body);
        }
    }
}
