//! What the recovery will meet, read before anything is started.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::DrillError;
use crate::archive::{Archive, ArchiveError};
use crate::repository::Seal;
use crate::restore::Plan;
use crate::wal::{Chain, History, Lsn, Seed};

/// The end of the last whole record that the archive holds on the way that the recovery takes.
///
/// # Errors
/// When the archive cannot be read, and when a record makes a tablespace: a server that replays it
/// writes to that place (`create_tablespace_directories`), which another server may be using.
pub(super) fn end_of_wal(archive: &Archive, backup: &Seal, plan: &Plan) -> Result<Lsn, DrillError> {
    let tli = plan.wal.timeline.unwrap_or_else(|| backup.stop.tli());
    let way = match archive.history(tli) {
        Ok(way) => way,
        Err(ArchiveError::NoHistory(_)) => History::alone(tli),
        Err(e) => return Err(e.into()),
    };
    let (from, size, system_id) = (backup.start.lsn(), archive.size(), archive.system_id());
    let start = way.segment_at(from, size).start();
    let mut chain = Chain::new(Seed { start, size, system_id, newest_tli: tli });
    let mut made = None;
    let walked = archive.walk(&way, &mut chain, Lsn::new(u64::MAX), &mut |record| {
        let location = record.tablespace_made().filter(|path| !path.is_empty() && record.start >= from);
        if let (None, Some(location)) = (&made, location) {
            let location = PathBuf::from(std::ffi::OsStr::from_bytes(location));
            made = Some(DrillError::MakesTablespace { location, at: record.start });
        }
    });
    match walked {
        // Whatever it stops at is where the recovery ends, or what the server will say.
        Ok(_) | Err(ArchiveError::Decode { .. }) => {}
        Err(e) => return Err(e.into()),
    }
    made.map_or(Ok(chain.whole()), Err)
}
