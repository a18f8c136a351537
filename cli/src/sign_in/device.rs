//! A code that is typed into a browser somewhere else (RFC 8628): for hosts without one.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::provider::Provider;
use crate::failure::Failure;
use crate::output::{note, plain};

const GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";
/// Where the provider does not say how often it may be asked.
const ASK_EVERY_SECONDS: u64 = 5;
/// What is added when it is too often.
const SLOWER_BY: Duration = Duration::from_secs(5);
/// However long the provider says.
const VALID_FOR_MAX: Duration = Duration::from_secs(1800);

#[derive(Debug, Deserialize)]
struct Begun {
    device_code: String,
    user_code: String,
    verification_uri: String,
    verification_uri_complete: Option<String>,
    expires_in: u64,
    interval: Option<u64>,
}

pub(super) async fn id_token(provider: &Provider) -> Result<String, Failure> {
    let Some(endpoint) = &provider.endpoints.device_authorization else {
        return Err(Failure::Usage("the OpenID provider has no device codes\nSign in without --device.".to_owned()));
    };
    let form = [("client_id", provider.client_id.as_str()), ("scope", &provider.scope)];
    let begun: Begun = provider.post(endpoint, &form).await?.map_err(|refusal| refusal.failure())?;
    note(&format!(
        "Open {} in a browser and type the code {}",
        plain(&begun.verification_uri),
        plain(&begun.user_code)
    ));
    if let Some(complete) = &begun.verification_uri_complete {
        note(&format!("Or open: {}", plain(complete)));
    }
    let end = Instant::now() + Duration::from_secs(begun.expires_in).min(VALID_FOR_MAX);
    let mut every = Duration::from_secs(begun.interval.unwrap_or(ASK_EVERY_SECONDS).clamp(1, 60));
    let form = [("grant_type", GRANT), ("device_code", &begun.device_code), ("client_id", &provider.client_id)];
    while Instant::now() < end {
        tokio::time::sleep(every).await;
        match provider.tokens(&form).await? {
            Ok(id_token) => return Ok(id_token),
            Err(refusal) if refusal.error == "authorization_pending" => {}
            Err(refusal) if refusal.error == "slow_down" => every += SLOWER_BY,
            Err(refusal) => return Err(refusal.failure()),
        }
    }
    Err(Failure::NotSignedIn("the code was not typed in time\nRun the command again.".to_owned()))
}
