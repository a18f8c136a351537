use cloudlink_certs::ca::COMMON_NAME_CHARS_MAX;
use cloudlink_certs::pem::certificate_to_pem;
use cloudlink_certs::{
    Authority, CreateAuthorityError, IssueError, KeyAlgorithm, LoadAuthorityError, PrivateKey, Serial, TrustAnchor,
    Validity,
};
use rcgen::{CertificateParams, DnType, IsCa, KeyUsagePurpose};
use rstest::rstest;
use time::Duration;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::fleet::{self, NOW};

#[test]
fn a_root_may_sign_leaves_and_lists_and_nothing_else() {
    let authority = fleet::authority();
    let (_, root) = X509Certificate::from_der(authority.certificate_der()).unwrap();
    let constraints = root.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    let usage = root.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.to_string(), "Key Cert Sign, CRL Sign");
    assert!(root.extended_key_usage().unwrap().is_none());
}

#[rstest]
#[case(KeyAlgorithm::P256)]
#[case(KeyAlgorithm::P384)]
#[case(KeyAlgorithm::Ed25519)]
fn a_root_that_was_stored_signs_what_the_first_one_is_trusted_for(#[case] algorithm: KeyAlgorithm) {
    let key = fleet::key_of(algorithm);
    let stored_key = key.to_pem();
    let created = fleet::authority_with(key);

    let key = PrivateKey::from_pem(stored_key.as_bytes()).unwrap();
    let loaded = Authority::load(created.certificate_pem().as_bytes(), key).unwrap();
    assert_eq!(loaded.certificate_der(), created.certificate_der());
    assert_eq!(loaded.validity(), created.validity());

    let trust = TrustAnchor::from_pem(created.certificate_pem().as_bytes()).unwrap();
    let certificate = fleet::device_certificate(&loaded, &fleet::key());
    assert_eq!(trust.verify_device(&certificate, NOW).unwrap().identity, fleet::identity());
}

#[test]
fn refuses_a_key_of_another_certificate() {
    let pem = fleet::authority().certificate_pem();
    assert!(matches!(Authority::load(pem.as_bytes(), fleet::key()), Err(LoadAuthorityError::WrongKey)));
}

#[test]
fn refuses_a_certificate_that_may_not_sign() {
    let key = fleet::key();
    let leaf = fleet::device_certificate(&fleet::authority(), &key);
    let loaded = Authority::load(certificate_to_pem(&leaf).as_bytes(), key);
    assert!(matches!(loaded, Err(LoadAuthorityError::NotAnAuthority)), "{loaded:?}");
}

#[test]
fn refuses_an_authority_that_may_not_sign_revocation_lists() {
    let pair = rcgen::KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let pem = params.self_signed(&pair).unwrap().pem();
    let key = PrivateKey::from_pkcs8_der(pair.serialized_der()).unwrap();
    assert!(matches!(Authority::load(pem.as_bytes(), key), Err(LoadAuthorityError::NotAnAuthority)));
}

#[test]
fn takes_up_a_root_of_another_tool() {
    let pair = rcgen::KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::OrganizationName, "Example");
    params.distinguished_name.push(DnType::CountryName, "DE");
    let certificate = params.self_signed(&pair).unwrap();
    let key = PrivateKey::from_pkcs8_der(pair.serialized_der()).unwrap();
    let authority = Authority::load(certificate.pem().as_bytes(), key).unwrap();

    let trust = TrustAnchor::from_pem(certificate.pem().as_bytes()).unwrap();
    trust.verify_device(&fleet::device_certificate(&authority, &fleet::key()), NOW).unwrap();
}

#[test]
fn refuses_a_file_with_a_chain() {
    let key = fleet::key();
    let stored = key.to_pem();
    let pem = fleet::authority_with(key).certificate_pem().repeat(2);
    let key = PrivateKey::from_pem(stored.as_bytes()).unwrap();
    assert!(matches!(Authority::load(pem.as_bytes(), key), Err(LoadAuthorityError::SeveralCertificates)));
}

#[test]
fn refuses_a_root_whose_name_would_not_survive() {
    // Two common names: a verifier compares the whole name, the library keeps one of them.
    let authority = crate::openssl::root_with_subject("/CN=one/CN=two");
    assert!(matches!(Authority::load(authority.0.as_bytes(), authority.1), Err(LoadAuthorityError::Name)));
}

#[test]
fn refuses_names_that_no_certificate_can_hold() {
    let validity = fleet::device_validity();
    for name in [String::new(), "x".repeat(COMMON_NAME_CHARS_MAX + 1)] {
        let created = Authority::create(fleet::key(), &name, Serial::from_random([1; 16]), validity);
        assert!(matches!(created, Err(CreateAuthorityError::CommonName)));
    }
}

#[test]
fn nothing_is_issued_that_outlives_the_root() {
    let authority = fleet::authority();
    let end = authority.validity().not_after();
    let key = fleet::key();
    let issue = |not_after| {
        let validity = Validity::new(NOW, not_after).unwrap();
        authority.issue_device(&fleet::request(&key), &fleet::identity(), fleet::device_serial(), validity)
    };
    assert!(issue(end).is_ok());
    assert!(matches!(issue(end + Duration::SECOND), Err(IssueError::OutlivesAuthority)));
}

#[test]
fn neither_keys_nor_authorities_show_their_secret() {
    let key = fleet::key();
    let pem = key.to_pem();
    assert_eq!(format!("{key:?}"), "PrivateKey(P256, [redacted])");
    let shown = format!("{:?}", fleet::authority_with(key));
    assert!(pem.lines().all(|line| !shown.contains(line)), "{shown}");
}
