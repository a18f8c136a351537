//! When a node's isolation was not as declared.

use serde_json::json;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::StoreError;
use super::audit::audit_append;
use crate::isolation::Drift;
use crate::model::audit::{Actor, PLATFORM, Subject};

/// Records a drift, or that one was repaired that is recorded already. The audit log hears of the first and, if the drift was not
/// repaired at once, of the repair; not of each time that the same drift came back.
pub(crate) async fn drift_put_in_txn(
    connection: &mut PgConnection,
    node: &str,
    drift: &Drift,
) -> Result<(), StoreError> {
    let differences = json!(drift.differences);
    let is_news = sqlx::query_scalar!(
        r#"with known as (select repaired_at from isolation_drifts where id = $1),
                put as (
                    insert into isolation_drifts (id, node, found_at, repaired_at, kind, differences)
                    values ($1, $2, $3, $4, $5, $6)
                        on conflict (id) do update set repaired_at = excluded.repaired_at
                )
           select not exists (select from known where repaired_at is not null) as "is_news!""#,
        drift.id,
        node,
        drift.found_at,
        drift.repaired_at,
        drift.kind.label(),
        differences
    )
    .fetch_one(&mut *connection)
    .await?;
    if !is_news {
        return Ok(());
    }
    let details = json!({
        "node": node,
        "kind": drift.kind.label(),
        "repaired": drift.repaired_at.is_some(),
        "differences": differences,
    });
    let actor = Actor::Server { name: node.to_owned() };
    let subject = Subject::new("isolation_drift", drift.id);
    audit_append(connection, PLATFORM, &actor, "isolation.drift", subject, details).await
}

/// Everything of a node is as declared at this moment: what was not repaired before, is.
pub(crate) async fn drift_end_all(
    connection: &mut PgConnection,
    node: &str,
    at: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update isolation_drifts set repaired_at = greatest(found_at, $2) where node = $1 and repaired_at is null",
        node,
        at
    )
    .execute(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use super::*;
    use crate::http::testing::Scene;
    use crate::isolation::DriftKind;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_drift_is_kept_once_and_audited_each_time(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let found = Drift::found(DriftKind::Rules, vec!["the table is missing".to_owned()]);
        let repaired = found.clone().repaired();
        for drift in [found, repaired.clone(), repaired.repaired()] {
            let mut transaction = scene.store.begin(crate::store::Visibility::All).await.unwrap();
            drift_put_in_txn(&mut transaction, "node-1", &drift).await.unwrap();
            transaction.commit().await.unwrap();
        }
        let sql = "select node || ' ' || kind || ' ' || (repaired_at >= found_at) || ' ' || differences from isolation_drifts";
        let kept: Vec<String> = sqlx::query_scalar(sql).fetch_all(&scene.root).await.unwrap();
        assert_eq!(kept, ["node-1 rules true [\"the table is missing\"]"]);
        let sql = "select entry::jsonb->'details'->>'repaired' from audit
                    where entry::jsonb->>'action' = 'isolation.drift' order by seq";
        let audited: Vec<String> = sqlx::query_scalar(sql).fetch_all(&scene.root).await.unwrap();
        assert_eq!(audited, ["false", "true"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_a_node_left_unrepaired_is_over_when_it_begins_anew(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let mut connection = scene.store.connection().await.unwrap();
        let left = || Drift::found(DriftKind::Rules, vec!["the table is missing".to_owned()]);
        let over = left().repaired();
        for (node, drift) in [("node-1", &left()), ("node-1", &over), ("node-2", &left())] {
            drift_put_in_txn(&mut connection, node, drift).await.unwrap();
        }
        let at = crate::clock::now() + time::Duration::HOUR;
        drift_end_all(&mut connection, "node-1", at).await.unwrap();
        let sql = "select node || ' ' || coalesce((repaired_at > found_at + interval '30 minutes')::text, 'open')
                     from isolation_drifts order by 1";
        let kept: Vec<String> = sqlx::query_scalar(sql).fetch_all(&scene.root).await.unwrap();
        assert_eq!(kept, ["node-1 false", "node-1 true", "node-2 open"]);
    }
}
