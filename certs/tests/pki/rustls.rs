//! The judge that both ends of a link run.

use std::sync::Arc;

use cloudlink_certs::{Authority, PrivateKey};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, ConnectionCommon, Error, RootCertStore, ServerConfig,
    ServerConnection,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use time::OffsetDateTime;

use crate::fleet::{self, NOW};

fn roots(authority: &Authority) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate_der().clone()).unwrap();
    Arc::new(roots)
}

fn unix(at: OffsetDateTime) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(at.unix_timestamp().try_into().unwrap()))
}

fn judge_client(authority: &Authority, certificate: &CertificateDer<'_>, at: OffsetDateTime) -> Result<(), Error> {
    WebPkiClientVerifier::builder_with_provider(roots(authority), Arc::new(aws_lc_rs::default_provider()))
        .build()
        .unwrap()
        .verify_client_cert(certificate, &[], unix(at))
        .map(drop)
}

fn judge_server(authority: &Authority, certificate: &CertificateDer<'_>, name: &str) -> Result<(), Error> {
    WebPkiServerVerifier::builder_with_provider(roots(authority), Arc::new(aws_lc_rs::default_provider()))
        .build()
        .unwrap()
        .verify_server_cert(certificate, &[], &ServerName::try_from(name).unwrap(), &[], unix(NOW))
        .map(drop)
}

#[test]
fn a_device_certificate_is_good_for_a_client_within_its_life() {
    let authority = fleet::authority();
    let certificate = fleet::device_certificate(&authority, &fleet::key());
    judge_client(&authority, &certificate, NOW).unwrap();
    judge_client(&authority, &certificate, fleet::device_validity().not_before()).unwrap();
    judge_client(&authority, &certificate, fleet::device_validity().not_after()).unwrap();
}

#[test]
fn a_device_certificate_is_good_for_nothing_outside_its_life() {
    let authority = fleet::authority();
    let certificate = fleet::device_certificate(&authority, &fleet::key());
    let judged = judge_client(&authority, &certificate, fleet::AFTER_DEVICE_LIFETIME);
    assert!(matches!(judged, Err(Error::InvalidCertificate(CertificateError::ExpiredContext { .. }))), "{judged:?}");
    let judged = judge_client(&authority, &certificate, fleet::BEFORE_BACKDATE);
    assert!(
        matches!(judged, Err(Error::InvalidCertificate(CertificateError::NotValidYetContext { .. }))),
        "{judged:?}"
    );
}

#[test]
fn a_server_certificate_is_good_for_its_names_only() {
    let authority = fleet::authority();
    let certificate = fleet::server_certificate(&authority, &fleet::key());
    for name in ["link.fleet.example", "127.0.0.1", "::1"] {
        judge_server(&authority, &certificate, name).unwrap();
    }
    for name in ["other.fleet.example", "fleet.example", "127.0.0.2"] {
        let judged = judge_server(&authority, &certificate, name);
        assert!(
            matches!(judged, Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. }))),
            "{name}: {judged:?}"
        );
    }
}

#[test]
fn no_certificate_is_good_for_the_other_end() {
    let authority = fleet::authority();
    let server = fleet::server_certificate(&authority, &fleet::key());
    let judged = judge_client(&authority, &server, NOW);
    assert!(
        matches!(judged, Err(Error::InvalidCertificate(CertificateError::InvalidPurposeContext { .. }))),
        "{judged:?}"
    );
    let device = fleet::device_certificate(&authority, &fleet::key());
    assert!(judge_server(&authority, &device, "link.fleet.example").is_err());
}

#[test]
fn a_certificate_for_statements_is_good_for_neither_end() {
    let authority = fleet::authority();
    let certificate = fleet::statement_certificate(&authority, &fleet::key());
    for judged in [judge_client(&authority, &certificate, NOW), judge_server(&authority, &certificate, "127.0.0.1")] {
        assert!(
            matches!(judged, Err(Error::InvalidCertificate(CertificateError::InvalidPurposeContext { .. }))),
            "{judged:?}"
        );
    }
}

#[test]
fn certificates_of_another_root_of_the_same_name_are_refused() {
    let (ours, theirs) = (fleet::authority(), fleet::authority());
    let certificate = fleet::device_certificate(&theirs, &fleet::key());
    assert!(judge_client(&ours, &certificate, NOW).is_err());
    let certificate = fleet::server_certificate(&theirs, &fleet::key());
    assert!(judge_server(&ours, &certificate, "link.fleet.example").is_err());
}

#[test]
fn a_device_certificate_cannot_sign_another() {
    let authority = fleet::authority();
    let pair = rcgen::KeyPair::generate().unwrap();
    let key = PrivateKey::from_pkcs8_der(pair.serialized_der()).unwrap();
    let device = fleet::device_certificate(&authority, &key);
    let issuer = rcgen::Issuer::from_ca_cert_der(&device, pair).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let forged = params.signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer).unwrap();

    let judged =
        WebPkiClientVerifier::builder_with_provider(roots(&authority), Arc::new(aws_lc_rs::default_provider()))
            .build()
            .unwrap()
            .verify_client_cert(forged.der(), &[device], unix(NOW));
    assert!(judged.is_err());
}

#[test]
fn both_ends_prove_themselves_over_tls_13() {
    let authority = fleet::authority();
    let (server_key, device_key) = (fleet::key(), fleet::key());
    let server_certificate = fleet::server_certificate(&authority, &server_key);
    let device_certificate = fleet::device_certificate(&authority, &device_key);
    let (server, _) =
        handshake(&authority, (&server_certificate, &server_key), (&device_certificate, &device_key)).unwrap();
    assert_eq!(server.peer_certificates(), Some(&[device_certificate][..]));
}

#[test]
fn a_certificate_without_its_key_proves_nothing() {
    let authority = fleet::authority();
    let server_key = fleet::key();
    let server_certificate = fleet::server_certificate(&authority, &server_key);
    let stolen = fleet::device_certificate(&authority, &fleet::key());
    assert!(handshake(&authority, (&server_certificate, &server_key), (&stolen, &fleet::key())).is_err());
}

type Side<'a> = (&'a CertificateDer<'static>, &'a PrivateKey);

/// A whole handshake in memory, at [`NOW`].
fn handshake(
    authority: &Authority,
    server: Side<'_>,
    client: Side<'_>,
) -> Result<(ServerConnection, ClientConnection), Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let time = Arc::new(FixedTime);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority), provider.clone()).build().unwrap();
    let server_config = ServerConfig::builder_with_details(provider.clone(), time.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![server.0.clone()], server.1.as_pkcs8_der().clone_key().into())?;
    let client_config = ClientConfig::builder_with_details(provider, time)
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(authority));
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&client.1.as_pkcs8_der().clone_key().into())?;
    // Without the check that the key fits: a thief's client does not check either.
    let certified = rustls::sign::CertifiedKey::new(vec![client.0.clone()], key);
    let client_config =
        client_config.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));

    let mut server = ServerConnection::new(Arc::new(server_config))?;
    let mut client = ClientConnection::new(Arc::new(client_config), "link.fleet.example".try_into().unwrap())?;
    while server.is_handshaking() || client.is_handshaking() {
        pass(&mut client, &mut server)?;
        pass(&mut server, &mut client)?;
    }
    Ok((server, client))
}

fn pass<A, B>(from: &mut ConnectionCommon<A>, to: &mut ConnectionCommon<B>) -> Result<(), Error> {
    while from.wants_write() {
        let mut bytes = Vec::new();
        from.write_tls(&mut bytes).unwrap();
        let mut bytes = bytes.as_slice();
        while !bytes.is_empty() {
            to.read_tls(&mut bytes).unwrap();
            to.process_new_packets()?;
        }
    }
    Ok(())
}

#[derive(Debug)]
struct FixedTime;

impl rustls::time_provider::TimeProvider for FixedTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix(NOW))
    }
}
