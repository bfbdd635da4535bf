//! `walhold expire`

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgGroup, Args};
use indicatif::HumanBytes;
use jiff::Timestamp;
use serde::Serialize;

use super::Failure;
use super::values::some_time;
use crate::disk::Real;
use crate::repository::{Decision, PENDING_LIMIT, Policy, Repository, RetentionPlan, Verdict};

/// Remove the backups that are not to be kept any more, and the WAL that no backup needs
///
/// With both --keep-last and --keep-window the larger set stays. The newest complete backup, those marked
/// with walhold keep, those that a restore reads, and all WAL from the oldest kept backup on always stay. A
/// restored server fetches its WAL from the repository: let it recover before its backup expires.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("policy").required(true).multiple(true).args(["keep_last", "keep_window"]))]
pub(super) struct Arguments {
    /// Repository
    #[arg(long, value_name = "DIR", env = "WALHOLD_REPO")]
    repo: PathBuf,
    /// Keep the last N complete backups
    #[arg(long, value_name = "N", env = "WALHOLD_KEEP_LAST")]
    keep_last: Option<NonZeroU32>,
    /// Keep what is needed to go back to any moment of the last TIME, such as 7d
    #[arg(long, value_name = "TIME", value_parser = some_time, env = "WALHOLD_KEEP_WINDOW")]
    keep_window: Option<Duration>,
    /// Remove backups that were given up this long ago [default: 1d]
    #[arg(long, value_name = "TIME", value_parser = some_time, env = "WALHOLD_PENDING_OLDER_THAN")]
    pending_older_than: Option<Duration>,
    /// Print what would be removed, and why, and remove nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let pending_limit = arguments.pending_older_than.unwrap_or(PENDING_LIMIT);
    let policy = Policy::new(arguments.keep_last, arguments.keep_window, pending_limit)
        .ok_or_else(|| Failure::usage("nothing says what to keep").hint("give --keep-last or --keep-window"))?;
    let repository = Repository::open(&arguments.repo, Arc::new(Real::new()))?;
    let now = Timestamp::now();
    let plan = match arguments.dry_run {
        true => repository.plan_expire(&policy, now)?,
        false => repository.expire(&policy, now)?,
    };
    if arguments.json {
        return super::print_json(&Report { version: 1, dry_run: arguments.dry_run, plan: &plan });
    }
    super::say(&text(&plan, arguments.dry_run))
}

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    dry_run: bool,
    #[serde(flatten)]
    plan: &'a RetentionPlan,
}

fn text(plan: &RetentionPlan, dry_run: bool) -> String {
    let mut lines: Vec<String> = plan.backups.iter().map(line).collect();
    lines.extend(plan.wal.iter().map(|wal| {
        let (n, bytes) = (wal.segments(), HumanBytes(wal.bytes()));
        format!("remove  WAL {} to {}: {}, {bytes}", wal.first, wal.last, count(n, "segment"))
    }));
    lines.extend(plan.histories.iter().map(|tli| format!("remove  the history file of timeline {tli}")));
    lines.extend(plan.notes.iter().map(|note| format!("note    {note}")));
    let (segments, bytes) = plan.removed_wal();
    let backups = count(plan.removed().count() as u64, "backup");
    let did = if dry_run { "would remove" } else { "removed" };
    lines.push(format!("{did} {backups} and {} of WAL, {}", count(segments, "segment"), HumanBytes(bytes)));
    lines.join("\n") + "\n"
}

fn line(decision: &Decision) -> String {
    match &decision.verdict {
        Verdict::Keep(reasons) => {
            let reasons: Vec<_> = reasons.iter().map(ToString::to_string).collect();
            format!("keep    {}  {}", decision.id, reasons.join("; "))
        }
        Verdict::Remove(reason) => {
            let bytes = decision.bytes.map_or_else(String::new, |bytes| format!(", {}", HumanBytes(bytes)));
            format!("remove  {}  {reason}{bytes}", decision.id)
        }
    }
}

fn count(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
