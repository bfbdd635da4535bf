//! `walhold status` beside real servers.

use std::path::Path;

use serde_json::Value;

use crate::backup::backup;
use crate::cluster::{Cluster, Stop};
use crate::program::{Ended, receive, run, walhold};
use crate::resume::recycle;
use crate::room::{Outcome, Room, SOON, wait_until};

fn status(room: &Room, repo: &Path, more: &[&str]) -> Ended {
    run(walhold(room, "status").arg("--repo").arg(repo).args(more))
}

fn document(room: &Room, repo: &Path, more: &[&str]) -> Value {
    let ended = status(room, repo, &[&["--json"], more].concat()).expect(0);
    let document: Value = serde_json::from_str(&ended.out).unwrap_or_else(|e| panic!("{e}\n{ended}"));
    assert_eq!(document["version"], 1);
    document["repositories"][0].clone()
}

/// How far the archive is behind, and what the slot keeps, with a receiver and without.
pub(crate) fn lag_and_slot(room: &Room) -> Outcome {
    let primary = Cluster::new(room, "primary");
    primary.rows("create role watcher login replication");
    let repo = room.path("repo");
    // One who may see no more than anybody.
    let conninfo = primary.conninfo().replace("user=postgres", "user=watcher");
    let connected = ["-d", conninfo.as_str()];
    let receiver = receive(room, &repo, &primary.conninfo(), &[]);
    receiver.wait_until_it_streams(&primary);
    backup(room, &repo, &primary).expect(0);
    primary.rows("create table t as select i from generate_series(1, 10000) i");
    primary.wait_for_slot("walhold", primary.flushed());

    let found = document(room, &repo, &connected);
    let told = &found["server"]["told"];
    assert_eq!((&told["lag"]["bytes"], &told["lag"]["seconds"]), (&0.into(), &0.into()), "{told:#}");
    assert_eq!((&told["slot"]["active"], &told["slot"]["wal_status"]), (&true.into(), &"reserved".into()), "{told:#}");
    assert_eq!((&told["standby"], &told["timeline"]), (&false.into(), &1.into()));
    assert_eq!(told["max_slot_wal_keep_size"], Value::Null);
    assert!(found["writer"]["who"].as_str().unwrap().starts_with("walhold receive, process"), "{found:#}");
    assert_eq!(found["held"]["last_commit"]["exact"], true, "{found:#}");
    let checked = ["--check", "--max-lag", "1min", "--max-age", "1h"];
    status(room, &repo, &[&checked[..], &connected].concat()).expect(0).says("OK ").says("0 bytes behind");
    let page = status(room, &repo, &connected).expect(0).says("behind it   by nothing");
    page.says("max_slot_wal_keep_size is unlimited").says("backups     1 complete");

    receiver.terminate().expect(0);
    primary.wait_for_no_receiver();
    primary.rows("select pg_switch_wal()");
    primary.rows("create table u as select i from generate_series(1, 30000) i");
    primary.rows("checkpoint");
    let behind = document(room, &repo, &connected);
    let told = &behind["server"]["told"];
    assert!(told["lag"]["bytes"].as_u64().unwrap() > 1 << 20, "{told:#}");
    assert_eq!(told["slot"]["active"], false);
    assert!(told["slot"]["retained_bytes"].as_u64().unwrap() >= told["lag"]["bytes"].as_u64().unwrap(), "{told:#}");
    let late = status(room, &repo, &[&["--check", "--max-lag", "1MB"][..], &connected].concat()).expect(4);
    let late = late.says("FAIL ").says("behind the server").says("nothing receives WAL");
    assert_eq!((late.out.lines().count(), late.err.as_str()), (1, ""), "{late}");
    std::thread::sleep(std::time::Duration::from_secs(2));
    status(room, &repo, &[&["--check", "--max-lag", "1s"][..], &connected].concat())
        .expect(4)
        .says("s behind the server");

    // Who is not asked, and who does not answer.
    status(room, &repo, &["--check", "--max-lag", "1MB"]).refused(2, &["--max-lag"]);
    let two = repo.to_str().unwrap();
    status(room, &repo, &[&["--repo", two], &connected[..]].concat()).refused(2, &["one repository"]);
    assert_eq!(document(room, &repo, &[])["server"], Value::Null);
    let nobody = format!("host={} port=1 user=x", room.path("nowhere").display());
    status(room, &repo, &["-d", &nobody]).expect(0).says("could not be asked").says("1 complete");
    status(room, &repo, &["--check", "-d", &nobody]).expect(4).says("the server could not be asked");
    Ok(())
}

/// What was lost in a gap is told for ever, and a standby that was promoted is followed.
pub(crate) fn gap_and_promotion(room: &Room) -> Outcome {
    let mut primary = Cluster::new(room, "primary");
    let repo = room.path("repo");
    backup(room, &repo, &primary).expect(0);
    let first = document(room, &repo, &[])["backups"][0]["id"].clone();
    primary.rows("create table lost as select 1 as i");
    recycle(&primary, primary.flushed());
    backup(room, &repo, &primary).expect(0);
    primary.rows("create table late as select 42 as answer");
    let standby = primary.standby("standby");
    let receiver = receive(room, &repo, &standby.conninfo(), &[]);
    receiver.wait_until_it_streams(&standby);
    primary.rows("create table more as select 42 as answer");
    standby.wait_for_slot("walhold", primary.flushed());

    let conninfo = standby.conninfo();
    let connected = ["-d", conninfo.as_str()];
    let found = document(room, &repo, &connected);
    let gap = &found["gaps"][0];
    assert!(gap["bytes"].as_u64().unwrap() > 0 && gap["ends"][0] == first, "{found:#}");
    assert_eq!(found["windows"][0]["ended_by"], "gap");
    assert_eq!(found["windows"][1]["ended_by"], "archive");
    let told = &found["server"]["told"];
    assert_eq!((&told["standby"], &told["lag"]["bytes"]), (&true.into(), &0.into()), "{told:#}");
    let page =
        status(room, &repo, &connected).expect(0).says("gaps ").says("then a gap").says("lost: what was committed");
    page.says(&format!("recovery from backup {} ends there", first.as_str().unwrap()));
    // The newest backup is behind it.
    status(room, &repo, &[&["--check"], &connected[..]].concat()).expect(0);

    primary.stop(Stop::Fast);
    standby.promote();
    standby.rows("create table after as select i from generate_series(1, 30000) i");
    standby.wait_for_slot("walhold", standby.flushed());
    let found = document(room, &repo, &connected);
    assert_eq!((&found["held"]["timeline"], &found["timelines"][1]["timeline"]), (&2.into(), &2.into()), "{found:#}");
    assert_eq!(found["timelines"][1]["forked_from"]["timeline"], 1);
    assert_eq!(found["gaps"].as_array().unwrap().len(), 1);
    wait_until("the check to pass", SOON, || {
        status(room, &repo, &[&["--check"], &connected[..]].concat()).status.code() == Some(0)
    });
    receiver.terminate().expect(0);
    status(room, &repo, &["--check"]).expect(4).says("nothing receives WAL");
    Ok(())
}
