//! `GET /me`: who the token belongs to.

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::http::auth::Caller;
use crate::http::request::{Json, NoQuery};
use crate::model::api_scope::ApiScope;
use crate::model::person::{PersonKind, Role};

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Me {
    id: Uuid,
    name: String,
    role: Role,
    tenant_id: Option<Uuid>,
    kind: PersonKind,
    token_id: Uuid,
    /// `api`, `session` or `browser`.
    token_kind: &'static str,
    /// Null: all that the role may do.
    token_scopes: Option<Vec<ApiScope>>,
    #[serde(with = "time::serde::rfc3339")]
    token_expires_at: OffsetDateTime,
}

/// Who the token belongs to
#[utoipa::path(get, path = "/me", operation_id = "me_show", tag = "people", responses((status = 200, body = Me)))]
#[tracing::instrument(name = "http.me.show", skip_all)]
pub(crate) async fn handler(caller: Caller, _: NoQuery) -> Json<Me> {
    let session = caller.session();
    Json(Me {
        id: session.person.as_uuid(),
        name: session.name.clone(),
        role: session.role,
        tenant_id: session.tenant.map(|tenant| tenant.as_uuid()),
        kind: if session.is_service { PersonKind::Service } else { PersonKind::Human },
        token_kind: session.kind.name(),
        token_scopes: session.scopes.clone(),
        token_id: session.token.as_uuid(),
        token_expires_at: session.token_expires_at,
    })
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn tells_who_the_token_belongs_to(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let me = scene.get("/me").by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!(me["id"], scene.customer.id.to_string());
        assert_eq!(me["role"], "tenant");
        assert_eq!(me["tenant_id"], scene.tenant.to_string());
        let me = scene.get("/me").by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!((&me["role"], &me["tenant_id"]), (&"operator".into(), &serde_json::Value::Null));
    }
}
