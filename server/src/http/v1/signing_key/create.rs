//! `POST /signing-keys`: from now on, a tenant's grants can be signed with this key.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_certs::PublicKey;
use cloudlink_certs::signing_key::KEYS_MAX;
use cloudlink_proto::ids::SigningKeyId;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::field::check_name;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Json, NoQuery};
use crate::model::audit::Subject;
use crate::model::new_id;
use crate::model::signing_key::{SigningKey, algorithm_name};
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::signing_key::{KEY_TAKEN, NewSigningKey, signing_key_count_in_txn, signing_key_create};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SigningKeyCreate {
    /// What it is called: 1 to 128 characters.
    name: String,
    /// The public half, PEM: Ed25519 or P-256.
    public_key_pem: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no key that can sign grants")]
    Key,
    #[error("enrolled before")]
    Taken,
    #[error("{KEYS_MAX} keys")]
    TooMany,
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Key => Self::unprocessable(
                "`public_key_pem` must be the public half of an Ed25519 or P-256 key, as `-----BEGIN PUBLIC KEY-----`. Make one with `cloudlink key create`.",
            ),
            RouteError::Taken => Self::new(
                Kind::Conflict,
                "This key was enrolled before. A key is enrolled once, also when it was revoked.",
            ),
            RouteError::TooMany => Self::new(
                Kind::Conflict,
                format!("Your tenant has {KEYS_MAX} keys already. Revoke one that is not needed."),
            ),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Enroll a key for signing grants
#[utoipa::path(post, path = "/signing-keys", operation_id = "signing_key_create", tag = "grants",
    request_body = SigningKeyCreate, responses((status = 201, body = SigningKey)))]
#[tracing::instrument(name = "http.signing_key.create", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
    Json(request): Json<SigningKeyCreate>,
) -> Result<impl IntoResponse, RouteError> {
    let tenant = caller.tenant().ok_or_else(Problem::not_found)?;
    check_name("name", &request.name)?;
    let key = PublicKey::from_pem(request.public_key_pem.as_bytes()).map_err(|_| RouteError::Key)?;
    let algorithm = algorithm_name(&key).ok_or(RouteError::Key)?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let count = signing_key_count_in_txn(&mut transaction, tenant).await?;
    if usize::try_from(count).is_ok_and(|count| count >= KEYS_MAX) {
        return Err(RouteError::TooMany);
    }
    let id = SigningKeyId::from_uuid(new_id());
    let new = NewSigningKey { id, tenant, created_by: caller.person(), name: &request.name, algorithm, key: &key };
    let key = signing_key_create(&mut transaction, new).await.map_err(|error| match error.constraint() {
        Some(KEY_TAKEN) => RouteError::Taken,
        Some(_) | None => RouteError::Store(error),
    })?;
    let (subject, details) = (Subject::new("signing_key", key.id), json!(key));
    audit_append(&mut transaction, tenant, &caller.actor(), "signing_key.created", subject, details).await?;
    context.store.commit(transaction).await?;
    Ok((StatusCode::CREATED, Json(key)))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    /// Of `openssl genpkey -algorithm ed25519`.
    const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAgytKK+NuDCGuTJ+Fn2nRCmTMjmNzkH8CfPsm2mi0yZU=\n-----END PUBLIC KEY-----\n";

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn enrolls_lists_and_revokes_a_key(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let body = json!({"name": "safe", "public_key_pem": KEY});
        let key = scene.post("/signing-keys").by(&scene.customer).json(body.clone()).send().await;
        let key = key.expect(StatusCode::CREATED);
        assert_eq!(key["key_id"], "1135d87f6ac5580cd31609a07fb9e4dfb4c2b13ba4472e83978701f71c224902");
        assert_eq!((&key["algorithm"], &key["public_key_pem"]), (&json!("ed25519"), &json!(KEY)));
        let list = async |somebody| scene.get("/signing-keys").by(somebody).send().await.expect(StatusCode::OK);
        assert_eq!(list(&scene.customer).await["items"], json!([key]));
        assert_eq!(list(&scene.other_customer).await["items"], json!([]));
        // Once by each tenant, and nobody learns who else has it.
        let again = |somebody| scene.post("/signing-keys").by(somebody).json(body.clone()).send();
        again(&scene.customer).await.expect_problem(Kind::Conflict);
        again(&scene.other_customer).await.expect(StatusCode::CREATED);
        let path = format!("/signing-keys/{}/revoke", key["id"].as_str().unwrap());
        scene.post(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
        let revoked = scene.post(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_ne!(revoked["revoked_at"], Value::Null);
        assert_eq!(scene.post(&path).by(&scene.customer).send().await.expect(StatusCode::OK), revoked);
        assert_eq!(scene.audited(scene.tenant).await, ["signing_key.created", "signing_key.revoked"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn refuses_what_is_no_key_and_more_than_there_may_be(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        for pem in ["", "x", &KEY.replace("MCow", "MCox"), &KEY.replace("PUBLIC", "PRIVATE")] {
            let body = json!({"name": "n", "public_key_pem": pem});
            let answer = scene.post("/signing-keys").by(&scene.customer).json(body).send().await;
            answer.expect_problem(Kind::Unprocessable);
        }
        sqlx::query(
            "insert into signing_keys (id, tenant_id, name, algorithm, public_key, created_by)
             select gen_random_uuid(), $1, 'n', 'ed25519', sha256(n::text::bytea), $2 from generate_series(1, 16) n",
        )
        .bind(scene.tenant.as_uuid())
        .bind(scene.customer.id.as_uuid())
        .execute(&scene.root)
        .await
        .unwrap();
        let body = json!({"name": "n", "public_key_pem": KEY});
        scene.post("/signing-keys").by(&scene.customer).json(body).send().await.expect_problem(Kind::Conflict);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn the_last_key_stays_while_grants_must_be_signed(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let body = json!({"name": "safe", "public_key_pem": KEY});
        let key = scene.post("/signing-keys").by(&scene.customer).json(body).send().await.expect(StatusCode::CREATED);
        scene.sql("update tenants set signed_grants = true where id = $1", scene.tenant.as_uuid()).await;
        let path = format!("/signing-keys/{}/revoke", key["id"].as_str().unwrap());
        scene.post(&path).by(&scene.customer).send().await.expect_problem(Kind::Conflict);
        scene.sql("update tenants set signed_grants = false where id = $1", scene.tenant.as_uuid()).await;
        scene.post(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
    }
}
