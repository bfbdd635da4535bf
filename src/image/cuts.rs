//! Where relations were cut off between two backups: what an incremental backup's own files do not tell.
//!
//! Of a file that was cut off and has grown again the server says that all blocks it does not send are as they were
//! before (`GetFileBackupMethod` in `basebackup_incremental.c`: the length it tells is that of the file now, if that is
//! the greater). Blocks behind the cut of which nothing was logged, as `COPY` adds them, would then come back from the
//! older backup, with rows that had been deleted. The WAL in between says how far each relation was cut off.
//!
//! Relations that were made, dropped or copied with their database need no such note: the server sends their files
//! whole.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::MemberPath;
use crate::wal::Truncation;

/// Tablespaces that lie in the data directory, from `pg_tablespace_d.h`.
const DEFAULT: u32 = 1663;
const GLOBAL: u32 = 1664;

/// What the name of a visibility map's file has behind the relation's number.
const VISIBILITY: &str = "_vm";
/// Bytes of a block before its content, and blocks of the relation for which a byte of its map stands.
const HEADER: u32 = 24;
const BLOCKS_A_BYTE: u32 = 4;

/// For each relation that was cut off, the fewest blocks that were left of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(into = "Vec<String>", try_from = "Vec<String>")]
pub struct Cuts(BTreeMap<Fork, u32>);

/// More was cut off than a seal can hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("more than {} relations were cut off", Cuts::MAX)]
pub struct TooManyCuts;

/// Files of one relation that follow each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Fork {
    tablespace: u32,
    database: u32,
    relation: u32,
    visibility: bool,
}

impl Cuts {
    /// Relations that may be noted, a visibility map for one of its own.
    pub const MAX: usize = 100_000;

    /// Whether nothing was cut off.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes note of a record.
    ///
    /// # Errors
    /// When there are more than [`Cuts::MAX`].
    pub fn note(&mut self, cut: &Truncation) -> Result<(), TooManyCuts> {
        let Truncation { tablespace, database, relation, blocks, main, visibility } = *cut;
        for (_, visibility) in [(main, false), (visibility, true)].into_iter().filter(|(cut, _)| *cut) {
            self.add(Fork { tablespace, database, relation, visibility }, blocks)?;
        }
        Ok(())
    }

    fn add(&mut self, fork: Fork, blocks: u32) -> Result<(), TooManyCuts> {
        if self.0.len() >= Self::MAX && !self.0.contains_key(&fork) {
            return Err(TooManyCuts);
        }
        let lowest = self.0.entry(fork).or_insert(blocks);
        *lowest = blocks.min(*lowest);
        Ok(())
    }

    /// From which block on, in blocks of the file, nothing of an older backup counts in the file that has this path
    /// below the data directory. `None` if it was not cut off.
    pub fn limit(&self, path: &MemberPath, block_size: u32, file_blocks: u32) -> Option<u32> {
        let (fork, segment) = fork_of(path)?;
        let blocks = *self.0.get(&fork)?;
        // Of the block that stands for blocks on both sides of the cut, bits were cleared, which need not have been
        // logged. One of zeros is right: it says nothing.
        let a_block = block_size.saturating_sub(HEADER).saturating_mul(BLOCKS_A_BYTE);
        let blocks = if fork.visibility { blocks.checked_div(a_block).unwrap_or(0) } else { blocks };
        Some(blocks.saturating_sub(segment.saturating_mul(file_blocks)))
    }
}

/// Whose file it is, and which in their order: `base/5/16384`, `base/5/16384_vm.1`, `global/1262`,
/// `pg_tblspc/16400/PG_17_202406281/5/16384`.
fn fork_of(path: &MemberPath) -> Option<(Fork, u32)> {
    let parts: Vec<&str> = path.as_str()?.split('/').collect();
    let (tablespace, database, name) = match *parts {
        ["base", database, name] => (DEFAULT, number(database)?, name),
        ["global", name] => (GLOBAL, 0, name),
        ["pg_tblspc", tablespace, _version, database, name] => (number(tablespace)?, number(database)?, name),
        _ => return None,
    };
    let (name, segment) = match name.split_once('.') {
        Some((name, segment)) => (name, number(segment)?),
        None => (name, 0),
    };
    let (relation, visibility) = relation(name)?;
    Some((Fork { tablespace, database, relation, visibility }, segment))
}

fn relation(name: &str) -> Option<(u32, bool)> {
    match name.strip_suffix(VISIBILITY) {
        Some(name) => Some((number(name)?, true)),
        None => Some((number(name)?, false)),
    }
}

fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

impl From<Cuts> for Vec<String> {
    /// Each as `1663/5/16384 44`: tablespace, database, relation, and the blocks that were left.
    fn from(cuts: Cuts) -> Self {
        let line = |(fork, blocks): (&Fork, &u32)| {
            let Fork { tablespace, database, relation, visibility } = fork;
            let suffix = if *visibility { VISIBILITY } else { "" };
            format!("{tablespace}/{database}/{relation}{suffix} {blocks}")
        };
        cuts.0.iter().map(line).collect()
    }
}

impl TryFrom<Vec<String>> for Cuts {
    type Error = String;

    fn try_from(lines: Vec<String>) -> Result<Self, String> {
        let mut cuts = Self::default();
        for line in lines {
            let (fork, blocks) = parse(&line).ok_or_else(|| format!("\"{}\" is no cut", line.escape_debug()))?;
            cuts.add(fork, blocks).map_err(|e| e.to_string())?;
        }
        Ok(cuts)
    }
}

fn parse(line: &str) -> Option<(Fork, u32)> {
    let (fork, blocks) = line.split_once(' ')?;
    let parts: Vec<&str> = fork.split('/').collect();
    let [tablespace, database, name] = *parts else { return None };
    let (relation, visibility) = relation(name)?;
    let fork = Fork { tablespace: number(tablespace)?, database: number(database)?, relation, visibility };
    Some((fork, number(blocks)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u32 = 8192;
    const FILE: u32 = 131_072;

    fn cut(tablespace: u32, database: u32, blocks: u32) -> Truncation {
        Truncation { tablespace, database, relation: 16_384, blocks, main: true, visibility: true }
    }

    fn limit(cuts: &Cuts, path: &str) -> Option<u32> {
        cuts.limit(&MemberPath::new(path.as_bytes()).unwrap(), SIZE, FILE)
    }

    #[test]
    fn the_lowest_counts_for_each_file() {
        let mut cuts = Cuts::default();
        for blocks in [70, 44, 60] {
            cuts.note(&cut(1663, 5, blocks)).unwrap();
        }
        cuts.note(&cut(1664, 0, 3)).unwrap();
        cuts.note(&Truncation { visibility: false, ..cut(16_400, 5, 9) }).unwrap();
        cuts.note(&Truncation { main: false, visibility: false, ..cut(1663, 6, 9) }).unwrap();
        assert_eq!(limit(&cuts, "base/5/16384"), Some(44));
        assert_eq!(limit(&cuts, "global/16384"), Some(3));
        assert_eq!(limit(&cuts, "pg_tblspc/16400/PG_17_202406281/5/16384"), Some(9));
        let others = [
            "base/6/16384",
            "base/5/16385",
            "base/5/16384_fsm",
            "base/5/16384_init",
            "base/5/+16384",
            "base/5/16384.x",
            "base/5/x/16384",
            "base/5/t3_16384",
            "16384",
            "pg_tblspc/16400/PG_17_202406281/5/16384_vm",
            "pg_tblspc/16401/PG_17_202406281/5/16384",
        ];
        for other in others {
            assert_eq!(limit(&cuts, other), None, "{other}");
        }
    }

    #[test]
    fn a_cut_is_in_one_file_and_empties_those_behind() {
        let mut cuts = Cuts::default();
        cuts.note(&cut(1663, 5, FILE + 10)).unwrap();
        let limits = ["base/5/16384", "base/5/16384.1", "base/5/16384.2", "base/5/16384.4294967295"];
        assert_eq!(limits.map(|path| limit(&cuts, path)), [Some(FILE + 10), Some(10), Some(0), Some(0)]);
    }

    /// A block of the map stands for 32,672 blocks.
    #[test]
    fn of_a_map_the_block_of_the_cut_goes() {
        for (blocks, left) in [(0, 0), (44, 0), (32_671, 0), (32_672, 1), (32_673, 1), (65_344, 2)] {
            let mut cuts = Cuts::default();
            cuts.note(&cut(1663, 5, blocks)).unwrap();
            assert_eq!(limit(&cuts, "base/5/16384_vm"), Some(left), "{blocks}");
        }
    }

    #[test]
    fn they_go_there_and_back_and_are_bounded() {
        let mut cuts = Cuts::default();
        cuts.note(&cut(1663, 5, 44)).unwrap();
        let json = serde_json::to_string(&cuts).unwrap();
        assert_eq!(json, r#"["1663/5/16384 44","1663/5/16384_vm 44"]"#);
        assert_eq!(serde_json::from_str::<Cuts>(&json).unwrap(), cuts);
        for wrong in
            ["", "1663/5/16384", "1663/5 44", "1663/5/16384 -1", "1663/5/16384_fsm 1", "1/2/3 4294967296", "1/2/3/4 5"]
        {
            assert!(serde_json::from_str::<Cuts>(&format!("[\"{wrong}\"]")).is_err(), "{wrong}");
        }
        let mut many = Cuts::default();
        let other = |relation: usize| Truncation { relation: relation as u32, visibility: false, ..cut(1663, 5, 1) };
        (0..Cuts::MAX).for_each(|n| many.note(&other(n)).unwrap());
        assert_eq!(many.note(&other(Cuts::MAX)), Err(TooManyCuts));
        assert_eq!(many.note(&other(0)), Ok(()), "one that is noted already");
    }
}
