//! From a connection that speaks OpenVPN to a live tunnel: its turn, the handshake, who it is, its address, the epoch.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::ids::TunnelId;
use cloudlink_proto::openvpn::{Admission, AdmissionV6, Authenticated, Farewell};
use data_encoding::HEXLOWER;
use http::StatusCode;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use super::Tunnels;
use super::conn::Tunnel;
use super::handshake::Handshake;
use super::slice::{Addresses, IPV6_PREFIX};
use super::wrapping;
use crate::isolation::State;
use crate::link::admission::{Identified, admit, check_room, identify, register};
use crate::link::limit::Pass;
use crate::link::opening::tell_other_node;
use crate::link::problem::Problem;
use crate::link::{Asking, Ending, Seat, Shared, TunnelSeat};
use crate::metrics::Failure;
use crate::model::device::is_probe;
use crate::store::dispatch::LinkKey;
use crate::store::link::{NewLink, NewTunnel};
use crate::store::tunnel::Candidate;

/// `links.transport` and the metrics' label.
pub(crate) const TRANSPORT: &str = "openvpn";
/// How long a stock client waits for the end of its handshake (`--hand-window`), less what its packets take on their way.
const CLIENT_PATIENCE: Duration = Duration::from_secs(57);
/// When a client comes back that was refused, if it can be told: a person has to do something first.
const BACKOFF: Duration = Duration::from_secs(300);
/// When one comes back for which no address is left.
const NO_ADDRESS_BACKOFF_SECONDS: u32 = 60;
/// Characters of a claim of the client that are kept.
const CLAIM_CHARS_MAX: usize = 64;

/// How long one waits for isolation to be put right, which takes a moment. Then it is closed without a word, after which a stock
/// client comes again by itself.
const ENFORCED_WITHIN: Duration = Duration::from_secs(5);

/// A connection that has said that it speaks OpenVPN.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) stream: TcpStream,
    /// The bytes that said so.
    pub(crate) first: Vec<u8>,
    pub(crate) remote: IpAddr,
    pub(crate) accepted_at: Instant,
    /// Its place among strangers.
    pub(crate) pass: Pass,
}

/// Opens a tunnel. `None`: it came to nothing, and is closed.
pub(crate) async fn open(shared: &Arc<Shared>, tunnels: &Arc<Tunnels>, arrival: Arrival) -> Option<Tunnel> {
    let (remote, deadline) = (arrival.remote, arrival.accepted_at + CLIENT_PATIENCE);
    let opened = timeout_at(deadline, establish(shared, tunnels, arrival)).await.unwrap_or(Err(Failure::Timeout));
    match opened {
        Ok(tunnel) => {
            tunnels.refused.forgive(remote);
            Some(tunnel)
        }
        Err(failure) => {
            if is_refusal(failure) {
                tunnels.refused.note(remote, Instant::now());
            }
            shared.refuse(failure, remote);
            None
        }
    }
}

/// Whether the client will fail the next time, too.
fn is_refusal(failure: Failure) -> bool {
    match failure {
        Failure::Tls
        | Failure::CertificateMissing
        | Failure::CertificateInvalid
        | Failure::Revoked
        | Failure::Unknown
        | Failure::Wrapping
        | Failure::Protocol => true,
        Failure::Overload
        | Failure::Timeout
        | Failure::Http
        | Failure::Token
        | Failure::Csr
        | Failure::Unavailable
        | Failure::Draining
        | Failure::OpenvpnOff
        | Failure::ProxyUntrusted
        | Failure::ProxyHeader
        | Failure::Isolation
        | Failure::Closed => false,
    }
}

async fn establish(shared: &Arc<Shared>, tunnels: &Arc<Tunnels>, arrival: Arrival) -> Result<Tunnel, Failure> {
    let Arrival { stream, first, remote, accepted_at, pass } = arrival;
    sleep(tunnels.refused.delay(remote, Instant::now())).await;
    // This node's own probes come from itself. Without them nobody could say that a leak is gone.
    // They are looked at again when it is known who it is: a proxy in front may be on this host, too.
    let is_of_this_host = stream.local_addr().is_ok_and(|local| local.ip().to_canonical() == remote);
    if !is_of_this_host && !tunnels.isolation.is_enforced_within(ENFORCED_WITHIN).await {
        return Err(Failure::Isolation);
    }
    let within = shared.device.handshake_timeout_seconds.duration() + shared.device.request_timeout_seconds.duration();
    let config = Arc::clone(&tunnels.server);
    let mut handshake = Handshake::begin(stream, first, config, &tunnels.turns, within).await;
    let client = handshake.authenticate().await?;
    shared.metrics.handshakes.with_label_values(&[TRANSPORT]).inc();
    shared.metrics.handshake_seconds.observe(accepted_at.elapsed().as_secs_f64());

    let opened = take_in(shared, tunnels, &mut handshake, &client, pass, remote).await;
    match opened {
        Ok(opened) => {
            shared.admission.learn(remote, opened.peer.tenant_id);
            let (stream, session) = handshake.into_parts();
            live(shared, tunnels, opened, remote, move |port, handle, expires_at| Tunnel {
                session,
                stream,
                port,
                handle,
                expires_at,
            })
        }
        Err(Refusal::Failed(failure)) => Err(failure),
        Err(Refusal::Told(problem)) => {
            handshake.send_away(&farewell(&problem)).await;
            Err(problem.failure)
        }
    }
}

enum Refusal {
    /// The handshake came to nothing.
    Failed(Failure),
    /// The client is to be told.
    Told(Problem),
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Told(problem)
    }
}

/// A client that the database takes for its device's newest.
struct Opened {
    peer: Identified,
    tunnel_id: TunnelId,
    host: u32,
    epoch: u64,
    asking: Asking,
    is_quarantined: bool,
}

async fn take_in(
    shared: &Arc<Shared>,
    tunnels: &Arc<Tunnels>,
    handshake: &mut Handshake<'_>,
    client: &Authenticated,
    pass: Pass,
    remote: IpAddr,
) -> Result<Opened, Refusal> {
    let peer = identify(Some(&client.certificates), &shared.trust_domain)?;
    if !wrapping::is_key_of(&tunnels.server.wrapping, peer.device_id, client.key_metadata.as_deref()) {
        let detail = "the tls-crypt-v2 key was made for another device";
        let (kind, title) = ("client_key_invalid", "Client key invalid");
        return Err(Problem::new(kind, StatusCode::FORBIDDEN, title, detail, Failure::Wrapping).into());
    }
    if !is_probe(peer.device_id) && !tunnels.isolation.is_enforced_within(ENFORCED_WITHIN).await {
        return Err(Refusal::Failed(Failure::Isolation));
    }
    let _registration = register(shared, &peer)?;
    let (host, addresses) = address(shared, tunnels, &peer).await?;
    // Authenticated: no stranger any more.
    drop(pass);
    handshake.admit(&admission(tunnels, addresses)).await.map_err(Refusal::Failed)?;

    let tunnel_id = TunnelId::from_uuid(Uuid::now_v7());
    let link = NewLink {
        device_id: peer.device_id,
        tunnel_id: Some(tunnel_id),
        has_agent: false,
        tunnel: Some(NewTunnel {
            ipv4: addresses.ipv4,
            ipv6: addresses.ipv6,
            client: claim(&client.info.version),
            platform: claim(&client.info.platform),
            cipher: handshake.session().agreed().map_or("", |agreed| agreed.cipher.name()),
        }),
        certificate_serial: HEXLOWER.encode(&peer.serial),
        node: shared.node.clone(),
        transport: TRANSPORT,
        remote_address: remote,
        boot_id: String::new(),
        agent: String::new(),
        os: String::new(),
        hostname: String::new(),
        clock_offset_ms: 0,
        capabilities: Vec::new(),
        transport_failures: Vec::new(),
        boot_hint: None,
    };
    let asking = shared.registry.asking();
    match shared.hellos.ask(link).await {
        Ok(Some(opened)) => {
            tell_other_node(shared, &opened);
            let is_quarantined = opened.is_quarantined;
            if let Err(error) = tunnels.announce(host, is_quarantined).await {
                // The driver keeps to it by itself, and the kernel is told again soon.
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    is_quarantined,
                    "the kernel cannot be told of a quarantine"
                );
            }
            Ok(Opened { peer, tunnel_id, host, epoch: opened.epoch, asking, is_quarantined })
        }
        Ok(None) => Err(Problem::revoked().into()),
        Err(unanswered) => Err(Problem::from(unanswered).into()),
    }
}

/// The device's address, which only one gets that may open a tunnel: one statement says both.
async fn address(shared: &Shared, tunnels: &Tunnels, peer: &Identified) -> Result<(u32, Addresses), Problem> {
    check_room(shared)?;
    let candidate =
        Candidate { device_id: peer.device_id, tenant_id: peer.tenant_id, certificate_serial: peer.serial.clone() };
    let host = tunnels.addresses.ask(candidate).await.map_err(Problem::from)?;
    if let Some((host, addresses)) = host.and_then(|host| Some((host, tunnels.plane.slice().addresses(host)?))) {
        return Ok((host, addresses));
    }
    admit(shared, peer).await?;
    Err(Problem::overloaded("all tunnel addresses of this node are in use", NO_ADDRESS_BACKOFF_SECONDS))
}

fn admission(tunnels: &Tunnels, addresses: Addresses) -> Admission {
    let gateway = tunnels.plane.slice().gateway();
    Admission {
        ipv4: addresses.ipv4,
        netmask: tunnels.plane.slice().netmask(),
        gateway: gateway.ipv4,
        ipv6: Some(AdmissionV6 { address: addresses.ipv6, prefix_bits: IPV6_PREFIX, gateway: gateway.ipv6 }),
        peer_id: 0,
        options: Vec::new(),
    }
}

/// Enters the tunnel. The one that is entered last has the address, so both happen in one go.
fn live(
    shared: &Shared,
    tunnels: &Arc<Tunnels>,
    opened: Opened,
    remote: IpAddr,
    tunnel: impl FnOnce(super::plane::Port, Arc<crate::link::Handle>, Instant) -> Tunnel,
) -> Result<Tunnel, Failure> {
    let Opened { peer, tunnel_id, host, epoch, asking, is_quarantined } = opened;
    let key = LinkKey { device_id: peer.device_id, epoch };
    let (serial, expires_at) = (peer.serial.clone(), peer.expires_at);
    let seat = Seat::Tunnel(Box::new(TunnelSeat { tunnel_id, remote, identity: peer }));
    let entering = tunnels.entering();
    let handle = shared.registry.enter(key, asking, serial, seat, Instant::now());
    if handle.ending() == Some(Ending::REPLACED) {
        // A newer one of the device came up meanwhile, and has the place and the row. Whatever else it was told by now, it
        // obeys as a tunnel, which leaves them.
        return Err(Failure::Closed);
    }
    if tunnels.isolation.state() != State::Enforced && !is_probe(key.device_id) {
        // Looked at after it was entered: either whoever cuts all tunnels finds it there, or it finds why. It is a tunnel by
        // now, and ends as one, before its first packet.
        handle.end(Ending::Cut);
    }
    let port = tunnels.plane.attach(host, tunnel_id, key.device_id, is_quarantined);
    drop(entering);
    Ok(tunnel(port, handle, expires_at))
}

/// Never `AUTH_FAILED` alone, after which a stock client ends for good: a device that is put back comes back by itself.
fn farewell(problem: &Problem) -> Farewell {
    let backoff_seconds = problem.retry_after_seconds().unwrap_or(u32::try_from(BACKOFF.as_secs()).unwrap_or(u32::MAX));
    Farewell::AuthFailedTemporarily { backoff_seconds, text: problem.detail().to_owned() }
}

/// What a client says about itself, as it can be stored and shown.
fn claim(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().filter(|char| !char.is_control()).take(CLAIM_CHARS_MAX).collect()
}
