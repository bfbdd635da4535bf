//! The password file: lines of `host:port:database:user:password`, where `*` stands for anything
//! and a backslash takes the meaning from the character after it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use secrecy::SecretString;
use tracing::warn;

/// More than this is not a password file.
const MAX_BYTES: u64 = 1 << 20;

/// What a line must match.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key<'a> {
    /// The host as it was given; `localhost` for the default socket directory.
    pub(super) host: &'a str,
    pub(super) port: u16,
    /// The database; `replication` for a replication connection.
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// The password for `key` in the file at `path`. A missing file has none; one that others may read
/// is passed over with a warning, as libpq does.
pub(super) fn password(path: &Path, key: Key<'_>) -> Option<SecretString> {
    let meta = fs::metadata(path).ok()?;
    if !meta.is_file() {
        warn!("password file {} is not a plain file and is not used", path.display());
        return None;
    }
    if meta.permissions().mode() & 0o077 != 0 {
        warn!("password file {} can be read by others and is not used; chmod 0600 it", path.display());
        return None;
    }
    match content(path) {
        Ok(content) => find(&content, key),
        Err(error) => {
            warn!("cannot read password file {}: {error}", path.display());
            None
        }
    }
}

fn content(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    // A line that is not UTF-8 cannot match what we look for; the others still can.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The first line that matches decides.
fn find(content: &str, key: Key<'_>) -> Option<SecretString> {
    let password = content.lines().find_map(|line| matching(line, key))?;
    (!password.is_empty()).then(|| SecretString::from(password))
}

fn matching(line: &str, key: Key<'_>) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let port = key.port.to_string();
    let mut rest = line;
    for wanted in [key.host, &port, key.database, key.user] {
        let (field, after) = field(rest)?;
        // Only a bare star is a wildcard; an escaped one is a name.
        let raw = rest.strip_suffix(after)?.strip_suffix(':')?;
        if raw != "*" && field != wanted {
            return None;
        }
        rest = after;
    }
    Some(unescape(rest))
}

/// The text up to the next colon that is not escaped, and what follows that colon.
fn field(line: &str) -> Option<(String, &str)> {
    let mut escaped = false;
    let mut chars = line.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ':' => return Some((unescape(line.get(..at)?), chars.as_str())),
            _ => {}
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        // A backslash at the very end stands for itself.
        out.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use secrecy::ExposeSecret;

    use super::*;

    const KEY: Key<'_> = Key { host: "db:1", port: 5432, database: "replication", user: "wal\\hold" };

    fn found(content: &str) -> Option<String> {
        find(content, KEY).map(|password| password.expose_secret().to_owned())
    }

    #[test]
    fn lines_match_by_name_wildcard_and_escape() {
        for (content, password) in [
            ("db\\:1:5432:replication:wal\\\\hold:secret", Some("secret")),
            ("*:*:*:*:any", Some("any")),
            ("*:*:*:*:with\\:colon\\\\", Some("with:colon\\")),
            ("*:*:*:*:plain:colon", Some("plain:colon")),
            ("*:*:*:*: spaces \r\n", Some(" spaces ")),
            ("# *:*:*:*:no\n\n*:5432:*:*:yes", Some("yes")),
            ("*:*:all:*:no\n*:*:replication:*:first\n*:*:*:*:second", Some("first")),
            ("*:*:*:*:\n*:*:*:*:no", None),
            ("\\*:*:*:*:no", None),
            ("*:5433:*:*:no", None),
            ("*:*:*:wal\\hold:no", None),
            ("*:*:*", None),
            ("", None),
        ] {
            assert_eq!(found(content).as_deref(), password, "{content:?}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        for (mode, used) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            let path = folder.path().join(format!("pgpass{mode:o}"));
            let mut options = fs::OpenOptions::new();
            #[allow(clippy::disallowed_methods, reason = "a test's own file")]
            let mut file = options.write(true).create_new(true).mode(0o600).open(&path).unwrap();
            std::io::Write::write_all(&mut file, b"*:*:*:*:secret\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(password(&path, KEY).is_some(), used, "{mode:o}");
        }
        assert!(password(&folder.path().join("missing"), KEY).is_none());
        assert!(password(folder.path(), KEY).is_none());
    }
}
