//! Running walhold, and the stock tools, as a user would.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::Cluster;
use crate::room::{Room, SOON, wait_until};

/// No command of these tests should take longer; one that does hangs.
const LIMIT: Duration = Duration::from_secs(90);

/// `walhold receive --repo REPO -d CONNINFO`, with more arguments.
pub(crate) fn receive(room: &Room, repo: &Path, conninfo: &str, more: &[&str]) -> Running {
    start(walhold(room, "receive").arg("--repo").arg(repo).args(["-d", conninfo]).args(more))
}

/// `walhold COMMAND`, to which arguments are added.
pub(crate) fn walhold(room: &Room, command: &str) -> Command {
    let mut whole = room.command(room.program());
    whole.arg(command);
    whole
}

/// Runs a command to its end.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Ended {
    start(command).wait(LIMIT)
}

/// Starts a command.
#[track_caller]
pub(crate) fn start(command: &mut Command) -> Running {
    let line = spell(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{line}: {e}"));
    let out = Capture::of(child.stdout.take().unwrap());
    let err = Capture::of(child.stderr.take().unwrap());
    Running { child: RefCell::new(child), line, out, err }
}

fn spell(command: &Command) -> String {
    let mut line = String::from("$");
    for word in std::iter::once(command.get_program()).chain(command.get_args()) {
        let word = word.to_string_lossy();
        let quote = if word.is_empty() || word.contains(' ') { "'" } else { "" };
        let _ = write!(line, " {quote}{word}{quote}");
    }
    line
}

/// What a stream has brought so far.
#[derive(Debug)]
struct Capture {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Capture {
    fn of(mut stream: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let written = text.clone();
        let reader = std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut chunk) {
                written.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..n]));
            }
        });
        Self { text, reader: Some(reader) }
    }

    fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    fn whole(&mut self) -> String {
        self.reader.take().map(JoinHandle::join);
        self.text()
    }
}

/// A command in the background. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Running {
    child: RefCell<Child>,
    line: String,
    out: Capture,
    err: Capture,
}

impl Running {
    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.borrow().id()
    }

    /// What it has written to standard error so far.
    pub(crate) fn err(&self) -> String {
        self.err.text()
    }

    /// Waits until standard error has `text`; it must not end before that.
    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str) {
        wait_until(&format!("{:?} from {}", text, self.line), SOON, || {
            let seen = self.err().contains(text);
            assert!(seen || self.runs(), "{} ended without {text:?}:\n{}", self.line, self.err());
            seen
        });
    }

    /// Waits until it streams from this server as `walhold`.
    #[track_caller]
    pub(crate) fn wait_until_it_streams(&self, server: &Cluster<'_>) {
        let sql = "select count(*) from pg_stat_replication where application_name = 'walhold' and state = 'streaming'";
        wait_until(&format!("{} to stream", self.line), SOON, || {
            assert!(self.runs(), "{} ended:\n{}", self.line, self.err());
            server.sql(sql) != "0"
        });
    }

    /// Whether it has not ended.
    pub(crate) fn runs(&self) -> bool {
        self.child.borrow_mut().try_wait().unwrap().is_none()
    }

    /// `kill -9`.
    pub(crate) fn kill(self) -> Ended {
        self.end_by(Signal::KILL)
    }

    /// `kill -TERM`.
    #[track_caller]
    pub(crate) fn terminate(self) -> Ended {
        self.end_by(Signal::TERM)
    }

    /// Sends a signal that it goes on after.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child.borrow()), signal).unwrap();
    }

    /// Sends a signal and waits for the end.
    #[track_caller]
    pub(crate) fn end_by(self, signal: Signal) -> Ended {
        let _ = kill_process(Pid::from_child(&self.child.borrow()), signal);
        self.wait(SOON)
    }

    /// Waits for its end; panics, and kills it, if that does not come.
    #[track_caller]
    pub(crate) fn wait(mut self, limit: Duration) -> Ended {
        let end = Instant::now() + limit;
        while self.runs() {
            assert!(Instant::now() < end, "no end after {limit:?}: {}\n{}", self.line, self.err());
            std::thread::sleep(Duration::from_millis(10));
        }
        let status = self.child.get_mut().wait().unwrap();
        Ended { line: self.line.clone(), status, out: self.out.whole(), err: self.err.whole() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}\n{}", self.line, self.err());
        }
        let _ = self.child.get_mut().kill();
        let _ = self.child.get_mut().wait();
    }
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    line: String,
    /// How.
    pub(crate) status: ExitStatus,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

impl Ended {
    /// Its exit status must be this.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "\n{self}");
        self
    }

    /// It must have failed with this status, one line of cause that has all these words, and one hint.
    #[track_caller]
    pub(crate) fn refused(self, code: i32, words: &[&str]) -> Self {
        let this = self.expect(code);
        let lines: Vec<&str> = this.err.lines().collect();
        let hints: Vec<usize> = (0..lines.len()).filter(|i| lines[*i].contains("hint: ")).collect();
        assert!(hints.len() == 1 && hints[0] > 0, "not one hint after one line of cause\n{this}");
        assert_eq!(hints[0] + 1, lines.len(), "the hint is not the last line\n{this}");
        let cause = lines[hints[0] - 1];
        assert!(cause.contains("error: "), "no error in the line before the hint\n{this}");
        for word in words {
            assert!(cause.contains(word), "no {word:?} in the cause\n{this}");
        }
        this
    }

    /// Standard output or standard error must have this.
    #[track_caller]
    pub(crate) fn says(self, words: &str) -> Self {
        assert!(self.out.contains(words) || self.err.contains(words), "no {words:?} in what it said\n{self}");
        self
    }

    /// Whether a signal ended it.
    pub(crate) fn killed(&self) -> bool {
        self.status.signal().is_some()
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n{}\n--- stdout\n{}\n--- stderr\n{}", self.line, self.status, self.out, self.err)
    }
}
