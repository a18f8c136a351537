//! `POST /access-policies/{id}/revoke`: nothing more is approved by it. Grants that it has made stay, unless it is asked that they end,
//! too. Revoking again changes nothing.

use axum::extract::State;
use cloudlink_proto::ids::AccessPolicyId;
use serde::Deserialize;
use serde_json::json;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, Query};
use crate::http::v1::grant::revoke::Revocation;
use crate::model::access_policy::AccessPolicy;
use crate::model::audit::Subject;
use crate::model::notice::Event;
use crate::store::access_policy::{access_policy_grants, access_policy_lock, access_policy_revoke_in_txn};
use crate::store::audit::audit_append;
use crate::store::notice::notice_emit;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccessPolicyRevoke {
    /// Also revoke the grants that were made under it, from now on. Left out: they stay.
    revoke_grants: Option<bool>,
}

/// Take a policy back
#[utoipa::path(post, path = "/access-policies/{id}/revoke", operation_id = "access_policy_revoke", tag = "access",
    params(("id" = uuid::Uuid, Path), AccessPolicyRevoke), responses((status = 200, body = AccessPolicy)))]
#[tracing::instrument(name = "http.access_policy.revoke", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    Query(query): Query<AccessPolicyRevoke>,
) -> Result<Json<AccessPolicy>, Problem> {
    let tenant = caller.tenant().ok_or_else(Problem::not_found)?;
    let id = AccessPolicyId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    // From here on, requests that it would approve wait, and find it revoked.
    let mut policy = access_policy_lock(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    let is_new = policy.revoked_at.is_none();
    if is_new {
        policy = access_policy_revoke_in_txn(&mut transaction, id, caller.person()).await?;
    }
    // Asked for later, too: the grants of a policy that was revoked before.
    let mut revocation = Revocation::default();
    if query.revoke_grants == Some(true) {
        for grant in access_policy_grants(&mut transaction, id).await? {
            revocation.lock_in_txn(&mut transaction, grant, caller.person()).await?;
        }
    }
    let mut is_told = false;
    if is_new {
        is_told = notice_emit(&mut transaction, tenant, Event::AccessPolicyRevoked, json!(policy)).await?;
        let (subject, details) = (Subject::new("access_policy", policy.id), json!({"name": policy.name}));
        audit_append(&mut transaction, tenant, &caller.actor(), "access_policy.revoked", subject, details).await?;
    }
    let revoked = revocation.finish_in_txn(&mut transaction, tenant, &caller.actor()).await?;
    context.store.commit(transaction).await?;
    context.tell_outside(is_told);
    revoked.tell(&context);
    Ok(Json(policy))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn its_grants_stay_unless_it_is_asked_that_they_end(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let id = scene.access_policy(json!({})).await;
        let mut grants = Vec::new();
        for _ in 0..2 {
            let request = scene.access_request(json!({"scopes": ["device:reboot"], "access_seconds": 600})).await;
            let request = scene
                .get(&format!("/access-requests/{request}"))
                .by(&scene.operator)
                .send()
                .await
                .expect(StatusCode::OK);
            grants.push(request["grant_id"].as_str().unwrap().to_owned());
        }
        let other = scene.grant(json!({})).await.to_string();
        let command = scene.command(json!({"grant_id": grants[1]})).await;
        let state = async |grant: &str| {
            let grant = scene.get(&format!("/grants/{grant}")).by(&scene.customer).send().await.expect(StatusCode::OK);
            grant["state"].as_str().unwrap().to_owned()
        };
        let revoke =
            |somebody, query: &str| scene.post(&format!("/access-policies/{id}/revoke{query}")).by(somebody).send();
        revoke(&scene.other_customer, "").await.expect_problem(Kind::NotFound);
        let revoked = revoke(&scene.customer, "").await.expect(StatusCode::OK);
        assert_eq!(
            (&revoked["state"], &revoked["revoked_by"]),
            (&json!("revoked"), &json!(scene.customer.id.to_string()))
        );
        assert_eq!((state(&grants[0]).await, state(&grants[1]).await), ("in_force".to_owned(), "in_force".to_owned()));
        let request = scene.access_request(json!({"scopes": ["device:reboot"], "access_seconds": 600})).await;
        let request =
            scene.get(&format!("/access-requests/{request}")).by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!(request["state"], "open", "it allows nothing any more");

        assert_eq!(revoke(&scene.customer, "?revoke_grants=true").await.expect(StatusCode::OK), revoked);
        assert_eq!((state(&grants[0]).await, state(&grants[1]).await), ("revoked".to_owned(), "revoked".to_owned()));
        assert_eq!(state(&other).await, "in_force");
        let command =
            scene.get(&format!("/commands/{command}")).by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!((&command["state"], &command["code"]), (&json!("cancelled"), &json!("grant_revoked")));
        let audited = scene.audited(scene.tenant).await;
        let count = |action: &str| audited.iter().filter(|audited| *audited == action).count();
        assert_eq!((count("access_policy.revoked"), count("grant.revoked"), count("command.finished")), (1, 2, 1));
    }
}
