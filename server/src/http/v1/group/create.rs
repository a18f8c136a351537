//! `POST /groups`: gives a selector a name.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::GroupId;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::Tag;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Json, NoQuery};
use crate::http::selector::WrittenSelector;
use crate::model::audit::Subject;
use crate::model::device::{LABEL_CHARS_MAX, Labels};
use crate::model::group::{GROUPS_MAX, Group};
use crate::model::new_id;
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::group::{NAME_TAKEN, NewGroup, group_create};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct GroupCreate {
    /// 1 to 63 characters, unique among one's own.
    name: String,
    /// Which devices are in it. Groups in it are taken for what they mean now. Never empty.
    selector: WrittenSelector,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("the name is taken")]
    NameTaken,
    #[error("too many groups")]
    TooMany,
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::NameTaken => Self::new(Kind::Conflict, "You have another group of this name."),
            RouteError::TooMany => Self::new(
                Kind::Conflict,
                format!("There are {GROUPS_MAX} groups already. Delete one that is not needed."),
            ),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

impl RouteError {
    /// Of what could not be written.
    pub(super) fn written(error: StoreError) -> Self {
        if error.constraint() == Some(NAME_TAKEN) { Self::NameTaken } else { Self::Store(error) }
    }
}

pub(in crate::http::v1) fn check_group_name(name: &str) -> Result<(), Problem> {
    if Labels::is_text(name) && !name.trim().is_empty() {
        return Ok(());
    }
    let detail =
        format!("`name` must have 1 to {LABEL_CHARS_MAX} characters, not only blanks, and no control characters.");
    Err(Problem::unprocessable(detail))
}

/// Name a selector
///
/// A tenant's own, or the vendor's. `@NAME` in a selector means it from then on.
#[utoipa::path(post, path = "/groups", operation_id = "group_create", tag = "groups", request_body = GroupCreate,
    responses((status = 201, body = Group, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.group.create", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
    Json(request): Json<GroupCreate>,
) -> Result<impl IntoResponse, RouteError> {
    check_group_name(&request.name)?;
    let owner = caller.tenant();
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let selector = request.selector.resolve(&mut transaction, owner).await?;
    let new = NewGroup {
        id: GroupId::from_uuid(new_id()),
        owner,
        name: &request.name,
        selector: &selector,
        created_by: caller.person(),
    };
    let group = group_create(&mut transaction, new).await.map_err(RouteError::written)?.ok_or(RouteError::TooMany)?;
    let (subject, details) = (Subject::new("group", group.id), json!({"name": group.name, "selector": group.selector}));
    audit_append(&mut transaction, caller.chain(), &caller.actor(), "group.created", subject, details).await?;
    context.store.commit(transaction).await?;
    Ok((StatusCode::CREATED, Tag::of_version(group.version).header(), Json(group)))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::{Answer, Scene, Somebody};
    use crate::model::audit::PLATFORM;

    async fn create(scene: &Scene, somebody: &Somebody, name: &str, selector: Value) -> Answer {
        scene.post("/groups").by(somebody).json(json!({"name": name, "selector": selector})).send().await
    }

    async fn names(scene: &Scene, somebody: &Somebody, path: &str) -> Vec<Value> {
        let page = scene.get(path).by(somebody).send().await.expect(StatusCode::OK);
        page["items"].as_array().unwrap().iter().map(|item| item["name"].clone()).collect()
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_group_is_its_owners_and_stands_for_its_selector(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let answer = create(&scene, &scene.customer, "up north", json!("site == north")).await;
        let group = answer.expect(StatusCode::CREATED);
        assert_eq!(answer.header("etag"), "\"1\"");
        assert_eq!(
            (&group["name"], &group["selector"], &group["tenant_id"]),
            (&json!("up north"), &json!("site=north"), &json!(scene.tenant.to_string()))
        );
        // Of groups, too; and the old form of a selector will do.
        let inner = create(&scene, &scene.customer, "inner", json!("@\"up north\",!retired")).await;
        assert_eq!(inner.expect(StatusCode::CREATED)["selector"], "!retired,site=north");
        create(&scene, &scene.customer, "south", json!({"site": "south"})).await.expect(StatusCode::CREATED);
        assert_eq!(names(&scene, &scene.customer, "/groups").await, ["south", "inner", "up north"]);
        assert_eq!(names(&scene, &scene.customer, "/groups?name=inner").await, ["inner"]);
        assert_eq!(names(&scene, &scene.customer, "/devices?selector=@inner").await, ["lobby"]);
        assert!(names(&scene, &scene.customer, "/devices?selector=@south").await.is_empty());
        scene.get("/devices?selector=@inner,@south").by(&scene.customer).send().await.expect_problem(Kind::BadRequest);
        // Neither another tenant nor the vendor has it, and each may have one of that name.
        for stranger in [&scene.other_customer, &scene.operator, &scene.admin] {
            let path = format!("/groups/{}", group["id"].as_str().unwrap());
            scene.get(&path).by(stranger).send().await.expect_problem(Kind::NotFound);
            scene.get("/devices?selector=@inner").by(stranger).send().await.expect_problem(Kind::BadRequest);
        }
        create(&scene, &scene.other_customer, "inner", json!("site")).await.expect(StatusCode::CREATED);
        let vendors = create(&scene, &scene.operator, "inner", json!("site")).await.expect(StatusCode::CREATED);
        assert_eq!(vendors["tenant_id"], Value::Null);
        assert_eq!(names(&scene, &scene.admin, "/groups").await, ["inner"], "the vendor's people share theirs");
        assert_eq!(names(&scene, &scene.operator, "/devices?selector=@inner").await.len(), 2);
        create(&scene, &scene.admin, "inner", json!("site")).await.expect_problem(Kind::Conflict);
        create(&scene, &scene.customer, "inner", json!("site")).await.expect_problem(Kind::Conflict);
        assert_eq!(scene.audited(scene.tenant).await, ["group.created"; 3]);
        assert_eq!(scene.audited(PLATFORM).await, ["group.created"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn refuses_what_is_empty_unknown_or_too_much(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        // Each with a word that the answer must say.
        for (name, selector, word) in [
            ("", json!("site"), "name"),
            (" ", json!("site"), "name"),
            ("a\u{0}", json!("site"), "name"),
            (&"x".repeat(64), json!("site"), "name"),
            ("g", json!(""), "empty"),
            ("g", json!({}), "empty"),
            ("g", json!("@g"), "no group"),
            ("g", json!("site in ("), "at character 10"),
        ] {
            let problem = create(&scene, &scene.customer, name, selector).await.expect_problem(Kind::Unprocessable);
            assert!(problem["detail"].as_str().unwrap().contains(word), "{problem}");
        }
        create(&scene, &scene.customer, "g", json!("site")).await.expect(StatusCode::CREATED);
        let more = "insert into device_groups (id, tenant_id, name, selector, created_by)
                    select gen_random_uuid(), tenant_id, 'g' || n, selector, created_by
                      from device_groups, generate_series(1, 499) n where tenant_id = $1";
        scene.sql(more, scene.tenant.as_uuid()).await;
        create(&scene, &scene.customer, "more", json!("site")).await.expect_problem(Kind::Conflict);
        create(&scene, &scene.operator, "more", json!("site")).await.expect(StatusCode::CREATED);
    }
}
