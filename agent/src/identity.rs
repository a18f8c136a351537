//! Who this device is: a key that never leaves it, and the certificate that the server gave for it.
//!
//! Key and certificates stand in one file, so that they always belong together. There are two slots. A renewed certificate
//! goes to `next`, is used for the next link, and takes the place of `current` once the server has welcomed it; until then the
//! old one is still there to fall back on.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use cloudlink_certs::pem::{PemError, certificate_to_pem, certificates_from_pem};
use cloudlink_certs::{
    CreateRequestError, DeviceCertificate, DeviceCertificateError, DeviceIdentity, PrivateKey, PrivateKeyError,
    TrustAnchor, VerifyError, create_request,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::disk;

const CURRENT_FILE: &str = "current.pem";
const NEXT_FILE: &str = "next.pem";
/// The key that an enrollment was begun with: the same key and token give the same certificate again.
const ENROLL_KEY_FILE: &str = "enroll-key.pem";
/// A key and a chain have about 2,000 bytes.
const FILE_BYTES_MAX: u64 = 128 * 1024;

/// The device's slots.
#[derive(Debug)]
pub struct Identity {
    dir: PathBuf,
    current: Option<Credential>,
    next: Option<Credential>,
}

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    Current,
    Next,
}

impl Slot {
    /// In the state directory.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Current => CURRENT_FILE,
            Self::Next => NEXT_FILE,
        }
    }
}

/// A certificate and its key, ready for TLS.
#[derive(Clone)]
pub struct Credential {
    pub certificate: DeviceCertificate,
    pub certified_key: Arc<CertifiedKey>,
}

/// Why a slot cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot read or write {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("cannot make a key")]
    KeyGeneration,
    #[error("cannot use the private key")]
    Key(#[source] PrivateKeyError),
    #[error("cannot make a certificate request")]
    Request(#[source] CreateRequestError),
    #[error("cannot read the certificate")]
    Pem(#[source] PemError),
    #[error("this is not a certificate for a device")]
    Certificate(#[source] DeviceCertificateError),
    #[error("the certificate that was issued does not hold")]
    Untrusted(#[source] VerifyError),
    #[error("the certificate belongs to another key")]
    OtherKey,
    #[error("the certificate names another device")]
    OtherDevice,
    #[error("TLS cannot use the key")]
    Tls(#[source] rustls::Error),
}

impl Identity {
    /// Reads both slots. A `next` that cannot be read is dropped: it can be asked for again.
    ///
    /// # Errors
    /// When `current` is there and cannot be read.
    pub fn load(state_dir: &Path) -> Result<Self, IdentityError> {
        let current = load_slot(&state_dir.join(CURRENT_FILE))?;
        let next = load_slot(&state_dir.join(NEXT_FILE)).unwrap_or_else(|error| {
            tracing::warn!(error = crate::chain(&error), "the next certificate cannot be used");
            None
        });
        Ok(Self { dir: state_dir.to_owned(), current, next })
    }

    /// What to prove oneself with, `next` first; `None` before enrollment.
    #[must_use]
    pub fn slot(&self, slot: Slot) -> Option<&Credential> {
        match slot {
            Slot::Current => self.current.as_ref(),
            Slot::Next => self.next.as_ref(),
        }
    }

    #[must_use]
    pub fn is_enrolled(&self) -> bool {
        self.current.is_some() || self.next.is_some()
    }

    /// Who the device is, by its certificate; `None` before enrollment.
    #[must_use]
    pub fn device(&self) -> Option<&DeviceIdentity> {
        self.current.as_ref().or(self.next.as_ref()).map(|credential| &credential.certificate.identity)
    }

    /// Where the slots are.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.dir
    }

    /// When the last of the certificates ends.
    #[must_use]
    pub fn ends_at(&self) -> Option<OffsetDateTime> {
        self.current.iter().chain(&self.next).map(|credential| credential.certificate.not_after).max()
    }

    /// The key of an enrollment: the one it was begun with, or a new one, on the disk before this returns.
    ///
    /// # Errors
    /// When there is no key on the disk afterwards.
    pub fn enrollment_key(&self) -> Result<PrivateKey, IdentityError> {
        let path = self.dir.join(ENROLL_KEY_FILE);
        let file = |source| IdentityError::File { path: path.clone(), source };
        if let Some(pem) = disk::read_if_there(&path, FILE_BYTES_MAX).map_err(file)?.map(Zeroizing::new) {
            return PrivateKey::from_pem(&pem).map_err(IdentityError::Key);
        }
        let key = new_key()?;
        disk::write_atomically(&path, key.to_pem().as_bytes(), disk::MODE_SECRET).map_err(file)?;
        Ok(key)
    }

    /// Takes the certificate of an enrollment.
    ///
    /// # Errors
    /// When it does not hold or cannot be written; then the enrollment may be tried again.
    pub fn enrolled(
        &mut self,
        key: &PrivateKey,
        chain: &[CertificateDer<'static>],
        anchor: &TrustAnchor,
        at: OffsetDateTime,
    ) -> Result<(), IdentityError> {
        let credential = Credential::new(key, chain)?;
        credential.check_issued(anchor, at)?;
        self.write(CURRENT_FILE, key, chain)?;
        self.current = Some(credential);
        self.remove(ENROLL_KEY_FILE)
    }

    /// Takes a renewed certificate, for the next link.
    ///
    /// # Errors
    /// When it does not hold, is another device's, or cannot be written.
    pub fn renewed(
        &mut self,
        key: &PrivateKey,
        chain: &[CertificateDer<'static>],
        anchor: &TrustAnchor,
        at: OffsetDateTime,
    ) -> Result<(), IdentityError> {
        let credential = Credential::new(key, chain)?;
        credential.check_issued(anchor, at)?;
        let present = self.current.as_ref().map(|current| &current.certificate.identity);
        if present.is_some_and(|identity| *identity != credential.certificate.identity) {
            return Err(IdentityError::OtherDevice);
        }
        self.write(NEXT_FILE, key, chain)?;
        self.next = Some(credential);
        Ok(())
    }

    /// The server has welcomed `next`: it is the current one from now on.
    ///
    /// # Errors
    /// When the disk does not take it: then both slots stay, or what was done may be undone by a crash.
    pub fn promote(&mut self) -> Result<(), IdentityError> {
        if self.next.is_none() {
            return Ok(());
        }
        let path = self.dir.join(CURRENT_FILE);
        let failed = |source| IdentityError::File { path: path.clone(), source };
        std::fs::rename(self.dir.join(NEXT_FILE), &path).map_err(failed)?;
        self.current = self.next.take();
        disk::sync_parent(&path).map_err(failed)
    }

    /// The server refuses `next` and takes `current`: another one is to be asked for.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn discard_next(&mut self) -> Result<(), IdentityError> {
        self.next = None;
        self.remove(NEXT_FILE)
    }

    fn write(&self, name: &str, key: &PrivateKey, chain: &[CertificateDer<'_>]) -> Result<(), IdentityError> {
        let path = self.dir.join(name);
        let mut content = key.to_pem();
        for certificate in chain {
            content.push_str(&certificate_to_pem(certificate));
        }
        disk::write_atomically(&path, content.as_bytes(), disk::MODE_SECRET)
            .map_err(|source| IdentityError::File { path, source })
    }

    fn remove(&self, name: &str) -> Result<(), IdentityError> {
        let path = self.dir.join(name);
        disk::remove_if_there(&path).map(|_| ()).map_err(|source| IdentityError::File { path, source })
    }
}

impl Credential {
    fn new(key: &PrivateKey, chain: &[CertificateDer<'static>]) -> Result<Self, IdentityError> {
        let leaf = chain.first().ok_or(IdentityError::Pem(PemError::NoCertificate))?;
        let certificate = DeviceCertificate::parse(leaf).map_err(IdentityError::Certificate)?;
        if certificate.public_key_der != key.public_key_der() {
            return Err(IdentityError::OtherKey);
        }
        let key = PrivateKeyDer::Pkcs8(key.as_pkcs8_der().clone_key());
        let certified_key = CertifiedKey::from_der(chain.to_vec(), key, &rustls::crypto::aws_lc_rs::default_provider())
            .map_err(IdentityError::Tls)?;
        Ok(Self { certificate, certified_key: Arc::new(certified_key) })
    }

    fn check_issued(&self, anchor: &TrustAnchor, at: OffsetDateTime) -> Result<(), IdentityError> {
        // The device's clock may be behind: a certificate that was issued just now has begun.
        let at = at.max(self.certificate.not_before);
        let leaf = self.certified_key.end_entity_cert().map_err(IdentityError::Tls)?;
        anchor.verify_device(leaf, at).map(|_| ()).map_err(IdentityError::Untrusted)
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Makes a key. It never leaves the device.
///
/// # Errors
/// When the system gives no randomness.
pub fn new_key() -> Result<PrivateKey, IdentityError> {
    let pkcs8 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
        .and_then(|pair| pair.to_pkcs8v1())
        .map_err(|_| IdentityError::KeyGeneration)?;
    PrivateKey::from_pkcs8_der(pkcs8.as_ref()).map_err(IdentityError::Key)
}

/// Asks for a certificate of a key, as DER.
///
/// # Errors
/// When the key cannot sign.
pub fn request(key: &PrivateKey) -> Result<Vec<u8>, IdentityError> {
    create_request(key).map_err(IdentityError::Request)
}

fn load_slot(path: &Path) -> Result<Option<Credential>, IdentityError> {
    let content = disk::read_if_there(path, FILE_BYTES_MAX)
        .map_err(|source| IdentityError::File { path: path.to_owned(), source })?;
    let Some(content) = content.map(Zeroizing::new) else {
        return Ok(None);
    };
    let key = PrivateKey::from_pem(&content).map_err(IdentityError::Key)?;
    let chain = certificates_from_pem(&content).map_err(IdentityError::Pem)?;
    Credential::new(&key, &chain).map(Some)
}
