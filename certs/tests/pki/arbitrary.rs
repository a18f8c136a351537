//! No bytes of a peer make a parser panic.

use std::sync::LazyLock;

use cloudlink_certs::pem::certificates_from_pem;
use cloudlink_certs::{
    CertificateRequest, DeviceCertificate, DeviceIdentity, PrivateKey, PublicKey, ServerName, StatementCertificate,
    StatementKind, TrustAnchor, create_request,
};
use proptest::prelude::*;
use uuid::Uuid;

use crate::fleet::{self, NOW};

static CERTIFICATE: LazyLock<(TrustAnchor, Vec<u8>)> = LazyLock::new(|| {
    let authority = fleet::authority();
    let trust = TrustAnchor::from_pem(authority.certificate_pem().as_bytes()).unwrap();
    (trust, fleet::device_certificate(&authority, &fleet::key()).to_vec())
});
static REQUEST: LazyLock<Vec<u8>> = LazyLock::new(|| create_request(&fleet::key()).unwrap());

/// Bytes that overwrite, cut or lengthen something well-formed: deeper in than random bytes ever get.
fn mangle(mut der: Vec<u8>, edits: &[(usize, u8)], cut: usize, tail: &[u8]) -> Vec<u8> {
    for &(at, byte) in edits {
        let len = der.len();
        der[at % len] = byte;
    }
    der.truncate(der.len() - cut % der.len());
    der.extend_from_slice(tail);
    der
}

proptest! {
    #[test]
    fn arbitrary_statements_are_refused_without_panic(
        text in any::<String>(), header in any::<String>(), content in any::<String>(), signature in "[A-Za-z0-9_-]{0,90}",
    ) {
        let part = |text: &str| data_encoding::BASE64URL_NOPAD.encode(text.as_bytes());
        for text in [text, format!("{}.{}.{signature}", part(&header), part(&content))] {
            prop_assert!(CERTIFICATE.0.verify_statement(StatementKind::Isolation, &text).is_err());
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        prop_assert!(DeviceCertificate::parse(&bytes).is_err());
        prop_assert!(StatementCertificate::parse(&bytes).is_err());
        prop_assert!(CertificateRequest::from_der(&bytes).is_err());
        prop_assert!(CertificateRequest::from_pem(&bytes).is_err());
        prop_assert!(PublicKey::from_der(&bytes).is_err());
        prop_assert!(PrivateKey::from_pkcs8_der(&bytes).is_err());
        prop_assert!(PrivateKey::from_pem(&bytes).is_err());
        prop_assert!(TrustAnchor::from_pem(&bytes).is_err());
        let _ = certificates_from_pem(&bytes);
    }

    #[test]
    fn mangled_certificates_and_requests_say_nothing_new(
        edits in prop::collection::vec((any::<usize>(), any::<u8>()), 0..8),
        cut in prop_oneof![Just(0), any::<usize>()],
        tail in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        let (trust, certificate) = &*CERTIFICATE;
        let mangled = mangle(certificate.clone(), &edits, cut, &tail);
        let _ = DeviceCertificate::parse(&mangled);
        if let Ok(read) = trust.verify_device(&mangled, NOW) {
            prop_assert_eq!(read, DeviceCertificate::parse(certificate).unwrap());
        }
        let mangled = mangle(REQUEST.clone(), &edits, cut, &tail);
        if let Ok(request) = CertificateRequest::from_der(&mangled) {
            prop_assert_eq!(request, CertificateRequest::from_der(&REQUEST).unwrap());
        }
    }

    #[test]
    fn arbitrary_texts_are_refused_without_panic(text: String) {
        prop_assert!(text.parse::<DeviceIdentity>().is_err());
        let _ = text.parse::<ServerName>();
    }

    #[test]
    fn an_identity_is_read_as_it_is_written(domain in "[a-z0-9._-]{1,255}", tenant: u128, device: u128) {
        let identity = DeviceIdentity {
            trust_domain: domain.parse().unwrap(),
            tenant: Uuid::from_u128(tenant),
            device: Uuid::from_u128(device),
        };
        prop_assert_eq!(identity.to_string().parse::<DeviceIdentity>(), Ok(identity));
    }
}
