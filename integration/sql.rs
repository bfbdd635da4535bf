//! A session in the simple query protocol over a unix socket: some builds of the server come
//! without psql, and what matters here is the moment when a commit is acknowledged.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use postgres_protocol::message::frontend;

/// Rows of text columns; `None` is NULL.
pub(crate) type Rows = Vec<Vec<Option<String>>>;

/// A connection without password.
#[derive(Debug)]
pub(crate) struct Session {
    stream: UnixStream,
    received: BytesMut,
    patience: Duration,
    stop: Arc<AtomicBool>,
}

impl Session {
    /// Connects to the server that listens in `directory`.
    ///
    /// # Errors
    /// What the system or the server says.
    pub(crate) fn open(directory: &Path, port: u16, user: &str, database: &str) -> Result<Self, String> {
        let stream = UnixStream::connect(directory.join(format!(".s.PGSQL.{port}"))).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(Duration::from_millis(100))).map_err(|e| e.to_string())?;
        let mut session =
            Self { stream, received: BytesMut::new(), patience: Duration::from_secs(120), stop: Arc::default() };
        let mut startup = BytesMut::new();
        let parameters = [("user", user), ("database", database), ("application_name", "test")];
        frontend::startup_message(parameters, &mut startup).map_err(|e| e.to_string())?;
        session.stream.write_all(&startup).map_err(|e| e.to_string())?;
        session.until_ready()?;
        Ok(session)
    }

    /// Gives up waiting for an answer once the flag is set.
    pub(crate) fn stop_at(mut self, flag: Arc<AtomicBool>) -> Self {
        self.stop = flag;
        self
    }

    /// Runs statements; an `Ok` is the server's acknowledgement of the commit.
    ///
    /// # Errors
    /// What the system or the server says. What became of the statements is unknown then.
    pub(crate) fn run(&mut self, sql: &str) -> Result<Rows, String> {
        let mut query = BytesMut::new();
        frontend::query(sql, &mut query).map_err(|e| e.to_string())?;
        self.stream.write_all(&query).map_err(|e| e.to_string())?;
        self.until_ready()
    }

    fn until_ready(&mut self) -> Result<Rows, String> {
        let end = Instant::now() + self.patience;
        let (mut rows, mut error) = (Vec::new(), None);
        loop {
            match next_message(&mut self.received) {
                None => self.receive(end).map_err(|e| error.take().unwrap_or_else(|| e.to_string()))?,
                Some((b'Z', _)) => return error.map_or(Ok(rows), Err),
                Some((b'D', row)) => rows.push(columns(row)),
                Some((b'E', body)) => error = Some(words(&body)),
                Some(_) => {}
            }
        }
    }

    fn receive(&mut self, end: Instant) -> io::Result<()> {
        let mut chunk = [0; 16 << 10];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.received.extend_from_slice(&chunk[..n]);
                    return Ok(());
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if self.stop.load(Ordering::Relaxed) || Instant::now() > end {
                        return Err(ErrorKind::TimedOut.into());
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }
}

/// One message: its tag and its body.
type Message = (u8, BytesMut);

fn next_message(received: &mut BytesMut) -> Option<Message> {
    let length = usize::try_from(u32::from_be_bytes(received.get(1..5)?.try_into().ok()?)).ok()?;
    (received.len() > length).then(|| {
        let mut whole = received.split_to(length + 1);
        let tag = whole[0];
        (tag, whole.split_off(5))
    })
}

fn columns(mut row: BytesMut) -> Vec<Option<String>> {
    let count = row.get_u16();
    let column = |_| {
        let length = usize::try_from(row.get_i32()).ok()?;
        Some(String::from_utf8_lossy(&row.split_to(length)).into_owned())
    };
    (0..count).map(column).collect()
}

/// Severity, SQLSTATE and message of an error.
fn words(body: &[u8]) -> String {
    let fields = body.split(|b| *b == 0).filter(|f| matches!(f.first(), Some(b'S' | b'C' | b'M')));
    let texts: Vec<_> = fields.map(|f| String::from_utf8_lossy(&f[1..]).into_owned()).collect();
    texts.join(" ")
}
