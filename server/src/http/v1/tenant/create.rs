//! `POST /tenants`.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::TenantId;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::show::tag;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::field::check_name;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Json, NoQuery};
use crate::model::audit::Subject;
use crate::model::new_id;
use crate::model::tenant::{GRANT_MAX_SECONDS_RANGE, Tenant};
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::tenant::{NAME_TAKEN, tenant_create};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantCreate {
    /// 1 to 128 characters, unique.
    name: String,
    /// The longest that one grant may run: 60 to 31,622,400. Left out: 2,592,000 (30 days).
    grant_max_seconds: Option<i32>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("the name is taken")]
    NameTaken,
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::NameTaken => Self::new(Kind::Conflict, "There is a tenant of this name already."),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Take on a customer
#[utoipa::path(post, path = "/tenants", operation_id = "tenant_create", tag = "tenants", request_body = TenantCreate,
    responses((status = 201, body = Tenant, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.tenant.create", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
    Json(request): Json<TenantCreate>,
) -> Result<impl IntoResponse, RouteError> {
    check_name("name", &request.name)?;
    if let Some(seconds) = request.grant_max_seconds {
        check_grant_max(seconds)?;
    }
    let id = TenantId::from_uuid(new_id());
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let created = tenant_create(&mut transaction, id, &request.name, request.grant_max_seconds).await;
    let tenant = created.map_err(|error| match error.constraint() {
        Some(NAME_TAKEN) => RouteError::NameTaken,
        _ => RouteError::Store(error),
    })?;
    let details = json!({"name": tenant.name, "grant_max_seconds": tenant.grant_max_seconds});
    let subject = Subject::new("tenant", tenant.id);
    audit_append(&mut transaction, id, &caller.actor(), "tenant.created", subject, details).await?;
    context.store.commit(transaction).await?;
    Ok((StatusCode::CREATED, tag(&tenant).header(), Json(tenant)))
}

pub(super) fn check_grant_max(seconds: i32) -> Result<(), Problem> {
    if GRANT_MAX_SECONDS_RANGE.contains(&seconds) {
        return Ok(());
    }
    let (least, most) = GRANT_MAX_SECONDS_RANGE.into_inner();
    Err(Problem::unprocessable(format!("`grant_max_seconds` must be {least} to {most}.")))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn makes_a_tenant_once(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let body = json!({"name": "Bakery", "grant_max_seconds": 3600});
        let tenant =
            scene.post("/tenants").by(&scene.admin).json(body.clone()).send().await.expect(StatusCode::CREATED);
        assert_eq!((&tenant["name"], &tenant["grant_max_seconds"]), (&json!("Bakery"), &json!(3600)));
        assert_eq!(scene.audited(tenant["id"].as_str().unwrap().parse().unwrap()).await, ["tenant.created"]);
        scene.post("/tenants").by(&scene.admin).json(body).send().await.expect_problem(Kind::Conflict);
        for body in [json!({"name": ""}), json!({"name": "x", "grant_max_seconds": 59})] {
            scene.post("/tenants").by(&scene.admin).json(body).send().await.expect_problem(Kind::Unprocessable);
        }
        let body = json!({"name": "x", "grant_max_seconds": i64::MAX});
        scene.post("/tenants").by(&scene.admin).json(body).send().await.expect_problem(Kind::BadRequest);
    }
}
