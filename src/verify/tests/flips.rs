//! One bit of one file turned over, anywhere in a repository: `verify` says so.
//!
//! `WALHOLD_FLIPS` says how many (200 without it), `WALHOLD_FLIPS_SEED` repeats a run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::pieces::gzip;
use super::*;
use crate::disk::Real;
use crate::repository::made::Thing;

/// A repository with each kind of file there is, and what its files hold.
struct Whole {
    top: tempfile::TempDir,
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// Exclusive end of the last record of each partial; what lies behind is not WAL yet.
    ends: BTreeMap<PathBuf, usize>,
}

impl Whole {
    /// Two timelines, segments plain and compressed, padding, zeros after a switch, records over
    /// segments, archives plain and compressed, a tablespace.
    fn new() -> Self {
        let top = in_memory();
        let dir = top.path().join("r");
        let mut parts = Parts::new().with_tablespace(16_400, "/else/where");
        parts.base.push(Thing::File("base/5/odd", vec![3; 777], 0o600));
        let mut log = parts.log.clone();
        log.record(10, 0, &[5; 1_300_000]);
        (0..40_usize).for_each(|n| log.record(10, 0, &vec![n as u8 | 1; n * 31 % 500 + 1]));
        parts.log = log;
        let mut fork = parts.log.clone();
        let (repository, mut seal) = parts.make(&dir);
        unpack(&repository, &mut seal, "16400.tar");
        let mut whole = Self { top, files: BTreeMap::new(), ends: BTreeMap::new() };
        whole.partial(1, &fork);
        whole.fork(&mut fork);
        for (no, suffix) in [(3, "zst"), (4, "gz"), (5, "lz4")] {
            whole.compress(&dir.join(format!("wal/0000000100000000{no:08X}")), suffix);
        }
        whole.read(&dir);
        whole
    }

    fn dir(&self) -> PathBuf {
        self.top.path().join("r")
    }

    /// Timeline 2 begins where the last record of timeline 1 ends.
    fn fork(&mut self, log: &mut Log) {
        let wal = self.dir().join("wal");
        fs::write(wal.join("00000002.history"), format!("1\t{}\tno recovery target\n", crate::wal::Lsn::new(log.at())))
            .unwrap();
        let first = (log.at() / SIZE * SIZE - log.start) as usize;
        log.tli = 2;
        log.record(0, 0x90, &[2; 40]);
        (0..500_usize).for_each(|n| log.record(10, 0, &vec![n as u8 | 1; n * 13 % 5000 + 1]));
        for (n, bytes) in log.bytes[first..].chunks(SIZE as usize).enumerate() {
            let no = (log.start as usize + first) / SIZE as usize + n;
            let name = format!("0000000200000000{no:08X}");
            if bytes.len() == SIZE as usize {
                fs::write(wal.join(name), bytes).unwrap();
            } else {
                let mut bytes = bytes.to_vec();
                bytes.resize(SIZE as usize, 0);
                fs::write(wal.join(format!("{name}.partial")), bytes).unwrap();
                self.partial(2, log);
            }
        }
    }

    fn partial(&mut self, tli: u32, log: &Log) {
        let name = format!("wal/{tli:08X}00000000{:08X}.partial", log.at() / SIZE);
        self.ends.insert(self.dir().join(name), (log.at() % SIZE) as usize);
    }

    fn compress(&self, path: &Path, suffix: &str) {
        let plain = fs::read(path).unwrap();
        let packed = match suffix {
            "zst" => {
                let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
                encoder.include_checksum(true).unwrap();
                std::io::Write::write_all(&mut encoder, &plain).unwrap();
                encoder.finish().unwrap()
            }
            "gz" => gzip(&plain),
            _ => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
                std::io::Write::write_all(&mut encoder, &plain).unwrap();
                encoder.finish().unwrap()
            }
        };
        fs::write(path.with_extension(suffix), packed).unwrap();
        fs::remove_file(path).unwrap();
    }

    fn read(&mut self, dir: &Path) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                self.read(&entry.path());
            } else if entry.file_name() != "lock" {
                self.files.insert(entry.path(), fs::read(entry.path()).unwrap());
            }
        }
    }

    /// Why a bit may change without anything to be told.
    fn exempt(&self, path: &Path, at: usize, bit: u32) -> Option<&'static str> {
        let name = path.file_name().unwrap().to_str().unwrap();
        let mut changed = self.files[path].clone();
        changed[at] ^= 1 << bit;
        if name.ends_with(".history") {
            let parse = |bytes: &[u8]| crate::wal::History::parse(crate::wal::TimelineId::new(2).unwrap(), bytes);
            return (parse(&changed) == parse(&self.files[path]))
                .then_some("the reason in a history, which is a comment");
        }
        if path.starts_with(self.dir().join("wal")) && unpacked(name, &changed) == unpacked(name, &self.files[path]) {
            return Some("another compressed form of the same WAL");
        }
        if name.len() == 24 || name.ends_with(".partial") {
            if at % 8192 == 2 && bit == 2 {
                // XLP_BKP_REMOVABLE: a hint for programs that strip page images, that either value
                // of is right at any time and that no server reads.
                return Some("a flag without meaning");
            }
            if self.ends.get(path).is_some_and(|end| at >= *end) {
                return Some("behind the last record of a partial");
            }
        }
        None
    }
}

/// Where there is memory for it: what was just written and is then read past the cache goes to the disk
/// first, thousands of times.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// What a stock program makes of a compressed segment.
fn unpacked(name: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    use std::io::Read as _;
    let mut plain = Vec::new();
    match name.rsplit_once('.').map_or("", |(_, suffix)| suffix) {
        "zst" => zstd::stream::copy_decode(bytes, &mut plain).ok()?,
        "gz" => _ = flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut plain).ok()?,
        "lz4" => _ = lz4_flex::frame::FrameDecoder::new(bytes).read_to_end(&mut plain).ok()?,
        _ => plain.extend(bytes),
    }
    Some(plain)
}

/// Puts a tar in the place of its compressed form.
fn unpack(repository: &Repository, seal: &mut Seal, name: &str) {
    let packed = repository.backup_dir(seal.id).join(format!("{name}.zst"));
    let plain = zstd::decode_all(&fs::read(&packed).unwrap()[..]).unwrap();
    fs::remove_file(&packed).unwrap();
    let file = seal.files.iter_mut().find(|file| file.name == format!("{name}.zst")).unwrap();
    file.name = name.to_owned();
    reseal(repository, seal, name, &plain);
}

/// What `verify` says: nothing wrong, or what.
fn said(dir: &Path) -> Result<(), String> {
    let repository = Repository::open(dir, Arc::new(Real::new())).map_err(|e| e.to_string())?;
    let cut = Cut { threads: 1, piece: None, patience: Duration::ZERO };
    let report = verify_cut(&repository, None, cut, &mut |_| {}).map_err(|e| e.to_string())?;
    if report.is_good() { Ok(()) } else { Err(serde_json::to_string(&report).unwrap()) }
}

/// The low bits of a linear congruence are poor; only high ones are taken.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[test]
fn any_flipped_bit_in_a_repository_is_told() {
    let whole = Whole::new();
    said(&whole.dir()).unwrap();
    let seed = number("WALHOLD_FLIPS_SEED").unwrap_or_else(now_seed);
    let flips = number("WALHOLD_FLIPS").unwrap_or(200);
    println!("WALHOLD_FLIPS={flips} WALHOLD_FLIPS_SEED={seed}");
    let mut dice = Dice(seed);
    let (mut unseen, mut passed_over) = (Vec::new(), BTreeMap::<&str, u32>::new());
    let files: Vec<_> = whole.files.iter().collect();
    let mut done = 0;
    while done < flips {
        // Half of them by size, and half in any file, or the small ones would never come.
        let (path, content) = files[dice.below(files.len())];
        let (at, bit) = (dice.below(content.len()), dice.below(8) as u32);
        if let Some(why) = whole.exempt(path, at, bit) {
            *passed_over.entry(why).or_default() += 1;
            continue;
        }
        let mut changed = content.clone();
        changed[at] ^= 1 << bit;
        fs::write(path, &changed).unwrap();
        if said(&whole.dir()).is_ok() {
            unseen.push(format!("{}: byte {at} of {}, bit {bit}", path.display(), content.len()));
        }
        fs::write(path, content).unwrap();
        done += 1;
    }
    println!("passed over: {passed_over:?}");
    assert!(unseen.is_empty(), "{} of {flips} not told:\n{}", unseen.len(), unseen.join("\n"));
    said(&whole.dir()).unwrap();
}

fn now_seed() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
}
