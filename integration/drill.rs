//! Drills on real servers: isolated from the one that was copied, recorded, and gone without a trace.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::backup::{backup, restored, verify};
use crate::cluster::{Cluster, Setup, Stop};
use crate::load::{Load, compare};
use crate::program::{Ended, receive, run, start, walhold};
use crate::room::{Outcome, Room, SOON};
use crate::stock::names;

/// `walhold drill --repo REPO`, with the servers of this version.
fn command(room: &Room, repo: &Path, more: &[&str]) -> Command {
    let scratch = room.path("scratch");
    if !scratch.exists() {
        room.make_dir(&scratch);
    }
    let mut command = walhold(room, "drill");
    command.arg("--repo").arg(repo).arg("--scratch").arg(scratch).arg("--pg-bin").arg(&room.server.bin).args(more);
    command
}

/// Runs a drill, which must leave nothing behind but its result.
#[track_caller]
pub(crate) fn drill(room: &Room, repo: &Path, more: &[&str]) -> Ended {
    // A receiver beside it prepares its next segment under a name of its own.
    let wal = || names(&repo.join("wal")).into_iter().filter(|name| !name.ends_with(".tmp")).collect::<Vec<_>>();
    let held = wal();
    let ended = run(&mut command(room, repo, more));
    assert_eq!(wal(), held, "a drill wrote to the archive\n{ended}");
    nothing_left(room);
    ended
}

/// No file, and no process that was started on one.
#[track_caller]
fn nothing_left(room: &Room) {
    let scratch = room.path("scratch");
    assert_eq!(names(&scratch), Vec::<String>::new());
    let scratch = format!("{}/", scratch.display());
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    let left: Vec<String> = processes.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).collect();
    assert!(!left.iter().any(|line| line.contains("postgres") && line.contains(&scratch)), "a server was left");
}

/// The last backup's `drill.json`.
fn record(repo: &Path) -> Option<String> {
    let last = names(&repo.join("backups")).pop().expect("a backup");
    fs::read_to_string(repo.join("backups").join(last).join("drill.json")).ok()
}

/// The source has settings with which a copy of it would not start, would archive and would hang; the
/// drill has none of that, and recovers all that was acknowledged.
pub(crate) fn good(room: &Room) -> Outcome {
    let archived = room.path("archived");
    room.make_dir(&archived);
    let settings = ["archive_mode = on", "max_prepared_transactions = 3", "max_locks_per_transaction = 100"];
    let mut primary = Cluster::with(room, "primary", &Setup { settings: &settings, ..Setup::default() });
    Load::prepare(&primary);
    primary.rows(&format!("alter system set archive_command = 'cp %p {}/%f'", archived.display()));
    primary.rows("alter system set shared_preload_libraries = 'no_such_library'");
    primary.rows("alter system set recovery_target_xid = '3'");
    primary.rows("create database app");
    primary.rows("alter database app set session_preload_libraries = 'no_such_library'");
    primary.rows("select pg_reload_conf()");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &["--synchronous"]);
    receiver.wait_until_it_streams(&primary);
    primary.require_standby("walhold");
    backup(room, &repo, &primary).expect(0);
    let load = Load::start(&primary, 2);
    load.wait_for_more(200);
    primary.rows("begin; create table prepared (n int); prepare transaction 'open'");
    primary.switch_segment();

    // Beside the source, under load, while the archive grows.
    run(&mut command(room, &repo, &[])).expect(0).says("PASSED");
    nothing_left(room);
    assert!(record(&repo).unwrap().contains("\"failure\": null"));
    load.wait_for_more(200);
    let acknowledged = load.finish();
    compare(&acknowledged, &primary);
    receiver.terminate().expect(0);

    primary.stop(Stop::Immediate);
    let before = names(&archived);
    let json = drill(room, &repo, &["--json", "--no-amcheck"]).expect(0).out;
    assert_eq!(names(&archived), before, "a drill archived something");
    assert!(json.contains("\"passed\": true") && json.contains("\"recorded\": true"), "{json}");
    assert_eq!(value(&json, "reached"), value(&json, "archive_end"));
    verify(room, &repo).expect(0);
    run(walhold(room, "list").arg("--repo").arg(&repo)).expect(0).says("passed 20");

    // Where nothing may be written the drill is as good, and says so.
    let folder = repo.join("backups").join(&names(&repo.join("backups"))[0]);
    let last = record(&repo);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o500)).unwrap();
    drill(room, &repo, &["--no-amcheck"]).expect(0).says("PASSED").says("could not be recorded");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(record(&repo), last);
    Ok(())
}

/// The order of an index changes under it, as it does with a new version of the system's collations.
pub(crate) fn damaged_index(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    primary.rows(
        "create function ordered(int, int) returns int language sql immutable as 'select sign($1 - $2)::int';
         create operator class fickle for type int using btree as
             operator 1 < (int, int), operator 2 <= (int, int), operator 3 = (int, int),
             operator 4 >= (int, int), operator 5 > (int, int), function 1 ordered(int, int);
         create table t as select i from generate_series(1, 1000) i;
         create index fickle_index on t using btree (i fickle);",
    );
    let repo = room.path("repo");
    backup(room, &repo, &primary).expect(0);
    drill(room, &repo, &[]).expect(0).says("btree indexes of all databases");
    primary.rows("create or replace function ordered(int, int) returns int language sql immutable as 'select sign($2 - $1)::int'");
    backup(room, &repo, &primary).expect(0);
    drill(room, &repo, &[]).refused(4, &["fickle_index"]).says("FAILED");
    assert!(record(&repo).unwrap().contains("fickle_index"));
    drill(room, &repo, &["--no-amcheck"]).expect(0).says("it was not asked for");
    Ok(())
}

/// The operator's own questions, answered as of the end of WAL or of a time.
pub(crate) fn own_questions(room: &Room) -> Outcome {
    room.tool("psql")?;
    let primary = Cluster::new(room, "primary");
    primary.rows("create table t (n int)");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    primary.rows("insert into t values (1)");
    let between =
        primary.sql("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
    primary.rows("insert into t values (2)");
    let after = primary.sql("select now() + '1 hour'");
    primary.wait_for_slot("walhold", primary.flushed());
    receiver.terminate().expect(0);

    let sql = |name: &str, text: &str| -> PathBuf {
        let path = room.path(name);
        room.write(&path, text);
        path
    };
    let two = sql("two.sql", "select 1 / (select (count(*) = 2)::int from t);\n");
    let one = sql("one.sql", "select 1 / (select (count(*) = 1)::int from t);\n");
    let (one, two) = (one.to_str().unwrap(), two.to_str().unwrap());
    drill(room, &repo, &["--no-amcheck", "--sql", two]).expect(0).says("two.sql ran without an error");
    drill(room, &repo, &["--no-amcheck", "--sql", one]).refused(4, &["one.sql", "division by zero"]);
    drill(room, &repo, &["--no-amcheck", "--sql", one, "--target-time", &between]).expect(0);
    // What cannot be reached is no verdict about the backup.
    let last = record(&repo);
    // The server would stop behind the backup's end, as if it had been asked for that.
    let before = ["--no-amcheck", "--target-time", "2001-01-01T00:00:00Z"];
    drill(room, &repo, &before).refused(4, &["before backup", "is consistent"]);
    drill(room, &repo, &["--no-amcheck", "--target-time", &after]).refused(4, &["past the end of what is held"]);
    assert_eq!(record(&repo), last);
    let nowhere = room.path("nowhere.sql");
    drill(room, &repo, &["--sql", nowhere.to_str().unwrap()]).refused(1, &["nowhere.sql"]);
    Ok(())
}

/// Tablespaces land in the scratch folder; a recovery that would write to one of the source's is refused.
pub(crate) fn tablespaces(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let (space, later) = (room.path("space"), room.path("later"));
    room.make_dir(&space);
    room.make_dir(&later);
    primary.rows(&format!("create tablespace elsewhere location '{}'", space.display()));
    // Before 16 a base backup leaves them out.
    if room.server.major >= 16 {
        let mut session = primary.session().unwrap();
        session.run("set allow_in_place_tablespaces = on").unwrap();
        session.run("create tablespace inside location ''").unwrap();
        session.run("create table within tablespace inside as select 7").unwrap();
    }
    primary.rows("create table far tablespace elsewhere as select i from generate_series(1, 1000) i");
    primary.rows("create index on far (i) tablespace elsewhere");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    primary.rows("checkpoint");
    let before = everything(&space);
    assert!(before.len() > 3, "{before:?}");
    primary.rows("create table near as select 1");
    primary.wait_for_slot("walhold", primary.flushed());
    drill(room, &repo, &[]).expect(0).says("PASSED");
    assert_eq!(everything(&space), before, "a drill wrote to the source's tablespace");

    primary.rows(&format!("create tablespace later location '{}'", later.display()));
    primary.rows("create table new tablespace later as select 1");
    primary.wait_for_slot("walhold", primary.flushed());
    let (last, before) = (record(&repo), everything(&later));
    drill(room, &repo, &[]).refused(1, &[later.to_str().unwrap(), "tablespace"]);
    assert_eq!((record(&repo), everything(&later)), (last, before));
    backup(room, &repo, &primary).expect(0);
    drill(room, &repo, &[]).expect(0);
    receiver.terminate().expect(0);
    assert_eq!(primary.sql("select count(*) from far, new"), "1000");
    Ok(())
}

/// Every file below a folder, with its time of last change.
fn everything(folder: &Path) -> Vec<(PathBuf, i64, i64)> {
    let mut all = Vec::new();
    for name in names(folder) {
        let path = folder.join(name);
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            all.extend(everything(&path));
        }
        all.push((path, meta.ctime(), meta.ctime_nsec()));
    }
    all
}

/// Along a newer timeline, to a gap, and not past damage.
pub(crate) fn far(room: &Room) -> Outcome {
    let mut first = Cluster::new(room, "first");
    Load::prepare(&first);
    let (repo, wal) = (room.path("repo"), room.path("repo").join("wal"));
    let receiver = receive(room, &repo, &first.conninfo(), &[]);
    receiver.wait_until_it_streams(&first);
    backup(room, &repo, &first).expect(0);
    first.switch_segment();
    first.switch_segment();
    first.wait_for_slot("walhold", first.flushed());
    first.destroy();
    receiver.terminate().expect(0);
    let second = restored(room, &repo, "second");
    let receiver = receive(room, &repo, &second.conninfo(), &[]);
    receiver.wait_until_it_streams(&second);
    for _ in 0..4 {
        second.switch_segment();
    }
    second.rows("create table last as select 1");
    second.wait_for_slot("walhold", second.flushed());
    receiver.terminate().expect(0);
    // Its checkpoints may have gone on until the receiver ended.
    drop(second);
    let json = drill(room, &repo, &["--json", "--no-amcheck"]).expect(0).out;
    assert!(json.contains("\"timeline\": 2"), "{json}");
    assert_eq!(value(&json, "reached"), value(&json, "archive_end"));

    let held = names(&wal);
    let on_second: Vec<&String> = held.iter().filter(|n| n.starts_with("00000002") && !n.contains(".hist")).collect();
    let (damaged, whole) = (wal.join(on_second[2]), fs::read(wal.join(on_second[2])).unwrap());
    let mut bytes = whole.clone();
    bytes[100] ^= 0x40;
    room.write(&damaged, bytes);
    drill(room, &repo, &["--no-amcheck"]).refused(4, &["before its recovery had ended"]).says("damaged");
    fs::remove_file(&damaged).unwrap();
    let json = drill(room, &repo, &["--json", "--no-amcheck"]).expect(0).out;
    assert!(json.contains(&format!("WAL from segment {} on", &on_second[2][..24])), "{json}");
    assert_eq!(value(&json, "reached"), value(&json, "archive_end"));
    Ok(())
}

/// A member of the JSON that a drill prints.
#[track_caller]
fn value(json: &str, name: &str) -> String {
    let rest = json.split_once(&format!("\"{name}\": \"")).unwrap_or_else(|| panic!("no {name}: {json}")).1;
    rest.split('"').next().unwrap().to_owned()
}

/// Whatever ends a drill, its server and its folder go with it.
pub(crate) fn interrupted(room: &Room) -> Outcome {
    room.tool("psql")?;
    let primary = Cluster::new(room, "primary");
    let repo = room.path("repo");
    backup(room, &repo, &primary).expect(0);
    let sleep = room.path("sleep.sql");
    room.write(&sleep, "select pg_sleep(600);\n");
    let slow = ["--no-amcheck", "--sql", sleep.to_str().unwrap()];
    for moment in ["restoring backup", "started PostgreSQL", "checking: the SQL file"] {
        let running = start(&mut command(room, &repo, &slow));
        running.wait_for(moment);
        running.terminate().refused(1, &["stopped"]);
        nothing_left(room);
        assert_eq!(record(&repo), None);
    }
    let slow = [&slow[..], &["--timeout", "3s"]].concat();
    drill(room, &repo, &slow).refused(4, &["within 3 s"]);
    // The server itself is killed under a check.
    let running = start(&mut command(room, &repo, &slow[..3]));
    running.wait_for("checking: the SQL file");
    let scratch = room.path("scratch").join(&names(&room.path("scratch"))[0]);
    let pid = fs::read_to_string(scratch.join("data/postmaster.pid")).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.lines().next().unwrap().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::QUIT).unwrap();
    running.wait(SOON).refused(4, &["the server ended while it was checked"]);
    nothing_left(room);
    // Kept on request, and stopped all the same.
    run(&mut command(room, &repo, &["--no-amcheck", "--keep"])).expect(0).says("is left in");
    let kept = room.path("scratch").join(&names(&room.path("scratch"))[0]);
    assert!(kept.join("data/PG_VERSION").exists() && !kept.join("data/postmaster.pid").exists());
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o700);
    Ok(())
}

/// What is missing is said before anything is restored.
pub(crate) fn refusals(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let repo = room.path("repo");
    let drill_at = |scratch: &Path, more: &[&str]| {
        let mut command = walhold(room, "drill");
        run(command.arg("--repo").arg(&repo).arg("--scratch").arg(scratch).args(more))
    };
    let scratch = room.path("scratch");
    room.make_dir(&scratch);
    let bin = room.server.bin.to_str().unwrap();
    drill_at(&scratch, &["--pg-bin", bin]).refused(1, &["no repository"]);
    backup(room, &repo, &primary).expect(0);
    drill_at(&scratch, &["--pg-bin", "/nowhere"]).refused(1, &["PostgreSQL", "/nowhere"]);
    drill_at(&room.path("missing"), &["--pg-bin", bin]).refused(1, &["missing"]);
    drill_at(&scratch, &["--pg-bin", bin, "20200101T000000Z"]).refused(1, &["20200101T000000Z"]);
    if room.user().is_some() {
        drill_at(&scratch, &["--pg-bin", bin, "--run-as", "12345:12345"]).refused(1, &["only root", "12345"]);
    }
    drill_at(&scratch, &["--pg-bin", bin, "-U", "nobody_of_that_name"]).refused(1, &["nobody_of_that_name"]);
    let long = scratch.join("x".repeat(90));
    room.make_dir(&long);
    drill_at(&long, &["--pg-bin", bin]).refused(1, &["too long"]);
    fs::remove_dir(&long).unwrap();
    assert_eq!(drill_at(&scratch, &["--target-time", "yesterday"]).status.code(), Some(2));
    nothing_left(room);
    assert_eq!(record(&repo), None);

    // A damaged backup is a failed drill.
    let folder = repo.join("backups").join(&names(&repo.join("backups"))[0]);
    let archive = folder.join(names(&folder).into_iter().find(|n| n.starts_with("base.tar")).unwrap());
    let whole = fs::read(&archive).unwrap();
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    room.write(&archive, bytes);
    drill(room, &repo, &[]).refused(4, &["base.tar"]);
    assert!(record(&repo).unwrap().contains("base.tar"));
    run(walhold(room, "list").arg("--repo").arg(&repo)).expect(0).says("FAILED 20");
    room.write(&archive, whole);
    as_root(room, &repo)
}

/// Root names the user who runs the server; the result belongs to whom the backup belongs.
fn as_root(room: &Room, repo: &Path) -> Outcome {
    let Some(user) = room.user() else { return Ok(()) };
    let root = |more: &[String]| {
        let mut command = Command::new(room.program());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).current_dir("/");
        command.args(["drill", "--no-amcheck", "--repo"]).arg(repo).env("TMPDIR", room.path("scratch"));
        run(command.arg("--pg-bin").arg(&room.server.bin).args(more))
    };
    root(&[]).refused(1, &["root"]);
    let closed = room.path("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let someone = ["--run-as".to_owned(), format!("{}:{}", user.0, user.1)];
    let at_closed = [&someone[..], &["--scratch".to_owned(), closed.display().to_string()]].concat();
    root(&at_closed).refused(1, &["cannot enter", "closed"]);
    assert_eq!(names(&closed), Vec::<String>::new());
    root(&someone).expect(0).says("PASSED");
    let folder = repo.join("backups").join(&names(&repo.join("backups"))[0]);
    let meta = fs::metadata(folder.join("drill.json")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (user.0, user.1));
    nothing_left(room);
    Ok(())
}
