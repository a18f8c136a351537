//! `GET /auth/login`: sends a browser to the OpenID provider. It comes back to `/auth/callback`.

use std::time::Duration;

use axum::extract::State;
use axum::response::{AppendHeaders, IntoResponse};
use http::header::{LOCATION, SET_COOKIE};
use http::{Extensions, StatusCode};
use serde::Deserialize;
use tokio::time::Instant;

use crate::http::Context;
use crate::http::auth::counted_address;
use crate::http::problem::{Kind, Problem};
use crate::http::request::Query;
use crate::http::sign_in::{locked_out, provider_unavailable, sign_in_off};
use crate::secret::TokenHash;
use crate::store::sign_in::sign_in_begin;

/// The cookie that ties the way back to the browser that set out.
pub(super) const STATE_COOKIE: &str = "__Host-cloudlink-sign-in";
/// How long somebody may take at the provider.
const VALID_FOR: Duration = Duration::from_secs(600);
/// The longest path to return to, in bytes.
const RETURN_TO_BYTES_MAX: usize = 1024;
/// When to come back after too many sign-ins at once.
const RETRY_AFTER: Duration = Duration::from_secs(30);

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoginQuery {
    /// Where to go afterwards: a path of this server. Left out: `/`.
    return_to: Option<String>,
}

/// Sign in with a browser
#[utoipa::path(get, path = "/auth/login", operation_id = "auth_login", tag = "auth", params(LoginQuery),
    responses((status = 303, description = "On to the OpenID provider")))]
#[tracing::instrument(name = "http.auth.login", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    extensions: Extensions,
    Query(query): Query<LoginQuery>,
) -> Result<impl IntoResponse, Problem> {
    let sign_in = context.sign_in.as_ref().ok_or_else(sign_in_off)?;
    let return_to = query.return_to.unwrap_or_else(|| "/".to_owned());
    if !is_own_path(&return_to) {
        return Err(Problem::bad_request("`return_to` must be a path of this server, as in /devices."));
    }
    let address = counted_address(&extensions);
    context.refuse_locked_out(&[address.to_string()]).await?;
    context.limits.sign_ins.take(address, Instant::now()).map_err(|exceeded| locked_out(exceeded.0))?;
    let begun = sign_in.provider.begin().await.map_err(provider_unavailable)?;
    let (state, mut connection) = (TokenHash::of_text(&begun.state), context.store.connection().await?);
    if !sign_in_begin(&mut connection, state, &begun.nonce, &begun.verifier, &return_to, VALID_FOR).await? {
        let detail = "Too many people are signing in at once. Try again in a moment.";
        return Err(Problem::new(Kind::TooManyRequests, detail).retry_after(RETRY_AFTER));
    }
    let (name, seconds) = (STATE_COOKIE, VALID_FOR.as_secs());
    let cookie = format!("{name}={}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={seconds}", begun.state);
    Ok((StatusCode::SEE_OTHER, AppendHeaders([(LOCATION, begun.url), (SET_COOKIE, cookie)])))
}

/// Browsers take two slashes for another host, and a backslash for a slash.
fn is_own_path(path: &str) -> bool {
    path.len() <= RETURN_TO_BYTES_MAX
        && path.starts_with('/')
        && !path.starts_with("//")
        && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_to_another_host() {
        for path in ["/", "/devices?state=live#x", "/a//b"] {
            assert!(is_own_path(path), "{path}");
        }
        for path in
            ["", "devices", "//evil.example", "/\\evil.example", "https://evil.example", "/a\r\nx: y", "/ a", "/\u{e9}"]
        {
            assert!(!is_own_path(path), "{path:?}");
        }
        assert!(!is_own_path(&format!("/{}", "a".repeat(RETURN_TO_BYTES_MAX))));
    }
}
