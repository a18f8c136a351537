//! The device port over real sockets, with real certificates, a real database and the device's end of `proto::link`.

mod admission;
mod command;
mod connect;
mod database;
mod enroll;
mod fleet;
mod input;
mod peer;
mod poll;
mod proxy;
mod renew;
mod resume;
mod revoke;
mod stop;
mod support;
mod tunnel;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cloudlink_certs::{Authority, DeviceIdentity, Serial, TrustDomain, Validity};
use cloudlink_proto::openvpn::ServerWrapping;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use super::{Links, Parts, Tickets, Tls, accept};
use crate::bus::Bus;
use crate::config::{self, Admission, Certificate, Device, Link, Poll};
use crate::isolation::Isolation;
use crate::lifecycle::Shutdown;
use crate::metrics::Metrics;
use crate::storage_key::StorageKey;
use crate::store::Store;
use crate::trace::Tracer;
use crate::tunnel::plane::Plane;
use crate::tunnel::{self as tunnels, Tunnels};
use crate::{clock, tasks};

const SERVER_NAME: &str = "link.test";
const ENROLL_NAME: &str = "enroll.link.test";
const TRUST_DOMAIN: &str = "fleet.test";
/// Far above what anything takes here, even on a busy machine: what runs into it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A device port that runs in this process.
struct Port {
    address: SocketAddr,
    links: Links,
    bus: Bus,
    metrics: Arc<Metrics>,
    authority: Arc<Authority>,
    shutdown: Shutdown,
    /// As the owner of the database: for what other parts of the server do.
    database: PgPool,
}

/// Ends what runs, so that the test's database can be dropped.
impl Drop for Port {
    fn drop(&mut self) {
        self.shutdown.soft.cancel();
        self.shutdown.hard.cancel();
        let pools = [self.database.clone(), self.links.0.store.pool().clone()];
        tokio::spawn(async move {
            for pool in pools {
                pool.close().await;
            }
        });
    }
}

/// What a test may set otherwise.
struct Settings {
    device: Device,
    admission: Admission,
    link: Link,
    poll: Poll,
    certificate: Certificate,
    /// Served if it is enabled, without an interface.
    tunnel: config::Tunnel,
    /// What is around their control packets.
    wrapping: ServerWrapping,
    /// What the port reaches the database by.
    database: PgConnectOptions,
    /// How long it waits for an answer of the database.
    statement_within: Duration,
    quarantine_after_packets: u32,
    node: String,
    authority: Arc<Authority>,
    trust_domain: TrustDomain,
    /// What session tickets are kept under.
    storage_key: [u8; 32],
    /// What devices' certificates go back to, and what tickets are made for: the authority's, if nothing else is said.
    device_root: Option<CertificateDer<'static>>,
    ticket_root: Option<CertificateDer<'static>>,
}

impl Port {
    async fn start(database: PgConnectOptions) -> Self {
        Self::start_with(database, |_| {}).await
    }

    async fn start_with(database: PgConnectOptions, change: impl FnOnce(&mut Settings)) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut settings = Settings {
            device: Device::default(),
            admission: Admission::default(),
            link: Link::default(),
            poll: Poll::default(),
            certificate: Certificate::default(),
            tunnel: config::Tunnel::default(),
            wrapping: ServerWrapping::None,
            database: database.clone(),
            statement_within: Duration::from_secs(15),
            quarantine_after_packets: 0,
            node: "node-1".to_owned(),
            authority: Arc::new(new_authority()),
            trust_domain: trust_domain(),
            storage_key: [7; 32],
            device_root: None,
            ticket_root: None,
        };
        change(&mut settings);

        let authority = settings.authority;
        let (chain, key) = server_certificate(&authority);
        let server = CertifiedKey::new(chain, rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap());
        let server = Arc::new(SingleCertAndKey::from(server));
        let root = settings.device_root.as_ref().unwrap_or(authority.certificate_der());
        let ticket_root = settings.ticket_root.as_ref().unwrap_or(root);
        let storage_key = Arc::new(StorageKey::from_bytes(settings.storage_key));
        let resumption = settings.device.resumption_seconds.duration();
        let tickets = Tickets::new(storage_key, ticket_root, &settings.trust_domain, resumption);
        let tls = Tls::new(root.clone(), Arc::clone(&server) as _, ENROLL_NAME, tickets.clone()).unwrap();
        let pool = PgPoolOptions::new().max_connections(6).acquire_timeout(Duration::from_secs(5));
        let (bus, metrics, shutdown) = (Bus::new(), Arc::new(Metrics::new()), Shutdown::new());
        let store = Store::new(pool, settings.database).with_patience(settings.statement_within);
        if let Some(tickets) = tickets {
            tickets.refresh(&store).await.unwrap();
        }
        let tunnels = if settings.tunnel.enabled {
            let leased = tunnels::lease(&settings.tunnel, root, "node-1", &store).await.unwrap();
            Some(Tunnels::new(tunnels::Parts {
                config: &settings.tunnel,
                device: &settings.device,
                server: tunnels::server_config(&settings.tunnel, root.clone(), server, settings.wrapping).unwrap(),
                plane: Plane::without_interface(leased.slice, &metrics),
                isolation: Isolation::without_kernel(&leased.slice),
                leased,
                store: store.clone(),
                keep_days: 90,
                quarantine_after_packets: settings.quarantine_after_packets,
            }))
        } else {
            None
        };
        let links = Links::new(Parts {
            node: settings.node,
            trust_domain: settings.trust_domain,
            device: settings.device,
            admission: settings.admission,
            link: settings.link,
            poll: settings.poll,
            telemetry: config::Telemetry::default(),
            link_test: config::LinkTest::default(),
            certificate: settings.certificate,
            store,
            bus: bus.clone(),
            metrics: Arc::clone(&metrics),
            tracer: Tracer::default(),
            authority: Arc::clone(&authority),
            tls,
            tunnels,
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tasks::start(&links, &shutdown);
        shutdown.tasks.spawn(accept::run(links.clone(), listener, Duration::from_secs(20), shutdown.clone()));
        let database = PgPoolOptions::new().max_connections(3).connect_with(database).await.unwrap();
        Self { address, links, bus, metrics, authority, shutdown, database }
    }

    /// One value of the database, as text.
    async fn ask(&self, sql: &str) -> Option<String> {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_optional(&self.database).await.unwrap().flatten()
    }

    /// Waits until the database answers this.
    async fn until(&self, sql: &str, expected: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(sql).await;
            if answer.as_deref() == Some(expected) {
                return;
            }
            assert!(Instant::now() < deadline, "{sql}: {answer:?} instead of {expected:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.database).await.unwrap();
    }

    /// The value of a metric, by its whole name with labels.
    fn metric(&self, name: &str) -> u64 {
        let text = self.metrics.render().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    /// Waits until a metric has this value.
    async fn until_metric(&self, name: &str, expected: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.metric(name) != expected {
            assert!(Instant::now() < deadline, "{name} is {} instead of {expected}", self.metric(name));
            sleep(Duration::from_millis(10)).await;
        }
    }
}

fn trust_domain() -> TrustDomain {
    TRUST_DOMAIN.parse().unwrap()
}

fn new_authority() -> Authority {
    let validity = Validity::starting_at(clock::now(), time::Duration::days(3650)).unwrap();
    Authority::create(peer::new_key(), "Fleet of the tests", new_serial(), validity).unwrap()
}

fn new_serial() -> Serial {
    Serial::from_random(*uuid::Uuid::new_v4().as_bytes())
}

fn server_certificate(authority: &Authority) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = peer::new_key();
    let names = [SERVER_NAME.parse().unwrap(), ENROLL_NAME.parse().unwrap()];
    let validity = Validity::starting_at(clock::now(), time::Duration::days(90)).unwrap();
    let certificate = authority.issue_server(&key.public_key(), &names, new_serial(), validity).unwrap();
    (vec![certificate], key.as_pkcs8_der().clone_key().into())
}

fn identity(fleet: &fleet::Fleet, device: uuid::Uuid) -> DeviceIdentity {
    DeviceIdentity { trust_domain: trust_domain(), tenant: fleet.tenant, device }
}
