//! Values of pg_basebackup's flags, with its messages.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use super::super::pg_compress::{Method, Specification, split};
use super::super::pg_words::Refusal;
use crate::basebackup::{ClientCompression, Sync};
use crate::protocol::{BackupTarget, Checkpoint, ServerCompression};

/// The most threads that the zstd library takes.
const MOST_WORKERS: i32 = 256;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    Plain,
    Tar,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wal {
    None,
    Fetch,
    Stream,
}

/// Who compresses.
pub(super) enum Compression {
    Ours(Option<ClientCompression>),
    Servers(ServerCompression),
}

/// Not looked at: what a server can do only it knows.
pub(super) fn servers(text: &str) -> Compression {
    let (name, detail) = split(text);
    Compression::Servers(ServerCompression { name: name.to_owned(), detail: detail.map(str::to_owned) })
}

pub(super) fn ours(text: &str) -> Result<Option<ClientCompression>, String> {
    let Specification { method, level, workers, long } = Specification::parse(text)?;
    let small = level.and_then(|level| u8::try_from(level).ok());
    Ok(match method {
        Method::None => None,
        Method::Gzip => Some(ClientCompression::Gzip { level: small }),
        Method::Lz4 => Some(ClientCompression::Lz4 { level: small }),
        Method::Zstd => {
            let workers = workers.unwrap_or(0);
            let threads = u32::try_from(workers).ok().filter(|_| workers <= MOST_WORKERS);
            let wrong = || format!("could not set compression worker count to {workers}: Parameter is out of bound");
            let workers = threads.ok_or_else(wrong)?;
            Some(ClientCompression::Zstd { level, workers, long: long.unwrap_or(false) })
        }
    })
}

pub(super) fn backup_target(text: String) -> BackupTarget {
    match text.split_once(':') {
        Some((name, detail)) => BackupTarget { name: name.to_owned(), detail: Some(detail.to_owned()) },
        None => BackupTarget { name: text, detail: None },
    }
}

pub(super) fn format(text: &str) -> Result<Format, Refusal> {
    match text {
        "p" | "plain" => Ok(Format::Plain),
        "t" | "tar" => Ok(Format::Tar),
        _ => Err(Refusal::Value(format!("invalid output format \"{text}\", must be \"plain\" or \"tar\""))),
    }
}

pub(super) fn checkpoint(text: &str) -> Result<Checkpoint, Refusal> {
    match text.to_ascii_lowercase().as_str() {
        "fast" => Ok(Checkpoint::Fast),
        "spread" => Ok(Checkpoint::Spread),
        _ => Err(Refusal::Value(format!("invalid checkpoint argument \"{text}\", must be \"fast\" or \"spread\""))),
    }
}

pub(super) fn wal_method(text: &str) -> Result<Wal, Refusal> {
    match text {
        "n" | "none" => Ok(Wal::None),
        "f" | "fetch" => Ok(Wal::Fetch),
        "s" | "stream" => Ok(Wal::Stream),
        _ => Err(Refusal::Value(format!(
            "invalid wal-method option \"{text}\", must be \"fetch\", \"stream\", or \"none\""
        ))),
    }
}

pub(super) fn sync_method(text: &str) -> Result<Sync, Refusal> {
    match text {
        "fsync" => Ok(Sync::Fsync),
        "syncfs" => Ok(Sync::Syncfs),
        _ => Err(Refusal::Value(format!("unrecognized sync method: {text}"))),
    }
}

/// `OLD=NEW`; `\=` stands for an equals sign in a path.
pub(super) fn mapping(value: &OsStr) -> Result<(PathBuf, PathBuf), Refusal> {
    let refused = |message: String| Err(Refusal::Value(message));
    let mut paths = vec![Vec::new()];
    let mut bytes = value.as_bytes().iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let escaped = byte == b'\\' && bytes.next_if_eq(&b'=').is_some();
        match paths.last_mut() {
            Some(path) if escaped => path.push(b'='),
            Some(path) if byte != b'=' => path.push(byte),
            _ => paths.push(Vec::new()),
        }
    }
    let mut paths = paths.into_iter().map(|bytes| PathBuf::from(OsString::from_vec(bytes)));
    match (paths.next().unwrap_or_default(), paths.next(), paths.next()) {
        (_, _, Some(_)) => refused("multiple \"=\" signs in tablespace mapping".to_owned()),
        (old, Some(new), None) if !old.as_os_str().is_empty() && !new.as_os_str().is_empty() => {
            for (which, path) in [("old", &old), ("new", &new)] {
                if path.is_relative() {
                    let path = path.display();
                    return refused(format!("{which} directory is not an absolute path in tablespace mapping: {path}"));
                }
            }
            Ok((canonical(&old), canonical(&new)))
        }
        _ => refused(format!(
            "invalid tablespace mapping format \"{}\", must be \"OLDDIR=NEWDIR\"",
            value.to_string_lossy()
        )),
    }
}

/// Without doubled and trailing slashes, `.` and `..`, as far as the text tells.
pub(super) fn canonical(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => _ = plain.pop(),
            other => plain.push(other),
        }
    }
    plain
}
