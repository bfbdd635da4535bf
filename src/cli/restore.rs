//! `walhold restore`

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing::{info, warn};

use super::Failure;
use super::values::{mapping, owner};
use crate::disk::Real;
use crate::protocol::SlotName;
use crate::repository::{Repository, Which};
use crate::restore::{Goal, Mapping, Options, Owner, Plan, RestoreEvent, Restored, lay_down, plan};

/// Lay a backup down so that a server can be started on it; refuses before it writes if that cannot succeed
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Backup, as walhold list names it
    #[arg(default_value_t)]
    backup: Which,
    /// Repository
    #[arg(long, value_name = "DIR", env = "WALHOLD_REPO")]
    repo: PathBuf,
    /// Data directory to make; it must not exist, or be empty
    #[arg(short = 'D', long, value_name = "DIR")]
    pgdata: PathBuf,
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
    info!("restoring backup {} to {}", plan.backup.id, plan.target.path.display());
    let mut teller = Teller::new(&plan);
    let restored = lay_down(&repository, &plan, &mut |event| {
        teller.tell(&event);
        ControlFlow::Continue(())
    });
    teller.bar.finish_and_clear();
    report(&plan, &restored?, began)
}

impl Arguments {
    fn options(&self) -> Result<Options, Failure> {
        let program = std::env::current_exe()
            .map_err(|e| Failure::error(format!("cannot find out where this program lies: {e}")))?;
        let goal = if self.standby {
            Goal::Standby { primary_conninfo: self.primary_conninfo.clone(), primary_slot: self.primary_slot.clone() }
        } else {
            Goal::EndOfWal
        };
        Ok(Options {
            which: self.backup,
            target: self.pgdata.clone(),
            mappings: self.tablespace_mapping.clone(),
            owner: self.owner,
            goal,
            program,
        })
    }
}

fn report(plan: &Plan, restored: &Restored, began: Instant) -> Result<(), Failure> {
    for note in &restored.notes {
        warn!("{note}");
    }
    let (compared, target) = (restored.compared, plan.target.path.display());
    super::say(&format_args!(
        "restored backup {} to {target}: {} in {} files, each as its manifest lists it, in {:.1} s\n\
         start the server with: pg_ctl -D {target} start   (PostgreSQL {})\n",
        plan.backup.id,
        HumanBytes(compared.bytes),
        compared.files,
        began.elapsed().as_secs_f64(),
        plan.backup.server_version.major()
    ))
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
            RestoreEvent::Progress { done, .. } => self.bar.set_position(*done),
            RestoreEvent::Syncing => self.bar.suspend(|| info!("all files are there; making them durable")),
        }
    }
}
