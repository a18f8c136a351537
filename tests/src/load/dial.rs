//! TCP and TLS, the same for every protocol.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::fleet::Credential;

/// Devices that share one source address, where the target is on the loopback interface.
const DEVICES_PER_ADDRESS: usize = 100;

/// A server to dial.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    pub server_name: ServerName<'static>,
    pub roots: Arc<RootCertStore>,
}

impl Target {
    /// Opens a connection for the device of this number. On the loopback interface groups of devices come from addresses
    /// of their own, as from so many buildings: limits that a server has for each address hold as in real life.
    pub async fn connect(&self, index: usize) -> Result<TcpStream> {
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if self.address.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
            socket.bind(SocketAddr::new(source_address(index).into(), 0))?;
        }
        let stream =
            socket.connect(self.address).await.with_context(|| format!("cannot connect to {}", self.address))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A full handshake of mutual TLS 1.3: nothing is resumed.
    pub async fn secure(&self, stream: TcpStream, credential: &Credential) -> Result<TlsStream<TcpStream>> {
        let mut config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(vec![credential.certificate.clone()], credential.key())
            .context("the device's key does not suit its certificate")?;
        config.resumption = Resumption::disabled();
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(self.server_name.clone(), stream).await.context("the TLS handshake failed")
    }
}

fn source_address(index: usize) -> Ipv4Addr {
    let [_, _, high, low] = u32::try_from(index / DEVICES_PER_ADDRESS).unwrap_or(u32::MAX).to_be_bytes();
    Ipv4Addr::new(127, 1, high, low.saturating_add(1))
}
