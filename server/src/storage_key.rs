//! What is encrypted at rest, and with which key: recordings of support sessions, and small secrets that the server must be able
//! to read again. docs/SUPPORT.md has it byte for byte.
//!
//! The file has one key a line, 32 bytes in hex. The first one encrypts, the others are there to read what was written before
//! they were replaced. Whatever is encrypted begins with the id of its key.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use cloudlink_proto::ids::SupportSessionId;
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use zeroize::{Zeroize, Zeroizing};

use crate::config::Config;
use crate::file;

/// Of a key.
pub const KEY_BYTES: usize = 32;
/// Of what names a key.
pub const KEY_ID_BYTES: usize = 8;
/// Keys in one file: one in use, and those before it.
const KEYS_MAX: usize = 64;
/// What AES-256-GCM adds.
pub const TAG_BYTES: usize = 16;

const KEY_ID_INFO: &[u8] = b"cloudlink/key-id/v1";
const SECRET_INFO: &[u8] = b"cloudlink/secret/v1";
const RECORDING_INFO: &[u8] = b"cloudlink/recording/v1";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum StorageKeyError {
    #[error("cannot {verb} the storage key {}", path.display())]
    File {
        verb: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is no storage key: expected lines of 64 hex digits, as `openssl rand -hex 32` makes them", path.display())]
    Form { path: PathBuf },
    #[error("{} has more than {KEYS_MAX} keys", path.display())]
    TooMany { path: PathBuf },
}

/// Why something cannot be decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("it is encrypted with the storage key {0}, which is not in this node's file")]
    KeyMissing(KeyId),
    #[error("it is not what was encrypted")]
    Changed,
}

/// Names a key without telling anything of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyId([u8; KEY_ID_BYTES]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// The keys of the file.
pub struct StorageKey {
    /// Never empty. The first one encrypts.
    keys: Vec<One>,
}

struct One {
    id: KeyId,
    secret: Zeroizing<[u8; KEY_BYTES]>,
}

impl StorageKey {
    /// Reads the file that the configuration names. The one in its default place is made if it is not there.
    pub fn load(config: &Config) -> Result<Self, StorageKeyError> {
        match &config.support.storage_key {
            Some(path) => Self::read(path),
            None => {
                let path = config.data_dir.join("pki").join("storage.key");
                match Self::read(&path) {
                    Err(StorageKeyError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                        Self::make(&path)
                    }
                    read => read,
                }
            }
        }
    }

    /// One key alone.
    #[must_use]
    pub fn from_bytes(secret: [u8; KEY_BYTES]) -> Self {
        Self { keys: vec![One::new(Zeroizing::new(secret))] }
    }

    fn read(path: &Path) -> Result<Self, StorageKeyError> {
        let text = fs::read_to_string(path).map(Zeroizing::new).map_err(|source| StorageKeyError::File {
            verb: "read",
            path: path.to_owned(),
            source,
        })?;
        let keys = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(parse).collect::<Option<Vec<_>>>();
        match keys {
            Some(keys) if keys.len() > KEYS_MAX => Err(StorageKeyError::TooMany { path: path.to_owned() }),
            Some(keys) if !keys.is_empty() => Ok(Self { keys: keys.into_iter().map(One::new).collect() }),
            Some(_) | None => Err(StorageKeyError::Form { path: path.to_owned() }),
        }
    }

    fn make(path: &Path) -> Result<Self, StorageKeyError> {
        let mut secret = Zeroizing::new([0; KEY_BYTES]);
        fill_random(secret.as_mut());
        let line = Zeroizing::new(HEXLOWER.encode(secret.as_ref()) + "\n");
        file::create(path, line.as_bytes(), file::PRIVATE).map_err(|source| StorageKeyError::File {
            verb: "write",
            path: path.to_owned(),
            source,
        })?;
        tracing::info!(path = %path.display(), "made the storage key: recordings cannot be read without it, keep a copy");
        Ok(Self { keys: vec![One::new(secret)] })
    }

    /// The key that encrypts.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.current().id
    }

    /// Encrypts a small secret. `purpose` says what it is and whose: it opens under the same words alone, so that one secret
    /// cannot be put in the place of another.
    #[must_use]
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> Vec<u8> {
        let current = self.current();
        let mut nonce = [0; NONCE_LEN];
        fill_random(&mut nonce);
        let mut body = plain.to_vec();
        body.reserve_exact(TAG_BYTES);
        current
            .derive(&[SECRET_INFO])
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(purpose), &mut body)
            .expect("a secret is shorter than 64 GB");
        [&current.id.0[..], &nonce, &body].concat()
    }

    /// Decrypts what [`Self::seal`] made.
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let (one, rest) = self.find(sealed)?;
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>().ok_or(OpenError::Changed)?;
        let mut plain = Zeroizing::new(body.to_vec());
        let length = one
            .derive(&[SECRET_INFO])
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(purpose), &mut plain)
            .map_err(|_| OpenError::Changed)?
            .len();
        plain.truncate(length);
        Ok(plain)
    }

    /// The key of one recording, to write it. A session has one writer, so that none of its numbers is used twice.
    #[must_use]
    pub fn recording(&self, session: SupportSessionId) -> RecordingKey {
        RecordingKey::derive(self.current(), session)
    }

    /// The key of one recording, to read a chunk of it.
    pub fn recording_of(&self, session: SupportSessionId, chunk: &[u8]) -> Result<RecordingKey, OpenError> {
        Ok(RecordingKey::derive(self.find(chunk)?.0, session))
    }

    fn current(&self) -> &One {
        self.keys.first().expect("a file without a key is refused")
    }

    /// The key of what is sealed, and what follows its name.
    fn find<'a>(&self, sealed: &'a [u8]) -> Result<(&One, &'a [u8]), OpenError> {
        let (id, rest) = sealed.split_first_chunk::<KEY_ID_BYTES>().ok_or(OpenError::Changed)?;
        let id = KeyId(*id);
        let one = self.keys.iter().find(|one| one.id == id).ok_or(OpenError::KeyMissing(id))?;
        Ok((one, rest))
    }
}

impl fmt::Debug for StorageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|one| one.id)).finish()
    }
}

impl One {
    fn new(secret: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        let mut id = [0; KEY_BYTES];
        expand(&secret, &[KEY_ID_INFO], &mut id);
        let short = id.first_chunk().expect("a key is longer than its id");
        Self { id: KeyId(*short), secret }
    }

    fn derive(&self, info: &[&[u8]]) -> LessSafeKey {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        expand(&self.secret, info, &mut bytes);
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes.as_ref()).expect("32 bytes are a key of AES-256"))
    }
}

/// The key of one recording.
pub struct RecordingKey {
    id: KeyId,
    key: LessSafeKey,
    session: SupportSessionId,
}

impl RecordingKey {
    fn derive(one: &One, session: SupportSessionId) -> Self {
        let key = one.derive(&[RECORDING_INFO, session.as_uuid().as_bytes()]);
        Self { id: one.id, key, session }
    }

    /// Encrypts a chunk. Each number is to be used once.
    #[must_use]
    pub fn seal(&self, seq: u32, plain: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(KEY_ID_BYTES + plain.len() + TAG_BYTES);
        sealed.extend_from_slice(&self.id.0);
        sealed.extend_from_slice(plain);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(seq), self.aad(seq), &mut sealed[KEY_ID_BYTES..])
            .expect("a chunk is shorter than 64 GB");
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    /// Whether a chunk is encrypted with this key.
    #[must_use]
    pub fn is_of(&self, sealed: &[u8]) -> bool {
        sealed.starts_with(&self.id.0)
    }

    /// Decrypts chunk `seq`.
    pub fn open(&self, seq: u32, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let (id, rest) = sealed.split_first_chunk::<KEY_ID_BYTES>().ok_or(OpenError::Changed)?;
        if *id != self.id.0 {
            return Err(OpenError::Changed);
        }
        let mut plain = rest.to_vec();
        let opened = self.key.open_in_place(nonce(seq), self.aad(seq), &mut plain);
        let Ok(length) = opened.map(|text| text.len()) else {
            plain.zeroize();
            return Err(OpenError::Changed);
        };
        plain.truncate(length);
        Ok(plain)
    }

    fn aad(&self, seq: u32) -> Aad<[u8; 20]> {
        let mut aad = [0; 20];
        aad[..16].copy_from_slice(self.session.as_uuid().as_bytes());
        aad[16..].copy_from_slice(&seq.to_be_bytes());
        Aad::from(aad)
    }
}

impl fmt::Debug for RecordingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordingKey").field("id", &self.id).field("session", &self.session).finish_non_exhaustive()
    }
}

fn nonce(seq: u32) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 4..].copy_from_slice(&seq.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// HKDF-SHA-256 (RFC 5869) without salt.
fn expand(secret: &[u8; KEY_BYTES], info: &[&[u8]], into: &mut [u8; KEY_BYTES]) {
    let key = Salt::none(HKDF_SHA256).extract(secret);
    key.expand(info, HKDF_SHA256).and_then(|okm| okm.fill(into)).expect("32 bytes are one block of SHA-256");
}

fn fill_random(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("the system's random source has no way to fail once it is seeded");
}

fn parse(line: &str) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let bytes = Zeroizing::new(HEXLOWER_PERMISSIVE.decode(line.as_bytes()).ok()?);
    Some(Zeroizing::new(bytes.as_slice().try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use uuid::Uuid;

    use super::*;

    const OLD: [u8; 32] = [1; 32];
    const NEW: [u8; 32] = [2; 32];

    fn config() -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("pki")).unwrap();
        let config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
        (dir, config)
    }

    fn session(number: u128) -> SupportSessionId {
        SupportSessionId::from_uuid(Uuid::from_u128(number))
    }

    #[test]
    fn a_key_is_made_once_and_is_for_its_owner_only() {
        let (dir, config) = config();
        let sealed = StorageKey::load(&config).unwrap().seal("a", b"secret");
        assert_eq!(**StorageKey::load(&config).unwrap().open("a", &sealed).unwrap(), *b"secret");
        let path = dir.path().join("pki/storage.key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_key_with_a_path_of_its_own_is_not_made() {
        let (dir, mut config) = config();
        let path = dir.path().join("mine.key");
        config.support.storage_key = Some(path.clone());
        assert!(matches!(StorageKey::load(&config), Err(StorageKeyError::File { verb: "read", .. })));
        for wrong in ["", "\n\n", "no key", &"0".repeat(63), &"0".repeat(66), &format!("{}\nrest", "0".repeat(64))] {
            fs::write(&path, wrong).unwrap();
            assert!(matches!(StorageKey::load(&config), Err(StorageKeyError::Form { .. })), "{wrong:?}");
        }
        fs::write(&path, format!("{}\n", "A".repeat(64)).repeat(KEYS_MAX + 1)).unwrap();
        assert!(matches!(StorageKey::load(&config), Err(StorageKeyError::TooMany { .. })));
    }

    #[test]
    fn a_former_key_still_opens_and_the_first_one_seals() {
        let (dir, mut config) = config();
        let path = dir.path().join("keys");
        config.support.storage_key = Some(path.clone());
        let (old, new) = (StorageKey::from_bytes(OLD), StorageKey::from_bytes(NEW));
        fs::write(&path, format!("{}\n{}\n", HEXLOWER.encode(&NEW), HEXLOWER.encode(&OLD))).unwrap();
        let both = StorageKey::load(&config).unwrap();
        assert_eq!(both.id(), new.id());
        assert_eq!(**both.open("a", &old.seal("a", b"x")).unwrap(), *b"x");
        assert_eq!(**new.open("a", &both.seal("a", b"x")).unwrap(), *b"x");
        let by_new = new.seal("a", b"x");
        assert_eq!(old.open("a", &by_new).unwrap_err(), OpenError::KeyMissing(new.id()));

        let chunk = old.recording(session(1)).seal(0, b"x");
        assert_eq!(both.recording_of(session(1), &chunk).unwrap().open(0, &chunk).unwrap(), b"x");
        assert_eq!(new.recording_of(session(1), &chunk).unwrap_err(), OpenError::KeyMissing(old.id()));
    }

    #[test]
    fn a_secret_opens_for_its_own_purpose_and_as_it_was_written() {
        let key = StorageKey::from_bytes(OLD);
        let sealed = key.seal("webhook 1", b"secret");
        assert_ne!(sealed, key.seal("webhook 1", b"secret"), "no two are the same");
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_eq!(key.open("webhook 2", &sealed).unwrap_err(), OpenError::Changed);
        for index in KEY_ID_BYTES..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert_eq!(key.open("webhook 1", &changed).unwrap_err(), OpenError::Changed, "byte {index}");
        }
        for length in 0..sealed.len() {
            assert!(key.open("webhook 1", &sealed[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_chunk_opens_in_its_own_place_alone() {
        let key = StorageKey::from_bytes(OLD);
        let chunk = key.recording(session(1)).seal(7, b"text");
        assert_eq!(key.recording(session(1)).open(7, &chunk).unwrap(), b"text");
        assert!(key.recording(session(1)).open(8, &chunk).is_err());
        assert!(key.recording(session(2)).open(7, &chunk).is_err());
        assert!(StorageKey::from_bytes(NEW).recording(session(1)).open(7, &chunk).is_err());
        for index in 0..chunk.len() {
            let mut changed = chunk.clone();
            changed[index] ^= 0x80;
            assert!(key.recording(session(1)).open(7, &changed).is_err(), "byte {index}");
        }
        for length in 0..chunk.len() {
            assert!(key.recording(session(1)).open(7, &chunk[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn the_derivation_is_the_documented_one() {
        // Computed by the HKDF and AESGCM of Python's cryptography package.
        let key = StorageKey::from_bytes(OLD);
        assert_eq!(key.id().to_string(), "1c1d91b681f31d0f");
        let chunk = key.recording(session(0x0102_0304)).seal(5, b"hello");
        assert_eq!(HEXLOWER.encode(&chunk), "1c1d91b681f31d0fdd574395ac40e2d121c65ac1fff07bbf40863c8487");
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = StorageKey::from_bytes(OLD);
        assert_eq!(format!("{key:?}"), format!("[KeyId({})]", key.id()));
        let recording = format!("{:?}", key.recording(session(1)));
        assert!(recording.starts_with("RecordingKey { id: KeyId("), "{recording}");
    }
}
