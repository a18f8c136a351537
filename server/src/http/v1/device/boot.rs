//! `GET /devices/{id}/boots`: when a device booted, and which of it was ordered.

use axum::extract::State;
use cloudlink_proto::ids::DeviceId;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::boot::DeviceBoots;
use crate::store::boot::{boot_list, boot_missing};
use crate::store::device::device_show;

/// When a device booted
///
/// The last 256 boots. `ordered`: the device had taken a command to reboot or to shut down. Of all others `cause` is what the device
/// itself says of it, which is for people and proves nothing.
#[utoipa::path(get, path = "/devices/{id}/boots", operation_id = "device_boots", tag = "devices",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = DeviceBoots)))]
#[tracing::instrument(name = "http.device.boot", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<DeviceBoots>, Problem> {
    let device = DeviceId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    device_show(&mut transaction, device).await?.ok_or_else(Problem::not_found)?;
    let boots = boot_list(&mut transaction, device).await?;
    let missing = boot_missing(&mut transaction, device).await?;
    Ok(Json(DeviceBoots { device_id: id, boots, missing }))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    use uuid::Uuid;

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    async fn booted(scene: &Scene, boot: &str, minutes_ago: u32) {
        let sql = format!(
            "insert into device_boots (device_id, tenant_id, boot_id, seen_at)
             select id, tenant_id, '{boot}', now() - interval '{minutes_ago} minutes' from devices where id = $1"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(scene.device.as_uuid()).execute(&scene.root).await.unwrap();
    }

    /// A reboot that was sent and accepted in a boot, so many minutes ago.
    async fn ordered(scene: &Scene, boot: &str, minutes_ago: u32, state: &str) -> String {
        let id = scene.command(json!({})).await;
        let sql = format!(
            "update commands set state = '{state}', boot_id = '{boot}', sent_at = now() - interval '{minutes_ago} minutes',
                    accepted_at = case when '{state}' <> 'refused' then now() - interval '{minutes_ago} minutes' end,
                    finished_at = case when '{state}' <> 'running' then now() end,
                    deadline_at = case when '{state}' = 'running' then deadline_at end
              where id = $1"
        );
        let id: Uuid = id.to_string().parse().unwrap();
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).execute(&scene.root).await.unwrap();
        id.to_string()
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_boot_is_ordered_if_a_command_was_taken_in_the_one_before(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        scene.grant(json!({})).await;
        for (boot, minutes_ago) in [("a", 50), ("b", 40), ("c", 30), ("d", 20)] {
            booted(&scene, boot, minutes_ago).await;
        }
        let first = ordered(&scene, "a", 41, "succeeded").await;
        ordered(&scene, "b", 35, "refused").await;
        let unconfirmed = ordered(&scene, "c", 25, "unconfirmed").await;
        // An order wins over what the device says.
        scene
            .sql(
                "update device_boots set hint = 'watchdog' where boot_id in ('c', 'd') and device_id = $1",
                scene.device.as_uuid(),
            )
            .await;
        let path = format!("/devices/{}/boots", scene.device);
        for somebody in [&scene.admin, &scene.operator, &scene.customer] {
            let shown = scene.get(&path).by(somebody).send().await.expect(StatusCode::OK);
            let boots: Vec<_> = shown["boots"]
                .as_array()
                .unwrap()
                .iter()
                .map(|boot| {
                    (boot["boot_id"].as_str().unwrap(), boot["cause"].as_str().unwrap(), boot["command_id"].clone())
                })
                .collect();
            let expected = [
                ("d", "ordered", json!(unconfirmed)),
                ("c", "watchdog", Value::Null),
                ("b", "ordered", json!(first)),
                ("a", "unknown", Value::Null),
            ];
            assert_eq!(boots, expected);
            assert_eq!(shown["missing"], Value::Null);
        }
        scene.get(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_device_that_polls_is_not_missing(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.grant(json!({})).await;
        let path = format!("/devices/{}/boots", scene.device);
        let missing =
            async || scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK)["missing"].clone();
        let polled = async |boot: &str, polled: &str, silent: &str| {
            let sql = format!(
                "update polls set boot_id = '{boot}', polled_at = now() + interval '{polled}',
                        silent_at = now() + interval '{silent}' where device_id = $1"
            );
            sqlx::query(sqlx::AssertSqlSafe(sql)).bind(scene.device.as_uuid()).execute(&scene.root).await.unwrap();
        };
        booted(&scene, "a", 50).await;
        let id = ordered(&scene, "a", 10, "running").await;
        scene.poll(scene.device).await;
        polled("a", "-11 minutes", "10 minutes").await;
        assert_eq!(missing().await["command_id"], json!(id), "it took the order, and was not heard of since");
        polled("a", "-9 minutes", "10 minutes").await;
        assert_eq!(missing().await, Value::Null, "it is there still, and is yet to go");
        polled("a", "-9 minutes", "-1 minute").await;
        assert_eq!(missing().await["command_id"], json!(id), "silent ever since");
        polled("b", "-9 minutes", "-1 minute").await;
        assert_eq!(missing().await, Value::Null, "it came back, and went again");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_device_that_has_not_come_back_is_missing(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.grant(json!({})).await;
        let path = format!("/devices/{}/boots", scene.device);
        scene.link(scene.device).await;
        let missing =
            async || scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK)["missing"].clone();
        booted(&scene, "a", 50).await;
        let id = ordered(&scene, "a", 10, "running").await;
        assert_eq!(missing().await, Value::Null, "its link is there still");
        scene
            .sql("update links set closed_at = now(), close_reason = 'x' where device_id = $1", scene.device.as_uuid())
            .await;
        assert_eq!(missing().await["command_id"], json!(id));
        booted(&scene, "b", 5).await;
        assert_eq!(missing().await, Value::Null, "it came back, and went again");
    }
}
