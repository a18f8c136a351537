//! `POST /auth/logout`: ends the token that it is called with. A browser's cookie goes with it.

use axum::extract::State;
use axum::response::{AppendHeaders, IntoResponse};
use http::header::SET_COOKIE;
use serde_json::json;

use crate::bus::Hint;
use crate::http::Context;
use crate::http::auth::{COOKIE, Caller};
use crate::http::problem::Problem;
use crate::http::request::{Json, NoQuery};
use crate::model::audit::Subject;
use crate::model::token::Token;
use crate::store::audit::audit_append;
use crate::store::token::{Reign, token_revoke};

/// Sign out
#[utoipa::path(post, path = "/auth/logout", operation_id = "auth_logout", tag = "auth",
    responses((status = 200, body = Token)))]
#[tracing::instrument(name = "http.auth.logout", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
) -> Result<impl IntoResponse, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let revoked = token_revoke(&mut transaction, caller.token(), Reign::Oneself(caller.person())).await?;
    let (token, is_new) = revoked.ok_or_else(Problem::not_found)?;
    if is_new {
        let (subject, details) = (Subject::new("token", token.id), json!({"person_id": token.person_id}));
        audit_append(&mut transaction, caller.chain(), &caller.actor(), "token.revoked", subject, details).await?;
        context.store.commit(transaction).await?;
        context.bus.send(Hint::PersonChanged(caller.person()));
    }
    let gone = format!("{COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0");
    Ok((AppendHeaders([(SET_COOKIE, gone)]), Json(token)))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn ends_the_token_that_it_is_called_with(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let answer = scene.post("/auth/logout").by(&scene.customer).send().await;
        let token = answer.expect(StatusCode::OK);
        assert_eq!(token["id"], scene.customer.token_id.to_string());
        assert!(token["revoked_at"].is_string());
        assert!(answer.header("set-cookie").starts_with("__Host-cloudlink=; "));
        scene.get("/me").by(&scene.customer).send().await.expect_problem(Kind::Unauthenticated);
        scene.get("/me").by(&scene.other_customer).send().await.expect(StatusCode::OK);
        assert_eq!(scene.audited(scene.tenant).await, ["token.revoked"]);
    }
}
