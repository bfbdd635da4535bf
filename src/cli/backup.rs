//! `walhold backup`

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::heal::heal_all;
use super::values::{rate, who};
use super::{Failure, connect, signals};
use crate::backup::{Event, LowLevel, Options, backup};
use crate::codec::Compression;
use crate::image::ManifestAlgorithm;
use crate::protocol::{Checkpoint, MaxRate};
use crate::repository::{BackupId, Method, Seal, Task};

/// The name under which the server sees the connections of a backup. It is not the receiver's: a
/// synchronous standby of that name must not come and go with backups.
const NAME: &str = "walhold_backup";

/// Take a base backup together with the WAL it needs, and seal it once both are proven whole
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Repository; it is made if it is missing
    #[arg(long, value_name = "DIR", env = "WALHOLD_REPO")]
    repo: PathBuf,
    /// The server's checkpoint before the copy: at once, or at the pace of its regular ones
    #[arg(short, long, value_enum, default_value_t = Pace::Fast, env = "WALHOLD_CHECKPOINT")]
    checkpoint: Pace,
    /// Compression: none, zstd:LEVEL, or zstd:level=LEVEL,workers=COUNT
    #[arg(short = 'Z', long, value_name = "METHOD", default_value_t, env = "WALHOLD_COMPRESS")]
    compress: Compression,
    /// Copy only what has changed since the newest backup in the repository (17 and later, with summarize_wal on)
    #[arg(long, env = "WALHOLD_INCREMENTAL")]
    incremental: bool,
    /// What to call the backup
    #[arg(short, long, default_value = "walhold backup", env = "WALHOLD_LABEL")]
    label: String,
    /// Bound on the server's sending: kB a second, or with suffix k or M
    #[arg(short = 'r', long, value_name = "RATE", value_parser = rate, env = "WALHOLD_MAX_RATE")]
    max_rate: Option<MaxRate>,
    /// What the server computes over each file: NONE, CRC32C, SHA224, SHA256, SHA384 or SHA512
    #[arg(long, value_name = "ALGORITHM", default_value_t, env = "WALHOLD_MANIFEST_CHECKSUMS")]
    manifest_checksums: ManifestAlgorithm,
    /// Copy the files by a command, run by sh between the server's calls that start and stop a backup: the data
    /// directory into the folder $WALHOLD_TARGET
    #[arg(long, value_name = "CMD", conflicts_with_all = ["compress", "max_rate"])]
    copy_command: Option<String>,
    /// Record where a copy lies that is made elsewhere meanwhile, by --copy-command or by hand
    #[arg(long, value_name = "WHERE", conflicts_with_all = ["compress", "max_rate", "manifest_checksums"])]
    external: Option<String>,
    /// The copy is a snapshot of data, tablespaces and WAL at one instant, taken by this command
    #[arg(long, value_name = "CMD", requires = "external", conflicts_with_all = ["copy_command", "checkpoint"])]
    atomic_snapshot: Option<String>,
    /// Print the seal as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: connect::ConnectionFlags,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Pace {
    Fast,
    Spread,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    super::runtime()?.block_on(back_up(arguments))
}

async fn back_up(arguments: &Arguments) -> Result<(), Failure> {
    let began = Instant::now();
    let (conninfo, upstream, application_name) = arguments.connection.connect(NAME).await?;
    // From here on there is something to end in good order.
    let stop = signals::stop()?;
    let opened = connect::repository(&upstream, &arguments.repo)?;
    let options = Options {
        // Its WAL must come from the server that is copied, where the slot is.
        conninfo: conninfo.at(&upstream.session),
        application_name,
        label: arguments.label.clone(),
        checkpoint: match arguments.checkpoint {
            Pace::Fast => Checkpoint::Fast,
            Pace::Spread => Checkpoint::Spread,
        },
        max_rate: arguments.max_rate,
        manifest_checksums: arguments.manifest_checksums,
        compression: arguments.compress,
        incremental: arguments.incremental,
        low_level: arguments.low_level(),
        who: who(Task::Backup),
    };
    heal_all(&opened.repository)?;
    let mut teller = Teller::new();
    let sealed = backup(&opened.repository, upstream, &options, &stop, &mut |event| teller.tell(event)).await;
    teller.bar.finish_and_clear();
    let sealed = sealed.inspect_err(|_| opened.clean_up())?;
    report(sealed.seal(), began, arguments.json)
}

impl Arguments {
    fn low_level(&self) -> Option<LowLevel> {
        let command = self.copy_command.clone();
        match (&self.external, &self.atomic_snapshot) {
            (Some(place), Some(snapshot)) => {
                Some(LowLevel::AtomicSnapshot { place: place.clone(), command: snapshot.clone() })
            }
            (Some(place), None) => Some(LowLevel::External { place: place.clone(), command }),
            (None, _) => command.map(|command| LowLevel::Copy { command }),
        }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    backup: &'a Seal,
}

fn report(seal: &Seal, began: Instant, json: bool) -> Result<(), Failure> {
    if json {
        return super::print_json(&Report { version: 1, backup: seal });
    }
    let stored = seal.stored_bytes();
    let took = began.elapsed().as_secs_f64();
    if let Some(place) = &seal.place {
        let proven = if seal.method == Method::AtomicSnapshot { "is recorded" } else { "is complete (data unchecked)" };
        let next =
            if seal.method == Method::AtomicSnapshot { "; it is usable once a drill of it has passed" } else { "" };
        return super::say(&format_args!(
            "backup {} {proven}: data at {place}, WAL {} to {} proven, in {took:.1} s{next}\n",
            seal.id,
            seal.start.lsn(),
            seal.stop.lsn(),
        ));
    }
    super::say(&format_args!(
        "backup {} is complete: {} in {} files, stored in {}, WAL {} to {} proven, in {:.1} s\n",
        seal.id,
        HumanBytes(seal.manifest.bytes),
        seal.manifest.files,
        HumanBytes(stored),
        seal.start.lsn(),
        seal.stop.lsn(),
        took
    ))
}

/// Progress on a terminal, lines in a log.
struct Teller {
    bar: ProgressBar,
}

impl Teller {
    fn new() -> Self {
        // Drawn on stderr, and only if that is a terminal.
        Self { bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5)) }
    }

    fn tell(&mut self, event: Event) {
        match event {
            Event::Following => self.log("following the WAL that a receiver writes into the repository"),
            Event::Streaming => self.log("no receiver fills the repository: streaming the WAL here"),
            Event::BasedOn(id) => self.log(&format!("copying what has changed since backup {id}")),
            Event::WaitingForCheckpoint => self.log("waiting for the server's checkpoint"),
            Event::Copying { id, start, estimate } => {
                let size = estimate.map_or_else(String::new, |bytes| format!(", about {}", HumanBytes(bytes)));
                self.log(&format!("backup {id} starts at {start}{size}"));
                if let Some(bytes) = estimate {
                    self.bar.set_length(bytes);
                }
                let template = "{wide_bar} {percent}% {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left";
                if let Ok(style) = ProgressStyle::with_template(template) {
                    self.bar.set_style(style);
                }
            }
            Event::Progress(bytes) => {
                // The server's estimate is of a moment; the total grows with what comes.
                if self.bar.length().is_some_and(|total| total < bytes) {
                    self.bar.set_length(bytes);
                }
                self.bar.set_position(bytes);
            }
            Event::Copied { stop, bytes, took } => {
                self.bar.finish_and_clear();
                let took = HumanDuration(took);
                self.log(&format!("copied {} in {took}; the backup needs WAL up to {}", HumanBytes(bytes), stop.lsn()));
            }
            Event::CopyNow { id, copied } => {
                self.log(&format!(
                    "backup {id} has begun on the server: make the copy now, and then enter the name of the backup"
                ));
                wait_for_name(id, copied);
            }
            Event::Ended { stop } => self.log(&format!("the backup needs WAL up to {}", stop.lsn())),
            Event::Hashing => self.log("hashing and syncing what was copied"),
            Event::LeftOut(names) => {
                let first = names.iter().take(3).map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
                let more = if names.len() > 3 { ", ..." } else { "" };
                let count = names.len();
                self.bar.suspend(|| {
                    warn!("{count} names were removed from the copy, for no server sends them: {first}{more}")
                });
            }
            Event::ReadingChanges => self.log("reading the WAL since that backup for what was cut off"),
            Event::Proving => self.log("its WAL is durable; reading every record back"),
            Event::Notice(text) => self.bar.suspend(|| warn!("the server says: {text}")),
        }
    }

    fn log(&self, line: &str) {
        self.bar.suspend(|| info!("{line}"));
    }
}

/// Waits for a line with the backup's name on standard input. A line that came before anybody could know the name
/// says nothing about the copy.
fn wait_for_name(id: BackupId, copied: oneshot::Sender<()>) {
    std::thread::spawn(move || {
        let named = |line: String| line.trim() == id.to_string();
        if std::io::stdin().lines().map_while(Result::ok).any(named) {
            // Nobody listens any more if the backup has ended meanwhile.
            let _ = copied.send(());
        }
    });
}
