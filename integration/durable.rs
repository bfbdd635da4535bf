//! P1: what is reported as flushed survives a power cut at the instant of the report.

use std::fs;
use std::path::Path;

use crate::cluster::{Cluster, Lsn};
use crate::load::Load;
use crate::program::{Running, start, walhold};
use crate::room::{Outcome, Room, SOON, skip, wait_until};
use crate::stock::{first_byte, is_segment, names};
use crate::trace::{Change, Event, Fate, events, strace};

const SEGMENT: u64 = 1 << 20;

/// Follows every system call of a synchronous receiver, cuts the power at each status message, and
/// looks for what it had reported.
pub(crate) fn power_cut(room: &Room) -> Outcome {
    if room.command("strace").arg("-V").output().is_err() {
        skip!("no strace on this machine");
    }
    let primary = Cluster::new(room, "primary");
    Load::prepare(&primary);
    primary.rows("checkpoint"); // from here on, pages go into the WAL whole, and segments end
    let wal = room.path("wal");
    room.make_dir(&wal);
    primary.rows("select pg_create_physical_replication_slot('s', true)");
    primary.require_standby("walhold");
    let load = Load::start(&primary, 2);
    let mut events = traced(room, &primary, &wal, "first", |receiver| assert!(receiver.kill().killed()));
    events.extend(traced(room, &primary, &wal, "second", |receiver| drop(receiver.terminate().expect(0))));
    load.finish();
    let (statuses, ends) = judge(&events, &wal, Fate::default(), |_| true).unwrap();
    assert!(statuses > 20 && ends >= 2, "only {statuses} reports over {ends} segments' ends");
    // The same runs, had they synced no file, or no directory: a judge who finds that in order is none.
    let directory = wal.to_str().unwrap();
    let is_sync_of = |change: &Change, file: bool| match change {
        Change::SyncBegun(path) | Change::Synced(path) => (path != directory) == file,
        Change::AllSyncBegun | Change::AllSynced => true,
        _ => false,
    };
    judge(&events, &wal, Fate::default(), |change| !is_sync_of(change, true)).unwrap_err();
    judge(&events, &wal, Fate::default(), |change| !is_sync_of(change, false)).unwrap_err();
    Ok(())
}

/// What a receiver does over at least one segment's end.
fn traced(room: &Room, primary: &Cluster<'_>, wal: &Path, name: &str, end: impl Fn(Running)) -> Vec<Event> {
    let calls = room.path(name);
    let mut command = strace(room, &calls);
    command.arg(room.program()).args(walhold(room, "receive").get_args()).arg("-D").arg(wal);
    let receiver = start(command.args(["--slot", "s", "--synchronous", "-d", &primary.conninfo()]));
    receiver.wait_until_it_streams(primary);
    let begin = primary.flushed();
    wait_until("a segment's end", SOON, || primary.flushed().0 > begin.0 + SEGMENT);
    end(receiver);
    let whole = |text: &str| text.contains("+++ exited with 0 +++") || text.contains("+++ killed by SIGKILL +++");
    wait_until("the end of the trace", SOON, || whole(&fs::read_to_string(&calls).unwrap()));
    events(&fs::read_to_string(&calls).unwrap())
}

/// What the program told the server, against what would have survived, if only some of its changes had been made. `fate` is
/// what there was before. How often it told of more, and over how many segments' ends.
pub(crate) fn judge(
    events: &[Event],
    wal: &Path,
    mut fate: Fate,
    made: impl Fn(&Change) -> bool,
) -> Result<(usize, u64), String> {
    let (mut reported, mut statuses, mut ends) = (Lsn(0), 0, 0_u64);
    for event in events {
        match event {
            Event::Done(change) if made(change) => fate.follow(change),
            Event::Done(_) => {}
            Event::Writes { path, at, bytes } => keeps(path, *at, bytes, reported, wal)?,
            Event::Sent(bytes) => {
                let Some(flush) = flushes(bytes).max().map(Lsn).filter(|flush| *flush > reported) else { continue };
                survives(&fate, wal, reported, flush)?;
                ends += u64::from(reported.0 != 0) * (flush.0 / SEGMENT - reported.0 / SEGMENT);
                (reported, statuses) = (flush, statuses + 1);
            }
        }
    }
    Ok((statuses, ends))
}

/// The flush positions in what is sent: CopyData messages with a standby status update.
fn flushes(mut sent: &[u8]) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let length = u32::from_be_bytes(sent.get(1..5)?.try_into().unwrap()) as usize;
        let (message, rest) = sent.split_at_checked(1 + length)?;
        sent = rest;
        let status = message[0] == b'd' && message.get(5) == Some(&b'r');
        Some(if status { u64::from_be_bytes(message[14..22].try_into().unwrap()) } else { 0 })
    })
}

/// All bytes from `from` to `to` must survive, under names that survive; a whole segment under its final one.
fn survives(fate: &Fate, wal: &Path, from: Lsn, to: Lsn) -> Result<(), String> {
    for name in names(wal) {
        let segment = name.trim_end_matches(".partial");
        if !is_segment(segment) {
            continue;
        }
        let start = first_byte(segment, SEGMENT).0;
        if start >= to.0 {
            continue;
        }
        let path = wal.join(segment).to_str().unwrap().to_owned();
        let whole = start + SEGMENT <= to.0;
        let partial = if whole { None } else { fate.survives(&format!("{path}.partial")) };
        let survives = fate.survives(&path).or(partial);
        let survives = survives.ok_or_else(|| format!("flush {to} is reported, and {segment} would be gone"))?;
        let (from, to) = (from.0.max(start) - start, to.0.min(start + SEGMENT) - start);
        if from < to {
            let range = usize::try_from(from).unwrap()..usize::try_from(to).unwrap();
            let held = fs::read(wal.join(&name)).unwrap();
            if survives.get(range.clone()) != Some(&held[range.clone()]) {
                let reported = Lsn(start + to);
                return Err(format!(
                    "flush {reported} is reported, and bytes {range:?} of {segment} would not be whole"
                ));
            }
        }
    }
    Ok(())
}

/// A write over bytes that were reported must bring the same: the power may fail in its middle.
fn keeps(path: &str, at: u64, bytes: &[u8], reported: Lsn, wal: &Path) -> Result<(), String> {
    let name = Path::new(path).file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let segment = name.trim_end_matches(".partial");
    if !is_segment(segment) {
        return Ok(());
    }
    let start = first_byte(segment, SEGMENT).0;
    let kept = reported.0.saturating_sub(start + at).min(bytes.len() as u64);
    if kept > 0 {
        let held = fs::read(wal.join(name)).or_else(|_| fs::read(wal.join(segment))).unwrap();
        let (at, kept) = (usize::try_from(at).unwrap(), usize::try_from(kept).unwrap());
        if bytes[..kept] != held[at..at + kept] {
            return Err(format!("a write over what was reported changes it: {name} at {at}"));
        }
    }
    Ok(())
}
