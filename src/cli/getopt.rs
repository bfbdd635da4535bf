//! Command lines as GNU `getopt_long` reads them, for the programs whose name this one can bear:
//! operands may stand anywhere, short options cluster, long ones may be cut short, `--` ends them.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// An option of a program. Their order in the program's table is that in which an ambiguous name's
/// possibilities are listed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag<T> {
    /// What follows `--`.
    pub(super) long: &'static str,
    /// What follows `-`, if it has a short form.
    pub(super) short: Option<u8>,
    /// Whether an argument belongs to it.
    pub(super) takes: bool,
    /// What the program calls it.
    pub(super) id: T,
}

/// Reads options one by one, in the order in which they stand.
#[derive(Debug)]
pub(super) struct Getopt<T: 'static> {
    program: String,
    flags: &'static [Flag<T>],
    rest: VecDeque<OsString>,
    /// What is left of a word of short options.
    cluster: VecDeque<u8>,
    operands: Vec<OsString>,
}

impl<T: Copy> Getopt<T> {
    /// `arguments` begin with the program as it was called, whose name stands before complaints.
    pub(super) fn new(flags: &'static [Flag<T>], arguments: Vec<OsString>) -> Self {
        let mut rest: VecDeque<_> = arguments.into();
        let program = rest.pop_front().unwrap_or_default().to_string_lossy().into_owned();
        Self { program, flags, rest, cluster: VecDeque::new(), operands: Vec::new() }
    }

    /// What was no option; all of it once there are no more options.
    pub(super) fn into_operands(self) -> Vec<OsString> {
        self.operands
    }

    fn short(&mut self, letter: u8) -> Result<(T, Option<OsString>), String> {
        let flags = self.flags;
        let Some(flag) = flags.iter().find(|flag| flag.short == Some(letter)) else {
            return Err(self.complaint(&format!("invalid option -- '{}'", text(&[letter]))));
        };
        if !flag.takes {
            return Ok((flag.id, None));
        }
        let attached: Vec<u8> = self.cluster.drain(..).collect();
        let value = if attached.is_empty() { self.rest.pop_front() } else { Some(OsString::from_vec(attached)) };
        match value {
            Some(value) => Ok((flag.id, Some(value))),
            None => Err(self.complaint(&format!("option requires an argument -- '{}'", text(&[letter])))),
        }
    }

    /// `word` is what follows `--`.
    fn long(&mut self, word: &[u8]) -> Result<(T, Option<OsString>), String> {
        let (name, attached) = match word.iter().position(|byte| *byte == b'=') {
            Some(at) => (&word[..at], Some(OsString::from_vec(word[at + 1..].to_vec()))),
            None => (word, None),
        };
        let flag = self.named(name, word)?;
        match (flag.takes, attached) {
            (false, None) => Ok((flag.id, None)),
            (false, Some(_)) => Err(self.complaint(&format!("option '--{}' doesn't allow an argument", flag.long))),
            (true, Some(value)) => Ok((flag.id, Some(value))),
            (true, None) => match self.rest.pop_front() {
                Some(value) => Ok((flag.id, Some(value))),
                None => Err(self.complaint(&format!("option '--{}' requires an argument", flag.long))),
            },
        }
    }

    fn named(&self, name: &[u8], word: &[u8]) -> Result<&'static Flag<T>, String> {
        let flags = self.flags;
        if let Some(exact) = flags.iter().find(|flag| flag.long.as_bytes() == name) {
            return Ok(exact);
        }
        let meant: Vec<_> = flags.iter().filter(|flag| flag.long.as_bytes().starts_with(name)).collect();
        match meant.as_slice() {
            [only] => Ok(only),
            [] => Err(self.complaint(&format!("unrecognized option '--{}'", text(word)))),
            several => {
                let names: String = several.iter().map(|flag| format!(" '--{}'", flag.long)).collect();
                Err(self.complaint(&format!("option '--{}' is ambiguous; possibilities:{names}", text(word))))
            }
        }
    }

    fn complaint(&self, what: &str) -> String {
        format!("{}: {what}", self.program)
    }
}

impl<T: Copy> Iterator for Getopt<T> {
    /// An option and its argument, or a complaint that is to be printed as it is.
    type Item = Result<(T, Option<OsString>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(letter) = self.cluster.pop_front() {
                return Some(self.short(letter));
            }
            let word = self.rest.pop_front()?;
            match word.as_bytes() {
                b"--" => self.operands.extend(self.rest.drain(..)),
                [b'-', b'-', long @ ..] => return Some(self.long(long)),
                [b'-', short @ ..] if !short.is_empty() => self.cluster.extend(short),
                _ => self.operands.push(word),
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag<char>] = &[
        Flag { long: "version", short: None, takes: false, id: 'V' },
        Flag { long: "directory", short: Some(b'D'), takes: true, id: 'D' },
        Flag { long: "dbname", short: Some(b'd'), takes: true, id: 'd' },
        Flag { long: "no-loop", short: Some(b'n'), takes: false, id: 'n' },
        Flag { long: "sync", short: None, takes: false, id: '1' },
        Flag { long: "synchronous", short: None, takes: false, id: '2' },
        Flag { long: "verbose", short: Some(b'v'), takes: false, id: 'v' },
    ];

    /// Options as `x` or `x=value`, then the operands after a bar; or the complaint.
    fn read(words: &str) -> Result<String, String> {
        let words = std::iter::once("/bin/prog").chain(words.split(' ').filter(|word| !word.is_empty()));
        let words = words.map(|word| if word == "EMPTY" { OsString::new() } else { word.into() }).collect();
        let mut getopt = Getopt::new(FLAGS, words);
        let mut seen = Vec::new();
        for option in getopt.by_ref() {
            let (id, value) = option?;
            seen.push(value.map_or_else(|| id.to_string(), |value| format!("{id}={}", value.to_string_lossy())));
        }
        seen.push("|".to_owned());
        seen.extend(getopt.into_operands().iter().map(|word| word.to_string_lossy().into_owned()));
        Ok(seen.join(" "))
    }

    #[test]
    fn what_is_read() {
        for (words, options) in [
            ("", "|"),
            ("-n -v", "n v |"),
            ("-nvv", "n v v |"),
            ("-D x -D/y", "D=x D=/y |"),
            ("-nD x", "n D=x |"),
            ("-nDx=y", "n D=x=y |"),
            ("-Dnv", "D=nv |"),
            ("-D -n", "D=-n |"),
            ("-D --", "D=-- |"),
            ("-D EMPTY", "D= |"),
            ("--directory=x --directory y", "D=x D=y |"),
            ("--directory= --directory EMPTY", "D= D= |"),
            ("--directory=a=b", "D=a=b |"),
            ("--dir x --db=y", "D=x d=y |"),
            ("--sync --synch", "1 2 |"),
            ("--verb", "v |"),
            ("one -n two", "n | one two"),
            ("-n -- -v --bogus", "n | -v --bogus"),
            ("- -n", "n | -"),
            ("one -- two --", "| one two --"),
            ("-v EMPTY", "v | "),
        ] {
            assert_eq!(read(words), Ok(options.to_owned()), "{words}");
        }
    }

    #[test]
    fn complaints() {
        for (words, complaint) in [
            ("-x", "invalid option -- 'x'"),
            ("-nx", "invalid option -- 'x'"),
            ("-V", "invalid option -- 'V'"),
            ("-n-v", "invalid option -- '-'"),
            ("-D", "option requires an argument -- 'D'"),
            ("-nD", "option requires an argument -- 'D'"),
            ("--directory", "option '--directory' requires an argument"),
            ("--dir", "option '--directory' requires an argument"),
            ("--no-loop=1", "option '--no-loop' doesn't allow an argument"),
            ("--no=1", "option '--no-loop' doesn't allow an argument"),
            ("--bogus", "unrecognized option '--bogus'"),
            ("--bogus=1", "unrecognized option '--bogus=1'"),
            ("--d", "option '--d' is ambiguous; possibilities: '--directory' '--dbname'"),
            ("--d=1", "option '--d=1' is ambiguous; possibilities: '--directory' '--dbname'"),
            ("--ver", "option '--ver' is ambiguous; possibilities: '--version' '--verbose'"),
        ] {
            assert_eq!(read(words), Err(format!("/bin/prog: {complaint}")), "{words}");
        }
    }
}
