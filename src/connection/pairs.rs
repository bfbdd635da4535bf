//! A connection string in either of its forms, as keywords and values.

use super::{ConninfoError, uri};

/// Keywords and values of a connection string in either form, in order.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>, ConninfoError> {
    let after_scheme = ["postgresql://", "postgres://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    match after_scheme {
        Some(rest) => uri::pairs(rest),
        None => keyword_pairs(text),
    }
}

/// `key=value key = 'it\'s quoted'`: blanks around the sign are allowed, a backslash takes the
/// meaning from the character after it, in quotes and outside.
fn keyword_pairs(text: &str) -> Result<Vec<(String, String)>, ConninfoError> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace()).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let missing = || ConninfoError::MissingEquals(shown(name, &pairs));
        let after = after.trim_start().strip_prefix('=').ok_or_else(missing)?;
        let (value, after) = value(after.trim_start())?;
        pairs.push((name.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(pairs)
}

/// The value at the beginning of `text`, and what comes after it.
fn value(text: &str) -> Result<(String, &str), ConninfoError> {
    let (quoted, body) = match text.strip_prefix('\'') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut out = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => out.extend(chars.next().map(|(_, c)| c)),
            '\'' if quoted => return Ok((out, chars.as_str())),
            c if !quoted && c.is_ascii_whitespace() => return Ok((out, body.get(at..).unwrap_or_default())),
            c => out.push(c),
        }
    }
    if quoted { Err(ConninfoError::Unterminated) } else { Ok((out, "")) }
}

/// A word that may be part of a password that was not quoted is not shown.
fn shown(word: &str, before: &[(String, String)]) -> String {
    let after_password = before.last().is_some_and(|(keyword, _)| keyword.contains("password"));
    let harmless = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if after_password || !word.chars().all(harmless) { "...".to_owned() } else { word.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_read_by_libpqs_quoting_rules() {
        let cases: &[(&str, &[(&str, &str)])] = &[
            ("", &[]),
            ("  ", &[]),
            ("host=a port=1", &[("host", "a"), ("port", "1")]),
            ("host = a\tport\n=\n1", &[("host", "a"), ("port", "1")]),
            ("host=", &[("host", "")]),
            ("host='' user='a b'", &[("host", ""), ("user", "a b")]),
            (r"password='it\'s \\ =' user=x\ y", &[("password", r"it's \ ="), ("user", "x y")]),
            ("user=a'b", &[("user", "a'b")]),
            ("user='a'port=1", &[("user", "a"), ("port", "1")]),
            (r"user=a\", &[("user", "a")]),
            ("postgres://h", &[("host", "h")]),
            ("postgresql://", &[]),
        ];
        for (text, expected) in cases {
            let expected: Vec<_> = expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            assert_eq!(pairs(text).unwrap(), expected, "{text:?}");
        }
        for text in ["user='a", r"user='a\'", "user='"] {
            assert_eq!(pairs(text), Err(ConninfoError::Unterminated), "{text:?}");
        }
    }

    #[test]
    fn a_word_without_a_value_is_named_unless_it_may_be_secret() {
        for (text, word) in [
            ("mydb", "mydb"),
            ("host a", "host"),
            ("host=a port", "port"),
            ("password=correct horse", "..."),
            ("postgres//me:hush@db", "..."),
        ] {
            assert_eq!(pairs(text), Err(ConninfoError::MissingEquals(word.into())), "{text:?}");
        }
    }
}
