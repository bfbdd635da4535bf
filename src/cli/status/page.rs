//! The page for people.

use std::io::IsTerminal;

use indicatif::HumanBytes;
use jiff::Timestamp;

use super::bar::{self, Pens};
use super::{columns, is_unicode};
use crate::repository::{BackupId, Time};
use crate::status::{
    BackupStatus, Cause, GapStatus, Lag, Moment, Server, ServerAnswer, SlotStatus, Stage, Status, WindowStatus, span,
};

/// Columns for the names on the left.
const LABEL: usize = 12;

/// More lines of a kind than this are summed up: the page is to be read at a glance.
const MANY: usize = 8;

/// What the page is shown on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Form {
    pub(super) width: usize,
    pub(super) pens: Pens,
    pub(super) bold: bool,
}

impl Form {
    pub(super) fn of_stdout() -> Self {
        let unicode = is_unicode(|name| std::env::var(name).ok());
        let pens = if unicode { bar::UNICODE } else { bar::ASCII };
        Self { width: columns(), pens, bold: std::io::stdout().is_terminal() }
    }
}

/// Lines with a name on the left.
#[derive(Default)]
struct Lines(Vec<String>);

impl Lines {
    fn add(&mut self, name: &str, text: &str) {
        self.0.push(format!("{name:<LABEL$}{}", plain(text)).trim_end().to_owned());
    }

    fn blank(&mut self) {
        self.0.push(String::new());
    }

    /// The newest of many, with what was left out.
    fn list<T>(&mut self, name: &str, all: &[T], mut add: impl FnMut(&mut Self, &str, &T)) {
        let first = all.len().saturating_sub(MANY);
        for (n, one) in all.iter().skip(first).enumerate() {
            add(self, if n == 0 { name } else { "" }, one);
        }
        if first > 0 {
            self.add("", &format!("and {first} older (--json lists all)"));
        }
    }
}

/// The whole page.
pub(super) fn page(status: &Status, now: Timestamp, form: Form) -> String {
    let mut lines = Lines::default();
    let title = format!("{}  cluster {}", plain(&status.repository), status.system_identifier);
    lines.0.push(if form.bold { format!("\x1b[1m{title}\x1b[0m") } else { title });
    wal(&mut lines, status, now);
    server(&mut lines, status);
    backups(&mut lines, status, now);
    lines.blank();
    restorable(&mut lines, status);
    lines.list("gaps", &status.gaps, gap);
    for island in &status.islands {
        lines.add("island", &format!("{} to {}, {}", island.from, island.to, named(&island.backups)));
    }
    let drawn = bar::bar(status, LABEL, form.width, form.pens);
    if !drawn.is_empty() {
        lines.blank();
        lines.0.extend(drawn);
    }
    let warnings = warnings(status);
    if !warnings.is_empty() {
        lines.blank();
        lines.list("warning", &warnings, |lines, name, warning| lines.add(name, warning));
    }
    lines.0.join("\n") + "\n"
}

fn wal(lines: &mut Lines, status: &Status, now: Timestamp) {
    let writer = match &status.writer {
        Some(writer) if writer.receives => writer.who.clone(),
        Some(writer) => format!("no; {} writes", writer.who),
        None => "no: nothing receives WAL".to_owned(),
    };
    lines.add("receiving", &writer);
    let Some(held) = status.held else { return lines.add("WAL held", "none") };
    let mut text = format!("up to {} (timeline {})", held.pos.lsn(), held.pos.tli());
    if let Some(last) = held.last_commit {
        let ago = std::time::Duration::try_from(now.duration_since(last.timestamp())).unwrap_or_default();
        text += &format!(", last commit {} ({} ago)", moment(last), span(ago));
    }
    lines.add("WAL held", &text);
}

fn server(lines: &mut Lines, status: &Status) {
    let (server, slot_name, slot, lag) = match &status.server {
        None => return,
        Some(ServerAnswer::Failed { reason }) => return lines.add("server", &format!("could not be asked: {reason}")),
        Some(ServerAnswer::Told { server, slot_name, slot, lag }) => (server, slot_name, slot, lag),
    };
    let kind = if server.standby { "standby" } else { "primary" };
    let tli = server.timeline.map_or_else(String::new, |tli| format!(" (timeline {tli})"));
    lines.add("server", &format!("PostgreSQL {}, {kind}, at {}{tli}", server.version, server.position));
    lines.add("behind it", &behind(lag));
    lines.add("slot", &slot.as_ref().map_or_else(|| format!("there is none named \"{slot_name}\""), kept));
}

fn behind(lag: &Lag) -> String {
    let at_most = if lag.at_most { "at most " } else { "" };
    match (lag.bytes, lag.seconds) {
        (None, _) => "by everything: no WAL is held".to_owned(),
        (Some(0), _) => "by nothing".to_owned(),
        (Some(bytes), Some(seconds)) => {
            format!("by {}, {at_most}{}", HumanBytes(bytes), span(std::time::Duration::from_secs(seconds)))
        }
        (Some(bytes), None) => format!("by {}", HumanBytes(bytes)),
    }
}

fn kept(slot: &SlotStatus) -> String {
    let active = if slot.active { "active" } else { "not active" };
    let mut text = format!("\"{}\", {active}", slot.name);
    match (slot.restart_lsn, slot.retained_bytes) {
        (Some(restart), Some(bytes)) => text += &format!(", keeps {} from {restart} on", HumanBytes(bytes)),
        _ => text += ", keeps nothing",
    }
    if let Some(state) = &slot.wal_status {
        text += &format!(" ({state})");
    }
    if let Some(safe) = slot.safe_wal_size.and_then(|safe| u64::try_from(safe).ok()) {
        text += &format!(", may keep {} more", HumanBytes(safe));
    }
    text
}

fn backups(lines: &mut Lines, status: &Status, now: Timestamp) {
    let count = |stage| status.backups.iter().filter(|backup| backup.stage == stage).count();
    let stages = [Stage::Complete, Stage::Untested, Stage::Running, Stage::Pending, Stage::Unfinished, Stage::Damaged];
    let counts = stages.map(|stage| (count(stage), stage.word()));
    let counts: Vec<_> = counts.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")).collect();
    lines.add("backups", &if counts.is_empty() { "none".to_owned() } else { counts.join(", ") });
    if let Some(newest) = status.newest_usable() {
        lines.add("newest", &complete(newest, now));
        lines.add("last drill", &drill(status, now));
    }
    let kept: Vec<_> = status.backups.iter().filter(|backup| backup.kept).map(|backup| backup.id).collect();
    if !kept.is_empty() {
        lines.add("kept", &named(&kept));
    }
    let other: Vec<_> = status.backups.iter().filter_map(|backup| Some((backup, unfinished(backup)?))).collect();
    lines.list("", &other, |lines, _, (backup, text)| lines.add(backup.stage.word(), &format!("{} {text}", backup.id)));
}

fn complete(backup: &BackupStatus, now: Timestamp) -> String {
    let age = backup.age(now).map_or_else(String::new, |age| format!(" ended {} ago", span(age)));
    let stored = backup.stored_bytes.map_or_else(String::new, |bytes| format!(", {} stored", HumanBytes(bytes)));
    let label = backup.label.as_ref().map_or_else(String::new, |label| format!(", {label:?}"));
    let place =
        backup.place.as_ref().map_or_else(String::new, |place| format!(", data (unchecked) at {}", plain(place)));
    format!("{}{age}{stored}{label}{place}", backup.id)
}

fn drill(status: &Status, now: Timestamp) -> String {
    let Some(drill) = status.last_drill() else { return "none yet".to_owned() };
    let ago = std::time::Duration::try_from(now.duration_since(drill.finished.0)).unwrap_or_default();
    match &drill.failure {
        None => format!("passed {} ago, backup {}", span(ago), drill.backup),
        Some(why) => format!("FAILED {} ago, backup {}: {why}", span(ago), drill.backup),
    }
}

/// What there is to say of one that cannot be restored.
fn unfinished(backup: &BackupStatus) -> Option<String> {
    match (backup.stage, backup.waiting, &backup.damage) {
        (Stage::Complete, _, Some(why)) => Some(format!("cannot be restored: {why}")),
        (Stage::Complete, ..) if backup.held => None,
        (Stage::Complete, ..) => Some("cannot be restored: its WAL is not all held".to_owned()),
        (Stage::Untested, ..) => Some("cannot be restored before a drill of it has passed".to_owned()),
        (_, Some(waiting), _) => {
            let held = waiting.held.map_or_else(|| "nothing is held".to_owned(), |held| format!("held up to {held}"));
            Some(format!("waiting for WAL up to {} ({held})", waiting.needs.lsn()))
        }
        (_, _, Some(why)) => Some(why.clone()),
        (Stage::Running, ..) => Some("is being made".to_owned()),
        (..) => Some("was given up before its end".to_owned()),
    }
}

fn restorable(lines: &mut Lines, status: &Status) {
    if status.windows.is_empty() {
        lines.add("restorable", "nothing");
    }
    lines.list("restorable", &status.windows, window);
}

fn window(lines: &mut Lines, name: &str, window: &WindowStatus) {
    // The backup's end is of this machine's clock, commit times are of the server's.
    let times = match window.to.last_commit {
        Some(last) if last.exact && last.time <= window.from_time => {
            format!("{}, the end of the backup", clock(window.from_time))
        }
        Some(last) => format!("{} to {}", clock(window.from_time), moment(last)),
        None => format!("{} to (not known)", clock(window.from_time)),
    };
    lines.add(name, &times);
    let ended = match window.ended_by {
        Cause::Archive => String::new(),
        Cause::Gap => "; then a gap".to_owned(),
        Cause::Fork(child) => format!("; timeline {child} forked off before"),
    };
    let (from, to) = (window.from.lsn(), window.to.pos.lsn());
    let count = match window.backups.len() {
        1 => "1 backup".to_owned(),
        n => format!("{n} backups"),
    };
    lines.add("", &format!("{from} to {to}, timeline {}, {count}{ended}", window.timeline));
}

fn gap(lines: &mut Lines, name: &str, gap: &GapStatus) {
    let (from, to) = (gap.from, gap.to);
    let on = if from.tli() == to.tli() {
        format!("{} to {}, timeline {}", from.lsn(), to.lsn(), from.tli())
    } else {
        format!("{from} to {to}")
    };
    let accepted = if gap.accepted { ", accepted" } else { "" };
    lines.add(name, &format!("{on}: {} missing{accepted}", HumanBytes(gap.bytes)));
    let before = gap.last_commit_before.map(|last| {
        let later = if last.exact { "" } else { " or later" };
        format!(" after {}{later}", clock(last.time))
    });
    let after = gap.first_commit_after.map(|first| format!(" before {}", clock(first)));
    let bounds: Vec<_> = before.into_iter().chain(after).collect();
    lines.add("", &format!("lost: what was committed{}", bounds.join(" and")));
    if !gap.ends.is_empty() {
        lines.add("", &format!("recovery from {} ends there", named(&gap.ends)));
    }
    if !gap.breaks.is_empty() {
        lines.add("", &format!("{} cannot be restored for it", named(&gap.breaks)));
    }
}

fn warnings(status: &Status) -> Vec<String> {
    let mut warnings = status.problems.clone();
    let unknown = status.timelines.iter().filter(|timeline| !timeline.history_held);
    warnings.extend(unknown.map(|timeline| format!("the history file of timeline {} is missing", timeline.timeline)));
    if let Some(ServerAnswer::Told { server, slot: Some(slot), .. }) = &status.server {
        warnings.extend(of_slot(server, slot));
    }
    warnings
}

fn of_slot(server: &Server, slot: &SlotStatus) -> Vec<String> {
    let mut warnings = Vec::new();
    if server.max_slot_wal_keep_size.is_none() {
        warnings.push(
            "max_slot_wal_keep_size is unlimited: while nothing receives, the slot can fill the server's disk"
                .to_owned(),
        );
    }
    if slot.loses_wal() {
        warnings.push(format!("slot \"{}\" does not keep all WAL that it was to keep", slot.name));
    }
    warnings
}

/// A few names of many.
fn named(ids: &[BackupId]) -> String {
    match ids {
        [one] => format!("backup {one}"),
        [first, .., last] => format!("{} backups, {first} to {last}", ids.len()),
        [] => "no backup".to_owned(),
    }
}

fn moment(moment: Moment) -> String {
    let at_least = if moment.exact { "" } else { "at or after " };
    format!("{at_least}{}", clock(moment.time))
}

fn clock(time: Time) -> String {
    time.0.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Text from files and servers, with nothing that a terminal would obey.
pub(in crate::cli) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
