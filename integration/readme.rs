//! The README's commands, run as they are written, in their order.

use std::path::Path;
use std::process::Command;

use crate::backup::backup;
use crate::cluster::Cluster;
use crate::load::{Load, compare};
use crate::program::{Running, receive, run, start};
use crate::room::{Outcome, Room, skip};
use crate::seeding::with_tablespaces;
use crate::stock::names;

const README: &str = include_str!("../README.md");

/// Every line after `$ ` in a `console` block.
fn commands() -> Vec<&'static str> {
    let blocks = README.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.flat_map(str::lines).filter_map(|line| line.strip_prefix("$ ")).collect()
}

/// The stock tools alone restore a backup with its tablespaces by the README's steps, up to the last commit.
pub(crate) fn by_hand(room: &Room) -> Outcome {
    let zstd = Command::new("zstd").arg("--version").output();
    if zstd.is_err() {
        skip!("there is no zstd");
    }
    room.tool("pg_verifybackup")?;
    let steps = README.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let steps = steps.filter(|block| block.contains("backup_manifest")).collect::<String>();
    let primary = with_tablespaces(room, "primary");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    let load = Load::start(&primary, 1);
    load.wait_for_more(50);
    primary.switch_segment();
    load.wait_for_more(50);
    let acknowledged = load.finish();
    primary.wait_for_slot("walhold", primary.flushed());
    receiver.terminate().expect(0);
    drop(primary);
    let id = names(&repo.join("backups")).remove(0);
    let steps = steps
        .replace("20261122T130258Z", &id)
        .replace("/srv/tablespaces", &room.path("spaces").display().to_string())
        .replace("pg_ctl -D /srv/restored start", "");
    let mut shell = shell(room);
    run(shell.args(["-eu", "-c", &placed(room, &steps)])).expect(0).says("backup successfully verified");
    let mut server = Cluster::restored(room, "by-hand", room.path("restored"));
    server.start();
    server.wait_for_promotion();
    compare(&acknowledged, &server);
    let place = server.sql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'far'");
    assert!(place.starts_with(room.path("spaces").to_str().unwrap()), "{place}");
    Ok(())
}

/// A shell in which the README's host and paths are those of this room.
fn command(room: &Room, server: &Cluster<'_>, line: &str) -> Command {
    let line = placed(room, line).replace("host=db.example.com user=walhold sslmode=verify-full", &server.conninfo());
    let pg_ctl =
        format!("-o \"-k {} -p 1 -c listen_addresses=''\" -l {}", room.path("").display(), room.path("log").display());
    let line = if line.starts_with("pg_ctl") { format!("{line} -w {pg_ctl}") } else { line };
    let mut shell = shell(room);
    shell.args(["-c", &format!("exec {line}")]);
    shell
}

fn placed(room: &Room, text: &str) -> String {
    text.replace("/srv/walhold/main", &room.path("repo").display().to_string())
        .replace("/srv/restored", &room.path("restored").display().to_string())
}

/// One that finds walhold and the server's programs.
fn shell(room: &Room) -> Command {
    let mut shell = room.command(Path::new("/bin/sh"));
    let path = format!("{}:{}", room.program().parent().unwrap().display(), room.server.bin.display());
    shell.env("PATH", format!("{path}:{}", std::env::var("PATH").unwrap_or_default()));
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
        let mut command = command(room, &primary, line);
        if line.starts_with("walhold receive") {
            receiver = Some(start(&mut command));
            receiver.as_ref().unwrap().wait_until_it_streams(&primary);
        } else {
            run(&mut command).expect(0);
        }
    }
    receiver.expect("the README streams").terminate().expect(0);
    let mut stop = command(room, &primary, "pg_ctl -D /srv/restored stop -m fast");
    run(&mut stop).expect(0);
    Ok(())
}
