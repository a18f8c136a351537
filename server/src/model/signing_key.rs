//! Keys with which a tenant signs grants. The private half is never here.

use cloudlink_certs::{GrantStatement, KeyAlgorithm, KeyId, PublicKey};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::grant::Grant;

#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct SigningKey {
    pub id: Uuid,
    pub tenant_id: Uuid,
    pub name: String,
    /// `ed25519` or `p256`.
    pub algorithm: String,
    /// SHA-256 of the public key (`SubjectPublicKeyInfo`, DER), hexadecimal: the `kid` of what it signs.
    pub key_id: String,
    pub public_key_pem: String,
    pub created_by: Uuid,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Nothing that it signs is taken any more.
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
}

/// How the database calls the algorithm; `None` for a key that cannot sign grants.
#[must_use]
pub fn algorithm_name(key: &PublicKey) -> Option<&'static str> {
    match key.algorithm() {
        KeyAlgorithm::Ed25519 => Some("ed25519"),
        KeyAlgorithm::P256 => Some("p256"),
        KeyAlgorithm::P384 => None,
    }
}

/// As the API shows a key.
#[must_use]
pub fn shown(key: &PublicKey) -> (String, String) {
    (KeyId::of(key).to_string(), key.to_pem())
}

/// What a grant says, and its statement does not; `None` when the row allows nothing but what was signed.
///
/// The row may begin later: it begins when it is made.
#[must_use]
pub fn difference(grant: &Grant, statement: &GrantStatement) -> Option<&'static str> {
    if statement.tenant != grant.tenant_id {
        return Some("iss");
    }
    if statement.grant != grant.id {
        return Some("jti");
    }
    if !are_same(Some(&statement.scopes), Some(&grant.scopes)) {
        return Some("scopes");
    }
    if !are_same(Some(&statement.devices), grant.device_ids.as_ref()) {
        return Some("devices");
    }
    if !are_same(statement.operators.as_ref(), grant.operator_ids.as_ref()) {
        return Some("operators");
    }
    if statement.starts_at > grant.starts_at {
        return Some("nbf");
    }
    if statement.ends_at != grant.ends_at {
        return Some("exp");
    }
    (statement.reason != grant.reason).then_some("reason")
}

fn are_same<T: Ord + Clone>(one: Option<&Vec<T>>, other: Option<&Vec<T>>) -> bool {
    let sorted = |list: Option<&Vec<T>>| {
        let mut list = list?.clone();
        list.sort_unstable();
        Some(list)
    };
    sorted(one) == sorted(other)
}
