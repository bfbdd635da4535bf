//! Compression on a real file system; power cuts and faults are in `proto-tests/crash`.

#![allow(clippy::disallowed_methods, reason = "the folder is set up from outside")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc::channel;

use super::super::tests::{Folder, SIZE, START, SYSTEM, feed, log};
use super::*;
use crate::archive::{EndOfBackup, Follower, Resumption, SegmentReader};
use crate::codec::Method;
use crate::disk::{Disk, Simulated};
use crate::wal::chain::built::Log;
use crate::wal::{History, Lsn, Pos, TimelineId};

const PACKINGS: [&str; 6] = ["gzip:1", "gzip:9", "lz4:1", "lz4:12", "zstd:1", "zstd:19"];

/// A folder with all of the log.
fn filled(log: &Log) -> Folder {
    let folder = Folder::new();
    let mut writer = folder.begin().writer;
    feed(&mut writer, log, log.at(), 100_000);
    let _ = writer.close().unwrap();
    folder
}

fn content(mut reader: SegmentReader) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let bytes = reader.fill().unwrap();
        if bytes.is_empty() {
            return all;
        }
        all.extend_from_slice(bytes);
        let n = bytes.len();
        reader.consume(n);
    }
}

fn sent(log: &Log, no: u64) -> &[u8] {
    let from = (no * SIZE - START) as usize;
    &log.bytes[from..from + SIZE as usize]
}

/// The numbers of the segments that the log fills.
fn complete(log: &Log) -> std::ops::Range<u64> {
    START / SIZE..log.at() / SIZE
}

#[test]
fn a_compressed_segment_is_the_segment() {
    let log = log();
    for text in PACKINGS {
        let (folder, packing): (_, Packing) = (filled(&log), text.parse().unwrap());
        for no in complete(&log) {
            let (segment, archive) = (folder.segment(no), &folder.archive);
            let plain = folder.dir.path().join(segment.name());
            fs::set_permissions(&plain, fs::Permissions::from_mode(0o640)).unwrap();
            let bytes = archive.compress(segment, packing).unwrap().unwrap();
            let path = folder.dir.path().join(format!("{segment}{}", packing.codec().suffix()));
            let meta = fs::metadata(&path).unwrap();
            assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (bytes, 0o640));
            assert!(!plain.exists());
            assert_eq!(archive.compress(segment, packing).unwrap(), None, "there is nothing left to do");
            let reader = archive.open_segment(segment, Access::ReadDirect).unwrap().unwrap();
            assert_eq!(reader.path(), path);
            assert!(content(reader) == sent(&log, no), "{packing}");
        }
        let Resumption { start, old, .. } = folder.begin();
        assert_eq!((start.lsn().get(), old.unwrap().valid.get()), (log.at() / SIZE * SIZE, log.at()));
        let n = log.starts.len();
        let stop = Pos::new(TimelineId::FIRST, Lsn::new(log.starts[n - 2]));
        folder.archive.prove(Lsn::new(log.starts[n - 4]), stop, EndOfBackup::Record).unwrap();
    }
}

#[test]
fn the_plain_file_wins_until_nothing_else_can() {
    let log = log();
    let folder = filled(&log);
    let segment = folder.segment(3);
    // What an earlier compression has left of a segment that was received anew since.
    for suffix in [".zst", ".lz4", ".gz"] {
        fs::write(folder.dir.path().join(format!("{segment}{suffix}")), b"stale").unwrap();
    }
    folder.archive.compress(segment, Method::Gzip.into()).unwrap().unwrap();
    let names: Vec<_> = folder.names().into_iter().filter(|name| name.starts_with(&segment.name())).collect();
    assert_eq!(names, [format!("{segment}.gz")]);
    let reader = folder.archive.open_segment(segment, Access::Read).unwrap().unwrap();
    assert!(content(reader) == sent(&log, 3));
}

/// Retention takes the segment while it is compressed.
#[test]
fn what_has_been_removed_meanwhile_does_not_come_back() {
    let folder = filled(&log());
    let (segment, archive) = (folder.segment(3), &folder.archive);
    let (form, plain) = (Form { codec: Codec::Zstd, partial: false }, folder.dir.path().join(segment.name()));
    let copy = folder.dir.path().join(format!("{segment}.zst{COPY}"));
    archive.copy(&plain, &copy, 0o600, Packing::FAST).unwrap().unwrap();
    fs::remove_file(&plain).unwrap();
    assert!(!archive.replace_plain(segment, form, &copy).unwrap());
    assert!(archive.open_segment(segment, Access::Read).unwrap().is_none());
}

#[test]
fn what_is_no_whole_segment_is_left_alone() {
    let folder = filled(&log());
    let (short, missing) = (folder.segment(3), folder.segment(90));
    fs::write(folder.dir.path().join(short.name()), b"short").unwrap();
    for segment in [short, missing] {
        assert_eq!(folder.archive.compress(segment, Packing::FAST).unwrap(), None);
    }
    assert_eq!(folder.read(&short.name()), b"short");
}

/// The file that is compressed is given way to by another one meanwhile.
#[test]
fn a_segment_that_was_received_anew_meanwhile_stays() {
    let log = log();
    let folder = filled(&log);
    let queue = Arc::new(Queue::new(Packing::FAST));
    let archive = folder.archive.clone().with_queue(Arc::clone(&queue));
    let (segment, other) = (folder.segment(3), folder.segment(4));
    let form = Form { codec: Codec::Zstd, partial: false };
    let copy = folder.dir.path().join("copy");
    for (replaced, counts) in [(other, true), (segment, false)] {
        fs::write(&copy, b"copy").unwrap();
        archive.at_work(Some(segment));
        queue.names().replace(replaced);
        assert_eq!(archive.replace_plain(segment, form, &copy).unwrap(), counts);
        assert_eq!(folder.dir.path().join(segment.name()).exists(), !counts);
        fs::write(folder.dir.path().join(segment.name()), sent(&log, 3)).unwrap();
    }
}

/// P8: nobody who looks for a segment while it is compressed is told that there is none.
#[test]
fn p8_a_reader_always_finds_it() {
    let (disk, log, archive) = simulated();
    let first = Segment::containing(Pos::new(TimelineId::FIRST, Lsn::new(START)), archive.size());
    let from = disk.operations();
    for method in Method::ALL {
        archive.compress(first, method.into()).unwrap().unwrap();
        // As a receiver replaces it that has received it once more.
        let temporary = archive.dir().join("again");
        let mut file = disk.create(&temporary, 0o600).unwrap();
        file.write_at(0, sent(&log, 3)).unwrap();
        let _ = disk.publish(file, &temporary, &archive.dir().join(first.name())).unwrap();
    }
    let mut moments = 0;
    for disk in disk.prefixes().skip(from) {
        let archive = Archive::new(archive.dir().to_owned(), Arc::new(disk), archive.size(), Some(SYSTEM), 0o600);
        assert!(archive.list().unwrap().stored(first).complete);
        let reader = archive.open_segment(first, Access::ReadDirect).unwrap().expect("it is there");
        assert!(content(reader) == sent(&log, 3));
        moments += 1;
    }
    assert!(moments > 20, "{moments}");
}

/// A folder with all of the log on a simulated disk.
fn simulated() -> (Simulated, Log, Archive) {
    let (disk, log) = (Simulated::new(1), log());
    let _ = disk.make_dir("/wal".as_ref(), 0o700).unwrap();
    let size = Folder::new().archive.size();
    let archive = Archive::new("/wal".into(), Arc::new(disk.clone()), size, Some(SYSTEM), 0o600);
    let first = Segment::containing(Pos::new(TimelineId::FIRST, Lsn::new(START)), size);
    let mut writer = archive.begin(&History::first(), first).unwrap().writer;
    feed(&mut writer, &log, log.at(), 100_000);
    let _ = writer.close().unwrap();
    (disk, log, archive)
}

/// A reader that has begun with the plain file ends with it.
#[test]
fn an_open_reader_reads_on() {
    let log = log();
    let folder = filled(&log);
    let mut reader = folder.archive.open_segment(folder.segment(3), Access::ReadDirect).unwrap().unwrap();
    let begun = reader.fill().unwrap().len();
    folder.archive.compress(folder.segment(3), Packing::FAST).unwrap().unwrap();
    assert!(begun < SIZE as usize && content(reader) == sent(&log, 3));
}

/// P1: what is called durable is what was read, although it is another file by then.
#[test]
fn p1_a_follower_syncs_what_it_has_read() {
    let log = log();
    for honest in [true, false] {
        let folder = filled(&log);
        let mut follower = Follower::new(folder.archive.clone(), History::first(), Lsn::new(START + 1));
        assert_eq!(follower.advance().unwrap().whole.get(), log.at());
        for no in complete(&log) {
            folder.archive.compress(folder.segment(no), Packing::FAST).unwrap().unwrap();
        }
        if !honest {
            let name = format!("{}.zst", folder.segment(4));
            let mut other = sent(&log, 4).to_vec();
            other[100_000] ^= 1;
            fs::write(folder.dir.path().join(name), zstd::encode_all(&other[..], 1).unwrap()).unwrap();
        }
        match follower.settle() {
            Ok(durable) => assert!(honest && durable.pos().lsn().get() == log.at()),
            Err(e) => assert!(!honest && matches!(e, ArchiveError::Changed(segment) if segment.no() == 4), "{e}"),
        }
    }
}

/// What stock programs warn of, or refuse, is not taken for whole either.
#[test]
fn something_behind_the_end_is_no_part_of_a_segment() {
    let log = log();
    let end = Pos::new(TimelineId::FIRST, Lsn::new(START + SIZE));
    for text in PACKINGS {
        let (folder, packing): (_, Packing) = (filled(&log), text.parse().unwrap());
        folder.archive.compress(folder.segment(3), packing).unwrap().unwrap();
        let path = folder.dir.path().join(format!("{}{}", folder.segment(3), packing.codec().suffix()));
        let good = fs::read(&path).unwrap();
        let walk = || folder.archive.chain_before(&History::first(), Segment::containing(end, folder.archive.size()));
        walk().unwrap();
        for bad in [[&good[..], b"old"].concat(), good[..good.len() - 1].to_vec(), good.repeat(2)] {
            fs::write(&path, bad).unwrap();
            let error = walk().unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
    }
}

fn reported() -> (impl FnMut(Compressed) + Send + 'static, std::sync::mpsc::Receiver<Compressed>) {
    let (tell, told) = channel();
    (move |what| tell.send(what).unwrap(), told)
}

fn plain(folder: &Folder) -> usize {
    folder.archive.plain_segments().unwrap().len()
}

#[test]
fn the_thread_takes_what_is_there_and_what_comes() {
    let log = log();
    let folder = Folder::new();
    let mut writer = folder.begin().writer;
    feed(&mut writer, &log, START + SIZE, 100_000);
    let _ = writer.close().unwrap();
    let unfinished = folder.dir.path().join("000000010000000000000003.lz4.tmp");
    fs::write(&unfinished, b"unfinished").unwrap();

    let (report, told) = reported();
    let compressor = Compressor::start(&folder.archive, Packing::FAST, report).unwrap();
    let archive = folder.archive.clone().compressed_by(&compressor);
    archive.sweep().unwrap();
    let mut writer = archive.resume(None).unwrap().unwrap().writer;
    assert_eq!(plain(&folder), 1, "nothing is done before it is wanted");
    compressor.look();
    feed(&mut writer, &log, log.at(), 100_000);
    let _ = writer.close().unwrap();
    compressor.finish();
    let mut done: Vec<_> = told
        .iter()
        .map(|what| match what {
            Compressed::Done { segment, .. } => segment.no(),
            other => panic!("{other:?}"),
        })
        .collect();
    done.sort_unstable();
    assert_eq!(done, complete(&log).collect::<Vec<_>>());
    assert_eq!(plain(&folder), 0);
    assert!(!unfinished.exists());
}

#[test]
fn more_than_can_wait_is_found_by_looking() {
    let folder = Folder::new();
    let names = 3 * WAITING as u64;
    for no in 3..3 + names {
        let mut log = Log::new(no * SIZE, SIZE, 1, SYSTEM);
        log.switch();
        fs::write(folder.dir.path().join(folder.segment(no).name()), &log.bytes).unwrap();
    }
    let (report, told) = reported();
    let compressor = Compressor::start(&folder.archive, Packing::FAST, report).unwrap();
    for no in 3..3 + names {
        compressor.queue().add(folder.segment(no));
    }
    compressor.finish();
    assert_eq!(told.iter().count() as u64, names);
    assert_eq!(plain(&folder), 0);
}

#[test]
fn what_is_abandoned_stays_plain() {
    let log = log();
    let folder = filled(&log);
    let (report, told) = reported();
    let compressor = Compressor::start(&folder.archive, "zstd:22".parse().unwrap(), report).unwrap();
    compressor.look();
    compressor.abandon();
    drop(compressor);
    assert_eq!(plain(&folder) + told.iter().count(), complete(&log).count());
    assert!(folder.names().iter().all(|name| !name.ends_with(".tmp")), "{:?}", folder.names());
}

/// Received WAL goes first where there is hardly any room.
#[test]
fn without_room_nothing_is_compressed() {
    let (disk, log, archive) = simulated();
    let first = Segment::containing(Pos::new(TimelineId::FIRST, Lsn::new(START)), archive.size());
    disk.set_capacity(Some(log.at().next_multiple_of(SIZE) - START + ROOM * SIZE - 1));
    let refused = archive.compress(first, Packing::FAST).unwrap_err();
    assert!(refused.is_full(), "{refused}");
    disk.set_capacity(None);
    assert!(archive.compress(first, Packing::FAST).unwrap().is_some());
}
