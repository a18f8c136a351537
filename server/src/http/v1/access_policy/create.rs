//! `POST /access-policies`: what a tenant allows without being asked each time. Where two people must approve, a second one must
//! approve the policy before it allows anything.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::AccessPolicyId;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::field::{check_ids, check_name, check_scopes};
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Json, NoQuery};
use crate::http::selector::WrittenSelector;
use crate::model::access_policy::{AccessPolicy, DAY_MINUTES, DAYS, MAX_SECONDS_RANGE, POLICIES_MAX};
use crate::model::audit::Subject;
use crate::model::new_id;
use crate::model::notice::Event;
use crate::store::StoreError;
use crate::store::access_policy::{NewAccessPolicy, access_policy_create, time_zone_is_known};
use crate::store::audit::audit_append;
use crate::store::device::device_count;
use crate::store::notice::notice_emit;
use crate::store::person::person_count_operators;

/// The longest name of a time zone, in bytes.
const TIME_ZONE_BYTES_MAX: usize = 64;

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccessPolicyCreate {
    /// 1 to 128 characters.
    name: String,
    /// What may be done. Never empty.
    scopes: Vec<String>,
    /// On these devices; or else `selector`, or neither: on all of the tenant's, later ones included. Never empty.
    device_ids: Option<Vec<Uuid>>,
    /// On devices that this selector fits. Never empty.
    selector: Option<WrittenSelector>,
    /// For these operators; left out: every one. Never empty.
    operator_ids: Option<Vec<Uuid>>,
    /// On these days of the week: 1 is Monday, 7 is Sunday. Left out: all of them.
    days: Option<Vec<i32>>,
    /// From this minute of the day, by the clocks of `time_zone`: 0 to 1,439. Left out: 0.
    from_minute: Option<i32>,
    /// Until this minute of the day: 1 to 1,440, after `from_minute`. Left out: 1,440.
    to_minute: Option<i32>,
    /// Name in the time zone database, as `Europe/Berlin`. Left out: `UTC`.
    time_zone: Option<String>,
    /// The longest access under it: 60 to 31,622,400.
    max_seconds: i32,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("both device_ids and selector")]
    Both,
    #[error("a device that is not the tenant's")]
    ForeignDevice,
    #[error("somebody who is no operator")]
    NoOperator,
    #[error("no days")]
    Days,
    #[error("no hours")]
    Hours,
    #[error("no such time zone")]
    TimeZone,
    #[error("no length")]
    MaxSeconds,
    #[error("too many policies")]
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
            RouteError::Both => Self::unprocessable("Give `device_ids` or `selector`, or neither for all devices."),
            RouteError::ForeignDevice => {
                Self::unprocessable("`device_ids` names a device that your tenant does not have.")
            }
            RouteError::NoOperator => Self::unprocessable("`operator_ids` names somebody who is not an operator."),
            RouteError::Days => Self::unprocessable("`days` must name at least one of 1 (Monday) to 7 (Sunday)."),
            RouteError::Hours => Self::unprocessable(
                "`from_minute` must be 0 to 1439, and `to_minute` after it, up to 1440. Hours over midnight take two policies, \
                 and no access under them goes on over it.",
            ),
            RouteError::TimeZone => Self::unprocessable(
                "`time_zone` must be UTC or a name of the time zone database, as Europe/Berlin, written as it is there.",
            ),
            RouteError::MaxSeconds => {
                let (least, most) = MAX_SECONDS_RANGE.into_inner();
                Self::unprocessable(format!("`max_seconds` must be {least} to {most}."))
            }
            RouteError::TooMany => Self::new(
                Kind::Conflict,
                format!("Your tenant has {POLICIES_MAX} policies already. Revoke one that is not needed."),
            ),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Allow something without being asked each time
///
/// `state` in the answer is `proposed` where two people must approve: it allows nothing before a second one does.
#[utoipa::path(post, path = "/access-policies", operation_id = "access_policy_create", tag = "access",
    request_body = AccessPolicyCreate, responses((status = 201, body = AccessPolicy)))]
#[tracing::instrument(name = "http.access_policy.create", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
    Json(mut request): Json<AccessPolicyCreate>,
) -> Result<impl IntoResponse, RouteError> {
    let tenant = caller.tenant().ok_or_else(Problem::not_found)?;
    request.check()?;
    let days = request.days.unwrap_or_else(|| DAYS.collect());
    let time_zone = request.time_zone.as_deref().unwrap_or("UTC");
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let selector = match &request.selector {
        Some(written) => Some(written.resolve(&mut transaction, Some(tenant)).await?),
        None => None,
    };
    if !time_zone_is_known(&mut transaction, time_zone).await? {
        return Err(RouteError::TimeZone);
    }
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
    let new = NewAccessPolicy {
        id: AccessPolicyId::from_uuid(new_id()),
        tenant,
        created_by: caller.person(),
        name: &request.name,
        scopes: &request.scopes,
        device_ids: request.device_ids.as_deref(),
        selector: selector.as_ref(),
        operator_ids: request.operator_ids.as_deref(),
        days: &days,
        from_minute: request.from_minute.unwrap_or(0),
        to_minute: request.to_minute.unwrap_or(DAY_MINUTES),
        time_zone,
        max_seconds: request.max_seconds,
    };
    let policy = access_policy_create(&mut transaction, &new).await?.ok_or(RouteError::TooMany)?;
    let (subject, details) = (Subject::new("access_policy", policy.id), json!(policy));
    let is_told = notice_emit(&mut transaction, tenant, Event::AccessPolicyCreated, json!(policy)).await?;
    audit_append(&mut transaction, tenant, &caller.actor(), "access_policy.created", subject, details).await?;
    context.store.commit(transaction).await?;
    context.tell_outside(is_told);
    Ok((StatusCode::CREATED, Json(policy)))
}

impl AccessPolicyCreate {
    /// Checks what needs no database, and takes double entries out.
    fn check(&mut self) -> Result<(), RouteError> {
        check_name("name", &self.name)?;
        check_scopes(&mut self.scopes)?;
        check_ids("device_ids", self.device_ids.as_mut())?;
        check_ids("operator_ids", self.operator_ids.as_mut())?;
        if self.device_ids.is_some() && self.selector.is_some() {
            return Err(RouteError::Both);
        }
        if let Some(days) = &mut self.days {
            days.sort_unstable();
            days.dedup();
            if days.is_empty() || !days.iter().all(|day| DAYS.contains(day)) {
                return Err(RouteError::Days);
            }
        }
        let (from, to) = (self.from_minute.unwrap_or(0), self.to_minute.unwrap_or(DAY_MINUTES));
        if !(0..DAY_MINUTES).contains(&from) || !(from + 1..=DAY_MINUTES).contains(&to) {
            return Err(RouteError::Hours);
        }
        if self.time_zone.as_ref().is_some_and(|zone| zone.len() > TIME_ZONE_BYTES_MAX || zone.contains('\0')) {
            return Err(RouteError::TimeZone);
        }
        if MAX_SECONDS_RANGE.contains(&self.max_seconds) { Ok(()) } else { Err(RouteError::MaxSeconds) }
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
    async fn makes_a_policy_of_what_is_said_and_all_else(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let body = json!({"name": "office hours", "scopes": ["device:reboot", "device:reboot"], "days": [5, 1, 1], "from_minute": 480,
                          "to_minute": 1080, "time_zone": "Europe/Berlin", "max_seconds": 3600});
        let policy =
            scene.post("/access-policies").by(&scene.customer).json(body).send().await.expect(StatusCode::CREATED);
        assert_eq!((&policy["scopes"], &policy["days"]), (&json!(["device:reboot"]), &json!([1, 5])));
        assert_eq!(
            (&policy["state"], &policy["device_ids"], &policy["selector"]),
            (&json!("in_force"), &Value::Null, &Value::Null)
        );
        let id = scene.access_policy(json!({})).await;
        let policy =
            scene.get(&format!("/access-policies/{id}")).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!((&policy["days"], &policy["time_zone"]), (&json!([1, 2, 3, 4, 5, 6, 7]), &json!("UTC")));
        assert_eq!((&policy["from_minute"], &policy["to_minute"]), (&json!(0), &json!(1440)));
        let page = scene.get("/access-policies").by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!((page["items"].as_array().unwrap().len(), &page["items"][0]), (2, &policy));
        assert_eq!(scene.audited(scene.tenant).await, ["access_policy.created", "access_policy.created"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn refuses_what_is_empty_unknown_or_endless(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        // Each with a word that the answer must say.
        for (changes, word) in [
            (json!({"name": ""}), "name"),
            (json!({"scopes": []}), "scopes"),
            (json!({"device_ids": []}), "device_ids"),
            (json!({"device_ids": [scene.other_device.to_string()]}), "device"),
            (json!({"device_ids": [scene.device.to_string()], "selector": {"a": "b"}}), "selector"),
            (json!({"selector": {}}), "selector"),
            (json!({"operator_ids": [scene.customer.id.to_string()]}), "operator"),
            (json!({"days": []}), "days"),
            (json!({"days": [0]}), "days"),
            (json!({"days": [8]}), "days"),
            (json!({"from_minute": -1}), "from_minute"),
            (json!({"from_minute": 1440}), "from_minute"),
            (json!({"to_minute": 1441}), "to_minute"),
            (json!({"from_minute": 600, "to_minute": 600}), "to_minute"),
            (json!({"time_zone": "Europe/Nowhere"}), "time_zone"),
            (json!({"time_zone": "europe/berlin"}), "time_zone"),
            (json!({"time_zone": "CET"}), "time_zone"),
            (json!({"time_zone": "X-99:00"}), "time_zone"),
            (json!({"time_zone": "posix/Europe/Berlin"}), "time_zone"),
            (json!({"time_zone": "a\u{0}"}), "time_zone"),
            (json!({"time_zone": ""}), "time_zone"),
            (json!({"max_seconds": 59}), "max_seconds"),
            (json!({"max_seconds": 31_622_401}), "max_seconds"),
        ] {
            let mut body = json!({"name": "n", "scopes": ["device:reboot"], "max_seconds": 600});
            body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let problem = scene.post("/access-policies").by(&scene.customer).json(body).send().await;
            let problem = problem.expect_problem(Kind::Unprocessable);
            assert!(problem["detail"].as_str().unwrap().contains(word), "{changes}: {problem}");
        }
        let id = scene.access_policy(json!({})).await;
        let more = "insert into access_policies (id, tenant_id, name, scopes, days, from_minute, to_minute, time_zone, max_seconds, created_by)
                    select gen_random_uuid(), tenant_id, name, scopes, days, from_minute, to_minute, time_zone, max_seconds, created_by
                      from access_policies, generate_series(1, 99) where id = $1";
        scene.sql(more, id).await;
        let body = json!({"name": "n", "scopes": ["device:reboot"], "max_seconds": 600});
        let problem = scene.post("/access-policies").by(&scene.customer).json(body).send().await;
        problem.expect_problem(Kind::Conflict);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn where_two_must_approve_a_policy_waits_for_the_second(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let theo = scene.second_customer().await;
        scene.need_two().await;
        let id = scene.access_policy(json!({})).await;
        let ask = async || {
            let body = json!({"device_ids": [scene.device.to_string()], "scopes": ["device:reboot"], "reason": "r", "access_seconds": 600});
            scene.post("/access-requests").by(&scene.operator).json(body).send().await.expect(StatusCode::CREATED)["state"].clone()
        };
        let approve = |somebody| scene.post(&format!("/access-policies/{id}/approve")).by(somebody).send();
        assert_eq!(ask().await, "open");
        approve(&scene.customer).await.expect_problem(Kind::Conflict);
        approve(&scene.other_customer).await.expect_problem(Kind::NotFound);
        scene.sql("update people set kind = 'service' where id = $1", theo.id.as_uuid()).await;
        approve(&theo).await.expect_problem(Kind::Forbidden);
        scene.sql("update people set kind = 'human' where id = $1", theo.id.as_uuid()).await;
        assert_eq!(ask().await, "open");
        let policy = approve(&theo).await.expect(StatusCode::OK);
        assert_eq!((&policy["state"], &policy["approved_by"]), (&json!("in_force"), &json!(theo.id.to_string())));
        assert_eq!(approve(&theo).await.expect(StatusCode::OK), policy);
        assert_eq!(ask().await, "approved");
        let audited = scene.audited(scene.tenant).await;
        assert_eq!(audited.iter().filter(|action| *action == "access_policy.approved").count(), 1);
    }
}
