//! `PATCH /tenants/{id}`: the settings, of the version that was read. By the tenant itself; an administrator sets the longest
//! grant, and nothing of what decides who is let in.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::TenantId;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::create::check_grant_max;
use super::show::{settings, tag};
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::IfMatch;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::model::audit::Subject;
use crate::model::notice::Event;
use crate::model::tenant::{APPROVALS_NEEDED_RANGE, ApprovalsVerdict, RECORDING_KEEP_DAYS_RANGE, Tenant};
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::notice::notice_emit;
use crate::store::tenant::{
    tenant_lock, tenant_set_approvals, tenant_set_grant_max, tenant_set_recording_keep_days, tenant_show,
};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantUpdate {
    /// The longest that one grant may run: 60 to 31,622,400. Grants that are there already keep their end.
    grant_max_seconds: Option<i32>,
    /// How many of the tenant's people must approve: 1 or 2. By one of them, and no administrator. More is done at once; fewer
    /// when a second person asks for it, too, within a day.
    approvals_needed: Option<i32>,
    /// For how many days recordings of support sessions are kept: 1 to 3,650. By one of the tenant's people, and no
    /// administrator. Those that are older by then are deleted.
    recording_keep_days: Option<i32>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("nothing to change")]
    Nothing,
    #[error("not the tenant itself")]
    NotTheTenant,
    #[error("no number of approvals")]
    Approvals,
    #[error("no number of days")]
    KeepDays,
    #[error("a service account")]
    Robot,
    #[error("too few people")]
    TooFew,
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Nothing => Self::unprocessable("Say what is to change."),
            RouteError::NotTheTenant => {
                let detail = "Only the tenant's own people decide how many of them must approve, and how long recordings are kept.";
                Self::new(Kind::Forbidden, detail)
            }
            RouteError::Approvals => {
                let (least, most) = APPROVALS_NEEDED_RANGE.into_inner();
                Self::unprocessable(format!("`approvals_needed` must be {least} to {most}."))
            }
            RouteError::KeepDays => {
                let (least, most) = RECORDING_KEEP_DAYS_RANGE.into_inner();
                Self::unprocessable(format!("`recording_keep_days` must be {least} to {most}."))
            }
            RouteError::Robot => {
                Self::new(Kind::Forbidden, "Two people must approve, and a service account is none. Ask one of them.")
            }
            RouteError::TooFew => Self::new(
                Kind::Conflict,
                "The tenant has too few people who are active and no service accounts: nobody could be let in any more.",
            ),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Set a tenant's policy
///
/// 202: a second person must ask for the same number of approvals, see `fewer_approvals`. All else is done.
#[utoipa::path(patch, path = "/tenants/{id}", operation_id = "tenant_update", tag = "tenants",
    params(("id" = uuid::Uuid, Path), ("If-Match" = String, Header)), request_body = TenantUpdate,
    responses((status = 200, body = Tenant, headers(("ETag" = String))),
              (status = 202, body = Tenant, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.tenant.update", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
    if_match: IfMatch,
    Json(request): Json<TenantUpdate>,
) -> Result<impl IntoResponse, RouteError> {
    request.check(&caller)?;
    let id = TenantId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let before = tenant_lock(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    if_match.check(&tag(&before))?;
    if let Some(seconds) = request.grant_max_seconds {
        tenant_set_grant_max(&mut transaction, id, seconds).await?;
    }
    if let Some(days) = request.recording_keep_days {
        tenant_set_recording_keep_days(&mut transaction, id, days).await?;
    }
    let status = match request.approvals_needed {
        Some(needed) => match tenant_set_approvals(&mut transaction, caller.person(), needed).await? {
            ApprovalsVerdict::Set => StatusCode::OK,
            ApprovalsVerdict::Proposed => StatusCode::ACCEPTED,
            ApprovalsVerdict::Person => return Err(RouteError::NotTheTenant),
            ApprovalsVerdict::Robot => return Err(RouteError::Robot),
            ApprovalsVerdict::TooFew => return Err(RouteError::TooFew),
        },
        None => StatusCode::OK,
    };
    let tenant = tenant_show(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    let details = json!({"before": settings(&before), "after": settings(&tenant)});
    let subject = Subject::new("tenant", tenant.id);
    let is_told = notice_emit(&mut transaction, id, Event::TenantUpdated, json!(tenant)).await?;
    audit_append(&mut transaction, id, &caller.actor(), "tenant.updated", subject, details).await?;
    context.store.commit(transaction).await?;
    context.tell_outside(is_told);
    Ok((status, tag(&tenant).header(), Json(tenant)))
}

impl TenantUpdate {
    fn check(&self, caller: &Caller) -> Result<(), RouteError> {
        if self.grant_max_seconds.is_none() && self.approvals_needed.is_none() && self.recording_keep_days.is_none() {
            return Err(RouteError::Nothing);
        }
        match self.recording_keep_days {
            Some(_) if caller.tenant().is_none() => return Err(RouteError::NotTheTenant),
            Some(days) if !RECORDING_KEEP_DAYS_RANGE.contains(&days) => return Err(RouteError::KeepDays),
            Some(_) | None => {}
        }
        self.grant_max_seconds.map_or(Ok(()), check_grant_max)?;
        match self.approvals_needed {
            Some(_) if caller.tenant().is_none() => Err(RouteError::NotTheTenant),
            Some(needed) if !APPROVALS_NEEDED_RANGE.contains(&needed) => Err(RouteError::Approvals),
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn changes_the_policy_that_was_read(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let path = format!("/tenants/{}", scene.tenant);
        let shown = scene.get(&path).by(&scene.customer).send().await;
        let tag = shown.header("etag");
        let update = |seconds: i32| {
            scene
                .patch(&path)
                .by(&scene.customer)
                .header("if-match", tag)
                .json(json!({"grant_max_seconds": seconds}))
                .send()
        };
        let answer = update(900).await;
        assert_eq!(answer.expect(StatusCode::OK)["grant_max_seconds"], 900);
        assert_ne!(answer.header("etag"), tag);
        update(800).await.expect_problem(Kind::VersionMismatch);
        update(1).await.expect_problem(Kind::Unprocessable);
        assert_eq!(scene.audited(scene.tenant).await, ["tenant.updated"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn the_tenant_alone_says_how_long_recordings_are_kept(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let set = |somebody, days: i32| {
            let call = scene.patch(&format!("/tenants/{}", scene.tenant)).by(somebody).header("if-match", "*");
            call.json(json!({"recording_keep_days": days})).send()
        };
        set(&scene.admin, 30).await.expect_problem(Kind::Forbidden);
        set(&scene.other_customer, 30).await.expect_problem(Kind::NotFound);
        for days in [0, 3651] {
            set(&scene.customer, days).await.expect_problem(Kind::Unprocessable);
        }
        assert_eq!(set(&scene.customer, 30).await.expect(StatusCode::OK)["recording_keep_days"], 30);
        assert_eq!(scene.audited(scene.tenant).await, ["tenant.updated"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn one_person_alone_never_makes_one_enough(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let set = |somebody, needed: i32| {
            let call = scene.patch(&format!("/tenants/{}", scene.tenant)).by(somebody).header("if-match", "*");
            call.json(json!({"approvals_needed": needed})).send()
        };
        set(&scene.admin, 2).await.expect_problem(Kind::Forbidden);
        set(&scene.customer, 3).await.expect_problem(Kind::Unprocessable);
        set(&scene.customer, 0).await.expect_problem(Kind::Unprocessable);
        set(&scene.customer, 2).await.expect_problem(Kind::Conflict);
        let theo = scene.second_customer().await;
        assert_eq!(set(&scene.customer, 2).await.expect(StatusCode::OK)["approvals_needed"], 2);
        for _ in 0..2 {
            let proposed = set(&scene.customer, 1).await.expect(StatusCode::ACCEPTED);
            assert_eq!(
                (&proposed["approvals_needed"], &proposed["fewer_approvals"]["proposed_by"]),
                (&json!(2), &json!(scene.customer.id.to_string()))
            );
        }
        // Somebody is against it.
        assert_eq!(set(&theo, 2).await.expect(StatusCode::OK)["fewer_approvals"], json!(null));
        set(&theo, 1).await.expect(StatusCode::ACCEPTED);
        // Nobody agreed in time.
        scene.sql("update tenants set fewer_approvals_until = now() where id = $1", scene.tenant.as_uuid()).await;
        set(&scene.customer, 1).await.expect(StatusCode::ACCEPTED);
        // Nor does a service account agree.
        scene.sql("update people set kind = 'service' where id = $1", theo.id.as_uuid()).await;
        set(&theo, 1).await.expect_problem(Kind::Forbidden);
        scene.sql("update people set kind = 'human' where id = $1", theo.id.as_uuid()).await;
        let agreed = set(&theo, 1).await.expect(StatusCode::OK);
        assert_eq!((&agreed["approvals_needed"], &agreed["fewer_approvals"]), (&json!(1), &json!(null)));
        scene.grant(json!({})).await;
    }
}
