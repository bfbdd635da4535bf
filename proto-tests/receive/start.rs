//! Where receiving begins.

use super::*;

#[tokio::test]
async fn a_missing_slot_is_made_with_reserved_wal_and_begun_at() {
    let log = log_to(START + 200_000);
    let mut client = Client::new();
    client.options.slot = Slot::Ensured(slot());
    let (sent, node) = (log.clone(), Node { at: START + 3 * SIZE, ..NODE });
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, single_row(&[None, None, None])).await;
            let made = single_row(&[Some("walhold"), Some("0/0"), None, None]);
            peer.answer("CREATE_REPLICATION_SLOT \"walhold\" PHYSICAL (RESERVE_WAL)", made).await;
            peer.answer(READ_SLOT, slot_at(START + 5000)).await;
            peer.stream(true, START, 1).await;
            // A slot is not moved back.
            peer.send_log(&sent, START, START + 4999).await;
            peer.expect_no_flush().await;
            peer.send_log(&sent, START + 4999, sent.at()).await;
            peer.flushed(sent.at()).await;
            stop.cancel();
            peer.flushed(sent.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    assert!(matches!(
        &ran.events[..3],
        [Event::SlotMade(_), Event::Begins(from), Event::Streaming(at)] if from == at && *at == pos(START)
    ));
    client.assert_holds(1, &log, START, log.at());
}

/// Its disk may not be mounted.
#[tokio::test]
async fn an_empty_archive_whose_slot_is_there_already_is_told() {
    let log = log_to(START + 200_000);
    let mut client = Client::new();
    client.options.slot = Slot::Ensured(slot());
    let sent = log.clone();
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&Node::with(&sent)).await;
            peer.answer(READ_SLOT, slot_at(START + 5000)).await;
            peer.stream(true, START, 1).await;
            peer.send_log(&sent, START, sent.at()).await;
            peer.flushed(sent.at()).await;
            stop.cancel();
            peer.flushed(sent.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    let Event::SlotOlder { slot: name, from } = &ran.events[0] else { panic!("{:?}", ran.events) };
    assert_eq!((name, *from), (&slot(), pos(START + 5000)));
}

#[tokio::test]
async fn before_15_the_slot_is_asked_for_in_an_sql_session() {
    let log = log_to(START + 200_000);
    let mut client = Client::new();
    client.options.slot = Slot::Ensured(slot());
    let (sent, node) = (log.clone(), Node { version: "14.24", at: START + 3 * SIZE, ..NODE });
    client.options.synchronous = false;
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            let none = [columns(1), complete("SELECT 0"), ready()].concat();
            door.next().await.answer_slot_query("14.24", none).await;
            let made = single_row(&[Some("walhold"), Some("0/0"), None, None]);
            peer.answer("CREATE_REPLICATION_SLOT \"walhold\" PHYSICAL RESERVE_WAL", made).await;
            door.next().await.answer_slot_query("14.24", single_row(&[Some(&text(START + 5000))])).await;
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

#[tokio::test]
async fn a_slot_that_must_exist_and_does_not_is_an_error() {
    for version in ["17.2", "13.16"] {
        let mut client = Client::with_slot();
        client.options.synchronous = false;
        let ran = client
            .against(async move |mut door, _| {
                let mut peer = door.next().await;
                peer.introduce(&Node { version, ..NODE }).await;
                if version == "17.2" {
                    peer.answer(READ_SLOT, single_row(&[None, None, None])).await;
                } else {
                    let none = [columns(1), complete("SELECT 0"), ready()].concat();
                    door.next().await.answer_slot_query(version, none).await;
                }
                peer.expect_end().await;
            })
            .await;
        assert!(matches!(ran.error(), ReceiveError::NoSlot(name) if name == slot()));
        assert_eq!(client.names(), [""; 0]);
    }
}

/// A server before 15 whose role may replicate and nothing else.
async fn untold(door: &mut Door, at: u64) -> Peer {
    let mut peer = door.next().await;
    peer.introduce(&Node { version: "13.16", at, ..NODE }).await;
    let mut sql = door.next().await;
    sql.expect_startup().await;
    sql.send(error("FATAL", "28000", "no pg_hba.conf entry")).await;
    peer
}

const CREATE_SLOT: &str = "CREATE_REPLICATION_SLOT \"walhold\" PHYSICAL RESERVE_WAL";

/// Another host of the list may have a slot of the same name, which is none of ours.
#[tokio::test]
async fn what_became_of_a_slot_is_asked_at_the_host_that_has_it() {
    const STATUS: &str = "select wal_status from pg_replication_slots where slot_name = 'walhold'";
    let log = log_to(START + 200_000);
    // Away at first, and back when the second connection is made.
    let other = Server::serve(async |mut door: Door| {
        drop(door.next().await);
        let mut peer = door.next().await;
        peer.log_in("17.2").await;
        peer.answer(STATUS, single_row(&[Some("lost")])).await;
    })
    .await;
    let mut client = Client::with_slot();
    let (sent, stop) = (log.clone(), client.stop.clone());
    let ours = Server::serve(async move |mut door: Door| {
        let mut peer = door.next().await;
        peer.introduce(&NODE).await;
        peer.answer(READ_SLOT, single_row(&[Some("physical"), None, None])).await;
        let mut second = door.next().await;
        second.log_in("17.2").await;
        second.answer(STATUS, single_row(&[Some("reserved")])).await;
        peer.stream(true, START, 1).await;
        peer.send_log(&sent, START, sent.at()).await;
        peer.flushed(sent.at()).await;
        stop.cancel();
        peer.flushed(sent.at()).await;
        peer.end_by_client().await;
    })
    .await;
    let both = format!("host=127.0.0.1,127.0.0.1 port={},{}", other.port(), ours.port());
    client.run_with(ours, &both).await.stopped();
    client.assert_holds(1, &log, START, log.at());
}

#[tokio::test]
async fn an_empty_repository_does_not_begin_behind_what_a_slot_may_keep() {
    for slot in [Slot::Existing(slot()), Slot::Ensured(slot())] {
        let mut client = Client::new();
        client.options.synchronous = false;
        client.options.slot = slot.clone();
        let ran = client
            .against(async move |mut door, _| {
                let mut peer = untold(&mut door, START).await;
                if let Slot::Ensured(_) = slot {
                    peer.answer(CREATE_SLOT, refused("42710", "it exists")).await;
                }
                peer.expect_end().await;
            })
            .await;
        assert!(!ran.events.iter().any(|event| matches!(event, Event::SlotMade(_))));
        assert!(matches!(ran.error(), ReceiveError::SlotPosition { .. }));
    }
}

#[tokio::test]
async fn without_sql_an_empty_folder_begins_at_the_server_and_a_slot_made_now_keeps_nothing_else() {
    for (made, may_pass_over) in [(true, false), (true, true), (false, true)] {
        let mut client = Client::new();
        client.options.synchronous = false;
        client.options.slot = Slot::Ensured(slot());
        client.options.may_pass_over = may_pass_over;
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = untold(&mut door, START + SIZE + 5).await;
                let created = single_row(&[Some("walhold"), Some("0/0"), None, None]);
                let answer = if made { created } else { refused("42710", "it exists") };
                peer.answer(CREATE_SLOT, answer).await;
                peer.stream(true, START + SIZE, 1).await;
                stop.cancel();
                peer.end_by_client().await;
            })
            .await;
        ran.stopped();
        let told = |found: fn(&Event) -> bool| ran.events.iter().any(found);
        assert_eq!(told(|event| matches!(event, Event::SlotMade(_))), made);
        assert_eq!(told(|event| matches!(event, Event::PassedOver { .. })), !made);
    }
}

#[tokio::test]
async fn without_sql_what_is_held_is_gone_on_with_and_the_stream_tells_of_a_missing_slot() {
    let log = log_to(START + 2 * SIZE + 300_000);
    for missing in [false, true] {
        let mut client = Client::with_slot().holding(&log, START + SIZE + 300_000);
        client.options.synchronous = false;
        let sent = log.clone();
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = untold(&mut door, sent.at()).await;
                if missing {
                    let none = refused("42704", "replication slot \"walhold\" does not exist");
                    peer.answer(&start_command(true, START + SIZE, 1), none).await;
                    return peer.expect_end().await;
                }
                peer.stream(true, START + SIZE, 1).await;
                peer.send_log(&sent, START + SIZE, sent.at()).await;
                peer.flushed(sent.at()).await;
                stop.cancel();
                peer.end_by_client().await;
            })
            .await;
        if missing {
            assert!(matches!(ran.error(), ReceiveError::NoSlot(name) if name == slot()));
        } else {
            ran.stopped();
            client.assert_holds(1, &log, START, log.at());
        }
    }
}

/// The slot may keep the WAL of a hole, so that is asked for first.
#[tokio::test]
async fn without_sql_a_hole_is_asked_for_before_what_comes_after_it() {
    let log = log_to(START + 3 * SIZE + 300_000);
    let mut client = Client::with_slot().holding(&log, log.at());
    client.options.synchronous = false;
    fs::remove_file(client.path("000000010000000000000004")).unwrap();
    let sent = log.clone();
    let ran = client
        .against(async move |mut door, stop| {
            for _ in 0..2 {
                let mut peer = untold(&mut door, sent.at()).await;
                peer.answer(&start_command(true, START + SIZE, 1), removed()).await;
                peer.expect_end().await;
            }
            let mut peer = untold(&mut door, sent.at()).await;
            peer.stream(true, START + 3 * SIZE, 1).await;
            stop.cancel();
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    assert!(matches!(ran.events[..2], [Event::Begins(_), Event::Filling(_)]), "{:?}", ran.events);
}

#[tokio::test]
async fn an_empty_archive_without_slot_begins_in_the_servers_segment() {
    for client in [Client::new(), Client::with_slot()] {
        let mut client = client;
        let has_slot = client.options.slot != Slot::None;
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&Node { at: START + 100_000, ..NODE }).await;
                if has_slot {
                    // It keeps nothing yet.
                    peer.answer(READ_SLOT, single_row(&[Some("physical"), None, None])).await;
                }
                peer.stream(has_slot, START, 1).await;
                stop.cancel();
                peer.status().await;
                peer.end_by_client().await;
            })
            .await;
        ran.stopped();
    }
}

/// Neither the slot nor the server's position counts when WAL is held.
#[tokio::test]
async fn an_archive_that_holds_wal_goes_on_at_its_own_end() {
    let log = log_to(START + 2 * SIZE + 500_000);
    let mut client = Client::with_slot().holding(&log, START + SIZE + 300_000);
    let (sent, node) = (log.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, slot_at(START + 2 * SIZE)).await;
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
}

#[tokio::test]
async fn an_island_begins_where_it_must_and_is_gone_on_with() {
    let log = log_to(START + 6 * SIZE + 100_000);
    let mut client = Client::new().holding(&log, START + SIZE + 300_000);
    let island = START + 4 * SIZE;
    client.options.island = Some(pos(island + 5000));
    let (sent, node) = (log.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, stop| {
            // What comes next is asked for first; only when it is gone the island begins.
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, START + SIZE, 1).await;
            peer.send(removed()).await;
            peer.expect_end().await;
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, island, 1).await;
            peer.send_log(&sent, island, island + SIZE + 200_000).await;
            peer.flushed(island + SIZE + 200_000).await;
            drop(peer);
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, island + SIZE, 1).await;
            peer.send_log(&sent, island + SIZE, sent.at()).await;
            peer.flushed(sent.at()).await;
            stop.cancel();
            peer.flushed(sent.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    assert!(ran.events.iter().any(|event| matches!(event, Event::AfterHole(_))));
    client.assert_holds(1, &log, START, START + SIZE + 300_000);
    client.assert_holds(1, &log, island, log.at());
}

/// P2: a backup that brought its own WAL must not make a receiver pass over what its slot still keeps.
#[tokio::test]
async fn a_hole_that_the_slot_keeps_the_wal_of_is_filled() {
    let log = log_to(START + 5 * SIZE + 100_000);
    let mut client = Client::with_slot().holding(&log, START + SIZE + 300_000);
    for n in 3..5 {
        let bytes = &log.bytes[(n * SIZE) as usize..((n + 1) * SIZE) as usize];
        fs::write(client.path(&format!("00000001{:016X}", START / SIZE + n)), bytes).unwrap();
    }
    let (sent, node) = (log.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, slot_at(START + SIZE + 200_000)).await;
            peer.stream(true, START + SIZE, 1).await;
            peer.send_log(&sent, START + SIZE, START + 3 * SIZE + 10_000).await;
            // What is held behind the hole is not received again.
            peer.flushed(START + 3 * SIZE).await;
            peer.expect_copy_done().await;
            peer.send_all([copy_done(), complete("START_STREAMING"), complete("START_REPLICATION"), ready()]).await;
            let (system, at) = (node.system.to_string(), text(node.at));
            peer.answer("IDENTIFY_SYSTEM", single_row(&[Some(&system), Some("1"), Some(&at), None])).await;
            peer.stream(true, START + 5 * SIZE, 1).await;
            peer.send_log(&sent, START + 5 * SIZE, sent.at()).await;
            peer.flushed(sent.at()).await;
            stop.cancel();
            peer.flushed(sent.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    assert!(ran.events.iter().any(|event| matches!(event, Event::Filling(_))));
    client.assert_holds(1, &log, START, log.at());
}

/// What is held behind a hole, and does not follow from what fills it, is another past.
#[tokio::test]
async fn a_hole_is_not_joined_to_what_does_not_follow() {
    let log = log_to(START + 5 * SIZE + 100_000);
    let mut client = Client::with_slot().holding(&log, START + SIZE + 300_000);
    let mut bytes = log.bytes[(3 * SIZE) as usize..(4 * SIZE) as usize].to_vec();
    // Behind the page's header.
    bytes[40] ^= 1;
    fs::write(client.path(&format!("00000001{:016X}", START / SIZE + 3)), &bytes).unwrap();
    let (sent, node) = (log.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(READ_SLOT, slot_at(START + SIZE + 200_000)).await;
            peer.stream(true, START + SIZE, 1).await;
            peer.send_log(&sent, START + SIZE, START + 3 * SIZE).await;
            peer.flushes_until_close(START + 3 * SIZE).await;
        })
        .await;
    let error = ran.error();
    assert!(matches!(error, ReceiveError::Diverged(_)), "{error:?}");
    assert!(fs::read(client.path(&format!("00000001{:016X}", START / SIZE + 3))).unwrap() == bytes);
}

/// A server that says nothing does not hold up a stop before the stream begins.
#[tokio::test]
async fn a_stop_is_seen_before_the_stream() {
    for streams in [false, true] {
        let mut client = Client::with_slot();
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&NODE).await;
                if streams {
                    peer.answer(READ_SLOT, slot_at(START)).await;
                    peer.expect_command(&start_command(true, START, 1)).await;
                } else {
                    peer.expect_command(READ_SLOT).await;
                }
                stop.cancel();
                timeout(Duration::from_secs(10), peer.expect_close()).await.expect("a prompt end");
            })
            .await;
        ran.stopped();
        assert_eq!(ran.disconnections(), 0);
    }
}

/// An archive that reaches the island's start goes on at its own end.
#[tokio::test]
async fn an_island_that_the_archive_reaches_is_none() {
    let log = log_to(START + 2 * SIZE);
    let mut client = Client::new().holding(&log, START + SIZE + 300_000);
    client.options.island = Some(pos(START + SIZE + 8));
    let node = Node::with(&log);
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.stream(false, START + SIZE, 1).await;
            stop.cancel();
            peer.status().await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
}
