//! What `walhold restore` says when it is done.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use indicatif::HumanBytes;

use crate::connection::user_name;
use crate::restore::{Owner, Plan, Restored};

/// What was restored, what the server will read, how it is started, and what to look at then.
pub(super) fn page(plan: &Plan, restored: &Restored, took: Duration, owner: Option<Owner>) -> String {
    let mut page = String::new();
    let mut line = |text: &str| {
        let _ = writeln!(page, "{text}");
    };
    let (compared, target) = (restored.compared, &plan.target.path);
    line(&format!(
        "restored backup {} to {}: {} in {} files, {}, in {:.1} s",
        plan.backup.id,
        target.display(),
        HumanBytes(compared.bytes),
        compared.files,
        match compared.files - compared.by_checksum {
            0 => "each as its manifest lists it".to_owned(),
            n => format!("{n} of them compared by size alone, for the manifest has no checksums of them"),
        },
        took.as_secs_f64()
    ));
    if let Some(kept) = &restored.kept {
        let (files, bytes) = (compared.files.saturating_sub(kept.files), compared.bytes.saturating_sub(kept.bytes));
        line(&format!(
            "kept {} files ({}) that were so already, wrote {files} ({}), removed {} that differed or are not in the backup",
            kept.files,
            HumanBytes(kept.bytes),
            HumanBytes(bytes),
            kept.removed
        ));
    }
    line(&wal(plan));
    let stop = plan.wal.end.as_ref().zip(plan.then());
    if let Some((end, then)) = stop {
        line(&format!("recovery stops at {end}; then {then}"));
    }
    let (major, standby) = (plan.backup.server_version.major(), plan.wal.timeline.is_none());
    line(&format!("start the server with: {}   (PostgreSQL {major})", start(target, owner)));
    if standby {
        line("it follows its primary when pg_stat_wal_receiver has a row, or the archive alone");
    } else if stop.is_none() {
        line("it has recovered when pg_is_in_recovery() is false; until then its log tells how far it is");
    }
    page
}

fn wal(plan: &Plan) -> String {
    let wal = &plan.wal;
    let from = format!("the server will read WAL from {} on, and be consistent at {}", wal.from, wal.consistent_at);
    if plan.then().is_some() {
        return from;
    }
    match (wal.timeline, &wal.ends_at_gap) {
        (Some(tli), None) => {
            format!("{from}; it goes on along timeline {tli} to the end, in segment {} now", wal.last_segment)
        }
        (Some(tli), Some(gap)) => format!("{from}; it goes on along timeline {tli} to the gap at segment {gap}"),
        (None, _) => format!("{from}, and follows its primary's timeline"),
    }
}

/// A server does not run as root.
fn start(target: &Path, owner: Option<Owner>) -> String {
    let pg_ctl = format!("pg_ctl -D {} start", quoted(&target.to_string_lossy()));
    match owner.filter(|owner| owner.user != rustix::process::geteuid().as_raw()) {
        None => pg_ctl,
        Some(owner) => match user_name(owner.user).map(|name| quoted(&name)) {
            Some(name) => format!("runuser -u {name} -- {pg_ctl}"),
            None => format!("setpriv --reuid {} --regid {} --clear-groups {pg_ctl}", owner.user, owner.group),
        },
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | '=' | ':' | '@' | ',');
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_one_that_a_shell_runs() {
        for name in ["/srv/data", "/srv/my data", "/a'b", "/a$b", "/~x", ""] {
            let script = format!("printf %s {}", quoted(name));
            let out = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(out.stdout, name.as_bytes(), "{script}");
        }
        assert_eq!(start(Path::new("/srv/data"), None), "pg_ctl -D /srv/data start");
        let we = rustix::process::geteuid().as_raw();
        assert_eq!(start(Path::new("/d"), Some(Owner { user: we, group: 1 })), "pg_ctl -D /d start");
        let nameless = Owner { user: 4_000_000_001, group: 7 };
        let expected = "setpriv --reuid 4000000001 --regid 7 --clear-groups pg_ctl -D '/d d' start";
        assert_eq!(start(Path::new("/d d"), Some(nameless)), expected);
        assert_eq!(user_name(0).as_deref(), Some("root"));
    }
}
