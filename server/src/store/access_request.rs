//! Access requests. Who may ask and answer, and which grant comes of it, is decided by `access_request_create()`,
//! `access_request_propose()`, `access_request_decide()` and `access_request_withdraw()` in the database, and nowhere else. Each
//! says what it came to in a word; when that is a refusal, the caller lets go of the transaction.

use cloudlink_proto::ids::{AccessRequestId, DeviceId, GrantId, PersonId, SigningKeyId, TenantId};
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use super::grant::End;
use crate::model::access_request::{
    ANSWER_WITHIN_DEFAULT, AccessDecision, AccessRequest, AccessRequestKind, AccessRequestState, Decision,
    OPEN_REQUESTS_MAX,
};
use crate::model::selector::Selector;

struct Row {
    id: Uuid,
    kind: String,
    tenant_id: Uuid,
    requested_by: Uuid,
    operator_ids: Option<Vec<Uuid>>,
    scopes: Vec<String>,
    device_ids: Option<Vec<Uuid>>,
    selector: Option<Json<Selector>>,
    reason: String,
    ticket: Option<String>,
    state: String,
    created_at: OffsetDateTime,
    starts_at: Option<OffsetDateTime>,
    answer_by: OffsetDateTime,
    access_until: OffsetDateTime,
    approvals_needed: i32,
    decisions: Json<Vec<AccessDecision>>,
    closed_at: Option<OffsetDateTime>,
    grant_id: Option<Uuid>,
    extends_id: Option<Uuid>,
    policy_id: Option<Uuid>,
    version: i64,
}

fn unreadable(column: &'static str) -> StoreError {
    StoreError::Inconsistent { table: "access_requests", column }
}

impl TryFrom<Row> for AccessRequest {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let (selector, selector_text) = row.selector.map(|Json(selector)| selector.forms()).unzip();
        Ok(Self {
            id: row.id,
            kind: AccessRequestKind::named(&row.kind).ok_or_else(|| unreadable("kind"))?,
            tenant_id: row.tenant_id,
            requested_by: row.requested_by,
            operator_ids: row.operator_ids,
            scopes: row.scopes,
            device_ids: row.device_ids,
            selector,
            selector_text,
            reason: row.reason,
            ticket: row.ticket,
            state: AccessRequestState::named(&row.state).ok_or_else(|| unreadable("state"))?,
            created_at: row.created_at,
            starts_at: row.starts_at,
            answer_by: row.answer_by,
            access_until: row.access_until,
            approvals_needed: row.approvals_needed,
            decisions: row.decisions.0,
            closed_at: row.closed_at,
            grant_id: row.grant_id,
            extends_grant_id: row.extends_id,
            policy_id: row.policy_id,
            version: row.version,
        })
    }
}

/// A statement that yields access requests `r`: the head comes before the columns, the tail after them. How many must approve is
/// what the tenant asks for now, if that is more than when it was made, as long as it is open.
macro_rules! access_request_query {
    ($head:literal, $tail:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            $head
                + r#" r.id, r.kind, r.tenant_id, r.requested_by,
                      case when r.kind = 'access' then array[r.requested_by] else r.operator_ids end as operator_ids,
                      r.scopes, r.device_ids, r.selector as "selector: Json<Selector>", r.reason, r.ticket,
                      access_request_state(r, clock_timestamp()) as "state!", r.created_at, r.starts_at, r.answer_by,
                      r.access_until,
                      case when r.outcome is null
                           then greatest(r.approvals_needed, (select t.approvals_needed from tenants t where t.id = r.tenant_id))
                           else r.approvals_needed end as "approvals_needed!",
                      (select coalesce(jsonb_agg(jsonb_build_object(
                                  'person_id', d.person_id, 'decision', d.decision, 'scopes', d.scopes, 'device_ids', d.device_ids,
                                  'access_until', d.access_until, 'comment', d.comment, 'at', d.created_at)
                              order by d.created_at, d.person_id), '[]')
                         from access_decisions d where d.request_id = r.id) as "decisions!: Json<Vec<AccessDecision>>",
                      r.closed_at, r.grant_id, r.extends_id,
                      (select g.policy_id from grants g where g.id = r.grant_id and g.request_id = r.id) as policy_id,
                      r.version "#
                + $tail
            $(, $argument)*
        )
    };
}

/// Access that an operator asks for.
#[derive(Clone, Copy, Debug)]
pub struct NewAccessRequest<'a> {
    pub id: AccessRequestId,
    pub operator: PersonId,
    pub scopes: &'a [String],
    pub devices: &'a [Uuid],
    pub reason: &'a str,
    pub ticket: Option<&'a str>,
    pub answer_by: End,
    pub access_until: End,
    /// The grant that is made if a policy allows all of it.
    pub grant: GrantId,
}

/// What came of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The tenant's people have to answer.
    Open,
    /// A policy allows it: the grant is made.
    Approved,
    /// Whoever asks is no operator who may act.
    NoOperator,
    /// A device is unknown, or revoked.
    Devices,
    /// The devices are of several tenants.
    Tenants,
    /// So many requests of this operator are open.
    TooMany,
    /// It would be over before it begins.
    Time,
    /// Longer than the tenant lets one grant run.
    BeyondPolicy,
}

pub async fn access_request_create(
    connection: &mut PgConnection,
    new: &NewAccessRequest<'_>,
) -> Result<Asked, StoreError> {
    let (answer_by, answer_within) = moment(new.answer_by);
    let (access_until, access_for) = moment(new.access_until);
    let verdict = sqlx::query_scalar!(
        r#"select access_request_create($1, $2, $3, $4, $5, $6, $7, make_interval(secs => $8), $9, make_interval(secs => $10),
                                        $11, $12) as "verdict!""#,
        new.id.as_uuid(),
        new.operator.as_uuid(),
        new.scopes,
        new.devices,
        new.reason,
        new.ticket,
        answer_by,
        answer_within,
        access_until,
        access_for,
        OPEN_REQUESTS_MAX,
        new.grant.as_uuid()
    );
    Ok(match verdict.fetch_one(connection).await?.as_str() {
        "open" => Asked::Open,
        "approved" => Asked::Approved,
        "operator" => Asked::NoOperator,
        "devices" => Asked::Devices,
        "tenants" => Asked::Tenants,
        "room" => Asked::TooMany,
        "time" => Asked::Time,
        "beyond_policy" => Asked::BeyondPolicy,
        _ => return Err(unreadable("verdict")),
    })
}

fn moment(end: End) -> (Option<OffsetDateTime>, Option<f64>) {
    match end {
        End::At(at) => (Some(at), None),
        End::After(span) => (None, Some(span.as_secs_f64())),
    }
}

/// What one of a tenant's people proposes to a second one.
#[derive(Clone, Copy, Debug)]
pub enum Proposal<'a> {
    Grant {
        reason: &'a str,
        scopes: &'a [String],
        operator_ids: Option<&'a [Uuid]>,
        device_ids: Option<&'a [Uuid]>,
        selector: Option<&'a Selector>,
        starts_at: Option<OffsetDateTime>,
        ends_at: End,
    },
    Extension {
        grant: GrantId,
        ends_at: OffsetDateTime,
    },
}

/// What came of proposing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proposed {
    Open,
    NoPerson,
    /// A service account counts for nobody.
    Robot,
    /// The grant to be extended is over.
    GrantOver,
    /// It ends before it begins, or no later than it does already.
    Time,
    BeyondPolicy,
}

/// In a transaction of the tenant.
pub async fn access_request_propose(
    connection: &mut PgConnection,
    id: AccessRequestId,
    person: PersonId,
    proposal: Proposal<'_>,
) -> Result<Proposed, StoreError> {
    let answer_within = ANSWER_WITHIN_DEFAULT.as_secs_f64();
    let verdict = match proposal {
        Proposal::Grant { reason, scopes, operator_ids, device_ids, selector, starts_at, ends_at } => {
            let (ends_at, seconds) = moment(ends_at);
            sqlx::query_scalar!(
                r#"select access_request_propose($1, $2, null, $3, $4, $5, $6, $7, $8, $9, make_interval(secs => $10),
                                                 make_interval(secs => $11)) as "verdict!""#,
                id.as_uuid(),
                person.as_uuid(),
                scopes,
                operator_ids,
                device_ids,
                selector.map(Json) as _,
                reason,
                starts_at,
                ends_at,
                seconds,
                answer_within
            )
            .fetch_one(connection)
            .await?
        }
        Proposal::Extension { grant, ends_at } => {
            sqlx::query_scalar!(
                r#"select access_request_propose($1, $2, $3, null, null, null, null, null, null, $4, null,
                                                 make_interval(secs => $5)) as "verdict!""#,
                id.as_uuid(),
                person.as_uuid(),
                grant.as_uuid(),
                ends_at,
                answer_within
            )
            .fetch_one(connection)
            .await?
        }
    };
    Ok(match verdict.as_str() {
        "open" => Proposed::Open,
        "person" => Proposed::NoPerson,
        "robot" => Proposed::Robot,
        "grant_over" => Proposed::GrantOver,
        "time" => Proposed::Time,
        "beyond_policy" => Proposed::BeyondPolicy,
        _ => return Err(unreadable("verdict")),
    })
}

/// One person's answer to a request.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    pub request: AccessRequestId,
    pub person: PersonId,
    pub decision: Decision,
    /// Less than was asked for; `None`: all of it.
    pub scopes: Option<&'a [String]>,
    pub device_ids: Option<&'a [Uuid]>,
    pub access_until: Option<OffsetDateTime>,
    pub comment: Option<&'a str>,
    /// The grant that is made with the last approval.
    pub grant: GrantId,
    /// What the tenant's tool has signed, and the key. Whoever gives it looks that it says what the grant's row says, before the
    /// transaction commits.
    pub statement: Option<(&'a str, SigningKeyId)>,
}

/// What came of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decided {
    /// The grant is made, or extended.
    Approved,
    /// Others must approve, too.
    Recorded,
    Denied,
    /// This person has given this answer to it before.
    Again,
    Unknown,
    /// Whoever answers is no person of the tenant who may act.
    NoPerson,
    /// A service account counts for nobody where two people must approve.
    Robot,
    /// More than was asked for.
    Wider,
    /// Nothing that everybody approves, or no time.
    NothingLeft,
    /// The operator who asked is no longer active.
    OperatorGone,
    /// The grant to be extended is over.
    GrantOver,
    Closed(AccessRequestState),
}

/// In a transaction of the tenant. Fails on [`super::grant::BEYOND_POLICY`].
pub async fn access_request_decide(connection: &mut PgConnection, answer: Answer<'_>) -> Result<Decided, StoreError> {
    let (statement, key) = answer.statement.unzip();
    let verdict = sqlx::query_scalar!(
        r#"select access_request_decide($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) as "verdict!""#,
        answer.request.as_uuid(),
        answer.person.as_uuid(),
        answer.decision.name(),
        answer.scopes,
        answer.device_ids,
        answer.access_until,
        answer.comment,
        answer.grant.as_uuid(),
        statement,
        key.map(SigningKeyId::as_uuid)
    )
    .fetch_one(connection)
    .await?;
    Ok(match verdict.as_str() {
        "approved" => Decided::Approved,
        "recorded" => Decided::Recorded,
        "denied" => Decided::Denied,
        "again" => Decided::Again,
        "unknown" => Decided::Unknown,
        "person" => Decided::NoPerson,
        "robot" => Decided::Robot,
        "wider" => Decided::Wider,
        "nothing_left" => Decided::NothingLeft,
        "operator_gone" => Decided::OperatorGone,
        "grant_over" => Decided::GrantOver,
        other => Decided::Closed(closed(other)?),
    })
}

/// The state in `is denied`.
fn closed(verdict: &str) -> Result<AccessRequestState, StoreError> {
    verdict.strip_prefix("is ").and_then(AccessRequestState::named).ok_or_else(|| unreadable("verdict"))
}

/// What came of taking a request back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    Withdrawn,
    Again,
    /// There is none of this id that this person has made.
    Unknown,
    Closed(AccessRequestState),
}

pub async fn access_request_withdraw(
    connection: &mut PgConnection,
    id: AccessRequestId,
    person: PersonId,
) -> Result<Withdrawn, StoreError> {
    let verdict =
        sqlx::query_scalar!(r#"select access_request_withdraw($1, $2) as "verdict!""#, id.as_uuid(), person.as_uuid());
    Ok(match verdict.fetch_one(connection).await?.as_str() {
        "withdrawn" => Withdrawn::Withdrawn,
        "again" => Withdrawn::Again,
        "unknown" => Withdrawn::Unknown,
        other => Withdrawn::Closed(closed(other)?),
    })
}

/// One request; if an operator is given, only one that it has made.
pub async fn access_request_show(
    connection: &mut PgConnection,
    id: AccessRequestId,
    operator: Option<Uuid>,
) -> Result<Option<AccessRequest>, StoreError> {
    access_request_query!(
        "select",
        "from access_requests r where r.id = $1 and ($2::uuid is null or r.requested_by = $2)",
        id.as_uuid(),
        operator
    )
    .fetch_optional(connection)
    .await?
    .map(AccessRequest::try_from)
    .transpose()
}

/// What [`access_request_list`] looks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct AccessRequestFilter {
    /// Only what this operator has asked for.
    pub operator: Option<Uuid>,
    pub tenant: Option<TenantId>,
    pub state: Option<AccessRequestState>,
    /// Only what is about this device, by name or by selector.
    pub device: Option<DeviceId>,
}

/// Requests, newest first, after the position given.
pub async fn access_request_list(
    connection: &mut PgConnection,
    filter: AccessRequestFilter,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<AccessRequest>, StoreError> {
    let (after_time, after_id) = after.unzip();
    access_request_query!(
        "select",
        "from access_requests r
          where ($1::uuid is null or r.requested_by = $1) and ($2::uuid is null or r.tenant_id = $2)
            and ($3::text is null or access_request_state(r, clock_timestamp()) = $3)
            and ($4::uuid is null or exists (
                select from devices d where d.id = $4 and d.tenant_id = r.tenant_id
                   and coalesce(d.id = any (r.device_ids), labels_match(d.labels, r.selector))))
            and ($5::timestamptz is null or (r.created_at, r.id) < ($5, $6::uuid))
          order by r.created_at desc, r.id desc limit $7",
        filter.operator,
        filter.tenant.map(TenantId::as_uuid),
        filter.state.map(AccessRequestState::name),
        filter.device.map(DeviceId::as_uuid),
        after_time,
        after_id,
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(AccessRequest::try_from)
    .collect()
}

/// One request that nobody has answered in time, and of which nobody was told yet: marked as told.
pub async fn access_request_tell_expired_in_txn(
    connection: &mut PgConnection,
) -> Result<Option<AccessRequest>, StoreError> {
    let id = sqlx::query_scalar!(
        "update access_requests set expiry_told_at = clock_timestamp()
          where id = (select r.id from access_requests r
                       where r.outcome is null and r.expiry_told_at is null
                         and least(r.answer_by, r.access_until) <= clock_timestamp()
                       order by least(r.answer_by, r.access_until) limit 1 for no key update skip locked)
         returning id"
    )
    .fetch_optional(&mut *connection)
    .await?;
    match id {
        Some(id) => access_request_show(connection, AccessRequestId::from_uuid(id), None).await,
        None => Ok(None),
    }
}
