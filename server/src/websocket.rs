//! The opening handshake of a WebSocket, as a server checks it (RFC 6455, section 4.2.1). Both ports have it.

use http::header::{
    CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::{HeaderMap, HeaderValue};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Length of a `Sec-WebSocket-Key`: 16 bytes in base64 (RFC 6455, section 4.1).
const KEY_CHARS: usize = 24;

/// Why a request does not become a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("this is a WebSocket: ask for the upgrade")]
    NoUpgrade,
    #[error("this server speaks WebSocket version 13")]
    Version,
    #[error("Sec-WebSocket-Key is missing or malformed")]
    Key,
    #[error("ask for the WebSocket subprotocol {0}")]
    Subprotocol(&'static str),
}

/// Checks a request for an upgrade. Gives the headers of the answer, `101 Switching Protocols`.
pub(crate) fn accept(headers: &HeaderMap, subprotocol: &'static str) -> Result<HeaderMap, HandshakeError> {
    if !has_token(headers, CONNECTION, "upgrade") || !has_token(headers, UPGRADE, "websocket") {
        return Err(HandshakeError::NoUpgrade);
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(HandshakeError::Version);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| key.len() == KEY_CHARS).ok_or(HandshakeError::Key)?;
    if !has_token(headers, SEC_WEBSOCKET_PROTOCOL, subprotocol) {
        return Err(HandshakeError::Subprotocol(subprotocol));
    }
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).expect("base64 is a header value");
    Ok(HeaderMap::from_iter([
        (CONNECTION, HeaderValue::from_static("upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_ACCEPT, accept),
        (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol)),
    ]))
}

/// Whether one of the comma-separated values of a header is this one.
fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(token))
}
