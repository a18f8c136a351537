//! `GET /isolation/proofs`: of all nodes, newest first.

use axum::extract::State;
use serde::Deserialize;
use time::OffsetDateTime;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::proof::{Outcome, Proof};
use crate::store::proof::{ProofFilter, proof_list};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProofQuery {
    node: Option<String>,
    outcome: Option<Outcome>,
    /// Begun at this time or later.
    #[serde(default, with = "time::serde::rfc3339::option")]
    from: Option<OffsetDateTime>,
    /// Begun before this time.
    #[serde(default, with = "time::serde::rfc3339::option")]
    to: Option<OffsetDateTime>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Proofs of isolation
#[utoipa::path(get, path = "/isolation/proofs", operation_id = "isolation_proof_list", tag = "isolation",
    params(ProofQuery), responses((status = 200, body = Page<Proof>)))]
#[tracing::instrument(name = "http.isolation_proof.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<ProofQuery>,
) -> Result<Json<Page<Proof>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let filter = ProofFilter { node: query.node, outcome: query.outcome, from: query.from, to: query.to };
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let proofs = proof_list(&mut transaction, &filter, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(proofs, |proof| (proof.started_at, proof.id))))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::Value;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;
    use crate::model::new_id;

    async fn outcomes(scene: &Scene, query: &str) -> Vec<Value> {
        let path = format!("/isolation/proofs{query}");
        let page = scene.get(&path).by(&scene.admin).send().await.expect(StatusCode::OK);
        page["items"].as_array().unwrap().iter().map(|proof| proof["outcome"].clone()).collect()
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn shows_the_newest_first_to_administrators(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let insert = "insert into isolation_proofs (id, node, trigger, started_at, finished_at, outcome, policy_hash, attempts, results)
             select $1, node, 'timer', at::timestamptz, at::timestamptz, outcome, sha256('p'), 1, '[]'
               from (values ('a', '2026-11-20T10:00Z', 'proven'), ('b', '2026-11-21T10:00Z', 'leak')) as v(node, at, outcome)
              where node = ";
        let (first, second) = (new_id(), new_id());
        for (id, node) in [(first, "'a'"), (second, "'b'")] {
            let sql = format!("{insert}{node}");
            sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).execute(&scene.root).await.unwrap();
        }
        assert_eq!(outcomes(&scene, "").await, ["leak", "proven"]);
        assert_eq!(outcomes(&scene, "?outcome=proven").await, ["proven"]);
        assert_eq!(outcomes(&scene, "?node=b").await, ["leak"]);
        assert_eq!(outcomes(&scene, "?from=2026-11-21T00:00:00Z").await, ["leak"]);
        assert_eq!(outcomes(&scene, "?to=2026-11-21T00:00:00Z").await, ["proven"]);
        let path = format!("/isolation/proofs/{second}");
        assert_eq!(scene.get(&path).by(&scene.admin).send().await.expect(StatusCode::OK)["node"], "b");
        let path = format!("/isolation/proofs/{}", new_id());
        scene.get(&path).by(&scene.admin).send().await.expect_problem(Kind::NotFound);
        scene.get("/isolation/proofs").by(&scene.customer).send().await.expect_problem(Kind::Forbidden);
    }
}
