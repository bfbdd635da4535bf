//! A proxy that does to a connection what networks do: it delays, throttles, cuts, falls silent, and flips bits.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

use super::frames::Frames;

/// Pieces of at most [`PIECE`] bytes that are on their way in one direction of a connection.
const ON_THE_WAY: usize = 256;
const PIECE: usize = 8 << 10;
/// How often a thread that waits looks whether its connection is still wanted.
const LOOK: Duration = Duration::from_millis(20);

/// A direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    ToServer,
    ToClient,
}

pub(crate) const BOTH: &[Way] = &[Way::ToServer, Way::ToClient];

/// What one direction is like.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Weather {
    /// How long each byte is on its way.
    pub(crate) delay: Duration,
    /// Bytes a second that one connection gets; `None` as many as it can.
    pub(crate) rate: Option<u32>,
    /// Nothing passes, not even the end of a connection, and nothing is closed.
    pub(crate) silent: bool,
}

/// How a connection is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cut {
    /// Both ends get what had passed, and then the end of the stream.
    Close,
    /// Both ends get a reset.
    Reset,
}

/// What is done to a byte that a trap waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Harm {
    /// These bits of it are flipped.
    Flip(u8),
    /// The connection ends before it.
    Cut(Cut),
}

/// Which byte a trap waits for, among those that pass. All but the first need a connection without TLS,
/// and the way to the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Spot {
    Any,
    /// The type of a message.
    Tag,
    /// The length of a message.
    Length,
    /// What comes before the WAL in a message of WAL, or as far into any other.
    Head,
    /// WAL.
    Wal,
    /// The byte of WAL at this position.
    At(u64),
}

/// Waits for a byte.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trap {
    /// So many bytes pass before, on all connections together.
    pub(crate) skip: usize,
    pub(crate) spot: Spot,
    pub(crate) harm: Harm,
    /// It strikes each time that there is such a byte.
    pub(crate) lasting: bool,
}

/// Listens on a port of the loopback interface. Dropped, it lets go of all connections.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    server: u16,
    over: AtomicBool,
    links: Mutex<Vec<Weak<Link>>>,
    /// One for each direction.
    ways: [Mutex<State>; 2],
}

#[derive(Debug, Default)]
struct State {
    weather: Weather,
    passed: u64,
    trap: Option<Trap>,
    /// How often a trap has struck.
    struck: usize,
}

/// A connection, from both sides.
#[derive(Debug)]
struct Link {
    client: TcpStream,
    server: TcpStream,
    cut: AtomicBool,
}

impl Proxy {
    /// A proxy for a server at this port of the loopback interface.
    pub(crate) fn new(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared { server, over: false.into(), links: Mutex::default(), ways: Default::default() });
        let listening = shared.clone();
        let listener = std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if listening.over.load(Ordering::Relaxed) {
                    return;
                }
                // A server that is away is a connection that ends at once.
                if let Ok(server) = TcpStream::connect(("127.0.0.1", listening.server)) {
                    listening.join(client, server);
                }
            }
        });
        Self { port, shared, listener: Some(listener) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Makes these directions so, for connections that are there and those to come.
    pub(crate) fn weather(&self, ways: &[Way], weather: Weather) {
        for way in ways {
            self.state(*way).lock().unwrap().weather = weather;
        }
    }

    /// Cuts all connections; how many there were.
    pub(crate) fn cut(&self, how: Cut) -> usize {
        let links: Vec<_> = self.shared.links.lock().unwrap().drain(..).filter_map(|link| link.upgrade()).collect();
        let open = links.iter().filter(|link| !link.is_cut());
        open.map(|link| link.cut(how)).count()
    }

    /// Sets a trap, in place of the one before.
    pub(crate) fn set(&self, way: Way, trap: Trap) {
        self.state(way).lock().unwrap().trap = Some(trap);
    }

    /// Takes the trap of this direction away.
    pub(crate) fn unset(&self, way: Way) {
        self.state(way).lock().unwrap().trap = None;
    }

    /// How often traps of this direction have struck.
    pub(crate) fn struck(&self, way: Way) -> usize {
        self.state(way).lock().unwrap().struck
    }

    /// Bytes that have passed in this direction.
    pub(crate) fn passed(&self, way: Way) -> u64 {
        self.state(way).lock().unwrap().passed
    }

    fn state(&self, way: Way) -> &Mutex<State> {
        &self.shared.ways[way as usize]
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.cut(Cut::Reset);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.listener.take().unwrap().join();
    }
}

impl Shared {
    fn join(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        for socket in [&client, &server] {
            socket.set_nodelay(true).unwrap();
            socket.set_read_timeout(Some(LOOK)).unwrap();
            socket.set_write_timeout(Some(LOOK)).unwrap();
        }
        let link = Arc::new(Link { client, server, cut: false.into() });
        let mut links = self.links.lock().unwrap();
        links.retain(|link| link.strong_count() > 0);
        links.push(Arc::downgrade(&link));
        for way in [Way::ToServer, Way::ToClient] {
            let (pieces, queue) = sync_channel(ON_THE_WAY);
            let (taking, shared, bringing) = (link.clone(), self.clone(), link.clone());
            std::thread::spawn(move || taking.take(way, &pieces));
            std::thread::spawn(move || shared.bring(&bringing, way, &queue));
        }
    }

    /// Passes on what was taken; an empty piece is the end.
    fn bring(&self, link: &Link, way: Way, queue: &Receiver<(Instant, Vec<u8>)>) {
        let mut frames = Frames::default();
        while let Ok((taken, mut piece)) = queue.recv() {
            let Some(Weather { rate, .. }) = self.wait(link, way, taken) else { return };
            let whole = piece.len();
            let cut = self.spring(way, &mut frames, &mut piece);
            if piece.is_empty() && cut.is_none() {
                let _ = link.to(way).shutdown(Shutdown::Write);
                return;
            }
            let passed = link.write(way, &piece);
            if link.is_cut() {
                return;
            }
            if let Some(how) = cut.or_else(|| (!passed).then_some(Cut::Reset)) {
                return link.cut(how);
            }
            if let Some(rate) = rate {
                std::thread::sleep(Duration::from_secs_f64(whole as f64 / f64::from(rate)));
            }
        }
    }

    /// Waits until what was taken then has arrived; `None` if it never will.
    fn wait(&self, link: &Link, way: Way, taken: Instant) -> Option<Weather> {
        loop {
            let weather = self.ways[way as usize].lock().unwrap().weather;
            let early = (taken + weather.delay).saturating_duration_since(Instant::now());
            if link.is_cut() || self.over.load(Ordering::Relaxed) {
                return None;
            }
            if !weather.silent && early.is_zero() {
                return Some(weather);
            }
            std::thread::sleep(if weather.silent { LOOK } else { early.min(LOOK) });
        }
    }

    /// Counts what passes, and does what a trap is to do. If that is a cut, the piece ends there.
    fn spring(&self, way: Way, frames: &mut Frames, piece: &mut Vec<u8>) -> Option<Cut> {
        let mut state = self.ways[way as usize].lock().unwrap();
        let mut cut = None;
        let mut at = 0;
        while at < piece.len() && cut.is_none() {
            let part = frames.next(&piece[at..]);
            if let Some(trap) = &mut state.trap {
                let skipped = trap.skip.min(part.len);
                trap.skip -= skipped;
                if let Some(hit) = part.find(trap.spot, skipped) {
                    let Trap { harm, lasting, .. } = *trap;
                    state.struck += 1;
                    match harm {
                        Harm::Flip(bits) => piece[at + hit] ^= bits,
                        Harm::Cut(how) => {
                            piece.truncate(at + hit);
                            cut = Some(how);
                        }
                    }
                    state.trap = state.trap.filter(|_| lasting);
                }
            }
            at += part.len;
        }
        state.passed += piece.len() as u64;
        cut
    }
}

impl Link {
    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    /// The sockets are closed when the threads have noticed it.
    fn cut(&self, how: Cut) {
        for socket in [&self.client, &self.server] {
            let _ = match how {
                Cut::Close => socket.shutdown(Shutdown::Both),
                Cut::Reset => set_socket_linger(socket, Some(Duration::ZERO)).map_err(Into::into),
            };
        }
        self.cut.store(true, Ordering::Relaxed);
    }

    fn from(&self, way: Way) -> &TcpStream {
        if way == Way::ToServer { &self.client } else { &self.server }
    }

    fn to(&self, way: Way) -> &TcpStream {
        if way == Way::ToServer { &self.server } else { &self.client }
    }

    fn take(&self, way: Way, pieces: &SyncSender<(Instant, Vec<u8>)>) {
        let mut buffer = vec![0; PIECE];
        while !self.is_cut() {
            match self.from(way).read(&mut buffer) {
                Ok(n) => {
                    if pieces.send((Instant::now(), buffer[..n].to_vec())).is_err() || n == 0 {
                        return;
                    }
                }
                Err(e) if is_early(&e) => {}
                Err(_) => return self.cut(Cut::Reset),
            }
        }
    }

    /// Whether all of it was taken.
    fn write(&self, way: Way, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() && !self.is_cut() {
            match self.to(way).write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if is_early(&e) => {}
                Err(_) => return false,
            }
        }
        bytes.is_empty()
    }
}

fn is_early(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
