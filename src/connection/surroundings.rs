//! What a connection takes from the process that it is made in, and from its machine.

use std::path::PathBuf;

/// Looks up an environment variable.
pub type Variable = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What a connection may take from the process it is made in.
pub struct Surroundings {
    /// An environment variable's value.
    pub variable: Variable,
    /// The operating system's name for the user.
    pub user: Option<String>,
    /// The user's home directory.
    pub home: Option<PathBuf>,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        let account = Account::of_this_user();
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        Self {
            // What is not UTF-8 is made an odd value, to be refused, rather than none.
            variable: Box::new(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())),
            user: account.as_ref().map(|account| account.name.clone()),
            home: home.or_else(|| account.map(|account| account.home)),
        }
    }
}

/// A line of `/etc/passwd`.
struct Account {
    name: String,
    home: PathBuf,
}

impl Account {
    fn of_this_user() -> Option<Self> {
        Self::of(rustix::process::geteuid().as_raw())
    }

    fn of(uid: u32) -> Option<Self> {
        let uid = uid.to_string();
        let accounts = std::fs::read_to_string("/etc/passwd").ok()?;
        accounts.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            let home = (fields.nth(1)? == uid).then(|| fields.nth(2)).flatten()?;
            Some(Self { name, home: home.into() })
        })
    }
}

/// The name of a user of this machine.
pub(crate) fn user_name(uid: u32) -> Option<String> {
    Account::of(uid).map(|account| account.name)
}
