//! `GET /support-sessions/{id}/recording/content`: what was recorded, decrypted chunk by chunk. Whoever reads is in the audit
//! log before he has the first byte.

use std::error::Error;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cloudlink_proto::ids::{PersonId, SupportSessionId, TenantId};
use data_encoding::{BASE64, HEXLOWER};
use futures_util::{Stream, stream};
use http::{HeaderName, HeaderValue, header};
use serde_json::json;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::{Kind, Problem};
use crate::http::request::{Id, NoQuery};
use crate::model::audit::Subject;
use crate::model::recording::{Recording, RecordingState};
use crate::recording::reader::{ReadError, Reader};
use crate::storage_key::OpenError;
use crate::store::audit::audit_append;
use crate::store::recording::recording_show;

/// RFC 9530.
static REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// What was recorded
///
/// asciicast v2 for a terminal, JSON lines for the rest. Of a session that goes on: what there is. A connection that is cut
/// before its end means that a part cannot be read: what came before is good. Each reading is written to the tenant's audit log.
#[utoipa::path(get, path = "/support-sessions/{id}/recording/content", operation_id = "recording_content",
    tag = "recordings", params(("id" = uuid::Uuid, Path)),
    responses(
        (status = 200, body = String, content_type = "application/x-asciicast", headers(("Repr-Digest" = String))),
    ))]
#[tracing::instrument(name = "http.recording.content", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Response, Problem> {
    let key = Arc::clone(context.storage_key()?);
    let session = SupportSessionId::from_uuid(id);
    let seen_by = caller.operator().map(PersonId::from_uuid);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let recording = recording_show(&mut transaction, session, seen_by).await?.ok_or_else(Problem::not_found)?;
    drop(transaction);
    if recording.state == RecordingState::Deleted {
        let detail =
            "Its tenant does not keep recordings for so long. Their digests stay in the list and in the audit log.";
        return Err(Problem::new(Kind::RecordingDeleted, detail));
    }

    let mut reader = Reader::new(context.store.clone(), key, caller.visibility(), session);
    let first = reader.next().await?.unwrap_or_default();

    let mut transaction = context.store.begin(caller.visibility()).await?;
    let details = json!({"device_id": recording.device_id, "grant_id": recording.grant_id, "state": recording.state});
    let (tenant, subject) = (TenantId::from_uuid(recording.tenant_id), Subject::new("recording", id));
    audit_append(&mut transaction, tenant, &caller.actor(), "recording.read", subject, details).await?;
    context.store.commit(transaction).await?;

    let digest = recording.digest.as_deref().and_then(repr_digest);
    let content_type = HeaderValue::from_static(recording.format.content_type());
    let mut response = Body::from_stream(parts(reader, first, recording)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    if let Some(digest) = digest {
        response.headers_mut().insert(&REPR_DIGEST, digest);
    }
    Ok(response)
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Store(error) => error.into(),
            ReadError::Chunk { source: OpenError::KeyMissing(key), .. } => {
                let detail = format!(
                    "It is encrypted with the storage key {key}, which this node does not have. Add that key to \
                     support.storage_key."
                );
                Self::new(Kind::RecordingUnreadable, detail)
            }
            ReadError::Chunk { source: OpenError::Changed, .. } | ReadError::Missing(_) | ReadError::Digest => {
                let detail = "What is stored is not what was recorded. Compare the digest with the audit log, and look for a backup.";
                Self::new(Kind::RecordingUnreadable, detail)
            }
        }
    }
}

fn parts(
    reader: Reader,
    first: Vec<u8>,
    recording: Recording,
) -> impl Stream<Item = Result<Bytes, ReadError>> + Send + 'static {
    let first = Some(Bytes::from(first));
    stream::try_unfold((reader, first, recording), |(mut reader, first, recording)| async move {
        if let Some(first) = first {
            return Ok(Some((first, (reader, None, recording))));
        }
        let part = match reader.next().await {
            Ok(None) if !is_whole(&reader, &recording) => Err(ReadError::Digest),
            part => part,
        };
        let part = part.inspect_err(|error| {
            tracing::error!(session = %recording.session_id, error = error as &dyn Error, "the reading of a recording was cut");
        })?;
        Ok(part.map(|part| (part.into(), (reader, None, recording))))
    })
}

/// Whether all was there, as far as that is known.
fn is_whole(reader: &Reader, recording: &Recording) -> bool {
    recording.digest.as_ref().is_none_or(|digest| *digest == HEXLOWER.encode(&reader.recorded().digest))
}

fn repr_digest(hex: &str) -> Option<HeaderValue> {
    let digest = HEXLOWER.decode(hex.as_bytes()).ok()?;
    HeaderValue::from_str(&format!("sha-256=:{}:", BASE64.encode(&digest))).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;
    use http_body_util::BodyExt;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use super::*;
    use crate::http::testing::Scene;
    use crate::recording::tests::{begin, session};

    async fn recorded(scene: &Scene) -> (SupportSessionId, String) {
        let session = session(scene, "terminal").await;
        let recorder = begin(scene, session).await;
        for _ in 0..40 {
            recorder.room().await;
            recorder.output(Duration::ZERO, &[b'x'; 30_000]).unwrap();
        }
        recorder.finish(Duration::ZERO).await.unwrap();
        (session, format!("/support-sessions/{session}/recording/content"))
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn is_read_by_those_who_may_and_each_reading_is_audited(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let (_, path) = recorded(&scene).await;
        for somebody in [&scene.operator, &scene.customer, &scene.admin] {
            let answer = scene.get(&path).by(somebody).send().await;
            assert_eq!(answer.status, StatusCode::OK);
            assert_eq!(answer.header("content-type"), "application/x-asciicast");
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, answer.text.as_bytes());
            assert_eq!(answer.header("repr-digest"), format!("sha-256=:{}:", BASE64.encode(digest.as_ref())));
            assert!(answer.text.len() > 1_200_000);
        }
        for somebody in [&scene.colleague, &scene.other_customer] {
            scene.get(&path).by(somebody).send().await.expect_problem(Kind::NotFound);
        }
        let read = scene.audited(scene.tenant).await.iter().filter(|action| *action == "recording.read").count();
        assert_eq!(read, 3, "and nobody else has read");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn one_that_cannot_be_read_is_a_problem_or_breaks_off(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let (session, path) = recorded(&scene).await;
        for broken in [
            "delete from recording_chunks where session_id = $1 and seq = (select max(seq) from recording_chunks)",
            "update recording_chunks set sealed = sealed || 'x' where session_id = $1 and seq = 10",
            "delete from recording_chunks where session_id = $1 and seq = 5",
        ] {
            scene.sql(broken, session.as_uuid()).await;
            let answer = scene.get(&path).by(&scene.customer).open().await;
            assert_eq!(answer.status(), StatusCode::OK);
            assert!(answer.into_body().collect().await.is_err(), "{broken}");
        }
        let foreign = "update recording_chunks set sealed = 'some key' || sealed where session_id = $1 and seq = 0";
        for broken in [foreign, "delete from recording_chunks where session_id = $1"] {
            scene.sql(broken, session.as_uuid()).await;
            let answer = scene.get(&path).by(&scene.customer).send().await;
            answer.expect_problem(Kind::RecordingUnreadable);
        }
        scene.sql("update recordings set deleted_at = now() where session_id = $1", session.as_uuid()).await;
        scene.get(&path).by(&scene.customer).send().await.expect_problem(Kind::RecordingDeleted);
    }
}
