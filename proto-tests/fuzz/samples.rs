//! Valid bytes for each of the entries, to begin with.

use std::fs;
use std::path::PathBuf;

use walhold::codec::{Method, Packer, Packing};

use crate::crash::repository::{now, pending_of, seal_of};
use crate::crash::world::at;
use crate::server::{
    accepted, authentication, columns, complete, copy_both, copy_data, copy_done, copy_out, error, keepalive, message,
    notice, parameter, ready, row, wal as wal_message,
};
use crate::wal::Log;

fn captured(name: &str) -> Vec<u8> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "proto-tests", "captured", name].iter().collect();
    fs::read(path).unwrap()
}

fn unpacked(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let packed = captured(name);
    let mut decoder = zstd::Decoder::new(&packed[..]).unwrap();
    // Copied files are cut short.
    let _ = std::io::copy(&mut decoder, &mut bytes);
    bytes
}

/// What a real server said in the tour of that name (`captured.rs`).
fn server_said(tour: &str) -> Vec<u8> {
    let recorded = captured(tour);
    let (mut left, mut said) = (&recorded[..], Vec::new());
    while let Some((side, rest)) = left.split_first() {
        let len = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
        let (message, behind) = rest.split_at(1 + len);
        if *side == b'B' {
            said.extend(message);
        }
        left = behind;
    }
    said
}

fn with_choices(bytes: &[u8]) -> Vec<Vec<u8>> {
    [0, 3, 7, 21, 130].map(|choice| [&[choice][..], bytes].concat()).to_vec()
}

pub(crate) fn framing() -> Vec<Vec<u8>> {
    let backup = [
        columns(2),
        row(&[Some("0/4000028"), Some("1")]),
        complete("SELECT"),
        copy_out(),
        copy_data(b"nbase.tar\0\0"),
        copy_data(b"dtar"),
        copy_data(b"m"),
        copy_data(b"d{}"),
        copy_done(),
        complete("BASE_BACKUP"),
        ready(),
    ];
    let stream = [copy_both(), wal_message(0x300_0000, &[7; 100]), keepalive(0x300_0064, true), copy_done()];
    let talk = [accepted("17.2"), notice("hello"), error("ERROR", "58P01", "gone"), row(&[None, Some("x")])];
    let real = ["13-commands.bin", "17-commands.bin", "17-timelines.bin"].map(server_said);
    let made = [backup.concat(), stream.concat(), talk.concat()];
    made.iter().chain(&real).flat_map(|bytes| with_choices(bytes)).collect()
}

pub(crate) fn messages() -> Vec<Vec<u8>> {
    [wal_message(0x300_0000, &[7; 100]), keepalive(0x300_0064, true)].map(|message| message[5..].to_vec()).to_vec()
}

pub(crate) fn login() -> Vec<Vec<u8>> {
    let scram = [
        authentication(10, b"SCRAM-SHA-256\0\0"),
        authentication(11, format!("r={}server,s=c2FsdA==,i=4096", "N".repeat(24)).as_bytes()),
        authentication(12, b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    ];
    let talk = [
        accepted("17.2"),
        columns(4),
        row(&[Some("7300000000000000001"), Some("1"), Some("0/3000060"), None]),
        complete("IDENTIFY_SYSTEM"),
        ready(),
        copy_both(),
        wal_message(0x300_0000, &[7; 100]),
        keepalive(0x300_0064, true),
        copy_done(),
        columns(2),
        row(&[Some("2"), Some("0/3000064")]),
        complete("START_STREAMING"),
        ready(),
    ];
    let asked = |kind, salt: &[u8]| [authentication(kind, salt), accepted("13.23")].concat();
    vec![
        scram.concat(),
        talk.concat(),
        asked(3, b""),
        asked(5, b"salt"),
        asked(7, b""),
        authentication(10, b"SCRAM-SHA-256-PLUS\0OTHER\0\0"),
        error("FATAL", "28P01", "no"),
        server_said("17-commands.bin"),
        [parameter("a", "b"), message(b'v', &[0; 8])].concat(),
    ]
}

pub(crate) fn passwords() -> Vec<Vec<u8>> {
    ["*:*:*:*:secret\n", "# no\nlocalhost:5432:replication:u:with\\:colon\\\\\n*:1:a\\*:b:c\r\n", ""]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}

pub(crate) fn services() -> Vec<Vec<u8>> {
    [
        "# all\n[other]\nport=no\n[s]\nhost=a,b\nport=1,2\nuser=x\n\n[t]\n",
        "[s]\nservice=t\n",
        "[s]\nldap://x\n",
        "[s]\nsslmode=prefer\nconnect_timeout=3\npassword= a b \n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

pub(crate) fn conninfo() -> Vec<Vec<u8>> {
    [
        "host=a,b port=1,2 user=x password='a\\'b' sslmode=verify-full channel_binding=require",
        "postgresql://u:p%20w@[::1]:5432,b:1/db?sslmode=require&target_session_attrs=any",
        "postgres:///db?host=/tmp&connect_timeout=3",
        "",
        "require_auth=!password,!md5",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

pub(crate) fn tar() -> Vec<Vec<u8>> {
    ["base-13.tar.zst", "base-17.tar.zst"]
        .iter()
        .flat_map(|name| {
            let mut archive = unpacked(name);
            archive.truncate(24 * 512);
            with_choices(&archive)
        })
        .collect()
}

pub(crate) fn manifest() -> Vec<Vec<u8>> {
    let small = b"{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n\
        { \"Path\": \"base/1\", \"Size\": 3, \"Last-Modified\": \"2026-11-22 11:57:49 GMT\", \
        \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"f35ce964\" },\n\
        { \"Encoded-Path\": \"6f6464e96e\", \"Size\": 0, \"Last-Modified\": \"x\" }\n],\n\"WAL-Ranges\": [\n\
        { \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000120\" }\n],\n\
        \"Manifest-Checksum\": \"0\"}\n";
    vec![small.to_vec(), unpacked("manifest-13.zst"), unpacked("manifest-17.zst")]
}

pub(crate) fn history() -> Vec<Vec<u8>> {
    [
        &b"\x021\t0/3000000\tno recovery target specified\n"[..],
        b"\x051\t0/3000000\tx\n\n# comment\n2\t0/A000000\tbefore 2026-11-22\n4\tFF/10\t\n",
        b"\x0100000002.history",
        b"\x01000000010000000000000003",
    ]
    .map(<[u8]>::to_vec)
    .to_vec()
}

pub(crate) fn wal() -> Vec<Vec<u8>> {
    let mut log = Log::new(3 << 20, 1 << 20, 1, 77);
    for n in 0..30_usize {
        log.record([10, 0, 1, 16][n % 4], [0, 0x20, 0x50][n % 3], &vec![n as u8; n * 37 % 900 + 1]);
    }
    log.record(10, 0, &[3; 20_000]);
    log.backup_end(3 << 20);
    with_choices(&log.bytes)
}

pub(crate) fn seals() -> Vec<Vec<u8>> {
    let id = "20261122T051500Z".parse().unwrap();
    let _ = now();
    let seal = seal_of(id, at(0x300_0028), at(0x300_0138), Vec::new());
    let pending = pending_of(id, at(0x300_0028), Some(seal.clone()));
    vec![walhold::repository::write(&seal).unwrap(), walhold::repository::write(&pending).unwrap()]
}

pub(crate) fn label() -> Vec<Vec<u8>> {
    [
        "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n\
         BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-11-22 05:15:00 UTC\nLABEL: x\n\
         START TIMELINE: 1\n",
        "16385 /srv/space\n16386 /srv/with\\\nline\\\\end\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

pub(crate) fn control() -> Vec<Vec<u8>> {
    ["13", "14", "15", "15-standby", "16", "17", "18"]
        .map(|version| captured(&format!("pg_control-{version}")))
        .to_vec()
}

/// Blocks 3, 4 and 9 of a file that was cut off at block 5, and no blocks.
pub(crate) fn blocks() -> Vec<Vec<u8>> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let mut three = words(&[0xD3AE_1F0D, 3, 5, 3, 4, 9]);
    three.resize(4 * 1024, 7);
    [three, words(&[0xD3AE_1F0D, 0, 5])].iter().flat_map(|bytes| with_choices(bytes)).collect()
}

/// Frames of each kind, one and two of them. The first byte says of which kind, and whether threads decode them too.
pub(crate) fn packed() -> Vec<Vec<u8>> {
    let text = b"WAL, and again WAL, and again WAL".repeat(20);
    let packed = |method: Method, level| {
        let mut packer = Packer::growing(Packing::new(method, level).unwrap()).unwrap();
        packer.write(&text).unwrap();
        packer.finish().unwrap()
    };
    let sized = zstd::bulk::compress(&text, 1).unwrap();
    let (lz4, gzip, zstd) = (packed(Method::Lz4, 1), packed(Method::Gzip, 1), packed(Method::Zstd, 1));
    [(0, text.clone()), (1, zstd), (1, sized), (2, lz4), (3, gzip)]
        .iter()
        .flat_map(|(codec, bytes)| [[&[*codec][..], bytes].concat(), [&[*codec | 4][..], bytes, bytes].concat()])
        .collect()
}
