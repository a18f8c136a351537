//! `POST /devices/{id}/quarantine`: the device keeps its link, and nothing else of it is let through, wherever its tunnel is.
//! What was open for support is closed. Asking again changes nothing.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::DeviceId;
use serde::Deserialize;

use crate::bus::Hint;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::Tag;
use crate::http::field::check_reason;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::device::Device;
use crate::store::device::device_show;
use crate::store::quarantine::{NewQuarantine, quarantine_begin_in_txn};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct QuarantineCreate {
    /// Why. 1 to 1,024 characters.
    reason: String,
}

/// Leave a device its link and nothing else
///
/// A device without a tunnel has no other way than its link: for it, this is noted, and holds when it comes with one.
#[utoipa::path(post, path = "/devices/{id}/quarantine", operation_id = "device_quarantine", tag = "devices",
    params(("id" = uuid::Uuid, Path)), request_body = QuarantineCreate,
    responses((status = 200, body = Device, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.device.quarantine", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
    Json(request): Json<QuarantineCreate>,
) -> Result<impl IntoResponse, Problem> {
    check_reason(&request.reason)?;
    let id = DeviceId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    // A device that is not the caller's is not there.
    device_show(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    let new = NewQuarantine { by: Some(caller.person()), actor: &caller.actor(), reason: &request.reason };
    let begun = quarantine_begin_in_txn(&mut transaction, id, new).await?;
    let device = device_show(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    context.store.commit(transaction).await?;
    if let Some(ended) = begun {
        context.tell_ended(&ended);
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
    use crate::http::testing::{Answer, Scene, Somebody};

    async fn quarantine(scene: &Scene, somebody: &Somebody, body: Value) -> Answer {
        scene.post(&format!("/devices/{}/quarantine", scene.device)).by(somebody).json(body).send().await
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn puts_the_device_into_quarantine_and_closes_its_ports(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.tunnel(scene.device).await;
        scene.grant(json!({"scopes": ["tcp:open"]})).await;
        let opening = scene.opening(json!({})).await;
        let mut hints = scene.bus.listen();
        let device = quarantine(&scene, &scene.customer, json!({"reason": "scans the node"})).await;
        assert_eq!(device.header("etag"), "\"2\"");
        let device = device.expect(StatusCode::OK);
        let shown = &device["quarantine"];
        assert_eq!((&shown["by"], &shown["reason"]), (&json!(scene.customer.id.as_uuid()), &json!("scans the node")));
        assert!(shown["since"].as_str().is_some_and(|at| at.ends_with('Z')), "{shown}");
        assert_eq!(hints.hear().await, Heard::Hint(Hint::OpeningsDue(scene.device)));
        assert_eq!(hints.hear().await, Heard::Hint(Hint::DeviceChanged(scene.device)));
        let ended = scene.get(&format!("/openings/{opening}")).by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!((&ended["state"], &ended["end_reason"]), (&json!("ended"), &json!("quarantined")));
        // The link is as it was.
        assert_eq!(device["link"]["state"], "live");
        // Again, and by somebody else: nothing changes.
        let again = quarantine(&scene, &scene.admin, json!({"reason": "another"})).await.expect(StatusCode::OK);
        assert_eq!(again, device);
        let audited = scene.audited(scene.tenant).await;
        assert_eq!(audited[audited.len() - 2..], ["device.quarantined", "opening.closed"]);
        for (query, devices) in [("quarantined=true", 1), ("quarantined=false", 0)] {
            let page = scene.get(&format!("/devices?{query}")).by(&scene.customer).send().await;
            assert_eq!(page.expect(StatusCode::OK)["items"].as_array().map(Vec::len), Some(devices), "{query}");
        }
        let refused = scene.post(&format!("/devices/{}/openings", scene.device)).by(&scene.operator);
        refused.json(json!({"port": 22, "reason": "look"})).send().await.expect_problem(Kind::Quarantined);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn is_for_its_owner_and_administrators_with_a_reason(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let body = json!({"reason": "r"});
        quarantine(&scene, &scene.operator, body.clone()).await.expect_problem(Kind::Forbidden);
        quarantine(&scene, &scene.other_customer, body.clone()).await.expect_problem(Kind::NotFound);
        for bad in [json!({"reason": ""}), json!({"reason": "x".repeat(1025)}), json!({"reason": "a\nb"})] {
            quarantine(&scene, &scene.admin, bad).await.expect_problem(Kind::Unprocessable);
        }
        quarantine(&scene, &scene.admin, json!({})).await.expect_problem(Kind::BadRequest);
        assert!(scene.audited(scene.tenant).await.is_empty());
        // One that never had a tunnel, too.
        let device = quarantine(&scene, &scene.admin, body).await.expect(StatusCode::OK);
        assert_eq!(device["quarantine"]["by"], json!(scene.admin.id.as_uuid()));
        assert_eq!(scene.audited(scene.tenant).await, ["device.quarantined"]);
    }
}
