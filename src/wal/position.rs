//! Where in the log: an address, and the timeline it is on.

use std::fmt;
use std::num::NonZeroU32;
use std::ops::Sub;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A byte address in the log (`XLogRecPtr`). Text form is two hexadecimal halves, `1/A0000028`, in
/// documents too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(u64);

impl Lsn {
    /// Address 0, which PostgreSQL reads as "no position": no record ever starts there.
    pub const ZERO: Self = Self(0);

    /// The address as the server counts it, in bytes from the beginning of the log.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes from the beginning of the log.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The address `bytes` further on; `None` past the end of the 64-bit log.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The address `bytes` further on, or the last address there is.
    #[must_use]
    pub const fn saturating_add(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// How many bytes `self` lies beyond `other`; 0 when it does not.
    pub const fn saturating_sub(self, other: Self) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

impl Sub for Lsn {
    type Output = u64;

    /// Bytes from `other` up to `self`.
    ///
    /// # Panics
    /// When `other` lies beyond `self`; use [`Lsn::saturating_sub`] for what a peer says.
    #[expect(clippy::arithmetic_side_effects, reason = "asserted before")]
    fn sub(self, other: Self) -> u64 {
        assert!(self.0 >= other.0, "distance from {other} back to {self}");
        self.0 - other.0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> Self {
        lsn.to_string()
    }
}

impl TryFrom<String> for Lsn {
    type Error = ParseLsnError;

    fn try_from(text: String) -> Result<Self, ParseLsnError> {
        text.parse()
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not two hexadecimal numbers of at most 8 digits with a slash between.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("\"{0}\" is not a WAL position (expected hexadecimal digits around a slash, like 1/A0000028)")]
pub struct ParseLsnError(pub String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, ParseLsnError> {
        let half = |digits: &str| {
            let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

/// The number of a history of the cluster. 1 is the first; each promotion or point-in-time
/// recovery takes a new, higher one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// The timeline that every cluster begins on. It has no history file.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// `None` for 0, which is no timeline.
    pub const fn new(id: u32) -> Option<Self> {
        match NonZeroU32::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "timeline {}", self.0)
    }
}

/// An address on a timeline. As an end it is exclusive: the first byte not included.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pos {
    #[serde(rename = "timeline")]
    tli: TimelineId,
    lsn: Lsn,
}

impl Pos {
    /// The address `lsn` as timeline `tli` sees it.
    pub const fn new(tli: TimelineId, lsn: Lsn) -> Self {
        Self { tli, lsn }
    }

    /// The timeline.
    pub const fn tli(self) -> TimelineId {
        self.tli
    }

    /// The address.
    pub const fn lsn(self) -> Lsn {
        self.lsn
    }

    /// The same timeline at another address.
    #[must_use]
    pub const fn at(self, lsn: Lsn) -> Self {
        Self { tli: self.tli, lsn }
    }
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (timeline {})", self.lsn, self.tli)
    }
}

impl fmt::Debug for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.lsn, self.tli)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_text_goes_there_and_back() {
        for (text, bytes) in [("0/0", 0), ("1/A0000028", 0x1_A000_0028), ("FFFFFFFF/FFFFFFFF", u64::MAX)] {
            let lsn: Lsn = text.parse().unwrap();
            assert_eq!(lsn.get(), bytes);
            assert_eq!(lsn.to_string(), text);
        }
    }

    #[test]
    fn lsn_text_that_is_nearly_right_is_refused() {
        for text in ["", "/", "1", "1/", "/1", "0x1/2", "1/2/3", "+1/2", "1/ 2", "123456789/0", "g/0"] {
            assert_eq!(text.parse::<Lsn>(), Err(ParseLsnError(text.to_owned())), "{text:?}");
        }
    }

    #[test]
    #[should_panic(expected = "back to")]
    fn a_negative_distance_is_our_bug() {
        let _ = Lsn::new(1) - Lsn::new(2);
    }
}
