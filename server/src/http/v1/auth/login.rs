//! `GET /auth/login`: sends a browser to the OpenID provider. It comes back to `/auth/callback`.

use axum::extract::State;
use axum::response::{AppendHeaders, IntoResponse};
use http::header::{LOCATION, SET_COOKIE};
use http::{Extensions, StatusCode};
use serde::Deserialize;
use tokio::time::Instant;

use super::way_back::{COOKIE, VALID_FOR, WayBack};
use crate::clock;
use crate::http::Context;
use crate::http::auth::counted_address;
use crate::http::problem::Problem;
use crate::http::request::Query;
use crate::http::sign_in::{locked_out, provider_unavailable, sign_in_off};

/// The longest path to return to, in bytes.
pub(super) const RETURN_TO_BYTES_MAX: usize = 1024;

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
    let way_back = WayBack {
        state: begun.state,
        nonce: begun.nonce,
        verifier: begun.verifier,
        return_to,
        expires_at: clock::now() + VALID_FOR,
    };
    let (sealed, seconds) = (way_back.seal(context.storage_key()?), VALID_FOR.as_secs());
    let cookie = format!("{COOKIE}={sealed}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={seconds}");
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
