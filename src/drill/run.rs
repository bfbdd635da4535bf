//! The steps of a drill.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::config::{self, HBA, Places, Wanted};
use super::process::Programs;
use super::scratch::Scratch;
use super::server::Server;
use super::sql::Door;
use super::{DrillError, DrillEvent, Drilled, Ended, Limits, Options, Stop, checks, scan};
use crate::datadir::DataDirError;
use crate::disk::Real;
use crate::image::ControlFile;
use crate::repository::{DrillRecord, Repository, Seal, Time, Which};
use crate::restore::{Goal, Mapping, Options as RestoreOptions, Plan, RestoreError, lay_down, plan};

/// The server that crashes under a check takes a moment to end.
const CRASH: Duration = Duration::from_millis(300);

/// Restores a backup, starts a server on it, and checks what came out. Ends the server and removes the
/// scratch folder in any case. Blocks; not to be called in an asynchronous context.
///
/// # Errors
/// When there is no verdict. A backup that turns out to be of no use is a verdict.
pub fn drill(
    repository: &Repository,
    options: &Options,
    stop: &Stop,
    tell: &mut impl FnMut(DrillEvent),
) -> Result<Drilled, DrillError> {
    let started = Time(Timestamp::now());
    // Neither it nor its WAL may be removed while it is read.
    let (backup, _held) = repository.hold(repository.find(options.which)?.id)?;
    if options.target_time.is_some_and(|target| target < backup.stop_time.0) {
        return Err(DrillError::BeforeBackup { backup: backup.id, ended: backup.stop_time });
    }
    let tools = Tools::find(options, &backup)?;
    let mut record = DrillRecord {
        backup: backup.id,
        started,
        finished: started,
        failure: None,
        server: None,
        target_time: options.target_time.map(Time),
        timeline: None,
        reached: None,
        reached_time: None,
        archive_end: None,
        durations_ms: Default::default(),
        checked: Vec::new(),
        not_checked: Vec::new(),
        program: format!("walhold {}", env!("CARGO_PKG_VERSION")),
    };
    let scratch = Scratch::new(&options.scratch, options.run_as, options.keep)?;
    let outcome =
        Drill { repository, options, stop, backup: &backup, tools: &tools, scratch: &scratch }.run(&mut record, tell);
    let scratch = scratch.end();
    match (outcome, &scratch) {
        (Ok(()), _) => {}
        (Err(Ended::Failed(why)), _) => record.failure = Some(why),
        (Err(Ended::Error(e)), Ok(_)) => return Err(e),
        (Err(Ended::Error(e)), Err(left)) => return Err(DrillError::LeftBehind(Box::new(e), left.to_string())),
    }
    record.finished = Time(Timestamp::now());
    let recorded = repository.record_drill(&record);
    Ok(Drilled { record, recorded, scratch })
}

/// What must be at hand before anything is restored.
struct Tools {
    programs: Programs,
    amcheck: Option<PathBuf>,
    /// `psql`, and the file that it runs.
    sql: Option<(PathBuf, PathBuf)>,
}

impl Tools {
    fn find(options: &Options, backup: &Seal) -> Result<Self, DrillError> {
        let we = rustix::process::geteuid();
        match options.run_as.map_or(we.as_raw(), |owner| owner.user) {
            0 => return Err(DrillError::RunAs),
            user if !we.is_root() && user != we.as_raw() => return Err(DrillError::CannotRunAs(user)),
            _ => {}
        }
        let absolute =
            |bin: &Path| std::path::absolute(bin).map_err(|source| DrillError::Path { path: bin.to_owned(), source });
        let bin = options.bin.as_deref().map(absolute).transpose()?;
        let programs = Programs::find(bin.as_deref(), backup.server_version.major(), options.run_as)?;
        let sql = options.sql.as_deref().map(|file| {
            let wrong = |source| DrillError::Path { path: file.to_owned(), source };
            let file = file.canonicalize().map_err(wrong)?;
            std::fs::File::open(&file).map_err(wrong)?;
            Ok::<_, DrillError>((programs.client("psql").ok_or(DrillError::NoPsql)?, file))
        });
        let sql = sql.transpose()?;
        let amcheck = programs.client("pg_amcheck");
        Ok(Self { programs, amcheck, sql })
    }
}

struct Drill<'a> {
    repository: &'a Repository,
    options: &'a Options,
    stop: &'a Stop,
    backup: &'a Seal,
    tools: &'a Tools,
    scratch: &'a Scratch,
}

impl Drill<'_> {
    fn run(&self, record: &mut DrillRecord, tell: &mut impl FnMut(DrillEvent)) -> Result<(), Ended> {
        let begun = Instant::now();
        let plan = self.plan(record)?;
        record.durations_ms.plan = milliseconds(begun);
        let (id, scratch, notes) = (self.backup.id, self.scratch.dir().to_owned(), plan.notes.clone());
        tell(DrillEvent::Planned { id, scratch, notes });

        let begun = Instant::now();
        self.lay_down(&plan, tell)?;
        record.durations_ms.restore = milliseconds(begun);
        record.checked.push("every file is as the server's manifest lists it".to_owned());

        let end = self.options.timeout.map(|limit| (Instant::now() + limit, limit));
        let limits = Limits { stop: self.stop, end };
        let begun = Instant::now();
        let mut server = self.start(&plan)?;
        record.server = Some(self.tools.programs.version.clone());
        tell(DrillEvent::Started { version: self.tools.programs.version.clone() });
        let way = (plan.wal.from, record.archive_end.unwrap_or(plan.wal.consistent_at));
        server.wait_for_recovery(&limits, self.repository.segment_size(), way, tell)?;
        record.durations_ms.recovery = milliseconds(begun);

        let begun = Instant::now();
        let checked = self.check(&plan, record, &limits, tell);
        record.durations_ms.checks = milliseconds(begun);
        if checked.is_err() && !self.stop.soon.is_cancelled() {
            std::thread::sleep(CRASH);
            server.must_run("while it was checked", tell)?;
        }
        server.stop(self.stop);
        checked
    }

    /// What is laid down is thrown away again, so it need not survive a power cut.
    fn unsynced(&self) -> Result<Repository, Ended> {
        Ok(Repository::open(self.repository.dir(), Arc::new(Real::without_syncs()))?)
    }

    fn plan(&self, record: &mut DrillRecord) -> Result<Plan, Ended> {
        let in_place = |location: &str| !Path::new(location).is_absolute();
        let spaces = self.backup.tablespaces.iter().filter(|space| !in_place(&space.location));
        let mapping = |(old, new): (&str, PathBuf)| Mapping { old: old.into(), new };
        let options = RestoreOptions {
            which: Which::Named(self.backup.id),
            target: self.scratch.data(),
            mappings: spaces.map(|s| mapping((&s.location, self.scratch.tablespace(s.oid)))).collect(),
            owner: self.options.run_as,
            goal: Goal::EndOfWal,
            program: self.options.program.clone(),
        };
        let plan = plan(&self.unsynced()?, &options).map_err(judge)?;
        record.checked.push("every record of the WAL it needs is valid".to_owned());
        record.timeline = plan.wal.timeline;
        if let Some(gap) = &plan.wal.ends_at_gap {
            record.not_checked.push(format!("WAL from segment {gap} on, which is missing or damaged"));
        }
        record.archive_end = Some(scan::end_of_wal(&self.repository.archive(), self.backup, &plan)?);
        Ok(plan)
    }

    fn lay_down(&self, plan: &Plan, tell: &mut impl FnMut(DrillEvent)) -> Result<(), Ended> {
        let restored = lay_down(&self.unsynced()?, plan, &mut |event| {
            tell(DrillEvent::Restore(event));
            if self.stop.soon.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        restored.map(drop).map_err(judge)
    }

    /// The copied configuration is not used. What `ALTER SYSTEM` set would be read in any case, and is
    /// emptied.
    fn start(&self, plan: &Plan) -> Result<Server, Ended> {
        let (scratch, data) = (self.scratch, self.scratch.data());
        let path = data.join("global/pg_control");
        let content = std::fs::read(&path).map_err(|source| DrillError::Path { path, source })?;
        let control = ControlFile::parse(&content).map_err(|e| Ended::Failed(e.to_string()))?;
        let [config, hba, ident] =
            ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"].map(|name| scratch.dir().join(name));
        let places = Places { sockets: &scratch.sockets(), hba: &hba, ident: &ident };
        let major = self.backup.server_version.major();
        let wanted = Wanted {
            recovery: &plan.recovery_settings(),
            target_time: self.options.target_time,
            in_place: plan.tablespaces.iter().any(|planned| planned.new.is_none()),
        };
        let lines = config::server(major, &places, &control, &wanted);
        scratch.write(&config, &lines)?;
        scratch.write(&hba, HBA)?;
        scratch.write(&ident, b"")?;
        scratch.write(&data.join("postgresql.auto.conf"), b"")?;
        Ok(Server::start(&self.tools.programs, scratch, &config)?)
    }

    fn check(
        &self,
        plan: &Plan,
        record: &mut DrillRecord,
        limits: &Limits<'_>,
        tell: &mut impl FnMut(DrillEvent),
    ) -> Result<(), Ended> {
        let door = Door::find(&self.scratch.sockets(), &self.options.users)?;
        checks::reached(&door, record, plan.wal.consistent_at, limits)?;
        record.checked.push("the server recovered and became consistent".to_owned());
        if let Some(at) = record.reached {
            tell(DrillEvent::Recovered { at, time: record.reached_time.map(|time| time.0) });
        }
        tell(DrillEvent::Checking("every database can be opened"));
        let databases = checks::databases(&door, limits)?;
        record.checked.push(format!("{} databases can be opened", databases.len()));
        self.amcheck(&door, &databases, record, limits, tell)?;
        match &self.tools.sql {
            Some(sql) => {
                tell(DrillEvent::Checking("the SQL file"));
                let output = self.scratch.dir().join("psql.log");
                record.checked.push(checks::sql_file(&self.tools.programs, sql, &door, &output, limits)?);
            }
            None => record.not_checked.push("no SQL file was given".to_owned()),
        }
        Ok(())
    }

    fn amcheck(
        &self,
        door: &Door,
        databases: &[String],
        record: &mut DrillRecord,
        limits: &Limits<'_>,
        tell: &mut impl FnMut(DrillEvent),
    ) -> Result<(), Ended> {
        if !self.options.amcheck {
            record.not_checked.push("tables and indexes: it was not asked for".to_owned());
            return Ok(());
        }
        if !checks::has_amcheck(door, limits)? {
            record.not_checked.push("tables and indexes: the server lacks the extension amcheck".to_owned());
            return Ok(());
        }
        tell(DrillEvent::Checking("tables and indexes"));
        let (programs, major) = (&self.tools.programs, self.backup.server_version.major());
        let done = match &self.tools.amcheck {
            Some(tool) if major >= 14 => {
                checks::pg_amcheck(programs, tool, door, &self.scratch.dir().join("pg_amcheck.log"), limits)?
            }
            _ => checks::amcheck(door, databases, major, limits, tell)?,
        };
        record.checked.push(done);
        if major < 14 {
            record.not_checked.push(format!("tables: PostgreSQL {major} has no check for them"));
        }
        Ok(())
    }
}

/// Whether it is the backup that cannot be restored, or something else that is in the way.
fn judge(e: RestoreError) -> Ended {
    match e {
        RestoreError::Stopped => Ended::Error(DrillError::Stopped),
        RestoreError::DataDir(DataDirError::NotEmpty(_) | DataDirError::Disk(_)) => {
            Ended::Error(DrillError::Restore(e))
        }
        RestoreError::NotProven { .. }
        | RestoreError::Content { .. }
        | RestoreError::DataDir(_)
        | RestoreError::Map(_) => Ended::Failed(e.to_string()),
        e => Ended::Error(DrillError::Restore(e)),
    }
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
