//! The judge that auditors use. Needs the `openssl` command.

use std::path::Path;
use std::process::{Command, Output};

use cloudlink_certs::pem::{certificate_to_pem, revocation_list_to_pem};
use cloudlink_certs::{KeyAlgorithm, PrivateKey, Revocation, RevocationReason, Serial, ServerName, Validity, profile};
use rstest::rstest;
use rustls_pki_types::CertificateDer;
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

use crate::fleet::{self, NOW};

pub(crate) fn openssl(args: &[&str], dir: &Path) -> Output {
    Command::new("openssl").args(args).current_dir(dir).output().expect("the openssl command is installed")
}

/// A request that `openssl req` makes, as DER.
pub(crate) fn request(options: &[&str]) -> Vec<u8> {
    let dir = TempDir::new().unwrap();
    let args = [&["req", "-new", "-nodes", "-keyout", "key.pem", "-subj", "/CN=anybody", "-outform", "DER"], options];
    let output = openssl(&args.concat(), dir.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A root that `openssl req -x509` makes, as PEM, with its key.
pub(crate) fn root_with_subject(subject: &str) -> (String, PrivateKey) {
    let dir = TempDir::new().unwrap();
    let curve = "ec_paramgen_curve:P-256";
    let output = openssl(
        &["req", "-x509", "-new", "-nodes", "-keyout", "key.pem", "-subj", subject, "-newkey", "ec", "-pkeyopt", curve],
        dir.path(),
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let key = std::fs::read(dir.path().join("key.pem")).unwrap();
    (String::from_utf8(output.stdout).unwrap(), PrivateKey::from_pem(&key).unwrap())
}

/// What `openssl verify` says: `Ok`, or its complaint.
pub(crate) fn verify(
    root_pem: &str,
    certificate: &CertificateDer<'_>,
    purpose: &str,
    at: OffsetDateTime,
    options: &[&str],
    files: &[(&str, &str)],
) -> Result<(), String> {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("root.pem", root_pem);
    write("leaf.pem", &certificate_to_pem(certificate));
    for (name, text) in files {
        write(name, text);
    }
    let at = at.unix_timestamp().to_string();
    let fixed = ["verify", "-x509_strict", "-purpose", purpose, "-attime", &at, "-CAfile", "root.pem"];
    let output = openssl(&[&fixed, options, &["leaf.pem"]].concat(), dir.path());
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }
}

#[rstest]
#[case(KeyAlgorithm::P256)]
#[case(KeyAlgorithm::P384)]
#[case(KeyAlgorithm::Ed25519)]
fn leaves_are_good_for_their_purpose_and_no_other(#[case] algorithm: KeyAlgorithm) {
    let authority = fleet::authority_with(fleet::key_of(algorithm));
    let root = authority.certificate_pem();
    let device = fleet::device_certificate(&authority, &fleet::key_of(algorithm));
    let server = fleet::server_certificate(&authority, &fleet::key_of(algorithm));

    verify(&root, &device, "sslclient", NOW, &[], &[]).unwrap();
    verify(&root, &server, "sslserver", NOW, &[], &[]).unwrap();
    for (certificate, purpose) in [(&device, "sslserver"), (&server, "sslclient")] {
        let complaint = verify(&root, certificate, purpose, NOW, &[], &[]).unwrap_err();
        assert!(complaint.contains("unsuitable certificate purpose"), "{complaint}");
    }
}

#[test]
fn leaves_are_good_within_their_life_only() {
    let authority = fleet::authority();
    let root = authority.certificate_pem();
    let device = fleet::device_certificate(&authority, &fleet::key());
    let complaint = verify(&root, &device, "sslclient", fleet::AFTER_DEVICE_LIFETIME, &[], &[]).unwrap_err();
    assert!(complaint.contains("certificate has expired"), "{complaint}");
    let complaint = verify(&root, &device, "sslclient", fleet::BEFORE_BACKDATE, &[], &[]).unwrap_err();
    assert!(complaint.contains("not yet valid"), "{complaint}");
}

#[test]
fn leaves_of_another_root_of_the_same_name_are_refused() {
    let device = fleet::device_certificate(&fleet::authority(), &fleet::key());
    assert!(verify(&fleet::authority().certificate_pem(), &device, "sslclient", NOW, &[], &[]).is_err());
}

#[test]
fn server_names_are_in_the_certificate() {
    let authority = fleet::authority();
    let root = authority.certificate_pem();
    let server = fleet::server_certificate(&authority, &fleet::key());
    let judge = |option, name| verify(&root, &server, "sslserver", NOW, &[option, name], &[]);
    judge("-verify_hostname", "link.fleet.example").unwrap();
    judge("-verify_ip", "127.0.0.1").unwrap();
    judge("-verify_ip", "::1").unwrap();
    judge("-verify_hostname", "other.fleet.example").unwrap_err();
    judge("-verify_ip", "127.0.0.2").unwrap_err();
}

/// `remote-cert-tls server` wants both usages, `verify-x509-name … name` compares the common name.
#[rstest]
#[case(&["link.fleet.example", "enroll.link.fleet.example", "127.0.0.1"], "link.fleet.example")]
#[case(&["LINK.fleet.example"], "link.fleet.example")]
#[case(&["192.0.2.7", "link.fleet.example"], "192.0.2.7")]
#[case(&[LONG_NAME, "link.fleet.example"], "cloudlinkd")]
fn a_server_certificate_has_what_openvpn_clients_check(#[case] names: &[&str], #[case] common_name: &str) {
    let authority = fleet::authority();
    let names: Vec<ServerName> = names.iter().map(|name| name.parse().unwrap()).collect();
    let validity = Validity::starting_at(NOW, profile::SERVER_LIFETIME).unwrap();
    let serial = Serial::from_random([3; 16]);
    let certificate = authority.issue_server(&fleet::key().public_key(), &names, serial, validity).unwrap();
    verify(&authority.certificate_pem(), &certificate, "sslserver", NOW, &[], &[]).unwrap();
    assert_eq!(names[0].common_name(), common_name);

    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("leaf.pem"), certificate_to_pem(&certificate)).unwrap();
    let options = ["-noout", "-subject", "-nameopt", "RFC2253", "-ext", "keyUsage,extendedKeyUsage"];
    let output = openssl(&[&["x509", "-in", "leaf.pem"], &options[..]].concat(), dir.path());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    assert_eq!(
        lines,
        [
            &format!("subject=CN={common_name}"),
            "X509v3 Key Usage: critical",
            "Digital Signature",
            "X509v3 Extended Key Usage:",
            "TLS Web Server Authentication"
        ]
    );
}

/// 65 characters.
const LONG_NAME: &str = "a-device-port-with-a-name-that-is-one-too-long-for-common.example";

#[test]
fn a_listed_certificate_is_revoked_and_the_others_are_not() {
    let authority = fleet::authority();
    let root = authority.certificate_pem();
    let device = fleet::device_certificate(&authority, &fleet::key());
    let judge = |serial: &[u8]| {
        let revocation =
            Revocation { serial: serial.to_vec(), revoked_at: NOW, reason: RevocationReason::KeyCompromise };
        let list = authority.issue_revocation_list(7, &[revocation], NOW, NOW + Duration::DAY).unwrap();
        let list = revocation_list_to_pem(&list);
        verify(&root, &device, "sslclient", NOW, &["-crl_check", "-CRLfile", "list.pem"], &[("list.pem", &list)])
    };
    judge(b"another serial").unwrap();
    let complaint = judge(fleet::device_serial().as_bytes()).unwrap_err();
    assert!(complaint.contains("certificate revoked"), "{complaint}");
}

#[test]
fn a_list_shows_its_number_its_times_and_its_entries() {
    let authority = fleet::authority();
    let revocation =
        Revocation { serial: vec![0x42, 0xff], revoked_at: NOW, reason: RevocationReason::CessationOfOperation };
    let list = authority.issue_revocation_list(7, &[revocation], NOW, NOW + Duration::DAY).unwrap();
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("list.pem"), revocation_list_to_pem(&list)).unwrap();
    std::fs::write(dir.path().join("root.pem"), authority.certificate_pem()).unwrap();
    let output = openssl(&["crl", "-in", "list.pem", "-CAfile", "root.pem", "-noout", "-text"], dir.path());
    let (text, verdict) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(verdict.contains("verify OK"), "{verdict}");
    for expected in [
        "Version 2",
        "Last Update: Jun 15 12:00:00 2026 GMT",
        "Next Update: Jun 16 12:00:00 2026 GMT",
        "Serial Number: 42FF",
        "Cessation Of Operation",
        "X509v3 CRL Number: \n                7",
        "X509v3 Authority Key Identifier",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in {text}");
    }
}

#[test]
fn openssl_reads_the_keys_and_requests() {
    let dir = TempDir::new().unwrap();
    for algorithm in [KeyAlgorithm::P256, KeyAlgorithm::P384, KeyAlgorithm::Ed25519] {
        let key = fleet::key_of(algorithm);
        std::fs::write(dir.path().join("key.pem"), key.to_pem().as_bytes()).unwrap();
        let output = openssl(&["pkey", "-in", "key.pem", "-pubout", "-outform", "DER"], dir.path());
        assert_eq!(output.stdout, key.public_key_der(), "{algorithm:?}");

        std::fs::write(dir.path().join("request.der"), cloudlink_certs::create_request(&key).unwrap()).unwrap();
        let output = openssl(&["req", "-in", "request.der", "-inform", "DER", "-verify", "-noout"], dir.path());
        assert!(output.status.success(), "{algorithm:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
