//! P1 and P2 when the server crashes, or another takes its place.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use crate::backup::{backup, restored, verify};
use crate::cluster::{Cluster, Setup, Stop};
use crate::crash::{Moments, rounds};
use crate::load::{Load, compare};
use crate::program::{Running, receive, start, walhold};
use crate::room::{Outcome, Room, SOON, wait_until};
use crate::stock::{amcheck, assert_contiguous, names};

/// A name for whichever server is the primary, as a virtual address would be.
pub(crate) struct Address<'a> {
    room: &'a Room,
    path: PathBuf,
}

impl<'a> Address<'a> {
    /// It leads to this one for now.
    pub(crate) fn of(room: &'a Room, server: &Cluster<'_>) -> Self {
        let address = Self { room, path: room.path("now") };
        address.goes_to(server);
        address
    }

    /// Whoever connects from now on gets to this one.
    pub(crate) fn goes_to(&self, server: &Cluster<'_>) {
        let new = self.room.path("next");
        symlink(server.sockets(), &new).unwrap();
        std::fs::rename(&new, &self.path).unwrap();
    }

    /// How the superuser reaches the server that it leads to.
    pub(crate) fn conninfo(&self) -> String {
        format!("host={} port=5432 user=postgres", self.path.display())
    }
}

/// A standby that keeps WAL for the receiver, too, and that commits wait for besides it.
#[track_caller]
fn synchronous_standby<'a>(primary: &mut Cluster<'a>, receiver: &Running, name: &str) -> Cluster<'a> {
    primary.rows("select pg_create_physical_replication_slot('standby', true)");
    let standby = primary.standby_with(name, &["primary_slot_name = 'standby'"]);
    standby.rows("select pg_create_physical_replication_slot('walhold', true)");
    receiver.wait_until_it_streams(primary);
    wait_until("the standby to stream", SOON, || {
        primary.sql("select count(*) from pg_stat_replication where state = 'streaming'") == "2"
    });
    primary.require_standby(&format!("FIRST 2 (walhold, {name})"));
    standby
}

/// Again and again the primary is lost under load, and a standby takes its place, while the receiver is
/// killed at any moment. Whichever server acknowledged a commit, a restore has it.
pub(crate) fn promotions_under_load(room: &Room) -> Outcome {
    let mut primary = Cluster::new(room, "primary");
    Load::prepare(&primary);
    let repo = room.path("repo");
    let address = Address::of(room, &primary);
    let stream = || receive(room, &repo, &address.conninfo(), &["--synchronous"]);
    let mut receiver = stream();
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    let mut moments = Moments::new();
    let mut acknowledged = Vec::new();
    for round in 0..rounds(2) {
        let name = format!("standby{round}");
        let standby = synchronous_standby(&mut primary, &receiver, &name);
        let load = Load::start_at(&primary, 3, 10 * round);
        for _ in 0..2 {
            load.wait_for_more(20);
            moments.sleep(Duration::from_millis(300));
            assert!(receiver.kill().killed(), "it ended by itself");
            receiver = stream();
        }
        load.wait_for_more(20);
        moments.sleep(Duration::from_millis(200));
        let killed = moments.coin();
        let running = if killed {
            assert!(receiver.kill().killed(), "it ended by itself");
            None
        } else {
            Some(receiver)
        };
        primary.destroy();
        acknowledged.extend(load.finish());
        compare(&acknowledged, &restored(room, &repo, &format!("restored{round}")));

        // The receiver may meet the standby before it is the primary.
        let early = moments.coin();
        if early {
            address.goes_to(&standby);
            moments.sleep(Duration::from_millis(200));
        }
        standby.promote();
        standby.require_standby("walhold");
        address.goes_to(&standby);
        receiver = running.unwrap_or_else(stream);
        primary = standby;
        let load = Load::start_at(&primary, 3, 10 * round + 5);
        moments.sleep(Duration::from_millis(500));
        assert!(receiver.kill().killed(), "it ended by itself");
        receiver = stream();
        load.wait_for_more(50);
        acknowledged.extend(load.finish());
    }
    assert!(receiver.kill().killed(), "it ended by itself");
    primary.destroy();
    assert_contiguous(&repo.join("wal"));
    verify(room, &repo).expect(0);
    let server = restored(room, &repo, "restored");
    compare(&acknowledged, &server);
    amcheck(room, &server);
    Ok(())
}

/// How often a line of the receiver's log has these words.
fn lines(receiver: &Running, words: &str) -> usize {
    receiver.err().lines().filter(|line| line.contains(words)).count()
}

/// The server crashes and recovers: one line when it goes, and one when WAL streams again.
pub(crate) fn crash_restart(room: &Room) -> Outcome {
    let mut primary = Cluster::new(room, "primary");
    Load::prepare(&primary);
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &["--synchronous"]);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    primary.require_standby("walhold");
    let load = Load::start(&primary, 3);
    for round in 1..=2 {
        load.wait_for_more(50);
        primary.stop(Stop::Immediate);
        std::thread::sleep(Duration::from_millis(400));
        primary.start();
        load.wait_for_more(50);
        assert_eq!((lines(&receiver, "disconnected: "), lines(&receiver, "connected again after")), (round, round));
        assert_eq!(lines(&receiver, "not connected"), 0, "{}", receiver.err());
    }
    primary.destroy();
    let acknowledged = load.finish();
    receiver.terminate().expect(0);
    assert_contiguous(&repo.join("wal"));
    verify(room, &repo).expect(0);
    compare(&acknowledged, &restored(room, &repo, "restored"));
    Ok(())
}

/// A primary and its standby, and a receiver of the primary that has received something.
#[track_caller]
fn pair<'a>(room: &'a Room, address: &mut Option<Address<'a>>, more: &[&str]) -> (Cluster<'a>, Cluster<'a>, Running) {
    let mut primary = Cluster::new(room, "primary");
    let standby = primary.standby("standby");
    primary.rows("select pg_create_physical_replication_slot('walhold', true)");
    let address = address.insert(Address::of(room, &primary));
    let receiver = receive(room, &room.path("repo"), &address.conninfo(), more);
    receiver.wait_until_it_streams(&primary);
    primary.switch_segment();
    primary.switch_segment();
    primary.rows("create table before as select i from generate_series(1, 1000) i");
    let sent = primary.flushed();
    primary.wait_for_slot("walhold", sent);
    wait_until("the standby to have it", SOON, || {
        crate::cluster::lsn(&standby.sql("select pg_last_wal_replay_lsn()")) >= sent
    });
    (primary, standby, receiver)
}

/// No slot was prepared on the standby, and none is kept from being made.
pub(crate) fn slot_made(room: &Room) -> Outcome {
    let mut address = None;
    let (mut primary, standby, receiver) = pair(room, &mut address, &[]);
    primary.destroy();
    standby.promote();
    address.unwrap().goes_to(&standby);
    standby.rows("create table after as select i from generate_series(1, 1000) i");
    wait_until("the slot to be made", SOON, || standby.slot_position("walhold").is_some());
    standby.wait_for_slot("walhold", standby.flushed());
    receiver.terminate().expect(0).says("made replication slot \"walhold\"").says("goes on with timeline 2");
    assert_contiguous(&room.path("repo").join("wal"));
    Ok(())
}

/// A slot that was named is the operator's: he is told that it is missing, and what is received when it
/// is there is without a gap.
pub(crate) fn slot_missing(room: &Room) -> Outcome {
    let mut address = None;
    let (mut primary, standby, receiver) = pair(room, &mut address, &["--slot", "walhold"]);
    primary.destroy();
    standby.promote();
    address.unwrap().goes_to(&standby);
    receiver.wait_for("replication slot \"walhold\" does not exist; trying again");
    receiver.wait_for("hint: make it");
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(lines(&receiver, "does not exist"), 1, "{}", receiver.err());
    standby.rows("select pg_create_physical_replication_slot('walhold', true)");
    standby.rows("create table after as select i from generate_series(1, 1000) i");
    standby.wait_for_slot("walhold", standby.flushed());
    receiver.terminate().expect(0).says("connected again after");
    assert_contiguous(&room.path("repo").join("wal"));
    Ok(())
}

/// The server was allowed to remove the slot's WAL, and has: the receiver says what is missing. The slot
/// that is its own it makes anew, so that it goes on after the next backup; one that was named it leaves.
pub(crate) fn slot_lost(room: &Room) -> Outcome {
    let settings = ["max_slot_wal_keep_size = 1MB", "min_wal_size = 2MB", "max_wal_size = 2MB"];
    let primary = Cluster::with(room, "primary", &Setup { settings: &settings, ..Setup::default() });
    let (repo, folder, conninfo) = (room.path("repo"), room.path("folder"), primary.conninfo());
    room.make_dir(&folder);
    let own = || start(walhold(room, "receive").arg("--repo").arg(&repo).args(["-d", &conninfo]));
    let named = || start(walhold(room, "receive").arg("-D").arg(&folder).args(["-d", &conninfo, "--slot", "named"]));
    primary.rows("select pg_create_physical_replication_slot('named', true)");
    let receivers = [own(), named()];
    // A slot that is only made now stands behind what comes next on some versions, received or not.
    receivers.iter().for_each(|receiver| receiver.wait_for("streaming from"));
    primary.rows("create table before as select i from generate_series(1, 1000) i");
    let end = primary.flushed();
    for (receiver, slot) in receivers.into_iter().zip(["walhold", "named"]) {
        primary.wait_for_slot(slot, end);
        receiver.terminate().expect(0);
    }
    primary.wait_for_no_receiver();
    // The archives may have got further than their slots were told, and the one that comes next counts.
    let number = |name: &String| u32::from_str_radix(name.get(16..24)?, 16).ok();
    let newest = |folder: &PathBuf| names(folder).iter().filter_map(number).max();
    let held = newest(&repo.join("wal")).max(newest(&folder)).expect("some WAL");
    let wal = primary.data().join("pg_wal");
    wait_until("the slots to lose their WAL", SOON, || {
        primary.switch_segment();
        primary.rows("checkpoint");
        let lost = primary.sql("select count(*) from pg_replication_slots where wal_status = 'lost'");
        lost == "2" && names(&wal).iter().filter_map(number).min() > Some(held + 1)
    });
    own().wait(SOON).refused(3, &["no longer has the WAL"]);
    let cause = if room.server.major >= 16 { "slot \"named\" has lost its WAL" } else { "no longer has the WAL" };
    named().wait(SOON).refused(3, &[cause]);
    // Or it would take the backup's own slot, too.
    primary.rows("alter system set max_slot_wal_keep_size = -1");
    primary.rows("select pg_reload_conf()");
    backup(room, &repo, &primary).expect(0);
    let receiver = own();
    receiver.wait_until_it_streams(&primary);
    primary.wait_for_slot("walhold", primary.flushed());
    receiver.terminate().expect(0);
    let states =
        "select slot_name, wal_status from pg_replication_slots where wal_status <> 'lost' and restart_lsn is not null";
    assert_eq!(primary.sql(states), "walhold");
    Ok(())
}
