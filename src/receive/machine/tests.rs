//! The rules of receiving, in virtual time.

use proptest::prelude::*;

mod seeds;

use super::*;
use crate::wal::Pos;

const START: u64 = 0x300_0000;
/// The stream's segments, where the model writer completes one.
const SEGMENT: u64 = 1 << 20;
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(100);

fn settings() -> Settings {
    Settings {
        synchronous: false,
        sync_interval: INTERVAL,
        status_interval: Some(10 * SECOND),
        sender_timeout: Some(60 * SECOND),
        report_flush: true,
        end: None,
    }
}

fn synchronous() -> Settings {
    Settings { synchronous: true, ..settings() }
}

fn durable(upto: u64) -> Durable {
    Durable::claimed(Pos::new(TimelineId::FIRST, Lsn::new(START + upto)))
}

fn written(upto: u64) -> Written {
    Written::claimed(Pos::new(TimelineId::FIRST, Lsn::new(START + upto)))
}

/// The status that reports these ends, in bytes from the stream's start.
fn reply(written: u64, flushed: Option<u64>) -> Action {
    Action::Reply(Status { written: Lsn::new(START + written), flushed: flushed.map(durable), ask: false })
}

fn append(len: usize) -> Action {
    Action::Append(vec![7; len].into())
}

fn replies(actions: &[Action]) -> usize {
    actions.iter().filter(|a| matches!(a, Action::Reply(_))).count()
}

/// A receiver and its clock. Positions are bytes from the stream's start.
struct Bench {
    begun: Instant,
    now: Instant,
    receiver: Receiver,
    sent: u64,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        Self::reporting_from(settings, 0)
    }

    fn reporting_from(settings: Settings, from: u64) -> Self {
        let now = Instant::now();
        let from = Lsn::new(START + from);
        let receiver = Receiver::new(now, settings, TimelineId::FIRST, Lsn::new(START), from);
        Self { begun: now, now, receiver, sent: 0 }
    }

    fn try_step(&mut self, input: Input) -> Result<Vec<Action>, Violation> {
        let mut out = Vec::new();
        self.receiver.step(self.now, input, &mut out)?;
        let later = self.receiver.deadline().is_none_or(|due| due > self.now);
        assert!(later, "a driver that waits for the deadline would spin: {:?}", self.receiver);
        Ok(out)
    }

    fn step(&mut self, input: Input) -> Vec<Action> {
        self.try_step(input).unwrap()
    }

    /// The server sends the next `len` bytes.
    fn wal(&mut self, len: usize) -> Vec<Action> {
        self.sent += len as u64;
        self.step(Input::Message(wal(self.sent - len as u64, len)))
    }

    fn keepalive(&mut self, reply_requested: bool) -> Vec<Action> {
        let server_end = Lsn::new(START + self.sent);
        self.step(Input::Message(StreamMessage::Keepalive { server_end, sent_at: 0, reply_requested }))
    }

    /// The writer has done what it was asked, and proves this much.
    fn settled(&mut self, upto: u64) -> Vec<Action> {
        self.step(Input::Settled(Some(durable(upto))))
    }

    fn after(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self
    }

    fn tick(&mut self) -> Vec<Action> {
        self.step(Input::Tick)
    }

    /// Lets time pass as the driver does, from deadline to deadline.
    fn pass(&mut self, time: Duration) -> Vec<(Duration, Action)> {
        let until = self.now + time;
        let mut all = Vec::new();
        while let Some(due) = self.receiver.deadline().filter(|due| *due <= until) {
            self.now = due;
            let at = self.now - self.begun;
            all.extend(self.tick().into_iter().map(|action| (at, action)));
        }
        self.now = until;
        all
    }
}

fn wal(at: u64, len: usize) -> StreamMessage {
    let (start, server_end) = (Lsn::new(START + at), Lsn::new(START + at + len as u64));
    StreamMessage::Wal { start, server_end, sent_at: 0, data: vec![7; len].into() }
}

#[test]
fn unsynced_wal_waits_one_sync_interval_and_no_longer() {
    let mut bench = Bench::new(settings());
    assert_eq!(bench.wal(10), [append(10)]);
    assert_eq!(bench.after(40 * MS).wal(20), [append(20)]);
    assert_eq!(bench.pass(59 * MS), []);
    assert_eq!(bench.pass(MS), [(100 * MS, Action::Settle)]);
    // At most once: what comes during a sync and after it waits an interval of its own.
    assert_eq!(bench.after(30 * MS).wal(5), [append(5)]);
    assert_eq!(bench.settled(30), [reply(30, Some(30))]);
    assert_eq!(bench.pass(99 * MS), []);
    assert_eq!(bench.pass(MS), [(230 * MS, Action::Settle)]);
    assert_eq!(bench.settled(35), [reply(35, Some(35))]);
    // Nothing is synced when nothing has come.
    assert_eq!(bench.pass(9 * SECOND), []);
}

#[test]
fn an_interval_of_a_stream_without_pause_has_one_sync() {
    let mut bench = Bench::new(settings());
    let (mut settles, mut syncing) = (Vec::new(), None);
    for _ in 0..10_000 {
        bench.after(MS);
        if syncing.take_if(|done| *done <= bench.now).is_some() {
            bench.settled(bench.sent);
        }
        if bench.wal(1000).contains(&Action::Settle) {
            settles.push(bench.now);
            syncing = Some(bench.now + 30 * MS);
        }
    }
    let gaps: Vec<_> = settles.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| (100 * MS..=131 * MS).contains(gap)), "{gaps:?}");
    assert!(settles.len() > 70);
}

#[test]
fn a_synchronous_receiver_settles_whatever_comes_at_once() {
    let mut bench = Bench::new(synchronous());
    assert_eq!(bench.wal(10), [append(10), Action::Settle]);
    assert_eq!(bench.settled(10), [reply(10, Some(10))]);
    assert_eq!(bench.wal(10), [append(10), Action::Settle]);
}

#[test]
fn one_settle_covers_all_that_came_during_the_one_before() {
    let mut bench = Bench::new(synchronous());
    assert_eq!(bench.wal(10), [append(10), Action::Settle]);
    for _ in 0..50 {
        assert_eq!(bench.wal(10), [append(10)]);
    }
    assert_eq!(bench.settled(10), [reply(10, Some(10)), Action::Settle]);
    assert_eq!(bench.settled(510), [reply(510, Some(510))]);
    assert_eq!(bench.pass(9 * SECOND), []);
}

/// The writer takes along what is queued; then there is nothing left to be settled.
#[test]
fn what_a_settle_took_along_is_not_settled_again() {
    let mut bench = Bench::new(synchronous());
    bench.wal(10);
    bench.wal(10);
    assert_eq!(bench.settled(20), [reply(20, Some(20))]);
}

/// A segment's end leaves nothing to be settled. A commit that came meanwhile must not wait for the
/// interval.
#[test]
fn a_settle_that_proves_nothing_does_not_hold_up_what_came_meanwhile() {
    let mut bench = Bench::new(synchronous());
    assert_eq!(bench.wal(10), [append(10), Action::Settle]);
    assert_eq!(bench.step(Input::Durable(durable(10))), [reply(10, Some(10))]);
    assert_eq!(bench.wal(5), [append(5)]);
    assert_eq!(bench.step(Input::Settled(None)), [Action::Settle]);
    assert_eq!(bench.settled(15), [reply(15, Some(15))]);
}

/// While what is held comes again a settle proves nothing: asking for one after the other would be
/// a busy loop.
#[test]
fn a_settle_that_proves_nothing_is_not_repeated_at_once() {
    let mut bench = Bench::new(synchronous());
    assert_eq!(bench.wal(10), [append(10), Action::Settle]);
    assert_eq!(bench.step(Input::Settled(None)), []);
    assert_eq!(bench.pass(99 * MS), []);
    assert_eq!(bench.pass(MS), [(100 * MS, Action::Settle)]);
}

#[test]
fn every_sync_that_advances_flush_is_reported_and_no_other() {
    let mut bench = Bench::new(settings());
    bench.wal(300);
    assert_eq!(bench.step(Input::Written(written(200))), []);
    assert_eq!(bench.step(Input::Durable(durable(100))), [reply(200, Some(100))]);
    assert_eq!(bench.step(Input::Durable(durable(100))), []);
    assert_eq!(bench.pass(INTERVAL), [(INTERVAL, Action::Settle)]);
    assert_eq!(bench.settled(300), [reply(300, Some(300))]);
    bench.wal(1);
    assert_eq!(bench.step(Input::Settled(Some(durable(300)))), []);
}

#[test]
fn a_status_goes_out_at_its_interval() {
    let mut bench = Bench::new(settings());
    assert_eq!(bench.pass(9_999 * MS), []);
    assert_eq!(bench.pass(MS), [(10 * SECOND, reply(0, None))]);
    // Any status counts.
    bench.after(5 * SECOND);
    assert_eq!(bench.keepalive(true), [reply(0, None)]);
    assert_eq!(bench.pass(10 * SECOND), [(25 * SECOND, reply(0, None))]);
}

#[test]
fn a_status_goes_out_every_third_of_the_senders_timeout() {
    let mut bench = Bench::new(Settings { status_interval: None, ..settings() });
    assert_eq!(bench.pass(25 * SECOND), [(20 * SECOND, reply(0, None))]);
    let mut bench = Bench::new(Settings { status_interval: None, sender_timeout: None, ..settings() });
    assert_eq!(bench.receiver.deadline(), None);
    bench.wal(10);
    assert_eq!(bench.pass(100 * SECOND), [(INTERVAL, Action::Settle)]);
}

/// For 90 s the writer gives no sign, so that the driver cannot read and says so.
#[test]
fn statuses_go_on_while_the_disk_holds_us_up() {
    let mut bench = Bench::new(Settings { status_interval: None, ..settings() });
    bench.wal(100_000);
    let mut statuses = vec![Duration::ZERO];
    for _ in 0..900 {
        let now = bench.after(INTERVAL).now;
        bench.receiver.heard(now);
        let sent = replies(&bench.tick());
        statuses.extend(vec![now - bench.begun; sent]);
    }
    let gaps: Vec<_> = statuses.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.len() >= 4 && gaps.iter().all(|gap| *gap <= 20 * SECOND), "{gaps:?}");
}

#[test]
fn a_status_that_is_asked_for_goes_out_at_once_if_all_is_durable() {
    let mut bench = Bench::new(settings());
    assert_eq!(bench.keepalive(false), []);
    assert_eq!(bench.keepalive(true), [reply(0, None)]);
    bench.wal(10);
    bench.step(Input::Durable(durable(10)));
    assert_eq!(bench.keepalive(true), [reply(10, Some(10))]);
}

#[test]
fn a_status_that_is_asked_for_waits_for_a_sync_that_begins_at_once() {
    let mut bench = Bench::new(settings());
    bench.wal(10);
    assert_eq!(bench.after(MS).keepalive(true), [Action::Settle]);
    assert_eq!(bench.after(20 * MS).settled(10), [reply(10, Some(10))]);
    assert_eq!(bench.pass(9 * SECOND), []);
}

#[test]
fn a_status_that_is_asked_for_waits_no_longer_than_100_ms() {
    let mut bench = Bench::new(settings());
    bench.wal(10);
    assert_eq!(bench.keepalive(true), [Action::Settle]);
    assert_eq!(bench.pass(SECOND), [(100 * MS, reply(0, None))]);
    assert_eq!(bench.settled(10), [reply(10, Some(10))]);
}

#[test]
fn a_sync_that_proves_nothing_is_answered_at_once() {
    let mut bench = Bench::new(settings());
    bench.wal(10);
    assert_eq!(bench.keepalive(true), [Action::Settle]);
    assert_eq!(bench.step(Input::Settled(None)), [reply(0, None)]);
}

/// A stopping server asks again at once, however short the answer was.
#[test]
fn a_storm_of_requests_is_no_busy_loop() {
    let mut bench = Bench::new(settings());
    bench.wal(10);
    let mut actions = Vec::new();
    for _ in 0..10_000 {
        actions.extend(bench.after(MS / 10).keepalive(true));
    }
    assert_eq!(actions.iter().filter(|a| **a == Action::Settle).count(), 1);
    assert!((9..=10).contains(&replies(&actions)), "{}", replies(&actions));
}

#[test]
fn flush_is_not_said_without_slot_or_synchronous() {
    let mut bench = Bench::new(Settings { report_flush: false, ..settings() });
    bench.wal(10);
    assert_eq!(bench.step(Input::Durable(durable(10))), []);
    assert_eq!(bench.keepalive(true), [reply(10, None)]);
    bench.step(Input::Stop);
    assert_eq!(bench.step(Input::Settled(None)), [reply(10, None), Action::End(Ending::Stopped)]);
}

/// A slot must not be moved back.
#[test]
fn nothing_is_reported_before_what_an_earlier_session_may_have_reported() {
    let mut bench = Bench::reporting_from(settings(), 100);
    assert_eq!(bench.receiver.greeting(), Status { written: Lsn::new(START), flushed: None, ask: false });
    bench.wal(120);
    assert_eq!(bench.step(Input::Durable(durable(99))), []);
    assert_eq!(bench.pass(10 * SECOND), [(INTERVAL, Action::Settle), (10 * SECOND, reply(99, None))]);
    assert_eq!(bench.settled(100), [reply(100, Some(100))]);
}

#[test]
fn a_server_that_stops_is_told_exactly_what_it_sent() {
    let mut bench = Bench::new(settings());
    bench.wal(8192);
    assert_eq!(bench.after(INTERVAL).tick(), [Action::Settle]);
    bench.wal(101);
    // A sync that was under way when the last bytes came is short of them: the server asks again.
    assert_eq!(bench.keepalive(true), []);
    assert_eq!(bench.settled(8192), [reply(8192, Some(8192))]);
    assert_eq!(bench.keepalive(true), [Action::Settle]);
    assert_eq!(bench.settled(8293), [reply(8293, Some(8293))]);
    assert_eq!(bench.keepalive(true), [reply(8293, Some(8293))]);
}

#[test]
fn the_end_position_must_be_passed() {
    let mut bench = Bench::new(Settings { end: Some(Lsn::new(START + 100)), ..settings() });
    assert_eq!(bench.wal(100), [append(100)]);
    assert_eq!(bench.wal(1), [append(1), Action::Settle]);
    // In flight when it was enough.
    assert_eq!(bench.wal(50), []);
    assert_eq!(bench.settled(101), ended(101, Ending::EndPosition));
    assert_over(&mut bench);
}

#[test]
fn a_stop_settles_reports_and_ends() {
    for settings in [settings(), synchronous()] {
        let mut bench = Bench::new(settings);
        assert_eq!(bench.step(Input::Stop), [Action::Settle]);
        assert_eq!(bench.step(Input::Stop), []);
        assert_eq!(bench.step(Input::Settled(None)), [reply(0, None), Action::End(Ending::Stopped)]);
        assert_over(&mut bench);

        let mut bench = Bench::new(settings);
        bench.wal(10);
        bench.step(Input::Durable(durable(10)));
        bench.step(Input::Settled(None));
        assert_eq!(bench.step(Input::Stop), [Action::Settle]);
        assert_eq!(bench.wal(50), []);
        assert_eq!(bench.settled(10), [reply(10, Some(10)), Action::End(Ending::Stopped)]);
        assert_over(&mut bench);
    }
}

/// What follows the settle at the end, when it was the first to prove anything.
fn ended(upto: u64, ending: Ending) -> [Action; 2] {
    [reply(upto, Some(upto)), Action::End(ending)]
}

#[track_caller]
fn assert_over(bench: &mut Bench) {
    assert_eq!(bench.receiver.deadline(), None);
    for input in [Input::Tick, Input::Stop, Input::TimelineEnds, Input::Settled(None)] {
        assert_eq!(bench.after(100 * SECOND).step(input), []);
    }
}

/// A settle that was asked for before the last bytes came says nothing of them.
#[test]
fn the_end_waits_for_a_settle_of_everything() {
    let mut bench = Bench::new(synchronous());
    assert_eq!(bench.wal(10), [append(10), Action::Settle]);
    assert_eq!(bench.wal(10), [append(10)]);
    assert_eq!(bench.step(Input::Stop), []);
    assert_eq!(bench.settled(10), [reply(10, Some(10)), Action::Settle]);
    assert_eq!(bench.settled(20), ended(20, Ending::Stopped));
}

#[test]
fn a_timelines_end_is_settled_and_not_reported() {
    let mut bench = Bench::new(settings());
    bench.wal(10);
    assert_eq!(bench.step(Input::TimelineEnds), [Action::Settle]);
    // The server waits for our CopyDone and for nothing else, but no longer than its timeout.
    assert_eq!(bench.pass(15 * SECOND), [(10 * SECOND, reply(0, None))]);
    assert_eq!(bench.settled(10), [Action::End(Ending::Timeline)]);
    assert_over(&mut bench);
}

#[test]
fn the_first_reason_to_end_counts() {
    let mut bench = Bench::new(settings());
    bench.step(Input::Stop);
    assert_eq!(bench.step(Input::TimelineEnds), []);
    assert_eq!(bench.settled(0), ended(0, Ending::Stopped));
}

#[test]
fn wal_after_the_end_of_the_timeline_is_a_violation() {
    let mut bench = Bench::new(settings());
    bench.step(Input::TimelineEnds);
    assert_eq!(bench.try_step(Input::Message(wal(0, 1))), Err(Violation::AfterEnd));
}

#[test]
fn wal_in_the_wrong_place_is_a_violation() {
    for found in [0, 9, 11, SEGMENT] {
        let mut bench = Bench::new(settings());
        bench.wal(10);
        let expected = Violation::Misplaced { expected: Lsn::new(START + 10), found: Lsn::new(START + found) };
        assert_eq!(bench.try_step(Input::Message(wal(found, 1))), Err(expected));
    }
}

#[test]
fn a_silent_server_is_asked_and_then_given_up() {
    let mut bench = Bench::new(settings());
    let asked: Vec<_> = bench
        .pass(60 * SECOND - MS)
        .into_iter()
        .map(|(at, action)| match action {
            Action::Reply(status) => (at.as_secs(), status.ask),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(asked, [(10, false), (20, false), (30, true), (40, true), (50, true)]);
    assert_eq!(bench.receiver.deadline(), Some(bench.now + MS));
    assert_eq!(bench.after(MS).try_step(Input::Tick), Err(Violation::Silent(60 * SECOND)));
}

#[test]
fn any_message_is_a_sign_of_life() {
    let mut bench = Bench::new(settings());
    for _ in 0..10 {
        bench.pass(29 * SECOND);
        bench.keepalive(false);
        let statuses = bench.pass(29 * SECOND);
        assert!(statuses.iter().all(|(_, action)| matches!(action, Action::Reply(status) if !status.ask)));
        bench.wal(0);
        bench.settled(0);
    }
}

/// What a schedule has happen, one after the other.
#[derive(Clone, Copy, Debug)]
enum Happens {
    Wal(usize),
    Keepalive(bool),
    /// So many milliseconds pass.
    Wait(u64),
}

/// How the schedule ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Finish {
    Nothing,
    Stop,
    TimelineEnds,
}

#[derive(Clone, Debug)]
struct Schedule {
    settings: Settings,
    /// Bytes that are held already: until they have come again no settle proves anything.
    held: u64,
    happens: Vec<Happens>,
    /// How long each sync takes, in turn.
    syncs: Vec<u64>,
    finish: Finish,
}

/// A writer whose syncs take time. It takes along what is queued, and completes segments.
struct Model {
    held: u64,
    syncs: Vec<u64>,
    queue: Vec<Action>,
    appended: u64,
    /// When the sync that is under way is done.
    syncing: Option<Instant>,
    durable: u64,
    /// Exclusive end of what some settle has covered, whatever it proved.
    covered: u64,
}

impl Model {
    /// Does what is queued, up to the next sync, and tells of it.
    fn work(&mut self, now: Instant) -> Vec<Input> {
        let mut told = Vec::new();
        while self.syncing.is_none() && !self.queue.is_empty() {
            match self.queue.remove(0) {
                Action::Append(data) => told.extend(self.append(data.len() as u64)),
                _ => {
                    while let Some(Action::Append(data)) = self.queue.first() {
                        let len = data.len() as u64;
                        self.queue.remove(0);
                        told.extend(self.append(len));
                    }
                    self.syncs.rotate_left(1);
                    self.syncing = Some(now + MS * self.syncs[0] as u32);
                }
            }
        }
        told
    }

    fn append(&mut self, len: u64) -> Option<Input> {
        let before = self.appended;
        self.appended += len;
        let segment = self.appended / SEGMENT * SEGMENT;
        if segment > before && segment > self.held {
            self.durable = segment;
            return Some(Input::Durable(durable(segment)));
        }
        (len > 5000).then(|| Input::Written(written(self.appended - 5000)))
    }

    fn synced(&mut self) -> Input {
        self.syncing = None;
        self.covered = self.appended;
        let nothing_open = self.appended.is_multiple_of(SEGMENT);
        if self.appended < self.held || nothing_open {
            return Input::Settled(None);
        }
        self.durable = self.appended;
        Input::Settled(Some(durable(self.appended)))
    }
}

/// A receiver, the model of its writer, and what must hold between them.
struct Run {
    bench: Bench,
    model: Model,
    settings: Settings,
    report_from: u64,
    done: Vec<(Duration, Action)>,
    last: Status,
    settles: u64,
    /// The server was asked for a sign of life.
    asked: bool,
    waiting_since: Option<Instant>,
    timeline_over: bool,
}

impl Run {
    fn new(schedule: &Schedule) -> Self {
        let bench = Bench::reporting_from(schedule.settings, schedule.held);
        let last = bench.receiver.greeting();
        let model = Model {
            held: schedule.held,
            syncs: schedule.syncs.clone(),
            queue: Vec::new(),
            appended: 0,
            syncing: None,
            durable: 0,
            covered: 0,
        };
        let (settings, report_from) = (schedule.settings, schedule.held);
        let (waiting_since, timeline_over) = (None, false);
        Self {
            timeline_over,
            bench,
            model,
            settings,
            report_from,
            done: Vec::new(),
            last,
            settles: 0,
            asked: false,
            waiting_since,
        }
    }

    fn ended(&self) -> bool {
        matches!(self.done.last(), Some((_, Action::End(_))))
    }

    fn take(&mut self, input: Input) {
        let settled = matches!(input, Input::Settled(_) | Input::Durable(_));
        let over = self.ended();
        let actions = self.bench.step(input);
        assert!(!over || actions.is_empty(), "after the end: {actions:?}");
        if settled && self.waiting_since.is_some() {
            self.waiting_since = Some(self.bench.now);
        }
        for action in actions {
            self.check(&action);
            self.done.push((self.bench.now - self.bench.begun, action.clone()));
            match action {
                Action::Append(_) => {
                    self.waiting_since = self.waiting_since.or(Some(self.bench.now));
                    self.model.queue.push(action);
                }
                Action::Settle => {
                    assert!(self.model.syncing.is_none() && !self.model.queue.contains(&action), "two settles");
                    self.settles += 1;
                    self.waiting_since = None;
                    self.model.queue.push(action);
                }
                // A server that is asked for a sign of life gives one.
                Action::Reply(status) if status.ask => {
                    self.asked = true;
                }
                Action::Reply(_) | Action::End(_) => {}
            }
        }
        for told in self.model.work(self.bench.now) {
            self.take(told);
        }
        if std::mem::take(&mut self.asked) {
            let server_end = self.bench.receiver.server_end();
            self.take(Input::Message(StreamMessage::Keepalive { server_end, sent_at: 0, reply_requested: false }));
        }
        // At least once an interval, unless a sync is under way.
        if let Some(since) = self.waiting_since.filter(|_| self.model.syncing.is_none() && !self.ended()) {
            let durable = self.model.durable >= self.bench.receiver.received() - Lsn::new(START);
            assert!(durable || self.bench.now < since + self.settings.sync_interval, "not synced since {since:?}");
        }
    }

    fn check(&mut self, action: &Action) {
        match action {
            Action::Reply(status) => {
                // The server waits for CopyDone alone, and counts our silence.
                let last = self.done.iter().rev().find(|(_, action)| matches!(action, Action::Reply(_)));
                let silent = self.bench.now - self.bench.begun - last.map_or(Duration::ZERO, |(at, _)| *at);
                assert!(!self.timeline_over || silent >= 10 * SECOND, "after {silent:?}");
                let flushed = |status: &Status| status.flushed.map(|durable| durable.pos().lsn() - Lsn::new(START));
                if let Some(flush) = flushed(status) {
                    assert!(flush <= self.model.durable, "{flush} of {} is durable", self.model.durable);
                    assert!(flush >= self.report_from && self.settings.report_flush);
                    assert!(status.written >= status.flushed.unwrap().pos().lsn());
                }
                assert!(flushed(status) >= flushed(&self.last), "flush went back");
                assert!(status.written >= self.last.written && status.written <= self.bench.receiver.received());
                self.last = *status;
            }
            Action::End(ending) => {
                assert_eq!(self.model.appended, self.model.covered, "not settled");
                assert!(self.model.queue.is_empty());
                let told = matches!(self.done.last(), Some((_, Action::Reply(_))));
                assert!(told || *ending == Ending::Timeline);
            }
            Action::Append(_) | Action::Settle => {}
        }
    }

    /// Lets time pass: whatever is due first happens first.
    fn pass(&mut self, time: Duration, extra: Option<Duration>) {
        let until = self.bench.now + time;
        loop {
            let due = self.bench.receiver.deadline();
            let early = extra.map(|extra| self.bench.now + extra);
            let next = [due, self.model.syncing, early, Some(until)].into_iter().flatten().min().unwrap();
            self.bench.now = self.bench.now.max(next);
            if next >= until {
                break;
            }
            if self.model.syncing.is_some_and(|done| done <= next) {
                let synced = self.model.synced();
                self.take(synced);
            } else {
                self.take(Input::Tick);
            }
        }
    }

    fn through(schedule: &Schedule, extra: Option<Duration>) -> Self {
        let mut run = Self::new(schedule);
        let mut sent = 0;
        for happens in &schedule.happens {
            match *happens {
                Happens::Wal(len) => {
                    run.take(Input::Message(wal(sent, len)));
                    sent += len as u64;
                }
                Happens::Keepalive(reply_requested) => {
                    let server_end = Lsn::new(START + sent);
                    run.take(Input::Message(StreamMessage::Keepalive { server_end, sent_at: 0, reply_requested }));
                }
                Happens::Wait(ms) => run.pass(MS * ms as u32, extra),
            }
            // The model takes no time to write, as long as it does not sync.
            let told = run.model.work(run.bench.now);
            told.into_iter().for_each(|told| run.take(told));
        }
        match schedule.finish {
            Finish::Nothing => {}
            Finish::Stop => run.take(Input::Stop),
            Finish::TimelineEnds => {
                run.timeline_over = run.bench.receiver.ending.is_none();
                run.take(Input::TimelineEnds);
            }
        }
        run.pass(10 * SECOND, extra);
        run
    }
}

fn schedules() -> impl Strategy<Value = Schedule> {
    let happens = prop_oneof![
        4 => (1..131_072_usize).prop_map(Happens::Wal),
        2 => (1..200_usize).prop_map(Happens::Wal),
        1 => any::<bool>().prop_map(Happens::Keepalive),
        3 => (0..50_u64).prop_map(Happens::Wait),
        1 => (0..15_000_u64).prop_map(Happens::Wait),
    ];
    let end = prop_oneof![3 => Just(None), 1 => (0..3 * SEGMENT).prop_map(|end| Some(Lsn::new(START + end)))];
    let settings =
        (any::<bool>(), any::<bool>(), any::<bool>(), end).prop_map(|(synchronous, report, status, end)| Settings {
            synchronous,
            report_flush: report,
            status_interval: status.then_some(10 * SECOND),
            end,
            ..settings()
        });
    let held = prop_oneof![Just(0), 0..2 * SEGMENT];
    let finish = prop_oneof![Just(Finish::Nothing), Just(Finish::Stop), Just(Finish::TimelineEnds)];
    let syncs = prop::collection::vec(prop_oneof![0..20_u64, 0..3000_u64], 1..8);
    (settings, held, prop::collection::vec(happens, 0..120), syncs, finish)
        .prop_map(|(settings, held, happens, syncs, finish)| Schedule { settings, held, happens, syncs, finish })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_happens_the_promises_hold(schedule in schedules()) {
        let run = Run::through(&schedule, None);
        let received = run.bench.receiver.received() - Lsn::new(START);
        let ends = run.done.iter().filter(|(_, action)| matches!(action, Action::End(_))).count();
        let passed = schedule.settings.end.is_some_and(|end| run.bench.receiver.received() > end);
        prop_assert_eq!(ends, usize::from(passed || schedule.finish != Finish::Nothing));
        // Nothing is left behind.
        prop_assert_eq!(run.model.appended, received);
        if received >= run.model.held && !(ends == 0 && run.model.syncing.is_some()) && received > 0 {
            prop_assert_eq!(run.model.durable, received);
            if schedule.settings.report_flush && run.last.flushed.is_some() && schedule.finish != Finish::TimelineEnds {
                prop_assert_eq!(run.last.flushed, Some(durable(received)));
            }
        }
        // Nor is there more to be done than there is reason to.
        let count = |wanted: fn(&Happens) -> bool| schedule.happens.iter().filter(|h| wanted(h)).count() as u64;
        let (pieces, asked) = (count(|h| matches!(h, Happens::Wal(_))), count(|h| matches!(h, Happens::Keepalive(true))));
        let time = (run.bench.now - run.bench.begun).as_millis() as u64;
        let at_once = if schedule.settings.synchronous { pieces } else { 0 };
        prop_assert!(run.settles <= time / 100 + 2 * asked + at_once + 3);
        let replies = run.done.iter().filter(|(_, action)| matches!(action, Action::Reply(_))).count() as u64;
        prop_assert!(replies <= run.settles + received / SEGMENT + asked + time / 10_000 + 3);
    }

    /// The deadline names everything that is due: looking more often changes nothing.
    #[test]
    fn a_driver_that_steps_at_deadlines_alone_misses_nothing(schedule in schedules(), extra in 1..60_u64) {
        let lazy = Run::through(&schedule, None);
        let eager = Run::through(&schedule, Some(MS * extra as u32));
        prop_assert_eq!(lazy.done, eager.done);
    }
}
