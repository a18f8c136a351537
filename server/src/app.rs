//! Puts the node together, runs it, and takes it apart in the opposite order.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use cloudlink_proto::openvpn::ServerWrapping;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bus::Bus;
use crate::cluster::{Lease, Peers, Relay};
use crate::config::{Config, Database};
use crate::http::{LocalNode, Statements};
use crate::isolation::Isolation;
use crate::isolation::proof::{self, Prover, Proving};
use crate::lifecycle::{Shutdown, StopSignals};
use crate::link::{Links, Tickets, Tls};
use crate::metrics::Metrics;
use crate::model::network::DevicePort;
use crate::model::openvpn_profile::Remote;
use crate::notice::Notices;
use crate::operations::Readiness;
use crate::pki::{Pki, PkiError};
use crate::port::Ports;
use crate::postgres::{self, Postgres};
use crate::proxy::Proxies;
use crate::secret::{Purpose, Token};
use crate::sign_in::SignIn;
use crate::storage_key::StorageKey;
use crate::store::first_admin::{first_admin_create, first_admin_reset};
use crate::store::setup::{self, SetupError};
use crate::store::{Hosts, Probe, Store, StoreError, Visibility};
use crate::support::Support;
use crate::tasks::notice::Outbox;
use crate::trace::{Exporting, Tracer};
use crate::tunnel::plane::Plane;
use crate::tunnel::{self, Tunnels};
use crate::{clock, cluster, drain, file, http, link, operations, people, pki, tasks};

/// The name of the database in a cluster of our own.
const DATABASE: &str = "cloudlink";
/// Whoever can make this file in the data directory holds the keys of the fleet anyway: at the next start there is another
/// token for the first administrator.
const ADMIN_RESET: &str = "admin.reset";
/// The newest history of the database that this node has met, in the data directory: what is older is refused.
const DATABASE_HISTORY: &str = "database.history";
/// Between two attempts to reach the database at the start; doubled with each, up to [`DATABASE_AGAIN_AFTER_MAX`].
const DATABASE_AGAIN_AFTER: Duration = Duration::from_millis(250);
const DATABASE_AGAIN_AFTER_MAX: Duration = Duration::from_secs(5);
/// For connections to the database that are still in use when everything else has ended.
const POOL_CLOSE_WITHIN: Duration = Duration::from_secs(3);

/// Runs the node until it is told to stop, or until a part of it fails that it cannot do without.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut signals = StopSignals::listen().context("cannot listen for signals")?;
    raise_open_files(&config);
    let _lock = lock_data_dir(&config.data_dir)?;
    let pki = Pki::load(&config, clock::now())?;
    let storage_key = Arc::new(StorageKey::load(&config)?);
    let ports = Ports::take(&config)?;

    let metrics = Arc::new(Metrics::new());
    let postgres = if config.database.url.is_none() {
        let start = Postgres::start(&config.postgres, &config.data_dir, Arc::clone(&metrics));
        let Some(postgres) = before_signal(&mut signals, start).await? else { return Ok(()) };
        Some(postgres)
    } else {
        None
    };
    let addresses = Addresses::of(&config.database, postgres.as_ref());
    let outcome = match addresses {
        Ok(addresses) => {
            let node = Node { config, metrics, pki, storage_key, isolation: OnceLock::new() };
            Box::pin(node.run(ports, addresses, &mut signals)).await
        }
        Err(error) => Err(error.into()),
    };
    if let Some(postgres) = postgres {
        postgres.stop().await;
    }
    outcome
}

/// Where the database is, for whom.
struct Addresses {
    /// Only in a cluster of our own: where our database can be made.
    maintenance: Option<Hosts>,
    owner: Hosts,
    server: Hosts,
}

impl Addresses {
    fn of(config: &Database, postgres: Option<&Postgres>) -> Result<Self, SetupError> {
        let socket = |postgres: &Postgres, login, database| {
            Hosts::from(setup::socket_options(postgres.socket_dir(), postgres::PORT, login, database))
        };
        if let Some(postgres) = postgres {
            return Ok(Self {
                maintenance: Some(socket(postgres, postgres::OWNER, "postgres")),
                owner: socket(postgres, postgres::OWNER, DATABASE),
                server: socket(postgres, postgres::LOGIN, DATABASE),
            });
        }
        let url = config.url.as_ref().ok_or(SetupError::Url { key: "database.url" })?;
        let owner = match &config.migrate_url {
            Some(url) => setup::url_hosts("database.migrate_url", url)?,
            None => setup::url_hosts("database.url", url)?,
        };
        Ok(Self { maintenance: None, owner, server: setup::url_hosts("database.url", url)? })
    }
}

/// What the parts are made of.
struct Node {
    config: Config,
    metrics: Arc<Metrics>,
    pki: Pki,
    storage_key: Arc<StorageKey>,
    /// Once the kernel's rules are in force.
    isolation: OnceLock<Arc<Isolation>>,
}

impl Node {
    async fn run(self, ports: Ports, addresses: Addresses, signals: &mut StopSignals) -> anyhow::Result<()> {
        let outcome = Box::pin(self.serve(ports, addresses, signals)).await;
        if let Some(isolation) = self.isolation.get() {
            isolation.withdraw().await;
        }
        outcome
    }

    async fn serve(&self, ports: Ports, addresses: Addresses, signals: &mut StopSignals) -> anyhow::Result<()> {
        let shutdown = Shutdown::new();
        // However this ends: what was started is told.
        let _stopped = (shutdown.soft.clone().drop_guard(), shutdown.hard.clone().drop_guard());
        let readiness = Arc::new(Readiness::new(Arc::clone(&self.metrics)));
        // These serve and watch until the very end, so that the stop can be seen; nobody waits for them.
        let until_hard = Shutdown { soft: shutdown.hard.clone(), tasks: TaskTracker::new(), ..shutdown.clone() };
        let operations = operations::server(Arc::clone(&readiness));
        until_hard.spawn_vital("operations port", operations.run(ports.operations.listen()?, until_hard.clone()));

        let Some(store) = before_signal(signals, self.open_store(&addresses)).await? else { return Ok(()) };
        let probe = Probe::new(store.clone(), self.history_file());
        until_hard.spawn_vital("database watch", Arc::clone(&readiness).watch_database(probe, until_hard.soft.clone()));
        let bus = Bus::new();
        let relay = Relay::new(&self.config.cluster, &self.config.node, bus.clone(), &self.metrics)
            .await
            .context("this node cannot be one of several")?;
        let take = Box::pin(Lease::take(&self.config, store.reserved(), relay.clone()));
        let Some(lease) = before_signal(signals, take).await? else { return Ok(()) };
        readiness.placed(lease.subscribe());
        if let Some(relay) = relay {
            // What is said last is said at the hard stop.
            let relay = relay.run(bus.clone(), Arc::clone(&self.metrics), shutdown.hard.clone());
            until_hard.spawn_vital("hints between nodes", relay);
        }
        let exporting =
            Exporting::start(&self.config.trace, &self.config.node, &self.config.trust_domain, &self.metrics.traces)
                .context("traces cannot be told")?;
        let (tracer, exporting) = exporting.unzip();
        let tracer = tracer.unwrap_or_default();
        let mut api = http::Context::new(
            store.clone(),
            bus.clone(),
            Arc::clone(&self.metrics),
            people::settings(&self.config.people, &self.config.sign_in),
            shutdown.soft.clone(),
        );
        api = api.with_tracer(tracer.clone()).with_device_port(self.device_port());
        api = api.with_telemetry(self.config.telemetry.clone());
        api = api.with_storage_key(Arc::clone(&self.storage_key));
        api = api.with_statements(Statements {
            signer: Arc::clone(&self.pki.statements),
            keep_days: self.config.isolation.proof_keep_days,
        });
        let notices = Arc::new(self.notices()?);
        api = api.with_notices(Arc::clone(&notices));
        let outbox = Outbox {
            store: store.clone(),
            bus: bus.clone(),
            metrics: Arc::clone(&self.metrics),
            notices,
            node: self.config.node.clone(),
        };
        shutdown.spawn_vital("notices", outbox.run(shutdown.clone()));
        if let Some(sign_in) = self.sign_in()? {
            api = api.with_sign_in(sign_in);
        }
        let tunnels = self.tunnels(&store, &until_hard).await?;
        if let Some(isolation) = self.isolation.get() {
            readiness.isolated(isolation.subscribe());
        }
        if let Some((_, wrapping)) = &tunnels {
            api = api.with_openvpn(self.remote(wrapping.clone())?);
        }
        let (prover, asks) = Prover::new();
        if tunnels.is_some() && self.config.isolation.proofs {
            api = api.with_prover(prover);
        }
        let wrapping = tunnels.as_ref().map(|(_, wrapping)| wrapping.clone());
        let tunnels = tunnels.map(|(tunnels, _)| tunnels);
        let links = self.links(store.clone(), bus, tunnels.clone(), tracer)?;
        lease.offer(Arc::clone(&links.0.admission));
        links.0.drain.join(Arc::clone(&lease));
        readiness.drainable(links.0.drain.subscribe());
        api = api.with_node(LocalNode { name: self.config.node.clone(), drain: Arc::clone(&links.0.drain) });
        let notice = self.config.shutdown.notice_seconds.duration();
        shutdown.spawn_vital("drain", drain::run(links.clone(), notice, shutdown.clone()));
        api = api.with_links(links.clone());
        let key = Arc::clone(&self.storage_key);
        let support = Support::new(&links, self.config.support.clone(), key, shutdown.clone());
        tasks::start_support(&support, &shutdown);
        tasks::start_node(&links, &support, &lease, &shutdown);
        api = api.with_support(support);
        if ports.internal.is_some() {
            let (tasks, stop) = (shutdown.tasks.clone(), shutdown.hard.clone());
            let passed_on = self.metrics.cluster_passed_on.clone();
            let peers = Arc::new(Peers::new(Arc::clone(&lease), &self.pki.node, passed_on, tasks, stop));
            links.join(Arc::clone(&peers));
            api = api.with_peers(peers);
        }
        shutdown.spawn_vital("event hints", api.clone().follow_hints());
        let fresh = self.pki.clone().keep_fresh(Arc::clone(&self.metrics), shutdown.soft.clone());
        shutdown.spawn_vital("certificate watch", fresh);
        let certificate = Arc::clone(&self.pki.server);
        let router = http::router(api);
        if let Some(port) = ports.internal {
            let internal = cluster::internal::server(&self.pki.node, router.clone(), &links)?;
            shutdown.spawn_vital("internal port", internal.run(port.listen()?, shutdown.clone()));
        }
        let people = people::server(&self.config.people, certificate, router, &self.metrics);
        shutdown.spawn_vital("people port", people.run(ports.people.listen()?, shutdown.clone()));
        tasks::start(&links, &shutdown);
        let (key, metrics) = (Arc::clone(&self.storage_key), Arc::clone(&self.metrics));
        let keeper = tasks::recording::Keeper { store: store.clone(), key, metrics };
        shutdown.spawn_vital("recordings", keeper.run(shutdown.clone()));
        tasks::start_receipts(&links, &self.pki.statements, &shutdown);
        let soft = self.config.shutdown.soft_seconds.duration();
        let device_port = ports.device.listen()?;
        if let (Some(tunnels), Some(wrapping)) = (tunnels, wrapping) {
            self.serve_inside(&links, &tunnels, &shutdown)?;
            if self.config.isolation.proofs {
                let proving = self.proving(&tunnels, wrapping, device_port.local_addr()?, store.clone())?;
                shutdown.spawn_vital("proof of isolation", proving.run(asks, shutdown.clone()));
            }
        }
        shutdown.spawn_vital("device port", link::accept::run(links.clone(), device_port, soft, shutdown.clone()));
        readiness.running(store.clone());
        tracing::info!(node = %self.config.node, version = env!("CARGO_PKG_VERSION"), "the node is up");

        let failure = tokio::select! {
            signal = signals.next() => {
                tracing::info!(signal, "stopping");
                None
            }
            () = shutdown.failed.cancelled() => Some(anyhow::anyhow!("a part that it cannot do without has ended")),
        };
        readiness.stopping();
        if failure.is_none() {
            self.drain(&links, &lease, signals, &shutdown.failed).await;
        }
        let limits = &self.config.shutdown;
        let again = async {
            signals.next().await;
        };
        if !shutdown.run(limits.soft_seconds.duration(), limits.hard_seconds.duration(), again).await {
            tracing::error!(tasks = shutdown.tasks.len(), "some tasks did not end in time");
        }
        lease.leave().await;
        if let Some(exporting) = exporting {
            exporting.finish().await;
        }
        if timeout(POOL_CLOSE_WITHIN, store.pool().close()).await.is_err() {
            tracing::warn!("connections to the database were still in use");
        }
        tracing::info!("the node has stopped");
        failure.map_or(Ok(()), Err)
    }

    /// Lets devices connect to other nodes first, if there are any, and if there is time for it.
    async fn drain(&self, links: &Links, lease: &Lease, signals: &mut StopSignals, failed: &CancellationToken) {
        let limits = &self.config.shutdown;
        let within = limits.drain_seconds.duration();
        if within.is_zero() || !links.0.drain.has_others() {
            return;
        }
        links.0.drain.begin(within);
        let drained = async {
            tokio::join!(lease.announce_drain(within), drain::finished(&links.0, limits.notice_seconds.duration()),);
        };
        tokio::select! {
            () = drained => {}
            signal = signals.next() => tracing::warn!(signal, devices = links.live(), "asked again to stop"),
            () = failed.cancelled() => {}
        }
    }

    fn links(&self, store: Store, bus: Bus, tunnels: Option<Arc<Tunnels>>, tracer: Tracer) -> anyhow::Result<Links> {
        let config = &self.config;
        let enroll_name = config.device.enroll_name().to_string();
        let trust_domain = config.trust_domain.parse().context("trust_domain is not one")?;
        let root = self.pki.authority.certificate_der();
        let resumption = config.device.resumption_seconds.duration();
        let tickets = Tickets::new(Arc::clone(&self.storage_key), root, &trust_domain, resumption);
        let tls = Tls::new(root.clone(), Arc::clone(&self.pki.server) as _, &enroll_name, tickets)
            .context("the device port cannot speak TLS")?;
        Ok(Links::new(link::Parts {
            node: config.node.clone(),
            trust_domain,
            device: config.device.clone(),
            admission: config.admission.clone(),
            link: config.link.clone(),
            poll: config.poll.clone(),
            telemetry: config.telemetry.clone(),
            link_test: config.link_test.clone(),
            certificate: config.certificate.clone(),
            store,
            bus,
            metrics: Arc::clone(&self.metrics),
            tracer,
            authority: Arc::clone(&self.pki.authority),
            tls,
            tunnels,
        }))
    }

    /// How people outside are told of things.
    fn notices(&self) -> anyhow::Result<Notices> {
        let config = &self.config;
        let mut ports = vec![config.device.listen.port(), config.people.listen.port(), config.operations.listen.port()];
        let mut pools = Vec::new();
        if config.tunnel.enabled {
            ports.push(u16::try_from(config.tunnel.link_port).context("tunnel.link_port is not one")?);
            pools.extend(tunnel::pools(&config.tunnel, self.pki.authority.certificate_der())?);
        }
        Notices::new(&config.notice, Arc::clone(&self.storage_key), pools, ports)
    }

    /// Where people sign in, if that is configured.
    fn sign_in(&self) -> anyhow::Result<Option<SignIn>> {
        let people = &self.config.people;
        let host = people.names.first().map(ToString::to_string).unwrap_or_default();
        let base = format!("https://{host}:{}", people.listen.port());
        SignIn::new(&self.config.sign_in, &base).context("nobody could sign in")
    }

    /// The addresses, the interface and the keys of tunnels, before anybody dials.
    async fn tunnels(
        &self,
        store: &Store,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Option<(Arc<Tunnels>, ServerWrapping)>> {
        let config = &self.config.tunnel;
        if !config.enabled {
            return Ok(None);
        }
        let wrapping = tunnel::wrapping::load(&self.config)?;
        let root = self.pki.authority.certificate_der();
        let certificate = Arc::clone(&self.pki.server) as _;
        let server = tunnel::server_config(config, root.clone(), certificate, wrapping.clone())
            .context("tunnels cannot speak TLS")?;
        let leased = tunnel::lease(config, root, &self.config.node, store).await?;
        let isolation = Isolation::enforce(&self.config, &leased.slice, store, &self.metrics)
            .await
            .context("tunnels are enabled, but they cannot be isolated")?;
        let _ = self.isolation.set(Arc::clone(&isolation));
        let plane = Plane::open(config, leased.slice, &self.metrics)
            .context("tunnels are enabled, but they cannot have an interface")?;
        isolation.start(shutdown);
        plane.start(shutdown);
        let (device, store) = (&self.config.device, store.clone());
        let keep_days = self.config.isolation.proof_keep_days;
        let quarantine_after_packets = self.config.isolation.quarantine_after_packets;
        let parts = tunnel::Parts {
            config,
            device,
            server,
            plane,
            isolation,
            leased,
            store,
            keep_days,
            quarantine_after_packets,
        };
        Ok(Some((Tunnels::new(parts), wrapping)))
    }

    /// Agents find their link inside tunnels on both of the node's addresses.
    fn serve_inside(&self, links: &Links, tunnels: &Arc<Tunnels>, shutdown: &Shutdown) -> anyhow::Result<()> {
        let config = &self.config.tunnel;
        let port = u16::try_from(config.link_port).context("tunnel.link_port is not one")?;
        let gateway = tunnels.plane.slice().gateway();
        for address in [IpAddr::from(gateway.ipv4), IpAddr::from(gateway.ipv6)] {
            let listener = tunnel::inside::listen(config.interface.as_str(), (address, port).into())?;
            let serve = tunnel::inside::run(links.clone(), Arc::clone(tunnels), listener, shutdown.clone());
            shutdown.spawn_vital("link port of tunnels", serve);
        }
        Ok(())
    }

    /// The devices of the node's own that try to get around its isolation.
    fn proving(
        &self,
        tunnels: &Tunnels,
        wrapping: ServerWrapping,
        port: SocketAddr,
        store: Store,
    ) -> anyhow::Result<Proving> {
        Ok(Proving::start(proof::Parts {
            node: self.config.node.clone(),
            config: &self.config.isolation,
            tunnel: &self.config.tunnel,
            port,
            proxies: Proxies::new("device.proxy_from", &self.config.device.proxy_from),
            server_name: self.config.device.server_name.to_string(),
            trust_domain: self.config.trust_domain.parse().context("trust_domain is not one")?,
            authority: Arc::clone(&self.pki.authority),
            wrapping,
            plane: Arc::clone(&tunnels.plane),
            slice_number: tunnels.slice_number,
            isolation: Arc::clone(&tunnels.isolation),
            store,
            metrics: Arc::clone(&self.metrics),
        }))
    }

    fn device_port(&self) -> DevicePort {
        let device = &self.config.device;
        DevicePort {
            name: device.server_name.to_string(),
            enroll_name: device.enroll_name().to_string(),
            port: u16::try_from(device.public_port()).expect("a port by its range"),
        }
    }

    /// What OpenVPN clients are told.
    fn remote(&self, wrapping: ServerWrapping) -> Result<Remote, PkiError> {
        Ok(Remote {
            server_name: self.config.device.server_name.to_string(),
            port: self.config.device.public_port(),
            common_name: pki::common_name(&self.config)?,
            ca_pem: self.pki.authority.certificate_pem(),
            wrapping,
        })
    }

    /// Where the newest history of the database is kept. Our own Postgres has no other host.
    fn history_file(&self) -> Option<PathBuf> {
        self.config.database.url.is_some().then(|| self.config.data_dir.join(DATABASE_HISTORY))
    }

    /// Brings the database to where this version needs it. Waits for one that is not there yet.
    async fn open_store(&self, addresses: &Addresses) -> anyhow::Result<Store> {
        let config = &self.config.database;
        let has_mail = self.config.notice.mail_host.is_some();
        let store = setup::store(config, &self.config.node, addresses.server.clone(), has_mail);
        if let Some(path) = self.history_file() {
            store.recall(&path).with_context(|| format!("cannot read {}", path.display()))?;
        }
        let mut probe = Probe::new(store.clone(), None);
        let mut pause = DATABASE_AGAIN_AFTER;
        loop {
            // So that connections are made to the right one of several hosts.
            probe.run().await;
            match prepare(config, addresses, &store).await {
                Ok(()) => break,
                Err(error) if error.is_retryable() => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, again_in = ?pause, "the database is not there yet");
                    sleep(pause).await;
                    pause = (pause * 2).min(DATABASE_AGAIN_AFTER_MAX);
                }
                Err(error) => return Err(error).context("the database cannot be used"),
            }
        }
        make_first_admin(&store, &self.config.data_dir).await?;
        Ok(store)
    }
}

async fn prepare(config: &Database, addresses: &Addresses, store: &Store) -> Result<(), SetupError> {
    match &addresses.maintenance {
        Some(maintenance) => {
            setup::cluster_prepare(maintenance, &addresses.owner, DATABASE, postgres::LOGIN).await?;
        }
        None if config.migrate => setup::migrate(&addresses.owner).await?,
        None => setup::schema_check(&addresses.owner).await?,
    }
    setup::privilege_check(store).await
}

/// The token is in its file before the administrator is in the database: a crash between the two leaves a useless token, and
/// the next start makes another one.
async fn make_first_admin(store: &Store, data_dir: &Path) -> anyhow::Result<()> {
    let reset = data_dir.join(ADMIN_RESET);
    let wants_reset = reset.try_exists().with_context(|| format!("cannot look for {}", reset.display()))?;
    let token = Token::generate(Purpose::Bootstrap);
    let mut transaction = store.begin(Visibility::All).await?;
    let mut made = first_admin_create(&mut transaction, token.hash()).await?;
    if !made && wants_reset {
        made = first_admin_reset(&mut transaction, token.hash()).await?;
    }
    if made {
        let path = data_dir.join("admin.token");
        file::replace(&path, token.expose().as_bytes(), file::PRIVATE)
            .with_context(|| format!("cannot write {}", path.display()))?;
        transaction.commit().await.map_err(StoreError::from)?;
        tracing::info!(path = %path.display(), "the first administrator signs in once with the token in the file");
    }
    if wants_reset {
        std::fs::remove_file(&reset).with_context(|| format!("cannot remove {}", reset.display()))?;
    }
    Ok(())
}

/// `None` when a signal came first.
async fn before_signal<T, E>(
    signals: &mut StopSignals,
    work: impl Future<Output = Result<T, E>>,
) -> Result<Option<T>, E> {
    tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "stopping before the start was over");
            Ok(None)
        }
        done = work => done.map(Some),
    }
}

/// One server a data directory: two would fight over the keys and the embedded Postgres.
fn lock_data_dir(data_dir: &Path) -> anyhow::Result<File> {
    file::make_dir(data_dir, 0o711)
        .and_then(|()| postgres::open_passage(data_dir))
        .with_context(|| format!("cannot make data_dir {}", data_dir.display()))?;
    let path = data_dir.join("cloudlinkd.lock");
    let lock = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    lock.try_lock().with_context(|| format!("another cloudlinkd runs in {}", data_dir.display()))?;
    Ok(lock)
}

/// A link is a file: take as many as we are allowed.
fn raise_open_files(config: &Config) {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok(hard)
    });
    match raised {
        Ok(limit) if limit < u64::from(config.device.links_max) => {
            tracing::info!(limit, links_max = config.device.links_max, "open files will run out before links do");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}
