//! `GET /devices/{id}/openvpn-profile`: what a stock OpenVPN client of this device needs, but for its private key. Keys of the
//! control channel may be in it, so it leaves an entry in the audit log.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::{DeviceId, TenantId};
use cloudlink_proto::openvpn::Random;
use http::header;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use serde_json::json;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Id, Query};
use crate::model::audit::Subject;
use crate::model::device::DeviceState;
use crate::model::openvpn_profile::{KEY_PATH_DEFAULT, KeyPath, KeyPathError};
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::certificate::certificate_usable;
use crate::store::device::device_show;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ProfileQuery {
    /// Where the client finds the device's private key: 1 to 200 bytes. Left out: `device.key`, where the client is started.
    key_path: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no such device")]
    DeviceUnknown,
    #[error("the device is revoked")]
    DeviceRevoked,
    #[error("the device has no usable certificate")]
    NoCertificate,
    #[error("OpenVPN clients are not served")]
    TunnelsOff,
    #[error(transparent)]
    KeyPath(#[from] KeyPathError),
    #[error("there is no randomness, or a key too long")]
    Key,
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::DeviceUnknown => Self::not_found(),
            RouteError::DeviceRevoked => Self::new(
                Kind::DeviceRevoked,
                "The device was revoked, and its certificates are refused. It would have to enroll again.",
            ),
            RouteError::NoCertificate => Self::new(
                Kind::Conflict,
                "The device has no certificate that is still valid. It has to enroll again, with a new token.",
            ),
            RouteError::TunnelsOff => Self::new(
                Kind::TunnelsOff,
                "This server takes no OpenVPN clients. Whoever runs it can change that: `tunnel.enabled`.",
            ),
            RouteError::KeyPath(error) => Self::unprocessable(format!("`key_path` is not allowed: {error}.")),
            RouteError::Key => Self::internal(),
            RouteError::Store(error) => error.into(),
        }
    }
}

/// What a device's OpenVPN client needs
///
/// A profile for a stock client (2.4 or newer): the server, the fleet's root, the device's certificate and, where the server
/// has one, the key of the control channel. The private key is named by its path, for it never left the device.
#[utoipa::path(get, path = "/devices/{id}/openvpn-profile", operation_id = "device_openvpn_profile", tag = "devices",
    params(("id" = uuid::Uuid, Path), ProfileQuery), responses((status = 200, body = String, content_type = "text/plain")))]
#[tracing::instrument(name = "http.device.openvpn_profile", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    Query(query): Query<ProfileQuery>,
) -> Result<impl IntoResponse, RouteError> {
    let key_path = KeyPath::new(query.key_path.as_deref().unwrap_or(KEY_PATH_DEFAULT))?;
    let id = DeviceId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let device = device_show(&mut transaction, id).await?.ok_or(RouteError::DeviceUnknown)?;
    if device.state == DeviceState::Revoked {
        return Err(RouteError::DeviceRevoked);
    }
    let remote = context.openvpn.as_deref().ok_or(RouteError::TunnelsOff)?;
    let certificate = certificate_usable(&mut transaction, id).await?.ok_or(RouteError::NoCertificate)?;
    let mut seed = [0; 32];
    aws_lc_rs::rand::fill(&mut seed).map_err(|_| RouteError::Key)?;
    let der = CertificateDer::from(certificate.der);
    let profile = remote.profile(id, &der, &key_path, &mut Random::from_seed(seed)).map_err(|_| RouteError::Key)?;
    let (subject, tenant) = (Subject::new("device", id.as_uuid()), TenantId::from_uuid(device.tenant_id));
    let details = json!({"serial": certificate.serial, "wrapping": remote.wrapping_name()});
    audit_append(&mut transaction, tenant, &caller.actor(), "openvpn_profile.read", subject, details).await?;
    context.store.commit(transaction).await?;
    let file = format!("attachment; filename=\"{id}.ovpn\"");
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()), (header::CONTENT_DISPOSITION, file)], profile))
}

#[cfg(test)]
mod tests {
    use cloudlink_certs::pem::certificates_from_pem;
    use cloudlink_proto::openvpn::{ServerWrapping, StaticKey};
    use http::StatusCode;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::{Answer, Scene, Somebody};
    use crate::model::openvpn_profile::Remote;

    fn remote() -> Remote {
        Remote {
            server_name: "link.example.com".to_owned(),
            port: 4443,
            common_name: "link.example.com".to_owned(),
            ca_pem: "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".to_owned(),
            wrapping: ServerWrapping::TlsCrypt(StaticKey::from_bytes([9; 256])),
        }
    }

    async fn scene(pool: PgPoolOptions, database: PgConnectOptions) -> Scene {
        Scene::new(pool, database).await.with_openvpn(remote())
    }

    async fn profile(scene: &Scene, somebody: &Somebody, query: &str) -> Answer {
        scene.get(&format!("/devices/{}/openvpn-profile{query}", scene.device)).by(somebody).send().await
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn gives_a_profile_to_all_who_see_the_device_and_says_so(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = scene(pool, database).await;
        for somebody in [&scene.customer, &scene.operator, &scene.admin] {
            let answer = profile(&scene, somebody, "").await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
            assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
            assert_eq!(answer.header("cache-control"), "no-store");
            assert!(answer.header("content-disposition").contains(&format!("{}.ovpn", scene.device)));
            for part in ["remote link.example.com 4443\n", "key \"device.key\"\n", "<tls-crypt>\n"] {
                assert!(answer.text.contains(part), "{part:?} is not in {}", answer.text);
            }
            let (_, certificate) = answer.text.split_once("<cert>").unwrap();
            assert_eq!(certificates_from_pem(certificate.as_bytes()).unwrap()[0].as_ref(), b"der");
        }
        assert_eq!(scene.audited(scene.tenant).await, ["openvpn_profile.read"; 3]);
        profile(&scene, &scene.other_customer, "").await.expect_problem(Kind::NotFound);
        assert_eq!(scene.audited(scene.tenant).await.len(), 3, "who gets nothing read nothing");
        let details: serde_json::Value =
            sqlx::query_scalar("select entry::jsonb -> 'details' from audit where tenant_id = $1 limit 1")
                .bind(scene.tenant.as_uuid())
                .fetch_one(&scene.root)
                .await
                .unwrap();
        assert_eq!(details["wrapping"], "tls-crypt");
        assert_eq!(details["serial"], scene.device.as_uuid().simple().to_string());
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn names_the_key_where_the_caller_says_it_is(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = scene(pool, database).await;
        let answer = profile(&scene, &scene.customer, "?key_path=%2Fetc%2Fmy%20key.pem").await;
        assert!(answer.text.contains("\nkey \"/etc/my key.pem\"\n"), "{}", answer.text);
        for query in ["?key_path=", "?key_path=a%0Aup%20x", "?key_path=%5Binline%5D"] {
            profile(&scene, &scene.customer, query).await.expect_problem(Kind::Unprocessable);
        }
        for query in ["?key=x", "?key_path=a&key_path=b"] {
            profile(&scene, &scene.customer, query).await.expect_problem(Kind::BadRequest);
        }
        assert_eq!(scene.audited(scene.tenant).await, ["openvpn_profile.read"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn takes_the_certificate_that_is_in_use_and_still_good(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = scene(pool, database).await;
        let der = async || {
            let answer = profile(&scene, &scene.customer, "").await;
            let (_, certificate) = answer.text.split_once("<cert>").unwrap();
            certificates_from_pem(certificate.as_bytes()).unwrap()[0].to_vec()
        };
        let renewed = "insert into certificates (serial, device_id, tenant_id, key_hash, der, not_after)
                       select 'serial-2', id, tenant_id, sha256('k'), 'renewed', now() + interval '1 day'
                         from devices where id = $1";
        scene.sql(renewed, scene.device.as_uuid()).await;
        assert_eq!(der().await, b"der", "a renewed one counts when it was used");
        let expired =
            "update certificates set not_after = now() - interval '1 second' where device_id = $1 and state = 'active'";
        scene.sql(expired, scene.device.as_uuid()).await;
        assert_eq!(der().await, b"renewed");
        scene.sql("update certificates set state = 'superseded' where device_id = $1", scene.device.as_uuid()).await;
        let refused = profile(&scene, &scene.customer, "").await.expect_problem(Kind::Conflict);
        assert!(refused["detail"].as_str().unwrap().contains("enroll again"), "{refused}");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_revoked_device_gets_none(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = scene(pool, database).await;
        let path = format!("/devices/{}/revoke", scene.device);
        scene.post(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        profile(&scene, &scene.customer, "").await.expect_problem(Kind::DeviceRevoked);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn without_tunnels_there_are_no_profiles(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let refused = profile(&scene, &scene.customer, "").await.expect_problem(Kind::TunnelsOff);
        assert!(refused["detail"].as_str().unwrap().contains("tunnel.enabled"), "{refused}");
        assert!(scene.audited(scene.tenant).await.is_empty());
    }
}
