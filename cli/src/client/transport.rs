//! HTTPS as this program needs it: TLS 1.3, no redirects, bounded in time and size, and asked again only where asking
//! twice cannot do harm.

use std::error::Error;
use std::time::Duration;

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, RETRY_AFTER,
    SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use reqwest::{Method, StatusCode, Upgraded, Url};
use serde_json::Value;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use uuid::Uuid;

use crate::client::Problem;
use crate::connection::{Connection, ca_certificates};
use crate::failure::Failure;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From the first byte sent to the last byte of the answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Until a WebSocket is there: the server first lets the device dial.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(150);
/// After that much silence the kernel asks the peer of a WebSocket whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Between two pieces of a stream: the server sends comments more often than this.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer that is read into memory. 200 commands with 32 KiB of data each are below it.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How often a call is made in all.
const ATTEMPTS_MAX: u32 = 4;
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// The longest `Retry-After` that is waited for; with a longer one the user decides.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(15);

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

#[derive(Debug)]
pub(crate) struct Transport {
    http: reqwest::Client,
    /// For what becomes a WebSocket.
    upgrading: reqwest::Client,
    api: Url,
}

/// One call, to be made once or several times.
#[derive(Debug)]
pub(crate) struct Call {
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    headers: HeaderMap,
    body: Option<Value>,
    /// Whether making it twice is the same as making it once.
    repeatable: bool,
}

impl Call {
    #[must_use]
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path.into(), None)
    }

    #[must_use]
    pub(crate) fn post(path: impl Into<String>, body: Value) -> Self {
        Self::new(Method::POST, path.into(), Some(body))
    }

    #[must_use]
    pub(crate) fn patch(path: impl Into<String>, body: Value) -> Self {
        Self::new(Method::PATCH, path.into(), Some(body))
    }

    #[must_use]
    pub(crate) fn put(path: impl Into<String>, body: Value) -> Self {
        Self::new(Method::PUT, path.into(), Some(body))
    }

    fn new(method: Method, path: String, body: Option<Value>) -> Self {
        Self { repeatable: method == Method::GET, method, path, query: Vec::new(), headers: HeaderMap::new(), body }
    }

    #[must_use]
    pub(crate) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// The server does it once however often it is asked with this key.
    pub(crate) fn idempotency_key(mut self, key: &str) -> Result<Self, Failure> {
        let key =
            HeaderValue::from_str(key).map_err(|_| Failure::Usage("an idempotency key is plain text".to_owned()))?;
        self.headers.insert(IDEMPOTENCY_KEY, key);
        self.repeatable = true;
        Ok(self)
    }

    /// Only if the thing is still as it was read.
    pub(crate) fn if_match(mut self, etag: Option<&HeaderValue>) -> Self {
        if let Some(etag) = etag {
            self.headers.insert(IF_MATCH, etag.clone());
        }
        self
    }

    /// What may be done any number of times, because after the first there is nothing left to do.
    #[must_use]
    pub(crate) fn repeatable(mut self) -> Self {
        self.repeatable = true;
        self
    }

    fn accept(mut self, kind: &'static str) -> Self {
        self.headers.insert(ACCEPT, HeaderValue::from_static(kind));
        self
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) json: Value,
    pub(crate) etag: Option<HeaderValue>,
}

/// An answer in pieces.
pub(crate) type Pieces = BoxStream<'static, Result<Bytes, Failure>>;

impl Transport {
    pub(crate) fn new(connection: &Connection) -> Result<Self, Failure> {
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", connection.token.reveal()))
            .map_err(|_| Failure::NotSignedIn("the token has characters that no token has".to_owned()))?;
        authorization.set_sensitive(true);
        let headers = HeaderMap::from_iter([(AUTHORIZATION, authorization)]);
        Self::build(&connection.api, connection.ca_certificates()?.as_deref(), &headers)
    }

    /// As nobody, for what is open to all.
    pub(crate) fn anonymous(api: &Url, ca_pem: Option<&str>) -> Result<Self, Failure> {
        Self::build(api, ca_certificates(ca_pem)?.as_deref(), &HeaderMap::new())
    }

    fn build(api: &Url, roots: Option<&[reqwest::Certificate]>, headers: &HeaderMap) -> Result<Self, Failure> {
        let http = builder(roots, headers).read_timeout(SILENCE_TIMEOUT).build().context("HTTPS cannot be set up")?;
        let upgrading = builder(roots, headers)
            // Of no other version can a connection become something else.
            .http1_only()
            .pool_max_idle_per_host(0)
            .tcp_keepalive(KEEPALIVE)
            // A peer that takes nothing for a while is not gone: it says so, and is waited for.
            .tcp_user_timeout(None)
            .build()
            .context("HTTPS cannot be set up")?;
        Ok(Self { http, upgrading, api: api.clone() })
    }

    /// Makes the call, again if need be, and reads the answer.
    pub(crate) async fn call(&self, call: Call) -> Result<Reply, Failure> {
        let call = call.accept("application/json");
        let mut attempt = 1;
        loop {
            let (failure, may_repeat, retry_after) = match self.attempt(&call).await {
                Ok(reply) => return Ok(reply),
                Err(fault) => (fault.failure, fault.unsent || call.repeatable, fault.retry_after),
            };
            let wait = retry_after.unwrap_or_else(|| backoff(attempt));
            if !failure.is_transient() || !may_repeat || attempt == ATTEMPTS_MAX || wait > RETRY_AFTER_MAX {
                return Err(failure);
            }
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    /// Makes the call once and gives the answer in pieces.
    pub(crate) async fn stream(&self, call: Call, kind: &'static str) -> Result<Pieces, Failure> {
        let call = call.accept(kind);
        // Until the answer begins it is as bounded as any other.
        let response = tokio::time::timeout(CALL_TIMEOUT, self.request(&call).send())
            .await
            .map_err(|_| Failure::Unreachable { what: format!("{} does not answer", self.api), source: None })?
            .map_err(|error| self.fault(error).failure)?;
        let status = response.status();
        if !status.is_success() {
            let body = read(response).await.map_err(|error| self.read_fault(error).failure)?;
            return Err(Failure::Refused(Box::new(Problem::from_body(status.as_u16(), &body))));
        }
        let api = self.api.clone();
        Ok(response
            .bytes_stream()
            .map(move |piece| {
                piece.map_err(|error| Failure::Unreachable {
                    what: format!("{api} broke off its answer"),
                    source: Some(Box::new(error.without_url())),
                })
            })
            .boxed())
    }

    /// Makes the call once and gives the connection, on which a WebSocket with that subprotocol is spoken from then on. It
    /// is made as every other: to the same address, through the same proxy, with the same authorities.
    pub(crate) async fn upgrade(&self, call: Call, subprotocol: &'static str) -> Result<Upgraded, Failure> {
        let key = generate_key();
        let request = self
            .request_of(&self.upgrading, &call)
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key)
            .header(SEC_WEBSOCKET_PROTOCOL, subprotocol);
        let response = tokio::time::timeout(UPGRADE_TIMEOUT, request.send())
            .await
            .map_err(|_| Failure::Unreachable { what: format!("{} does not answer", self.api), source: None })?
            .map_err(|error| self.fault(error).failure)?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let body = read(response).await.map_err(|error| self.read_fault(error).failure)?;
            return Err(Failure::Refused(Box::new(Problem::from_body(status.as_u16(), &body))));
        }
        let is = |name, value: &str| {
            response.headers().get(name).is_some_and(|header| header.as_bytes() == value.as_bytes())
        };
        if !is(SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key.as_bytes())) || !is(SEC_WEBSOCKET_PROTOCOL, subprotocol) {
            return Err(
                anyhow::anyhow!("the server's answer is no WebSocket of Cloudlink: is the address right?").into()
            );
        }
        response.upgrade().await.map_err(|error| self.fault(error).failure)
    }

    async fn attempt(&self, call: &Call) -> Result<Reply, Fault> {
        let response = self.request(call).timeout(CALL_TIMEOUT).send().await.map_err(|error| self.fault(error))?;
        let status = response.status();
        let etag = response.headers().get(ETAG).cloned();
        let retry_after = retry_after(response.headers());
        let body = read(response).await.map_err(|error| self.read_fault(error))?;
        if status.is_success() {
            let json = if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&body) };
            let json = json.context("the server's answer is not JSON: is the address right?").map_err(Failure::from)?;
            return Ok(Reply { json, etag });
        }
        Err(Fault {
            failure: Failure::Refused(Box::new(Problem::from_body(status.as_u16(), &body))),
            // Told to come back before anything was looked at.
            unsent: status == StatusCode::TOO_MANY_REQUESTS,
            retry_after,
        })
    }

    fn request(&self, call: &Call) -> reqwest::RequestBuilder {
        self.request_of(&self.http, call)
    }

    fn request_of(&self, http: &reqwest::Client, call: &Call) -> reqwest::RequestBuilder {
        let mut url = self.api.clone();
        url.set_path(&format!("{}/api/v1{}", self.api.path().trim_end_matches('/'), call.path));
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        let request = http.request(call.method.clone(), url).headers(call.headers.clone());
        match &call.body {
            Some(body) => request.json(body),
            None => request,
        }
    }

    fn fault(&self, error: reqwest::Error) -> Fault {
        let error = error.without_url();
        if let Some(tls) = tls_error(&error) {
            return Failure::from(
                anyhow::Error::new(tls)
                    .context(format!("{} is not who it should be, or speaks no TLS 1.3 (see --ca)", self.api)),
            )
            .into();
        }
        Fault {
            unsent: error.is_connect(),
            failure: Failure::Unreachable {
                what: format!("{} cannot be reached", self.api),
                source: Some(Box::new(error)),
            },
            retry_after: None,
        }
    }

    fn read_fault(&self, error: ReadError) -> Fault {
        match error {
            ReadError::Http(error) => self.fault(error),
            ReadError::TooLong => {
                Failure::Other(anyhow::anyhow!("the server's answer is longer than {ANSWER_BYTES_MAX} bytes")).into()
            }
        }
    }
}

/// What all calls have in common.
fn builder(roots: Option<&[reqwest::Certificate]>, headers: &HeaderMap) -> reqwest::ClientBuilder {
    let builder = reqwest::Client::builder()
        .user_agent(concat!("cloudlink/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers.clone())
        .https_only(true)
        .tls_version_min(reqwest::tls::Version::TLS_1_3)
        // The token goes to the address the user named, and nowhere else.
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(CONNECT_TIMEOUT);
    match roots {
        Some(roots) => builder.tls_certs_only(roots.iter().cloned()),
        None => builder,
    }
}

/// Why one attempt did not work.
#[derive(Debug)]
struct Fault {
    failure: Failure,
    /// Nothing was done on the server.
    unsent: bool,
    retry_after: Option<Duration>,
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self { failure, unsent: false, retry_after: None }
    }
}

#[derive(Debug)]
enum ReadError {
    Http(reqwest::Error),
    TooLong,
}

async fn read(response: reqwest::Response) -> Result<Bytes, ReadError> {
    let mut body = BytesMut::new();
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(ReadError::Http)?;
        if body.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(ReadError::TooLong);
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

/// The TLS error among the causes, if that is what it was: asking again would not help.
fn tls_error(error: &reqwest::Error) -> Option<rustls::Error> {
    let mut next: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls.clone());
        }
        // An I/O error does not name the error it wraps as its source.
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// Full jitter: anything up to the doubled bound, so that many clients do not come back together.
pub(crate) fn backoff(attempt: u32) -> Duration {
    let bound = BACKOFF_FIRST.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1))).min(BACKOFF_MAX);
    let [high, low, ..] = *Uuid::new_v4().as_bytes();
    bound * u32::from(u16::from_be_bytes([high, low])) / u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backs_off_further_each_time_but_never_too_far() {
        for attempt in 1..=40 {
            assert!(backoff(attempt) <= BACKOFF_MAX);
        }
        assert!(backoff(1) <= BACKOFF_FIRST);
        assert!((0..200).any(|_| backoff(3) > BACKOFF_FIRST * 2), "the bound grows");
    }

    #[test]
    fn only_calls_that_cannot_do_harm_twice_are_repeatable() {
        assert!(Call::get("/me").repeatable);
        assert!(!Call::post("/grants", Value::Null).repeatable);
        assert!(!Call::patch("/devices/1", Value::Null).repeatable);
        assert!(Call::post("/devices/1/commands", Value::Null).idempotency_key("k").unwrap().repeatable);
    }
}
