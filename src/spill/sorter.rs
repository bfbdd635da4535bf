//! Records in the order of their keys.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::ops::Range;
use std::path::Path;

use super::Scratch;
use crate::disk::{DiskError, Unnamed};

/// Bytes of records that are put in order in memory.
const ROOM: usize = 1 << 20;
/// Bytes for reading back, of all stretches together, and of one.
const READ: usize = 1 << 20;
const READ_OF_ONE: Range<usize> = 4 << 10..64 << 10;
/// Before each record: the lengths of its key and its value.
const LENGTHS: usize = 4;

/// Takes records in any order, and gives them back in that of their keys.
#[derive(Debug)]
pub struct Sorter {
    scratch: Scratch,
    room: usize,
    /// Records, one behind the other.
    arena: Vec<u8>,
    /// Where each begins.
    starts: Vec<usize>,
    file: Option<Unnamed>,
    /// Stretches of the file that are in order.
    runs: Vec<Range<u64>>,
}

/// A key and what is said of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Record {
    /// Its place in the order; the same one may come more than once.
    pub key: Vec<u8>,
    /// At most 64 KiB.
    pub value: Vec<u8>,
}

impl Sorter {
    /// No record yet.
    pub const fn new(scratch: Scratch) -> Self {
        Self { scratch, room: ROOM, arena: Vec::new(), starts: Vec::new(), file: None, runs: Vec::new() }
    }

    /// Takes a record. Keys and values are shorter than 64 KiB.
    ///
    /// # Errors
    /// When it has no place on disk, or is too long.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), DiskError> {
        let too_long = |_| DiskError::new("sort", &self.scratch.dir, io::ErrorKind::InvalidInput.into());
        let lengths = [u16::try_from(key.len()).map_err(too_long)?, u16::try_from(value.len()).map_err(too_long)?];
        let taken = self.arena.len() + self.starts.len() * size_of::<usize>();
        if taken + LENGTHS + key.len() + value.len() > self.room {
            self.write_run()?;
        }
        self.starts.push(self.arena.len());
        lengths.into_iter().for_each(|length| self.arena.extend(length.to_le_bytes()));
        self.arena.extend_from_slice(key);
        self.arena.extend_from_slice(value);
        Ok(())
    }

    /// All records in the order of their keys.
    ///
    /// # Errors
    /// When they have no place on disk, or cannot be read back.
    pub fn sorted(mut self) -> Result<Merge, DiskError> {
        if self.runs.is_empty() {
            self.order();
            return Ok(Merge(Source::Memory { arena: self.arena, starts: self.starts.into_iter() }));
        }
        self.write_run()?;
        let Self { scratch, file, runs, .. } = self;
        let Some(file) = file else {
            return Ok(Merge(Source::Memory { arena: Vec::new(), starts: Vec::new().into_iter() }));
        };
        let each = (READ / runs.len().max(1)).clamp(READ_OF_ONE.start, READ_OF_ONE.end);
        let mut disk = OnDisk { dir: scratch.dir, file, each, runs: Vec::new(), heap: BinaryHeap::new() };
        for (number, left) in runs.into_iter().enumerate() {
            disk.runs.push(Run { left, buffer: Vec::new(), at: 0 });
            disk.refill(number)?;
        }
        Ok(Merge(Source::Disk(disk)))
    }

    fn order(&mut self) {
        let arena = &self.arena;
        self.starts.sort_unstable_by(|a, b| key_at(arena, *a).cmp(key_at(arena, *b)));
    }

    /// What is in memory becomes a stretch of the file.
    fn write_run(&mut self) -> Result<(), DiskError> {
        if self.starts.is_empty() {
            return Ok(());
        }
        self.order();
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(self.scratch.file()?),
        };
        let begin = self.runs.last().map_or(0, |run| run.end);
        let mut gathered = Vec::with_capacity(READ_OF_ONE.end);
        let mut at = begin;
        for start in &self.starts {
            let record = self.arena.get(*start..).and_then(|rest| rest.get(..length_of(rest)?)).unwrap_or_default();
            gathered.extend_from_slice(record);
            if gathered.len() >= READ_OF_ONE.end {
                file.write_at(at, &gathered)?;
                at += gathered.len() as u64;
                gathered.clear();
            }
        }
        file.write_at(at, &gathered)?;
        self.runs.push(begin..at + gathered.len() as u64);
        self.arena.clear();
        self.starts.clear();
        Ok(())
    }
}

/// Of the record at the beginning of these bytes, its lengths included; `None` if they are too few to tell.
fn length_of(bytes: &[u8]) -> Option<usize> {
    let [a, b, c, d] = *bytes.first_chunk::<LENGTHS>()?;
    Some(LENGTHS + usize::from(u16::from_le_bytes([a, b])) + usize::from(u16::from_le_bytes([c, d])))
}

/// The record at the beginning of these bytes, if it is there whole.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let [a, b, ..] = *bytes.first_chunk::<LENGTHS>()?;
    let record = bytes.get(LENGTHS..length_of(bytes)?)?;
    record.split_at_checked(usize::from(u16::from_le_bytes([a, b])))
}

fn key_at(arena: &[u8], start: usize) -> &[u8] {
    arena.get(start..).and_then(split).map_or(&[], |(key, _)| key)
}

/// The records in their order.
#[derive(Debug)]
pub struct Merge(Source);

#[derive(Debug)]
enum Source {
    Memory { arena: Vec<u8>, starts: std::vec::IntoIter<usize> },
    Disk(OnDisk),
}

#[derive(Debug)]
struct OnDisk {
    /// For whoever reads an error.
    dir: std::path::PathBuf,
    file: Unnamed,
    /// Bytes of a stretch that are read at a time.
    each: usize,
    runs: Vec<Run>,
    /// The next of each stretch.
    heap: BinaryHeap<Reverse<(Record, usize)>>,
}

#[derive(Debug)]
struct Run {
    left: Range<u64>,
    buffer: Vec<u8>,
    at: usize,
}

impl Merge {
    /// The next record.
    ///
    /// # Errors
    /// When it cannot be read back.
    #[allow(clippy::should_implement_trait, reason = "it can fail")]
    pub fn next(&mut self) -> Result<Option<Record>, DiskError> {
        match &mut self.0 {
            Source::Memory { arena, starts } => {
                let record = starts.next().and_then(|start| split(arena.get(start..)?));
                Ok(record.map(|(key, value)| Record { key: key.to_owned(), value: value.to_owned() }))
            }
            Source::Disk(disk) => {
                let Some(Reverse((record, number))) = disk.heap.pop() else { return Ok(None) };
                disk.refill(number)?;
                Ok(Some(record))
            }
        }
    }
}

impl OnDisk {
    /// Puts the next record of a stretch among those that are next.
    fn refill(&mut self, number: usize) -> Result<(), DiskError> {
        let Some(run) = self.runs.get_mut(number) else { return Ok(()) };
        if let Some(record) = run.next(&self.file, self.each).map_err(|e| match e {
            Unreadable::Disk(e) => e,
            Unreadable::Changed => damaged(&self.dir),
        })? {
            self.heap.push(Reverse((record, number)));
        }
        Ok(())
    }
}

enum Unreadable {
    Disk(DiskError),
    Changed,
}

fn damaged(dir: &Path) -> DiskError {
    DiskError::new("read back a scratch file in", dir, io::ErrorKind::InvalidData.into())
}

impl Run {
    fn next(&mut self, file: &Unnamed, each: usize) -> Result<Option<Record>, Unreadable> {
        loop {
            let waiting = self.buffer.get(self.at..).unwrap_or_default();
            if let Some((key, value)) = split(waiting) {
                let record = Record { key: key.to_owned(), value: value.to_owned() };
                self.at += LENGTHS + key.len() + value.len();
                return Ok(Some(record));
            }
            if self.left.is_empty() {
                return if waiting.is_empty() { Ok(None) } else { Err(Unreadable::Changed) };
            }
            // A record may be longer than what is read at a time.
            let kept = waiting.len();
            self.buffer.drain(..self.at);
            self.at = 0;
            let count = usize::try_from(self.left.end - self.left.start).unwrap_or(usize::MAX).min(each);
            self.buffer.resize(kept + count, 0);
            let into = self.buffer.get_mut(kept..).unwrap_or_default();
            file.read_at(self.left.start, into).map_err(Unreadable::Disk)?;
            self.left.start += count as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(mut merge: Merge) -> Vec<Record> {
        std::iter::from_fn(|| merge.next().unwrap()).collect()
    }

    fn records() -> impl Strategy<Value = Vec<Record>> {
        let key = prop_oneof![prop::collection::vec(0u8..3, 0..4), prop::collection::vec(any::<u8>(), 0..1100)];
        let value = prop::collection::vec(any::<u8>(), 0..80);
        prop::collection::vec((key, value).prop_map(|(key, value)| Record { key, value }), 0..300)
    }

    proptest! {
        #[test]
        fn they_come_back_in_order_however_little_fits(records in records(), room in 0usize..20_000) {
            let mut sorter = Sorter { room, ..Sorter::new(Scratch::temporary()) };
            records.iter().for_each(|record| sorter.put(&record.key, &record.value).unwrap());
            let spilled = !sorter.runs.is_empty();
            let mut found = all(sorter.sorted().unwrap());
            prop_assert!(found.is_sorted_by(|a, b| a.key <= b.key), "spilled: {spilled}");
            let mut records = records;
            records.sort();
            found.sort();
            prop_assert_eq!(found, records);
        }
    }

    #[test]
    fn memory_is_bounded_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::new(Scratch::new(dir.path()));
        for number in 0..80_000_u32 {
            let key = format!("base/{}/{}", number % 7, number.reverse_bits());
            sorter.put(key.as_bytes(), &number.to_le_bytes()).unwrap();
            assert!(sorter.arena.capacity() <= 2 * ROOM);
        }
        assert!(sorter.runs.len() > 1);
        let mut merge = sorter.sorted().unwrap();
        let (mut count, mut last) = (0, Vec::new());
        while let Some(record) = merge.next().unwrap() {
            assert!(record.key > last);
            (count, last) = (count + 1, record.key);
        }
        assert_eq!((count, std::fs::read_dir(dir.path()).unwrap().count()), (80_000, 0));
    }

    #[test]
    fn without_a_place_on_disk_it_says_so() {
        let mut sorter = Sorter { room: 100, ..Sorter::new(Scratch::new(Path::new("/nowhere/at/all"))) };
        sorter.put(&[1; 50], b"").unwrap();
        sorter.put(&[1; 50], b"").unwrap_err();
        Sorter::new(Scratch::temporary()).put(&[1; 1 << 16], b"").unwrap_err();
    }
}
