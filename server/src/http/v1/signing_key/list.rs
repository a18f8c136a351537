//! `GET /signing-keys`: newest first, revoked ones as well.

use axum::extract::State;
use serde::Deserialize;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::signing_key::SigningKey;
use crate::store::signing_key::signing_key_list;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct SigningKeyQuery {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Keys for signing grants
#[utoipa::path(get, path = "/signing-keys", operation_id = "signing_key_list", tag = "grants",
    params(SigningKeyQuery), responses((status = 200, body = Page<SigningKey>)))]
#[tracing::instrument(name = "http.signing_key.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<SigningKeyQuery>,
) -> Result<Json<Page<SigningKey>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let keys = signing_key_list(&mut transaction, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(keys, |key| (key.created_at, key.id))))
}
