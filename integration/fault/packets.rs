//! Links that lose packets, are narrow, or are cut: two network namespaces, joined by a link.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::matrix::{Row, told};
use super::network::{IMPATIENT, WRITERS, goes_on, judge};
use crate::cluster::{Cluster, Setup, Stop};
use crate::crash::{Moments, a_tenth};
use crate::load::Load;
use crate::program::{Running, run, start};
use crate::room::{Outcome, Room, SOON, Skip, skip, wait_until};

const SERVER: &str = "10.77.0.1";
const RECEIVER: &str = "10.77.0.2";
/// Its name at both ends.
const LINK: &str = "veth0";

/// Two namespaces, and the link between them. Dropped, they are gone.
struct Pair {
    server: String,
    receiver: String,
}

impl Pair {
    fn new(room: &Room) -> Result<Self, Skip> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if room.user().is_none() {
            skip!("network namespaces are made by root");
        }
        let name = format!("wh{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let pair = Self { server: format!("{name}s"), receiver: format!("{name}r") };
        let (server, receiver) = (&pair.server, &pair.receiver);
        for line in [
            format!("netns add {server}"),
            format!("netns add {receiver}"),
            format!("-n {server} link add {LINK} type veth peer name {LINK} netns {receiver}"),
            format!("-n {server} addr add {SERVER}/24 dev {LINK}"),
            format!("-n {receiver} addr add {RECEIVER}/24 dev {LINK}"),
            format!("-n {server} link set {LINK} up"),
            format!("-n {receiver} link set {LINK} up"),
        ] {
            said(Command::new("ip").args(line.split(' ')))?;
        }
        Ok(pair)
    }

    /// Lets so many of a hundred packets get lost, in both directions.
    fn lose(&self, percent: u32) -> Outcome {
        for name in [&self.server, &self.receiver] {
            let rules = format!(
                "table inet faults; flush table inet faults; table inet faults {{ chain arriving {{ \
                 type filter hook input priority 0; numgen random mod 100 < {percent} drop; }}; }}"
            );
            said(inside(name, "nft").arg(rules))?;
        }
        Ok(())
    }

    /// Lets so many Mbit/s pass, from the server; `None` as many as can.
    fn narrow(&self, mbit: Option<u32>) -> Outcome {
        let name = &self.server;
        let line = match mbit {
            Some(mbit) => format!("-n {name} qdisc add dev {LINK} root tbf rate {mbit}mbit burst 32kbit latency 400ms"),
            None => format!("-n {name} qdisc del dev {LINK} root"),
        };
        said(Command::new("tc").args(line.split(' ')))
    }

    /// Takes the server's end of the link down, or up.
    fn set(&self, state: &str) {
        let line = format!("-n {} link set {LINK} {state}", self.server);
        said(Command::new("ip").args(line.split(' '))).unwrap_or_else(|skip| panic!("{}", skip.0));
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for name in [&self.server, &self.receiver] {
            let _ = said(Command::new("ip").args(["netns", "del", name]));
        }
    }
}

/// A command of root's in a namespace.
fn inside(name: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{name}")).arg(program);
    command
}

/// Runs a tool; what it said when it failed.
fn said(command: &mut Command) -> Outcome {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|e| Skip(format!("no {}: {e}", command.get_program().display())))?;
    if !output.status.success() {
        skip!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// `walhold COMMAND --repo REPO -d CONNINFO`, at the other end of the link.
fn walhold(room: &Room, pair: &Pair, command: &str) -> Command {
    let conninfo = format!("host={SERVER} port=5432 user=postgres sslmode=disable connect_timeout=10");
    let mut whole = room.command_in(&pair.receiver, room.program());
    whole.arg(command).arg("--repo").arg(room.path("repo")).args(["-d", &conninfo]);
    whole
}

/// A server in one namespace, and a receiver in the other that commits wait for.
struct Scene<'a> {
    room: &'a Room,
    primary: Cluster<'a>,
    repo: PathBuf,
    receiver: Running,
    load: Load,
}

impl<'a> Scene<'a> {
    fn new(room: &'a Room, pair: &Pair, settings: &[&str]) -> Self {
        let hba = [&*format!("host all,replication all {RECEIVER}/32 trust")];
        let mut primary = Cluster::with(room, "primary", &Setup { settings, hba: &hba, ..Setup::default() });
        Load::prepare(&primary);
        primary.stop(Stop::Fast);
        primary.listen_in(&pair.server, SERVER);
        primary.start();
        let repo = room.path("repo");
        run(&mut walhold(room, pair, "backup")).expect(0);
        let receiver = start(walhold(room, pair, "receive").arg("--synchronous"));
        receiver.wait_until_it_streams(&primary);
        primary.require_standby("walhold");
        let load = Load::start(&primary, WRITERS);
        Self { room, primary, repo, receiver, load }
    }
}

/// Packets get lost, or the link is narrow, or both: TCP sends them again, and no time limit strikes.
pub(crate) fn lost(room: &Room) -> Outcome {
    let pair = Pair::new(room)?;
    pair.lose(0)?;
    pair.narrow(Some(8))?;
    pair.narrow(None)?;
    let scene = Scene::new(room, &pair, &[]);
    let Scene { receiver, load, .. } = &scene;
    let rounds = a_tenth(3);
    let mut resumed = Duration::ZERO;
    for round in 0..rounds {
        let (percent, mbit) = [(30, None), (0, Some(8)), (5, Some(8))][round % 3];
        pair.lose(percent)?;
        if mbit.is_some() {
            pair.narrow(mbit)?;
        }
        load.wait_for_more(10);
        pair.lose(0)?;
        if mbit.is_some() {
            pair.narrow(None)?;
        }
        resumed = resumed.max(goes_on(load, receiver));
    }
    pair.lose(2)?;
    run(&mut walhold(room, &pair, "backup")).expect(0);
    pair.lose(0)?;
    let said = receiver.err();
    let told = match said.contains("disconnected: ") {
        true => told(room, &said, "disconnected: "),
        false => "nothing: TCP sends them again".to_owned(),
    };
    let Scene { room, primary, repo, receiver, load } = scene;
    let (acknowledged, lost) = judge(room, &repo, primary, load, receiver);
    room.record(Row {
        fault: "packets are lost",
        how: "30 % of all packets both ways; or 8 Mbit/s; or both, with 5 %; a backup with 2 % (network namespaces, nft, \
              tc tbf)"
            .to_owned(),
        rounds: rounds + 1,
        acknowledged,
        lost,
        resumed: Some(resumed),
        told,
    });
    Ok(())
}

/// The link is taken down: for a moment, which nobody notices, or until both ends have given up.
pub(crate) fn cut(room: &Room) -> Outcome {
    let pair = Pair::new(room)?;
    let scene = Scene::new(room, &pair, &[IMPATIENT]);
    let Scene { receiver, load, .. } = &scene;
    let (mut moments, rounds) = (Moments::new(), a_tenth(3));
    let mut resumed = Duration::ZERO;
    for round in 0..rounds {
        load.wait_for_more(20);
        moments.sleep(Duration::from_millis(400));
        let before = disconnections(receiver);
        pair.set("down");
        if round % 3 == 0 {
            moments.sleep(Duration::from_millis(1500));
        } else {
            wait_until("the receiver to notice", SOON, || disconnections(receiver) > before);
            moments.sleep(Duration::from_millis(3000));
        }
        pair.set("up");
        resumed = resumed.max(goes_on(load, receiver));
    }
    let told = told(room, &receiver.err(), "disconnected: ");
    let Scene { room, primary, repo, receiver, load } = scene;
    let (acknowledged, lost) = judge(room, &repo, primary, load, receiver);
    room.record(Row {
        fault: "the link is cut",
        how: "the server's end of it is taken down, for a moment or for longer than wal_sender_timeout (here 3 s), and up \
              again (network namespaces)"
            .to_owned(),
        rounds,
        acknowledged,
        lost,
        resumed: Some(resumed),
        told,
    });
    Ok(())
}

fn disconnections(receiver: &Running) -> usize {
    receiver.err().matches("disconnected: ").count()
}
