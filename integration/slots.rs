//! `walhold slot`, which makes, removes and lists slots.

use std::os::unix::fs::symlink;

use crate::cluster::{Cluster, Setup};
use crate::program::{Ended, Running, receive, run, start, walhold};
use crate::room::{Outcome, Room};
use crate::stock::{assert_contiguous, first_byte, segments};

/// Slots are made with reserved WAL, listed with what they keep, and removed.
pub(crate) fn commands(room: &Room) -> Outcome {
    let hba = ["local all nosql reject", "local replication nosql trust"];
    let primary = Cluster::with(room, "primary", &Setup { hba: &hba, ..Setup::default() });
    primary.rows("create role nosql login replication");
    let conninfo = primary.conninfo();
    let slot = |arguments: &[&str]| run(walhold(room, "slot").args(arguments).args(["-d", &conninfo]));
    let listed = |ended: Ended| -> serde_json::Value {
        let ended = ended.expect(0);
        serde_json::from_str(&ended.out).unwrap_or_else(|e| panic!("{e}\n{ended}"))
    };
    slot(&["list"]).expect(0).says("no slots");
    slot(&["create", "one"]).expect(0).says("made").says("max_slot_wal_keep_size is not limited");
    slot(&["create", "one"]).refused(1, &["one", "exists"]);
    slot(&["create", "one", "--if-not-exists"]).expect(0);
    slot(&["create", "Bad"]).expect(2).says("Bad");
    assert!(primary.slot_position("one").is_some(), "nothing is reserved");
    for _ in 0..3 {
        primary.switch_segment();
    }
    primary.rows("alter system set max_slot_wal_keep_size = '64MB'");
    primary.rows("select pg_reload_conf()");
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &conninfo, &[]);
    receiver.wait_until_it_streams(&primary);
    primary.wait_for_slot("walhold", primary.flushed());
    let answer = slot(&["list"]).expect(0).says("walhold").says("physical").says("reserved");
    assert!(!answer.err.contains("max_slot_wal_keep_size"), "{answer}");
    let document = listed(slot(&["list", "--json"]));
    assert_eq!(document["max_slot_wal_keep_size"], 64 << 20);
    let (one, own) = (&document["slots"][0], &document["slots"][1]);
    assert_eq!((&one["name"], &own["name"]), (&"one".into(), &"walhold".into()));
    assert_eq!((&one["active"], &own["active"], &own["used_by"]), (&false.into(), &true.into(), &"walhold".into()));
    assert!(one["retained_bytes"].as_u64().unwrap() >= 2 << 20, "{document:#}");
    assert!(own["retained_bytes"].as_u64().unwrap() < 1 << 20, "{document:#}");
    slot(&["drop", "walhold"]).refused(1, &["walhold", "active"]);

    // One who may stream and may not ask.
    let barred = conninfo.replace("user=postgres", "user=nosql");
    let answer = run(walhold(room, "slot").args(["list", "one", "--json", "-d", &barred]));
    if room.server.major >= 15 {
        let answer = answer.says("SQL would tell more");
        let document = listed(answer);
        assert_eq!((&document["complete"], &document["slots"][0]["name"]), (&false.into(), &"one".into()));
        assert!(document["slots"][0]["retained_bytes"].as_u64().unwrap() >= 2 << 20, "{document:#}");
    } else {
        answer.refused(1, &["only SQL"]);
    }

    let waiting = start(walhold(room, "slot").args(["drop", "--wait", "walhold", "-d", &conninfo]));
    waiting.wait_for("waiting until it is free");
    receiver.terminate().expect(0);
    waiting.wait(crate::room::SOON).expect(0).says("dropped");
    slot(&["drop", "one"]).expect(0);
    slot(&["drop", "one"]).refused(1, &["one", "not exist"]);
    slot(&["drop", "--if-exists", "one"]).expect(0);
    assert_eq!(primary.sql("select count(*) from pg_replication_slots"), "0");
    Ok(())
}

/// A role that may replicate and nothing else. Before 15 it cannot find out where a slot stands.
pub(crate) fn without_sql(room: &Room) -> Outcome {
    let hba = ["local all nosql reject", "local replication nosql trust"];
    let primary = Cluster::with(room, "primary", &Setup { hba: &hba, ..Setup::default() });
    primary.rows("create role nosql login replication");
    let conninfo = primary.conninfo().replace("user=postgres", "user=nosql");
    let is_told = room.server.major >= 15;
    let more = || {
        primary.switch_segment();
        primary.rows("select pg_logical_emit_message(true, 'test', 'more')");
    };
    let flushed = |receiver: Running, slot: &str| {
        receiver.wait_until_it_streams(&primary);
        more();
        primary.wait_for_slot(slot, primary.flushed());
        let ended = receiver.terminate().expect(0);
        primary.wait_for_no_receiver();
        ended
    };

    // Its own slot is made, and gone on with.
    let repo = room.path("repo");
    flushed(receive(room, &repo, &conninfo, &[]), "walhold").says("made replication slot");
    more();
    flushed(receive(room, &repo, &conninfo, &[]), "walhold");
    assert_contiguous(&repo.join("wal"));

    // What a slot of another time keeps is not passed over in a repository, and is in a folder.
    primary.rows("select pg_create_physical_replication_slot('kept', true)");
    more();
    let kept = primary.slot_position("kept").unwrap();
    let empty = room.path("empty");
    if is_told {
        flushed(receive(room, &empty, &conninfo, &["--slot", "kept"]), "kept");
        assert!(first_byte(&segments(&empty.join("wal"))[0], 1 << 20) <= kept);
        return Ok(());
    }
    let refused = run(walhold(room, "receive").arg("--repo").arg(&empty).args(["-d", &conninfo, "-S", "kept"]));
    refused.refused(1, &["cannot find out where replication slot \"kept\" stands", "pg_hba.conf"]);
    assert!(!empty.exists(), "a repository that was refused is left");
    let folder = room.path("folder");
    room.make_dir(&folder);
    let into_folder = |slot| {
        let mut command = walhold(room, "receive");
        command.arg("-D").arg(&folder).args(["-d", &conninfo, "--slot", slot]);
        command
    };
    assert_eq!(primary.slot_position("kept"), Some(kept), "nothing was acknowledged");
    flushed(start(&mut into_folder("kept")), "kept").says("WAL that the slot keeps from before it is not received");
    let ended = flushed(start(&mut into_folder("kept")), "kept");
    assert!(!ended.err.contains("not received"), "{ended}");
    assert_contiguous(&folder);
    run(&mut into_folder("nosuch")).refused(1, &["replication slot \"nosuch\" does not exist"]);

    let program = room.path("pg_receivewal");
    symlink(room.program(), &program).unwrap();
    let stock = |name: &str, slot: &str, end: &str| {
        let dir = room.path(name);
        if !dir.exists() {
            room.make_dir(&dir);
        }
        run(room.command(&program).args(["-n", "-d", &conninfo, "-S", slot, "-E", end, "-D"]).arg(dir))
    };
    let end = primary.flushed().to_string();
    primary.rows("select pg_logical_emit_message(true, 'test', 'beyond')");
    stock("stock", "kept", &end)
        .expect(0)
        .says("warning: this server does not tell where replication slot \"kept\" stands");
    let said = stock("stock", "kept", &end).expect(0);
    assert!(!said.err.contains("warning"), "{said}");
    stock("stock", "nosuch", "0/FFFFFFF").expect(1).says("replication slot \"nosuch\" does not exist");
    Ok(())
}
