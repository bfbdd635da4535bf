//! Several hosts, and where they are named.

use crate::backup::{backup, restored, verify};
use crate::cluster::{Cluster, Stop};
use crate::load::{Load, compare};
use crate::program::{receive, run, walhold};
use crate::room::{Outcome, Room, SOON, wait_until};
use crate::stock::assert_contiguous;

/// These servers, in this order.
fn of(servers: &[&Cluster<'_>], more: &str) -> String {
    let hosts: Vec<_> = servers.iter().map(|server| server.sockets().display().to_string()).collect();
    format!("host={} port=5432 user=postgres {more}", hosts.join(","))
}

/// Each kind of server that can be asked for is found behind one that will not do.
pub(crate) fn looked_for(room: &Room) -> Outcome {
    let mut primary = Cluster::new(room, "primary");
    let standby = primary.standby("standby");
    let (primary_first, standby_first) = ([&primary, &standby], [&standby, &primary]);
    for (attrs, servers, found) in [
        ("any", standby_first, &standby),
        ("primary", standby_first, &primary),
        ("read-write", standby_first, &primary),
        ("standby", primary_first, &standby),
        ("read-only", primary_first, &standby),
        ("prefer-standby", primary_first, &standby),
    ] {
        let conninfo = of(&servers, &format!("target_session_attrs={attrs}"));
        let receiver = receive(room, &room.path(&format!("to-{attrs}")), &conninfo, &[]);
        receiver.wait_until_it_streams(found);
        receiver.terminate().expect(0);
        found.wait_for_no_walhold();
    }
    let receive_to =
        |conninfo: &str| run(walhold(room, "receive").arg("--repo").arg(room.path("repo")).args(["-d", conninfo]));
    let conninfo = of(&[&standby], "target_session_attrs=primary");
    receive_to(&conninfo).refused(1, &["is a standby, and target_session_attrs=primary"]);
    let conninfo = format!("host=/nowhere,{} user=postgres target_session_attrs=standby", primary.sockets().display());
    receive_to(&conninfo).refused(1, &["/nowhere/.s.PGSQL.5432", "is a primary, and target_session_attrs=standby"]);

    // What a primary is by default must not be taken for what it is.
    primary.rows("alter system set default_transaction_read_only = on");
    primary.rows("select pg_reload_conf()");
    wait_until("the setting", SOON, || primary.sql("show default_transaction_read_only") == "on");
    let conninfo = of(&[&primary], "target_session_attrs=read-write");
    receive_to(&conninfo).refused(1, &["is read-only"]);
    let conninfo = of(&[&primary], "target_session_attrs=primary");
    if room.server.major < 14 {
        receive_to(&conninfo).refused(1, &["does not tell", "default_transaction_read_only"]);
    } else {
        let receiver = receive(room, &room.path("closed"), &conninfo, &[]);
        receiver.wait_until_it_streams(&primary);
        receiver.terminate().expect(0);
    }
    Ok(())
}

/// The primary is gone and the standby takes its place: the receiver finds it by itself.
pub(crate) fn failover(room: &Room) -> Outcome {
    let mut primary = Cluster::new(room, "primary");
    let standby = primary.standby("standby");
    let conninfo = of(&[&primary, &standby], "target_session_attrs=primary");
    let receiver = receive(room, &room.path("repo"), &conninfo, &["--no-slot"]);
    receiver.wait_until_it_streams(&primary);
    primary.stop(Stop::Fast);
    standby.promote();
    receiver.wait_until_it_streams(&standby);
    receiver.terminate().expect(0);
    Ok(())
}

/// The same under load, with a slot and with commits that wait for both: the slot is made on the new
/// primary, and a restore has every commit that either server acknowledged.
pub(crate) fn failover_under_load(room: &Room) -> Outcome {
    let mut primary = Cluster::new(room, "primary");
    Load::prepare(&primary);
    let standby = primary.standby("standby");
    let repo = room.path("repo");
    let conninfo = of(&[&primary, &standby], "target_session_attrs=primary");
    let receiver = receive(room, &repo, &conninfo, &["--synchronous"]);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    primary.require_standby("FIRST 2 (walhold, standby)");
    let load = Load::start(&primary, 3);
    load.wait_for_more(200);
    primary.destroy();
    let mut acknowledged = load.finish();
    receiver.wait_for("disconnected: ");
    standby.promote();
    standby.require_standby("walhold");
    receiver.wait_until_it_streams(&standby);
    let load = Load::start_at(&standby, 3, 5);
    load.wait_for_more(100);
    let mut standby = standby;
    standby.destroy();
    acknowledged.extend(load.finish());
    let ended = receiver.terminate().expect(0);
    let ended = ended.says("made replication slot \"walhold\"").says("goes on with timeline 2");
    assert_eq!(ended.err.matches("connected again after").count(), 1, "{ended}");
    assert_contiguous(&repo.join("wal"));
    verify(room, &repo).expect(0);
    compare(&acknowledged, &restored(room, &repo, "restored"));
    Ok(())
}

/// The guard looks at the server that is received from, and not at the first that is named: that one may
/// come back with a slot of the same name which nobody uses.
pub(crate) fn guarded(room: &Room) -> Outcome {
    let mut primary = Cluster::new(room, "primary");
    let mut standby = primary.standby("standby");
    standby.rows("select pg_create_physical_replication_slot('walhold', true)");
    standby.stop(Stop::Fast);
    let conninfo = of(&[&standby, &primary], "");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &conninfo, &["--max-slot-lag", "1MB", "--on-slot-lag", "drop"]);
    receiver.wait_until_it_streams(&primary);
    primary.rows("create table bulk as select i, repeat(md5(i::text), 10) from generate_series(1, 20000) i");
    let end = primary.flushed();
    primary.wait_for_slot("walhold", end);
    standby.start();
    wait_until("the standby to come along", SOON, || {
        standby.sql(&format!("select pg_last_wal_receive_lsn() >= '{end}'")) == "t"
    });
    // It looks every ten seconds, and believes what it has seen twice.
    std::thread::sleep(std::time::Duration::from_secs(25));
    assert!(receiver.runs(), "{}", receiver.err());
    assert_eq!(standby.sql("select count(*) from pg_replication_slots"), "1");
    receiver.terminate().expect(0);
    Ok(())
}

/// A service file gives what the connection string does not, before the environment.
pub(crate) fn service(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    let user = room.must(room.command("id").arg("-un"));
    let lines = format!(
        "[main]\nhost={}\nport=5432\nuser=postgres\nrequirepeer={user}\n[peer]\nhost={}\nrequirepeer=not-{user}\n",
        primary.sockets().display(),
        primary.sockets().display(),
    );
    room.write(&room.path(".pg_service.conf"), lines);
    let command = |conninfo: &str| {
        let mut command = walhold(room, "receive");
        command.arg("--repo").arg(room.path("repo")).args(["-d", conninfo]);
        command.env("PGHOST", "/nowhere").env("PGUSER", "nobody-at-all");
        command
    };
    let receiver = crate::program::start(&mut command("service=main"));
    receiver.wait_until_it_streams(&primary);
    receiver.terminate().expect(0);
    primary.wait_for_no_receiver();
    let receiver = crate::program::start(command("application_name=walhold").env("PGSERVICE", "main"));
    receiver.wait_until_it_streams(&primary);
    receiver.terminate().expect(0);
    run(&mut command("service=other")).refused(2, &["no service file defines the service \"other\""]);
    run(command("service=main").env("PGSERVICEFILE", "/no/such/file")).refused(2, &["/no/such/file"]);
    run(&mut command("service=peer")).refused(1, &["requirepeer=not-"]);
    Ok(())
}
