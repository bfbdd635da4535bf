//! The making of a repository, and of a backup in it.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use walhold::archive::{Durable, EndOfBackup, Follower, Proof};
use walhold::disk::simulated::{Call, Fault};
use walhold::disk::{BLOCK, Disk, DiskError, Simulated};
use walhold::image::ManifestAlgorithm;
use walhold::repository::{
    BackupFolder, BackupId, BackupState, CapturedBy, ConfigFiles, Durations, Kind, Method, NeededWal, PathStep,
    Pending, Repository, RepositoryError, Seal, SealedFile, SealedManifest, ServerVersion, Sha256Sum, Time,
};
use walhold::wal::{History, Pos, Segment};

use super::world::{SIZE, START, SYSTEM, again, at, content, images, seed, size};
use crate::wal::Log;

pub(super) fn path() -> PathBuf {
    PathBuf::from("/srv/backups/main")
}

pub(crate) fn now() -> Timestamp {
    "2026-11-22T05:15:00Z".parse().unwrap()
}

pub(super) fn create(disk: &Simulated) -> Result<Repository, RepositoryError> {
    Repository::open_or_create(&path(), Arc::new(disk.clone()), SYSTEM, size(), false, now())
}

pub(super) fn open(disk: &Simulated) -> Result<Repository, RepositoryError> {
    Repository::open(&path(), Arc::new(disk.clone()))
}

/// All images of a power cut, and the disk as a process leaves it that is killed.
pub(super) fn ends(disk: &Simulated, k: usize) -> Vec<Simulated> {
    disk.crash_images(seed() ^ k as u64, images(24)).chain([disk.after(0)]).collect()
}

/// A repository is there or it is not; one that was made opens, and one that was not can be made,
/// and is then as durable as if nothing had been before.
#[test]
fn a_repository_that_was_made_opens() {
    let disk = Simulated::new(BLOCK);
    create(&disk).unwrap();
    let made = disk.operations();
    for (k, disk) in disk.prefixes().enumerate() {
        for found in ends(&disk, k) {
            match open(&found) {
                Ok(repository) => assert_eq!(repository.system_id(), SYSTEM),
                Err(RepositoryError::NoSuchDirectory(_) | RepositoryError::NotARepository(_)) if k < made => {}
                Err(e) => panic!("{e}\n  {found:?}"),
            }
            create(&found).unwrap_or_else(|e| panic!("{e}\n  {found:?}"));
            for after in found.crash_images(seed(), 1) {
                open(&after).unwrap_or_else(|e| panic!("{e}\n  {found:?}\n  {after:?}"));
            }
        }
    }
}

/// A log with one backup in it, from the first position to the second.
fn log_with_backup() -> (Log, Pos, Pos) {
    let mut log = Log::new(START, SIZE, 1, SYSTEM);
    log.record(10, 0, &vec![3; 900_000]);
    let start = log.next_record();
    log.record(0, 0x10, &[1; 90]);
    log.record(10, 0, &vec![5; 300_000]);
    log.backup_end(start);
    let stop = log.at();
    log.record(10, 0, &vec![7; 100_000]);
    (log, at(start), at(stop))
}

/// A repository whose WAL ends in a partial that the receiver has written and not synced: it was
/// killed in between.
fn with_wal(log: &Log) -> Simulated {
    let disk = Simulated::new(BLOCK);
    let repository = create(&disk).unwrap();
    let first = Segment::containing(at(START), size());
    let mut writer = repository.archive().begin(&History::first(), first).unwrap().writer;
    writer.append(&log.bytes[..SIZE as usize + 10], &mut |_| {}).unwrap();
    let _ = writer.settle().unwrap();
    writer.append(&log.bytes[SIZE as usize + 10..], &mut |_| {}).unwrap();
    let _ = writer.settle().unwrap();
    disk.after(disk.operations() - 1)
}

fn version() -> ServerVersion {
    ServerVersion { number: 170_012, text: "17.12".to_owned() }
}

pub(crate) fn seal_of(id: BackupId, start: Pos, stop: Pos, files: Vec<SealedFile>) -> Seal {
    Seal {
        id,
        label: String::new(),
        kind: Kind::Full,
        parent: None,
        cuts: Default::default(),
        system_identifier: SYSTEM,
        server_version: version(),
        segment_size: SIZE,
        method: Method::Streamed,
        place: None,
        start,
        stop,
        start_time: Time(now()),
        stop_time: Time(now()),
        min_recovery_point: None,
        wal: NeededWal {
            captured_by: CapturedBy::Receiver,
            timeline_path: PathStep::all(&History::first()),
            segments: Vec::new(),
            history_files: Vec::new(),
        },
        tablespaces: Vec::new(),
        files,
        manifest: SealedManifest { algorithm: ManifestAlgorithm::Crc32c, files: 0, bytes: 0 },
        compression: "none".to_owned(),
        config_files: ConfigFiles::default(),
        slot: None,
        durations_ms: Durations::default(),
        program: "walhold test".to_owned(),
        checked: Vec::new(),
        not_checked: Vec::new(),
    }
}

pub(crate) fn pending_of(id: BackupId, start: Pos, ready: Option<Seal>) -> Pending {
    Pending {
        id,
        label: String::new(),
        system_identifier: SYSTEM,
        server_version: version(),
        method: Method::Streamed,
        start,
        stop: ready.as_ref().map(|seal| seal.stop),
        ready: ready.map(Box::new),
    }
}

/// Writes a file of the backup, and does not sync it.
pub(super) fn add_file(
    disk: &Simulated,
    folder: &BackupFolder,
    name: &str,
    bytes: &[u8],
) -> Result<SealedFile, DiskError> {
    let mut file = disk.create(&folder.dir().join(name), 0o600)?;
    for (n, part) in bytes.chunks(30_000).enumerate() {
        file.write_at(n as u64 * 30_000, part)?;
    }
    Ok(SealedFile { name: name.to_owned(), size: bytes.len() as u64, sha256: Sha256Sum::of(bytes), unpacked: None })
}

/// What had been promised after so many operations.
#[derive(Default)]
struct Promised {
    begun: usize,
    pending: usize,
    ready: usize,
    durable: usize,
    sealed: usize,
}

/// Makes the WAL durable that another process has written, and proves it.
pub(super) fn prove(repository: &Repository, seal: &Seal) -> Result<(Proof, Durable), Box<dyn Error>> {
    let mut follower = Follower::new(repository.archive(), History::first(), seal.start.lsn());
    follower.advance()?;
    let durable = follower.settle()?;
    Ok((repository.archive().prove(seal.start.lsn(), seal.stop, EndOfBackup::Record)?, durable))
}

/// Makes a backup, as far as the disk lets it; with `waits` it has to wait for its WAL meanwhile.
fn back_up(
    disk: &Simulated,
    start: Pos,
    stop: Pos,
    waits: bool,
    promised: &mut Promised,
) -> Result<BackupId, Box<dyn Error>> {
    let repository = open(disk)?;
    let folder = repository.begin_backup(now())?;
    let id = folder.id();
    promised.begun = disk.operations();
    folder.write_pending(&pending_of(id, start, None))?;
    promised.pending = disk.operations();
    let data = add_file(disk, &folder, "base.tar", &[7; 100_000])?;
    let files = vec![data, add_file(disk, &folder, Seal::MANIFEST, &[9; 700])?];
    let seal = seal_of(id, start, stop, files);
    promised.ready = usize::MAX;
    if waits {
        folder.write_pending(&pending_of(id, start, Some(seal.clone())))?;
        promised.ready = disk.operations();
    }
    let (proof, durable) = prove(&repository, &seal)?;
    promised.durable = disk.operations();
    folder.seal(seal, &proof, &durable)?;
    promised.sealed = disk.operations();
    Ok(id)
}

/// P3: whenever the power fails, a backup that bears a seal is whole, and its WAL is there.
#[test]
fn p3_a_sealed_backup_is_whole_after_a_power_cut() {
    let (log, start, stop) = log_with_backup();
    for waits in [true, false] {
        let disk = with_wal(&log);
        let mut promised = Promised::default();
        let id = back_up(&disk, start, stop, waits, &mut promised).unwrap();
        for (k, disk) in disk.prefixes().enumerate() {
            for found in ends(&disk, k) {
                judge(&found, id, &promised, k).unwrap_or_else(|e| {
                    panic!("{e}\n  {found:?}\n  again: {}", again(seed(), Some(k)));
                });
            }
        }
    }
}

fn judge(found: &Simulated, id: BackupId, promised: &Promised, k: usize) -> Result<(), Box<dyn Error>> {
    let repository = open(found)?;
    let state = repository.backup(id)?.map(|entry| entry.state);
    if k >= promised.sealed && !matches!(state, Some(BackupState::Sealed(_))) {
        return Err(format!("it was sealed, and is {state:?}").into());
    }
    match state {
        None if k >= promised.begun => return Err("its folder is gone".into()),
        Some(BackupState::Unfinished) if k >= promised.pending => return Err("its claim is gone".into()),
        None | Some(BackupState::Unfinished) => {}
        Some(BackupState::Damaged(why)) => return Err(why.into()),
        Some(BackupState::Pending(pending)) => {
            if k >= promised.ready && pending.ready.is_none() {
                return Err("it was ready to be sealed".into());
            }
            // It heals: whoever finds it, and its WAL, may seal it.
            if let Some(seal) = pending.ready {
                let (proof, durable) = match prove(&repository, &seal) {
                    Err(_) if k < promised.durable => return Ok(()),
                    proven => proven?,
                };
                repository.reopen_backup(id)?.seal(*seal, &proof, &durable)?;
                let sealed = repository.backup(id)?.map(|entry| entry.state);
                let Some(BackupState::Sealed(seal)) = sealed else { return Err("it was not sealed".into()) };
                is_whole(&repository, found, &seal)?;
                for after in found.crash_images(seed(), 1) {
                    is_whole(&open(&after)?, &after, &seal)?;
                }
            }
        }
        Some(BackupState::Sealed(seal)) => is_whole(&repository, found, &seal)?,
    }
    Ok(())
}

pub(super) fn is_whole(repository: &Repository, disk: &Simulated, seal: &Seal) -> Result<(), Box<dyn Error>> {
    for file in &seal.files {
        let bytes = content(disk, &repository.backup_dir(seal.id).join(&file.name))?;
        if bytes.len() as u64 != file.size || Sha256Sum::of(&bytes) != file.sha256 {
            return Err(format!("it is sealed, and {} is not what it was", file.name).into());
        }
    }
    repository.archive().prove(seal.start.lsn(), seal.stop, EndOfBackup::Record)?;
    Ok(())
}

/// P3: a call that fails leaves the backup without a seal, and without one that a power cut brings back; or the
/// backup is whole, because it could do without.
#[test]
fn p3_whatever_call_fails_what_is_sealed_is_whole() {
    let (log, start, stop) = log_with_backup();
    let good = with_wal(&log);
    back_up(&good, start, stop, true, &mut Promised::default()).unwrap();
    let id: BackupId = "20261122T051500Z".parse().unwrap();
    let mut failures = 0;
    for call in Call::ALL {
        let calls = good.calls(call);
        for (nth, fault) in (1..=calls).flat_map(|nth| [(nth, Fault::Io), (nth, Fault::Full)]) {
            let disk = with_wal(&log);
            disk.fail(call, nth, fault);
            let done = back_up(&disk, start, stop, true, &mut Promised::default());
            failures += usize::from(done.is_err());
            let said = !matches!(call, Call::Sync | Call::SyncDir | Call::Write | Call::Rename);
            assert!(said || done.is_err(), "{call:?} {nth} failed, and nobody said so");
            let context = format!("{call:?} {nth} of {calls}: {done:?}");
            let sealed_by_then = open(&disk).unwrap().backup(id).unwrap();
            let sealed_by_then = sealed_by_then.is_some_and(|entry| matches!(entry.state, BackupState::Sealed(_)));
            assert!(done.is_err() || sealed_by_then, "{context}");
            for found in disk.crash_images(seed() ^ nth as u64, images(3)) {
                let repository = open(&found).unwrap();
                let state = repository.backup(id).unwrap().map(|entry| entry.state);
                if let Some(BackupState::Sealed(seal)) = state {
                    assert!(sealed_by_then, "{context}, and then it is sealed\n  {found:?}");
                    is_whole(&repository, &found, &seal).unwrap_or_else(|e| panic!("{context}, {e}\n  {found:?}"));
                } else {
                    assert!(done.is_err(), "{context}, and its seal is gone\n  {found:?}");
                }
            }
        }
    }
    assert!(failures > 60, "{failures}");
}

/// What a full disk has cut short stays without a seal, and the next backup is made as ever.
#[test]
fn a_full_disk_seals_nothing() {
    let (log, start, stop) = log_with_backup();
    for room in [0, 100, 1_000, 50_000, 100_500, 101_500, 103_000] {
        let disk = with_wal(&log);
        disk.set_capacity(Some(u64::MAX));
        let used = u64::MAX - disk.available("/".as_ref()).unwrap();
        disk.set_capacity(Some(used + room));
        let full = back_up(&disk, start, stop, true, &mut Promised::default()).unwrap_err();
        assert!(full.to_string().contains("No space left"), "{full}");
        let repository = open(&disk).unwrap();
        for found in disk.crash_images(seed(), images(3)).chain([disk.after(disk.operations())]) {
            assert_eq!(open(&found).unwrap().latest_sealed().unwrap(), None);
        }
        disk.set_capacity(None);
        let id = back_up(&disk, start, stop, true, &mut Promised::default()).unwrap();
        assert_eq!(repository.latest_sealed().unwrap().map(|seal| seal.id), Some(id));
    }
}
