//! `[access]`: whether grants must be signed by the tenant, and with which keys.

use std::path::PathBuf;

use uuid::Uuid;

use super::parse_path;
use super::section::Section;
use crate::access::KEY_FILES_MAX;

/// `[access]`: whether grants must be signed by the tenant, and with which keys. What is said here wins over what the device was told
/// at its enrollment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Whether nothing privileged is done without a grant that the tenant has signed. Default: `true` if there are `keys`, or else
    /// what the device was told at its enrollment.
    pub required: Option<bool>,
    /// Files of the keys that count, each a PEM public key of Ed25519 or P-256. Default: those of the enrollment.
    pub keys: Option<Vec<PathBuf>>,
    /// `tenant_id` and `device_id`: what statements must name. Only for an agent without a certificate of its own, beside an OpenVPN client
    /// of somebody else. Default: what the certificate says.
    pub ids: Option<(Uuid, Uuid)>,
}

impl Access {
    /// Whether grants must be signed; `None` when that is not said here.
    #[must_use]
    pub fn is_required(&self) -> Option<bool> {
        self.required.or(self.keys.is_some().then_some(true))
    }

    /// Whether nothing is left for what was pinned to say.
    #[must_use]
    pub fn says_all(&self) -> bool {
        self.is_required() == Some(false) || self.keys.is_some()
    }
}

pub(super) fn read(access: &Section<'_>) -> Access {
    let required = access.boolean("required");
    let keys = access.strings("keys").map(|texts| read_keys(access, &texts));
    let tenant_id = access.optional("tenant_id", parse_id);
    let device_id = access.optional("device_id", parse_id);
    if access.has("tenant_id") != access.has("device_id") {
        access.fault("device_id", "and tenant_id belong together", "give both, or neither");
    }
    access.finish();
    Access { required, keys, ids: tenant_id.zip(device_id) }
}

fn read_keys(access: &Section<'_>, texts: &[String]) -> Vec<PathBuf> {
    let hint = "such as keys = [\"/etc/cloudlink-agent/tenant.pub.pem\"]";
    if !(1..=KEY_FILES_MAX).contains(&texts.len()) {
        access.fault("keys", &format!("does not name 1 to {KEY_FILES_MAX} files"), hint);
    }
    let mut keys = Vec::new();
    for text in texts {
        match parse_path(text) {
            Ok(path) => keys.push(path),
            Err((problem, hint)) => access.fault("keys", &problem, &hint),
        }
    }
    keys
}

fn parse_id(text: &str) -> Result<Uuid, (String, String)> {
    text.parse().map_err(|_| ("is not an id".to_owned(), "a UUID, as the command line and the API show it".to_owned()))
}
