//! A receiver of webhooks: HTTPS on a loopback port, that verifies signatures by code of its own, and behaves as badly as it is told.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use aws_lc_rs::hmac;
use data_encoding::BASE64;
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::api::install_provider;
use crate::clock;

const REQUEST_BYTES_MAX: usize = 256 * 1024;
/// How far a receiver's clock may be off, as the convention proposes.
const TOLERANCE_SECONDS: i64 = 300;

/// What it does with each request.
#[derive(Clone, Debug)]
pub enum Behaviour {
    Answer(u16),
    /// An answer with this line in its head.
    AnswerWith(u16, String),
    /// Answers 200, after so long.
    Slow(Duration),
    /// Takes the request, and never answers.
    Hang,
    /// Answers 200 with a body that does not end.
    Endless,
}

/// What came.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

#[derive(Debug)]
pub struct Receiver {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    behaviour: Mutex<Behaviour>,
    requests: Mutex<Vec<Request>>,
}

impl Receiver {
    /// Listens at `address` from now on.
    pub async fn start(
        address: SocketAddr,
        certificate: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
        behaviour: Behaviour,
    ) -> anyhow::Result<Self> {
        install_provider();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { behaviour: Mutex::new(behaviour), requests: Mutex::default() });
        let serving = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, shared) = (acceptor.clone(), Arc::clone(&serving));
                tokio::spawn(async move { shared.serve(acceptor, stream).await });
            }
        });
        Ok(Self { address, shared, task })
    }

    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
    }

    /// What came until now.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    async fn serve(&self, acceptor: TlsAcceptor, stream: TcpStream) -> Option<()> {
        let mut stream = acceptor.accept(stream).await.ok()?;
        let request = read(&mut stream).await.ok()?;
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        let behaviour = self.behaviour.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (status, line) = match behaviour {
            Behaviour::Answer(status) => (status, String::new()),
            Behaviour::AnswerWith(status, line) => (status, format!("{line}\r\n")),
            Behaviour::Slow(wait) => {
                tokio::time::sleep(wait).await;
                (200, String::new())
            }
            Behaviour::Hang => std::future::pending().await,
            Behaviour::Endless => {
                stream.write_all(b"HTTP/1.1 200 As asked\r\nTransfer-Encoding: chunked\r\n\r\n").await.ok()?;
                loop {
                    stream.write_all(b"4\r\nmore\r\n").await.ok()?;
                }
            }
        };
        let answer = format!("HTTP/1.1 {status} As asked\r\nContent-Length: 0\r\n{line}\r\n");
        stream.write_all(answer.as_bytes()).await.ok()?;
        stream.shutdown().await.ok()
    }
}

pub(crate) async fn read(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> anyhow::Result<Request> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(request) = parse(&bytes)? {
            return Ok(request);
        }
        let count = stream.read(&mut buffer).await?;
        ensure!(count > 0 && bytes.len() < REQUEST_BYTES_MAX, "half a request, or a huge one");
        bytes.extend_from_slice(&buffer[..count]);
    }
}

/// `None`: more has to come.
fn parse(bytes: &[u8]) -> anyhow::Result<Option<Request>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let (head, body) = (std::str::from_utf8(&bytes[..end])?, &bytes[end + 4..]);
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    ensure!(first.next() == Some("POST"), "not a POST: {head}");
    let path = first.next().context("no path")?.to_owned();
    let headers: HashMap<_, _> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length: usize = headers.get("content-length").context("no length")?.parse()?;
    if body.len() < length {
        return Ok(None);
    }
    Ok(Some(Request { path, headers, body: body[..length].to_vec() }))
}

impl Request {
    pub fn header(&self, name: &str) -> anyhow::Result<&str> {
        Ok(self.headers.get(name).with_context(|| format!("no {name}: {:?}", self.headers))?)
    }

    /// The event, if the secret (`whsec_…`) has signed it, a moment ago.
    pub fn verified(&self, secret: &str) -> anyhow::Result<Value> {
        let secret = BASE64.decode(secret.strip_prefix("whsec_").context("no secret")?.as_bytes())?;
        let (id, timestamp) = (self.header("webhook-id")?, self.header("webhook-timestamp")?);
        let age = clock::now().unix_timestamp() - timestamp.parse::<i64>()?;
        ensure!(age.abs() <= TOLERANCE_SECONDS, "{age} s old");
        let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", &self.body].concat();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let is_ours = |signature: &str| {
            let signature = signature.strip_prefix("v1,").and_then(|text| BASE64.decode(text.as_bytes()).ok());
            signature.is_some_and(|signature| hmac::verify(&key, &signed, &signature).is_ok())
        };
        ensure!(self.header("webhook-signature")?.split(' ').any(is_ours), "no signature of this secret");
        Ok(serde_json::from_slice(&self.body)?)
    }
}
