//! What people outside are told: the outbox. `tasks::notice` empties it.

use cloudlink_proto::ids::TenantId;
use sqlx::PgConnection;

use super::StoreError;
use crate::model::notice::Event;

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
}
