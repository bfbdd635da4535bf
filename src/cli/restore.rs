//! `walhold restore`

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use tracing::{info, warn};

use super::values::{along, mapping, moment, owner, restore_point, transaction};
use super::{Failure, restored, signals};
use crate::disk::Real;
use crate::protocol::SlotName;
use crate::repository::{Repository, Which};
use crate::restore::{
    Action, Aim, Along, Filling, Goal, Mapping, Options, Owner, Plan, RestoreEvent, Restored, Target, lay_down, plan,
    prepare,
};
use crate::wal::Lsn;

/// Lay a backup down so that a server can be started on it; refuses before it writes if that cannot succeed
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Backup, as walhold list names it; latest is the newest, with a target the newest that reaches it
    #[arg(default_value_t)]
    backup: Which,
    /// Repository
    #[arg(long, value_name = "DIR", env = "WALHOLD_REPO")]
    repo: PathBuf,
    /// Data directory to make; it must not exist, or be empty, except with --delta and --in-place
    #[arg(short = 'D', long, value_name = "DIR")]
    pgdata: PathBuf,
    /// Let the data directory be there: one of the same cluster, without a running server, or a
    /// restore that was cut off. Files that equal the backup stay, all else in it is rewritten or removed
    #[arg(long)]
    delta: bool,
    /// Make the data directory ready that you have filled, of a backup whose data lies elsewhere
    #[arg(long, conflicts_with = "delta")]
    in_place: bool,
    /// Print what would be done, and do nothing
    #[arg(long)]
    plan: bool,
    /// Print the plan as JSON
    #[arg(long, requires = "plan")]
    json: bool,
    /// Make a standby, which follows its primary instead of taking writes
    #[arg(long)]
    standby: bool,
    /// How the standby reaches its primary
    #[arg(long, value_name = "CONNSTR", requires = "standby")]
    primary_conninfo: Option<String>,
    /// Replication slot that the standby streams with; its primary must have it
    #[arg(long, value_name = "NAME", requires = "standby")]
    primary_slot: Option<SlotName>,
    /// Put the tablespace that lay at OLD at NEW; "=" in a path is written "\="
    #[arg(short = 'T', long, value_name = "OLD=NEW", value_parser = mapping)]
    tablespace_mapping: Vec<Mapping>,
    /// Who is to own the files: a name or number, of a user or USER:GROUP
    #[arg(long, value_name = "USER", value_parser = owner)]
    owner: Option<Owner>,
    #[command(flatten)]
    point: Point,
}

/// Where recovery is to stop, if not at the end of WAL.
#[derive(Debug, Args)]
struct Point {
    /// Recover to this time, as 2026-11-22T05:15:00.5Z or "2026-11-22 05:15:00+01"; without an offset it is local
    #[arg(long, value_name = "TIME", value_parser = moment, group = "target_point", conflicts_with = "standby")]
    target_time: Option<Timestamp>,
    /// Recover to this position, as 1/A0000028
    #[arg(long, value_name = "LSN", group = "target_point", conflicts_with = "standby")]
    target_lsn: Option<Lsn>,
    /// Recover to the end of this transaction
    #[arg(long, value_name = "XID", value_parser = transaction, group = "target_point", conflicts_with = "standby")]
    target_xid: Option<u32>,
    /// Recover to the restore point of this name
    #[arg(long, value_name = "NAME", value_parser = restore_point, group = "target_point", conflicts_with = "standby")]
    target_name: Option<String>,
    /// Recover no further than needed
    #[arg(long, group = "target_point", conflicts_with = "standby")]
    target: Option<Soonest>,
    /// Whether what lies exactly at the target is recovered
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, default_value_t = true, requires = "target_point")]
    #[arg(conflicts_with_all = ["target_name", "target"])]
    target_inclusive: bool,
    /// What the server does there
    #[arg(long, value_name = "ACTION", default_value = "promote", requires = "target_point")]
    target_action: AtTarget,
    /// Timeline to go along: latest, current (the backup's) or a number; latest is the newest that can be reached
    #[arg(long, value_name = "TIMELINE", default_value = "latest", value_parser = along, conflicts_with = "standby")]
    target_timeline: Along,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Soonest {
    /// Stop as soon as the data is consistent
    Immediate,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AtTarget {
    /// Take writes, on a new timeline
    Promote,
    /// Answer queries and wait
    Pause,
    /// Shut down
    Shutdown,
}

impl Point {
    fn aim(&self) -> Option<Aim> {
        // The command line has no more than one of them.
        let all = [
            self.target_time.map(Target::Time),
            self.target_lsn.map(Target::Lsn),
            self.target_xid.map(Target::Xid),
            self.target_name.clone().map(Target::Name),
            self.target.map(|Soonest::Immediate| Target::Immediate),
        ];
        let target = all.into_iter().flatten().next()?;
        let action = match self.target_action {
            AtTarget::Promote => Action::Promote,
            AtTarget::Pause => Action::Pause,
            AtTarget::Shutdown => Action::Shutdown,
        };
        Some(Aim { target, inclusive: self.target_inclusive, action })
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let began = Instant::now();
    let repository = Repository::open(&arguments.repo, Arc::new(Real::new()))?;
    let plan = plan(&repository, &arguments.options()?)?;
    if arguments.plan {
        if arguments.json {
            return super::print_json(&plan);
        }
        return super::say(&plan);
    }
    for note in &plan.notes {
        info!("{note}");
    }
    if arguments.in_place {
        return in_place(&repository, &plan);
    }
    let (plan, restored) = laid_down(repository, plan)?;
    let links = restored.kept.iter().flat_map(|kept| &kept.links);
    for (path, to) in links {
        warn!("{} was a link to {}, and was removed; what lies there is as it was", path.display(), to.display());
    }
    for note in &restored.notes {
        warn!("{note}");
    }
    super::say(&restored::page(&plan, &restored, began.elapsed(), arguments.owner))
}

/// Prepares what the operator has filled.
fn in_place(repository: &Repository, plan: &Plan) -> Result<(), Failure> {
    let target = plan.target.path.display();
    info!("preparing {target}, which holds backup {}", plan.backup.id);
    let prepared = prepare(repository, plan)?;
    prepared.notes.iter().for_each(|note| warn!("{note}"));
    super::say(&format_args!(
        "prepared {target} with backup {}, whose data is not checked\n\
         start the server with: pg_ctl -D {target} start   (PostgreSQL {})\n",
        plan.backup.id,
        plan.backup.server_version.major()
    ))
}

/// Does it, and undoes it if it is told to stop.
fn laid_down(repository: Repository, plan: Plan) -> Result<(Plan, Restored), Failure> {
    super::runtime()?.block_on(async {
        let stop = signals::stop()?;
        info!("restoring backup {} to {}", plan.backup.id, plan.target.path.display());
        // It blocks, and signals are waited for here.
        let work = tokio::task::spawn_blocking(move || {
            let mut teller = Teller::new(&plan);
            let restored = lay_down(&repository, &plan, &mut |event| {
                teller.tell(&event);
                if stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            teller.bar.finish_and_clear();
            restored.map(|restored| (plan, restored))
        });
        work.await
            .map_err(|e| Failure::error(format!("the restore broke off: {e}")).hint("please report this"))?
            .map_err(Failure::from)
    })
}

impl Arguments {
    fn options(&self) -> Result<Options, Failure> {
        let program = std::env::current_exe()
            .map_err(|e| Failure::error(format!("cannot find out where this program lies: {e}")))?;
        let goal = if self.standby {
            Goal::Standby { primary_conninfo: self.primary_conninfo.clone(), primary_slot: self.primary_slot.clone() }
        } else {
            self.point.aim().map_or(Goal::EndOfWal, Goal::Point)
        };
        Ok(Options {
            which: self.backup,
            target: self.pgdata.clone(),
            mappings: self.tablespace_mapping.clone(),
            delta: self.delta,
            owner: self.owner,
            goal,
            along: self.point.target_timeline,
            filling: if self.in_place { Filling::Operator } else { Filling::Restore },
            program,
        })
    }
}

struct Teller {
    bar: ProgressBar,
}

impl Teller {
    fn new(plan: &Plan) -> Self {
        let bar =
            ProgressBar::with_draw_target(Some(plan.backup.manifest.bytes), ProgressDrawTarget::stderr_with_hz(5));
        let template = "{wide_bar} {percent}% {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar }
    }

    fn tell(&mut self, event: &RestoreEvent) {
        match event {
            RestoreEvent::Comparing { done, total } => {
                self.bar.set_length(*total);
                self.bar.set_position(*done);
            }
            RestoreEvent::Progress { done, total } => {
                self.bar.set_length(*total);
                self.bar.set_position(*done);
            }
            RestoreEvent::Syncing => self.bar.suspend(|| info!("all files are there; making them durable")),
        }
    }
}
