//! `GET /devices/{id}`: a device with its certificate, its newest link and its tunnel.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::DeviceId;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::Tag;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::device::Device;
use crate::store::device::device_show;

/// One device
#[utoipa::path(get, path = "/devices/{id}", operation_id = "device_show", tag = "devices",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Device, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.device.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<impl IntoResponse, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let device = device_show(&mut transaction, DeviceId::from_uuid(id)).await?.ok_or_else(Problem::not_found)?;
    Ok((Tag::of_version(device.version).header(), Json(device)))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn shows_the_link_and_the_certificate(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let path = format!("/devices/{}", scene.device);
        let answer = scene.get(&path).by(&scene.customer).send().await;
        let device = answer.expect(StatusCode::OK);
        assert_eq!(answer.header("etag"), "\"1\"");
        assert_eq!(
            (&device["name"], &device["state"], &device["link"]),
            (&json!("lobby"), &json!("active"), &Value::Null)
        );
        assert_eq!(device["certificate"]["serial"], scene.device.as_uuid().simple().to_string());
        scene.link(scene.device).await;
        let link = &scene.get(&path).by(&scene.operator).send().await.expect(StatusCode::OK)["link"];
        assert_eq!((&link["state"], &link["epoch"]), (&json!("live"), &json!(1)));
        assert_eq!((&link["remote_address"], &link["clock_offset_ms"]), (&json!("192.0.2.7"), &json!(12)));
        assert_eq!(link["capabilities"], json!(["metrics.collect", "device.reboot"]));
        scene.unlink(scene.device).await;
        let link = &scene.get(&path).by(&scene.admin).send().await.expect(StatusCode::OK)["link"];
        assert_eq!((&link["state"], &link["close_reason"]), (&json!("closed"), &json!("gone")));
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn shows_the_tunnel_while_it_carries_the_live_link(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let path = format!("/devices/{}", scene.device);
        scene.link(scene.device).await;
        let shown = async || scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        let device = shown().await;
        assert_eq!((&device["tunnel"], &device["link"]["has_agent"]), (&Value::Null, &json!(true)));

        scene.tunnel(scene.device).await;
        let device = shown().await;
        let (link, tunnel) = (&device["link"], &device["tunnel"]);
        assert_eq!((&link["transport"], &link["has_agent"]), (&json!("openvpn"), &json!(false)));
        assert_eq!((&tunnel["ipv4"], &tunnel["ipv6"]), (&json!("100.64.0.2"), &json!("fd00:1:2::2")));
        assert_eq!((&tunnel["client"], &tunnel["cipher"]), (&json!("2.6.14"), &json!("AES-256-GCM")));
        assert_eq!(
            (&tunnel["bytes_in"], &tunnel["packets_out"], &tunnel["dropped"]),
            (&json!(252), &json!(4), &json!(1))
        );
        assert!(tunnel["opened_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{tunnel}");

        // The row of a tunnel outlives the tunnel: neither a closed link nor another tunnel's row is shown.
        scene.unlink(scene.device).await;
        assert_eq!(shown().await["tunnel"], Value::Null);
        scene.tunnel(scene.device).await;
        scene.sql("update tunnels set id = gen_random_uuid() where device_id = $1", scene.device.as_uuid()).await;
        assert_eq!(shown().await["tunnel"], Value::Null);
        scene.link(scene.device).await;
        assert_eq!(shown().await["tunnel"], Value::Null);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn shows_how_the_device_reaches_the_server(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let path = format!("/devices/{}", scene.device);
        let shown = async || scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        let device = shown().await;
        assert_eq!((&device["transport"], &device["poll"]), (&Value::Null, &Value::Null));

        scene.poll(scene.device).await;
        let device = shown().await;
        let poll = &device["poll"];
        assert_eq!((&device["transport"], &device["link"]), (&json!("polling"), &Value::Null));
        assert_eq!((&poll["interval_seconds"], &poll["hostname"]), (&json!(900), &json!("gw")));
        assert_eq!(poll["running"], json!([{"name": "nginx", "state": "active", "kind": "service"}]));
        assert!(poll["next_poll_by"].as_str() > poll["last_poll_at"].as_str(), "{poll}");
        let listed = scene.get("/devices").by(&scene.operator).send().await.expect(StatusCode::OK);
        let of = |id: String| listed["items"].as_array().unwrap().iter().find(|item| item["id"] == id).unwrap();
        assert_eq!(of(scene.device.to_string())["transport"], "polling");
        assert_eq!(of(scene.other_device.to_string())["transport"], Value::Null);

        // A live link wins, and after it the device has to poll again first.
        scene.link(scene.device).await;
        let device = shown().await;
        assert_eq!((&device["transport"], &device["poll"]["next_poll_by"]), (&json!("websocket"), &Value::Null));
        scene.unlink(scene.device).await;
        assert_eq!(shown().await["transport"], Value::Null);
        scene.poll(scene.device).await;
        assert_eq!(shown().await["transport"], "polling");

        // One that was missed is no silence yet; two are.
        scene
            .sql("update polls set next_by = now() - interval '1 s' where device_id = $1", scene.device.as_uuid())
            .await;
        assert_eq!(shown().await["transport"], "polling");
        scene
            .sql("update polls set silent_at = now() - interval '1 s' where device_id = $1", scene.device.as_uuid())
            .await;
        let device = shown().await;
        assert_eq!((&device["transport"], &device["poll"]["next_poll_by"]), (&Value::Null, &Value::Null));
    }
}
