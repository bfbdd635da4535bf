//! A server of a test's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::room::{Room, SOON, wait_until};
use crate::sql::{Rows, Session};

/// How a server is made, where it differs from the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup<'a> {
    /// `--wal-segsize`: small ones end often.
    pub(crate) segment_mb: u32,
    /// Lines for postgresql.conf.
    pub(crate) settings: &'a [&'a str],
    /// Lines for the top of pg_hba.conf.
    pub(crate) hba: &'a [&'a str],
    /// A system identifier of its own; else all clusters of a run are copies of one.
    pub(crate) own_identity: bool,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self { segment_mb: 1, settings: &[], hba: &[], own_identity: false }
    }
}

/// How a server is told to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// `pg_ctl stop -m fast`: a shutdown checkpoint, sent to everyone who streams.
    Fast,
    /// `pg_ctl stop -m immediate`: as if it had crashed.
    Immediate,
}

/// A data directory and, while it runs, its server. Dropped, the server is stopped.
#[derive(Debug)]
pub(crate) struct Cluster<'a> {
    room: &'a Room,
    data: PathBuf,
    sockets: PathBuf,
    tcp_port: Option<u16>,
    /// The network namespace that it runs in, and its address there.
    place: Option<(String, &'static str)>,
    options: &'static [&'static str],
    server: Option<Child>,
}

impl<'a> Cluster<'a> {
    /// A running server with small segments and nothing in it.
    pub(crate) fn new(room: &'a Room, name: &str) -> Self {
        Self::with(room, name, &Setup::default())
    }

    /// A running server.
    pub(crate) fn with(room: &'a Room, name: &str, setup: &Setup<'_>) -> Self {
        let mut cluster = Self::at(room, name);
        if setup.own_identity {
            initdb(room, setup.segment_mb, &cluster.data);
        } else {
            let key = format!("{}-{}", room.server.major, setup.segment_mb);
            let template = room.template(&key, |data| initdb(room, setup.segment_mb, data));
            room.copy_tree(&template, &cluster.data);
        }
        cluster.configure(setup.settings);
        let hba = cluster.data.join("pg_hba.conf");
        let lines = setup.hba.join("\n") + "\n" + &fs::read_to_string(&hba).unwrap();
        room.write(&hba, lines);
        cluster.start();
        cluster
    }

    /// A server on a data directory that was restored. It is not started.
    pub(crate) fn restored(room: &'a Room, name: &str, data: PathBuf) -> Self {
        // It would wait for the standby of the server that it was copied from.
        let mut server = Self::at(room, name);
        (server.data, server.options) = (data, &["-c", "synchronous_standby_names="]);
        server
    }

    /// A restored server that goes on as the one that it was copied from did: its commits wait for the same
    /// standbys, from the next start.
    pub(crate) fn heed_settings(&mut self) {
        self.options = &[];
    }

    /// A running standby made from a copy of this server's files, which is stopped for that.
    pub(crate) fn standby(&mut self, name: &str) -> Self {
        self.configure(&["wal_keep_size = '64MB'"]); // no slot keeps what the standby has not got yet
        self.standby_with(name, &[])
    }

    /// The same, with settings of its own. It has no slots, as no copy of a server has.
    pub(crate) fn standby_with(&mut self, name: &str, settings: &[&str]) -> Self {
        self.stop(Stop::Fast);
        let mut standby = Self::at(self.room, name);
        self.room.copy_tree(&self.data, &standby.data);
        for slot in fs::read_dir(standby.data.join("pg_replslot")).unwrap() {
            fs::remove_dir_all(slot.unwrap().path()).unwrap();
        }
        self.room.write(&standby.data.join("standby.signal"), "");
        // The later of two primary_conninfo wins: an earlier standby's may have been copied.
        standby.configure(&[&format!("primary_conninfo = '{} application_name={name}'", self.conninfo())]);
        standby.configure(settings);
        self.start();
        standby.start();
        standby
    }

    fn at(room: &'a Room, name: &str) -> Self {
        let home = room.path(name);
        room.make_dir(&home);
        Self { room, data: home.join("data"), sockets: home, tcp_port: None, place: None, options: &[], server: None }
    }

    /// Adds lines to postgresql.conf; the last of a name wins.
    pub(crate) fn configure(&self, lines: &[&str]) {
        let path = self.data.join("postgresql.conf");
        let text = fs::read_to_string(&path).unwrap() + "\n" + &lines.join("\n") + "\n";
        self.room.write(&path, text);
    }

    /// Lets it listen on a TCP port of the loopback interface, from the next start.
    pub(crate) fn listen(&mut self) -> u16 {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        self.tcp_port = Some(port);
        port
    }

    /// Lets it listen at an address in a network namespace, from the next start.
    pub(crate) fn listen_in(&mut self, namespace: &str, address: &'static str) {
        (self.tcp_port, self.place) = (Some(5432), Some((namespace.to_owned(), address)));
    }

    /// Starts the server and waits until it answers.
    #[track_caller]
    pub(crate) fn start(&mut self) {
        self.launch();
        self.wait_for_answer();
    }

    /// Waits until it answers.
    #[track_caller]
    pub(crate) fn wait_for_answer(&mut self) {
        wait_until("the server to answer", Duration::from_secs(120), || {
            if let Some(status) = self.server.as_mut().unwrap().try_wait().unwrap() {
                panic!("the server ended with {status}:\n{}", self.log());
            }
            self.session().is_ok()
        });
    }

    /// Starts the server, which must give up by itself.
    #[track_caller]
    pub(crate) fn start_in_vain(&mut self) {
        self.launch();
        self.wait_for_end(Duration::from_secs(120));
    }

    /// Starts the server, which need not answer soon.
    pub(crate) fn launch(&mut self) {
        assert!(self.server.is_none(), "it runs already");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.sockets.join("log")).unwrap();
        let program = self.room.server.bin.join("postgres");
        let (mut command, address) = match &self.place {
            Some((namespace, address)) => (self.room.command_in(namespace, program), *address),
            None => (self.room.command(program), "127.0.0.1"),
        };
        // On the command line, where no file that was copied or restored can contradict.
        command.arg("-D").arg(&self.data).arg("-k").arg(&self.sockets);
        match self.tcp_port {
            Some(port) => command.args(["-h", address, "-p", &port.to_string()]),
            None => command.args(["-h", "", "-p", "5432"]),
        };
        command.args(self.options);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(command.spawn().unwrap());
    }

    /// Ends the server; how long that took.
    #[track_caller]
    pub(crate) fn stop(&mut self, how: Stop) -> Duration {
        let begun = Instant::now();
        self.signal(if how == Stop::Fast { Signal::INT } else { Signal::QUIT });
        self.wait_for_end(Duration::from_secs(90));
        begun.elapsed()
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub(crate) fn wait_for_end(&mut self, limit: Duration) {
        let end = Instant::now() + limit;
        while self.server.as_mut().expect("a running server").try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "the server did not end in {limit:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.server = None;
    }

    fn signal(&self, signal: Signal) {
        kill(self.server.as_ref().expect("a running server"), signal).unwrap();
    }

    /// Ends the server without mercy and removes its files, as a lost machine would.
    pub(crate) fn destroy(&mut self) {
        self.stop(Stop::Immediate);
        fs::remove_dir_all(&self.data).unwrap();
    }

    /// The same, and nothing is left of it.
    pub(crate) fn discard(mut self) {
        self.destroy();
        fs::remove_dir_all(&self.sockets).unwrap();
    }

    /// `kill -9` of the server and of every process that it has started.
    #[track_caller]
    pub(crate) fn kill_all(&mut self) {
        let mut server = self.server.take().expect("a running server");
        // Stopped, it starts no more of them.
        kill(&server, Signal::STOP).unwrap();
        for child in children(server.id()) {
            let _ = kill_process(child, Signal::KILL); // it may have ended by itself
        }
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// `kill -9` of one of its processes, which a query names. The server ends all others and recovers.
    #[track_caller]
    pub(crate) fn kill_one(&self, which: &str) {
        let pid = Pid::from_raw(self.sql(which).parse().unwrap()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
    }

    /// Whether it has been started, and not ended.
    pub(crate) fn is_started(&self) -> bool {
        self.server.is_some()
    }

    /// Ends a stopped server's timeline: it recovers what it has, and goes on with the next one.
    #[track_caller]
    pub(crate) fn start_on_next_timeline(&mut self) {
        self.configure(&["restore_command = 'false'"]);
        self.room.write(&self.data.join("recovery.signal"), "");
        self.start();
        self.wait_for_promotion();
    }

    /// Makes a standby a primary, and waits until it is.
    #[track_caller]
    pub(crate) fn promote(&self) {
        self.sql("select pg_promote(false)");
        self.wait_for_promotion();
    }

    /// Waits for the end of recovery.
    #[track_caller]
    pub(crate) fn wait_for_promotion(&self) {
        wait_until("the end of recovery", Duration::from_secs(120), || self.sql("select pg_is_in_recovery()") == "f");
    }

    /// Where its superuser comes in.
    pub(crate) fn door(&self) -> Door {
        Door { sockets: self.sockets.clone(), port: self.tcp_port.unwrap_or(5432) }
    }

    /// A new session of the superuser.
    ///
    /// # Errors
    /// When the server does not take one now.
    pub(crate) fn session(&self) -> Result<Session, String> {
        self.door().open()
    }

    /// Runs statements that must succeed; the rows.
    #[track_caller]
    pub(crate) fn rows(&self, sql: &str) -> Rows {
        let result = self.session().and_then(|mut s| s.run(sql));
        result.unwrap_or_else(|e| panic!("{sql}: {e}\n{}", self.log()))
    }

    /// Runs statements that must succeed; the first column of the first row, or nothing.
    #[track_caller]
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.rows(sql).into_iter().next().and_then(|row| row.into_iter().next().flatten()).unwrap_or_default()
    }

    /// How the superuser reaches it through the socket.
    pub(crate) fn conninfo(&self) -> String {
        format!("host={} port={} user=postgres", self.sockets.display(), self.tcp_port.unwrap_or(5432))
    }

    /// The folder of its socket.
    pub(crate) fn sockets(&self) -> &Path {
        &self.sockets
    }

    /// Its files.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Where its WAL is flushed up to.
    #[track_caller]
    pub(crate) fn flushed(&self) -> Lsn {
        lsn(&self.sql("select pg_current_wal_flush_lsn()"))
    }

    /// Ends the current segment, in which something is written first: an empty one would not end.
    #[track_caller]
    pub(crate) fn switch_segment(&self) {
        self.rows("select pg_logical_emit_message(false, 'test', 'x')");
        self.rows("select pg_switch_wal()");
    }

    /// Waits until nobody streams.
    #[track_caller]
    pub(crate) fn wait_for_no_receiver(&self) {
        wait_until("nobody to stream", SOON, || self.sql("select count(*) from pg_stat_replication") == "0");
    }

    /// Waits until no receiver streams, whatever standby does.
    #[track_caller]
    pub(crate) fn wait_for_no_walhold(&self) {
        let sql = "select count(*) from pg_stat_replication where application_name = 'walhold'";
        wait_until("no receiver to stream", SOON, || self.sql(sql) == "0");
    }

    /// Waits until the slot's position, which is what its receiver reported as flushed, has reached `target`.
    #[track_caller]
    pub(crate) fn wait_for_slot(&self, slot: &str, target: Lsn) {
        wait_until(&format!("slot {slot} to reach {target}"), SOON, || self.slot_position(slot) >= Some(target));
    }

    /// The slot's restart_lsn.
    #[track_caller]
    pub(crate) fn slot_position(&self, slot: &str) -> Option<Lsn> {
        let text = self.sql(&format!("select restart_lsn from pg_replication_slots where slot_name = '{slot}'"));
        (!text.is_empty()).then(|| lsn(&text))
    }

    /// Lets every commit wait for a standby of this name; an empty one lets none wait.
    #[track_caller]
    pub(crate) fn require_standby(&self, application: &str) {
        self.rows(&format!("alter system set synchronous_standby_names = '{application}'"));
        self.rows("select pg_reload_conf()");
        wait_until("the setting", SOON, || self.sql("show synchronous_standby_names") == application);
    }

    /// What the server has logged since it was made.
    pub(crate) fn whole_log(&self) -> String {
        fs::read_to_string(self.sockets.join("log")).unwrap_or_default()
    }

    /// The end of the server's log.
    pub(crate) fn log(&self) -> String {
        let text = self.whole_log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// A way to a server that may be down at the moment.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    sockets: PathBuf,
    port: u16,
}

impl Door {
    /// A new session of the superuser.
    ///
    /// # Errors
    /// When the server does not take one now.
    pub(crate) fn open(&self) -> Result<Session, String> {
        Session::open(&self.sockets, self.port, "postgres", "postgres")
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = kill(&server, Signal::QUIT);
            let _ = server.wait();
        }
    }
}

fn kill(child: &Child, signal: Signal) -> rustix::io::Result<()> {
    kill_process(Pid::from_child(child), signal)
}

/// The processes that this one has started, and that have not ended.
fn children(parent: u32) -> Vec<Pid> {
    let ids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name may have blanks and parentheses in it; state and parent come behind it.
        let parent_of = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        parent_of == Some(parent)
    };
    ids.filter(is_child).filter_map(Pid::from_raw).collect()
}

fn initdb(room: &Room, segment_mb: u32, data: &Path) {
    let mut command: Command = room.command(room.server.bin.join("initdb"));
    command.arg("-D").arg(data).args(["-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"]);
    command.arg(format!("--wal-segsize={segment_mb}"));
    room.must(&mut command);
    let path = data.join("postgresql.conf");
    let text = fs::read_to_string(&path).unwrap()
        + "\nfsync = off\nautovacuum = off\nmax_connections = 30\nshared_buffers = 16MB\nlog_line_prefix = '%m [%p] %q%a '\n";
    room.write(&path, text);
    assert_eq!(fs::metadata(data).unwrap().permissions().mode() & 0o777, 0o700);
}

/// A position in the WAL that is printed as the server does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Lsn(pub(crate) u64);

impl std::fmt::Display for Lsn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// Reads `16/B374D848`.
#[track_caller]
pub(crate) fn lsn(text: &str) -> Lsn {
    let parsed = text.split_once('/').and_then(|(high, low)| {
        Some(Lsn(u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?))
    });
    parsed.unwrap_or_else(|| panic!("not an LSN: {text:?}"))
}
