//! A device on a WebSocket has no IP path: what it may say is a link message, and nothing that it says makes the server connect
//! to anybody. Tried with all that opens a way through other servers: proxies' requests, tunnels in HTTP, other protocols,
//! requests in requests. Listeners stand where such a way would lead, and the kernel counts what the server's user sends
//! first.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use cloudlink_proto::link::SUBPROTOCOL;
use cloudlink_tests::dial::{Credentials, Heard, client_config, tls};
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::netns::{self, SERVER_IPV4, Site, done};
use cloudlink_tests::rights::Installed;
use cloudlink_tests::server::{ENROLL_NAME, SERVER_NAME, Settings};
use futures_util::StreamExt as _;
use futures_util::stream;
use rustls::version::TLS13;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

/// What somebody hears who gets through.
const MARK: &str = "a way through";
/// What the console's one page says, and nobody else.
const PAGE: &str = "<title>Cloudlink</title>";
const PEOPLE_PORT: u16 = 8443;
/// A peer that says nothing for so long has nothing to say. Longer than the server waits for a request.
const SILENCE: Duration = Duration::from_millis(1_500);
const ANSWER_BYTES_MAX: usize = 256 * 1024;
const AT_ONCE: usize = 24;
/// What one tunnel may have at once, and as often as it may dial before it has to wait.
const AT_ONCE_INSIDE: usize = 4;
const DIALS_INSIDE: usize = 20;
const METHODS: &[&str] = &[
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "TRACK", "DEBUG", "PROPFIND", "MOVE", "BREW",
];
const PATHS: &[&str] = &[
    "/",
    "/v1",
    "/v1/link",
    "/v1/link/",
    "/v1/enroll",
    "/v1/link/../enroll",
    "/%76%31/link",
    "//v1/link",
    "/v1/devices",
    "/v1/stream",
    "/api/v1/devices",
    "/metrics",
    "/healthz",
    "/readyz",
    "/proxy",
    "/ws",
    "/socket.io/?transport=websocket",
    "/.well-known/acme-challenge/x",
    "/server-status",
    "/cgi-bin/test",
];

/// Listeners where a way through the server would lead.
struct Decoys {
    addresses: Vec<SocketAddr>,
    reached: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Decoys {
    /// On the server's own loopback, its outer address, and where the device is.
    async fn listen(site: &Site) -> anyhow::Result<Self> {
        let (reached, mut tasks, mut addresses) = (Arc::new(AtomicUsize::new(0)), JoinSet::new(), Vec::new());
        let elsewhere = site.run(async || Ok(std::net::TcpListener::bind((site.ipv4, 0))?))?;
        elsewhere.set_nonblocking(true)?;
        let loopback = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let outer = TcpListener::bind((SERVER_IPV4, 0)).await?;
        for listener in [loopback, outer, TcpListener::from_std(elsewhere)?] {
            addresses.push(listener.local_addr()?);
            let reached = Arc::clone(&reached);
            tasks.spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    reached.fetch_add(1, Ordering::Relaxed);
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{MARK}", MARK.len());
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
        }
        Ok(Self { addresses, reached, _tasks: tasks })
    }

    fn reached(&self) -> usize {
        self.reached.load(Ordering::Relaxed)
    }
}

/// What the user sends first, as the kernel counts it: connections that it opens, and anything but TCP.
struct Watch {
    user: u32,
}

impl Watch {
    fn begin(user: u32) -> anyhow::Result<Self> {
        let mut nft = Command::new("nft");
        nft.arg(format!(
            "table inet watch {{
                counter sent {{ }}
                chain out {{
                    type filter hook output priority 0
                    meta skuid {user} tcp flags & (syn | ack) == syn counter name sent
                    meta skuid {user} meta l4proto != tcp counter name sent
                }}
            }}"
        ));
        done(nft)?;
        Ok(Self { user })
    }

    fn sent(&self) -> anyhow::Result<u64> {
        let mut nft = Command::new("nft");
        nft.args(["-j", "list", "counter", "inet", "watch", "sent"]);
        let listed: serde_json::Value = serde_json::from_str(&done(nft)?)?;
        let counters = listed["nftables"].as_array().context("a list")?;
        let found = counters.iter().find_map(|item| item["counter"]["packets"].as_u64());
        found.with_context(|| listed.to_string())
    }

    /// Connects somewhere and sends a datagram, as the user.
    fn provoke(&self, to: SocketAddr) -> anyhow::Result<()> {
        let user = self.user.to_string();
        let script = "exec 3<>/dev/tcp/$0/$1; echo x >/dev/udp/$0/$1";
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &user, "--clear-groups", "--", "bash", "-c", script]);
        command.args([to.ip().to_string(), to.port().to_string()]);
        done(command).map(drop)
    }
}

/// Who is asked, and how to get there.
#[derive(Clone, Debug)]
enum Door {
    /// The device port, as a device.
    Device(SocketAddr, Credentials),
    /// The device port, under the enrollment name.
    Enrollment(SocketAddr),
    /// The device port, without TLS.
    Bare(SocketAddr),
    /// The link port inside a tunnel.
    Inside(SocketAddr),
    /// The people port, with a token.
    People(SocketAddr, String),
}

impl Door {
    /// Says it, and listens until the end or until nothing comes any more.
    async fn say(&self, ca_file: &std::path::Path, words: &[u8]) -> anyhow::Result<Vec<u8>> {
        Ok(match self {
            Self::Device(address, credentials) => {
                let config = client_config(ca_file, Some(credentials), &[&TLS13])?;
                say(tls(*address, SERVER_NAME, config).await?, words).await
            }
            Self::Enrollment(address) => {
                say(tls(*address, ENROLL_NAME, client_config(ca_file, None, &[&TLS13])?).await?, words).await
            }
            Self::People(address, token) => {
                let mut words = words.to_vec();
                // After the first line, if there is one.
                if let Some(end) = words.windows(2).position(|pair| pair == b"\r\n") {
                    let header = format!("\r\nAuthorization: Bearer {token}");
                    words.splice(end..end, header.into_bytes());
                }
                let mut config = client_config(ca_file, None, &[&TLS13])?;
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                say(tls(*address, SERVER_NAME, config).await?, &words).await
            }
            Self::Bare(address) | Self::Inside(address) => say(TcpStream::connect(address).await?, words).await,
        })
    }
}

async fn say(mut stream: impl AsyncRead + AsyncWrite + Unpin, words: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    // The server may have had enough before it was all said.
    let _ = stream.write_all(words).await;
    let _ = stream.flush().await;
    while answer.len() < ANSWER_BYTES_MAX {
        match tokio::time::timeout(SILENCE, stream.read_buf(&mut answer)).await {
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) | Err(_) => break,
        }
    }
    answer
}

/// The status of each HTTP answer in it.
fn statuses(answer: &str) -> Vec<u16> {
    let lines = answer.match_indices("HTTP/1.").filter_map(|(at, _)| answer[at..].lines().next());
    lines.filter_map(|line| line.split(' ').nth(1)?.parse().ok()).collect()
}

/// All that makes some server connect to `there`, or hand on what it is given.
fn ways_to(there: SocketAddr) -> Vec<Vec<u8>> {
    let host = there.to_string();
    let (address, port) = (there.ip(), there.port());
    let upgrade = |path: &str, protocol: &str, more: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade{more}\r\nUpgrade: {protocol}\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
    };
    let inner = format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let chunk = format!("{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len());
    let body = |head: &str, body: &str| format!("POST /smuggle HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n{body}");
    let len = inner.len();
    let mut ways = vec![
        // A proxy's requests.
        format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        format!("CONNECT {host} HTTP/1.0\r\n\r\n"),
        format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Basic YTpi\r\nProxy-Connection: keep-alive\r\n\r\n{inner}"),
        format!("CONNECT /v1/link HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        inner.clone(),
        format!("GET http://{host}/v1/nothing HTTP/1.0\r\n\r\n"),
        format!("GET https://{host}/ HTTP/1.1\r\nHost: {SERVER_NAME}\r\n\r\n"),
        format!("POST http://{host}/ HTTP/1.1\r\nHost: {SERVER_NAME}\r\nContent-Length: 0\r\n\r\n"),
        format!("GET ftp://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        format!("GET ws://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        format!("GET http://other.example/ HTTP/1.1\r\nHost: other.example\r\n\r\n"),
        format!("GET //{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        format!("GET @{host}/ HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("GET /http://{host}/ HTTP/1.1\r\nHost: {SERVER_NAME}\r\n\r\n"),
        format!("GET /proxy?url=http://{host}/ HTTP/1.1\r\nHost: {SERVER_NAME}\r\n\r\n"),
        // Hosts of others.
        format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {host}\r\nHost: {SERVER_NAME}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {SERVER_NAME}\r\nX-Forwarded-Host: {host}\r\nForwarded: host={host}\r\n\
                 X-Original-URL: http://{host}/\r\nX-Rewrite-URL: http://{host}/\r\nDestination: http://{host}/\r\n\r\n"),
        // Other protocols in HTTP.
        upgrade("/", "h2c", ", HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__"),
        upgrade("/v1/link", "h2c", ", HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__"),
        upgrade("/", "websocket", ""),
        upgrade("/v1/enroll", "websocket", ""),
        upgrade(&format!("/{host}"), "websocket", ""),
        upgrade("/v1/link", "tcp", ""),
        upgrade(&format!("/.well-known/masque/udp/{address}/{port}/"), "connect-udp", ""),
        upgrade(&format!("/.well-known/masque/tcp/{address}/{port}/"), "connect-tcp", ""),
        upgrade(&format!("/.well-known/masque/ip/{address}/6/"), "connect-ip", ""),
        upgrade(&format!("ws://{host}/"), "websocket", ""),
        // A WebSocket of the right kind in the wrong place.
        upgrade("/v1/stream", "websocket", &format!("\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}")),
        format!("TRACE / HTTP/1.1\r\nHost: {host}\r\nMax-Forwards: 0\r\n\r\n"),
        format!("OPTIONS * HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_owned(),
        // A request in a request: what one reader takes for a body is the next one's request.
        body(&format!("Content-Length: {len}\r\nTransfer-Encoding: chunked"), &format!("0\r\n\r\n{inner}")),
        body(&format!("Transfer-Encoding: chunked\r\nContent-Length: {len}"), &chunk),
        body(&format!("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\nContent-Length: {len}"), &inner),
        body("Transfer-Encoding : chunked", &format!("0\r\n\r\n{inner}")),
        body("Transfer-Encoding: xchunked", &format!("0\r\n\r\n{inner}")),
        body("Transfer-Encoding:\u{b}chunked", &format!("0\r\n\r\n{inner}")),
        body("Content-Length: 0\r\nContent-Length: 5", &inner),
        body("Content-Length: +5", &inner),
        body("Content-Length: 0", &inner),
        body(&format!("Content-Length: {len}\r\nExpect: 100-continue"), &inner),
        body(&format!("X: y\nTransfer-Encoding: chunked\r\nContent-Length: {len}"), &chunk),
        format!("GET / HTTP/1.1\r\nHost: x\r\n\r\n{inner}{inner}"),
        format!("GET / HTTP/0.9\r\n\r\n{inner}"),
        // Other languages, inside of TLS or without it.
        format!("PROXY TCP4 192.0.2.1 {address} 1 {port}\r\n{inner}"),
        format!("{host}\r\n"),
    ]
    .into_iter()
    .map(String::into_bytes)
    .collect::<Vec<_>>();
    if let IpAddr::V4(address) = address {
        let target = [&address.octets()[..], &port.to_be_bytes()].concat();
        ways.extend([
            // SOCKS 5 without authentication, and SOCKS 4.
            [&[5, 1, 0, 5, 1, 0, 1], &target[..]].concat(),
            [&[4, 1], &port.to_be_bytes()[..], &address.octets(), &[0]].concat(),
            // A SYN, as if this were a tunnel.
            [&[0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1], &address.octets()[..], &[0; 20]].concat(),
        ]);
    }
    ways
}

/// Tries ways at a door, some at once. `answers_max`: how many HTTP answers one connection may get.
async fn nothing_leads_through(
    door: &Door,
    ca_file: &std::path::Path,
    ways: &[Vec<u8>],
    answers_max: usize,
) -> anyhow::Result<()> {
    let at_once = if matches!(door, Door::Inside(_)) { AT_ONCE_INSIDE } else { AT_ONCE };
    let tried = stream::iter(ways).map(async |words| {
        let answer = String::from_utf8_lossy(&door.say(ca_file, words).await?).into_owned();
        let (said, statuses) = (String::from_utf8_lossy(words), statuses(&answer));
        ensure!(!answer.contains(MARK), "{door:?}: {said} gave {answer}");
        // Whoever asks the people port for a path of its own gets the console's page, and nobody else does.
        let asks_for_page =
            matches!(door, Door::People(..)) && words.starts_with(b"GET /") && !words.starts_with(b"GET //");
        let is_page = |status| status == 200 && asks_for_page && answer.contains(PAGE);
        let is_sound = |&status: &u16| (400..600).contains(&status) || is_page(status);
        ensure!(statuses.iter().all(is_sound), "{door:?}: {said} gave {answer}");
        ensure!(statuses.len() <= answers_max, "{door:?}: {said} gave {answer}");
        Ok(statuses.len())
    });
    let answers: Vec<_> = tried.buffer_unordered(at_once).collect().await;
    let answered = answers.into_iter().sum::<anyhow::Result<usize>>()?;
    // Else nobody may have listened.
    ensure!(answered > ways.len() / 2, "{door:?}: only {answered} of {} were answered", ways.len());
    Ok(())
}

/// Tries all methods on all paths, and gives back what is not simply unknown.
async fn routes(door: &Door, ca_file: &std::path::Path) -> anyhow::Result<BTreeSet<String>> {
    let calls: Vec<_> = METHODS.iter().flat_map(|method| PATHS.iter().map(move |path| (method, path))).collect();
    let tried = stream::iter(calls).map(async |(method, path)| {
        let words = format!("{method} {path} HTTP/1.1\r\nHost: {SERVER_NAME}\r\nContent-Length: 0\r\n\r\n");
        let answer = door.say(ca_file, words.as_bytes()).await?;
        let statuses = statuses(&String::from_utf8_lossy(&answer));
        let [status] = statuses[..] else { bail!("{method} {path}: {}", String::from_utf8_lossy(&answer)) };
        Ok((status != 404 && status != 405).then(|| format!("{method} {path} {status}")))
    });
    let answers: Vec<_> = tried.buffer_unordered(AT_ONCE).collect().await;
    Ok(answers.into_iter().collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// HTTP/2, which the people port speaks: no CONNECT, and no extended CONNECT (RFC 8441).
async fn http2_connects_nowhere(
    people: SocketAddr,
    ca_file: &std::path::Path,
    there: SocketAddr,
) -> anyhow::Result<()> {
    const SETTINGS: u8 = 4;
    const HEADERS: u8 = 1;
    const END_HEADERS: u8 = 4;
    const ENABLE_CONNECT_PROTOCOL: [u8; 2] = [0, 8];
    let literal =
        |name: &[u8], value: &str| [name, &[u8::try_from(value.len()).expect("short")], value.as_bytes()].concat();
    // HPACK (RFC 7541): fields of the static table by number, values as they are.
    let method = literal(&[2], "CONNECT");
    let authority = literal(&[1], &there.to_string());
    let protocol = [literal(&[0], ":protocol"), literal(&[], "websocket")].concat();
    let extended = [&method[..], &protocol, &[0x87], &literal(&[4], "/"), &authority].concat();
    for block in [[method, authority].concat(), extended] {
        let mut words = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let frame = |kind, flags, stream, payload: &[u8]| {
            let len = u8::try_from(payload.len()).expect("short");
            [&[0, 0, len, kind, flags, 0, 0, 0, stream][..], payload].concat()
        };
        words.extend(frame(SETTINGS, 0, 0, &[]));
        words.extend(frame(HEADERS, END_HEADERS, 1, &block));
        let mut config = client_config(ca_file, None, &[&TLS13])?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let answer = say(tls(people, SERVER_NAME, config).await?, &words).await;
        let mut rest = &answer[..];
        let mut settings = 0;
        while let [a, b, c, kind, _, _, _, _, _, after @ ..] = rest {
            let len = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            let payload = after.get(..len).with_context(|| format!("cut off: {answer:?}"))?;
            match *kind {
                SETTINGS => {
                    settings += 1;
                    ensure!(!payload.chunks(6).any(|setting| setting.starts_with(&ENABLE_CONNECT_PROTOCOL)));
                }
                // :status 200, 204 or 206 of the static table; no other one of success is sent.
                HEADERS => ensure!(!matches!(payload, [0x88..=0x8a, ..]), "{payload:?}"),
                _ => {}
            }
            rest = &after[len..];
        }
        ensure!(settings > 0, "no HTTP/2: {answer:?}");
        ensure!(!String::from_utf8_lossy(&answer).contains(MARK));
    }
    Ok(())
}

/// A link takes link messages. Anything else ends it, also when it comes at once with the request.
async fn links_carry_nothing_else(
    fleet: &Fleet,
    ca_file: &std::path::Path,
    decoys: &[SocketAddr],
) -> anyhow::Result<()> {
    let device = fleet.enrolled("talker").await?;
    let upgrade = format!(
        "GET /v1/link HTTP/1.1\r\nHost: {SERVER_NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
    );
    let door = Door::Device(fleet.server.device, device.credentials.clone());
    let ways: Vec<_> = decoys.iter().flat_map(|&there| ways_to(there)).collect();
    let tried = stream::iter(&ways).map(async |words| {
        let answer = door.say(ca_file, &[upgrade.as_bytes(), words].concat()).await?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        ensure!(
            statuses(&answer) == [101] && !answer.contains(MARK),
            "{} gave {answer}",
            String::from_utf8_lossy(words)
        );
        Ok(())
    });
    tried.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await.into_iter().collect::<anyhow::Result<()>>()?;
    for words in ways {
        for message in [Message::Binary(words.clone().into()), Message::text(String::from_utf8_lossy(&words).as_ref())]
        {
            let (mut link, _) = fleet.live(&device).await?;
            link.send_raw(message).await?;
            let end = link.hear_the_end().await?;
            ensure!(matches!(end, Heard::Closed(4004)), "{} gave {end:?}", String::from_utf8_lossy(&words));
        }
    }
    Ok(())
}

fn limits() -> Vec<String> {
    // So that silence is short, and nobody is refused for trying often.
    let limits = ["device.request_timeout_seconds=1", "people.header_timeout_seconds=1", "people.failures_burst=10000"];
    limits.map(str::to_owned).into()
}

#[test]
fn nothing_that_a_device_says_leads_through_the_server() -> anyhow::Result<()> {
    netns::test("nothing_that_a_device_says_leads_through_the_server", async || {
        let installed = Installed::make()?;
        let site = Arc::new(Site::join()?);
        let decoys = Decoys::listen(&site).await?;
        let settings = Settings {
            device: Some((SERVER_IPV4, 443).into()),
            people: Some((SERVER_IPV4, PEOPLE_PORT).into()),
            set: limits(),
            runner: Some(installed.with_capabilities(&["net_bind_service"])),
            ..Settings::default()
        };
        let fleet = Fleet::start_with(&settings).await?;
        let watch = Watch::begin(installed.user().uid.as_raw())?;
        let ca_file = fleet.server.ca_file();
        let device = fleet.enrolled("curious").await?;
        let (address, people) = (fleet.server.device, fleet.server.people);
        let token = fleet.operator.token().to_owned();

        let doors = [
            (Door::Device(address, device.credentials.clone()), 1),
            (Door::Enrollment(address), 1),
            (Door::Bare(address), 1),
            // Its connections are kept for further requests.
            (Door::People(people, token), usize::MAX),
        ];
        let ways: Vec<_> = decoys.addresses.iter().flat_map(|&there| ways_to(there)).collect();
        for (door, answers_max) in &doors {
            site.run(async || nothing_leads_through(door, &ca_file, &ways, *answers_max).await)?;
        }
        let found = site.run(async || routes(&doors[0].0, &ca_file).await)?;
        let known = ["GET /v1/link 426", "GET /v1/stream 426"].map(str::to_owned);
        ensure!(found == BTreeSet::from(known), "{found:?}");
        let found = site.run(async || routes(&doors[1].0, &ca_file).await)?;
        ensure!(found == BTreeSet::from(["POST /v1/enroll 400".to_owned()]), "{found:?}");
        site.run(async || http2_connects_nowhere(people, &ca_file, decoys.addresses[1]).await)?;
        links_carry_nothing_else(&fleet, &ca_file, &decoys.addresses).await?;

        ensure!(decoys.reached() == 0, "{} connections came out of the server", decoys.reached());
        ensure!(watch.sent()? == 0, "the server sent {} packets first", watch.sent()?);
        // The test could have seen it.
        watch.provoke(decoys.addresses[2])?;
        ensure!(watch.sent()? == 2 && decoys.reached() == 1, "{} {}", watch.sent()?, decoys.reached());
        Ok(())
    })
}

#[test]
fn nothing_that_an_agent_says_inside_a_tunnel_leads_through_the_server() -> anyhow::Result<()> {
    netns::test("nothing_that_an_agent_says_inside_a_tunnel_leads_through_the_server", async || {
        let site = Arc::new(Site::join()?);
        let decoys = Decoys::listen(&site).await?;
        let mut settings = Settings::with_tunnels(&[]);
        settings.set.extend(limits());
        let fleet = Fleet::start_with(&settings).await?;
        let mut ways: Vec<_> = decoys.addresses.iter().flat_map(|&there| ways_to(there)).collect();
        // All methods where there is something, and one where there is not.
        let calls = METHODS.iter().map(|method| (*method, "/v1/link")).chain(PATHS.iter().map(|path| ("GET", *path)));
        ways.extend(calls.map(|(method, path)| format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()));
        let ca_file = fleet.server.ca_file();
        let mut clients = Vec::new();
        for (number, ways) in ways.chunks(DIALS_INSIDE).enumerate() {
            let site = Arc::new(Site::join()?);
            let (_, client) = fleet.client(&site, &format!("tunnelled-{number}")).await?;
            clients.push((client, ways));
        }
        for (number, (client, ways)) in clients.iter_mut().enumerate() {
            let tunnel = client.is_up(1).await?;
            let gateway = if number % 2 == 0 { IpAddr::from(tunnel.gateway_ipv4) } else { tunnel.gateway_ipv6.into() };
            let door = Door::Inside((gateway, 80).into());
            client.site.run(async || nothing_leads_through(&door, &ca_file, ways, 1).await)?;
        }
        ensure!(decoys.reached() == 0, "{} connections came out of the server", decoys.reached());
        Ok(())
    })
}
