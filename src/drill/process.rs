//! PostgreSQL's programs, as children of this one.

use std::io::Read as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{DrillError, Ended, Limits};
use crate::disk::Real;
use crate::protocol::ServerVersion;
use crate::restore::Owner;

/// Between two looks at a child.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// How long a program may take to end after it was told to.
const MERCY: Duration = Duration::from_secs(10);

/// Bytes of a program's output that are looked at.
const MAX_OUTPUT: u64 = 64 << 10;

/// Where the programs of one major version lie, and who runs them.
pub(super) struct Programs {
    bin: PathBuf,
    owner: Option<Owner>,
    /// As the server says it: `17.2 (Debian 17.2-1)`.
    pub(super) version: String,
}

impl Programs {
    /// Finds a server of the major version: in `given`, or else wherever one may be expected.
    pub(super) fn find(given: Option<&Path>, major: u32, owner: Option<Owner>) -> Result<Self, DrillError> {
        let places = given.map_or_else(|| usual_places(major, owner), |given| vec![given.to_owned()]);
        let mut others = Vec::new();
        for bin in places {
            match version(&bin.join("postgres"), owner) {
                Some(version) if ServerVersion::parse(&version).is_some_and(|v| v.major() == major) => {
                    return Ok(Self { bin, owner, version });
                }
                Some(version) => others.push(format!("{} in {}", version, bin.display())),
                None => {}
            }
        }
        Err(DrillError::NoServer { major, given: given.map(Path::to_owned), others })
    }

    /// The server.
    pub(super) fn server(&self) -> PathBuf {
        self.bin.join("postgres")
    }

    /// A client program: beside the server, or on the path.
    pub(super) fn client(&self, name: &str) -> Option<PathBuf> {
        let beside = [self.bin.clone()];
        beside.into_iter().chain(search_path()).map(|dir| dir.join(name)).find(|path| path.is_file())
    }

    /// A command that runs as the server's user, away from the terminal's signals and the caller's
    /// `PG*` variables.
    pub(super) fn command(&self, program: &Path) -> Command {
        command(program, self.owner)
    }
}

fn command(program: &Path, owner: Option<Owner>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C").stdin(Stdio::null()).process_group(0);
    for name in ["PATH", "LD_LIBRARY_PATH", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    if let Some(owner) = owner {
        command.uid(owner.user).gid(owner.group);
    }
    command
}

fn search_path() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

fn usual_places(major: u32, owner: Option<Owner>) -> Vec<PathBuf> {
    let told = command(Path::new("pg_config"), owner).arg("--bindir").output().ok();
    let told = told.and_then(|output| String::from_utf8(output.stdout).ok()).map(|text| PathBuf::from(text.trim()));
    let packaged = [format!("/usr/lib/postgresql/{major}/bin"), format!("/usr/pgsql-{major}/bin")].map(PathBuf::from);
    let all = told.into_iter().chain(packaged).chain(search_path());
    all.filter(|dir| dir.is_absolute()).collect()
}

/// What stands behind `postgres (PostgreSQL) `.
fn version(server: &Path, owner: Option<Owner>) -> Option<String> {
    let output = command(server, owner).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.trim().split_once("(PostgreSQL) ").map(|(_, version)| version.to_owned())
}

/// A program that runs. Dropped, it is ended.
pub(super) struct Running {
    child: Child,
}

impl Running {
    /// Starts it, with its output in a new file.
    pub(super) fn start(command: &mut Command, output: &Path) -> Result<Self, DrillError> {
        let program = PathBuf::from(command.get_program());
        let wrong = |source| DrillError::Path { path: program, source };
        let file = Real::create_output(output)?;
        let both = file.try_clone().and_then(|copy| command.stdout(copy).stderr(file).spawn());
        both.map(|child| Self { child }).map_err(wrong)
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Ends it: in good order within the limit, unless there is hurry; then at once; then by force.
    pub(super) fn end(&mut self, limit: Duration, hurry: impl Fn() -> bool) {
        for (signal, limit) in [(Signal::INT, limit), (Signal::QUIT, MERCY)] {
            if !matches!(self.ended(), Ok(None)) {
                return;
            }
            // It may end this moment by itself.
            let _ = kill_process(Pid::from_child(&self.child), signal);
            if self.wait(limit, || signal == Signal::INT && hurry()) {
                return;
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits so long for its end; whether it came.
    fn wait(&mut self, limit: Duration, until: impl Fn() -> bool) -> bool {
        let end = Instant::now() + limit;
        loop {
            if !matches!(self.ended(), Ok(None)) {
                return true;
            }
            if Instant::now() >= end || until() {
                return false;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(MERCY, || false);
    }
}

/// Runs a client program to its end; how it ended, and what it said.
pub(super) fn run(command: &mut Command, output: &Path, limits: &Limits<'_>) -> Result<(ExitStatus, String), Ended> {
    let mut running = Running::start(command, output)?;
    loop {
        let ended =
            running.ended().map_err(|source| DrillError::Path { path: command.get_program().into(), source })?;
        if let Some(status) = ended {
            return Ok((status, read_output(output)?));
        }
        limits.check()?;
        std::thread::sleep(PAUSE);
    }
}

/// What a program wrote, as far as it is looked at.
fn read_output(path: &Path) -> Result<String, DrillError> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_OUTPUT).read_to_end(&mut bytes));
    read.map_err(|source| DrillError::Path { path: path.to_owned(), source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Lines that are worth telling, on one.
pub(super) fn brief(output: &str) -> String {
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let told = lines.get(..3).unwrap_or(&lines).join(" ");
    if told.is_empty() { "it said nothing".to_owned() } else { told.chars().take(1000).collect() }
}
