//! API tokens. The secret is shown once and stored nowhere.

use cloudlink_proto::ids::{PersonId, TenantId, TokenId};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::person::Role;

#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Token {
    pub id: Uuid,
    pub person_id: Uuid,
    /// What it is for, as its owner named it.
    pub name: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
    /// Lags by up to a minute.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_used_at: Option<OffsetDateTime>,
}

/// Who a valid token belongs to.
#[derive(Clone, Debug)]
pub struct Session {
    pub token: TokenId,
    pub token_expires_at: OffsetDateTime,
    pub person: PersonId,
    pub name: String,
    pub role: Role,
    /// Set for role `tenant`, and for no other.
    pub tenant: Option<TenantId>,
}
