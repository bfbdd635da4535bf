//! The server's half of SCRAM-SHA-256, so that the client's half can be told the truth and lies.

use postgres_protocol::password::scram_sha_256;
use sha2::{Digest, Sha256};

use super::server::{Peer, authentication};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// What a server does, and what an impostor may do in its place.
pub(crate) struct Scram {
    pub(crate) mechanisms: &'static [&'static str],
    /// What the client is expected to begin its first message with.
    pub(crate) gs2: &'static str,
    /// What the client is expected to bind to.
    pub(crate) end_point: Vec<u8>,
    pub(crate) iterations: Option<u32>,
    pub(crate) extend_nonce: bool,
    pub(crate) sign: bool,
}

impl Default for Scram {
    fn default() -> Self {
        Self {
            mechanisms: &["SCRAM-SHA-256"],
            gs2: "n,,",
            end_point: vec![],
            iterations: None,
            extend_nonce: true,
            sign: true,
        }
    }
}

impl Scram {
    pub(crate) async fn offer(&self, peer: &mut Peer) {
        let mechanisms: String = self.mechanisms.iter().map(|name| format!("{name}\0")).collect();
        peer.send(authentication(10, format!("{mechanisms}\0").as_bytes())).await;
    }

    /// Offers the mechanisms, takes the client's first message and answers with the challenge. Returns
    /// what the proof is computed over so far, the mechanism and the keys.
    async fn challenge(&self, peer: &mut Peer, password: &str) -> (String, String, Keys) {
        self.offer(peer).await;
        let body = peer.expect(b'p').await;
        let end = body.iter().position(|b| *b == 0).unwrap();
        let mechanism = String::from_utf8(body[..end].to_vec()).unwrap();
        let first = String::from_utf8(body[end + 5..].to_vec()).unwrap();
        let bare = first.strip_prefix(self.gs2).unwrap_or_else(|| panic!("{first} does not begin {}", self.gs2));
        let nonce = bare.strip_prefix("n=,r=").unwrap();
        let keys = Keys::of(password);
        let nonce = if self.extend_nonce { format!("{nonce}server") } else { "server".to_owned() };
        let iterations = self.iterations.unwrap_or(keys.iterations);
        let challenge = format!("r={nonce},s={},i={iterations}", keys.salt);
        peer.send(authentication(11, challenge.as_bytes())).await;
        (format!("{bare},{challenge}"), mechanism, keys)
    }

    /// The challenge alone: the client is expected to hang up, or is lied to next.
    pub(crate) async fn only_challenge(&self, peer: &mut Peer, password: &str) {
        self.challenge(peer, password).await;
    }

    /// The whole exchange, after which the client may be let in. Checks the client's proof and its
    /// channel binding. Returns the mechanism that it chose.
    pub(crate) async fn run(&self, peer: &mut Peer, password: &str) -> String {
        let (so_far, mechanism, keys) = self.challenge(peer, password).await;
        let last = String::from_utf8(peer.expect(b'p').await).unwrap();
        let (without_proof, proof) = last.split_once(",p=").unwrap();
        let binding = without_proof.strip_prefix("c=").unwrap().split_once(',').unwrap().0;
        assert_eq!(decode(binding), [self.gs2.as_bytes(), &self.end_point].concat());
        let message = format!("{so_far},{without_proof}");
        let signature = hmac(&keys.stored, message.as_bytes());
        let client_key: Vec<u8> = decode(proof).iter().zip(signature).map(|(a, b)| a ^ b).collect();
        assert_eq!(Sha256::digest(&client_key).as_slice(), keys.stored, "the client's proof is wrong");
        let key = if self.sign { keys.server } else { vec![0; 32] };
        let last = format!("v={}", encode(&hmac(&key, message.as_bytes())));
        peer.send(authentication(12, last.as_bytes())).await;
        mechanism
    }
}

/// What a server stores of a password.
struct Keys {
    iterations: u32,
    salt: String,
    stored: Vec<u8>,
    server: Vec<u8>,
}

impl Keys {
    fn of(password: &str) -> Self {
        let stored = scram_sha_256(password.as_bytes());
        let parts: Vec<_> = stored.split(['$', ':']).collect();
        let [_, iterations, salt, stored, server] = parts[..] else { panic!("{stored}") };
        let iterations = iterations.parse().unwrap();
        Self { iterations, salt: salt.to_owned(), stored: decode(stored), server: decode(server) }
    }
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let padded = |with: u8| -> Vec<u8> { (0..64).map(|at| key.get(at).copied().unwrap_or(0) ^ with).collect() };
    let inner = Sha256::digest([&padded(0x36), message].concat());
    Sha256::digest([padded(0x5C), inner.to_vec()].concat()).into()
}

fn encode(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0_usize, |word, at| word << 8 | usize::from(chunk.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            let digit = char::from(ALPHABET[word >> (18 - 6 * at) & 63]);
            out.push(if at <= chunk.len() { digit } else { '=' });
        }
    }
    out
}

fn decode(text: &str) -> Vec<u8> {
    let digits = text.trim_end_matches('=').bytes().map(|b| ALPHABET.iter().position(|a| *a == b).unwrap());
    let (mut out, mut word, mut bits) = (Vec::new(), 0_usize, 0);
    for digit in digits {
        word = (word << 6 | digit) & 0xFFFF;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push(u8::try_from(word >> bits & 255).unwrap());
        }
    }
    out
}

#[test]
fn the_tests_own_tools_are_right() {
    for (bytes, text) in [(&b""[..], ""), (b"f", "Zg=="), (b"fo", "Zm8="), (b"foo", "Zm9v"), (b"foob", "Zm9vYg==")] {
        assert_eq!((encode(bytes).as_str(), decode(text).as_slice()), (text, bytes));
    }
    // RFC 4231, test case 2.
    let expected = "W9zBRr9gdU5qBCQmCJV1x1oAPwidJzmDnexYuWTsOEM=";
    assert_eq!(encode(&hmac(b"Jefe", b"what do ya want for nothing?")), expected);
}
