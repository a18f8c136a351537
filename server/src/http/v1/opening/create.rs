//! `POST /devices/{id}/openings`: opens a port of a device to the node that has its tunnel, under a grant. The check of the
//! grant and the insert are one statement of the database, with its clock; everything else here explains why nothing came of
//! it, and waits a moment for the node.

use std::time::Duration;

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::{DeviceId, GrantId, OpeningId, TenantId};
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::json;
use sqlx::PgConnection;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::bus::Hint;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::field::{check_reason, check_seconds};
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::http::v1::command::create::explain;
use crate::model::audit::Subject;
use crate::model::new_id;
use crate::model::opening::{OPEN_FOR_DEFAULT, OPEN_FOR_MAX, OPENINGS_MAX, Opening, OpeningState};
use crate::store::audit::audit_append;
use crate::store::command::Missing;
use crate::store::opening::{NewOpening, Obstacle, opening_create, opening_explain, opening_show};
use crate::store::{StoreError, single};

/// How often an opening is tried when what was in the way has gone meanwhile.
const ATTEMPTS_MAX: usize = 2;
/// Between two looks whether the port is open by now.
const LOOK_EVERY: Duration = Duration::from_millis(25);

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OpeningCreate {
    /// The TCP port of the device, 1 to 65,535.
    #[schema(minimum = 1)]
    port: u16,
    /// Under this grant, and no other; left out: under any that allows it.
    grant_id: Option<Uuid>,
    /// For how long: 1 to 604,800, and never beyond the end of the grant. Left out: 3,600.
    seconds: Option<u64>,
    /// Why, for the device's owner. 1 to 1,024 characters.
    reason: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no grant allows it: {}", .0.name())]
    GrantRequired(Missing),
    #[error("the device has no tunnel")]
    NoTunnel,
    #[error("the device is in quarantine")]
    Quarantined,
    #[error("the device has {OPENINGS_MAX} openings")]
    TooMany,
    #[error("the device is revoked")]
    DeviceRevoked,
    #[error("no such device")]
    DeviceUnknown,
    #[error("grants or links change too fast")]
    Unsettled,
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::GrantRequired(missing) => {
                Self::new(Kind::GrantRequired, explain(missing)).reason(missing.name())
            }
            RouteError::NoTunnel => Self::new(
                Kind::NoTunnel,
                "The device has no tunnel now, so there is no way to its ports: a WebSocket link carries no IP. Let it connect with OpenVPN, then ask again.",
            ),
            RouteError::Quarantined => Self::new(
                Kind::Quarantined,
                "The device is in quarantine: nothing but its link is let through. Look into why, and end the quarantine first.",
            ),
            RouteError::TooMany => Self::new(
                Kind::Conflict,
                format!("The device has {OPENINGS_MAX} openings already. Close one that is not needed."),
            ),
            RouteError::DeviceRevoked => {
                Self::new(Kind::DeviceRevoked, "The device was revoked. Nothing of it can be opened any more.")
            }
            RouteError::DeviceUnknown => Self::not_found(),
            RouteError::Unsettled => Self::new(
                Kind::Conflict,
                "Grants or the device's link changed while the opening was checked. Nothing was done: ask again.",
            ),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Open a port of a device
///
/// To the node that has the device's tunnel, and to nobody else. The answer waits a moment until that node has done it:
/// `state` says whether it has. The same port may be opened several times: each opening ends by itself, the port with the last.
#[utoipa::path(post, path = "/devices/{id}/openings", operation_id = "opening_create", tag = "openings",
    params(("id" = uuid::Uuid, Path)), request_body = OpeningCreate, responses((status = 201, body = Opening)))]
#[tracing::instrument(name = "http.opening.create", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
    Json(request): Json<OpeningCreate>,
) -> Result<impl IntoResponse, RouteError> {
    let device = DeviceId::from_uuid(id);
    let open_for = request.check()?;
    let new = NewOpening {
        id: OpeningId::from_uuid(new_id()),
        operator: caller.person(),
        actor: caller.actor().to_json(),
        device,
        grant: request.grant_id.map(GrantId::from_uuid),
        port: request.port,
        reason: &request.reason,
        open_for,
    };
    let made = create(&context, &caller, &new).await?;
    context.bus.send(Hint::OpeningsDue(device));
    let opening = done(&context, made).await;
    let location = format!("/api/v1/openings/{}", opening.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(opening)))
}

impl OpeningCreate {
    /// Checks it. Returns for how long.
    fn check(&self) -> Result<Duration, Problem> {
        check_reason(&self.reason)?;
        if self.port == 0 {
            return Err(Problem::unprocessable("`port` must be 1 to 65535."));
        }
        self.seconds.map_or(Ok(OPEN_FOR_DEFAULT), |seconds| check_seconds("seconds", seconds, OPEN_FOR_MAX))
    }
}

async fn create(context: &Context, caller: &Caller, new: &NewOpening<'_>) -> Result<Opening, RouteError> {
    let store = &context.store;
    for _ in 0..ATTEMPTS_MAX {
        if let Some(opening) = single!(store, |connection| opening_create(connection, new))? {
            return Ok(opening);
        }
        let explained = single!(store, |connection| opening_explain(connection, new.operator, new.device, new.grant));
        let (tenant, missing, refused) = match explained? {
            Obstacle::DeviceUnknown => return Err(RouteError::DeviceUnknown),
            Obstacle::DeviceRevoked => return Err(RouteError::DeviceRevoked),
            Obstacle::Grant { tenant, missing } => (tenant, missing.name(), RouteError::GrantRequired(missing)),
            Obstacle::Quarantined { tenant } => (tenant, "quarantine", RouteError::Quarantined),
            Obstacle::NoTunnel { tenant } => (tenant, "tunnel", RouteError::NoTunnel),
            Obstacle::TooMany { tenant } => (tenant, "room", RouteError::TooMany),
            Obstacle::Gone => continue,
        };
        single!(store, |connection| audit_refused(connection, caller, new, tenant, missing))?;
        return Err(refused);
    }
    Err(RouteError::Unsettled)
}

/// The owner of the device sees who tried, and what was missing.
async fn audit_refused(
    connection: &mut PgConnection,
    caller: &Caller,
    new: &NewOpening<'_>,
    tenant: TenantId,
    missing: &str,
) -> Result<(), StoreError> {
    let subject = Subject::new("device", new.device.as_uuid());
    let details = json!({"port": new.port, "reason": new.reason, "missing": missing});
    audit_append(connection, tenant, &caller.actor(), "opening.refused", subject, details).await
}

/// Waits for the node, but not for long: it may be another one, or have stopped. The opening is made, whatever comes of this.
async fn done(context: &Context, made: Opening) -> Opening {
    let until = Instant::now() + context.opening_within;
    let mut opening = made;
    while opening.state == OpeningState::Requested && Instant::now() < until {
        sleep(LOOK_EVERY).await;
        let look =
            async { single!(context.store, |connection| opening_show(connection, OpeningId::from_uuid(opening.id))) };
        match look.await {
            Ok(Some(now)) => opening = now,
            Ok(None) | Err(_) => break,
        }
    }
    opening
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use cloudlink_proto::ids::DeviceId;
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::bus::{Heard, Hint};
    use crate::http::Settings;
    use crate::http::problem::Kind;
    use crate::http::testing::{Call, Scene, Somebody};
    use crate::model::new_id;
    use crate::model::opening::OPENINGS_MAX;

    fn call(scene: &Scene, somebody: &Somebody, device: DeviceId, body: Value) -> Call {
        scene.post(&format!("/devices/{device}/openings")).by(somebody).json(body)
    }

    fn ssh() -> Value {
        json!({"port": 22, "reason": "it hangs"})
    }

    async fn scene(pool: PgPoolOptions, database: PgConnectOptions) -> Scene {
        let scene = Scene::new(pool, database).await;
        scene.tunnel(scene.device).await;
        scene
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn opens_a_port_under_the_grant_and_tells_the_node(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = scene(pool, database).await;
        let grant = scene.grant(json!({"scopes": ["tcp:open"]})).await;
        let mut hints = scene.bus.listen();
        let answer = call(&scene, &scene.operator, scene.device, ssh()).send().await;
        let opening = answer.expect(StatusCode::CREATED);
        assert_eq!(answer.header("location"), format!("/api/v1/openings/{}", opening["id"].as_str().unwrap()));
        assert_eq!((&opening["state"], &opening["port"]), (&json!("requested"), &json!(22)));
        assert_eq!(opening["grant_id"], json!(grant.to_string()));
        assert_eq!(opening["opened_by"], json!(scene.operator.id.to_string()));
        assert_eq!(opening["endpoint"], json!({"node": "node-1", "ipv4": "100.64.0.2", "ipv6": "fd00:1:2::2"}));
        assert_eq!(hints.hear().await, Heard::Hint(Hint::OpeningsDue(scene.device)));
        assert_eq!(scene.audited(scene.tenant).await, ["grant.created", "opening.created"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn the_answer_waits_for_the_node(pool: PgPoolOptions, database: PgConnectOptions) {
        let settings = Settings { opening_within: std::time::Duration::from_secs(30), ..Settings::default() };
        let scene = Scene::with_settings(pool, database, settings).await;
        scene.tunnel(scene.device).await;
        scene.grant(json!({"scopes": ["tcp:open"]})).await;
        let mut hints = scene.bus.listen();
        let node = async {
            assert_eq!(hints.hear().await, Heard::Hint(Hint::OpeningsDue(scene.device)));
            scene.sql("update openings set opened_at = now() where device_id = $1", scene.device.as_uuid()).await;
        };
        let create = call(&scene, &scene.operator, scene.device, ssh()).send();
        let ((), answer) = futures_util::future::join(node, create).await;
        let opening = answer.expect(StatusCode::CREATED);
        assert_eq!(opening["state"], "open");
        assert!(opening["opened_at"].is_string());
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn without_a_grant_says_what_is_missing(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = scene(pool, database).await;
        let reason = async |changes: Value| {
            let mut body = ssh();
            body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let answer = call(&scene, &scene.operator, scene.device, body).send().await;
            answer.expect_problem(Kind::GrantRequired)["reason"].as_str().unwrap().to_owned()
        };
        assert_eq!(reason(json!({})).await, "none");
        let named = json!({"scopes": ["tcp:open"], "operator_ids": [scene.colleague.id.to_string()]});
        scene.grant(named).await;
        assert_eq!(reason(json!({})).await, "not_named");
        let ended = scene.grant(json!({"scopes": ["tcp:open"]})).await;
        let end = "update grants set starts_at = now() - interval '2 hours', ends_at = now() - interval '1 hour' where id = $1";
        scene.sql(end, ended.as_uuid()).await;
        assert_eq!(reason(json!({})).await, "ended");
        let revoked = scene.grant(json!({"scopes": ["tcp:open"]})).await;
        scene.post(&format!("/grants/{revoked}/revoke")).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!(reason(json!({})).await, "revoked");
        let later = scene.grant(json!({"scopes": ["tcp:open"]})).await;
        scene.sql("update grants set starts_at = now() + interval '5 minutes' where id = $1", later.as_uuid()).await;
        assert_eq!(reason(json!({})).await, "not_started");
        scene.grant(json!({"scopes": ["device:reboot"]})).await;
        assert_eq!(reason(json!({})).await, "scope", "a grant to reboot opens nothing");
        scene.grant(json!({"scopes": ["tcp:open"]})).await;
        assert_eq!(reason(json!({"grant_id": ended.to_string()})).await, "ended");
        assert_eq!(reason(json!({"grant_id": new_id().to_string()})).await, "none");
        let audited = scene.audited(scene.tenant).await;
        assert_eq!(audited.iter().filter(|action| *action == "opening.refused").count(), 8);
        assert!(!audited.contains(&"opening.created".to_owned()));
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_selector_covers_by_label_and_never_another_tenant(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = scene(pool, database).await;
        scene.tunnel(scene.other_device).await;
        scene.grant(json!({"scopes": ["tcp:open"], "device_ids": null, "selector": {"site": "north"}})).await;
        call(&scene, &scene.operator, scene.device, ssh()).send().await.expect(StatusCode::CREATED);
        let refused = call(&scene, &scene.operator, scene.other_device, ssh()).send().await;
        assert_eq!(refused.expect_problem(Kind::GrantRequired)["reason"], "none");
        assert_eq!(scene.audited(scene.other_tenant).await, ["opening.refused"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_device_without_a_tunnel_has_no_ports(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.link(scene.device).await;
        let refused = call(&scene, &scene.operator, scene.device, ssh()).send().await;
        assert_eq!(refused.expect_problem(Kind::GrantRequired)["reason"], "none", "the grant comes first");
        scene.grant(json!({"scopes": ["tcp:open"]})).await;
        let refused = call(&scene, &scene.operator, scene.device, ssh()).send().await.expect_problem(Kind::NoTunnel);
        assert!(refused["detail"].as_str().unwrap().contains("WebSocket"), "{refused}");
        scene.tunnel(scene.device).await;
        call(&scene, &scene.operator, scene.device, ssh()).send().await.expect(StatusCode::CREATED);
        scene.sql("update links set has_agent = true where device_id = $1", scene.device.as_uuid()).await;
        call(&scene, &scene.operator, scene.device, ssh()).send().await.expect(StatusCode::CREATED);
        scene.unlink(scene.device).await;
        call(&scene, &scene.operator, scene.device, ssh()).send().await.expect_problem(Kind::NoTunnel);
        let audited = scene.audited(scene.tenant).await;
        assert_eq!(audited.iter().filter(|action| *action == "opening.refused").count(), 3);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn devices_in_quarantine_revoked_or_unknown_have_none(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = scene(pool, database).await;
        scene.grant(json!({"scopes": ["tcp:open"]})).await;
        let quarantine = "update devices set quarantined_at = now(), quarantine_reason = 'r' where id = $1";
        scene.sql(quarantine, scene.device.as_uuid()).await;
        call(&scene, &scene.operator, scene.device, ssh()).send().await.expect_problem(Kind::Quarantined);
        let path = format!("/devices/{}/revoke", scene.device);
        scene.post(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        call(&scene, &scene.operator, scene.device, ssh()).send().await.expect_problem(Kind::DeviceRevoked);
        let nowhere = DeviceId::from_uuid(new_id());
        call(&scene, &scene.operator, nowhere, ssh()).send().await.expect_problem(Kind::NotFound);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn no_opening_outlives_its_grant_by_the_databases_clock(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = scene(pool, database).await;
        let id = scene.grant(json!({"scopes": ["tcp:open"], "duration_seconds": 60})).await;
        let grant = scene.get(&format!("/grants/{id}")).by(&scene.operator).send().await.expect(StatusCode::OK);
        let open = async |seconds: Value| {
            let mut body = ssh();
            body["seconds"] = seconds;
            let answer = call(&scene, &scene.operator, scene.device, body).send().await;
            answer.expect(StatusCode::CREATED)["id"].as_str().unwrap().parse::<uuid::Uuid>().unwrap()
        };
        for seconds in [json!(604_800), json!(null)] {
            let id = open(seconds).await;
            let opening = scene.get(&format!("/openings/{id}")).by(&scene.operator).send().await.expect(StatusCode::OK);
            assert_eq!(opening["expires_at"], grant["ends_at"]);
        }
        let sql =
            "select expires_at - created_at between interval '19 s' and interval '20 s' from openings where id = $1";
        let id = open(json!(20)).await;
        let is_exact: bool = sqlx::query_scalar(sql).bind(id).fetch_one(&scene.root).await.unwrap();
        assert!(is_exact);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_device_has_so_many_openings_and_no_more(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = scene(pool, database).await;
        scene.grant(json!({"scopes": ["tcp:open"]})).await;
        let calls = (0..OPENINGS_MAX + 8).map(|_| call(&scene, &scene.operator, scene.device, ssh()).send());
        let answers = futures_util::future::join_all(calls).await;
        let made: BTreeSet<_> = answers
            .iter()
            .filter(|answer| answer.status == StatusCode::CREATED)
            .map(|answer| answer.json()["id"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(i32::try_from(made.len()).unwrap(), OPENINGS_MAX);
        assert_eq!(answers.iter().filter(|answer| answer.status == StatusCode::CONFLICT).count(), 8);
        let path = format!("/openings/{}/close", made.first().unwrap());
        scene.post(&path).by(&scene.operator).send().await.expect(StatusCode::OK);
        call(&scene, &scene.operator, scene.device, ssh()).send().await.expect(StatusCode::CREATED);
        let refused = call(&scene, &scene.operator, scene.device, ssh()).send().await;
        let detail = refused.expect_problem(Kind::Conflict)["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("16 openings"), "{detail}");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn reads_requests_strictly(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = scene(pool, database).await;
        scene.grant(json!({"scopes": ["tcp:open"]})).await;
        let cases = [
            (json!({"port": 0, "reason": "r"}), Kind::Unprocessable),
            (json!({"port": 65_536, "reason": "r"}), Kind::BadRequest),
            (json!({"port": -1, "reason": "r"}), Kind::BadRequest),
            (json!({"port": "22", "reason": "r"}), Kind::BadRequest),
            (json!({"port": 22}), Kind::BadRequest),
            (json!({"port": 22, "reason": ""}), Kind::Unprocessable),
            (json!({"port": 22, "reason": "\u{1b}[2J"}), Kind::Unprocessable),
            (json!({"port": 22, "reason": "r", "seconds": 0}), Kind::Unprocessable),
            (json!({"port": 22, "reason": "r", "seconds": 604_801}), Kind::Unprocessable),
            (json!({"port": 22, "reason": "r", "protocol": "udp"}), Kind::BadRequest),
        ];
        for (body, kind) in cases {
            call(&scene, &scene.operator, scene.device, body).send().await.expect_problem(kind);
        }
    }
}
