//! A connection string in the form of a URI.

use super::ConninfoError;

/// Keywords and values of what follows the scheme,
/// `[user[:password]@][host][:port][,...][/dbname][?keyword=value&...]`, each part percent-encoded.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>, ConninfoError> {
    let (rest, query) = split_at_first(text, '?');
    let authority_end = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    let mut pairs = Vec::new();
    let mut put = |keyword: &str, encoded: &str| {
        if !encoded.is_empty() {
            pairs.push((keyword.to_owned(), decoded(encoded)?));
        }
        Ok(())
    };
    let host_port = match authority.rsplit_once('@') {
        Some((login, host_port)) => {
            let (user, password) = split_at_first(login, ':');
            put("user", user)?;
            put("password", password)?;
            host_port
        }
        None => authority,
    };
    let hosts: Vec<_> = host_port.split(',').map(host_and_port).collect::<Result<_, _>>()?;
    let (hosts, ports): (Vec<_>, Vec<_>) = hosts.into_iter().unzip();
    put("host", &hosts.join(","))?;
    if ports.iter().any(|port| !port.is_empty()) {
        put("port", &ports.join(","))?;
    }
    put("dbname", path.strip_prefix('/').unwrap_or_default())?;
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        pairs.push(self::parameter(parameter)?);
    }
    Ok(pairs)
}

fn parameter(parameter: &str) -> Result<(String, String), ConninfoError> {
    let (keyword, value) = parameter.split_once('=').ok_or(ConninfoError::Uri("a parameter without \"=\""))?;
    if value.contains('=') {
        return Err(ConninfoError::Uri("a parameter with more than one \"=\""));
    }
    match (decoded(keyword)?.as_str(), decoded(value)?) {
        // As JDBC writes it.
        ("ssl", value) if value == "true" => Ok(("sslmode".to_owned(), "require".to_owned())),
        (keyword, value) => Ok((keyword.to_owned(), value)),
    }
}

/// Host and port, the host without the brackets of an IPv6 address.
fn host_and_port(text: &str) -> Result<(&str, &str), ConninfoError> {
    let Some(bracketed) = text.strip_prefix('[') else { return Ok(split_at_first(text, ':')) };
    let unclosed = ConninfoError::Uri("an IPv6 address without its closing bracket");
    let (host, after) = bracketed.split_once(']').ok_or(unclosed)?;
    match after.strip_prefix(':') {
        Some(port) if !host.is_empty() => Ok((host, port)),
        None if !host.is_empty() && after.is_empty() => Ok((host, "")),
        _ => Err(ConninfoError::Uri("an IPv6 address that is empty or followed by something else than a port")),
    }
}

fn split_at_first(text: &str, separator: char) -> (&str, &str) {
    text.split_once(separator).unwrap_or((text, ""))
}

fn decoded(text: &str) -> Result<String, ConninfoError> {
    let wrong = ConninfoError::Uri("a percent sign without two hexadecimal digits, or %00");
    let text = text.trim();
    if text.contains(|c: char| c.is_ascii_whitespace()) {
        return Err(ConninfoError::Uri("a space inside a value, which is written %20"));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
        let value = digit().zip(digit()).and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
        out.push(value.filter(|value| *value != 0).ok_or_else(|| wrong.clone())?);
    }
    String::from_utf8(out).map_err(|_| ConninfoError::Uri("text that is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_taken_apart() {
        let cases: &[(&str, &[(&str, &str)])] = &[
            ("", &[]),
            ("h", &[("host", "h")]),
            ("h:1/db", &[("host", "h"), ("port", "1"), ("dbname", "db")]),
            ("u@h", &[("user", "u"), ("host", "h")]),
            ("u:p%40%3A@h", &[("user", "u"), ("password", "p@:"), ("host", "h")]),
            ("u:p@w@h", &[("user", "u"), ("password", "p@w"), ("host", "h")]),
            ("[::1]:2/", &[("host", "::1"), ("port", "2")]),
            ("[fe80::1]", &[("host", "fe80::1")]),
            ("%2Frun%2Fpg", &[("host", "/run/pg")]),
            ("/db?host=/run&sslmode=require", &[("dbname", "db"), ("host", "/run"), ("sslmode", "require")]),
            ("h?ssl=true&user=%C3%A4", &[("host", "h"), ("sslmode", "require"), ("user", "ä")]),
            ("a:1,b:2/db", &[("host", "a,b"), ("port", "1,2"), ("dbname", "db")]),
            ("a,[::1]:2,c", &[("host", "a,::1,c"), ("port", ",2,")]),
            ("a,b", &[("host", "a,b")]),
            ("h?user = u & sslmode=%20require", &[("host", "h"), ("user", "u"), ("sslmode", " require")]),
        ];
        for (text, expected) in cases {
            let expected: Vec<_> = expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            assert_eq!(pairs(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn uris_that_are_nearly_right_are_refused() {
        for text in [
            "[::1",
            "[]:1",
            "[::1]x",
            "h%2",
            "h%zz",
            "h%+1",
            "h%00",
            "%FF",
            "h?user",
            "h?user=a=b",
            "a,[::1",
            "h?user=a b",
        ] {
            assert!(matches!(pairs(text), Err(ConninfoError::Uri(_))), "{text}: {:?}", pairs(text));
        }
    }
}
