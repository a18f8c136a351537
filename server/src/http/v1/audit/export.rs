//! `GET /audit/export`: a whole chain, oldest first, one entry a line, for `cloudlink audit verify`. Read and sent in small
//! parts, so that a long log costs neither memory nor a long transaction.

use std::error::Error;

use axum::body::Body;
use axum::extract::State;
use axum::response::IntoResponse;
use bytes::Bytes;
use cloudlink_proto::ids::TenantId;
use futures_util::{Stream, stream};
use http::header;
use serde::Deserialize;
use uuid::Uuid;

use super::list::chain_for;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::Query;
use crate::model::audit::AuditEntry;
use crate::store::StoreError;
use crate::store::audit::{audit_after, audit_head};

/// Entries that are read at a time.
const PART_ENTRIES_MAX: i64 = 200;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExportQuery {
    /// Whose log. Left out: a tenant's user gets its own, an administrator the platform's.
    tenant_id: Option<Uuid>,
}

/// The audit log as NDJSON
///
/// All entries there were when the export began, in order of `seq`. A connection that is cut before its end means that
/// the server failed half-way: the chain then ends too early, and is not complete.
#[utoipa::path(get, path = "/audit/export", operation_id = "audit_export", tag = "audit", params(ExportQuery),
    responses((status = 200, body = AuditEntry, content_type = "application/x-ndjson")))]
#[tracing::instrument(name = "http.audit.export", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<ExportQuery>,
) -> Result<impl IntoResponse, Problem> {
    let tenant = chain_for(&caller, query.tenant_id)?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let until = audit_head(&mut transaction, tenant).await?;
    drop(transaction);
    let body = Body::from_stream(Export { context, caller, tenant, after: 0, until }.parts());
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body))
}

struct Export {
    context: Context,
    caller: Caller,
    tenant: TenantId,
    /// The last entry that was sent.
    after: i64,
    until: i64,
}

impl Export {
    fn parts(self) -> impl Stream<Item = Result<Bytes, StoreError>> {
        stream::try_unfold(self, |mut export| async move {
            if export.after >= export.until {
                return Ok(None);
            }
            let entries = export.read().await.inspect_err(|error| {
                tracing::error!(error = error as &dyn Error, "export of the audit log was cut");
            })?;
            // Numbers have no gaps; if they had, an endless loop would be worse than a short export.
            export.after = entries.last().map_or(export.until, |entry| entry.seq);
            Ok(Some((to_lines(&entries), export)))
        })
    }

    async fn read(&self) -> Result<Vec<AuditEntry>, StoreError> {
        let mut transaction = self.context.store.begin(self.caller.visibility()).await?;
        audit_after(&mut transaction, self.tenant, self.after, self.until, PART_ENTRIES_MAX).await
    }
}

fn to_lines(entries: &[AuditEntry]) -> Bytes {
    let mut lines = Vec::new();
    for entry in entries {
        serde_json::to_writer(&mut lines, entry).expect("an entry is strings and numbers");
        lines.push(b'\n');
    }
    lines.into()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, digest};
    use data_encoding::HEXLOWER;
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use super::PART_ENTRIES_MAX;
    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    /// The number of the first entry that does not fit, as docs/API.md says it is found.
    fn first_mismatch(export: &str) -> Option<i64> {
        let mut last = vec![0; 32];
        for (line, expected) in export.lines().zip(1..) {
            let entry: Value = serde_json::from_str(line).unwrap();
            let text = entry["entry"].as_str().unwrap();
            last.extend_from_slice(text.as_bytes());
            last = digest(&SHA256, &last).as_ref().to_vec();
            let inner: Value = serde_json::from_str(text).unwrap();
            let fits = entry["hash"] == HEXLOWER.encode(&last) && entry["seq"] == expected && inner["seq"] == expected;
            if !fits {
                return Some(expected);
            }
        }
        None
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn the_chain_verifies_after_concurrent_writers(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let call = || {
            let body = json!({"reason": "r", "scopes": ["device:reboot"], "selector": {"site": "north"}, "duration_seconds": 60});
            scene.post("/grants").by(&scene.customer).json(body).send()
        };
        let count = usize::try_from(PART_ENTRIES_MAX).unwrap() + 50;
        for _ in 0..count / 25 {
            let answers = futures_util::future::join_all((0..25).map(|_| call())).await;
            assert!(answers.iter().all(|answer| answer.status == StatusCode::CREATED));
        }
        let export = scene.get("/audit/export").by(&scene.customer).send().await;
        assert_eq!(export.header("content-type"), "application/x-ndjson");
        assert_eq!(export.text.lines().count(), count, "more than one part, and nothing twice");
        assert_eq!(first_mismatch(&export.text), None);
        let path = format!("/audit/export?tenant_id={}", scene.tenant);
        assert_eq!(scene.get(&path).by(&scene.admin).send().await.text, export.text);
        scene.get(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
        assert_eq!(scene.get("/audit/export").by(&scene.admin).send().await.text, "");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn tampering_is_found(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        for _ in 0..3 {
            scene.grant(json!({})).await;
        }
        let export = || scene.get("/audit/export").by(&scene.customer).send();
        assert_eq!(first_mismatch(&export().await.text), None);
        // Even the owner of the tables has to drop the trigger first.
        let rewrite = "update audit set entry = replace(entry, 'tina', 'nina') where tenant_id = $1 and seq = 2";
        let refused = sqlx::query(rewrite).bind(scene.tenant.as_uuid()).execute(&scene.root).await;
        assert!(refused.unwrap_err().to_string().contains("append-only"));
        sqlx::query("alter table audit disable trigger user").execute(&scene.root).await.unwrap();
        scene.sql(rewrite, scene.tenant.as_uuid()).await;
        assert_eq!(first_mismatch(&export().await.text), Some(2));
        scene.sql("delete from audit where tenant_id = $1 and seq = 2", scene.tenant.as_uuid()).await;
        assert_eq!(first_mismatch(&export().await.text), Some(2));
    }
}
