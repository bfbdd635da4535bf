//! What the drill's server is told instead of the configuration that was copied. Pure.

use std::path::Path;

use crate::image::ControlFile;
use crate::restore::setting_line;

/// The port in the name of the server's socket; nothing listens on a network.
pub(super) const PORT: u16 = 5432;

/// Settings that roles and databases may carry, taken back in each session.
pub(super) const SESSION_OPTIONS: &str = "-c session_preload_libraries= -c local_preload_libraries= -c role=none \
     -c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0 \
     -c idle_in_transaction_session_timeout=0 -c default_tablespace= -c temp_tablespaces=";

/// Everyone who reaches the socket, which lies in a folder of the server's user, is let in.
pub(super) const HBA: &[u8] = b"local all all trust\n";

/// Where the server finds what the drill has written for it.
pub(super) struct Places<'a> {
    /// For its socket.
    pub(super) sockets: &'a Path,
    /// `pg_hba.conf`
    pub(super) hba: &'a Path,
    /// `pg_ident.conf`
    pub(super) ident: &'a Path,
}

/// What differs from drill to drill.
pub(super) struct Wanted<'a> {
    /// Lines that say how it recovers.
    pub(super) recovery: &'a [u8],
    /// Whether a tablespace lies in the data directory, which a server takes for damage if it is not told.
    pub(super) in_place: bool,
}

/// The whole of `postgresql.conf`. Nothing of the copied configuration counts: the server reaches
/// nobody, nobody reaches it through a network, and it archives nothing.
pub(super) fn server(major: u32, places: &Places<'_>, control: &ControlFile, wanted: &Wanted<'_>) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let mut lines = b"# Written by walhold drill\n".to_vec();
    lines.extend(wanted.recovery);
    let mut set = |name: &str, value: &[u8]| lines.extend(setting_line(name, value));
    for (name, value) in FIXED {
        set(name, value.as_bytes());
    }
    for (name, path) in
        [("unix_socket_directories", places.sockets), ("hba_file", places.hba), ("ident_file", places.ident)]
    {
        set(name, path.as_os_str().as_bytes());
    }
    set("port", PORT.to_string().as_bytes());
    for (name, value) in limits(control) {
        set(name, value.to_string().as_bytes());
    }
    if major >= 17 {
        set("event_triggers", b"off");
        set("sync_replication_slots", b"off");
    }
    if wanted.in_place {
        set("allow_in_place_tablespaces", b"on");
    }
    lines
}

/// Known to all of 13 to 18.
const FIXED: [(&str, &str); 36] = [
    ("listen_addresses", ""),
    ("unix_socket_permissions", "0700"),
    ("ssl", "off"),
    ("archive_mode", "off"),
    ("archive_command", ""),
    ("archive_cleanup_command", ""),
    ("recovery_end_command", ""),
    ("primary_conninfo", ""),
    ("primary_slot_name", ""),
    ("synchronous_standby_names", ""),
    ("max_logical_replication_workers", "0"),
    ("shared_preload_libraries", ""),
    ("session_preload_libraries", ""),
    ("local_preload_libraries", ""),
    ("autovacuum", "off"),
    ("autovacuum_freeze_max_age", "2000000000"),
    ("wal_level", "replica"),
    // A hot standby stops where the source raised one of its limits, and nobody looks in before the end.
    ("hot_standby", "off"),
    // What is lost in a crash is made again.
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
    ("restart_after_crash", "off"),
    ("ignore_checksum_failure", "off"),
    ("zero_damaged_pages", "off"),
    ("shared_buffers", "64MB"),
    ("huge_pages", "off"),
    ("jit", "off"),
    // The log is read.
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("log_min_messages", "warning"),
    ("log_line_prefix", "%m [%p] "),
    ("lc_messages", "C"),
    ("log_timezone", "UTC"),
    ("timezone", "UTC"),
    ("cluster_name", "walhold drill"),
    ("bonjour", "off"),
];

/// A recovering server needs what its source had: prepared transactions in their slots, and the locks
/// that they hold. The source may have had more of both later than when its files were copied.
fn limits(control: &ControlFile) -> [(&'static str, u32); 5] {
    [
        ("max_connections", control.max_connections.max(50)),
        ("max_worker_processes", control.max_worker_processes.max(8)),
        ("max_wal_senders", control.max_wal_senders),
        ("max_prepared_transactions", control.max_prepared_transactions.max(250)),
        ("max_locks_per_transaction", control.max_locks_per_transaction.max(64)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTROL: &[u8] = include_bytes!("../../proto-tests/captured/pg_control-17");

    fn text(major: u32) -> String {
        let places = Places {
            sockets: Path::new("/tmp/it's/s"),
            hba: Path::new("/a\\b/pg_hba.conf"),
            ident: Path::new("/i/pg_ident.conf"),
        };
        let control = ControlFile::parse(CONTROL).unwrap();
        let wanted = Wanted { recovery: b"restore_command = 'x'\n", in_place: major == 18 };
        String::from_utf8(server(major, &places, &control, &wanted)).unwrap()
    }

    #[test]
    fn values_are_quoted() {
        let text = text(17);
        assert!(text.contains("\nunix_socket_directories = '/tmp/it''s/s'\n"), "{text}");
        assert!(text.contains("\nhba_file = '/a\\\\b/pg_hba.conf'\n"), "{text}");
        assert!(text.contains("\nrestore_command = 'x'\n"), "{text}");
        // Each line is a comment or one setting, and none comes twice.
        let names: Vec<_> =
            text.lines().filter(|l| !l.starts_with('#')).map(|l| l.split_once(" = '").unwrap().0).collect();
        let once: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(once.len(), names.len());
        assert!(text.lines().all(|line| line.starts_with('#') || line.ends_with('\'')));
    }

    #[test]
    fn nothing_reaches_out() {
        let text = text(13);
        for name in [
            "listen_addresses",
            "archive_command",
            "primary_conninfo",
            "synchronous_standby_names",
            "shared_preload_libraries",
            "recovery_end_command",
        ] {
            assert!(text.contains(&format!("\n{name} = ''\n")), "{name}");
        }
        assert!(text.contains("\nmax_logical_replication_workers = '0'\n"));
        assert!(!text.contains("event_triggers"), "{text}");
    }

    #[test]
    fn limits_are_those_of_the_source_at_least() {
        let text = text(17);
        for line in [
            "max_connections = '123'",
            "max_worker_processes = '11'",
            "max_wal_senders = '7'",
            "max_prepared_transactions = '250'",
            "max_locks_per_transaction = '77'",
            "event_triggers = 'off'",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line}");
        }
    }

    #[test]
    fn tablespaces_in_the_data_directory_are_announced() {
        assert!(text(18).contains("\nallow_in_place_tablespaces = 'on'\n"));
        // Some of 13 and 14 do not know it.
        assert!(!text(13).contains("allow_in_place_tablespaces"));
    }
}
