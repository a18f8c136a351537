//! `PUT /configuration-documents/{id}` and `POST …/rollback`: a new version, of the one that was read.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::TenantId;
use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::write::{RouteError, affected, check_content, check_priority, commit};
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::{IfMatch, Tag};
use crate::http::field::check_reason;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::http::selector::WrittenSelector;
use crate::model::configuration::ConfigurationDocument;
use crate::model::selector::Selector;
use crate::store::configuration::{
    NewVersion, configuration_change_in_txn, configuration_lock_in_txn, configuration_selector, configuration_show,
    configuration_version_show,
};
use crate::store::{Transaction, Visibility};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigurationUpdate {
    /// All of it from now on. `{}` has the document say nothing.
    #[schema(value_type = Object)]
    content: Map<String, Value>,
    /// Left out: as before. Not of a device's own document.
    selector: Option<WrittenSelector>,
    /// Left out: as before. Not of a device's own document.
    priority: Option<i32>,
    reason: String,
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigurationRollback {
    /// The version whose content, selector and priority are brought back.
    version: i64,
    reason: String,
}

/// Change a document of desired configuration
///
/// Makes a new version; no version is ever changed.
#[utoipa::path(put, path = "/configuration-documents/{id}", operation_id = "configuration_update", tag = "configuration",
    params(("id" = Uuid, Path), ("If-Match" = String, Header)), request_body = ConfigurationUpdate,
    responses((status = 200, body = ConfigurationDocument, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.configuration.update", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
    if_match: IfMatch,
    Json(request): Json<ConfigurationUpdate>,
) -> Result<impl IntoResponse, RouteError> {
    check_reason(&request.reason)?;
    let content = check_content(&request.content)?;
    let Read { mut transaction, before, tenant, selector: old } = read(&context, &caller, id, &if_match).await?;
    let selector = match &request.selector {
        Some(_) if before.device_id.is_some() => return Err(RouteError::Whose),
        Some(selector) => Some(selector.resolve(&mut transaction, caller.tenant()).await?),
        None => old.clone(),
    };
    let priority = request.priority.unwrap_or(before.priority);
    check_priority(priority)?;
    if before.device_id.is_some() && priority != 0 {
        return Err(RouteError::Whose);
    }
    let new = NewVersion {
        selector: selector.as_ref(),
        priority,
        content: &content,
        reason: &request.reason,
        created_by: caller.person(),
        restores: None,
    };
    let moved = configuration_change_in_txn(&mut transaction, id, before.version, &new).await?;
    moved.ok_or_else(Problem::not_found)?;
    let affected = affected(&before, old.into_iter().chain(selector).collect());
    let document = commit(&context, &caller, transaction, (tenant, id), &affected, "configuration.changed").await?;
    Ok((Tag::of_version(document.version).header(), Json(document)))
}

/// Roll a document back
///
/// Makes a new version with what an older one had.
#[utoipa::path(post, path = "/configuration-documents/{id}/rollback", operation_id = "configuration_rollback", tag = "configuration",
    params(("id" = Uuid, Path), ("If-Match" = String, Header)), request_body = ConfigurationRollback,
    responses((status = 200, body = ConfigurationDocument, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.configuration.rollback", skip_all)]
pub(crate) async fn rollback(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
    if_match: IfMatch,
    Json(request): Json<ConfigurationRollback>,
) -> Result<impl IntoResponse, RouteError> {
    check_reason(&request.reason)?;
    let Read { mut transaction, before, tenant, selector: old } = read(&context, &caller, id, &if_match).await?;
    let wanted =
        configuration_version_show(&mut transaction, id, request.version).await?.ok_or(RouteError::NoVersion)?;
    let selector = configuration_selector(&mut transaction, id, request.version).await?;
    let content = wanted.content.unwrap_or_default().to_string();
    let new = NewVersion {
        selector: selector.as_ref(),
        priority: wanted.priority,
        content: &content,
        reason: &request.reason,
        created_by: caller.person(),
        restores: Some(request.version),
    };
    let moved = configuration_change_in_txn(&mut transaction, id, before.version, &new).await?;
    moved.ok_or_else(Problem::not_found)?;
    let affected = affected(&before, old.into_iter().chain(selector).collect());
    let document = commit(&context, &caller, transaction, (tenant, id), &affected, "configuration.rolled_back").await?;
    Ok((Tag::of_version(document.version).header(), Json(document)))
}

/// The document to be changed, which nobody else changes meanwhile.
struct Read {
    transaction: Transaction,
    before: ConfigurationDocument,
    tenant: TenantId,
    selector: Option<Selector>,
}

async fn read(context: &Context, caller: &Caller, id: Uuid, if_match: &IfMatch) -> Result<Read, RouteError> {
    // As the caller: what it does not see is not there.
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let seen = configuration_show(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    drop(transaction);
    let tenant = TenantId::from_uuid(seen.tenant_id);
    let mut transaction = context.store.begin(Visibility::All).await?;
    configuration_lock_in_txn(&mut transaction, tenant).await?;
    let before = configuration_show(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    if_match.check(&Tag::of_version(before.version))?;
    let selector = configuration_selector(&mut transaction, id, before.version).await?;
    Ok(Read { transaction, before, tenant, selector })
}
