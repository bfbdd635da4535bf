//! Backups of a primary and of a standby, with tablespaces, under load; and standbys made from them.

use std::path::Path;

use crate::backup::{backup, restore, verify};
use crate::cluster::{Cluster, Lsn};
use crate::load::{Load, compare};
use crate::program::{receive, run, walhold};
use crate::room::{Outcome, Room, SOON, wait_until};
use crate::sql::Rows;
use crate::stock::{amcheck, names};

/// How often a standby looks for WAL, which is 5 s else.
pub(crate) const IMPATIENT: &str = "wal_retrieve_retry_interval = '100ms'";

const SPACES: [&str; 2] = ["near", "far"];

fn space(room: &Room, server: &str, name: &str) -> String {
    room.path(&format!("{server}-{name}")).display().to_string()
}

/// A primary whose accounts lie in one tablespace, and their index in another.
pub(crate) fn with_tablespaces<'a>(room: &'a Room, name: &str) -> Cluster<'a> {
    let primary = Cluster::new(room, name);
    for each in SPACES {
        room.make_dir(Path::new(&space(room, name, each)));
        primary.rows(&format!("create tablespace {each} location '{}'", space(room, name, each)));
    }
    Load::prepare(&primary);
    primary.rows("alter table account set tablespace near; alter index account_pkey set tablespace far");
    primary
}

/// Restores a backup of the primary or of a standby that lies beside it; not started.
#[track_caller]
fn restored_beside<'a>(
    room: &'a Room,
    repo: &Path,
    from: &str,
    name: &str,
    backup: &str,
    more: &[&str],
) -> Cluster<'a> {
    let data = room.path(&format!("{name}-data"));
    let maps = SPACES.map(|each| format!("{}={}", space(room, from, each), space(room, name, each)));
    let mut arguments = vec![backup, "-T", &maps[0], "-T", &maps[1]];
    arguments.extend(more);
    restore(room, repo, &data, &arguments).expect(0);
    Cluster::restored(room, name, data)
}

/// What the tables hold, in numbers and in a checksum.
#[track_caller]
fn contents(server: &Cluster<'_>) -> Rows {
    server.rows(
        "select count(*), md5(string_agg(l::text, ',' order by n)) from ledger l
         union all select count(*), md5(string_agg(a::text, ',' order by id)) from account a",
    )
}

#[track_caller]
fn wait_for_replay(standby: &Cluster<'_>, end: Lsn) {
    let sql = format!("select pg_last_wal_replay_lsn() >= '{end}'");
    wait_until("the standby to replay all", SOON, || standby.sql(&sql) == "t");
}

#[track_caller]
fn wait_for_standby(primary: &Cluster<'_>, slot: Option<&str>) {
    let sql = match slot {
        Some(slot) => format!(
            "select count(*) from pg_stat_replication r join pg_replication_slots s on s.active_pid = r.pid
             where r.state = 'streaming' and s.slot_name = '{slot}'"
        ),
        None => "select count(*) from pg_stat_replication where state = 'streaming' and application_name <> 'walhold'"
            .into(),
    };
    wait_until("the standby to stream", SOON, || primary.sql(&sql) == "1");
}

#[track_caller]
fn newest_backup(repo: &Path) -> String {
    names(&repo.join("backups")).pop().expect("a backup")
}

/// Both are taken under load, and both hold at the same position what the primary holds.
pub(crate) fn primary_and_standby(room: &Room) -> Outcome {
    let mut primary = with_tablespaces(room, "primary");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    let load = Load::start(&primary, 2);
    load.wait_for_more(100);
    let packed = ["-d", &primary.conninfo(), "-Z", "zstd:level=3,workers=2"];
    run(walhold(room, "backup").arg("--repo").arg(&repo).args(packed)).expect(0);
    let of_primary = newest_backup(&repo);
    // Its tablespaces are in use where they lay.
    let refused = room.path("refused");
    restore(room, &repo, &refused, &[]).refused(1, &[&space(room, "primary", SPACES[0])]);
    assert!(!refused.exists(), "a refused restore wrote {:?}", names(&refused));

    primary.rows("select pg_create_physical_replication_slot('left')");
    let conninfo = primary.conninfo();
    let seed = ["--standby", "--primary-conninfo", &conninfo, "--primary-slot", "left"];
    let mut standby = restored_beside(room, &repo, "primary", "standby", &of_primary, &seed);
    standby.start();
    wait_for_standby(&primary, Some("left"));
    load.wait_for_more(100);
    let plain = ["-d", &standby.conninfo(), "-Z", "none"];
    run(walhold(room, "backup").arg("--repo").arg(&repo).args(plain)).expect(0);
    let of_standby = newest_backup(&repo);
    assert!(of_standby > of_primary, "{of_standby}");
    load.wait_for_more(100);
    let acknowledged = load.finish();
    let (end, expected) = (primary.flushed(), contents(&primary));
    primary.wait_for_slot("walhold", end);
    wait_for_replay(&standby, end);
    assert_eq!(contents(&standby), expected, "the standby's");

    for (from, name, id) in [("primary", "first", &of_primary), ("standby", "second", &of_standby)] {
        let mut server = restored_beside(room, &repo, from, name, id, &[]);
        server.start();
        server.wait_for_promotion();
        assert_eq!(contents(&server), expected, "{name}");
        compare(&acknowledged, &server);
        amcheck(room, &server);
        let lies = server.sql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'far'");
        assert_eq!(lies, space(room, name, "far"));
    }
    receiver.terminate().expect(0);
    verify(room, &repo).expect(0);
    standby.stop(crate::cluster::Stop::Fast);
    primary.destroy();
    Ok(())
}

/// A standby streams with its slot, finds in the archive what its primary no longer has, is promoted, and
/// the next one goes with it across the fork.
pub(crate) fn standby_of_archive(room: &Room) -> Outcome {
    let mut primary = Cluster::new(room, "primary");
    primary.rows("create table news (n int)");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    primary.rows("select pg_create_physical_replication_slot('left', true)");
    let (data, conninfo) = (room.path("standby-data"), primary.conninfo());
    let seed = ["--standby", "--primary-conninfo", &conninfo, "--primary-slot", "left"];
    restore(room, &repo, &data, &seed).expect(0);
    let mut standby = Cluster::restored(room, "standby", data);
    standby.configure(&[IMPATIENT]);
    standby.start();
    wait_for_standby(&primary, Some("left"));
    let arrived = |server: &Cluster<'_>, n: usize| {
        wait_until("the news to arrive", SOON, || server.sql("select count(*) from news") == n.to_string());
    };
    primary.rows("insert into news values (1)");
    arrived(&standby, 1);

    standby.stop(crate::cluster::Stop::Fast);
    let needed = primary.sql("select pg_walfile_name(pg_current_wal_flush_lsn())");
    primary.rows("select pg_drop_replication_slot('left')");
    for n in 2..=4 {
        primary.rows(&format!("insert into news values ({n})"));
        primary.switch_segment();
    }
    let end = primary.flushed();
    primary.wait_for_slot("walhold", end);
    primary.rows("checkpoint");
    let held = primary.sql(&format!("select count(*) from pg_ls_waldir() where name = '{needed}'"));
    assert_eq!(held, "0", "the primary still has {needed}");
    primary.rows("select pg_create_physical_replication_slot('left')");
    standby.start();
    wait_for_standby(&primary, Some("left"));
    arrived(&standby, 4);
    assert!(
        standby.whole_log().contains(&format!("restored log file \"{needed}\" from archive")),
        "{}",
        standby.whole_log()
    );
    primary.rows("insert into news values (5)");
    arrived(&standby, 5);

    let end = primary.flushed();
    primary.wait_for_slot("walhold", end);
    wait_for_replay(&standby, end);
    receiver.terminate().expect(0);
    primary.destroy();
    standby.promote();
    let receiver = receive(room, &repo, &standby.conninfo(), &[]);
    receiver.wait_until_it_streams(&standby);
    standby.rows("insert into news values (6)");
    standby.switch_segment();
    standby.wait_for_slot("walhold", standby.flushed());
    let (data, conninfo) = (room.path("next-data"), standby.conninfo());
    restore(room, &repo, &data, &["--standby", "--primary-conninfo", &conninfo]).expect(0);
    let mut next = Cluster::restored(room, "next", data);
    next.configure(&[IMPATIENT]);
    next.start();
    wait_for_standby(&standby, None);
    arrived(&next, 6);
    assert!(next.whole_log().contains("restored log file \"00000002"), "{}", next.whole_log());
    standby.rows("insert into news values (7)");
    arrived(&next, 7);
    receiver.terminate().expect(0);
    Ok(())
}
