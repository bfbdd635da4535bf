//! Chains made by hand, of files with a few blocks.

#![allow(clippy::disallowed_methods, reason = "the folders are set up and looked at from outside")]

use std::fs;
use std::path::Path;

use super::super::tests::crash::Case;
use super::super::{Goal, Options, Owner, Plan, lay_down, plan};
use super::*;
use crate::image::{Comparison, Listed, Unequal};
use crate::repository::Which;
use crate::repository::made::{Parts, Thing, write_seal};
use crate::repository::tests::{now, proven, with_wal};
use crate::wal::{Lsn, Truncation};

const BLOCK: usize = 8192;

/// Blocks filled with these bytes.
fn blocks(fill: &[u8]) -> Vec<u8> {
    fill.iter().flat_map(|fill| [*fill; BLOCK]).collect()
}

/// A file of changes as a server writes it.
fn changes(held: &[(u32, u8)], truncation: u32) -> Vec<u8> {
    let words = [0xD3AE_1F0D, held.len() as u32, truncation].into_iter().chain(held.iter().map(|(block, _)| *block));
    let mut bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    if !held.is_empty() {
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    bytes.extend(blocks(&held.iter().map(|(_, fill)| *fill).collect::<Vec<_>>()));
    bytes
}

fn file(name: &'static str, content: Vec<u8>) -> Thing {
    Thing::File(name, content, 0o600)
}

struct Scene {
    top: tempfile::TempDir,
    repository: Repository,
    seals: Vec<Seal>,
}

impl Scene {
    /// A chain of backups with these files in them, the full one first.
    fn new(chain: Vec<Vec<Thing>>) -> Self {
        let top = tempfile::tempdir().unwrap();
        let last = chain.len() - 1;
        let whole = Parts::new();
        let repository = with_wal(&top.path().join("repo"), &whole.log);
        let mut seals: Vec<Seal> = Vec::new();
        for (index, more) in chain.into_iter().enumerate() {
            let mut parts = Parts::new();
            parts.start = whole.start.at(Lsn::new(whole.start.lsn().get() - 8 * (last - index) as u64));
            parts.base.remove(0);
            parts.base.push(file("backup_label", label(&parts, seals.last())));
            parts.base.extend(more);
            let folder = repository.begin_backup(now()).unwrap();
            let mut seal = parts.fill(&folder);
            if let Some(parent) = seals.last() {
                (seal.kind, seal.parent) = (Kind::Incremental, Some(parent.id));
            }
            if index == last {
                let (proof, durable) = proven(&repository, parts.start, parts.stop);
                seal = folder.seal(seal, &proof, &durable).unwrap().seal().clone();
            } else {
                write_seal(&repository, &seal);
            }
            seals.push(seal);
        }
        Self { top, repository, seals }
    }

    fn plan(&self) -> Result<Plan, RestoreError> {
        let options = Options {
            which: Which::Latest,
            target: self.top.path().join("data"),
            mappings: Vec::new(),
            delta: false,
            along: crate::restore::Along::Latest,
            filling: crate::restore::Filling::Restore,
            owner: rustix::process::geteuid().is_root().then_some(Owner { user: 65534, group: 65534 }),
            goal: Goal::EndOfWal,
            program: "/bin/true".into(),
        };
        open_to_all(self.top.path());
        plan(&self.repository, &options)
    }

    fn restore(&self) -> Result<super::super::Restored, RestoreError> {
        lay_down(&self.repository, &self.plan()?, &mut |_| ControlFlow::Continue(()))
    }

    fn read(&self, below: &str) -> Vec<u8> {
        fs::read(self.top.path().join("data").join(below)).unwrap()
    }

    #[track_caller]
    fn refused(&self, words: &str) {
        let refused = self.restore().unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
        assert!(!self.top.path().join("data").exists(), "something is left");
    }
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = if path.is_dir() { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| open_to_all(&entry.unwrap().path()));
    }
}

fn label(parts: &Parts, parent: Option<&Seal>) -> Vec<u8> {
    let size = crate::wal::SegmentSize::new(crate::repository::tests::SIZE).unwrap();
    let (start, segment) = (parts.start.lsn(), crate::wal::Segment::containing(parts.start, size));
    let since = parent.map_or_else(String::new, |parent| {
        let start = parent.start;
        format!("INCREMENTAL FROM LSN: {}\nINCREMENTAL FROM TLI: {}\n", start.lsn(), start.tli())
    });
    format!(
        "START WAL LOCATION: {start} (file {segment})\nCHECKPOINT LOCATION: {start}\nBACKUP METHOD: streamed\n\
         BACKUP FROM: primary\nSTART TIME: 2026-11-22 05:15:00 UTC\nLABEL: x\nSTART TIMELINE: 1\n{since}"
    )
    .into_bytes()
}

#[test]
fn a_chain_becomes_the_full_backup_that_it_amounts_to() {
    let scene = Scene::new(vec![
        vec![
            file("base/5/1", blocks(&[1, 2, 3, 4, 5, 6])),
            file("base/5/2", blocks(&[1, 2])),
            file("base/5/3", blocks(&[8, 8, 8])),
            file("base/5/4", blocks(&[9])),
            file("base/5/gone", blocks(&[1])),
        ],
        vec![
            file("base/5/INCREMENTAL.1", changes(&[(0, 11), (4, 15)], 4)),
            file("base/5/INCREMENTAL.2", changes(&[], 2)),
            file("base/5/3", blocks(&[7, 7])),
            file("base/5/INCREMENTAL.4", changes(&[], 1)),
        ],
        vec![
            file("base/5/INCREMENTAL.1", changes(&[(1, 22), (8, 28)], 7)),
            file("base/5/INCREMENTAL.2", changes(&[], 2)),
            file("base/5/INCREMENTAL.3", changes(&[(0, 6)], 4)),
            file("base/5/INCREMENTAL.4", changes(&[], 3)),
            file("base/5/new", blocks(&[3])),
        ],
    ]);
    let restored = scene.restore().unwrap();
    // Block 5 was cut off and is zeros since; 4 was brought behind the cut; 7 nobody has.
    assert!(scene.read("base/5/1") == blocks(&[11, 22, 3, 4, 15, 0, 0, 0, 28]));
    assert!(scene.read("base/5/2") == blocks(&[1, 2]));
    assert!(scene.read("base/5/3") == blocks(&[6, 7, 0, 0]));
    assert!(scene.read("base/5/4") == blocks(&[9, 0, 0]));
    assert!(scene.read("base/5/new") == blocks(&[3]));
    assert!(!scene.top.path().join("data/base/5/gone").exists());
    let label = String::from_utf8(scene.read("backup_label")).unwrap();
    assert!(label.ends_with("START TIMELINE: 1\n"), "{label}");
    let content = scene.read("backup_manifest");
    let (manifest, scratch) = (Manifest::parse(&content).unwrap(), Scratch::temporary());
    let mut comparison = Comparison::new(scratch.clone());
    for listed in manifest.files().iter().filter(|file| file.path.as_bytes() != b"postgresql.auto.conf") {
        let content = scene.read(listed.path.as_str().unwrap());
        let mut hasher = Hasher::new(ManifestAlgorithm::Crc32c);
        hasher.update(&content);
        comparison.add(listed.path.clone(), content.len() as u64, hasher.finish());
    }
    let unequal = comparison.check(Listed::read(&mut &*content, content.len() as u64, scratch).unwrap()).unwrap_err();
    assert!(matches!(unequal, Unequal::Files { others: 0, .. }), "but for what is configured: {unequal}");
    assert_eq!(restored.compared.files, manifest.files().len() as u64);
    assert_eq!(manifest.system_identifier(), Some(scene.repository.system_id()));
}

/// P3: a chain is laid down as one backup is.
#[test]
fn p3_the_combining_of_a_chain_is_cut_off_anywhere() {
    let scene = Scene::new(vec![
        vec![file("base/5/1", blocks(&[1, 2, 3, 4])), file("base/5/2", blocks(&[1, 2]))],
        vec![file("base/5/INCREMENTAL.1", changes(&[(0, 11)], 4)), file("base/5/INCREMENTAL.2", changes(&[], 2))],
        vec![file("base/5/INCREMENTAL.1", changes(&[(3, 22)], 4)), file("base/5/new", blocks(&[3]))],
    ]);
    let case = Case::new(scene.top.path(), scene.plan().unwrap());
    case.is_cut_off_anywhere();
    case.starts_nothing_whatever_call_fails();
}

/// Whole, then changes that reach over where the file was cut off: what is behind the cut is the later backup's, or
/// zeros.
#[test]
fn p3_what_was_cut_off_does_not_come_back() {
    let cut =
        |main, relation, blocks| Truncation { tablespace: 1663, database: 5, relation, blocks, main, visibility: true };
    let files = || {
        vec![
            vec![
                file("base/5/1", blocks(&[1, 2, 3, 4, 5, 6])),
                file("base/5/1_vm", blocks(&[9])),
                file("base/5/2", blocks(&[1, 2, 3, 4, 5, 6])),
                file("base/5/2_vm", blocks(&[9])),
                file("base/5/3", blocks(&[1, 2])),
                file("base/5/4.1", blocks(&[1, 2])),
            ],
            vec![
                file("base/5/INCREMENTAL.1", changes(&[(0, 11), (4, 15)], 6)),
                file("base/5/INCREMENTAL.1_vm", changes(&[], 1)),
                file("base/5/INCREMENTAL.2", changes(&[(1, 22), (5, 26)], 6)),
                file("base/5/INCREMENTAL.2_vm", changes(&[(0, 8)], 1)),
                file("base/5/INCREMENTAL.3", changes(&[], 2)),
                file("base/5/INCREMENTAL.4.1", changes(&[], 2)),
            ],
            vec![
                file("base/5/INCREMENTAL.1", changes(&[(3, 34)], 6)),
                file("base/5/INCREMENTAL.1_vm", changes(&[], 1)),
                file("base/5/INCREMENTAL.2", changes(&[(3, 34)], 6)),
                file("base/5/INCREMENTAL.2_vm", changes(&[], 1)),
                file("base/5/INCREMENTAL.3", changes(&[], 2)),
                file("base/5/INCREMENTAL.4.1", changes(&[], 2)),
            ],
        ]
    };
    let mut scene = Scene::new(files());
    // The first in the middle of the chain, the second at its end, the last in the file before.
    scene.seals[1].cuts.note(&cut(true, 1, 2)).unwrap();
    scene.seals[2].cuts.note(&cut(true, 2, 2)).unwrap();
    scene.seals[1].cuts.note(&cut(false, 3, 1)).unwrap();
    scene.seals[1].cuts.note(&cut(true, 4, 100)).unwrap();
    scene.seals.iter().for_each(|seal| write_seal(&scene.repository, seal));
    scene.restore().unwrap();
    assert!(scene.read("base/5/1") == blocks(&[11, 2, 0, 34, 15, 0]));
    assert!(scene.read("base/5/1_vm") == blocks(&[0]));
    assert!(scene.read("base/5/2") == blocks(&[1, 22, 0, 34, 0, 0]));
    assert!(scene.read("base/5/2_vm") == blocks(&[0]));
    assert!(scene.read("base/5/3") == blocks(&[1, 2]), "its map alone was cut off");
    assert!(scene.read("base/5/4.1") == blocks(&[0, 0]));
    let (manifest, path) = (Manifest::parse(&scene.read("backup_manifest")).unwrap(), MemberPath::new(b"base/5/4.1"));
    let mut hasher = Hasher::new(ManifestAlgorithm::Crc32c);
    hasher.update(&blocks(&[0, 0]));
    assert_eq!(manifest.file(&path.unwrap()).unwrap().checksum, hasher.finish());
    // Without the cuts all would be as the files say.
    let scene = Scene::new(files());
    scene.restore().unwrap();
    assert!(scene.read("base/5/1") == blocks(&[11, 2, 3, 34, 15, 6]));
}

#[test]
fn p3_what_does_not_fit_is_refused_and_nothing_left() {
    let whole = || vec![file("base/5/1", blocks(&[1, 2]))];
    let changed = |content: Vec<u8>| vec![file("base/5/INCREMENTAL.1", content)];
    Scene::new(vec![vec![], changed(changes(&[], 2))]).refused("has no \"base/5/1\"");
    Scene::new(vec![whole(), vec![], changed(changes(&[], 2))]).refused("has no \"base/5/1\"");
    let only_changes = vec![changed(changes(&[], 2)), changed(changes(&[], 2))];
    Scene::new(only_changes).refused("has no \"base/5/1\"");
    let twice = [whole(), changed(changes(&[], 2))].into_iter().flatten().collect();
    Scene::new(vec![whole(), twice, changed(changes(&[], 2))]).refused("twice");
    Scene::new(vec![whole(), changed(changes(&[], 131_073))]).refused("more than a file has");
    Scene::new(vec![whole(), changed(vec![1; 12])]).refused("does not begin as an incremental file does");
    Scene::new(vec![whole(), changed(changes(&[], 2)[..11].to_vec())]).refused("cut short");
    // Blocks of another size.
    let mut other = changes(&[(0, 1)], 2);
    other.truncate(4096 + 4096);
    Scene::new(vec![whole(), changed(other)]).refused("has other blocks");
}

/// The parent of that name is another backup than the one that the server was given.
#[test]
fn p3_changes_since_another_backup_are_refused() {
    let mut scene = Scene::new(vec![
        vec![file("base/5/1", blocks(&[1]))],
        vec![file("base/5/INCREMENTAL.1", changes(&[], 1))],
        vec![file("base/5/INCREMENTAL.1", changes(&[], 1))],
    ]);
    let first = scene.seals[0].id;
    let last = scene.seals.last_mut().unwrap();
    last.parent = Some(first);
    write_seal(&scene.repository, last);
    scene.refused("holds the changes since");
}

/// A damaged file of any backup of the chain.
#[test]
fn p3_every_backup_is_compared_with_its_own_manifest() {
    for index in 0..3 {
        let scene = Scene::new(vec![
            vec![file("base/5/1", blocks(&[1, 2, 3]))],
            vec![file("base/5/INCREMENTAL.1", changes(&[(0, 9)], 3))],
            vec![file("base/5/INCREMENTAL.1", changes(&[(1, 9)], 3))],
        ]);
        let path = scene.repository.backup_dir(scene.seals[index].id).join("base.tar.zst");
        let mut tar = fs::read(&path).unwrap();
        let middle = tar.len() / 2;
        tar[middle] ^= 1;
        fs::write(&path, tar).unwrap();
        scene.refused(&format!("backup {} cannot be restored", scene.seals[index].id));
    }
}
