//! The writer, the ways to go on, and the proof, on a real file system with WAL made by hand.

#![allow(clippy::disallowed_methods, reason = "the folder is set up from outside")]

use std::fs;

use super::*;
use crate::codec::{Codec, Method, Packer};
use crate::disk::{Access, Real};
use crate::wal::chain::built::Log;
use crate::wal::{History, Lsn, Pos, Segment};

pub(super) const SIZE: u64 = 1 << 20;
pub(super) const START: u64 = 3 * SIZE;
pub(super) const SYSTEM: u64 = 77;

pub(super) struct Folder {
    pub(super) archive: Archive,
    pub(super) dir: tempfile::TempDir,
}

impl Folder {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let size = SegmentSize::new(SIZE).unwrap();
        let archive = Archive::new(dir.path().to_owned(), Arc::new(Real::new()), size, Some(SYSTEM), 0o600);
        Self { archive, dir }
    }

    pub(super) fn segment(&self, no: u64) -> Segment {
        Segment::containing(Pos::new(TimelineId::FIRST, Lsn::new(no * SIZE)), self.archive.size())
    }

    pub(super) fn begin(&self) -> Resumption {
        match self.archive.resume(None).unwrap() {
            Some(resumption) => resumption,
            None => self.archive.begin(&History::first(), self.segment(3)).unwrap(),
        }
    }

    pub(super) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.path().join(name)).unwrap()
    }

    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What the archive holds of `log`, complete segments and the partial, is what was written, up
    /// to `end`.
    fn assert_holds(&self, log: &Log, end: u64) {
        let mut at = log.start;
        while at < end {
            let segment = self.segment(at / SIZE);
            let whole = at + SIZE <= end;
            let partial = format!("{segment}.partial");
            let open = !whole && self.names().contains(&partial);
            let bytes = self.read(&if open { partial } else { segment.name() });
            assert_eq!(bytes.len() as u64, SIZE);
            let n = (end - at).min(SIZE) as usize;
            let from = (at - log.start) as usize;
            assert!(bytes[..n] == log.bytes[from..from + n], "{segment} differs");
            assert!(whole || bytes[n..].iter().all(|b| *b == 0), "{segment} has bytes behind its end");
            at += SIZE;
        }
    }
}

pub(super) fn log() -> Log {
    let mut log = Log::new(START, SIZE, 1, SYSTEM);
    for n in 0..900_usize {
        log.record(10, 0, &vec![n as u8 | 1; n * 7 % 3000 + 1]);
    }
    log.record(10, 0, &vec![9; 1_500_000]);
    let backup = log.next_record();
    log.record(0, 0x10, &[1; 90]);
    log.backup_end(backup);
    log.switch();
    log.record(10, 0, &[1; 5000]);
    log
}

/// Where `upto` counts as reached: in the zeros behind a switch, all of them are held already.
fn reached(log: &Log, upto: u64) -> u64 {
    let switch = log.starts[log.starts.len() - 2] + 24;
    let end = switch.next_multiple_of(SIZE);
    if (switch..end).contains(&upto) { end } else { upto }
}

pub(super) fn feed(writer: &mut Writer, log: &Log, upto: u64, step: usize) -> Vec<Wrote> {
    let mut told = Vec::new();
    while writer.at().lsn().get() < upto {
        let from = (writer.at().lsn().get() - log.start) as usize;
        let to = (from + step).min((upto - log.start) as usize);
        writer.append(&log.bytes[from..to], &mut |wrote| told.push(wrote)).unwrap();
    }
    told
}

#[test]
fn what_is_written_is_what_came() {
    let (log, folder) = (log(), Folder::new());
    let mut writer = folder.begin().writer;
    let told = feed(&mut writer, &log, log.at(), 131_072);
    let complete = told.iter().filter(|w| matches!(w, Wrote::Complete(..))).count() as u64;
    assert_eq!(complete, (log.at() - START) / SIZE);
    let durable = writer.settle().unwrap().unwrap();
    assert_eq!(durable.pos().lsn().get(), log.at());
    folder.assert_holds(&log, log.at());
}

/// P1: a position is called durable only when nothing up to it is still in the buffer.
#[test]
fn a_settled_position_is_in_the_file() {
    let (log, folder) = (log(), Folder::new());
    let mut writer = folder.begin().writer;
    let mut upto = START;
    for step in [1, 8191, 1, 4096, 24, 70_000, 300_000, 5, 1_000_000] {
        upto += step;
        feed(&mut writer, &log, upto, 7777);
        if let Some(durable) = writer.settle().unwrap() {
            assert_eq!(durable.pos().lsn().get(), upto);
        }
        folder.assert_holds(&log, upto);
    }
}

#[test]
fn going_on_after_any_stop_gives_the_same_files() {
    let (log, folder) = (log(), Folder::new());
    let mut ends = vec![];
    for n in 1..40 {
        let upto = (START + n * 97_003).min(log.at());
        let Resumption { start, old, mut writer, .. } = folder.begin();
        if let Some(old) = old {
            assert!(old.valid <= old.touched);
            assert!(old.touched.get() <= reached(&log, *ends.last().unwrap()), "{old:?} {ends:?}");
            assert!(start.lsn() <= old.touched);
        }
        feed(&mut writer, &log, upto.max(start.lsn().get()), 10_000);
        let _ = writer.settle().unwrap();
        ends.push(upto);
        folder.assert_holds(&log, upto);
    }
    let mut writer = folder.begin().writer;
    feed(&mut writer, &log, log.at(), 10_000);
    let _ = writer.settle().unwrap();
    folder.assert_holds(&log, log.at());
}

/// P1: while what is held comes again, nothing is called durable, and the file keeps what it has.
#[test]
fn going_on_never_reduces_what_is_held() {
    let (log, folder) = (log(), Folder::new());
    let upto = START + 700_000;
    let mut writer = folder.begin().writer;
    feed(&mut writer, &log, upto, 100_000);
    let _ = writer.settle().unwrap();
    drop(writer);
    let mut writer = folder.begin().writer;
    for n in 1..70 {
        feed(&mut writer, &log, START + n * 10_000, 3_000);
        assert_eq!(writer.settle().unwrap(), None);
        folder.assert_holds(&log, upto);
    }
}

#[test]
fn a_difference_in_what_is_held_is_divergence() {
    let (log, folder) = (log(), Folder::new());
    let mut writer = folder.begin().writer;
    feed(&mut writer, &log, START + 500_000, 100_000);
    let _ = writer.settle().unwrap();
    drop(writer);
    let mut other = Log::new(START, SIZE, 1, SYSTEM);
    for n in 0..900_usize {
        other.record(10, 0, &vec![n as u8 | 1; n * 7 % 3000 + if n == 200 { 2 } else { 1 }]);
    }
    let before = folder.read("000000010000000000000003.partial");
    let mut writer = folder.begin().writer;
    let refused = writer.append(&other.bytes[..500_000], &mut |_| {});
    let Err(WriteError::Diverged(at)) = refused else { panic!("{refused:?}") };
    let differs = log.bytes.iter().zip(&other.bytes).take_while(|(a, b)| a == b).count() as u64;
    assert_eq!(at.lsn().get(), START + differs);
    drop(writer);
    assert!(before == folder.read("000000010000000000000003.partial"));
}

#[test]
fn partials_of_odd_size_and_compressed_ones_are_received_anew() {
    let log = log();
    let cut = 600_000;
    let bytes = &log.bytes[..cut];
    let zstd = zstd::encode_all(bytes, 1).unwrap();
    for (suffix, content) in [(".partial", bytes), (".zst.partial", &zstd), (".partial", b"".as_slice())] {
        let folder = Folder::new();
        let name = format!("000000010000000000000003{suffix}");
        fs::write(folder.dir.path().join(&name), content).unwrap();
        let resumption = folder.begin();
        assert_eq!(resumption.old.is_some(), !content.is_empty());
        let mut writer = resumption.writer;
        if !content.is_empty() {
            feed(&mut writer, &log, START + 300_000, 10_000);
            assert_eq!(writer.settle().unwrap(), None);
            assert_eq!(folder.read(&name), content, "the old one stays until all of it has come again");
        }
        feed(&mut writer, &log, START + 800_000, 10_000);
        let _ = writer.settle().unwrap().unwrap();
        folder.assert_holds(&log, START + 800_000);
        assert_eq!(folder.names(), ["000000010000000000000003.partial"]);
    }
}

/// As another receiver would have stored it.
fn packed(codec: Codec, bytes: &[u8]) -> Vec<u8> {
    let Some(method) = Method::ALL.into_iter().find(|method| method.codec() == codec) else { return bytes.to_vec() };
    let mut packer = Packer::whole(method.into(), bytes.len() as u64).unwrap();
    packer.write(bytes).unwrap();
    packer.finish().unwrap()
}

/// A compressed partial of a whole segment: the receiver was killed before it renamed it.
#[test]
fn a_whole_compressed_partial_is_received_again() {
    let log = log();
    let whole = &log.bytes[..SIZE as usize];
    for method in Method::ALL {
        for live in [None, Some(method)] {
            let mut folder = Folder::new();
            if let Some(method) = live {
                folder.archive = folder.archive.compressed_live(method.into());
            }
            let old = format!("000000010000000000000003{}.partial", method.codec().suffix());
            fs::write(folder.dir.path().join(&old), packed(method.codec(), whole)).unwrap();
            let Resumption { start, old: held, mut writer, .. } = folder.begin();
            assert_eq!((start.lsn().get(), held.map(|old| old.touched.get())), (START, Some(START + SIZE)));
            feed(&mut writer, &log, START + SIZE - 1, 10_000);
            assert_eq!(writer.settle().unwrap(), None, "less has come than was held");
            feed(&mut writer, &log, START + SIZE + 200_000, 10_000);
            let _ = writer.close().unwrap().unwrap();
            let suffix = live.map_or("", |method| method.codec().suffix());
            let names =
                [format!("000000010000000000000003{suffix}"), format!("000000010000000000000004{suffix}.partial")];
            assert_eq!(folder.names(), names);
            let mut reader = folder.archive.open_segment(folder.segment(3), Access::Read).unwrap().unwrap();
            let mut at = 0;
            while at < whole.len() {
                let n = reader.fill().unwrap().len();
                assert!(n > 0 && reader.fill().unwrap() == &whole[at..at + n]);
                reader.consume(n);
                at += n;
            }
        }
    }
}

/// What bears no name of this cluster's WAL is neither counted nor touched.
#[test]
fn foreign_names_are_left_alone() {
    let (log, folder) = (log(), Folder::new());
    // A segment's name where segments are larger, a longer one, a backup's history, and other things.
    let names = [
        "0000000100000000FFFFFFFF",
        "000000010000000000000003.00000028.backup",
        "0000000100000000000000030",
        "00000001000000000000000g.partial",
        "archive_status",
        "letters.txt.partial",
    ];
    for name in names {
        fs::write(folder.dir.path().join(name), "dear").unwrap();
    }
    folder.archive.sweep().unwrap();
    for upto in [START + 300_000, log.at()] {
        let mut writer = folder.begin().writer;
        feed(&mut writer, &log, upto, 10_000);
        let _ = writer.settle().unwrap().unwrap();
    }
    folder.assert_holds(&log, log.at());
    assert!(names.iter().all(|name| folder.read(name) == b"dear"));
}

/// P2: what has lost its end is received again, and is not passed over.
#[test]
fn complete_segments_that_were_cut_are_received_anew() {
    for codec in Codec::ALL {
        for keep in [0, 1, 500, usize::MAX] {
            let (log, folder) = (log(), Folder::new());
            feed(&mut folder.begin().writer, &log, log.at(), 90_000);
            let last = folder.names().into_iter().rfind(|name| name.len() == 24).unwrap();
            let whole = folder.read(&last);
            let name = format!("{last}{}", codec.suffix());
            fs::remove_file(folder.dir.path().join(&last)).unwrap();
            let mut bytes = packed(codec, &whole);
            bytes.truncate(keep.min(bytes.len() - 1));
            fs::write(folder.dir.path().join(&name), bytes).unwrap();
            let resumption = folder.begin();
            let cut = Segment::parse(&last, folder.archive.size()).unwrap();
            assert_eq!(resumption.start, cut.start_pos(), "{name} cut to {keep}");
            let mut writer = resumption.writer;
            feed(&mut writer, &log, log.at(), 90_000);
            writer.settle().unwrap();
            assert!(folder.read(&last) == whole);
            assert!(codec == Codec::Plain || !folder.names().contains(&name), "{:?}", folder.names());
            folder.assert_holds(&log, reached(&log, log.at()));
        }
    }
}

#[test]
fn a_whole_partial_is_completed() {
    let folder = Folder::new();
    let mut log = Log::new(START, SIZE, 1, SYSTEM);
    log.record(10, 0, &[5; 500_000]);
    log.switch();
    assert_eq!(log.at(), START + SIZE);
    fs::write(folder.dir.path().join("000000010000000000000003.partial"), &log.bytes).unwrap();
    assert_eq!(folder.begin().start.lsn().get(), START + SIZE);
    assert_eq!(folder.names(), ["000000010000000000000003"]);
}

/// A record that goes past the segment's end, of which the last bytes in the segment have not come:
/// the zeros in their place look like data until the next segment ends it.
fn cut_in_the_last_page() -> (Log, u64) {
    let mut log = Log::new(START, SIZE, 1, SYSTEM);
    log.record(10, 0, &[5; 1_000_000]);
    log.record(10, 0, &[6; 200_000]);
    (log, START + SIZE - 3000)
}

/// P2: nothing bears a final name that has not all come.
#[test]
fn p2_zeros_at_a_segments_end_do_not_pass_for_an_open_record() {
    let (folder, (log, cut)) = (Folder::new(), cut_in_the_last_page());
    let mut writer = folder.begin().writer;
    feed(&mut writer, &log, cut, 100_000);
    let _ = writer.settle().unwrap().unwrap();
    drop(writer);
    let Resumption { start, old, mut writer, .. } = folder.begin();
    assert_eq!((start.lsn().get(), old.unwrap().touched.get()), (START, cut));
    assert_eq!(folder.names(), ["000000010000000000000003.partial"]);
    feed(&mut writer, &log, log.at(), 100_000);
    let _ = writer.settle().unwrap().unwrap();
    folder.assert_holds(&log, log.at());
}

#[test]
fn a_follower_does_not_take_zeros_for_an_open_record() {
    let (folder, (log, cut)) = (Folder::new(), cut_in_the_last_page());
    let mut writer = folder.begin().writer;
    let mut follower = Follower::new(folder.archive.clone(), History::first(), Lsn::new(START + 1));
    for upto in [cut, log.at()] {
        feed(&mut writer, &log, upto, 100_000);
        let _ = writer.settle().unwrap();
        let whole = if upto == cut { log.starts[1] } else { log.at() };
        assert_eq!(follower.advance().unwrap().whole.get(), whole);
        assert_eq!(follower.settle().unwrap().pos().lsn().get(), whole);
    }
}

#[test]
fn a_broken_record_is_kept_out_and_received_again() {
    let (log, folder) = (log(), Folder::new());
    let mut bad = log.bytes.clone();
    // In the record that begins in the segment that holds the end of the small ones.
    let large = log.starts[900];
    bad[(large - START) as usize + 50_000] ^= 1;
    let mut writer = folder.begin().writer;
    let mut told = Vec::new();
    let refused = writer.append(&bad, &mut |wrote| told.push(wrote));
    let Err(WriteError::Broken { broken, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(broken.whole.get(), large);
    drop(writer);
    // From the segment in which it begins, which is complete by now and holds the flipped bit.
    let begins = folder.segment(large / SIZE);
    let Resumption { mut writer, .. } = folder.archive.begin(&History::first(), begins).unwrap();
    feed(&mut writer, &log, log.at(), 50_000);
    let _ = writer.settle().unwrap();
    folder.assert_holds(&log, log.at());
}

#[test]
fn another_clusters_folder_is_refused() {
    let (log, folder) = (log(), Folder::new());
    fs::write(folder.dir.path().join("000000010000000000000003"), &log.bytes[..SIZE as usize]).unwrap();
    let other =
        Archive::new(folder.dir.path().to_owned(), Arc::new(Real::new()), folder.archive.size(), Some(78), 0o600);
    assert!(matches!(other.resume(None), Err(ResumeError::OtherCluster { held: SYSTEM, server: 78 })));
}

#[test]
fn a_folder_of_segments_of_another_size_is_not_taken_for_an_empty_one() {
    for name in ["000000010000000000000009", "000000010000000000000009.partial", "0000000100000000000000FF.gz"] {
        let folder = Folder::new();
        let size = SegmentSize::new(1 << 30).unwrap();
        let large = Archive::new(folder.dir.path().to_owned(), Arc::new(Real::new()), size, Some(78), 0o600);
        fs::write(folder.dir.path().join("00000002.history"), b"").unwrap();
        fs::write(folder.dir.path().join("0000000100000000000000FF.00000028.backup"), b"").unwrap();
        assert!(large.resume(None).unwrap().is_none());
        fs::write(folder.dir.path().join(name), b"").unwrap();
        let refused = large.resume(None).unwrap_err();
        assert!(matches!(&refused, ResumeError::OtherSegmentSize { name: found, .. } if found == name), "{refused}");
    }
}

fn backup_of(log: &Log) -> (Lsn, Pos) {
    let n = log.starts.len();
    let start = Lsn::new(log.starts[n - 4]);
    (start, Pos::new(TimelineId::FIRST, Lsn::new(log.starts[n - 2])))
}

/// P3: the proof needs every record and the one that ends the backup.
#[test]
fn a_backup_is_proven_from_its_bytes() {
    let (log, folder) = (log(), Folder::new());
    let mut writer = folder.begin().writer;
    feed(&mut writer, &log, log.at(), 50_000);
    let _ = writer.settle().unwrap();
    let (start, stop) = backup_of(&log);
    let proof = folder.archive.prove(start, stop, EndOfBackup::Record).unwrap();
    assert_eq!((proof.start(), proof.stop()), (start, stop));
    let wrong = |start, stop| folder.archive.prove(start, stop, EndOfBackup::Record).unwrap_err();
    assert!(matches!(wrong(start.saturating_add(8), stop), NotProven::NoRecordAtStart(_)));
    assert!(matches!(wrong(Lsn::new(log.starts[3]), stop), NotProven::NoEndRecord { .. }));
    assert!(matches!(wrong(stop.lsn(), stop), NotProven::NoSuchRange { .. }));
    // One bit of one record.
    let middle = Segment::containing(stop.at(start), folder.archive.size());
    let path = folder.dir.path().join(middle.name());
    let mut bytes = fs::read(&path).unwrap();
    let at = log.starts[log.starts.len() - 3] + 30 - middle.start().get();
    bytes[at as usize] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(wrong(start, stop), NotProven::Invalid { segment, .. } if segment == middle));
    let segment = proof.segments()[0];
    fs::remove_file(folder.dir.path().join(segment.name())).unwrap();
    assert!(matches!(wrong(start, stop), NotProven::Missing { segment: missing, .. } if missing == segment));
}

#[test]
fn a_follower_sees_what_another_process_writes() {
    let (log, folder) = (log(), Folder::new());
    let mut writer = folder.begin().writer;
    let mut follower = Follower::new(folder.archive.clone(), History::first(), Lsn::new(START + 5000));
    let mut last = 0;
    for n in 1..30 {
        let upto = (START + n * 100_001).min(log.at());
        feed(&mut writer, &log, upto, 10_000);
        let _ = writer.settle().unwrap();
        let followed = follower.advance().unwrap();
        assert!((last..=reached(&log, upto)).contains(&followed.whole.get()));
        last = followed.whole.get();
        if last > START {
            assert_eq!(follower.settle().unwrap().pos().lsn().get(), last);
        }
    }
    feed(&mut writer, &log, log.at(), 10_000);
    let _ = writer.settle().unwrap();
    assert_eq!(follower.advance().unwrap().whole.get(), log.at());
}

/// After a switch an idle server stands at the start of a segment that has no file yet.
#[test]
fn a_follower_from_a_segments_end_needs_no_next_segment() {
    let (log, folder) = (log(), Folder::new());
    let mut writer = folder.begin().writer;
    feed(&mut writer, &log, START + SIZE, 10_000);
    let mut follower = Follower::new(folder.archive.clone(), History::first(), Lsn::new(START + SIZE));
    let whole = follower.advance().unwrap().whole;
    assert!(whole.get() > START);
    assert_eq!(follower.settle().unwrap().pos().lsn(), whole);
}

/// A receiver that began at a segment's start holds nothing before it, and nothing of it yet.
#[test]
fn a_follower_of_an_empty_archive_has_what_was_before_it() {
    let folder = Folder::new();
    let mut follower = Follower::new(folder.archive.clone(), History::first(), Lsn::new(START));
    assert_eq!(follower.advance().unwrap().whole.get(), START);
    assert_eq!(follower.settle().unwrap().pos().lsn().get(), START);
}

/// P5: a clone of the cluster bears the same identifier; what it sends does not follow.
#[test]
fn a_clones_wal_does_not_follow() {
    let (log, folder) = (log(), Folder::new());
    let mut writer = folder.begin().writer;
    feed(&mut writer, &log, START + SIZE, 10_000);
    drop(writer);
    let mut clone = Log::new(START, SIZE, 1, SYSTEM);
    for n in 0..1500_usize {
        clone.record(10, 0, &vec![n as u8 | 1; n * 7 % 2000 + 1]);
    }
    let Resumption { start, mut writer, .. } = folder.begin();
    let from = (start.lsn().get() - START) as usize;
    let refused = writer.append(&clone.bytes[from..from + 100_000], &mut |_| {});
    assert!(matches!(refused, Err(WriteError::Diverged(_))), "{refused:?}");
    drop(writer);
    assert_eq!(folder.names(), ["000000010000000000000003"]);
}
