//! A fleet to test with. Keys are random, times are fixed.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
};
use cloudlink_certs::{
    Authority, CertificateRequest, DeviceIdentity, KeyAlgorithm, PrivateKey, Serial, Validity, create_request, profile,
};
use rustls_pki_types::CertificateDer;
use time::macros::datetime;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

pub(crate) const NOW: OffsetDateTime = datetime!(2026-06-15 12:00 UTC);

pub(crate) fn key() -> PrivateKey {
    key_of(KeyAlgorithm::P256)
}

pub(crate) fn key_of(algorithm: KeyAlgorithm) -> PrivateKey {
    let ecdsa = |algorithm| EcdsaKeyPair::generate(algorithm).unwrap().to_pkcs8v1().unwrap();
    match algorithm {
        KeyAlgorithm::P256 => PrivateKey::from_pkcs8_der(ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING).as_ref()),
        KeyAlgorithm::P384 => PrivateKey::from_pkcs8_der(ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING).as_ref()),
        KeyAlgorithm::Ed25519 => {
            PrivateKey::from_pkcs8_der(Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap().as_ref())
        }
    }
    .unwrap()
}

pub(crate) fn authority() -> Authority {
    authority_with(key())
}

pub(crate) fn authority_with(key: PrivateKey) -> Authority {
    let validity = Validity::starting_at(NOW, profile::AUTHORITY_LIFETIME).unwrap();
    Authority::create(key, "Test fleet CA", Serial::from_random([1; 16]), validity).unwrap()
}

pub(crate) fn identity() -> DeviceIdentity {
    DeviceIdentity {
        trust_domain: "fleet.example".parse().unwrap(),
        tenant: Uuid::from_u128(0x1111),
        device: Uuid::from_u128(0x2222),
    }
}

pub(crate) fn request(key: &PrivateKey) -> CertificateRequest {
    CertificateRequest::from_der(&create_request(key).unwrap()).unwrap()
}

pub(crate) fn device_serial() -> Serial {
    Serial::from_random([2; 16])
}

pub(crate) fn device_validity() -> Validity {
    Validity::starting_at(NOW, profile::DEVICE_LIFETIME).unwrap()
}

pub(crate) fn device_certificate(authority: &Authority, key: &PrivateKey) -> CertificateDer<'static> {
    authority.issue_device(&request(key), &identity(), device_serial(), device_validity()).unwrap()
}

pub(crate) fn server_certificate(authority: &Authority, key: &PrivateKey) -> CertificateDer<'static> {
    let names = ["link.fleet.example", "127.0.0.1", "::1"].map(|name| name.parse().unwrap());
    let validity = Validity::starting_at(NOW, profile::SERVER_LIFETIME).unwrap();
    authority.issue_server(&key.public_key(), &names, Serial::from_random([3; 16]), validity).unwrap()
}

pub(crate) fn statement_certificate(authority: &Authority, key: &PrivateKey) -> CertificateDer<'static> {
    let validity = Validity::starting_at(NOW, profile::STATEMENT_LIFETIME).unwrap();
    let trust_domain = identity().trust_domain;
    authority.issue_statement(&key.public_key(), &trust_domain, Serial::from_random([4; 16]), validity).unwrap()
}

pub(crate) const AFTER_DEVICE_LIFETIME: OffsetDateTime = NOW.saturating_add(Duration::days(91));
pub(crate) const BEFORE_BACKDATE: OffsetDateTime = NOW.saturating_sub(Duration::minutes(6));
