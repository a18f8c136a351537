//! Which harm comes when: drawn from a seed, and the same for the same seed and length.

use std::fmt::{self, Display};
use std::time::Duration;

use crate::chaos::seed::Seed;
use crate::cluster::Peer;

/// One harm, and how long it lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blow {
    /// From the begin of the run.
    pub at: Duration,
    pub lasts: Duration,
    pub harm: Harm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// kill -9, and started again.
    Kill {
        node: usize,
    },
    /// SIGSTOP, and SIGCONT.
    Freeze {
        node: usize,
    },
    /// SIGTERM, and started again.
    Stop {
        node: usize,
    },
    /// Kept from these.
    Cut {
        node: usize,
        peers: &'static [Peer],
    },
    /// Its wall clock is off by so many seconds.
    Clock {
        node: usize,
        seconds: i64,
    },
    /// kill -9 of the primary, and started again.
    DatabaseKilled,
    /// kill -9 of the primary, and the standby is made the primary.
    DatabaseSwitched,
    /// Its disk takes only a few writes a second.
    SlowDisk,
    NatsKilled,
}

/// What each deck has once; when all were played, they are shuffled again. The first one takes a standby.
const DECK: [fn(&mut Seed, usize) -> Harm; 13] = [
    |_, _| Harm::DatabaseSwitched,
    |seed, nodes| Harm::Kill { node: seed.one_of(nodes) },
    |seed, nodes| Harm::Kill { node: seed.one_of(nodes) },
    |seed, nodes| Harm::Freeze { node: seed.one_of(nodes) },
    |seed, nodes| Harm::Stop { node: seed.one_of(nodes) },
    |seed, nodes| Harm::Cut { node: seed.one_of(nodes), peers: &[Peer::Database] },
    |seed, nodes| Harm::Cut { node: seed.one_of(nodes), peers: &[Peer::Nats, Peer::OtherNodes] },
    |seed, nodes| Harm::Cut { node: seed.one_of(nodes), peers: &[Peer::Balancers] },
    |seed, nodes| Harm::Cut { node: seed.one_of(nodes), peers: &ALL },
    |seed, nodes| Harm::Clock { node: seed.one_of(nodes), seconds: clock_jump(seed) },
    |_, _| Harm::DatabaseKilled,
    |_, _| Harm::SlowDisk,
    |_, _| Harm::NatsKilled,
];
const ALL: [Peer; 4] = [Peer::Database, Peer::Nats, Peer::OtherNodes, Peer::Balancers];

/// Between two harms, so that it shows what each does. Some are short: the next one comes while the last is mended.
const PAUSE_MS: (u64, u64) = (500, 4_000);
/// Some end before anybody's time-out, some after.
const LASTS_MS: (u64, u64) = (500, 9_000);

/// Hours, either way: certificates are valid from an hour before they are made.
fn clock_jump(seed: &mut Seed) -> i64 {
    let seconds = i64::try_from(seed.within(10, 6 * 3_600)).unwrap_or_default();
    if seed.one_of(2) == 0 { seconds } else { -seconds }
}

/// All harms that begin within `length`.
#[must_use]
pub fn plan(number: u64, length: Duration, nodes: usize, has_standby: bool) -> Vec<Blow> {
    let mut seed = Seed::new(number);
    let mut blows: Vec<Blow> = Vec::new();
    let mut deck = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        at += Duration::from_millis(seed.within(PAUSE_MS.0, PAUSE_MS.1));
        let lasts = Duration::from_millis(seed.within(LASTS_MS.0, LASTS_MS.1));
        if at + lasts > length {
            return blows;
        }
        if deck.is_empty() {
            deck = DECK[usize::from(!has_standby)..].to_vec();
        }
        let draw = deck.swap_remove(seed.one_of(deck.len()));
        blows.push(Blow { at, lasts, harm: draw(&mut seed, nodes) });
        at += lasts;
    }
}

impl Harm {
    /// Whether nobody can write to the database meanwhile, or only slowly.
    #[must_use]
    pub fn stops_database(self) -> bool {
        match self {
            Self::DatabaseKilled | Self::DatabaseSwitched | Self::SlowDisk => true,
            Self::Kill { .. }
            | Self::Freeze { .. }
            | Self::Stop { .. }
            | Self::Cut { .. }
            | Self::Clock { .. }
            | Self::NatsKilled => false,
        }
    }
}

impl Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { node } => write!(f, "node {} is killed", node + 1),
            Self::Freeze { node } => write!(f, "node {} stands still", node + 1),
            Self::Stop { node } => write!(f, "node {} is stopped", node + 1),
            Self::Cut { node, peers } => write!(f, "node {} is cut off from {peers:?}", node + 1),
            Self::Clock { node, seconds } => write!(f, "the clock of node {} is {seconds:+} s off", node + 1),
            Self::DatabaseKilled => write!(f, "the database is killed"),
            Self::DatabaseSwitched => write!(f, "the database is switched over"),
            Self::SlowDisk => write!(f, "the database's disk is slow"),
            Self::NatsKilled => write!(f, "NATS is killed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_harms_each_time_and_another_one_others() {
        let length = Duration::from_secs(300);
        assert_eq!(plan(7, length, 3, true), plan(7, length, 3, true));
        assert_ne!(plan(7, length, 3, true), plan(8, length, 3, true));
    }

    #[test]
    fn every_harm_comes_and_none_after_the_end() {
        let length = Duration::from_secs(300);
        for seed in 0..50 {
            let blows = plan(seed, length, 3, true);
            assert!(blows.iter().all(|blow| blow.at + blow.lasts <= length), "seed {seed}");
            assert!(blows.windows(2).all(|two| two[0].at + two[0].lasts < two[1].at), "seed {seed}");
            let has = |is: fn(&Harm) -> bool| blows.iter().any(|blow| is(&blow.harm));
            assert!(has(|harm| matches!(harm, Harm::Kill { .. })), "seed {seed}");
            assert!(has(|harm| matches!(harm, Harm::Clock { .. })), "seed {seed}");
            assert!(has(|harm| matches!(harm, Harm::Cut { peers: [Peer::Database], .. })), "seed {seed}");
            assert!(has(|harm| matches!(harm, Harm::SlowDisk)), "seed {seed}");
            assert!(has(|harm| matches!(harm, Harm::DatabaseSwitched)), "seed {seed}");
            let alone = plan(seed, length, 3, false);
            assert!(!alone.iter().any(|blow| blow.harm == Harm::DatabaseSwitched), "seed {seed}");
        }
    }
}
