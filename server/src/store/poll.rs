//! Polls: one row a device, its newest poll. A poll is no link: nothing here writes `links`.

use std::time::Duration;

use cloudlink_proto::ids::DeviceId;
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;

use super::StoreError;
use super::configuration::ConfigurationKnown;
use super::link::{BOOTS_MAX, Previous};
use crate::model::transport_failure::NewTransportFailure;

/// A device that polls.
#[derive(Clone, Debug)]
pub struct NewPoll {
    pub device_id: DeviceId,
    /// Hexadecimal.
    pub certificate_serial: String,
    pub node: String,
    pub remote_address: std::net::IpAddr,
    pub boot_id: String,
    /// What it says of how its boot before ended.
    pub boot_hint: Option<&'static str>,
    pub agent: String,
    pub os: String,
    pub hostname: String,
    pub clock_offset_ms: i64,
    pub capabilities: Vec<String>,
    /// What runs on it, as JSON.
    pub running: Value,
    /// When it is told to come back.
    pub interval: Duration,
    /// What the device says of attempts that failed. Not stored here: [`transport_failures_add`](super::transport_failure).
    pub transport_failures: Vec<NewTransportFailure>,
}

#[derive(Serialize)]
struct Row<'a> {
    device_id: uuid::Uuid,
    certificate_serial: &'a str,
    node: &'a str,
    remote_address: std::net::IpAddr,
    boot_id: &'a str,
    boot_hint: Option<&'a str>,
    agent: &'a str,
    os: &'a str,
    hostname: &'a str,
    clock_offset_ms: i64,
    capabilities: &'a [String],
    running: &'a Value,
    interval_seconds: u64,
    period_seconds: f64,
}

/// A poll that is its device's newest.
#[derive(Clone, Debug)]
pub struct StoredPoll {
    pub device_id: DeviceId,
    /// The epoch that the device reports in: that of its newest link, 0 if it never had one.
    pub epoch: u64,
    /// Whether an agent answers on a live link: then commands are that one's.
    pub is_linked: bool,
    /// Whether commands of the device are not yet final.
    pub has_open_commands: bool,
    /// Whether a busy lock of the device is written down, in force or not.
    pub has_busy_lock: bool,
    /// What is written down of its configuration.
    pub configuration: Option<ConfigurationKnown>,
    /// How long ago the device polled before, if it did.
    pub since_last: Option<Duration>,
    /// The link or the poll before this one, whichever is newer.
    pub previous: Option<Previous>,
    /// Whether this boot of the device had linked or polled before.
    pub is_known_boot: bool,
}

/// What a device may take on top of its interval: a tenth that it draws by itself, and the time of a poll.
fn period(interval: Duration) -> Duration {
    interval.mul_f64(1.1) + Duration::from_secs(30)
}

/// For how long a device may be silent about a command that it has: it tells with a later poll, and one or two may be lost.
#[must_use]
pub fn told_within(interval: Duration) -> Duration {
    4 * period(interval)
}

/// Makes each of the polls its device's newest, and remembers the boots. At most one a device. A device is missing from the answer
/// when it, or its certificate, may not be here any more. The first use of a certificate supersedes the older ones, as by a link.
pub async fn poll_store(connection: &mut PgConnection, polls: &[NewPoll]) -> Result<Vec<StoredPoll>, StoreError> {
    let rows: Vec<Row<'_>> = polls
        .iter()
        .map(|poll| Row {
            device_id: poll.device_id.as_uuid(),
            certificate_serial: &poll.certificate_serial,
            node: &poll.node,
            remote_address: poll.remote_address,
            boot_id: &poll.boot_id,
            boot_hint: poll.boot_hint,
            agent: &poll.agent,
            os: &poll.os,
            hostname: &poll.hostname,
            clock_offset_ms: poll.clock_offset_ms,
            capabilities: &poll.capabilities,
            running: &poll.running,
            interval_seconds: poll.interval.as_secs(),
            period_seconds: period(poll.interval).as_secs_f64(),
        })
        .collect();
    let rows = sqlx::query!(
        r#"with said as (
               select s.* from jsonb_to_recordset($1) as s(
                   device_id uuid, certificate_serial text, node text, remote_address inet, boot_id text, boot_hint text, agent text, os text,
                   hostname text, clock_offset_ms bigint, capabilities text[], running jsonb, interval_seconds integer,
                   period_seconds float8)
           ),
           admitted as materialized (
               select s.*, c.serial, c.state as certificate_state, d.tenant_id, clock_timestamp() as at
                 from said s
                 join devices d on d.id = s.device_id and d.state = 'active'
                 join certificates c on c.serial = decode(s.certificate_serial, 'hex') and c.device_id = d.id
                                    and c.state in ('issued', 'active')
                order by s.device_id
           ),
           stored as (
               insert into polls as q (device_id, tenant_id, polled_at, interval_seconds, next_by, silent_at, certificate_serial,
                                       node, remote_address, boot_id, agent, os, hostname, clock_offset_ms, capabilities, running)
               select device_id, tenant_id, at, interval_seconds, at + make_interval(secs => period_seconds),
                      at + make_interval(secs => 2 * period_seconds), serial,
                      node, remote_address, boot_id, agent, os, hostname, clock_offset_ms, capabilities, running
                 from admitted
                order by device_id
                   on conflict (device_id) do update
                  set polled_at = excluded.polled_at, interval_seconds = excluded.interval_seconds, next_by = excluded.next_by,
                      silent_at = excluded.silent_at, certificate_serial = excluded.certificate_serial, node = excluded.node,
                      remote_address = excluded.remote_address, boot_id = excluded.boot_id, agent = excluded.agent,
                      os = excluded.os, hostname = excluded.hostname, clock_offset_ms = excluded.clock_offset_ms,
                      capabilities = excluded.capabilities, running = excluded.running
               returning q.device_id, q.boot_id, q.polled_at
           ),
           booted as (
               insert into device_boots (device_id, tenant_id, boot_id, hint)
               select device_id, tenant_id, boot_id, boot_hint from admitted order by device_id
                   on conflict do nothing
           ),
           forgotten as (
               delete from device_boots b using admitted a
                where b.device_id = a.device_id
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
           -- What was there before: nothing of this statement is seen here.
           select s.device_id, coalesce(l.epoch, 0) as "epoch!",
                  coalesce(l.closed_at is null and l.has_agent, false) as "is_linked!",
                  exists (select from commands c where c.device_id = s.device_id and c.finished_at is null) as "has_open_commands!",
                  exists (select from busy_locks b where b.device_id = s.device_id) as "has_busy_lock!",
                  configuration_known(s.device_id) as "configuration?: Json<ConfigurationKnown>",
                  extract(epoch from s.polled_at - q.polled_at)::float8 as "since_last?",
                  exists (select from device_boots b where b.device_id = s.device_id and b.boot_id = s.boot_id) as "is_known_boot!",
                  p.certificate_serial as "previous_serial?", p.hostname as "previous_hostname?",
                  coalesce(nullif(p.boot_id, ''),
                           (select b.boot_id from device_boots b where b.device_id = s.device_id
                             order by b.seen_at desc limit 1)) as "previous_boot_id?",
                  l.device_id is not null and l.closed_at is null as "was_live!"
             from stored s left join links l on l.device_id = s.device_id
                           left join polls q on q.device_id = s.device_id
                           left join lateral (
                               select l.certificate_serial, l.hostname, l.boot_id, l.connected_at as at where l.device_id is not null
                                union all
                               select q.certificate_serial, q.hostname, q.boot_id, q.polled_at where q.device_id is not null
                                order by at desc limit 1) p on true"#,
        Json(&rows) as _,
        BOOTS_MAX,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| StoredPoll {
            device_id: DeviceId::from_uuid(row.device_id),
            epoch: row.epoch.unsigned_abs(),
            is_linked: row.is_linked,
            has_open_commands: row.has_open_commands,
            has_busy_lock: row.has_busy_lock,
            configuration: row.configuration.map(|known| known.0),
            // Below zero where the database's clock was set back: then it is as if it were now.
            since_last: row.since_last.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()),
            previous: row.previous_serial.and_then(|certificate_serial| {
                Some(Previous {
                    certificate_serial,
                    boot_id: row.previous_boot_id?,
                    hostname: row.previous_hostname?,
                    was_live: row.was_live,
                })
            }),
            is_known_boot: row.is_known_boot,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_polls_as_late_as_it_may_is_in_time() {
        let interval = Duration::from_secs(900);
        assert_eq!(period(interval), Duration::from_secs(1020));
        assert!(told_within(interval) > 3 * period(interval));
    }
}
