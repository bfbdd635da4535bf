//! What `pg_receivewal` can be told, and what it answers to what it cannot be told.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::super::connect::ConnectionFlags;
use super::super::getopt::{Flag, Getopt};
use super::super::pg_compress::{Method, Specification};
use super::super::pg_words::{Refusal, interval};
use crate::codec::{self, Packing};
use crate::wal::Lsn;

/// What is asked for.
#[derive(Debug)]
pub(super) enum Asked {
    Help,
    Version,
    Work(Box<Options>),
}

/// A command line that is in order.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) work: Work,
    pub(super) verbose: bool,
    pub(super) connection: ConnectionFlags,
}

#[derive(Debug)]
pub(super) enum Work {
    CreateSlot { name: String, if_not_exists: bool },
    DropSlot { name: String },
    Receive(Receive),
}

#[derive(Debug)]
pub(super) struct Receive {
    pub(super) directory: PathBuf,
    pub(super) slot: Option<String>,
    pub(super) end: Option<Lsn>,
    /// `None`: only when there is a reason.
    pub(super) status_interval: Option<Duration>,
    pub(super) no_loop: bool,
    pub(super) no_sync: bool,
    pub(super) synchronous: bool,
    pub(super) compress: Option<Packing>,
}

#[derive(Clone, Copy, Debug)]
enum Id {
    Help,
    Version,
    Directory,
    Dbname,
    Endpos,
    Host,
    Port,
    Username,
    NoLoop,
    NoPassword,
    Password,
    StatusInterval,
    Slot,
    Verbose,
    Compress,
    CreateSlot,
    DropSlot,
    IfNotExists,
    Synchronous,
    NoSync,
}

const fn flag(long: &'static str, short: Option<u8>, takes: bool, id: Id) -> Flag<Id> {
    Flag { long, short, takes, id }
}

/// In the order in which an ambiguous name's possibilities are listed. Help and version are known by
/// their long names, but answered only as the first word of all.
const FLAGS: &[Flag<Id>] = &[
    flag("help", None, false, Id::Help),
    flag("version", None, false, Id::Version),
    flag("directory", Some(b'D'), true, Id::Directory),
    flag("dbname", Some(b'd'), true, Id::Dbname),
    flag("endpos", Some(b'E'), true, Id::Endpos),
    flag("host", Some(b'h'), true, Id::Host),
    flag("port", Some(b'p'), true, Id::Port),
    flag("username", Some(b'U'), true, Id::Username),
    flag("no-loop", Some(b'n'), false, Id::NoLoop),
    flag("no-password", Some(b'w'), false, Id::NoPassword),
    flag("password", Some(b'W'), false, Id::Password),
    flag("status-interval", Some(b's'), true, Id::StatusInterval),
    flag("slot", Some(b'S'), true, Id::Slot),
    flag("verbose", Some(b'v'), false, Id::Verbose),
    flag("compress", Some(b'Z'), true, Id::Compress),
    flag("create-slot", None, false, Id::CreateSlot),
    flag("drop-slot", None, false, Id::DropSlot),
    flag("if-not-exists", None, false, Id::IfNotExists),
    flag("synchronous", None, false, Id::Synchronous),
    flag("no-sync", None, false, Id::NoSync),
];

/// Flags as they were given; what they add up to is seen when all are known.
#[derive(Debug, Default)]
struct Given {
    directory: Option<PathBuf>,
    slot: Option<String>,
    end: Option<Lsn>,
    status_interval: Option<Duration>,
    compress: String,
    no_loop: bool,
    no_sync: bool,
    synchronous: bool,
    create_slot: bool,
    drop_slot: bool,
    if_not_exists: bool,
    verbose: bool,
    connection: ConnectionFlags,
}

impl Asked {
    /// Reads a command line, the program's name first.
    pub(super) fn read(arguments: Vec<OsString>) -> Result<Self, Refusal> {
        match arguments.get(1).and_then(|word| word.to_str()) {
            Some("--help" | "-?") => return Ok(Self::Help),
            Some("--version" | "-V") => return Ok(Self::Version),
            _ => {}
        }
        let mut given =
            Given { compress: "none".to_owned(), status_interval: Some(Duration::from_secs(10)), ..Given::default() };
        let mut getopt = Getopt::new(FLAGS, arguments);
        for option in getopt.by_ref() {
            let (id, value) = option.map_err(Refusal::Complaint)?;
            given.take(id, value.unwrap_or_default())?;
        }
        if let Some(first) = getopt.into_operands().first() {
            let first = first.to_string_lossy();
            return Err(Refusal::Usage(format!("too many command-line arguments (first is \"{first}\")")));
        }
        given.add_up().map(|options| Self::Work(Box::new(options)))
    }
}

impl Given {
    fn take(&mut self, id: Id, value: OsString) -> Result<(), Refusal> {
        // Only a folder's name may be other than text.
        let text = || value.to_string_lossy().into_owned();
        match id {
            // Known, and out of place here.
            Id::Help | Id::Version => return Err(Refusal::Misplaced),
            Id::Directory => self.directory = Some(value.into()),
            Id::Endpos => self.end = end(&text())?,
            Id::StatusInterval => self.status_interval = interval(&text())?,
            Id::Slot => self.slot = Some(text()),
            Id::Compress => self.compress = text(),
            Id::NoLoop => self.no_loop = true,
            Id::NoSync => self.no_sync = true,
            Id::Synchronous => self.synchronous = true,
            Id::CreateSlot => self.create_slot = true,
            Id::DropSlot => self.drop_slot = true,
            Id::IfNotExists => self.if_not_exists = true,
            Id::Verbose => self.verbose = true,
            Id::Dbname => self.connection.dbname = Some(text()),
            Id::Host => self.connection.host = Some(text()),
            Id::Port => self.connection.port = Some(text()),
            Id::Username => self.connection.username = Some(text()),
            // The last of the two wins.
            Id::NoPassword => (self.connection.no_password, self.connection.password) = (true, false),
            Id::Password => (self.connection.no_password, self.connection.password) = (false, true),
        }
        Ok(())
    }

    fn add_up(self) -> Result<Options, Refusal> {
        let refused = |message: &str| Err(Refusal::Usage(message.to_owned()));
        if self.drop_slot && self.create_slot {
            return refused("cannot use --create-slot together with --drop-slot");
        }
        let action = if self.drop_slot { "--drop-slot" } else { "--create-slot" };
        let acts = self.drop_slot || self.create_slot;
        if acts && self.slot.is_none() {
            return refused(&format!("{action} needs a slot to be specified using --slot"));
        }
        if self.synchronous && self.no_sync {
            return refused("cannot use --synchronous together with --no-sync");
        }
        if !acts && self.directory.is_none() {
            return refused("no target directory specified");
        }
        let compress = packing(&self.compress).map_err(Refusal::Value)?;
        let work = match (self.slot, self.directory) {
            (Some(name), _) if self.drop_slot => Work::DropSlot { name },
            (Some(name), _) if self.create_slot => Work::CreateSlot { name, if_not_exists: self.if_not_exists },
            (slot, directory) => Work::Receive(Receive {
                directory: directory.unwrap_or_default(),
                slot,
                end: self.end,
                status_interval: self.status_interval,
                no_loop: self.no_loop,
                no_sync: self.no_sync,
                synchronous: self.synchronous,
                compress,
            }),
        };
        Ok(Options { work, verbose: self.verbose, connection: self.connection })
    }
}

fn packing(text: &str) -> Result<Option<Packing>, String> {
    let Specification { method, level, .. } = Specification::parse(text)?;
    let method = match method {
        Method::None => return Ok(None),
        Method::Gzip => codec::Method::Gzip,
        Method::Lz4 => codec::Method::Lz4,
        // walhold has it; a script that finds out what this program can do finds what it always has.
        Method::Zstd => return Err("compression with ZSTD is not yet supported".to_owned()),
    };
    let level = level.map(u8::try_from).transpose().ok().and_then(|level| match level {
        Some(level) => Packing::new(method, level),
        None => Some(method.into()),
    });
    // The levels are the same.
    level.map(Some).ok_or_else(|| format!("unrecognized compression algorithm: \"{text}\""))
}

/// 0/0 is no end.
fn end(text: &str) -> Result<Option<Lsn>, Refusal> {
    let end: Lsn = text.parse().map_err(|_| Refusal::Value(format!("could not parse end position \"{text}\"")))?;
    Ok(Some(end).filter(|end| *end != Lsn::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> Result<Asked, Refusal> {
        let words = std::iter::once("/usr/bin/pg_receivewal").chain(words.split(' ').filter(|word| !word.is_empty()));
        Asked::read(words.map(|word| if word == "EMPTY" { OsString::new() } else { word.into() }).collect())
    }

    fn work(words: &str) -> Options {
        match read(words) {
            Ok(Asked::Work(options)) => *options,
            other => panic!("{words}: {other:?}"),
        }
    }

    fn receive(words: &str) -> Receive {
        match work(words).work {
            Work::Receive(receive) => receive,
            other => panic!("{words}: {other:?}"),
        }
    }

    #[test]
    fn each_flag_is_taken() {
        let plain = receive("-D dir");
        assert_eq!((plain.directory, plain.slot, plain.end), ("dir".into(), None, None));
        assert_eq!(plain.status_interval, Some(Duration::from_secs(10)));
        assert!(!plain.no_loop && !plain.no_sync && !plain.synchronous && plain.compress.is_none());
        let all = receive("-vn -S s --endpos 1/a0 -s 5 --no-sync -Z lz4:3 --directory=dir");
        assert_eq!((all.slot.as_deref(), all.end), (Some("s"), Some(Lsn::new(0x1_0000_00a0))));
        assert_eq!(all.status_interval, Some(Duration::from_secs(5)));
        assert_eq!(all.compress, Packing::new(codec::Method::Lz4, 3));
        assert_eq!(receive("-D dir -Z gzip").compress, Some(codec::Method::Gzip.into()));
        assert_eq!(receive("-D dir -Z 9").compress, Packing::new(codec::Method::Gzip, 9));
        assert!(all.no_loop && all.no_sync && receive("-D dir --synchronous").synchronous);
        assert!(work("-vv -D dir").verbose);
        let connection = work("-D dir -d one -h two -p 3 -U four -W -w").connection;
        assert_eq!((connection.dbname.as_deref(), connection.host.as_deref()), (Some("one"), Some("two")));
        assert_eq!((connection.port.as_deref(), connection.username.as_deref()), (Some("3"), Some("four")));
        assert!(connection.no_password && !connection.password);
        assert!(work("-D dir -w -W").connection.password);
        for zero in ["-s 0", "-s EMPTY"] {
            assert_eq!(receive(&format!("-D dir {zero}")).status_interval, None);
        }
        assert_eq!(receive("-D dir -E 0/0").end, None);
    }

    #[test]
    fn actions_need_no_folder() {
        let name = || "s".to_owned();
        let created = work("-S s --create-slot --if-not-exists").work;
        assert!(matches!(created, Work::CreateSlot { name: n, if_not_exists: true } if n == name()));
        let created = work("-S s --create-slot -D dir").work;
        assert!(matches!(created, Work::CreateSlot { name: n, if_not_exists: false } if n == name()));
        assert!(matches!(work("-S s --drop-slot").work, Work::DropSlot { name: n } if n == name()));
        // Without an action, there is nothing that might exist.
        assert_eq!(receive("-D dir --if-not-exists").slot, None);
    }

    #[test]
    fn help_and_version_come_first() {
        for words in ["--help", "-?", "--help -x"] {
            assert!(matches!(read(words), Ok(Asked::Help)), "{words}");
        }
        for words in ["--version", "-V", "-V --bogus"] {
            assert!(matches!(read(words), Ok(Asked::Version)), "{words}");
        }
        for words in ["-v --help", "-D dir --version", "--hel"] {
            assert_eq!(read(words).unwrap_err(), Refusal::Misplaced, "{words}");
        }
    }

    #[test]
    fn what_is_refused_with_a_hint() {
        for (words, message) in [
            ("", "no target directory specified"),
            ("-n", "no target directory specified"),
            ("-D dir x y", "too many command-line arguments (first is \"x\")"),
            ("-D dir --create-slot", "--create-slot needs a slot to be specified using --slot"),
            ("-D dir --drop-slot", "--drop-slot needs a slot to be specified using --slot"),
            ("-S s --create-slot --drop-slot", "cannot use --create-slot together with --drop-slot"),
            ("--create-slot --drop-slot", "cannot use --create-slot together with --drop-slot"),
            ("-D dir --synchronous --no-sync", "cannot use --synchronous together with --no-sync"),
            ("--synchronous --no-sync", "cannot use --synchronous together with --no-sync"),
        ] {
            assert_eq!(read(words).unwrap_err(), Refusal::Usage(message.to_owned()), "{words}");
        }
        let complaint = Refusal::Complaint("/usr/bin/pg_receivewal: invalid option -- 'x'".to_owned());
        assert_eq!(read("-D dir -x").unwrap_err(), complaint);
    }

    #[test]
    fn values_that_make_no_sense() {
        for (words, message) in [
            ("-D dir -E abc", "could not parse end position \"abc\""),
            ("-D dir -E 1", "could not parse end position \"1\""),
            ("-D dir -E 0/1x", "could not parse end position \"0/1x\""),
            ("-D dir -s abc", "invalid value \"abc\" for option -s/--status-interval"),
            ("-D dir -s 1x", "invalid value \"1x\" for option -s/--status-interval"),
            ("-D dir -s -1", "-s/--status-interval must be in range 0..2147483"),
            ("-D dir -s 2147484", "-s/--status-interval must be in range 0..2147483"),
            ("-D dir -s 99999999999999999999", "-s/--status-interval must be in range 0..2147483"),
            ("-D dir -Z foo", "unrecognized compression algorithm: \"foo\""),
            ("-D dir -Z zstd", "compression with ZSTD is not yet supported"),
            (
                "-D dir -Z none:1",
                "invalid compression specification: compression algorithm \"none\" does not accept a compression level",
            ),
            // What stands first is found first.
            ("-s abc -x", "invalid value \"abc\" for option -s/--status-interval"),
        ] {
            assert_eq!(read(words).unwrap_err(), Refusal::Value(message.to_owned()), "{words}");
        }
    }
}
