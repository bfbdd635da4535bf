//! Names that cannot lead out of the directory they are laid down in.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use thiserror::Error;

/// The longest path a server handles (`MAXPGPATH`, its final NUL included).
const MAX_BYTES: usize = 1023;

/// The path of a file relative to the data directory or a tablespace: at least one component, none
/// of them empty, `.` or `..`, no NUL, no slash at either end, at most 1023 bytes.
///
/// A name is bytes on the server, in no certain encoding, and stays so here. The order is that of
/// the bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberPath(Box<[u8]>);

impl MemberPath {
    /// Checks a name. A `./` before it is dropped, for servers spell `./pg_wal/archive_status` so.
    ///
    /// # Errors
    /// When the name is not relative, would lead out of its directory, or is no name at all.
    pub fn new(name: &[u8]) -> Result<Self, BadPath> {
        let plain = name.strip_prefix(b"./").unwrap_or(name);
        match fault(plain) {
            None => Ok(Self(plain.into())),
            Some(fault) => Err(BadPath { name: Escaped(shortened(name)).to_string(), fault }),
        }
    }

    /// The path below the data directory of a file that a tablespace's archive names: the manifest
    /// lists `PG_15_202209061/5/1259` of tablespace 16385 as
    /// `pg_tblspc/16385/PG_15_202209061/5/1259`.
    ///
    /// # Errors
    /// When the whole is longer than a path may be.
    pub fn in_tablespace(&self, oid: u32) -> Result<Self, BadPath> {
        let mut whole = format!("pg_tblspc/{oid}/").into_bytes();
        whole.extend_from_slice(&self.0);
        Self::new(&whole)
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name as a relative path.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The name as text; `None` unless it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// The last component.
    pub fn file_name(&self) -> &[u8] {
        self.0.rsplit(|b| *b == b'/').next().unwrap_or(&self.0)
    }

    /// The directories that lead to it, outermost first, itself not among them.
    pub fn ancestors(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().enumerate().filter(|(_, b)| **b == b'/').filter_map(|(at, _)| self.0.get(..at))
    }
}

/// Text with what is not UTF-8, and what would upset a terminal, escaped.
impl fmt::Display for MemberPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped(&self.0).fmt(f)
    }
}

impl fmt::Debug for MemberPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// A name that must not be laid down.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the name \"{name}\" {fault}")]
pub struct BadPath {
    name: String,
    fault: PathFault,
}

impl BadPath {
    /// What is wrong with it.
    pub const fn fault(&self) -> PathFault {
        self.fault
    }
}

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PathFault {
    /// It has no component.
    #[error("is empty")]
    Empty,
    /// It begins with a slash.
    #[error("is absolute")]
    Absolute,
    /// A component is `..`.
    #[error("leads upwards")]
    Upwards,
    /// A component is empty or `.`: two spellings of one file would not compare as equal.
    #[error("has an empty or \".\" component")]
    Spelling,
    /// No file can bear it.
    #[error("contains a zero byte")]
    ZeroByte,
    /// More than 1023 bytes.
    #[error("is longer than a server can handle")]
    TooLong,
}

fn fault(name: &[u8]) -> Option<PathFault> {
    if name.is_empty() {
        return Some(PathFault::Empty);
    }
    if name.len() > MAX_BYTES {
        return Some(PathFault::TooLong);
    }
    if name.starts_with(b"/") {
        return Some(PathFault::Absolute);
    }
    if name.contains(&0) {
        return Some(PathFault::ZeroByte);
    }
    name.split(|b| *b == b'/').find_map(|component| match component {
        b".." => Some(PathFault::Upwards),
        b"" | b"." => Some(PathFault::Spelling),
        _ => None,
    })
}

fn shortened(name: &[u8]) -> &[u8] {
    name.get(..100).unwrap_or(name)
}

/// Bytes for a message: no control character and no invalid UTF-8 reaches the terminal.
struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p6_names_that_lead_elsewhere_are_refused() {
        for (name, fault) in [
            (&b""[..], PathFault::Empty),
            (b"./", PathFault::Empty),
            (b"/etc/passwd", PathFault::Absolute),
            (b".//etc/passwd", PathFault::Absolute),
            (b"..", PathFault::Upwards),
            (b"./../x", PathFault::Upwards),
            (b"base/../../x", PathFault::Upwards),
            (b"base/..", PathFault::Upwards),
            (b".", PathFault::Spelling),
            (b"././x", PathFault::Spelling),
            (b"base//1", PathFault::Spelling),
            (b"base/./1", PathFault::Spelling),
            (b"base/", PathFault::Spelling),
            (b"ba\0se", PathFault::ZeroByte),
            (&[b'x'; 1024], PathFault::TooLong),
        ] {
            assert_eq!(
                MemberPath::new(name).map_err(|e| e.fault()),
                Err(fault),
                "{:?}",
                name.escape_ascii().to_string()
            );
        }
    }

    #[test]
    fn names_that_servers_write_are_kept() {
        for (name, shown) in [
            (&b"PG_VERSION"[..], "PG_VERSION"),
            (b"base/5/1259_fsm", "base/5/1259_fsm"),
            (b"..base/.x/...", "..base/.x/..."),
            (b"caf\xe9/caf\xc3\xa9", "caf\\xe9/caf\u{e9}"),
            (b"two\nlines\x1b", "two\\nlines\\u{1b}"),
        ] {
            let path = MemberPath::new(name).unwrap();
            assert_eq!((path.as_bytes(), path.to_string().as_str()), (name, shown));
            assert_eq!(path.as_path().as_os_str().as_bytes(), name);
        }
        assert_eq!(MemberPath::new(b"./pg_wal/summaries").unwrap().as_bytes(), b"pg_wal/summaries");
        let longest = MemberPath::new(&[b'x'; 1023]).unwrap();
        assert_eq!(longest.in_tablespace(1).map_err(|e| e.fault()), Err(PathFault::TooLong));
    }

    #[test]
    fn parts_of_a_path() {
        let path = MemberPath::new(b"PG_15_202209061/5/1259").unwrap().in_tablespace(16385).unwrap();
        assert_eq!(path.as_str(), Some("pg_tblspc/16385/PG_15_202209061/5/1259"));
        assert_eq!(path.file_name(), b"1259");
        let above: Vec<&[u8]> = path.ancestors().collect();
        let expected: [&[u8]; 4] = [
            b"pg_tblspc",
            b"pg_tblspc/16385",
            b"pg_tblspc/16385/PG_15_202209061",
            b"pg_tblspc/16385/PG_15_202209061/5",
        ];
        assert_eq!(above, expected);
    }
}
