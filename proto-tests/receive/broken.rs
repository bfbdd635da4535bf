//! Records that do not verify.

use super::*;

#[tokio::test]
async fn a_broken_record_that_comes_right_the_second_time_is_healed() {
    let log = log_to(START + 2 * SIZE + 300_000);
    let record = *log.starts.iter().rfind(|start| **start < START + SIZE + 200_000).unwrap();
    let bad = flipped(&log, record, 30);
    let mut client = Client::with_slot();
    let (good, node) = (log.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, slot_at(START)).await;
            peer.stream(true, START, 1).await;
            peer.send_log(&bad, START, bad.at()).await;
            peer.flushes_until_close(record).await;
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, slot_at(START + SIZE)).await;
            peer.stream(true, START + SIZE, 1).await;
            peer.send_log(&good, START + SIZE, good.at()).await;
            peer.flushed(good.at()).await;
            stop.cancel();
            peer.flushed(good.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    assert_eq!(ran.asked_again().as_deref(), Some("000000010000000000000004"));
    client.assert_holds(1, &log, START, log.at());
}

/// A log whose third segment begins inside a record that began in the second.
fn spanning() -> (Log, u64) {
    let mut log = log_to(START + 2 * SIZE - 60_000);
    let record = log.next_record();
    log.record(10, 0, &vec![9; 200_000]);
    extend(&mut log, START + 3 * SIZE + 300_000, 3);
    (log, record)
}

#[tokio::test]
async fn a_broken_record_that_began_in_a_complete_segment_is_healed() {
    let (log, record) = spanning();
    let bad = flipped(&log, record, 5000);
    for lost in [false, true] {
        let mut client = Client::with_slot();
        let (bad, good, node) = (bad.clone(), log.clone(), Node::with(&log));
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.stream(true, START, 1).await;
                peer.send_log(&bad, START, bad.at()).await;
                peer.flushes_until_close(record + 200_000).await;
                if lost {
                    // The second sending is cut short: it has proved nothing.
                    let mut peer = door.next().await;
                    peer.introduce(&node).await;
                    peer.answer(READ_SLOT, slot_at(START + SIZE)).await;
                    peer.stream(true, START + SIZE, 1).await;
                    peer.send_log(&good, START + SIZE, START + SIZE + 300_000).await;
                }
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START + SIZE)).await;
                peer.stream(true, START + SIZE, 1).await;
                peer.send_log(&good, START + SIZE, good.at()).await;
                peer.flushed(good.at()).await;
                stop.cancel();
                peer.flushed(good.at()).await;
                peer.end_by_client().await;
            })
            .await;
        ran.stopped();
        assert_eq!(ran.asked_again().as_deref(), Some("000000010000000000000004"));
        client.assert_holds(1, &log, START, log.at());
    }
}

#[tokio::test]
async fn a_broken_record_that_is_repeated_is_final_and_never_acknowledged() {
    let log = log_to(START + SIZE + 300_000);
    let record = *log.starts.iter().rfind(|start| **start < START + 200_000).unwrap();
    let bad = flipped(&log, record, 30);
    for retry in [Some(Retry::default()), None] {
        let mut client = Client::with_slot();
        client.options.retry = retry;
        let (bad, node) = (bad.clone(), Node::with(&log));
        let ran = client
            .against(async move |mut door, _| {
                for _ in 0..2 {
                    let mut peer = door.next().await;
                    peer.introduce(&node).await;
                    peer.answer(READ_SLOT, slot_at(START)).await;
                    peer.stream(true, START, 1).await;
                    peer.send_log(&bad, START, bad.at()).await;
                    peer.flushes_until_close(record).await;
                }
            })
            .await;
        assert_eq!(ran.asked_again().as_deref(), Some("000000010000000000000003"));
        let ReceiveError::NotValid { broken, .. } = ran.error() else { panic!("valid") };
        assert_eq!(broken.whole.get(), record);
    }
}

/// What verified is held, and must come again as it was, in the second try at the latest: places cannot take turns.
#[tokio::test]
async fn records_that_break_in_turns_end_it() {
    let log = log_to(START + SIZE + 300_000);
    let record = |below: u64| *log.starts.iter().rfind(|start| **start < START + below).unwrap();
    let (a, b) = (record(200_000), record(600_000));
    let mut client = Client::with_slot();
    let logs = [a, b, a, a].map(|record| flipped(&log, record, 30));
    let node = Node::with(&log);
    let ran = client
        .against(async move |mut door, _| {
            for bad in &logs {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.stream(true, START, 1).await;
                peer.send_log(bad, START, bad.at()).await;
                peer.flushes_until_close(b).await;
            }
        })
        .await;
    let places: Vec<_> = ran
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Again { broken, .. } => Some(broken.whole.get()),
            _ => None,
        })
        .collect();
    assert_eq!(places, [a, b]);
    assert!(matches!(ran.error(), ReceiveError::Diverged(at) if (a..b).contains(&at.lsn().get())));
}

/// Of a version that is not known, all is checked that all versions share.
#[tokio::test]
async fn a_newer_server_is_streamed_from_and_verified() {
    let mut log = Log::new(START, SIZE, 1, SYSTEM);
    log.magic = 0xD142;
    for n in 0..900 {
        log.record(if n % 7 == 0 { 60 } else { 10 }, 0, &vec![n as u8 | 1; n * 7 % 3000 + 1]);
    }
    assert!(log.at() > START + SIZE);
    let node = Node { version: "19.1", ..Node::with(&log) };
    let mut client = Client::with_slot();
    let sent = log.clone();
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, slot_at(START)).await;
            peer.stream(true, START, 1).await;
            peer.send_log(&sent, START, sent.at()).await;
            peer.flushed(sent.at()).await;
            stop.cancel();
            peer.flushed(sent.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    client.assert_holds(1, &log, START, log.at());
    // A record that does not verify is not acknowledged here either.
    let record = *log.starts.iter().rfind(|start| **start < START + 200_000).unwrap();
    let bad = flipped(&log, record, 30);
    let mut client = Client::with_slot();
    client.options.retry = None;
    let ran = client
        .against(async move |mut door, _| {
            for _ in 0..2 {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.stream(true, START, 1).await;
                peer.send_log(&bad, START, bad.at()).await;
                peer.flushes_until_close(record).await;
            }
        })
        .await;
    assert!(matches!(ran.error(), ReceiveError::NotValid { .. }));
}

/// The server counts the silence as a walsender does, and drops whoever exceeds its timeout: while a
/// partial is read and compared, a segment is made, synced and renamed, and at a timeline's end.
#[tokio::test]
async fn a_disk_that_hangs_never_costs_the_connection() {
    const TIMEOUT: Duration = Duration::from_millis(400);
    let log = log_to(START + 2 * SIZE);
    let (fork, switch) = forked(&log, START + SIZE + 300_000, 2);
    let mut client = Client::with_slot().holding(&log, START + 300_000);
    client.disk = Arc::new(Slow { disk: Real::new(), delay: TIMEOUT * 5 / 4 });
    let (old, node) = (log.clone(), Node { timeout: "400ms", ..Node::with(&log) });
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, slot_at(START)).await;
            peer.stream(true, START, 1).await;
            peer.send_log(&old, START, switch).await;
            peer.flushed_in_time(TIMEOUT, switch).await;
            peer.send_log(&old, switch, switch + 50_000).await;
            peer.send(copy_done()).await;
            loop {
                match timeout(TIMEOUT, peer.next()).await.expect("a status in time") {
                    Some((b'c', _)) => break,
                    Some((b'd', _)) => {}
                    other => panic!("{other:?}"),
                }
            }
            peer.send(next_timeline(2, switch)).await;
            peer.answer("TIMELINE_HISTORY 2", history(&format!("1\t{}\tx\n", text(switch)))).await;
            peer.stream(true, START + SIZE, 2).await;
            peer.send_log(&fork, START + SIZE, fork.at()).await;
            peer.flushed_in_time(TIMEOUT, fork.at()).await;
            stop.cancel();
            peer.flushes_until_close(fork.at()).await;
        })
        .await;
    ran.stopped();
    assert_eq!(ran.disconnections(), 0);
}
