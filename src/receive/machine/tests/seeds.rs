//! Receivers against servers, links and disks that are made from a seed, in virtual time: delays on all ways,
//! notices of the writer before or after messages, storms of requests, stalls, silence, lost connections, kills,
//! shutdowns, stops.
//!
//! A failure prints the seed. `WALHOLD_SEED=... cargo test --lib receive::machine::tests::seeds` runs that one alone;
//! `WALHOLD_SEEDS=100000` runs more than the usual ones.

use std::collections::VecDeque;

use super::*;

/// How many seeds an ordinary run takes.
const USUAL: u64 = 2_000;
/// Seeds with which something was found. They always run.
const FOUND: [u64; 0] = [];
/// Commands that the writer's queue takes; while more wait, nothing is read.
const QUEUE: usize = 32;
/// Longer than any stall of these disks and links.
const LONG: Duration = Duration::from_secs(300);

static WAL: [u8; 131_072] = [7; 131_072];

/// The same numbers for the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n.max(1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn ms(&mut self, below: u64) -> Duration {
        MS * u32::try_from(self.below(below)).unwrap()
    }
}

/// How a session goes to its end, if nothing else ends it before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// The connection is lost; the writer keeps what has come.
    Cut,
    /// The process is killed.
    Killed,
    Stop,
    TimelineEnds,
    Shutdown,
    /// The server hangs.
    Silence,
    /// The server sends WAL that does not follow.
    Misplaced,
}

/// The thread that writes: what it was told to do, one after the other, and what it tells.
#[derive(Default)]
struct Writer {
    queue: VecDeque<Action>,
    waiting: VecDeque<Action>,
    /// Until then it is at work on what comes then.
    busy: Option<(Instant, Option<Input>)>,
    appended: u64,
    /// What of it the kernel has.
    written: u64,
    durable: u64,
    /// Below this it compares, and calls nothing durable.
    held: u64,
    told: VecDeque<(Instant, Input)>,
}

impl Writer {
    fn take(&mut self, action: Action) {
        if self.waiting.is_empty() && self.queue.len() < QUEUE {
            self.queue.push_back(action);
        } else {
            self.waiting.push_back(action);
        }
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.waiting.is_empty() && self.busy.is_none() && self.told.is_empty()
    }

    fn tell(&mut self, now: Instant, input: Input, dice: &mut Dice) {
        let delay = if dice.one_in(3) { dice.ms(6) } else { Duration::ZERO };
        // One after the other.
        let at = self.told.back().map_or(now, |(last, _)| *last).max(now + delay);
        self.told.push_back((at, input));
    }

    fn work(&mut self, now: Instant, slow: u64, dice: &mut Dice) {
        if let Some((at, done)) = self.busy.take() {
            if at > now {
                self.busy = Some((at, done));
                return;
            }
            if let Some(Input::Durable(upto) | Input::Settled(Some(upto))) = &done {
                self.durable = upto.pos().lsn() - Lsn::new(START);
                self.written = self.written.max(self.durable);
            }
            if let Some(done) = done {
                self.tell(now, done, dice);
            }
        }
        while self.busy.is_none() {
            while let Some(action) = (self.queue.len() < QUEUE).then(|| self.waiting.pop_front()).flatten() {
                self.queue.push_back(action);
            }
            match self.queue.pop_front() {
                None => return,
                Some(Action::Append(data)) => self.append(now, data.len() as u64, dice),
                Some(_) => {
                    while let Some(Action::Append(data)) = self.queue.front() {
                        let len = data.len() as u64;
                        self.queue.pop_front();
                        self.append(now, len, dice);
                        if self.busy.is_some() {
                            // A segment's end comes first.
                            self.queue.push_front(Action::Settle);
                            return;
                        }
                    }
                    let nothing = self.appended < self.held || self.appended.is_multiple_of(SEGMENT);
                    let done = Input::Settled((!nothing).then(|| durable(self.appended)));
                    self.busy = Some((now + self.sync(slow, dice), Some(done)));
                }
            }
        }
    }

    fn sync(&self, slow: u64, dice: &mut Dice) -> Duration {
        if dice.one_in(200) { dice.ms(95_000) } else { dice.ms(slow) }
    }

    fn append(&mut self, now: Instant, len: u64, dice: &mut Dice) {
        let before = self.appended;
        self.appended += len;
        let segment = self.appended / SEGMENT * SEGMENT;
        if segment > before && segment >= self.held {
            self.busy = Some((now + dice.ms(20), Some(Input::Durable(durable(segment)))));
        } else if self.appended > self.held && dice.one_in(3) {
            self.written = self.written.max(self.appended - dice.below(self.appended - self.written.max(before)));
            self.tell(now, Input::Written(written(self.written)), dice);
        }
    }
}

/// What outlives a session.
struct World {
    dice: Dice,
    settings: Settings,
    now: Instant,
    /// What of the log is on the disk.
    held: u64,
    /// The most that the server was told is durable.
    reported: u64,
    /// Where the server's log ends.
    log: u64,
}

struct Conversation<'a> {
    world: &'a mut World,
    receiver: Receiver,
    writer: Writer,
    fate: Fate,
    begun: Instant,
    sent: u64,
    /// On the way to the receiver.
    link: VecDeque<(Instant, Input)>,
    /// When the server does something next.
    server_acts: Instant,
    server_is_over: bool,
    slow: u64,
    last_status: Instant,
    last_heard: Instant,
    /// A request was taken in, and is not answered.
    asked: Option<Instant>,
    ended: bool,
    requests: u64,
    messages: u64,
    advances: u64,
    replies: u64,
    settles: u64,
    told_last: Option<Status>,
}

impl<'a> Conversation<'a> {
    fn new(world: &'a mut World) -> Self {
        let start = world.held / SEGMENT * SEGMENT;
        let now = world.now;
        let report_from = Lsn::new(START + world.held.max(world.reported));
        let receiver = Receiver::new(now, world.settings, TimelineId::FIRST, Lsn::new(START + start), report_from);
        let fates =
            [Fate::Cut, Fate::Killed, Fate::Stop, Fate::TimelineEnds, Fate::Shutdown, Fate::Silence, Fate::Misplaced];
        let fate = match fates[world.dice.below(7) as usize] {
            // Nobody would notice.
            Fate::Silence if world.settings.sender_timeout.is_none() => Fate::Cut,
            fate => fate,
        };
        // One that builds a partial anew, beside the old one, and is careless about it: the machine must not be.
        let held = if world.dice.one_in(4) { start } else { world.held };
        let writer = Writer { appended: start, written: start, held, ..Writer::default() };
        let slow = [2, 30, 400][world.dice.below(3) as usize];
        Self {
            receiver,
            writer,
            fate,
            begun: now,
            sent: start,
            link: VecDeque::new(),
            server_acts: now,
            server_is_over: false,
            slow,
            last_status: now,
            last_heard: now,
            asked: None,
            ended: false,
            requests: 0,
            messages: 0,
            advances: 0,
            replies: 0,
            settles: 0,
            told_last: None,
            world,
        }
    }

    fn may_read(&self) -> bool {
        self.writer.waiting.is_empty() && !self.timeline_is_over()
    }

    fn timeline_is_over(&self) -> bool {
        self.receiver.ending == Some(Ending::Timeline)
    }

    /// From one event to the next, until the session is over; `None` if it ended in good order.
    fn run(&mut self) -> Option<Violation> {
        let greeting = self.receiver.greeting();
        self.check(greeting);
        let acts = 5 + self.world.dice.below(120);
        let mut acted = 0;
        let limit = self.begun + LONG * 40;
        loop {
            assert!(self.world.now < limit, "it does not come to an end: {:?}", self.receiver);
            let now = self.world.now;
            let arrival = self.link.front().filter(|_| self.may_read()).map(|(at, _)| *at);
            let notice = self.writer.told.front().map(|(at, _)| *at);
            let server = (!self.server_is_over).then_some(self.server_acts);
            let done = self.writer.busy.as_ref().map(|(at, _)| *at);
            let next = [arrival, notice, server, done, self.receiver.deadline()].into_iter().flatten().min();
            let Some(next) = next else {
                assert!(!matches!(self.fate, Fate::Stop | Fate::TimelineEnds) || self.ended, "it does not end");
                return None;
            };
            self.world.now = now.max(next);
            let now = self.world.now;
            let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
            if due(done) {
                let (slow, dice) = (self.slow, &mut self.world.dice);
                self.writer.work(now, slow, dice);
                continue;
            }
            if due(server) {
                acted += 1;
                if acted > acts {
                    if let Some(over) = self.finish() {
                        return over;
                    }
                } else {
                    self.act();
                }
                continue;
            }
            // What is due at the same time comes in any order.
            let first = self.world.dice.one_in(2);
            let input = match (due(notice), due(arrival)) {
                (true, arrived) if first || !arrived => self.writer.told.pop_front().map(|(_, input)| input),
                (_, true) => self.link.pop_front().map(|(_, input)| input),
                _ => Some(Input::Tick),
            };
            match self.step(input.unwrap_or(Input::Tick)) {
                Err(violation) => return Some(violation),
                Ok(()) if self.ended => return None,
                Ok(()) => {}
            }
        }
    }

    fn send(&mut self, message: StreamMessage) {
        let delay = self.world.dice.ms(4);
        self.on_the_way(delay, Input::Message(message));
    }

    fn on_the_way(&mut self, delay: Duration, input: Input) {
        let at = self.link.back().map_or(self.world.now, |(last, _)| *last).max(self.world.now + delay);
        self.link.push_back((at, input));
    }

    fn send_wal(&mut self, len: u64) {
        let end = Lsn::new(START + self.sent + len);
        let data = Bytes::from_static(&WAL).slice(..usize::try_from(len).unwrap());
        self.send(StreamMessage::Wal { start: Lsn::new(START + self.sent), server_end: end, sent_at: 0, data });
        self.sent += len;
    }

    fn send_keepalive(&mut self, reply_requested: bool) {
        let server_end = Lsn::new(START + self.sent);
        self.send(StreamMessage::Keepalive { server_end, sent_at: 0, reply_requested });
    }

    /// What a server does at its own pace.
    fn act(&mut self) {
        let pause = match self.world.dice.below(12) {
            0..5 => {
                let most = if self.world.dice.one_in(3) { 131_072 } else { 400 };
                let len = 1 + self.world.dice.below(most);
                self.world.log = self.world.log.max(self.sent + len);
                self.send_wal(len);
                self.world.dice.ms(10)
            }
            5..7 => {
                // As much as it has, at once.
                for _ in 0..self.world.dice.below(40) {
                    let len = 1 + self.world.dice.below(131_072);
                    self.send_wal(len);
                }
                self.world.log = self.world.log.max(self.sent);
                self.world.dice.ms(200)
            }
            7 => {
                for _ in 0..self.world.dice.below(60) {
                    let reply_requested = self.world.dice.one_in(2);
                    self.send_keepalive(reply_requested);
                }
                self.world.dice.ms(5)
            }
            8 | 9 => {
                let reply_requested = self.world.dice.one_in(2);
                self.send_keepalive(reply_requested);
                self.world.dice.ms(300)
            }
            10 => self.world.dice.ms(3_000),
            _ => self.world.dice.ms(55_000),
        };
        self.server_acts = self.world.now + pause;
    }

    /// Brings the session to its end; `Some` when it is over at once.
    fn finish(&mut self) -> Option<Option<Violation>> {
        match self.fate {
            Fate::Cut | Fate::Killed => return Some(None),
            Fate::Stop => {
                self.server_is_over = true;
                return match self.step(Input::Stop) {
                    Err(violation) => Some(Some(violation)),
                    Ok(()) => self.ended.then_some(None),
                };
            }
            Fate::TimelineEnds => {
                self.server_is_over = true;
                self.on_the_way(Duration::ZERO, Input::TimelineEnds);
            }
            Fate::Shutdown => {
                while self.sent < self.world.log {
                    self.send_wal((self.world.log - self.sent).min(WAL.len() as u64));
                }
                // It waits for exactly what it sent: of what is durable if that is told, else of what is written.
                let told = self.told_last.map(|status| status.flushed.map_or(status.written, |d| d.pos().lsn()));
                if told == Some(Lsn::new(START + self.sent)) {
                    return Some(None);
                }
                self.send_keepalive(true);
                self.server_acts = self.world.now + MS * 10;
            }
            Fate::Silence => self.server_is_over = true,
            Fate::Misplaced => {
                self.server_is_over = true;
                self.sent += 1 + self.world.dice.below(SEGMENT);
                self.send_wal(10);
            }
        }
        None
    }

    fn step(&mut self, input: Input) -> Result<(), Violation> {
        let now = self.world.now;
        if !self.may_read() {
            self.receiver.heard(now);
            self.last_heard = now;
        }
        match &input {
            Input::Message(StreamMessage::Keepalive { reply_requested, .. }) => {
                self.last_heard = now;
                self.requests += u64::from(*reply_requested);
                self.messages += 1;
                if *reply_requested && !self.timeline_is_over() {
                    self.asked = self.asked.or(Some(now));
                }
            }
            Input::Message(_) => (self.last_heard, self.messages) = (now, self.messages + 1),
            Input::TimelineEnds => self.last_heard = now,
            Input::Durable(_) | Input::Settled(Some(_)) => self.advances += 1,
            _ => {}
        }
        let mut out = Vec::new();
        let done = self.receiver.step(now, input, &mut out);
        assert!(done.is_err() || self.receiver.deadline().is_none_or(|due| due > now), "{:?} spins", self.receiver);
        for action in out {
            assert!(!self.ended, "after the end: {action:?}");
            match action {
                Action::Reply(status) => {
                    self.replies += 1;
                    self.check(status);
                    (self.last_status, self.asked) = (now, None);
                    if status.ask && !self.server_is_over {
                        self.send_keepalive(false);
                    }
                }
                Action::End(_) => {
                    assert!(self.writer.is_idle() && self.writer.busy.is_none(), "it ends before the writer is done");
                    self.ended = true;
                }
                action => {
                    self.settles += u64::from(action == Action::Settle);
                    self.writer.take(action);
                }
            }
        }
        let (slow, dice) = (self.slow, &mut self.world.dice);
        self.writer.work(now, slow, dice);
        if done.is_ok() && !self.ended {
            self.in_time();
        }
        done
    }

    /// What the server is told is true, and never less than it was.
    fn check(&mut self, status: Status) {
        let flushed = status.flushed.map(|upto| upto.pos().lsn() - Lsn::new(START));
        let written = status.written - Lsn::new(START);
        assert!(written <= self.writer.appended.max(self.writer.written), "{written} is not written");
        assert!(self.told_last.is_none_or(|last| last.written <= status.written), "written goes back");
        if let Some(flushed) = flushed {
            assert!(self.world.settings.report_flush);
            assert!(flushed <= self.writer.durable, "{flushed} of {} is durable", self.writer.durable);
            assert!(flushed <= written, "{flushed} is durable, and {written} written");
            assert!(flushed >= self.world.reported, "{flushed} after {}", self.world.reported);
            self.world.reported = flushed;
        }
        self.told_last = Some(status);
    }

    /// Nothing that is due is late.
    fn in_time(&self) {
        let (now, settings) = (self.world.now, &self.world.settings);
        let third = settings.sender_timeout.map(|timeout| timeout / 3);
        if let Some(most) = [settings.status_interval, third].into_iter().flatten().min() {
            assert!(now < self.last_status + most, "no status for {:?}", now - self.last_status);
        }
        if let Some(asked) = self.asked.filter(|_| !self.timeline_is_over()) {
            assert!(now < asked + PATIENCE, "no answer for {:?}", now - asked);
        }
        if let Some(limit) = settings.sender_timeout {
            assert!(now < self.last_heard + limit, "the server's silence is not seen");
        }
    }

    /// The session is over: nothing was done more often than there was reason to, and the disk is left as it is.
    fn over(self, violation: Option<Violation>) {
        let elapsed = u64::try_from((self.world.now - self.begun).as_millis()).unwrap();
        let third = self.world.settings.sender_timeout.map_or(u64::MAX, |limit| limit.as_millis() as u64 / 3);
        let interval = self.world.settings.status_interval.map_or(third, |every| third.min(every.as_millis() as u64));
        let (replies, most) = (self.replies, self.requests + self.advances + elapsed / interval + 3);
        assert!(replies <= most, "{replies} statuses, with reasons for {most}");
        let at_once = if self.world.settings.synchronous { self.messages } else { 0 };
        let (settles, most) = (self.settles, elapsed / 100 + 2 * self.requests + at_once + 3);
        assert!(settles <= most, "{settles} syncs, with reasons for {most}");
        match violation {
            None => assert!(self.fate != Fate::Silence && self.fate != Fate::Misplaced || self.ended),
            Some(Violation::Silent(limit)) => {
                assert!(self.world.now >= self.last_heard + limit);
                assert!(self.fate == Fate::Silence || self.server_is_over);
            }
            Some(Violation::Misplaced { .. }) => assert_eq!(self.fate, Fate::Misplaced),
            Some(Violation::AfterEnd) => panic!("nothing was sent after the end"),
        }
        let appended = self.writer.appended;
        let there = if self.fate == Fate::Killed {
            // Of what was not synced any part may be there.
            let least = self.writer.durable.max(self.writer.held.min(appended));
            least + self.world.dice.below(appended.saturating_sub(least) + 1)
        } else {
            // The writer still does what it was told, and closes.
            let left = self.writer.queue.iter().chain(&self.writer.waiting);
            let len = |action: &Action| if let Action::Append(data) = action { data.len() as u64 } else { 0 };
            appended + left.map(len).sum::<u64>()
        };
        // What was there before stays until more is durable.
        self.world.held = self.world.held.max(there);
        assert!(self.world.held >= self.world.reported, "what was reported is lost");
        // Whatever becomes of the process, somebody tries again.
        self.world.now += self.world.dice.ms(10_000);
    }
}

fn live(seed: u64) {
    let mut dice = Dice(seed);
    let settings = Settings {
        synchronous: dice.one_in(2),
        report_flush: !dice.one_in(4),
        status_interval: [None, Some(SECOND), Some(10 * SECOND)][dice.below(3) as usize],
        sender_timeout: [None, Some(60 * SECOND)][dice.below(2) as usize],
        ..settings()
    };
    let now = Instant::now();
    let mut world = World { dice, settings, now, held: 0, reported: 0, log: 0 };
    for _session in 0..1 + world.dice.below(4) {
        let mut conversation = Conversation::new(&mut world);
        let violation = conversation.run();
        conversation.over(violation);
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// P1: whatever a server, a link and a disk do, what is reported is durable, nothing is late, nothing spins, and
/// it comes to an end.
#[test]
fn p1_receivers_keep_the_promises_whatever_the_seed() {
    let seeds: Vec<u64> = match number("WALHOLD_SEED") {
        Some(seed) => vec![seed],
        None => FOUND.into_iter().chain(0..number("WALHOLD_SEEDS").unwrap_or(USUAL)).collect(),
    };
    for seed in seeds {
        if let Err(why) = std::panic::catch_unwind(|| live(seed)) {
            eprintln!("again: WALHOLD_SEED={seed} cargo test --lib receive::machine::tests::seeds");
            std::panic::resume_unwind(why);
        }
    }
}
