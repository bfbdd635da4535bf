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
    let mut told = Instant::now();
    while archive.room().is_ok_and(|room| room < archive.size().bytes()) {
        if told.elapsed() >= STILL_FULL {
            told = Instant::now();
            tell(Event::StillFull);
        }
        if !rest(ROOM_AGAIN, stop).await {
            return false;
        }
    }
    true
}
