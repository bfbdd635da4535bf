//! PostgreSQL's own tools as judges of what walhold wrote.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use walhold::codec::{Codec, reader};

use crate::cluster::{Cluster, Lsn};
use crate::room::{Outcome, Room};

/// The restored files must be those of the server's manifest, and the archive must have the WAL it asks for.
pub(crate) fn verify_backup(room: &Room, data: &Path, wal: &Path) -> Outcome {
    let tool = room.tool("pg_verifybackup")?;
    let said = room.must(room.command(tool).arg("-w").arg(wal).arg(data));
    assert!(said.contains("backup successfully verified"), "{said}");
    Ok(())
}

/// pg_waldump must read all records from the first segment of a plain folder to `end` without a word.
pub(crate) fn waldump(room: &Room, wal: &Path, end: Lsn) -> Outcome {
    let tool = room.tool("pg_waldump")?;
    let first = segments(wal).into_iter().next().expect("a segment");
    let start = first_byte(&first, segment_size(wal));
    let mut command = room.command(tool);
    // Statistics in place of a line for each record: 13 cannot be quiet.
    command.arg("-p").arg(wal).args(["-z", "-t", timeline(&first)]);
    let said = room.must(command.args(["-s", &start.to_string(), "-e", &end.to_string()]));
    assert!(!said.contains("error") && said.contains("Total"), "{said}");
    Ok(())
}

/// Tables and indexes must be whole, and agree.
pub(crate) fn amcheck(room: &Room, server: &Cluster<'_>) {
    server.rows("create extension if not exists amcheck");
    server.rows(
        "select bt_index_parent_check(c.oid, true) from pg_class c join pg_am a on a.oid = c.relam
         where a.amname = 'btree' and c.relkind = 'i' and c.relpersistence = 'p'",
    );
    if room.server.major >= 14 {
        let found = server.rows(
            "select c.relname, h.msg from pg_class c, verify_heapam(c.oid) h
             where c.relkind in ('r', 't', 'm') and c.relpersistence = 'p'",
        );
        assert!(found.is_empty(), "{found:?}");
    }
}

/// Copies an archive as stock tools want it: nothing compressed, and the last segment under its
/// final name.
pub(crate) fn plain_copy(room: &Room, wal: &Path, name: &str) -> PathBuf {
    let to = room.path(name);
    room.make_dir(&to);
    for entry in fs::read_dir(wal).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let bytes = fs::read(&path).unwrap();
        let (name, codec) = Codec::split(name);
        if codec != Codec::Plain && wal.join(name).exists() {
            continue; // It is being compressed: the plain one counts.
        }
        let bytes = unpacked(codec, &bytes);
        if name.ends_with(".history") || is_segment(name.trim_end_matches(".partial")) {
            room.write(&to.join(name.trim_end_matches(".partial")), bytes);
        }
    }
    to
}

/// What a whole file holds.
pub(crate) fn unpacked(codec: Codec, bytes: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    reader(codec, bytes).and_then(|mut decoder| decoder.read_to_end(&mut data)).unwrap();
    data
}

/// Names of the complete segments in a folder, in order, without what tells how they are stored.
pub(crate) fn segments(wal: &Path) -> Vec<String> {
    let mut names: Vec<_> = names(wal).into_iter().map(|name| Codec::split(&name).0.to_owned()).collect();
    names.retain(|n| is_segment(n));
    names.dedup();
    names
}

/// All names in a folder, in order.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The one segment that is being received.
#[track_caller]
pub(crate) fn partial(wal: &Path) -> PathBuf {
    let found: Vec<String> = names(wal).into_iter().filter(|n| n.ends_with(".partial")).collect();
    assert_eq!(found.len(), 1, "one partial among {:?}", names(wal));
    wal.join(&found[0])
}

/// Whether all these are 24 upper-case hexadecimal digits.
pub(crate) fn is_segment(name: &str) -> bool {
    name.len() == 24 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'))
}

/// Where a segment begins.
pub(crate) fn first_byte(segment: &str, size: u64) -> Lsn {
    let part = |range| u64::from_str_radix(&segment[range], 16).unwrap();
    Lsn((part(8..16) << 32) + part(16..24) * size)
}

/// The name of the segment that holds a byte.
pub(crate) fn segment_at(timeline: u32, at: Lsn, size: u64) -> String {
    let number = at.0 / size;
    let per_name = (1 << 32) / size;
    format!("{timeline:08X}{:08X}{:08X}", number / per_name, number % per_name)
}

/// Whether no segment is missing between the first and the last of a timeline.
#[track_caller]
pub(crate) fn assert_contiguous(wal: &Path) {
    let (segments, size) = (segments(wal), segment_size(wal));
    for pair in segments.windows(2).filter(|pair| pair[0][..8] == pair[1][..8]) {
        let expected = segment_at(1, Lsn(first_byte(&pair[0], size).0 + size), size);
        assert_eq!(pair[1][8..], expected[8..], "the segment after {}", pair[0]);
    }
}

fn timeline(segment: &str) -> &str {
    segment[..8].trim_start_matches('0')
}

fn segment_size(wal: &Path) -> u64 {
    let name = names(wal).into_iter().find(|name| is_segment(Codec::split(name).0)).expect("a segment");
    unpacked(Codec::split(&name).1, &fs::read(wal.join(name)).unwrap()).len() as u64
}
