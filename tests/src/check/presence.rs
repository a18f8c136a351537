//! Links: epochs grow, and what the database shows is what devices see, but for a while after each change.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::evidence::Evidence;
use super::{Fault, Figures, Limits};
use crate::history::{Entry, Sample, Shown, What};

/// What a device sees of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Down,
    /// The newest link's epoch; a tunnel's is not known.
    Up(Option<u64>),
}

impl State {
    fn is_shown(self, shown: Option<Shown>) -> bool {
        let live = shown.filter(|shown| shown.is_live);
        match self {
            Self::Down => live.is_none(),
            Self::Up(None) => live.is_some(),
            Self::Up(Some(epoch)) => live.is_some_and(|live| live.epoch == epoch),
        }
    }
}

/// When a device's state changed, and to what.
type Timeline = Vec<(i64, State)>;

pub(super) fn check(evidence: &Evidence, limits: &Limits, faults: &mut Vec<Fault>, figures: &mut Figures) {
    let timelines = timelines(&evidence.entries, faults, figures);
    figures.devices = timelines.len();
    let mut changes = HashMap::<Uuid, Vec<(usize, Shown)>>::new();
    for (number, sample) in evidence.samples.iter().enumerate() {
        for shown in &sample.changed {
            changes.entry(shown.device).or_default().push((number, *shown));
        }
    }
    // Between two looks the database was not to be written to: what was wrong before may be wrong for as long again.
    let was_stopped: Vec<bool> = (0..evidence.samples.len()).map(|number| was_stopped(evidence, number)).collect();
    let limit_ms = i64::try_from(limits.presence.as_millis()).unwrap_or(i64::MAX);
    for (device, timeline) in &timelines {
        let changes = changes.get(device).map(Vec::as_slice).unwrap_or_default();
        let mut judge = Judge { device: *device, limit_ms, wrong_since_us: None, is_told: false };
        let (mut place, mut shown) = (0, None);
        for (number, sample) in evidence.samples.iter().enumerate() {
            while let Some((_, change)) = changes.get(place).filter(|(at, _)| *at <= number) {
                (place, shown) = (place + 1, Some(*change));
            }
            if was_stopped[number] {
                judge.wrong_since_us = None;
            }
            judge.look(sample, timeline, shown, faults, figures);
        }
    }
}

/// The states of each device, in order. Says on the way which epochs did not grow.
fn timelines(entries: &[Entry], faults: &mut Vec<Fault>, figures: &mut Figures) -> BTreeMap<Uuid, Timeline> {
    #[derive(Default)]
    struct Seen {
        timeline: Timeline,
        open: BTreeMap<u64, Option<u64>>,
        epoch: u64,
    }
    let mut all = BTreeMap::<Uuid, Seen>::new();
    for Entry { at_us, device, what } in entries {
        let seen = all.entry(*device).or_default();
        match what {
            What::Up { link, epoch } => {
                figures.links += 1;
                if let Some(next) = *epoch {
                    if next <= seen.epoch {
                        faults.push(Fault::EpochNotGrowing { device: *device, before: seen.epoch, next });
                    }
                    seen.epoch = next;
                }
                seen.open.insert(*link, *epoch);
            }
            What::Down { link, .. } => {
                seen.open.remove(link);
            }
            What::Delivered { .. } | What::Begun { .. } | What::Ended { .. } | What::Receipted { .. } => continue,
        }
        let state = seen.open.values().max().map_or(State::Down, |epoch| State::Up(*epoch));
        // An older link that goes is no change.
        if seen.timeline.last().is_none_or(|(_, before)| *before != state) {
            seen.timeline.push((*at_us, state));
        }
    }
    all.into_iter().map(|(device, seen)| (device, seen.timeline)).collect()
}

/// Whether the database stood still at some time between a look and the one before.
fn was_stopped(evidence: &Evidence, number: usize) -> bool {
    let to_us = evidence.samples[number].to_us;
    let from_us = number.checked_sub(1).map_or(i64::MIN, |before| evidence.samples[before].from_us);
    evidence.harms.iter().any(|harm| harm.stops_database && harm.from_us <= to_us && harm.to_us >= from_us)
}

/// Looks at one device, sample after sample.
struct Judge {
    device: Uuid,
    limit_ms: i64,
    wrong_since_us: Option<i64>,
    /// One fault tells of all of one time.
    is_told: bool,
}

impl Judge {
    fn look(
        &mut self,
        sample: &Sample,
        timeline: &[(i64, State)],
        shown: Option<Shown>,
        faults: &mut Vec<Fault>,
        figures: &mut Figures,
    ) {
        // Before it came for the first time nothing is known of it.
        let Some((since_us, state)) = state_at(timeline, sample.from_us) else { return };
        figures.looks += 1;
        let is_steady = state_at(timeline, sample.to_us) == Some((since_us, state));
        if !is_steady || state.is_shown(shown) {
            (self.wrong_since_us, self.is_told) = (None, false);
            return;
        }
        // It was wrong at some time within the question, and is since then, unless the device changed meanwhile.
        let wrong_since_us = self.wrong_since_us.filter(|wrong_us| *wrong_us >= since_us).unwrap_or(sample.to_us);
        self.wrong_since_us = Some(wrong_since_us);
        let wrong_ms = (sample.from_us - wrong_since_us).max(0) / 1_000;
        figures.wrong_ms = figures.wrong_ms.max(wrong_ms);
        if wrong_ms > self.limit_ms && !self.is_told {
            self.is_told = true;
            let (device_says, database_says) = (format!("{state:?}"), format!("{shown:?}"));
            let until_us = sample.to_us;
            faults.push(Fault::PresenceWrong { device: self.device, device_says, database_says, wrong_ms, until_us });
        }
    }
}

/// The state at a time, and since when.
fn state_at(timeline: &[(i64, State)], at_us: i64) -> Option<(i64, State)> {
    let next = timeline.partition_point(|(changed_us, _)| *changed_us <= at_us);
    next.checked_sub(1).map(|last| timeline[last])
}
