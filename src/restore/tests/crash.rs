//! Power cuts and faults while a backup is laid down, or one made ready that was laid down by hand, on a simulated
//! disk that holds the same repository.
//!
//! A failure prints how it is run again: `WALHOLD_SEED` is what all dice are thrown from, `WALHOLD_CUT` the operation
//! after which alone the power is cut, and `WALHOLD_IMAGES` how many power cuts of each state are looked at.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::disk::simulated::{Call, Fault};
use crate::disk::{Access, BLOCK, Disk, EntryKind, Simulated};
use crate::repository::Method;
use crate::repository::made::CONTROL;
use crate::repository::tests::{add_file, now, proven, seal_of, with_wal};

type Tree = BTreeMap<PathBuf, Option<Vec<u8>>>;

const PG_CONTROL: &str = "global/pg_control";

/// All below the folder as it lies there, durable.
fn copied(top: &Path) -> Simulated {
    let disk = Simulated::new(BLOCK);
    let _ = disk.make_dirs(top, 0o755).unwrap();
    let mut names = Vec::new();
    walk(top, "", &mut names);
    for name in names {
        let path = top.join(name);
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_symlink() {
            disk.symlink(&fs::read_link(&path).unwrap(), &path).unwrap();
        } else if kind.is_dir() {
            let _ = disk.make_dir(&path, 0o755).unwrap();
        } else {
            disk.create(&path, 0o600).unwrap().write_at(0, &fs::read(&path).unwrap()).unwrap();
        }
    }
    let _ = disk.sync_filesystem("/".as_ref()).unwrap();
    disk.after(disk.operations())
}

/// All below a directory: files with their content, directories and links without.
fn tree(disk: &Simulated, dir: &Path, all: &mut Tree) {
    for entry in disk.list(dir).unwrap_or_default() {
        let path = dir.join(&entry.name);
        match entry.kind {
            EntryKind::File => {
                let file = disk.open(&path, Access::Read).unwrap();
                let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
                file.read_at(0, &mut bytes).unwrap();
                all.insert(path, Some(bytes));
            }
            EntryKind::Directory => {
                tree(disk, &path, all);
                all.insert(path, None);
            }
            EntryKind::Other => _ = all.insert(path, None),
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

fn seed() -> u64 {
    number("WALHOLD_SEED").unwrap_or(20_261_122)
}

fn images(usual: u64) -> u64 {
    number("WALHOLD_IMAGES").unwrap_or(usual).max(usual)
}

/// A restore by one plan.
pub(in crate::restore) struct Case {
    top: PathBuf,
    plan: Plan,
    before: Simulated,
    /// Threads that write.
    threads: usize,
    /// Whose the data is that was filled by hand is asked of the file system itself.
    _filled: Option<tempfile::TempDir>,
}

impl Case {
    /// Of what lies below the folder now.
    pub(in crate::restore) fn new(top: &Path, plan: Plan) -> Self {
        Self { top: top.to_owned(), plan, before: copied(top), threads: 0, _filled: None }
    }

    fn with_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    fn run(&self, disk: &Simulated) -> Result<Restored, RestoreError> {
        let repository = Repository::open(&self.top.join("repo"), Arc::new(disk.clone()))?;
        match self.plan.backup.method {
            Method::External => prepare(&repository, &self.plan),
            _ => lay_down(&repository, &self.plan, &mut |_| ControlFlow::Continue(())),
        }
    }

    fn tree(&self, disk: &Simulated) -> Tree {
        let mut all = Tree::new();
        ["data", "space"].iter().for_each(|place| tree(disk, &self.top.join(place), &mut all));
        // The mark is no file of a server's.
        all.retain(|path, _| path.file_name().is_none_or(|name| name != "restore.unfinished"));
        all
    }

    /// Whether what is to be kept, or was filled by hand, is there before.
    const fn goes_on(&self) -> bool {
        self.plan.target.filled || self.plan.delta
    }

    /// P3: a server starts only where `pg_control` is there; then all else must be. What was there before could be
    /// started, until the first of it was changed. Whether it can be, as it is to be.
    fn check(&self, found: &Simulated, whole: &Tree) -> Result<bool, String> {
        let there = self.tree(found);
        if !there.contains_key(&self.top.join("data").join(PG_CONTROL)) {
            return Ok(false);
        }
        let differs = |(path, bytes): &(&PathBuf, &Option<Vec<u8>>)| there.get(*path) != Some(*bytes);
        match whole.iter().find(differs) {
            None => Ok(true),
            Some(_) if self.goes_on() && there == self.tree(&self.before) => Ok(false),
            Some((path, _)) => Err(format!("it can be started, and {} is not what it was", path.display())),
        }
    }

    /// Where there was something before, it is gone on with, whatever has interrupted it.
    fn recovers(&self, found: &Simulated, whole: &Tree) -> Result<bool, String> {
        let starts = self.check(found, whole)?;
        if self.goes_on() && !starts {
            self.run(found).map_err(|e| format!("and it cannot be gone on with: {e}"))?;
            if self.tree(found) != *whole {
                return Err("it was gone on with, and is not what it was to be".to_owned());
            }
        }
        Ok(starts)
    }

    pub(in crate::restore) fn is_cut_off_anywhere(&self) {
        let disk = self.before.after(0).with_writers(self.threads);
        self.run(&disk).unwrap();
        let made = disk.operations();
        let whole = self.tree(&disk);
        assert!(whole.len() > 12 && made > 15, "{made} {:?}", whole.keys());
        let (mut started, only) = (0, number("WALHOLD_CUT"));
        for (k, disk) in disk.prefixes().enumerate().filter(|(k, _)| only.is_none_or(|only| only == *k as u64)) {
            for found in disk.crash_images(seed() ^ k as u64, images(8)).chain([disk.after(0)]) {
                let origin =
                    format!("{found:?}\n  again: WALHOLD_SEED={} WALHOLD_CUT={k} WALHOLD_IMAGES={}", seed(), images(8));
                let starts = self.recovers(&found, &whole).unwrap_or_else(|e| panic!("{e}\n  {origin}"));
                assert!(starts || k < made, "what was laid down is not there\n  {origin}");
                started += usize::from(starts);
            }
        }
        assert!(started > 1 || only.is_some());
    }

    /// P3: whatever call fails, it is said, and nothing is left that a server would start on.
    pub(in crate::restore) fn starts_nothing_whatever_call_fails(&self) {
        let good = self.before.after(0).with_writers(self.threads);
        self.run(&good).unwrap();
        let whole = self.tree(&good);
        let mut failures = 0;
        for (call, calls) in Call::ALL.map(|call| (call, good.calls(call))) {
            for (nth, fault) in (1..=calls).flat_map(|nth| [(nth, Fault::Io), (nth, Fault::Full)]) {
                let disk = self.before.after(0).with_writers(self.threads);
                disk.fail(call, nth, fault);
                let failed = match self.run(&disk) {
                    Err(failed) => failed,
                    // Threads that read ahead do not always make as many.
                    Ok(_) if disk.calls(call) < nth => continue,
                    Ok(_) => panic!("{call:?} {nth} failed with {fault:?}, and nobody said so"),
                };
                failures += 1;
                let left = self.tree(&disk);
                for found in disk.crash_images(seed() ^ nth as u64, images(2)).chain([disk.after(disk.operations())]) {
                    let origin = format!("{found:?}");
                    self.recovers(&found, &whole)
                        .unwrap_or_else(|e| panic!("{call:?} {nth}: {failed}, and {e}\n  {origin}"));
                }
                // It is gone, and can be tried again; or what is left is named.
                let told = matches!(failed, RestoreError::LeftBehind { .. });
                assert!(self.goes_on() || left.is_empty() || told, "{failed}: {left:?}");
            }
        }
        assert!(failures > 60, "{failures}");
    }
}

/// A backup with a tablespace, and where that is to lie.
fn with_tablespace() -> (Scene, Options) {
    let scene = Scene::new(Parts::new().with_tablespace(16385, "/srv/space"));
    let mappings = vec![Mapping { old: "/srv/space".into(), new: scene.path("space") }];
    let options = Options { mappings, ..scene.options() };
    (scene, options)
}

fn fresh() -> Case {
    let (scene, options) = with_tablespace();
    Case::new(scene.top.path(), plan(&scene.repository, &options).unwrap())
}

/// One that was restored before, and has changed since.
fn delta() -> Case {
    let (scene, options) = with_tablespace();
    scene.restore(&options).unwrap();
    fs::write(scene.path("data/base/5/1259"), vec![8; 300_000]).unwrap();
    fs::write(scene.path("data/base/5/more"), b"more").unwrap();
    fs::create_dir_all(scene.path("data/pg_wal/archive_status")).unwrap();
    fs::remove_file(scene.path("data/base/5/empty")).unwrap();
    give_away(&scene.path("data"));
    Case::new(scene.top.path(), plan(&scene.repository, &Options { delta: true, ..options }).unwrap())
}

/// The control file of a server that runs, and whose last checkpoint is the backup's.
fn control(start: Pos) -> Vec<u8> {
    let mut control = CONTROL.to_vec();
    let sum = |bytes: &[u8]| crc32c::crc32c(bytes).to_le_bytes();
    let at = (100..400).find(|at| control[*at..*at + 4] == sum(&control[..*at])).unwrap();
    control[16..20].copy_from_slice(&6_u32.to_le_bytes());
    for field in [32, 40] {
        control[field..field + 8].copy_from_slice(&start.lsn().get().to_le_bytes());
    }
    let sum = sum(&control[..at]);
    control[at..at + 4].copy_from_slice(&sum);
    control
}

/// One whose data lies elsewhere, filled by hand from there.
fn filled_by_hand() -> Case {
    let parts = Parts::new();
    let top = tempfile::tempdir().unwrap();
    fs::set_permissions(top.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let repository = with_wal(&top.path().join("repo"), &parts.log);
    let label = parts.base.iter().find_map(|thing| match thing {
        Thing::File("backup_label", content, _) => Some(content.clone()),
        _ => None,
    });
    let folder = repository.begin_backup(now()).unwrap();
    let files = vec![add_file(&folder, Seal::LABEL, &label.unwrap())];
    let seal = seal_of(folder.id(), parts.start, parts.stop, files);
    let seal = Seal { method: Method::External, place: Some("there".to_owned()), ..seal };
    let (proof, durable) = proven(&repository, parts.start, parts.stop);
    let seal = folder.seal(seal, &proof, &durable).unwrap().seal().clone();
    let data = top.path().join("data");
    for thing in &parts.base {
        match thing {
            Thing::File("backup_label", ..) | Thing::Link(..) => {}
            Thing::Dir(name) => fs::create_dir_all(data.join(name)).unwrap(),
            Thing::File(name, content, _) => {
                fs::create_dir_all(data.join(name).parent().unwrap()).unwrap();
                fs::write(data.join(name), content).unwrap();
            }
        }
    }
    fs::write(data.join(PG_CONTROL), control(parts.start)).unwrap();
    fs::write(data.join("postmaster.opts"), b"postgres").unwrap();
    fs::write(data.join("pg_wal/000000010000000000000003"), b"of another time").unwrap();
    fs::create_dir_all(data.join("pg_replslot/one")).unwrap();
    fs::write(data.join("pg_replslot/one/state"), b"x").unwrap();
    give_away(top.path());
    let scene = Scene { top, repository, seal };
    let options = Options { filling: Filling::Operator, ..scene.options() };
    let (plan, top) = (plan(&scene.repository, &options).unwrap(), scene.top.path().to_owned());
    Case { _filled: Some(scene.top), ..Case::new(&top, plan) }
}

#[test]
fn p3_a_restore_is_cut_off_anywhere() {
    fresh().is_cut_off_anywhere();
    fresh().with_threads(2).is_cut_off_anywhere();
}

#[test]
fn p3_a_restore_of_what_differs_is_cut_off_anywhere() {
    delta().is_cut_off_anywhere();
}

#[test]
fn p3_a_preparation_in_place_is_cut_off_anywhere() {
    filled_by_hand().is_cut_off_anywhere();
}

/// What the operator has copied there may still be in the page cache.
#[test]
fn p3_what_was_filled_by_hand_is_durable_before_it_can_be_started() {
    let case = filled_by_hand();
    let path = case.top.join("data/base/5/1260");
    let disk = case.before.after(0);
    disk.create(&path, 0o600).unwrap().write_at(0, &[6; 200_000]).unwrap();
    let disk = disk.after(disk.operations());
    case.run(&disk).unwrap();
    let (made, whole) = (disk.operations(), case.tree(&disk));
    let there = |tree: &Tree, name: &str| tree.contains_key(&case.top.join("data").join(name));
    let mut ready = 0;
    for (k, disk) in disk.prefixes().enumerate() {
        for found in disk.crash_images(seed() ^ k as u64, images(8)) {
            let tree = case.tree(&found);
            if there(&tree, PG_CONTROL) && there(&tree, "backup_label") {
                ready += 1;
                assert!(tree == whole, "it can be started, and is not whole\n  {found:?}");
            }
        }
    }
    assert!(ready > 0 && made > 10, "{ready} {made}");
}

#[test]
fn p3_a_restore_in_which_a_call_fails_leaves_nothing_that_starts() {
    fresh().starts_nothing_whatever_call_fails();
    fresh().with_threads(2).starts_nothing_whatever_call_fails();
}

#[test]
fn p3_a_restore_of_what_differs_in_which_a_call_fails_is_gone_on_with() {
    delta().starts_nothing_whatever_call_fails();
}

#[test]
fn p3_a_preparation_in_which_a_call_fails_is_gone_on_with() {
    filled_by_hand().starts_nothing_whatever_call_fails();
}
