//! The API of the people port: who is calling, what was asked, and what the store says about it. docs/API.md has the rules
//! that hold for all of it; [`router`] has the table of routes with the roles that may call them.
//!
//! To drive it: make a [`Context`], spawn [`Context::follow_hints`], and serve [`router`] with a connection's peer address as
//! `axum::extract::ConnectInfo<SocketAddr>` in the extensions of each request. Start reading in [`router`], then in any file of
//! `v1/`: one endpoint each, with its errors at the top and its tests at the bottom.

mod auth;
mod command_event;
mod console;
mod etag;
mod feed;
mod field;
mod limit;
mod page;
mod pass_on;
mod problem;
mod request;
mod router;
mod selector;
pub(crate) mod sign_in;
#[cfg(test)]
pub(crate) mod testing;
mod token_watch;
mod traced;
mod v1;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::ids::{DeviceId, TokenId};
use tokio_util::sync::CancellationToken;

pub use self::router::{openapi, router};

use self::command_event::Hub;
use self::feed::Feed;
use self::limit::{Buckets, Rate};
use self::problem::Problem;
use self::token_watch::TokenWatch;
use self::v1::command::create::Creates;
use crate::batch::Batch;
use crate::bus::{Bus, Hint};
use crate::cluster::Peers;
use crate::config::Telemetry;
use crate::drain::Drain;
use crate::isolation::proof::Prover;
use crate::link::Links;
use crate::metrics::Metrics;
use crate::model::command::State;
use crate::model::network::DevicePort;
use crate::model::openvpn_profile::Remote;
use crate::notice::Notices;
use crate::pki::StatementSigner;
use crate::sign_in::SignIn;
use crate::storage_key::StorageKey;
use crate::store::Store;
use crate::store::command::CalledBack;
use crate::store::support_session::EndedSession;
use crate::support::Support;
use crate::trace::Tracer;

/// The largest body of a request.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// Addresses whose failed authentications are counted apart. Beyond that, strangers share one count.
const FAILING_ADDRESSES_MAX: usize = 16_384;
/// Tokens whose requests are counted apart. Beyond that, further tokens share one count.
const COUNTED_TOKENS_MAX: usize = 16_384;

/// What can be set about the API.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The longest that a request may take until its answer begins, the reading of its body included. Default 20 s.
    pub request_within: Duration,
    /// Requests a second that one token may make on and on. Default 1,000: a script gone wild is stopped, a rollout is not.
    pub token_requests_per_second: u32,
    /// Requests that one token may make at once. Default 4,000.
    pub token_requests_burst: u32,
    /// Failed authentications that one address (IPv6: its /64) may make at once. Default 20. Further ones are refused
    /// unread, at first for 3 s.
    pub failures_burst: u32,
    /// After so many failed sign-ins, an address or a person is locked out. Default 10.
    pub lock_after_failures: u32,
    /// For how long. Default 900 s.
    pub lock_for: Duration,
    /// How long the answer to an opening waits for the node to have done it. Default 2 s.
    pub opening_within: Duration,
    /// Streams of events at a time, in total. Default 4,000; each costs about 20 kB.
    pub streams_max: usize,
    /// Streams of events at a time, of all people of one tenant. Default 500.
    pub streams_per_tenant_max: usize,
    /// Streams of events at a time, of one person. Default 50.
    pub streams_per_person_max: usize,
    /// How often a stream looks at the database without a hint. Default 5 s.
    pub stream_recheck_every: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            request_within: Duration::from_secs(20),
            token_requests_per_second: 1000,
            token_requests_burst: 4000,
            failures_burst: 20,
            lock_after_failures: 10,
            lock_for: Duration::from_secs(900),
            opening_within: Duration::from_secs(2),
            streams_max: 4000,
            streams_per_tenant_max: 500,
            streams_per_person_max: 50,
            stream_recheck_every: Duration::from_secs(5),
        }
    }
}

/// Seconds after which one more failed authentication is forgiven.
const FAILURE_FORGIVEN_AFTER_SECONDS: f64 = 3.0;

/// Browsers that one address (IPv6: its /64) may send away to sign in. A company may share one.
const SIGN_INS: Rate = Rate { burst: 60, per_second: 2.0 };

/// What every handler works with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Context {
    store: Store,
    creates: Arc<Batch<Creates>>,
    bus: Bus,
    metrics: Arc<Metrics>,
    hub: Arc<Hub>,
    feed: Arc<Feed>,
    tokens: Arc<TokenWatch>,
    limits: Arc<Limits>,
    request_within: Duration,
    opening_within: Duration,
    lock_after_failures: u32,
    lock_for: Duration,
    stopping: CancellationToken,
    /// None: OpenVPN clients are not served.
    openvpn: Option<Arc<Remote>>,
    device_port: Arc<DevicePort>,
    /// None: there are API tokens only.
    sign_in: Option<Arc<SignIn>>,
    /// None: nothing is signed.
    statements: Option<Arc<Statements>>,
    /// None: this node makes no proofs.
    prover: Option<Prover>,
    /// None: it has no device port.
    links: Option<Links>,
    /// None: nothing that is encrypted can be read.
    storage_key: Option<Arc<StorageKey>>,
    /// None: nobody outside is told of anything.
    notices: Option<Arc<Notices>>,
    /// None: this node opens no support sessions.
    support: Option<Support>,
    /// None: there are no other nodes.
    peers: Option<Arc<Peers>>,
    tracer: Tracer,
    /// None: nobody can drain it.
    node: Option<LocalNode>,
    /// How long samples are kept.
    telemetry: Telemetry,
}

/// The node that answers.
#[derive(Clone, Debug)]
pub(crate) struct LocalNode {
    pub(crate) name: String,
    pub(crate) drain: Arc<Drain>,
}

/// What statements are made with.
#[derive(Debug)]
pub struct Statements {
    pub signer: Arc<StatementSigner>,
    /// How long what they are made from is kept.
    pub keep_days: u32,
}

#[derive(Debug)]
struct Limits {
    failures: Buckets<IpAddr>,
    /// Browsers that are sent to the OpenID provider.
    sign_ins: Buckets<IpAddr>,
    tokens: Buckets<TokenId>,
}

impl Context {
    /// To be called in a runtime. `stopping`: ends the streams of events, so that the node can stop.
    #[must_use]
    pub fn new(store: Store, bus: Bus, metrics: Arc<Metrics>, settings: Settings, stopping: CancellationToken) -> Self {
        let failures = Rate { burst: settings.failures_burst, per_second: 1.0 / FAILURE_FORGIVEN_AFTER_SECONDS };
        let tokens =
            Rate { burst: settings.token_requests_burst, per_second: f64::from(settings.token_requests_per_second) };
        let limits = Limits {
            failures: Buckets::new(failures, FAILING_ADDRESSES_MAX),
            sign_ins: Buckets::new(SIGN_INS, FAILING_ADDRESSES_MAX),
            tokens: Buckets::new(tokens, COUNTED_TOKENS_MAX),
        };
        let hub = Arc::new(Hub::new(settings));
        let creates = Arc::new(Batch::start(Creates, store.clone()));
        let Settings { request_within, opening_within, lock_after_failures, lock_for, .. } = settings;
        let limits = Arc::new(limits);
        Self {
            store,
            creates,
            bus,
            metrics,
            hub,
            feed: Arc::new(Feed::new()),
            tokens: Arc::new(TokenWatch::new()),
            limits,
            request_within,
            opening_within,
            lock_after_failures,
            lock_for,
            stopping,
            openvpn: None,
            device_port: Arc::new(DevicePort::default()),
            sign_in: None,
            statements: None,
            prover: None,
            links: None,
            storage_key: None,
            notices: None,
            support: None,
            peers: None,
            tracer: Tracer::default(),
            node: None,
            telemetry: Telemetry::default(),
        }
    }

    /// The same, with traces.
    #[must_use]
    pub(crate) fn with_tracer(self, tracer: Tracer) -> Self {
        Self { tracer, ..self }
    }

    /// The same, of a node that keeps samples for so long.
    #[must_use]
    pub(crate) fn with_telemetry(self, telemetry: Telemetry) -> Self {
        Self { telemetry, ..self }
    }

    /// The same, of a node that can be drained.
    #[must_use]
    pub(crate) fn with_node(self, node: LocalNode) -> Self {
        Self { node: Some(node), ..self }
    }

    /// The same, with other nodes that have links of their own.
    #[must_use]
    pub(crate) fn with_peers(self, peers: Arc<Peers>) -> Self {
        Self { peers: Some(peers), ..self }
    }

    /// Whether it is the node that answers.
    fn is_node(&self, name: &str) -> bool {
        self.node.as_ref().is_some_and(|node| node.name == name)
    }

    /// The same, with profiles for OpenVPN clients.
    #[must_use]
    pub fn with_openvpn(self, remote: Remote) -> Self {
        Self { openvpn: Some(Arc::new(remote)), ..self }
    }

    /// The same, where devices dial another place than port 443 of `localhost`.
    #[must_use]
    pub fn with_device_port(self, device_port: DevicePort) -> Self {
        Self { device_port: Arc::new(device_port), ..self }
    }

    /// The same, with an OpenID provider.
    #[must_use]
    pub fn with_sign_in(self, sign_in: SignIn) -> Self {
        Self { sign_in: Some(Arc::new(sign_in)), ..self }
    }

    /// The same, with the device port's links.
    #[must_use]
    pub(crate) fn with_links(self, links: Links) -> Self {
        Self { links: Some(links), ..self }
    }

    /// The same, with proofs of isolation.
    #[must_use]
    pub(crate) fn with_prover(self, prover: Prover) -> Self {
        Self { prover: Some(prover), ..self }
    }

    /// The same, with support sessions.
    #[must_use]
    pub fn with_support(self, support: Support) -> Self {
        Self { support: Some(support), ..self }
    }

    fn support(&self) -> Result<&Support, Problem> {
        self.support.as_ref().ok_or_else(Problem::unavailable)
    }

    /// The same, with signed statements.
    #[must_use]
    pub fn with_statements(self, statements: Statements) -> Self {
        Self { statements: Some(Arc::new(statements)), ..self }
    }

    /// What is encrypted at rest.
    fn storage_key(&self) -> Result<&Arc<StorageKey>, Problem> {
        self.storage_key.as_ref().ok_or_else(Problem::internal)
    }

    /// The same, with what is encrypted at rest.
    #[must_use]
    pub fn with_storage_key(self, key: Arc<StorageKey>) -> Self {
        Self { storage_key: Some(key), ..self }
    }

    /// The same, with webhooks and mail.
    #[must_use]
    pub fn with_notices(self, notices: Arc<Notices>) -> Self {
        Self { notices: Some(notices), ..self }
    }

    /// Says that commands were called back: those that are over to who waits for them, the others to who serves the link.
    fn tell_called_back(&self, commands: &[CalledBack]) {
        for command in commands {
            if command.is_cancelled {
                self.metrics.commands.with_label_values(&[command.kind.as_str(), State::Cancelled.name()]).inc();
                self.bus.send(Hint::CommandChanged(command.command));
            }
        }
        let devices: BTreeSet<_> =
            commands.iter().filter(|command| !command.is_cancelled).map(|command| command.device).collect();
        for device in devices {
            self.bus.send(Hint::CommandsDue(device));
        }
    }

    /// Says that openings have ended to who keeps the ports of these devices.
    fn tell_ended(&self, devices: &[DeviceId]) {
        for device in devices {
            self.bus.send(Hint::OpeningsDue(*device));
        }
    }

    /// Says that somebody outside is to be told of something, if so.
    fn tell_outside(&self, is_told: bool) {
        if is_told {
            self.bus.send(Hint::NoticesDue);
        }
    }

    /// Says that support sessions have ended to who serves them.
    fn tell_sessions_ended(&self, sessions: &[EndedSession]) {
        let devices: BTreeSet<_> = sessions.iter().map(|session| session.device).collect();
        for device in devices {
            self.bus.send(Hint::SupportDue(device));
        }
    }

    /// Wakes the streams of events on hints, and ends those whose token is over, until the node stops. Without it they look at
    /// their commands on their timers, and at nothing else.
    pub async fn follow_hints(self) {
        let stopped = async {
            self.stopping.cancelled().await;
            if let Some(support) = &self.support {
                // Tokens of streams end during the soft stop as well.
                support.finished().await;
            }
        };
        tokio::select! {
            () = stopped => {}
            () = self.hub.follow(self.bus.listen()) => {}
            () = self.feed.follow(&self.store) => {}
            () = self.tokens.follow(&self.store, self.bus.listen()) => {}
        }
    }
}
