//! Segments that are compressed as they come, on a real file system.

#![allow(clippy::disallowed_methods, reason = "the folder is set up from outside")]

use std::fs;
use std::io::Read;

use super::super::tests::{Folder, SIZE, START, feed, log};
use super::*;
use crate::archive::{Compressor, Resumption};
use crate::codec::{self, Method, Packing};

fn live(method: Method) -> Folder {
    let mut folder = Folder::new();
    folder.archive = folder.archive.compressed_live(method.into());
    folder
}

/// What decodes of a file; all of it must if it is to be whole.
fn decoded(folder: &Folder, name: &str, method: Method, whole: bool) -> Vec<u8> {
    let bytes = folder.read(name);
    let (mut data, mut byte) = (Vec::new(), [0; 1]);
    let mut decoder = codec::reader(method.codec(), &bytes[..]).unwrap();
    loop {
        match decoder.read(&mut byte) {
            Ok(0) => return data,
            Ok(_) => data.push(byte[0]),
            Err(e) => {
                assert!(!whole, "{name}: {e}");
                return data;
            }
        }
    }
}

fn name(no: u64, method: Method, partial: bool) -> String {
    let suffix = if partial { ".partial" } else { "" };
    format!("0000000100000000{no:08X}{}{suffix}", method.codec().suffix())
}

#[test]
fn files_are_those_of_pg_receivewal() {
    let log = log();
    for method in Method::ALL {
        let folder = live(method);
        let mut writer = folder.begin().writer;
        feed(&mut writer, &log, log.at(), 100_000);
        assert_eq!(writer.close().unwrap().unwrap().pos().lsn().get(), log.at());
        let last = log.at() / SIZE;
        for no in START / SIZE..=last {
            let data = decoded(&folder, &name(no, method, no == last), method, true);
            let from = (no * SIZE - START) as usize;
            assert!(data == log.bytes[from..log.bytes.len().min(from + SIZE as usize)], "{method:?} {no}");
        }
        assert_eq!(folder.names().len() as u64, last - START / SIZE + 1, "{:?}", folder.names());
    }
}

/// P1: whatever is called durable decodes from the file as it is then.
#[test]
fn p1_a_settled_position_decodes() {
    let log = log();
    for method in Method::ALL {
        let folder = live(method);
        let mut writer = folder.begin().writer;
        let mut upto = START;
        for step in [1, 8191, 1, 4096, 24, 70_000, 300_000, 5, 400_000] {
            upto += step;
            feed(&mut writer, &log, upto, 7777);
            assert_eq!(writer.settle().unwrap().unwrap().pos().lsn().get(), upto);
            let data = decoded(&folder, &name(3, method, true), method, false);
            assert!(data == log.bytes[..(upto - START) as usize], "{method:?} at {upto}");
        }
    }
}

/// Only what a writer makes is removed: the folder may hold other people's files.
#[test]
fn a_sweep_leaves_names_alone_that_are_not_ours() {
    let folder = Folder::new();
    let ours = ["000000010000000000000003.partial.tmp", "00000002.history.tmp", "walhold-next-segment.tmp"];
    let others = ["00000002.tmp", "notes.history.tmp", "notes.partial.tmp"];
    for name in ours.iter().chain(&others) {
        fs::write(folder.dir.path().join(name), b"").unwrap();
    }
    folder.archive.sweep().unwrap();
    assert_eq!(folder.names(), others);
}

/// Killed or stopped anywhere, in one method and then in another: the files are the same in the
/// end, and no partial is left beside another.
#[test]
fn going_on_in_any_method_gives_the_same_files() {
    let log = log();
    let mut folder = Folder::new();
    let plain = folder.archive.clone();
    for n in 1..30 {
        let method = Method::ALL.get(n as usize % 4).copied();
        folder.archive = match method {
            Some(method) => plain.clone().compressed_live(method.into()),
            None => plain.clone(),
        };
        folder.archive.sweep().unwrap();
        let upto = (START + n * 97_003).min(log.at());
        let Resumption { start, mut writer, .. } = folder.begin();
        feed(&mut writer, &log, upto.max(start.lsn().get()), 10_000);
        let _ = writer.settle().unwrap();
        match n % 3 {
            0 => drop(writer.close().unwrap()),
            // As kill -9 leaves it: the frame does not end.
            1 => std::mem::forget(writer),
            _ => drop(writer),
        }
        let partials: Vec<_> = folder.names().into_iter().filter(|name| name.ends_with(".partial")).collect();
        assert!(partials.len() <= 1, "{partials:?}");
        let mut at = START;
        while at < upto {
            let mut reader = folder.archive.open_segment(folder.segment(at / SIZE), Access::Read).unwrap().unwrap();
            while at < upto {
                let bytes = reader.fill().unwrap();
                let n = bytes.len().min((upto - at) as usize);
                if n == 0 {
                    assert!(at.is_multiple_of(SIZE), "{} ends at {at:X}", reader.path().display());
                    break;
                }
                assert!(bytes[..n] == log.bytes[(at - START) as usize..][..n]);
                reader.consume(n);
                at += n as u64;
            }
        }
    }
}

/// P1: what may have been acknowledged, open records included, stays until it has come again.
#[test]
fn p1_nothing_shorter_takes_a_partials_place() {
    let log = log();
    // In the record that covers most of two segments.
    let upto = log.starts[900] + 300_000;
    for method in Method::ALL {
        let mut folder = live(method);
        let mut writer = folder.begin().writer;
        feed(&mut writer, &log, upto, 50_000);
        let _ = writer.close().unwrap();
        let partial = name(upto / SIZE, method, true);
        let before = folder.read(&partial);
        for other in [Method::Gzip, Method::Zstd] {
            folder.archive = folder.archive.compressed_live(other.into());
            let Resumption { old, start, mut writer, .. } = folder.begin();
            assert_eq!(old.unwrap().touched.get(), upto);
            feed(&mut writer, &log, upto - 1, 10_000);
            assert_eq!(writer.settle().unwrap(), None);
            assert!(folder.read(&partial) == before);
            drop(writer);
            assert!(!folder.names().iter().any(|name| name.ends_with(".tmp")), "{:?}", folder.names());
            assert!(start.lsn().get() < upto - 1);
        }
        let mut writer = folder.begin().writer;
        feed(&mut writer, &log, upto + 1, 10_000);
        assert_eq!(writer.close().unwrap().unwrap().pos().lsn().get(), upto + 1);
        let partials: Vec<_> = folder.names().into_iter().filter(|name| name.ends_with(".partial")).collect();
        assert_eq!(partials, [name(upto / SIZE, Method::Zstd, true)]);
    }
}

/// What stock pg_receivewal leaves: something behind the end, or a file cut anywhere.
#[test]
fn odd_partials_are_received_anew() {
    let log = log();
    let cut = 600_000;
    for method in Method::ALL {
        let mut packer = codec::Packer::growing(Packing::from(method)).unwrap();
        packer.write(&log.bytes[..cut]).unwrap();
        let whole = packer.finish().unwrap();
        let mut garbage = whole.clone();
        garbage.extend(&whole[whole.len() / 2..]);
        let cases = [whole.clone(), garbage, whole[..whole.len() / 2].to_vec(), whole[..3].to_vec(), Vec::new()];
        for (case, content) in cases.into_iter().enumerate() {
            let folder = live(method);
            fs::write(folder.dir.path().join(name(3, method, true)), content).unwrap();
            let Resumption { start, old, mut writer, .. } = folder.begin();
            assert_eq!(start.lsn().get(), START);
            match case {
                0 | 1 => assert_eq!(old.unwrap().touched.get(), START + cut as u64),
                2 => assert!(old.is_some_and(|old| old.touched.get() > START + 100_000)),
                _ => assert!(old.is_none()),
            }
            feed(&mut writer, &log, START + SIZE + 10, 50_000);
            let _ = writer.close().unwrap().unwrap();
            assert_eq!(folder.names(), [name(3, method, false), name(4, method, true)]);
            assert!(decoded(&folder, &name(3, method, false), method, true) == log.bytes[..SIZE as usize]);
        }
    }
}

/// P1: what was flushed and synced counts, whatever a power cut has left behind it.
#[test]
fn p1_what_follows_a_synced_part_takes_nothing_from_it() {
    let log = log();
    for method in Method::ALL {
        for level in method.levels().step_by(5) {
            for end in [10, 1760, 70_000, 400_000] {
                let mut packer = codec::Packer::growing(Packing::new(method, level).unwrap()).unwrap();
                packer.write(&log.bytes[..end]).unwrap();
                packer.flush().unwrap();
                let mut bytes = Vec::new();
                packer.take(&mut bytes);
                for garbage in [&[0; 5000][..], &[0xFF; 300], b"garbage", &[0]] {
                    let folder = Folder::new();
                    let torn = [&bytes[..], garbage].concat();
                    fs::write(folder.dir.path().join(name(3, method, true)), torn).unwrap();
                    let mut reader =
                        folder.archive.open_segment(folder.segment(3), Access::ReadDirect).unwrap().unwrap();
                    let mut data = Vec::new();
                    while !reader.fill().unwrap().is_empty() {
                        data.extend_from_slice(reader.fill().unwrap());
                        let n = reader.fill().unwrap().len();
                        reader.consume(n);
                    }
                    assert!(data.len() >= end, "{method:?}:{level}: {} of {end}", data.len());
                    assert!(data[..end] == log.bytes[..end]);
                }
            }
        }
    }
}

#[test]
fn a_folder_that_is_there_no_more_is_the_storages_failure() {
    let (log, folder) = (log(), Folder::new());
    let mut writer = folder.begin().writer;
    feed(&mut writer, &log, START + SIZE / 2, 7777);
    assert!(writer.settle().unwrap().is_some());
    // As when its file system is taken out of the directory tree: files that are open stay so.
    let (there, away) = (folder.dir.path(), folder.dir.path().with_extension("away"));
    fs::rename(there, &away).unwrap();
    let error = writer.append(&log.bytes[SIZE as usize / 2..2 * SIZE as usize], &mut |_| {}).unwrap_err();
    fs::rename(away, there).unwrap();
    let WriteError::Archive(ArchiveError::Disk(error)) = error else { panic!("{error}") };
    assert_eq!(error.trouble(), Trouble::Failed, "{error}");
}

/// After a slow segment the next file lies ready, filled with zeros. One that is compressed as it comes is another.
#[test]
fn a_file_that_was_made_ready_is_for_plain_segments() {
    let log = log();
    for live in [true, false] {
        let mut folder = Folder::new();
        let compressor = Compressor::start(&folder.archive, Packing::FAST, |_| {}).unwrap();
        folder.archive = match live {
            true => folder.archive.compressed_live(Packing::FAST),
            false => folder.archive.compressed_by(&compressor),
        };
        let mut writer = folder.begin().writer;
        feed(&mut writer, &log, START + 1000, 1000);
        std::thread::sleep(SLOW_SEGMENT + Duration::from_millis(50));
        let _ = writer.settle().unwrap().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        writer.expect(Lsn::new(u64::MAX));
        feed(&mut writer, &log, log.at(), 50_000);
        let _ = writer.close().unwrap().unwrap();
        drop(compressor);
        assert!(folder.names().contains(&name(START / SIZE + 1, Method::Zstd, false)), "{:?}", folder.names());
        let mut at = START;
        while at < log.at() {
            let mut reader = folder.archive.open_segment(folder.segment(at / SIZE), Access::Read).unwrap().unwrap();
            let end = log.at().min((at / SIZE + 1) * SIZE);
            while at < end {
                let bytes = reader.fill().unwrap();
                let n = bytes.len().min((end - at) as usize);
                assert!(n > 0 && bytes[..n] == log.bytes[(at - START) as usize..][..n], "{at:X}");
                reader.consume(n);
                at += n as u64;
            }
        }
    }
}
