//! What a server that recovers is given of an archive that a power cut has left, or that cannot be read.

use super::*;
use crate::archive::Wrote;
use crate::codec::Method;
use crate::disk::simulated::{Call, Fault};
use crate::disk::{BLOCK, Simulated};
use crate::wal::{History, Lsn, Pos};

const REPO: &str = "/srv/repo";

/// A disk, the log that was received on it, and what had been called durable after so many operations.
struct Received {
    disk: Simulated,
    log: Log,
    made: usize,
    durable: Vec<(usize, Lsn)>,
}

impl Received {
    /// All of the log, in pieces, with the first segment compressed when it is complete.
    fn new() -> Self {
        let (log, _, _) = log_with_backup();
        let disk = Simulated::new(BLOCK);
        let size = SegmentSize::new(SIZE).unwrap();
        let repository =
            Repository::create(Path::new(REPO), Arc::new(disk.clone()), SYSTEM, size, false, now()).unwrap();
        let made = disk.operations();
        let archive = repository.archive();
        let first = Segment::containing(Pos::new(TimelineId::FIRST, Lsn::new(START)), size);
        let mut writer = archive.begin(&History::first(), first).unwrap().writer;
        let mut durable = Vec::new();
        for (n, piece) in log.bytes.chunks(190_000).enumerate() {
            let mut told = |wrote: Wrote| {
                if let Wrote::Complete(_, upto) = wrote {
                    durable.push((disk.operations(), upto.pos().lsn()));
                }
            };
            writer.append(piece, &mut told).unwrap();
            if let Some(upto) = writer.settle().unwrap() {
                durable.push((disk.operations(), upto.pos().lsn()));
            }
            if n == 8 {
                archive.compress(first, Method::Zstd.into()).unwrap();
            }
        }
        Self { disk, log, made, durable }
    }

    fn durable(&self, operations: usize) -> u64 {
        let told = self.durable.iter().filter(|(at, _)| *at <= operations);
        told.map(|(_, upto)| upto.get()).max().unwrap_or(START)
    }

    /// Asks for each segment; nothing that is given may be wrong, and nothing durable be denied.
    fn ask_all(&self, disk: &Simulated, scene: &Scene, recovery: Recovery, durable: u64) -> Result<(), String> {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        for no in START / SIZE..=self.log.at() / SIZE + 1 {
            let mut request = scene.request(&name(1, no));
            request.repository = REPO.into();
            let _ = fs::remove_file(scene.path("data/pg_wal/RECOVERYXLOG"));
            let outcome = attempt(&request, recovery, &disk).unwrap_or_else(Outcome::Unknown);
            let (start, end) = (no * SIZE, (no + 1) * SIZE);
            // A standby is given complete segments alone, and of a partial whole records come.
            let whole = self.log.starts.iter().rfind(|start| **start <= durable).copied().unwrap_or(start);
            let held = match recovery {
                _ if durable >= end => end,
                Recovery::Standby => start,
                _ => whole,
            };
            match outcome {
                Outcome::Found => self.is_right(&scene.got(), start, held)?,
                Outcome::Absent if held > start => return Err(format!("segment {no} is denied")),
                Outcome::Unknown(why) if held > start => return Err(format!("segment {no}: {why}")),
                Outcome::Absent | Outcome::Unknown(_) => {}
            }
        }
        Ok(())
    }

    /// The log's bytes, at least up to `held`, and zeros.
    fn is_right(&self, got: &[u8], start: u64, held: u64) -> Result<(), String> {
        let from = usize::try_from(start - self.log.start).unwrap();
        let sent = self.log.bytes.get(from..).unwrap_or_default();
        let same = got.iter().zip(sent).take_while(|(a, b)| a == b).count();
        if got.len() as u64 != SIZE || (same as u64) < held.saturating_sub(start) {
            return Err(format!("of {start} {} bytes are given, and {same} are right", got.len()));
        }
        match got[same..].iter().all(|byte| *byte == 0) {
            true => Ok(()),
            false => Err(format!("what follows on {} is not the log's", start + same as u64)),
        }
    }
}

/// P8, P1: whenever the power fails, what was acknowledged is given, and nothing else than what was sent.
#[test]
fn p8_after_a_power_cut_what_was_durable_is_given() {
    let received = Received::new();
    let scene = Scene::new(OTHER);
    for (k, disk) in received.disk.prefixes().enumerate().skip(received.made) {
        let durable = received.durable(k);
        for (n, found) in disk.crash_images(k as u64, 2).enumerate() {
            let recovery = if n % 2 == 0 { Recovery::ToPoint } else { Recovery::Standby };
            if let Err(why) = received.ask_all(&found, &scene, recovery, durable) {
                panic!("{why}; durable up to {durable}, {recovery:?}\n  {found:?}");
            }
        }
    }
}

/// P8: a call that fails makes nothing look absent, and gives nothing wrong.
#[test]
fn p8_what_cannot_be_read_is_unknown() {
    let received = Received::new();
    let scene = Scene::new(OTHER);
    let last = received.log.at() / SIZE;
    for recovery in [Recovery::ToPoint, Recovery::Standby] {
        let mut unknown = 0;
        for no in [3, 4, last, last + 1] {
            let mut request = scene.request(&name(1, no));
            request.repository = REPO.into();
            let ask = |disk: &Simulated| {
                let _ = fs::remove_file(scene.path("data/pg_wal/RECOVERYXLOG"));
                let disk: Arc<dyn Disk> = Arc::new(disk.clone());
                attempt(&request, recovery, &disk).unwrap_or_else(Outcome::Unknown)
            };
            let good = received.disk.after(received.disk.operations());
            let usual = ask(&good);
            let made = Call::ALL.map(|call| (call, good.calls(call)));
            for (call, calls) in made {
                for nth in 1..=calls {
                    let disk = good.after(0);
                    disk.fail(call, nth, Fault::Io);
                    let outcome = ask(&disk);
                    unknown += usize::from(matches!(outcome, Outcome::Unknown(_)));
                    let same = outcome == usual;
                    assert!(same || matches!(outcome, Outcome::Unknown(_)), "{no}, {call:?} {nth}: {outcome:?}");
                    if outcome == Outcome::Found {
                        received.is_right(&scene.got(), no * SIZE, no * SIZE).unwrap();
                    }
                }
            }
        }
        assert!(unknown > 15, "{unknown}");
    }
}
