//! Which servers there are to test with.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs of one major version.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// 13 to 18.
    pub(crate) major: u32,
    /// Where initdb and postgres are, and mostly the client tools.
    pub(crate) bin: PathBuf,
}

/// Those named in `WALHOLD_TEST_SERVERS`, else those on this machine.
pub(crate) fn at_hand() -> Vec<Server> {
    let text = std::env::var("WALHOLD_TEST_SERVERS").unwrap_or_else(|_| already_here());
    text.split_whitespace()
        .map(|entry| parse(entry).unwrap_or_else(|| panic!("not MAJOR=DIRECTORY: {entry}")))
        .collect()
}

fn already_here() -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/pg-servers");
    match Command::new(script).arg("--list").output() {
        Ok(output) if output.status.success() => {
            let all = String::from_utf8_lossy(&output.stdout).into_owned();
            // Two versions are enough for `cargo test`; more are asked for by name.
            all.lines().filter(|l| l.starts_with("15=") || l.starts_with("17=")).collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

fn parse(entry: &str) -> Option<Server> {
    let (major, bin) = entry.split_once('=')?;
    Some(Server { major: major.parse().ok()?, bin: PathBuf::from(bin) })
}
