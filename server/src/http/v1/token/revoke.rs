//! `POST /tokens/{id}/revoke`: one's own, a service account's by its tenant, or by an administrator anybody's. Revoking again changes nothing.

use axum::extract::State;
use cloudlink_proto::ids::{PersonId, TenantId, TokenId};
use serde_json::json;

use crate::bus::Hint;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::audit::{PLATFORM, Subject};
use crate::model::token::Token;
use crate::store::audit::audit_append;
use crate::store::person::person_show;
use crate::store::token::token_revoke;

/// Refuse a token from now on
#[utoipa::path(post, path = "/tokens/{id}/revoke", operation_id = "token_revoke", tag = "people",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Token)))]
#[tracing::instrument(name = "http.token.revoke", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<Token>, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let revoked = token_revoke(&mut transaction, TokenId::from_uuid(id), caller.reign()).await?;
    let (token, is_new) = revoked.ok_or_else(Problem::not_found)?;
    if is_new {
        let person = person_show(&mut transaction, PersonId::from_uuid(token.person_id)).await?;
        let chain = person.and_then(|person| person.tenant_id).map_or(PLATFORM, TenantId::from_uuid);
        let (subject, details) = (Subject::new("token", token.id), json!({"person_id": token.person_id}));
        audit_append(&mut transaction, chain, &caller.actor(), "token.revoked", subject, details).await?;
        context.store.commit(transaction).await?;
        context.bus.send(Hint::PersonChanged(PersonId::from_uuid(token.person_id)));
    }
    Ok(Json(token))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;
    use crate::model::audit::PLATFORM;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn the_very_next_request_is_refused(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let path = format!("/tokens/{}/revoke", scene.operator.token_id);
        scene.post(&path).by(&scene.colleague).send().await.expect_problem(Kind::NotFound);
        let token = scene.post(&path).by(&scene.operator).send().await.expect(StatusCode::OK);
        assert!(token["revoked_at"].is_string());
        scene.get("/me").by(&scene.operator).send().await.expect_problem(Kind::Unauthenticated);
        assert_eq!(scene.post(&path).by(&scene.admin).send().await.expect(StatusCode::OK), token);
        assert_eq!(scene.audited(PLATFORM).await, ["token.revoked"]);
    }
}
