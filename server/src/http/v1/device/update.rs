//! `PATCH /devices/{id}`: name and labels, of the version that was read.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::{DeviceId, TenantId};
use serde::Deserialize;
use serde_json::json;

use crate::bus::Hint;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::{IfMatch, Tag};
use crate::http::field::check_name;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::model::audit::Subject;
use crate::model::device::{Device, Labels, LabelsError};
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::device::{NAME_TAKEN, device_lock, device_show, device_update};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeviceUpdate {
    /// 1 to 128 characters, unique within the tenant.
    name: Option<String>,
    /// All labels from now on: at most 64, keys and values of 1 to 63 characters. Grants with a selector follow them.
    labels: Option<Labels>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("nothing to change")]
    Nothing,
    #[error("the name is taken")]
    NameTaken,
    #[error(transparent)]
    Labels(#[from] LabelsError),
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Nothing => Self::unprocessable("Give `name`, `labels` or both."),
            RouteError::NameTaken => Self::new(Kind::Conflict, "The tenant has another device of this name."),
            RouteError::Labels(error) => Self::unprocessable(format!("`labels` is not allowed: {error}.")),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Rename or relabel a device
#[utoipa::path(patch, path = "/devices/{id}", operation_id = "device_update", tag = "devices",
    params(("id" = uuid::Uuid, Path), ("If-Match" = String, Header)), request_body = DeviceUpdate,
    responses((status = 200, body = Device, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.device.update", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
    if_match: IfMatch,
    Json(request): Json<DeviceUpdate>,
) -> Result<impl IntoResponse, RouteError> {
    request.check()?;
    let id = DeviceId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let before = device_lock(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    if_match.check(&Tag::of_version(before.version))?;
    let updated = device_update(&mut transaction, id, request.name.as_deref(), request.labels.as_ref()).await;
    updated.map_err(|error| match error.constraint() {
        Some(NAME_TAKEN) => RouteError::NameTaken,
        _ => RouteError::Store(error),
    })?;
    let device = device_show(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    let (subject, tenant) = (Subject::new("device", device.id), TenantId::from_uuid(device.tenant_id));
    let details = json!({"before": {"name": before.name, "labels": before.labels},
                         "after": {"name": device.name, "labels": device.labels}});
    audit_append(&mut transaction, tenant, &caller.actor(), "device.updated", subject, details).await?;
    context.store.commit(transaction).await?;
    if request.labels.is_some() {
        // What is meant for its labels is looked at anew.
        context.bus.send(Hint::ConfigurationDue(tenant));
    }
    Ok((Tag::of_version(device.version).header(), Json(device)))
}

impl DeviceUpdate {
    fn check(&self) -> Result<(), RouteError> {
        if self.name.is_none() && self.labels.is_none() {
            return Err(RouteError::Nothing);
        }
        if let Some(name) = &self.name {
            check_name("name", name)?;
        }
        Ok(self.labels.as_ref().map_or(Ok(()), Labels::check)?)
    }
}

#[cfg(test)]
mod tests {
    use cloudlink_proto::ids::DeviceId;
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::{Answer, Scene};
    use crate::model::new_id;

    async fn update(scene: &Scene, if_match: &str, body: Value) -> Answer {
        let call = scene.patch(&format!("/devices/{}", scene.device)).by(&scene.customer);
        call.header("if-match", if_match).json(body).send().await
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn changes_what_was_read(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let answer = update(&scene, "\"1\"", json!({"labels": {"floor": "2"}})).await;
        let device = answer.expect(StatusCode::OK);
        assert_eq!((&device["name"], &device["labels"]), (&json!("lobby"), &json!({"floor": "2"})));
        assert_eq!(answer.header("etag"), "\"2\"");
        update(&scene, "\"1\"", json!({"name": "hall"})).await.expect_problem(Kind::VersionMismatch);
        assert_eq!(update(&scene, "\"2\"", json!({"name": "hall"})).await.expect(StatusCode::OK)["name"], "hall");
        let call = scene.patch(&format!("/devices/{}", scene.device)).by(&scene.customer);
        call.json(json!({"name": "x"})).send().await.expect_problem(Kind::VersionRequired);
        assert_eq!(scene.audited(scene.tenant).await, ["device.updated", "device.updated"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn refuses_what_is_taken_or_too_much(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.insert_device(DeviceId::from_uuid(new_id()), scene.tenant, "roof", json!({})).await;
        update(&scene, "*", json!({"name": "roof"})).await.expect_problem(Kind::Conflict);
        // The same name in another tenant is no obstacle.
        update(&scene, "*", json!({"name": "ward"})).await.expect(StatusCode::OK);
        let huge: serde_json::Map<_, _> = (0..65).map(|n| (format!("k{n}"), json!("v"))).collect();
        for body in [json!({}), json!({"labels": huge}), json!({"labels": {"k": "x".repeat(64)}}), json!({"name": ""})]
        {
            update(&scene, "*", body).await.expect_problem(Kind::Unprocessable);
        }
        for body in [json!({"labels": {"k": 1}}), json!({"labels": []}), json!({"state": "revoked"})] {
            update(&scene, "*", body).await.expect_problem(Kind::BadRequest);
        }
        // As many and as long as is promised, whatever the script.
        let most: serde_json::Map<_, _> =
            (0..64).map(|n| (format!("{n:02}{}", "\u{1d11e}".repeat(61)), json!("\u{1d11e}".repeat(63)))).collect();
        update(&scene, "*", json!({"labels": most})).await.expect(StatusCode::OK);
        let body = json!({"labels": {"k": "x".repeat(70_000)}});
        update(&scene, "*", body).await.expect_problem(Kind::TooLarge);
    }
}
