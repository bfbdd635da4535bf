//! Verdicts about hand-made repositories.

#![allow(clippy::disallowed_methods, reason = "the folders are damaged from outside")]

use std::fs;

mod flips;
mod input;
mod live;
mod pieces;

use super::*;
use crate::repository::made::{Parts, reseal, write_seal};
use crate::repository::tests::{SIZE, SYSTEM, now};
use crate::repository::{Repository, Seal};
use crate::wal::chain::built::Log;

struct Scene {
    top: tempfile::TempDir,
    repository: Repository,
    seal: Seal,
}

impl Scene {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        let (repository, seal) = Parts::new().make(top.path());
        Self { top, repository, seal }
    }

    fn verify(&self, which: Option<BackupId>) -> Report {
        let cut = Cut { threads: jobs::THREADS, piece: None, patience: Duration::ZERO };
        verify_cut(&self.repository, which, cut, &mut |_| {}).unwrap()
    }

    /// The one backup's verdict, as text and in one line.
    fn verdict(&self) -> String {
        let report = self.verify(Some(self.seal.id));
        assert_eq!((report.backups.len(), report.wal.is_none()), (1, true));
        report.backups[0].to_string()
    }

    fn not_usable(&self, reason: &str) {
        let verdict = self.verdict();
        assert!(verdict.starts_with(&format!("{}  NOT USABLE  ", self.seal.id)), "{verdict}");
        assert!(verdict.contains(reason), "{verdict} is not about {reason}");
        assert!(!self.verify(None).is_good());
    }

    fn change(&self, below: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.top.path().join(below);
        let mut content = fs::read(&path).unwrap();
        change(&mut content);
        fs::write(path, content).unwrap();
    }

    fn in_backup(&self, name: &str) -> String {
        format!("backups/{}/{name}", self.seal.id)
    }

    fn problems(&self) -> Vec<String> {
        self.verify(None).wal.unwrap().problems.iter().map(ToString::to_string).collect()
    }

    fn wal(&self, tli: u32, no: u64) -> String {
        format!("wal/{tli:08X}00000000{no:08X}")
    }
}

#[test]
fn a_whole_repository_is_good() {
    let scene = Scene::new();
    let mut told = Vec::new();
    let report = verify(&scene.repository, None, &mut |event| told.push(event)).unwrap();
    assert!(report.is_good());
    let Verdict::Usable { checked } = &report.backups[0].verdict else { panic!("{report:?}") };
    assert_eq!((checked.files, checked.by_checksum, checked.segments, checked.folder_files), (7, 7, 2, 2));
    let wal = report.wal.as_ref().unwrap();
    assert_eq!((wal.segments, wal.stretches.len(), &wal.problems), (4, 1, &Vec::new()));
    assert_eq!((wal.stretches[0].from.get(), wal.stretches[0].timeline.get()), (3 * SIZE, 1));
    assert!(wal.stretches[0].to > scene.seal.stop.lsn());
    assert!(matches!(told[0], VerifyEvent::Begun { backups: 1, segments: 4, .. }), "{:?}", told[0]);
    assert_eq!(told.iter().filter(|event| matches!(event, VerifyEvent::Segment(_))).count(), 4);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["system_identifier"], SYSTEM.to_string());
    assert_eq!(json["backups"][0]["verdict"], "usable");
    assert_eq!(json["backups"][0]["stop"]["lsn"], scene.seal.stop.lsn().to_string());
}

/// P3: each needed segment, each file of the folder: without it, or with one bit of it changed, the
/// backup is not usable and the reason names it.
#[test]
fn p3_a_backup_is_usable_only_whole() {
    let scene = Scene::new();
    let needed = format!("the backup needs {} to {}", scene.seal.start.lsn(), scene.seal.stop.lsn());
    for no in [4, 5] {
        let name = scene.wal(1, no);
        let path = scene.top.path().join(&name);
        let content = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        scene.not_usable(&format!("segment {} is missing; {needed}", &name[4..]));
        let mut damaged = content.clone();
        damaged[200_000] ^= 0x10;
        fs::write(&path, &damaged).unwrap();
        scene.not_usable(&format!("segment {}: WAL is not valid at", &name[4..]));
        fs::write(&path, &content[..100_000]).unwrap();
        scene.not_usable(&format!("segment {} ends after 100000 bytes; {needed}", &name[4..]));
        fs::write(&path, &content).unwrap();
    }
    for name in ["base.tar.zst", "backup_manifest"] {
        let path = scene.top.path().join(scene.in_backup(name));
        let content = fs::read(&path).unwrap();
        for at in (0..content.len()).step_by(97) {
            scene.change(&scene.in_backup(name), |bytes| bytes[at] ^= 1);
            scene.not_usable(name);
            fs::write(&path, &content).unwrap();
        }
        scene.change(&scene.in_backup(name), |bytes| bytes.push(0));
        scene.not_usable("the seal says");
        fs::remove_file(&path).unwrap();
        scene.not_usable(&format!("\"{name}\" is missing"));
        fs::write(&path, &content).unwrap();
    }
    scene.change(&scene.in_backup("backup.json"), |bytes| bytes[100] ^= 1);
    scene.not_usable("checksum");
}

/// P3: what is sealed is held against the manifest, and the manifest against the seal.
#[test]
fn p3_a_seal_over_other_content_does_not_help() {
    let scene = Scene::new();
    let mut seal = scene.seal.clone();
    let manifest = fs::read(scene.top.path().join(scene.in_backup("backup_manifest"))).unwrap();
    let mut lying = String::from_utf8(manifest.clone()).unwrap();
    lying = lying.replace("300000", "300001");
    reseal(&scene.repository, &mut seal, "backup_manifest", lying.as_bytes());
    scene.not_usable("does not match its own checksum");
    reseal(&scene.repository, &mut seal, "backup_manifest", &manifest);
    assert!(scene.verdict().contains("USABLE      7 files"), "{}", scene.verdict());
    // The end of a record, but not of the one that ends the backup.
    seal.stop = seal.stop.at(crate::wal::Lsn::new(seal.start.lsn().get() + 8192));
    write_seal(&scene.repository, &seal);
    scene.not_usable("no end-of-backup record");
    seal.min_recovery_point = Some(seal.stop);
    write_seal(&scene.repository, &seal);
    scene.not_usable("the manifest says that the backup needs");
    seal = scene.seal.clone();
    seal.files[0].unpacked = Some(5);
    write_seal(&scene.repository, &seal);
    scene.not_usable("the seal says 5");
}

#[test]
fn what_is_not_sealed_is_said_to_be_so() {
    let scene = Scene::new();
    let folder = scene.repository.begin_backup(now()).unwrap();
    let report = scene.verify(None);
    assert!(report.is_good());
    let last = report.backups.last().unwrap();
    assert!(matches!(last.verdict, Verdict::NotSealed { running: true, waiting_for: None, .. }), "{last}");
    let pending = crate::repository::Pending {
        id: folder.id(),
        label: String::new(),
        system_identifier: SYSTEM,
        server_version: scene.seal.server_version.clone(),
        method: scene.seal.method,
        start: scene.seal.start,
        stop: Some(scene.seal.stop),
        ready: None,
    };
    folder.write_pending(&pending).unwrap();
    let id = folder.id();
    drop(folder);
    let report = scene.verify(Some(id));
    assert_eq!(
        report.backups[0].to_string(),
        format!("{id}  NOT SEALED  backup {id} is not complete: it waits for WAL up to {}", scene.seal.stop)
    );
    assert!(matches!(
        verify(
            &scene.repository,
            Some(BackupId::new(now().checked_add(jiff::SignedDuration::from_hours(1)).unwrap())),
            &mut |_| {}
        ),
        Err(VerifyError::NotFound(_))
    ));
}

#[test]
fn the_archive_is_walked_to_its_last_byte() {
    let scene = Scene::new();
    assert_eq!(scene.problems(), Vec::<String>::new());
    let path = scene.top.path().join(scene.wal(1, 5));
    let content = fs::read(&path).unwrap();
    // In the zeros after the switch, which no backup needs.
    scene.change(&scene.wal(1, 5), |bytes| *bytes.last_mut().unwrap() = 1);
    let problems = scene.problems();
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0]
            .starts_with("timeline 1: segment 000000010000000000000005 is damaged: WAL is not valid at 0/5FFFFF")
    );
    assert!(problems[0].contains("(byte 1048575 of 000000010000000000000005): "), "{}", problems[0]);
    assert!(
        problems[0].ends_with(&format!("recovery from backup {} ends at 0/5C0000", scene.seal.id)),
        "{}",
        problems[0]
    );
    scene.change(&scene.wal(1, 5), |bytes| *bytes = [&content[..], b"x"].concat());
    assert!(scene.problems()[0].contains("more than 1048576 bytes"));
    fs::write(&path, &content[..SIZE as usize - 8192]).unwrap();
    assert!(scene.problems()[0].contains("must have 1048576"));
    fs::remove_file(&path).unwrap();
    let problems = scene.problems();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("segment 000000010000000000000005 is missing"));
    assert_eq!(scene.verify(None).wal.unwrap().stretches.len(), 2);
    fs::write(&path, &content).unwrap();
    // Bytes far behind the last record of a partial are left of a write that was cut short.
    scene.change(&format!("{}.partial", scene.wal(1, 6)), |bytes| *bytes.last_mut().unwrap() = 1);
    let report = scene.verify(None);
    let wal = report.wal.as_ref().unwrap();
    assert_eq!((wal.problems.len(), wal.problems[0].kind), (1, ProblemKind::Torn));
    assert!(report.is_good());
    scene.change(&format!("{}.partial", scene.wal(1, 6)), |bytes| *bytes.last_mut().unwrap() = 0);
    assert_eq!(scene.problems(), Vec::<String>::new());
    // But the partial of a later beginning is a hole.
    fs::copy(&path, scene.top.path().join(scene.wal(1, 8))).unwrap();
    let problems = scene.problems().join("\n");
    assert!(problems.contains("segment 000000010000000000000006 is incomplete"), "{problems}");
    assert!(problems.contains("segment 000000010000000000000007 is missing"), "{problems}");
    assert!(problems.contains("segment 000000010000000000000008 is damaged"), "{problems}");
}

/// A first record that links elsewhere than to the last one before it: a clone's WAL.
#[test]
fn p5_the_segments_of_one_timeline_are_one_chain() {
    let scene = Scene::new();
    let mut other = Log::new(5 * SIZE, SIZE, 1, SYSTEM);
    (0..300).for_each(|_| other.record(10, 0, &[3; 4000]));
    scene.change(&scene.wal(1, 5), |bytes| *bytes = other.bytes[..SIZE as usize].to_vec());
    assert!(scene.problems()[0].contains("segment 000000010000000000000005 is damaged"));
    scene.not_usable("000000010000000000000005");
}

#[test]
fn timelines_must_meet() {
    let scene = Scene::new();
    let put = |name: &str, content: &[u8]| fs::write(scene.top.path().join("wal").join(name), content).unwrap();
    let mut log = Log::new(8 * SIZE, SIZE, 2, SYSTEM);
    (0..300).for_each(|_| log.record(10, 0, &[1; 4000]));
    put("000000020000000000000008", &log.bytes[..SIZE as usize]);
    let problems = scene.problems();
    assert_eq!(problems, ["timeline 2: 00000002.history is missing: recovery cannot go along this timeline"]);
    put("00000002.history", format!("1\t0/{:X}\tx\n", 8 * SIZE + 8192).as_bytes());
    let problems = scene.problems();
    assert!(
        problems[0].contains("segments 000000010000000000000006 to 000000010000000000000007 are missing"),
        "{problems:?}"
    );
    assert!(problems[0].contains("cannot be recovered along timeline 2"), "{problems:?}");
    put("00000002.history", format!("1\t0/{:X}\tx\n", 6 * SIZE + 8192).as_bytes());
    let problems = scene.problems();
    assert!(
        problems[0].contains("segments 000000020000000000000006 to 000000020000000000000007 are missing"),
        "{problems:?}"
    );
    put("00000003.history", b"nonsense");
    assert!(scene.problems().iter().any(|problem| problem.starts_with("timeline 3: cannot read")));
}

/// The note of a gap bears the name of the first segment that is not whole. What is missing behind that is the
/// same gap, and what is missing behind the next complete segment is not.
#[test]
fn an_accepted_gap_is_one_whatever_its_names_look_like() {
    let scene = Scene::new();
    let top = scene.top.path();
    let mut log = Log::new(8 * SIZE, SIZE, 1, SYSTEM);
    (0..300).for_each(|_| log.record(10, 0, &[3; 4000]));
    fs::write(top.join(scene.wal(1, 8)), &log.bytes[..SIZE as usize]).unwrap();
    let kinds = || scene.verify(None).wal.unwrap().problems.iter().map(|problem| problem.kind).collect::<Vec<_>>();
    assert!(top.join(format!("{}.partial", scene.wal(1, 6))).exists());
    assert_eq!(kinds(), [ProblemKind::Hole; 2]);
    fs::write(top.join(format!("{}.gap", scene.wal(1, 6))), "").unwrap();
    assert_eq!(kinds(), [ProblemKind::AcceptedGap; 2]);
    assert!(scene.verify(None).is_good());
    fs::write(top.join(scene.wal(1, 10)), &log.bytes[..SIZE as usize]).unwrap();
    assert!(kinds().contains(&ProblemKind::Hole));
}

/// Nightly backups without a receiver: what lies between them is missing and was never promised.
#[test]
fn holes_between_backups_that_captured_their_own_wal_are_no_alarm() {
    let scene = Scene::new();
    // What is left of an earlier night.
    fs::remove_file(scene.top.path().join(scene.wal(1, 3))).unwrap();
    let mut earlier = Log::new(SIZE, SIZE, 1, SYSTEM);
    (0..300).for_each(|_| earlier.record(10, 0, &[3; 4000]));
    fs::write(scene.top.path().join(scene.wal(1, 1)), &earlier.bytes[..SIZE as usize]).unwrap();
    let kinds = || scene.verify(None).wal.unwrap().problems.iter().map(|problem| problem.kind).collect::<Vec<_>>();
    assert_eq!(kinds(), [ProblemKind::Hole]);
    assert!(!scene.verify(None).is_good());
    let mut seal = scene.seal.clone();
    seal.wal.captured_by = CapturedBy::Backup;
    write_seal(&scene.repository, &seal);
    assert_eq!(kinds(), [ProblemKind::BetweenBackups]);
    assert!(scene.verify(None).is_good());
    // A hole behind it is one.
    fs::copy(scene.top.path().join(scene.wal(1, 5)), scene.top.path().join(scene.wal(1, 9))).unwrap();
    assert!(kinds().contains(&ProblemKind::Hole) && kinds().contains(&ProblemKind::Damage));
    assert!(!scene.verify(None).is_good());
}
