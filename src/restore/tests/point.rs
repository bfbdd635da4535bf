//! Plans that end at a point.

use super::*;
use crate::repository::tests::now;
use crate::wal::{RestorePoint, ServerTime};

const SECOND: i64 = 1_000_000;

/// A time so many seconds behind the backup's end.
fn after(seconds: i64) -> ServerTime {
    ServerTime(ServerTime::of(now()).0 + seconds * SECOND)
}

fn ended(log: &mut Log, seconds: i64) -> u64 {
    let at = log.next_record();
    log.record(1, 0, &[&[255, 8][..], &after(seconds).0.to_le_bytes()].concat());
    at
}

fn filled(log: &mut Log) {
    (0..300).for_each(|_| log.record(10, 0, &[1; 4000]));
}

/// Behind the backup transactions end after 10, 30 and 20 seconds, a restore point is made, a segment
/// is filled, and a last one ends after 100. Where the first, and the last, end.
fn scene(more: impl FnOnce(&mut Log)) -> (Scene, [Lsn; 2]) {
    let mut parts = Parts::new();
    let first = ended(&mut parts.log, 10);
    ended(&mut parts.log, 30);
    ended(&mut parts.log, 20);
    let mut name = b"here".to_vec();
    name.resize(64, 0);
    parts.log.record(0, 0x70, &[&[255, 72][..], &after(20).0.to_le_bytes(), &name].concat());
    more(&mut parts.log);
    filled(&mut parts.log);
    let last = ended(&mut parts.log, 100);
    (Scene::new(parts), [Lsn::new(first), Lsn::new(last)])
}

fn to(target: Target) -> Goal {
    Goal::Point(Aim { target, inclusive: true, action: Action::Promote })
}

fn time(seconds: i64) -> Target {
    Target::Time(after(seconds).timestamp().unwrap())
}

impl Scene {
    fn plan_to(&self, target: Target) -> Result<Plan, RestoreError> {
        plan(&self.repository, &Options { goal: to(target), ..self.options() })
    }

    #[track_caller]
    fn unreachable(&self, target: Target) -> Unreachable {
        match self.plan_to(target) {
            Err(RestoreError::Unreachable(unreachable)) => *unreachable,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_end_is_read_from_the_wal() {
    let (scene, [first, last]) = scene(|_| {});
    let plan = scene.plan_to(time(25)).unwrap();
    let end = plan.wal.end.as_ref().unwrap();
    // The one of 30 seconds stops it, and that of 20 seconds behind it is not replayed.
    assert_eq!(end.because.as_deref(), Some("before the commit of transaction 7 at 2026-11-22T05:15:30Z"));
    assert_eq!(end.last_commit.unwrap().time.unwrap().to_string(), "2026-11-22T05:15:10Z");
    assert!(end.at > first && end.at < last);
    let text = plan.to_string();
    for part in [
        "target      time 2026-11-22 05:15:25.000000+00, which is 2026-11-22 ",
        "recovery    along timeline 1, stops before the commit of transaction 7",
        "then        the server takes writes, on a new timeline",
        " to replay 2 MB of WAL, at usual speeds",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["wal"]["target"]["setting"], "recovery_target_time");
    assert_eq!(json["wal"]["target"]["action"], "promote");
    assert_eq!(json["wal"]["end"]["at"], end.at.to_string());
    // Without a target it is the end of what is held.
    let plan = scene.plan().unwrap();
    assert!(plan.wal.end.as_ref().is_some_and(|end| end.at > last && end.because.is_none()));
    assert!(plan.then().is_none());
    let here = scene.plan_to(Target::Name("here".to_owned())).unwrap();
    assert!(here.wal.end.unwrap().because.unwrap().starts_with("at restore point \"here\", made at"));
    let soonest = scene.plan_to(Target::Immediate).unwrap().wal.end.unwrap();
    assert_eq!((soonest.at.get().next_multiple_of(8), soonest.last_commit), (scene.seal.stop.lsn().get(), None));
}

#[test]
fn the_server_is_told_the_target_last_and_nothing_else() {
    let mut parts = Parts::new();
    ended(&mut parts.log, 10);
    let conf = b"recovery_target_xid = '3'\nhot_standby = off\n";
    parts.base.retain(|thing| !matches!(thing, Thing::File("postgresql.conf", ..)));
    parts.base.push(Thing::File("postgresql.conf", conf.to_vec(), 0o600));
    let scene = Scene::new(parts);
    let aim = Aim { target: time(5), inclusive: false, action: Action::Pause };
    let (_, restored) = scene.restore(&Options { goal: Goal::Point(aim), ..scene.options() }).unwrap();
    let auto = scene.read("data/postgresql.auto.conf");
    let lines: Vec<&str> = auto.lines().skip_while(|line| !line.starts_with("recovery_target_timeline")).collect();
    assert_eq!(
        lines,
        [
            "recovery_target_timeline = '1'",
            "recovery_target_xid = ''",
            "recovery_target = ''",
            "recovery_target_name = ''",
            "recovery_target_lsn = ''",
            "recovery_target_inclusive = 'false'",
            "recovery_target_action = 'pause'",
            "recovery_target_time = '2026-11-22 05:15:05.000000+00'",
        ]
    );
    assert!(scene.path("data/recovery.signal").exists());
    assert!(restored.notes.iter().any(|note| note.starts_with("hot_standby is off")), "{:?}", restored.notes);
    assert!(restored.notes.iter().any(|note| note.starts_with("recovery_target_xid was set to '3'")));
}

#[test]
fn what_cannot_be_reached_is_refused_with_the_nearest_points() {
    let (scene, [_, last]) = scene(|_| {});
    let whole = scene.plan().unwrap().wal.end.unwrap().at;
    match scene.unreachable(time(100)) {
        Unreachable::PastEnd { end, .. } => {
            assert_eq!((end.at, end.commit.map(|time| time.0)), (whole, after(100).timestamp()));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(scene.unreachable(Target::Lsn(whole)), Unreachable::PastEnd { .. }));
    assert!(scene.plan_to(Target::Lsn(last)).is_ok());
    let before = scene.unreachable(time(-11));
    assert!(matches!(&before, Unreachable::BeforeAll { first, .. } if first.at == scene.seal.stop.lsn()), "{before:?}");
    let named = |target| {
        let goal = to(target);
        plan(&scene.repository, &Options { which: Which::Named(scene.seal.id), goal, ..scene.options() })
    };
    for target in [time(-11), Target::Lsn(Lsn::new(scene.seal.stop.lsn().get() - 9000))] {
        let before = named(target).unwrap_err();
        let is_before =
            matches!(&before, RestoreError::Unreachable(u) if matches!(**u, Unreachable::BeforeBackup { .. }));
        assert!(is_before, "{before:?}");
    }
    match scene.unreachable(Target::Xid(9)) {
        Unreachable::NoTransaction { lower, higher, .. } => {
            assert_eq!((lower.and_then(|near| near.xid), higher), (Some(7), None));
        }
        other => panic!("{other:?}"),
    }
    match scene.unreachable(Target::Name("Here".to_owned())) {
        Unreachable::NoRestorePoint { points, .. } => assert_eq!(points[0].name, "here"),
        other => panic!("{other:?}"),
    }
    assert!(!scene.path("data").exists());
}

/// A target before a hole, or before damage, is reached, although the server reads ahead.
#[test]
fn a_hole_or_damage_counts_when_it_comes_before_the_target() {
    let (scene, [_, last]) = scene(|log| (0..3).for_each(|_| filled(log)));
    let wal = scene.path("repo/wal");
    let segment = |no: u64| format!("0000000100000000{no:08X}");
    let whole = fs::read(wal.join(segment(7))).unwrap();
    let last_before = after(20).timestamp();
    let in_gap = |scene: &Scene, target: Target, no: u64| match scene.unreachable(target) {
        Unreachable::InGap { hole, before, after, .. } => {
            assert_eq!((hole.name(), before.at < Lsn::new((no + 1) * SIZE), after), (segment(no), true, None));
            assert_eq!(before.commit.map(|time| time.0), last_before);
        }
        other => panic!("{other:?}"),
    };
    assert!(scene.plan_to(time(99)).is_ok());
    let notes = |plan: &Plan| plan.notes.join("\n");

    let mut damaged = whole.clone();
    damaged[500_000] ^= 1;
    fs::write(wal.join(segment(7)), &damaged).unwrap();
    in_gap(&scene, time(99), 7);
    in_gap(&scene, Target::Lsn(last), 7);
    let plan = scene.plan_to(time(25)).unwrap();
    assert_eq!(plan.wal.ends_at_gap, Some(segment(7)), "the segment behind that in which it stops");
    assert!(notes(&plan).contains("recovery stops before that"), "{}", notes(&plan));
    // To the end the server would come to it, and say so.
    let plan = scene.plan().unwrap();
    assert_eq!(plan.wal.ends_at_gap, None);
    assert!(notes(&plan).contains("the server ends there with an error"), "{}", notes(&plan));

    // As much of it as decodes.
    let packed = zstd::encode_all(&whole[..], 1).unwrap();
    fs::remove_file(wal.join(segment(7))).unwrap();
    fs::write(wal.join(segment(7) + ".zst"), &packed[..packed.len() / 2]).unwrap();
    in_gap(&scene, time(99), 7);
    assert_eq!(scene.plan_to(time(25)).unwrap().wal.ends_at_gap, Some(segment(7)));

    fs::remove_file(wal.join(segment(7) + ".zst")).unwrap();
    in_gap(&scene, time(99), 7);
    assert_eq!(scene.plan_to(time(25)).unwrap().wal.ends_at_gap, Some(segment(7)));
    fs::write(wal.join(segment(7)), &whole[..whole.len() - 100]).unwrap();
    in_gap(&scene, time(99), 7);
}

/// The records tell what a backup holds; walhold's clock, which may be ahead, does not.
#[test]
fn a_time_is_compared_with_the_servers_clock() {
    let (scene, _) = scene(|_| {});
    for which in [Which::Latest, Which::Named(scene.seal.id)] {
        let end = |seconds: i64| {
            let planned = plan(&scene.repository, &Options { which, goal: to(time(seconds)), ..scene.options() });
            planned.map(|plan| plan.wal.end.unwrap().because.unwrap())
        };
        assert_eq!(end(-9).unwrap(), "before the commit of transaction 7 at 2026-11-22T05:15:10Z");
        // Within the second of the checkpoint walhold's clock is asked.
        assert!(matches!(end(-10), Err(RestoreError::Unreachable(_))));
        assert!(matches!(end(-3600), Err(RestoreError::Unreachable(_))));
    }
}

#[test]
fn a_tablespace_is_not_made_over_what_is_in_use() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("space");
    let data = [&1_u32.to_le_bytes()[..], path.to_str().unwrap().as_bytes(), b"\0"].concat();
    let (scene, _) = scene(|log| log.record(5, 0, &[&[255, data.len() as u8][..], &data].concat()));
    let notes = |plan: Plan| plan.notes.join("\n");
    assert!(notes(scene.plan().unwrap()).contains("make that directory for the server's user"));
    fs::create_dir(&path).unwrap();
    assert!(notes(scene.plan().unwrap()).contains("the WAL makes a tablespace at"));
    fs::write(path.join("x"), "x").unwrap();
    let refused = scene.plan().unwrap_err();
    assert!(matches!(&refused, RestoreError::TablespaceInUse { location, .. } if *location == path), "{refused}");
    assert!(scene.plan_to(time(99)).is_err());
    assert_eq!(scene.plan_to(Target::Name("here".to_owned())).unwrap().wal.makes_tablespaces, []);
    // How far a standby goes nobody knows.
    let standby = Options { goal: Goal::Standby { primary_conninfo: None, primary_slot: None }, ..scene.options() };
    assert!(notes(plan(&scene.repository, &standby).unwrap()).contains("at the same paths"));
}

#[test]
fn a_timeline_that_is_asked_for_is_gone_along_or_refused() {
    let scene = Scene::new(Parts::new());
    let wal = scene.path("repo/wal");
    let fork = |tli: u32, at: u64, segment: u64| {
        fs::write(wal.join(format!("{tli:08X}.history")), format!("1\t0/{at:X}\tx\n")).unwrap();
        let mut log = Log::new(segment * SIZE, SIZE, tli, SYSTEM);
        filled(&mut log);
        fs::write(wal.join(format!("{tli:08X}00000000{segment:08X}")), &log.bytes[..SIZE as usize]).unwrap();
    };
    fork(2, 6 * SIZE + 8192, 6);
    fork(3, scene.seal.stop.lsn().get() - 8, 5);
    fork(4, 8 * SIZE + 8192, 8);
    let along = |along: Along| plan(&scene.repository, &Options { along, ..scene.options() });
    let number = |tli: u32| Along::Timeline(TimelineId::new(tli).unwrap());
    let pinned = |plan: Result<Plan, RestoreError>| plan.unwrap().wal.timeline.unwrap().get();
    assert_eq!((pinned(along(Along::Latest)), pinned(along(number(2)))), (2, 2));
    assert_eq!((pinned(along(Along::Current)), pinned(along(number(1)))), (1, 1));
    assert!(matches!(along(number(3)), Err(RestoreError::NotOnTimeline { .. })));
    assert!(matches!(along(number(4)), Err(RestoreError::TimelineCutOff { segment, .. }) if segment.no() == 6));
    assert!(matches!(along(number(9)), Err(RestoreError::Archive(ArchiveError::NoHistory(_)))));
    let aimed = |along: Along| {
        let goal = to(Target::Immediate);
        plan(&scene.repository, &Options { along, goal, ..scene.options() })
    };
    assert_eq!(pinned(aimed(number(4))), 4, "it lies before the hole");
    assert!(matches!(aimed(number(3)), Err(RestoreError::NotOnTimeline { .. })));
}

/// The test's records are those that servers write.
#[test]
fn restore_points_come_through_the_chain() {
    let (scene, _) = scene(|_| {});
    let archive = scene.repository.archive();
    let way = crate::wal::History::first();
    let seed = crate::wal::Seed {
        start: Lsn::new(3 * SIZE),
        size: archive.size(),
        system_id: archive.system_id(),
        newest_tli: TimelineId::FIRST,
    };
    let mut found = 0;
    let mut seen = |record: &crate::wal::Record<'_>| {
        found += usize::from(record.restore_point() == Some(RestorePoint { time: after(20), name: b"here" }));
    };
    archive.walk(&way, &mut crate::wal::Chain::new(seed), Lsn::new(u64::MAX), &mut seen).unwrap();
    assert_eq!(found, 1);
}
