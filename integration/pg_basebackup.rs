//! Called as `pg_basebackup`: beside the real one of the server's version, the same exit codes and the same words on
//! standard error. What the backups are is tested elsewhere.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::cluster::Cluster;
use crate::pair::{Pair, words};
use crate::program::{run, start, walhold};
use crate::room::{Outcome, Room, SOON, wait_until};
use crate::stock::names;

const NAME: &str = "pg_basebackup";

fn at(room: &Room, program: &Path, server: &Cluster<'_>, arguments: &[&str]) -> Command {
    let mut command = room.command(program);
    command.args(["-d", &server.conninfo(), "-c", "fast"]).args(arguments);
    command
}

/// Command lines that are wrong.
pub(crate) fn refusals(room: &Room) -> Outcome {
    // Older ones know fewer flags.
    let pair = Pair::new(room, NAME, 17);
    let dir = room.path("to");
    let dir = dir.to_str().unwrap();
    let lines: &[&[&str]] = &[
        &[],
        &["-x"],
        &["-k"],
        &["-D"],
        &["--pgdata"],
        &["--bogus=1"],
        &["--no-sync=1"],
        &["--no-s"],
        &["--t=x"],
        &["-D", dir, "one", "two"],
        &["-D", dir, "-v", "--help"],
        &["-D", dir, "-V"],
        &["-t", "client"],
        &["-t", "blackhole"],
        &["-t", "blackhole", "-D", dir],
        &["-t", "blackhole", "-F", "p"],
        &["-t", "blackhole", "-X", "none", "-Z", "client-gzip"],
        &["-t", "blackhole", "-X", "none", "--waldir=/x"],
        &["-D", dir, "-F", "x"],
        &["-D", dir, "-c", "slow"],
        &["-D", dir, "-X", "all"],
        &["-D", "-", "-Ft"],
        &["-D", dir, "-z"],
        &["-D", dir, "-Z", "foo"],
        &["-D", dir, "-Ft", "-Z", "99"],
        &["-D", dir, "-Ft", "-Z", "client-gzip:"],
        &["-D", dir, "-Ft", "-Z", "zstd:workers"],
        &["-D", dir, "-Ft", "-Z", "lz4:workers=3"],
        &["-D", dir, "-Ft", "-Z", "none:1"],
        &["-D", dir, "-X", "none", "-S", "one"],
        &["-D", dir, "-S", "one", "--no-slot"],
        &["-D", dir, "-C"],
        &["-D", dir, "-C", "--no-slot"],
        &["-D", dir, "-Ft", "--waldir=/x"],
        &["-D", dir, "--waldir=x"],
        &["-D", dir, "-P", "--no-estimate-size"],
        &["-D", dir, "--no-manifest", "--manifest-checksums=NONE"],
        &["-D", dir, "--no-manifest", "--manifest-force-encode"],
        &["-D", dir, "--sync-method=hope"],
        &["-D", dir, "-T", "foo"],
        &["-D", dir, "-T", "/a="],
        &["-D", dir, "-T", "/a=/b=/c"],
        &["-D", dir, "-T", "a=/b"],
        &["-D", dir, "-T", "/a=b"],
        &["-D", dir, "-r", "fast"],
        &["-D", dir, "-r", "0"],
        &["-D", dir, "-r", "31"],
        &["-D", dir, "-r", "1025M"],
        &["-D", dir, "-r", "100kB"],
        &["-D", dir, "-s", "1x"],
        &["-D", dir, "-s", "-1"],
        &["-D", dir, "-d", "nonsense=1"],
    ];
    for arguments in lines {
        let said = pair.run(1, |program| {
            let mut command = room.command(program);
            command.args(*arguments);
            command
        });
        assert!(!said.err.is_empty() && said.out.is_empty(), "{said}");
        // The same as a command of walhold; what is wrong with a connection string is found later.
        let code = if arguments.contains(&"nonsense=1") { 1 } else { 2 };
        let command = run(walhold(room, "basebackup").args(*arguments)).expect(code);
        let name = "walhold basebackup";
        assert_eq!(command.err, said.err.replace(pair.ours.to_str().unwrap(), name).replace(NAME, name));
    }
    assert!(!Path::new(dir).exists());
    help(room, &pair);
    Ok(())
}

/// The same flags, and those that are ours.
fn help(room: &Room, pair: &Pair) {
    let ours = |argument| run(room.command(&pair.ours).arg(argument)).expect(0);
    assert!(ours("--version").out.starts_with("pg_basebackup (PostgreSQL) 18."));
    assert_eq!(ours("--help").out, ours("-?").out);
    let Some(theirs) = pair.theirs.as_ref().filter(|_| room.server.major == 18) else { return };
    let flags = |help: &str| {
        let flags = help.lines().filter_map(|line| line.trim_start().strip_prefix('-'));
        let flags = flags.map(|line| line.split("  ").next().unwrap().split(' ').take(2).collect::<Vec<_>>().join(" "));
        let mut flags: Vec<_> = flags.collect();
        flags.sort();
        flags
    };
    let mut expected = flags(&run(room.command(theirs).arg("--help")).expect(0).out);
    let mut found = flags(&ours("--help").out);
    found.retain(|flag| !flag.starts_with("-no-verify do") && flag != "-no-verify");
    let short = |flags: &mut Vec<String>| {
        for flag in flags.iter_mut() {
            *flag = flag.split([' ', '=']).take(if flag.contains(", ") { 2 } else { 1 }).collect::<Vec<_>>().join(" ");
        }
    };
    short(&mut expected);
    short(&mut found);
    assert_eq!(found, expected);
}

/// What is said while all goes well.
pub(crate) fn words_of_success(room: &Room) -> Outcome {
    let pair = Pair::new(room, NAME, 16);
    let server = Cluster::new(room, "primary");
    for (name, arguments) in [
        ("plain", &["-v"][..]),
        ("fetched", &["-v", "-X", "fetch", "--no-sync"]),
        ("bare", &["-v", "-N", "-X", "none", "--no-manifest"]),
        ("unslotted", &["-v", "-N", "--no-slot"]),
        ("tar", &["-v", "-Ft", "-z"]),
        ("slotted", &["-v", "-N", "-C", "-S"]),
        ("shown", &["-P", "-N"]),
        ("told", &["-P", "-v", "-N"]),
        ("left", &["-P", "-v", "-X", "fetch", "-t", "blackhole"]),
    ] {
        if room.server.major < 15 && arguments.contains(&"-t") {
            continue;
        }
        let command = |program: &Path, whose: &str| {
            let mut command = at(room, program, &server, &[]);
            if !arguments.contains(&"-t") {
                command.arg("-D").arg(room.path(&format!("{name}{whose}")));
            }
            command.args(arguments);
            if arguments.ends_with(&["-S"]) {
                command.arg(format!("slot_{whose}"));
            }
            command
        };
        let ours = run(&mut command(&pair.ours, "ours")).expect(0);
        assert!(ours.out.is_empty(), "{ours}");
        if arguments.contains(&"-P") {
            let last = ours.err.lines().rfind(|line| line.contains(" kB (")).unwrap();
            assert!(last.contains(" kB (100%), 1/1 tablespace"), "{ours}");
        }
        if let Some(theirs) = &pair.theirs {
            let stock = run(&mut command(theirs, "theirs")).expect(0);
            // How often progress is shown is a matter of time, and that files were compared is ours to say.
            let said = |ended, program| -> Vec<String> {
                let mut words = words(ended, program);
                words.retain(|line| !line.contains("kB (") && !line.contains("as the backup manifest lists"));
                // Ours makes the slot before the checkpoint, so that no WAL behind it can be missing.
                for line in &mut words {
                    if let Some((made, _)) = line.split_once(" replication slot ") {
                        *line = made.to_owned();
                    }
                }
                words.sort();
                words
            };
            assert_eq!(said(&ours, &pair.ours), said(&stock, theirs), "\n{ours}\n{stock}");
        }
    }
    Ok(())
}

/// What only a server can refuse.
pub(crate) fn failures(room: &Room) -> Outcome {
    let pair = Pair::new(room, NAME, 17);
    let server = Cluster::new(room, "primary");
    let (to, full) = (room.path("to"), room.path("full"));
    room.make_dir(&full);
    room.write(&full.join("file"), "kept");
    let (to, full) = (to.to_str().unwrap(), full.to_str().unwrap());
    let long = "x".repeat(1025);
    server.rows("select pg_create_physical_replication_slot('taken')");
    let lines: &[&[&str]] = &[
        &["-D", full],
        &["-D", full, "-Ft"],
        &["-D", full, "-n"],
        &["-D", to, "-l", &long],
        &["-D", to, "-Z", "server-squish"],
        &["-D", to, "-Z", "server-gzip:level=99"],
        &["-D", to, "-t", "client", "-X", "none", "-Z", "server-zstd:hard"],
        &["-t", "nowhere", "-X", "none"],
        &["-t", "server:relative", "-X", "none"],
        &["-t", "blackhole", "-X", "none", "-R"],
    ];
    for arguments in lines {
        let old = room.server.major < 15 && arguments.iter().any(|word| word.contains("server") || *word == "-t");
        if old {
            run(&mut at(room, &pair.ours, &server, arguments)).expect(1);
            continue;
        }
        let ours = run(&mut at(room, &pair.ours, &server, arguments)).expect(1);
        if let Some(theirs) = &pair.theirs {
            let stock = run(&mut at(room, theirs, &server, arguments)).expect(1);
            // That has made its directory by then.
            let mut expected = words(&stock, theirs);
            expected.retain(|line| !line.starts_with("pg_basebackup: removing data directory"));
            assert_eq!(words(&ours, &pair.ours), expected, "\n{ours}\n{stock}");
        }
        assert!(!Path::new(to).exists(), "{arguments:?}");
    }
    assert_eq!(names(Path::new(full)), ["file"]);
    // These fail when there is something already, which is removed; the words about slots are a matter of order.
    for (slot, reason) in [(&["-S", "missing"][..], "does not exist"), (&["-C", "-S", "taken"], "already exists")] {
        for program in [Some(&pair.ours), pair.theirs.as_ref()].into_iter().flatten() {
            let said = run(at(room, program, &server, &["-D", to]).args(slot)).expect(1);
            assert!(said.err.contains(&format!("replication slot \"{}\" {reason}", slot[slot.len() - 1])), "{said}");
            assert!(!Path::new(to).exists());
        }
    }
    Ok(())
}

/// Better than the real one, which a signal kills where it stands.
pub(crate) fn stopped(room: &Room) -> Outcome {
    let pair = Pair::new(room, NAME, 18);
    let server = Cluster::new(room, "primary");
    let signals = [(Signal::INT, "int"), (Signal::TERM, "term"), (Signal::HUP, "hup")];
    // What is started under nohup goes on when the terminal goes, and so must these.
    for (signal, name) in signals.into_iter().filter(|(signal, _)| *signal != Signal::HUP || !hangups_are_ignored()) {
        let (to, wal) = (room.path(&format!("{name}/to")), room.path(&format!("{name}_wal")));
        room.make_dir(&wal);
        let waldir = format!("--waldir={}", wal.display());
        let slow = ["-v", "-r", "64", "-D", to.to_str().unwrap(), &waldir];
        let running = start(&mut at(room, &pair.ours, &server, &slow));
        running.wait_for("created temporary replication slot");
        wait_until("the first file", SOON, || to.join("backup_label").exists());
        let said = running.end_by(signal).expect(1);
        assert!(said.err.contains(&format!("removing data directory \"{}\"", to.display())), "{said}");
        assert!(said.err.contains(&format!("removing contents of WAL directory \"{}\"", wal.display())), "{said}");
        assert!(said.err.contains("error: stopped before the backup was complete"), "{said}");
        assert!(!to.exists() && names(&wal).is_empty());
        wait_until("the slot's end", SOON, || server.rows("select 1 from pg_replication_slots").is_empty());
    }
    // The connection that streams the WAL is lost.
    let to = room.path("cut");
    let running = start(&mut at(room, &pair.ours, &server, &["-v", "-r", "64", "-D", to.to_str().unwrap()]));
    wait_until("the first file", SOON, || to.join("backup_label").exists());
    server.rows("select pg_terminate_backend(pid) from pg_stat_replication where state = 'streaming'");
    let said = running.wait(SOON).expect(1);
    assert!(said.err.contains("error: background process terminated unexpectedly"), "{said}");
    assert!(said.err.contains("terminating connection due to administrator command") && !to.exists(), "{said}");
    // Unless it is to stay.
    let to = room.path("kept");
    let running = start(&mut at(room, &pair.ours, &server, &["-n", "-r", "64", "-D", to.to_str().unwrap()]));
    wait_until("the first file", SOON, || to.join("backup_label").exists());
    let said = running.end_by(Signal::TERM).expect(1);
    assert!(said.err.contains(&format!("data directory \"{}\" not removed at user's request", to.display())), "{said}");
    assert!(to.join("backup_label").exists() && !to.join("backup_manifest").exists());
    fs::remove_dir_all(&to).unwrap();
    Ok(())
}

/// Whether what is started here is not told that the terminal has gone.
fn hangups_are_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    u64::from_str_radix(ignored, 16).unwrap() & 1 != 0
}
