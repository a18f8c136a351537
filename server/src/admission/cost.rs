//! What a new connection costs, as measured on those that came lately. No I/O and no clock: the figures are the caller's.

use std::time::Duration;

/// Before anything was measured.
const PRIOR: Duration = Duration::from_micros(1_500);
/// How many of the last connections count, as to their own work.
const WINDOW: f64 = 128.0;
/// How many count as to what the process adds: when a storm ends few come, and those that came before begin to work.
const OVERHEAD_WINDOW: f64 = 4_096.0;
/// New connections in a second, below which the process' own processor time says nothing about them.
const SAMPLE_MIN: u32 = 20;
/// What the rest of the process may add to a connection's own work, at most: more is other work.
const OVERHEAD_MAX: f64 = 4.0;

/// How a connection was proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Full,
    Resumed,
    OpenVpn,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Full, Self::Resumed, Self::OpenVpn];

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Resumed => "resumed",
            Self::OpenVpn => "openvpn",
        }
    }
}

/// What was measured so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Costs {
    handshakes: [Average; Kind::ALL.len()],
    registration: Average,
    /// Both, whatever the kind.
    connection: Average,
    /// How many there were since the start.
    connections: u64,
    /// What the process takes for a connection in all, as a multiple of the connection's own work.
    overhead: Average,
    /// What the process takes a second while nobody comes, at least.
    idle: Average,
    since_sample: Since,
}

#[derive(Clone, Copy, Debug, Default)]
struct Since {
    connections: u32,
    own_seconds: f64,
}

impl Costs {
    /// One connection: what its handshake took, and what it took to make a link of it.
    pub(crate) fn note(&mut self, kind: Kind, handshake: Duration, registration: Duration) {
        self.handshakes[kind as usize].add(handshake.as_secs_f64());
        if kind != Kind::OpenVpn {
            self.registration.add(registration.as_secs_f64());
        }
        let own_seconds = (handshake + registration).as_secs_f64();
        self.connection.add(own_seconds);
        self.connections += 1;
        self.since_sample.connections += 1;
        self.since_sample.own_seconds += own_seconds;
    }

    /// What the whole process took since the last sample.
    pub(crate) fn sample(&mut self, spent: Duration, time: Duration) {
        let Since { connections, own_seconds } = std::mem::take(&mut self.since_sample);
        if time.is_zero() {
            return;
        }
        if connections == 0 {
            self.idle.add_least(spent.as_secs_f64() / time.as_secs_f64());
        } else if connections >= SAMPLE_MIN && own_seconds > 0.0 {
            let idle_seconds = self.idle.mean * time.as_secs_f64();
            let factor = (spent.as_secs_f64() - idle_seconds) / own_seconds;
            self.overhead.add_of(factor.clamp(1.0, OVERHEAD_MAX), f64::from(connections), OVERHEAD_WINDOW);
        }
    }

    /// Of one connection, whatever its kind, all in all.
    pub(crate) fn per_connection(&self) -> Duration {
        self.measured().unwrap_or(PRIOR)
    }

    /// The same; `None` if there was none.
    pub(crate) fn measured(&self) -> Option<Duration> {
        (!self.connection.is_empty()).then(|| Duration::from_secs_f64(self.connection.mean * self.overhead()))
    }

    /// Of one connection of this kind, all in all; `None` if there was none.
    pub(crate) fn per_connection_of(&self, kind: Kind) -> Option<Duration> {
        let handshake = &self.handshakes[kind as usize];
        let registration = if kind == Kind::OpenVpn { 0.0 } else { self.registration.mean };
        (!handshake.is_empty()).then(|| Duration::from_secs_f64((handshake.mean + registration) * self.overhead()))
    }

    /// See the fields.
    pub(crate) const fn connections(&self) -> u64 {
        self.connections
    }

    pub(crate) fn overhead(&self) -> f64 {
        if self.overhead.is_empty() { 1.0 } else { self.overhead.mean }
    }
}

/// A mean over about the last of a window: of fewer, over all of them.
#[derive(Clone, Copy, Debug, Default)]
struct Average {
    weight: f64,
    mean: f64,
}

impl Average {
    fn add(&mut self, value: f64) {
        self.add_of(value, 1.0, WINDOW);
    }

    fn add_of(&mut self, value: f64, weight: f64, window: f64) {
        let weight = weight.min(window);
        self.weight = (self.weight + weight).min(window);
        self.mean += (value - self.mean) * weight / self.weight;
    }

    /// Follows the least: what comes now and then beside is not what there is all the time.
    fn add_least(&mut self, value: f64) {
        if value < self.mean {
            *self = Self::default();
        }
        self.add(value);
    }

    fn is_empty(&self) -> bool {
        self.weight == 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_came_last_counts_most() {
        let mut costs = Costs::default();
        assert_eq!(costs.per_connection(), PRIOR);
        assert_eq!(costs.per_connection_of(Kind::Full), None);
        costs.note(Kind::Full, 6 * MS, 2 * MS);
        assert_eq!(costs.per_connection(), 8 * MS, "the first one replaces what was guessed");
        for _ in 0..2_000 {
            costs.note(Kind::Resumed, MS, 2 * MS);
        }
        assert_eq!(costs.per_connection().as_micros(), 3_000);
        assert_eq!(costs.per_connection_of(Kind::Full), Some(8 * MS), "kinds are apart");
        assert_eq!(costs.per_connection_of(Kind::Resumed), Some(3 * MS));
    }

    #[test]
    fn what_the_process_adds_is_measured_in_storms_alone() {
        let mut costs = Costs::default();
        let second = Duration::from_secs(1);
        costs.sample(100 * MS, second);
        for _ in 0..100 {
            costs.note(Kind::Full, 2 * MS, 2 * MS);
        }
        costs.sample(700 * MS, second);
        assert!((costs.overhead() - 1.5).abs() < 1e-9, "{}", costs.overhead());
        assert_eq!(costs.per_connection(), 6 * MS);
        costs.note(Kind::Full, 2 * MS, 2 * MS);
        costs.sample(900 * MS, second);
        assert!((costs.overhead() - 1.5).abs() < 1e-9, "one connection says nothing");
        costs.sample(100 * MS, Duration::ZERO);
    }

    #[test]
    fn the_end_of_a_storm_does_not_stand_for_all_of_it() {
        let mut costs = Costs::default();
        for connections in [800; 10].into_iter().chain([100, 50, 25]) {
            for _ in 0..connections {
                costs.note(Kind::Full, MS / 4, MS / 4);
            }
            // Those that are linked take as much again of the processor as one second of the storm.
            let others = if connections == 800 { Duration::ZERO } else { 400 * MS };
            costs.sample(connections * MS / 2 + others, Duration::from_secs(1));
        }
        assert!((1.0..1.2).contains(&costs.overhead()), "{}", costs.overhead());
    }

    #[test]
    fn what_a_start_takes_is_no_idling() {
        let mut costs = Costs::default();
        let second = Duration::from_secs(1);
        for spent in [900, 400, 10, 10, 10] {
            costs.sample(spent * MS, second);
        }
        for _ in 0..100 {
            costs.note(Kind::Full, 2 * MS, 2 * MS);
        }
        costs.sample(610 * MS, second);
        assert!((costs.overhead() - 1.5).abs() < 0.01, "{}", costs.overhead());
    }

    #[test]
    fn other_work_is_not_taken_for_that_of_connections() {
        let mut costs = Costs::default();
        for _ in 0..100 {
            costs.note(Kind::OpenVpn, MS, Duration::ZERO);
        }
        costs.sample(Duration::from_secs(2), Duration::from_secs(1));
        assert_eq!(costs.per_connection(), 4 * MS);
    }
}
