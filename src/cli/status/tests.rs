#![allow(clippy::disallowed_methods, reason = "the folders are damaged from outside")]

use super::bar::{ASCII, UNICODE};
use super::page::{Form, page};
use super::*;
use crate::repository::made::Parts;
use crate::repository::tests::with_wal;
use crate::repository::{Holder, Task};
use crate::status::tests::{after, asking, long, server};

const PLAIN: Form = Form { width: 72, pens: ASCII, bold: false };

fn shown(status: &Status, form: Form) -> String {
    let mut status = status.clone();
    status.repository = "/srv/repo".to_owned();
    page(&status, after(3600).0, form)
}

/// WAL to 180 s after the backup, of which that from 60 to 120 s is missing.
fn with_gap(dir: &Path) -> (Repository, Status) {
    let (repository, ..) = long(dir);
    std::fs::remove_file(dir.join("wal/000000010000000000000007")).unwrap();
    let _lock = repository.lock(&holder(Task::Receive, "db1")).unwrap();
    let held = status(&repository, None).unwrap().held.unwrap();
    let found = asking(&repository, &Ok(server(held)));
    (repository, found)
}

#[test]
fn a_page_tells_all_at_a_glance() {
    let dir = tempfile::tempdir().unwrap();
    let (_, found) = with_gap(&dir.path().join("r"));
    let expected = "\
/srv/repo  cluster 7710961556191347314
receiving   walhold receive, process 1 on db1
WAL held    up to 0/A00C60 (timeline 1), last commit 2026-11-22 05:18:00 UTC (57 min ago)
server      PostgreSQL 17.2, primary, at 0/A00C70 (timeline 1)
behind it   by 16 B, 60 s
slot        \"walhold\", active, keeps 16 B from 0/A00C60 on (reserved)
backups     1 complete
newest      20261122T051500Z ended 60 min ago, 1.73 KiB stored, \"night \\\"1\\\"\"
last drill  none yet

restorable  2026-11-22 05:15:00 UTC to 2026-11-22 05:16:00 UTC
            0/54F3D0 to 0/6FF360, timeline 1, 1 backup; then a gap
gaps        0/6FF360 to 0/800000, timeline 1: 1.00 MiB missing
            lost: what was committed after 2026-11-22 05:16:00 UTC and before 2026-11-22 05:17:00 UTC
            recovery from backup 20261122T051500Z ends there

WAL         ====================....................====================
backups     B
            2026-11-22 05:15                            2026-11-22 05:18

warning     max_slot_wal_keep_size is unlimited: while nothing receives, the slot can fill the server's disk
";
    assert_eq!(shown(&found, PLAIN), expected);
    let unicode = shown(&found, Form { width: 42, pens: UNICODE, bold: true });
    assert!(unicode.starts_with("\x1b[1m/srv/repo"), "{unicode}");
    assert!(unicode.contains("\nWAL         ██████████░░░░░░░░░░██████████\n"), "{unicode}");
}

#[test]
fn without_times_the_picture_is_of_positions() {
    let dir = tempfile::tempdir().unwrap();
    let empty = status(&with_wal(&dir.path().join("w"), &Parts::new().log), None).unwrap();
    let expected = "\
/srv/repo  cluster 7710961556191347314
receiving   no: nothing receives WAL
WAL held    up to 0/6628A0 (timeline 1)
backups     none

restorable  nothing

WAL         ============================================================
            0/300000                                            0/6628A0
";
    assert_eq!(shown(&empty, PLAIN), expected);
}

#[test]
fn no_gap_is_too_short_to_be_seen() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut found) = with_gap(&dir.path().join("r"));
    let [before, behind] = &mut found.timelines[0].ranges[..] else { panic!("{:?}", found.timelines) };
    before.last_commit = Some(after(120));
    behind.last_commit = Some(after(86_400));
    behind.first_commit = Some(after(120));
    let lines = shown(&found, PLAIN);
    let line = lines.lines().find(|line| line.starts_with("WAL    ")).unwrap();
    assert_eq!((line.matches('.').count(), line.matches('=').count()), (1, 59), "{lines}");
}

#[test]
fn what_a_terminal_would_obey_is_not_shown() {
    assert_eq!(plain("a\x1b[2Jb\nc"), "a [2Jb c");
    let dir = tempfile::tempdir().unwrap();
    let (_, mut found) = with_gap(&dir.path().join("r"));
    found.backups[0].label = Some("x\x1b]0;y\x07\n".to_owned());
    found.repository = "/a\x1b[31m".to_owned();
    let text = page(&found, after(3600).0, PLAIN);
    assert!(!text.contains(['\x1b', '\x07']), "{text:?}");
}

#[test]
fn a_check_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let (repository, _) = with_gap(&dir.path().join("r"));
    let path = Path::new("/srv/repo");
    let limits = Limits { max_age: Some(Duration::from_secs(60)), max_lag: None };
    let found = || status(&repository, None).map_err(Failure::from);
    let (good, line) = check(&[(path, found())], limits, after(3600).0);
    let expected = "FAIL /srv/repo: the newest backup (20261122T051500Z) ended 60 min ago; \
                    the newest backup leads to a gap in the WAL at 0/6FF360 (timeline 1); nothing receives WAL";
    assert_eq!((good, line.as_str()), (false, expected));

    let missing = Path::new("/none");
    let (good, line) = check(&[(path, found()), (missing, look(missing, None))], limits, after(3600).0);
    assert!(!good && line.ends_with("| /none: there is no repository at /none"), "{line}");

    let (whole, ..) = long(&dir.path().join("w"));
    let _lock = whole.lock(&holder(Task::Receive, "db1")).unwrap();
    let held = status(&whole, None).unwrap().held.unwrap();
    let mut told = asking(&whole, &Ok(server(held)));
    told.repository = "/srv/repo".to_owned();
    let (good, line) = check(&[(path, Ok(told))], Limits::default(), after(3600).0);
    let expected = "OK /srv/repo: newest backup 20261122T051500Z ended 60 min ago, WAL held up to 0/A00C60, \
                    16 bytes behind the server";
    assert_eq!((good, line.as_str()), (true, expected));
}

#[test]
fn the_locale_says_what_can_be_drawn() {
    let of = |set: &'static [(&str, &str)]| {
        is_unicode(|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    };
    assert!(of(&[("LANG", "de_DE.UTF-8")]) && of(&[("LC_ALL", "C.utf8"), ("LANG", "C")]));
    assert!(!of(&[]) && !of(&[("LC_ALL", "C"), ("LANG", "de_DE.UTF-8")]) && of(&[("LC_ALL", ""), ("LANG", "C.UTF-8")]));
}

fn holder(task: Task, host: &str) -> Holder {
    Holder { task, process: 1, host: host.to_owned() }
}
