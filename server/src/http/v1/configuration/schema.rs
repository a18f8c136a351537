//! `GET` and `PUT /tenants/{id}/configuration-schema`: what the devices of a tenant understand.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::TenantId;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::write::RouteError;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::{IfMatch, Tag};
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::audit::Subject;
use crate::model::configuration::ConfigurationSchema;
use crate::model::configuration::schema::Schema;
use crate::store::audit::audit_append;
use crate::store::configuration::{
    Affected, configuration_lock_in_txn, configuration_schema_set_in_txn, configuration_schema_show,
    configuration_settle_in_txn,
};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigurationSchemaSet {
    /// JSON Schema, draft 2020-12, of at most 32,768 bytes: with no `$ref` but into itself, and none that leads back to where it came from.
    #[schema(value_type = Object)]
    schema: Map<String, Value>,
}

/// The schema of desired configuration
#[utoipa::path(get, path = "/tenants/{id}/configuration-schema", operation_id = "configuration_schema_show", tag = "configuration",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = ConfigurationSchema, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.configuration_schema.show", skip_all)]
pub(crate) async fn show(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<impl IntoResponse, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let schema = configuration_schema_show(&mut transaction, TenantId::from_uuid(id)).await?;
    let schema = schema.ok_or_else(Problem::not_found)?;
    Ok((Tag::of_version(schema.version).header(), Json(schema)))
}

/// Set the schema of desired configuration
///
/// A schema as which the configuration of some device is not is refused.
#[utoipa::path(put, path = "/tenants/{id}/configuration-schema", operation_id = "configuration_schema_set", tag = "configuration",
    params(("id" = uuid::Uuid, Path), ("If-Match" = String, Header)), request_body = ConfigurationSchemaSet,
    responses((status = 200, body = ConfigurationSchema, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.configuration_schema.set", skip_all)]
pub(crate) async fn set(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
    if_match: IfMatch,
    Json(request): Json<ConfigurationSchemaSet>,
) -> Result<impl IntoResponse, RouteError> {
    let (tenant, schema) = (TenantId::from_uuid(id), Value::Object(request.schema));
    Schema::compile(&schema).map_err(|error| Problem::unprocessable(format!("`schema` is not allowed: {error}.")))?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    configuration_lock_in_txn(&mut transaction, tenant).await?;
    let before = configuration_schema_show(&mut transaction, tenant).await?.ok_or_else(Problem::not_found)?;
    if_match.check(&Tag::of_version(before.version))?;
    configuration_schema_set_in_txn(&mut transaction, tenant, &schema, caller.person()).await?;
    configuration_settle_in_txn(&mut transaction, tenant, &Affected::All).await?.map_err(RouteError::Unfit)?;
    let shown = configuration_schema_show(&mut transaction, tenant).await?.ok_or_else(Problem::not_found)?;
    let (subject, details) = (Subject::new("tenant", id), json!({"version": shown.version, "schema": shown.schema}));
    audit_append(&mut transaction, tenant, &caller.actor(), "configuration.schema_set", subject, details).await?;
    context.store.commit(transaction).await?;
    Ok((Tag::of_version(shown.version).header(), Json(shown)))
}
