//! What a restored server is told, and what it was told before that matters now. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{Action, Goal};
use crate::wal::{Segment, TimelineId};

/// The settings of which one at most may be set.
const TARGETS: [&str; 5] =
    ["recovery_target", "recovery_target_time", "recovery_target_xid", "recovery_target_name", "recovery_target_lsn"];
const SLOT: &str = "primary_slot_name";
/// What our lines begin with.
pub(super) const ADDED: &[u8] = b"\n# Added by walhold restore\n";

/// How the server gets its WAL.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    /// This program, absolute.
    pub(super) program: &'a Path,
    /// The repository, absolute.
    pub(super) repository: &'a Path,
    /// The timeline to recover along; a standby follows its primary instead.
    pub(super) pin: Option<TimelineId>,
    /// The first segment of the hole that ends the recovery.
    pub(super) gap: Option<Segment>,
}

impl Source<'_> {
    /// The command, as the server gets to see it: `%` is its mark for a placeholder, and a shell
    /// reads the rest.
    pub(super) fn restore_command(&self) -> Vec<u8> {
        let mut command = Vec::new();
        command.extend(quoted_for_shell(self.program.as_os_str()));
        command.extend(b" wal-get --repo ");
        command.extend(quoted_for_shell(self.repository.as_os_str()));
        if let Some(pin) = self.pin {
            command.extend(format!(" --timeline {pin}").bytes());
        }
        if let Some(gap) = self.gap {
            command.extend(format!(" --end-at-gap {gap}").bytes());
        }
        command.extend(b" %f \"%p\"");
        command
    }

    /// The lines to be added to `postgresql.auto.conf`, where the last one of a name counts.
    /// `earlier` are settings of the copied configuration that would change where recovery ends.
    pub(super) fn lines(&self, goal: &Goal, earlier: &[&str]) -> Vec<u8> {
        let mut lines = ADDED.to_vec();
        let mut set = |name: &str, value: &[u8]| lines.extend(line(name, value));
        set("restore_command", &self.restore_command());
        match self.pin {
            Some(pin) => set("recovery_target_timeline", pin.to_string().as_bytes()),
            None => set("recovery_target_timeline", b"latest"),
        }
        if let Goal::Standby { primary_conninfo, primary_slot } = goal {
            primary_conninfo.iter().for_each(|conninfo| set("primary_conninfo", conninfo.as_bytes()));
            primary_slot.iter().for_each(|slot| set(SLOT, slot.to_string().as_bytes()));
        }
        for name in earlier {
            set(name, b"");
        }
        if let Some(aim) = goal.aim() {
            let (ours, value) = aim.target.setting();
            // The server takes them one by one, and refuses to start where one is set after another, be it
            // to nothing; some may be set in files that are included.
            for name in TARGETS.iter().filter(|name| **name != ours && !earlier.contains(name)) {
                set(name, b"");
            }
            let action = match aim.action {
                Action::Promote => "promote",
                Action::Pause => "pause",
                Action::Shutdown => "shutdown",
            };
            set("recovery_target_inclusive", if aim.inclusive { b"true" } else { b"false" });
            set("recovery_target_action", action.as_bytes());
            set(ours, value.as_bytes());
        }
        lines
    }
}

/// In double quotes; a `%` is doubled for the server.
fn quoted_for_shell(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'"'];
    for byte in word.as_bytes() {
        match byte {
            b'"' | b'\\' | b'$' | b'`' => quoted.extend([b'\\', *byte]),
            b'%' => quoted.extend(b"%%"),
            _ => quoted.push(*byte),
        }
    }
    quoted.push(b'"');
    quoted
}

/// A line of a configuration file (`guc-file.l`): between single quotes a quote is doubled, and a
/// backslash begins an escape.
pub(crate) fn line(name: &str, value: &[u8]) -> Vec<u8> {
    let mut line = format!("{name} = '").into_bytes();
    for byte in value {
        match byte {
            b'\'' => line.extend(b"''"),
            b'\\' => line.extend(b"\\\\"),
            b'\n' => line.extend(b"\\n"),
            b'\r' => line.extend(b"\\r"),
            _ => line.push(*byte),
        }
    }
    line.extend(b"'\n");
    line
}

/// What the configuration files say, read simply: the last assignment of a name counts, files that
/// they include are not looked at. For advice alone.
#[derive(Debug, Default)]
pub(super) struct Copied(Vec<(String, String)>);

impl Copied {
    /// Reads one more file; it overrides those before.
    pub(super) fn read(&mut self, content: &[u8]) {
        let text = String::from_utf8_lossy(content);
        self.0.extend(text.lines().filter_map(assignment));
    }

    /// The value, if it is set to anything.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().rev().find(|(set, _)| set == name)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    /// Settings that must not have their effect on the restored server: those that would end the recovery
    /// elsewhere than is meant, and the slot that another standby streams with.
    pub(super) fn overruled(&self, goal: &Goal) -> Vec<&'static str> {
        let mut names = self.targets();
        names.extend(self.foreign_slot(goal).map(|_| SLOT));
        names
    }

    /// The slot of the server that was copied, where the standby has been given none of its own.
    fn foreign_slot(&self, goal: &Goal) -> Option<&str> {
        self.get(SLOT).filter(|_| matches!(goal, Goal::Standby { primary_slot: None, .. }))
    }

    /// Settings that would end the recovery elsewhere than is meant.
    pub(super) fn targets(&self) -> Vec<&'static str> {
        TARGETS.into_iter().filter(|name| self.get(name).is_some()).collect()
    }

    /// What the operator should know before the server takes its first connection.
    pub(super) fn advice(&self, goal: &Goal) -> Vec<String> {
        let mut advice = Vec::new();
        let ours = goal.aim().map(|aim| aim.target.setting().0);
        for name in self.targets().into_iter().filter(|name| Some(*name) != ours) {
            let value = self.get(name).unwrap_or_default();
            advice.push(format!("{name} was set to '{value}' in the copied configuration; it is set to '' now"));
        }
        if goal.aim().is_some_and(|aim| aim.action == Action::Pause)
            && self.get("hot_standby").is_some_and(|value| matches!(value, "off" | "false" | "no" | "0"))
        {
            advice.push("hot_standby is off: at the target the server shuts down instead of waiting".to_owned());
        }
        if let Some(names) = self.get("synchronous_standby_names") {
            advice.push(format!(
                "synchronous_standby_names is '{names}': every commit of the restored server waits until such a standby is connected"
            ));
        }
        if self.get("archive_mode").is_some_and(|mode| !matches!(mode, "off" | "false" | "no" | "0")) {
            for name in ["archive_command", "archive_library"] {
                if let Some(value) = self.get(name) {
                    advice.push(format!(
                        "{name} is '{value}': the restored server will write into that archive, beside the server that was copied"
                    ));
                }
            }
        }
        for name in ["archive_cleanup_command", "recovery_end_command"] {
            if let Some(value) = self.get(name) {
                advice.push(format!("{name} is '{value}' and will be run by the restored server"));
            }
        }
        if let Some(slot) = self.foreign_slot(goal) {
            advice.push(format!("{SLOT} was '{slot}', which the copied server streams with; it is set to '' now"));
        }
        if let Goal::Standby { primary_slot: Some(slot), .. } = goal {
            advice.push(format!("the standby streams only once its primary has the replication slot \"{slot}\""));
        }
        if matches!(goal, Goal::Standby { primary_conninfo: None, .. }) && self.get("primary_conninfo").is_none() {
            advice.push("primary_conninfo is not set: the standby follows the archive alone".to_owned());
        }
        advice
    }
}

/// `name = value`, the equals sign optional, the value bare or in single quotes, then a comment.
fn assignment(line: &str) -> Option<(String, String)> {
    let line = line.trim_start();
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.')))?;
    let (name, rest) = line.split_at(end);
    if name.is_empty() {
        return None;
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.strip_prefix('\'') {
        Some(quoted) => unquoted(quoted)?,
        None => rest.split(|c: char| c == '#' || c.is_whitespace()).next()?.to_owned(),
    };
    Some((name.to_ascii_lowercase(), value))
}

fn unquoted(quoted: &str) -> Option<String> {
    let mut value = String::new();
    let mut chars = quoted.chars().peekable();
    loop {
        match chars.next()? {
            '\'' if chars.peek() == Some(&'\'') => value.extend(chars.next()),
            '\'' => return Some(value),
            '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{Lsn, Pos, SegmentSize};

    const TO_END: Goal = Goal::EndOfWal;
    const TARGET: &str = "recovery_target_time";

    fn source<'a>(program: &'a str, repository: &'a str) -> Source<'a> {
        Source { program: Path::new(program), repository: Path::new(repository), pin: None, gap: None }
    }

    /// What the server makes of the line, and then the shell of the command.
    fn as_run(lines: &[u8], file: &str) -> Vec<String> {
        let mut copied = Copied::default();
        copied.read(lines);
        let command = copied.get("restore_command").unwrap();
        // As `replace_percent_placeholders` does.
        let mut expanded = String::new();
        let mut chars = command.chars();
        while let Some(c) = chars.next() {
            match c {
                '%' => match chars.next().unwrap() {
                    'f' => expanded.push_str(file),
                    'p' => expanded.push_str("pg_wal/RECOVERYXLOG"),
                    '%' => expanded.push('%'),
                    other => panic!("placeholder {other}"),
                },
                c => expanded.push(c),
            }
        }
        let script = format!("show() {{ printf '%s\\n' \"$@\"; }}; show {expanded}");
        let out = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn paths_reach_the_program_as_they_are() {
        for path in ["/srv/repo", "/srv/my repo", "/a'b", "/a\"b", "/a\\b", "/a$HOME`id`", "/100%f %p", "/a;b&c|d>#e*?"]
        {
            let words = as_run(&source(path, path).lines(&TO_END, &[]), "00000002.history");
            assert_eq!(words, [path, "wal-get", "--repo", path, "00000002.history", "pg_wal/RECOVERYXLOG"], "{path}");
        }
    }

    #[test]
    fn lines_of_a_recovery_and_of_a_standby() {
        let gap = Segment::containing(Pos::new(TimelineId::FIRST, Lsn::new(7 << 24)), SegmentSize::DEFAULT);
        let pinned = Source { pin: TimelineId::new(3), gap: Some(gap), ..source("/bin/walhold", "/r") };
        let lines = String::from_utf8(pinned.lines(&TO_END, &["recovery_target_time"])).unwrap();
        assert_eq!(
            lines,
            "\n# Added by walhold restore\n\
             restore_command = '\"/bin/walhold\" wal-get --repo \"/r\" --timeline 3 --end-at-gap 000000010000000000000007 %f \"%p\"'\n\
             recovery_target_timeline = '3'\n\
             recovery_target_time = ''\n"
        );
        let standby = Goal::Standby {
            primary_conninfo: Some("host=a password='x y'".to_owned()),
            primary_slot: Some("left".parse().unwrap()),
        };
        let lines = String::from_utf8(source("/bin/walhold", "/r").lines(&standby, &[])).unwrap();
        assert!(lines.contains("recovery_target_timeline = 'latest'\n"), "{lines}");
        assert!(lines.contains("primary_conninfo = 'host=a password=''x y'''\n"), "{lines}");
        assert!(lines.contains("primary_slot_name = 'left'\n"), "{lines}");
    }

    #[test]
    fn settings_are_read_as_a_server_does() {
        let mut copied = Copied::default();
        copied.read(
            b"# archive_mode = on\narchive_mode=on\nArchive_Command = 'cp %p /a/''b''' # c\nport 5433#x\nwork_mem\n",
        );
        copied.read(b"archive_mode = 'off'\nsynchronous_standby_names = ''\nrecovery_target_lsn = '0/1'\n  x.y = a\n");
        assert_eq!(copied.get("archive_mode"), Some("off"));
        assert_eq!(copied.get("archive_command"), Some("cp %p /a/'b'"));
        assert_eq!((copied.get("port"), copied.get("x.y")), (Some("5433"), Some("a")));
        assert_eq!((copied.get("synchronous_standby_names"), copied.get("work_mem")), (None, None));
        assert_eq!(copied.targets(), ["recovery_target_lsn"]);
    }

    #[test]
    fn what_matters_is_told() {
        let mut copied = Copied::default();
        assert_eq!(copied.advice(&TO_END), Vec::<String>::new());
        let standby = Goal::Standby { primary_conninfo: None, primary_slot: None };
        assert!(copied.advice(&standby)[0].contains("primary_conninfo"));
        copied.read(b"synchronous_standby_names = 'walhold'\narchive_mode = on\narchive_command = 'x'\nrecovery_target_time = 'y'\n");
        let advice = copied.advice(&TO_END).join("\n");
        for part in
            ["synchronous_standby_names is 'walhold'", "archive_command is 'x'", "recovery_target_time was set to 'y'"]
        {
            assert!(advice.contains(part), "{advice}");
        }
        // Another standby may be streaming with it.
        copied.read(b"primary_slot_name = 'right'\n");
        assert_eq!((copied.overruled(&standby), copied.overruled(&TO_END)), (vec![TARGET, SLOT], vec![TARGET]));
        assert!(copied.advice(&standby).join("").contains("primary_slot_name was 'right'"));
        let own = Goal::Standby { primary_conninfo: None, primary_slot: Some("left".parse().unwrap()) };
        assert_eq!(copied.overruled(&own), [TARGET]);
        assert!(copied.advice(&own).join("").contains("slot \"left\""));
        copied.read(b"archive_mode = off\n");
        assert!(!copied.advice(&TO_END).join("").contains("archive_command"));
    }
}
