//! The provider's endpoints, and what both ways to an ID token have in common.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use aws_lc_rs::digest;
use data_encoding::BASE64URL_NOPAD;
use reqwest::header::CONTENT_TYPE;
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::connection::ca_certificates;
use crate::failure::Failure;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// The largest answer of the provider. Real ones have some kB.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
const RANDOM_BYTES: usize = 32;

#[derive(Debug)]
pub(super) struct Provider {
    http: reqwest::Client,
    pub(super) endpoints: Endpoints,
    pub(super) client_id: String,
    /// As it is asked for: separated by blanks.
    pub(super) scope: String,
}

/// Of the discovery document.
#[derive(Debug, Deserialize)]
struct Document {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    device_authorization_endpoint: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Endpoints {
    pub(super) authorization: Url,
    token: Url,
    pub(super) device_authorization: Option<Url>,
}

#[derive(Debug, Deserialize)]
struct Tokens {
    id_token: Option<String>,
}

/// What the provider answers when it does not do it.
#[derive(Debug, Deserialize)]
pub(super) struct Refusal {
    pub(super) error: String,
    error_description: Option<String>,
}

impl Refusal {
    pub(super) fn failure(&self) -> Failure {
        let why = self.error_description.as_ref().unwrap_or(&self.error);
        Failure::NotSignedIn(format!("the OpenID provider did not let you in\n{why}"))
    }
}

impl Provider {
    pub(super) async fn discover(
        issuer: &str,
        client_id: &str,
        scopes: &[String],
        ca_pem: Option<&str>,
    ) -> Result<Self, Failure> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("cloudlink/", env!("CARGO_PKG_VERSION")))
            .https_only(true)
            .tls_version_min(reqwest::tls::Version::TLS_1_3)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT);
        if let Some(roots) = ca_certificates(ca_pem)? {
            builder = builder.tls_certs_only(roots);
        }
        let http = builder.build().context("HTTPS cannot be set up")?;
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let (status, body) = answer(http.get(&url)).await?;
        if !status.is_success() {
            return Err(anyhow!("the OpenID provider {issuer} answers {status} and not with its configuration").into());
        }
        let document: Document = read(&body)?;
        if document.issuer != issuer {
            return Err(anyhow!("the OpenID provider says that it is another than {issuer}").into());
        }
        let endpoints = Endpoints {
            authorization: endpoint(&document.authorization_endpoint)?,
            token: endpoint(&document.token_endpoint)?,
            device_authorization: document.device_authorization_endpoint.as_deref().map(endpoint).transpose()?,
        };
        let scope = ["openid"].into_iter().chain(scopes.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
        Ok(Self { http, endpoints, client_id: client_id.to_owned(), scope })
    }

    /// Posts a form to the token endpoint. The inner error is for the caller to understand.
    pub(super) async fn tokens(&self, form: &[(&str, &str)]) -> Result<Result<String, Refusal>, Failure> {
        let tokens: Result<Tokens, Refusal> = self.post(&self.endpoints.token, form).await?;
        match tokens {
            Ok(Tokens { id_token: Some(id_token) }) => Ok(Ok(id_token)),
            Ok(Tokens { id_token: None }) => Err(anyhow!("the OpenID provider gave no ID token").into()),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        endpoint: &Url,
        form: &[(&str, &str)],
    ) -> Result<Result<T, Refusal>, Failure> {
        let body = encode(form);
        let request =
            self.http.post(endpoint.clone()).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body);
        let (status, body) = answer(request).await?;
        if status.is_success() { read(&body).map(Ok) } else { read(&body).map(Err) }
    }
}

/// It may end up in front of somebody who types a password there.
fn endpoint(text: &str) -> Result<Url, Failure> {
    let url = Url::parse(text).ok().filter(|url| url.scheme() == "https");
    Ok(url.context("the OpenID provider names an address that is not https")?)
}

async fn answer(request: reqwest::RequestBuilder) -> Result<(StatusCode, Vec<u8>), Failure> {
    let unreachable = |error: reqwest::Error| Failure::Unreachable {
        what: "the OpenID provider cannot be reached".to_owned(),
        source: Some(Box::new(error.without_url())),
    };
    let mut response = request.header("accept", "application/json").send().await.map_err(unreachable)?;
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(unreachable)? {
        if body.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(anyhow!("the OpenID provider's answer is longer than {ANSWER_BYTES_MAX} bytes").into());
        }
        body.extend_from_slice(&piece);
    }
    Ok((response.status(), body))
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    Ok(serde_json::from_slice(body).context("the OpenID provider's answer cannot be understood")?)
}

/// As forms are written.
fn encode(form: &[(&str, &str)]) -> String {
    let mut url = Url::parse("https://localhost").expect("a constant address");
    url.query_pairs_mut().extend_pairs(form);
    url.query().unwrap_or_default().to_owned()
}

/// What cannot be guessed.
pub(super) fn random() -> Result<String, Failure> {
    let mut bytes = [0; RANDOM_BYTES];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow!("the system gives no random numbers"))?;
    Ok(BASE64URL_NOPAD.encode(&bytes))
}

/// The challenge of PKCE (RFC 7636).
pub(super) fn challenge(verifier: &str) -> String {
    BASE64URL_NOPAD.encode(digest::digest(&digest::SHA256, verifier.as_bytes()).as_ref())
}

/// A claim of an ID token that came straight from the provider; whether it holds is for the server to say.
pub(super) fn claim(id_token: &str, name: &str) -> Option<Value> {
    let payload = id_token.split('.').nth(1)?;
    let claims: Value = serde_json::from_slice(&BASE64URL_NOPAD.decode(payload.as_bytes()).ok()?).ok()?;
    claims.get(name).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenge_is_the_one_of_the_standard() {
        // RFC 7636, appendix B.
        let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert_eq!(challenge(verifier), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn forms_are_encoded() {
        assert_eq!(encode(&[("a", "b c"), ("d", "&=\u{e9}")]), "a=b+c&d=%26%3D%C3%A9");
    }

    #[test]
    fn claims_are_read_and_junk_has_none() {
        let token = format!("e30.{}.x", BASE64URL_NOPAD.encode(br#"{"nonce":"n"}"#));
        assert_eq!(claim(&token, "nonce"), Some("n".into()));
        for junk in ["", "a", "a.b", "a.e30.c", "a.!.c"] {
            assert_eq!(claim(junk, "nonce"), None);
        }
    }
}
