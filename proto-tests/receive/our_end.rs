//! Our own end.

use super::*;

#[tokio::test]
async fn a_stop_reports_all_that_came_and_says_goodbye() {
    let log = log_to(START + 300_000);
    for synchronous in [true, false] {
        let mut client = Client::with_slot();
        client.options.synchronous = synchronous;
        client.options.sync_interval = Duration::from_secs(3600);
        let (sent, node) = (log.clone(), Node::with(&log));
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.stream(true, START, 1).await;
                peer.send_log(&sent, START, sent.at()).await;
                // It has read what came before this.
                peer.send(keepalive(sent.at(), true)).await;
                peer.flushed(sent.at()).await;
                stop.cancel();
                assert_eq!(peer.status().await.flush, sent.at());
                peer.end_by_client().await;
            })
            .await;
        ran.stopped();
        client.assert_holds(1, &log, START, log.at());
    }
}

#[tokio::test]
async fn the_end_position_must_be_passed() {
    let log = log_to(START + 300_000);
    let mut client = Client::new();
    client.options.end = Some(Lsn::new(START + 100_000));
    let (sent, node) = (log.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, START, 1).await;
            peer.send_log(&sent, START, START + 100_000).await;
            peer.flushed(START + 100_000).await;
            peer.send_log(&sent, START + 100_000, START + 100_100).await;
            peer.flushed(START + 100_100).await;
            peer.end_by_client().await;
        })
        .await;
    assert!(matches!(ran.result, Ok(Finished::EndPosition)), "{:?}", ran.result);
    client.assert_holds(1, &log, START, START + 100_100);
}

#[tokio::test]
async fn an_archive_past_the_end_position_is_done() {
    let log = log_to(START + 2 * SIZE);
    let mut client = Client::new().holding(&log, START + 2 * SIZE);
    client.options.end = Some(Lsn::new(START + SIZE));
    let node = Node::with(&log);
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.expect_end().await;
        })
        .await;
    assert!(matches!(ran.result, Ok(Finished::EndPosition)), "{:?}", ran.result);
}

/// P1: "stopped" means that all is durable.
#[tokio::test]
async fn a_stop_whose_sync_fails_is_an_error() {
    let log = log_to(START + 300_000);
    let mut client = Client::new();
    client.options.synchronous = false;
    client.options.sync_interval = Duration::from_secs(3600);
    let (folder, moved) = (client.folder.path().to_owned(), client.folder.path().with_extension("moved"));
    let (sent, node, away) = (log.clone(), Node::with(&log), moved.clone());
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, START, 1).await;
            peer.send_log(&sent, START, sent.at()).await;
            let partial = folder.join("000000010000000000000003.partial");
            while !partial.exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // Nothing has been synced: the directory, which is gone now, must be.
            fs::rename(&folder, &away).unwrap();
            stop.cancel();
            peer.flushes_until_close(0).await;
        })
        .await;
    fs::remove_dir_all(moved).unwrap();
    assert!(matches!(ran.error(), ReceiveError::Archive(_)));
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_server_that_does_not_answer() {
    let mut client = Client::new();
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&NODE).await;
            peer.stream(false, START, 1).await;
            drop(peer);
            let mut peer = door.next().await;
            peer.expect_startup().await;
            stop.cancel();
            peer.expect_end().await;
        })
        .await;
    ran.stopped();
}

#[tokio::test]
async fn remote_apply_is_warned_of() {
    for (value, warned) in [("remote_apply", true), ("on", false)] {
        let mut client = Client::new();
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&NODE).await;
                peer.expect_query("SHOW \"synchronous_commit\"").await;
                peer.send(single_row(&[Some(value)])).await;
                peer.stream(false, START, 1).await;
                stop.cancel();
                peer.end_by_client().await;
            })
            .await;
        ran.stopped();
        assert_eq!(ran.events.iter().any(|event| matches!(event, Event::RemoteApply)), warned);
    }
}

/// Each waits for the report of the one before; no interval comes to help.
#[tokio::test]
async fn a_synchronous_commit_is_reported_at_once() {
    let log = log_to(START + SIZE + 30_000);
    let mut client = Client::new();
    client.options.sync_interval = Duration::from_secs(3600);
    let sent = log.clone();
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&NODE).await;
            peer.stream(false, START, 1).await;
            let mut at = START;
            // Over the segment's end, too.
            for end in sent.starts.iter().skip(1).copied().filter(|end| end % 16 == 0) {
                peer.send_log(&sent, at, end).await;
                peer.flushed(end).await;
                at = end;
            }
            stop.cancel();
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
}

#[tokio::test]
async fn without_slot_and_synchronous_flush_stays_0() {
    let log = log_to(START + 300_000);
    let mut client = Client::new();
    client.options.synchronous = false;
    let (sent, node) = (log.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, START, 1).await;
            peer.send_log(&sent, START, sent.at()).await;
            peer.send(keepalive(sent.at(), true)).await;
            assert_eq!(peer.status().await, Told { write: sent.at(), flush: 0, ask: false });
            stop.cancel();
            assert_eq!(peer.status().await, Told { write: sent.at(), flush: 0, ask: false });
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    client.assert_holds(1, &log, START, log.at());
}
