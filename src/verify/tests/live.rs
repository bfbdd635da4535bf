//! A partial that is being written while it is read.

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::disk::{Access, Disk, DiskError, Entry, File, Lock, Meta, Real, Synced};

const AT_ONCE: Cut = Cut { threads: 1, piece: None, patience: Duration::ZERO };
const PARTIAL: &str = "wal/000000010000000000000006.partial";

/// What happens to the partial before it is opened for the nth time, from 1 on.
type Happens = dyn FnMut(u64, &mut fs::File) + Send;

/// A disk on which a receiver writes each time before the partial is read.
struct Busy {
    partial: PathBuf,
    opened: AtomicU64,
    happens: Mutex<Box<Happens>>,
}

impl std::fmt::Debug for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Busy").field("opened", &self.opened).finish_non_exhaustive()
    }
}

macro_rules! pass_on {
    ($($name:ident($($arg:ident: $kind:ty),*) -> $out:ty;)*) => {
        $(fn $name(&self, $($arg: $kind),*) -> Result<$out, DiskError> { Real::new().$name($($arg),*) })*
    };
}

impl Disk for Busy {
    pass_on! {
        create(path: &Path, mode: u32) -> Box<dyn File>;
        create_zeroed(path: &Path, len: u64, mode: u32) -> Box<dyn File>;
        rename(from: &Path, to: &Path) -> ();
        remove(path: &Path) -> ();
        remove_tree(path: &Path) -> ();
        make_dir(path: &Path, mode: u32) -> Synced;
        add_dir(path: &Path, mode: u32) -> ();
        symlink(target: &Path, path: &Path) -> ();
        read_link(path: &Path) -> Option<PathBuf>;
        set_access(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> ();
        sync_filesystem(path: &Path) -> Synced;
        sync_dir(path: &Path) -> Synced;
        list(path: &Path) -> Vec<Entry>;
        metadata(path: &Path) -> Option<Meta>;
        available(path: &Path) -> u64;
        lock(path: &Path, note: &str) -> Lock;
        lock_shared(path: &Path) -> Lock;
        lock_dir(path: &Path) -> Lock;
        lock_dir_shared(path: &Path) -> Lock;
    }

    fn open(&self, path: &Path, access: Access) -> Result<Box<dyn File>, DiskError> {
        if path == self.partial {
            let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
            let nth = self.opened.fetch_add(1, Ordering::Relaxed) + 1;
            (self.happens.lock().unwrap())(nth, &mut file);
        }
        Real::new().open(path, access)
    }
}

/// What is said of a repository whose partial is written to while it is read, and how often it was opened.
fn read_beside(
    scene: &Scene,
    happens: impl FnMut(u64, &mut fs::File) + Send + 'static,
) -> (Vec<(ProblemKind, String)>, u64) {
    let partial = scene.top.path().join(PARTIAL);
    let disk = Arc::new(Busy { partial, opened: AtomicU64::new(0), happens: Mutex::new(Box::new(happens)) });
    let repository = Repository::open(scene.top.path(), Arc::<Busy>::clone(&disk)).unwrap();
    let report = verify_cut(&repository, None, AT_ONCE, &mut |_| {}).unwrap();
    let problems = report.wal.unwrap().problems;
    let told = problems.iter().map(|problem| (problem.kind, problem.to_string())).collect();
    (told, disk.opened.load(Ordering::Relaxed))
}

fn write_at(file: &mut fs::File, log: &Log, from: u64, to: u64) {
    file.seek(SeekFrom::Start(from % SIZE)).unwrap();
    file.write_all(&log.bytes[(from - log.start) as usize..(to - log.start) as usize]).unwrap();
}

/// Commits come all the time: at each look there is more than at the one before.
#[test]
fn a_partial_that_grows_between_two_looks_is_sound() {
    let (scene, mut log) = (Scene::new(), Parts::new().log);
    let (told, opened) = read_beside(&scene, move |nth, file| {
        let from = log.at();
        (0..nth % 3 + 1).for_each(|n| log.record(10, 0, &vec![7; 40 + 300 * n as usize]));
        write_at(file, &log, from, log.at());
    });
    assert_eq!(told, []);
    assert!(opened > 2, "it was never looked at again");
}

/// What was there when it was first read, and is wrong, is told however much comes behind it.
#[test]
fn damage_in_a_partial_that_grows_is_told() {
    for at in [30_000, 8192, 100] {
        let (scene, mut log) = (Scene::new(), Parts::new().log);
        scene.change(PARTIAL, |bytes| bytes[at] ^= 1);
        let (told, _) = read_beside(&scene, move |_, file| {
            let from = log.at();
            log.record(10, 0, &[7; 400]);
            write_at(file, &log, from, log.at());
        });
        assert_eq!(
            told.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
            [ProblemKind::Damage],
            "byte {at}: {told:?}"
        );
    }
}

/// A write of several sectors under way on a disk that is slow: the later ones are there first.
#[test]
fn a_write_that_lands_out_of_order_is_waited_for() {
    for lands in [4, 8] {
        let (scene, mut log) = (Scene::new(), Parts::new().log);
        let from = log.at();
        (0..40).for_each(|_| log.record(10, 0, &[7; 400]));
        let next_sector = (from + 1).next_multiple_of(512);
        let (told, _) = read_beside(&scene, move |nth, file| {
            write_at(file, &log, next_sector, log.at());
            if nth >= lands {
                write_at(file, &log, from, next_sector);
            }
        });
        assert_eq!(told, [], "it is there when it is opened for the {lands}th time");
    }
}

/// The writer itself, as fast as it goes and with syncs in between, through several segments.
#[test]
fn beside_a_writer_nothing_is_wrong() {
    let (scene, mut log) = (Scene::new(), Parts::new().log);
    let dir = scene.top.path().to_owned();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _writing = scope.spawn(|| {
            let archive = Repository::open(&dir, Arc::new(Real::new())).unwrap().archive();
            let resumption = archive.resume(None).unwrap().unwrap();
            let (mut writer, mut at) = (resumption.writer, resumption.start.lsn().get());
            while !ended.load(Ordering::Relaxed) {
                (0..at % 4 + 1).for_each(|n| log.record(10, 0, &vec![7; 100 + 500 * n as usize]));
                writer.append(&log.bytes[(at - log.start) as usize..], &mut |_| {}).unwrap();
                let _settled = writer.settle().unwrap();
                at = log.at();
            }
        });
        let until = Instant::now() + Duration::from_secs(1);
        let mut told = Vec::new();
        while told.is_empty() && Instant::now() < until {
            let cut = Cut { patience: Duration::from_millis(10), ..AT_ONCE };
            let report = verify_cut(&scene.repository, None, cut, &mut |_| {}).unwrap();
            told = report.wal.unwrap().problems.iter().map(ToString::to_string).collect();
        }
        ended.store(true, Ordering::Relaxed);
        assert_eq!(told, Vec::<String>::new());
    });
}
