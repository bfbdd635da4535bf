use proptest::prelude::*;

use super::built::Log;
use super::*;
use crate::wal::History;

const SIZE: SegmentSize = SegmentSize::new(1 << 20).unwrap();
const START: u64 = 3 << 20;

fn seed() -> Seed {
    Seed { start: Lsn::new(START), size: SIZE, system_id: Some(77), newest_tli: TimelineId::FIRST }
}

fn log() -> Log {
    Log::new(START, SIZE.bytes(), 1, 77)
}

/// A log with records of all lengths, over pages and segments, and a switch.
fn mixed() -> Log {
    let mut log = log();
    for n in 0..700_usize {
        log.record(10, 0, &vec![n as u8; n * 7 % 3000]);
    }
    log.record(10, 0, &vec![9; 1_500_000]);
    log.backup_end(START + 40);
    log.switch();
    log.record(0, 0x10, &[0; 90]);
    log.record(130, 0, &[1; 5]);
    log
}

type Seen = Vec<(u64, u64, RecordKind)>;

fn walk(bytes: &[u8], cuts: &[usize]) -> (Chain, Seen, Result<(), Broken>) {
    let mut chain = Chain::new(seed());
    let mut seen = Vec::new();
    let mut at = 0;
    for cut in cuts.iter().copied().cycle() {
        let end = (at + cut.max(1)).min(bytes.len());
        let fed = chain.feed(&bytes[at..end], &mut |r| seen.push((r.start.get(), r.end.get(), r.kind())));
        at = end;
        if fed.is_err() || at == bytes.len() {
            return (chain, seen, fed);
        }
    }
    unreachable!("cycle")
}

#[test]
fn every_record_is_seen_once() {
    let log = mixed();
    let (chain, seen, fed) = walk(&log.bytes, &[usize::MAX / 2]);
    fed.unwrap();
    assert_eq!(seen.len(), 700 + 5);
    assert_eq!(seen.iter().map(|s| s.0).collect::<Vec<_>>(), log.starts);
    assert_eq!(seen[701].2, RecordKind::BackupEnd(Lsn::new(START + 40)));
    assert_eq!(seen[702].2, RecordKind::Switch);
    assert_eq!(seen[702].1 % SIZE.bytes(), 0);
    assert_eq!(chain.whole(), chain.at());
    assert_eq!(chain.last_record().unwrap().get(), *log.starts.last().unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn slices_make_no_difference(cuts in prop::collection::vec(1..9000_usize, 1..20)) {
        let log = mixed();
        let (_, whole, _) = walk(&log.bytes, &[usize::MAX / 2]);
        let (_, cut, fed) = walk(&log.bytes, &cuts);
        prop_assert_eq!(fed, Ok(()));
        prop_assert_eq!(whole, cut);
    }

    /// Whatever bit is turned over, the chain breaks, and says so no later than the record.
    #[test]
    fn any_flipped_bit_is_found(byte in 0..2_700_000_usize, bit in 0..8_u32) {
        let mut log = mixed();
        let byte = byte % log.bytes.len();
        // The two lowest flag bits that we may not judge: "backup blocks may be removed".
        prop_assume!(!(byte % 8192 == 2 && bit == 2));
        log.bytes[byte] ^= 1_u8 << bit;
        let (chain, _, fed) = walk(&log.bytes, &[131_072]);
        let broken = fed.expect_err("the flip was not seen");
        prop_assert!(broken.whole.get() <= START + byte as u64, "{broken:?}");
        prop_assert!(chain.whole() <= chain.at());
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..20_000), cuts in prop::collection::vec(1..900_usize, 1..9)) {
        if !bytes.is_empty() {
            let _ = walk(&bytes, &cuts);
        }
    }
}

#[test]
fn a_head_that_began_earlier_is_passed_over() {
    let log = mixed();
    // The second segment begins inside the large record.
    let seed = Seed { start: Lsn::new(START + SIZE.bytes()), ..seed() };
    let mut chain = Chain::new(seed);
    let mut first = None;
    let bytes = &log.bytes[SIZE.bytes() as usize..];
    chain.feed(bytes, &mut |r| _ = first.get_or_insert(r.start)).unwrap();
    assert!(chain.checked_from() > seed.start);
    assert_eq!(first, Some(chain.checked_from()));
}

#[test]
fn a_lost_continuation_is_given_up_only_if_the_next_record_names_it() {
    for (named, fine) in [(0_u64, true), (8, false)] {
        let mut log = log();
        log.record(10, 0, &[1; 100]);
        let lost = log.at();
        log.record(10, 0, &vec![2; 20_000]);
        log.give_up(lost, lost + named);
        log.record(10, 0, &[3; 10]);
        let (_, seen, fed) = walk(&log.bytes, &[usize::MAX / 2]);
        if fine {
            fed.unwrap();
            assert_eq!(seen[1].2, RecordKind::OverwriteContinuation(Lsn::new(lost)));
            assert_eq!(seen.len(), 3);
        } else {
            assert_eq!(fed.unwrap_err().fault, Fault::Overwrite { dropped: Lsn::new(lost) });
        }
    }
}

#[test]
fn another_clusters_segment_is_named() {
    let log = Log::new(START, SIZE.bytes(), 1, 78);
    let mut log = log;
    log.record(10, 0, &[1; 100]);
    let (_, _, fed) = walk(&log.bytes, &[100]);
    assert_eq!(fed.unwrap_err().fault, Fault::SystemIdentifier(78));
}

#[test]
fn a_page_of_a_newer_timeline_is_refused_until_it_is_followed() {
    let mut log = log();
    log.record(10, 0, &[1; 9000]);
    log.tli = 2;
    log.record(10, 0, &[1; 9000]);
    let (_, _, fed) = walk(&log.bytes, &[100]);
    assert_eq!(fed.unwrap_err().fault, Fault::PageTimeline { found: 2, before: 1 });
    let mut chain = Chain::new(seed());
    chain.follow(TimelineId::new(2).unwrap());
    chain.feed(&log.bytes, &mut |_| {}).unwrap();
}

/// The rest of the segment in which a switch record *ends* is zeros, wherever it began.
#[test]
fn a_switch_over_a_segments_end_is_followed() {
    for gap in [8, 16, 24, 32, 40] {
        let mut log = log();
        let target = SIZE.bytes() - gap;
        log.record(10, 0, &[1; 100]);
        while target - log.bytes.len() as u64 > 9000 {
            log.record(10, 0, &[2; 4000]);
        }
        // The last record takes all up to the gap; it crosses one page's end.
        let left = target - log.bytes.len() as u64;
        let headers = if (log.bytes.len() as u64) / 8192 == target / 8192 { 0 } else { 24 };
        log.record(10, 0, &vec![3; (left - 24 - headers) as usize]);
        assert_eq!(log.bytes.len() as u64, target, "gap {gap}");
        log.switch();
        log.record(10, 0, &[4; 50]);
        let (chain, seen, fed) = walk(&log.bytes, &[usize::MAX / 2]);
        fed.unwrap_or_else(|broken| panic!("gap {gap}: {broken}"));
        assert_eq!(seen.iter().map(|s| s.0).collect::<Vec<_>>(), log.starts);
        assert_eq!(chain.whole().get(), log.at());
    }
}

/// Two chains that began apart are in the same state from the first record on that both have read;
/// not before, and not where what came before differs.
#[test]
fn chains_meet_at_a_record() {
    let log = mixed();
    let middle = 2 * SIZE.bytes() as usize;
    let begin = |start: usize| Chain::new(Seed { start: Lsn::new(START + start as u64), ..seed() });
    let (mut long, mut short) = (begin(0), begin(middle));
    long.feed(&log.bytes[..middle], &mut |_| {}).unwrap();
    assert!(!long.goes_on_like(&short), "the rest of a record is open in one");
    for piece in log.bytes[middle..].chunks(777) {
        long.feed(piece, &mut |_| {}).unwrap();
        short.feed(piece, &mut |_| {}).unwrap();
        assert_eq!(long.goes_on_like(&short), short.last_record().is_some(), "at {}", long.at());
    }
    assert!(long.goes_on_like(&short) && long.checked_from() < short.checked_from());
    let mut other = log.clone();
    other.record(10, 0, &[1; 40]);
    let mut further = short.clone();
    further.feed(&other.bytes[log.bytes.len()..], &mut |_| {}).unwrap();
    assert!(!further.goes_on_like(&short));
}

/// The page in which a timeline ends was begun by it; every page behind is of the next.
#[test]
fn pages_are_of_the_timeline_that_the_history_has_there() {
    let mut log = log();
    log.record(10, 0, &[1; 9000]);
    let fork = log.next_record();
    log.tli = 2;
    log.record(10, 0, &[1; 20_000]);
    let second = TimelineId::new(2).unwrap();
    let walked = |fork: u64| {
        let history = History::parse(second, format!("1\t{}\n", Lsn::new(fork)).as_bytes()).unwrap();
        let mut chain = Chain::new(Seed { newest_tli: second, ..seed() }).along(&history);
        chain.feed(&log.bytes, &mut |_| {}).map_err(|broken| broken.fault)
    };
    assert_eq!(walked(fork), Ok(()));
    assert_eq!(walked(fork - 8192), Err(Fault::OtherTimeline { found: 1, expected: 2 }));
    assert_eq!(walked(fork + 8192), Err(Fault::OtherTimeline { found: 2, expected: 1 }));
}

/// Extensions have resource managers from PostgreSQL 15 on; what is newer than 18 may have any.
#[test]
fn resource_managers_follow_the_version() {
    for (magic, rmid, known) in [
        (0xD106, 21, true),
        (0xD106, 22, false),
        (0xD10D, 128, false),
        (0xD110, 128, true),
        (0xD118, 255, true),
        (0xD118, 127, false),
        (0xD119, 22, true),
    ] {
        let mut log = log();
        log.record(rmid, 0, &[1; 40]);
        log.bytes[..2].copy_from_slice(&u16::to_le_bytes(magic));
        let (_, _, fed) = walk(&log.bytes, &[100]);
        let expected = if known { Ok(()) } else { Err(Fault::ResourceManager(rmid)) };
        assert_eq!(fed.map_err(|broken| broken.fault), expected, "{magic:X} {rmid}");
    }
}
