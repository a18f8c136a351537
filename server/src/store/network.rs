//! What is known to get through the networks of devices.

use sqlx::PgConnection;
use time::OffsetDateTime;

use super::StoreError;

/// What was seen of one way to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// A transport, or `enrollment`.
    pub way: String,
    pub devices: i64,
    pub last_at: OffsetDateTime,
}

/// By which ways devices were last heard of within so many days.
pub async fn network_seen(connection: &mut PgConnection, days: i32) -> Result<Vec<Seen>, StoreError> {
    Ok(sqlx::query_as!(
        Seen,
        r#"select way as "way!", count(*) as "devices!", max(at) as "last_at!"
             from (select device_id, transport as way, proven_at as at from links
                   union all select device_id, 'polling', polled_at from polls
                   union all select id, 'enrollment', enrolled_at from devices) seen
             join devices d on d.id = seen.device_id and d.state = 'active'
             join tenants n on n.id = d.tenant_id and not n.internal
            where at > now() - make_interval(days => $1)
            group by way"#,
        days
    )
    .fetch_all(connection)
    .await?)
}
