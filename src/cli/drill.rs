//! `walhold drill`

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;
use tracing::{info, warn};

use super::values::{mapping, moment, owner, some_time};
use super::{Exit, Failure, signals};
use crate::connection::Surroundings;
use crate::disk::Real;
use crate::drill::{DrillEvent, Drilled, Options, Stop, drill};
use crate::repository::{DrillRecord, Repository, Which};
use crate::restore::{Mapping, Owner, RestoreEvent};

/// Restore a backup into a scratch folder, start a server on it, check what comes out, and record the result
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Backup, as walhold list names it
    #[arg(default_value_t)]
    backup: Which,
    /// Repository
    #[arg(long, value_name = "DIR", env = "WALHOLD_REPO")]
    repo: PathBuf,
    /// Data directory that you have filled, of a backup whose data lies elsewhere; the drill changes it, and leaves it
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// With --data: the tablespace that lay at OLD has been put at NEW; "=" in a path is written "\="
    #[arg(short = 'T', long, value_name = "OLD=NEW", value_parser = mapping, requires = "data")]
    tablespace_mapping: Vec<Mapping>,
    /// Directory in which the scratch folder is made; default is the one for temporary files
    #[arg(long, value_name = "DIR", env = "WALHOLD_SCRATCH")]
    scratch: Option<PathBuf>,
    /// Leave the scratch folder
    #[arg(long)]
    keep: bool,
    /// Where the server's programs lie; else pg_config, the usual places and PATH are asked
    #[arg(long, value_name = "DIR", env = "WALHOLD_PG_BIN")]
    pg_bin: Option<PathBuf>,
    /// Who runs the server, for root must not: a name or number, of a user or USER:GROUP
    #[arg(long, value_name = "USER", value_parser = owner, env = "WALHOLD_RUN_AS")]
    run_as: Option<Owner>,
    /// A superuser of the server that was backed up; default is postgres, then your own name
    #[arg(short = 'U', long, value_name = "NAME", env = "WALHOLD_DRILL_USERNAME")]
    username: Option<String>,
    /// Recover to this time, as 2026-11-22T05:15:00Z, instead of to the end of WAL
    #[arg(long, value_name = "TIME", value_parser = moment)]
    target_time: Option<Timestamp>,
    /// Fail if recovery and checks take longer, as 2h; default is no limit
    #[arg(long, value_name = "TIME", value_parser = some_time, env = "WALHOLD_TIMEOUT")]
    timeout: Option<Duration>,
    /// Do not check tables and indexes
    #[arg(long)]
    no_amcheck: bool,
    /// Statements that must succeed, run by psql in the database postgres
    #[arg(long, value_name = "FILE")]
    sql: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let repository = Repository::open(&arguments.repo, Arc::new(Real::new()))?;
    let options = arguments.options()?;
    let drilled = super::runtime()?.block_on(async {
        let (soon, at_once) = signals::stop_and_hurry()?;
        let stop = Stop { soon, at_once };
        // It blocks, and signals are waited for here.
        let work = tokio::task::spawn_blocking(move || {
            let mut teller = Teller::new();
            let drilled = drill(&repository, &options, &stop, &mut |event| teller.tell(event));
            teller.bar.finish_and_clear();
            drilled
        });
        work.await
            .map_err(|e| Failure::error(format!("the drill broke off: {e}")).hint("please report this"))?
            .map_err(Failure::from)
    })?;
    report(&drilled, arguments.json)?;
    verdict(&drilled.record)
}

impl Arguments {
    fn options(&self) -> Result<Options, Failure> {
        let program = std::env::current_exe()
            .map_err(|e| Failure::error(format!("cannot find out where this program lies: {e}")))?;
        let usual = || ["postgres".to_owned()].into_iter().chain(Surroundings::of_this_process().user).collect();
        Ok(Options {
            which: self.backup,
            data: self.data.clone(),
            mappings: self.tablespace_mapping.clone(),
            scratch: self.scratch.clone().unwrap_or_else(std::env::temp_dir),
            keep: self.keep,
            bin: self.pg_bin.clone(),
            run_as: self.run_as,
            users: self.username.clone().map_or_else(usual, |name| vec![name]),
            target_time: self.target_time,
            timeout: self.timeout,
            amcheck: !self.no_amcheck,
            sql: self.sql.clone(),
            program,
        })
    }
}

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    passed: bool,
    recorded: bool,
    drill: &'a DrillRecord,
}

fn report(drilled: &Drilled, json: bool) -> Result<(), Failure> {
    let record = &drilled.record;
    if let Err(e) = &drilled.recorded {
        warn!("the result could not be recorded in the repository: {e}");
    }
    match &drilled.scratch {
        Ok(None) => {}
        Ok(Some(kept)) => info!("what was restored is left in {}", kept.display()),
        Err(e) => warn!("the scratch folder could not be removed: {e}"),
    }
    if json {
        let (passed, recorded) = (record.passed(), drilled.recorded.is_ok());
        return super::print_json(&Report { version: 1, passed, recorded, drill: record });
    }
    super::say(&page(record))
}

fn page(record: &DrillRecord) -> String {
    let mut page =
        format!("drill of backup {}: {}\n", record.backup, if record.passed() { "PASSED" } else { "FAILED" });
    let mut line = |word: &str, text: &str| {
        let _ = writeln!(page, "{word:<12}{text}");
    };
    if let Some(why) = &record.failure {
        line("reason", why);
    }
    if let Some(version) = &record.server {
        line("server", &format!("PostgreSQL {version}"));
    }
    if let Some(target) = record.target_time {
        line("asked for", &target.to_string());
    }
    if let Some(reached) = record.reached {
        let time = record.reached_time.map_or_else(String::new, |time| format!(", the last commit at {time}"));
        line("recovered", &format!("to {reached}{time}"));
    }
    for checked in &record.checked {
        line("checked", checked);
    }
    for not_checked in &record.not_checked {
        line("not checked", not_checked);
    }
    let took = record.durations_ms;
    let seconds = |ms: u64| Duration::from_millis(ms).as_secs_f64();
    line(
        "took",
        &format!(
            "{:.1} s to prove, {:.1} s to restore, {:.1} s to recover, {:.1} s to check",
            seconds(took.plan),
            seconds(took.restore),
            seconds(took.recovery),
            seconds(took.checks)
        ),
    );
    page
}

fn verdict(record: &DrillRecord) -> Result<(), Failure> {
    match &record.failure {
        None => Ok(()),
        Some(why) => Err(Failure::error(format!("the drill of backup {} failed: {why}", record.backup))
            .exit(Exit::NotUsable)
            .hint("with --keep the restored files and the logs are left for a closer look")),
    }
}

/// Progress on a terminal, lines in a log.
struct Teller {
    bar: ProgressBar,
}

impl Teller {
    fn new() -> Self {
        Self { bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5)) }
    }

    fn tell(&mut self, event: DrillEvent) {
        match event {
            DrillEvent::Planned { id, scratch, notes } => {
                for note in notes {
                    info!("{note}");
                }
                info!("restoring backup {id} into {}", scratch.display());
                self.style("{wide_bar} {percent}% {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left");
            }
            DrillEvent::Restore(RestoreEvent::Comparing { done, total } | RestoreEvent::Progress { done, total }) => {
                self.bar.set_length(total);
                self.bar.set_position(done);
            }
            DrillEvent::Restore(RestoreEvent::Syncing) => {
                self.bar.reset();
                self.style("recovering {wide_bar} {percent}% {bytes}/{total_bytes}");
            }
            DrillEvent::Started { version } => self.log(&format!("started PostgreSQL {version}; it recovers")),
            DrillEvent::Recovering { at, from, to } => {
                self.bar.set_length(to.saturating_sub(from));
                self.bar.set_position(at.saturating_sub(from));
            }
            DrillEvent::Consistent(at) => self.log(&format!("the data is consistent at {at}")),
            DrillEvent::Recovered { at, time } => {
                self.bar.finish_and_clear();
                let time = time.map_or_else(String::new, |time| format!(", the last commit at {time}"));
                info!("recovered to {at}{time}");
            }
            DrillEvent::Checking(what) => info!("checking: {what}"),
            DrillEvent::CheckingDatabase(name) => info!("checking database {name:?}"),
            DrillEvent::ServerLog(line) => self.bar.suspend(|| warn!("the server's log: {line}")),
        }
    }

    fn style(&self, template: &str) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
    }

    fn log(&self, line: &str) {
        self.bar.suspend(|| info!("{line}"));
    }
}
