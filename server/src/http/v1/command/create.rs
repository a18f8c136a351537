//! `POST /devices/{id}/commands`: one instruction to one device, under a grant. The check of the grant and the insert are
//! one statement of the database, with its clock; everything else here explains why nothing came of it.

use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use cloudlink_proto::ids::{CommandId, DeviceId, GrantId, PersonId, TenantId};
use http::{HeaderName, StatusCode, header};
use opentelemetry::trace::SpanKind;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgConnection;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::batch::{Statement, Unanswered};
use crate::bus::Hint;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::field::{check_reason, check_seconds};
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Id, IdempotencyKey, Json, NoQuery};
use crate::http::traced::Place;
use crate::model::audit::Subject;
use crate::model::busy_lock::{BusyLock, OVERRIDE_SCOPE};
use crate::model::command::{
    Command, Instruction, InstructionError, QUEUE_FOR_MAX, START_WITHIN_DEFAULT, State as CommandState,
};
use crate::model::new_id;
use crate::store::audit::audit_append;
use crate::store::busy_lock::busy_lock_show;
use crate::store::command::{KEY_USED, Missing, NewCommand, Obstacle, command_create, command_explain, command_of_key};
use crate::store::{Connection, StoreError, single};
use crate::trace::Span;

/// Says that the command was made by an earlier request with the same key.
static REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// How often a command is tried when what was in the way has gone meanwhile.
const ATTEMPTS_MAX: usize = 2;

#[derive(Debug, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommandCreate {
    /// `metrics.collect`, `service.restart`, `device.reboot`, `device.shutdown`, `os.update`, `agent.update` or
    /// `container.update`.
    kind: String,
    /// What the kind asks for: `{"service": "…"}` for `service.restart`, an artifact (`url`, `sha256`, `size`) and a `version` for
    /// updates, `{"container": "…", "image": "…@sha256:…"}` for `container.update`, nothing for the others.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    arguments: Value,
    /// Why, for the device's owner. 1 to 1,024 characters.
    reason: String,
    /// Under this grant, and no other; left out: under any that allows it.
    grant_id: Option<Uuid>,
    /// How long it may wait for the device to link: 1 to 604,800. Left out: now or never.
    queue_for_seconds: Option<u64>,
    /// Do it also while the device holds a busy lock: the grant must allow `busy:override` as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    override_busy: bool,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error(transparent)]
    Instruction(#[from] InstructionError),
    #[error("no grant allows it: {}", .0.name())]
    GrantRequired(Missing),
    #[error("the device has no live link")]
    NotLinked,
    #[error("the device has no live link, and polls")]
    Polling { next_by: OffsetDateTime, by_polling: bool },
    #[error("no agent answers on the device's tunnel")]
    NoAgent,
    #[error("the device is busy")]
    Busy(BusyLock),
    #[error("the device is revoked")]
    DeviceRevoked,
    #[error("no such device")]
    DeviceUnknown,
    #[error("the key was used with another request")]
    KeyConflict,
    #[error("grants or links change too fast")]
    Unsettled,
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Instruction(
                error @ (InstructionError::UnknownKind
                | InstructionError::ServiceName
                | InstructionError::Update(_)
                | InstructionError::Container
                | InstructionError::Image
                | InstructionError::Directions
                | InstructionError::Seconds
                | InstructionError::NowOrNever),
            ) => Self::unprocessable(format!("The command is not allowed: {error}.")),
            RouteError::Instruction(error @ InstructionError::Arguments(_)) => {
                Self::bad_request(format!("`arguments` is malformed: {error}."))
            }
            RouteError::GrantRequired(missing) => {
                Self::new(Kind::GrantRequired, explain(missing)).reason(missing.name())
            }
            RouteError::NotLinked => Self::new(
                Kind::NotLinked,
                "The device has no live link, and the command is now or never. Try later, or let it wait with `queue_for_seconds`.",
            ),
            RouteError::Polling { next_by, by_polling: true } => Self::new(
                Kind::Polling,
                format!(
                    "The device has no live link: it polls, and will do so again by {}. Let the command wait for that with `queue_for_seconds`.",
                    rfc3339(next_by)
                ),
            ),
            RouteError::Polling { next_by, by_polling: false } => Self::new(
                Kind::Polling,
                format!(
                    "The device has no live link: it polls, the next time by {}, and this kind of command is not run that way. Find out why its network lets no link through, and ask again when it is linked.",
                    rfc3339(next_by)
                ),
            ),
            RouteError::NoAgent => Self::new(
                Kind::NoAgent,
                "The device is linked by an OpenVPN client alone: no agent answers on this tunnel. Start cloudlink-agent on the device, or let the command wait for it with `queue_for_seconds`.",
            ),
            RouteError::Busy(BusyLock { reason, until, .. }) => Self::new(
                Kind::DeviceBusy,
                format!(
                    "The device asks not to be disturbed until {}: {reason:?}. Try then, or, with a grant that allows `{OVERRIDE_SCOPE}`, with `override_busy`.",
                    rfc3339(until)
                ),
            ),
            RouteError::DeviceRevoked => {
                Self::new(Kind::DeviceRevoked, "The device was revoked. It takes no commands any more.")
            }
            RouteError::DeviceUnknown => Self::not_found(),
            RouteError::KeyConflict => Self::new(
                Kind::IdempotencyConflict,
                "You used this Idempotency-Key with another request. Use a new key for a new command.",
            ),
            RouteError::Unsettled => Self::new(
                Kind::Conflict,
                "Grants or the device's link changed while the command was checked. Nothing was done: ask again.",
            ),
            RouteError::Unanswered(Unanswered::Unavailable) => Self::unavailable(),
            RouteError::Unanswered(Unanswered::Fault) => Self::internal(),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// To the second: it is rounded up for people anyway.
fn rfc3339(at: OffsetDateTime) -> String {
    at.truncate_to_second().format(&Rfc3339).unwrap_or_default()
}

/// What is missing of a grant, and what to do about it.
pub(crate) const fn explain(missing: Missing) -> &'static str {
    match missing {
        Missing::None => "The device's owner has granted nothing for this. Ask the owner for a grant.",
        Missing::Scope => "A grant is in force for you on this device, but not for this. Ask its owner for the scope.",
        Missing::Ended => "The grant has ended. Ask the device's owner to make a new one.",
        Missing::Revoked => "The device's owner has revoked the grant. Ask why before you ask for a new one.",
        Missing::NotStarted => "The grant has not started yet. See its `starts_at`.",
        Missing::NotNamed => {
            "A grant is in force for this, but it names other operators. Ask the device's owner to name you."
        }
    }
}

/// Command a device
///
/// With `Idempotency-Key`, the same request again answers with the command that the first one made (status 200, header
/// `Idempotency-Replayed: true`), whatever has become of the grant meanwhile.
#[utoipa::path(post, path = "/devices/{id}/commands", operation_id = "command_create", tag = "commands",
    params(("id" = uuid::Uuid, Path), ("Idempotency-Key" = Option<String>, Header)), request_body = CommandCreate,
    responses((status = 201, body = Command), (status = 200, body = Command, description = "Made by an earlier request")))]
#[tracing::instrument(name = "http.command.create", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Place(place): Place,
    Id(id): Id,
    _: NoQuery,
    IdempotencyKey(key): IdempotencyKey,
    Json(request): Json<CommandCreate>,
) -> Result<Response, RouteError> {
    let device = DeviceId::from_uuid(id);
    let request_hash = request.hash(device);
    let start_within = request.check()?;
    let instruction = Instruction::parse(&request.kind, request.arguments)?;
    if matches!(instruction, Instruction::TestLink { .. }) && request.queue_for_seconds.is_some() {
        return Err(InstructionError::NowOrNever.into());
    }
    let id = CommandId::from_uuid(new_id());
    let mut span = place.and_then(|place| context.tracer.child(SpanKind::Producer, "command.insert", place));
    if let Some(span) = &mut span {
        span.set("cloudlink.command.id", id.to_string());
        span.set("cloudlink.device.id", device.to_string());
    }
    let new = NewCommand {
        id,
        operator: caller.person(),
        actor: caller.actor().to_json(),
        device,
        grant: request.grant_id.map(GrantId::from_uuid),
        instruction,
        reason: request.reason,
        start_within,
        may_queue: request.queue_for_seconds.is_some(),
        override_busy: request.override_busy,
        idempotency_key: key,
        request_hash,
        trace: span.as_ref().map(Span::place).or(place),
    };
    let made = create(&context, &caller, &new).await?;
    drop(span);
    Ok(match made {
        Made::New(command) => {
            let kind = new.instruction.kind().name;
            context.metrics.commands.with_label_values(&[kind, CommandState::Queued.name()]).inc();
            context.bus.send(Hint::CommandsDue(device));
            let location = format!("/api/v1/commands/{}", command.id);
            (StatusCode::CREATED, [(header::LOCATION, location)], Json(command)).into_response()
        }
        Made::Before(command) => ([(REPLAYED.clone(), "true")], Json(command)).into_response(),
    })
}

enum Made {
    New(Command),
    /// By an earlier request with the same key.
    Before(Command),
}

/// Commands that are to be made. Those of one tenant wait for one another at its audit log: each in a transaction of its own
/// would wait for the disk while it keeps the others out.
#[derive(Debug)]
pub(crate) struct Creates;

impl Statement for Creates {
    type Question = NewCommand;
    /// None if nothing allows it, or its key was used before.
    type Answer = Option<Command>;
    /// By its key, or as nobody else's.
    type Key = (PersonId, Result<String, CommandId>);
    const NAME: &'static str = "command_create";
    // Nobody would know of the command.
    const EVEN_UNHEARD: bool = false;

    fn key(command: &NewCommand) -> Self::Key {
        (command.operator, command.idempotency_key.clone().ok_or(command.id))
    }

    async fn ask(
        &self,
        connection: &mut Connection,
        commands: &[NewCommand],
    ) -> Result<Vec<Option<Command>>, StoreError> {
        let mut made = match command_create(connection, commands).await {
            Err(error) if commands.len() == 1 && error.constraint() == Some(KEY_USED) => Vec::new(),
            made => made?,
        };
        Ok(commands
            .iter()
            .map(|command| {
                let position = made.iter().position(|made| made.id == command.id.as_uuid())?;
                Some(made.swap_remove(position))
            })
            .collect())
    }
}

/// One round trip when the grant is there.
async fn create(context: &Context, caller: &Caller, new: &NewCommand) -> Result<Made, RouteError> {
    for _ in 0..ATTEMPTS_MAX {
        if let Some(command) = context.creates.ask(new.clone()).await? {
            return Ok(Made::New(command));
        }
        let store = &context.store;
        if let Some(key) = new.idempotency_key.as_deref()
            && let Some((command, hash)) = single!(store, |connection| command_of_key(connection, new.operator, key))?
        {
            let is_same = hash == new.request_hash;
            return if is_same { Ok(Made::Before(command)) } else { Err(RouteError::KeyConflict) };
        }
        let kind = new.instruction.kind();
        let scopes: &[&str] = if new.override_busy { &[kind.scope, OVERRIDE_SCOPE] } else { &[kind.scope] };
        let explained =
            single!(store, |connection| command_explain(connection, new.operator, new.device, new.grant, scopes));
        match explained? {
            Obstacle::DeviceUnknown => return Err(RouteError::DeviceUnknown),
            Obstacle::DeviceRevoked => return Err(RouteError::DeviceRevoked),
            Obstacle::Polling { .. } if new.may_queue && new.instruction.kind().by_polling => {}
            Obstacle::Polling { tenant, next_by } => {
                single!(store, |connection| audit_refused(connection, caller, new, tenant, "link"))?;
                return Err(RouteError::Polling { next_by, by_polling: new.instruction.kind().by_polling });
            }
            // What may wait needs neither link nor agent: something else was in the way, and has gone.
            Obstacle::NotLinked | Obstacle::NoAgent { .. } if new.may_queue => {}
            Obstacle::NotLinked => return Err(RouteError::NotLinked),
            Obstacle::NoAgent { tenant } => {
                single!(store, |connection| audit_refused(connection, caller, new, tenant, "agent"))?;
                return Err(RouteError::NoAgent);
            }
            Obstacle::Grant { tenant, missing } => {
                single!(store, |connection| audit_refused(connection, caller, new, tenant, missing.name()))?;
                return Err(RouteError::GrantRequired(missing));
            }
            Obstacle::Gone => {}
        }
        if kind.disturbs
            && !new.override_busy
            && let Some((tenant, lock)) = single!(store, |connection| busy_lock_show(connection, new.device))?
        {
            single!(store, |connection| audit_refused(connection, caller, new, tenant, "busy"))?;
            return Err(RouteError::Busy(lock));
        }
    }
    Err(RouteError::Unsettled)
}

/// The owner of the device sees who tried, and what was missing.
async fn audit_refused(
    connection: &mut PgConnection,
    caller: &Caller,
    new: &NewCommand,
    tenant: TenantId,
    missing: &str,
) -> Result<(), StoreError> {
    let subject = Subject::new("device", new.device.as_uuid());
    let details = json!({"kind": new.instruction.kind().name, "reason": new.reason, "missing": missing});
    audit_append(connection, tenant, &caller.actor(), "command.refused", subject, details).await?;
    Ok(())
}

impl CommandCreate {
    /// Identifies the request: the same key with another hash is another request.
    fn hash(&self, device: DeviceId) -> [u8; 32] {
        let text = json!([device.as_uuid(), self]).to_string();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// Checks what is not the instruction. Returns how soon the device must begin.
    fn check(&self) -> Result<Duration, Problem> {
        check_reason(&self.reason)?;
        self.queue_for_seconds
            .map_or(Ok(START_WITHIN_DEFAULT), |seconds| check_seconds("queue_for_seconds", seconds, QUEUE_FOR_MAX))
    }
}

#[cfg(test)]
mod tests {
    use cloudlink_proto::ids::DeviceId;
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::bus::{Heard, Hint};
    use crate::http::problem::Kind;
    use crate::http::testing::{Call, Scene, Somebody};
    use crate::model::new_id;

    fn call(scene: &Scene, somebody: &Somebody, device: DeviceId, body: Value) -> Call {
        scene.post(&format!("/devices/{device}/commands")).by(somebody).json(body)
    }

    fn reboot() -> Value {
        json!({"kind": "device.reboot", "reason": "it hangs"})
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn makes_a_command_under_the_grant(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.link(scene.device).await;
        let grant = scene.grant(json!({})).await;
        let mut hints = scene.bus.listen();
        let body = json!({"kind": "service.restart", "arguments": {"service": "nginx"}, "reason": "it hangs"});
        let answer = call(&scene, &scene.operator, scene.device, body).send().await;
        let command = answer.expect(StatusCode::CREATED);
        assert_eq!(answer.header("location"), format!("/api/v1/commands/{}", command["id"].as_str().unwrap()));
        assert_eq!((&command["state"], &command["grant_id"]), (&json!("queued"), &json!(grant.to_string())));
        assert_eq!(command["arguments"], json!({"service": "nginx"}));
        assert_eq!(hints.hear().await, Heard::Hint(Hint::CommandsDue(scene.device)));
        assert_eq!(scene.audited(scene.tenant).await, ["grant.created", "command.created"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn without_a_grant_says_what_is_missing(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.link(scene.device).await;
        let reason = async |changes: Value| {
            let mut body = reboot();
            body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let answer = call(&scene, &scene.operator, scene.device, body).send().await;
            answer.expect_problem(Kind::GrantRequired)["reason"].as_str().unwrap().to_owned()
        };
        assert_eq!(reason(json!({})).await, "none");
        scene.grant(json!({"operator_ids": [scene.colleague.id.to_string()]})).await;
        assert_eq!(reason(json!({})).await, "not_named");
        let ended = scene.grant(json!({})).await;
        let end = "update grants set starts_at = now() - interval '2 hours', ends_at = now() - interval '1 hour' where id = $1";
        scene.sql(end, ended.as_uuid()).await;
        assert_eq!(reason(json!({})).await, "ended");
        let revoked = scene.grant(json!({})).await;
        scene.post(&format!("/grants/{revoked}/revoke")).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!(reason(json!({})).await, "revoked");
        assert_eq!(reason(json!({"grant_id": ended.to_string()})).await, "ended");
        assert_eq!(reason(json!({"grant_id": new_id().to_string()})).await, "none");
        let later = scene.grant(json!({})).await;
        scene.sql("update grants set starts_at = now() + interval '5 minutes' where id = $1", later.as_uuid()).await;
        assert_eq!(reason(json!({})).await, "not_started");
        scene.grant(json!({"scopes": ["metrics:read"]})).await;
        assert_eq!(reason(json!({})).await, "scope");
        let audited = scene.audited(scene.tenant).await;
        assert_eq!(audited.iter().filter(|action| *action == "command.refused").count(), 8);
        assert!(!audited.contains(&"command.created".to_owned()));
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_selector_covers_by_label_and_never_another_tenant(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.link(scene.device).await;
        scene.link(scene.other_device).await;
        scene.grant(json!({"device_ids": null, "selector": {"site": "north"}})).await;
        call(&scene, &scene.operator, scene.device, reboot()).send().await.expect(StatusCode::CREATED);
        let refused = call(&scene, &scene.operator, scene.other_device, reboot()).send().await;
        assert_eq!(refused.expect_problem(Kind::GrantRequired)["reason"], "none");
        assert_eq!(scene.audited(scene.other_tenant).await, ["command.refused"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_selector_covers_as_long_as_the_labels_are_as_it_says(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.link(scene.device).await;
        scene.grant(json!({"device_ids": null, "selector": "site in (north,south),env!=test,!retired"})).await;
        for (labels, is_covered) in [
            (json!({"site": "north"}), true),
            (json!({"site": "south", "env": "live"}), true),
            (json!({"site": "west"}), false),
            (json!({"site": "north", "env": "test"}), false),
            (json!({"site": "north", "retired": "no"}), false),
            (json!({}), false),
            (json!({"site": "north", "a": "b"}), true),
        ] {
            let relabel =
                scene.patch(&format!("/devices/{}", scene.device)).by(&scene.customer).header("if-match", "*");
            relabel.json(json!({"labels": labels})).send().await.expect(StatusCode::OK);
            let answer = call(&scene, &scene.operator, scene.device, reboot()).send().await;
            let covering = scene.get(&format!("/grants?device_id={}", scene.device)).by(&scene.operator).send().await;
            let covering = covering.expect(StatusCode::OK)["items"].as_array().unwrap().len();
            assert_eq!(covering, usize::from(is_covered), "{labels}");
            if is_covered {
                answer.expect(StatusCode::CREATED);
            } else {
                assert_eq!(answer.expect_problem(Kind::GrantRequired)["reason"], "none", "{labels}");
            }
        }
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn is_now_or_never_unless_it_may_wait(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.grant(json!({})).await;
        call(&scene, &scene.operator, scene.device, reboot()).send().await.expect_problem(Kind::NotLinked);
        scene.link(scene.device).await;
        scene.unlink(scene.device).await;
        call(&scene, &scene.operator, scene.device, reboot()).send().await.expect_problem(Kind::NotLinked);
        let mut patient = reboot();
        patient["queue_for_seconds"] = 600.into();
        let command = call(&scene, &scene.operator, scene.device, patient).send().await.expect(StatusCode::CREATED);
        assert!(command["expires_at"].as_str() > command["created_at"].as_str());
        for seconds in [0, 604_801] {
            let mut body = reboot();
            body["queue_for_seconds"] = seconds.into();
            call(&scene, &scene.operator, scene.device, body).send().await.expect_problem(Kind::Unprocessable);
        }
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn without_an_agent_in_the_tunnel_it_is_refused_unless_it_may_wait(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        scene.tunnel(scene.device).await;
        let refused = call(&scene, &scene.operator, scene.device, reboot()).send().await;
        assert_eq!(refused.expect_problem(Kind::GrantRequired)["reason"], "none", "the grant comes first");
        scene.grant(json!({})).await;
        let refused = call(&scene, &scene.operator, scene.device, reboot()).send().await;
        let detail = refused.expect_problem(Kind::NoAgent)["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("no agent answers on this tunnel") && detail.contains("queue_for_seconds"), "{detail}");
        let mut patient = reboot();
        patient["queue_for_seconds"] = 600.into();
        call(&scene, &scene.operator, scene.device, patient).send().await.expect(StatusCode::CREATED);
        assert_eq!(
            scene.audited(scene.tenant).await,
            ["command.refused", "grant.created", "command.refused", "command.created"]
        );
        let missing: Option<String> = sqlx::query_scalar(
            "select entry::jsonb #>> '{details,missing}' from audit where action = 'command.refused' order by seq desc limit 1",
        )
        .fetch_one(&scene.root)
        .await
        .unwrap();
        assert_eq!(missing.as_deref(), Some("agent"));
        // An agent inside, then none again, then no tunnel.
        scene.sql("update links set has_agent = true where device_id = $1", scene.device.as_uuid()).await;
        call(&scene, &scene.operator, scene.device, reboot()).send().await.expect(StatusCode::CREATED);
        scene.sql("update links set has_agent = false where device_id = $1", scene.device.as_uuid()).await;
        call(&scene, &scene.operator, scene.device, reboot()).send().await.expect_problem(Kind::NoAgent);
        scene.unlink(scene.device).await;
        call(&scene, &scene.operator, scene.device, reboot()).send().await.expect_problem(Kind::NotLinked);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn no_command_outlives_its_grant(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let grant = scene.grant(json!({"duration_seconds": 60})).await;
        let mut body = reboot();
        body["queue_for_seconds"] = 604_800.into();
        let command = call(&scene, &scene.operator, scene.device, body).send().await.expect(StatusCode::CREATED);
        let grant = scene.get(&format!("/grants/{grant}")).by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!(command["expires_at"], grant["ends_at"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_revoked_or_unknown_device_takes_none(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.grant(json!({})).await;
        scene.link(scene.device).await;
        let path = format!("/devices/{}/revoke", scene.device);
        scene.post(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        call(&scene, &scene.operator, scene.device, reboot()).send().await.expect_problem(Kind::DeviceRevoked);
        let nowhere = DeviceId::from_uuid(new_id());
        call(&scene, &scene.operator, nowhere, reboot()).send().await.expect_problem(Kind::NotFound);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_key_makes_one_command(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.link(scene.device).await;
        let grant = scene.grant(json!({})).await;
        let send =
            |body: Value| call(&scene, &scene.operator, scene.device, body).header("idempotency-key", "k1").send();
        let first = send(reboot()).await.expect(StatusCode::CREATED);
        let again = send(reboot()).await;
        assert_eq!(again.expect(StatusCode::OK), first);
        assert_eq!(again.header("idempotency-replayed"), "true");
        let mut other = reboot();
        other["reason"] = "something else".into();
        send(other).await.expect_problem(Kind::IdempotencyConflict);
        // The answer may have been lost before the grant was revoked: asking again must still tell.
        scene.post(&format!("/grants/{grant}/revoke")).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!(send(reboot()).await.expect(StatusCode::OK)["id"], first["id"]);
        // Keys belong to people.
        let refused =
            call(&scene, &scene.colleague, scene.device, reboot()).header("idempotency-key", "k1").send().await;
        refused.expect_problem(Kind::GrantRequired);
        for key in ["", &"k".repeat(129), "a\u{e9}"] {
            let bad = call(&scene, &scene.operator, scene.device, reboot()).header("idempotency-key", key).send().await;
            bad.expect_problem(Kind::BadRequest);
        }
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn requests_with_one_key_at_once_make_one_command(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.link(scene.device).await;
        scene.grant(json!({})).await;
        let calls =
            (0..8).map(|_| call(&scene, &scene.operator, scene.device, reboot()).header("idempotency-key", "k").send());
        let answers = futures_util::future::join_all(calls).await;
        assert_eq!(answers.iter().filter(|answer| answer.status == StatusCode::CREATED).count(), 1);
        let ids: std::collections::BTreeSet<_> = answers.iter().map(|answer| answer.json()["id"].to_string()).collect();
        assert_eq!(ids.len(), 1);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn of_many_requests_at_once_each_has_its_own_answer(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.grant(json!({})).await;
        let used = scene.command(json!({"kind": "device.shutdown"})).await;
        scene.sql("update commands set idempotency_key = 'used' where id = $1", used).await;
        let calls = (0..30).map(|number| {
            let body = json!({"kind": "metrics.collect", "reason": number.to_string(), "queue_for_seconds": 60});
            let device = if number % 3 == 1 { scene.other_device } else { scene.device };
            let call = call(&scene, &scene.operator, device, body);
            if number % 3 == 2 { call.header("idempotency-key", "used") } else { call }.send()
        });
        for (number, answer) in futures_util::future::join_all(calls).await.into_iter().enumerate() {
            match number % 3 {
                0 => assert_eq!(answer.expect(StatusCode::CREATED)["reason"], number.to_string()),
                1 => assert_eq!(answer.expect_problem(Kind::GrantRequired)["reason"], "none"),
                _ => drop(answer.expect_problem(Kind::IdempotencyConflict)),
            }
        }
        let audited = scene.audited(scene.tenant).await;
        assert_eq!(audited.iter().filter(|action| *action == "command.created").count(), 11);
        assert_eq!(scene.audited(scene.other_tenant).await, ["command.refused"; 10]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn reads_instructions_strictly(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.link(scene.device).await;
        scene.grant(json!({})).await;
        let cases = [
            (json!({"kind": "device.melt", "reason": "r"}), Kind::Unprocessable),
            (json!({"kind": "service.restart", "arguments": {"service": "a;b"}, "reason": "r"}), Kind::Unprocessable),
            (json!({"kind": "service.restart", "reason": "r"}), Kind::BadRequest),
            (json!({"kind": "device.reboot", "arguments": {"force": true}, "reason": "r"}), Kind::BadRequest),
            (json!({"kind": "device.reboot", "reason": ""}), Kind::Unprocessable),
            (json!({"kind": "device.reboot", "reason": "\u{1b}[2J"}), Kind::Unprocessable),
            (json!({"kind": "device.reboot"}), Kind::BadRequest),
            (json!({"kind": "device.reboot", "reason": "r", "sudo": true}), Kind::BadRequest),
        ];
        for (body, kind) in cases {
            call(&scene, &scene.operator, scene.device, body).send().await.expect_problem(kind);
        }
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_device_that_polls_is_told_what_runs_that_way_and_when(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.grant(json!({"duration_seconds": 7200})).await;
        scene.poll(scene.device).await;
        let collect =
            |queue: Option<u64>| json!({"kind": "metrics.collect", "reason": "look", "queue_for_seconds": queue});
        let asked = async |body: Value| call(&scene, &scene.operator, scene.device, body).send().await;

        // What does not run by polling is refused at once, also if it could wait.
        let queued = json!({"kind": "device.reboot", "reason": "it hangs", "queue_for_seconds": 86400});
        let restart = json!({"kind": "service.restart", "arguments": {"service": "nginx"}, "reason": "r"});
        for body in [reboot(), queued, restart, json!({"kind": "device.shutdown", "reason": "r"})] {
            let refused = asked(body).await;
            let problem = refused.expect_problem(Kind::Polling);
            assert!(problem["detail"].as_str().unwrap().contains("is not run that way"), "{problem}");
        }
        let problem = asked(collect(None)).await.expect_problem(Kind::Polling);
        assert!(problem["detail"].as_str().unwrap().contains("queue_for_seconds"), "{problem}");
        let refused = scene.audited(scene.tenant).await.iter().filter(|action| *action == "command.refused").count();
        assert_eq!(refused, 5);

        let made = asked(collect(Some(3600))).await.expect(StatusCode::CREATED).clone();
        assert!(made["runs_by"].as_str() > made["created_at"].as_str(), "{made}");
        let path = format!("/commands/{}", made["id"].as_str().unwrap());
        let shown = scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!(shown["runs_by"], made["runs_by"]);
        // It may be over by the time of the next poll.
        assert_eq!(asked(collect(Some(60))).await.expect(StatusCode::CREATED)["runs_by"], Value::Null);

        scene.link(scene.device).await;
        let shown = scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!(shown["runs_by"], Value::Null, "the link takes it");
        assert_eq!(asked(reboot()).await.expect(StatusCode::CREATED)["state"], "queued");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_busy_device_takes_what_does_not_disturb_and_the_rest_only_by_an_override(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        scene.link(scene.device).await;
        scene.grant(json!({"scopes": ["device:reboot", "metrics:read", "service:restart"]})).await;
        let lock = |seconds: i64| {
            format!(
                "insert into busy_locks select id, tenant_id, 'writing the day''s results', now() - interval '1 hour',
                        now() + make_interval(secs => {seconds}) from devices where id = $1
                     on conflict (device_id) do update set until = excluded.until"
            )
        };
        let busy = async |seconds| {
            let statement = sqlx::AssertSqlSafe(lock(seconds));
            sqlx::query(statement).bind(scene.device.as_uuid()).execute(&scene.root).await.unwrap();
        };
        let ask = async |body: Value| call(&scene, &scene.operator, scene.device, body).send().await;

        busy(3600).await;
        let patient = json!({"kind": "device.reboot", "reason": "r", "queue_for_seconds": 60});
        let restart = json!({"kind": "service.restart", "arguments": {"service": "nginx"}, "reason": "r"});
        for body in [reboot(), patient, restart] {
            let problem = ask(body).await.expect_problem(Kind::DeviceBusy);
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains("writing the day's results") && detail.contains("override_busy"), "{detail}");
        }
        ask(json!({"kind": "metrics.collect", "reason": "r"})).await.expect(StatusCode::CREATED);
        let path = format!("/devices/{}", scene.device);
        let shown = scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!(shown["busy_lock"]["reason"], "writing the day's results");

        // The override is a permission of its own, and is written down.
        let mut forced = reboot();
        forced["override_busy"] = true.into();
        let refused = ask(forced.clone()).await;
        assert_eq!(refused.expect_problem(Kind::GrantRequired)["reason"], "scope");
        scene.grant(json!({"scopes": ["device:reboot", "busy:override"]})).await;
        ask(reboot()).await.expect_problem(Kind::DeviceBusy);
        assert_eq!(ask(forced).await.expect(StatusCode::CREATED)["override_busy"], true);
        let overridden: Option<String> = sqlx::query_scalar(
            "select entry::jsonb #>> '{details,override_busy}' from audit where action = 'command.created' order by seq desc limit 1",
        )
        .fetch_one(&scene.root)
        .await
        .unwrap();
        assert_eq!(overridden.as_deref(), Some("true"));
        let missing: i64 = sqlx::query_scalar(
            "select count(*) from audit where action = 'command.refused' and entry::jsonb #>> '{details,missing}' = 'busy'",
        )
        .fetch_one(&scene.root)
        .await
        .unwrap();
        assert_eq!(missing, 4);

        // A lock that is over is none.
        busy(-1).await;
        assert_eq!(ask(reboot()).await.expect(StatusCode::CREATED)["override_busy"], false);
        let shown = scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!(shown["busy_lock"], Value::Null);
    }
}
