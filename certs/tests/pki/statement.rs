//! Statements are believed when all of it fits, and only then; and anybody can check them.

use std::fs;
use std::process::Command;

use cloudlink_certs::pem::certificate_to_pem;
use cloudlink_certs::statement::{SignError, sign};
use cloudlink_certs::{
    Authority, DeviceCertificate, IssueError, KeyAlgorithm, PrivateKey, Serial, StatementCertificate,
    StatementCertificateError, StatementError, StatementKind, TrustAnchor, Validity, profile,
};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rstest::rstest;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use tempfile::TempDir;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::fleet::{self, NOW};
use crate::openssl::{openssl, verify};

struct Fleet {
    authority: Authority,
    key: PrivateKey,
    certificate: CertificateDer<'static>,
}

impl Fleet {
    fn new() -> Self {
        let (authority, key) = (fleet::authority(), fleet::key());
        let certificate = fleet::statement_certificate(&authority, &key);
        Self { authority, key, certificate }
    }

    fn trust(&self) -> TrustAnchor {
        TrustAnchor::from_pem(self.authority.certificate_pem().as_bytes()).unwrap()
    }

    fn sign(&self, content: &Value) -> String {
        sign(StatementKind::Isolation, content, &self.certificate, &self.key).unwrap()
    }

    fn judge(&self, text: &str) -> Result<(), StatementError> {
        self.trust().verify_statement(StatementKind::Isolation, text).map(drop)
    }
}

fn content_at(at: OffsetDateTime) -> Value {
    json!({"trust_domain": "fleet.example", "made_at": at.format(&Rfc3339).unwrap(), "tenant": "Hotel"})
}

/// A statement put together by hand, so that it can be wrong in any way.
fn forge(header: &Value, content: &Value, key: &PrivateKey) -> String {
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let signed = format!("{}.{}", part(header), part(content));
    let key = jsonwebtoken::EncodingKey::from_ec_der(key.as_pkcs8_der().secret_pkcs8_der());
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, jsonwebtoken::Algorithm::ES256).unwrap();
    format!("{signed}.{signature}")
}

fn header(certificate: &CertificateDer<'_>) -> Value {
    json!({"alg": "ES256", "typ": StatementKind::Isolation.media_type(), "x5c": [BASE64.encode(certificate)]})
}

#[test]
fn what_was_signed_is_read_back_as_it_was() {
    let fleet = Fleet::new();
    let text = fleet.sign(&content_at(NOW));
    let statement = fleet.trust().verify_statement(StatementKind::Isolation, &text).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&statement.content).unwrap(), content_at(NOW));
    assert_eq!(statement.made_at, NOW);
    assert_eq!(statement.certificate.trust_domain.as_str(), "fleet.example");
    assert_eq!(fleet.judge(&forge(&header(&fleet.certificate), &content_at(NOW), &fleet.key)), Ok(()));
}

#[test]
fn no_byte_can_be_changed_added_or_left_out() {
    let fleet = Fleet::new();
    let text = fleet.sign(&content_at(NOW));
    for at in 0..text.len() {
        for byte in [b'A', b'B', b'.', b'=', b' ', text.as_bytes()[at] ^ 1] {
            let mut changed = text.clone().into_bytes();
            if changed[at] == byte {
                continue;
            }
            changed[at] = byte;
            let Ok(changed) = String::from_utf8(changed) else { continue };
            assert!(fleet.judge(&changed).is_err(), "byte {at} changed to {:?}", char::from(byte));
        }
        let mut shorter = text.clone();
        shorter.remove(at);
        assert!(fleet.judge(&shorter).is_err(), "without byte {at}");
        let mut longer = text.clone();
        longer.insert(at, 'A');
        assert!(fleet.judge(&longer).is_err(), "with another byte at {at}");
    }
    for tail in ["A", "=", "==", ".", "\n", " "] {
        assert!(fleet.judge(&format!("{text}{tail}")).is_err(), "{tail:?}");
    }
}

#[test]
fn parts_of_one_statement_do_not_fit_another() {
    let fleet = Fleet::new();
    let (one, other) = (fleet.sign(&content_at(NOW)), fleet.sign(&content_at(NOW + Duration::SECOND)));
    let (one, other): (Vec<_>, Vec<_>) = (one.split('.').collect(), other.split('.').collect());
    assert_eq!(fleet.judge(&[one[0], other[1], one[2]].join(".")), Err(StatementError::Signature));
    assert_eq!(fleet.judge(&[one[0], one[1], other[2]].join(".")), Err(StatementError::Signature));
}

#[test]
fn the_signer_is_the_fleets_own() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let text = theirs.sign(&content_at(NOW));
    assert_eq!(ours.judge(&text), Err(StatementError::Issuer));
    // Our certificate in front of a signature of theirs.
    let forged = forge(&header(&ours.certificate), &content_at(NOW), &theirs.key);
    assert_eq!(ours.judge(&forged), Err(StatementError::Signature));
    let mut foreign = content_at(NOW);
    foreign["trust_domain"] = "other.example".into();
    assert_eq!(ours.judge(&ours.sign(&foreign)), Err(StatementError::TrustDomain));
}

#[test]
fn devices_and_servers_of_the_fleet_sign_no_statements() {
    let fleet = Fleet::new();
    let key = fleet::key();
    let device = fleet::device_certificate(&fleet.authority, &key);
    let server = fleet::server_certificate(&fleet.authority, &key);
    for certificate in [&device, &server] {
        let forged = forge(&header(certificate), &content_at(NOW), &key);
        let judged = fleet.judge(&forged);
        assert!(matches!(judged, Err(StatementError::Certificate(_))), "{judged:?}");
        let refused = sign(StatementKind::Isolation, &content_at(NOW), certificate, &key);
        assert!(matches!(refused, Err(SignError::Certificate(_))), "{refused:?}");
    }
    let refused = sign(StatementKind::Isolation, &content_at(NOW), &fleet.certificate, &key);
    assert!(matches!(refused, Err(SignError::WrongKey)));
}

#[test]
fn a_statement_outlives_its_certificate_but_is_not_made_outside_its_life() {
    let fleet = Fleet::new();
    // Whenever they are looked at: the present is no part of it.
    let last = NOW + profile::STATEMENT_LIFETIME;
    assert_eq!(fleet.judge(&fleet.sign(&content_at(last))), Ok(()));
    let late = fleet.sign(&content_at(last + Duration::SECOND));
    assert_eq!(fleet.judge(&late), Err(StatementError::NotValidThen));
    let early = fleet.sign(&content_at(fleet::BEFORE_BACKDATE));
    assert_eq!(fleet.judge(&early), Err(StatementError::NotValidThen));
}

#[rstest]
#[case::no_type(json!({"typ": null}), StatementError::Kind)]
#[case::another_type(json!({"typ": "JWT"}), StatementError::Kind)]
#[case::another_algorithm(json!({"alg": "ES384"}), StatementError::Algorithm)]
#[case::a_secret(json!({"alg": "HS256"}), StatementError::Algorithm)]
#[case::no_signature(json!({"alg": "none"}), StatementError::Form)]
#[case::something_to_understand(json!({"crit": ["b64"], "b64": false}), StatementError::Algorithm)]
#[case::no_certificate(json!({"x5c": null}), StatementError::NoCertificate)]
#[case::an_empty_chain(json!({"x5c": []}), StatementError::NoCertificate)]
#[case::no_base64(json!({"x5c": ["!"]}), StatementError::NoCertificate)]
#[case::junk(json!({"x5c": ["AAAA"]}), StatementError::Certificate(StatementCertificateError::Malformed))]
fn headers_are_what_they_have_to_be(#[case] changes: Value, #[case] expected: StatementError) {
    let fleet = Fleet::new();
    let mut changed = header(&fleet.certificate);
    changed.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    changed.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    assert_eq!(fleet.judge(&forge(&changed, &content_at(NOW), &fleet.key)), Err(expected));
}

#[test]
fn a_root_that_is_brought_along_counts_for_nothing() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let mut changed = header(&theirs.certificate);
    changed["x5c"].as_array_mut().unwrap().push(BASE64.encode(theirs.authority.certificate_der()).into());
    assert_eq!(ours.judge(&forge(&changed, &content_at(NOW), &theirs.key)), Err(StatementError::NoCertificate));
}

#[rstest]
#[case(json!([]))]
#[case(json!({}))]
#[case(json!({"trust_domain": "fleet.example"}))]
#[case(json!({"trust_domain": "fleet.example", "made_at": "yesterday"}))]
#[case(json!({"made_at": "2026-06-15T12:00:00Z"}))]
fn contents_say_when_and_where(#[case] content: Value) {
    let fleet = Fleet::new();
    assert_eq!(fleet.judge(&forge(&header(&fleet.certificate), &content, &fleet.key)), Err(StatementError::Content));
}

/// A self-signed certificate that passes, but for what `change` does to it.
fn almost(change: impl FnOnce(&mut CertificateParams)) -> Result<StatementCertificate, StatementCertificateError> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri("spiffe://fleet.example/statement")];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![document_signing()];
    change(&mut params);
    StatementCertificate::parse(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der())
}

fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

fn document_signing() -> ExtendedKeyUsagePurpose {
    ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 36])
}

#[test]
fn the_certificate_that_the_cases_below_change_is_taken() {
    assert_eq!(almost(|_| ()).unwrap().trust_domain.as_str(), "fleet.example");
}

#[rstest]
#[case::none(vec![])]
#[case::device(vec![uri(&fleet::identity().to_string())])]
#[case::domain(vec![uri("spiffe://fleet.example")])]
#[case::deeper(vec![uri("spiffe://fleet.example/tenant/statement")])]
#[case::longer(vec![uri("spiffe://fleet.example/statement/")])]
#[case::another_scheme(vec![uri("https://fleet.example/statement")])]
#[case::two(vec![uri("spiffe://fleet.example/statement"), SanType::DnsName("fleet.example".try_into().unwrap())])]
fn one_uri_is_the_only_alternative_name(#[case] names: Vec<SanType>) {
    let changed = almost(|params| params.subject_alt_names = names);
    assert_eq!(changed, Err(StatementCertificateError::AlternativeName));
}

#[rstest]
#[case::none(vec![])]
#[case::any(vec![ExtendedKeyUsagePurpose::Any])]
#[case::client(vec![ExtendedKeyUsagePurpose::ClientAuth])]
#[case::client_as_well(vec![document_signing(), ExtendedKeyUsagePurpose::ClientAuth])]
#[case::server_as_well(vec![document_signing(), ExtendedKeyUsagePurpose::ServerAuth])]
#[case::unknown_as_well(vec![document_signing(), ExtendedKeyUsagePurpose::Other(vec![1, 2, 3])])]
fn signing_documents_is_the_only_usage(#[case] usages: Vec<ExtendedKeyUsagePurpose>) {
    assert_eq!(almost(|params| params.extended_key_usages = usages), Err(StatementCertificateError::Usage));
}

#[test]
fn digital_signatures_are_the_only_use_of_the_key() {
    let usages = [vec![], vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyAgreement]];
    for usages in usages {
        assert_eq!(almost(|params| params.key_usages = usages), Err(StatementCertificateError::Usage));
    }
    let authority = almost(|params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    assert_eq!(authority, Err(StatementCertificateError::Usage));
}

#[test]
fn a_certificate_for_statements_is_none_of_a_device_and_its_key_is_of_one_kind() {
    let fleet = Fleet::new();
    assert!(DeviceCertificate::parse(&fleet.certificate).is_err());
    assert!(fleet.trust().verify_device(&fleet.certificate, NOW).is_err());
    let validity = Validity::starting_at(NOW, profile::STATEMENT_LIFETIME).unwrap();
    for algorithm in [KeyAlgorithm::P384, KeyAlgorithm::Ed25519] {
        let key = fleet::key_of(algorithm).public_key();
        let trust_domain = fleet::identity().trust_domain;
        let issued = fleet.authority.issue_statement(&key, &trust_domain, Serial::from_random([4; 16]), validity);
        assert!(matches!(issued, Err(IssueError::StatementKey)));
    }
}

#[test]
fn openssl_takes_the_certificate_for_no_end_of_tls() {
    let fleet = Fleet::new();
    let root = fleet.authority.certificate_pem();
    verify(&root, &fleet.certificate, "any", NOW, &[], &[]).unwrap();
    for purpose in ["sslclient", "sslserver", "smimesign"] {
        let complaint = verify(&root, &fleet.certificate, purpose, NOW, &[], &[]).unwrap_err();
        assert!(complaint.contains("unsuitable certificate purpose"), "{complaint}");
    }
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("leaf.pem"), certificate_to_pem(&fleet.certificate)).unwrap();
    let names = ["-noout", "-subject", "-ext", "subjectAltName,keyUsage,extendedKeyUsage,basicConstraints"];
    let output = openssl(&[&["x509", "-in", "leaf.pem", "-nameopt", "RFC2253"], &names[..]].concat(), dir.path());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    assert_eq!(
        lines,
        [
            "subject=CN=Cloudlink statements",
            "X509v3 Subject Alternative Name:",
            "URI:spiffe://fleet.example/statement",
            "X509v3 Key Usage: critical",
            "Digital Signature",
            "X509v3 Extended Key Usage:",
            "1.3.6.1.5.5.7.3.36",
            "X509v3 Basic Constraints: critical",
            "CA:FALSE",
        ]
    );
}

/// With nothing but a shell and the `openssl` command, as docs/ISOLATION.md shows it.
#[test]
fn a_statement_can_be_checked_by_hand_as_the_page_shows() {
    let page = include_str!("../../../docs/ISOLATION.md");
    let (_, script) = page.split_once("```sh\n#!/bin/sh\n").expect("the page has the script");
    let (script, _) = script.split_once("```\n").unwrap();
    let (fleet, dir) = (Fleet::new(), TempDir::new().unwrap());
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("check.sh", script);
    write("fleet-ca.pem", &fleet.authority.certificate_pem());
    let run = |text: &str| {
        write("statement.jws", text);
        let run =
            Command::new("sh").args(["check.sh", "statement.jws", "fleet-ca.pem"]).current_dir(dir.path()).output();
        let output = run.unwrap();
        let shown = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
        (output.status.success(), shown)
    };
    let mut content = content_at(NOW);
    content["nodes"] = vec!["a node with a long name"; 10_000].into();
    let text = fleet.sign(&content) + "\n";
    let (is_valid, shown) = run(&text);
    assert!(is_valid && shown.contains("\"tenant\":\"Hotel\""), "{shown}");
    let other = fleet.sign(&content_at(NOW - Duration::DAY));
    let (one, other): (Vec<_>, Vec<_>) = (text.trim_end().split('.').collect(), other.split('.').collect());
    let (is_valid, shown) = run(&[one[0], other[1], one[2]].join("."));
    assert!(!is_valid && shown.contains("signature"), "{shown}");
    let (is_valid, shown) = run(&Fleet::new().sign(&content_at(NOW)));
    assert!(!is_valid, "{shown}");
    let key = fleet::key();
    let device = fleet::device_certificate(&fleet.authority, &key);
    let (is_valid, shown) = run(&forge(&header(&device), &content_at(NOW), &key));
    assert!(!is_valid && shown.contains("not for statements"), "{shown}");
}
