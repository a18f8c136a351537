//! What people outside are told: the outbox. `tasks::notice` empties it.

use std::collections::HashMap;
use std::time::Duration;

use cloudlink_proto::ids::{NoticeId, PersonId, TenantId, WebhookId};
use serde_json::json;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use super::audit::audit_append;
use super::webhook::webhook_disable_in_txn;
use crate::model::audit::{Actor, PLATFORM, Subject};
use crate::model::notice::Event;
use crate::model::webhook::{TRIAL, Webhook};

/// How many due rows are looked at to choose from: what waits for one receiver must not hide what waits for another.
const LOOK_AT_MAX: i64 = 1000;

/// Tells every webhook that wants it, and everybody who gets mail of it, in the transaction of what happened. `data` is what it is
/// about, as the API shows it: an access request, a grant, a session. Says whether there is anybody to be told: if so, send
/// [`crate::bus::Hint::NoticesDue`] after the commit.
pub async fn notice_emit(
    connection: &mut PgConnection,
    tenant: TenantId,
    event: Event,
    data: serde_json::Value,
) -> Result<bool, StoreError> {
    let audience = event.audience(&data);
    let emitted = sqlx::query_scalar!(
        r#"select notice_emit($1, $2, $3, $4, $5) as "emitted!""#,
        tenant.as_uuid(),
        event.name(),
        data,
        audience.is_tenant,
        &audience.people
    )
    .fetch_one(connection)
    .await?;
    Ok(emitted > 0)
}

/// Something to be sent now, by whoever got it here, and by nobody else for a while.
#[derive(Clone, Debug)]
pub struct DueNotice {
    pub id: NoticeId,
    /// None: a trial of the vendor's own webhook.
    pub tenant: Option<TenantId>,
    pub event: String,
    pub body: serde_json::Value,
    pub created_at: OffsetDateTime,
    /// This one included.
    pub attempts: i32,
    /// Nothing has been delivered to that webhook lately.
    pub is_failing: bool,
    pub receiver: Receiver,
}

/// To whom something is sent.
#[derive(Clone, Debug)]
pub enum Receiver {
    Webhook {
        id: WebhookId,
        url: String,
        secret_sealed: Vec<u8>,
        /// Which signs as well.
        previous_sealed: Option<Vec<u8>>,
    },
    Person {
        id: PersonId,
        name: String,
        /// None: it was taken away meanwhile.
        email: Option<String>,
        active: bool,
    },
}

/// What is waited for together: one webhook, or with the nil UUID the mail server.
pub type Lane = Uuid;

/// The mail server.
pub const MAIL: Lane = Uuid::nil();

impl DueNotice {
    #[must_use]
    pub fn lane(&self) -> Lane {
        match &self.receiver {
            Receiver::Webhook { id, .. } => id.as_uuid(),
            Receiver::Person { .. } => MAIL,
        }
    }

    #[must_use]
    pub fn webhook(&self) -> Option<WebhookId> {
        match &self.receiver {
            Receiver::Webhook { id, .. } => Some(*id),
            Receiver::Person { .. } => None,
        }
    }
}

/// How much may be under way at once.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub total: i64,
    /// To one webhook, or to the mail server.
    pub per_lane: i64,
    /// Whether webhooks that fail may have any of it. Each of them has one place.
    pub has_failing: bool,
}

/// Takes what is due and has room, for as long as the lease. What is being sent already is counted by lane in `flying`.
pub async fn notice_claim(
    connection: &mut PgConnection,
    room: Room,
    flying: &HashMap<Lane, i64>,
    has_mail: bool,
    lease: Duration,
) -> Result<Vec<DueNotice>, StoreError> {
    let (lanes, counts): (Vec<Uuid>, Vec<i64>) = flying.iter().map(|(lane, count)| (*lane, *count)).unzip();
    let rows = sqlx::query!(
        r#"with waiting as (
               select n.id, n.next_at, coalesce(n.webhook_id, $9) as lane,
                      case when w.failing_since is null then $1::bigint else 1 end - coalesce(f.count, 0) as room
                 from notices n
                 left join webhooks w on w.id = n.webhook_id
                 left join unnest($2::uuid[], $3::bigint[]) as f (lane, count) on f.lane = coalesce(n.webhook_id, $9)
                where n.delivered_at is null and n.failed_at is null and n.next_at <= clock_timestamp()
                  and (n.leased_until is null or n.leased_until <= clock_timestamp())
                  and w.disabled_at is null and (w.failing_since is null or $4) and (n.webhook_id is not null or $5)
                  and coalesce(f.count, 0) < case when w.failing_since is null then $1 else 1 end
                order by n.next_at limit $6
           ), placed as (
               select id, next_at, room, row_number() over (partition by lane order by next_at, id) as place from waiting
           ), chosen as (
               select n.id from notices n
                where n.id in (select id from placed where place <= room order by next_at limit $7)
                  and n.delivered_at is null and n.failed_at is null
                  and (n.leased_until is null or n.leased_until <= clock_timestamp())
                  for update skip locked
           ), claimed as (
               update notices n set attempts = n.attempts + 1, leased_until = clock_timestamp() + make_interval(secs => $8)
                 from chosen where n.id = chosen.id
               returning n.id, n.tenant_id, n.event, n.body, n.created_at, n.attempts, n.webhook_id, n.person_id
           )
           select c.id as "id!", c.tenant_id as "tenant_id?", c.event as "event!", c.body as "body!",
                  c.created_at as "created_at!", c.attempts as "attempts!",
                  w.failing_since is not null as "is_failing!", w.id as "webhook_id?", w.url as "url?", w.secret_sealed as "secret_sealed?",
                  case when w.previous_until > clock_timestamp() then w.previous_sealed end as "previous_sealed?",
                  p.id as "person_id?", p.name as "name?", p.email as "email?", p.active as "active?"
             from claimed c left join webhooks w on w.id = c.webhook_id left join people p on p.id = c.person_id"#,
        room.per_lane,
        &lanes,
        &counts,
        room.has_failing,
        has_mail,
        LOOK_AT_MAX,
        room.total,
        lease.as_secs_f64(),
        MAIL
    )
    .fetch_all(connection)
    .await?;
    let unreadable = StoreError::Inconsistent { table: "notices", column: "webhook_id" };
    let mut due = Vec::with_capacity(rows.len());
    for row in rows {
        let receiver = match (row.webhook_id, row.person_id) {
            (Some(id), _) => row.url.zip(row.secret_sealed).map(|(url, secret_sealed)| Receiver::Webhook {
                id: WebhookId::from_uuid(id),
                url,
                secret_sealed,
                previous_sealed: row.previous_sealed,
            }),
            (None, Some(id)) => row.name.zip(row.active).map(|(name, active)| Receiver::Person {
                id: PersonId::from_uuid(id),
                name,
                email: row.email,
                active,
            }),
            (None, None) => None,
        };
        let Some(receiver) = receiver else { return Err(unreadable) };
        due.push(DueNotice {
            id: NoticeId::from_uuid(row.id),
            tenant: row.tenant_id.map(TenantId::from_uuid),
            event: row.event,
            body: row.body,
            created_at: row.created_at,
            attempts: row.attempts,
            is_failing: row.is_failing,
            receiver,
        });
    }
    Ok(due)
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settling {
    Delivered,
    /// To be tried again after so long, unless it is too old by then.
    Again(Duration),
    /// No further attempt could come to anything else.
    Never,
}

/// What has become of something to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    Delivered,
    Waiting,
    GivenUp,
    /// Somebody else has tried it meanwhile, or it was called off.
    Elsewhere,
}

/// Writes what an attempt came to. What waits for a webhook that works again is due at once.
pub async fn notice_settle_in_txn(
    connection: &mut PgConnection,
    notice: &DueNotice,
    settling: Settling,
    result: &str,
    give_up: Duration,
) -> Result<Settled, StoreError> {
    let webhook = notice.webhook().map(WebhookId::as_uuid);
    // First of all, as whoever disables it does.
    sqlx::query!("select id from webhooks where id = $1 for no key update", webhook)
        .fetch_all(&mut *connection)
        .await?;
    let again = match settling {
        Settling::Delivered => return settle_delivered(connection, notice, webhook, result).await,
        Settling::Again(delay) => Some(delay.as_secs_f64()),
        Settling::Never => None,
    };
    let is_over = sqlx::query_scalar!(
        r#"update notices
              set leased_until = null, last_result = $3,
                  next_at = least(clock_timestamp() + make_interval(secs => coalesce($4::double precision, 0)),
                                  created_at + make_interval(secs => $5)),
                  failed_at = case when $4::double precision is null or event = $6
                                     or created_at + make_interval(secs => $5) <= clock_timestamp()
                                   then clock_timestamp() end
            where id = $1 and attempts = $2 and delivered_at is null and failed_at is null
           returning failed_at is not null as "is_over!""#,
        notice.id.as_uuid(),
        notice.attempts,
        result,
        again,
        give_up.as_secs_f64(),
        TRIAL
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(is_over) = is_over else { return Ok(Settled::Elsewhere) };
    if notice.event != TRIAL {
        sqlx::query!(
            "update webhooks set failing_since = clock_timestamp() where id = $1 and failing_since is null",
            webhook
        )
        .execute(connection)
        .await?;
    }
    Ok(if is_over { Settled::GivenUp } else { Settled::Waiting })
}

async fn settle_delivered(
    connection: &mut PgConnection,
    notice: &DueNotice,
    webhook: Option<Uuid>,
    result: &str,
) -> Result<Settled, StoreError> {
    let delivered = sqlx::query!(
        "update notices set delivered_at = clock_timestamp(), leased_until = null, last_result = $3
          where id = $1 and attempts = $2 and delivered_at is null and failed_at is null",
        notice.id.as_uuid(),
        notice.attempts,
        result
    )
    .execute(&mut *connection)
    .await?;
    let works_again =
        sqlx::query!("update webhooks set failing_since = null where id = $1 and failing_since is not null", webhook)
            .execute(&mut *connection)
            .await?;
    if works_again.rows_affected() > 0 {
        sqlx::query!(
            "update notices set next_at = clock_timestamp()
              where id in (select id from notices
                            where webhook_id = $1 and delivered_at is null and failed_at is null
                              and leased_until is null and next_at > clock_timestamp()
                              for update skip locked)",
            webhook
        )
        .execute(connection)
        .await?;
    }
    Ok(if delivered.rows_affected() > 0 { Settled::Delivered } else { Settled::Elsewhere })
}

/// Disables a webhook to which nothing was delivered for so long, and tells its owner. Says whether it was so.
pub async fn webhook_give_up_in_txn(
    connection: &mut PgConnection,
    id: WebhookId,
    failing_for: Duration,
    reason: &str,
    server: &str,
) -> Result<Option<Webhook>, StoreError> {
    let owner = sqlx::query_scalar!(
        "select tenant_id from webhooks
          where id = $1 and disabled_at is null
            and (failing_since <= clock_timestamp() - make_interval(secs => $2) or $2 = 0)",
        id.as_uuid(),
        failing_for.as_secs_f64()
    );
    let Some(owner) = owner.fetch_optional(&mut *connection).await? else { return Ok(None) };
    let owner = owner.map(TenantId::from_uuid);
    let Some(webhook) = webhook_disable_in_txn(connection, owner, id).await? else { return Ok(None) };
    if let Some(tenant) = owner {
        notice_emit(connection, tenant, Event::WebhookDisabled, json!(webhook)).await?;
    }
    let (actor, subject) = (Actor::Server { name: server.to_owned() }, Subject::new("webhook", webhook.id));
    let chain = owner.unwrap_or(PLATFORM);
    audit_append(connection, chain, &actor, "webhook.disabled", subject, json!({"reason": reason})).await?;
    Ok(Some(webhook))
}

/// What ids that are in an event stand for, for people to read.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub tenant: Option<String>,
    pub by_id: HashMap<Uuid, String>,
}

/// The names of a tenant, of those of the ids that are its devices, and of those that are people.
pub async fn notice_names(connection: &mut PgConnection, tenant: TenantId, ids: &[Uuid]) -> Result<Names, StoreError> {
    let tenant_name = sqlx::query_scalar!("select name from tenants where id = $1", tenant.as_uuid());
    let tenant_name = tenant_name.fetch_optional(&mut *connection).await?;
    let rows = sqlx::query!(
        r#"select id as "id!", name as "name!" from devices where tenant_id = $1 and id = any ($2)
           union all
           select id, name from people where id = any ($2) and (tenant_id is null or tenant_id = $1)"#,
        tenant.as_uuid(),
        ids
    )
    .fetch_all(connection)
    .await?;
    Ok(Names { tenant: tenant_name, by_id: rows.into_iter().map(|row| (row.id, row.name)).collect() })
}

/// Where a person is mailed to. `None` when there is no such person.
pub async fn email_show(connection: &mut PgConnection, person: PersonId) -> Result<Option<Option<String>>, StoreError> {
    let email =
        sqlx::query_scalar!("select (person_private(p.id)).email from people p where p.id = $1", person.as_uuid());
    Ok(email.fetch_optional(connection).await?)
}

/// Says where a person is mailed to. Whose it may be follows from the transaction's visibility; says whether there is such a person.
pub async fn email_set(
    connection: &mut PgConnection,
    person: PersonId,
    email: Option<&str>,
) -> Result<bool, StoreError> {
    let set = sqlx::query_scalar!("select email_set($1, $2)", person.as_uuid(), email);
    Ok(set.fetch_one(connection).await?.unwrap_or(false))
}

/// Longer than anything can wait.
const WAITING_DAYS_MAX: i32 = 31;

/// Forgets what was sent or given up so many days ago; and what waits for so long that nobody can be there who sends it, as mail
/// where there is no mail server any more.
pub async fn notice_trim(connection: &mut PgConnection, keep_days: u32) -> Result<u64, StoreError> {
    let trimmed = sqlx::query!(
        "delete from notices
          where created_at < clock_timestamp() - make_interval(days => $1)
            and (delivered_at is not null or failed_at is not null
                 or created_at < clock_timestamp() - make_interval(days => $1 + $2))",
        i32::try_from(keep_days).unwrap_or(0),
        WAITING_DAYS_MAX
    );
    Ok(trimmed.execute(connection).await?.rows_affected())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    use uuid::Uuid;

    use super::*;
    use crate::http::testing::Scene;
    use crate::store::Visibility;

    /// A webhook of the tenant, or the vendor's.
    async fn webhook(scene: &Scene, tenant: Option<TenantId>, events: &[&str]) -> Uuid {
        let id = crate::model::new_id();
        sqlx::query(
            "insert into webhooks (id, tenant_id, url, events, secret_sealed, created_by)
             values ($1, $2, 'https://example.com/', $3, sha256(''), $4)",
        )
        .bind(id)
        .bind(tenant.map(TenantId::as_uuid))
        .bind(events)
        .bind(scene.admin.id.as_uuid())
        .execute(&scene.root)
        .await
        .unwrap();
        id
    }

    /// Who is told, webhooks and people, with what.
    async fn told(scene: &Scene) -> Vec<(Uuid, Value)> {
        let rows = sqlx::query_as("select coalesce(webhook_id, person_id), body from notices order by 1");
        rows.fetch_all(&scene.root).await.unwrap()
    }

    async fn mail_to_everybody(scene: &Scene) {
        let sql = "update people set email = name || '@example.com'";
        sqlx::query(sql).execute(&scene.root).await.unwrap();
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_grant_is_told_to_those_who_want_it_and_may_know(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database.options([("cloudlink.mail", "on")])).await;
        let own = webhook(&scene, Some(scene.tenant), &["grant.created", "grant.revoked"]).await;
        let vendor = webhook(&scene, None, &["grant.created"]).await;
        webhook(&scene, Some(scene.other_tenant), &["grant.created"]).await;
        let disabled = webhook(&scene, Some(scene.tenant), &["grant.created"]).await;
        scene.sql("update webhooks set disabled_at = now() where id = $1", disabled).await;
        mail_to_everybody(&scene).await;
        let mut hints = scene.bus.listen();

        let grant = scene.grant(json!({"operator_ids": [scene.operator.id.to_string()]})).await;
        let mut expected = [own, vendor, scene.customer.id.as_uuid(), scene.operator.id.as_uuid()];
        expected.sort_unstable();
        let rows = told(&scene).await;
        assert_eq!(rows.iter().map(|(receiver, _)| *receiver).collect::<Vec<_>>(), expected);
        for (_, body) in &rows {
            assert_eq!(
                (&body["type"], &body["tenant_id"]),
                (&json!("grant.created"), &json!(scene.tenant.to_string()))
            );
            assert_eq!(body["data"]["id"], json!(grant.to_string()));
        }
        assert_eq!(hints.hear().await, crate::bus::Heard::Hint(crate::bus::Hint::NoticesDue));

        scene.post(&format!("/grants/{grant}/revoke")).by(&scene.customer).send().await.expect(http::StatusCode::OK);
        assert_eq!(told(&scene).await.len(), 4 + 3, "the vendor's webhook does not ask for the end");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn without_a_mail_server_no_mail_is_written(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        mail_to_everybody(&scene).await;
        scene.grant(json!({})).await;
        assert_eq!(told(&scene).await, []);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_is_rolled_back_is_told_to_nobody(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        webhook(&scene, Some(scene.tenant), &["grant.created"]).await;
        let mut transaction = scene.store.begin(Visibility::Tenant(scene.tenant)).await.unwrap();
        assert!(notice_emit(&mut transaction, scene.tenant, Event::GrantCreated, json!({})).await.unwrap());
        drop(transaction);
        assert_eq!(told(&scene).await, []);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_tenant_tells_of_itself_only_and_sees_nothing_of_the_vendors(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database.options([("cloudlink.mail", "on")])).await;
        let own = webhook(&scene, Some(scene.tenant), &["grant.created"]).await;
        webhook(&scene, None, &["grant.created"]).await;
        mail_to_everybody(&scene).await;
        // Somebody of another tenant is on the list.
        let data = json!({"operator_ids": [scene.other_customer.id.to_string()]});
        let mut transaction = scene.store.begin(Visibility::Tenant(scene.tenant)).await.unwrap();
        notice_emit(&mut transaction, scene.tenant, Event::GrantCreated, data).await.unwrap();
        let seen: Vec<Uuid> = sqlx::query_scalar("select coalesce(webhook_id, person_id) from notices")
            .fetch_all(&mut *transaction)
            .await
            .unwrap();
        assert_eq!(seen.len(), 2);
        assert!(seen.contains(&own) && seen.contains(&scene.customer.id.as_uuid()));
        scene.store.commit(transaction).await.unwrap();
        assert!(!told(&scene).await.iter().any(|(receiver, _)| *receiver == scene.other_customer.id.as_uuid()));

        let mut transaction = scene.store.begin(Visibility::Tenant(scene.tenant)).await.unwrap();
        notice_emit(&mut transaction, scene.other_tenant, Event::GrantCreated, json!({})).await.unwrap_err();
    }

    const ROOM: Room = Room { total: 100, per_lane: 4, has_failing: true };
    const LEASE: Duration = Duration::from_secs(60);
    const DAY: Duration = Duration::from_secs(86_400);

    async fn emit(scene: &Scene, times: usize) {
        for _ in 0..times {
            let mut connection = scene.store.connection().await.unwrap();
            notice_emit(&mut connection, scene.tenant, Event::GrantCreated, json!({})).await.unwrap();
        }
    }

    async fn claim(scene: &Scene, room: Room, flying: &[(Lane, i64)]) -> Vec<DueNotice> {
        let flying = flying.iter().copied().collect();
        notice_claim(&mut scene.store.connection().await.unwrap(), room, &flying, true, LEASE).await.unwrap()
    }

    async fn settle(scene: &Scene, notice: &DueNotice, settling: Settling) -> Settled {
        let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
        let settled = notice_settle_in_txn(&mut transaction, notice, settling, "503", DAY).await.unwrap();
        scene.store.commit(transaction).await.unwrap();
        settled
    }

    fn of_lane(due: &[DueNotice], lane: Lane) -> usize {
        due.iter().filter(|notice| notice.lane() == lane).count()
    }

    async fn is_failing(scene: &Scene, webhook: Uuid) -> bool {
        let failing = sqlx::query_scalar("select failing_since is not null from webhooks where id = $1");
        failing.bind(webhook).fetch_one(&scene.root).await.unwrap()
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_one_node_has_taken_is_nobody_elses_until_its_lease_is_over(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        for _ in 0..5 {
            webhook(&scene, Some(scene.tenant), &["grant.created"]).await;
        }
        emit(&scene, 4).await;
        let room = Room { total: 10, ..ROOM };
        let (one, other) = tokio::join!(claim(&scene, room, &[]), claim(&scene, room, &[]));
        let rest = claim(&scene, ROOM, &[]).await;
        let mut ids: Vec<_> = [one, other, rest].concat().iter().map(|notice| notice.id).collect();
        assert_eq!(ids.len(), 20);
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 20, "nothing was taken twice");
        assert!(claim(&scene, ROOM, &[]).await.is_empty());
        sqlx::query("update notices set leased_until = now() - interval '1 second'")
            .execute(&scene.root)
            .await
            .unwrap();
        let again = claim(&scene, ROOM, &[]).await;
        assert_eq!((again.len(), again[0].attempts), (20, 2));
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn one_receiver_does_not_hold_up_another(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database.options([("cloudlink.mail", "on")])).await;
        mail_to_everybody(&scene).await;
        let slow = webhook(&scene, Some(scene.tenant), &["grant.created"]).await;
        emit(&scene, 10).await;
        let other = webhook(&scene, Some(scene.tenant), &["grant.created"]).await;
        emit(&scene, 1).await;
        let due = claim(&scene, ROOM, &[]).await;
        assert_eq!((of_lane(&due, slow), of_lane(&due, other), of_lane(&due, MAIL)), (4, 1, 4));
        assert!(claim(&scene, ROOM, &[(slow, 4), (other, 1), (MAIL, 4)]).await.is_empty());
        let due = claim(&scene, ROOM, &[(slow, 3), (MAIL, 4)]).await;
        assert_eq!((of_lane(&due, slow), due.len()), (1, 1));

        // One that fails has one place, or none.
        scene.sql("update webhooks set failing_since = now() where id = $1", slow).await;
        assert!(claim(&scene, Room { has_failing: false, ..ROOM }, &[(MAIL, 4)]).await.is_empty());
        let due = claim(&scene, ROOM, &[(MAIL, 4)]).await;
        assert_eq!((of_lane(&due, slow), due.len(), due[0].is_failing), (1, 1, true));
        assert!(claim(&scene, ROOM, &[(slow, 1), (MAIL, 4)]).await.is_empty());
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_waits_for_a_receiver_is_due_as_soon_as_it_works_again(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        let receiver = webhook(&scene, Some(scene.tenant), &["grant.created"]).await;
        emit(&scene, 2).await;
        let due = claim(&scene, ROOM, &[]).await;
        let later = Settling::Again(Duration::from_secs(3600));
        assert_eq!(settle(&scene, &due[0], later).await, Settled::Waiting);
        assert_eq!(settle(&scene, &due[0], Settling::Delivered).await, Settled::Delivered, "of the same attempt");
        assert_eq!(settle(&scene, &due[0], later).await, Settled::Elsewhere, "what is delivered stays so");
        assert!(!is_failing(&scene, receiver).await);

        assert_eq!(settle(&scene, &due[1], later).await, Settled::Waiting);
        assert!(is_failing(&scene, receiver).await);
        assert!(claim(&scene, ROOM, &[]).await.is_empty());
        emit(&scene, 1).await;
        let newest = claim(&scene, ROOM, &[]).await;
        assert_eq!(settle(&scene, &newest[0], Settling::Delivered).await, Settled::Delivered);
        assert!(!is_failing(&scene, receiver).await);
        let due = claim(&scene, ROOM, &[]).await;
        assert_eq!((due.len(), due[0].attempts), (1, 2));
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_is_too_old_is_given_up_and_a_webhook_that_fails_for_long_is_disabled(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database.options([("cloudlink.mail", "on")])).await;
        mail_to_everybody(&scene).await;
        let receiver = webhook(&scene, Some(scene.tenant), &["grant.ended"]).await;
        let end = async || {
            let mut connection = scene.store.connection().await.unwrap();
            notice_emit(&mut connection, scene.tenant, Event::GrantEnded, json!({})).await.unwrap();
        };
        end().await;
        let due = claim(&scene, ROOM, &[]).await;
        let (later, id) = (Settling::Again(Duration::from_secs(1)), WebhookId::from_uuid(receiver));
        let old = "update notices set created_at = now() - interval '25 hours' where webhook_id = $1";
        scene.sql(old, receiver).await;
        assert_eq!(settle(&scene, &due[0], later).await, Settled::GivenUp);
        let give_up = async |seconds| {
            let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
            let after = Duration::from_secs(seconds);
            let given_up = webhook_give_up_in_txn(&mut transaction, id, after, "reason", "node-1").await.unwrap();
            scene.store.commit(transaction).await.unwrap();
            given_up
        };
        assert!(give_up(3600).await.is_none(), "not for that long yet");
        end().await;
        scene.sql("update webhooks set failing_since = now() - interval '2 hours' where id = $1", receiver).await;
        assert!(give_up(3600).await.unwrap().disabled_at.is_some());
        assert!(give_up(3600).await.is_none(), "once");
        assert_eq!(scene.audited(scene.tenant).await, ["webhook.disabled"]);
        // Its owner is told, and nothing waits for it any more.
        let due = claim(&scene, ROOM, &[]).await;
        let mut told: Vec<_> = due.iter().map(|notice| notice.event.as_str()).collect();
        told.dedup();
        assert_eq!(told, ["webhook.disabled"]);
        assert_eq!(of_lane(&due, MAIL), 2, "the tenant, and who made it");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_trial_is_tried_once_and_says_nothing_of_its_receiver(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let receiver = webhook(&scene, None, &["grant.created"]).await;
        let mut connection = scene.store.connection().await.unwrap();
        let id = WebhookId::from_uuid(receiver);
        let shown = crate::store::webhook::webhook_show(&mut connection, None, id).await.unwrap().unwrap();
        let notice = NoticeId::from_uuid(crate::model::new_id());
        crate::store::webhook::webhook_try(&mut connection, &shown, notice).await.unwrap();
        let due = claim(&scene, ROOM, &[]).await;
        assert_eq!((due.len(), due[0].tenant), (1, None));
        assert_eq!(settle(&scene, &due[0], Settling::Again(Duration::from_secs(1))).await, Settled::GivenUp);
        assert!(!is_failing(&scene, receiver).await);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn only_what_is_over_is_forgotten(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        webhook(&scene, Some(scene.tenant), &["grant.created"]).await;
        emit(&scene, 3).await;
        let due = claim(&scene, ROOM, &[]).await;
        settle(&scene, &due[0], Settling::Delivered).await;
        settle(&scene, &due[1], Settling::Never).await;
        let mut connection = scene.store.connection().await.unwrap();
        assert_eq!(notice_trim(&mut connection, 30).await.unwrap(), 0);
        sqlx::query("update notices set created_at = now() - interval '31 days'").execute(&scene.root).await.unwrap();
        assert_eq!(notice_trim(&mut connection, 30).await.unwrap(), 2);
        assert_eq!(told(&scene).await.len(), 1);
        sqlx::query("update notices set created_at = now() - interval '62 days'").execute(&scene.root).await.unwrap();
        assert_eq!(notice_trim(&mut connection, 30).await.unwrap(), 1, "nobody can be there who sends it");
    }
}
