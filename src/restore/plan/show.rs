//! A plan in words.

use std::fmt;

use super::{Estimate, Place, Plan, PlannedEnd};
use crate::restore::Action;

/// For an operator to read before it is done.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backup = &self.backup;
        writeln!(f, "backup      {} of PostgreSQL {}", backup.id, backup.server_version.text)?;
        if !backup.label.is_empty() {
            writeln!(f, "label       {}", backup.label.escape_debug())?;
        }
        for (index, id) in self.based_on.iter().enumerate() {
            let full = index + 1 == self.based_on.len();
            writeln!(f, "based on    {id} ({})", if full { "full" } else { "incremental" })?;
        }
        let state = |place: &Place| match place {
            Place { filled: true, .. } => "what differs is rewritten, what is not in the backup is removed",
            Place { exists: true, .. } if backup.place.is_some() => "filled",
            Place { exists: true, .. } => "empty",
            Place { .. } => "new",
        };
        if let Some(data) = &backup.place {
            writeln!(f, "data        not checked, from {}", data.escape_debug())?;
        }
        writeln!(f, "to          {} ({})", self.target.path.display(), state(&self.target))?;
        for tablespace in &self.tablespaces {
            let (oid, old) = (tablespace.oid, tablespace.old.display());
            match &tablespace.new {
                None => writeln!(f, "tablespace  {oid} inside the data directory")?,
                Some(place) if tablespace.moves() => {
                    writeln!(f, "tablespace  {oid} to {} ({}) from {old}", place.path.display(), state(place))?;
                }
                Some(place) => writeln!(f, "tablespace  {oid} to {} ({})", place.path.display(), state(place))?,
            }
        }
        writeln!(f, "WAL         {} to {}, proven", self.wal.from, self.wal.consistent_at)?;
        self.recovery(f)?;
        for space in &self.space {
            writeln!(f, "room        {} of {} bytes at {}", space.needed, space.available, space.path.display())?;
        }
        writeln!(f, "time        {}", self.time)?;
        for note in &self.notes {
            writeln!(f, "note        {note}")?;
        }
        Ok(())
    }
}

impl Plan {
    fn recovery(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wal = &self.wal;
        let (Some(tli), Some(end)) = (wal.timeline, &wal.end) else {
            return writeln!(f, "recovery    as a standby, along its primary's timeline");
        };
        if let Some(aim) = self.goal.aim() {
            writeln!(f, "target      {}", aim.target.in_full())?;
        }
        match (&end.because, &wal.ends_at_gap) {
            (Some(because), _) => writeln!(f, "recovery    along timeline {tli}, stops {because}")?,
            (None, Some(gap)) => writeln!(f, "recovery    along timeline {tli} to the gap at segment {gap}")?,
            (None, None) => writeln!(f, "recovery    along timeline {tli} to the end, segment {}", wal.last_segment)?,
        }
        writeln!(f, "ends at     {end}")?;
        match self.then() {
            Some(then) => writeln!(f, "then        {then}"),
            None => Ok(()),
        }
    }

    /// What the server does when it has come to the target, in words; `None` without a target.
    pub fn then(&self) -> Option<&'static str> {
        Some(match self.goal.aim()?.action {
            Action::Promote => "the server takes writes, on a new timeline",
            Action::Pause => {
                "the server answers queries and waits: SELECT pg_wal_replay_resume() lets it take writes, on a new timeline"
            }
            Action::Shutdown => {
                "the server shuts down, and does so at each start until recovery.signal or the target is removed"
            }
        })
    }
}

impl fmt::Display for PlannedEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.last_commit {
            Some(last) => write!(f, "{}, the last {last}", self.at),
            None => write!(f, "{}, with no commit behind the backup's start", self.at),
        }
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "about {} to lay down {}", Span(self.lay_down_ms), Size(self.data_bytes))?;
        if let (Some(took), Some(bytes)) = (self.recovery_ms, self.wal_bytes) {
            write!(f, ", then {} to replay {} of WAL", Span(took), Size(bytes))?;
        }
        match self.as_drilled {
            Some(id) => write!(f, ", as fast as in the drill of {id}"),
            None => f.write_str(", at usual speeds (a drill measures them)"),
        }
    }
}

/// Milliseconds, in a unit that tells enough.
struct Span(u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.div_ceil(1000).max(1);
        match seconds {
            ..120 => write!(f, "{seconds} s"),
            120..7200 => write!(f, "{} min", seconds.div_ceil(60)),
            7200.. => write!(f, "{} h", seconds.div_ceil(3600)),
        }
    }
}

/// Bytes, in a unit that tells enough.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes @ ..1_048_576 => write!(f, "{} kB", bytes.div_ceil(1024)),
            bytes @ ..1_073_741_824 => write!(f, "{} MB", bytes >> 20),
            bytes => write!(f, "{}.{} GB", bytes >> 30, ((bytes & 0x3FFF_FFFF) * 10) >> 30),
        }
    }
}
