//! The server's stopping rule, on records made by hand.

use super::*;

/// Records of 100 bytes, one behind the other, from 1000 on; the data is consistent at 1300.
const FROM: u64 = 1000;
const CONSISTENT: Lsn = Lsn::new(1300);

enum Made {
    /// Kind (`xact.h`), header's transaction, time.
    End(u8, u32, i64),
    /// The same of a prepared one: which, time.
    EndPrepared(u8, u32, i64),
    Named(&'static str, i64),
    Tablespace(&'static str),
    /// Second.
    Checkpoint(i64),
    Other,
}

use Made::{Checkpoint, End, EndPrepared, Named, Other, Tablespace};

const COMMIT: u8 = 0x00;
const ABORT: u8 = 0x20;

impl Made {
    fn bytes(&self) -> (u8, u8, u32, Vec<u8>) {
        let short = |main: Vec<u8>| [vec![255, u8::try_from(main.len()).unwrap()], main].concat();
        match self {
            // Subtransactions follow, which do not count.
            End(info, xid, time) => {
                let subtransactions = [2_u32, 2, 815, 816].iter().flat_map(|word| word.to_le_bytes());
                (1, info | 0x80, *xid, short(time.to_le_bytes().into_iter().chain(subtransactions).collect()))
            }
            EndPrepared(info, xid, time) => {
                let main = [&time.to_le_bytes()[..], &16_u32.to_le_bytes(), &xid.to_le_bytes()].concat();
                (1, info | 0x80, 0, short(main))
            }
            Named(name, time) => {
                let mut named = name.as_bytes().to_vec();
                named.resize(64, 0);
                (0, 0x70, 0, short([&time.to_le_bytes()[..], &named].concat()))
            }
            Tablespace(path) => (5, 0, 9, short([&[1, 0, 0, 0], path.as_bytes(), b"\0"].concat())),
            Checkpoint(second) => {
                let mut main = vec![0; 88];
                main[64..72].copy_from_slice(&(946_684_800 + second).to_le_bytes());
                (0, 0x10, 0, short(main))
            }
            Other => (10, 0, 9, vec![]),
        }
    }
}

/// When the copy had ended.
fn copied() -> Timestamp {
    ServerTime(5_400_000).timestamp().unwrap()
}

/// What came of a recovery over these records.
#[derive(Debug, PartialEq)]
struct Came {
    /// Numbers of records that are replayed; `None` if it did not stop.
    replayed: Option<usize>,
    consistent: bool,
    because: String,
    last_commit: Option<u32>,
    floor: Option<i64>,
    near: Near,
    made: usize,
}

fn recover(aim: &Aim, records: &[Made]) -> Came {
    let mut near = Near::default();
    let mut watch = Watch::new(Some(aim), Lsn::new(FROM), CONSISTENT, copied(), &mut near);
    // One before the redo position counts for nothing.
    for (n, made) in [End(COMMIT, 815, i64::MAX)].iter().chain(records).enumerate() {
        let (rmid, info, xid, data) = made.bytes();
        let start = Lsn::new(FROM - 100 + n as u64 * 100);
        let (end, prev, data) = (start.saturating_add(100), Lsn::ZERO, &data[..]);
        watch.see(&Record { start, end, prev, length: 100, rmid, info, xid, magic: 0xD116, data });
    }
    let (consistent, stop) = (watch.is_consistent(), watch.stop.clone());
    Came {
        replayed: stop.as_ref().map(|stop| (stop.at - Lsn::new(FROM)) as usize / 100),
        consistent,
        because: stop.map(|stop| stop.because).unwrap_or_default(),
        last_commit: watch.last_commit.and_then(|last| last.xid),
        floor: watch.floor.map(|time| time.0),
        made: watch.made.len(),
        near,
    }
}

fn aim(target: Target, inclusive: bool) -> Aim {
    Aim { target, inclusive, action: Action::Promote }
}

fn time(microseconds: i64) -> Target {
    Target::Time(ServerTime(microseconds).timestamp().unwrap())
}

/// How many records are replayed, inclusive and exclusive.
fn both(target: &Target, records: &[Made]) -> [Option<usize>; 2] {
    [true, false].map(|inclusive| recover(&aim(target.clone(), inclusive), records).replayed)
}

/// The start of a backup and its end, which have no transaction in them.
const BACKUP: [Made; 3] = [Other, Other, Other];

fn behind_backup<const N: usize>(records: [Made; N]) -> Vec<Made> {
    BACKUP.into_iter().chain(records).collect()
}

#[test]
fn a_time_stops_before_the_first_that_is_later_though_earlier_ones_follow() {
    let records = behind_backup([
        End(COMMIT, 10, 100),
        End(COMMIT, 11, 300),
        End(COMMIT, 12, 200),
        End(ABORT, 13, 250),
        Other,
        End(COMMIT, 14, 400),
    ]);
    // The one of 300 comes before those of 200 and 250, which are lost with it.
    assert_eq!(both(&time(250), &records), [Some(4), Some(4)]);
    assert_eq!(both(&time(300), &records), [Some(8), Some(4)], "all that ended then, or none");
    assert_eq!(both(&time(399), &records), [Some(8), Some(8)]);
    assert_eq!(both(&time(400), &records), [None, Some(8)], "nothing proves that it was passed");
    assert_eq!(both(&time(99), &records), [Some(3), Some(3)]);
    let came = recover(&aim(time(300), true), &records);
    assert_eq!(came.because, "before the commit of transaction 14 at 2000-01-01T00:00:00.0004Z");
    assert_eq!(came.last_commit, Some(12), "a rollback is none");
    let same = behind_backup([End(COMMIT, 10, 7), End(COMMIT, 11, 7), End(ABORT, 12, 8)]);
    assert_eq!(both(&time(7), &same), [Some(5), Some(3)]);
}

/// What ended before the backup began is in it, and no record tells of it.
#[test]
fn a_time_before_the_backups_checkpoint_is_too_late_for_it() {
    let records =
        [Other, Checkpoint(5), Other, End(COMMIT, 10, 9_000_000), Checkpoint(900), End(COMMIT, 11, 20_000_000)];
    let came = |microseconds| {
        let came = recover(&aim(time(microseconds), true), &records);
        (came.consistent, came.replayed)
    };
    assert_eq!(came(4_999_999), (false, Some(1)));
    assert_eq!(came(5_399_999), (false, Some(1)), "within the second, and before the copy had ended");
    assert_eq!(came(5_400_000), (true, Some(3)));
    assert_eq!(came(10_000_000), (true, Some(5)), "a later checkpoint tells nothing of the backup");
    // The host's clock runs ahead: the records decide.
    let ahead = [Other, Checkpoint(2), Other, End(COMMIT, 10, 9_000_000)];
    assert!(recover(&aim(time(3_000_000), true), &ahead).consistent);
}

#[test]
fn a_time_is_that_of_transactions_prepared_ones_and_rolled_back_ones_too() {
    let records = behind_backup([Named("late", 900), EndPrepared(0x40, 20, 500), End(COMMIT, 21, 600)]);
    assert_eq!(both(&time(450), &records), [Some(4), Some(4)], "not that of a restore point");
    assert_eq!(both(&time(500), &records), [Some(5), Some(4)]);
    assert_eq!(both(&time(450), &behind_backup([End(ABORT, 20, 500)])), [Some(3), Some(3)]);
}

#[test]
fn a_transaction_is_met_at_its_end_whatever_it_was() {
    let records = behind_backup([
        End(COMMIT, 10, 1),
        EndPrepared(0x30, 77, 2),
        Other,
        End(ABORT, 9, 3),
        EndPrepared(0x40, 78, 4),
        End(COMMIT, 10, 5),
    ]);
    assert_eq!(both(&Target::Xid(10), &records), [Some(4), Some(3)], "the first of two");
    assert_eq!(both(&Target::Xid(77), &records), [Some(5), Some(4)]);
    assert_eq!(both(&Target::Xid(9), &records), [Some(7), Some(6)], "numbers are given out at the beginning");
    assert_eq!(both(&Target::Xid(78), &records), [Some(8), Some(7)]);
    assert_eq!(both(&Target::Xid(815), &records), [None, None], "a subtransaction's");
    let came = recover(&aim(Target::Xid(77), true), &records);
    assert_eq!(came.because, "after the commit of transaction 77 at 2000-01-01T00:00:00.000002Z");
    let came = recover(&aim(Target::Xid(78), false), &records);
    assert!(came.because.starts_with("before the rollback of transaction 78 at"), "{}", came.because);
}

#[test]
fn the_nearest_transactions_are_known_in_a_circle() {
    let records = behind_backup([
        End(COMMIT, 100, 1),
        End(COMMIT, 50, 2),
        EndPrepared(0x30, 80, 3),
        End(COMMIT, u32::MAX, 4),
        End(COMMIT, 70, 5),
    ]);
    let near = recover(&aim(Target::Xid(75), true), &records).near;
    assert_eq!((near.lower.unwrap().xid, near.higher.unwrap().xid), (Some(70), Some(80)));
    let near = recover(&aim(Target::Xid(4), true), &records).near;
    assert_eq!((near.lower.unwrap().xid, near.higher.unwrap().xid), (Some(u32::MAX), Some(50)));
}

#[test]
fn a_position_is_that_of_a_record_or_of_the_next() {
    let records = behind_backup([Other, Other, End(COMMIT, 10, 1), Other]);
    let at = |lsn| Target::Lsn(Lsn::new(lsn));
    assert_eq!(both(&at(1400), &records), [Some(5), Some(4)]);
    assert_eq!(both(&at(1401), &records), [Some(6), Some(5)]);
    assert_eq!(both(&at(1600), &records), [Some(7), Some(6)]);
    assert_eq!(both(&at(1601), &records), [None, None], "no record begins there or behind");
    // The record that ends the backup may be the last.
    assert_eq!(both(&at(1200), &records), [Some(3), Some(2)]);
    assert_eq!([true, false].map(|inclusive| recover(&aim(at(1200), inclusive), &records).consistent), [true, false]);
}

#[test]
fn a_name_stops_at_its_first_restore_point() {
    let records = behind_backup([Named("a", 1), Named("b", 2), Other, Named("b", 3)]);
    let named = |name: &str| Target::Name(name.to_owned());
    assert_eq!(both(&named("b"), &records), [Some(5), Some(5)]);
    let came = recover(&aim(named("B"), true), &records);
    assert_eq!(came.replayed, None);
    let points: Vec<_> = came.near.points.iter().map(|point| (point.name.as_str(), point.end.get())).collect();
    assert_eq!(points, [("a", 1400), ("b", 1500), ("b", 1700)]);
    let many: Vec<Made> = (0..20).map(|_| Named("n", 1)).collect();
    assert_eq!(recover(&aim(named("x"), true), &many).near.points.len(), MOST_POINTS);
}

#[test]
fn the_soonest_is_where_the_data_is_consistent() {
    let records = behind_backup([Other, End(COMMIT, 10, 1)]);
    let came = recover(&aim(Target::Immediate, true), &records);
    assert_eq!((came.replayed, came.consistent), (Some(3), true));
    let mut near = Near::default();
    let aim = aim(Target::Immediate, true);
    let watch = Watch::new(Some(&aim), CONSISTENT, CONSISTENT, copied(), &mut near);
    assert!(watch.is_consistent() && watch.stop.is_none(), "a record has to come");
}

/// The server ends with an error then.
#[test]
fn a_stop_before_the_data_is_consistent_is_seen_with_the_least_time_that_is_not() {
    let records = [End(COMMIT, 10, 100), End(COMMIT, 11, 500), End(COMMIT, 12, 300), End(COMMIT, 13, 600)];
    let came = recover(&aim(time(400), true), &records);
    assert_eq!((came.replayed, came.consistent, came.floor), (Some(1), false, Some(500)));
    assert_eq!(came.last_commit, Some(10));
    let came = recover(&aim(time(500), true), &records);
    assert_eq!((came.replayed, came.consistent), (Some(3), true));
    assert!(!recover(&aim(Target::Xid(12), false), &records).consistent);
    assert!(recover(&aim(Target::Xid(12), true), &records).consistent);
}

#[test]
fn tablespaces_are_those_that_are_replayed() {
    let records =
        [Tablespace("/a"), Tablespace(""), Other, Tablespace("/a"), Tablespace("/b"), Named("x", 1), Tablespace("/c")];
    assert_eq!(recover(&aim(Target::Name("x".to_owned()), true), &records).made, 2);
    let mut near = Near::default();
    let watch = Watch::new(None, Lsn::new(FROM), CONSISTENT, copied(), &mut near);
    assert!(!watch.is_over());
}

#[test]
fn settings_say_the_moment_in_utc() {
    let target = Target::Time("2026-11-22T06:15:00.5+01:00".parse().unwrap());
    assert_eq!(target.setting(), ("recovery_target_time", "2026-11-22 05:15:00.500000+00".to_owned()));
    assert!(target.in_full().starts_with("time 2026-11-22 05:15:00.500000+00, which is 2026-11-22 "));
    assert_eq!(Target::Immediate.setting().0, "recovery_target");
    assert_eq!(Target::Name("a\"b".to_owned()).to_string(), r#"restore point "a\"b""#);
}
