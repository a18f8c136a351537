//! Hints between nodes, over NATS core subjects: nothing is stored there, and a hint that is lost costs a timer's time.
//!
//! `<subject>.hint` has what changed, as text (`commands_due <uuid>`), or `everything` after some could not be told.
//! `<subject>.reach.<name in hex>` is answered by the node of that name: whether it reaches the database. `<subject>.reach` is answered by
//! every node but whoever asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, Message, ServerAddr, Subscriber};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures_util::StreamExt;
use futures_util::future::join_all;
use percent_encoding::percent_decode_str;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::tenure::are_all_cut_off;
use crate::bus::Bus;
use crate::config;
use crate::metrics::Metrics;
use crate::store::node::Peer;

/// Hints that wait for the connection. What does not fit is told as one `everything`.
const OUTGOING_MAX: usize = 4_096;
/// Messages that wait to be heard. Beyond that NATS drops them, and says so.
const INCOMING_MAX: usize = 65_536;
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Finds a NATS server that is gone without having closed anything.
const PING_EVERY: Duration = Duration::from_secs(5);
/// For what was said last, when the node stops.
const FLUSH_WITHIN: Duration = Duration::from_millis(700);
/// Before the subscription is made anew, should it ever end.
const SUBSCRIBE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Longer than any hint. What is longer is not read.
const HINT_BYTES_MAX: usize = 128;
const EVERYTHING: &[u8] = b"everything";
const YES: &[u8] = b"yes";
const NO: &[u8] = b"no";

/// Why there is no relay.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error("cluster.nats is not a list of NATS servers: expected nats://host:4222, several separated by commas")]
    Address,
    #[error("cannot read cluster.nats_ca {}", path.display())]
    Certificates {
        path: std::path::PathBuf,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    #[error("cluster.nats_ca {} holds no certificate that can be trusted", path.display())]
    NoCertificate { path: std::path::PathBuf },
    #[error("cluster.subject may have letters, digits, dashes, underscores, and dots between them")]
    Subject,
    #[error("cannot begin to connect to NATS")]
    Connect(#[source] async_nats::ConnectError),
}

/// The way to the other nodes.
#[derive(Clone, Debug)]
pub(crate) struct Relay {
    client: Client,
    subject: String,
    is_connected: Arc<AtomicBool>,
}

impl Relay {
    /// Begins to connect, and goes on by itself for as long as it takes. `None` for a node alone.
    pub(crate) async fn new(
        config: &config::Cluster,
        node: &str,
        bus: Bus,
        metrics: &Arc<Metrics>,
    ) -> Result<Option<Self>, RelayError> {
        let Some(servers) = &config.nats else { return Ok(None) };
        let is_subject = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        if !config.subject.split('.').all(is_subject) {
            return Err(RelayError::Subject);
        }
        let servers: Vec<ServerAddr> = servers
            .expose()
            .split(',')
            .map(|server| server.trim().parse())
            .collect::<Result<_, _>>()
            .map_err(|_| RelayError::Address)?;
        let is_connected = Arc::new(AtomicBool::new(false));
        let mut options = authenticated(&servers)?
            .name(format!("cloudlinkd {node}"))
            .no_echo()
            .retry_on_initial_connect()
            .connection_timeout(CONNECT_WITHIN)
            .ping_interval(PING_EVERY)
            .client_capacity(OUTGOING_MAX)
            .subscription_capacity(INCOMING_MAX)
            .event_callback(watch(bus, Arc::clone(&is_connected), Arc::clone(metrics)));
        if let Some(path) = &config.nats_ca {
            // Whoever stands in between could say that the server wants no TLS, and read the password.
            options = options.require_tls(true).tls_client_config(tls(path)?);
        }
        let client = options.connect(servers).await.map_err(RelayError::Connect)?;
        Ok(Some(Self { client, subject: config.subject.clone(), is_connected }))
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    /// Passes hints on, both ways, until the node stops.
    pub(crate) async fn run(self, bus: Bus, metrics: Arc<Metrics>, stop: CancellationToken) {
        let outgoing = bus.outgoing();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.tell(&bus, outgoing, &metrics) => {}
            () = self.hear(&bus, &metrics) => {}
        }
        // What was said last should be heard; if not, timers do it.
        let _ = timeout(FLUSH_WITHIN, self.client.flush()).await;
    }

    async fn tell(&self, bus: &Bus, mut outgoing: mpsc::Receiver<crate::bus::Hint>, metrics: &Metrics) {
        let subject = format!("{}.hint", self.subject);
        while let Some(hint) = outgoing.recv().await {
            let mut words = vec![Bytes::from(hint.to_string())];
            if bus.take_untold() {
                words.push(Bytes::from_static(EVERYTHING));
            }
            for word in words {
                // Fails only for subjects and sizes that cannot be: nothing that another try would help.
                if self.client.publish(subject.clone(), word).await.is_ok() {
                    metrics.cluster_hints.with_label_values(&["out"]).inc();
                }
            }
        }
    }

    async fn hear(&self, bus: &Bus, metrics: &Metrics) {
        loop {
            if let Ok(mut hints) = self.client.subscribe(format!("{}.hint", self.subject)).await {
                while let Some(message) = hints.next().await {
                    metrics.cluster_hints.with_label_values(&["in"]).inc();
                    pass(bus, &message);
                }
            }
            bus.deliver_everything();
            sleep(SUBSCRIBE_AGAIN_AFTER).await;
        }
    }

    /// Tells whoever asks whether this node reaches the database.
    pub(crate) async fn answer(&self, node: &str, reaches: impl Fn() -> bool) {
        let answer = async |subject: String| {
            loop {
                if let Ok(mut questions) = self.client.subscribe(subject.clone()).await {
                    self.answer_each(&mut questions, &reaches).await;
                }
                sleep(SUBSCRIBE_AGAIN_AFTER).await;
            }
        };
        tokio::join!(answer(self.reach(node)), answer(self.reach_any()));
    }

    async fn answer_each(&self, questions: &mut Subscriber, reaches: &impl Fn() -> bool) {
        while let Some(question) = questions.next().await {
            let Some(reply) = question.reply else { continue };
            let answer = Bytes::from_static(if reaches() { YES } else { NO });
            // Who hears nothing assumes the worse.
            let _ = self.client.publish(reply, answer).await;
        }
    }

    /// Whether neither these nodes nor any other reach the database, as they say.
    pub(crate) async fn are_all_cut_off(&self, others: &[Peer], within: Duration) -> bool {
        if !self.is_connected() {
            return false;
        }
        let (known, does_any_reach) = tokio::join!(self.do_these_reach(others, within), self.does_any_reach(within));
        are_all_cut_off(known, does_any_reach)
    }

    /// Whether somebody says so in that time, whom this node may not know: one that came when this node could not see it any more.
    async fn does_any_reach(&self, within: Duration) -> bool {
        let inbox = self.client.new_inbox();
        let asked = async {
            let Ok(mut answers) = self.client.subscribe(inbox.clone()).await else { return true };
            if self.client.publish_with_reply(self.reach_any(), inbox, Bytes::new()).await.is_err() {
                return true;
            }
            while let Some(answer) = answers.next().await {
                if answer.payload == YES {
                    return true;
                }
            }
            true
        };
        timeout(within, asked).await.unwrap_or(false)
    }

    async fn do_these_reach(&self, others: &[Peer], within: Duration) -> Vec<Option<bool>> {
        let asked = others.iter().map(|other| async {
            let asked = self.client.request(self.reach(&other.name), Bytes::new());
            Some(timeout(within, asked).await.ok()?.ok()?.payload != NO)
        });
        join_all(asked).await
    }

    fn reach(&self, node: &str) -> String {
        format!("{}.{}", self.reach_any(), HEXLOWER.encode(node.as_bytes()))
    }

    fn reach_any(&self) -> String {
        format!("{}.reach", self.subject)
    }
}

/// The client takes nothing but the address out of a URL. Whoever is named in the first one that names somebody is who comes to all
/// of them, those that servers tell of included; a name without a password is a token.
fn authenticated(servers: &[ServerAddr]) -> Result<ConnectOptions, RelayError> {
    let decoded = |text: &str| {
        let text = percent_decode_str(text).decode_utf8().map_err(|_| RelayError::Address)?;
        Ok::<_, RelayError>(text.into_owned())
    };
    let named = servers.iter().find_map(|server| Some((server.username()?, server.password())));
    Ok(match named {
        Some((user, Some(password))) => ConnectOptions::with_user_and_password(decoded(user)?, decoded(password)?),
        Some((token, None)) => ConnectOptions::with_token(decoded(token)?),
        None => ConnectOptions::new(),
    })
}

fn pass(bus: &Bus, message: &Message) {
    if message.payload == EVERYTHING {
        return bus.deliver_everything();
    }
    let text = std::str::from_utf8(&message.payload).ok().filter(|text| text.len() <= HINT_BYTES_MAX);
    // What a newer version says and this one does not know, its timers find.
    if let Some(Ok(hint)) = text.map(str::parse) {
        bus.deliver(hint);
    }
}

/// Keeps the state of the connection, and has everybody look when hints were missed.
fn watch(
    bus: Bus,
    is_connected: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
) -> impl Fn(Event) -> std::future::Ready<()> + Send + Sync + 'static {
    move |event| {
        match event {
            Event::Connected => {
                is_connected.store(true, Ordering::Relaxed);
                metrics.cluster_bus_up.set(1);
                bus.deliver_everything();
                tracing::info!("connected to NATS");
            }
            Event::Disconnected | Event::Closed => {
                is_connected.store(false, Ordering::Relaxed);
                metrics.cluster_bus_up.set(0);
                tracing::warn!("the connection to NATS is lost: other nodes hear of changes by their timers");
            }
            Event::SlowConsumer(_) => bus.deliver_everything(),
            Event::LameDuckMode | Event::Draining => {}
            Event::ServerError(_) | Event::ClientError(_) => tracing::warn!(%event, "NATS"),
        }
        std::future::ready(())
    }
}

fn tls(path: &std::path::Path) -> Result<rustls::ClientConfig, RelayError> {
    let unreadable = |source| RelayError::Certificates { path: path.to_owned(), source };
    let mut roots = RootCertStore::empty();
    let certificates: Vec<CertificateDer<'_>> =
        CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect::<Result<_, _>>().map_err(unreadable)?;
    if roots.add_parsable_certificates(certificates).0 == 0 {
        return Err(RelayError::NoCertificate { path: path.to_owned() });
    }
    Ok(rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}
