//! Who writes to a repository, as its lock names it.

use std::fmt;

use super::RepositoryError;

/// A process that writes WAL to a repository.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// What for.
    pub task: Task,
    /// Its process number.
    pub process: u32,
    /// Its machine: a repository may be on shared storage.
    pub host: String,
}

/// What a repository is written for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    /// To receive for as long as it is told to.
    Receive,
    /// To bring one backup's WAL, and to end then.
    Backup,
}

impl Task {
    const ALL: [Self; 2] = [Self::Receive, Self::Backup];

    const fn word(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Backup => "backup",
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "walhold {}, process {} on {}", self.task.word(), self.process, self.host)
    }
}

impl Holder {
    /// Reads what another process has written; `None` if it was none of ours.
    fn parse(note: &str) -> Option<Self> {
        let (command, place) = note.strip_prefix("walhold ")?.split_once(", process ")?;
        let (process, host) = place.split_once(" on ")?;
        let task = Task::ALL.into_iter().find(|task| task.word() == command)?;
        Some(Self { task, process: process.parse().ok()?, host: host.to_owned() })
    }
}

impl RepositoryError {
    /// Who holds the repository, if that is what is in the way and it has said so.
    pub fn holder(&self) -> Option<Holder> {
        match self {
            Self::Locked(e) => e.holder().and_then(Holder::parse),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        for task in Task::ALL {
            let holder = Holder { task, process: 4711, host: "db on 1".into() };
            assert_eq!(Holder::parse(&holder.to_string()), Some(holder));
        }
        let others = [
            "",
            "another process",
            "walhold drill, process 1 on a",
            "walhold backup",
            "walhold backup, process x on a",
        ];
        for note in others {
            assert_eq!(Holder::parse(note), None, "{note}");
        }
    }
}
