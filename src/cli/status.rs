//! `walhold status`

mod bar;
mod page;

pub(super) use page::plain;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::connect::ConnectionFlags;
use super::values::{duration, lag};
use super::{Exit, Failure};
use crate::disk::Real;
use crate::protocol::SlotName;
use crate::repository::Repository;
use crate::status::{Asked, Lag, Limits, MaxLag, Server, ServerAnswer, ServerError, Status, ask, span, status};

/// The name under which the server sees this command.
const NAME: &str = "walhold_status";

/// A receiver that runs has what the server had after so long, and is looked at again so often.
const SETTLE: Duration = Duration::from_millis(200);
const LOOKS: u32 = 3;

/// Columns where there is no terminal.
const WIDTH: usize = 72;

/// Tell what can be restored and until when, gaps, backups, and how far the archive is behind; writes nothing
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Repositories
    #[arg(long, value_name = "DIR", env = "WALHOLD_REPO", required = true, num_args = 1..)]
    repo: Vec<PathBuf>,
    /// Print JSON
    #[arg(long, conflicts_with = "check")]
    json: bool,
    /// For monitoring: print one line, OK or FAIL with the reasons, and exit 0 or 4
    #[arg(long)]
    check: bool,
    /// Fail the check if the archive is farther behind the server: a time (5min) or a size (64MB)
    #[arg(long, value_name = "LAG", requires = "check", value_parser = lag)]
    max_lag: Option<MaxLag>,
    /// Fail the check if the newest complete backup is older
    #[arg(long, value_name = "TIME", requires = "check", value_parser = duration)]
    max_age: Option<Duration>,
    /// The slot to ask the server about
    #[arg(short = 'S', long, value_name = "NAME", default_value = "walhold", env = "WALHOLD_SLOT")]
    slot: SlotName,
    #[command(flatten)]
    connection: ConnectionFlags,
}

/// A check that fails has said all in its line.
pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    arguments.settle()?;
    let server = match arguments.connection.name_a_server() {
        true => Some(super::runtime()?.block_on(arguments.ask())?),
        false => None,
    };
    let asked = server.as_ref().map(|server| Asked { server, slot: &arguments.slot });
    let all: Vec<_> = arguments.repo.iter().map(|dir| (dir.as_path(), look(dir, asked))).collect();
    if arguments.check {
        let limits = Limits { max_age: arguments.max_age, max_lag: arguments.max_lag };
        let (good, line) = check(&all, limits, Timestamp::now());
        super::say(&format_args!("{line}\n"))?;
        return Ok(if good { Exit::Done } else { Exit::NotUsable });
    }
    let found: Vec<_> = all.iter().filter_map(|(_, found)| found.as_ref().ok()).collect();
    if arguments.json {
        super::print_json(&Report { version: 1, repositories: found })?;
    } else {
        let form = page::Form::of_stdout();
        let pages: Vec<_> = found.iter().map(|status| page::page(status, Timestamp::now(), form)).collect();
        super::say(&pages.join("\n"))?;
    }
    all.into_iter().find_map(|(_, found)| found.err()).map_or(Ok(Exit::Done), Err)
}

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    repositories: Vec<&'a Status>,
}

fn look(dir: &Path, asked: Option<Asked<'_>>) -> Result<Status, Failure> {
    let repository = Repository::open(dir, Arc::new(Real::new()))?;
    let mut found = status(&repository, asked)?;
    for _ in 1..LOOKS {
        let behind = matches!(&found.server, Some(ServerAnswer::Told { lag, .. }) if lag.bytes != Some(0));
        if !behind || !found.writer.as_ref().is_some_and(|writer| writer.receives) {
            break;
        }
        std::thread::sleep(SETTLE);
        found = status(&repository, asked)?;
    }
    Ok(found)
}

impl Arguments {
    /// What the grammar cannot say.
    fn settle(&self) -> Result<(), Failure> {
        let asks = self.connection.name_a_server();
        if asks && self.repo.len() > 1 {
            return Err(Failure::usage("a server can be asked for one repository alone")
                .hint("give one --repo with the connection flags, or none of those"));
        }
        if self.max_lag.is_some() && !asks {
            return Err(Failure::usage("--max-lag needs a server to be asked")
                .hint("say which with -d, -h, -p or -U, for instance -d \"host=db1 user=backup\""));
        }
        Ok(())
    }

    /// A server that cannot be reached is part of the answer; a wrong command line is not.
    async fn ask(&self) -> Result<Result<Server, ServerError>, Failure> {
        match self.connection.session(NAME).await {
            Ok(mut session) => Ok(ask(&mut session).await),
            Err(e) if e.exit == Exit::Usage => Err(e),
            Err(e) => Ok(Err(ServerError::Unreachable(e.message().to_owned()))),
        }
    }
}

/// One line for all repositories, and whether all is well.
fn check(all: &[(&Path, Result<Status, Failure>)], limits: Limits, now: Timestamp) -> (bool, String) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (dir, found) in all {
        let reasons = match found {
            Ok(status) => status.reasons(limits, now).iter().map(ToString::to_string).collect(),
            Err(failure) => vec![failure.message().to_owned()],
        };
        match found {
            Ok(status) if reasons.is_empty() => good.push(summary(status, now)),
            _ => bad.push(format!("{}: {}", dir.display(), reasons.join("; "))),
        }
    }
    let line = if bad.is_empty() { format!("OK {}", good.join(" | ")) } else { format!("FAIL {}", bad.join(" | ")) };
    (bad.is_empty(), plain(&line))
}

/// Why there is nothing to worry about.
fn summary(status: &Status, now: Timestamp) -> String {
    let mut line = status.repository.clone();
    if let Some((newest, age)) = status.newest_usable().and_then(|newest| Some((newest, newest.age(now)?))) {
        line += &format!(": newest backup {} ended {} ago", newest.id, span(age));
    }
    if let Some(held) = status.held {
        line += &format!(", WAL held up to {}", held.pos.lsn());
    }
    if let Some(ServerAnswer::Told { lag: Lag { bytes: Some(bytes), .. }, .. }) = status.server {
        line += &format!(", {bytes} bytes behind the server");
    }
    line
}

/// The columns of the terminal that the answer goes to.
fn columns() -> usize {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return WIDTH;
    }
    let size = rustix::termios::tcgetwinsize(&stdout).map_or(0, |size| usize::from(size.ws_col));
    if size == 0 { WIDTH } else { size.clamp(40, 200) }
}

/// Whether the locale, as the C library reads it, has more than ASCII.
fn is_unicode(variable: impl Fn(&str) -> Option<String>) -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(|name| variable(name).filter(|v| !v.is_empty()));
    set.is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

#[cfg(test)]
mod tests;
