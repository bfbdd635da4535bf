//! The value of `--max-rate`, with pg_basebackup's messages.

use crate::protocol::MaxRate;

/// kB (1024 bytes) a second, or with the suffix `k` or `M`; a fraction is allowed, and what is left of it dropped.
pub(super) fn max_rate(text: &str) -> Result<MaxRate, String> {
    let Some((number, suffix)) = number(text) else {
        return Err(format!("transfer rate \"{text}\" is not a valid value"));
    };
    if number.is_infinite() {
        return Err(format!("invalid transfer rate \"{text}\": Numerical result out of range"));
    }
    if number <= 0.0 {
        return Err("transfer rate must be greater than zero".to_owned());
    }
    let kb = match suffix.trim_end_matches(is_space) {
        "" | "k" => number,
        "M" => number * 1024.0,
        _ => return Err(format!("invalid --max-rate unit: \"{suffix}\"")),
    };
    if kb >= 4_294_967_296.0 {
        return Err(format!("transfer rate \"{text}\" exceeds integer range"));
    }
    let out_of_range = || format!("transfer rate \"{text}\" is out of range");
    // In this range the whole part of every number fits.
    let in_range = Some(kb).filter(|kb| (32.0..=1_048_576.0).contains(kb)).ok_or_else(out_of_range)?;
    MaxRate::new(in_range as u32).ok_or_else(out_of_range)
}

/// A decimal number that `text` begins with, and what follows it, both without white space before them.
fn number(text: &str) -> Option<(f64, &str)> {
    let text = text.trim_start_matches(is_space);
    let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let sign = usize::from(text.starts_with(['+', '-']));
    let whole = digits(&text[sign..]);
    let mut end = sign + whole;
    if text[end..].starts_with('.') {
        let fraction = digits(&text[end + 1..]);
        if whole + fraction > 0 {
            end += 1 + fraction;
        }
    }
    // An exponent counts only if it is whole.
    if let Some(exponent) = text[end..].strip_prefix(['e', 'E']) {
        let sign = usize::from(exponent.starts_with(['+', '-']));
        let count = digits(&exponent[sign..]);
        if count > 0 {
            end += 1 + sign + count;
        }
    }
    let number = text[..end].parse().ok()?;
    Some((number, text[end..].trim_start_matches(is_space)))
}

fn is_space(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken() {
        for (text, kb) in [
            ("32", 32),
            ("1048576", 1_048_576),
            (" +100k", 100),
            ("100 k ", 100),
            ("33.9", 33),
            ("1M", 1024),
            ("0.5M", 512),
            (".5M", 512),
            ("1e3", 1000),
            ("1024M", 1_048_576),
        ] {
            assert_eq!(max_rate(text).ok(), MaxRate::new(kb), "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        for (text, message) in [
            ("", "transfer rate \"\" is not a valid value"),
            ("fast", "transfer rate \"fast\" is not a valid value"),
            (".", "transfer rate \".\" is not a valid value"),
            ("-", "transfer rate \"-\" is not a valid value"),
            ("0", "transfer rate must be greater than zero"),
            ("-5M", "transfer rate must be greater than zero"),
            ("1e999", "invalid transfer rate \"1e999\": Numerical result out of range"),
            ("100kB", "invalid --max-rate unit: \"kB\""),
            ("100 m", "invalid --max-rate unit: \"m\""),
            ("100e", "invalid --max-rate unit: \"e\""),
            ("31.9", "transfer rate \"31.9\" is out of range"),
            ("1048577", "transfer rate \"1048577\" is out of range"),
            ("1025M", "transfer rate \"1025M\" is out of range"),
            ("4294967296", "transfer rate \"4294967296\" exceeds integer range"),
        ] {
            assert_eq!(max_rate(text), Err(message.to_owned()), "{text}");
        }
    }
}
