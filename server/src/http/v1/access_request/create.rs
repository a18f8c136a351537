//! `POST /access-requests`: an operator asks a tenant to be let in. What one of the tenant's policies allows completely is approved
//! at once; both is decided in the database, with its clock.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::{AccessRequestId, GrantId};
use http::StatusCode;
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::record::{Step, record_in_txn};
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::field::{check_ids, check_reason, check_scopes, check_seconds, check_ticket};
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Json, NoQuery};
use crate::model::access_request::{ANSWER_WITHIN_DEFAULT, ANSWER_WITHIN_MAX, AccessRequest, OPEN_REQUESTS_MAX};
use crate::model::audit::Actor;
use crate::model::new_id;
use crate::store::StoreError;
use crate::store::access_request::{Asked, NewAccessRequest, access_request_create, access_request_show};
use crate::store::grant::End;

/// The longest that any policy of a tenant allows.
const ACCESS_MAX: std::time::Duration = std::time::Duration::from_secs(31_622_400);

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccessRequestCreate {
    /// On which devices, all of one tenant. Never empty.
    device_ids: Vec<Uuid>,
    /// What is to be done. Never empty.
    scopes: Vec<String>,
    /// Why, for those who decide. 1 to 1,024 characters.
    reason: String,
    /// Number or address of the ticket that it is about. 1 to 256 characters.
    ticket: Option<String>,
    /// Until when access is wanted; or else `access_seconds`.
    #[serde(default, with = "time::serde::rfc3339::option")]
    access_until: Option<OffsetDateTime>,
    /// For how long from now on; or else `access_until`. The answer says until when that is, whenever somebody approves.
    access_seconds: Option<u64>,
    /// Until when it can be answered; or else `answer_within_seconds`. Never later than the access that is asked for.
    #[serde(default, with = "time::serde::rfc3339::option")]
    answer_by: Option<OffsetDateTime>,
    /// For how long it can be answered: 1 to 2,592,000. Left out, like `answer_by`: 86,400.
    answer_within_seconds: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("not exactly one of the two")]
    AccessTime,
    #[error("both of the two")]
    AnswerTime,
    #[error("answer too late")]
    AnswerTooLate,
    #[error("nobody who may ask")]
    NoOperator,
    #[error("an unknown or revoked device")]
    Devices,
    #[error("devices of several tenants")]
    Tenants,
    #[error("too many open requests")]
    TooMany,
    #[error("over before it begins")]
    Time,
    #[error("beyond the policy of the tenant")]
    BeyondPolicy,
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::AccessTime => {
                Self::unprocessable("Give either `access_until` or `access_seconds`, not both and not neither.")
            }
            RouteError::AnswerTime => {
                Self::unprocessable("Give at most one of `answer_by` and `answer_within_seconds`.")
            }
            RouteError::AnswerTooLate => Self::unprocessable(format!(
                "`answer_by` can be at most {} days ahead.",
                ANSWER_WITHIN_MAX.as_secs() / 86_400
            )),
            RouteError::NoOperator => Self::new(Kind::Forbidden, "You are no operator who may ask for access."),
            RouteError::Devices => {
                Self::unprocessable("`device_ids` names a device that there is not, or that is revoked.")
            }
            RouteError::Tenants => {
                Self::unprocessable("`device_ids` names devices of several tenants. Ask each of them by itself.")
            }
            RouteError::TooMany => Self::new(
                Kind::Conflict,
                format!(
                    "You have {OPEN_REQUESTS_MAX} requests that nobody has answered. Withdraw one that is not needed."
                ),
            ),
            RouteError::Time => Self::unprocessable("`access_until` and `answer_by` must be in the future."),
            RouteError::BeyondPolicy => Self::unprocessable(
                "That is longer than this tenant lets anybody in at once. Ask for less; there can be another request later.",
            ),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Ask to be let in
///
/// What one of the tenant's policies allows completely is `approved` in the answer; `policy_id` says by which.
#[utoipa::path(post, path = "/access-requests", operation_id = "access_request_create", tag = "access",
    request_body = AccessRequestCreate, responses((status = 201, body = AccessRequest)))]
#[tracing::instrument(name = "http.access_request.create", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
    Json(mut request): Json<AccessRequestCreate>,
) -> Result<impl IntoResponse, RouteError> {
    let (access_until, answer_by) = request.check()?;
    let id = AccessRequestId::from_uuid(new_id());
    let new = NewAccessRequest {
        id,
        operator: caller.person(),
        scopes: &request.scopes,
        devices: &request.device_ids,
        reason: &request.reason,
        ticket: request.ticket.as_deref(),
        answer_by,
        access_until,
        grant: GrantId::from_uuid(new_id()),
    };
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let asked = access_request_create(&mut transaction, &new).await?;
    let (created, is_told) = match asked {
        Asked::Open => record_in_txn(&mut transaction, id, &caller.actor(), Step::Created).await?,
        Asked::Approved => {
            let policy = access_request_show(&mut transaction, id, None).await?.and_then(|request| request.policy_id);
            let policy = Actor::Server { name: format!("access policy {}", policy.unwrap_or_default()) };
            // Nobody has to answer: nobody is asked.
            record_in_txn(&mut transaction, id, &caller.actor(), Step::CreatedByPolicy).await?;
            record_in_txn(&mut transaction, id, &policy, Step::Approved).await?
        }
        Asked::NoOperator => return Err(RouteError::NoOperator),
        Asked::Devices => return Err(RouteError::Devices),
        Asked::Tenants => return Err(RouteError::Tenants),
        Asked::TooMany => return Err(RouteError::TooMany),
        Asked::Time => return Err(RouteError::Time),
        Asked::BeyondPolicy => return Err(RouteError::BeyondPolicy),
    };
    context.store.commit(transaction).await?;
    context.tell_outside(is_told);
    Ok((StatusCode::CREATED, Json(created)))
}

impl AccessRequestCreate {
    /// Checks what needs no database, and takes double entries out. Until when access is asked for, and when to answer.
    fn check(&mut self) -> Result<(End, End), RouteError> {
        check_reason(&self.reason)?;
        self.ticket.as_deref().map_or(Ok(()), check_ticket)?;
        check_scopes(&mut self.scopes)?;
        check_ids("device_ids", Some(&mut self.device_ids))?;
        let access_until = match (self.access_until, self.access_seconds) {
            (Some(at), None) => End::At(at),
            (None, Some(seconds)) => End::After(check_seconds("access_seconds", seconds, ACCESS_MAX)?),
            (Some(_), Some(_)) | (None, None) => return Err(RouteError::AccessTime),
        };
        let answer_by = match (self.answer_by, self.answer_within_seconds) {
            // A limit against slips of the pen: this server's own clock is good enough for it.
            (Some(at), None) if at > crate::clock::now() + ANSWER_WITHIN_MAX => return Err(RouteError::AnswerTooLate),
            (Some(at), None) => End::At(at),
            (None, Some(seconds)) => End::After(check_seconds("answer_within_seconds", seconds, ANSWER_WITHIN_MAX)?),
            (None, None) => End::After(ANSWER_WITHIN_DEFAULT),
            (Some(_), Some(_)) => return Err(RouteError::AnswerTime),
        };
        Ok((access_until, answer_by))
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn asks_the_tenant_of_the_devices(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let body = json!({"device_ids": [scene.device.to_string(), scene.device.to_string()], "scopes": ["device:reboot"],
                          "reason": "WLAN is down", "ticket": "https://tickets.example/4711", "access_seconds": 7200});
        let request = scene.post("/access-requests").by(&scene.operator).json(body).send().await;
        let request = request.expect(StatusCode::CREATED);
        assert_eq!((&request["state"], &request["kind"]), (&json!("open"), &json!("access")));
        assert_eq!(request["tenant_id"], json!(scene.tenant.to_string()));
        assert_eq!(
            (&request["device_ids"], &request["ticket"]),
            (&json!([scene.device.to_string()]), &json!("https://tickets.example/4711"))
        );
        assert_eq!((&request["decisions"], &request["grant_id"]), (&json!([]), &Value::Null));
        assert_eq!(request["operator_ids"], json!([scene.operator.id.to_string()]));
        // A day to answer, but not longer than the access that is asked for.
        assert_eq!(request["answer_by"], request["access_until"]);
        assert_eq!(scene.audited(scene.tenant).await, ["access_request.created"]);
        let path = format!("/access-requests/{}", request["id"].as_str().unwrap());
        for somebody in [&scene.operator, &scene.customer, &scene.admin] {
            assert_eq!(scene.get(&path).by(somebody).send().await.expect(StatusCode::OK), request);
        }
        for somebody in [&scene.colleague, &scene.other_customer] {
            scene.get(&path).by(somebody).send().await.expect_problem(Kind::NotFound);
        }
        let list = async |somebody, query: &str| {
            let page = scene.get(&format!("/access-requests{query}")).by(somebody).send().await.expect(StatusCode::OK);
            page["items"].as_array().unwrap().len()
        };
        for (somebody, query, count) in [
            (&scene.operator, String::new(), 1),
            (&scene.colleague, String::new(), 0),
            (&scene.customer, "?state=open".to_owned(), 1),
            (&scene.customer, "?state=expired".to_owned(), 0),
            (&scene.admin, format!("?device_id={}", scene.device), 1),
            (&scene.admin, format!("?device_id={}", scene.other_device), 0),
            (&scene.admin, format!("?tenant_id={}", scene.other_tenant), 0),
            (&scene.other_customer, String::new(), 0),
        ] {
            assert_eq!(list(somebody, &query).await, count, "{query}");
        }
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn refuses_what_nobody_could_approve(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let nobody = "00000000-0000-7000-8000-000000000000";
        // Each with a word that the answer must say.
        for (changes, word) in [
            (json!({"scopes": []}), "scopes"),
            (json!({"scopes": ["device:melt"]}), "scopes"),
            (json!({"device_ids": []}), "device_ids"),
            (json!({"device_ids": [nobody]}), "device"),
            (json!({"device_ids": [scene.device.to_string(), scene.other_device.to_string()]}), "several tenants"),
            (json!({"reason": " "}), "reason"),
            (json!({"ticket": ""}), "ticket"),
            (json!({"ticket": "a\u{7}"}), "ticket"),
            (json!({"access_seconds": null}), "either"),
            (json!({"access_until": "2030-01-01T00:00:00Z"}), "either"),
            (json!({"access_seconds": 0}), "access_seconds"),
            (json!({"access_seconds": null, "access_until": "2020-01-01T00:00:00Z"}), "future"),
            (json!({"answer_by": "2020-01-01T00:00:00Z"}), "future"),
            (json!({"answer_by": "2100-01-01T00:00:00Z"}), "days"),
            (json!({"answer_within_seconds": 2_592_001}), "answer_within_seconds"),
            (json!({"answer_by": "2030-01-01T00:00:00Z", "answer_within_seconds": 60}), "at most one"),
            (json!({"access_seconds": 2_592_001}), "longer"),
        ] {
            let mut body = json!({"device_ids": [scene.device.to_string()], "scopes": ["device:reboot"], "reason": "r",
                                  "access_seconds": 600});
            body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let problem = scene.post("/access-requests").by(&scene.operator).json(body).send().await;
            let problem = problem.expect_problem(Kind::Unprocessable);
            assert!(problem["detail"].as_str().unwrap().contains(word), "{changes}: {problem}");
        }
        assert!(scene.audited(scene.tenant).await.is_empty());
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn an_operator_has_so_many_open_at_a_time(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let id = scene.access_request(json!({})).await;
        let more = "insert into access_requests (id, tenant_id, requested_by, scopes, device_ids, reason, answer_by, access_until, approvals_needed)
                    select gen_random_uuid(), tenant_id, requested_by, scopes, device_ids, reason, answer_by, access_until, 1
                      from access_requests, generate_series(1, 99) where id = $1";
        scene.sql(more, id).await;
        let body = json!({"device_ids": [scene.device.to_string()], "scopes": ["device:reboot"], "reason": "r", "access_seconds": 600});
        let ask = async |somebody| scene.post("/access-requests").by(somebody).json(body.clone()).send().await;
        ask(&scene.operator).await.expect_problem(Kind::Conflict);
        ask(&scene.colleague).await.expect(StatusCode::CREATED);
        let withdraw = scene.post(&format!("/access-requests/{id}/withdraw")).by(&scene.operator).send().await;
        assert_eq!(withdraw.expect(StatusCode::OK)["state"], "withdrawn");
        ask(&scene.operator).await.expect(StatusCode::CREATED);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn whoever_asked_takes_it_back(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let id = scene.access_request(json!({})).await;
        let withdraw = |somebody| scene.post(&format!("/access-requests/{id}/withdraw")).by(somebody).send();
        for somebody in [&scene.colleague, &scene.customer] {
            withdraw(somebody).await.expect_problem(Kind::NotFound);
        }
        let first = withdraw(&scene.operator).await.expect(StatusCode::OK);
        assert_eq!(first["state"], "withdrawn");
        assert_eq!(withdraw(&scene.operator).await.expect(StatusCode::OK), first);
        let approve = scene.post(&format!("/access-requests/{id}/approve")).by(&scene.customer).json(json!({}));
        approve.send().await.expect_problem(Kind::Conflict);
        assert_eq!(scene.audited(scene.tenant).await, ["access_request.created", "access_request.withdrawn"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_a_policy_allows_completely_needs_nobody(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let policy = scene
            .access_policy(json!({"scopes": ["device:reboot", "metrics:read"], "selector": "site!=south",
                                                "operator_ids": [scene.operator.id.to_string()], "max_seconds": 600}))
            .await;
        let south = cloudlink_proto::ids::DeviceId::from_uuid(crate::model::new_id());
        scene.insert_device(south, scene.tenant, "south", json!({"site": "south"})).await;
        let ask = async |somebody, changes: Value| {
            let mut body = json!({"device_ids": [scene.device.to_string()], "scopes": ["device:reboot"], "reason": "r", "access_seconds": 600});
            body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            scene.post("/access-requests").by(somebody).json(body).send().await.expect(StatusCode::CREATED)
        };
        let request = ask(&scene.operator, json!({})).await;
        assert_eq!((&request["state"], &request["policy_id"]), (&json!("approved"), &json!(policy)));
        let path = format!("/grants/{}", request["grant_id"].as_str().unwrap());
        let grant = scene.get(&path).by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!(
            (&grant["policy_id"], &grant["created_by"]),
            (&json!(policy), &json!(scene.customer.id.to_string()))
        );
        assert_eq!(
            (&grant["operator_ids"], &grant["ends_at"]),
            (&json!([scene.operator.id.to_string()]), &request["access_until"])
        );
        let expected = ["access_policy.created", "access_request.created", "access_request.approved", "grant.created"];
        assert_eq!(scene.audited(scene.tenant).await, expected);
        let actor: String =
            sqlx::query_scalar("select entry::jsonb #>> '{actor,name}' from audit where action = 'grant.created'")
                .fetch_one(&scene.root)
                .await
                .unwrap();
        assert_eq!(actor, format!("access policy {policy}"));
        // Whatever is not completely so waits for people.
        for (who, changes) in [
            (&scene.colleague, json!({})),
            (&scene.operator, json!({"scopes": ["device:reboot", "device:shutdown"]})),
            (&scene.operator, json!({"device_ids": [scene.device.to_string(), south.to_string()]})),
            (&scene.operator, json!({"access_seconds": 601})),
        ] {
            let request = ask(who, changes.clone()).await;
            assert_eq!((&request["state"], &request["policy_id"]), (&json!("open"), &Value::Null), "{changes}");
        }
        // Where every grant must be signed, none is made by itself.
        let key = "insert into signing_keys (id, tenant_id, name, algorithm, public_key, created_by)
                   select id, id, 'key', 'ed25519', sha256(''), (select id from people where tenant_id = $1) from tenants where id = $1";
        scene.sql(key, scene.tenant.as_uuid()).await;
        scene.sql("update tenants set signed_grants = true where id = $1", scene.tenant.as_uuid()).await;
        assert_eq!(ask(&scene.operator, json!({})).await["state"], "open");
        scene.sql("update tenants set signed_grants = false where id = $1", scene.tenant.as_uuid()).await;
        assert_eq!(ask(&scene.operator, json!({})).await["state"], "approved");
        // Where two must approve, one person's policy allows nothing.
        scene.need_two().await;
        assert_eq!(ask(&scene.operator, json!({})).await["state"], "open");
    }
}
