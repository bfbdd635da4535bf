//! Which of the hosts it is to be: `target_session_attrs` and `load_balance_hosts`.

use tokio::time::timeout;
use tracing::debug;

use super::conninfo::{Conninfo, Target};
use super::dial::{self, Caller};
use super::hosts::Host;
use super::login::Purpose;
use super::session::Session;
use super::{ConnectError, Error};

impl Session {
    /// Connects to the first host that will do, logs in, and checks that the server is one that
    /// walhold works with. Each call begins with the first host. The server knows us by
    /// `application_name`.
    ///
    /// # Errors
    /// See [`ConnectError`]; its hint says what to do.
    pub async fn connect(conninfo: &Conninfo, purpose: Purpose, application_name: &str) -> Result<Self, ConnectError> {
        let caller = Caller { conninfo, purpose, application_name };
        let mut hosts: Vec<&Host> = conninfo.hosts.iter().collect();
        if conninfo.shuffle {
            dial::shuffle(&mut hosts);
        }
        let mut tried = Vec::new();
        let mut second_best = None;
        for host in hosts {
            match at_host(&caller, host, &mut second_best).await {
                Ok(session) => return Ok(session),
                Err(failures) => tried.extend(failures),
            }
            match tried.last() {
                Some(error) if !error.may_be_better_elsewhere() => return Err(ConnectError::of(tried)),
                Some(error) => debug!("{error}"),
                None => {}
            }
        }
        second_best.ok_or_else(|| ConnectError::of(tried))
    }
}

impl Conninfo {
    /// The same for the server of this session alone, whatever it is or becomes: for a second
    /// connection that must not lead to another host.
    #[must_use]
    pub fn at(&self, session: &Session) -> Self {
        Self { hosts: vec![session.host().clone()], target: Target::Any, shuffle: false, ..self.clone() }
    }

    /// The same without the hosts of sessions that had these targets; `None` if no other is left.
    pub fn without(&self, targets: &[String]) -> Option<Self> {
        // Behind the host's name may stand the address that it was reached at.
        let is_of = |target: &String, host: &str| {
            target.strip_prefix(host).is_some_and(|rest| rest.is_empty() || rest.starts_with(" ("))
        };
        let mut hosts = self.hosts.clone();
        hosts.retain(|host| !targets.iter().any(|target| is_of(target, &host.target())));
        (!hosts.is_empty()).then(|| Self { hosts, ..self.clone() })
    }
}

async fn at_host(
    caller: &Caller<'_>,
    host: &Host,
    second_best: &mut Option<Session>,
) -> Result<Session, Vec<ConnectError>> {
    let mut session = Session::new(dial::dial(caller, host).await?).map_err(|error| vec![error])?;
    let wanted = caller.conninfo.target;
    let Some(what) = mismatch(caller, &mut session).await.map_err(|error| vec![error])? else { return Ok(session) };
    let unsuited = ConnectError::Unsuited { target: session.target().to_owned(), what, wanted: wanted.name() };
    if wanted == Target::PreferStandby && second_best.is_none() {
        *second_best = Some(session);
    } else {
        session.close().await;
    }
    Err(vec![unsuited])
}

/// What the server is, if it is not what is wanted.
async fn mismatch(caller: &Caller<'_>, session: &mut Session) -> Result<Option<&'static str>, ConnectError> {
    let wanted = caller.conninfo.target;
    if wanted == Target::Any {
        return Ok(None);
    }
    let target = session.target().to_owned();
    let asking = State::ask(session, caller.purpose);
    let state = match caller.conninfo.timeout {
        None => asking.await,
        Some(limit) => match timeout(limit, asking).await {
            Ok(state) => state,
            Err(_) => return Err(ConnectError::TimedOut { target, limit }),
        },
    };
    match state {
        Ok(state) => Ok(state.mismatch(wanted)),
        Err(source) => Err(ConnectError::Unasked { target, source }),
    }
}

/// What `target_session_attrs` is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct State {
    read_only: bool,
    /// `None` where it cannot be told.
    standby: Option<bool>,
}

impl State {
    /// From 14 on servers report it at login. Before, `SHOW transaction_read_only` works without SQL
    /// too; that is on in a standby, and in a primary whose default it is. libpq asks for
    /// `pg_is_in_recovery()` then, which a replication connection cannot answer.
    async fn ask(session: &mut Session, purpose: Purpose) -> Result<Self, Error> {
        let on = |session: &Session, name| session.parameter(name).map(|value| value == "on");
        let reported = (on(session, "in_hot_standby"), on(session, "default_transaction_read_only"));
        if let (Some(standby), Some(by_default)) = reported {
            return Ok(Self { read_only: standby || by_default, standby: Some(standby) });
        }
        let read_only = session.show("transaction_read_only").await? == "on";
        let standby = if !read_only {
            Some(false)
        } else if purpose == Purpose::Sql {
            let rows = session.look_up("select pg_catalog.pg_is_in_recovery()").await?;
            Some(rows.first().and_then(|row| row.first()?.as_deref()) == Some("t"))
        } else {
            (session.show("default_transaction_read_only").await? == "off").then_some(true)
        };
        Ok(Self { read_only, standby })
    }

    fn mismatch(self, wanted: Target) -> Option<&'static str> {
        const UNKNOWN: &str = "a server before PostgreSQL 14 that does not tell a replication connection whether it \
                               is a standby (default_transaction_read_only is on)";
        match (wanted, self.standby) {
            (Target::ReadWrite, Some(true)) => Some("a standby"),
            (Target::ReadWrite, _) => self.read_only.then_some("read-only"),
            (Target::ReadOnly, _) => (!self.read_only).then_some("not read-only"),
            (Target::Primary, Some(true)) => Some("a standby"),
            (Target::Standby | Target::PreferStandby, Some(false)) => Some("a primary"),
            (Target::Primary | Target::Standby | Target::PreferStandby, None) => Some(UNKNOWN),
            (Target::Any | Target::Primary | Target::Standby | Target::PreferStandby, _) => None,
        }
    }
}
