//! Rollouts: their plans, and what each is to do next. What becomes of a device is its command's state, so that the totals are
//! counted and never kept. Whoever decides for a rollout holds its row until that is stored: nodes take turns.

use std::collections::BTreeMap;
use std::time::Duration;

use cloudlink_proto::ids::{CommandId, DeviceId, GrantId, PersonId, RolloutId, TenantId};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use super::command::{
    CalledBack, Cancellation, NewCommand, command_cancel_in_txn, command_create, command_lock_in_txn,
};
use crate::model::command::{self, Command, Instruction};
use crate::model::new_id;
use crate::model::rollout::{
    Event, Execution, NotNow, PLANS_MAX, Plan, Record, Rollout, Shown, Standing, State, Stored, TARGETS_MAX, Target,
    Totals, Window,
};
use crate::model::selector::Selector;

/// Commands that one transaction makes: others of the tenant wait meanwhile for its audit log.
const CREATE_MAX: usize = 1024;
/// Rollouts that are looked at in one go.
const DUE_MAX: i64 = 32;
/// How many devices a refusal names.
pub const MOVED_MAX: usize = 20;
/// How soon to look again while commands are under way.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How soon to look again while nothing is expected.
const LOOK_IDLY: Duration = Duration::from_secs(60);
/// How soon to look again after a failure, in seconds.
const PUT_OFF_SECONDS: f64 = 10.0;

struct Row {
    id: Uuid,
    tenant_id: Uuid,
    grant_id: Uuid,
    requested_by: Uuid,
    kind: String,
    arguments: Value,
    reason: String,
    selector_text: String,
    canaries: i32,
    batch: i32,
    rate: i32,
    abort_after: i32,
    start_within_seconds: i32,
    may_queue: bool,
    lasts_seconds: i32,
    unless_agent: Option<String>,
    drift_max: i32,
    window_days: Option<Vec<i32>>,
    window_from_minute: Option<i32>,
    window_to_minute: Option<i32>,
    window_time_zone: Option<String>,
    plan_hash: Option<Vec<u8>>,
    state: String,
    created_at: OffsetDateTime,
    begun_at: Option<OffsetDateTime>,
    ends_at: Option<OffsetDateTime>,
    finished_at: Option<OffsetDateTime>,
}

impl TryFrom<Row> for Record {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let window = match (row.window_days, row.window_from_minute, row.window_to_minute, row.window_time_zone) {
            (Some(days), Some(from_minute), Some(to_minute), Some(time_zone)) => {
                Some(Window { days, from_minute, to_minute, time_zone })
            }
            _ => None,
        };
        Ok(Self {
            id: row.id,
            tenant_id: row.tenant_id,
            grant_id: row.grant_id,
            requested_by: row.requested_by,
            kind: row.kind,
            arguments: row.arguments,
            reason: row.reason,
            selector: row.selector_text,
            canaries: row.canaries,
            batch: row.batch,
            rate_per_minute: row.rate,
            abort_after: row.abort_after,
            start_within_seconds: row.start_within_seconds,
            may_queue: row.may_queue,
            lasts_seconds: row.lasts_seconds,
            unless_agent: row.unless_agent,
            drift_max: row.drift_max,
            window,
            state: state_named(&row.state)?,
            hash: HEXLOWER.encode(&row.plan_hash.unwrap_or_default()),
            created_at: row.created_at,
            begun_at: row.begun_at,
            ends_at: row.ends_at,
            finished_at: row.finished_at,
        })
    }
}

fn state_named(name: &str) -> Result<State, StoreError> {
    State::named(name).ok_or(StoreError::Inconsistent { table: "rollouts", column: "state" })
}

/// A statement that yields rollouts: the head comes before the columns, the tail after them.
macro_rules! rollout_query {
    ($head:literal, $tail:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            $head
                + r#" id, tenant_id, grant_id, requested_by, kind, arguments, reason, selector_text, canaries, batch, rate,
                      abort_after, start_within_seconds, may_queue, lasts_seconds, unless_agent, drift_max, window_days,
                      window_from_minute, window_to_minute, window_time_zone, plan_hash, state, created_at, begun_at, ends_at,
                      finished_at "#
                + $tail
            $(, $argument)*
        )
    };
}

/// A rollout that somebody asks for.
#[derive(Clone, Debug)]
pub struct NewRollout<'a> {
    pub id: RolloutId,
    pub operator: PersonId,
    /// Who asks, for the audit log.
    pub actor: Value,
    pub grant: GrantId,
    pub instruction: &'a Instruction,
    pub reason: &'a str,
    pub selector_text: &'a str,
    pub selector: &'a Selector,
    pub canaries: i32,
    pub batch: i32,
    pub rate: i32,
    pub abort_after: i32,
    pub start_within: Duration,
    pub may_queue: bool,
    pub lasts: Duration,
    pub unless_agent: Option<&'a str>,
    /// `None`: one in a hundred of the devices that the selector means.
    pub drift_max: Option<i32>,
    pub window: Option<&'a Window>,
}

/// Why there is no plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unplanned {
    /// There is no such grant that names the operator.
    NoGrant,
    /// More devices than a rollout may have.
    TooMany,
}

/// Freezes which devices the rollout is for, and why it is not for the others that the selector means. Older plans of the same person
/// give way when there are too many.
pub async fn rollout_plan_in_txn(
    connection: &mut PgConnection,
    new: &NewRollout<'_>,
) -> Result<Result<Shown, Unplanned>, StoreError> {
    let kind = new.instruction.kind();
    let seconds = |time: Duration| i32::try_from(time.as_secs()).unwrap_or(i32::MAX);
    let inserted = sqlx::query!(
        "insert into rollouts (id, tenant_id, grant_id, requested_by, actor, kind, arguments, scope, by_polling, disturbs, reason, selector_text,
                               selector, canaries, batch, rate, abort_after, start_within_seconds, may_queue, lasts_seconds,
                               unless_agent, window_days, window_from_minute, window_to_minute, window_time_zone)
         select $1, g.tenant_id, g.id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24
           from grants g where g.id = $2 and (g.operator_ids is null or $3 = any (g.operator_ids))",
        new.id.as_uuid(),
        new.grant.as_uuid(),
        new.operator.as_uuid(),
        new.actor,
        kind.name,
        new.instruction.arguments(),
        kind.scope,
        kind.by_polling,
        kind.disturbs,
        new.reason,
        new.selector_text,
        Json(new.selector) as _,
        new.canaries,
        new.batch,
        new.rate,
        new.abort_after,
        seconds(new.start_within),
        new.may_queue,
        seconds(new.lasts),
        new.unless_agent,
        new.window.map(|window| window.days.as_slice()),
        new.window.map(|window| window.from_minute),
        new.window.map(|window| window.to_minute),
        new.window.map(|window| window.time_zone.as_str()),
    )
    .execute(&mut *connection)
    .await?;
    if inserted.rows_affected() == 0 {
        return Ok(Err(Unplanned::NoGrant));
    }
    let frozen = sqlx::query!(
        "insert into rollout_targets (rollout_id, tenant_id, device_id, place, why_out, time_zone)
         select r.id, r.tenant_id, t.device_id,
                row_number() over (order by t.why_out is not null, t.opens_at, t.device_id) - 1, t.why_out, t.time_zone
           from rollouts r cross join lateral rollout_decide(r, null, now()) t
          where r.id = $1
          limit $2::bigint + 1",
        new.id.as_uuid(),
        TARGETS_MAX
    )
    .execute(&mut *connection)
    .await?;
    if i64::try_from(frozen.rows_affected()).is_ok_and(|targets| targets > TARGETS_MAX) {
        return Ok(Err(Unplanned::TooMany));
    }
    sqlx::query!(
        "update rollouts set drift_max = coalesce($2, (select count(*) from rollout_targets where rollout_id = $1)::integer / 100)
          where id = $1",
        new.id.as_uuid(),
        new.drift_max
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!("update rollouts set plan_hash = rollout_hash(id) where id = $1", new.id.as_uuid())
        .execute(&mut *connection)
        .await?;
    sqlx::query!(
        "delete from rollouts where id in (
             select id from rollouts where requested_by = $1 and state = 'planned'
              order by id = $3 desc, created_at desc, id desc offset $2 for update skip locked)",
        new.operator.as_uuid(),
        PLANS_MAX,
        new.id.as_uuid()
    )
    .execute(&mut *connection)
    .await?;
    let shown = rollout_show(connection, new.id).await?;
    Ok(Ok(shown.ok_or(StoreError::Inconsistent { table: "rollouts", column: "id" })?))
}

/// A device for which it is no longer as planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    pub device: String,
    /// Why it was out; `None`: it was in, or was not meant at all.
    pub was: Option<String>,
    pub is: Option<String>,
}

/// How far the world has moved since a plan was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// The first devices for which it would be decided otherwise now; those that count as `firm` come first.
    pub first: Vec<Moved>,
    /// Devices for which more has changed than a link or a busy lock.
    pub firm: i64,
    /// Devices that can be reached now, or not any more, or that are busy now, or not any more.
    pub passing: i64,
}

pub async fn rollout_drift(connection: &mut PgConnection, id: RolloutId) -> Result<Drift, StoreError> {
    let rows = sqlx::query!(
        r#"select d.name as "device!", m.was, m.is_now, count(*) filter (where m.drifted) over () as "passing!",
                  count(*) filter (where not m.drifted) over () as "firm!"
             from rollout_moved($1, clock_timestamp()) m join devices d on d.id = m.device_id
            order by m.drifted, d.name limit $2"#,
        id.as_uuid(),
        i64::try_from(MOVED_MAX).unwrap_or(i64::MAX)
    );
    let mut drift = Drift::default();
    for row in rows.fetch_all(connection).await? {
        (drift.firm, drift.passing) = (row.firm, row.passing);
        drift.first.push(Moved { device: row.device, was: row.was, is: row.is_now });
    }
    Ok(drift)
}

pub async fn rollout_show(connection: &mut PgConnection, id: RolloutId) -> Result<Option<Shown>, StoreError> {
    let row = rollout_query!("select", "from rollouts where id = $1", id.as_uuid());
    let Some(row) = row.fetch_optional(&mut *connection).await? else { return Ok(None) };
    let counts = sqlx::query!(
        r#"select t.why_out, c.state as "command_state?", t.why_skipped is not null as "is_skipped!", count(*) as "count!"
             from rollout_targets t left join commands c on c.id = t.command_id
            where t.rollout_id = $1 group by 1, 2, 3"#,
        id.as_uuid()
    );
    let (mut totals, mut out) = (Totals::default(), BTreeMap::new());
    for group in counts.fetch_all(connection).await? {
        let count = usize::try_from(group.count).unwrap_or(0);
        match group.why_out {
            Some(why) => *out.entry(why).or_default() += count,
            None => totals.add(standing(group.command_state.as_deref(), group.is_skipped)?, count),
        }
    }
    Ok(Some(Shown { rollout: row.try_into()?, totals, out }))
}

fn standing(command: Option<&str>, is_skipped: bool) -> Result<Standing, StoreError> {
    Ok(Standing::of(command.map(command_state).transpose()?, is_skipped))
}

fn command_state(name: &str) -> Result<command::State, StoreError> {
    command::State::named(name).ok_or(StoreError::Inconsistent { table: "commands", column: "state" })
}

/// Newest first, after the position given.
pub async fn rollout_list(
    connection: &mut PgConnection,
    state: Option<State>,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<Record>, StoreError> {
    let (after_time, after_id) = after.unzip();
    let rows = rollout_query!(
        "select",
        "from rollouts
          where ($1::text is null or state = $1) and ($2::timestamptz is null or (created_at, id) < ($2, $3::uuid))
          order by created_at desc, id desc limit $4",
        state.map(State::name),
        after_time,
        after_id,
        limit
    );
    rows.fetch_all(connection).await?.into_iter().map(Record::try_from).collect()
}

/// Devices in their order, from this place on.
pub async fn execution_list(
    connection: &mut PgConnection,
    id: RolloutId,
    from: i64,
    limit: i64,
) -> Result<Vec<Execution>, StoreError> {
    let rows = sqlx::query!(
        r#"select t.device_id, d.name, t.place, t.why_out, t.why_skipped, t.time_zone, t.command_id, t.begun_at,
                  c.state as "command_state?", c.code as "code?"
             from rollout_targets t join devices d on d.id = t.device_id left join commands c on c.id = t.command_id
            where t.rollout_id = $1 and t.place >= $2
            order by t.place limit $3"#,
        id.as_uuid(),
        i32::try_from(from).unwrap_or(i32::MAX),
        limit
    );
    let rows = rows.fetch_all(connection).await?;
    rows.into_iter()
        .map(|row| {
            let state = standing(row.command_state.as_deref(), row.why_skipped.is_some())?;
            Ok(Execution {
                device_id: row.device_id,
                device_name: row.name,
                place: row.place,
                state: row.why_out.is_none().then_some(state),
                why: row.why_out.or(row.why_skipped),
                time_zone: row.time_zone,
                command_id: row.command_id,
                command_state: row.command_state.as_deref().map(command_state).transpose()?,
                code: row.code,
                begun_at: row.begun_at,
            })
        })
        .collect()
}

/// A rollout that nobody else decides for until the end of this transaction.
#[derive(Debug)]
pub struct Held {
    pub record: Record,
    pub rollout: Rollout,
    before: Stored,
    actor: Value,
    targets: Vec<HeldTarget>,
    pub now: OffsetDateTime,
}

#[derive(Clone, Copy, Debug)]
struct HeldTarget {
    device: DeviceId,
    opens_at: Option<OffsetDateTime>,
    closes_at: Option<OffsetDateTime>,
}

/// Takes a rollout, with what has become of its devices until now. `or_wait`: also when somebody has it at the moment.
pub async fn rollout_hold(
    connection: &mut PgConnection,
    id: RolloutId,
    or_wait: bool,
) -> Result<Option<Held>, StoreError> {
    let locked = sqlx::query!(
        "select actor, forgiven, is_unproven_fine from rollouts where id = $1 and (not $2 or look_at is not null) for no key update",
        id.as_uuid(),
        !or_wait
    );
    let free = sqlx::query_scalar!("select id from rollouts where id = $1 for no key update skip locked", id.as_uuid());
    if !or_wait && free.fetch_optional(&mut *connection).await?.is_none() {
        return Ok(None);
    }
    let Some(locked) = locked.fetch_optional(&mut *connection).await? else { return Ok(None) };
    let row = rollout_query!("select", "from rollouts where id = $1", id.as_uuid());
    let record: Record = row.fetch_one(&mut *connection).await?.try_into()?;
    let now = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(&mut *connection).await?;
    let rows = sqlx::query!(
        r#"with zone as materialized (
               select z.time_zone, w.opens_at, w.closes_at
                 from (select distinct t.time_zone from rollout_targets t
                        where t.rollout_id = $1 and t.why_out is null and t.time_zone is not null) z
                cross join rollouts r
                left join lateral window_next(r.window_days, r.window_from_minute, r.window_to_minute, z.time_zone, $2) w on true
                where r.id = $1
           )
           select t.device_id, t.begun_at, t.time_zone is not null as "has_window!", t.why_skipped is not null as "is_skipped!",
                  c.state as "command_state?", z.opens_at as "opens_at?", z.closes_at as "closes_at?"
             from rollout_targets t
             left join commands c on c.id = t.command_id
             left join zone z on z.time_zone = t.time_zone
            where t.rollout_id = $1 and t.why_out is null
            order by t.place"#,
        id.as_uuid(),
        now
    );
    let (mut targets, mut held) = (Vec::new(), Vec::new());
    for row in rows.fetch_all(connection).await? {
        targets.push(Target::new(standing(row.command_state.as_deref(), row.is_skipped)?, row.begun_at));
        let opens_at = if row.has_window { row.opens_at } else { Some(now) };
        held.push(HeldTarget { device: DeviceId::from_uuid(row.device_id), opens_at, closes_at: row.closes_at });
    }
    let size = |number: i32| usize::try_from(number).unwrap_or(0);
    let plan = Plan {
        canaries: size(record.canaries),
        batch: size(record.batch),
        rate: size(record.rate_per_minute),
        abort_after: size(record.abort_after),
    };
    let before =
        Stored { state: record.state, forgiven: size(locked.forgiven), is_unproven_fine: locked.is_unproven_fine };
    let rollout = Rollout::restore(plan, before, targets);
    Ok(Some(Held { record, rollout, before, actor: locked.actor, targets: held, now }))
}

/// What was begun for a rollout.
#[derive(Debug, Default)]
pub struct Begun {
    pub commands: Vec<Command>,
    /// When more may be to be done.
    pub again_at: Option<OffsetDateTime>,
}

impl Held {
    pub fn id(&self) -> RolloutId {
        RolloutId::from_uuid(self.record.id)
    }

    /// Begins what is due now, as far as one transaction should.
    pub async fn step_in_txn(&mut self, connection: &mut PgConnection) -> Result<Begun, StoreError> {
        let decided = self.rollout.clone();
        let targets = &self.targets;
        let step = self.rollout.step_within(self.now, |place| targets.get(place).and_then(|target| target.opens_at));
        let begin = &step.begin[..step.begin.len().min(CREATE_MAX)];
        if begin.is_empty() {
            return Ok(Begun { commands: Vec::new(), again_at: step.again_at });
        }
        // What is not begun in this transaction has not been.
        self.rollout = decided;
        let instruction = Instruction::parse(&self.record.kind, self.record.arguments.clone())
            .map_err(|_| StoreError::Inconsistent { table: "rollouts", column: "arguments" })?;
        let commands: Vec<NewCommand> = begin
            .iter()
            .filter_map(|place| self.targets.get(*place))
            .map(|target| self.command(*target, &instruction))
            .collect();
        let made = command_create(connection, &commands).await?;
        self.close_in_txn(connection, &made).await?;
        let (devices, ids): (Vec<Uuid>, Vec<Uuid>) = made.iter().map(|command| (command.device_id, command.id)).unzip();
        sqlx::query!(
            "update rollout_targets t set command_id = m.command_id, begun_at = $4
               from unnest($2::uuid[], $3::uuid[]) as m(device_id, command_id)
              where t.rollout_id = $1 and t.device_id = m.device_id",
            self.record.id,
            &devices,
            &ids,
            self.now
        )
        .execute(&mut *connection)
        .await?;
        let refused: Vec<Uuid> = commands
            .iter()
            .map(|command| command.device.as_uuid())
            .filter(|device| !devices.contains(device))
            .collect();
        if !refused.is_empty() {
            // What was in the way may have gone by now.
            sqlx::query!(
                "update rollout_targets t set why_skipped = coalesce(n.why_out, 'changed')
                   from rollouts r cross join lateral rollout_decide(r, $2, clock_timestamp()) n
                  where r.id = $1 and t.rollout_id = r.id and t.device_id = n.device_id",
                self.record.id,
                &refused
            )
            .execute(&mut *connection)
            .await?;
        }
        Ok(Begun { commands: made, again_at: Some(self.now) })
    }

    /// None is begun after its window has closed, or the rollout is over.
    fn ends(&self, target: HeldTarget) -> Option<OffsetDateTime> {
        [target.closes_at, self.record.ends_at].into_iter().flatten().min()
    }

    /// A command lasts from when it is made, and that is later than `now`, by as long as it had to wait for others: what is too long is
    /// taken off.
    async fn close_in_txn(&self, connection: &mut PgConnection, made: &[Command]) -> Result<(), StoreError> {
        let expires: BTreeMap<Uuid, (Uuid, OffsetDateTime)> =
            made.iter().map(|command| (command.device_id, (command.id, command.expires_at))).collect();
        let (ids, ends): (Vec<Uuid>, Vec<OffsetDateTime>) = self
            .targets
            .iter()
            .filter_map(|target| {
                let (command, expires_at) = *expires.get(&target.device.as_uuid())?;
                Some((command, self.ends(*target).filter(|end| *end < expires_at)?))
            })
            .unzip();
        if ids.is_empty() {
            return Ok(());
        }
        sqlx::query!(
            "update commands c set expires_at = e.at, deadline_at = e.at
               from unnest($1::uuid[], $2::timestamptz[]) as e(id, at) where c.id = e.id",
            &ids,
            &ends
        )
        .execute(connection)
        .await?;
        Ok(())
    }

    fn command(&self, target: HeldTarget, instruction: &Instruction) -> NewCommand {
        let start_within = Duration::from_secs(u64::try_from(self.record.start_within_seconds).unwrap_or(1));
        let left = |end| Duration::try_from(end - self.now).unwrap_or(Duration::ZERO);
        let left = self.ends(target).map_or(start_within, left);
        let id = CommandId::from_uuid(new_id());
        NewCommand {
            id,
            operator: PersonId::from_uuid(self.record.requested_by),
            actor: self.actor.clone(),
            device: target.device,
            grant: Some(GrantId::from_uuid(self.record.grant_id)),
            instruction: instruction.clone(),
            reason: self.record.reason.clone(),
            start_within: start_within.min(left),
            may_queue: self.record.may_queue,
            override_busy: false,
            idempotency_key: None,
            // Nobody asks by a key for this one.
            request_hash: request_hash(self.record.id, target.device),
            trace: None,
        }
    }

    /// Stores where the rollout stands now, and calls back what must not begin any more. Gives what was called back.
    pub async fn store_in_txn(
        &self,
        connection: &mut PgConnection,
        again_at: Option<OffsetDateTime>,
        actor: &Value,
    ) -> Result<Vec<CalledBack>, StoreError> {
        let Stored { state, forgiven, is_unproven_fine } = self.rollout.stored();
        let changed = self.before.state != state;
        let is_first = changed && state.holds_back();
        let open = if is_first {
            Some(command_lock_in_txn(connection, Cancellation::OfRollout(self.id())).await?)
        } else {
            None
        };
        if state != State::Halted && is_first {
            sqlx::query!(
                "update rollout_targets set why_skipped = 'rollout_over'
                  where rollout_id = $1 and num_nonnulls(why_out, command_id, why_skipped) = 0",
                self.record.id
            )
            .execute(&mut *connection)
            .await?;
        }
        let totals = self.rollout.totals();
        let look_in = if changed || totals.under_way > 0 { LOOK_AGAIN } else { LOOK_IDLY };
        let ends_at = self.record.ends_at.filter(|_| !state.holds_back() || state == State::Halted);
        let act_at = [again_at, ends_at].into_iter().flatten().min();
        sqlx::query!(
            "update rollouts set state = $2, forgiven = $3, is_unproven_fine = $4,
                                 finished_at = case when $5 then clock_timestamp() end, look_at = case when not $5 then $6::timestamptz end,
                                 seen_open = $7, seen_look_at = $6, act_at = $8
              where id = $1",
            self.record.id,
            state.name(),
            i32::try_from(forgiven).unwrap_or(i32::MAX),
            is_unproven_fine,
            state.is_final(),
            [Some(self.now + look_in), act_at].into_iter().flatten().min(),
            i32::try_from(totals.under_way).unwrap_or(i32::MAX),
            act_at
        )
        .execute(&mut *connection)
        .await?;
        let mut called_back = Vec::new();
        if let Some(open) = open {
            let message = format!("the rollout is {}", state.name());
            called_back = command_cancel_in_txn(connection, &open, actor.clone(), "rollout", &message).await?;
        }
        Ok(called_back)
    }

    /// Whether it stands elsewhere than when it was taken, and where.
    pub fn news(&self) -> Option<State> {
        Some(self.rollout.state()).filter(|state| *state != self.before.state)
    }

    /// For the audit log.
    pub fn details(&self) -> Value {
        json!({"state": self.rollout.state(), "hash": self.record.hash, "totals": self.rollout.totals()})
    }

    /// Somebody, or the time, wants something of it.
    pub fn handle(&mut self, event: Event) -> Result<(), NotNow> {
        self.rollout.handle(event)
    }
}

fn request_hash(rollout: Uuid, device: DeviceId) -> [u8; 32] {
    let text = json!([rollout, device.as_uuid()]).to_string();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Lets a plan begin. The caller has held it in this transaction and found that nothing has moved.
pub async fn rollout_begin_in_txn(connection: &mut PgConnection, id: RolloutId) -> Result<(), StoreError> {
    sqlx::query!(
        "update rollouts set state = 'running', begun_at = clock_timestamp(), look_at = clock_timestamp(),
                             ends_at = clock_timestamp() + make_interval(secs => lasts_seconds)
          where id = $1",
        id.as_uuid()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// How many rollouts of a tenant are neither plans nor over.
pub async fn rollout_count_begun(connection: &mut PgConnection, tenant: TenantId) -> Result<i64, StoreError> {
    let count = sqlx::query_scalar!(
        r#"select count(*) as "count!" from rollouts where tenant_id = $1 and look_at is not null"#,
        tenant.as_uuid()
    );
    Ok(count.fetch_one(connection).await?)
}

/// Puts off all that are due and for which nothing has moved since they were looked at last.
pub async fn rollout_pass_idle(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!(
        "select rollout_pass_idle(make_interval(secs => $1), make_interval(secs => $2))",
        LOOK_AGAIN.as_secs_f64(),
        LOOK_IDLY.as_secs_f64()
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}

/// Rollouts for which something may be to be done now. A time that none is ever put off to is one of a clock that was set back since.
pub async fn rollout_list_due(connection: &mut PgConnection) -> Result<Vec<RolloutId>, StoreError> {
    let ids = sqlx::query_scalar!(
        "select id from rollouts
          where look_at <= clock_timestamp() or look_at > clock_timestamp() + make_interval(secs => $2)
          order by look_at limit $1",
        DUE_MAX,
        2.0 * LOOK_IDLY.as_secs_f64()
    );
    Ok(ids.fetch_all(connection).await?.into_iter().map(RolloutId::from_uuid).collect())
}

/// Has a rollout wait that could not be taken on, unless somebody has done so meanwhile.
pub async fn rollout_put_off(connection: &mut PgConnection, id: RolloutId) -> Result<(), StoreError> {
    sqlx::query!(
        "update rollouts set look_at = clock_timestamp() + make_interval(secs => $2) where id = $1 and (look_at <= clock_timestamp() or look_at > clock_timestamp() + make_interval(secs => $3))",
        id.as_uuid(),
        PUT_OFF_SECONDS,
        2.0 * LOOK_IDLY.as_secs_f64()
    )
    .execute(connection)
    .await?;
    Ok(())
}
