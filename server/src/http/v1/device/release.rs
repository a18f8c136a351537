//! `POST /devices/{id}/release`: ends a quarantine. What was open before stays closed. A device that is in none stays as it is.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::DeviceId;

use crate::bus::Hint;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::Tag;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::device::Device;
use crate::store::device::device_show;
use crate::store::quarantine::quarantine_end_in_txn;

/// End a device's quarantine
#[utoipa::path(post, path = "/devices/{id}/release", operation_id = "device_release", tag = "devices",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Device, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.device.release", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<impl IntoResponse, Problem> {
    let id = DeviceId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    // A device that is not the caller's is not there.
    device_show(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    let is_new = quarantine_end_in_txn(&mut transaction, id, &caller.actor()).await?;
    let device = device_show(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    context.store.commit(transaction).await?;
    if is_new {
        context.bus.send(Hint::DeviceChanged(id));
    }
    Ok((Tag::of_version(device.version).header(), Json(device)))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::bus::{Heard, Hint};
    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn ends_the_quarantine_and_says_how_long_it_was(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let path = |verb: &str| format!("/devices/{}/{verb}", scene.device);
        let quarantine = scene.post(&path("quarantine")).by(&scene.customer).json(json!({"reason": "r"}));
        quarantine.send().await.expect(StatusCode::OK);
        scene
            .sql("update devices set quarantined_at = now() - interval '1 hour' where id = $1", scene.device.as_uuid())
            .await;
        scene.post(&path("release")).by(&scene.operator).send().await.expect_problem(Kind::Forbidden);
        scene.post(&path("release")).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
        let mut hints = scene.bus.listen();
        let answer = scene.post(&path("release")).by(&scene.customer).send().await;
        let device = answer.expect(StatusCode::OK);
        assert_eq!((&device["quarantine"], answer.header("etag")), (&Value::Null, "\"3\""));
        assert_eq!(hints.hear().await, Heard::Hint(Hint::DeviceChanged(scene.device)));
        // Again: nothing changes.
        assert_eq!(scene.post(&path("release")).by(&scene.admin).send().await.expect(StatusCode::OK), device);
        assert_eq!(scene.audited(scene.tenant).await, ["device.quarantined", "device.released"]);
        let page = scene.get("/audit?limit=1").by(&scene.customer).send().await.expect(StatusCode::OK);
        let entry: Value = serde_json::from_str(page["items"][0]["entry"].as_str().unwrap()).unwrap();
        let details = &entry["details"];
        assert_eq!((&details["reason"], &details["name"]), (&json!("r"), &json!("lobby")));
        assert!(details["seconds"].as_i64().is_some_and(|seconds| (3600..3700).contains(&seconds)), "{details}");
    }
}
