//! How people outside are told of what happens: webhooks over real HTTPS, mail over a real mail server, with everything that goes
//! wrong at the other end.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cloudlink_proto::ids::TenantId;
use cloudlink_tests::api::{Api, text};
use cloudlink_tests::clock;
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::load::fleet::{Fleet as Keys, ServerCredential, new_authority};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::port;
use cloudlink_tests::receiver::{Behaviour, Receiver, Request};
use cloudlink_tests::server::Settings;
use cloudlink_tests::smtp::{self, Mail, MailServer};
use cloudlink_tests::traffic::metric;
use reqwest::Method;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(30);
/// Until a lease of a node that died is over, and the first attempt after that.
const LEASE_LIMIT: Duration = Duration::from_secs(60);

/// An authority that receivers and the mail server have their certificates of, and the server trusts.
struct World {
    directory: TempDir,
    keys: Keys,
}

impl World {
    fn new() -> anyhow::Result<Self> {
        let now = clock::now();
        let authority = new_authority(now)?;
        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("ca.pem"), authority.certificate_pem())?;
        let tenant = TenantId::from_uuid(Uuid::nil());
        let keys = Keys::issue(authority, &"cloudlink.test".parse()?, tenant, 0, now)?;
        Ok(Self { directory, keys })
    }

    fn ca_file(&self) -> std::path::PathBuf {
        self.directory.path().join("ca.pem")
    }

    fn credential(&self) -> anyhow::Result<ServerCredential> {
        self.keys.issue_server(clock::now())
    }

    async fn receiver(&self, behaviour: Behaviour) -> anyhow::Result<Receiver> {
        self.receiver_at(port::free()?, behaviour).await
    }

    async fn receiver_at(&self, address: SocketAddr, behaviour: Behaviour) -> anyhow::Result<Receiver> {
        let credential = self.credential()?;
        let certificate = CertificateDer::from_pem_slice(credential.certificate_pem.as_bytes())?;
        let key = PrivateKeyDer::Pkcs8(credential.key.as_pkcs8_der().clone_key());
        Receiver::start(address, certificate, key, behaviour).await
    }

    async fn mail_server(&self, mode: &str) -> anyhow::Result<MailServer> {
        self.mail_server_in(self.directory.path(), mode).await
    }

    async fn mail_server_in(&self, directory: &Path, mode: &str) -> anyhow::Result<MailServer> {
        let credential = self.credential()?;
        let directory = directory.join(format!("mail-{mode}"));
        MailServer::start(&directory, mode, &credential.certificate_pem, &credential.key.to_pem()).await
    }

    /// A server that may send webhooks to this host, and gives a receiver two seconds.
    fn settings(&self, more: &[String]) -> Settings {
        let mut set = vec![
            "notice.webhook_private=true".to_owned(),
            format!("notice.webhook_ca_file={}", self.ca_file().display()),
            "notice.attempt_timeout_seconds=2".to_owned(),
        ];
        set.extend_from_slice(more);
        Settings { set, ..Settings::default() }
    }

    fn mail_settings(&self, server: &MailServer, mode: &str) -> Settings {
        let mut set = vec![
            "notice.mail_host=localhost".to_owned(),
            format!("notice.mail_port={}", server.address.port()),
            format!("notice.mail_tls={mode}"),
            format!("notice.mail_ca_file={}", self.ca_file().display()),
            "notice.mail_from=Cloudlink <cloudlink@example.com>".to_owned(),
        ];
        if mode != "none" {
            set.extend([
                format!("notice.mail_user={}", smtp::USER),
                format!("notice.mail_password={}", smtp::PASSWORD),
            ]);
        }
        self.settings(&set)
    }
}

struct Hook {
    id: String,
    secret: String,
}

impl Hook {
    async fn new(api: &Api, url: &str) -> anyhow::Result<Self> {
        let made = api.post("/webhooks", &json!({ "url": url })).await?;
        Ok(Self { id: text(&made, "id")?, secret: text(&made, "secret")? })
    }

    async fn deliveries(&self, api: &Api) -> anyhow::Result<Vec<Value>> {
        let page = api.get(&format!("/webhooks/{}/deliveries?limit=200", self.id)).await?;
        Ok(page["items"].as_array().context("no list")?.clone())
    }

    /// Waits until the newest delivery is so.
    async fn newest(&self, api: &Api, what: &str, is_so: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        wait_for(what, LIMIT, async || {
            let newest = self.deliveries(api).await?.first().cloned().context("nothing was to be sent")?;
            ensure!(is_so(&newest), "{newest}");
            Ok(newest)
        })
        .await
    }
}

/// Lets operators in, and gives back the grant's id.
async fn grant(fleet: &Fleet) -> anyhow::Result<String> {
    let body = json!({"reason": "maintenance", "scopes": ["device:reboot"], "selector": {"site": "north"},
                      "duration_seconds": 900});
    text(&fleet.tenant.post("/grants", &body).await?, "id")
}

async fn requests(receiver: &Receiver, count: usize, limit: Duration) -> anyhow::Result<Vec<Request>> {
    wait_for("requests to a receiver", limit, async || {
        let requests = receiver.requests();
        ensure!(requests.len() >= count, "{} of {count}", requests.len());
        Ok(requests)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_down_or_fails_gets_each_event_under_one_id_when_it_works_again() -> anyhow::Result<()> {
    let world = World::new()?;
    let fleet = Fleet::start_with(&world.settings(&[])).await?;
    let address = port::free()?;
    let hook = Hook::new(&fleet.tenant, &format!("https://localhost:{}/hook?key=1", address.port())).await?;
    let vendor_receiver = world.receiver(Behaviour::Answer(204)).await?;
    let vendor = Hook::new(&fleet.admin, &vendor_receiver.url("/vendor")).await?;
    let id = grant(&fleet).await?;

    // Nobody is there.
    let tried =
        |delivery: &Value| delivery["attempts"].as_u64().unwrap_or(0) >= 1 && !delivery["last_result"].is_null();
    let waiting = hook.newest(&fleet.tenant, "a failed attempt", tried).await?;
    ensure!(waiting["state"] == "waiting" && waiting["last_result"] == "cannot connect", "{waiting}");
    let shown = fleet.tenant.get(&format!("/webhooks/{}", hook.id)).await?;
    ensure!(shown["failing_since"].is_string(), "{shown}");

    // It is there, and fails; then it works.
    let receiver = world.receiver_at(address, Behaviour::Answer(503)).await?;
    requests(&receiver, 1, LIMIT).await?;
    receiver.behave(Behaviour::Answer(200));
    hook.newest(&fleet.tenant, "a delivery", |delivery| delivery["state"] == "delivered").await?;
    let requests = receiver.requests();
    for request in &requests {
        let event = request.verified(&hook.secret)?;
        ensure!(request.path == "/hook?key=1" && request.header("content-type")? == "application/json", "{request:?}");
        ensure!(request.header("webhook-id")? == waiting["id"], "{request:?}");
        ensure!(event["type"] == "grant.created" && event["data"]["id"] == json!(id), "{event}");
        ensure!(event["tenant_id"] == json!(fleet.tenant_id), "{event}");
        ensure!(request.verified(&vendor.secret).is_err(), "signed for another webhook");
        let mut changed = request.clone();
        changed.body[20] ^= 1;
        ensure!(changed.verified(&hook.secret).is_err(), "a changed body");
    }
    let shown = fleet.tenant.get(&format!("/webhooks/{}", hook.id)).await?;
    ensure!(shown["failing_since"].is_null(), "{shown}");

    // The vendor's own heard of it, once.
    let told = vendor_receiver.requests();
    ensure!(told.len() == 1, "{told:?}");
    ensure!(told[0].verified(&vendor.secret)?["tenant_id"] == json!(fleet.tenant_id), "{told:?}");
    let (status, metrics) = fleet.server.operations("/metrics").await?;
    ensure!(status == 200 && metric(&metrics, "cloudlink_notices_total", "delivered")? >= 2.0, "{metrics}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_hangs_holds_up_nobody_else() -> anyhow::Result<()> {
    const EVENTS: usize = 12;
    let world = World::new()?;
    let fleet = Fleet::start_with(&world.settings(&[])).await?;
    let (hanging, endless) = (world.receiver(Behaviour::Hang).await?, world.receiver(Behaviour::Endless).await?);
    let slow = world.receiver(Behaviour::Slow(Duration::from_millis(300))).await?;
    let quick = world.receiver(Behaviour::Answer(200)).await?;
    let hung = Hook::new(&fleet.tenant, &hanging.url("/")).await?;
    for receiver in [&endless, &slow, &quick] {
        Hook::new(&fleet.tenant, &receiver.url("/")).await?;
    }
    let began = Instant::now();
    for _ in 0..EVENTS {
        grant(&fleet).await?;
    }
    let granted_after = began.elapsed();
    requests(&quick, EVENTS, LIMIT).await?;
    let quick_after = began.elapsed();
    // One attempt at the one that hangs takes two seconds, and it has four places.
    ensure!(quick_after < granted_after + Duration::from_secs(2), "{granted_after:?}, {quick_after:?}");
    requests(&slow, EVENTS, LIMIT).await?;
    // A body that does not end is not read.
    requests(&endless, EVENTS, LIMIT).await?;
    let timed_out = |delivery: &Value| delivery["last_result"] == "timed out";
    hung.newest(&fleet.tenant, "an attempt that took too long", timed_out).await?;
    let ids: HashSet<_> = quick.requests().iter().map(|request| request.headers["webhook-id"].clone()).collect();
    ensure!(ids.len() == EVENTS && quick.requests().len() == EVENTS, "each once: {ids:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_webhook_leads_anywhere_else_than_it_says() -> anyhow::Result<()> {
    let world = World::new()?;
    let fleet = Fleet::start_with(&world.settings(&[])).await?;
    // A redirect is not followed, and is no delivery.
    let elsewhere = world.receiver(Behaviour::Answer(200)).await?;
    let line = format!("Location: {}", elsewhere.url("/secret"));
    let receiver = world.receiver(Behaviour::AnswerWith(307, line)).await?;
    let hook = Hook::new(&fleet.tenant, &receiver.url("/")).await?;
    let trial = fleet.tenant.post(&format!("/webhooks/{}/test", hook.id), &json!({})).await?;
    let failed = hook.newest(&fleet.tenant, "the end of a trial", |delivery| delivery["state"] == "failed").await?;
    ensure!(failed["id"] == trial["id"] && failed["last_result"] == "307", "{failed}");
    ensure!(elsewhere.requests().is_empty(), "the redirect was followed");

    // Nor does any lead to the server itself, by whatever name.
    for port in [fleet.server.operations.port(), fleet.server.people.port(), fleet.server.device.port()] {
        let hook = Hook::new(&fleet.tenant, &format!("https://localhost:{port}/")).await?;
        fleet.tenant.post(&format!("/webhooks/{}/test", hook.id), &json!({})).await?;
        let failed = hook.newest(&fleet.tenant, "the end of a trial", |delivery| delivery["state"] == "failed").await?;
        ensure!(failed["last_result"] == "the address is not allowed", "{failed}");
        let body = json!({"url": format!("https://127.0.0.1:{port}/")});
        let refused = fleet.tenant.call(Method::POST, "/webhooks", &[], Some(&body)).await?;
        ensure!(refused.problem() == "unprocessable", "{refused:?}");
    }

    // A certificate of somebody else, or for another name, is not trusted.
    let stranger = World::new()?.receiver(Behaviour::Answer(200)).await?;
    for url in [stranger.url("/"), receiver.url("/").replace("localhost", "127.0.0.2")] {
        let hook = Hook::new(&fleet.tenant, &url).await?;
        fleet.tenant.post(&format!("/webhooks/{}/test", hook.id), &json!({})).await?;
        hook.newest(&fleet.tenant, "the end of a trial", |delivery| delivery["state"] == "failed").await?;
    }
    ensure!(stranger.requests().is_empty(), "an untrusted receiver was told");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_leave_no_webhook_leads_into_the_network() -> anyhow::Result<()> {
    let world = World::new()?;
    let ca = format!("notice.webhook_ca_file={}", world.ca_file().display());
    let fleet = Fleet::start_with(&Settings { set: vec![ca], ..Settings::default() }).await?;
    let receiver = world.receiver(Behaviour::Answer(200)).await?;
    // The name is judged by what it resolves to, when something is sent.
    let hook = Hook::new(&fleet.tenant, &receiver.url("/")).await?;
    fleet.tenant.post(&format!("/webhooks/{}/test", hook.id), &json!({})).await?;
    let failed = hook.newest(&fleet.tenant, "the end of a trial", |delivery| delivery["state"] == "failed").await?;
    ensure!(failed["last_result"] == "the address is not allowed", "{failed}");
    ensure!(receiver.requests().is_empty(), "it was called");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_granted_is_told_though_the_server_is_killed_before_it_is_sent() -> anyhow::Result<()> {
    let world = World::new()?;
    let mut fleet = Fleet::start_with(&world.settings(&["notice.attempt_timeout_seconds=1".to_owned()])).await?;
    let receiver = world.receiver(Behaviour::Hang).await?;
    let hook = Hook::new(&fleet.tenant, &receiver.url("/")).await?;
    let id = grant(&fleet).await?;
    // In the middle of an attempt.
    requests(&receiver, 1, LIMIT).await?;
    fleet.server.kill()?;
    receiver.behave(Behaviour::Answer(200));
    fleet.server.start_again().await?;
    let requests = requests(&receiver, 2, LEASE_LIMIT).await?;
    let (first, second) = (&requests[0], &requests[1]);
    ensure!(first.header("webhook-id")? == second.header("webhook-id")?, "a double is known by its id");
    ensure!(second.verified(&hook.secret)?["data"]["id"] == json!(id), "{second:?}");
    hook.newest(&fleet.tenant, "a delivery", |delivery| delivery["state"] == "delivered").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_makes_tries_rotates_and_disables_a_webhook_from_the_command_line() -> anyhow::Result<()> {
    let world = World::new()?;
    let fleet = Fleet::start_with(&world.settings(&[])).await?;
    let receiver = world.receiver(Behaviour::Answer(200)).await?;
    let tenant = fleet.cli(fleet.tenant.token());
    let made = tenant.run(&["webhook", "create", &receiver.url("/hook"), "--event", "grant.revoked"]).await?;
    ensure!(made.code == Some(0) && made.stdout.starts_with("whsec_"), "{made:?}");
    let first = made.stdout.trim();
    let listed = tenant.json(&["webhook", "list"]).await?;
    let id = text(&listed[0], "id")?;
    ensure!(listed[0]["events"] == json!(["grant.revoked"]), "{listed}");

    let tried = tenant.run(&["webhook", "test", &id]).await?;
    ensure!(tried.code == Some(0) && tried.stdout.contains("delivered"), "{tried:?}");
    ensure!(receiver.requests()[0].verified(first)?["type"] == "webhook.test", "{:?}", receiver.requests());

    // Both secrets sign for a while.
    let rotated = tenant.run(&["webhook", "rotate", &id]).await?;
    let second = rotated.stdout.trim();
    let granted = grant(&fleet).await?;
    fleet.tenant.post(&format!("/grants/{granted}/revoke"), &json!({})).await?;
    let revoked = requests(&receiver, 2, LIMIT).await?.remove(1);
    ensure!(first != second, "{rotated:?}");
    for secret in [first, second] {
        ensure!(revoked.verified(secret)?["type"] == "grant.revoked", "it asks for no other event");
    }

    // A trial that fails says so, and why.
    receiver.behave(Behaviour::Answer(500));
    let failed = tenant.run(&["webhook", "test", &id]).await?;
    ensure!(failed.code == Some(1) && failed.stdout.contains("500"), "{failed:?}");
    let deliveries = tenant.json(&["webhook", "deliveries", &id]).await?;
    ensure!(deliveries.as_array().is_some_and(|all| all.len() == 3), "{deliveries}");

    // One that is gone is not asked again.
    receiver.behave(Behaviour::Answer(410));
    let granted = grant(&fleet).await?;
    fleet.tenant.post(&format!("/grants/{granted}/revoke"), &json!({})).await?;
    wait_for("a webhook that is disabled", LIMIT, async || {
        let shown = tenant.json(&["webhook", "show", &id]).await?;
        ensure!(shown["disabled_at"].is_string(), "{shown}");
        Ok(())
    })
    .await?;
    let audit = fleet.tenant.get("/audit?limit=200").await?;
    ensure!(audit.to_string().contains("webhook.disabled") && !audit.to_string().contains("whsec_"), "{audit}");
    let disabled = tenant.run(&["webhook", "disable", &id]).await?;
    ensure!(disabled.code == Some(0), "{disabled:?}");
    Ok(())
}

/// The customer's user gets mail from now on.
async fn subscribe(fleet: &Fleet, address: &str) -> anyhow::Result<()> {
    let set = fleet.cli(fleet.tenant.token()).json(&["person", "email", "me", address]).await?;
    ensure!(set["email"] == json!(address), "{set}");
    Ok(())
}

async fn mail(server: &MailServer, count: usize) -> anyhow::Result<Vec<Mail>> {
    wait_for("mail", LIMIT, async || {
        let messages = server.messages()?;
        ensure!(messages.len() >= count, "{} of {count}", messages.len());
        Ok(messages)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn people_get_mail_over_tls_with_a_password() -> anyhow::Result<()> {
    for mode in ["starttls", "tls"] {
        let world = World::new()?;
        let server = world.mail_server(mode).await?;
        let fleet = Fleet::start_with(&world.mail_settings(&server, mode)).await?;
        subscribe(&fleet, "tina@example.com").await?;
        // The mail server has no room at first.
        server.answer("451 try again later")?;
        let id = grant(&fleet).await?;
        wait_for("an attempt", LIMIT, async || {
            ensure!(server.attempts("tina@example.com")? >= 1, "none yet");
            Ok(())
        })
        .await?;
        server.answer("")?;
        let message = mail(&server, 1).await?.remove(0);
        ensure!(message.is_tls && message.is_authenticated, "{message:?}");
        ensure!(message.from == "cloudlink@example.com" && message.to == ["tina@example.com"], "{message:?}");
        ensure!(message.header("To")? == "\"customer user\" <tina@example.com>", "{message:?}");
        ensure!(message.header("Subject")? == "[Cloudlink] customer: access was granted", "{message:?}");
        ensure!(message.header("Auto-Submitted")? == "auto-generated", "{message:?}");
        ensure!(message.header("Content-Type")?.starts_with("text/plain"), "{message:?}");
        let sender = message.header("Message-ID")?;
        let notice = sender.trim_start_matches('<').trim_end_matches("@example.com>").parse::<Uuid>();
        ensure!(notice.is_ok(), "{message:?}");
        ensure!(message.text.contains(&id) && message.text.contains(" UTC\r\n"), "{message:?}");
        ensure!(message.text.contains("maintenance"), "{message:?}");
        ensure!(!fleet.server.log_text()?.contains(smtp::PASSWORD), "the password is in the log");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_writes_no_headers_and_an_unknown_mailbox_is_not_tried_again() -> anyhow::Result<()> {
    let world = World::new()?;
    let server = world.mail_server("none").await?;
    let fleet = Fleet::start_with(&world.mail_settings(&server, "none")).await?;
    let names = [
        "\"><all@example.com>, x",
        "all@example.com,",
        "Ωmega; all@example.com",
        "=?utf-8?q?=0D=0ABcc:all@example.com?=",
    ];
    for (number, name) in names.into_iter().enumerate() {
        let body = json!({"name": name, "role": "tenant", "tenant_id": fleet.tenant_id});
        let id = text(&fleet.admin.post("/people", &body).await?, "id")?;
        let email = json!({"email": format!("person{number}@example.com")});
        fleet.admin.call(Method::PUT, &format!("/people/{id}/email"), &[], Some(&email)).await?.success()?;
    }
    grant(&fleet).await?;
    let messages = mail(&server, names.len()).await?;
    let mut receivers = HashSet::new();
    for message in &messages {
        let [to] = &message.to[..] else { anyhow::bail!("several receivers: {message:?}") };
        ensure!(to.starts_with("person") && receivers.insert(to.clone()), "{message:?}");
        ensure!(message.header("To")?.ends_with(&format!("<{to}>")), "{message:?}");
        let (head, _) = message.text.split_once("\r\n\r\n").context("no head")?;
        for line in head.split("\r\n") {
            let name = line.split(':').next().unwrap_or_default();
            ensure!(!name.eq_ignore_ascii_case("bcc") && !name.eq_ignore_ascii_case("cc"), "{message:?}");
        }
    }
    ensure!(receivers.len() == names.len(), "{receivers:?}");

    server.answer("550 no such user here")?;
    grant(&fleet).await?;
    wait_for("mail that is given up", LIMIT, async || {
        let (_, metrics) = fleet.server.operations("/metrics").await?;
        ensure!(metric(&metrics, "cloudlink_notices_total", "given_up")? >= 4.0, "{metrics}");
        Ok(())
    })
    .await?;
    for receiver in &receivers {
        ensure!(server.attempts(receiver)? == 2, "one message each, and one that was refused");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_to_no_server_that_is_not_trusted() -> anyhow::Result<()> {
    let world = World::new()?;
    let server = World::new()?.mail_server_in(world.directory.path(), "starttls").await?;
    let fleet = Fleet::start_with(&world.mail_settings(&server, "starttls")).await?;
    subscribe(&fleet, "tina@example.com").await?;
    grant(&fleet).await?;
    wait_for("a failed attempt", LIMIT, async || {
        let (_, metrics) = fleet.server.operations("/metrics").await?;
        ensure!(metric(&metrics, "cloudlink_notices_total", "retried")? >= 1.0, "{metrics}");
        Ok(())
    })
    .await?;
    ensure!(server.messages()?.is_empty() && server.attempts("tina@example.com")? == 0, "it was told");
    Ok(())
}
