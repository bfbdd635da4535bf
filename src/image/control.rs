//! `pg_control`: what a server believes about its own state (`catalog/pg_control.h`).

use thiserror::Error;

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
            _ if version % 65536 == 0 => return Err(ControlError::ByteOrder),
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
            segment_size: SegmentSize::new(u64::from(fields.u32(228))).ok_or(ControlError::Field("segment size"))?,
            data_checksum_version: fields.u32(252),
        })
    }
}

/// The structure as it lies in memory on the little-endian 64-bit machines PostgreSQL is used on.
/// Up to the checksum no field has moved from 13 to 18.
struct Fields<'a>(&'a [u8; READ]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        // Offsets are constants of this file, all below READ.
        self.0.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
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
