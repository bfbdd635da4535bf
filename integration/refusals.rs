//! What cannot work is refused at once: one line of cause, one hint, the right status, nothing left behind.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::backup::{backup, restore};
use crate::cluster::{Cluster, Setup};
use crate::program::{Ended, receive, run, walhold};
use crate::room::{Outcome, Room};
use crate::stock::names;

#[track_caller]
fn try_receive(room: &Room, repo: &Path, conninfo: &str, more: &[&str]) -> Ended {
    run(walhold(room, "receive").arg("--repo").arg(repo).args(["-d", conninfo]).args(more))
}

/// A refused command makes no repository.
#[track_caller]
fn assert_nothing(repo: &Path) {
    assert!(!repo.exists(), "left behind: {:?}", names(repo));
}

/// Passwords and rights.
pub(crate) fn credentials(room: &Room) -> Outcome {
    let hba = ["local all,replication locked scram-sha-256", "local replication barred reject"];
    let setup = Setup { hba: &hba, settings: &["password_encryption = 'scram-sha-256'"], ..Setup::default() };
    let primary = Cluster::with(room, "primary", &setup);
    primary.rows("create role locked login replication password 'right'");
    primary.rows("create role barred login replication");
    primary.rows("create role plain login");
    let (repo, base) = (room.path("repo"), primary.conninfo());
    let as_user = |user: &str| base.replace("user=postgres", &format!("user={user}"));
    for command in ["receive", "backup"] {
        let try_it = |user: &str, more: &str| {
            let conninfo = format!("{} {more}", as_user(user));
            run(walhold(room, command).arg("--repo").arg(&repo).args(["-d", &conninfo]))
        };
        try_it("locked", "password=wrong").refused(1, &["password authentication failed"]);
        try_it("locked", "").refused(1, &["password"]);
        try_it("barred", "").refused(1, &["pg_hba.conf"]);
        try_it("nobody_known", "").refused(1, &["nobody_known"]);
        let said = try_it("plain", "");
        let words = said.err.to_lowercase();
        assert!(words.contains("replication") && !words.contains("panicked"), "{said}");
        said.refused(1, &[]);
    }
    assert_nothing(&repo);
    // A password file that others may read is not used, and one that is right is.
    let pass = room.path("pass");
    room.write(&pass, "*:*:*:locked:right\n");
    let with_file = format!("{} passfile={}", as_user("locked"), pass.display());
    let receiver = receive(room, &repo, &with_file, &[]);
    receiver.wait_until_it_streams(&primary);
    receiver.terminate().expect(0);
    fs::set_permissions(&pass, fs::Permissions::from_mode(0o644)).unwrap();
    try_receive(room, &repo, &with_file, &[]).refused(1, &["password"]);
    Ok(())
}

/// Slots that are missing, taken, or of the wrong kind.
pub(crate) fn slots(room: &Room) -> Outcome {
    // A slot that is in use is waited for as long as the server would wait for a dead receiver.
    let settings = ["wal_level = logical", "wal_sender_timeout = 2s"];
    let primary = Cluster::with(room, "primary", &Setup { settings: &settings, ..Setup::default() });
    let (repo, conninfo) = (room.path("repo"), primary.conninfo());
    try_receive(room, &repo, &conninfo, &["--slot", "nosuch"]).refused(1, &["nosuch", "not exist"]);
    assert_nothing(&repo);
    try_receive(room, &repo, &conninfo, &["--slot", "Bad-Name"]).expect(2).says("Bad-Name");
    assert_nothing(&repo);
    assert_eq!(primary.sql("select count(*) from pg_replication_slots"), "0");
    let holder = receive(room, &room.path("other"), &conninfo, &["--slot", "taken", "--ensure-slot"]);
    holder.wait_until_it_streams(&primary);
    try_receive(room, &repo, &conninfo, &["--slot", "taken"]).refused(1, &["taken", "active"]);
    assert_nothing(&repo);
    primary.rows("select pg_create_logical_replication_slot('logical', 'pgoutput')");
    try_receive(room, &repo, &conninfo, &["--slot", "logical"]).refused(1, &["logical"]);
    assert_nothing(&repo);
    holder.terminate().expect(0);
    assert_eq!(primary.sql("select active from pg_replication_slots where slot_name = 'taken'"), "f");
    Ok(())
}

/// A repository has one writer.
pub(crate) fn second_receiver(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let (repo, conninfo) = (room.path("repo"), primary.conninfo());
    let first = receive(room, &repo, &conninfo, &[]);
    first.wait_until_it_streams(&primary);
    let before = names(&repo.join("wal"));
    let pid = first.pid().to_string();
    try_receive(room, &repo, &conninfo, &["--slot", "second", "--ensure-slot"]).refused(1, &["lock", &pid]);
    assert_eq!(names(&repo.join("wal")), before);
    assert_eq!(primary.sql("select count(*) from pg_replication_slots where slot_name = 'second'"), "0");
    assert!(first.runs());
    first.terminate().expect(0);
    Ok(())
}

/// Ports at which there is no PostgreSQL that streams.
pub(crate) fn not_a_walsender(room: &Room) -> Outcome {
    let repo = room.path("repo");
    // Nothing listens.
    let nobody = format!("host={} user=postgres", room.path("").display());
    try_receive(room, &repo, &nobody, &[]).refused(1, &["connect"]);
    try_receive(room, &repo, "host=no-such-host.invalid user=postgres", &[]).refused(1, &["no-such-host.invalid"]);
    // Something listens that speaks otherwise.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut s| s.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
        }
    });
    for mode in ["disable", "prefer"] {
        let conninfo = format!("host=127.0.0.1 port={port} user=postgres sslmode={mode}");
        try_receive(room, &repo, &conninfo, &[]).refused(1, &[]);
    }
    // PostgreSQL that does not stream.
    let settings = ["wal_level = minimal", "max_wal_senders = 0"];
    let primary = Cluster::with(room, "primary", &Setup { settings: &settings, ..Setup::default() });
    for command in ["receive", "backup"] {
        let said = run(walhold(room, command).arg("--repo").arg(&repo).args(["-d", &primary.conninfo()]));
        said.refused(1, &["max_wal_senders"]);
    }
    // Text that is no conninfo.
    try_receive(room, &repo, "host=x nonsense=1", &[]).refused(2, &["nonsense"]);
    assert_nothing(&repo);
    Ok(())
}

/// Folders that are missing, closed, full of something else, or somebody else's.
pub(crate) fn folders(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let conninfo = primary.conninfo();
    let closed = room.path("closed");
    room.make_dir(&closed);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
    for command in ["receive", "backup"] {
        let repo = closed.join("repo");
        let said = run(walhold(room, command).arg("--repo").arg(&repo).args(["-d", &conninfo]));
        said.refused(1, &[repo.to_str().unwrap()]);
    }
    let file = room.path("file");
    room.write(&file, "not a folder");
    try_receive(room, &file, &conninfo, &[]).refused(1, &[file.to_str().unwrap()]);
    // A folder with something in it that is no repository.
    let full = room.path("full");
    room.make_dir(&full);
    room.write(&full.join("letters.txt"), "dear");
    try_receive(room, &full, &conninfo, &[]).refused(1, &[full.to_str().unwrap()]);
    assert_eq!(names(&full), ["letters.txt"]);
    assert_eq!(primary.sql("select count(*) from pg_replication_slots"), "0", "a slot was left behind");

    let repo = room.path("repo");
    for command in ["list", "verify"] {
        let said = run(walhold(room, command).arg("--repo").arg(&repo));
        said.refused(1, &[repo.to_str().unwrap()]);
    }
    restore(room, &repo, &room.path("data"), &[]).refused(1, &[repo.to_str().unwrap()]);
    backup(room, &repo, &primary).expect(0);
    restore(room, &repo, &full, &[]).refused(1, &[full.to_str().unwrap(), "empty"]);
    assert_eq!(names(&full), ["letters.txt"]);
    restore(room, &repo, &closed.join("data"), &[]).refused(1, &[closed.to_str().unwrap()]);
    restore(room, &repo, &room.path("data"), &["20010101T000000Z"]).refused(1, &["20010101T000000Z"]);
    assert!(!room.path("data").exists());
    Ok(())
}
