//! Tests of how fast the ways to devices are.

use std::net::IpAddr;

use cloudlink_proto::ids::{DeviceId, PersonId, TenantId};
use cloudlink_proto::ndt::Direction;
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::model::link_test::{LinkTest, Outcome};

/// A test that is about to begin.
#[derive(Clone, Copy, Debug)]
pub struct NewLinkTest<'a> {
    pub id: Uuid,
    pub device_id: DeviceId,
    pub tenant_id: TenantId,
    pub command_id: Option<Uuid>,
    pub direction: Direction,
    pub node: &'a str,
    pub remote: IpAddr,
    pub client_name: &'a str,
    pub client_version: &'a str,
}

/// What a test came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    pub outcome: Outcome,
    pub seconds: f64,
    pub bytes: u64,
    pub bits_per_second: u64,
    pub min_rtt_us: Option<u32>,
    pub retransmitted_bytes: Option<u64>,
}

/// Notes that a test begins, unless its tenant had `most` within the last hour. Whether it was noted. A command is kept only if it
/// told this device to test.
pub async fn link_test_begin(
    connection: &mut PgConnection,
    test: &NewLinkTest<'_>,
    most: u32,
) -> Result<bool, StoreError> {
    let noted = sqlx::query!(
        "insert into link_tests (id, device_id, tenant_id, command_id, direction, node, remote_address, client_name, client_version)
         select $1, $2, $3, (select c.id from commands c where c.id = $4 and c.device_id = $2 and c.kind = 'link.test'),
                $5, $6, $7::text::inet, $8, $9
          where (select count(*) from link_tests t
                  where t.tenant_id = $3 and t.started_at > clock_timestamp() - interval '1 hour') < $10",
        test.id,
        test.device_id.as_uuid(),
        test.tenant_id.as_uuid(),
        test.command_id,
        test.direction.name(),
        test.node,
        test.remote.to_string(),
        test.client_name,
        test.client_version,
        i64::from(most),
    )
    .execute(connection)
    .await?;
    Ok(noted.rows_affected() == 1)
}

/// Keeps what a test came to.
pub async fn link_test_finish(connection: &mut PgConnection, id: Uuid, figures: &Figures) -> Result<(), StoreError> {
    let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    sqlx::query!(
        "update link_tests set outcome = $2, seconds = $3, bytes = $4, bits_per_second = $5, min_rtt_us = $6,
                retransmitted_bytes = $7
          where id = $1 and outcome is null",
        id,
        figures.outcome.name(),
        figures.seconds,
        whole(figures.bytes),
        whole(figures.bits_per_second),
        figures.min_rtt_us.map(i64::from),
        figures.retransmitted_bytes.map(whole),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The tests of a device, newest first.
pub async fn link_test_list(
    connection: &mut PgConnection,
    device: DeviceId,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<LinkTest>, StoreError> {
    let (after_time, after_id) = after.unzip();
    Ok(sqlx::query_as!(
        LinkTest,
        r#"select id, command_id, direction, started_at, node, host(remote_address) as "remote_address!", client_name,
                  client_version, outcome, seconds, bytes, bits_per_second, min_rtt_us, retransmitted_bytes
             from link_tests
            where device_id = $1 and ($2::timestamptz is null or (started_at, id) < ($2, $3::uuid))
            order by started_at desc, id desc limit $4"#,
        device.as_uuid(),
        after_time,
        after_id,
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// Lets an operator with a grant in force at this very moment read the tests of a device, and writes so into the tenant's audit log: one
/// statement, the last of its transaction. False without a grant.
pub async fn link_test_read_under_grant_in_txn(
    connection: &mut PgConnection,
    device: DeviceId,
    operator: PersonId,
    actor: Value,
    scope: &str,
) -> Result<bool, StoreError> {
    let audited = sqlx::query_scalar!(
        r#"select r.audited as "audited!" from (
               select audit_append(d.tenant_id, $3, 'link_tests.read', jsonb_build_object('kind', 'device', 'id', d.id),
                                   jsonb_build_object('grant_id', g.id)) as audited
                 from devices d
                 join lateral (select g.id from grants g
                                where grant_covers(g, d, $2, $4) and grant_in_force(g, clock_timestamp())
                                order by g.ends_at desc limit 1) g on true
                where d.id = $1
               offset 0) r
            where r.audited > 0"#,
        device.as_uuid(),
        operator.as_uuid(),
        actor,
        scope,
    )
    .fetch_optional(connection)
    .await?;
    Ok(audited.is_some())
}

/// Forgets what is older than so many days. Those of the last hour count.
pub async fn link_test_trim(connection: &mut PgConnection, keep_days: u32) -> Result<(), StoreError> {
    sqlx::query!(
        "delete from link_tests where started_at < clock_timestamp() - make_interval(days => $1)",
        i32::try_from(keep_days).unwrap_or(i32::MAX)
    )
    .execute(connection)
    .await?;
    Ok(())
}
