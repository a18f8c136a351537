//! The device port: from an accepted connection to a link, and everything that happens on it.
//!
//! ```text
//! accept ── limits ── TLS ──┬─ enrollment name ── POST /v1/enroll ── enroll
//!                           └─ any other name, client certificate ─┬ POST /v1/poll ── poll
//!                                                                 ├ GET /ndt/v7/… ── ndt
//!                                                                 └ GET /v1/link ── admission ── WebSocket
//!                                                                                                    │
//!        registry (device → newest link) <── hello: the database gives the epoch ────────────── opening
//!              │ orders                                                                              │
//!   dispatch ──┘                                     conn: drives proto's session <──────────────────┘
//! ```
//!
//! A device has one link: the newest epoch. The database says which that is, the `registry` ends the older one, and every
//! later write names its epoch and does nothing for an older one.
//!
//! A link that is up stays up while the database is away: what its device reports waits (bounded) and is receipted once it
//! is stored; what was not receipted, the device says again over its next link. No new link comes up in that time, because
//! nobody could say whether its device was revoked.
//!
//! Start reading at [`accept`], then `request`, `opening`, `conn`.

pub mod accept;
mod account;
pub(crate) mod admission;
mod command;
pub(crate) mod configuration;
pub(crate) mod conn;
pub(crate) mod dispatch;
mod enroll;
pub(crate) mod intake;
pub(crate) mod limit;
pub(crate) mod ndt;
pub(crate) mod opening;
mod poll;
pub(crate) mod problem;
pub(crate) mod registry;
mod renew;
mod report;
pub(crate) mod request;
pub(crate) mod sample;
pub(crate) mod statement;
mod storm;
pub(crate) mod stream;
#[cfg(test)]
mod tests;
mod ticket;
pub(crate) mod tls;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use cloudlink_certs::{Authority, TrustDomain};
use cloudlink_proto::ids::{DeviceId, TenantId};
use cloudlink_proto::link::Timing;
use cloudlink_proto::link::message::MetricsReport;
use tokio::time::Instant;

pub(crate) use account::account;
pub(crate) use conn::close_row;
pub use ticket::Tickets;
pub use tls::{Tls, TlsError};

use limit::{Allowance, Gate};
pub(crate) use registry::{Asking, Ending, Handle, Order, Registry, Seat, StreamOrder, TunnelSeat, Unproven};
use report::Reports;
use sample::Samples;
use sample::pace::Pace;
use statement::{Closes, Hellos, Polls, Standings, Transitions};

use crate::admission::Admission;
use crate::batch::Batch;
use crate::bus::Bus;
use crate::cluster::Peers;
use crate::drain::Drain;
use crate::metrics::{Failure, Metrics};
use crate::proxy::{Proxies, ProxyError};
use crate::sampler::Sampler;
use crate::store::Store;
use crate::support::expect::Expectations;
use crate::trace::Tracer;
use crate::tunnel::Tunnels;
use crate::{clock, config};

/// `links.transport` and the metrics' label of links over a connection of their own.
pub(crate) const TRANSPORT: &str = "websocket";
/// Enrollments a second from one address, in the long run: each costs a signature and a transaction.
const ENROLLMENTS_PER_SECOND: u32 = 5;
/// Enrollments from one address before the rate applies: the gateways of a building are unpacked in one go.
const ENROLLMENTS_BURST: u32 = 200;

/// What the device port is made of.
#[derive(Debug)]
pub struct Parts {
    pub node: String,
    pub trust_domain: TrustDomain,
    pub device: config::Device,
    pub admission: config::Admission,
    pub link: config::Link,
    pub poll: config::Poll,
    pub telemetry: config::Telemetry,
    pub link_test: config::LinkTest,
    pub certificate: config::Certificate,
    pub store: Store,
    pub bus: Bus,
    pub metrics: Arc<Metrics>,
    pub tracer: Tracer,
    pub authority: Arc<Authority>,
    pub tls: Tls,
    /// Where OpenVPN clients are served.
    pub(crate) tunnels: Option<Arc<Tunnels>>,
}

/// The device port and its links. Cheap to clone; every clone is the same.
#[derive(Clone, Debug)]
pub struct Links(pub(crate) Arc<Shared>);

/// What the tasks of the device port share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) node: String,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) device: config::Device,
    link: config::Link,
    poll: config::Poll,
    pub(crate) telemetry: config::Telemetry,
    pub(crate) link_test: config::LinkTest,
    pub(crate) tests: Arc<ndt::Tests>,
    certificate: config::Certificate,
    pub(crate) store: Store,
    pub(crate) bus: Bus,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tracer: Tracer,
    authority: Arc<Authority>,
    pub(crate) tls: Tls,
    pub(crate) tunnels: Option<Arc<Tunnels>>,
    /// Lets new connections in.
    pub(crate) admission: Arc<Admission>,
    /// Whose word for who a device is, by its address, is taken.
    proxies: Proxies,
    strangers: Arc<Gate>,
    enrolling: Arc<Gate>,
    pub(crate) registry: Registry,
    pub(crate) reports: Reports,
    pub(crate) samples: Samples,
    pace: Pace,
    /// Devices whose poll is being answered.
    polling: Mutex<HashSet<DeviceId>>,
    standings: Batch<Standings>,
    pub(crate) hellos: Batch<Hellos>,
    transitions: Batch<Transitions>,
    closes: Batch<Closes>,
    polls: Batch<Polls>,
    clones: opening::Clones,
    refusals: Sampler,
    /// Streams that devices were asked for.
    pub(crate) expectations: Arc<Expectations>,
    /// Where there are other nodes.
    pub(crate) peers: OnceLock<Arc<Peers>>,
    /// Whether devices are to go elsewhere.
    pub(crate) drain: Arc<Drain>,
}

impl Links {
    /// Starts what links share. To be called in a runtime.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts {
            node,
            trust_domain,
            device,
            admission,
            link,
            poll,
            telemetry,
            link_test,
            certificate,
            store,
            bus,
            metrics,
            tracer,
            authority,
            tls,
            tunnels,
        } = parts;
        let strangers = Gate::new(Allowance {
            total_max: device.unauthenticated_max,
            per_address_max: device.unauthenticated_per_address_max,
            per_second: device.connects_per_address_per_second,
            burst: device.connects_per_address_burst,
        });
        let enrolling = Gate::new(Allowance {
            total_max: device.unauthenticated_max,
            per_address_max: device.unauthenticated_per_address_max,
            per_second: ENROLLMENTS_PER_SECOND,
            burst: ENROLLMENTS_BURST,
        });
        Self(Arc::new(Shared {
            registry: Registry::new(device.links_max as usize, link.send_queue_max as usize),
            standings: Batch::start(Standings, store.clone()),
            hellos: Batch::start(Hellos, store.clone()),
            transitions: Batch::start(Transitions, store.clone()),
            closes: Batch::start(Closes, store.clone()),
            polls: Batch::start(Polls, store.clone()),
            admission: Admission::start(&admission, Arc::clone(&metrics)),
            reports: Reports::default(),
            samples: Samples::default(),
            pace: Pace::default(),
            polling: Mutex::default(),
            tests: Arc::default(),
            clones: opening::Clones::default(),
            refusals: Sampler::default(),
            proxies: Proxies::new("device.proxy_from", &device.proxy_from),
            expectations: Arc::new(Expectations::of(&node)),
            peers: OnceLock::new(),
            drain: Arc::default(),
            node,
            trust_domain,
            device,
            link,
            poll,
            telemetry,
            link_test,
            certificate,
            store,
            bus,
            metrics,
            tracer,
            authority,
            tls,
            tunnels,
            strangers,
            enrolling,
        }))
    }

    /// From now on streams of devices may be for other nodes. Once.
    pub(crate) fn join(&self, peers: Arc<Peers>) {
        let _ = self.0.peers.set(peers);
    }

    /// Links that are live on this node.
    #[must_use]
    pub fn live(&self) -> usize {
        self.0.registry.len()
    }
}

impl Shared {
    fn timing(&self) -> Timing {
        Timing {
            ping_interval: self.link.ping_interval_seconds.duration(),
            max_missed_pings: self.link.max_missed_pings,
            hello_within: self.link.hello_timeout_seconds.duration(),
        }
    }

    /// Keeps what a device has measured: as its last report, and as a sample unless it came too soon. `since_last`: how long ago
    /// it reported to any node, where that is known.
    fn take_report(
        &self,
        device_id: DeviceId,
        tenant_id: TenantId,
        report: MetricsReport,
        since_last: Option<Duration>,
        now: Instant,
    ) {
        let clock_offset_ms = report.clock_unix_ms.map(clock::offset_ms);
        let telemetry = &self.metrics.telemetry;
        let spacing = self.sample_spacing();
        let is_due = || since_last.is_none_or(|since| since >= spacing) && self.pace.is_due(device_id, spacing, now);
        if self.telemetry.enabled && !is_due() {
            telemetry.dropped("too_often", 1);
        } else if self.telemetry.enabled {
            let gauges = sample::gauges(&report, clock_offset_ms);
            telemetry.dropped("queue_full", self.samples.put(device_id, tenant_id, gauges, now));
        }
        self.reports.put(device_id, tenant_id, report, clock_offset_ms, now);
    }

    /// How often a linked device reports.
    pub(crate) fn metrics_interval(&self) -> Duration {
        self.link.metrics_interval_seconds.duration()
    }

    /// A device that reports faster than it was told to fills no tables: the last of its reports is shown all the same.
    fn sample_spacing(&self) -> Duration {
        self.link.metrics_interval_seconds.duration().max(Duration::from_secs(1)) / 2
    }

    fn reconnect_spread_seconds(&self) -> u32 {
        self.link.reconnect_spread_seconds.0
    }

    pub(crate) fn reconnect_spread(&self) -> Duration {
        self.link.reconnect_spread_seconds.duration()
    }

    pub(crate) fn reconcile_interval(&self) -> Duration {
        self.link.reconcile_interval_seconds.duration()
    }

    /// Counts a connection that became nothing, and logs one now and then.
    pub(crate) fn refuse(&self, failure: Failure, remote: IpAddr) {
        self.metrics.handshake_failed(failure);
        if let Some(unlogged) = self.refusals.sample(Instant::now()) {
            tracing::info!(reason = failure.label(), %remote, unlogged, "a connection to the device port was refused");
        }
    }

    /// Counts a connection that was refused for its PROXY header, or for want of one.
    pub(crate) fn refuse_proxy(&self, error: &ProxyError, peer: IpAddr) {
        self.metrics.handshake_failed(error.failure());
        self.proxies.refused(error, peer);
    }
}
