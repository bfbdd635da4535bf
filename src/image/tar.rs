//! The tar dialect that servers write (`src/port/tar.c`, `basebackup.c`): ustar headers for plain
//! files, directories and symbolic links, sizes in octal or base-256, nothing else. A general
//! reader has to guess between several meanings of one archive; this one has a single meaning or
//! an error.

mod edit;

use std::convert::Infallible;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use thiserror::Error;

use super::{BadPath, MemberPath};
use crate::cursor::{Cursor, fill};

pub use edit::{Added, TarEdit};

/// Everything in an archive is padded to this many bytes.
const BLOCK: usize = 512;
const BLOCK_SIZE: u64 = BLOCK as u64;

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
                let used = fill(&mut block[..], filled, bytes);
                filled = filled.saturating_add(used);
                if filled < BLOCK {
                    return Ok((State::Header { block, filled }, used));
                }
                if *block == [0; BLOCK] {
                    return Ok((State::EndMark { filled: 0 }, used));
                }
                let at = self.at.saturating_add(used as u64).saturating_sub(BLOCK as u64);
                let member = Header { block: &block, at }.read()?;
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
                let left = left.saturating_sub(used as u64);
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
                let left = left.saturating_sub(used);
                Ok((if left > 0 { State::Padding { path, left } } else { State::header() }, used))
            }
            State::EndMark { filled } => {
                let used = BLOCK.saturating_sub(filled).min(bytes.len());
                if bytes.iter().take(used).any(|b| *b != 0) {
                    return Err(TarError::EndMark.into());
                }
                let filled = filled.saturating_add(used);
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
                Self::Data { path: member.path.clone(), left: size, padding: padding(size) }
            }
            _ => Self::header(),
        }
    }
}

/// What fills the last block of a file of `size` bytes.
fn padding(size: u64) -> usize {
    match size % BLOCK_SIZE {
        0 => 0,
        over => usize::try_from(BLOCK_SIZE.saturating_sub(over)).unwrap_or_default(),
    }
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
        let mut cursor = Cursor::new(self.block);
        cursor.take(from).and_then(|_| cursor.take(len)).unwrap_or_default()
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
        (0x80, digits) => digits.iter().try_fold(0u64, |sum, b| sum.checked_mul(256)?.checked_add(u64::from(*b))),
        _ => {
            let digits = field.split(|b| matches!(b, b' ' | 0)).next().filter(|digits| !digits.is_empty())?;
            digits.iter().try_fold(0u64, |sum, b| match b {
                b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(b & 7)),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// Writes headers by the format's own rules, independently of the reader.
    struct Maker {
        bytes: Vec<u8>,
    }

    impl Maker {
        fn new() -> Self {
            Self { bytes: Vec::new() }
        }

        fn header(name: &[u8], kind: u8, size: u64, target: &[u8]) -> [u8; BLOCK] {
            let mut block = [0; BLOCK];
            block[..name.len()].copy_from_slice(name);
            block[100..108].copy_from_slice(b"0000640 ");
            block[108..124].copy_from_slice(b"0004000 0002000 ");
            if size < 1 << 33 {
                block[124..136].copy_from_slice(format!("{size:011o} ").as_bytes());
            } else {
                block[124] = 0x80;
                block[128..136].copy_from_slice(&size.to_be_bytes());
            }
            block[136..148].copy_from_slice(b"15267613423 ");
            block[156] = kind;
            block[157..157 + target.len()].copy_from_slice(target);
            block[257..265].copy_from_slice(b"ustar\x0000");
            block[265..273].copy_from_slice(b"postgres");
            block[297..305].copy_from_slice(b"postgres");
            block[329..345].copy_from_slice(b"0000000 0000000 ");
            sealed(block)
        }

        fn file(mut self, name: &[u8], data: &[u8]) -> Self {
            self.bytes.extend(Self::header(name, b'0', data.len() as u64, b""));
            self.bytes.extend(data);
            self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
            self
        }

        fn directory(mut self, name: &[u8]) -> Self {
            self.bytes.extend(Self::header(name, b'5', 0, b""));
            self
        }

        fn symlink(mut self, name: &[u8], target: &[u8]) -> Self {
            self.bytes.extend(Self::header(name, b'2', 0, target));
            self
        }

        fn end(mut self) -> Vec<u8> {
            self.bytes.extend([0; 2 * BLOCK]);
            self.bytes
        }
    }

    /// With the checksum made right.
    fn sealed(mut block: [u8; BLOCK]) -> [u8; BLOCK] {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    #[derive(Debug, PartialEq, Clone)]
    enum Seen {
        Member(Member),
        Data(Vec<u8>),
        End,
    }

    /// Reads in pieces that end at `cuts`; pieces of a member's data are joined.
    fn read(bytes: &[u8], cuts: &[usize]) -> (Vec<Seen>, Result<TarEnd, TarError>) {
        let mut seen = Vec::new();
        let mut reader = TarReader::new();
        let mut note = |event: TarEvent<'_>| -> Result<(), Infallible> {
            match (event, seen.last_mut()) {
                (TarEvent::Member(member), _) => seen.push(Seen::Member(member)),
                (TarEvent::Data(more), Some(Seen::Data(data))) => data.extend(more),
                (TarEvent::Data(data), _) => seen.push(Seen::Data(data.to_vec())),
                (TarEvent::MemberEnd, _) => seen.push(Seen::End),
            }
            Ok(())
        };
        let mut from = 0;
        for to in cuts.iter().copied().chain([bytes.len()]) {
            if let Err(error) = reader.feed(&bytes[from..to], &mut note) {
                return (seen, Err(error.into()));
            }
            from = to;
        }
        (seen, reader.finish())
    }

    fn member(name: &[u8], kind: MemberKind) -> Seen {
        let path = MemberPath::new(name).unwrap();
        Seen::Member(Member { path, kind, mode: 0o640, mtime: 0o15_267_613_423 })
    }

    fn error(bytes: &[u8]) -> TarError {
        read(bytes, &[]).1.unwrap_err()
    }

    #[test]
    fn members_come_as_they_are() {
        let bytes = Maker::new()
            .file(b"backup_label", b"START")
            .directory(b"./pg_wal/archive_status/")
            .symlink(b"pg_tblspc/16385/", b"/srv/one")
            .file(b"empty", b"")
            .file(b"caf\xe9", &[7; 512])
            .end();
        let expected = [
            member(b"backup_label", MemberKind::File { size: 5 }),
            Seen::Data(b"START".to_vec()),
            Seen::End,
            member(b"pg_wal/archive_status", MemberKind::Directory),
            Seen::End,
            member(b"pg_tblspc/16385", MemberKind::Symlink { target: "/srv/one".into() }),
            Seen::End,
            member(b"empty", MemberKind::File { size: 0 }),
            Seen::End,
            member(b"caf\xe9", MemberKind::File { size: 512 }),
            Seen::Data(vec![7; 512]),
            Seen::End,
        ];
        assert_eq!(read(&bytes, &[]), (expected.to_vec(), Ok(TarEnd::Terminated)));
        // As servers up to 14 send it.
        assert_eq!(read(&bytes[..bytes.len() - 2 * BLOCK], &[]), (expected.to_vec(), Ok(TarEnd::Open)));
        assert_eq!(read(b"", &[]), (vec![], Ok(TarEnd::Open)));
    }

    #[test]
    fn an_archive_that_is_cut_anywhere_else_is_truncated() {
        let bytes = Maker::new().file(b"a", b"1").directory(b"b/").end();
        let path = MemberPath::new(b"a").unwrap();
        for cut in 0..bytes.len() {
            let expected = match cut {
                0 | 1024 | 1536 => Ok(TarEnd::Open),
                512..1024 => Err(TarError::Truncated(Some(path.clone()))),
                2048.. => Err(TarError::EndMark),
                _ => Err(TarError::Truncated(None)),
            };
            assert_eq!(read(&bytes[..cut], &[]).1, expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_member_larger_than_octal_digits_can_say() {
        let size = (1u64 << 33) + 513;
        let (mut members, mut total, mut ends) = (0, 0u64, 0);
        let mut count = |event: TarEvent<'_>| -> Result<(), Infallible> {
            match event {
                TarEvent::Member(member) => members += u32::from(member.kind == MemberKind::File { size }),
                TarEvent::Data(data) => total += data.len() as u64,
                TarEvent::MemberEnd => ends += 1,
            }
            Ok(())
        };
        let mut reader = TarReader::new();
        reader.feed(&Maker::header(b"large", b'0', size, b""), &mut count).unwrap();
        let piece = vec![0; 1 << 20];
        for _ in 0..1 << 13 {
            reader.feed(&piece, &mut count).unwrap();
        }
        reader.feed(&piece[..1024], &mut count).unwrap();
        assert_eq!(reader.finish(), Ok(TarEnd::Open));
        assert_eq!((members, total, ends), (1, size, 1));
    }

    #[test]
    fn p6_what_no_server_sends_is_refused() {
        let path = |name: &[u8]| MemberPath::new(name).unwrap();
        let edit = |at: usize, bytes: &[u8]| {
            let mut block = Maker::header(b"a", b'0', 0, b"");
            block[at..at + bytes.len()].copy_from_slice(bytes);
            sealed(block)
        };
        for kind in b"1346789LKxgSV\0" {
            let block = Maker::header(b"a", *kind, 0, b"");
            assert_eq!(error(&block), TarError::Kind { path: path(b"a"), kind: *kind });
        }
        let contradictions =
            [(b'5', 1, &b""[..]), (b'2', 1, b"/x"), (b'2', 0, b""), (b'0', 0, b"/x"), (b'5', 0, b"/x")];
        for (kind, size, target) in contradictions {
            assert_eq!(error(&Maker::header(b"a", kind, size, target)), TarError::Contradiction(path(b"a")));
        }
        for (at, bytes) in [(257, &b"ustar  \0"[..]), (257, b"ustar\x0001"), (345, b"prefix"), (511, b"x")] {
            assert_eq!(error(&edit(at, bytes)), TarError::Format { at: 0 });
        }
        let number = |field| TarError::Number { at: 0, field };
        for size in [&b"           \0"[..], b"0000000008 \0", b"-0000000001 ", b"\x81\0\0\0\0\0\0\0\0\0\0\x01"] {
            assert_eq!(error(&edit(124, size)), number("size"));
        }
        assert_eq!(error(&edit(124, b"\x80\0\0\x01\0\0\0\0\0\0\0\0")), number("size"));
        assert_eq!(error(&edit(124, b"\x80\0\0\0\x80\0\0\0\0\0\0\0")), number("size"));
        assert_eq!(error(&edit(100, b"0100644 ")), number("mode"));
        assert_eq!(error(&edit(136, b"yesterday   ")), number("time"));
        for name in [&b"../a"[..], b"/a", b"a/../../b", b"", b"a//", b"./"] {
            for kind in [b'0', b'5'] {
                let error = error(&Maker::header(name, kind, 0, b""));
                assert!(matches!(error, TarError::Path(_)), "{error}");
            }
        }
        assert!(matches!(error(&Maker::header(b"a/", b'0', 0, b"")), TarError::Path(_)));
    }

    #[test]
    fn damage_is_seen() {
        let bytes = Maker::new().file(b"a", b"1").end();
        for at in (0..512).filter(|at| !(148..156).contains(at)) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert_eq!(error(&bytes), TarError::Checksum { at: 0 }, "byte {at}");
        }
        for (at, expected) in [
            (513, TarError::Padding(MemberPath::new(b"a").unwrap())),
            (1023, TarError::Padding(MemberPath::new(b"a").unwrap())),
            (1024, TarError::Number { at: 1024, field: "checksum" }),
            (1536, TarError::EndMark),
            (2047, TarError::EndMark),
        ] {
            let mut bytes = bytes.clone();
            bytes[at] = 1;
            assert_eq!(error(&bytes), expected, "byte {at}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert_eq!(error(&longer), TarError::Trailing);
    }

    #[test]
    fn after_an_error_nothing_more_is_read() {
        let bytes = Maker::new().directory(b"a/").directory(b"b/").end();
        let mut reader = TarReader::new();
        let mut calls = 0;
        let mut fail = |_: TarEvent<'_>| {
            calls += 1;
            Err("full")
        };
        assert_eq!(reader.feed(&bytes, &mut fail), Err(FeedError::Seen("full")));
        assert_eq!(reader.feed(&bytes, &mut fail), Err(FeedError::Tar(TarError::GivenUp)));
        assert_eq!((calls, reader.finish()), (1, Err(TarError::GivenUp)));
    }

    #[derive(Debug, Clone)]
    enum Made {
        File(Vec<u8>, Vec<u8>),
        Directory(Vec<u8>),
        Symlink(Vec<u8>, Vec<u8>),
    }

    fn made() -> impl Strategy<Value = Made> {
        let byte = prop_oneof![1u8..b'.', b'0'..=255];
        let component = prop::collection::vec(byte.clone(), 1..8);
        let name = prop::collection::vec(component, 1..9).prop_map(|parts| parts.join(&b'/'));
        let length = prop_oneof![Just(0), Just(1), Just(511), Just(512), Just(513), 0usize..3000];
        let data = (length, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]);
        prop_oneof![
            (name.clone(), data).prop_map(|(name, data)| Made::File(name, data)),
            name.clone().prop_map(Made::Directory),
            (name, prop::collection::vec(byte, 1..=99)).prop_map(|(name, target)| Made::Symlink(name, target)),
        ]
    }

    fn make(members: &[Made]) -> (Vec<u8>, Vec<Seen>) {
        let mut maker = Maker::new();
        let mut seen = Vec::new();
        for made in members {
            maker = match made {
                Made::File(name, data) => {
                    seen.push(member(name, MemberKind::File { size: data.len() as u64 }));
                    if !data.is_empty() {
                        seen.push(Seen::Data(data.clone()));
                    }
                    maker.file(name, data)
                }
                Made::Directory(name) => {
                    seen.push(member(name, MemberKind::Directory));
                    maker.directory(&[name, &b"/"[..]].concat())
                }
                Made::Symlink(name, target) => {
                    seen.push(member(name, MemberKind::Symlink { target: OsStr::from_bytes(target).into() }));
                    maker.symlink(name, target)
                }
            };
            seen.push(Seen::End);
        }
        (maker.end(), seen)
    }

    proptest! {
        #[test]
        fn any_slicing_gives_the_same_events(members in prop::collection::vec(made(), 0..8), cuts: Vec<Index>) {
            let (bytes, expected) = make(&members);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.sort_unstable();
            prop_assert_eq!(read(&bytes, &cuts), (expected.clone(), Ok(TarEnd::Terminated)));
            let every_byte: Vec<usize> = (0..bytes.len()).collect();
            prop_assert_eq!(read(&bytes, &every_byte), (expected, Ok(TarEnd::Terminated)));
        }

        #[test]
        fn p6_no_bytes_do_harm(
            members in prop::collection::vec(made(), 1..4),
            changes: Vec<(Index, u8)>,
            reseal: bool,
            junk: Vec<u8>,
        ) {
            let (mut bytes, _) = make(&members);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if reseal && let Some(block) = bytes.first_chunk_mut::<BLOCK>() {
                *block = sealed(*block);
            }
            bytes.extend(junk);
            let (seen, _) = read(&bytes, &[]);
            let data: usize = seen.iter().map(|seen| if let Seen::Data(data) = seen { data.len() } else { 0 }).sum();
            prop_assert!(data <= bytes.len());
        }
    }
}
