//! A whole backup made by hand, for the tests of what reads one.

#![allow(clippy::disallowed_methods, reason = "the folders are set up and damaged from outside")]

use std::fs;
use std::path::Path;

use super::tests::{add_file, log_with_backup, now, proven, seal_of, with_wal};
use super::*;
use crate::image::{Hasher, ManifestAlgorithm};
use crate::wal::Pos;
use crate::wal::chain::built::Log;

/// Of the cluster that the tests' repositories are of.
pub(crate) const CONTROL: &[u8] = include_bytes!("../../proto-tests/captured/pg_control-15");

pub(crate) enum Thing {
    File(&'static str, Vec<u8>, u32),
    Dir(&'static str),
    Link(&'static str, &'static str),
}

/// What a backup is made of; change it before it is made.
pub(crate) struct Parts {
    pub(crate) base: Vec<Thing>,
    /// Object id, location, content.
    pub(crate) tablespaces: Vec<(u32, String, Vec<Thing>)>,
    /// Whether the manifest lists what the archives hold, whatever that is.
    pub(crate) start: Pos,
    pub(crate) stop: Pos,
    pub(crate) log: Log,
}

impl Parts {
    pub(crate) fn new() -> Self {
        let (log, start, stop) = log_with_backup();
        let label = format!(
            "START WAL LOCATION: {} (file {})\nCHECKPOINT LOCATION: {}\nBACKUP METHOD: streamed\n\
             BACKUP FROM: primary\nSTART TIME: 2026-11-22 05:15:00 UTC\nLABEL: x\nSTART TIMELINE: 1\n",
            start.lsn(),
            crate::wal::Segment::containing(start, SegmentSize::new(tests::SIZE).unwrap()),
            start.lsn(),
        );
        let base = vec![
            Thing::File("backup_label", label.into_bytes(), 0o600),
            Thing::File("PG_VERSION", b"17\n".to_vec(), 0o600),
            Thing::Dir("base"),
            Thing::Dir("base/5"),
            Thing::File("base/5/1259", vec![7; 300_000], 0o600),
            Thing::File("base/5/empty", Vec::new(), 0o600),
            Thing::Dir("pg_tblspc"),
            Thing::Dir("pg_wal"),
            Thing::Dir("global"),
            Thing::File("postgresql.conf", b"port = 5432\n".to_vec(), 0o600),
            Thing::File("postgresql.auto.conf", b"# auto\n".to_vec(), 0o600),
            Thing::File("global/pg_control", CONTROL.to_vec(), 0o600),
        ];
        Self { base, tablespaces: Vec::new(), start, stop, log }
    }

    pub(crate) fn with_tablespace(mut self, oid: u32, location: &str) -> Self {
        let map: String = self
            .tablespaces
            .iter()
            .map(|(oid, at, _)| format!("{oid} {at}\n"))
            .chain([format!("{oid} {location}\n")])
            .collect();
        self.base.retain(|thing| !matches!(thing, Thing::File("tablespace_map", ..)));
        self.base.push(Thing::File("tablespace_map", map.into_bytes(), 0o600));
        let inside = vec![Thing::Dir("PG_17"), Thing::File("PG_17/1", vec![1; 5000], 0o600)];
        self.tablespaces.push((oid, location.to_owned(), inside));
        self
    }

    /// A repository with the WAL and the sealed backup.
    pub(crate) fn make(self, dir: &Path) -> (Repository, Seal) {
        let repository = with_wal(dir, &self.log);
        let (proof, durable) = proven(&repository, self.start, self.stop);
        let folder = repository.begin_backup(now()).unwrap();
        let seal = self.fill(&folder);
        let sealed = folder.seal(seal, &proof, &durable).unwrap();
        (repository, sealed.seal().clone())
    }

    pub(crate) fn fill(&self, folder: &BackupFolder) -> Seal {
        let mut files = Vec::new();
        let mut archive = |name: &str, things: &[Thing]| {
            let tar = tar(things);
            let packed = zstd::encode_all(&tar[..], 1).unwrap();
            let mut file = add_file(folder, name, &packed);
            file.unpacked = Some(tar.len() as u64);
            files.push(file);
        };
        archive("base.tar.zst", &self.base);
        for (oid, _, things) in &self.tablespaces {
            archive(&format!("{oid}.tar.zst"), things);
        }
        files.push(add_file(folder, Seal::MANIFEST, &self.manifest()));
        let mut seal = seal_of(folder.id(), self.start, self.stop, files);
        let tablespace = |(oid, at, _): &(u32, String, _)| SealedTablespace { oid: *oid, location: at.clone() };
        seal.tablespaces = self.tablespaces.iter().map(tablespace).collect();
        seal
    }

    fn manifest(&self) -> Vec<u8> {
        let inside = self.tablespaces.iter().map(|(oid, _, things)| (Some(*oid), things.as_slice()));
        let all: Vec<_> = [(None, self.base.as_slice())].into_iter().chain(inside).collect();
        manifest(&all, self.start, self.stop)
    }
}

/// The manifest of what the data directory and the tablespaces hold.
pub(crate) fn manifest(all: &[(Option<u32>, &[Thing])], start: Pos, stop: Pos) -> Vec<u8> {
    let mut lines = Vec::new();
    for (tablespace, things) in all {
        let above = tablespace.map_or_else(String::new, |oid| format!("pg_tblspc/{oid}/"));
        lines.extend(things.iter().filter_map(|thing| match thing {
            Thing::File(name, content, _) => Some(line(&format!("{above}{name}"), content)),
            _ => None,
        }));
    }
    let mut text = format!(
        "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{}\n],\n\"WAL-Ranges\": [\n\
         {{ \"Timeline\": 1, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}\n],\n",
        lines.join(",\n"),
        start.lsn(),
        stop.lsn()
    );
    let sum = Sha256Sum::of(text.as_bytes());
    text.push_str(&format!("\"Manifest-Checksum\": \"{sum}\"}}\n"));
    text.into_bytes()
}

fn line(path: &str, content: &[u8]) -> String {
    let mut hasher = Hasher::new(ManifestAlgorithm::Crc32c);
    hasher.update(content);
    let (size, sum) = (content.len(), hasher.finish().unwrap());
    format!(
        "{{ \"Path\": \"{path}\", \"Size\": {size}, \"Last-Modified\": \"x\", \
         \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{sum}\" }}"
    )
}

/// Writes the new content of a file over the sealed one, and the seal that goes with it.
pub(crate) fn reseal(repository: &Repository, seal: &mut Seal, name: &str, content: &[u8]) {
    let dir = repository.backup_dir(seal.id);
    fs::write(dir.join(name), content).unwrap();
    let file = seal.files.iter_mut().find(|file| file.name == name).unwrap();
    (file.size, file.sha256, file.unpacked) = (content.len() as u64, Sha256Sum::of(content), None);
    write_seal(repository, seal);
}

pub(crate) fn write_seal(repository: &Repository, seal: &Seal) {
    fs::write(repository.backup_dir(seal.id).join("backup.json"), write(seal).unwrap()).unwrap();
}

pub(crate) fn tar(things: &[Thing]) -> Vec<u8> {
    let mut out = Vec::new();
    for thing in things {
        let (name, kind, mode, content, link): (String, u8, u32, &[u8], &str) = match thing {
            Thing::File(name, content, mode) => ((*name).to_owned(), b'0', *mode, content, ""),
            Thing::Dir(name) => (format!("{name}/"), b'5', 0o700, b"", ""),
            Thing::Link(name, to) => (format!("{name}/"), b'2', 0o777, b"", to),
        };
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, format!("{mode:07o} ").as_bytes());
        put(108, b"0004000 0002000 ");
        put(124, format!("{:011o} ", content.len()).as_bytes());
        put(136, b"15267613423         ");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000postgres");
        put(297, b"postgres");
        put(329, b"0000000 0000000 ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend(header);
        out.extend(content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.extend([0; 1024]);
    out
}
