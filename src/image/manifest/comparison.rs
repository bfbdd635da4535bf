//! Whether what was laid out is what the server sent.

use std::cmp::Ordering;

use thiserror::Error;

use super::{Checksum, Manifest, ManifestAlgorithm, ManifestFile};
use crate::image::MemberPath;

/// More than a line of a manifest has without the path.
const LINE: usize = 512;
/// Bytes that one of a path becomes at most.
const ESCAPED: usize = 6;
/// More than a manifest has before and after its files.
const AROUND: usize = 1 << 20;

/// Collects each file as it was laid out: the manifest comes after the files.
#[derive(Debug, Default)]
pub struct Comparison {
    files: Vec<ManifestFile>,
    /// Bytes of all their paths.
    paths: usize,
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
    /// Nothing laid out yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A plain file that was laid out, by its path below the data directory
    /// ([`MemberPath::in_tablespace`]). Directories and links are not in manifests.
    ///
    /// `checksum` is what a [`super::Hasher`] of the manifest's algorithm made of its content.
    pub fn add(&mut self, path: MemberPath, size: u64, checksum: Option<Checksum>) {
        self.paths = self.paths.saturating_add(path.as_bytes().len());
        self.files.push(ManifestFile { path, size, checksum });
    }

    /// More bytes than the manifest of what was laid out can have, so that one without end is seen before
    /// it has filled the memory. A file takes a line, in which each byte of its path may be escaped.
    pub fn longest_manifest(&self) -> usize {
        let lines = self.files.len().saturating_mul(LINE).saturating_add(self.paths.saturating_mul(ESCAPED));
        lines.saturating_add(AROUND).min(Manifest::MAX_BYTES)
    }

    /// Compares with the manifest.
    ///
    /// The manifest itself and the WAL segments in `pg_wal` may be there unlisted: servers never
    /// list them.
    ///
    /// # Errors
    /// Every file that differs, in the order of their paths; never empty.
    pub fn check(mut self, manifest: &Manifest) -> Result<Compared, Vec<Difference>> {
        self.files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let mut compared = Compared::default();
        let mut differences = Vec::new();
        let mut listed = manifest.files().iter().peekable();
        let mut last: Option<&MemberPath> = None;
        for file in &self.files {
            if last.replace(&file.path) == Some(&file.path) {
                differences.push(Difference::Twice(file.path.clone()));
                continue;
            }
            while let Some(missing) = listed.next_if(|entry| entry.path < file.path) {
                differences.push(Difference::Missing(missing.path.clone()));
            }
            match listed.next_if(|entry| entry.path.cmp(&file.path) == Ordering::Equal) {
                Some(entry) => match difference(file, entry) {
                    Some(difference) => differences.push(difference),
                    None => compared.count(entry),
                },
                None if never_listed(&file.path) => {}
                None => differences.push(Difference::Extra(file.path.clone())),
            }
        }
        differences.extend(listed.map(|missing| Difference::Missing(missing.path.clone())));
        if differences.is_empty() { Ok(compared) } else { Err(differences) }
    }
}

impl Compared {
    fn count(&mut self, file: &ManifestFile) {
        self.files += 1;
        self.bytes = self.bytes.saturating_add(file.size);
        self.by_checksum += u64::from(file.checksum.is_some());
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

    fn manifest() -> Manifest {
        let entry = |(path, data, algorithm): (&str, &str, ManifestAlgorithm)| {
            let sum = checksum(algorithm, data.as_bytes())
                .map(|sum| format!(", \"Checksum-Algorithm\": \"{algorithm}\", \"Checksum\": \"{sum}\""));
            let (size, sum) = (data.len(), sum.unwrap_or_default());
            format!("{{ \"Path\": \"{path}\", \"Size\": {size}, \"Last-Modified\": \"x\"{sum} }}")
        };
        let files = LISTED.map(entry).join(",\n");
        Manifest::parse(&sealed(&version_1(&files, ""))).unwrap()
    }

    /// All that is listed, as it is listed, but for what `change` makes of it.
    fn compare(change: impl FnOnce(&mut Vec<File>)) -> Result<Compared, Vec<Difference>> {
        let mut laid_out = LISTED.map(|(name, data, algorithm)| (name, data.to_owned(), algorithm)).to_vec();
        change(&mut laid_out);
        let mut comparison = Comparison::new();
        for (name, data, algorithm) in laid_out {
            comparison.add(path(name), data.len() as u64, checksum(algorithm, data.as_bytes()));
        }
        comparison.check(&manifest())
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
            assert_eq!(compare(|files| _ = files.remove(at)), Err(vec![Difference::Missing(name.clone())]));
            assert_eq!(compare(|files| files.push(files[at].clone())), Err(vec![Difference::Twice(name.clone())]));
            let found = LISTED[at].1.len() as u64 + 8;
            let size = Difference::Size { path: name, found, listed: found - 8 };
            assert_eq!(compare(|files| files[at].1.push_str("longer..")), Err(vec![size]));
        }
        for name in ["base/1/1248", "pg_wal/00000001.history", "pg_wal/x/000000010000000000000001", "zz"] {
            assert_eq!(
                compare(|files| files.push((name, String::new(), ManifestAlgorithm::Crc32c))),
                Err(vec![Difference::Extra(path(name))])
            );
        }
        let expected = Difference::Checksum {
            path: path("base/1/1247"),
            found: checksum(ManifestAlgorithm::Crc32c, b"two").unwrap(),
            listed: checksum(ManifestAlgorithm::Crc32c, b"one").unwrap(),
        };
        assert_eq!(compare(|files| files[0].1 = "two".into()), Err(vec![expected]));
        let all = LISTED.map(|(name, ..)| Difference::Missing(path(name)));
        let mut differences = compare(Vec::clear).unwrap_err();
        differences.sort_by_key(|difference| all.iter().position(|d| d == difference));
        assert_eq!(differences, all);
    }

    #[test]
    fn p3_what_was_not_digested_does_not_pass() {
        for algorithm in [ManifestAlgorithm::None, ManifestAlgorithm::Sha256] {
            let expected = Difference::NotDigested { path: path("base/1/1247"), listed: ManifestAlgorithm::Crc32c };
            assert_eq!(compare(|files| files[0].2 = algorithm), Err(vec![expected]));
        }
    }
}
