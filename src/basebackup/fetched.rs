//! The WAL that the server puts into the base archive, checked as it comes.

use super::BaseBackupError as Error;
use crate::archive::EndOfBackup;
use crate::image::{MemberPath, TarEvent};
use crate::wal::{Broken, Chain, Lsn, Pos, RecordKind, Seed, Segment, SegmentSize};

/// Follows the records from a backup's start on through the segments, which come in their order.
#[derive(Debug)]
pub(super) struct Fetched {
    start: Pos,
    chain: Chain,
    /// What comes next on the backup's timeline.
    next: Segment,
    /// It is coming.
    open: bool,
    broken: Option<Broken>,
    /// A record begins at the backup's start.
    starts: bool,
    /// Exclusive end of the record that ends the backup.
    ends: Option<Lsn>,
}

impl Fetched {
    pub(super) fn new(start: Pos, size: SegmentSize, system_id: u64) -> Self {
        let next = Segment::containing(start, size);
        let seed = Seed { start: next.start(), size, system_id: Some(system_id), newest_tli: start.tli() };
        Self { start, chain: Chain::new(seed), next, open: false, broken: None, starts: false, ends: None }
    }

    /// Takes the next of the base archive.
    pub(super) fn take(&mut self, event: &TarEvent<'_>) {
        match event {
            TarEvent::Member(member) => self.open = self.is_next(&member.path),
            TarEvent::Data(data) if self.open && self.broken.is_none() => {
                let (start, starts, ends) = (self.start.lsn(), &mut self.starts, &mut self.ends);
                let fed = self.chain.feed(data, &mut |record| {
                    *starts |= record.start == start;
                    if record.kind() == RecordKind::BackupEnd(start) {
                        *ends = Some(record.end);
                    }
                });
                self.broken = fed.err();
            }
            TarEvent::Data(_) => {}
            TarEvent::MemberEnd => {
                if std::mem::take(&mut self.open) {
                    self.next = self.next.next();
                }
            }
        }
    }

    fn is_next(&self, path: &MemberPath) -> bool {
        path.as_str().and_then(|path| path.strip_prefix("pg_wal/")) == Some(self.next.to_string().as_str())
    }

    /// Whether all is there up to `stop`. What follows in the last segment may be anything.
    pub(super) fn check(&self, stop: Pos, end: EndOfBackup) -> Result<(), Error> {
        let whole = self.chain.whole();
        let wrong = |what: String| Err(Error::Fetched(what));
        if whole < stop.lsn() {
            return match self.broken {
                Some(broken) => wrong(broken.to_string()),
                None => wrong(format!("it ends at {whole}, and the backup ends at {stop}")),
            };
        }
        if !self.starts {
            return wrong(format!("no record begins at {}, where the backup starts", self.start));
        }
        let ends = self.ends.is_some_and(|end| end.min(stop.lsn()) == stop.lsn());
        if end == EndOfBackup::Record && !ends {
            return wrong(format!("no end-of-backup record ends at {stop}"));
        }
        Ok(())
    }
}
