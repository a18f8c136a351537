//! From an open WebSocket to a live link: the hello, the epoch, the welcome. Over in a moment, and its memory with it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cloudlink_proto::ids::{DeviceId, TunnelId};
use cloudlink_proto::link::message::Hello;
use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::{Admission, FromDevice, MESSAGE_BYTES_MAX, Session};
use data_encoding::HEXLOWER;
use serde_json::json;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;

use super::admission::Identified;
use super::conn::{self, Link, Socket};
use super::registry::{Ending, InsideSeat, Seat};
use super::request::UpgradedLink;
use super::{Shared, TRANSPORT};
use crate::batch::Unanswered;
use crate::bus::Hint;
use crate::metrics::Failure;
use crate::model::boot::hint_told;
use crate::model::busy_lock::{self, NewBusyLock};
use crate::model::configuration::{self, ConfigurationTold};
use crate::model::transport_failure;
use crate::store::dispatch::LinkKey;
use crate::store::link::{NewLink, OpenedLink, Previous, link_suspect_clone};
use crate::store::single;
use crate::{clock, tunnel};

/// What a WebSocket takes from TLS at once. A link is idle most of its life, and keeps this much all the time; a message
/// that is longer gets the room that it needs.
const READ_BUFFER_BYTES: usize = 256;
/// How long a device waits that cannot be welcomed.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How often one device is suspected at most.
const SUSPECT_EVERY: Duration = Duration::from_secs(600);
/// Devices whose last suspicion is remembered. Of more, some are suspected more often.
const SUSPECTS_MAX: usize = 10_000;

/// Opens a link on a WebSocket. `None`: it came to nothing, and is closed.
pub(crate) async fn open(shared: &Arc<Shared>, upgraded: UpgradedLink, remote: IpAddr) -> Option<Link> {
    // Until this is over, with or without a link.
    let UpgradedLink { stream, tunnel_id, read_ahead, peer, registration: _registration } = upgraded;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * MESSAGE_BYTES_MAX)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let socket = WebSocketStream::from_partially_read(stream, read_ahead.to_vec(), Role::Server, Some(config)).await;
    let mut socket = Box::new(socket);
    let mut session = Box::new(Session::server(Instant::now().into_std(), &shared.timing()));
    let opened = match hello(shared, &mut socket, &mut session).await {
        Some(hello) => welcome(shared, &mut session, &peer, tunnel_id, hello, remote).await,
        None => None,
    };
    if let Some(Welcomed { handle, boot_id, hostname, busy, configuration, opened }) = opened {
        let mut link = Link::new(Arc::clone(shared), socket, session, handle, &peer, boot_id.as_str().into());
        let previous = opened.previous.as_ref().map(|previous| &previous.machine);
        if let Some(previous) = previous.filter(|_| opened.is_known_boot) {
            suspect_clone(shared, &peer, previous, &boot_id, &hostname).await;
        }
        if busy.is_some() || opened.has_busy_lock {
            link = link.with_busy_lock(busy);
        }
        if let Some(told) =
            configuration.filter(|told| opened.configuration.is_some_and(|known| known.needs_look(told)))
        {
            link = link.with_configuration(told);
        }
        return Some(if opened.has_open_commands { link.with_open_commands() } else { link });
    }
    let failure = if session.close().is_some_and(|close| close.code == Code::TimedOut) {
        Failure::Timeout
    } else {
        Failure::Protocol
    };
    shared.refuse(failure, remote);
    conn::say_goodbye(&mut socket, &mut session).await;
    None
}

/// Waits for the device's first message.
async fn hello(
    shared: &Shared,
    socket: &mut Socket,
    session: &mut Session<cloudlink_proto::link::Server>,
) -> Option<Hello> {
    while let Some(deadline) = session.poll_timeout().filter(|_| !session.state().is_ending()) {
        match timeout_at(deadline.into(), conn::receive(socket, session)).await {
            Ok(Some(FromDevice::Hello(hello))) => {
                shared.metrics.link_messages.with_label_values(&["in"]).inc();
                return Some(hello);
            }
            // Before the hello the session lets nothing else through.
            Ok(_) => {}
            Err(_) => session.handle_timeout(Instant::now().into_std()),
        }
    }
    None
}

/// In the registry, which only a [`Link`] leaves by itself.
struct Welcomed {
    handle: Arc<super::Handle>,
    boot_id: String,
    hostname: String,
    busy: Option<NewBusyLock>,
    /// Of a device that takes configuration.
    configuration: Option<ConfigurationTold>,
    opened: OpenedLink,
}

/// Makes the link the device's newest, and says so.
async fn welcome(
    shared: &Shared,
    session: &mut Session<cloudlink_proto::link::Server>,
    peer: &Identified,
    tunnel_id: Option<TunnelId>,
    hello: Hello,
    remote: IpAddr,
) -> Option<Welcomed> {
    let transport_failures = transport_failure::told(&hello.transport_failures, hello.clock_unix_ms);
    let busy = hello.busy_lock.as_ref().and_then(busy_lock::told);
    let configuration = hello
        .capabilities
        .iter()
        .any(|capability| capability == configuration::CAPABILITY)
        .then(|| hello.configuration.as_ref().map(configuration::told).unwrap_or_default());
    let boot_hint = hint_told(hello.boot_hint());
    let boot_id = storable(hello.boot_id);
    let link = NewLink {
        device_id: peer.device_id,
        tunnel_id,
        has_agent: true,
        tunnel: None,
        certificate_serial: HEXLOWER.encode(&peer.serial),
        node: shared.node.clone(),
        transport: if tunnel_id.is_some() { tunnel::opening::TRANSPORT } else { TRANSPORT },
        remote_address: remote,
        boot_id: boot_id.clone(),
        agent: storable(hello.agent),
        os: storable(hello.os),
        hostname: storable(hello.hostname),
        clock_offset_ms: clock::offset_ms(hello.clock_unix_ms),
        capabilities: hello.capabilities.into_iter().map(storable).collect(),
        transport_failures,
        boot_hint,
    };
    let hostname = link.hostname.clone();
    let asking = shared.registry.asking();
    let opened = match shared.hellos.ask(link).await {
        Ok(Some(opened)) => opened,
        Ok(None) => {
            // Inside a tunnel it is the tunnel that is not the newest any more: one of a revoked device is cut itself.
            let ending = if tunnel_id.is_some() { Ending::REPLACED } else { Ending::REVOKED };
            let Ending::Polite { code, message, .. } = ending else { return None };
            session.goodbye(Instant::now().into_std(), code, message, Duration::ZERO);
            return None;
        }
        Err(unanswered) => {
            let message = match unanswered {
                Unanswered::Unavailable => "the database cannot be reached",
                Unanswered::Fault => "the server failed; its log says why",
            };
            session.goodbye(Instant::now().into_std(), Code::Overloaded, message, RETRY_AFTER);
            return None;
        }
    };
    let now = Instant::now();
    let key = LinkKey { device_id: peer.device_id, epoch: opened.epoch };
    let handle = shared.registry.enter(key, asking, peer.serial.clone(), seat(tunnel_id), now);
    tell_other_node(shared, &opened);
    let admission = Admission {
        device_id: peer.device_id,
        tenant_id: peer.tenant_id,
        epoch: opened.epoch,
        clock_unix_ms: u64::try_from(clock::unix_ms()).unwrap_or(0),
        metrics_interval: shared.link.metrics_interval_seconds.duration(),
    };
    // A session that has timed out meanwhile is live for the registry all the same, and ends like any other link.
    if let Err(error) = session.welcome(now.into_std(), &admission) {
        tracing::debug!(device = %peer.device_id, %error, "a device could not be welcomed in time");
    }
    Some(Welcomed { handle, boot_id, hostname, busy, configuration, opened })
}

/// The node that has the device's older link ends that.
pub(crate) fn tell_other_node(shared: &Shared, opened: &OpenedLink) {
    if opened.previous.as_ref().is_some_and(|previous| previous.machine.was_live && previous.node != shared.node) {
        shared.bus.send(Hint::DeviceLinked(opened.device_id));
    }
}

fn seat(tunnel_id: Option<TunnelId>) -> Seat {
    tunnel_id.map_or(Seat::Direct, |tunnel_id| {
        Seat::Inside(Box::new(InsideSeat { tunnel_id, finished: CancellationToken::new() }))
    })
}

/// Text of a device, as Postgres can store it: without NUL.
pub(super) fn storable(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

/// A boot id is random and new with each boot. When a device comes back with one that was seen before, but is not its last, two
/// machines take turns: somebody has copied the certificate and its key.
pub(super) async fn suspect_clone(
    shared: &Shared,
    peer: &Identified,
    previous: &Previous,
    boot_id: &str,
    hostname: &str,
) {
    if previous.boot_id == boot_id || !shared.clones.may_suspect(peer.device_id, Instant::now()) {
        return;
    }
    shared.metrics.clones_suspected.inc();
    tracing::warn!(device = %peer.device_id, "two machines seem to use the certificate of one device");
    let details = json!({
        "boot_ids": [previous.boot_id, boot_id],
        "hostnames": [previous.hostname, hostname],
        "serials": [HEXLOWER.encode(&previous.certificate_serial)],
        "was_live": previous.was_live,
    });
    let Identified { tenant_id, device_id, .. } = *peer;
    let written =
        async { single!(shared.store, |connection| link_suspect_clone(connection, tenant_id, device_id, &details)) };
    if let Err(error) = shared.store.within(written).await {
        shared.clones.forget(device_id);
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot record the suspicion of a clone");
    }
}

/// When devices were last suspected.
#[derive(Debug, Default)]
pub(super) struct Clones {
    suspected: Mutex<HashMap<DeviceId, Instant>>,
}

impl Clones {
    fn may_suspect(&self, device: DeviceId, now: Instant) -> bool {
        let mut suspected = self.suspected.lock().unwrap_or_else(PoisonError::into_inner);
        if suspected.get(&device).is_some_and(|at| now.duration_since(*at) < SUSPECT_EVERY) {
            return false;
        }
        if suspected.len() >= SUSPECTS_MAX {
            suspected.retain(|_, at| now.duration_since(*at) < SUSPECT_EVERY);
        }
        if suspected.len() < SUSPECTS_MAX {
            suspected.insert(device, now);
        }
        true
    }

    fn forget(&self, device: DeviceId) {
        self.suspected.lock().unwrap_or_else(PoisonError::into_inner).remove(&device);
    }
}
