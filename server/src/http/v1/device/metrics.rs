//! `GET /devices/{id}/metrics`: the newest report. To an operator only under a grant, and with an entry in the audit log.

use axum::extract::State;
use cloudlink_proto::ids::{DeviceId, PersonId};

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::model::device::DeviceMetrics;
use crate::model::person::Role;
use crate::store::command::{Missing, Obstacle, command_explain};
use crate::store::device::{device_metrics_read_under_grant, device_metrics_show};
use crate::store::{StoreError, single};

pub(super) const SCOPE: &str = "metrics:read";

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no such device")]
    DeviceUnknown,
    #[error("no report yet")]
    NoReport,
    #[error("no grant allows it: {}", .0.name())]
    GrantRequired(Missing),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::DeviceUnknown => Self::not_found(),
            RouteError::NoReport => Self::new(Kind::NotFound, "The device has not reported yet."),
            RouteError::GrantRequired(missing) => {
                let detail =
                    "To read what the device measures, a grant with the scope metrics:read must be in force for you.";
                Self::new(Kind::GrantRequired, detail).reason(missing.name())
            }
            RouteError::Store(error) => error.into(),
        }
    }
}

/// What a device measured last
#[utoipa::path(get, path = "/devices/{id}/metrics", operation_id = "device_metrics", tag = "devices",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = DeviceMetrics)))]
#[tracing::instrument(name = "http.device.metrics", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<DeviceMetrics>, RouteError> {
    let id = DeviceId::from_uuid(id);
    let metrics = match caller.role() {
        Role::Operator => read_under_grant(&context, &caller, id).await?,
        Role::Tenant | Role::Admin => {
            let mut transaction = context.store.begin(caller.visibility()).await?;
            let metrics = device_metrics_show(&mut transaction, id).await?;
            if metrics.is_none() && crate::store::device::device_count(&mut transaction, &[id.as_uuid()]).await? == 0 {
                return Err(RouteError::DeviceUnknown);
            }
            metrics
        }
    };
    metrics.map(Json).ok_or(RouteError::NoReport)
}

async fn read_under_grant(
    context: &Context,
    caller: &Caller,
    id: DeviceId,
) -> Result<Option<DeviceMetrics>, RouteError> {
    let (store, person) = (&context.store, caller.person());
    let actor = caller.actor().to_json();
    let metrics = single!(store, |connection| device_metrics_read_under_grant(connection, id, person, actor, SCOPE))?;
    if metrics.is_some() {
        return Ok(metrics);
    }
    match refusal(context, person, id).await? {
        RouteError::NoReport => Ok(None),
        refusal @ (RouteError::DeviceUnknown | RouteError::GrantRequired(_) | RouteError::Store(_)) => Err(refusal),
    }
}

/// Why an operator is told nothing of a device; without a reason, there is no report.
pub(super) async fn refusal(context: &Context, person: PersonId, id: DeviceId) -> Result<RouteError, StoreError> {
    let store = &context.store;
    Ok(match single!(store, |connection| command_explain(connection, person, id, None, &[SCOPE]))? {
        Obstacle::DeviceUnknown => RouteError::DeviceUnknown,
        Obstacle::Grant { missing, .. } => RouteError::GrantRequired(missing),
        // A grant is there, and what a revoked device measured last may still be read.
        Obstacle::NotLinked | Obstacle::NoAgent { .. } | Obstacle::Polling { .. } | Obstacle::Gone => {
            RouteError::NoReport
        }
        Obstacle::DeviceRevoked => RouteError::GrantRequired(Missing::None),
    })
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    const REPORT: &str = "insert into device_metrics (device_id, tenant_id, received_at, report)
        select id, tenant_id, now(), '{\"cpu_percent\": 12.5}' from devices where id = $1";

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn an_operator_reads_under_a_grant_only(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.sql(REPORT, scene.device.as_uuid()).await;
        let path = format!("/devices/{}/metrics", scene.device);
        let refused = scene.get(&path).by(&scene.operator).send().await.expect_problem(Kind::GrantRequired);
        assert_eq!(refused["reason"], "none");
        scene.grant(json!({"scopes": ["device:reboot"]})).await;
        let refused = scene.get(&path).by(&scene.operator).send().await.expect_problem(Kind::GrantRequired);
        assert_eq!(refused["reason"], "scope");
        scene.grant(json!({"scopes": ["metrics:read"], "operator_ids": [scene.operator.id.to_string()]})).await;
        let metrics = scene.get(&path).by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!(metrics["report"], json!({"cpu_percent": 12.5}));
        scene.get(&path).by(&scene.colleague).send().await.expect_problem(Kind::GrantRequired);
        assert_eq!(scene.audited(scene.tenant).await, ["grant.created", "grant.created", "metrics.read"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_tenant_reads_its_own(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let path = format!("/devices/{}/metrics", scene.device);
        let none = scene.get(&path).by(&scene.customer).send().await.expect_problem(Kind::NotFound);
        assert!(none["detail"].as_str().unwrap().contains("not reported"));
        scene.sql(REPORT, scene.device.as_uuid()).await;
        scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        scene.get(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
        scene.get(&path).by(&scene.admin).send().await.expect_problem(Kind::Forbidden);
    }
}
