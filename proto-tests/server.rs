//! A server that follows a script: it expects what it is told to expect, sends what it is told to
//! send, and panics, which fails the test, when the client says anything else.

use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::JoinHandle;
use walhold::connection::{ConnectError, Conninfo, Flags, Purpose, Session, Surroundings};

/// A socket of either kind, perhaps encrypted.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// A server on a port of its own; each script serves one connection, in order.
pub(crate) struct Server {
    pub(crate) address: String,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves one connection.
    pub(crate) async fn start<F: Future<Output = ()> + Send>(script: impl FnOnce(Peer) -> F + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move { script(Peer::accept(&listener).await).await });
        Self { address: format!("host=127.0.0.1 port={port}"), task }
    }

    /// Serves two connections, one after the other.
    pub(crate) async fn start_two<F: Future<Output = ()> + Send, G: Future<Output = ()> + Send>(
        first: impl FnOnce(Peer) -> F + Send + 'static,
        second: impl FnOnce(Peer) -> G + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            first(Peer::accept(&listener).await).await;
            second(Peer::accept(&listener).await).await;
        });
        Self { address: format!("host=127.0.0.1 port={port}"), task }
    }

    /// Serves as many connections as the script takes in.
    pub(crate) async fn serve<F: Future<Output = ()> + Send>(script: impl FnOnce(Door) -> F + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move { script(Door { listener }).await });
        Self { address: format!("host=127.0.0.1 port={port}"), task }
    }

    /// Serves one connection at a Unix socket in `folder`.
    pub(crate) fn start_unix<F: Future<Output = ()> + Send>(
        folder: &Path,
        script: impl FnOnce(Peer) -> F + Send + 'static,
    ) -> Self {
        let listener = UnixListener::bind(folder.join(".s.PGSQL.5432")).unwrap();
        let task = tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            script(Peer { socket: Box::new(socket), tcp: None }).await;
        });
        Self { address: format!("host={}", folder.display()), task }
    }

    /// A connection string for this server with more settings.
    pub(crate) fn conninfo(&self, more: &str) -> Conninfo {
        conninfo(&format!("{} user=tester {more}", self.address), None)
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> &str {
        self.address.rsplit('=').next().unwrap()
    }

    /// Logs in to a server whose script begins with [`Peer::log_in`].
    pub(crate) async fn session(&self) -> Session {
        Session::connect(&self.conninfo("sslmode=disable"), Purpose::Replication, "walhold").await.unwrap()
    }

    /// The error of an attempt to log in.
    pub(crate) async fn refusal(&self, more: &str) -> ConnectError {
        match Session::connect(&self.conninfo(more), Purpose::Replication, "walhold").await {
            Err(error) => error,
            Ok(_) => panic!("the login went through"),
        }
    }

    /// Lets nobody in any more.
    pub(crate) async fn end(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// Fails if the script has failed by then.
    pub(crate) async fn finish_within(self, limit: std::time::Duration) {
        if let Ok(Err(error)) = tokio::time::timeout(limit, self.task).await {
            std::panic::resume_unwind(error.into_panic());
        }
    }

    /// Waits for the script's end, and fails if it failed.
    pub(crate) async fn finish(self) {
        if let Err(error) = self.task.await {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// Where connections come in.
pub(crate) struct Door {
    listener: TcpListener,
}

impl Door {
    /// The next connection.
    pub(crate) async fn next(&mut self) -> Peer {
        Peer::accept(&self.listener).await
    }
}

/// A connection string in no environment at all, with this home directory.
pub(crate) fn conninfo(text: &str, home: Option<PathBuf>) -> Conninfo {
    let surroundings = Surroundings { variable: Box::new(|_| None), user: None, home };
    Conninfo::new(&Flags { conninfo: Some(text.to_owned()), ..Flags::default() }, &surroundings).unwrap()
}

/// Length 8, code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// The server's end of a connection.
pub(crate) struct Peer {
    socket: Box<dyn Socket>,
    /// Set until TLS takes the socket, or somebody speaks.
    tcp: Option<TcpStream>,
}

impl Peer {
    async fn accept(listener: &TcpListener) -> Self {
        let (socket, _) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket: Box::new(tokio::io::empty()), tcp: Some(socket) }
    }

    /// The connection as it comes in, for whoever takes it on from there.
    pub(crate) fn into_tcp(mut self) -> TcpStream {
        self.tcp.take().unwrap()
    }

    /// The connection after the client has asked for TLS, for whoever takes it on from there.
    pub(crate) async fn into_tls_request(mut self) -> TcpStream {
        let mut tcp = self.tcp.take().unwrap();
        let mut request = [0; 8];
        tcp.read_exact(&mut request).await.unwrap();
        assert_eq!(request, SSL_REQUEST);
        tcp
    }

    /// The connection after the client has asked for TLS and was told that it may have it.
    pub(crate) async fn into_tls_request_answered(self) -> TcpStream {
        let mut tcp = self.into_tls_request().await;
        tcp.write_all(b"S").await.unwrap();
        tcp
    }

    /// A peer at the other end of `socket`.
    pub(crate) fn over(socket: impl Socket + 'static) -> Self {
        Self { socket: Box::new(socket), tcp: None }
    }

    fn socket(&mut self) -> &mut dyn Socket {
        if let Some(tcp) = self.tcp.take() {
            self.socket = Box::new(tcp);
        }
        &mut *self.socket
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let socket = self.socket();
        socket.write_all(bytes.as_ref()).await.unwrap();
        socket.flush().await.unwrap();
    }

    /// Sends as much as the client takes before it hangs up; whether it took all.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> bool {
        let socket = self.socket();
        socket.write_all(bytes).await.is_ok() && socket.flush().await.is_ok()
    }

    /// Whether the client says anything more.
    pub(crate) async fn try_read(&mut self) -> bool {
        self.socket().read(&mut [0; 1000]).await.unwrap_or(0) > 0
    }

    pub(crate) async fn send_all<const N: usize>(&mut self, messages: [Vec<u8>; N]) {
        self.send(messages.concat()).await;
    }

    async fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.socket().read_exact(&mut bytes).await.unwrap();
        bytes
    }

    async fn read_length(&mut self) -> usize {
        let length = self.read(4).await;
        usize::try_from(u32::from_be_bytes(length.try_into().unwrap())).unwrap() - 4
    }

    /// A message of this type, and its body.
    pub(crate) async fn expect(&mut self, tag: u8) -> Vec<u8> {
        let got = self.read(1).await[0];
        let len = self.read_length().await;
        let body = self.read(len).await;
        assert_eq!(char::from(got), char::from(tag), "{:?}", String::from_utf8_lossy(&body));
        body
    }

    /// A message and its type; `None` if the client has hung up, perhaps after a goodbye.
    pub(crate) async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut tag = [0];
        if self.socket().read(&mut tag).await.unwrap_or(0) == 0 {
            return None;
        }
        let len = self.read_length().await;
        let body = self.read(len).await;
        (tag != *b"X").then_some((tag[0], body))
    }

    /// This command.
    pub(crate) async fn expect_query(&mut self, command: &str) {
        let body = self.expect(b'Q').await;
        assert_eq!(String::from_utf8_lossy(&body), format!("{command}\0"));
    }

    /// The request for TLS.
    pub(crate) async fn expect_ssl_request(&mut self) {
        assert_eq!(self.read(8).await, SSL_REQUEST);
    }

    /// The start-up message's settings, in order.
    pub(crate) async fn expect_startup(&mut self) -> Vec<(String, String)> {
        let len = self.read_length().await;
        let body = self.read(len).await;
        let body = body.strip_prefix(&[0, 3, 0, 0]).unwrap().strip_suffix(&[0, 0]).unwrap();
        let words: Vec<_> = body.split(|b| *b == 0).map(|word| String::from_utf8(word.to_vec()).unwrap()).collect();
        words.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
    }

    /// Whether a start-up message comes at all.
    pub(crate) async fn next_startup(&mut self) -> bool {
        let mut length = [0; 4];
        if self.socket().read_exact(&mut length).await.is_err() {
            return false;
        }
        let len = usize::try_from(u32::from_be_bytes(length)).unwrap() - 4;
        self.read(len).await;
        true
    }

    /// Waits until the client hangs up, saying nothing more than perhaps goodbye.
    pub(crate) async fn expect_close(&mut self) {
        let mut rest = Vec::new();
        // A reset is a way of hanging up too.
        let _ = self.socket().read_to_end(&mut rest).await;
        assert!(rest.is_empty() || rest == message(b'X', b""), "{rest:?}");
    }

    /// Lets the client in without a password, as a server of this version.
    pub(crate) async fn log_in(&mut self, version: &str) {
        self.expect_startup().await;
        self.send(accepted(version)).await;
    }
}

pub(crate) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 4).unwrap();
    [&[tag][..], &len.to_be_bytes(), body].concat()
}

/// An authentication message.
pub(crate) fn authentication(kind: u32, data: &[u8]) -> Vec<u8> {
    message(b'R', &[&kind.to_be_bytes(), data].concat())
}

pub(crate) fn parameter(name: &str, value: &str) -> Vec<u8> {
    message(b'S', format!("{name}\0{value}\0").as_bytes())
}

/// What follows a successful authentication, and AuthenticationOk itself.
pub(crate) fn accepted(version: &str) -> Vec<u8> {
    [
        authentication(0, b""),
        parameter("server_version", version),
        parameter("integer_datetimes", "on"),
        message(b'K', &[0; 8]),
        ready(),
    ]
    .concat()
}

pub(crate) fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

pub(crate) fn complete(tag: &str) -> Vec<u8> {
    message(b'C', format!("{tag}\0").as_bytes())
}

pub(crate) fn error(severity: &str, sqlstate: &str, text: &str) -> Vec<u8> {
    message(b'E', fields(severity, sqlstate, text).as_bytes())
}

pub(crate) fn notice(text: &str) -> Vec<u8> {
    message(b'N', fields("NOTICE", "00000", text).as_bytes())
}

fn fields(severity: &str, sqlstate: &str, text: &str) -> String {
    format!("S{severity}\0V{severity}\0C{sqlstate}\0M{text}\0\0")
}

/// A description of so many columns.
pub(crate) fn columns(count: u16) -> Vec<u8> {
    let mut body = count.to_be_bytes().to_vec();
    for column in 0..count {
        body.extend(format!("c{column}\0").bytes());
        body.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 255, 255, 255, 255, 255, 255, 0, 0]);
    }
    message(b'T', &body)
}

pub(crate) fn row(values: &[Option<&str>]) -> Vec<u8> {
    let mut body = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
    for value in values {
        match value {
            Some(text) => {
                body.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                body.extend(text.bytes());
            }
            None => body.extend([255; 4]),
        }
    }
    message(b'D', &body)
}

/// A result of one row, and the end of the command.
pub(crate) fn single_row(values: &[Option<&str>]) -> Vec<u8> {
    let count = u16::try_from(values.len()).unwrap();
    [columns(count), row(values), complete("SELECT"), ready()].concat()
}

pub(crate) fn copy_both() -> Vec<u8> {
    message(b'W', &[0, 0, 0])
}

pub(crate) fn copy_out() -> Vec<u8> {
    message(b'H', &[0, 0, 0])
}

pub(crate) fn copy_done() -> Vec<u8> {
    message(b'c', b"")
}

pub(crate) fn copy_data(bytes: &[u8]) -> Vec<u8> {
    message(b'd', bytes)
}

/// A piece of WAL in a stream.
pub(crate) fn wal(start: u64, data: &[u8]) -> Vec<u8> {
    let end = start + u64::try_from(data.len()).unwrap();
    copy_data(&[&b"w"[..], &start.to_be_bytes(), &end.to_be_bytes(), &1_i64.to_be_bytes(), data].concat())
}

pub(crate) fn keepalive(end: u64, reply_requested: bool) -> Vec<u8> {
    copy_data(&[&b"k"[..], &end.to_be_bytes(), &1_i64.to_be_bytes(), &[u8::from(reply_requested)]].concat())
}
