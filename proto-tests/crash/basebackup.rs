//! A base backup outside of a repository, cut off anywhere: what can be started, or has its manifest, is whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use walhold::basebackup::{BaseBackupError, Destination, Done, Options, StreamSlot, Sync, WalMethod, basebackup};
use walhold::disk::simulated::{Call, Fault};
use walhold::disk::{BLOCK, Disk, EntryKind, Simulated};
use walhold::image::ManifestAlgorithm;
use walhold::protocol::{Checkpoint, ManifestAsked};
use walhold::receive::Upstream;

use super::primary::Primary;
use super::world::{Found, again, content, cut_off, images, seed, some_of};

const TARGET: &str = "/srv/target";
const MOST_CALLS: usize = 8;

type Tree = BTreeMap<PathBuf, Vec<u8>>;

struct Scene {
    plain: bool,
    sync: Sync,
    primary: Arc<Primary>,
    before: Simulated,
    runtime: tokio::runtime::Runtime,
}

/// All files below a directory.
fn tree(disk: &Simulated, dir: &Path, all: &mut Tree) {
    for entry in disk.list(dir).unwrap_or_default() {
        let path = dir.join(&entry.name);
        match entry.kind {
            EntryKind::Directory => tree(disk, &path, all),
            EntryKind::File | EntryKind::Other => _ = all.insert(path.clone(), content(disk, &path).unwrap()),
        }
    }
}

fn target(disk: &Simulated) -> Tree {
    let mut all = Tree::new();
    tree(disk, Path::new(TARGET), &mut all);
    all
}

impl Scene {
    fn new(plain: bool, sync: Sync) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let disk = Simulated::new(BLOCK);
        let _ = disk.make_dirs(Path::new("/srv"), 0o755).unwrap();
        Self { plain, sync, primary: Arc::new(Primary::new()), before: disk.after(disk.operations()), runtime }
    }

    fn run(&self, disk: &Simulated) -> Result<Done, BaseBackupError> {
        let directory = PathBuf::from(TARGET);
        let destination = match self.plain {
            true => Destination::Plain { directory, mappings: Vec::new(), wal_directory: None },
            false => Destination::Tar { directory, compression: None },
        };
        self.runtime.block_on(async {
            let server = self.primary.serve().await;
            let conninfo = server.conninfo("sslmode=disable");
            let upstream = Upstream::connect(&conninfo, "test").await.unwrap();
            let options = Options {
                conninfo,
                application_name: "test".into(),
                label: "x".into(),
                checkpoint: Checkpoint::Fast,
                max_rate: None,
                destination,
                wal: WalMethod::Stream(StreamSlot::None),
                status_interval: None,
                server_compression: None,
                manifest: Some(ManifestAsked { algorithm: ManifestAlgorithm::Crc32c, force_encode: false }),
                incremental: None,
                verify_checksums: true,
                verify: true,
                estimate_size: false,
                recovery: false,
                sync: self.sync,
                clean: true,
            };
            let never = CancellationToken::new();
            let done = basebackup(Arc::new(disk.clone()), upstream, &options, &never, &mut |_| {}).await;
            server.end().await;
            done
        })
    }

    /// Of a data directory the file without which no server starts, and the manifest, have their names when all else
    /// is durable; of archives, which are taken for a backup by whoever sees them, the manifest has.
    fn check(&self, found: &Simulated, done: bool) -> Found {
        let there = target(found);
        let has = |name: &str| there.contains_key(&Path::new(TARGET).join(name));
        let says = has("backup_manifest") || self.plain && has("global/pg_control");
        if done && !has("backup_manifest") {
            return Err("it was done, and has no manifest".into());
        }
        if !says {
            return Ok(());
        }
        let wal = &self.primary.log.bytes;
        if self.plain {
            for (name, content) in self.primary.files() {
                if there.get(&Path::new(TARGET).join(name)).is_none_or(|found| found != content) {
                    return Err(format!("it can be started, and {name} is not what it was").into());
                }
            }
            let segments = |no: usize| format!("pg_wal/0000000100000000000000{:02X}", 0x15 + no);
            self.holds_wal((0..).map_while(|no| there.get(&Path::new(TARGET).join(segments(no)))), wal)
        } else {
            let archive = there.get(&Path::new(TARGET).join("base.tar"));
            if archive.is_none_or(|found| *found != crate::basebackup::archive(&self.primary.members)) {
                return Err("it has a manifest, and base.tar is not what it was".into());
            }
            let packed = there.get(&Path::new(TARGET).join("pg_wal.tar")).ok_or("it has a manifest, and no WAL")?;
            // Each member begins with a block of its own.
            let members = packed.chunks(512 + super::world::SIZE as usize).filter(|member| member.starts_with(b"0000"));
            self.holds_wal(members.map(|member| &member[512..]), wal)
        }
    }

    fn holds_wal<'a, S: AsRef<[u8]> + ?Sized + 'a>(&self, segments: impl Iterator<Item = &'a S>, wal: &[u8]) -> Found {
        let held: Vec<u8> = segments.flat_map(|segment| segment.as_ref().iter().copied()).collect();
        let needed = usize::try_from(self.primary.stop - super::primary::FIRST)?;
        match held.get(..needed) == wal.get(..needed) {
            true => Ok(()),
            false => {
                Err(format!("of {needed} bytes of WAL that are needed {} are there, or others", held.len()).into())
            }
        }
    }

    fn is_cut_off_anywhere(&self) {
        let disk = self.before.after(0);
        self.run(&disk).unwrap();
        self.check(&disk, true).unwrap();
        let made = disk.operations();
        cut_off(&disk, 0, 6, &mut |k, found| self.check(found, k >= made));
    }

    /// Whatever call fails, it is said, and nothing is left that would be taken for a backup.
    fn holds_whatever_call_fails(&self) {
        let good = self.before.after(0);
        self.run(&good).unwrap();
        let mut failures = 0;
        for (call, calls) in Call::ALL.map(|call| (call, good.calls(call))) {
            for nth in some_of(calls, MOST_CALLS) {
                let fault = if nth % 3 == 0 { Fault::Full } else { Fault::Io };
                let disk = self.before.after(0);
                disk.fail(call, nth, fault);
                let done = self.run(&disk);
                failures += usize::from(done.is_err());
                let context = || format!("{call:?} {nth} of {calls} fails with {fault:?}: {done:?}");
                let killed = disk.after(disk.operations());
                for found in disk.crash_images(seed() ^ nth as u64, images(2)).chain([killed]) {
                    let held = self.check(&found, done.is_ok());
                    held.unwrap_or_else(|e| {
                        panic!("{}, and {e}\n  {found:?}\n  again: {}", context(), again(seed(), None))
                    });
                }
            }
        }
        assert!(failures > 10, "{failures}");
    }
}

#[test]
fn p3_a_base_backup_into_a_directory_is_cut_off_anywhere() {
    for sync in [Sync::Fsync, Sync::Syncfs] {
        Scene::new(true, sync).is_cut_off_anywhere();
    }
}

#[test]
fn p3_a_base_backup_into_archives_is_cut_off_anywhere() {
    for sync in [Sync::Fsync, Sync::Syncfs] {
        Scene::new(false, sync).is_cut_off_anywhere();
    }
}

#[test]
fn p3_whatever_call_of_a_base_backup_fails_it_is_not_taken_for_one() {
    for plain in [true, false] {
        Scene::new(plain, Sync::Fsync).holds_whatever_call_fails();
    }
}
