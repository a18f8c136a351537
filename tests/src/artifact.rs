//! A server of artifacts that can be as bad as wanted. What it does with a request is said by the path that it was asked for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use cloudlink_certs::{Authority, Validity, profile};
use data_encoding::HEXLOWER;
use rustls::ServerConfig;
use rustls::version::TLS13;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use crate::api::install_provider;
use crate::load::fleet::{new_key, new_serial};
use crate::{clock, port};

const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Serves one artifact. Gone when it is dropped.
#[derive(Debug)]
pub struct ArtifactServer {
    pub address: SocketAddr,
    pub content: Arc<Vec<u8>>,
    is_tls: bool,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    connections: AtomicUsize,
    requests: AtomicUsize,
    /// Requests for the rest of it.
    resumed: AtomicUsize,
    sent_bytes: AtomicU64,
    gate_is_open: AtomicBool,
}

impl ArtifactServer {
    pub async fn start(content: Vec<u8>) -> anyhow::Result<Self> {
        Self::start_with(content, None).await
    }

    /// Over TLS 1.3, as `localhost` and 127.0.0.1, for whoever trusts this authority.
    pub async fn start_tls(content: Vec<u8>, authority: &Authority) -> anyhow::Result<Self> {
        install_provider();
        let key = new_key()?;
        let names = ["localhost".parse()?, "127.0.0.1".parse()?];
        let validity = Validity::starting_at(clock::now() - profile::BACKDATE, profile::SERVER_LIFETIME)?;
        let certificate = authority.issue_server(&key.public_key(), &names, new_serial()?, validity)?;
        let config = ServerConfig::builder_with_protocol_versions(&[&TLS13])
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key.as_pkcs8_der().clone_key().into())?;
        Self::start_with(content, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn start_with(content: Vec<u8>, tls: Option<TlsAcceptor>) -> anyhow::Result<Self> {
        let address = port::free()?;
        let is_tls = tls.is_some();
        let listener = TcpListener::bind(address).await?;
        let (content, state) = (Arc::new(content), Arc::<State>::default());
        let (served, shared) = (Arc::clone(&content), Arc::clone(&state));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (content, state, tls) = (Arc::clone(&served), Arc::clone(&shared), tls.clone());
                tokio::spawn(async move {
                    state.connections.fetch_add(1, Ordering::SeqCst);
                    // What the device hangs up on is no failure of this side.
                    let _ = match tls {
                        Some(tls) => answer(tls.accept(stream).await?, address, &content, &state).await,
                        None => answer(stream, address, &content, &state).await,
                    };
                    std::io::Result::Ok(())
                });
            }
        });
        Ok(Self { address, content, is_tls, state, task })
    }

    /// What a command asks for that gets the artifact in this way.
    #[must_use]
    pub fn arguments(&self, path: &str, version: &str) -> Value {
        let sha256 = HEXLOWER.encode(digest(&SHA256, &self.content).as_ref());
        let scheme = if self.is_tls { "https" } else { "http" };
        let url = format!("{scheme}://{}{path}", self.address);
        json!({ "url": url, "sha256": sha256, "size": self.content.len(), "version": version })
    }

    /// Lets the rest of what waits at `/gate` go.
    pub fn open_gate(&self) {
        self.state.gate_is_open.store(true, Ordering::SeqCst);
    }

    #[must_use]
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    #[must_use]
    pub fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }

    #[must_use]
    pub fn resumed(&self) -> usize {
        self.state.resumed.load(Ordering::SeqCst)
    }

    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.state.sent_bytes.load(Ordering::SeqCst)
    }
}

impl Drop for ArtifactServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    own: SocketAddr,
    content: &[u8],
    state: &State,
) -> anyhow::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        anyhow::ensure!(head.len() < HEAD_BYTES_MAX && stream.read_buf(&mut head).await? > 0, "no request");
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let path = head.split(' ').nth(1).unwrap_or_default();
    let from = head.split("range: bytes=").nth(1).and_then(|rest| rest.split('-').next()?.parse::<usize>().ok());
    state.requests.fetch_add(1, Ordering::SeqCst);
    if from.is_some() {
        state.resumed.fetch_add(1, Ordering::SeqCst);
    }
    let (from, size) = (from.unwrap_or(0), content.len());
    let rest = content.get(from..).unwrap_or_default();
    let ok = |length: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    let honest = match from {
        0 => ok(size),
        _ => format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{size}\r\n\r\n",
            rest.len(),
            size - 1
        ),
    };
    let redirect = |to: &str| format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
    match path {
        // Breaks off in the middle, once.
        "/breaks" if from == 0 => send(&mut stream, state, &[honest.as_bytes(), &rest[..size / 2]].concat()).await,
        // Stops in the middle until it is let go.
        "/gate" if from == 0 => {
            send(&mut stream, state, &[honest.as_bytes(), &rest[..size / 2]].concat()).await?;
            // Whoever waits for it has given up, or was killed, when this ends.
            while !state.gate_is_open.load(Ordering::SeqCst) {
                sleep(Duration::from_millis(20)).await;
            }
            send(&mut stream, state, &rest[size / 2..]).await
        }
        "/wrong" => {
            let flipped: Vec<u8> = rest.iter().map(|byte| !byte).collect();
            send(&mut stream, state, &[honest.as_bytes(), &flipped].concat()).await
        }
        "/truncated" => send(&mut stream, state, &[ok(size).as_bytes(), &content[..size / 2]].concat()).await,
        "/short" => send(&mut stream, state, &[ok(size / 2).as_bytes(), &content[..size / 2]].concat()).await,
        "/long" => send(&mut stream, state, &[ok(size * 2).as_bytes(), content, content].concat()).await,
        "/endless" => {
            send(&mut stream, state, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
            loop {
                let chunk = format!("{:x}\r\n{}\r\n", 8192, "x".repeat(8192));
                send(&mut stream, state, chunk.as_bytes()).await?;
            }
        }
        "/endless-head" => {
            send(&mut stream, state, b"HTTP/1.1 200 OK\r\n").await?;
            loop {
                send(&mut stream, state, format!("X-Y: {}\r\n", "x".repeat(8192)).as_bytes()).await?;
            }
        }
        "/slow" => {
            send(&mut stream, state, honest.as_bytes()).await?;
            for byte in rest {
                send(&mut stream, state, &[*byte]).await?;
                sleep(Duration::from_millis(200)).await;
            }
            Ok(())
        }
        // Half of it, and then a part that is not what was asked for.
        "/other-part" if from == 0 => send(&mut stream, state, &[honest.as_bytes(), &rest[..size / 2]].concat()).await,
        "/other-part" => {
            let said = format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-{}/{size}\r\n\r\n", size - 1);
            send(&mut stream, state, &[said.as_bytes(), content].concat()).await
        }
        "/loop" => send(&mut stream, state, redirect("/loop").as_bytes()).await,
        "/to-file" => send(&mut stream, state, redirect("file:///etc/passwd").as_bytes()).await,
        "/to-other-host" => {
            send(&mut stream, state, redirect(&format!("http://localhost:{}/", own.port())).as_bytes()).await
        }
        // As it stands after `?`: to another server.
        _ if path.starts_with("/to?") => send(&mut stream, state, redirect(&path[4..]).as_bytes()).await,
        "/to-user" => send(&mut stream, state, redirect(&format!("http://a:b@{own}/")).as_bytes()).await,
        "/missing" => send(&mut stream, state, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await,
        // Whatever the path is, the name in this header is another one.
        _ if path.contains("..") || path.contains("%2e") => {
            let said = "HTTP/1.1 200 OK\r\nContent-Disposition: attachment; filename=\"../../agent.toml\"\r\n\r\n";
            let flipped: Vec<u8> = content.iter().map(|byte| !byte).collect();
            send(&mut stream, state, &[said.as_bytes(), &flipped].concat()).await
        }
        _ => send(&mut stream, state, &[honest.as_bytes(), rest].concat()).await,
    }
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), state: &State, bytes: &[u8]) -> anyhow::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await?;
    state.sent_bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
    Ok(())
}
