//! `wal-get`, the `restore_command`: hands one file of the archive to a server that recovers.
//!
//! The server takes every exit code from 1 to 125 as "there is no more WAL" and ends a recovery
//! there (`RestoreArchivedFile` in `xlogarchive.c`), and what was committed after that is lost
//! without a word. So "no" is said only when it is known (promise P8); whatever else goes wrong is
//! "unknown", with a code that stops the server instead.

mod decide;
mod deliver;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::getppid;

use crate::archive::{Archive, SegmentReader};
use crate::disk::{Access, Disk, Real, Trouble};
use crate::repository::Repository;
use crate::wal::{HistoryFile, Segment, TimelineId};
use decide::{Asked, Histories, Missed, Verdict};
pub(super) use decide::{Holdings, Reach};
use deliver::{give_bytes, give_complete, give_valid_part};

/// How long an unknown is asked again where a refusal only delays a recovery.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(5);

/// The same for a standby, which a refusal takes down.
const STANDBY_PATIENCE: Duration = Duration::from_secs(300);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// What is asked for, and by whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The repository.
    pub repository: PathBuf,
    /// The name of the file, `%f`.
    pub name: String,
    /// Where it is to be put, `%p`; relative to the data directory.
    pub destination: PathBuf,
    /// The timeline that the recovery is pinned to.
    pub timeline: Option<TimelineId>,
    /// The name of the first segment of a hole, or of a damaged one, in which the recovery is meant to
    /// end.
    pub end_at_gap: Option<String>,
    /// Whether a partial segment may be given although no recovery to a point is under way.
    pub partial: bool,
    /// How long an unknown is asked again; by default 5 s, for a standby 5 min.
    pub patience: Option<Duration>,
    /// The server's data directory, in which it runs the command.
    pub data_directory: PathBuf,
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The file is at its destination.
    Found,
    /// The archive does not have it, and is known not to.
    Absent,
    /// Neither is known, for this reason.
    Unknown(String),
}

impl Outcome {
    /// The exit code: 0, 1 or 255.
    pub const fn code(&self) -> u8 {
        match self {
            Self::Found => FOUND,
            Self::Absent => ABSENT,
            Self::Unknown(_) => UNKNOWN,
        }
    }
}

const FOUND: u8 = 0;
const ABSENT: u8 = 1;
/// Above 125, and no signal's.
const UNKNOWN: u8 = 255;

/// The program's whole life when it is called as `wal-get`: `args` are what follows that word. The
/// answer is the exit code, 0, 1 or 255, whatever happens; reasons go to standard error, which is
/// the server's log.
pub fn run(args: impl Iterator<Item = OsString>) -> u8 {
    guarded(|| match Request::parse(args) {
        Ok(request) => wal_get(&request),
        Err(why) => Outcome::Unknown(format!("{why}\n{USAGE}")),
    })
}

fn guarded(answer: impl FnOnce() -> Outcome) -> u8 {
    // A panic has had its own message.
    let outcome = catch_unwind(AssertUnwindSafe(answer));
    let Ok(outcome) = outcome else { return UNKNOWN };
    if let Outcome::Unknown(why) = &outcome {
        // Standard error may be closed; the code says what matters.
        let _ = writeln!(io::stderr(), "walhold wal-get: {why}");
    }
    outcome.code()
}

const USAGE: &str = "usage: walhold wal-get --repo DIR [--timeline N] [--end-at-gap SEGMENT] [--partial] \
    [--unknown-timeout 5min] %f %p";

impl Request {
    /// Reads the arguments after `wal-get`. `--repo` is taken from `WALHOLD_REPO` if it is missing.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let mut repository = std::env::var_os("WALHOLD_REPO").map(PathBuf::from);
        let (mut timeline, mut end_at_gap, mut partial, mut patience) = (None, None, false, None);
        let mut operands = Vec::new();
        let mut args = args;
        let mut options_end = false;
        while let Some(arg) = args.next() {
            let text = arg.to_str().filter(|text| text.starts_with("--") && !options_end);
            let Some(text) = text else {
                operands.push(arg);
                continue;
            };
            if text == "--" {
                options_end = true;
                continue;
            }
            let (flag, attached) = match text.split_once('=') {
                Some((flag, value)) => (flag, Some(OsString::from(value))),
                None => (text, None),
            };
            let mut value = || {
                let value = attached.clone().or_else(|| args.next()).filter(|value| !value.is_empty());
                value.ok_or_else(|| format!("{flag} needs a value"))
            };
            match flag {
                "--repo" => repository = Some(PathBuf::from(value()?)),
                "--timeline" => timeline = Some(parse_timeline(&value()?)?),
                "--end-at-gap" => end_at_gap = Some(utf8(value()?)?),
                "--unknown-timeout" => patience = Some(parse_patience(&value()?)?),
                "--partial" if attached.is_none() => partial = true,
                _ => return Err(format!("unknown option \"{flag}\"")),
            }
        }
        let repository = repository.ok_or("--repo is missing")?;
        let [name, destination]: [OsString; 2] =
            operands.try_into().map_err(|_| "exactly two arguments are expected, %f and %p".to_owned())?;
        let (name, destination) = (utf8(name)?, PathBuf::from(destination));
        let data_directory = PathBuf::from(".");
        Ok(Self { repository, name, destination, timeline, end_at_gap, partial, patience, data_directory })
    }
}

fn utf8(value: OsString) -> Result<String, String> {
    value.into_string().map_err(|value| format!("{} is not a name of WAL", value.display()))
}

fn parse_timeline(value: &OsString) -> Result<TimelineId, String> {
    let number = value.to_str().and_then(|text| text.parse().ok()).and_then(TimelineId::new);
    number.ok_or_else(|| format!("\"{}\" is not the number of a timeline", value.display()))
}

/// A duration such as `30s` or `5min`; a bare number is seconds.
fn parse_patience(value: &OsString) -> Result<Duration, String> {
    let wrong = || format!("\"{}\" is not a time like 30s or 5min", value.display());
    let text = value.to_str().ok_or_else(wrong)?;
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let duration: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    duration.try_into().map_err(|_| wrong())
}

/// Answers the request, asking again while the answer is unknown.
pub fn wal_get(request: &Request) -> Outcome {
    let disk: Arc<dyn Disk> = Arc::new(Real::new());
    let recovery = Recovery::of(request, &*disk);
    let patience = request.patience.unwrap_or(match recovery {
        Ok(Recovery::Standby) => STANDBY_PATIENCE,
        _ => RECOVERY_PATIENCE,
    });
    let (begun, asker) = (Instant::now(), getppid());
    loop {
        if getppid() != asker {
            // Another server may be there by now, and wait for another file under that name.
            return Outcome::Unknown("whoever asked has gone".to_owned());
        }
        let outcome = match Recovery::of(request, &*disk).and_then(|recovery| attempt(request, recovery, &disk)) {
            Ok(outcome) => outcome,
            Err(why) => Outcome::Unknown(why),
        };
        match outcome {
            Outcome::Unknown(_) if begun.elapsed() < patience => {
                std::thread::sleep(PAUSE.min(patience.saturating_sub(begun.elapsed())));
            }
            outcome => return outcome,
        }
    }
}

/// What the server that asks is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Recovery {
    /// It recovers to a point, or to the end of WAL, and then takes writes.
    ToPoint,
    /// It follows a primary for as long as it runs.
    Standby,
    /// It cannot be told: no server, or one that recovers from a crash.
    Other,
}

impl Recovery {
    fn of(request: &Request, disk: &dyn Disk) -> Result<Self, String> {
        let is_there = |name: &str| {
            let found = disk.metadata(&request.data_directory.join(name)).map_err(|e| e.to_string())?;
            Ok::<_, String>(found.is_some())
        };
        // With both the server is a standby (`readRecoverySignalFile`).
        if is_there("standby.signal")? {
            Ok(Self::Standby)
        } else if is_there("recovery.signal")? {
            Ok(Self::ToPoint)
        } else {
            Ok(Self::Other)
        }
    }
}

/// One try. An error is an unknown as well.
fn attempt(request: &Request, recovery: Recovery, disk: &Arc<dyn Disk>) -> Result<Outcome, String> {
    let repository = Repository::open(&request.repository, Arc::clone(disk)).map_err(|e| e.to_string())?;
    check_cluster(request, &repository)?;
    let archive = repository.archive();
    if let Some(file) = HistoryFile::parse(&request.name) {
        return get_history(request, &archive, file);
    }
    let segment = Segment::parse(&request.name, archive.size())
        .ok_or_else(|| format!("\"{}\" is not the name of a segment or history file of this archive", request.name))?;
    let gap = request.end_at_gap.as_deref().map(|name| {
        Segment::parse(name, archive.size()).ok_or_else(|| format!("\"{name}\" is not the name of a segment"))
    });
    let asked = Asked { segment, pin: request.timeline, gap: gap.transpose()?, recovery, partial: request.partial };
    if let Some(reader) = open_usual(&archive, &asked)? {
        return give_complete(request, &archive, reader).map(|()| Outcome::Found);
    }
    get_segment(request, &archive, asked)
}

/// The segment if it is complete and lies on the recovery's way, which is the usual case: names need not be
/// listed for that, but for those of history files where the recovery is not pinned.
fn open_usual(archive: &Archive, asked: &Asked) -> Result<Option<SegmentReader>, String> {
    let reader = archive.open_segment(asked.segment, Access::Read).map_err(|e| e.to_string())?;
    let Some(reader) = reader.filter(|reader| !reader.form().partial && asked.gap != Some(asked.segment)) else {
        return Ok(None);
    };
    let histories = match asked.pin {
        Some(pin) => Histories::read(archive, &[pin]),
        None => archive.history_names().and_then(|names| Histories::read(archive, &names)),
    };
    let way = histories.map_err(|e| e.to_string())?.way(asked)?;
    Ok(Some(reader).filter(|_| way.has(asked.segment)))
}

/// A repository of another cluster under the right path has nothing to say to this server.
fn check_cluster(request: &Request, repository: &Repository) -> Result<(), String> {
    let path = request.data_directory.join("global/pg_control");
    let file = match repository.disk().open(&path, Access::Read) {
        Ok(file) => file,
        Err(e) if e.trouble() == Trouble::Missing => return Ok(()),
        Err(e) => return Err(e.to_string()),
    };
    // The first field of every version of the file, in the machine's order.
    let mut id = [0; 8];
    let read = file.read_at(0, &mut id).map_err(|e| e.to_string())?;
    let (server, held) = (u64::from_ne_bytes(id), repository.system_id());
    if read == id.len() && server != held {
        return Err(format!(
            "{} is the repository of the cluster with system identifier {held}, and this server's is {server}",
            request.repository.display()
        ));
    }
    Ok(())
}

fn get_history(request: &Request, archive: &Archive, file: HistoryFile) -> Result<Outcome, String> {
    let content = || archive.history_content(file.0).map_err(|e| e.to_string());
    if let Some(content) = content()? {
        return give_bytes(request, &content).map(|()| Outcome::Found);
    }
    let before = archive.list().map_err(|e| e.to_string())?;
    if let Some(content) = content()? {
        return give_bytes(request, &content).map(|()| Outcome::Found);
    }
    let after = archive.list().map_err(|e| e.to_string())?;
    if before.is_empty() || after.is_empty() {
        return Err(decide::nothing_held(archive));
    }
    if [before, after].iter().any(|listing| listing.histories().contains(&file.0)) {
        return Err(format!("{} was there and cannot be found now", request.name));
    }
    Ok(Outcome::Absent)
}

fn get_segment(request: &Request, archive: &Archive, asked: Asked) -> Result<Outcome, String> {
    let segment = asked.segment;
    let holdings = || archive.list().and_then(|listing| Holdings::new(archive, listing)).map_err(|e| e.to_string());
    let before = holdings()?;
    let reader = match before.decide(&asked) {
        Verdict::Answer(answer) => return answer,
        Verdict::Give { partial } => archive
            .open_segment(segment, Access::Read)
            .map_err(|e| e.to_string())?
            .filter(|reader| partial || !reader.form().partial),
    };
    let Some(reader) = reader else {
        return match (before.miss(&asked), holdings()?.miss(&asked)) {
            (Missed::Absent, Missed::Absent) => Ok(Outcome::Absent),
            (Missed::Unknown(why), _) | (_, Missed::Unknown(why)) => Err(why),
        };
    };
    let given = if reader.form().partial || asked.gap == Some(segment) {
        give_valid_part(request, archive, &before, reader)?
    } else {
        give_complete(request, archive, reader)?;
        true
    };
    Ok(if given { Outcome::Found } else { Outcome::Absent })
}

#[cfg(test)]
mod tests;
