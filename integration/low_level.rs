//! Copies that the operator makes, between the server's calls or at one instant.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::backup::{restore, restored, verify};
use crate::cluster::{Cluster, Setup};
use crate::load::{Load, compare};
use crate::program::{Ended, receive, run, start, walhold};
use crate::room::{Outcome, Room, SOON, wait_until};
use crate::stock::{amcheck, names, plain_copy, verify_backup};

/// What the README shows. A file that vanishes meanwhile is none that is needed.
const COPY: &str = r#"
set -e
copy() { cp -a "$1/." "$2" 2> "$ERRORS" || ! grep -v 'No such file' "$ERRORS"; }
copy "$WALHOLD_PGDATA" "$WALHOLD_TARGET"
printf %s "$WALHOLD_TABLESPACES" | while read -r oid path; do copy "$path" "$WALHOLD_TABLESPACE_TARGET/$oid"; done
"#;

/// `walhold backup --repo REPO -d CONNINFO`, with more arguments.
fn backup_with(room: &Room, repo: &Path, server: &Cluster<'_>, more: &[&str]) -> std::process::Command {
    let mut command = walhold(room, "backup");
    command.arg("--repo").arg(repo).args(["-d", &server.conninfo()]).args(more);
    command.env("ERRORS", room.path("errors-of-cp"));
    command
}

#[track_caller]
fn copied(room: &Room, repo: &Path, server: &Cluster<'_>) -> Ended {
    run(&mut backup_with(room, repo, server, &["--copy-command", COPY])).expect(0)
}

fn backups(repo: &Path) -> Vec<String> {
    if repo.join("backups").exists() { names(&repo.join("backups")) } else { Vec::new() }
}

fn folder(repo: &Path) -> PathBuf {
    repo.join("backups").join(backups(repo).pop().expect("a backup"))
}

/// The server must not think that a backup is under way.
#[track_caller]
fn nothing_left(repo: &Path, server: &Cluster<'_>) {
    assert_eq!(backups(repo), Vec::<String>::new());
    let slots = || server.sql("select count(*) from pg_replication_slots where temporary");
    wait_until("the slot to go", SOON, || slots() == "0");
    wait_until("the session to end", SOON, || {
        server.sql("select count(*) from pg_stat_activity where application_name = 'walhold_backup'") == "0"
    });
}

fn with_tablespace<'a>(room: &'a Room, settings: &[&str]) -> (Cluster<'a>, PathBuf) {
    let primary = Cluster::with(room, "primary", &Setup { settings, ..Setup::default() });
    let place = room.path("space");
    room.make_dir(&place);
    primary.rows(&format!("create tablespace elsewhere location '{}'", place.display()));
    primary.rows("create table far tablespace elsewhere as select i, md5(i::text) from generate_series(1, 1000) i");
    primary.rows("create unlogged table fleeting as select i from generate_series(1, 1000) i");
    (primary, place)
}

/// `cp -a` under load, with a tablespace; what is restored is whole, and stock tools can do it.
pub(crate) fn by_command(room: &Room) -> Outcome {
    let (mut primary, place) = with_tablespace(room, &[]);
    Load::prepare(&primary);
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &["--synchronous"]);
    receiver.wait_until_it_streams(&primary);
    primary.require_standby("walhold");
    let load = Load::start(&primary, 3);
    load.wait_for_more(200);
    copied(room, &repo, &primary).says("is complete");
    load.wait_for_more(200);
    primary.destroy();
    let acknowledged = load.finish();
    receiver.terminate().expect(0);
    verify(room, &repo).expect(0).says("USABLE");
    let data = folder(&repo).join("data");
    assert_eq!(names(&data.join("pg_wal")), ["archive_status"]);
    for gone in ["postmaster.pid", "postmaster.opts"] {
        assert!(!data.join(gone).exists(), "{gone}");
    }
    assert_eq!(names(&data.join("pg_tblspc")), Vec::<String>::new());

    let (to, moved) = (room.path("restored-data"), room.path("moved"));
    let map = format!("{}={}", place.display(), moved.display());
    restore(room, &repo, &to, &["-T", &map]).expect(0);
    let plain = plain_copy(room, &repo.join("wal"), "plain");
    let judged = verify_backup(room, &to, &plain);
    let mut server = Cluster::restored(room, "restored", to);
    server.start();
    server.wait_for_promotion();
    compare(&acknowledged, &server);
    assert_eq!(server.sql("select count(*) from far"), "1000");
    assert_eq!(server.sql("select count(*) from fleeting"), "0");
    amcheck(room, &server);
    judged
}

/// A standby's `pg_control` is read after the copy, in whatever order the command has copied.
pub(crate) fn of_standby(room: &Room) -> Outcome {
    let mut primary = Cluster::new(room, "primary");
    let standby = primary.standby("standby");
    Load::prepare(&primary);
    let load = Load::start(&primary, 2);
    load.wait_for_more(200);
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &standby.conninfo(), &[]);
    receiver.wait_until_it_streams(&standby);
    copied(room, &repo, &standby);
    load.wait_for_more(200);
    let acknowledged = load.finish();
    standby.wait_for_slot("walhold", primary.flushed());
    receiver.terminate().expect(0);
    verify(room, &repo).expect(0);
    let server = restored(room, &repo, "restored");
    compare(&acknowledged, &server);
    amcheck(room, &server);
    Ok(())
}

/// A command that fails, is killed, copies nothing, or too much: no backup, and nothing is left.
pub(crate) fn commands_that_fail(room: &Room) -> Outcome {
    let (primary, _) = with_tablespace(room, &[]);
    let repo = room.path("repo");
    let other = Cluster::with(room, "other", &Setup { own_identity: true, ..Setup::default() });
    let of_other =
        format!("{COPY}\ncp -a '{}/global/pg_control' \"$WALHOLD_TARGET/global/pg_control\"", other.data().display());
    for (command, told) in [
        ("exit 24", "exit code 24"),
        ("kill -9 $$", "signal 9"),
        ("true", "nothing was copied of tablespace"),
        (&format!("{COPY}\nrm -r \"$WALHOLD_TARGET\"/*"), "PG_VERSION"),
        (r#"cp -a "$WALHOLD_PGDATA/." "$WALHOLD_TARGET""#, "nothing was copied of tablespace"),
        (&format!("{COPY}\nrm \"$WALHOLD_TARGET/global/pg_control\""), "global/pg_control"),
        (&of_other, "system identifier"),
        (&format!("{COPY}\nmkfifo \"$WALHOLD_TARGET/base/pipe\""), "base/pipe"),
        (&format!("{COPY}\nrm -r \"$WALHOLD_TARGET/base\"; ln -s /tmp \"$WALHOLD_TARGET/base\""), "\"base\""),
        (r#"rmdir "$WALHOLD_TARGET"; ln -s "$WALHOLD_PGDATA" "$WALHOLD_TARGET""#, "no directory any more"),
        (&format!("{COPY}\necho 12 > \"$WALHOLD_TARGET/PG_VERSION\""), "PostgreSQL 12"),
        ("psql() { :; }; echo said-this; exit 1", "said-this"),
    ] {
        let before = names(primary.data());
        run(&mut backup_with(room, &repo, &primary, &["--copy-command", command])).expect(1).says(told);
        assert_eq!(names(primary.data()), before, "{command}");
        nothing_left(&repo, &primary);
    }
    Ok(())
}

/// Told to stop while the command runs, and when the server's session is lost.
pub(crate) fn interrupted(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let repo = room.path("repo");
    let mark = room.path("still-there");
    let command = format!("touch '{0}'; (sleep 60; touch '{0}.late') & sleep 60", mark.display());
    let running = || {
        let running = start(&mut backup_with(room, &repo, &primary, &["--copy-command", &command]));
        wait_until("the command to run", SOON, || mark.exists());
        fs::remove_file(&mark).unwrap();
        running
    };
    let told = running();
    told.signal(Signal::INT);
    told.wait(SOON).expect(1).says("stopped");
    nothing_left(&repo, &primary);
    sleepers_are_gone(&mark);

    let lost = running();
    // Of the two sessions, the one that holds the backup.
    primary.rows("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'walhold_backup' and backend_type = 'client backend'");
    lost.wait(SOON).expect(1);
    nothing_left(&repo, &primary);
    sleepers_are_gone(&mark);
    Ok(())
}

#[track_caller]
fn sleepers_are_gone(mark: &Path) {
    let marked = mark.display().to_string();
    wait_until("the command to end", Duration::from_secs(15), || {
        let processes = fs::read_dir("/proc").unwrap();
        let lines = processes.filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
        !lines
            .map(|line| String::from_utf8_lossy(&line).into_owned())
            .any(|l| l.starts_with("sh\0") && l.contains(&marked))
    });
}

/// Where the copy of a test lies, and what its tablespace was copied to.
struct Copied {
    data: PathBuf,
    space: PathBuf,
}

impl Copied {
    fn in_room(room: &Room) -> Self {
        Self { data: room.path("volume"), space: room.path("volume-of-space") }
    }

    /// The command that makes it.
    fn command(&self) -> String {
        let (data, space) = (self.data.display(), self.space.display());
        format!(
            "mkdir -m 700 '{data}' '{space}' && WALHOLD_TARGET='{data}' && set -e
             copy() {{ cp -a \"$1/.\" \"$2\" 2> \"$ERRORS\" || ! grep -v 'No such file' \"$ERRORS\"; }}
             copy \"$WALHOLD_PGDATA\" '{data}'
             printf %s \"$WALHOLD_TABLESPACES\" | while read -r oid path; do copy \"$path\" '{space}'; done"
        )
    }

    /// A folder filled from it.
    fn fill(&self, room: &Room, name: &str) -> Self {
        let filled = Self { data: room.path(name), space: room.path(&format!("{name}-of-space")) };
        room.copy_tree(&self.data, &filled.data);
        room.copy_tree(&self.space, &filled.space);
        filled
    }

    fn mapping(&self, old: &Path) -> String {
        format!("{}={}", old.display(), self.space.display())
    }
}

/// A copy that lies elsewhere: what does not fit is refused, and what fits recovers, also where making it
/// ready was interrupted.
pub(crate) fn external(room: &Room) -> Outcome {
    let (mut primary, place) = with_tablespace(room, &[]);
    Load::prepare(&primary);
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &["--synchronous"]);
    receiver.wait_until_it_streams(&primary);
    primary.require_standby("walhold");
    let load = Load::start(&primary, 2);
    load.wait_for_more(200);
    let volume = Copied::in_room(room);
    let where_ = "volume 7 of the store";
    let args = ["--external", where_, "--copy-command", &volume.command()];
    run(&mut backup_with(room, &repo, &primary, &args)).expect(0).says("data unchecked").says(where_);
    load.wait_for_more(200);
    primary.rows("drop table fleeting");
    primary.destroy();
    let acknowledged = load.finish();
    receiver.terminate().expect(0);
    verify(room, &repo).expect(0).says("USABLE (data unchecked)").says(where_);
    run(walhold(room, "list").arg("--repo").arg(&repo)).expect(0).says(where_);
    assert_eq!(names(&folder(&repo)), ["backup.json", "backup_label", "tablespace_map"]);

    let filled = volume.fill(room, "filled");
    let (map, data) = (filled.mapping(&place), filled.data.clone());
    restore(room, &repo, &room.path("empty"), &[]).refused(1, &[where_]);
    restore(room, &repo, &room.path("empty"), &["--in-place", "-T", &map]).refused(1, &["is no directory", where_]);
    restore(room, &repo, &data, &["--in-place"]).refused(1, &[place.to_str().unwrap(), "needs a place"]);
    let missing = format!("{}={}", place.display(), room.path("").display());
    restore(room, &repo, &data, &["--in-place", "-T", &missing]).refused(4, &["does not hold a tablespace"]);
    // A link into the server that was copied leads nowhere any more, and what it led to stays.
    let precious = room.path("precious");
    room.make_dir(&precious);
    room.write(&precious.join("segment"), "x");
    fs::rename(data.join("pg_wal"), room.path("old-wal")).unwrap();
    std::os::unix::fs::symlink(&precious, data.join("pg_wal")).unwrap();
    // An earlier try was cut off.
    fs::rename(data.join("global/pg_control"), data.join("global/pg_control.unfinished")).unwrap();
    for _ in 0..2 {
        restore(room, &repo, &data, &["--in-place", "-T", &map]).expect(0);
    }
    assert_eq!(names(&precious), ["segment"]);
    assert_eq!(names(&data.join("pg_wal")), ["archive_status"]);
    let mut server = Cluster::restored(room, "restored", data.clone());
    server.start();
    restore(room, &repo, &data, &["--in-place", "-T", &map]).refused(1, &["a server runs on"]);
    server.wait_for_promotion();
    compare(&acknowledged, &server);
    assert_eq!(server.sql("select count(*) from far"), "1000");
    assert_eq!(
        server.sql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'elsewhere'"),
        filled.space.to_str().unwrap()
    );
    amcheck(room, &server);
    server.stop(crate::cluster::Stop::Fast);
    restore(room, &repo, &data, &["--in-place", "-T", &map]).refused(4, &["does not hold this backup"]);
    Ok(())
}

/// Without a command somebody is told to make the copy, and says when it is made.
pub(crate) fn by_hand(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let repo = room.path("repo");
    let data = room.path("volume");
    let script = format!(
        r#"exec 3>&1; mkfifo answers; sleep 60 > answers & keep=$!
        '{}' backup --repo '{}' -d '{}' --external here < answers 2> log & made=$!
        echo too early > answers
        until id=$(sed -n 's/.*backup \([0-9TZ]*\) has begun.*/\1/p' log) && [ -n "$id" ]; do sleep 0.1; done
        cp -a '{}' '{}'; echo "$id" > answers; wait $made; status=$?; kill $keep; cat log >&2; exit $status"#,
        room.program().display(),
        repo.display(),
        primary.conninfo(),
        primary.data().display(),
        data.display()
    );
    run(room.command("sh").args(["-c", &script])).expect(0).says("data unchecked");
    primary.rows("create table later as select 1");
    restore(room, &repo, &data, &["--in-place"]).expect(0);
    let mut server = Cluster::restored(room, "restored", data);
    server.start();
    server.wait_for_promotion();

    // Nobody answers: the end of input is no answer.
    let kept = backups(&repo);
    run(&mut backup_with(room, &repo, &primary, &["--external", "here"])).expect(1).says("nobody said");
    assert_eq!(backups(&repo), kept);
    Ok(())
}

/// All processes of a server, stopped, are a snapshot of one instant. It counts for nothing before it is drilled.
pub(crate) fn snapshot(room: &Room) -> Outcome {
    let (mut primary, place) = with_tablespace(room, &[]);
    Load::prepare(&primary);
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &["--synchronous"]);
    receiver.wait_until_it_streams(&primary);
    primary.require_standby("walhold");
    let load = Load::start(&primary, 3);
    load.wait_for_more(200);
    let volume = Copied::in_room(room);
    let pid = primary.data().join("postmaster.pid");
    let frozen = format!(
        "set -e; read -r server < '{}'; all=\"$server $(cat /proc/$server/task/*/children)\"
         kill -STOP $all; trap 'kill -CONT $all' EXIT; sleep 0.3\n{}",
        pid.display(),
        volume.command()
    );
    let args = ["--external", "here", "--atomic-snapshot", &frozen];
    run(&mut backup_with(room, &repo, &primary, &args)).expect(0).says("once a drill of it has passed");
    load.wait_for_more(200);
    primary.switch_segment();
    let acknowledged = load.finish();
    let id = names(&repo.join("backups")).remove(0);
    let filled = volume.fill(room, "filled");
    let map = filled.mapping(&place);
    let in_place = [&id, "--in-place", "-T", &map];
    restore(room, &repo, &filled.data, &[]).refused(4, &["no complete backup"]);
    restore(room, &repo, &filled.data, &in_place).refused(4, &["no drill has passed"]);
    verify(room, &repo).expect(0).says("UNTESTED");
    run(walhold(room, "list").arg("--repo").arg(&repo)).expect(0).says("untested");

    let tried = volume.fill(room, "tried");
    let drill = |data: &Path, map: &str| {
        let scratch = room.path("scratch");
        if !scratch.exists() {
            room.make_dir(&scratch);
        }
        let mut command = walhold(room, "drill");
        command.arg(&id).arg("--repo").arg(&repo).arg("--scratch").arg(&scratch);
        run(command.arg("--pg-bin").arg(&room.server.bin).arg("--data").arg(data).args(["-T", map]))
    };
    // A copy that lacks its WAL is none.
    let broken = volume.fill(room, "broken");
    for name in names(&broken.data.join("pg_wal")).iter().filter(|name| crate::stock::is_segment(name)) {
        fs::remove_file(broken.data.join("pg_wal").join(name)).unwrap();
    }
    drill(&broken.data, &broken.mapping(&place)).refused(4, &["is not there", "pg_wal"]);
    drill(&tried.data, &tried.mapping(&place)).expect(0).says("PASSED");
    verify(room, &repo).expect(0).says("USABLE (data unchecked)");

    primary.destroy();
    receiver.terminate().expect(0);
    restore(room, &repo, &filled.data, &in_place).expect(0);
    let mut server = Cluster::restored(room, "restored", filled.data.clone());
    server.start();
    server.wait_for_promotion();
    compare(&acknowledged, &server);
    assert_eq!(server.sql("select count(*) from far"), "1000");
    amcheck(room, &server);
    Ok(())
}
