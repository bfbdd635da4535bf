//! The program under the name `pg_receivewal`: PostgreSQL 18's flags, messages and exit codes over
//! walhold's receiver. A skin: no engine knows of it.

mod options;
mod words;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use super::pg_words::{self, Said, slot};
use super::signals;
use crate::archive::Archive;
use crate::codec::{Codec, Packing};
use crate::connection::Conninfo;
use crate::disk::{Disk, Real};
use crate::protocol::{Condition, Retention, SlotKind, command};
use crate::receive::{Finished, Retry, Slot, Upstream, receive};
use options::{Asked, Options, Receive, Work};
use words::Teller;

/// The name that this is called by, and that its messages begin with.
const NAME: &str = "pg_receivewal";

/// How long received WAL waits for a sync without `--synchronous`.
const SYNC_INTERVAL: Duration = Duration::from_millis(100);

/// Whether the program was called by this name.
pub(super) fn is_meant(program: &OsString) -> bool {
    Path::new(program).file_name().is_some_and(|name| name == NAME)
}

/// Runs it; `arguments` begin with the name.
pub(super) fn run(arguments: Vec<OsString>) -> ExitCode {
    match Asked::read(arguments) {
        Ok(Asked::Help) => pg_words::answer(NAME, words::HELP),
        Ok(Asked::Version) => pg_words::answer(NAME, &pg_words::version(NAME)),
        Ok(Asked::Work(options)) => work(&options),
        Err(refusal) => {
            refusal.print(NAME);
            ExitCode::FAILURE
        }
    }
}

fn work(options: &Options) -> ExitCode {
    pg_words::start_log(NAME);
    let done = super::runtime().map_err(Said::from).and_then(|runtime| runtime.block_on(options.run()));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(said) => {
            said.print(NAME);
            ExitCode::FAILURE
        }
    }
}

impl Options {
    async fn run(&self) -> Result<(), Said> {
        match &self.work {
            Work::CreateSlot { name, if_not_exists } => self.create_slot(name, *if_not_exists).await,
            Work::DropSlot { name } => self.drop_slot(name).await,
            Work::Receive(wanted) => self.receive(wanted).await,
        }
    }

    /// The slot keeps no WAL before the first position is reported; that is how these slots are.
    async fn create_slot(&self, name: &str, if_not_exists: bool) -> Result<(), Said> {
        let (_, mut upstream, _) = self.connect().await?;
        let name = slot(name).map_err(Said::new)?;
        self.tell(&format!("creating replication slot \"{name}\""));
        let (kind, retention) = (SlotKind::Permanent, Retention::FromFirstReport);
        let sent = command::create_slot(upstream.session.server_version(), &name, kind, retention);
        match upstream.session.create_slot(&name, kind, retention).await {
            Err(e) if if_not_exists && e.condition() == Some(Condition::Exists) => Ok(()),
            made => made.map_err(|e| Said::refused(&sent, &e)),
        }
    }

    async fn drop_slot(&self, name: &str) -> Result<(), Said> {
        let (_, mut upstream, _) = self.connect().await?;
        let name = slot(name).map_err(Said::new)?;
        self.tell(&format!("dropping replication slot \"{name}\""));
        let dropped = upstream.session.drop_slot(&name).await;
        dropped.map_err(|e| Said::refused(&command::drop_slot(&name), &e))
    }

    async fn receive(&self, wanted: &Receive) -> Result<(), Said> {
        let disk: Arc<dyn Disk> = Arc::new(if wanted.no_sync { Real::without_syncs() } else { Real::new() });
        // Before a server is asked for anything.
        disk.list(&wanted.directory).map_err(|e| words::no_directory(&wanted.directory, &e))?;
        let slot = wanted.slot.as_deref().map(slot).transpose().map_err(Said::new)?;
        let (conninfo, upstream, application_name) = self.connect().await?;
        let stop = signals::stop()?;
        let _lock = disk.lock_dir(&wanted.directory)?;
        let (size, system_id, mode) = (upstream.segment_size, Some(upstream.system_id), upstream.file_mode);
        let archive = Archive::new(wanted.directory.clone(), Arc::clone(&disk), size, system_id, mode);
        let archive = match wanted.compress {
            Some(packing) => archive.compressed_live(packing),
            None => archive,
        };
        let options = crate::receive::Options {
            conninfo,
            application_name,
            slot: slot.map_or(Slot::None, Slot::Existing),
            synchronous: wanted.synchronous,
            sync_interval: SYNC_INTERVAL,
            status_interval: wanted.status_interval,
            end: wanted.end,
            retry: (!wanted.no_loop).then(Retry::default),
            follow: None,
            accept_gap: None,
            island: None,
            may_pass_over: true,
        };
        words::warn_of_sizes(&archive, &*disk)?;
        let mut teller =
            Teller::new(self.verbose, wanted.no_loop, &archive, wanted.compress.map_or(Codec::Plain, Packing::codec));
        let finished = receive(upstream, &archive, &options, &stop, &mut |event| teller.tell(event)).await;
        match finished {
            Ok(Finished::EndPosition) => teller.stopped(),
            Ok(Finished::Stopped) => teller.interrupted(),
            Err(e) => return Err(teller.failed(e)),
        }
        Ok(())
    }

    async fn connect(&self) -> Result<(Conninfo, Upstream, String), Said> {
        Ok(self.connection.connect_asking(NAME, |_| "Password: ".to_owned()).await?)
    }

    fn tell(&self, line: &str) {
        if self.verbose {
            words::line(line);
        }
    }
}
