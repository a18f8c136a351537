//! `POST /signing-keys/{id}/revoke`: nothing that the key signs is taken any more. Revoking again changes nothing.

use axum::extract::State;
use cloudlink_proto::ids::{SigningKeyId, TenantId};
use serde_json::json;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::model::audit::Subject;
use crate::model::signing_key::SigningKey;
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::signing_key::{NEEDS_A_KEY, signing_key_revoke};

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("the last key")]
    Last,
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Last => Self::new(
                Kind::Conflict,
                "Your tenant's grants must be signed, and this is its last key. Enroll another one first, or set `signed_grants` to false.",
            ),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Take nothing more that a key signs
///
/// Grants that it has signed already are not revoked with it, and devices that know the key go on trusting it until they are told otherwise.
#[utoipa::path(post, path = "/signing-keys/{id}/revoke", operation_id = "signing_key_revoke", tag = "grants",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = SigningKey)))]
#[tracing::instrument(name = "http.signing_key.revoke", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<SigningKey>, RouteError> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let revoked = signing_key_revoke(&mut transaction, SigningKeyId::from_uuid(id)).await;
    let revoked = revoked.map_err(|error| match error.constraint() {
        Some(NEEDS_A_KEY) => RouteError::Last,
        Some(_) | None => RouteError::Store(error),
    })?;
    let (key, is_new) = revoked.ok_or_else(Problem::not_found)?;
    if is_new {
        let (subject, details) = (Subject::new("signing_key", key.id), json!({"key_id": key.key_id}));
        let tenant = TenantId::from_uuid(key.tenant_id);
        audit_append(&mut transaction, tenant, &caller.actor(), "signing_key.revoked", subject, details).await?;
        context.store.commit(transaction).await?;
    }
    Ok(Json(key))
}
