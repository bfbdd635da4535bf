//! Where a test lives: a private folder, a user, and the program.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::fault::matrix::{Matrix, Row};
use crate::servers::Server;

/// What the machine cannot do for a test, in words for the report.
#[derive(Debug)]
pub(crate) struct Skip(pub(crate) String);

/// A scenario that ends has held; one that does not panics.
pub(crate) type Outcome = Result<(), Skip>;

/// `Err(Skip)` with a formatted reason.
macro_rules! skip {
    ($($arg:tt)*) => { return Err($crate::room::Skip(format!($($arg)*))) };
}
pub(crate) use skip;

/// An unprivileged user: numbers of user and group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User(pub(crate) u32, pub(crate) u32);

/// What all tests of a run share.
#[derive(Debug)]
pub(crate) struct World {
    base: PathBuf,
    servers: Vec<Server>,
    user: Option<User>,
    rooms: AtomicU32,
    templates: Mutex<HashMap<String, Arc<OnceLock<PathBuf>>>>,
    /// What faults came to.
    pub(crate) matrix: Matrix,
}

impl World {
    /// Makes the run's folder, and puts the program where the servers' user can reach it: a
    /// checkout is often in a home that is closed to others.
    pub(crate) fn new(servers: &[Server]) -> Self {
        // A socket's path has at most 107 bytes, so not in a TMPDIR that may be anywhere.
        let base = tempfile::Builder::new().prefix("wh").tempdir_in("/tmp").unwrap().keep();
        fs::set_permissions(&base, fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_walhold"), base.join("walhold")).unwrap();
        Self {
            base,
            servers: servers.to_vec(),
            user: unprivileged(),
            rooms: AtomicU32::new(0),
            templates: Mutex::default(),
            matrix: Matrix::default(),
        }
    }

    /// A folder for one test.
    pub(crate) fn room(&'static self, server: &Server) -> Room {
        let dir = self.base.join(self.rooms.fetch_add(1, Ordering::Relaxed).to_string());
        let room = Room { world: self, server: server.clone(), dir: dir.clone() };
        room.make_dir(&dir);
        room
    }

    /// Removes the run's folder.
    pub(crate) fn close(&self) {
        if std::env::var_os("WALHOLD_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.base.display());
        } else if let Err(e) = fs::remove_dir_all(&self.base) {
            eprintln!("cannot remove {}: {e}", self.base.display());
        }
    }
}

/// Servers refuse to run as root; walhold is run by the same user, as in real life.
fn unprivileged() -> Option<User> {
    rustix::process::geteuid().is_root().then(|| {
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let fields: Vec<&str> = passwd.lines().find(|l| l.starts_with("nobody:")).unwrap().split(':').collect();
        User(fields[2].parse().unwrap(), fields[3].parse().unwrap())
    })
}

/// One test's folder, on one server version.
#[derive(Debug)]
pub(crate) struct Room {
    world: &'static World,
    /// The version under test.
    pub(crate) server: Server,
    dir: PathBuf,
}

impl Room {
    /// Puts what came of a fault into the matrix; fails the test if anything was lost.
    #[track_caller]
    pub(crate) fn record(&self, row: Row) {
        self.world.matrix.take(self.server.major, row);
    }

    /// A path in this room.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The program under test.
    pub(crate) fn program(&self) -> PathBuf {
        self.world.base.join("walhold")
    }

    /// The user who runs everything, where we are root.
    pub(crate) fn user(&self) -> Option<User> {
        self.world.user
    }

    /// Makes a directory that belongs to the user.
    pub(crate) fn make_dir(&self, path: &Path) {
        fs::create_dir(path).unwrap_or_else(|e| panic!("make {}: {e}", path.display()));
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
        self.give(path);
    }

    /// Writes a file that belongs to the user, readable by no other.
    pub(crate) fn write(&self, path: &Path, text: impl AsRef<[u8]>) {
        fs::write(path, text).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        self.give(path);
    }

    fn give(&self, path: &Path) {
        if let Some(User(uid, gid)) = self.user() {
            chown(path, Some(uid), Some(gid)).unwrap();
        }
    }

    /// A command that runs as the user, with nothing of the caller's environment but the path.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        self.surround(&mut command);
        if let Some(User(uid, gid)) = self.user() {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// The same in a network namespace, which only root can enter.
    pub(crate) fn command_in(&self, namespace: &str, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        self.surround(&mut command);
        command.arg(format!("--net=/run/netns/{namespace}"));
        if let Some(User(uid, gid)) = self.user() {
            command.arg("setpriv").args([format!("--reuid={uid}"), format!("--regid={gid}")]).arg("--clear-groups");
        }
        command.arg(program.as_ref());
        command
    }

    fn surround(&self, command: &mut Command) {
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", &self.dir).env("LC_ALL", "C.UTF-8").env("TZ", "UTC").current_dir(&self.dir);
    }

    /// Runs a command to its end and gives what it printed on both streams; it must succeed.
    #[track_caller]
    pub(crate) fn must(&self, command: &mut Command) -> String {
        let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
        text
    }

    /// Copies a directory tree with its owners and modes.
    #[track_caller]
    pub(crate) fn copy_tree(&self, from: &Path, to: &Path) {
        self.must(self.command("cp").arg("-a").arg(from).arg(to));
    }

    /// A tool of the server's version.
    ///
    /// # Errors
    /// When this build of it has none.
    pub(crate) fn tool(&self, name: &str) -> Result<PathBuf, Skip> {
        let path = self.server.bin.join(name);
        if path.exists() { Ok(path) } else { Err(Skip(format!("this PostgreSQL {} has no {name}", self.server.major))) }
    }

    /// A client tool that works with the server: its own, or that of the next newer version at hand,
    /// for clients take older servers and not the other way round.
    ///
    /// # Errors
    /// When none has it.
    pub(crate) fn client(&self, name: &str) -> Result<PathBuf, Skip> {
        let mut newer: Vec<_> = self.world.servers.iter().filter(|s| s.major > self.server.major).collect();
        newer.sort_by_key(|s| s.major);
        let newer = newer.into_iter().map(|s| s.bin.join(name)).find(|path| path.exists());
        self.tool(name).or_else(|skip| newer.ok_or(skip))
    }

    /// What `make` puts into a folder, made once in a run.
    pub(crate) fn template(&self, key: &str, make: impl FnOnce(&Path)) -> PathBuf {
        let once = self.world.templates.lock().unwrap().entry(key.to_owned()).or_default().clone();
        once.get_or_init(|| {
            let path = self.world.base.join(format!("template-{key}"));
            self.make_dir(&path);
            make(&path.join("data"));
            path.join("data")
        })
        .clone()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if std::env::var_os("WALHOLD_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Asks until the answer is yes; panics when it does not come in time.
#[track_caller]
pub(crate) fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Generous, for a machine that is busy with other things.
pub(crate) const SOON: Duration = Duration::from_secs(60);
