//! `POST /grants/{id}/revoke`: closed from now on. Queued commands under it are cancelled and ports
//! that were opened are closed in the same transaction, and devices that were sent a command are told not to begin it. Revoking again changes nothing.

use std::time::Duration;

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::{DeviceId, GrantId, PersonId, TenantId};
use serde_json::json;
use sqlx::PgConnection;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::Tag;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::audit::{Actor, Subject};
use crate::model::grant::Grant;
use crate::model::notice::Event;
use crate::model::opening::EndReason;
use crate::model::support_session::EndReason as SessionEndReason;
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::command::{CalledBack, Cancellation, OpenCommands, command_cancel_in_txn, command_lock_in_txn};
use crate::store::grant::{grant_lock, grant_revoke_in_txn};
use crate::store::notice::notice_emit;
use crate::store::opening::{Closing, LiveOpenings, opening_end_in_txn, opening_lock_in_txn};
use crate::store::support_session::{
    Closing as SessionClosing, EndedSession, LiveSessions, support_session_end_in_txn, support_session_lock_in_txn,
    support_session_tell_in_txn,
};

/// Close what was granted, now
#[utoipa::path(post, path = "/grants/{id}/revoke", operation_id = "grant_revoke", tag = "grants",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Grant, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.grant.revoke", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<impl IntoResponse, Problem> {
    let tenant = caller.tenant().ok_or_else(Problem::not_found)?;
    let id = GrantId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let mut revocation = Revocation::default();
    let grant = revocation.lock_in_txn(&mut transaction, id, caller.person()).await?.ok_or_else(Problem::not_found)?;
    let revoked = revocation.finish_in_txn(&mut transaction, tenant, &caller.actor()).await?;
    context.store.commit(transaction).await?;
    revoked.tell(&context);
    Ok((Tag::of_version(grant.version).header(), Json(grant)))
}

/// Grants that are being revoked, in two steps: everything is locked before anything is written to the audit log.
#[derive(Debug, Default)]
pub(in crate::http::v1) struct Revocation {
    grants: Vec<Revoking>,
}

#[derive(Debug)]
struct Revoking {
    grant: Grant,
    commands: OpenCommands,
    openings: LiveOpenings,
    sessions: LiveSessions,
}

impl Revocation {
    /// The grant as it is then, or `None` if there is none. One that was revoked before stays as it is.
    pub(in crate::http::v1) async fn lock_in_txn(
        &mut self,
        transaction: &mut PgConnection,
        id: GrantId,
        by: PersonId,
    ) -> Result<Option<Grant>, StoreError> {
        // From here on, commands, openings and sessions under the grant wait, and find it revoked.
        let Some(grant) = grant_lock(transaction, id).await? else { return Ok(None) };
        if grant.revoked_at.is_some() {
            return Ok(Some(grant));
        }
        let grant = grant_revoke_in_txn(transaction, id, by).await?;
        let commands = command_lock_in_txn(transaction, Cancellation::UnderGrant(id)).await?;
        let openings = opening_lock_in_txn(transaction, Closing::UnderGrant(id)).await?;
        let sessions = support_session_lock_in_txn(transaction, SessionClosing::UnderGrant(id)).await?;
        self.grants.push(Revoking { grant: grant.clone(), commands, openings, sessions });
        Ok(Some(grant))
    }

    pub(in crate::http::v1) async fn finish_in_txn(
        self,
        transaction: &mut PgConnection,
        tenant: TenantId,
        actor: &Actor,
    ) -> Result<Revoked, StoreError> {
        let mut revoked = Revoked::default();
        for Revoking { grant, .. } in &self.grants {
            revoked.is_told |= notice_emit(transaction, tenant, Event::GrantRevoked, json!(grant)).await?;
        }
        for Revoking { grant, commands, openings, sessions } in &self.grants {
            let subject = Subject::new("grant", grant.id);
            let details = json!({"reason": grant.reason});
            audit_append(transaction, tenant, actor, "grant.revoked", subject, details).await?;
            let (code, message) = ("grant_revoked", "the grant was revoked");
            let called_back = command_cancel_in_txn(transaction, commands, actor.to_json(), code, message).await?;
            let ended = opening_end_in_txn(transaction, openings, actor.to_json(), EndReason::GrantRevoked).await?;
            let reason = SessionEndReason::GrantRevoked;
            let sessions =
                support_session_end_in_txn(transaction, sessions, actor.to_json(), reason, Duration::ZERO).await?;
            revoked.is_told |= support_session_tell_in_txn(transaction, &sessions).await?;
            revoked.sessions.extend(sessions);
            revoked.called_back.extend(called_back);
            revoked.ended.extend(ended);
        }
        Ok(revoked)
    }
}

/// What is to be told of once the revocation is committed.
#[derive(Debug, Default)]
pub(in crate::http::v1) struct Revoked {
    is_told: bool,
    called_back: Vec<CalledBack>,
    ended: Vec<DeviceId>,
    sessions: Vec<EndedSession>,
}

impl Revoked {
    pub(in crate::http::v1) fn tell(&self, context: &Context) {
        context.tell_outside(self.is_told);
        context.tell_sessions_ended(&self.sessions);
        context.tell_ended(&self.ended);
        context.tell_called_back(&self.called_back);
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    use uuid::Uuid;

    use crate::bus::{Heard, Hint};
    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn cancels_what_is_queued_and_calls_back_what_was_sent(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let grant = scene.grant(json!({})).await;
        let (queued, sent, running) =
            (scene.command(json!({})).await, scene.command(json!({})).await, scene.command(json!({})).await);
        scene.sql("update commands set state = 'sent', sent_at = now() where id = $1", sent).await;
        scene.sql("update commands set state = 'running', sent_at = now() where id = $1", running).await;
        let mut hints = scene.bus.listen();

        let path = format!("/grants/{grant}/revoke");
        let revoked = scene.post(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!((&revoked["state"], &revoked["version"]), (&json!("revoked"), &json!(2)));

        let show = async |id: Uuid| {
            scene.get(&format!("/commands/{id}")).by(&scene.operator).send().await.expect(StatusCode::OK)
        };
        let command = show(queued).await;
        assert_eq!((&command["state"], &command["code"]), (&json!("cancelled"), &json!("grant_revoked")));
        assert!(command["finished_at"].is_string());
        let command = show(sent).await;
        assert_eq!(command["state"], "sent");
        assert!(command["cancel_requested_at"].is_string());
        assert!(show(running).await["cancel_requested_at"].is_null(), "what has begun goes on");
        let heard = [hints.hear().await, hints.hear().await];
        assert!(heard.contains(&Heard::Hint(Hint::CommandChanged(queued.to_string().parse().unwrap()))));
        assert!(heard.contains(&Heard::Hint(Hint::CommandsDue(scene.device))));
        let audited = scene.audited(scene.tenant).await;
        assert_eq!(audited[4..], ["grant.revoked", "command.finished", "command.cancel_requested"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn revoking_again_changes_nothing(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let grant = scene.grant(json!({})).await;
        let path = format!("/grants/{grant}/revoke");
        let first = scene.post(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        let second = scene.post(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!(first, second);
        assert_eq!(scene.audited(scene.tenant).await, ["grant.created", "grant.revoked"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn the_next_command_is_refused(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.link(scene.device).await;
        let grant = scene.grant(json!({})).await;
        scene.command(json!({})).await;
        scene.post(&format!("/grants/{grant}/revoke")).by(&scene.customer).send().await.expect(StatusCode::OK);
        let body = json!({"kind": "device.reboot", "reason": "once more"});
        let path = format!("/devices/{}/commands", scene.device);
        let refused = scene.post(&path).by(&scene.operator).json(body).send().await;
        assert_eq!(refused.expect_problem(Kind::GrantRequired)["reason"], "revoked");
    }
}
