//! Replication commands as text, and the rows that answer them as values.
//!
//! Command words must be upper case. A name is always put in double quotes and a string in single
//! ones, doubled inside; the walsender's scanner (`repl_scanner.l`) knows no other escape.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;

use super::{ProtocolError, Row, ServerVersion};
use crate::codec::Method;
use crate::image::ManifestAlgorithm;
use crate::wal::{Lsn, Pos, TimelineId};

/// A replication slot's name: 1 to 63 of `a-z`, `0-9` and `_`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SlotName(String);

impl SlotName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text cannot be a slot's name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("\"{0}\" cannot be a slot's name: it takes 1 to 63 lower-case letters, digits and underscores")]
pub struct SlotNameError(pub String);

impl FromStr for SlotName {
    type Err = SlotNameError;

    fn from_str(text: &str) -> Result<Self, SlotNameError> {
        let plain = text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        if plain && (1..=63).contains(&text.len()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(SlotNameError(text.to_owned()))
        }
    }
}

/// How long a new slot lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotKind {
    /// Until it is dropped.
    Permanent,
    /// Until the connection that made it ends, or has an error.
    Temporary,
}

/// From when on a new slot keeps WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retention {
    /// At once, from the redo point of the last checkpoint.
    Reserved,
    /// From the first flush position that is reported; nothing is kept before.
    FromFirstReport,
}

/// How the checkpoint that begins a backup is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checkpoint {
    /// As fast as the server can.
    Fast,
    /// At the pace of its regular checkpoints: the copy may begin minutes later.
    Spread,
}

/// A bound on the speed of a copy, in kB (1024 bytes) a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MaxRate(u32);

impl MaxRate {
    /// `None` outside of 32 to 1048576, the range that servers accept.
    pub const fn new(kb_a_second: u32) -> Option<Self> {
        if kb_a_second >= 32 && kb_a_second <= 1 << 20 { Some(Self(kb_a_second)) } else { None }
    }
}

/// What to ask of BASE_BACKUP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BaseBackup {
    /// What `backup_label` will name it; the server takes up to 1024 bytes.
    pub label: String,
    /// How it begins.
    pub checkpoint: Checkpoint,
    /// Its greatest speed.
    pub max_rate: Option<MaxRate>,
    /// The manifest, if there is to be one.
    pub manifest: Option<ManifestAsked>,
    /// Whether sizes are estimated first, at the price of a walk through the data directory.
    pub estimate_size: bool,
    /// Whether a `tablespace_map` file comes in place of symbolic links.
    pub tablespace_map: bool,
    /// Whether the WAL from start to stop comes with the data directory.
    pub wal: bool,
    /// Whether the server ends the backup only when its own archiver has all of that WAL.
    pub wait_for_archive: bool,
    /// Whether the server checks the checksums of the pages that it sends.
    pub verify_checksums: bool,
    /// Compression by the server, from 15 on.
    pub compression: Option<ServerCompression>,
    /// Where the archives go, if not to us; from 15 on.
    pub target: Option<BackupTarget>,
    /// Whether only what changed since the backup is sent whose manifest was uploaded before, in the
    /// same session; servers know this from 17 on.
    pub incremental: bool,
}

impl BaseBackup {
    /// The files alone, sent to us as they are.
    pub const fn new(label: String) -> Self {
        Self {
            label,
            checkpoint: Checkpoint::Spread,
            max_rate: None,
            manifest: None,
            estimate_size: false,
            tablespace_map: false,
            wal: false,
            wait_for_archive: false,
            verify_checksums: true,
            compression: None,
            target: None,
            incremental: false,
        }
    }
}

/// A manifest to be sent by the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ManifestAsked {
    /// The checksums in it.
    pub algorithm: ManifestAlgorithm,
    /// Whether all names are written in hexadecimal.
    pub force_encode: bool,
}

/// Compression by the server, in its own words: what it can do only it knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerCompression {
    /// With what, such as `gzip`.
    pub name: String,
    /// Level or options.
    pub detail: Option<String>,
}

impl ServerCompression {
    /// What the archives come as; `None` if they are not compressed, or by what we do not know.
    pub fn method(&self) -> Option<Method> {
        Method::ALL.into_iter().find(|method| method.name() == self.name)
    }
}

/// Where a server puts a backup that it does not send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupTarget {
    /// `server`, `blackhole`, or what an extension has added.
    pub name: String,
    /// What follows its colon: a directory on the server.
    pub detail: Option<String>,
}

/// The commands.
pub mod command {
    use super::*;

    /// Asks who the server is and where its log ends.
    pub const IDENTIFY_SYSTEM: &str = "IDENTIFY_SYSTEM";

    /// Asks for a setting.
    pub fn show(setting: &str) -> String {
        format!("SHOW {}", name(setting))
    }

    /// Makes a physical slot.
    pub fn create_slot(version: ServerVersion, slot: &SlotName, kind: SlotKind, retention: Retention) -> String {
        let temporary = if kind == SlotKind::Temporary { " TEMPORARY" } else { "" };
        let reserve = match (retention, version.is_15_or_later()) {
            (Retention::FromFirstReport, _) => "",
            (Retention::Reserved, false) => " RESERVE_WAL",
            (Retention::Reserved, true) => " (RESERVE_WAL)",
        };
        format!("CREATE_REPLICATION_SLOT {}{temporary} PHYSICAL{reserve}", name(slot.as_str()))
    }

    /// Asks about a slot; servers know this from 15 on.
    pub fn read_slot(slot: &SlotName) -> String {
        format!("READ_REPLICATION_SLOT {}", name(slot.as_str()))
    }

    /// Removes a slot; an error while it is in use.
    pub fn drop_slot(slot: &SlotName) -> String {
        format!("DROP_REPLICATION_SLOT {}", name(slot.as_str()))
    }

    /// Asks for a timeline's history file.
    pub fn timeline_history(tli: TimelineId) -> String {
        format!("TIMELINE_HISTORY {tli}")
    }

    /// Begins to stream. The server sends from exactly `start` on.
    pub fn start_replication(slot: Option<&SlotName>, start: Pos) -> String {
        let slot = slot.map(|slot| format!("SLOT {} ", name(slot.as_str()))).unwrap_or_default();
        format!("START_REPLICATION {slot}PHYSICAL {} TIMELINE {}", start.lsn(), start.tli())
    }

    /// Announces the manifest of an earlier backup; servers know this from 17 on.
    pub const UPLOAD_MANIFEST: &str = "UPLOAD_MANIFEST";

    /// Begins a base backup. Until 14 options are bare words in a row, from 15 on a list.
    pub fn base_backup(version: ServerVersion, backup: &BaseBackup) -> String {
        let new = version.is_15_or_later();
        let mut options = vec![format!("LABEL {}", string(&backup.label))];
        let mut add = |wanted: bool, old_text: &str, new_text: &str| {
            if wanted {
                options.push(if new { new_text } else { old_text }.to_owned());
            }
        };
        add(backup.estimate_size, "PROGRESS", "PROGRESS");
        add(backup.wal, "WAL", "WAL");
        add(backup.checkpoint == Checkpoint::Fast, "FAST", "CHECKPOINT 'fast'");
        add(new && backup.checkpoint == Checkpoint::Spread, "", "CHECKPOINT 'spread'");
        add(!backup.wait_for_archive, "NOWAIT", "WAIT 0");
        add(backup.tablespace_map, "TABLESPACE_MAP", "TABLESPACE_MAP");
        add(backup.incremental, "INCREMENTAL", "INCREMENTAL");
        add(!backup.verify_checksums, "NOVERIFY_CHECKSUMS", "VERIFY_CHECKSUMS 0");
        options.extend(backup.max_rate.map(|rate| format!("MAX_RATE {}", rate.0)));
        if let Some(manifest) = backup.manifest {
            options.push(format!("MANIFEST '{}'", if manifest.force_encode { "force-encode" } else { "yes" }));
            options.push(format!("MANIFEST_CHECKSUMS '{}'", manifest.algorithm.name()));
        }
        // What a server does not know it names in its error.
        let mut detailed = |option: &str, value: &str, detail: Option<&String>| {
            options.push(format!("{option} {}", string(value)));
            options.extend(detail.map(|detail| format!("{option}_DETAIL {}", string(detail))));
        };
        if let Some(target) = &backup.target {
            detailed("TARGET", &target.name, target.detail.as_ref());
        }
        if let Some(compression) = &backup.compression {
            detailed("COMPRESSION", &compression.name, compression.detail.as_ref());
        }
        if new { format!("BASE_BACKUP ({})", options.join(", ")) } else { format!("BASE_BACKUP {}", options.join(" ")) }
    }

    fn name(text: &str) -> String {
        quoted(text, '"')
    }

    fn string(text: &str) -> String {
        quoted(text, '\'')
    }

    fn quoted(text: &str, quote: char) -> String {
        let mut out = String::with_capacity(text.len().saturating_add(2));
        out.push(quote);
        for c in text.chars() {
            if c == quote {
                out.push(quote);
            }
            out.push(c);
        }
        out.push(quote);
        out
    }
}

/// Who the server is (IDENTIFY_SYSTEM).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SystemIdentity {
    /// What `initdb` gave the cluster; copies and standbys share it.
    pub system_id: u64,
    /// The timeline it is on, and how far its log is flushed there (a standby's: received).
    pub position: Pos,
    /// The database of a logical walsender; `None` on a physical one.
    pub database: Option<String>,
}

impl SystemIdentity {
    /// Reads the answer.
    ///
    /// # Errors
    /// When it is not one row of four values that make sense.
    pub fn from_rows(rows: &[Row]) -> Result<Self, ProtocolError> {
        let [system_id, tli, lsn, database] = single(rows, "IDENTIFY_SYSTEM")?;
        Ok(Self {
            system_id: number(required(system_id, "system identifier")?, "system identifier")?,
            position: Pos::new(timeline(required(tli, "timeline")?)?, position(required(lsn, "WAL position")?)?),
            database: database.as_deref().map(|name| text(name, "database")).transpose()?,
        })
    }
}

/// A slot as READ_REPLICATION_SLOT tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotState {
    /// There is none of that name.
    Missing,
    /// A physical slot.
    Physical {
        /// From where on it keeps WAL; `None` if it keeps none.
        restart: Option<Pos>,
    },
}

impl SlotState {
    /// Reads the answer.
    ///
    /// # Errors
    /// When it is not one row of three values that make sense.
    pub fn from_rows(rows: &[Row]) -> Result<Self, ProtocolError> {
        let [kind, lsn, tli] = single(rows, "READ_REPLICATION_SLOT")?;
        let restart = match (lsn, tli) {
            (Some(lsn), Some(tli)) => Some(Pos::new(timeline(tli)?, position(lsn)?)),
            (None, None) => None,
            _ => return Err(ProtocolError::Shape("READ_REPLICATION_SLOT")),
        };
        match kind.as_deref() {
            None => Ok(Self::Missing),
            Some(b"physical") => Ok(Self::Physical { restart }),
            Some(other) => Err(ProtocolError::value("slot type", other)),
        }
    }
}

/// Where a timeline that the server no longer follows goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextTimeline {
    /// The timeline after it.
    pub tli: TimelineId,
    /// Where it leaves the old one; exclusive end of what of the old one counts.
    pub at: Lsn,
}

impl NextTimeline {
    /// Reads the result set that ends a historic timeline; no row when the timeline is current.
    ///
    /// # Errors
    /// When it is something else than at most one row of a timeline and a position.
    pub fn from_rows(rows: &[Row]) -> Result<Option<Self>, ProtocolError> {
        if rows.is_empty() {
            return Ok(None);
        }
        let [tli, at] = single(rows, "START_REPLICATION")?;
        let tli = timeline(required(tli, "next timeline")?)?;
        Ok(Some(Self { tli, at: position(required(at, "switch point")?)? }))
    }
}

/// Reads the row of a position and its timeline that comes before a base backup's copy (where it
/// starts), and again after it (where it stops).
///
/// # Errors
/// When it is not one such row.
pub fn backup_position(rows: &[Row]) -> Result<Pos, ProtocolError> {
    let [lsn, tli] = single(rows, "BASE_BACKUP")?;
    Ok(Pos::new(timeline(required(tli, "timeline")?)?, position(required(lsn, "WAL position")?)?))
}

/// What a base backup has to copy: one archive each. The data directory itself has neither oid nor
/// location, and comes last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TablespaceRow {
    /// The tablespace.
    pub oid: Option<u32>,
    /// Its directory on the server; relative to the data directory if it lies in it (from 16 on).
    pub location: Option<String>,
    /// About how much it holds, in kB, if that was asked for.
    pub size_kb: Option<u64>,
}

impl TablespaceRow {
    /// More tablespaces than this are no cluster we know how to hold.
    const MAX: usize = 10_000;

    /// Reads the list.
    ///
    /// # Errors
    /// When a row does not make sense, the data directory is not last, or a tablespace comes twice.
    pub fn from_rows(rows: &[Row]) -> Result<Vec<Self>, ProtocolError> {
        if rows.len() > Self::MAX {
            return Err(ProtocolError::TooMany { what: "tablespaces", limit: Self::MAX });
        }
        let all = rows.iter().map(Self::from_row).collect::<Result<Vec<_>, _>>()?;
        let mut oids: Vec<_> = all.iter().map(|row| row.oid).collect();
        let main_is_last = oids.pop() == Some(None) && !oids.contains(&None);
        oids.sort_unstable();
        let twice = oids.windows(2).any(|pair| matches!(pair, [a, b] if a == b));
        if main_is_last && !twice { Ok(all) } else { Err(ProtocolError::Shape("BASE_BACKUP")) }
    }

    fn from_row(row: &Row) -> Result<Self, ProtocolError> {
        let [oid, location, size] = row.exactly("BASE_BACKUP")?;
        if oid.is_some() != location.is_some() {
            return Err(ProtocolError::Shape("BASE_BACKUP"));
        }
        Ok(Self {
            oid: oid.as_deref().map(|oid| number(oid, "tablespace oid")).transpose()?,
            location: location.as_deref().map(|path| text(path, "tablespace location")).transpose()?,
            size_kb: size.as_deref().map(|size| number(size, "tablespace size")).transpose()?,
        })
    }
}

/// Reads a time as SHOW prints it: a number with `ms`, `s`, `min`, `h` or `d`, or `0`.
pub fn duration_setting(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let milliseconds: u64 = match text.get(digits.len()..)? {
        // Without a unit SHOW prints only 0, which is 0 in every unit.
        "ms" | "" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(Duration::from_millis(number::<u64>(digits.as_bytes(), "time").ok()?.checked_mul(milliseconds)?))
}

/// Reads a directory's mode as SHOW prints it, in octal: `0700`.
pub fn mode_setting(text: &str) -> Option<u32> {
    let octal = (1..=5).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
    octal.then(|| u32::from_str_radix(text, 8).ok()).flatten()
}

fn single<'a, const N: usize>(rows: &'a [Row], command: &'static str) -> Result<&'a [Option<Bytes>; N], ProtocolError> {
    match rows {
        [row] => row.exactly(command),
        _ => Err(ProtocolError::Shape(command)),
    }
}

fn required<'a>(value: &'a Option<Bytes>, what: &'static str) -> Result<&'a [u8], ProtocolError> {
    value.as_deref().ok_or_else(|| ProtocolError::value(what, b"NULL"))
}

fn text(value: &[u8], what: &'static str) -> Result<String, ProtocolError> {
    std::str::from_utf8(value).map(str::to_owned).map_err(|_| ProtocolError::value(what, value))
}

fn number<T: FromStr>(value: &[u8], what: &'static str) -> Result<T, ProtocolError> {
    let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    digits.and_then(|text| text.parse().ok()).ok_or_else(|| ProtocolError::value(what, value))
}

fn timeline(value: &[u8]) -> Result<TimelineId, ProtocolError> {
    TimelineId::new(number(value, "timeline")?).ok_or_else(|| ProtocolError::value("timeline", value))
}

fn position(value: &[u8]) -> Result<Lsn, ProtocolError> {
    let lsn = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    lsn.ok_or_else(|| ProtocolError::value("WAL position", value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: ServerVersion = ServerVersion::new(140_024);
    const NEW: ServerVersion = ServerVersion::new(150_018);

    fn row(values: &[Option<&'static str>]) -> Row {
        Row::new(values.iter().map(|value| value.map(|text| Bytes::from_static(text.as_bytes()))).collect())
    }

    fn tli(id: u32) -> TimelineId {
        TimelineId::new(id).unwrap()
    }

    #[test]
    fn slot_names() {
        for name in ["a", "walhold_1", &"z".repeat(63)] {
            assert_eq!(name.parse::<SlotName>().unwrap().as_str(), name);
        }
        for name in ["", "A", "a-b", "a\"b", "ä", &"z".repeat(64)] {
            assert_eq!(name.parse::<SlotName>(), Err(SlotNameError(name.to_owned())));
        }
    }

    #[test]
    fn slot_commands_follow_the_version() {
        let slot: SlotName = "s1".parse().unwrap();
        for (version, kind, retention, expected) in [
            (OLD, SlotKind::Permanent, Retention::FromFirstReport, "CREATE_REPLICATION_SLOT \"s1\" PHYSICAL"),
            (
                OLD,
                SlotKind::Temporary,
                Retention::Reserved,
                "CREATE_REPLICATION_SLOT \"s1\" TEMPORARY PHYSICAL RESERVE_WAL",
            ),
            (NEW, SlotKind::Permanent, Retention::Reserved, "CREATE_REPLICATION_SLOT \"s1\" PHYSICAL (RESERVE_WAL)"),
            (NEW, SlotKind::Temporary, Retention::FromFirstReport, "CREATE_REPLICATION_SLOT \"s1\" TEMPORARY PHYSICAL"),
        ] {
            assert_eq!(command::create_slot(version, &slot, kind, retention), expected);
        }
        let start = Pos::new(tli(3), Lsn::new(0x1_0200_0000));
        assert_eq!(
            command::start_replication(Some(&slot), start),
            "START_REPLICATION SLOT \"s1\" PHYSICAL 1/2000000 TIMELINE 3"
        );
        assert_eq!(command::start_replication(None, start), "START_REPLICATION PHYSICAL 1/2000000 TIMELINE 3");
        assert_eq!(command::show("wal_segment_size"), "SHOW \"wal_segment_size\"");
    }

    #[test]
    fn base_backup_speaks_both_dialects() {
        let mut backup = BaseBackup {
            label: "it's \"mine\"".into(),
            checkpoint: Checkpoint::Fast,
            max_rate: MaxRate::new(32),
            manifest: Some(ManifestAsked { algorithm: ManifestAlgorithm::Sha256, force_encode: false }),
            estimate_size: true,
            tablespace_map: true,
            ..BaseBackup::new(String::new())
        };
        assert_eq!(
            command::base_backup(OLD, &backup),
            "BASE_BACKUP LABEL 'it''s \"mine\"' PROGRESS FAST NOWAIT TABLESPACE_MAP MAX_RATE 32 \
             MANIFEST 'yes' MANIFEST_CHECKSUMS 'SHA256'"
        );
        assert_eq!(
            command::base_backup(NEW, &backup),
            "BASE_BACKUP (LABEL 'it''s \"mine\"', PROGRESS, CHECKPOINT 'fast', WAIT 0, TABLESPACE_MAP, MAX_RATE 32, \
             MANIFEST 'yes', MANIFEST_CHECKSUMS 'SHA256')"
        );
        backup = BaseBackup { checkpoint: Checkpoint::Spread, max_rate: None, estimate_size: false, ..backup };
        assert_eq!(
            command::base_backup(OLD, &backup),
            "BASE_BACKUP LABEL 'it''s \"mine\"' NOWAIT TABLESPACE_MAP MANIFEST 'yes' MANIFEST_CHECKSUMS 'SHA256'"
        );
        assert!(command::base_backup(NEW, &backup).contains("CHECKPOINT 'spread', WAIT 0,"));
        let bare = BaseBackup { wait_for_archive: true, tablespace_map: false, manifest: None, ..backup.clone() };
        assert_eq!(command::base_backup(OLD, &bare), "BASE_BACKUP LABEL 'it''s \"mine\"'");
        let rare = BaseBackup {
            label: "x".into(),
            wal: true,
            verify_checksums: false,
            manifest: backup.manifest.map(|asked| ManifestAsked { force_encode: true, ..asked }),
            compression: Some(ServerCompression { name: "zstd".into(), detail: Some("level=3".into()) }),
            target: Some(BackupTarget { name: "server".into(), detail: Some("/it's".into()) }),
            ..bare
        };
        assert_eq!(
            command::base_backup(NEW, &rare),
            "BASE_BACKUP (LABEL 'x', WAL, CHECKPOINT 'spread', VERIFY_CHECKSUMS 0, MANIFEST 'force-encode', \
             MANIFEST_CHECKSUMS 'SHA256', TARGET 'server', TARGET_DETAIL '/it''s', \
             COMPRESSION 'zstd', COMPRESSION_DETAIL 'level=3')"
        );
        assert_eq!(
            command::base_backup(OLD, &BaseBackup { compression: None, target: None, ..rare }),
            "BASE_BACKUP LABEL 'x' WAL NOVERIFY_CHECKSUMS MANIFEST 'force-encode' MANIFEST_CHECKSUMS 'SHA256'"
        );
        assert!(!command::base_backup(NEW, &backup).contains("INCREMENTAL"));
        let incremental = BaseBackup { incremental: true, ..backup };
        assert!(command::base_backup(NEW, &incremental).contains("TABLESPACE_MAP, INCREMENTAL, "));
        assert_eq!((MaxRate::new(31), MaxRate::new(1_048_577)), (None, None));
    }

    #[test]
    fn an_identity_is_read() {
        let answer = row(&[Some("7300000000000000001"), Some("2"), Some("0/3000060"), None]);
        let identity = SystemIdentity::from_rows(&[answer]).unwrap();
        assert_eq!(identity.system_id, 7_300_000_000_000_000_001);
        assert_eq!(identity.position, Pos::new(tli(2), Lsn::new(0x300_0060)));
        assert_eq!(identity.database, None);
    }

    #[test]
    fn an_identity_that_makes_no_sense_is_refused() {
        let id = Some("1");
        for (answer, error) in [
            (vec![], ProtocolError::Shape("IDENTIFY_SYSTEM")),
            (vec![row(&[id, id, id])], ProtocolError::Shape("IDENTIFY_SYSTEM")),
            (vec![row(&[None, id, id, None])], ProtocolError::value("system identifier", b"NULL")),
            (vec![row(&[Some("+1"), id, id, None])], ProtocolError::value("system identifier", b"+1")),
            (vec![row(&[id, Some("0"), Some("0/1"), None])], ProtocolError::value("timeline", b"0")),
            (vec![row(&[id, Some("-1"), Some("0/1"), None])], ProtocolError::value("timeline", b"-1")),
            (vec![row(&[id, Some("4294967296"), Some("0/1"), None])], ProtocolError::value("timeline", b"4294967296")),
            (vec![row(&[id, id, Some("01"), None])], ProtocolError::value("WAL position", b"01")),
        ] {
            assert_eq!(SystemIdentity::from_rows(&answer), Err(error));
        }
    }

    #[test]
    fn a_slot_is_missing_empty_or_at_a_position() {
        let read = |values: &[_]| SlotState::from_rows(&[row(values)]);
        assert_eq!(read(&[None, None, None]), Ok(SlotState::Missing));
        assert_eq!(read(&[Some("physical"), None, None]), Ok(SlotState::Physical { restart: None }));
        assert_eq!(
            read(&[Some("physical"), Some("0/A0"), Some("4")]),
            Ok(SlotState::Physical { restart: Some(Pos::new(tli(4), Lsn::new(0xA0))) })
        );
        assert_eq!(read(&[Some("logical"), None, None]), Err(ProtocolError::value("slot type", b"logical")));
        assert_eq!(read(&[Some("physical"), Some("0/A0"), None]), Err(ProtocolError::Shape("READ_REPLICATION_SLOT")));
    }

    #[test]
    fn the_end_of_a_timeline_is_read() {
        assert_eq!(NextTimeline::from_rows(&[]), Ok(None));
        let next = NextTimeline { tli: tli(2), at: Lsn::new(0x500) };
        assert_eq!(NextTimeline::from_rows(&[row(&[Some("2"), Some("0/500")])]), Ok(Some(next)));
        let twice = [row(&[Some("2"), Some("0/500")]), row(&[Some("2"), Some("0/500")])];
        assert_eq!(NextTimeline::from_rows(&twice), Err(ProtocolError::Shape("START_REPLICATION")));
    }

    #[test]
    fn settings_are_read_as_show_prints_them() {
        for (text, seconds) in
            [("0", 0.0), ("1min", 60.0), ("90s", 90.0), ("500ms", 0.5), ("1h", 3600.0), ("2d", 172_800.0)]
        {
            assert_eq!(duration_setting(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "-1", "s", "1 s", "1week", "99999999999999999999d", "18446744073709551615d"] {
            assert_eq!(duration_setting(text), None, "{text:?}");
        }
        assert_eq!((mode_setting("0700"), mode_setting("0750")), (Some(0o700), Some(0o750)));
        assert_eq!((mode_setting("0800"), mode_setting(""), mode_setting("+700")), (None, None, None));
    }

    #[test]
    fn tablespaces_are_read_with_the_data_directory_last() {
        let main = row(&[None, None, Some("30000")]);
        let one = row(&[Some("16385"), Some("/ts/one"), None]);
        let expected = [
            TablespaceRow { oid: Some(16385), location: Some("/ts/one".into()), size_kb: None },
            TablespaceRow { oid: None, location: None, size_kb: Some(30000) },
        ];
        assert_eq!(TablespaceRow::from_rows(&[one.clone(), main.clone()]).unwrap(), expected);
        let half = row(&[Some("16385"), None, None]);
        let shape = Err(ProtocolError::Shape("BASE_BACKUP"));
        for rows in [
            vec![],
            vec![one.clone()],
            vec![main.clone(), one.clone()],
            vec![main.clone(), main.clone()],
            vec![one.clone(), one, main.clone()],
            vec![half, main],
        ] {
            assert_eq!(TablespaceRow::from_rows(&rows), shape, "{rows:?}");
        }
    }
}
