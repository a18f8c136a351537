//! `GET /support-sessions`: newest first.

use axum::extract::State;
use cloudlink_proto::ids::{DeviceId, GrantId, PersonId};
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::support_session::SupportSession;
use crate::store::support_session::{SessionFilter, support_session_list};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct SupportSessionQuery {
    device_id: Option<Uuid>,
    grant_id: Option<Uuid>,
    /// Who opened it.
    person_id: Option<Uuid>,
    /// Whether it has not ended.
    live: Option<bool>,
    /// Opened at this time or later (RFC 3339).
    #[serde(default, with = "time::serde::rfc3339::option")]
    from: Option<OffsetDateTime>,
    /// Opened before this time (RFC 3339).
    #[serde(default, with = "time::serde::rfc3339::option")]
    until: Option<OffsetDateTime>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Support sessions
#[utoipa::path(get, path = "/support-sessions", operation_id = "support_session_list", tag = "support",
    params(SupportSessionQuery), responses((status = 200, body = Page<SupportSession>)))]
#[tracing::instrument(name = "http.support_session.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<SupportSessionQuery>,
) -> Result<Json<Page<SupportSession>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let filter = SessionFilter {
        device: query.device_id.map(DeviceId::from_uuid),
        grant: query.grant_id.map(GrantId::from_uuid),
        person: query.person_id.map(PersonId::from_uuid),
        live: query.live,
        from: query.from,
        until: query.until,
    };
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let sessions = support_session_list(&mut transaction, filter, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(sessions, |session| (session.created_at, session.id))))
}
