//! Stopping in good order.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Failure;

/// A token that the first SIGINT or SIGTERM cancels; the second ends the program at once. Must be
/// called in a runtime.
pub(super) fn stop() -> Result<CancellationToken, Failure> {
    twice(false).map(first_of)
}

/// The same, at the end of the terminal as well, unless the program was told to outlive it (`nohup`).
pub(super) fn stop_at_hangup_too() -> Result<CancellationToken, Failure> {
    twice(!outlives_terminal()).map(first_of)
}

/// The first token; the second ends the program.
fn first_of((stop, again): (CancellationToken, CancellationToken)) -> CancellationToken {
    tokio::spawn(async move {
        again.cancelled().await;
        std::process::exit(1);
    });
    stop
}

/// The same where something must be cleaned up even then: the second token is cancelled by the second
/// signal. The end of the terminal counts as well, unless the program was told to outlive it (`nohup`).
pub(super) fn stop_and_hurry() -> Result<(CancellationToken, CancellationToken), Failure> {
    twice(!outlives_terminal())
}

fn twice(hangup: bool) -> Result<(CancellationToken, CancellationToken), Failure> {
    let cannot = |e: std::io::Error| Failure::error(format!("cannot listen for signals: {e}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut hangup = hangup.then(|| signal(SignalKind::hangup())).transpose().map_err(cannot)?;
    let tokens = (CancellationToken::new(), CancellationToken::new());
    let (first, second) = tokens.clone();
    tokio::spawn(async move {
        for token in [first, second] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                Some(Some(())) = async { Some(hangup.as_mut()?.recv().await) } => {}
            }
            info!("told to stop");
            token.cancel();
        }
    });
    Ok(tokens)
}

/// Whether SIGHUP, the first of the signals, is ignored.
fn outlives_terminal() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}
