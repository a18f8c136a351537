//! Tunnels: OpenVPN sessions of devices on the device port, and the interface that carries their packets.
//!
//! ```text
//! link::accept ── first bytes ──┬─ TLS ─► links
//!                               └─ OpenVPN ─► opening ── turn, handshake, who it is, address, epoch ──┐
//!                                                                                                     ▼
//!     kernel ◄── interface ◄── plane (which tunnel has which address) ◄── port ◄── conn: drives proto's session
//!        │                                                                             life: the row, the registry
//!        └── link_port on the gateway's address ── inside ─► link::request, link::conn
//! ```
//!
//! A tunnel is its device's link, with an epoch of its own; an agent that dials inside it takes that over with the next epoch and
//! leaves it again. Packets go from a tunnel to the node and back, never from one tunnel to another.

pub(crate) mod conn;
pub(crate) mod day;
mod handshake;
pub(crate) mod inside;
pub(crate) mod life;
pub(crate) mod opening;
pub mod plane;
mod quarantine;
pub mod slice;
mod statement;
mod turn;
pub mod wrapping;

use std::num::NonZero;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;

use aws_lc_rs::digest;
use cloudlink_proto::openvpn::{ServerConfig, ServerWrapping, tls_server_config};
use ipnet::{IpNet, Ipv6Net};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use tokio::sync::Notify;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::batch::Batch;
use crate::config;
use crate::isolation::Isolation;
use crate::link::TlsError;
use crate::link::limit::{Allowance, Gate};
use crate::store::tunnel::{TunnelTraffic, address_trim_in_txn, slice_lease_in_txn};
use crate::store::{Store, StoreError, Visibility};
use day::Days;
use plane::Plane;
use quarantine::Told;
use slice::Slice;
use statement::{Leases, Totals};
use turn::{Refused, Turns};

/// How long a node has its slice without renewing it.
pub(crate) const SLICE_LEASE: Duration = Duration::from_secs(3600);
/// Connections out of one tunnel at once that are no link or stream yet, and new ones in the long run and at first. An
/// agent needs one for its link, and one for each terminal, file and forwarded connection.
const INSIDE_PER_TUNNEL_MAX: u32 = 32;
const INSIDE_PER_SECOND: u32 = 20;
const INSIDE_BURST: u32 = 200;

/// Why there are no tunnels.
#[derive(Debug, thiserror::Error)]
pub enum TunnelsError {
    #[error("the fleet's root certificate cannot be read")]
    Root,
    #[error("tunnel.pool_ipv4, tunnel.slice_prefix and tunnel.pool_ipv6 leave no room for a slice")]
    Pool,
    #[error(
        "all {0} slices of tunnel.pool_ipv4 are leased to other nodes: make the pool larger, or slice_prefix longer"
    )]
    NoSlice(u32),
    #[error("cannot lease a slice of the address pool")]
    Store(#[from] StoreError),
}

/// What tunnels share.
#[derive(Debug)]
pub(crate) struct Tunnels {
    pub(crate) plane: Arc<Plane>,
    pub(crate) isolation: Arc<Isolation>,
    /// The number of its slice in the pool.
    pub(crate) slice_number: u32,
    server: Arc<ServerConfig>,
    addresses: Batch<Leases>,
    totals: Batch<Totals>,
    /// When it carried whose tunnels.
    pub(crate) days: Arc<Days>,
    /// How many days the records of isolation are kept.
    pub(crate) keep_days: u32,
    turns: Turns,
    refused: Refused,
    /// Connections out of tunnels that are no link yet.
    inside: Arc<Gate>,
    entering: Mutex<()>,
    has_left: Notify,
    told: Told,
    /// 0: none is.
    pub(crate) quarantine_after_packets: u32,
}

/// What they are made of.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) config: &'a config::Tunnel,
    pub(crate) device: &'a config::Device,
    pub(crate) server: ServerConfig,
    pub(crate) plane: Arc<Plane>,
    pub(crate) isolation: Arc<Isolation>,
    pub(crate) leased: Leased,
    pub(crate) store: Store,
    pub(crate) keep_days: u32,
    /// See `isolation.quarantine_after_packets`.
    pub(crate) quarantine_after_packets: u32,
}

/// The slice of this node.
#[derive(Clone, Copy, Debug)]
pub struct Leased {
    pub slice: Slice,
    pub number: u32,
}

impl Tunnels {
    /// Starts what tunnels share. To be called in a runtime.
    pub(crate) fn new(parts: Parts<'_>) -> Arc<Self> {
        let Parts { config, device, server, plane, isolation, leased, store, keep_days, quarantine_after_packets } =
            parts;
        let at_once = match usize::try_from(config.handshakes_max) {
            Ok(0) | Err(_) => 2 * available_parallelism().map_or(1, NonZero::get),
            Ok(at_once) => at_once,
        };
        let leases = Leases { slice: leased.number, hosts_max: leased.slice.hosts_max() };
        Arc::new(Self {
            plane,
            isolation,
            slice_number: leased.number,
            server: Arc::new(server),
            addresses: Batch::start(leases, store.clone()),
            totals: Batch::start(Totals, store),
            days: Arc::default(),
            keep_days,
            turns: Turns::new(at_once),
            refused: Refused::default(),
            inside: Gate::new(Allowance {
                total_max: device.unauthenticated_max,
                per_address_max: INSIDE_PER_TUNNEL_MAX,
                per_second: INSIDE_PER_SECOND,
                burst: INSIDE_BURST,
            }),
            entering: Mutex::new(()),
            has_left: Notify::new(),
            told: Told::default(),
            quarantine_after_packets,
        })
    }

    /// Held while a tunnel is entered among the links and gets its address.
    fn entering(&self) -> MutexGuard<'_, ()> {
        self.entering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a tunnel is gone, since it was last asked. For one task alone.
    pub(crate) async fn left(&self) {
        self.has_left.notified().await;
    }

    /// What went through each tunnel so far.
    pub(crate) fn traffic(&self) -> Vec<TunnelTraffic> {
        self.plane.traffic().into_iter().map(|(owner, counts)| life::row(owner, counts)).collect()
    }
}

/// How sessions of clients are served.
pub fn server_config(
    config: &config::Tunnel,
    root: CertificateDer<'static>,
    certificate: Arc<dyn ResolvesServerCert>,
    wrapping: ServerWrapping,
) -> Result<ServerConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(root).map_err(TlsError::Root)?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().map_err(TlsError::Verifier)?;
    let mut tls = rustls::ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    tls_server_config(&mut tls);
    let every = config.renegotiate_seconds.duration();
    Ok(ServerConfig {
        wrapping,
        has_tls_key_export: config.key_export,
        mtu: u16::try_from(config.mtu).unwrap_or(u16::MAX),
        ping: config.ping_interval_seconds.duration(),
        ping_restart: config.dead_after_seconds.duration(),
        renegotiate_every: (!every.is_zero()).then_some(every),
        ..ServerConfig::new(Arc::new(tls))
    })
}

/// Leases this node its slice.
pub async fn lease(
    config: &config::Tunnel,
    root: &CertificateDer<'_>,
    node: &str,
    store: &Store,
) -> Result<Leased, TunnelsError> {
    let prefix = u8::try_from(config.slice_prefix).map_err(|_| TunnelsError::Pool)?;
    let count = Slice::count(config.pool_ipv4, prefix);
    let pool_ipv6 = pool_ipv6(config, root)?;
    let leased = async {
        let mut transaction = store.begin(Visibility::All).await?;
        let number = slice_lease_in_txn(&mut transaction, node, count, SLICE_LEASE).await?;
        let slice = number.and_then(|number| Slice::new(config.pool_ipv4, prefix, pool_ipv6, number));
        if let (Some(number), Some(slice)) = (number, slice) {
            address_trim_in_txn(&mut transaction, number, slice.hosts_max()).await?;
        }
        transaction.commit().await?;
        Ok::<_, StoreError>((number, slice))
    };
    let (number, slice) = store.within(leased).await?;
    let number = number.ok_or(TunnelsError::NoSlice(count))?;
    Ok(Leased { slice: slice.ok_or(TunnelsError::Pool)?, number })
}

/// Where the addresses of all devices in tunnels come from.
pub fn pools(config: &config::Tunnel, root: &CertificateDer<'_>) -> Result<[IpNet; 2], TunnelsError> {
    Ok([config.pool_ipv4.into(), pool_ipv6(config, root)?.into()])
}

fn pool_ipv6(config: &config::Tunnel, root: &CertificateDer<'_>) -> Result<Ipv6Net, TunnelsError> {
    config.pool_ipv6.map_or_else(|| fleet_pool(root), Ok)
}

/// A unique local network (RFC 4193) that follows from the fleet's root: 40 bits of the hash of its public key.
fn fleet_pool(root: &CertificateDer<'_>) -> Result<Ipv6Net, TunnelsError> {
    let (_, certificate) = X509Certificate::from_der(root).map_err(|_| TunnelsError::Root)?;
    let hash = digest::digest(&digest::SHA256, certificate.public_key().raw);
    let mut bytes = [0; 16];
    bytes[0] = 0xfd;
    bytes[1..6].copy_from_slice(&hash.as_ref()[..5]);
    Ipv6Net::new(bytes.into(), 48).map_err(|_| TunnelsError::Pool)
}
