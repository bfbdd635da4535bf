//! Data directories that are laid down on a real and on a simulated disk.

#![allow(clippy::disallowed_methods, reason = "the folders are set up and looked at from outside")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::writers::PIECE;
use super::*;
use crate::disk::simulated::{Call, Fault};
use crate::disk::{BLOCK, EntryKind, Real, Simulated};
use crate::image::{Manifest, MemberKind, TarReader};
use crate::repository::made::{CONTROL as CONTROL_FILE, Thing, manifest, tar};
use crate::repository::tests::SYSTEM;
use crate::wal::{Lsn, Pos, TimelineId};
use std::ops::ControlFlow;

const CONTENT: &[u8] = &[7; 20_000];

fn things() -> Vec<Thing> {
    vec![
        Thing::File("PG_VERSION", b"17\n".to_vec(), 0o640),
        Thing::Dir("base"),
        Thing::File("base/1", CONTENT.to_vec(), 0o640),
        Thing::File("base/empty", Vec::new(), 0o600),
        Thing::Dir("pg_wal"),
        Thing::Dir("pg_wal/archive_status"),
        Thing::File("pg_wal/000000010000000000000001", CONTENT.to_vec(), 0o600),
        Thing::Dir("pg_tblspc"),
        Thing::Link("pg_tblspc/16385", "/where/it/was"),
        Thing::File("global/pg_control", CONTROL_FILE.to_vec(), 0o600),
    ]
}

fn feed(data: &mut DataDir, tablespace: Option<u32>, things: &[Thing]) -> Result<u64, DataDirError> {
    let mut done = 0;
    let mut seen = |event: TarEvent<'_>| {
        done = data.take(tablespace, &event)?;
        Ok::<_, DataDirError>(())
    };
    let fed = TarReader::new().feed(&tar(things), &mut seen);
    fed.map_err(|e| match e {
        crate::image::FeedError::Seen(e) => e,
        crate::image::FeedError::Tar(e) => panic!("{e}"),
    })?;
    Ok(done)
}

fn places(top: &Path) -> Places {
    let outside = TablespacePlace { oid: 16385, path: Some(top.join("t/one")) };
    let tablespaces = vec![outside, TablespacePlace { oid: 16386, path: None }];
    Places { data: top.join("data"), wal: Some(top.join("wal")), tablespaces, owner: None }
}

fn fill(data: &mut DataDir) -> Result<u64, DataDirError> {
    feed(data, None, &things())?;
    for oid in [16385, 16386] {
        feed(data, Some(oid), &[Thing::Dir("PG_17"), Thing::File("PG_17/1", CONTENT.to_vec(), 0o600)])?;
    }
    data.put("backup_manifest", b"{}")?;
    data.append("postgresql.auto.conf", b"a = 1\n")?;
    data.append("postgresql.auto.conf", b"b = 2\n")?;
    data.link_tablespaces()?;
    Ok(data.done)
}

fn make(disk: &Simulated) -> Result<DataDir, DataDirError> {
    DataDir::make(Arc::new(disk.clone()), places(Path::new("/top")))
}

#[test]
fn a_directory_is_filled_with_links_and_modes() {
    for method in [SyncMethod::Fsync, SyncMethod::Syncfs] {
        let top = tempfile::tempdir().unwrap();
        let top = top.path();
        let mut data = DataDir::make(Arc::new(Real::new()), places(top)).unwrap();
        assert_eq!(data.wal_dir().unwrap(), top.join("wal"));
        assert_eq!(fill(&mut data).unwrap(), 4 * 20_000 + 3 + CONTROL_FILE.len() as u64);
        assert!(!top.join("data/global/pg_control").exists());
        data.finish(method).unwrap();
        for file in ["base/1", "pg_tblspc/16385/PG_17/1", "pg_tblspc/16386/PG_17/1", "pg_wal/000000010000000000000001"]
        {
            assert_eq!(fs::read(top.join("data").join(file)).unwrap(), CONTENT, "{file}");
        }
        assert_eq!(fs::read(top.join("data/global/pg_control")).unwrap(), CONTROL_FILE);
        assert_eq!(fs::read(top.join("data/postgresql.auto.conf")).unwrap(), b"a = 1\nb = 2\n");
        assert_eq!(fs::read_link(top.join("data/pg_wal")).unwrap(), top.join("wal"));
        assert_eq!(fs::read_link(top.join("data/pg_tblspc/16385")).unwrap(), top.join("t/one"));
        let mode = |below: &str| fs::metadata(top.join(below)).unwrap().permissions().mode() & 0o7777;
        // What members say; and where none does, as the group may read PG_VERSION.
        for (below, expected) in [
            ("data/base/1", 0o640),
            ("data/base/empty", 0o600),
            ("data/base", 0o700),
            ("data/global", 0o750),
            ("data/backup_manifest", 0o640),
            ("data", 0o750),
            ("wal", 0o700),
            ("wal/archive_status", 0o700),
            ("t/one", 0o750),
        ] {
            assert_eq!(mode(below), expected, "{below}");
        }
    }
}

/// Either way to sync, in one thread and in several.
fn each_way() -> impl Iterator<Item = (SyncMethod, usize)> {
    [SyncMethod::Fsync, SyncMethod::Syncfs].into_iter().flat_map(|method| [0, 1, 3].map(|threads| (method, threads)))
}

/// P3: after a power cut at any moment a directory with a `pg_control` is whole.
#[test]
fn p3_what_has_its_control_file_is_whole() {
    for (method, threads) in each_way() {
        let disk = Simulated::new(BLOCK).with_writers(threads);
        let mut data = make(&disk).unwrap();
        fill(&mut data).unwrap();
        data.finish(method).unwrap();
        let whole = tree(&disk, Path::new("/top"));
        assert_eq!(whole.len(), 22, "{whole:?}");
        let mut named = 0;
        for prefix in disk.prefixes() {
            for image in prefix.crash_images(1, 2) {
                if image.metadata(Path::new("/top/data/global/pg_control")).unwrap().is_some() {
                    named += 1;
                    assert_eq!(tree(&image, Path::new("/top")), whole, "{image:?}");
                }
            }
        }
        assert!(named > 0);
    }
}

/// Paths below, and the content of files.
fn tree(disk: &Simulated, dir: &Path) -> Vec<(PathBuf, String)> {
    let mut all = Vec::new();
    for entry in disk.list(dir).unwrap() {
        let path = dir.join(&entry.name);
        match entry.kind {
            EntryKind::Directory => all.extend(tree(disk, &path)),
            EntryKind::File => {
                let content = read_bounded(disk, &path, MAX_CONTENT).unwrap().unwrap().unwrap();
                all.push((path, format!("{} bytes, {}", content.len(), crc32c::crc32c(&content))));
                continue;
            }
            EntryKind::Other => {}
        }
        all.push((path, String::new()));
    }
    all.sort();
    all
}

/// Whatever pieces the archive comes in.
#[test]
fn files_are_written_in_large_pieces() {
    let content: Vec<u8> = (0..3 * PIECE + 5).map(|at| (at % 251) as u8).collect();
    let things = [
        Thing::File("one", content.clone(), 0o600),
        Thing::File("empty", Vec::new(), 0o600),
        Thing::File("two", content.clone(), 0o600),
    ];
    let archive = tar(&things);
    for (piece, threads) in [(4000, 0), (PIECE, 3), (archive.len(), 0), (archive.len(), 2)] {
        let disk = Simulated::new(BLOCK).with_writers(threads);
        let mut data = make(&disk).unwrap();
        let (mut reader, before) = (TarReader::new(), disk.calls(Call::Write));
        for part in archive.chunks(piece) {
            reader.feed(part, &mut |event| data.take(None, &event).map(drop)).unwrap();
        }
        data.writers.settle().unwrap();
        assert!(disk.calls(Call::Write) - before <= 8, "{piece}: {}", disk.calls(Call::Write) - before);
        for name in ["one", "two"] {
            let path = Path::new("/top/data").join(name);
            let read = read_bounded(&disk, &path, 1 << 30).unwrap().unwrap().unwrap();
            assert!(read == content, "{piece} {name}");
        }
    }
}

#[test]
fn whatever_fails_nothing_is_left_but_what_was_there() {
    let calls = [Call::Create, Call::Open, Call::Write, Call::Sync, Call::SyncDir, Call::SyncFilesystem, Call::Rename];
    for (call, (method, threads)) in calls.into_iter().flat_map(|call| each_way().map(move |way| (call, way))) {
        for nth in 1.. {
            let disk = Simulated::new(BLOCK).with_writers(threads);
            // Found empty: it stays.
            let _ = disk.make_dirs(Path::new("/top/wal"), 0o700).unwrap();
            let before = disk.calls(call);
            disk.fail(call, before + nth, Fault::Full);
            let laid = make(&disk).and_then(|mut data| match fill(&mut data).and_then(|_| data.finish(method)) {
                Ok(()) => Ok(()),
                Err(e) => {
                    data.discard()?;
                    Err(e)
                }
            });
            if disk.calls(call) < before + nth {
                laid.unwrap();
                assert!(disk.metadata(Path::new("/top/data/global/pg_control")).unwrap().is_some());
                break;
            }
            laid.unwrap_err();
            let left = tree(&disk, Path::new("/top"));
            let left: Vec<_> =
                left.iter().map(|(path, _)| path.to_str().unwrap()).filter(|path| *path != "/top/t").collect();
            assert_eq!(left, ["/top/wal"], "{call:?} {nth}");
        }
    }
}

/// What a thread could not write is told with its name, once, and nothing is done after it.
#[test]
fn p3_what_fails_beside_is_told_and_final() {
    let large = || Thing::File("base/large", vec![7; 9 * PIECE], 0o600);
    for (call, name) in [(Call::Write, "base/large"), (Call::Create, "base/large"), (Call::Sync, "PG_VERSION")] {
        let disk = Simulated::new(BLOCK).with_writers(2);
        let mut data = make(&disk).unwrap();
        // Before the first file there are directories.
        feed(&mut data, None, &[Thing::Dir("base"), Thing::Dir("global")]).unwrap();
        disk.fail(call, disk.calls(call) + 1, Fault::Full);
        let version = Thing::File("PG_VERSION", b"17\n".to_vec(), 0o600);
        let first = if name == "PG_VERSION" { version } else { large() };
        let fed = feed(&mut data, None, &[first]).and_then(|_| feed(&mut data, None, &[large()]));
        let failed = fed.and_then(|_| data.writers.settle()).unwrap_err();
        assert!(matches!(&failed, DataDirError::Disk(e) if e.path().ends_with(name)), "{call:?}: {failed}");
        let control = feed(&mut data, None, &[Thing::File("global/pg_control", CONTROL_FILE.to_vec(), 0o600)]);
        assert!(matches!(control, Err(DataDirError::GivenUp)), "{control:?}");
        assert!(matches!(data.finish(SyncMethod::Syncfs), Err(DataDirError::GivenUp)));
        assert_eq!(disk.metadata(Path::new("/top/data/global/pg_control.unfinished")).unwrap(), None);
        data.discard().unwrap();
    }
}

/// A disk that fills up, wherever it does, leaves nothing.
#[test]
fn a_disk_that_fills_up_leaves_nothing() {
    for room in (0..100_000).step_by(1999) {
        let disk = Simulated::new(BLOCK);
        let _ = disk.make_dirs(Path::new("/top"), 0o700).unwrap();
        let mut data = make(&disk).unwrap();
        disk.set_capacity(Some(room));
        let Err(full) = fill(&mut data).and_then(|_| data.finish(SyncMethod::Syncfs)) else {
            assert!(room > 80_000);
            continue;
        };
        assert!(matches!(&full, DataDirError::Disk(e) if e.trouble() == Trouble::Full), "{full}");
        data.discard().unwrap();
        assert_eq!(disk.list(Path::new("/top")).unwrap().len(), 1, "the parent of a tablespace");
        assert_eq!(disk.list(Path::new("/top/t")).unwrap(), []);
    }
}

#[test]
fn places_in_use_are_refused_and_left_as_they_are() {
    for place in ["data", "wal", "t/one"] {
        let disk = Simulated::new(BLOCK);
        let path = Path::new("/top").join(place);
        let _ = disk.make_dirs(&path, 0o700).unwrap();
        let _ = disk.create(&path.join("x"), 0o600).unwrap();
        let refused = make(&disk).unwrap_err();
        assert!(matches!(&refused, DataDirError::NotEmpty(at) if *at == path), "{refused}");
        let files: Vec<_> = tree(&disk, Path::new("/top")).into_iter().filter(|(at, _)| at.ends_with("x")).collect();
        assert_eq!(files.len(), 1);
        for other in ["data", "wal", "t/one"].iter().filter(|other| **other != place) {
            assert_eq!(disk.metadata(&Path::new("/top").join(other)).unwrap(), None);
        }
    }
}

#[test]
fn names_of_ours_and_links_of_others_are_refused() {
    let refused = |tablespace: Option<u32>, thing: Thing, expected: &str| {
        let disk = Simulated::new(BLOCK);
        let mut data = make(&disk).unwrap();
        let error = feed(&mut data, tablespace, &[thing]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(None, Thing::File("global/pg_control.unfinished", Vec::new(), 0o600), "no server makes");
    refused(None, Thing::Link("pg_tblspc/16399", "/x"), "none of a tablespace");
    refused(Some(16385), Thing::Link("pg_tblspc/16385", "/x"), "none of a tablespace");
    refused(Some(16399), Thing::Dir("PG_17"), "did not announce");
    let disk = Simulated::new(BLOCK);
    let mut data = make(&disk).unwrap();
    assert!(matches!(data.finish(SyncMethod::Fsync), Err(DataDirError::NoControl)));
    feed(&mut data, None, &things()[..3]).unwrap();
    // Twice, and below a tablespace's link.
    assert!(feed(&mut data, None, &[Thing::File("base/1", Vec::new(), 0o600)]).is_err());
    let disk = Simulated::new(BLOCK);
    let mut data = make(&disk).unwrap();
    feed(&mut data, None, &[Thing::File("pg_tblspc/16385/x", Vec::new(), 0o600)]).unwrap();
    assert!(data.link_tablespaces().is_err());
    let huge = Member {
        path: MemberPath::new(b"huge").unwrap(),
        kind: MemberKind::File { size: i64::MAX as u64 },
        mode: 0o600,
        mtime: 0,
    };
    data.take(None, &TarEvent::Member(huge)).unwrap();
    assert_eq!(disk.metadata(Path::new("/top/data/huge")).unwrap(), None);
}

/// P6: neither a second file of a name, nor directories without end, is the disk's mistake.
#[test]
fn p6_what_no_server_sends_is_told_as_such() {
    let disk = Arc::new(Simulated::new(BLOCK));
    let _top = disk.make_dirs(Path::new("/top"), 0o700).unwrap();
    let mut data = DataDir::make(disk, plain(Path::new("/top"))).unwrap();
    let file = || Thing::File("base/1", Vec::new(), 0o600);
    feed(&mut data, None, &[file(), Thing::Dir("base/5")]).unwrap();
    assert!(matches!(feed(&mut data, None, &[file()]), Err(DataDirError::Twice(path)) if path.as_bytes() == b"base/1"));
    data.dirs_size = MAX_DIRECTORIES - DIRECTORY;
    assert!(matches!(feed(&mut data, None, &[Thing::Dir("base/6")]), Err(DataDirError::TooManyDirectories)));
}

/// What is in the tablespaces of the backup.
fn inside() -> Vec<Thing> {
    vec![Thing::Dir("PG_17"), Thing::File("PG_17/1", CONTENT.to_vec(), 0o600)]
}

fn listed() -> Manifest {
    let pos = Pos::new(TimelineId::FIRST, Lsn::new(1 << 24));
    let (base, inside) = (things(), inside());
    Manifest::parse(&manifest(&[(None, &base), (Some(16385), &inside), (Some(16386), &inside)], pos, pos)).unwrap()
}

/// Data directories that are rewritten have their WAL inside.
fn plain(top: &Path) -> Places {
    Places { wal: None, ..places(top) }
}

fn reuse(disk: Arc<dyn Disk>, places: Places) -> Result<Kept, DataDirError> {
    let mut data = DataDir::reuse(disk, places, SYSTEM)?;
    let kept = data.keep(&listed(), &mut |_, _| ControlFlow::Continue(()))?;
    data.link_tablespaces()?;
    fill(&mut data)?;
    data.finish(SyncMethod::Syncfs)?;
    Ok(kept)
}

fn new(disk: Arc<dyn Disk>, places: Places) {
    let mut data = DataDir::make(disk, places).unwrap();
    data.mark(SYSTEM).unwrap();
    fill(&mut data).unwrap();
    data.finish(SyncMethod::Syncfs).unwrap();
}

fn write(disk: &Simulated, below: &str, content: &[u8]) {
    let path = Path::new("/top").join(below);
    let _ = disk.make_dirs(path.parent().unwrap(), 0o700).unwrap();
    match disk.remove(&path) {
        Err(e) if e.trouble() != Trouble::Missing => panic!("{e}"),
        _ => disk.create(&path, 0o600).unwrap().write_at(0, content).unwrap(),
    }
}

/// P3: cut off at any moment, killed or by a power cut, it cannot be started and can be taken over again, until it is whole.
#[test]
fn p3_a_rewriting_that_is_cut_off_goes_on() {
    let clean = Simulated::new(BLOCK);
    new(Arc::new(clean.clone()), plain(Path::new("/top")));
    let whole = tree(&clean, Path::new("/top"));
    // What a server has made of it.
    write(&clean, "data/base/1", &[8; 20_000]);
    write(&clean, "data/base/2", b"new");
    write(&clean, "data/dropped/deep/1", b"x");
    write(&clean, "data/empty/x", b"a directory, and there a file");
    write(&clean, "t/one/PG_17/2", b"new");
    write(&clean, "data/pg_tblspc/16386/PG_17/1", &[8; 20_000]);
    let _all = clean.sync_filesystem(Path::new("/top")).unwrap();
    let before = tree(&clean, Path::new("/top"));
    let disk = clean.after(clean.operations());
    let kept = reuse(Arc::new(disk.clone()), plain(Path::new("/top"))).unwrap();
    // PG_VERSION, base/empty, the WAL, the file of one tablespace.
    assert_eq!((kept.files, kept.bytes, kept.removed), (4, 40_003, 8), "{kept:?}");
    assert_eq!(tree(&disk, Path::new("/top")), whole);
    let (mut startable, mut images) = (0, 0u64);
    for prefix in disk.prefixes() {
        for image in prefix.crash_images(images, 6) {
            images += 1;
            let there = tree(&image, Path::new("/top"));
            if image.metadata(Path::new("/top/data/global/pg_control")).unwrap().is_some() {
                let with_mark: Vec<_> = there.iter().filter(|(path, _)| !path.ends_with(MARK)).cloned().collect();
                assert!(with_mark == before || there == whole, "{image:?}");
                startable += 1;
            }
            if images % 17 == 0 {
                reuse(Arc::new(image.clone()), plain(Path::new("/top"))).unwrap_or_else(|e| panic!("{e}: {image:?}"));
                assert_eq!(tree(&image, Path::new("/top")), whole, "{image:?}");
            }
        }
    }
    assert!(startable > 0 && images > 100, "{startable} of {images}");
}

/// The same of one that was made anew; of tablespaces it has links before it has files.
#[test]
fn a_new_one_that_is_cut_off_is_gone_on_with() {
    let disk = Simulated::new(BLOCK);
    let _top = disk.make_dirs(Path::new("/top"), 0o700).unwrap();
    let mut data = DataDir::make(Arc::new(disk.clone()), plain(Path::new("/top"))).unwrap();
    data.mark(SYSTEM).unwrap();
    data.link_tablespaces().unwrap();
    let marked = disk.operations();
    fill(&mut data).unwrap();
    data.finish(SyncMethod::Fsync).unwrap();
    let whole = tree(&disk, Path::new("/top"));
    for prefix in disk.prefixes().skip(marked) {
        for image in prefix.crash_images(3, 4) {
            reuse(Arc::new(image.clone()), plain(Path::new("/top"))).unwrap_or_else(|e| panic!("{e}: {image:?}"));
            assert_eq!(tree(&image, Path::new("/top")), whole, "{image:?}");
        }
    }
}

/// P6: files with a second name, and what links lead to, are not written to.
#[test]
fn p6_nothing_is_rewritten_through_a_link() {
    let top = tempfile::tempdir().unwrap();
    let (top, disk) = (top.path(), Arc::new(Real::new()));
    new(disk.clone(), plain(top));
    let data = |below: &str| top.join("data").join(below);
    let outside = |name: &str, content: &[u8]| {
        fs::write(top.join(name), content).unwrap();
        top.join(name)
    };
    let link = |to: &Path, below: &str| {
        let _ = fs::remove_file(data(below));
        std::os::unix::fs::symlink(to, data(below)).unwrap();
    };
    fs::hard_link(data("base/1"), top.join("second")).unwrap();
    link(&outside("precious", b"precious"), "PG_VERSION.old");
    link(&outside("same", b"17\n"), "PG_VERSION");
    fs::create_dir(top.join("elsewhere")).unwrap();
    fs::write(top.join("elsewhere/1"), b"precious").unwrap();
    link(&top.join("elsewhere"), "logs");
    fs::remove_dir_all(data("pg_wal")).unwrap();
    link(&top.join("elsewhere"), "pg_wal");
    fs::write(data("PG_17.pid"), b"x").unwrap();
    fs::create_dir(data("lost+found")).unwrap();
    let kept = reuse(disk, plain(top)).unwrap();
    assert_eq!(kept.files, 3, "{kept:?}");
    let mut links: Vec<_> = kept.links.iter().map(|(path, _)| path.clone()).collect();
    links.sort();
    assert_eq!(links, [data("PG_VERSION"), data("PG_VERSION.old"), data("logs"), data("pg_wal")]);
    assert_eq!(fs::read(top.join("precious")).unwrap(), b"precious");
    assert_eq!(fs::read_dir(top.join("elsewhere")).unwrap().count(), 1);
    assert_eq!(fs::metadata(data("base/1")).unwrap().nlink(), 1);
    assert_eq!(fs::metadata(top.join("second")).unwrap().nlink(), 1);
    assert!(data("pg_wal").is_dir() && !data("pg_wal").is_symlink() && data("lost+found").is_dir());
    assert!(!data("PG_17.pid").exists() && !data(MARK).exists());
}

#[test]
fn what_must_not_be_rewritten_is_refused_and_left() {
    let disk = Simulated::new(BLOCK);
    new(Arc::new(disk.clone()), plain(Path::new("/top")));
    let refused = |disk: &Simulated| {
        let before = tree(disk, Path::new("/top"));
        let refused = reuse(Arc::new(disk.clone()), plain(Path::new("/top"))).unwrap_err();
        assert_eq!(tree(disk, Path::new("/top")), before);
        refused
    };
    let other = disk.after(disk.operations());
    let mut control = CONTROL_FILE.to_vec();
    control[0] ^= 1;
    write(&other, "data/global/pg_control", &control);
    assert!(matches!(refused(&other), DataDirError::OtherCluster { found: Found::Other, .. }));
    let sum = crc32c::crc32c(&control[..288]);
    control[288..292].copy_from_slice(&sum.to_le_bytes());
    write(&other, "data/global/pg_control", &control);
    assert!(matches!(refused(&other), DataDirError::OtherCluster { found: Found::Cluster(id), .. } if id != SYSTEM));
    // Process 1 always runs; the highest that there can be does not.
    let running = disk.after(disk.operations());
    write(&running, "data/postmaster.pid", b"1\n/top/data\n");
    assert!(matches!(refused(&running), DataDirError::Running { pid: 1, .. }));
    write(&running, "data/postmaster.pid", b"4194304\n/top/data\n");
    reuse(Arc::new(running.clone()), plain(Path::new("/top"))).unwrap();
    // A tablespace that is there, and that the data directory does not know.
    let stranger = disk.after(disk.operations());
    stranger.remove(Path::new("/top/data/pg_tblspc/16385")).unwrap();
    assert!(matches!(refused(&stranger), DataDirError::NotEmpty(path) if path == Path::new("/top/t/one")));
    let locked = disk.after(disk.operations());
    let _lock = locked.lock_dir(Path::new("/top/data")).unwrap();
    assert!(matches!(refused(&locked), DataDirError::Disk(e) if e.trouble() == Trouble::Locked));
}
