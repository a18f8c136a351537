//! The first administrator, who is there before anybody can make one.

use std::time::Duration;

use cloudlink_proto::ids::{PersonId, TokenId};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::StoreError;
use super::audit::audit_append;
use super::person::person_create;
use super::token::token_create;
use crate::model::audit::{Actor, PLATFORM, Subject};
use crate::model::person::Role;
use crate::secret::TokenHash;

/// Held by the transaction that makes it, so that of two nodes that start at once only one does. Any number will do.
const LOCK: i64 = 0x636c_6f75_646c_6e6b;
/// How long its first token is valid.
pub const TOKEN_VALID_FOR: Duration = Duration::from_secs(365 * 24 * 3600);
const NAME: &str = "admin";

/// Makes the person "admin" with a token when no administrator is there. Returns whether it did; it is for the caller to
/// commit, once the token is in safe hands.
pub async fn first_admin_create(transaction: &mut PgConnection, token: TokenHash) -> Result<bool, StoreError> {
    sqlx::query!("select pg_advisory_xact_lock($1)", LOCK).fetch_one(&mut *transaction).await?;
    let exists = sqlx::query_scalar!(r#"select exists (select from people where role = 'admin') as "exists!""#)
        .fetch_one(&mut *transaction)
        .await?;
    if exists {
        return Ok(false);
    }
    let person = PersonId::from_uuid(Uuid::now_v7());
    person_create(&mut *transaction, person, NAME, Role::Admin, None).await?;
    let id = TokenId::from_uuid(Uuid::now_v7());
    token_create(&mut *transaction, id, person, "first token", token, TOKEN_VALID_FOR).await?;
    let actor = Actor::Server { name: "cloudlinkd".to_owned() };
    let subject = Subject::new("person", person.as_uuid());
    let details = json!({"name": NAME, "role": Role::Admin.name(), "first": true});
    audit_append(transaction, PLATFORM, &actor, "person.created", subject, details).await?;
    Ok(true)
}
