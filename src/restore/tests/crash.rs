//! Power cuts and faults while a backup is laid down, on a simulated disk that holds the same repository.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::disk::simulated::{Call, Fault};
use crate::disk::{Access, BLOCK, Disk, EntryKind, Simulated};

/// The repository as it lies there, and room for the rest.
fn copied(scene: &Scene) -> Simulated {
    let disk = Simulated::new(BLOCK);
    let _ = disk.make_dirs(scene.top.path(), 0o755).unwrap();
    let mut names = Vec::new();
    walk(scene.top.path(), "", &mut names);
    for name in names {
        let path = scene.path(&name);
        if path.is_dir() {
            let _ = disk.make_dir(&path, 0o755).unwrap();
        } else {
            disk.create(&path, 0o600).unwrap().write_at(0, &fs::read(&path).unwrap()).unwrap();
        }
    }
    let _ = disk.sync_filesystem("/".as_ref()).unwrap();
    disk.after(disk.operations())
}

/// All below a directory: files with their content, directories and links without.
fn tree(disk: &Simulated, dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut all = BTreeMap::new();
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
                all.extend(tree(disk, &path));
                all.insert(path, None);
            }
            EntryKind::Other => _ = all.insert(path, None),
        }
    }
    all
}

fn with_tablespace() -> (Scene, Plan) {
    let scene = Scene::new(Parts::new().with_tablespace(16385, "/srv/space"));
    let mappings = vec![Mapping { old: "/srv/space".into(), new: scene.path("space") }];
    let plan = plan(&scene.repository, &Options { mappings, ..scene.options() }).unwrap();
    (scene, plan)
}

fn lay_down_on(disk: &Simulated, scene: &Scene, plan: &Plan) -> Result<Restored, RestoreError> {
    let repository = Repository::open(&scene.path("repo"), Arc::new(disk.clone()))?;
    lay_down(&repository, plan, &mut |_| ControlFlow::Continue(()))
}

/// P3: a server starts only where `pg_control` is there; then all else must be.
fn cannot_be_started_or_is_whole(
    found: &Simulated,
    scene: &Scene,
    whole: &BTreeMap<PathBuf, Option<Vec<u8>>>,
) -> Result<bool, String> {
    let data = scene.path("data");
    if found.metadata(&data.join("global/pg_control")).unwrap().is_none() {
        return Ok(false);
    }
    let mut there = tree(found, &data);
    there.extend(tree(found, &scene.path("space")));
    let differs = |(path, bytes): &(&PathBuf, &Option<Vec<u8>>)| there.get(*path) != Some(*bytes);
    match whole.iter().find(differs) {
        Some((path, _)) => Err(format!("it can be started, and {} is not what it was", path.display())),
        None => Ok(true),
    }
}

#[test]
fn p3_a_restore_is_cut_off_anywhere() {
    [0, 2].into_iter().for_each(is_cut_off_anywhere);
}

/// With so many threads that write.
fn is_cut_off_anywhere(threads: usize) {
    let (scene, plan) = with_tablespace();
    let disk = copied(&scene).with_writers(threads);
    lay_down_on(&disk, &scene, &plan).unwrap();
    let made = disk.operations();
    let mut whole = tree(&disk, &scene.path("data"));
    whole.extend(tree(&disk, &scene.path("space")));
    assert!(whole.len() > 15 && made > 30, "{made} {:?}", whole.keys());
    let mut started = 0;
    for (k, disk) in disk.prefixes().enumerate() {
        for found in disk.crash_images(k as u64, 12).chain([disk.after(0)]) {
            let starts = cannot_be_started_or_is_whole(&found, &scene, &whole);
            let starts = starts.unwrap_or_else(|e| panic!("{e}\n  {found:?}"));
            assert!(starts || k < made, "what was laid down is not there\n  {found:?}");
            started += usize::from(starts);
        }
    }
    assert!(started > 1);
}

/// P3: whatever call fails, it is said, and nothing is left that a server would start on.
#[test]
fn p3_a_restore_in_which_a_call_fails_leaves_nothing_that_starts() {
    [0, 2].into_iter().for_each(a_call_fails);
}

fn a_call_fails(threads: usize) {
    let (scene, plan) = with_tablespace();
    let before = copied(&scene);
    let good = before.after(0);
    lay_down_on(&good, &scene, &plan).unwrap();
    let made = Call::ALL.map(|call| (call, good.calls(call)));
    let mut whole = tree(&good, &scene.path("data"));
    whole.extend(tree(&good, &scene.path("space")));
    let mut failures = 0;
    for (call, calls) in made {
        for nth in 1..=calls {
            for fault in [Fault::Io, Fault::Full] {
                let disk = before.after(0).with_writers(threads);
                disk.fail(call, nth, fault);
                let Err(failed) = lay_down_on(&disk, &scene, &plan) else {
                    panic!("{call:?} {nth} failed with {fault:?}, and nobody said so");
                };
                failures += 1;
                for found in disk.crash_images(nth as u64, 2).chain([disk.after(disk.operations())]) {
                    cannot_be_started_or_is_whole(&found, &scene, &whole)
                        .unwrap_or_else(|e| panic!("{call:?} {nth}: {failed}, and {e}\n  {found:?}"));
                }
                // It is gone, and can be tried again; or what is left is named.
                let left = tree(&disk, &scene.path("data"));
                assert!(left.is_empty() || matches!(failed, RestoreError::LeftBehind { .. }), "{failed}: {left:?}");
            }
        }
    }
    assert!(failures > 60, "{failures}");
}
