//! `GET /commands/{id}/events`: how a command stands now, and each change, until it is over. Server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use cloudlink_proto::ids::CommandId;
use futures_util::{Stream, stream};
use http::HeaderName;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::command_event::{SubscribeError, Subscription};
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Id, NoQuery};
use crate::http::token_watch::Watched;
use crate::model::command::Command;
use crate::store::StoreError;
use crate::store::command::command_show;

/// Keeps proxies from cutting a quiet stream.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);
/// When to come back after too many streams.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Keeps a proxy from collecting events before it passes them on.
static ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no such command")]
    Unknown,
    #[error(transparent)]
    Subscribe(#[from] SubscribeError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Unknown => Self::not_found(),
            RouteError::Subscribe(error) => {
                let detail = format!("There is no further stream: {error}. Close others, or read the command instead.");
                Self::new(Kind::TooManyRequests, detail).retry_after(RETRY_AFTER)
            }
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Follow a command
///
/// Each event is named `command`, its data is the command as JSON. The first comes at once; the stream ends after the
/// one with a final state, and when the server stops: then ask again.
#[utoipa::path(get, path = "/commands/{id}/events", operation_id = "command_event", tag = "commands",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Command, content_type = "text/event-stream")))]
#[tracing::instrument(name = "http.command.event", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Response, RouteError> {
    let id = CommandId::from_uuid(id);
    // First the place among those who are woken, then the look: no change falls between the two.
    let subscription = context.hub.subscribe(id, caller.person(), caller.tenant())?;
    let token = context.tokens.watch(caller.session());
    let command = read(&context, &caller, id).await?.ok_or(RouteError::Unknown)?;
    let follower = Follower { context, caller, id, subscription, shown: None, next: Some(command), token };
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE_EVERY);
    Ok(([(ACCEL_BUFFERING.clone(), "no")], Sse::new(follower.events()).keep_alive(keep_alive)).into_response())
}

async fn read(context: &Context, caller: &Caller, id: CommandId) -> Result<Option<Command>, StoreError> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    command_show(&mut transaction, id).await
}

/// One stream.
struct Follower {
    context: Context,
    caller: Caller,
    id: CommandId,
    subscription: Subscription,
    shown: Option<Command>,
    /// To be shown without waiting.
    next: Option<Command>,
    token: Watched,
}

impl Follower {
    fn events(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, |mut follower| async move {
            let command = follower.advance().await?;
            let event = Event::default().event("command").data(to_json(&command));
            follower.shown = Some(command);
            Some((Ok(event), follower))
        })
    }

    /// The next state to show; `None` at the end.
    async fn advance(&mut self) -> Option<Command> {
        if let Some(command) = self.next.take() {
            return Some(command);
        }
        let stopping = self.context.stopping.clone();
        while !self.is_over() {
            tokio::select! {
                () = self.subscription.wait() => {}
                () = stopping.cancelled() => return None,
                _ = self.token.over() => return None,
            }
            match self.look().await {
                Ok(Look::Changed(command)) => return Some(*command),
                Ok(Look::Same) => {}
                Ok(Look::NoMore) => return None,
                // The database comes back, and with it the timer: the stream stays.
                Err(error) if error.is_retryable() => {}
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "stream of events failed");
                    return None;
                }
            }
        }
        None
    }

    fn is_over(&self) -> bool {
        self.shown.as_ref().is_some_and(|command| command.state.is_final())
    }

    async fn look(&self) -> Result<Look, StoreError> {
        let command = read(&self.context, &self.caller, self.id).await?;
        Ok(match command {
            None => Look::NoMore,
            Some(command) if self.shown.as_ref() == Some(&command) => Look::Same,
            Some(command) => Look::Changed(Box::new(command)),
        })
    }
}

enum Look {
    Changed(Box<Command>),
    Same,
    /// The command, or the right to see it, is gone.
    NoMore,
}

fn to_json(command: &Command) -> String {
    serde_json::to_string(command).expect("a command has string keys only")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::BodyDataStream;
    use axum::response::Response;
    use cloudlink_proto::ids::CommandId;
    use futures_util::StreamExt;
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    use uuid::Uuid;

    use crate::bus::Hint;
    use crate::http::Settings;
    use crate::http::problem::Kind;
    use crate::http::testing::{Scene, Somebody, create_somebody};
    use crate::model::person::Role;

    /// Longer than any test takes, or shorter than any.
    const NEVER: Duration = Duration::from_secs(3600);
    const SOON: Duration = Duration::from_millis(20);

    struct Events(BodyDataStream);

    impl Events {
        fn of(response: Response) -> Self {
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.headers()["content-type"], "text/event-stream");
            Self(response.into_body().into_data_stream())
        }

        /// The next command; `None` at the end of the stream.
        async fn next(&mut self) -> Option<Value> {
            let chunk =
                tokio::time::timeout(Duration::from_secs(10), self.0.next()).await.expect("no event in time")?;
            let text = String::from_utf8(chunk.unwrap().to_vec()).unwrap();
            let data = text.lines().find_map(|line| line.strip_prefix("data: ")).expect("data");
            assert!(text.lines().any(|line| line == "event: command"), "{text}");
            Some(serde_json::from_str(data).unwrap())
        }
    }

    async fn scene_with_command(
        pool: PgPoolOptions,
        database: PgConnectOptions,
        recheck_every: Duration,
    ) -> (Scene, Uuid) {
        let settings =
            Settings { stream_recheck_every: recheck_every, streams_per_person_max: 2, ..Settings::default() };
        let scene = Scene::with_settings(pool, database, settings).await;
        scene.grant(json!({})).await;
        let id = scene.command(json!({})).await;
        (scene, id)
    }

    async fn follow(scene: &Scene, somebody: &Somebody, id: Uuid) -> Response {
        scene.get(&format!("/commands/{id}/events")).by(somebody).open().await
    }

    const SENT: &str = "update commands set state = 'sent', sent_at = now() where id = $1";
    const DONE: &str = "update commands set state = 'succeeded', deadline_at = null, finished_at = now() where id = $1";

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn shows_each_change_until_the_command_is_over(pool: PgPoolOptions, database: PgConnectOptions) {
        let (scene, id) = scene_with_command(pool, database, NEVER).await;
        let hub = tokio::spawn(scene.context.clone().follow_hints());
        let mut events = Events::of(follow(&scene, &scene.customer, id).await);
        assert_eq!(events.next().await.unwrap()["state"], "queued");
        for (statement, state) in [(SENT, "sent"), (DONE, "succeeded")] {
            scene.sql(statement, id).await;
            scene.bus.send(Hint::CommandChanged(CommandId::from_uuid(id)));
            assert_eq!(events.next().await.unwrap()["state"], state);
        }
        assert_eq!(events.next().await, None);
        // Whoever comes later sees how it ended.
        let mut events = Events::of(follow(&scene, &scene.operator, id).await);
        assert_eq!(events.next().await.unwrap()["state"], "succeeded");
        assert_eq!(events.next().await, None);
        scene.stopping.cancel();
        hub.await.unwrap();
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn needs_no_hint(pool: PgPoolOptions, database: PgConnectOptions) {
        let (scene, id) = scene_with_command(pool, database, SOON).await;
        let mut events = Events::of(follow(&scene, &scene.operator, id).await);
        assert_eq!(events.next().await.unwrap()["state"], "queued");
        scene.sql(DONE, id).await;
        assert_eq!(events.next().await.unwrap()["state"], "succeeded");
        assert_eq!(events.next().await, None);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn ends_when_the_node_stops(pool: PgPoolOptions, database: PgConnectOptions) {
        let (scene, id) = scene_with_command(pool, database, NEVER).await;
        let mut events = Events::of(follow(&scene, &scene.operator, id).await);
        assert_eq!(events.next().await.unwrap()["state"], "queued");
        scene.stopping.cancel();
        assert_eq!(events.next().await, None);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn streams_of_a_person_are_bounded(pool: PgPoolOptions, database: PgConnectOptions) {
        let (scene, id) = scene_with_command(pool, database, NEVER).await;
        let first = follow(&scene, &scene.operator, id).await;
        let _second = follow(&scene, &scene.operator, id).await;
        let path = format!("/commands/{id}/events");
        let refused = scene.get(&path).by(&scene.operator).send().await;
        refused.expect_problem(Kind::TooManyRequests);
        assert_eq!(refused.header("retry-after"), "6");
        assert_eq!(follow(&scene, &scene.customer, id).await.status(), StatusCode::OK);
        drop(first);
        assert_eq!(follow(&scene, &scene.operator, id).await.status(), StatusCode::OK);
        scene.get(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn ends_within_a_second_with_its_token_or_its_person(pool: PgPoolOptions, database: PgConnectOptions) {
        let (scene, id) = scene_with_command(pool, database, NEVER).await;
        let hub = tokio::spawn(scene.context.clone().follow_hints());
        let statements = [
            "update api_tokens set revoked_at = clock_timestamp() where id = $1",
            "update api_tokens set revoked_at = null, expires_at = clock_timestamp() where id = $1",
            "update people set active = false where id = (select person_id from api_tokens where id = $1)",
        ];
        for (number, statement) in statements.into_iter().enumerate() {
            let name = format!("watcher {number}");
            let watcher = create_somebody(&scene.store, &name, Role::Tenant, Some(scene.tenant)).await;
            let mut events = Events::of(follow(&scene, &watcher, id).await);
            let mut others = Events::of(follow(&scene, &scene.customer, id).await);
            assert_eq!(events.next().await.unwrap()["state"], "queued");
            assert_eq!(others.next().await.unwrap()["state"], "queued");
            // Without a hint, as when another node did it.
            scene.sql(statement, watcher.token_id.as_uuid()).await;
            let end = tokio::time::timeout(Duration::from_secs(1), events.next()).await;
            assert_eq!(end.expect("the stream goes on"), None, "{statement}");
            let others = tokio::time::timeout(Duration::from_millis(100), others.next()).await;
            assert!(others.is_err(), "others are not concerned");
        }
        scene.stopping.cancel();
        hub.await.unwrap();
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn ends_when_its_person_is_shut_out_through_the_api(pool: PgPoolOptions, database: PgConnectOptions) {
        let (scene, id) = scene_with_command(pool, database, NEVER).await;
        let hub = tokio::spawn(scene.context.clone().follow_hints());
        let mut events = Events::of(follow(&scene, &scene.colleague, id).await);
        assert_eq!(events.next().await.unwrap()["state"], "queued");
        let shut_out = scene.patch(&format!("/people/{}", scene.colleague.id)).by(&scene.admin);
        shut_out.json(json!({"active": false})).send().await.expect(StatusCode::OK);
        let end = tokio::time::timeout(Duration::from_secs(1), events.next()).await;
        assert_eq!(end.expect("the stream goes on"), None);
        scene.stopping.cancel();
        hub.await.unwrap();
    }
}
