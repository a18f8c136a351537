//! Reading requests: the path, the query, the body and the headers, each with a problem that says what is wrong with it.

use axum::extract::{FromRequest, FromRequestParts, RawQuery, Request};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, StatusCode, header};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::problem::Problem;

/// The longest idempotency key, in characters.
const IDEMPOTENCY_KEY_CHARS_MAX: usize = 128;
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The one id in the path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Id(pub(crate) Uuid);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, state);
        let text = path.await.map_err(|_| Problem::bad_request("The path is not UTF-8."))?.0;
        uuid_in_path(&text).map(Self)
    }
}

pub(crate) fn uuid_in_path(text: &str) -> Result<Uuid, Problem> {
    // Only the usual form: the others of Uuid::parse_str would make several names of one thing.
    let is_hyphenated = text.len() == uuid::fmt::Hyphenated::LENGTH;
    let id = if is_hyphenated { Uuid::parse_str(text).ok() } else { None };
    id.ok_or_else(|| Problem::bad_request("The id in the path is not a UUID."))
}

/// The one name in the path.
#[derive(Clone, Debug)]
pub(crate) struct Name(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, state);
        path.await.map(|path| Self(path.0)).map_err(|_| Problem::bad_request("The path is not UTF-8."))
    }
}

/// The query. Unknown parameters are an error where `T` says so.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(query) => Ok(Self(query.0)),
            Err(rejection) => Err(Problem::bad_request(format!("The query is malformed: {}", rejection.body_text()))),
        }
    }
}

/// Refuses any query, on routes that have none.
#[derive(Debug)]
pub(crate) struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match RawQuery::from_request_parts(parts, state).await {
            Ok(RawQuery(None)) => Ok(Self),
            Ok(RawQuery(Some(query))) if query.is_empty() => Ok(Self),
            Ok(RawQuery(Some(_))) => Err(Problem::bad_request("This route takes no query parameters.")),
        }
    }
}

/// A JSON body.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        Ok(Kept::from_request(request, state).await?.json)
    }
}

/// The same, with the request as it came: another node may have to answer it.
#[derive(Debug)]
pub(crate) struct Kept<T> {
    pub(crate) json: Json<T>,
    pub(crate) request: Request,
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Kept<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::bad_request("The body must be JSON, with `Content-Type: application/json`."));
        }
        let (parts, body) = request.into_parts();
        let request = Request::from_parts(parts.clone(), body);
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                Problem::too_large()
            } else {
                Problem::bad_request("The body cannot be read to its end.")
            }
        })?;
        let parsed = serde_json::from_slice(&bytes);
        let json = parsed.map_err(|error| Problem::bad_request(format!("The body is malformed: {error}.")))?;
        Ok(Self { json: Json(json), request: Request::from_parts(parts, bytes.into()) })
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

/// The header `Idempotency-Key`, if there is one.
#[derive(Debug)]
pub(crate) struct IdempotencyKey(pub(crate) Option<String>);

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut values = parts.headers.get_all(&IDEMPOTENCY_KEY).iter();
        let Some(value) = values.next() else { return Ok(Self(None)) };
        let key = value.to_str().ok().filter(|key| (1..=IDEMPOTENCY_KEY_CHARS_MAX).contains(&key.len()));
        match (key, values.next()) {
            (Some(key), None) => Ok(Self(Some(key.to_owned()))),
            _ => Err(Problem::bad_request("Idempotency-Key must be one header of 1 to 128 visible ASCII characters.")),
        }
    }
}

impl<T: serde::Serialize> axum::response::IntoResponse for Json<T> {
    fn into_response(self) -> axum::response::Response {
        axum::Json(self.0).into_response()
    }
}
