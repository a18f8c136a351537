//! People, and robots, who call the API.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

/// What somebody may do. Which route is open to which role is in `http::router`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Runs the platform. Sees everything; can neither grant nor command.
    Admin,
    /// The vendor's support engineer. Commands under a grant, and never grants.
    Operator,
    /// A customer's user. Sees and rules what belongs to the own tenant.
    Tenant,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Admin, Self::Operator, Self::Tenant];

    /// Name in the API and the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::Tenant => "tenant",
        }
    }

    /// The role of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// Whether somebody signs in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PersonKind {
    #[default]
    Human,
    /// A robot: it never signs in, and has tokens that others make for it.
    Service,
}

impl PersonKind {
    /// Name in the API and the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Service => "service",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Human, Self::Service].into_iter().find(|kind| kind.name() == name)
    }
}

#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Person {
    pub id: Uuid,
    pub name: String,
    pub role: Role,
    /// Set for role `tenant`, and for no other.
    pub tenant_id: Option<Uuid>,
    pub kind: PersonKind,
    /// As the OpenID provider said at the last sign-in, or as it was set. To a tenant, of its own people only.
    pub email: Option<String>,
    /// Whoever is not active is refused, whatever token is shown.
    pub active: bool,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The last sign-in with the OpenID provider. To a tenant, of its own people only.
    #[serde(with = "time::serde::rfc3339::option")]
    pub signed_in_at: Option<OffsetDateTime>,
}
