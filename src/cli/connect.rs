//! Connection flags, and asking for a password.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;

use clap::Args;
use jiff::Timestamp;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use secrecy::SecretString;

use super::Failure;
use crate::connection::{Conninfo, ConninfoError, Flags, Purpose, Session, Surroundings};
use crate::disk::{Disk, Real};
use crate::receive::{ReceiveError, Upstream};
use crate::repository::{Repository, RepositoryError};

/// As in PostgreSQL's own programs.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Connection options")]
pub(super) struct ConnectionFlags {
    /// Connection string (key=value or URI)
    #[arg(short, long, value_name = "CONNSTR", env = "WALHOLD_DBNAME")]
    pub(super) dbname: Option<String>,
    /// Server host, or directory of its socket; several with commas
    #[arg(short = 'h', long, env = "WALHOLD_HOST")]
    pub(super) host: Option<String>,
    /// Server port; one, or one for each host
    #[arg(short, long, env = "WALHOLD_PORT")]
    pub(super) port: Option<String>,
    /// Role to connect as
    #[arg(short = 'U', long, value_name = "NAME", env = "WALHOLD_USERNAME")]
    pub(super) username: Option<String>,
    /// Never ask for a password
    #[arg(short = 'w', long, conflicts_with = "password")]
    pub(super) no_password: bool,
    /// Ask for a password at once
    #[arg(short = 'W', long)]
    pub(super) password: bool,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum NotConnected {
    /// What the flags and variables say cannot be used.
    Conninfo(ConninfoError),
    /// Nobody could be asked for a password.
    Prompt(Failure),
    /// The server cannot be reached, or does not let us in.
    Receive(ReceiveError),
}

impl From<NotConnected> for Failure {
    fn from(e: NotConnected) -> Self {
        match e {
            NotConnected::Conninfo(e) => e.into(),
            NotConnected::Prompt(failure) => failure,
            NotConnected::Receive(e) => e.into(),
        }
    }
}

impl ConnectionFlags {
    /// Whether any flag or variable of ours says which server; those of libpq alone do not count.
    pub(super) fn name_a_server(&self) -> bool {
        self.dbname.is_some() || self.host.is_some() || self.port.is_some() || self.username.is_some()
    }

    /// An SQL session, asking for a password as [`ConnectionFlags::connect`] does.
    pub(super) async fn session(&self, application_name: &str) -> Result<Session, Failure> {
        let mut conninfo = self.conninfo()?;
        let name = conninfo.application_name().unwrap_or(application_name).to_owned();
        if self.password {
            let prompt = usual_prompt(&conninfo);
            conninfo = with_password(conninfo, prompt).await?;
        }
        match Session::connect(&conninfo, Purpose::Sql, &name).await {
            Err(e) if e.is_password_missing() && !self.no_password && std::io::stdin().is_terminal() => {
                let prompt = usual_prompt(&conninfo);
                let conninfo = with_password(conninfo, prompt).await?;
                Ok(Session::connect(&conninfo, Purpose::Sql, &name).await?)
            }
            connected => Ok(connected?),
        }
    }

    fn conninfo(&self) -> Result<Conninfo, ConninfoError> {
        let flags = Flags {
            conninfo: self.dbname.clone(),
            host: self.host.clone(),
            port: self.port.clone(),
            user: self.username.clone(),
            password: None,
        };
        Conninfo::new(&flags, &Surroundings::of_this_process())
    }

    /// Connects, asking for a password if the server wants one and somebody is there to be asked.
    /// What was asked is kept for later connections. Gives the application name, too.
    pub(super) async fn connect(&self, application_name: &str) -> Result<(Conninfo, Upstream, String), Failure> {
        Ok(self.connect_asking(application_name, usual_prompt).await?)
    }

    /// [`ConnectionFlags::connect`] with another prompt.
    pub(super) async fn connect_asking(
        &self,
        application_name: &str,
        prompt: impl Fn(&Conninfo) -> String,
    ) -> Result<(Conninfo, Upstream, String), NotConnected> {
        let mut conninfo = self.conninfo().map_err(NotConnected::Conninfo)?;
        let name = conninfo.application_name().unwrap_or(application_name).to_owned();
        let ask = async |conninfo: Conninfo| {
            let prompt = prompt(&conninfo);
            with_password(conninfo, prompt).await.map_err(NotConnected::Prompt)
        };
        if self.password {
            conninfo = ask(conninfo).await?;
        }
        match Upstream::connect(&conninfo, &name).await {
            Ok(upstream) => Ok((conninfo, upstream, name)),
            Err(ReceiveError::Connect(e))
                if e.is_password_missing() && !self.no_password && std::io::stdin().is_terminal() =>
            {
                let conninfo = ask(conninfo).await?;
                let upstream = Upstream::connect(&conninfo, &name).await.map_err(NotConnected::Receive)?;
                Ok((conninfo, upstream, name))
            }
            Err(e) => Err(NotConnected::Receive(e)),
        }
    }
}

/// A repository that is written to, and what was there before this command.
pub(super) struct Opened {
    pub(super) repository: Repository,
    made: bool,
    dir_made: bool,
}

/// Opens the repository of the server's cluster, or makes it.
pub(super) fn repository(upstream: &Upstream, dir: &Path) -> Result<Opened, Failure> {
    let disk: Arc<dyn Disk> = Arc::new(Real::new());
    let dir_made = disk.metadata(dir)?.is_none();
    let made = matches!(
        Repository::open(dir, Arc::clone(&disk)),
        Err(RepositoryError::NoSuchDirectory(_) | RepositoryError::NotARepository(_))
    );
    let group = upstream.file_mode & 0o040 != 0;
    let (system_id, size) = (upstream.system_id, upstream.segment_size);
    let repository = Repository::open_or_create(dir, disk, system_id, size, group, Timestamp::now())?;
    Ok(Opened { repository, made, dir_made })
}

impl Opened {
    /// After a failure: nothing is left of a repository that this command made and did not use.
    pub(super) fn clean_up(&self) {
        if !self.made {
            return;
        }
        let disk = self.repository.disk();
        let removed = self.repository.remove_if_unused();
        // The failure itself is what is told.
        let empty = removed.is_ok() && disk.list(self.repository.dir()).is_ok_and(|left| left.is_empty());
        if self.dir_made && empty {
            let _ = disk.remove_tree(self.repository.dir());
        }
    }
}

fn usual_prompt(conninfo: &Conninfo) -> String {
    format!("Password for user {}: ", conninfo.user())
}

/// Asks on the terminal, without showing what is typed. Ctrl-C ends it and shows what is typed again.
async fn with_password(conninfo: Conninfo, prompt: String) -> Result<Conninfo, Failure> {
    let (tell, asked) = tokio::sync::oneshot::channel();
    // A thread of its own: nobody waits for it if the answer is not wanted any more.
    std::thread::spawn(move || tell.send(ask(&prompt)));
    let interrupted = Failure::error("stopped at the password prompt").hint("use PGPASSWORD or ~/.pgpass");
    let answer = tokio::select! {
        answer = asked => answer.unwrap_or_else(|e| Err(std::io::Error::other(e))),
        _ = tokio::signal::ctrl_c() => {
            let _ = echo(true);
            super::complain(&"");
            return Err(interrupted);
        }
    };
    match answer {
        Ok(password) => Ok(conninfo.with_password(SecretString::from(password))),
        Err(e) => Err(Failure::error(format!("cannot ask for a password: {e}")).hint("use PGPASSWORD or ~/.pgpass")),
    }
}

fn ask(prompt: &str) -> std::io::Result<String> {
    let terminal = File::open("/dev/tty")?;
    let _ = write!(std::io::stderr(), "{prompt}");
    echo(false)?;
    let mut line = String::new();
    let read = BufReader::new(&terminal).read_line(&mut line);
    echo(true)?;
    super::complain(&"");
    read.map(|_| line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Whether the terminal shows what is typed.
fn echo(shown: bool) -> std::io::Result<()> {
    let terminal = File::open("/dev/tty")?;
    let mut modes = tcgetattr(&terminal)?;
    modes.local_modes.set(LocalModes::ECHO, shown);
    Ok(tcsetattr(&terminal, OptionalActions::Flush, &modes)?)
}
