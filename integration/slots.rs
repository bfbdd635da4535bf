//! `walhold slot`, which makes, removes and lists slots.

use crate::cluster::{Cluster, Setup};
use crate::program::{Ended, receive, run, walhold};
use crate::room::{Outcome, Room};

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

    let waiting = crate::program::start(walhold(room, "slot").args(["drop", "--wait", "walhold", "-d", &conninfo]));
    waiting.wait_for("waiting until it is free");
    receiver.terminate().expect(0);
    waiting.wait(crate::room::SOON).expect(0).says("dropped");
    slot(&["drop", "one"]).expect(0);
    slot(&["drop", "one"]).refused(1, &["one", "not exist"]);
    slot(&["drop", "--if-exists", "one"]).expect(0);
    assert_eq!(primary.sql("select count(*) from pg_replication_slots"), "0");
    Ok(())
}
