//! The command line: one file a command. Here alone is anything printed, and an exit code chosen.

mod backup;
mod connect;
mod drill;
mod expire;
mod failure;
mod getopt;
mod guard;
mod heal;
mod keep;
mod list;
mod log;
mod pg_basebackup;
mod pg_compress;
mod pg_receivewal;
mod pg_words;
mod receive;
mod restore;
mod restored;
mod signals;
mod slot;
mod status;
mod values;
mod verify;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use serde::Serialize;

use crate::restore::run_wal_get;

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
    Status(Box<status::Arguments>),
    Verify(verify::Arguments),
    Restore(Box<restore::Arguments>),
    Slot(slot::Arguments),
    Keep(keep::Arguments),
    Expire(expire::Arguments),
    Drill(Box<drill::Arguments>),
    /// Copy a server into a data directory or tar files, outside of any repository: pg_basebackup with all its flags
    #[command(name = "basebackup", disable_help_flag = true)]
    BaseBackup {
        /// As pg_basebackup takes them; see walhold basebackup --help
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Give a recovering server one file of the archive: its restore_command
    ///
    /// Exits 0 if the file was given, 1 if it is known not to exist, and 255 if neither is known; with
    /// nothing else, for a server takes 1 to 125 as the end of WAL.
    #[command(name = "wal-get", disable_help_flag = true)]
    WalGet {
        /// --repo DIR [--timeline N] [--partial] [--unknown-timeout TIME] %f %p
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// Runs the program with `arguments`, the program's name first.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    if arguments.first().is_some_and(pg_receivewal::is_meant) {
        return pg_receivewal::run(arguments);
    }
    if arguments.first().is_some_and(pg_basebackup::is_meant) {
        return pg_basebackup::run(arguments);
    }
    // The exit codes of this one are fixed before anything is parsed.
    if arguments.get(1).is_some_and(|command| command == "wal-get") {
        return run_wal_get(arguments.into_iter().skip(2)).into();
    }
    // This one's flags are not clap's.
    if arguments.get(1).is_some_and(|command| command == "basebackup") {
        return pg_basebackup::run_command(arguments.into_iter().skip(2));
    }
    // What a variable holds may be a password.
    let grammar = without_values(Arguments::command());
    let parsed = grammar.try_get_matches_from(arguments).and_then(|matches| {
        let mut parsed = Arguments::from_arg_matches(&matches)?;
        if let (Command::Receive(receive), Some((_, given))) = (&mut parsed.command, matches.subcommand()) {
            receive.settle(given)?;
        }
        Ok(parsed)
    });
    let parsed = match parsed {
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
        Command::Status(arguments) => match status::run(&arguments) {
            Ok(exit) => return exit.into(),
            Err(failure) => Err(failure),
        },
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Restore(arguments) => restore::run(&arguments),
        Command::Slot(arguments) => slot::run(&arguments),
        Command::Keep(arguments) => keep::run(&arguments),
        Command::Expire(arguments) => expire::run(&arguments),
        Command::Drill(arguments) => drill::run(&arguments),
        Command::BaseBackup { arguments } => return pg_basebackup::run_command(arguments.into_iter()),
        Command::WalGet { arguments } => return run_wal_get(arguments.into_iter()).into(),
    };
    match done {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            failure.print(parsed.log.is_json());
            failure.exit.into()
        }
    }
}

fn without_values(command: clap::Command) -> clap::Command {
    command.mut_subcommands(without_values).mut_args(|arg| arg.hide_env_values(true))
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
    say(&format_args!("{text}\n"))
}

/// Writes a line to stderr. Nothing is done for one that is closed: a program must not end because
/// nobody listens.
fn complain(line: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes an answer to stdout. A reader that has gone away has had enough.
fn say(answer: &dyn std::fmt::Display) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match write!(stdout, "{answer}").and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::error(format!("cannot write the answer: {e}"))
                .hint("what was done before stays done; check where standard output goes"))
        }
        _ => Ok(()),
    }
}
