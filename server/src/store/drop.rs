//! What devices tried and may not: how many packets, by device, reason and day (UTC).

use cloudlink_proto::ids::DeviceId;
use serde_json::Value;
use sqlx::PgConnection;
use time::Date;
use uuid::Uuid;

use super::StoreError;
use crate::model::drop::DeviceDrop;

/// Days that one answer covers at most.
pub const DAYS_MAX: i64 = 366;

/// Packets that are to be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewDrop {
    pub device: DeviceId,
    pub reason: &'static str,
    pub packets: u64,
}

/// Adds packets of many devices. The first ones of a device, a reason and a day are in the audit log of its tenant, and none of
/// the others: a device that goes on fills nothing. At most one row a device and reason.
pub async fn drop_add(connection: &mut PgConnection, actor: Value, drops: &[NewDrop]) -> Result<(), StoreError> {
    let devices: Vec<Uuid> = drops.iter().map(|drop| drop.device.as_uuid()).collect();
    let reasons: Vec<String> = drops.iter().map(|drop| drop.reason.to_owned()).collect();
    let packets: Vec<i64> = drops.iter().map(|drop| i64::try_from(drop.packets).unwrap_or(i64::MAX)).collect();
    sqlx::query!(
        r#"with added as (
               insert into device_drops as p (device_id, tenant_id, day, reason, packets)
               select d.id, d.tenant_id, (clock_timestamp() at time zone 'utc')::date, n.reason, n.packets
                 from unnest($1::uuid[], $2::text[], $3::bigint[]) as n(device_id, reason, packets)
                 join devices d on d.id = n.device_id
                order by d.tenant_id, d.id, n.reason
                   on conflict (device_id, day, reason) do update
                  set packets = p.packets + least(excluded.packets, 9223372036854775807 - p.packets),
                      last_at = excluded.last_at
               returning p.tenant_id, p.device_id, p.reason, p.packets, p.xmax = 0 as is_new
           )
           select audit_append(tenant_id, $4, 'device.drops', jsonb_build_object('kind', 'device', 'id', device_id),
                               jsonb_build_object('reason', reason, 'packets', packets)) as audited
             from (select * from added where is_new order by tenant_id, device_id, reason) a"#,
        &devices,
        &reasons,
        &packets,
        actor
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}

/// What a device tried from one day to another, newest first; within a day what it tried most comes first.
pub async fn drop_list(
    connection: &mut PgConnection,
    device: DeviceId,
    from: Date,
    until: Date,
) -> Result<Vec<DeviceDrop>, StoreError> {
    Ok(sqlx::query_as!(
        DeviceDrop,
        "select day, reason, packets, first_at, last_at from device_drops
          where device_id = $1 and day between $2 and $3 order by day desc, packets desc, reason",
        device.as_uuid(),
        from,
        until
    )
    .fetch_all(connection)
    .await?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use super::*;
    use crate::http::testing::Scene;
    use crate::model::audit::Actor;

    async fn add(scene: &Scene, drops: &[(DeviceId, &'static str, u64)]) {
        let drops: Vec<_> =
            drops.iter().map(|&(device, reason, packets)| NewDrop { device, reason, packets }).collect();
        let actor = Actor::Server { name: "node".to_owned() }.to_json();
        drop_add(&mut scene.store.connection().await.unwrap(), actor, &drops).await.unwrap();
    }

    async fn list(scene: &Scene, device: DeviceId) -> Vec<(String, i64)> {
        let today = crate::clock::now().date();
        let mut connection = scene.store.connection().await.unwrap();
        let drops = drop_list(&mut connection, device, today, today).await.unwrap();
        assert!(drops.iter().all(|drop| drop.first_at <= drop.last_at && drop.day == today));
        drops.into_iter().map(|drop| (drop.reason, drop.packets)).collect()
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn packets_add_up_and_only_the_first_ones_of_a_reason_are_an_event(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        let (device, other) = (scene.device, scene.other_device);
        add(&scene, &[(device, "port", 3), (other, "port", 1), (device, "source", 1)]).await;
        add(&scene, &[(device, "port", 4)]).await;
        add(&scene, &[]).await;
        assert_eq!(list(&scene, device).await, [("port".to_owned(), 7), ("source".to_owned(), 1)]);
        assert_eq!(list(&scene, other).await, [("port".to_owned(), 1)]);
        assert_eq!(scene.audited(scene.tenant).await, ["device.drops", "device.drops"]);
        assert_eq!(scene.audited(scene.other_tenant).await, ["device.drops"]);
        // The next day is a new one.
        scene.sql("update device_drops set day = day - 1 where device_id = $1", device.as_uuid()).await;
        add(&scene, &[(device, "port", u64::MAX), (device, "port2", 1)]).await;
        add(&scene, &[(device, "port", u64::MAX)]).await;
        assert_eq!(list(&scene, device).await, [("port".to_owned(), i64::MAX), ("port2".to_owned(), 1)]);
        assert_eq!(scene.audited(scene.tenant).await.len(), 4);
        let path = "/audit?limit=1".to_owned();
        let entry = scene.get(&path).by(&scene.customer).send().await.expect(http::StatusCode::OK);
        let entry: Value = serde_json::from_str(entry["items"][0]["entry"].as_str().unwrap()).unwrap();
        assert_eq!(
            (&entry["action"], &entry["details"]),
            (&json!("device.drops"), &json!({"reason": "port2", "packets": 1}))
        );
        assert_eq!(entry["subject"], json!({"kind": "device", "id": device.as_uuid()}));
    }
}
