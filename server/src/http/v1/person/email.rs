//! `PUT /people/{id}/email` and `GET`: where a person is mailed to. By an administrator anybody's, otherwise one's own.

use axum::extract::State;
use cloudlink_proto::ids::{PersonId, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::{Problem, respond_as_problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::model::audit::{PLATFORM, Subject};
use crate::model::person::Role;
use crate::notice::mail::is_address;
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::notice::{email_set, email_show};
use crate::store::person::person_show;

#[derive(Debug, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Email {
    /// One address, as in `tina@example.com`. Null: no mail.
    email: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no such person, or somebody else")]
    Unknown,
    #[error("no mail address")]
    Form,
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Unknown => Self::not_found(),
            RouteError::Form => Self::unprocessable(
                "`email` must be one mail address in ASCII, as in tina@example.com, of at most 254 characters, or null.",
            ),
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Say where a person is mailed to
#[utoipa::path(put, path = "/people/{id}/email", operation_id = "person_email_set", tag = "people",
    params(("id" = uuid::Uuid, Path)), request_body = Email, responses((status = 200, body = Email)))]
#[tracing::instrument(name = "http.person.email_set", skip_all)]
pub(crate) async fn set(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
    Json(request): Json<Email>,
) -> Result<Json<Email>, RouteError> {
    let id = allowed(&caller, id)?;
    if request.email.as_deref().is_some_and(|email| !is_address(email)) {
        return Err(RouteError::Form);
    }
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let person = person_show(&mut transaction, id).await?.ok_or(RouteError::Unknown)?;
    if !email_set(&mut transaction, id, request.email.as_deref()).await? {
        return Err(RouteError::Unknown);
    }
    // Not the address: the log is kept for good.
    let (subject, details) = (Subject::new("person", person.id), json!({"has_email": request.email.is_some()}));
    let chain = person.tenant_id.map_or(PLATFORM, TenantId::from_uuid);
    audit_append(&mut transaction, chain, &caller.actor(), "person.email_set", subject, details).await?;
    context.store.commit(transaction).await?;
    Ok(Json(request))
}

/// Where a person is mailed to
#[utoipa::path(get, path = "/people/{id}/email", operation_id = "person_email_show", tag = "people",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Email)))]
#[tracing::instrument(name = "http.person.email_show", skip_all)]
pub(crate) async fn show(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<Email>, RouteError> {
    let id = allowed(&caller, id)?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let email = email_show(&mut transaction, id).await?.ok_or(RouteError::Unknown)?;
    Ok(Json(Email { email }))
}

fn allowed(caller: &Caller, id: uuid::Uuid) -> Result<PersonId, RouteError> {
    let id = PersonId::from_uuid(id);
    if caller.role() == Role::Admin || caller.person() == id { Ok(id) } else { Err(RouteError::Unknown) }
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn ones_own_and_by_an_administrator_anybodys(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let path = format!("/people/{}/email", scene.customer.id);
        let set = |somebody, email: serde_json::Value| {
            scene.call(Method::PUT, &path).by(somebody).json(json!({"email": email})).send()
        };
        let show = |somebody| scene.get(&path).by(somebody).send();
        assert_eq!(show(&scene.customer).await.expect(StatusCode::OK)["email"], json!(null));
        set(&scene.customer, json!("tina@example.com")).await.expect(StatusCode::OK);
        assert_eq!(show(&scene.admin).await.expect(StatusCode::OK)["email"], "tina@example.com");
        for stranger in [&scene.operator, &scene.other_customer] {
            show(stranger).await.expect_problem(Kind::NotFound);
            set(stranger, json!("eve@example.com")).await.expect_problem(Kind::NotFound);
        }
        for nasty in ["tina", "a@b\r\nBcc: c@d", "a@b.c, d@e.f", "A <a@b.c>"] {
            set(&scene.customer, json!(nasty)).await.expect_problem(Kind::Unprocessable);
        }
        assert_eq!(show(&scene.customer).await.expect(StatusCode::OK)["email"], "tina@example.com");
        set(&scene.admin, json!(null)).await.expect(StatusCode::OK);
        assert_eq!(show(&scene.customer).await.expect(StatusCode::OK)["email"], json!(null));
        assert_eq!(scene.audited(scene.tenant).await, ["person.email_set", "person.email_set"]);
        let own = format!("/people/{}/email", scene.operator.id);
        let call = scene.call(Method::PUT, &own).by(&scene.operator).json(json!({"email": "olga@example.com"}));
        call.send().await.expect(StatusCode::OK);
    }
}
