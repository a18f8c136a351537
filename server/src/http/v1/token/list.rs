//! `GET /tokens`: one's own, newest first; an administrator's query may name somebody else, a tenant user's a service account of
//! its tenant. Never a secret.

use axum::extract::State;
use cloudlink_proto::ids::PersonId;
use serde::Deserialize;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::{Kind, Problem};
use crate::http::request::{Json, Query};
use crate::model::person::PersonKind;
use crate::model::token::Token;
use crate::store::person::person_show;
use crate::store::token::{Reign, token_list};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenQuery {
    /// Left out: one's own. Another's for an administrator; a service account's for its tenant.
    person_id: Option<Uuid>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// API tokens
#[utoipa::path(get, path = "/tokens", operation_id = "token_list", tag = "people", params(TokenQuery),
    responses((status = 200, body = Page<Token>)))]
#[tracing::instrument(name = "http.token.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<TokenQuery>,
) -> Result<Json<Page<Token>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let person = query.person_id.map_or(caller.person(), PersonId::from_uuid);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let is_ones_own = match caller.reign() {
        Reign::Everybody => true,
        Reign::Oneself(oneself) => person == oneself,
        Reign::Tenant(oneself, tenant) => {
            person == oneself
                || person_show(&mut transaction, person).await?.is_some_and(|person| {
                    person.kind == PersonKind::Service && person.tenant_id == Some(tenant.as_uuid())
                })
        }
    };
    if !is_ones_own {
        return Err(Problem::new(Kind::Forbidden, "You can see your own tokens, and those of your service accounts."));
    }
    let tokens = token_list(&mut transaction, person, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(tokens, |token| (token.created_at, token.id))))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn shows_ones_own(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let page = scene.get("/tokens").by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!(page["items"].as_array().unwrap().len(), 1);
        assert_eq!(page["items"][0]["id"], scene.operator.token_id.to_string());
        assert!(page["items"][0]["last_used_at"].is_string());
        let path = format!("/tokens?person_id={}", scene.operator.id);
        assert_eq!(scene.get(&path).by(&scene.admin).send().await.expect(StatusCode::OK)["items"], page["items"]);
        scene.get(&path).by(&scene.colleague).send().await.expect_problem(Kind::Forbidden);
    }
}
