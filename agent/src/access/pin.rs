//! What a device was told at its enrollment about who signs grants: from then on its own knowledge, in its state directory.

use std::io;
use std::path::{Path, PathBuf};

use cloudlink_certs::PublicKey;
use cloudlink_certs::signing_key::{self, KEYS_MAX};
use cloudlink_proto::enroll;
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::disk;

const FILE_NAME: &str = "access.json";
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// What is pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    tenant: Uuid,
    required: bool,
    keys: Vec<PublicKey>,
}

/// As it is on the disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tenant_id: Uuid,
    required: bool,
    /// `SubjectPublicKeyInfo`, base64.
    keys: Vec<String>,
}

/// Why nothing is pinned, or not something else.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("cannot read or write {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} is damaged: nothing that needs a grant is done. Remove it and enroll anew, or set access.required and access.keys", path.display())]
    Damaged { path: PathBuf },
    #[error("the keys that the server names cannot be used")]
    Keys,
    #[error(
        "the device takes grants of tenant {tenant} only, which are signed. If it was given to another tenant, remove {} and enroll again",
        path.display()
    )]
    OtherTenant { tenant: Uuid, path: PathBuf },
}

impl Pinned {
    /// `None` when nothing was pinned.
    ///
    /// # Errors
    /// When something was, and cannot be read.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, PinError> {
        let path = state_dir.join(FILE_NAME);
        let content = disk::read_if_there(&path, FILE_BYTES_MAX)
            .map_err(|source| PinError::File { path: path.clone(), source })?;
        content.map(|content| Self::parse(&content).ok_or(PinError::Damaged { path })).transpose()
    }

    fn parse(content: &[u8]) -> Option<Self> {
        let file: File = serde_json::from_slice(content).ok()?;
        let keys = file.keys.iter().map(|key| PublicKey::from_der(&BASE64.decode(key.as_bytes()).ok()?).ok());
        Some(Self { tenant: file.tenant_id, required: file.required, keys: keys.collect::<Option<_>>()? })
    }

    fn store(&self, state_dir: &Path) -> Result<(), PinError> {
        let path = state_dir.join(FILE_NAME);
        let file = File {
            tenant_id: self.tenant,
            required: self.required,
            keys: self.keys.iter().map(|key| BASE64.encode(&key.to_der())).collect(),
        };
        let content = serde_json::to_vec(&file).expect("strings and numbers are JSON");
        disk::write_atomically(&path, &content, disk::MODE_PUBLIC).map_err(|source| PinError::File { path, source })
    }

    /// Keeps what the server says at an enrollment. Where signatures were wanted already, an enrollment changes nothing of it.
    ///
    /// # Errors
    /// When it cannot be kept, or the device is another tenant's.
    pub fn enrolled(state_dir: &Path, tenant: Uuid, access: &enroll::Access) -> Result<(), PinError> {
        if let Some(present) = Self::load(state_dir)?.filter(Self::is_required) {
            if present.tenant != tenant {
                let path = state_dir.join(FILE_NAME);
                return Err(PinError::OtherTenant { tenant: present.tenant, path });
            }
            tracing::info!("the keys that were pinned before stay as they are");
            return Ok(());
        }
        let keys =
            access.keys_pem.iter().map(|pem| PublicKey::from_pem(pem.as_bytes()).ok().filter(signing_key::can_sign));
        let keys: Vec<_> = keys.collect::<Option<_>>().ok_or(PinError::Keys)?;
        if keys.len() > KEYS_MAX || access.required && keys.is_empty() {
            return Err(PinError::Keys);
        }
        Self { tenant, required: access.required, keys }.store(state_dir)
    }

    #[must_use]
    pub fn is_required(&self) -> bool {
        self.required
    }

    #[must_use]
    pub fn keys(&self) -> &[PublicKey] {
        &self.keys
    }
}
