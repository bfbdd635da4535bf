//! The tar dialect that servers write (`src/port/tar.c`, `basebackup.c`): ustar headers for plain
//! files, directories and symbolic links, sizes in octal or base-256, nothing else. A general
//! reader has to guess between several meanings of one archive; this one has a single meaning or
//! an error.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use thiserror::Error;

use super::{BadPath, MemberPath};

/// Everything in an archive is padded to this many bytes.
const BLOCK: usize = 512;

/// What the header of a member says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its path, relative to the data directory or the tablespace that the archive is of.
    pub path: MemberPath,
    /// What it is.
    pub kind: MemberKind,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// When it was last modified, in seconds since 1970.
    pub mtime: i64,
}

/// The kinds of files that a backup holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MemberKind {
    /// A plain file; exactly `size` bytes of data follow.
    File {
        /// Bytes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link to a directory.
    Symlink {
        /// Where it leads, exactly as the server sent it: usually absolute, on the server's host.
        target: PathBuf,
    },
}

/// What an archive holds, in its order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TarEvent<'a> {
    /// A member begins.
    Member(Member),
    /// The next bytes of it, never none.
    Data(&'a [u8]),
    /// All of it has been given. Directories and links have this too.
    MemberEnd,
}

/// How an archive ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TarEnd {
    /// With two blocks of zeros, as servers from 15 on send it and as the format demands.
    Terminated,
    /// After a whole member, without them, as servers up to 14 send it.
    Open,
}

/// The bytes are not an archive that a server writes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TarError {
    /// Neither a header nor zeros; the bytes are damaged or out of step.
    #[error("the header at byte {at} of the archive does not match its checksum")]
    Checksum {
        /// Offset of the header.
        at: u64,
    },
    /// Not `ustar` version `00`, or a long-name prefix, which servers leave empty.
    #[error("the header at byte {at} of the archive is not of the format that servers write")]
    Format {
        /// Offset of the header.
        at: u64,
    },
    /// A number is neither octal nor base-256, or out of range.
    #[error("the header at byte {at} of the archive has no valid {field}")]
    Number {
        /// Offset of the header.
        at: u64,
        /// Which number.
        field: &'static str,
    },
    /// Something other than a file, a directory or a symbolic link.
    #[error("\"{path}\" is of type '{}', which no server sends", char::from(*kind).escape_default())]
    Kind {
        /// Its name.
        path: MemberPath,
        /// The type byte.
        kind: u8,
    },
    /// A directory or link with data, or a file or directory with a link target, or a link without.
    #[error("the header of \"{0}\" contradicts itself")]
    Contradiction(MemberPath),
    /// The name of a member.
    #[error(transparent)]
    Path(#[from] BadPath),
    /// What fills a member's last block is not zeros.
    #[error("the padding after \"{0}\" is not zeros")]
    Padding(MemberPath),
    /// One block of zeros and then something else, or the end.
    #[error("the end mark of the archive is broken")]
    EndMark,
    /// Bytes after the end of the archive.
    #[error("the archive goes on after its end mark")]
    Trailing,
    /// The archive ends inside a member or a header.
    #[error("the archive ends in the middle of {}", match .0 { Some(path) => format!("\"{path}\""), None => "a header".to_owned() })]
    Truncated(Option<MemberPath>),
    /// It was used on after an error.
    #[error("the archive was given up before")]
    GivenUp,
}

/// Why feeding stopped.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum FeedError<E> {
    /// The archive is not what a server writes.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// What the caller did with an event failed.
    #[error("{0}")]
    Seen(E),
}

/// Reads an archive that is pushed into it in pieces of any size, in constant memory.
#[derive(Debug)]
pub struct TarReader {
    /// Offset of the next byte.
    at: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Header {
        block: Box<[u8; BLOCK]>,
        filled: usize,
    },
    Data {
        path: MemberPath,
        left: u64,
        padding: usize,
    },
    Padding {
        path: MemberPath,
        left: usize,
    },
    /// The first block of the end mark has been read, and this much of the second.
    EndMark {
        filled: usize,
    },
    Ended,
    GivenUp,
}

impl TarReader {
    /// A reader at the beginning of an archive.
    pub fn new() -> Self {
        Self { at: 0, state: State::header() }
    }

    /// Reads on in the archive. After an error, of the archive or of `seen`, no more is read.
    ///
    /// # Errors
    /// When the bytes are not what a server writes, or `seen` fails.
    pub fn feed<E>(
        &mut self,
        mut bytes: &[u8],
        seen: &mut impl FnMut(TarEvent<'_>) -> Result<(), E>,
    ) -> Result<(), FeedError<E>> {
        while !bytes.is_empty() {
            // Left in place by every error return.
            let state = std::mem::replace(&mut self.state, State::GivenUp);
            let (state, used) = self.step(state, bytes, seen)?;
            self.state = state;
            self.at = self.at.saturating_add(used as u64);
            bytes = bytes.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    /// Says how the archive ended.
    ///
    /// # Errors
    /// When it did not end after a whole member.
    pub fn finish(self) -> Result<TarEnd, TarError> {
        match self.state {
            State::Ended => Ok(TarEnd::Terminated),
            State::Header { filled: 0, .. } => Ok(TarEnd::Open),
            State::Header { .. } => Err(TarError::Truncated(None)),
            State::Data { path, .. } | State::Padding { path, .. } => Err(TarError::Truncated(Some(path))),
            State::EndMark { .. } => Err(TarError::EndMark),
            State::GivenUp => Err(TarError::GivenUp),
        }
    }

    /// Does one thing with the first of `bytes`, which are not empty, and says how many it used.
    fn step<E>(
        &self,
        state: State,
        bytes: &[u8],
        seen: &mut impl FnMut(TarEvent<'_>) -> Result<(), E>,
    ) -> Result<(State, usize), FeedError<E>> {
        let mut emit = |event: TarEvent<'_>| seen(event).map_err(FeedError::Seen);
        match state {
            State::Header { mut block, mut filled } => {
                let used = copy(&mut block[..], filled, bytes);
                filled += used;
                if filled < BLOCK {
                    return Ok((State::Header { block, filled }, used));
                }
                if *block == [0; BLOCK] {
                    return Ok((State::EndMark { filled: 0 }, used));
                }
                let member = Header { block: &block, at: self.at.saturating_add(used as u64) - BLOCK as u64 }.read()?;
                let next = State::after(&member);
                emit(TarEvent::Member(member))?;
                if matches!(next, State::Header { .. }) {
                    emit(TarEvent::MemberEnd)?;
                }
                Ok((next, used))
            }
            State::Data { path, left, padding } => {
                let used = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                emit(TarEvent::Data(bytes.get(..used).unwrap_or_default()))?;
                let left = left - used as u64;
                if left > 0 {
                    return Ok((State::Data { path, left, padding }, used));
                }
                emit(TarEvent::MemberEnd)?;
                Ok((if padding > 0 { State::Padding { path, left: padding } } else { State::header() }, used))
            }
            State::Padding { path, left } => {
                let used = left.min(bytes.len());
                if bytes.iter().take(used).any(|b| *b != 0) {
                    return Err(TarError::Padding(path).into());
                }
                Ok((if left > used { State::Padding { path, left: left - used } } else { State::header() }, used))
            }
            State::EndMark { filled } => {
                let used = (BLOCK - filled).min(bytes.len());
                if bytes.iter().take(used).any(|b| *b != 0) {
                    return Err(TarError::EndMark.into());
                }
                let filled = filled + used;
                Ok((if filled < BLOCK { State::EndMark { filled } } else { State::Ended }, used))
            }
            State::Ended => Err(TarError::Trailing.into()),
            State::GivenUp => Err(TarError::GivenUp.into()),
        }
    }
}

impl Default for TarReader {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn header() -> Self {
        Self::Header { block: Box::new([0; BLOCK]), filled: 0 }
    }

    /// What follows a member's header.
    fn after(member: &Member) -> Self {
        match member.kind {
            MemberKind::File { size } if size > 0 => {
                let over = (size % BLOCK as u64) as usize;
                Self::Data { path: member.path.clone(), left: size, padding: (BLOCK - over) % BLOCK }
            }
            _ => Self::header(),
        }
    }
}

/// Copies what fits of `bytes` behind the first `filled` bytes of `into`.
fn copy(into: &mut [u8], filled: usize, bytes: &[u8]) -> usize {
    let room = into.get_mut(filled..).unwrap_or_default();
    let used = room.len().min(bytes.len());
    for (to, from) in room.iter_mut().zip(bytes) {
        *to = *from;
    }
    used
}

/// A header block and where it stands.
struct Header<'a> {
    block: &'a [u8; BLOCK],
    at: u64,
}

impl<'a> Header<'a> {
    fn read(&self) -> Result<Member, TarError> {
        self.check()?;
        let kind = self.block[156];
        let name = text(self.field(0, 100));
        // Directories and links have a slash at the end of their names.
        let name = if kind == b'0' { name } else { name.strip_suffix(b"/").unwrap_or(name) };
        let path = MemberPath::new(name)?;
        let size = self.number(124, 12, "size")?;
        // A length that no file system has would only overflow sums of sizes.
        if size > i64::MAX as u64 {
            return Err(TarError::Number { at: self.at, field: "size" });
        }
        let target = text(self.field(157, 100));
        let kind = match (kind, size, target) {
            (b'0', size, b"") => MemberKind::File { size },
            (b'5', 0, b"") => MemberKind::Directory,
            (b'2', 0, target) if !target.is_empty() => MemberKind::Symlink { target: OsStr::from_bytes(target).into() },
            (b'0' | b'2' | b'5', ..) => return Err(TarError::Contradiction(path)),
            (kind, ..) => return Err(TarError::Kind { path, kind }),
        };
        let mode = u32::try_from(self.number(100, 8, "mode")?).ok().filter(|mode| *mode <= 0o7777);
        let mode = mode.ok_or(TarError::Number { at: self.at, field: "mode" })?;
        // The server casts its signed time to unsigned, and base-256 keeps all bits of it.
        let mtime = self.number(136, 12, "time")?.cast_signed();
        Ok(Member { path, kind, mode, mtime })
    }

    fn check(&self) -> Result<(), TarError> {
        if self.number(148, 8, "checksum")? != self.sum() {
            return Err(TarError::Checksum { at: self.at });
        }
        let empty_prefix = self.field(345, BLOCK - 345).iter().all(|b| *b == 0);
        if self.field(257, 8) != b"ustar\x0000" || !empty_prefix {
            return Err(TarError::Format { at: self.at });
        }
        Ok(())
    }

    /// The sum of all bytes, those of the checksum itself taken as blanks.
    fn sum(&self) -> u64 {
        let byte = |(at, b): (usize, &u8)| if (148..156).contains(&at) { 32 } else { u64::from(*b) };
        self.block.iter().enumerate().map(byte).sum()
    }

    fn field(&self, from: usize, len: usize) -> &'a [u8] {
        self.block.get(from..from + len).unwrap_or_default()
    }

    fn number(&self, from: usize, len: usize, field: &'static str) -> Result<u64, TarError> {
        number(self.field(from, len)).ok_or(TarError::Number { at: self.at, field })
    }
}

/// Up to the first zero byte. The server leaves room for one; a field without is read whole.
fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// Octal digits, ended by a blank, a zero byte or the end of the field; or, after a byte 0x80, a
/// big-endian number.
fn number(field: &[u8]) -> Option<u64> {
    match field.split_first()? {
        (0x80, digits) => digits.iter().try_fold(0u64, |sum, b| Some(sum.checked_mul(256)? + u64::from(*b))),
        _ => {
            let digits = field.split(|b| matches!(b, b' ' | 0)).next().filter(|digits| !digits.is_empty())?;
            digits.iter().try_fold(0u64, |sum, b| match b {
                b'0'..=b'7' => Some(sum.checked_mul(8)? + u64::from(b - b'0')),
                _ => None,
            })
        }
    }
}

impl From<FeedError<Infallible>> for TarError {
    fn from(error: FeedError<Infallible>) -> Self {
        match error {
            FeedError::Tar(error) => error,
            FeedError::Seen(never) => match never {},
        }
    }
}
