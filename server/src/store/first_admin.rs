//! The first administrator, who is there before anybody can make one.

use std::time::Duration;

use cloudlink_proto::ids::{PersonId, TokenId};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::StoreError;
use super::audit::audit_append;
use super::person::person_create;
use super::token::{NewToken, token_create_of_kind};
use crate::model::audit::{Actor, PLATFORM, Subject};
use crate::model::person::{PersonKind, Role};
use crate::model::token::Kind;
use crate::secret::TokenHash;

/// Held by the transaction that makes it, so that of two nodes that start at once only one does. Any number will do.
const LOCK: i64 = 0x636c_6f75_646c_6e6b;
/// How long its token waits to be traded for one that calls the API.
pub const TOKEN_VALID_FOR: Duration = Duration::from_secs(30 * 24 * 3600);
const NAME: &str = "admin";

/// Makes the person "admin" with a token that works once when no administrator is there. Returns whether it did; it is for the caller to
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
    person_create(&mut *transaction, person, NAME, Role::Admin, None, PersonKind::Human).await?;
    bootstrap_create(&mut *transaction, person, token).await?;
    let actor = server();
    let subject = Subject::new("person", person.as_uuid());
    let details = json!({"name": NAME, "role": Role::Admin.name(), "first": true});
    audit_append(transaction, PLATFORM, &actor, "person.created", subject, details).await?;
    Ok(true)
}

/// Makes another token that works once for the first administrator, who is let in again if it was shut out. `false`: there is
/// no such person. It is for the caller to commit, once the token is in safe hands.
pub async fn first_admin_reset(transaction: &mut PgConnection, token: TokenHash) -> Result<bool, StoreError> {
    let person = sqlx::query_scalar!(
        "update people set active = true, shut_out_by_groups = false
          where id = (select id from people where role = 'admin' and issuer is null and kind = 'human'
                       order by created_at, id limit 1)
         returning id"
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(person) = person else { return Ok(false) };
    let id = bootstrap_create(&mut *transaction, PersonId::from_uuid(person), token).await?;
    let details = json!({"person_id": person, "kind": Kind::Bootstrap.name()});
    let subject = Subject::new("token", id.as_uuid());
    audit_append(transaction, PLATFORM, &server(), "token.created", subject, details).await?;
    Ok(true)
}

async fn bootstrap_create(
    transaction: &mut PgConnection,
    person: PersonId,
    secret: TokenHash,
) -> Result<TokenId, StoreError> {
    let id = TokenId::from_uuid(Uuid::now_v7());
    let new =
        NewToken { id, person, name: "bootstrap", secret, expires_in: TOKEN_VALID_FOR, not_after: None, scopes: None };
    token_create_of_kind(transaction, Kind::Bootstrap, new).await?;
    Ok(id)
}

fn server() -> Actor {
    Actor::Server { name: "cloudlinkd".to_owned() }
}
