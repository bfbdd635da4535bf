//! What the three documents of a repository say.

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

use std::fmt;
use std::str::FromStr;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::sealed::{Document, Sha256Sum, as_text};
use crate::archive::EndOfBackup;
use crate::image::{Cuts, ManifestAlgorithm};
use crate::wal::{History, Lsn, Pos, Segment, TimelineId};

/// The name of a backup and of its folder: the second in which it was begun, in UTC, as
/// `20261122T051500Z`. It identifies; what comes after what is told by timeline and start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackupId(Timestamp);

const ID_FORMAT: &str = "%Y%m%dT%H%M%SZ";

impl BackupId {
    /// The name for a backup begun at `now`; fractions of the second are dropped.
    pub fn new(now: Timestamp) -> Self {
        Self(Timestamp::from_second(now.as_second()).unwrap_or(now))
    }

    /// The name one second later.
    pub(super) fn next(self) -> Self {
        Self(self.0.checked_add(1.second()).unwrap_or(self.0))
    }

    /// The second it stands for.
    pub const fn time(self) -> Timestamp {
        self.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.strftime(ID_FORMAT).to_string())
    }
}

/// The text is not the name of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("\"{0}\" is not the name of a backup (expected a UTC time like 20261122T051500Z)")]
pub struct ParseBackupIdError(pub String);

impl FromStr for BackupId {
    type Err = ParseBackupIdError;

    fn from_str(text: &str) -> Result<Self, ParseBackupIdError> {
        let time = DateTime::strptime(ID_FORMAT, text).ok().and_then(|time| time.to_zoned(TimeZone::UTC).ok());
        let id = time.map(|time| Self::new(time.timestamp()));
        // There is one spelling of each.
        id.filter(|id| id.to_string() == text).ok_or_else(|| ParseBackupIdError(text.to_owned()))
    }
}

impl Serialize for BackupId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        as_text::serialize(self, to)
    }
}

impl<'de> Deserialize<'de> for BackupId {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        as_text::deserialize(from)
    }
}

/// A time in documents: RFC 3339, UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(#[serde(with = "as_text")] pub Timestamp);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// `repository.json`: which cluster's WAL and backups these are.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Identity {
    #[serde(with = "as_text")]
    pub(super) system_identifier: u64,
    pub(super) segment_size: u64,
    pub(super) group_readable: bool,
    pub(super) created: Time,
}

impl Document for Identity {
    const KIND: &'static str = "repository";
    const VERSION: u32 = 1;
}

/// The server that was copied.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServerVersion {
    /// As `server_version_num` has it: 170012.
    pub number: u32,
    /// As the server says it: `17.12 (Debian 17.12-1)`.
    pub text: String,
}

impl ServerVersion {
    /// The major version: 17.
    pub const fn major(&self) -> u32 {
        self.number / 10_000
    }
}

/// How the data files were copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The server sent them, by BASE_BACKUP.
    Streamed,
    /// The operator's command copied them into the backup's folder, between the server's calls that
    /// start and stop a backup.
    Copied,
    /// The same, and they lie elsewhere: the backup holds what the server said, and its WAL.
    External,
    /// They lie elsewhere, and the WAL of the same instant with them: no calls to the server.
    AtomicSnapshot,
}

impl Method {
    /// Whether the data files are in the repository.
    pub const fn holds_data(self) -> bool {
        matches!(self, Self::Streamed | Self::Copied)
    }
}

/// `backup.pending.json`: a backup that is being made, or whose WAL has not all arrived. It claims
/// WAL from `start` on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pending {
    /// The folder's name.
    pub id: BackupId,
    /// What the operator called it.
    pub label: String,
    /// The cluster.
    #[serde(with = "as_text")]
    pub system_identifier: u64,
    /// The server that is copied.
    pub server_version: ServerVersion,
    /// How it is copied.
    pub method: Method,
    /// Where its WAL begins: its redo position.
    pub start: Pos,
    /// Exclusive end of the WAL it needs, once the copy has ended.
    pub stop: Option<Pos>,
    /// What will be sealed when the WAL is there; set together with `stop`, once the files have
    /// been checked.
    pub ready: Option<Box<Seal>>,
}

impl Document for Pending {
    const KIND: &'static str = "pending backup";
    const VERSION: u32 = 1;
}

/// Whether a backup stands alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// All files are in it.
    Full,
    /// Only what changed since its parent.
    Incremental,
}

/// Who brought a backup's WAL into the archive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CapturedBy {
    /// A receiver that ran beside it.
    Receiver,
    /// The backup's own session; what follows it may be missing.
    Backup,
}

/// A timeline on the way from a backup's start to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PathStep {
    /// Which.
    pub timeline: TimelineId,
    /// Where the next one takes over, exclusive; `None` for the last.
    pub until: Option<Lsn>,
}

impl PathStep {
    /// The whole way to the timeline of `history`.
    pub fn all(history: &History) -> Vec<Self> {
        let before = history.switches().iter().map(|switch| Self { timeline: switch.from, until: Some(switch.at) });
        before.chain([Self { timeline: history.tli(), until: None }]).collect()
    }
}

/// Segments of one timeline that follow each other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SegmentRange {
    /// Name of the first.
    pub first: String,
    /// Name of the last, included.
    pub last: String,
    /// How many there are.
    pub count: u64,
}

impl SegmentRange {
    /// Segments in their order, as ranges.
    pub fn all(segments: &[Segment]) -> Vec<Self> {
        let runs = segments.chunk_by(|a, b| a.next() == *b);
        let range = |run: &[Segment]| {
            let (first, last) = (run.first()?, run.last()?);
            Some(Self {
                first: first.name(),
                last: last.name(),
                count: last.no().saturating_sub(first.no()).saturating_add(1),
            })
        };
        runs.filter_map(range).collect()
    }
}

/// The WAL that a backup needs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NeededWal {
    /// Who captured it.
    pub captured_by: CapturedBy,
    /// The timelines from start to stop.
    pub timeline_path: Vec<PathStep>,
    /// The files; filled in from the proof when the backup is sealed.
    #[serde(default)]
    pub segments: Vec<SegmentRange>,
    /// The history files on the way.
    pub history_files: Vec<SealedHistory>,
}

/// A history file that a restore of this backup reads.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SealedHistory {
    /// Whose history it is.
    pub timeline: TimelineId,
    /// Bytes.
    pub size: u64,
    /// Of its bytes, uncompressed.
    pub sha256: Sha256Sum,
}

/// A tablespace other than the two that lie in the data directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SealedTablespace {
    /// Its object id, which names its archive.
    pub oid: u32,
    /// Where it lay on the server.
    pub location: String,
}

/// A file of the backup's folder.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SealedFile {
    /// `base.tar`, `OID.tar`, either with the suffix of its compression, or `backup_manifest`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Of those bytes.
    pub sha256: Sha256Sum,
    /// Of an archive: bytes of the tar, uncompressed.
    pub unpacked: Option<u64>,
}

/// What the server's manifest lists.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SealedManifest {
    /// The checksums in it.
    #[serde(with = "as_text")]
    pub algorithm: ManifestAlgorithm,
    /// Data files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Where the server reads its configuration; a path outside the data directory is not in the
/// backup. `None` where the server would not say.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ConfigFiles {
    /// `data_directory`, to tell inside from outside.
    pub data_directory: Option<String>,
    /// `config_file`
    pub config_file: Option<String>,
    /// `hba_file`
    pub hba_file: Option<String>,
    /// `ident_file`
    pub ident_file: Option<String>,
}

/// Milliseconds that parts of the backup took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Durations {
    /// From the command to the start position: the checkpoint.
    pub checkpoint: u64,
    /// From there to the stop position.
    pub copy: u64,
    /// From there until the WAL was durable.
    pub wal: u64,
    /// Reading the WAL again to prove it.
    pub proof: u64,
}

/// `backup.json`: the backup is complete. All that is needed to restore it is named here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seal {
    /// The folder's name.
    pub id: BackupId,
    /// What the operator called it.
    pub label: String,
    /// Whether it stands alone.
    pub kind: Kind,
    /// The backup that an incremental one is based on.
    pub parent: Option<BackupId>,
    /// Of an incremental one: what was cut off since its parent started, before it started itself.
    #[serde(default, skip_serializing_if = "Cuts::is_empty")]
    pub cuts: Cuts,
    /// The cluster.
    #[serde(with = "as_text")]
    pub system_identifier: u64,
    /// The server that was copied.
    pub server_version: ServerVersion,
    /// Bytes.
    pub segment_size: u64,
    /// How it was copied.
    pub method: Method,
    /// Where the data lies, in the operator's words, if it is not in the repository.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Where its WAL begins: its redo position.
    pub start: Pos,
    /// Exclusive end of the WAL it needs.
    pub stop: Pos,
    /// When the copy was begun.
    pub start_time: Time,
    /// When it had ended.
    pub stop_time: Time,
    /// Of a backup from a standby: the minimum recovery point of the `pg_control` that was copied
    /// last, which is where the data becomes consistent.
    pub min_recovery_point: Option<Pos>,
    /// The WAL from start to stop.
    pub wal: NeededWal,
    /// In the order of their object ids.
    pub tablespaces: Vec<SealedTablespace>,
    /// Every file of the folder that belongs to the backup, except this one.
    pub files: Vec<SealedFile>,
    /// The server's manifest, which is one of `files`.
    pub manifest: SealedManifest,
    /// As `-Z` has it.
    pub compression: String,
    /// Where the server's configuration is.
    pub config_files: ConfigFiles,
    /// The slot that kept the WAL for it.
    pub slot: Option<String>,
    /// How long it took.
    pub durations_ms: Durations,
    /// Name and version of the program that made it.
    pub program: String,
    /// What was checked before it was sealed, each in a few words.
    pub checked: Vec<String>,
    /// What was not.
    pub not_checked: Vec<String>,
}

impl Document for Seal {
    const KIND: &'static str = "backup";
    const VERSION: u32 = 1;
}

impl Seal {
    /// The name of the manifest's file.
    pub const MANIFEST: &'static str = "backup_manifest";
    /// The folder that holds the data directory, of a backup that a command copied.
    pub const DATA: &'static str = "data";
    /// The folder that holds a folder for each tablespace, of the same.
    pub const TABLESPACES: &'static str = "tablespaces";
    /// What the server said at the end, of a backup whose data lies elsewhere.
    pub const LABEL: &'static str = "backup_label";
    /// The same.
    pub const TABLESPACE_MAP: &'static str = "tablespace_map";
    /// The `pg_control` that was read last, of a backup from a standby whose data lies elsewhere.
    pub const CONTROL: &'static str = "pg_control";

    /// What must be reached for the copied files to be one state.
    pub const fn end(&self) -> EndOfBackup {
        match self.method {
            Method::AtomicSnapshot => EndOfBackup::Position,
            _ if self.min_recovery_point.is_some() => EndOfBackup::Position,
            Method::Streamed | Method::Copied | Method::External => EndOfBackup::Record,
        }
    }

    /// Bytes of data files, if they are in the repository.
    pub fn data_bytes(&self) -> Option<u64> {
        self.method.holds_data().then_some(self.manifest.bytes)
    }

    /// Bytes that the backup takes in the repository.
    pub fn stored_bytes(&self) -> u64 {
        let listed = self.files.iter().map(|file| file.size).fold(0, u64::saturating_add);
        if self.method == Method::Copied { listed.saturating_add(self.manifest.bytes) } else { listed }
    }

    /// The entry of one file.
    pub fn file(&self, name: &str) -> Option<&SealedFile> {
        self.files.iter().find(|file| file.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::SegmentSize;

    #[test]
    fn names_of_backups() {
        let now: Timestamp = "2026-11-22T05:15:00.999Z".parse().unwrap();
        let id = BackupId::new(now);
        assert_eq!(id.to_string(), "20261122T051500Z");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.next().to_string(), "20261122T051501Z");
        for text in [
            "",
            "latest",
            "20261122T051500",
            "20261122T051560Z",
            "20261132T051500Z",
            " 20261122T051500Z",
            "2026112T0515000Z",
            "../..",
            "20261122t051500z",
        ] {
            assert_eq!(text.parse::<BackupId>(), Err(ParseBackupIdError(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn segments_are_told_as_ranges() {
        let size = SegmentSize::DEFAULT;
        let named = |name: &str| Segment::parse(name, size).unwrap();
        let all = ["0000000100000000000000FF", "000000010000000100000000", "000000020000000100000001"].map(named);
        let ranges = SegmentRange::all(&all);
        let range = |first: &str, last: &str, count| SegmentRange { first: first.into(), last: last.into(), count };
        assert_eq!(
            ranges,
            [
                range("0000000100000000000000FF", "000000010000000100000000", 2),
                range("000000020000000100000001", "000000020000000100000001", 1),
            ]
        );
        assert_eq!(SegmentRange::all(&[]), []);
    }

    #[test]
    fn where_a_backups_data_is() {
        let (start, stop) = (super::super::tests::at(1 << 24), super::super::tests::at(1 << 25));
        let id = BackupId::new(Timestamp::UNIX_EPOCH);
        let file = SealedFile { name: "x".into(), size: 7, sha256: Sha256Sum::of(b""), unpacked: None };
        let mut seal = super::super::tests::seal_of(id, start, stop, vec![file]);
        seal.manifest.bytes = 100;
        // As older programs have written it.
        let text = String::from_utf8(super::super::write(&seal).unwrap()).unwrap();
        assert!(text.contains("\"method\": \"streamed\"") && !text.contains("\"where\""), "{text}");
        assert_eq!((seal.data_bytes(), seal.stored_bytes(), seal.end()), (Some(100), 7, EndOfBackup::Record));
        seal.method = Method::Copied;
        assert_eq!((seal.data_bytes(), seal.stored_bytes(), seal.end()), (Some(100), 107, EndOfBackup::Record));
        seal.method = Method::External;
        assert_eq!((seal.data_bytes(), seal.stored_bytes(), seal.end()), (None, 7, EndOfBackup::Record));
        seal.min_recovery_point = Some(stop);
        assert_eq!(seal.end(), EndOfBackup::Position);
        (seal.method, seal.min_recovery_point) = (Method::AtomicSnapshot, None);
        assert_eq!((seal.data_bytes(), seal.end()), (None, EndOfBackup::Position));
        seal.place = Some("volume 7".to_owned());
        let read: Seal = super::super::read(&super::super::write(&seal).unwrap()).unwrap();
        assert_eq!(read, seal);
    }
}
