//! Renewal of a certificate over the link and by polls.

use cloudlink_certs::create_request;
use cloudlink_proto::link::FromServer;
use cloudlink_proto::link::message::CertificateRequest;
use rustls_pki_types::CertificateDer;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::Port;
use super::fleet::Fleet;
use super::peer::{Credentials, Peer, new_key};

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_new_certificate_takes_over_when_it_is_first_used(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    let key = new_key();
    link.send(CertificateRequest { csr_der: create_request(&key).unwrap().into() }).await;
    let Some(FromServer::CertificateIssued(issued)) = link.next().await else { panic!("nothing was issued") };
    let states =
        format!("select string_agg(state, ' ' order by issued_at) from certificates where device_id = '{}'", device.id);
    assert_eq!(port.ask(&states).await.as_deref(), Some("active issued"));
    let certificate = CertificateDer::from(issued.chain_der[0].to_vec());
    let renewed = Peer::dial(&port, &Credentials::new(&port, &certificate, &key), "boot-1").await.unwrap();
    assert_eq!(renewed.admission.device_id.as_uuid(), device.id);
    assert_eq!(port.ask(&states).await.as_deref(), Some("superseded active"));
    let audited = "select count(*)::text from audit where action = 'certificate.renewed'";
    assert_eq!(port.ask(audited).await.as_deref(), Some("1"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_that_renews_too_often_is_told_when_to_ask_again(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    let csr_der = create_request(&new_key()).unwrap();
    // The first certificate counts as well.
    for _ in 0..5 {
        link.send(CertificateRequest { csr_der: csr_der.clone().into() }).await;
        assert!(matches!(link.next().await, Some(FromServer::CertificateIssued(_))));
    }
    link.send(CertificateRequest { csr_der: csr_der.into() }).await;
    let Some(FromServer::CertificateRefused(refused)) = link.next().await else { panic!("it was not refused") };
    assert_eq!((refused.code.as_str(), refused.retry_after_ms), ("too_many_requests", 3_600_000));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_request_that_is_none_is_refused_and_the_link_goes_on(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    for _ in 0..2 {
        link.send(CertificateRequest { csr_der: vec![0x30, 0x00].into() }).await;
        let Some(FromServer::CertificateRefused(refused)) = link.next().await else { panic!("it was not refused") };
        assert_eq!(refused.code, "csr_invalid");
    }
}
