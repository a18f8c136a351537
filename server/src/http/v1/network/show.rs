//! `GET /network`: what a firewall in front of devices must let out, and what is known to get through.

use axum::extract::State;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Json, NoQuery};
use crate::model::network::{Network, NetworkRow, Purpose};
use crate::store::network::network_seen;

/// Networks change: what worked longer ago may not any more.
const DAYS: i32 = 7;
const WAYS: [(Purpose, &str); 4] = [
    (Purpose::Enrollment, "enrollment"),
    (Purpose::Websocket, "websocket"),
    (Purpose::Openvpn, "openvpn"),
    (Purpose::Polling, "polling"),
];

/// What a firewall must let out
///
/// Devices open TCP connections to these, and nobody opens one to a device. A row that no device has got through says nothing: it may never have been tried.
#[utoipa::path(get, path = "/network", operation_id = "network_show", tag = "devices",
    responses((status = 200, body = Network)))]
#[tracing::instrument(name = "http.network.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
) -> Result<Json<Network>, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let seen = network_seen(&mut transaction, DAYS).await?;
    let port = &context.device_port;
    let rows = WAYS.into_iter().map(|(purpose, way)| {
        let seen = seen.iter().find(|seen| seen.way == way);
        let host = if purpose == Purpose::Enrollment { &port.enroll_name } else { &port.name };
        NetworkRow {
            purpose,
            host: host.clone(),
            port: port.port,
            devices: seen.map_or(0, |seen| seen.devices),
            proven_at: seen.map(|seen| seen.last_at),
        }
    });
    Ok(Json(Network { rows: rows.collect() }))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_way_is_open_where_a_device_of_ones_own_got_through(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let show = async |somebody| scene.get("/network").by(somebody).send().await.expect(StatusCode::OK);
        let devices = |shown: &serde_json::Value| {
            shown["rows"].as_array().unwrap().iter().map(|row| row["devices"].as_i64().unwrap()).collect::<Vec<_>>()
        };
        let before = devices(&show(&scene.customer).await);
        assert_eq!(before[1..], [0, 0, 0]);
        scene.link(scene.device).await;
        let shown = show(&scene.customer).await;
        assert_eq!(devices(&shown), [before[0], 1, 0, 0]);
        let row = &shown["rows"][1];
        assert_eq!(
            [&row["purpose"], &row["host"], &row["port"]],
            [&json!("websocket"), &json!("localhost"), &json!(443)]
        );
        assert!(row["proven_at"].is_string() && shown["rows"][2]["proven_at"].is_null(), "{shown}");
        scene.poll(scene.device).await;
        assert_eq!(devices(&show(&scene.customer).await)[3], 1);
        // Another's devices say nothing of this one's network.
        assert_eq!(devices(&show(&scene.other_customer).await)[1..], [0, 0, 0]);
        // What was seen too long ago counts no more.
        let long_ago = "update links set proven_at = now() - interval '8 days' where device_id = $1";
        scene.sql(long_ago, scene.device.as_uuid()).await;
        assert_eq!(devices(&show(&scene.customer).await)[1], 0);
    }
}
