//! Which names one backup has used.

use std::collections::HashMap;

use thiserror::Error;

use super::{Member, MemberKind, MemberPath};
use crate::disk::DiskError;
use crate::spill::{Scratch, Sorter};

/// Names that are remembered at most, those of directories on the way included. A cluster of so
/// many files would fill the manifest's limit as well.
const MAX_NAMES: usize = 10_000_000;
/// Bytes that names take in memory; what is more goes to disk.
const ROOM: usize = 1 << 20;
/// More than a name takes besides its bytes.
const ENTRY: usize = 128;

/// What a name stands for so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    /// Named itself, or only on the way to something in it.
    Directory,
    File,
    Symlink,
}

/// Remembers the names of one archive, and refuses one that would write over or through an earlier
/// one. Each archive has its own: the links of tablespaces may be members of the base archive, and
/// what lies behind them comes in the others.
///
/// A directory may be named again, for one made on the way to a file is the same one.
///
/// Of a large archive the names do not fit in memory. A clash with a name that has gone to disk is found when the
/// archive has ended ([`Names::finish`]): until then nothing may be followed or overwritten because of a name alone.
#[derive(Debug)]
pub struct Names {
    /// The latest.
    known: HashMap<Box<[u8]>, Use>,
    room: usize,
    left: usize,
    count: usize,
    /// Those before.
    spilled: Option<Sorter>,
    scratch: Scratch,
    /// Why they could not be put there; told at the end.
    failed: Option<DiskError>,
}

/// Two members of a backup cannot both be laid down.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameClash {
    /// The second member of the name, when one of them is not a directory.
    #[error("the archive has two members named \"{0}\"")]
    Twice(MemberPath),
    /// A file that was sent before stands where a directory would have to be.
    #[error("\"{0}\" would lie below a file of the archive")]
    BelowFile(MemberPath),
    /// It would be written wherever the link leads.
    #[error("\"{0}\" would be written through a symbolic link of the archive")]
    ThroughLink(MemberPath),
    /// A limit of ours.
    #[error("the archive has more than {MAX_NAMES} members")]
    TooMany,
}

/// What is found when all names have come.
#[derive(Debug, Error)]
pub enum NamesError {
    /// Two of them clash.
    #[error(transparent)]
    Clash(#[from] NameClash),
    /// There was no place for them on disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Names {
    /// No name yet. Those that do not fit in memory go to `scratch`.
    pub fn new(scratch: Scratch) -> Self {
        Self { known: HashMap::new(), room: ROOM, left: ROOM, count: 0, spilled: None, scratch, failed: None }
    }

    /// Takes note of a member.
    ///
    /// # Errors
    /// When it clashes with an earlier one that is still in memory.
    pub fn take(&mut self, member: &Member) -> Result<(), NameClash> {
        let path = &member.path;
        for ancestor in path.ancestors() {
            self.pass(ancestor, path)?;
        }
        let new = match member.kind {
            MemberKind::Directory => Use::Directory,
            MemberKind::File { .. } => Use::File,
            MemberKind::Symlink { .. } => Use::Symlink,
        };
        match self.known.get(path.as_bytes()) {
            None => self.note(path.as_bytes(), new),
            Some(Use::Directory) if new == Use::Directory => Ok(()),
            Some(_) => Err(NameClash::Twice(path.clone())),
        }
    }

    /// Goes through `directory` on the way to `path`.
    fn pass(&mut self, directory: &[u8], path: &MemberPath) -> Result<(), NameClash> {
        match self.known.get(directory) {
            Some(Use::Directory) => Ok(()),
            None => self.note(directory, Use::Directory),
            Some(Use::File) => Err(NameClash::BelowFile(path.clone())),
            Some(Use::Symlink) => Err(NameClash::ThroughLink(path.clone())),
        }
    }

    fn note(&mut self, name: &[u8], used: Use) -> Result<(), NameClash> {
        if self.count >= MAX_NAMES {
            return Err(NameClash::TooMany);
        }
        self.count = self.count.saturating_add(1);
        let taken = name.len().saturating_add(ENTRY);
        if taken > self.left {
            self.spill();
        }
        self.left = self.left.saturating_sub(taken);
        self.known.insert(name.into(), used);
        Ok(())
    }

    /// What is in memory goes to disk. A failure is final.
    fn spill(&mut self) {
        let spilled = self.spilled.get_or_insert_with(|| Sorter::new(self.scratch.clone()));
        if self.failed.is_none() {
            let put = self.known.drain().try_for_each(|(name, used)| spilled.put(&name, &[used.code()]));
            self.failed = put.err();
        }
        self.known = HashMap::new();
        self.left = self.room;
    }

    /// All names of the archive have come.
    ///
    /// # Errors
    /// When two of them clash that were not in memory together, or they could not be kept.
    pub fn finish(mut self) -> Result<(), NamesError> {
        if self.spilled.is_some() {
            self.spill();
        }
        if let Some(failed) = self.failed {
            return Err(failed.into());
        }
        let Some(spilled) = self.spilled else { return Ok(()) };
        let mut merge = spilled.sorted()?;
        let mut last = None;
        while let Some(record) = merge.next()? {
            // A directory that others lie in is among them, too, named or not.
            let directory = record.value == [Use::Directory.code()];
            if last.is_some_and(|(name, was)| name == record.key && !(was && directory)) {
                let path = MemberPath::new(&record.key).map_err(|_| NameClash::TooMany)?;
                return Err(NameClash::Twice(path).into());
            }
            last = Some((record.key, directory));
        }
        Ok(())
    }
}

impl Use {
    const fn code(self) -> u8 {
        match self {
            Self::Directory => b'd',
            Self::File => b'f',
            Self::Symlink => b'l',
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> MemberPath {
        MemberPath::new(name.as_bytes()).unwrap()
    }

    fn take(names: &mut Names, name: &str, kind: char) -> Result<(), NameClash> {
        let kind = match kind {
            'd' => MemberKind::Directory,
            'f' => MemberKind::File { size: 0 },
            _ => MemberKind::Symlink { target: "/tmp".into() },
        };
        names.take(&Member { path: path(name), kind, mode: 0o600, mtime: 0 })
    }

    #[test]
    fn p6_nothing_is_written_twice_or_through_a_link() {
        let clash = |first: (&str, char), second: (&str, char)| {
            let mut names = Names::new(Scratch::temporary());
            take(&mut names, first.0, first.1).unwrap();
            take(&mut names, second.0, second.1)
        };
        for kind in ['d', 'f', 'l'] {
            assert_eq!(clash(("a", 'f'), ("a", kind)), Err(NameClash::Twice(path("a"))));
            assert_eq!(clash(("a", 'l'), ("a", kind)), Err(NameClash::Twice(path("a"))));
            assert_eq!(clash(("a", 'l'), ("a/b/c", kind)), Err(NameClash::ThroughLink(path("a/b/c"))));
            assert_eq!(clash(("a/b", 'f'), ("a/b/c", kind)), Err(NameClash::BelowFile(path("a/b/c"))));
        }
        // The directory was never a member, but something lies in it.
        assert_eq!(clash(("a/b", 'f'), ("a", 'l')), Err(NameClash::Twice(path("a"))));
        assert_eq!(clash(("a", 'd'), ("a", 'f')), Err(NameClash::Twice(path("a"))));
    }

    /// However little fits in memory, in the end every clash is found, and nothing else.
    #[test]
    fn p6_what_has_gone_to_disk_is_not_forgotten() {
        let outcome = |room: usize, members: &[(&str, char)]| {
            let mut names = Names { room, left: room, ..Names::new(Scratch::temporary()) };
            let taken = members.iter().try_for_each(|(name, kind)| take(&mut names, name, *kind));
            taken.is_ok() && names.finish().is_ok()
        };
        let servers = [("b", 'd'), ("b/1", 'd'), ("b/1/1", 'f'), ("b/1/2", 'f'), ("b/1/3/4", 'f'), ("b/1/3", 'd')];
        let clashes =
            [("b/1/1", 'f'), ("b/1/1", 'd'), ("b/1", 'f'), ("b", 'l'), ("b/1/2/x", 'f'), ("l/1", 'f'), ("l", 'l')];
        for room in [0, 150, 300, 450, 600, 900, ROOM] {
            let with = |more: &[(&'static str, char)]| [&[("l", 'l')], &servers[..], more].concat();
            assert!(outcome(room, &with(&[("b/1/5", 'f'), ("b/1", 'd')])), "{room}");
            for clash in clashes {
                assert!(!outcome(room, &with(&[clash])), "{room}: {clash:?}");
            }
        }
    }

    #[test]
    fn without_a_place_on_disk_it_is_said_in_the_end() {
        let mut names = Names { left: 0, ..Names::new(Scratch::new(std::path::Path::new("/nowhere/at/all"))) };
        names.spilled = Some(Sorter::new(names.scratch.clone()));
        names.room = 0;
        for number in 0..60_000 {
            take(&mut names, &format!("some/directory/with/a/long/name/{number}"), 'f').unwrap();
        }
        assert!(matches!(names.finish(), Err(NamesError::Disk(_))));
    }

    #[test]
    fn what_servers_send_passes() {
        let mut names = Names::new(Scratch::temporary());
        for (name, kind) in [
            ("backup_label", 'f'),
            ("./pg_wal/archive_status", 'd'),
            ("pg_wal", 'd'),
            ("pg_wal/archive_status", 'd'),
            ("pg_tblspc", 'd'),
            ("pg_tblspc/16385", 'l'),
            ("pg_tblspc/163850", 'd'),
        ] {
            assert_eq!(take(&mut names, name, kind), Ok(()), "{name}");
        }
    }
}
