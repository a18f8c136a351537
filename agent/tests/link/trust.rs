//! Which servers are trusted, and at what time that is judged.

use std::sync::Arc;
use std::time::Duration;

use cloudlink_agent::agent::load_anchor;
use cloudlink_agent::busy::Busy;
use cloudlink_agent::dial::{self, DialError, Route, Traffic};
use cloudlink_agent::identity::{Identity, Slot};
use cloudlink_agent::link::Link;
use cloudlink_agent::tls::{self, Bounds};
use cloudlink_agent::{machine, poll};
use cloudlink_certs::Validity;
use cloudlink_proto::link::message::BootHint;
use rstest::rstest;
use rustls::HandshakeKind;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::server::{Device, Fleet, NEVER, TestServer, in_days};

async fn secured(server: &TestServer, device: &Device, bounds: Bounds) -> Result<(), DialError> {
    let anchor = load_anchor(&device.config).unwrap();
    let client = tls::Client::new(&anchor, None, bounds).unwrap();
    assert_eq!(device.config.server.address, Some(server.address));
    dial::secure(&device.config.server, &device.config.server.enroll_name, &client, Traffic::Sparse).await.map(|_| ())
}

fn no_bounds() -> Bounds {
    Bounds { earliest: OffsetDateTime::UNIX_EPOCH, own_end: None }
}

fn tls_fault(secured: Result<(), DialError>) -> String {
    match secured {
        Err(DialError::Tls { source, .. }) => source.to_string(),
        other => panic!("expected TLS to fail, got {other:?}"),
    }
}

#[tokio::test]
async fn a_server_of_another_fleet_or_name_is_never_trusted() {
    let server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    let mut device = Device::new(&server);
    secured(&server, &device, no_bounds()).await.unwrap();

    let name = std::mem::replace(&mut device.config.server.enroll_name, "other.test".try_into().unwrap());
    assert!(tls_fault(secured(&server, &device, no_bounds()).await).contains("not valid for name"));
    device.config.server.enroll_name = name;

    let stranger = Device::new(&TestServer::start(Arc::new(Fleet::new()), NEVER).await);
    device = Device { config: device.config, ..stranger };
    device.config.server.ca_file = device.path("ca.pem");
    // Also not when the device's clock is proven wrong.
    for earliest in [OffsetDateTime::UNIX_EPOCH, in_days(1)] {
        let bounds = Bounds { earliest, own_end: None };
        let said = tls_fault(secured(&server, &device, bounds).await);
        // The other fleet's authority has the same name and another key.
        assert!(said.contains("BadSignature"), "{said}");
    }
}

#[rstest]
#[case::valid(-1, 30, None, None)]
#[case::expired(-30, -1, None, Some("expired"))]
#[case::not_yet_valid(1, 30, None, Some("not valid yet"))]
#[case::clock_behind_the_known_time(100, 190, Some(150), None)]
#[case::clock_behind_and_the_server_renewed(100, 190, Some(50), None)]
#[case::expired_by_the_known_time(-1, 100, Some(150), Some("expired"))]
#[tokio::test]
async fn the_servers_certificate_is_judged_at_a_time_that_can_be(
    #[case] begins_in_days: i64,
    #[case] ends_in_days: i64,
    #[case] earliest_in_days: Option<i64>,
    #[case] fault: Option<&str>,
) {
    let validity = Validity::new(in_days(begins_in_days), in_days(ends_in_days)).unwrap();
    let server = TestServer::start_with(Arc::new(Fleet::new()), NEVER, validity).await;
    let device = Device::new(&server);
    let earliest = earliest_in_days.map_or(OffsetDateTime::UNIX_EPOCH, in_days);
    let secured = secured(&server, &device, Bounds { earliest, own_end: None }).await;
    match fault {
        None => secured.unwrap(),
        Some(fault) => {
            let said = tls_fault(secured);
            assert!(said.contains(fault), "{said:?} does not say {fault:?}");
        }
    }
}

#[tokio::test]
async fn a_clock_beyond_the_devices_own_certificate_is_not_believed() {
    let validity = Validity::new(in_days(-90), in_days(-1)).unwrap();
    let server = TestServer::start_with(Arc::new(Fleet::new()), NEVER, validity).await;
    let device = Device::new(&server);
    let bounds = Bounds { earliest: in_days(-60), own_end: Some(in_days(-30)) };
    secured(&server, &device, bounds).await.expect("the clock is ahead: the certificate was valid when last proven");
    let bounds = Bounds { earliest: in_days(-60), own_end: Some(in_days(30)) };
    assert!(tls_fault(secured(&server, &device, bounds).await).contains("expired"), "the clock is plausible");
}

#[tokio::test]
async fn the_server_of_a_resumed_session_is_judged_again() {
    let validity = Validity::new(in_days(-1), in_days(30)).unwrap();
    let server = TestServer::start_with(Arc::new(Fleet::new()), NEVER, validity).await;
    let device = Device::new(&server);
    let (server, name) = (&device.config.server, &device.config.server.enroll_name);
    let client = tls::Client::new(&load_anchor(&device.config).unwrap(), None, no_bounds()).unwrap();
    let mut first = dial::secure(server, name, &client, Traffic::Sparse).await.unwrap();
    assert_eq!(first.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    // The tickets are before the server's answer, whatever that is.
    first.write_all(b"no request\r\n\r\n").await.unwrap();
    let _ = first.read_to_end(&mut Vec::new()).await;

    let second = dial::secure(server, name, &client, Traffic::Sparse).await.unwrap();
    assert_eq!(second.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
    let chain = second.get_ref().1.peer_certificates().unwrap();
    client.verify_again(chain, name).unwrap();
    let other = "other.test".try_into().unwrap();
    assert!(client.verify_again(chain, &other).unwrap_err().to_string().contains("not valid for name"));
    // Two months later.
    client.judge_by(Bounds { earliest: in_days(60), own_end: None });
    assert!(client.verify_again(chain, name).unwrap_err().to_string().contains("expired"));
    let secured = dial::secure(server, name, &client, Traffic::Sparse).await.map(|_| ());
    assert!(tls_fault(secured).contains("expired"));
}

/// Until the server has proven itself, an alert is anybody's who is on the way: it would keep a device away for a quarter of an hour.
#[tokio::test]
async fn only_the_servers_own_alert_is_a_refusal() {
    let server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    let mut device = Device::enrolled(&server, time::Duration::days(10), time::Duration::days(5));
    let identity = Identity::load(&device.config.state_dir).unwrap();
    assert_eq!(is_refused(&device, &identity).await, (true, true), "the certificate has ended");

    let forger = TcpListener::bind("127.0.0.1:0").await.unwrap();
    device.config.server.address = Some(forger.local_addr().unwrap());
    let forging = tokio::spawn(async move {
        loop {
            let (mut stream, _) = forger.accept().await.unwrap();
            let mut greeting = [0; 16];
            stream.read_exact(&mut greeting).await.unwrap();
            // A fatal alert: certificate_revoked.
            stream.write_all(&[21, 3, 3, 0, 2, 2, 44]).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    assert_eq!(is_refused(&device, &identity).await, (false, false));
    forging.abort();
}

/// A link, and a poll.
async fn is_refused(device: &Device, identity: &Identity) -> (bool, bool) {
    let anchor = load_anchor(&device.config).unwrap();
    let tls = tls::Client::new(&anchor, identity.slot(Slot::Current), no_bounds()).unwrap();
    let route = || Route::Direct { server: Box::new(device.config.server.clone()), tls: tls.clone() };
    let busy = Busy::load(&device.config.state_dir, Duration::from_secs(3600));
    let hello = || machine::hello("boot-1", BootHint::Unspecified, &[], &[], &busy, None);
    let link = Link::open(route(), hello()).await.unwrap_err();
    let polled =
        poll::exchange(route(), poll::request(hello(), Duration::from_secs(900)), Vec::new()).await.unwrap_err();
    (link.is_refusal(), polled.is_refusal())
}
