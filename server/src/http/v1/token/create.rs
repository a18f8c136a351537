//! `POST /tokens`: a token for oneself, for a service account of one's own, or by an administrator for whoever does not sign in
//! with the OpenID provider. Never one that may more than the token that makes it. The secret is shown once.

use std::time::Duration;

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::{PersonId, TenantId, TokenId};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::field::{check_name, check_seconds};
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Json, NoQuery};
use crate::model::api_scope::ApiScope;
use crate::model::audit::{PLATFORM, Subject};
use crate::model::new_id;
use crate::model::person::{Person, PersonKind};
use crate::model::token::{Kind as TokenKind, Token};
use crate::secret;
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::person::{person_show, person_signs_in};
use crate::store::token::{NewToken, Reign, token_create};

const EXPIRES_IN_DEFAULT: Duration = Duration::from_secs(90 * 24 * 3600);
const EXPIRES_IN_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenCreate {
    /// What it is for. 1 to 128 characters.
    name: String,
    /// Whose it is; left out: one's own. Another's: of a service account of the own tenant, or by an administrator.
    person_id: Option<Uuid>,
    /// 1 to 31,622,400 (366 days). Left out: 7,776,000 (90 days). One that was made by hand makes none that outlives it.
    expires_in_seconds: Option<u64>,
    /// What it may be used for. Left out: for all that the token may that makes it.
    scopes: Option<Vec<ApiScope>>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct TokenCreated {
    #[serde(flatten)]
    pub(crate) created: Token,
    /// The secret, `clk_…`. It is shown here and never again.
    pub(crate) token: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("somebody else's, and not the caller's to make")]
    NotOneself,
    #[error("the person signs in with the provider")]
    SignsIn,
    #[error("wider than the token that makes it")]
    Wider,
    #[error("valid for longer than the token that makes it")]
    Longer,
    #[error("no scope at all")]
    NoScope,
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
                Self::new(Kind::Forbidden, "You can make tokens for yourself, and for service accounts of your own.")
            }
            RouteError::SignsIn => Self::new(
                Kind::Forbidden,
                "This person signs in with the OpenID provider and makes its tokens itself. Make a service account instead.",
            ),
            RouteError::Wider => Self::new(Kind::ScopeRequired, "A token can make none that may more than itself."),
            RouteError::Longer => Self::new(
                Kind::Forbidden,
                "A token that was made by hand can make none that outlives it. Sign in, and make it then.",
            ),
            RouteError::NoScope => Self::unprocessable("`scopes` must name one at least. Leave it out for all."),
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
    let asked = request
        .expires_in_seconds
        .map(|seconds| check_seconds("expires_in_seconds", seconds, EXPIRES_IN_MAX))
        .transpose()?;
    let expires_in = asked.unwrap_or(EXPIRES_IN_DEFAULT);
    // Whoever signed in may. A robot that could make its successors would live for ever, and a thief of its token, too.
    let session = caller.session();
    let not_after = (session.kind == TokenKind::Api).then_some(session.token_expires_at);
    let scopes = scopes(&caller, request.scopes)?;
    let person = request.person_id.map_or(caller.person(), PersonId::from_uuid);
    let secret = secret::Token::generate(secret::Purpose::Api);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let owner = person_show(&mut transaction, person).await?.ok_or(match caller.reign() {
        Reign::Everybody => RouteError::PersonUnknown,
        Reign::Oneself(_) | Reign::Tenant(..) => RouteError::NotOneself,
    })?;
    check_owner(&mut transaction, &caller, &owner).await?;
    let id = TokenId::from_uuid(new_id());
    let secret_hash = secret.hash();
    let (name, scopes) = (request.name.as_str(), scopes.as_deref());
    let new = NewToken { id, person, name, secret: secret_hash, expires_in, not_after, scopes };
    let created = token_create(&mut transaction, new).await?;
    if asked.is_some() && not_after == Some(created.expires_at) {
        return Err(RouteError::Longer);
    }
    let details = json!({"name": created.name, "person_id": created.person_id, "scopes": created.scopes});
    let (subject, chain) = (Subject::new("token", created.id), owner.tenant_id.map_or(PLATFORM, TenantId::from_uuid));
    audit_append(&mut transaction, chain, &caller.actor(), "token.created", subject, details).await?;
    context.store.commit(transaction).await?;
    Ok((StatusCode::CREATED, Json(TokenCreated { created, token: secret.expose().to_owned() })))
}

fn scopes(caller: &Caller, asked: Option<Vec<ApiScope>>) -> Result<Option<Vec<ApiScope>>, RouteError> {
    let Some(mut asked) = asked else { return Ok(caller.session().scopes.clone()) };
    asked.sort_unstable();
    asked.dedup();
    if asked.is_empty() {
        return Err(RouteError::NoScope);
    }
    if !asked.iter().all(|scope| caller.session().allows(*scope)) {
        return Err(RouteError::Wider);
    }
    Ok(Some(asked))
}

/// Nobody gets a token with which to be somebody who signs in: an administrator who made one could approve as a tenant.
async fn check_owner(connection: &mut PgConnection, caller: &Caller, owner: &Person) -> Result<(), RouteError> {
    let id = PersonId::from_uuid(owner.id);
    if id == caller.person() {
        return Ok(());
    }
    let is_service = owner.kind == PersonKind::Service;
    match caller.reign() {
        Reign::Everybody if is_service && owner.tenant_id.is_some() => Err(RouteError::NotOneself),
        Reign::Everybody if person_signs_in(connection, id).await? => Err(RouteError::SignsIn),
        Reign::Tenant(_, tenant) if !is_service || owner.tenant_id != Some(tenant.as_uuid()) => {
            Err(RouteError::NotOneself)
        }
        Reign::Oneself(_) => Err(RouteError::NotOneself),
        Reign::Everybody | Reign::Tenant(..) => Ok(()),
    }
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

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_token_makes_none_that_may_more_or_lives_longer(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let make = |somebody, body| scene.post("/tokens").by(somebody).json(body).send();
        let narrow = json!({"name": "n", "scopes": ["read", "admin", "read"], "expires_in_seconds": 3600});
        let narrow = make(&scene.operator, narrow).await.expect(StatusCode::CREATED);
        assert_eq!(narrow["scopes"], json!(["read", "admin"]));
        let narrow = Somebody { token: narrow["token"].as_str().unwrap().to_owned(), ..scene.operator.clone() };
        scene.get("/devices").by(&narrow).send().await.expect(StatusCode::OK);
        let reboot = json!({"kind": "device.reboot", "reason": "r"});
        let path = format!("/devices/{}/commands", scene.device);
        scene.post(&path).by(&narrow).json(reboot).send().await.expect_problem(Kind::ScopeRequired);

        let wider = json!({"name": "n", "scopes": ["read", "commands"]});
        make(&narrow, wider).await.expect_problem(Kind::ScopeRequired);
        let longer = json!({"name": "n", "expires_in_seconds": 3700});
        make(&narrow, longer).await.expect_problem(Kind::Forbidden);
        make(&narrow, json!({"name": "n", "scopes": []})).await.expect_problem(Kind::Unprocessable);
        make(&narrow, json!({"name": "n", "scopes": ["everything"]})).await.expect_problem(Kind::BadRequest);
        let same = make(&narrow, json!({"name": "n"})).await.expect(StatusCode::CREATED);
        assert_eq!(same["scopes"], json!(["read", "admin"]), "what is not said is not more");
        let reader = make(&narrow, json!({"name": "n", "scopes": ["read"]})).await.expect(StatusCode::CREATED);
        let reader = Somebody { token: reader["token"].as_str().unwrap().to_owned(), ..scene.operator.clone() };
        make(&reader, json!({"name": "n"})).await.expect_problem(Kind::ScopeRequired);
        assert_eq!(scene.get("/me").by(&reader).send().await.expect(StatusCode::OK)["token_scopes"], json!(["read"]));
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn nobody_makes_one_for_who_signs_in(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene
            .sql("update people set issuer = 'https://id', subject = 's' where id = $1", scene.customer.id.as_uuid())
            .await;
        let body = json!({"name": "n", "person_id": scene.customer.id.to_string()});
        scene.post("/tokens").by(&scene.admin).json(body.clone()).send().await.expect_problem(Kind::Forbidden);
        scene.post("/tokens").by(&scene.customer).json(body).send().await.expect(StatusCode::CREATED);
    }
}
