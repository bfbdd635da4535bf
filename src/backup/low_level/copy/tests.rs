#![allow(clippy::disallowed_methods, reason = "the copies are made and damaged from outside")]

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::archive::{EndOfBackup, Follower};
use crate::disk::{BLOCK, Real, Simulated};
use crate::repository::made::CONTROL as CAPTURED;
use crate::repository::tests::{SIZE, SYSTEM, log_with_backup, now, pending_of, seal_of};
use crate::repository::{
    BackupId, BackupState, ContentError, Method, ReadError, Repository, SealedManifest, SealedTablespace,
};
use crate::wal::chain::built::Log;
use crate::wal::{History, Segment, SegmentSize};

const SPACE: u32 = 16385;

/// A `pg_control` of a server that runs, whose last checkpoint is the one at `start`.
fn control(start: Pos) -> Vec<u8> {
    let mut content = CAPTURED.to_vec();
    content[16..20].copy_from_slice(&6_u32.to_le_bytes());
    for at in [32, 40] {
        content[at..at + 8].copy_from_slice(&start.lsn().get().to_le_bytes());
    }
    let sum = crc32c::crc32c(&content[..288]);
    content[288..292].copy_from_slice(&sum.to_le_bytes());
    content
}

fn known(start: Pos, stop: Pos) -> Known {
    let segment = Segment::containing(start, SegmentSize::new(SIZE).unwrap());
    let label_bytes = format!(
        "START WAL LOCATION: {0} (file {segment})\nCHECKPOINT LOCATION: {0}\nBACKUP METHOD: streamed\n\
         BACKUP FROM: primary\nSTART TIME: x\nLABEL: x\nSTART TIMELINE: 1\n",
        start.lsn(),
    )
    .into_bytes();
    let map_bytes = format!("{SPACE} /srv/space\n").into_bytes();
    Known {
        system_id: SYSTEM,
        major: 15,
        start,
        stop,
        label: BackupLabel::parse(&label_bytes).unwrap(),
        label_bytes,
        map: TablespaceMap::parse(&map_bytes).unwrap(),
        map_bytes,
        control: None,
    }
}

/// What a command leaves: by the path below the backup's folder.
fn files(start: Pos) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("data/PG_VERSION", b"15\n".to_vec()),
        ("data/global/pg_control", control(start)),
        ("data/base/5/1259", vec![7; 30_000]),
        ("data/base/5/20_init", Vec::new()),
        ("data/base/5/20", vec![1; 100]),
        ("data/base/5/t3_30", vec![1; 100]),
        ("data/base/5/pg_internal.init", vec![1; 100]),
        ("data/pg_wal/000000010000000000000003", vec![1; 100]),
        ("data/pg_replslot/old/state", vec![1; 100]),
        ("data/postmaster.pid", b"1\n".to_vec()),
        ("data/backup_label", b"of another backup".to_vec()),
        ("data/postgresql.conf", b"port = 5432\n".to_vec()),
        ("tablespaces/16385/PG_15_202209061/5/16390", vec![2; 9000]),
    ]
}

/// Writes them, and syncs nothing.
fn fill(disk: &dyn Disk, dir: &Path, start: Pos) -> Result<(), DiskError> {
    make_places(disk, dir, &[SPACE], 0o700)?;
    for (name, content) in files(start) {
        let path = dir.join(name);
        let _made = disk.make_dirs(path.parent().unwrap(), 0o700)?;
        disk.create(&path, 0o600)?.write_at(0, &content)?;
    }
    Ok(())
}

fn copy(disk: Arc<dyn Disk>, dir: &Path) -> Copy {
    Copy {
        disk,
        dir: dir.to_owned(),
        modes: Modes::new(false),
        algorithm: ManifestAlgorithm::Crc32c,
        stop: CancellationToken::new(),
        hashed: Arc::default(),
    }
}

/// A copy in a folder of its own, on the real disk.
struct Scene {
    dir: tempfile::TempDir,
    known: Known,
}

impl Scene {
    fn new() -> Self {
        let (_, start, stop) = log_with_backup();
        let dir = tempfile::tempdir().unwrap();
        fill(&Real::new(), dir.path(), start).unwrap();
        Self { dir, known: known(start, stop) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn take(&self) -> Result<Taken, CopyError> {
        copy(Arc::new(Real::new()), self.dir.path()).take(&self.known)
    }
}

fn listed(bytes: &[u8]) -> Vec<String> {
    Manifest::parse(bytes).unwrap().files().iter().map(|file| file.path.to_string()).collect()
}

#[test]
fn a_copy_is_tidied_as_a_server_would_send_it() {
    let scene = Scene::new();
    fs::create_dir(scene.path("data/pg_tblspc")).unwrap();
    symlink("/srv/space", scene.path("data/pg_tblspc/16385")).unwrap();
    symlink("/var/log", scene.path("data/log")).unwrap();
    fs::create_dir(scene.path("tablespaces/99")).unwrap();
    let taken = scene.take().unwrap();
    assert_eq!(
        listed(&fs::read(scene.path("backup_manifest")).unwrap()),
        [
            "PG_VERSION",
            "backup_label",
            "base/5/1259",
            "base/5/20_init",
            "global/pg_control",
            "pg_tblspc/16385/PG_15_202209061/5/16390",
            "postgresql.conf",
            "tablespace_map",
        ]
    );
    assert_eq!(fs::read(scene.path("data/backup_label")).unwrap(), scene.known.label_bytes);
    assert_eq!(taken.removed, ["tablespaces/99", "log"]);
    assert_eq!(taken.files, 8);
    for name in emptied() {
        assert!(scene.path("data").join(name).is_dir(), "{name}");
    }
    assert!(!scene.path("data/postmaster.pid").exists() && !scene.path("data/pg_replslot/old").exists());
}

/// What is outside the copy stays, whatever the copy's links lead to.
#[test]
fn p6_nothing_is_changed_through_a_link() {
    let precious = tempfile::tempdir().unwrap();
    fs::write(precious.path().join("postmaster.pid"), "x").unwrap();
    fs::write(precious.path().join("file"), "x").unwrap();
    for (name, refused) in
        [("data/pg_wal", false), ("data/pg_replslot", false), ("data/other", false), ("data/base", true)]
    {
        let scene = Scene::new();
        let _ = fs::remove_dir_all(scene.path(name));
        symlink(precious.path(), scene.path(name)).unwrap();
        assert_eq!(scene.take().is_err(), refused, "{name}");
    }
    for name in ["data", "tablespaces", "tablespaces/16385"] {
        let scene = Scene::new();
        fs::remove_dir_all(scene.path(name)).unwrap();
        symlink(precious.path(), scene.path(name)).unwrap();
        assert!(matches!(scene.take(), Err(CopyError::NoDirectory(_))), "{name}");
    }
    // A file that is linked to another name of it is written anew.
    let scene = Scene::new();
    fs::remove_file(scene.path("data/backup_label")).unwrap();
    fs::hard_link(precious.path().join("file"), scene.path("data/backup_label")).unwrap();
    scene.take().unwrap();
    for name in ["postmaster.pid", "file"] {
        assert_eq!(fs::read(precious.path().join(name)).unwrap(), b"x", "{name}");
    }
    assert_eq!(fs::read_dir(precious.path()).unwrap().count(), 2);
}

#[test]
fn p6_what_is_no_copy_of_this_server_is_refused() {
    let told = |damage: &dyn Fn(&mut Scene)| {
        let mut scene = Scene::new();
        damage(&mut scene);
        let told = scene.take().unwrap_err();
        assert!(!scene.path("backup_manifest").exists(), "{told}");
        told
    };
    let remove = |name: &'static str| move |scene: &mut Scene| fs::remove_file(scene.path(name)).unwrap();
    assert!(matches!(told(&remove("data/global/pg_control")), CopyError::Missing(CONTROL)));
    assert!(matches!(told(&remove("data/PG_VERSION")), CopyError::Missing(VERSION)));
    let other = |scene: &mut Scene| fs::write(scene.path("data/PG_VERSION"), "14\n").unwrap();
    assert!(matches!(told(&other), CopyError::Version { server: 15, .. }));
    assert!(matches!(told(&|scene| scene.known.system_id += 1), CopyError::Misfit(Misfit::Cluster { .. })));
    let stopped = |scene: &mut Scene| fs::write(scene.path("data/global/pg_control"), CAPTURED).unwrap();
    assert!(matches!(told(&stopped), CopyError::Misfit(_)));
    let torn = |scene: &mut Scene| {
        let mut content = fs::read(scene.path("data/global/pg_control")).unwrap();
        content[100] ^= 1;
        fs::write(scene.path("data/global/pg_control"), content).unwrap();
    };
    assert!(matches!(told(&torn), CopyError::Control(ControlError::Checksum)));
    let space = |scene: &mut Scene| fs::remove_dir_all(scene.path("tablespaces/16385/PG_15_202209061")).unwrap();
    assert!(matches!(told(&space), CopyError::NoTablespace { oid: SPACE, .. }));
    let gone = |scene: &mut Scene| fs::remove_dir_all(scene.path("tablespaces/16385")).unwrap();
    assert!(matches!(told(&gone), CopyError::NoTablespace { oid: SPACE, .. }));
    let inside = |scene: &mut Scene| fs::create_dir_all(scene.path("data/pg_tblspc/16385")).unwrap();
    assert!(matches!(told(&inside), CopyError::Doubled(_)));
    for name in ["data/base/5/pipe", "tablespaces/16385/pipe", "data/global/pipe"] {
        let pipe = |scene: &mut Scene| {
            let done = std::process::Command::new("mkfifo").arg(scene.path(name)).status().unwrap();
            assert!(done.success());
        };
        assert!(matches!(told(&pipe), CopyError::Odd(_)), "{name}");
    }
    let mut scene = Scene::new();
    scene.known.start = scene.known.stop;
    let without = Copy { algorithm: ManifestAlgorithm::None, ..copy(Arc::new(Real::new()), scene.dir.path()) };
    assert!(matches!(without.take(&scene.known), Err(CopyError::NoChecksums)));
}

/// A disk on which a process that the command has left behind still writes.
#[derive(Debug)]
struct Restless {
    real: Real,
    late: PathBuf,
    nth: AtomicU64,
}

impl Restless {
    /// Writes after the files have been read: at the first sync of a directory.
    fn write(&self) {
        if self.nth.fetch_add(1, Ordering::Relaxed) == 0 {
            fs::write(&self.late, vec![9; 30_000]).unwrap();
        }
    }
}

macro_rules! pass_on {
    ($($name:ident($($arg:ident: $kind:ty),*) -> $out:ty;)*) => {
        $(fn $name(&self, $($arg: $kind),*) -> Result<$out, DiskError> { self.real.$name($($arg),*) })*
    };
}

impl Disk for Restless {
    pass_on! {
        create(path: &Path, mode: u32) -> Box<dyn crate::disk::File>;
        create_zeroed(path: &Path, len: u64, mode: u32) -> Box<dyn crate::disk::File>;
        open(path: &Path, access: Access) -> Box<dyn crate::disk::File>;
        rename(from: &Path, to: &Path) -> ();
        remove(path: &Path) -> ();
        remove_tree(path: &Path) -> ();
        make_dir(path: &Path, mode: u32) -> crate::disk::Synced;
        add_dir(path: &Path, mode: u32) -> ();
        symlink(target: &Path, path: &Path) -> ();
        read_link(path: &Path) -> Option<PathBuf>;
        set_access(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> ();
        sync_filesystem(path: &Path) -> crate::disk::Synced;
        list(path: &Path) -> Vec<crate::disk::Entry>;
        metadata(path: &Path) -> Option<crate::disk::Meta>;
        available(path: &Path) -> u64;
        lock(path: &Path, note: &str) -> crate::disk::Lock;
        lock_shared(path: &Path) -> crate::disk::Lock;
        lock_dir(path: &Path) -> crate::disk::Lock;
        lock_dir_shared(path: &Path) -> crate::disk::Lock;
    }

    fn sync_dir(&self, path: &Path) -> Result<crate::disk::Synced, DiskError> {
        self.write();
        self.real.sync_dir(path)
    }
}

#[test]
fn what_changes_after_it_was_read_is_refused() {
    for late in ["data/base/5/1259", "data/base/5/new"] {
        let scene = Scene::new();
        let disk = Restless { real: Real::new(), late: scene.path(late), nth: AtomicU64::new(0) };
        let told = copy(Arc::new(disk), scene.dir.path()).take(&scene.known).unwrap_err();
        assert!(matches!(told, CopyError::Changing(_)), "{late}: {told}");
        assert!(!scene.path("backup_manifest").exists());
    }
}

/// On a simulated disk, with the WAL of the backup.
fn repository(disk: &Simulated, log: &Log, start: Pos) -> Repository {
    let size = SegmentSize::new(SIZE).unwrap();
    let dir = Path::new("/srv/r");
    let repository = Repository::create(dir, Arc::new(disk.clone()), SYSTEM, size, false, now()).unwrap();
    let first = Segment::containing(start.at(crate::wal::Lsn::new(log.start)), size);
    let mut writer = repository.archive().begin(&History::first(), first).unwrap().writer;
    writer.append(&log.bytes, &mut |_| {}).unwrap();
    let _ = writer.settle().unwrap();
    repository
}

fn sealed_copy(seal: Seal, taken: Taken) -> Seal {
    let algorithm = ManifestAlgorithm::Crc32c;
    Seal {
        method: Method::Copied,
        files: vec![taken.manifest],
        manifest: SealedManifest { algorithm, files: taken.files, bytes: taken.bytes },
        tablespaces: vec![SealedTablespace { oid: SPACE, location: "/srv/space".to_owned() }],
        ..seal
    }
}

/// Makes a backup as the command's process and ours do; its name, and the operations until it was ready and
/// until it was sealed.
fn back_up(disk: &Simulated, repository: &Repository, known: &Known) -> (BackupId, usize, usize) {
    let folder = repository.begin_backup(now()).unwrap();
    let (id, dir) = (folder.id(), folder.dir().to_owned());
    let (start, stop) = (known.start, known.stop);
    folder.write_pending(&pending_of(id, start, None)).unwrap();
    fill(disk, &dir, start).unwrap();
    let taken = copy(Arc::new(disk.clone()), &dir).take(known).unwrap();
    let seal = sealed_copy(seal_of(id, start, stop, Vec::new()), taken);
    let mut pending = pending_of(id, start, Some(stop));
    pending.ready = Some(Box::new(seal.clone()));
    folder.write_pending(&pending).unwrap();
    let ready = disk.operations();
    let mut follower = Follower::new(repository.archive(), History::first(), start.lsn());
    follower.advance().unwrap();
    let durable = follower.settle().unwrap();
    let proof = repository.archive().prove(start.lsn(), stop, EndOfBackup::Record).unwrap();
    folder.seal(seal, &proof, &durable).unwrap();
    (id, ready, disk.operations())
}

/// P3: whenever the power fails, what is ready to be sealed, and what is sealed, is whole.
#[test]
fn p3_a_copy_that_is_sealed_is_whole_after_a_power_cut() {
    let (log, start, stop) = log_with_backup();
    let known = known(start, stop);
    let disk = Simulated::new(BLOCK);
    let from = {
        let _repository = repository(&disk, &log, start);
        disk.operations()
    };
    let opened = |disk: &Simulated| Repository::open(Path::new("/srv/r"), Arc::new(disk.clone())).unwrap();
    let (id, ready, sealed) = back_up(&disk, &opened(&disk), &known);
    let (mut seen_ready, mut seen_sealed) = (0, 0);
    for (k, disk) in disk.prefixes().enumerate().skip(from) {
        for found in disk.crash_images(k as u64, 3).chain([disk.after(0)]) {
            let repository = opened(&found);
            let state = repository.backup(id).unwrap().map(|entry| entry.state);
            let seal = match state {
                Some(BackupState::Sealed(seal)) => {
                    seen_sealed += 1;
                    *seal
                }
                Some(BackupState::Pending(pending)) if pending.ready.is_some() => {
                    seen_ready += 1;
                    let healed = repository.heal(id).unwrap();
                    assert!(matches!(healed, Some(crate::repository::Healing::Sealed(_))), "{healed:?}\n  {found:?}");
                    *pending.ready.unwrap()
                }
                other => {
                    assert!(k < ready, "it was ready, and is {other:?}\n  {found:?}");
                    continue;
                }
            };
            let contents = repository.contents(&seal).unwrap_or_else(|e| panic!("{e}\n  {found:?}"));
            let read = contents.read(&mut |_, _| Ok::<_, Infallible>(()));
            assert_eq!(read.unwrap_or_else(|e| panic!("{e}\n  {found:?}")).compared.files, 8);
        }
    }
    assert!(seen_ready > 0 && seen_sealed > 0 && sealed > ready);
}

/// What has changed since it was sealed is named.
#[test]
fn a_sealed_copy_is_read_against_its_manifest() {
    let (log, start, stop) = log_with_backup();
    let known = known(start, stop);
    let disk = Simulated::new(BLOCK);
    let _made = repository(&disk, &log, start);
    let repository = Repository::open(Path::new("/srv/r"), Arc::new(disk.clone())).unwrap();
    let (id, ..) = back_up(&disk, &repository, &known);
    let Some(BackupState::Sealed(seal)) = repository.backup(id).unwrap().map(|entry| entry.state) else { panic!() };
    let data = repository.backup_dir(id).join(Seal::DATA);
    let read = || {
        let contents = repository.contents(&seal).unwrap();
        match contents.read(&mut |_, _| Ok::<_, Infallible>(())) {
            Ok(read) => Ok((contents.sizes(), read)),
            Err(ReadError::Content(e)) => Err(e),
            Err(ReadError::Seen(never)) => match never {},
        }
    };
    let (sizes, whole) = read().unwrap();
    assert_eq!(whole.map.unwrap().location(SPACE).unwrap(), Path::new("/srv/space"));
    assert_eq!(sizes.iter().map(|(of, _)| *of).collect::<Vec<_>>(), [None, Some(SPACE)]);
    assert_eq!(sizes.iter().map(|(_, size)| size).sum::<u64>(), seal.manifest.bytes);
    assert_eq!(sizes[1].1, 9000);

    let extra = data.join("base/5/extra");
    disk.create(&extra, 0o600).unwrap();
    assert!(matches!(read(), Err(ContentError::Files { .. })));
    disk.remove(&extra).unwrap();
    disk.symlink(Path::new("/etc"), &extra).unwrap();
    assert!(matches!(read(), Err(ContentError::Odd(_))));
    disk.remove(&extra).unwrap();
    read().unwrap();
    disk.remove(&data.join("base/5/1259")).unwrap();
    assert!(matches!(read(), Err(ContentError::Files { .. })));
    disk.create(&data.join("base/5/1259"), 0o600).unwrap().write_at(0, &[8; 30_000]).unwrap();
    assert!(matches!(read(), Err(ContentError::Files { .. })));
}
