//! Whose handshake begins, and when: tokens that come at a rate, and a queue before them that is fair by class. No I/O and no
//! clock: time is what the caller says.
//!
//! Classes take turns, however many of each are waiting, so that one whose thousand devices dial at once delays another's ten
//! by ten turns and not by a thousand. When the queue is full, the class with most in it gives up its newest for a newcomer of
//! another. Within a class it is first come, first served.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use cloudlink_proto::ids::TenantId;
use tokio::time::Instant;

/// What is saved up while nobody comes, in seconds of the rate: more would be a wave that existing links feel.
const BURST_SECONDS: f64 = 0.25;
/// At least so many may begin at once, however low the rate is.
const BURST_MIN: f64 = 4.0;
/// The least rate: a cost that was measured wrong must not lock everybody out.
const RATE_MIN: f64 = 1.0;

/// Who shares a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Class {
    /// From where nobody came lately.
    Unknown,
    /// From where a device of this tenant came lately.
    Tenant(TenantId),
}

/// What may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) waiting_max: usize,
    pub(crate) wait_max: Duration,
}

/// Tokens, and who waits for one. Of those who wait it keeps a `T` each.
#[derive(Debug)]
pub(crate) struct Turnstile<T> {
    limits: Limits,
    /// Tokens a second.
    rate: f64,
    credit: f64,
    credited_at: Instant,
    /// No queue in it is empty.
    queues: HashMap<Class, VecDeque<Waiting<T>>>,
    /// The classes of `queues`: the first one has the next turn.
    round: VecDeque<Class>,
    /// The classes of `queues` by how many wait.
    by_length: BTreeSet<(usize, Class)>,
    waiting: usize,
}

#[derive(Debug)]
struct Waiting<T> {
    item: T,
    since: Instant,
}

/// What becomes of somebody who comes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival<T> {
    Begins,
    /// The one that gave up its place, if the queue was full.
    Waits {
        displaced: Option<T>,
    },
    Refused(Refusal),
}

/// Why somebody is not even let wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// As many wait as may.
    Full,
    /// It would have to wait for too long.
    Long,
}

/// What becomes of somebody who waited.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn<T> {
    Begins(T),
    TooLate(T),
}

impl<T> Turnstile<T> {
    pub(crate) fn new(limits: Limits, rate: f64, now: Instant) -> Self {
        let rate = rate.max(RATE_MIN);
        Self {
            limits,
            rate,
            credit: burst(rate),
            credited_at: now,
            queues: HashMap::new(),
            round: VecDeque::new(),
            by_length: BTreeSet::new(),
            waiting: 0,
        }
    }

    /// From now on so many a second.
    pub(crate) fn set_rate(&mut self, per_second: f64, now: Instant) {
        self.earn(now);
        self.rate = per_second.max(RATE_MIN);
        self.credit = self.credit.min(burst(self.rate));
    }

    /// Somebody comes. `item` is asked for if it has to wait.
    pub(crate) fn arrive(&mut self, class: Class, now: Instant, item: impl FnOnce() -> T) -> Arrival<T> {
        self.earn(now);
        if self.waiting == 0 && self.credit >= 1.0 {
            self.credit -= 1.0;
            return Arrival::Begins;
        }
        let waiting_of_class = self.queues.get(&class).map_or(0, VecDeque::len);
        if self.wait_after(waiting_of_class) > self.limits.wait_max.as_secs_f64() {
            return Arrival::Refused(Refusal::Long);
        }
        let mut displaced = None;
        if self.waiting >= self.limits.waiting_max {
            displaced = self.displace(waiting_of_class);
            if displaced.is_none() {
                return Arrival::Refused(Refusal::Full);
            }
        }
        self.enqueue(class, Waiting { item: item(), since: now });
        Arrival::Waits { displaced }
    }

    /// The next one that has waited to the end. To be called until there is none.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Turn<T>> {
        self.earn(now);
        if self.credit < 1.0 {
            return None;
        }
        let class = self.round.pop_front()?;
        let Waiting { item, since } = self.dequeue(class, VecDeque::pop_front)?;
        if self.queues.contains_key(&class) {
            self.round.push_back(class);
        }
        if now.duration_since(since) > self.limits.wait_max {
            return Some(Turn::TooLate(item));
        }
        self.credit -= 1.0;
        Some(Turn::Begins(item))
    }

    /// When [`Self::poll`] has something next.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        if self.waiting == 0 {
            return None;
        }
        let lacking = (1.0 - self.credit).max(0.0);
        Some(now.max(self.credited_at + Duration::from_secs_f64(lacking / self.rate)))
    }

    /// The turn of somebody who had gone meanwhile.
    pub(crate) fn give_back(&mut self) {
        self.credit = (self.credit + 1.0).min(burst(self.rate));
    }

    pub(crate) const fn waiting(&self) -> usize {
        self.waiting
    }

    fn earn(&mut self, now: Instant) {
        let earned = now.duration_since(self.credited_at).as_secs_f64() * self.rate;
        self.credit = (self.credit + earned).min(burst(self.rate));
        self.credited_at = self.credited_at.max(now);
    }

    /// How many seconds somebody waits before whom so many of the class wait: each class has a turn before each of its own.
    fn wait_after(&self, waiting_of_class: usize) -> f64 {
        let classes = self.queues.len() + usize::from(waiting_of_class == 0);
        let turns = self.waiting.saturating_add(1).min((waiting_of_class + 1).saturating_mul(classes));
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let lacking = turns as f64 - self.credit;
        lacking.max(0.0) / self.rate
    }

    /// Takes the newest out of the longest queue, for a newcomer to a queue that will be shorter than it even then.
    fn displace(&mut self, waiting_of_class: usize) -> Option<T> {
        let (longest, class) = *self.by_length.last()?;
        if longest <= waiting_of_class + 1 {
            return None;
        }
        Some(self.dequeue(class, VecDeque::pop_back)?.item)
    }

    fn enqueue(&mut self, class: Class, waiting: Waiting<T>) {
        let queue = self.queues.entry(class).or_default();
        if queue.is_empty() {
            self.round.push_back(class);
        }
        self.by_length.remove(&(queue.len(), class));
        queue.push_back(waiting);
        self.by_length.insert((queue.len(), class));
        self.waiting += 1;
    }

    /// Whoever takes the last one of a class takes the class out of the round.
    fn dequeue(
        &mut self,
        class: Class,
        take: impl FnOnce(&mut VecDeque<Waiting<T>>) -> Option<Waiting<T>>,
    ) -> Option<Waiting<T>> {
        let queue = self.queues.get_mut(&class)?;
        self.by_length.remove(&(queue.len(), class));
        let taken = take(queue);
        if queue.is_empty() {
            self.queues.remove(&class);
        } else {
            self.by_length.insert((queue.len(), class));
        }
        self.waiting -= usize::from(taken.is_some());
        taken
    }
}

fn burst(rate: f64) -> f64 {
    (rate * BURST_SECONDS).max(BURST_MIN)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const LIMITS: Limits = Limits { waiting_max: 100, wait_max: Duration::from_secs(10) };
    const RATE: f64 = 20.0;
    /// What begins at once at this rate.
    const BURST: usize = 5;

    fn tenant(number: u128) -> Class {
        Class::Tenant(TenantId::from_uuid(Uuid::from_u128(number)))
    }

    /// A turnstile whose tokens are used up.
    fn busy(limits: Limits, now: Instant) -> Turnstile<u32> {
        let mut turnstile = Turnstile::new(limits, RATE, now);
        for _ in 0..BURST {
            assert_eq!(turnstile.arrive(Class::Unknown, now, || unreachable!()), Arrival::Begins);
        }
        turnstile
    }

    fn wait(turnstile: &mut Turnstile<u32>, class: Class, item: u32, now: Instant) {
        assert_eq!(turnstile.arrive(class, now, || item), Arrival::Waits { displaced: None });
    }

    /// Who begins until nobody waits, and when the last one did.
    fn drain(turnstile: &mut Turnstile<u32>, mut now: Instant) -> (Vec<u32>, Instant) {
        let mut begun = Vec::new();
        while let Some(due) = turnstile.due(now) {
            // A due time is rounded to a nanosecond.
            now = due + Duration::from_nanos(1);
            match turnstile.poll(now) {
                Some(Turn::Begins(item)) => begun.push(item),
                Some(Turn::TooLate(item)) => panic!("{item} is too late"),
                None => {}
            }
        }
        (begun, now)
    }

    #[test]
    fn no_more_begin_than_the_rate_allows() {
        let start = Instant::now();
        let mut turnstile = busy(LIMITS, start);
        for item in 0..40 {
            wait(&mut turnstile, Class::Unknown, item, start);
        }
        let (begun, end) = drain(&mut turnstile, start);
        assert_eq!(begun, (0..40).collect::<Vec<_>>(), "first come, first served");
        assert_eq!((end - start).as_millis(), 2_000, "40 at 20 a second");
        assert_eq!(turnstile.due(end), None);
    }

    #[test]
    fn what_is_saved_up_has_an_end() {
        let start = Instant::now();
        let mut turnstile = busy(LIMITS, start);
        let later = start + Duration::from_secs(3_600);
        for _ in 0..BURST {
            assert_eq!(turnstile.arrive(Class::Unknown, later, || 0), Arrival::Begins);
        }
        wait(&mut turnstile, Class::Unknown, 0, later);
    }

    #[test]
    fn a_tenant_of_which_many_wait_delays_the_others_by_their_own_number() {
        let start = Instant::now();
        let mut turnstile = busy(LIMITS, start);
        (0..60).for_each(|item| wait(&mut turnstile, tenant(1), item, start));
        (100..103).for_each(|item| wait(&mut turnstile, tenant(2), item, start));
        (200..203).for_each(|item| wait(&mut turnstile, Class::Unknown, item, start));
        let (begun, _) = drain(&mut turnstile, start);
        assert_eq!(begun[..9], [0, 100, 200, 1, 101, 201, 2, 102, 202]);
        assert_eq!(begun.len(), 66);
    }

    #[test]
    fn when_the_queue_is_full_the_longest_gives_up_its_newest() {
        let start = Instant::now();
        let limits = Limits { waiting_max: 6, ..LIMITS };
        let mut turnstile = busy(limits, start);
        (0..6).for_each(|item| wait(&mut turnstile, tenant(1), item, start));
        assert_eq!(turnstile.arrive(tenant(1), start, || 6), Arrival::Refused(Refusal::Full));
        for (item, displaced) in [(10, 5), (11, 4), (12, 3)] {
            let arrival = turnstile.arrive(tenant(2), start, || item);
            assert_eq!(arrival, Arrival::Waits { displaced: Some(displaced) });
        }
        // Both have as many now.
        assert_eq!(turnstile.arrive(tenant(2), start, || 13), Arrival::Refused(Refusal::Full));
        assert_eq!(turnstile.arrive(tenant(1), start, || 7), Arrival::Refused(Refusal::Full));
        assert_eq!(turnstile.waiting(), 6);
        assert_eq!(drain(&mut turnstile, start).0, [0, 10, 1, 11, 2, 12]);
    }

    #[test]
    fn who_would_wait_in_vain_is_told_so_at_once() {
        let start = Instant::now();
        let limits = Limits { waiting_max: 1_000, wait_max: Duration::from_secs(2) };
        let mut turnstile = busy(limits, start);
        (0..40).for_each(|item| wait(&mut turnstile, tenant(1), item, start));
        assert_eq!(turnstile.arrive(tenant(1), start, || 40), Arrival::Refused(Refusal::Long));
        wait(&mut turnstile, tenant(2), 100, start);
    }

    #[test]
    fn who_has_waited_for_too_long_takes_no_token() {
        let start = Instant::now();
        let mut turnstile = busy(LIMITS, start);
        (0..2).for_each(|item| wait(&mut turnstile, Class::Unknown, item, start));
        let late = start + LIMITS.wait_max + Duration::from_millis(1);
        assert_eq!(turnstile.poll(late), Some(Turn::TooLate(0)));
        assert_eq!(turnstile.poll(late), Some(Turn::TooLate(1)));
        for _ in 0..BURST {
            assert_eq!(turnstile.arrive(Class::Unknown, late, || 0), Arrival::Begins);
        }
    }

    #[test]
    fn the_turn_of_somebody_who_left_is_the_next_ones() {
        let start = Instant::now();
        let mut turnstile = busy(LIMITS, start);
        (0..2).for_each(|item| wait(&mut turnstile, Class::Unknown, item, start));
        let now = start + Duration::from_millis(51);
        assert_eq!(turnstile.poll(now), Some(Turn::Begins(0)));
        assert_eq!(turnstile.poll(now), None);
        turnstile.give_back();
        assert_eq!(turnstile.poll(now), Some(Turn::Begins(1)));
    }

    #[test]
    fn another_rate_counts_from_when_it_is_set() {
        let start = Instant::now();
        let mut turnstile = busy(LIMITS, start);
        (0..11).for_each(|item| wait(&mut turnstile, Class::Unknown, item, start));
        let later = start + Duration::from_millis(50);
        turnstile.set_rate(100.0, later);
        let (_, end) = drain(&mut turnstile, later);
        assert_eq!((end - later).as_millis(), 100, "one by the old rate, ten by the new one");
    }

    /// Whatever happens in whatever order: the books are right, and nobody waits who may not.
    #[test]
    fn books_are_kept() {
        let start = Instant::now();
        let limits = Limits { waiting_max: 20, wait_max: Duration::from_millis(1_500) };
        let mut turnstile = Turnstile::new(limits, RATE, start);
        let (mut random, mut now, mut begun) = (0x2545_f491_4f6c_dd1d_u64, start, 0_u32);
        let mut draw = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let (mut came, mut left) = (0_u32, 0_u32);
        for _ in 0..20_000 {
            match draw(4) {
                0 => now += Duration::from_millis(draw(120)),
                1 => match turnstile.poll(now) {
                    Some(Turn::Begins(_)) => (begun, left) = (begun + 1, left + 1),
                    Some(Turn::TooLate(_)) => left += 1,
                    None => {}
                },
                _ => match turnstile.arrive(tenant(u128::from(draw(5))), now, || 0) {
                    Arrival::Begins => begun += 1,
                    Arrival::Waits { displaced } => {
                        (came, left) = (came + 1, left + u32::from(displaced.is_some()));
                    }
                    Arrival::Refused(_) => {}
                },
            }
            let lengths: usize = turnstile.queues.values().map(VecDeque::len).sum();
            assert_eq!((lengths, came - left), (turnstile.waiting, u32::try_from(lengths).unwrap()));
            assert!(turnstile.waiting <= limits.waiting_max);
            let mut classes: Vec<_> = turnstile.round.iter().copied().collect();
            classes.sort_unstable();
            let mut sized: Vec<_> = turnstile.by_length.iter().map(|(_, class)| *class).collect();
            sized.sort_unstable();
            assert_eq!(classes, sized);
            assert!(turnstile.by_length.iter().all(|(length, class)| turnstile.queues[class].len() == *length));
        }
        let allowed = RATE * (now - start).as_secs_f64() + burst(RATE);
        assert!(f64::from(begun) <= allowed + 1.0, "{begun} of {allowed}");
    }
}
