//! Which names one backup has used.

use std::collections::HashMap;

use thiserror::Error;

use super::{Member, MemberKind, MemberPath};

/// Names that are remembered at most, those of directories on the way included. A cluster of so
/// many files would fill the manifest's limit as well.
const MAX_NAMES: usize = 10_000_000;

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
#[derive(Debug, Default)]
pub struct Names(HashMap<Box<[u8]>, Use>);

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

impl Names {
    /// No name yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes note of a member.
    ///
    /// # Errors
    /// When it clashes with an earlier one.
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
        match self.0.get(path.as_bytes()) {
            None => self.note(path.as_bytes(), new),
            Some(Use::Directory) if new == Use::Directory => Ok(()),
            Some(_) => Err(NameClash::Twice(path.clone())),
        }
    }

    /// Goes through `directory` on the way to `path`.
    fn pass(&mut self, directory: &[u8], path: &MemberPath) -> Result<(), NameClash> {
        match self.0.get(directory) {
            Some(Use::Directory) => Ok(()),
            None => self.note(directory, Use::Directory),
            Some(Use::File) => Err(NameClash::BelowFile(path.clone())),
            Some(Use::Symlink) => Err(NameClash::ThroughLink(path.clone())),
        }
    }

    fn note(&mut self, name: &[u8], used: Use) -> Result<(), NameClash> {
        if self.0.len() >= MAX_NAMES {
            return Err(NameClash::TooMany);
        }
        self.0.insert(name.into(), used);
        Ok(())
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
            let mut names = Names::new();
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

    #[test]
    fn what_servers_send_passes() {
        let mut names = Names::new();
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
