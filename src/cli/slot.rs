//! `walhold slot`

use std::fmt::Write as _;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use serde::Serialize;
use tracing::{info, warn};

use super::{Failure, connect};
use crate::connection::{Conninfo, Purpose, Session, SlotAnswer};
use crate::protocol::{Condition, Retention, SlotKind, SlotName, SlotState};
use crate::receive::Upstream;
use crate::status::{self, SlotStatus};

/// How the server sees this program.
const NAME: &str = "walhold";
/// How often `drop --wait` looks whether the slot is free.
const AGAIN: Duration = Duration::from_millis(200);

/// Make, remove and list replication slots
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a physical slot that keeps WAL from now on
    Create {
        /// Name of the slot
        slot: SlotName,
        /// Do nothing if there is a slot of that name
        #[arg(long)]
        if_not_exists: bool,
        #[command(flatten)]
        connection: connect::ConnectionFlags,
    },
    /// Remove a slot: the WAL that it kept may then be removed, too
    Drop {
        /// Name of the slot
        slot: SlotName,
        /// Do nothing if there is no slot of that name
        #[arg(long)]
        if_exists: bool,
        /// Wait until nobody uses it
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        connection: connect::ConnectionFlags,
    },
    /// List slots, and how much WAL each one keeps on the server
    List {
        /// Only these; a server that takes no SQL from us tells of no other
        slots: Vec<SlotName>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: connect::ConnectionFlags,
    },
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    super::runtime()?.block_on(async {
        match &arguments.action {
            Action::Create { slot, if_not_exists, connection } => create(slot, *if_not_exists, connection).await,
            Action::Drop { slot, if_exists, wait, connection } => remove(slot, *if_exists, *wait, connection).await,
            Action::List { slots, json, connection } => list(slots, *json, connection).await,
        }
    })
}

async fn create(slot: &SlotName, may_exist: bool, connection: &connect::ConnectionFlags) -> Result<(), Failure> {
    let (conninfo, mut upstream, _) = connection.connect(NAME).await?;
    match upstream.session.create_slot(slot, SlotKind::Permanent, Retention::Reserved).await {
        Ok(()) => info!("made replication slot \"{slot}\", with reserved WAL"),
        Err(e) if may_exist && e.condition() == Some(Condition::Exists) => {
            info!("replication slot \"{slot}\" exists already");
        }
        Err(e) => return Err(e.into()),
    }
    if let Ok(found) = ask(&conninfo.at(&upstream.session)).await {
        found.warn_of_no_limit();
    }
    Ok(())
}

async fn remove(
    slot: &SlotName,
    may_be_missing: bool,
    wait: bool,
    connection: &connect::ConnectionFlags,
) -> Result<(), Failure> {
    let (_, mut upstream, _) = connection.connect(NAME).await?;
    let mut told = false;
    loop {
        match upstream.session.drop_slot(slot).await {
            Ok(()) => info!("dropped replication slot \"{slot}\""),
            Err(e) if may_be_missing && e.condition() == Some(Condition::Missing) => {
                info!("there is no replication slot \"{slot}\"");
            }
            Err(e) if e.condition() == Some(Condition::InUse) && wait => {
                if !std::mem::replace(&mut told, true) {
                    info!("{e}; waiting until it is free");
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            Err(e) => {
                let hint = match e.condition() {
                    Some(Condition::InUse) => {
                        Some("stop its receiver first, or let this command wait for that (--wait)")
                    }
                    Some(Condition::Missing) => Some("walhold slot list shows what slots there are"),
                    _ => None,
                };
                let failure = Failure::from(e);
                return Err(match hint {
                    Some(hint) => failure.hint(hint),
                    None => failure,
                });
            }
        }
        return Ok(());
    }
}

async fn list(only: &[SlotName], json: bool, connection: &connect::ConnectionFlags) -> Result<(), Failure> {
    let (conninfo, mut upstream, _) = connection.connect(NAME).await?;
    let mut found = match ask(&conninfo.at(&upstream.session)).await {
        Ok(found) => found,
        Err(reason) => by_commands(&mut upstream, only, &reason).await?,
    };
    if !only.is_empty() {
        found.slots.retain(|slot| only.iter().any(|name| name.as_str() == slot.name));
    }
    found.warn_of_no_limit();
    if json { super::print_json(&found) } else { super::say(&found.table()) }
}

/// What a server tells of its slots.
#[derive(Debug, Serialize)]
struct Found {
    version: u32,
    /// Where its log ends.
    position: String,
    /// Bytes that all slots may keep at most; `None` if that is not limited, or not known.
    max_slot_wal_keep_size: Option<u64>,
    /// Whether SQL told it: all slots, and all there is to know of them.
    complete: bool,
    slots: Vec<Slot>,
}

#[derive(Debug, Default, Serialize)]
struct Slot {
    name: String,
    kind: String,
    /// `None` where it is not known.
    active: Option<bool>,
    /// The application that uses it.
    used_by: Option<String>,
    restart_lsn: Option<String>,
    /// How much WAL it keeps the server from removing.
    retained_bytes: Option<u64>,
    /// As `pg_replication_slots` has it: reserved, extended, unreserved, lost.
    wal_status: Option<String>,
    /// How much more WAL can be written before the slot may lose what it keeps.
    safe_wal_size: Option<i64>,
}

/// Asks in an ordinary SQL session; what is in the way, if that is not to be had.
async fn ask(conninfo: &Conninfo) -> Result<Found, String> {
    let mut session = Session::connect(conninfo, Purpose::Sql, NAME).await.map_err(|e| e.to_string())?;
    let server = status::ask(&mut session).await.map_err(|e| e.to_string())?;
    Ok(Found {
        version: 1,
        position: server.position.to_string(),
        max_slot_wal_keep_size: server.max_slot_wal_keep_size,
        complete: true,
        slots: server.slots.into_iter().map(Slot::from).collect(),
    })
}

impl From<SlotStatus> for Slot {
    fn from(slot: SlotStatus) -> Self {
        Self {
            name: slot.name,
            kind: slot.kind,
            active: Some(slot.active),
            used_by: slot.used_by,
            restart_lsn: slot.restart_lsn.map(|lsn| lsn.to_string()),
            retained_bytes: slot.retained_bytes,
            wal_status: slot.wal_status,
            safe_wal_size: slot.safe_wal_size,
        }
    }
}

/// Replication commands tell of a slot whose name is known, from 15 on.
async fn by_commands(upstream: &mut Upstream, only: &[SlotName], reason: &str) -> Result<Found, Failure> {
    warn!("SQL would tell more, and is not to be had: {reason}");
    let end = upstream.position;
    let mut slots = Vec::new();
    let default = NAME.parse().ok();
    let names = if only.is_empty() { default.as_slice() } else { only };
    for name in names {
        match upstream.session.read_slot(name).await? {
            SlotAnswer::CannotBeAsked => {
                return Err(Failure::error("before PostgreSQL 15 only SQL tells of slots")
                    .hint("let the role connect to a database (dbname=, a line in pg_hba.conf)"));
            }
            SlotAnswer::Known(SlotState::Missing) => {}
            SlotAnswer::Known(SlotState::Physical { restart }) => slots.push(Slot {
                name: name.to_string(),
                kind: "physical".into(),
                restart_lsn: restart.map(|at| at.lsn().to_string()),
                retained_bytes: restart.map(|at| end.lsn().saturating_sub(at.lsn())),
                ..Slot::default()
            }),
        }
    }
    let position = end.lsn().to_string();
    Ok(Found { version: 1, position, max_slot_wal_keep_size: None, complete: false, slots })
}

impl Found {
    fn warn_of_no_limit(&self) {
        if self.complete && self.max_slot_wal_keep_size.is_none() && !self.slots.is_empty() {
            warn!(
                "max_slot_wal_keep_size is not limited: a slot that nobody reads keeps WAL until the server's disk is full"
            );
        }
    }

    fn table(&self) -> String {
        if self.slots.is_empty() {
            return "no slots\n".into();
        }
        let width = self.slots.iter().map(|slot| slot.name.len()).max().unwrap_or(0).max(4);
        let mut table = format!(
            "{:<width$} {:<8} {:<6} {:>14} {:>10} {:<10} {:>10}  USED BY\n",
            "SLOT", "KIND", "ACTIVE", "RESTART", "KEEPS", "WAL", "ROOM LEFT"
        );
        for slot in &self.slots {
            let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
            let active = or_dash(slot.active.map(|active| if active { "yes".into() } else { "no".into() }));
            let keeps = or_dash(slot.retained_bytes.map(|bytes| HumanBytes(bytes).to_string()));
            let room = slot.safe_wal_size.map(|bytes| HumanBytes(u64::try_from(bytes).unwrap_or(0)).to_string());
            let _ = writeln!(
                table,
                "{:<width$} {:<8} {active:<6} {:>14} {keeps:>10} {:<10} {:>10}  {}",
                slot.name,
                slot.kind,
                or_dash(slot.restart_lsn.clone()),
                or_dash(slot.wal_status.clone()),
                or_dash(room),
                slot.used_by.as_deref().unwrap_or_default()
            );
        }
        table
    }
}
