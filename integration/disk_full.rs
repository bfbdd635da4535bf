//! A full disk holds the archive up, and no one for good.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::cluster::{Cluster, Stop};
use crate::program::receive;
use crate::room::{Outcome, Room, SOON, User, skip};
use crate::stock::{assert_contiguous, plain_copy, waldump};

/// A small file system in memory, unmounted when dropped.
pub(crate) struct Mount(pub(crate) PathBuf);

impl Mount {
    /// `None` where the machine does not let us.
    pub(crate) fn new(room: &Room, at: &Path, megabytes: u32) -> Option<Self> {
        Self::with(room, at, &format!("size={megabytes}m"))
    }

    /// With limits in the words of tmpfs.
    pub(crate) fn with(room: &Room, at: &Path, limits: &str) -> Option<Self> {
        let User(uid, gid) = room.user()?;
        room.make_dir(at);
        let options = format!("{limits},uid={uid},gid={gid},mode=0700");
        mount(&["-t", "tmpfs", "-o", &options, "walhold-test", at.to_str()?]).then(|| Self(at.to_owned()))
    }

    fn resize(&self, megabytes: u32) {
        assert!(mount(&["-o", &format!("remount,size={megabytes}m"), self.0.to_str().unwrap()]));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn mount(arguments: &[&str]) -> bool {
    Command::new("mount").args(arguments).output().is_ok_and(|output| output.status.success())
}

/// The disk fills, and the slot keeps more and more on the server, until the receiver's own guard drops it.
pub(crate) fn slot_dropped(room: &Room) -> Outcome {
    let Some(disk) = Mount::new(room, &room.path("disk"), 6) else {
        skip!("a small file system can be mounted only by root, where the machine allows it");
    };
    let primary = Cluster::new(room, "primary");
    let repo = disk.0.join("repo");
    // Compressed, nearly all of it may find room.
    let guarded = ["--max-slot-lag", "4MB", "--on-slot-lag", "drop", "-Z", "none"];
    let receiver = receive(room, &repo, &primary.conninfo(), &guarded);
    receiver.wait_until_it_streams(&primary);
    primary.rows("create table bulk as select i, repeat(md5(i::text), 10) from generate_series(1, 40000) i"); // some 15 MB
    receiver.wait(SOON).refused(3, &["of WAL for replication slot \"walhold\"", "more than 4", "dropped the slot"]);
    assert_eq!(primary.sql("select count(*) from pg_replication_slots"), "0");
    // What is held stays, and the receiver goes on from there while the server still has the rest.
    disk.resize(100);
    let receiver = receive(room, &repo, &primary.conninfo(), &guarded);
    let end = primary.flushed();
    let caught_up = || primary.slot_position("walhold") >= Some(end);
    crate::room::wait_until("the receiver to catch up", SOON, caught_up);
    receiver.terminate().expect(0);
    assert_contiguous(&repo.join("wal"));
    Ok(())
}

/// The disk fills, the server can go on and be shut down, room comes, and nothing is missing.
pub(crate) fn receive_on_small_disk(room: &Room) -> Outcome {
    let Some(disk) = Mount::new(room, &room.path("disk"), 6) else {
        skip!("a small file system can be mounted only by root, where the machine allows it");
    };
    let mut primary = Cluster::new(room, "primary");
    primary.rows("create table bulk (i int, t text)");
    let repo = disk.0.join("repo");
    // Compressed, all of it would find room.
    let receiver = receive(room, &repo, &primary.conninfo(), &["-Z", "none"]);
    receiver.wait_until_it_streams(&primary);
    primary.rows("insert into bulk select i, repeat(md5(i::text), 10) from generate_series(1, 40000) i"); // some 15 MB
    receiver.wait_for("No space left");
    primary.wait_for_no_receiver();
    // Nobody waits for a receiver that has no room.
    let taken = primary.stop(Stop::Fast);
    assert!(taken < Duration::from_secs(15), "the shutdown took {taken:?}");
    primary.start();
    assert!(receiver.runs(), "{}", receiver.err());
    disk.resize(100);
    let end = primary.flushed();
    let caught_up = || primary.slot_position("walhold") >= Some(end);
    crate::room::wait_until("the receiver to go on by itself", SOON * 2, caught_up);
    receiver.terminate().expect(0);
    assert_contiguous(&repo.join("wal"));
    waldump(room, &plain_copy(room, &repo.join("wal"), "plain"), end)
}
