//! P4: what is not to be kept goes, beside everything that runs, and what stays restores.

use std::path::Path;

use crate::backup::{backup, restore, verify};
use crate::cluster::{Cluster, Setup};
use crate::load::{Load, compare};
use crate::program::{Ended, receive, run, walhold};
use crate::room::{Outcome, Room};
use crate::stock::{amcheck, names};

#[track_caller]
fn expire(room: &Room, repo: &Path, more: &[&str]) -> Ended {
    run(walhold(room, "expire").arg("--repo").arg(repo).args(more))
}

/// Backups under load, with expires between them and beside the receiver; the oldest one that is left is restored.
pub(crate) fn under_load(room: &Room) -> Outcome {
    let mut primary = Cluster::with(room, "primary", &Setup::default());
    Load::prepare(&primary);
    let repo = room.path("repo");
    let receiver = receive(room, &repo, &primary.conninfo(), &["--synchronous"]);
    receiver.wait_until_it_streams(&primary);
    primary.require_standby("walhold");
    let load = Load::start(&primary, 3);
    let listed = || names(&repo.join("backups"));
    let oldest = || names(&repo.join("wal")).into_iter().min().unwrap();
    for _backup in 0..2 {
        load.wait_for_more(300);
        for _switch in 0..3 {
            primary.switch_segment();
        }
        backup(room, &repo, &primary).expect(0);
        expire(room, &repo, &["--keep-last", "2"]).expect(0).says("removed 0 backups");
    }
    let first = listed();
    assert_eq!(first.len(), 2);
    load.wait_for_more(300);
    backup(room, &repo, &primary).expect(0);

    // Nothing goes unasked, nor for a plan, nor what is marked.
    expire(room, &repo, &[]).expect(2);
    let before = oldest();
    expire(room, &repo, &["--keep-last", "2", "--dry-run"]).expect(0).says("would remove 1 backup and");
    expire(room, &repo, &["--keep-window", "1d"]).expect(0).says("removed 0 backups");
    let keep = |more: &[&str]| run(walhold(room, "keep").arg("--repo").arg(&repo).args(more));
    keep(&[&first[0]]).expect(0);
    run(walhold(room, "list").arg("--repo").arg(&repo)).expect(0).says("complete  full yes");
    expire(room, &repo, &["--keep-last", "2"]).expect(0).says("marked with walhold keep");
    assert_eq!((listed().len(), oldest()), (3, before.clone()));
    keep(&[&first[0], "--undo"]).expect(0);
    let plan = expire(room, &repo, &["--keep-last", "2", "--dry-run", "--json"]).expect(0).out;
    assert!(plan.contains("\"older\"") && plan.contains("\"dry_run\": true"), "{plan}");
    keep(&["20200101T000000Z"]).refused(1, &["there is no backup"]);

    expire(room, &repo, &["--keep-last", "2"]).expect(0).says("removed 1 backup and");
    assert_eq!((listed().len(), listed()[0].clone()), (2, first[1].clone()));
    assert!(oldest() > before, "no WAL went");
    verify(room, &repo).expect(0);
    load.wait_for_more(300);
    primary.destroy();
    let acknowledged = load.finish();
    receiver.terminate().expect(0);
    verify(room, &repo).expect(0);

    let data = room.path("restored-data");
    restore(room, &repo, &data, &[&first[1]]).expect(0);
    let mut server = Cluster::restored(room, "restored", data);
    server.start();
    server.wait_for_promotion();
    compare(&acknowledged, &server);
    amcheck(room, &server);
    Ok(())
}
