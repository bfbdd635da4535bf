//! A buffered reader that says what it met.

use std::io::{self, BufRead, Read};

/// Bytes read at a time.
const BUFFER: usize = 128 << 10;

/// Remembers whether a read found the end or failed, for not every decoder tells the end of its
/// input from the end of a frame.
#[derive(Debug)]
pub(super) struct Source<R> {
    from: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    ended: bool,
    failed: bool,
}

impl<R: Read> Source<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, buffer: vec![0; BUFFER].into(), start: 0, end: 0, ended: false, failed: false }
    }

    /// Whether the end was met: nothing was left when more was wanted.
    pub(super) const fn ended(&self) -> bool {
        self.ended
    }

    /// Whether reading failed, as opposed to what was read being wrong.
    pub(super) const fn failed(&self) -> bool {
        self.failed
    }

    /// The next bytes, left where they are: `wanted` of them, or all that there are.
    pub(super) fn peek(&mut self, wanted: usize) -> io::Result<&[u8]> {
        let mut more = true;
        while more && self.waiting().len() < wanted {
            self.make_room();
            more = self.fill()?;
        }
        let waiting = self.waiting();
        Ok(waiting.get(..wanted).unwrap_or(waiting))
    }

    fn waiting(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    fn make_room(&mut self) {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end = self.end.saturating_sub(self.start);
        self.start = 0;
    }

    /// Reads once behind what is waiting; whether that gave anything.
    fn fill(&mut self) -> io::Result<bool> {
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        let read = loop {
            match self.from.read(room) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match read {
            Ok(count) => {
                self.end = self.end.saturating_add(count);
                self.ended |= count == 0;
                Ok(count > 0)
            }
            Err(error) => {
                self.failed = true;
                Err(error)
            }
        }
    }
}

impl<R: Read> BufRead for Source<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            self.make_room();
            self.fill()?;
        }
        Ok(self.waiting())
    }

    fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(into)?;
        self.consume(read);
        Ok(read)
    }
}
