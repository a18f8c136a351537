//! How a device comes to be: once for each token, and for nobody else.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

use std::path::Path;
use std::time::Duration;

use cloudlink_certs::{DeviceCertificate, PrivateKey, TrustAnchor, create_request};
use cloudlink_tests::api::text;
use cloudlink_tests::enroll::{client, enroll, new_key, post, request_pem};
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::{ENROLL_NAME, SERVER_NAME};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

#[expect(clippy::disallowed_methods, reason = "certificates are looked at in the present")]
fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// A request of this key, as PEM.
fn csr(key: &PrivateKey) -> String {
    request_pem(&create_request(key).unwrap())
}

/// A request of a key of its own, as PEM.
fn any_csr() -> String {
    csr(&new_key().unwrap())
}

/// What `openssl req` makes of these options, as PEM.
fn openssl_csr(options: &[&str], directory: &Path) -> String {
    let output = std::process::Command::new("openssl")
        .args(["req", "-new", "-nodes", "-keyout", "csr.key", "-subj", "/CN=anybody", "-outform", "DER"])
        .args(options)
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    request_pem(&output.stdout)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_enrolls_one_key_once() {
    let fleet = Fleet::start().await.unwrap();
    let token = fleet.enrollment_token("gateway").await.unwrap();
    let key = new_key().unwrap();

    let first = enroll(&fleet.server, &token, &csr(&key)).await.unwrap();
    assert_eq!(first.status.as_u16(), 200, "{:?}", first.body);
    let ca = text(&first.body, "ca_pem").unwrap();
    let certificate = text(&first.body, "certificate_pem").unwrap();
    let der = cloudlink_certs::pem::certificates_from_pem(certificate.as_bytes()).unwrap().remove(0);
    let certificate = TrustAnchor::from_pem(ca.as_bytes()).unwrap().verify_device(&der, now()).unwrap();
    assert_eq!(certificate.identity.device.to_string(), text(&first.body, "device_id").unwrap());
    assert_eq!(certificate.identity.tenant.to_string(), fleet.tenant_id);
    assert_eq!(certificate.public_key_der, key.public_key_der());

    // The answer was lost: the same key gets the same certificate.
    let again = enroll(&fleet.server, &token, &csr(&key)).await.unwrap();
    assert!(again.status.is_success(), "{:?}", again.body);
    assert_eq!(again.body["certificate_pem"], first.body["certificate_pem"]);

    // Somebody else found the token.
    let replayed = enroll(&fleet.server, &token, &any_csr()).await.unwrap();
    assert!(replayed.status.is_client_error(), "{:?}", replayed.body);
    assert_eq!(replayed.headers["content-type"], "application/problem+json");
    let devices = fleet.tenant.get("/devices").await.unwrap();
    assert_eq!(devices["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_used_token_is_told_so() {
    let fleet = Fleet::start().await.unwrap();
    let token = fleet.enrollment_token("gateway").await.unwrap();
    fleet.new_machine("first").unwrap().enroll(&token).unwrap();
    let refused = fleet.new_machine("second").unwrap().enroll(&token).unwrap_err().to_string();
    assert!(refused.contains("token"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_and_expired_tokens_are_refused() {
    let fleet = Fleet::start().await.unwrap();
    let unknown = format!("cle_{}", "A".repeat(43));
    for token in [unknown.as_str(), "", "cle_", "clk_x", "\u{0}", fleet.tenant.token()] {
        let refused = enroll(&fleet.server, token, &any_csr()).await.unwrap();
        assert!(refused.status.is_client_error(), "{token:?}: {:?}", refused.body);
    }

    let body = json!({ "device_name": "late", "expires_in_seconds": 1 });
    let made = fleet.tenant.post("/enrollment-tokens", &body).await.unwrap();
    let end = OffsetDateTime::parse(&text(&made, "expires_at").unwrap(), &Rfc3339).unwrap();
    wait_for("the token to expire", Duration::from_secs(10), async || {
        anyhow::ensure!(now() > end, "it is {}", now());
        Ok(())
    })
    .await
    .unwrap();
    let refused = enroll(&fleet.server, &text(&made, "token").unwrap(), &any_csr()).await.unwrap();
    assert!(refused.status.is_client_error(), "{:?}", refused.body);
    assert_eq!(fleet.tenant.get("/devices").await.unwrap()["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_does_not_use_the_token_up() {
    let fleet = Fleet::start().await.unwrap();
    let token = fleet.enrollment_token("gateway").await.unwrap();
    let directory = fleet.path("");

    let rsa = openssl_csr(&["-newkey", "rsa:2048"], &directory);
    let mut tampered = create_request(&new_key().unwrap()).unwrap();
    let last = tampered.len() - 1;
    tampered[last] ^= 1;
    for bad in [rsa, request_pem(&tampered), "no PEM".to_owned(), String::new(), "x".repeat(12_000)] {
        let refused = enroll(&fleet.server, &token, &bad).await.unwrap();
        assert!(refused.status.is_client_error(), "{:?}", refused.body);
    }
    let valid = json!({ "token": token, "csr_pem": any_csr() }).to_string();
    for body in ["", "{", "[]", "null", "{\"token\":1}", &valid.replace("token", "tokens"), &"[".repeat(10_000)] {
        let refused = post(&fleet.server, body.to_owned()).await.unwrap();
        assert!(refused.status.is_client_error(), "{body:.40}: {:?}", refused.body);
    }
    // The server does not read to the end of it, so its answer may or may not be heard.
    if let Ok(refused) = post(&fleet.server, format!("{valid}{}", " ".repeat(1_000_000))).await {
        assert_eq!(refused.status.as_u16(), 413, "{:?}", refused.body);
    }

    let enrolled = enroll(&fleet.server, &token, &any_csr()).await.unwrap();
    assert!(enrolled.status.is_success(), "{:?}", enrolled.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_an_authority_gets_a_device() {
    let fleet = Fleet::start().await.unwrap();
    let token = fleet.enrollment_token("gateway").await.unwrap();
    let greedy =
        ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-addext", "basicConstraints=critical,CA:TRUE"];
    let enrolled = enroll(&fleet.server, &token, &openssl_csr(&greedy, &fleet.path(""))).await.unwrap();
    let pem = text(&enrolled.body, "certificate_pem").unwrap();
    // It parses: so it is a device's and not an authority's.
    let der = cloudlink_certs::pem::certificates_from_pem(pem.as_bytes()).unwrap().remove(0);
    DeviceCertificate::parse(&der).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_enrollment_name_does_nothing_else_and_the_server_name_does_not_enroll() {
    let fleet = Fleet::start().await.unwrap();
    let port = fleet.server.device.port();
    for path in ["/", "/v1/link", "/metrics", "/api/v1/devices", "/v1/enroll/../link"] {
        let answer =
            client(&fleet.server, ENROLL_NAME).unwrap().get(format!("https://{ENROLL_NAME}:{port}{path}")).send().await;
        assert!(answer.unwrap().status().is_client_error(), "{path}");
    }
    // Without a certificate there is no TLS under the server's name, and so no request.
    let answer = client(&fleet.server, SERVER_NAME)
        .unwrap()
        .post(format!("https://{SERVER_NAME}:{port}/v1/enroll"))
        .body("{}")
        .send();
    assert!(answer.await.is_err());
}
