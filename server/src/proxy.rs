//! Load balancers in front of a port. They say in a PROXY header who a connection is from, and the word of those that the
//! configuration names is taken, on each connection; nobody else's is.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use cloudlink_proto::proxy_header::{DecodeError, HEADER_BYTES_MAX, Header, MARK_BYTES_MAX, decode, is_marked};
use ipnet::IpNet;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::metrics::Failure;
use crate::sampler::Sampler;

/// The load balancers of one port; by default there are none.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// Of the port, in logs.
    key: &'static str,
    networks: Arc<[IpNet]>,
    /// Strangers must not keep from the log what a load balancer of ours does wrong.
    refused: Arc<[Sampler; 2]>,
}

/// Why a connection is refused before anybody has spoken on it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    /// A PROXY header that is not from a load balancer of ours.
    #[error("whoever sent a PROXY header is not trusted with one")]
    Untrusted,
    /// Nothing else from one that is.
    #[error(transparent)]
    Header(#[from] DecodeError),
    #[error("the connection was closed")]
    Closed(#[from] io::Error),
}

impl ProxyError {
    /// As it is counted.
    pub(crate) const fn failure(&self) -> Failure {
        match self {
            Self::Untrusted => Failure::ProxyUntrusted,
            Self::Header(_) => Failure::ProxyHeader,
            Self::Closed(_) => Failure::Closed,
        }
    }
}

impl Proxies {
    /// `key`: where they are configured.
    #[must_use]
    pub fn new(key: &'static str, networks: &[IpNet]) -> Self {
        Self { key, networks: networks.into(), refused: Arc::default() }
    }

    /// Whether connections from there have to begin with a header.
    #[must_use]
    pub fn include(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.networks.iter().any(|network| network.contains(&peer))
    }

    /// Who a load balancer makes this connection for. Takes the header, and nothing behind it; the caller limits the time.
    pub(crate) async fn client(&self, stream: &mut TcpStream, proxy: SocketAddr) -> Result<SocketAddr, ProxyError> {
        match take_header(stream).await? {
            Header::Client(client) => Ok(client),
            Header::Local => Ok(proxy),
        }
    }

    /// Logs a refusal now and then.
    pub(crate) fn refused(&self, error: &ProxyError, peer: IpAddr) {
        let [of_strangers, of_proxies] = &*self.refused;
        let sampler = if matches!(error, ProxyError::Untrusted) { of_strangers } else { of_proxies };
        let Some(unlogged) = sampler.sample(Instant::now()) else { return };
        match error {
            ProxyError::Untrusted => {
                tracing::info!(%peer, unlogged, "refused a PROXY header: {} does not name its sender", self.key);
            }
            ProxyError::Header(error) => {
                tracing::warn!(
                    %peer, unlogged, %error,
                    "refused a connection without a PROXY header that can be used: {} names its sender", self.key
                );
            }
            ProxyError::Closed(_) => {
                tracing::debug!(%peer, unlogged, "a connection was closed before its PROXY header");
            }
        }
    }
}

/// Whether somebody whose word is not taken begins with a header. Looks at what has come, once, and takes nothing: whoever sends a
/// header in pieces is refused for something else.
pub(crate) async fn sends_header(stream: &TcpStream) -> bool {
    let mut first = [0; MARK_BYTES_MAX];
    matches!(stream.peek(&mut first).await, Ok(seen) if is_marked(&first[..seen]))
}

/// Looks at what there is, and takes as much as belongs to the header: a look that takes nothing cannot wait for more.
async fn take_header(stream: &mut TcpStream) -> Result<Header, ProxyError> {
    let mut bytes = vec![0; HEADER_BYTES_MAX];
    let mut taken = 0;
    loop {
        let seen = stream.peek(&mut bytes[taken..]).await?;
        if seen == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let decoded = decode(&bytes[..taken + seen])?;
        let end = decoded.map_or(taken + seen, |(_, end)| end);
        stream.read_exact(&mut bytes[taken..end]).await?;
        taken = end;
        if let Some((header, _)) = decoded {
            return Ok(header);
        }
    }
}

#[cfg(test)]
mod tests;
