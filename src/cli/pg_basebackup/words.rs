//! What is said on standard error: pg_basebackup's words where it has some, and plain lines of the same form where it
//! does not. Scripts match these.

use std::path::{Path, PathBuf};

use super::super::pg_words::{self, Said, server, session};
use super::options::Options;
use super::progress::Meter;
use crate::basebackup::{BaseBackupError, Destination, Done, Event, Sync, WalMethod};
use crate::cli::{Exit, Failure};
use crate::connection::Error as SessionError;

/// What `--help` prints.
pub(super) fn help(name: &str) -> String {
    format!(
        "\
{name} takes a base backup: a copy of a running server.

Usage:
  {name} [OPTION]...

Where it goes, and how:
  -D, --pgdata=DIRECTORY directory that is made, or is empty; - with -Ft is stdout
  -F, --format=p|t       plain, as a data directory (default), or tar
  -i, --incremental=OLDMANIFEST
                         only what changed since this manifest's backup (17 on)
  -r, --max-rate=RATE    most kB a second, or with suffix k or M
  -R, --write-recovery-conf
                         add what makes it a standby of this server
  -t, --target=TARGET[:DETAIL]
                         leave it to the server: server:PATH, blackhole (15 on)
  -T, --tablespace-mapping=OLDDIR=NEWDIR
                         lay the tablespace in OLDDIR down in NEWDIR
      --waldir=WALDIR    directory that pg_wal is to be a link to
  -X, --wal-method=none|fetch|stream
                         its WAL: not, at the end, or meanwhile (default)
  -z, --gzip             compress tar files with gzip
  -Z, --compress=[{{client|server}}-]METHOD[:DETAIL]
                         compress with gzip, lz4 or zstd, here or on the server
  -Z, --compress=none    do not compress

General options:
  -c, --checkpoint=fast|spread
                         the first checkpoint: at once, or slowly (default)
  -C, --create-slot      make the slot that --slot names
  -l, --label=LABEL      what to call the backup
  -n, --no-clean         leave after an error what was made
  -N, --no-sync          leave it to the system when files reach the disk
  -P, --progress         show how far it is
  -S, --slot=SLOTNAME    replication slot to stream WAL with
  -v, --verbose          say more
  -V, --version          print the version and end
      --manifest-checksums=SHA{{224,256,384,512}}|CRC32C|NONE
                         checksums in the manifest
      --manifest-force-encode
                         write all file names in the manifest in hexadecimal
      --no-estimate-size do not let the server estimate the size first
      --no-manifest      let the server send no manifest
      --no-slot          make no temporary slot for the WAL
      --no-verify        do not compare the files with the manifest
      --no-verify-checksums
                         do not let the server check the checksums of pages
      --sync-method=METHOD
                         how files are made durable: fsync or syncfs
  -?, --help             print this help and end

Connection options:
  -d, --dbname=CONNSTR   connection string or URI
  -h, --host=HOSTNAME    host of the server, or directory of its socket
  -p, --port=PORT        port of the server
  -s, --status-interval=SECS
                         longest time between two status messages (default: 10)
  -U, --username=NAME    role to connect as
  -w, --no-password      never ask for a password
  -W, --password         ask for a password before connecting

This is walhold with pg_basebackup's flags; walhold --help shows what else it does.
"
    )
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Before,
    Asked,
    Copying,
}

/// Says what happens while a backup is made.
pub(super) struct Teller {
    name: &'static str,
    verbose: bool,
    meter: Option<Meter>,
    phase: Phase,
    /// Whether WAL comes with it.
    wal: bool,
    streams: bool,
    incremental: bool,
    /// Whether what is written is synced.
    syncs: bool,
    clean: bool,
    directory: Option<PathBuf>,
    wal_directory: Option<PathBuf>,
}

impl Teller {
    pub(super) fn new(name: &'static str, options: &Options) -> Self {
        let (directory, wal_directory) = match &options.destination {
            Destination::Plain { directory, wal_directory, .. } => (Some(directory), wal_directory.as_ref()),
            Destination::Tar { directory, .. } => (Some(directory), None),
            Destination::StandardOutput { .. } | Destination::Server(_) => (None, None),
        };
        Self {
            name,
            verbose: options.verbose,
            meter: options.progress.then(|| Meter::new(options.verbose)),
            phase: Phase::Before,
            wal: options.wal != WalMethod::None,
            streams: matches!(options.wal, WalMethod::Stream(_)),
            incremental: options.incremental.is_some(),
            syncs: options.sync != Sync::None,
            clean: options.clean,
            directory: directory.cloned(),
            wal_directory: wal_directory.cloned(),
        }
    }

    pub(super) fn tell(&mut self, event: Event) {
        match event {
            Event::Notice(notice) => self.line_of_server(&server(&notice)),
            Event::SlotMade { name, temporary: true } => {
                self.more(&format!("created temporary replication slot \"{name}\""));
            }
            Event::SlotMade { name, temporary: false } => self.more(&format!("created replication slot \"{name}\"")),
            Event::WaitingForCheckpoint => {
                self.phase = Phase::Asked;
                self.more("initiating base backup, waiting for checkpoint to complete");
                if let Some(meter) = &mut self.meter {
                    meter.waiting();
                }
            }
            Event::Started { start, archives, estimate } => {
                self.phase = Phase::Copying;
                self.more("checkpoint completed");
                if self.wal {
                    let (lsn, tli) = (start.lsn(), start.tli());
                    self.more(&format!("write-ahead log start point: {lsn} on timeline {tli}"));
                }
                if self.streams {
                    self.more("starting background WAL receiver");
                }
                if let Some(meter) = &mut self.meter {
                    meter.started(estimate, archives);
                }
            }
            Event::Streaming => {}
            Event::Progress(progress) => {
                if let Some(meter) = &mut self.meter {
                    meter.tell(progress);
                }
            }
            Event::Stop(stop) => {
                if let Some(meter) = &mut self.meter {
                    meter.finished();
                }
                if self.wal {
                    self.more(&format!("write-ahead log end point: {}", stop.lsn()));
                }
            }
            Event::WaitingForWal => self.more("waiting for background process to finish streaming ..."),
            Event::Syncing if self.syncs => self.more("syncing data to disk ..."),
            Event::Syncing => {}
            Event::NamingManifest => self.more("renaming backup_manifest.tmp to backup_manifest"),
            Event::DroppingSlot(name) => self.more(&format!("dropping replication slot \"{name}\"")),
            Event::SlotLeft(name) => {
                self.line(&format!("warning: could not drop replication slot \"{name}\", which keeps WAL"));
            }
            Event::Removing(path) => self.line(&format!("removing {} \"{}\"", self.what(&path), path.display())),
            Event::Emptying(path) => {
                self.line(&format!("removing contents of {} \"{}\"", self.what(&path), path.display()));
            }
        }
    }

    fn what(&self, path: &Path) -> &'static str {
        if self.directory.as_deref() == Some(path) {
            "data directory"
        } else if self.wal_directory.as_deref() == Some(path) {
            "WAL directory"
        } else {
            "tablespace directory"
        }
    }

    /// It is complete.
    pub(super) fn done(&mut self, done: &Done) {
        if let Some(compared) = done.compared {
            self.more(&format!("{} files found as the backup manifest lists them", compared.files));
        }
        self.more("base backup completed");
    }

    /// There is no backup.
    pub(super) fn failed(&mut self, error: BaseBackupError) -> Said {
        self.interrupt();
        let was_there = matches!(error, BaseBackupError::NotEmpty(_));
        if !self.clean && self.phase != Phase::Before && !was_there && !error.is_about_checksums() {
            for (what, path) in [("data", self.directory.clone()), ("WAL", self.wal_directory.clone())] {
                if let Some(path) = path.filter(|path| path.exists()) {
                    self.line(&format!("{what} directory \"{}\" not removed at user's request", path.display()));
                }
            }
        }
        match &error {
            BaseBackupError::Session(e) => self.refused(e),
            _ => said(error),
        }
    }

    /// On the connection that brings the files.
    fn refused(&self, e: &SessionError) -> Said {
        let why = session(e);
        let message = match (e, self.phase) {
            (SessionError::Checksums(_), _) => "checksum error occurred".to_owned(),
            (_, Phase::Before) if self.incremental => format!("could not upload manifest: {why}"),
            (_, Phase::Before | Phase::Asked) => format!("could not initiate base backup: {why}"),
            (SessionError::Server(_), Phase::Copying) => format!("backup failed: {why}"),
            (_, Phase::Copying) => format!("could not read COPY data: {why}"),
        };
        let exit = if matches!(e, SessionError::Checksums(_)) { Exit::NotUsable } else { Exit::Error };
        Said::new(message).with_exit(exit)
    }

    fn more(&mut self, text: &str) {
        if self.verbose {
            self.line(text);
        }
    }

    fn line(&mut self, text: &str) {
        self.interrupt();
        pg_words::line(self.name, text);
    }

    /// As libpq prints a notice.
    fn line_of_server(&mut self, text: &str) {
        self.interrupt();
        crate::cli::complain(&text);
    }

    fn interrupt(&mut self) {
        if let Some(meter) = &mut self.meter {
            meter.interrupted();
        }
    }
}

/// What did not happen on the connection that brings the files.
fn said(error: BaseBackupError) -> Said {
    if let Some(disk) = error.disk() {
        return Failure::from(disk).into();
    }
    let said = Said::new(error.to_string());
    match error {
        BaseBackupError::Wal(e) => Said::from(e).and(Some("background process terminated unexpectedly")),
        BaseBackupError::Tablespaces(count) => {
            Said::new(format!("can only write single tablespace to stdout, database has {}", count.saturating_add(1)))
        }
        BaseBackupError::Differs { .. } => said
            .with_exit(Exit::NotUsable)
            .hint(Some("the copy was damaged on its way or on the server: take another".to_owned())),
        BaseBackupError::NotProven(_) => said
            .with_exit(Exit::NotUsable)
            .hint(Some("a record of WAL is missing or damaged: take another backup".to_owned())),
        BaseBackupError::Promoted { .. } => said.hint(Some("take another backup".to_owned())),
        _ => said,
    }
}
