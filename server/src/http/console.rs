//! The console: its files are part of the program. What is neither a file of it nor a route of the API is its one page, which sees by itself
//! what to show: addresses can be kept and passed on.

use std::borrow::Cow;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
use rust_embed::{EmbeddedFile, RustEmbed};

use super::problem::Problem;

/// As `npm run build` in `console/` leaves them. A program that is built without them serves the API alone; one that is built for debugging
/// reads them when they are asked for.
#[derive(RustEmbed)]
#[folder = "../console/dist"]
#[allow_missing = true]
struct Files;

const PAGE: &str = "index.html";
/// Files here have a hash of their content in their names.
const HASHED: &str = "assets/";

/// Scripts and styles are files of ours, and talk to us alone; nobody shows a page of ours inside theirs.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; \
                      manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
static PERMISSIONS: HeaderName = HeaderName::from_static("permissions-policy");
static OPENER: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// Marks an answer that is a file of the console.
#[derive(Clone, Copy, Debug)]
pub(super) struct Served;

/// Whatever is no route.
pub(super) async fn serve(method: Method, version: Version, uri: Uri, headers: HeaderMap) -> Response {
    // Whoever asks for a whole URL takes this for a proxy. In HTTP/2 every request names the authority.
    let is_for_a_proxy = version < Version::HTTP_2 && uri.authority().is_some();
    let is_read = matches!(method, Method::GET | Method::HEAD);
    let Some(path) = path_of(&uri).filter(|_| is_read && !is_for_a_proxy) else {
        return Problem::not_found().into_response();
    };
    // A hashed file that is gone is of another version: the page would be no answer to that.
    let name = if Files::get(path).is_some() || path.starts_with(HASHED) { path } else { PAGE };
    let Some(file) = Files::get(name) else { return Problem::not_found().into_response() };
    let compressed = takes_gzip(&headers).then(|| Files::get(&format!("{name}.gz"))).flatten();
    let is_compressed = compressed.is_some();
    let mut response = answer(compressed.unwrap_or(file), &headers);
    response.extensions_mut().insert(Served);
    let head = response.headers_mut();
    let kept = if name.starts_with(HASHED) { "public, max-age=31536000, immutable" } else { "no-cache" };
    for (header, value) in [
        (header::CONTENT_TYPE, kind(name)),
        (header::CACHE_CONTROL, kept),
        (header::VARY, "accept-encoding"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (PERMISSIONS.clone(), "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
        (OPENER.clone(), "same-origin"),
    ] {
        head.insert(header, HeaderValue::from_static(value));
    }
    if is_compressed {
        head.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// Without its first slash, if it can be that of a file or a page: all of ours are plain, and those of the API are its own.
fn path_of(uri: &Uri) -> Option<&str> {
    let path = uri.path().strip_prefix('/')?;
    let is_plain = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    let is_ours = path.is_empty() || path.split('/').all(is_plain) && path.split('/').next() != Some("api");
    is_ours.then_some(path)
}

/// The file, unless the browser has it.
fn answer(file: EmbeddedFile, asked: &HeaderMap) -> Response {
    let tag = format!("\"{}\"", HEXLOWER.encode(&file.metadata.sha256_hash()[..16]));
    let known = asked.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok()).unwrap_or_default();
    let is_known = known.split(',').any(|known| known.trim().trim_start_matches("W/") == tag);
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        match file.data {
            Cow::Borrowed(bytes) => Body::from(Bytes::from_static(bytes)),
            Cow::Owned(bytes) => Body::from(bytes),
        }
        .into_response()
    };
    response.headers_mut().insert(header::ETAG, HeaderValue::from_str(&tag).expect("hexadecimal digits"));
    response
}

/// Whether compressed content is asked for (RFC 9110 §12.5.3).
fn takes_gzip(headers: &HeaderMap) -> bool {
    let taken = headers.get(header::ACCEPT_ENCODING).and_then(|taken| taken.to_str().ok()).unwrap_or_default();
    taken.split(',').any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        name.trim() == "gzip" && weight.trim().trim_start_matches("q=").parse() != Ok(0.0)
    })
}

fn kind(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "json" | "webmanifest" => "application/json",
        "png" => "image/png",
        "woff2" => "font/woff2",
        _ => "application/octet-stream",
    }
}
