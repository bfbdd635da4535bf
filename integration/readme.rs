//! The README's commands, run as they are written, in their order.

use std::path::Path;
use std::process::Command;

use crate::cluster::Cluster;
use crate::program::{Running, run, start};
use crate::room::{Outcome, Room};

const README: &str = include_str!("../README.md");

/// Every line after `$ ` in a `console` block.
fn commands() -> Vec<&'static str> {
    let blocks = README.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.flat_map(str::lines).filter_map(|line| line.strip_prefix("$ ")).collect()
}

/// A shell in which the README's host and paths are those of this room.
fn shell(room: &Room, server: &Cluster<'_>, line: &str) -> Command {
    let conninfo = server.conninfo();
    let line = line
        .replace("host=db.example.com user=walhold sslmode=verify-full", &conninfo)
        .replace("/srv/walhold/main", &room.path("repo").display().to_string())
        .replace("/srv/restored", &room.path("restored").display().to_string());
    let pg_ctl =
        format!("-o \"-k {} -p 1 -c listen_addresses=''\" -l {}", room.path("").display(), room.path("log").display());
    let line = if line.starts_with("pg_ctl") { format!("{line} -w {pg_ctl}") } else { line };
    let mut shell = room.command(Path::new("/bin/sh"));
    let path = format!("{}:{}", room.program().parent().unwrap().display(), room.server.bin.display());
    shell.env("PATH", format!("{path}:{}", std::env::var("PATH").unwrap_or_default()));
    shell.args(["-c", &format!("exec {line}")]);
    shell
}

pub(crate) fn commands_work(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    primary.sql("create table t as select generate_series(1, 1000) n");
    let commands = commands();
    for word in ["receive", "backup", "list", "verify", "restore", "pg_ctl", "status", "expire"] {
        assert!(commands.iter().any(|line| line.contains(word)), "the README has no {word}");
    }
    let mut receiver: Option<Running> = None;
    for line in commands {
        let mut command = shell(room, &primary, line);
        if line.starts_with("walhold receive") {
            receiver = Some(start(&mut command));
            receiver.as_ref().unwrap().wait_until_it_streams(&primary);
        } else {
            run(&mut command).expect(0);
        }
    }
    receiver.expect("the README streams").terminate().expect(0);
    let mut stop = shell(room, &primary, "pg_ctl -D /srv/restored stop -m fast");
    run(&mut stop).expect(0);
    Ok(())
}
