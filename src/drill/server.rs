//! The server that is started on what was restored.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::process::{PAUSE, Programs, Running};
use super::scratch::Scratch;
use super::{DrillError, DrillEvent, Ended, Limits, Stop};
use crate::wal::{Lsn, Segment, SegmentSize};

/// How long an orderly shutdown may take; nothing of it is needed.
const FAST: Duration = Duration::from_secs(60);

/// The log is looked at in pieces of so many bytes.
const PIECE: u64 = 1 << 20;

/// Lines at the end of the log that tell why a server ended.
const LAST_LINES: usize = 10;

/// Whether recovery has ended is told in the last line of `postmaster.pid` (`miscadmin.h`).
const STATUS_LINE: usize = 7;

/// A server that runs, as long as this lives.
pub(super) struct Server {
    running: Running,
    log: Log,
    pid_file: PathBuf,
}

impl Server {
    /// Starts it with a configuration of the drill's own.
    pub(super) fn start(programs: &Programs, scratch: &Scratch, config: &Path) -> Result<Self, DrillError> {
        let log = scratch.dir().join("server.log");
        let mut set = std::ffi::OsString::from("config_file=");
        set.push(config);
        let mut command = programs.command(&programs.server());
        command.arg("-D").arg(scratch.data()).arg("-c").arg(set).current_dir(scratch.dir());
        let running = Running::start(&mut command, &log)?;
        let pid_file = scratch.data().join("postmaster.pid");
        Ok(Self { running, log: Log { path: log, read: 0, rest: String::new() }, pid_file })
    }

    /// Waits until recovery has ended and the server takes sessions.
    pub(super) fn wait_for_recovery(
        &mut self,
        limits: &Limits<'_>,
        size: SegmentSize,
        (from, to): (Lsn, Lsn),
        tell: &mut impl FnMut(DrillEvent),
    ) -> Result<(), Ended> {
        loop {
            self.log.follow(&mut |line| match event(line, size) {
                Some(Seen::Segment(segment)) => tell(DrillEvent::Recovering { at: segment.start(), from, to }),
                Some(Seen::Consistent(lsn)) => tell(DrillEvent::Consistent(lsn)),
                None => {}
            });
            self.must_run("before its recovery had ended", tell)?;
            if self.is_ready() {
                return Ok(());
            }
            limits.check()?;
            std::thread::sleep(PAUSE);
        }
    }

    /// Fails, and tells the end of the log, if the server has ended.
    pub(super) fn must_run(&mut self, when: &str, tell: &mut impl FnMut(DrillEvent)) -> Result<(), Ended> {
        let path = self.log.path.clone();
        let status = self.running.ended().map_err(|source| DrillError::Path { path, source })?;
        let Some(status) = status else { return Ok(()) };
        let last = self.log.last_lines();
        let why = reason(&last).unwrap_or_else(|| status.to_string());
        for line in last {
            tell(DrillEvent::ServerLog(line));
        }
        Err(Ended::Failed(format!("the server ended {when}: {why}")))
    }

    fn is_ready(&self) -> bool {
        let content = std::fs::read_to_string(&self.pid_file).unwrap_or_default();
        content.lines().nth(STATUS_LINE).is_some_and(|status| status.trim() == "ready")
    }

    /// Ends it in good order, or at once when that is asked for or takes too long.
    pub(super) fn stop(mut self, stop: &Stop) {
        self.running.end(FAST, || stop.at_once.is_cancelled());
    }
}

/// A log file that is being written.
struct Log {
    path: PathBuf,
    read: u64,
    rest: String,
}

impl Log {
    /// Shows each whole line that has come since the last look.
    fn follow(&mut self, line: &mut impl FnMut(&str)) {
        let Ok(piece) = piece(&self.path, self.read) else { return };
        self.read += piece.len() as u64;
        self.rest.push_str(&String::from_utf8_lossy(&piece));
        while let Some((whole, rest)) = self.rest.split_once('\n') {
            line(whole);
            self.rest = rest.to_owned();
        }
    }

    fn last_lines(&self) -> Vec<String> {
        let len = std::fs::metadata(&self.path).map(|meta| meta.len()).unwrap_or_default();
        let bytes = piece(&self.path, len.saturating_sub(64 << 10)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let lines: Vec<String> = text.lines().map(printable).collect();
        lines.get(lines.len().saturating_sub(LAST_LINES)..).unwrap_or_default().to_vec()
    }
}

fn piece(path: &Path, from: u64) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(PIECE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A terminal may show it.
fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1000).collect()
}

/// What a line of the log says of the recovery.
#[derive(PartialEq, Eq, Debug)]
enum Seen {
    Segment(Segment),
    Consistent(Lsn),
}

fn event(line: &str, size: SegmentSize) -> Option<Seen> {
    if let Some((_, rest)) = line.split_once("restored log file \"") {
        return Segment::parse(rest.split('"').next()?, size).map(Seen::Segment);
    }
    let (_, rest) = line.split_once("consistent recovery state reached at ")?;
    rest.trim().parse().ok().map(Seen::Consistent)
}

/// The words of the last line that tells of an end.
fn reason(lines: &[String]) -> Option<String> {
    let said = |word: &str| {
        let line = lines.iter().rev().find_map(|line| line.split_once(word));
        line.map(|(_, message)| message.trim().to_owned())
    };
    // The startup process tells why, and then the postmaster only that it ended.
    said("PANIC:").or_else(|| said("FATAL:")).or_else(|| lines.last().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_tells_how_far_recovery_is() {
        let size = SegmentSize::DEFAULT;
        let at = "2026-11-22 14:00:00.000 UTC [77] LOG:  ";
        let segment = Segment::parse("000000010000000000000007", size).unwrap();
        assert_eq!(
            event(&format!("{at}restored log file \"000000010000000000000007\" from archive"), size),
            Some(Seen::Segment(segment))
        );
        assert_eq!(event(&format!("{at}restored log file \"00000002.history\" from archive"), size), None);
        assert_eq!(
            event(&format!("{at}consistent recovery state reached at 0/7000120"), size),
            Some(Seen::Consistent(Lsn::new(0x700_0120)))
        );
        assert_eq!(event(&format!("{at}redo starts at 0/7000028"), size), None);
    }

    #[test]
    fn the_reason_is_the_last_fatal_line() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let log = "x [1] LOG:  starting\nx [2] FATAL:  recovery ended before the target\n\
                   x [1] LOG:  startup process (PID 2) exited with exit code 1\n";
        assert_eq!(reason(&lines(log)).as_deref(), Some("recovery ended before the target"));
        assert_eq!(reason(&lines("postgres: cannot execute")).as_deref(), Some("postgres: cannot execute"));
        assert_eq!(reason(&[]), None);
    }
}
