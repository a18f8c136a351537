//! Devices as people see them. Links and certificates are written by `store::link` and `store::certificate`.

use std::net::{Ipv4Addr, Ipv6Addr};

use cloudlink_proto::ids::{DeviceId, PersonId, TenantId};
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::model::busy_lock::BusyLock;
use crate::model::configuration::ConfigurationStanding;
use crate::model::device::{
    Certificate, Device, DeviceMetrics, DeviceState, Labels, Link, LinkState, Poll, Quarantine, Running, Tunnel,
};
use crate::model::selector::Selector;
use crate::model::transport_failure::TransportFailure;

/// The constraint that refuses a name that another device of the tenant has.
pub const NAME_TAKEN: &str = "devices_tenant_id_name_key";

struct Row {
    id: Uuid,
    tenant_id: Uuid,
    name: String,
    labels: Json<Labels>,
    state: String,
    version: i64,
    enrolled_at: OffsetDateTime,
    revoked_at: Option<OffsetDateTime>,
    quarantined_at: Option<OffsetDateTime>,
    quarantined_by: Option<Uuid>,
    quarantine_reason: Option<String>,
    serial: Option<String>,
    not_after: Option<OffsetDateTime>,
    link: Option<Json<LinkRow>>,
    connected_at: Option<OffsetDateTime>,
    proven_at: Option<OffsetDateTime>,
    closed_at: Option<OffsetDateTime>,
    tunnel: Option<Json<TunnelRow>>,
    opened_at: Option<OffsetDateTime>,
    poll: Option<Json<PollRow>>,
    polled_at: Option<OffsetDateTime>,
    next_poll_by: Option<OffsetDateTime>,
    busy_reason: Option<String>,
    busy_since: Option<OffsetDateTime>,
    busy_until: Option<OffsetDateTime>,
    configuration: Option<Json<ConfigurationStanding>>,
    transport_failures: Json<Vec<TransportFailure>>,
}

/// What of a link comes as JSON, so that one null says that there is none.
#[derive(serde::Deserialize)]
struct LinkRow {
    transport: String,
    node: String,
    epoch: i64,
    remote_address: String,
    boot_id: String,
    agent: String,
    os: String,
    hostname: String,
    clock_offset_ms: i64,
    capabilities: Vec<String>,
    close_reason: Option<String>,
    has_agent: bool,
}

/// The same of a tunnel.
#[derive(serde::Deserialize)]
struct TunnelRow {
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
    client: String,
    platform: String,
    cipher: String,
    packets_in: i64,
    packets_out: i64,
    bytes_in: i64,
    bytes_out: i64,
    dropped: i64,
}

/// The same of a poll.
#[derive(serde::Deserialize)]
struct PollRow {
    interval_seconds: i32,
    node: String,
    remote_address: String,
    boot_id: String,
    agent: String,
    os: String,
    hostname: String,
    clock_offset_ms: i64,
    capabilities: Vec<String>,
    running: Vec<Running>,
}

impl TryFrom<Row> for Device {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let times = row.connected_at.zip(row.proven_at);
        let link = row.link.zip(times).map(|(Json(link), (connected_at, proven_at))| Link {
            transport: link.transport,
            state: if row.closed_at.is_none() { LinkState::Live } else { LinkState::Closed },
            node: link.node,
            epoch: link.epoch,
            remote_address: link.remote_address,
            boot_id: link.boot_id,
            agent: link.agent,
            os: link.os,
            hostname: link.hostname,
            clock_offset_ms: link.clock_offset_ms,
            capabilities: link.capabilities,
            connected_at,
            proven_at,
            closed_at: row.closed_at,
            close_reason: link.close_reason,
            has_agent: link.has_agent,
        });
        let tunnel = row.tunnel.zip(row.opened_at).map(|(Json(tunnel), opened_at)| Tunnel {
            ipv4: tunnel.ipv4,
            ipv6: tunnel.ipv6,
            client: tunnel.client,
            platform: tunnel.platform,
            cipher: tunnel.cipher,
            opened_at,
            packets_in: tunnel.packets_in,
            packets_out: tunnel.packets_out,
            bytes_in: tunnel.bytes_in,
            bytes_out: tunnel.bytes_out,
            dropped: tunnel.dropped,
        });
        let live = link.as_ref().filter(|link| link.state == LinkState::Live).map(|link| link.transport.clone());
        let poll = row.poll.zip(row.polled_at).map(|(Json(poll), last_poll_at)| Poll {
            last_poll_at,
            next_poll_by: row.next_poll_by,
            interval_seconds: poll.interval_seconds,
            node: poll.node,
            remote_address: poll.remote_address,
            boot_id: poll.boot_id,
            agent: poll.agent,
            os: poll.os,
            hostname: poll.hostname,
            clock_offset_ms: poll.clock_offset_ms,
            capabilities: poll.capabilities,
            running: poll.running,
        });
        Ok(Self {
            id: row.id,
            tenant_id: row.tenant_id,
            name: row.name,
            labels: row.labels.0,
            state: DeviceState::named(&row.state)
                .ok_or(StoreError::Inconsistent { table: "devices", column: "state" })?,
            version: row.version,
            enrolled_at: row.enrolled_at,
            revoked_at: row.revoked_at,
            quarantine: row.quarantined_at.zip(row.quarantine_reason).map(|(since, reason)| Quarantine {
                since,
                by: row.quarantined_by,
                reason,
            }),
            certificate: row.serial.zip(row.not_after).map(|(serial, not_after)| Certificate { serial, not_after }),
            transport: live.or_else(|| row.next_poll_by.map(|_| "polling".to_owned())),
            link,
            tunnel,
            poll,
            busy_lock: row
                .busy_reason
                .zip(row.busy_since)
                .zip(row.busy_until)
                .map(|((reason, since), until)| BusyLock { reason, since, until }),
            configuration: row.configuration.map(|configuration| configuration.0),
            transport_failures: row.transport_failures.0,
        })
    }
}

/// A query over devices `d`, their newest links `l` and the tunnels `t` that carry live ones; the tail says which. Those with which
/// nodes prove their isolation are nobody's to see.
macro_rules! device_query {
    ($tail:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            r#"select d.id, d.tenant_id, d.name, d.labels as "labels: _", d.state, d.version, d.enrolled_at, d.revoked_at,
                      d.quarantined_at, d.quarantined_by, d.quarantine_reason,
                      c.serial as "serial?", c.not_after as "not_after?",
                      case when l.device_id is not null then jsonb_build_object(
                          'transport', l.transport, 'node', l.node, 'epoch', l.epoch,
                          'remote_address', host(l.remote_address), 'boot_id', l.boot_id, 'agent', l.agent, 'os', l.os,
                          'hostname', l.hostname, 'clock_offset_ms', l.clock_offset_ms, 'capabilities', l.capabilities,
                          'close_reason', l.close_reason, 'has_agent', l.has_agent) end as "link?: Json<LinkRow>",
                      l.connected_at as "connected_at?", l.proven_at as "proven_at?", l.closed_at as "closed_at?",
                      case when t.id is not null then jsonb_build_object(
                          'ipv4', host(t.ipv4), 'ipv6', host(t.ipv6), 'client', t.client, 'platform', t.platform,
                          'cipher', t.cipher, 'packets_in', t.packets_in, 'packets_out', t.packets_out,
                          'bytes_in', t.bytes_in, 'bytes_out', t.bytes_out, 'dropped', t.dropped)
                      end as "tunnel?: Json<TunnelRow>",
                      t.opened_at as "opened_at?",
                      case when q.device_id is not null then jsonb_build_object(
                          'interval_seconds', q.interval_seconds, 'node', q.node, 'remote_address', host(q.remote_address),
                          'boot_id', q.boot_id, 'agent', q.agent, 'os', q.os, 'hostname', q.hostname,
                          'clock_offset_ms', q.clock_offset_ms, 'capabilities', q.capabilities, 'running', q.running)
                      end as "poll?: Json<PollRow>",
                      q.polled_at as "polled_at?",
                      device_next_poll_by(d.id, clock_timestamp()) as "next_poll_by?",
                      b.reason as "busy_reason?", b.since as "busy_since?", b.until as "busy_until?",
                      case when f.version > 0 or f.invalid is not null then jsonb_build_object(
                          'desired_version', f.version, 'applied_version', f.applied_version, 'state', configuration_state(f),
                          'error', coalesce(f.invalid, case when f.reported_version >= f.version then f.error end),
                          'since', configuration_since(f)) end as "configuration?: Json<ConfigurationStanding>",
                      coalesce((select jsonb_agg(jsonb_build_object(
                                           'transport', f.transport, 'stage', f.stage, 'code', f.code, 'count', f.count,
                                           'last_at', f.last_at) order by f.last_at desc)
                                  from transport_failures f where f.device_id = d.id), '[]') as "transport_failures!: _"
                 from devices d
                 join tenants n on n.id = d.tenant_id and not n.internal
                 left join links l on l.device_id = d.id
                 left join tunnels t on t.device_id = d.id and t.id = l.tunnel_id and l.closed_at is null
                 left join polls q on q.device_id = d.id
                 left join device_configurations f on f.device_id = d.id
                 left join busy_locks b on b.device_id = d.id and b.until = busy_lock_in_force(d.id, clock_timestamp())
                 left join lateral (
                     select encode(serial, 'hex') as serial, not_after from certificates
                      where device_id = d.id and state in ('active', 'issued')
                      order by state = 'active' desc, issued_at desc limit 1) c on true
            "# + $tail
            $(, $argument)*
        )
    };
}

pub async fn device_show(connection: &mut PgConnection, id: DeviceId) -> Result<Option<Device>, StoreError> {
    device_query!("where d.id = $1", id.as_uuid()).fetch_optional(connection).await?.map(Device::try_from).transpose()
}

/// Like [`device_show`], and nobody else changes it before the end of this transaction.
pub async fn device_lock(connection: &mut PgConnection, id: DeviceId) -> Result<Option<Device>, StoreError> {
    device_query!("where d.id = $1 for no key update of d", id.as_uuid())
        .fetch_optional(connection)
        .await?
        .map(Device::try_from)
        .transpose()
}

/// What [`device_list`] looks for.
#[derive(Clone, Debug, Default)]
pub struct DeviceFilter {
    pub tenant: Option<TenantId>,
    pub name: Option<String>,
    /// With which the name begins.
    pub name_prefix: Option<String>,
    pub selector: Option<Selector>,
    pub linked: Option<bool>,
    /// Active, and neither linked nor polling in time.
    pub silent: Option<bool>,
    pub quarantined: Option<bool>,
}

/// Devices, newest first, after the position given.
pub async fn device_list(
    connection: &mut PgConnection,
    filter: &DeviceFilter,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<Device>, StoreError> {
    let (after_time, after_id) = after.unzip();
    device_query!(
        // By the index as far as that goes, and then exactly.
        "where ($1::uuid is null or d.tenant_id = $1) and ($2::text is null or d.name = $2) and d.labels @> $3
           and ($9::jsonb is null or labels_match(d.labels, $9))
           and ($4::boolean is null or (l.device_id is not null and l.closed_at is null) = $4)
           and ($5::boolean is null or (d.quarantined_at is not null) = $5)
           and ($10::text is null or starts_with(d.name, $10))
           and ($11::boolean is null
                or (d.state = 'active' and (l.device_id is null or l.closed_at is not null)
                    and device_next_poll_by(d.id, clock_timestamp()) is null) = $11)
           and ($6::timestamptz is null or (d.enrolled_at, d.id) < ($6, $7::uuid))
         order by d.enrolled_at desc, d.id desc limit $8",
        filter.tenant.map(TenantId::as_uuid),
        filter.name,
        Json(filter.selector.as_ref().map(Selector::equals).unwrap_or_default()) as _,
        filter.linked,
        filter.quarantined,
        after_time,
        after_id,
        limit,
        filter.selector.as_ref().map(Json) as _,
        filter.name_prefix,
        filter.silent
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(Device::try_from)
    .collect()
}

/// Changes what is given.
pub async fn device_update(
    connection: &mut PgConnection,
    id: DeviceId,
    name: Option<&str>,
    labels: Option<&Labels>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update devices set name = coalesce($2, name), labels = coalesce($3, labels), version = version + 1 where id = $1",
        id.as_uuid(),
        name,
        labels.map(Json) as _
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Refuses the device and every certificate of it from now on. Returns whether this call did it.
pub async fn device_revoke(connection: &mut PgConnection, id: DeviceId) -> Result<bool, StoreError> {
    let devices = sqlx::query!(
        "update devices set state = 'revoked', revoked_at = clock_timestamp(), version = version + 1
          where id = $1 and state = 'active'",
        id.as_uuid()
    )
    .execute(&mut *connection)
    .await?;
    if devices.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query!(
        "update certificates set state = 'revoked', revoked_at = clock_timestamp()
          where device_id = $1 and state <> 'revoked'",
        id.as_uuid()
    )
    .execute(connection)
    .await?;
    Ok(true)
}

/// How many of these devices the connection may see.
pub async fn device_count(connection: &mut PgConnection, ids: &[Uuid]) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(r#"select count(*) as "count!" from devices where id = any ($1)"#, ids)
        .fetch_one(connection)
        .await?)
}

pub async fn device_metrics_show(
    connection: &mut PgConnection,
    id: DeviceId,
) -> Result<Option<DeviceMetrics>, StoreError> {
    Ok(sqlx::query_as!(
        DeviceMetrics,
        "select device_id, received_at, report from device_metrics where device_id = $1",
        id.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

/// The newest report, to an operator with a grant in force at this very moment, with the entry in the tenant's audit log:
/// one statement. `None` without grant or report.
pub async fn device_metrics_read_under_grant(
    connection: &mut PgConnection,
    id: DeviceId,
    operator: PersonId,
    actor: Value,
    scope: &str,
) -> Result<Option<DeviceMetrics>, StoreError> {
    Ok(sqlx::query_as!(
        DeviceMetrics,
        r#"select r.device_id as "device_id!", r.received_at as "received_at!", r.report as "report!" from (
               select m.device_id, m.received_at, m.report,
                      audit_append(d.tenant_id, $4, 'metrics.read', jsonb_build_object('kind', 'device', 'id', d.id),
                                   jsonb_build_object('grant_id', g.id, 'received_at', m.received_at)) as audited
                 from devices d
                 join device_metrics m on m.device_id = d.id
                 join lateral (select g.id from grants g
                                where grant_covers(g, d, $2, $3) and grant_in_force(g, clock_timestamp())
                                order by g.ends_at desc limit 1) g on true
                where d.id = $1
               offset 0) r
            where r.audited > 0"#,
        id.as_uuid(),
        operator.as_uuid(),
        scope,
        actor
    )
    .fetch_optional(connection)
    .await?)
}
