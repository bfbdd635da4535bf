//! What people and programs do to an archive: each is found, and named by file, place and consequence.

use super::pieces::gzip;
use super::*;
use crate::wal::Lsn;

impl Scene {
    /// With complete segments from 3 to 5, plain or compressed, and 6 partial.
    fn packed(packed: bool) -> Self {
        let scene = Self::new();
        for no in [3, 4, 5].into_iter().filter(|_| packed) {
            let path = scene.path(no);
            fs::write(path.with_extension("gz"), gzip(&fs::read(&path).unwrap())).unwrap();
            fs::remove_file(path).unwrap();
        }
        scene
    }

    fn path(&self, no: u64) -> std::path::PathBuf {
        let path = self.top.path().join(self.wal(1, no));
        if path.with_extension("gz").exists() { path.with_extension("gz") } else { path }
    }

    /// Puts bytes in a segment's place, in the form it has.
    fn put(&self, no: u64, content: &[u8]) {
        let path = self.path(no);
        let packed = path.extension().is_some_and(|extension| extension == "gz");
        fs::write(path, if packed { gzip(content) } else { content.to_vec() }).unwrap();
    }

    fn plain(&self, no: u64) -> Vec<u8> {
        let mut plain = Vec::new();
        let bytes = fs::read(self.path(no)).unwrap();
        match self.path(no).extension() {
            Some(_) => {
                _ = std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut plain).unwrap()
            }
            None => plain = bytes,
        }
        plain
    }

    /// The only problem has all these words, and the backup is lost, or can be recovered up to here.
    #[track_caller]
    fn told(&self, words: &[&str], lost: bool) {
        let report = self.verify(None);
        let wal = report.wal.as_ref().unwrap();
        let problem = wal.problems.first().unwrap_or_else(|| panic!("nothing is wrong: {report:?}"));
        let text = problem.to_string();
        for word in words {
            assert!(text.contains(word), "no {word} in {text}");
        }
        let id = self.seal.id;
        let consequence = if lost {
            format!("backup {id} is not usable; ")
        } else {
            format!("recovery from backup {id} ends at {}", problem.ends_at.unwrap())
        };
        assert!(text.contains(&consequence), "no {consequence} in {text}");
        let usable = matches!(report.backups[0].verdict, Verdict::Usable { .. });
        assert_eq!((usable, report.is_good()), (!lost, false), "{}", report.backups[0]);
    }
}

#[test]
fn swapped_segments() {
    for packed in [false, true] {
        let scene = Scene::packed(packed);
        let (a, b) = (scene.plain(4), scene.plain(5));
        scene.put(4, &b);
        scene.put(5, &a);
        let file = if packed { "000000010000000000000004.gz, uncompressed" } else { "000000010000000000000004)" };
        scene.told(&["segment 000000010000000000000004 is damaged", "belongs at 0/500000", "byte 0 of", file], true);
    }
}

#[test]
fn another_timelines_segment_under_a_right_name() {
    for packed in [false, true] {
        let scene = Scene::packed(packed);
        let mut log = Log::new(5 * SIZE, SIZE, 2, SYSTEM);
        (0..300).for_each(|_| log.record(10, 0, &[3; 4000]));
        scene.put(5, &log.bytes[..SIZE as usize]);
        scene.told(&["segment 000000010000000000000005 is damaged", "timeline 2", "byte 0 of"], true);
    }
}

/// The older timeline's end in the place of the newer one's beginning: every record of it is right.
#[test]
fn the_parents_segment_under_its_childs_name() {
    let scene = Scene::new();
    let fork = (scene.path(5), scene.plain(5));
    let at = Lsn::new(5 * SIZE + 8192 + 24);
    let wal = scene.top.path().join("wal");
    fs::write(wal.join("000000020000000000000005"), &fork.1).unwrap();
    fs::write(wal.join("00000002.history"), format!("1\t{at}\tx\n")).unwrap();
    let problems = scene.problems().join("\n");
    let page = Lsn::new(5 * SIZE + 2 * 8192);
    let words =
        format!("segment 000000020000000000000005 is damaged: WAL is not valid at {page}: the page is of timeline 1");
    assert!(problems.contains(&words), "{problems}");
}

#[test]
fn empty_and_truncated_files() {
    for packed in [false, true] {
        let scene = Scene::packed(packed);
        let (file, whole) = (scene.path(4), fs::read(scene.path(4)).unwrap());
        for len in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&file, &whole[..len]).unwrap();
            scene.told(&["segment 000000010000000000000004 is damaged"], true);
            scene.not_usable("000000010000000000000004");
        }
        fs::write(&file, &whole).unwrap();
        let (file, whole) = (scene.path(3), fs::read(scene.path(3)).unwrap());
        fs::write(&file, &whole[..whole.len() - 1]).unwrap();
        assert!(!scene.verify(None).is_good());
        fs::write(&file, &whole).unwrap();
        assert!(scene.verify(None).is_good());
    }
}

/// Behind the backup's end nothing makes it unusable; recovery from it ends there.
#[test]
fn damage_behind_a_backup_ends_its_recovery() {
    let scene = Scene::new();
    let partial = format!("{}.partial", scene.wal(1, 6));
    let whole = fs::read(scene.top.path().join(&partial)).unwrap();
    scene.change(&partial, |bytes| bytes[30_000] ^= 1);
    scene.told(&["segment 000000010000000000000006 is damaged: WAL is not valid at 0/6", "checksum"], false);
    // A torn end: what a power cut left out of the middle is no damage, and not passed over in silence.
    fs::write(scene.top.path().join(&partial), &whole).unwrap();
    scene.change(&partial, |bytes| bytes[40_960..49_152].fill(0));
    let report = scene.verify(None);
    let problem = &report.wal.as_ref().unwrap().problems[0];
    assert_eq!((problem.kind, report.is_good()), (ProblemKind::Torn, true));
    assert!(report.wal.as_ref().unwrap().stretches[0].to <= Lsn::new(6 * SIZE + 40_960));
    // And what has not come yet is an end like any other.
    scene.change(&partial, |bytes| bytes[40_960..].fill(0));
    assert_eq!(scene.problems(), Vec::<String>::new());
}

/// Names that are not quite those of WAL are told, for whoever copied them there believed they were.
#[test]
fn names_that_are_almost_right() {
    let scene = Scene::new();
    let names = [
        "00000001000000000000000a",
        "00000001000000000000003",
        "000000010000000000000003.bak",
        "000000010000000000000003.zst.tmp",
        "000000010000000000000003.00000028.backup",
        "0000000100000000FFFFFFFF",
        "2.history",
        "notes.txt",
    ];
    for name in names {
        fs::write(scene.top.path().join("wal").join(name), b"x").unwrap();
    }
    let report = scene.verify(None);
    assert!(report.is_good(), "{report:?}");
    let mut expected = names.to_vec();
    expected.sort_unstable();
    assert_eq!(report.wal.unwrap().ignored, expected);
}
