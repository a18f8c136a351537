//! Stock OpenVPN clients: what they and the server agree on, and who gets no tunnel.
//!
//! Each test has a network of its own, and as many clients in it as will do: what takes time is waited for together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_certs::{Authority, CertificateRequest, DeviceIdentity, Serial, Validity, create_request, profile};
use cloudlink_tests::clock;
use cloudlink_tests::dial::Credentials;
use cloudlink_tests::enroll::new_key;
use cloudlink_tests::fleet::{Fleet, directory};
use cloudlink_tests::netns::{self, Site};
use cloudlink_tests::openvpn::{Client, Pings, Profile, Tunnel, UP, generate_key};
use cloudlink_tests::server::Settings;
use cloudlink_tests::traffic::{metric, proxy};
use data_encoding::BASE64;
use futures_util::future::try_join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uuid::Uuid;

/// Five a second, for long enough that keys are renewed three times that are renewed every 5 s.
const LASTING: Pings = Pings { count: 90, interval: Duration::from_millis(200), size: 56, fragments: false };

async fn fleet(set: &[&str]) -> anyhow::Result<Fleet> {
    Fleet::start_with(&Settings::with_tunnels(set)).await
}

/// A client gets a tunnel, its pings come back, and it has nothing to complain about.
async fn is_served(client: &mut Client) -> anyhow::Result<Tunnel> {
    let tunnel = client.is_up(1).await?;
    Pings::default().come_back(client, &tunnel).await?;
    ensure!(client.complaints()?.is_empty(), "{:?}", client.complaints()?);
    Ok(tunnel)
}

/// How often a client has agreed on new keys.
fn renewals(client: &Client) -> anyhow::Result<usize> {
    let handshakes = client.log_text()?.matches("Control Channel: TLSv1.3").count();
    handshakes.checked_sub(1).context("there was no handshake")
}

/// Pings for some 18 s, of which none is lost while keys are renewed.
async fn keeps_pinging(mut client: Client) -> anyhow::Result<()> {
    let tunnel = is_served(&mut client).await?;
    LASTING.come_back(&client, &tunnel).await?;
    ensure!(client.complaints()?.is_empty(), "{:?}", client.complaints()?);
    let (renewals, log) = (renewals(&client)?, client.log_text()?);
    ensure!(renewals >= 3, "only {renewals} renewals:\n{log}");
    ensure!(log.matches(UP).count() == 1, "it was cut:\n{log}");
    Ok(())
}

#[test]
fn clients_choose_a_cipher_and_renew_their_keys_under_traffic() -> anyhow::Result<()> {
    netns::test("clients_choose_a_cipher_and_renew_their_keys_under_traffic", async || {
        let fleet = fleet(&[]).await?;
        let site = Arc::new(Site::join()?);
        let cipher = async |cipher: &str| {
            let change = |profile: Profile| profile.with(&format!("data-ciphers {cipher}"));
            let (device, mut client) = fleet.client_with(&site, cipher, change).await?;
            is_served(&mut client).await?;
            client.says(&format!("Data Channel: cipher '{cipher}'")).await?;
            ensure!(client.log_text()?.contains("tls-ekm"), "keys are not from the exporter");
            let shown = fleet.tenant.get(&format!("/devices/{}", device.id)).await?;
            ensure!(shown["tunnel"]["cipher"] == cipher, "{shown}");
            anyhow::Ok(())
        };
        let renewing = async {
            let (_, client) = fleet.client_with(&site, "renewing", |profile| profile.with("reneg-sec 5")).await?;
            keeps_pinging(client).await
        };
        // An old configuration: compression as a promise that nothing is compressed, or compressed for real.
        let framed = async |name: &str, lines: &str| {
            let (_, mut client) = fleet.client_with(&site, name, |profile| profile.with(lines)).await?;
            let tunnel = is_served(&mut client).await?;
            ensure!(tunnel.pushed.iter().any(|option| option == "compress stub-v2"), "{tunnel:?}");
            Ok(())
        };
        let stubborn = async {
            // What is not offered cannot be had, and the client is told so.
            let (_, client) =
                fleet.client_with(&site, "stubborn", |profile| profile.with("data-ciphers AES-256-CBC")).await?;
            client.says("AUTH_FAILED").await
        };
        tokio::try_join!(
            cipher("AES-256-GCM"),
            cipher("AES-128-GCM"),
            cipher("CHACHA20-POLY1305"),
            framed("comp-lzo", "comp-lzo no"),
            framed("compress", "compress"),
            renewing,
            stubborn
        )?;
        Ok(())
    })
}

#[test]
fn a_server_without_key_export_renews_keys_by_itself() -> anyhow::Result<()> {
    netns::test("a_server_without_key_export_renews_keys_by_itself", async || {
        // With the Internet of today around the tunnel.
        let device = Some(SocketAddr::from((netns::SERVER_IPV6, 443)));
        let settings = Settings::with_tunnels(&["tunnel.key_export=false", "tunnel.renegotiate_seconds=5"]);
        let fleet = Fleet::start_with(&Settings { device, ..settings }).await?;
        let site = Arc::new(Site::join()?);
        let (_, plain) = fleet.client_with(&site, "plain", |profile| profile.with("reneg-sec 0")).await?;
        // Both ends want new keys, and may want them at the same time.
        let (_, both) = fleet.client_with(&site, "both", |profile| profile.with("reneg-sec 5")).await?;
        let log = async || {
            plain.says(UP).await?;
            ensure!(!plain.log_text()?.contains("tls-ekm"), "{}", plain.log_text()?);
            Ok(())
        };
        log().await?;
        tokio::try_join!(keeps_pinging(plain), keeps_pinging(both))?;
        Ok(())
    })
}

#[test]
fn control_packets_are_wrapped_with_tls_auth() -> anyhow::Result<()> {
    netns::test("control_packets_are_wrapped_with_tls_auth", async || {
        let fleet = fleet(&["tunnel.wrapping=tls-auth", "tunnel.renegotiate_seconds=5"]).await?;
        is_wrapped(&fleet).await
    })
}

#[test]
fn control_packets_are_wrapped_with_tls_crypt() -> anyhow::Result<()> {
    netns::test("control_packets_are_wrapped_with_tls_crypt", async || {
        let fleet = fleet(&["tunnel.wrapping=tls-crypt", "tunnel.renegotiate_seconds=5"]).await?;
        is_wrapped(&fleet).await
    })
}

#[test]
fn control_packets_are_wrapped_with_tls_crypt_v2() -> anyhow::Result<()> {
    netns::test("control_packets_are_wrapped_with_tls_crypt_v2", async || {
        let fleet = fleet(&["tunnel.wrapping=tls-crypt-v2", "tunnel.renegotiate_seconds=5"]).await?;
        is_wrapped(&fleet).await?;

        // With a key that the stock tool made from the server's. It has to name the device.
        let site = Arc::new(Site::join()?);
        let server_key = fleet.server.data_dir().join("pki/tunnel.tls-crypt-v2.key");
        let generate = ["--tls-crypt-v2", server_key.to_str().context("not UTF-8")?, "--genkey", "tls-crypt-v2-client"];
        let start = async |name: &str, to_be_named: bool| {
            let device = fleet.enrolled(name).await?;
            let metadata = BASE64.encode(device.id.parse::<Uuid>()?.as_bytes());
            let metadata = if to_be_named { metadata.as_str() } else { "" };
            let key = generate_key(&generate, &fleet.path(&format!("{name}.key")), metadata)?;
            fleet.start_client(&site, name, &fleet.profile(&device)?.with_file("tls-crypt-v2", &key))
        };
        let (mut named, nameless) = (start("named", true).await?, start("nameless", false).await?);
        is_served(&mut named).await?;
        nameless.says("the tls-crypt-v2 key was made for another device").await
    })
}

/// A client with the profile that its server gives out is served and renews its keys; one without its key is not heard.
async fn is_wrapped(fleet: &Fleet) -> anyhow::Result<()> {
    let site = Arc::new(Site::join()?);
    let device = fleet.enrolled("gateway").await?;
    let profile = fleet.issued_profile(&device).await?;
    let client = fleet.start_client(&site, "gateway", &profile)?;
    let (_, stranger) = fleet.client(&site, "stranger").await?;
    tokio::try_join!(keeps_pinging(client), stays_out(stranger))?;
    Ok(())
}

/// A client that is not wrapped gets no answer at all: the server does not even begin TLS with it.
async fn stays_out(mut stranger: Client) -> anyhow::Result<()> {
    stranger.says_times("TCP connection established", 2).await?;
    let log = stranger.log_text()?;
    ensure!(!log.contains("TLS: Initial packet") && !log.contains(UP), "{log}");
    ensure!(stranger.is_running()?);
    Ok(())
}

#[test]
fn whoever_is_not_a_device_gets_no_tunnel_and_a_reason() -> anyhow::Result<()> {
    netns::test("whoever_is_not_a_device_gets_no_tunnel_and_a_reason", async || {
        let fleet = fleet(&["device.handshake_timeout_seconds=4", "device.request_timeout_seconds=4"]).await?;
        let site = Arc::new(Site::join()?);
        let (device, mut good) = fleet.client(&site, "good").await?;
        let tunnel = is_served(&mut good).await?;
        let start = |name: &str, profile: &Profile| fleet.start_client(&site, name, profile);

        let password = "<auth-user-pass>\nsomebody\nsecret\n</auth-user-pass>";
        let anonymous = start("anonymous", &fleet.profile_of_nobody()?.with(password))?;
        let authority = Stranger::create()?;
        let foreign = start("foreign", &fleet.profile_of_nobody()?.with_credentials(&authority.credentials))?;
        // The right certificate, and a client that trusts somebody else.
        let distrustful = Profile::new(fleet.server.device, &authority.certificate_pem);
        let distrustful = start("distrustful", &distrustful.with_credentials(&device.credentials))?;
        let old = start("old", &fleet.profile(&device)?.with("tls-version-max 1.2"))?;
        // Ethernet frames.
        let bridged = start("bridged", &fleet.profile(&fleet.enrolled("bridged").await?)?.with("dev-type tap"))?;
        tokio::try_join!(
            anonymous.says("Received fatal SSL alert"),
            foreign.says("fatal SSL alert: unknown CA"),
            distrustful.says("certificate verify failed"),
            old.says("alert protocol version"),
            bridged.says("AUTH_FAILED,Only dev tun is supported"),
        )?;
        // Those who say little are waited for; the others are not.
        let junk: [(&[u8], u64); 9] = [
            (b"", 8),
            (b"\x00", 8),
            (b"\x00\x0e\x38", 12),
            (b"GET / HTTP/1.1\r\n\r\n", 2),
            (b"SSH-2.0-OpenSSH_9.2\r\n", 2),
            (&[0xff; 2_000], 2),
            // Key method 1, too short, too long.
            (b"\x00\x0e\x08AAAAAAAAAAAAA", 2),
            (b"\x00\x03\x38AA", 2),
            (&[0x04; 1_400], 2),
        ];
        try_join_all(junk.map(|(first, seconds)| is_closed(fleet.server.device, first, seconds))).await?;

        // All the while the good one was not disturbed.
        Pings::default().come_back(&good, &tunnel).await?;
        let metrics = fleet.server.operations("/metrics").await?.1;
        ensure!(metric(&metrics, "cloudlink_tunnels_opened_total", "")? == 1.0, "{metrics}");
        ensure!(metric(&metrics, "cloudlink_tunnels_live", "")? == 1.0, "{metrics}");
        let failures = |reason| metric(&metrics, "cloudlink_device_handshake_failures_total", reason);
        ensure!(failures("")? >= 14.0, "{metrics}");
        // OpenSSL has no name for the alert that says this.
        ensure!(failures("reason=\"certificate_missing\"")? >= 1.0, "{metrics}");
        Ok(())
    })
}

/// An authority that nobody here trusts, and what it has issued.
struct Stranger {
    certificate_pem: String,
    credentials: Credentials,
}

impl Stranger {
    fn create() -> anyhow::Result<Self> {
        let serial = || Serial::from_random(*Uuid::new_v4().as_bytes());
        let validity = Validity::starting_at(clock::now(), profile::DEVICE_LIFETIME)?;
        let authority = Authority::create(new_key()?, "Other CA", serial(), validity)?;
        let identity = DeviceIdentity {
            trust_domain: "other.example".parse()?,
            tenant: Uuid::new_v4().to_string().parse()?,
            device: Uuid::new_v4().to_string().parse()?,
        };
        let key = Arc::new(new_key()?);
        let request = CertificateRequest::from_der(&create_request(&key)?)?;
        let certificate = authority.issue_device(&request, &identity, serial(), validity)?;
        Ok(Self { certificate_pem: authority.certificate_pem(), credentials: Credentials { certificate, key } })
    }
}

/// Whether the server closes a connection that began with these bytes, soon enough.
async fn is_closed(device_port: SocketAddr, first: &[u8], within_seconds: u64) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(device_port).await?;
    // It may be closed while this is still being sent.
    let _ = stream.write_all(first).await;
    let mut answer = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(within_seconds), stream.read_to_end(&mut answer)).await;
    // Closed or reset, but no longer there.
    let _ = end.with_context(|| format!("{first:x?}: still open after {within_seconds} s"))?;
    ensure!(answer.len() < 512, "{first:x?}: {answer:x?}");
    Ok(())
}

#[test]
fn a_client_comes_through_a_proxy() -> anyhow::Result<()> {
    netns::test("a_client_comes_through_a_proxy", async || {
        let fleet = fleet(&[]).await?;
        let site = Arc::new(Site::join()?);
        // On the customer's side of the server.
        let address = SocketAddr::from((site.router_ipv4, 8888));
        let files = directory()?;
        let _proxy = proxy(address, files.path()).await?;
        let through = format!("http-proxy {} {}", address.ip(), address.port());
        let (device, mut client) = fleet.client_with(&site, "gateway", |profile| profile.with(&through)).await?;
        is_served(&mut client).await?;
        client.says("HTTP/1.0 200").await?;
        let shown = fleet.wait_for_link(&device.id, "live").await?;
        ensure!(shown["link"]["transport"] == "openvpn", "{shown}");
        Ok(())
    })
}
