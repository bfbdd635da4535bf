//! Disks that stall, fill up, and go away.

use std::time::{Duration, Instant};

use super::matrix::{Row, told};
use super::power::ended_by_the_disk;
use super::volume::{Filler, Format, Volume};
use crate::backup::{backup, restore, restored, verify};
use crate::cluster::{Cluster, Setup};
use crate::crash::{Moments, a_tenth, only_sealed_are_offered};
use crate::load::{Load, compare};
use crate::program::{receive, run, walhold};
use crate::room::{Outcome, Room, SOON, wait_until};
use crate::stock::assert_contiguous;

const SYNCHRONOUS: &[&str] = &["--synchronous"];

/// A disk that answers nobody for longer than the server waits for a standby. The connection stays, commits wait, the
/// operator is told, and then all goes on.
pub(crate) fn stalls(room: &Room) -> Outcome {
    // The short form is for every run; the long one has the server's own default.
    let (patience, stall) = if a_tenth(1) > 5 { ("60s", 90) } else { ("15s", 20) };
    let stall = Duration::from_secs(stall);
    let volume = Volume::new(room, "disk", Format::Ext4, 400)?;
    let timeout = format!("wal_sender_timeout = '{patience}'");
    let mut primary = Cluster::with(room, "primary", &Setup { settings: &[&timeout], ..Setup::default() });
    Load::prepare(&primary);
    let repo = volume.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), SYNCHRONOUS);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    primary.require_standby("walhold");
    let load = Load::start(&primary, 3);
    load.wait_for_more(50);
    let sender = primary.sql(SENDER);

    let frozen = volume.freeze()?;
    std::thread::sleep(Duration::from_secs(1)); // what was durable is still acknowledged
    let look = || (load.count(), primary.sql(FLUSHED), primary.sql(SENDER));
    let before = look();
    std::thread::sleep(stall);
    assert_eq!(
        look(),
        before,
        "acknowledged, reported or connected anew while the disk did nothing\n{}",
        receiver.err()
    );
    drop(frozen);
    let back = Instant::now();
    load.wait_for_more(1);
    let resumed = back.elapsed();
    receiver.wait_for("the storage answers again");
    load.wait_for_more(50);
    assert_eq!(primary.sql(SENDER), sender, "the connection was lost\n{}", receiver.err());

    primary.destroy();
    let acknowledged = load.finish();
    let ended = receiver.terminate().expect(0);
    verify(room, &repo).expect(0);
    compare(&acknowledged, &restored(room, &repo, "restored"));
    room.record(Row {
        fault: "the disk stalls",
        how: format!("fsfreeze of a loopback ext4 for {} s, wal_sender_timeout {patience}", stall.as_secs()),
        rounds: 1,
        acknowledged: acknowledged.len(),
        lost: 0,
        resumed: Some(resumed),
        told: told(room, &ended.err, "the storage has not answered"),
    });
    Ok(())
}

const SENDER: &str = "select pid from pg_stat_replication where application_name = 'walhold'";
const FLUSHED: &str = "select flush_lsn from pg_stat_replication where application_name = 'walhold'";

/// How a disk goes away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Away {
    /// Every call to it fails.
    Dead,
    /// Writing to it is refused.
    ReadOnly,
    /// It is no longer where it was.
    TakenOut,
}

/// Receiving ends with the cause, whatever is started meanwhile says it too and makes nothing in its place, and when the
/// disk is back receiving goes on.
pub(crate) fn is_gone(room: &Room) -> Outcome {
    let volume = Volume::new(room, "disk", Format::Ext4, 400)?;
    let mut primary = Cluster::new(room, "primary");
    Load::prepare(&primary);
    let repo = volume.path("repo");
    let mut receiver = receive(room, &repo, &primary.conninfo(), SYNCHRONOUS);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    primary.require_standby("walhold");
    let load = Load::start(&primary, 3);
    let mut moments = Moments::new();
    let (rounds, mut longest, mut said) = (a_tenth(3), Duration::ZERO, String::new());
    for round in 0..rounds {
        let away = [Away::ReadOnly, Away::TakenOut, Away::Dead][round % 3];
        load.wait_for_more(50);
        moments.sleep(Duration::from_millis(400));
        match away {
            Away::Dead => volume.cut_off()?,
            Away::ReadOnly => volume.forbid_writing()?,
            Away::TakenOut => volume.detach(),
        }
        said = ended_by_the_disk(room, receiver.wait(SOON));
        while_away(room, &volume, &primary, away);
        match away {
            Away::TakenOut => volume.attach(),
            _ => volume.again(),
        }
        verify(room, &repo).expect(0);
        let back = Instant::now();
        receiver = receive(room, &repo, &primary.conninfo(), SYNCHRONOUS);
        load.wait_for_more(1);
        longest = longest.max(back.elapsed());
    }
    load.wait_for_more(50);
    primary.destroy();
    let acknowledged = load.finish();
    receiver.terminate().expect(0);
    verify(room, &repo).expect(0);
    compare(&acknowledged, &restored(room, &repo, "restored"));
    room.record(Row {
        fault: "the disk is gone",
        how: "a loopback ext4 that is taken down, remounted read-only, or taken out of the directory tree; commands \
              meanwhile"
            .to_owned(),
        rounds,
        acknowledged: acknowledged.len(),
        lost: 0,
        resumed: Some(longest),
        told: said,
    });
    Ok(())
}

/// What is started while the disk is away.
fn while_away(room: &Room, volume: &Volume, primary: &Cluster<'_>, away: Away) {
    let repo = volume.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), SYNCHRONOUS).wait(SOON);
    let backup = backup(room, &repo, primary);
    let expire = run(walhold(room, "expire").arg("--repo").arg(&repo).args(["--keep-last", "1"]));
    // A mount point belongs to root: nobody else can put anything in the place of what is not mounted.
    let code = if away == Away::TakenOut { 1 } else { 5 };
    for ended in [receiver, backup, expire] {
        ended.refused(code, &[]);
    }
    let data = room.path("too-early");
    match away {
        Away::ReadOnly => drop(verify(room, &repo).expect(0)),
        Away::Dead => drop((verify(room, &repo).refused(5, &[]), restore(room, &repo, &data, &[]).refused(5, &[]))),
        Away::TakenOut => {
            assert!(!repo.exists());
            restore(room, &repo, &data, &[]).refused(1, &[]);
        }
    }
    assert!(!data.join("global/pg_control").exists());
}

/// A disk with no room left for anything: receiving waits for room and goes on by itself; a backup and a restore end
/// with the cause, leave nothing that looks whole, and can be had when there is room.
pub(crate) fn fills_up(room: &Room) -> Outcome {
    let volume = Volume::new(room, "disk", Format::Ext4, 400)?;
    let mut primary = Cluster::new(room, "primary");
    Load::prepare(&primary);
    let repo = volume.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), SYNCHRONOUS);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    primary.require_standby("walhold");
    let load = Load::start(&primary, 3);
    let (rounds, mut longest) = (a_tenth(1).min(10), Duration::ZERO);
    for _ in 0..rounds {
        load.wait_for_more(50);
        let filler = Filler::all_but(room, &volume, 3);
        let told = receiver.err().matches("No space left").count();
        // One that no backup of it has room beside.
        backup(room, &repo, &primary).refused(5, &["No space left"]);
        only_sealed_are_offered(room, &repo);
        primary.rows(
            "set synchronous_commit = off; select pg_logical_emit_message(false, 'large', repeat(md5('x'), 200000))",
        );
        wait_until("the receiver to say so", SOON, || receiver.err().matches("No space left").count() > told);
        verify(room, &repo).expect(0);
        // Segments that are compressed still make room, but not for ever.
        wait_until("commits to wait for room", SOON, || {
            let stands = load.count();
            std::thread::sleep(Duration::from_secs(2));
            load.count() <= stands + 3
        });
        assert!(receiver.runs(), "{}", receiver.err());
        filler.remove();
        let back = Instant::now();
        load.wait_for_more(1);
        longest = longest.max(back.elapsed());
        backup(room, &repo, &primary).expect(0);
        run(walhold(room, "expire").arg("--repo").arg(&repo).args(["--keep-last", "1"])).expect(0);
    }
    load.wait_for_more(50);
    primary.destroy();
    let acknowledged = load.finish();
    let ended = receiver.terminate().expect(0);
    assert_contiguous(&repo.join("wal"));
    verify(room, &repo).expect(0);
    compare(&acknowledged, &restored(room, &repo, "restored"));
    room.record(Row {
        fault: "the disk is full",
        how: "a loopback ext4 that is filled up; a backup meanwhile".to_owned(),
        rounds,
        acknowledged: acknowledged.len(),
        lost: 0,
        resumed: Some(longest),
        told: told(room, &ended.err, "No space left"),
    });
    Ok(())
}
