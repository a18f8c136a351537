//! Looks whether what is declared is in force, when the kernel says that something changed and every so often, and puts it right.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::compare::{self, Listing, Table, shorten};
use super::drift::{Drift, Kind};
use super::element::Elements;
use super::event::Events;
use super::kernel::{Kernel, KernelError};
use super::policy::{Reason, TABLE};
use super::{Isolation, State, setting};

/// How often rules are compared when nothing is said to have happened.
const COMPARE_EVERY: Duration = Duration::from_secs(5);
/// How often the interface and its settings are looked at, of which the kernel says nothing here.
const SETTINGS_EVERY: Duration = Duration::from_millis(250);
/// Between two looks because something happened: somebody who changes rules all the time costs no more.
const PAUSE: Duration = Duration::from_millis(50);
/// How often it is tried again to put right what could not be.
const REPAIR_EVERY: Duration = Duration::from_secs(1);
/// Attempts in one look.
const REPAIRS: u32 = 2;
/// How long others may undo the repairs before tunnels are cut. If the repair itself fails, they are at once.
const UNDONE_FOR: Duration = Duration::from_secs(2);
/// A drift that comes back within this time is the same one: whoever changes rules all the time fills no record.
const SAME_WITHIN: Duration = Duration::from_secs(60);
/// How often it is told that packets came around the driver.
const WARN_EVERY: Duration = Duration::from_secs(60);

impl Isolation {
    /// Watches until the stop. To be started once the interface is there.
    pub(crate) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let Some(kernel) = self.kernel.clone() else { return stop.cancelled().await };
        let mut events = listen();
        let mut watch = Watch::new(&self, &kernel, stop.clone());
        let (mut rules, mut settings, mut again) = (every(COMPARE_EVERY), every(SETTINGS_EVERY), every(REPAIR_EVERY));
        loop {
            let look = tokio::select! {
                () = stop.cancelled() => return,
                done = happened(events.as_ref()) => {
                    if let Err(error) = done {
                        tracing::error!(%error, "the kernel's events are lost: rules are compared every few seconds alone");
                        events = None;
                    }
                    Look::All
                }
                _ = rules.tick() => Look::All,
                _ = settings.tick() => Look::Settings,
                _ = again.tick(), if !watch.drifts.is_empty() => Look::All,
            };
            watch.look(look).await;
            if look == Look::All {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(PAUSE) => {}
                }
            }
        }
    }
}

fn listen() -> Option<Events> {
    Events::listen()
        .inspect_err(|error| tracing::error!(%error, "the kernel's events cannot be heard: rules are compared alone"))
        .ok()
}

async fn happened(events: Option<&Events>) -> std::io::Result<()> {
    match events {
        Some(events) => events.happened().await,
        None => std::future::pending().await,
    }
}

fn every(period: Duration) -> Interval {
    let mut every = interval(period);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    every
}

/// What to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    All,
    Settings,
}

/// What was found, by kind.
type Found = BTreeMap<Kind, Vec<String>>;

struct Watch<'a> {
    isolation: &'a Isolation,
    kernel: &'a Kernel,
    stop: CancellationToken,
    /// The interface that is watched; it is another one if this changes.
    interface: Option<u32>,
    /// In the words of the `nft` that is here. Known after the first look.
    declared: Option<Table>,
    /// What is not repaired yet.
    drifts: BTreeMap<Kind, Drift>,
    /// What was repaired lately, and when.
    repaired: BTreeMap<Kind, (Drift, Instant)>,
    /// Since when repairs do not last.
    unrepaired_since: Option<Instant>,
    /// The last repair could not be made.
    has_failed: bool,
    /// The kernel's counters as they were last read.
    counted: BTreeMap<&'static str, u64>,
    warned_at: Option<Instant>,
}

impl<'a> Watch<'a> {
    fn new(isolation: &'a Isolation, kernel: &'a Kernel, stop: CancellationToken) -> Self {
        let interface = if_nametoindex(isolation.policy.interface.as_str()).ok();
        Self {
            isolation,
            kernel,
            stop,
            interface,
            declared: None,
            drifts: BTreeMap::new(),
            repaired: BTreeMap::new(),
            unrepaired_since: None,
            has_failed: false,
            counted: BTreeMap::new(),
            warned_at: None,
        }
    }

    /// Finds out what is different, and puts it right.
    async fn look(&mut self, look: Look) {
        let isolation = self.isolation;
        // Nobody changes what is open meanwhile.
        let mut elements = isolation.elements.lock().await;
        elements.expire(Instant::now());
        let (mut found, mut live) = self.find(look, &elements).await;
        let is_known = found.keys().all(|kind| self.drifts.contains_key(kind));
        let is_done = found.is_empty() && self.drifts.is_empty() || is_known && look == Look::Settings;
        // At the stop the interface goes, which is no drift.
        if is_done || self.stop.is_cancelled() {
            return;
        }
        isolation.distrust();
        if look == Look::Settings {
            // All is put right together, so all is looked at before.
            (found, live) = self.find(Look::All, &elements).await;
        }
        let stale = self.declared.take();
        let mut left = self.repair(&elements, &mut found).await;
        for _ in 1..REPAIRS {
            if !left.is_empty() {
                isolation.metrics.isolation_repairs_failed.inc();
                left = self.repair(&elements, &mut found).await;
            }
        }
        drop(elements);
        if self.stop.is_cancelled() {
            return;
        }
        if stale.is_some() && live.is_some() && live == self.declared && found.len() == 1 {
            // Another nft was installed, which shows the same rules in other words.
            found.remove(&Kind::Rules);
        }
        self.record(found, left);
    }

    /// Compares. With the live table, if it alone can be different.
    async fn find(&mut self, look: Look, elements: &Elements) -> (Found, Option<Table>) {
        let mut found = Found::new();
        let policy = &self.isolation.policy;
        let mut find = |kind, differences: Vec<String>| {
            if !differences.is_empty() {
                found.insert(kind, shorten(differences));
            }
        };
        let interface = if_nametoindex(policy.interface.as_str()).ok();
        if interface.is_none() || interface != self.interface {
            find(Kind::Interface, vec![format!("the interface {} is gone, or another one", policy.interface)]);
        } else {
            find(Kind::Setting, setting::differences(&policy.interface));
        }
        if look == Look::Settings {
            return (found, None);
        }
        match self.compare(elements).await {
            Ok((differences, live)) => {
                find(Kind::Rules, differences);
                (found, live)
            }
            Err(error) => {
                find(Kind::Rules, vec![format!("the rules cannot be read: {error}")]);
                (found, None)
            }
        }
    }

    async fn compare(&mut self, elements: &Elements) -> Result<(Vec<String>, Option<Table>), KernelError> {
        let declared = match &self.declared {
            Some(declared) => declared,
            None => self.declared.insert(compare::declared(self.kernel, &self.isolation.policy).await?),
        };
        let before = Instant::now();
        let Some(objects) = self.kernel.list(TABLE).await? else {
            return Ok((compare::differences(declared, None), None));
        };
        let listing = Listing::read(&objects);
        let mut differences = elements.differences(&listing.elements, before, Instant::now());
        differences.extend(listing.strange);
        let is_table_alone = differences.is_empty();
        differences.extend(compare::differences(declared, Some(&listing.table)));
        self.count(&listing.dropped);
        Ok((differences, is_table_alone.then_some(listing.table)))
    }

    /// Puts everything in force again; says what is still different.
    async fn repair(&mut self, elements: &Elements, found: &mut Found) -> Found {
        // What changed since the look is put right with the rest, so it is told with the rest.
        if !found.contains_key(&Kind::Interface) {
            let settings = setting::differences(&self.isolation.policy.interface);
            if !settings.is_empty() {
                found.entry(Kind::Setting).or_insert_with(|| shorten(settings));
            }
        }
        // What cannot be repaired is tried every second, and told once.
        let is_told = !self.drifts.is_empty();
        self.has_failed = false;
        if let Err(error) = setting::harden(&self.isolation.policy.interface) {
            self.has_failed = true;
            let error = &error as &dyn std::error::Error;
            if !is_told {
                tracing::error!(error, "a setting of the tunnels' interface cannot be repaired");
            }
        }
        match self.isolation.apply(elements).await {
            Ok(()) => self.counted.clear(),
            Err(error) => {
                self.has_failed = true;
                let error = &error as &dyn std::error::Error;
                if !is_told {
                    tracing::error!(error, "the rules that isolate tunnels cannot be repaired");
                }
            }
        }
        self.find(Look::All, elements).await.0
    }

    /// `found`: by the look; `left`: what could not be repaired.
    fn record(&mut self, found: Found, left: Found) {
        let isolation = self.isolation;
        let was = isolation.rules_state();
        let is_repaired = left.is_empty();
        for (kind, differences) in found {
            if self.drifts.contains_key(&kind) {
                continue;
            }
            isolation.metrics.isolation_drifts.with_label_values(&[kind.label()]).inc();
            tracing::error!(kind = kind.label(), ?differences, is_repaired, "isolation was not as declared");
            let drift = self.drift(kind, differences);
            if !is_repaired {
                isolation.record(drift.clone());
            }
            self.drifts.insert(kind, drift);
        }
        for drift in mem::take(&mut self.drifts).into_values() {
            if left.contains_key(&drift.kind) {
                self.drifts.insert(drift.kind, drift);
            } else {
                let drift = drift.repaired();
                isolation.record(drift.clone());
                self.repaired.insert(drift.kind, (drift, Instant::now()));
            }
        }
        for (kind, differences) in &left {
            if !self.drifts.contains_key(kind) {
                // It came up during the repair.
                let drift = self.drift(*kind, differences.clone());
                isolation.record(drift.clone());
                self.drifts.insert(*kind, drift);
            }
        }
        if is_repaired {
            self.unrepaired_since = None;
            isolation.set_rules(State::Enforced);
            if was == State::Unrepairable {
                tracing::info!("isolation is as declared again");
            }
            return;
        }
        isolation.metrics.isolation_repairs_failed.inc();
        let since = *self.unrepaired_since.get_or_insert_with(Instant::now);
        if self.has_failed || left.contains_key(&Kind::Interface) || since.elapsed() >= UNDONE_FOR {
            isolation.set_rules(State::Unrepairable);
            if was != State::Unrepairable {
                tracing::error!(?left, "isolation cannot be put right: tunnels are cut and refused until it can");
            }
        }
    }

    /// A new one, or the one that was repaired a moment ago.
    fn drift(&self, kind: Kind, differences: Vec<String>) -> Drift {
        match self.repaired.get(&kind) {
            Some((drift, at)) if at.elapsed() < SAME_WITHIN => Drift { repaired_at: None, ..drift.clone() },
            Some(_) | None => Drift::found(kind, differences),
        }
    }

    /// The kernel's counters begin anew with each table, the metrics never.
    fn count(&mut self, dropped: &[(Reason, u64)]) {
        let mut around = 0;
        for &(reason, packets) in dropped {
            let before = self.counted.insert(reason.label(), packets).unwrap_or(0);
            let more = packets.checked_sub(before).unwrap_or(packets);
            self.isolation.metrics.isolation_kernel_dropped.with_label_values(&[reason.label()]).inc_by(more);
            around += if reason.is_behind_driver() { more } else { 0 };
        }
        let around = self.isolation.around_driver(around);
        if around > 0 && self.warned_at.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            self.warned_at = Some(Instant::now());
            tracing::warn!(packets = around, "the kernel dropped packets of devices that the driver had let through");
        }
    }
}
