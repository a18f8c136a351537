//! `GET /people`: newest first. A tenant's user sees its own people, and the operators that it may name in grants.

use axum::extract::State;
use cloudlink_proto::ids::TenantId;
use serde::Deserialize;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::person::{Person, Role};
use crate::store::person::{PersonFilter, person_list};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct PersonQuery {
    role: Option<Role>,
    tenant_id: Option<Uuid>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// People
#[utoipa::path(get, path = "/people", operation_id = "person_list", tag = "people", params(PersonQuery),
    responses((status = 200, body = Page<Person>)))]
#[tracing::instrument(name = "http.person.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<PersonQuery>,
) -> Result<Json<Page<Person>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let filter = PersonFilter { role: query.role, tenant: query.tenant_id.map(TenantId::from_uuid) };
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let people = person_list(&mut transaction, filter, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(people, |person| (person.created_at, person.id))))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::testing::{Scene, Somebody};

    async fn names(scene: &Scene, somebody: &Somebody, query: &str) -> Vec<String> {
        let page = scene.get(&format!("/people{query}")).by(somebody).send().await.expect(StatusCode::OK);
        let mut names: Vec<_> =
            page["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_tenant_sees_its_own_people_and_the_operators(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        assert_eq!(names(&scene, &scene.customer, "").await, ["olga", "oskar", "tina"]);
        assert_eq!(names(&scene, &scene.customer, "?role=operator").await, ["olga", "oskar"]);
        assert!(names(&scene, &scene.customer, "?role=admin").await.is_empty());
        assert_eq!(names(&scene, &scene.admin, "").await, ["olga", "oskar", "root", "tina", "tom"]);
        let query = format!("?tenant_id={}", scene.other_tenant);
        assert_eq!(names(&scene, &scene.admin, &query).await, ["tom"]);
        assert!(names(&scene, &scene.customer, &query).await.is_empty());
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_tenant_sees_where_its_own_people_are_mailed_to_and_nobody_else(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        let known = "update people set email = name || '@example.com', signed_in_at = now() where id <> $1";
        scene.sql(known, uuid::Uuid::nil()).await;
        for (somebody, seen) in [
            (&scene.customer, &[("olga", None), ("oskar", None), ("tina", Some("tina@example.com"))][..]),
            (&scene.admin, &[("olga", Some("olga@example.com")), ("tina", Some("tina@example.com"))]),
        ] {
            let page = scene.get("/people").by(somebody).send().await.expect(StatusCode::OK);
            let people = page["items"].as_array().unwrap();
            for (name, email) in seen {
                let person = people.iter().find(|person| person["name"] == *name).unwrap();
                assert_eq!(person["email"].as_str(), *email, "{name}");
                assert_eq!(person["signed_in_at"].is_string(), email.is_some(), "{name}");
            }
        }
        // Nor in SQL that somebody else has written.
        let mut transaction = scene.store.begin(crate::store::Visibility::Tenant(scene.tenant)).await.unwrap();
        let error = sqlx::query("select email from people").execute(&mut *transaction).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42501");
    }
}
