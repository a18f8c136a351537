//! The provider: its discovery document and keys, the way of a browser through it, and the judgement of ID tokens.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use openidconnect::core::{
    CoreAuthenticationFlow, CoreClient, CoreGenderClaim, CoreJsonWebKey, CoreJweContentEncryptionAlgorithm,
    CoreJwsSigningAlgorithm, CoreProviderMetadata,
};
use openidconnect::{
    AdditionalClaims, AuthorizationCode, ClaimsVerificationError, ClientId, ClientSecret, CsrfToken, HttpRequest,
    HttpResponse, IdToken, IdTokenVerifier, IssuerUrl, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl,
    RequestTokenError, Scope, SignatureVerificationError, TokenResponse,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::SetupError;
use crate::{clock, config};

const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// For one request to the provider. A sign-in needs three at most.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The largest answer of the provider. Real ones have some kB.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// After that the discovery document and the keys are asked for again.
const FRESH_FOR: Duration = Duration::from_secs(600);
/// While the provider does not answer, what is known of it is good for so long.
const KNOWN_FOR: Duration = Duration::from_secs(3600);
/// A key that is not known makes us ask again, but not for every token that somebody makes up; nor is a provider that just
/// failed asked again at once.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(2);
/// How old an ID token may be when it is traded.
const ID_TOKEN_AGE_MAX_SECONDS: i64 = 600;
/// How far the provider's clock may be ahead.
const CLOCK_AHEAD_MAX_SECONDS: i64 = 60;
/// Groups that are looked at, of one person.
const GROUPS_MAX: usize = 1_000;
/// The longest name that is taken over, in characters, and the longest email address.
const NAME_CHARS_MAX: usize = 128;
const EMAIL_CHARS: std::ops::RangeInclusive<usize> = 3..=254;
/// The longest subject that OpenID Connect allows, in ASCII characters.
const SUBJECT_BYTES_MAX: usize = 255;

#[derive(Debug)]
pub(crate) struct Provider {
    http: reqwest::Client,
    issuer: IssuerUrl,
    client_id: ClientId,
    client_secret: Option<ClientSecret>,
    cli_client_id: ClientId,
    redirect: RedirectUrl,
    scopes: Vec<String>,
    groups_claim: String,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    metadata: Option<(Arc<CoreProviderMetadata>, Instant)>,
    failed_at: Option<Instant>,
}

/// A sign-in that a browser is sent away with.
pub(crate) struct Begun {
    /// Where to.
    pub(crate) url: String,
    /// Comes back with the browser.
    pub(crate) state: String,
    /// What we keep.
    pub(crate) nonce: String,
    pub(crate) verifier: String,
}

/// What the provider says about somebody, verified.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) issuer: String,
    pub(crate) subject: String,
    pub(crate) name: String,
    pub(crate) email: Option<String>,
    pub(crate) groups: Vec<String>,
    /// When the ID token is no longer good by itself.
    pub(crate) expires_at: OffsetDateTime,
}

/// What the ID token must name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Nonce<'a> {
    /// Of a browser: the one that it was sent away with.
    Ours(&'a str),
    /// Of the command line, which has looked at its own.
    Theirs,
}

/// The provider did not answer, or not with sense.
#[derive(Debug, thiserror::Error)]
#[error("the OpenID provider cannot be used: {what}")]
pub(crate) struct ProviderError {
    what: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// With the reason, for the log.
    #[error("the ID token does not hold: {0}")]
    Invalid(String),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error("the provider refuses the code: {0}")]
    Refused(String),
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{0}")]
    Http(String),
    #[error("its answer is larger than {ANSWER_BYTES_MAX} bytes")]
    TooLarge,
}

/// The claims that OpenID Connect has no names for.
#[derive(Debug, Deserialize, Serialize)]
struct OtherClaims(HashMap<String, Value>);

impl AdditionalClaims for OtherClaims {}

type OurIdToken = IdToken<OtherClaims, CoreGenderClaim, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm>;

impl Provider {
    pub(super) fn new(
        config: &config::SignIn,
        issuer: &str,
        base: &str,
        ca_pem: Option<&str>,
    ) -> Result<Self, SetupError> {
        if !issuer.starts_with("https://") {
            return Err(SetupError::Issuer);
        }
        let issuer = IssuerUrl::new(issuer.to_owned()).map_err(|_| SetupError::Issuer)?;
        let is_bare =
            base.strip_prefix("https://").is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#']));
        let redirect = format!("{base}/api/v1/auth/callback");
        let redirect = if is_bare { RedirectUrl::new(redirect).ok() } else { None }.ok_or(SetupError::PublicUrl)?;
        Ok(Self {
            http: client(ca_pem)?,
            issuer,
            client_id: ClientId::new(config.client_id.clone()),
            client_secret: config.client_secret.as_ref().map(|secret| ClientSecret::new(secret.expose().to_owned())),
            cli_client_id: ClientId::new(config.cli_client_id.clone()),
            redirect,
            scopes: config.scopes.clone(),
            groups_claim: config.groups_claim.clone(),
            known: Mutex::default(),
        })
    }

    /// Sends a browser to the provider.
    pub(crate) async fn begin(&self) -> Result<Begun, ProviderError> {
        let metadata = self.metadata(false).await?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let client = CoreClient::from_provider_metadata((*metadata).clone(), self.client_id.clone(), None)
            .set_redirect_uri(self.redirect.clone());
        let (url, state, nonce) = client
            .authorize_url(
                CoreAuthenticationFlow::AuthorizationCode,
                CsrfToken::new_random,
                openidconnect::Nonce::new_random,
            )
            .add_scopes(self.scopes.iter().cloned().map(Scope::new))
            .set_pkce_challenge(challenge)
            .url();
        Ok(Begun {
            url: url.into(),
            state: state.secret().clone(),
            nonce: nonce.secret().clone(),
            verifier: verifier.secret().clone(),
        })
    }

    /// The ID token for the code that a browser came back with.
    pub(crate) async fn exchange(&self, code: String, verifier: String) -> Result<String, ExchangeError> {
        let metadata = self.metadata(false).await?;
        let secret = self.client_secret.clone();
        let client = CoreClient::from_provider_metadata((*metadata).clone(), self.client_id.clone(), secret)
            .set_redirect_uri(self.redirect.clone());
        let request = client.exchange_code(AuthorizationCode::new(code)).map_err(|_| without("a token endpoint"))?;
        let http = |request| send(self.http.clone(), request);
        let answer = request.set_pkce_verifier(PkceCodeVerifier::new(verifier)).request_async(&http).await;
        let answer = answer.map_err(|error| match error {
            RequestTokenError::ServerResponse(refusal) => ExchangeError::Refused(refusal.error().to_string()),
            RequestTokenError::Request(error) => ProviderError { what: error.to_string() }.into(),
            RequestTokenError::Parse(..) | RequestTokenError::Other(_) => without("a readable answer").into(),
        })?;
        Ok(answer.id_token().ok_or_else(|| without("an ID token in its answer"))?.to_string())
    }

    /// What the ID token of a browser says, if it holds.
    pub(crate) async fn verify_browser(&self, id_token: &str, nonce: &str) -> Result<Identity, VerifyError> {
        self.verify(id_token, &self.client_id, Nonce::Ours(nonce)).await
    }

    /// What the ID token of a command line says, if it holds.
    pub(crate) async fn verify_cli(&self, id_token: &str) -> Result<Identity, VerifyError> {
        self.verify(id_token, &self.cli_client_id, Nonce::Theirs).await
    }

    async fn verify(&self, text: &str, audience: &ClientId, nonce: Nonce<'_>) -> Result<Identity, VerifyError> {
        let token: OurIdToken = text.parse().map_err(|_| VerifyError::Invalid("it is none".to_owned()))?;
        let metadata = self.metadata(false).await?;
        match self.judge(&token, &metadata, audience, nonce) {
            // Keys are exchanged now and then: the new ones are known as soon as the first token comes that needs them.
            Err(ClaimsVerificationError::SignatureVerification(SignatureVerificationError::NoMatchingKey)) => {
                let metadata = self.metadata(true).await?;
                self.judge(&token, &metadata, audience, nonce)
            }
            judged => judged,
        }
        .map_err(|error| VerifyError::Invalid(reason(&error)))
    }

    fn judge(
        &self,
        token: &OurIdToken,
        metadata: &CoreProviderMetadata,
        audience: &ClientId,
        nonce: Nonce<'_>,
    ) -> Result<Identity, ClaimsVerificationError> {
        let now = clock::now();
        let verifier: IdTokenVerifier<'_, CoreJsonWebKey> =
            IdTokenVerifier::new_public_client(audience.clone(), self.issuer.clone(), metadata.jwks().clone())
                .set_allowed_algs([
                    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
                    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
                    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
                    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
                    CoreJwsSigningAlgorithm::EdDsa,
                ])
                .set_issue_time_verifier_fn(move |issued| {
                    let age = now.unix_timestamp() - issued.timestamp();
                    let is_recent = (-CLOCK_AHEAD_MAX_SECONDS..=ID_TOKEN_AGE_MAX_SECONDS).contains(&age);
                    if is_recent { Ok(()) } else { Err(format!("it was made {age} s ago")) }
                });
        let claims = token.claims(&verifier, |named: Option<&openidconnect::Nonce>| match nonce {
            Nonce::Theirs => Ok(()),
            Nonce::Ours(ours) if named.is_some_and(|named| named.secret() == ours) => Ok(()),
            Nonce::Ours(_) => Err("its nonce is another".to_owned()),
        })?;
        let subject = claims.subject().as_str();
        if !(1..=SUBJECT_BYTES_MAX).contains(&subject.len()) {
            return Err(ClaimsVerificationError::InvalidSubject("its length".to_owned()));
        }
        let name = claims.name().and_then(|name| name.get(None)).map(|name| name.as_str());
        let names = [name, claims.preferred_username().map(|name| name.as_str()), claims.email().map(|e| e.as_str())];
        let expires_at = OffsetDateTime::from_unix_timestamp(claims.expiration().timestamp())
            .map_err(|_| ClaimsVerificationError::Other("its end is no time".to_owned()))?;
        Ok(Identity {
            issuer: self.issuer.as_str().to_owned(),
            subject: subject.to_owned(),
            name: names
                .into_iter()
                .flatten()
                .map(clean)
                .find(|name| !name.is_empty())
                .unwrap_or_else(|| clean(subject)),
            email: mailed_to(claims.email().map(|email| email.as_str()), claims.email_verified()),
            groups: groups(claims.additional_claims().0.get(&self.groups_claim)),
            expires_at,
        })
    }

    /// What is known of the provider. `anew`: as of now, and not of some minutes ago.
    async fn metadata(&self, anew: bool) -> Result<Arc<CoreProviderMetadata>, ProviderError> {
        // Whoever comes while somebody asks waits for that answer.
        let mut known = self.known.lock().await;
        let good_for = if anew { ASKED_AGAIN_AFTER } else { FRESH_FOR };
        if let Some((metadata, at)) = &known.metadata
            && at.elapsed() < good_for
        {
            return Ok(Arc::clone(metadata));
        }
        let failed_just_now = known.failed_at.is_some_and(|at| at.elapsed() < ASKED_AGAIN_AFTER);
        let http = |request| send(self.http.clone(), request);
        let fetched = if failed_just_now {
            Err(ProviderError { what: "it failed a moment ago".to_owned() })
        } else {
            CoreProviderMetadata::discover_async(self.issuer.clone(), &http)
                .await
                .map_err(|error| ProviderError { what: error_chain(&error) })
        };
        match (fetched, &known.metadata) {
            (Ok(metadata), _) => {
                let metadata = Arc::new(metadata);
                *known = Known { metadata: Some((Arc::clone(&metadata), Instant::now())), failed_at: None };
                Ok(metadata)
            }
            (Err(error), Some((metadata, at))) if !anew && at.elapsed() < KNOWN_FOR => {
                tracing::warn!(error = %error, "going on with what is known of the OpenID provider");
                let metadata = Arc::clone(metadata);
                if !failed_just_now {
                    known.failed_at = Some(Instant::now());
                }
                Ok(metadata)
            }
            (Err(error), _) => {
                if !failed_just_now {
                    known.failed_at = Some(Instant::now());
                }
                Err(error)
            }
        }
    }
}

fn client(ca_pem: Option<&str>) -> Result<reqwest::Client, SetupError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("cloudlinkd/", env!("CARGO_PKG_VERSION")))
        .https_only(true)
        .tls_version_min(reqwest::tls::Version::TLS_1_3)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(CONNECT_WITHIN)
        .timeout(ANSWER_WITHIN);
    if let Some(pem) = ca_pem {
        let roots = reqwest::Certificate::from_pem_bundle(pem.as_bytes()).map_err(|_| SetupError::Ca)?;
        if roots.is_empty() {
            return Err(SetupError::Ca);
        }
        builder = builder.tls_certs_only(roots);
    }
    builder.build().map_err(SetupError::Client)
}

async fn send(client: reqwest::Client, request: HttpRequest) -> Result<HttpResponse, FetchError> {
    let (parts, body) = request.into_parts();
    let failed = |error: reqwest::Error| FetchError::Http(error_chain(&error.without_url()));
    let method = if parts.method == Method::POST { reqwest::Method::POST } else { reqwest::Method::GET };
    let request = client.request(method, parts.uri.to_string()).headers(parts.headers).body(body);
    let mut answer = request.send().await.map_err(failed)?;
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(failed)? {
        if bytes.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(FetchError::TooLarge);
        }
        bytes.extend_from_slice(&piece);
    }
    let mut response = HttpResponse::new(bytes);
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    Ok(response)
}

fn without(what: &str) -> ProviderError {
    ProviderError { what: format!("it has not {what}") }
}

/// For the log, without what the token says of anybody.
fn reason(error: &ClaimsVerificationError) -> String {
    let text = error_chain(error);
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Where somebody is mailed to: nowhere, if the provider itself says that nobody has shown the address to be theirs.
fn mailed_to(email: Option<&str>, is_verified: Option<bool>) -> Option<String> {
    let email = clean(email.filter(|_| is_verified != Some(false))?);
    EMAIL_CHARS.contains(&email.chars().count()).then_some(email)
}

/// As names may be here: on one line, and not too long.
fn clean(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect();
    text.trim().to_owned()
}

/// A list of names, or a single one.
fn groups(claim: Option<&Value>) -> Vec<String> {
    match claim {
        Some(Value::Array(items)) => {
            items.iter().filter_map(Value::as_str).take(GROUPS_MAX).map(str::to_owned).collect()
        }
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn groups_are_a_list_or_one() {
        assert_eq!(groups(Some(&json!(["a", 1, "b", null]))), ["a", "b"]);
        assert_eq!(groups(Some(&json!("a"))), ["a"]);
        assert!(groups(Some(&json!({"a": true}))).is_empty() && groups(None).is_empty());
        let many: Vec<_> = (0..5_000).map(|number| number.to_string()).collect();
        assert_eq!(groups(Some(&json!(many))).len(), GROUPS_MAX);
    }

    #[test]
    fn nobody_is_mailed_to_where_the_provider_doubts_it() {
        let email = Some("tina@example.com");
        assert_eq!(mailed_to(email, Some(true)).as_deref(), email);
        // Most say so of those only that somebody has typed in.
        assert_eq!(mailed_to(email, None).as_deref(), email);
        assert_eq!(mailed_to(email, Some(false)), None);
        assert_eq!(mailed_to(Some("x"), Some(true)), None);
        assert_eq!(mailed_to(None, None), None);
    }

    #[test]
    fn names_end_up_on_one_line() {
        assert_eq!(clean(" a\u{1b}[31m\nb\u{7}  "), "a[31mb");
        assert_eq!(clean(&"x".repeat(1_000)).len(), NAME_CHARS_MAX);
    }
}
