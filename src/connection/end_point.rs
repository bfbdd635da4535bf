//! What a login over TLS is bound to.

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use x509_cert::Certificate;
use x509_cert::der::asn1::{AnyRef, ContextSpecific};
use x509_cert::der::{Decode, Encode, Reader, SliceReader, TagNumber};
use x509_cert::spki::{AlgorithmIdentifierOwned, AlgorithmIdentifierRef, ObjectIdentifier};

/// What `tls-server-end-point` binds a login to (RFC 5929): the certificate's hash under the hash
/// function of its own signature, SHA-256 in place of MD5 and SHA-1. `None` where that is not
/// defined (Ed25519) or not known.
pub(super) fn end_point(stream: &TlsStream<TcpStream>) -> Option<Vec<u8>> {
    let (_, session) = stream.get_ref();
    certificate_hash(session.peer_certificates()?.first()?)
}

fn certificate_hash(der: &[u8]) -> Option<Vec<u8>> {
    let certificate = Certificate::from_der(der).ok()?;
    Some(match SignatureHash::of(certificate.signature_algorithm())? {
        SignatureHash::Sha224 => Sha224::digest(der).to_vec(),
        SignatureHash::Sha256 => Sha256::digest(der).to_vec(),
        SignatureHash::Sha384 => Sha384::digest(der).to_vec(),
        SignatureHash::Sha512 => Sha512::digest(der).to_vec(),
    })
}

/// The hash function to bind with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SignatureHash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

const RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

impl SignatureHash {
    fn of(algorithm: &AlgorithmIdentifierOwned) -> Option<Self> {
        if algorithm.oid == RSASSA_PSS {
            let parameters = algorithm.parameters.as_ref()?.to_der().ok()?;
            return Self::of_pss(&parameters);
        }
        Self::of_signature(algorithm.oid)
    }

    /// The hash that is part of a signature algorithm's name.
    fn of_signature(oid: ObjectIdentifier) -> Option<Self> {
        Some(match oid.to_string().as_str() {
            // RSA with MD5, SHA-1 and SHA-256; ECDSA and DSA likewise.
            "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.113549.1.1.11" => Self::Sha256,
            "1.2.840.10045.4.1" | "1.2.840.10045.4.3.2" => Self::Sha256,
            "1.2.840.10040.4.3" | "2.16.840.1.101.3.4.3.2" => Self::Sha256,
            "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" | "2.16.840.1.101.3.4.3.1" => Self::Sha224,
            "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.3.3" => Self::Sha384,
            "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.3.4" => Self::Sha512,
            _ => return None,
        })
    }

    /// RSASSA-PSS names its hash in the first of its parameters; SHA-1 when it is left out.
    fn of_pss(parameters: &[u8]) -> Option<Self> {
        let mut reader = SliceReader::new(parameters).ok()?;
        let hash = reader
            .sequence(|inner: &mut SliceReader<'_>| {
                let hash = ContextSpecific::<AlgorithmIdentifierRef<'_>>::decode_explicit(inner, TagNumber(0))?;
                while !inner.is_finished() {
                    AnyRef::decode(inner)?;
                }
                Ok::<_, x509_cert::der::Error>(hash)
            })
            .ok()?;
        let Some(hash) = hash else { return Some(Self::Sha256) };
        Some(match hash.value.oid.to_string().as_str() {
            "1.2.840.113549.2.5" | "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => Self::Sha256,
            "2.16.840.1.101.3.4.2.4" => Self::Sha224,
            "2.16.840.1.101.3.4.2.2" => Self::Sha384,
            "2.16.840.1.101.3.4.2.3" => Self::Sha512,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
        SignatureAlgorithm,
    };

    use super::*;

    #[test]
    fn a_login_is_bound_with_the_hash_of_the_signature() {
        let signed_with = |algorithm: &'static SignatureAlgorithm| {
            let key = KeyPair::generate_for(algorithm).unwrap();
            CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap().der().to_vec()
        };
        let (p256, p384) = (signed_with(&PKCS_ECDSA_P256_SHA256), signed_with(&PKCS_ECDSA_P384_SHA384));
        assert_eq!(certificate_hash(&p256), Some(Sha256::digest(&p256).to_vec()));
        assert_eq!(certificate_hash(&p384), Some(Sha384::digest(&p384).to_vec()));
        let rsa = signed_with(&PKCS_RSA_SHA256);
        assert_eq!(certificate_hash(&rsa), Some(Sha256::digest(&rsa).to_vec()));
        assert_eq!(certificate_hash(&signed_with(&PKCS_ED25519)), None);
        assert_eq!(certificate_hash(b"no certificate"), None);
    }

    #[test]
    fn old_hashes_are_replaced_and_unknown_ones_refused() {
        for (oid, hash) in [
            ("1.2.840.113549.1.1.4", Some(SignatureHash::Sha256)),
            ("1.2.840.113549.1.1.5", Some(SignatureHash::Sha256)),
            ("1.2.840.113549.1.1.14", Some(SignatureHash::Sha224)),
            ("1.2.840.113549.1.1.13", Some(SignatureHash::Sha512)),
            ("1.2.840.10045.4.3.4", Some(SignatureHash::Sha512)),
            ("1.3.101.112", None),
        ] {
            assert_eq!(SignatureHash::of_signature(oid.parse().unwrap()), hash, "{oid}");
        }
    }

    #[test]
    fn pss_names_its_hash_in_its_parameters() {
        // SEQUENCE { [0] { SEQUENCE { OID 2.16.840.1.101.3.4.2.n, NULL } }, [2] { INTEGER 32 } }
        let parameters = |last: u8| {
            let mut der = vec![0x30, 0x16, 0xA0, 0x0F, 0x30, 0x0D, 0x06, 0x09];
            der.extend([
                0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, last, 0x05, 0x00, 0xA2, 0x03, 0x02, 0x01, 0x20,
            ]);
            der
        };
        assert_eq!(SignatureHash::of_pss(&parameters(1)), Some(SignatureHash::Sha256));
        assert_eq!(SignatureHash::of_pss(&parameters(2)), Some(SignatureHash::Sha384));
        assert_eq!(SignatureHash::of_pss(&parameters(3)), Some(SignatureHash::Sha512));
        assert_eq!(SignatureHash::of_pss(&parameters(9)), None);
        assert_eq!(SignatureHash::of_pss(&[0x30, 0x00]), Some(SignatureHash::Sha256), "SHA-1 is the default");
        assert_eq!(SignatureHash::of_pss(&[0x30, 0x05, 0xA0]), None);
    }
}
