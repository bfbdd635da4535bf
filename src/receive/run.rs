//! Receiving for as long as it is wanted: connect, go on where the archive ends, stream, and after
//! whatever ends a connection decide whether to go on.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::doubts::{Doubts, Outlook, is_full};
use super::retry::{Setback, random};
use super::session::Connected;
use super::{Event, Finished, Options, ReceiveError, Upstream};
use crate::archive::Archive;

/// How often a full disk is looked at.
const ROOM_AGAIN: Duration = Duration::from_secs(5);
/// How often it is told that it is still full.
const STILL_FULL: Duration = Duration::from_secs(300);

/// Receives until the end that `options` names, until `stop`, or until it cannot go on. The archive
/// must be locked by the caller.
///
/// # Errors
/// When going on needs the operator. Everything that was reported as durable is so.
pub async fn receive(
    first: Upstream,
    archive: &Archive,
    options: &Options,
    stop: &CancellationToken,
    tell: &mut impl FnMut(Event),
) -> Result<Finished, ReceiveError> {
    archive.sweep()?;
    let retry = options.retry.unwrap_or_default();
    let mut doubts = Doubts::default();
    let mut upstream = Some(first);
    let mut conninfo = options.conninfo.clone();
    loop {
        let mut target = None;
        let round = async {
            let mut upstream = match upstream.take() {
                Some(first) => first,
                None => {
                    let connecting = Upstream::connect(&conninfo, &options.application_name);
                    let Some(again) = stop.run_until_cancelled(connecting).await else {
                        return Ok(Some(Finished::Stopped));
                    };
                    again?
                }
            };
            target = Some(upstream.session.target().to_owned());
            let (upstream, doubts) = (&mut upstream, &mut doubts);
            Box::pin(Connected { upstream, archive, options, doubts, stop, tell }.receive()).await
        };
        let error = match round.await {
            Ok(Some(finished)) => return Ok(finished),
            Ok(None) => ReceiveError::Ended,
            Err(error) => error,
        };
        if stop.is_cancelled() && error.is_of_connection() {
            return Ok(Finished::Stopped);
        }
        let now = Instant::now();
        let asked_again = doubts.may_ask_again(&error, archive, tell);
        let unfit = doubts.pass_over(&error, target, &options.conninfo);
        let outlook = if unfit.passes { Outlook::Passes } else { doubts.outlook(now, &error) };
        let elsewhere = unfit.elsewhere;
        let passed_over = elsewhere.is_some().then(|| doubts.passed_over.last().cloned()).flatten();
        conninfo = elsewhere.unwrap_or_else(|| options.conninfo.clone());
        if !asked_again && (options.retry.is_none() || outlook == Outlook::Final) {
            return Err(error);
        }
        let lasts = outlook == Outlook::Lasts;
        let Setback { failures, away, news } = doubts.outage.failed(now, &error.to_string(), lasts);
        let wait = retry.wait(failures, random());
        let full = is_full(&error);
        // What does not verify and is asked for again has been told as that.
        if !(asked_again && matches!(error, ReceiveError::NotValid { .. })) {
            tell(Event::Disconnected { error, lasts, news, away, wait, passed_over });
        }
        if !rest(wait, stop).await || full && !room(archive, stop, tell).await {
            return Ok(Finished::Stopped);
        }
    }
}

/// Waits; false if told to stop meanwhile.
async fn rest(wait: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(wait) => true,
    }
}

/// After the disk was full, waits until a segment fits again, unless told to stop. A disk that does
/// not say how much room it has is tried again after a while.
async fn room(archive: &Archive, stop: &CancellationToken, tell: &mut impl FnMut(Event)) -> bool {
    let mut told = tokio::time::Instant::now();
    while archive.room().is_ok_and(|room| room < archive.size().bytes()) {
        if told.elapsed() >= STILL_FULL {
            told = tokio::time::Instant::now();
            tell(Event::StillFull);
        }
        if !rest(ROOM_AGAIN, stop).await {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::disk::simulated::{Call, Fault};
    use crate::disk::{BLOCK, Disk, Simulated};
    use crate::wal::SegmentSize;

    const SIZE: u64 = 1 << 20;

    /// An archive on a disk on which one segment less a byte fits.
    fn full() -> (Simulated, Archive) {
        let disk = Simulated::new(BLOCK);
        let dir = PathBuf::from("/wal");
        let _ = disk.make_dir(&dir, 0o700).unwrap();
        disk.set_capacity(Some(SIZE - 1));
        let archive = Archive::new(dir, Arc::new(disk.clone()), SegmentSize::new(SIZE).unwrap(), None, 0o600);
        (disk, archive)
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_disk_is_waited_for_and_told_of_every_few_minutes() {
        let (disk, archive) = full();
        let begun = tokio::time::Instant::now();
        let mut told = Vec::new();
        let mut tell = |event| {
            assert!(matches!(event, Event::StillFull), "{event:?}");
            told.push(begun.elapsed());
            if told.len() == 3 {
                disk.set_capacity(Some(SIZE));
            }
        };
        assert!(room(&archive, &CancellationToken::new(), &mut tell).await);
        assert_eq!(told.len(), 3);
        let late = |told: &Duration, n: u32| *told - STILL_FULL * n;
        assert!((1..).zip(&told).all(|(n, told)| late(told, n) < ROOM_AGAIN * n), "{told:?}");
        assert!(begun.elapsed() <= told[2] + 2 * ROOM_AGAIN);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_wait_for_room() {
        let (_disk, archive) = full();
        let stop = CancellationToken::new();
        let mut told = 0;
        let mut tell = |_| {
            told += 1;
            stop.cancel();
        };
        assert!(!room(&archive, &stop, &mut tell).await);
        assert_eq!(told, 1);
    }

    #[tokio::test]
    async fn a_disk_that_does_not_say_how_full_it_is_is_tried() {
        let (disk, archive) = full();
        disk.fail(Call::Room, 1, Fault::Io);
        assert!(room(&archive, &CancellationToken::new(), &mut |event| panic!("{event:?}")).await);
    }
}
