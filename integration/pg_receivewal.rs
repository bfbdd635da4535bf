//! Called as `pg_receivewal`: beside the real one of the server's version, the same exit codes and the same
//! words on standard error.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::cluster::{Cluster, Setup, Stop};
use crate::pair::{Pair, words};
use crate::program::{Running, run, start};
use crate::room::{Outcome, Room, SOON, wait_until};
use crate::stock::{assert_contiguous, names, partial};

fn at(room: &Room, program: &Path, server: &Cluster<'_>, arguments: &[&str]) -> Command {
    let mut command = room.command(program);
    command.args(["-d", &server.conninfo()]).args(arguments);
    command
}

/// Command lines that are wrong, and folders that are not there.
pub(crate) fn refusals(room: &Room) -> Outcome {
    // Older ones know fewer methods, and give hints in another form.
    let pair = Pair::new(room, "pg_receivewal", 16);
    let dir = room.path("wal");
    room.make_dir(&dir);
    let dir = dir.to_str().unwrap();
    let lines: &[&[&str]] = &[
        &[],
        &["-n"],
        &["-x"],
        &["-nq"],
        &["-D"],
        &["--directory"],
        &["--bogus=1"],
        &["--no-sync=1"],
        &["--s"],
        &["--d=x"],
        &["--no"],
        &["-D", dir, "one", "-n", "two"],
        &["-D", dir, "--", "-n"],
        &["-D", dir, "--create-slot"],
        &["-D", dir, "--drop-slot"],
        &["-S", "s", "--create-slot", "--drop-slot"],
        &["-D", dir, "--synchronous", "--no-sync"],
        &["-D", dir, "-E", "abc"],
        &["-D", dir, "-E", "12"],
        &["-D", dir, "-s", "abc"],
        &["-D", dir, "-s", "1x"],
        &["-D", dir, "-s", "-1"],
        &["-D", dir, "-s", "2147484"],
        &["-D", dir, "-Z", "foo"],
        &["-D", dir, "-Z", "zstd"],
        &["-D", dir, "-Z", "99"],
        &["-D", dir, "-Z", "gzip:"],
        &["-D", dir, "-Z", "gzip:0"],
        &["-D", dir, "-Z", "gzip:level"],
        &["-D", dir, "-Z", "gzip:level=9x"],
        &["-D", dir, "-Z", "gzip:workers=3"],
        &["-D", dir, "-Z", "gzip:long"],
        &["-D", dir, "-Z", "gzip:fast=1"],
        &["-D", dir, "-Z", "lz4:13"],
        &["-D", dir, "-Z", "none:1"],
        &["-D", dir, "-v", "--help"],
        &["-D", dir, "-V"],
        &["-D", "/no/such/folder"],
        &["-D", dir, "-d", "nonsense=1"],
    ];
    for arguments in lines {
        let said = pair.run(1, |program| {
            let mut command = room.command(program);
            command.args(*arguments);
            command
        });
        assert!(!said.err.is_empty() && said.out.is_empty(), "{said}");
    }
    assert!(names(Path::new(dir)).is_empty());
    let ours = |argument| run(room.command(&pair.ours).arg(argument)).expect(0);
    assert!(ours("--version").out.starts_with("pg_receivewal (PostgreSQL) 18."));
    assert_eq!(ours("--help").out, ours("-?").out);
    if let Some(theirs) = &pair.theirs {
        let options = |help: &str| {
            help.lines()
                .filter(|l| l.starts_with("  -") || l.starts_with("      --"))
                .map(|l| l[..25.min(l.len())].to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(options(&ours("--help").out), options(&run(room.command(theirs).arg("--help")).expect(0).out));
    }
    Ok(())
}

/// The actions, and slots that are missing.
pub(crate) fn slots(room: &Room) -> Outcome {
    let pair = Pair::new(room, "pg_receivewal", 15);
    let primary = Cluster::new(room, "primary");
    let dir = room.path("wal");
    room.make_dir(&dir);
    let state =
        || primary.sql("select slot_type || coalesce(restart_lsn::text, ' keeps nothing') from pg_replication_slots");
    let act = |code, arguments: &[&str]| {
        let ours = run(&mut at(room, &pair.ours, &primary, arguments)).expect(code);
        (words(&ours, &pair.ours), state())
    };
    let theirs = |code, arguments: &[&str]| {
        pair.theirs.as_ref().map(|theirs| {
            let stock = run(&mut at(room, theirs, &primary, arguments)).expect(code);
            (words(&stock, theirs), state())
        })
    };
    let script: &[(i32, &[&str])] = &[
        (0, &["-v", "-S", "s", "--create-slot"]),
        (1, &["-S", "s", "--create-slot"]),
        (0, &["-S", "s", "--create-slot", "--if-not-exists"]),
        (0, &["-v", "-S", "s", "--drop-slot"]),
        (1, &["-S", "s", "--drop-slot"]),
        (1, &["-S", "Bad-Name", "--create-slot"]),
        (1, &["-n", "-S", "nosuch", "-D", dir.to_str().unwrap()]),
    ];
    // One after the other: what one does, the other would find done.
    let ours: Vec<_> = script.iter().map(|(code, arguments)| act(*code, arguments)).collect();
    assert_eq!(ours[0].1, "physical keeps nothing");
    assert_eq!(ours[3].1, "");
    for (i, (code, arguments)) in script.iter().enumerate() {
        // Of a bad name the server is not asked.
        if let Some(stock) = theirs(*code, arguments).filter(|_| !arguments.contains(&"Bad-Name")) {
            assert_eq!(ours[i], stock, "{arguments:?}");
        }
    }
    assert!(names(&dir).is_empty());
    Ok(())
}

/// Up to a position, by each method, in folders of their own.
pub(crate) fn streams(room: &Room) -> Outcome {
    let pair = Pair::new(room, "pg_receivewal", 15);
    let primary = Cluster::with(room, "primary", &Setup { segment_mb: 1, ..Setup::default() });
    for folder in ["ours", "theirs"] {
        room.make_dir(&room.path(folder));
    }
    let folder = |program: &Path| room.path(if program == pair.ours { "ours" } else { "theirs" });
    for more in [&["--synchronous"] as &[&str], &["-Z", "gzip:1"], &["-Z", "lz4"], &["--no-sync"]] {
        primary.switch_segment();
        let end = primary.flushed().to_string();
        primary.rows("select pg_logical_emit_message(true, 'test', 'beyond')");
        pair.run(0, |program| {
            let mut command = at(room, program, &primary, &["-v", "-n", "-E", &end]);
            command.args(more).arg("-D").arg(folder(program));
            command
        });
        if pair.theirs.is_some() {
            let ours = names(&room.path("ours"));
            let theirs = names(&room.path("theirs"));
            // The real one leaves what it wrote with the other method.
            assert!(ours.iter().all(|name| theirs.contains(name)), "{ours:?} {theirs:?}");
        }
        partial(&room.path("ours"));
    }
    // A position that lies behind: nothing is to be done.
    pair.run(0, |program| {
        let mut command = at(room, program, &primary, &["-v", "-n", "-E", "0/1000"]);
        command.arg("-D").arg(folder(program));
        command
    });
    Ok(())
}

/// SIGINT and SIGTERM end it in good order, and a server that stops ends it with 1 if it must not come back.
pub(crate) fn ends(room: &Room) -> Outcome {
    let pair = Pair::new(room, "pg_receivewal", 16);
    let mut primary = Cluster::new(room, "primary");
    let mut said = Vec::new();
    for program in [Some(&pair.ours), pair.theirs.as_ref()].into_iter().flatten() {
        let dir = room.path(if *program == pair.ours { "ours" } else { "theirs" });
        room.make_dir(&dir);
        let begin = || {
            let receiver = start(at(room, program, &primary, &["-v", "-n", "-s", "1"]).arg("-D").arg(&dir));
            let caught_up = "select count(*) from pg_stat_replication where write_lsn = pg_current_wal_flush_lsn()";
            wait_until("it to have all", SOON, || primary.sql(caught_up) == "1");
            receiver
        };
        let mut lines = Vec::new();
        for signal in [Signal::INT, Signal::TERM] {
            lines.push(words(&begin().end_by(signal).expect(0), program));
        }
        let receiver = begin();
        primary.stop(Stop::Fast);
        lines.push(words(&receiver.wait(SOON).expect(1), program));
        primary.start();
        said.push(lines);
    }
    assert!(said[0][2].iter().any(|line| line.ends_with("replication stream was terminated before stop point")));
    assert!(said.windows(2).all(|pair| pair[0] == pair[1]), "{said:#?}");
    Ok(())
}

#[track_caller]
fn has_all(receiver: &Running, server: &Cluster<'_>) {
    let sql = "select count(*) from pg_stat_replication where write_lsn = pg_current_wal_flush_lsn()";
    wait_until("it to have all", SOON, || {
        assert!(receiver.runs(), "{}", receiver.err());
        server.sql(sql) == "1"
    });
}

/// A server that is away is waited for, whether it was stopped or crashed; one that is not there at
/// first is not.
pub(crate) fn waits(room: &Room) -> Outcome {
    const WAITING: &str = "pg_receivewal: disconnected; waiting ";
    let pair = Pair::new(room, "pg_receivewal", 15);
    let mut primary = Cluster::new(room, "primary");
    let dir = room.path("wal");
    room.make_dir(&dir);
    for (how, verbose, cause) in [
        (Stop::Fast, true, "replication stream was terminated before stop point"),
        (Stop::Immediate, false, "could not receive data from WAL stream"),
    ] {
        let more: &[&str] = if verbose { &["-v", "-s", "1"] } else { &["-s", "1"] };
        let receiver = start(at(room, &pair.ours, &primary, more).arg("-D").arg(&dir));
        has_all(&receiver, &primary);
        primary.stop(how);
        receiver.wait_for(WAITING);
        std::thread::sleep(Duration::from_secs(1));
        let refused = run(at(room, &pair.ours, &primary, &[]).arg("-D").arg(&dir)).expect(1);
        assert!(refused.err.contains("connection to server ") && !refused.err.contains(WAITING), "{refused}");
        primary.start();
        primary.switch_segment();
        receiver.wait_for("connected again after");
        has_all(&receiver, &primary);
        let ended = receiver.terminate().expect(0).says(cause);
        // What went wrong, and when the next try comes.
        let lines: Vec<_> = ended.err.lines().filter(|line| !line.starts_with("pg_receivewal: hint: ")).collect();
        let waits: Vec<_> = (0..lines.len()).filter(|i| lines[*i].starts_with(WAITING)).collect();
        assert!(waits.iter().all(|i| *i > 0 && lines[i - 1].starts_with("pg_receivewal: error: ")), "{ended}");
        assert!(if verbose { waits.len() > 1 } else { waits.len() == 1 }, "{ended}");
        primary.wait_for_no_receiver();
    }
    assert_contiguous(&dir);
    Ok(())
}

/// What the real one would not notice, or would never get over.
pub(crate) fn better(room: &Room) -> Outcome {
    let pair = Pair::new(room, "pg_receivewal", 15);
    let primary = Cluster::new(room, "primary");
    let dir = room.path("wal");
    room.make_dir(&dir);
    let receive =
        |server: &Cluster<'_>, end: &str| run(at(room, &pair.ours, server, &["-n", "-E", end]).arg("-D").arg(&dir));
    let more = || {
        primary.switch_segment();
        let end = primary.flushed().to_string();
        primary.rows("select pg_logical_emit_message(true, 'test', 'beyond')");
        end
    };
    let first = more();
    receive(&primary, &first).expect(0);
    receive(&primary, &more()).expect(0);
    // A complete segment that has lost its end is named, and received again.
    let complete = names(&dir).into_iter().find(|name| name.len() == 24).unwrap();
    let whole = fs::read(dir.join(&complete)).unwrap();
    fs::OpenOptions::new().write(true).open(dir.join(&complete)).unwrap().set_len(1000).unwrap();
    let said = receive(&primary, &first).expect(0);
    said.says(&format!("pg_receivewal: warning: segment file \"{complete}\" has incorrect size 1000, skipping"));
    receive(&primary, &more()).expect(0);
    assert!(fs::read(dir.join(&complete)).unwrap() == whole, "{complete} differs");
    // Another cluster's WAL.
    let other = Cluster::with(room, "other", &Setup { own_identity: true, ..Setup::default() });
    let before = names(&dir);
    let ids = [&primary, &other].map(|server| server.sql("select system_identifier from pg_control_system()"));
    receive(&other, "0/FFFFFFF").expect(1).says(&ids[0]).says(&ids[1]);
    assert_eq!(names(&dir), before);
    Ok(())
}
