//! `GET /grants/{id}/receipt`: what was done under a grant that is over, signed. Made once; reading it changes nothing.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::GrantId;
use serde::Serialize;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::{Kind, Problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::store::grant::grant_show;
use crate::store::receipt::receipt_show;

/// A receipt, to be kept.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct SignedReceipt {
    /// A JWS in its compact form; `cloudlink receipt verify` checks it. Its fields are in docs/SUPPORT.md.
    statement: String,
}

/// The receipt of a grant
#[utoipa::path(get, path = "/grants/{id}/receipt", operation_id = "grant_receipt", tag = "grants",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = SignedReceipt)))]
#[tracing::instrument(name = "http.grant.receipt", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<impl IntoResponse, Problem> {
    let id = GrantId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let grant = grant_show(&mut transaction, id, None).await?.ok_or_else(Problem::not_found)?;
    let Some(statement) = receipt_show(&mut transaction, id).await? else {
        let state = grant.state.name();
        let detail = format!(
            "The grant is {state}: its receipt is made some seconds after it is over, when nothing under it goes on. Ask again then."
        );
        return Err(Problem::new(Kind::Conflict, detail));
    };
    Ok(Json(SignedReceipt { statement }))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn the_receipt_of_a_grant_is_its_tenants(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let id = scene.grant(json!({})).await;
        let path = format!("/grants/{id}/receipt");
        let problem = scene.get(&path).by(&scene.customer).send().await.expect_problem(Kind::Conflict);
        assert!(problem["detail"].as_str().unwrap().contains("in_force"), "{problem}");
        let made = "insert into receipts (grant_id, tenant_id, statement) select id, tenant_id, 'a.b.c' from grants where id = $1";
        scene.sql(made, id.as_uuid()).await;
        for somebody in [&scene.customer, &scene.admin] {
            let receipt = scene.get(&path).by(somebody).send().await.expect(StatusCode::OK);
            assert_eq!(receipt, json!({"statement": "a.b.c"}));
        }
        scene.get(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
        scene.get(&path).by(&scene.operator).send().await.expect_problem(Kind::Forbidden);
    }
}
