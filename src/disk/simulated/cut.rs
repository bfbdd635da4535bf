//! What a power cut leaves of what was not synced.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

use super::content::Content;
use super::state::{DirNode, FileNode, Id, Node, State};
use super::{BLOCK, SECTOR};

/// What one power cut leaves.
#[derive(Clone, Debug)]
pub(super) struct Fate {
    data: Left,
    names: Left,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Left {
    Nothing,
    All,
    /// What these dice decide.
    Some(u64),
    /// Those whose bits are set: of the names by change, of the data by sector and size, each in the order in which
    /// the disk has them.
    These(u64),
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "of the unsynced data {}, of the unsynced names {}", self.data, self.names)
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::All => f.write_str("all"),
            Self::Some(dice) => write!(f, "some (dice {dice:#x})"),
            Self::These(chosen) => write!(f, "some (those of {chosen:#b})"),
        }
    }
}

impl Fate {
    /// The corners, and `mixes` in between where there is anything to mix; and all subsets of the names, and of the
    /// data, where these are no more.
    pub(super) fn all(state: &State, seed: u64, mixes: u64) -> Vec<Self> {
        let (sectors, changes) = state.unsynced();
        let ends = |pending| if pending > 0 { &[Left::Nothing, Left::All][..] } else { &[Left::All] };
        let corners = ends(sectors).iter().flat_map(|data| ends(changes).iter().map(|names| (*data, *names)));
        let mut fates: Vec<_> = corners.map(|(data, names)| Self { data, names }).collect();
        if sectors > 1 || changes > 1 {
            let mut dice = Dice(seed);
            fates.extend((0..mixes).map(|_| Self { data: Left::Some(dice.roll()), names: Left::Some(dice.roll()) }));
            for names in subsets(changes, mixes) {
                fates.push(Self { data: Left::All, names });
                fates.push(Self { data: Left::Some(dice.roll()), names });
            }
            for data in subsets(sectors, mixes) {
                fates.push(Self { data, names: Left::All });
                fates.push(Self { data, names: Left::Some(dice.roll()) });
            }
        }
        fates
    }
}

/// All proper subsets of so many, unless there are more than `most` subsets.
fn subsets(of: usize, most: u64) -> impl Iterator<Item = Left> {
    let all = u32::try_from(of).ok().and_then(|of| 1_u64.checked_shl(of)).filter(|all| *all <= most).unwrap_or(0);
    (1..all.saturating_sub(1)).map(Left::These)
}

/// Whether the next one is chosen, for each that there is.
#[derive(Clone, Copy)]
struct Chosen {
    bits: u64,
    next: u32,
}

impl Chosen {
    fn next(&mut self) -> bool {
        let chosen = self.bits.checked_shr(self.next).unwrap_or(0) & 1 == 1;
        self.next += 1;
        chosen
    }
}

/// The same numbers for the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.roll() % n }
    }

    fn heads(&mut self) -> bool {
        self.below(2) == 0
    }

    /// Dice of their own for each file, so that what becomes of one does not depend on the others.
    fn of(seed: u64, id: Id) -> Self {
        let mut dice = Self(seed ^ id as u64);
        Self(dice.roll())
    }
}

impl State {
    /// How many sectors and sizes, and how many names, hang on a power cut.
    fn unsynced(&self) -> (usize, usize) {
        self.nodes.iter().fold((0, 0), |(sectors, changes), node| match node {
            Node::File(file) => {
                let written = file.writes.iter().map(|(_, bytes)| bytes.len().div_ceil(SECTOR)).sum::<usize>();
                (sectors + written + usize::from(file.is_unsynced()), changes)
            }
            Node::Dir(dir) => (sectors, changes + dir.changes.len()),
            Node::Link(_) => (sectors, changes),
        })
    }

    /// The disk as it is found after the power cut. Nothing is in the page cache.
    pub(super) fn cut(&self, fate: &Fate) -> Self {
        let chosen = |left| Chosen { bits: if let Left::These(bits) = left { bits } else { 0 }, next: 0 };
        let (mut data, mut names) = (chosen(fate.data), chosen(fate.names));
        let after = |(id, node): (Id, &Node)| match node {
            Node::File(file) => Node::File(FileNode::at_rest(file.left(id, fate.data, &mut data))),
            Node::Dir(dir) => Node::Dir(DirNode::at_rest(dir.left(id, fate.names, &mut names))),
            Node::Link(target) => Node::Link(target.clone()),
        };
        Self { nodes: self.nodes.iter().enumerate().map(after).collect() }
    }
}

impl DirNode {
    fn left(&self, id: Id, left: Left, chosen: &mut Chosen) -> BTreeMap<OsString, Id> {
        let mut names = self.durable.clone();
        let mut dice = match left {
            Left::Nothing => return names,
            Left::All => return self.names().clone(),
            Left::These(_) => {
                self.changes.iter().filter(|_| chosen.next()).for_each(|change| change.apply(&mut names));
                return names;
            }
            Left::Some(seed) => Dice::of(seed, id),
        };
        // In the order in which they were made, as a journal has them; or any of them.
        let first = if dice.heads() { Some(dice.below(self.changes.len() as u64 + 1)) } else { None };
        for (n, change) in self.changes.iter().enumerate() {
            if first.map_or_else(|| dice.heads(), |first| (n as u64) < first) {
                change.apply(&mut names);
            }
        }
        names
    }
}

impl FileNode {
    fn left(&self, id: Id, left: Left, chosen: &mut Chosen) -> Content {
        let mut content = self.durable.clone();
        let mut dice = match left {
            Left::Nothing => return content,
            Left::All => return self.device.clone(),
            Left::These(_) => {
                self.write_units(&mut content, SECTOR, &mut || chosen.next());
                if self.is_unsynced() {
                    content.set_len(if chosen.next() { self.device.len() } else { self.durable.len() });
                }
                return content;
            }
            Left::Some(seed) => Dice::of(seed, id),
        };
        // Devices differ in what they take at once; a larger one tears less finely.
        let unit = if dice.below(4) == 0 { BLOCK } else { SECTOR };
        match dice.below(4) {
            0 => {}
            1 => {
                // In order, up to some unit of one of the writes.
                let sectors = self.writes.iter().map(|(_, bytes)| bytes.len().div_ceil(unit) as u64).sum::<u64>();
                let mut left = dice.below(sectors + 1);
                self.write_units(&mut content, unit, &mut || {
                    left = left.saturating_sub(1);
                    left > 0
                });
            }
            2 => self.write_units(&mut content, unit, &mut || dice.below(8) > 0),
            _ => self.write_units(&mut content, unit, &mut || dice.heads()),
        }
        content.set_len(self.len_left(&mut dice));
        content
    }

    /// Writes those units of what was not synced that `keep` takes. Of one written twice an older
    /// version may be the one that stays.
    fn write_units(&self, content: &mut Content, unit: usize, keep: &mut impl FnMut() -> bool) {
        for (offset, bytes) in &self.writes {
            let mut done = 0;
            while done < bytes.len() {
                let at = offset + done as u64;
                let in_unit = unit - usize::try_from(at % unit as u64).unwrap_or(0);
                let end = bytes.len().min(done + in_unit);
                if keep() {
                    content.write(at, &bytes[done..end]);
                }
                done = end;
            }
        }
    }

    /// The old size, the new one, or one on the way.
    fn len_left(&self, dice: &mut Dice) -> u64 {
        let (old, new) = (self.durable.len(), self.device.len());
        match dice.below(4) {
            0 => old,
            // What was synced is not cut off, wherever in a sector it ends.
            1 if new > old => ((old + dice.below(new - old)) / SECTOR as u64 * SECTOR as u64).max(old),
            _ => new,
        }
    }
}
