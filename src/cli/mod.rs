//! The command line: one file a command. Here alone is anything printed, and an exit code chosen.

mod backup;
mod connect;
mod failure;
mod list;
mod log;
mod receive;
mod signals;
mod values;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;

pub use failure::{Exit, Failure};

/// A PostgreSQL backup that can be proved.
///
/// walhold streams WAL from a server, takes base backups together with the WAL they need, checks
/// that both are whole, and gives them back.
#[derive(Debug, Parser)]
#[command(name = "walhold", version, disable_help_flag = true, disable_help_subcommand = true)]
#[command(after_help = "Exit codes: 0 done; 1 error; 2 usage; 3 gap or divergence; 4 not usable; 5 storage failed.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: log::LogFlags,
    /// Print help
    #[arg(short = '?', long, global = true, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Receive(Box<receive::Arguments>),
    Backup(Box<backup::Arguments>),
    List(list::Arguments),
}

/// Runs the program with `arguments`, the program's name first.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let parsed = match Arguments::try_parse_from(arguments) {
        Ok(parsed) => parsed,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    parsed.log.start();
    let done = match parsed.command {
        Command::Receive(arguments) => receive::run(&arguments),
        Command::Backup(arguments) => backup::run(&arguments),
        Command::List(arguments) => list::run(&arguments),
    };
    match done {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            failure.print();
            failure.exit.into()
        }
    }
}

/// The runtime of the commands that talk to a server. One thread: the work that waits for disks or
/// computes has threads of its own.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::error(format!("cannot start: {e}")))
}

/// Prints one document for machines on stdout.
fn print_json<T: Serialize>(document: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(document).map_err(|e| Failure::error(format!("cannot write JSON: {e}")))?;
    println!("{text}");
    Ok(())
}
