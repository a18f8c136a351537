use cloudlink_certs::csr::{REQUEST_BYTES_MAX, REQUEST_PEM_BYTES_MAX};
use cloudlink_certs::{
    CertificateRequest, DeviceCertificate, KeyAlgorithm, PublicKeyError, RequestError, TrustAnchor, create_request,
};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use rstest::rstest;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::fleet::{self, NOW};
use crate::openssl;

#[rstest]
#[case(KeyAlgorithm::P256)]
#[case(KeyAlgorithm::P384)]
#[case(KeyAlgorithm::Ed25519)]
fn a_request_gives_the_public_key_that_the_certificate_will_hold(#[case] algorithm: KeyAlgorithm) {
    let key = fleet::key_of(algorithm);
    let request = CertificateRequest::from_der(&create_request(&key).unwrap()).unwrap();
    assert_eq!(request.public_key().algorithm(), algorithm);
    assert_eq!(request.public_key_der(), key.public_key_der());

    let authority = fleet::authority();
    let certificate = fleet::device_certificate(&authority, &key);
    assert_eq!(DeviceCertificate::parse(&certificate).unwrap().public_key_der, request.public_key_der());
    TrustAnchor::from_pem(authority.certificate_pem().as_bytes()).unwrap().verify_device(&certificate, NOW).unwrap();
}

#[test]
fn nothing_that_a_request_asks_for_gets_into_the_certificate() {
    let pair = rcgen::KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::default();
    greedy.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any];
    greedy.subject_alt_names = vec![
        SanType::URI("spiffe://fleet.example/tenant/other/device/other".try_into().unwrap()),
        SanType::DnsName("link.fleet.example".try_into().unwrap()),
    ];
    greedy.distinguished_name.push(DnType::CommonName, "somebody else");
    let request = greedy.serialize_request(&pair).unwrap();

    let request = CertificateRequest::from_pem(request.pem().unwrap().as_bytes()).unwrap();
    let der = fleet::authority()
        .issue_device(&request, &fleet::identity(), fleet::device_serial(), fleet::device_validity())
        .unwrap();

    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    let constraints = certificate.basic_constraints().unwrap().unwrap();
    assert!(!constraints.value.ca && constraints.value.path_len_constraint.is_none());
    assert_eq!(certificate.key_usage().unwrap().unwrap().value.to_string(), "Digital Signature");
    let parsed = DeviceCertificate::parse(&der).unwrap();
    assert_eq!(parsed.identity, fleet::identity());
    assert_eq!(parsed.serial, fleet::device_serial().as_bytes());
    assert_eq!(parsed.not_before, fleet::device_validity().not_before());
    assert_eq!(parsed.not_after, fleet::device_validity().not_after());
}

#[rstest]
#[case::rsa(&["-newkey", "rsa:2048"], PublicKeyError::Rsa)]
#[case::p521(&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521"], PublicKeyError::Unsupported)]
#[case::p224(&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-224"], PublicKeyError::Unsupported)]
#[case::ed448(&["-newkey", "ed448"], PublicKeyError::Unsupported)]
#[case::explicit_curve(
    &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-pkeyopt", "ec_param_enc:explicit"],
    PublicKeyError::Unsupported
)]
fn keys_that_the_fleet_does_not_take_are_refused_by_name(#[case] options: &[&str], #[case] expected: PublicKeyError) {
    let request = openssl::request(options);
    assert_eq!(CertificateRequest::from_der(&request), Err(RequestError::PublicKey(expected)));
}

#[rstest]
#[case::p256(&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"], KeyAlgorithm::P256)]
#[case::p384_signed_with_sha256(&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-sha256"], KeyAlgorithm::P384)]
#[case::ed25519(&["-newkey", "ed25519"], KeyAlgorithm::Ed25519)]
fn takes_requests_of_openssl(#[case] options: &[&str], #[case] algorithm: KeyAlgorithm) {
    let request = CertificateRequest::from_der(&openssl::request(options)).unwrap();
    assert_eq!(request.public_key().algorithm(), algorithm);
}

#[test]
fn no_changed_bit_gives_another_key() {
    let key = fleet::key();
    let request = create_request(&key).unwrap();
    for byte in 0..request.len() {
        for bit in 0..8 {
            let mut changed = request.clone();
            changed[byte] ^= 1 << bit;
            // Some bits of the outermost framing are neither signed nor looked at.
            if let Ok(request) = CertificateRequest::from_der(&changed) {
                assert_eq!(request.public_key_der(), key.public_key_der(), "byte {byte} bit {bit}");
            }
        }
    }
}

#[test]
fn a_request_for_the_key_of_another_is_refused() {
    // The victim's request with the attacker's signature: what somebody without the victim's key can make.
    let (victim, attacker) = (create_request(&fleet::key()).unwrap(), create_request(&fleet::key()).unwrap());
    let (_, parsed) = x509_parser::certification_request::X509CertificationRequest::from_der(&attacker).unwrap();
    let info = parsed.certification_request_info.raw;
    let at = attacker.windows(info.len()).position(|window| window == info).unwrap();
    let mut forged = attacker.clone();
    let (_, victim) = x509_parser::certification_request::X509CertificationRequest::from_der(&victim).unwrap();
    forged[at..at + info.len()].copy_from_slice(victim.certification_request_info.raw);
    assert_eq!(CertificateRequest::from_der(&forged), Err(RequestError::Signature));
}

#[test]
fn oversize_and_trailing_bytes_are_refused() {
    let request = create_request(&fleet::key()).unwrap();
    let mut trailing = request.clone();
    trailing.push(0);
    assert_eq!(CertificateRequest::from_der(&trailing), Err(RequestError::Malformed));
    assert_eq!(CertificateRequest::from_der(&vec![0; REQUEST_BYTES_MAX + 1]), Err(RequestError::TooLarge));
    assert_eq!(CertificateRequest::from_pem(&vec![b'\n'; REQUEST_PEM_BYTES_MAX + 1]), Err(RequestError::TooLarge));
    assert_eq!(CertificateRequest::from_pem(b"no PEM"), Err(RequestError::Malformed));
}
