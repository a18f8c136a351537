//! `GET /events`: which kinds of things may have changed of what the caller may see. Server-sent events, for whoever shows them.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use http::HeaderName;
use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, interval_at, sleep_until};

use crate::clock;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::command_event::{Place, SubscribeError};
use crate::http::feed::Heads;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::NoQuery;
use crate::http::token_watch::Watched;
use crate::store::audit::audit_topics;
use crate::store::{StoreError, single};

/// Between two beats: whoever hears none for longer knows that what it shows may be old.
const BEAT_EVERY: Duration = Duration::from_secs(10);
/// Between two events of a tenant's stream; of one that sees every tenant, where there is always something.
const APART: Duration = Duration::from_millis(500);
const APART_OF_ALL: Duration = Duration::from_secs(2);
/// When to come back after too many streams.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Keeps a proxy from collecting events before it passes them on.
static ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What changes by itself and has no entry in the audit log: said with each beat.
const BY_ITSELF: [&str; 4] = ["alerts", "commands", "devices", "nodes"];
/// The kinds, by the first word of the actions that change them.
const KINDS: [(&str, &[&str]); 20] = [
    ("access_policy", &["access_policies"]),
    ("access_request", &["access_requests", "grants"]),
    ("command", &["commands"]),
    ("configuration", &["configurations", "devices"]),
    ("configuration_document", &["configurations", "devices"]),
    ("configuration_schema", &["configurations"]),
    ("device", &["devices"]),
    ("enrollment_token", &["enrollment_tokens"]),
    ("grant", &["grants", "access_requests"]),
    ("group", &["groups"]),
    ("node", &["nodes"]),
    ("opening", &["openings"]),
    ("person", &["people"]),
    ("recording", &["recordings"]),
    ("rollout", &["rollouts"]),
    ("signing_key", &["signing_keys"]),
    ("support_session", &["support_sessions"]),
    ("tenant", &["tenants"]),
    ("threshold", &["alerts", "thresholds"]),
    ("webhook", &["webhooks"]),
];
/// Said whenever there is any entry.
const ALWAYS: [&str; 2] = ["audit", "tokens"];

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct RouteError(#[from] SubscribeError);

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(RouteError(error): RouteError) -> Self {
        let detail = format!("There is no further stream: {error}. Close others, or ask now and then instead.");
        Self::new(Kind::TooManyRequests, detail).retry_after(RETRY_AFTER)
    }
}

/// What an event says.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "for the document: what is sent is put together below")]
pub(crate) enum Happening {
    /// Of `hello` and `beat`.
    Now {
        /// The server's time.
        now: String,
    },
    /// Of `changed`.
    Changed { kinds: Vec<String> },
}

/// Follow what changes
///
/// Begins with `hello`; `changed` names the kinds of things of which some may have changed (`devices`, `grants`, …): ask for those that you show.
/// `beat` comes every 10 s. Nothing is sent again: after a reconnect, ask for everything that you show. Ends with the token, and when the server stops.
#[utoipa::path(get, path = "/events", operation_id = "event_stream", tag = "events",
    responses((status = 200, body = Happening, content_type = "text/event-stream")))]
#[tracing::instrument(name = "http.event.stream", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
) -> Result<Response, RouteError> {
    let place = context.hub.place(caller.person(), caller.tenant())?;
    let token = context.tokens.watch(caller.session());
    let now = Instant::now();
    let heads = context.feed.listen();
    let seen = heads.borrow().of(caller.tenant());
    let follower = Follower {
        heads,
        beat: interval_at(now + BEAT_EVERY, BEAT_EVERY),
        has_begun: false,
        seen,
        pending: false,
        not_before: now,
        context,
        caller,
        token,
        _place: place,
    };
    Ok(([(ACCEL_BUFFERING.clone(), "no")], Sse::new(follower.events())).into_response())
}

/// One stream.
struct Follower {
    context: Context,
    caller: Caller,
    token: Watched,
    heads: watch::Receiver<Heads>,
    beat: Interval,
    has_begun: bool,
    /// How far the audit log had come when it was last told of.
    seen: Option<i64>,
    /// There is something to tell, after [`Self::not_before`].
    pending: bool,
    not_before: Instant,
    _place: Place,
}

impl Follower {
    fn events(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, |mut follower| async move { Some((Ok(follower.advance().await?), follower)) })
    }

    /// The next event; `None` at the end.
    async fn advance(&mut self) -> Option<Event> {
        if !std::mem::replace(&mut self.has_begun, true) {
            return Some(at_this_time("hello"));
        }
        let stopping = self.context.stopping.clone();
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => return None,
                _ = self.token.over() => return None,
                _ = self.beat.tick() => {
                    self.pending = true;
                    return Some(at_this_time("beat"));
                }
                moved = self.heads.changed() => {
                    moved.ok()?;
                    // Of another tenant's, nothing is told: not even that there was something.
                    let head = self.heads.borrow_and_update().of(self.caller.tenant());
                    self.pending |= head != self.seen;
                }
                () = sleep_until(self.not_before), if self.pending => {
                    self.pending = false;
                    let apart = if self.caller.tenant().is_some() { APART } else { APART_OF_ALL };
                    self.not_before = Instant::now() + apart;
                    return Some(changed(&self.kinds().await));
                }
            }
        }
    }

    /// What may have changed since the last call.
    async fn kinds(&mut self) -> BTreeSet<&'static str> {
        let tenant = self.caller.tenant();
        let head = self.heads.borrow().of(tenant);
        let before = self.seen;
        self.seen = head.or(before);
        let mut kinds = BTreeSet::from(BY_ITSELF);
        match (tenant, before) {
            _ if head.is_none() || head == before => {}
            (Some(tenant), Some(before)) => {
                let store = &self.context.store;
                let topics = async { single!(store, |connection| audit_topics(connection, tenant, before)) };
                kinds.extend(kinds_of(store.within(topics).await));
            }
            // Whatever it was: what everybody does is not looked through for each who may see all of it.
            (_, None) | (None, Some(_)) => kinds.extend(all()),
        }
        kinds
    }
}

fn all() -> impl Iterator<Item = &'static str> {
    KINDS.into_iter().flat_map(|(_, kinds)| kinds.iter().copied()).chain(ALWAYS)
}

/// All of them where it is not known.
fn kinds_of(topics: Result<Vec<String>, StoreError>) -> BTreeSet<&'static str> {
    let Ok(topics) = topics else { return all().collect() };
    let known = |topic: &String| KINDS.into_iter().find(|(name, _)| name == topic).map_or(&[][..], |(_, kinds)| kinds);
    topics.iter().flat_map(known).copied().chain(ALWAYS).collect()
}

fn changed(kinds: &BTreeSet<&'static str>) -> Event {
    Event::default().event("changed").data(json!({ "kinds": kinds }).to_string())
}

fn at_this_time(name: &str) -> Event {
    let now: OffsetDateTime = clock::now();
    let now = now.format(&Rfc3339).unwrap_or_default();
    Event::default().event(name).data(json!({ "now": now }).to_string())
}

#[cfg(test)]
mod tests {
    use axum::body::BodyDataStream;
    use axum::response::Response;
    use futures_util::StreamExt;
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    use tokio::time::timeout;

    use super::*;
    use crate::http::Settings;
    use crate::http::testing::{Scene, Somebody};

    /// Longer than a stream may be late, and shorter than it is between two beats.
    const SOON: Duration = Duration::from_secs(5);

    struct Events(BodyDataStream);

    impl Events {
        async fn of(scene: &Scene, somebody: &Somebody) -> Self {
            let mut events = Self::opened(scene.get("/events").by(somebody).open().await);
            assert_eq!(events.next().await.unwrap().0, "hello");
            events
        }

        fn opened(response: Response) -> Self {
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.headers()["content-type"], "text/event-stream");
            assert_eq!(response.headers()["cache-control"], "no-store");
            Self(response.into_body().into_data_stream())
        }

        /// Name and data; `None` at the end.
        async fn next(&mut self) -> Option<(String, Value)> {
            let chunk = timeout(Duration::from_secs(15), self.0.next()).await.expect("no event in time")?;
            let text = String::from_utf8(chunk.unwrap().to_vec()).unwrap();
            let member = |name| text.lines().find_map(|line| line.strip_prefix(name)).expect("both").to_owned();
            Some((member("event: "), serde_json::from_str(&member("data: ")).unwrap()))
        }

        /// Whether this is told soon.
        async fn tell(&mut self, kind: &str) -> bool {
            let told = async {
                loop {
                    let (name, data) = self.next().await.expect("the stream goes on");
                    if name == "changed" && data["kinds"].as_array().unwrap().contains(&json!(kind)) {
                        return;
                    }
                }
            };
            timeout(SOON, told).await.is_ok()
        }

        /// Waits until it has told all there was.
        async fn settle(&mut self) {
            while let Ok(event) = timeout(2 * APART, self.0.next()).await {
                event.expect("the stream goes on").unwrap();
            }
        }
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn tells_what_changed_and_a_tenant_only_of_its_own(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.second_customer().await;
        let hub = tokio::spawn(scene.context.clone().follow_hints());
        let mut own = Events::of(&scene, &scene.customer).await;
        let mut others = Events::of(&scene, &scene.other_customer).await;
        let mut everybodys = Events::of(&scene, &scene.operator).await;
        // What each shows first is asked for, so everything that there is may be said once.
        scene.access_request(json!({})).await;
        assert!(own.tell("access_requests").await && everybodys.tell("access_requests").await);
        others.settle().await;
        own.settle().await;
        scene.grant(json!({})).await;
        assert!(own.tell("grants").await && everybodys.tell("grants").await);
        assert_eq!(others.next().await.unwrap().0, "beat", "a tenant hears when something happens in another's house");
        scene.stopping.cancel();
        hub.await.unwrap();
        while own.next().await.is_some() {}
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_beat_comes_when_nothing_happens(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let mut events = Events::of(&scene, &scene.customer).await;
        let (name, data) = events.next().await.unwrap();
        assert_eq!(name, "beat");
        assert!(data["now"].as_str().unwrap().starts_with("20"), "{data}");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn ends_with_its_token_and_takes_a_place(pool: PgPoolOptions, database: PgConnectOptions) {
        let settings = Settings { streams_per_person_max: 1, ..Settings::default() };
        let scene = Scene::with_settings(pool, database, settings).await;
        let hub = tokio::spawn(scene.context.clone().follow_hints());
        let mut events = Events::of(&scene, &scene.customer).await;
        scene.get("/events").by(&scene.customer).send().await.expect_problem(Kind::TooManyRequests);
        let revoke = "update api_tokens set revoked_at = clock_timestamp() where id = $1";
        scene.sql(revoke, scene.customer.token_id.as_uuid()).await;
        let ended = async { while events.next().await.is_some() {} };
        timeout(SOON, ended).await.expect("the stream ends with its token");
        scene.stopping.cancel();
        hub.await.unwrap();
    }
}
