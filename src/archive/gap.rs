//! Gaps that an operator has accepted. What is missing is told by the names of the segments alone; a
//! note beside them, `SEGMENT.gap`, tells it from segments that were lost.

use jiff::Timestamp;

use super::{Archive, ArchiveError};
use crate::wal::{Pos, Segment};

/// What the name of a note ends in, behind that of the segment.
pub(super) const GAP: &str = ".gap";

impl Archive {
    /// Notes that WAL is missing from `held` (the exclusive end of what is held) to `from`, where
    /// receiving begins anew; durable on return. The note bears the name of the first segment that is
    /// not whole, and goes with the WAL before it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_gap(&self, held: Pos, from: Pos, now: Timestamp) -> Result<(), ArchiveError> {
        let name = format!("{}{GAP}", Segment::containing(held, self.size));
        let temporary = self.dir.join(format!("{name}.tmp"));
        self.remove_if_there(&temporary)?;
        let mut file = self.disk.create(&temporary, self.file_mode)?;
        let text = format!(
            "WAL from {} to {} of timeline {} is missing. Accepted at {now}.\n",
            held.lsn(),
            from.lsn(),
            held.tli()
        );
        file.write_at(0, text.as_bytes())?;
        let _published = self.disk.publish(file, &temporary, &self.dir.join(name))?;
        Ok(())
    }
}
