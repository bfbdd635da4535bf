//! Power cuts and faults while segments are compressed: behind the durable point, and as they come.

use walhold::archive::{Archive, CompressError};
use walhold::codec::{Codec, Method, Packing};
use walhold::disk::simulated::{Call, Fault};
use walhold::disk::{BLOCK, Disk, Simulated, Trouble};

use super::world::{BULK, Dice, Judge, SIZE, START, Server, Way, World, archive, dir, images, log, receive_as, seed};
use super::{EACH, GROUPED};

const PACKINGS: [Method; 3] = Method::ALL;

fn compress_all(archive: &Archive, packing: Packing) -> Result<(), CompressError> {
    for segment in archive.plain_segments().unwrap() {
        archive.compress(segment, packing)?;
    }
    Ok(())
}

fn names(disk: &Simulated) -> Vec<String> {
    let mut names: Vec<_> =
        disk.list(&dir()).unwrap().into_iter().map(|entry| entry.name.into_string().unwrap()).collect();
    names.sort();
    names
}

/// P1: a segment is always there, whole, under one of its names.
#[test]
fn p1_compressing_behind_a_receiver_is_cut_off_anywhere() {
    for (alignment, method) in [(BLOCK, Method::Zstd), (1, Method::Lz4)] {
        let (server, mut world) = (Server::new(log()), World::new(alignment));
        let mut dice = Dice(seed());
        for upto in [SIZE + 70, 2 * SIZE + 5_000, u64::MAX - START] {
            world.receive(&server, START + upto, BULK, &mut dice).unwrap();
            compress_all(&archive(&world.disk), method.into()).unwrap();
        }
        let codec = method.codec();
        let expected = ["000000010000000000000003", "000000010000000000000004"];
        let complete: Vec<_> = expected.iter().map(|name| format!("{name}{}", codec.suffix())).collect();
        assert!(names(&world.disk).starts_with(&complete), "{:?}", names(&world.disk));
        world.cut_everywhere(&server, 2);
    }
}

/// P1: a process that is killed while it compresses leaves nothing that the next one stumbles over,
/// whatever method that one has.
#[test]
fn p1_a_killed_compression_is_begun_again() {
    let server = Server::new(log());
    let mut world = World::new(BLOCK);
    world.receive(&server, u64::MAX, BULK, &mut Dice(seed())).unwrap();
    let from = world.disk.operations();
    compress_all(&archive(&world.disk), Method::Zstd.into()).unwrap();
    let mut judge = Judge::new(&server);
    for (k, killed) in world.disk.prefixes().enumerate().skip(from) {
        let archive = archive(&killed);
        archive.sweep().unwrap();
        compress_all(&archive, Method::Gzip.into()).unwrap();
        let left: Vec<_> = names(&killed).into_iter().filter(|name| name.ends_with(".tmp")).collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(archive.plain_segments().unwrap(), []);
        for image in killed.crash_images(seed() ^ k as u64, images(1)) {
            judge.must_recover(&image, world.acked(usize::MAX));
        }
    }
}

/// P1: whatever fails, the plain file stays until a copy is known to be good.
#[test]
fn p1_a_failed_compression_keeps_the_segment() {
    let server = Server::new(log());
    let mut judge = Judge::new(&server);
    let mut failures = 0;
    for alignment in [BLOCK, 1] {
        let mut before = World::new(alignment);
        before.receive(&server, u64::MAX, BULK, &mut Dice(seed())).unwrap();
        let acked = before.acked(usize::MAX);
        // The list of what is to be compressed is no part of it.
        for call in Call::ALL.into_iter().filter(|call| *call != Call::List) {
            for fault in [Fault::Io, Fault::Full] {
                for nth in 1.. {
                    let disk = before.disk.after(before.disk.operations());
                    disk.fail(call, nth, fault);
                    let done = compress_all(&archive(&disk), Method::Zstd.into());
                    for image in disk.crash_images(seed() ^ nth as u64, images(1)) {
                        judge.must_recover(&image, acked);
                    }
                    if let Err(e) = &done {
                        failures += 1;
                        let copies = names(&disk).into_iter().filter(|name| Codec::split(name).1 != Codec::Plain);
                        assert!(call != Call::Sync || copies.count() < nth, "{e}");
                    }
                    // Beyond the last call nothing fails.
                    if disk.calls(call) < nth {
                        done.unwrap();
                        break;
                    }
                }
            }
        }
    }
    assert!(failures > 60, "{failures}");
}

fn live(packing: Option<Method>) {
    receive_as(packing.map_or(Way::Plain, |method| Way::Live(method.into())));
}

/// P1: what is reported decodes from what was synced.
#[test]
fn p1_a_receiver_that_compresses_is_cut_off_anywhere() {
    for method in PACKINGS {
        live(Some(method));
        let (server, mut world) = (Server::new(log()), World::new(BLOCK));
        let mut dice = Dice(seed());
        world.receive(&server, START + 20_000, EACH, &mut dice).unwrap();
        world.receive(&server, START + SIZE + 300_000, GROUPED, &mut dice).unwrap();
        world.cut_everywhere(&server, 2);
    }
}

/// P1: partials are replaced by others, in the same method and in another one.
#[test]
fn p1_a_change_of_the_method_loses_nothing() {
    let server = Server::new(log());
    for (first, second) in
        [(None, Some(Method::Gzip)), (Some(Method::Gzip), None), (Some(Method::Lz4), Some(Method::Zstd))]
    {
        let (mut world, mut dice) = (World::new(BLOCK), Dice(seed()));
        for (method, upto) in [(first, 300_007), (second, 400_000), (first, SIZE + 100)] {
            live(method);
            world.receive(&server, START + upto, GROUPED, &mut dice).unwrap();
            let partials = names(&world.disk).into_iter().filter(|name| name.ends_with(".partial"));
            assert!(partials.count() <= 1, "{:?}", names(&world.disk));
        }
        world.cut_everywhere(&server, 2);
    }
    receive_as(Way::Plain);
}

/// P1: a segment that the server has whole is compressed as it comes, and completed while the next one is; what comes
/// behind it is plain.
#[test]
fn p1_a_receiver_that_compresses_while_it_catches_up_is_cut_off_anywhere() {
    let mut packed = 0;
    for (n, packing) in [Packing::FAST, Method::Lz4.into(), Packing::FAST].into_iter().enumerate() {
        receive_as(Way::CatchingUp(packing));
        let (server, mut world) = (Server::new(log()), World::new(BLOCK));
        // What the writer has heard of the server's end, they decide.
        let mut dice = Dice(seed() ^ n as u64);
        world.receive(&server, START + 2 * SIZE + 70, if n == 0 { BULK } else { GROUPED }, &mut dice).unwrap();
        world.receive(&server, u64::MAX, GROUPED, &mut dice).unwrap();
        packed += names(&world.disk).iter().filter(|name| name.ends_with(packing.codec().suffix())).count();
        world.cut_everywhere(&server, 2);
    }
    receive_as(Way::Plain);
    assert!(packed > 1, "{packed}");
}

/// P1: the sync that fails may be that of the segment before, which is completed beside the one that comes.
#[test]
fn p1_a_failed_sync_is_final_for_a_receiver_that_catches_up() {
    receive_as(Way::CatchingUp(Packing::FAST));
    let server = Server::new(log());
    let mut judge = Judge::new(&server);
    for (n, call) in [(0, Call::Sync), (0, Call::SyncDir), (1, Call::Sync), (2, Call::Sync)] {
        for nth in 1.. {
            let mut world = World::new(BLOCK);
            let before = world.disk.calls(call);
            world.disk.fail(call, before + nth, Fault::Io);
            let mut dice = Dice(seed() ^ n);
            let ended = world.receive(&server, START + 2 * SIZE + 70, BULK, &mut dice);
            let ended = ended.and_then(|()| world.receive(&server, u64::MAX, GROUPED, &mut dice));
            if world.disk.calls(call) < before + nth {
                ended.unwrap();
                assert!(nth > 3, "{nth}");
                break;
            }
            assert_eq!(ended.unwrap_err().trouble(), Some(Trouble::Failed), "{call:?} {nth}");
            let acked = world.acked(world.disk.operations());
            world.disk.crash_images(seed(), 1).for_each(|image| judge.must_recover(&image, acked));
        }
    }
    receive_as(Way::Plain);
}
