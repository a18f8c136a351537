//! How long it takes until all are back, when a whole fleet comes at once: the storm is played through with the same turnstile
//! that lets real ones in, in a time of its own, with devices that come again as the agent does. No I/O and no clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use tokio::time::Instant;

use super::turnstile::{Arrival, Class, Limits, Turn, Turnstile};

/// Devices of one storm, at most: a million take a few seconds of a processor to play through.
pub(crate) const DEVICES_MAX: u32 = 1_000_000;
/// Nodes that are left, at most.
pub(crate) const NODES_MAX: u32 = 1_000;

// The agent's pauses, each anything up to this and then up to twice as much (agent, `backoff.rs`).
const PAUSE_FIRST_SECONDS: f64 = 1.0;
const PAUSE_MAX_SECONDS: f64 = 300.0;

/// Attempts that are played through, about: more would take a processor for minutes.
const ATTEMPTS_MAX: f64 = 5e7;

/// A storm on one node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Storm {
    pub(crate) devices: u32,
    /// New connections a second that the node takes.
    pub(crate) rate: f64,
    pub(crate) limits: Limits,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Forecast {
    /// When half of the devices are back, nine tenths, 99 of a hundred, and all.
    pub(crate) half: Duration,
    pub(crate) nine_tenths: Duration,
    pub(crate) most: Duration,
    pub(crate) all: Duration,
    /// How often all of them dialled, together.
    pub(crate) attempts: u64,
}

impl Storm {
    /// Whether it is over so late that it is not worth to be played through: until then all those that are not back, half of all on
    /// average, dial again and again, each after half of the longest pause on average.
    pub(crate) fn is_endless(&self) -> bool {
        f64::from(self.devices).powi(2) / (self.rate * PAUSE_MAX_SECONDS) > ATTEMPTS_MAX
    }
}

/// Plays a storm through. The same seed gives the same forecast.
pub(crate) fn play(storm: &Storm, seed: u64) -> Forecast {
    let start = Instant::now();
    let mut play = Play {
        start,
        now: start,
        turnstile: Turnstile::new(storm.limits, storm.rate, start),
        dialling: BinaryHeap::with_capacity(storm.devices as usize),
        random: Random(seed | 1),
        attempts: 0,
        back: Vec::with_capacity(storm.devices as usize),
    };
    (0..storm.devices).for_each(|_| play.dial_again(0));
    play.run();
    let at = |share: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a count, which is at most a million"
        )]
        let place = (f64::from(storm.devices) * share).ceil() as usize;
        play.back.get(place.saturating_sub(1)).copied().unwrap_or_default()
    };
    Forecast { half: at(0.5), nine_tenths: at(0.9), most: at(0.99), all: at(1.0), attempts: play.attempts }
}

struct Play {
    start: Instant,
    now: Instant,
    /// Of those who wait it keeps how often they were turned away.
    turnstile: Turnstile<u32>,
    dialling: BinaryHeap<Reverse<(Instant, u32)>>,
    random: Random,
    attempts: u64,
    /// When each was back, in order.
    back: Vec<Duration>,
}

impl Play {
    fn run(&mut self) {
        loop {
            let dial_at = self.dialling.peek().map(|Reverse((at, _))| *at);
            let due = self.turnstile.due(self.now);
            let Some(next) = dial_at.into_iter().chain(due).min() else { return };
            // A due time is rounded down to a nanosecond.
            self.now = if due == Some(next) { next + Duration::from_nanos(1) } else { next };
            self.give();
            while let Some(Reverse((at, _))) = self.dialling.peek()
                && *at <= self.now
            {
                let Some(Reverse((_, refusals))) = self.dialling.pop() else { return };
                self.arrive(refusals);
            }
        }
    }

    fn give(&mut self) {
        while let Some(turn) = self.turnstile.poll(self.now) {
            match turn {
                Turn::Begins(_) => self.back.push(self.now - self.start),
                Turn::TooLate(refusals) => self.dial_again(refusals + 1),
            }
        }
    }

    fn arrive(&mut self, refusals: u32) {
        self.attempts += 1;
        // From where they come is not known of a fleet that is yet to come.
        match self.turnstile.arrive(Class::Unknown, self.now, || refusals) {
            Arrival::Begins => self.back.push(self.now - self.start),
            Arrival::Waits { displaced } => {
                if let Some(displaced) = displaced {
                    self.dial_again(displaced + 1);
                }
            }
            Arrival::Refused(_) => self.dial_again(refusals + 1),
        }
    }

    fn dial_again(&mut self, refusals: u32) {
        let ceiling = (PAUSE_FIRST_SECONDS * 2_f64.powi(refusals.min(16).cast_signed())).min(PAUSE_MAX_SECONDS);
        let pause = Duration::from_secs_f64(ceiling * self.random.share());
        self.dialling.push(Reverse((self.now + pause, refusals)));
    }
}

/// Xorshift: good enough to spread pauses, and the same everywhere.
struct Random(u64);

impl Random {
    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        f64::from(u32::try_from(self.0 >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { waiting_max: 1_024, wait_max: Duration::from_secs(10) };

    #[test]
    fn a_storm_that_fits_into_the_queue_takes_as_long_as_the_rate_says() {
        let forecast = play(&Storm { devices: 1_000, rate: 200.0, limits: LIMITS }, 1);
        let expected = 1_000.0 / 200.0;
        assert!((forecast.all.as_secs_f64() / expected - 1.0).abs() < 0.05, "{forecast:?}");
        assert_eq!(forecast.attempts, 1_000);
        assert!(forecast.half < forecast.nine_tenths && forecast.nine_tenths < forecast.most, "{forecast:?}");
    }

    #[test]
    fn who_is_turned_away_comes_again_until_all_are_back() {
        let forecast = play(&Storm { devices: 50_000, rate: 1_000.0, limits: LIMITS }, 1);
        // The rate is the bound, and nearly reached: the queue is never empty for long until the last ones come.
        assert!((44.0..70.0).contains(&forecast.nine_tenths.as_secs_f64()), "{forecast:?}");
        assert!(forecast.all.as_secs_f64() < 400.0, "{forecast:?}");
        assert!(forecast.attempts > 100_000, "{forecast:?}");
    }

    #[test]
    fn it_is_the_same_each_time() {
        let storm = Storm { devices: 5_000, rate: 300.0, limits: LIMITS };
        assert_eq!(play(&storm, 7), play(&storm, 7));
        assert_ne!(play(&storm, 7), play(&storm, 8));
    }

    #[test]
    fn what_would_take_for_ever_is_known_before() {
        let is_endless = |devices, rate| Storm { devices, rate, limits: LIMITS }.is_endless();
        assert!(is_endless(DEVICES_MAX, 1.0) && is_endless(DEVICES_MAX, 0.0));
        assert!(!is_endless(DEVICES_MAX, 100.0) && !is_endless(100_000, 1.0) && !is_endless(1, 0.0001));
        // It is about right, besides the first few, which come soon after one another.
        let forecast = play(&Storm { devices: 20_000, rate: 20.0, limits: LIMITS }, 1);
        let estimated = 20_000_f64.powi(2) / (20.0 * PAUSE_MAX_SECONDS) + 20_000.0 * PAUSE_MAX_SECONDS.log2();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let ratio = forecast.attempts as f64 / estimated;
        assert!((0.5..2.0).contains(&ratio), "{ratio}: {forecast:?}");
    }

    #[test]
    fn nobody_is_back_at_once() {
        let forecast = play(&Storm { devices: 0, rate: 1.0, limits: LIMITS }, 1);
        assert_eq!((forecast.all, forecast.attempts), (Duration::ZERO, 0));
    }
}
