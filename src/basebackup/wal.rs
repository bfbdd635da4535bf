//! The WAL of a base backup: streamed over a second connection while the files are copied.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::{BaseBackupError as Error, Options, StreamSlot};
use crate::archive::{Archive, Durable, EndOfBackup, WalName};
use crate::connection::Conninfo;
use crate::disk::Disk;
use crate::receive::{
    Event as ReceiveEvent, Finished, Options as ReceiveOptions, ReceiveError, Slot, Upstream, receive,
};
use crate::wal::{HistoryFile, Lsn, Pos};

/// Received WAL waits no longer for a sync.
const SYNC: Duration = Duration::from_millis(50);
/// After the copy, how long nothing may come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A stream on its way into a directory.
pub(super) struct Wal {
    archive: Archive,
    disk: Arc<dyn Disk>,
    end: CancellationToken,
    durable: watch::Receiver<Option<Durable>>,
    task: JoinHandle<Result<Finished, ReceiveError>>,
}

/// The WAL from a backup's start to its end, in a directory.
pub(super) struct ReceivedWal {
    pub(super) dir: PathBuf,
    /// Complete segments.
    pub(super) complete: Vec<String>,
    /// The last one if it is not complete: of full size, under the name of a partial one.
    pub(super) open: Option<String>,
    pub(super) histories: Vec<String>,
}

impl Wal {
    /// Begins to stream into an empty directory from the segment of `start` on. `conninfo` leads to the server
    /// of the backup.
    pub(super) async fn start(
        dir: PathBuf,
        disk: Arc<dyn Disk>,
        conninfo: Conninfo,
        options: &Options,
        system_id: u64,
        start: Pos,
    ) -> Result<Self, Error> {
        let upstream = Upstream::connect(&conninfo, &options.application_name).await?;
        let archive = Archive::new(dir, disk.clone(), upstream.segment_size, Some(system_id), upstream.file_mode);
        upstream.check(&archive)?;
        let slot = match &options.wal {
            super::WalMethod::Stream(StreamSlot::Named { name, .. }) => Slot::Existing(name.clone()),
            // The temporary one belongs to the connection that copies.
            _ => Slot::None,
        };
        let receive_options = ReceiveOptions {
            conninfo,
            application_name: options.application_name.clone(),
            slot,
            synchronous: false,
            sync_interval: SYNC,
            status_interval: options.status_interval,
            end: None,
            retry: None,
            follow: None,
            accept_gap: None,
            island: Some(start),
            may_pass_over: false,
        };
        let end = CancellationToken::new();
        let (tell, durable) = watch::channel(None);
        let (token, into) = (end.clone(), archive.clone());
        let task = tokio::spawn(async move {
            let mut told = |event| {
                if let ReceiveEvent::Durable(durable) = event {
                    tell.send_replace(Some(durable));
                }
            };
            receive(upstream, &into, &receive_options, &token, &mut told).await
        });
        Ok(Self { archive, disk, end, durable, task })
    }

    /// Waits until the stream ends, which it does only when it cannot go on. May be cancelled.
    pub(super) async fn failed(&mut self) -> Error {
        match (&mut self.task).await {
            Ok(Err(e)) => e.into(),
            Ok(Ok(_)) => ReceiveError::Ended.into(),
            Err(e) => Error::Thread(std::io::Error::other(e)),
        }
    }

    /// Waits until all up to `stop` has come, ends the stream, and reads every record from `start` on.
    pub(super) async fn complete(mut self, start: Pos, stop: Pos, end: EndOfBackup) -> Result<ReceivedWal, Error> {
        self.reach(stop).await?;
        self.end.cancel();
        match (&mut self.task).await {
            Ok(ended) => drop(ended?),
            Err(e) => return Err(Error::Thread(std::io::Error::other(e))),
        }
        let archive = self.archive.clone();
        let proof = spawn_blocking(move || archive.prove(start.lsn(), stop, end)).await;
        let proof = proof.map_err(|e| Error::Thread(std::io::Error::other(e)))??;
        self.received(proof.segments(), stop)
    }

    async fn reach(&mut self, stop: Pos) -> Result<(), Error> {
        let mut reached = Lsn::ZERO;
        let mut since = Instant::now();
        loop {
            let now = self.durable.borrow_and_update().map(Durable::pos);
            let now = now.filter(|pos| pos.tli() == stop.tli()).map_or(Lsn::ZERO, Pos::lsn);
            if now >= stop.lsn() {
                return Ok(());
            }
            if now > reached {
                (reached, since) = (now, Instant::now());
            }
            tokio::select! {
                changed = self.durable.changed() => {
                    if changed.is_err() {
                        return Err(self.failed().await);
                    }
                }
                () = tokio::time::sleep(PATIENCE.saturating_sub(since.elapsed())) => {
                    return Err(Error::WalBehind { wanted: stop.lsn(), reached, waited: PATIENCE });
                }
            }
        }
    }

    fn received(&self, needed: &[crate::wal::Segment], stop: Pos) -> Result<ReceivedWal, Error> {
        let listing = self.archive.list()?;
        let mut received =
            ReceivedWal { dir: self.archive.dir().to_owned(), complete: Vec::new(), open: None, histories: Vec::new() };
        for segment in needed {
            let name = segment.to_string();
            if listing.stored(*segment).complete { received.complete.push(name) } else { received.open = Some(name) }
        }
        self.remove_others(&received)?;
        let route = self.archive.history(stop.tli())?;
        for tli in route.switches().iter().map(|switch| switch.from).chain([stop.tli()]) {
            if self.archive.history_content(tli)?.is_some() {
                received.histories.push(HistoryFile(tli).name());
            }
        }
        Ok(received)
    }

    /// More may have come than is needed.
    fn remove_others(&self, received: &ReceivedWal) -> Result<(), Error> {
        let open = received.open.as_ref().map(|name| format!("{name}.partial"));
        for entry in self.disk.list(self.archive.dir())? {
            let Some(name) = entry.name.to_str() else { continue };
            let needed = received.complete.iter().chain(&open).any(|needed| needed == name);
            if !needed && matches!(WalName::parse(name, self.archive.size()), Some(WalName::Segment { .. })) {
                self.disk.remove(&self.archive.dir().join(name))?;
            }
        }
        Ok(())
    }

    /// Ends the stream; nothing is written any more on return.
    pub(super) async fn close(mut self) {
        self.end.cancel();
        // How it ends changes nothing any more.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.end.cancel();
    }
}
