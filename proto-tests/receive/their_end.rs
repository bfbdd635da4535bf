//! The ends of a connection.

use super::*;

#[tokio::test]
async fn an_orderly_shutdown_gets_exactly_what_was_sent_and_is_followed_by_another_try() {
    let log = log_to(START + SIZE + 300_000);
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
                let shutdown = START + SIZE + 100_001;
                peer.send_log(&sent, START, shutdown).await;
                peer.send(keepalive(shutdown, true)).await;
                let told = peer.flushed(shutdown).await;
                assert_eq!(told.last().unwrap().write, shutdown);
                peer.send(complete("COPY 0")).await;
                drop(peer);
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(shutdown)).await;
                peer.stream(true, START + SIZE, 1).await;
                stop.cancel();
                peer.status().await;
                peer.end_by_client().await;
            })
            .await;
        ran.stopped();
        assert!(matches!(
            &ran.events[..],
            [.., Event::Disconnected { .. }, Event::Begins(_), Event::Reconnected { .. }, Event::Streaming(_)]
        ));
    }
}

#[tokio::test]
async fn without_reconnecting_the_servers_end_is_ours() {
    let mut client = Client::new();
    client.options.retry = None;
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&NODE).await;
            peer.stream(false, START, 1).await;
            peer.send(complete("COPY 0")).await;
        })
        .await;
    assert!(matches!(ran.error(), ReceiveError::Ended));
}

#[tokio::test]
async fn a_lost_connection_is_resumed_and_flush_stays_0_until_past_the_old_end() {
    let log = log_to(START + SIZE + 800_000);
    let mut client = Client::with_slot();
    let (sent, node) = (log.clone(), Node::with(&log));
    let old = START + SIZE + 400_003;
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, slot_at(START)).await;
            peer.stream(true, START, 1).await;
            peer.send_log(&sent, START, old).await;
            peer.flushed(old).await;
            drop(peer);
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            // What a slot says may be older than what was reported: it is written at checkpoints.
            peer.answer(READ_SLOT, slot_at(START)).await;
            peer.stream(true, START + SIZE, 1).await;
            for (from, to) in [(0, 100_000), (100_000, 390_000), (390_000, 400_002)] {
                peer.send_log(&sent, START + SIZE + from, START + SIZE + to).await;
                peer.expect_no_flush().await;
            }
            peer.send_log(&sent, old - 1, sent.at()).await;
            let told = peer.flushed(sent.at()).await;
            assert!(told.iter().all(|told| told.flush == 0 || told.flush >= old), "{told:?}");
            stop.cancel();
            peer.flushed(sent.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    client.assert_holds(1, &log, START, log.at());
    assert_eq!(client.names(), ["000000010000000000000003", "000000010000000000000004.partial"]);
}

#[tokio::test]
async fn a_server_that_is_silent_for_its_own_timeout_is_given_up() {
    let mut client = Client::new();
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&Node { timeout: "600ms", ..NODE }).await;
            peer.stream(false, START, 1).await;
            assert!(!peer.status().await.ask);
            assert!(peer.status().await.ask);
            peer.expect_end().await;
            let mut peer = door.next().await;
            peer.introduce(&NODE).await;
            peer.stream(false, START, 1).await;
            stop.cancel();
            peer.status().await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    assert_eq!(ran.disconnections(), 1);
}

/// A network may have changed a byte of it: it is asked for once more, and again when more has come meanwhile.
#[tokio::test]
async fn wal_at_the_wrong_position_is_a_violation() {
    let log = log_to(START + 300_000);
    for retry in [Some(Retry::default()), None] {
        let mut client = Client::with_slot();
        client.options.retry = retry;
        let (sent, node) = (log.clone(), Node::with(&log));
        let ends: &[u64] = if retry.is_some() { &[100_000, 200_000, 200_000] } else { &[200_000] };
        let ran = client
            .against(async move |mut door, _| {
                for end in ends.iter().map(|end| START + end) {
                    let mut peer = door.next().await;
                    peer.introduce(&node).await;
                    peer.answer(READ_SLOT, slot_at(START)).await;
                    peer.stream(true, START, 1).await;
                    peer.send_log(&sent, START, end).await;
                    peer.send_log(&sent, end + 8, START + 300_000).await;
                    peer.flushes_until_close(end).await;
                }
            })
            .await;
        assert_eq!(ran.disconnections(), ends.len() - 1);
        let end = START + 200_000;
        let expected = Violation::Misplaced { expected: Lsn::new(end), found: Lsn::new(end + 8) };
        assert!(matches!(ran.error(), ReceiveError::Violation(violation) if violation == expected));
        client.assert_holds(1, &log, START, end);
    }
}

#[tokio::test]
async fn what_is_no_message_is_asked_for_once_more() {
    let log = log_to(START + 300_000);
    let mut client = Client::with_slot();
    let (sent, node) = (log.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, _| {
            for garbage in [&b"d\x40\x00\x00\x20w"[..], b"?\x00\x00\x00\x04"] {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.stream(true, START, 1).await;
                peer.send_log(&sent, START, START + 100_000).await;
                peer.send(garbage).await;
                peer.flushes_until_close(START + 100_000).await;
            }
        })
        .await;
    assert_eq!(ran.disconnections(), 1);
    assert!(matches!(ran.error(), ReceiveError::Session(e) if e.to_string().contains("tag '?'")));
    client.assert_holds(1, &log, START, START + 100_000);
}

/// The slot of the server before stays there, and keeps WAL: whoever made it is told.
#[tokio::test]
async fn a_slot_that_is_made_on_another_server_is_left_on_the_one_before() {
    let log = log_to(START + 300_000);
    let half = log.starts[log.starts.len() / 2];
    let node = Node::with(&log);
    let first = log.clone();
    let before = Server::serve(async move |mut door: Door| {
        let mut peer = door.next().await;
        peer.introduce(&node).await;
        peer.answer(READ_SLOT, slot_at(START)).await;
        peer.stream(true, START, 1).await;
        peer.send_log(&first, START, half).await;
        peer.flushed(half).await;
        // It is gone for good, with its door.
    })
    .await;
    let mut client = Client::new();
    client.options.slot = Slot::Ensured(slot());
    let (sent, stop) = (log.clone(), client.stop.clone());
    let after = Server::serve(async move |mut door: Door| {
        let mut peer = door.next().await;
        peer.introduce(&node).await;
        peer.answer(READ_SLOT, single_row(&[None, None, None])).await;
        let made = single_row(&[Some("walhold"), Some("0/0"), None, None]);
        peer.answer("CREATE_REPLICATION_SLOT \"walhold\" PHYSICAL (RESERVE_WAL)", made).await;
        peer.answer(READ_SLOT, slot_at(START)).await;
        peer.stream(true, START, 1).await;
        peer.send_log(&sent, START, sent.at()).await;
        peer.flushed(sent.at()).await;
        stop.cancel();
        peer.flushed(sent.at()).await;
        peer.end_by_client().await;
    })
    .await;
    let both = format!("host=127.0.0.1,127.0.0.1 port={},{}", before.port(), after.port());
    let port = before.port().to_owned();
    let ran = client.run_with(after, &both).await;
    ran.stopped();
    let left: Vec<_> = ran.events.iter().filter(|event| matches!(event, Event::SlotLeft { .. })).collect();
    let [Event::SlotLeft { slot: name, target }] = left[..] else { panic!("{:?}", ran.events) };
    assert!(*name == slot() && target.contains(&port), "{name} at {target}");
    client.assert_holds(1, &log, START, log.at());
}
