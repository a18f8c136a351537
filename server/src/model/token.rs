//! API tokens. The secret is shown once and stored nowhere.

use cloudlink_proto::ids::{PersonId, TenantId, TokenId};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::api_scope::ApiScope;
use super::person::Role;

#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Token {
    pub id: Uuid,
    pub person_id: Uuid,
    /// What it is for, as its owner named it.
    pub name: String,
    /// `api`: made by hand. `session`, `browser`: by a sign-in. `bootstrap`: of the first administrator, works once.
    pub kind: String,
    /// What it may be used for. Null: for all that its person may do.
    pub scopes: Option<Vec<String>>,
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

/// Where a token came from, and so how it may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Made by hand, or by a robot.
    Api,
    /// By a sign-in from the command line.
    Session,
    /// By a sign-in of a browser, which shows it in a cookie.
    Browser,
    /// The first administrator's: good for one session, and for nothing else.
    Bootstrap,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Api, Self::Session, Self::Browser, Self::Bootstrap];

    /// Name in the API and the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Session => "session",
            Self::Browser => "browser",
            Self::Bootstrap => "bootstrap",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Who a valid token belongs to.
#[derive(Clone, Debug)]
pub struct Session {
    pub token: TokenId,
    pub token_expires_at: OffsetDateTime,
    pub kind: Kind,
    /// `None`: all of them.
    pub scopes: Option<Vec<ApiScope>>,
    pub person: PersonId,
    pub name: String,
    /// A robot, with tokens that others make for it.
    pub is_service: bool,
    pub role: Role,
    /// Set for role `tenant`, and for no other.
    pub tenant: Option<TenantId>,
}

impl Session {
    /// Whether the token may be used for this.
    #[must_use]
    pub fn allows(&self, scope: ApiScope) -> bool {
        self.scopes.as_ref().is_none_or(|scopes| scopes.contains(&scope))
    }
}
