//! Revocation lists as rustls takes them.

use std::sync::Arc;

use cloudlink_certs::{Authority, Revocation, RevocationListError, RevocationReason};
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, Error, RootCertStore};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use time::{Duration, OffsetDateTime};

use crate::fleet::{self, NOW};

fn revocation(serial: &[u8]) -> Revocation {
    Revocation { serial: serial.to_vec(), revoked_at: NOW, reason: RevocationReason::Unspecified }
}

fn judge(
    authority: &Authority,
    certificate: &CertificateDer<'_>,
    list: CertificateRevocationListDer<'static>,
    at: OffsetDateTime,
) -> Result<(), Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate_der().clone()).unwrap();
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(at.unix_timestamp().try_into().unwrap()));
    WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::new(aws_lc_rs::default_provider()))
        .with_crls([list])
        .enforce_revocation_expiration()
        .build()
        .unwrap()
        .verify_client_cert(certificate, &[], at)
        .map(drop)
}

#[test]
fn a_listed_certificate_is_refused_and_the_others_are_not() {
    let authority = fleet::authority();
    let certificate = fleet::device_certificate(&authority, &fleet::key());
    let list = |entries: &[Revocation]| authority.issue_revocation_list(1, entries, NOW, NOW + Duration::DAY).unwrap();
    judge(&authority, &certificate, list(&[]), NOW).unwrap();
    judge(&authority, &certificate, list(&[revocation(b"another serial")]), NOW).unwrap();
    let listed = list(&[revocation(b"another serial"), revocation(fleet::device_serial().as_bytes())]);
    assert_eq!(judge(&authority, &certificate, listed, NOW), Err(Error::InvalidCertificate(CertificateError::Revoked)));
}

#[test]
fn a_list_past_its_next_update_is_not_believed() {
    let authority = fleet::authority();
    let certificate = fleet::device_certificate(&authority, &fleet::key());
    let list = authority.issue_revocation_list(1, &[], NOW, NOW + Duration::DAY).unwrap();
    let judged = judge(&authority, &certificate, list, NOW + Duration::DAY * 2);
    assert!(
        matches!(judged, Err(Error::InvalidCertificate(CertificateError::ExpiredRevocationListContext { .. }))),
        "{judged:?}"
    );
}

#[test]
fn a_list_of_another_root_does_not_count() {
    let (ours, theirs) = (fleet::authority(), fleet::authority());
    let certificate = fleet::device_certificate(&ours, &fleet::key());
    let list = theirs.issue_revocation_list(1, &[], NOW, NOW + Duration::DAY).unwrap();
    let judged = judge(&ours, &certificate, list, NOW);
    assert!(matches!(judged, Err(Error::InvalidCertRevocationList(_))), "{judged:?}");
}

#[test]
fn refuses_what_a_list_cannot_express() {
    let authority = fleet::authority();
    let issue = |entries: &[Revocation], next_update| authority.issue_revocation_list(1, entries, NOW, next_update);
    assert!(matches!(issue(&[], NOW), Err(RevocationListError::Time)));
    let later = NOW + Duration::DAY;
    for serial in [&[][..], &[0, 0], &[1; 21]] {
        assert!(matches!(issue(&[revocation(serial)], later), Err(RevocationListError::Serial)), "{serial:?}");
    }
    let mut long_ago = revocation(b"serial");
    long_ago.revoked_at = OffsetDateTime::UNIX_EPOCH - Duration::DAY;
    assert!(matches!(issue(&[long_ago], later), Err(RevocationListError::Time)));
}
