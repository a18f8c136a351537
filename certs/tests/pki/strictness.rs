//! What is almost a device certificate is none.

use cloudlink_certs::identity::CERTIFICATE_BYTES_MAX;
use cloudlink_certs::{
    DeviceCertificate, DeviceCertificateError, DeviceIdentity, IdentityError, PublicKeyError, TrustAnchor,
    TrustAnchorError, TrustDomain, VerifyError,
};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use rstest::rstest;

use crate::fleet::{self, NOW};

/// A self-signed certificate that passes, but for what `change` does to it.
fn almost(change: impl FnOnce(&mut CertificateParams)) -> Result<DeviceCertificate, DeviceCertificateError> {
    almost_with(&KeyPair::generate().unwrap(), change)
}

fn almost_with(
    key: &KeyPair,
    change: impl FnOnce(&mut CertificateParams),
) -> Result<DeviceCertificate, DeviceCertificateError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, fleet::identity().device.to_string());
    params.subject_alt_names = vec![uri(&fleet::identity().to_string())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    DeviceCertificate::parse(params.self_signed(key).unwrap().der())
}

fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

#[test]
fn the_certificate_that_the_cases_below_change_is_taken() {
    assert_eq!(almost(|_| ()).unwrap().identity, fleet::identity());
}

#[rstest]
#[case::no_name(vec![])]
#[case::two_uris(vec![uri(&fleet::identity().to_string()), uri("https://fleet.example/")])]
#[case::same_uri_twice(vec![uri(&fleet::identity().to_string()), uri(&fleet::identity().to_string())])]
#[case::uri_and_dns_name(vec![uri(&fleet::identity().to_string()), SanType::DnsName("a.example".try_into().unwrap())])]
#[case::dns_name(vec![SanType::DnsName("a.example".try_into().unwrap())])]
fn one_uri_is_the_only_alternative_name(#[case] names: Vec<SanType>) {
    assert_eq!(almost(|params| params.subject_alt_names = names), Err(DeviceCertificateError::AlternativeName));
}

#[test]
fn the_uri_is_an_identity() {
    let changed = almost(|params| params.subject_alt_names = vec![uri("https://fleet.example/")]);
    assert_eq!(changed, Err(DeviceCertificateError::Identity(IdentityError::Scheme)));
}

#[test]
fn the_common_name_is_the_device() {
    let changed =
        almost(|params| params.distinguished_name.push(DnType::CommonName, fleet::identity().tenant.to_string()));
    assert_eq!(changed, Err(DeviceCertificateError::CommonName));
    let changed = almost(|params| params.distinguished_name = rcgen::DistinguishedName::new());
    assert_eq!(changed, Err(DeviceCertificateError::CommonName));
}

#[rstest]
#[case::none(vec![])]
#[case::server(vec![ExtendedKeyUsagePurpose::ServerAuth])]
#[case::both(vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth])]
#[case::any(vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::Any])]
#[case::unknown(vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::Other(vec![1, 2, 3])])]
fn client_authentication_is_the_only_usage(#[case] usages: Vec<ExtendedKeyUsagePurpose>) {
    assert_eq!(almost(|params| params.extended_key_usages = usages), Err(DeviceCertificateError::Usage));
}

#[test]
fn an_authority_is_no_device() {
    let changed = almost(|params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    assert_eq!(changed, Err(DeviceCertificateError::Authority));
}

#[test]
fn an_rsa_key_is_refused_by_name() {
    let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let changed = almost_with(&key, |_| ());
    assert_eq!(changed, Err(DeviceCertificateError::PublicKey(PublicKeyError::Rsa)));
}

#[test]
fn oversize_and_trailing_bytes_are_refused() {
    let mut der = fleet::device_certificate(&fleet::authority(), &fleet::key()).to_vec();
    der.push(0);
    assert_eq!(DeviceCertificate::parse(&der), Err(DeviceCertificateError::Malformed));
    der.resize(CERTIFICATE_BYTES_MAX + 1, 0);
    assert_eq!(DeviceCertificate::parse(&der), Err(DeviceCertificateError::TooLarge));
}

#[test]
fn serials_come_back_without_padding() {
    let parsed = almost(|params| params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0xff, 0x01])));
    assert_eq!(parsed.unwrap().serial, [0xff, 0x01]);
}

#[rstest]
#[case("SPIFFE://fleet.example/tenant/{t}/device/{d}", IdentityError::Scheme)]
#[case("spiffe://fleet.example", IdentityError::Path)]
#[case("spiffe:///tenant/{t}/device/{d}", IdentityError::TrustDomain)]
#[case("spiffe://Fleet.example/tenant/{t}/device/{d}", IdentityError::TrustDomain)]
#[case("spiffe://fleet.example:443/tenant/{t}/device/{d}", IdentityError::TrustDomain)]
#[case("spiffe://user@fleet.example/tenant/{t}/device/{d}", IdentityError::TrustDomain)]
#[case("spiffe://flöte.example/tenant/{t}/device/{d}", IdentityError::TrustDomain)]
#[case("spiffe://fleet.example/tenant/{t}/device/{d}/", IdentityError::Path)]
#[case("spiffe://fleet.example/tenant/{t}/device/{d}/device/{d}", IdentityError::Path)]
#[case("spiffe://fleet.example//tenant/{t}/device/{d}", IdentityError::Path)]
#[case("spiffe://fleet.example/device/{d}/tenant/{t}", IdentityError::Path)]
#[case("spiffe://fleet.example/tenant/{t}/device/{D}", IdentityError::Path)]
#[case("spiffe://fleet.example/tenant/{t}/device/{s}", IdentityError::Path)]
#[case("spiffe://fleet.example/tenant/{t}/device/{{d}}", IdentityError::Path)]
#[case("spiffe://fleet.example/tenant/{t}/device/", IdentityError::Path)]
#[case("spiffe://fleet.example/tenant/{t}/device/{d}?x=1", IdentityError::Path)]
fn an_identity_has_one_spelling(#[case] template: &str, #[case] expected: IdentityError) {
    let device = "0123abcd-0000-4000-8000-00000000beef";
    let text = template
        .replace("{t}", "11111111-0000-4000-8000-000000000000")
        .replace("{d}", device)
        .replace("{D}", &device.to_uppercase())
        .replace("{s}", &device.replace('-', ""));
    assert_eq!(text.parse::<DeviceIdentity>(), Err(expected), "{text}");
}

#[test]
fn a_trust_domain_has_a_limit() {
    "x".repeat(TrustDomain::CHARS_MAX).parse::<TrustDomain>().unwrap();
    assert_eq!("x".repeat(TrustDomain::CHARS_MAX + 1).parse::<TrustDomain>(), Err(IdentityError::TrustDomain));
}

#[test]
fn no_changed_bit_changes_what_is_believed() {
    let authority = fleet::authority();
    let trust = TrustAnchor::from_pem(authority.certificate_pem().as_bytes()).unwrap();
    let der = fleet::device_certificate(&authority, &fleet::key()).to_vec();
    let original = trust.verify_device(&der, NOW).unwrap();
    let mut refused = 0;
    for byte in 0..der.len() {
        let mut changed = der.clone();
        changed[byte] ^= 1 << (byte % 8);
        // Some bits of the outermost framing are neither signed nor looked at.
        match trust.verify_device(&changed, NOW) {
            Ok(read) => assert_eq!(read, original, "byte {byte}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > der.len() - 20, "{refused} of {}", der.len());
}

#[test]
fn a_device_believes_its_own_root_and_the_present_only() {
    let (ours, theirs) = (fleet::authority(), fleet::authority());
    let trust = TrustAnchor::from_pem(ours.certificate_pem().as_bytes()).unwrap();
    let certificate = fleet::device_certificate(&ours, &fleet::key());
    assert_eq!(trust.verify_device(&certificate, fleet::AFTER_DEVICE_LIFETIME), Err(VerifyError::Expired));
    assert_eq!(trust.verify_device(&certificate, fleet::BEFORE_BACKDATE), Err(VerifyError::NotYetValid));
    let foreign = fleet::device_certificate(&theirs, &fleet::key());
    assert_eq!(trust.verify_device(&foreign, NOW), Err(VerifyError::Issuer));
    let server = fleet::server_certificate(&ours, &fleet::key());
    assert!(matches!(trust.verify_device(&server, NOW), Err(VerifyError::Certificate(_))));
}

#[test]
fn while_a_root_is_replaced_both_are_believed() {
    let (old, new) = (fleet::authority(), fleet::authority());
    let bundle = old.certificate_pem() + &new.certificate_pem();
    let trust = TrustAnchor::from_pem(bundle.as_bytes()).unwrap();
    for authority in [&old, &new] {
        trust.verify_device(&fleet::device_certificate(authority, &fleet::key()), NOW).unwrap();
    }
}

#[test]
fn a_leaf_is_no_trust_anchor() {
    let leaf = fleet::device_certificate(&fleet::authority(), &fleet::key());
    let pem = cloudlink_certs::pem::certificate_to_pem(&leaf);
    assert!(matches!(TrustAnchor::from_pem(pem.as_bytes()), Err(TrustAnchorError::NotAnAuthority)));
}
