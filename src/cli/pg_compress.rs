//! How PostgreSQL's programs are told to compress (`--compress METHOD[:DETAIL]`), with their
//! messages (`src/common/compression.c`).

/// A method that these programs know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Method {
    None,
    Gzip,
    Lz4,
    Zstd,
}

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Specification {
    pub(super) method: Method,
    /// In the method's range; `None` is its default.
    pub(super) level: Option<i32>,
    /// Threads; only zstd takes any.
    pub(super) workers: Option<i32>,
    /// Long-distance matching; only zstd has it.
    pub(super) long: Option<bool>,
}

impl Method {
    fn named(name: &str) -> Option<Self> {
        [Self::None, Self::Gzip, Self::Lz4, Self::Zstd].into_iter().find(|method| method.name() == name)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// Least and greatest level, and the number that stands for the default.
    const fn levels(self) -> (i32, i32, i32) {
        match self {
            Self::None => (1, 1, 0),
            Self::Gzip => (1, 9, -1),
            Self::Lz4 => (1, 12, 0),
            Self::Zstd => (-131_072, 22, 3),
        }
    }
}

impl Specification {
    /// Reads the whole argument. The error is the message.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (name, detail) = split(text);
        let method = Method::named(name).ok_or_else(|| format!("unrecognized compression algorithm: \"{name}\""))?;
        Self::of(method, detail).map_err(|e| format!("invalid compression specification: {e}"))
    }

    fn of(method: Method, detail: Option<&str>) -> Result<Self, String> {
        let mut this = Self { method, level: None, workers: None, long: None };
        if let Some(detail) = detail {
            match integer(detail) {
                Some(level) => this.level = Some(level),
                None => detail.split(',').try_for_each(|item| this.set(item))?,
            }
        }
        this.check()
    }

    /// One `keyword` or `keyword=value`.
    fn set(&mut self, item: &str) -> Result<(), String> {
        let (keyword, value) = item.split_once('=').map_or((item, None), |(keyword, value)| (keyword, Some(value)));
        match keyword {
            "" => return Err("found empty string where a compression option was expected".to_owned()),
            "level" => self.level = Some(number(keyword, value)?),
            "workers" => self.workers = Some(number(keyword, value)?),
            "long" => self.long = Some(boolean(keyword, value)?),
            _ => return Err(format!("unrecognized compression option: \"{keyword}\"")),
        }
        Ok(())
    }

    fn check(self) -> Result<Self, String> {
        let name = self.method.name();
        let (min, max, default) = self.method.levels();
        let level = self.level.filter(|level| *level != default);
        if level.is_some() && self.method == Method::None {
            return Err(format!("compression algorithm \"{name}\" does not accept a compression level"));
        }
        if level.is_some_and(|level| level < min || level > max) {
            return Err(format!(
                "compression algorithm \"{name}\" expects a compression level between {min} and {max} (default at {default})"
            ));
        }
        if self.workers.is_some() && self.method != Method::Zstd {
            return Err(format!("compression algorithm \"{name}\" does not accept a worker count"));
        }
        if self.long.is_some() && self.method != Method::Zstd {
            return Err(format!("compression algorithm \"{name}\" does not support long-distance mode"));
        }
        Ok(Self { level, ..self })
    }
}

/// The method's name and its detail, neither of them looked at. A number alone is a level of gzip, and 0 is no
/// compression.
pub(super) fn split(text: &str) -> (&str, Option<&str>) {
    match integer(text) {
        _ if text.is_empty() => ("none", None),
        Some(0) => ("none", None),
        Some(_) => ("gzip", Some(text)),
        None => text.split_once(':').map_or((text, None), |(name, detail)| (name, Some(detail))),
    }
}

/// A whole number as C's `strtol` takes it, all of the text: white space and a sign may come first.
/// One that is too large stays too large for whatever it is.
pub(super) fn integer(text: &str) -> Option<i32> {
    let text = text.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let beyond = if text.starts_with('-') { i32::MIN } else { i32::MAX };
    Some(text.parse().unwrap_or(beyond))
}

fn number(keyword: &str, value: Option<&str>) -> Result<i32, String> {
    let value = value.ok_or_else(|| format!("compression option \"{keyword}\" requires a value"))?;
    integer(value).ok_or_else(|| format!("value for compression option \"{keyword}\" must be an integer"))
}

fn boolean(keyword: &str, value: Option<&str>) -> Result<bool, String> {
    match value.map(str::to_ascii_lowercase).as_deref() {
        None | Some("yes" | "on" | "1") => Ok(true),
        Some("no" | "off" | "0") => Ok(false),
        Some(_) => Err(format!("value for compression option \"{keyword}\" must be a Boolean value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn of(method: Method, level: Option<i32>) -> Specification {
        Specification { method, level, workers: None, long: None }
    }

    #[test]
    fn what_is_taken() {
        for (text, wanted) in [
            ("", of(Method::None, None)),
            ("0", of(Method::None, None)),
            ("none", of(Method::None, None)),
            ("none:0", of(Method::None, None)),
            ("5", of(Method::Gzip, Some(5))),
            (" +5", of(Method::Gzip, Some(5))),
            ("-1", of(Method::Gzip, None)),
            ("gzip", of(Method::Gzip, None)),
            ("gzip:9", of(Method::Gzip, Some(9))),
            ("gzip:level=1", of(Method::Gzip, Some(1))),
            ("gzip:level=1,level=2", of(Method::Gzip, Some(2))),
            ("lz4", of(Method::Lz4, None)),
            ("lz4:0", of(Method::Lz4, None)),
            ("lz4:12", of(Method::Lz4, Some(12))),
            ("zstd:-5", of(Method::Zstd, Some(-5))),
        ] {
            assert_eq!(Specification::parse(text), Ok(wanted), "{text:?}");
        }
        let all = Specification { method: Method::Zstd, level: Some(7), workers: Some(2), long: Some(true) };
        assert_eq!(Specification::parse("zstd:level=7,workers=2,long"), Ok(all));
        assert_eq!(Specification::parse("zstd:long=OFF").map(|specification| specification.long), Ok(Some(false)));
    }

    #[test]
    fn what_is_refused() {
        for (text, message) in [
            ("foo", "unrecognized compression algorithm: \"foo\""),
            ("GZIP", "unrecognized compression algorithm: \"GZIP\""),
            ("9x", "unrecognized compression algorithm: \"9x\""),
            (":", "unrecognized compression algorithm: \"\""),
            (" ", "unrecognized compression algorithm: \" \""),
        ] {
            assert_eq!(Specification::parse(text), Err(message.to_owned()), "{text:?}");
        }
        for (text, message) in [
            ("99", "compression algorithm \"gzip\" expects a compression level between 1 and 9 (default at -1)"),
            ("-2", "compression algorithm \"gzip\" expects a compression level between 1 and 9 (default at -1)"),
            ("gzip:0", "compression algorithm \"gzip\" expects a compression level between 1 and 9 (default at -1)"),
            (
                "gzip:4294967297",
                "compression algorithm \"gzip\" expects a compression level between 1 and 9 (default at -1)",
            ),
            ("lz4:13", "compression algorithm \"lz4\" expects a compression level between 1 and 12 (default at 0)"),
            (
                "zstd:23",
                "compression algorithm \"zstd\" expects a compression level between -131072 and 22 (default at 3)",
            ),
            ("none:1", "compression algorithm \"none\" does not accept a compression level"),
            ("none:workers=1", "compression algorithm \"none\" does not accept a worker count"),
            ("gzip:workers=3", "compression algorithm \"gzip\" does not accept a worker count"),
            ("lz4:level=1,workers=3", "compression algorithm \"lz4\" does not accept a worker count"),
            ("gzip:long", "compression algorithm \"gzip\" does not support long-distance mode"),
            ("lz4:long=no", "compression algorithm \"lz4\" does not support long-distance mode"),
            ("gzip:", "found empty string where a compression option was expected"),
            ("gzip:,", "found empty string where a compression option was expected"),
            ("gzip:level=1,", "found empty string where a compression option was expected"),
            ("gzip:=1", "found empty string where a compression option was expected"),
            ("gzip:level", "compression option \"level\" requires a value"),
            ("zstd:workers", "compression option \"workers\" requires a value"),
            ("gzip:level=", "value for compression option \"level\" must be an integer"),
            ("gzip:level=9x", "value for compression option \"level\" must be an integer"),
            ("zstd:workers=many", "value for compression option \"workers\" must be an integer"),
            ("zstd:long=maybe", "value for compression option \"long\" must be a Boolean value"),
            ("gzip:fast", "unrecognized compression option: \"fast\""),
            ("gzip:fast=1,level=99", "unrecognized compression option: \"fast\""),
        ] {
            let whole = format!("invalid compression specification: {message}");
            assert_eq!(Specification::parse(text), Err(whole), "{text:?}");
        }
    }
}
