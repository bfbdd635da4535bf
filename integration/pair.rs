//! walhold under a stock program's name, beside the real one.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program::{Ended, run};
use crate::room::Room;

/// The one under test, and the real one where this version has it and says what 18 says.
pub(crate) struct Pair {
    pub(crate) ours: PathBuf,
    pub(crate) theirs: Option<PathBuf>,
}

impl Pair {
    /// `since` is the first version whose program of this `name` says what that of 18 says.
    pub(crate) fn new(room: &Room, name: &str, since: u32) -> Self {
        let ours = room.path(name);
        symlink(room.program(), &ours).unwrap();
        Self { ours, theirs: room.tool(name).ok().filter(|_| room.server.major >= since) }
    }

    /// Both are run, and must end with this code and the same words.
    #[track_caller]
    pub(crate) fn run(&self, code: i32, command: impl Fn(&Path) -> Command) -> Ended {
        let ours = run(&mut command(&self.ours)).expect(code);
        if let Some(theirs) = &self.theirs {
            let stock = run(&mut command(theirs)).expect(code);
            assert_eq!(words(&ours, &self.ours), words(&stock, theirs), "\n{ours}\n{stock}");
        }
        ours
    }
}

/// The lines on standard error without numbers, each once: the real one says some twice.
pub(crate) fn words(ended: &Ended, program: &Path) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in ended.err.replace(program.to_str().unwrap(), "PROGRAM").lines() {
        let words = line.split_inclusive([' ', '"', '.', ',']).map(|word| {
            let number = word.contains(|c: char| c.is_ascii_digit());
            let hex = word.trim_end_matches([' ', '"', '.', ',']).chars();
            if number && hex.clone().all(|c| c.is_ascii_hexdigit() || c == '/') { "#" } else { word }
        });
        let line: String = words.collect();
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}
