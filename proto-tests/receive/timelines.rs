//! Timelines.

use super::*;

#[tokio::test]
async fn a_timelines_end_is_followed_with_the_histories_first() {
    let log = log_to(START + SIZE + 400_000);
    let (fork, switch) = forked(&log, START + SIZE + 300_000, 3);
    let mut client = Client::with_slot();
    let histories = [format!("1\t{}\tx\n", text(SIZE)), format!("1\t{}\tx\n2\t{}\ty\n", text(SIZE), text(switch))];
    let (folder, told) = (client.folder.path().to_owned(), histories.clone());
    let (old, new, node) = (log.clone(), fork.clone(), Node { tli: 2, ..Node::with(&log) });
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            let at = single_row(&[Some("physical"), Some(&text(START)), Some("2")]);
            peer.answer(READ_SLOT, at).await;
            peer.answer("TIMELINE_HISTORY 2", history(&told[0])).await;
            peer.expect_command(&start_command(true, START, 2)).await;
            assert_eq!(fs::read_to_string(folder.join("00000002.history")).unwrap(), told[0]);
            peer.send(copy_both()).await;
            peer.status().await;
            // The server had sent more than the new timeline shares.
            peer.send_log(&old, START, old.at()).await;
            peer.flushed(old.at()).await;
            fs::remove_file(folder.join("00000002.history")).unwrap();
            peer.end_timeline(3, switch).await;
            peer.answer("TIMELINE_HISTORY 3", history(&told[1])).await;
            peer.answer("TIMELINE_HISTORY 2", history(&told[0])).await;
            peer.expect_command(&start_command(true, START + SIZE, 3)).await;
            // Before the first byte of the new timeline.
            assert_eq!(fs::read_to_string(folder.join("00000002.history")).unwrap(), told[0]);
            assert_eq!(fs::read_to_string(folder.join("00000003.history")).unwrap(), told[1]);
            peer.send(copy_both()).await;
            peer.status().await;
            // A slot is not moved back by what is sent a second time.
            peer.send_log(&new, START + SIZE, switch - 1).await;
            peer.expect_no_flush().await;
            peer.send_log(&new, switch - 1, new.at()).await;
            peer.flushed(new.at()).await;
            stop.cancel();
            peer.flushed(new.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    let fork_at = Pos::new(tli(3), Lsn::new(switch));
    let told: Vec<_> = ran.events.iter().filter(|e| matches!(e, Event::TailKept(_) | Event::Switched(_))).collect();
    assert!(matches!(told[..], [Event::TailKept(tail), Event::Switched(at)]
        if tail.name() == "000000020000000000000004" && *at == fork_at));
    client.assert_holds(2, &log, START, log.at());
    client.assert_holds(3, &fork, START + SIZE, fork.at());
    assert_eq!(
        client.names(),
        [
            "00000002.history",
            "000000020000000000000003",
            "000000020000000000000004.partial",
            "00000003.history",
            "000000030000000000000004",
            "000000030000000000000005.partial",
        ]
    );
}

/// The server was promoted after it had said where it stands.
#[tokio::test]
async fn a_timeline_that_has_ended_already_is_followed_without_a_copy() {
    let log = log_to(START + 300_000);
    let (fork, switch) = forked(&log, START + 250_000, 2);
    let mut client = Client::new().holding(&log, START + 200_000);
    let (new, node) = (fork.clone(), Node::with(&log));
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer(&start_command(false, START, 1), next_timeline(2, switch)).await;
            peer.answer("TIMELINE_HISTORY 2", history(&format!("1\t{}\tx\n", text(switch)))).await;
            peer.stream(false, START, 2).await;
            peer.send_log(&new, START, new.at()).await;
            peer.flushed(new.at()).await;
            stop.cancel();
            peer.flushed(new.at()).await;
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
    client.assert_holds(1, &log, START, START + 200_000);
    client.assert_holds(2, &fork, START, fork.at());
}

/// Timeline and position of the end of what was held, and of the fork below it.
fn fork_passed(event: &Event) -> Option<((u32, u64), (u32, u64))> {
    let plain = |pos: &Pos| (pos.tli().get(), pos.lsn().get());
    match event {
        Event::ForkPassed { held, fork } => Some((plain(held), plain(fork))),
        _ => None,
    }
}

/// The server was promoted while we were away, behind or before what is held.
#[tokio::test]
async fn a_server_on_a_later_timeline_is_followed() {
    let log = log_to(START + SIZE + 400_000);
    let (fork, switch) = forked(&log, START + SIZE + 300_000, 2);
    for held in [200_000, SIZE + 200_000, SIZE + 400_000] {
        let mut client = Client::new().holding(&log, START + held);
        let (old, new, node) = (log.clone(), fork.clone(), Node { tli: 2, ..Node::with(&fork) });
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                let content = history(&format!("1\t{}\tx\n", text(switch)));
                peer.answer("TIMELINE_HISTORY 2", content.clone()).await;
                let from = START + held / SIZE * SIZE;
                peer.stream(false, from, 1).await;
                peer.send_log(&old, from, switch).await;
                peer.end_timeline(2, switch).await;
                peer.answer("TIMELINE_HISTORY 2", content).await;
                peer.stream(false, START + SIZE, 2).await;
                peer.send_log(&new, START + SIZE, new.at()).await;
                peer.flushed(new.at()).await;
                stop.cancel();
                peer.flushed(new.at()).await;
                peer.end_by_client().await;
            })
            .await;
        ran.stopped();
        client.assert_holds(1, &log, START, switch.max(START + held));
        client.assert_holds(2, &fork, START + SIZE, fork.at());
        match ran.events.iter().filter_map(fork_passed).collect::<Vec<_>>()[..] {
            [] => assert!(START + held <= switch),
            // Up to the last whole record.
            [(old, fork)] => assert!(fork == (2, switch) && old.0 == 1 && (switch + 1..=START + held).contains(&old.1)),
            ref more => panic!("{more:?}"),
        }
    }
}

/// Unless the operator says that it is the timeline to go on with.
#[tokio::test]
async fn a_fork_far_below_what_is_held_is_divergence() {
    let end = START + 18 * SIZE + 400_000;
    let log = log_to(end + SIZE);
    let (fork, switch) = forked(&log, START + SIZE + 300_000, 2);
    let content = history(&format!("1\t{}\tx\n", text(switch)));
    let node = Node { tli: 2, ..Node::with(&fork) };
    for (follow, followed) in [(None, false), (Some(tli(3)), false), (Some(tli(2)), true)] {
        let mut client = Client::new().holding(&log, end);
        client.options.follow = follow;
        let before = client.names();
        let (content, new) = (content.clone(), fork.clone());
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer("TIMELINE_HISTORY 2", content).await;
                if followed {
                    peer.stream(false, START + SIZE, 2).await;
                    peer.send_log(&new, START + SIZE, new.at()).await;
                    peer.flushed(new.at()).await;
                    stop.cancel();
                    peer.flushed(new.at()).await;
                    peer.end_by_client().await;
                } else {
                    peer.expect_end().await;
                }
            })
            .await;
        if followed {
            ran.stopped();
            client.assert_holds(2, &fork, START + SIZE, fork.at());
            assert_eq!(ran.events.iter().filter_map(fork_passed).count(), 1);
            assert!(before.iter().all(|name| client.path(name).exists()));
            continue;
        }
        let error = ran.error();
        let ReceiveError::ForkedBefore { from, to, at, held } = error else { panic!("{error}") };
        assert_eq!((from, to, at.get()), (tli(1), tli(2), switch));
        assert!(held.get() > switch + 16 * SIZE);
        assert_eq!(client.names(), before);
    }
}

#[tokio::test]
async fn another_past_is_divergence() {
    let log = log_to(START + 400_000);
    // The server is on a timeline that the archive has left, or on one that never was on ours.
    let mut client = Client::new().holding(&log, START + 200_000);
    let before = client.names();
    let node = Node { tli: 3, ..Node::with(&log) };
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            peer.answer("TIMELINE_HISTORY 3", history(&format!("2\t{}\tx\n", text(START)))).await;
            peer.answer("TIMELINE_HISTORY 2", history(&format!("1\t{}\tx\n", text(START)))).await;
        })
        .await;
    let error = ran.error();
    assert!(
        matches!(error, ReceiveError::OtherHistory { held, server } if (held, server) == (tli(1), tli(3))),
        "{error}"
    );
    assert_eq!(client.names(), before);
}

#[tokio::test]
async fn a_history_that_cannot_be_read_or_contradicts_the_server_is_refused() {
    let log = log_to(START + 400_000);
    let (_, switch) = forked(&log, START + 300_000, 2);
    for content in ["", "1\tnowhere\tx\n", "1\t0/10\tx\n", "2\t0/10\tx\n"] {
        let mut client = Client::new();
        let (old, node) = (log.clone(), Node::with(&log));
        let ran = client
            .against(async move |mut door, _| {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.stream(false, START, 1).await;
                peer.send_log(&old, START, switch).await;
                peer.flushed(switch).await;
                peer.end_timeline(2, switch).await;
                peer.answer("TIMELINE_HISTORY 2", history(content)).await;
                peer.expect_end().await;
            })
            .await;
        let error = ran.error();
        assert!(matches!(error, ReceiveError::NextTimeline(next) if next == tli(2)), "{error}");
        assert_eq!(client.names(), ["000000010000000000000003.partial"], "{content:?}");
    }
}

/// Two servers that were promoted from the same one both number their timeline 2.
#[tokio::test]
async fn another_past_of_a_timeline_that_is_held_is_divergence() {
    let log = log_to(START + SIZE + 300_000);
    let mut client = Client::new().holding_on(2, &log, START + 200_000);
    fs::write(client.path("00000002.history"), format!("1\t{}\tours\n", text(START - 1000))).unwrap();
    let before = client.files();
    let node = Node { tli: 3, ..Node::with(&log) };
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            let (theirs, at) = (format!("1\t{}\ttheirs\n", text(START - 2000)), text(START + SIZE));
            peer.answer("TIMELINE_HISTORY 3", history(&format!("{theirs}2\t{at}\tx\n"))).await;
            peer.answer("TIMELINE_HISTORY 2", history(&theirs)).await;
            peer.expect_end().await;
        })
        .await;
    let error = ran.error();
    assert!(
        matches!(error, ReceiveError::OtherHistory { held, server } if (held, server) == (tli(2), tli(3))),
        "{error}"
    );
    assert!(client.files() == before);
}

/// The folder of a receiver that did not keep history files.
#[tokio::test]
async fn a_history_that_the_folder_lacks_is_fetched_before_more_wal() {
    let log = log_to(START + 300_000);
    let mut client = Client::new().holding_on(2, &log, START + 200_000);
    let (folder, node) = (client.folder.path().to_owned(), Node { tli: 2, ..Node::with(&log) });
    let ran = client
        .against(async move |mut door, stop| {
            let mut peer = door.next().await;
            peer.introduce(&node).await;
            let content = format!("1\t{}\tx\n", text(START - 1000));
            peer.answer("TIMELINE_HISTORY 2", history(&content)).await;
            peer.expect_command(&start_command(false, START, 2)).await;
            assert_eq!(fs::read_to_string(folder.join("00000002.history")).unwrap(), content);
            peer.send(copy_both()).await;
            peer.status().await;
            stop.cancel();
            peer.end_by_client().await;
        })
        .await;
    ran.stopped();
}
