//! `GET /support-sessions/{id}/recording`: what is known of it.

use axum::extract::State;
use cloudlink_proto::ids::{PersonId, SupportSessionId};

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::recording::Recording;
use crate::store::recording::recording_show;

/// The recording of one session
#[utoipa::path(get, path = "/support-sessions/{id}/recording", operation_id = "recording_show", tag = "recordings",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Recording)))]
#[tracing::instrument(name = "http.recording.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<Recording>, Problem> {
    let seen_by = caller.operator().map(PersonId::from_uuid);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let recording = recording_show(&mut transaction, SupportSessionId::from_uuid(id), seen_by).await?;
    Ok(Json(recording.ok_or_else(Problem::not_found)?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;
    use crate::recording::tests::{begin, session};

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn tells_where_it_stands_to_those_who_may_see_it(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let session = session(&scene, "terminal").await;
        let path = format!("/support-sessions/{session}/recording");
        scene.get(&path).by(&scene.admin).send().await.expect_problem(Kind::NotFound);

        let recorder = begin(&scene, session).await;
        let shown = scene.get(&path).by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!((&shown["state"], &shown["digest"]), (&json!("recording"), &json!(null)));
        let recorded = recorder.finish(Duration::ZERO).await.unwrap();
        for somebody in [&scene.operator, &scene.customer, &scene.admin] {
            let shown = scene.get(&path).by(somebody).send().await.expect(StatusCode::OK);
            assert_eq!((&shown["state"], &shown["bytes"]), (&json!("finished"), &json!(recorded.bytes)));
            assert_eq!((&shown["kind"], &shown["format"]), (&json!("terminal"), &json!("asciicast-v2")));
            assert_eq!(shown["digest"].as_str().unwrap().len(), 64);
        }
        for somebody in [&scene.colleague, &scene.other_customer] {
            scene.get(&path).by(somebody).send().await.expect_problem(Kind::NotFound);
        }
    }
}
