//! One simulated OpenVPN client: our own client's session on a TCP connection. It has addresses and no use for them: packets
//! that come out of the tunnel are dropped.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use cloudlink_proto::openvpn::{self, ClientConfig, ClientEvent, Event, Output, Session, State};
use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fleet::Credential;
use crate::clock;

/// On the stack while bytes are read, so that ten thousand idle clients have no buffer each.
const READ_BYTES: usize = 4096;

/// What a client with this certificate is configured with. It verifies that the server has this name. Keys are exchanged as
/// stock clients do it with OpenSSL 3.0, which does not know the post-quantum groups.
pub(crate) fn config(
    credential: &Credential,
    roots: &Arc<RootCertStore>,
    server_name: &ServerName<'static>,
) -> Result<Arc<ClientConfig>> {
    let provider = CryptoProvider { kx_groups: vec![aws_lc_rs::kx_group::X25519], ..aws_lc_rs::default_provider() };
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(vec![credential.certificate.clone()], credential.key())
        .context("the device's key does not suit its certificate")?;
    openvpn::tls_client_config(&mut tls);
    Ok(Arc::new(ClientConfig::new(Arc::new(tls), server_name.clone())))
}

/// A client from its first packet to its end.
pub(crate) struct Tunnel {
    stream: TcpStream,
    session: Box<Session>,
    is_connected: bool,
}

impl Tunnel {
    /// Does a full handshake, and waits until the server has pushed addresses.
    pub(crate) async fn open(stream: TcpStream, config: Arc<ClientConfig>) -> Result<Self> {
        let session = Box::new(Session::client(now(), config, start()?));
        let mut tunnel = Self { stream, session, is_connected: false };
        while !tunnel.is_connected {
            tunnel.step().await?;
        }
        Ok(tunnel)
    }

    /// Keeps the tunnel up until `stop`, then says goodbye. An error is an end that nobody asked for.
    pub(crate) async fn hold(&mut self, stop: &CancellationToken) -> Result<()> {
        loop {
            tokio::select! {
                step = self.step() => step?,
                () = stop.cancelled() => break,
            }
        }
        self.session.exit(now());
        while self.session.state() != State::Closed {
            // The server may close its end first.
            if self.step().await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Sends what is due, then waits for one thing and deals with it. To be cancelled only when the tunnel is to end.
    async fn step(&mut self) -> Result<()> {
        self.transmit().await?;
        let timeout = self.session.poll_timeout().map(|(at, _)| Instant::from_std(at));
        tokio::select! {
            readable = self.stream.readable() => {
                readable?;
                self.receive()
            }
            () = sleep_until(timeout) => {
                self.session.handle_timeout(now());
                Ok(())
            }
        }
    }

    async fn transmit(&mut self) -> Result<()> {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Transmit(bytes) => self.stream.write_all(&bytes).await?,
                Output::Event(Event::Client(ClientEvent::Connected(_))) => self.is_connected = true,
                Output::Event(Event::Client(ClientEvent::Info(_)) | Event::Server(_) | Event::Rekeyed(_)) => {}
                Output::Closed(reason) => bail!("the tunnel ended: {reason}"),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        let mut buffer = [0; READ_BYTES];
        let read = match self.stream.try_read(&mut buffer) {
            Ok(0) => {
                self.session.handle_end_of_stream(now());
                return Ok(());
            }
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut rest = &mut buffer[..read];
        while !rest.is_empty() {
            let consumed = self.session.handle_input(now(), rest).consumed;
            rest = &mut rest[consumed..];
        }
        Ok(())
    }
}

fn start() -> Result<openvpn::Start> {
    let mut seed = [0; 32];
    ::aws_lc_rs::rand::fill(&mut seed).context("no randomness")?;
    Ok(openvpn::Start { seed, unix_seconds: u32::try_from(clock::now().unix_timestamp())? })
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
