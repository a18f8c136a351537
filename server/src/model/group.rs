//! Groups of devices: selectors with a name.

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

/// Groups of one tenant, or of the vendor.
pub const GROUPS_MAX: i64 = 500;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Group {
    pub id: Uuid,
    /// Null: the vendor's own.
    pub tenant_id: Option<Uuid>,
    /// What `@NAME` in a selector means.
    pub name: String,
    /// In the grammar of selectors, without groups (docs/ACCESS.md).
    pub selector: String,
    pub created_by: Uuid,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub deleted_at: Option<OffsetDateTime>,
    /// Grows with each change: the `ETag`.
    pub version: i64,
}
