//! The two things a receiver reports, as types that cannot be mixed up.

use crate::disk::Synced;
use crate::wal::Pos;

/// Exclusive end of what has been handed to the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written(Pos);

/// Exclusive end of what would survive a power cut now: data synced, and the directory entry that
/// leads to it synced (promise P1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Durable(Pos);

impl Written {
    pub(super) const fn new(pos: Pos) -> Self {
        Self(pos)
    }

    /// A claim, for tests of what is done with it.
    #[cfg(test)]
    pub(crate) const fn claimed(pos: Pos) -> Self {
        Self(pos)
    }

    /// The position, exclusive.
    pub const fn pos(self) -> Pos {
        self.0
    }
}

impl Durable {
    /// `data` must be the receipt of a sync of the file that holds the byte before `pos`, made
    /// after the byte was written; `entry` that of the directory, made after the file got the name
    /// it has. All before that file was so already.
    pub(super) const fn new(pos: Pos, _data: &Synced, _entry: &Synced) -> Self {
        Self(pos)
    }

    /// A claim without a receipt, for tests of what is done with it.
    #[cfg(test)]
    pub(crate) const fn claimed(pos: Pos) -> Self {
        Self(pos)
    }

    /// The position, exclusive.
    pub const fn pos(self) -> Pos {
        self.0
    }
}
