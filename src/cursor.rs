//! Bytes from outside, read one after another: the only way in which a message, a page, a record or a header is taken
//! apart. What is not there is `None`, whatever else the bytes say.

// What comes from outside never ends the program: no read beyond the end, no number that loses bits or overflows.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unwrap_used
    )
)]

/// A place in bytes from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a>(&'a [u8]);

/// Reads of numbers, which differ in their width and in the order of their bytes.
macro_rules! numbers {
    ($($name:ident: $number:ty, $from:ident;)*) => {
        $(#[inline]
        pub(crate) fn $name(&mut self) -> Option<$number> {
            self.array().map(|bytes| <$number>::$from(*bytes))
        })*
    };
}

impl<'a> Cursor<'a> {
    /// At the first of them.
    #[inline]
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// What is left.
    #[inline]
    pub(crate) const fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Nothing is left to be read; whatever is would be in the way.
    #[inline]
    pub(crate) fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    /// The next bytes, so many.
    #[inline]
    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// The next bytes, as many as the array has.
    #[inline]
    pub(crate) fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(taken)
    }

    /// The bytes up to the next NUL, which is passed over.
    pub(crate) fn text(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let text = self.take(end)?;
        self.take(1)?;
        Some(text)
    }

    numbers! {
        u8: u8, from_be_bytes;
        u16_be: u16, from_be_bytes;
        u32_be: u32, from_be_bytes;
        u64_be: u64, from_be_bytes;
        i64_be: i64, from_be_bytes;
        u16_le: u16, from_le_bytes;
        u32_le: u32, from_le_bytes;
        u64_le: u64, from_le_bytes;
        i64_le: i64, from_le_bytes;
    }
}

/// Copies what there is room for of `bytes` behind the first `filled` bytes of `into`, and says how many those are.
pub(crate) fn fill(into: &mut [u8], filled: usize, bytes: &[u8]) -> usize {
    let room = into.get_mut(filled..).unwrap_or_default();
    let used = room.len().min(bytes.len());
    for (to, from) in room.iter_mut().zip(bytes) {
        *to = *from;
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_read_in_its_order() {
        let mut bytes = Cursor::new(&[1, 2, 3, 4, 5, 6, 7, b'a', b'b', 0, 8, 9]);
        assert_eq!((bytes.u8(), bytes.u16_be(), bytes.u32_le()), (Some(1), Some(0x0203), Some(0x0706_0504)));
        assert_eq!((bytes.text(), bytes.end()), (Some(&b"ab"[..]), None));
        assert_eq!((bytes.take(1), bytes.array()), (Some(&[8][..]), Some(&[9])));
        assert_eq!((bytes.end(), bytes.rest()), (Some(()), &[][..]));
    }

    #[test]
    fn what_is_not_there_is_none_and_moves_nothing() {
        let mut bytes = Cursor::new(&[1, 2, 3]);
        assert_eq!((bytes.u32_be(), bytes.u64_le(), bytes.take(4), bytes.text()), (None, None, None, None));
        assert_eq!((bytes.take(usize::MAX), bytes.array::<4>(), bytes.rest()), (None, None, &[1, 2, 3][..]));
    }

    #[test]
    fn as_much_is_copied_as_there_is_room_for() {
        let mut into = [0; 4];
        assert_eq!((fill(&mut into, 1, &[1, 2]), into), (2, [0, 1, 2, 0]));
        assert_eq!((fill(&mut into, 3, &[3, 4]), into), (1, [0, 1, 2, 3]));
        assert_eq!((fill(&mut into, 4, &[5]), fill(&mut into, 9, &[5])), (0, 0));
    }
}
