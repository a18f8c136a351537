//! A token becomes a certificate.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use cloudlink_agent::agent::load_anchor;
use cloudlink_agent::clock::KnownTime;
use cloudlink_agent::enroll::{EnrollError, Token, enroll};
use cloudlink_agent::identity::Identity;
use cloudlink_agent::tls;

use crate::server::{Device, Fleet, NEVER, Refusal, TOKEN, TestServer, serial_in};
use crate::session::Running;

struct Enrolling {
    server: TestServer,
    device: Device,
    identity: Identity,
}

impl Enrolling {
    async fn new() -> Self {
        let server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
        let device = Device::new(&server);
        std::fs::create_dir(&device.config.state_dir).unwrap();
        let identity = Identity::load(&device.config.state_dir).unwrap();
        Self { server, device, identity }
    }

    async fn attempt(&mut self, token: &str) -> Result<(), EnrollError> {
        let file = self.device.path("token");
        std::fs::write(&file, token).unwrap();
        let anchor = load_anchor(&self.device.config).unwrap();
        let known_time = KnownTime::load(&self.device.config.state_dir, tls::authority_made(&anchor));
        let token = Token::read(&file).unwrap();
        enroll(&self.device.config.server, &anchor, &known_time, &mut self.identity, &token).await.map(|_| ())
    }
}

#[tokio::test]
async fn enrolls_and_links_with_the_certificate_also_when_the_first_answer_is_lost() {
    let mut enrolling = Enrolling::new().await;
    enrolling.server.refuse_next(Refusal::LoseAnswer);
    let lost = enrolling.attempt(TOKEN).await.unwrap_err();
    assert!(lost.is_retryable(), "{lost:?}");
    // As after a crash: the key is read from the disk again.
    enrolling.identity = Identity::load(&enrolling.device.config.state_dir).unwrap();
    enrolling.attempt(TOKEN).await.unwrap();
    let current = enrolling.device.slot("current");
    assert_eq!(std::fs::metadata(&current).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!enrolling.device.config.state_dir.join("enroll-key.pem").exists());

    let agent = Running::start(&enrolling.device);
    assert_eq!(enrolling.server.link().await.certificate.serial, serial_in(&current));
    agent.stop().await;
}

#[tokio::test]
async fn a_token_that_will_not_do_is_final_and_an_overloaded_server_is_not() {
    let mut enrolling = Enrolling::new().await;
    let refused = enrolling.attempt("cle_wrong").await.unwrap_err();
    assert!(!refused.is_retryable());
    assert_eq!(refused.to_string(), "the server answered 403 Forbidden: this token will not do [forbidden]");
    assert!(!enrolling.identity.is_enrolled());

    let headers = "retry-after: 9\r\n";
    enrolling.server.refuse_next(Refusal::Http { status: "503 Service Unavailable", headers, body: "" });
    let later = enrolling.attempt(TOKEN).await.unwrap_err();
    assert_eq!((later.is_retryable(), later.retry_after()), (true, Some(Duration::from_secs(9))));
}
