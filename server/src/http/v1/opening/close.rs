//! `POST /openings/{id}/close`: by the operator who opened it, or by the device's owner. Closing again changes nothing.

use axum::extract::State;
use cloudlink_proto::ids::OpeningId;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::model::opening::{EndReason, Opening};
use crate::store::StoreError;
use crate::store::opening::{Closing, opening_end_in_txn, opening_lock_in_txn, opening_show};

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no such opening")]
    Unknown,
    #[error("somebody else opened it")]
    Foreign,
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Unknown => Self::not_found(),
            RouteError::Foreign => Self::new(
                Kind::Forbidden,
                "Another operator opened it. Ask that one, or the device's owner, to close it.",
            ),
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Close a port before its time
#[utoipa::path(post, path = "/openings/{id}/close", operation_id = "opening_close", tag = "openings",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Opening)))]
#[tracing::instrument(name = "http.opening.close", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<Opening>, RouteError> {
    let id = OpeningId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let opening = opening_show(&mut transaction, id).await?.ok_or(RouteError::Unknown)?;
    if caller.operator().is_some_and(|operator| operator != opening.opened_by) {
        return Err(RouteError::Foreign);
    }
    let open = opening_lock_in_txn(&mut transaction, Closing::One(id)).await?;
    let actor = caller.actor().to_json();
    let ended = opening_end_in_txn(&mut transaction, &open, actor, EndReason::Closed).await?;
    let opening = opening_show(&mut transaction, id).await?.ok_or(RouteError::Unknown)?;
    context.store.commit(transaction).await?;
    context.tell_ended(&ended);
    Ok(Json(opening))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::bus::{Heard, Hint};
    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn whoever_opened_it_and_the_owner_may_close_it(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.tunnel(scene.device).await;
        scene.grant(json!({"scopes": ["tcp:open"]})).await;
        for somebody in [&scene.operator, &scene.customer] {
            let path = format!("/openings/{}/close", scene.opening(json!({})).await);
            scene.post(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
            scene.post(&path).by(&scene.colleague).send().await.expect_problem(Kind::Forbidden);
            scene.post(&path).by(&scene.admin).send().await.expect_problem(Kind::Forbidden);
            let mut hints = scene.bus.listen();
            let closed = scene.post(&path).by(somebody).send().await.expect(StatusCode::OK);
            assert_eq!((&closed["state"], &closed["end_reason"]), (&json!("ended"), &json!("closed")));
            assert_eq!(hints.hear().await, Heard::Hint(Hint::OpeningsDue(scene.device)));
            assert_eq!(scene.post(&path).by(somebody).send().await.expect(StatusCode::OK), closed);
        }
        assert_eq!(
            scene.audited(scene.tenant).await,
            ["grant.created", "opening.created", "opening.closed", "opening.created", "opening.closed"]
        );
    }
}
