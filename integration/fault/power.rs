//! P1, P3 and P4 through the loss of power: the file system goes down at a random moment, with all that was not
//! durable.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::matrix::{Row, told};
use super::volume::{Format, Volume};
use crate::backup::{backup, restored, verify};
use crate::cluster::Cluster;
use crate::crash::{Moments, a_tenth, only_sealed_are_offered};
use crate::load::{Load, compare, lost};
use crate::program::{Ended, Running, receive, start, walhold};
use crate::room::{Outcome, Room, SOON, Skip};
use crate::stock::{amcheck, names};

/// What is at work beside the receiver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Beside {
    Compression,
    Backup,
    Expire,
    Nothing,
    /// Nor a receiver, and a backup has just ended.
    Quiet,
}

const IN_TURN: [Beside; 5] = [Beside::Compression, Beside::Quiet, Beside::Backup, Beside::Expire, Beside::Nothing];

pub(crate) fn lost_on_ext4(room: &Room) -> Outcome {
    power_is_lost(room, Format::Ext4, "the power is lost (ext4)")
}

pub(crate) fn lost_on_xfs(room: &Room) -> Outcome {
    power_is_lost(room, Format::Xfs, "the power is lost (xfs)")
}

/// Again and again while commits wait for the receiver. What is on the disk when it is back must restore with all that
/// was acknowledged, before anything is received again; then receiving goes on.
fn power_is_lost(room: &Room, format: Format, fault: &'static str) -> Outcome {
    let volume = Volume::new(room, "disk", format, 600)?;
    let primary = Cluster::new(room, "primary");
    Load::prepare(&primary);
    let site = Site { room, volume, primary };
    let mut receiver = site.receive(Beside::Nothing);
    let begun = Instant::now();
    backup(room, &site.repo(), &site.primary).expect(0);
    let backup_takes = begun.elapsed();
    site.primary.require_standby("walhold");
    let load = Load::start(&site.primary, 3);
    let mut moments = Moments::new();
    let (rounds, mut gone, mut longest, mut said) = (a_tenth(3), 0, Duration::ZERO, String::new());
    for round in 0..rounds {
        let beside = IN_TURN[round % IN_TURN.len()];
        let next = IN_TURN[(round + 1) % IN_TURN.len()];
        load.wait_for_more(50);
        let most = if beside == Beside::Backup { backup_takes } else { Duration::from_millis(400) };
        let Before { acknowledged, sealed } =
            site.lose_power(beside, receiver, &load, &mut || moments.sleep(most), &mut said)?;
        site.volume.again();
        only_sealed_are_offered(room, &site.repo());
        let there = site.sealed();
        assert!(sealed.iter().all(|id| there.contains(id)), "{sealed:?} were complete, and {there:?} are");
        gone += site.lost(&acknowledged, round);
        let back = Instant::now();
        receiver = site.receive(next);
        load.wait_for_more(1);
        longest = longest.max(back.elapsed());
    }
    load.wait_for_more(100);
    let Site { volume, mut primary, .. } = site;
    primary.destroy();
    let acknowledged = load.finish();
    receiver.terminate().expect(0);
    let repo = volume.path("repo");
    verify(room, &repo).expect(0);
    let server = restored(room, &repo, "restored");
    compare(&acknowledged, &server);
    amcheck(room, &server);
    room.record(Row {
        fault,
        how: format!(
            "the shutdown ioctl of a loopback {} without a log flush, at a random moment, with or without a backup, an \
             expire or a compression beside the receiver; then mounted again, restored and compared",
            format.name()
        ),
        rounds,
        acknowledged: acknowledged.len(),
        lost: gone,
        resumed: Some(longest),
        told: said,
    });
    Ok(())
}

/// A server and the disk of its repository.
struct Site<'a> {
    room: &'a Room,
    volume: Volume,
    primary: Cluster<'a>,
}

/// What must be there after the loss of power.
struct Before {
    acknowledged: Vec<i64>,
    sealed: Vec<String>,
}

impl Site<'_> {
    /// Lets the power fail, and waits for the end of all that was at work. The receiver's last words go into `said`.
    #[track_caller]
    fn lose_power(
        &self,
        beside: Beside,
        receiver: Running,
        load: &Load,
        sleep: &mut dyn FnMut(),
        said: &mut String,
    ) -> Result<Before, Skip> {
        if beside == Beside::Quiet {
            receiver.terminate().expect(0);
            // No sync of the receiver's takes the names along that the backup may have left behind.
            backup(self.room, &self.repo(), &self.primary).expect(0);
            let before = Before { acknowledged: load.so_far(), sealed: self.sealed() };
            return self.volume.cut_off().map(|()| before);
        }
        let sealed = if beside == Beside::Expire { Vec::new() } else { self.sealed() };
        let companion = self.start(beside);
        sleep();
        let before = load.so_far();
        self.volume.cut_off()?;
        *said = ended_by_the_disk(self.room, receiver.wait(SOON));
        let companion = companion.map(|running| running.wait(SOON));
        companion.filter(|ended| ended.status.code() != Some(0)).map(|ended| ended_by_the_disk(self.room, ended));
        // On xfs a sync that is under way when the ioctl comes may say that it succeeded, and has not: no real loss of
        // power lets it say anything.
        let acknowledged = if self.volume.format() == Format::Xfs { before } else { load.so_far() };
        Ok(Before { acknowledged, sealed })
    }

    /// The backups that are complete.
    fn sealed(&self) -> Vec<String> {
        let backups = self.repo().join("backups");
        names(&backups).into_iter().filter(|id| backups.join(id).join("backup.json").exists()).collect()
    }

    fn repo(&self) -> PathBuf {
        self.volume.path("repo")
    }

    #[track_caller]
    fn receive(&self, beside: Beside) -> Running {
        let more: &[&str] = match beside {
            Beside::Compression => &["--synchronous", "-Z", "zstd:19"],
            _ => &["--synchronous", "-Z", "none"],
        };
        let receiver = receive(self.room, &self.repo(), &self.primary.conninfo(), more);
        receiver.wait_until_it_streams(&self.primary);
        receiver
    }

    /// Starts what is to be at work beside the receiver when the power fails.
    #[track_caller]
    fn start(&self, beside: Beside) -> Option<Running> {
        match beside {
            Beside::Nothing | Beside::Quiet => None,
            Beside::Compression => {
                self.primary.rows("select pg_logical_emit_message(false, 'large', repeat('x y z', 700000))");
                None
            }
            Beside::Backup => {
                let mut command = walhold(self.room, "backup");
                Some(start(command.arg("--repo").arg(self.repo()).args(["-d", &self.primary.conninfo()])))
            }
            Beside::Expire => {
                backup(self.room, &self.repo(), &self.primary).expect(0);
                Some(start(walhold(self.room, "expire").arg("--repo").arg(self.repo()).args(["--keep-last", "1"])))
            }
        }
    }

    /// How many of these the disk alone does not bring back.
    #[track_caller]
    fn lost(&self, acknowledged: &[i64], round: usize) -> usize {
        let name = format!("check{round}");
        let server = restored(self.room, &self.repo(), &name);
        let lost = lost(acknowledged, &server);
        drop(server);
        remove(&self.room.path(&format!("{name}-data")));
        lost
    }
}

fn remove(data: &Path) {
    std::fs::remove_dir_all(data).unwrap();
}

/// It must have ended for its storage's sake; what it said.
#[track_caller]
pub(crate) fn ended_by_the_disk(room: &Room, ended: Ended) -> String {
    let ended = ended.refused(5, &[]);
    told(room, &ended.err, "error: ")
}
