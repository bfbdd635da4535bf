//! What a failed command says, and the exit code that goes with it.

use std::process::ExitCode;

use crate::archive::{ArchiveError, ResumeError};
use crate::backup::BackupError;
use crate::connection::{ConnectError, ConninfoError, Error as SessionError};
use crate::datadir::DataDirError;
use crate::disk::{DiskError, Trouble};
use crate::drill::DrillError;
use crate::receive::{Gap, ReceiveError};
use crate::repository::{ExpireError, MarkError, NotUsable, RepositoryError, SealError, Undecided};
use crate::restore::{FillError, RestoreError};
use crate::status::StatusError;
use crate::verify::VerifyError;

/// The exit codes, which scripts rely on. (`wal-get` has its own three.)
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// 0
    Done,
    /// 1: anything that has no code of its own.
    Error,
    /// 2: the command line is wrong.
    Usage,
    /// 3: WAL is missing, or two histories do not fit.
    Gap,
    /// 4: what is held is not usable, or not valid.
    NotUsable,
    /// 5: the storage failed.
    Storage,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Error => 1,
            Exit::Usage => 2,
            Exit::Gap => 3,
            Exit::NotUsable => 4,
            Exit::Storage => 5,
        })
    }
}

/// One line of cause, and one of what to do.
#[derive(Debug)]
pub struct Failure {
    /// How the program ends.
    pub exit: Exit,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// A failure without a code or hint of its own.
    pub fn error(message: impl Into<String>) -> Self {
        Self { exit: Exit::Error, message: message.into(), hint: None }
    }

    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, message: message.into(), hint: None }
    }

    /// With another exit code.
    #[must_use]
    pub fn exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }

    /// With what the operator can do.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    fn hint_if(self, hint: Option<String>) -> Self {
        Self { hint: hint.or(self.hint), ..self }
    }

    /// The cause, in a line.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What the operator can do.
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Writes the lines to stderr, or one JSON object.
    pub fn print(&self, json: bool) {
        if json {
            let line = serde_json::json!({ "level": "ERROR", "message": self.message, "hint": self.hint });
            super::complain(&line);
            return;
        }
        super::complain(&format_args!("walhold: error: {}", self.message));
        if let Some(hint) = &self.hint {
            super::complain(&format_args!("hint: {hint}"));
        }
    }
}

impl From<ConninfoError> for Failure {
    fn from(e: ConninfoError) -> Self {
        Self::usage(e.to_string())
            .hint("connection settings come from -d, -h, -p, -U, the service file and the PG* environment variables")
    }
}

impl From<ConnectError> for Failure {
    fn from(e: ConnectError) -> Self {
        Self::error(e.to_string()).hint_if(e.hint())
    }
}

impl From<SessionError> for Failure {
    fn from(e: SessionError) -> Self {
        Self::error(e.to_string()).hint_if(e.hint())
    }
}

impl From<StatusError> for Failure {
    fn from(e: StatusError) -> Self {
        match e {
            StatusError::Repository(e) => e.into(),
            StatusError::Archive(e) => e.into(),
        }
    }
}

impl From<DiskError> for Failure {
    fn from(e: DiskError) -> Self {
        Self::from(&e)
    }
}

impl From<&DiskError> for Failure {
    fn from(e: &DiskError) -> Self {
        let failure = Self::error(e.to_string());
        match e.trouble() {
            Trouble::Failed => failure.exit(Exit::Storage).hint(
                "what was written last may be lost: check the storage, then start again; \
                 walhold trusts only what it can read back",
            ),
            Trouble::Full => failure.exit(Exit::Storage).hint("make room, then start again"),
            Trouble::Missing => failure.hint("check the path"),
            Trouble::Exists => failure.hint("choose another name, or remove what is there"),
            Trouble::Locked => failure.hint("only one process may write there at a time: stop the other one"),
            Trouble::Other => failure.hint("check that this user may read and write there"),
        }
    }
}

impl From<ArchiveError> for Failure {
    fn from(e: ArchiveError) -> Self {
        match &e {
            ArchiveError::Disk(e) => e.into(),
            ArchiveError::Decode { .. }
            | ArchiveError::Halted
            | ArchiveError::Gone(_)
            | ArchiveError::Changed(_)
            | ArchiveError::NoHistory(_)
            | ArchiveError::History { .. } => {
                Self::error(e.to_string()).exit(Exit::NotUsable).hint("walhold verify shows what is damaged")
            }
        }
    }
}

impl From<RepositoryError> for Failure {
    fn from(e: RepositoryError) -> Self {
        let failure = Self::error(e.to_string());
        match e {
            RepositoryError::Disk(e) => e.into(),
            RepositoryError::Locked(_) => {
                failure.hint("one repository has one writer: stop the other one, or wait until it has ended")
            }
            RepositoryError::NoSuchDirectory(_) | RepositoryError::NotARepository(_) => failure
                .hint("check the path (--repo, WALHOLD_REPO); walhold receive and walhold backup make a repository"),
            RepositoryError::NotEmpty { .. } | RepositoryError::Exists(_) => {
                failure.hint("name a folder that is empty or does not exist")
            }
            RepositoryError::IdentityLost { .. } => {
                failure.exit(Exit::NotUsable).hint("restore its repository.json from a copy; nothing was changed")
            }
            RepositoryError::OtherCluster { .. } | RepositoryError::OtherSegmentSize { .. } => failure
                .exit(Exit::Gap)
                .hint("one repository holds one cluster: give this server its own, or check host and port"),
            RepositoryError::Document { .. } => {
                failure.exit(Exit::NotUsable).hint("the file is damaged, or was written by a newer walhold")
            }
        }
    }
}

impl From<ReceiveError> for Failure {
    fn from(e: ReceiveError) -> Self {
        let failure = Self::error(e.to_string());
        match e {
            ReceiveError::Connect(e) => e.into(),
            ReceiveError::Session(e) => e.into(),
            ReceiveError::Archive(e) | ReceiveError::Resume(ResumeError::Archive(e)) => e.into(),
            ReceiveError::Violation(_) | ReceiveError::NextTimeline(_) => {
                failure.hint("is it a PostgreSQL server? The server's log may say more")
            }
            ReceiveError::OtherCluster { .. }
            | ReceiveError::OtherSegmentSize { .. }
            | ReceiveError::Resume(ResumeError::OtherSegmentSize { .. }) => failure
                .exit(Exit::Gap)
                .hint("one repository holds one cluster: give this server its own, or check host and port"),
            ReceiveError::NoSlot(name) => failure.hint(format!(
                "make it (walhold slot create {name}, or --ensure-slot), or check the name"
            )),
            ReceiveError::SlotPosition { slot, .. } => failure.hint(format!(
                "an empty repository begins where its slot stands, and this server tells that by SQL only: let the role \
                 connect to a database (pg_hba.conf) for once, or, if what the slot keeps is not wanted, drop it \
                 (walhold slot drop {slot})"
            )),
            ReceiveError::SlotLost { slot, .. } => failure.exit(Exit::Gap).hint(format!(
                "the server was allowed to remove it (max_slot_wal_keep_size, idle_replication_slot_timeout). Make the slot \
                 anew (walhold slot drop {slot}; walhold slot create {slot}); if the server has no more what comes \
                 next, receive says so, and a new backup begins anew"
            )),
            ReceiveError::Gap(gap) => failure.exit(Exit::Gap).hint(gap_hint(&gap)),
            ReceiveError::Ahead { .. } => failure.exit(Exit::Gap).hint(
                "the server was restored to an earlier state, or it is another one: nothing was written; \
                 give it a repository of its own",
            ),
            ReceiveError::ForkedBefore { to, .. } => failure.exit(Exit::Gap).hint(format!(
                "nothing was written. If a standby that had fallen behind was promoted, go on with --follow-timeline {to}; \
                 a server that was restored to an earlier point needs a repository of its own"
            )),
            ReceiveError::Diverged(_) | ReceiveError::OtherHistory { .. } => {
                failure.exit(Exit::Gap).hint(
                    "the server's past is not the archive's (a clone, or a restore to an earlier point): \
                     nothing was written; give it a repository of its own",
                )
            }
            ReceiveError::NotValid { .. } => failure.exit(Exit::NotUsable).hint(
                "the server's WAL is damaged there (its pg_waldump shows it): nothing past it was acknowledged; \
                 check the server's storage and take a new backup",
            ),
            ReceiveError::Resume(_) => {
                failure.exit(Exit::NotUsable).hint("walhold verify shows the damage; move the damaged file away to receive it again")
            }
            ReceiveError::Ended => failure.hint("start again, without --no-loop, to go on when the server is back"),
            ReceiveError::Thread(_) => failure.exit(Exit::Storage).hint("please report this"),
        }
    }
}

impl From<BackupError> for Failure {
    fn from(e: BackupError) -> Self {
        let failure = Self::error(e.to_string());
        if let Some(disk) = e.disk() {
            return disk.into();
        }
        match e {
            BackupError::Receive(e) => e.into(),
            BackupError::Session(e) => e.into(),
            BackupError::Repository(e) | BackupError::Seal(SealError::Repository(e)) => e.into(),
            BackupError::Archive(e) => e.into(),
            BackupError::ReceiverBehind { .. } => {
                failure.hint("look at the receiver's log; with no receiver running, backup streams the WAL itself")
            }
            BackupError::StreamBehind { .. } => {
                failure.hint("it needs a second connection to the server (max_wal_senders), and room in the repository")
            }
            BackupError::StartNotHeld { .. } => failure.hint(
                "a standby's backup begins at its last restartpoint: run walhold receive beside it, or back the primary up",
            ),
            BackupError::Waiting { .. } => failure.exit(Exit::NotUsable).hint(
                "look at the receiver's log; walhold receive, backup or verify --seal complete it once its WAL has come",
            ),
            BackupError::Tar(_)
            | BackupError::Names(_)
            | BackupError::Manifest(_)
            | BackupError::Label(_)
            | BackupError::Map(_)
            | BackupError::Control(_)
            | BackupError::Lacks(_)
            | BackupError::Increment { .. }
            | BackupError::Contradiction(_) => failure.hint("is it a PostgreSQL server? Nothing was kept"),
            BackupError::Differs { .. } => {
                failure.hint("the copy was damaged on its way or on the server: nothing was kept; back up again")
            }
            BackupError::Promoted { .. } => {
                failure.hint("nothing was kept; back up again, from the new primary or this server")
            }
            BackupError::NotProven(_) => {
                failure.exit(Exit::NotUsable).hint("nothing was kept; walhold verify shows the damage in the archive")
            }
            BackupError::NoIncrements(_) => failure.hint("take a full backup: leave --incremental out"),
            BackupError::NoSummaries => failure.hint(
                "set summarize_wal = on and reload the server (wal_level must not be minimal), then take a full backup: \
                 incremental ones can be based on it",
            ),
            BackupError::ChangesNotHeld { .. } => failure.hint(
                "take a full backup: leave --incremental out; with walhold receive running all the time, later ones can \
                 be based on it",
            ),
            BackupError::ChangesNotRead { .. } => failure.exit(Exit::NotUsable).hint(
                "nothing was kept; take a full backup: leave --incremental out; walhold verify shows what is missing \
                 or damaged",
            ),
            BackupError::OddTruncation { .. } | BackupError::TooManyCuts { .. } => {
                failure.hint("nothing was kept; take a full backup: leave --incremental out")
            }
            BackupError::NoParent(_) => failure.hint("take a full backup first: leave --incremental out"),
            BackupError::Chain(NotUsable::Repository(e)) => e.into(),
            BackupError::Chain(_) => failure.hint("walhold list shows the backups; try again"),
            BackupError::Parent { .. } => failure
                .exit(Exit::NotUsable)
                .hint("take a full backup: leave --incremental out; walhold verify shows what is damaged"),
            BackupError::Increments { source, .. } => {
                let theirs = source.server_error().and_then(|error| error.hint.clone());
                failure.hint(theirs.unwrap_or_else(|| {
                    "take a full backup: leave --incremental out. The server's WAL summaries must reach back to the \
                     backup that is built on: see wal_summary_keep_time, and since when summarize_wal is on"
                        .to_owned()
                }))
            }
            BackupError::Sql(e) => (*e).into(),
            BackupError::Command(_) => failure.hint(
                "nothing was kept; let it end with 0 where an error is none, as: rsync ... || [ $? -eq 24 ]",
            ),
            BackupError::Copy(_) => failure.hint("nothing was kept; the command must copy the whole data directory into $WALHOLD_TARGET, and tablespaces into $WALHOLD_TABLESPACE_TARGET/OID"),
            BackupError::ControlOfStandby(_) => failure.hint(
                "grant the role pg_read_server_files, and EXECUTE on pg_read_binary_file(text), or run this where the standby's files are; or back up the primary",
            ),
            BackupError::SnapshotOfStandby => failure.hint("record it by the primary, or use --external without --atomic-snapshot"),
            BackupError::LineEnd(_) | BackupError::NotText(_) => failure.hint("use walhold backup without --copy-command"),
            BackupError::NotCopied | BackupError::Stopped => failure.hint("nothing was kept"),
            BackupError::Seal(_) | BackupError::Compress(_) | BackupError::Thread(_) | BackupError::SlotName(_) => {
                failure.hint("please report this")
            }
        }
    }
}

impl From<VerifyError> for Failure {
    fn from(e: VerifyError) -> Self {
        match e {
            VerifyError::Thread(e) => Self::error(format!("cannot start a thread: {e}")),
            VerifyError::NotFound(_) => Self::error(e.to_string()).hint("walhold list shows the backups"),
            VerifyError::Repository(e) => e.into(),
            VerifyError::Archive(e) => e.into(),
        }
    }
}

impl From<ExpireError> for Failure {
    fn from(e: ExpireError) -> Self {
        let failure = Self::error(e.to_string());
        match e {
            ExpireError::Undecided(Undecided::Damaged { .. }) => failure.hint(
                "nothing was removed; restore its document from a copy, or remove its folder if the backup is lost",
            ),
            ExpireError::Undecided(Undecided::NoHistory(_)) => {
                failure.hint("nothing was removed; walhold receive fetches the file from the server")
            }
            ExpireError::Stranger(_) => failure.hint("nothing was removed; move it out of the repository"),
            ExpireError::Busy(_) | ExpireError::Unsettled => failure.hint("try again when it has ended"),
            ExpireError::Archive(e) => e.into(),
            ExpireError::Repository(e) => e.into(),
        }
    }
}

impl From<MarkError> for Failure {
    fn from(e: MarkError) -> Self {
        let failure = Self::error(e.to_string());
        match e {
            MarkError::NotUsable(NotUsable::Repository(e)) => e.into(),
            MarkError::NotUsable(_) => failure.hint("walhold list shows the backups; only complete ones can be marked"),
            MarkError::Busy(_) => failure.hint("try again when it has ended"),
            MarkError::Disk(e) => e.into(),
        }
    }
}

impl From<RestoreError> for Failure {
    fn from(e: RestoreError) -> Self {
        let failure = Self::error(e.to_string());
        match e {
            RestoreError::Disk(e) | RestoreError::DataDir(DataDirError::Disk(e)) => e.into(),
            RestoreError::Repository(e) | RestoreError::NotUsable(NotUsable::Repository(e)) => e.into(),
            RestoreError::Archive(e) => e.into(),
            RestoreError::NotUsable(NotUsable::NotFound(_)) => failure.hint("walhold list shows the backups"),
            RestoreError::NotUsable(NotUsable::InUse(_)) => failure.hint("try again; walhold list shows the backups"),
            RestoreError::NotUsable(_) => {
                failure.exit(Exit::NotUsable).hint("walhold list shows the backups; only complete ones are restored")
            }
            RestoreError::NotProven { .. } => {
                failure.exit(Exit::NotUsable).hint("nothing was written; walhold verify shows which backups are usable")
            }
            RestoreError::Content { .. } => failure
                .exit(Exit::NotUsable)
                .hint("nothing was left that a server could start on; walhold verify shows which backups are usable"),
            RestoreError::Combine(_) => failure
                .exit(Exit::NotUsable)
                .hint("nothing was left that a server could start on; walhold verify shows which backups are usable"),
            RestoreError::Elsewhere { .. } => {
                failure.hint("fill the data directory from there, and name the backup: --in-place")
            }
            RestoreError::NotElsewhere(_) => failure.hint("leave --in-place, or --data, out"),
            RestoreError::Untested(_) => failure.exit(Exit::NotUsable).hint(
                "fill another directory from it, and drill that: walhold drill BACKUP --data DIR; or restore another backup",
            ),
            RestoreError::Fill(e) => match e {
                FillError::NotThere { .. } => failure.hint("fill it, and start again"),
                FillError::NoPlace(old) => failure.hint(format!("-T {0}={0} if that is where it has been put", old.display())),
                FillError::InUse { .. } => failure.hint("stop that server, or choose another directory"),
                FillError::NotOwned { .. } => failure.hint("give the files to the server's user, whom --owner names"),
                _ => failure.exit(Exit::NotUsable).hint("fill it again, from the copy that belongs to this backup"),
            },
            RestoreError::NotEmpty(_) | RestoreError::DataDir(DataDirError::NotEmpty(_)) => {
                failure.hint("name a directory that does not exist or is empty; -T OLD=NEW puts a tablespace elsewhere")
            }
            RestoreError::InRepository(_) | RestoreError::Overlap(..) | RestoreError::NotAbsolute(_) => {
                failure.hint("choose another place; -T OLD=NEW moves a tablespace")
            }
            RestoreError::NoSuchTablespace { .. } | RestoreError::MappedTwice(_) => {
                failure.hint("walhold restore --plan shows the tablespaces")
            }
            RestoreError::WhoseTablespace { path, .. } => failure.hint(format!(
                "name its place: -T {0}={0} if no other server uses that directory, which is rewritten, or else -T {0}=NEW",
                path.display()
            )),
            RestoreError::TablespaceInUse { .. } => failure.exit(Exit::NotUsable).hint(
                "take a backup now that the tablespace is there, recover to a point before it, or restore on another host",
            ),
            RestoreError::Unreachable(unreachable) => failure.exit(Exit::NotUsable).hint(unreachable.hint()),
            RestoreError::NotOnTimeline { .. } => {
                failure.exit(Exit::NotUsable).hint("name an earlier backup; walhold status shows the timelines")
            }
            RestoreError::TimelineCutOff { .. } => {
                failure.exit(Exit::NotUsable).hint("walhold status shows the gaps; a target before the gap can be reached")
            }
            RestoreError::NoRoom { .. } => failure.hint("make room, or restore to another file system"),
            RestoreError::OwnerNeeded => failure.hint("name the server's user: --owner postgres"),
            RestoreError::CannotGiveAway(_) => failure.hint("run as root, or leave --owner out"),
            RestoreError::OwnerLocked { .. } => {
                failure.hint("the restored server fetches its WAL with this program from the repository: let that user")
            }
            RestoreError::Path { .. } => failure.hint("check the path"),
            RestoreError::Stopped => failure.hint("nothing was left"),
            RestoreError::Unfinished { source, .. } => {
                let why = Self::from(*source);
                Self { message: failure.message, ..why }
                    .hint("restore to it again with --delta, which goes on from there, or remove it")
            }
            RestoreError::LeftBehind { .. } => {
                failure.exit(Exit::Storage).hint("remove the rest by hand; no server starts on it")
            }
            RestoreError::DataDir(DataDirError::OtherCluster { .. }) => failure
                .hint("--delta rewrites the data directory of the backup's own cluster; name that, or an empty one"),
            RestoreError::DataDir(DataDirError::Running { .. }) => {
                failure.hint("stop the server; if it is none, remove postmaster.pid")
            }
            RestoreError::DataDir(_) | RestoreError::Map(_) => {
                failure.exit(Exit::NotUsable).hint("the backup was not made by walhold as it is")
            }
        }
    }
}

impl From<DrillError> for Failure {
    fn from(e: DrillError) -> Self {
        let failure = Self::error(e.to_string());
        match e {
            DrillError::NotUsable(e) => RestoreError::NotUsable(e).into(),
            DrillError::Restore(e) => e.into(),
            DrillError::Repository(e) => e.into(),
            DrillError::Archive(e) => e.into(),
            DrillError::Disk(e) => e.into(),
            DrillError::RunAs => failure.hint("name the user that is to run it: --run-as postgres"),
            DrillError::CannotRunAs(_) => failure.hint("run as root, or leave --run-as out"),
            DrillError::Barrier(_) => failure.hint("let that user, or choose another place: --scratch DIR"),
            DrillError::LeftBehind(..) => failure.hint("remove it by hand"),
            DrillError::NoServer { major, .. } => {
                failure.hint(format!("install PostgreSQL {major}, or say where its programs lie: --pg-bin DIR"))
            }
            DrillError::NoPsql => failure.hint("install the client programs of PostgreSQL, or leave --sql out"),
            DrillError::LongPath(_) => failure.hint("name a directory with a shorter path: --scratch DIR"),
            DrillError::Path { .. } => failure.hint("check the path, and who may use it"),
            DrillError::MakesTablespace { .. } => {
                failure.hint("take a backup now that the tablespace is there, and drill that one; nothing was started")
            }
            DrillError::Connect(_) | DrillError::NoSuperuser(_) => {
                failure.hint("name a superuser of the server that was backed up: --username NAME")
            }
            DrillError::Stopped => {
                failure.hint("the server was ended and the scratch folder removed; nothing was recorded")
            }
        }
    }
}

fn gap_hint(gap: &Gap) -> String {
    let kept = match gap.kept_from {
        Some(kept) if kept > gap.held.lsn() => {
            let missing = kept.saturating_sub(gap.held.lsn());
            format!("the slot keeps WAL from {kept} on, so at least {missing} bytes are lost; ")
        }
        _ => String::new(),
    };
    let held = gap.held.lsn();
    format!(
        "{kept}recovery from earlier backups ends at {held}. Take a new backup (walhold backup --repo), which begins a \
         stretch that receive goes on with; or begin one now with --accept-gap {held}, and take a new backup then"
    )
}
