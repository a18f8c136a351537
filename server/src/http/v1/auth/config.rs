//! `GET /auth/config`: what somebody who wants to sign in has to know. It is open to all and tells no secret.

use axum::extract::State;
use serde::Serialize;

use crate::http::Context;
use crate::http::request::{Json, NoQuery};

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct SignInConfig {
    /// The OpenID provider's issuer. Null: there are API tokens only.
    issuer: Option<String>,
    /// The public client that command lines sign in as.
    cli_client_id: Option<String>,
    /// What to ask the provider for, besides `openid`.
    scopes: Vec<String>,
    /// The only authorities of the provider's certificate, PEM. Null: those that the system trusts.
    ca_pem: Option<String>,
}

/// How to sign in
#[utoipa::path(get, path = "/auth/config", operation_id = "auth_config", tag = "auth",
    responses((status = 200, body = SignInConfig)))]
#[tracing::instrument(name = "http.auth.config", skip_all)]
pub(crate) async fn handler(State(context): State<Context>, _: NoQuery) -> Json<SignInConfig> {
    let told = context.sign_in.as_ref().map(|sign_in| sign_in.told.clone());
    Json(SignInConfig {
        issuer: told.as_ref().map(|told| told.issuer.clone()),
        cli_client_id: told.as_ref().map(|told| told.cli_client_id.clone()),
        scopes: told.as_ref().map(|told| told.scopes.clone()).unwrap_or_default(),
        ca_pem: told.and_then(|told| told.ca_pem),
    })
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn without_a_provider_there_are_tokens_only(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let config = scene.get("/auth/config").send().await.expect(StatusCode::OK);
        assert_eq!(config, json!({"issuer": null, "cli_client_id": null, "scopes": [], "ca_pem": null}));
        scene.get("/auth/login").send().await.expect_problem(Kind::SignInOff);
        scene.get("/auth/callback?code=c&state=s").send().await.expect_problem(Kind::SignInOff);
        let trade = scene.post("/auth/session").json(json!({"id_token": "a.b.c"}));
        trade.send().await.expect_problem(Kind::SignInOff);
    }
}
