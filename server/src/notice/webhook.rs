//! Sends to webhooks, by the convention of Standard Webhooks (standardwebhooks.com): docs/WEBHOOKS.md is the receiver's side.

use std::error::Error as _;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use cloudlink_proto::ids::WebhookId;
use data_encoding::BASE64;
use http::{StatusCode, header};
use reqwest::{Certificate, Client, Url};
use zeroize::Zeroizing;

use super::address::{AddressRefused, Guard, Refused, Resolver};
use crate::model::webhook::URL_CHARS_MAX;
use crate::storage_key::{OpenError, StorageKey};

/// 256 bits, as long as what HMAC-SHA-256 gives.
const SECRET_BYTES: usize = 32;
const SECRET_PREFIX: &str = "whsec_";

/// What deliveries to one webhook are signed with.
pub struct Secret(Zeroizing<[u8; SECRET_BYTES]>);

impl Secret {
    /// Draws one from the system's randomness.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        aws_lc_rs::rand::fill(bytes.as_mut()).expect("the system's random source has no way to fail once it is seeded");
        Self(bytes)
    }

    /// The secret itself, to be shown once.
    #[must_use]
    pub fn expose(&self) -> String {
        format!("{SECRET_PREFIX}{}", BASE64.encode(self.0.as_ref()))
    }

    /// To be stored: nobody reads it without the storage key, nor for another webhook.
    #[must_use]
    pub fn seal(&self, key: &StorageKey, webhook: WebhookId) -> Vec<u8> {
        key.seal(&purpose(webhook), self.0.as_ref())
    }

    pub(super) fn open(key: &StorageKey, webhook: WebhookId, sealed: &[u8]) -> Result<Self, OpenError> {
        let opened = key.open(&purpose(webhook), sealed)?;
        let bytes = opened.as_slice().try_into().map_err(|_| OpenError::Changed)?;
        Ok(Self(Zeroizing::new(bytes)))
    }

    fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.as_ref());
        let mut context = hmac::Context::with_key(&key);
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body);
        format!("v1,{}", BASE64.encode(context.sign().as_ref()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

fn purpose(webhook: WebhookId) -> String {
    format!("webhook {webhook}")
}

/// Why an address cannot be a webhook's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("it is no address of the form https://host/path")]
    Form,
    #[error("it must begin with https://")]
    Scheme,
    #[error("it must not have a user name or a password: the signature says who sends")]
    UserInfo,
    #[error("it must not have a part after #")]
    Fragment,
    #[error("it must have at most {URL_CHARS_MAX} characters")]
    TooLong,
    #[error(transparent)]
    Address(#[from] AddressRefused),
}

/// The address as it is stored and called.
pub fn check_url(text: &str, guard: &Guard) -> Result<Url, UrlError> {
    let url = Url::parse(text).map_err(|_| UrlError::Form)?;
    match url.scheme() {
        "https" => {}
        "http" if guard.is_private_fine() => {}
        _ => return Err(UrlError::Scheme),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UrlError::UserInfo);
    }
    if url.fragment().is_some() {
        return Err(UrlError::Fragment);
    }
    if url.as_str().chars().count() > URL_CHARS_MAX || text.chars().count() > URL_CHARS_MAX {
        return Err(UrlError::TooLong);
    }
    let port = port(&url).ok_or(UrlError::Form)?;
    if let Some(ip) = literal(&url).ok_or(UrlError::Form)? {
        guard.check(SocketAddr::new(ip, port)).map_err(AddressRefused)?;
    }
    Ok(url)
}

fn port(url: &Url) -> Option<u16> {
    url.port_or_known_default().filter(|port| *port != 0)
}

/// The address that is written in the URL itself: no resolver is asked about it. `None` if there is no host at all.
fn literal(url: &Url) -> Option<Option<IpAddr>> {
    let host = url.host_str().filter(|host| !host.is_empty())?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some(bare.parse().ok())
}

/// Why nothing can be sent to webhooks.
#[derive(Debug, thiserror::Error)]
pub enum SenderError {
    #[error("cannot read notice.webhook_ca_file")]
    File(#[source] std::io::Error),
    #[error("notice.webhook_ca_file has no certificates, PEM")]
    Certificates(#[source] Option<reqwest::Error>),
    #[error("the client for webhooks cannot be made")]
    Client(#[source] reqwest::Error),
}

/// What came of sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The receiver has it.
    Taken(StatusCode),
    /// The receiver wants nothing more at all.
    Gone,
    /// It may work later, in so long at the soonest.
    Refused { status: StatusCode, retry_after: Option<Duration> },
    /// No answer, and why in few words.
    Failed(&'static str),
}

/// Calls receivers: without redirects, proxies, or a second use of a connection.
#[derive(Debug)]
pub(super) struct Sender {
    guard: Arc<Guard>,
    /// For ports that this server does not listen on, and for one that it does.
    others: Client,
    own: Client,
    within: Duration,
}

impl Sender {
    pub(super) fn new(guard: Arc<Guard>, ca_file: Option<&Path>, within: Duration) -> Result<Self, SenderError> {
        let roots = ca_file.map(read_roots).transpose()?;
        let client = |port| {
            let mut client = Client::builder()
                .dns_resolver(Arc::new(Resolver { guard: Arc::clone(&guard), port }))
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
                .referer(false)
                .pool_max_idle_per_host(0)
                .connect_timeout(within)
                .timeout(within)
                .user_agent(concat!("cloudlinkd/", env!("CARGO_PKG_VERSION")));
            if let Some(roots) = &roots {
                client = client.tls_certs_only(roots.iter().cloned());
            }
            client.build().map_err(SenderError::Client)
        };
        // No server of ours listens on port 0.
        let (others, own) = (client(0)?, client(guard.own_port().unwrap_or(0))?);
        Ok(Self { guard, others, own, within })
    }

    /// Sends `body` once. `secrets`: each signs.
    pub(super) async fn send(&self, url: &str, secrets: &[Secret], id: &str, timestamp: i64, body: Vec<u8>) -> Answer {
        // Judged anew: the configuration, or this host's addresses, may be others than when it was made.
        let url = match check_url(url, &self.guard) {
            Ok(url) => url,
            Err(UrlError::Address(_)) => return Answer::Failed(ADDRESS_REFUSED),
            Err(_) => return Answer::Failed("the address is not allowed"),
        };
        let client = if port(&url).is_some_and(|port| self.guard.is_own_port(port)) { &self.own } else { &self.others };
        let signatures: Vec<_> = secrets.iter().map(|secret| secret.sign(id, timestamp, &body)).collect();
        let request = client
            .post(url)
            .header(header::CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp.to_string())
            .header("webhook-signature", signatures.join(" "))
            .body(body)
            .send();
        // What the receiver says besides its status is not read.
        match tokio::time::timeout(self.within, request).await {
            Ok(Ok(response)) => judge(response.status(), response.headers()),
            Ok(Err(error)) => Answer::Failed(words(&error)),
            Err(_) => Answer::Failed(TIMED_OUT),
        }
    }
}

const TIMED_OUT: &str = "timed out";
const ADDRESS_REFUSED: &str = "the address is not allowed";

fn judge(status: StatusCode, headers: &header::HeaderMap) -> Answer {
    if status.is_success() {
        return Answer::Taken(status);
    }
    if status == StatusCode::GONE {
        return Answer::Gone;
    }
    let seconds = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Answer::Refused { status, retry_after: seconds.map(Duration::from_secs) }
}

/// What the error means to the owner of the webhook: nothing of this server's network.
fn words(error: &reqwest::Error) -> &'static str {
    let mut source = error.source();
    while let Some(cause) = source {
        if cause.is::<AddressRefused>() || cause.is::<Refused>() {
            return ADDRESS_REFUSED;
        }
        if is_tls(cause) {
            return "no trusted TLS connection";
        }
        source = cause.source();
    }
    match (error.is_timeout(), error.is_connect()) {
        (true, _) => TIMED_OUT,
        (false, true) => "cannot connect",
        (false, false) => "the connection broke off",
    }
}

fn is_tls(cause: &(dyn std::error::Error + 'static)) -> bool {
    let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    cause.is::<rustls::Error>() || inner.is_some_and(|inner| inner.is::<rustls::Error>())
}

fn read_roots(path: &Path) -> Result<Vec<Certificate>, SenderError> {
    let pem = std::fs::read(path).map_err(SenderError::File)?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(roots) if !roots.is_empty() => Ok(roots),
        Ok(_) => Err(SenderError::Certificates(None)),
        Err(error) => Err(SenderError::Certificates(Some(error))),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use uuid::Uuid;

    use super::*;

    fn guard(is_private_fine: bool) -> Guard {
        Guard::new(is_private_fine, Vec::new(), vec![8443])
    }

    #[test]
    fn signs_as_the_convention_says() {
        // The example of the convention's specification.
        let bytes = BASE64.decode(b"C2FVsBQIhrscChlQIMV+b5sSYspob7oD").unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
        let signed = hmac::sign(
            &key,
            b"msg_27UH4WbU6Z5A5EzD8u03UvzRbpk.1649367553.{\"email\":\"test@example.com\",\"username\":\"test_user\"}",
        );
        assert_eq!(BASE64.encode(signed.as_ref()), "tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=");
        // What is signed is put together the same way.
        let secret = Secret(Zeroizing::new([7; SECRET_BYTES]));
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; SECRET_BYTES]);
        let expected = format!("v1,{}", BASE64.encode(hmac::sign(&key, b"id.12.{}").as_ref()));
        assert_eq!(secret.sign("id", 12, b"{}"), expected);
    }

    #[test]
    fn a_secret_is_sealed_for_its_own_webhook() {
        let (key, webhook) = (StorageKey::from_bytes([1; 32]), WebhookId::from_uuid(Uuid::from_u128(1)));
        let secret = Secret::generate();
        let sealed = secret.seal(&key, webhook);
        assert_eq!(Secret::open(&key, webhook, &sealed).unwrap().expose(), secret.expose());
        assert!(Secret::open(&key, WebhookId::from_uuid(Uuid::from_u128(2)), &sealed).is_err());
        assert!(secret.expose().starts_with("whsec_"));
        assert_eq!(format!("{secret:?}"), "Secret(redacted)");
    }

    #[rstest]
    #[case("https://example.com/hook?key=1", Ok(()))]
    #[case("https://EXAMPLE.com:8443/", Ok(()))]
    #[case("https://93.184.216.34/", Ok(()))]
    #[case("http://example.com/", Err(UrlError::Scheme))]
    #[case("ftp://example.com/", Err(UrlError::Scheme))]
    #[case("file:///etc/passwd", Err(UrlError::Scheme))]
    #[case("example.com", Err(UrlError::Form))]
    #[case("https://", Err(UrlError::Form))]
    #[case("https://example.com:0/", Err(UrlError::Form))]
    #[case("https://user@example.com/", Err(UrlError::UserInfo))]
    #[case("https://:pw@example.com/", Err(UrlError::UserInfo))]
    #[case("https://example.com/#part", Err(UrlError::Fragment))]
    #[case("https://127.0.0.1/", Err(UrlError::Address(AddressRefused(Refused::Private))))]
    #[case("https://[::1]/", Err(UrlError::Address(AddressRefused(Refused::Private))))]
    #[case("https://[::ffff:10.0.0.1]/", Err(UrlError::Address(AddressRefused(Refused::Private))))]
    #[case("https://169.254.169.254/latest/meta-data", Err(UrlError::Address(AddressRefused(Refused::Never))))]
    // The same address, written otherwise.
    #[case("https://2130706433/", Err(UrlError::Address(AddressRefused(Refused::Private))))]
    #[case("https://0x7f.1/", Err(UrlError::Address(AddressRefused(Refused::Private))))]
    #[case("https://0177.0.0.1/", Err(UrlError::Address(AddressRefused(Refused::Private))))]
    #[case("https://127.1/", Err(UrlError::Address(AddressRefused(Refused::Private))))]
    #[case("https://１２７.０.０.１/", Err(UrlError::Address(AddressRefused(Refused::Private))))]
    fn an_address_is_judged_when_it_is_given(#[case] text: &str, #[case] expected: Result<(), UrlError>) {
        assert_eq!(check_url(text, &guard(false)).map(|_| ()), expected);
    }

    #[test]
    fn http_and_this_host_are_fine_where_the_configuration_says_so_but_not_the_server_itself() {
        assert!(check_url("http://127.0.0.1:8080/", &guard(true)).is_ok());
        let refused = Err(UrlError::Address(AddressRefused(Refused::Oneself)));
        assert_eq!(check_url("https://127.0.0.1:8443/", &guard(true)), refused);
        let long = format!("https://example.com/{}", "x".repeat(URL_CHARS_MAX));
        assert_eq!(check_url(&long, &guard(true)), Err(UrlError::TooLong));
    }

    #[test]
    fn answers_are_told_apart() {
        let none = header::HeaderMap::new();
        assert_eq!(judge(StatusCode::NO_CONTENT, &none), Answer::Taken(StatusCode::NO_CONTENT));
        assert_eq!(judge(StatusCode::GONE, &none), Answer::Gone);
        let refused = |status, retry_after| Answer::Refused { status, retry_after };
        assert_eq!(judge(StatusCode::FOUND, &none), refused(StatusCode::FOUND, None));
        let mut later = none.clone();
        later.insert(header::RETRY_AFTER, "120".parse().unwrap());
        let status = StatusCode::TOO_MANY_REQUESTS;
        assert_eq!(judge(status, &later), refused(status, Some(Duration::from_secs(120))));
        later.insert(header::RETRY_AFTER, "Wed, 21 Oct 2026 07:28:00 GMT".parse().unwrap());
        assert_eq!(judge(status, &later), refused(status, None));
    }
}
