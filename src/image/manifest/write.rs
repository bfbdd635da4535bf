//! A manifest of our own, as a server would have written it (`pg_combinebackup/write_manifest.c`).

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::{Manifest, ManifestFile, WalRange};

impl Manifest {
    /// A manifest of version 2 that lists these files, each as last modified at `modified`, which is text of the form
    /// `2026-11-22 05:15:00 GMT`. The same values give the same bytes.
    pub fn write(system_identifier: u64, files: &[ManifestFile], ranges: &[WalRange], modified: &str) -> Vec<u8> {
        let mut text = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {system_identifier},\n\"Files\": ["
        );
        for (index, file) in files.iter().enumerate() {
            text.push_str(if index == 0 { "\n" } else { ",\n" });
            text.push_str(&line(file, modified));
        }
        text.push_str("\n],\n\"WAL-Ranges\": [\n");
        for (index, WalRange { tli, start, end }) in ranges.iter().enumerate() {
            text.push_str(if index == 0 { "" } else { ",\n" });
            // Writing to a string cannot fail.
            let _ = write!(text, "{{ \"Timeline\": {tli}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}");
        }
        text.push_str("\n],\n");
        let sum = Sha256::digest(text.as_bytes());
        text.push_str("\"Manifest-Checksum\": \"");
        text.push_str(&hex(&sum));
        text.push_str("\"}\n");
        text.into_bytes()
    }
}

fn line(file: &ManifestFile, modified: &str) -> String {
    let name = match file.path.as_str() {
        Some(path) => format!("\"Path\": {}", serde_json::Value::from(path)),
        None => format!("\"Encoded-Path\": \"{}\"", hex(file.path.as_bytes())),
    };
    let sum = file.checksum.as_ref().map_or_else(String::new, |sum| {
        format!(", \"Checksum-Algorithm\": \"{}\", \"Checksum\": \"{sum}\"", sum.algorithm())
    });
    format!("{{ {name}, \"Size\": {}, \"Last-Modified\": \"{modified}\"{sum} }}", file.size)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Hasher, ManifestAlgorithm, MemberPath};
    use crate::wal::{Lsn, TimelineId};

    #[test]
    fn what_is_written_is_read() {
        let mut hasher = Hasher::new(ManifestAlgorithm::Crc32c);
        hasher.update(b"x");
        let sum = hasher.finish();
        let file = |path: &[u8], checksum| ManifestFile { path: MemberPath::new(path).unwrap(), size: 7, checksum };
        let files = [file(b"base/1/\"odd\\\n", sum), file(b"caf\xe9", None)];
        let (tli, start, end) = (TimelineId::FIRST, Lsn::new(0x1_0200_0028), Lsn::new(0x1_0300_0000));
        let ranges = [WalRange { tli, start, end }, WalRange { tli, start, end: start }];
        let bytes = Manifest::write(u64::MAX, &files, &ranges, "2026-11-22 05:15:00 GMT");
        let manifest = Manifest::parse(&bytes).unwrap();
        assert_eq!((manifest.files(), manifest.wal_ranges()), (&files[..], &ranges[..]));
        assert_eq!((manifest.version(), manifest.system_identifier()), (2, Some(u64::MAX)));
        assert!(Manifest::parse(&Manifest::write(1, &[], &ranges, "x")).unwrap().files().is_empty());
    }
}
