//! A manifest of our own, in the form in which a server writes one (`backup_manifest.c`), for a copy that
//! no server made.

use std::io::{self, BufRead, Read as _};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{CHECKSUM_KEY, CLOSING, Hasher, ManifestFile, WalRange};

/// Bytes of a line that are looked at together.
const MAX_LINE: u64 = 64 << 10;
/// Servers from this major version on name the cluster.
const NAMES_CLUSTER: u32 = 17;

/// Takes the files one by one.
#[derive(Debug)]
pub struct ManifestWriter {
    text: Vec<u8>,
    files: u64,
    bytes: u64,
}

impl ManifestWriter {
    /// For a server of that major version.
    pub fn new(major: u32, system_identifier: u64) -> Self {
        let cluster = format!("\"System-Identifier\": {system_identifier},\n");
        let (version, cluster) = if major >= NAMES_CLUSTER { (2, cluster) } else { (1, String::new()) };
        let head = format!("{{ \"PostgreSQL-Backup-Manifest-Version\": {version},\n{cluster}\"Files\": [");
        Self { text: head.into_bytes(), files: 0, bytes: 0 }
    }

    /// The next file, and when its content last changed.
    pub fn add(&mut self, file: &ManifestFile, modified: Timestamp) {
        let path = match file.path.as_str() {
            Some(text) => format!("\"Path\": {}", serde_json::Value::from(text)),
            None => {
                let hex: String = file.path.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
                format!("\"Encoded-Path\": \"{hex}\"")
            }
        };
        let checksum = file.checksum.as_ref().map(|checksum| {
            format!(", \"Checksum-Algorithm\": \"{}\", \"Checksum\": \"{checksum}\"", checksum.algorithm())
        });
        let (size, checksum) = (file.size, checksum.unwrap_or_default());
        let modified = modified.strftime("%Y-%m-%d %H:%M:%S GMT");
        let comma = if self.files == 0 { "" } else { "," };
        let line = format!("{comma}\n{{ {path}, \"Size\": {size}, \"Last-Modified\": \"{modified}\"{checksum} }}");
        self.text.extend_from_slice(line.as_bytes());
        self.files = self.files.saturating_add(1);
        self.bytes = self.bytes.saturating_add(size);
    }

    /// Bytes of the manifest so far.
    pub fn size(&self) -> usize {
        self.text.len()
    }

    /// Files so far, and their bytes.
    pub const fn listed(&self) -> (u64, u64) {
        (self.files, self.bytes)
    }

    /// The manifest, with its own checksum; the newest range of WAL comes first.
    pub fn finish(mut self, wal: &[WalRange]) -> Vec<u8> {
        let range = |WalRange { tli, start, end }: &WalRange| {
            format!("{{ \"Timeline\": {tli}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}")
        };
        let ranges: Vec<String> = wal.iter().map(range).collect();
        self.text.extend_from_slice(format!("\n],\n\"WAL-Ranges\": [\n{}\n],", ranges.join(",\n")).as_bytes());
        let covered = CHECKSUM_KEY.get(..1).unwrap_or_default();
        let sum = Sha256::new().chain_update(&self.text).chain_update(covered).finalize();
        self.text.extend_from_slice(CHECKSUM_KEY);
        self.text.extend(sum.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()));
        self.text.extend_from_slice(CLOSING);
        self.text
    }
}

/// Passes a manifest on with another content of one file, all else as it was written; `false` where it does not list the
/// file in the form in which servers do. Whether it is one is for whoever reads it.
///
/// # Errors
/// When it cannot be read, or `out` fails.
pub fn relisted<E: From<io::Error>>(
    manifest: &mut impl BufRead,
    name: &str,
    content: &[u8],
    out: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<bool, E> {
    let beginning = format!("{{ \"Path\": \"{name}\", ");
    let covered_to = CHECKSUM_KEY.get(1..).unwrap_or_default();
    let (mut hash, mut done, mut line) = (Sha256::new(), false, Vec::new());
    loop {
        line.clear();
        if manifest.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(false);
        }
        if line.starts_with(covered_to) {
            break;
        }
        if !done && line.starts_with(beginning.as_bytes()) {
            let Some(changed) = relisted_line(&line, content) else { return Ok(false) };
            (line, done) = (changed, true);
        }
        hash.update(&line);
        out(&line)?;
    }
    let digits: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    for part in [covered_to, digits.as_bytes(), CLOSING] {
        out(part)?;
    }
    Ok(done)
}

/// The line of a file with another size and another checksum.
fn relisted_line(line: &[u8], content: &[u8]) -> Option<Vec<u8>> {
    let line = std::str::from_utf8(line).ok()?;
    let was: ManifestFile = serde_json::from_str(line.trim_end().trim_end_matches(',')).ok()?;
    let line = line.replacen(&format!("\"Size\": {},", was.size), &format!("\"Size\": {},", content.len()), 1);
    let Some(was) = was.checksum else { return Some(line.into_bytes()) };
    let mut hasher = Hasher::new(was.algorithm());
    hasher.update(content);
    let is = hasher.finish()?;
    let line = line.replacen(&format!("\"Checksum\": \"{was}\""), &format!("\"Checksum\": \"{is}\""), 1);
    Some(line.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Manifest, ManifestAlgorithm, MemberPath};
    use crate::wal::{Lsn, TimelineId};

    fn file(name: &[u8], content: &[u8], algorithm: ManifestAlgorithm) -> ManifestFile {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(content);
        let path = MemberPath::new(name).unwrap();
        ManifestFile { path, size: content.len() as u64, checksum: hasher.finish() }
    }

    #[test]
    fn what_is_written_is_read() {
        let time: Timestamp = "2026-11-22T11:57:49Z".parse().unwrap();
        let wal = WalRange { tli: TimelineId::FIRST, start: Lsn::new(0x200_0028), end: Lsn::new(0x200_0100) };
        let files = [
            file(b"a\"b\\\n", b"x", ManifestAlgorithm::Sha512),
            file(b"base/1/1247", b"abc", ManifestAlgorithm::Crc32c),
            file(b"odd\xe9", b"", ManifestAlgorithm::None),
        ];
        for (major, version, cluster) in [(13, 1, None), (16, 1, None), (17, 2, Some(u64::MAX))] {
            let mut writer = ManifestWriter::new(major, u64::MAX);
            files.iter().for_each(|file| writer.add(file, time));
            assert_eq!(writer.listed(), (3, 4));
            let manifest = Manifest::parse(&writer.finish(&[wal])).unwrap();
            assert_eq!((manifest.version(), manifest.system_identifier()), (version, cluster));
            assert_eq!(manifest.files(), files);
            assert_eq!(manifest.wal_ranges(), [wal]);
        }
    }

    #[test]
    fn one_file_is_listed_anew() {
        let wal = WalRange { tli: TimelineId::FIRST, start: Lsn::new(0x200_0028), end: Lsn::new(0x200_0100) };
        for algorithm in [ManifestAlgorithm::Crc32c, ManifestAlgorithm::Sha256, ManifestAlgorithm::None] {
            let written = |content: &[u8]| {
                let mut writer = ManifestWriter::new(17, 7);
                writer.add(&file(b"other", b"abc", algorithm), Timestamp::UNIX_EPOCH);
                writer.add(&file(b"tablespace_map", content, algorithm), Timestamp::UNIX_EPOCH);
                writer.add(&file(b"z/tablespace_map", b"1 /a\n", algorithm), Timestamp::UNIX_EPOCH);
                writer.finish(&[wal])
            };
            let listed = |name: &str, content: &[u8]| {
                let (mut out, before) = (Vec::new(), written(b"1 /a\n"));
                let mut put = |part: &[u8]| {
                    out.extend_from_slice(part);
                    Ok::<_, io::Error>(())
                };
                relisted(&mut &*before, name, content, &mut put).unwrap().then_some(out)
            };
            assert_eq!(listed("tablespace_map", b"1 /elsewhere\n").unwrap(), written(b"1 /elsewhere\n"));
            assert_eq!(listed("backup_label", b"x"), None);
            assert!(!relisted(&mut &b"no manifest"[..], "x", b"", &mut |_| Ok::<_, io::Error>(())).unwrap());
        }
    }

    #[test]
    fn its_lines_are_those_of_a_server() {
        let mut writer = ManifestWriter::new(15, 1);
        writer.add(&file(b"base/1/1247", b"abc", ManifestAlgorithm::Crc32c), "2026-11-22T11:57:49Z".parse().unwrap());
        let wal = WalRange { tli: TimelineId::FIRST, start: Lsn::new(0x200_0028), end: Lsn::new(0x200_0100) };
        let text = String::from_utf8(writer.finish(&[wal])).unwrap();
        let (body, sum) = text.split_once("\"Manifest-Checksum\"").unwrap();
        let expected = crate::image::manifest::tests::version_1(
            r#"{ "Path": "base/1/1247", "Size": 3, "Last-Modified": "2026-11-22 11:57:49 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "b73f4b36" }"#,
            r#"{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000100" }"#,
        );
        assert_eq!(body, expected);
        assert!(sum.starts_with(": \"") && sum.ends_with("\"}\n"));
    }
}
