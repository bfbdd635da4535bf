//! One function a parser: any bytes may come, and it may refuse them, but not panic, loop, or take much memory.
//! Where bytes end in a checksum of their own, they are also fed with that put right.

#[path = "dialogue.rs"]
mod dialogue;

use std::convert::Infallible;
use std::io::{Cursor, Read};

use bytes::{Bytes, BytesMut};
use tokio_util::codec::Decoder;
use walhold::codec::{Ahead, Codec, reader};
use walhold::connection::{Conninfo, Flags, Surroundings};
use walhold::image::{
    BackupLabel, Comparison, ControlFile, IncrementReader, IncrementalError, Listed, Manifest, Names, Sought,
    TablespaceMap, TarEdit, TarEvent, TarReader,
};
use walhold::protocol::{BackupStream, BaseBackup, Framer, Phase, Reply, ServerVersion, StreamMessage, TablespaceRow};
use walhold::repository::{DrillRecord, Pending, Seal, Sha256Sum, read};
use walhold::spill::Scratch;
use walhold::wal::{Chain, History, HistoryFile, Lsn, Seed, Segment, SegmentSize, TimelineId};

/// The first byte says how the rest is taken.
fn chosen(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}

pub fn framing(data: &[u8]) {
    let (choice, wire) = chosen(data);
    let phase = [Phase::Login, Phase::Command, Phase::Streaming, Phase::Copying][usize::from(choice & 3)];
    let mut framer = Framer::new();
    framer.enter(phase);
    let main = TablespaceRow { oid: None, location: None, size_kb: None };
    let version = ServerVersion::new(if choice & 4 == 0 { 170_000 } else { 130_000 });
    let mut backup = BackupStream::new(version, &[main], &BaseBackup::new(String::new()));
    let mut buffer = BytesMut::new();
    // In pieces, as a socket gives them.
    for piece in wire.chunks(usize::from(choice >> 3) * 50 + 1) {
        buffer.extend_from_slice(piece);
        loop {
            match framer.decode(&mut buffer) {
                Ok(Some(frame)) => {
                    let Ok(reply) = Reply::decode(frame) else { continue };
                    if let Reply::CopyData(body) = &reply {
                        let _ = StreamMessage::decode(body);
                    }
                    let _ = backup.feed(reply);
                    while backup.next_event().is_some() {}
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(buffer.capacity() <= 17 << 20);
    }
}

pub fn messages(data: &[u8]) {
    if let Ok(StreamMessage::Wal { start, data, .. }) = StreamMessage::decode(&Bytes::copy_from_slice(data)) {
        assert!(start.checked_add(data.len() as u64).is_some());
    }
}

/// A server that says these bytes to whoever logs in.
pub fn login(data: &[u8]) {
    dialogue::with_server("password=secret", None, data);
}

/// A password file, and a server that asks for a password.
pub fn passwords(data: &[u8]) {
    dialogue::with_server("", Some(data), b"R\0\0\0\x08\0\0\0\x03");
}

/// A connection service file.
pub fn services(data: &[u8]) {
    dialogue::with_service(data);
}

pub fn conninfo(data: &[u8]) {
    let text = String::from_utf8_lossy(data).into_owned();
    let surroundings = Surroundings { variable: Box::new(|_| None), user: Some("u".to_owned()), home: None };
    if let Ok(conninfo) = Conninfo::new(&Flags { conninfo: Some(text), ..Flags::default() }, &surroundings) {
        let _ = (conninfo.target(), conninfo.user().len(), conninfo.database().map(str::len));
    }
}

pub fn tar(data: &[u8]) {
    let (choice, archive) = chosen(data);
    let whole = members(archive, archive.len().max(1));
    // It is the same however it is cut.
    assert_eq!(whole, members(archive, usize::from(choice) * 7 + 1));
    let mut fixed = archive.to_vec();
    for header in fixed.chunks_exact_mut(512) {
        if header[257..262] == *b"ustar" {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    members(&fixed, 1000);
    edited(&fixed, usize::from(choice) * 7 + 1);
}

/// Of an archive that can be read, what comes out with a file more and one less can be read too.
fn edited(archive: &[u8], piece: usize) {
    let mut edit = TarEdit::new().append("postgresql.auto.conf", b"a = b\n".to_vec()).omit("backup_manifest");
    let mut out = Vec::new();
    let mut put = |bytes: &[u8]| {
        out.extend_from_slice(bytes);
        Ok::<_, Infallible>(())
    };
    let fed = archive.chunks(piece).try_for_each(|piece| edit.feed(piece, &mut put));
    if fed.is_ok() && edit.finish(&[], &mut put).is_ok() && members(archive, piece).1 {
        assert!(members(&out, piece).1);
    }
}

/// What an archive holds, and whether it is one.
fn members(archive: &[u8], piece: usize) -> (Vec<String>, bool) {
    let (mut reader, mut names, mut told, mut bytes) =
        (TarReader::new(), Names::new(Scratch::temporary()), Vec::new(), 0);
    for piece in archive.chunks(piece) {
        let fed = reader.feed(piece, &mut |event| match event {
            TarEvent::Member(member) => {
                let path = member.path.as_path();
                assert!(!path.is_absolute() && path.components().all(|part| part.as_os_str() != ".."));
                told.push(format!("{member:?}"));
                names.take(&member).map_err(drop)
            }
            TarEvent::Data(data) => {
                bytes += data.len();
                Ok(())
            }
            TarEvent::MemberEnd => Ok(()),
        });
        if fed.is_err() {
            return (told, false);
        }
    }
    assert!(bytes <= archive.len());
    (told, reader.finish().is_ok())
}

pub fn manifest(data: &[u8]) {
    let parse = |bytes: &[u8]| {
        if let Ok(manifest) = Manifest::parse(bytes) {
            for file in manifest.files() {
                assert_eq!(manifest.file(&file.path), Some(file));
            }
            let mut comparison = Comparison::new(Scratch::temporary());
            for file in manifest.files() {
                comparison.add(file.path.clone(), file.size, file.checksum.clone());
            }
            let listed = Listed::read(&mut &*bytes, bytes.len() as u64, Scratch::temporary()).unwrap();
            assert!(comparison.check(listed).is_ok());
        }
    };
    parse(data);
    const KEY: &[u8] = b"\"Manifest-Checksum\": \"";
    if let Some(at) = data.windows(KEY.len()).rposition(|window| window == KEY) {
        let sum = Sha256Sum::of(&data[..at]).to_string();
        parse(&[&data[..at], KEY, sum.as_bytes(), b"\"}\n"].concat());
    }
}

pub fn history(data: &[u8]) {
    let size = SegmentSize::new(1 << 20).unwrap();
    let (choice, content) = chosen(data);
    let Some(tli) = TimelineId::new(u32::from(choice)) else { return };
    if let Ok(history) = History::parse(tli, content) {
        assert_eq!(history.tli(), tli);
        for switch in history.switches() {
            assert!(switch.from < tli && history.after(switch.from) > switch.from);
            assert!(history.owner(switch.at) > switch.from);
            assert_eq!(history.segment_at(switch.at, size).size(), size);
        }
    }
    let name = String::from_utf8_lossy(content);
    let _ = (HistoryFile::parse(&name), Segment::parse(&name, size));
}

pub fn wal(data: &[u8]) {
    let (choice, wal) = chosen(data);
    let fed = |slice: usize| {
        let size = SegmentSize::new(1 << 20).unwrap();
        let seed = Seed { start: Lsn::new(3 << 20), size, system_id: None, newest_tli: TimelineId::FIRST };
        let mut chain = Chain::new(seed);
        let (mut records, mut last) = (0, Lsn::ZERO);
        for piece in wal.chunks(slice) {
            let before = chain.at();
            let fed = chain.feed(piece, &mut |record| {
                assert!(record.start >= last && record.end > record.start);
                let _ = (record.kind(), record.transaction_end(), record.tablespace_made());
                last = record.end;
                records += 1;
            });
            if let Err(broken) = fed {
                assert!(broken.whole <= broken.at);
                return (records, Some(broken));
            }
            assert_eq!(chain.at() - before, piece.len() as u64);
            assert!(chain.whole() <= chain.at().max(last));
        }
        (records, None)
    };
    // It is the same however it is cut.
    assert_eq!(fed(wal.len().max(1)), fed(usize::from(choice) * 13 + 1));
}

pub fn seals(data: &[u8]) {
    let parse = |bytes: &[u8]| {
        let _ = (read::<Seal>(bytes).is_ok(), read::<Pending>(bytes).is_ok());
        let _ = read::<DrillRecord>(bytes).is_ok();
        if let Ok(seal) = read::<Seal>(bytes) {
            let _ = (seal.end(), seal.file("base.tar"));
            let again = walhold::repository::write(&seal).unwrap();
            assert_eq!(read::<Seal>(&again).ok(), Some(seal));
        }
    };
    parse(data);
    const KEY: &[u8] = b"  \"sha256\": \"";
    if let Some(at) = data.windows(KEY.len()).rposition(|window| window == KEY) {
        let sum = Sha256Sum::of(&data[..at]).to_string();
        parse(&[&data[..at], KEY, sum.as_bytes(), b"\"\n}\n"].concat());
    }
}

pub fn label(data: &[u8]) {
    let _ = BackupLabel::parse(data);
    if let Ok(map) = TablespaceMap::parse(data)
        && let Ok(bytes) = map.to_bytes()
    {
        assert_eq!(TablespaceMap::parse(&bytes).ok(), Some(map));
    }
}

pub fn control(data: &[u8]) {
    let _ = ControlFile::parse(data);
    // Its checksum stands at one of these places.
    for at in [288, 292, 296, 300, 304, 312] {
        if let Some(end) = data.get(..at).map(<[u8]>::len).filter(|at| data.len() >= at + 4) {
            let mut fixed = data.to_vec();
            let sum = crc32c::crc32c(&data[..end]).to_le_bytes();
            fixed[end..end + 4].copy_from_slice(&sum);
            let _ = ControlFile::parse(&fixed);
        }
    }
}

/// Blocks of a file that changed; of the file itself only the length counts.
pub fn blocks(data: &[u8]) {
    let (choice, file) = chosen(data);
    let mut reader = IncrementReader::new(file.len() as u64);
    let mut bytes = 0;
    for piece in file.chunks(usize::from(choice) * 13 + 1) {
        let fed = reader.feed(piece, &mut |_, block| {
            bytes += block.len();
            Ok::<_, IncrementalError>(())
        });
        if fed.is_err() {
            return;
        }
    }
    assert!(bytes <= file.len());
    if let Ok(increment) = reader.finish() {
        let mut sought = Sought::new(&increment);
        assert_eq!(sought.length(), increment.length());
        let wanted = sought.wanted(0..increment.length()).take(1000).map(|run| run.len()).sum::<usize>();
        assert!(wanted <= increment.length() as usize);
        sought.cut(u32::from(choice));
        sought.pass(&increment);
    }
}

/// What a compressed file holds; of one that is compressed far too well, the beginning.
const MOST_UNPACKED: usize = 1 << 20;

pub fn packed(data: &[u8]) {
    let (choice, file) = chosen(data);
    let codec = Codec::ALL[usize::from(choice & 3)];
    let mut unpacked = Vec::new();
    let whole = reader(codec, file).and_then(|from| from.take(MOST_UNPACKED as u64).read_to_end(&mut unpacked)).is_ok();
    assert!(unpacked.len() <= MOST_UNPACKED);
    if choice & 4 != 0 && unpacked.len() < MOST_UNPACKED {
        // It is the same when it is decoded by several threads.
        let mut ahead = Ahead::new(codec, Cursor::new(file.to_vec())).unwrap();
        let mut pieces = Vec::new();
        let read = loop {
            match ahead.piece() {
                Ok(Some(piece)) => pieces.extend(piece),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        // It refuses more: a stream may end before the length that it told, with an empty block.
        assert!(whole || !read);
        assert!(!read || pieces == unpacked);
    }
}
