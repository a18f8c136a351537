//! Documents, their versions, and what they come to for a device.

use axum::extract::{Path, State};
use axum::response::IntoResponse;
use cloudlink_proto::ids::{DeviceId, TenantId};
use serde::Deserialize;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::Tag;
use crate::http::page::{NumberWindow, Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery, Query};
use crate::model::configuration::{ConfigurationDocument, ConfigurationDrift, DeviceConfiguration};
use crate::store::configuration::{
    DocumentFilter, configuration_drift, configuration_list, configuration_show, configuration_version_list,
    configuration_version_show, device_configuration_show,
};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct DocumentQuery {
    tenant_id: Option<Uuid>,
    /// The one of this device.
    device_id: Option<Uuid>,
    /// The exact name.
    name: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Documents of desired configuration
///
/// Each in its newest version, those that changed last first, without their content.
#[utoipa::path(get, path = "/configuration-documents", operation_id = "configuration_list", tag = "configuration",
    params(DocumentQuery), responses((status = 200, body = Page<ConfigurationDocument>)))]
#[tracing::instrument(name = "http.configuration.list", skip_all)]
pub(crate) async fn list(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<DocumentQuery>,
) -> Result<Json<Page<ConfigurationDocument>>, Problem> {
    if query.name.as_ref().is_some_and(|name| name.contains('\0')) {
        return Err(Problem::bad_request("The parameter `name` is malformed."));
    }
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let filter = DocumentFilter {
        tenant: query.tenant_id.map(TenantId::from_uuid),
        device: query.device_id.map(DeviceId::from_uuid),
        name: query.name,
    };
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let documents = configuration_list(&mut transaction, &filter, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(documents, |document| (document.created_at, document.id))))
}

/// One document of desired configuration
#[utoipa::path(get, path = "/configuration-documents/{id}", operation_id = "configuration_show", tag = "configuration",
    params(("id" = Uuid, Path)), responses((status = 200, body = ConfigurationDocument, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.configuration.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<impl IntoResponse, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let document = configuration_show(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    Ok((Tag::of_version(document.version).header(), Json(document)))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct VersionQuery {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Versions of a document
///
/// Newest first, without their content. The last 256 are kept.
#[utoipa::path(get, path = "/configuration-documents/{id}/versions", operation_id = "configuration_versions", tag = "configuration",
    params(("id" = Uuid, Path), VersionQuery), responses((status = 200, body = Page<ConfigurationDocument>)))]
#[tracing::instrument(name = "http.configuration.versions", skip_all)]
pub(crate) async fn versions(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    Query(query): Query<VersionQuery>,
) -> Result<Json<Page<ConfigurationDocument>>, Problem> {
    let window = NumberWindow::new(query.limit, query.cursor.as_deref())?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    configuration_show(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    let versions = configuration_version_list(&mut transaction, id, window.before, window.fetch_limit()).await?;
    Ok(Json(window.page(versions, |version| version.version)))
}

/// One version of a document
#[utoipa::path(get, path = "/configuration-documents/{id}/versions/{version}", operation_id = "configuration_version",
    tag = "configuration", params(("id" = Uuid, Path), ("version" = i64, Path)),
    responses((status = 200, body = ConfigurationDocument)))]
#[tracing::instrument(name = "http.configuration.version", skip_all)]
pub(crate) async fn version(
    State(context): State<Context>,
    caller: Caller,
    path: Result<Path<(Uuid, i64)>, axum::extract::rejection::PathRejection>,
    _: NoQuery,
) -> Result<Json<ConfigurationDocument>, Problem> {
    let Path((id, version)) = path.map_err(|_| Problem::not_found())?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let shown = configuration_version_show(&mut transaction, id, version).await?;
    shown.map(Json).ok_or_else(Problem::not_found)
}

/// The configuration of a device
///
/// What its documents come to, how far it is with that, and what it is merged from.
#[utoipa::path(get, path = "/devices/{id}/configuration", operation_id = "device_configuration", tag = "configuration",
    params(("id" = Uuid, Path)), responses((status = 200, body = DeviceConfiguration)))]
#[tracing::instrument(name = "http.configuration.device", skip_all)]
pub(crate) async fn device(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<DeviceConfiguration>, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let shown = device_configuration_show(&mut transaction, DeviceId::from_uuid(id)).await?;
    shown.map(Json).ok_or_else(Problem::not_found)
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct DriftQuery {
    tenant_id: Option<Uuid>,
    /// Only those that are `pending`, `failed` or `invalid`.
    state: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Devices that are not as they are to be
///
/// Those whose desired configuration is not applied, as far as is known; that changed last come first.
#[utoipa::path(get, path = "/configuration-drift", operation_id = "configuration_drift", tag = "configuration", params(DriftQuery),
    responses((status = 200, body = Page<ConfigurationDrift>)))]
#[tracing::instrument(name = "http.configuration.drift", skip_all)]
pub(crate) async fn drift(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<DriftQuery>,
) -> Result<Json<Page<ConfigurationDrift>>, Problem> {
    if query.state.as_deref().is_some_and(|state| !["pending", "failed", "invalid"].contains(&state)) {
        return Err(Problem::bad_request("`state` must be `pending`, `failed` or `invalid`."));
    }
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let tenant = query.tenant_id.map(TenantId::from_uuid);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let state = query.state.as_deref();
    let drift = configuration_drift(&mut transaction, tenant, state, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(drift, |drift| (drift.standing.since, drift.device_id))))
}
