//! Data directories that are laid down on a real and on a simulated disk.

#![allow(clippy::disallowed_methods, reason = "the folders are set up and looked at from outside")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::disk::simulated::{Call, Fault};
use crate::disk::{Access, BLOCK, EntryKind, Real, Simulated};
use crate::image::{MemberKind, TarReader};
use crate::repository::made::{Thing, tar};

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
        Thing::File("global/pg_control", vec![1; 8192], 0o600),
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
        assert_eq!(fill(&mut data).unwrap(), 4 * 20_000 + 3 + 8192);
        assert!(!top.join("data/global/pg_control").exists());
        data.finish(method).unwrap();
        for file in ["base/1", "pg_tblspc/16385/PG_17/1", "pg_tblspc/16386/PG_17/1", "pg_wal/000000010000000000000001"]
        {
            assert_eq!(fs::read(top.join("data").join(file)).unwrap(), CONTENT, "{file}");
        }
        assert_eq!(fs::read(top.join("data/global/pg_control")).unwrap(), [1; 8192]);
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

/// P3: after a power cut at any moment a directory with a `pg_control` is whole.
#[test]
fn p3_what_has_its_control_file_is_whole() {
    for method in [SyncMethod::Fsync, SyncMethod::Syncfs] {
        let disk = Simulated::new(BLOCK);
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

#[test]
fn whatever_fails_nothing_is_left_but_what_was_there() {
    let calls = [Call::Create, Call::Open, Call::Write, Call::Sync, Call::SyncDir, Call::SyncFilesystem, Call::Rename];
    for (call, method) in calls.into_iter().flat_map(|call| [(call, SyncMethod::Fsync), (call, SyncMethod::Syncfs)]) {
        for nth in 1.. {
            let disk = Simulated::new(BLOCK);
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
    feed(&mut data, None, &[Thing::File("pg_tblspc/16385/x", Vec::new(), 0o600)]).unwrap();
    assert!(data.link_tablespaces().is_err());
    let huge = Member {
        path: MemberPath::new(b"huge").unwrap(),
        kind: MemberKind::File { size: i64::MAX as u64 },
        mode: 0o600,
        mtime: 0,
    };
    data.take(None, &TarEvent::Member(huge)).unwrap();
    assert!(disk.open(Path::new("/top/data/huge"), Access::Read).is_ok_and(|file| file.size().unwrap() == 0));
}
