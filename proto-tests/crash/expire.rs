//! P4: an expire that is cut off after any operation.

use std::error::Error;
use std::num::NonZeroU32;

use walhold::archive::WalName;
use walhold::disk::simulated::{Call, Fault};
use walhold::disk::{BLOCK, Disk, Simulated, Trouble};
use walhold::repository::{
    BackupId, BackupState, ExpireError, Kind, PENDING_LIMIT, Policy, Repository, RepositoryError, Seal,
};
use walhold::wal::{History, Segment};

use super::repository::{add_file, create, ends, is_whole, now, open, path, pending_of, prove, seal_of};
use super::world::{SIZE, START, SYSTEM, again, at, content, images, seed, size};
use crate::wal::Log;

/// Five backups with WAL between them, the second based on the first and the third on the second, and the fifth on the
/// fourth; and one that was given up long ago.
fn made() -> (Simulated, Vec<BackupId>) {
    let disk = Simulated::new(BLOCK);
    let repository = create(&disk).unwrap();
    let mut log = Log::new(START, SIZE, 1, SYSTEM);
    let mut stretches = Vec::new();
    for _backup in 0..5 {
        log.record(10, 0, &vec![3; 900_000]);
        let start = log.next_record();
        log.record(0, 0x10, &[1; 90]);
        log.record(10, 0, &vec![5; 400_000]);
        log.backup_end(start);
        stretches.push((at(start), at(log.at())));
        log.record(10, 0, &vec![7; 700_000]);
    }
    let first = Segment::containing(at(START), size());
    let mut writer = repository.archive().begin(&History::first(), first).unwrap().writer;
    writer.append(&log.bytes, &mut |_| {}).unwrap();
    let _ = writer.settle().unwrap();
    drop(writer);
    let mut ids: Vec<BackupId> = Vec::new();
    for (start, stop) in stretches {
        let folder = repository.begin_backup(now()).unwrap();
        let id = folder.id();
        let files = vec![
            add_file(&disk, &folder, "base.tar", &[7; 70_000]).unwrap(),
            add_file(&disk, &folder, Seal::MANIFEST, &[9; 700]).unwrap(),
        ];
        let parent = ids.last().copied().filter(|_| ids.len() != 3);
        let kind = if parent.is_some() { Kind::Incremental } else { Kind::Full };
        let seal = Seal { parent, kind, ..seal_of(id, start, stop, files) };
        folder.write_pending(&pending_of(id, start, Some(seal.clone()))).unwrap();
        let (proof, durable) = prove(&repository, &seal).unwrap();
        folder.seal(seal, &proof, &durable).unwrap();
        ids.push(id);
    }
    let given_up = repository.begin_backup("2026-11-01T00:00:00Z".parse().unwrap()).unwrap();
    given_up.write_pending(&pending_of(given_up.id(), at(START), None)).unwrap();
    drop(given_up);
    // One that was being compressed: both forms are there.
    let plain = content(&disk, &path().join("wal/000000010000000000000004")).unwrap();
    let compressed = path().join("wal/000000010000000000000004.zst");
    disk.create(&compressed, 0o600).unwrap().write_at(0, &zstd::encode_all(&plain[..], 1).unwrap()).unwrap();
    let _ = disk.sync_filesystem("/".as_ref()).unwrap();
    (disk.after(disk.operations()), ids)
}

fn last(n: u32) -> Policy {
    Policy::new(NonZeroU32::new(n), None, PENDING_LIMIT).unwrap()
}

/// Every backup that is listed has its files, its WAL and what it is based on.
fn all_are_whole(disk: &Simulated) -> Result<Vec<BackupId>, Box<dyn Error>> {
    let repository = open(disk)?;
    let entries = repository.backups()?;
    let mut sealed = Vec::new();
    for entry in &entries {
        match &entry.state {
            BackupState::Sealed(seal) => {
                is_whole(&repository, disk, seal).map_err(|e| format!("backup {}: {e}", entry.id))?;
                repository.chain(seal)?;
                sealed.push(entry.id);
            }
            BackupState::Pending(_) => {}
            other => return Err(format!("backup {} is {other:?}", entry.id).into()),
        }
    }
    Ok(sealed)
}

/// Nothing is left of what was to go, and nothing is missing of what was to stay.
fn is_done(disk: &Simulated, kept: &[BackupId]) -> Result<(), Box<dyn Error>> {
    let repository = open(disk)?;
    let names = |dir: &str| -> Result<Vec<String>, Box<dyn Error>> {
        Ok(disk.list(&path().join(dir))?.into_iter().map(|entry| entry.name.to_string_lossy().into_owned()).collect())
    };
    if all_are_whole(disk)? != kept || names("backups")?.len() != kept.len() {
        return Err(format!("left: {:?}", names("backups")?).into());
    }
    let first = repository.backup(kept[0])?.and_then(|entry| entry.start()).ok_or("no start")?;
    let first = Segment::containing(first, size());
    for name in names("wal")? {
        match WalName::parse(&name, size()) {
            Some(WalName::Segment { segment, .. }) if segment.no() >= first.no() => {}
            _ => return Err(format!("{name} is left").into()),
        }
    }
    Ok(())
}

#[test]
fn p4_an_expire_is_cut_off_anywhere() {
    let (disk, ids) = made();
    assert_eq!(all_are_whole(&disk).unwrap(), ids);
    open(&disk).unwrap().expire(&last(1), now()).unwrap();
    // The fifth is based on the fourth.
    let kept = &ids[3..];
    is_done(&disk, kept).unwrap();
    let operations = disk.operations();
    assert!(operations > 15, "{operations}");
    for (k, disk) in disk.prefixes().enumerate() {
        for found in ends(&disk, k) {
            let went = || -> Result<(), Box<dyn Error>> {
                all_are_whole(&found)?;
                open(&found)?.expire(&last(1), now())?;
                is_done(&found, kept)?;
                for after in found.crash_images(seed(), 1) {
                    is_done(&after, kept)?;
                }
                Ok(())
            };
            went().unwrap_or_else(|e| panic!("{e}\n  {found:?}\n  again: {}", again(seed(), Some(k))));
        }
    }
}

/// P4: the second one is cut off too, before what the first had done without syncing it is durable.
#[test]
fn p4_an_expire_that_goes_on_is_cut_off_anywhere() {
    let (disk, ids) = made();
    open(&disk).unwrap().expire(&last(1), now()).unwrap();
    for killed in disk.prefixes().map(|disk| disk.after(0)) {
        open(&killed).unwrap().expire(&last(1), now()).unwrap();
        for (k, disk) in killed.prefixes().enumerate() {
            for found in disk.crash_images(seed() ^ k as u64, 4) {
                all_are_whole(&found)
                    .unwrap_or_else(|e| panic!("{e}\n  {found:?}\n  again: {}", again(seed(), Some(k))));
            }
        }
        is_done(&killed, &ids[3..]).unwrap();
    }
}

/// Oldest first: a process that is killed leaves WAL without a hole.
#[test]
fn p4_a_killed_expire_leaves_no_hole() {
    let (disk, _) = made();
    open(&disk).unwrap().expire(&last(1), now()).unwrap();
    for disk in disk.prefixes() {
        let listing = open(&disk).unwrap().archive().list().unwrap();
        assert_eq!(listing.holes(at(0).tli()), [], "{disk:?}");
    }
}

/// P4: where a call fails, it is said, and every backup that is listed is whole.
#[test]
fn p4_a_failing_expire_takes_nothing_needed() {
    for call in [Call::Remove, Call::Rename, Call::SyncDir, Call::List, Call::Open, Call::Read, Call::Look] {
        for nth in 1.. {
            let (disk, ids) = made();
            let before = disk.calls(call);
            disk.fail(call, before + nth, Fault::Io);
            let expired =
                open(&disk).map_err(ExpireError::from).and_then(|repository| repository.expire(&last(1), now()));
            let Err(failed) = expired else {
                assert!(nth > 2, "{call:?} is called");
                break;
            };
            let (ExpireError::Repository(RepositoryError::Disk(_)) | ExpireError::Archive(_)) = &failed else {
                panic!("{call:?} {nth}: {failed}");
            };
            for found in disk.crash_images(seed() ^ nth as u64, images(3)).chain([disk.after(disk.operations())]) {
                all_are_whole(&found).unwrap_or_else(|e| panic!("{call:?} {nth}: {failed}, and {e}\n  {found:?}"));
                open(&found).unwrap().expire(&last(1), now()).unwrap();
                is_done(&found, &ids[3..]).unwrap_or_else(|e| panic!("{call:?} {nth}: {failed}, and {e}\n  {found:?}"));
            }
        }
    }
}

/// P4: nothing goes that a restore reads, and nothing while a backup tells what it needs.
#[test]
fn p4_what_is_in_use_stays() {
    let (disk, ids) = made();
    let repository = open(&disk).unwrap();
    let (_seal, held) = repository.hold(ids[2]).unwrap();
    let plan = repository.plan_expire(&last(1), now()).unwrap();
    assert_eq!(plan.removed().count(), 1, "the third, with all it is based on, is read");
    repository.expire(&last(1), now()).unwrap();
    assert_eq!(all_are_whole(&disk).unwrap(), ids);
    drop(held);
    let claim = repository.claim().unwrap();
    let busy = repository.expire(&last(1), now()).unwrap_err();
    assert!(matches!(busy, ExpireError::Busy(_)), "{busy}");
    drop(claim);
    // One that is being made stays with its WAL, whatever its age.
    let folder = repository.begin_backup("2026-11-02T00:00:00Z".parse().unwrap()).unwrap();
    folder.write_pending(&pending_of(folder.id(), at(START + SIZE), None)).unwrap();
    repository.expire(&last(1), now()).unwrap();
    assert_eq!(all_are_whole(&disk).unwrap(), ids[3..]);
    let listing = repository.archive().list().unwrap();
    assert_eq!(listing.runs(at(0).tli())[0].first.no(), START / SIZE + 1);
    drop(folder);
    repository.expire(&last(1), now()).unwrap();
    is_done(&disk, &ids[3..]).unwrap();
    assert!(repository.hold(ids[0]).is_err());
}

/// A mark is there or not after a power cut, and what it marks is whole.
#[test]
fn a_mark_survives_a_power_cut() {
    let (disk, ids) = made();
    let repository = open(&disk).unwrap();
    assert_eq!(repository.mark(format!("{}", ids[0]).parse().unwrap(), true).unwrap(), (ids[0], true));
    let marked = disk.operations();
    assert_eq!(repository.mark(format!("{}", ids[0]).parse().unwrap(), true).unwrap(), (ids[0], false));
    for (k, disk) in disk.prefixes().enumerate() {
        for found in ends(&disk, k) {
            let repository = open(&found).unwrap();
            let kept = repository.backup(ids[0]).unwrap().unwrap().kept;
            assert!(kept || k < marked, "{found:?}");
            repository.expire(&last(1), now()).unwrap();
            let expected = if kept { vec![ids[0], ids[3], ids[4]] } else { ids[3..].to_vec() };
            assert_eq!(all_are_whole(&found).unwrap(), expected);
        }
    }
    // The mark of a child keeps what that is based on.
    repository.mark(format!("{}", ids[0]).parse().unwrap(), false).unwrap();
    repository.mark(format!("{}", ids[2]).parse().unwrap(), true).unwrap();
    repository.expire(&last(1), now()).unwrap();
    assert_eq!(all_are_whole(&disk).unwrap(), ids);
    repository.mark(format!("{}", ids[2]).parse().unwrap(), false).unwrap();
    repository.expire(&last(1), now()).unwrap();
    for found in disk.crash_images(seed(), images(3)) {
        is_done(&found, &ids[3..]).unwrap();
    }
    disk.fail(Call::SyncDir, disk.calls(Call::SyncDir) + 1, Fault::Io);
    let failed = repository.mark("latest".parse().unwrap(), true).unwrap_err();
    assert!(matches!(&failed, walhold::repository::MarkError::Disk(e) if e.trouble() == Trouble::Failed), "{failed}");
}

/// What may be a backup under another name keeps everything.
#[test]
fn what_is_not_known_keeps_everything() {
    let (disk, ids) = made();
    let repository: Repository = open(&disk).unwrap();
    let _ = disk.make_dirs(&path().join("backups/lost+found"), 0o700).unwrap();
    let _ = disk.make_dirs(&path().join("backups/empty"), 0o700).unwrap();
    let stranger = path().join("backups/20261122T051500Z.old");
    let _ = disk.make_dirs(&stranger.join("x"), 0o700).unwrap();
    let refused = repository.expire(&last(1), now()).unwrap_err();
    assert!(matches!(&refused, ExpireError::Stranger(path) if *path == stranger), "{refused}");
    disk.remove_tree(&stranger).unwrap();
    let seal = repository.backup_dir(ids[0]).join("backup.json");
    disk.remove(&seal).unwrap();
    disk.create(&seal, 0o600).unwrap().write_at(0, b"{}").unwrap();
    let refused = repository.expire(&last(1), now()).unwrap_err();
    assert!(matches!(&refused, ExpireError::Undecided(_)), "{refused}");
    disk.remove_tree(&repository.backup_dir(ids[0])).unwrap();
    repository.expire(&last(1), now()).unwrap();
    assert_eq!(all_are_whole(&disk).unwrap(), ids[3..]);
}
