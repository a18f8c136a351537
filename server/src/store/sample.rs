//! What devices measured over time: samples as they came, and what they come to in five minutes and in an hour.

use cloudlink_proto::ids::{DeviceId, PersonId, TenantId};
use serde_json::{Value, json};
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};
use tokio::time::Instant;
use uuid::Uuid;

use super::StoreError;
use crate::model::sample::{Metric, Point, Series};

/// Beginnings of five minutes that are begun to be added up again at once.
const LATE_MAX: i64 = 12;
/// Devices that are added up in one transaction.
const ADD_UP_DEVICES_MAX: i64 = 1000;
/// How long that may take.
pub const ADD_UP_WITHIN_SECONDS: u32 = 30;

/// What a device measured at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSample {
    pub device_id: DeviceId,
    pub tenant_id: TenantId,
    pub at: OffsetDateTime,
    pub gauges: Gauges,
}

/// What could not be measured is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gauges {
    pub memory_used_bytes: Option<i64>,
    pub memory_total_bytes: Option<i64>,
    pub disk_used_bytes: Option<i64>,
    pub disk_total_bytes: Option<i64>,
    pub uptime_seconds: Option<i64>,
    pub clock_offset_ms: Option<i64>,
    pub cpu_percent: Option<f32>,
    pub temperature_celsius: Option<f32>,
    pub load_1m: Option<f32>,
    pub load_5m: Option<f32>,
    pub load_15m: Option<f32>,
}

/// When the database's clock showed what.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub at: OffsetDateTime,
    pub instant: Instant,
}

/// The clock by which samples have their times: the partitions are made by it.
pub async fn sample_clock(connection: &mut PgConnection) -> Result<Clock, StoreError> {
    let asked_at = Instant::now();
    let at = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(connection).await?;
    // In the middle, by the best guess.
    Ok(Clock { at, instant: asked_at + asked_at.elapsed() / 2 })
}

/// Adds samples of many devices; what is there already is left as it is.
///
/// Nobody is told that a sample is stored, so that its commit need not be on the disk: a crash of the database loses those of its last
/// moment. The five minutes that may have been added up before, or are about to be, are noted to be added up again.
pub async fn sample_insert(connection: &mut PgConnection, samples: &[NewSample]) -> Result<(), StoreError> {
    let devices: Vec<Uuid> = samples.iter().map(|sample| sample.device_id.as_uuid()).collect();
    let tenants: Vec<Uuid> = samples.iter().map(|sample| sample.tenant_id.as_uuid()).collect();
    let times: Vec<OffsetDateTime> = samples.iter().map(|sample| sample.at).collect();
    let whole = |of: fn(&Gauges) -> Option<i64>| samples.iter().map(|sample| of(&sample.gauges)).collect::<Vec<_>>();
    let real = |of: fn(&Gauges) -> Option<f32>| samples.iter().map(|sample| of(&sample.gauges)).collect::<Vec<_>>();
    sqlx::query!(
        "with lazily as materialized (select set_config('synchronous_commit', 'off', true)),
              late as (
                  insert into samples_late (at)
                  select distinct date_bin('5 minutes', at, '2000-01-03 00:00:00+00') from unnest($3::timestamptz[]) as t(at)
                   where date_bin('5 minutes', at, '2000-01-03 00:00:00+00') < clock_timestamp() - interval '6 minutes'
              )
         insert into samples (device_id, tenant_id, at, memory_used_bytes, memory_total_bytes, disk_used_bytes,
                              disk_total_bytes, uptime_seconds, clock_offset_ms, cpu_percent, temperature_celsius,
                              load_1m, load_5m, load_15m)
         select n.* from lazily, unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::bigint[], $5::bigint[],
                              $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::real[], $11::real[],
                              $12::real[], $13::real[], $14::real[]) as n(device_id, tenant_id, at)
          order by n.device_id, n.at
             on conflict do nothing",
        &devices,
        &tenants,
        &times,
        &whole(|gauges| gauges.memory_used_bytes) as &[Option<i64>],
        &whole(|gauges| gauges.memory_total_bytes) as &[Option<i64>],
        &whole(|gauges| gauges.disk_used_bytes) as &[Option<i64>],
        &whole(|gauges| gauges.disk_total_bytes) as &[Option<i64>],
        &whole(|gauges| gauges.uptime_seconds) as &[Option<i64>],
        &whole(|gauges| gauges.clock_offset_ms) as &[Option<i64>],
        &real(|gauges| gauges.cpu_percent) as &[Option<f32>],
        &real(|gauges| gauges.temperature_celsius) as &[Option<f32>],
        &real(|gauges| gauges.load_1m) as &[Option<f32>],
        &real(|gauges| gauges.load_5m) as &[Option<f32>],
        &real(|gauges| gauges.load_15m) as &[Option<f32>],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// How long samples are kept, in days.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    pub raw: u32,
    pub five_minutes: u32,
    pub hour: u32,
}

impl Keep {
    /// Longer than anything can be kept.
    pub const EVERYTHING: Self = Self { raw: 36_500, five_minutes: 36_500, hour: 36_500 };
}

/// Makes the partitions of the next days, and drops those that are too old. Gives how many; `None` while another node does it.
pub async fn sample_keep(connection: &mut PgConnection, keep: Keep) -> Result<Option<i32>, StoreError> {
    let days = |days: u32| i32::try_from(days).unwrap_or(i32::MAX);
    Ok(sqlx::query_scalar!("select samples_keep($1, $2, $3)", days(keep.raw), days(keep.five_minutes), days(keep.hour))
        .fetch_one(connection)
        .await?)
}

/// Up to when samples are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub five_minutes: OffsetDateTime,
    pub hour: OffsetDateTime,
}

pub async fn sample_progress_show(connection: &mut PgConnection) -> Result<Progress, StoreError> {
    Ok(sqlx::query_as!(
        Progress,
        r#"select (select until from sample_progress where resolution = 'five_minutes') as "five_minutes!",
                  (select until from sample_progress where resolution = 'hour') as "hour!""#
    )
    .fetch_one(connection)
    .await?)
}

/// What one step of adding up has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedUp {
    pub until: OffsetDateTime,
    /// Whether there is more to be done at once.
    pub is_behind: bool,
}

/// Something that is being added up.
#[derive(Clone, Copy, Debug)]
struct Work {
    resolution: Resolution,
    at: OffsetDateTime,
    /// Up to which device it is done.
    reached: Option<Uuid>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resolution {
    FiveMinutes,
    Hour,
}

impl Resolution {
    const fn name(self) -> &'static str {
        match self {
            Self::FiveMinutes => "five_minutes",
            Self::Hour => "hour",
        }
    }
}

/// Adds up the next devices of five minutes, or of an hour when its five minutes are: what is begun, else that to which samples came late
/// and what comes next. What it writes in place of what was there is the same but for late samples: it may be done twice. `None` while another
/// node does it.
///
/// Five minutes are added up two minutes after their end. A sample that is written later than one minute after it is noted to
/// be late: so none is missed in between.
pub async fn sample_add_up_in_txn(connection: &mut PgConnection) -> Result<Option<AddedUp>, StoreError> {
    let limit = format!("{ADD_UP_WITHIN_SECONDS}s");
    sqlx::query!("select set_config('statement_timeout', $1, true)", limit).fetch_one(&mut *connection).await?;
    let turn =
        sqlx::query!("select until from sample_progress where resolution = 'five_minutes' for update skip locked");
    if turn.fetch_optional(&mut *connection).await?.is_none() {
        return Ok(None);
    }
    let begun = match work_begun(connection).await? {
        Some(work) => Some(work),
        None => {
            work_begin(connection).await?;
            work_begun(connection).await?
        }
    };
    if let Some(work) = begun {
        let last = match work.resolution {
            Resolution::FiveMinutes => add_up_five_minutes(connection, work).await?,
            Resolution::Hour => add_up_hour(connection, work).await?,
        };
        match last {
            Some(last) => work_go_on(connection, work, last).await?,
            None => work_end(connection, work).await?,
        }
    }
    let left = sqlx::query_as!(
        AddedUp,
        r#"select f.until as "until!",
                  exists (select from sample_work) or exists (select from samples_late where at < f.until)
                      or f.until + interval '7 minutes' <= clock_timestamp() or h.until + interval '1 hour' <= f.until as "is_behind!"
             from sample_progress f, sample_progress h where f.resolution = 'five_minutes' and h.resolution = 'hour'"#
    );
    Ok(Some(left.fetch_one(connection).await?))
}

/// What is begun and not done: five minutes before the hours that they are in.
async fn work_begun(connection: &mut PgConnection) -> Result<Option<Work>, StoreError> {
    let work = sqlx::query!("select resolution, at, reached from sample_work order by resolution, at limit 1");
    Ok(work.fetch_optional(connection).await?.map(|row| Work {
        resolution: if row.resolution == Resolution::Hour.name() { Resolution::Hour } else { Resolution::FiveMinutes },
        at: row.at,
        reached: row.reached,
    }))
}

/// Begins what is to be done, where nothing is begun. Samples that come late from now on are noted anew; what was noted of what is not
/// added up yet, will be.
async fn work_begin(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!(
        "with taken as (
             delete from samples_late
              where at in (select distinct at from samples_late order by at limit $1) returning at
         )
         insert into sample_work (resolution, at)
         select distinct 'five_minutes', at from taken
          where at < (select until from sample_progress where resolution = 'five_minutes')",
        LATE_MAX,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "insert into sample_work (resolution, at)
         select case when is_whole then 'hour' else 'five_minutes' end, case when is_whole then hour else five_minutes end
           from (select f.until as five_minutes, h.until as hour, h.until + interval '1 hour' <= f.until as is_whole
                   from sample_progress f, sample_progress h where f.resolution = 'five_minutes' and h.resolution = 'hour') p
          where is_whole or five_minutes + interval '7 minutes' <= clock_timestamp()"
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn work_go_on(connection: &mut PgConnection, work: Work, last: Uuid) -> Result<(), StoreError> {
    sqlx::query!(
        "update sample_work set reached = $3 where resolution = $1 and at = $2",
        work.resolution.name(),
        work.at,
        last
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Moves what is shown to be added up ahead, unless it was that already: then the hour is added up again, if it was.
async fn work_end(connection: &mut PgConnection, work: Work) -> Result<(), StoreError> {
    sqlx::query!("delete from sample_work where resolution = $1 and at = $2", work.resolution.name(), work.at)
        .execute(&mut *connection)
        .await?;
    sqlx::query!(
        "update sample_progress
            set until = until + case resolution when 'hour' then interval '1 hour' else interval '5 minutes' end
          where resolution = $1 and until = $2",
        work.resolution.name(),
        work.at
    )
    .execute(&mut *connection)
    .await?;
    if work.resolution == Resolution::FiveMinutes {
        sqlx::query!(
            "insert into sample_work (resolution, at)
             select 'hour', $1 from sample_progress where resolution = 'hour' and $1 < until
                 on conflict (resolution, at) do update set reached = null",
            whole_hour(work.at)
        )
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// Gives the last of the devices, if there may be more.
async fn add_up_five_minutes(connection: &mut PgConnection, work: Work) -> Result<Option<Uuid>, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"with next as materialized (
               select id, tenant_id from devices where $2::uuid is null or id > $2 order by id limit $3
           ),
           written as (
               insert into samples_five_minutes as f (device_id, tenant_id, at, stats)
               select n.id, n.tenant_id, $1, s.stats
                 from next n
                cross join lateral (
                    select array[
                               count(cpu_percent), min(cpu_percent), max(cpu_percent), avg(cpu_percent),
                               count(memory_used_bytes), min(memory_used_bytes), max(memory_used_bytes), avg(memory_used_bytes::float8),
                               count(memory_total_bytes), min(memory_total_bytes), max(memory_total_bytes), avg(memory_total_bytes::float8),
                               count(disk_used_bytes), min(disk_used_bytes), max(disk_used_bytes), avg(disk_used_bytes::float8),
                               count(disk_total_bytes), min(disk_total_bytes), max(disk_total_bytes), avg(disk_total_bytes::float8),
                               count(temperature_celsius), min(temperature_celsius), max(temperature_celsius), avg(temperature_celsius),
                               count(load_1m), min(load_1m), max(load_1m), avg(load_1m),
                               count(load_5m), min(load_5m), max(load_5m), avg(load_5m),
                               count(load_15m), min(load_15m), max(load_15m), avg(load_15m),
                               count(uptime_seconds), min(uptime_seconds), max(uptime_seconds), avg(uptime_seconds::float8),
                               count(clock_offset_ms), min(clock_offset_ms), max(clock_offset_ms), avg(clock_offset_ms::float8)
                           ]::real[] as stats
                      from samples
                     where device_id = n.id and at >= $1 and at < $1 + interval '5 minutes'
                    having count(*) > 0
                ) s
                order by n.id
                   on conflict (device_id, at) do update set stats = excluded.stats
           )
           select id from next order by id offset $3 - 1"#,
        work.at,
        work.reached,
        ADD_UP_DEVICES_MAX,
    )
    .fetch_optional(connection)
    .await?)
}

fn whole_hour(at: OffsetDateTime) -> OffsetDateTime {
    at - Duration::seconds(at.unix_timestamp().rem_euclid(3600)) - Duration::nanoseconds(at.nanosecond().into())
}

/// Gives the last of the devices, if there may be more.
async fn add_up_hour(connection: &mut PgConnection, work: Work) -> Result<Option<Uuid>, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"with next as materialized (
               select id, tenant_id from devices where $2::uuid is null or id > $2 order by id limit $3
           ),
           written as (
               insert into samples_hour as h (device_id, tenant_id, at, stats)
               select n.id, n.tenant_id, $1, s.stats
                 from next n
                cross join lateral (
                    select array[
                               sum(stats[1]), min(stats[2]), max(stats[3]), sum(stats[1]::float8 * stats[4]) / nullif(sum(stats[1]), 0),
                               sum(stats[5]), min(stats[6]), max(stats[7]), sum(stats[5]::float8 * stats[8]) / nullif(sum(stats[5]), 0),
                               sum(stats[9]), min(stats[10]), max(stats[11]), sum(stats[9]::float8 * stats[12]) / nullif(sum(stats[9]), 0),
                               sum(stats[13]), min(stats[14]), max(stats[15]), sum(stats[13]::float8 * stats[16]) / nullif(sum(stats[13]), 0),
                               sum(stats[17]), min(stats[18]), max(stats[19]), sum(stats[17]::float8 * stats[20]) / nullif(sum(stats[17]), 0),
                               sum(stats[21]), min(stats[22]), max(stats[23]), sum(stats[21]::float8 * stats[24]) / nullif(sum(stats[21]), 0),
                               sum(stats[25]), min(stats[26]), max(stats[27]), sum(stats[25]::float8 * stats[28]) / nullif(sum(stats[25]), 0),
                               sum(stats[29]), min(stats[30]), max(stats[31]), sum(stats[29]::float8 * stats[32]) / nullif(sum(stats[29]), 0),
                               sum(stats[33]), min(stats[34]), max(stats[35]), sum(stats[33]::float8 * stats[36]) / nullif(sum(stats[33]), 0),
                               sum(stats[37]), min(stats[38]), max(stats[39]), sum(stats[37]::float8 * stats[40]) / nullif(sum(stats[37]), 0),
                               sum(stats[41]), min(stats[42]), max(stats[43]), sum(stats[41]::float8 * stats[44]) / nullif(sum(stats[41]), 0)
                           ]::real[] as stats
                      from samples_five_minutes
                     where device_id = n.id and at >= $1 and at < $1 + interval '1 hour'
                    having count(*) > 0
                ) s
                order by n.id
                   on conflict (device_id, at) do update set stats = excluded.stats
           )
           select id from next order by id offset $3 - 1"#,
        work.at,
        work.reached,
        ADD_UP_DEVICES_MAX,
    )
    .fetch_optional(connection)
    .await?)
}

/// What is asked of a device's samples.
#[derive(Clone, Debug)]
pub struct Range {
    pub metrics: Vec<Metric>,
    pub from: OffsetDateTime,
    pub until: OffsetDateTime,
    pub step_seconds: u32,
}

/// What a device measured, step by step; steps begin at whole multiples of themselves. What is not added up yet is taken from
/// what it will be added up from.
pub async fn sample_list(
    connection: &mut PgConnection,
    device: DeviceId,
    range: &Range,
    progress: Progress,
) -> Result<Vec<Series>, StoreError> {
    let numbers: Vec<i32> = range.metrics.iter().map(|metric| *metric as i32).collect();
    let is_multiple_of = |seconds| range.step_seconds.is_multiple_of(seconds);
    let rows = sqlx::query!(
        r#"with bounds as (
               select case when $6 then $8::timestamptz else $3 end as hours_until,
                      case when $6 or $7 then $9::timestamptz else $3 end as five_minutes_until
           ),
           points as (
               select s.at, m.number, s.stats[4 * m.number + 1]::float8 as count, s.stats[4 * m.number + 2]::float8 as min,
                      s.stats[4 * m.number + 3]::float8 as max, s.stats[4 * m.number + 4]::float8 as avg
                 from bounds b, samples_hour s, unnest($2::integer[]) as m(number)
                where s.device_id = $1 and s.at >= $3 and s.at < $4 and s.at < b.hours_until
               union all
               select s.at, m.number, s.stats[4 * m.number + 1]::float8, s.stats[4 * m.number + 2]::float8,
                      s.stats[4 * m.number + 3]::float8, s.stats[4 * m.number + 4]::float8
                 from bounds b, samples_five_minutes s, unnest($2::integer[]) as m(number)
                where s.device_id = $1 and s.at >= $3 and s.at < $4
                  and s.at >= b.hours_until and s.at < b.five_minutes_until
               union all
               select s.at, v.number, 1, v.value, v.value, v.value
                 from bounds b, samples s,
                      lateral (select n - 1 as number, value
                                 from unnest(array[cpu_percent, memory_used_bytes, memory_total_bytes, disk_used_bytes,
                                                   disk_total_bytes, temperature_celsius, load_1m, load_5m, load_15m,
                                                   uptime_seconds, clock_offset_ms]::float8[]) with ordinality as u(value, n)) v
                where s.device_id = $1 and s.at >= $3 and s.at < $4 and s.at >= b.five_minutes_until
                  and v.number = any ($2::integer[])
           )
           select number as "number!", date_bin($5 * interval '1 second', at, '2000-01-03 00:00:00+00') as "at!",
                  sum(count)::bigint as "count!", min(min) as "min!", max(max) as "max!", sum(count * avg) / sum(count) as "avg!"
             from points where count > 0 and avg is not null
            group by 1, 2 order by 2"#,
        device.as_uuid(),
        &numbers,
        range.from,
        range.until,
        f64::from(range.step_seconds),
        is_multiple_of(3600),
        is_multiple_of(300),
        progress.hour,
        progress.five_minutes,
    )
    .fetch_all(connection)
    .await?;
    let mut series: Vec<Series> =
        range.metrics.iter().map(|metric| Series { metric: metric.name(), points: Vec::new() }).collect();
    for row in rows {
        let place = numbers.iter().position(|number| i64::from(*number) == row.number);
        if let Some(series) = place.and_then(|place| series.get_mut(place)) {
            series.points.push(Point { at: row.at, count: row.count, min: row.min, max: row.max, avg: row.avg });
        }
    }
    Ok(series)
}

/// Lets an operator with a grant in force at this very moment read what a device measured, and writes so into the tenant's audit
/// log: one statement, the last of its transaction. False without a grant.
pub async fn sample_read_under_grant_in_txn(
    connection: &mut PgConnection,
    device: DeviceId,
    operator: PersonId,
    actor: Value,
    scope: &str,
    range: &Range,
) -> Result<bool, StoreError> {
    let details = json!({"from": rfc3339(range.from), "until": rfc3339(range.until)});
    let audited = sqlx::query_scalar!(
        r#"select r.audited as "audited!" from (
               select audit_append(d.tenant_id, $3, 'metrics.read', jsonb_build_object('kind', 'device', 'id', d.id),
                                   jsonb_build_object('grant_id', g.id) || $5) as audited
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
        details,
    )
    .fetch_optional(connection)
    .await?;
    Ok(audited.is_some())
}

fn rfc3339(at: OffsetDateTime) -> Option<String> {
    at.format(&time::format_description::well_known::Rfc3339).ok()
}

/// An active device, with its report if that is new.
#[derive(Clone, Debug)]
pub struct Scraped {
    pub device_id: Uuid,
    pub name: String,
    pub is_linked: bool,
    /// Unix time.
    pub received_at: Option<f64>,
    pub report: Option<Value>,
}

impl Scraped {
    /// What the report has under this name.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<f64> {
        self.report.as_ref()?.get(name)?.as_f64()
    }
}

/// The devices that the connection may see, at most one more than that, and what they reported within ten minutes.
pub async fn sample_scrape(connection: &mut PgConnection, devices_max: usize) -> Result<Vec<Scraped>, StoreError> {
    Ok(sqlx::query_as!(
        Scraped,
        r#"select d.id as device_id, d.name, l.device_id is not null as "is_linked!",
                  extract(epoch from m.received_at)::float8 as "received_at?", m.report as "report?"
             from devices d
             left join links l on l.device_id = d.id and l.closed_at is null
             left join device_metrics m on m.device_id = d.id and m.received_at > clock_timestamp() - interval '10 minutes'
            where d.state = 'active'
            order by d.id limit $1"#,
        i64::try_from(devices_max).unwrap_or(i64::MAX).saturating_add(1),
    )
    .fetch_all(connection)
    .await?)
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use super::*;
    use crate::http::testing::Scene;
    use crate::store::Visibility;

    /// Minutes after the beginning of an hour some hours ago.
    fn minute(scene: &At, minutes: f64) -> OffsetDateTime {
        scene.0 + Duration::seconds_f64(minutes * 60.0)
    }

    /// The beginning of a whole hour.
    struct At(OffsetDateTime);

    /// A database that has added up nothing since three hours ago.
    async fn begin(pool: PgPoolOptions, database: PgConnectOptions) -> (Scene, At) {
        let scene = Scene::new(pool, database).await;
        let at = sqlx::query_scalar(
            "update sample_progress set until = date_bin('1 hour', now(), '2000-01-03 00:00Z') - interval '3 hours' returning until",
        );
        let at = at.fetch_one(&scene.root).await.unwrap();
        (scene, At(at))
    }

    fn sample(scene: &Scene, at: OffsetDateTime, cpu_percent: f32) -> NewSample {
        let gauges = Gauges { cpu_percent: Some(cpu_percent), disk_used_bytes: Some(i64::MAX), ..Gauges::default() };
        NewSample { device_id: scene.device, tenant_id: scene.tenant, at, gauges }
    }

    async fn insert(scene: &Scene, samples: &[NewSample]) {
        sample_insert(&mut scene.store.connection().await.unwrap(), samples).await.unwrap();
    }

    async fn step(scene: &Scene) -> Option<AddedUp> {
        let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
        let added_up = sample_add_up_in_txn(&mut transaction).await.unwrap();
        scene.store.commit(transaction).await.unwrap();
        added_up
    }

    async fn add_up(scene: &Scene) {
        for _ in 0..200 {
            if !step(scene).await.unwrap().is_behind {
                return;
            }
        }
        panic!("there is no end to it");
    }

    /// What is stored of the processors: minutes after the hour, count, least, most and mean.
    async fn stats(scene: &Scene, table: &str, at: &At) -> Vec<(f64, Vec<Option<f32>>)> {
        let sql = format!("select extract(epoch from at - $1)::float8 / 60, stats[1:4] from {table} order by at");
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(at.0).fetch_all(&scene.root).await.unwrap()
    }

    fn numbers(numbers: [f32; 4]) -> Vec<Option<f32>> {
        numbers.map(Some).to_vec()
    }

    async fn list(scene: &Scene, range: &Range) -> Vec<Point> {
        let mut connection = scene.store.connection().await.unwrap();
        let progress = sample_progress_show(&mut connection).await.unwrap();
        sample_list(&mut connection, scene.device, range, progress).await.unwrap().remove(0).points
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn samples_are_added_up_once_and_late_ones_again(pool: PgPoolOptions, database: PgConnectOptions) {
        let (scene, at) = begin(pool, database).await;
        let first = [
            sample(&scene, minute(&at, 0.0), 10.0),
            sample(&scene, minute(&at, 4.9), 20.0),
            sample(&scene, minute(&at, 5.0), 90.0),
        ];
        insert(&scene, &first).await;
        // Again, as after an answer that was lost.
        insert(&scene, &first).await;
        let absent = NewSample { gauges: Gauges::default(), ..sample(&scene, minute(&at, 2.0), 0.0) };
        insert(&scene, &[absent]).await;
        insert(&scene, &[]).await;
        add_up(&scene).await;
        let five = stats(&scene, "samples_five_minutes", &at).await;
        assert_eq!(five, [(0.0, numbers([2.0, 10.0, 20.0, 15.0])), (5.0, numbers([1.0, 90.0, 90.0, 90.0]))]);
        assert_eq!(stats(&scene, "samples_hour", &at).await, [(0.0, numbers([3.0, 10.0, 90.0, 40.0]))]);
        let disk: Vec<Option<f32>> =
            sqlx::query_scalar("select stats[13:16] from samples_hour").fetch_one(&scene.root).await.unwrap();
        #[expect(clippy::cast_precision_loss, reason = "as the column has it")]
        let most = i64::MAX as f32;
        assert_eq!(disk, numbers([3.0, most, most, most]), "other metrics have places of their own");

        insert(&scene, &[sample(&scene, minute(&at, 1.0), 60.0), sample(&scene, minute(&at, 65.0), 1.0)]).await;
        add_up(&scene).await;
        assert_eq!(stats(&scene, "samples_five_minutes", &at).await[0], (0.0, numbers([3.0, 10.0, 60.0, 30.0])));
        let hours = stats(&scene, "samples_hour", &at).await;
        assert_eq!(hours, [(0.0, numbers([4.0, 10.0, 90.0, 45.0])), (60.0, numbers([1.0; 4]))]);
        let late: i64 = sqlx::query_scalar("select count(*) from samples_late").fetch_one(&scene.root).await.unwrap();
        assert_eq!(late, 0);
        let progress = sample_progress_show(&mut scene.store.connection().await.unwrap()).await.unwrap();
        let now = sample_clock(&mut scene.store.connection().await.unwrap()).await.unwrap().at;
        let behind = now - progress.five_minutes;
        assert!((Duration::minutes(2)..Duration::minutes(13)).contains(&behind), "{behind}");
        assert_eq!(progress.hour, whole_hour(progress.five_minutes));
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn of_two_nodes_one_adds_up_and_what_it_does_not_commit_is_done_again(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let (scene, at) = begin(pool, database).await;
        insert(&scene, &[sample(&scene, minute(&at, 0.0), 10.0)]).await;
        let mut crashed = scene.store.begin(Visibility::All).await.unwrap();
        assert!(sample_add_up_in_txn(&mut crashed).await.unwrap().is_some());
        assert_eq!(step(&scene).await, None, "while the other one does");
        crashed.rollback().await.unwrap();
        assert!(stats(&scene, "samples_five_minutes", &at).await.is_empty());
        add_up(&scene).await;
        assert_eq!(stats(&scene, "samples_hour", &at).await, [(0.0, numbers([1.0, 10.0, 10.0, 10.0]))]);
    }

    /// A fleet of which one transaction adds up a part: the node dies between two, and samples come to the part that is done.
    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_is_added_up_in_parts_is_whole_whoever_dies_in_between(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let (scene, at) = begin(pool, database).await;
        let devices = ADD_UP_DEVICES_MAX * 2 + 7;
        sqlx::query(
            "with made as (
                 insert into devices (id, tenant_id, name)
                 select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, $1, 'd' || n from generate_series(1, $2) n
                 returning id
             )
             insert into samples (device_id, tenant_id, at, cpu_percent)
             select id, $1, $3 + m * interval '1 minute', 10 * m from made, generate_series(0, 7) m",
        )
        .bind(scene.tenant.as_uuid())
        .bind(devices)
        .bind(at.0)
        .execute(&scene.root)
        .await
        .unwrap();
        let count = async |table: &str| -> i64 {
            let sql = format!("select count(*) from {table} where at >= $1");
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(at.0).fetch_one(&scene.root).await.unwrap()
        };
        let progress = async || sample_progress_show(&mut scene.store.connection().await.unwrap()).await.unwrap();
        assert!(step(&scene).await.unwrap().is_behind);
        assert_eq!(count("samples_five_minutes").await, ADD_UP_DEVICES_MAX);
        assert_eq!(progress().await.five_minutes, at.0, "shown from the samples themselves until all are done");
        // To one that is done, and one that is not.
        for order in ["id", "id desc"] {
            let late = format!(
                "with late as (insert into samples_late values ($1))
                 insert into samples (device_id, tenant_id, at, cpu_percent)
                 select device_id, tenant_id, $1 + interval '10 s', 70 from samples s
                  where device_id = (select id from devices where name like 'd%' order by {order} limit 1) limit 1"
            );
            sqlx::query(sqlx::AssertSqlSafe(late)).bind(at.0).execute(&scene.root).await.unwrap();
        }
        let mut crashed = scene.store.begin(Visibility::All).await.unwrap();
        assert!(sample_add_up_in_txn(&mut crashed).await.unwrap().is_some());
        assert_eq!(step(&scene).await, None, "while the other one does");
        crashed.rollback().await.unwrap();
        assert_eq!(count("samples_five_minutes").await, ADD_UP_DEVICES_MAX);
        add_up(&scene).await;
        assert_eq!((count("samples_five_minutes").await, count("samples_hour").await), (2 * devices, devices));
        // Count, least, most and mean, and how many devices have these.
        let of = async |table: &str| -> Vec<(Vec<Option<f32>>, i64)> {
            let sql = format!("select stats[1:4], count(*) from {table} where at = $1 group by 1 order by 2 desc");
            sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(at.0).fetch_all(&scene.root).await.unwrap()
        };
        let five = [(numbers([5.0, 0.0, 40.0, 20.0]), devices - 2), (numbers([6.0, 0.0, 70.0, 170.0 / 6.0]), 2)];
        assert_eq!(of("samples_five_minutes").await, five);
        let hour = [(numbers([8.0, 0.0, 70.0, 35.0]), devices - 2), (numbers([9.0, 0.0, 70.0, 350.0 / 9.0]), 2)];
        assert_eq!(of("samples_hour").await, hour);
        let left: i64 =
            sqlx::query_scalar("select (select count(*) from sample_work) + (select count(*) from samples_late)")
                .fetch_one(&scene.root)
                .await
                .unwrap();
        assert_eq!(left, 0);
        assert_eq!(progress().await.hour, whole_hour(progress().await.five_minutes));
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn each_resolution_shows_all_that_there_is(pool: PgPoolOptions, database: PgConnectOptions) {
        let (scene, at) = begin(pool, database).await;
        let now = sample_clock(&mut scene.store.connection().await.unwrap()).await.unwrap().at;
        let times = [minute(&at, 0.0), minute(&at, 0.5), minute(&at, 7.0), now - Duration::seconds(1)];
        let samples = times.into_iter().zip([1.0, 3.0, 5.0, 7.0]).map(|(at, cpu)| sample(&scene, at, cpu));
        insert(&scene, &samples.collect::<Vec<_>>()).await;
        for is_added_up in [false, true] {
            for (step_seconds, expected) in
                [(1, vec![1.0, 3.0, 5.0, 7.0]), (300, vec![2.0, 5.0, 7.0]), (3600, vec![3.0, 7.0])]
            {
                let range =
                    Range { metrics: vec![Metric::CpuPercent, Metric::Load1m], from: at.0, until: now, step_seconds };
                let points = list(&scene, &range).await;
                let means: Vec<f64> = points.iter().map(|point| point.avg).collect();
                assert_eq!(means, expected, "{step_seconds} s, added up: {is_added_up}");
                assert_eq!(points.iter().map(|point| point.count).sum::<i64>(), 4);
                assert_eq!(points[0].at, at.0);
            }
            add_up(&scene).await;
        }
        // Of what is gone as it came, the rest is still there.
        sqlx::query("delete from samples where at < $1").bind(minute(&at, 60.0)).execute(&scene.root).await.unwrap();
        let range = |step_seconds| Range { metrics: vec![Metric::CpuPercent], from: at.0, until: now, step_seconds };
        assert_eq!((list(&scene, &range(1)).await.len(), list(&scene, &range(300)).await.len()), (1, 3));
        sqlx::query("delete from samples_five_minutes").execute(&scene.root).await.unwrap();
        assert_eq!(list(&scene, &range(3600)).await.len(), 2);
    }

    /// The partitions of a table, by name.
    async fn parts(scene: &Scene, table: &str) -> Vec<String> {
        let sql = "select c.relname::text from pg_inherits i join pg_class c on c.oid = i.inhrelid
                    where i.inhparent = $1::regclass order by 1";
        sqlx::query_scalar(sql).bind(table).fetch_all(&scene.root).await.unwrap()
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn partitions_are_made_ahead_and_dropped_when_all_in_them_is_old_and_added_up(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let (scene, _) = begin(pool, database).await;
        let keep = async |raw, five_minutes, hour| {
            let keep = Keep { raw, five_minutes, hour };
            sample_keep(&mut scene.store.connection().await.unwrap(), keep).await.unwrap()
        };
        let before = parts(&scene, "samples").await;
        assert!((5..=6).contains(&before.len()), "yesterday, today and three days: {before:?}");
        assert_eq!(keep(7, 31, 400).await, Some(0));
        for (table, days) in [("samples", 1), ("samples_five_minutes", 7), ("samples_hour", 28)] {
            for ago in [3_u32, 20] {
                // As they were made when it was time.
                let old = format!(
                    "do $$ declare
                         first timestamptz := date_bin('{days} days', now() - interval '{days} days' * {ago}, '2000-01-03 00:00Z');
                         name text := '{table}_' || to_char(first at time zone 'utc', 'YYYYMMDD');
                     begin
                         execute format('create table %I partition of {table} for values from (%L) to (%L)', name, first, first + interval '{days} days');
                     end $$"
                );
                sqlx::query(sqlx::AssertSqlSafe(old)).execute(&scene.root).await.unwrap();
            }
        }
        let all = [
            parts(&scene, "samples").await.len(),
            parts(&scene, "samples_five_minutes").await.len(),
            parts(&scene, "samples_hour").await.len(),
        ];
        sqlx::query("update sample_progress set until = now() - interval '600 days'")
            .execute(&scene.root)
            .await
            .unwrap();
        assert_eq!(keep(7, 31, 400).await, Some(0), "nothing is added up, and of hours nothing either");
        sqlx::query("update sample_progress set until = now() - interval '30 days'")
            .execute(&scene.root)
            .await
            .unwrap();
        assert_eq!(
            keep(7, 31, 400).await,
            Some(2),
            "not what is not added up: hours, and the oldest of the five minutes"
        );
        sqlx::query("update sample_progress set until = now()").execute(&scene.root).await.unwrap();
        let mut reader = scene.root.begin().await.unwrap();
        sqlx::query("lock table samples in access share mode").execute(&mut *reader).await.unwrap();
        let keep_all = Keep { raw: 7, five_minutes: 31, hour: 400 };
        let refused = sample_keep(&mut scene.store.connection().await.unwrap(), keep_all).await.unwrap_err();
        assert!(refused.is_retryable(), "waits for nobody for long: {refused:?}");
        reader.rollback().await.unwrap();
        // Who was refused has its turn until the database has undone what it did.
        let dropped = loop {
            if let Some(dropped) = keep(7, 31, 400).await {
                break dropped;
            }
        };
        assert_eq!(dropped, 1);
        assert_eq!(keep(7, 31, 400).await, Some(0));
        let left = [
            parts(&scene, "samples").await.len(),
            parts(&scene, "samples_five_minutes").await.len(),
            parts(&scene, "samples_hour").await.len(),
        ];
        assert_eq!(left, [all[0] - 1, all[1] - 1, all[2] - 1], "of what is older than is kept, and of nothing else");

        let mut other = scene.store.begin(Visibility::All).await.unwrap();
        assert_eq!(sample_keep(&mut other, keep_all).await.unwrap(), Some(0));
        assert_eq!(keep(7, 31, 400).await, None, "while another node does it");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_no_partition_is_for_is_refused(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let sample = sample(&scene, time::macros::datetime!(2001-01-01 00:00 UTC), 1.0);
        let error = sample_insert(&mut scene.store.connection().await.unwrap(), &[sample]).await.unwrap_err();
        assert!(!error.is_retryable(), "{error:?}");
    }
}
