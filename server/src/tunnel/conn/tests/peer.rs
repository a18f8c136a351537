//! A node with an interface, and devices: proto's own client over a real connection.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use cloudlink_certs::{Authority, CertificateRequest, DeviceIdentity, PrivateKey, Serial, Validity, create_request};
use cloudlink_proto::ids::{DeviceId, TunnelId};
use cloudlink_proto::openvpn::{
    Admission, AdmissionV6, ClientConfig, CloseReason, Event, HEADROOM, Output, ServerConfig, ServerEvent, Session,
    Start, State, TAILROOM, tls_client_config, tls_server_config,
};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::super::{Ended, Tunnel, run};
use crate::config;
use crate::lifecycle::Shutdown;
use crate::link::{Handle, Registry, Seat};
use crate::metrics::{Metrics, TunnelDrop};
use crate::store::dispatch::LinkKey;
use crate::tunnel::plane::Plane;
use crate::tunnel::slice::{Addresses, IPV6_PREFIX, Slice};

/// Far above what anything takes here: what runs into it hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
const SERVER_NAME: &str = "node.test";

/// Certificates of a server and of one device, which is as good as any here.
struct Pki {
    roots: RootCertStore,
    server: Leaf,
    device: Leaf,
}

struct Leaf {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
}

impl Leaf {
    fn key(&self) -> PrivateKeyDer<'static> {
        self.key.as_pkcs8_der().clone_key().into()
    }
}

static PKI: LazyLock<Pki> = LazyLock::new(|| {
    let new_key = || {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap().to_pkcs8v1().unwrap();
        PrivateKey::from_pkcs8_der(key.as_ref()).unwrap()
    };
    let start = OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000);
    let validity = |days| Validity::new(start, start + time::Duration::days(days)).unwrap();
    let authority = Authority::create(new_key(), "Test", Serial::from_random([1; 16]), validity(20_000)).unwrap();
    let key = new_key();
    let names = [SERVER_NAME.parse().unwrap()];
    let certificate =
        authority.issue_server(&key.public_key(), &names, Serial::from_random([2; 16]), validity(10_000)).unwrap();
    let server = Leaf { chain: vec![certificate], key };
    let key = new_key();
    let request = CertificateRequest::from_der(&create_request(&key).unwrap()).unwrap();
    let trust_domain = "fleet.test".parse().unwrap();
    let identity = DeviceIdentity { trust_domain, tenant: Uuid::from_u128(1), device: Uuid::from_u128(7) };
    let certificate =
        authority.issue_device(&request, &identity, Serial::from_random([7; 16]), validity(10_000)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate_der().clone()).unwrap();
    Pki { roots, server, device: Leaf { chain: vec![certificate], key } }
});

fn server_config() -> ServerConfig {
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(PKI.roots.clone()), Arc::clone(&provider));
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(PKI.server.chain.clone(), PKI.server.key())
        .unwrap();
    tls_server_config(&mut tls);
    ServerConfig::new(Arc::new(tls))
}

fn client_config() -> ClientConfig {
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(PKI.roots.clone())
        .with_client_auth_cert(PKI.device.chain.clone(), PKI.device.key())
        .unwrap();
    tls_client_config(&mut tls);
    let mut config = ClientConfig::new(Arc::new(tls), ServerName::try_from(SERVER_NAME).unwrap());
    config.push_request_every = Some(Duration::ZERO);
    config
}

/// A node with an interface.
pub(super) struct Node {
    pub(super) plane: Arc<Plane>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) gateway: Addresses,
    pub(super) server: ServerConfig,
    registry: Registry,
    slice: Slice,
    pub(super) shutdown: Shutdown,
}

impl Node {
    pub(super) fn start(change: impl FnOnce(&mut config::Tunnel)) -> Self {
        let mut config = config::Tunnel { queues: 2, ..config::Tunnel::default() };
        change(&mut config);
        let slice = slice();
        let metrics = Arc::new(Metrics::new());
        let plane = Plane::open(&config, slice, &metrics).unwrap();
        let shutdown = Shutdown::new();
        plane.start(&shutdown);
        Self {
            plane,
            metrics,
            gateway: slice.gateway(),
            server: server_config(),
            registry: Registry::new(100, 8),
            slice,
            shutdown,
        }
    }

    pub(super) fn addresses(&self, host: u32) -> Addresses {
        self.slice.addresses(host).unwrap()
    }

    /// A tunnel that is up, and the device at its other end.
    pub(super) async fn tunnel(&self, host: u32) -> Peer {
        self.tunnel_for(host, Duration::from_secs(3600)).await
    }

    /// The same, with a certificate that ends so soon.
    pub(super) async fn tunnel_for(&self, host: u32, expires_within: Duration) -> Peer {
        self.tunnel_as(host, expires_within, false).await
    }

    /// The same, of a device that may be in quarantine.
    pub(super) async fn tunnel_as(&self, host: u32, expires_within: Duration, is_quarantined: bool) -> Peer {
        let addresses = self.addresses(host);
        let admission = Admission {
            ipv4: addresses.ipv4,
            netmask: self.slice.netmask(),
            gateway: self.gateway.ipv4,
            ipv6: Some(AdmissionV6 { address: addresses.ipv6, prefix_bits: IPV6_PREFIX, gateway: self.gateway.ipv6 }),
            peer_id: host,
            options: vec![],
        };
        let (server, client) = connect(self.server.clone(), &admission);
        let (stream, remote) = wire().await;
        let device = DeviceId::from_uuid(Uuid::from_u128(host.into()));
        let key = LinkKey { device_id: device, epoch: 1 };
        let handle = self.registry.enter(key, self.registry.asking(), Box::default(), Seat::Direct, Instant::now());
        let tunnel = TunnelId::from_uuid(Uuid::new_v4());
        let live = Tunnel {
            session: Box::new(server),
            stream,
            port: self.plane.attach(host, tunnel, device, is_quarantined),
            handle: Arc::clone(&handle),
            expires_at: Instant::now() + expires_within,
        };
        let run = tokio::spawn(run(live, self.shutdown.hard.clone()));
        Peer {
            addresses,
            host,
            tunnel,
            session: client,
            stream: remote,
            packets: VecDeque::new(),
            closed: None,
            handle,
            run,
        }
    }

    /// How many packets were dropped for a reason.
    pub(super) fn dropped(&self, reason: TunnelDrop) -> u64 {
        self.metrics.tunnel_dropped.with_label_values(&[reason.label()]).get()
    }

    /// Waits until as many were.
    pub(super) async fn until_dropped(&self, reason: TunnelDrop, packets: u64) {
        let waited = async {
            while self.dropped(reason) < packets {
                sleep(Duration::from_millis(2)).await;
            }
        };
        assert!(timeout(PATIENCE, waited).await.is_ok(), "only {} of {packets} {reason:?}", self.dropped(reason));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.soft.cancel();
        self.shutdown.hard.cancel();
    }
}

pub(super) fn slice() -> Slice {
    Slice::new("10.21.0.0/16".parse().unwrap(), 24, "fd21::/48".parse().unwrap(), 3).unwrap()
}

async fn wire() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (device, node) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (device, node) = (device.unwrap(), node.unwrap().0);
    device.set_nodelay(true).unwrap();
    node.set_nodelay(true).unwrap();
    (node, device)
}

/// Two sessions that are up: they shook hands without a wire.
fn connect(server: ServerConfig, admission: &Admission) -> (Session, Session) {
    let now = Instant::now().into_std();
    let start = |seed| Start { seed: [seed; 32], unix_seconds: 1_790_000_000 };
    let mut server = Session::server(now, Arc::new(server), start(1));
    let mut client = Session::client(now, Arc::new(client_config()), start(2));
    let mut is_settled = false;
    while !is_settled {
        client.handle_timeout(Instant::now().into_std());
        let has_moved = pass(&mut client, &mut server, admission) | pass(&mut server, &mut client, admission);
        is_settled = !has_moved && server.state() == State::Live && client.state() == State::Live;
    }
    (server, client)
}

/// Whether anything passed.
fn pass(from: &mut Session, to: &mut Session, admission: &Admission) -> bool {
    let mut has_moved = false;
    while let Some(output) = from.poll_output() {
        has_moved = true;
        match output {
            Output::Transmit(mut bytes) => feed(to, &mut bytes, |_| panic!("no packet was sent")),
            Output::Event(Event::Server(ServerEvent::Authenticated(_))) => {
                from.admit(Instant::now().into_std(), admission).unwrap();
            }
            Output::Event(_) => {}
            Output::Closed(reason) => panic!("{reason:?}"),
        }
    }
    has_moved
}

fn feed(session: &mut Session, mut bytes: &mut [u8], mut packet: impl FnMut(&[u8])) {
    while !bytes.is_empty() {
        let received = session.handle_input(Instant::now().into_std(), bytes);
        if let Some(received) = received.packet {
            packet(received);
        }
        let consumed = received.consumed;
        bytes = &mut bytes[consumed..];
    }
}

/// A device at the other end of a tunnel.
pub(super) struct Peer {
    pub(super) addresses: Addresses,
    pub(super) host: u32,
    pub(super) tunnel: TunnelId,
    pub(super) handle: Arc<Handle>,
    pub(super) closed: Option<CloseReason>,
    pub(super) run: JoinHandle<Ended>,
    session: Session,
    stream: TcpStream,
    packets: VecDeque<Vec<u8>>,
}

impl Peer {
    pub(super) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.addresses.ipv4.into(), port)
    }

    pub(super) fn at_ipv6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.addresses.ipv6.into(), port)
    }

    /// Sends packets in one piece. Says whether somebody took them.
    pub(super) async fn send(&mut self, packets: &[Vec<u8>]) -> bool {
        let mut frames = Vec::new();
        for packet in packets {
            let mut buffer = [&[0; HEADROOM], packet.as_slice(), &[0; TAILROOM]].concat();
            let frame = self.session.seal(Instant::now().into_std(), &mut buffer, packet.len()).unwrap();
            frames.extend_from_slice(&buffer[frame]);
        }
        timeout(PATIENCE, self.stream.write_all(&frames)).await.expect("it is read").is_ok()
    }

    /// The next packet that comes out of the tunnel, or nothing when the tunnel is at its end.
    pub(super) async fn receive(&mut self) -> Option<Vec<u8>> {
        let received = async {
            loop {
                if let Some(packet) = self.packets.pop_front() {
                    return Some(packet);
                }
                if self.closed.is_some() {
                    return None;
                }
                self.read().await;
            }
        };
        timeout(PATIENCE, received).await.expect("a packet, or the end")
    }

    /// Whether nothing has come that waits to be received.
    pub(super) fn has_nothing(&mut self) -> bool {
        let mut bytes = vec![0; 65_536];
        if let Ok(read) = self.stream.try_read(&mut bytes) {
            feed(&mut self.session, &mut bytes[..read], |packet| self.packets.push_back(packet.to_vec()));
        }
        self.packets.is_empty()
    }

    /// Reads once.
    pub(super) async fn read(&mut self) {
        let mut bytes = vec![0; 65_536];
        match self.stream.read(&mut bytes).await {
            Ok(read) if read > 0 => {
                feed(&mut self.session, &mut bytes[..read], |packet| self.packets.push_back(packet.to_vec()));
            }
            Ok(_) | Err(_) => self.session.handle_end_of_stream(Instant::now().into_std()),
        }
        while let Some(output) = self.session.poll_output() {
            match output {
                // The node may be gone meanwhile.
                Output::Transmit(bytes) => drop(self.stream.write_all(&bytes).await),
                Output::Event(_) => {}
                Output::Closed(reason) => self.closed = Some(reason),
            }
        }
    }

    /// Goes away without a word.
    pub(super) async fn stop(self) -> Ended {
        drop(self.stream);
        timeout(PATIENCE, self.run).await.expect("the tunnel ends").unwrap()
    }

    /// Waits for the tunnel's end, as the node saw it.
    pub(super) async fn ended(self) -> Ended {
        timeout(PATIENCE, self.run).await.expect("the tunnel ends").unwrap()
    }
}
