//! Who may not open a link: bad certificates, bad TLS, no TLS, and those who take their time. Whatever they do, the good
//! device's link stays.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloudlink_certs::{
    Authority, CertificateRequest, DeviceCertificate, DeviceIdentity, Serial, Validity, create_request, profile,
};
use cloudlink_tests::dial::{self, Credentials, Heard, Link, Refusal};
use cloudlink_tests::enroll::{Enrolled, new_key};
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::server::{ENROLL_NAME, SERVER_NAME, Settings};
use rustls::AlertDescription;
use rustls::version::TLS13;
use serde_json::json;
use time::{Duration as Days, OffsetDateTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uuid::Uuid;

/// From the revocation to the end of the link.
const REVOKED_LIMIT: Duration = Duration::from_secs(1);
/// Longer than the limits that the tests configure, shorter than the defaults.
const SLOW_LIMIT: Duration = Duration::from_secs(8);

#[expect(clippy::disallowed_methods, reason = "certificates are made for the present")]
fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn serial() -> Serial {
    Serial::from_random(*Uuid::new_v4().as_bytes())
}

/// A certificate that the authority signs, without the server knowing.
fn unknown_to_the_server(authority: &Authority, identity: &DeviceIdentity, validity: Validity) -> Credentials {
    let key = Arc::new(new_key().unwrap());
    let request = CertificateRequest::from_der(&create_request(&key).unwrap()).unwrap();
    let certificate = authority.issue_device(&request, identity, serial(), validity).unwrap();
    Credentials { certificate, key }
}

async fn refusal(fleet: &Fleet, credentials: &Credentials) -> Refusal {
    Refusal::of(&fleet.open(credentials).await.unwrap_err())
}

async fn epoch(fleet: &Fleet, device: &Enrolled) -> i64 {
    fleet.tenant.get(&format!("/devices/{}", device.id)).await.unwrap()["link"]["epoch"].as_i64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_certificates_are_refused_each_for_its_reason() {
    let fleet = Fleet::start().await.unwrap();
    let device = fleet.enrolled("gateway").await.unwrap();
    let _link = fleet.live(&device).await.unwrap().0;
    let good = &device.credentials;
    let identity = DeviceCertificate::parse(&good.certificate).unwrap().identity;
    let authority = fleet.server.authority().unwrap();
    let valid = Validity::starting_at(now(), profile::DEVICE_LIFETIME).unwrap();

    let expired = Validity::new(now() - Days::days(90), now() - Days::days(1)).unwrap();
    let expired = unknown_to_the_server(&authority, &identity, expired);
    assert_eq!(refusal(&fleet, &expired).await, Refusal::Alert(AlertDescription::CertificateExpired));

    let early = Validity::new(now() + Days::days(1), now() + Days::days(90)).unwrap();
    let early = unknown_to_the_server(&authority, &identity, early);
    assert!(matches!(refusal(&fleet, &early).await, Refusal::Alert(_)), "not yet valid");

    // Another authority of the same name.
    let impostor = Authority::create(new_key().unwrap(), "Cloudlink fleet CA", serial(), valid).unwrap();
    let foreign = unknown_to_the_server(&impostor, &identity, valid);
    assert!(matches!(refusal(&fleet, &foreign).await, Refusal::Alert(_)), "foreign authority");

    // A server's certificate, in the hands of a client.
    let key = Arc::new(new_key().unwrap());
    let names = [SERVER_NAME.parse().unwrap()];
    let certificate = authority.issue_server(&key.public_key(), &names, serial(), valid).unwrap();
    assert!(matches!(refusal(&fleet, &Credentials { certificate, key }).await, Refusal::Alert(_)), "server usage");

    // Signed by us, for a device of ours, but never issued: the authority's key alone opens nothing.
    let unissued = unknown_to_the_server(&authority, &identity, valid);
    assert!(matches!(refusal(&fleet, &unissued).await, Refusal::Http(403, _)), "never issued");

    // Another fleet's identity under our signature.
    let elsewhere = DeviceIdentity { trust_domain: "other.example".parse().unwrap(), ..identity };
    let elsewhere = unknown_to_the_server(&authority, &elsewhere, valid);
    assert!(matches!(refusal(&fleet, &elsewhere).await, Refusal::Http(403, _)), "other trust domain");

    // A stolen certificate without its key.
    let stolen = Credentials { certificate: good.certificate.clone(), key: Arc::new(new_key().unwrap()) };
    assert!(matches!(refusal(&fleet, &stolen).await, Refusal::Alert(_)), "stolen");

    // None at all.
    let config = dial::client_config(&fleet.server.ca_file(), None, &[&TLS13]).unwrap();
    let anonymous = match dial::tls(fleet.server.device, SERVER_NAME, config).await {
        Ok(stream) => Link::upgrade(SERVER_NAME, stream).await.map(drop),
        Err(error) => Err(error),
    };
    let anonymous = Refusal::of(&anonymous.unwrap_err());
    assert_eq!(anonymous, Refusal::Alert(AlertDescription::CertificateRequired));

    // All the while the device was not disturbed, and each refusal was counted.
    assert_eq!(epoch(&fleet, &device).await, 1);
    let (_, metrics) = fleet.server.operations("/metrics").await.unwrap();
    for reason in ["certificate_invalid", "certificate_missing", "unknown"] {
        let counted = metrics.lines().any(|line| {
            line.starts_with("cloudlink_device_handshake_failures_total")
                && line.contains(reason)
                && !line.ends_with(" 0")
        });
        assert!(counted, "{reason} was not counted:\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_is_cut_at_once_and_stays_out() {
    let fleet = Fleet::start().await.unwrap();
    let device = fleet.enrolled("gateway").await.unwrap();
    let other = fleet.enrolled("other").await.unwrap();
    let (mut link, _other_link) = (fleet.live(&device).await.unwrap().0, fleet.live(&other).await.unwrap().0);

    let begun = Instant::now();
    fleet.tenant.post(&format!("/devices/{}/revoke", device.id), &json!({})).await.unwrap();
    let heard = link.hear_the_end().await.unwrap();
    assert_eq!(heard, Heard::Closed(4003));
    assert!(begun.elapsed() < REVOKED_LIMIT, "{:?}", begun.elapsed());
    fleet.wait_for_link(&device.id, "closed").await.unwrap();

    let refused = refusal(&fleet, &device.credentials).await;
    assert!(matches!(refused, Refusal::Http(403, _)), "{refused:?}");
    fleet.wait_for_link(&other.id, "live").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_cannot_resume_its_session() {
    let fleet = Fleet::start().await.unwrap();
    let device = fleet.enrolled("gateway").await.unwrap();
    let mut config = dial::client_config(&fleet.server.ca_file(), Some(&device.credentials), &[&TLS13]).unwrap();
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let dial = async || {
        let stream = dial::tls(fleet.server.device, SERVER_NAME, config.clone()).await.unwrap();
        let kind = stream.get_ref().1.handshake_kind();
        (kind, Link::upgrade(SERVER_NAME, stream).await)
    };
    // The first link brings the ticket, the second one shows that it is good for something.
    let (_, link) = dial().await;
    assert!(link.is_ok());
    let (kind, link) = dial().await;
    assert_eq!(kind, Some(rustls::HandshakeKind::Resumed));
    assert!(link.is_ok());

    fleet.tenant.post(&format!("/devices/{}/revoke", device.id), &json!({})).await.unwrap();
    let (kind, link) = dial().await;
    assert_eq!(kind, Some(rustls::HandshakeKind::Resumed));
    let refused = Refusal::of(&link.unwrap_err());
    assert!(matches!(refused, Refusal::Http(403, _)), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_12_and_plain_http_get_nothing_on_the_device_port() {
    let fleet = Fleet::start().await.unwrap();
    for name in [SERVER_NAME, ENROLL_NAME] {
        let output = tokio::process::Command::new("openssl")
            .args(["s_client", "-connect", &fleet.server.device.to_string(), "-servername", name, "-tls1_2"])
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("alert protocol version"), "{name}: {said}");
    }

    let mut stream = TcpStream::connect(fleet.server.device).await.unwrap();
    stream.write_all(b"GET /v1/link HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // The server may cut the connection before all was read.
    let _ = tokio::time::timeout(SLOW_LIMIT, stream.read_to_end(&mut answer)).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("TLS 1.3"), "{answer}");

    // And those who do it right are served as ever.
    fleet.live(&fleet.enrolled("gateway").await.unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_cut() {
    let settings = Settings {
        set: vec!["device.handshake_timeout_seconds=1".to_owned(), "device.request_timeout_seconds=1".to_owned()],
        ..Settings::default()
    };
    let fleet = Fleet::start_with(&settings).await.unwrap();
    let device = fleet.enrolled("gateway").await.unwrap();
    let _link = fleet.live(&device).await.unwrap().0;

    // Says nothing at all.
    let silent = TcpStream::connect(fleet.server.device).await.unwrap();
    // Begins a ClientHello, and leaves it at that.
    let mut hesitant = TcpStream::connect(fleet.server.device).await.unwrap();
    hesitant.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap();
    for mut stream in [silent, hesitant] {
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(SLOW_LIMIT, stream.read_to_end(&mut answer)).await.expect("it is cut");
    }

    // Gets through TLS, and begins a request.
    let config = dial::client_config(&fleet.server.ca_file(), Some(&device.credentials), &[&TLS13]).unwrap();
    let linking = dial::tls(fleet.server.device, SERVER_NAME, config).await.unwrap();
    let config = dial::client_config(&fleet.server.ca_file(), None, &[&TLS13]).unwrap();
    let enrolling = dial::tls(fleet.server.device, ENROLL_NAME, config).await.unwrap();
    for mut stream in [linking, enrolling] {
        stream.write_all(b"GET /v1/link HTTP/1.1\r\nHost: loc").await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(SLOW_LIMIT, stream.read_to_end(&mut answer)).await.expect("it is cut");
    }
    // The good device took no notice.
    assert_eq!(epoch(&fleet, &device).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_takes_the_link_over_and_is_shut_out_with_its_original() {
    let fleet = Fleet::start().await.unwrap();
    let device = fleet.enrolled("gateway").await.unwrap();
    let mut original = fleet.live(&device).await.unwrap().0;

    // Somebody has copied the device's key. There is one link, and it says whose it is: the newest one's.
    let mut clone = fleet.live(&device).await.unwrap().0;
    assert_eq!(original.hear_the_end().await.unwrap(), Heard::Closed(4002));
    assert_eq!(epoch(&fleet, &device).await, 2);
    let log = fleet.server.log_text().unwrap();
    assert!(log.contains("replaced"), "{log}");

    // Revoking the device ends it for both.
    fleet.tenant.post(&format!("/devices/{}/revoke", device.id), &json!({})).await.unwrap();
    assert_eq!(clone.hear_the_end().await.unwrap(), Heard::Closed(4003));
    assert!(matches!(refusal(&fleet, &device.credentials).await, Refusal::Http(403, _)));
}
