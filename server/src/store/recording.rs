//! Recordings, and the encrypted pieces of their text. A recording has one writer, until it is finished or somebody has found it
//! cut short; after that nothing is added to it.

use cloudlink_proto::ids::{DeviceId, GrantId, PersonId, SupportSessionId, TenantId};
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::model::audit::Actor;
use crate::model::recording::{Format, Recording, RecordingState};
use crate::recording::Recorded;

/// Recordings that one sweep deletes. Whoever gets as many sweeps again.
pub const DELETE_MAX: i64 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    Yes,
    /// The session is not there, has ended, or is recorded already.
    NoSession,
}

/// Writes the head of a recording, as chunk 0.
pub async fn recording_begin(
    connection: &mut PgConnection,
    session: SupportSessionId,
    format: Format,
    sealed: &[u8],
) -> Result<Begun, StoreError> {
    let made = sqlx::query!(
        "insert into recordings (session_id, tenant_id, format)
         select id, tenant_id, $2 from support_sessions where id = $1 and ended_at is null
         on conflict do nothing",
        session.as_uuid(),
        format.name()
    )
    .execute(&mut *connection)
    .await?;
    let is_made = made.rows_affected() == 1 && recording_append(connection, session, 0, sealed).await?;
    Ok(if is_made { Begun::Yes } else { Begun::NoSession })
}

/// Adds a chunk. Doing it twice is doing it once; false if the recording is closed, or has another chunk of this number.
pub async fn recording_append(
    connection: &mut PgConnection,
    session: SupportSessionId,
    seq: u32,
    sealed: &[u8],
) -> Result<bool, StoreError> {
    let added = sqlx::query_scalar!(
        r#"with open as materialized (
               -- Whoever closes it waits for this chunk, or this chunk finds it closed.
               select session_id, tenant_id from recordings
                where session_id = $1 and finished_at is null and not is_cut_short and deleted_at is null
                  for share
           ), added as (
               insert into recording_chunks (session_id, tenant_id, seq, sealed)
               select session_id, tenant_id, $2, $3 from open
               on conflict do nothing
               returning seq
           )
           select exists (select from added)
               or exists (select from recording_chunks where session_id = $1 and seq = $2 and sealed = $3) as "added!""#,
        session.as_uuid(),
        number(seq),
        sealed
    );
    Ok(added.fetch_one(connection).await?)
}

/// Closes a recording that is whole, with its audit entry. Doing it twice is doing it once; false if somebody else has closed it.
pub async fn recording_finish(
    connection: &mut PgConnection,
    session: SupportSessionId,
    recorded: &Recorded,
) -> Result<bool, StoreError> {
    let finished = sqlx::query_scalar!(
        r#"with finished as (
               update recordings set finished_at = clock_timestamp(), bytes = $2, digest = $3
                where session_id = $1 and finished_at is null and not is_cut_short and deleted_at is null
               returning session_id, tenant_id, bytes, digest
           ), audited as materialized (
               select audit_append(tenant_id, $4, 'recording.finished', jsonb_build_object('kind', 'recording', 'id', session_id),
                                   jsonb_build_object('bytes', bytes, 'digest', encode(digest, 'hex'))) as seq
                 from finished
           )
           select coalesce((select seq from audited) > 0, false)
               or exists (select from recordings where session_id = $1 and finished_at is not null and digest = $3)
                  as "finished!""#,
        session.as_uuid(),
        i64::try_from(recorded.bytes).unwrap_or(i64::MAX),
        &recorded.digest,
        server_actor()
    );
    Ok(finished.fetch_one(connection).await?)
}

/// A recording that nobody will finish, locked to be closed. One whose node is lost at once; otherwise when its session has been
/// over for so long that its writer has given up. Several nodes may look at once.
pub async fn recording_abandoned_lock(
    connection: &mut PgConnection,
    given_up_after_seconds: f64,
) -> Result<Option<SupportSessionId>, StoreError> {
    let found = sqlx::query_scalar!(
        "select r.session_id from recordings r
           join support_sessions s on s.id = r.session_id
          where r.finished_at is null and not r.is_cut_short and r.deleted_at is null
            and (s.end_reason = 'node_lost' or s.ended_at < clock_timestamp() - make_interval(secs => $1))
          limit 1
            for no key update of r skip locked",
        given_up_after_seconds
    );
    Ok(found.fetch_optional(connection).await?.map(SupportSessionId::from_uuid))
}

/// Says that a recording was cut short, with its audit entry. `recorded`: of what is there, if all of it can be read.
pub async fn recording_cut_short_in_txn(
    connection: &mut PgConnection,
    session: SupportSessionId,
    recorded: Option<Recorded>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "with cut as (
             update recordings set is_cut_short = true, bytes = coalesce($2::bigint, 0), digest = $3
              where session_id = $1 and finished_at is null and not is_cut_short
             returning session_id, tenant_id, bytes, digest
         )
         select audit_append(tenant_id, $4, 'recording.cut_short', jsonb_build_object('kind', 'recording', 'id', session_id),
                             jsonb_build_object('bytes', bytes, 'digest', encode(digest, 'hex')))
           from cut",
        session.as_uuid(),
        recorded.map(|recorded| i64::try_from(recorded.bytes).unwrap_or(i64::MAX)),
        recorded.map(|recorded| recorded.digest.to_vec()),
        server_actor()
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}

/// Chunks from number `from` on, in their order: number and sealed text.
pub async fn recording_chunks(
    connection: &mut PgConnection,
    session: SupportSessionId,
    from: u32,
    limit: i64,
) -> Result<Vec<(u32, Vec<u8>)>, StoreError> {
    let rows = sqlx::query!(
        "select seq, sealed from recording_chunks where session_id = $1 and seq >= $2 order by seq limit $3",
        session.as_uuid(),
        number(from),
        limit
    );
    rows.fetch_all(connection)
        .await?
        .into_iter()
        .map(|row| {
            let seq = u32::try_from(row.seq)
                .map_err(|_| StoreError::Inconsistent { table: "recording_chunks", column: "seq" })?;
            Ok((seq, row.sealed))
        })
        .collect()
}

struct Row {
    session_id: Uuid,
    tenant_id: Uuid,
    device_id: Uuid,
    grant_id: Uuid,
    opened_by: Uuid,
    kind: String,
    reason: String,
    format: String,
    state: String,
    started_at: OffsetDateTime,
    ended_at: Option<OffsetDateTime>,
    bytes: Option<i64>,
    digest: Option<String>,
    keep_until: OffsetDateTime,
    deleted_at: Option<OffsetDateTime>,
}

impl TryFrom<Row> for Recording {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let unreadable = |column| StoreError::Inconsistent { table: "recordings", column };
        Ok(Self {
            session_id: row.session_id,
            tenant_id: row.tenant_id,
            device_id: row.device_id,
            grant_id: row.grant_id,
            opened_by: row.opened_by,
            kind: row.kind,
            reason: row.reason,
            format: Format::named(&row.format).ok_or_else(|| unreadable("format"))?,
            state: RecordingState::named(&row.state).ok_or_else(|| unreadable("state"))?,
            started_at: row.started_at,
            ended_at: row.ended_at,
            bytes: row.bytes,
            digest: row.digest,
            keep_until: row.keep_until,
            deleted_at: row.deleted_at,
        })
    }
}

/// Which recordings are looked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecordingFilter {
    pub session: Option<SupportSessionId>,
    pub tenant: Option<TenantId>,
    pub device: Option<DeviceId>,
    pub grant: Option<GrantId>,
    /// Of sessions that this operator opened or joined.
    pub person: Option<PersonId>,
    /// Whoever asks may see only those that he took part in.
    pub seen_by: Option<PersonId>,
    /// `terminal`, `forward` or `file`.
    pub kind: Option<&'static str>,
    /// Begun at this time or later.
    pub from: Option<OffsetDateTime>,
    /// Begun before this time.
    pub until: Option<OffsetDateTime>,
}

/// Recordings, newest first, after the position given.
pub async fn recording_list(
    connection: &mut PgConnection,
    filter: RecordingFilter,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<Recording>, StoreError> {
    let (after_time, after_id) = after.unzip();
    sqlx::query_as!(
        Row,
        r#"select r.session_id, r.tenant_id, s.device_id, s.grant_id, s.opened_by, s.kind, s.reason, r.format,
                  case when r.deleted_at is not null then 'deleted' when r.is_cut_short then 'cut_short'
                       when r.finished_at is not null then 'finished' else 'recording' end as "state!",
                  r.started_at, s.ended_at, case when r.digest is not null then r.bytes end as bytes,
                  encode(r.digest, 'hex') as digest,
                  r.started_at + make_interval(days => t.recording_keep_days) as "keep_until!", r.deleted_at
             from recordings r
             join support_sessions s on s.id = r.session_id
             join tenants t on t.id = r.tenant_id
            where ($1::uuid is null or r.session_id = $1) and ($2::uuid is null or r.tenant_id = $2)
              and ($3::uuid is null or s.device_id = $3) and ($4::uuid is null or s.grant_id = $4)
              and ($5::uuid is null or s.opened_by = $5
                   or exists (select from support_guests g where g.session_id = s.id and g.person_id = $5))
              and ($6::uuid is null or s.opened_by = $6
                   or exists (select from support_guests g where g.session_id = s.id and g.person_id = $6))
              and ($7::text is null or s.kind = $7)
              and ($8::timestamptz is null or r.started_at >= $8) and ($9::timestamptz is null or r.started_at < $9)
              and ($10::timestamptz is null or (r.started_at, r.session_id) < ($10, $11::uuid))
            order by r.started_at desc, r.session_id desc limit $12"#,
        filter.session.map(SupportSessionId::as_uuid),
        filter.tenant.map(TenantId::as_uuid),
        filter.device.map(DeviceId::as_uuid),
        filter.grant.map(GrantId::as_uuid),
        filter.person.map(PersonId::as_uuid),
        filter.seen_by.map(PersonId::as_uuid),
        filter.kind,
        filter.from,
        filter.until,
        after_time,
        after_id,
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(Recording::try_from)
    .collect()
}

/// One recording, if `seen_by` took part in it.
pub async fn recording_show(
    connection: &mut PgConnection,
    session: SupportSessionId,
    seen_by: Option<PersonId>,
) -> Result<Option<Recording>, StoreError> {
    let filter = RecordingFilter { session: Some(session), seen_by, ..RecordingFilter::default() };
    Ok(recording_list(connection, filter, None, 1).await?.pop())
}

/// Deletes the text of recordings that are older than their tenant wants to keep them, each with its audit entry, and says how
/// many. Their rows stay, with their digests. Several nodes may do it at once.
pub async fn recording_trim(connection: &mut PgConnection) -> Result<i64, StoreError> {
    let deleted = sqlx::query_scalar!(
        r#"with old as materialized (
               select r.session_id from recordings r
                 join tenants t on t.id = r.tenant_id
                where r.deleted_at is null and (r.finished_at is not null or r.is_cut_short)
                  and r.started_at < clock_timestamp() - make_interval(days => t.recording_keep_days)
                limit $1
                  for no key update of r skip locked
           ), deleted as (
               update recordings r set deleted_at = clock_timestamp() from old where r.session_id = old.session_id
               returning r.session_id, r.tenant_id, r.bytes, r.digest
           ), chunks as (
               delete from recording_chunks c using old where c.session_id = old.session_id
           ), audited as materialized (
               select audit_append(tenant_id, $2, 'recording.deleted', jsonb_build_object('kind', 'recording', 'id', session_id),
                                   jsonb_build_object('bytes', bytes, 'digest', encode(digest, 'hex'))) as seq
                 from (select * from deleted order by tenant_id, session_id) d
           )
           select count(*) as "count!" from audited where seq > 0"#,
        DELETE_MAX,
        server_actor()
    );
    Ok(deleted.fetch_one(connection).await?)
}

fn number(seq: u32) -> i32 {
    i32::try_from(seq).unwrap_or(i32::MAX)
}

fn server_actor() -> Value {
    Actor::Server { name: "recorder".to_owned() }.to_json()
}
