//! The slot is taken.

use super::*;

#[tokio::test]
async fn without_retry_a_slot_that_is_in_use_is_an_error() {
    let mut client = Client::with_slot();
    client.options.retry = None;
    let ran = client
        .against(async move |mut door, _| {
            let mut peer = door.next().await;
            peer.introduce(&NODE).await;
            peer.answer(READ_SLOT, slot_at(START)).await;
            peer.answer(&start_command(true, START, 1), in_use()).await;
            peer.expect_end().await;
        })
        .await;
    let ReceiveError::Session(error) = ran.error() else { panic!("another error") };
    assert_eq!(error.condition(), Some(Condition::InUse));
}

/// A receiver that was cut off finds its slot held by its last connection, until the server gives
/// that up. One line tells it; whoever holds it longer is somebody else.
#[tokio::test]
async fn a_slot_in_use_is_waited_for_as_long_as_the_server_would_wait() {
    let mut client = Client::with_slot();
    client.options.retry = Some(Retry { first: Duration::from_millis(100), limit: Duration::from_millis(500) });
    let ran = client
        .against(async move |mut door, _| {
            let begun = std::time::Instant::now();
            // 2 s more than the server's own limit.
            while begun.elapsed() < Duration::from_millis(2800) {
                let mut peer = door.next().await;
                peer.introduce(&Node { timeout: "1s", ..NODE }).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.answer(&start_command(true, START, 1), in_use()).await;
                peer.expect_end().await;
            }
            // Perhaps once more.
            while let Ok(mut peer) = timeout(Duration::from_secs(1), door.next()).await {
                peer.introduce(&Node { timeout: "1s", ..NODE }).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.answer(&start_command(true, START, 1), in_use()).await;
                peer.expect_end().await;
            }
        })
        .await;
    assert_eq!(ran.told(), 1);
    let ReceiveError::Session(error) = ran.error() else { panic!("another error") };
    assert_eq!(error.condition(), Some(Condition::InUse));
}

/// The server may not have noticed yet that our last connection is gone, whether or not anything
/// came over it.
#[tokio::test]
async fn a_slot_that_our_lost_connection_holds_is_waited_for() {
    let log = log_to(START + 200_000);
    for sent in [0, 100_000] {
        let mut client = Client::with_slot();
        let (log, node) = (log.clone(), Node::with(&log));
        let ran = client
            .against(async move |mut door, stop| {
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.stream(true, START, 1).await;
                peer.send_log(&log, START, START + sent).await;
                drop(peer);
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.answer(&start_command(true, START, 1), in_use()).await;
                peer.expect_end().await;
                let mut peer = door.next().await;
                peer.introduce(&node).await;
                peer.answer(READ_SLOT, slot_at(START)).await;
                peer.stream(true, START, 1).await;
                stop.cancel();
                peer.status().await;
                peer.end_by_client().await;
            })
            .await;
        ran.stopped();
        assert_eq!(ran.disconnections(), 2);
    }
}
