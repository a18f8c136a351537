//! Enrollment: a token becomes a device, once.

use aws_lc_rs::digest;
use cloudlink_certs::key::PrivateKey;
use cloudlink_certs::pem::certificates_from_pem;
use cloudlink_certs::{DeviceCertificate, create_request};
use cloudlink_proto::enroll::{BODY_BYTES_MAX, ENROLL_PATH, Response as Enrolled};
use data_encoding::{BASE64_MIME, HEXLOWER};
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use uuid::Uuid;

use super::fleet::Fleet;
use super::peer::{Credentials, Peer, new_key, request};
use super::{ENROLL_NAME, Port, SERVER_NAME};
use crate::secret::{Purpose, Token};

/// A token of the fleet's tenant, good for so long.
async fn token(port: &Port, fleet: &Fleet, name: &str, seconds: i32) -> String {
    let token = Token::generate(Purpose::Enrollment);
    let (id, hash) = (Uuid::now_v7(), HEXLOWER.encode(token.hash().as_bytes()));
    let Fleet { tenant, user, .. } = fleet;
    port.run(&format!(
        "insert into enrollment_tokens (id, tenant_id, created_by, secret_hash, device_name, labels, expires_at)
         values ('{id}', '{tenant}', '{user}', '\\x{hash}', '{name}', '{{\"site\": \"a\"}}',
                 clock_timestamp() + interval '{seconds} seconds')"
    ))
    .await;
    token.expose().to_owned()
}

fn csr(key: &PrivateKey) -> String {
    let der = create_request(key).unwrap();
    let body = BASE64_MIME.encode(&der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\r\n{body}-----END CERTIFICATE REQUEST-----\r\n")
}

async fn post(port: &Port, body: &str) -> (u16, Value) {
    let text = format!("POST {ENROLL_PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let (status, _, body) =
        request(port, &Credentials::none(port), ENROLL_NAME, text.as_bytes()).await.expect("an answer");
    (status, serde_json::from_slice(&body).unwrap())
}

async fn enroll(port: &Port, token: &str, key: &PrivateKey) -> (u16, Value) {
    post(port, &json!({"token": token, "csr_pem": csr(key)}).to_string()).await
}

fn kind(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["type"].as_str().unwrap().strip_prefix("urn:cloudlink:problem:").unwrap())
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_token_becomes_a_device_that_can_link(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let (token, key) = (token(&port, &fleet, "gateway", 60).await, new_key());
    let (status, body) = enroll(&port, &token, &key).await;
    assert_eq!(status, 200, "{body}");
    let enrolled: Enrolled = serde_json::from_value(body).unwrap();
    let certificate = certificates_from_pem(enrolled.certificate_pem.as_bytes()).unwrap().remove(0);
    let parsed = DeviceCertificate::parse(&certificate).unwrap();
    assert_eq!(
        (parsed.identity.device.to_string(), parsed.identity.tenant.to_string(), enrolled.name.as_str()),
        (enrolled.device_id.clone(), enrolled.tenant_id.clone(), "gateway")
    );
    assert_eq!(enrolled.ca_pem, port.authority.certificate_pem());
    let link = Peer::dial(&port, &Credentials::new(&port, &certificate, &key), "boot-1").await.unwrap();
    assert_eq!(link.admission.device_id.to_string(), enrolled.device_id);

    let row = "select concat_ws(' ', d.name, d.labels, d.state, t.used_at is not null, t.device_id = d.id)
                 from devices d, enrollment_tokens t";
    assert_eq!(port.ask(row).await.as_deref(), Some(r#"gateway {"site": "a"} active t t"#));
    let audited = "select count(*)::text from audit where action = 'device.enrolled'";
    assert_eq!(port.ask(audited).await.as_deref(), Some("1"));
    assert_eq!(port.metric("cloudlink_enrollments_total"), 1);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_same_key_gets_the_same_certificate_again_and_another_key_gets_none(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let (token, key) = (token(&port, &fleet, "gateway", 60).await, new_key());
    let first = enroll(&port, &token, &key).await;
    assert_eq!(enroll(&port, &token, &key).await, first);
    assert_eq!(kind(&enroll(&port, &token, &new_key()).await), (409, "enrollment_token_used"));
    assert_eq!(port.ask("select count(*)::text from certificates").await.as_deref(), Some("1"));
    // A revoked device does not get it again either.
    port.run("update devices set state = 'revoked', revoked_at = clock_timestamp()").await;
    assert_eq!(kind(&enroll(&port, &token, &key).await), (409, "enrollment_token_used"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn of_many_at_once_with_one_token_one_enrolls(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let token = token(&port, &fleet, "gateway", 60).await;
    let answers = futures_util::future::join_all((0..8).map(|_| async { enroll(&port, &token, &new_key()).await.0 }));
    let mut answers = answers.await;
    answers.sort_unstable();
    assert_eq!(answers, [200, 409, 409, 409, 409, 409, 409, 409]);
    assert_eq!(port.ask("select count(*)::text from devices").await.as_deref(), Some("1"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_token_that_is_expired_or_none_is_refused(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let (expired, key) = (token(&port, &fleet, "gateway", -1).await, new_key());
    assert_eq!(kind(&enroll(&port, &expired, &key).await), (403, "enrollment_token_expired"));
    let unknown = Token::generate(Purpose::Enrollment);
    assert_eq!(kind(&enroll(&port, unknown.expose(), &key).await), (403, "enrollment_token_invalid"));
    assert_eq!(kind(&enroll(&port, "cle_short", &key).await), (403, "enrollment_token_invalid"));
    assert_eq!(
        kind(&enroll(&port, Token::generate(Purpose::Api).expose(), &key).await),
        (403, "enrollment_token_invalid")
    );
    assert_eq!(port.ask("select count(*)::text from devices").await.as_deref(), Some("0"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_token_survives_a_certificate_request_that_is_none(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let (token, key) = (token(&port, &fleet, "gateway", 60).await, new_key());
    let mut broken = csr(&key);
    let at = broken.len() / 2;
    broken.replace_range(at..at + 4, "AAAA");
    for csr in ["", "no PEM", &broken] {
        let answer = post(&port, &json!({"token": token, "csr_pem": csr}).to_string()).await;
        assert_eq!(kind(&answer), (422, "csr_invalid"), "{csr}");
    }
    assert_eq!(enroll(&port, &token, &key).await.0, 200);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_name_that_is_taken_is_refused_and_the_token_stays_good(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let (one, other) = (token(&port, &fleet, "gateway", 60).await, token(&port, &fleet, "gateway", 60).await);
    assert_eq!(enroll(&port, &one, &new_key()).await.0, 200);
    let key = new_key();
    assert_eq!(kind(&enroll(&port, &other, &key).await), (409, "device_name_taken"));
    port.run("update devices set name = 'renamed'").await;
    assert_eq!(enroll(&port, &other, &key).await.0, 200);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_body_that_is_none_or_too_large_is_refused_without_repeating_it(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let secret = Token::generate(Purpose::Enrollment);
    for body in ["", "{}", "[]", "\u{fffd}", &json!({"token": secret.expose(), "csr": 1}).to_string()] {
        let answer = post(&port, body).await;
        assert_eq!(kind(&answer), (400, "bad_request"), "{body}");
        assert!(!answer.1.to_string().contains(secret.expose()));
    }
    let large = json!({"token": "x".repeat(BODY_BYTES_MAX), "csr_pem": ""}).to_string();
    assert_eq!(kind(&post(&port, &large).await), (413, "too_large"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn under_the_enrollment_name_there_is_no_link_and_under_the_other_no_enrollment(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let (none, link) = (Credentials::none(&port), b"GET /v1/link HTTP/1.1\r\nhost: x\r\n\r\n");
    for credentials in [&none, &device.credentials] {
        let (status, ..) = request(&port, credentials, ENROLL_NAME, link).await.unwrap();
        assert_eq!(status, 404);
    }
    let (status, ..) = request(&port, &none, ENROLL_NAME, b"GET /v1/enroll HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_eq!(status, 405);
    let enroll = b"POST /v1/enroll HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    assert!(request(&port, &none, SERVER_NAME, enroll).await.is_err());
    let (status, ..) = request(&port, &device.credentials, SERVER_NAME, enroll).await.unwrap();
    assert_eq!(status, 404);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_key_of_the_certificate_is_the_one_of_the_request(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let (token, key) = (token(&port, &fleet, "gateway", 60).await, new_key());
    assert_eq!(enroll(&port, &token, &key).await.0, 200);
    let hash = HEXLOWER.encode(digest::digest(&digest::SHA256, &key.public_key_der()).as_ref());
    let stored = "select encode(key_hash, 'hex') from certificates";
    assert_eq!(port.ask(stored).await, Some(hash));
}
