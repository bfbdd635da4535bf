//! Memory that direct I/O accepts.

use super::BLOCK;

/// A fixed block of memory whose address and size are multiples of [`BLOCK`].
#[derive(Debug)]
pub struct AlignedBuf {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` zero bytes.
    ///
    /// # Panics
    /// When `len` is no multiple of [`BLOCK`].
    pub fn zeroed(len: usize) -> Self {
        assert!(len.is_multiple_of(BLOCK), "{len} bytes are not whole blocks");
        let memory = vec![0; len + BLOCK];
        // The vector is never grown, so the address stays.
        let start = memory.as_ptr().addr().wrapping_neg() % BLOCK;
        Self { memory, start, len }
    }
}

impl std::ops::Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned() {
        for blocks in [1, 2, 256] {
            let buffer = AlignedBuf::zeroed(blocks * BLOCK);
            assert_eq!(buffer.as_ptr().addr() % BLOCK, 0);
            assert_eq!(buffer.len(), blocks * BLOCK);
        }
    }
}
