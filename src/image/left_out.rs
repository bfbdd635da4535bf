//! What a base backup leaves out, though it lies in the data directory (`basebackup.c`): what belongs to
//! the running server alone, and what recovery makes anew.

use std::collections::HashSet;

use super::MemberPath;

/// Directories of the data directory that a server finds empty.
const EMPTIED: [&str; 9] = [
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_wal",
    "pg_wal/archive_status",
];

/// Files of these names, wherever they lie.
const FILES: [&str; 8] = [
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "postmaster.pid",
    "postmaster.opts",
    ".DS_Store",
];

/// Names that begin so, wherever they lie.
const BEGINNINGS: [&str; 2] = ["pg_internal.init", "pgsql_tmp"];

/// The directories that are in a base backup without what lies in them, in an order in which they can be
/// made.
pub fn emptied() -> impl Iterator<Item = &'static str> {
    EMPTIED.into_iter()
}

/// Whether a file or directory is no part of a base backup, by its own name.
pub fn is_left_out(path: &MemberPath) -> bool {
    let name = path.file_name();
    FILES.iter().any(|file| name == file.as_bytes())
        || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning.as_bytes()))
}

/// Whether a link, or anything else that is neither file nor directory, cannot stand at this path of
/// the data directory without data missing from the copy.
pub fn holds_data(path: &MemberPath) -> bool {
    const NEEDED: [&[u8]; 7] =
        [b"base", b"global", b"pg_xact", b"pg_multixact", b"pg_commit_ts", b"pg_twophase", b"pg_logical"];
    let first = path.as_bytes().split(|byte| *byte == b'/').next().unwrap_or_default();
    NEEDED.contains(&first)
}

/// Whether the directory is that of one database: `base/5`, or `PG_17_202406281/5` of a tablespace.
pub fn is_of_database(dir: &MemberPath, in_tablespace: bool) -> bool {
    let mut parts = dir.as_bytes().split(|byte| *byte == b'/');
    let (above, oid) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let above = if in_tablespace { above.starts_with(b"PG_") } else { above == b"base" };
    above && !oid.is_empty() && oid.iter().all(u8::is_ascii_digit) && parts.next().is_none()
}

/// Of the names in the directory of a database, those whose content a recovery does not keep: of temporary
/// relations, and of unlogged ones all but the fork that they are made anew from.
pub fn relations_left_out<'a>(names: &[&'a [u8]]) -> HashSet<&'a [u8]> {
    let unlogged: HashSet<&[u8]> = names.iter().filter_map(|name| name.strip_suffix(b"_init")).collect();
    let goes = |name: &[u8]| match Relation::parse(name) {
        Some(Relation { temporary: true, .. }) => true,
        Some(Relation { number, initial: false, .. }) => unlogged.contains(number),
        _ => false,
    };
    names.iter().copied().filter(|name| goes(name)).collect()
}

/// The name of a relation's file.
struct Relation<'a> {
    number: &'a [u8],
    temporary: bool,
    initial: bool,
}

impl<'a> Relation<'a> {
    /// `16384`, `16384_vm`, `16384.1`; of a temporary one `t3_16384`.
    fn parse(name: &'a [u8]) -> Option<Self> {
        let (temporary, rest) = match name.strip_prefix(b"t") {
            Some(rest) => {
                let (_backend, rest) = digits(rest)?;
                (true, rest.strip_prefix(b"_")?)
            }
            None => (false, name),
        };
        let (number, rest) = digits(rest)?;
        let forks: [(&[u8], bool); 3] = [(b"_init", true), (b"_fsm", false), (b"_vm", false)];
        let fork = forks.iter().find_map(|(fork, initial)| Some((rest.strip_prefix(*fork)?, *initial)));
        let (rest, initial) = fork.unwrap_or((rest, false));
        let whole = match rest.strip_prefix(b".") {
            Some(segment) => digits(segment).is_some_and(|(_, rest)| rest.is_empty()),
            None => rest.is_empty(),
        };
        whole.then_some(Self { number, temporary, initial })
    }
}

/// At least one digit, and the rest.
fn digits(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    if end == 0 { None } else { text.split_at_checked(end) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> MemberPath {
        MemberPath::new(name.as_bytes()).unwrap()
    }

    #[test]
    fn files_of_the_running_server_are_left_out() {
        for name in
            ["postmaster.pid", "base/5/pg_internal.init.123", "base/pgsql_tmp", "a/b/pgsql_tmp1.2", "backup_label"]
        {
            assert!(is_left_out(&path(name)), "{name}");
        }
        for name in ["backup_label.old", "postmaster.pid2", "base/5/1259", "postgresql.auto.conf", "PG_VERSION"] {
            assert!(!is_left_out(&path(name)), "{name}");
        }
    }

    #[test]
    fn directories_of_databases() {
        for (dir, in_tablespace, is) in [
            ("base/5", false, true),
            ("base/5/x", false, false),
            ("base", false, false),
            ("base/x", false, false),
            ("global/5", false, false),
            ("PG_17_202406281/5", true, true),
            ("PG_17_202406281", true, false),
            ("base/5", true, false),
        ] {
            assert_eq!(is_of_database(&path(dir), in_tablespace), is, "{dir}");
        }
        assert!(holds_data(&path("base")) && holds_data(&path("pg_xact/0000")) && !holds_data(&path("log")));
    }

    #[test]
    fn temporary_and_unlogged_relations_are_left_out() {
        let names =
            ["1259", "1259_vm", "20_init", "20", "20.1", "20_fsm", "200", "t3_30", "t3_30_fsm.1", "t3", "x20", "20_x"];
        let names: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
        let mut out: Vec<&[u8]> = relations_left_out(&names).into_iter().collect();
        out.sort_unstable();
        assert_eq!(out, [&b"20"[..], b"20.1", b"20_fsm", b"t3_30", b"t3_30_fsm.1"]);
    }
}
