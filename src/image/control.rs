//! `pg_control`: what a server believes about its own state (`catalog/pg_control.h`).

use thiserror::Error;

use crate::cursor::Cursor;
use crate::wal::{Lsn, Pos, SegmentSize, TimelineId};

/// Nothing that is read lies beyond this; the file itself is padded to 8192 bytes.
const READ: usize = 296;

/// What the cluster was doing when the file was last written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClusterState {
    /// It has only just been made.
    StartingUp,
    /// Cleanly shut down.
    ShutDown,
    /// A standby, cleanly shut down.
    ShutDownInRecovery,
    /// Shutting down.
    ShuttingDown,
    /// Recovering from a crash.
    InCrashRecovery,
    /// A standby, or recovering from an archive.
    InArchiveRecovery,
    /// Taking writes.
    InProduction,
}

/// How much is logged (`wal_level`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum WalLevel {
    /// Too little to take a backup from.
    Minimal,
    /// What backups and standbys need.
    Replica,
    /// And what logical decoding needs.
    Logical,
}

/// The fields that a restore and its proof need.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlFile {
    /// The number that all WAL of the cluster bears.
    pub system_identifier: u64,
    /// The layout of this file: 1300, 1700 or 1800.
    pub version: u32,
    /// The layout of the system catalogs, another one in each major version.
    pub catalog_version: u32,
    /// What the cluster was doing.
    pub state: ClusterState,
    /// Where the last checkpoint's record starts.
    pub checkpoint: Lsn,
    /// Where recovery from that checkpoint starts, and its timeline.
    pub redo: Pos,
    /// Recovery must reach this end before the data is consistent. Set while in recovery only, and
    /// not while recovering from a crash.
    pub min_recovery: Option<Pos>,
    /// The start of the backup that is being recovered; it is consistent once the end-of-backup
    /// record that names this has been read. Set only by a server that recovers from a backup.
    pub backup_start: Option<Lsn>,
    /// The end of the backup from a standby that is being recovered.
    pub backup_end: Option<Lsn>,
    /// Whether an end-of-backup record has to be read before the data is consistent.
    pub backup_end_required: bool,
    /// A server that recovers as a hot standby refuses smaller settings than the next five.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
    /// What the WAL up to the last checkpoint was written with.
    pub wal_level: WalLevel,
    /// Bytes of a block of a relation.
    pub block_size: u32,
    /// Blocks of a relation in one file; what is beyond is in the next.
    pub relation_segment: u32,
    /// The size of the cluster's segments.
    pub segment_size: SegmentSize,
    /// 0 without data checksums.
    pub data_checksum_version: u32,
}

/// The bytes are not a `pg_control` that can be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ControlError {
    /// Too short to be one.
    #[error("pg_control is only {0} bytes long")]
    TooShort(usize),
    /// Written on a machine of the other byte order.
    #[error("pg_control was written on a machine of another byte order")]
    ByteOrder,
    /// A layout older than PostgreSQL 13's.
    #[error("pg_control has version {0}, which is older than PostgreSQL 13")]
    TooOld(u32),
    /// A layout that is not known here. Its system identifier has never moved.
    #[error("pg_control has version {version}, which is not known here")]
    Unknown {
        /// The layout.
        version: u32,
        /// The cluster, unchecked.
        system_identifier: u64,
    },
    /// Torn, damaged, or read while the server wrote it.
    #[error("pg_control does not match its checksum")]
    Checksum,
    /// The checksum is right and a field has a value that no server writes.
    #[error("pg_control has no valid {0}")]
    Field(&'static str),
}

impl ControlFile {
    /// Reads the file, or at least the first 296 bytes of it.
    ///
    /// # Errors
    /// When it is damaged, or of a version that is not known.
    pub fn parse(content: &[u8]) -> Result<Self, ControlError> {
        let fields = Fields(content.first_chunk().ok_or(ControlError::TooShort(content.len()))?);
        let version = fields.u32(8);
        let system_identifier = fields.u64(0);
        let checksum_at = match version {
            1300 | 1700 => 288,
            // default_char_signedness was put in before the checksum.
            1800 => 292,
            // The same test as the server's: a version is never a multiple of 65536.
            _ if version != 0 && version % 65536 == 0 => return Err(ControlError::ByteOrder),
            0..1300 => return Err(ControlError::TooOld(version)),
            _ => return Err(ControlError::Unknown { version, system_identifier }),
        };
        let covered = fields.0.get(..checksum_at).unwrap_or_default();
        if crc32c::crc32c(covered) != fields.u32(checksum_at) {
            return Err(ControlError::Checksum);
        }
        Ok(Self {
            system_identifier,
            version,
            catalog_version: fields.u32(12),
            state: fields.state()?,
            checkpoint: Lsn::new(fields.u64(32)),
            redo: fields.pos(40, 48)?.ok_or(ControlError::Field("redo location"))?,
            min_recovery: fields.pos(136, 144)?,
            backup_start: fields.lsn(152),
            backup_end: fields.lsn(160),
            backup_end_required: fields.0[168] != 0,
            max_connections: fields.u32(180),
            max_worker_processes: fields.u32(184),
            max_wal_senders: fields.u32(188),
            max_prepared_transactions: fields.u32(192),
            max_locks_per_transaction: fields.u32(196),
            wal_level: fields.wal_level()?,
            block_size: fields.u32(216),
            relation_segment: fields.u32(220),
            segment_size: SegmentSize::new(u64::from(fields.u32(228))).ok_or(ControlError::Field("segment size"))?,
            data_checksum_version: fields.u32(252),
        })
    }
}

/// The structure as it lies in memory on the little-endian 64-bit machines PostgreSQL is used on.
/// Up to the checksum no field has moved from 13 to 18.
struct Fields<'a>(&'a [u8; READ]);

impl Fields<'_> {
    /// Offsets are constants of this file, all below READ.
    fn at(&self, at: usize) -> Cursor<'_> {
        let mut cursor = Cursor::new(self.0);
        cursor.take(at);
        cursor
    }

    fn u32(&self, at: usize) -> u32 {
        self.at(at).u32_le().unwrap_or_default()
    }

    fn u64(&self, at: usize) -> u64 {
        self.at(at).u64_le().unwrap_or_default()
    }

    /// `None` for position 0.
    fn lsn(&self, at: usize) -> Option<Lsn> {
        Some(Lsn::new(self.u64(at))).filter(|lsn| *lsn != Lsn::ZERO)
    }

    /// `None` for position 0, on whatever timeline.
    fn pos(&self, lsn_at: usize, tli_at: usize) -> Result<Option<Pos>, ControlError> {
        let Some(lsn) = self.lsn(lsn_at) else {
            return Ok(None);
        };
        let tli = TimelineId::new(self.u32(tli_at)).ok_or(ControlError::Field("timeline"))?;
        Ok(Some(Pos::new(tli, lsn)))
    }

    fn state(&self) -> Result<ClusterState, ControlError> {
        Ok(match self.u32(16) {
            0 => ClusterState::StartingUp,
            1 => ClusterState::ShutDown,
            2 => ClusterState::ShutDownInRecovery,
            3 => ClusterState::ShuttingDown,
            4 => ClusterState::InCrashRecovery,
            5 => ClusterState::InArchiveRecovery,
            6 => ClusterState::InProduction,
            _ => return Err(ControlError::Field("cluster state")),
        })
    }

    fn wal_level(&self) -> Result<WalLevel, ControlError> {
        Ok(match self.u32(172) {
            0 => WalLevel::Minimal,
            1 => WalLevel::Replica,
            2 => WalLevel::Logical,
            _ => return Err(ControlError::Field("wal_level")),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    macro_rules! captured {
        ($name:literal) => {
            include_bytes!(concat!("../../proto-tests/captured/pg_control-", $name)).as_slice()
        };
    }

    fn pos(lsn: u64) -> Pos {
        Pos::new(TimelineId::FIRST, Lsn::new(lsn))
    }

    /// With the checksum made right again.
    fn edited(content: &[u8], at: usize, value: u32) -> Vec<u8> {
        let mut content = content.to_vec();
        content[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let end = if content[8] == 0x08 { 292 } else { 288 };
        let sum = crc32c::crc32c(&content[..end]);
        content[end..end + 4].copy_from_slice(&sum.to_le_bytes());
        content
    }

    #[test]
    fn files_of_13_to_18_say_what_pg_controldata_says() {
        let all = [
            (captured!("13"), 1300, 202_007_201, 7_710_961_547_570_139_704, 0x6C_EBE8, 1, 0),
            (captured!("14"), 1300, 202_107_181, 0, 0, 16, 0),
            (captured!("15"), 1300, 202_209_061, 7_710_961_556_191_347_314, 0x174_1580, 16, 1),
            (captured!("16"), 1300, 202_307_071, 0, 0, 16, 0),
            (captured!("17"), 1700, 202_406_281, 7_710_961_562_272_637_610, 0x150_0968, 16, 0),
            (captured!("18"), 1800, 202_506_291, 7_710_961_565_231_944_390, 0x176_5D98, 16, 1),
        ];
        for (content, version, catalog_version, system_identifier, checkpoint, mib, checksums) in all {
            let read = ControlFile::parse(content).unwrap();
            // There is no pg_controldata of 14 and 16 to compare these three with.
            let known = |value: u64, read: u64| if value == 0 { read } else { value };
            let checkpoint = known(checkpoint, read.checkpoint.get());
            let expected = ControlFile {
                system_identifier: known(system_identifier, read.system_identifier),
                version,
                catalog_version,
                state: ClusterState::ShutDown,
                checkpoint: Lsn::new(checkpoint),
                redo: pos(checkpoint),
                min_recovery: None,
                backup_start: None,
                backup_end: None,
                backup_end_required: false,
                max_connections: 123,
                max_worker_processes: 11,
                max_wal_senders: 7,
                max_prepared_transactions: 5,
                max_locks_per_transaction: 77,
                wal_level: WalLevel::Logical,
                block_size: 8192,
                relation_segment: 131_072,
                segment_size: SegmentSize::new(mib << 20).unwrap(),
                data_checksum_version: checksums,
            };
            assert_eq!(read, expected);
        }
    }

    #[test]
    fn a_standbys_file_says_how_far_recovery_must_go() {
        let read = ControlFile::parse(captured!("15-standby")).unwrap();
        assert_eq!(read.state, ClusterState::InArchiveRecovery);
        assert_eq!((read.checkpoint, read.redo), (Lsn::new(0x800_5748), pos(0x800_5710)));
        assert_eq!(read.min_recovery, Some(pos(0x800_57C0)));
    }

    #[test]
    fn one_wrong_byte_anywhere_is_seen() {
        for content in [captured!("13"), captured!("17"), captured!("18")] {
            let end = if content[8] == 0x08 { 296 } else { 292 };
            for at in 0..end {
                let mut content = content.to_vec();
                content[at] ^= 0x20;
                let error = ControlFile::parse(&content).unwrap_err();
                assert_eq!(error == ControlError::Checksum, !(8..12).contains(&at), "byte {at}: {error}");
            }
        }
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let content = captured!("17");
        let with = |at, value| ControlFile::parse(&edited(content, at, value));
        assert_eq!(ControlFile::parse(&content[..295]), Err(ControlError::TooShort(295)));
        assert_eq!(with(8, 1201), Err(ControlError::TooOld(1201)));
        assert_eq!(ControlFile::parse(&[0; 8192]), Err(ControlError::TooOld(0)));
        assert_eq!(with(8, 0xA406_0000), Err(ControlError::ByteOrder));
        let system_identifier = 7_710_961_562_272_637_610;
        assert_eq!(with(8, 1900), Err(ControlError::Unknown { version: 1900, system_identifier }));
        assert_eq!(with(16, 7), Err(ControlError::Field("cluster state")));
        assert_eq!(with(48, 0), Err(ControlError::Field("timeline")));
        assert_eq!(with(136, 1), Err(ControlError::Field("timeline")));
        assert_eq!(with(172, 3), Err(ControlError::Field("wal_level")));
        assert_eq!(with(228, 0), Err(ControlError::Field("segment size")));
        assert_eq!(with(40, 0), Err(ControlError::Field("redo location")));
    }

    proptest! {
        #[test]
        fn p6_no_content_does_harm(mut content: Vec<u8>, at in 0usize..300, value: u32, real: bool) {
            if real {
                content = edited(captured!("18"), at.min(292), value);
            }
            let _ = ControlFile::parse(&content);
        }
    }
}
