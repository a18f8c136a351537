//! One HTTP request, and its answer, over a connection that is there.

use std::error::Error as _;
use std::io;

use bytes::Bytes;
use http::{Request, response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::AbortOnDropHandle;

use crate::dial::is_refusing_alert;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error("the request did not get through")]
    Request(#[source] hyper::Error),
    #[error("the server's answer cannot be read")]
    Answer,
}

impl ExchangeError {
    /// Whether the server refuses who this device is, in the words of TLS.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        let Self::Request(error) = self else { return false };
        let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        source.is_some_and(is_refusing_alert)
    }
}

/// Sends the request, and takes an answer of so many bytes at most. The connection is of no use after that.
///
/// # Errors
/// When there is no such answer.
pub async fn exchange<S>(
    stream: S,
    request: Request<Full<Bytes>>,
    body_bytes_max: usize,
) -> Result<(response::Parts, Bytes), ExchangeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(ExchangeError::Request)?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender.send_request(request).await.map_err(ExchangeError::Request)?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, body_bytes_max).collect().await.map_err(|_| ExchangeError::Answer)?.to_bytes();
    Ok((head, body))
}
