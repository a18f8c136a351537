//! `GET /audit`: newest first.

use axum::extract::State;
use cloudlink_proto::ids::TenantId;
use serde::Deserialize;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{NumberWindow, Page};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::audit::AuditEntry;
use crate::store::audit::{AuditSought, audit_before, audit_head};

/// Entries that one request looks through for words: about 10 ms.
const LOOKED_THROUGH_MAX: i64 = 5_000;
/// Of what is looked for.
const CONTAINS_BYTES_MAX: usize = 256;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditQuery {
    /// Whose log. Left out: a tenant's user sees its own, an administrator the platform's.
    tenant_id: Option<Uuid>,
    /// Only entries that have each of these words, in whatever case. The newest 5,000 from the cursor on are looked through: a page may
    /// have few or none, and a cursor to go on with.
    contains: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// The audit log
#[utoipa::path(get, path = "/audit", operation_id = "audit_list", tag = "audit", params(AuditQuery),
    responses((status = 200, body = Page<AuditEntry>)))]
#[tracing::instrument(name = "http.audit.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<AuditQuery>,
) -> Result<Json<Page<AuditEntry>>, Problem> {
    let window = NumberWindow::new(query.limit, query.cursor.as_deref())?;
    let tenant = chain_for(&caller, query.tenant_id)?;
    let mut sought = AuditSought { before: window.before, after: 0, words: words_of(query.contains)? };
    let mut transaction = context.store.begin(caller.visibility()).await?;
    if !sought.words.is_empty() {
        let before = match sought.before {
            Some(before) => before,
            None => audit_head(&mut transaction, tenant).await?.saturating_add(1),
        };
        sought.after = before.saturating_sub(1).saturating_sub(LOOKED_THROUGH_MAX).max(0);
    }
    let entries = audit_before(&mut transaction, tenant, &sought, window.fetch_limit()).await?;
    Ok(Json(window.page_above(entries, |entry| entry.seq, sought.after)))
}

fn words_of(contains: Option<String>) -> Result<Vec<String>, Problem> {
    let contains = contains.unwrap_or_default();
    if contains.len() > CONTAINS_BYTES_MAX || contains.contains('\0') {
        return Err(Problem::bad_request(format!("`contains` may have {CONTAINS_BYTES_MAX} bytes, and no NUL.")));
    }
    Ok(contains.split_whitespace().map(str::to_owned).collect())
}

/// The chain that is asked for, if the caller may read it.
pub(super) fn chain_for(caller: &Caller, asked: Option<Uuid>) -> Result<TenantId, Problem> {
    let asked = asked.map_or(caller.chain(), TenantId::from_uuid);
    match caller.tenant() {
        Some(own) if own != asked => Err(Problem::not_found()),
        Some(_) | None => Ok(asked),
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn pages_through_ones_own_log(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        for _ in 0..3 {
            scene.grant(json!({})).await;
        }
        let page = scene.get("/audit?limit=2").by(&scene.customer).send().await.expect(StatusCode::OK);
        let seqs: Vec<_> = page["items"].as_array().unwrap().iter().map(|entry| entry["seq"].clone()).collect();
        assert_eq!(seqs, [3, 2]);
        let entry: Value = serde_json::from_str(page["items"][0]["entry"].as_str().unwrap()).unwrap();
        assert_eq!((&entry["action"], &entry["actor"]["name"]), (&json!("grant.created"), &json!("tina")));
        let path = format!("/audit?limit=2&cursor={}", page["next_cursor"].as_str().unwrap());
        let page = scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!((&page["items"][0]["seq"], &page["next_cursor"]), (&json!(1), &Value::Null));
        let path = format!("/audit?tenant_id={}", scene.tenant);
        assert_eq!(
            scene.get(&path).by(&scene.admin).send().await.expect(StatusCode::OK)["items"].as_array().unwrap().len(),
            3
        );
        scene.get(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
        assert_eq!(scene.get("/audit").by(&scene.admin).send().await.expect(StatusCode::OK)["items"], json!([]));
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn looks_for_words_part_by_part(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.grant(json!({ "reason": "the Boiler is cold" })).await;
        scene.grant(json!({ "reason": "the boiler leaks" })).await;
        let numbers = async |query: &str| {
            let page = scene.get(&format!("/audit?{query}")).by(&scene.customer).send().await.expect(StatusCode::OK);
            let items = page["items"].as_array().unwrap().iter().map(|entry| entry["seq"].as_i64().unwrap());
            (items.collect::<Vec<_>>(), page["next_cursor"].as_str().map(str::to_owned))
        };
        assert_eq!(numbers("contains=boiler").await, (vec![2, 1], None));
        assert_eq!(numbers("contains=BOILER+cold").await, (vec![1], None));
        assert_eq!(numbers("contains=%25").await, (vec![], None));
        assert_eq!(numbers("contains=+").await.0, [2, 1]);
        let (first, cursor) = numbers("contains=boiler&limit=1").await;
        assert_eq!(first, [2]);
        assert_eq!(numbers(&format!("contains=boiler&limit=1&cursor={}", cursor.unwrap())).await, (vec![1], None));
        // What is too far below the newest one is in another part.
        let noise = "select count(audit_append($1, '{\"kind\": \"server\"}', 'test.made', '{}', '{}')) from generate_series(1, 5001)";
        scene.sql(noise, scene.tenant.as_uuid()).await;
        let (none, cursor) = numbers("contains=boiler").await;
        assert!(none.is_empty());
        assert_eq!(numbers(&format!("contains=boiler&cursor={}", cursor.unwrap())).await, (vec![2, 1], None));
        for query in [format!("contains={}", "x".repeat(257)), "contains=%00".to_owned()] {
            let path = format!("/audit?{query}");
            scene.get(&path).by(&scene.customer).send().await.expect_problem(Kind::BadRequest);
        }
    }
}
