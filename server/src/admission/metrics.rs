//! What admission counts.

use prometheus::{Counter, CounterVec, Gauge, GaugeVec, Histogram, IntCounterVec, IntGauge, Opts};

use super::cost::Kind;
use super::turnstile::Refusal;
use crate::metrics::{Registering, counters, gauge, histogram, register};

/// From no wait to the longest.
const WAIT_BUCKETS_SECONDS: &[f64] = &[0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Why a connection was turned away. The values of the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TurnedAway {
    /// Before TLS: as many wait as may.
    Full,
    /// Before TLS: it would have had to wait for too long.
    Long,
    /// Before TLS: it gave its place to one of a tenant of which fewer wait.
    Displaced,
    /// Before TLS: it has waited for too long.
    Late,
    /// With its certificate known: as many are being registered, of all tenants or of its own, as may.
    Registrations,
}

impl TurnedAway {
    const ALL: [Self; 5] = [Self::Full, Self::Long, Self::Displaced, Self::Late, Self::Registrations];

    const fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Long => "long",
            Self::Displaced => "displaced",
            Self::Late => "late",
            Self::Registrations => "registrations",
        }
    }
}

impl From<Refusal> for TurnedAway {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full => Self::Full,
            Refusal::Long => Self::Long,
        }
    }
}

#[derive(Debug)]
pub struct AdmissionMetrics {
    pub(super) rate: Gauge,
    pub(super) waiting: IntGauge,
    pub(super) wait_seconds: Histogram,
    turned_away: IntCounterVec,
    pub(super) registering: IntGauge,
    handshake_cpu: CounterVec,
    pub(super) registration_cpu: Counter,
    cost: GaugeVec,
    pub(super) overhead: Gauge,
}

impl AdmissionMetrics {
    pub(crate) fn new(registry: &Registering) -> Self {
        let metrics = Self {
            rate: register(
                registry,
                "gauge",
                Gauge::new("cloudlink_admission_rate", "New connections a second that the device port lets in."),
            ),
            waiting: gauge(
                registry,
                "cloudlink_admission_waiting",
                "Connections to the device port that wait for their handshake.",
            ),
            wait_seconds: histogram(
                registry,
                "cloudlink_admission_wait_seconds",
                "How long connections that were let in had waited for their handshake.",
                WAIT_BUCKETS_SECONDS,
            ),
            turned_away: counters(
                registry,
                "cloudlink_admission_turned_away_total",
                "Connections to the device port that were turned away because too many came at once.",
                &["reason"],
            ),
            registering: gauge(
                registry,
                "cloudlink_admission_registering",
                "Devices whose certificate is known and whose link the database is asked about.",
            ),
            handshake_cpu: register(
                registry,
                "counter",
                CounterVec::new(
                    Opts::new(
                        "cloudlink_admission_handshake_cpu_seconds_total",
                        "Processor time of handshakes on the device port. With OpenVPN, of all up to the tunnel.",
                    ),
                    &["kind"],
                ),
            ),
            registration_cpu: register(
                registry,
                "counter",
                Counter::new(
                    "cloudlink_admission_registration_cpu_seconds_total",
                    "Processor time from the end of a handshake over TLS to the link, without the database's.",
                ),
            ),
            cost: register(
                registry,
                "gauge",
                GaugeVec::new(
                    Opts::new(
                        "cloudlink_admission_cost_seconds",
                        "Processor time of this node for one new connection, all in all, on average of the last ones.",
                    ),
                    &["kind"],
                ),
            ),
            overhead: register(
                registry,
                "gauge",
                Gauge::new(
                    "cloudlink_admission_overhead",
                    "What the process takes for a new connection in all, as a multiple of the connection's own work.",
                ),
            ),
        };
        TurnedAway::ALL.into_iter().for_each(|reason| {
            metrics.turned_away.with_label_values(&[reason.label()]);
        });
        Kind::ALL.into_iter().for_each(|kind| {
            metrics.handshake_cpu.with_label_values(&[kind.label()]);
        });
        metrics
    }

    pub(super) fn turned_away(&self, reason: TurnedAway) {
        self.turned_away.with_label_values(&[reason.label()]).inc();
    }

    pub(super) fn cost(&self, kind: Kind, seconds: f64) {
        self.cost.with_label_values(&[kind.label()]).set(seconds);
    }

    pub(super) fn handshake_cpu(&self, kind: Kind, seconds: f64) {
        self.handshake_cpu.with_label_values(&[kind.label()]).inc_by(seconds);
    }
}
