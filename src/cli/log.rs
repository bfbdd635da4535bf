//! The log, on stderr.

use clap::{Args, ValueEnum};
use tracing::Level;

/// How to log.
#[derive(Debug, Args)]
pub(super) struct LogFlags {
    /// Say more; twice for details
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Log options")]
    verbose: u8,
    /// How log lines look
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, env = "WALHOLD_LOG_FORMAT", help_heading = "Log options")]
    log_format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl LogFlags {
    pub(super) fn is_json(&self) -> bool {
        matches!(self.log_format, Format::Json)
    }

    pub(super) fn start(&self) {
        let level = match self.verbose {
            0 => Level::INFO,
            1 => Level::DEBUG,
            _ => Level::TRACE,
        };
        let log = tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_max_level(level)
            .with_target(false)
            .log_internal_errors(false);
        // A second start, as tests make it, leaves the first in place.
        let _ = match self.log_format {
            Format::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
            Format::Json => log.json().flatten_event(true).try_init(),
        };
    }
}
