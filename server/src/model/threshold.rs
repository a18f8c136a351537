//! Rules over what devices measure, and how a device stands by one: [`Standing::after`] is pure, and the time is in what it is given.

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::sample::Metric;

/// Rules of one tenant.
pub const THRESHOLDS_MAX: i64 = 100;
/// Devices that one event names. How many there are, it says besides.
pub const DEVICES_TOLD_MAX: usize = 50;
/// The longest that something may have to last, or that nothing more is told of a site.
pub const SECONDS_MAX: u32 = 86_400;
/// How long nothing more is told of a site, unless the rule says otherwise.
pub const HOLD_DOWN_SECONDS: u32 = 300;
/// The label that says at which site a device is.
pub const SITE_LABEL: &str = "site";
/// The only metric that no device measures.
const NO_CONTACT: &str = "no_contact_seconds";

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThresholdMetric {
    Measured(Metric),
    /// How long a device has been neither linked nor polling; 0 while it is.
    NoContact,
}

impl ThresholdMetric {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Measured(metric) => metric.name(),
            Self::NoContact => NO_CONTACT,
        }
    }

    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        if name == NO_CONTACT { Some(Self::NoContact) } else { Metric::named(name).map(Self::Measured) }
    }

    /// All names, for whoever gave another one.
    #[must_use]
    pub fn names() -> String {
        let measured = Metric::ALL.map(Metric::name);
        format!("{}, {NO_CONTACT}", measured.join(", "))
    }
}

/// On which side of its value a rule is crossed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    Above,
    Below,
}

impl Comparison {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Above => "above",
            Self::Below => "below",
        }
    }

    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Above, Self::Below].into_iter().find(|comparison| comparison.name() == name)
    }
}

/// How bad it is, for whoever is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlertSeverity {
    Info,
    Warning,
    Critical,
}

impl AlertSeverity {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Info, Self::Warning, Self::Critical].into_iter().find(|severity| severity.name() == name)
    }
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Threshold {
    pub id: Uuid,
    pub tenant_id: Uuid,
    pub name: String,
    /// As in `GET /devices/{id}/samples`, or `no_contact_seconds`.
    pub metric: String,
    pub comparison: Comparison,
    pub value: f64,
    /// At this value, or beyond it on the good side, it is over.
    pub clear_value: f64,
    /// How long it must last before it counts.
    pub for_seconds: u32,
    /// In the grammar of selectors, without groups (docs/ACCESS.md).
    pub selector: String,
    pub severity: AlertSeverity,
    /// How long nothing more is told of a site after something was; what happens meanwhile is told together then.
    pub hold_down_seconds: u32,
    pub created_by: Uuid,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub deleted_at: Option<OffsetDateTime>,
    /// Grows with each change: the `ETag`.
    pub version: i64,
}

/// A device that is not as it should be by a rule.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Alert {
    pub id: Uuid,
    pub threshold_id: Uuid,
    pub threshold_name: String,
    pub metric: String,
    pub severity: AlertSeverity,
    pub device_id: Uuid,
    pub device_name: String,
    /// The device's label `site` as it was when this began; null: it had none.
    pub site: Option<String>,
    pub state: AlertState,
    /// When it came to this state.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// What was measured then.
    pub value: Option<f64>,
    /// Whether webhooks have been told; if not, they are when the hold-down of the site is over.
    pub is_told: bool,
}

/// How a device of an alert stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlertState {
    /// Not for long enough yet.
    Pending,
    Firing,
}

/// How a device stands by a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// As it should be.
    Ok,
    /// Across the value, but not for long enough yet.
    Pending,
    Firing,
}

/// What is seen of a device, by a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    /// Across the value, and not for long enough yet.
    Across,
    /// Across the value for long enough.
    AcrossLong,
    /// Neither across the value nor clear of it.
    Between,
    Clear,
    /// It has not measured anything lately.
    Silent,
    /// The rule is not for this device, or not any more.
    Exempt,
}

impl State {
    /// What a state comes to, by what is seen. Each pair is here once.
    pub const TRANSITIONS: &[(Self, Seen, Self)] = &[
        (Self::Ok, Seen::Across, Self::Pending),
        (Self::Ok, Seen::AcrossLong, Self::Firing),
        (Self::Ok, Seen::Between, Self::Ok),
        (Self::Ok, Seen::Clear, Self::Ok),
        (Self::Ok, Seen::Silent, Self::Ok),
        (Self::Ok, Seen::Exempt, Self::Ok),
        (Self::Pending, Seen::Across, Self::Pending),
        (Self::Pending, Seen::AcrossLong, Self::Firing),
        // It must last without a gap.
        (Self::Pending, Seen::Between, Self::Ok),
        (Self::Pending, Seen::Clear, Self::Ok),
        (Self::Pending, Seen::Silent, Self::Ok),
        (Self::Pending, Seen::Exempt, Self::Ok),
        (Self::Firing, Seen::Across, Self::Firing),
        (Self::Firing, Seen::AcrossLong, Self::Firing),
        (Self::Firing, Seen::Between, Self::Firing),
        (Self::Firing, Seen::Clear, Self::Ok),
        // Nothing says that it is well again.
        (Self::Firing, Seen::Silent, Self::Firing),
        (Self::Firing, Seen::Exempt, Self::Ok),
    ];

    #[must_use]
    pub fn after(self, seen: Seen) -> Self {
        let transition = Self::TRANSITIONS.iter().find(|(from, when, _)| *from == self && *when == seen);
        transition.map_or(self, |(_, _, to)| *to)
    }

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Pending => "pending",
            Self::Firing => "firing",
        }
    }

    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Ok, Self::Pending, Self::Firing].into_iter().find(|state| state.name() == name)
    }
}

/// Where a rule draws the line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    pub comparison: Comparison,
    pub value: f64,
    pub clear_value: f64,
    pub lasting: Duration,
}

/// What there is of a device at this moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reading {
    /// Measured at this time.
    Measured { value: f64, at: OffsetDateTime },
    /// Nothing lately, as of this time.
    Silent(OffsetDateTime),
    /// The rule is not for it, as of this time.
    Exempt(OffsetDateTime),
}

/// How a device stands, and what of that is still to be told. Whoever is told hears of a crossing and of its end in turns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    pub state: State,
    pub since: OffsetDateTime,
    /// What was measured then, if anything was.
    pub value: Option<f64>,
    /// A crossing of which nobody has been told.
    pub untold: Option<Crossing>,
    /// Whether what was told last is that it had crossed.
    pub told: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crossing {
    pub at: OffsetDateTime,
    pub value: Option<f64>,
}

impl Standing {
    /// As one of which nothing is known.
    #[must_use]
    pub const fn well(at: OffsetDateTime) -> Self {
        Self { state: State::Ok, since: at, value: None, untold: None, told: false }
    }

    /// How it stands after what was read. One reading may come again and again.
    #[must_use]
    pub fn after(self, reading: Reading, line: &Line) -> Self {
        let (at, value) = match reading {
            Reading::Measured { value, at } => (at, Some(value)),
            Reading::Silent(at) | Reading::Exempt(at) => (at, None),
        };
        let state = self.state.after(self.seen(reading, line));
        if state == self.state {
            return self;
        }
        let mut after = Self { state, since: at, value, ..self };
        // Of one that is told already and was well for a moment only, there is nothing to tell.
        if state == State::Firing && !self.told && self.untold.is_none() {
            after.untold = Some(Crossing { at, value });
        }
        after
    }

    /// Whether there is anything to be remembered of it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state == State::Ok && !self.told && self.untold.is_none()
    }

    fn seen(&self, reading: Reading, line: &Line) -> Seen {
        let (value, at) = match reading {
            Reading::Measured { value, at } => (value, at),
            Reading::Silent(_) => return Seen::Silent,
            Reading::Exempt(_) => return Seen::Exempt,
        };
        let (is_across, is_clear) = match line.comparison {
            Comparison::Above => (value > line.value, value <= line.clear_value),
            Comparison::Below => (value < line.value, value >= line.clear_value),
        };
        let lasted = if self.state == State::Pending { at - self.since } else { Duration::ZERO };
        match (is_across, is_clear) {
            (true, _) if lasted >= line.lasting => Seen::AcrossLong,
            (true, _) => Seen::Across,
            (false, true) => Seen::Clear,
            (false, false) => Seen::Between,
        }
    }
}

#[cfg(test)]
mod tests;
