//! `GET /recordings`: newest first.

use axum::extract::State;
use cloudlink_proto::ids::{DeviceId, GrantId, PersonId, TenantId};
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::recording::Recording;
use crate::store::recording::{RecordingFilter, recording_list};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct RecordingQuery {
    tenant_id: Option<Uuid>,
    device_id: Option<Uuid>,
    grant_id: Option<Uuid>,
    /// The operator who opened the session, or joined it, or whoever of the tenant's people watched.
    person_id: Option<Uuid>,
    #[param(inline)]
    kind: Option<SessionKind>,
    /// Begun at this time or later.
    #[serde(default, with = "time::serde::rfc3339::option")]
    from: Option<OffsetDateTime>,
    /// Begun before this time.
    #[serde(default, with = "time::serde::rfc3339::option")]
    until: Option<OffsetDateTime>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Of the session that was recorded.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SessionKind {
    Terminal,
    Forward,
    File,
}

impl SessionKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Terminal => "terminal",
            Self::Forward => "forward",
            Self::File => "file",
        }
    }
}

/// Recordings of support sessions
///
/// An operator sees those of the sessions that it opened or joined, a tenant its own. What was said is not searched: it is
/// encrypted.
#[utoipa::path(get, path = "/recordings", operation_id = "recording_list", tag = "recordings", params(RecordingQuery),
    responses((status = 200, body = Page<Recording>)))]
#[tracing::instrument(name = "http.recording.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<RecordingQuery>,
) -> Result<Json<Page<Recording>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let filter = RecordingFilter {
        session: None,
        tenant: query.tenant_id.map(TenantId::from_uuid),
        device: query.device_id.map(DeviceId::from_uuid),
        grant: query.grant_id.map(GrantId::from_uuid),
        person: query.person_id.map(PersonId::from_uuid),
        seen_by: caller.operator().map(PersonId::from_uuid),
        kind: query.kind.map(SessionKind::name),
        from: query.from,
        until: query.until,
    };
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let recordings = recording_list(&mut transaction, filter, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(recordings, |recording| (recording.started_at, recording.session_id))))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::{Scene, Somebody};
    use crate::model::new_id;
    use crate::recording::tests::{begin, session};

    async fn found(scene: &Scene, somebody: &Somebody, query: &str) -> Vec<String> {
        let page = scene.get(&format!("/recordings{query}")).by(somebody).send().await.expect(StatusCode::OK);
        let items = page["items"].as_array().unwrap();
        items.iter().map(|recording| recording["session_id"].as_str().unwrap().to_owned()).collect()
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn finds_by_time_device_operator_and_kind(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let (first, second) = (session(&scene, "terminal").await, session(&scene, "forward").await);
        let _recorders = (begin(&scene, first).await, begin(&scene, second).await);
        let yesterday = "update recordings set started_at = '2026-01-02T10:00Z' where session_id = $1";
        scene.sql(yesterday, first.as_uuid()).await;
        let both = [second.to_string(), first.to_string()];
        let (first, second) = (&both[1..], &both[..1]);
        for (query, expected) in [
            (String::new(), &both[..]),
            (format!("?device_id={}", scene.device), &both),
            (format!("?device_id={}", scene.other_device), &[]),
            (format!("?tenant_id={}", scene.tenant), &both),
            (format!("?tenant_id={}", scene.other_tenant), &[]),
            (format!("?person_id={}", scene.operator.id), &both),
            (format!("?person_id={}", scene.colleague.id), &[]),
            ("?kind=terminal".to_owned(), first),
            ("?kind=forward".to_owned(), second),
            ("?from=2026-01-02T10:00:00Z&until=2026-01-02T10:00:01Z".to_owned(), first),
            ("?until=2026-01-02T10:00:00Z".to_owned(), &[]),
            ("?from=2026-01-02T10:00:01Z".to_owned(), second),
            ("?limit=1".to_owned(), second),
        ] {
            assert_eq!(found(&scene, &scene.admin, &query).await, expected, "{query}");
        }
        scene.get("/recordings?kind=video").by(&scene.admin).send().await.expect_problem(Kind::BadRequest);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn shows_operators_what_they_took_part_in_and_tenants_their_own(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        let session = session(&scene, "terminal").await;
        let _recorder = begin(&scene, session).await;
        let own = [session.to_string()];
        for (somebody, expected) in [
            (&scene.operator, &own[..]),
            (&scene.customer, &own),
            (&scene.admin, &own),
            (&scene.colleague, &[]),
            (&scene.other_customer, &[]),
        ] {
            assert_eq!(found(&scene, somebody, "").await, expected);
        }
        sqlx::query("insert into support_guests (id, session_id, tenant_id, person_id) values ($1, $2, $3, $4)")
            .bind(new_id())
            .bind(session.as_uuid())
            .bind(scene.tenant.as_uuid())
            .bind(scene.colleague.id.as_uuid())
            .execute(&scene.root)
            .await
            .unwrap();
        assert_eq!(found(&scene, &scene.colleague, "").await, own, "joined");
        assert_eq!(found(&scene, &scene.admin, &format!("?person_id={}", scene.colleague.id)).await, own);
    }
}
