//! Our own certificate and its key (`initialize_SSL` in `fe-secure-openssl.c`).

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use pkcs8::EncryptedPrivateKeyInfoRef;
use pkcs8::der::SecretDocument;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use secrecy::{ExposeSecret, SecretString};

use super::TlsError;
use super::encryption::{CertFile, CertMode, ClientCert};

/// What the server has seen of us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shown {
    /// It did not ask.
    NotAsked,
    /// It asked, and we had none that it could use.
    NotSent,
    Sent,
}

/// Our certificate, if we have one, and whether the server asked for it in a handshake.
#[derive(Debug)]
pub(super) struct Identity {
    certified: Option<Arc<CertifiedKey>>,
    shown: AtomicU8,
}

impl Identity {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// When a certificate was named that is not there, or there is one that cannot be used.
    pub(super) fn load(settings: &ClientCert, provider: &CryptoProvider) -> Result<Self, TlsError> {
        let certified = load(settings, provider)?.map(Arc::new);
        Ok(Self { certified, shown: AtomicU8::new(0) })
    }

    pub(super) fn shown(&self) -> Shown {
        match self.shown.load(Ordering::Relaxed) {
            0 => Shown::NotAsked,
            1 => Shown::NotSent,
            _ => Shown::Sent,
        }
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let usable = self.certified.as_ref().filter(|certified| certified.key.choose_scheme(schemes).is_some());
        self.shown.store(if usable.is_some() { 2 } else { 1 }, Ordering::Relaxed);
        usable.cloned()
    }

    fn has_certs(&self) -> bool {
        self.certified.is_some()
    }
}

const MAKE: &str = "sslcert and sslkey name files in PEM form; sslcertmode=disable goes without a certificate";

fn wrong(path: &Path, reason: impl Into<String>, hint: &'static str) -> TlsError {
    TlsError::Client { path: path.to_owned(), reason: reason.into(), hint }
}

fn load(settings: &ClientCert, provider: &CryptoProvider) -> Result<Option<CertifiedKey>, TlsError> {
    if settings.mode == CertMode::Disable {
        return Ok(None);
    }
    let Some((path, pem)) = certificate_file(&settings.certificate)? else { return Ok(None) };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(&path, error.to_string(), MAKE))?;
    if chain.is_empty() {
        return Err(wrong(&path, "it holds no certificate in PEM form", MAKE));
    }
    let key_path = match &settings.key {
        CertFile::Named(path) | CertFile::Usual(Some(path)) => path.clone(),
        CertFile::Usual(None) => return Err(wrong(&path, "there is a certificate, but no key for it", MAKE)),
    };
    let key = key(&key_path, settings.password.as_ref())?;
    let certified = CertifiedKey::from_der(chain, key, provider);
    certified
        .map(Some)
        .map_err(|error| wrong(&key_path, format!("it does not go with {}: {error}", path.display()), MAKE))
}

/// The certificate file and its content; `None` if nobody named one and there is none.
fn certificate_file(place: &CertFile) -> Result<Option<(PathBuf, Vec<u8>)>, TlsError> {
    let (path, named) = match place {
        CertFile::Named(path) => (path, true),
        CertFile::Usual(Some(path)) => (path, false),
        CertFile::Usual(None) => return Ok(None),
    };
    match fs::read(path) {
        Ok(pem) => Ok(Some((path.clone(), pem))),
        Err(e) if !named && matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(wrong(path, e.to_string(), MAKE)),
    }
}

fn key(path: &Path, password: Option<&SecretString>) -> Result<PrivateKeyDer<'static>, TlsError> {
    let meta = fs::metadata(path).map_err(|error| wrong(path, error.to_string(), MAKE))?;
    if !meta.is_file() {
        return Err(wrong(path, "it is not a plain file", MAKE));
    }
    if is_open_to_others(&meta) {
        let hint = "chmod 0600 it; a key that belongs to root may be 0640";
        return Err(wrong(path, "others may use this key, so it is not used", hint));
    }
    let pem = fs::read(path).map_err(|error| wrong(path, error.to_string(), MAKE))?;
    match encrypted(&pem) {
        Some(Ok(text)) => decrypted(path, text, password),
        Some(Err(())) => {
            let hint = "convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD -out NEW";
            Err(wrong(path, "the key is encrypted in the old way of OpenSSL, which walhold does not read", hint))
        }
        None => PrivateKeyDer::from_pem_slice(&pem).map_err(|error| wrong(path, error.to_string(), MAKE)),
    }
}

/// A key that belongs to root may be read by its group: so an administrator shares it.
fn is_open_to_others(meta: &Metadata) -> bool {
    let closed_bits = if meta.uid() == 0 { 0o037 } else { 0o077 };
    meta.mode() & closed_bits != 0
}

/// The encrypted key in the file if there is one, or `Err` for one that we cannot read.
fn encrypted(pem: &[u8]) -> Option<Result<&str, ()>> {
    let text = std::str::from_utf8(pem).ok()?;
    if let Some(at) = text.find("-----BEGIN ENCRYPTED PRIVATE KEY-----") {
        return text.get(at..).map(Ok);
    }
    text.contains("Proc-Type: 4,ENCRYPTED").then_some(Err(()))
}

fn decrypted(path: &Path, pem: &str, password: Option<&SecretString>) -> Result<PrivateKeyDer<'static>, TlsError> {
    let hint = "give its password with sslpassword=";
    let Some(password) = password else {
        return Err(wrong(path, "the key is encrypted, and no password is given", hint));
    };
    let unreadable = |what: &str| wrong(path, what, MAKE);
    let end = pem.find("-----END ENCRYPTED PRIVATE KEY-----").ok_or_else(|| unreadable("the key is cut off"))?;
    let end = pem.get(end..).and_then(|rest| rest.find('\n')).map_or(pem.len(), |line| end.saturating_add(line));
    let (_, document) =
        SecretDocument::from_pem(pem.get(..end).unwrap_or(pem)).map_err(|_| unreadable("it is no PEM file"))?;
    let info = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes())
        .map_err(|_| unreadable("the key is encrypted in a way that walhold does not know"))?;
    let key = info
        .decrypt(password.expose_secret())
        .map_err(|_| wrong(path, "sslpassword does not open the key, or its cipher is not known", hint))?;
    Ok(PrivateKeyDer::Pkcs8(key.as_bytes().to_vec().into()))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test's own files")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustls::crypto::aws_lc_rs;

    use super::*;

    /// Made by `openssl pkcs8 -topk8 -v2 aes-256-cbc`; the password is "hush".
    const ENCRYPTED: &str = "\
-----BEGIN ENCRYPTED PRIVATE KEY-----\n\
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAgjXnFA8gZ4YwICCAAw\n\
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEKm+EWJR7nDBxJ4ltB/1Rb4EgZD0\n\
UNMpmsFaB6sQiGGpl9E74/yAWnUb2dYZ5sgR0ndqZcbYByyeu2gfskwOTZgD8rwI\n\
jfF2tidPe5PoaRdl9RCE69dQ0CNGn0nL/PRMLeSioIVkoN9LNsTKNMo43Ha74xoo\n\
w/OXEHRfc0iibPeYhCBqYKlZS0AhdNuMxbsJSxJCB5kLrpm6BkvmgdLpaycinnc=\n\
-----END ENCRYPTED PRIVATE KEY-----\n\n";

    /// Made by `openssl ec -aes256`.
    const OLD: &str = "\
-----BEGIN EC PRIVATE KEY-----\n\
Proc-Type: 4,ENCRYPTED\n\
DEK-Info: AES-256-CBC,C4E14121B37644B935FF6DB804426BEB\n\
\n\
k29YMN9sXczznSuynJ6NmwkJmVlL3ZUm6EzavuuzS3uPUwnRxAHqLaVrOle4oqkb\n\
9HrAmUlNSkJDxVaqP6UiFDEZr3bMu5jKbzDlpe6aY1prwwuLRDa+6j08rmkOTHc5\n\
8hsP+45LRHmOxc6AMuJy0ESqc+tJcQV28xpjQ0QCrsQ=\n\
-----END EC PRIVATE KEY-----\n\n";

    fn in_file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    #[test]
    fn encrypted_keys_open_with_their_password() {
        let (_folder, path) = in_file(&format!("Bag Attributes\n{ENCRYPTED}"), 0o600);
        let opened = key(&path, Some(&"hush".into())).unwrap();
        assert!(aws_lc_rs::sign::any_supported_type(&opened).is_ok());
        let reason = |path: &Path, password: Option<&str>| {
            let password = password.map(SecretString::from);
            match key(path, password.as_ref()) {
                Err(TlsError::Client { reason, .. }) => reason,
                other => panic!("{other:?}"),
            }
        };
        assert!(reason(&path, None).contains("no password is given"));
        assert!(reason(&path, Some("wrong")).contains("does not open"));
        let (_folder, path) = in_file(OLD, 0o600);
        assert!(reason(&path, Some("hush")).contains("old way"));
        let (_folder, path) = in_file(ENCRYPTED.split_at(200).0, 0o600);
        assert!(reason(&path, Some("hush")).contains("cut off"));
    }

    #[test]
    fn keys_that_others_may_use_are_not_used() {
        for (mode, open, open_if_not_roots) in [
            (0o600, false, false),
            (0o400, false, false),
            (0o640, false, true),
            (0o660, true, true),
            (0o604, true, true),
        ] {
            let (_folder, path) = in_file("", mode);
            let meta = fs::metadata(&path).unwrap();
            let expected = if meta.uid() == 0 { open } else { open_if_not_roots };
            assert_eq!(is_open_to_others(&meta), expected, "{mode:o}");
        }
    }
}
