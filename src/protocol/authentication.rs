//! What a server asks of whoever logs in.

use bytes::Bytes;

use crate::cursor::Cursor;

/// A message of the kind that authentication is made of (`AuthenticationRequest` in `protocol.h`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Authentication {
    /// Nothing, or nothing more.
    Done,
    /// The password as it is.
    ClearText,
    /// The password and the user's name, hashed with this salt.
    Md5([u8; 4]),
    /// One of these mechanisms.
    Sasl(Vec<String>),
    /// More of the mechanism that was chosen; what it says is the mechanism's.
    SaslContinue(Bytes),
    /// The last of the mechanism that was chosen.
    SaslFinal(Bytes),
    /// What is not known here, by its name.
    Other(&'static str),
}

impl Authentication {
    /// Takes the message's body apart; `None` when it is none that servers send.
    pub fn decode(body: &Bytes) -> Option<Self> {
        let mut cursor = Cursor::new(body);
        let asked = match cursor.u32_be()? {
            0 => Self::Done,
            2 => Self::Other("Kerberos"),
            3 => Self::ClearText,
            5 => Self::Md5(*cursor.array()?),
            7 => Self::Other("GSSAPI"),
            9 => Self::Other("SSPI"),
            10 => return mechanisms(cursor).map(Self::Sasl),
            11 => return Some(Self::SaslContinue(body.slice_ref(cursor.rest()))),
            12 => return Some(Self::SaslFinal(body.slice_ref(cursor.rest()))),
            _ => return None,
        };
        cursor.end().map(|()| asked)
    }
}

/// Names, and an empty one behind the last.
fn mechanisms(mut list: Cursor<'_>) -> Option<Vec<String>> {
    let mut names = Vec::new();
    loop {
        match list.text()? {
            b"" => return list.end().map(|()| names),
            name => names.push(std::str::from_utf8(name).ok()?.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(kind: u8, more: &[u8]) -> Option<Authentication> {
        Authentication::decode(&[&[0, 0, 0, kind][..], more].concat().into())
    }

    #[test]
    fn what_servers_ask_is_understood() {
        let names = |names: &[&str]| Some(Authentication::Sasl(names.iter().map(|name| (*name).to_owned()).collect()));
        assert_eq!(decode(0, b""), Some(Authentication::Done));
        assert_eq!(decode(3, b""), Some(Authentication::ClearText));
        assert_eq!(decode(5, b"salt"), Some(Authentication::Md5(*b"salt")));
        assert_eq!(decode(7, b""), Some(Authentication::Other("GSSAPI")));
        assert_eq!(decode(10, b"A\0B-PLUS\0\0"), names(&["A", "B-PLUS"]));
        assert_eq!(decode(11, b"r=x"), Some(Authentication::SaslContinue(Bytes::from_static(b"r=x"))));
        assert_eq!(decode(12, b""), Some(Authentication::SaslFinal(Bytes::new())));
    }

    #[test]
    fn what_no_server_asks_is_not() {
        for (kind, more) in [
            (0, &b"x"[..]),
            (1, b""),
            (5, b"sal"),
            (5, b"salty"),
            (10, b""),
            (10, b"A\0"),
            (10, b"A"),
            (10, b"A\0\0\0"),
            (10, b"\xFF\0\0"),
            (99, b""),
        ] {
            assert_eq!(decode(kind, more), None, "{kind} {more:?}");
        }
        assert_eq!(Authentication::decode(&Bytes::from_static(&[0, 0, 0])), None);
    }
}
