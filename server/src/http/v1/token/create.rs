//! `POST /tokens`: a token for oneself; an administrator makes them for anybody. The secret is shown once.

use std::time::Duration;

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::{PersonId, TenantId, TokenId};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::field::{check_name, check_seconds};
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Json, NoQuery};
use crate::model::audit::{PLATFORM, Subject};
use crate::model::new_id;
use crate::model::person::Role;
use crate::model::token::Token;
use crate::secret;
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::person::person_show;
use crate::store::token::token_create;

const EXPIRES_IN_DEFAULT: Duration = Duration::from_secs(90 * 24 * 3600);
const EXPIRES_IN_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenCreate {
    /// What it is for. 1 to 128 characters.
    name: String,
    /// Whose it is; left out: one's own. Another's only by an administrator.
    person_id: Option<Uuid>,
    /// 1 to 31,622,400 (366 days). Left out: 7,776,000 (90 days).
    expires_in_seconds: Option<u64>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct TokenCreated {
    #[serde(flatten)]
    created: Token,
    /// The secret, `clk_…`. It is shown here and never again.
    token: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("somebody else's, and the caller is no administrator")]
    NotOneself,
    #[error("no such person")]
    PersonUnknown,
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::NotOneself => {
                Self::new(Kind::Forbidden, "You can make tokens for yourself only. Ask an administrator for another's.")
            }
            RouteError::PersonUnknown => Self::unprocessable("There is nobody of this `person_id`."),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Make an API token
#[utoipa::path(post, path = "/tokens", operation_id = "token_create", tag = "people", request_body = TokenCreate,
    responses((status = 201, body = TokenCreated)))]
#[tracing::instrument(name = "http.token.create", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
    Json(request): Json<TokenCreate>,
) -> Result<impl IntoResponse, RouteError> {
    check_name("name", &request.name)?;
    let expires_in = request
        .expires_in_seconds
        .map_or(Ok(EXPIRES_IN_DEFAULT), |seconds| check_seconds("expires_in_seconds", seconds, EXPIRES_IN_MAX))?;
    let person = request.person_id.map_or(caller.person(), PersonId::from_uuid);
    if person != caller.person() && caller.role() != Role::Admin {
        return Err(RouteError::NotOneself);
    }
    let secret = secret::Token::generate(secret::Purpose::Api);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let owner = person_show(&mut transaction, person).await?.ok_or(RouteError::PersonUnknown)?;
    let id = TokenId::from_uuid(new_id());
    let created = token_create(&mut transaction, id, person, &request.name, secret.hash(), expires_in).await?;
    let details = json!({"name": created.name, "person_id": created.person_id});
    let (subject, chain) = (Subject::new("token", created.id), owner.tenant_id.map_or(PLATFORM, TenantId::from_uuid));
    audit_append(&mut transaction, chain, &caller.actor(), "token.created", subject, details).await?;
    context.store.commit(transaction).await?;
    Ok((StatusCode::CREATED, Json(TokenCreated { created, token: secret.expose().to_owned() })))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::{Scene, Somebody, create_somebody};
    use crate::model::new_id;
    use crate::model::person::Role;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn the_secret_works_and_is_stored_nowhere(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let body = json!({"name": "laptop"});
        let made = scene.post("/tokens").by(&scene.operator).json(body).send().await.expect(StatusCode::CREATED);
        let secret = made["token"].as_str().unwrap();
        let me = scene.get("/me").header("authorization", &format!("Bearer {secret}")).send().await;
        assert_eq!(me.expect(StatusCode::OK)["token_id"], made["id"]);
        let dump: String = sqlx::query_scalar("select jsonb_agg(to_jsonb(t))::text || (select coalesce(jsonb_agg(entry), '[]')::text from audit) from api_tokens t")
            .fetch_one(&scene.root).await.unwrap();
        assert!(!dump.contains(secret) && !dump.contains(&secret[4..]));
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn an_administrator_makes_them_for_anybody(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let for_customer = json!({"name": "n", "person_id": scene.customer.id.to_string(), "expires_in_seconds": 60});
        let made = scene.post("/tokens").by(&scene.admin).json(for_customer.clone()).send().await;
        assert_eq!(made.expect(StatusCode::CREATED)["person_id"], scene.customer.id.to_string());
        assert_eq!(scene.audited(scene.tenant).await, ["token.created"]);
        let refused = scene.post("/tokens").by(&scene.operator).json(for_customer).send().await;
        refused.expect_problem(Kind::Forbidden);
        let for_nobody = json!({"name": "n", "person_id": new_id()});
        scene.post("/tokens").by(&scene.admin).json(for_nobody).send().await.expect_problem(Kind::Unprocessable);
        for seconds in [0, 31_622_401] {
            let body = json!({"name": "n", "expires_in_seconds": seconds});
            scene.post("/tokens").by(&scene.admin).json(body).send().await.expect_problem(Kind::Unprocessable);
        }
    }
    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_tenants_user_rules_its_own_and_no_other(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let colleague = create_somebody(&scene.store, "theo", Role::Tenant, Some(scene.tenant)).await;
        let made = scene.post("/tokens").by(&scene.customer).json(json!({"name": "robot"})).send().await;
        let made = made.expect(StatusCode::CREATED);
        let robot = Somebody { token: made["token"].as_str().unwrap().to_owned(), ..scene.customer.clone() };
        assert_eq!(scene.get("/me").by(&robot).send().await.expect(StatusCode::OK)["token_id"], made["id"]);
        let page = scene.get("/tokens").by(&robot).send().await.expect(StatusCode::OK);
        let ids: Vec<_> = page["items"].as_array().unwrap().iter().map(|token| token["id"].clone()).collect();
        assert_eq!(ids, [made["id"].clone(), json!(scene.customer.token_id.to_string())]);

        for other in [&colleague, &scene.other_customer, &scene.operator, &scene.admin] {
            let body = json!({"name": "n", "person_id": other.id.to_string()});
            scene.post("/tokens").by(&scene.customer).json(body).send().await.expect_problem(Kind::Forbidden);
            let list = format!("/tokens?person_id={}", other.id);
            scene.get(&list).by(&scene.customer).send().await.expect_problem(Kind::Forbidden);
            let revoke = format!("/tokens/{}/revoke", other.token_id);
            scene.post(&revoke).by(&scene.customer).send().await.expect_problem(Kind::NotFound);
            scene.get("/me").by(other).send().await.expect(StatusCode::OK);
        }

        let revoke = format!("/tokens/{}/revoke", made["id"].as_str().unwrap());
        scene.post(&revoke).by(&scene.customer).send().await.expect(StatusCode::OK);
        scene.get("/me").by(&robot).send().await.expect_problem(Kind::Unauthenticated);
        assert_eq!(scene.audited(scene.tenant).await, ["token.created", "token.revoked"]);
    }
}
