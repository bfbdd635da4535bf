//! What a base backup is made of, as the server writes it: tar archives in one closed dialect
//! ([`TarReader`]), the manifest ([`Manifest`]), `backup_label` and `tablespace_map`
//! ([`BackupLabel`], [`TablespaceMap`]), and `pg_control` ([`ControlFile`]).
//!
//! Pure: bytes in, values out; no file, socket or clock, but for the scratch files to which lists go that would not fit
//! in memory ([`crate::spill`]). Nothing read here is trusted. A name is a
//! [`MemberPath`] or it is refused, so that nothing can lead out of the directory it is laid down
//! in; every size, count and length is checked before memory is taken; and each reader refuses
//! what a server does not write rather than guessing what it could mean.
//!
//! The order in which they meet, in a backup as in a restore: [`TarReader`] gives members and
//! their bytes, [`Names`] refuses names that clash, a [`Hasher`] of the manifest's algorithm
//! digests each file, [`Comparison`] collects the digests, and when the manifest is there
//! [`Comparison::check`] says whether what was laid out is what the server sent.

// What comes from outside never ends the program: no read beyond the end, no number that loses bits or overflows.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unwrap_used
    )
)]

mod agreement;
mod control;
mod cuts;
mod fit;
mod incremental;
mod label;
mod left_out;
mod manifest;
mod names;
mod pass;
mod path;
mod tar;

pub use agreement::agreement;
pub use control::{ClusterState, ControlError, ControlFile, WalLevel};
pub use cuts::{Cuts, TooManyCuts};
pub use fit::Misfit;
pub use incremental::{Increment, IncrementReader, IncrementalError, Sought, stands_for};
pub use label::{
    BackupLabel, BackupMethod, BackupSource, LabelError, Tablespace, TablespaceMap, TablespaceMapError, combined_label,
};
pub use left_out::{emptied, holds_data, is_left_out, is_of_database, relations_left_out};
pub use manifest::{
    Checksum, Compared, Comparison, Difference, Hasher, Listed, ListedError, Manifest, ManifestAlgorithm,
    ManifestError, ManifestFile, ManifestHead, ManifestReadError, ManifestWriter, Unequal, UnknownAlgorithm, WalRange,
    read_manifest, relisted,
};
pub use names::{NameClash, Names, NamesError};
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
    use crate::spill::Scratch;

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
        let mut names = Names::new(Scratch::temporary());
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

    /// An archive after `edit`, to which a file is added.
    fn edited(archive: &[u8], mut edit: TarEdit, pieces: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |bytes: &[u8]| -> Result<(), Infallible> {
            out.extend_from_slice(bytes);
            Ok(())
        };
        for piece in archive.chunks(pieces) {
            edit.feed(piece, &mut put).unwrap();
        }
        let added = Added { name: "standby.signal", content: b"", mode: 0o640, mtime: 1_700_000_000 };
        edit.finish(&[added], &mut put).unwrap();
        out
    }

    #[test]
    fn an_archive_is_changed_where_it_is_to_be_and_nowhere_else() {
        for (archive, end) in [(unpacked(BASE_13), TarEnd::Open), (unpacked(BASE_17), TarEnd::Terminated)] {
            let (before, found) = members(&archive);
            assert_eq!(found, end);
            for pieces in [1, 511, 512, 100_000] {
                let edit = TarEdit::new().append("postgresql.auto.conf", b"x = 1\n".to_vec()).omit("PG_VERSION");
                let (after, end) = members(&edited(&archive, edit, pieces));
                assert_eq!(end, TarEnd::Terminated);
                let mut expected = before.clone();
                expected.retain(|(member, _)| member.path.as_bytes() != b"PG_VERSION");
                for (member, content) in &mut expected {
                    if member.path.as_bytes() == b"postgresql.auto.conf" {
                        content.extend(b"x = 1\n");
                        member.kind = MemberKind::File { size: content.len() as u64 };
                    }
                }
                let path = MemberPath::new(b"standby.signal").unwrap();
                let kind = MemberKind::File { size: 0 };
                expected.push((Member { path, kind, mode: 0o640, mtime: 1_700_000_000 }, Vec::new()));
                assert_eq!(after, expected);
            }
            // Nothing but an end, and the file that is added: of the same owner as the others.
            let unchanged = edited(&archive, TarEdit::new(), 1000);
            let data = archive.len() - if end == TarEnd::Terminated { 1024 } else { 0 };
            assert_eq!((unchanged.len(), &unchanged[..data]), (data + 512 + 1024, &archive[..data]));
            assert_eq!(unchanged[data + 108..data + 124], archive[108..124]);
            assert_eq!(unchanged[data + 265..data + 345], archive[265..345]);
        }
    }

    #[test]
    fn a_file_that_did_not_come_is_added_with_what_it_should_have_got() {
        let edit = TarEdit::new().append("not/there.conf", b"x = 1\n".to_vec());
        let (after, _) = members(&edited(&unpacked(BASE_17), edit, 1000));
        assert_eq!(content(&after, "not/there.conf"), b"x = 1\n");
    }

    #[test]
    fn p7_stock_tar_reads_an_archive_of_our_own() {
        let mut out = Vec::new();
        let mut edit = TarEdit::new();
        let big = vec![7; 1000];
        {
            let mut put = |bytes: &[u8]| -> Result<(), Infallible> {
                out.extend_from_slice(bytes);
                Ok(())
            };
            edit.add("one", 1000, 0o600, 1_700_000_000, &mut put).unwrap();
            put(&big).unwrap();
            edit.pad(1000, &mut put).unwrap();
            edit.finish(&[Added { name: "two", content: b"2", mode: 0o600, mtime: 0 }], &mut put).unwrap();
        }
        let (read, end) = members(&out);
        assert_eq!((content(&read, "one"), content(&read, "two"), end), (&big[..], &b"2"[..], TarEnd::Terminated));
        if let Some(listed) = crate::codec::stock("tar", &["tvf", "-"], out) {
            let listed = String::from_utf8(listed).unwrap();
            assert!(listed.contains("1000 ") && listed.contains(" two"), "{listed}");
        }
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
