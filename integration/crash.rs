//! P1 and P3 through `kill -9` at random moments.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::backup::{backup, restored, verify};
use crate::cluster::Cluster;
use crate::load::{Load, compare};
use crate::program::{Ended, receive, run, start, walhold};
use crate::room::{Outcome, Room, SOON, wait_until};
use crate::stock::{amcheck, assert_contiguous, names};

/// How often: a few times in an ordinary run, more when asked for.
pub(crate) fn rounds(few: usize) -> usize {
    std::env::var("WALHOLD_TEST_ROUNDS").map_or(few, |text| text.parse().expect("WALHOLD_TEST_ROUNDS is a number"))
}

/// A tenth as often, for a fault that takes long or strikes at few different moments; but not less than in an ordinary run.
pub(crate) fn a_tenth(few: usize) -> usize {
    few.max(rounds(0) / 10)
}

/// Random moments that a seed replays (xorshift).
pub(crate) struct Moments(u64);

impl Moments {
    pub(crate) fn new() -> Self {
        let seed = std::env::var("WALHOLD_TEST_SEED").map_or_else(
            |_| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() | 1,
            |text| text.parse().expect("WALHOLD_TEST_SEED is a number"),
        );
        eprintln!("WALHOLD_TEST_SEED={seed}");
        Self(seed)
    }

    /// Sleeps at most so long.
    pub(crate) fn sleep(&mut self, most: Duration) {
        std::thread::sleep(most.mul_f64(self.next() as f64 / 1000.0));
    }

    /// Whether to do something.
    pub(crate) fn coin(&mut self) -> bool {
        self.next() < 500
    }

    /// Some number below this.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() * 1000 + self.next()) as usize % end
    }

    /// 0 to 999.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % 1000
    }
}

/// The receiver is killed again and again while commits wait for it; then the server is lost.
pub(crate) fn receive_killed(room: &Room) -> Outcome {
    let mut primary = Cluster::new(room, "primary");
    Load::prepare(&primary);
    let repo = room.path("repo");
    let stream = || receive(room, &repo, &primary.conninfo(), &["--synchronous"]);
    let mut receiver = stream();
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    primary.require_standby("walhold");
    let load = Load::start(&primary, 3);
    let mut moments = Moments::new();
    for _ in 0..rounds(5) {
        load.wait_for_more(20);
        moments.sleep(Duration::from_millis(400));
        assert!(receiver.kill().killed(), "it ended by itself");
        receiver = stream();
    }
    load.wait_for_more(100);
    assert!(receiver.kill().killed(), "it ended by itself");
    primary.destroy();
    let acknowledged = load.finish();
    assert_contiguous(&repo.join("wal"));
    verify(room, &repo).expect(0);
    let server = restored(room, &repo, "restored");
    compare(&acknowledged, &server);
    amcheck(room, &server);
    Ok(())
}

/// Backups beside a receiver are killed at any moment; none of them is ever offered, and the next one is whole.
pub(crate) fn backup_killed(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    let load = kill_backups(room, &primary, &repo);
    load.wait_for_more(50);
    let acknowledged = load.finish();
    primary.wait_for_slot("walhold", primary.flushed());
    receiver.terminate().expect(0);
    compare(&acknowledged, &restored(room, &repo, "restored"));
    slots_become(&primary, "1");
    Ok(())
}

/// The same where the backup's own session captures the WAL.
pub(crate) fn backup_killed_alone(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let repo = room.path("repo");
    let load = kill_backups(room, &primary, &repo);
    load.finish();
    let server = restored(room, &repo, "restored");
    compare(&[], &server);
    amcheck(room, &server);
    slots_become(&primary, "0");
    Ok(())
}

fn kill_backups(room: &Room, primary: &Cluster<'_>, repo: &Path) -> Load {
    Load::prepare(primary);
    primary.rows("create table bulk as select i, repeat(md5(i::text), 30) from generate_series(1, 60000) i");
    let load = Load::start(primary, 2);
    let begun = Instant::now();
    backup(room, repo, primary).expect(0);
    let whole = begun.elapsed();
    let mut moments = Moments::new();
    for _ in 0..rounds(5) {
        let running = start(walhold(room, "backup").arg("--repo").arg(repo).args(["-d", &primary.conninfo()]));
        moments.sleep(whole.mul_f64(0.9));
        if running.kill().killed() {
            only_sealed_are_offered(room, repo);
        } // else it was faster this time, and is sealed
    }
    backup(room, repo, primary).expect(0);
    only_sealed_are_offered(room, repo);
    load
}

/// A dead session's slot goes when the server notices.
#[track_caller]
fn slots_become(primary: &Cluster<'_>, count: &str) {
    wait_until("the slots of killed backups to go", SOON, || {
        primary.sql("select count(*) from pg_replication_slots") == count
    });
}

/// What `list --json` calls complete must be what has a seal, and all of it must be usable. A receiver may
/// seal one that waits at any moment, so each answer lies between two looks.
#[track_caller]
pub(crate) fn only_sealed_are_offered(room: &Room, repo: &Path) {
    let backups = repo.join("backups");
    let sealed = |id: &str| backups.join(id).join("backup.json").exists();
    let between = |before: bool, answer: bool, id: &str, said: &Ended| {
        assert!(answer || !before, "{id} is sealed and was not offered\n{said}");
        assert!(!answer || sealed(id), "{id} is not sealed and was offered\n{said}");
    };
    let ids = names(&backups).into_iter().filter(|name| !name.ends_with(".expired"));
    let before: Vec<_> = ids.map(|id| (sealed(&id), id)).collect();
    let listed = run(walhold(room, "list").arg("--repo").arg(repo).arg("--json")).expect(0);
    let document: serde_json::Value = serde_json::from_str(&listed.out).unwrap_or_else(|e| panic!("{e}\n{listed}"));
    let entries = document["backups"].as_array().unwrap_or_else(|| panic!("no backups\n{listed}"));
    for (before, id) in before {
        let offered = entries.iter().any(|entry| entry["id"] == *id && entry["state"] == "complete");
        between(before, offered, &id, &listed);
        let before = sealed(&id);
        let verdict = run(walhold(room, "verify").arg("--repo").arg(repo).arg(&id));
        between(before, verdict.status.code() == Some(0), &id, &verdict);
        if !sealed(&id) {
            let data = room.path("never");
            let restored = run(walhold(room, "restore").arg("--repo").arg(repo).arg("-D").arg(&data).arg(&id));
            between(false, restored.status.code() == Some(0), &id, &restored);
            assert!(!data.exists() || sealed(&id), "{restored}");
            let _ = std::fs::remove_dir_all(data);
        }
    }
}
