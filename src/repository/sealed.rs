//! Documents that end in their own checksum, as `backup_manifest` does: JSON whose last line but
//! one is the SHA-256 of every byte before that line.

// What comes from outside never ends the program: no read beyond the end, no number that loses bits or overflows.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unwrap_used
    )
)]

use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// Bytes a document may have; a seal that names ten thousand tablespaces is far below.
pub(crate) const MAX_BYTES: usize = 16 << 20;

/// What stands before the checksum's digits.
const KEY: &[u8] = b"  \"sha256\": \"";
/// What stands behind them.
const CLOSING: &[u8] = b"\"\n}\n";

/// A kind of document. A reader takes its own version and older ones.
pub trait Document: Serialize + DeserializeOwned {
    /// What the first line calls it.
    const KIND: &'static str;
    /// Raised when an older reader would misunderstand what is written now; a member that it can
    /// do without raises nothing.
    const VERSION: u32;
}

/// The bytes are not such a document, or not as they were written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DocumentError {
    /// Above our limit.
    #[error("it is {0} bytes long, more than {MAX_BYTES}")]
    TooLong(usize),
    /// Cut short, or something else.
    #[error("it does not end in its own checksum")]
    NoChecksum,
    /// Changed since it was written.
    #[error("it does not match its own checksum")]
    Checksum,
    /// Another kind of document.
    #[error("it is not a {0}")]
    Kind(&'static str),
    /// Written by a program that is newer than this one.
    #[error("it has format version {found}, and this program knows up to {known}; use a newer walhold")]
    Version {
        /// In the document.
        found: u32,
        /// The newest that is known here.
        known: u32,
    },
    /// The checksum is right and a member is missing or has a value that is not allowed.
    #[error("it cannot be read: {0}")]
    Content(String),
}

/// The document as bytes; the same value gives the same bytes.
///
/// # Errors
/// When the value cannot be JSON, which is a mistake in its type, or it is too long to be read.
pub fn write<T: Document>(document: &T) -> Result<Vec<u8>, DocumentError> {
    let headed = Headed { walhold: T::KIND.to_owned(), version: T::VERSION, document };
    let json = serde_json::to_vec_pretty(&headed).map_err(|e| DocumentError::Content(e.to_string()))?;
    let mut bytes = json.strip_suffix(b"\n}").map(<[u8]>::to_vec).ok_or(DocumentError::Kind(T::KIND))?;
    bytes.extend_from_slice(b",\n");
    let digest = Sha256Sum::of(&bytes);
    bytes.extend_from_slice(KEY);
    bytes.extend_from_slice(digest.to_string().as_bytes());
    bytes.extend_from_slice(CLOSING);
    if bytes.len() > MAX_BYTES { Err(DocumentError::TooLong(bytes.len())) } else { Ok(bytes) }
}

/// Reads a document after checking it against its own checksum.
///
/// # Errors
/// When it is damaged, too long, of another kind, or of a newer version.
pub fn read<T: Document>(bytes: &[u8]) -> Result<T, DocumentError> {
    if bytes.len() > MAX_BYTES {
        return Err(DocumentError::TooLong(bytes.len()));
    }
    let (body, digits) = parts(bytes).ok_or(DocumentError::NoChecksum)?;
    let told: Sha256Sum = digits.parse().map_err(|_| DocumentError::NoChecksum)?;
    if Sha256Sum::of(body) != told {
        return Err(DocumentError::Checksum);
    }
    let mut json = body.strip_suffix(b",\n").ok_or(DocumentError::NoChecksum)?.to_vec();
    json.extend_from_slice(b"\n}");
    let content = |e: serde_json::Error| DocumentError::Content(e.to_string());
    let head: Head = serde_json::from_slice(&json).map_err(|_| DocumentError::Kind(T::KIND))?;
    if head.walhold != T::KIND {
        return Err(DocumentError::Kind(T::KIND));
    }
    if head.version > T::VERSION {
        return Err(DocumentError::Version { found: head.version, known: T::VERSION });
    }
    serde_json::from_slice(&json).map_err(content)
}

/// What the checksum covers, and its digits.
fn parts(bytes: &[u8]) -> Option<(&[u8], &str)> {
    let head = bytes.strip_suffix(CLOSING)?;
    let (head, digits) = head.split_at_checked(head.len().checked_sub(64)?)?;
    Some((head.strip_suffix(KEY)?, std::str::from_utf8(digits).ok()?))
}

#[derive(Serialize)]
struct Headed<'a, T> {
    walhold: String,
    version: u32,
    #[serde(flatten)]
    document: &'a T,
}

#[derive(Deserialize)]
struct Head {
    walhold: String,
    version: u32,
}

/// A SHA-256 checksum; text form is 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sha256Sum([u8; 32]);

impl Sha256Sum {
    /// Of all of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(bytes);
        Self::finish(hasher)
    }

    /// Of what the hasher has seen.
    pub fn finish(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }
}

/// The text is not 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("\"{0}\" is not a SHA-256 checksum")]
pub struct ParseSumError(String);

impl FromStr for Sha256Sum {
    type Err = ParseSumError;

    fn from_str(text: &str) -> Result<Self, ParseSumError> {
        let wrong = || ParseSumError(text.chars().take(70).collect());
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != 32 || !rest.is_empty() {
            return Err(wrong());
        }
        let digit = |b: u8| match b {
            b'0'..=b'9' => b.checked_sub(b'0'),
            b'a'..=b'f' => b.checked_sub(b'a' - 10),
            _ => None,
        };
        let mut sum = [0; 32];
        for (byte, [high, low]) in sum.iter_mut().zip(pairs) {
            *byte = digit(*high).zip(digit(*low)).map(|(high, low)| high << 4 | low).ok_or_else(wrong)?;
        }
        Ok(Self(sum))
    }
}

impl fmt::Display for Sha256Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Sha256Sum {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        as_text::serialize(self, to)
    }
}

impl<'de> Deserialize<'de> for Sha256Sum {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        as_text::deserialize(from)
    }
}

/// For members whose JSON is their text: a 64-bit number would lose digits in many readers.
pub(crate) mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(crate) fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Note {
        text: String,
        #[serde(with = "as_text")]
        number: u64,
    }

    impl Document for Note {
        const KIND: &'static str = "note";
        const VERSION: u32 = 2;
    }

    fn note() -> Note {
        Note { text: "a\"b\n\u{e9}".to_owned(), number: u64::MAX }
    }

    /// With the checksum made right again.
    fn resealed(json: &str) -> Vec<u8> {
        let mut bytes = json.as_bytes().to_vec();
        let sum = Sha256Sum::of(&bytes);
        bytes.extend(KEY);
        bytes.extend(sum.to_string().as_bytes());
        bytes.extend(CLOSING);
        bytes
    }

    #[test]
    fn a_document_goes_there_and_back() {
        let bytes = write(&note()).unwrap();
        assert_eq!(bytes, write(&note()).unwrap());
        assert_eq!(read::<Note>(&bytes), Ok(note()));
        // It is JSON as a whole, too, and its checksum is that of the lines before it.
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((json["walhold"].as_str(), json["version"].as_u64()), (Some("note"), Some(2)));
        assert_eq!(json["number"].as_str(), Some("18446744073709551615"));
        let text = String::from_utf8(bytes).unwrap();
        let at = text.find("  \"sha256\"").unwrap();
        assert_eq!(json["sha256"].as_str().unwrap(), Sha256Sum::of(&text.as_bytes()[..at]).to_string());
    }

    #[test]
    fn p6_any_change_is_seen() {
        let bytes = write(&note()).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(matches!(read::<Note>(&changed), Err(DocumentError::Checksum | DocumentError::NoChecksum)));
            assert_eq!(read::<Note>(&bytes[..at]), Err(DocumentError::NoChecksum));
        }
        let mut longer = bytes;
        longer.push(b'\n');
        assert_eq!(read::<Note>(&longer), Err(DocumentError::NoChecksum));
        assert!(matches!(read::<Note>(&vec![0; MAX_BYTES + 1]), Err(DocumentError::TooLong(_))));
    }

    #[test]
    fn other_documents_are_told_apart() {
        let with = |head: &str| read::<Note>(&resealed(&format!("{{\n{head},\n")));
        assert_eq!(
            with("\"walhold\": \"note\", \"version\": 1, \"text\": \"\", \"number\": \"1\", \"new\": 1")
                .unwrap()
                .number,
            1
        );
        let newer = with("\"walhold\": \"note\", \"version\": 3, \"all\": \"new\"");
        assert_eq!(newer, Err(DocumentError::Version { found: 3, known: 2 }));
        assert_eq!(with("\"walhold\": \"seal\", \"version\": 1"), Err(DocumentError::Kind("note")));
        assert_eq!(with("\"other\": 1"), Err(DocumentError::Kind("note")));
        assert!(matches!(with("\"walhold\": \"note\", \"version\": 1"), Err(DocumentError::Content(_))));
    }

    #[test]
    fn checksums_have_one_spelling() {
        let sum = Sha256Sum::of(b"abc");
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((sum.to_string().as_str(), text.parse()), (text, Ok(sum)));
        for wrong in [text.to_uppercase(), text[1..].to_owned(), format!("{text}0"), text.replace('b', "g")] {
            assert!(wrong.parse::<Sha256Sum>().is_err(), "{wrong}");
        }
    }
}
