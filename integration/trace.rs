//! What a power cut would leave, told from the system calls that a program made.
//!
//! `strace` writes down each call with all its bytes. From that, the files are followed in two
//! states: what the kernel holds, and what survives. A byte survives once a sync of its file that
//! began after the write has returned; a name, once a sync of its directory has. Whoever learns
//! something (a status message to the server) learns it when the call that sends it begins.

use std::collections::HashMap;
use std::path::Path;

use crate::room::Room;

/// One call, in the order in which things became so.
#[derive(Debug)]
pub(crate) enum Event {
    /// Bytes are on their way into a socket.
    Sent(Vec<u8>),
    /// A write into a file begins.
    Writes { path: String, at: u64, bytes: Vec<u8> },
    /// What was done to files is now so.
    Done(Change),
}

/// A change in what the kernel holds, or in what survives.
#[derive(Debug)]
pub(crate) enum Change {
    Created(String),
    Written {
        path: String,
        at: u64,
        bytes: Vec<u8>,
    },
    Renamed(String, String),
    Removed(String),
    SyncBegun(String),
    Synced(String),
    /// What the kernel had of the file since the last sync may be gone, and no later sync brings it back.
    SyncFailed(String),
    AllSyncBegun,
    AllSynced,
}

/// Files as the kernel holds them and as they would survive.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    files: Vec<File>,
    held: HashMap<String, usize>,
    surviving: HashMap<String, usize>,
    syncs: HashMap<String, Sync>,
    all: Option<(Vec<usize>, HashMap<String, usize>)>,
}

#[derive(Debug, Default)]
struct File {
    writes: Vec<(u64, Vec<u8>)>,
    /// So many of the writes survive, and have made this.
    synced: usize,
    surviving: Vec<u8>,
    failed: bool,
}

/// What a sync that has begun will have made durable when it returns.
#[derive(Debug)]
enum Sync {
    Writes(usize, usize),
    Names(HashMap<String, usize>),
}

impl Fate {
    /// All that is in a folder survives.
    pub(crate) fn holding(folder: &Path) -> Self {
        let mut fate = Self::default();
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let surviving = std::fs::read(&path).unwrap();
            let name = path.to_str().unwrap().to_owned();
            fate.files.push(File { surviving, ..File::default() });
            fate.held.insert(name.clone(), fate.files.len() - 1);
            fate.surviving.insert(name, fate.files.len() - 1);
        }
        fate
    }

    /// Follows one change.
    pub(crate) fn follow(&mut self, change: &Change) {
        match change {
            Change::Created(path) => {
                self.files.push(File::default());
                self.held.insert(path.clone(), self.files.len() - 1);
            }
            Change::Written { path, at, bytes } => {
                if let Some(file) = self.held.get(path) {
                    self.files[*file].writes.push((*at, bytes.clone()));
                }
            }
            Change::Renamed(from, to) => {
                if let Some(file) = self.held.remove(from) {
                    self.held.insert(to.clone(), file);
                }
            }
            Change::Removed(path) => {
                // It may vanish at any moment from now on, synced or not.
                self.held.remove(path);
                self.surviving.remove(path);
            }
            Change::SyncBegun(path) => {
                let sync = match self.held.get(path) {
                    Some(file) => Sync::Writes(*file, self.files[*file].writes.len()),
                    None => Sync::Names(names_in(&self.held, path)),
                };
                self.syncs.insert(path.clone(), sync);
            }
            Change::Synced(path) => match self.syncs.remove(path) {
                Some(Sync::Writes(file, count)) => self.files[file].keep(count),
                Some(Sync::Names(names)) => {
                    self.surviving.retain(|name, _| parent(name) != *path);
                    self.surviving.extend(names);
                }
                None => {}
            },
            Change::SyncFailed(path) => {
                if let (Some(Sync::Writes(file, _)), Some(_)) = (self.syncs.remove(path), self.held.get(path)) {
                    self.files[file].failed = true;
                }
            }
            Change::AllSyncBegun => {
                let counts = self.files.iter().map(|file| file.writes.len()).collect();
                self.all = Some((counts, self.held.clone()));
            }
            Change::AllSynced => {
                let Some((counts, names)) = self.all.take() else { return };
                self.files.iter_mut().zip(counts).for_each(|(file, count)| file.keep(count));
                self.surviving = names;
            }
        }
    }

    /// What a file would hold after a power cut now; `None` if its name would not be there.
    pub(crate) fn survives(&self, path: &str) -> Option<&[u8]> {
        self.surviving.get(path).map(|file| &self.files[*file].surviving[..])
    }
}

impl File {
    fn keep(&mut self, count: usize) {
        while self.synced < count && !self.failed {
            let (at, bytes) = &self.writes[self.synced];
            let at = usize::try_from(*at).unwrap();
            if self.surviving.len() < at + bytes.len() {
                self.surviving.resize(at + bytes.len(), 0);
            }
            self.surviving[at..at + bytes.len()].copy_from_slice(bytes);
            self.synced += 1;
        }
    }
}

fn names_in(held: &HashMap<String, usize>, directory: &str) -> HashMap<String, usize> {
    held.iter().filter(|(name, _)| parent(name) == directory).map(|(name, file)| (name.clone(), *file)).collect()
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// The words before a command that write its calls into `file`. The command stays our child.
pub(crate) fn strace(room: &Room, file: &Path) -> std::process::Command {
    let mut command = room.command("strace");
    command.args(["-D", "-f", "-y", "-xx", "-s", "4194304", "-o"]).arg(file).arg("-e");
    command.arg(
        "trace=openat,open,creat,fsync,fdatasync,sync_file_range,syncfs,rename,renameat,renameat2,link,linkat,unlink,unlinkat,\
         write,pwrite64,writev,pwritev,pwritev2,sendto,sendmsg,sendmmsg,io_uring_enter",
    );
    command
}

/// Reads what strace wrote.
pub(crate) fn events(text: &str) -> Vec<Event> {
    let mut events = Vec::new();
    let mut open_calls: HashMap<&str, String> = HashMap::new();
    for line in text.lines() {
        let (pid, rest) = line.split_once(' ').expect("a process number");
        let rest = rest.trim_start();
        if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
            begins(begun, &mut events);
            open_calls.insert(pid, begun.to_owned());
        } else if let Some(end) = rest.strip_prefix("<... ") {
            let (_, result) = end.split_once(" resumed>").expect("a resumed call");
            let begun = open_calls.remove(pid).expect("the call that is resumed");
            ends(&(begun + result), &mut events);
        } else if !rest.starts_with("+++") && !rest.starts_with("---") {
            begins(rest, &mut events);
            ends(rest, &mut events);
        }
    }
    events
}

fn begins(call: &str, events: &mut Vec<Event>) {
    let (name, arguments) = parts(call);
    match name {
        "sendto" | "write" | "writev" if is_socket(arguments) => events.push(Event::Sent(bytes(arguments))),
        "pwrite64" => {
            events.push(Event::Writes { path: fd_path(arguments), at: offset(call), bytes: bytes(arguments) })
        }
        "fsync" | "fdatasync" => events.push(Event::Done(Change::SyncBegun(fd_path(arguments)))),
        "openat" | "rename" | "renameat" | "renameat2" | "unlink" | "unlinkat" => {}
        "syncfs" => events.push(Event::Done(Change::AllSyncBegun)),
        // A call in which the program was killed before anything could be told of it.
        "???" => {}
        // To standard error, the program's own wakers, and so on.
        "write" if arguments.starts_with("2<") || !arguments.contains(&hex("/wal/")) => {}
        "sendto" | "sendmsg" | "sendmmsg" if !is_socket(arguments) => {}
        other => panic!("a call that this test does not follow: {other}: {}", &call[..call.len().min(300)]),
    }
}

fn ends(call: &str, events: &mut Vec<Event>) {
    let (name, arguments) = parts(call);
    // Killed in the middle: the kernel finishes a change that it has begun. A sync proves nothing then.
    let killed = result(call).starts_with('?');
    if result(call).starts_with('-') && matches!(name, "fsync" | "fdatasync") {
        events.push(Event::Done(Change::SyncFailed(fd_path(arguments))));
    }
    if result(call).starts_with('-') || killed && name.contains("sync") {
        return;
    }
    let change = match name {
        "openat" if arguments.contains("O_CREAT") => Change::Created(result_path(call)),
        "pwrite64" => Change::Written { path: fd_path(arguments), at: offset(call), bytes: bytes(arguments) },
        "fsync" | "fdatasync" => Change::Synced(fd_path(arguments)),
        "syncfs" => Change::AllSynced,
        "rename" | "renameat" | "renameat2" => {
            let mut names = strings(arguments);
            Change::Renamed(names.next().unwrap(), names.next().unwrap())
        }
        "unlink" | "unlinkat" => Change::Removed(strings(arguments).next().unwrap()),
        _ => return,
    };
    events.push(Event::Done(change));
}

fn parts(call: &str) -> (&str, &str) {
    call.split_once('(').unwrap_or((call, ""))
}

/// What stands after the last `) = `.
fn result(call: &str) -> &str {
    call.rsplit_once(" = ").map_or("", |(_, result)| result)
}

/// `3<\x2f...>` at the beginning of the arguments.
fn fd_path(arguments: &str) -> String {
    let inside = arguments.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(path, _)| path);
    text(inside)
}

fn is_socket(arguments: &str) -> bool {
    let path = fd_path(arguments);
    path.starts_with("socket:") || path.starts_with("UNIX") || path.starts_with("TCP")
}

fn result_path(call: &str) -> String {
    fd_path(result(call))
}

/// The quoted strings among the arguments, decoded.
fn strings(arguments: &str) -> impl Iterator<Item = String> {
    arguments.split('"').skip(1).step_by(2).map(text)
}

/// The buffers among the arguments, one after the other.
fn bytes(arguments: &str) -> Vec<u8> {
    assert!(!arguments.contains("\"..."), "strace has cut a buffer short");
    arguments.split('"').skip(1).step_by(2).flat_map(decode).collect()
}

/// The last argument of pwrite64, with or without a result after it.
fn offset(call: &str) -> u64 {
    let arguments = call.rsplit_once(" = ").map_or(call, |(arguments, _)| arguments).trim_end().trim_end_matches(')');
    arguments.rsplit_once(", ").unwrap().1.parse().expect("an offset")
}

fn text(hex: &str) -> String {
    String::from_utf8(decode(hex)).unwrap()
}

fn decode(hex: &str) -> Vec<u8> {
    let digit = |b: u8| (b as char).to_digit(16).unwrap() as u8;
    hex.as_bytes().chunks_exact(4).map(|c| digit(c[2]) << 4 | digit(c[3])).collect()
}

fn hex(text: &str) -> String {
    text.bytes().map(|b| format!("\\x{b:02x}")).collect()
}
