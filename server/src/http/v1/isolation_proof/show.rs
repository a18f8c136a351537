//! `GET /isolation/proofs/{id}`.

use axum::extract::State;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::proof::Proof;
use crate::store::proof::proof_show;

/// One proof of isolation
#[utoipa::path(get, path = "/isolation/proofs/{id}", operation_id = "isolation_proof_show", tag = "isolation",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Proof)))]
#[tracing::instrument(name = "http.isolation_proof.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<Proof>, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    Ok(Json(proof_show(&mut transaction, id).await?.ok_or_else(Problem::not_found)?))
}
