//! `POST /access-requests/{id}/withdraw`: whoever has asked takes it back, as long as it is open. Withdrawing again changes nothing.

use axum::extract::State;
use cloudlink_proto::ids::AccessRequestId;

use super::record::{Step, record_in_txn};
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::{Kind, Problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::model::access_request::AccessRequest;
use crate::store::access_request::{Withdrawn, access_request_show, access_request_withdraw};

/// Take back what one has asked for
#[utoipa::path(post, path = "/access-requests/{id}/withdraw", operation_id = "access_request_withdraw", tag = "access",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = AccessRequest)))]
#[tracing::instrument(name = "http.access_request.withdraw", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<AccessRequest>, Problem> {
    let id = AccessRequestId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    match access_request_withdraw(&mut transaction, id, caller.person()).await? {
        Withdrawn::Withdrawn => {}
        Withdrawn::Again => {
            let request = access_request_show(&mut transaction, id, None).await?;
            return Ok(Json(request.ok_or_else(Problem::not_found)?));
        }
        Withdrawn::Unknown => return Err(Problem::not_found()),
        Withdrawn::Closed(state) => {
            let detail = format!("The request is {} already. Nothing was changed.", state.name());
            return Err(Problem::new(Kind::Conflict, detail));
        }
    }
    let (request, is_told) = record_in_txn(&mut transaction, id, &caller.actor(), Step::Withdrawn).await?;
    context.store.commit(transaction).await?;
    context.tell_outside(is_told);
    Ok(Json(request))
}
