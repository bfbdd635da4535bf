//! Networks that change what they carry: nothing that is wrong is ever called complete.

use std::time::Duration;

use super::matrix::{Row, told};
use super::network::{IMPATIENT, Scene, anywhere, goes_on, restores, spring};
use super::proxy::{Cut, Harm, Proxy, Spot, Trap, Way};
use crate::crash::{Moments, a_tenth, only_sealed_are_offered};
use crate::load::Load;
use crate::program::Running;
use crate::room::{Outcome, Room, SOON, skip, wait_until};
use crate::stock::names;
use crate::tls::{Secured, secured};

fn flip(moments: &mut Moments) -> Harm {
    Harm::Flip(1 << moments.below(8))
}

/// One bit of what a receiver gets is another one: in the WAL, in the framing, or in WAL that comes again.
pub(crate) fn of_stream(room: &Room) -> Outcome {
    let scene = Scene::new(room, &[IMPATIENT]);
    let (receiver, load) = scene.begin();
    let (mut moments, rounds) = (Moments::new(), a_tenth(8));
    let mut resumed = Duration::ZERO;
    for round in 0..rounds {
        load.wait_for_more(10);
        let spot = [Spot::Wal, Spot::Length, Spot::Wal, Spot::Tag, Spot::Wal, Spot::Head][round % 6];
        let harm = flip(&mut moments);
        if round % 4 == 2 {
            again(&scene.proxy, &mut moments, harm);
        } else {
            spring(&scene.proxy, Way::ToClient, moments.below(20_000), spot, harm);
        }
        resumed = resumed.max(goes_on(&load, &receiver));
        assert!(receiver.runs(), "round {round}, {spot:?}, {harm:?}\n{}", receiver.err());
    }
    let told = told(room, &receiver.err(), "asking for it once more");
    let (acknowledged, lost) = scene.judge(load, receiver);
    room.record(Row {
        fault: "a bit of the stream is flipped",
        how:
            "a proxy flips a random bit of the WAL, of a message's type, length or head, or of WAL that is sent again \
              (no TLS)"
                .to_owned(),
        rounds,
        acknowledged,
        lost,
        resumed: Some(resumed),
        told,
    });
    Ok(())
}

/// The unfinished segment is sent again, with a flipped bit.
fn again(proxy: &Proxy, moments: &mut Moments, harm: Harm) {
    let before = proxy.struck(Way::ToClient);
    proxy.cut(Cut::Reset);
    proxy.set(Way::ToClient, Trap { skip: moments.below(30_000), spot: Spot::Wal, harm, lasting: false });
    wait_until("WAL to come again", SOON, || proxy.struck(Way::ToClient) > before);
}

/// The same record is damaged each time that it comes: what is before it is kept, and nothing past it is
/// acknowledged. When that is over, the next start goes on.
pub(crate) fn of_stream_each_time(room: &Room) -> Outcome {
    let scene = Scene::new(room, &[]);
    let (receiver, load) = scene.begin();
    load.wait_for_more(50);
    receiver.terminate().expect(0);
    let end = scene.primary.sql("select pg_logical_emit_message(false, 'test', repeat('x', 60000))");
    scene.primary.switch_segment();
    // In the middle of a page in the middle of the record.
    let at = ((crate::cluster::lsn(&end).0 - 30_000) & !8191) + 4096;
    let trap = Trap { skip: 0, spot: Spot::At(at), harm: Harm::Flip(4), lasting: true };
    scene.proxy.set(Way::ToClient, trap);
    let waiting = load.count();
    let ended = scene.receive().wait(SOON).refused(4, &["sent again"]);
    assert!(ended.err.contains("asking for it once more"), "{ended}");
    assert_eq!(scene.proxy.struck(Way::ToClient), 2, "{ended}");
    assert_eq!(load.count(), waiting, "a commit was acknowledged behind a record that is damaged");
    scene.proxy.unset(Way::ToClient);
    let receiver = scene.receive();
    let resumed = goes_on(&load, &receiver);
    let told = told(room, &ended.err, "sent again");
    let (acknowledged, lost) = scene.judge(load, receiver);
    room.record(Row {
        fault: "a bit of the same record is flipped each time",
        how:
            "a proxy flips it whenever it passes (no TLS): exit 4; then it no longer does, and receive is started again"
                .to_owned(),
        rounds: 1,
        acknowledged,
        lost,
        resumed: Some(resumed),
        told,
    });
    Ok(())
}

/// One bit of what a backup gets is another one: it is refused, or it is whole all the same.
pub(crate) fn of_backup(room: &Room) -> Outcome {
    let scene = Scene::new(room, &[IMPATIENT]);
    let (receiver, load) = scene.begin_beside();
    let before = scene.proxy.passed(Way::ToClient);
    scene.backup().expect(0);
    let whole = usize::try_from(scene.proxy.passed(Way::ToClient) - before).unwrap();
    let (mut moments, rounds) = (Moments::new(), a_tenth(5));
    let (mut refused, mut unharmed) = (String::new(), 0);
    for round in 0..rounds {
        let (skip, harm) = (anywhere(&mut moments, whole), flip(&mut moments));
        let spot = [Spot::Any, Spot::Any, Spot::Any, Spot::Length, Spot::Tag][round % 5];
        scene.proxy.set(Way::ToClient, Trap { skip, spot, harm, lasting: false });
        let (acknowledged, complete) = (load.so_far(), names(&scene.repo.join("backups")));
        let ended = scene.backup();
        only_sealed_are_offered(room, &scene.repo);
        match names(&scene.repo.join("backups")).into_iter().find(|id| !complete.contains(id)) {
            None => refused += &ended.expect(1).err,
            Some(id) => {
                // What was flipped matters to nobody, such as a time, or padding.
                ended.expect(0);
                unharmed += 1;
                assert_eq!(restores(room, &scene.repo, &[&id], &acknowledged), 0, "{skip} {spot:?} {harm:?}");
            }
        }
    }
    scene.proxy.unset(Way::ToClient);
    scene.backup().expect(0);
    let word = if refused.contains(" has CRC32C ") { " has CRC32C " } else { "error: " };
    let told = told(room, &refused, word);
    let (acknowledged, lost) = scene.judge(load, receiver);
    room.record(Row {
        fault: "a bit of a base backup is flipped",
        how: format!(
            "a proxy flips a random bit (no TLS): {} were refused, and {unharmed}, in which it changed nothing that is \
             kept, restored",
            rounds - unharmed
        ),
        rounds,
        acknowledged,
        lost,
        resumed: None,
        told,
    });
    Ok(())
}

/// With TLS any flipped bit, either way, is the end of the connection.
pub(crate) fn of_tls(room: &Room) -> Outcome {
    let Secured { primary, authority, port } = secured(room);
    if primary.sql("show ssl") != "on" {
        skip!("this PostgreSQL {} has no TLS", room.server.major);
    }
    primary.rows(&format!("alter system set {IMPATIENT}"));
    primary.rows("select pg_reload_conf()");
    Load::prepare(&primary);
    let proxy = Proxy::new(port);
    let conninfo = format!(
        "host=localhost hostaddr=127.0.0.1 port={} user=secure password=right sslmode=verify-full sslrootcert={} \
         connect_timeout=2",
        proxy.port(),
        authority.display()
    );
    let scene = Scene { room, primary, proxy, repo: room.path("repo"), conninfo };
    scene.backup().expect(0);
    let (receiver, load) = scene.begin();
    let (mut moments, rounds) = (Moments::new(), a_tenth(4));
    let mut resumed = Duration::ZERO;
    for round in 0..rounds {
        load.wait_for_more(20);
        let before = disconnections(&receiver);
        let (way, most) = [(Way::ToClient, 20_000), (Way::ToServer, 400)][round % 2];
        let harm = flip(&mut moments);
        spring(&scene.proxy, way, moments.below(most), Spot::Any, harm);
        resumed = resumed.max(goes_on(&load, &receiver));
        assert!(receiver.runs(), "round {round}, {harm:?}\n{}", receiver.err());
        assert!(disconnections(&receiver) > before, "round {round}, {harm:?}\n{}", receiver.err());
    }
    let told = told(room, &receiver.err(), "disconnected: the connection to the server is lost");
    let (acknowledged, lost) = scene.judge(load, receiver);
    room.record(Row {
        fault: "a bit is flipped under TLS",
        how: "a proxy flips a random bit of what either side sends (sslmode=verify-full)".to_owned(),
        rounds,
        acknowledged,
        lost,
        resumed: Some(resumed),
        told,
    });
    Ok(())
}

fn disconnections(receiver: &Running) -> usize {
    receiver.err().matches("disconnected: ").count()
}
