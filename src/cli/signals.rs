//! Stopping in good order.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Failure;

/// A token that the first SIGINT or SIGTERM cancels; the second ends the program at once. Must be
/// called in a runtime.
pub(super) fn stop() -> Result<CancellationToken, Failure> {
    let cannot = |e: std::io::Error| Failure::error(format!("cannot listen for signals: {e}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        for round in 0..2 {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if round == 0 {
                info!("told to stop");
                token.cancel();
            }
        }
        std::process::exit(1);
    });
    Ok(stop)
}
