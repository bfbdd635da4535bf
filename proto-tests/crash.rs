//! Power cuts, kills and storage faults at every operation that is made on a disk. The disk is simulated; what must
//! hold is written in `world`, and beside each test. Which scenario is cut off, and meets a fault at any call, where:
//!
//! | what | cut off after every operation | EIO, ENOSPC, failed sync at any call |
//! |---|---|---|
//! | receive, grouped | `p1_a_plain_receiver_*`, `p1_a_partial_is_gone_on_with_*`, `p1_a_partial_that_was_never_*` | `p1_a_failed_*`, `p1_whatever_call_*`, `a_full_disk_*` |
//! | receive, each commit | `p1_a_synchronous_receiver_*` | the same writer |
//! | segment switch | each of these; `p1_a_prepared_segment_*`, `p1_a_complete_segment_is_gone_over` | the same |
//! | another receiver's partial | `p1_a_partial_is_replaced_*` | |
//! | timeline switch | `p2_a_timeline_ends_*` | `each_call_fails` is of two timelines |
//! | accepted gap | `p2_a_gap_is_noted_*` | |
//! | compressed behind, live, while catching up | `compress::p1_*` | `compress::p1_a_failed_*`, behind |
//! | repository, backup's folder, seal, pending | `repository::*` | `repository::p3_whatever_*`, `a_full_disk_seals_nothing` |
//! | backup: followed, streamed, incremental, by a command, to elsewhere; healed | `backup::p3_*` | `backup::p3_whatever_*` |
//! | expire, again; keep, read | `expire::p4_*` | `expire::p4_a_failing_*` |
//! | base backup, plain and tar, with its WAL | `basebackup::p3_*` | `basebackup::p3_whatever_*` |
//! | restore, delta, in place | `src/restore/tests/crash.rs` | the same |
//! | chain combined | `src/restore/combine/tests.rs` `p3_the_combining_*` | the same |
//! | wal-get | `src/restore/wal_get/tests/crash.rs` | the same |
//!
//! A snapshot of one instant is sealed as what is copied to elsewhere is; only its label is not kept. What the simulated
//! disk does not have: other writers between two calls, and permissions.
//!
//! A failure prints how it is run again: `WALHOLD_SEED` is what all dice are thrown from, and `WALHOLD_CUT` the
//! operation after which alone the power is cut. `WALHOLD_IMAGES` is how many power cuts of each state are looked at,
//! and with it every call fails once, not some; `WALHOLD_SEEDS` how many seeds the random lives take.

mod backup;
mod basebackup;
mod compress;
mod expire;
mod primary;
pub(crate) mod repository;
pub(crate) mod world;

use walhold::archive::WriteError;
use walhold::disk::simulated::{Call, Fault};
use walhold::disk::{BLOCK, Disk, Simulated, Trouble};
use walhold::wal::{History, Lsn, Segment};

use crate::wal::Log;
use world::{
    BULK, Dice, Failed, Pace, SIZE, START, Server, World, again, append, archive, at, images, log, seed, size, some_of,
};

/// Calls of one kind that are made to fail, one after the other, in one scenario.
const MOST_CALLS: usize = 40;

const GROUPED: Pace = Pace { slice: 120_000, settle: 3, slow: false };
const EACH: Pace = Pace { slice: 3_000, settle: 1, slow: false };

/// P1, P2: many appends, a sync now and then.
#[test]
fn p1_a_plain_receiver_is_cut_off_anywhere() {
    for alignment in [BLOCK, 1] {
        let (server, mut world) = (Server::new(log()), World::new(alignment));
        let mut dice = Dice(seed());
        world.receive(&server, u64::MAX, GROUPED, &mut dice).unwrap();
        world.cut_everywhere(&server, 2);
    }
}

/// P1: every append is a commit that waits. The first ones share a block.
#[test]
fn p1_a_synchronous_receiver_is_cut_off_anywhere() {
    let (server, mut world) = (Server::new(log()), World::new(BLOCK));
    let mut dice = Dice(seed());
    world.receive(&server, START + 40_000, EACH, &mut dice).unwrap();
    world.receive(&server, START + SIZE + 9_000, Pace { slice: 100_000, ..EACH }, &mut dice).unwrap();
    world.cut_everywhere(&server, 2);
}

/// P1, P2: a receiver that is killed and started again goes on in its partial.
#[test]
fn p1_a_partial_is_gone_on_with_in_place() {
    for alignment in [BLOCK, 1] {
        let (server, mut world) = (Server::new(log()), World::new(alignment));
        let mut dice = Dice(seed());
        for upto in [1, 5_000, 5_100, 300_000, SIZE + 70, SIZE + 500_000] {
            world.receive(&server, START + upto, BULK, &mut dice).unwrap();
        }
        world.cut_everywhere(&server, 2);
    }
}

/// P1: what a killed receiver left unsynced is not built upon where the archive is opened at a given
/// segment, either.
#[test]
fn p1_a_partial_that_was_never_synced_is_gone_on_with() {
    let (server, mut killed) = (Server::new(log()), World::new(BLOCK));
    let first = Segment::containing(at(START), size());
    let (from, log) = (killed.disk.operations(), server.log(at(0).tli()));
    killed.receive(&server, START + 100_000, GROUPED, &mut Dice(seed())).unwrap();
    let mut judge = world::Judge::new(&server);
    for (k, disk) in killed.disk.prefixes().enumerate().skip(from) {
        let mut world = World::at(disk.after(0), killed.acked(k));
        let resumption = archive(&world.disk).begin(&History::first(), first).unwrap();
        let disk = world.disk.clone();
        append(&disk, &mut world.acks, log, resumption, START + 200_000, EACH, &mut Dice(seed())).unwrap();
        for image in disk.crash_images(seed() ^ k as u64, images(2)) {
            judge.must_recover(&image, world.acked(usize::MAX));
        }
    }
}

/// A record that does not verify must not hide that the disk has failed: what follows is not the
/// same.
#[test]
fn a_failed_sync_is_told_before_a_broken_record() {
    let mut bad = log().bytes;
    bad[100_000] ^= 1;
    let world = World::new(BLOCK);
    world.disk.fail(Call::Sync, 1, Fault::Io);
    let first = Segment::containing(at(START), size());
    let resumption = archive(&world.disk).begin(&History::first(), first).unwrap();
    let ended = append(&world.disk, &mut Vec::new(), &bad, resumption, START + 500_000, BULK, &mut Dice(1));
    assert_eq!(ended.unwrap_err().trouble(), Some(Trouble::Failed));
}

/// P1: a slow segment, during which the next one is made ready under another name.
#[test]
fn p1_a_prepared_segment_takes_its_place() {
    let (server, mut world) = (Server::new(log()), World::new(BLOCK));
    let slow = Pace { slice: 500_000, settle: 1, slow: true };
    world.receive(&server, u64::MAX, slow, &mut Dice(seed())).unwrap();
    let spare = |disk: &Simulated| disk.metadata("/wal/walhold-next-segment.tmp".as_ref()).unwrap().is_some();
    assert!(world.disk.prefixes().any(|disk| spare(&disk)), "no segment was prepared");
    world.cut_everywhere(&server, 3);
}

/// P1: what another receiver has left, of odd size or compressed, stays until all of it has come
/// again.
#[test]
fn p1_a_partial_is_replaced_by_one_beside_it() {
    let server = Server::new(log());
    let cut = 700_001;
    let bytes = &server.log(at(0).tli())[..cut];
    let zstd = zstd::encode_all(bytes, 1).unwrap();
    for (suffix, content) in [(".partial", bytes), (".zst.partial", &zstd)] {
        let (mut world, mut dice) = (World::new(BLOCK), Dice(seed()));
        world.put(&format!("000000010000000000000003{suffix}"), content);
        world.acknowledged(START + cut as u64);
        world.receive(&server, START + 400_000, GROUPED, &mut dice).unwrap();
        world.receive(&server, START + 2 * SIZE, GROUPED, &mut dice).unwrap();
        world.cut_everywhere(&server, 2);
    }
}

/// P1: a complete segment in which a record begins that did not verify is received once more.
#[test]
fn p1_a_complete_segment_is_gone_over() {
    // The record that covers the end of segment 3 has a wrong bit in its part there.
    let good = log();
    let crossing = *good.starts.iter().rfind(|start| **start < START + SIZE).unwrap();
    let mut server = Server::new(good);
    let sent = server.log(at(0).tli()).to_vec();
    let mut bad = sent.clone();
    bad[(crossing - START) as usize + 40_000] ^= 1;
    server.bad = Some(("000000010000000000000003".to_owned(), bad[..SIZE as usize].to_vec()));

    let (mut world, mut dice) = (World::new(BLOCK), Dice(seed()));
    let begin = |disk: &Simulated, no: u64| {
        let segment = Segment::containing(at(no * SIZE), size());
        archive(disk).begin(&History::first(), segment).unwrap()
    };
    let first = begin(&world.disk, 3);
    let disk = world.disk.clone();
    let refused = append(&disk, &mut Vec::new(), &bad, first, u64::MAX, GROUPED, &mut dice);
    let Err(Failed::Write(WriteError::Broken { broken, .. })) = refused else { panic!("{refused:?}") };
    assert_eq!(broken.whole, Lsn::new(crossing));
    let _ = disk.sync_filesystem("/".as_ref()).unwrap();
    world.acknowledged(crossing);
    let from = disk.operations();
    let resumed = begin(&disk, 3);
    append(&disk, &mut world.acks, &sent, resumed, server.end_pos().lsn().get(), GROUPED, &mut dice).unwrap();
    assert!(world.acks.last().is_some_and(|ack| ack.pos == server.end_pos()));

    for (k, disk) in disk.prefixes().enumerate().skip(from) {
        for image in disk.crash_images(seed() ^ k as u64, images(2)) {
            let acked = world.acked(k);
            // Where the wrong bit is still there, the receiver is told so and goes over it again.
            if let Err(why) = gone_over(&image, &server, acked) {
                panic!("{why}\n  acknowledged: {acked:?}\n  {image:?}\n  again: {}", again(seed(), Some(k)));
            }
        }
    }
}

/// A receiver after a power cut, told about the record as before if it still has the wrong bit.
fn gone_over(image: &Simulated, server: &Server, acked: Option<walhold::wal::Pos>) -> Result<(), String> {
    world::holds(image, server, acked.unwrap_or_else(|| at(START)))?;
    let end = server.end_pos();
    let log = server.log(end.tli());
    let resumed = archive(image).resume(None).map_err(|e| e.to_string())?.ok_or("nothing is held")?;
    let mut acks = Vec::new();
    let mut dice = Dice(1);
    let first = append(image, &mut acks, log, resumed, end.lsn().get(), BULK, &mut dice);
    if let Err(Failed::Write(WriteError::Broken { broken, .. })) = first {
        let segment = Segment::containing(at(broken.whole.get()), size());
        let again = archive(image).begin(&History::first(), segment).map_err(|e| e.to_string())?;
        append(image, &mut acks, log, again, end.lsn().get(), BULK, &mut dice).map_err(|e| e.to_string())?;
    } else {
        first.map_err(|e| e.to_string())?;
    }
    archive(image).sweep().map_err(|e| e.to_string())?;
    world::holds(image, server, end)?;
    let found = world::files(image, &world::dir()).map_err(|e| e.to_string())?;
    let whole = world::undisturbed(server) == found;
    world::ensure!(whole, "in the end the files are others: {:?}", found.keys());
    Ok(())
}

/// Timeline 2 forks in the middle of segment 4; what timeline 1 sent behind that stays.
fn promoted() -> Server {
    let common = || {
        let mut log = Log::new(START, SIZE, 1, world::SYSTEM);
        for n in 0..50_usize {
            log.record(10, 0, &vec![n as u8 | 1; n * 7919 % 60_000 + 1]);
        }
        log
    };
    let (mut first, mut second) = (common(), common());
    let fork = first.at();
    assert_eq!(fork / SIZE, START / SIZE + 1);
    first.record(10, 0, &[7; 60_000]);
    second.tli = 2;
    for n in 0..30_usize {
        second.record(10, 0, &vec![n as u8 | 3; n * 7919 % 60_000 + 1]);
    }
    Server::forked(first, second, fork)
}

/// P1, P2: a promotion while connected, and one that a receiver finds when it starts.
#[test]
fn p2_a_timeline_ends_and_the_next_one_is_followed() {
    for behind in [0, 30_000] {
        let (server, mut world) = (promoted(), World::new(BLOCK));
        let fork = server.end(at(0).tli());
        let mut dice = Dice(seed());
        if behind > 0 {
            // More than the next timeline shares.
            let first = archive(&world.disk).begin(&History::first(), Segment::containing(at(START), size()));
            let (disk, log) = (world.disk.clone(), server.log(at(0).tli()));
            append(&disk, &mut world.acks, log, first.unwrap(), fork + behind, GROUPED, &mut dice).unwrap();
        }
        world.receive(&server, fork + 100_000, GROUPED, &mut dice).unwrap();
        world.receive(&server, u64::MAX, GROUPED, &mut dice).unwrap();
        world.cut_everywhere(&server, 2);
    }
}

/// P2: where anything is held behind a gap that was accepted, the note of it is there; and what was acknowledged is, on
/// both sides.
#[test]
fn p2_a_gap_is_noted_before_anything_is_held_behind_it() {
    let (server, mut world) = (Server::new(log()), World::new(BLOCK));
    let mut dice = Dice(seed());
    world.receive(&server, START + 300_000, GROUPED, &mut dice).unwrap();
    let (disk, held) = (world.disk.clone(), world.acked(usize::MAX).unwrap());
    let first = disk.operations();
    let (before, behind) = (Segment::containing(at(START), size()), Segment::containing(at(START + SIZE), size()));
    archive(&disk).note_gap(held, behind.start_pos(), repository::now()).unwrap();
    let begun = archive(&disk).begin(&History::first(), behind).unwrap();
    let log = server.log(at(0).tli());
    append(&disk, &mut world.acks, log, begun, server.end_pos().lsn().get(), GROUPED, &mut dice).unwrap();
    assert_eq!(world.acked(usize::MAX), Some(server.end_pos()));
    world::cut_off(&disk, first, 4, &mut |k, found| {
        world::holds(found, &server, held)?;
        let files = world::files(found, &world::dir())?;
        let listing = archive(found).list()?;
        let noted = listing.accepted_gaps() == [before];
        if listing.last_of(at(0).tli()).is_some_and(|(last, _)| last.no() > before.no()) && !noted {
            return Err(format!("nothing is noted: {:?}", files.keys()).into());
        }
        let note = files.get(&format!("{}.gap", before.name()));
        if note.is_some_and(|note| !note.ends_with(b".\n")) {
            return Err("the note is not whole".into());
        }
        let acked =
            world.acked(k).filter(|acked| acked.lsn() > behind.start()).map_or(START + SIZE, |acked| acked.lsn().get());
        let is_there = |name: &String| {
            name.starts_with("000000010000000000000004") || name.starts_with("000000010000000000000005")
        };
        let there: Vec<u8> =
            files.iter().filter(|(name, _)| is_there(name)).flat_map(|(_, bytes)| bytes.clone()).collect();
        let sent = &log[SIZE as usize..(acked - START) as usize];
        if there.get(..sent.len()) == Some(sent) {
            Ok(())
        } else {
            Err(format!("not all before {acked} is there").into())
        }
    });
}

/// P1: a receiver is killed or loses its power again and again, at random.
#[test]
fn p1_many_ends_one_after_the_other() {
    world::seeds(&FOUND).for_each(many_ends);
}

/// Seeds with which something was found. They always run.
const FOUND: [u64; 0] = [];

fn many_ends(seed: u64) {
    let server = Server::new(log());
    let mut judge = world::Judge::new(&server);
    let mut dice = Dice(seed);
    for alignment in [BLOCK, 1, BLOCK, 1] {
        let mut world = World::new(alignment);
        for _life in 0..12 {
            let upto = START + dice.below(server.end_pos().lsn().get() - START);
            let pace = Pace { slice: 1 + dice.below(300_000), settle: 1 + dice.below(4), slow: false };
            let before = world.disk.operations();
            world.receive(&server, upto, pace, &mut dice).unwrap();
            let made = world.disk.operations();
            let end = before + dice.below((made - before) as u64 + 1) as usize;
            let killed = world.disk.after(end);
            let images: Vec<_> = killed.crash_images(seed ^ dice.below(1 << 40), images(6)).collect();
            let cut = images[dice.below(images.len() as u64) as usize].clone();
            let next = if dice.below(3) == 0 { killed } else { cut };
            let acked = world.acked(end);
            judge.must_recover_from(seed, &next.after(0), acked);
            world = World::at(next, acked);
        }
    }
}

/// Lets one call fail after the other. A process that meets the fault ends; the next one goes on,
/// on the same kernel, and then the power fails. Where no trouble is `expected`, the process may have been
/// able to do without the call. Of very many calls some are taken.
fn each_call_fails(call: Call, fault: Fault, expected: Option<Trouble>, alignment: usize) {
    let server = promoted();
    let mut judge = world::Judge::new(&server);
    let run = |nth: Option<usize>| {
        let mut world = World::new(alignment);
        let before = world.disk.calls(call);
        if let Some(nth) = nth {
            world.disk.fail(call, before + nth, fault);
        }
        let mut dice = Dice(seed());
        let ended = world.receive(&server, START + 500_000, GROUPED, &mut dice);
        let ended = ended.and_then(|()| world.receive(&server, u64::MAX, GROUPED, &mut dice));
        let calls = world.disk.calls(call) - before;
        (world, ended, calls)
    };
    let (_, ended, calls) = run(None);
    ended.unwrap();
    assert!(calls > 0, "{call:?} is not called");
    for nth in some_of(calls, MOST_CALLS) {
        let (mut world, ended, _) = run(Some(nth));
        let context = format!("{call:?} {nth} of {calls} fails with {fault:?}, alignment {alignment}");
        match (&ended, expected) {
            (Err(e), Some(expected)) => assert_eq!(e.trouble(), Some(expected), "{context}: {e}"),
            (Ok(()), Some(_)) => panic!("{context}: nobody said so"),
            (_, None) => {}
        }
        let failed = world.disk.operations();
        for image in world.disk.crash_images(seed() ^ nth as u64, images(2)) {
            judge.must_recover(&image, world.acked(failed));
        }
        world.receive(&server, u64::MAX, GROUPED, &mut Dice(seed())).unwrap_or_else(|e| panic!("{context}: {e}"));
        let last = world.disk.operations();
        let mut dice = Dice(seed() ^ nth as u64);
        let between = failed + dice.below((last - failed) as u64 + 1) as usize;
        for (k, disk) in world.disk.prefixes().enumerate().filter(|(k, _)| [between, last].contains(k)) {
            for image in disk.crash_images(seed() ^ nth as u64, images(1)) {
                judge.must_recover(&image, world.acked(k));
            }
        }
    }
}

/// P1: nothing is called durable after a sync that failed, and a new process trusts only what it
/// has read from the device.
#[test]
fn p1_a_failed_sync_is_final() {
    for call in [Call::Sync, Call::SyncDir] {
        each_call_fails(call, Fault::Io, Some(Trouble::Failed), BLOCK);
    }
}

/// The same where the page cache cannot be read past: it shows what the failed sync has lost.
#[test]
fn p1_a_failed_sync_is_final_without_direct_io() {
    each_call_fails(Call::Sync, Fault::Io, Some(Trouble::Failed), 1);
}

#[test]
fn p1_a_failed_write_loses_nothing_acknowledged() {
    each_call_fails(Call::Write, Fault::Io, Some(Trouble::Failed), BLOCK);
    each_call_fails(Call::Rename, Fault::Io, Some(Trouble::Failed), BLOCK);
}

/// The same for calls that a process may be able to do without.
#[test]
fn p1_whatever_call_fails_nothing_acknowledged_is_lost() {
    for call in [Call::Create, Call::Open, Call::Read, Call::Remove, Call::List, Call::Look] {
        each_call_fails(call, Fault::Io, None, BLOCK);
    }
    each_call_fails(Call::Read, Fault::Io, None, 1);
}

/// A full disk is told apart, and when there is room again receiving goes on.
#[test]
fn a_full_disk_is_gone_on_with() {
    for call in [Call::Create, Call::Write, Call::Rename] {
        each_call_fails(call, Fault::Full, Some(Trouble::Full), BLOCK);
    }
    let server = Server::new(log());
    let mut judge = world::Judge::new(&server);
    for capacity in [0, 1, SIZE - 1, SIZE, 2 * SIZE - 1, 2 * SIZE] {
        let mut world = World::new(BLOCK);
        world.disk.set_capacity(Some(capacity));
        let full = world.receive(&server, u64::MAX, GROUPED, &mut Dice(seed())).unwrap_err();
        assert_eq!(full.trouble(), Some(Trouble::Full), "{full}");
        let names = world::files(&world.disk, &world::dir()).unwrap().len() as u64;
        assert_eq!(names, capacity / SIZE, "nothing half-made is left, and what there is stays");
        for image in world.disk.crash_images(seed(), images(2)) {
            judge.must_recover(&image, world.acked(usize::MAX));
        }
        world.disk.set_capacity(None);
        judge.must_recover(&world.disk, world.acked(usize::MAX));
    }
}
