//! Every parser of bytes from outside, fed with what is valid, with all that was ever found, and with what becomes
//! of these when bits, bytes, lengths and pieces of them are changed at random.
//!
//! `WALHOLD_FUZZ_SECONDS` is how long each parser gets (one second). `WALHOLD_SEED` is what the changes are made
//! from. What makes a parser fail is written to a temporary file, and belongs into `fuzz/found/ENTRY/`.

#![allow(clippy::disallowed_methods, reason = "what was found is kept")]

mod entries;
mod samples;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
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

fn found(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto-tests/fuzz/found").join(name);
    fs::read_dir(dir).into_iter().flatten().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
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
    let corpus = [samples, found(name)].concat();
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
    };
}

entries!(framing, messages, conninfo, tar, manifest, history, wal, seals, label, control);
