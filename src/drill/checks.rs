//! What is asked of the server once its recovery has ended.

use std::path::{Path, PathBuf};

use super::config::{PORT, SESSION_OPTIONS};
use super::process::{Programs, brief, run};
use super::sql::{Door, Rows};
use super::{DrillError, DrillEvent, Ended, Limits};
use crate::connection::{Error, Session};
use crate::repository::DrillRecord;
use crate::restore::PlannedWal;
use crate::wal::Lsn;

/// Sessions that `pg_amcheck` works in.
const MAX_JOBS: usize = 8;

/// Indexes that can be checked: whole, and of a kind that `amcheck` knows.
const INDEXES: &str = "select i.indexrelid::pg_catalog.text, i.indexrelid::pg_catalog.regclass::pg_catalog.text \
     from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid \
     join pg_catalog.pg_am a on a.oid = c.relam where a.amname = 'btree' and c.relkind = 'i' \
     and c.relpersistence = 'p' and i.indisready and i.indisvalid order by i.indexrelid";

/// Tables that can be checked, from 14 on.
const TABLES: &str = "select c.oid::pg_catalog.text, c.oid::pg_catalog.regclass::pg_catalog.text \
     from pg_catalog.pg_class c join pg_catalog.pg_am a on a.oid = c.relam where a.amname = 'heap' \
     and c.relkind in ('r', 't', 'm') and c.relpersistence = 'p' order by c.oid";

/// How far recovery came; it must not be less than what was planned.
pub(super) fn reached(
    door: &Door,
    record: &mut DrillRecord,
    planned: &PlannedWal,
    limits: &Limits<'_>,
) -> Result<(), Ended> {
    let mut session = door.open(door.database).map_err(DrillError::Connect)?;
    let sql = "select pg_catalog.pg_is_in_recovery()::pg_catalog.text, pg_catalog.pg_last_wal_replay_lsn()::pg_catalog.text, \
               pg_catalog.to_char(pg_catalog.pg_last_xact_replay_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let rows = answer(door.query(&mut session, sql, limits)?, "where its recovery ended")?;
    let value = |column: usize| rows.first().and_then(|row| row.get(column)).cloned().flatten();
    if value(0).as_deref() != Some("false") {
        return Err(Ended::Failed("the server is still in recovery".to_owned()));
    }
    let reached = value(1).and_then(|text| text.parse().ok());
    let reached: Lsn = reached.ok_or_else(|| Ended::Failed("the server does not say how far it came".to_owned()))?;
    record.reached = Some(reached);
    record.reached_time = value(2).and_then(|text| text.parse().ok()).map(crate::repository::Time);
    if reached < planned.consistent_at {
        let at = planned.consistent_at;
        return Err(Ended::Failed(format!("recovery ended at {reached}, before {at} where the backup ends")));
    }
    match planned.end.as_ref().filter(|end| reached < end.at) {
        Some(end) if planned.target.is_some() => {
            Err(Ended::Failed(format!("recovery ended at {reached}, and its target lies at {}", end.at)))
        }
        Some(end) => Err(Ended::Failed(format!("recovery ended at {reached}, and the archive goes on to {}", end.at))),
        None => Ok(()),
    }
}

/// Opens every database that can be opened; their names.
pub(super) fn databases(door: &Door, limits: &Limits<'_>) -> Result<Vec<String>, Ended> {
    let mut session = door.open(door.database).map_err(DrillError::Connect)?;
    // -2 marks one whose making or dropping was interrupted.
    let sql = "select datname from pg_catalog.pg_database where datallowconn and datconnlimit <> -2 order by 1";
    let rows = answer(door.query(&mut session, sql, limits)?, "its databases")?;
    let names: Vec<String> = rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect();
    for name in &names {
        open(door, name)?;
        limits.check()?;
    }
    Ok(names)
}

fn open(door: &Door, database: &str) -> Result<Session, Ended> {
    door.open(database).map_err(|e| Ended::Failed(format!("database {database:?} cannot be opened: {e}")))
}

/// Whether the server has the extension.
pub(super) fn has_amcheck(door: &Door, limits: &Limits<'_>) -> Result<bool, Ended> {
    let mut session = door.open(door.database).map_err(DrillError::Connect)?;
    let sql = "select 1 from pg_catalog.pg_available_extensions where name = 'amcheck'";
    Ok(!answer(door.query(&mut session, sql, limits)?, "its extensions")?.is_empty())
}

/// Tables and indexes, by PostgreSQL's own tool; in words what was checked.
pub(super) fn pg_amcheck(
    programs: &Programs,
    tool: &Path,
    door: &Door,
    output: &Path,
    limits: &Limits<'_>,
) -> Result<String, Ended> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_JOBS);
    let mut command = programs.command(tool);
    command.args(["--all", "--install-missing", "--no-password"]).arg(format!("--jobs={jobs}"));
    command.arg(format!("--maintenance-db={}", door.database));
    at(&mut command, door);
    let (status, said) = run(&mut command, output, limits)?;
    if !status.success() {
        return Err(Ended::Failed(format!("pg_amcheck found damage or could not check ({status}): {}", brief(&said))));
    }
    Ok("tables and btree indexes of all databases, by pg_amcheck".to_owned())
}

/// The same where that tool is missing: in 13, and in servers without client programs.
pub(super) fn amcheck(
    door: &Door,
    databases: &[String],
    major: u32,
    limits: &Limits<'_>,
    tell: &mut impl FnMut(DrillEvent),
) -> Result<String, Ended> {
    for database in databases {
        tell(DrillEvent::CheckingDatabase(database.clone()));
        let mut session = open(door, database)?;
        let mut ask = |sql: &str| door.query(&mut session, sql, limits);
        let found = answer(
            ask("select e.oid, n.nspname from pg_catalog.pg_extension e join pg_catalog.pg_namespace n \
                 on n.oid = e.extnamespace where e.extname = 'amcheck'")?,
            "its extensions",
        )?;
        if found.is_empty() {
            answer(ask("create extension amcheck schema pg_catalog")?, "to have amcheck")?;
        }
        let schema = found.into_iter().next().and_then(|row| row.into_iter().nth(1).flatten());
        let schema = identifier(schema.as_deref().unwrap_or("pg_catalog"));
        for (oid, name) in pairs(answer(ask(INDEXES)?, "its indexes")?) {
            let sql = format!("select {schema}.bt_index_check({oid}::pg_catalog.regclass)");
            ask(&sql)?.map_err(|e| Ended::Failed(format!("index {name} in database {database}: {e}")))?;
        }
        let tables = if major >= 14 { pairs(answer(ask(TABLES)?, "its tables")?) } else { Vec::new() };
        for (oid, name) in tables {
            let sql = format!("select msg from {schema}.verify_heapam({oid}::pg_catalog.regclass) limit 1");
            let found = ask(&sql)?.map_err(|e| Ended::Failed(format!("table {name} in database {database}: {e}")))?;
            if let Some(message) = found.into_iter().flatten().next().flatten() {
                return Err(Ended::Failed(format!("table {name} in database {database}: {message}")));
            }
        }
    }
    let what = if major >= 14 { "tables and btree indexes" } else { "btree indexes" };
    Ok(format!("{what} of all databases, by the functions of amcheck"))
}

fn pairs(rows: Rows) -> Vec<(u32, String)> {
    let pair = |row: Vec<Option<String>>| {
        let mut columns = row.into_iter();
        Some((columns.next()??.parse().ok()?, columns.next()??))
    };
    rows.into_iter().filter_map(pair).collect()
}

/// In double quotes.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The operator's own questions.
pub(super) fn sql_file(
    programs: &Programs,
    (psql, file): &(PathBuf, PathBuf),
    door: &Door,
    output: &Path,
    limits: &Limits<'_>,
) -> Result<String, Ended> {
    let mut command = programs.command(psql);
    command.args(["-X", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-d", door.database]).arg("-f").arg(file);
    at(&mut command, door);
    let (status, said) = run(&mut command, output, limits)?;
    if !status.success() {
        let errors: Vec<&str> =
            said.lines().filter(|line| line.contains("ERROR:") || line.contains("FATAL:")).collect();
        let why = if errors.is_empty() { brief(&said) } else { brief(&errors.join("\n")) };
        return Err(Ended::Failed(format!("{} failed ({status}): {why}", file.display())));
    }
    Ok(format!("{} ran without an error", file.display()))
}

fn at(command: &mut std::process::Command, door: &Door) {
    command.arg("-h").arg(&door.sockets).args(["-p", &PORT.to_string(), "-U", &door.user]);
    command.env("PGOPTIONS", SESSION_OPTIONS);
}

/// What the server refuses makes the drill fail; a lost connection, too, for nothing else ends it.
fn answer(rows: Result<Rows, Error>, what: &str) -> Result<Rows, Ended> {
    rows.map_err(|e| Ended::Failed(format!("the server was asked {what}: {e}")))
}
