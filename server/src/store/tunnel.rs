//! Tunnels: which part of the address pool a node gives out, which address each device has in it, and what went through. A
//! tunnel's row is made by [`link_open`](super::link::link_open), as it is its device's link.

use std::time::Duration;

use cloudlink_proto::ids::{DeviceId, TenantId, TunnelId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::StoreError;

/// How long an address is kept for a device that asked for it or used it a moment ago: its tunnel may not be up yet, or it may be
/// about to come back, and what the node still sends to its old connections is nobody else's.
const KEPT_FOR: Duration = Duration::from_secs(120);

/// Leases a node the slice that it had before, or one that nobody has, or else the one whose lease ended first. `None`: all of
/// them are leased to other nodes.
pub async fn slice_lease_in_txn(
    connection: &mut PgConnection,
    node: &str,
    slices: u32,
    lease: Duration,
) -> Result<Option<u32>, StoreError> {
    // Two nodes that start at once must not find the same one.
    sqlx::query!("lock table tunnel_slices in share row exclusive mode").execute(&mut *connection).await?;
    // A slice beyond the end of a pool that was made smaller is nobody's.
    let slices = i32::try_from(slices).unwrap_or(i32::MAX);
    sqlx::query!("delete from tunnel_slices where slice >= $1", slices).execute(&mut *connection).await?;
    let slice = sqlx::query_scalar!(
        r#"with choice as (
               select slice, 0 as place from tunnel_slices where node = $1
               union all
               (select n, 1 from generate_series(0, $2::integer - 1) n
                 where not exists (select from tunnel_slices s where s.slice = n) order by n limit 1)
               union all
               (select slice, 2 from tunnel_slices where leased_until < clock_timestamp() order by leased_until limit 1)
               order by place limit 1
           ),
           left_by as (
               delete from tunnel_slices s using choice c where s.slice = c.slice and s.node <> $1
           )
           select slice as "slice!" from choice"#,
        node,
        slices,
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(slice) = slice else { return Ok(None) };
    sqlx::query!(
        "insert into tunnel_slices (slice, node, leased_until)
         values ($1, $2, clock_timestamp() + make_interval(secs => $3))
             on conflict (slice) do update set leased_until = excluded.leased_until",
        slice,
        node,
        lease.as_secs_f64(),
    )
    .execute(connection)
    .await?;
    Ok(Some(slice.unsigned_abs()))
}

/// Renews a lease. False: another node has the slice by now.
pub async fn slice_renew(
    connection: &mut PgConnection,
    node: &str,
    slice: u32,
    lease: Duration,
) -> Result<bool, StoreError> {
    let renewed = sqlx::query!(
        "update tunnel_slices set leased_until = clock_timestamp() + make_interval(secs => $3)
          where node = $1 and slice = $2",
        node,
        slice.cast_signed(),
        lease.as_secs_f64(),
    )
    .execute(connection)
    .await?;
    Ok(renewed.rows_affected() > 0)
}

/// Forgets addresses that a slice does not have any more since slices were made smaller. Their devices get others.
pub async fn address_trim_in_txn(connection: &mut PgConnection, slice: u32, hosts_max: u32) -> Result<(), StoreError> {
    let hosts_max = i32::try_from(hosts_max).unwrap_or(i32::MAX);
    sqlx::query!("delete from tunnel_addresses where slice = $1 and host > $2", slice.cast_signed(), hosts_max)
        .execute(connection)
        .await?;
    Ok(())
}

/// A device that wants a tunnel, as its certificate names it.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub device_id: DeviceId,
    pub tenant_id: TenantId,
    pub certificate_serial: Box<[u8]>,
}

/// A device's place in a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceAddress {
    pub device_id: DeviceId,
    pub host: u32,
}

/// Gives each of the devices its address in the slice: the one that it had; else one that nobody had; else the one that was
/// used least recently, of a device that has no tunnel. A device for which there is none is missing from the answer, and so is
/// one that may not open a tunnel: why, [`certificate_list`](super::certificate::certificate_list) tells.
///
/// Only the node that leases the slice may ask, and one question at a time.
pub async fn address_lease(
    connection: &mut PgConnection,
    slice: u32,
    hosts_max: u32,
    candidates: &[Candidate],
) -> Result<Vec<DeviceAddress>, StoreError> {
    let devices: Vec<Uuid> = candidates.iter().map(|candidate| candidate.device_id.as_uuid()).collect();
    let tenants: Vec<Uuid> = candidates.iter().map(|candidate| candidate.tenant_id.as_uuid()).collect();
    let serials: Vec<Vec<u8>> = candidates.iter().map(|candidate| candidate.certificate_serial.to_vec()).collect();
    let rows = sqlx::query!(
        r#"with good as materialized (
               select distinct d.id
                 from unnest($3::uuid[], $5::uuid[], $6::bytea[]) as q(device_id, tenant_id, serial)
                 join devices d on d.id = q.device_id and d.tenant_id = q.tenant_id and d.state = 'active'
                 join certificates c on c.serial = q.serial and c.device_id = d.id and c.tenant_id = d.tenant_id
                                    and c.state in ('issued', 'active')
           ),
           known as (
               update tunnel_addresses a set used_at = clock_timestamp()
                 from good g
                where a.slice = $1 and a.device_id = g.id
               returning a.device_id, a.host
           ),
           missing as materialized (
               select d.id, row_number() over (order by d.id) as place
                 from good d
                where not exists (select from tunnel_addresses a where a.slice = $1 and a.device_id = d.id)
           ),
           fresh as (
               select n as host, row_number() over (order by n) as place
                 from (select coalesce(max(host), 1) as last from tunnel_addresses where slice = $1) l
                cross join generate_series(l.last + 1, least($2, l.last + (select count(*)::integer from missing))) n
           ),
           given as (
               insert into tunnel_addresses (slice, host, device_id)
               select $1, f.host, m.id from missing m join fresh f on f.place = m.place order by f.host
               returning device_id, host
           ),
           without as materialized (
               select m.id, row_number() over (order by m.place) as place
                 from missing m where m.place > (select count(*) from fresh)
           ),
           oldest as materialized (
               select a.host, row_number() over (order by u.used_at, a.host) as place
                 from tunnel_addresses a
                 left join links l on l.device_id = a.device_id and l.tunnel_id is not null
                cross join lateral (select greatest(a.used_at, l.proven_at) as used_at) u
                where a.slice = $1 and u.used_at < clock_timestamp() - make_interval(secs => $4)
                  and (select count(*) from without) > 0
                  and a.device_id <> all ($3)
                  and (l.device_id is null or l.closed_at is not null)
                order by u.used_at, a.host
                limit (select count(*) from without)
           ),
           taken as (
               update tunnel_addresses a set device_id = w.id, used_at = clock_timestamp()
                 from without w join oldest o on o.place = w.place
                where a.slice = $1 and a.host = o.host
               returning a.device_id, a.host
           )
           select device_id as "device_id!", host as "host!" from known
           union all select device_id, host from given
           union all select device_id, host from taken"#,
        slice.cast_signed(),
        i32::try_from(hosts_max).unwrap_or(i32::MAX),
        &devices,
        KEPT_FOR.as_secs_f64(),
        &tenants,
        &serials,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| DeviceAddress { device_id: DeviceId::from_uuid(row.device_id), host: row.host.unsigned_abs() })
        .collect())
}

/// What went through a tunnel since it came up.
#[derive(Clone, Copy, Debug)]
pub struct TunnelTraffic {
    pub tunnel_id: TunnelId,
    pub device_id: DeviceId,
    pub packets_in: u64,
    pub packets_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub dropped: u64,
}

/// Writes what went through tunnels. At most one row a device. Losing it costs nothing: the next one says it again.
pub async fn tunnel_count(connection: &mut PgConnection, tunnels: &[TunnelTraffic]) -> Result<(), StoreError> {
    let devices: Vec<Uuid> = tunnels.iter().map(|tunnel| tunnel.device_id.as_uuid()).collect();
    let ids: Vec<Uuid> = tunnels.iter().map(|tunnel| tunnel.tunnel_id.as_uuid()).collect();
    let column = |value: fn(&TunnelTraffic) -> u64| -> Vec<i64> {
        tunnels.iter().map(|tunnel| i64::try_from(value(tunnel)).unwrap_or(i64::MAX)).collect()
    };
    sqlx::query!(
        r#"with counted as materialized (
               select t.device_id, c.packets_in, c.packets_out, c.bytes_in, c.bytes_out, c.dropped
                 from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
                      as c(device_id, id, packets_in, packets_out, bytes_in, bytes_out, dropped)
                 join tunnels t on t.device_id = c.device_id and t.id = c.id
                where set_config('synchronous_commit', 'off', true) is not null
                order by t.device_id
                  for update of t skip locked
           )
           update tunnels t
              set packets_in = c.packets_in, packets_out = c.packets_out, bytes_in = c.bytes_in, bytes_out = c.bytes_out,
                  dropped = c.dropped
             from counted c where t.device_id = c.device_id"#,
        &devices,
        &ids,
        &column(|tunnel| tunnel.packets_in),
        &column(|tunnel| tunnel.packets_out),
        &column(|tunnel| tunnel.bytes_in),
        &column(|tunnel| tunnel.bytes_out),
        &column(|tunnel| tunnel.dropped),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A tenant that had tunnels on a node from and until so long ago.
#[derive(Clone, Copy, Debug)]
pub struct CarriedTunnels {
    pub tenant_id: TenantId,
    pub since: Duration,
    pub until: Duration,
}

/// Writes that a node carried tunnels of these tenants, in whole minutes and day by day. At most one a tenant. Says nothing twice.
pub async fn tunnel_day_note(
    connection: &mut PgConnection,
    node: &str,
    carried: &[CarriedTunnels],
) -> Result<(), StoreError> {
    let tenants: Vec<Uuid> = carried.iter().map(|carried| carried.tenant_id.as_uuid()).collect();
    let since: Vec<f64> = carried.iter().map(|carried| carried.since.as_secs_f64()).collect();
    let until: Vec<f64> = carried.iter().map(|carried| carried.until.as_secs_f64()).collect();
    sqlx::query!(
        "insert into tunnel_days as t (tenant_id, day, node, spans)
         select c.tenant_id, d.day::date, $1,
                tstzmultirange(tstzrange(s.since, s.until)) * tstzmultirange(tstzrange(b.midnight, b.midnight + interval '24 hours'))
           from unnest($2::uuid[], $3::float8[], $4::float8[]) as c(tenant_id, since, until)
          cross join lateral (
                select date_trunc('minute', statement_timestamp() - make_interval(secs => c.since)) as since,
                       date_trunc('minute', statement_timestamp() - make_interval(secs => c.until)) + interval '1 minute' as until
                ) s
          cross join lateral generate_series(date_trunc('day', s.since at time zone 'utc'), s.until at time zone 'utc' - interval '1 minute',
                                             interval '1 day') as d(day)
          cross join lateral (select d.day at time zone 'utc' as midnight) b
             on conflict (tenant_id, day, node) do update set spans = t.spans + excluded.spans
                where not t.spans @> excluded.spans",
        node,
        &tenants,
        &since,
        &until,
    )
    .execute(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use cloudlink_proto::ids::DeviceId;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use super::*;
    use crate::http::testing::Scene;
    use crate::model::new_id;
    use crate::store::Visibility;

    const LEASE: Duration = Duration::from_secs(3600);

    async fn lease(scene: &Scene, node: &str, slices: u32) -> Option<u32> {
        let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
        let leased = slice_lease_in_txn(&mut transaction, node, slices, LEASE).await.unwrap();
        transaction.commit().await.unwrap();
        leased
    }

    async fn run(scene: &Scene, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&scene.root).await.unwrap();
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn each_node_has_a_slice_of_its_own_and_gets_it_back(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        assert_eq!(lease(&scene, "a", 2).await, Some(0));
        assert_eq!(lease(&scene, "b", 2).await, Some(1));
        assert_eq!(lease(&scene, "a", 2).await, Some(0));
        assert_eq!(lease(&scene, "c", 2).await, None, "both are leased");
        run(&scene, "update tunnel_slices set leased_until = now() - interval '1 second' where node = 'b'").await;
        assert_eq!(lease(&scene, "b", 2).await, Some(1), "nobody else wanted it meanwhile");
        run(&scene, "update tunnel_slices set leased_until = now() - interval '1 second' where node = 'b'").await;
        assert_eq!(lease(&scene, "c", 2).await, Some(1), "its lease had ended");
        let mut connection = scene.store.connection().await.unwrap();
        assert!(!slice_renew(&mut connection, "b", 1, LEASE).await.unwrap());
        assert!(slice_renew(&mut connection, "c", 1, LEASE).await.unwrap());
        assert_eq!(lease(&scene, "b", 3).await, Some(2));
        assert_eq!(lease(&scene, "b", 2).await, None, "the pool was made smaller");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn nodes_that_start_at_once_find_different_slices(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let nodes = ["a", "b", "c", "d"].map(|node| lease(&scene, node, 4));
        let mut slices: Vec<_> = futures_util::future::join_all(nodes).await.into_iter().flatten().collect();
        slices.sort_unstable();
        assert_eq!(slices, [0, 1, 2, 3]);
    }

    async fn devices(scene: &Scene, count: usize) -> Vec<DeviceId> {
        let mut devices = Vec::new();
        for number in 0..count {
            let device = DeviceId::from_uuid(new_id());
            scene.insert_device(device, scene.tenant, &format!("gateway {number}"), json!({})).await;
            devices.push(device);
        }
        devices
    }

    fn candidate(scene: &Scene, device_id: DeviceId) -> Candidate {
        let certificate_serial = Box::from(device_id.as_uuid().as_bytes().as_slice());
        Candidate { device_id, tenant_id: scene.tenant, certificate_serial }
    }

    /// The hosts of the devices, in their order.
    async fn hosts(scene: &Scene, slice: u32, hosts_max: u32, devices: &[DeviceId]) -> Vec<Option<u32>> {
        let mut connection = scene.store.connection().await.unwrap();
        let candidates: Vec<_> = devices.iter().map(|device| candidate(scene, *device)).collect();
        let leased = address_lease(&mut connection, slice, hosts_max, &candidates).await.unwrap();
        devices.iter().map(|device| Some(leased.iter().find(|leased| leased.device_id == *device)?.host)).collect()
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_device_keeps_its_address_and_others_get_others(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let devices = devices(&scene, 4).await;
        assert_eq!(hosts(&scene, 0, 100, &devices[..1]).await, [Some(2)]);
        assert_eq!(hosts(&scene, 0, 100, &devices[..3]).await, [Some(2), Some(3), Some(4)]);
        assert_eq!(hosts(&scene, 0, 100, &devices[2..]).await, [Some(4), Some(5)]);
        assert_eq!(hosts(&scene, 1, 100, &devices[3..]).await, [Some(2)], "another slice");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn whoever_may_not_open_a_tunnel_gets_no_address(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let devices = devices(&scene, 5).await;
        scene.sql("update certificates set state = 'superseded' where device_id = $1", devices[0].as_uuid()).await;
        let revoke = "update certificates set state = 'revoked', revoked_at = now() where device_id = $1";
        scene.sql(revoke, devices[1].as_uuid()).await;
        let revoke = "update devices set state = 'revoked', revoked_at = now() where id = $1";
        scene.sql(revoke, devices[2].as_uuid()).await;
        let mut candidates: Vec<_> = devices.iter().map(|device| candidate(&scene, *device)).collect();
        candidates[3].tenant_id = scene.other_tenant;
        candidates[4].certificate_serial = candidates[3].certificate_serial.clone();
        candidates.push(candidate(&scene, DeviceId::from_uuid(new_id())));
        candidates.push(candidate(&scene, scene.device));
        let mut connection = scene.store.connection().await.unwrap();
        let leased = address_lease(&mut connection, 0, 100, &candidates).await.unwrap();
        assert_eq!(leased, [DeviceAddress { device_id: scene.device, host: 2 }]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn when_all_are_given_the_one_that_was_used_least_recently_and_is_not_live_is_taken_over(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        let devices = devices(&scene, 6).await;
        // Four hosts: 2 to 5.
        assert_eq!(hosts(&scene, 0, 5, &devices[..4]).await, [Some(2), Some(3), Some(4), Some(5)]);
        assert_eq!(hosts(&scene, 0, 5, &devices[4..5]).await, [None], "those who have just asked are not disturbed");
        run(&scene, "update tunnel_addresses set used_at = now() - make_interval(hours => 10 - host)").await;
        // The one that was used least recently is live.
        scene.tunnel(devices[0]).await;
        assert_eq!(hosts(&scene, 0, 5, &devices[4..]).await, [Some(3), Some(4)]);
        assert_eq!(hosts(&scene, 0, 5, &[devices[1], devices[0]]).await, [Some(5), Some(2)]);
        assert_eq!(hosts(&scene, 0, 5, &devices[3..4]).await, [None]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_tunnel_that_has_just_ended_was_used_a_moment_ago(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let devices = devices(&scene, 4).await;
        assert_eq!(hosts(&scene, 0, 3, &devices[..2]).await, [Some(2), Some(3)]);
        run(&scene, "update tunnel_addresses set used_at = now() - make_interval(hours => 10 - host)").await;
        // It came up before all others, and was there until now.
        scene.tunnel(devices[0]).await;
        run(&scene, "update links set closed_at = now(), close_reason = 'lost'").await;
        assert_eq!(hosts(&scene, 0, 3, &devices[2..]).await, [Some(3), None]);
        run(&scene, "update links set proven_at = now() - interval '5 minutes'").await;
        assert_eq!(hosts(&scene, 0, 3, &devices[3..]).await, [Some(2)]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn devices_beyond_the_end_of_a_slice_that_was_made_smaller_get_other_addresses(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        let devices = devices(&scene, 4).await;
        assert_eq!(hosts(&scene, 0, 9, &devices[..3]).await, [Some(2), Some(3), Some(4)]);
        assert_eq!(hosts(&scene, 1, 9, &devices[..3]).await, [Some(2), Some(3), Some(4)]);
        run(&scene, "update tunnel_addresses set used_at = now() - interval '1 hour' where host = 2").await;
        address_trim_in_txn(&mut scene.store.connection().await.unwrap(), 0, 3).await.unwrap();
        assert_eq!(hosts(&scene, 0, 3, &devices[1..3]).await, [Some(3), Some(2)]);
        assert_eq!(hosts(&scene, 1, 9, &devices[2..3]).await, [Some(4)], "another node's");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn only_the_newest_tunnel_of_a_device_counts(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.tunnel(scene.device).await;
        let row = sqlx::query_scalar::<_, Uuid>("select id from tunnels").fetch_one(&scene.root).await.unwrap();
        let count = |tunnel_id, bytes_in| TunnelTraffic {
            tunnel_id: TunnelId::from_uuid(tunnel_id),
            device_id: scene.device,
            packets_in: 1,
            packets_out: 2,
            bytes_in,
            bytes_out: 4,
            dropped: u64::MAX,
        };
        let mut connection = scene.store.connection().await.unwrap();
        tunnel_count(&mut connection, &[count(row, 7)]).await.unwrap();
        tunnel_count(&mut connection, &[count(new_id(), 9)]).await.unwrap();
        let sql = "select packets_in || ' ' || packets_out || ' ' || bytes_in || ' ' || bytes_out || ' ' || dropped from tunnels";
        let counted: String = sqlx::query_scalar(sql).fetch_one(&scene.root).await.unwrap();
        assert_eq!(counted, format!("1 2 7 4 {}", i64::MAX));
    }

    fn minutes_ago(scene: &Scene, since: u64, until: u64) -> [CarriedTunnels; 1] {
        let ago = |minutes| Duration::from_secs(60 * minutes);
        [CarriedTunnels { tenant_id: scene.tenant, since: ago(since), until: ago(until) }]
    }

    async fn note(scene: &Scene, node: &str, since: u64, until: u64) {
        let mut connection = scene.store.connection().await.unwrap();
        tunnel_day_note(&mut connection, node, &minutes_ago(scene, since, until)).await.unwrap();
    }

    /// How many minutes of how many spans in how many rows are written of a node.
    async fn noted(scene: &Scene, node: &str) -> (i64, i64, i64) {
        let sql = "select coalesce(sum(extract(epoch from upper(s) - lower(s)) / 60), 0)::bigint, count(s), count(distinct day)
                     from tunnel_days cross join unnest(spans) s where node = $1";
        sqlx::query_as(sql).bind(node).fetch_one(&scene.root).await.unwrap()
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn when_tunnels_were_up_is_written_in_whole_minutes(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        note(&scene, "a", 0, 0).await;
        // A test that runs across a full minute finds two of them, and one across midnight two days.
        let (minutes, spans, days) = noted(&scene, "a").await;
        assert!(minutes == 1 && spans == 1 && days == 1, "{minutes} {spans} {days}");
        // Three days and an hour touch four or five days, each with its own row.
        note(&scene, "b", 3 * 1440 + 60, 0).await;
        let (minutes, spans, days) = noted(&scene, "b").await;
        assert_eq!(minutes, 3 * 1440 + 61);
        assert!((4..=5).contains(&days) && spans == days, "{spans} {days}");
        let outside = "select count(*) from tunnel_days cross join unnest(spans) s
                        where lower(s) < day::timestamp at time zone 'utc' or upper(s) > (day + 1)::timestamp at time zone 'utc'";
        let outside: i64 = sqlx::query_scalar(outside).fetch_one(&scene.root).await.unwrap();
        assert_eq!(outside, 0);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn pieces_that_touch_are_one_and_what_is_known_is_not_written_again(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        // At noon of the day before yesterday, so that all of it is on one day.
        let now = crate::clock::now();
        let noon = now.replace_time(time::Time::MIDNIGHT) - time::Duration::hours(36);
        let noon = u64::try_from((now - noon).whole_minutes()).unwrap();
        note(&scene, "a", noon, noon - 100).await;
        note(&scene, "a", noon - 100, noon - 150).await;
        let (minutes, spans, days) = noted(&scene, "a").await;
        assert!((150..=152).contains(&minutes) && (spans, days) == (1, 1), "{minutes} {spans} {days}");
        let version = async || -> String {
            sqlx::query_scalar("select xmin::text from tunnel_days").fetch_one(&scene.root).await.unwrap()
        };
        let before = version().await;
        note(&scene, "a", noon - 20, noon - 50).await;
        assert_eq!(version().await, before);
        note(&scene, "a", noon - 200, noon - 210).await;
        let (_, spans, days) = noted(&scene, "a").await;
        assert_eq!((spans, days), (2, 1), "there is time without tunnels in between");
    }
}
