//! `walhold keep`

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::Failure;
use crate::disk::Real;
use crate::repository::{Repository, Which};

/// Mark a backup so that it never expires; all WAL that can be reached from it stays with it
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Backup, as walhold list names it, or latest
    backup: Which,
    /// Repository
    #[arg(long, value_name = "DIR", env = "WALHOLD_REPO")]
    repo: PathBuf,
    /// Take the mark away
    #[arg(long)]
    undo: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let repository = Repository::open(&arguments.repo, Arc::new(Real::new()))?;
    let (id, changed) = repository.mark(arguments.backup, !arguments.undo)?;
    let text = match (arguments.undo, changed) {
        (false, true) => format!("backup {id} is kept from now on\n"),
        (false, false) => format!("backup {id} is kept already\n"),
        (true, true) => format!("backup {id} may expire again\n"),
        (true, false) => format!("backup {id} was not marked\n"),
    };
    super::say(&text)
}
