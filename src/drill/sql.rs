//! Sessions with the drill's server.

use std::path::{Path, PathBuf};

use tokio::runtime::Runtime;

use super::config::{PORT, SESSION_OPTIONS};
use super::{DrillError, Ended, Limits};
use crate::connection::{ConnectError, Conninfo, Error, Flags, Purpose, Session, Surroundings};

/// Databases that hardly ever miss; the second is there when the first was dropped.
const DATABASES: [&str; 2] = ["postgres", "template1"];

pub(super) type Rows = Vec<Vec<Option<String>>>;

/// A way to the server, for a superuser whose name is known to be one.
pub(super) struct Door {
    runtime: Runtime,
    pub(super) sockets: PathBuf,
    pub(super) user: String,
    pub(super) database: &'static str,
}

impl Door {
    /// Finds a role and a database that let one in.
    pub(super) fn find(sockets: &Path, users: &[String]) -> Result<Self, DrillError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| DrillError::Path { path: sockets.to_owned(), source })?;
        let mut door = Self { runtime, sockets: sockets.to_owned(), user: String::new(), database: DATABASES[0] };
        let mut refused = None;
        for user in users {
            user.clone_into(&mut door.user);
            for database in DATABASES {
                door.database = database;
                match door.open(database) {
                    Ok(session) if session.parameter("is_superuser") == Some("on") => return Ok(door),
                    Ok(_) => refused = Some(DrillError::NoSuperuser(user.clone())),
                    Err(e) => refused = Some(DrillError::Connect(e)),
                }
            }
        }
        Err(refused.unwrap_or_else(|| DrillError::NoSuperuser(String::new())))
    }

    pub(super) fn open(&self, database: &str) -> Result<Session, ConnectError> {
        let conninfo = format!("dbname={} options={}", quoted(database), quoted(SESSION_OPTIONS));
        let flags = Flags {
            conninfo: Some(conninfo),
            host: Some(self.sockets.display().to_string()),
            port: Some(PORT.to_string()),
            user: Some(self.user.clone()),
            password: None,
        };
        let nothing = Surroundings { variable: Box::new(|_| None), user: None, home: None };
        let conninfo = Conninfo::new(&flags, &nothing).map_err(|_| ConnectError::Unreachable {
            target: self.sockets.display().to_string(),
            source: std::io::ErrorKind::InvalidInput.into(),
        })?;
        self.runtime.block_on(Session::connect(&conninfo, Purpose::Sql, "walhold drill"))
    }

    /// The rows of a query, which is given up at the limits.
    pub(super) fn query(
        &self,
        session: &mut Session,
        sql: &str,
        limits: &Limits<'_>,
    ) -> Result<Result<Rows, Error>, Ended> {
        self.runtime.block_on(async {
            let asked = session.query(sql);
            tokio::pin!(asked);
            loop {
                tokio::select! {
                    answer = &mut asked => return Ok(answer),
                    () = tokio::time::sleep(super::process::PAUSE) => limits.check()?,
                }
            }
        })
    }
}

/// A value of a connection string.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}
