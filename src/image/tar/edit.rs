//! Changing an archive on its way: more at the end of one file, a file left out, files added at the end.

use super::{BLOCK, FeedError, Header, Member, MemberKind, TarError, padding};
use crate::cursor::fill;

/// What a file that gets more at its end may have had before.
const MAX_GATHERED: u64 = 16 << 20;
/// What closes an archive.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Passes an archive on with changes. It leaves the checking to a [`super::TarReader`] beside it.
#[derive(Debug, Default)]
pub struct TarEdit {
    appended: Option<Appended>,
    omitted: Option<&'static str>,
    /// Of the first member: the owner's names and numbers are those of the whole archive.
    template: Option<Box<[u8; BLOCK]>>,
    state: State,
}

/// More for the end of one file.
#[derive(Debug)]
struct Appended {
    name: &'static str,
    more: Vec<u8>,
    done: bool,
}

#[derive(Debug)]
enum State {
    Header {
        block: Box<[u8; BLOCK]>,
        filled: usize,
    },
    /// Passed on, padding included.
    Passing(u64),
    /// Left out, padding included.
    Omitting(u64),
    /// To get more at its end.
    Gathering {
        header: Box<[u8; BLOCK]>,
        content: Vec<u8>,
        left: u64,
        padding: u64,
    },
    /// The end mark, which comes later.
    Ended,
}

impl Default for State {
    fn default() -> Self {
        Self::Header { block: Box::new([0; BLOCK]), filled: 0 }
    }
}

/// A file to be added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Added<'a> {
    /// Its name, at most 100 bytes.
    pub name: &'a str,
    /// All of it.
    pub content: &'a [u8],
    /// Permission bits.
    pub mode: u32,
    /// When it was made, in seconds since 1970.
    pub mtime: u64,
}

impl TarEdit {
    /// Changes nothing, but leaves the end open for what is added.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `more` at the end of the file `name`, on a line of its own.
    #[must_use]
    pub fn append(mut self, name: &'static str, more: Vec<u8>) -> Self {
        self.appended = Some(Appended { name, more, done: false });
        self
    }

    /// Leaves the file `name` out.
    #[must_use]
    pub fn omit(mut self, name: &'static str) -> Self {
        self.omitted = Some(name);
        self
    }

    /// Takes the next bytes of the archive, and gives what comes of them to `out`.
    ///
    /// # Errors
    /// When a header cannot be read, the file that is added to is far too long, or `out` fails.
    pub fn feed<E>(
        &mut self,
        mut bytes: &[u8],
        out: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), FeedError<E>> {
        while !bytes.is_empty() {
            let state = std::mem::replace(&mut self.state, State::Ended);
            let (state, used) = self.step(state, bytes, out)?;
            self.state = state;
            bytes = bytes.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    /// Begins a file of `size` bytes, which are to be written behind it, and then [`TarEdit::pad`].
    ///
    /// # Errors
    /// When `out` fails, or the name is longer than a header can say.
    pub fn add<E>(
        &mut self,
        name: &str,
        size: u64,
        mode: u32,
        mtime: u64,
        out: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), FeedError<E>> {
        out(&self.header(name, size, mode, mtime)?).map_err(FeedError::Seen)
    }

    /// Fills the last block of a file of `size` bytes.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn pad<E>(&self, size: u64, out: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        match END.get(..padding(size)) {
            Some(padding) if !padding.is_empty() => out(padding),
            _ => Ok(()),
        }
    }

    /// Adds files, the one that should have got more among them if it did not come, and ends the archive.
    ///
    /// # Errors
    /// When `out` fails, or a name or a file is longer than a header can say.
    pub fn finish<E>(
        self,
        added: &[Added<'_>],
        out: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), FeedError<E>> {
        let missing = self.appended.as_ref().filter(|appended| !appended.done);
        let missing = missing.map(|appended| {
            let (mode, mtime) = added.first().map_or((0o600, 0), |first| (first.mode, first.mtime));
            Added { name: appended.name, content: &appended.more, mode, mtime }
        });
        for file in missing.iter().chain(added) {
            let header = self.header(file.name, file.content.len() as u64, file.mode, file.mtime)?;
            put(&header, file.content, out)?;
        }
        out(&END).map_err(FeedError::Seen)
    }

    fn step<E>(
        &mut self,
        state: State,
        bytes: &[u8],
        out: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(State, usize), FeedError<E>> {
        let upto = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let part = |used: usize| bytes.get(..used).unwrap_or_default();
        Ok(match state {
            State::Header { mut block, mut filled } => {
                let used = fill(&mut block[..], filled, bytes);
                filled = filled.saturating_add(used);
                if filled < BLOCK { (State::Header { block, filled }, used) } else { (self.member(block, out)?, used) }
            }
            State::Passing(left) => {
                let used = upto(left);
                out(part(used)).map_err(FeedError::Seen)?;
                (next(left.saturating_sub(used as u64), State::Passing), used)
            }
            State::Omitting(left) => {
                let used = upto(left);
                (next(left.saturating_sub(used as u64), State::Omitting), used)
            }
            State::Gathering { header, mut content, left, padding } => {
                let used = upto(left);
                content.extend_from_slice(part(used));
                let left = left.saturating_sub(used as u64);
                if left > 0 {
                    (State::Gathering { header, content, left, padding }, used)
                } else {
                    self.gathered(&header, content, out)?;
                    (next(padding, State::Omitting), used)
                }
            }
            State::Ended => (State::Ended, bytes.len()),
        })
    }

    /// A header is whole.
    fn member<E>(
        &mut self,
        block: Box<[u8; BLOCK]>,
        out: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<State, FeedError<E>> {
        if *block == [0; BLOCK] {
            return Ok(State::Ended);
        }
        let Member { path, kind, .. } = Header { block: &block, at: 0 }.read()?;
        if self.template.is_none() {
            self.template = Some(block.clone());
        }
        let size = match kind {
            MemberKind::File { size } => size,
            MemberKind::Directory | MemberKind::Symlink { .. } => 0,
        };
        let padding = padding(size) as u64;
        let padded = size.saturating_add(padding);
        let named = |name: &str| path.as_bytes() == name.as_bytes();
        if self.omitted.is_some_and(named) {
            return Ok(next(padded, State::Omitting));
        }
        if self.appended.as_ref().is_some_and(|appended| named(appended.name)) {
            if size > MAX_GATHERED {
                return Err(TarError::Number { at: 0, field: "size" }.into());
            }
            let (header, content) = (block, Vec::new());
            return if size == 0 {
                self.gathered(&header, content, out).map(|()| State::default())
            } else {
                Ok(State::Gathering { header, content, left: size, padding })
            };
        }
        out(&block[..]).map_err(FeedError::Seen)?;
        Ok(next(padded, State::Passing))
    }

    /// The file that gets more is whole.
    fn gathered<E>(
        &mut self,
        header: &[u8; BLOCK],
        mut content: Vec<u8>,
        out: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), FeedError<E>> {
        if let Some(appended) = &mut self.appended {
            if !content.is_empty() && !content.ends_with(b"\n") {
                content.push(b'\n');
            }
            content.extend_from_slice(&appended.more);
            appended.done = true;
        }
        let mut header = *header;
        number(&mut header, 124, 12, content.len() as u64)?;
        seal(&mut header)?;
        put(&header, &content, out)
    }

    fn header(&self, name: &str, size: u64, mode: u32, mtime: u64) -> Result<[u8; BLOCK], TarError> {
        let mut header = self.template.as_ref().map_or([0; BLOCK], |template| **template);
        write(&mut header, 0, 100, name.as_bytes())?;
        number(&mut header, 100, 8, (mode & 0o7777).into())?;
        if self.template.is_none() {
            number(&mut header, 108, 8, 0)?;
            number(&mut header, 116, 8, 0)?;
        }
        number(&mut header, 124, 12, size)?;
        number(&mut header, 136, 12, mtime)?;
        write(&mut header, 156, 1, b"0")?;
        write(&mut header, 157, 100, b"")?;
        write(&mut header, 257, 8, b"ustar\x0000")?;
        seal(&mut header)?;
        Ok(header)
    }
}

fn next(left: u64, state: impl FnOnce(u64) -> State) -> State {
    if left > 0 { state(left) } else { State::default() }
}

fn put<E>(
    header: &[u8; BLOCK],
    content: &[u8],
    out: &mut impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), FeedError<E>> {
    let zeros = END.get(..padding(content.len() as u64)).unwrap_or_default();
    for piece in [&header[..], content, zeros] {
        if !piece.is_empty() {
            out(piece).map_err(FeedError::Seen)?;
        }
    }
    Ok(())
}

/// Fills a field, with zeros behind the value.
fn write(header: &mut [u8; BLOCK], from: usize, len: usize, value: &[u8]) -> Result<(), TarError> {
    let too_long = TarError::Number { at: 0, field: "field that holds it" };
    let field = header
        .get_mut(from..)
        .and_then(|field| field.get_mut(..len))
        .filter(|field| value.len() <= field.len())
        .ok_or(too_long)?;
    field.fill(0);
    for (to, byte) in field.iter_mut().zip(value) {
        *to = *byte;
    }
    Ok(())
}

/// Octal digits and a blank, as servers write them; in base-256 where they do not suffice.
fn number(header: &mut [u8; BLOCK], from: usize, len: usize, value: u64) -> Result<(), TarError> {
    let octal = format!("{value:0width$o} ", width = len.saturating_sub(1));
    if octal.len() == len {
        return write(header, from, len, octal.as_bytes());
    }
    let mut wide = vec![0; len.saturating_sub(8)];
    wide.extend(value.to_be_bytes());
    if let Some(mark) = wide.first_mut().filter(|_| len > 8) {
        *mark = 0x80;
    }
    write(header, from, len, &wide)
}

/// The checksum, last.
fn seal(header: &mut [u8; BLOCK]) -> Result<(), TarError> {
    let sum = Header { block: header, at: 0 }.sum();
    write(header, 148, 8, format!("{sum:06o}\0 ").as_bytes())
}
