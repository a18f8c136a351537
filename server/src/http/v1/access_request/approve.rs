//! `POST /access-requests/{id}/approve`: one of the tenant's people lets somebody in, to all or to less of what was asked for. The
//! grant is made in the database, in the statement that stores the last approval that is needed.

use axum::extract::State;
use cloudlink_proto::ids::{AccessRequestId, GrantId};
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::record::{Step, record_in_txn, robot};
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::field::{check_comment, check_ids, check_scopes};
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::http::v1::grant::statement::{Signed, unsigned};
use crate::model::access_request::{AccessRequest, AccessRequestKind, AccessRequestState, Decision};
use crate::model::new_id;
use crate::store::access_request::{Answer, Decided, access_request_decide, access_request_show};
use crate::store::grant::{BEYOND_POLICY, ID_TAKEN, UNSIGNED, grant_show};
use crate::store::tenant::tenant_show;
use crate::store::{StoreError, Transaction};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccessRequestApprove {
    /// Only these of the scopes that were asked for. Left out: all of them.
    scopes: Option<Vec<String>>,
    /// Only these of the devices that were asked for. Left out: all of them.
    device_ids: Option<Vec<Uuid>>,
    /// No longer than this. Left out: as long as was asked for.
    #[serde(default, with = "time::serde::rfc3339::option")]
    access_until: Option<OffsetDateTime>,
    /// For whoever asked, and the record. 1 to 1,024 characters.
    comment: Option<String>,
    /// The grant as the tenant's tool has signed it (docs/SIGNED-GRANTS.md), which says all of the above but the comment. Where two
    /// people must approve, of the one who approves last.
    statement: Option<String>,
}

/// Why an answer to a request is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no such request")]
    Unknown,
    #[error("the request is closed")]
    Closed(AccessRequestState),
    #[error("the id of another grant")]
    IdTaken,
    #[error("nobody who may answer")]
    NoPerson,
    #[error("a service account")]
    Robot,
    #[error("more than was asked for")]
    Wider,
    #[error("both a statement and something else")]
    StatementAndMore,
    #[error("signed for another request")]
    OtherRequest,
    #[error("signed for another grant")]
    OtherGrant,
    #[error("signed before the last approval")]
    SignedTooEarly,
    #[error("nothing left to give")]
    NothingLeft,
    #[error("the operator is gone")]
    OperatorGone,
    #[error("the grant is over")]
    GrantOver,
    #[error("beyond the policy of {maximum_seconds} seconds")]
    BeyondPolicy { maximum_seconds: i32 },
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Unknown => Self::not_found(),
            RouteError::Closed(state) => {
                Self::new(Kind::Conflict, format!("The request is {} already. Nothing was changed.", state.name()))
            }
            RouteError::IdTaken => {
                Self::new(Kind::Conflict, "There is a grant with the id that the statement names. Sign another id.")
            }
            RouteError::NoPerson => Self::new(Kind::Forbidden, "Only the tenant's own people answer its requests."),
            RouteError::Robot => robot(),
            RouteError::Wider => Self::unprocessable(
                "An approval can give less than was asked for, and never more: other scopes, other devices, or a later end. \
                 Of an extension, only the end can be less.",
            ),
            RouteError::StatementAndMore => {
                Self::unprocessable("Give `statement` and nothing else but `comment`: what is signed says all of it.")
            }
            RouteError::OtherRequest => Self::unprocessable("`statement` was signed for another request: see its `request`."),
            RouteError::OtherGrant => Self::unprocessable("`statement` was signed for another grant than the one to be extended: see its `jti`."),
            RouteError::SignedTooEarly => Self::new(
                Kind::Conflict,
                "Somebody else must approve after you, and whoever approves last signs. Approve without a `statement`.",
            ),
            RouteError::NothingLeft => Self::unprocessable(
                "Nothing would be left to give: the end has passed, every device is revoked, or others have approved other things.",
            ),
            RouteError::OperatorGone => {
                Self::new(Kind::Conflict, "The operator who asked is no longer active. Deny the request.")
            }
            RouteError::GrantOver => Self::new(Kind::Conflict, "The grant to be extended is over. Make a new one."),
            RouteError::BeyondPolicy { maximum_seconds } => Self::unprocessable(format!(
                "Your tenant's policy lets one grant run for at most {maximum_seconds} seconds. Approve an earlier `access_until`."
            ))
            .maximum_seconds(maximum_seconds),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Let somebody in who has asked
///
/// `state` in the answer is `approved` with the `grant_id` that came of it, or still `open` where a second person must approve.
#[utoipa::path(post, path = "/access-requests/{id}/approve", operation_id = "access_request_approve", tag = "access",
    params(("id" = uuid::Uuid, Path)), request_body = AccessRequestApprove, responses((status = 200, body = AccessRequest)))]
#[tracing::instrument(name = "http.access_request.approve", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
    Json(mut request): Json<AccessRequestApprove>,
) -> Result<Json<AccessRequest>, RouteError> {
    let tenant = caller.tenant().ok_or(RouteError::Unknown)?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let signed = match request.statement.take() {
        Some(text) => {
            let asked = AccessRequestId::from_uuid(id);
            let asked = access_request_show(&mut transaction, asked, None).await?.ok_or(RouteError::Unknown)?;
            Some(request.fill(&asked, Signed::open(&mut transaction, tenant, text).await?)?)
        }
        None => None,
    };
    request.check()?;
    let answer = Answer {
        request: AccessRequestId::from_uuid(id),
        person: caller.person(),
        decision: Decision::Approve,
        scopes: request.scopes.as_deref(),
        device_ids: request.device_ids.as_deref(),
        access_until: request.access_until,
        comment: request.comment.as_deref(),
        grant: GrantId::from_uuid(signed.as_ref().map_or_else(new_id, |signed| signed.statement.grant)),
        statement: signed.as_ref().map(Signed::stored),
    };
    Ok(Json(decide(&context, &caller, transaction, answer, signed.as_ref()).await?))
}

impl AccessRequestApprove {
    /// Approves what was signed. Of a later end, that alone: what else the grant says is compared when it has it.
    fn fill(&mut self, asked: &AccessRequest, signed: Signed) -> Result<Signed, RouteError> {
        if (&self.scopes, &self.device_ids, self.access_until) != (&None, &None, None) {
            return Err(RouteError::StatementAndMore);
        }
        let statement = &signed.statement;
        if asked.kind == AccessRequestKind::Extension {
            if asked.extends_grant_id != Some(statement.grant) {
                return Err(RouteError::OtherGrant);
            }
        } else {
            if statement.request != Some(asked.id) {
                return Err(RouteError::OtherRequest);
            }
            self.scopes = Some(statement.scopes.clone());
            self.device_ids = Some(statement.devices.clone());
        }
        self.access_until = Some(statement.ends_at);
        Ok(signed)
    }

    fn check(&mut self) -> Result<(), Problem> {
        self.scopes.as_mut().map_or(Ok(()), check_scopes)?;
        check_ids("device_ids", self.device_ids.as_mut())?;
        self.comment.as_deref().map_or(Ok(()), check_comment)
    }
}

/// Stores an answer with all that comes of it.
pub(super) async fn decide(
    context: &Context,
    caller: &Caller,
    mut transaction: Transaction,
    answer: Answer<'_>,
    signed: Option<&Signed>,
) -> Result<AccessRequest, RouteError> {
    let tenant = caller.tenant().ok_or(RouteError::Unknown)?;
    let maximum_seconds = tenant_show(&mut transaction, tenant).await?.map(|tenant| tenant.grant_max_seconds);
    let decided = access_request_decide(&mut transaction, answer).await;
    let decided = decided.map_err(|error| match (error.constraint(), maximum_seconds) {
        (Some(BEYOND_POLICY), Some(maximum_seconds)) => RouteError::BeyondPolicy { maximum_seconds },
        (Some(UNSIGNED), _) => RouteError::Refused(unsigned()),
        (Some(ID_TAKEN), _) => RouteError::IdTaken,
        _ => RouteError::Store(error),
    })?;
    let step = match decided {
        Decided::Recorded if signed.is_some() => return Err(RouteError::SignedTooEarly),
        Decided::Approved | Decided::Recorded => Step::Approved,
        Decided::Denied => Step::Denied,
        Decided::Again => {
            let request = access_request_show(&mut transaction, answer.request, None).await?;
            return request.ok_or(RouteError::Unknown);
        }
        Decided::Unknown => return Err(RouteError::Unknown),
        Decided::NoPerson => return Err(RouteError::NoPerson),
        Decided::Robot => return Err(RouteError::Robot),
        Decided::Wider => return Err(RouteError::Wider),
        Decided::NothingLeft => return Err(RouteError::NothingLeft),
        Decided::OperatorGone => return Err(RouteError::OperatorGone),
        Decided::GrantOver => return Err(RouteError::GrantOver),
        Decided::Closed(state) => return Err(RouteError::Closed(state)),
    };
    if let (Decided::Approved, Some(signed)) = (decided, signed) {
        let request = access_request_show(&mut transaction, answer.request, None).await?.ok_or(RouteError::Unknown)?;
        let grant = GrantId::from_uuid(request.grant_id.unwrap_or_default());
        signed.check(&grant_show(&mut transaction, grant, None).await?.ok_or(RouteError::Unknown)?)?;
    }
    let (request, is_told) = record_in_txn(&mut transaction, answer.request, &caller.actor(), step).await?;
    context.store.commit(transaction).await?;
    context.tell_outside(is_told);
    Ok(request)
}

#[cfg(test)]
mod tests {
    use futures_util::future::{join, join_all};
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    use uuid::Uuid;

    use crate::bus::{Heard, Hint};
    use crate::http::problem::Kind;
    use crate::http::testing::{Answer, Scene, Somebody};

    async fn answer(scene: &Scene, id: Uuid, verb: &str, by: &Somebody, body: Value) -> Answer {
        scene.post(&format!("/access-requests/{id}/{verb}")).by(by).json(body).send().await
    }

    async fn approve(scene: &Scene, id: Uuid, by: &Somebody, body: Value) -> Answer {
        answer(scene, id, "approve", by, body).await
    }

    async fn grants(scene: &Scene) -> i64 {
        sqlx::query_scalar("select count(*) from grants").fetch_one(&scene.root).await.unwrap()
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn makes_a_grant_for_the_operator_who_asked(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let id = scene.access_request(json!({"ticket": "4711"})).await;
        let request = approve(&scene, id, &scene.customer, json!({"comment": "go ahead"})).await.expect(StatusCode::OK);
        assert_eq!((&request["state"], &request["version"]), (&json!("approved"), &json!(2)));
        assert_eq!(request["decisions"][0]["comment"], "go ahead");
        let path = format!("/grants/{}", request["grant_id"].as_str().unwrap());
        let grant = scene.get(&path).by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!(grant["operator_ids"], json!([scene.operator.id.to_string()]));
        assert_eq!((&grant["request_id"], &grant["policy_id"]), (&json!(id), &Value::Null));
        assert_eq!(grant["created_by"], json!(scene.customer.id.to_string()));
        assert_eq!((&grant["ends_at"], &grant["state"]), (&request["access_until"], &json!("in_force")));
        assert_eq!(grant["scopes"], json!(["device:reboot", "metrics:read"]));
        scene.get(&path).by(&scene.colleague).send().await.expect_problem(Kind::NotFound);
        // It is good for what was asked.
        scene.command(json!({})).await;
        let expected = ["access_request.created", "access_request.approved", "grant.created", "command.created"];
        assert_eq!(scene.audited(scene.tenant).await, expected);
        // The same answer again is answered like the first time; another one is too late.
        assert_eq!(approve(&scene, id, &scene.customer, json!({})).await.expect(StatusCode::OK)["state"], "approved");
        answer(&scene, id, "deny", &scene.customer, json!({})).await.expect_problem(Kind::Conflict);
        assert_eq!(grants(&scene).await, 1);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn can_give_less_and_never_more(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let second = cloudlink_proto::ids::DeviceId::from_uuid(crate::model::new_id());
        scene.insert_device(second, scene.tenant, "bar", json!({})).await;
        let both = json!([scene.device.to_string(), second.to_string()]);
        let id = scene.access_request(json!({"device_ids": both})).await;
        for wider in [
            json!({"scopes": ["device:reboot", "device:shutdown"]}),
            json!({"device_ids": [scene.device.to_string(), scene.other_device.to_string()]}),
            json!({"access_until": "2100-01-01T00:00:00Z"}),
            json!({"access_until": "2020-01-01T00:00:00Z"}),
            json!({"scopes": []}),
            json!({"device_ids": []}),
        ] {
            approve(&scene, id, &scene.customer, wider).await.expect_problem(Kind::Unprocessable);
        }
        assert_eq!(grants(&scene).await, 0);
        let until: Value = sqlx::query_scalar("select to_jsonb(clock_timestamp() + interval '5 minutes')")
            .fetch_one(&scene.root)
            .await
            .unwrap();
        let less = json!({"scopes": ["metrics:read"], "device_ids": [second.to_string()], "access_until": until});
        let request = approve(&scene, id, &scene.customer, less).await.expect(StatusCode::OK);
        let path = format!("/grants/{}", request["grant_id"].as_str().unwrap());
        let grant = scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!(grant["scopes"], json!(["metrics:read"]));
        assert_eq!(grant["device_ids"], json!([second.to_string()]));
        assert!(grant["ends_at"].as_str() < request["access_until"].as_str());
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_is_over_cannot_be_answered(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let past = "update access_requests set created_at = now() - interval '1 hour', answer_by = clock_timestamp() where id = $1";
        let id = scene.access_request(json!({})).await;
        scene.sql(past, id).await;
        for verb in ["approve", "deny"] {
            let problem = answer(&scene, id, verb, &scene.customer, json!({})).await.expect_problem(Kind::Conflict);
            assert!(problem["detail"].as_str().unwrap().contains("expired"), "{problem}");
        }
        let withdraw = scene.post(&format!("/access-requests/{id}/withdraw")).by(&scene.operator).send().await;
        withdraw.expect_problem(Kind::Conflict);
        let denied = scene.access_request(json!({})).await;
        let request = answer(&scene, denied, "deny", &scene.customer, json!({"comment": "not now"})).await;
        assert_eq!(request.expect(StatusCode::OK)["decisions"][0]["decision"], "deny");
        approve(&scene, denied, &scene.customer, json!({})).await.expect_problem(Kind::Conflict);
        let gone = scene.access_request(json!({})).await;
        scene.sql("update people set active = false where id = $1", scene.operator.id.as_uuid()).await;
        approve(&scene, gone, &scene.customer, json!({})).await.expect_problem(Kind::Conflict);
        let revoked = "update devices set state = 'revoked', revoked_at = now() where id = $1";
        scene.sql("update people set active = true where id = $1", scene.operator.id.as_uuid()).await;
        scene.sql(revoked, scene.device.as_uuid()).await;
        approve(&scene, gone, &scene.customer, json!({})).await.expect_problem(Kind::Unprocessable);
        assert_eq!(grants(&scene).await, 0);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn the_policy_of_the_tenant_is_the_limit(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let id = scene.access_request(json!({})).await;
        scene.sql("update tenants set grant_max_seconds = 600 where id = $1", scene.tenant.as_uuid()).await;
        let problem = approve(&scene, id, &scene.customer, json!({})).await.expect_problem(Kind::Unprocessable);
        assert_eq!(problem["maximum_seconds"], 600);
        assert_eq!(scene.audited(scene.tenant).await, ["access_request.created"], "nothing of the attempt is kept");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn two_different_people_give_what_both_approve(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let theo = scene.second_customer().await;
        let id = scene.access_request(json!({"scopes": ["device:reboot", "metrics:read", "service:restart"]})).await;
        // From now on, also for what was asked before.
        scene.need_two().await;
        for _ in 0..2 {
            let first =
                approve(&scene, id, &scene.customer, json!({"scopes": ["device:reboot", "metrics:read"]})).await;
            let request = first.expect(StatusCode::OK);
            assert_eq!((&request["state"], &request["approvals_needed"]), (&json!("open"), &json!(2)));
            assert_eq!(grants(&scene).await, 0, "one person is not two, however often");
        }
        let none = approve(&scene, id, &theo, json!({"scopes": ["service:restart"]})).await;
        none.expect_problem(Kind::Unprocessable);
        let second = approve(&scene, id, &theo, json!({"scopes": ["metrics:read", "service:restart"]})).await;
        let request = second.expect(StatusCode::OK);
        assert_eq!((&request["state"], request["decisions"].as_array().unwrap().len()), (&json!("approved"), 2));
        let path = format!("/grants/{}", request["grant_id"].as_str().unwrap());
        let grant = scene.get(&path).by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!(grant["scopes"], json!(["metrics:read"]));

        // One who is no longer there does not count.
        let id = scene.access_request(json!({})).await;
        approve(&scene, id, &scene.customer, json!({})).await.expect(StatusCode::OK);
        scene.sql("update people set active = false where id = $1", scene.customer.id.as_uuid()).await;
        assert_eq!(approve(&scene, id, &theo, json!({})).await.expect(StatusCode::OK)["state"], "open");
        scene.sql("update people set active = true where id = $1", scene.customer.id.as_uuid()).await;
        // And whoever has approved can still say no: that ends it.
        let denied = answer(&scene, id, "deny", &theo, json!({})).await.expect(StatusCode::OK);
        assert_eq!(denied["state"], "denied");
        approve(&scene, id, &scene.customer, json!({})).await.expect_problem(Kind::Conflict);
        assert_eq!(grants(&scene).await, 1);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_service_account_counts_where_one_is_enough_and_nowhere_else(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        let theo = scene.second_customer().await;
        let body = json!({"name": "robot", "role": "tenant", "tenant_id": scene.tenant.to_string(), "kind": "service"});
        let robot = scene.post("/people").by(&scene.customer).json(body).send().await.expect(StatusCode::CREATED);
        let body = json!({"name": "its", "person_id": robot["id"], "scopes": ["grants"]});
        let token = scene.post("/tokens").by(&scene.customer).json(body).send().await.expect(StatusCode::CREATED);
        let robot = Somebody {
            id: robot["id"].as_str().unwrap().parse().unwrap(),
            token_id: token["id"].as_str().unwrap().parse().unwrap(),
            token: token["token"].as_str().unwrap().to_owned(),
        };
        let id = scene.access_request(json!({})).await;
        assert_eq!(approve(&scene, id, &robot, json!({})).await.expect(StatusCode::OK)["state"], "approved");
        let grant = scene.grant(json!({})).await;
        let before = grants(&scene).await;

        scene.need_two().await;
        let id = scene.access_request(json!({})).await;
        let policy = scene.access_policy(json!({})).await;
        let later = json!({"ends_at": "2030-01-01T00:00:00Z"});
        let new = json!({
            "reason": "r", "scopes": ["device:reboot"], "device_ids": [scene.device.to_string()], "duration_seconds": 600,
        });
        for call in [
            scene.post(&format!("/access-requests/{id}/approve")).json(json!({})),
            scene.post(&format!("/access-policies/{policy}/approve")),
            scene.post(&format!("/grants/{grant}/extend")).header("if-match", "*").json(later),
            scene.post("/grants").json(new),
        ] {
            let answer = call.by(&robot).send().await;
            assert!(answer.expect_problem(Kind::Forbidden)["detail"].as_str().unwrap().contains("service account"));
        }
        // Of the two who are needed it is none either.
        assert_eq!(approve(&scene, id, &scene.customer, json!({})).await.expect(StatusCode::OK)["state"], "open");
        approve(&scene, id, &robot, json!({})).await.expect_problem(Kind::Forbidden);
        assert_eq!(grants(&scene).await, before);
        assert_eq!(approve(&scene, id, &theo, json!({})).await.expect(StatusCode::OK)["state"], "approved");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn of_two_who_approve_at_once_one_makes_the_grant(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let theo = scene.second_customer().await;
        for needed in [1, 2] {
            if needed == 2 {
                scene.need_two().await;
            }
            for round in 0..10 {
                let id = scene.access_request(json!({})).await;
                let both = [(&scene.customer, 0), (&theo, 1), (&scene.customer, 2), (&theo, 3)];
                let answers = join_all(both.map(|(somebody, _)| approve(&scene, id, somebody, json!({})))).await;
                let made: i64 = sqlx::query_scalar("select count(*) from grants where request_id = $1")
                    .bind(id)
                    .fetch_one(&scene.root)
                    .await
                    .unwrap();
                assert_eq!(made, 1, "round {round} with {needed}: {answers:?}");
                assert!(answers.iter().all(|answer| matches!(answer.status.as_u16(), 200 | 409)), "{answers:?}");
            }
        }
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn an_approval_and_a_withdrawal_or_a_denial_have_one_outcome(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        let theo = scene.second_customer().await;
        let (mut approved, mut otherwise) = (0, 0);
        for round in 0..20 {
            let id = scene.access_request(json!({})).await;
            let other = async {
                if round % 2 == 0 {
                    scene.post(&format!("/access-requests/{id}/withdraw")).by(&scene.operator).send().await
                } else {
                    answer(&scene, id, "deny", &theo, json!({})).await
                }
            };
            let (first, second) = if round % 4 < 2 {
                join(approve(&scene, id, &scene.customer, json!({})), other).await
            } else {
                let (second, first) = join(other, approve(&scene, id, &scene.customer, json!({}))).await;
                (first, second)
            };
            let done = [&first, &second].map(|answer| answer.status == StatusCode::OK);
            assert!(done[0] ^ done[1], "round {round}: {first:?} {second:?}");
            let made: i64 = sqlx::query_scalar("select count(*) from grants where request_id = $1")
                .bind(id)
                .fetch_one(&scene.root)
                .await
                .unwrap();
            assert_eq!(made, i64::from(done[0]), "round {round}");
            if done[0] { approved += 1 } else { otherwise += 1 }
        }
        assert!(approved > 0 && otherwise > 0, "the two never met: {approved}, {otherwise}");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn whoever_answers_at_the_last_moment_is_in_time_or_too_late(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        for wait_ms in (0..200).step_by(20) {
            let id = scene.access_request(json!({})).await;
            let soon = "update access_requests set answer_by = clock_timestamp() + interval '100 ms' where id = $1";
            scene.sql(soon, id).await;
            tokio::time::sleep(std::time::Duration::from_millis(wait_ms)).await;
            let answer = approve(&scene, id, &scene.customer, json!({})).await;
            let (closed_in_time, made): (Option<bool>, i64) = sqlx::query_as(
                "select closed_at < answer_by, (select count(*) from grants g where g.request_id = r.id) from access_requests r where id = $1",
            )
            .bind(id)
            .fetch_one(&scene.root)
            .await
            .unwrap();
            match answer.status {
                StatusCode::OK => assert_eq!((closed_in_time, made), (Some(true), 1)),
                _ => {
                    answer.expect_problem(Kind::Conflict);
                    assert_eq!((closed_in_time, made), (None, 0));
                }
            }
        }
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn those_who_wait_for_it_are_told(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        sqlx::query(
            "insert into webhooks (id, tenant_id, url, events, secret_sealed, created_by)
             values ($1, $2, 'https://example.com/', '{access_request.created,access_request.approved,grant.created}', sha256(''), $3)",
        )
        .bind(crate::model::new_id())
        .bind(scene.tenant.as_uuid())
        .bind(scene.customer.id.as_uuid())
        .execute(&scene.root)
        .await
        .unwrap();
        let theo = scene.second_customer().await;
        scene.need_two().await;
        let mut hints = scene.bus.listen();
        let id = scene.access_request(json!({})).await;
        assert_eq!(hints.hear().await, Heard::Hint(Hint::NoticesDue));
        approve(&scene, id, &scene.customer, json!({})).await.expect(StatusCode::OK);
        let told = async || {
            let events = sqlx::query_scalar("select event from notices order by created_at, event");
            let events: Vec<String> = events.fetch_all(&scene.root).await.unwrap();
            events
        };
        assert_eq!(told().await, ["access_request.created"], "the first of two decides nothing");
        approve(&scene, id, &theo, json!({})).await.expect(StatusCode::OK);
        assert_eq!(told().await, ["access_request.created", "access_request.approved", "grant.created"]);
    }
}
