//! Connections through an HTTP proxy: a real one that wants a password, and some that mean no good.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloudlink_agent::agent::load_anchor;
use cloudlink_agent::chain;
use cloudlink_agent::clock::KnownTime;
use cloudlink_agent::config::Config;
use cloudlink_agent::dial::{self, DialError, Traffic};
use cloudlink_agent::tls::{self, Bounds};
use rstest::rstest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::namespace::{in_namespace, ip};
use crate::server::{Device, Fleet, NEVER, TOKEN, TestServer, eventually};
use crate::stream::{Scene, TERMINAL};

pub(crate) const USER: &str = "gateway";
pub(crate) const PASSWORD: &str = "open-sesame";
pub(crate) const PORT: u16 = 3128;

/// `tinyproxy`, on loopback.
pub(crate) struct Proxy {
    process: Child,
    dir: tempfile::TempDir,
}

impl Proxy {
    /// `None`, and a word about it, where there is none.
    pub(crate) async fn start() -> Option<Self> {
        if Command::new("tinyproxy").arg("-v").stdout(Stdio::null()).status().is_err() {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "skipped: it takes the package tinyproxy");
            return None;
        }
        ip("link set lo up");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tinyproxy.conf");
        let text = format!(
            "Port {PORT}\nListen 127.0.0.1\nTimeout 600\nMaxClients 20\nLogLevel Connect\nBasicAuth {USER} {PASSWORD}\n"
        );
        std::fs::write(&file, text).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new("tinyproxy");
        command.arg("-d").arg("-c").arg(file).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let process = command.spawn().unwrap();
        eventually("the proxy listens", || std::net::TcpStream::connect(("127.0.0.1", PORT)).is_ok()).await;
        Some(Self { process, dir })
    }

    /// How many connections it was asked for.
    fn asked(&self) -> usize {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap().matches(": CONNECT 127.0.0.1:").count()
    }

    pub(crate) fn password_file(&self, password: &str) -> PathBuf {
        let file = self.dir.path().join("password");
        std::fs::write(&file, password).unwrap();
        file
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn agent(device: &Device, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cloudlink-agent"));
    command.args(arguments).arg("--config").arg(device.path("agent.toml")).stdin(Stdio::null());
    command
}

async fn said(mut command: Command) -> String {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn add(device: &Device, section: &str) {
    let path = device.path("agent.toml");
    let text = std::fs::read_to_string(&path).unwrap() + section;
    std::fs::write(path, text).unwrap();
}

#[test]
fn everything_that_is_dialled_goes_through_the_proxy() {
    in_namespace(|| async {
        let Some(proxy) = Proxy::start().await else { return };
        let file = proxy.password_file(&format!("{PASSWORD}\n"));
        let section =
            format!("{TERMINAL}[proxy]\nurl = \"http://{USER}@127.0.0.1:{PORT}\"\npassword_file = {file:?}\n");
        let mut scene = Scene::new(&section).await;
        assert_eq!(proxy.asked(), 1, "the link");
        let mut stream = scene.terminal().await;
        assert_eq!(proxy.asked(), 2, "a stream");
        stream.pass("echo a $((40 + 2))\n").await;
        stream.until("a 42").await;

        let told = said(agent(&scene.device, &["doctor"])).await;
        let expected = format!("ok    proxy        127.0.0.1:{PORT} connects to link.test for user \"{USER}\"");
        assert!(told.contains(&expected) && told.contains("the server lets this device in"), "{told}");
        drop(stream);
        let log = scene.stop().await;
        assert!(!log.contains(PASSWORD) && !log.contains("Z2F0ZXdheTpvcGVuLXNlc2FtZQ"), "the password is in the log");
    });
}

#[test]
fn a_device_enrolls_through_the_proxy_of_the_environment() {
    in_namespace(|| async {
        let Some(proxy) = Proxy::start().await else { return };
        let server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
        let device = Device::new(&server);
        add(&device, "[proxy]\nfrom_environment = true\n");
        let token = device.path("token");
        std::fs::write(&token, TOKEN).unwrap();
        let mut enroll = agent(&device, &["enroll", "--token-file", token.to_str().unwrap()]);
        enroll.env("HTTPS_PROXY", format!("http://{USER}:{PASSWORD}@127.0.0.1:{PORT}")).env("NO_PROXY", "example.com");
        let told = said(enroll).await;
        assert!(told.contains("enrolled as device"), "{told}");
        assert_eq!(proxy.asked(), 1);

        let mut doctor = agent(&device, &["doctor"]);
        doctor.env("HTTPS_PROXY", "http://127.0.0.1:1").env("NO_PROXY", "localhost,127.0.0.0/8");
        let told = said(doctor).await;
        assert!(told.contains("ok    proxy        not for this server"), "{told}");
        assert!(told.contains("the server lets this device in"), "{told}");
        assert_eq!(proxy.asked(), 1);
    });
}

#[test]
fn a_password_that_will_not_do_is_told_with_the_user_and_never_shown() {
    in_namespace(|| async {
        let Some(_proxy) = Proxy::start().await else { return };
        let server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
        for (login, expected) in [
            (format!("{USER}:not-it@"), "it refuses the password of user \"gateway\" (401)"),
            (String::new(), "it wants a user and a password (407), and none are configured"),
        ] {
            let device = Device::new(&server);
            add(&device, &format!("[proxy]\nurl = \"http://{login}127.0.0.1:{PORT}\"\n"));
            let told = said(agent(&device, &["doctor"])).await;
            let expected = format!("BAD   proxy        the proxy 127.0.0.1:{PORT}: {expected}");
            assert!(told.contains(&expected) && !told.contains("not-it"), "{told}");
        }
    });
}

/// What a proxy does that means no good, once it was asked.
#[derive(Clone, Copy, Debug)]
enum Evil {
    Says(&'static [u8]),
    SaysForEver(&'static [u8]),
    Drips,
    ClosesAfter(&'static [u8]),
}

async fn serve(mut stream: TcpStream, evil: Evil) -> std::io::Result<()> {
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut asked).await? == 0 {
            return Ok(());
        }
    }
    match evil {
        Evil::Says(bytes) => stream.write_all(bytes).await?,
        Evil::ClosesAfter(bytes) => return stream.write_all(bytes).await,
        Evil::SaysForEver(bytes) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
            loop {
                stream.write_all(bytes).await?;
            }
        }
        Evil::Drips => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
            loop {
                stream.write_all(b"a: b\r\n").await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
    // Stays until the other side has had enough.
    stream.read_to_end(&mut asked).await.map(drop)
}

#[rstest]
#[case::garbage(Evil::Says(&[0, 255, 13, 10, 13, 10]), "it answered something that is not HTTP")]
#[case::another_protocol(Evil::Says(b"220 mail.test ESMTP\r\n"), "it answered something that is not HTTP")]
#[case::closes(Evil::ClosesAfter(b""), "it closed the connection and answered nothing")]
#[case::half_an_answer(Evil::ClosesAfter(b"HTTP/1.1 200 OK\r\nVia:"), "it closed the connection and answered nothing")]
#[case::endless_headers(Evil::SaysForEver(b"a: b\r\n"), "its answer is longer than an HTTP proxy's")]
#[case::an_endless_header(
    Evil::SaysForEver(b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
    "its answer is longer"
)]
#[case::speaks_for_the_server(
    Evil::Says(b"HTTP/1.1 200 OK\r\n\r\nhello"),
    "it said more than that there is a connection"
)]
#[case::answers_drop_by_drop(Evil::Drips, "it did not answer within 20 s")]
#[case::connects_and_closes(Evil::ClosesAfter(b"HTTP/1.1 200 OK\r\n\r\n"), "TLS with link.test failed")]
#[case::is_the_server_itself(Evil::Says(b"HTTP/1.1 200 OK\r\n\r\n"), "the TLS handshake took longer than 20 s")]
#[tokio::test]
async fn a_proxy_that_means_no_good_costs_one_attempt(#[case] evil: Evil, #[case] expected: &str) {
    let server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = serve(stream, evil).await;
        }
    });
    let device = Device::new(&server);
    add(&device, &format!("[proxy]\nurl = \"http://u:secret@{address}\"\n"));
    let config = Config::load(&device.path("agent.toml")).unwrap();
    let anchor = load_anchor(&config).unwrap();
    let known_time = KnownTime::load(&config.state_dir, tls::authority_made(&anchor));
    let bounds = Bounds { earliest: known_time.earliest(), own_end: None };
    let client = tls::Client::new(&anchor, None, bounds).unwrap();
    let begun = Instant::now();
    let error = dial::secure(&config.server, &config.server.server_name, &client, Traffic::Sparse).await.unwrap_err();
    let told = chain(&error);
    assert!(told.contains(expected) && told.contains(&format!("the proxy {address}")), "{told}");
    assert!(!told.contains("secret") && !error.is_refusal(), "{told}");
    assert!(matches!(error, DialError::Proxy { .. } | DialError::Through { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    proxy.abort();
}
