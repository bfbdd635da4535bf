//! `walhold verify`

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Exit, Failure};
use crate::disk::Real;
use crate::repository::{BackupId, Repository};
use crate::verify::{ProblemKind, Report, Verdict, VerifyEvent, verify};

/// Repeat the proof from the bytes on disk: one verdict a backup, and the whole archive walked; writes nothing
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// One backup alone, as walhold list names it
    backup: Option<BackupId>,
    /// Repository
    #[arg(long, value_name = "DIR", env = "WALHOLD_REPO")]
    repo: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let repository = Repository::open(&arguments.repo, Arc::new(Real::new()))?;
    let mut teller = Teller::new();
    let report = verify(&repository, arguments.backup, &mut |event| teller.tell(event));
    teller.bar.finish_and_clear();
    let report = report?;
    if arguments.json {
        super::print_json(&report)?;
    } else {
        super::say(&(lines(&report).join("\n") + "\n"))?;
    }
    verdict(&report, arguments.backup)
}

/// A line for each backup, stretch of WAL and problem.
fn lines(report: &Report) -> Vec<String> {
    let mut lines: Vec<_> = report.backups.iter().map(ToString::to_string).collect();
    if lines.is_empty() {
        lines.push("no backups".to_owned());
    }
    if let Some(wal) = &report.wal {
        lines.extend(wal.stretches.iter().map(|stretch| {
            format!("WAL of timeline {}  {} to {}, every record read", stretch.timeline, stretch.from, stretch.to)
        }));
        if wal.stretches.is_empty() {
            lines.push("no WAL".to_owned());
        }
        lines.extend(wal.problems.iter().map(|problem| {
            let word = match problem.kind {
                ProblemKind::BetweenBackups => "between backups",
                ProblemKind::Hole => "GAP",
                ProblemKind::Damage | ProblemKind::History => "DAMAGE",
            };
            format!("{word}  {problem}")
        }));
    }
    lines
}

/// A backup that was asked for by name must be usable; otherwise one that waits for its WAL is none
/// yet, and does not count.
fn verdict(report: &Report, asked: Option<BackupId>) -> Result<(), Failure> {
    let unusable = report.backups.iter().filter(|backup| match backup.verdict {
        Verdict::Usable { .. } => false,
        Verdict::NotUsable { .. } => true,
        Verdict::NotSealed { .. } => asked.is_some(),
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

/// Progress on a terminal.
struct Teller {
    bar: ProgressBar,
}

impl Teller {
    fn new() -> Self {
        Self { bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5)) }
    }

    fn tell(&mut self, event: VerifyEvent) {
        match event {
            VerifyEvent::Backup(id) => self.style("{msg} {wide_bar} {percent}% {bytes}/{total_bytes}", format!("{id}")),
            VerifyEvent::Files { done, total } => {
                self.bar.set_length(total);
                self.bar.set_position(done);
            }
            VerifyEvent::Verdict(_) => self.bar.reset(),
            VerifyEvent::Segment(segment) => self.style("WAL {msg}", segment.name()),
        }
    }

    fn style(&self, template: &str, message: String) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_message(message);
    }
}
