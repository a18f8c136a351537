//! `PATCH /groups/{id}`: another name or selector, of the version that was read. What was made of the group before stays as it is.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::GroupId;
use serde::Deserialize;
use serde_json::json;

use super::create::{RouteError, check_group_name};
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::{IfMatch, Tag};
use crate::http::problem::{Kind, Problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::http::selector::WrittenSelector;
use crate::model::audit::Subject;
use crate::model::group::Group;
use crate::store::audit::audit_append;
use crate::store::group::{group_lock, group_update_in_txn};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct GroupUpdate {
    /// 1 to 63 characters, unique among one's own.
    name: Option<String>,
    /// Which devices are in it from now on. Grants, policies and groups that were made of it before stay as they are. Never empty.
    selector: Option<WrittenSelector>,
}

/// Rename a group, or let it mean something else
#[utoipa::path(patch, path = "/groups/{id}", operation_id = "group_update", tag = "groups",
    params(("id" = uuid::Uuid, Path), ("If-Match" = String, Header)), request_body = GroupUpdate,
    responses((status = 200, body = Group, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.group.update", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
    if_match: IfMatch,
    Json(request): Json<GroupUpdate>,
) -> Result<impl IntoResponse, RouteError> {
    if request.name.is_none() && request.selector.is_none() {
        return Err(Problem::unprocessable("Give `name`, `selector` or both.").into());
    }
    request.name.as_deref().map_or(Ok(()), check_group_name)?;
    let (owner, id) = (caller.tenant(), GroupId::from_uuid(id));
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let before = group_lock(&mut transaction, owner, id).await?.ok_or_else(Problem::not_found)?;
    if before.deleted_at.is_some() {
        return Err(Problem::new(Kind::Conflict, "The group is deleted.").into());
    }
    if_match.check(&Tag::of_version(before.version))?;
    let selector = match &request.selector {
        Some(written) => Some(written.resolve(&mut transaction, owner).await?),
        None => None,
    };
    let group = group_update_in_txn(&mut transaction, id, request.name.as_deref(), selector.as_ref()).await;
    let group = group.map_err(RouteError::written)?;
    let told = |group: &Group| json!({"name": group.name, "selector": group.selector});
    let (subject, details) = (Subject::new("group", group.id), json!({"before": told(&before), "after": told(&group)}));
    audit_append(&mut transaction, caller.chain(), &caller.actor(), "group.updated", subject, details).await?;
    context.store.commit(transaction).await?;
    Ok((Tag::of_version(group.version).header(), Json(group)))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::{Answer, Scene};

    async fn update(scene: &Scene, path: &str, if_match: &str, body: Value) -> Answer {
        scene.patch(path).by(&scene.customer).header("if-match", if_match).json(body).send().await
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_was_made_of_a_group_stays_as_it_was(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let create = scene.post("/groups").by(&scene.customer).json(json!({"name": "g", "selector": "site=south"}));
        let group = create.send().await.expect(StatusCode::CREATED);
        let path = format!("/groups/{}", group["id"].as_str().unwrap());
        let grant = scene.grant(json!({"device_ids": null, "selector": "@g,!retired"})).await;
        let policy = scene.access_policy(json!({"selector": "@g"})).await;
        let answer = update(&scene, &path, "\"1\"", json!({"name": "all", "selector": "site"})).await;
        let updated = answer.expect(StatusCode::OK);
        assert_eq!((&updated["name"], &updated["selector"]), (&json!("all"), &json!("site")));
        assert_eq!(answer.header("etag"), "\"2\"");
        update(&scene, &path, "\"1\"", json!({"name": "g"})).await.expect_problem(Kind::VersionMismatch);
        for body in [json!({}), json!({"name": ""}), json!({"selector": ""}), json!({"selector": "@g"})] {
            update(&scene, &path, "*", body).await.expect_problem(Kind::Unprocessable);
        }
        for (path, selector) in
            [(format!("/grants/{grant}"), "!retired,site=south"), (format!("/access-policies/{policy}"), "site=south")]
        {
            let shown = scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
            assert_eq!(shown["selector_text"], selector, "{path}");
        }
        // The device has a site, and is in the group now. The grant is for those of then.
        scene.link(scene.device).await;
        let body = json!({"kind": "device.reboot", "reason": "r"});
        let command = scene.post(&format!("/devices/{}/commands", scene.device)).by(&scene.operator).json(body);
        command.send().await.expect_problem(Kind::GrantRequired);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_is_deleted_is_no_group_and_its_name_is_free(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let create = || scene.post("/groups").by(&scene.customer).json(json!({"name": "g", "selector": "site"})).send();
        let group = create().await.expect(StatusCode::CREATED);
        let path = format!("/groups/{}", group["id"].as_str().unwrap());
        let delete = |somebody| scene.post(&format!("{path}/delete")).by(somebody).send();
        for stranger in [&scene.other_customer, &scene.operator] {
            delete(stranger).await.expect_problem(Kind::NotFound);
        }
        let deleted = delete(&scene.customer).await.expect(StatusCode::OK);
        assert!(deleted["deleted_at"].is_string());
        assert_eq!(delete(&scene.customer).await.expect(StatusCode::OK), deleted);
        update(&scene, &path, "*", json!({"name": "x"})).await.expect_problem(Kind::Conflict);
        assert_eq!(scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK), deleted);
        let list = scene.get("/groups").by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!(list["items"], json!([]));
        scene.get("/devices?selector=@g").by(&scene.customer).send().await.expect_problem(Kind::BadRequest);
        create().await.expect(StatusCode::CREATED);
        assert_eq!(scene.audited(scene.tenant).await, ["group.created", "group.deleted", "group.created"]);
    }
}
