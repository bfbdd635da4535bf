//! A file's bytes.

use std::sync::Arc;

use super::BLOCK;

type Block = [u8; BLOCK];

/// Bytes in blocks that copies share until one of them is written to; a block that is not there is
/// zeros.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    blocks: Arc<Vec<Option<Arc<Block>>>>,
    len: u64,
}

impl Content {
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// The number of bytes read.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> usize {
        let n = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX).min(into.len());
        for (block, within, part) in pieces(offset, n) {
            let to = &mut into[part];
            match self.blocks.get(block).and_then(Option::as_ref) {
                Some(bytes) => to.copy_from_slice(&bytes[within..within + to.len()]),
                None => to.fill(0),
            }
        }
        n
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let blocks = Arc::make_mut(&mut self.blocks);
        for (block, within, part) in pieces(offset, bytes.len()) {
            if blocks.len() <= block {
                blocks.resize(block + 1, None);
            }
            let block = Arc::make_mut(blocks[block].get_or_insert_with(|| Arc::new([0; BLOCK])));
            let from = &bytes[part];
            block[within..within + from.len()].copy_from_slice(from);
        }
        self.len = self.len.max(offset + bytes.len() as u64);
    }

    /// Cuts the content off, or adds zeros.
    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let blocks = Arc::make_mut(&mut self.blocks);
            let (whole, rest) = (index(len / BLOCK as u64), index(len % BLOCK as u64));
            blocks.truncate(whole + 1);
            match blocks.get_mut(whole) {
                Some(Some(last)) if rest > 0 => Arc::make_mut(last)[rest..].fill(0),
                Some(last) => *last = None,
                None => {}
            }
        }
        self.len = len;
    }

    pub(super) fn text(&self) -> String {
        let mut bytes = vec![0; index(self.len.min(200))];
        self.read(0, &mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// What a test can keep in memory can be counted.
fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// The parts of `len` bytes at `offset`, each with its block and the place in that.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = index(at % BLOCK as u64);
        let part = done..len.min(done + BLOCK - within);
        done = part.end;
        (!part.is_empty()).then_some((index(at / BLOCK as u64), within, part))
    })
}
