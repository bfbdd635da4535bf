//! Whether what was laid out is what the server sent.
//!
//! Both lists are put in the order of their paths, on disk where they do not fit in memory, and gone through together.
//! So the outcome is exact, without a word of how large they are or in which order they came.

use std::cmp::Ordering;

use thiserror::Error;

use super::listed::{Files, InOrder};
use super::{Checksum, Listed, Manifest, ManifestAlgorithm, ManifestError, ManifestFile};
use crate::disk::DiskError;
use crate::image::MemberPath;
use crate::spill::Scratch;

/// More than a line of a manifest has without the path.
const LINE: usize = 512;
/// Bytes that one of a path becomes at most.
const ESCAPED: usize = 6;
/// More than a manifest has before and after its files.
const AROUND: usize = 1 << 20;

/// Collects each file as it was laid out: the manifest comes after the files.
#[derive(Debug)]
pub struct Comparison {
    files: Files,
    count: usize,
    /// Bytes of all their paths.
    paths: usize,
    /// Why they could not be collected; told at the end.
    failed: Option<DiskError>,
}

/// Why a comparison does not end well.
#[derive(Debug, Error)]
pub enum Unequal {
    /// Files are not as the manifest lists them: the first in the order of their paths, and how many besides.
    #[error("{first}{}", match others { 0 => String::new(), n => format!(" (and {n} more)") })]
    Files {
        /// The first.
        first: Difference,
        /// How many besides.
        others: u64,
    },
    /// The manifest lists a path twice.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// What was to be compared could not be kept.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// A file that is not as the manifest lists it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Difference {
    /// Listed, and not laid out.
    #[error("\"{0}\" is in the manifest and not in the backup")]
    Missing(MemberPath),
    /// Laid out, and not listed.
    #[error("\"{0}\" is in the backup and not in the manifest")]
    Extra(MemberPath),
    /// Laid out twice.
    #[error("\"{0}\" is in the backup twice")]
    Twice(MemberPath),
    /// Of another length.
    #[error("\"{path}\" has {found} bytes; the manifest says {listed}")]
    Size {
        /// Which file.
        path: MemberPath,
        /// Bytes laid out.
        found: u64,
        /// Bytes sent.
        listed: u64,
    },
    /// Of the same length, with another content.
    #[error("\"{path}\" has {algorithm} {found}; the manifest says {listed}", algorithm = listed.algorithm())]
    Checksum {
        /// Which file.
        path: MemberPath,
        /// Of what was laid out.
        found: Checksum,
        /// Of what was sent.
        listed: Checksum,
    },
    /// The content was not compared, for its checksum is of another kind. Our mistake, or a
    /// server that did not do as it was asked.
    #[error("\"{path}\" was not digested with {listed}, which the manifest has for it")]
    NotDigested {
        /// Which file.
        path: MemberPath,
        /// What it should have been digested with.
        listed: ManifestAlgorithm,
    },
}

/// What was found equal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Compared {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of the files were compared by checksum too, and not by size alone.
    pub by_checksum: u64,
}

impl Comparison {
    /// Nothing laid out yet. What does not fit in memory goes to `scratch`.
    pub const fn new(scratch: Scratch) -> Self {
        Self { files: Files::new(scratch), count: 0, paths: 0, failed: None }
    }

    /// A plain file that was laid out, by its path below the data directory
    /// ([`MemberPath::in_tablespace`]). Directories and links are not in manifests.
    ///
    /// `checksum` is what a [`super::Hasher`] of the manifest's algorithm made of its content.
    pub fn add(&mut self, path: MemberPath, size: u64, checksum: Option<Checksum>) {
        self.count = self.count.saturating_add(1);
        self.paths = self.paths.saturating_add(path.as_bytes().len());
        if self.failed.is_none() {
            self.failed = self.files.put(&ManifestFile { path, size, checksum }).err();
        }
    }

    /// More bytes than the manifest of what was laid out can have, so that one without end is seen before
    /// it has filled the disk. A file takes a line, in which each byte of its path may be escaped.
    pub fn longest_manifest(&self) -> usize {
        let lines = self.count.saturating_mul(LINE).saturating_add(self.paths.saturating_mul(ESCAPED));
        lines.saturating_add(AROUND).min(Manifest::MAX_BYTES)
    }

    /// Compares with the manifest.
    ///
    /// The manifest itself and the WAL segments in `pg_wal` may be there unlisted: servers never
    /// list them.
    ///
    /// # Errors
    /// When a file differs, or the manifest lists one twice.
    pub fn check(self, manifest: Listed) -> Result<Compared, Unequal> {
        if let Some(failed) = self.failed {
            return Err(failed.into());
        }
        let (mut found, mut listed) = (self.files.sorted()?, manifest.sorted()?);
        let mut outcome = Outcome::default();
        let mut last: Option<MemberPath> = None;
        while let Some(file) = found.next()? {
            if last.as_ref() == Some(&file.path) {
                outcome.differs(Difference::Twice(file.path));
                continue;
            }
            while let Some(missing) = take_if(&mut listed, |entry| entry.path < file.path)? {
                outcome.differs(Difference::Missing(missing.path));
            }
            match take_if(&mut listed, |entry| entry.path.cmp(&file.path) == Ordering::Equal)? {
                Some(entry) => match difference(&file, &entry) {
                    Some(difference) => outcome.differs(difference),
                    None => outcome.compared.count(&entry),
                },
                None if never_listed(&file.path) => {}
                None => outcome.differs(Difference::Extra(file.path.clone())),
            }
            last = Some(file.path);
        }
        while let Some(missing) = take_if(&mut listed, |_| true)? {
            outcome.differs(Difference::Missing(missing.path));
        }
        match outcome.first {
            Some(first) => Err(Unequal::Files { first, others: outcome.others }),
            None => Ok(outcome.compared),
        }
    }
}

#[derive(Default)]
struct Outcome {
    compared: Compared,
    first: Option<Difference>,
    others: u64,
}

impl Outcome {
    fn differs(&mut self, difference: Difference) {
        match &self.first {
            Some(_) => self.others = self.others.saturating_add(1),
            None => self.first = Some(difference),
        }
    }
}

/// The next listed file, if it is such a one. No path is listed twice.
fn take_if(listed: &mut InOrder, wanted: impl FnOnce(&ManifestFile) -> bool) -> Result<Option<ManifestFile>, Unequal> {
    if !listed.peek().is_some_and(wanted) {
        return Ok(None);
    }
    let file = listed.next()?;
    match (&file, listed.peek()) {
        (Some(file), Some(next)) if next.path == file.path => Err(ManifestError::Twice(next.path.clone()).into()),
        _ => Ok(file),
    }
}

impl Compared {
    fn count(&mut self, file: &ManifestFile) {
        self.files = self.files.saturating_add(1);
        self.bytes = self.bytes.saturating_add(file.size);
        self.by_checksum = self.by_checksum.saturating_add(file.checksum.is_some().into());
    }
}

fn difference(found: &ManifestFile, listed: &ManifestFile) -> Option<Difference> {
    let path = || listed.path.clone();
    if found.size != listed.size {
        return Some(Difference::Size { path: path(), found: found.size, listed: listed.size });
    }
    let wanted = listed.checksum.as_ref()?;
    match &found.checksum {
        Some(have) if have.algorithm() != wanted.algorithm() => {
            Some(Difference::NotDigested { path: path(), listed: wanted.algorithm() })
        }
        None => Some(Difference::NotDigested { path: path(), listed: wanted.algorithm() }),
        Some(have) if have == wanted => None,
        Some(have) => Some(Difference::Checksum { path: path(), found: have.clone(), listed: wanted.clone() }),
    }
}

/// Files that a backup can hold and no manifest lists.
fn never_listed(path: &MemberPath) -> bool {
    match path.as_bytes().strip_prefix(b"pg_wal/") {
        Some(name) => name.len() == 24 && name.iter().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')),
        None => path.as_bytes() == b"backup_manifest",
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{sealed, version_1};
    use super::*;
    use crate::image::Hasher;

    fn path(name: &str) -> MemberPath {
        MemberPath::new(name.as_bytes()).unwrap()
    }

    fn checksum(algorithm: ManifestAlgorithm, data: &[u8]) -> Option<Checksum> {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(data);
        hasher.finish()
    }

    /// A path, its content, and what it is digested with.
    type File = (&'static str, String, ManifestAlgorithm);

    const LISTED: [(&str, &str, ManifestAlgorithm); 4] = [
        ("base/1/1247", "one", ManifestAlgorithm::Crc32c),
        ("PG_VERSION", "15\n", ManifestAlgorithm::Sha256),
        ("pg_wal/archive_status/000000010000000000000001.done", "", ManifestAlgorithm::Crc32c),
        ("by_size", "size", ManifestAlgorithm::None),
    ];

    fn manifest() -> Listed {
        let entry = |(path, data, algorithm): (&str, &str, ManifestAlgorithm)| {
            let sum = checksum(algorithm, data.as_bytes())
                .map(|sum| format!(", \"Checksum-Algorithm\": \"{algorithm}\", \"Checksum\": \"{sum}\""));
            let (size, sum) = (data.len(), sum.unwrap_or_default());
            format!("{{ \"Path\": \"{path}\", \"Size\": {size}, \"Last-Modified\": \"x\"{sum} }}")
        };
        let files = LISTED.map(entry).join(",\n");
        read(&files)
    }

    fn read(files: &str) -> Listed {
        let content = sealed(&version_1(files, ""));
        Listed::read(&mut &*content, content.len() as u64, Scratch::temporary()).unwrap()
    }

    /// All that is listed, as it is listed, but for what `change` makes of it.
    fn compare(change: impl FnOnce(&mut Vec<File>)) -> Result<Compared, (Difference, u64)> {
        let mut laid_out = LISTED.map(|(name, data, algorithm)| (name, data.to_owned(), algorithm)).to_vec();
        change(&mut laid_out);
        let mut comparison = Comparison::new(Scratch::temporary());
        for (name, data, algorithm) in laid_out {
            comparison.add(path(name), data.len() as u64, checksum(algorithm, data.as_bytes()));
        }
        comparison.check(manifest()).map_err(|unequal| match unequal {
            Unequal::Files { first, others } => (first, others),
            other => panic!("{other}"),
        })
    }

    #[test]
    fn all_as_listed_in_any_order() {
        let all = Ok(Compared { files: 4, bytes: 10, by_checksum: 3 });
        assert_eq!(compare(|_| ()), all);
        assert_eq!(compare(|files| files.reverse()), all);
        // Never listed by a server, whatever they hold.
        for name in ["backup_manifest", "pg_wal/000000010000000000000001"] {
            assert_eq!(compare(|files| files.push((name, "x".into(), ManifestAlgorithm::None))), all);
        }
    }

    #[test]
    fn p3_every_difference_is_named() {
        for at in 0..LISTED.len() {
            let name = path(LISTED[at].0);
            assert_eq!(compare(|files| _ = files.remove(at)), Err((Difference::Missing(name.clone()), 0)));
            assert_eq!(compare(|files| files.push(files[at].clone())), Err((Difference::Twice(name.clone()), 0)));
            let found = LISTED[at].1.len() as u64 + 8;
            let size = Difference::Size { path: name, found, listed: found - 8 };
            assert_eq!(compare(|files| files[at].1.push_str("longer..")), Err((size, 0)));
        }
        for name in ["base/1/1248", "pg_wal/00000001.history", "pg_wal/x/000000010000000000000001", "zz"] {
            assert_eq!(
                compare(|files| files.push((name, String::new(), ManifestAlgorithm::Crc32c))),
                Err((Difference::Extra(path(name)), 0))
            );
        }
        let expected = Difference::Checksum {
            path: path("base/1/1247"),
            found: checksum(ManifestAlgorithm::Crc32c, b"two").unwrap(),
            listed: checksum(ManifestAlgorithm::Crc32c, b"one").unwrap(),
        };
        assert_eq!(compare(|files| files[0].1 = "two".into()), Err((expected, 0)));
        // The first in the order of the paths, and the number of the others.
        assert_eq!(compare(Vec::clear), Err((Difference::Missing(path("PG_VERSION")), 3)));
        let all = compare(|files| {
            files.retain(|file| file.0 != "PG_VERSION");
            files.extend([("zz", String::new(), ManifestAlgorithm::None), files[0].clone(), files[0].clone()]);
        });
        assert_eq!(all, Err((Difference::Missing(path("PG_VERSION")), 3)));
    }

    #[test]
    fn what_is_listed_twice_is_refused() {
        let line = |name: &str| format!("{{ \"Path\": \"{name}\", \"Size\": 0, \"Last-Modified\": \"x\" }}");
        for laid_out in [&["a", "b", "c"][..], &["a", "b", "b", "c"], &["a"], &[]] {
            let mut comparison = Comparison::new(Scratch::temporary());
            laid_out.iter().for_each(|name| comparison.add(path(name), 0, None));
            let unequal = comparison.check(read(&["b", "a", "c", "b"].map(line).join(",\n"))).unwrap_err();
            assert!(
                matches!(&unequal, Unequal::Manifest(ManifestError::Twice(name)) if *name == path("b")),
                "{unequal}"
            );
        }
    }

    #[test]
    fn what_could_not_be_collected_is_not_equal() {
        let mut comparison = Comparison::new(Scratch::new(std::path::Path::new("/nowhere/at/all")));
        for number in 0..50_000 {
            comparison.add(path(&format!("a/rather/long/name/for/a/file/of/a/relation/{number}")), 0, None);
        }
        assert!(matches!(comparison.check(manifest()), Err(Unequal::Disk(_))));
    }

    #[test]
    fn p3_what_was_not_digested_does_not_pass() {
        for algorithm in [ManifestAlgorithm::None, ManifestAlgorithm::Sha256] {
            let expected = Difference::NotDigested { path: path("base/1/1247"), listed: ManifestAlgorithm::Crc32c };
            assert_eq!(compare(|files| files[0].2 = algorithm), Err((expected, 0)));
        }
    }
}
