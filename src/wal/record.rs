//! A record of the log, and what walhold reads in it.

use jiff::Timestamp;
use thiserror::Error;

use super::Lsn;
use crate::cursor::Cursor;

/// Resource managers, from `src/include/access/rmgrlist.h`.
const RM_XLOG: u8 = 0;
const RM_XACT: u8 = 1;
const RM_SMGR: u8 = 2;
const RM_TBLSPC: u8 = 5;

/// Types of the first, from `src/include/catalog/pg_control.h`.
const XLOG_CHECKPOINT_SHUTDOWN: u8 = 0x00;
const XLOG_CHECKPOINT_ONLINE: u8 = 0x10;
const XLOG_SWITCH: u8 = 0x40;
const XLOG_BACKUP_END: u8 = 0x50;
const XLOG_RESTORE_POINT: u8 = 0x70;
const XLOG_OVERWRITE_CONTRECORD: u8 = 0xD0;

/// Types of the second, from `src/include/access/xact.h`: the bits that tell them, and those that
/// end a transaction.
const XACT_TYPE: u8 = 0x70;
const XACT_COMMIT: u8 = 0x00;
const XACT_ABORT: u8 = 0x20;
const XACT_COMMIT_PREPARED: u8 = 0x30;
const XACT_ABORT_PREPARED: u8 = 0x40;
const XACT_HAS_INFO: u8 = 0x80;

/// A type of the third, from `src/include/catalog/storage_xlog.h`, and the forks that are cut off with it.
const XLOG_SMGR_TRUNCATE: u8 = 0x20;
const TRUNCATE_MAIN: u32 = 1 << 0;
const TRUNCATE_VISIBILITY: u32 = 1 << 1;
const TRUNCATE_FREE_SPACE: u32 = 1 << 2;

/// A type of the last, from `src/include/commands/tablespace.h`.
const XLOG_TBLSPC_CREATE: u8 = 0x00;

/// A restore point's name has this room, the NUL at its end included (`MAXFNAMELEN`).
const NAME_ROOM: usize = 64;

/// How much of a record's data is kept for whoever looks at it.
const KEPT: usize = 256;
/// The same for the end of a prepared transaction, which names the transaction behind all that it
/// drops and invalidates.
const KEPT_OF_PREPARED: usize = 1 << 20;

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
    /// Start of the one before, to which it links back.
    pub prev: Lsn,
    /// Bytes, header included, page headers and padding not.
    pub length: u32,
    /// Resource manager.
    pub rmid: u8,
    /// Resource manager's own flags and the record type.
    pub info: u8,
    /// Transaction, 0 if none.
    pub xid: u32,
    /// Of the page that it ends in (`XLOG_PAGE_MAGIC`): it tells the server's version.
    pub magic: u16,
    /// What follows the header: all of it, or its first [`Record::kept`] bytes at least.
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

    /// The microsecond in which `timestamp` lies.
    pub fn of(timestamp: Timestamp) -> Self {
        Self(timestamp.as_microsecond().saturating_sub(Self::EPOCH))
    }

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
    /// Which; of one that was prepared, the one that was, not the one that ended it. `None` where the
    /// record is too long to tell.
    pub xid: Option<u32>,
}

/// A point that an operator has named (`pg_create_restore_point`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestorePoint<'a> {
    /// When, by the server's clock.
    pub time: ServerTime,
    /// Its name, in the encoding of the database in which it was made.
    pub name: &'a [u8],
}

/// A relation was cut off (`xl_smgr_truncate`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Truncation {
    /// Object id of its tablespace.
    pub tablespace: u32,
    /// Object id of its database, 0 of a relation of all.
    pub database: u32,
    /// The number that its files are called by.
    pub relation: u32,
    /// So many blocks of the relation itself are left, whichever forks are cut off.
    pub blocks: u32,
    /// Whether the relation itself is cut off.
    pub main: bool,
    /// Whether its visibility map is.
    pub visibility: bool,
}

/// A record cannot be read as the servers write it that are known here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the record at {0} tells that a relation was cut off, in a form that is not known here")]
pub struct OddTruncation(pub Lsn);

impl Record<'_> {
    /// How many bytes of the data of such a record are kept at least, if it has so many.
    pub(super) const fn kept(rmid: u8, info: u8) -> usize {
        match (rmid, info & XACT_TYPE) {
            (RM_XACT, XACT_COMMIT_PREPARED | XACT_ABORT_PREPARED) => KEPT_OF_PREPARED,
            _ => KEPT,
        }
    }

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
        let (committed, prepared) = match self.info & XACT_TYPE {
            XACT_COMMIT => (true, false),
            XACT_COMMIT_PREPARED => (true, true),
            XACT_ABORT => (false, false),
            XACT_ABORT_PREPARED => (false, true),
            _ => return None,
        };
        let time = ServerTime(self.main()?.i64_le()?);
        let xid = if prepared { self.prepared_xid() } else { Some(self.xid) };
        Some(TransactionEnd { time, committed, xid })
    }

    /// The transaction that was prepared, of the record that ends it (`ParseCommitRecord` and
    /// `ParseAbortRecord` in `xactdesc.c`): behind the time come lists, as the bits of the first word say.
    fn prepared_xid(&self) -> Option<u32> {
        const DATABASE: u32 = 1 << 0;
        const SUBTRANSACTIONS: u32 = 1 << 1;
        const FILES: u32 = 1 << 2;
        const INVALIDATIONS: u32 = 1 << 3;
        const TWO_PHASE: u32 = 1 << 4;
        const STATISTICS: u32 = 1 << 8;
        /// 17's; later ones count statistics by 64 bits.
        const NARROW_STATISTICS: u16 = 0xD116;
        /// The time before that word, and what names a database.
        const TIME: usize = 8;
        const NAME: usize = 8;
        if self.info & XACT_HAS_INFO == 0 {
            return None;
        }
        let mut main = self.main()?;
        main.take(TIME)?;
        let holds = main.u32_le()?;
        if holds & DATABASE != 0 {
            main.take(NAME)?;
        }
        let statistic = if self.magic > NARROW_STATISTICS { 16 } else { 12 };
        for (bit, size) in [(SUBTRANSACTIONS, 4), (FILES, 12), (STATISTICS, statistic), (INVALIDATIONS, 16)] {
            if holds & bit != 0 {
                let count = usize::try_from(main.u32_le()?).ok()?;
                main.take(count.checked_mul(size)?)?;
            }
        }
        if holds & TWO_PHASE != 0 { main.u32_le() } else { None }
    }

    /// The point that it names, if it does.
    pub fn restore_point(&self) -> Option<RestorePoint<'_>> {
        if self.rmid != RM_XLOG || self.info & 0xF0 != XLOG_RESTORE_POINT {
            return None;
        }
        let mut main = self.main()?;
        let time = ServerTime(main.i64_le()?);
        let name = main.take(NAME_ROOM)?;
        Some(RestorePoint { time, name: name.split(|byte| *byte == 0).next().unwrap_or_default() })
    }

    /// When the checkpoint began that it ends, by the server's clock, the second (`CheckPoint` in `pg_control.h`).
    /// What ended before its redo position ended by then, or within that second.
    pub fn checkpoint_time(&self) -> Option<ServerTime> {
        const TIME: usize = 64;
        if self.rmid != RM_XLOG || !matches!(self.info & 0xF0, XLOG_CHECKPOINT_SHUTDOWN | XLOG_CHECKPOINT_ONLINE) {
            return None;
        }
        let mut main = self.main()?;
        main.take(TIME)?;
        let seconds = main.i64_le()?;
        Some(ServerTime(seconds.checked_mul(1_000_000)?.checked_sub(ServerTime::EPOCH)?))
    }

    /// Where the tablespace lies that it makes, if it makes one; empty for one inside the data
    /// directory. A server that replays it writes there.
    pub fn tablespace_made(&self) -> Option<&[u8]> {
        if self.rmid != RM_TBLSPC || self.info & 0xF0 != XLOG_TBLSPC_CREATE {
            return None;
        }
        // The object id, then the path with a NUL at its end.
        let path = self.main().and_then(|mut main| main.take(4).map(|_| main.rest())).unwrap_or_default();
        path.split(|byte| *byte == 0).next()
    }

    /// What it cuts off, if it does.
    ///
    /// # Errors
    /// When it does and has another length, or flags that 17 and 18 do not have.
    pub fn truncation(&self) -> Result<Option<Truncation>, OddTruncation> {
        if self.rmid != RM_SMGR || self.info & 0xF0 != XLOG_SMGR_TRUNCATE {
            return Ok(None);
        }
        self.read_truncation().map(Some).ok_or(OddTruncation(self.start))
    }

    fn read_truncation(&self) -> Option<Truncation> {
        let mut main = self.main()?;
        let (blocks, tablespace, database) = (main.u32_le()?, main.u32_le()?, main.u32_le()?);
        let (relation, flags) = (main.u32_le()?, main.u32_le()?);
        main.end()?;
        let known = TRUNCATE_MAIN | TRUNCATE_VISIBILITY | TRUNCATE_FREE_SPACE;
        let (main, visibility) = (flags & TRUNCATE_MAIN != 0, flags & TRUNCATE_VISIBILITY != 0);
        (flags & !known == 0).then_some(Truncation { tablespace, database, relation, blocks, main, visibility })
    }

    fn main_lsn(&self) -> Option<Lsn> {
        self.main()?.u64_le().map(Lsn::new)
    }

    /// The main data of a record without block references, and what follows it.
    fn main(&self) -> Option<Cursor<'_>> {
        let mut data = Cursor::new(self.data);
        loop {
            let (passed_over, last) = match data.u8()? {
                ORIGIN => (2, false),
                TOPLEVEL_XID => (4, false),
                SHORT_DATA => (1, true),
                LONG_DATA => (4, true),
                _ => return None,
            };
            data.take(passed_over)?;
            if last {
                return Some(data);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(rmid: u8, info: u8, data: &[u8]) -> Record<'_> {
        let (start, end, prev) = (Lsn::new(8), Lsn::new(16), Lsn::ZERO);
        Record { start, end, prev, length: 24, rmid, info, xid: 7, magic: 0xD116, data }
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
    fn truncations_are_read() {
        let main = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let short = |words: &[u32]| [&[255, 20][..], &main(words)].concat();
        let read = |data: &[u8]| record(2, 0x20, data).truncation();
        let words = [44, 1663, 5, 16_384, 7];
        let all =
            Truncation { tablespace: 1663, database: 5, relation: 16_384, blocks: 44, main: true, visibility: true };
        assert_eq!(read(&short(&words)), Ok(Some(all)));
        assert_eq!(record(2, 0x21, &short(&words)).truncation(), Ok(Some(all)), "with a flag of all records");
        let long = [&[253, 1, 0, 252, 9, 0, 0, 0, 254, 20, 0, 0, 0][..], &main(&words)].concat();
        assert_eq!(read(&long), Ok(Some(all)));
        let map = Truncation { main: false, ..all };
        assert_eq!(read(&short(&[44, 1663, 5, 16_384, 2])), Ok(Some(map)));
        let none = Truncation { main: false, visibility: false, ..all };
        assert_eq!(read(&short(&[44, 1663, 5, 16_384, 4])), Ok(Some(none)));
        // A file is made; another resource manager.
        assert_eq!(record(2, 0x10, &short(&words)).truncation(), Ok(None));
        assert_eq!(record(1, 0x20, &short(&words)).truncation(), Ok(None));
        // None is passed over that may have cut something off.
        let odd = Err(OddTruncation(Lsn::new(8)));
        let whole = short(&words);
        for end in 0..whole.len() {
            assert_eq!(read(&whole[..end]), odd, "cut short after {end}");
        }
        assert_eq!(read(&[&whole[..], &[0]].concat()), odd, "longer");
        assert_eq!(read(&[&whole[..], &[0; 4]].concat()), odd, "longer by a member");
        assert_eq!(read(&short(&[44, 1663, 5, 16_384, 8])), odd, "a fork that is not known");
        assert_eq!(read(&[&[0, 0, 0, 0][..], &whole].concat()), odd, "a block reference");
    }

    #[test]
    fn the_ends_of_transactions_are_read() {
        let time = 843_696_000_123_456_i64;
        let plain = [&[255, 8][..], &time.to_le_bytes()].concat();
        let long = [&[254, 0, 1, 0, 0][..], &time.to_le_bytes(), &[0; 248]].concat();
        let replayed = [&[253, 1, 0, 252, 9, 0, 0, 0][..], &plain].concat();
        let end = |committed, xid| Some(TransactionEnd { time: ServerTime(time), committed, xid });
        for data in [&plain, &long, &replayed] {
            assert_eq!(record(1, 0x00, data).transaction_end(), end(true, Some(7)));
            assert_eq!(record(1, 0x80, data).transaction_end(), end(true, Some(7)), "with more information");
            assert_eq!(record(1, 0x20, data).transaction_end(), end(false, Some(7)));
            assert_eq!(record(1, 0xB0, data).transaction_end(), end(true, None));
            assert_eq!(record(1, 0x40, data).transaction_end(), end(false, None));
            assert_eq!(record(1, 0x10, data).transaction_end(), None, "prepared, not ended");
            assert_eq!(record(2, 0x00, data).transaction_end(), None, "another resource manager");
        }
        assert_eq!(record(1, 0x00, &plain[..9]).transaction_end(), None, "cut short");
        assert_eq!(record(1, 0x00, &[3, 0, 0]).transaction_end(), None, "a block reference");
        assert_eq!(record(1, 0x00, &[]).transaction_end(), None);
    }

    /// The end of a prepared transaction is written by another one, or by none.
    #[test]
    fn a_prepared_transaction_is_named_behind_all_else() {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        // Database and tablespace; then how many there are of each list, and so many of each.
        let lists = |statistic: usize| {
            let list = |count: u32, size: usize| [words(&[count]), vec![0xEE; count as usize * size]].concat();
            [words(&[5, 1663]), list(3, 4), list(2, 12), list(1, statistic), list(40, 16)].concat()
        };
        let data = |holds: u32, lists: &[u8]| {
            let main = [&9_i64.to_le_bytes()[..], &words(&[holds]), lists, &words(&[815]), b"gid\0"].concat();
            [vec![254], words(&[main.len() as u32]), main].concat()
        };
        let xid = |magic: u16, data: &[u8]| {
            let ended = |info| Record { magic, xid: 0, ..record(1, info, data) }.transaction_end().unwrap().xid;
            assert_eq!(ended(0xB0), ended(0xC0));
            ended(0xB0)
        };
        assert_eq!(xid(0xD10D, &data(0x90, &[])), Some(815));
        let all = 0x19F;
        assert_eq!(xid(0xD110, &data(all, &lists(12))), Some(815));
        assert_eq!(xid(0xD118, &data(all, &lists(16))), Some(815));
        assert_ne!(xid(0xD118, &data(all, &lists(12))), Some(815));
        let whole = data(all, &lists(12));
        assert_eq!(xid(0xD110, &whole[..300]), None, "cut short");
        assert_eq!(xid(0xD110, &data(0x80, &[])), None, "not prepared");
        assert_eq!(xid(0xD110, &data(0x12, &words(&[u32::MAX]))), None, "a list that cannot be");
        assert!(Record::kept(1, 0xB0) > Record::kept(1, 0x80));
    }

    #[test]
    fn checkpoints_tell_when_they_began() {
        let mut main = [0; 88];
        main[64..72].copy_from_slice(&(946_684_800_i64 + 5).to_le_bytes());
        let data = [&[255, 88][..], &main].concat();
        for info in [0x00, 0x10] {
            assert_eq!(record(0, info, &data).checkpoint_time(), Some(ServerTime(5_000_000)));
        }
        assert_eq!(record(0, 0xE0, &data).checkpoint_time(), None, "the redo position alone");
        assert_eq!(record(1, 0x10, &data).checkpoint_time(), None, "another resource manager");
        assert_eq!(record(0, 0x10, &data[..73]).checkpoint_time(), None, "cut short");
        main[64..72].copy_from_slice(&i64::MAX.to_le_bytes());
        assert_eq!(record(0, 0x10, &[&[255, 88][..], &main].concat()).checkpoint_time(), None);
    }

    #[test]
    fn restore_points_are_read() {
        let mut name = b"before the release".to_vec();
        name.resize(64, 0);
        let data = [&[255, 72][..], &5_i64.to_le_bytes(), &name].concat();
        let point = RestorePoint { time: ServerTime(5), name: b"before the release" };
        assert_eq!(record(0, 0x70, &data).restore_point(), Some(point));
        assert_eq!(record(0, 0x50, &data).restore_point(), None);
        assert_eq!(record(1, 0x70, &data).restore_point(), None);
        assert_eq!(record(0, 0x70, &data[..70]).restore_point(), None, "cut short");
    }
}
