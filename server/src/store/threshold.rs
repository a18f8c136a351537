//! Rules over what devices measure: what tenants write down, and the step that looks at the next devices of one rule and tells what
//! became of it. Whoever takes a step holds the rule's row, so that of several nodes one does; what it does not commit has not happened.

use cloudlink_proto::ids::{DeviceId, PersonId, TenantId, ThresholdId};
use serde_json::{Value, json};
use sqlx::types::Json;
use sqlx::{Connection as _, PgConnection};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::StoreError;
use super::notice::notice_emit;
use crate::model::notice::Event;
use crate::model::selector::Selector;
use crate::model::threshold::{
    Alert, AlertSeverity, AlertState, Comparison, Crossing, DEVICES_TOLD_MAX, Line, Reading, SITE_LABEL, Standing,
    State, THRESHOLDS_MAX, Threshold, ThresholdMetric,
};

/// The constraint that refuses a name that another rule of the tenant has.
pub const NAME_TAKEN: &str = "thresholds_name";

/// Devices that one step looks at.
const DEVICES_MAX: i64 = 500;
/// Sites that one step tells of, of each kind of event; the next step tells of the others.
const SITES_MAX: i64 = 100;
/// How soon a rule is looked at again after a round.
const EVERY_SECONDS: f64 = 10.0;
/// The same after something went wrong.
const AGAIN_AFTER_SECONDS: f64 = 60.0;
/// Later than any rule is ever put off to: that is a time of a clock that was set back since.
const NEVER_AFTER_SECONDS: f64 = 2.0 * AGAIN_AFTER_SECONDS;

struct Row {
    id: Uuid,
    tenant_id: Uuid,
    name: String,
    metric: String,
    comparison: String,
    value: f64,
    clear_value: f64,
    for_seconds: i32,
    selector: Json<Selector>,
    severity: String,
    hold_down_seconds: i32,
    created_by: Uuid,
    created_at: OffsetDateTime,
    deleted_at: Option<OffsetDateTime>,
    version: i64,
}

impl TryFrom<Row> for Threshold {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let unreadable = |column| StoreError::Inconsistent { table: "thresholds", column };
        Ok(Self {
            id: row.id,
            tenant_id: row.tenant_id,
            name: row.name,
            metric: row.metric,
            comparison: Comparison::named(&row.comparison).ok_or(unreadable("comparison"))?,
            value: row.value,
            clear_value: row.clear_value,
            for_seconds: row.for_seconds.unsigned_abs(),
            selector: row.selector.0.to_string(),
            severity: AlertSeverity::named(&row.severity).ok_or(unreadable("severity"))?,
            hold_down_seconds: row.hold_down_seconds.unsigned_abs(),
            created_by: row.created_by,
            created_at: row.created_at,
            deleted_at: row.deleted_at,
            version: row.version,
        })
    }
}

/// A statement that yields rules: the head comes before the columns, the tail after them.
macro_rules! threshold_query {
    ($head:literal, $tail:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            $head
                + r#" id, tenant_id, name, metric, comparison, value, clear_value, for_seconds, selector as "selector: _", severity,
                      hold_down_seconds, created_by, created_at, deleted_at, version "#
                + $tail
            $(, $argument)*
        )
    };
}

/// What a rule says, to be made or changed.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    pub name: &'a str,
    pub comparison: Comparison,
    pub value: f64,
    pub clear_value: f64,
    pub for_seconds: u32,
    /// `None` where it stays as it is.
    pub selector: Option<&'a Selector>,
    pub severity: AlertSeverity,
    pub hold_down_seconds: u32,
}

fn seconds(seconds: u32) -> i32 {
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

/// Makes a rule. `None` when the tenant has [`THRESHOLDS_MAX`] already; fails on [`NAME_TAKEN`].
pub async fn threshold_create(
    connection: &mut PgConnection,
    id: ThresholdId,
    tenant: TenantId,
    created_by: PersonId,
    metric: ThresholdMetric,
    said: Said<'_>,
) -> Result<Option<Threshold>, StoreError> {
    threshold_query!(
        "insert into thresholds (id, tenant_id, name, metric, comparison, value, clear_value, for_seconds, selector, severity,
                                 hold_down_seconds, created_by)
         select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12
          where (select count(*) from thresholds o where o.tenant_id = $2 and o.deleted_at is null) < $13
         returning",
        "",
        id.as_uuid(),
        tenant.as_uuid(),
        said.name,
        metric.name(),
        said.comparison.name(),
        said.value,
        said.clear_value,
        seconds(said.for_seconds),
        said.selector.map(Json) as _,
        said.severity.name(),
        seconds(said.hold_down_seconds),
        created_by.as_uuid(),
        THRESHOLDS_MAX
    )
    .fetch_optional(connection)
    .await?
    .map(Threshold::try_from)
    .transpose()
}

/// Newest first, after the position given; none that are deleted.
pub async fn threshold_list(
    connection: &mut PgConnection,
    tenant: TenantId,
    name: Option<&str>,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<Threshold>, StoreError> {
    let (after_time, after_id) = after.unzip();
    threshold_query!(
        "select",
        "from thresholds
          where tenant_id = $1 and deleted_at is null and ($2::text is null or name = $2)
            and ($3::timestamptz is null or (created_at, id) < ($3, $4::uuid))
          order by created_at desc, id desc limit $5",
        tenant.as_uuid(),
        name,
        after_time,
        after_id,
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(Threshold::try_from)
    .collect()
}

pub async fn threshold_show(
    connection: &mut PgConnection,
    tenant: TenantId,
    id: ThresholdId,
) -> Result<Option<Threshold>, StoreError> {
    threshold_query!("select", "from thresholds where id = $1 and tenant_id = $2", id.as_uuid(), tenant.as_uuid())
        .fetch_optional(connection)
        .await?
        .map(Threshold::try_from)
        .transpose()
}

/// Like [`threshold_show`], and nobody else changes it before the end of this transaction.
pub async fn threshold_lock(
    connection: &mut PgConnection,
    tenant: TenantId,
    id: ThresholdId,
) -> Result<Option<Threshold>, StoreError> {
    threshold_query!(
        "select",
        "from thresholds where id = $1 and tenant_id = $2 for no key update",
        id.as_uuid(),
        tenant.as_uuid()
    )
    .fetch_optional(connection)
    .await?
    .map(Threshold::try_from)
    .transpose()
}

/// Changes a rule that was locked in the same transaction and is not deleted. Fails on [`NAME_TAKEN`].
pub async fn threshold_update_in_txn(
    connection: &mut PgConnection,
    id: ThresholdId,
    said: Said<'_>,
) -> Result<Threshold, StoreError> {
    threshold_query!(
        "update thresholds
            set name = $2, comparison = $3, value = $4, clear_value = $5, for_seconds = $6, selector = coalesce($7, selector),
                severity = $8, hold_down_seconds = $9, version = version + 1
          where id = $1 returning",
        "",
        id.as_uuid(),
        said.name,
        said.comparison.name(),
        said.value,
        said.clear_value,
        seconds(said.for_seconds),
        said.selector.map(Json) as _,
        said.severity.name(),
        seconds(said.hold_down_seconds)
    )
    .fetch_one(connection)
    .await?
    .try_into()
}

/// Deletes a rule that was locked in the same transaction and is not deleted. Its name is free then. What it had told of is told to be
/// over by the steps that follow.
pub async fn threshold_delete_in_txn(connection: &mut PgConnection, id: ThresholdId) -> Result<Threshold, StoreError> {
    threshold_query!(
        "update thresholds set deleted_at = clock_timestamp(), version = version + 1 where id = $1 returning",
        "",
        id.as_uuid()
    )
    .fetch_one(connection)
    .await?
    .try_into()
}

/// What [`alert_list`] looks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct AlertFilter {
    pub threshold: Option<ThresholdId>,
    pub device: Option<DeviceId>,
    pub state: Option<AlertState>,
}

/// What is not as it should be at a tenant's devices, newest first, after the position given.
pub async fn alert_list(
    connection: &mut PgConnection,
    tenant: TenantId,
    filter: AlertFilter,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<Alert>, StoreError> {
    let (after_time, after_id) = after.unzip();
    let state = filter.state.map(|state| match state {
        AlertState::Pending => State::Pending.name(),
        AlertState::Firing => State::Firing.name(),
    });
    let rows = sqlx::query!(
        "select s.id, s.threshold_id, t.name as threshold_name, t.metric, t.severity, s.device_id, d.name as device_name,
                s.site, s.state, s.since, s.value, s.told
           from threshold_states s join thresholds t on t.id = s.threshold_id join devices d on d.id = s.device_id
          where s.tenant_id = $1 and s.state <> 'ok' and t.deleted_at is null
            and ($2::uuid is null or s.threshold_id = $2) and ($3::uuid is null or s.device_id = $3)
            and ($4::text is null or s.state = $4) and ($5::timestamptz is null or (s.since, s.id) < ($5, $6::uuid))
          order by s.since desc, s.id desc limit $7",
        tenant.as_uuid(),
        filter.threshold.map(ThresholdId::as_uuid),
        filter.device.map(DeviceId::as_uuid),
        state,
        after_time,
        after_id,
        limit
    );
    let mut alerts = Vec::new();
    for row in rows.fetch_all(connection).await? {
        let severity = AlertSeverity::named(&row.severity)
            .ok_or(StoreError::Inconsistent { table: "thresholds", column: "severity" })?;
        alerts.push(Alert {
            id: row.id,
            threshold_id: row.threshold_id,
            threshold_name: row.threshold_name,
            metric: row.metric,
            severity,
            device_id: row.device_id,
            device_name: row.device_name,
            site: site(row.site),
            state: if row.state == State::Firing.name() { AlertState::Firing } else { AlertState::Pending },
            since: row.since,
            value: row.value,
            is_told: row.told,
        });
    }
    Ok(alerts)
}

fn site(site: String) -> Option<String> {
    (!site.is_empty()).then_some(site)
}

/// A rule that is due, and held until the end of the transaction.
#[derive(Clone, Copy, Debug)]
struct Turn {
    id: Uuid,
    tenant: TenantId,
    /// The last device that this round has looked at.
    reached: Option<Uuid>,
    now: OffsetDateTime,
    late: Duration,
}

/// A step that was taken.
#[derive(Debug)]
pub struct Stepped {
    pub threshold: Uuid,
    /// How late it was: where it grows, there is more to be done than the nodes come to.
    pub late: Duration,
    /// What it has done. What went wrong with one rule is put off, and keeps nobody from the others.
    pub outcome: Result<Outcome, StoreError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub devices: usize,
    pub crossed: usize,
    pub cleared: usize,
    /// Whether anybody is to be told.
    pub has_notices: bool,
}

/// Looks at the next devices of the rule that is due for longest, and tells what is to be told of it. A report counts for as long as
/// `fresh`. `None`: no rule is due, or others have them.
pub async fn threshold_step_in_txn(
    connection: &mut PgConnection,
    fresh: std::time::Duration,
) -> Result<Option<Stepped>, StoreError> {
    let Some(turn) = turn_take(connection).await? else { return Ok(None) };
    let mut part = connection.begin().await?;
    let outcome = Box::pin(go_on(&mut part, turn, fresh)).await;
    if outcome.is_ok() {
        part.commit().await?;
    } else {
        part.rollback().await?;
        turn_put_off(connection, turn).await?;
    }
    Ok(Some(Stepped { threshold: turn.id, late: turn.late, outcome }))
}

async fn turn_take(connection: &mut PgConnection) -> Result<Option<Turn>, StoreError> {
    let taken = sqlx::query!(
        r#"select id, tenant_id, reached, clock_timestamp() as "now!", due_at as "due_at!" from thresholds
            where due_at <= clock_timestamp() or due_at > clock_timestamp() + make_interval(secs => $1)
            order by due_at limit 1 for no key update skip locked"#,
        NEVER_AFTER_SECONDS
    );
    Ok(taken.fetch_optional(connection).await?.map(|row| Turn {
        id: row.id,
        tenant: TenantId::from_uuid(row.tenant_id),
        reached: row.reached,
        now: row.now,
        late: row.now - row.due_at,
    }))
}

async fn go_on(connection: &mut PgConnection, turn: Turn, fresh: std::time::Duration) -> Result<Outcome, StoreError> {
    let rule = threshold_query!("select", "from thresholds where id = $1", turn.id);
    let rule = Threshold::try_from(rule.fetch_one(&mut *connection).await?)?;
    let looked_at = look(connection, turn, &rule, fresh).await?;
    let mut has_notices = false;
    let crossed = tell_crossed(connection, turn, &rule).await?;
    let cleared = tell_cleared(connection, turn, &rule).await?;
    for (event, all) in [(Event::ThresholdCrossed, &crossed), (Event::ThresholdCleared, &cleared)] {
        for data in all {
            has_notices |= notice_emit(connection, turn.tenant, event, data.clone()).await?;
        }
    }
    turn_end(connection, turn, looked_at.last).await?;
    Ok(Outcome { devices: looked_at.devices, crossed: crossed.len(), cleared: cleared.len(), has_notices })
}

struct LookedAt {
    devices: usize,
    /// `None`: this round is over.
    last: Option<Uuid>,
}

/// Writes how the next devices stand.
async fn look(
    connection: &mut PgConnection,
    turn: Turn,
    rule: &Threshold,
    fresh: std::time::Duration,
) -> Result<LookedAt, StoreError> {
    let line = Line {
        comparison: rule.comparison,
        value: rule.value,
        clear_value: rule.clear_value,
        lasting: Duration::seconds(rule.for_seconds.into()),
    };
    // Where the metric is of a newer version, nothing is measured here.
    let metric = ThresholdMetric::named(&rule.metric);
    let rows = sqlx::query!(
        r#"with next as (
               select d.id, d.state = 'active' and t.deleted_at is null and labels_match(d.labels, t.selector) as is_meant,
                      coalesce(s.site, d.labels ->> $7, '') as site, d.enrolled_at,
                      s.state, s.since, s.value, s.crossed_at, s.crossed_value, s.told
                 from thresholds t
                 join devices d on d.tenant_id = t.tenant_id and ($2::uuid is null or d.id > $2)
                 left join threshold_states s on s.threshold_id = t.id and s.device_id = d.id
                where t.id = $1
                  and (s.device_id is not null
                       or d.state = 'active' and t.deleted_at is null and labels_match(d.labels, t.selector))
                order by d.id limit $3
           )
           select n.id as "id!", n.is_meant as "is_meant!", n.site as "site!", n.state as "state?", n.since as "since?", n.value as "value?",
                  n.crossed_at as "crossed_at?", n.crossed_value as "crossed_value?", n.told as "told?",
                  m.received_at as "measured_at?",
                  case when jsonb_typeof(m.report -> $4) = 'number' then (m.report ->> $4)::float8 end as "measured?",
                  case when l.closed_at is null and l.device_id is not null or p.by is not null then 0
                       else extract(epoch from $6 - greatest(l.proven_at, q.polled_at, n.enrolled_at))::float8 end as "no_contact!"
             from next n
             left join links l on l.device_id = n.id
             left join polls q on q.device_id = n.id
             left join lateral device_next_poll_by(n.id, $6) as p(by) on true
             left join device_metrics m on m.device_id = n.id
                   and (m.received_at > $6 - make_interval(secs => $5) or p.by is not null)
            order by n.id"#,
        turn.id,
        turn.reached,
        DEVICES_MAX,
        rule.metric,
        fresh.as_secs_f64(),
        turn.now,
        SITE_LABEL
    )
    .fetch_all(&mut *connection)
    .await?;
    let (mut changed, mut over) = (Vec::new(), Vec::new());
    for row in &rows {
        let before = match (&row.state, row.since) {
            (Some(state), Some(since)) => Standing {
                state: State::named(state)
                    .ok_or(StoreError::Inconsistent { table: "threshold_states", column: "state" })?,
                since,
                value: row.value,
                untold: row.crossed_at.map(|at| Crossing { at, value: row.crossed_value }),
                told: row.told.unwrap_or_default(),
            },
            _ => Standing::well(turn.now),
        };
        let measured = row.measured.zip(row.measured_at).map(|(value, at)| Reading::Measured { value, at });
        let reading = match metric {
            _ if !row.is_meant => Reading::Exempt(turn.now),
            Some(ThresholdMetric::NoContact) => Reading::Measured { value: row.no_contact, at: turn.now },
            Some(ThresholdMetric::Measured(_)) => measured.unwrap_or(Reading::Silent(turn.now)),
            None => Reading::Silent(turn.now),
        };
        let after = before.after(reading, &line);
        if after.is_over() {
            if row.state.is_some() {
                over.push(row.id);
            }
        } else if after != before {
            changed.push((row.id, row.site.as_str(), after));
        }
    }
    states_delete(connection, turn, &over).await?;
    states_write(connection, turn, &changed).await?;
    let is_full = i64::try_from(rows.len()).is_ok_and(|rows| rows == DEVICES_MAX);
    Ok(LookedAt { devices: rows.len(), last: rows.last().filter(|_| is_full).map(|row| row.id) })
}

async fn states_write(
    connection: &mut PgConnection,
    turn: Turn,
    changed: &[(Uuid, &str, Standing)],
) -> Result<(), StoreError> {
    if changed.is_empty() {
        return Ok(());
    }
    let devices: Vec<Uuid> = changed.iter().map(|(device, ..)| *device).collect();
    let sites: Vec<String> = changed.iter().map(|(_, site, _)| (*site).to_owned()).collect();
    let states: Vec<String> = changed.iter().map(|(.., standing)| standing.state.name().to_owned()).collect();
    let since: Vec<OffsetDateTime> = changed.iter().map(|(.., standing)| standing.since).collect();
    let values: Vec<Option<f64>> = changed.iter().map(|(.., standing)| standing.value).collect();
    let crossed_at: Vec<_> = changed.iter().map(|(.., standing)| standing.untold.map(|untold| untold.at)).collect();
    let crossed_values: Vec<_> =
        changed.iter().map(|(.., standing)| standing.untold.and_then(|untold| untold.value)).collect();
    sqlx::query!(
        "insert into threshold_states as s (threshold_id, device_id, tenant_id, site, state, since, value, crossed_at, crossed_value)
         select $1, n.device_id, $2, n.site, n.state, n.since, n.value, n.crossed_at, n.crossed_value
           from unnest($3::uuid[], $4::text[], $5::text[], $6::timestamptz[], $7::float8[], $8::timestamptz[], $9::float8[])
                as n(device_id, site, state, since, value, crossed_at, crossed_value)
             on conflict (threshold_id, device_id) do update
            set state = excluded.state, since = excluded.since, value = excluded.value,
                crossed_at = excluded.crossed_at, crossed_value = excluded.crossed_value",
        turn.id,
        turn.tenant.as_uuid(),
        &devices,
        &sites,
        &states,
        &since,
        &values as &[Option<f64>],
        &crossed_at as &[Option<OffsetDateTime>],
        &crossed_values as &[Option<f64>]
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn states_delete(connection: &mut PgConnection, turn: Turn, over: &[Uuid]) -> Result<(), StoreError> {
    if over.is_empty() {
        return Ok(());
    }
    let delete =
        sqlx::query!("delete from threshold_states where threshold_id = $1 and device_id = any ($2)", turn.id, over);
    delete.execute(connection).await?;
    Ok(())
}

/// Takes down that the crossings of sites without a hold-down are told, and that these have one from now on. Gives what is to be told.
async fn tell_crossed(connection: &mut PgConnection, turn: Turn, rule: &Threshold) -> Result<Vec<Value>, StoreError> {
    let rows = sqlx::query!(
        r#"with ready as (
               select s.device_id, s.site, s.crossed_at, s.crossed_value, dense_rank() over (order by s.site) as nth,
                      row_number() over (partition by s.site order by s.crossed_at, s.device_id) as place
                 from threshold_states s
                where s.threshold_id = $1 and s.crossed_at is not null
                  and not exists (select from threshold_holds h
                                   where h.threshold_id = $1 and h.site = s.site and h.event = 'crossed' and h.until > $3)
           ), chosen as materialized (
               select r.*, d.name from ready r join devices d on d.id = r.device_id where r.nth <= $5
           ), told as (
               update threshold_states s set told = true, crossed_at = null, crossed_value = null
                 from chosen c where s.threshold_id = $1 and s.device_id = c.device_id
           ), held as (
               insert into threshold_holds (threshold_id, site, event, tenant_id, until)
               select distinct $1::uuid, site, 'crossed', $2::uuid, $3 + make_interval(secs => $4) from chosen
                   on conflict (threshold_id, site, event) do update set until = excluded.until
           )
           select site as "site!", count(*) as "count!",
                  jsonb_agg(jsonb_build_object('device_id', device_id, 'name', name, 'value', crossed_value,
                                               'at', to_char(crossed_at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
                            order by place) filter (where place <= $6) as "devices!"
             from chosen group by site order by site"#,
        turn.id,
        turn.tenant.as_uuid(),
        turn.now,
        f64::from(rule.hold_down_seconds),
        SITES_MAX,
        i64::try_from(DEVICES_TOLD_MAX).unwrap_or(i64::MAX)
    );
    let rows = rows.fetch_all(connection).await?;
    Ok(rows.into_iter().map(|row| told(rule, row.site, row.count, &row.devices)).collect())
}

/// The same of what is as it should be again: also of crossings that the same step tells of.
async fn tell_cleared(connection: &mut PgConnection, turn: Turn, rule: &Threshold) -> Result<Vec<Value>, StoreError> {
    let rows = sqlx::query!(
        r#"with ready as (
               select s.device_id, s.site, s.state, s.since, s.value, dense_rank() over (order by s.site) as nth,
                      row_number() over (partition by s.site order by s.since, s.device_id) as place
                 from threshold_states s
                where s.threshold_id = $1 and s.told and s.state <> 'firing'
                  and not exists (select from threshold_holds h
                                   where h.threshold_id = $1 and h.site = s.site and h.event = 'cleared' and h.until > $3)
           ), chosen as materialized (
               select r.*, d.name from ready r join devices d on d.id = r.device_id where r.nth <= $5
           ), over as (
               delete from threshold_states s using chosen c
                where s.threshold_id = $1 and s.device_id = c.device_id and c.state = 'ok'
           ), told as (
               update threshold_states s set told = false
                 from chosen c where s.threshold_id = $1 and s.device_id = c.device_id and c.state <> 'ok'
           ), held as (
               insert into threshold_holds (threshold_id, site, event, tenant_id, until)
               select distinct $1::uuid, site, 'cleared', $2::uuid, $3 + make_interval(secs => $4) from chosen
                   on conflict (threshold_id, site, event) do update set until = excluded.until
           )
           select site as "site!", count(*) as "count!",
                  jsonb_agg(jsonb_build_object('device_id', device_id, 'name', name, 'value', case when state = 'ok' then value end,
                                               'at', to_char(since at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
                            order by place) filter (where place <= $6) as "devices!"
             from chosen group by site order by site"#,
        turn.id,
        turn.tenant.as_uuid(),
        turn.now,
        f64::from(rule.hold_down_seconds),
        SITES_MAX,
        i64::try_from(DEVICES_TOLD_MAX).unwrap_or(i64::MAX)
    );
    let rows = rows.fetch_all(connection).await?;
    Ok(rows.into_iter().map(|row| told(rule, row.site, row.count, &row.devices)).collect())
}

/// What receivers are told of one site.
fn told(rule: &Threshold, site: String, count: i64, devices: &Value) -> Value {
    json!({
        "threshold": {
            "id": rule.id, "name": rule.name, "metric": rule.metric, "comparison": rule.comparison, "value": rule.value,
            "clear_value": rule.clear_value, "severity": rule.severity,
        },
        "site": self::site(site),
        "count": count,
        "devices": devices,
    })
}

/// Says where to go on, and when. Of a rule that is deleted and has told everything, never.
async fn turn_end(connection: &mut PgConnection, turn: Turn, last: Option<Uuid>) -> Result<(), StoreError> {
    sqlx::query!("delete from threshold_holds where threshold_id = $1 and until <= $2", turn.id, turn.now)
        .execute(&mut *connection)
        .await?;
    sqlx::query!(
        "update thresholds t
            set reached = $2,
                due_at = case when $2::uuid is not null then due_at
                              when deleted_at is null or exists (select from threshold_states s where s.threshold_id = t.id)
                                or exists (select from threshold_holds h where h.threshold_id = t.id)
                              then clock_timestamp() + make_interval(secs => $3) end
          where id = $1",
        turn.id,
        last,
        EVERY_SECONDS
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The round goes on later where it was.
async fn turn_put_off(connection: &mut PgConnection, turn: Turn) -> Result<(), StoreError> {
    let put_off = sqlx::query!(
        "update thresholds set due_at = clock_timestamp() + make_interval(secs => $2) where id = $1",
        turn.id,
        AGAIN_AFTER_SECONDS
    );
    put_off.execute(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests;
