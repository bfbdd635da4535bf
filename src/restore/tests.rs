//! Plans and layings down of hand-made backups.

#![allow(clippy::disallowed_methods, reason = "the folders are set up and damaged from outside")]

pub(super) mod crash;
mod point;

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use super::*;
use crate::repository::made::{Parts, Thing, reseal, tar, write_seal};
use crate::repository::tests::{SIZE, SYSTEM};
use crate::repository::{Repository, Seal};
use crate::wal::chain::built::Log;
use crate::wal::{Pos, Segment, SegmentSize, TimelineId};

const NOBODY: Owner = Owner { user: 65534, group: 65534 };

struct Scene {
    top: tempfile::TempDir,
    repository: Repository,
    seal: Seal,
}

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Scene {
    fn new(parts: Parts) -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::set_permissions(top.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (repository, seal) = parts.make(&top.path().join("repo"));
        give_away(repository.dir());
        Self { top, repository, seal }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.top.path().join(below)
    }

    fn options(&self) -> Options {
        Options {
            which: Which::Latest,
            target: self.path("data"),
            mappings: Vec::new(),
            delta: false,
            owner: root().then_some(NOBODY),
            goal: Goal::EndOfWal,
            along: Along::Latest,
            filling: Filling::Restore,
            program: "/bin/true".into(),
        }
    }

    fn plan(&self) -> Result<Plan, RestoreError> {
        plan(&self.repository, &self.options())
    }

    fn restore(&self, options: &Options) -> Result<(Plan, Restored), RestoreError> {
        let plan = plan(&self.repository, options)?;
        let restored = lay_down(&self.repository, &plan, &mut |_| ControlFlow::Continue(()))?;
        Ok((plan, restored))
    }

    fn read(&self, below: &str) -> String {
        String::from_utf8(fs::read(self.path(below)).unwrap()).unwrap()
    }

    /// Everything below the top that is not the repository.
    fn all(&self) -> Vec<String> {
        let mut names = Vec::new();
        walk(self.top.path(), "", &mut names);
        names.retain(|name| !name.starts_with("repo"));
        names
    }
}

fn walk(dir: &Path, above: &str, names: &mut Vec<String>) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(Result::unwrap).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = format!("{above}{}", entry.file_name().into_string().unwrap());
        names.push(name.clone());
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), &format!("{name}/"), names);
        }
    }
}

/// The server's user has to be able to read the repository.
fn give_away(path: &Path) {
    if !root() {
        return;
    }
    chown(path, Some(NOBODY.user), Some(NOBODY.group)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| give_away(&entry.unwrap().path()));
    }
}

#[test]
fn a_backup_is_laid_down_ready_to_recover() {
    let scene = Scene::new(Parts::new());
    let (plan, restored) = scene.restore(&scene.options()).unwrap();
    assert_eq!(restored.compared.files, 7);
    assert_eq!(restored.notes, Vec::<String>::new());
    assert_eq!(
        scene.all(),
        [
            "data",
            "data/PG_VERSION",
            "data/backup_label",
            "data/backup_manifest",
            "data/base",
            "data/base/5",
            "data/base/5/1259",
            "data/base/5/empty",
            "data/global",
            "data/global/pg_control",
            "data/pg_tblspc",
            "data/pg_wal",
            "data/postgresql.auto.conf",
            "data/postgresql.conf",
            "data/recovery.signal",
        ]
    );
    assert_eq!(fs::read(scene.path("data/base/5/1259")).unwrap(), vec![7; 300_000]);
    assert_eq!(fs::read(scene.path("data/global/pg_control")).unwrap(), crate::repository::made::CONTROL);
    let manifest = scene.repository.backup_dir(scene.seal.id).join("backup_manifest");
    assert_eq!(fs::read(scene.path("data/backup_manifest")).unwrap(), fs::read(manifest).unwrap());
    let expected = format!(
        "# auto\n\n# Added by walhold restore\n\
         restore_command = '\"/bin/true\" wal-get --repo \"{}\" --timeline 1 %f \"%p\"'\n\
         recovery_target_timeline = '1'\n",
        scene.path("repo").display()
    );
    assert_eq!(scene.read("data/postgresql.auto.conf"), expected);
    assert_eq!(plan.wal.last_segment, "000000010000000000000006");
    for below in scene.all() {
        let meta = fs::symlink_metadata(scene.path(&below)).unwrap();
        assert_eq!(meta.mode() & 0o7777, if meta.is_dir() { 0o700 } else { 0o600 }, "{below}");
        if root() {
            assert_eq!((meta.uid(), meta.gid()), (NOBODY.user, NOBODY.group), "{below}");
        }
    }
}

#[test]
fn a_restore_that_is_broken_off_leaves_nothing() {
    let scene = Scene::new(Parts::new());
    let plan = scene.plan().unwrap();
    for at in [RestoreEvent::Progress { done: 0, total: 0 }, RestoreEvent::Syncing] {
        let stopped = lay_down(&scene.repository, &plan, &mut |event| {
            let there = std::mem::discriminant(&event) == std::mem::discriminant(&at);
            if there { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(stopped, Err(RestoreError::Stopped)), "{stopped:?}");
        assert!(!scene.path("data").exists());
    }
}

/// A server must not start on a restore that was cut off: the file it looks for first comes last.
#[test]
fn p3_a_restore_that_is_cut_off_cannot_be_started() {
    let scene = Scene::new(Parts::new());
    let plan = scene.plan().unwrap();
    let mut told = Vec::new();
    lay_down(&scene.repository, &plan, &mut |event| {
        assert!(!scene.path("data/global/pg_control").exists());
        told.push(event);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(told.last(), Some(&RestoreEvent::Syncing));
    let total = told.iter().find_map(|event| match event {
        RestoreEvent::Progress { done, total } if done == total => Some(*total),
        _ => None,
    });
    assert!(total.is_some_and(|total| total > 300_000), "{told:?}");
    assert!(scene.path("data/global/pg_control").exists());
}

#[test]
fn a_standby_follows_its_primary() {
    let mut parts = Parts::new();
    parts.base.push(Thing::File("recovery.signal", Vec::new(), 0o600));
    let scene = Scene::new(parts);
    let mut options = scene.options();
    options.goal = Goal::Standby { primary_conninfo: Some("host='a b'".to_owned()), primary_slot: None };
    scene.restore(&options).unwrap();
    let conf = scene.read("data/postgresql.auto.conf");
    assert!(conf.contains("recovery_target_timeline = 'latest'\nprimary_conninfo = 'host=''a b'''\n"), "{conf}");
    assert!(!conf.contains("--timeline"), "{conf}");
    assert!(scene.path("data/standby.signal").exists() && !scene.path("data/recovery.signal").exists());
}

#[test]
fn settings_that_matter_are_told_and_targets_reset() {
    let mut parts = Parts::new();
    parts.base.retain(|thing| !matches!(thing, Thing::File("postgresql.conf" | "standby.signal", ..)));
    let conf = b"synchronous_standby_names = 'walhold'\nrecovery_target_time = '2020-01-01'\n";
    parts.base.push(Thing::File("postgresql.conf", conf.to_vec(), 0o600));
    parts.base.push(Thing::File("standby.signal", Vec::new(), 0o600));
    let scene = Scene::new(parts);
    let (_, restored) = scene.restore(&scene.options()).unwrap();
    assert!(restored.notes.iter().any(|note| note.contains("synchronous_standby_names is 'walhold'")));
    assert!(restored.notes.iter().any(|note| note.contains("recovery_target_time was set")));
    assert!(scene.read("data/postgresql.auto.conf").ends_with("recovery_target_time = ''\n"));
    assert!(scene.path("data/recovery.signal").exists() && !scene.path("data/standby.signal").exists());
}

#[test]
fn tablespaces_go_where_they_were_or_are_sent() {
    let scene_at = tempfile::tempdir().unwrap();
    fs::set_permissions(scene_at.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let old = scene_at.path().join("one").display().to_string();
    let scene = Scene::new(Parts::new().with_tablespace(16385, &old).with_tablespace(16390, "/srv/of/the/server"));
    let mut options = scene.options();
    options.mappings = vec![Mapping { old: "/srv/of/the/server".into(), new: scene.path("two/deep") }];
    fs::create_dir(scene_at.path().join("one")).unwrap();
    let (plan, _) = scene.restore(&options).unwrap();
    assert_eq!(plan.tablespaces.iter().map(PlannedTablespace::moves).collect::<Vec<_>>(), [false, true]);
    let link = |oid: u32| fs::read_link(scene.path(&format!("data/pg_tblspc/{oid}"))).unwrap();
    assert_eq!((link(16385), link(16390)), (scene_at.path().join("one"), scene.path("two/deep")));
    assert_eq!(fs::read(scene.path("two/deep/PG_17/1")).unwrap(), vec![1; 5000]);
    assert_eq!(fs::read(scene_at.path().join("one/PG_17/1")).unwrap(), vec![1; 5000]);
    let map = scene.read("data/tablespace_map");
    assert_eq!(map, format!("16385 {old}\n16390 {}\n", scene.path("two/deep").display()));
}

#[test]
fn a_map_is_left_as_it_was_if_nothing_moves() {
    let other = tempfile::tempdir().unwrap();
    let old = other.path().join("a\\b").display().to_string();
    let scene = Scene::new(Parts::new().with_tablespace(16385, &old.replace('\\', "")));
    scene.restore(&scene.options()).unwrap();
    assert_eq!(scene.read("data/tablespace_map"), format!("16385 {}\n", old.replace('\\', "")));
}

#[test]
fn in_place_tablespaces_stay_inside() {
    let mut parts = Parts::new().with_tablespace(16385, "pg_tblspc/16385");
    parts.base.retain(|thing| !matches!(thing, Thing::File("tablespace_map", ..)));
    let scene = Scene::new(parts);
    scene.restore(&scene.options()).unwrap();
    assert_eq!(fs::read(scene.path("data/pg_tblspc/16385/PG_17/1")).unwrap(), vec![1; 5000]);
    assert!(!fs::symlink_metadata(scene.path("data/pg_tblspc/16385")).unwrap().is_symlink());
}

/// P3: for each segment that the backup needs, without it the plan refuses and nothing is written.
#[test]
fn p3_without_any_needed_segment_the_plan_refuses_and_writes_nothing() {
    let scene = Scene::new(Parts::new());
    let size = SegmentSize::new(SIZE).unwrap();
    let last = Pos::new(scene.seal.stop.tli(), Lsn::new(scene.seal.stop.lsn().get() - 1));
    let (first, last) = (Segment::containing(scene.seal.start, size), Segment::containing(last, size));
    assert!(last.no() > first.no());
    for no in first.no()..=last.no() {
        let segment = Segment::containing(scene.seal.stop.at(Lsn::new(no * SIZE)), size);
        let path = scene.path("repo/wal").join(segment.name());
        let content = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let before = snapshot(scene.top.path());
        let refused = scene.restore(&scene.options()).unwrap_err();
        let expected = format!(
            "backup {} cannot be restored: segment {segment} is missing; the backup needs {} to {}",
            scene.seal.id,
            scene.seal.start.lsn(),
            scene.seal.stop.lsn()
        );
        assert_eq!(refused.to_string(), expected);
        assert!(!scene.path("data").exists());
        let mut damaged = content.clone();
        damaged[200_000] ^= 1;
        fs::write(&path, &damaged).unwrap();
        let refused = scene.plan().unwrap_err();
        assert!(matches!(refused, RestoreError::NotProven { source: NotProven::Invalid { .. }, .. }), "{refused}");
        fs::remove_file(&path).unwrap();
        assert_eq!(snapshot(scene.top.path()), before);
        fs::write(&path, &content).unwrap();
        scene.plan().unwrap();
    }
}

fn snapshot(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    walk(dir, "", &mut names);
    names
}

#[test]
fn p3_a_damaged_backup_is_refused_and_leaves_nothing() {
    for (name, at) in [("base.tar.zst", 20), ("base.tar.zst", 400), ("backup_manifest", 100)] {
        let scene = Scene::new(Parts::new());
        let path = scene.repository.backup_dir(scene.seal.id).join(name);
        let mut content = fs::read(&path).unwrap();
        content[at] ^= 1;
        fs::write(&path, &content).unwrap();
        let refused = scene.restore(&scene.options()).unwrap_err();
        assert!(matches!(refused, RestoreError::Content { .. }), "{refused}");
        assert!(refused.to_string().contains(name), "{refused}");
        assert_eq!(scene.all(), Vec::<String>::new());
        // A directory that was there is there still, and empty.
        fs::create_dir(scene.path("data")).unwrap();
        scene.restore(&scene.options()).unwrap_err();
        assert_eq!(scene.all(), ["data"]);
        fs::write(&path, &content[1..]).unwrap();
        assert!(scene.plan().unwrap_err().to_string().contains("bytes; the seal says"));
        fs::remove_file(&path).unwrap();
        assert!(scene.plan().unwrap_err().to_string().contains("is missing"));
    }
}

/// P3: what the manifest lists is what is laid down, even if the archive is whole and sealed.
#[test]
fn p3_files_are_held_against_the_manifest() {
    let changed = |change: &dyn Fn(&mut Vec<Thing>), expected: &str| {
        let scene = Scene::new(Parts::new());
        let mut seal = scene.seal.clone();
        let mut base = Parts::new().base;
        change(&mut base);
        reseal(&scene.repository, &mut seal, "base.tar.zst", &zstd::encode_all(&tar(&base)[..], 1).unwrap());
        let refused = scene.restore(&scene.options()).unwrap_err();
        assert!(refused.to_string().contains(expected), "{refused} is not about {expected}");
        assert_eq!(scene.all(), Vec::<String>::new());
    };
    let drop_file =
        |base: &mut Vec<Thing>, gone: &str| base.retain(|t| !matches!(t, Thing::File(name, ..) if *name == gone));
    changed(&|base| drop_file(base, "base/5/1259"), "\"base/5/1259\" is in the manifest and not in the backup");
    changed(&|base| base.push(Thing::File("x", vec![], 0o600)), "\"x\" is in the backup and not in the manifest");
    changed(
        &|base| {
            drop_file(base, "base/5/1259");
            base.push(Thing::File("base/5/1259", vec![8; 300_000], 0o600));
        },
        "has CRC32C",
    );
    changed(
        &|base| {
            drop_file(base, "backup_label");
        },
        "backup_label",
    );
}

/// P6: nothing in an archive makes anything outside the target.
#[test]
fn p6_nothing_is_written_outside_the_target() {
    let outside = tempfile::tempdir().unwrap();
    let leaked: &'static str = Box::leak(outside.path().display().to_string().into_boxed_str());
    let hostile = |things: Vec<Thing>, expected: &str| {
        let scene = Scene::new(Parts::new());
        let mut seal = scene.seal.clone();
        let mut base = Parts::new().base;
        base.extend(things);
        reseal(&scene.repository, &mut seal, "base.tar.zst", &zstd::encode_all(&tar(&base)[..], 1).unwrap());
        let refused = scene.restore(&scene.options()).unwrap_err();
        assert!(refused.to_string().contains(expected), "{refused} is not about {expected}");
        assert_eq!(scene.all(), Vec::<String>::new());
        assert_eq!(snapshot(outside.path()), Vec::<String>::new());
    };
    let file = |name| Thing::File(name, b"x".to_vec(), 0o4777);
    hostile(vec![file("../escape")], "leads upwards");
    hostile(vec![file("/etc/escape")], "is absolute");
    hostile(vec![Thing::Link("link", leaked)], "symbolic link");
    hostile(vec![Thing::Link("pg_tblspc/16385", leaked), file("pg_tblspc/16385/x")], "symbolic link");
    hostile(vec![file("base/5/1259")], "two members");
    hostile(vec![file("global/pg_control.unfinished")], "no server makes");
    hostile(vec![file("PG_VERSION/x")], "below a file");
}

/// P6: a size that lies, however large, takes neither memory nor room, and nothing is left of it.
#[test]
fn p6_sizes_that_lie_are_refused() {
    let octal = |size: u64| format!("{size:011o} ").into_bytes();
    let binary = |size: u64| [&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat();
    for (size, expected) in [
        (octal(10), "the padding after \"base/5/1259\" is not zeros"),
        (octal(0), "has no valid checksum"),
        (octal(100 << 20), "in the middle of \"base/5/1259\""),
        (binary(i64::MAX as u64), "in the middle of \"base/5/1259\""),
        (binary(1 << 63), "no valid size"),
        (binary(u64::MAX), "no valid size"),
    ] {
        let scene = Scene::new(Parts::new());
        let mut seal = scene.seal.clone();
        let mut archive = tar(&Parts::new().base);
        let at = archive.chunks(512).position(|block| block.starts_with(b"base/5/1259\0")).unwrap() * 512;
        archive[at + 124..at + 136].copy_from_slice(&size);
        archive[at + 148..at + 156].fill(b' ');
        let sum: u32 = archive[at..at + 512].iter().map(|byte| u32::from(*byte)).sum();
        archive[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        reseal(&scene.repository, &mut seal, "base.tar.zst", &zstd::encode_all(&archive[..], 1).unwrap());
        let refused = scene.restore(&scene.options()).unwrap_err();
        assert!(refused.to_string().contains(expected), "{refused} is not about {expected}");
        assert_eq!(scene.all(), Vec::<String>::new());
    }
}

#[test]
fn targets_that_are_in_use_are_refused() {
    let scene = Scene::new(Parts::new().with_tablespace(16385, "/srv/t1").with_tablespace(16386, "/srv/t2"));
    let with = |change: &dyn Fn(&mut Options)| {
        let mut options = scene.options();
        options.mappings = vec![
            Mapping { old: "/srv/t1".into(), new: scene.path("t1") },
            Mapping { old: "/srv/t2".into(), new: scene.path("t2") },
        ];
        change(&mut options);
        let before = snapshot(scene.top.path());
        let planned = plan(&scene.repository, &options);
        assert_eq!(snapshot(scene.top.path()), before);
        planned
    };
    with(&|_| {}).unwrap();
    fs::create_dir(scene.path("full")).unwrap();
    fs::write(scene.path("full/x"), "").unwrap();
    std::os::unix::fs::symlink(scene.path("nowhere"), scene.path("dangling")).unwrap();
    std::os::unix::fs::symlink(scene.path("repo"), scene.path("alias")).unwrap();
    for target in ["full", "full/x", "dangling"] {
        let refused = with(&|options| options.target = scene.path(target)).unwrap_err();
        assert!(matches!(refused, RestoreError::NotEmpty(_)), "{refused}");
        let refused = with(&|options| options.mappings[1].new = scene.path(target)).unwrap_err();
        assert!(matches!(refused, RestoreError::NotEmpty(_)), "{refused}");
    }
    for target in ["repo/data", "alias/data", "alias/backups/new/deep"] {
        let refused = with(&|options| options.target = scene.path(target)).unwrap_err();
        assert!(matches!(refused, RestoreError::InRepository(_)), "{refused}");
    }
    for new in ["data", "data/t", "t1", "t1/x", "../t1"] {
        let refused = with(&|options| options.mappings[1].new = scene.path(new));
        if new == "../t1" {
            continue;
        }
        assert!(matches!(refused, Err(RestoreError::Overlap(..))), "{new}: {refused:?}");
    }
    let refused = with(&|options| options.target = scene.path("t1/data")).unwrap_err();
    assert!(matches!(refused, RestoreError::Overlap(..)), "{refused}");
    let refused = with(&|options| options.mappings[0].new = "relative".into()).unwrap_err();
    assert!(matches!(refused, RestoreError::NotAbsolute(_)), "{refused}");
    let refused = with(&|options| options.mappings[0].old = "/srv/t3".into()).unwrap_err();
    assert!(matches!(refused, RestoreError::NoSuchTablespace { .. }), "{refused}");
    let refused = with(&|options| options.mappings[0].old = "/srv/t2".into()).unwrap_err();
    assert!(matches!(refused, RestoreError::MappedTwice(_)), "{refused}");
}

#[test]
fn root_needs_an_owner_who_can_use_the_repository() {
    let scene = Scene::new(Parts::new());
    let mut options = scene.options();
    if !root() {
        options.owner = Some(NOBODY);
        assert!(matches!(plan(&scene.repository, &options), Err(RestoreError::CannotGiveAway(65534))));
        return;
    }
    options.owner = None;
    assert!(matches!(plan(&scene.repository, &options), Err(RestoreError::OwnerNeeded)));
    options.owner = Some(Owner { user: 0, group: 0 });
    assert!(matches!(plan(&scene.repository, &options), Err(RestoreError::OwnerNeeded)));
    options.owner = Some(Owner { user: 12345, group: 12345 });
    let refused = plan(&scene.repository, &options).unwrap_err();
    assert!(
        matches!(&refused, RestoreError::OwnerLocked { verb: "read", path, .. } if *path == scene.path("repo")),
        "{refused}"
    );
    let mut options = scene.options();
    fs::write(scene.path("program"), "").unwrap();
    fs::set_permissions(scene.path("program"), fs::Permissions::from_mode(0o700)).unwrap();
    options.program = scene.path("program");
    let refused = plan(&scene.repository, &options).unwrap_err();
    assert!(matches!(&refused, RestoreError::OwnerLocked { verb: "run", .. }), "{refused}");
}

#[test]
fn no_room_is_seen_before_anything_is_written() {
    let scene = Scene::new(Parts::new());
    let mut seal = scene.seal.clone();
    seal.files[0].unpacked = Some(1 << 60);
    write_seal(&scene.repository, &seal);
    let refused = scene.plan().unwrap_err();
    assert!(matches!(refused, RestoreError::NoRoom { needed, .. } if needed == 1 << 60), "{refused}");
}

#[test]
fn what_lies_outside_the_data_directory_is_told() {
    let scene = Scene::new(Parts::new());
    let mut seal = scene.seal.clone();
    seal.config_files = crate::repository::ConfigFiles {
        data_directory: Some("/var/lib/pg/17".to_owned()),
        config_file: Some("/etc/pg/postgresql.conf".to_owned()),
        hba_file: Some("/var/lib/pg/17/pg_hba.conf".to_owned()),
        ident_file: None,
    };
    write_seal(&scene.repository, &seal);
    let plan = scene.plan().unwrap();
    assert_eq!(
        plan.notes,
        [
            "the server must be of PostgreSQL 17",
            "config_file was /etc/pg/postgresql.conf, outside the data directory: it is not in the backup"
        ]
    );
    let text = plan.to_string();
    assert!(text.contains("note        config_file was"), "{text}");
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["wal"]["consistent_at"], scene.seal.stop.lsn().to_string());
    assert_eq!(json["backup"]["id"], scene.seal.id.to_string());
}

#[test]
fn other_clusters_and_incomplete_seals_are_refused() {
    let refused = |change: &dyn Fn(&mut Seal)| {
        let scene = Scene::new(Parts::new());
        let mut seal = scene.seal.clone();
        change(&mut seal);
        write_seal(&scene.repository, &seal);
        scene.plan().unwrap_err().to_string()
    };
    let alone = refused(&|seal| seal.kind = crate::repository::Kind::Incremental);
    assert!(alone.contains("does not say what it is based on"), "{alone}");
    assert!(refused(&|seal| seal.files.retain(|file| file.name == "backup_manifest")).contains("data directory"));
    assert!(refused(&|seal| seal.files.retain(|file| file.name != "backup_manifest")).contains("manifest"));
    assert!(refused(&|seal| seal.system_identifier = SYSTEM + 1).contains("no complete backup"));
    let outside = |seal: &mut Seal| seal.stop = seal.stop.at(seal.stop.lsn().saturating_add(8));
    assert!(refused(&outside).contains("cannot be restored"));
    let history = crate::repository::SealedHistory {
        timeline: TimelineId::new(2).unwrap(),
        size: 1,
        sha256: crate::repository::Sha256Sum::of(b"x"),
    };
    assert!(refused(&|seal| seal.wal.history_files = vec![history.clone()]).contains("timeline 2 is missing"));
}

/// A recovery that is planned to end at a gap says so to `wal-get`.
#[test]
fn the_end_of_an_island_is_planned() {
    let scene = Scene::new(Parts::new());
    let wal = scene.path("repo/wal");
    fs::copy(wal.join("000000010000000000000005"), wal.join("000000010000000000000009")).unwrap();
    let plan = scene.plan().unwrap();
    assert_eq!(plan.wal.ends_at_gap.as_deref(), Some("000000010000000000000006"));
    assert!(plan.notes.iter().any(|note| note.contains("000000010000000000000006") && note.contains("missing")));
    scene.restore(&scene.options()).unwrap();
    assert!(scene.read("data/postgresql.auto.conf").contains("--end-at-gap 000000010000000000000006 %f"));
    fs::remove_file(wal.join("000000010000000000000006.partial")).unwrap();
    fs::remove_dir_all(scene.path("data")).unwrap();
    assert_eq!(scene.plan().unwrap().wal.ends_at_gap.as_deref(), Some("000000010000000000000006"));
    let mut options = scene.options();
    options.goal = Goal::Standby { primary_conninfo: None, primary_slot: None };
    let standby = super::plan(&scene.repository, &options).unwrap();
    assert_eq!((standby.wal.ends_at_gap, standby.wal.timeline), (None, None));
}

/// The newest timeline that comes from the backup and can be reached is gone along.
#[test]
fn the_timeline_is_pinned_to_what_can_be_reached() {
    let scene = Scene::new(Parts::new());
    let wal = scene.path("repo/wal");
    let stop = scene.seal.stop.lsn().get();
    assert_eq!(scene.plan().unwrap().wal.timeline, TimelineId::new(1));
    let fork = |tli: u32, at: u64, segment: u64| {
        fs::write(wal.join(format!("{tli:08X}.history")), format!("1\t0/{at:X}\tx\n")).unwrap();
        let mut log = Log::new(segment * SIZE, SIZE, tli, SYSTEM);
        (0..300).for_each(|_| log.record(10, 0, &[1; 4000]));
        fs::write(wal.join(format!("{tli:08X}00000000{segment:08X}")), &log.bytes[..SIZE as usize]).unwrap();
    };
    let pinned = || scene.plan().unwrap().wal.timeline.unwrap().get();
    // Behind the backup; then one that forks before its end, and one that a hole cuts off.
    fork(2, 6 * SIZE + 8192, 6);
    assert_eq!(pinned(), 2);
    fork(3, stop - 8, 5);
    assert_eq!(pinned(), 2);
    fork(4, 8 * SIZE + 8192, 8);
    assert_eq!(pinned(), 2);
    assert!(scene.plan().unwrap().notes.iter().any(|note| note.contains("timeline 4 is not gone along")));
    // Its history file is missing.
    fs::copy(wal.join("000000020000000000000006"), wal.join("000000050000000000000006")).unwrap();
    assert_eq!(pinned(), 2);
    // No segment of it has come.
    fs::write(wal.join("00000006.history"), format!("1\t0/{:X}\tx\n", 6 * SIZE + 8192)).unwrap();
    assert_eq!(pinned(), 2);
}

/// The backup is whole; damage behind its end in its last segment must not keep it from starting.
#[test]
fn damage_behind_the_end_of_a_backup_ends_the_recovery_there() {
    let scene = Scene::new(Parts::new());
    let path = scene.path("repo/wal/000000010000000000000005");
    let mut content = fs::read(&path).unwrap();
    content[SIZE as usize - 10] ^= 1;
    fs::write(&path, &content).unwrap();
    let plan = scene.plan().unwrap();
    assert_eq!(plan.wal.ends_at_gap.as_deref(), Some("000000010000000000000005"));
    assert!(plan.notes.iter().any(|note| note.contains("is damaged") && note.contains("0/5FFFF6")), "{:?}", plan.notes);
}

/// A backup with a tablespace, restored, and what a server has made of it.
fn lived_in() -> (Scene, Options) {
    let scene = Scene::new(Parts::new().with_tablespace(16385, "/srv/of/the/server"));
    let mut options = scene.options();
    options.mappings = vec![Mapping { old: "/srv/of/the/server".into(), new: scene.path("space") }];
    scene.restore(&options).unwrap();
    fs::write(scene.path("data/base/5/1259"), vec![8; 300_000]).unwrap();
    fs::write(scene.path("data/base/5/9999"), "new").unwrap();
    fs::create_dir_all(scene.path("data/pg_stat_tmp/x")).unwrap();
    options.delta = true;
    (scene, options)
}

#[test]
fn a_delta_rewrites_what_differs_and_removes_what_is_not_in_the_backup() {
    let (scene, options) = lived_in();
    let inode = |below: &str| fs::metadata(scene.path(below)).unwrap().ino();
    let before = ["data/PG_VERSION", "data/base/5/empty", "space/PG_17/1"].map(inode);
    // Of an archive of which nothing is needed nothing is read.
    let archive = scene.repository.backup_dir(scene.seal.id).join("16385.tar.zst");
    let mut content = fs::read(&archive).unwrap();
    content[30] ^= 1;
    fs::write(&archive, &content).unwrap();
    let (plan, restored) = scene.restore(&options).unwrap();
    assert!(plan.delta && plan.target.filled && plan.tablespaces[0].new.as_ref().unwrap().filled);
    assert!(plan.to_string().contains("what differs is rewritten"), "{plan}");
    let kept = restored.kept.unwrap();
    // label, version, empty, conf and the tablespace's; not what changed, and what a restore writes.
    assert_eq!((kept.files, kept.removed), (5, 6), "{kept:?}");
    assert_eq!(restored.compared.files, 9);
    // The map is listed as it is now.
    let [manifest, map] =
        ["data/backup_manifest", "data/tablespace_map"].map(|name| fs::read(scene.path(name)).unwrap());
    assert_eq!(map, format!("16385 {}\n", scene.path("space").display()).into_bytes());
    let mut listed = Vec::new();
    let mut put = |part: &[u8]| {
        listed.extend_from_slice(part);
        Ok::<_, std::io::Error>(())
    };
    assert!(crate::image::relisted(&mut &*manifest, "tablespace_map", &map, &mut put).unwrap());
    assert_eq!(listed, manifest);
    assert_eq!(["data/PG_VERSION", "data/base/5/empty", "space/PG_17/1"].map(inode), before);
    assert_eq!(fs::read(scene.path("data/base/5/1259")).unwrap(), vec![7; 300_000]);
    assert!(!scene.path("data/base/5/9999").exists() && !scene.path("data/pg_stat_tmp").exists());
    assert_eq!(scene.read("data/postgresql.auto.conf").matches("restore_command").count(), 1);
    for below in scene.all() {
        let meta = fs::symlink_metadata(scene.path(&below)).unwrap();
        if !meta.is_symlink() {
            assert_eq!(meta.mode() & 0o7777, if meta.is_dir() { 0o700 } else { 0o600 }, "{below}");
        }
        if root() && !meta.is_symlink() {
            assert_eq!((meta.uid(), meta.gid()), (NOBODY.user, NOBODY.group), "{below}");
        }
    }
    // Of one that is needed all is read.
    fs::remove_file(scene.path("space/PG_17/1")).unwrap();
    let refused = scene.restore(&options).unwrap_err();
    assert!(
        matches!(&refused, RestoreError::Unfinished { source, .. } if matches!(**source, RestoreError::Content { .. })),
        "{refused}"
    );
}

/// P3: what is broken off can be gone on with, and not started.
#[test]
fn p3_a_delta_that_is_broken_off_cannot_be_started_and_goes_on() {
    let (scene, options) = lived_in();
    let plan = scene_plan(&scene, &options).unwrap();
    for at in [
        RestoreEvent::Comparing { done: 0, total: 0 },
        RestoreEvent::Progress { done: 0, total: 0 },
        RestoreEvent::Syncing,
    ] {
        let stopped = lay_down(&scene.repository, &plan, &mut |event| {
            let there = std::mem::discriminant(&event) == std::mem::discriminant(&at);
            if there { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap_err();
        let RestoreError::Unfinished { source, .. } = &stopped else { panic!("{stopped}") };
        assert!(matches!(**source, RestoreError::Stopped), "{stopped}");
        assert!(!scene.path("data/global/pg_control").exists());
        // It is not taken for an empty place, and not for a finished one.
        let mut fresh = options.clone();
        fresh.delta = false;
        assert!(matches!(scene_plan(&scene, &fresh).unwrap_err(), RestoreError::NotEmpty(_)));
    }
    scene.restore(&options).unwrap();
    assert!(scene.path("data/global/pg_control").exists() && !scene.path("data/restore.unfinished").exists());
    let (_, restored) = scene.restore(&options).unwrap();
    assert_eq!(restored.kept.unwrap().files, 6);
}

fn scene_plan(scene: &Scene, options: &Options) -> Result<Plan, RestoreError> {
    plan(&scene.repository, options)
}

#[test]
fn a_delta_into_what_is_free_is_a_restore_and_into_what_is_not_ours_is_refused() {
    let scene = Scene::new(Parts::new());
    let mut options = scene.options();
    options.delta = true;
    let (plan, restored) = scene.restore(&options).unwrap();
    assert!(!plan.delta && restored.kept.is_none());
    let refused = |expected: &str| {
        let before = snapshot(scene.top.path());
        let refused = scene_plan(&scene, &options).unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
        assert_eq!(snapshot(scene.top.path()), before);
    };
    fs::write(scene.path("data/postmaster.pid"), "1\n").unwrap();
    refused("names process 1, which runs");
    fs::remove_file(scene.path("data/postmaster.pid")).unwrap();
    let mut control = crate::repository::made::CONTROL.to_vec();
    control[0] ^= 1;
    let sum = crc32c::crc32c(&control[..288]);
    control[288..292].copy_from_slice(&sum.to_le_bytes());
    fs::write(scene.path("data/global/pg_control"), &control).unwrap();
    refused("but that of the cluster with system identifier");
    fs::remove_file(scene.path("data/global/pg_control")).unwrap();
    refused("something else");
    fs::write(scene.path("data/global/pg_control"), crate::repository::made::CONTROL).unwrap();
    // All in it would be removed.
    fs::rename(scene.path("repo"), scene.path("data/repo")).unwrap();
    let inside = Repository::open(&scene.path("data/repo"), std::sync::Arc::clone(scene.repository.disk())).unwrap();
    let refused = super::plan(&inside, &options).unwrap_err();
    assert!(matches!(refused, RestoreError::Overlap(..)), "{refused}");
}

/// The links of a copied data directory lead to what its server uses.
#[test]
fn a_delta_takes_no_tablespace_that_may_be_anothers() {
    let place = tempfile::tempdir().unwrap();
    let old = place.path().join("space");
    let scene = Scene::new(Parts::new().with_tablespace(16385, old.to_str().unwrap()));
    let mut options = scene.options();
    scene.restore(&options).unwrap();
    options.delta = true;
    let before = snapshot(place.path());
    let refused = scene_plan(&scene, &options).unwrap_err();
    assert!(matches!(&refused, RestoreError::WhoseTablespace { path, .. } if *path == old), "{refused}");
    assert_eq!(snapshot(place.path()), before);
    // Where the server had its data the links are its own.
    let mut seal = scene.seal.clone();
    seal.config_files.data_directory = scene.path("data").to_str().map(str::to_owned);
    write_seal(&scene.repository, &seal);
    assert!(scene_plan(&scene, &options).unwrap().tablespaces[0].new.as_ref().unwrap().filled);
    write_seal(&scene.repository, &scene.seal);
    options.mappings = vec![Mapping { old: old.clone(), new: scene.path("elsewhere") }];
    scene.restore(&options).unwrap();
    assert_eq!(snapshot(place.path()), before);
    options.mappings = vec![Mapping { old: old.clone(), new: old.clone() }];
    fs::remove_file(scene.path("data/pg_tblspc/16385")).unwrap();
    std::os::unix::fs::symlink(&old, scene.path("data/pg_tblspc/16385")).unwrap();
    assert!(scene.restore(&options).unwrap().1.kept.is_some());
    // The server that was copied runs here.
    fs::create_dir_all(scene.path("server/pg_tblspc")).unwrap();
    std::os::unix::fs::symlink(&old, scene.path("server/pg_tblspc/16385")).unwrap();
    fs::write(scene.path("server/postmaster.pid"), "1\n").unwrap();
    seal.config_files.data_directory = scene.path("server").to_str().map(str::to_owned);
    write_seal(&scene.repository, &seal);
    let refused = scene_plan(&scene, &options).unwrap_err();
    assert!(matches!(&refused, RestoreError::DataDir(DataDirError::Running { pid: 1, .. })), "{refused}");
    fs::remove_file(scene.path("server/postmaster.pid")).unwrap();
    assert!(scene_plan(&scene, &options).is_ok());
}

#[test]
fn without_checksums_nothing_stays() {
    let scene = Scene::new(Parts::new());
    scene.restore(&scene.options()).unwrap();
    let mut seal = scene.seal.clone();
    let dir = scene.repository.backup_dir(seal.id);
    let text = fs::read_to_string(dir.join("backup_manifest")).unwrap();
    let (mut body, _) = text.split_once("\"Manifest-Checksum\"").map(|(body, rest)| (body.to_owned(), rest)).unwrap();
    while let Some(at) = body.find(", \"Checksum-Algorithm\"") {
        let end = at + body[at..].find(" }").unwrap();
        body.replace_range(at..end, "");
    }
    let sum = crate::repository::Sha256Sum::of(body.as_bytes());
    reseal(
        &scene.repository,
        &mut seal,
        "backup_manifest",
        format!("{body}\"Manifest-Checksum\": \"{sum}\"}}\n").as_bytes(),
    );
    let mut options = scene.options();
    options.delta = true;
    seal.manifest.algorithm = crate::image::ManifestAlgorithm::None;
    write_seal(&scene.repository, &seal);
    let (plan, restored) = scene.restore(&options).unwrap();
    assert!(plan.notes.iter().any(|note| note.contains("has no checksums")), "{:?}", plan.notes);
    assert_eq!(restored.kept.unwrap().files, 0);
    assert_eq!((restored.compared.files, restored.compared.by_checksum), (7, 0));
}
