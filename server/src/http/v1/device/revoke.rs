//! `POST /devices/{id}/revoke`: the device and its certificates are refused from now on, its link is cut, its queue cancelled,
//! its ports closed. For good; revoking again changes nothing.

use std::time::Duration;

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::{DeviceId, TenantId};
use serde_json::json;

use crate::bus::Hint;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::Tag;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::audit::Subject;
use crate::model::device::Device;
use crate::model::opening::EndReason;
use crate::model::support_session::EndReason as SessionEndReason;
use crate::store::audit::audit_append;
use crate::store::command::{Cancellation, command_cancel_in_txn, command_lock_in_txn};
use crate::store::device::{device_revoke, device_show};
use crate::store::opening::{Closing, opening_end_in_txn, opening_lock_in_txn};
use crate::store::support_session::{
    Closing as SessionClosing, support_session_end_in_txn, support_session_lock_in_txn, support_session_tell_in_txn,
};

/// Refuse a device from now on
#[utoipa::path(post, path = "/devices/{id}/revoke", operation_id = "device_revoke", tag = "devices",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Device, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.device.revoke", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<impl IntoResponse, Problem> {
    let id = DeviceId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let is_new = device_revoke(&mut transaction, id).await?;
    let device = device_show(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    if is_new {
        let open = command_lock_in_txn(&mut transaction, Cancellation::OfDevice(id)).await?;
        let openings = opening_lock_in_txn(&mut transaction, Closing::OfDevice(id)).await?;
        let sessions = support_session_lock_in_txn(&mut transaction, SessionClosing::OfDevice(id)).await?;
        let (actor, tenant) = (caller.actor(), TenantId::from_uuid(device.tenant_id));
        let (subject, details) = (Subject::new("device", device.id), json!({"name": device.name}));
        audit_append(&mut transaction, tenant, &actor, "device.revoked", subject, details).await?;
        let (code, message) = ("device_revoked", "the device was revoked");
        let called_back = command_cancel_in_txn(&mut transaction, &open, actor.to_json(), code, message).await?;
        let ended = opening_end_in_txn(&mut transaction, &openings, actor.to_json(), EndReason::DeviceRevoked).await?;
        let reason = SessionEndReason::DeviceRevoked;
        let sessions =
            support_session_end_in_txn(&mut transaction, &sessions, actor.to_json(), reason, Duration::ZERO).await?;
        let is_told = support_session_tell_in_txn(&mut transaction, &sessions).await?;
        context.store.commit(transaction).await?;
        context.tell_sessions_ended(&sessions);
        context.tell_outside(is_told);
        context.tell_ended(&ended);
        context.bus.send(Hint::DeviceChanged(id));
        context.tell_called_back(&called_back);
    }
    Ok((Tag::of_version(device.version).header(), Json(device)))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::bus::{Heard, Hint};
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn revokes_the_device_its_certificates_and_its_queue(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.grant(json!({})).await;
        let command = scene.command(json!({})).await;
        let mut hints = scene.bus.listen();
        let path = format!("/devices/{}/revoke", scene.device);
        let device = scene.post(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!((&device["state"], &device["certificate"]), (&json!("revoked"), &Value::Null));
        assert_eq!(hints.hear().await, Heard::Hint(Hint::DeviceChanged(scene.device)));
        let certificates: Vec<String> = sqlx::query_scalar("select state from certificates where device_id = $1")
            .bind(scene.device.as_uuid())
            .fetch_all(&scene.root)
            .await
            .unwrap();
        assert_eq!(certificates, ["revoked"]);
        let shown = scene.get(&format!("/commands/{command}")).by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!((&shown["state"], &shown["code"]), (&json!("cancelled"), &json!("device_revoked")));
        assert_eq!(scene.post(&path).by(&scene.admin).send().await.expect(StatusCode::OK), device);
        let audited = scene.audited(scene.tenant).await;
        assert_eq!(audited[2..], ["device.revoked", "command.finished"]);
    }
}
