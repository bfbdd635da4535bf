//! Values of flags that need more than `FromStr`.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::codec::{Packing, ParsePackingError};
use crate::protocol::MaxRate;
use crate::repository::{Holder, Task};
use crate::restore::{Along, Mapping, Owner};
use crate::status::MaxLag;
use crate::wal::TimelineId;

/// A time such as `100ms`, `10s`, `5min` or `2h`; a bare number is seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is not a time (examples: 100ms, 10s, 5min, 2h)");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let milliseconds = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1000,
        "min" | "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(wrong)
}

/// A size such as `512kB`, `64MB` or `2GB`, in units of 1024 as PostgreSQL has them.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{text}\" is not a size (examples: 512kB, 64MB, 2GB)");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let unit: u64 = match &text[digits.len()..] {
        "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).ok_or_else(wrong)
}

/// A lag in time or in size, told by its unit.
pub(super) fn lag(text: &str) -> Result<MaxLag, String> {
    let lag = size(text).map(MaxLag::Bytes).or_else(|_| duration(text).map(MaxLag::Time));
    lag.map_err(|_| format!("\"{text}\" is neither a time nor a size (examples: 5min, 64MB)"))
}

/// [`duration`], and not 0.
pub(super) fn some_time(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|time| if time.is_zero() { Err("it must be longer than 0".into()) } else { Ok(time) })
}

/// A moment: RFC 3339, or as PostgreSQL writes it; without an offset it is of this machine's time zone.
pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    let wrong = || format!("\"{text}\" is not a time (examples: 2026-11-22T05:15:00Z, 2026-11-22 05:15:00.5+01)");
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let local: DateTime = text.parse().map_err(|_| wrong())?;
    local.to_zoned(TimeZone::system()).map(|zoned| zoned.timestamp()).map_err(|_| wrong())
}

/// A timeline's number, from 1 on.
pub(super) fn timeline(text: &str) -> Result<TimelineId, String> {
    let number = text.parse().ok().and_then(TimelineId::new);
    number.ok_or_else(|| format!("\"{text}\" is not a timeline (a number from 1 on)"))
}

/// `latest`, `current` or a timeline's number.
pub(super) fn along(text: &str) -> Result<Along, String> {
    match text {
        "latest" => Ok(Along::Latest),
        "current" => Ok(Along::Current),
        _ => timeline(text)
            .map(Along::Timeline)
            .map_err(|_| format!("\"{text}\" is not a timeline (latest, current, or a number from 1 on)")),
    }
}

/// A transaction's number, as `txid_current` or `pg_current_xact_id` give it: with the count of
/// rounds above its 32 bits, which WAL does not hold and the server passes over.
pub(super) fn transaction(text: &str) -> Result<u32, String> {
    const FIRST: u64 = 3;
    let number = text.parse::<u64>().ok().map(|number| number & u64::from(u32::MAX)).filter(|xid| *xid >= FIRST);
    let number = number.and_then(|xid| u32::try_from(xid).ok());
    number.ok_or_else(|| format!("\"{text}\" is not the number of a transaction (from {FIRST} on)"))
}

/// A restore point's name, which a server takes if it is not too long (`MAXFNAMELEN`).
pub(super) fn restore_point(text: &str) -> Result<String, String> {
    match text.len() {
        1..=63 => Ok(text.to_owned()),
        _ => Err("the name of a restore point has 1 to 63 bytes".to_owned()),
    }
}

/// How complete segments are compressed, if they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct WalCompression(pub(super) Option<Packing>);

impl std::str::FromStr for WalCompression {
    type Err = ParsePackingError;

    /// `none`, or as a [`Packing`].
    fn from_str(text: &str) -> Result<Self, ParsePackingError> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|packing| Self(Some(packing))) }
    }
}

/// A bound on the speed of a copy as `pg_basebackup --max-rate` has it: kB (1024 bytes) a second, or
/// with the suffix `k` or `M`; a fraction is allowed.
pub(super) fn rate(text: &str) -> Result<MaxRate, String> {
    let wrong = || format!("\"{text}\" is not a rate between 32k and 1024M (kB a second, or with suffix k or M)");
    let (number, factor) = match text.strip_suffix('M') {
        Some(number) => (number, 1024.0),
        None => (text.strip_suffix('k').unwrap_or(text), 1.0),
    };
    let plain = number.starts_with(|c: char| c.is_ascii_digit());
    let kb = number.parse::<f64>().ok().filter(|_| plain).map(|number| (number * factor).round());
    // In this range every whole number is one of both types.
    let kb = kb.filter(|kb| (32.0..=1_048_576.0).contains(kb)).ok_or_else(wrong)?;
    MaxRate::new(kb as u32).ok_or_else(wrong)
}

/// `OLD=NEW` of `--tablespace-mapping`; `\=` stands for an equals sign in a path.
pub(super) fn mapping(text: &str) -> Result<Mapping, String> {
    let (mut paths, mut escaped) = (vec![String::new()], false);
    for c in text.chars() {
        match (c, paths.last_mut()) {
            ('=', _) if !escaped => paths.push(String::new()),
            ('\\', _) if !escaped => {
                escaped = true;
                continue;
            }
            (c, Some(path)) => {
                if escaped && c != '=' {
                    path.push('\\');
                }
                path.push(c);
            }
            (_, None) => {}
        }
        escaped = false;
    }
    match paths.as_slice() {
        [old, new] if !old.is_empty() && !new.is_empty() => Ok(Mapping { old: old.into(), new: new.into() }),
        _ => Err(format!("\"{text}\" is not of the form OLD=NEW")),
    }
}

/// `USER` or `USER:GROUP`, each a name or a number, looked up in `/etc/passwd` and `/etc/group`. The
/// group of a user alone is the user's own.
pub(super) fn owner(text: &str) -> Result<Owner, String> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let line = |file: &str, name: &str| {
        let lines = std::fs::read_to_string(file).unwrap_or_default();
        let found = lines.lines().find(|line| {
            let mut fields = line.split(':');
            fields.next() == Some(name) || fields.nth(1) == Some(name)
        });
        found.map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>())
    };
    let number = |line: &Option<Vec<String>>, field: usize| line.as_ref()?.get(field)?.parse::<u32>().ok();
    let account = line("/etc/passwd", user);
    let uid =
        number(&account, 2).or_else(|| user.parse().ok()).ok_or_else(|| format!("there is no user \"{user}\""))?;
    let gid = match group {
        Some(group) => number(&line("/etc/group", group), 2).or_else(|| group.parse().ok()),
        None => number(&account, 3),
    };
    let gid = gid.ok_or_else(|| format!("there is no group \"{}\"", group.unwrap_or("of that user")))?;
    Ok(Owner { user: uid, group: gid })
}

/// What a lock says of its holder.
pub(super) fn who(task: Task) -> Holder {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Holder { task, process: std::process::id(), host }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, milliseconds) in
            [("100ms", 100), ("10", 10_000), ("10s", 10_000), ("5min", 300_000), ("2h", 7_200_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)));
        }
        for text in ["", "ms", "-1s", "1.5s", "1 s", "1y", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(some_time("0ms").is_err());
    }

    #[test]
    fn lags_are_told_by_their_unit() {
        assert_eq!(lag("64MB"), Ok(MaxLag::Bytes(64 << 20)));
        assert_eq!(lag("1kB"), Ok(MaxLag::Bytes(1024)));
        assert_eq!(lag("5m"), Ok(MaxLag::Time(Duration::from_secs(300))));
        assert_eq!(lag("5"), Ok(MaxLag::Time(Duration::from_secs(5))));
        for text in ["", "MB", "5mb", "5M", "-1MB", "18446744073709551615GB"] {
            assert!(lag(text).is_err(), "{text}");
        }
    }

    #[test]
    fn moments() {
        let expected: Timestamp = "2026-11-22T05:15:00.5Z".parse().unwrap();
        for text in ["2026-11-22T05:15:00.5Z", "2026-11-22 06:15:00.5+01", "2026-11-22 05:15:00.500+00:00"] {
            assert_eq!(moment(text), Ok(expected), "{text}");
        }
        assert!(moment("2026-11-22 05:15:00").is_ok() && moment("2026-11-22").is_ok());
        for text in ["", "now", "yesterday", "2026-11-22 25:00:00", "2026-11-22T05:15:00Z x", "1764000000"] {
            assert!(moment(text).is_err(), "{text}");
        }
    }

    #[test]
    fn points_to_recover_to() {
        assert_eq!((along("latest"), along("current")), (Ok(Along::Latest), Ok(Along::Current)));
        assert_eq!(along("7"), Ok(Along::Timeline(TimelineId::new(7).unwrap())));
        assert!(["0", "x", ""].iter().all(|text| along(text).is_err()));
        assert_eq!((transaction("815"), transaction("4294968111")), (Ok(815), Ok(815)));
        assert!(["0", "2", "4294967296", "-1", "x", ""].iter().all(|text| transaction(text).is_err()));
        assert_eq!(restore_point(&"x".repeat(63)), Ok("x".repeat(63)));
        assert!(restore_point(&"x".repeat(64)).is_err() && restore_point("").is_err());
    }

    #[test]
    fn compressions_of_wal() {
        assert_eq!("none".parse(), Ok(WalCompression(None)));
        assert_eq!("zstd:1".parse(), Ok(WalCompression(Some(Packing::FAST))));
        for text in ["none:1", "", "zstd:level=3"] {
            assert!(text.parse::<WalCompression>().is_err(), "{text}");
        }
    }

    #[test]
    fn mappings() {
        let of = |old: &str, new: &str| Ok(Mapping { old: old.into(), new: new.into() });
        assert_eq!(mapping("/a=/b"), of("/a", "/b"));
        assert_eq!(mapping(r"/a\=x=/b\c"), of("/a=x", r"/b\c"));
        for text in ["", "=", "/a", "/a=", "=/b", "/a=/b=/c"] {
            assert!(mapping(text).is_err(), "{text}");
        }
    }

    #[test]
    fn owners() {
        assert_eq!(owner("root"), Ok(Owner { user: 0, group: 0 }));
        assert_eq!(owner("0:0"), Ok(Owner { user: 0, group: 0 }));
        assert_eq!(owner("54321:12345"), Ok(Owner { user: 54321, group: 12345 }));
        assert!(owner("no such user").is_err());
        assert!(owner("54321").is_err(), "its group is not known");
    }

    #[test]
    fn rates() {
        for (text, kb) in [("32", 32), ("32k", 32), ("1M", 1024), ("1.5M", 1536), ("1024M", 1_048_576)] {
            assert_eq!(rate(text), MaxRate::new(kb).ok_or_else(String::new), "{text}");
        }
        for text in ["", "31", "1025M", "k", "1G", "-1M", "inf", "NaN", "1e3M "] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
