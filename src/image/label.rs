//! `backup_label` and `tablespace_map`: what a server that finds them recovers from and to
//! (`xlogbackup.c`, `xlogrecovery.c`).

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use thiserror::Error;

use crate::wal::{Lsn, Pos, TimelineId};

/// A label is at most 1024 bytes; this leaves room for all else in either file, many tablespaces
/// included.
const MAX_BYTES: usize = 1 << 20;

/// How the backup was begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackupMethod {
    /// By BASE_BACKUP, or by calls that do not exclude other backups.
    Streamed,
    /// By the exclusive calls of servers up to 14.
    Exclusive,
}

/// The role of the server that was copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackupSource {
    /// It took writes: recovery ends at an end-of-backup record.
    Primary,
    /// It was in recovery: recovery ends at the minimum recovery point of the copied `pg_control`.
    Standby,
}

/// The content of `backup_label`. It is restored from the server's own bytes, never from this.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupLabel {
    /// Where recovery begins reading, on the timeline it begins on.
    pub start: Pos,
    /// The name of the segment that holds `start`.
    pub start_file: String,
    /// The checkpoint record from which recovery begins; it lies at or after `start`.
    pub checkpoint: Lsn,
    /// How it was begun.
    pub method: BackupMethod,
    /// Which role the server had.
    pub source: BackupSource,
    /// When it was begun, in the server's own zone and wording.
    pub start_time: String,
    /// The label that was given, for people to read: what is not UTF-8 in it is replaced.
    pub label: String,
    /// The start of the backup that this one only holds the difference to.
    pub incremental_from: Option<Pos>,
}

/// The bytes are not a `backup_label` that a server of 13 or later writes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LabelError {
    /// Larger than any server writes.
    #[error("backup_label is {0} bytes long")]
    TooLong(usize),
    /// A line that must be there is not, or not at its place.
    #[error("backup_label has no \"{0}\" line where one belongs")]
    Missing(&'static str),
    /// A line's content cannot be read.
    #[error("backup_label has no valid \"{0}\" line")]
    Invalid(&'static str),
    /// The segment's name, the timeline and the positions do not belong together.
    #[error("the lines of backup_label contradict each other")]
    Contradiction,
}

impl BackupLabel {
    /// Reads the file.
    ///
    /// # Errors
    /// When a line is missing, out of order, unknown or unreadable.
    pub fn parse(content: &[u8]) -> Result<Self, LabelError> {
        if content.len() > MAX_BYTES {
            return Err(LabelError::TooLong(content.len()));
        }
        let content = content.strip_suffix(b"\n").ok_or(LabelError::Missing("START TIMELINE"))?;
        let mut lines: Vec<&[u8]> = content.split(|b| *b == b'\n').collect();
        // A label may contain line ends. Five lines come before it, and what comes after it is
        // read from the end, so that it cannot pass for one of them.
        let incremental_from = incremental(&mut lines)?;
        let tli = last(&mut lines, "START TIMELINE").ok_or(LabelError::Missing("START TIMELINE"))?;
        let tli = number(tli).and_then(TimelineId::new).ok_or(LabelError::Invalid("START TIMELINE"))?;

        let mut lines = lines.into_iter();
        let (start, start_file) = start(next(&mut lines, "START WAL LOCATION")?)?;
        let checkpoint = lsn(next(&mut lines, "CHECKPOINT LOCATION")?, "CHECKPOINT LOCATION")?;
        let method = match next(&mut lines, "BACKUP METHOD")? {
            b"streamed" => BackupMethod::Streamed,
            b"pg_start_backup" => BackupMethod::Exclusive,
            _ => return Err(LabelError::Invalid("BACKUP METHOD")),
        };
        let source = match next(&mut lines, "BACKUP FROM")? {
            // Servers of 13 use the older word.
            b"primary" | b"master" => BackupSource::Primary,
            b"standby" => BackupSource::Standby,
            _ => return Err(LabelError::Invalid("BACKUP FROM")),
        };
        let start_time = String::from_utf8_lossy(next(&mut lines, "START TIME")?).into_owned();
        let mut label = next(&mut lines, "LABEL")?.to_vec();
        for line in lines {
            label.push(b'\n');
            label.extend_from_slice(line);
        }
        let label = String::from_utf8_lossy(&label).into_owned();
        if !start_file.starts_with(&format!("{:08X}", tli.get())) || checkpoint < start {
            return Err(LabelError::Contradiction);
        }
        let start = Pos::new(tli, start);
        Ok(Self { start, start_file, checkpoint, method, source, start_time, label, incremental_from })
    }
}

/// The value of a `name: value` line.
fn value<'a>(line: &'a [u8], name: &str) -> Option<&'a [u8]> {
    line.strip_prefix(name.as_bytes())?.strip_prefix(b": ")
}

fn next<'a>(lines: &mut impl Iterator<Item = &'a [u8]>, name: &'static str) -> Result<&'a [u8], LabelError> {
    lines.next().and_then(|line| value(line, name)).ok_or(LabelError::Missing(name))
}

/// Takes the last line if it bears this name.
fn last<'a>(lines: &mut Vec<&'a [u8]>, name: &str) -> Option<&'a [u8]> {
    let found = value(lines.last()?, name)?;
    lines.pop();
    Some(found)
}

fn incremental(lines: &mut Vec<&[u8]>) -> Result<Option<Pos>, LabelError> {
    let Some(tli) = last(lines, "INCREMENTAL FROM TLI") else {
        return Ok(None);
    };
    let tli = number(tli).and_then(TimelineId::new).ok_or(LabelError::Invalid("INCREMENTAL FROM TLI"))?;
    let from = last(lines, "INCREMENTAL FROM LSN").ok_or(LabelError::Missing("INCREMENTAL FROM LSN"))?;
    Ok(Some(Pos::new(tli, lsn(from, "INCREMENTAL FROM LSN")?)))
}

/// `1/A0000028 (file 0000000100000001000000A0)`.
fn start(text: &[u8]) -> Result<(Lsn, String), LabelError> {
    let line = "START WAL LOCATION";
    let text = std::str::from_utf8(text).map_err(|_| LabelError::Invalid(line))?;
    let (at, file) = text.split_once(" (file ").ok_or(LabelError::Invalid(line))?;
    let file = file.strip_suffix(')').filter(|name| is_segment_name(name)).ok_or(LabelError::Invalid(line))?;
    Ok((lsn(at.as_bytes(), line)?, file.to_owned()))
}

fn is_segment_name(name: &str) -> bool {
    name.len() == 24 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'))
}

fn lsn(text: &[u8], line: &'static str) -> Result<Lsn, LabelError> {
    let text = std::str::from_utf8(text).ok();
    text.and_then(|text| text.parse().ok()).ok_or(LabelError::Invalid(line))
}

/// Decimal digits alone; no sign.
fn number(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok()?;
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Where a tablespace lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tablespace {
    /// Its object id, which is the name of its link in `pg_tblspc`. Never 0.
    pub oid: u32,
    /// What the link leads to: absolute, or relative for one that lies in `pg_tblspc` itself.
    pub location: PathBuf,
}

/// The content of `tablespace_map`, from which a server makes the links in `pg_tblspc` when it
/// begins to recover.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TablespaceMap(pub Vec<Tablespace>);

/// The bytes are not a `tablespace_map`, or one cannot be written so that a server reads it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TablespaceMapError {
    /// Larger than any server writes.
    #[error("tablespace_map is {0} bytes long")]
    TooLong(usize),
    /// An entry is not an object id and a path.
    #[error("entry {0} of tablespace_map is not a tablespace and its location")]
    Entry(usize),
    /// The last entry has no line end.
    #[error("tablespace_map ends in the middle of an entry")]
    Truncated,
    /// One object id twice.
    #[error("tablespace_map names tablespace {0} twice")]
    Twice(u32),
}

impl TablespaceMap {
    /// Reads the file. Empty is valid: a cluster without tablespaces has such a file in its backup.
    ///
    /// # Errors
    /// When an entry cannot be read or comes twice.
    pub fn parse(content: &[u8]) -> Result<Self, TablespaceMapError> {
        if content.len() > MAX_BYTES {
            return Err(TablespaceMapError::TooLong(content.len()));
        }
        let mut map = Self::default();
        let mut seen = HashSet::new();
        for (index, line) in unescaped_lines(content)?.iter().enumerate() {
            let tablespace = entry(line).ok_or(TablespaceMapError::Entry(index + 1))?;
            if !seen.insert(tablespace.oid) {
                return Err(TablespaceMapError::Twice(tablespace.oid));
            }
            map.0.push(tablespace);
        }
        Ok(map)
    }

    /// Writes it as a server reads it.
    ///
    /// # Errors
    /// When an object id is 0 or comes twice, a location is empty or no path, or all is too long.
    pub fn to_bytes(&self) -> Result<Vec<u8>, TablespaceMapError> {
        let mut out = Vec::new();
        for Tablespace { oid, location } in &self.0 {
            out.extend_from_slice(format!("{oid} ").as_bytes());
            for byte in location.as_os_str().as_bytes() {
                if matches!(byte, b'\\' | b'\n' | b'\r') {
                    out.push(b'\\');
                }
                out.push(*byte);
            }
            out.push(b'\n');
        }
        // What we could not read back, a server could not either.
        Self::parse(&out).map(|_| out)
    }

    /// Where the tablespace lies.
    pub fn location(&self, oid: u32) -> Option<&PathBuf> {
        self.0.iter().find(|t| t.oid == oid).map(|t| &t.location)
    }
}

/// The lines with their escapes resolved: a byte after a backslash stands for itself, a bare line
/// end ends the line.
fn unescaped_lines(content: &[u8]) -> Result<Vec<Vec<u8>>, TablespaceMapError> {
    let mut lines = Vec::new();
    let mut line = Vec::new();
    let mut bytes = content.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => line.push(*bytes.next().ok_or(TablespaceMapError::Truncated)?),
            b'\n' => lines.push(std::mem::take(&mut line)),
            _ => line.push(*byte),
        }
    }
    if line.is_empty() { Ok(lines) } else { Err(TablespaceMapError::Truncated) }
}

fn entry(line: &[u8]) -> Option<Tablespace> {
    let blank = line.iter().position(|b| *b == b' ')?;
    let (oid, location) = line.split_at_checked(blank)?;
    let location = location.strip_prefix(b" ").filter(|path| !path.is_empty() && !path.contains(&0))?;
    let oid = number(oid).filter(|oid| *oid != 0)?;
    Some(Tablespace { oid, location: OsStr::from_bytes(location).into() })
}
