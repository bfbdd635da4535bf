use super::*;
use crate::disk::AlignedBuf;

fn path(name: &str) -> PathBuf {
    Path::new("/").join(name)
}

fn read(disk: &Simulated, name: &str, access: Access) -> Option<Vec<u8>> {
    let file = disk.open(&path(name), access).ok()?;
    let mut bytes = AlignedBuf::zeroed(usize::try_from(file.size().unwrap()).unwrap().next_multiple_of(BLOCK));
    let n = file.read_at(0, &mut bytes).unwrap();
    Some(bytes[..n].to_vec())
}

/// All that a name can hold after a power cut now.
fn outcomes(disk: &Simulated, name: &str) -> Vec<Option<Vec<u8>>> {
    let mut all: Vec<_> = disk.crash_images(1, 200).map(|image| read(&image, name, Access::Read)).collect();
    all.sort();
    all.dedup();
    all
}

fn put(disk: &Simulated, name: &str, bytes: &[u8]) -> Box<dyn File> {
    let mut file = disk.create(&path(name), 0o600).unwrap();
    file.write_at(0, bytes).unwrap();
    file
}

#[test]
fn only_a_sync_of_both_keeps_a_file() {
    let disk = Simulated::new(BLOCK);
    let file = put(&disk, "a", b"abc");
    assert_eq!(outcomes(&disk, "a"), [None, Some(vec![]), Some(vec![0; 3]), Some(b"abc".to_vec())]);
    let _ = file.sync().unwrap();
    assert_eq!(outcomes(&disk, "a"), [None, Some(b"abc".to_vec())]);
    let _ = disk.sync_dir(&path("")).unwrap();
    assert_eq!(outcomes(&disk, "a"), [Some(b"abc".to_vec())]);
}

#[test]
fn a_name_without_its_data_is_an_empty_file() {
    let disk = Simulated::new(BLOCK);
    let _file = put(&disk, "a", b"abc");
    let _ = disk.sync_dir(&path("")).unwrap();
    assert_eq!(outcomes(&disk, "a"), [Some(vec![]), Some(vec![0; 3]), Some(b"abc".to_vec())]);
}

#[test]
fn sectors_stay_whole_and_come_in_any_order() {
    let disk = Simulated::new(BLOCK);
    let file = put(&disk, "a", &[1; 2 * SECTOR]);
    let _ = disk.publish(file, &path("a"), &path("b")).unwrap();
    let mut file = disk.open(&path("b"), Access::WriteDirect).unwrap();
    let mut block = AlignedBuf::zeroed(BLOCK);
    for version in [2, 3] {
        block[..2 * SECTOR].fill(version);
        file.write_at(0, &block).unwrap();
    }
    let mut pairs: Vec<_> = outcomes(&disk, "b")
        .into_iter()
        .flatten()
        .map(|bytes| {
            let sector = |n: usize| {
                let sector = &bytes[n * SECTOR..(n + 1) * SECTOR];
                assert!(sector.iter().all(|b| *b == sector[0]), "torn inside a sector");
                sector[0]
            };
            (sector(0), sector(1))
        })
        .collect();
    pairs.dedup();
    let all = [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (3, 3)];
    assert_eq!(pairs, all);
}

#[test]
fn names_come_in_any_order_and_a_rename_is_one() {
    let disk = Simulated::new(BLOCK);
    for name in ["a", "b"] {
        let _ = put(&disk, name, name.as_bytes()).sync().unwrap();
    }
    let _ = disk.sync_dir(&path("")).unwrap();
    disk.rename(&path("a"), &path("c")).unwrap();
    disk.remove(&path("b")).unwrap();
    let mut all: Vec<_> = disk.crash_images(1, 100).map(|image| image.list(&path("")).unwrap()).collect();
    all.sort_by_key(|names| names.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>());
    all.dedup();
    let all: Vec<Vec<_>> =
        all.iter().map(|names| names.iter().filter_map(|entry| entry.name.to_str()).collect()).collect();
    assert_eq!(all, [vec!["a"], vec!["a", "b"], vec!["b", "c"], vec!["c"]]);
}

#[test]
fn what_a_failed_sync_lost_stays_in_the_page_cache_alone() {
    let disk = Simulated::new(BLOCK);
    let _ = put(&disk, "a", b"old").sync().unwrap();
    let _ = disk.sync_dir(&path("")).unwrap();
    let mut file = disk.open(&path("a"), Access::Read).unwrap();
    file.write_at(0, b"new").unwrap();
    disk.fail(Call::Sync, 2, Fault::Io);
    assert_eq!(file.sync().unwrap_err().trouble(), Trouble::Failed);
    let again = disk.open(&path("a"), Access::Read).unwrap();
    let _ = again.sync().unwrap();
    assert_eq!(read(&disk, "a", Access::Read), Some(b"new".to_vec()));
    assert_eq!(read(&disk, "a", Access::ReadDirect), Some(b"old".to_vec()));
    assert_eq!(outcomes(&disk, "a"), [Some(b"old".to_vec())]);
    let buffered = Simulated { alignment: 1, ..disk };
    assert_eq!(read(&buffered, "a", Access::ReadDirect), Some(b"new".to_vec()));
}

#[test]
fn direct_transfers_must_be_aligned() {
    let disk = Simulated::new(BLOCK);
    let mut file = disk.create_zeroed(&path("a"), 2 * BLOCK as u64, 0o600).unwrap();
    let mut block = AlignedBuf::zeroed(2 * BLOCK);
    let refused = |result: Result<(), DiskError>| {
        assert_eq!(result.unwrap_err().io().raw_os_error(), Some(Errno::INVAL.raw_os_error()));
    };
    file.write_at(BLOCK as u64, &block[..BLOCK]).unwrap();
    refused(file.write_at(1, &block[..BLOCK]));
    refused(file.write_at(0, &block[..BLOCK - 1]));
    refused(file.write_at(0, &block[1..=BLOCK]));
    refused(file.read_at(0, &mut block[1..=BLOCK]).map(drop));
}

#[test]
fn a_full_disk_takes_what_fits_and_more_once_there_is_room() {
    let disk = Simulated::new(BLOCK);
    disk.set_capacity(Some(5));
    let mut file = disk.create(&path("a"), 0o600).unwrap();
    assert_eq!(file.write_at(0, b"1234567").unwrap_err().trouble(), Trouble::Full);
    assert_eq!(read(&disk, "a", Access::Read), Some(b"12345".to_vec()));
    file.write_at(0, b"abc").unwrap();
    let full = disk.create_zeroed(&path("b"), BLOCK as u64, 0o600).unwrap_err();
    assert_eq!((full.trouble(), disk.metadata(&path("b")).unwrap()), (Trouble::Full, None));
    disk.remove(&path("a")).unwrap();
    assert_eq!(disk.available(&path("")).unwrap(), 5);
}

#[test]
fn a_prefix_is_the_disk_as_it_was() {
    let disk = Simulated::new(BLOCK);
    let _ = disk.make_dirs(&path("x/y"), 0o700).unwrap();
    let file = put(&disk, "x/y/a.tmp", b"abc");
    let before = disk.operations();
    let _ = disk.publish(file, &path("x/y/a.tmp"), &path("x/y/a")).unwrap();
    assert_eq!(disk.operations(), before + 3);
    let was = |k| disk.after(k).list(&path("x/y")).unwrap();
    assert_eq!(was(before), was(before + 1));
    assert_eq!(was(before + 2), disk.list(&path("x/y")).unwrap());
    assert_ne!(was(before), was(before + 2));
    let again = |seed| disk.after(before).crash_images(seed, 9).map(|i| read(&i, "x/y/a.tmp", Access::Read));
    assert!(again(7).eq(again(7)));
}

#[test]
fn locks_links_and_trees_are_as_on_a_real_disk() {
    let disk = Simulated::new(BLOCK);
    let held = disk.lock(&path("lock"), "pid 1").unwrap();
    let taken = disk.lock(&path("lock"), "pid 2").unwrap_err();
    assert!(taken.trouble() == Trouble::Locked && taken.to_string().contains("pid 1"), "{taken}");
    assert_eq!(disk.lock_shared(&path("lock")).unwrap_err().trouble(), Trouble::Locked);
    drop(held);
    let shared = (disk.lock_shared(&path("lock")).unwrap(), disk.lock_shared(&path("lock")).unwrap());
    assert_eq!(disk.lock(&path("lock"), "pid 3").unwrap_err().trouble(), Trouble::Locked);
    drop(shared);
    disk.lock(&path("lock"), "pid 3").unwrap();
    let _ = disk.make_dirs(&path("a/b"), 0o700).unwrap();
    let _locked = disk.lock_dir(&path("a/b")).unwrap();
    assert_eq!(disk.lock_dir_shared(&path("a/b")).unwrap_err().trouble(), Trouble::Locked);
    assert_eq!(disk.lock_dir(&path("a/b")).unwrap_err().trouble(), Trouble::Locked);
    let _ = put(&disk, "a/b/f", b"abc");
    disk.symlink(Path::new("/a/b"), &path("l")).unwrap();
    assert_eq!(read(&disk, "l/f", Access::Read), Some(b"abc".to_vec()));
    disk.symlink(Path::new("/round"), &path("round")).unwrap();
    assert!(disk.metadata(&path("round")).is_err());
    disk.remove_tree(&path("a")).unwrap();
    assert_eq!(disk.metadata(&path("l/f")).unwrap(), None);
}

/// Each of the blocks is whole: 512 or 4096 bytes at once, as the device takes them.
#[test]
fn writes_are_torn_at_both_sizes_of_a_sector() {
    let disk = Simulated::new(BLOCK);
    let mut file = disk.create_zeroed(&path("a"), 4 * BLOCK as u64, 0o600).unwrap();
    let mut bytes = AlignedBuf::zeroed(4 * BLOCK);
    bytes.fill(1);
    let (mut file, _) = {
        file.write_at(0, &bytes).unwrap();
        file.sync().unwrap()
    };
    let _ = disk.sync_dir(&path("")).unwrap();
    bytes.fill(2);
    file.write_at(0, &bytes).unwrap();
    let (mut torn_inside_blocks, mut torn_between_blocks) = (0, 0);
    for found in outcomes(&disk, "a").into_iter().flatten() {
        let whole = |unit: usize| found.chunks(unit).all(|unit| unit.iter().all(|byte| *byte == unit[0]));
        assert!(whole(SECTOR), "torn inside a sector");
        torn_inside_blocks += usize::from(!whole(BLOCK));
        torn_between_blocks += usize::from(whole(BLOCK) && !whole(4 * BLOCK));
    }
    assert!(torn_inside_blocks > 50 && torn_between_blocks > 5, "{torn_inside_blocks} {torn_between_blocks}");
}

#[test]
fn of_a_few_changes_every_subset_is_left() {
    let disk = Simulated::new(BLOCK);
    for name in ["a", "b", "c", "d"] {
        disk.add_dir(&path(name), 0o700).unwrap();
    }
    let left = |images: u64| {
        let names = |image: Simulated| image.list(&path("")).unwrap().into_iter().map(|entry| entry.name).collect();
        let mut all: Vec<Vec<_>> = disk.crash_images(1, images).map(names).collect();
        all.sort();
        all.dedup();
        all.len()
    };
    assert!(left(2) < 16);
    assert_eq!(left(16), 16);
    let disk = Simulated::new(BLOCK);
    let file = put(&disk, "a", &[1; 3 * SECTOR]);
    let _ = disk.publish(file, &path("a"), &path("b")).unwrap();
    let mut file = disk.open(&path("b"), Access::Write).unwrap();
    file.write_at(0, &[2; 3 * SECTOR]).unwrap();
    let mut all: Vec<_> = disk.crash_images(1, 16).map(|image| read(&image, "b", Access::Read).unwrap()).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 8);
}

/// Whatever can be asked of a disk can fail.
#[test]
fn each_kind_of_call_fails_when_told() {
    let disk = Simulated::new(BLOCK);
    let _ = put(&disk, "a", b"abc").sync().unwrap();
    disk.symlink(Path::new("/a"), &path("l")).unwrap();
    type Work = fn(&Simulated) -> Result<(), DiskError>;
    let works: [(Call, Work); 20] = [
        (Call::Create, |disk| disk.create(&path("b"), 0o600).map(drop)),
        (Call::Create, |disk| disk.add_dir(&path("b"), 0o700)),
        (Call::Create, |disk| disk.symlink(Path::new("/a"), &path("b"))),
        (Call::Open, |disk| disk.open(&path("a"), Access::Read).map(drop)),
        (Call::Read, |disk| disk.open(&path("a"), Access::Read)?.read_at(0, &mut [0; 3]).map(drop)),
        (Call::Write, |disk| disk.open(&path("a"), Access::Write)?.write_at(0, b"x")),
        (Call::Write, |disk| disk.create_zeroed(&path("b"), 10, 0o600).map(drop)),
        (Call::Sync, |disk| disk.open(&path("a"), Access::Write)?.sync().map(drop)),
        (Call::SyncDir, |disk| disk.sync_dir(&path("")).map(drop)),
        (Call::SyncFilesystem, |disk| disk.sync_filesystem(&path("")).map(drop)),
        (Call::Rename, |disk| disk.rename(&path("a"), &path("b"))),
        (Call::Remove, |disk| disk.remove(&path("a"))),
        (Call::Remove, |disk| disk.remove_tree(&path("a"))),
        (Call::List, |disk| disk.list(&path("")).map(drop)),
        (Call::Look, |disk| disk.metadata(&path("a")).map(drop)),
        (Call::Look, |disk| disk.read_link(&path("l")).map(drop)),
        (Call::Look, |disk| disk.open(&path("a"), Access::Read)?.size().map(drop)),
        (Call::Room, |disk| disk.available(&path("")).map(drop)),
        (Call::SetAccess, |disk| disk.set_access(&path("a"), 0o600, None)),
        (Call::Lock, |disk| disk.lock_shared(&path("a")).map(drop)),
    ];
    for (call, work) in works {
        work(&disk.after(disk.operations())).unwrap();
        let failing = disk.after(disk.operations());
        failing.fail(call, 1, Fault::Io);
        let failed = work(&failing).unwrap_err();
        assert_eq!(failed.io().raw_os_error(), Some(Errno::IO.raw_os_error()), "{call:?}: {failed}");
    }
    assert!(Call::ALL.iter().all(|call| works.iter().any(|(of, _)| of == call)));
}
