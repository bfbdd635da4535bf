//! `walhold verify`

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::{Exit, Failure};
use crate::disk::Real;
use crate::repository::{BackupId, Repository};
use crate::verify::{Healed, ProblemKind, Report, Verdict, VerifyEvent, seal_waiting, verify};

/// Repeat the proof from the bytes on disk: one verdict a backup, and the whole archive walked
///
/// Changes nothing without --seal. Exits 4 if a backup is not usable or the archive is not whole.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// One backup alone, as walhold list names it
    backup: Option<BackupId>,
    /// Repository
    #[arg(long, value_name = "DIR", env = "WALHOLD_REPO")]
    repo: PathBuf,
    /// Before that, seal backups that waited for WAL which has come since
    #[arg(long)]
    seal: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let repository = Repository::open(&arguments.repo, Arc::new(Real::new()))?;
    let healed = if arguments.seal { seal_waiting(&repository, arguments.backup)? } else { Vec::new() };
    let mut teller = Teller::new();
    let report = verify(&repository, arguments.backup, &mut |event| teller.tell(event));
    teller.bar.finish_and_clear();
    let report = report?;
    if arguments.json {
        super::print_json(&Answer { report: &report, sealing: arguments.seal.then_some(&healed) })?;
    } else {
        let lines: Vec<_> = healed.iter().filter_map(told).chain(lines(&report)).collect();
        super::say(&(lines.join("\n") + "\n"))?;
    }
    verdict(&report, arguments.backup)
}

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    report: &'a Report,
    /// What became of the backups that waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    sealing: Option<&'a Vec<Healed>>,
}

/// What sealing did. Of a backup that goes on waiting its verdict says how long.
fn told(healed: &Healed) -> Option<String> {
    match healed {
        Healed::Sealed { id } => Some(format!("{id}  SEALED      its WAL has come")),
        Healed::Waiting { .. } => None,
        Healed::Failed { id, reason } => Some(format!("{id}  NOT SEALED  {reason}")),
    }
}

/// A line for each backup, stretch of WAL and problem.
fn lines(report: &Report) -> Vec<String> {
    let mut lines: Vec<_> = report.backups.iter().map(ToString::to_string).collect();
    if lines.is_empty() {
        lines.push("no backups".to_owned());
    }
    if let Some(wal) = &report.wal {
        lines.extend(wal.stretches.iter().map(|stretch| format!("WAL of {stretch}; every record read")));
        if wal.stretches.is_empty() {
            lines.push("no WAL".to_owned());
        }
        lines.extend(wal.problems.iter().map(|problem| {
            let word = match problem.kind {
                ProblemKind::BetweenBackups => "between backups",
                ProblemKind::AcceptedGap => "accepted gap",
                ProblemKind::Torn => "torn end",
                ProblemKind::Hole => "GAP",
                ProblemKind::Damage | ProblemKind::History => "DAMAGE",
            };
            format!("{word}  {problem}")
        }));
        lines.extend(ignored(&wal.ignored));
    }
    lines
}

/// Names that nobody asked about are told in one line, with the first few of them.
fn ignored(names: &[String]) -> Option<String> {
    let shown = names.iter().take(3).map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => None,
        n if n <= 3 => Some(format!("not WAL, ignored: {shown}")),
        n => Some(format!("not WAL, ignored: {shown} and {} more", n - 3)),
    }
}

/// A backup that was asked for by name must be usable; otherwise one that waits for its WAL is none
/// yet, and does not count.
fn verdict(report: &Report, asked: Option<BackupId>) -> Result<(), Failure> {
    let unusable = report.backups.iter().filter(|backup| match backup.verdict {
        Verdict::Usable { .. } => false,
        Verdict::NotUsable { .. } => true,
        Verdict::NotSealed { .. } | Verdict::Untested { .. } => asked.is_some(),
    });
    let unusable = unusable.count();
    if unusable == 0 && report.is_good() {
        return Ok(());
    }
    let failure = Failure::error(match unusable {
        0 => "the WAL in the archive is not whole".to_owned(),
        1 => "1 backup is not usable".to_owned(),
        n => format!("{n} backups are not usable"),
    });
    Err(failure.exit(Exit::NotUsable).hint(if unusable > 0 {
        "take a new backup; what is listed as USABLE can be restored"
    } else {
        "every backup is usable; from those before a gap or damage recovery reaches it and no further"
    }))
}

/// Progress on a terminal; nothing elsewhere.
struct Teller {
    bar: ProgressBar,
    segments: u64,
    of_segments: u64,
}

impl Teller {
    fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
        Self { bar, segments: 0, of_segments: 0 }
    }

    fn tell(&mut self, event: VerifyEvent) {
        match event {
            VerifyEvent::Begun { segments, bytes, .. } => {
                let template = "{msg} {wide_bar} {percent}% {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
                if let Ok(style) = ProgressStyle::with_template(template) {
                    self.bar.set_style(style);
                }
                self.bar.set_length(bytes);
                self.of_segments = segments;
                self.count();
            }
            VerifyEvent::Read(bytes) => self.bar.inc(bytes),
            VerifyEvent::Segment(_) => {
                self.segments += 1;
                self.count();
            }
        }
    }

    fn count(&self) {
        if self.of_segments > 0 {
            self.bar.set_message(format!("{}/{} WAL segments", self.segments, self.of_segments));
        }
    }
}
