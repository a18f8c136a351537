//! Links: one row a device, its newest link. Every write but [`link_open`] names the epoch and does nothing when a newer one
//! holds the row.
//!
//! A tunnel is its device's link. An agent that dials inside it takes the row over with the next epoch, and leaves it to the tunnel
//! again: so what a tunnel writes, names its id, and what an agent writes, its epoch.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use cloudlink_proto::ids::{CommandId, DeviceId, TenantId, TunnelId};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use super::configuration::ConfigurationKnown;
use super::dispatch::LinkKey;
use super::transition::{Applied, Durability, Source, Transition, kinds_proven_by_boot, transition_apply};
use crate::model::command::State;
use crate::model::transport_failure::NewTransportFailure;

/// Boots of one device that are remembered, newest first: a device that invents them fills no table.
pub(super) const BOOTS_MAX: i64 = 256;

/// A device that said hello, or whose tunnel is up.
#[derive(Clone, Debug, Serialize)]
pub struct NewLink {
    #[serde(serialize_with = "serialize_device")]
    pub device_id: DeviceId,
    /// The tunnel that the device said hello in, or that is up.
    #[serde(serialize_with = "serialize_tunnel")]
    pub tunnel_id: Option<TunnelId>,
    /// Without it this is the tunnel itself: no agent has said hello yet.
    pub has_agent: bool,
    /// Of the tunnel itself.
    #[serde(flatten)]
    pub tunnel: Option<NewTunnel>,
    /// Hexadecimal.
    pub certificate_serial: String,
    pub node: String,
    pub transport: &'static str,
    pub remote_address: std::net::IpAddr,
    pub boot_id: String,
    pub agent: String,
    pub os: String,
    pub hostname: String,
    pub clock_offset_ms: i64,
    pub capabilities: Vec<String>,
    /// What the device says of attempts that failed. Not stored here: [`transport_failures_add`](super::transport_failure).
    #[serde(skip)]
    pub transport_failures: Vec<NewTransportFailure>,
    /// What it says of how its boot before ended.
    pub boot_hint: Option<&'static str>,
}

/// What is written about a tunnel when it comes up. The names do not meet those of [`NewLink`].
#[derive(Clone, Debug, Serialize)]
pub struct NewTunnel {
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    /// Claims of the client.
    pub client: String,
    pub platform: String,
    pub cipher: &'static str,
}

fn serialize_tunnel<S: serde::Serializer>(tunnel: &Option<TunnelId>, serializer: S) -> Result<S::Ok, S::Error> {
    tunnel.map(TunnelId::as_uuid).serialize(serializer)
}

fn serialize_device<S: serde::Serializer>(device: &DeviceId, serializer: S) -> Result<S::Ok, S::Error> {
    device.as_uuid().serialize(serializer)
}

/// A link that is now its device's newest.
#[derive(Clone, Debug)]
pub struct OpenedLink {
    pub device_id: DeviceId,
    pub tenant_id: TenantId,
    pub epoch: u64,
    /// Whether commands of the device are not yet final.
    pub has_open_commands: bool,
    /// Whether a busy lock of the device is written down, in force or not.
    pub has_busy_lock: bool,
    /// What is written down of its configuration.
    pub configuration: Option<ConfigurationKnown>,
    /// Whether the device is in quarantine, as of now.
    pub is_quarantined: bool,
    /// The link that it replaces.
    pub previous: Option<PreviousLink>,
    /// Whether this boot of the device had opened a link before.
    pub is_known_boot: bool,
}

/// The link before a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreviousLink {
    pub machine: Previous,
    /// That served it.
    pub node: String,
    pub connected_at: OffsetDateTime,
}

/// What tells one machine from another that uses the same certificate: what it said when it was heard of last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Previous {
    pub certificate_serial: Vec<u8>,
    pub boot_id: String,
    pub hostname: String,
    /// Whether there was a live link.
    pub was_live: bool,
}

/// Makes each of the links its device's newest and proves the boots. At most one a device. A device is missing from the
/// answer when it, or its certificate, may not open a link any more, or when the tunnel that it said hello in is not its live
/// link. The first use of a certificate makes it the active one and supersedes the older ones.
pub async fn link_open(connection: &mut PgConnection, links: &[NewLink]) -> Result<Vec<OpenedLink>, StoreError> {
    // The boots tell two machines apart that take turns, whatever tunnels came up in between.
    let rows = sqlx::query!(
        r#"with hello as (
               select h.* from jsonb_to_recordset($1) as h(
                   device_id uuid, tunnel_id uuid, has_agent boolean, certificate_serial text, node text, transport text,
                   remote_address inet, boot_id text, agent text, os text, hostname text, clock_offset_ms bigint,
                   capabilities text[], boot_hint text, ipv4 inet, ipv6 inet, client text, platform text, cipher text)
           ),
           admitted as materialized (
               select h.*, c.serial, c.state as certificate_state, d.tenant_id,
                      d.quarantined_at is not null as is_quarantined
                 from hello h
                 join devices d on d.id = h.device_id and d.state = 'active'
                 join certificates c on c.serial = decode(h.certificate_serial, 'hex') and c.device_id = d.id
                                    and c.state in ('issued', 'active')
                where h.tunnel_id is null or not h.has_agent
                   or h.tunnel_id = (select l.tunnel_id from links l where l.device_id = h.device_id)
                order by h.device_id
           ),
           opened as (
               insert into links as l (device_id, tenant_id, epoch, node, transport, certificate_serial, remote_address,
                                       boot_id, agent, os, hostname, clock_offset_ms, capabilities, tunnel_id, has_agent)
               select device_id, tenant_id, 1, node, transport, serial, remote_address,
                      boot_id, agent, os, hostname, clock_offset_ms, capabilities, tunnel_id, has_agent
                 from admitted
                order by device_id
                   on conflict (device_id) do update
                  set epoch = l.epoch + 1, node = excluded.node, transport = excluded.transport,
                      certificate_serial = excluded.certificate_serial, remote_address = excluded.remote_address,
                      boot_id = excluded.boot_id, agent = excluded.agent, os = excluded.os, hostname = excluded.hostname,
                      clock_offset_ms = excluded.clock_offset_ms, capabilities = excluded.capabilities,
                      tunnel_id = excluded.tunnel_id, has_agent = excluded.has_agent,
                      connected_at = clock_timestamp(), proven_at = clock_timestamp(), closed_at = null, close_reason = null
                where excluded.tunnel_id is null or not excluded.has_agent
                   or l.tunnel_id = excluded.tunnel_id and l.closed_at is null
               returning l.device_id, l.tenant_id, l.epoch, l.boot_id
           ),
           tunnelled as (
               insert into tunnels as t (device_id, tenant_id, id, ipv4, ipv6, client, platform, cipher)
               select a.device_id, a.tenant_id, a.tunnel_id, a.ipv4, a.ipv6, a.client, a.platform, a.cipher
                 from admitted a join opened o on o.device_id = a.device_id
                where not a.has_agent
                order by a.device_id
                   on conflict (device_id) do update
                  set id = excluded.id, ipv4 = excluded.ipv4, ipv6 = excluded.ipv6, client = excluded.client,
                      platform = excluded.platform, cipher = excluded.cipher, opened_at = clock_timestamp(),
                      packets_in = 0, packets_out = 0, bytes_in = 0, bytes_out = 0, dropped = 0
           ),
           -- The device has come back, and only its agent can tell with which boot: the loss before proves nothing.
           back as (
               update commands c set link_lost_at = null
                 from admitted a join opened o on o.device_id = a.device_id
                where not a.has_agent and c.device_id = a.device_id and c.finished_at is null
                  and c.link_lost_at is not null
           ),
           booted as (
               insert into device_boots (device_id, tenant_id, boot_id, hint)
               select a.device_id, a.tenant_id, a.boot_id, a.boot_hint
                 from admitted a join opened o on o.device_id = a.device_id
                where a.has_agent
                order by a.device_id
                   on conflict do nothing
           ),
           forgotten as (
               delete from device_boots b using admitted a
                where b.device_id = a.device_id and a.has_agent
                  and b.seen_at < (select seen_at from device_boots o where o.device_id = a.device_id
                                    order by seen_at desc offset $2 limit 1)
           ),
           activated as (
               update certificates c set state = 'active', used_at = clock_timestamp()
                 from admitted a where a.certificate_state = 'issued' and c.serial = a.serial and c.state = 'issued'
               returning c.serial, c.device_id, c.issued_at
           ),
           superseded as (
               update certificates c set state = 'superseded'
                 from activated a
                where c.device_id = a.device_id and c.serial <> a.serial and c.issued_at <= a.issued_at
                  and c.state in ('issued', 'active')
           )
           select o.device_id, o.tenant_id, o.epoch,
                  exists (select from commands c where c.device_id = o.device_id and c.finished_at is null) as "has_open_commands!",
                  exists (select from busy_locks b where b.device_id = o.device_id) as "has_busy_lock!",
                  configuration_known(o.device_id) as "configuration?: Json<ConfigurationKnown>",
                  (select a.is_quarantined from admitted a where a.device_id = o.device_id) as "is_quarantined!",
                  exists (select from device_boots b where b.device_id = o.device_id and b.boot_id = o.boot_id) as "is_known_boot!",
                  p.certificate_serial as "previous_serial?",
                  coalesce(nullif(case when q.polled_at > p.connected_at then q.boot_id else p.boot_id end, ''),
                           (select b.boot_id from device_boots b where b.device_id = o.device_id
                             order by b.seen_at desc limit 1),
                           p.boot_id) as "previous_boot_id?",
                  p.hostname as "previous_hostname?", p.node as "previous_node?", p.connected_at as "previous_connected_at?",
                  p.closed_at is null as "previous_was_live!"
             from opened o left join links p on p.device_id = o.device_id
                           -- A boot that polled before it linked is none that comes back.
                           left join polls q on q.device_id = o.device_id"#,
        Json(links) as _,
        BOOTS_MAX,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let previous = row.previous_serial.and_then(|certificate_serial| {
                Some(PreviousLink {
                    machine: Previous {
                        certificate_serial,
                        boot_id: row.previous_boot_id?,
                        hostname: row.previous_hostname?,
                        was_live: row.previous_was_live,
                    },
                    node: row.previous_node?,
                    connected_at: row.previous_connected_at?,
                })
            });
            Ok(OpenedLink {
                device_id: DeviceId::from_uuid(row.device_id),
                tenant_id: TenantId::from_uuid(row.tenant_id),
                epoch: epoch(row.epoch)?,
                has_open_commands: row.has_open_commands,
                has_busy_lock: row.has_busy_lock,
                configuration: row.configuration.map(|known| known.0),
                is_quarantined: row.is_quarantined,
                previous,
                is_known_boot: row.is_known_boot,
            })
        })
        .collect()
}

fn epoch(column: i64) -> Result<u64, StoreError> {
    u64::try_from(column).map_err(|_| StoreError::Inconsistent { table: "links", column: "epoch" })
}

/// What the boot id of a new link says about the device's open commands, in the caller's transaction: one that another boot
/// proves has succeeded; a shutdown whose boot is back has not happened yet. Gives the commands that ended.
///
/// Only a boot that was never seen before the command was sent proves anything: another may be a clone's.
pub async fn link_prove_boot_in_txn(
    connection: &mut PgConnection,
    device_id: DeviceId,
    boot_id: &str,
) -> Result<Vec<(CommandId, Applied)>, StoreError> {
    let rows = sqlx::query!(
        r#"select c.id, c.boot_id as "boot_id!", c.link_lost_at is not null as "link_lost!",
                  exists (select from device_boots b
                           where b.device_id = c.device_id and b.boot_id = $3 and b.seen_at > c.sent_at) as "is_new!"
             from commands c
            where c.device_id = $1 and c.finished_at is null and c.state in ('accepted', 'running')
              and c.kind = any($2) and c.boot_id is not null
            order by c.id
              for update"#,
        device_id.as_uuid(),
        &kinds_proven_by_boot() as &[String],
        boot_id,
    )
    .fetch_all(&mut *connection)
    .await?;
    let (other, same): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.is_new);
    let back: Vec<Uuid> = same.into_iter().filter(|row| row.link_lost).map(|row| row.id).collect();
    if !back.is_empty() {
        sqlx::query!("update commands set link_lost_at = null where id = any($1)", &back)
            .execute(&mut *connection)
            .await?;
    }
    let proven: Vec<Transition> = other
        .into_iter()
        .map(|row| Transition {
            command_id: CommandId::from_uuid(row.id),
            target: State::Succeeded,
            source: Source::Server {
                proof: Some(serde_json::json!({"kind": "boot_id", "before": row.boot_id, "after": boot_id})),
            },
            code: None,
            message: None,
            percent: None,
            data: None,
        })
        .collect();
    if proven.is_empty() {
        return Ok(Vec::new());
    }
    let applied = transition_apply(connection, &proven, Durability::Stored).await?;
    Ok(proven.into_iter().map(|transition| transition.command_id).zip(applied).collect())
}

/// A link or a tunnel that ended.
#[derive(Clone, Copy, Debug)]
pub struct ClosedLink {
    pub device_id: DeviceId,
    pub ended: Ended,
    pub reason: &'static str,
    /// The device went by itself, just now. A link that this server ended, or whose end is written late, proves nothing.
    pub is_loss: bool,
}

/// What ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The link of this epoch. If it was inside a tunnel, the row is the tunnel's again.
    Link(u64),
    /// The tunnel, whatever epoch it has by now.
    Tunnel(TunnelId),
}

/// Closes the rows that still belong to these links. A shutdown that was running is then proven by the loss, unless the
/// same boot comes back: the sweep waits for that. The loss of a link inside a tunnel proves nothing: the tunnel shows that the
/// device runs, and its loss will tell.
pub async fn link_close(connection: &mut PgConnection, links: &[ClosedLink]) -> Result<u64, StoreError> {
    let devices: Vec<Uuid> = links.iter().map(|link| link.device_id.as_uuid()).collect();
    let (epochs, tunnels): (Vec<Option<i64>>, Vec<Option<Uuid>>) = links
        .iter()
        .map(|link| match link.ended {
            Ended::Link(epoch) => (Some(epoch.cast_signed()), None),
            Ended::Tunnel(tunnel) => (None, Some(tunnel.as_uuid())),
        })
        .unzip();
    let reasons: Vec<String> = links.iter().map(|link| link.reason.to_owned()).collect();
    let losses: Vec<bool> = links.iter().map(|link| link.is_loss).collect();
    let closed = sqlx::query_scalar!(
        r#"with ended as materialized (
               select l.device_id, t.reason, t.is_loss, l.tunnel_id is not null and t.tunnel_id is null as is_inside
                 from unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::text[], $5::boolean[])
                      as t(device_id, epoch, tunnel_id, reason, is_loss)
                 join links l on l.device_id = t.device_id and l.closed_at is null
                             and (l.epoch = t.epoch and l.has_agent or l.tunnel_id = t.tunnel_id)
                order by l.device_id
                  for update of l
           ),
           closed as (
               update links l
                  set has_agent = l.has_agent and not e.is_inside,
                      closed_at = case when not e.is_inside then clock_timestamp() end,
                      close_reason = case when not e.is_inside then e.reason end
                 from ended e where l.device_id = e.device_id
               returning l.device_id, e.is_loss and not e.is_inside as is_loss
           ),
           lost as (
               update commands c set link_lost_at = clock_timestamp()
                 from closed d
                where c.device_id = d.device_id and d.is_loss and c.finished_at is null and c.state = 'running'
                  and c.link_lost_at is null
           )
           select count(*) as "closed!" from closed"#,
        &devices,
        &epochs as &[Option<i64>],
        &tunnels as &[Option<Uuid>],
        &reasons,
        &losses,
    )
    .fetch_one(connection)
    .await?;
    Ok(closed.unsigned_abs())
}

/// Closes some of what a node left open that is not there any more. That says nothing about the devices: the node was away, not
/// they.
pub async fn link_close_node(
    connection: &mut PgConnection,
    node: &str,
    reason: &str,
    rows_max: i64,
) -> Result<u64, StoreError> {
    let closed = sqlx::query!(
        "update links set closed_at = clock_timestamp(), close_reason = $2
          where device_id in (select device_id from links where node = $1 and closed_at is null
                               order by device_id limit $3 for no key update)
            and node = $1 and closed_at is null",
        node,
        reason,
        rows_max,
    )
    .execute(connection)
    .await?;
    Ok(closed.rows_affected())
}

/// Closes some of what a node left open that others have taken to be gone: while they do, it has given up what it had, and opens
/// nothing. One that is back meanwhile keeps what it has by now.
pub async fn link_close_gone(connection: &mut PgConnection, node: &str, rows_max: i64) -> Result<u64, StoreError> {
    let closed = sqlx::query!(
        "with gone as materialized (select name from nodes where name = $1 and gone_at is not null for share),
              chosen as materialized (select l.device_id from gone g join links l on l.node = g.name and l.closed_at is null
                                     order by l.device_id limit $2 for no key update of l)
         update links set closed_at = clock_timestamp(), close_reason = 'node_lost'
          where device_id in (select device_id from chosen) and node = $1 and closed_at is null",
        node,
        rows_max,
    )
    .execute(connection)
    .await?;
    Ok(closed.rows_affected())
}

/// A row that says that a link is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LiveLink {
    pub key: LinkKey,
    pub tunnel_id: Option<TunnelId>,
    pub has_agent: bool,
}

/// Rows of a node that say that a link is live, and whose device was not heard of for so long; and those that say for so long
/// that an agent answers in a tunnel, for it may be the tunnel alone that was heard of.
pub async fn link_list_silent(
    connection: &mut PgConnection,
    node: &str,
    silent_for: Duration,
) -> Result<Vec<LiveLink>, StoreError> {
    let rows = sqlx::query!(
        "select device_id, epoch, tunnel_id, has_agent from links
          where node = $1 and closed_at is null
            and case when has_agent and tunnel_id is not null then connected_at else proven_at end
                <= clock_timestamp() - make_interval(secs => $2)",
        node,
        silent_for.as_secs_f64(),
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(LiveLink {
                key: LinkKey { device_id: DeviceId::from_uuid(row.device_id), epoch: epoch(row.epoch)? },
                tunnel_id: row.tunnel_id.map(TunnelId::from_uuid),
                has_agent: row.has_agent,
            })
        })
        .collect()
}

/// Of links that a node holds, those that count no more: their devices have newer ones on other nodes, or their rows are closed, by
/// whomever.
pub async fn link_list_superseded(
    connection: &mut PgConnection,
    node: &str,
    links: &[LinkKey],
) -> Result<Vec<LinkKey>, StoreError> {
    let devices: Vec<Uuid> = links.iter().map(|link| link.device_id.as_uuid()).collect();
    let epochs: Vec<i64> = links.iter().map(|link| link.epoch.cast_signed()).collect();
    let rows = sqlx::query!(
        "select t.device_id as \"device_id!\", t.epoch as \"epoch!\" from unnest($2::uuid[], $3::bigint[]) as t(device_id, epoch)
           join links l on l.device_id = t.device_id
                       and (l.epoch > t.epoch and l.node <> $1 or l.epoch >= t.epoch and l.closed_at is not null)",
        node,
        &devices,
        &epochs,
    );
    let rows = rows.fetch_all(connection).await?;
    rows.into_iter()
        .map(|row| Ok(LinkKey { device_id: DeviceId::from_uuid(row.device_id), epoch: epoch(row.epoch)? }))
        .collect()
}

/// The node on whose link an agent of the device answers.
pub async fn link_node(connection: &mut PgConnection, device: DeviceId) -> Result<Option<String>, StoreError> {
    let node = sqlx::query_scalar!(
        "select node from links where device_id = $1 and closed_at is null and has_agent",
        device.as_uuid(),
    );
    Ok(node.fetch_optional(connection).await?)
}

/// A live link or tunnel, heard of this long ago.
#[derive(Clone, Copy, Debug)]
pub struct ProvenLink {
    pub device_id: DeviceId,
    pub epoch: u64,
    /// The row is this tunnel's, whatever epoch it has by now.
    pub tunnel_id: Option<TunnelId>,
    pub heard_ms_ago: u64,
}

/// Writes when the devices were last heard of. At most one a device. Losing it costs nothing: the next one says it again.
pub async fn link_prove(connection: &mut PgConnection, links: &[ProvenLink]) -> Result<(), StoreError> {
    let devices: Vec<Uuid> = links.iter().map(|link| link.device_id.as_uuid()).collect();
    let epochs: Vec<i64> = links.iter().map(|link| link.epoch.cast_signed()).collect();
    let tunnels: Vec<Option<Uuid>> = links.iter().map(|link| link.tunnel_id.map(TunnelId::as_uuid)).collect();
    let ages: Vec<i64> = links.iter().map(|link| link.heard_ms_ago.cast_signed()).collect();
    sqlx::query!(
        r#"with heard as materialized (
               select l.device_id, clock_timestamp() - t.age_ms * interval '1 millisecond' as at
                 from unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::bigint[]) as t(device_id, epoch, tunnel_id, age_ms)
                 join links l on l.device_id = t.device_id and l.closed_at is null
                             and (l.epoch = t.epoch or l.tunnel_id = t.tunnel_id)
                where set_config('synchronous_commit', 'off', true) is not null
                order by l.device_id
                  for update of l skip locked
           )
           update links l set proven_at = greatest(l.proven_at, h.at) from heard h where l.device_id = h.device_id"#,
        &devices,
        &epochs,
        &tunnels as &[Option<Uuid>],
        &ages,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes that a certificate seems to be in use on two machines.
pub async fn link_suspect_clone(
    connection: &mut PgConnection,
    tenant_id: TenantId,
    device_id: DeviceId,
    details: &Value,
) -> Result<(), StoreError> {
    sqlx::query!(
        r#"select audit_append($1, '{"kind": "server"}', 'link.clone_suspected',
                               jsonb_build_object('kind', 'device', 'id', $2::uuid), $3)"#,
        tenant_id.as_uuid(),
        device_id.as_uuid(),
        details,
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_node_that_is_just_coming_back_keeps_what_it_has(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.link(scene.device).await;
        scene.node_is_gone("node-1").await;
        let mut back = scene.root.begin().await.unwrap();
        sqlx::query("update nodes set gone_at = null").execute(&mut *back).await.unwrap();
        let store = scene.store.clone();
        let closing = tokio::spawn(async move {
            link_close_gone(&mut store.connection().await.unwrap(), "node-1", 10).await.unwrap()
        });
        let begun = Instant::now();
        while !closing.is_finished() && scene.waiting().await == 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "it neither closes nor waits");
            sleep(Duration::from_millis(2)).await;
        }
        back.commit().await.unwrap();
        assert_eq!(closing.await.unwrap(), 0);
        scene.node_is_gone("node-1").await;
        assert_eq!(link_close_gone(&mut scene.store.connection().await.unwrap(), "node-1", 10).await.unwrap(), 1);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn links_count_no_more_when_they_are_closed_or_newer_ones_are_elsewhere(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        let of = async |node, epoch| {
            let keys = [LinkKey { device_id: scene.device, epoch }];
            let over = link_list_superseded(&mut scene.store.connection().await.unwrap(), node, &keys).await.unwrap();
            assert!(over.is_empty() || over == keys, "{over:?}");
            !over.is_empty()
        };
        scene.link(scene.device).await;
        scene.link(scene.device).await;
        assert!(!of("node-1", 2).await && !of("node-2", 2).await, "it is the newest");
        assert!(of("node-2", 1).await, "another node has a newer one");
        assert!(!of("node-1", 1).await, "the node itself may be just about to enter the newer one");
        scene.unlink(scene.device).await;
        assert!(of("node-1", 1).await && of("node-1", 2).await && of("node-2", 2).await);
        assert!(!of("node-1", 3).await, "what is closed is older");
    }
}
