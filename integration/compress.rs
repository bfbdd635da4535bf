//! Compressed archives: the same WAL, whatever happens to who compresses it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::backup::{backup, restored, verify};
use crate::cluster::{Cluster, Setup};
use crate::load::{Load, compare};
use crate::program::{receive, run, walhold};
use crate::room::{Outcome, Room, SOON, wait_until};
use crate::stock::{is_segment, names, segments};

/// Method and level, the suffix of its files, and the program that unpacks them.
const METHODS: [(&str, &str, &str); 3] =
    [("gzip:1", ".gz", "gzip"), ("lz4:12", ".lz4", "lz4"), ("zstd:1", ".zst", "zstd")];

/// Each method beside none, from slots at the same place: unpacked by the stock programs, the
/// complete segments are the same bytes.
pub(crate) fn identical(room: &Room) -> Outcome {
    let primary = Cluster::with(room, "primary", &Setup { segment_mb: 16, ..Setup::default() });
    let slots = ["plain", "m0", "m1", "m2"];
    for slot in slots {
        primary.rows(&format!("select pg_create_physical_replication_slot('{slot}', true)"));
    }
    primary.rows("create table bulk as select i, repeat(md5(i::text), 5) from generate_series(1, 100000) i");
    primary.switch_segment();
    primary.rows("create index on bulk (i)");
    primary.switch_segment();
    let end = primary.flushed().to_string();
    primary.rows("select pg_logical_emit_message(false, 'test', 'more')");
    let drain = |slot: &str, method: &str| {
        let folder = room.path(slot);
        room.make_dir(&folder);
        let mut command = walhold(room, "receive");
        command.arg("-D").arg(&folder).args(["-S", slot, "-n", "-E", &end, "-d", &primary.conninfo(), "-Z", method]);
        run(&mut command).expect(0);
        folder
    };
    let plain = drain("plain", "none");
    let expected = segments(&plain);
    assert!(expected.len() >= 2 && names(&plain).iter().any(|name| is_segment(name)), "{:?}", names(&plain));
    for ((method, suffix, program), slot) in METHODS.into_iter().zip(&slots[1..]) {
        let folder = drain(slot, method);
        assert_eq!(segments(&folder), expected, "{method}");
        for segment in &expected {
            let file = folder.join(format!("{segment}{suffix}"));
            assert!(unpack(room, program, &file) == fs::read(plain.join(segment)).unwrap(), "{method}: {segment}");
        }
        assert!(names(&folder).iter().all(|name| !is_segment(name)), "{method}: {:?}", names(&folder));
    }
    // pg_receivewal takes what it finds for its own, and goes on behind it.
    let (folder, pg_receivewal) = (room.path("m0"), room.tool("pg_receivewal")?);
    let mut command = room.command(pg_receivewal);
    command.arg("-D").arg(&folder).args(["-S", "m0", "-n", "-v", "-E", &end, "-d", &primary.conninfo()]);
    command.args(if room.server.major < 15 { ["-Z", "1"] } else { ["-Z", "gzip"] });
    let said = room.must(&mut command);
    assert!(!said.contains("skipping"), "{said}");
    Ok(())
}

fn unpack(room: &Room, program: &str, file: &Path) -> Vec<u8> {
    let output = room.command(program).args(["-d", "-c", "-q"]).arg(file).output();
    match output {
        Ok(output) => {
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        }
        Err(_) => {
            eprintln!("{program} is not installed: not compared with it");
            let name = file.to_str().unwrap();
            crate::stock::unpacked(walhold::codec::Codec::split(name).1, &fs::read(file).unwrap())
        }
    }
}

/// Killed again and again while it compresses slowly, in one method after the other; then a restore
/// from what is there has all that was acknowledged.
pub(crate) fn killed(room: &Room) -> Outcome {
    let mut primary = Cluster::new(room, "primary");
    Load::prepare(&primary);
    let repo = room.path("repo");
    let stream = |method: &str| receive(room, &repo, &primary.conninfo(), &["--synchronous", "-Z", method]);
    let mut receiver = stream("gzip:9");
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    primary.require_standby("walhold");
    let load = Load::start(&primary, 3);
    for (round, method) in ["zstd:22", "lz4:12", "gzip:9", "zstd:1", "zstd:19", "gzip:6"].into_iter().enumerate() {
        load.wait_for_more(150);
        primary.rows("select pg_logical_emit_message(false, 'large', repeat('x y z', 700000))");
        std::thread::sleep(Duration::from_millis(37 * round as u64));
        assert!(receiver.kill().killed(), "it ended by itself");
        receiver = stream(method);
    }
    load.wait_for_more(100);
    let wal = repo.join("wal");
    let compressed = || names(&wal).iter().all(|name| !is_segment(name) && !name.ends_with(".tmp"));
    wait_until("all complete segments to be compressed", SOON, compressed);
    // Which of the methods got to it before the receiver was killed is a matter of luck.
    let methods = [".gz", ".lz4", ".zst"].into_iter().filter(|s| names(&wal).iter().any(|name| name.ends_with(s)));
    assert!(methods.count() >= 2, "{:?}", names(&wal));
    // One that follows files that change their form.
    backup(room, &repo, &primary).expect(0);
    primary.destroy();
    let acknowledged = load.finish();
    receiver.terminate().expect(0);
    crate::stock::assert_contiguous(&wal);
    verify(room, &repo).expect(0).says("USABLE");
    run(walhold(room, "list").arg("--repo").arg(&repo)).expect(0);
    compare(&acknowledged, &restored(room, &repo, "restored"));
    Ok(())
}
