//! Every parser of bytes from outside, fed with what is valid, with its corpus (what reaches different code, and all
//! that was ever found), and with what becomes of these when bits, bytes, lengths and pieces of them are changed at
//! random. `integration/fuzz` feeds the same parsers for longer, guided by the code that is reached.
//!
//! `WALHOLD_FUZZ_SECONDS` is how long each parser gets (one second). `WALHOLD_SEED` is what the changes are made
//! from. What makes a parser fail is written to a temporary file, and belongs into `corpus/ENTRY/` as `found-WHAT`.
//! `WALHOLD_FUZZ_SAMPLES` is a folder that the valid ones are written to, for a new corpus to begin with.

#![allow(clippy::disallowed_methods, reason = "what was found is kept, and some parsers read files")]

#[allow(unreachable_pub, reason = "shared with the targets of cargo-fuzz")]
mod entries;
mod samples;

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::crash::world::{Dice, number, seed};

/// Nothing that is fed is longer.
const MOST: usize = 300_000;
/// Values that lengths and counts like to be wrong about.
const ODD: [u64; 12] = [0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF];

/// One change.
fn change(bytes: &mut Vec<u8>, others: &[Vec<u8>], dice: &mut Dice) {
    let len = bytes.len();
    let at = |dice: &mut Dice| dice.below(len as u64 + 1) as usize;
    match dice.below(9) {
        0 if len > 0 => bytes[dice.below(len as u64) as usize] ^= 1 << dice.below(8),
        1 if len > 0 => bytes[dice.below(len as u64) as usize] = dice.below(256) as u8,
        2 => {
            // A number of one, two, four or eight bytes, in either order.
            let value = ODD[dice.below(ODD.len() as u64) as usize];
            let width = 1 << dice.below(4);
            let mut number = value.to_le_bytes()[..width].to_vec();
            if dice.below(2) == 0 {
                number.reverse();
            }
            let from = at(dice);
            for (byte, new) in bytes[from..].iter_mut().zip(number) {
                *byte = new;
            }
        }
        3 => bytes.truncate(at(dice)),
        4 => {
            let (from, to) = (at(dice), at(dice));
            bytes.drain(from.min(to)..from.max(to));
        }
        5 => {
            let (from, to, place) = (at(dice), at(dice), at(dice));
            let piece = bytes[from.min(to)..from.max(to)].to_vec();
            bytes.splice(place..place, piece);
        }
        6 => {
            let other = &others[dice.below(others.len() as u64) as usize];
            let cut = dice.below(other.len() as u64 + 1) as usize;
            bytes.truncate(at(dice));
            bytes.extend(&other[cut..]);
        }
        7 => {
            let place = at(dice);
            let more = (0..1 + dice.below(20)).map(|_| dice.below(256) as u8).collect::<Vec<_>>();
            bytes.splice(place..place, more);
        }
        _ => {
            // A digit or a mark, where text is parsed.
            let place = at(dice);
            const MARKS: &[u8] = b"0123456789-+/\\\"'{}[]:,;=% \t\r\n\0";
            let mark = MARKS[dice.below(MARKS.len() as u64) as usize];
            bytes.insert(place, mark);
        }
    }
    bytes.truncate(MOST);
}

fn corpora() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "proto-tests", "corpus"].iter().collect()
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let files = fs::read_dir(corpora().join(name)).unwrap();
    files.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
}

fn write_samples(name: &str, samples: &[Vec<u8>]) {
    let Some(folder) = std::env::var_os("WALHOLD_FUZZ_SAMPLES") else { return };
    let folder = PathBuf::from(folder).join(name);
    fs::create_dir_all(&folder).unwrap();
    for (at, sample) in samples.iter().enumerate() {
        fs::write(folder.join(at.to_string()), sample).unwrap();
    }
}

fn feed(name: &str, entry: fn(&[u8]), bytes: &[u8]) {
    if let Err(why) = catch_unwind(|| entry(bytes)) {
        let path = std::env::temp_dir().join(format!("walhold-fuzz-{name}-{:08x}", crc32c::crc32c(bytes)));
        fs::write(&path, bytes).unwrap();
        eprintln!("{name} fails with {}", path.display());
        std::panic::resume_unwind(why);
    }
}

fn run(name: &str, entry: fn(&[u8]), samples: Vec<Vec<u8>>) {
    write_samples(name, &samples);
    let corpus = [samples, corpus(name)].concat();
    for bytes in &corpus {
        feed(name, entry, bytes);
    }
    let mut dice = Dice(seed() ^ u64::from(crc32c::crc32c(name.as_bytes())));
    let end = Instant::now() + Duration::from_secs(number("WALHOLD_FUZZ_SECONDS").unwrap_or(1));
    let mut rounds = 0;
    while Instant::now() < end {
        let mut bytes = corpus[dice.below(corpus.len() as u64) as usize].clone();
        for _ in 0..1 + dice.below(6) {
            change(&mut bytes, &corpus, &mut dice);
        }
        feed(name, entry, &bytes);
        rounds += 1;
    }
    assert!(rounds > 20, "{rounds}");
    eprintln!("{name}: {rounds} inputs");
}

macro_rules! entries {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            run(stringify!($name), entries::$name, samples::$name());
        })*

        const ENTRIES: &[&str] = &[$(stringify!($name)),*];
    };
}

entries!(
    framing, messages, login, passwords, services, conninfo, tar, manifest, history, wal, seals, label, control,
    blocks, packed
);

/// They are run each time, and all of them.
#[test]
fn each_entry_has_a_small_corpus_and_a_target() {
    let names = |folder: PathBuf| {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        names.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    let entries: BTreeSet<_> = ENTRIES.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(names(corpora()), entries);
    assert_eq!(names(corpora().join("../cargo-fuzz/fuzz_targets")), entries);
    for name in ENTRIES {
        let corpus = corpus(name);
        let bytes: usize = corpus.iter().map(Vec::len).sum();
        assert!((1..=120).contains(&corpus.len()) && bytes <= 250_000, "{name}: {} files, {bytes} bytes", corpus.len());
    }
}
