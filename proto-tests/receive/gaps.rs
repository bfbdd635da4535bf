//! Gaps and divergence.

use super::*;

#[tokio::test]
async fn wal_that_is_gone_twice_is_a_gap() {
    let log = log_to(START + SIZE + 300_000);
    for retry in [Some(Retry::default()), None] {
        let mut client = Client::with_slot().holding(&log, START + 500_000);
        client.options.retry = retry;
        let before = client.files();
        let at = START + 9 * SIZE + 1000;
        let ran = client
            .against(async move |mut door, _| {
                for last in [false, true] {
                    let mut peer = door.next().await;
                    peer.introduce(&Node { at, ..NODE }).await;
                    peer.answer(READ_SLOT, slot_at(START + 7 * SIZE)).await;
                    peer.stream(true, START, 1).await;
                    peer.send(removed()).await;
                    if last {
                        peer.answer(READ_SLOT, slot_at(START + 8 * SIZE)).await;
                    }
                    peer.expect_end().await;
                }
            })
            .await;
        let ReceiveError::Gap(gap) = ran.error() else { panic!("no gap") };
        assert_eq!((gap.server, gap.kept_from), (pos(at), Some(Lsn::new(START + 8 * SIZE))));
        // The first byte that is missing, not where its segment begins.
        let end = log.starts.iter().rfind(|start| **start <= START + 500_000).unwrap();
        assert_eq!(gap.held, pos(*end));
        assert_eq!(client.files(), before);
    }
}

#[tokio::test]
async fn wal_that_is_there_when_it_is_asked_for_again_is_no_gap() {
    let log = log_to(START + 200_000);
    let mut client = Client::new();
    let (sent, node) = (log.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, START, 1).await;
            peer.send(removed()).await;
            peer.expect_end().await;
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, START, 1).await;
            peer.send_log(&sent, START, sent.at()).await;
            peer.flushed(sent.at()).await;
            stop.cancel();
            peer.flushed(sent.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    client.assert_holds(1, &log, START, log.at());
}

/// A server that refuses before anything is written, and what is said of it.
async fn refused_by(client: &mut Client, node: Node) -> ReceiveError {
    let before = client.files();
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.expect_end().await;
        })
        .await;
    assert!(client.files() == before, "something was written");
    ran.error()
}

#[tokio::test]
async fn an_archive_ahead_of_a_primary_is_divergence() {
    let log = log_to(START + SIZE + 300_000);
    for (held, server) in [(SIZE + 300_000, SIZE + 200_000), (SIZE, SIZE - 1000), (300_000, 0)] {
        let mut client = Client::new().holding(&log, START + held);
        let error = refused_by(&mut client, Node { at: START + server, ..NODE }).await;
        let ReceiveError::Ahead { server: at, standby: false, .. } = error else { panic!("{error}") };
        assert_eq!(at, pos(START + server));
    }
}

#[tokio::test]
async fn a_standby_behind_the_archive_is_waited_for() {
    let log = log_to(START + 300_000);
    let mut client = Client::new().holding(&log, START + 200_000);
    let (sent, node) = (log.clone(), Node { standby: true, ..Node::with(&log) });
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&Node { at: START + 100_000, ..node }).await;
            peer.expect_end().await;
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, START, 1).await;
            peer.send_log(&sent, START, sent.at()).await;
            peer.flushed(sent.at()).await;
            stop.cancel();
            peer.flushed(sent.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    assert_eq!(ran.disconnections(), 1);
    client.assert_holds(1, &log, START, log.at());
}

#[tokio::test]
async fn another_cluster_is_refused() {
    let log = log_to(START + SIZE + 300_000);
    let other = Node { system: 78, ..Node::with(&log) };
    let mut client = Client::new();
    let error = refused_by(&mut client, other).await;
    assert!(matches!(error, ReceiveError::OtherCluster { held: SYSTEM, server: 78 }), "{error}");
    // A plain folder has nothing but its segments to tell whose it is.
    for upto in [SIZE + 300_000, SIZE, 300_000] {
        let mut client = Client::new().holding(&log, START + upto);
        client.system = Some(78);
        let error = refused_by(&mut client, other).await;
        assert!(matches!(error, ReceiveError::OtherCluster { held: SYSTEM, server: 78 }), "{error}");
    }
}

#[tokio::test]
async fn another_segment_size_is_refused() {
    let mut client = Client::new();
    let error = refused_by(&mut client, Node { segment: "2MB", ..NODE }).await;
    assert!(matches!(error, ReceiveError::OtherSegmentSize { held: 0x10_0000, server: 0x20_0000 }), "{error}");
}

#[tokio::test]
async fn damage_in_what_is_held_is_not_built_upon() {
    let log = log_to(START + 2 * SIZE + 300_000);
    let bad = flipped(&log, log.starts[20], 40);
    let mut client = Client::new().holding(&bad, START + SIZE + 300_000);
    let error = refused_by(&mut client, Node::with(&log)).await;
    assert!(matches!(error, ReceiveError::Resume(ResumeError::Damaged { .. })), "{error}");
}

/// Of a copy that was cut short, what is there must be the same, and the rest comes again.
#[tokio::test]
async fn a_segment_that_has_lost_its_end_is_received_again() {
    let log = log_to(START + 2 * SIZE + 300_000);
    for (left, partial) in [(500_001, true), (0, true), (8192, false)] {
        let end = START + 2 * SIZE + if partial { 200_000 } else { 0 };
        let mut client = Client::with_slot().holding(&log, end);
        let short = client.path("000000010000000000000004");
        fs::OpenOptions::new().write(true).open(&short).unwrap().set_len(left).unwrap();
        let (sent, node) = (log.clone(), Node::with(&log));
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START + SIZE)).await;
                peer.stream(true, START + SIZE, 1).await;
                peer.send_log(&sent, START + SIZE, sent.at()).await;
                peer.flushed(sent.at()).await;
                stop.cancel();
                peer.flushed(sent.at()).await;
                peer.end_by_client().await;
            })
            .await;
        ran.stopped();
        client.assert_holds(1, &log, START, log.at());
        let size = |name: &str| fs::metadata(client.path(name)).unwrap().len();
        assert!(client.names().iter().all(|name| size(name) == SIZE), "{:?}", client.names());
    }
}

#[tokio::test]
async fn bytes_that_differ_from_what_is_held_are_divergence() {
    let log = log_to(START + 700_000);
    let mut other = Log::new(START, SIZE, 1, SYSTEM);
    extend(&mut other, START + 300_000, 1);
    let fork = other.at();
    extend(&mut other, START + 700_000, 5);
    let mut client = Client::with_slot().holding(&log, START + 500_000);
    let before = client.files();
    let (sent, node) = (other.clone(), Node::with(&other));
    let ran = client
        .against(async move |mut door, _| {
            // A network may have changed it: it is asked for once more.
            for _ in 0..2 {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.stream(true, START, 1).await;
                peer.send_log(&sent, START, sent.at()).await;
                // Nothing is reported as durable meanwhile.
                peer.flushes_until_close(0).await;
            }
        })
        .await;
    let ReceiveError::Diverged(at) = ran.error() else { panic!("not divergence") };
    let same = log.bytes.iter().zip(&other.bytes).take_while(|(a, b)| a == b).count() as u64;
    assert_eq!(at, pos(START + same));
    assert!(at.lsn().get() >= fork);
    assert!(client.files() == before);
}

/// What is held, sent again with a flipped bit, is not another past.
#[tokio::test]
async fn a_difference_that_does_not_come_again_is_none() {
    let log = log_to(START + 700_000);
    let bad = flipped(&log, *log.starts.iter().rfind(|start| **start < START + 200_000).unwrap(), 30);
    for retry in [Some(Retry::default()), None] {
        let mut client = Client::with_slot().holding(&log, START + 500_000);
        client.options.retry = retry;
        let (bad, sent, node) = (bad.clone(), log.clone(), Node::with(&log));
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.stream(true, START, 1).await;
                peer.send_log(&bad, START, bad.at()).await;
                peer.flushes_until_close(0).await;
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
    }
}

/// P5: a clone of the cluster bears its identifier.
#[tokio::test]
async fn a_junction_that_does_not_fit_is_divergence() {
    let log = log_to(START + SIZE + 300_000);
    let mut other = Log::new(START, SIZE, 1, SYSTEM);
    extend(&mut other, START + SIZE + 300_000, 5);
    let mut client = Client::new().holding(&log, START + SIZE);
    let before = client.files();
    let node = Node::with(&other);
    let ran = client
        .against(async move |mut door, _| {
            for _ in 0..2 {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.stream(false, START + SIZE, 1).await;
                peer.send_log(&other, START + SIZE, other.at()).await;
                peer.flushes_until_close(0).await;
            }
        })
        .await;
    assert!(matches!(ran.error(), ReceiveError::Diverged(_)));
    assert!(client.files() == before);
}
