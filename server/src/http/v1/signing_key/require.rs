//! `POST /signing-keys/require`: whether grants of the tenant must be signed. The tenant's own affair: no administrator's.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Json, NoQuery};
use crate::model::audit::Subject;
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::signing_key::{NEEDS_A_KEY, signing_key_require};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SigningKeyRequire {
    /// Whether every grant, and every later end of one, must be signed from now on.
    required: bool,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct SigningKeyRequired {
    required: bool,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no key")]
    NoKey,
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::NoKey => Self::new(
                Kind::Conflict,
                "Your tenant has no key to sign with. Enroll one first (`cloudlink key create`, `cloudlink key enroll`).",
            ),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Let only grants be given that are signed
///
/// Devices are told so when they enroll, and keep to it whatever is said here later. Grants that are there already stay in force.
#[utoipa::path(post, path = "/signing-keys/require", operation_id = "signing_key_require", tag = "grants",
    request_body = SigningKeyRequire, responses((status = 200, body = SigningKeyRequired)))]
#[tracing::instrument(name = "http.signing_key.require", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
    Json(SigningKeyRequire { required }): Json<SigningKeyRequire>,
) -> Result<Json<SigningKeyRequired>, RouteError> {
    let tenant = caller.tenant().ok_or_else(Problem::not_found)?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let is_changed = signing_key_require(&mut transaction, tenant, required).await;
    let is_changed = is_changed.map_err(|error| match error.constraint() {
        Some(NEEDS_A_KEY) => RouteError::NoKey,
        Some(_) | None => RouteError::Store(error),
    })?;
    if is_changed {
        let (subject, details) = (Subject::new("tenant", tenant.as_uuid()), json!({"signed_grants": required}));
        audit_append(&mut transaction, tenant, &caller.actor(), "tenant.signed_grants", subject, details).await?;
        context.store.commit(transaction).await?;
    }
    Ok(Json(SigningKeyRequired { required }))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::Ed25519KeyPair;
    use cloudlink_certs::{GrantStatement, PrivateKey};
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    use time::format_description::well_known::Rfc3339;
    use time::{Duration, OffsetDateTime};
    use uuid::Uuid;

    use crate::clock;
    use crate::http::problem::Kind;
    use crate::http::testing::{Answer, Scene};

    fn new_key() -> PrivateKey {
        PrivateKey::from_pkcs8_der(Ed25519KeyPair::generate().unwrap().to_pkcs8().unwrap().as_ref()).unwrap()
    }

    /// A tenant that has a key, and wants it used.
    async fn signing(scene: &Scene) -> PrivateKey {
        let key = new_key();
        let body = json!({"name": "safe", "public_key_pem": key.public_key().to_pem()});
        scene.post("/signing-keys").by(&scene.customer).json(body).send().await.expect(StatusCode::CREATED);
        require(scene, true).await.expect(StatusCode::OK);
        key
    }

    async fn require(scene: &Scene, required: bool) -> Answer {
        scene.post("/signing-keys/require").by(&scene.customer).json(json!({"required": required})).send().await
    }

    fn now() -> OffsetDateTime {
        clock::now().replace_nanosecond(0).unwrap()
    }

    fn statement(scene: &Scene) -> GrantStatement {
        GrantStatement {
            tenant: scene.tenant.as_uuid(),
            grant: Uuid::now_v7(),
            signed_at: now(),
            starts_at: now(),
            ends_at: now() + Duration::HOUR,
            scopes: vec!["service:restart".to_owned(), "device:reboot".to_owned()],
            devices: vec![scene.device.as_uuid()],
            operators: Some(vec![scene.operator.id.as_uuid()]),
            reason: "WLAN is down".to_owned(),
            request: None,
        }
    }

    async fn give(scene: &Scene, text: &str) -> Answer {
        scene.post("/grants").by(&scene.customer).json(json!({"statement": text})).send().await
    }

    async fn extend(scene: &Scene, id: Uuid, body: Value) -> Answer {
        let call = scene.post(&format!("/grants/{id}/extend")).by(&scene.customer).header("if-match", "*");
        call.json(body).send().await
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn without_a_signature_nothing_is_given_or_extended(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        require(&scene, true).await.expect_problem(Kind::Conflict);
        let before = scene.grant(json!({})).await;
        let key = signing(&scene).await;
        let body = json!({"reason": "r", "scopes": ["device:reboot"], "device_ids": [scene.device.to_string()],
                          "duration_seconds": 900});
        scene.post("/grants").by(&scene.customer).json(body.clone()).send().await.expect_problem(Kind::GrantUnsigned);
        let later = json!({"ends_at": "2099-01-01T00:00:00Z"});
        extend(&scene, before.as_uuid(), later.clone()).await.expect_problem(Kind::GrantUnsigned);
        let signed = statement(&scene);
        let grant = give(&scene, &signed.sign(&key).unwrap()).await.expect(StatusCode::CREATED);
        assert_eq!((&grant["state"], &grant["id"]), (&json!("in_force"), &json!(signed.grant.to_string())));
        extend(&scene, signed.grant, later).await.expect_problem(Kind::GrantUnsigned);
        assert_eq!(require(&scene, false).await.expect(StatusCode::OK)["required"], false);
        scene.post("/grants").by(&scene.customer).json(body).send().await.expect(StatusCode::CREATED);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_grant_says_what_was_signed_and_a_later_statement_extends_it(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        let key = signing(&scene).await;
        let signed = statement(&scene);
        let text = signed.sign(&key).unwrap();
        let grant = give(&scene, &text).await.expect(StatusCode::CREATED);
        assert_eq!(grant["statement"], text);
        assert_eq!(grant["scopes"], json!(["device:reboot", "service:restart"]));
        assert_eq!(grant["device_ids"], json!([scene.device.to_string()]));
        assert_eq!(grant["operator_ids"], json!([scene.operator.id.to_string()]));
        assert_eq!(grant["reason"], "WLAN is down");
        give(&scene, &text).await.expect_problem(Kind::Conflict);
        let later = GrantStatement { ends_at: signed.ends_at + Duration::HOUR, ..signed.clone() };
        let text = later.sign(&key).unwrap();
        let longer = extend(&scene, signed.grant, json!({"statement": text})).await.expect(StatusCode::OK);
        assert_eq!((&longer["statement"], &longer["version"]), (&json!(text), &json!(2)));
        // What was signed stays all that it is.
        for wider in [
            GrantStatement { scopes: vec!["device:reboot".to_owned()], ..later.clone() },
            GrantStatement { devices: vec![scene.other_device.as_uuid()], ..later.clone() },
            GrantStatement { operators: None, ..later.clone() },
            GrantStatement { reason: "r".to_owned(), ..later.clone() },
            GrantStatement { grant: Uuid::now_v7(), ..later.clone() },
        ] {
            let wider = GrantStatement { ends_at: later.ends_at + Duration::HOUR, ..wider };
            let answer = extend(&scene, signed.grant, json!({"statement": wider.sign(&key).unwrap()})).await;
            answer.expect_problem(Kind::Unprocessable);
        }
        extend(&scene, signed.grant, json!({"statement": text})).await.expect_problem(Kind::Unprocessable);
        let kept = scene.get(&format!("/grants/{}", signed.grant)).by(&scene.operator).send().await;
        assert_eq!(kept.expect(StatusCode::OK), longer);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn where_two_must_approve_the_last_one_signs_the_later_end(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let key = signing(&scene).await;
        let theo = scene.second_customer().await;
        let signed = statement(&scene);
        let before = give(&scene, &signed.sign(&key).unwrap()).await.expect(StatusCode::CREATED);
        scene.need_two().await;
        let later = GrantStatement { ends_at: signed.ends_at + Duration::HOUR, ..signed.clone() };
        extend(&scene, signed.grant, json!({"statement": later.sign(&key).unwrap()}))
            .await
            .expect_problem(Kind::Unprocessable);
        let asked = json!({"ends_at": later.ends_at.format(&Rfc3339).unwrap()});
        let request = extend(&scene, signed.grant, asked).await.expect(StatusCode::ACCEPTED);
        let path = format!("/access-requests/{}/approve", request["id"].as_str().unwrap());
        let approve = |somebody, body: Value| scene.post(&path).by(somebody).json(body).send();
        let by_theo = async |statement: &GrantStatement| {
            approve(&theo, json!({"statement": statement.sign(&key).unwrap()})).await
        };
        approve(&theo, json!({})).await.expect_problem(Kind::GrantUnsigned);
        let first = approve(&scene.customer, json!({"statement": later.sign(&key).unwrap()})).await;
        first.expect_problem(Kind::Conflict);
        for wrong in [
            GrantStatement { grant: Uuid::now_v7(), ..later.clone() },
            GrantStatement { ends_at: later.ends_at + Duration::HOUR, ..later.clone() },
            GrantStatement { scopes: vec!["device:reboot".to_owned()], ..later.clone() },
            GrantStatement { devices: vec![scene.other_device.as_uuid()], ..later.clone() },
            GrantStatement { operators: None, ..later.clone() },
            GrantStatement { starts_at: signed.starts_at + Duration::MINUTE, ..later.clone() },
        ] {
            by_theo(&wrong).await.expect_problem(Kind::Unprocessable);
        }
        let show = async || {
            let grant = scene.get(&format!("/grants/{}", signed.grant)).by(&scene.operator).send().await;
            grant.expect(StatusCode::OK)
        };
        assert_eq!(show().await, before);
        // Less than was asked for, as with any approval.
        let less = GrantStatement { ends_at: signed.ends_at + Duration::MINUTE, ..signed.clone() };
        assert_eq!(by_theo(&less).await.expect(StatusCode::OK)["state"], "approved");
        let longer = show().await;
        assert_eq!(longer["statement"], less.sign(&key).unwrap());
        assert_eq!(longer["ends_at"], less.ends_at.format(&Rfc3339).unwrap());
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_does_not_count_is_refused_and_says_why(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let key = signing(&scene).await;
        let good = || statement(&scene);
        let signed = |statement: GrantStatement| statement.sign(&key).unwrap();
        let cases = [
            (good().sign(&new_key()).unwrap(), "key"),
            (signed(GrantStatement { tenant: scene.other_tenant.as_uuid(), ..good() }), "tenant"),
            (signed(GrantStatement { devices: vec![scene.other_device.as_uuid()], ..good() }), "device"),
            (signed(GrantStatement { operators: Some(vec![scene.customer.id.as_uuid()]), ..good() }), "operator"),
            (signed(GrantStatement { scopes: vec!["device:melt".to_owned()], ..good() }), "scopes"),
            (signed(GrantStatement { ends_at: good().ends_at + Duration::days(400), ..good() }), "policy"),
            (signed(GrantStatement { signed_at: good().signed_at + Duration::minutes(30), ..good() }), "clock"),
            (
                signed(GrantStatement {
                    signed_at: now() - Duration::HOUR,
                    starts_at: now() - Duration::HOUR,
                    ends_at: now() - Duration::MINUTE,
                    ..good()
                }),
                "ended",
            ),
            ("x".to_owned(), "base64url"),
        ];
        for (text, word) in cases {
            let problem = give(&scene, &text).await.expect_problem(Kind::Unprocessable);
            assert!(problem["detail"].as_str().unwrap().contains(word), "{word}: {problem}");
        }
        let both = json!({"statement": signed(good()), "reason": "r"});
        let answer = scene.post("/grants").by(&scene.customer).json(both).send().await;
        answer.expect_problem(Kind::Unprocessable);
        // Of a key that was revoked, nothing is taken.
        let body = json!({"name": "second", "public_key_pem": new_key().public_key().to_pem()});
        scene.post("/signing-keys").by(&scene.customer).json(body).send().await.expect(StatusCode::CREATED);
        scene
            .sql(
                "update signing_keys set revoked_at = now() where tenant_id = $1 and name = 'safe'",
                scene.tenant.as_uuid(),
            )
            .await;
        give(&scene, &signed(good())).await.expect_problem(Kind::Unprocessable);
    }
}
