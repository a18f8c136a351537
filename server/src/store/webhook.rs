//! Webhooks. `owner` says whose: a tenant's, or with `None` the vendor's.

use std::time::Duration;

use cloudlink_proto::ids::{NoticeId, PersonId, TenantId, WebhookId};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::model::notice::Event;
use crate::model::webhook::{Delivery, DeliveryState, TRIAL, Webhook};

/// So that two that are made at once do not both fit. Any number that nothing else in this database locks.
const LOCK: i64 = 0x636c_7765_6268_6f6f;

struct Row {
    id: Uuid,
    tenant_id: Option<Uuid>,
    url: String,
    events: Vec<String>,
    created_by: Uuid,
    created_at: OffsetDateTime,
    disabled_at: Option<OffsetDateTime>,
    failing_since: Option<OffsetDateTime>,
    previous_until: Option<OffsetDateTime>,
}

impl From<Row> for Webhook {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            tenant_id: row.tenant_id,
            url: row.url,
            // Those that a newer version knows besides, while both run, are not shown.
            events: row.events.iter().filter_map(|name| Event::named(name)).collect(),
            created_by: row.created_by,
            created_at: row.created_at,
            disabled_at: row.disabled_at,
            failing_since: row.failing_since,
            previous_secret_until: row.previous_until,
        }
    }
}

/// A statement that yields webhooks: the head comes before the columns, the tail after them.
macro_rules! webhook_query {
    ($head:literal, $tail:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            $head
                + " id, tenant_id, url, events, created_by, created_at, disabled_at, failing_since,
                    case when previous_until > clock_timestamp() then previous_until end as previous_until "
                + $tail
            $(, $argument)*
        )
    };
}

/// A webhook to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewWebhook<'a> {
    pub id: WebhookId,
    pub owner: Option<TenantId>,
    pub url: &'a str,
    pub events: &'a [Event],
    pub secret_sealed: &'a [u8],
    pub created_by: PersonId,
}

/// How many the owner has that are not disabled. Nobody else makes one before the end of this transaction.
pub async fn webhook_count_in_txn(connection: &mut PgConnection, owner: Option<TenantId>) -> Result<i64, StoreError> {
    sqlx::query!("select pg_advisory_xact_lock($1)", LOCK).fetch_one(&mut *connection).await?;
    Ok(sqlx::query_scalar!(
        r#"select count(*) as "count!" from webhooks where tenant_id is not distinct from $1 and disabled_at is null"#,
        owner.map(TenantId::as_uuid)
    )
    .fetch_one(connection)
    .await?)
}

pub async fn webhook_create(connection: &mut PgConnection, webhook: NewWebhook<'_>) -> Result<Webhook, StoreError> {
    let events: Vec<String> = webhook.events.iter().map(|event| event.name().to_owned()).collect();
    let created = webhook_query!(
        "insert into webhooks (id, tenant_id, url, events, secret_sealed, created_by)
         values ($1, $2, $3, $4, $5, $6) returning",
        "",
        webhook.id.as_uuid(),
        webhook.owner.map(TenantId::as_uuid),
        webhook.url,
        &events,
        webhook.secret_sealed,
        webhook.created_by.as_uuid()
    );
    Ok(created.fetch_one(connection).await?.into())
}

/// Newest first, after the position given.
pub async fn webhook_list(
    connection: &mut PgConnection,
    owner: Option<TenantId>,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<Webhook>, StoreError> {
    let (after_time, after_id) = after.unzip();
    let webhooks = webhook_query!(
        "select",
        "from webhooks
          where tenant_id is not distinct from $1
            and ($2::timestamptz is null or (created_at, id) < ($2, $3::uuid))
          order by created_at desc, id desc limit $4",
        owner.map(TenantId::as_uuid),
        after_time,
        after_id,
        limit
    );
    Ok(webhooks.fetch_all(connection).await?.into_iter().map(Webhook::from).collect())
}

pub async fn webhook_show(
    connection: &mut PgConnection,
    owner: Option<TenantId>,
    id: WebhookId,
) -> Result<Option<Webhook>, StoreError> {
    let webhook = webhook_query!(
        "select",
        "from webhooks where id = $1 and tenant_id is not distinct from $2",
        id.as_uuid(),
        owner.map(TenantId::as_uuid)
    );
    Ok(webhook.fetch_optional(connection).await?.map(Webhook::from))
}

/// Sends nothing more to it, what waits included. `None` when it is disabled already, or not there.
pub async fn webhook_disable_in_txn(
    connection: &mut PgConnection,
    owner: Option<TenantId>,
    id: WebhookId,
) -> Result<Option<Webhook>, StoreError> {
    let disabled = webhook_query!(
        "update webhooks set disabled_at = clock_timestamp()
          where id = $1 and tenant_id is not distinct from $2 and disabled_at is null returning",
        "",
        id.as_uuid(),
        owner.map(TenantId::as_uuid)
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(disabled) = disabled else { return Ok(None) };
    sqlx::query!(
        "update notices set failed_at = clock_timestamp(), last_result = 'the webhook is disabled'
          where webhook_id = $1 and delivered_at is null and failed_at is null",
        id.as_uuid()
    )
    .execute(connection)
    .await?;
    Ok(Some(disabled.into()))
}

/// Another secret; the one before signs as well for so long. Says whether there was a webhook to do that with. Whose it may be
/// follows from the transaction's visibility.
pub async fn webhook_rotate(
    connection: &mut PgConnection,
    id: WebhookId,
    secret_sealed: &[u8],
    keep: Duration,
) -> Result<bool, StoreError> {
    let rotated = sqlx::query_scalar!(
        "select webhook_rotate($1, $2, make_interval(secs => $3))",
        id.as_uuid(),
        secret_sealed,
        keep.as_secs_f64()
    );
    Ok(rotated.fetch_one(connection).await?.unwrap_or(false))
}

struct DeliveryRow {
    id: Uuid,
    tenant_id: Option<Uuid>,
    event: String,
    created_at: OffsetDateTime,
    attempts: i32,
    next_at: OffsetDateTime,
    delivered_at: Option<OffsetDateTime>,
    failed_at: Option<OffsetDateTime>,
    last_result: Option<String>,
}

impl From<DeliveryRow> for Delivery {
    fn from(row: DeliveryRow) -> Self {
        let state = match (row.delivered_at, row.failed_at) {
            (Some(_), _) => DeliveryState::Delivered,
            (None, Some(_)) => DeliveryState::Failed,
            (None, None) => DeliveryState::Waiting,
        };
        Self {
            id: row.id,
            tenant_id: row.tenant_id,
            event: row.event,
            state,
            created_at: row.created_at,
            attempts: row.attempts,
            next_at: (state == DeliveryState::Waiting).then_some(row.next_at),
            delivered_at: row.delivered_at,
            failed_at: row.failed_at,
            last_result: row.last_result,
        }
    }
}

/// Sends a trial to the webhook.
pub async fn webhook_try(
    connection: &mut PgConnection,
    webhook: &Webhook,
    id: NoticeId,
) -> Result<Delivery, StoreError> {
    let row = sqlx::query_as!(
        DeliveryRow,
        "insert into notices (id, tenant_id, event, body, webhook_id)
         values ($1, $2, $3, jsonb_build_object(
                    'type', $3::text,
                    'timestamp', to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),
                    'tenant_id', $2::uuid, 'data', jsonb_build_object('webhook_id', $4::uuid)), $4)
         returning id, tenant_id, event, created_at, attempts, next_at, delivered_at, failed_at, last_result",
        id.as_uuid(),
        webhook.tenant_id,
        TRIAL,
        webhook.id
    )
    .fetch_one(connection)
    .await?;
    Ok(row.into())
}

/// What was and is to be delivered to the webhook, newest first, after the position given.
pub async fn delivery_list(
    connection: &mut PgConnection,
    webhook: WebhookId,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<Delivery>, StoreError> {
    let (after_time, after_id) = after.unzip();
    let rows = sqlx::query_as!(
        DeliveryRow,
        "select id, tenant_id, event, created_at, attempts, next_at, delivered_at, failed_at, last_result
           from notices
          where webhook_id = $1 and ($2::timestamptz is null or (created_at, id) < ($2, $3::uuid))
          order by created_at desc, id desc limit $4",
        webhook.as_uuid(),
        after_time,
        after_id,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(Delivery::from).collect())
}
