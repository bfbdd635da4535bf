//! Walking in pieces finds what one walk from the beginning finds.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::disk::Real;
use crate::wal::SegmentSize;

const SEGMENTS: usize = 14;
const WHOLE: Cut = cut(1, Some(usize::MAX));

const fn cut(threads: usize, piece: Option<usize>) -> Cut {
    Cut { threads, piece, patience: Duration::ZERO }
}

/// Records of all lengths, some over segments; switches; commits by a clock that goes backwards.
fn log() -> &'static [u8] {
    static LOG: OnceLock<Vec<u8>> = OnceLock::new();
    LOG.get_or_init(|| {
        let mut log = Log::new(3 * SIZE, SIZE, 1, SYSTEM);
        for n in 0_i64.. {
            log.record(10, 0, &vec![n as u8 | 1; (n * 37 % 7000) as usize]);
            if n % 3 == 0 {
                let time = 800_000_000_000_000 + n * 1_000_000 - (n % 5) * 10_000_000;
                log.record(1, if n % 2 == 0 { 0 } else { 0x20 }, &[&[255, 8][..], &time.to_le_bytes()].concat());
            }
            match n {
                200 | 210 | 1000 => log.switch(),
                400 => log.record(10, 0, &vec![5; 3_400_000]),
                700 => log.record(10, 0, &vec![5; 900_000]),
                _ => {}
            }
            if log.bytes.len() > SEGMENTS * SIZE as usize {
                break;
            }
        }
        log.bytes.truncate(SEGMENTS * SIZE as usize);
        log.bytes
    })
}

#[derive(Clone, Debug)]
enum Damage {
    Flip(usize),
    Truncated(usize, usize),
    Removed(usize),
    Swapped(usize, usize),
    Partial(usize),
    Zstd(usize),
    Gzip(usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let segment = || 0..SEGMENTS;
    // What lies at the beginning of a segment is what the joining of pieces is about.
    let near = (segment(), 0..9000_usize).prop_map(|(segment, at)| Damage::Flip(segment * SIZE as usize + at));
    prop_oneof![
        3 => near,
        2 => (0..SEGMENTS * SIZE as usize).prop_map(Damage::Flip),
        1 => (segment(), 0..SIZE as usize).prop_map(|(segment, len)| Damage::Truncated(segment, len)),
        1 => segment().prop_map(Damage::Removed),
        1 => (segment(), segment()).prop_map(|(a, b)| Damage::Swapped(a, b)),
        1 => segment().prop_map(Damage::Partial),
        1 => segment().prop_map(Damage::Zstd),
        1 => segment().prop_map(Damage::Gzip),
    ]
}

fn lay_down(wal: &Path, damages: &[Damage]) {
    let mut bytes = log().to_vec();
    for damage in damages {
        if let Damage::Flip(at) = damage {
            bytes[*at] ^= 4;
        }
    }
    let mut files: Vec<_> = bytes
        .chunks(SIZE as usize)
        .enumerate()
        .map(|(n, b)| (format!("0000000100000000{:08X}", n + 3), b.to_vec()))
        .collect();
    for damage in damages {
        match *damage {
            Damage::Flip(_) => {}
            Damage::Truncated(n, len) => files[n].1.truncate(len),
            Damage::Removed(n) => files[n].0.clear(),
            Damage::Swapped(a, b) => {
                let name = files[a].0.clone();
                files[a].0 = std::mem::replace(&mut files[b].0, name);
            }
            Damage::Partial(n) => files[n].0.push_str(".partial"),
            Damage::Zstd(n) => {
                files[n].0.push_str(".zst");
                files[n].1 = zstd::encode_all(&files[n].1[..], 1).unwrap();
            }
            Damage::Gzip(n) => {
                files[n].0.push_str(".gz");
                files[n].1 = gzip(&files[n].1);
            }
        }
    }
    for (name, content) in files.iter().filter(|(name, _)| name.len() >= 24) {
        fs::write(wal.join(name), content).unwrap();
    }
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn verified(repository: &Repository, cut: Cut) -> Report {
    verify_cut(repository, None, cut, &mut |_| {}).unwrap()
}

fn repository(top: &Path, damages: &[Damage]) -> Repository {
    let size = SegmentSize::new(SIZE).unwrap();
    let repository = Repository::create(&top.join("r"), Arc::new(Real::new()), SYSTEM, size, false, now()).unwrap();
    lay_down(&top.join("r/wal"), damages);
    repository
}

#[test]
fn one_stretch_stays_one() {
    let top = tempfile::tempdir().unwrap();
    let repository = repository(top.path(), &[]);
    let report = verified(&repository, WHOLE);
    let wal = report.wal.as_ref().unwrap();
    assert_eq!((wal.segments, wal.stretches.len(), wal.problems.len()), (SEGMENTS as u64, 1, 0));
    let times = wal.stretches[0].times;
    assert!(times.first_commit < times.last_commit && times.last_commit < times.latest_commit, "{times:?}");
    for piece in 1..6 {
        assert_eq!(verified(&repository, cut(3, Some(piece))), report, "pieces of {piece}");
    }
    assert_eq!(verified(&repository, cut(8, None)), report);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn damage_is_found_in_pieces_as_in_one(damages in prop::collection::vec(damage(), 1..5), piece in 1..6_usize) {
        let top = tempfile::tempdir().unwrap();
        let repository = repository(top.path(), &damages);
        let in_pieces = verified(&repository, cut(3, Some(piece)));
        prop_assert_eq!(verified(&repository, WHOLE), in_pieces);
    }
}
