//! `POST /nodes/{name}/drain`: its devices connect to other nodes. Done by that node, to which the request is passed on.

use std::ops::RangeInclusive;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::show::show;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::pass_on::pass_on;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Json, Kept, Name, NoQuery};
use crate::model::audit::{PLATFORM, Subject};
use crate::model::node::Node;
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::node::{node_drain, node_others_stay_in_txn};

const WITHIN_SECONDS_DEFAULT: u32 = 300;
const WITHIN_SECONDS: RangeInclusive<u32> = 5..=86_400;

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeDrain {
    /// When the last device is to be gone: 5 to 86,400, 300 if not said. Devices that have no other link by then lose theirs.
    within_seconds: Option<u32>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no such time")]
    Within,
    #[error("no such node")]
    Unknown,
    #[error("it holds no lease")]
    Gone,
    #[error("nobody would take its devices")]
    Alone,
    #[error("another node alone can do this")]
    Elsewhere,
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Within => {
                let (least, most) = WITHIN_SECONDS.into_inner();
                Self::unprocessable(format!("`within_seconds` must be {least} to {most}."))
            }
            RouteError::Unknown => Self::not_found(),
            RouteError::Gone => Self::new(
                Kind::Conflict,
                "The node holds no lease: it was stopped, it has died, or it does not reach the database.",
            ),
            RouteError::Alone => Self::new(
                Kind::Conflict,
                "No other node would take its devices: it is the only one, or all others are drained as well. To restart it, stop it: it tells each device when to come back.",
            ),
            RouteError::Elsewhere => Self::new(
                Kind::Unavailable,
                "That node alone can do this, and this one has no way to it: ask it directly.",
            ),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Send a node's devices to other nodes
///
/// 202: it has begun. `/readyz` of the node says at once that nobody new is wanted; after `shutdown.notice_seconds` no new links are
/// taken, and each device is told to connect elsewhere, and keeps its link until it has. Support sessions go on. Asked again, it
/// goes on with the new time.
#[utoipa::path(post, path = "/nodes/{name}/drain", operation_id = "node_drain", tag = "nodes",
    params(("name" = String, Path)), request_body = NodeDrain, responses((status = 202, body = Node)))]
#[tracing::instrument(name = "http.node.drain", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Name(name): Name,
    _: NoQuery,
    Kept { json: Json(request), request: whole }: Kept<NodeDrain>,
) -> Result<Response, RouteError> {
    let within_seconds = request.within_seconds.unwrap_or(WITHIN_SECONDS_DEFAULT);
    if !WITHIN_SECONDS.contains(&within_seconds) {
        return Err(RouteError::Within);
    }
    let Some(node) = context.node.as_ref().filter(|node| node.name == name) else {
        show(&context, &caller, &name).await?.ok_or(RouteError::Unknown)?;
        return Ok(pass_on(&context, &name, whole).await.ok_or(RouteError::Elsewhere)??);
    };
    let within = Duration::from_secs(within_seconds.into());
    let mut transaction = context.store.begin(caller.visibility()).await?;
    if !node_others_stay_in_txn(&mut transaction, &name).await? {
        return Err(RouteError::Alone);
    }
    let instance = node_drain(&mut transaction, &name, within).await?.ok_or(RouteError::Gone)?;
    let (subject, details) = (Subject::new("node", instance), json!({"node": name, "within_seconds": within_seconds}));
    audit_append(&mut transaction, PLATFORM, &caller.actor(), "node.drained", subject, details).await?;
    context.store.commit(transaction).await?;
    node.drain.begin(within);
    let shown = show(&context, &caller, &name).await?.ok_or(RouteError::Unknown)?;
    Ok((StatusCode::ACCEPTED, Json(shown)).into_response())
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn administrators_alone_see_nodes_and_drain_them(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let insert = "insert into nodes (name, instance, life, version, lease, leased_until, draining_since)
             values ($1, gen_random_uuid(), gen_random_uuid(), '1', '1 hour', now() + $2::interval, $3::timestamptz)";
        for (name, left, draining_since) in [
            ("a", "1 hour", None),
            ("b", "-1 minute", None),
            ("c", "-2 days", None),
            ("d", "1 hour", Some("2100-01-01")),
        ] {
            let query = sqlx::query(insert).bind(name).bind(left).bind(draining_since);
            query.execute(&scene.root).await.unwrap();
        }
        let page = scene.get("/nodes").by(&scene.admin).send().await.expect(StatusCode::OK);
        let shown: Vec<_> =
            page["items"].as_array().unwrap().iter().map(|node| [&node["name"], &node["state"]]).collect();
        assert_eq!(json!(shown), json!([["a", "serving"], ["b", "gone"], ["d", "drained"]]));
        let shown = scene.get("/nodes/c").by(&scene.admin).send().await.expect(StatusCode::OK);
        assert_eq!((&shown["state"], &shown["links"], &shown["is_asked"]), (&json!("gone"), &json!(0), &json!(false)));

        let drain =
            |somebody, name: &str, body| scene.post(&format!("/nodes/{name}/drain")).by(somebody).json(body).send();
        drain(&scene.operator, "a", json!({})).await.expect_problem(Kind::Forbidden);
        drain(&scene.customer, "a", json!({})).await.expect_problem(Kind::Forbidden);
        drain(&scene.admin, "nobody", json!({})).await.expect_problem(Kind::NotFound);
        drain(&scene.admin, "a", json!({"within_seconds": 4})).await.expect_problem(Kind::Unprocessable);
        drain(&scene.admin, "a", json!({"within": 4})).await.expect_problem(Kind::BadRequest);
        drain(&scene.admin, "a", json!({})).await.expect_problem(Kind::Unavailable);
        let resume = scene.post("/nodes/a/resume").by(&scene.admin).json(json!({})).send().await;
        resume.expect_problem(Kind::Unavailable);
        scene.get("/nodes").by(&scene.customer).send().await.expect_problem(Kind::Forbidden);
    }
}
