//! The guard for the primary: a slot keeps WAL for a receiver that does not come along, until the
//! server's disk is full.

use super::setup::Standing;
use super::{ReceiveError, Slot, Upstream};
use crate::connection::Conninfo;

/// How the server sees the connections that only look. It must not be a synchronous standby's name.
const APPLICATION_NAME: &str = "walhold_guard";

/// Bytes of WAL that the server keeps for the slot: from where it stands to where the server is. `None`
/// if it keeps none. Asked on a connection of its own, for the one that streams may be what hangs.
///
/// # Errors
/// When the server cannot be asked, or there is no such slot.
pub async fn kept_by_slot(conninfo: &Conninfo, slot: &Slot) -> Result<Option<u64>, ReceiveError> {
    let Some(name) = slot.name() else { return Ok(None) };
    let mut upstream = Upstream::connect(conninfo, APPLICATION_NAME).await?;
    let standing = upstream.find_slot(conninfo, APPLICATION_NAME, name).await?;
    let standing = standing.ok_or_else(|| ReceiveError::NoSlot(name.clone()))?;
    match standing {
        Standing::Untold(reason) => Err(ReceiveError::SlotPosition { slot: name.clone(), reason }),
        told => Ok(told.position().map(|restart| upstream.position.lsn().saturating_sub(restart.lsn()))),
    }
}

/// Drops the slot.
///
/// # Errors
/// When the server cannot be reached or refuses, as it does while the slot is in use.
pub async fn drop_slot(conninfo: &Conninfo, slot: &Slot) -> Result<(), ReceiveError> {
    let Some(name) = slot.name() else { return Ok(()) };
    let mut upstream = Upstream::connect(conninfo, APPLICATION_NAME).await?;
    Ok(upstream.session.drop_slot(name).await?)
}
