//! A server of WAL made by hand, a receiver without its connection, and what must be found on the
//! disk after a power cut.

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use walhold::archive::{
    Archive, ArchiveError, Compressor, Durable, ResumeError, Resumption, Stopped, WalName, WriteError, Writer, Wrote,
};
use walhold::codec::{self, Codec, Packing};
use walhold::disk::{Access, Disk, DiskError, Simulated, Trouble};
use walhold::wal::{Chain, History, HistoryFile, Lsn, Pos, Seed, Segment, SegmentSize, TimelineId};

use crate::wal::Log;

pub(crate) const SIZE: u64 = 1 << 20;
pub(crate) const START: u64 = 3 * SIZE;
pub(crate) const SYSTEM: u64 = 77;

/// What the mixes of all tests are made from. `WALHOLD_SEED` takes its place.
pub(crate) fn seed() -> u64 {
    number("WALHOLD_SEED").unwrap_or(20_261_122)
}

pub(crate) fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// How many power cuts of each state are looked at, besides the corners: as many as an ordinary run takes, or
/// `WALHOLD_IMAGES` if that is more.
pub(crate) fn images(usual: u64) -> u64 {
    number("WALHOLD_IMAGES").unwrap_or(usual).max(usual)
}

/// Of `count` things each, or some where there are more than `most`, unless all images are wanted.
pub(crate) fn some_of(count: usize, most: usize) -> impl Iterator<Item = usize> {
    let step = if number("WALHOLD_IMAGES").is_some() { 1 } else { 1 + count / most };
    (1 + Dice(seed()).below(step as u64) as usize..=count).step_by(step)
}

/// What a check says of a disk that it finds.
pub(crate) type Found = Result<(), Box<dyn std::error::Error>>;

/// Cuts the power after each operation from the `first` one on, and has looked at what is left, and at what a kill
/// leaves. A check is told how many operations there had been.
pub(crate) fn cut_off(disk: &Simulated, first: usize, mixes: u64, check: &mut dyn FnMut(usize, &Simulated) -> Found) {
    let only = number("WALHOLD_CUT");
    for (k, disk) in disk.prefixes().enumerate().skip(first) {
        if only.is_some_and(|only| only != k as u64) {
            continue;
        }
        for found in disk.crash_images(seed() ^ k as u64, images(mixes)).chain([disk.after(0)]) {
            // It says where it comes from, whatever is done to it.
            let origin = format!("{found:?}");
            if let Err(why) = check(k, &found) {
                panic!("{why}\n  {origin}\n  again: {}", again(seed(), Some(k)));
            }
        }
    }
}

/// How a test is run again.
pub(crate) fn again(seed: u64, cut: Option<usize>) -> String {
    let images = number("WALHOLD_IMAGES").map_or_else(String::new, |images| format!(" WALHOLD_IMAGES={images}"));
    let cut = cut.map_or_else(String::new, |cut| format!(" WALHOLD_CUT={cut}"));
    let thread = std::thread::current();
    format!("WALHOLD_SEED={seed}{cut}{images} cargo test --test proto -- {}", thread.name().unwrap_or_default())
}

/// The seeds of what is made at random as a whole: those with which something was `found`, and new ones.
pub(crate) fn seeds(found: &[u64]) -> impl Iterator<Item = u64> {
    let first = seed();
    let count = number("WALHOLD_SEEDS").unwrap_or(1);
    found.iter().copied().chain(first..first.saturating_add(count))
}

/// The same numbers for the same seed (SplitMix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

pub(crate) fn size() -> SegmentSize {
    SegmentSize::new(SIZE).unwrap()
}

pub(crate) fn tli(id: u32) -> TimelineId {
    TimelineId::new(id).unwrap()
}

pub(crate) fn at(lsn: u64) -> Pos {
    Pos::new(TimelineId::FIRST, Lsn::new(lsn))
}

fn segment(pos: Pos) -> Segment {
    Segment::containing(pos, size())
}

/// What a server would send from the start of segment 3 on.
pub(crate) struct Server {
    /// Of timeline 1, and of timeline 2 if there is one, which begins with a copy.
    logs: Vec<Vec<u8>>,
    /// Where timeline 2 forks.
    fork: Option<u64>,
    /// Other bytes that a complete segment may have: those that did not verify.
    pub(crate) bad: Option<(String, Vec<u8>)>,
}

impl Server {
    pub(crate) fn new(log: Log) -> Self {
        Self { logs: vec![log.bytes], fork: None, bad: None }
    }

    /// `second` is the whole of timeline 2 and what it shares with timeline 1.
    pub(crate) fn forked(first: Log, second: Log, fork: u64) -> Self {
        Self { logs: vec![first.bytes, second.bytes], fork: Some(fork), bad: None }
    }

    pub(crate) fn log(&self, tli: TimelineId) -> &[u8] {
        &self.logs[tli.get() as usize - 1]
    }

    pub(crate) fn newest(&self) -> TimelineId {
        tli(self.logs.len() as u32)
    }

    /// Exclusive end of what is sent of a timeline.
    pub(crate) fn end(&self, tli: TimelineId) -> u64 {
        match self.fork {
            Some(fork) if tli == TimelineId::FIRST => fork,
            _ => START + self.log(tli).len() as u64,
        }
    }

    /// How many bytes of a file matter: behind a fork the old timeline's may be there or not.
    fn counts(&self, name: &str) -> usize {
        match (WalName::parse(name, size()), self.fork) {
            (Some(WalName::Segment { segment, partial: true, .. }), Some(fork)) if segment.tli() < self.newest() => {
                (fork - segment.start().get()) as usize
            }
            _ => usize::MAX,
        }
    }

    pub(crate) fn end_pos(&self) -> Pos {
        Pos::new(self.newest(), Lsn::new(self.end(self.newest())))
    }

    fn history_content(&self) -> Vec<u8> {
        format!("1\t{}\tno recovery target specified\n", Lsn::new(self.fork.unwrap())).into_bytes()
    }

    pub(crate) fn history(&self, tli: TimelineId) -> History {
        if tli == TimelineId::FIRST {
            return History::first();
        }
        History::parse(tli, &self.history_content()).unwrap()
    }
}

/// A log with small records at its start, large ones, one that covers a segment's end, a switch and
/// a little more; two segments and a half.
pub(crate) fn log() -> Log {
    let mut log = Log::new(START, SIZE, 1, SYSTEM);
    for n in 0..40_usize {
        log.record(10, 0, &vec![n as u8 | 1; n * 131 % 700 + 1]);
    }
    for n in 0..60_usize {
        log.record(10, 0, &vec![n as u8 | 1; n * 7919 % 30_000 + 1]);
    }
    log.record(10, 0, &vec![9; 900_000]);
    let left = SIZE - log.at() % SIZE;
    log.record(10, 0, &vec![1; left as usize - 12_000]);
    log.switch();
    for n in 0..30_usize {
        log.record(10, 0, &vec![n as u8 | 1; n * 7919 % 20_000 + 1]);
    }
    log
}

/// A position called durable, and how many operations had been made when it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ack {
    pub(crate) operations: usize,
    pub(crate) pos: Pos,
}

/// How WAL arrives.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    /// Bytes appended at once, at most.
    pub(crate) slice: u64,
    /// Appends before it is settled.
    pub(crate) settle: u64,
    /// Waits before each of the first settles until the next segment has been made ready.
    pub(crate) slow: bool,
}

/// Large pieces, and a sync at the end.
pub(crate) const BULK: Pace = Pace { slice: 400_000, settle: u64::MAX, slow: false };

#[derive(Debug, Error)]
pub(crate) enum Failed {
    #[error(transparent)]
    Resume(#[from] ResumeError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("the settled end is {0:?}, not what was appended")]
    End(Option<Durable>),
}

impl Failed {
    pub(crate) fn trouble(&self) -> Option<Trouble> {
        match self {
            Self::Resume(ResumeError::Archive(ArchiveError::Disk(e)))
            | Self::Archive(ArchiveError::Disk(e))
            | Self::Write(WriteError::Archive(ArchiveError::Disk(e))) => Some(e.trouble()),
            _ => None,
        }
    }
}

/// The disk, the folder on it, and what was promised of it.
pub(crate) struct World {
    pub(crate) disk: Simulated,
    /// How many operations set it up.
    made: usize,
    pub(crate) acks: Vec<Ack>,
}

pub(crate) fn dir() -> PathBuf {
    PathBuf::from("/wal")
}

thread_local! {
    static WAY: Cell<Way> = const { Cell::new(Way::Plain) };
}

/// How a receiver writes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    Plain,
    /// As `pg_receivewal --compress` does.
    Live(Packing),
    /// Compressed what the server has whole, and plain what it has not.
    CatchingUp(Packing),
}

/// From here on this test's receivers write so.
pub(crate) fn receive_as(way: Way) {
    WAY.set(way);
}

pub(crate) fn archive(disk: &Simulated) -> Archive {
    let archive = Archive::new(dir(), Arc::new(disk.clone()), size(), Some(SYSTEM), 0o600);
    match WAY.get() {
        Way::Plain => archive,
        Way::Live(packing) => archive.compressed_live(packing),
        Way::CatchingUp(packing) => {
            let compressor = Compressor::start(&archive, packing, |_| {}).unwrap();
            // What is left plain stays so.
            compressor.abandon();
            archive.compressed_by(&compressor)
        }
    }
}

impl World {
    /// A disk with an empty folder.
    pub(crate) fn new(alignment: usize) -> Self {
        let disk = Simulated::new(alignment);
        let _ = disk.make_dir(&dir(), 0o700).unwrap();
        Self { made: disk.operations(), disk, acks: Vec::new() }
    }

    /// A disk as it was found, with all before `acked` acknowledged.
    pub(crate) fn at(disk: Simulated, acked: Option<Pos>) -> Self {
        let acks = acked.map(|pos| Ack { operations: 0, pos }).into_iter().collect();
        Self { made: disk.operations(), disk, acks }
    }

    /// Puts a file there that has long been durable.
    pub(crate) fn put(&mut self, name: &str, bytes: &[u8]) {
        let (temporary, path) = (dir().join("put"), dir().join(name));
        let mut file = self.disk.create(&temporary, 0o600).unwrap();
        file.write_at(0, bytes).unwrap();
        let _ = self.disk.publish(file, &temporary, &path).unwrap();
        self.made = self.disk.operations();
    }

    /// All before `lsn` on timeline 1 counts as acknowledged from here on.
    pub(crate) fn acknowledged(&mut self, lsn: u64) {
        self.acks.push(Ack { operations: self.disk.operations(), pos: at(lsn) });
    }

    /// A process that receives from where the archive ends up to `upto`, and is killed there.
    pub(crate) fn receive(&mut self, server: &Server, upto: u64, pace: Pace, dice: &mut Dice) -> Result<(), Failed> {
        receive(&self.disk, &mut self.acks, server, upto, pace, dice)
    }

    /// The newest position promised by the time of that many operations.
    pub(crate) fn acked(&self, operations: usize) -> Option<Pos> {
        let told = self.acks.iter().filter(|ack| ack.operations <= operations);
        told.map(|ack| ack.pos).max_by_key(|pos| (pos.lsn(), pos.tli()))
    }

    /// Cuts the power after each of the operations, and checks what is found.
    pub(crate) fn cut_everywhere(&self, server: &Server, mixes: u64) {
        let mut judge = Judge::new(server);
        cut_off(&self.disk, self.made, mixes, &mut |k, found| {
            let acked = self.acked(k);
            judge.recovers(found, acked).map_err(|why| format!("{why}\n  acknowledged: {acked:?}").into())
        });
    }
}

/// Looks at what a power cut has left.
pub(crate) struct Judge<'a> {
    server: &'a Server,
    expected: Files,
    /// What the images that have been gone on with held: the same need not be done again.
    seen: HashSet<Vec<(String, usize, u32)>>,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(server: &'a Server) -> Self {
        Self { server, expected: undisturbed(server), seen: HashSet::new() }
    }

    /// Fails unless all before `acked` is there, and receiving goes on as if nothing had happened.
    pub(crate) fn must_recover(&mut self, image: &Simulated, acked: Option<Pos>) {
        self.must_recover_from(seed(), image, acked);
    }

    /// The same of what was made from another seed.
    pub(crate) fn must_recover_from(&mut self, seed: u64, image: &Simulated, acked: Option<Pos>) {
        if let Err(why) = self.recovers(image, acked) {
            panic!("{why}\n  acknowledged: {acked:?}\n  {image:?}\n  again: {}", again(seed, None));
        }
    }

    fn recovers(&mut self, disk: &Simulated, acked: Option<Pos>) -> Result<(), String> {
        let found = files(disk, &dir()).map_err(|e| e.to_string())?;
        let sum = |(name, bytes): (&String, &Vec<u8>)| (name.clone(), bytes.len(), crc32c::crc32c(bytes));
        let new = self.seen.insert(found.iter().map(sum).collect());
        final_names_are_whole(&found, self.server)?;
        opens_at_its_end(disk, self.server, acked)?;
        if new { goes_on(disk, self.server, &self.expected) } else { Ok(()) }
    }
}

pub(crate) fn receive(
    disk: &Simulated,
    acks: &mut Vec<Ack>,
    server: &Server,
    upto: u64,
    pace: Pace,
    dice: &mut Dice,
) -> Result<(), Failed> {
    let archive = archive(disk);
    archive.sweep()?;
    let held = archive.resume(None)?;
    let first = || archive.begin(&History::first(), segment(at(START)));
    let mut resumption = held.map_or_else(first, Ok)?;
    loop {
        let tli = resumption.start.tli();
        let end = server.end(tli);
        if resumption.start.lsn().get() < end.min(upto) {
            append(disk, acks, server.log(tli), resumption, end.min(upto), pace, dice)?;
        } else {
            drop(resumption);
        }
        if tli == server.newest() || end > upto {
            return Ok(());
        }
        let next = server.newest();
        let history = archive.store_history(next, &server.history_content())?;
        resumption = archive.begin(&history, segment(Pos::new(next, Lsn::new(end))))?;
    }
}

/// Appends from the writer's position on, and notes what is called durable and when.
pub(crate) fn append(
    disk: &Simulated,
    acks: &mut Vec<Ack>,
    log: &[u8],
    resumption: Resumption,
    upto: u64,
    pace: Pace,
    dice: &mut Dice,
) -> Result<(), Failed> {
    let mut writer = resumption.writer;
    let (mut appends, mut pauses) = (0, 0);
    let mut settled = None;
    while writer.at().lsn().get() < upto {
        let from = writer.at().lsn().get();
        let to = upto.min(from + 1 + dice.below(pace.slice));
        let bytes = &log[(from - START) as usize..(to - START) as usize];
        // Whether the server has more than this, the writer hears now and then.
        writer.expect(Lsn::new(if dice.below(2) == 0 { upto } else { to }));
        let appended = writer.append(bytes, &mut |wrote| {
            if let Wrote::Complete(_, durable) = wrote {
                acks.push(Ack { operations: disk.operations(), pos: durable.pos() });
            }
        });
        if let Err(e) = appended {
            if let WriteError::Archive(_) = e {
                assert_stays_failed(&mut writer);
            }
            return Err(e.into());
        }
        appends += 1;
        if appends % pace.settle == 0 || to == upto {
            let behind = writer.complete_behind(&mut |wrote| {
                if let Wrote::Complete(_, durable) = wrote {
                    acks.push(Ack { operations: disk.operations(), pos: durable.pos() });
                }
            });
            if let Err(e) = behind {
                assert_stays_failed(&mut writer);
                return Err(e.into());
            }
            if pace.slow && pauses < 2 {
                std::thread::sleep(Duration::from_millis(550));
                pauses += 1;
            }
            settled = match writer.settle() {
                Err(e) => {
                    assert_stays_failed(&mut writer);
                    return Err(e.into());
                }
                Ok(settled) => settled,
            };
            acks.extend(settled.map(|durable| Ack { operations: disk.operations(), pos: durable.pos() }));
            if pace.slow && pauses < 2 {
                // The thread that makes the next segment ready.
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
    match settled {
        Some(durable) if durable.pos().lsn().get() != upto => Err(Failed::End(settled)),
        _ => Ok(()),
    }
}

/// A sync that failed is not to be had by asking again.
fn assert_stays_failed(writer: &mut Writer) {
    let again = writer.settle();
    assert!(!matches!(again, Ok(Some(_))), "durable after a failed sync: {again:?}");
}

/// Names and contents of a folder.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

pub(crate) fn files(disk: &dyn Disk, dir: &Path) -> Result<Files, DiskError> {
    let mut files = Files::new();
    for entry in disk.list(dir)? {
        let name = entry.name.into_string().unwrap();
        let bytes = content(disk, &dir.join(&name))?;
        files.insert(name, bytes);
    }
    Ok(files)
}

/// What a file's bytes stand for: all of it, or what decodes of a partial.
fn decoded(name: &str, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let Some(WalName::Segment { codec, partial, .. }) = WalName::parse(name, size()) else {
        return Ok(bytes.to_vec());
    };
    let (mut data, mut piece) = (Vec::new(), [0; 1000]);
    let mut decoder = match codec::reader(codec, bytes) {
        Ok(decoder) => decoder,
        Err(_) if partial => return Ok(data),
        Err(e) => return Err(format!("{name}: {e}")),
    };
    loop {
        match decoder.read(&mut piece) {
            Ok(0) => return Ok(data),
            Ok(n) => data.extend(&piece[..n]),
            Err(_) if partial => return Ok(data),
            Err(e) => return Err(format!("{name}: {e}")),
        }
    }
}

/// The same folder with nothing compressed; where a segment is there twice, the plain one counts.
fn as_plain(files: Files) -> Result<Files, String> {
    let mut plain = Files::new();
    for (name, bytes) in files {
        let bytes = decoded(&name, &bytes)?;
        let codecs = Codec::ALL.into_iter().filter(|codec| *codec != Codec::Plain);
        let name = codecs.fold(name, |name, codec| name.replace(codec.suffix(), ""));
        plain.entry(name).or_insert(bytes);
    }
    Ok(plain)
}

pub(crate) fn content(disk: &dyn Disk, path: &Path) -> Result<Vec<u8>, DiskError> {
    let file = disk.open(path, Access::Read)?;
    let mut bytes = vec![0; usize::try_from(file.size()?).unwrap()];
    let n = file.read_at(0, &mut bytes)?;
    bytes.truncate(n);
    Ok(bytes)
}

/// What the folder holds when all came in one go.
pub(crate) fn undisturbed(server: &Server) -> Files {
    let mut world = World::new(1);
    world.receive(server, u64::MAX, BULK, &mut Dice(1)).unwrap();
    files(&world.disk, &dir()).unwrap()
}

macro_rules! ensure {
    ($that:expr, $($why:tt)*) => {
        if !$that {
            return Err(format!($($why)*));
        }
    };
}
pub(crate) use ensure;

fn text(e: impl std::error::Error) -> String {
    format!("an error: {e}")
}

/// All before `acked` is there before and after the archive is opened, and it goes on behind it.
fn opens_at_its_end(disk: &Simulated, server: &Server, acked: Option<Pos>) -> Result<(), String> {
    if let Some(acked) = acked {
        holds(disk, server, acked)?;
    }
    let archive = archive(disk);
    archive.sweep().map_err(text)?;
    let resumption = archive.resume(None).map_err(text)?;
    if let Some(Resumption { start, old, .. }) = &resumption {
        // What will not be asked for is there.
        holds(disk, server, *start)?;
        if let Some(acked) = acked.filter(|acked| acked.tli() == start.tli()) {
            let sent = &server.log(acked.tli())[..(acked.lsn().get() - START) as usize];
            let touched = START + sent.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
            ensure!(old.is_some_and(|old| old.touched.get() >= touched), "what is held is {old:?}");
        }
    }
    let start = resumption.map(|resumption| resumption.start);
    if let Some(acked) = acked {
        ensure!(start.is_some_and(|start| start.tli() >= acked.tli()), "going on at {start:?}");
        holds(disk, server, acked).map_err(|why| format!("after the archive was opened: {why}"))?;
    }
    Ok(())
}

/// The rest comes, and nothing shows of what has happened.
fn goes_on(disk: &Simulated, server: &Server, expected: &Files) -> Result<(), String> {
    let mut acks = Vec::new();
    receive(disk, &mut acks, server, u64::MAX, BULK, &mut Dice(1)).map_err(text)?;
    let last = acks.last().map(|ack| ack.pos);
    ensure!(last.is_none_or(|last| last == server.end_pos()), "the end is {last:?}");
    let (found, expected) = (as_plain(files(disk, &dir()).map_err(text)?)?, &as_plain(expected.clone())?);
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    ensure!(names(&found) == names(expected), "in the end there are {:?}, not {:?}", names(&found), names(expected));
    for (name, bytes) in &found {
        let counts = server.counts(name).min(bytes.len());
        ensure!(bytes.len() == expected[name].len(), "in the end {name} has {} bytes", bytes.len());
        ensure!(bytes[..counts] == expected[name][..counts], "in the end {name} differs");
    }
    Ok(())
}

/// Every byte before `acked` is there, and the records are valid.
pub(crate) fn holds(disk: &Simulated, server: &Server, acked: Pos) -> Result<(), String> {
    let archive = archive(disk);
    let (route, log) = (server.history(acked.tli()), server.log(acked.tli()));
    let mut lsn = Lsn::new(START);
    while lsn < acked.lsn() {
        let segment = route.segment_at(lsn, size());
        let opened = archive.open_segment(segment, Access::Read).map_err(|e| e.to_string())?;
        let Some(mut reader) = opened else { return Err(format!("{segment} is missing")) };
        let end = segment.end().min(acked.lsn());
        while lsn < end {
            let bytes = reader.fill().map_err(|e| e.to_string())?;
            let n = bytes.len().min((end - lsn) as usize);
            ensure!(n > 0, "{segment} ends at {lsn}");
            let from = (lsn.get() - START) as usize;
            if bytes[..n] != log[from..from + n] {
                let same = bytes[..n].iter().zip(&log[from..]).take_while(|(a, b)| a == b).count();
                return Err(format!("{segment} differs at {}", lsn.saturating_add(same as u64)));
            }
            reader.consume(n);
            lsn = lsn.saturating_add(n as u64);
        }
    }
    let seed = Seed { start: Lsn::new(START), size: size(), system_id: Some(SYSTEM), newest_tli: acked.tli() };
    let stopped = archive.walk(&route, &mut Chain::new(seed), acked.lsn(), &mut |_| {}).map_err(|e| e.to_string())?;
    ensure!(stopped == Stopped::Reached, "the records end: {stopped:?}");
    Ok(())
}

/// What bears a final name is complete, and no segment of a timeline is there before its history.
fn final_names_are_whole(files: &Files, server: &Server) -> Result<(), String> {
    for (name, bytes) in files {
        let bytes = &decoded(name, bytes)?;
        match WalName::parse(name, size()) {
            Some(WalName::Segment { segment, partial, .. }) => {
                let history = HistoryFile(segment.tli()).name();
                let first = segment.tli() == TimelineId::FIRST;
                ensure!(first || files.contains_key(&history), "{name} is there without {history}");
                let from = (segment.start().get() - START) as usize;
                let sent = server.log(segment.tli()).get(from..from + SIZE as usize);
                let bad = server.bad.as_ref().is_some_and(|(of, bad)| of == name && bad == bytes);
                ensure!(partial || bad || sent == Some(bytes), "{name} is not whole");
            }
            Some(WalName::History(..)) => ensure!(*bytes == server.history_content(), "{name} is not whole"),
            Some(WalName::Gap(_)) | None => {}
        }
    }
    Ok(())
}
