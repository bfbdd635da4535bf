//! Which server it is.

use std::fmt;

/// The server's version as one number, as `server_version_num` has it: 150018 is 15.18.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerVersion(u32);

impl ServerVersion {
    /// The oldest major version whose backups have a manifest, and which walhold works with.
    pub const OLDEST_MAJOR: u32 = 13;
    /// The newest major version that was tried.
    pub const NEWEST_MAJOR: u32 = 18;

    /// The version with this number.
    pub const fn new(num: u32) -> Self {
        Self(num)
    }

    /// Reads the `server_version` parameter: `15.18 (Debian 15.18-0+deb12u1)`, `18beta2`, `9.6.24`.
    pub fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let mut parts = text.get(..end)?.split('.').map(|part| part.parse::<u32>().ok());
        let major = parts.next()??;
        let minor = parts.next().flatten().unwrap_or(0);
        let third = parts.next().flatten().unwrap_or(0);
        if major > 9999 || minor > 99 || third > 99 {
            return None;
        }
        // Since 10 the second part is the minor version; before, the first two were the major.
        let below = if major >= 10 { minor } else { minor.saturating_mul(100).saturating_add(third) };
        Some(Self(major.saturating_mul(10_000).saturating_add(below)))
    }

    /// The number.
    pub const fn num(self) -> u32 {
        self.0
    }

    /// The major version: 15 for 15.18, and 9 for 9.6.
    pub const fn major(self) -> u32 {
        self.0 / 10_000
    }

    /// Whether commands take their options as a list in parentheses, a base backup is one copy
    /// stream, and `READ_REPLICATION_SLOT` exists.
    pub const fn is_15_or_later(self) -> bool {
        self.0 >= 150_000
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.major() >= 10 {
            write!(f, "{}.{}", self.major(), self.0 % 10_000)
        } else {
            write!(f, "{}.{}.{}", self.major(), self.0 / 100 % 100, self.0 % 100)
        }
    }
}

impl fmt::Debug for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_servers_spell_them() {
        for (text, num, shown) in [
            ("15.18 (Debian 15.18-0+deb12u1)", 150_018, "15.18"),
            ("13.23", 130_023, "13.23"),
            ("18beta2", 180_000, "18.0"),
            ("19devel", 190_000, "19.0"),
            ("9.6.24", 90_624, "9.6.24"),
        ] {
            let version = ServerVersion::parse(text).unwrap();
            assert_eq!((version.num(), version.to_string().as_str()), (num, shown), "{text}");
        }
        for text in ["", "x", "beta", "99999.1", "15.100", "123456789012.1"] {
            assert_eq!(ServerVersion::parse(text), None, "{text:?}");
        }
    }
}
