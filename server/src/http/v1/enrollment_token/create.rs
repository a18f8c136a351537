//! `POST /enrollment-tokens`: lets one new device in. The secret is shown once.

use std::time::Duration;

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::{EnrollmentTokenId, TenantId};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::field::{check_name, check_seconds};
use crate::http::problem::{Problem, respond_as_problem};
use crate::http::request::{Json, NoQuery};
use crate::model::audit::Subject;
use crate::model::device::{Labels, LabelsError};
use crate::model::enrollment_token::EnrollmentToken;
use crate::model::new_id;
use crate::secret::{Purpose, Token};
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::enrollment_token::{NewEnrollmentToken, TENANT_UNKNOWN, enrollment_token_create};

const EXPIRES_IN_DEFAULT: Duration = Duration::from_secs(24 * 3600);
const EXPIRES_IN_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EnrollmentTokenCreate {
    /// Whose device it will be: an administrator must say so, a tenant's user may leave it out.
    tenant_id: Option<Uuid>,
    /// What the device will be called: 1 to 128 characters, unique within the tenant when the device enrolls.
    device_name: String,
    /// At most 64, keys and values of 1 to 63 characters.
    #[serde(default)]
    labels: Labels,
    /// 1 to 2,592,000 (30 days). Left out: 86,400 (24 h).
    expires_in_seconds: Option<u64>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct EnrollmentTokenCreated {
    #[serde(flatten)]
    created: EnrollmentToken,
    /// The secret, `cle_…`. It is shown here and never again.
    token: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no tenant")]
    NoTenant,
    #[error("no such tenant")]
    TenantUnknown,
    #[error(transparent)]
    Labels(#[from] LabelsError),
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::NoTenant => Self::unprocessable("Say with `tenant_id` whose device it will be."),
            RouteError::TenantUnknown => {
                Self::unprocessable("There is no tenant of this `tenant_id` that you may see.")
            }
            RouteError::Labels(error) => Self::unprocessable(format!("`labels` is not allowed: {error}.")),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Let one new device in
#[utoipa::path(post, path = "/enrollment-tokens", operation_id = "enrollment_token_create", tag = "devices",
    request_body = EnrollmentTokenCreate, responses((status = 201, body = EnrollmentTokenCreated)))]
#[tracing::instrument(name = "http.enrollment_token.create", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
    Json(request): Json<EnrollmentTokenCreate>,
) -> Result<impl IntoResponse, RouteError> {
    let asked = request.tenant_id.map(TenantId::from_uuid);
    let tenant = match (caller.tenant(), asked) {
        (Some(own), Some(asked)) if own != asked => return Err(RouteError::TenantUnknown),
        (own, asked) => own.or(asked).ok_or(RouteError::NoTenant)?,
    };
    check_name("device_name", &request.device_name)?;
    request.labels.check()?;
    let expires_in = request
        .expires_in_seconds
        .map_or(Ok(EXPIRES_IN_DEFAULT), |seconds| check_seconds("expires_in_seconds", seconds, EXPIRES_IN_MAX))?;
    let secret = Token::generate(Purpose::Enrollment);
    let new = NewEnrollmentToken {
        id: EnrollmentTokenId::from_uuid(new_id()),
        tenant,
        created_by: caller.person(),
        secret: secret.hash(),
        device_name: &request.device_name,
        labels: &request.labels,
        expires_in,
    };
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let created = enrollment_token_create(&mut transaction, new).await.map_err(|error| match error.constraint() {
        Some(TENANT_UNKNOWN) => RouteError::TenantUnknown,
        _ => RouteError::Store(error),
    })?;
    let details = json!({"device_name": created.device_name, "labels": created.labels});
    let subject = Subject::new("enrollment_token", created.id);
    audit_append(&mut transaction, tenant, &caller.actor(), "enrollment_token.created", subject, details).await?;
    context.store.commit(transaction).await?;
    Ok((StatusCode::CREATED, Json(EnrollmentTokenCreated { created, token: secret.expose().to_owned() })))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;
    use crate::model::new_id;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_tenant_makes_them_for_itself_only(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let create = |somebody, body| scene.post("/enrollment-tokens").by(somebody).json(body).send();
        let body = json!({"device_name": "roof", "labels": {"site": "south"}});
        let made = create(&scene.customer, body.clone()).await.expect(StatusCode::CREATED);
        assert!(made["token"].as_str().unwrap().starts_with("cle_"));
        assert_eq!((&made["tenant_id"], &made["used_at"]), (&json!(scene.tenant.to_string()), &json!(null)));
        assert_eq!(scene.audited(scene.tenant).await, ["enrollment_token.created"]);
        let other = json!({"device_name": "roof", "tenant_id": scene.other_tenant.to_string()});
        create(&scene.customer, other.clone()).await.expect_problem(Kind::Unprocessable);
        create(&scene.admin, other).await.expect(StatusCode::CREATED);
        create(&scene.admin, body).await.expect_problem(Kind::Unprocessable);
        let nowhere = json!({"device_name": "roof", "tenant_id": new_id()});
        create(&scene.admin, nowhere).await.expect_problem(Kind::Unprocessable);
        let huge: serde_json::Map<_, _> = (0..65).map(|n| (format!("k{n}"), json!("v"))).collect();
        for body in [
            json!({"device_name": ""}),
            json!({"device_name": "x", "labels": huge}),
            json!({"device_name": "x", "expires_in_seconds": 2_592_001}),
        ] {
            create(&scene.customer, body).await.expect_problem(Kind::Unprocessable);
        }
    }
}
