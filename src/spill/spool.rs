//! Bytes that are read when all of them have come.

use std::io::{self, Read};

use super::Scratch;
use crate::disk::{DiskError, Unnamed};

/// Bytes that are kept in memory.
const KEPT: usize = 1 << 20;
/// Bytes read back at a time.
const READ: usize = 64 << 10;

/// Bytes that come in pieces, and are read from the beginning when all have come.
#[derive(Debug)]
pub struct Spool {
    scratch: Scratch,
    kept: Vec<u8>,
    file: Option<Unnamed>,
    len: u64,
}

impl Spool {
    /// Nothing yet.
    pub const fn new(scratch: Scratch) -> Self {
        Self { scratch, kept: Vec::new(), file: None, len: 0 }
    }

    /// Bytes so far.
    pub const fn size(&self) -> u64 {
        self.len
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// When they have no place on disk.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        if self.file.is_none() && self.kept.len() + bytes.len() > KEPT {
            let file = self.scratch.file()?;
            file.write_at(0, &self.kept)?;
            self.kept = Vec::new();
            self.file = Some(file);
        }
        match &self.file {
            Some(file) => file.write_at(self.len, bytes)?,
            None => self.kept.extend_from_slice(bytes),
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// All of them from the first. Its errors have a [`DiskError`] inside.
    pub const fn reader(&self) -> SpoolReader<'_> {
        SpoolReader { spool: self, at: 0 }
    }
}

/// Reads a [`Spool`].
#[derive(Debug)]
pub struct SpoolReader<'a> {
    spool: &'a Spool,
    at: u64,
}

impl Read for SpoolReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.spool.len - self.at).unwrap_or(usize::MAX);
        let count = left.min(into.len()).min(READ);
        let into = into.get_mut(..count).unwrap_or_default();
        match &self.spool.file {
            Some(file) => file.read_at(self.at, into).map_err(io::Error::other)?,
            None => {
                let at = usize::try_from(self.at).unwrap_or(usize::MAX);
                let kept = self.spool.kept.get(at..).and_then(|rest| rest.get(..count)).unwrap_or_default();
                into.copy_from_slice(kept);
            }
        }
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_comes_out() {
        let dir = tempfile::tempdir().unwrap();
        for size in [0, 1, KEPT - 1, KEPT, KEPT + 1, 3 * KEPT + 77] {
            let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let mut spool = Spool::new(Scratch::new(dir.path()));
            content.chunks(100_003).for_each(|piece| spool.put(piece).unwrap());
            assert_eq!(spool.file.is_some(), size > KEPT);
            assert!(spool.kept.capacity() <= 2 * KEPT);
            for _ in 0..2 {
                let mut back = Vec::new();
                spool.reader().read_to_end(&mut back).unwrap();
                assert!(back == content && spool.size() == size as u64, "{size}");
            }
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn without_a_place_on_disk_only_little_is_taken() {
        let mut spool = Spool::new(Scratch::new(std::path::Path::new("/nowhere/at/all")));
        spool.put(&[1; KEPT]).unwrap();
        spool.put(&[1]).unwrap_err();
        assert_eq!(spool.size(), KEPT as u64);
    }
}
