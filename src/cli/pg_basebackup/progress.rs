//! The line that `--progress` shows, as pg_basebackup writes it.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::basebackup::Progress;

/// Columns for the name of the current file.
const NAME_WIDTH: usize = 35;
/// The line is not renewed more often, but for an archive that has come whole.
const PACE: Duration = Duration::from_secs(1);

/// Shows how far a copy is, on standard error.
pub(super) struct Meter {
    /// With the current file's name.
    verbose: bool,
    total_kb: u64,
    archives: usize,
    last: Progress,
    shown: Option<Instant>,
    /// Whether the cursor stands at the end of a line that is to be overwritten.
    open: bool,
}

impl Meter {
    pub(super) const fn new(verbose: bool) -> Self {
        let last = Progress { done: 0, archives: 0, file: None };
        Self { verbose, total_kb: 0, archives: 0, last, shown: None, open: false }
    }

    /// Before anything is known.
    pub(super) fn waiting(&mut self) {
        if !self.verbose {
            self.print("waiting for checkpoint", false);
        }
    }

    /// What there will be.
    pub(super) fn started(&mut self, estimate: Option<u64>, archives: usize) {
        (self.total_kb, self.archives) = (estimate.unwrap_or(0) / 1024, archives);
    }

    /// Further on.
    pub(super) fn tell(&mut self, progress: Progress) {
        let due = self.shown.is_none_or(|shown| shown.elapsed() >= PACE);
        let next = progress.archives != self.last.archives;
        self.last = progress;
        if due || next {
            self.show(false);
        }
    }

    /// All has come.
    pub(super) fn finished(&mut self) {
        self.last.file = None;
        self.show(true);
    }

    /// Something else is about to be printed.
    pub(super) fn interrupted(&mut self) {
        if std::mem::take(&mut self.open) {
            let _ = writeln!(std::io::stderr());
        }
    }

    fn show(&mut self, last: bool) {
        self.shown = Some(Instant::now());
        // What was estimated is of a moment; more may come.
        let percent = percent(self.last.done, self.total_kb);
        self.total_kb = self.total_kb.max(self.last.done / 1024);
        let mut text = line(&self.last, percent, self.total_kb, self.archives);
        if self.verbose {
            text.push_str(&file(&self.last));
        }
        self.print(&text, last);
    }

    fn print(&mut self, text: &str, last: bool) {
        let mut stderr = std::io::stderr();
        self.open = !last && stderr.is_terminal();
        let end = if self.open { '\r' } else { '\n' };
        // Nobody who listens is no reason to end.
        let _ = write!(stderr, "{text}{end}");
    }
}

/// Of the estimate, and never above 100.
fn percent(done: u64, total_kb: u64) -> u64 {
    (done / 1024).saturating_mul(100).checked_div(total_kb).unwrap_or(0).min(100)
}

fn line(progress: &Progress, percent: u64, total_kb: u64, archives: usize) -> String {
    let total = total_kb.to_string();
    let (done, width) = (progress.done / 1024, total.len());
    let plural = if archives == 1 { "" } else { "s" };
    format!("{done:width$}/{total} kB ({percent}%), {}/{archives} tablespace{plural}", progress.archives)
}

/// The end of a long name is what tells it from others. Without a file, the place is cleared.
fn file(progress: &Progress) -> String {
    let Some(file) = &progress.file else { return format!(" {:1$}", "", NAME_WIDTH + 5) };
    let name = file.to_string_lossy();
    let length = name.chars().count();
    if length <= NAME_WIDTH {
        return format!(" ({name:NAME_WIDTH$})");
    }
    let end: String = name.chars().skip(length - (NAME_WIDTH - 3)).collect();
    format!(" (...{end})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(done: u64, archives: usize, file: Option<&str>) -> Progress {
        Progress { done, archives, file: file.map(Into::into) }
    }

    #[test]
    fn the_line() {
        assert_eq!(line(&at(0, 0, None), 0, 12345, 1), "    0/12345 kB (0%), 0/1 tablespace");
        assert_eq!(line(&at(12345 << 10, 1, None), 100, 12345, 1), "12345/12345 kB (100%), 1/1 tablespace");
        assert_eq!(line(&at(1023, 1, None), 0, 5, 3), "0/5 kB (0%), 1/3 tablespaces");
    }

    #[test]
    fn the_file() {
        assert_eq!(file(&at(0, 0, Some("base/5/1259"))), format!(" (base/5/1259{})", " ".repeat(24)));
        let just = "x".repeat(35);
        assert_eq!(file(&at(0, 0, Some(&just))), format!(" ({just})"));
        let long = format!("some/where/{}", "é".repeat(32));
        assert_eq!(file(&at(0, 0, Some(&long))), format!(" (...{})", "é".repeat(32)));
        assert_eq!(file(&at(0, 0, None)).len(), 41);
    }

    #[test]
    fn percents() {
        for (done, total, wanted) in [(0, 0, 0), (1 << 20, 0, 0), (512 << 10, 1024, 50), (1 << 21, 1024, 100)] {
            assert_eq!(percent(done, total), wanted);
        }
        assert_eq!(percent(u64::MAX, 1), 100);
    }

    #[test]
    fn the_total_grows_with_what_comes() {
        let mut meter = Meter::new(false);
        meter.started(Some(2048), 1);
        meter.tell(at(1024, 0, None));
        assert_eq!(meter.total_kb, 2);
        meter.tell(at(9 << 10, 1, None));
        assert_eq!(meter.total_kb, 9);
    }
}
