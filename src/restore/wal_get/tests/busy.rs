//! Answers while the archive changes, and while others want the same.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// What a receiver and its compressor do to a folder: a partial grows, is published, its compressed copy
/// comes beside it, and the plain one goes.
fn receive(scene: &Scene, log: &Log, no: u64) {
    let wal = scene.path("repo/wal");
    let (plain, bytes) = (wal.join(name(1, no)), part(log, no));
    let partial = plain.with_extension("partial");
    fs::write(&partial, vec![0; bytes.len()]).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&partial).unwrap();
    for (i, piece) in bytes.chunks(bytes.len() / 8).enumerate() {
        std::os::unix::fs::FileExt::write_all_at(&file, piece, (i * (bytes.len() / 8)) as u64).unwrap();
    }
    fs::rename(&partial, &plain).unwrap();
    fs::write(plain.with_extension("tmp"), zstd::encode_all(&bytes[..], 1).unwrap()).unwrap();
    fs::rename(plain.with_extension("tmp"), plain.with_extension("zst")).unwrap();
    fs::remove_file(&plain).unwrap();
}

/// Asks for a segment; whether all of it was given. What is given is whole, or a partial's records and
/// zeros; what is not given is not there yet, and never unknown because a name was changing.
fn ask(scene: &Scene, log: &Log, no: u64, to_point: bool) -> bool {
    let mut request = scene.request(&name(1, no));
    request.destination = format!("pg_wal/{:?}", std::thread::current().id()).into();
    request.patience = Some(Duration::from_secs(20));
    let outcome = wal_get(&request);
    if outcome != Outcome::Found {
        assert_eq!(outcome, Outcome::Absent, "{no}");
        return false;
    }
    let path = scene.path("data").join(&request.destination);
    let (got, whole) = (fs::read(&path).unwrap(), part(log, no));
    fs::remove_file(path).unwrap();
    let same = got.iter().zip(&whole).take_while(|(a, b)| a == b).count();
    assert!(got.len() == whole.len() && got[same..].iter().all(|byte| *byte == 0), "{no} {same}");
    assert!(same == whole.len() || to_point, "a standby got a part of {no}");
    same == whole.len()
}

fn asked_all_the_while(signal: Option<&str>) {
    let (scene, log) = scene(signal);
    let to_point = signal == TO_POINT;
    for no in 4..6 {
        scene.remove(&name(1, no));
    }
    scene.remove(&format!("{}.partial", name(1, 6)));
    let ended = AtomicBool::new(false);
    let all_the_while = || {
        while !ended.load(Ordering::Relaxed) {
            for no in [3, 4, 5] {
                ask(&scene, &log, no, to_point);
            }
        }
        [3, 4, 5].iter().all(|no| ask(&scene, &log, *no, to_point))
    };
    std::thread::scope(|scope| {
        let askers = [(); 3].map(|()| scope.spawn(all_the_while));
        for no in [4, 5] {
            receive(&scene, &log, no);
        }
        ended.store(true, Ordering::Relaxed);
        assert!(askers.into_iter().all(|asker| asker.join().unwrap()), "not all is given in the end");
    });
}

#[test]
fn p8_segments_that_change_their_form_are_given_or_not_there_yet() {
    asked_all_the_while(TO_POINT);
    asked_all_the_while(STANDBY);
}

#[test]
fn the_plain_form_is_given_while_both_are_there() {
    let (scene, log) = scene(STANDBY);
    let other = zstd::encode_all(&part(&log, 5)[..], 1).unwrap();
    scene.put(&format!("{}.zst", name(1, 4)), &other);
    assert_eq!(scene.ask(&name(1, 4)), Outcome::Found);
    assert!(scene.got() == part(&log, 4));
}

#[test]
fn many_may_ask_for_the_same_target() {
    let (scene, log) = scene(STANDBY);
    std::thread::scope(|scope| {
        for no in 3..6 {
            let scene = &scene;
            scope.spawn(move || {
                for _ in 0..10 {
                    assert_eq!(wal_get(&scene.request(&name(1, no))), Outcome::Found);
                }
            });
        }
    });
    let got = scene.got();
    assert!((3..6).any(|no| got == part(&log, no)));
    assert_eq!(fs::read_dir(scene.path("data/pg_wal")).unwrap().count(), 1);
}
