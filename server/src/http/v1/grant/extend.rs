//! `POST /grants/{id}/extend`: a later end, within the tenant's policy. Shorter is what `revoke` is for.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use cloudlink_proto::ids::{AccessRequestId, GrantId};
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::{IfMatch, Tag};
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::http::v1::access_request::record::{LAST_SIGNS, Step, record_in_txn, robot};
use crate::http::v1::grant::statement::{Signed, unsigned};
use crate::model::access_request::AccessRequest;
use crate::model::audit::Subject;
use crate::model::grant::{Grant, GrantState};
use crate::model::new_id;
use crate::model::notice::Event;
use crate::store::StoreError;
use crate::store::access_request::{Proposal, Proposed, access_request_propose};
use crate::store::audit::audit_append;
use crate::store::grant::{BEYOND_POLICY, NEEDS_APPROVAL, UNSIGNED, grant_extend_in_txn, grant_lock};
use crate::store::notice::notice_emit;
use crate::store::tenant::tenant_show;

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct GrantExtend {
    /// Later than the present end.
    #[serde(default, with = "time::serde::rfc3339::option")]
    ends_at: Option<OffsetDateTime>,
    /// The grant with its later end, as the tenant has signed it; or else `ends_at`.
    statement: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("not exactly one of ends_at and statement")]
    NotOne,
    #[error("the grant is over")]
    Over(GrantState),
    #[error("not later than now")]
    NotLater,
    #[error("two people must approve, and this is none")]
    Robot,
    #[error("the tenant's settings changed")]
    Unsettled,
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
            RouteError::NotOne => Self::unprocessable("Give either `ends_at` or `statement`, not both and not neither."),
            RouteError::Over(state) => {
                Self::new(Kind::Conflict, format!("The grant is {} already. Make a new one.", state.name()))
            }
            RouteError::NotLater => {
                Self::unprocessable("`ends_at` must be later than the present end. To end a grant sooner, revoke it.")
            }
            RouteError::Robot => robot(),
            RouteError::Unsettled => Self::new(
                Kind::Conflict,
                "How many people must approve was changed at the same moment. Nothing was done: ask again.",
            ),
            RouteError::BeyondPolicy { maximum_seconds } => Self::unprocessable(format!(
                "Your tenant's policy lets one grant run for at most {maximum_seconds} seconds, from its start to its end."
            ))
            .maximum_seconds(maximum_seconds),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Let operators in for longer
///
/// 202: two people of this tenant must approve. It is an access request of yours now, which a second one approves or denies.
#[utoipa::path(post, path = "/grants/{id}/extend", operation_id = "grant_extend", tag = "grants",
    params(("id" = uuid::Uuid, Path), ("If-Match" = String, Header)), request_body = GrantExtend,
    responses((status = 200, body = Grant, headers(("ETag" = String))), (status = 202, body = AccessRequest)))]
#[tracing::instrument(name = "http.grant.extend", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
    if_match: IfMatch,
    Json(request): Json<GrantExtend>,
) -> Result<Response, RouteError> {
    let tenant = caller.tenant().ok_or_else(Problem::not_found)?;
    let id = GrantId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let before = grant_lock(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    if_match.check(&Tag::of_version(before.version))?;
    if matches!(before.state, GrantState::Ended | GrantState::Revoked) {
        return Err(RouteError::Over(before.state));
    }
    let (ends_at, signed) = match (request.ends_at, request.statement) {
        (Some(ends_at), None) => (ends_at, None),
        (None, Some(text)) => {
            let signed = Signed::open(&mut transaction, tenant, text).await?;
            (signed.statement.ends_at, Some(signed))
        }
        (Some(_), Some(_)) | (None, None) => return Err(RouteError::NotOne),
    };
    if ends_at <= before.ends_at {
        return Err(RouteError::NotLater);
    }
    let settings = tenant_show(&mut transaction, tenant).await?.ok_or_else(Problem::not_found)?;
    let maximum_seconds = settings.grant_max_seconds;
    if settings.approvals_needed > 1 {
        if signed.is_some() {
            return Err(Problem::unprocessable(LAST_SIGNS).into());
        }
        let (proposed, is_told) = propose(&mut transaction, &caller, id, ends_at, maximum_seconds).await?;
        context.store.commit(transaction).await?;
        context.tell_outside(is_told);
        return Ok((StatusCode::ACCEPTED, Json(proposed)).into_response());
    }
    let extended = grant_extend_in_txn(&mut transaction, id, ends_at, signed.as_ref().map(Signed::stored)).await;
    let grant = extended.map_err(|error| match error.constraint() {
        Some(BEYOND_POLICY) => RouteError::BeyondPolicy { maximum_seconds },
        Some(NEEDS_APPROVAL) => RouteError::Unsettled,
        Some(UNSIGNED) => RouteError::Refused(unsigned()),
        Some(_) | None => RouteError::Store(error),
    })?;
    signed.as_ref().map_or(Ok(()), |signed| signed.check(&grant))?;
    let subject = Subject::new("grant", grant.id);
    let details = json!({"ended_at": rfc3339(before.ends_at), "ends_at": rfc3339(grant.ends_at)});
    let is_told = notice_emit(&mut transaction, tenant, Event::GrantExtended, json!(grant)).await?;
    audit_append(&mut transaction, tenant, &caller.actor(), "grant.extended", subject, details).await?;
    context.store.commit(transaction).await?;
    context.tell_outside(is_told);
    Ok((Tag::of_version(grant.version).header(), Json(grant)).into_response())
}

/// Where two people must approve: what one of them wants becomes a request to the others.
async fn propose(
    transaction: &mut PgConnection,
    caller: &Caller,
    grant: GrantId,
    ends_at: OffsetDateTime,
    maximum_seconds: i32,
) -> Result<(AccessRequest, bool), RouteError> {
    let id = AccessRequestId::from_uuid(new_id());
    let proposal = Proposal::Extension { grant, ends_at };
    match access_request_propose(transaction, id, caller.person(), proposal).await? {
        Proposed::Open => Ok(record_in_txn(transaction, id, &caller.actor(), Step::Created).await?),
        Proposed::NoPerson => Err(Problem::not_found().into()),
        Proposed::GrantOver => Err(RouteError::Over(GrantState::Ended)),
        Proposed::Robot => Err(RouteError::Robot),
        Proposed::Time => Err(RouteError::NotLater),
        Proposed::BeyondPolicy => Err(RouteError::BeyondPolicy { maximum_seconds }),
    }
}

fn rfc3339(time: OffsetDateTime) -> Option<String> {
    time.format(&time::format_description::well_known::Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::{Answer, Scene};

    async fn extend(scene: &Scene, grant: &str, if_match: &str, interval: &'static str) -> Answer {
        let ends_at: Value =
            sqlx::query_scalar("select to_jsonb(ends_at + $2::interval) from grants where id = $1::uuid")
                .bind(grant)
                .bind(interval)
                .fetch_one(&scene.root)
                .await
                .unwrap();
        let call = scene.post(&format!("/grants/{grant}/extend")).by(&scene.customer).header("if-match", if_match);
        call.json(json!({"ends_at": ends_at})).send().await
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn moves_the_end_of_the_version_that_was_read(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let grant = scene.grant(json!({})).await.to_string();
        let answer = extend(&scene, &grant, "\"1\"", "1 hour").await;
        assert_eq!(answer.expect(StatusCode::OK)["version"], 2);
        assert_eq!(answer.header("etag"), "\"2\"");
        extend(&scene, &grant, "\"1\"", "1 hour").await.expect_problem(Kind::VersionMismatch);
        extend(&scene, &grant, "\"2\"", "0").await.expect_problem(Kind::Unprocessable);
        extend(&scene, &grant, "\"2\"", "-1 minute").await.expect_problem(Kind::Unprocessable);
        let problem = extend(&scene, &grant, "\"2\"", "30 days").await.expect_problem(Kind::Unprocessable);
        assert_eq!(problem["maximum_seconds"], 2_592_000);
        let call = scene.post(&format!("/grants/{grant}/extend")).by(&scene.customer);
        let body = json!({"ends_at": "2030-01-01T00:00:00Z"});
        call.json(body).send().await.expect_problem(Kind::VersionRequired);
        assert_eq!(scene.audited(scene.tenant).await, ["grant.created", "grant.extended"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_is_over_stays_over(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let grant = scene.grant(json!({})).await.to_string();
        scene.post(&format!("/grants/{grant}/revoke")).by(&scene.customer).send().await.expect(StatusCode::OK);
        extend(&scene, &grant, "\"2\"", "1 hour").await.expect_problem(Kind::Conflict);
        let grant = scene.grant(json!({})).await;
        let end = "update grants set starts_at = now() - interval '2 hours', ends_at = now() - interval '1 hour' where id = $1";
        scene.sql(end, grant.as_uuid()).await;
        extend(&scene, &grant.to_string(), "*", "5 hours").await.expect_problem(Kind::Conflict);
    }
}
