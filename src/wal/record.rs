//! A record of the log, and what walhold reads in it.

use jiff::Timestamp;

use super::Lsn;

/// Resource managers, from `src/include/access/rmgrlist.h`.
const RM_XLOG: u8 = 0;
const RM_XACT: u8 = 1;
const RM_TBLSPC: u8 = 5;

/// Types of the first, from `src/include/catalog/pg_control.h`.
const XLOG_SWITCH: u8 = 0x40;
const XLOG_BACKUP_END: u8 = 0x50;
const XLOG_OVERWRITE_CONTRECORD: u8 = 0xD0;

/// Types of the second, from `src/include/access/xact.h`: the bits that tell them, and those that
/// end a transaction.
const XACT_TYPE: u8 = 0x70;
const XACT_COMMIT: u8 = 0x00;
const XACT_ABORT: u8 = 0x20;
const XACT_COMMIT_PREPARED: u8 = 0x30;
const XACT_ABORT_PREPARED: u8 = 0x40;

/// A type of the third, from `src/include/commands/tablespace.h`.
const XLOG_TBLSPC_CREATE: u8 = 0x00;

/// What may stand before a record's main data when it refers to no blocks (`xlogrecord.h`): an
/// identifier, then so many bytes.
const TOPLEVEL_XID: u8 = 252;
const ORIGIN: u8 = 253;
const LONG_DATA: u8 = 254;
const SHORT_DATA: u8 = 255;

/// A whole record whose checksum is right and that follows from the one before.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its first byte.
    pub start: Lsn,
    /// Exclusive end, rounded up to the 8 bytes at which the next one may begin.
    pub end: Lsn,
    /// Resource manager.
    pub rmid: u8,
    /// Resource manager's own flags and the record type.
    pub info: u8,
    /// Transaction, 0 if none.
    pub xid: u32,
    /// What follows the header: all of it, or its first 256 bytes at least.
    pub data: &'a [u8],
}

/// The record types that walhold acts on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordKind {
    /// The rest of the segment is zeros.
    Switch,
    /// A backup ended (`XLOG_BACKUP_END`), the one that started at this address.
    BackupEnd(Lsn),
    /// The record begun at this address was lost in a crash.
    OverwriteContinuation(Lsn),
    /// Any other.
    Other,
}

/// Microseconds since 2000-01-01 00:00 UTC by the server's clock (`TimestampTz`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServerTime(pub i64);

impl ServerTime {
    /// 2000-01-01 00:00 UTC in microseconds of the Unix clock.
    const EPOCH: i64 = 946_684_800_000_000;

    /// The same moment by the usual clock; `None` for the server's infinities, and for years that
    /// no clock shows.
    pub fn timestamp(self) -> Option<Timestamp> {
        Timestamp::from_microsecond(self.0.checked_add(Self::EPOCH)?).ok()
    }
}

/// The end of a transaction, prepared or not: where recovery to a point in time or a transaction
/// looks whether to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransactionEnd {
    /// When, by the server's clock. These times need not rise from record to record.
    pub time: ServerTime,
    /// False if it was rolled back.
    pub committed: bool,
}

impl Record<'_> {
    /// What type it is.
    pub fn kind(&self) -> RecordKind {
        if self.rmid != RM_XLOG {
            return RecordKind::Other;
        }
        match self.info & 0xF0 {
            XLOG_SWITCH => RecordKind::Switch,
            XLOG_BACKUP_END => self.main_lsn().map_or(RecordKind::Other, RecordKind::BackupEnd),
            XLOG_OVERWRITE_CONTRECORD => self.main_lsn().map_or(RecordKind::Other, RecordKind::OverwriteContinuation),
            _ => RecordKind::Other,
        }
    }

    /// The transaction that it ends, if it does.
    pub fn transaction_end(&self) -> Option<TransactionEnd> {
        if self.rmid != RM_XACT {
            return None;
        }
        let committed = match self.info & XACT_TYPE {
            XACT_COMMIT | XACT_COMMIT_PREPARED => true,
            XACT_ABORT | XACT_ABORT_PREPARED => false,
            _ => return None,
        };
        Some(TransactionEnd { time: ServerTime(i64::from_le_bytes(self.main_start()?)), committed })
    }

    /// Where the tablespace lies that it makes, if it makes one; empty for one inside the data
    /// directory. A server that replays it writes there.
    pub fn tablespace_made(&self) -> Option<&[u8]> {
        if self.rmid != RM_TBLSPC || self.info & 0xF0 != XLOG_TBLSPC_CREATE {
            return None;
        }
        // The object id, then the path with a NUL at its end.
        let path = self.main().and_then(|main| main.get(4..)).unwrap_or_default();
        path.split(|byte| *byte == 0).next()
    }

    fn main_lsn(&self) -> Option<Lsn> {
        self.main_start().map(|bytes| Lsn::new(u64::from_le_bytes(bytes)))
    }

    fn main_start(&self) -> Option<[u8; 8]> {
        self.main()?.first_chunk().copied()
    }

    /// The main data of a record without block references, and what follows it.
    fn main(&self) -> Option<&[u8]> {
        let mut at = 0;
        loop {
            match *self.data.get(at)? {
                ORIGIN => at += 1 + 2,
                TOPLEVEL_XID => at += 1 + 4,
                SHORT_DATA => break at += 1 + 1,
                LONG_DATA => break at += 1 + 4,
                _ => return None,
            }
        }
        self.data.get(at..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(rmid: u8, info: u8, data: &[u8]) -> Record<'_> {
        Record { start: Lsn::new(8), end: Lsn::new(16), rmid, info, xid: 7, data }
    }

    #[test]
    fn tablespaces_are_seen_to_be_made() {
        let data = [&[255, 13][..], &16_400_u32.to_le_bytes(), b"/srv/two\0"].concat();
        assert_eq!(record(5, 0x00, &data).tablespace_made(), Some(&b"/srv/two"[..]));
        let inside = [&[255, 5][..], &16_400_u32.to_le_bytes(), b"\0"].concat();
        assert_eq!(record(5, 0x00, &inside).tablespace_made(), Some(&b""[..]));
        assert_eq!(record(5, 0x10, &data).tablespace_made(), None, "dropped");
        assert_eq!(record(4, 0x00, &data).tablespace_made(), None, "another resource manager");
    }

    #[test]
    fn the_ends_of_transactions_are_read() {
        let time = 843_696_000_123_456_i64;
        let plain = [&[255, 8][..], &time.to_le_bytes()].concat();
        let long = [&[254, 0, 1, 0, 0][..], &time.to_le_bytes(), &[0; 248]].concat();
        let replayed = [&[253, 1, 0, 252, 9, 0, 0, 0][..], &plain].concat();
        let end = |committed| Some(TransactionEnd { time: ServerTime(time), committed });
        for data in [&plain, &long, &replayed] {
            assert_eq!(record(1, 0x00, data).transaction_end(), end(true));
            assert_eq!(record(1, 0x80, data).transaction_end(), end(true), "with more information");
            assert_eq!(record(1, 0x20, data).transaction_end(), end(false));
            assert_eq!(record(1, 0xB0, data).transaction_end(), end(true));
            assert_eq!(record(1, 0x40, data).transaction_end(), end(false));
            assert_eq!(record(1, 0x10, data).transaction_end(), None, "prepared, not ended");
            assert_eq!(record(2, 0x00, data).transaction_end(), None, "another resource manager");
        }
        assert_eq!(record(1, 0x00, &plain[..9]).transaction_end(), None, "cut short");
        assert_eq!(record(1, 0x00, &[3, 0, 0]).transaction_end(), None, "a block reference");
        assert_eq!(record(1, 0x00, &[]).transaction_end(), None);
    }
}
