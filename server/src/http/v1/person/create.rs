//! `POST /people`.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::{PersonId, TenantId};
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::field::check_name;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Json, NoQuery};
use crate::model::audit::{PLATFORM, Subject};
use crate::model::new_id;
use crate::model::person::{Person, PersonKind, Role};
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::person::{NAME_TAKEN, TENANT_UNKNOWN, person_create};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PersonCreate {
    /// 1 to 128 characters, unique in the tenant, or among the vendor's people. The audit log shows it.
    name: String,
    role: Role,
    /// For role `tenant`, and for no other.
    tenant_id: Option<Uuid>,
    /// `service`: a robot, which never signs in and has tokens that others make for it. A tenant makes no others.
    #[serde(default)]
    kind: PersonKind,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("a tenant without the role, or the role without a tenant")]
    TenantAndRole,
    #[error("a tenant's user makes service accounts of its own tenant only")]
    NotOnesOwn,
    #[error("no such tenant")]
    TenantUnknown,
    #[error("the name is taken")]
    NameTaken,
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::TenantAndRole => {
                Self::unprocessable("`tenant_id` goes with the role `tenant`, and with no other.")
            }
            RouteError::NotOnesOwn => Self::new(
                Kind::Forbidden,
                "You can make service accounts of your own tenant: `kind` service, `role` tenant, and your `tenant_id`.",
            ),
            RouteError::TenantUnknown => Self::unprocessable("There is no tenant of this `tenant_id`."),
            RouteError::NameTaken => Self::new(Kind::Conflict, "There is somebody of this name already."),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Add a person or a robot
#[utoipa::path(post, path = "/people", operation_id = "person_create", tag = "people", request_body = PersonCreate,
    responses((status = 201, body = Person)))]
#[tracing::instrument(name = "http.person.create", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
    Json(request): Json<PersonCreate>,
) -> Result<impl IntoResponse, RouteError> {
    check_name("name", &request.name)?;
    if (request.role == Role::Tenant) != request.tenant_id.is_some() {
        return Err(RouteError::TenantAndRole);
    }
    let tenant = request.tenant_id.map(TenantId::from_uuid);
    let session = caller.session();
    let is_ones_own = request.kind == PersonKind::Service && !session.is_service && tenant == session.tenant;
    if session.role == Role::Tenant && !is_ones_own {
        return Err(RouteError::NotOnesOwn);
    }
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let id = PersonId::from_uuid(new_id());
    let created = person_create(&mut transaction, id, &request.name, request.role, tenant, request.kind).await;
    let person = created.map_err(|error| match error.constraint() {
        Some(NAME_TAKEN) => RouteError::NameTaken,
        Some(TENANT_UNKNOWN) => RouteError::TenantUnknown,
        _ => RouteError::Store(error),
    })?;
    let (subject, details) =
        (Subject::new("person", person.id), json!({"name": person.name, "role": person.role, "kind": person.kind}));
    let chain = tenant.unwrap_or(PLATFORM);
    audit_append(&mut transaction, chain, &caller.actor(), "person.created", subject, details).await?;
    context.store.commit(transaction).await?;
    Ok((StatusCode::CREATED, Json(person)))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::{Scene, Somebody};
    use crate::model::audit::PLATFORM;
    use crate::model::new_id;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn makes_people_of_each_role(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let create = |body| scene.post("/people").by(&scene.admin).json(body).send();
        let person = create(json!({"name": "robot", "role": "operator"})).await.expect(StatusCode::CREATED);
        assert_eq!((&person["role"], &person["active"]), (&json!("operator"), &json!(true)));
        let tenant = scene.tenant.to_string();
        create(json!({"name": "tim", "role": "tenant", "tenant_id": tenant})).await.expect(StatusCode::CREATED);
        create(json!({"name": "robot", "role": "admin"})).await.expect_problem(Kind::Conflict);
        create(json!({"name": "x", "role": "operator", "tenant_id": tenant})).await.expect_problem(Kind::Unprocessable);
        create(json!({"name": "x", "role": "tenant"})).await.expect_problem(Kind::Unprocessable);
        let nowhere = json!({"name": "x", "role": "tenant", "tenant_id": new_id()});
        create(nowhere).await.expect_problem(Kind::Unprocessable);
        create(json!({"name": "x", "role": "king"})).await.expect_problem(Kind::BadRequest);
        assert_eq!(scene.audited(PLATFORM).await, ["person.created"]);
        assert_eq!(scene.audited(scene.tenant).await, ["person.created"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_tenant_makes_service_accounts_of_its_own_and_nobody_else(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        let create = |somebody, body| scene.post("/people").by(somebody).json(body).send();
        let (own, other) = (scene.tenant.to_string(), scene.other_tenant.to_string());
        let service = |tenant: &str| json!({"name": "tom", "role": "tenant", "tenant_id": tenant, "kind": "service"});
        let robot = create(&scene.customer, service(&own)).await.expect(StatusCode::CREATED);
        assert_eq!((&robot["kind"], &robot["tenant_id"]), (&json!("service"), &json!(own)));
        for body in [
            service(&other),
            json!({"name": "x", "role": "tenant", "tenant_id": own}),
            json!({"name": "x", "role": "operator", "kind": "service"}),
            json!({"name": "x", "role": "admin", "kind": "service"}),
        ] {
            create(&scene.customer, body).await.expect_problem(Kind::Forbidden);
        }
        // The name of somebody of another tenant tells nothing; one of its own is taken.
        create(&scene.customer, service(&own)).await.expect_problem(Kind::Conflict);
        assert_eq!(scene.audited(scene.tenant).await, ["person.created"]);

        // Its people make tokens for it, nobody else does, and it makes none for others.
        let id = robot["id"].as_str().unwrap();
        let body = json!({"name": "n", "person_id": id, "scopes": ["read"]});
        let make = |somebody| scene.post("/tokens").by(somebody).json(body.clone()).send();
        for stranger in [&scene.admin, &scene.operator] {
            make(stranger).await.expect_problem(Kind::Forbidden);
        }
        make(&scene.other_customer).await.expect_problem(Kind::Forbidden);
        let token = make(&scene.customer).await.expect(StatusCode::CREATED);
        let robot = Somebody { token: token["token"].as_str().unwrap().to_owned(), ..scene.customer.clone() };
        let me = scene.get("/me").by(&robot).send().await.expect(StatusCode::OK);
        assert_eq!((&me["id"], &me["kind"]), (&json!(id), &json!("service")));
        create(&robot, service(&own)).await.expect_problem(Kind::ScopeRequired);
        let list = scene.get(&format!("/tokens?person_id={id}")).by(&scene.customer).send().await;
        assert_eq!(list.expect(StatusCode::OK)["items"][0]["id"], token["id"]);
        let revoke = format!("/tokens/{}/revoke", token["id"].as_str().unwrap());
        scene.post(&revoke).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
        // Whoever owns it shuts it out.
        let set = |somebody| scene.patch(&format!("/people/{id}")).by(somebody).json(json!({"active": false})).send();
        set(&scene.other_customer).await.expect_problem(Kind::NotFound);
        assert_eq!(set(&scene.customer).await.expect(StatusCode::OK)["active"], false);
        scene.get("/me").by(&robot).send().await.expect_problem(Kind::Unauthenticated);
        scene.post(&revoke).by(&scene.customer).send().await.expect(StatusCode::OK);
        let people = scene.patch(&format!("/people/{}", scene.customer.id)).by(&scene.customer);
        people.json(json!({"active": true})).send().await.expect_problem(Kind::Forbidden);
    }
}
