//! The operator's command, in a process group of its own.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use thiserror::Error;
use tokio::process::{Child, Command};

/// How long it may take to end after it was told to.
const MERCY: Duration = Duration::from_secs(10);

/// The command has not done what it was to do.
#[derive(Debug, Error)]
pub enum CommandError {
    /// There is no shell, or no room for a process.
    #[error("cannot run the command: {0}")]
    NotStarted(std::io::Error),
    /// It ended with an error.
    #[error("the command ended with {}", how(*.0))]
    Failed(ExitStatus),
    /// It cannot be waited for.
    #[error("cannot wait for the command: {0}")]
    Lost(std::io::Error),
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// It runs. Dropped, it and all it has started are ended.
pub(super) struct Running {
    child: Child,
    group: Option<Pid>,
}

impl Running {
    /// Starts it by `sh -c`. What it prints goes where our log goes: standard output is for the answer.
    pub(super) fn start(command: &str, environment: &[(&str, OsString)]) -> Result<Self, CommandError> {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(command).stdin(Stdio::null()).stdout(std::io::stderr()).process_group(0);
        for (name, value) in environment {
            shell.env(name, value);
        }
        let child = shell.spawn().map_err(CommandError::NotStarted)?;
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Ok(Self { child, group })
    }

    /// Waits until it has ended, which it must do with exit code 0. May be cancelled.
    pub(super) async fn wait(&mut self) -> Result<(), CommandError> {
        let status = self.child.wait().await.map_err(CommandError::Lost)?;
        if status.success() {
            // What it has left in the background, if anything, it has left on purpose.
            self.group = None;
            return Ok(());
        }
        Err(CommandError::Failed(status))
    }

    /// Ends it, and all it has started.
    pub(super) async fn end(mut self) {
        self.signal(Signal::TERM);
        let _ = tokio::time::timeout(MERCY, self.child.wait()).await;
        // Whatever is left of the group is ended when this is dropped.
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
