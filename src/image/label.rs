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

/// The file as it is for the full backup that an incremental one is combined to: without the lines that say what it is
/// based on (`pg_combinebackup/backup_label.c`).
pub fn combined_label(content: &[u8]) -> Vec<u8> {
    let of_increment =
        |line: &&[u8]| line.starts_with(b"INCREMENTAL FROM LSN: ") || line.starts_with(b"INCREMENTAL FROM TLI: ");
    content.split_inclusive(|b| *b == b'\n').filter(|line| !of_increment(line)).flatten().copied().collect()
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
        for (number, line) in (1..).zip(unescaped_lines(content)?.iter()) {
            let tablespace = entry(line).ok_or(TablespaceMapError::Entry(number))?;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As a server of 17 writes it.
    const REAL: &str = "START WAL LOCATION: 1/C000028 (file 00000002000000010000000C)\n\
        CHECKPOINT LOCATION: 1/C000080\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-11-22 11:57:49 UTC\nLABEL: pg_basebackup base backup\nSTART TIMELINE: 2\n";

    fn parse(text: &str) -> Result<BackupLabel, LabelError> {
        BackupLabel::parse(text.as_bytes())
    }

    fn pos(tli: u32, lsn: u64) -> Pos {
        Pos::new(TimelineId::new(tli).unwrap(), Lsn::new(lsn))
    }

    fn real() -> BackupLabel {
        BackupLabel {
            start: pos(2, 0x1_0C00_0028),
            start_file: "00000002000000010000000C".into(),
            checkpoint: Lsn::new(0x1_0C00_0080),
            method: BackupMethod::Streamed,
            source: BackupSource::Primary,
            start_time: "2026-11-22 11:57:49 UTC".into(),
            label: "pg_basebackup base backup".into(),
            incremental_from: None,
        }
    }

    #[test]
    fn labels_that_servers_write() {
        assert_eq!(parse(REAL), Ok(real()));
        let standby = REAL.replace("primary", "standby");
        assert_eq!(parse(&standby), Ok(BackupLabel { source: BackupSource::Standby, ..real() }));
        let of_13 = REAL.replace("primary", "master").replace("streamed", "pg_start_backup");
        assert_eq!(parse(&of_13), Ok(BackupLabel { method: BackupMethod::Exclusive, ..real() }));
        let incremental = format!("{REAL}INCREMENTAL FROM LSN: 0/A000028\nINCREMENTAL FROM TLI: 1\n");
        let incremental_from = Some(pos(1, 0xA00_0028));
        assert_eq!(parse(&incremental), Ok(BackupLabel { incremental_from, ..real() }));
    }

    #[test]
    fn a_label_cannot_pass_for_another_line() {
        for label in ["", "a\nb", "x\nSTART TIMELINE: 9", "x\n\n", "x\nSTART TIMELINE: 9\nINCREMENTAL FROM LSN: 0/1"] {
            let text = REAL.replace("pg_basebackup base backup", label);
            assert_eq!(parse(&text), Ok(BackupLabel { label: label.into(), ..real() }));
        }
    }

    #[test]
    fn each_line_must_be_there_and_be_right() {
        for (old, new, error) in [
            ("START WAL", "BEGIN WAL", LabelError::Missing("START WAL LOCATION")),
            ("1/C000028", "1C000028", LabelError::Invalid("START WAL LOCATION")),
            ("0000000C)", "0000000C", LabelError::Invalid("START WAL LOCATION")),
            ("0000000C)", "0000000)", LabelError::Invalid("START WAL LOCATION")),
            ("CHECKPOINT LOCATION: 1/C000080\n", "", LabelError::Missing("CHECKPOINT LOCATION")),
            ("1/C000080", "1/C000020", LabelError::Contradiction),
            ("streamed", "copied", LabelError::Invalid("BACKUP METHOD")),
            ("primary", "", LabelError::Invalid("BACKUP FROM")),
            ("START TIME:", "START DATE:", LabelError::Missing("START TIME")),
            ("LABEL", "label", LabelError::Missing("LABEL")),
            ("TIMELINE: 2", "TIMELINE: 1", LabelError::Contradiction),
            ("TIMELINE: 2", "TIMELINE: 0", LabelError::Invalid("START TIMELINE")),
            ("TIMELINE: 2", "TIMELINE: +2", LabelError::Invalid("START TIMELINE")),
            ("TIMELINE: 2\n", "TIMELINE: 2", LabelError::Missing("START TIMELINE")),
            ("TIMELINE: 2\n", "TIMELINE: 2\n\n", LabelError::Missing("START TIMELINE")),
            ("TIMELINE: 2\n", "TIMELINE: 2\nINCREMENTAL FROM TLI: 1\n", LabelError::Missing("INCREMENTAL FROM LSN")),
        ] {
            assert_eq!(parse(&REAL.replace(old, new)), Err(error), "{old} -> {new}");
        }
        let long = vec![b'x'; MAX_BYTES + 1];
        assert_eq!(BackupLabel::parse(&long), Err(LabelError::TooLong(long.len())));
    }

    fn map(entries: &[(u32, &str)]) -> TablespaceMap {
        TablespaceMap(
            entries.iter().map(|(oid, location)| Tablespace { oid: *oid, location: location.into() }).collect(),
        )
    }

    #[test]
    fn maps_that_servers_write() {
        for (text, entries) in [
            ("", &[][..]),
            ("16384 /srv/one\n16385 pg_tblspc/16385\n", &[(16384, "/srv/one"), (16385, "pg_tblspc/16385")]),
            ("1 /with blanks \n", &[(1, "/with blanks ")]),
            ("4294967295 /a\\\nb\\\rc\\\\d\n", &[(u32::MAX, "/a\nb\rc\\d")]),
        ] {
            assert_eq!(TablespaceMap::parse(text.as_bytes()), Ok(map(entries)));
            assert_eq!(map(entries).to_bytes(), Ok(text.as_bytes().to_vec()));
        }
        let two = map(&[(1, "/a"), (2, "/b")]);
        assert_eq!((two.location(2), two.location(3)), (Some(&"/b".into()), None));
    }

    #[test]
    fn maps_that_they_do_not() {
        use TablespaceMapError as E;
        for (text, error) in [
            ("16384\n", E::Entry(1)),
            ("1 /a\n\n", E::Entry(2)),
            ("0 /a\n", E::Entry(1)),
            ("-1 /a\n", E::Entry(1)),
            ("4294967296 /a\n", E::Entry(1)),
            ("1 \n", E::Entry(1)),
            ("1 /a\0b\n", E::Entry(1)),
            ("1 /a\n2 /b", E::Truncated),
            ("1 /a\\", E::Truncated),
            ("1 /a\n2 /b\n1 /a\n", E::Twice(1)),
        ] {
            assert_eq!(TablespaceMap::parse(text.as_bytes()), Err(error), "{text:?}");
        }
        assert_eq!(TablespaceMap::parse(&vec![b'\n'; MAX_BYTES + 1]), Err(E::TooLong(MAX_BYTES + 1)));
        assert_eq!(map(&[(0, "/a")]).to_bytes(), Err(E::Entry(1)));
        assert_eq!(map(&[(1, "/a"), (1, "/b")]).to_bytes(), Err(E::Twice(1)));
        assert_eq!(map(&[(1, "")]).to_bytes(), Err(E::Entry(1)));
    }

    proptest! {
        #[test]
        fn p6_no_label_does_harm(content: Vec<u8>, at in 0..REAL.len(), byte: u8, cut: bool) {
            let _ = BackupLabel::parse(&content);
            let mut label = REAL.as_bytes().to_vec();
            label[at] = byte;
            if cut {
                label.truncate(at);
            }
            let _ = BackupLabel::parse(&label);
        }

        #[test]
        fn any_location_comes_back_from_a_map(entries: Vec<(u32, Vec<u8>)>) {
            let entry = |(oid, path): &(u32, Vec<u8>)| Tablespace { oid: *oid, location: OsStr::from_bytes(path).into() };
            let map = TablespaceMap(entries.iter().map(entry).collect());
            if let Ok(bytes) = map.to_bytes() {
                prop_assert_eq!(TablespaceMap::parse(&bytes), Ok(map));
            } else {
                let odd = |(oid, path): &(u32, Vec<u8>)| *oid == 0 || path.is_empty() || path.contains(&0);
                let oids: HashSet<u32> = entries.iter().map(|(oid, _)| *oid).collect();
                prop_assert!(entries.iter().any(odd) || oids.len() < entries.len());
            }
        }

        #[test]
        fn p6_no_map_does_harm(content in r"([0-9]{1,11} [/a\\\n\r]{0,9}\n?){0,5}", junk: Vec<u8>) {
            let _ = TablespaceMap::parse(&junk);
            if let Ok(map) = TablespaceMap::parse(content.as_bytes()) {
                prop_assert_eq!(TablespaceMap::parse(&map.to_bytes().unwrap()), Ok(map));
            }
        }
    }
}
