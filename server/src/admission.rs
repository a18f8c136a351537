//! How fast new connections are let in on the device port, WebSocket and OpenVPN alike, when a whole fleet comes at once.
//!
//! ```text
//! link::accept ── first bytes ── turn (before TLS, by address) ── TLS ── register (by tenant, before the database) ── link
//!                                  │                              └──────────────── metered ───────────────────┘
//!                             turnstile ◄──────── rate ──────────────────────────────── cost
//! ```
//!
//! Before TLS nobody is known, but an address may be: devices of one tenant came from it lately. Classes of such addresses take
//! turns, and all other addresses are one class more. Whoever is turned away here costs microseconds, and dials again with a
//! growing pause. Once its certificate is known, a device can be told when to come back.
//!
//! The decisions are in `turnstile`, `registration` and `recall`, without I/O or a clock; here they are driven.

pub(crate) mod cost;
pub(crate) mod cpu;
pub(crate) mod metrics;
pub(crate) mod plan;
mod recall;
mod registration;
pub(crate) mod turnstile;

use std::net::IpAddr;
use std::num::NonZero;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::available_parallelism;
use std::time::Duration;

use cloudlink_proto::ids::TenantId;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use self::cost::{Costs, Kind};
use self::metrics::{AdmissionMetrics, TurnedAway};
use self::recall::Recall;
use self::registration::Registrations;
use self::turnstile::{Arrival, Class, Limits, Turn, Turnstile};
use crate::config;
use crate::link::limit::Source;
use crate::metrics::Metrics;
use crate::store::node::Offer;

/// How often the process' processor time is compared with that of new connections.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Whoever waits gives up by itself only if its turn never comes: a little later than the turnstile would give it up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(1);

/// Lets new connections in.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Of the processors, how much new connections may take: 1 is one processor.
    processors: f64,
    /// Instead, so many a second.
    fixed_rate: Option<f64>,
    limits: Limits,
    retry_after_seconds: u32,
    turnstile: Mutex<Turnstile<oneshot::Sender<()>>>,
    recall: Mutex<Recall>,
    registrations: Mutex<Registrations>,
    costs: Mutex<Costs>,
    /// Tells the task that gives turns that somebody waits.
    wake: Arc<Notify>,
    metrics: Arc<Metrics>,
}

/// A device that is being registered, until this is dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    admission: Arc<Admission>,
    tenant: TenantId,
}

/// What somebody hears who asks for a turn.
enum Asked {
    Answered(bool),
    Waits(oneshot::Receiver<()>),
}

impl Admission {
    /// Starts the task that gives turns; it ends with the last clone of what this gives. To be called in a runtime.
    pub(crate) fn start(config: &config::Admission, metrics: Arc<Metrics>) -> Arc<Self> {
        let processors = available_parallelism().map_or(1, NonZero::get);
        let processors = f64::from(u32::try_from(processors).unwrap_or(u32::MAX));
        let limits = Limits { waiting_max: config.waiting_max as usize, wait_max: config.wait_seconds.duration() };
        let costs = Costs::default();
        let processors = processors * f64::from(config.cpu_share_percent) / 100.0;
        let fixed_rate = config.handshakes_per_second.map(f64::from);
        let rate = rate(fixed_rate, processors, &costs);
        metrics.admission.rate.set(rate);
        let admission = Arc::new(Self {
            processors,
            fixed_rate,
            limits,
            retry_after_seconds: config.retry_after_seconds.0,
            turnstile: Mutex::new(Turnstile::new(limits, rate, Instant::now())),
            recall: Mutex::default(),
            registrations: Mutex::new(Registrations::new(config.registrations_max)),
            costs: Mutex::new(costs),
            wake: Arc::default(),
            metrics,
        });
        tokio::spawn(give_turns(Arc::downgrade(&admission), Arc::clone(&admission.wake)));
        admission
    }

    /// Waits until a handshake with somebody from there may begin. False: it is turned away.
    pub(crate) async fn turn(&self, remote: IpAddr) -> bool {
        let come_at = Instant::now();
        let has_turn = match self.ask(remote, come_at) {
            Asked::Answered(has_turn) => has_turn,
            Asked::Waits(turn) => matches!(timeout(self.limits.wait_max + GIVE_UP_AFTER, turn).await, Ok(Ok(()))),
        };
        if has_turn {
            self.figures().wait_seconds.observe(come_at.elapsed().as_secs_f64());
        }
        has_turn
    }

    fn ask(&self, remote: IpAddr, now: Instant) -> Asked {
        let class = self.class_of(remote);
        let mut turn = None;
        let mut turnstile = lock(&self.turnstile);
        let arrival = turnstile.arrive(class, now, || {
            let (sender, receiver) = oneshot::channel();
            turn = Some(receiver);
            sender
        });
        self.show_waiting(&turnstile);
        drop(turnstile);
        match (arrival, turn) {
            (Arrival::Waits { displaced }, Some(turn)) => {
                if displaced.is_some() {
                    // It hears of it by being dropped.
                    self.figures().turned_away(TurnedAway::Displaced);
                }
                self.wake.notify_one();
                Asked::Waits(turn)
            }
            (Arrival::Refused(refusal), _) => {
                self.figures().turned_away(refusal.into());
                Asked::Answered(false)
            }
            (Arrival::Begins | Arrival::Waits { .. }, _) => Asked::Answered(true),
        }
    }

    /// A device of the tenant is to be registered. `None`: it is to come back later.
    pub(crate) fn register(self: &Arc<Self>, tenant: TenantId) -> Option<Registration> {
        let mut registrations = lock(&self.registrations);
        let is_let_in = registrations.begin(tenant);
        self.figures().registering.set(registrations.total().into());
        drop(registrations);
        if !is_let_in {
            self.figures().turned_away(TurnedAway::Registrations);
        }
        is_let_in.then(|| Registration { admission: Arc::clone(self), tenant })
    }

    /// Whether that is what the configuration says, whatever a connection costs.
    pub(crate) const fn is_fixed(&self) -> bool {
        self.fixed_rate.is_some()
    }

    /// What was measured so far.
    pub(crate) fn costs(&self) -> Costs {
        lock(&self.costs).clone()
    }

    pub(crate) const fn limits(&self) -> Limits {
        self.limits
    }

    /// When whoever could not be registered is to come back.
    pub(crate) const fn retry_after_seconds(&self) -> u32 {
        self.retry_after_seconds
    }

    /// With whom somebody from there takes turns.
    pub(crate) fn class_of(&self, remote: IpAddr) -> Class {
        lock(&self.recall).class_of(Source::from(remote))
    }

    /// A device of the tenant was let in from there.
    pub(crate) fn learn(&self, remote: IpAddr, tenant: TenantId) {
        lock(&self.recall).learn(Source::from(remote), tenant);
    }

    /// What it cost to let one in.
    pub(crate) fn note(&self, kind: Kind, handshake: Duration, registration: Duration) {
        self.figures().handshake_cpu(kind, handshake.as_secs_f64());
        self.figures().registration_cpu.inc_by(registration.as_secs_f64());
        let mut costs = lock(&self.costs);
        costs.note(kind, handshake, registration);
        if let Some(cost) = costs.per_connection_of(kind) {
            self.figures().cost(kind, cost.as_secs_f64());
        }
        let rate = rate(self.fixed_rate, self.processors, &costs);
        drop(costs);
        self.set_rate(rate);
    }

    /// New connections a second that it lets in.
    pub(crate) fn rate(&self) -> f64 {
        rate(self.fixed_rate, self.processors, &lock(&self.costs))
    }

    /// What other nodes are told of it, which may have devices for this one.
    pub(crate) fn offer(&self) -> Offer {
        let cost = lock(&self.costs).measured();
        #[expect(clippy::cast_possible_truncation, reason = "an estimate, and far from the largest")]
        let handshakes_per_second = self.rate() as f32;
        Offer {
            handshake_us: cost.map(|cost| i32::try_from(cost.as_micros()).unwrap_or(i32::MAX).max(1)),
            handshakes_per_second,
        }
    }

    fn sample(&self, spent: Duration, time: Duration) {
        let mut costs = lock(&self.costs);
        costs.sample(spent, time);
        let (overhead, rate) = (costs.overhead(), rate(self.fixed_rate, self.processors, &costs));
        drop(costs);
        self.figures().overhead.set(overhead);
        self.set_rate(rate);
    }

    fn set_rate(&self, rate: f64) {
        self.figures().rate.set(rate);
        lock(&self.turnstile).set_rate(rate, Instant::now());
    }

    /// Gives turns to all whose time has come, and tells when the next one's comes.
    fn give(&self) -> Option<Instant> {
        let mut turnstile = lock(&self.turnstile);
        let now = Instant::now();
        while let Some(turn) = turnstile.poll(now) {
            match turn {
                Turn::Begins(waiting) => {
                    if waiting.send(()).is_err() {
                        turnstile.give_back();
                    }
                }
                // It hears of it by that.
                Turn::TooLate(waiting) => {
                    self.figures().turned_away(TurnedAway::Late);
                    drop(waiting);
                }
            }
        }
        self.show_waiting(&turnstile);
        turnstile.due(now)
    }

    fn show_waiting(&self, turnstile: &Turnstile<oneshot::Sender<()>>) {
        self.figures().waiting.set(i64::try_from(turnstile.waiting()).unwrap_or(i64::MAX));
    }

    fn figures(&self) -> &AdmissionMetrics {
        &self.metrics.admission
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut registrations = lock(&self.admission.registrations);
        registrations.end(self.tenant);
        self.admission.figures().registering.set(registrations.total().into());
    }
}

/// New connections a second.
fn rate(fixed: Option<f64>, processors: f64, costs: &Costs) -> f64 {
    fixed.unwrap_or_else(|| processors / costs.per_connection().as_secs_f64())
}

async fn give_turns(admission: Weak<Admission>, wake: Arc<Notify>) {
    let (mut sampled_at, mut spent) = (Instant::now(), cpu::of_process());
    loop {
        let sample_at = sampled_at + SAMPLE_EVERY;
        let next = {
            let Some(admission) = admission.upgrade() else { return };
            let now = Instant::now();
            if now >= sample_at {
                let spent_now = cpu::of_process();
                admission.sample(spent_now.saturating_sub(spent), now - sampled_at);
                (sampled_at, spent) = (now, spent_now);
            }
            admission.give().unwrap_or(sample_at).min(sample_at.max(now))
        };
        tokio::select! {
            () = wake.notified() => {}
            () = sleep_until(next) => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each is consistent after each of its operations.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
