//! Networks that cut connections, are slow, fall silent, and change what they carry.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::matrix::{Row, told};
use super::proxy::{BOTH, Cut, Harm, Proxy, Spot, Trap, Way, Weather};
use crate::backup::{restore, verify};
use crate::cluster::{Cluster, Setup, Stop};
use crate::crash::{Moments, a_tenth, only_sealed_are_offered};
use crate::load::{Load, lost};
use crate::program::{Ended, Running, receive, run, walhold};
use crate::room::{Outcome, Room, SOON, wait_until};
use crate::stock::{amcheck, assert_contiguous};

pub(super) const WRITERS: usize = 3;
/// For a server whose silence is to be noticed soon, on a machine that may be busy.
pub(super) const IMPATIENT: &str = "wal_sender_timeout = '3s'";

/// A server behind a proxy, and a repository that has a first backup of it.
pub(super) struct Scene<'a> {
    pub(super) room: &'a Room,
    pub(super) primary: Cluster<'a>,
    pub(super) proxy: Proxy,
    pub(super) repo: PathBuf,
    /// The way through the proxy.
    pub(super) conninfo: String,
}

impl<'a> Scene<'a> {
    pub(super) fn new(room: &'a Room, settings: &[&str]) -> Self {
        let mut primary = Cluster::with(room, "primary", &Setup { settings, ..Setup::default() });
        Load::prepare(&primary);
        primary.stop(Stop::Fast);
        let proxy = Proxy::new(primary.listen());
        primary.start();
        let conninfo = format!("host=127.0.0.1 port={} user=postgres sslmode=disable connect_timeout=2", proxy.port());
        let scene = Self { room, primary, proxy, repo: room.path("repo"), conninfo };
        scene.backup().expect(0);
        scene
    }

    /// Commits wait for a receiver behind the proxy.
    pub(super) fn begin(&self) -> (Running, Load) {
        let receiver = self.receive();
        self.begin_with(receiver)
    }

    /// Commits wait for a receiver that comes in beside the proxy, where only backups are.
    pub(super) fn begin_beside(&self) -> (Running, Load) {
        let receiver = receive(self.room, &self.repo, &self.primary.conninfo(), &["--synchronous"]);
        self.begin_with(receiver)
    }

    pub(super) fn receive(&self) -> Running {
        receive(self.room, &self.repo, &self.conninfo, &["--synchronous"])
    }

    fn begin_with(&self, receiver: Running) -> (Running, Load) {
        receiver.wait_until_it_streams(&self.primary);
        self.primary.require_standby("walhold");
        (receiver, Load::start(&self.primary, WRITERS))
    }

    pub(super) fn backup(&self) -> Ended {
        run(walhold(self.room, "backup").arg("--repo").arg(&self.repo).args(["-d", &self.conninfo]))
    }

    /// As [`judge`].
    pub(super) fn judge(self, load: Load, receiver: Running) -> (usize, usize) {
        judge(self.room, &self.repo, self.primary, load, receiver)
    }
}

/// The server is lost. How many commits it had acknowledged, and how many of them are.
#[track_caller]
pub(super) fn judge(
    room: &Room,
    repo: &Path,
    mut primary: Cluster<'_>,
    load: Load,
    receiver: Running,
) -> (usize, usize) {
    primary.destroy();
    let acknowledged = load.finish();
    receiver.kill();
    assert_contiguous(&repo.join("wal"));
    verify(room, repo).expect(0);
    let lost = restores(room, repo, &[], &acknowledged);
    (acknowledged.len(), lost)
}

/// How many of these commits a restored server does not have.
#[track_caller]
pub(super) fn restores(room: &Room, repo: &Path, which: &[&str], acknowledged: &[i64]) -> usize {
    let data = room.path("restored-data");
    restore(room, repo, &data, which).expect(0);
    let mut server = Cluster::restored(room, "restored", data);
    server.start();
    server.wait_for_promotion();
    let lost = lost(acknowledged, &server);
    amcheck(room, &server);
    server.discard();
    lost
}

/// Waits until commits are acknowledged that were begun after this; how long that took.
#[track_caller]
pub(super) fn goes_on(load: &Load, receiver: &Running) -> Duration {
    let begun = Instant::now();
    let target = load.count() + WRITERS + 1;
    wait_until("commits to go on", SOON, || {
        assert!(receiver.runs(), "the receiver has ended\n{}", receiver.err());
        load.count() >= target
    });
    begun.elapsed()
}

fn cut_or_reset(moments: &mut Moments) -> Cut {
    if moments.coin() { Cut::Close } else { Cut::Reset }
}

/// The connection of a receiver is closed or reset, at any moment and within a message of either side.
pub(crate) fn cut(room: &Room) -> Outcome {
    let scene = Scene::new(room, &[]);
    let (receiver, load) = scene.begin();
    let (mut moments, rounds) = (Moments::new(), a_tenth(6));
    let mut resumed = Duration::ZERO;
    for round in 0..rounds {
        load.wait_for_more(20);
        let how = cut_or_reset(&mut moments);
        let (way, most) = [(Way::ToServer, 400), (Way::ToClient, 20_000)][round / 2 % 2];
        if round % 2 == 0 {
            moments.sleep(Duration::from_millis(400));
            assert_eq!(scene.proxy.cut(how), 1, "one connection");
        } else {
            spring(&scene.proxy, way, moments.below(most), Spot::Any, Harm::Cut(how));
        }
        resumed = resumed.max(goes_on(&load, &receiver));
    }
    assert!(receiver.runs(), "{}", receiver.err());
    let told = told(room, &receiver.err(), "disconnected: the connection to the server is lost");
    let (acknowledged, lost) = scene.judge(load, receiver);
    room.record(Row {
        fault: "the connection of a receiver is cut",
        how: "a proxy closes or resets it, at a random moment or within a message".to_owned(),
        rounds,
        acknowledged,
        lost,
        resumed: Some(resumed),
        told,
    });
    Ok(())
}

/// Some number below this, which may be large.
pub(super) fn anywhere(moments: &mut Moments, end: usize) -> usize {
    moments.below(1000) * (end / 1000) + moments.below(end / 1000)
}

/// Sets a trap and waits until it has struck.
pub(super) fn spring(proxy: &Proxy, way: Way, skip: usize, spot: Spot, harm: Harm) {
    let before = proxy.struck(way);
    proxy.set(way, Trap { skip, spot, harm, lasting: false });
    wait_until("something to pass", SOON, || proxy.struck(way) > before);
}

/// A connection of a backup is cut anywhere: it is whole, or never offered, and the next one is whole.
pub(crate) fn backup_cut(room: &Room) -> Outcome {
    let scene = Scene::new(room, &[]);
    let (receiver, load) = scene.begin_beside();
    let before = scene.proxy.passed(Way::ToClient);
    scene.backup().expect(0);
    let whole = usize::try_from(scene.proxy.passed(Way::ToClient) - before).unwrap();
    let (mut moments, rounds) = (Moments::new(), a_tenth(4));
    let mut said = String::new();
    for _ in 0..rounds {
        let harm = Harm::Cut(cut_or_reset(&mut moments));
        let skip = anywhere(&mut moments, whole);
        scene.proxy.set(Way::ToClient, Trap { skip, spot: Spot::Any, harm, lasting: false });
        let ended = scene.backup();
        if ended.status.code() != Some(0) {
            said = ended.expect(1).err;
        }
        only_sealed_are_offered(room, &scene.repo);
    }
    scene.proxy.unset(Way::ToClient);
    scene.backup().expect(0);
    let told = told(room, &said, "the connection to the server is lost");
    let (acknowledged, lost) = scene.judge(load, receiver);
    room.record(Row {
        fault: "the connection of a backup is cut",
        how: "a proxy closes or resets it at a random byte; nothing is offered, and the next backup is whole"
            .to_owned(),
        rounds,
        acknowledged,
        lost,
        resumed: None,
        told,
    });
    Ok(())
}

/// Long ways and narrow ones make everything slow, and break nothing.
pub(crate) fn slow(room: &Room) -> Outcome {
    let scene = Scene::new(room, &[IMPATIENT]);
    let (receiver, load) = scene.begin();
    scene.proxy.weather(BOTH, Weather { delay: Duration::from_millis(200), ..Weather::default() });
    load.wait_for_more(20);
    scene.proxy.weather(BOTH, Weather { rate: Some(1 << 20), ..Weather::default() });
    // Longer than the server waits for an answer.
    scene.primary.rows("create table bulk as select i, repeat(md5(i::text), 30) as x from generate_series(1, 4000) i");
    load.wait_for_more(20);
    scene.proxy.weather(BOTH, Weather { delay: Duration::from_millis(50), rate: Some(8 << 20), ..Weather::default() });
    scene.backup().expect(0);
    let said = receiver.err();
    assert!(!said.contains("disconnected"), "{said}");
    let log = scene.primary.whole_log();
    assert!(!log.contains("terminating walsender"), "{log}");
    let (acknowledged, lost) = scene.judge(load, receiver);
    room.record(Row {
        fault: "the network is slow",
        how: "a proxy delays by 200 ms each way, then lets 1 MB/s pass; a backup at 8 MB/s with 50 ms".to_owned(),
        rounds: 3,
        acknowledged,
        lost,
        resumed: None,
        told: "nothing: it is only slow".to_owned(),
    });
    Ok(())
}

/// Nothing passes any more, in both directions or one, and nobody says so.
pub(crate) fn silent(room: &Room) -> Outcome {
    let scene = Scene::new(room, &[IMPATIENT]);
    let (receiver, load) = scene.begin();
    let rounds = a_tenth(3);
    let mut resumed = Duration::ZERO;
    let (mut silences, mut timeouts) = (0, 0);
    for round in 0..rounds {
        load.wait_for_more(20);
        let ways = [BOTH, &[Way::ToClient], &[Way::ToServer]][round % 3];
        scene.proxy.weather(ways, Weather { silent: true, ..Weather::default() });
        let disconnections = receiver.err().matches("disconnected: ").count();
        wait_until("the receiver to notice", SOON, || {
            receiver.err().matches("disconnected: ").count() > disconnections
        });
        let silence = receiver.err().matches("has been silent for 3 s").count();
        let timeout = scene.primary.whole_log().matches("due to replication timeout").count();
        match ways {
            [Way::ToServer] => wait_until("the server to notice", SOON, || {
                scene.primary.whole_log().matches("due to replication timeout").count() > timeouts
            }),
            _ => assert!(silence > silences, "{}", receiver.err()),
        }
        (silences, timeouts) = (silence, timeout);
        scene.proxy.weather(BOTH, Weather::default());
        resumed = resumed.max(goes_on(&load, &receiver));
        assert!(receiver.runs(), "{}", receiver.err());
    }
    let told = told(room, &receiver.err(), "has been silent for 3 s");
    let (acknowledged, lost) = scene.judge(load, receiver);
    room.record(Row {
        fault: "the network goes silent",
        how: "a proxy keeps the connections and passes nothing, both ways or one, for longer than wal_sender_timeout \
              (here 3 s)"
            .to_owned(),
        rounds,
        acknowledged,
        lost,
        resumed: Some(resumed),
        told,
    });
    Ok(())
}
