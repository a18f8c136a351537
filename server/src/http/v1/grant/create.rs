//! `POST /grants`: a tenant lets operators in, until when, to do what, and why.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use cloudlink_proto::ids::{AccessRequestId, GrantId};
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::Tag;
use crate::http::field::{check_ids, check_reason, check_scopes, check_seconds};
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Json, NoQuery};
use crate::http::selector::WrittenSelector;
use crate::http::v1::access_request::record::{LAST_SIGNS, Step, record_in_txn, robot};
use crate::http::v1::grant::statement::{Signed, unsigned};
use crate::model::access_request::AccessRequest;
use crate::model::audit::Subject;
use crate::model::grant::{Grant, GrantState, START_AHEAD_MAX};
use crate::model::new_id;
use crate::model::notice::Event;
use crate::model::selector::Selector;
use crate::store::StoreError;
use crate::store::access_request::{Proposal, Proposed, access_request_propose};
use crate::store::audit::audit_append;
use crate::store::device::device_count;
use crate::store::grant::{
    BEYOND_POLICY, ENDS_BEFORE_START, End, ID_TAKEN, NEEDS_APPROVAL, NewGrant, UNSIGNED, grant_create,
};
use crate::store::notice::notice_emit;
use crate::store::person::person_count_operators;
use crate::store::tenant::tenant_show;

/// The longest that any policy allows.
const DURATION_MAX: std::time::Duration = std::time::Duration::from_secs(31_622_400);

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct GrantCreate {
    /// Why, for everybody who reads the audit log later. 1 to 1,024 characters.
    #[serde(default)]
    reason: String,
    /// What may be done: `metrics:read`, `service:restart`, `device:reboot`, `device:shutdown`, `os:update`, `agent:update`,
    /// `container:update`.
    #[serde(default)]
    scopes: Vec<String>,
    /// Who may do it; left out: every operator. Never empty.
    operator_ids: Option<Vec<Uuid>>,
    /// On which devices; or else `selector`. Never empty.
    device_ids: Option<Vec<Uuid>>,
    /// On all devices that this selector fits, then or later; or else `device_ids`. Never empty.
    selector: Option<WrittenSelector>,
    /// Left out, or in the past: from now on.
    #[serde(default, with = "time::serde::rfc3339::option")]
    starts_at: Option<OffsetDateTime>,
    /// Until when; or else `duration_seconds`.
    #[serde(default, with = "time::serde::rfc3339::option")]
    ends_at: Option<OffsetDateTime>,
    /// How long from its start; or else `ends_at`.
    duration_seconds: Option<u64>,
    /// All of it as the tenant has signed it (docs/SIGNED-GRANTS.md), instead of everything else.
    statement: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("not exactly one of {0} and {1}")]
    NotOneOf(&'static str, &'static str),
    #[error("a device that is not the tenant's")]
    ForeignDevice,
    #[error("somebody who is no operator")]
    NoOperator,
    #[error("ends before it starts, or has ended")]
    Ended,
    #[error("both a statement and something else")]
    StatementAndMore,
    #[error("the id of another grant")]
    IdTaken,
    #[error("two people must approve, and this is none")]
    Robot,
    #[error("the tenant's settings changed")]
    Unsettled,
    #[error("starts too far ahead")]
    TooFarAhead,
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
            RouteError::NotOneOf(one, other) => {
                Self::unprocessable(format!("Give either `{one}` or `{other}`, not both and not neither."))
            }
            RouteError::ForeignDevice => {
                Self::unprocessable("`device_ids` names a device that your tenant does not have.")
            }
            RouteError::NoOperator => Self::unprocessable("`operator_ids` names somebody who is not an operator."),
            RouteError::Ended => Self::unprocessable("A grant must end after it starts, and in the future."),
            RouteError::StatementAndMore => Self::unprocessable(
                "Give `statement` and nothing else, or everything else without it: what is signed says all of it.",
            ),
            RouteError::IdTaken => Self::new(
                Kind::Conflict,
                "There is a grant with the id that the statement names. To let it end later, extend it; otherwise sign another id.",
            ),
            RouteError::Robot => robot(),
            RouteError::Unsettled => Self::new(
                Kind::Conflict,
                "How many people must approve was changed at the same moment. Nothing was done: ask again.",
            ),
            RouteError::TooFarAhead => {
                Self::unprocessable(format!("A grant can start at most {} days ahead.", START_AHEAD_MAX.whole_days()))
            }
            RouteError::BeyondPolicy { maximum_seconds } => Self::unprocessable(format!(
                "Your tenant's policy lets one grant run for at most {maximum_seconds} seconds, from its start to its end."
            ))
            .maximum_seconds(maximum_seconds),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Let operators in
///
/// 202: two people of this tenant must approve. It is an access request of yours now, which a second one approves or denies.
#[utoipa::path(post, path = "/grants", operation_id = "grant_create", tag = "grants", request_body = GrantCreate,
    responses((status = 201, body = Grant, headers(("ETag" = String))), (status = 202, body = AccessRequest)))]
#[tracing::instrument(name = "http.grant.create", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
    Json(mut request): Json<GrantCreate>,
) -> Result<Response, RouteError> {
    let tenant = caller.tenant().ok_or_else(Problem::not_found)?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let signed = match request.statement.take() {
        Some(text) => Some(request.fill(Signed::open(&mut transaction, tenant, text).await?)?),
        None => None,
    };
    let ends_at = request.check()?;
    let selector = match &request.selector {
        Some(written) => Some(written.resolve(&mut transaction, Some(tenant)).await?),
        None => None,
    };
    let id = GrantId::from_uuid(signed.as_ref().map_or_else(new_id, |signed| signed.statement.grant));
    if let Some(ids) = &request.device_ids
        && !has_all(device_count(&mut transaction, ids).await?, ids)
    {
        return Err(RouteError::ForeignDevice);
    }
    if let Some(ids) = &request.operator_ids
        && !has_all(person_count_operators(&mut transaction, ids).await?, ids)
    {
        return Err(RouteError::NoOperator);
    }
    let settings = tenant_show(&mut transaction, tenant).await?.ok_or_else(Problem::not_found)?;
    let maximum_seconds = settings.grant_max_seconds;
    if settings.approvals_needed > 1 {
        if signed.is_some() {
            return Err(Problem::unprocessable(LAST_SIGNS).into());
        }
        let (proposed, is_told) =
            request.propose(&mut transaction, &caller, selector.as_ref(), ends_at, maximum_seconds).await?;
        context.store.commit(transaction).await?;
        context.tell_outside(is_told);
        return Ok((StatusCode::ACCEPTED, Json(proposed)).into_response());
    }
    let new = NewGrant {
        id,
        tenant,
        created_by: caller.person(),
        reason: &request.reason,
        scopes: &request.scopes,
        operator_ids: request.operator_ids.as_deref(),
        device_ids: request.device_ids.as_deref(),
        selector: selector.as_ref(),
        starts_at: request.starts_at,
        ends_at,
        statement: signed.as_ref().map(Signed::stored),
    };
    let grant = grant_create(&mut transaction, new).await.map_err(|error| match error.constraint() {
        Some(BEYOND_POLICY) => RouteError::BeyondPolicy { maximum_seconds },
        Some(ENDS_BEFORE_START) => RouteError::Ended,
        Some(NEEDS_APPROVAL) => RouteError::Unsettled,
        Some(UNSIGNED) => RouteError::Refused(unsigned()),
        Some(ID_TAKEN) => RouteError::IdTaken,
        Some(_) | None => RouteError::Store(error),
    })?;
    if grant.state == GrantState::Ended {
        return Err(RouteError::Ended);
    }
    signed.as_ref().map_or(Ok(()), |signed| signed.check(&grant))?;
    let (subject, details) = (Subject::new("grant", grant.id), json!(grant));
    let is_told = notice_emit(&mut transaction, tenant, Event::GrantCreated, json!(grant)).await?;
    audit_append(&mut transaction, tenant, &caller.actor(), "grant.created", subject, details).await?;
    context.store.commit(transaction).await?;
    context.tell_outside(is_told);
    Ok((StatusCode::CREATED, Tag::of_version(grant.version).header(), Json(grant)).into_response())
}

impl GrantCreate {
    /// Asks for what was signed.
    fn fill(&mut self, signed: Signed) -> Result<Signed, RouteError> {
        let is_alone = self.reason.is_empty()
            && self.scopes.is_empty()
            && (&self.operator_ids, &self.device_ids, &self.selector) == (&None, &None, &None)
            && (self.starts_at, self.ends_at, self.duration_seconds) == (None, None, None);
        if !is_alone {
            return Err(RouteError::StatementAndMore);
        }
        let statement = &signed.statement;
        *self = Self {
            reason: statement.reason.clone(),
            scopes: statement.scopes.clone(),
            operator_ids: statement.operators.clone(),
            device_ids: Some(statement.devices.clone()),
            selector: None,
            starts_at: Some(statement.starts_at),
            ends_at: Some(statement.ends_at),
            duration_seconds: None,
            statement: None,
        };
        Ok(signed)
    }

    /// Where two people must approve: what one of them wants becomes a request to the others.
    async fn propose(
        &self,
        transaction: &mut PgConnection,
        caller: &Caller,
        selector: Option<&Selector>,
        ends_at: End,
        maximum_seconds: i32,
    ) -> Result<(AccessRequest, bool), RouteError> {
        let id = AccessRequestId::from_uuid(new_id());
        let proposal = Proposal::Grant {
            reason: &self.reason,
            scopes: &self.scopes,
            operator_ids: self.operator_ids.as_deref(),
            device_ids: self.device_ids.as_deref(),
            selector,
            starts_at: self.starts_at,
            ends_at,
        };
        match access_request_propose(transaction, id, caller.person(), proposal).await? {
            Proposed::Open => Ok(record_in_txn(transaction, id, &caller.actor(), Step::Created).await?),
            Proposed::NoPerson | Proposed::GrantOver => Err(Problem::not_found().into()),
            Proposed::Robot => Err(RouteError::Robot),
            Proposed::Time => Err(RouteError::Ended),
            Proposed::BeyondPolicy => Err(RouteError::BeyondPolicy { maximum_seconds }),
        }
    }

    /// Checks what needs no database, and takes double entries out.
    fn check(&mut self) -> Result<End, RouteError> {
        check_reason(&self.reason)?;
        check_scopes(&mut self.scopes)?;
        check_ids("operator_ids", self.operator_ids.as_mut())?;
        check_ids("device_ids", self.device_ids.as_mut())?;
        match (&self.device_ids, &self.selector) {
            (Some(_), None) | (None, Some(_)) => {}
            (Some(_), Some(_)) | (None, None) => return Err(RouteError::NotOneOf("device_ids", "selector")),
        }
        // A limit against slips of the pen: this server's own clock is good enough for it.
        if self.starts_at.is_some_and(|at| at > clock::now() + START_AHEAD_MAX) {
            return Err(RouteError::TooFarAhead);
        }
        match (self.ends_at, self.duration_seconds) {
            (Some(at), None) => Ok(End::At(at)),
            (None, Some(seconds)) => Ok(End::After(check_seconds("duration_seconds", seconds, DURATION_MAX)?)),
            (Some(_), Some(_)) | (None, None) => Err(RouteError::NotOneOf("ends_at", "duration_seconds")),
        }
    }
}

fn has_all(count: i64, ids: &[Uuid]) -> bool {
    usize::try_from(count).is_ok_and(|count| count == ids.len())
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn makes_a_grant_and_audits_it(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let body = json!({"reason": "WLAN is down", "scopes": ["device:reboot", "device:reboot"],
                          "operator_ids": [scene.operator.id.to_string()], "selector": {"site": "north"},
                          "duration_seconds": 900});
        let answer = scene.post("/grants").by(&scene.customer).json(body).send().await;
        let grant = answer.expect(StatusCode::CREATED);
        assert_eq!(answer.header("etag"), "\"1\"");
        assert_eq!(grant["state"], "in_force");
        assert_eq!(grant["scopes"], json!(["device:reboot"]));
        assert_eq!((&grant["tenant_id"], &grant["device_ids"]), (&json!(scene.tenant.to_string()), &Value::Null));
        assert_eq!(scene.audited(scene.tenant).await, ["grant.created"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_selector_is_shown_in_its_grammar_and_to_older_clients_as_labels(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        let more = "role in (a,b),site=north";
        for (written, labels, text) in [
            (json!({"site": "north"}), json!({"site": "north"}), "site=north"),
            (json!(" site == north"), json!({"site": "north"}), "site=north"),
            (json!("site=north,role in (b,a)"), json!({"": more}), more),
        ] {
            let id = scene.grant(json!({"device_ids": null, "selector": written})).await;
            let grant = scene.get(&format!("/grants/{id}")).by(&scene.customer).send().await.expect(StatusCode::OK);
            assert_eq!((&grant["selector"], &grant["selector_text"]), (&labels, &json!(text)));
        }
        let entry: String =
            sqlx::query_scalar("select entry from audit order by seq desc").fetch_one(&scene.root).await.unwrap();
        assert!(entry.contains(more), "{entry}");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn refuses_what_is_empty_unknown_or_endless(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let nobody = "00000000-0000-7000-8000-000000000000";
        // Each with a word that the answer must say.
        let cases = [
            (json!({"scopes": []}), "scopes"),
            (json!({"scopes": ["device:melt"]}), "scopes"),
            (json!({"device_ids": []}), "device_ids"),
            (json!({"operator_ids": []}), "operator_ids"),
            (json!({"operator_ids": [nobody]}), "operator"),
            (json!({"operator_ids": [scene.customer.id.to_string()]}), "operator"),
            (json!({"device_ids": [nobody]}), "device"),
            (json!({"device_ids": [scene.device.to_string(), scene.other_device.to_string()]}), "device"),
            (json!({"device_ids": null, "selector": {}}), "selector"),
            (json!({"device_ids": null, "selector": {"site": ""}}), "selector"),
            (json!({"device_ids": null, "selector": {"": "site=north"}}), "selector"),
            (json!({"device_ids": null, "selector": ""}), "empty"),
            (json!({"device_ids": null, "selector": "site="}), "at character 6"),
            (json!({"device_ids": null, "selector": "site=north,!site"}), "site"),
            (json!({"device_ids": null, "selector": "@north"}), "no group"),
            (json!({"selector": {"site": "north"}}), "either"),
            (json!({"device_ids": null}), "either"),
            (json!({"reason": "  "}), "reason"),
            (json!({"reason": "a\u{0}b"}), "reason"),
            (json!({"reason": "x".repeat(1025)}), "reason"),
            (json!({"duration_seconds": null}), "either"),
            (json!({"ends_at": "2030-01-01T00:00:00Z"}), "either"),
            (json!({"duration_seconds": 0}), "duration_seconds"),
            (json!({"duration_seconds": null, "ends_at": "2020-01-01T00:00:00Z"}), "future"),
            (json!({"starts_at": "9999-12-31T23:59:59Z"}), "ahead"),
        ];
        for (changes, word) in cases {
            let mut body = json!({"reason": "r", "scopes": ["device:reboot"], "device_ids": [scene.device.to_string()],
                                  "duration_seconds": 900});
            body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let problem = scene.post("/grants").by(&scene.customer).json(body).send().await;
            let problem = problem.expect_problem(Kind::Unprocessable);
            assert!(problem["detail"].as_str().unwrap().contains(word), "{changes}: {problem}");
        }
        assert!(scene.audited(scene.tenant).await.is_empty());
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn the_policy_of_the_tenant_is_the_limit(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.sql("update tenants set grant_max_seconds = 600 where id = $1", scene.tenant.as_uuid()).await;
        let body = json!({"reason": "r", "scopes": ["device:reboot"], "device_ids": [scene.device.to_string()]});
        let with = |seconds: u64| {
            let mut body = body.clone();
            body["duration_seconds"] = seconds.into();
            scene.post("/grants").by(&scene.customer).json(body)
        };
        with(600).send().await.expect(StatusCode::CREATED);
        let problem = with(601).send().await.expect_problem(Kind::Unprocessable);
        assert_eq!(problem["maximum_seconds"], 600);
        // The far end of what can be written must not break anything.
        let mut forever = body.clone();
        forever["ends_at"] = "9999-12-31T23:59:59.999999999Z".into();
        let problem = scene.post("/grants").by(&scene.customer).json(forever).send().await;
        assert_eq!(problem.expect_problem(Kind::Unprocessable)["maximum_seconds"], 600);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_start_in_the_past_is_now(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let id = scene.grant(json!({"starts_at": "2001-01-01T00:00:00+02:00"})).await;
        let grant = scene.get(&format!("/grants/{id}")).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!(grant["state"], "in_force");
        assert_ne!(grant["starts_at"], Value::Null);
        assert!(grant["starts_at"].as_str().unwrap() > "2020", "{grant}");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn where_two_must_approve_one_only_proposes(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let theo = scene.second_customer().await;
        let before = scene.grant(json!({})).await;
        scene.need_two().await;
        let grants = async || {
            let grants: Value = sqlx::query_scalar("select jsonb_object_agg(id, ends_at) from grants")
                .fetch_one(&scene.root)
                .await
                .unwrap();
            grants
        };
        let none = grants().await;
        let body = json!({"reason": "r", "scopes": ["device:reboot"], "selector": "site=north,!retired", "duration_seconds": 900});
        let propose = |somebody| scene.post("/grants").by(somebody).json(body.clone()).send();
        let request = propose(&scene.customer).await.expect(StatusCode::ACCEPTED);
        assert_eq!(
            (&request["kind"], &request["state"], &request["selector_text"]),
            (&json!("grant"), &json!("open"), &json!("!retired,site=north"))
        );
        let id = request["id"].as_str().unwrap().to_owned();
        let approve = |somebody, body: Value| {
            scene.post(&format!("/access-requests/{id}/approve")).by(somebody).json(body).send()
        };
        assert_eq!(approve(&scene.customer, json!({})).await.expect(StatusCode::OK)["state"], "open");
        // What an operator has not asked for is not its to see or to take back.
        scene.get(&format!("/access-requests/{id}")).by(&scene.operator).send().await.expect_problem(Kind::NotFound);
        let withdraw = scene.post(&format!("/access-requests/{id}/withdraw")).by(&scene.operator).send().await;
        withdraw.expect_problem(Kind::NotFound);
        // A later end is the same.
        let later: Value = sqlx::query_scalar("select to_jsonb(ends_at + interval '1 hour') from grants")
            .fetch_one(&scene.root)
            .await
            .unwrap();
        let extend = scene.post(&format!("/grants/{before}/extend")).by(&scene.customer).header("if-match", "*");
        let extension = extend.json(json!({"ends_at": later})).send().await.expect(StatusCode::ACCEPTED);
        assert_eq!(
            (&extension["kind"], &extension["extends_grant_id"]),
            (&json!("extension"), &json!(before.to_string()))
        );
        assert_eq!(grants().await, none, "one person alone has let somebody in");
        // Nor does the database let a tenant's transaction do so by itself.
        for (statement, constraint) in [
            ("update grants set ends_at = ends_at + interval '1 second'", "grants_approved"),
            ("insert into grants (id, tenant_id, created_by, reason, scopes, device_ids, starts_at, ends_at, policy_max_seconds)
              select gen_random_uuid(), tenant_id, created_by, reason, scopes, device_ids, starts_at, ends_at, 0 from grants", "grants_approved"),
        ] {
            let mut transaction = scene.store.begin(crate::store::Visibility::Tenant(scene.tenant)).await.unwrap();
            let error = sqlx::raw_sql(statement).execute(&mut *transaction).await.unwrap_err();
            assert_eq!(error.as_database_error().unwrap().constraint(), Some(constraint), "{statement}");
        }
        let request = approve(&theo, json!({"scopes": ["device:reboot"]})).await.expect(StatusCode::OK);
        let path = format!("/grants/{}", request["grant_id"].as_str().unwrap());
        let grant = scene.get(&path).by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!(
            (&grant["selector_text"], &grant["operator_ids"], &grant["request_id"]),
            (&json!("!retired,site=north"), &Value::Null, &json!(id))
        );
        assert_eq!(grant["ends_at"], request["access_until"]);
        let path = format!("/access-requests/{}/approve", extension["id"].as_str().unwrap());
        let problem = scene.post(&path).by(&theo).json(json!({"scopes": ["device:reboot"]})).send().await;
        problem.expect_problem(Kind::Unprocessable);
        let extension = scene.post(&path).by(&theo).json(json!({})).send().await.expect(StatusCode::OK);
        assert_eq!((&extension["state"], &extension["grant_id"]), (&json!("approved"), &json!(before.to_string())));
        let grant = scene.get(&format!("/grants/{before}")).by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!((&grant["ends_at"], &grant["version"]), (&extension["access_until"], &json!(2)));
        let audited = scene.audited(scene.tenant).await;
        assert_eq!(audited[audited.len() - 2..], ["access_request.approved", "grant.extended"]);
        // A service account cannot even propose; and what is over cannot be extended.
        scene.sql("update people set kind = 'service' where id = $1", scene.customer.id.as_uuid()).await;
        propose(&scene.customer).await.expect_problem(Kind::Forbidden);
        let id = propose(&theo).await.expect(StatusCode::ACCEPTED)["id"].as_str().unwrap().to_owned();
        scene.post(&format!("/access-requests/{id}/withdraw")).by(&theo).send().await.expect(StatusCode::OK);
        // In the database, a grant is given by one of the tenant's own people.
        scene.sql("update tenants set approvals_needed = 1 where id = $1", scene.tenant.as_uuid()).await;
        let mut transaction = scene.store.begin(crate::store::Visibility::Tenant(scene.tenant)).await.unwrap();
        let foreign = "insert into grants (id, tenant_id, created_by, reason, scopes, device_ids, starts_at, ends_at, policy_max_seconds)
                       select gen_random_uuid(), current_tenant(), $1, 'r', '{device:reboot}', array[$1], now(), now() + interval '1 minute', 0";
        let error =
            sqlx::query(foreign).bind(scene.operator.id.as_uuid()).execute(&mut *transaction).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().constraint(), Some("grants_by_tenant"));
    }
}
