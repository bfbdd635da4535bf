//! The repository on a real file system, with WAL made by hand.

#![allow(clippy::disallowed_methods, reason = "the folders are set up and damaged from outside")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::archive::{Durable, EndOfBackup, Follower, Proof};
use crate::disk::Real;
use crate::image::{Cuts, ManifestAlgorithm};
use crate::wal::chain::built::Log;
use crate::wal::{History, Lsn, Pos, TimelineId};

pub(crate) const SIZE: u64 = 1 << 20;
pub(crate) const START: u64 = 3 * SIZE;
pub(crate) const SYSTEM: u64 = 7_710_961_556_191_347_314;

pub(crate) fn now() -> Timestamp {
    "2026-11-22T05:15:00Z".parse().unwrap()
}

pub(crate) fn at(lsn: u64) -> Pos {
    Pos::new(TimelineId::FIRST, Lsn::new(lsn))
}

/// A repository with the WAL of `log` as complete segments and a partial at its end.
pub(crate) fn with_wal(dir: &Path, log: &Log) -> Repository {
    let size = SegmentSize::new(SIZE).unwrap();
    let repository = Repository::create(dir, Arc::new(Real::new()), SYSTEM, size, false, now()).unwrap();
    let mut writer = repository
        .archive()
        .begin(&History::first(), crate::wal::Segment::containing(at(log.start), size))
        .unwrap()
        .writer;
    writer.append(&log.bytes, &mut |_| {}).unwrap();
    let _ = writer.settle().unwrap();
    repository
}

/// A log with one backup in it, from the first position to the second.
pub(crate) fn log_with_backup() -> (Log, Pos, Pos) {
    let mut log = Log::new(START, SIZE, 1, SYSTEM);
    for n in 0..300_usize {
        log.record(10, 0, &vec![n as u8 | 1; 4000]);
    }
    let start = log.next_record();
    // A checkpoint that began ten seconds before.
    let mut checkpoint = [0; 88];
    checkpoint[64..72].copy_from_slice(&(now().as_second() - 10).to_le_bytes());
    log.record(0, 0x10, &[&[255, 88][..], &checkpoint].concat());
    for n in 0..300_usize {
        log.record(10, 0, &vec![n as u8 | 1; 4000]);
    }
    log.backup_end(start);
    let stop = log.at();
    log.switch();
    for n in 0..100_usize {
        log.record(10, 0, &vec![n as u8 | 1; 4000]);
    }
    (log, at(start), at(stop))
}

pub(crate) fn proven(repository: &Repository, start: Pos, stop: Pos) -> (Proof, Durable) {
    let archive = repository.archive();
    let proof = archive.prove(start.lsn(), stop, EndOfBackup::Record).unwrap();
    let mut follower = Follower::new(archive, History::first(), start.lsn());
    follower.advance().unwrap();
    (proof, follower.settle().unwrap())
}

pub(crate) fn seal_of(id: BackupId, start: Pos, stop: Pos, files: Vec<SealedFile>) -> Seal {
    Seal {
        id,
        label: "night \"1\"".to_owned(),
        kind: Kind::Full,
        parent: None,
        cuts: Cuts::default(),
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
        checked: vec!["all".to_owned()],
        not_checked: Vec::new(),
    }
}

fn version() -> ServerVersion {
    ServerVersion { number: 170_012, text: "17.12".to_owned() }
}

pub(crate) fn pending_of(id: BackupId, start: Pos, stop: Option<Pos>) -> Pending {
    let system_identifier = SYSTEM;
    let (server_version, method, label) = (version(), Method::Streamed, String::new());
    Pending { id, label, system_identifier, server_version, method, start, stop, ready: None }
}

/// A file in the folder, and what a seal says of it.
pub(crate) fn add_file(folder: &BackupFolder, name: &str, content: &[u8]) -> SealedFile {
    fs::write(folder.dir().join(name), content).unwrap();
    SealedFile { name: name.to_owned(), size: content.len() as u64, sha256: Sha256Sum::of(content), unpacked: None }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn create(dir: &Path, group: bool) -> Result<Repository, RepositoryError> {
    Repository::create(dir, Arc::new(Real::new()), SYSTEM, SegmentSize::DEFAULT, group, now())
}

fn open(dir: &Path) -> Result<Repository, RepositoryError> {
    Repository::open(dir, Arc::new(Real::new()))
}

#[test]
fn a_repository_is_made_once_and_opened() {
    let top = tempfile::tempdir().unwrap();
    for (name, group, dir_mode, file_mode) in [("a/b/c", false, 0o700, 0o600), ("g", true, 0o750, 0o640)] {
        let dir = top.path().join(name);
        let made = create(&dir, group).unwrap();
        assert_eq!(names(&dir), ["backups", "lock", "repository.json", "wal"]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&dir.join("wal")), mode(&dir.join(IDENTITY))), (dir_mode, dir_mode, file_mode));
        assert_eq!((made.system_id(), made.segment_size()), (SYSTEM, SegmentSize::DEFAULT));
        let opened = open(&dir).unwrap();
        assert_eq!((opened.system_id(), opened.modes()), (SYSTEM, Modes::new(group)));
        assert_eq!(opened.archive().dir(), dir.join("wal"));
        assert!(matches!(create(&dir, group), Err(RepositoryError::Exists(_))));
        let open_as = |system_id, mib: u64| {
            let size = SegmentSize::new(mib << 20).unwrap();
            Repository::open_or_create(&dir, Arc::new(Real::new()), system_id, size, group, now())
        };
        assert!(open_as(SYSTEM, 16).is_ok());
        assert!(matches!(open_as(1, 16), Err(RepositoryError::OtherCluster { held: SYSTEM, server: 1, .. })));
        assert!(matches!(open_as(SYSTEM, 64), Err(RepositoryError::OtherSegmentSize { .. })));
    }
}

#[test]
fn a_making_that_was_cut_off_is_gone_on_with() {
    let top = tempfile::tempdir().unwrap();
    create(top.path(), false).unwrap();
    fs::rename(top.path().join(IDENTITY), top.path().join("repository.json.tmp")).unwrap();
    assert!(matches!(open(top.path()), Err(RepositoryError::NotARepository(_))));
    create(top.path(), false).unwrap();
    open(top.path()).unwrap();
}

#[test]
fn what_is_no_repository_is_named() {
    let top = tempfile::tempdir().unwrap();
    assert!(matches!(open(&top.path().join("none")), Err(RepositoryError::NoSuchDirectory(_))));
    assert!(matches!(open(top.path()), Err(RepositoryError::NotARepository(_))));
    fs::write(top.path().join("notes"), "mine").unwrap();
    assert!(matches!(create(top.path(), false), Err(RepositoryError::NotEmpty { found, .. }) if found == "notes"));
    fs::remove_file(top.path().join("notes")).unwrap();
    create(top.path(), false).unwrap();
    fs::write(top.path().join("wal/00000002.history"), "").unwrap();
    fs::remove_file(top.path().join(IDENTITY)).unwrap();
    assert!(matches!(open(top.path()), Err(RepositoryError::IdentityLost { part: "wal", .. })));
    assert!(matches!(create(top.path(), false), Err(RepositoryError::IdentityLost { part: "wal", .. })));
}

#[test]
fn p6_a_damaged_identity_is_refused() {
    let top = tempfile::tempdir().unwrap();
    create(top.path(), false).unwrap();
    let path = top.path().join(IDENTITY);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("16777216", "33554432")).unwrap();
    let refused = open(top.path());
    assert!(matches!(refused, Err(RepositoryError::Document { source: DocumentError::Checksum, .. })), "{refused:?}");
    fs::write(&path, vec![b' '; sealed::MAX_BYTES + 1]).unwrap();
    let refused = open(top.path());
    assert!(matches!(refused, Err(RepositoryError::Document { source: DocumentError::TooLong(_), .. })), "{refused:?}");
}

/// P5: one writer.
#[test]
fn a_second_writer_is_told_who_the_first_is() {
    let top = tempfile::tempdir().unwrap();
    let repository = create(top.path(), false).unwrap();
    let [one, two] = [Task::Backup, Task::Receive].map(|task| Holder { task, process: 7, host: "there".into() });
    let held = repository.lock(&one).unwrap();
    let refused = repository.lock(&two).unwrap_err();
    assert!(matches!(&refused, RepositoryError::Locked(_)));
    assert!(refused.to_string().contains("in use by walhold backup, process 7 on there"), "{refused}");
    assert_eq!(refused.holder(), Some(one));
    open(top.path()).unwrap();
    drop(held);
    repository.lock(&two).unwrap();
}

#[test]
fn folders_begun_in_one_second_have_names_of_their_own() {
    let top = tempfile::tempdir().unwrap();
    let repository = create(top.path(), false).unwrap();
    let one = repository.begin_backup(now()).unwrap();
    let two = repository.begin_backup(now()).unwrap();
    assert_eq!(
        (one.id().to_string().as_str(), two.id().to_string().as_str()),
        ("20261122T051500Z", "20261122T051501Z")
    );
    assert!(matches!(repository.reopen_backup(two.id()), Err(RepositoryError::Locked(_))));
    assert!(repository.backup(two.id()).unwrap().unwrap().running);
    two.discard().unwrap();
    assert_eq!(names(&top.path().join("backups")), ["20261122T051500Z"]);
    drop(one);
    assert!(!repository.backups().unwrap()[0].running);
    repository.reopen_backup(repository.backups().unwrap()[0].id).unwrap();
}

/// P3: from the first byte to the seal, nothing but the seal makes a backup that is offered.
#[test]
fn a_backup_is_offered_only_once_it_is_sealed() {
    let top = tempfile::tempdir().unwrap();
    let (log, start, stop) = log_with_backup();
    let repository = with_wal(top.path(), &log);
    let (proof, durable) = proven(&repository, start, stop);
    let folder = repository.begin_backup(now()).unwrap();
    let id = folder.id();
    let refused = |expected: &str| {
        assert_eq!(repository.latest_sealed().unwrap(), None);
        assert!(matches!(repository.find(Which::Latest), Err(NotUsable::None)));
        assert_eq!(repository.find(Which::Named(id)).unwrap_err().to_string(), expected);
    };
    refused("backup 20261122T051500Z is not complete: it is being made");
    folder.write_pending(&pending_of(id, start, None)).unwrap();
    refused("backup 20261122T051500Z is not complete: it is being made");
    folder.write_pending(&pending_of(id, start, Some(stop))).unwrap();
    refused(&format!("backup 20261122T051500Z is not complete: it waits for WAL up to {stop}"));
    let file = add_file(&folder, "base.tar", b"data");
    let seal = seal_of(id, start, stop, vec![file]);
    let sealed = folder.seal(seal, &proof, &durable).unwrap();
    assert_eq!(sealed.seal().wal.segments, SegmentRange::all(proof.segments()));
    assert!(sealed.seal().wal.segments[0].count > 1);
    assert_eq!(names(&repository.backup_dir(id)), ["backup.json", "base.tar"]);
    assert_eq!(&repository.find(Which::Named(id)).unwrap(), sealed.seal());
    assert_eq!(repository.latest_sealed().unwrap().as_ref(), Some(sealed.seal()));
    // A crash before the pending document was removed.
    let dir = repository.backup_dir(id);
    fs::write(dir.join("backup.pending.json"), write(&pending_of(id, start, None)).unwrap()).unwrap();
    assert_eq!(&repository.find(Which::Latest).unwrap(), sealed.seal());
}

/// P3: the proof and the durable position must be those of the backup's own WAL.
#[test]
fn a_seal_without_its_proof_is_refused() {
    let top = tempfile::tempdir().unwrap();
    let (log, start, stop) = log_with_backup();
    let repository = with_wal(top.path(), &log);
    let (proof, durable) = proven(&repository, start, stop);
    let mut early = Follower::new(repository.archive(), History::first(), start.lsn());
    let nothing = early.settle().unwrap();
    assert!(nothing.pos().lsn() < stop.lsn());
    let attempt = |change: &dyn Fn(&mut Seal), durable: &Durable| {
        let folder = repository.begin_backup(now()).unwrap();
        let (id, dir) = (folder.id(), folder.dir().to_owned());
        let file = add_file(&folder, "base.tar", b"data");
        let mut seal = seal_of(id, start, stop, vec![file]);
        change(&mut seal);
        let refused = folder.seal(seal, &proof, durable).unwrap_err();
        assert_eq!(names(&dir), ["base.tar"]);
        refused
    };
    let e = attempt(&|_| {}, &nothing);
    assert!(matches!(e, SealError::NotDurable { .. }), "{e}");
    let later = |pos: Pos| pos.at(pos.lsn().saturating_add(8));
    let e = attempt(&|seal| seal.stop = later(stop), &durable);
    assert!(matches!(e, SealError::NotProven { .. }), "{e}");
    let e = attempt(&|seal| seal.start = later(start), &durable);
    assert!(matches!(e, SealError::NotProven { .. }), "{e}");
    let e = attempt(&|seal| seal.stop = Pos::new(TimelineId::new(2).unwrap(), stop.lsn()), &durable);
    assert!(matches!(e, SealError::NotProven { .. }), "{e}");
    let e = attempt(&|seal| seal.system_identifier += 1, &durable);
    assert!(matches!(e, SealError::OtherCluster), "{e}");
    let e = attempt(&|seal| seal.id = seal.id.next(), &durable);
    assert!(matches!(e, SealError::OtherBackup { .. }), "{e}");
    let e = attempt(&|seal| seal.files[0].size += 1, &durable);
    assert!(matches!(e, SealError::File { found: Some(4), expected: 5, .. }), "{e}");
    let e = attempt(&|seal| seal.files[0].name = "16385.tar".to_owned(), &durable);
    assert!(matches!(e, SealError::File { found: None, .. }), "{e}");
}

#[test]
fn backups_are_ordered_by_timeline_and_start_not_by_name() {
    let top = tempfile::tempdir().unwrap();
    let repository = create(top.path(), false).unwrap();
    let put = |name: &str, tli: u32, lsn: u64| {
        let dir = top.path().join("backups").join(name);
        fs::create_dir(&dir).unwrap();
        let pos = |lsn| Pos::new(TimelineId::new(tli).unwrap(), Lsn::new(lsn));
        let mut seal = seal_of(name.parse().unwrap(), pos(lsn), pos(lsn + 100), vec![]);
        seal.segment_size = SegmentSize::DEFAULT.bytes();
        fs::write(dir.join("backup.json"), write(&seal).unwrap()).unwrap();
    };
    put("20261122T000003Z", 1, 0x200_0028);
    put("20261122T000002Z", 2, 0x100_0028);
    put("20261122T000001Z", 1, 0x300_0028);
    fs::create_dir(top.path().join("backups/20261122T000000Z")).unwrap();
    fs::create_dir(top.path().join("backups/lost+found")).unwrap();
    fs::write(top.path().join("backups/20261122T000009Z"), "no folder").unwrap();
    let order: Vec<_> = repository.backups().unwrap().iter().map(|entry| entry.id.to_string()).collect();
    assert_eq!(order, ["20261122T000003Z", "20261122T000001Z", "20261122T000002Z", "20261122T000000Z"]);
    assert_eq!(repository.latest_sealed().unwrap().unwrap().id.to_string(), "20261122T000002Z");
}

#[test]
fn p6_seals_that_are_damaged_or_foreign_are_not_offered() {
    let top = tempfile::tempdir().unwrap();
    let repository = create(top.path(), false).unwrap();
    let id: BackupId = "20261122T051500Z".parse().unwrap();
    let dir = repository.backup_dir(id);
    fs::create_dir(&dir).unwrap();
    let mut seal = seal_of(id, at(0x200_0028), at(0x200_0100), vec![]);
    seal.segment_size = SegmentSize::DEFAULT.bytes();
    let put = |seal: &Seal| fs::write(dir.join("backup.json"), write(seal).unwrap()).unwrap();
    put(&seal);
    assert_eq!(repository.find(Which::Latest).unwrap(), seal);
    let damaged = || {
        assert!(matches!(repository.find(Which::Latest), Err(NotUsable::None)));
        let error = repository.find(Which::Named(id)).unwrap_err();
        assert!(matches!(error, NotUsable::Damaged { .. }));
        error.to_string()
    };
    let mut other = seal.clone();
    other.system_identifier = 5;
    put(&other);
    assert!(damaged().contains("another cluster"));
    let mut other = seal.clone();
    other.id = id.next();
    put(&other);
    assert!(damaged().contains("another backup"));
    let mut other = seal.clone();
    let outside = SealedFile { name: "../x".into(), size: 0, sha256: Sha256Sum::of(b""), unpacked: None };
    other.files = vec![outside];
    put(&other);
    assert!(damaged().contains("outside"));
    let bytes = write(&seal).unwrap();
    fs::write(dir.join("backup.json"), &bytes[..bytes.len() - 1]).unwrap();
    assert!(damaged().contains("does not end in its own checksum"));
}

#[test]
fn reading_needs_no_right_to_write() {
    let top = tempfile::tempdir().unwrap();
    let repository = create(top.path(), false).unwrap();
    repository.begin_backup(now()).unwrap();
    let before = (names(top.path()), names(&top.path().join("backups")));
    for dir in ["", "wal", "backups", "backups/20261122T051500Z"] {
        fs::set_permissions(top.path().join(dir), fs::Permissions::from_mode(0o500)).unwrap();
    }
    // Where the tests run as root the mode keeps nobody out: then only the absence of traces shows.
    let opened = open(top.path()).unwrap();
    assert_eq!(opened.backups().unwrap().len(), 1);
    assert!(opened.archive().list().unwrap().is_empty());
    assert_eq!((names(top.path()), names(&top.path().join("backups"))), before);
}
