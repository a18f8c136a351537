//! Openings: made by `opening_create()` in the database and by nothing else, ended by whoever ends their grant, device or
//! operator, or by their time. What the kernels are told is what [`opening_list_due`] says.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use cloudlink_proto::ids::{DeviceId, GrantId, OpeningId, PersonId, TenantId, TunnelId};
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use super::StoreError;
use super::command::{self, Missing, command_explain};
use crate::model::opening::{EndReason, Endpoint, OPENINGS_MAX, Opening, OpeningState, SCOPE};

struct Row {
    id: Uuid,
    tenant_id: Uuid,
    device_id: Uuid,
    grant_id: Uuid,
    opened_by: Uuid,
    port: i32,
    reason: String,
    state: String,
    created_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    opened_at: Option<OffsetDateTime>,
    ended_at: Option<OffsetDateTime>,
    end_reason: Option<String>,
    endpoint: Option<Json<EndpointRow>>,
}

/// Comes as JSON, so that one null says that there is none.
#[derive(serde::Deserialize)]
struct EndpointRow {
    node: String,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
}

impl TryFrom<Row> for Opening {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let unreadable = |column| StoreError::Inconsistent { table: "openings", column };
        Ok(Self {
            id: row.id,
            tenant_id: row.tenant_id,
            device_id: row.device_id,
            grant_id: row.grant_id,
            opened_by: row.opened_by,
            port: u16::try_from(row.port).map_err(|_| unreadable("port"))?,
            reason: row.reason,
            state: OpeningState::named(&row.state).ok_or_else(|| unreadable("state"))?,
            created_at: row.created_at,
            expires_at: row.expires_at,
            opened_at: row.opened_at,
            ended_at: row.ended_at,
            end_reason: row.end_reason,
            endpoint: row.endpoint.map(|Json(EndpointRow { node, ipv4, ipv6 })| Endpoint { node, ipv4, ipv6 }),
        })
    }
}

/// A statement that yields openings `o`: the head comes before the columns, the tail after them. One whose time is up has
/// ended, also before that is written down.
macro_rules! opening_query {
    ($head:literal, $tail:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            $head
                + r#" o.id as "id!", o.tenant_id as "tenant_id!", o.device_id as "device_id!", o.grant_id as "grant_id!",
                      o.opened_by as "opened_by!", o.port as "port!", o.reason as "reason!",
                      case when o.ended_at is not null or o.expires_at <= clock_timestamp() then 'ended'
                           when o.opened_at is not null then 'open' else 'requested' end as "state!",
                      o.created_at as "created_at!", o.expires_at as "expires_at!", o.opened_at,
                      case when o.expires_at <= clock_timestamp() then coalesce(o.ended_at, o.expires_at) else o.ended_at
                      end as ended_at,
                      case when o.expires_at <= clock_timestamp() then coalesce(o.end_reason, 'expired') else o.end_reason
                      end as end_reason,
                      (select jsonb_build_object('node', l.node, 'ipv4', host(t.ipv4), 'ipv6', host(t.ipv6))
                         from links l join tunnels t on t.device_id = l.device_id and t.id = l.tunnel_id
                        where l.device_id = o.device_id and l.closed_at is null and o.ended_at is null
                          and o.expires_at > clock_timestamp()) as "endpoint?: Json<EndpointRow>" "#
                + $tail
            $(, $argument)*
        )
    };
}

/// An opening that somebody asks for.
#[derive(Clone, Debug)]
pub struct NewOpening<'a> {
    pub id: OpeningId,
    pub operator: PersonId,
    /// Who asks, for the audit log.
    pub actor: Value,
    pub device: DeviceId,
    /// Only under this grant.
    pub grant: Option<GrantId>,
    pub port: u16,
    pub reason: &'a str,
    pub open_for: Duration,
}

/// Makes an opening if a grant in force allows it at this moment and the device has a tunnel, with its audit entry: one
/// statement.
pub async fn opening_create(
    connection: &mut PgConnection,
    new: &NewOpening<'_>,
) -> Result<Option<Opening>, StoreError> {
    opening_query!(
        "with made as materialized (
             select * from opening_create($1, $2, $3, $4, $5, $6, make_interval(secs => $7), $8)
         )
         select",
        "from (
            select m.*, audit_append(
                       m.tenant_id, $9, 'opening.created', jsonb_build_object('kind', 'opening', 'id', m.id),
                       jsonb_build_object('device_id', m.device_id, 'grant_id', m.grant_id, 'port', m.port,
                                          'reason', m.reason, 'expires_at', m.expires_at)) as audited
              from made m
            offset 0) o
          where o.audited > 0",
        new.id.as_uuid(),
        new.operator.as_uuid(),
        new.device.as_uuid(),
        new.grant.map(GrantId::as_uuid),
        i32::from(new.port),
        new.reason,
        new.open_for.as_secs_f64(),
        OPENINGS_MAX,
        new.actor,
    )
    .fetch_optional(connection)
    .await?
    .map(Opening::try_from)
    .transpose()
}

/// Why [`opening_create`] made nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    DeviceUnknown,
    DeviceRevoked,
    Grant {
        tenant: TenantId,
        missing: Missing,
    },
    Quarantined {
        tenant: TenantId,
    },
    /// It has no link, or one without a tunnel.
    NoTunnel {
        tenant: TenantId,
    },
    TooMany {
        tenant: TenantId,
    },
    /// Nothing any more: what was in the way has gone.
    Gone,
}

/// Tells what stands in the way of an opening. Who has no grant learns nothing else.
pub async fn opening_explain(
    connection: &mut PgConnection,
    operator: PersonId,
    device: DeviceId,
    grant: Option<GrantId>,
) -> Result<Obstacle, StoreError> {
    match command_explain(connection, operator, device, grant, &[SCOPE]).await? {
        command::Obstacle::DeviceUnknown => return Ok(Obstacle::DeviceUnknown),
        command::Obstacle::DeviceRevoked => return Ok(Obstacle::DeviceRevoked),
        command::Obstacle::Grant { tenant, missing } => return Ok(Obstacle::Grant { tenant, missing }),
        // The grant is there.
        command::Obstacle::NotLinked
        | command::Obstacle::NoAgent { .. }
        | command::Obstacle::Polling { .. }
        | command::Obstacle::Gone => {}
    }
    let row = sqlx::query!(
        r#"select d.tenant_id, d.quarantined_at is not null as "is_quarantined!",
                  exists (select from links l
                           where l.device_id = d.id and l.closed_at is null and l.tunnel_id is not null) as "has_tunnel!",
                  (select count(*) from openings o where o.device_id = d.id and o.ended_at is null) >= $2::integer
                      as "is_full!"
             from devices d where d.id = $1"#,
        device.as_uuid(),
        OPENINGS_MAX
    )
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(Obstacle::DeviceUnknown) };
    let tenant = TenantId::from_uuid(row.tenant_id);
    Ok(match (row.is_quarantined, row.has_tunnel, row.is_full) {
        (true, _, _) => Obstacle::Quarantined { tenant },
        (false, false, _) => Obstacle::NoTunnel { tenant },
        (false, true, true) => Obstacle::TooMany { tenant },
        (false, true, false) => Obstacle::Gone,
    })
}

pub async fn opening_show(connection: &mut PgConnection, id: OpeningId) -> Result<Option<Opening>, StoreError> {
    opening_query!("select", "from openings o where o.id = $1", id.as_uuid())
        .fetch_optional(connection)
        .await?
        .map(Opening::try_from)
        .transpose()
}

/// What [`opening_list`] looks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpeningFilter {
    pub device: Option<DeviceId>,
    pub grant: Option<GrantId>,
    /// Whether it has not ended.
    pub open: Option<bool>,
}

/// Openings, newest first, after the position given.
pub async fn opening_list(
    connection: &mut PgConnection,
    filter: OpeningFilter,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<Opening>, StoreError> {
    let (after_time, after_id) = after.unzip();
    opening_query!(
        "select",
        "from openings o
          where ($1::uuid is null or o.device_id = $1) and ($2::uuid is null or o.grant_id = $2)
            and ($3::boolean is null or (o.ended_at is null and o.expires_at > clock_timestamp()) = $3)
            and ($4::timestamptz is null or (o.created_at, o.id) < ($4, $5::uuid))
          order by o.created_at desc, o.id desc limit $6",
        filter.device.map(DeviceId::as_uuid),
        filter.grant.map(GrantId::as_uuid),
        filter.open,
        after_time,
        after_id,
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(Opening::try_from)
    .collect()
}

/// Which openings are to be ended.
#[derive(Clone, Copy, Debug)]
pub enum Closing {
    One(OpeningId),
    UnderGrant(GrantId),
    OfDevice(DeviceId),
    OfPerson(PersonId),
}

/// Openings that have not ended, locked to be.
#[derive(Debug)]
pub struct LiveOpenings(Vec<Uuid>);

impl LiveOpenings {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Waits for the openings that have not ended, and keeps them as they are to the end of this transaction. Comes before anything
/// that writes to the audit log.
pub async fn opening_lock_in_txn(connection: &mut PgConnection, which: Closing) -> Result<LiveOpenings, StoreError> {
    let (one, grant, device, person) = match which {
        Closing::One(id) => (Some(id.as_uuid()), None, None, None),
        Closing::UnderGrant(id) => (None, Some(id.as_uuid()), None, None),
        Closing::OfDevice(id) => (None, None, Some(id.as_uuid()), None),
        Closing::OfPerson(id) => (None, None, None, Some(id.as_uuid())),
    };
    let ids = sqlx::query_scalar!(
        "select id from openings
          where ended_at is null and ($1::uuid is null or id = $1) and ($2::uuid is null or grant_id = $2)
            and ($3::uuid is null or device_id = $3) and ($4::uuid is null or opened_by = $4)
          order by id for no key update",
        one,
        grant,
        device,
        person
    );
    Ok(LiveOpenings(ids.fetch_all(connection).await?))
}

/// Ends openings, each with its entry in the audit log. Gives their devices, whose nodes are to be told.
pub async fn opening_end_in_txn(
    connection: &mut PgConnection,
    openings: &LiveOpenings,
    actor: Value,
    reason: EndReason,
) -> Result<Vec<DeviceId>, StoreError> {
    let rows = sqlx::query!(
        r#"with ended as (
               update openings set ended_at = clock_timestamp(), end_reason = $2
                where id = any ($1) and ended_at is null
               returning id, tenant_id, device_id, grant_id, port, end_reason
           )
           select device_id, audit_append(
                      tenant_id, $3, 'opening.closed', jsonb_build_object('kind', 'opening', 'id', id),
                      jsonb_build_object('device_id', device_id, 'grant_id', grant_id, 'port', port,
                                         'reason', end_reason)) as audited
             from (select * from ended order by tenant_id, id) e"#,
        &openings.0,
        reason.name(),
        actor
    )
    .fetch_all(connection)
    .await?;
    Ok(devices(rows.into_iter().map(|row| row.device_id)))
}

/// Openings that one sweep ends. Whoever gets as many devices sweeps again.
const SWEEP_MAX: i64 = 256;

/// Ends what is over at this moment by the database's clock, whatever it was that ended it: one statement. Several nodes may
/// sweep at once: what one has locked, another passes over.
pub async fn opening_sweep(connection: &mut PgConnection) -> Result<Vec<DeviceId>, StoreError> {
    let rows = sqlx::query!(
        r#"with over as materialized (
               select o.id, opening_over(o, g, d, p, clock_timestamp()) as reason
                 from openings o
                 join grants g on g.id = o.grant_id
                 join devices d on d.id = o.device_id
                 join people p on p.id = o.opened_by
                where o.ended_at is null and opening_over(o, g, d, p, clock_timestamp()) is not null
                order by o.id
                limit $1
                  for update of o skip locked
           ), ended as (
               update openings o
                  set ended_at = least(clock_timestamp(), o.expires_at), end_reason = v.reason
                 from over v where o.id = v.id and v.reason is not null
               returning o.id, o.tenant_id, o.device_id, o.grant_id, o.port, o.end_reason
           )
           select device_id, audit_append(
                      tenant_id, jsonb_build_object('kind', 'server'), 'opening.closed',
                      jsonb_build_object('kind', 'opening', 'id', id),
                      jsonb_build_object('device_id', device_id, 'grant_id', grant_id, 'port', port,
                                         'reason', end_reason)) as audited
             from (select * from ended order by tenant_id, id) e"#,
        SWEEP_MAX
    )
    .fetch_all(connection)
    .await?;
    Ok(devices(rows.into_iter().map(|row| row.device_id)))
}

fn devices(ids: impl Iterator<Item = Uuid>) -> Vec<DeviceId> {
    let mut devices: Vec<_> = ids.map(DeviceId::from_uuid).collect();
    devices.sort_unstable();
    devices.dedup();
    devices
}

/// A port that a node is to keep open at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueOpening {
    pub device: DeviceId,
    /// The tunnel that carries the device's live link.
    pub tunnel: TunnelId,
    pub ipv4: Ipv4Addr,
    pub port: u16,
    /// Never later than the database's clock says.
    pub until: Instant,
    /// Those of its openings that have not been open yet.
    pub news: Vec<OpeningId>,
}

/// The ports of devices that have their tunnel on this node, each until the last of its openings ends.
pub async fn opening_list_due(connection: &mut PgConnection, node: &str) -> Result<Vec<DueOpening>, StoreError> {
    // Before the database reads its clock: what it says is left then is left from here on at most.
    let asked_at = Instant::now();
    let rows = sqlx::query!(
        r#"select o.device_id, t.id as "tunnel_id!", host(t.ipv4) as "ipv4!", o.port,
                  max(extract(epoch from least(o.expires_at, g.ends_at) - clock_timestamp()))::float8 as "seconds_left!",
                  coalesce(array_agg(o.id) filter (where o.opened_at is null), '{}') as "news!"
             from openings o
             join grants g on g.id = o.grant_id
             join devices d on d.id = o.device_id
             join people p on p.id = o.opened_by
             join links l on l.device_id = o.device_id and l.closed_at is null and l.node = $1
             join tunnels t on t.device_id = l.device_id and t.id = l.tunnel_id
            where o.ended_at is null and opening_over(o, g, d, p, clock_timestamp()) is null
            group by o.device_id, t.id, t.ipv4, o.port"#,
        node
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let unreadable = |column| StoreError::Inconsistent { table: "openings", column };
            Ok(DueOpening {
                device: DeviceId::from_uuid(row.device_id),
                tunnel: TunnelId::from_uuid(row.tunnel_id),
                ipv4: row.ipv4.parse().map_err(|_| unreadable("ipv4"))?,
                port: u16::try_from(row.port).map_err(|_| unreadable("port"))?,
                until: asked_at + Duration::try_from_secs_f64(row.seconds_left).unwrap_or_default(),
                news: row.news.into_iter().map(OpeningId::from_uuid).collect(),
            })
        })
        .collect()
}

/// Notes that these are open for the first time.
pub async fn opening_opened(connection: &mut PgConnection, openings: &[OpeningId]) -> Result<(), StoreError> {
    let ids: Vec<Uuid> = openings.iter().map(|id| id.as_uuid()).collect();
    sqlx::query!(
        "update openings set opened_at = clock_timestamp() where id = any ($1) and opened_at is null and ended_at is null",
        &ids
    )
    .execute(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests;
