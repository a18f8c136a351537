//! The API, as a robot would call it.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use reqwest::header::HeaderMap;
use reqwest::{Certificate, Client, Method, StatusCode};
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(40);

/// Somebody with a token.
#[derive(Clone, Debug)]
pub struct Api {
    client: Client,
    url: String,
    token: String,
}

/// What the server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Api {
    /// Without a token it is nobody.
    pub fn new(url: &str, ca_file: &Path, token: &str) -> anyhow::Result<Self> {
        install_provider();
        let ca = Certificate::from_pem(&std::fs::read(ca_file)?)?;
        let client = Client::builder().tls_certs_only([ca]).no_proxy().timeout(TIMEOUT).build()?;
        Ok(Self { client, url: url.to_owned(), token: token.to_owned() })
    }

    /// The same place, somebody else.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// A request under `/api/v1`, whatever comes of it.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        let url = format!("{}/api/v1{path}", self.url);
        let mut request = self.client.request(method, url);
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let text = answer.text().await?;
        let body =
            if text.is_empty() { Value::Null } else { serde_json::from_str(&text).with_context(|| text.clone())? };
        Ok(Answer { status, headers, body })
    }

    /// What is no JSON.
    pub async fn get_text(&self, path: &str) -> anyhow::Result<String> {
        Ok(self.read(path).await?.text().await?)
    }

    /// The same, piece by piece as it comes.
    pub async fn read(&self, path: &str) -> anyhow::Result<reqwest::Response> {
        let url = format!("{}/api/v1{path}", self.url);
        Ok(self.client.get(url).bearer_auth(&self.token).send().await?.error_for_status()?)
    }

    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.call(Method::GET, path, &[], None).await?.success()
    }

    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.call(Method::POST, path, &[], Some(body)).await?.success()
    }

    /// Asks for a command, under a new idempotency key.
    pub async fn command(&self, device: &str, body: &Value) -> anyhow::Result<Answer> {
        let key = uuid::Uuid::new_v4().to_string();
        self.call(Method::POST, &format!("/devices/{device}/commands"), &[("Idempotency-Key", &key)], Some(body)).await
    }
}

impl Answer {
    /// The body of an answer that is no error.
    pub fn success(self) -> anyhow::Result<Value> {
        anyhow::ensure!(self.status.is_success(), "{}: {}", self.status, self.body);
        Ok(self.body)
    }

    /// The last part of the problem's type.
    #[must_use]
    pub fn problem(&self) -> &str {
        self.body["type"].as_str().and_then(|kind| kind.rsplit(':').next()).unwrap_or_default()
    }
}

/// A string member of an answer.
pub fn text(value: &Value, member: &str) -> anyhow::Result<String> {
    Ok(value[member].as_str().with_context(|| format!("there is no {member:?} in {value}"))?.to_owned())
}

/// One provider for all of TLS. The first call wins, and all calls are the same.
pub fn install_provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
