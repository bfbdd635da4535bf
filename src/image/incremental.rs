//! Files of an incremental backup: the blocks of a relation's file that changed, and how long the file is
//! (`basebackup_incremental.c`), and which of an older file's blocks still count (`reconstruct.c`).

use std::ops::Range;

use thiserror::Error;

use super::{BadPath, MemberPath};
use crate::cursor::Cursor;

/// What the name of such a file begins with.
const PREFIX: &[u8] = b"INCREMENTAL.";

const MAGIC: u32 = 0xD3AE_1F0D;
/// Magic number, count of blocks, length without them.
const FIXED: u64 = FIXED_LEN as u64;
const FIXED_LEN: usize = 12;
/// What PostgreSQL can be built with.
const BLOCK_SIZES: [u32; 6] = [1024, 2048, 4096, 8192, 16384, 32768];
/// Far more than the largest segment of a relation that anybody builds has: 128 GiB of it.
const MAX_BLOCKS: u32 = 1 << 24;

/// The name, below the data directory, of the file that an incremental one stands for. `None` for any other
/// file: where no relation lies, somebody may have called a file of his own so.
///
/// # Errors
/// When the name is nothing but the prefix.
pub fn stands_for(path: &MemberPath) -> Option<Result<MemberPath, BadPath>> {
    let name = path.file_name();
    let bare = name.strip_prefix(PREFIX)?;
    let dir = path.as_bytes().strip_suffix(name)?;
    let of_relations = dir == b"global/" || dir.starts_with(b"pg_tblspc/") || inside(dir, b"base/");
    of_relations.then(|| MemberPath::new(&[dir, bare].concat()))
}

fn inside(dir: &[u8], above: &[u8]) -> bool {
    dir.strip_prefix(above).is_some_and(|rest| !rest.is_empty())
}

/// The bytes are not a file that a server writes into an incremental backup.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IncrementalError {
    /// Something else.
    #[error("it does not begin as an incremental file does")]
    Magic,
    /// Cut short, or with more than it says.
    #[error("its {size} bytes cannot hold {blocks} blocks")]
    Size {
        /// Bytes it has.
        size: u64,
        /// Blocks it says that it holds.
        blocks: u32,
    },
    /// It could not even be held.
    #[error("it says that its file has {0} blocks")]
    TooLong(u32),
    /// The server sends them in order, each once.
    #[error("its block numbers do not ascend: {after} comes after {before}")]
    Order {
        /// A number.
        before: u32,
        /// The one that follows.
        after: u32,
    },
    /// It ended before what it says that it holds.
    #[error("it is cut short")]
    CutShort,
}

/// Which blocks of its file it holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Increment {
    /// The blocks that it holds, ascending.
    pub blocks: Vec<u32>,
    /// Up to here, exclusive, blocks that it does not hold are as they were before; from here on there are
    /// none but those it holds. In blocks.
    pub truncation: u32,
    /// Bytes of a block, which only one that holds blocks tells.
    pub block_size: Option<u32>,
}

impl Increment {
    /// Blocks of the file it stands for.
    pub fn length(&self) -> u32 {
        self.blocks.last().map_or(self.truncation, |last| self.truncation.max(last.saturating_add(1)))
    }
}

/// Reads an incremental file from its first byte to its last. What it holds of memory is bounded by what has
/// been fed.
#[derive(Debug)]
pub struct IncrementReader {
    size: u64,
    at: u64,
    gathered: Vec<u8>,
    increment: Option<Increment>,
}

impl IncrementReader {
    /// Of a file of `size` bytes.
    pub const fn new(size: u64) -> Self {
        Self { size, at: 0, gathered: Vec::new(), increment: None }
    }

    /// Takes the next bytes. Shows the bytes of blocks, with the place in bytes at which they lie in the file it
    /// stands for; blocks that follow each other may be shown together.
    ///
    /// # Errors
    /// When it is not what a server writes, or what `seen` says.
    pub fn feed<E>(&mut self, mut bytes: &[u8], seen: &mut impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E>
    where
        E: From<IncrementalError>,
    {
        while self.increment.is_none() && !bytes.is_empty() {
            let wanted = self.header_wanted()?;
            let missing = usize::try_from(wanted.saturating_sub(self.gathered.len() as u64)).unwrap_or(usize::MAX);
            let (taken, rest) = bytes.split_at(missing.min(bytes.len()));
            self.gathered.extend_from_slice(taken);
            self.at = self.at.saturating_add(taken.len() as u64);
            bytes = rest;
            self.parse()?;
        }
        let Some(increment) = &self.increment else { return Ok(()) };
        // With blocks the header is padded to a whole one.
        let Some(block_size) = increment.block_size.map(u64::from) else { return Ok(()) };
        let header = header_len(increment.blocks.len() as u64).next_multiple_of(block_size);
        let padding = usize::try_from(header.saturating_sub(self.at)).unwrap_or(usize::MAX).min(bytes.len());
        self.at = self.at.saturating_add(padding as u64);
        bytes = bytes.get(padding..).unwrap_or_default();
        while !bytes.is_empty() {
            let (place, room) = increment.place(self.at.saturating_sub(header), block_size)?;
            let (taken, rest) = bytes.split_at(usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len()));
            seen(place, taken)?;
            self.at = self.at.saturating_add(taken.len() as u64);
            bytes = rest;
        }
        Ok(())
    }

    /// What it holds, once all of it has been fed.
    ///
    /// # Errors
    /// When it has ended too early.
    pub fn finish(self) -> Result<Increment, IncrementalError> {
        self.increment.filter(|_| self.at == self.size).ok_or(IncrementalError::CutShort)
    }

    /// Bytes of the header that are known to be there: first the fixed ones, which tell of the others.
    fn header_wanted(&self) -> Result<u64, IncrementalError> {
        let Some([magic, count, truncation]) = self.fixed() else { return Ok(FIXED) };
        if magic != MAGIC {
            return Err(IncrementalError::Magic);
        }
        if count > MAX_BLOCKS || truncation > MAX_BLOCKS {
            return Err(IncrementalError::TooLong(count.max(truncation)));
        }
        self.block_size(count)?;
        Ok(header_len(count.into()))
    }

    fn fixed(&self) -> Option<[u32; 3]> {
        let mut cursor = Cursor::new(&self.gathered);
        Some([cursor.u32_le()?, cursor.u32_le()?, cursor.u32_le()?])
    }

    /// Only one size of a block gives a file of this size with so many blocks, for more of it gives a larger file.
    fn block_size(&self, count: u32) -> Result<Option<u32>, IncrementalError> {
        let wrong = || IncrementalError::Size { size: self.size, blocks: count };
        if count == 0 {
            return if self.size == FIXED { Ok(None) } else { Err(wrong()) };
        }
        let count = u64::from(count);
        let fits = |size: &u32| {
            let size = u64::from(*size);
            let header = header_len(count).checked_next_multiple_of(size);
            header.and_then(|header| count.checked_mul(size)?.checked_add(header)) == Some(self.size)
        };
        BLOCK_SIZES.into_iter().find(fits).map(Some).ok_or_else(wrong)
    }

    fn parse(&mut self) -> Result<(), IncrementalError> {
        let Some([_, count, truncation]) = self.fixed() else { return Ok(()) };
        if (self.gathered.len() as u64) < self.header_wanted()? {
            return Ok(());
        }
        let mut cursor = Cursor::new(&self.gathered);
        cursor.take(FIXED_LEN);
        let blocks: Vec<u32> = std::iter::from_fn(|| cursor.u32_le()).collect();
        for pair in blocks.windows(2) {
            if let [before, after] = *pair
                && before >= after
            {
                return Err(IncrementalError::Order { before, after });
            }
        }
        if let Some(last) = blocks.last().filter(|last| **last >= MAX_BLOCKS) {
            return Err(IncrementalError::TooLong(*last));
        }
        let block_size = self.block_size(count)?;
        self.gathered = Vec::new();
        self.increment = Some(Increment { blocks, truncation, block_size });
        Ok(())
    }
}

const fn header_len(blocks: u64) -> u64 {
    FIXED.saturating_add(blocks.saturating_mul(4))
}

impl Increment {
    /// Where in the file that it stands for the byte lies that is stored so far behind the header, and how many bytes
    /// from there on follow each other.
    fn place(&self, stored: u64, block_size: u64) -> Result<(u64, u64), IncrementalError> {
        let index = stored.checked_div(block_size).ok_or(IncrementalError::CutShort)?;
        let within = stored.saturating_sub(index.saturating_mul(block_size));
        let (first, run) = self.run(index).ok_or(IncrementalError::CutShort)?;
        let place = u64::from(first).saturating_mul(block_size).saturating_add(within);
        Ok((place, run.saturating_mul(block_size).saturating_sub(within)))
    }

    /// The block that is stored as the `index`th, and how many of those stored from it on follow each other.
    fn run(&self, index: u64) -> Option<(u32, u64)> {
        let stored = self.blocks.get(usize::try_from(index).ok()?..)?;
        let first = *stored.first()?;
        let run = stored.iter().zip(first..).take_while(|(block, next)| *block == next).count();
        Some((first, run as u64))
    }
}

/// Which blocks of a file are still to be found, while backups are gone through from the newest to the oldest.
///
/// What an older file says counts only as far as every newer one reaches: a block that a newer file was cut off
/// before, and does not hold, is not there any more, and if the file has grown again it is zeros. So the result is the
/// same as if each increment had been combined with all before it one after the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sought {
    /// Blocks of the result.
    length: u32,
    /// From here on, exclusive, nothing older counts.
    reach: u32,
    /// A bit a block that has been found, up to the last such.
    found: Vec<u64>,
}

impl Sought {
    /// After the newest file.
    pub fn new(newest: &Increment) -> Self {
        let mut sought = Self { length: newest.length(), reach: newest.length(), found: Vec::new() };
        sought.pass(newest);
        sought
    }

    /// Blocks of the result.
    pub const fn length(&self) -> u32 {
        self.length
    }

    /// The blocks from `range` that are wanted of the next older file, in runs.
    pub fn wanted(&self, range: Range<u32>) -> impl Iterator<Item = Range<u32>> {
        let end = range.end.min(self.reach);
        let mut next = range.start;
        std::iter::from_fn(move || {
            let first = (next..end).find(|block| !self.has(*block))?;
            let behind = (first..end).find(|block| self.has(*block)).unwrap_or(end);
            next = behind;
            Some(first..behind)
        })
    }

    /// The next older file has been gone through.
    pub fn pass(&mut self, older: &Increment) {
        for block in older.blocks.iter().filter(|block| **block < self.reach) {
            let word = (block / 64) as usize;
            if self.found.len() <= word {
                self.found.resize(word.saturating_add(1), 0);
            }
            if let Some(word) = self.found.get_mut(word) {
                *word |= 1 << (block % 64);
            }
        }
        self.reach = self.reach.min(older.truncation);
    }

    /// From this block on, nothing counts of what is older than the file that was gone through last.
    pub fn cut(&mut self, blocks: u32) {
        self.reach = self.reach.min(blocks);
    }

    /// Whether nothing was found yet, and the file may be, unchanged, that of an older backup.
    pub fn is_untouched(&self) -> bool {
        self.found.is_empty() && self.reach == self.length
    }

    fn has(&self, block: u32) -> bool {
        self.found.get((block / 64) as usize).is_some_and(|word| word >> (block % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests;
