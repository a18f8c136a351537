//! `GET /auth/callback`: a browser comes back from the OpenID provider with a code. It leaves with a cookie.

use axum::extract::State;
use axum::response::{AppendHeaders, IntoResponse};
use http::header::{LOCATION, SET_COOKIE};
use http::{Extensions, HeaderMap, StatusCode};
use serde::Deserialize;

use super::way_back::{COOKIE as WAY_BACK, WayBack};
use crate::clock;
use crate::http::Context;
use crate::http::auth::{COOKIE, cookie, counted_address};
use crate::http::problem::{Kind, Problem};
use crate::http::request::Query;
use crate::http::sign_in::{Attempt, provider_unavailable, sign_in_off};
use crate::model::token::Kind as TokenKind;
use crate::sign_in::{ExchangeError, SignIn};

/// The longest of each of the parameters, in bytes.
const PARAMETER_BYTES_MAX: usize = 4096;

/// What providers send back differs: what is not known is not looked at.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct CallbackQuery {
    code: Option<String>,
    state: Option<String>,
    /// Who answers (RFC 9207).
    iss: Option<String>,
    /// Why the provider did not let somebody in.
    error: Option<String>,
}

/// Come back from the OpenID provider
#[utoipa::path(get, path = "/auth/callback", operation_id = "auth_callback", tag = "auth", params(CallbackQuery),
    responses((status = 303, description = "Signed in, with a cookie")))]
#[tracing::instrument(name = "http.auth.callback", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    extensions: Extensions,
    headers: HeaderMap,
    Query(query): Query<CallbackQuery>,
) -> Result<impl IntoResponse, Problem> {
    let sign_in = context.sign_in.as_ref().ok_or_else(sign_in_off)?;
    let attempt = Attempt::begin(&context, counted_address(&extensions)).await?;
    let (begun, code) = match came_back(&context, sign_in, &headers, query)? {
        Ok(came_back) => came_back,
        Err(why) => return Err(attempt.failed(why).await?),
    };
    let id_token = match sign_in.provider.exchange(code, begun.verifier).await {
        Ok(id_token) => id_token,
        Err(ExchangeError::Provider(error)) => return Err(provider_unavailable(error)),
        Err(ExchangeError::Refused(why)) => {
            tracing::info!(?why, "the provider refuses a code");
            return Err(attempt
                .failed("The provider does not know the code, or it was used before. Sign in again.")
                .await?);
        }
    };
    let identity = sign_in.provider.verify_browser(&id_token, &begun.nonce).await;
    let (_, secret) = attempt.finish(sign_in, &id_token, identity, TokenKind::Browser).await?;
    let seconds = sign_in.session_for.as_secs();
    let attributes = "Path=/; Secure; HttpOnly; SameSite=Lax";
    Ok((
        StatusCode::SEE_OTHER,
        AppendHeaders([
            (LOCATION, begun.return_to),
            (SET_COOKIE, format!("{COOKIE}={}; {attributes}; Max-Age={seconds}", secret.expose())),
            (SET_COOKIE, format!("{WAY_BACK}=; {attributes}; Max-Age=0")),
        ]),
    ))
}

/// What the browser set out with, and the code; or why it is not believed.
fn came_back(
    context: &Context,
    sign_in: &SignIn,
    headers: &HeaderMap,
    query: CallbackQuery,
) -> Result<Result<(WayBack, String), &'static str>, Problem> {
    let CallbackQuery { code, state, iss, error } = query;
    if [&code, &state, &iss, &error].into_iter().flatten().any(|value| value.len() > PARAMETER_BYTES_MAX) {
        return Err(Problem::new(Kind::BadRequest, "What the provider sent is too long."));
    }
    // Somebody else's way back, which this browser was led to, has no cookie here.
    let begun = match (&state, cookie(headers, WAY_BACK)) {
        (Some(state), Some(sealed)) => WayBack::open(context.storage_key()?, sealed, state, clock::now()),
        _ => None,
    };
    let Some(begun) = begun else {
        return Ok(Err("This sign-in was not begun in this browser, took too long, or is over. Begin again."));
    };
    if iss.is_some_and(|iss| iss != sign_in.told.issuer) {
        return Ok(Err("Another provider answered than was asked. Sign in again."));
    }
    if let Some(error) = error {
        tracing::info!(?error, "the provider did not let somebody in");
        return Ok(Err(
            "The OpenID provider did not let you in. Sign in again, and ask whoever runs it if that stays so.",
        ));
    }
    Ok(code.map(|code| (begun, code)).ok_or("The provider sent no code. Sign in again."))
}
