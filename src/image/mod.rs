//! What a base backup is made of, as the server writes it: tar archives in one closed dialect
//! ([`TarReader`]), the manifest ([`Manifest`]), `backup_label` and `tablespace_map`
//! ([`BackupLabel`], [`TablespaceMap`]), and `pg_control` ([`ControlFile`]).
//!
//! Pure: bytes in, values out; no file, socket or clock. Nothing read here is trusted. A name is a
//! [`MemberPath`] or it is refused, so that nothing can lead out of the directory it is laid down
//! in; every size, count and length is checked before memory is taken; and each reader refuses
//! what a server does not write rather than guessing what it could mean.
//!
//! The order in which they meet, in a backup as in a restore: [`TarReader`] gives members and
//! their bytes, [`Names`] refuses names that clash, a [`Hasher`] of the manifest's algorithm
//! digests each file, [`Comparison`] collects the digests, and when the manifest is there
//! [`Comparison::check`] says whether what was laid out is what the server sent.

mod agreement;
mod control;
mod label;
mod manifest;
mod names;
mod pass;
mod path;
mod tar;

pub use agreement::agreement;
pub use control::{ClusterState, ControlError, ControlFile, WalLevel};
pub use label::{BackupLabel, BackupMethod, BackupSource, LabelError, Tablespace, TablespaceMap, TablespaceMapError};
pub use manifest::{
    Checksum, Compared, Comparison, Difference, Hasher, Manifest, ManifestAlgorithm, ManifestError, ManifestFile,
    UnknownAlgorithm, WalRange,
};
pub use names::{NameClash, Names};
pub use pass::{ArchivePass, PassError};
pub use path::{BadPath, MemberPath, PathFault};
pub use tar::{Added, FeedError, Member, MemberKind, TarEdit, TarEnd, TarError, TarEvent, TarReader};

#[cfg(test)]
mod captured {
    use std::convert::Infallible;
    use std::io::Read;
    use std::path::Path;

    use super::*;
    use crate::codec::{Codec, reader};

    const BASE_13: &[u8] = include_bytes!("../../proto-tests/captured/base-13.tar.zst");
    const BASE_17: &[u8] = include_bytes!("../../proto-tests/captured/base-17.tar.zst");
    const MANIFEST_13: &[u8] = include_bytes!("../../proto-tests/captured/manifest-13.zst");
    const MANIFEST_17: &[u8] = include_bytes!("../../proto-tests/captured/manifest-17.zst");

    fn unpacked(packed: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        reader(Codec::Zstd, packed).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn members(archive: &[u8]) -> (Vec<(Member, Vec<u8>)>, TarEnd) {
        let mut members: Vec<(Member, Vec<u8>)> = Vec::new();
        let mut reader = TarReader::new();
        let mut note = |event: TarEvent<'_>| -> Result<(), Infallible> {
            match (event, members.last_mut()) {
                (TarEvent::Member(member), _) => members.push((member, Vec::new())),
                (TarEvent::Data(more), Some((_, data))) => data.extend(more),
                _ => {}
            }
            Ok(())
        };
        for piece in archive.chunks(1000) {
            reader.feed(piece, &mut note).unwrap();
        }
        let end = reader.finish().unwrap();
        (members, end)
    }

    /// The archives hold the small files of a backup only; each is as the whole manifest lists it.
    fn check(archive: &[u8], manifest: &Manifest) -> (Vec<(Member, Vec<u8>)>, TarEnd) {
        let (members, end) = members(archive);
        let mut names = Names::new();
        let mut odd = 0;
        for (member, data) in &members {
            names.take(member).unwrap();
            let MemberKind::File { size } = member.kind else {
                assert_eq!(manifest.file(&member.path), None);
                continue;
            };
            let listed = manifest.file(&member.path).unwrap();
            let mut hasher = Hasher::new(ManifestAlgorithm::Crc32c);
            hasher.update(data);
            assert_eq!((listed.size, &listed.checksum), (size, &hasher.finish()), "{}", member.path);
            odd += u32::from(member.path.as_bytes() == b"odd\xe9name");
        }
        assert_eq!(odd, 1);
        (members, end)
    }

    fn content<'a>(members: &'a [(Member, Vec<u8>)], name: &str) -> &'a [u8] {
        &members.iter().find(|(member, _)| member.path.as_bytes() == name.as_bytes()).unwrap().1
    }

    fn start(label: &BackupLabel) -> (u64, u32) {
        (label.start.lsn().get(), label.start.tli().get())
    }

    #[test]
    fn a_backup_of_13() {
        let manifest = Manifest::parse(&unpacked(MANIFEST_13)).unwrap();
        assert_eq!((manifest.version(), manifest.files().len()), (1, 939));
        let (members, end) = check(&unpacked(BASE_13), &manifest);
        assert_eq!((end, members.len()), (TarEnd::Open, 202));
        let label = BackupLabel::parse(content(&members, "backup_label")).unwrap();
        assert_eq!((start(&label), label.source), ((0x200_0028, 1), BackupSource::Primary));
        assert_eq!(manifest.wal_ranges()[0].start, label.start.lsn());
        let map = TablespaceMap::parse(content(&members, "tablespace_map")).unwrap();
        assert_eq!(map.location(16384).unwrap(), Path::new("/srv/one13"));
        // What lies in the tablespace is listed by its path through the link.
        let inside = MemberPath::new(b"PG_13_202007201").unwrap().in_tablespace(16384).unwrap();
        assert!(manifest.files().iter().any(|file| file.path.as_bytes().starts_with(inside.as_bytes())));
    }

    #[test]
    fn a_backup_of_17_without_a_tablespace_map() {
        let manifest = Manifest::parse(&unpacked(MANIFEST_17)).unwrap();
        assert_eq!((manifest.version(), manifest.files().len()), (2, 971));
        assert_eq!(manifest.system_identifier(), Some(7_710_964_282_590_451_822));
        let (members, end) = check(&unpacked(BASE_17), &manifest);
        assert_eq!((end, members.len()), (TarEnd::Terminated, 210));
        let label = BackupLabel::parse(content(&members, "backup_label")).unwrap();
        assert_eq!((start(&label), label.label.as_str()), ((0x200_0028, 1), "two\nlines"));
        let kind = |name: &str| {
            let found = members.iter().find(|(member, _)| member.path.as_bytes() == name.as_bytes());
            found.map(|(member, _)| member.kind.clone())
        };
        assert_eq!(kind("pg_tblspc/16384"), Some(MemberKind::Symlink { target: "/srv/one17".into() }));
        assert_eq!(kind("pg_tblspc/16388"), Some(MemberKind::Directory));
        assert_eq!(kind("pg_wal/summaries"), Some(MemberKind::Directory));
    }
}
