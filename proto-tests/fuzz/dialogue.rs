//! Both ends of a connection in one thread, and the files that a connection is made by.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use walhold::connection::{Conninfo, Flags, Purpose, Session, StreamEnd, Surroundings};
use walhold::wal::{Lsn, Pos, TimelineId};

/// In the place of this a server says the random number that the client has sent.
const NONCE: [u8; 24] = [b'N'; 24];
/// How long it is waited for, in a time that passes when all wait.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longer messages of the client are not waited for.
const MOST_SENT: usize = 4096;

struct Stage {
    runtime: Runtime,
    listener: UnixListener,
    folder: TempDir,
}

thread_local! {
    static STAGE: Stage = Stage::new();
}

impl Stage {
    fn new() -> Self {
        // What one side waits for in vain is over at once.
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let entered = runtime.enter();
        let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
        drop(entered);
        Self { runtime, listener, folder }
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }
}

/// Logs in to a server that says `script`, and talks with it if it lets us in.
pub(super) fn with_server(more: &str, passfile: Option<&[u8]>, script: &[u8]) {
    STAGE.with(|stage| {
        let folder = stage.folder.path().display();
        let passfile = passfile.map(|content| stage.file("passfile", content).display().to_string());
        let passfile = passfile.map(|path| format!("passfile={path}")).unwrap_or_default();
        let text = format!("host={folder} user=u sslmode=disable {more} {passfile}");
        let conninfo = conninfo(text, None).unwrap();
        stage.runtime.block_on(async {
            let server = async {
                let (socket, _) = stage.listener.accept().await.unwrap();
                // The client may have hung up before all is said.
                let _ = serve(socket, script).await;
            };
            tokio::join!(client(&conninfo), server)
        });
    });
}

/// Reads the settings of a service from a file with this content.
pub(super) fn with_service(content: &[u8]) {
    STAGE.with(|stage| {
        let path = stage.file("services", content).display().to_string();
        if let Ok(conninfo) = conninfo("service=s".to_owned(), Some(path)) {
            let _ = conninfo.target();
        }
    });
}

fn conninfo(text: String, services: Option<String>) -> Result<Conninfo, walhold::connection::ConninfoError> {
    let variable = move |name: &str| if name == "PGSERVICEFILE" { services.clone() } else { None };
    let surroundings = Surroundings { variable: Box::new(variable), user: Some("u".to_owned()), home: None };
    Conninfo::new(&Flags { conninfo: Some(text), ..Flags::default() }, &surroundings)
}

async fn client(conninfo: &Conninfo) {
    let Ok(mut session) = Session::connect(conninfo, Purpose::Replication, "walhold").await else { return };
    let _ = session.server_version();
    if session.identify_system().await.is_err() {
        return;
    }
    let start = Pos::new(TimelineId::FIRST, Lsn::new(0x300_0000));
    if session.start_replication(None, start).await.is_ok() {
        while session.next_stream().await.is_ok() {}
        let _: Result<StreamEnd, _> = session.end_stream().await;
    }
}

/// Says all of the script, with the client's random number in it, and then no more.
async fn serve(mut socket: UnixStream, script: &[u8]) -> std::io::Result<()> {
    let mut script = script.to_vec();
    let mut said = 0;
    if let Some(at) = script.windows(NONCE.len()).position(|window| window == NONCE) {
        socket.write_all(&script[..at]).await?;
        said = at;
        // A client that says none may wait for us.
        if let Ok(Some(nonce)) = timeout(PATIENCE, heard_nonce(&mut socket)).await.unwrap_or(Ok(None)) {
            script[at..at + NONCE.len()].copy_from_slice(&nonce);
        }
    }
    socket.write_all(&script[said..]).await?;
    socket.shutdown().await?;
    while socket.read(&mut [0; 512]).await? > 0 {}
    Ok(())
}

async fn heard_nonce(socket: &mut UnixStream) -> std::io::Result<Option<[u8; 24]>> {
    const BEFORE: &[u8] = b"n=,r=";
    let mut heard = Vec::new();
    while heard.len() < MOST_SENT && socket.read_buf(&mut heard).await? > 0 {
        let at = heard.windows(BEFORE.len()).position(|window| window == BEFORE);
        if let Some(nonce) = at.and_then(|at| heard[at + BEFORE.len()..].first_chunk()) {
            return Ok(Some(*nonce));
        }
    }
    Ok(None)
}
