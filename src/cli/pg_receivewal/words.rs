//! What is said on standard error: pg_receivewal's words where it has some, and plain lines of the
//! same form where it does not. Scripts match these.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::super::pg_words::{self, Said, connection, session, system};
use super::NAME;
use crate::archive::{Archive, Durable, ResumeError, WalName};
use crate::cli::Failure;
use crate::codec::Codec;
use crate::connection::Error as SessionError;
use crate::disk::{Disk, DiskError};
use crate::protocol::Condition;
use crate::receive::{Event, ReceiveError};
use crate::wal::{Pos, Segment};

/// Warns of complete segments of a wrong size, as far as the size can be had without decoding: what
/// stands behind them is gone on with, and the last one is received again.
pub(super) fn warn_of_sizes(archive: &Archive, disk: &dyn Disk) -> Result<(), DiskError> {
    let mut entries = disk.list(archive.dir())?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    for entry in entries {
        let Some(name) = entry.name.to_str() else { continue };
        let Some(WalName::Segment { codec, partial: false, .. }) = WalName::parse(name, archive.size()) else {
            continue;
        };
        let path = archive.dir().join(name);
        let (kind, held) = match codec {
            Codec::Plain => ("segment file", disk.metadata(&path)?.map(|meta| meta.len)),
            Codec::Gzip => ("compressed segment file", gzip_size(&path)),
            Codec::Lz4 | Codec::Zstd => continue,
        };
        if let Some(size) = held.filter(|size| *size != archive.size().bytes()) {
            let what = if codec == Codec::Plain { "size" } else { "uncompressed size" };
            warning(&format!("{kind} \"{name}\" has incorrect {what} {size}, skipping"));
        }
    }
    Ok(())
}

/// The size that the end of a gzip file says it has decoded; nothing if it cannot be read, which is
/// found out where it is needed.
fn gzip_size(path: &Path) -> Option<u64> {
    let mut file = File::open(path).ok()?;
    let mut last = [0; 4];
    if file.seek(SeekFrom::End(-4)).is_ok() {
        file.read_exact(&mut last).ok()?;
    }
    Some(u64::from(u32::from_le_bytes(last)))
}

/// What `--help` prints.
pub(super) const HELP: &str = "\
pg_receivewal streams the write-ahead log of a PostgreSQL server into a directory.

Usage:
  pg_receivewal [OPTION]...

Options:
  -D, --directory=DIR    directory that the log's segments are written to
  -E, --endpos=LSN       end once WAL beyond this position has been received
      --if-not-exists    with --create-slot: it is well if the slot is there already
  -n, --no-loop          end when the connection is lost, rather than connect again
      --no-sync          leave it to the system when files reach the disk
  -s, --status-interval=SECS
                         longest time between two status messages (default: 10)
  -S, --slot=SLOTNAME    replication slot that the server keeps WAL for
      --synchronous      make WAL durable, and say so, as soon as it arrives
  -v, --verbose          say more
  -V, --version          print the version and end
  -Z, --compress=METHOD[:DETAIL]
                         how to compress segments: none, gzip or lz4, and a level
  -?, --help             print this help and end

Connection options:
  -d, --dbname=CONNSTR   connection string or URI
  -h, --host=HOSTNAME    host of the server, or directory of its socket
  -p, --port=PORT        port of the server
  -U, --username=NAME    role to connect as
  -w, --no-password      never ask for a password
  -W, --password         ask for a password before connecting

Optional actions:
      --create-slot      make the replication slot named by --slot, and end
      --drop-slot        drop the replication slot named by --slot, and end

This is walhold under the name of pg_receivewal; walhold --help shows what else it does.
";

/// Prints a line that is neither error nor warning.
pub(super) fn line(text: &str) {
    pg_words::line(NAME, text);
}

fn warning(text: &str) {
    pg_words::warning(NAME, text);
}

/// The folder cannot be opened.
pub(super) fn no_directory(directory: &Path, error: &DiskError) -> Said {
    Said::new(format!("could not open directory \"{}\": {}", directory.display(), system(error.io())))
}

impl From<ReceiveError> for Said {
    fn from(e: ReceiveError) -> Self {
        match e {
            ReceiveError::Connect(e) => connection(&e),
            ReceiveError::Session(e) => stream(&e),
            ReceiveError::Ended => Self::new("replication stream was terminated before stop point"),
            // What the operator can do differs from what walhold's own flags can.
            ReceiveError::Gap(gap) => {
                let text = ReceiveError::Gap(gap.clone()).to_string();
                Self::new(text).hint(Some(format!(
                    "WAL is missing from {} on: take a new base backup and begin in a new, empty directory",
                    gap.held.lsn()
                )))
            }
            ReceiveError::NoSlot(_) | ReceiveError::Resume(ResumeError::NoSuchStart(_)) => Self::new(e.to_string()),
            ReceiveError::OtherCluster { .. } => Self::new(e.to_string())
                .hint(Some("one directory holds one cluster: give this server its own, or check host and port".into())),
            ReceiveError::Diverged(_) | ReceiveError::ForkedBefore { .. } | ReceiveError::OtherHistory { .. } => {
                Self::new(e.to_string()).hint(Some(
                    "nothing was written; if this server is to be followed, begin in a new, empty directory".into(),
                ))
            }
            ReceiveError::Ahead { .. } => {
                Self::new(e.to_string()).hint(Some("is it the same server? Nothing was written".into()))
            }
            other => Failure::from(other).into(),
        }
    }
}

/// A session's call failed while receiving.
fn stream(e: &SessionError) -> Said {
    // Said before streaming, but for what ends the connection or is about the WAL itself.
    let before =
        e.server_error().is_some_and(|error| !error.is_fatal() && e.condition() != Some(Condition::WalRemoved));
    match e {
        SessionError::Server(_) if before => Said::refused("START_REPLICATION", e),
        SessionError::Server(_) => Said::new(format!("unexpected termination of replication stream: {}", session(e))),
        SessionError::Lost(why) if why.kind() == io::ErrorKind::UnexpectedEof => {
            Said::new("could not receive data from WAL stream: server closed the connection unexpectedly")
        }
        SessionError::Lost(why) => Said::new(format!("could not receive data from WAL stream: {}", system(why))),
        _ => Said::new(format!("could not receive data from WAL stream: {}", session(e))),
    }
}

/// Says what happens while WAL is received.
pub(super) struct Teller<'a> {
    verbose: bool,
    no_loop: bool,
    archive: &'a Archive,
    /// What partials are written as.
    codec: Codec,
    /// Where receiving began, or what is durable.
    reached: Option<Pos>,
    /// The segment that is being received.
    open: Option<Segment>,
}

impl<'a> Teller<'a> {
    pub(super) fn new(verbose: bool, no_loop: bool, archive: &'a Archive, codec: Codec) -> Self {
        Self { verbose, no_loop, archive, codec, reached: None, open: None }
    }

    pub(super) fn tell(&mut self, event: Event) {
        match event {
            Event::Connected(_) => {}
            Event::Begins(at) => {
                self.reached = Some(at);
                self.more(&format!("starting log streaming at {} (timeline {})", at.lsn(), at.tli()));
            }
            Event::Streaming(at) => self.open = Some(Segment::containing(at, self.archive.size())),
            Event::Complete(segment) => {
                self.more(&format!("finished segment at {} (timeline {})", segment.end(), segment.tli()));
                self.open = Some(segment.next());
            }
            Event::Durable(durable) => self.durable(durable),
            Event::Switched(at) => self.more(&format!("switched to timeline {} at {}", at.tli(), at.lsn())),
            Event::ForkPassed { held, fork } => warning(&format!(
                "timeline {} forked off at {}, before the end of what is held of timeline {} ({})",
                fork.tli(),
                fork.lsn(),
                held.tli(),
                held.lsn()
            )),
            Event::TailKept(segment) => {
                self.open = Some(segment);
                self.left_open();
            }
            Event::AfterHole(at) => {
                warning(&format!("the directory lacks WAL before the stretch that ends at {}", at.lsn()));
            }
            Event::GapAccepted { held, from } => {
                warning(&format!("WAL from {} to {} is missing", held.lsn(), from.lsn()));
            }
            Event::Filling(at) => {
                line(&format!("the directory lacks WAL from {} on, which the slot still keeps: receiving it", at.lsn()))
            }
            Event::PassedOver { slot, before, .. } => warning(&format!(
                "this server does not tell where replication slot \"{slot}\" stands: beginning at {}, and WAL that the \
                 slot keeps from before is not received",
                before.lsn()
            )),
            Event::SlotLost(name) => warning(&format!("replication slot \"{name}\" has lost its WAL and was dropped")),
            // This name makes no slots while it receives.
            Event::SlotLeft { .. } => {}
            Event::HeldUp(time) => {
                warning(&format!("the storage has not answered for {:.0} seconds", time.as_secs_f64()));
            }
            Event::GotOn(time) => line(&format!("the storage answers again, after {:.0} seconds", time.as_secs_f64())),
            Event::StillFull => warning("there is still no room for a segment; waiting for it"),
            Event::SlotOlder { from, .. } => {
                line(&format!("the replication slot exists already: receiving begins at {}", from.lsn()))
            }
            Event::SlotMade(name) => line(&format!("created replication slot \"{name}\"")),
            Event::RemoteApply => {
                warning("synchronous_commit is remote_apply: commits that wait for this receiver would wait for ever");
            }
            Event::Disconnected { error, news, wait, .. } => self.disconnected(error, news, wait),
            Event::Reconnected { away, behind } => {
                line(&format!("connected again after {:.1} seconds, {behind} bytes behind", away.as_secs_f64()));
            }
            Event::Again { broken, from } => warning(&format!("{broken}; receiving it again, from segment {from}")),
        }
    }

    fn durable(&mut self, durable: Durable) {
        self.reached = Some(durable.pos());
    }

    /// Each failed try is told only to those who want to hear more.
    fn disconnected(&mut self, error: ReceiveError, news: bool, wait: std::time::Duration) {
        self.ended(&error);
        if news || self.verbose {
            Said::from(error).print(NAME);
            if !self.no_loop {
                let seconds = wait.as_secs_f64().ceil().max(1.0);
                line(&format!("disconnected; waiting {seconds:.0} seconds to try again"));
            }
        }
    }

    /// A stream that the server ended in good order leaves a file that is said to be not complete.
    fn ended(&mut self, error: &ReceiveError) {
        match error {
            ReceiveError::Ended => self.left_open(),
            _ => self.open = None,
        }
    }

    /// The end position was passed.
    pub(super) fn stopped(&mut self) {
        if let Some(at) = self.reached {
            self.more(&format!("stopped log streaming at {} (timeline {})", at.lsn(), at.tli()));
        }
        self.left_open();
    }

    /// It was told to stop.
    pub(super) fn interrupted(&mut self) {
        self.more("received interrupt signal, exiting");
        self.left_open();
    }

    /// It cannot go on.
    pub(super) fn failed(&mut self, error: ReceiveError) -> Said {
        self.ended(&error);
        Said::from(error).and(self.no_loop.then_some("disconnected"))
    }

    fn left_open(&mut self) {
        let Some(segment) = self.open.take() else { return };
        let name = format!("{segment}{}.partial", self.codec.suffix());
        if self.archive.dir().join(&name).exists() {
            line(&format!("not renaming \"{name}\", segment is not complete"));
        }
    }

    fn more(&self, text: &str) {
        if self.verbose {
            line(text);
        }
    }
}
