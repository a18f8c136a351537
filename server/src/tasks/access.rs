//! Tells of what ends by itself: requests that nobody has answered in time, and grants whose time is up. Nothing waits for it: both
//! are over by the database's clock, whether somebody was told or not.

use std::time::Duration;

use cloudlink_proto::ids::TenantId;
use serde_json::json;
use sqlx::PgConnection;
use tokio::time::{MissedTickBehavior, interval};

use crate::bus::Hint;
use crate::lifecycle::Shutdown;
use crate::link::{Links, Shared};
use crate::model::audit::{Actor, Subject};
use crate::model::notice::Event;
use crate::store::access_request::access_request_tell_expired_in_txn;
use crate::store::audit::audit_append;
use crate::store::grant::grant_tell_ended_in_txn;
use crate::store::notice::notice_emit;
use crate::store::{StoreError, Visibility};

const EVERY: Duration = Duration::from_secs(1);
/// Ends that are told of in one round. What is left waits for the next one.
const ENDS_MAX: usize = 200;
/// For the metrics of failed tasks.
const NAME: &str = "access";

/// Until the soft stop.
pub(super) async fn run(links: Links, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.soft.cancelled() => return,
            _ = tick.tick() => {}
        }
        if let Err(error) = tell(&shared).await {
            shared.metrics.task_failures.with_label_values(&[NAME]).inc();
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot tell which requests and grants have ended"
            );
        }
    }
}

/// Each end in a transaction of its own: the audit logs of several tenants are never waited for at once.
async fn tell(shared: &Shared) -> Result<(), StoreError> {
    for _ in 0..ENDS_MAX {
        let told = async {
            let mut transaction = shared.store.begin(Visibility::All).await?;
            let told = tell_one_in_txn(&mut transaction, &shared.node).await?;
            shared.store.commit(transaction).await?;
            Ok(told)
        };
        match shared.store.within(told).await? {
            Some(true) => shared.bus.send(Hint::NoticesDue),
            Some(false) => {}
            None => break,
        }
    }
    Ok(())
}

/// Whether there is anybody outside to be told, or `None` when nothing has ended.
pub(crate) async fn tell_one_in_txn(transaction: &mut PgConnection, node: &str) -> Result<Option<bool>, StoreError> {
    if let Some(request) = access_request_tell_expired_in_txn(transaction).await? {
        let tenant = TenantId::from_uuid(request.tenant_id);
        let is_told = notice_emit(transaction, tenant, Event::AccessRequestExpired, json!(request)).await?;
        let (actor, subject) = (Actor::Server { name: node.to_owned() }, Subject::new("access_request", request.id));
        let details = json!({"requested_by": request.requested_by, "reason": request.reason});
        audit_append(transaction, tenant, &actor, "access_request.expired", subject, details).await?;
        return Ok(Some(is_told));
    }
    let Some(grant) = grant_tell_ended_in_txn(transaction).await? else { return Ok(None) };
    let tenant = TenantId::from_uuid(grant.tenant_id);
    Ok(Some(notice_emit(transaction, tenant, Event::GrantEnded, json!(grant)).await?))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use super::*;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn each_end_is_told_once(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let body = json!({"device_ids": [scene.device.to_string()], "scopes": ["device:reboot"], "reason": "r",
                          "access_seconds": 600, "answer_within_seconds": 60});
        for _ in 0..3 {
            scene
                .post("/access-requests")
                .by(&scene.operator)
                .json(body.clone())
                .send()
                .await
                .expect(StatusCode::CREATED);
        }
        let revoked = scene.grant(json!({})).await;
        scene.post(&format!("/grants/{revoked}/revoke")).by(&scene.customer).send().await.expect(StatusCode::OK);
        let ended = scene.grant(json!({})).await;
        scene.grant(json!({})).await;
        // One request was withdrawn, two are over; one grant is over.
        let past =
            "update access_requests set created_at = now() - interval '2 hours', answer_by = now() - interval '1 hour'
                     where tenant_id = $1";
        let withdrawn: uuid::Uuid =
            sqlx::query_scalar("select id from access_requests limit 1").fetch_one(&scene.root).await.unwrap();
        let path = format!("/access-requests/{withdrawn}/withdraw");
        scene.post(&path).by(&scene.operator).send().await.expect(StatusCode::OK);
        sqlx::query("alter table access_requests disable trigger user").execute(&scene.root).await.unwrap();
        scene.sql(past, scene.tenant.as_uuid()).await;
        sqlx::query("alter table access_requests enable trigger user").execute(&scene.root).await.unwrap();
        scene
            .sql(
                "update grants set starts_at = now() - interval '2 hours', ends_at = now() - interval '1 hour' where id = $1",
                ended.as_uuid(),
            )
            .await;

        let mut told = 0;
        loop {
            let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
            if tell_one_in_txn(&mut transaction, "node-1").await.unwrap().is_none() {
                break;
            }
            told += 1;
            scene.store.commit(transaction).await.unwrap();
        }
        assert_eq!(told, 3);
        let audited = scene.audited(scene.tenant).await;
        assert_eq!(audited.iter().filter(|action| *action == "access_request.expired").count(), 2);
    }
}
