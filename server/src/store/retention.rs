//! How long the records of isolation are kept.

use sqlx::PgConnection;

use super::StoreError;

/// Forgets what is older than so many days, of every node: one that is gone does not do it itself. The audit log keeps what it has.
pub async fn isolation_trim(connection: &mut PgConnection, keep_days: u32) -> Result<(), StoreError> {
    sqlx::query!(
        "with first as (select (clock_timestamp() at time zone 'utc')::date - $1::integer as day),
              proofs as (
                  delete from isolation_proofs p using first f where p.started_at < f.day::timestamp at time zone 'utc'
              ),
              drifts as (
                  delete from isolation_drifts d using first f where d.found_at < f.day::timestamp at time zone 'utc'
              ),
              drops as (delete from device_drops d using first f where d.day < f.day)
         delete from tunnel_days t using first f where t.day < f.day",
        i32::try_from(keep_days).unwrap_or(i32::MAX),
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

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_is_too_long_ago_is_forgotten(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        for days in [0, 2, 3, 400] {
            let then = format!("(clock_timestamp() at time zone 'utc')::date - {days}");
            for sql in [
                format!("insert into isolation_proofs (id, node, trigger, started_at, finished_at, outcome, policy_hash, attempts, results)
                         select gen_random_uuid(), 'a', 'timer', t, t, 'proven', sha256(''), 1, '[]'
                           from (select ({then})::timestamp at time zone 'utc' as t) x"),
                format!("insert into isolation_drifts (id, node, found_at, kind, differences)
                         values (gen_random_uuid(), 'a', ({then})::timestamp at time zone 'utc', 'rules', '[]')"),
                format!("insert into device_drops (device_id, tenant_id, day, reason, packets)
                         select id, tenant_id, {then}, 'port', 1 from devices where id = '{}'", scene.device),
                format!("insert into tunnel_days (tenant_id, day, node, spans)
                         select tenant_id, {then}, 'a', '{{[2026-11-22, 2026-11-23)}}' from devices where id = '{}'", scene.device),
            ] {
                sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&scene.root).await.unwrap();
            }
        }
        isolation_trim(&mut scene.store.connection().await.unwrap(), 2).await.unwrap();
        for table in ["isolation_proofs", "isolation_drifts", "device_drops", "tunnel_days"] {
            let sql = format!("select count(*) from {table}");
            let left: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&scene.root).await.unwrap();
            assert_eq!(left, 2, "{table}: of today and two days before");
        }
    }
}
