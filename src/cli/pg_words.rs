//! What PostgreSQL's programs whose names this one can bear say on standard error, as far as they have it in
//! common: the form of lines, and libpq's words. Scripts match these.

use std::fmt;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use tracing::{Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::connect::NotConnected;
use super::pg_compress::integer;
use super::{Exit, Failure};
use crate::connection::{ConnectError, ConninfoError, Error as SessionError, LoginError};
use crate::disk::DiskError;
use crate::protocol::{ServerError, SlotName, SlotNameError};
use crate::receive::ReceiveError;

/// The version of PostgreSQL that walhold behaves as under these names. Programs that start it read the first
/// number, and drop what stands in parentheses.
const BEHAVES_AS: &str = "18.0";

/// The longest `--status-interval`, in seconds: in milliseconds it fits into an `int`.
const LONGEST_INTERVAL: i32 = i32::MAX / 1000;

/// What `--version` answers.
pub(super) fn version(name: &str) -> String {
    format!("{name} (PostgreSQL) {BEHAVES_AS} (walhold {})\n", env!("CARGO_PKG_VERSION"))
}

/// Prints what was asked for.
pub(super) fn answer(name: &str, text: &str) -> ExitCode {
    match super::say(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            Said::from(failure).print(name);
            ExitCode::FAILURE
        }
    }
}

/// Prints a line that is neither error nor warning.
pub(super) fn line(name: &str, text: &str) {
    super::complain(&format_args!("{name}: {text}"));
}

/// Prints a warning.
pub(super) fn warning(name: &str, text: &str) {
    super::complain(&format_args!("{name}: warning: {text}"));
}

/// Why a command line is refused.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// A value makes no sense.
    Value(String),
    /// Flags do not fit together; the help is pointed to.
    Usage(String),
    /// What [`super::getopt`] complains of, printed as it is; the help is pointed to.
    Complaint(String),
    /// `--help` or `--version` elsewhere than in front: nothing is said but where help is.
    Misplaced,
}

impl Refusal {
    /// Prints it.
    pub(super) fn print(&self, name: &str) {
        match self {
            Self::Value(message) | Self::Usage(message) => super::complain(&format_args!("{name}: error: {message}")),
            Self::Complaint(line) => super::complain(line),
            Self::Misplaced => {}
        }
        if !matches!(self, Self::Value(_)) {
            super::complain(&format_args!("{name}: hint: Try \"{name} --help\" for more information."));
        }
    }
}

/// The value of `--status-interval`. 0 sends no status without a reason, and so does an empty word.
pub(super) fn interval(text: &str) -> Result<Option<Duration>, Refusal> {
    let name = "-s/--status-interval";
    let number = text.trim_end_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
    let seconds = if number.is_empty() { Some(0) } else { integer(number) };
    match seconds {
        None => Err(Refusal::Value(format!("invalid value \"{text}\" for option {name}"))),
        Some(seconds @ 0..=LONGEST_INTERVAL) => {
            Ok(Some(Duration::from_secs(u64::from(seconds.unsigned_abs()))).filter(|time| !time.is_zero()))
        }
        Some(_) => Err(Refusal::Value(format!("{name} must be in range 0..{LONGEST_INTERVAL}"))),
    }
}

/// A slot's name, refused with a server's words.
pub(super) fn slot(name: &str) -> Result<SlotName, String> {
    name.parse().map_err(|SlotNameError(name): SlotNameError| {
        let what = match name.len() {
            0 => "is too short",
            1..=63 => "contains invalid character",
            _ => "is too long",
        };
        format!("replication slot name \"{name}\" {what}")
    })
}

/// Why a program does not go on.
#[derive(Debug)]
pub(super) struct Said {
    message: String,
    hint: Option<String>,
    /// One more error.
    last: Option<&'static str>,
    /// For when it is called as a command of walhold.
    exit: Exit,
}

impl Said {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, last: None, exit: Exit::Error }
    }

    pub(super) fn hint(self, hint: Option<String>) -> Self {
        Self { hint, ..self }
    }

    /// With an error after it.
    pub(super) fn and(self, last: Option<&'static str>) -> Self {
        Self { last, ..self }
    }

    pub(super) fn with_exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }

    pub(super) fn exit(&self) -> Exit {
        self.exit
    }

    /// The server said no to a command.
    pub(super) fn refused(command: &str, error: &SessionError) -> Self {
        Self::new(format!("could not send replication command \"{command}\": {}", session(error)))
    }

    /// Prints it.
    pub(super) fn print(&self, name: &str) {
        super::complain(&format_args!("{name}: error: {}", self.message));
        if let Some(hint) = &self.hint {
            super::complain(&format_args!("{name}: hint: {hint}"));
        }
        if let Some(last) = self.last {
            super::complain(&format_args!("{name}: error: {last}"));
        }
    }
}

impl From<Failure> for Said {
    fn from(failure: Failure) -> Self {
        let hint = failure.advice().map(str::to_owned);
        Self::new(failure.message()).hint(hint).with_exit(failure.exit)
    }
}

impl From<DiskError> for Said {
    fn from(e: DiskError) -> Self {
        Failure::from(e).into()
    }
}

impl From<ConninfoError> for Said {
    fn from(e: ConninfoError) -> Self {
        Self::new(match e {
            ConninfoError::UnknownKeyword(keyword) => format!("invalid connection option \"{keyword}\""),
            other => other.to_string(),
        })
    }
}

impl From<NotConnected> for Said {
    fn from(e: NotConnected) -> Self {
        match e {
            NotConnected::Conninfo(e) => e.into(),
            NotConnected::Prompt(failure) => failure.into(),
            NotConnected::Receive(ReceiveError::Connect(e)) => connection(&e),
            NotConnected::Receive(e) => Failure::from(e).into(),
        }
    }
}

/// No session came about.
pub(super) fn connection(e: &ConnectError) -> Said {
    let at = |target: &str| match target.rsplit_once(':') {
        _ if target.starts_with('/') => format!("on socket \"{target}\""),
        Some((host, port)) => format!("at \"{}\", port {port}", host.trim_matches(['[', ']'])),
        None => format!("at \"{target}\""),
    };
    let failed = |target: &str, why: &dyn fmt::Display| format!("connection to server {} failed: {why}", at(target));
    let message = match e {
        ConnectError::Resolve { host, source } => {
            format!("could not translate host name \"{host}\" to address: {}", system(source))
        }
        ConnectError::Unreachable { target, source } => failed(target, &system(source)),
        ConnectError::Refused { target, error, .. } => failed(target, &server(error)),
        ConnectError::Login { target, source: LoginError::PasswordMissing { .. } } => {
            failed(target, &"fe_sendauth: no password supplied")
        }
        other => format!("connection to server failed: {other}"),
    };
    Said::new(message).hint(e.hint())
}

/// An error of a session's call, as libpq shows it.
pub(super) fn session(e: &SessionError) -> String {
    match e.server_error() {
        Some(error) => server(error),
        None => e.to_string(),
    }
}

/// A server's error, as libpq shows it.
pub(super) fn server(error: &ServerError) -> String {
    let more =
        |word: &str, text: &Option<String>| text.as_ref().map_or_else(String::new, |t| format!("\n{word}:  {t}"));
    let (detail, hint) = (more("DETAIL", &error.detail), more("HINT", &error.hint));
    format!("{}:  {}{detail}{hint}", error.severity, error.message)
}

/// The operating system's words, without the number of the error.
pub(super) fn system(e: &io::Error) -> String {
    let text = e.to_string();
    text.split_once(" (os error").map_or(text.as_str(), |(words, _)| words).to_owned()
}

/// Warnings of the rooms below, in the same form.
pub(super) fn start_log(name: &'static str) {
    let log = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .log_internal_errors(false)
        .with_max_level(Level::WARN)
        .event_format(Form(name));
    // A second start, as tests make it, leaves the first in place.
    let _ = log.try_init();
}

struct Form(&'static str);

impl<S, N> FormatEvent<S, N> for Form
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut to: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        let level = if *event.metadata().level() == Level::ERROR { "error" } else { "warning" };
        write!(to, "{}: {level}: ", self.0)?;
        context.field_format().format_fields(to.by_ref(), event)?;
        writeln!(to)
    }
}
