//! `POST /configuration-documents`: a document for a device, or for all that a selector means.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::DeviceId;
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::write::{RouteError, check_content, check_priority, commit, tenant_of};
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::Tag;
use crate::http::field::check_reason;
use crate::http::request::{Json, NoQuery};
use crate::http::selector::WrittenSelector;
use crate::http::v1::group::create::check_group_name;
use crate::model::configuration::ConfigurationDocument;
use crate::model::new_id;
use crate::store::Visibility;
use crate::store::configuration::{
    Affected, NewVersion, Whose, configuration_create_in_txn, configuration_lock_in_txn, configuration_schema_show,
};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigurationCreate {
    /// Whose devices it is for: an administrator must say so, a tenant's user may leave it out.
    tenant_id: Option<Uuid>,
    /// For this device alone. Else `name` and `selector`.
    device_id: Option<Uuid>,
    /// 1 to 63 characters, unique within the tenant.
    name: Option<String>,
    /// Which devices it is for. Groups in it are taken for what they mean now. Never empty.
    selector: Option<WrittenSelector>,
    /// -1,000 to 1,000. Left out: 0. A document of a higher one is merged later, and wins; of the same, the later name.
    #[serde(default)]
    priority: i32,
    /// A JSON merge patch (RFC 7396) of at most 61,440 bytes.
    #[schema(value_type = Object)]
    content: Map<String, Value>,
    /// 1 to 1,024 characters.
    reason: String,
}

/// Make a document of desired configuration
///
/// What it comes to is checked for every device that it is for: a device for which that is not as the schema says refuses all of it.
#[utoipa::path(post, path = "/configuration-documents", operation_id = "configuration_create", tag = "configuration",
    request_body = ConfigurationCreate, responses((status = 201, body = ConfigurationDocument, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.configuration.create", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
    Json(request): Json<ConfigurationCreate>,
) -> Result<impl IntoResponse, RouteError> {
    let tenant = tenant_of(&caller, request.tenant_id)?;
    check_reason(&request.reason)?;
    check_priority(request.priority)?;
    let content = check_content(&request.content)?;
    let mut transaction = context.store.begin(Visibility::All).await?;
    configuration_lock_in_txn(&mut transaction, tenant).await?;
    if configuration_schema_show(&mut transaction, tenant).await?.is_none() {
        return Err(RouteError::TenantUnknown);
    }
    let (whose, selector) = match (request.device_id, &request.name, &request.selector) {
        (Some(device), None, None) if request.priority == 0 => (Whose::Device(DeviceId::from_uuid(device)), None),
        (None, Some(name), Some(selector)) => {
            check_group_name(name)?;
            (Whose::Named(name), Some(selector.resolve(&mut transaction, caller.tenant()).await?))
        }
        _ => return Err(RouteError::Whose),
    };
    let new = NewVersion {
        selector: selector.as_ref(),
        priority: request.priority,
        content: &content,
        reason: &request.reason,
        created_by: caller.person(),
        restores: None,
    };
    let id = new_id();
    configuration_create_in_txn(&mut transaction, id, tenant, whose, &new).await?.ok_or(match whose {
        Whose::Device(_) => RouteError::DeviceUnknown,
        Whose::Named(_) => RouteError::TooMany,
    })?;
    let affected = match whose {
        Whose::Device(device) => Affected::Device(device),
        Whose::Named(_) => Affected::Selected(selector.into_iter().collect()),
    };
    let action = "configuration.created";
    let document = commit(&context, &caller, transaction, (tenant, id), &affected, action).await?;
    let location = format!("/api/v1/configuration-documents/{id}");
    let tag = Tag::of_version(document.version);
    Ok((StatusCode::CREATED, tag.header(), [(header::LOCATION, location)], Json(document)))
}
