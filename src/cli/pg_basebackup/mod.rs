//! `walhold basebackup`, which is also the program under the name `pg_basebackup`: PostgreSQL 18's flags, messages and
//! exit codes over walhold's base backups. A skin: no engine knows of it.

mod options;
mod progress;
mod rate;
mod values;
mod words;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use super::pg_words::{self, Said};
use super::{Exit, signals};
use crate::basebackup::{self, Destination, Sync, basebackup};
use crate::connection::Conninfo;
use crate::disk::{Disk, Real};
use crate::protocol::ServerVersion;
use crate::receive::Upstream;
use options::{Asked, Options};
use words::Teller;

/// What it was called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Name {
    /// `pg_basebackup`: any error ends it with 1.
    Stock,
    /// `walhold basebackup`: it has walhold's exit codes.
    Command,
}

impl Name {
    /// What its messages begin with.
    const fn text(self) -> &'static str {
        match self {
            Self::Stock => "pg_basebackup",
            Self::Command => "walhold basebackup",
        }
    }

    /// What the server sees, unless it is told otherwise.
    const fn application(self) -> &'static str {
        match self {
            Self::Stock => "pg_basebackup",
            Self::Command => "walhold_basebackup",
        }
    }

    fn failed(self, exit: Exit) -> ExitCode {
        match self {
            Self::Stock => ExitCode::FAILURE,
            Self::Command => exit.into(),
        }
    }
}

/// Whether the program was called by this name.
pub(super) fn is_meant(program: &OsString) -> bool {
    Path::new(program).file_name().is_some_and(|name| name == Name::Stock.text())
}

/// Runs it under its own name; `arguments` begin with that.
pub(super) fn run(arguments: Vec<OsString>) -> ExitCode {
    run_as(Name::Stock, arguments)
}

/// Runs `walhold basebackup`; `arguments` are what follows.
pub(super) fn run_command(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    run_as(Name::Command, std::iter::once(Name::Command.text().into()).chain(arguments).collect())
}

fn run_as(name: Name, arguments: Vec<OsString>) -> ExitCode {
    match Asked::read(arguments) {
        Ok(Asked::Help) => pg_words::answer(name.text(), &words::help(name.text())),
        Ok(Asked::Version) => pg_words::answer(name.text(), &pg_words::version(name.text())),
        Ok(Asked::Backup(options)) => {
            pg_words::start_log(name.text());
            match super::runtime().map_err(Said::from).and_then(|runtime| runtime.block_on(options.run(name))) {
                Ok(()) => ExitCode::SUCCESS,
                Err(said) => {
                    said.print(name.text());
                    name.failed(said.exit())
                }
            }
        }
        Err(refusal) => {
            refusal.print(name.text());
            name.failed(Exit::Usage)
        }
    }
}

impl Options {
    async fn run(self, name: Name) -> Result<(), Said> {
        let prompt = |_: &Conninfo| "Password: ".to_owned();
        let (conninfo, upstream, application_name) = self.connection.connect_asking(name.application(), prompt).await?;
        self.check(upstream.session.server_version())?;
        let stop = signals::stop_at_hangup_too()?;
        let mut teller = Teller::new(name.text(), &self);
        let options = self.engines(&upstream, conninfo, application_name);
        let disk: Arc<dyn Disk> = Arc::new(match options.sync {
            Sync::None => Real::without_syncs(),
            Sync::Fsync | Sync::Syncfs => Real::new(),
        });
        match basebackup(disk, upstream, &options, &stop, &mut |event| teller.tell(event)).await {
            Ok(done) => {
                teller.done(&done);
                Ok(())
            }
            Err(e) => Err(teller.failed(e)),
        }
    }

    /// What only a server's version tells.
    fn check(&self, version: ServerVersion) -> Result<(), Said> {
        let target = matches!(self.destination, Destination::Server(_));
        let refused = |message: &str| Err(Said::new(message));
        if self.incremental.is_some() && version.major() < 17 {
            return refused("server does not support incremental backup");
        }
        if target && !version.is_15_or_later() {
            return refused("backup targets are not supported by this server version");
        }
        if target && self.recovery {
            return refused("recovery configuration cannot be written when a backup target is used");
        }
        if self.server_compression.is_some() && !version.is_15_or_later() {
            return refused("server does not support server-side compression");
        }
        let packed = self.server_compression.as_ref().is_some_and(|compression| compression.method().is_some());
        if packed && self.manifest.is_some() && matches!(self.destination, Destination::StandardOutput { .. }) {
            return Err(Said::new("cannot inject manifest into a compressed tar file").hint(Some(
                "Use client-side compression, write to a directory rather than standard output, or use --no-manifest."
                    .to_owned(),
            )));
        }
        Ok(())
    }

    fn engines(self, upstream: &Upstream, conninfo: Conninfo, application_name: String) -> basebackup::Options {
        basebackup::Options {
            // The WAL must come from the server that is copied.
            conninfo: conninfo.at(&upstream.session),
            application_name,
            label: self.label,
            checkpoint: self.checkpoint,
            max_rate: self.max_rate,
            destination: self.destination,
            wal: self.wal,
            status_interval: self.status_interval,
            server_compression: self.server_compression,
            manifest: self.manifest,
            incremental: self.incremental,
            verify_checksums: self.verify_checksums,
            verify: self.verify,
            estimate_size: self.estimate_size,
            recovery: self.recovery,
            sync: self.sync,
            clean: self.clean,
        }
    }
}
