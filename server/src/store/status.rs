//! Figures of the whole cluster, for people: each is counted when somebody asks.

use sqlx::PgConnection;

use super::StoreError;
use crate::model::node::Node;
use crate::model::status::{Commands, Database, Devices, Notices, Status};

/// What the database knows, besides its nodes. Not judged yet.
pub async fn status_show(connection: &mut PgConnection, nodes: Vec<Node>) -> Result<Status, StoreError> {
    let devices = sqlx::query_as!(
        Devices,
        r#"select count(*) filter (where d.state = 'active') as "active!",
                  count(*) filter (where l.transport = 'websocket') as "linked_by_websocket!",
                  count(*) filter (where l.transport = 'openvpn') as "linked_by_openvpn!",
                  count(*) filter (where l.transport = 'openvpn' and l.has_agent) as "agents_in_tunnels!",
                  count(*) filter (where d.state = 'active' and d.quarantined_at is not null) as "quarantined!"
             from devices d
             join tenants t on t.id = d.tenant_id and not t.internal
             left join links l on l.device_id = d.id and l.closed_at is null"#
    )
    .fetch_one(&mut *connection)
    .await?;
    // Under a grant that is in force, of a device that has been linked since: nothing but a node is in the way.
    let commands = sqlx::query_as!(
        Commands,
        r#"select count(*) filter (where c.state = 'queued') as "queued!",
                  count(*) filter (where c.state <> 'queued') as "under_way!",
                  max(extract(epoch from clock_timestamp() - greatest(c.created_at, l.connected_at, g.starts_at)))
                      filter (where c.state = 'queued' and l.device_id is not null and c.expires_at > clock_timestamp())
                      ::float8 as sendable_seconds,
                  max(extract(epoch from clock_timestamp() - c.deadline_at)) filter (where c.deadline_at < clock_timestamp())
                      ::float8 as overdue_seconds
             from commands c
             left join grants g on g.id = c.grant_id and grant_in_force(g, clock_timestamp())
             left join links l on l.device_id = c.device_id and l.closed_at is null and l.has_agent and g.id is not null
            where c.finished_at is null"#
    )
    .fetch_one(&mut *connection)
    .await?;
    let support_sessions =
        sqlx::query_scalar!(r#"select count(*) as "count!" from support_sessions where ended_at is null"#)
            .fetch_one(&mut *connection)
            .await?;
    let notices = sqlx::query_as!(
        Notices,
        r#"select count(*) as "waiting!",
                  max(extract(epoch from clock_timestamp() - greatest(next_at, leased_until)))
                      filter (where greatest(next_at, leased_until) <= clock_timestamp())::float8 as due_seconds
             from notices where delivered_at is null and failed_at is null"#
    )
    .fetch_one(&mut *connection)
    .await?;
    let database = sqlx::query_as!(
        Database,
        r#"select current_setting('server_version') as "version!", pg_database_size(current_database()) as "size_bytes!",
                  (select count(*) from pg_stat_activity where datid is not null) as "connections!",
                  current_setting('max_connections')::bigint as "connections_max!""#
    )
    .fetch_one(connection)
    .await?;
    Ok(Status { problems: Vec::new(), nodes, devices, commands, support_sessions, notices, database })
}
